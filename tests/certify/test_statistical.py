"""The share bound is proved by exact rationals, sharp to a few units, covers as promised, and refuses nonsense."""

import math
from fractions import Fraction

import pytest

from fpcheck.bounds import BoundRow, Bounds, statistical
from fpcheck.certify import Verdict
from fpcheck.certify.statistical import Share, share, share_bound
from fpcheck.errors import InputError


def tail(k: int, n: int, p: Fraction) -> Fraction:
    """P(X >= k), exactly."""
    return sum((math.comb(n, j) * p**j * (1 - p) ** (n - j) for j in range(k, n + 1)), Fraction(0))


CASES = [(1, 1), (1, 5), (3, 5), (5, 5), (17, 20), (20, 20), (95, 100), (100, 100), (7, 200)]


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999, 1 - 2.0**-40])
@pytest.mark.parametrize(("k", "n"), CASES)
def test_the_tail_is_below_at_the_bound_and_above_beside_it(k, n, confidence):
    bound, alpha = Fraction(share_bound(k, n, confidence=confidence)), 1 - Fraction(confidence)
    assert 0 < bound < 1
    assert tail(k, n, bound) <= alpha  # the judge is exact
    # The partner: sharp to what the quantile's own error allows.
    assert tail(k, n, bound * (1 + Fraction(1, 10**9))) > alpha


@pytest.mark.parametrize("excess", [1e-12, 1e-3, 0.1])
def test_a_wrong_guess_is_corrected_by_the_proof(excess, monkeypatch):
    # The quantile is a guess, nothing more: one that is too large must not come through.
    from fpcheck.certify import statistical as module

    true = module.stats.beta.ppf
    monkeypatch.setattr(module.stats.beta, "ppf", lambda *args: true(*args) * (1 + excess))
    for k, n in ((3, 5), (17, 20), (95, 100)):
        bound = Fraction(share_bound(k, n))
        assert tail(k, n, bound) <= 1 - Fraction(0.95)
        assert bound > Fraction(float(true(0.05, k, n - k + 1))) * (1 - Fraction(3 * excess))


def test_known_values():
    # n of n: the root of order n of alpha. 0 of n: nothing.
    assert share_bound(0, 50) == 0.0
    assert abs(share_bound(100, 100) - 0.05**0.01) < 1e-12
    assert abs(share_bound(1, 1, confidence=0.95) - 0.05) < 1e-15
    # Clopper and Pearson (1934): 10 of 10 with a lower tail of 0.025 give 0.6915.
    assert round(share_bound(10, 10, confidence=0.975), 4) == 0.6915


def test_the_bound_grows_with_the_count_and_falls_with_the_confidence():
    bounds = [share_bound(k, 30) for k in range(31)]
    assert bounds == sorted(bounds)
    assert bounds[-1] < 1
    assert share_bound(29, 30, confidence=0.9) > share_bound(29, 30, confidence=0.99)


def test_a_large_sample_is_near_its_share():
    # 2 sigma and a half: sqrt(0.9 * 0.1 / 20000) = 0.0021.
    assert 0.9 - 0.0054 < share_bound(18000, 20000) < 0.9


@pytest.mark.parametrize("n", [1, 2, 7, 12])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_it_is_wrong_as_rarely_as_promised(n, confidence):
    # Over all outcomes, exactly, at shares on a grid and just below each bound, where a miss is most likely.
    limits = [Fraction(share_bound(k, n, confidence=confidence)) for k in range(n + 1)]
    edges = [limit * (1 - Fraction(1, 10**6)) for limit in limits[1:]]
    worst = Fraction(0)
    for p in [*(Fraction(i, 40) for i in range(41)), *edges]:
        missed = sum((math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if limits[k] > p), Fraction(0))
        assert missed <= 1 - Fraction(confidence)
        worst = max(worst, missed)
    assert worst > (1 - Fraction(confidence)) * Fraction(999, 1000)  # and no bound could be raised


@pytest.mark.parametrize(
    ("k", "n", "confidence"),
    [(2, 1, 0.9), (-1, 5, 0.9), (0, 0, 0.9), (1, 2, 1.0), (1, 2, 0.0), (1, 2, math.nan), (1.0, 2, 0.9), (True, 2, 0.9)],
)  # fmt: skip
def test_nonsense_is_refused(k, n, confidence):
    with pytest.raises(InputError, match="expected"):
        share_bound(k, n, confidence=confidence)


def rows(verdicts: list[Verdict]) -> Bounds:
    return Bounds("made up", {}, tuple(BoundRow(i, v, "") for i, v in enumerate(verdicts)), ())


def test_only_attracting_inputs_count():
    held = rows([Verdict.PROVED_ATTRACTING] * 9 + [Verdict.PROVED_EXISTS, Verdict.UNKNOWN])
    found = statistical(held)
    assert found == Share(9, 11, 0.95, share_bound(9, 11))
    assert found == share(9, 11)
    assert "9 of 11" in found.text
    assert "independent draws" in found.text
    assert "nothing about any one input" in found.text
    assert float(found.text.split("at least ")[1].split(" %")[0]) / 100 <= found.bound
    with pytest.raises(InputError, match="at least one input"):
        statistical(rows([]))
