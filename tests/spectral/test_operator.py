"""Every operator against its dense matrix, and the Jacobian of every kind of block against torch's own."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.sparse.linalg as sla
import torch
from hypothesis import given
from problems import FPRM_VARIANTS, randn, small_fprm
from strategies import fprm_configs
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fpcheck.blocks import FPRMBlock, FPRMConfig, FPRMModel
from fpcheck.errors import BlockError, InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral.jacobian import jacobian
from fpcheck.spectral.operator import (
    AbstractOperator,
    JacobianOperator,
    MatrixOperator,
    Power,
    ScipyOperator,
    Shifted,
    SymmetricPart,
    Transposed,
    Weighted,
    forward_product,
    require_basis_memory,
)

B, N = 3, 6
A = randn(B, N, N, seed=1) / 2
EYE = torch.eye(N, dtype=torch.float64)
DIAGONAL = 0.5 + randn(B, N, seed=2).abs()
METRIC = EYE + 0.3 * randn(B, N, N, seed=3)  # condition numbers below 10
SCALE, SHIFT = torch.tensor([0.3, -2.0, 1.0]).double(), torch.tensor([0.7, 0.1, 0.0]).double()


def linear_loop(matrices: torch.Tensor) -> tuple[Loop, torch.Tensor]:
    z = torch.ones(matrices.shape[:2], dtype=matrices.dtype)
    return Loop(lambda z, A: (A @ z.unsqueeze(-1)).squeeze(-1), matrices, z0=z), z


def linear_jacobian(matrices: torch.Tensor) -> JacobianOperator:
    return JacobianOperator(*linear_loop(matrices))


# Name: operator of the matrices A, and what it must be, from a formula of its own.
OPERATORS = {
    "jacobian": (linear_jacobian, A),
    "matrix": (MatrixOperator, A),
    "scipy": (lambda A: ScipyOperator(list(A.numpy())), A),
    "transposed": (lambda A: Transposed(MatrixOperator(A)), A.mT),
    "symmetric part": (lambda A: SymmetricPart(linear_jacobian(A)), (A + A.mT) / 2),
    "shifted": (
        lambda A: Shifted(linear_jacobian(A), SCALE, SHIFT),
        SCALE.view(B, 1, 1) * A + SHIFT.view(B, 1, 1) * EYE,
    ),
    "damped": (lambda A: Shifted(MatrixOperator(A), 0.3, 0.7), 0.3 * A + 0.7 * EYE),
    "power": (lambda A: Power(linear_jacobian(A), 3), A @ A @ A),
    "weighted, one diagonal": (
        lambda A: Weighted(MatrixOperator(A), DIAGONAL[0]),
        DIAGONAL[0].view(1, N, 1) * A / DIAGONAL[0].view(1, 1, N),
    ),
    "weighted, diagonals": (
        lambda A: Weighted(MatrixOperator(A), DIAGONAL),
        DIAGONAL.unsqueeze(2) * A / DIAGONAL.unsqueeze(1),
    ),
    "weighted, matrices": (lambda A: Weighted(linear_jacobian(A), METRIC), METRIC @ A @ torch.linalg.inv(METRIC)),
    "transposed power of a weighted one": (
        lambda A: Transposed(Power(Weighted(MatrixOperator(A), METRIC), 2)),
        (METRIC @ A @ A @ torch.linalg.inv(METRIC)).mT,
    ),
}
DTYPES = [torch.float64, torch.float32]


@pytest.fixture(params=OPERATORS)
def case(request) -> tuple:
    return OPERATORS[request.param]


def near(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float64) -> None:
    # Sums of some six products of entries of size 1, up to four in a row, and condition numbers below 10.
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max()
    assert error <= 200 * torch.finfo(dtype).eps * max(1.0, expected.abs().max()), error


class TestConformance:
    """What every AbstractOperator owes."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_products(self, case, dtype):
        build, dense = case
        op: AbstractOperator = build(A.to(dtype))
        assert (op.batch_size, op.n) == (B, N)
        v, V = randn(B, N, seed=5), randn(B, N, 4, seed=6)
        for given_dtype in DTYPES:
            worst = max(dtype, given_dtype, key=lambda d: torch.finfo(d).eps)
            for product, matrix in ((op.matvec, dense), (op.rmatvec, dense.mT)):
                one, many = product(v.to(given_dtype)), product(V.to(given_dtype))
                assert one.dtype == many.dtype == given_dtype  # follows the vector, not the operator
                near(one, (matrix @ v.unsqueeze(-1)).squeeze(-1), worst)
                near(many, matrix @ V, worst)
                assert not one.requires_grad

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dense(self, case, dtype):
        build, dense = case
        op = build(A.to(dtype))
        J = op.dense()
        assert J.dtype == op.dtype
        near(J, dense, dtype)
        near(op.dense(chunk_size=4), dense, dtype)

    def test_strided_and_empty_vectors(self, case):
        build, dense = case
        op = build(A)
        V = randn(4, N, B, seed=6).permute(2, 1, 0)  # columns far apart in memory
        near(op.matvec(V), dense @ V)
        near(op.rmatvec(V.expand(B, N, 4)[:, :, ::2]), dense.mT @ V[:, :, ::2])
        assert op.matvec(V[:, :, :0]).shape == (B, N, 0)

    def test_select(self, case):
        build, dense = case
        index = torch.tensor([2, 0])
        some = build(A).select(index)
        assert some.batch_size == 2
        V = randn(2, N, 2, seed=7)
        near(some.matvec(V), dense[index] @ V)
        near(some.rmatvec(V), dense[index].mT @ V)
        near(some.select(torch.tensor([1])).matvec(V[:1]), dense[:1] @ V[:1])
        assert some.rounding().shape == (2,)

    def test_transpose(self, case):
        build, dense = case
        op = build(A)
        near(op.transpose().dense(), dense.mT)
        near(op.transpose().transpose().dense(), dense)

    def test_to_scipy(self, case):
        build, dense = case
        op = build(A.float() if build is linear_jacobian else A)
        dtype = op.dtype
        for i in range(B):
            one, M = op.to_scipy(i), dense[i]
            assert one.shape == (N, N)
            assert one.dtype == np.float64
            v, V = randn(N, seed=8), randn(N, 3, seed=9)
            for product, matrix in ((one, M), (one.H, M.T)):
                near(torch.from_numpy(product @ v.numpy()), matrix @ v, dtype)
                near(torch.from_numpy(product @ v[:, None].numpy()), matrix @ v[:, None], dtype)
                near(torch.from_numpy(product @ V.numpy()), matrix @ V, dtype)
            # A complex vector: the real and the imaginary part.
            turned = one @ (v.numpy() + 2j * V[:, 0].numpy())
            near(torch.from_numpy(turned.imag), 2 * M @ V[:, 0], dtype)

    def test_round_trip_through_scipy(self, case):
        build, dense = case
        op = build(A)
        near(ScipyOperator([op.to_scipy(i) for i in range(B)]).dense(), dense)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_rounding_is_an_estimate_for_each_sample(self, case, dtype):
        build, _ = case
        op = build(A.to(dtype))
        rounding = op.rounding()
        assert rounding.shape == (B,)
        assert rounding.dtype == torch.float64
        assert (rounding >= 0).all()
        near(op.select(torch.tensor([1])).rounding(), rounding[1:2])

    @pytest.mark.parametrize(
        ("V", "words"),
        [
            (torch.ones(B, N + 1).double(), r"shape \(3, 7\); expected \(3, 6\)"),
            (torch.ones(N).double(), r"shape \(6,\)"),
            (torch.ones(B, N, 1, 1).double(), r"\(3, 6, k\)"),
            (torch.ones(1, N).double(), r"shape \(1, 6\)"),  # would broadcast
            (torch.ones(B, N, dtype=torch.int64), "int64"),
            (torch.ones(B, N, dtype=torch.bfloat16), "bfloat16"),
            (torch.ones(B, N, dtype=torch.complex128), "complex128"),
            (np.ones((B, N)), "ndarray"),
        ],
    )
    def test_bad_vectors_are_refused(self, case, V, words):
        build, _ = case
        op = build(A)
        for product in (op.matvec, op.rmatvec):
            with pytest.raises(InputError, match=words):
                product(V)

    def test_dense_beyond_memory_is_refused(self, case):
        build, _ = case
        # 3 * 36 * 8 bytes = 864; one sample needs 288.
        with pytest.raises(InputError, match=r"3 dense .* n=6 need 8.05e-07 GiB.*take at most 1 sample\(s\)"):
            build(A).dense(max_bytes=300)


