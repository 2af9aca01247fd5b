"""Pseudospectral abscissa and radius: discs in closed form, normal matrices, and points of a dense grid."""

import cmath
import math
from itertools import pairwise

import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.spectral import pseudospectrum as module
from fpcheck.spectral.operand import DenseMatrices
from fpcheck.spectral.pseudospectrum import pseudospectral_abscissa, pseudospectral_radius

EPS = torch.finfo(torch.float64).eps
EYE = torch.eye(2, dtype=torch.float64)
BOTH = pytest.mark.parametrize("function", [pseudospectral_abscissa, pseudospectral_radius])


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def sigma_min(A, z):
    return torch.linalg.svdvals(z[..., None, None] * torch.eye(len(A)) - A.to(torch.complex128))[..., -1]


def block(c, degrees, b):
    """Two copies of [[l, b], [0, l]] at the pair l = c exp(+-i a), in real numbers: unitarily the same thing."""
    R = c * problems.rotation(degrees) if degrees % 180 else c * math.cos(math.radians(degrees)) * EYE
    return torch.cat([torch.cat([R, b * EYE], dim=1), torch.cat([0 * R, R], dim=1)])


def disc(epsilon, b):
    # Singular values of [[z, -b], [0, z]]: s1 s2 = |z|^2, s1^2 + s2^2 = 2 |z|^2 + b^2. With s2 = epsilon and
    # q = |z|^2: q^2 - 2 epsilon^2 q + epsilon^4 - epsilon^2 b^2 = 0, so q = epsilon^2 + epsilon b.
    return math.sqrt(epsilon**2 + epsilon * b)


@given(st.floats(0.01, 2), st.sampled_from([0, 30, 90, 137, 180]), st.floats(0.01, 100), st.floats(1e-10, 10))
def test_discs_in_closed_form(c, degrees, b, epsilon):
    A, r = block(c, degrees, b), disc(epsilon, b)
    a = math.radians(degrees)
    # Two discs of radius r around c exp(+-i a): furthest right c cos a + r, furthest out c + r.
    for function, exact in ((pseudospectral_abscissa, c * math.cos(a) + r), (pseudospectral_radius, c + r)):
        found = function(A, epsilon)
        # The entries of A themselves are rounded: a relative eps of c, b and epsilon.
        slack = 4 * EPS * (c + r * (1 + b / epsilon) ** 0.5)
        assert abs(float(found.value.value[0]) - exact) <= float(found.value.error[0]) + slack
        assert bool(found.converged[0])
        # First order: the error of sigma_min over the slope 2 r / (2 epsilon + b) of epsilon as a function of r.
        delta = 10 * EPS * float(torch.linalg.vector_norm(A)) + 10 * EPS * abs(complex(found.at[0]))
        slope = 2 * r / (2 * epsilon + b)
        assert 0.5 * delta / slope <= float(found.value.error[0]) <= 2 * delta / slope


@given(st.integers(0, 10**6), st.floats(1e-8, 3))
def test_normal_matrices_move_by_epsilon(seed, epsilon):
    x = (4 * torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 2).tolist()
    A = problems.normal(x[0], x[1], complex(x[2], x[3] + 3), seed=seed)
    lam = [x[0], x[1], complex(x[2], x[3] + 3)]
    for function, exact in (
        (pseudospectral_abscissa, max(complex(v).real for v in lam)),
        (pseudospectral_radius, max(abs(v) for v in lam)),
    ):
        found = function(A, epsilon)
        # The matrix is built with a few roundings of its own.
        assert abs(float(found.value.value[0]) - exact - epsilon) <= float(found.value.error[0]) + 20 * EPS
        assert bool(found.converged[0])


@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(1e-4, 1), st.floats(0, 1.5), st.booleans())
def test_what_must_hold_of_every_matrix(seed, n, epsilon, spread, triangular):
    scale = torch.logspace(-spread, spread, n, dtype=torch.float64)
    A = problems.randn(n, n, seed=seed) * scale / n**0.5
    if triangular:
        A = A.triu()
    lam = torch.linalg.eigvals(A)
    abscissa, radius = pseudospectral_abscissa(A, epsilon), pseudospectral_radius(A, epsilon)
    for found in (abscissa, radius):
        assert bool(found.converged[0])
        # On the border, to the rounding of a singular value.
        z = found.at[0]
        assert abs(float(sigma_min(A, z)) - epsilon) <= 20 * EPS * (float(torch.linalg.vector_norm(A)) + abs(z))
        assert z.imag >= 0
    value, error = float(abscissa.value.value[0]), float(abscissa.value.error[0])
    assert value == float(abscissa.at[0].real)
    # At least the eigenvalue's own disc; at most the numerical abscissa and epsilon.
    assert value >= float(lam.real.max()) + epsilon - error - 1e-9 * epsilon - 1e-13
    assert value <= float(torch.linalg.eigvalsh((A + A.T) / 2)[-1]) + epsilon + error
    modulus = float(radius.value.value[0])
    assert modulus == pytest.approx(abs(complex(radius.at[0])), rel=1e-15, abs=0)
    assert modulus >= float(lam.abs().max()) + epsilon - float(radius.value.error[0]) - 1e-9 * epsilon - 1e-13
    # No point further out lies inside.
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.rand(2, 300, generator=generator, dtype=torch.float64)
    size = float(torch.linalg.matrix_norm(A, 2)) + epsilon
    right = torch.complex(value + error + size * u**6, size * (2 * v - 1))
    out = torch.polar(modulus + float(radius.value.error[0]) + size * u**6, math.pi * v)
    assert (sigma_min(A, right) >= epsilon * (1 - 1e-12) - 1e-14 * size).all()
    assert (sigma_min(A, out) >= epsilon * (1 - 1e-12) - 1e-14 * size).all()


