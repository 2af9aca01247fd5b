"""The Kreiss constant: closed forms, the Kreiss matrix theorem, and an independent way over pseudospectra."""

import math

import problems
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.spectral import kreiss as module
from fpcheck.spectral.growth import transient_growth
from fpcheck.spectral.kreiss import kreiss_constant
from fpcheck.spectral.operand import DenseMatrices
from fpcheck.spectral.operator import JacobianOperator
from fpcheck.spectral.pseudospectrum import pseudospectral_radius

EPS = torch.finfo(torch.float64).eps
# The refinement stops within 5e-7 of a cell of the maximum, so the value is short of it by about the square of that
# times the curvature. It is a lower estimate: it may be short, never beyond.
SHORT = 1e-9


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def nilpotent(b):
    return tensor([[0.0, b], [0.0, 0.0]])


def value_at(A, z):
    """(|z| - 1) |(zI - A)^-1|_2 from the inverse itself, not from singular values of zI - A."""
    n = len(A)
    inverse = torch.linalg.inv(z * torch.eye(n, dtype=torch.complex128) - A)
    return (abs(z) - 1) * float(torch.linalg.matrix_norm(inverse, 2))


def contracting(n, seed, radius, upper):
    """Random, with a given spectral radius and a non-normal part."""
    A = problems.randn(n, n, seed=seed).triu() * upper
    A.diagonal().copy_(problems.randn(n, seed=seed + 1))
    A.diagonal().mul_(radius / A.diagonal().abs().max())
    Q = problems.orthogonal(n, seed=seed + 2)
    return Q @ A @ Q.T


@given(st.floats(2.1, 1e6))
def test_nilpotent_block_in_closed_form(b):
    # |(zI - J)^-1| depends on r = |z| alone. With s = 1/r and b s = 2 sinh u it is s e^u, so the value is
    # (1 - s) e^u = e^u - (e^2u - 1) / b, largest at e^u = b / 2: K = b/4 + 1/b, at r = 2 b^2 / (b^2 - 4).
    kreiss = kreiss_constant(nilpotent(b))
    exact = b / 4 + 1 / b
    value, error = float(kreiss.value.value[0]), float(kreiss.value.error[0])
    assert exact * (1 - SHORT) - error <= value <= exact + error
    assert bool(kreiss.converged[0])
    # The value is flat to second order, so its place is only known to the square root of the value's accuracy; where
    # the maximum is broad (b near 2: r = 20) more so.
    r = 2 * b * b / (b * b - 4)
    assert abs(abs(complex(kreiss.at[0])) - r) <= 1e-3 * r
    # Powers: |J| = b, in [K, 2 e K].
    assert value <= b <= 2 * math.e * (value + error)


@pytest.mark.parametrize("A", [nilpotent(2.0), nilpotent(1.0), 0.5 * problems.rotation(30), torch.zeros(2, 2)])
def test_numerical_range_in_the_disc_gives_one(A):
    # The resolvent of a matrix with numerical radius w <= 1 is at most 1 / (|z| - 1): no z beats the limit, 1.
    kreiss = kreiss_constant(A)
    assert kreiss.value.value.tolist() == [1.0]
    assert math.isinf(abs(complex(kreiss.at[0])))
    assert kreiss.converged.tolist() == [True]
    assert "1 (in the limit of large z)" in kreiss.explain(0)


@given(st.integers(0, 10**6))
def test_normal_contractions_have_one(seed):
    lam = 0.97 * (2 * torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1)
    kreiss = kreiss_constant(problems.normal(*lam.tolist(), complex(0.5 * lam[0], 0.8), seed=seed))
    assert kreiss.value.value.tolist() == [1.0]


@pytest.mark.parametrize(
    ("A", "z"),
    [(1.2 * problems.rotation(80), 1.2), (torch.diag(tensor([-1.05, 0.5])), 1.05), (problems.jordan(1.01, 3), 1.01)],
)
def test_outside_the_circle_it_is_infinite(A, z):
    kreiss = kreiss_constant(A)
    assert kreiss.value.value.tolist() == [math.inf]
    assert kreiss.value.error.tolist() == [0.0]
    assert abs(abs(complex(kreiss.at[0])) - z) < 1e-4  # the Jordan block's eigenvalue is known to eps^(1/3)
    assert complex(kreiss.at[0]).imag >= 0
    assert "infinite" in kreiss.explain(0)
    assert "outside the unit circle" in kreiss.explain(0)