def test_matrices_may_come_singly():
    near(MatrixOperator(A[0]).dense(), A[:1])


def test_arpack_through_the_adapter_finds_the_eigenvalues():
    loop, z = small_fprm("plain")
    J = jacobian(loop, z)
    for i in range(2):
        expected = np.linalg.eigvals(J[i].numpy())
        expected = expected[np.argsort(-np.abs(expected))]
        found = sla.eigs(JacobianOperator(loop, z).to_scipy(i), k=3, v0=np.ones(32), return_eigenvectors=False)
        # ARPACK's default tolerance is eps; condition numbers of these eigenvalues are below 1e3.
        assert np.abs(np.sort(np.abs(found))[::-1] - np.abs(expected[:3])).max() < 1e-11


# The Jacobian of a loop


def one_sample_at_a_time(loop: Loop, z: torch.Tensor) -> torch.Tensor:
    """The Jacobians by torch's own routine, which knows nothing of batches."""
    n = z[0].numel()
    each = [torch.autograd.functional.jacobian(loop.sample(i), z[i : i + 1]) for i in range(len(z))]
    return torch.stack([J.reshape(n, n) for J in each])


def identity(op: AbstractOperator) -> torch.Tensor:
    return torch.eye(op.n, dtype=op.dtype, device=op.device).expand(op.batch_size, -1, -1)