@given(st.integers(0, 10**6))
def test_turning_the_basis_changes_nothing_and_shifts_shift(seed):
    A = problems.randn(5, 5, seed=seed)
    Q = problems.orthogonal(5, seed=seed + 1)
    for function in (pseudospectral_abscissa, pseudospectral_radius):
        one, two = function(A, 0.1), function(Q @ A @ Q.T, 0.1)
        assert ((one.value.value - two.value.value).abs() <= one.value.error + two.value.error).all()
    moved = pseudospectral_abscissa(A + 2 * torch.eye(5), 0.1)
    one = pseudospectral_abscissa(A, 0.1)
    assert ((moved.value.value - 2 - one.value.value).abs() <= one.value.error + moved.value.error).all()
    turned = pseudospectral_radius(-A, 0.1)
    one = pseudospectral_radius(A, 0.1)
    assert ((turned.value.value - one.value.value).abs() <= one.value.error + turned.value.error).all()


@pytest.mark.parametrize(
    ("function", "A", "exact"),
    [
        # The outermost eigenvalue is normal and moves by 0.1 only; a sensitive one inside overtakes it.
        (pseudospectral_abscissa, torch.block_diag(tensor([[0.9]]), block(1.0, 70, 5.0)),
         math.cos(math.radians(70)) + disc(0.1, 5.0)),
        (pseudospectral_radius, torch.block_diag(tensor([[0.9]]), block(0.5, 180, 5.0)), 0.5 + disc(0.1, 5.0)),
        (pseudospectral_radius, torch.block_diag(tensor([[-0.9]]), block(0.5, 0, 5.0)), 0.5 + disc(0.1, 5.0)),
        (pseudospectral_radius, torch.block_diag(tensor([[0.9]]), block(0.5, 100, 5.0)), 0.5 + disc(0.1, 5.0)),
        (pseudospectral_radius, torch.block_diag(problems.rotation(57.3), block(0.6, 115, 5.0), tensor([[-1.1]])),
         0.6 + disc(0.1, 5.0)),
    ],
)  # fmt: skip
def test_the_search_leaves_the_outermost_eigenvalue(monkeypatch, function, A, exact):
    found = function(A, 0.1)
    assert abs(float(found.value.value[0]) - exact) <= float(found.value.error[0]) + 20 * EPS
    assert found.converged.tolist() == [True]
    # Without a single level to look at, it is still at the wrong component, and says so.
    monkeypatch.setattr(module, "_LEVELS", 0)
    cut = function(A, 0.1)
    assert float(cut.value.value[0]) < exact - 1e-3
    assert cut.converged.tolist() == [False]


def at(z, b):
    return block(abs(z), math.degrees(cmath.phase(z)), b)


@pytest.mark.parametrize("axis", [0.0, 2.0])
def test_a_search_that_starts_in_a_dent(axis):
    # Two discs that overlap; the outermost eigenvalue is normal, and its own small disc ends exactly where their border
    # has its dent. The search starts there, where the level touches the border from inside: the arc that lies inside
    # has its middle at the dent, which does not.
    b, epsilon, apart = 5.0, 0.1, 0.5
    r = disc(epsilon, b)
    assert apart < r
    # Beside each other along a vertical line, around the height `axis`.
    dent = 0.2 + math.sqrt(r**2 - apart**2)
    A = torch.block_diag(at(complex(0.2, axis + apart), b), at(complex(dent - epsilon, axis), 0.0))
    if axis:
        A = torch.block_diag(A, at(complex(0.2, axis - apart), b))
    found = pseudospectral_abscissa(A, epsilon)
    assert abs(float(found.value.value[0]) - 0.2 - r) <= float(found.value.error[0]) + 40 * EPS
    assert found.converged.tolist() == [True]
    # Beside each other along a circle of radius c, around the direction `axis`; by the law of cosines the dent is where
    # |z - l| = r.
    c, turn = 2.0, 0.25
    dent = c * math.cos(turn) + math.sqrt(r**2 - (c * math.sin(turn)) ** 2)
    A = torch.block_diag(at(cmath.rect(c, axis + turn), b), at(cmath.rect(dent - epsilon, axis), 0.0))
    if axis:
        A = torch.block_diag(A, at(cmath.rect(c, axis - turn), b))
    found = pseudospectral_radius(A, epsilon)
    assert abs(float(found.value.value[0]) - c - r) <= float(found.value.error[0]) + 40 * EPS
    assert found.converged.tolist() == [True]


