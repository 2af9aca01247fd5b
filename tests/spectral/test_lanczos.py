"""Norm and log-norm by Lanczos agree with LAPACK, and say so when they do not."""

import copy
import doctest
import math

import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import grcar, jordan, orthogonal, randn, small_fprm

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral import jacobian, lanczos
from fpcheck.spectral.lanczos import log_norm, spectral_norm
from fpcheck.spectral.operator import AbstractOperator, JacobianOperator, MatrixOperator, ScipyOperator, Shifted

EPS = 2.0**-52
RTOL = 1e-8  # the default


def top_singular(A):
    return torch.linalg.svdvals(A.double())[..., 0]


def top_symmetric(A):
    return torch.linalg.eigvalsh((A.double() + A.double().mT) / 2)[..., -1]


FIGURES = {"norm": (spectral_norm, top_singular), "log-norm": (log_norm, top_symmetric)}
figures = pytest.mark.parametrize(("ours", "lapack"), FIGURES.values(), ids=FIGURES)


def with_singular_values(*s, seed=0):
    n = len(s)
    return orthogonal(n, seed) @ torch.diag(torch.tensor(s, dtype=torch.float64)) @ orthogonal(n, seed + 1)


# The first in each batch sets no example for the others: all speeds of convergence, and scales.
def kinds(n):
    A = randn(n, n, seed=n)
    eye = torch.eye(n, dtype=torch.float64)
    low = randn(n, 1, seed=n + 1)
    return {
        "random": A,
        "zero": 0 * A,
        "identity": eye,
        "minus identity": -eye,
        "orthogonal": orthogonal(n, n),
        "symmetric": A + A.T,
        "negative definite": -A @ A.T - eye,
        "skew": A - A.T,
        "rank one": low @ low.flip(0).T,
        "nilpotent": jordan(0.0, n),
        "jordan": jordan(0.9, n),
        "grcar": grcar(n),
        "pair at the top": with_singular_values(*[1.0] * min(n, 2), *[0.5] * (n - 2)),
        "close pair": with_singular_values(*[1.0, 1.0 - 1e-4][:n], *torch.linspace(0, 0.5, max(n - 2, 0)).tolist()),
        "huge": 1e150 * A,
        "tiny": 1e-200 * A,
        "one large entry": A * 1e-3 + torch.nn.functional.pad(eye[:1, :1], (0, n - 1, 0, n - 1)),
    }


@pytest.mark.parametrize("n", [1, 2, 3, 7, 33, 80])
@figures
def test_lapack_agrees(ours, lapack, n):
    A = torch.stack(list(kinds(n).values()))
    true, size = lapack(A), top_singular(A)
    found = ours(MatrixOperator(A))
    assert found.converged.all()
    # LAPACK's own backward error is a few eps |J|; the smallest number is for the zero matrix.
    assert ((found.value.value - true).abs() <= found.value.error + 5 * EPS * size).all()
    # The error may hold the residual, at most rtol, twice the level of rounding in the search, and rounding itself.
    assert (found.value.error <= (RTOL + 40 * EPS) * size).all()
    # From below: the value belongs to a vector. It rounds as products do, n eps / 2 at the very most.
    assert (found.value.value <= true + (n + 5) * EPS * size).all()


@pytest.mark.parametrize("n", [1, 2, 7, 33, 80])
@figures
def test_float32_operators_are_taken_to_float32(ours, lapack, n):
    eps = torch.finfo(torch.float32).eps
    batch = {name: A for name, A in kinds(n).items() if name not in ("huge", "tiny")} | {
        "tiny": 1e-30 * kinds(n)["random"]
    }
    A = torch.stack(list(batch.values())).float()
    true, size = lapack(A), top_singular(A)
    found = ours(MatrixOperator(A))
    assert found.converged.all()
    assert ((found.value.value - true).abs() <= found.value.error).all()
    assert (found.value.error <= (RTOL + 40 * eps) * size).all()
    assert found.right.dtype is torch.float64


