"""Block triangular Jacobians fall apart, and the parts keep the spectrum."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from problems import randn, small_fprm
from torch import nn

from fpcheck.blocks import FPRMConfig, FPRMModel, load, shipped_models
from fpcheck.errors import InputError
from fpcheck.loop import Loop
from fpcheck.spectral import blockwise, jacobian, operator, spectrum
from fpcheck.spectral.blockwise import block_eigenvalues
from fpcheck.spectral.dense import first_order
from fpcheck.spectral.structure import diagonal_blocks, find_structure


def sets(matrix) -> list[list[int]]:
    return sorted(part.tolist() for part in diagonal_blocks(torch.tensor(matrix, dtype=torch.float64)))


def test_small_graphs():
    # A cycle through all three entries is one component; a chain is three; an isolated entry is its own.
    assert sets([[0, 1, 0], [0, 0, 1], [1, 0, 0]]) == [[0, 1, 2]]
    assert sets([[1, 0, 0], [1, 1, 0], [1, 1, 1]]) == [[0], [1], [2]]
    assert sets([[0, 1, 0], [1, 0, 0], [1, 0, 5]]) == [[0, 1], [2]]
    assert sets([[0.0]]) == [[0]]


def test_a_permuted_block_triangular_matrix_is_recognised():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    A[:2, 2:] = 0
    A[2:5, 5:] = 0
    order = torch.randperm(6, generator=generator)
    found = sorted(sorted(order[part].tolist()) for part in diagonal_blocks(A[order][:, order]))
    assert found == [[0, 1], [2, 3, 4], [5]]


@pytest.mark.parametrize("causal", [True, False])
def test_a_causal_block_falls_apart_into_its_tokens_and_another_does_not(causal):
    torch.manual_seed(0)
    config = FPRMConfig(
        vocab_size=5, seq_len=4, hidden_size=8, num_heads=2, L_layers=1, expansion=1.5, mlp_multiple=8, causal=causal
    )
    model = FPRMModel(config).double().eval()
    with torch.no_grad():
        x = model.injection(torch.tensor([[1, 2, 3, 4]])).double()
    J = jacobian(Loop(model.block, x), model.initial_state(x))[0]
    parts = sorted(part.tolist() for part in diagonal_blocks(J))
    tokens = [list(range(8 * t, 8 * t + 8)) for t in range(4)]
    assert parts == (tokens if causal else [list(range(32))])


def test_equal_tokens_are_no_longer_ill_conditioned():
    # Twelve copies of the rotation-scaling [[0.3, -0.4], [0.4, 0.3]] (eigenvalues 0.3 +- 0.4i, modulus 0.5) in a
    # chain: as one matrix, two Jordan blocks of size 12, whose eigenvalues double precision gives to about
    # (1e-16)^(1/12) = 0.05. By blocks they are exact to rounding.
    block = torch.tensor([[0.3, -0.4], [0.4, 0.3]], dtype=torch.float64)
    A = torch.kron(torch.eye(12, dtype=torch.float64), block)
    A += torch.kron(torch.diag(torch.ones(11, dtype=torch.float64), -1), torch.eye(2, dtype=torch.float64))
    spec = spectrum(Loop(lambda z: z @ A.T, z0=torch.zeros(1, 24, dtype=torch.float64)), torch.zeros(1, 24).double())
    assert float(spec.radius.value[0]) == pytest.approx(0.5, rel=1e-14)
    assert float(spec.radius.error[0]) < 1e-13
    assert abs(torch.linalg.eigvals(A).abs().max().item() - 0.5) > 1e-4  # the whole matrix at once: not so


# Over tokens, by products


class Attention(nn.Module):
    """Softmax attention on one head with any mask, and a residual stream."""

    def __init__(self, mask, d: int = 3) -> None:
        super().__init__()
        self.mask = torch.as_tensor(mask, dtype=torch.bool)
        self.Q, self.K, self.V = (nn.Parameter(randn(d, d, seed=s)) for s in (1, 2, 3))

    def forward(self, z, x):
        scores = ((z @ self.Q) @ (z @ self.K).mT).masked_fill(~self.mask, -torch.inf)
        return 0.3 * z + scores.softmax(-1) @ z @ self.V + x


def attention(mask, samples: int = 2, d: int = 3) -> tuple[Loop, torch.Tensor]:
    T = len(mask)
    return Loop(Attention(mask, d), randn(samples, T, d, seed=4)), randn(samples, T, d, seed=5)


CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
PREFIX = CAUSAL.clone()
PREFIX[:3, :3] = True  # the first three see each other
WINDOW = CAUSAL.triu(-1)  # itself and the token before
TURNED = torch.tensor([2, 0, 4, 1, 3])


def sorted_tokens(structure) -> list[list[int]]:
    return [part.tolist() for part in structure.components]


@pytest.mark.parametrize(
    ("mask", "path", "components"),
    [
        (CAUSAL, "causal: 5 blocks of 3", [[0], [1], [2], [3], [4]]),
        (CAUSAL.mT, "anti-causal: 5 blocks of 3", [[4], [3], [2], [1], [0]]),
        (PREFIX, "block triangular: 3 blocks, 1 of 9, 2 of 3", [[0, 1, 2], [3], [4]]),
        (WINDOW, "causal: 5 blocks of 3", [[0], [1], [2], [3], [4]]),
        (torch.eye(5), "independent tokens: 5 blocks of 3", [[0], [1], [2], [3], [4]]),
        # Token TURNED[i] comes i-th: the order is found.
        (
            CAUSAL[TURNED.argsort()][:, TURNED.argsort()],
            "causal in another order: 5 blocks of 3",
            [[2], [0], [4], [1], [3]],
        ),
        (torch.ones(5, 5), "none: one block of 15", [[0, 1, 2, 3, 4]]),
        (torch.ones(5, 5).tril(1), "none: one block of 15", [[0, 1, 2, 3, 4]]),  # one token ahead: all in a chain
    ],
    ids=["causal", "anti-causal", "prefix", "window", "independent", "another order", "both ways", "one ahead"],
)
def test_masks_are_found_and_the_blocks_keep_the_spectrum(mask, path, components):
    loop, z = attention(mask)
    found = block_eigenvalues(loop, z)
    structure = found.structure
    assert found.path == path
    assert sorted_tokens(structure) == components
    assert structure.is_found == (len(components) > 1)
    # A softmax over a single token is 1 whatever its score; otherwise every derivative that the mask allows is there.
    assert torch.equal(structure.depends, torch.as_tensor(mask, dtype=torch.bool))
    J = jacobian(loop, z).numpy()
    for i in range(2):
        # Numpy's eigenvalues of the diagonal blocks, whose rows and columns are written out here.
        index = [np.concatenate([np.arange(3 * t, 3 * t + 3) for t in part]) for part in components]
        expected = np.concatenate([np.linalg.eigvals(J[i][np.ix_(one, one)]) for one in index])
        assert_same(expected, found.values[i], found.error[i])
        # And of the whole matrix, here well conditioned: 2e-14 apart when this was written.
        assert_same(np.linalg.eigvals(J[i]), found.values[i], torch.full((15,), 1e-12))
    assert (found.error < 1e-11).all()  # condition numbers up to some hundreds
    assert torch.equal(spectrum(loop, z).eigenvalues, found.values)


def assert_same(expected: np.ndarray, values: torch.Tensor, error: torch.Tensor) -> None:
    """Eigenvalues one to one, each within twice its error: numpy's LAPACK has errors of its own."""
    assert len(expected) == len(values) == len(error)
    distance = np.abs(expected[:, None] - values.numpy())
    rows, columns = scipy.optimize.linear_sum_assignment(distance)
    assert (distance[rows, columns] <= 2 * error.numpy()[columns]).all(), distance[rows, columns].max()


