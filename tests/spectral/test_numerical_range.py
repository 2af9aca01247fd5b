"""The numerical range has the shapes that theory gives it, by LAPACK and by Lanczos alike."""

import doctest
import importlib
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from problems import grcar, jordan, normal, orthogonal, randn, small_fprm
from torch import Tensor

from fpcheck.errors import FpcheckError, InputError, NonFiniteError
from fpcheck.spectral import jacobian
from fpcheck.spectral.lanczos import log_norm, spectral_norm
from fpcheck.spectral.numerical_range import numerical_range
from fpcheck.spectral.operator import AbstractOperator, JacobianOperator, MatrixOperator

EPS = 2.0**-52
module = importlib.import_module("fpcheck.spectral.numerical_range")  # its name stands for the function too


@pytest.fixture(params=["dense", "krylov"])
def path(request, monkeypatch):
    """Both paths, whatever n."""
    monkeypatch.setattr(module, "_DENSE", 10**9 if request.param == "dense" else 0)
    return request.param


def support_of(points: Tensor, angles: Tensor) -> Tensor:
    """Largest Re(e^(-i t) p) over the points ``(..., m)``, for each angle: the support function of their hull."""
    turned = torch.polar(torch.ones_like(angles), -angles).unsqueeze(1) * points.to(torch.complex128).unsqueeze(-2)
    return turned.real.amax(-1)


def close(found, true):
    """Support within its errors, and errors no larger than rtol (1e-6) times |J| and rounding."""
    assert found.converged.all()
    gap = (found.support - true).abs()
    assert (gap <= found.error + 20 * EPS * true.abs().amax()).all()
    # The figures themselves are far better than their errors: the square of the residual.
    assert (gap <= 1e-10 * true.abs().amax()).all()


def test_a_normal_matrix_has_the_hull_of_its_eigenvalues(path):
    # Corners at angles between those asked for, a point inside, a value on the axis. An eigenvector of one angle is one
    # of all angles: a search that starts from its neighbour's alone stays there.
    lam = [1.0 + 0.7j, -0.9 + 1.2j, -1.5, 0.2 + 0.1j, 0.3, 1.3 + 0.2j, 0.1 + 1.25j]
    A = normal(*lam)
    eigenvalues = torch.tensor(lam + [v.conjugate() for v in lam if isinstance(v, complex)], dtype=torch.complex128)
    for angles in (64, 7):
        found = numerical_range(MatrixOperator(A), angles=angles)
        close(found, support_of(eigenvalues, found.angles).unsqueeze(0))
        assert float(found.abscissa[0]) == pytest.approx(1.3, abs=1e-12)
        # The largest modulus is that of -0.9 +- 1.2 i and of -1.5; seven angles touch corners too.
        assert float(found.radius.value) == pytest.approx(1.5, abs=1e-6)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_jordan_block_has_a_disk(path, n):
    # Of radius cos(pi / (n + 1)) about the eigenvalue (Haagerup and de la Harpe 1992).
    found = numerical_range(MatrixOperator(jordan(0.5, n)))
    r = math.cos(math.pi / (n + 1))
    close(found, (0.5 * torch.cos(found.angles) + r).unsqueeze(0))
    # A complete space for each n here: eigenvectors to rounding, over a gap of at least 0.2.
    assert ((found.points - 0.5).abs() - r).abs().max() < 1e-13
    assert float(found.abscissa.value) == pytest.approx(0.5 + r, abs=1e-12)
    # Largest modulus at angle 0, one of those asked for: the value is exact, the outer polygon farther by at most
    # 1 / cos(pi / 64) = 1 + 1.2e-3.
    assert float(found.radius.value) == pytest.approx(0.5 + r, abs=1e-9)
    assert 0 < float(found.radius.error) < 1.3e-3 * (0.5 + r)


@given(a=st.floats(-2, 2), d=st.floats(-2, 2), b=st.floats(-3, 3), degrees=st.floats(0, 360))
@example(a=0.0, d=5e-324, b=0.0, degrees=0.0)
def test_two_by_two_is_an_ellipse(a, d, b, degrees):
    # Elliptical range theorem: foci a and d, minor axis |b|, so semi-axes |b| / 2 and hypot(a - d, b) / 2. It does not
    # change under a rotation of the plane.
    t = math.radians(degrees)
    Q = torch.tensor([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]], dtype=torch.float64)
    A = Q @ torch.tensor([[a, b], [0.0, d]], dtype=torch.float64) @ Q.T
    found = numerical_range(MatrixOperator(A), angles=16)
    cos, sin = torch.cos(found.angles), torch.sin(found.angles)
    h = (a + d) / 2 * cos + torch.hypot(math.hypot(a - d, b) / 2 * cos, b / 2 * sin)
    # 20 eps for Q, whose columns are not quite orthonormal, and for the reference, whose halves may underflow.
    slack = 20 * EPS * (abs(a) + abs(b) + abs(d)) + 1e-300
    assert ((found.support - h).abs() <= found.error + slack).all()


