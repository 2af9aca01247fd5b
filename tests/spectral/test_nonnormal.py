"""Departure from normality in closed form, its error under perturbation, and the figures put together."""

import doctest
import math

import problems
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from problems import small_fprm

from fpcheck.errors import FpcheckError, InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral import growth, kreiss, nonnormal, pseudospectrum
from fpcheck.spectral.nonnormal import commutator_norm, departure_from_normality, non_normality
from fpcheck.spectral.operand import DenseMatrices
from fpcheck.spectral.operator import JacobianOperator

EPS = torch.finfo(torch.float64).eps


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def covers(estimate, exact, i=0):
    # 4 eps: the oracle's own rounding.
    return abs(float(estimate.value[i]) - exact) <= float(estimate.error[i]) + 4 * EPS * abs(exact)


SIZES = st.one_of(st.floats(1e-3, 100), st.floats(-100, -1e-3))


@given(SIZES, SIZES, SIZES, st.integers(0, 1000))
def test_two_by_two_in_closed_form(a, b, d, seed):
    Q = problems.orthogonal(2, seed=seed)
    # Real eigenvalues a, d: what is left is b.
    A = tensor([[a, b], [0.0, d]])
    for matrix in (A, Q @ A @ Q.T):
        assert covers(departure_from_normality(matrix), abs(b))
    # Eigenvalues a +- i sqrt(b c): 2 a^2 + b^2 + c^2 less 2 (a^2 + b c) is (b - c)^2, with b and c of one sign.
    c = abs(d) * math.copysign(1.0, b)
    A = tensor([[a, b], [-c, a]])
    for matrix in (A, Q @ A @ Q.T):
        assert covers(departure_from_normality(matrix), abs(b - c))
    # J'J - JJ' of a nilpotent block is diag(-b^2, b^2).
    assert covers(commutator_norm(tensor([[0.0, b], [0.0, 0.0]])), math.sqrt(2) * b * b)


@pytest.mark.parametrize(
    "A", [problems.normal(0.7, -0.9, 0.2 + 0.6j), problems.orthogonal(40), problems.normal(*[0.5] * 6), torch.eye(3)]
)
def test_normal_matrices_have_none(A):
    departure = departure_from_normality(A)
    size = float(torch.linalg.vector_norm(A))
    assert covers(departure, 0.0)
    # sqrt(n) times 10 eps |J|_F and the departure itself, which is below that.
    assert float(departure.error[0]) <= 20 * EPS * size * len(A) ** 0.5
    assert covers(commutator_norm(A), 0.0)
    # One that is not normal is not covered by such an error.
    shear = (
        A.double()
        + tensor([[0.0, 1e-9]] + [[0.0, 0.0]] * (len(A) - 1)).expand(len(A), 2) @ torch.eye(2, len(A)).double()
    )
    assert not covers(departure_from_normality(shear), 0.0)


def test_a_difference_of_squares_would_lose_what_is_kept_here():
    # Eigenvalues stay what they were: N alone is added, in the basis of the Schur form, so the departure is |N|_F.
    Q = problems.orthogonal(6)
    for size in (1e-4, 1e-8, 1e-12):
        N = problems.randn(6, 6, seed=1).triu(1)
        N = N * (size / torch.linalg.vector_norm(N))
        A = Q @ (torch.diag(tensor([0.9, 0.7, 0.1, -0.3, -0.5, 0.45])) + N) @ Q.T
        departure = departure_from_normality(A)
        assert abs(float(departure.value[0]) - size) <= float(departure.error[0])
        assert float(departure.error[0]) < 2e-14
    lam = torch.linalg.eigvals(A)
    squares = float(A.square().sum() - lam.abs().square().sum())
    # All noise: 1e-16 |J|_F^2 under the root.
    assert abs(math.sqrt(max(0.0, squares)) - size) > size / 2