@pytest.mark.parametrize("view", [lambda loop: loop, lambda loop: loop.damped(0.3).iterated(2)], ids=["plain", "view"])
@pytest.mark.parametrize("variant", FPRM_VARIANTS)
def test_fprm_agrees_with_torch(variant, view):
    loop, z = small_fprm(variant)
    loop = view(loop)
    op = JacobianOperator(loop, z)
    expected = one_sample_at_a_time(loop, z)
    # The same derivative in other orders of summation: some tens of roundings of entries of size 1.
    for J in (op.dense(), op.matvec(identity(op)), op.rmatvec(identity(op)).mT):
        torch.testing.assert_close(J, expected, rtol=1e-12, atol=1e-13)


@given(fprm_configs(), st.integers(0, 100))
def test_forward_and_backward_products_belong_to_one_matrix(config, seed):
    torch.manual_seed(seed)
    shape = (2, config.positions, config.hidden_size)
    op = JacobianOperator(Loop(FPRMBlock(config).double(), randn(*shape)), randn(*shape, seed=1))
    u, v = randn(2, op.n, seed=2), randn(2, op.n, seed=3)
    Jv, Ju = op.matvec(v), op.rmatvec(u)
    # Roundings of the products, at most 1e3 eps of their size, times the other vector's.
    slack = 1e3 * 2.0**-52 * (u.norm(dim=1) * Jv.norm(dim=1) + v.norm(dim=1) * Ju.norm(dim=1))
    assert (((u * Jv).sum(1) - (Ju * v).sum(1)).abs() <= slack).all()


@given(hnp.arrays(float, st.integers(1, 5).map(lambda n: (n, n)), elements=st.integers(-9, 9).map(float)))
def test_products_of_whole_numbers_are_exact(matrix):
    M = torch.tensor(matrix)
    z = torch.ones(2, len(M), dtype=torch.float64)
    op = JacobianOperator(Loop(lambda z: z @ M.T, z0=z), z)
    v = torch.arange(len(M), dtype=torch.float64).expand(2, -1)
    assert torch.equal(op.matvec(v), v @ M.T)
    assert torch.equal(op.rmatvec(v), v @ M)


def test_state_of_any_shape_is_flattened_row_by_row():
    z = randn(2, 2, 3)
    op = JacobianOperator(Loop(lambda z: z.roll(1, dims=1) * 2, z0=z), z)
    # Entry (r, c) of the image is twice entry (r - 1, c) of the state: rows swap, three places apart.
    assert torch.equal(op.matvec(torch.arange(6.0).expand(2, -1)), 2 * torch.tensor([3.0, 4, 5, 0, 1, 2]).expand(2, -1))


