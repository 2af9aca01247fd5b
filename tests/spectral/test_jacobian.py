import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import problems
import pytest
import torch
from hypothesis import given
from problems import FPRM_VARIANTS, randn, small_fprm
from strategies import fprm_configs
from torch import nn
from torch.nn import functional as F

from fpcheck.blocks import FPRMBlock
from fpcheck.errors import BlockError, BlockOutputError, InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral import jacobian, jacobian_rounding
from fpcheck.spectral.operator import require_derivative


def one_sample_at_a_time(loop: Loop, z: torch.Tensor) -> torch.Tensor:
    """The Jacobians by torch's own routine, which knows nothing of batches."""
    n = z[0].numel()
    each = [torch.autograd.functional.jacobian(loop.sample(i), z[i : i + 1]) for i in range(len(z))]
    return torch.stack([J.reshape(n, n) for J in each])


def central_differences(loop: Loop, z: torch.Tensor, h: float) -> torch.Tensor:
    basis = torch.eye(z[0].numel(), dtype=z.dtype).view(-1, 1, *z.shape[1:])
    with torch.no_grad():
        columns = [(loop(z + h * e) - loop(z - h * e)).flatten(1) / (2 * h) for e in basis]
    return torch.stack(columns, dim=2)


@given(hnp.arrays(float, st.integers(1, 5).map(lambda n: (n, n)), elements=st.floats(-1e3, 1e3)))
def test_a_linear_loop_gives_back_its_matrix(matrix):
    A = torch.tensor(matrix)
    # Products with basis vectors only: exact.
    z = torch.ones(2, len(A), dtype=torch.float64)
    assert torch.equal(jacobian(Loop(lambda z: z @ A.T, z0=z), z), A.expand(2, -1, -1))


@pytest.mark.parametrize("variant", FPRM_VARIANTS)
def test_fprm_agrees_with_torch_and_with_differences(variant):
    loop, z = small_fprm(variant)
    J = jacobian(loop, z)
    # The same derivative in another order of summation: some tens of roundings of entries of size 1.
    torch.testing.assert_close(J, one_sample_at_a_time(loop, z), rtol=1e-12, atol=1e-13)
    # Truncation h^2 F''' / 6 and rounding eps / h at h = 1e-5 are 1e-10 and 1e-11; derivatives of cold softmax and
    # norms reach 1e3 times that.
    quotients = central_differences(loop, z, 1e-5)
    torch.testing.assert_close(J, quotients, rtol=0, atol=1e-7)
    # Negative control: the transpose, the likeliest mistake, is far outside these tolerances, and the check that
    # runs inside jacobian() refuses it.
    assert (J.mT - quotients).abs().max() > 1e-2
    v = randn(2, J.shape[1], seed=9)
    with pytest.raises(BlockError, match="not that of its values for 2 samples"):
        require_derivative(loop, z, v, (J.mT @ v.unsqueeze(-1)).squeeze(-1))


@given(fprm_configs(), st.integers(0, 100))
def test_every_fprm_configuration_agrees_with_torch(config, seed):
    torch.manual_seed(seed)
    block = FPRMBlock(config).double()
    x, z = randn(2, config.positions, config.hidden_size), randn(2, config.positions, config.hidden_size, seed=1)
    loop = Loop(block, x)
    expected = one_sample_at_a_time(loop, z)
    # Some tens of roundings of the largest entry.
    atol = 1e-13 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(jacobian(loop, z), expected, rtol=0, atol=atol)


def test_known_jacobian_of_a_nonlinear_loop():
    problem = problems.tanh()
    J = jacobian(problem.loop(), problem.known["fixed_point"])
    # tanh and its derivative at z*, a few roundings of numbers below 1.
    torch.testing.assert_close(J, problem.known["jacobian"], rtol=0, atol=1e-14)


@pytest.mark.parametrize("chunk_size", [1, 5, 7, 32, 1000])
def test_chunks_change_nothing(chunk_size):
    loop, z = small_fprm("plain")
    # Batched matrix products of other sizes sum in another order.
    torch.testing.assert_close(jacobian(loop, z, chunk_size=chunk_size), jacobian(loop, z), rtol=1e-12, atol=1e-14)