@given(st.integers(0, 10**6), st.integers(2, 8), st.floats(0, 2))
def test_what_must_hold_of_every_matrix(seed, n, spread):
    A = problems.randn(n, n, seed=seed) * torch.logspace(-spread, spread, n, dtype=torch.float64)
    departure = departure_from_normality(A)
    d, error, size = float(departure.value[0]), float(departure.error[0]), float(torch.linalg.vector_norm(A))
    c = float(commutator_norm(A).value[0])
    # Elsner and Paardekooper's lower end, Henrici's upper end.
    low = math.sqrt(max(0.0, size**2 - math.sqrt(max(0.0, size**4 - c * c / 2))))
    assert low - error <= d <= min(size, ((n**3 - n) / 12) ** 0.25 * math.sqrt(c)) + error
    # Well away from normal the difference of squares is a second way.
    squares = size**2 - float(torch.linalg.eigvals(A).abs().square().sum())
    assert abs(d - math.sqrt(squares)) <= error + 1e-11 * size
    Q = problems.orthogonal(n, seed=seed + 1)
    turned = departure_from_normality(Q @ A @ Q.T)
    assert abs(float(turned.value[0]) - d) <= error + float(turned.error[0])
    # A shift moves the eigenvalues along and nothing else; a factor goes through.
    moved = departure_from_normality(A + 3 * torch.eye(n))
    assert abs(float(moved.value[0]) - d) <= error + float(moved.error[0])
    scaled = departure_from_normality(-1e-170 * A)
    assert float(scaled.value[0]) == pytest.approx(1e-170 * d, rel=1e-9, abs=0)


# Four eigenvalues within 0.07 and a condition number of 5e6: the gradient alone would be short by a factor of 55.
@example(507, 5)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_the_error_covers_perturbations(seed, n):
    r = 1e-7
    E = problems.randn(n, n, seed=seed + 2)
    E = E * (r / torch.linalg.vector_norm(E))
    lam = problems.randn(n, seed=seed)
    N, Q = problems.randn(n, n, seed=seed + 1).triu(1), problems.orthogonal(n, seed=seed + 3)
    for size in (1.0, 1e-3, 0.0):
        A = Q @ (torch.diag(lam) + size * N) @ Q.T
        departure = departure_from_normality(DenseMatrices.of(A.unsqueeze(0), tensor([r])))
        moved = departure_from_normality(A + E)
        rounding = float(departure_from_normality(A).error[0])
        assert abs(float(moved.value[0] - departure.value[0])) <= float(departure.error[0]) + 2 * rounding


# Here the second order is five times the first.
@example(693624, 6, 0.026139521554733352, 0.99)
@given(st.integers(0, 10**6), st.integers(3, 6), st.floats(0.003, 0.3), st.floats(0.01, 10))
def test_the_error_covers_clusters_of_eigenvalues(seed, n, width, close):
    # Eigenvalues within `width`, moved along the worst direction of the most sensitive one by `close` times what would
    # let two of them meet.
    lam = 0.5 + width * problems.randn(n, seed=seed)
    Q = problems.orthogonal(n, seed=seed + 3)
    A = Q @ (torch.diag(lam) + problems.randn(n, n, seed=seed + 1).triu(1)) @ Q.T
    values, X = torch.linalg.eig(A)
    Y = torch.linalg.inv(X)
    condition = torch.linalg.vector_norm(Y, dim=1)
    gap = (values[:, None] - values).abs() + torch.diag(torch.full((n,), math.inf, dtype=torch.float64))
    r = close * float((gap / (condition[:, None] + condition)).min()) / 2
    k = int(condition.argmax())
    directions = (Y[k].conj()[:, None] * X[:, k].conj()).real, problems.randn(n, n, seed=seed + 2)
    departure = departure_from_normality(DenseMatrices.of(A.unsqueeze(0), tensor([r])))
    exact = departure_from_normality(A)
    for E in directions:
        moved = departure_from_normality(A + E * (r / torch.linalg.vector_norm(E)))
        change = abs(float(moved.value[0] - exact.value[0]))
        assert change <= float(departure.error[0] + exact.error[0] + moved.error[0])