def test_samples_are_independent_of_their_batch():
    loop, z = small_fprm("causal, conv1d")
    both = JacobianOperator(loop, z)
    for i in range(2):
        alone = JacobianOperator(loop.sample(i), z[i : i + 1])
        v = randn(1, both.n, 2, seed=4)
        # Batched products of other sizes sum in another order.
        for product in ("matvec", "rmatvec"):
            together = getattr(both, product)(v.expand(2, -1, -1))[i]
            torch.testing.assert_close(getattr(alone, product)(v)[0], together, rtol=0, atol=1e-14)
        torch.testing.assert_close(both.rounding()[i : i + 1], alone.rounding(), rtol=0.5, atol=0)


def test_nothing_is_left_behind_and_the_state_is_its_own():
    loop, z = small_fprm("plain")
    expected = jacobian(loop, z)
    z.requires_grad_()
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            start = z.detach().clone()
            op = JacobianOperator(loop, start)
            start.zero_()  # the caller goes on with its buffer
            V = identity(op).clone().requires_grad_() if context is torch.enable_grad else identity(op).clone()
            for J in (op.matvec(V), op.rmatvec(V).mT, op.select(torch.tensor([0, 1])).matvec(V)):
                assert not J.requires_grad
                torch.testing.assert_close(J, expected, rtol=1e-12, atol=1e-13)
            assert (op.rounding() < 1e-12).all()
    assert z.grad is None
    assert all(p.grad is None for p in loop.block.parameters())
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()


