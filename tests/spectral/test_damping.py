import math

import hypothesis.strategies as st
import problems
import pytest
import torch
from hypothesis import given

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.spectral.damping import (
    best_step,
    best_step_estimate,
    critical_step,
    critical_step_estimate,
    damped_radius,
)

# A few roundings of numbers near 1.
TIGHT = {"rel": 1e-13, "abs": 1e-13}

part = st.floats(-3, 3)
spectra = st.lists(st.builds(complex, part, part), min_size=1, max_size=6).map(lambda v: problems.values(*v))


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [
        # 2 (1 - Re l) / |1 - l|^2 by hand.
        ([0.0], 2.0),
        ([-1.0], 1.0),
        ([-3.0], 0.5),
        ([0.5, -3.0], 0.5),
        ([1j, -1j], 1.0),  # 2 * 1 / 2
        ([0.5 + 0.5j, 0.5 - 0.5j], 2.0),  # 2 * 0.5 / 0.5
        ([0.999], 2000.0),
        # No step at all: some Re l >= 1.
        ([1.0], 0.0),
        ([1.0, 0.5], 0.0),
        ([1.01, -0.5], 0.0),
        ([1 + 1j, 1 - 1j], 0.0),
        # The dominant pair of a public FPRM checkpoint as published (GFPR): 2 * 1.126 / (1.126^2 + 1.031^2).
        ([-0.126 + 1.031j, -0.126 - 1.031j], 2.252 / 2.330837),
    ],
)
def test_critical_step_by_hand(eigenvalues, expected):
    assert critical_step(problems.values(*eigenvalues)).item() == pytest.approx(expected, **TIGHT)


def test_huge_eigenvalues_do_not_overflow():
    # 2 (1 - l) / (1 - l)^2 = 2 / (1 + 1e200); the square would be infinite.
    assert critical_step(problems.values(-1e200)).item() == pytest.approx(2e-200)
    assert best_step(problems.values(-1e200))[0].item() == pytest.approx(1e-200)


@given(spectra)
def test_undamped_loop_is_stable_exactly_when_the_critical_step_exceeds_one(lam):
    rho = lam.abs().max().item()
    if abs(rho - 1) > 1e-12:  # roundings decide at the border itself
        assert (critical_step(lam).item() > 1) == (rho < 1)


@given(spectra, st.floats(0.01, 0.99), st.floats(1.01, 3.0))
def test_radius_is_below_one_exactly_below_the_critical_step(lam, inside, outside):
    s = critical_step(lam).item()
    if s > 1e-6:  # below that, 1 - s w differs from 1 by less than its rounding
        assert damped_radius(lam, inside * s).item() < 1
        assert damped_radius(lam, outside * s).item() > 1
    elif s == 0:
        assert damped_radius(lam, inside).item() >= 1


@given(spectra)
def test_no_step_on_a_grid_beats_the_best_step(lam):
    step, rate = best_step(lam)
    # The grid holds s = 0 and reaches beyond the critical step, where the radius exceeds 1.
    grid = torch.linspace(0, max(1.1 * critical_step(lam).item(), 1.0), 2001, dtype=torch.float64)
    radii = damped_radius(lam.expand(len(grid), -1), grid)
    assert rate.item() <= radii.min().item() + 1e-14  # one rounding of a number near 1
    assert damped_radius(lam, step).item() == rate.item()


@pytest.mark.parametrize(
    ("eigenvalues", "step", "rate"),
    [
        ([0.9, 0.5], 2 / 0.6, 0.4 / 0.6),  # two real ones: 2 / (w1 + w2), (w1 - w2) / (w1 + w2) with w = 1 - l
        ([-1.0], 0.5, 0.0),
        ([0.5 + 0.5j, 0.5 - 0.5j], 1.0, math.sqrt(0.5)),  # Re w / |w|^2, |Im w| / |w|
        ([1.0, 0.2], 0.0, 1.0),
    ],
)
def test_best_step_by_hand(eigenvalues, step, rate):
    found = best_step(problems.values(*eigenvalues))
    assert found[0].item() == pytest.approx(step, **TIGHT)
    assert found[1].item() == pytest.approx(rate, abs=1e-13)


@pytest.mark.parametrize("name", ["neimark-sacker", "flip", "mixed", "contraction", "shear"])
def test_iterating_converges_below_the_critical_step_and_not_above(name):
    problem = problems.PROBLEMS[name]()
    s_c = problem.known["critical_step"]

    def distance_after(s: float) -> float:
        loop, z = problem.loop().damped(s), problem.z0
        with torch.no_grad():
            for _ in range(3000):
                z = loop(z)
        return torch.linalg.norm(z - problem.known["fixed_point"]).item()

    # 1 % inside or outside, |1 - s w| is at most 0.9955 or at least 1.0045 for these spectra (the slowest is 1.1i:
    # |1 - s w|^2 = 1 -+ 0.01 * 4 / 2.21); 3000 steps make 1e-6 or 1e+6 of it, from a distance near 3.
    assert distance_after(0.99 * s_c) < 1e-4
    assert distance_after(1.01 * s_c) > 1e4