@pytest.mark.parametrize("strength", [0.5, 1e-4])
def test_the_error_is_sharp_where_the_matrix_moves_most(strength):
    # The error is r times the length of the gradient, here by differences; sqrt(2) near a normal matrix.
    Q, r, h = problems.orthogonal(3), 1e-9, 1e-7
    A = Q @ (torch.diag(tensor([0.9, 0.4, -0.3])) + strength * tensor([[0, 1, 2], [0, 0, 3], [0, 0, 0]])) @ Q.T
    departure = departure_from_normality(DenseMatrices.of(A.unsqueeze(0), tensor([r])))
    gradient = torch.zeros(9, dtype=torch.float64)
    for i, E in enumerate(torch.eye(9, dtype=torch.float64).view(9, 3, 3)):
        up, down = departure_from_normality(A + h * E), departure_from_normality(A - h * E)
        gradient[i] = (up.value[0] - down.value[0]) / (2 * h)
    length = float(torch.linalg.vector_norm(gradient))
    # Relative slack: (h / departure)^2 = 1e-7 of the differences, and the rounding of float64 beside r, 1e-14 / 1e-9.
    assert float(departure.error[0]) == pytest.approx(r * length, rel=1e-4, abs=0)
    if strength < 1e-3:
        assert length == pytest.approx(math.sqrt(2), rel=1e-3, abs=0)


def test_zeros_of_the_matrix_are_exact():
    # Known to 0.1 where it is not zero: a triangular matrix stays one, and moves by its corner alone.
    A = tensor([[[0.9, 0.5], [0.0, 0.4]]])
    departure = departure_from_normality(DenseMatrices.of(A, tensor([0.1])))
    assert float(departure.error[0]) == pytest.approx(0.1, rel=1e-12, abs=0)
    diagonal = departure_from_normality(DenseMatrices.of(A * torch.eye(2), tensor([0.1])))
    assert (float(diagonal.value[0]), float(diagonal.error[0])) == (0.0, 0.0)


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("n", [2, 3, 5, 8, 12])
def test_defective_matrices_are_known_as_badly_as_they_are_said_to_be(n, value):
    # One eigenvalue n times: the departure is |N|_F = sqrt(n - 1), but rounding spreads the eigenvalues by eps^(1/n).
    Q = problems.orthogonal(n, seed=n)
    departure = departure_from_normality(Q @ problems.jordan(value, n) @ Q.T)
    assert covers(departure, math.sqrt(n - 1))
    assert float(departure.error[0]) > EPS ** (2 / n) / 10
    assert float(departure.error[0]) < math.sqrt(n - 1)


def test_zeros_by_structure_have_no_rounding():
    # Four tokens of one and the same normal block: defective as a whole, and exactly known block by block.
    size, count = 3, 4
    block = problems.normal(0.5, 0.3j)
    lower = problems.randn(size * count, size * count)
    mask = torch.block_diag(*[torch.ones(size, size)] * count).bool()
    A = torch.where(mask, torch.block_diag(*[block] * count), lower.tril())
    exact = float(torch.linalg.vector_norm(torch.where(mask, 0.0, lower.tril())))
    departure = departure_from_normality(A)
    assert covers(departure, exact)
    assert float(departure.error[0]) < 1e-12
    # Turned, the zeros are gone; the figure is still covered, by a larger error.
    Q = problems.orthogonal(size * count)
    turned = departure_from_normality(Q @ A @ Q.T)
    assert covers(turned, exact)
    assert float(turned.error[0]) > 1e-6


def test_the_zero_matrix_and_numbers():
    assert departure_from_normality(torch.zeros(2, 2)).value.tolist() == [0.0]
    assert departure_from_normality(torch.zeros(2, 2)).error.tolist() == [0.0]
    number = departure_from_normality(tensor([[-3.0]]))
    assert (float(number.value[0]), float(number.error[0])) == (0.0, 0.0)


