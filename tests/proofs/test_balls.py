"""Ball arithmetic: the exact value is inside, a sign is a proof, and what may be undefined has no finite ball."""

from fractions import Fraction

import pytest
import sympy as sp
from flint import arb
from hypothesis import assume, given
from hypothesis import strategies as st

from proofs import MalformedError, UndecidedError, balls

x = sp.Symbol("x", real=True)
y = sp.Symbol("y", real=True)

RATIONALS = st.fractions(-3, 3, max_denominator=50)
EXPRESSIONS = st.recursive(
    st.sampled_from([x, y, sp.pi, sp.E, sp.Integer(2), sp.Rational(-2, 7)]),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: t[0] + t[1]),
        st.tuples(inner, inner).map(lambda t: t[0] * t[1]),
        st.tuples(inner, st.sampled_from([-3, -2, -1, 2, 3, 4, sp.Rational(1, 2), sp.Rational(-1, 2)])).map(
            lambda t: t[0] ** t[1]
        ),
        *(inner.map(f) for f in (sp.tanh, sp.sin, sp.cos, sp.atan, sp.erf, sp.Abs, sp.log, sp.sinh)),
    ),
    max_leaves=5,
)


@given(EXPRESSIONS, RATIONALS, RATIONALS, RATIONALS, RATIONALS, RATIONALS)
def test_every_value_lies_in_the_ball(expr, a, b, t, c, s):
    # A point of the box, strictly inside or at an end.
    low, high = sorted([balls.rational(a), balls.rational(b)])
    share = abs(balls.rational(t)) / 3
    at_x, at_y = low + share * (high - low), balls.rational(c)
    box = {x: balls.ball(low, high), y: balls.ball(at_y - abs(s), at_y)}
    assume(not expr.has(sp.I, sp.zoo, sp.nan, sp.oo))
    found = balls.enclose(expr, box)
    if not found.is_finite():
        return
    value = expr.subs({x: at_x, y: at_y})
    # A finite ball promises more than an enclosure: that the expression is defined there, and real.
    assert not value.has(sp.zoo, sp.nan, sp.oo)
    exact = sp.N(value, 60, maxn=2000)
    real, imaginary = exact.as_real_imag()
    assert abs(imaginary) < sp.Float("1e-50")
    slack = sp.Rational(1, 10**45) * (1 + abs(sp.Rational(str(real))))
    assert balls.lower(found) - slack <= sp.Rational(str(real)) <= balls.upper(found) + slack


@given(RATIONALS, RATIONALS, RATIONALS)
def test_squares_of_a_ball_around_zero_are_not_negative(a, b, t):
    low, high = sorted([a, b])
    inside = low + abs(t) / 3 * (high - low)
    square = balls.enclose(x**2, {x: balls.ball(low, high)})
    assert balls.upper(square) >= balls.rational(inside) ** 2 >= balls.lower(square)
    # x * x of the ball would reach down to low * high < 0 where the signs differ; here a radius is rounded to 30 bits.
    assert balls.lower(square) >= -balls.upper(square) / 2**28


@pytest.mark.parametrize(
    "expr",
    [
        *(1 / x, x**-2, x**-3, x ** sp.Rational(-1, 2), sp.log(x), sp.sqrt(x), x ** sp.Rational(1, 3), x**sp.pi),
        *(sp.atan(1 / x), sp.tanh(x**-2), sp.exp(-1 / x), sp.cos(sp.log(x))),
        # atan and tanh of everything are bounded, but not defined where their argument is not.
        *(sp.tan(x + sp.Rational(11, 7)), sp.atan(sp.tan(x + sp.Rational(11, 7)))),
    ],
)
def test_a_ball_across_a_singularity_is_not_finite(expr: sp.Expr):
    box = {x: balls.ball(-1, 1)}
    assert not balls.enclose(expr, box).is_finite()
    assert balls.sign(expr, box) is None
    with pytest.raises(UndecidedError):
        balls.require_finite_on(expr, x, -1, 1)


def test_a_ball_that_touches_a_singularity_decides_nothing():
    assert balls.sign(sp.log(x), {x: balls.ball(0, sp.Rational(1, 2))}) is None
    assert balls.sign(1 + sp.sqrt(x), {x: balls.ball(sp.Rational(-1, 10**9), 1)}) is None