def test_samples_are_independent_of_their_batch():
    loop, z = small_fprm("causal, conv1d")
    for i in range(2):
        torch.testing.assert_close(jacobian(loop.sample(i), z[i : i + 1])[0], jacobian(loop, z)[i], rtol=0, atol=1e-14)


def test_views_follow_the_chain_rule():
    A = randn(4, 4) / 2
    z = randn(1, 4)
    loop = Loop(lambda z: z @ A.T, z0=z)
    identity = torch.eye(4, dtype=torch.float64)
    damped = 0.7 * identity + 0.3 * A
    # Linear maps: exact up to the roundings of the products.
    for view, expected in [
        (loop.damped(0.3), damped),
        (loop.iterated(3), A @ A @ A),
        (loop.damped(0.3).iterated(2), damped @ damped),
    ]:
        torch.testing.assert_close(jacobian(view, z)[0], expected, rtol=0, atol=1e-15)


def test_state_of_any_shape_is_flattened_row_by_row():
    z = randn(2, 2, 3)
    J = jacobian(Loop(lambda z: z.roll(1, dims=1) * 2, z0=z), z)
    # Entry (r, c) of the image is twice entry (r - 1, c) of the state: rows swap, three places apart.
    expected = 2 * torch.eye(6, dtype=torch.float64).roll(3, dims=0)
    assert torch.equal(J, expected.expand(2, -1, -1))


def test_nothing_is_left_behind():
    loop, z = small_fprm("plain")
    z.requires_grad_()
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            J = jacobian(loop, z)
        assert not J.requires_grad
    assert z.grad is None
    assert all(p.grad is None for p in loop.block.parameters())


def test_inference_tensors_are_refused_with_the_reason():
    with torch.inference_mode():
        x = randn(1, 3)
    with pytest.raises(BlockError, match="inference mode"):
        jacobian(Loop(lambda z, x: torch.tanh(z) * x, x), randn(1, 3))