def test_the_figures_come_together():
    A = torch.stack([problems.shear().known["jacobian"], tensor([[0.5, 0.0], [0.0, 0.2]])])
    figures = non_normality(A)
    assert len(figures) == 2
    assert covers(figures.departure, 5.0)
    # |J|_F^2 = 0.81 + 25 + 0.25.
    assert covers(figures.relative_departure, 5 / math.sqrt(26.06))
    assert float(figures.relative_departure.error[0]) == pytest.approx(
        float(figures.departure.error[0]) / math.sqrt(26.06), rel=1e-12, abs=0
    )
    assert torch.equal(figures.departure.value, departure_from_normality(A).value)
    assert torch.equal(figures.kreiss.value.value, kreiss.kreiss_constant(A).value.value)
    assert torch.equal(figures.growth.curve[0], growth.transient_growth(A).curve[0])
    assert figures.explain() == (
        "a perturbation may grow 7.59-fold over 3 steps before it decays; contraction in the 2-norm only from k = 25 "
        "steps on (sample 0, the worst of 2)"
    )
    assert "bound" not in figures.explain() + repr(figures)
    assert len(non_normality(A, max_power=2).growth.curve[0]) == 3
    assert "infinite" in non_normality(1.2 * problems.rotation(80)).explain()
    zero = non_normality(torch.zeros(2, 2))
    assert zero.relative_departure.value.tolist() == [0.0]


def test_an_operator_is_written_out_once(monkeypatch):
    loop, z = small_fprm("plain", torch.float32)
    op = JacobianOperator(loop, z)
    calls = []
    dense = JacobianOperator.dense

    def counted(self, **options):
        calls.append(1)
        return dense(self, **options)

    monkeypatch.setattr(JacobianOperator, "dense", counted)
    figures = non_normality(op, max_power=3)
    assert len(calls) == 1
    exact = non_normality(op.dense().double(), max_power=3)
    # The rounding of float32 is in every error.
    assert (figures.departure.error > 100 * exact.departure.error).all()
    assert (figures.growth.curve_error[0][1:] > 100 * exact.growth.curve_error[0][1:]).all()


@pytest.mark.slow
def test_the_shipped_model():
    from fpcheck import Picard, fixed_point
    from fpcheck.target import Data, find_target

    target = find_target("s3", Data(inputs=1)).to(torch.float64)
    loop = Loop(target.block, target.x, z0=target.z0)
    op = JacobianOperator(loop, fixed_point(loop, target.z0, solver=Picard(max_steps=500)).value)
    figures = non_normality(op)
    J = op.dense()[0]
    for k in range(4):
        power = float(torch.linalg.matrix_norm(torch.linalg.matrix_power(J, k), 2))
        assert abs(float(figures.growth.curve[0][k]) - power) <= float(figures.growth.curve_error[0][k])
    # A causal loop: known block by block, where the whole matrix is close to a defective one.
    assert float(figures.departure.error[0]) < 1e-11
    assert float(figures.kreiss.value.value[0]) <= float(figures.growth.peak.value[0])
    assert figures.kreiss.converged.all()


@pytest.mark.parametrize("function", [departure_from_normality, commutator_norm, non_normality])
@pytest.mark.parametrize(
    ("J", "error", "words"),
    [
        (torch.ones(2, 3), InputError, r"\(1, 2, 3\); expected \(B, n, n\)"),
        (torch.ones(2, 2, dtype=torch.complex128), InputError, "complex128"),
        ("J", InputError, "str"),
        (torch.full((2, 2), torch.nan), NonFiniteError, "NaN"),
    ],
)
def test_bad_arguments(function, J, error, words):
    with pytest.raises(error, match=words):
        function(J)


def test_entries_whose_squares_overflow_are_refused():
    with pytest.raises(InputError, match=r"largest entry of J is 1\.0e\+101; expected at most 1e\+100"):
        non_normality(1e101 * torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize(
    "function",
    [departure_from_normality, kreiss.kreiss_constant, growth.transient_growth,
     lambda J: pseudospectrum.pseudospectral_radius(J, 0.1)],
)  # fmt: skip
def test_lapack_that_gives_up_is_reported(monkeypatch, function):
    def fails(*_arguments, **_options):
        raise torch.linalg.LinAlgError("did not converge")

    for name in ("eig", "eigvals", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, fails)
    with pytest.raises(FpcheckError, match="LAPACK did not converge on these matrices"):
        function(problems.grcar(4))


@pytest.mark.parametrize("module", [nonnormal, growth, kreiss, pseudospectrum], ids=lambda m: m.__name__)
def test_the_examples_run(module):
    results = doctest.testmod(module, extraglobs={"torch": torch}, raise_on_error=False)
    assert results.attempted >= 2
    assert results.failed == 0
