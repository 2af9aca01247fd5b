"""C3: slope and curvature of GELU in the form with tanh that most code runs."""

import sympy as sp

from proofs import (
    Claim,
    Constant,
    Enclosed,
    Extremum,
    Holds,
    Hypothesis,
    Identity,
    Nonnegative,
    Reals,
    Root,
    Sign,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import series_tanh

x = sp.Symbol("x", positive=True)
y = sp.Symbol("y", real=True)
v = sp.Symbol("v", positive=True)
x_1 = sp.Symbol("x_1", positive=True)
x_3 = sp.Symbol("x_3", positive=True)

k = sp.sqrt(2 / sp.pi)
c = sp.Rational(44715, 10**6)


def inner(t):
    return k * (t + c * t**3)


def inner_slope(t):
    return k * (1 + 3 * c * t**2)


def gelu(t):
    return t * (1 + sp.tanh(inner(t))) / 2


def slope(t):
    T = sp.tanh(inner(t))
    return (1 + T) / 2 + t * (1 - T**2) * inner_slope(t) / 2


def second(t):
    T = sp.tanh(inner(t))
    return (1 - T**2) * (k * (1 + 6 * c * t**2) - t * T * inner_slope(t) ** 2)


def switch(t):
    """The second derivative over (1 - T^2) (inner slope)^2: positive until the slope is greatest."""
    return (1 + 6 * c * t**2) / (k * (1 + 3 * c * t**2) ** 2) - t * sp.tanh(inner(t))


def third(t):
    """The negative third derivative, by the product rule."""
    T, p, b = sp.tanh(inner(t)), inner_slope(t), inner_slope(t) ** 2
    bend = 6 * k * c * t
    parts = 2 * T * p * k * (1 + 6 * c * t**2) - 2 * t * T**2 * p * b - 2 * bend + T * b
    return (1 - T**2) * (parts + t * (1 - T**2) * p * b + 2 * t * T * p * bend)


def size(t):
    """The same with every term taken positive and T = 1: an upper bound without (1 - T^2)."""
    p, b, bend = inner_slope(t), inner_slope(t) ** 2, 6 * k * c * t
    return 2 * p * k * (1 + 6 * c * t**2) + 2 * t * p * b + 2 * bend + b + t * p * b + 2 * t * p * bend


T = sp.tanh(inner(x))
p = inner_slope(x)
bend = 6 * k * c * x
top = k * (1 + 6 * c * x**2)
# cosh of the inner function is 1 + 2 s^2, at least flat = 1 + inner^2 / 2.
s = sp.sinh(inner(x) / 2)
cosh = 1 + 2 * s**2
flat = 1 + inner(x) ** 2 / 2
# Away from its maximum the third derivative is compared with this rational bound.
low = sp.Rational(7, 10)
far = sp.expand(v**12 * (low * flat**2 - size(x)).subs(x, 1 / v))

peak = Root("The switch of the slope has exactly one zero between 1 and 2.", switch(x_1), x_1, 1, 2)
peak_3 = Root(
    "The fourth derivative has exactly one zero between 1/2 and 5/4.", sp.diff(third(x_3), x_3), x_3, "1/2", "5/4"
)


def _derivative(ctx, point, order):
    """A derivative of x (1 + tanh(k (x + c x^3))) / 2 from its Taylor coefficients."""
    at, factor, cubic = point["x"], ctx.sqrt(2 / ctx.pi), ctx.mpf(44715) / 10**6
    series = [at + cubic * at**3, 1 + 3 * cubic * at**2, 3 * cubic * at, cubic]
    share = [s / 2 for s in series_tanh(ctx, [factor * s for s in series[: order + 1]])]
    share[0] += ctx.mpf(1) / 2
    return (at * share[order] + share[order - 1]) * ctx.factorial(order)


def steepest(ctx, point):
    return _derivative(ctx, point, 1), ctx.mpf(1128993069) / 10**9


def flattest(ctx, point):
    return -_derivative(ctx, point, 1), ctx.mpf(128993069) / 10**9


def second_claim(ctx, point):
    return abs(_derivative(ctx, point, 2)), ctx.sqrt(2 / ctx.pi)


def third_claim(ctx, point):
    return abs(_derivative(ctx, point, 3)), ctx.mpf(776692) / 10**6


SPACE = (Reals("x", -8, 8),)

THEOREM = Theorem(
    id="C3",
    title="Slope and curvature of GELU, tanh form",
    statement=(
        r"Let $\mathrm{gelu}(x) = \frac x2 (1 + T)$, $T = \tanh p(x)$, $p(x) = k (x + c x^3)$, $k = \sqrt{2/\pi}$, "
        r"$c = 0.044715$. For all real $x$: $1 - M \le \mathrm{gelu}'(x) \le M$ with $M = \mathrm{gelu}'(x_1) = "
        r"1.1289930\ldots$, attained at $\mp x_1$, where $x_1 = 1.418504\ldots$ is the positive root of $x T = "
        r"\frac{1 + 6 c x^2}{k (1 + 3 c x^2)^2}$; $|\mathrm{gelu}''(x)| \le k = 0.7978845\ldots$, attained at $0$; and "
        r"$|\mathrm{gelu}'''(x)| \le 0.7766914\ldots$, attained at $\pm x_3$, $x_3 = 0.787576\ldots$, the zero of the "
        r"fourth derivative between $\frac12$ and $\frac54$."
    ),
    plain=(
        "The tanh form of GELU stretches by at most 1.1289931, its slope changes by at most 0.797885 per unit, and "
        "that rate by at most 0.776692. The exact form (C2) has other constants, from the fifth figure on: take those "
        "of the form that runs."
    ),
    symbols=(
        Symbol(x, "positive argument"),
        Symbol(y, "any real argument"),
        Symbol(v, "1/x, for large x"),
        Symbol(x_1, "where the slope is greatest"),
        Symbol(x_3, "where the third derivative is greatest in modulus"),
    ),
    hypotheses=(Hypothesis("H1", "the argument is real, and c = 44715/1000000 exactly"),),
    steps=(
        Identity("The slope, by the product rule.", sp.diff(gelu(y), y), slope(y)),
        Identity(
            "It is point-symmetric about 1/2, so a positive argument is enough.", slope(y).subs(y, -y), 1 - slope(y)
        ),
        Identity("The second derivative; it is even.", sp.diff(slope(y), y), second(y)),
        Identity("The third derivative; it is odd.", -sp.diff(second(y), y), third(y)),
        peak,
        Extremum(
            "The second derivative is a positive factor times a switch that falls strictly, as (1 + 2 w)/(1 + w)^2 "
            "does for w = 3 c x^2 > 0: the slope rises until x_1 and falls after it.",
            f=slope(x),
            var=x,
            lo=0,
            hi=sp.oo,
            at=peak,
            value=slope(x_1),
            factor=p**2 / cosh**2,
            switch=switch(x),
            slope=36 * c**2 * x**3 / (k * (1 + 3 * c * x**2) ** 3) + T + x * p / cosh**2,
        ),
        Enclosed("The point, in figures.", x_1, "1418504/1000000", "1418505/1000000", at=peak),
        Enclosed("The slope there.", slope(x_1), "1128993068/1000000000", "1128993069/1000000000", at=peak),
        Identity(
            "At 0 the slope is 1/2, below the maximum and above the minimum.", slope(y).subs(y, 0), sp.Rational(1, 2)
        ),
        Nonnegative("T lies strictly inside (-1, 1).", 1 - T**2, 1 / cosh**2, strict=True, label="inside"),
        Identity("The same as an equation.", (1 - T**2) * cosh**2, sp.Integer(1), label="unit"),
        Nonnegative("In particular T is below 1.", 1 - T, ref("inside") / (1 + T), label="below"),
        Extremum(
            "sinh lies above its argument: s >= p(x)/2, because the difference rises from 0.",
            f=s - inner(x) / 2,
            var=x,
            lo=0,
            hi=sp.oo,
            at=sp.Integer(0),
            value=sp.Integer(0),
            factor=p * sp.sinh(inner(x) / 4),
            switch=sp.sinh(inner(x) / 4),
            slope=sp.cosh(inner(x) / 4) * p / 4,
            kind="minimum",
            label="sinh",
        ),
        Nonnegative("So cosh p >= 1 + p^2/2.", cosh - flat, 2 * ref("sinh") * (s + inner(x) / 2), label="cosh"),
        Holds("The first numbers that enter: k^2 > 6 c.", k**2, ">", 6 * c, label="start"),
        Nonnegative(
            "The second derivative from above: cosh(p)^2 >= 1 + p^2 >= 1 + 6 c x^2.",
            k - second(x),
            ref("inside") * x * T * p**2
            + k
            * ref("inside")
            * (
                ref("cosh") * (cosh + flat)
                + x**2 * ref("start")
                + k**2 * (2 * c * x**4 + c**2 * x**6)
                + inner(x) ** 4 / 4
            )
            - k * ref("unit"),
        ),
        Identity("At 0 it is the bound.", second(y).subs(y, 0), k),
        Holds("More numbers, the coefficients of x^2,", 7 * k**2 / 8 + 6 * c, ">", 3 * k * c, label="x^2"),
        Holds("of x^4", 2 * k**2 * c + k**4 / 4, ">", 3 * k * c + sp.Rational(9, 2) * k * c**2, label="x^4"),
        Holds("and of x^6.", k**2 * c**2 + k**4 * c, ">", sp.Rational(9, 2) * k * c**2, label="x^6"),
        Nonnegative(
            "They make cosh(p)^2 + 1 + 6 c x^2 exceed k x (1 + 3 c x^2)^2, with the squares named here.",
            flat**2 + 1 + 6 * c * x**2 - k * x * (1 + 3 * c * x**2) ** 2,
            2 * (1 - k * x / 4) ** 2
            + 3 * k * c * x**2 * (1 - x) ** 2
            + sp.Rational(9, 2) * k * c**2 * x**4 * (1 - x) ** 2
            + x**2 * ref("x^2")
            + x**4 * ref("x^4")
            + x**6 * ref("x^6")
            + k**4 * (6 * c**2 * x**8 + 4 * c**3 * x**10 + c**4 * x**12) / 4,
            label="squares",
        ),
        Nonnegative(
            "So the second derivative from below.",
            k + second(x),
            ref("inside") * (k * ref("cosh") * (cosh + flat) + k * ref("squares") + x * p**2 * ref("below"))
            - k * ref("unit"),
        ),
        peak_3,
        Extremum(
            "On [1/2, 5/4] minus the third derivative rises until there and falls after it.",
            f=third(x),
            var=x,
            lo=sp.Rational(1, 2),
            hi=sp.Rational(5, 4),
            at=peak_3,
            value=third(x_3),
            factor=sp.Integer(1),
            switch=sp.diff(third(x), x),
        ),
        Sign("There it is positive, so this is also the greatest modulus.", third(x), x, "1/2", "5/4"),
        Enclosed("The point, in figures.", x_3, "787576/1000000", "787577/1000000", at=peak_3),
        Enclosed("The value; it is above 7/10.", third(x_3), "776691/1000000", "776692/1000000", at=peak_3),
        Sign("On [0, 1/2] the third derivative is below 7/10 in modulus: from above,", low - third(x), x, 0, "1/2"),
        Sign("and from below.", low + third(x), x, 0, "1/2"),
        Sign("On [5/4, 6] likewise: from above,", low - third(x), x, "5/4", 6),
        Sign("and from below.", low + third(x), x, "5/4", 6),
        Nonnegative(
            "For large x: 1 - T^2 = 1/cosh(p)^2 <= 1/(1 + p^2/2)^2.",
            1 / flat**2 - (1 - T**2),
            (ref("inside") * ref("cosh") * (cosh + flat) - ref("unit")) / flat**2,
            label="decay",
        ),
        Nonnegative(
            "Everywhere the third derivative is at most a polynomial over (1 + p^2/2)^2 in modulus, every term of it "
            "taken positive, because 0 <= T < 1: from above,",
            size(x) / flat**2 - third(x),
            size(x) * ref("decay")
            + ref("inside")
            * (
                (2 * p * top + p**2 + 2 * x * p * bend) * ref("below")
                + 2 * x * p**3 * (1 + T**2)
                + 4 * bend
                + x * p**3 * T**2
            ),
        ),
        Nonnegative(
            "and from below.",
            size(x) / flat**2 + third(x),
            size(x) * ref("decay")
            + ref("inside")
            * (
                (2 * p * top + p**2 + 2 * x * p * bend) * (1 + T)
                + 2 * x * p**3 * ref("inside")
                + x * p**3 * (1 + ref("inside"))
            ),
        ),
        Identity(
            "That this is below 7/10 from 6 on is a statement about a polynomial in v = 1/x,",
            v**12 * (low * flat**2 - size(x)).subs(x, 1 / v),
            far,
        ),
        Sign("which is positive on [0, 1/6]. The four intervals cover all positive x.", far, v, 0, "1/6"),
    ),
    source=Source("Hendrycks and Gimpel", 2016, "the function; the constants are derived here"),
    constants=(
        Constant(
            "GELU_TANH_SLOPE_MAX",
            slope(x_1),
            "upper",
            "1128993068/1000000000",
            "1128993069/1000000000",
            "sup |gelu'|, tanh form",
            at=peak,
        ),
        Constant(
            "GELU_TANH_SLOPE_MIN",
            1 - slope(x_1),
            "lower",
            "-128993069/1000000000",
            "-128993068/1000000000",
            "inf gelu', tanh form",
            at=peak,
        ),
        Constant("GELU_TANH_SECOND", k, "upper", "7978845/10000000", "7978846/10000000", "sup |gelu''|, tanh form"),
        Constant(
            "GELU_TANH_THIRD",
            third(x_3),
            "upper",
            "7766914/10000000",
            "7766915/10000000",
            "sup |gelu'" + "'" + "'|, tanh form",
            at=peak_3,
        ),
    ),
    claims=(
        Claim("gelu'(x) <= 1.128993069", SPACE, steepest, sharp=True),
        Claim("-gelu'(x) <= 0.128993069", SPACE, flattest, sharp=True),
        Claim("|gelu''(x)| <= sqrt(2/pi)", SPACE, second_claim, sharp=True),
        Claim("|gelu'''(x)| <= 0.776692", SPACE, third_claim, sharp=True),
    ),
    code=("fpcheck/certify/nodes.py:nodes_of",),
)
