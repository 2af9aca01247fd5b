"""C2: slope and curvature of GELU in its exact form, with the error function."""

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
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import series_exp

x = sp.Symbol("x", positive=True)
y = sp.Symbol("y", real=True)


def density(t):
    return sp.exp(-(t**2) / 2) / sp.sqrt(2 * sp.pi)


def distribution(t):
    return (1 + sp.erf(t / sp.sqrt(2))) / 2


def gelu(t):
    return t * distribution(t)


slope = distribution(y) + y * density(y)
# The third derivative is greatest in modulus at x_3, with x_3^2 = w_3 = (7 - sqrt(33)) / 2, here in a form that shows
# its sign. Its value there is phi(x_3) times -peak, and peak = x_3 (4 - w_3).
w_3 = 8 / (7 + sp.sqrt(33))
x_3 = sp.sqrt(w_3)
peak = x_3 * (1 + sp.sqrt(33)) / 2
# For the other side of the bound: the double zero of a cubic below what is to be shown positive.
far = sp.Rational(1, 2) + 8 / peak
half = sp.exp(x**2 / 4)
top_slope = distribution(sp.sqrt(2)) + sp.sqrt(2) * density(sp.sqrt(2))


def _derivative(ctx, point, order):
    """A derivative of x (1 + erf(x / sqrt(2))) / 2 from its Taylor coefficients, erf' being 2/sqrt(pi) exp(-u^2)."""
    at, root2 = point["x"], ctx.sqrt(ctx.mpf(2))
    square = [-at * at / 2, -at, ctx.mpf(-1) / 2, ctx.mpf(0)]
    bell = series_exp(ctx, square[:order])
    erf = [ctx.erf(at / root2), *(ctx.sqrt(2 / ctx.pi) * c / (k + 1) for k, c in enumerate(bell))]
    share = [(1 + erf[0]) / 2, *(c / 2 for c in erf[1:])]
    return (at * share[order] + share[order - 1]) * ctx.factorial(order)


def _top(ctx):
    return (1 + ctx.erf(ctx.mpf(1))) / 2 + ctx.exp(ctx.mpf(-1)) / ctx.sqrt(ctx.pi)


def steepest(ctx, point):
    return _derivative(ctx, point, 1), _top(ctx)


def flattest(ctx, point):
    return -_derivative(ctx, point, 1), _top(ctx) - 1


def second(ctx, point):
    return abs(_derivative(ctx, point, 2)), ctx.sqrt(2 / ctx.pi)


def third(ctx, point):
    w = (7 - ctx.sqrt(ctx.mpf(33))) / 2
    return abs(_derivative(ctx, point, 3)), ctx.sqrt(w / (2 * ctx.pi)) * (4 - w) * ctx.exp(-w / 2)


SPACE = (Reals("x", -12, 12),)