@figures
def test_two_thousand_matrices_without_a_wrong_one_called_converged(ours, lapack):
    # 8 x 250 draws: Gaussian, integer, of rank 2, with tied and with clustered singular values, triangular, sparse,
    # graded over ten decades.
    n, each = 12, 250
    A = randn(8, each, n, n, seed=5)
    Q, W = torch.linalg.qr(randn(each, n, n, seed=6))[0], torch.linalg.qr(randn(each, n, n, seed=7))[0]
    A[1] = A[1].round()
    A[2] = A[2, :, :, :2] @ A[2, :, :2]
    A[3] = Q @ torch.diag(torch.tensor([2.0] * 3 + [1.0] * (n - 3)).double()) @ W
    A[4] = Q @ torch.diag(1 + 1e-9 * torch.arange(n).double()) @ W
    A[5] = A[5].triu()
    A[6] = A[6] * (randn(each, n, n, seed=8) > 1)
    A[7] = torch.diag(10.0 ** -torch.arange(n).double()) @ A[7]
    A = A.flatten(0, 1)
    found = ours(MatrixOperator(A))
    assert found.converged.all()
    assert ((found.value.value - lapack(A)).abs() <= found.value.error + 5 * EPS * top_singular(A)).all()


@pytest.mark.parametrize("name", problems.LINEAR)
def test_known_loops(name):
    problem = problems.PROBLEMS[name]()
    op = JacobianOperator(problem.loop(), problem.known.get("fixed_point", problem.z0))
    for ours, key in ((spectral_norm, "norm"), (log_norm, "log_norm")):
        if key in problem.known:
            found = ours(op)
            # The prescribed matrix is itself rounded: a few eps beside the estimate.
            assert ((found.value.value - problem.known[key]).abs() <= found.value.error + 10 * EPS).all()
            assert found.converged.all()


@pytest.mark.parametrize("variant", ["plain", "input-dependent, post-norm", "causal, conv1d", "mlp over positions"])
def test_jacobians_of_fprm_blocks(variant):
    loop, z = small_fprm(variant)
    loop32, z32 = small_fprm(variant, torch.float32)
    op, op32 = JacobianOperator(loop, z), JacobianOperator(loop32, z32)
    J = jacobian(loop, z)
    # The narrow block's own numbers, in float64.
    wide = jacobian(Loop(copy.deepcopy(loop32.block).double(), loop32.x.double()), z32.double())
    for ours, lapack in FIGURES.values():
        true, found = lapack(J), ours(op)
        assert found.converged.all()
        assert ((found.value.value - true).abs() <= found.value.error).all()
        assert (found.value.error <= 1e-7 * true.abs()).all()  # rtol, and |J|_F over the value
        narrow = ours(op32)  # whose rounding the operator measures
        assert narrow.converged.all()
        assert ((narrow.value.value - lapack(wide)).abs() <= narrow.value.error).all()


@given(n=st.integers(1, 24), seed=st.integers(0, 10**6), decades=st.integers(0, 12))
def test_an_orthogonal_change_of_basis_changes_nothing(n, seed, decades):
    A = randn(n, n, seed=seed) * 10.0 ** -torch.linspace(0, decades, n, dtype=torch.float64)
    Q = orthogonal(n, seed + 1)
    for ours, _ in FIGURES.values():
        # Two runs, from starts that differ relative to the matrix: both right within their errors, the product Q A Q'
        # rounds by some n eps |A|.
        one, other = ours(MatrixOperator(A)).value, ours(MatrixOperator(Q @ A @ Q.T)).value
        slack = 10 * n * EPS * top_singular(A)
        assert abs(float(one) - float(other)) <= float(one.error) + float(other.error) + slack