def test_a_function_that_is_defined_piece_by_piece_passes():
    balls.require_finite_on(1 / (x**2 - 2 * x + sp.Rational(3, 2)), x, 0, 3)
    balls.require_finite_on(sp.log(1 + x), x, 0, 10)


@pytest.mark.parametrize(
    ("expr", "sign"),
    [
        (sp.pi - sp.Rational(355, 113), -1),
        (sp.exp(-(10**6)), 1),
        (sp.sqrt(2) + sp.sqrt(3) - sp.sqrt(5 + 2 * sp.sqrt(6)), None),  # exactly 0
        (sp.pi - sp.Rational(str(sp.N(sp.pi, 100))), None),  # nearer than 192 bits tell
        ((-8) ** sp.Rational(1, 3), None),  # complex
    ],
)
def test_signs_of_numbers(expr: sp.Expr, sign: int | None):
    assert balls.sign(expr) == sign


@pytest.mark.parametrize(
    ("expr", "said"),
    [
        (x + 1, "symbol x has no interval"),
        (sp.gamma(sp.Rational(1, 3)), "has no ball arithmetic"),
        (sp.Float(1) / 2, "has no ball arithmetic"),
        (sp.I, "has no ball arithmetic"),
        (sp.oo, "has no ball arithmetic"),
        (sp.zoo, "has no ball arithmetic"),
        (sp.nan, "has no ball arithmetic"),
    ],
)
def test_what_has_no_ball_is_refused(expr: sp.Expr, said: str):
    with pytest.raises(MalformedError, match=said):
        balls.enclose(expr)


@pytest.mark.parametrize("value", [0.1, sp.Float(1) / 10, "0.1", sp.pi, sp.oo, "x"])
def test_only_rationals_are_ends(value: object):
    with pytest.raises(MalformedError, match="value="):
        balls.rational(value)


def test_rationals_of_every_kind():
    assert [balls.rational(v) for v in (3, Fraction(1, 3), "2/7", sp.Rational(5, 9))] == [
        3,
        sp.Rational(1, 3),
        sp.Rational(2, 7),
        sp.Rational(5, 9),
    ]


def test_ends_of_a_ball_are_exact_and_tight():
    third = balls.enclose(sp.Rational(1, 3))
    assert balls.lower(third) < sp.Rational(1, 3) < balls.upper(third)
    assert balls.upper(third) - balls.lower(third) < sp.Rational(1, 2**180)
    with pytest.raises(UndecidedError, match="not finite"):
        balls.lower(arb("nan"))


@pytest.mark.parametrize(
    ("expr", "lo", "hi", "sign"),
    [
        (sp.exp(x) - x, -3, 3, 1),
        (sp.exp(x) - x - 1 + sp.Rational(1, 10**6), -1, 1, 1),  # close to 0, so that pieces must be small
        (sp.tanh(x) - 2, -50, 50, -1),
        (x * sp.log(x) + 1, sp.Rational(1, 100), 1, 1),
    ],
)
def test_a_strict_sign_on_an_interval(expr: sp.Expr, lo, hi, sign: int):
    assert balls.sign_on(expr, x, lo, hi)[0] == sign


@pytest.mark.parametrize(
    ("expr", "lo", "hi"),
    [
        (sp.sin(x), -1, 1),  # changes
        (sp.sin(x), 0, 1),  # 0 at an end
        (sp.exp(x) - x - 1, -1, 1),  # 0 in the middle without a change
        (sp.sin(x) - sp.Rational(999, 1000), 1, 2),  # positive between 1.53 and 1.61 only
        (sp.tan(x), 1, 2),  # a pole
        (sp.atan(sp.tan(x)) + 1, 1, 2),  # slope 1 everywhere, with a jump down by pi at pi/2
        (1 + 1 / (x * sp.exp(x)), -1, 1),
    ],
)
def test_no_strict_sign_is_undecided(expr: sp.Expr, lo: int, hi: int):
    with pytest.raises(UndecidedError):
        balls.sign_on(expr, x, lo, hi)


def test_an_empty_interval_is_refused():
    with pytest.raises(MalformedError, match="empty"):
        balls.sign_on(sp.exp(x), x, 2, 1)