class Sine(torch.autograd.Function):
    """A custom gradient made of numpy: it cannot be batched, nor differentiated again; no forward derivative."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        ctx.save_for_forward(a)
        return a.sin()

    @staticmethod
    def backward(ctx, gradient):
        (a,) = ctx.saved_tensors
        return torch.from_numpy(gradient.detach().numpy() * a.cos().detach().numpy())


class SineForward(Sine):
    """The same with a forward derivative."""

    @staticmethod
    def jvp(ctx, tangent):
        (a,) = ctx.saved_tensors
        return tangent * a.cos()


class SineOnce(SineForward):
    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (a,) = ctx.saved_tensors
        return gradient * a.cos()


class SineTwice(SineForward):
    """A backward pass of torch operations: differentiable, so the forward derivative is not needed."""

    @staticmethod
    def backward(ctx, gradient):
        (a,) = ctx.saved_tensors
        return gradient * a.cos()


class SineWrongForward(SineTwice):
    @staticmethod
    def jvp(ctx, tangent):
        (a,) = ctx.saved_tensors
        return -tangent * a.cos()


class SineWrongBackward(SineForward):
    @staticmethod
    def backward(ctx, gradient):
        (a,) = ctx.saved_tensors
        return torch.from_numpy(1.5 * gradient.detach().numpy() * a.cos().detach().numpy())


class SineWrongBoth(SineTwice):
    @staticmethod
    def backward(ctx, gradient):
        (a,) = ctx.saved_tensors
        return gradient * 0.9 * a.cos()

    @staticmethod
    def jvp(ctx, tangent):
        (a,) = ctx.saved_tensors
        return tangent * 0.9 * a.cos()


class SineForwardOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        ctx.save_for_forward(a)
        return a.sin()

    @staticmethod
    def jvp(ctx, tangent):
        (a,) = ctx.saved_tensors
        return tangent * a.cos()


def module(build, **options):
    torch.manual_seed(1)
    return build(**options).double().eval()


ENCODER = module(nn.TransformerEncoderLayer, d_model=4, nhead=2, dim_feedforward=8, dropout=0.0, batch_first=True)
FROZEN = module(
    nn.TransformerEncoderLayer, d_model=4, nhead=2, dim_feedforward=8, dropout=0.0, batch_first=True
).requires_grad_(False)
ATTENTION = module(nn.MultiheadAttention, embed_dim=4, num_heads=2, batch_first=True)
GRU = module(nn.GRU, input_size=4, hidden_size=4, batch_first=True)
FOREIGN = {
    "fused attention": lambda z: F.scaled_dot_product_attention(z, z, z),
    "fused causal attention": lambda z: F.scaled_dot_product_attention(z, z, z, is_causal=True),
    "multi-head attention": lambda z: ATTENTION(z, z, z)[0],
    "multi-head attention without weights": lambda z: ATTENTION(z, z, z, need_weights=False)[0],
    "encoder layer": ENCODER,
    "frozen encoder layer": FROZEN,
    "recurrent network": lambda z: GRU(z)[0],
    "gradient step": lambda z: z - 0.1 * torch.func.grad(lambda y: (y.sin().square()).sum() + (y @ y.mT).sum())(z),
    "forward derivative inside": lambda z: torch.func.jvp(lambda y: y.sin() * y, (z,), (torch.ones_like(z),))[1],
    "in place, not on its input": lambda z: z.mul(1.0).mul_(0.5),
    "relu": torch.relu,
    "constant": torch.ones_like,
    "rounding": lambda z: torch.round(z) * 0.5,
    "forward mode alone": SineForward.apply,
    "forward mode for a part": lambda z: z / 2 + SineForward.apply(z),
    "once differentiable": SineOnce.apply,
    "twice differentiable": SineTwice.apply,
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_blocks(name):
    z = randn(2, 3, 4)
    loop = Loop(FOREIGN[name], z0=z)
    op = JacobianOperator(loop, z)
    with torch.no_grad():
        h = 1e-6
        steps = h * torch.eye(12, dtype=torch.float64).view(12, 1, 3, 4)
        quotients = torch.stack([(loop(z + e) - loop(z - e)).flatten(1) / (2 * h) for e in steps], dim=2)
    # Differences at h = 1e-6: rounding eps / h = 2e-10, truncation less, times derivatives of some units.
    for J in (op.matvec(identity(op)), op.rmatvec(identity(op)).mT):
        torch.testing.assert_close(J, quotients, rtol=0, atol=1e-7)
    for i, column in enumerate(identity(op)[0]):  # one vector at a time takes another path
        torch.testing.assert_close(op.matvec(column.expand(2, -1)), quotients[:, :, i], rtol=0, atol=1e-7)
    size = torch.linalg.matrix_norm(quotients)
    # Float64 throughout: a few roundings, where forward mode exists or not.
    assert (op.rounding() <= 1e-13 * size).all()
    assert ((op.rounding() >= 1e-16 * size) | (size == 0)).all()


@pytest.mark.parametrize("name", ["frozen encoder layer", "multi-head attention without weights", "fused attention"])
def test_attention_has_its_forward_derivative_too(name):
    # Rounding is measured by it; fused kernels and the fast path of torch.nn lack it.
    z, v = randn(2, 3, 4), randn(2, 12, seed=1)
    loop = Loop(FOREIGN[name], z0=z)
    expected = JacobianOperator(loop, z).matvec(v)
    torch.testing.assert_close(forward_product(loop, z, v), expected, rtol=1e-11, atol=1e-13)


@torch.no_grad()
def without_graph(z):
    return torch.tanh(z)


def clipped(z):
    out = torch.tanh(z)
    if out.requires_grad:
        out.register_hook(lambda gradient: gradient.clamp(-0.5, 0.5))
    return out


@pytest.mark.parametrize(
    ("block", "z", "error", "words"),
    [
        (lambda z: z.mul_(0.5), randn(2, 3), BlockError, "in-place"),
        (without_graph, randn(2, 3), BlockError, "not that of its values"),
        (lambda z: 0.5 * z + 0.3 * torch.tanh(z.detach()), randn(2, 3), BlockError, "detach"),
        (lambda z: torch.relu(z) * 0.5, torch.zeros(2, 3).double(), BlockError, "kink"),
        (lambda z: z.abs().sqrt(), torch.zeros(2, 3).double(), NonFiniteError, "square root"),
        (lambda z: 1 / z, torch.zeros(2, 3).double(), NonFiniteError, r"F\(z\) holds NaN or inf for 2 samples"),
        (Sine.apply, randn(2, 3), BlockError, "products J v need a derivative that the block lacks.*jvp method"),
        (lambda z: z / 2 + Sine.apply(z), randn(2, 3), BlockError, "nor has it a forward derivative"),
        (SineForwardOnly.apply, randn(2, 3), BlockError, "backward pass failed.*needs a backward method"),
        (SineWrongForward.apply, randn(2, 3), BlockError, "two matrices for 2 samples.*jvp and backward disagree"),
        (SineWrongBackward.apply, randn(2, 3), BlockError, "two matrices for 2 samples"),
        (SineWrongBoth.apply, randn(2, 3), BlockError, "not that of its values for 2 samples"),
        (clipped, randn(2, 3), BlockError, "clipping"),
    ],
)
def test_blocks_without_the_right_derivative_are_refused(block, z, error, words):
    with pytest.raises(error, match=words):
        JacobianOperator(Loop(block, z0=z, check=False), z)


def test_the_failing_sample_is_named():
    z = torch.ones(3, 2, dtype=torch.float64)
    z[1] = 0
    with pytest.raises(NonFiniteError, match="for sample 1 "):
        JacobianOperator(Loop(lambda z: z.abs().sqrt(), z0=z), z)


def test_a_dense_jacobian_needs_the_backward_pass_alone():
    z = randn(2, 3)
    op = JacobianOperator(Loop(Sine.apply, z0=z), z, check=False)
    torch.testing.assert_close(op.dense(), torch.diag_embed(z.cos()), rtol=0, atol=1e-15)
    with pytest.raises(BlockError, match="products J v need"):
        op.matvec(z)


def test_selections_remember_how_to_multiply():
    z = randn(3, 4)
    op = JacobianOperator(Loop(lambda z: z / 2 + SineForward.apply(z), z0=z), z)
    # The second walk back would see z / 2 alone; the whole operator has found that out, its selection must not forget.
    v = randn(1, 4, seed=1)
    torch.testing.assert_close(op.select(torch.tensor([1])).matvec(v), (0.5 + z[1:2].cos()) * v, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("z", "error", "words"),
    [
        ([1.0, 2.0], InputError, "list"),
        (torch.ones(2, 3, dtype=torch.int64), InputError, "int64"),
        (torch.ones(2, 3, dtype=torch.bfloat16), InputError, "half precision"),
        (torch.ones(3, 3).double(), InputError, "B=2"),
        (torch.tensor([[1.0, 2.0, 3.0], [1.0, torch.nan, 3.0]]), NonFiniteError, "for sample 1;"),
        (torch.full((2, 3), torch.inf), NonFiniteError, "2 samples"),
    ],
)
def test_bad_states_are_refused(z, error, words):
    with pytest.raises(error, match=words):
        JacobianOperator(Loop(lambda z: 0.5 * z, z0=torch.zeros(2, 3)), z)


MATRIX = MatrixOperator(A)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: MatrixOperator(torch.ones(2, 3)), InputError, r"A.shape=\(1, 2, 3\)"),
        (lambda: MatrixOperator(torch.ones(0, 0)), InputError, "expected"),
        (lambda: MatrixOperator(torch.eye(2, dtype=torch.float16)), InputError, "float16"),
        (lambda: MatrixOperator(np.eye(2)), InputError, "ndarray"),
        (lambda: MatrixOperator(torch.full((2, 2), torch.nan)), NonFiniteError, "NaN"),
        (lambda: ScipyOperator([]), InputError, "at least one"),
        (lambda: ScipyOperator([np.eye(2), np.eye(3)]), InputError, "one shape"),
        (lambda: ScipyOperator([np.ones((2, 3))]), InputError, "one shape"),
        (lambda: ScipyOperator([1j * np.eye(2)]), InputError, "complex128"),
        (lambda: Shifted(MATRIX, torch.ones(2), 0.0), InputError, "a=tensor"),
        (lambda: Shifted(MATRIX, 1.0, torch.nan), InputError, "b=nan"),
        (lambda: Power(MATRIX, 0), InputError, "k=0"),
        (lambda: Power(MATRIX, 2.0), InputError, "k=2.0"),
        (lambda: Weighted(MATRIX, torch.ones(N + 1)), InputError, r"float32 \(7,\); expected"),
        (lambda: Weighted(MATRIX, torch.ones(N, dtype=torch.int64)), InputError, "int64"),
        (lambda: Weighted(MATRIX, [1.0] * N), InputError, "list"),
        (lambda: Weighted(MATRIX, torch.zeros(N).double()), InputError, "singular"),
        (lambda: Weighted(MATRIX, torch.tensor([1.0] * 5 + [5e-324]).double()), InputError, "singular"),  # 1/L = inf
        (lambda: Weighted(MATRIX, torch.ones(B, N, N).double()), InputError, "singular"),
        # Singular but for a rounding in its elimination: rows 1, 2 and their sum.
        (lambda: Weighted(MATRIX, torch.cat([METRIC[:, :5], METRIC[:, :5].sum(1, True)], 1)), InputError, "singular"),
        (lambda: Weighted(MATRIX, torch.full((N,), torch.inf)), InputError, "inf"),
        (lambda: MATRIX.to_scipy(3), InputError, "i=3"),
        (lambda: MATRIX.dense(chunk_size=0), InputError, "chunk_size=0"),
        (lambda: MATRIX.dense(chunk_size=True), InputError, "chunk_size=True"),
        (
            lambda: ScipyOperator([sla.LinearOperator((2, 2), matvec=lambda v: v)]).rmatvec(torch.ones(1, 2)),
            InputError,
            "lacks this product",
        ),
    ],
)
def test_bad_arguments_are_refused(build, error, words):
    with pytest.raises(error, match=words):
        build()


def test_a_basis_beyond_memory_is_refused():
    op = MatrixOperator(torch.zeros(4, 100, 100))
    # 4 samples * 50 vectors * 100 entries * 8 bytes = 160,000; 25 vectors fit, or 2 samples.
    require_basis_memory(op, 50, max_bytes=160_000)
    with pytest.raises(
        InputError,
        match=r"50 basis vectors for each of 4 .* n=100 need 0.000149 GiB.*at most 25 vectors or at most 2 sam",
    ):
        require_basis_memory(op, 50, max_bytes=80_000)
    with pytest.raises(InputError, match=r"take a larger max_bytes"):
        require_basis_memory(op, 50, max_bytes=100)
    with pytest.raises(InputError, match=r"allows 8 GiB"):
        require_basis_memory(op, 10**7)


# Rounding


@pytest.mark.parametrize("variant", FPRM_VARIANTS)
@pytest.mark.parametrize("at_zero", [False, True])
def test_rounding_covers_float32(variant, at_zero):
    loop, z = small_fprm(variant, torch.float32)
    z = torch.zeros_like(z) if at_zero else z
    op = JacobianOperator(loop, z)
    wide = Loop(loop.block.double(), loop.x.double())
    exact = jacobian(wide, z.double())
    loop.block.float()
    for J in (op.dense(), op.matvec(identity(op))):
        true = torch.linalg.matrix_norm(J.double() - exact)
        assert (true <= op.rounding()).all()
        assert (op.rounding() <= 50 * true).all()  # not vacuous; 1.6 to 21 in 99 % of 1,536 cases when it was made


@pytest.mark.parametrize("inside", ["norms", "block"])
def test_rounding_sees_a_narrower_dtype_inside(inside):
    loop, z = small_fprm("plain")
    exact = jacobian(loop, z)
    if inside == "norms":
        narrow, _ = small_fprm("plain", norm_in_float32=True)
    else:
        block = small_fprm("plain", torch.float32)[0].block
        narrow = Loop(lambda z, x: block(z.float(), x.float()).double(), loop.x)
    op = JacobianOperator(narrow, z)
    true = torch.linalg.matrix_norm(op.dense() - exact)
    assert (true > 1e5 * JacobianOperator(loop, z).rounding()).all()  # float32 is 5e8 times as coarse as float64
    assert (true <= op.rounding()).all()
    assert (op.rounding() <= 50 * true).all()


def deep_fprm(variant: str, dtype: torch.dtype, **more) -> tuple[Loop, torch.Tensor]:
    """Six layers of the weights of seed 3: among the hardest cases of 1,536 for an estimate of rounding."""
    torch.manual_seed(3)
    settings = {"vocab_size": 5, "seq_len": 4, "hidden_size": 8, "num_heads": 2, "mlp_multiple": 8, "L_layers": 3}
    model = FPRMModel(FPRMConfig(**settings | FPRM_VARIANTS[variant] | more)).eval()
    puzzles = torch.tensor([0, 1]) if model.config.puzzle_emb_ndim else None
    x = model.injection(torch.tensor([[1, 2, 3, 4], [4, 2, 2, 1]]), puzzles).detach()
    z = model.initial_state(x)
    with torch.no_grad():
        for _ in range(5):
            z = model.block(z, x)
    return Loop(model.to(dtype).block, x.to(dtype)), z.to(dtype)


@pytest.mark.parametrize("case", ["no injection", "state of zeros", "narrow norms"])
def test_hard_cases_need_another_state_or_injection(case):
    variant = "conv2d, puzzle token" if case == "no injection" else "cold softmax, learned positions"
    wide, z = deep_fprm(variant, torch.float64)
    if case == "narrow norms":
        # Forward values rounded to float32 are the same for states a float64 rounding apart.
        loop, z = deep_fprm(variant, torch.float64, norm_in_float32=True)[0], torch.zeros_like(z)
    else:
        loop, z = deep_fprm(variant, torch.float32)[0], z.float()
    if case == "state of zeros":
        z = torch.zeros_like(z)  # a rounding away lies the same state
    if case == "no injection":
        x, z, wide = loop.x[:1], z[:1], wide.sample(0)
        loop = Loop(lambda z, block=loop.block: block(z, x), z0=z)
    true = torch.linalg.matrix_norm(jacobian(loop, z).double() - jacobian(wide, z.double()))
    assert (true <= JacobianOperator(loop, z).rounding()).all()


def test_rounding_without_forward_mode():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            ctx.save_for_backward(a)
            return a.sin()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0].cos()

    z = randn(2, 3)
    op = JacobianOperator(Loop(Twice.apply, z0=z), z)
    # 40 eps |J|_F, the norm estimated from four vectors: within a factor of two.
    expected = 40 * 2.0**-52 * z.cos().norm(dim=1)
    assert (expected / 2 < op.rounding()).all()
    assert (op.rounding() < 2 * expected).all()


def test_rounding_of_views():
    one = linear_jacobian(A.float()).rounding()
    torch.testing.assert_close(Shifted(linear_jacobian(A.float()), SCALE, SHIFT).rounding(), SCALE.abs() * one)
    torch.testing.assert_close(SymmetricPart(linear_jacobian(A.float())).rounding(), one)
    torch.testing.assert_close(Weighted(linear_jacobian(A.float()), METRIC).rounding(), torch.linalg.cond(METRIC) * one)
    torch.testing.assert_close(
        Weighted(linear_jacobian(A.float()), DIAGONAL).rounding(), DIAGONAL.amax(1) / DIAGONAL.amin(1) * one
    )


def test_rounding_of_a_power_covers_float32():
    loop, z = small_fprm("plain", torch.float32)
    op = Power(JacobianOperator(loop, z), 3)
    exact = torch.linalg.matrix_power(jacobian(Loop(loop.block.double(), loop.x.double()), z.double()), 3)
    loop.block.float()
    true = torch.linalg.matrix_norm(op.dense().double() - exact, 2)
    assert (true <= op.rounding()).all()
    # Frobenius norms exceed 2-norms by up to 32^(1/2) each, on top of the factor of a single step.
    assert (op.rounding() <= 50 * 32 * true).all()


def test_rounding_of_a_power_grows_with_the_matrix():
    large = 30 * A.float()
    op = Power(linear_jacobian(large), 4)
    true = torch.linalg.matrix_norm(op.dense().double() - torch.linalg.matrix_power(large.double(), 4), 2)
    assert (true <= op.rounding()).all()
    assert (true > 100 * op.base.rounding()).all()  # that of a single step is not enough
    # Frobenius norms exceed 2-norms by at most 6^(1/2) each, and an error of one step is 4 of its roundings here.
    assert (op.rounding() <= 1e3 * true).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_agrees_with_the_cpu(dtype):
    loop, z = small_fprm("causal, conv1d", dtype)
    expected = JacobianOperator(loop, z)
    far = JacobianOperator(Loop(loop.block.cuda(), loop.x.cuda()), z.cuda())
    v = randn(2, far.n, 3, seed=1).cuda()
    slack = expected.rounding() + far.rounding().cpu()
    for J in (far.dense(), far.matvec(identity(far))):
        assert J.is_cuda
        assert (torch.linalg.matrix_norm(J.cpu().double() - expected.dense().double()) <= slack).all()
    assert far.matvec(v).dtype == torch.float64
    assert far.to_scipy(1).matvec(np.ones(far.n)).shape == (far.n,)
    with pytest.raises(InputError, match=r"vectors on cpu; expected cuda"):
        far.matvec(v.cpu())