@pytest.mark.parametrize("A", [torch.eye(3), problems.rotation(80), -torch.eye(2), problems.jordan(1.0, 2)])
def test_on_the_circle_nothing_is_claimed(A):
    # K is 1 for the isometries and infinite for the Jordan block; rounding cannot tell them apart.
    kreiss = kreiss_constant(A)
    assert kreiss.on_circle.tolist() == [True]
    assert kreiss.converged.tolist() == [False]
    assert float(kreiss.value.value[0]) < math.inf
    assert "so it may be infinite" in kreiss.explain(0)


def test_the_error_of_the_matrix_decides_what_is_on_the_circle():
    # 0.9 times a rotation is 0.1 away from the circle.
    A = 0.9 * problems.rotation(80).unsqueeze(0)
    assert kreiss_constant(DenseMatrices.of(A, tensor([0.05]))).converged.tolist() == [True]
    assert kreiss_constant(DenseMatrices.of(A, tensor([0.15]))).on_circle.tolist() == [True]
    # A shear inside and outside the circle: known to 1e-4 it is 1e-2 away, known to 0.1 it is not.
    A = torch.stack([problems.shear().known["jacobian"]] * 2)
    assert kreiss_constant(DenseMatrices.of(A, tensor([1e-4, 0.1]))).on_circle.tolist() == [False, True]


@given(st.integers(0, 10**6), st.integers(2, 8), st.floats(0.1, 0.98), st.floats(0, 3))
def test_kreiss_matrix_theorem(seed, n, radius, upper):
    A = contracting(n, seed, radius, upper)
    kreiss = kreiss_constant(A)
    growth = transient_growth(A, max_power=3000)
    peak = growth.peak
    assert growth.contraction_steps[0] is not None  # so that the peak is that of all powers
    value, error = float(kreiss.value.value[0]), float(kreiss.value.error[0])
    # Zero slack beside the errors themselves: a lower estimate of K is one of the largest power.
    assert value - error <= float(peak.value[0] + peak.error[0])
    # The other half needs K; a search that missed it by a factor e n would fail here.
    assert float(peak.value[0]) <= math.e * n * value


# Where the radius search once stopped at a point of the real axis, far inside.
@example(942362, 6, 0.31959782032544765, 2.57764299167022)
@example(412649, 6, 0.41257795225316574, 2.474737578892985)
@given(st.integers(0, 10**6), st.sampled_from([3, 6]), st.floats(0.3, 0.95), st.floats(0.3, 3))
def test_pseudospectral_radii_give_the_same_constant(seed, n, radius, upper):
    # K = sup over epsilon of (rho_epsilon - 1) / epsilon: another definition and another method.
    A = contracting(n, seed, radius, upper)
    kreiss = kreiss_constant(A)
    value = float(kreiss.value.value[0])
    best = 1.0
    if not math.isinf(abs(complex(kreiss.at[0]))):
        t = abs(complex(kreiss.at[0])) - 1
        best = max(best, _over_radius(A, t / value))  # the epsilon that belongs to the maximum
    for epsilon in torch.logspace(-3, 1, 9).tolist():
        best = max(best, _over_radius(A, epsilon))
    # Each radius is a lower estimate; at the epsilon of the maximum it is the value itself, to a few roundings.
    assert value <= best * (1 + 1e-9)
    # Of two maxima of nearly the same height the search may take the lower one: 0.2 % at most in 2,400 matrices.
    assert value >= best * 0.99


def _over_radius(A, epsilon):
    radius = pseudospectral_radius(A, epsilon)
    assert bool(radius.converged[0])
    return (float(radius.value.value[0]) - 1) / epsilon