@given(seed=st.integers(0, 10**6), a=st.floats(0.01, 10), b=st.floats(-10, 10))
def test_what_both_norms_must_satisfy(seed, a, b):
    n = 9
    A = MatrixOperator(randn(n, n, seed=seed))
    norm, mu = spectral_norm(A).value, log_norm(A).value
    turned, moved = spectral_norm(A.transpose()).value, log_norm(Shifted(A, a, b)).value
    errors = [float(e.error) for e in (norm, mu, turned, moved)]
    assert abs(float(norm) - float(turned)) <= errors[0] + errors[2]  # |J'| = |J|
    assert abs(float(moved) - a * float(mu) - b) <= a * errors[1] + errors[3] + 1e-14 * (a * float(norm) + abs(b))
    assert float(mu) <= float(norm) + errors[0]  # mu <= |J|


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_vectors_are_those_of_the_value(dtype):
    A = torch.stack(list(kinds(33).values()))[:13].to(dtype)
    found = spectral_norm(MatrixOperator(A))
    u, v, s = found.left, found.right, found.value.value.unsqueeze(1)
    J = A.double()
    error, eps = found.value.error.unsqueeze(1), torch.finfo(dtype).eps
    # J v = s u by construction, up to the rounding of one product (5 eps |J|).
    assert ((J @ v.unsqueeze(2)).squeeze(2) - s * u).norm(dim=1).le(5 * eps * s[:, 0]).all()
    assert (((u.unsqueeze(1) @ J).squeeze(1) - s * v).norm(dim=1) <= error[:, 0]).all()
    ones = torch.ones(len(A), dtype=torch.float64)
    assert torch.allclose(u.norm(dim=1), ones, rtol=0, atol=1e-14)
    assert torch.allclose(v.norm(dim=1), ones, rtol=0, atol=1e-14)
    mu = log_norm(MatrixOperator(A))
    x = mu.right
    assert torch.equal(mu.left, x)
    S = (J + J.mT) / 2
    gap = ((S @ x.unsqueeze(2)).squeeze(2) - mu.value.value.unsqueeze(1) * x).norm(dim=1)
    assert (gap <= mu.value.error).all()


class Counting(AbstractOperator):
    """An operator that counts its products, for each sample, and can spoil one sample's."""

    def __init__(self, base, spoilt=None, counts=None, ids=None):
        self.base, self.spoilt = base, spoilt
        self.ids = torch.arange(base.batch_size) if ids is None else ids
        self.counts = torch.zeros(base.batch_size, dtype=torch.long) if counts is None else counts

    batch_size = property(lambda self: self.base.batch_size)
    n = property(lambda self: self.base.n)
    dtype = property(lambda self: self.base.dtype)
    device = property(lambda self: self.base.device)

    def matvec(self, V):
        return self._count(self.base.matvec(V))

    def rmatvec(self, U):
        return self._count(self.base.rmatvec(U))

    def select(self, index):
        return Counting(self.base.select(index), self.spoilt, self.counts, self.ids[index])

    def rounding(self):
        return self.base.rounding()

    def _count(self, product):
        self.counts[self.ids] += 1
        if self.spoilt is not None:
            product[self.ids == self.spoilt] = torch.nan
        return product


def speeds(n=60):
    """Norms that are found at once, soon, late, and very late."""
    slow = 1 + torch.cos(torch.linspace(0, math.pi, n, dtype=torch.float64)) / 2
    rows = [torch.ones(n), 0.5 ** torch.arange(n), torch.linspace(0, 1, n), slow]
    return torch.stack([torch.diag(row.double()) for row in rows])


@figures
def test_a_sample_does_not_depend_on_its_batch_and_is_left_out_when_done(ours, lapack):
    A = speeds()
    counting = Counting(MatrixOperator(A))
    together = ours(counting, basis_size=10)
    products = together.products.tolist()
    assert products == sorted(products)
    assert products[0] * 4 < products[-1]
    assert torch.equal(counting.counts[-1:], together.products[-1:])  # all that were made, and none twice
    # Half of the samples are done after the first looks: dropped, they are not multiplied on.
    assert counting.counts[0] < counting.counts[-1] / 2
    for i in range(len(A)):
        alone = ours(MatrixOperator(A[i]), basis_size=10)
        assert int(alone.products) == products[i]
        # The same start: only the order of summation may differ.
        assert float(alone.value.value) == pytest.approx(float(together.value.value[i]), rel=1e-12)
        assert float(alone.value.value) == pytest.approx(float(lapack(A[i])), rel=1e-12)