def test_samples_of_a_batch_are_independent():
    batch = torch.stack([problems.values(0.5, -2.0), problems.values(1.0, 0.1), problems.values(1j, -1j)])
    for function in (critical_step, lambda v: best_step(v)[0], lambda v: best_step(v)[1]):
        assert torch.equal(function(batch), torch.stack([function(one) for one in batch]))
    steps = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    each = [damped_radius(one, float(s)) for one, s in zip(batch, steps, strict=True)]
    assert torch.equal(damped_radius(batch, steps), torch.stack(each))


def test_real_eigenvalues_are_accepted():
    assert critical_step(torch.tensor([0.0, -1.0])).item() == 1.0


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        ([1.0], InputError, "list"),
        (torch.tensor([1, 2]), InputError, "int64"),
        (torch.tensor(1.0), InputError, "n >= 1"),
        (torch.empty(3, 0), InputError, "n >= 1"),
        (torch.tensor([1.0, torch.nan]), NonFiniteError, "NaN"),
        (torch.tensor([1.0, torch.inf]), NonFiniteError, "NaN or inf"),
    ],
)
@pytest.mark.parametrize("function", [critical_step, best_step, lambda v: damped_radius(v, 0.5)])
def test_bad_spectra_are_refused(function, bad, error, words):
    with pytest.raises(error, match=words):
        function(bad)


@st.composite
def perturbed(draw):
    """A spectrum, errors, and another spectrum within them."""
    lam = draw(spectra)
    err = torch.tensor([draw(st.floats(0, 0.3)) for _ in lam], dtype=torch.float64)
    moves = [draw(st.floats(0, 1)) * complex(math.cos(a), math.sin(a)) for a in (draw(st.floats(0, 6.3)) for _ in lam)]
    return lam, err, lam + err * problems.values(*moves)


@given(perturbed())
def test_critical_step_estimate_holds_every_spectrum_within_the_errors(case):
    lam, err, true = case
    estimate = critical_step_estimate(lam, err)
    assert estimate.value == critical_step(lam)
    # 1e-12 relative: the roundings of both sides.
    gap = (critical_step(true) - estimate.value).abs()
    assert bool(gap <= estimate.error + 1e-12 * (1 + estimate.value))


@given(perturbed())
def test_best_step_estimates_hold_every_spectrum_within_the_errors(case):
    lam, err, true = case
    step, rate = best_step_estimate(lam, err)
    moved_step, moved_rate = best_step(true)
    if bool(step.value > 0) and bool(moved_step > 0):
        # The least damped radius moves by at most s e at either's own best step.
        assert bool((moved_rate - rate.value) <= rate.error + 1e-12)


def test_best_step_of_a_single_parabola_by_hand():
    # l = 1j t: |1 - s w|^2 = 1 - 2 s + s^2 (1 + t^2): vertex at 1 / (1 + t^2). With t = 1: s = 0.5, rate sqrt(1/2).
    step, rate = best_step_estimate(problems.values(1j, -1j), torch.full((2,), 1e-6, dtype=torch.float64))
    assert step.value.item() == pytest.approx(0.5, rel=1e-7)
    assert rate.value.item() == pytest.approx(math.sqrt(0.5), **TIGHT)
    assert rate.error.item() == pytest.approx(0.5e-6, rel=1e-6)
    # r(s) is about r* + d^2 / r* here (r'' = 2 / r*), so r* + 1e-6 is reached at d = sqrt(1e-6 r*) = 8.4e-4.
    assert step.error.item() == pytest.approx(math.sqrt(1e-6 * math.sqrt(0.5)), rel=0.01)


def test_no_error_no_doubt():
    lam = problems.values(0.7, -0.4)
    none = torch.zeros(2, dtype=torch.float64)
    assert critical_step_estimate(lam, none).error.item() == 0.0
    step, rate = best_step_estimate(lam, none)
    # Two straight lines cross at the best step, found to the last bits.
    assert step.error.item() <= 1e-12
    assert rate.error.item() == 0.0


def test_an_eigenvalue_that_may_be_one_leaves_the_step_unknown():
    lam, err = problems.values(1 - 1e-9, 0.2), torch.tensor([1e-8, 1e-12], dtype=torch.float64)
    # With l = 1 - 1e-9 the step is limited by the other one, 2 / 0.8; with l >= 1 it is 0.
    estimate = critical_step_estimate(lam, err)
    assert estimate.value.item() == pytest.approx(2.5)
    assert estimate.error.item() >= 2.5
    # Certainly beyond 1: certainly no step.
    assert critical_step_estimate(problems.values(1.1), torch.tensor([0.05], dtype=torch.float64)).error.item() == 0.0