@BOTH
def test_a_circle_as_border(function):
    # Around a nilpotent block, and around 0, every point of a circle is a crossing: the pencil is singular.
    for A, r in ((tensor([[0.0, 3.0], [0.0, 0.0]]), 2.0), (torch.zeros(3, 3), 1.0)):
        found = function(A, 1.0)
        assert abs(float(found.value.value[0]) - r) <= float(found.value.error[0])
        assert float(found.value.error[0]) <= 2e-14
        assert found.converged.tolist() == [True]


@BOTH
@pytest.mark.parametrize("epsilon", [1e-2, 1e-4, 1e-6])
def test_grcar_against_a_grid(function, epsilon):
    A = problems.grcar(32)
    found = function(A, epsilon)
    value = float(found.value.value[0])
    assert bool(found.converged[0])
    t = torch.linspace(0, 1, 1500, dtype=torch.float64)
    # A curve a hair further out touches nothing; a hair further in, the point lies inside.
    if function is pseudospectral_abscissa:
        curve, inside = torch.complex(value + 1e-6 + 0 * t, 4 * t), found.at - 1e-5
    else:
        curve, inside = torch.polar(value + 1e-6 + 0 * t, math.pi * t), found.at * (1 - 1e-5)
    assert (sigma_min(A, curve) > epsilon).all()
    assert (sigma_min(A, inside) < epsilon).all()


@BOTH
def test_a_larger_perturbation_reaches_further(function):
    A = problems.randn(12, 12, seed=3)
    sizes = (1e-6, 1e-3, 1e-1, 1.0)
    values = [float(function(A, epsilon).value.value[0]) for epsilon in sizes]
    # At least epsilon further each time: J + E is a perturbation's perturbation, and E may be a shift.
    for (low, high), (small, large) in zip(pairwise(values), pairwise(sizes), strict=True):
        assert high - low >= (large - small) * (1 - 1e-9)


@BOTH
def test_the_error_is_that_of_the_matrix_and_sharp(function):
    # J known to r: the perturbations of size epsilon + r are all possible ones. d/d epsilon of 0.5 + disc.
    A, r, epsilon = block(0.5, 0, 3.0), 1e-7, 0.1
    found = function(DenseMatrices.of(A.unsqueeze(0), tensor([r])), epsilon)
    further = disc(epsilon + r, 3.0) - disc(epsilon, 3.0)
    # Relative slack: second order, r / epsilon, and rounding beside r.
    assert float(found.value.error[0]) == pytest.approx(further, rel=1e-5, abs=0)


@BOTH
def test_a_batch_is_its_samples(function):
    A = torch.stack([problems.randn(4, 4, seed=s) for s in range(3)])
    together = function(A, 0.05)
    assert len(together) == 3
    for i in range(3):
        alone = function(A[i], 0.05)
        assert torch.equal(together.value.value[i], alone.value.value[0])
        assert torch.equal(together.at[i], alone.at[0])
    assert together.epsilon == 0.05


@BOTH
@pytest.mark.parametrize(
    ("J", "epsilon", "error", "words"),
    [
        (torch.eye(2), 0.0, InputError, "epsilon=0.0; expected a finite number > 0"),
        (torch.eye(2), -1.0, InputError, "epsilon=-1.0"),
        (torch.eye(2), math.nan, InputError, "epsilon=nan"),
        (torch.eye(2), math.inf, InputError, "epsilon=inf"),
        (torch.eye(2), True, InputError, "epsilon=True"),
        (torch.eye(2), "0.1", InputError, "epsilon='0.1'"),
        (torch.eye(2), 1e-16, InputError, "not above the rounding of J, 3.1e-15"),
        (torch.eye(501), 0.1, InputError, "n=501; expected n <= 500.*transient_growth"),
        (torch.ones(2, 3), 0.1, InputError, "expected"),
        (torch.full((2, 2), torch.nan), 0.1, NonFiniteError, "NaN"),
    ],
)
def test_bad_arguments(function, J, epsilon, error, words):
    with pytest.raises(error, match=words):
        function(J, epsilon)