@figures
def test_giving_up_is_said(ours, lapack):
    A = torch.stack([speeds(400)[0], speeds(400)[3]])
    found = ours(MatrixOperator(A), basis_size=8, max_restarts=1)
    assert found.converged.tolist() == [True, False]
    true = lapack(A)
    assert (found.value.value <= true + 1e-12).all()  # from below all the same
    assert float(found.value.value[1]) < float(true[1]) - 1e-6
    # With room it gets there; 1e-6 above was no rounding.
    later = ours(MatrixOperator(A), basis_size=40)
    assert later.converged.all()
    assert float(later.value.value[1]) == pytest.approx(float(true[1]), rel=1e-9)


def test_a_close_pair_is_told_apart():
    # The Krylov space first sees 1 and 1 - 1e-4 as one, somewhere between, with residual up to 5e-5. Trusting the
    # square of that over the distance to the third (5e-9) would call it converged to 1e-8.
    found = spectral_norm(MatrixOperator(with_singular_values(1.0, 1.0 - 1e-4, *torch.linspace(0, 0.5, 98).tolist())))
    assert bool(found.converged)
    assert float(found.value.value) == pytest.approx(1.0, abs=1e-12)


def test_near_ties_are_within_the_error(monkeypatch):
    # Twenty values in 1 + [0, 3e-8], most of them near the lower end: their mixture has a residual below rtol.
    B, n, tied = 300, 60, 20
    g = torch.Generator().manual_seed(0)
    s = torch.rand(B, n, generator=g, dtype=torch.float64)
    s[:, :tied] = 1 + 3e-8 * s[:, :tied] ** 8
    s[:, tied:] *= 0.5
    Q = torch.linalg.qr(torch.randn(B, n, n, generator=g, dtype=torch.float64))[0]
    op = MatrixOperator(Q @ torch.diag_embed(s) @ Q.mT)

    def missed():
        found = spectral_norm(op)
        assert found.converged.all()
        return int((s.amax(1) - found.value.value > found.value.error).sum())

    assert missed() == 0
    # The partner: stopping at rtol itself misses 54 of the 300.
    monkeypatch.setattr(lanczos, "_REACH", 1.0)
    assert missed() > 30


def test_a_looser_tolerance_costs_less_and_says_so():
    op = MatrixOperator(randn(200, 200))
    true = top_singular(op.A)
    tight, loose = spectral_norm(op), spectral_norm(op, rtol=1e-2)
    assert int(loose.products) < int(tight.products) - 20
    assert float(tight.value.error) < 1e-7 * float(true) < 1e-4 * float(true) < float(loose.value.error)
    for found in (tight, loose):
        assert bool(found.converged)
        assert float((found.value.value - true).abs()) <= float(found.value.error)


@figures
def test_another_start_finds_the_same(ours, lapack):
    op = MatrixOperator(randn(3, 50, 50))
    one, other = ours(op), ours(op, seed=1)
    assert not torch.equal(one.right, other.right)
    assert torch.allclose(one.value.value, other.value.value, rtol=1e-12)


@figures
def test_metrics(ours, lapack):
    B, n = 2, 12
    A = randn(B, n, n)
    same, each = randn(n, seed=1).exp(), randn(B, n, seed=2).exp()
    full = randn(B, n, n, seed=3) + 5 * torch.eye(n)
    for metric, L in ((same, torch.diag(same).expand(B, n, n)), (each, torch.diag_embed(each)), (full, full)):
        weighted = L @ A @ torch.linalg.inv(L)
        found = ours(MatrixOperator(A), metric=metric)
        assert found.converged.all()
        # The condition number of L, below 1e3 here, multiplies rounding.
        assert ((found.value.value - lapack(weighted)).abs() <= found.value.error + 1e3 * EPS).all()
    assert not torch.allclose(ours(MatrixOperator(A)).value.value, found.value.value, rtol=0.01)