@pytest.mark.parametrize(
    "A",
    [
        problems.shear().known["jacobian"],
        problems.jordan(0.5, 6),
        problems.grcar(24) / 2.5,
        problems.grcar(40) / 2.7,
        torch.block_diag(nilpotent(6.0), tensor([[0.9, 0.5], [0.0, 0.9]])),
    ],
    ids=["shear", "jordan", "grcar 24", "grcar 40, by subspaces", "two maxima"],
)
def test_no_point_beats_it_and_its_own_point_attains_it(monkeypatch, A):
    monkeypatch.setattr(module, "_WHOLE", 30)
    kreiss = kreiss_constant(A)
    value, error, z = float(kreiss.value.value[0]), float(kreiss.value.error[0]), complex(kreiss.at[0])
    assert bool(kreiss.converged[0])
    # The oracle inverts: its own error is eps times the condition number, about value / t.
    assert abs(value_at(A, z) - value) <= error + 100 * EPS * len(A) * value * (value / (abs(z) - 1)) * (1 + abs(z))
    assert z.imag >= 0
    generator = torch.Generator().manual_seed(0)
    u, v = torch.rand(2, 400, generator=generator, dtype=torch.float64).tolist()
    for t, a in zip((10 ** (4 * x - 3) for x in u), (math.pi * y for y in v), strict=True):
        assert value_at(A, (1 + t) * complex(math.cos(a), math.sin(a))) <= value * (1 + SHORT)


@given(st.integers(0, 10**6))
def test_turning_the_basis_changes_nothing(seed):
    A = contracting(5, seed, 0.8, 2.0)
    Q = problems.orthogonal(5, seed=seed + 7)
    one, two = kreiss_constant(A), kreiss_constant(Q @ A @ Q.T)
    slack = SHORT * one.value.value + one.value.error + two.value.error
    assert ((one.value.value - two.value.value).abs() <= slack).all()


def test_a_subspace_finds_what_the_whole_space_finds(monkeypatch):
    matrices = torch.stack([contracting(40, seed, 0.9, 0.3) for seed in range(3)])
    whole = kreiss_constant(matrices)
    monkeypatch.setattr(module, "_WHOLE", 30)
    free = kreiss_constant(matrices)
    assert free.converged.all()
    # Two searches of the same maximum, here the same one.
    torch.testing.assert_close(free.value.value, whole.value.value, rtol=1e-6, atol=0)
    assert (whole.value.value > 1.5).all()
    assert not torch.equal(free.value.value, whole.value.value)


def test_a_search_cut_off_says_so_and_stays_below(monkeypatch):
    monkeypatch.setattr(module, "_WHOLE", 30)
    A = problems.grcar(50) / 2.7
    short, full = kreiss_constant(A, max_rounds=1), kreiss_constant(A)
    assert (short.converged.item(), full.converged.item()) == (False, True)
    assert 1 < float(short.value.value[0]) < float(full.value.value[0])
    assert "cut off" in short.explain(0)
    assert "cut off" not in full.explain(0)


def test_a_batch_is_its_samples(monkeypatch):
    monkeypatch.setattr(module, "_WHOLE", 30)
    A = torch.stack([contracting(40, 0, 0.9, 0.3), contracting(40, 3, 0.8, 0.3), 0.5 * problems.orthogonal(40)])
    together = kreiss_constant(A)
    assert len(together) == 3
    for i in range(3):
        alone = kreiss_constant(A[i])
        # Batched products round differently, which the search turns into another point of the same flat top.
        torch.testing.assert_close(together.value.value[i], alone.value.value[0], rtol=1e-6, atol=0)
        assert bool(together.converged[i]) == bool(alone.converged[0])
    assert together.value.value[2] == 1.0


def test_operators_bring_their_rounding():
    narrow, wide = problems.shear(torch.float32), problems.shear()
    kreiss = kreiss_constant(JacobianOperator(narrow.loop(), narrow.z0))
    exact = kreiss_constant(wide.known["jacobian"])
    # 0.9 in float32 is off by 2e-8, which the value 4.8 magnifies.
    gap = (kreiss.value.value - exact.value.value).abs()
    assert (gap > 1e-8).all()
    assert (gap <= kreiss.value.error + SHORT * exact.value.value).all()
    assert (kreiss.value.error < 1e-3).all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_rounds": 0}, InputError, "max_rounds=0; expected an integer >= 1"),
        ({"max_rounds": 2.0}, InputError, "max_rounds=2.0"),
        ({"J": torch.ones(3)}, InputError, r"A.shape=\(3,\)"),
        ({"J": torch.full((2, 2), torch.inf)}, NonFiniteError, "NaN or inf"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        kreiss_constant(**{"J": torch.eye(2)} | arguments)