KINDS = {
    "random": lambda n: randn(n, n, seed=n) / n**0.5,
    "grcar": grcar,
    "symmetric": lambda n: randn(n, n) + randn(n, n).T,
    "skew": lambda n: randn(n, n) - randn(n, n).T,
    "orthogonal": orthogonal,
    "rank one": lambda n: randn(n, 1) @ randn(1, n, seed=1),
    "zero": lambda n: torch.zeros(n, n, dtype=torch.float64),
    "huge": lambda n: 1e150 * randn(n, n),
    "tiny": lambda n: 1e-200 * randn(n, n),
}


def by_hand(A: Tensor, angles: Tensor) -> Tensor:
    """Support by one Hermitian eigenvalue problem for each angle, all of them."""
    size = A.abs().amax().clamp(min=1e-300)
    turned = torch.polar(torch.ones_like(angles), -angles).view(-1, 1, 1) * (A / size)
    return torch.linalg.eigvalsh((turned + turned.mH) / 2)[:, -1] * size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [1, 2, 5, 40])
def test_every_kind_in_one_batch(path, n, dtype):
    narrow = dtype is torch.float32
    A = torch.stack([make(n) for name, make in KINDS.items() if not (narrow and name in ("huge", "tiny"))]).to(dtype)
    found = numerical_range(MatrixOperator(A), angles=13)
    assert found.converged.all()
    true = torch.stack([by_hand(one.double(), found.angles) for one in A])
    unit = A.double().abs().amax((1, 2)).clamp(min=1e-300)  # squares of the tiny ones would underflow
    size = torch.linalg.matrix_norm(A.double() / unit.view(-1, 1, 1)) * unit
    # LAPACK of the reference: 5 eps |A|_F.
    assert ((found.support - true).abs() <= found.error + 5 * EPS * size.unsqueeze(1)).all()
    # rtol, or the rounding of float32 products, 10 eps |A|_2, doubled by the search.
    assert (found.error <= (1.1e-6 + 40 * torch.finfo(dtype).eps) * size.unsqueeze(1)).all()
    # Points lie on their support lines, mirrored ones too.
    on_line = (torch.polar(torch.ones_like(found.angles), -found.angles) * found.points).real
    assert ((on_line - found.support).abs() <= 20 * torch.finfo(dtype).eps * size.unsqueeze(1)).all()
    assert torch.equal(found.support[:, 1:], found.support[:, 1:].flip(1))
    assert torch.equal(found.points[:, 1:].conj(), found.points[:, 1:].flip(1))


@given(n=st.integers(1, 12), seed=st.integers(0, 10**6), angles=st.integers(4, 20))
def test_what_a_numerical_range_must_satisfy(n, seed, angles):
    A = randn(n, n, seed=seed)
    found = numerical_range(MatrixOperator(A), angles=angles)
    slack = 20 * n * EPS * float(torch.linalg.matrix_norm(A))
    # It holds the eigenvalues (they may lie on the boundary), and every x'Ax.
    lam = torch.linalg.eigvals(A)
    condition = torch.linalg.cond(torch.linalg.eig(A).eigenvectors)
    near = slack * min(float(condition), 1e8)
    assert (support_of(lam, found.angles) <= found.support[0] + found.error[0] + near).all()
    x = torch.complex(randn(50, n, seed=seed + 1), randn(50, n, seed=seed + 2))
    x = x / x.norm(dim=1, keepdim=True)
    inside = torch.einsum("ki,ij,kj->k", x.conj(), A.to(x.dtype), x)
    assert (support_of(inside, found.angles) <= found.support[0] + found.error[0] + slack).all()
    # Its points lie within all of its support lines, and the corners of the outer polygon beyond all points.
    assert (support_of(found.points[0], found.angles) <= found.support[0] + found.error[0] + slack).all()
    assert float(found.outer[0].abs().amax()) >= float(inside.abs().amax()) - slack
    # |J| / 2 <= numerical radius <= |J|; abscissa = log-norm.
    norm, mu = spectral_norm(MatrixOperator(A)).value, log_norm(MatrixOperator(A)).value
    largest = float(found.radius.value) + float(found.radius.error)
    assert float(norm) / 2 - slack <= largest
    assert float(found.radius.value) <= float(norm) + float(norm.error) + slack
    assert abs(float(found.abscissa) - float(mu)) <= float(found.abscissa.error) + float(mu.error) + slack
    # An orthogonal change of basis leaves it where it is.
    Q = orthogonal(n, seed)
    turned = numerical_range(MatrixOperator(Q @ A @ Q.T), angles=angles)
    assert ((turned.support - found.support).abs() <= turned.error + found.error + slack).all()