def test_a_metric_makes_a_shear_contract():
    # diag(1, s) [[0.9, 5], [0, 0.5]] diag(1, 1/s) = [[0.9, 5/s], [0, 0.5]]: norm 5.1 for s = 1, and 0.9 + O(s^-2).
    op = MatrixOperator(torch.tensor([[0.9, 5.0], [0.0, 0.5]], dtype=torch.float64))
    s = 1e4
    found = spectral_norm(op, metric=torch.tensor([1.0, s]))
    # F^2 = |A|_F^2 = 1.06 + 25 / s^2, det = 0.45: the larger root of x^2 - F^2 x + det^2 is 0.81 (1 + O(s^-2)).
    assert float(found.value) == pytest.approx(0.9, abs=1e-6)
    assert float(spectral_norm(op).value) == pytest.approx(5.104, abs=1e-3)


def test_scipy_operators():
    A = randn(2, 30, 30)
    op = ScipyOperator([a.numpy() for a in A])
    assert torch.allclose(spectral_norm(op).value.value, top_singular(A), rtol=1e-12)
    assert torch.allclose(log_norm(op).value.value, top_symmetric(A), rtol=1e-12)


def test_the_rounding_of_the_operator_is_in_the_error():
    class Rough(Counting):
        def rounding(self):
            return torch.full((self.base.batch_size,), 0.25, dtype=torch.float64)

    for scale in (1e-3, 1.0):
        op = MatrixOperator(scale * randn(2, 40, 40))
        for ours, _ in FIGURES.values():
            found = ours(Rough(op))
            # It also stops there: a residual below the rounding tells nothing. Where |J| is below 0.25, at once.
            assert (found.value.error >= 0.25).all()
            assert (found.value.error <= 0.5 + 10 * RTOL).all()
            assert found.converged.all()
            assert (found.products < ours(op).products).all()
            assert (found.products == 10).all() or scale == 1.0


def test_the_next_one_may_be_the_larger():
    # A start of 1 along the eigenvalue 1, some 1e-9 along others just below, 1e-14 along 2. At the first look the Ritz
    # value 1 has a residual of some 1e-9 and no sign of 2; the next one, about 0.9, has one above its distance to 1.
    # Weights 1 / (1 - l) make the second row even: its entries are those of (A - 1) times the start.
    low = torch.linspace(0, 0.999, 58, dtype=torch.float64)
    lam = torch.cat([torch.ones(1), low, torch.full((1,), 2.0)])
    start = torch.cat([torch.ones(1), 1e-10 / (1 - low), torch.full((1,), 1e-14)]).unsqueeze(0)
    A = lanczos.Part(MatrixOperator(torch.diag(lam)), torch.zeros(1, dtype=torch.float64))
    space = lanczos.Lanczos(A, start, 8)
    for _ in range(4):
        space.step()
    theta, _, residual, _ = space.ritz()
    assert float(theta[0, -1] * A.scale) == pytest.approx(1, abs=1e-8)
    assert float(residual[0, -1] * A.scale) < 1e-9
    assert float((theta + residual)[0, -2] * A.scale) > 1
    found = lanczos.largest(A, start, rtol=1e-8, basis_size=32, max_restarts=9)
    assert found.vector[0, -1].abs().item() == pytest.approx(1, abs=1e-7)


def test_rows_stay_orthonormal_over_restarts():
    A = lanczos.Part(MatrixOperator(torch.diag(torch.linspace(-1, 1, 300).double())), torch.zeros(1).double())
    space = lanczos.Lanczos(A, randn(1, 300), 12)
    for _ in range(50):
        while space.j < 12:
            space.step()
        V, H = space.V[0], space.H[0].tril() + space.H[0].tril(-1).T
        # 13 n eps / 2 for the products here; 3e-14 measured.
        assert (V @ V.T - torch.eye(13)).abs().max() < 2e-13
        S = torch.linspace(-1, 1, 300).double() / A.scale
        gap = V[:12] * S - H @ V[:12]
        gap[-1] -= space.beta[0, -1] * V[12]
        assert gap.abs().max() < 2e-13
        theta, T, *_ = space.ritz()
        space.restart(theta, T, 6)