@st.composite
def masks(draw):
    T = draw(st.integers(1, 6))
    return draw(hnp.arrays(bool, (T, T)))


@given(masks())
def test_components_are_those_of_the_graph(mask):
    T = len(mask)
    M = torch.tensor(mask).double() * (0.5 + randn(T, T, seed=1).abs())
    z = randn(2, T, 2)
    W = randn(2, 2, seed=2)
    structure = find_structure(Loop(lambda z: M @ z @ W, z0=z), z)
    assert torch.equal(structure.depends, torch.tensor(mask))
    # Warshall: who reaches whom.
    reach = mask | np.eye(T, dtype=bool)
    for k in range(T):
        reach |= np.outer(reach[:, k], reach[k])
    both = reach & reach.T
    assert {*map(tuple, sorted_tokens(structure))} == {tuple(np.flatnonzero(row).tolist()) for row in both}
    earlier = np.zeros(T, dtype=bool)
    for part in structure.components:
        earlier[part.numpy()] = True
        assert not mask[part.numpy()][:, ~earlier].any()  # on itself and earlier ones only


@pytest.mark.parametrize(
    ("variant", "more", "path"),
    [
        ("plain", {}, "none: one block of 32"),
        ("plain", {"causal": True}, "causal: 4 blocks of 8"),
        ("causal, conv1d", {}, "causal: 4 blocks of 8"),
        ("conv2d, puzzle token", {"causal": True}, "block triangular: 2 blocks, 1 of 32, 1 of 8"),
        ("mlp over positions", {"causal": True}, "none: one block of 32"),
        ("cold softmax, learned positions", {"causal": True}, "causal: 4 blocks of 8"),
        ("input-dependent, post-norm", {"causal": True}, "causal: 4 blocks of 8"),
    ],
)
def test_fprm(variant, more, path):
    # The convolution over a 2 x 2 square mixes all tokens but the puzzle token before them.
    loop, z = small_fprm(variant, **more)
    found = block_eigenvalues(loop, z)
    assert found.path == path
    assert torch.equal(spectrum(loop, z).eigenvalues, found.values)
    narrow = block_eigenvalues(Loop(loop.block.float(), loop.x.float()), z.float())
    assert narrow.path == path
    # Radii of float32 and float64 agree within their errors.
    gap = (narrow.values[:, 0].abs() - found.values[:, 0].abs()).abs()
    assert (gap <= (narrow.values.abs() + narrow.error).amax(1) - narrow.values.abs().amax(1) + 1e-12).all()