THEOREM = Theorem(
    id="C2",
    title="Slope and curvature of GELU, exact form",
    statement=(
        r"For $\mathrm{gelu}(x) = x \Phi(x)$, where $\Phi$ is the normal distribution function and $\phi = \Phi'$, and "
        r"all real $x$: $1 - c \le \mathrm{gelu}'(x) \le c$ with $c = \Phi(\sqrt2) + \sqrt2\,\phi(\sqrt2) = "
        r"\frac{1 + \mathrm{erf}(1)}2 + \frac{1}{e\sqrt\pi} = 1.1289041\ldots$, attained at $\mp\sqrt2$; "
        r"$|\mathrm{gelu}''(x)| \le \sqrt{2/\pi} = 0.7978845\ldots$, attained at $0$; and $|\mathrm{gelu}'''(x)| \le "
        r"\sqrt{w}\,(4 - w)\,\phi(\sqrt{w}) = 0.778769\ldots$ with $w = \frac{7 - \sqrt{33}}2$, attained at "
        r"$\pm\sqrt{w}$."
    ),
    plain=(
        "GELU with the error function stretches by at most 1.1289042 and, where it falls, is never steeper than "
        "0.1289042; its slope changes by at most 0.797885 per unit, and that rate by at most 0.778770."
    ),
    symbols=(Symbol(x, "positive argument"), Symbol(y, "any real argument")),
    hypotheses=(Hypothesis("H1", "the argument is real; nothing else"),),
    steps=(
        Identity("The slope, by the product rule.", sp.diff(gelu(y), y), slope),
        Identity("It is point-symmetric about 1/2, so a positive argument is enough.", slope.subs(y, -y), 1 - slope),
        Extremum(
            "The second derivative is phi times 2 - x^2, which falls strictly: the slope rises until sqrt(2) and falls "
            "after it.",
            f=slope.subs(y, x),
            var=x,
            lo=0,
            hi=sp.oo,
            at=sp.sqrt(2),
            value=top_slope,
            factor=density(x),
            switch=2 - x**2,
            slope=2 * x,
        ),
        Identity(
            "That value, simplified.", top_slope, (1 + sp.erf(1)) / 2 + sp.exp(-1) / sp.sqrt(sp.pi), label="top slope"
        ),
        Enclosed("In figures.", top_slope, "11289041/10000000", "11289042/10000000"),
        Identity(
            "At 0 the slope is 1/2, below the maximum and above the minimum.", slope.subs(y, 0), sp.Rational(1, 2)
        ),
        Identity("The second derivative; it is even.", sp.diff(slope, y), density(y) * (2 - y**2)),
        Identity("The third derivative; it is odd.", sp.diff(slope, y, 2), density(y) * y * (y**2 - 4)),
        Extremum(
            "The exponential lies above its tangent at 0: exp(x^2/4) >= 1 + x^2/4.",
            f=half - x**2 / 4,
            var=x,
            lo=0,
            hi=sp.oo,
            at=sp.Integer(0),
            value=sp.Integer(1),
            factor=x / 2,
            switch=half - 1,
            slope=x * half / 2,
            kind="minimum",
            label="tangent",
        ),
        Nonnegative(
            "Squared: exp(x^2/2) >= (1 + x^2/4)^2.",
            half**2 - (1 + x**2 / 4) ** 2,
            ref("tangent") * (half + 1 + x**2 / 4),
            label="square",
        ),
        Nonnegative(
            "The second derivative from above: phi(0) - phi(x) (1 - x^2/2) >= 0, doubled. Equality at 0.",
            sp.sqrt(2 / sp.pi) - density(x) * (2 - x**2),
            density(x) * (2 * ref("square") + 2 * x**2 + x**4 / 8),
            label="second above",
        ),
        Nonnegative(
            "From below.",
            sp.sqrt(2 / sp.pi) + density(x) * (2 - x**2),
            density(x) * (2 * ref("square") + 4 + x**4 / 8),
            label="second below",
        ),
        Identity("At 0 the second derivative is the bound.", (density(y) * (2 - y**2)).subs(y, 0), sp.sqrt(2 / sp.pi)),
        Extremum(
            "The exponential again above a tangent, now the one at x^2 = w: exp((x^2 - w)/2) >= 1 + (x^2 - w)/2.",
            f=sp.exp((x**2 - w_3) / 2) - (x**2 - w_3) / 2,
            var=x,
            lo=0,
            hi=sp.oo,
            at=x_3,
            value=sp.Integer(1),
            factor=x,
            switch=sp.exp((x**2 - w_3) / 2) - 1,
            slope=x * sp.exp((x**2 - w_3) / 2),
            kind="minimum",
            label="tangent at w",
        ),
        Identity(
            "Where the value there is phi(sqrt(w)) times sqrt(w) (4 - w), w = (7 - sqrt(33))/2.", x_3 * (4 - w_3), peak
        ),
        Nonnegative(
            "So the third derivative is bounded by its value at sqrt(w): with the tangent in place of the exponential, "
            "what remains is a cubic with a double zero there.",
            density(x_3) * peak - density(x) * x * (4 - x**2),
            density(x) * (peak * ref("tangent at w") + (x - x_3) ** 2 * (x + 2 * x_3 + peak / 2)),
            label="third above",
        ),
        Extremum(
            "For the other side, the tangent once more, at half the exponent ...",
            f=sp.exp((x**2 - w_3) / 4) - (x**2 - w_3) / 4,
            var=x,
            lo=0,
            hi=sp.oo,
            at=x_3,
            value=sp.Integer(1),
            factor=x / 2,
            switch=sp.exp((x**2 - w_3) / 4) - 1,
            slope=x * sp.exp((x**2 - w_3) / 4) / 2,
            kind="minimum",
            label="tangent at half",
        ),
        Holds("... where 1 + (x^2 - w)/4 is positive, because w < 4:", w_3, "<", 4, label="w below 4"),
        Nonnegative(
            "squared, exp((x^2 - w)/2) >= (1 + (x^2 - w)/4)^2.",
            sp.exp((x**2 - w_3) / 2) - (1 + (x**2 - w_3) / 4) ** 2,
            ref("tangent at half") * (sp.exp((x**2 - w_3) / 4) + ref("w below 4") / 4 + x**2 / 4),
            label="square at w",
        ),
        Holds("Two numbers that remain below:", peak * far**2 / 16, "<", 4, label="constant"),
        Holds("and", peak * (far**2 - 2 * far) / 16, "<", peak * (4 - w_3) / 8, label="linear"),
        Nonnegative(
            "The third derivative from the other side: a quartic in x that is positive for x > 0.",
            density(x_3) * peak + density(x) * x * (4 - x**2),
            density(x)
            * (
                peak * ref("square at w")
                + peak * (ref("w below 4") / 4) ** 2
                + x * (peak * (x + 1) * (x - far) ** 2 / 16 + ref("constant") + x * ref("linear"))
            ),
            label="third below",
        ),
        Enclosed("In figures.", density(x_3) * peak, "778769/1000000", "778770/1000000"),
    ),
    source=Source("Hendrycks and Gimpel", 2016, "the function; the constants are derived here"),
    constants=(
        Constant(
            "GELU_ERF_SLOPE_MAX",
            top_slope,
            "upper",
            "11289041/10000000",
            "11289042/10000000",
            "sup |gelu'|, exact form",
        ),
        Constant(
            "GELU_ERF_SLOPE_MIN",
            1 - top_slope,
            "lower",
            "-1289042/10000000",
            "-1289041/10000000",
            "inf gelu', exact form",
        ),
        Constant(
            "GELU_ERF_SECOND",
            sp.sqrt(2 / sp.pi),
            "upper",
            "7978845/10000000",
            "7978846/10000000",
            "sup |gelu''|, exact form",
        ),
        Constant(
            "GELU_ERF_THIRD",
            density(x_3) * peak,
            "upper",
            "778769/1000000",
            "778770/1000000",
            "sup |gelu'" + "'" + "'|, exact form",
        ),
    ),
    claims=(
        Claim("gelu'(x) <= c", SPACE, steepest, sharp=True),
        Claim("-gelu'(x) <= c - 1", SPACE, flattest, sharp=True),
        Claim("|gelu''(x)| <= sqrt(2/pi)", SPACE, second, sharp=True),
        Claim("|gelu'''(x)| <= its value at sqrt(w)", SPACE, third, sharp=True),
    ),
    code=("fpcheck/certify/nodes.py:nodes_of",),
)