def test_the_radius_is_between_its_polygons(path):
    A = torch.stack([randn(12, 12, seed=s) for s in range(5)])
    fine = torch.stack([by_hand(one, 2 * math.pi / 4096 * torch.arange(4096)) for one in A]).amax(1)
    for angles in (5, 16, 64):
        found = numerical_range(MatrixOperator(A), angles=angles).radius
        # The largest of 4,096 directions is short by at most 1 - cos(pi / 4096) = 3e-7.
        assert (found.value <= fine * (1 + 3e-7)).all()
        assert (fine <= found.value + found.error).all()
        assert (found.error <= (1 / math.cos(math.pi / angles) - 1 + 2e-6) * (found.value + found.error)).all()


def test_corners_of_the_outer_polygon():
    # The square |Re| <= 1, |Im| <= 1 is cut out by four lines: corners 1 + i, -1 + i, ... Range of a normal matrix with
    # these eigenvalues.
    found = numerical_range(MatrixOperator(normal(1 + 1j, -1 + 1j)), angles=4)
    expected = torch.tensor([1 + 1j, -1 + 1j, -1 - 1j, 1 - 1j], dtype=torch.complex128)
    # Moved out by the error: 10 eps |J|_F.
    assert (found.outer[0] - expected).abs().max() < 1e-13
    assert ((found.outer[0] - expected).real * expected.real >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fprm_blocks(path, dtype):
    loop, z = small_fprm("input-dependent, post-norm", dtype)
    found = numerical_range(JacobianOperator(loop, z), angles=8)
    A = jacobian(loop, z).double()
    true = torch.stack([by_hand(one, found.angles) for one in A])
    assert found.converged.all()
    assert ((found.support - true).abs() <= found.error).all()
    lam = torch.linalg.eigvals(A)
    assert (support_of(lam, found.angles) <= found.support + found.error).all()


def test_above_the_dense_sizes_it_is_lanczos():
    n, turns = 230, []
    A = torch.stack([randn(n, n) / n**0.5, torch.diag(torch.linspace(-1, 1, n, dtype=torch.float64))])
    original = module.largest
    found = numerical_range(MatrixOperator(A), angles=8)
    close(found, torch.stack([by_hand(one, found.angles) for one in A]))
    assert (found.products != n).all()
    # In turns, when the bases of all angles would be too many: the same figures.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TURN_BYTES", 1)
        patch.setattr(module, "largest", lambda *a, **k: turns.append(len(a[1])) or original(*a, **k))
        slowly = numerical_range(MatrixOperator(A), angles=8)
    assert turns == [2] * 5  # angles 0 to pi, two samples each
    assert torch.allclose(slowly.support, found.support, rtol=1e-11, atol=0)
    assert torch.equal(slowly.products, found.products)


def test_a_neighbours_vector_alone_is_not_enough(monkeypatch):
    # The partner of the normal matrix above: without the random part the search ends where it began.
    monkeypatch.setattr(module, "_DENSE", 0)
    monkeypatch.setattr(module, "_FRESH", 1e-15)
    lam = [0.9 + 0.1j, 0.5 + 0.8j, -0.2 + 0.9j]
    found = numerical_range(MatrixOperator(normal(*lam, *[0.01 * k for k in range(20)])), angles=64)
    true = support_of(torch.tensor([*lam, *[v.conjugate() for v in lam]], dtype=torch.complex128), found.angles)
    assert (found.support - true).abs().max() > 1e-3


def test_products_are_counted(monkeypatch):
    monkeypatch.setattr(module, "_DENSE", 0)
    seen = []

    class Counting(MatrixOperatorView):
        def matvec(self, V):
            seen.append(int((V.abs().amax(1) > 0).sum()))
            return self.base.matvec(V)

        def rmatvec(self, U):
            seen.append(int((U.abs().amax(1) > 0).sum()))
            return self.base.rmatvec(U)

    found = numerical_range(Counting(MatrixOperator(randn(2, 50, 50))), angles=8)
    # Columns of zeros stand for pairs that are done in one sample and not in the other. A pair that is done is carried
    # on until half of its fellows are: products made may exceed those counted.
    assert int(found.products.sum()) <= sum(seen) <= 1.5 * int(found.products.sum())
    assert (numerical_range(MatrixOperator(randn(2, 50, 50)), angles=8, rtol=0.1).products < found.products).all()


class MatrixOperatorView(AbstractOperator):
    def __init__(self, base):
        self.base = base

    batch_size = property(lambda self: self.base.batch_size)
    n = property(lambda self: self.base.n)
    dtype = property(lambda self: self.base.dtype)
    device = property(lambda self: self.base.device)

    def matvec(self, V):
        return self.base.matvec(V)

    def rmatvec(self, U):
        return self.base.rmatvec(U)

    def select(self, index):
        return type(self)(self.base.select(index))

    def rounding(self):
        return self.base.rounding()


def test_the_rounding_of_the_operator_is_in_the_error(path):
    class Rough(MatrixOperatorView):
        def rounding(self):
            return torch.tensor([0.5, 0.0], dtype=torch.float64)

    found = numerical_range(Rough(MatrixOperator(randn(2, 10, 10))), angles=4)
    assert (found.error[0] >= 0.5).all()
    assert (found.error[1] < 1e-4).all()
    assert float(found.radius.error[0]) > 0.5


def test_giving_up_is_said(monkeypatch):
    monkeypatch.setattr(module, "_DENSE", 0)
    slow = jordan(0.0, 300)
    found = numerical_range(
        MatrixOperator(torch.stack([torch.eye(300).double(), slow])), angles=4, basis_size=8, max_restarts=2
    )
    assert found.converged.tolist() == [True, False]
    assert (found.support[1] < math.cos(math.pi / 301) - 1e-7).any()  # and it was right to say so


def test_metric():
    n = 8
    A, L = randn(2, n, n), randn(n, seed=1).exp()
    found = numerical_range(MatrixOperator(A), metric=L, angles=12)
    weighted = L.unsqueeze(1) * A / L
    close(found, torch.stack([by_hand(one, found.angles) for one in weighted]))


class Fake(MatrixOperatorView):
    batch_size = 1
    dtype = torch.float64
    device = torch.device("cpu")
    n = 10**8

    def __init__(self):
        pass

    def matvec(self, V):
        raise AssertionError("work before the checks")

    rmatvec = matvec

    def rounding(self):
        raise AssertionError("work before the checks")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"angles": 3}, "angles=3; expected an integer >= 4"),
        ({"angles": 8.0}, "angles=8.0"),
        ({"rtol": 0}, "rtol=0; expected a number between"),
        ({"basis_size": 2}, "basis_size=2"),
        ({"max_restarts": None}, "max_restarts=None"),
        ({"seed": -2}, "seed=-2"),
        ({"metric": torch.ones(2)}, "metric L is"),
        ({}, r"66 basis vectors for each of 1 sample\(s\)"),
    ],
    ids=str,
)
def test_bad_arguments(options, words):
    with pytest.raises(InputError, match=words):
        numerical_range(Fake(), **options)


def test_what_is_no_operator():
    with pytest.raises(InputError, match="expected an operator"):
        numerical_range(torch.eye(3))


def test_products_that_are_not_finite(path):
    class Broken(MatrixOperatorView):
        def rmatvec(self, U):
            return torch.full_like(U, torch.nan)

    with pytest.raises(NonFiniteError, match="for sample 0 holds NaN"):
        numerical_range(Broken(MatrixOperator(torch.eye(5))))


def test_lapack_failures_have_a_name(monkeypatch):
    def fail(_):
        raise torch.linalg.LinAlgError("stuck")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    with pytest.raises(FpcheckError, match=r"did not converge at angle 0 \(n=5\): stuck"):
        numerical_range(MatrixOperator(torch.eye(5)))


def test_the_example_runs():
    names = {"torch": torch, "MatrixOperator": MatrixOperator}
    failed, tried = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert (failed, tried) == (0, 2)