def test_a_restart_forgets_how_the_rows_before_it_came_about():
    # Kept rows stand in ascending order: taking the space to end after the first would lose the largest.
    A = lanczos.Part(MatrixOperator(torch.diag(torch.linspace(-1, 1, 50).double())), torch.zeros(1).double())
    space = lanczos.Lanczos(A, randn(1, 50), 10)
    for _ in range(10):
        space.step()
    theta, S, *_ = space.ritz()
    space.beta[:, 0] = 0.0
    space.restart(theta, S, 5)
    space.step()
    later, _, _, complete = space.ritz()
    assert not complete
    assert later[0, -1] >= theta[0, -1]


def test_a_complete_space_adds_no_zero():
    # -2 I: complete after one step. A row of zeros after it would add the Ritz value 0 > -2.
    found = log_norm(MatrixOperator(-2 * torch.eye(20, dtype=torch.float64)))
    assert float(found.value) == pytest.approx(-2, abs=1e-14)
    assert bool(found.converged)


class Fake(AbstractOperator):
    """Of any size; a product would be an error."""

    batch_size = 2
    dtype = torch.float64
    device = torch.device("cpu")
    n = 10**8

    def matvec(self, V):
        raise AssertionError("work before the checks")

    rmatvec = select = matvec

    def rounding(self):
        raise AssertionError("work before the checks")


BAD = [
    ({"rtol": 0.0}, r"rtol=0.0; expected a number between 0 and 1"),
    ({"rtol": 1}, "rtol=1;"),
    ({"rtol": math.nan}, "rtol=nan;"),
    ({"rtol": "small"}, "rtol='small'"),
    ({"rtol": True}, "rtol=True"),
    ({"basis_size": 3}, "basis_size=3; expected an integer >= 4"),
    ({"basis_size": 8.0}, "basis_size=8.0"),
    ({"max_restarts": -1}, "max_restarts=-1; expected an integer >= 0"),
    ({"max_restarts": True}, "max_restarts=True"),
    ({"seed": -1}, "seed=-1; expected an integer >= 0"),
    ({"seed": 0.5}, "seed=0.5"),
    ({}, r"33 basis vectors for each of 2 sample\(s\)"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=str)
@figures
def test_bad_arguments(ours, lapack, options, words):
    with pytest.raises(InputError, match=words):
        ours(Fake(), **options)


@pytest.mark.parametrize("op", [torch.eye(3), None, "J"], ids=str)
@figures
def test_what_is_no_operator(ours, lapack, op):
    with pytest.raises(InputError, match=r"expected an operator, such as JacobianOperator\(loop, z\)"):
        ours(op)


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (torch.ones(4), "metric L is"),
        (torch.zeros(3), "singular"),
        (torch.full((3,), torch.nan), "NaN"),
        (2.0, "float"),
    ],
)
@figures
def test_bad_metrics(ours, lapack, metric, words):
    with pytest.raises(InputError, match=words):
        ours(MatrixOperator(torch.eye(3)), metric=metric)


@figures
def test_products_that_are_not_finite(ours, lapack):
    # Samples 0 and 1 are done and dropped when sample 3, the slow one, is still there.
    with pytest.raises(NonFiniteError, match="for sample 3 holds NaN or inf"):
        ours(Counting(MatrixOperator(speeds()), spoilt=3))
    with pytest.raises(NonFiniteError, match="for sample 0 holds NaN"):
        ours(Counting(MatrixOperator(speeds()), spoilt=0))


def test_the_examples_run():
    names = {"torch": torch, "MatrixOperator": MatrixOperator}
    failed, tried = doctest.testmod(lanczos, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert (failed, tried) == (0, 4)
