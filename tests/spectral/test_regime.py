import math

import hypothesis.strategies as st
import problems
import pytest
import torch
from hypothesis import given

from fpcheck.errors import InputError
from fpcheck.spectral import Regime, classify, critical_step, period
from fpcheck.spectral.regime import period_estimate

part = st.floats(-2, 2)
spectra = st.lists(st.builds(complex, part, part), min_size=1, max_size=6).map(lambda v: problems.values(*v))


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [
        ([0.5, -0.9], Regime.CONTRACTIVE),
        ([0.99j, -0.99j], Regime.CONTRACTIVE),
        ([-1.0], Regime.FLIP),
        ([-1.5, -1.1, 0.9], Regime.FLIP),
        ([1j, -1j], Regime.NEIMARK_SACKER),
        ([0.9 + 0.9j, 0.9 - 0.9j, 0.99], Regime.NEIMARK_SACKER),
        ([-1.5, 0.9 + 0.9j, 0.9 - 0.9j], Regime.DAMPED_CONTRACTIVE),
        ([1.0, 0.5], Regime.FOLD),
        ([1.5, -0.5], Regime.FOLD),
        ([1.5, -1.5], Regime.FOLD),  # the other unstable one could be damped
        ([1.5, 1.1], Regime.REPELLING),
        ([1.1 + 0.5j, 1.1 - 0.5j], Regime.REPELLING),
        ([1.5, 1.1 + 0.5j, 1.1 - 0.5j], Regime.REPELLING),
    ],
)
def test_regime_by_hand(eigenvalues, expected):
    assert classify(problems.values(*eigenvalues)) is expected


@pytest.mark.parametrize(
    ("eigenvalues", "error", "expected"),
    [
        ([0.99], 0.02, Regime.UNDECIDED),  # stable or not
        ([-1.01], 0.02, Regime.UNDECIDED),
        ([0.99], 0.005, Regime.CONTRACTIVE),
        ([-1.5, 1j, -1j], 0.1, Regime.UNDECIDED),  # flip alone, or mixed
        ([-1.5, 0.8, 0.0], 0.1, Regime.FLIP),
        ([1.5, 1.01], 0.1, Regime.UNDECIDED),  # fold or repelling
        ([1.05 + 1j, 1.05 - 1j], 0.1, Regime.UNDECIDED),  # curable or not
        ([-1.1 + 1e-9j, -1.1 - 1e-9j], 1e-8, Regime.FLIP),  # a double eigenvalue that rounding made a pair
        ([-1.1 + 1e-9j, -1.1 - 1e-9j], 1e-10, Regime.NEIMARK_SACKER),
        ([0.5], math.inf, Regime.UNDECIDED),
    ],
)
def test_what_the_error_leaves_open_is_undecided(eigenvalues, error, expected):
    assert classify(problems.values(*eigenvalues), error) is expected


def test_errors_apply_one_by_one():
    lam = problems.values(0.99, -0.99)
    assert classify(lam, torch.tensor([0.001, 0.001])) is Regime.CONTRACTIVE
    assert classify(lam, torch.tensor([0.001, 0.1])) is Regime.UNDECIDED


@given(spectra, st.floats(0, 0.5), st.randoms())
def test_a_decision_stands_for_every_spectrum_within_the_errors(lam, error, random):
    # Moduli and real parts move by at most the error, arguments of real eigenvalues are kept.
    regime = classify(lam, error)
    moved = lam + problems.values(*[random.uniform(-0.99, 0.99) * error for _ in lam])
    kept_real = torch.equal(lam.imag.abs() <= error, moved.imag.abs() <= 0)
    if regime is not Regime.UNDECIDED and kept_real:
        assert classify(moved) is regime


@given(spectra)
def test_regime_agrees_with_damping(lam):
    regime = classify(lam)
    assert (critical_step(lam).item() == 0) == (regime in (Regime.FOLD, Regime.REPELLING))
    assert (lam.abs().max().item() < 1) == (regime is Regime.CONTRACTIVE)
    assert classify(lam.flip(0)) is classify(lam.conj()) is regime


def test_every_regime_says_what_to_try():
    assert len({regime.text for regime in Regime}) == len(Regime)
    for regime in (Regime.FLIP, Regime.NEIMARK_SACKER, Regime.DAMPED_CONTRACTIVE):
        assert "critical_step" in regime.text
    for regime in (Regime.FOLD, Regime.REPELLING):
        assert "o damping step" in regime.text


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [([-1.1, 0.5], 2.0), ([0.9], math.inf), ([1j, -1j], 4.0), ([-0.2, 0.5 + 0.5j, 0.5 - 0.5j], 8.0)],
)
def test_period_of_the_dominant_mode(eigenvalues, expected):
    assert period(problems.values(*eigenvalues)).item() == pytest.approx(expected)


@pytest.mark.parametrize("bad", [torch.empty(0), torch.ones(2, 2), torch.tensor(1.0)])
def test_bad_spectra_are_refused(bad):
    with pytest.raises(InputError, match="one sample"):
        classify(bad)


def test_period_knows_its_error():
    # An angle of pi/4 known to asin(0.01 / 1): periods 8 (1 +- 0.0127).
    lam = problems.values(*(complex(math.cos(a), math.sin(a)) for a in (math.pi / 4, -math.pi / 4)))
    estimate = period_estimate(lam, torch.full((2,), 0.01, dtype=torch.float64))
    assert estimate.value.item() == pytest.approx(8.0)
    turn = math.asin(0.01)
    assert estimate.error.item() == pytest.approx(2 * math.pi / (math.pi / 4 - turn) - 8.0, rel=1e-9)
    # A pair that may be real may have any period.
    near = problems.values(complex(1, 0.001), complex(1, -0.001))
    assert period_estimate(near, torch.full((2,), 0.01, dtype=torch.float64)).error.item() == math.inf
    # Real ones keep their angle.
    for value, turns in ((-1.1, 2.0), (0.9, math.inf)):
        alone = period_estimate(problems.values(value), torch.tensor([1e-9], dtype=torch.float64))
        assert (alone.value.item(), alone.error.item()) == (turns, 0.0)
    # Two that may each be the dominant one: the period is 2 or infinite, who knows.
    tie = period_estimate(problems.values(-1.0, 1.0), torch.full((2,), 1e-9, dtype=torch.float64))
    assert tie.error.item() == math.inf