class SineWithNumpyGradient(torch.autograd.Function):
    """A gradient that cannot be batched, as in custom kernels."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a.sin()

    @staticmethod
    def backward(ctx, gradient):
        (a,) = ctx.saved_tensors
        return torch.from_numpy(gradient.detach().numpy() * a.cos().detach().numpy())


class RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        return torch.round(4 * a) / 4

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def encoder_layer() -> nn.Module:
    torch.manual_seed(1)
    return nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, dtype=torch.float64).eval()


@pytest.mark.parametrize(
    ("block", "shape"),
    [
        (SineWithNumpyGradient.apply, (2, 3)),
        (lambda z: F.scaled_dot_product_attention(z, z, z), (2, 3, 4)),
        (encoder_layer(), (2, 3, 4)),
        (lambda z: z.mul(1.0).mul_(0.5), (2, 3)),  # in place, but not on its input
        (torch.relu, (2, 3)),
        (torch.ones_like, (2, 3)),  # constant: J = 0, and that is right
        (lambda z: torch.round(z) * 0.5, (2, 3)),  # J = 0 almost everywhere
    ],
    ids=["custom gradient", "fused attention", "encoder layer", "in place", "relu", "constant", "rounding"],
)
def test_foreign_blocks(block, shape):
    z = randn(*shape)
    loop = Loop(block, z0=z)
    # Differences at h = 1e-6: rounding eps / h = 2e-10, truncation less, times derivatives of some units.
    torch.testing.assert_close(jacobian(loop, z), central_differences(loop, z, 1e-6), rtol=0, atol=1e-7)


def in_place(z):
    return z.mul_(0.5)


@torch.no_grad()
def without_graph(z):
    return torch.tanh(z)


@pytest.mark.parametrize(
    ("block", "z", "error", "words"),
    [
        (in_place, randn(2, 3), BlockError, "in-place"),
        (without_graph, randn(2, 3), BlockError, "not that of its values"),
        (lambda z: torch.tanh(z.detach()), randn(2, 3), BlockError, "detach"),
        (lambda z: 0.5 * z + 0.3 * torch.tanh(z.detach()), randn(2, 3), BlockError, "detach"),
        (RoundStraightThrough.apply, randn(2, 3), BlockError, "straight-through"),
        (lambda z: torch.relu(z) * 0.5, torch.zeros(2, 3).double(), BlockError, "kink"),
        (lambda z: z.abs().sqrt(), torch.zeros(2, 3).double(), NonFiniteError, "square root"),
        (lambda z: 1 / z, torch.zeros(2, 3).double(), NonFiniteError, r"F\(z\) holds NaN or inf for 2 samples"),
        (lambda z: z[:, :2], randn(2, 3), BlockOutputError, r"shape=\(2, 2\)"),
        (lambda z: z.float(), randn(2, 3), BlockOutputError, "dtype=torch.float32"),
    ],
)
def test_blocks_without_the_right_derivative_are_refused(block, z, error, words):
    with pytest.raises(error, match=words):
        jacobian(Loop(block, z0=z, check=False), z)


def test_the_failing_sample_is_named():
    z = torch.ones(3, 2, dtype=torch.float64)
    z[1] = 0
    with pytest.raises(NonFiniteError, match="for sample 1 "):
        jacobian(Loop(lambda z: z.abs().sqrt(), z0=z), z)


@pytest.mark.parametrize(
    ("z", "error", "words"),
    [
        ([1.0, 2.0], InputError, "list"),
        (torch.ones(2, 3, dtype=torch.int64), InputError, "int64"),
        (torch.ones(2, 3, dtype=torch.bfloat16), InputError, "half precision"),
        (torch.ones(2, 3, dtype=torch.complex128), InputError, "complex128"),
        (torch.ones(3, 3).double(), InputError, "B=2"),
        (torch.tensor(1.0), InputError, "B=2"),
        (torch.empty(2, 0), InputError, "B=2"),
        (torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.nan, 3.0]]), NonFiniteError, "for sample 1;"),
    ],
)
def test_bad_states_are_refused(z, error, words):
    loop = Loop(lambda z: 0.5 * z, z0=torch.zeros(2, 3))
    with pytest.raises(error, match=words):
        jacobian(loop, z)


@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, True])
def test_bad_chunk_sizes_are_refused(chunk_size):
    with pytest.raises(InputError, match="chunk_size"):
        jacobian(Loop(lambda z: 0.5 * z, z0=torch.zeros(2, 3)), torch.zeros(2, 3), chunk_size=chunk_size)


def test_a_request_beyond_memory_is_refused_before_any_work():
    calls = []

    def block(z):
        calls.append(1)
        return 0.5 * z

    z = torch.zeros(4, 40000)
    loop = Loop(block, z0=z, check=False)
    # 4 * 40000^2 * 4 bytes = 23.8 GiB; one sample needs 5.96 of the default 8.
    with pytest.raises(InputError, match=r"n=40000 need 23.8 GiB, .* allows 8 GiB; take at most 1 sample"):
        jacobian(loop, z)
    with pytest.raises(InputError, match="not even one sample fits"):
        jacobian(loop, z, max_bytes=2**30)
    assert not calls


@pytest.mark.parametrize("variant", FPRM_VARIANTS)
def test_rounding_estimate_covers_float32(variant):
    loop, z = small_fprm(variant, torch.float32)
    J = jacobian(loop, z)
    wide = Loop(loop.block.double(), loop.x.double())
    true = torch.linalg.matrix_norm(J.double() - jacobian(wide, z.double()))
    estimate = jacobian_rounding(Loop(loop.block.float(), loop.x), z, J)
    assert (true <= estimate).all()
    assert (estimate <= 50 * true).all()  # not vacuous; 1.1 to 20 over 432 cases when it was made


def test_rounding_estimate_sees_a_narrower_dtype_inside():
    loop, z = small_fprm("plain", norm_in_float32=True)
    honest, _ = small_fprm("plain")
    # Float32 rounds 5e8 times as coarsely as float64; the norms are a part of the block.
    inside = jacobian_rounding(loop, z, jacobian(loop, z))
    assert (inside > 1e5 * jacobian_rounding(honest, z, jacobian(honest, z))).all()
    true = torch.linalg.matrix_norm(jacobian(loop, z) - jacobian(honest, z))
    assert (true <= inside).all()


def test_rounding_estimate_without_forward_mode():
    z = randn(2, 3)
    loop = Loop(SineWithNumpyGradient.apply, z0=z)
    J = jacobian(loop, z)
    expected = 40 * torch.finfo(z.dtype).eps * torch.linalg.matrix_norm(J)  # the documented fall-back
    torch.testing.assert_close(jacobian_rounding(loop, z, J), expected)