def test_a_loop_turned_back_to_front_is_anti_causal():
    loop, z = small_fprm("causal, conv1d")
    turned = Loop(lambda z, x: loop.block(z.flip(1), x.flip(1)).flip(1), loop.x.flip(1))
    found = block_eigenvalues(turned, z.flip(1))
    assert found.path == "anti-causal: 4 blocks of 8"
    expected = block_eigenvalues(loop, z)
    # The same numbers in another place; rotations of other positions may round otherwise.
    torch.testing.assert_close(found.values.abs(), expected.values.abs(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("to", "path"),
    [(0, "none: one block of 32"), (2, "block triangular: 3 blocks, 1 of 16, 2 of 8")],
)
def test_the_tiniest_leak_from_the_future_is_seen(to, path):
    loop, z = small_fprm("causal, conv1d")

    def leaking(z, x):
        out = loop.block(z, x)
        leak = torch.zeros_like(out)
        leak[:, to] = 1e-30 * z[:, 3]
        return out + leak  # no value changes: 1e-30 is far below its rounding

    with torch.no_grad():
        assert torch.equal(leaking(z, loop.x), loop(z))
    assert find_structure(Loop(leaking, loop.x), z).path == path


def test_the_batch_has_what_its_samples_have_together():
    # Sample 0 looks back, sample 1 ahead: each is triangular, the two together are not.
    weight = torch.stack([CAUSAL.double(), CAUSAL.mT.double()]) / 5
    z = randn(2, 5, 3)
    loop = Loop(lambda z, w: w @ z.sin(), weight, z0=z)
    assert find_structure(loop, z).path == "none: one block of 15"
    assert find_structure(loop.sample(0), z[:1]).path == "causal: 5 blocks of 3"
    assert find_structure(loop.sample(1), z[1:]).path == "anti-causal: 5 blocks of 3"


@pytest.mark.parametrize("token_dim", [1, 2, 3])
def test_tokens_may_be_counted_by_any_dimension(token_dim):
    z = randn(2, 2, 3, 4)
    others = [dim for dim in (1, 2, 3) if dim != token_dim]

    def block(z):  # every entry of a token takes the mean of all entries of the tokens up to it
        return z.sin().mean(others, keepdim=True).cumsum(token_dim).expand_as(z)

    found = block_eigenvalues(Loop(block, z0=z), z, token_dim=token_dim)
    T = z.shape[token_dim]
    assert found.path == f"causal: {T} blocks of {24 // T}"
    # Each diagonal block is 1 (cos z)' / m with m entries, of rank one: the mean of cos z, and m - 1 zeros.
    expected = z.cos().mean(others)
    values = found.values[:, :T].real.sort(dim=1).values
    torch.testing.assert_close(values, expected.sort(dim=1).values, rtol=1e-13, atol=0)
    assert (found.values[:, T:].abs() <= found.error[:, T:]).all()


def test_one_number_per_token():
    z = randn(1, 4)
    found = block_eigenvalues(Loop(lambda z: z.cumsum(1) / 4, z0=z), z)
    assert found.path == "causal: 4 blocks of 1"
    assert found.products == 4 + 4


@pytest.mark.parametrize("zeros", [False, True])
def test_samples_do_not_affect_each_other(zeros):
    # Scales a thousand apart: errors must not change hands, be it all blocks at once or those with zeros one by one.
    weight = torch.stack([CAUSAL.double(), 1e3 * CAUSAL.double()])
    W = randn(3, 3, seed=8)
    W = W.triu() if zeros else W
    z = randn(2, 5, 3)
    loop = Loop(lambda z, w: w @ z.sin() @ W, weight, z0=z)
    together = block_eigenvalues(loop, z)
    for i in range(2):
        alone = block_eigenvalues(loop.sample(i), z[i : i + 1])
        # Batched products of other sizes sum in another order.
        torch.testing.assert_close(alone.values[0], together.values[i], rtol=1e-11, atol=0)
        torch.testing.assert_close(alone.error[0], together.error[i], rtol=0.5, atol=0)


def test_zeros_within_a_token_split_its_block_further():
    # As one matrix a condition of 1 / 1e-6, entry by entry of 1.
    W = torch.tensor([[0.5, 1.0, 0.0], [0.0, 0.5 - 1e-6, 0.0], [0.0, 0.0, 0.2]], dtype=torch.float64)
    z = randn(2, 5, 3)
    found = block_eigenvalues(Loop(lambda z: z.cumsum(1) @ W, z0=z), z)
    assert found.path == "causal: 5 blocks of 3"
    expected = W.diagonal().repeat_interleave(5).expand(2, -1).to(torch.complex128)
    assert torch.equal(found.values, expected)
    assert (found.error < 1e-13).all()


def test_first_order_errors_of_many_matrices_are_those_of_the_formula():
    J = randn(4, 5, 5, seed=1)
    J[:, 0, 3:] = 0
    mask = (J != 0).double()
    delta, gamma = randn(4, 1, seed=2).abs(), randn(4, 1, seed=3).abs()
    lam, err = first_order(J, mask, delta, gamma)
    for b in range(4):
        values, X = np.linalg.eig(J[b].numpy())
        Y = np.linalg.inv(X)
        for j in range(5):
            # |y| anywhere; where J is not zero, the mean square of y' E x over E of unit entries: its own sum.
            y, x = np.abs(Y[j]), np.abs(X[:, j])
            structured = sum(mask[b, r, c].item() * (y[r] * x[c]) ** 2 for r in range(5) for c in range(5))
            expected = delta[b].item() * np.linalg.norm(y) + gamma[b].item() * structured**0.5
            k = int(np.abs(lam[b].numpy() - values[j]).argmin())
            assert err[b, k].item() == pytest.approx(expected, rel=1e-9)


def test_small_chunks_change_nothing(monkeypatch):
    loop, z = attention(PREFIX)
    expected = block_eigenvalues(loop, z)
    # 2 samples x 15 entries x 8 bytes: four rows at a time, across blocks.
    monkeypatch.setattr(operator, "CHUNK_BYTES", 4 * 240)
    again = block_eigenvalues(loop, z)
    assert again.path == expected.path
    torch.testing.assert_close(again.values, expected.values, rtol=1e-12, atol=1e-13)


def test_products_and_memory_are_those_of_the_blocks():
    loop, z = small_fprm("causal, conv1d")
    found = block_eigenvalues(loop, z)
    assert found.products == 4 + 32  # one per token, one per row
    # 2 samples x 4 blocks x 8^2 x 8 bytes = 4,096, and 12 x 8 x 8^2 = 6,144 for LAPACK for each of the 8 blocks.
    block_eigenvalues(loop, z, max_bytes=53_248)
    with pytest.raises(InputError, match=r"4 block\(s\) of up to 8 rows for each of 2 .* take at most 1 sample\(s\)"):
        block_eigenvalues(loop, z, max_bytes=53_247)
    with pytest.raises(InputError, match=r"not even one sample fits; use Krylov\(\)"):
        block_eigenvalues(loop, z, max_bytes=49_152)


def test_blocks_are_taken_in_groups(monkeypatch):
    loop, z = attention(PREFIX)
    expected = block_eigenvalues(loop, z)
    # Room for three blocks of 3 x 3 at a time, across samples, and for one of 9 x 9.
    monkeypatch.setattr(blockwise, "_TOGETHER_BYTES", 3 * 12 * 8 * 9)
    again = block_eigenvalues(loop, z)
    assert torch.equal(again.values, expected.values)
    assert torch.equal(again.error, expected.error)


@pytest.mark.parametrize("find", [find_structure, block_eigenvalues])
@pytest.mark.parametrize("token_dim", [0, 3, -1, True, 1.0])
def test_bad_token_dimensions_are_refused(find, token_dim):
    loop, z = attention(CAUSAL)
    with pytest.raises(InputError, match=r"token_dim=.*\(2, 5, 3\) that counts tokens, 1 to 2"):
        find(loop, z, token_dim=token_dim)


def test_too_many_tokens_are_refused():
    z = torch.zeros(1, 30_000)
    with pytest.raises(InputError, match=r"T=30000 tokens needs up to 13.4 GiB"):  # 16 * 30000^2 bytes
        find_structure(Loop(lambda z: z / 2, z0=z), z)


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_fall_apart_into_their_tokens(name):
    model = load(name)
    with torch.no_grad():
        x = model.injection(torch.arange(12).unsqueeze(0) % 6)
        loop, z = Loop(model.block, x), model.initial_state(x)
        for _ in range(50):
            z = loop(z)
    found = block_eigenvalues(loop, z)
    assert found.path == "causal: 12 blocks of 64"
    J = jacobian(loop, z)[0].double().numpy()
    expected = np.concatenate([np.linalg.eigvals(J[t : t + 64, t : t + 64]) for t in range(0, 768, 64)])
    assert_same(expected, found.values[0], found.error[0])
    assert found.error[0, 0] < 1e-3  # float32


# Tokens that act alike


def symmetric_linear(dtype, T: int = 6, d: int = 4) -> tuple[Loop, torch.Tensor, torch.Tensor, torch.Tensor]:
    """F_t = A z_t + C sum over s of z_s, with one A and C per sample."""
    A, C = (randn(2, d, d, seed=s).to(dtype) / 4 for s in (1, 2))
    z = randn(2, T, d, seed=3).to(dtype)
    weights = {"A": A, "C": C}
    loop = Loop(lambda z, w: z @ w["A"].mT + z.sum(1, keepdim=True) @ w["C"].mT, weights, z0=z)
    return loop, z, A.double(), C.double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_symmetric_tokens_have_the_spectrum_of_two_blocks(dtype):
    loop, z, A, C = symmetric_linear(dtype)
    found = block_eigenvalues(loop, z)
    assert found.path == "token-symmetric: 5 times one block of 4, and another"
    assert found.products == 6 + 8 + 4  # one per token, four vectors twice, one per row of a token
    for i in range(2):
        # J (1 (x) v) = 1 (x) (A + T C) v; and J (w (x) v) = w (x) A v where the entries of w add up to zero.
        expected = np.concatenate([*[np.linalg.eigvals(A[i].numpy())] * 5, np.linalg.eigvals((A + 6 * C)[i].numpy())])
        assert_same(expected, found.values[i], found.error[i])
        # As a whole: each eigenvalue five times over, but semi-simple, so as well conditioned.
        assert_same(np.linalg.eigvals(jacobian(loop, z)[i].double().numpy()), found.values[i], found.error[i])
    # Conditions below 30 times three roundings, each some tens of eps.
    assert (found.error < 1e4 * torch.finfo(dtype).eps).all()


def constant_fprm(**more) -> tuple[Loop, torch.Tensor]:
    """The same symbol at every position, started from the same vector everywhere."""
    torch.manual_seed(0)
    settings = {"vocab_size": 5, "seq_len": 4, "hidden_size": 8, "num_heads": 2, "mlp_multiple": 8}
    model = FPRMModel(FPRMConfig(**settings, **more)).double().eval()
    with torch.no_grad():
        x = model.injection(torch.tensor([[1] * 4, [3] * 4])).double()
        loop, z = Loop(model.block, x), randn(1, 1, 8).expand(2, 4, 8)
        for _ in range(5):
            z = loop(z)
    return loop, z


def test_attention_without_positions_is_symmetric_at_a_constant_state():
    loop, z = constant_fprm(pos_encodings="none")
    found = block_eigenvalues(loop, z)
    assert found.path == "token-symmetric: 3 times one block of 8, and another"
    for i, J in enumerate(jacobian(loop, z).numpy()):
        assert_same(np.linalg.eigvals(J), found.values[i], found.error[i])
    assert (found.error < 1e-11).all()


@pytest.mark.parametrize(
    "name", ["rotary positions", "learned positions", "another state", "almost constant", "mlp over positions"]
)
def test_what_only_looks_symmetric_is_refused(name):
    positions = {"rotary positions": "rope", "learned positions": "learned"}.get(name, "none")
    loop, z = constant_fprm(pos_encodings=positions, mlp_t=name == "mlp over positions")
    if name == "another state":
        z = randn(2, 4, 8, seed=7)
    if name == "almost constant":
        z = z + 1e-9 * randn(2, 4, 8, seed=7)
    structure = find_structure(loop, z)
    assert structure.path == "none: one block of 32"
    assert structure.products == 4 + 8  # given up before the rows of a token


def test_shifts_alone_are_not_enough():
    # Circulant over tokens: commutes with the cyclic shift, not with a swap.
    z = randn(1, 5, 2)
    loop = Loop(lambda z: 0.3 * z + 0.2 * z.roll(1, 1) + 0.1 * z.roll(2, 1), z0=z)
    assert find_structure(loop, z).path == "none: one block of 10"


def test_two_like_tokens_are_not_enough():
    # The first two tokens may change places, the others may not.
    mixing = torch.full((4, 4), 0.1, dtype=torch.float64) + torch.diag(torch.tensor([0.3, 0.3, 0.5, 0.7]).double())
    z = randn(1, 4, 2)
    loop = Loop(lambda z: mixing @ z, z0=z)
    assert find_structure(loop, z).path == "none: one block of 8"


def test_one_unlike_sample_spoils_the_symmetry():
    loop, z, _, _ = symmetric_linear(torch.float64)

    def block(z, x):
        out = z @ x["A"].mT + z.sum(1, keepdim=True) @ x["C"].mT
        return out + x["odd"].view(-1, 1, 1) * z.roll(1, 1)

    x = loop.x | {"odd": torch.tensor([0.0, 0.1]).double()}
    assert find_structure(Loop(block, x, z0=z), z).path == "none: one block of 24"
    assert find_structure(Loop(block, x, z0=z).sample(0), z[:1]).is_found


def test_symmetric_blocks_beyond_memory_are_refused():
    loop, z, _, _ = symmetric_linear(torch.float64)
    # 2 samples x 2 blocks x 4^2 x 8 bytes = 512, and 12 x 8 x 4^2 = 1,536 for LAPACK for each of the 4 blocks.
    block_eigenvalues(loop, z, max_bytes=6_656)
    with pytest.raises(InputError, match=r"2 block\(s\) of up to 4 rows"):
        block_eigenvalues(loop, z, max_bytes=6_655)
