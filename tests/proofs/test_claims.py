"""The search for counterexamples: it finds them, sees through rounding, and reports what it could not show."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proofs import Claim, MalformedError, Reals, search

UNIT = (Reals("x", 0.0, 1.0),)


def claim(sides, space=UNIT, **options) -> Claim:
    return Claim("left <= right", space, sides, **options)


def test_a_true_sharp_claim_passes():
    # 2 sqrt(x) <= 1 + x, with equality at 1.
    found = search(claim(lambda ctx, at: (2 * ctx.sqrt(at["x"]), 1 + at["x"]), sharp=True), draws=50)
    assert found.passed
    assert found.complaint() is None
    assert not found.violated
    assert found.twin_refuted
    assert 0.999 < found.reached <= 1


@pytest.mark.parametrize(
    ("name", "sides", "space"),
    [
        ("everywhere", lambda ctx, at: (1 + at["x"], ctx.mpf(1) / 2), UNIT),
        # x^2 + y^2 <= 2 - 1e-3 fails near one corner only, which random points miss and the ascent finds.
        (
            "in a corner",
            lambda ctx, at: (at["x"] ** 2 + at["y"] ** 2, ctx.mpf(1999) / 1000),
            (*UNIT, Reals("y", -1.0, 1.0)),
        ),
        ("right side 0", lambda ctx, at: (at["x"], ctx.mpf(0)), UNIT),
        ("right side negative", lambda ctx, at: (-at["x"], -at["x"] - 1), UNIT),
        ("in a list", lambda ctx, at: (sum(v * v for v in at["v"]), ctx.mpf(3)), (Reals("v", -1.0, 2.0, 3),)),
    ],
)
def test_a_false_claim_is_broken_with_a_point(name, sides, space):
    found = search(claim(sides, space), draws=100)
    assert found.violated, name
    assert not found.passed
    assert "counterexample" in found.complaint()
    assert set(found.point) == {r.name for r in space}


@pytest.mark.parametrize("excess", ["1e-20", "1e-30", "1e-38"])
def test_a_violation_far_below_float64_is_seen(excess: str):
    # Relative excess at every point; float64 sees equality.
    def sides(ctx, at):
        return (1 + at["x"]) * (1 + ctx.mpf(excess)), 1 + at["x"]

    assert search(claim(sides), draws=20).violated


def test_a_violation_among_many_points_that_float64_cannot_tell_apart_is_seen():
    # True below 1/2, false by 1e-30 above.
    def sides(ctx, at):
        return 1 + at["x"], (1 + at["x"]) * (1 + ctx.mpf("1e-30") * (ctx.mpf(1) / 2 - at["x"]))

    assert search(claim(sides), draws=200).violated


def test_rounding_at_50_digits_is_no_violation():
    # Equal in exact arithmetic, different in the last digits.
    def sides(ctx, at):
        return ctx.sqrt(1 + at["x"]) ** 2, 1 + at["x"]

    found = search(claim(sides), draws=50)
    assert found.passed
    assert found.reached == pytest.approx(1, abs=1e-30)


@pytest.mark.parametrize("slack", [1.02, 1.2, 1e6])
def test_a_claim_with_slack_does_not_refute_its_twin(slack: float):
    found = search(claim(lambda ctx, at: (at["x"] ** 2, slack * (at["x"] ** 2 + 0)), near=({"x": 1.0},)), draws=50)
    assert not found.violated
    assert not found.twin_refuted
    assert not found.passed
    assert "too little" in found.complaint()


def test_the_twin_is_one_percent_smaller():
    # 0.5 % below equality everywhere: the twin falls, a claim of sharpness falls too.
    def sides(ctx, at):
        return (1 + at["x"]) * 199, (1 + at["x"]) * 200

    assert search(claim(sides), draws=20).passed
    found = search(claim(sides, sharp=True), draws=20)
    assert not found.passed
    assert "said to be sharp" in found.complaint()


def test_hypotheses_that_no_point_meets_are_a_failure():
    found = search(claim(lambda ctx, at: None), draws=20)
    assert not found.passed
    assert "no point" in found.complaint()


def test_points_outside_the_hypotheses_are_not_counted_against_the_claim():
    def sides(ctx, at):
        return (at["x"], ctx.mpf(1) / 2) if at["x"] <= 0.5 else None

    found = search(claim(sides, near=({"x": 0.5},)), draws=50)
    assert found.passed
    assert 0 < found.accepted < found.tried


def test_infinite_and_undefined_ratios_are_judged_at_50_digits():
    # Overflows in float64; at 80 digits exp(800 x) / exp(800) is at most 1, and the false version above it.
    def true(ctx, at):
        return ctx.exp(800 * at["x"]) * ctx.exp(400), ctx.exp(ctx.mpf(1200))

    def false(ctx, at):
        return ctx.exp(800 * at["x"] + 401) * 2, ctx.exp(ctx.mpf(1200)) / 1000

    good = search(claim(true, near=({"x": 1.0},)), draws=30)
    assert good.accepted > 0
    assert not good.violated
    assert search(claim(false, near=({"x": 1.0},)), draws=30).violated


def test_nan_everywhere_is_no_pass():
    found = search(claim(lambda ctx, at: (ctx.nan, ctx.mpf(1))), draws=20)
    assert not found.passed


def test_a_division_by_zero_everywhere_is_no_pass():
    found = search(claim(lambda ctx, at: (1 / (at["x"] * 0), ctx.mpf(1))), draws=20)
    assert not found.passed


def test_complex_sides_are_refused():
    with pytest.raises(MalformedError, match="complex"):
        search(claim(lambda ctx, at: (ctx.mpc(at["x"], 1), ctx.mpf(2))), draws=20)


def test_nonpositive_right_sides():
    sides = {}
    ratio = claim(lambda ctx, at: sides["now"]).exact_ratio
    for now, expected in [
        ((0, 0), 0),
        ((-1, 0), 0),
        ((1, 0), math.inf),
        ((-2, -1), 0),
        ((-1, -1), 1),
        ((-1, -2), math.inf),
        ((-1, 2), -0.5),
    ]:
        sides["now"] = tuple(map(mpmath.mpf, now))
        assert ratio([0.5]) == expected, now


@pytest.mark.parametrize(
    ("lo", "hi", "log"),
    [(1, 1, False), (2, 1, False), (0, 1, True), (-1, 1, True), (0, math.inf, False), (math.nan, 1, False)],
)
def test_ranges_that_are_none(lo: float, hi: float, log: bool):
    with pytest.raises(MalformedError, match="range x"):
        Reals("x", lo, hi, log=log)


@given(st.floats(0, 1), st.booleans())
def test_coordinates_stay_in_range_and_invert(unit: float, log: bool):
    axis = Reals("x", 0.01, 100.0, log=log)
    value = axis.at(unit)
    assert 0.01 <= value <= 100
    # Two roundings of log or of a difference of size 1.
    assert axis.unit(value) == pytest.approx(unit, abs=1e-12)


@given(st.floats(1.001, 3), st.integers(0, 3))
def test_a_claim_that_is_false_by_a_factor_is_always_broken(factor: float, seed: int):
    space = (Reals("x", -2.0, 2.0), Reals("y", -2.0, 2.0))

    def sides(ctx, at):  # 2xy <= (x^2 + y^2) / factor
        return 2 * at["x"] * at["y"], (at["x"] ** 2 + at["y"] ** 2) / factor

    assert search(claim(sides, space), draws=30, seed=seed).violated


def test_the_same_seed_gives_the_same_search():
    sides = claim(lambda ctx, at: (at["x"] * ctx.cos(at["x"]), ctx.mpf(1)))
    assert search(sides, draws=30, seed=4) == search(sides, draws=30, seed=4)


def test_near_points_are_tried():
    # A peak too narrow for 20 random points and for the ascent, named by the derivation.
    def sides(ctx, at):
        return ctx.exp(-((10**6 * (at["x"] - 0.3)) ** 2)), ctx.mpf(1)

    assert not search(claim(sides), draws=20).passed
    assert search(claim(sides, near=({"x": 0.3},)), draws=20).passed


def test_precise_claims_ascend_at_50_digits():
    seen = set()

    def sides(ctx, at):
        seen.add(ctx is mpmath.mp)
        return at["x"], ctx.mpf(1)

    search(claim(sides, precise=True, near=({"x": 1.0},)), draws=5, ascents=1)
    assert seen == {True}


def test_points_are_exact_floats():
    space = (Reals("a", 1.0, 2.0), Reals("b", -1.0, 1.0, 2))
    point = claim(lambda ctx, at: None, space).point(np.array([0.1, 0.2, 0.3]), mpmath.mp)
    assert list(point) == ["a", "b"]
    assert point["a"] == mpmath.mpf(1.1)
    assert len(point["b"]) == 2


def test_rounding_of_zero_is_no_counterexample_and_a_small_violation_is_one():
    # x - x summed in two orders leaves some 1e-80 of x on the left, against 0; 1e-50 on the left is a real excess.
    def claim(excess: str) -> Claim:
        return Claim("0 <= 0", (Reals("x", 1, 2),), lambda ctx, p: (ctx.mpf(excess) * p["x"], ctx.mpf(0)))

    assert claim("1e-75").exact_ratio([0.5]) == 0
    assert claim("1e-50").exact_ratio([0.5]) == mpmath.inf
    assert search(claim("1e-50"), draws=5).violated
