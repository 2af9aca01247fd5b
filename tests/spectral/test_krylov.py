"""Eigenvalues by products: the values, their errors, and above all what is flagged as converged."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from matrices import KINDS
from problems import grcar, jordan, orthogonal, randn, rotation, small_fprm
from torch import Tensor

from fpcheck.blocks import FPRMConfig, FPRMModel
from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral import krylov
from fpcheck.spectral.arpack import Arpack
from fpcheck.spectral.damping import critical_step
from fpcheck.spectral.eigenpairs import eigenvalues, spectral_radius
from fpcheck.spectral.krylov import DenseEigensolver, KrylovSchur, residual_of
from fpcheck.spectral.operator import AbstractOperator, JacobianOperator, MatrixOperator
from fpcheck.spectral.orders import AnyOf, LargestDamped, LargestModulus, LargestReal, SmallestCriticalStep
from fpcheck.target import Data, find_target

RTOL = 1e-6

# By products alone: nothing is assembled.
PURE = KrylovSchur(dense_size=0, fallback_size=0)


class Recorded(AbstractOperator):
    """Matrices that count the vectors they are given; the transpose may be that of others, or NaN."""

    def __init__(self, A: Tensor, transposed_of: Tensor | None = None, log: dict | None = None) -> None:
        self.A = A
        self.B = A if transposed_of is None else transposed_of
        self.log = {"matvec": 0, "rmatvec": 0, "calls": 0, "select": []} if log is None else log

    batch_size = property(lambda self: len(self.A))
    n = property(lambda self: self.A.shape[1])
    dtype = property(lambda self: self.A.dtype)
    device = property(lambda self: self.A.device)

    def matvec(self, V: Tensor) -> Tensor:
        return self._product(self.A, V, "matvec")

    def rmatvec(self, U: Tensor) -> Tensor:
        return self._product(self.B.mT, U, "rmatvec")

    def _product(self, A: Tensor, V: Tensor, name: str) -> Tensor:
        self.log[name] += V.numel() // self.n
        self.log["calls"] += 1
        return A @ V if V.ndim == 3 else (A @ V.unsqueeze(-1)).squeeze(-1)

    def select(self, index: Tensor) -> AbstractOperator:
        self.log["select"].append(len(index))
        return Recorded(self.A[index], self.B[index], self.log)

    def rounding(self) -> Tensor:
        return torch.zeros(len(self.A), dtype=torch.float64)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def beside(A: Tensor, n: int, radius: float = 0.5, seed: int = 0) -> Tensor:
    """A and a random matrix of about that spectral radius, turned so that no coordinate shows them."""
    m = n - len(A)
    Q = orthogonal(n, seed)
    return Q @ torch.block_diag(A, radius * randn(m, m, seed=seed + 1) / (1.2 * m**0.5)) @ Q.T


def tridiagonal(n: int, a: float, b: float, c: float) -> Tensor:
    ones = torch.ones(n - 1, dtype=torch.float64)
    return a * torch.eye(n, dtype=torch.float64) + torch.diag(b * ones, 1) + torch.diag(c * ones, -1)


def circulant(row: Tensor) -> Tensor:
    return torch.stack([row.roll(i) for i in range(len(row))])


def block_triangular(n: int, coupling: float) -> Tensor:
    """Eigenvalue 1.1 in a corner; the rest has about 0.9 and reaches the corner, or is reached, by the coupling."""
    A = 0.75 * randn(n, n, seed=5) / n**0.5
    A[:, 0] = 0.0
    A[0] = coupling * randn(n, seed=6)
    A[0, 0] = 1.1
    return A


ROW = randn(90, seed=2) / 9
LOW = randn(120, 7, seed=3), randn(7, 120, seed=4) / 120

# Matrices with a spectral radius in closed form.
CLOSED = {
    # Angle 80 degrees, where a power method reads 1.2 cos(80 degrees) = 0.21.
    "rotation": (beside(1.2 * rotation(80), 100), 1.2),
    "rotations, many": (torch.kron(1.2 * rotation(80), torch.eye(50, dtype=torch.float64)), 1.2),
    # a + 2 sqrt(bc) cos(j pi / (n + 1)), largest at j = 1.
    "symmetric Toeplitz": (tridiagonal(80, 0.1, 0.4, 0.4), 0.1 + 0.8 * math.cos(math.pi / 81)),
    # Eigenvectors graded by (b/c)^(j/2): condition of the order of 1.05^80 = 50.
    "Toeplitz": (tridiagonal(80, 0.1, 0.42, 0.4), 0.1 + 2 * math.sqrt(0.42 * 0.4) * math.cos(math.pi / 81)),
    # Imaginary: bc < 0.
    "skew Toeplitz": (
        tridiagonal(70, 0.3, 0.5, -0.5), math.hypot(0.3, 2 * 0.5 * math.cos(math.pi / 71))
    ),
    "circulant": (circulant(ROW), float(torch.fft.fft(ROW).abs().max())),
    # Those of V'U, small: the rest is zero and every Krylov space ends early.
    "low rank": (LOW[0] @ LOW[1], float(torch.linalg.eigvals(LOW[1] @ LOW[0]).abs().max())),
    "multiple of the identity": (0.5 * torch.eye(70, dtype=torch.float64), 0.5),
    "hidden block, coupled": (block_triangular(90, 100.0), 1.1),
    "hidden block, on its own": (block_triangular(90, 0.0), 1.1),
    "hidden block, transposed": (block_triangular(90, 1.0).T.contiguous(), 1.1),
    "1, -1 and a pair": (
        beside(torch.block_diag(torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)), rotation(50)), 90), 1.0
    ),
    "positive, rows that sum to 1": (torch.softmax(randn(100, 100, seed=7), 1), 1.0),
    "huge": (1e60 * beside(1.2 * rotation(80), 80), 1.2e60),
    "tiny": (1e-60 * beside(1.2 * rotation(80), 80), 1.2e-60),
}  # fmt: skip


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name: str):
    A, rho = CLOSED[name]
    found = eigenvalues(MatrixOperator(A), method=PURE)
    assert found.method.startswith("Krylov-Schur")
    assert bool(found.converged)
    gap = abs(float(found.values[0, 0].abs()) - rho)
    # The estimate covers the true error, and is small: these are conditioned below 1e4.
    assert gap <= float(found.error[0, 0]) <= RTOL * rho
    assert float(found.residual[0, 0]) <= 1e-9 * rho


@pytest.mark.parametrize("name", ["rotation", "low rank", "Toeplitz", "multiple of the identity", "tiny"])
def test_dense_closed_forms(name: str):
    A, rho = CLOSED[name]
    found = eigenvalues(MatrixOperator(A), method=DenseEigensolver())
    assert found.method == f"dense matrices and LAPACK (n={len(A)})"
    assert bool(found.converged)
    assert abs(float(found.values[0, 0].abs()) - rho) <= float(found.error[0, 0]) <= RTOL * rho


def test_a_rotation_has_its_angle_and_its_condition():
    lam = eigenvalues(MatrixOperator(beside(1.2 * rotation(80), 100)), method=PURE)
    # The upper member of the pair first; a block of its own in an orthogonal basis has condition 1.
    for value, sign in zip(lam.values[0, :2].tolist(), (1, -1), strict=True):
        assert math.degrees(math.atan2(value.imag, value.real)) == pytest.approx(sign * 80, abs=1e-9)
    assert lam.condition[0, :2].tolist() == pytest.approx([1, 1], abs=1e-6)


def test_vectors_residuals_and_conditions_are_what_they_say():
    A = torch.stack([randn(90, 90, seed=s) / 90**0.5 for s in (0, 1, 2)])
    found = eigenvalues(MatrixOperator(A), 6, method=PURE)
    C, x, lam = A.to(torch.complex128), found.vectors, found.values.unsqueeze(1)
    assert torch.allclose(torch.linalg.vector_norm(x, dim=1), torch.ones_like(found.residual), atol=1e-12)
    # Both sides of 6 products with 90 terms: rounding below 1e-13.
    assert torch.allclose(torch.linalg.vector_norm(C @ x - lam * x, dim=1), found.residual, atol=1e-13)
    y = found.left
    assert float((y.mH @ C - found.values.unsqueeze(2) * y.mH).abs().max()) < 1e-9
    assert torch.allclose(1 / (y.conj() * x).sum(1).abs(), found.condition, rtol=1e-9)
    # The same from LAPACK's whole decomposition; vectors are good to residual times condition over gap, about 1e-7.
    values, X = torch.linalg.eig(A)
    whole = torch.linalg.vector_norm(X, dim=1) * torch.linalg.vector_norm(torch.linalg.inv(X), dim=2)
    for b in range(3):
        nearest = (values[b].unsqueeze(0) - found.values[b].unsqueeze(1)).abs()
        assert (nearest.amin(1) <= found.error[b]).all()
        assert torch.allclose(found.condition[b], whole[b][nearest.argmin(1)], rtol=1e-5)


def test_all_leading_values_in_order_and_pairs_whole():
    # Moduli 1.2 (pair), 1.1, 1.0 (pair), 0.9 (pair): three values end inside nothing, four inside a pair.
    A = torch.block_diag(
        1.2 * rotation(40), torch.tensor([[-1.1]], dtype=torch.float64), rotation(90), 0.9 * rotation(10)
    )
    B = torch.block_diag(
        torch.diag(torch.tensor([1.3, 1.2, 1.1, 1.0], dtype=torch.float64)), 0.9 * rotation(60), torch.zeros(1, 1)
    )
    op = MatrixOperator(torch.stack([beside(A, 80), beside(B.double(), 80, seed=3)]))
    three = eigenvalues(op, 3, method=PURE)
    assert three.values.shape == (2, 3)
    assert torch.allclose(three.values[0].abs(), torch.tensor([1.2, 1.2, 1.1]).double(), atol=1e-9)
    four = eigenvalues(op, 4, method=PURE)
    assert four.count.tolist() == [5, 4]
    assert torch.allclose(four.values[0].abs(), torch.tensor([1.2, 1.2, 1.1, 1.0, 1.0]).double(), atol=1e-9)
    assert four.values[0, 3] == four.values[0, 4].conj()
    # The other sample has no fifth: its last one stands there again, and changes no largest or smallest.
    assert torch.equal(four.values[1, 4], four.values[1, 3])
    assert torch.equal(four.vectors[1, :, 4], four.vectors[1, :, 3])
    assert four.values[1].real.tolist() == pytest.approx([1.3, 1.2, 1.1, 1.0, 1.0], abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 40, 64])
def test_small_matrices_are_assembled(n: int):
    A = randn(2, n, n, seed=n)
    found = eigenvalues(MatrixOperator(A))
    assert "LAPACK" in found.method
    assert found.values.shape[1] in (min(4, n), min(4, n) + 1)
    exact = torch.linalg.eigvals(A).abs().amax(1)
    assert bool(found.converged.all())
    assert ((found.values[:, 0].abs() - exact).abs() <= found.error[:, 0]).all()


class TestWhatIsDeterminedBadly:
    """Residuals are tiny in every case here; errors are not, and the report must say so."""

    def test_twofold_defective(self):
        # A perturbation of eps splits 0.9 by sqrt(eps) = 1.5e-8: accurate to 1e-6, and reported as such.
        found = eigenvalues(MatrixOperator(beside(jordan(0.9, 2), 90)), method=PURE)
        gap = abs(float(found.values[0, 0].abs()) - 0.9)
        assert bool(found.converged)
        assert gap <= float(found.error[0, 0]) <= 1e-6
        # Of ten roundings at least: an error of first order at 0.9 would be infinite, of one member of the pair 1e-14.
        assert float(found.error[0, 0]) > 3e-8

    @pytest.mark.parametrize("size", [3, 4, 5])
    def test_more_than_twofold(self, size: int):
        # eps^(1/3) = 6e-6 is more than 1e-6.
        found = eigenvalues(MatrixOperator(beside(jordan(0.9, size), 90)), 6, method=PURE)
        assert not bool(found.converged)
        assert float(found.residual[0, 0]) < 1e-9
        assert abs(float(found.values[0, 0].abs()) - 0.9) <= float(found.error[0, 0]) < 0.05

    def test_a_defective_pair(self):
        R = 0.9 * rotation(50)
        J = torch.block_diag(R, R)
        J[:2, 2:] = torch.eye(2, dtype=torch.float64)
        found = eigenvalues(MatrixOperator(beside(J, 90)), method=PURE)
        assert abs(float(found.values[0, 0].abs()) - 0.9) <= float(found.error[0, 0]) <= 1e-6

    def test_badly_conditioned_but_simple(self):
        # Eigenvectors of condition 1e5 between 1 and 0.5 only; LAPACK is no better than the estimate.
        A = torch.block_diag(
            torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64)), 0.3 * randn(88, 88) / 88**0.5 / 1.2
        )
        A[0, 1] = 5e4
        Q = orthogonal(90)
        found = eigenvalues(MatrixOperator(Q @ A @ Q.T), method=PURE)
        # 1 / |y' x| of [[1, c], [0, 0.5]]: hypot(1, 2 c).
        assert float(found.condition[0, 0]) == pytest.approx(1e5, rel=1e-6)
        assert abs(float(found.values[0, 0].abs()) - 1) <= float(found.error[0, 0])
        # Forty roundings of |J| = 5e4, times the condition 1e5: 40 x 2.2e-16 x 5e9 = 4e-5.
        assert 1e-6 < float(found.error[0, 0]) < 1e-3
        assert not bool(found.converged)

    def test_residuals_are_refined_where_that_helps(self):
        # Condition 5e3: residuals of 1e-10 would mean 2e-6 with the safety factor, those at rounding level mean 1e-11.
        A, rho = tridiagonal(115, 0.2, 1.13, 0.87), 0.2 + 2 * math.sqrt(1.13 * 0.87) * math.cos(math.pi / 116)
        found = eigenvalues(MatrixOperator(A), method=PURE)
        assert float(found.condition[0, 0]) > 1e3
        assert abs(float(found.values[0, 0].abs()) - rho) <= float(found.error[0, 0]) <= RTOL * rho
        assert bool(found.converged)

    @pytest.mark.parametrize("assemble", [0, 512])
    @pytest.mark.parametrize("size", [1, 40])
    def test_nilpotent_matrices_have_no_modulus_to_claim(self, size: int, assemble: int):
        # Ones on one diagonal above: the eigenvalue is 0; vectors z^j are eigenvectors of z up to z^(n / size).
        A = torch.diag(torch.ones(80 - size, dtype=torch.float64), size)
        found = eigenvalues(MatrixOperator(orthogonal(80) @ A @ orthogonal(80).T),
                            method=KrylovSchur(max_restarts=30, fallback_size=assemble))  # fmt: skip
        assert not bool(found.converged)
        assert float(found.error[0, 0]) >= float(found.values[0, 0].abs())

    def test_zero(self):
        # J v = 0 for every random v: nothing is wrong with saying 0.
        found = eigenvalues(MatrixOperator(torch.zeros(70, 70, dtype=torch.float64)), method=PURE)
        assert float(found.values[0, 0].abs()) == 0
        assert float(found.error[0, 0]) == 0
        assert bool(found.converged)

    def test_grcar(self):
        # Pseudo-eigenvalues far outside the spectrum: products alone do not settle it. Assembled it is LAPACK's value.
        A = grcar(70)
        alone = eigenvalues(MatrixOperator(A), method=KrylovSchur(max_restarts=30, fallback_size=0))
        assert not bool(alone.converged)
        assert math.isinf(float(alone.error[0, 0]))
        found = eigenvalues(MatrixOperator(A), 8)
        assert "LAPACK" in found.method
        exact = float(torch.linalg.eigvals(A).abs().max())
        assert float(found.values[0, 0].abs()) == pytest.approx(exact, rel=1e-6)


class TestWhatMayBeMissed:
    """Small residuals of the wrong eigenvalues."""

    @pytest.mark.parametrize("kind", ["orthogonal", "permutation", "ring"])
    def test_ties_all_around_are_not_settled_by_products(self, kind: str):
        A = KINDS[kind](90, generator(0))
        method = KrylovSchur(max_restarts=30, fallback_size=0)
        found = eigenvalues(MatrixOperator(A), method=method)
        assert not bool(found.converged)
        assert math.isinf(float(spectral_radius(MatrixOperator(A), method=method).error))

    @pytest.mark.parametrize("kind", ["orthogonal", "permutation", "ring"])
    def test_they_are_when_assembled(self, kind: str):
        A = KINDS[kind](90, generator(0))
        found = eigenvalues(MatrixOperator(A))
        assert found.method.startswith("Krylov-Schur with 20 basis vectors; 1 of 1 samples: dense")
        assert bool(found.converged)
        rho = float(torch.linalg.eigvals(A).abs().max())
        assert abs(float(found.values[0, 0].abs()) - rho) <= float(found.error[0, 0])

    @pytest.mark.parametrize("seed", [0, 8, 12])
    def test_an_arc_hides_its_middle(self, seed: int, monkeypatch: pytest.MonkeyPatch):
        g = generator(seed)
        n = int(torch.randint(65, 201, (), generator=g))
        A = KINDS["arc"](n, g)
        rho = float(torch.linalg.eigvals(A).abs().max())
        method = KrylovSchur(max_restarts=60, fallback_size=0)
        honest = eigenvalues(MatrixOperator(A), method=method)
        assert not bool(honest.converged)
        # Without the second look both runs agree on the ends of the arc and on the outlier.
        monkeypatch.setattr(krylov._Run, "confirm", lambda self, limit: None)
        fooled = eigenvalues(MatrixOperator(A), method=method)
        assert bool(fooled.converged)
        assert abs(float(fooled.values[0, 0].abs()) - rho) > RTOL * rho

    @pytest.mark.parametrize("restarts", [0, 1, 2, 4, 8])
    def test_too_few_restarts(self, restarts: int):
        A = torch.stack([KINDS["gaussian"](120, generator(s)) for s in range(4)])
        found = eigenvalues(MatrixOperator(A), method=KrylovSchur(max_restarts=restarts, fallback_size=0))
        assert not bool(found.converged.any())
        assert bool(torch.isinf(found.error[:, 0]).all())
        # Enough of them: the partner.
        assert bool(eigenvalues(MatrixOperator(A), method=PURE).converged.all())

    def test_runs_that_disagree(self):
        # A transpose that is another matrix's: the second run finds 1.3 where the first has 1.2.
        A, B = beside(1.2 * rotation(80), 80), beside(1.3 * rotation(30), 80, seed=4)
        found = eigenvalues(Recorded(A.unsqueeze(0), transposed_of=B.unsqueeze(0)), method=PURE)
        assert not bool(found.converged)
        assert bool(torch.isinf(found.error).all())
        radius = spectral_radius(Recorded(A.unsqueeze(0), transposed_of=B.unsqueeze(0)), method=PURE)
        assert float(radius.value) == pytest.approx(1.3, abs=1e-9)
        assert math.isinf(float(radius.error))

    def test_one_side_alone_claims_nothing(self):
        op = Recorded(beside(1.2 * rotation(80), 80).unsqueeze(0))
        found = eigenvalues(op, method=PURE, condition=False)
        assert found.left is None
        assert found.left_values is None
        assert not bool(found.converged)
        assert bool(torch.isinf(found.error).all())
        assert float(found.values[0, 0].abs()) == pytest.approx(1.2, abs=1e-9)
        assert op.log["rmatvec"] == 0


SEEDS = st.integers(0, 10**6)


@given(kind=st.sampled_from(sorted(KINDS)), seed=SEEDS)
@example(kind="arc", seed=0)  # ends of an arc taken for its largest, before there was a second look
@example(kind="arc", seed=3)
@example(kind="arc", seed=8)
def test_what_is_flagged_converged_is_right(kind: str, seed: int):
    g = generator(seed)
    n = int(torch.randint(65, 121, (), generator=g))
    A = KINDS[kind](n, g)
    found = eigenvalues(MatrixOperator(A), method=KrylovSchur(max_restarts=30, fallback_size=0), rtol=RTOL)
    if not bool(found.converged):
        return
    lam, X = torch.linalg.eig(A)
    # LAPACK's own error, first order: ten roundings of |A|_F times the condition of each eigenvalue.
    Y, _ = torch.linalg.inv_ex(X)
    own = 10 * 2.2e-16 * torch.linalg.matrix_norm(A) * torch.linalg.vector_norm(Y, dim=1).nan_to_num(torch.inf)
    rho = float(lam.abs().max())
    assert abs(float(found.values[0, 0].abs()) - rho) <= max(RTOL * rho, float((lam.abs() + own).max()) - rho)


@given(seed=SEEDS, turn=SEEDS)
def test_an_orthogonal_change_of_basis_changes_nothing(seed: int, turn: int):
    A = KINDS["near ties"](70, generator(seed))
    Q = orthogonal(70, turn)
    one, other = (spectral_radius(MatrixOperator(M), method=PURE) for M in (A, Q @ A @ Q.T))
    assert abs(float(one) - float(other)) <= float(one.error) + float(other.error)


class TestBatches:
    def test_a_sample_does_not_depend_on_its_company(self):
        kinds = ["gaussian", "near ties", "identity", "jordan pairs", "low rank", "carry"]
        A = torch.stack([KINDS[kind](80, generator(3)) for kind in kinds])
        log = Recorded(A)
        together = eigenvalues(log, method=PURE)
        for i in range(len(A)):
            alone = eigenvalues(MatrixOperator(A[i]), method=PURE)
            room = together.error[i, 0] + alone.error[0, 0]
            assert (together.values[i, 0].abs() - alone.values[0, 0].abs()).abs() <= room
            assert bool(together.converged[i]) == bool(alone.converged)
            # Only rounding differs (sums in another order), and with it perhaps the cycle in which a run ends.
            assert abs(int(together.restarts[i]) - int(alone.restarts)) <= 2

    def test_finished_samples_are_dropped(self):
        easy = torch.stack(
            [beside(torch.diag(torch.tensor([5.0, 4.0, 3.0, 2.0]).double()), 90, seed=s) for s in range(3)]
        )
        hard = KINDS["gaussian"](90, generator(0)).unsqueeze(0)
        op = Recorded(torch.cat([easy, hard]))
        found = eigenvalues(op, method=PURE, condition=False)
        assert 1 in op.log["select"]
        assert int(found.products[3]) > 2 * int(found.products[:3].max())
        # What was computed is hardly more than what was needed: at most a few cycles for finished samples.
        assert op.log["matvec"] <= 1.25 * int(found.products.sum())

    @pytest.mark.parametrize("kind", ["gaussian", "low rank", "arc"])
    def test_products_are_counted(self, kind: str):
        op = Recorded(KINDS[kind](100, generator(1)).unsqueeze(0))
        found = eigenvalues(op, method=KrylovSchur(max_restarts=20, fallback_size=0))
        # K more for residuals on each side, which are measured a second time after a refinement.
        K = found.values.shape[1]
        assert int(found.products) <= op.log["matvec"] <= int(found.products) + K
        assert int(found.left_products) <= op.log["rmatvec"] <= int(found.left_products) + K

    def test_fallback_for_some(self):
        A = torch.stack([KINDS["orthogonal"](70, generator(0)), KINDS["near ties"](70, generator(0))])
        found = eigenvalues(MatrixOperator(A))
        assert found.method == "Krylov-Schur with 20 basis vectors; 1 of 2 samples: dense matrices and LAPACK (n=70)"
        assert bool(found.converged.all())
        exact = torch.linalg.eigvals(A).abs().amax(1)
        assert ((found.values.abs().amax(1) - exact).abs() <= found.error[:, 0]).all()


class TestOrders:
    def test_each_against_all_eigenvalues(self):
        A = torch.stack([KINDS["gaussian"](90, generator(s)) * (1 + s / 2) for s in range(3)])
        lam = torch.linalg.eigvals(A)
        step = torch.tensor([0.5, 1.0, 0.3])
        for order in (LargestReal(), LargestModulus(), LargestDamped(step), LargestDamped(0.4)):
            found = eigenvalues(MatrixOperator(A), 2, order=order, method=PURE)
            key = order.key(lam)
            assert bool(found.converged.all())
            assert torch.allclose(order.key(found.values)[:, 0], key.amax(1), atol=1e-9)

    def test_critical_step(self):
        # A rotating pair limits it (2 (1 - Re l) / |1 - l|^2 with l = 1.2 e^(80 i)), not the largest modulus, 1.3.
        R = torch.block_diag(1.2 * rotation(80), torch.diag(torch.tensor([-0.9, 0.8], dtype=torch.float64)))
        found = eigenvalues(MatrixOperator(beside(R, 90)), 2, order=SmallestCriticalStep(), method=PURE)
        c = math.cos(math.radians(80))
        assert bool(found.converged)
        assert critical_step(found.values).item() == pytest.approx(2 * (1 - 1.2 * c) / (1 - 2.4 * c + 1.44), abs=1e-9)

    def test_any_of_leads_by_each(self):
        A = torch.stack([KINDS["gaussian"](90, generator(s)) * 1.3 for s in range(3)])
        lam = torch.linalg.eigvals(A)
        parts = LargestModulus(), LargestReal(), SmallestCriticalStep()
        found = eigenvalues(MatrixOperator(A), 8, order=AnyOf(*parts), method=PURE)
        assert bool(found.converged.all())
        for part in parts:
            assert torch.allclose(part.key(found.values).amax(1), part.key(lam).amax(1), atol=1e-9)


class TestArpack:
    def test_agrees(self):
        A = torch.stack([KINDS["gaussian"](90, generator(s)) for s in range(2)])
        for order in (LargestModulus(), LargestReal()):
            theirs = eigenvalues(MatrixOperator(A), order=order, method=Arpack())
            ours = eigenvalues(MatrixOperator(A), order=order, method=PURE)
            assert theirs.method == "ARPACK with 20 basis vectors"
            assert bool((ours.converged & theirs.converged).all())
            assert torch.allclose(ours.values, theirs.values, atol=1e-8)
            assert torch.allclose(ours.condition, theirs.condition, rtol=1e-6)

    def test_no_convergence_is_reported(self):
        found = eigenvalues(MatrixOperator(KINDS["gaussian"](120, generator(0))), method=Arpack(max_restarts=1))
        assert not bool(found.converged)
        assert int(found.count) == 0
        assert bool(torch.isinf(found.error).all())

    def test_nothing_found_is_reported(self):
        # ARPACK refuses a start vector that J maps to zero.
        found = eigenvalues(MatrixOperator(torch.zeros(70, 70, dtype=torch.float64)), method=Arpack())
        assert not bool(found.converged)
        assert torch.isfinite(found.values).all()

    def test_products_are_counted_and_not_fewer_than_ours(self):
        # Eight random matrices, equal k, tolerance and basis: ours may take at most a fifth more.
        A = torch.stack([KINDS["gaussian"](150, generator(s)) for s in range(8)])
        op = Recorded(A)
        theirs = eigenvalues(op, method=Arpack(), condition=False)
        assert op.log["matvec"] == int(theirs.products.sum())
        ours = eigenvalues(MatrixOperator(A), method=PURE, condition=False)
        assert int(ours.products.sum()) <= 1.2 * int(theirs.products.sum())

    def test_other_orders(self):
        with pytest.raises(InputError, match="ARPACK knows LargestModulus"):
            eigenvalues(MatrixOperator(randn(70, 70)), order=SmallestCriticalStep(), method=Arpack())


def fprm(dtype: torch.dtype) -> JacobianOperator:
    """Twelve tokens of sixteen channels, n = 192, two inputs."""
    torch.manual_seed(0)
    config = FPRMConfig(vocab_size=8, seq_len=12, hidden_size=16, num_heads=2, L_layers=1, causal=False)
    model = FPRMModel(config).eval()
    x = model.injection(torch.randint(8, (2, 12))).detach().to(dtype)
    z = model.initial_state(x)
    loop = Loop(model.to(dtype).block, x)
    with torch.no_grad():
        for _ in range(10):
            z = loop(z)
    return JacobianOperator(loop, z)


class TestLoops:
    def test_jacobians(self):
        op = fprm(torch.float64)
        found = eigenvalues(op, method=PURE)
        exact = torch.linalg.eigvals(op.dense()).abs().amax(1)
        assert found.method.startswith("Krylov-Schur")
        assert bool(found.converged.all())
        assert ((found.values[:, 0].abs() - exact).abs() <= found.error[:, 0]).all()

    def test_float32(self):
        # Products in float32, basis in float64; the truth is the float64 loop's. Its rounding is known to 1e-3 only.
        found = eigenvalues(fprm(torch.float32), method=PURE)
        exact = torch.linalg.eigvals(fprm(torch.float64).dense()).abs().amax(1)
        assert found.values.dtype == torch.complex128
        assert bool(found.converged.all())
        assert ((found.values[:, 0].abs() - exact).abs() <= found.error[:, 0]).all()
        assert (found.error[:, 0] > 1e-7 * exact).all()
        strict = eigenvalues(fprm(torch.float32), method=PURE, rtol=1e-6)
        assert not bool(strict.converged.any())

    def test_a_small_loop_is_assembled(self):
        loop, z = small_fprm("plain")
        op = JacobianOperator(loop, z)
        found = spectral_radius(op)
        assert torch.allclose(found.value, torch.linalg.eigvals(op.dense()).abs().amax(1), atol=1e-10)

    @pytest.mark.parametrize("name", ["s3", "s3-unscaled"])
    def test_shipped_models(self, name: str):
        target = find_target(name, Data(inputs=1)).to(torch.float64)
        loop, z = Loop(target.block, target.x, z0=target.z0), target.z0
        with torch.no_grad():
            for _ in range(40):
                z = loop(z)
        op = JacobianOperator(loop, z)
        found = eigenvalues(op, 2, method=PURE)
        exact = torch.linalg.eigvals(op.dense()).abs().amax(1)
        gap = (found.values[:, 0].abs() - exact).abs()
        assert (gap <= torch.maximum(found.error[:, 0], RTOL * exact)).all()
        assert (gap <= RTOL * exact).all() or not bool(found.converged.any())


def test_residuals_need_no_complex_products():
    A = randn(2, 9, 9, seed=1)
    lam, X = torch.linalg.eig(A)
    wrong = lam + 0.25j * lam.imag.sign() + 0.5  # pairs stay pairs
    assert torch.allclose(residual_of(MatrixOperator(A), lam, X), torch.zeros(2, 9).double(), atol=1e-13)
    expected = torch.linalg.vector_norm(A.to(X.dtype) @ X - X * wrong.unsqueeze(1), dim=1)
    assert torch.allclose(residual_of(MatrixOperator(A), wrong, X), expected, atol=1e-13)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"op": torch.eye(3)}, "op is a Tensor; expected an operator"),
        ({"k": 0}, "k=0; expected an integer >= 1"),
        ({"k": True}, "k=True; expected an integer >= 1"),
        ({"rtol": 1}, "rtol=1; expected a float in"),
        ({"rtol": 0.0}, "rtol=0.0; expected a float in"),
        ({"method": KrylovSchur(basis_size=8)}, "basis_size=8; expected an integer >= 9"),
        ({"max_bytes": 1000}, "1 bases of 21 vectors with n=70 need .* GiB; max_bytes allows"),
        ({"max_bytes": 1000, "method": DenseEigensolver()}, "1 dense matrices with n=70 need"),
    ],
)
def test_bad_requests_stop_before_any_product(arguments: dict, match: str):
    op = Recorded(randn(1, 70, 70))
    with pytest.raises(InputError, match=match):
        eigenvalues(**({"op": op} | arguments))
    assert op.log["calls"] == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tol": 0.0}, "tol=0.0"),
        ({"tol": 1}, "tol=1;"),
        ({"max_restarts": -1}, "max_restarts=-1"),
        ({"seed": 0.5}, "seed=0.5"),
        ({"dense_size": True}, "dense_size=True"),
    ],
)
def test_bad_options(options: dict, match: str):
    with pytest.raises(InputError, match=match):
        KrylovSchur(**options)
    if not {"dense_size"} & set(options):
        with pytest.raises(InputError, match=match):
            Arpack(**options)


@pytest.mark.parametrize("size", [math.nan, 1e200, 1e-200])
def test_products_that_cannot_be_worked_with(size: float):
    # Squares of 1e200 overflow, squares of 1e-200 vanish: neither may pass for a spectrum.
    with pytest.raises(NonFiniteError, match=r"hold NaN or inf, or overflow|vanish when squared"):
        eigenvalues(Recorded(size * randn(1, 70, 70)), method=PURE)


def test_seeds_and_numpy_state_are_left_alone():
    torch.manual_seed(5)
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    eigenvalues(MatrixOperator(randn(70, 70)), method=PURE)
    eigenvalues(MatrixOperator(randn(70, 70)), method=Arpack())
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002
