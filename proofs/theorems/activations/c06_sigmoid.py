"""C6: slope and curvature of the logistic function, the sigmoid of gates."""

import sympy as sp

from proofs import Claim, Constant, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import series_exp, series_product

x = sp.Symbol("x", real=True)
sigma = 1 / (1 + sp.exp(-x))
T = sp.tanh(x / 2)
root3 = sp.sqrt(3)
# 2 / sqrt(3) - 1, in a form that shows that it is positive.
excess = 1 / (2 * root3 + 3)


def _derivative(ctx, point, order):
    """A derivative of 1 / (1 + exp(-x)) from its Taylor coefficients, by long division; odd or even in x."""
    size = abs(point["x"])
    below = series_exp(ctx, [-size, ctx.mpf(-1), *([ctx.mpf(0)] * (order - 1))])
    below[0] += 1
    result = [1 / below[0]]
    for k in range(1, order + 1):
        padded = [*result, ctx.mpf(0)]
        result.append(-series_product(ctx, below[: k + 1], padded)[k] / below[0])
    mirrored = -1 if point["x"] < 0 and order % 2 == 0 else 1
    return result[order] * ctx.factorial(order) * mirrored


def slope(ctx, point):
    return abs(_derivative(ctx, point, 1)), ctx.mpf(1) / 4


def second(ctx, point):
    return abs(_derivative(ctx, point, 2)), 1 / (6 * ctx.sqrt(ctx.mpf(3)))


def third(ctx, point):
    return abs(_derivative(ctx, point, 3)), ctx.mpf(1) / 8


def third_above(ctx, point):
    return _derivative(ctx, point, 3), ctx.mpf(1) / 24


SPACE = (Reals("x", -40, 40),)

THEOREM = Theorem(
    id="C6",
    title="Slope and curvature of the sigmoid",
    statement=(
        r"For $\sigma(x) = 1 / (1 + e^{-x})$ and all real $x$: $0 < \sigma'(x) \le \frac14$, "
        r"$|\sigma''(x)| \le \frac{1}{6\sqrt3} = 0.096225\ldots$ and $-\frac18 \le \sigma'''(x) \le \frac1{24}$. All "
        r"are attained: the first and the lower side of the last at $0$, the second where $\tanh(x/2) = "
        r"\pm\frac1{\sqrt3}$, the upper side of the last where $\tanh^2(x/2) = \frac23$."
    ),
    plain=(
        "A sigmoid gate moves by at most a quarter of its input's movement; its slope changes by at most 0.09623 per "
        "unit, and that rate by at most 1/8."
    ),
    symbols=(Symbol(x, "any real argument"),),
    hypotheses=(Hypothesis("H1", "x is real; nothing else"),),
    steps=(
        Identity("With T = tanh(x/2), the sigmoid is (1 + T)/2.", sigma, (1 + T) / 2),
        Nonnegative("T lies strictly inside (-1, 1).", 1 - T**2, 1 / sp.cosh(x / 2) ** 2, strict=True, label="inside"),
        Nonnegative("Its two sides: above -1 ...", 1 + T, sp.exp(x / 2) / sp.cosh(x / 2), strict=True, label="above"),
        Nonnegative("... and below 1.", 1 - T, sp.exp(-x / 2) / sp.cosh(x / 2), strict=True, label="below"),
        Identity("The derivatives are polynomials in T, because T' = (1 - T^2)/2.", sp.diff(sigma, x), (1 - T**2) / 4),
        Identity("The second,", sp.diff(sigma, x, 2), -T * (1 - T**2) / 4),
        Identity("and the third.", sp.diff(sigma, x, 3), -(1 - T**2) * (1 - 3 * T**2) / 8),
        Nonnegative(
            "The slope is at most 1/4, with equality at T = 0; it is positive by the second step.",
            sp.Rational(1, 4) - (1 - T**2) / 4,
            T**2 / 4,
        ),
        Nonnegative(
            "The second derivative from above: a cubic in T with a double zero at T = -1/sqrt(3), where equality "
            "holds.",
            1 / (6 * root3) + T * (1 - T**2) / 4,
            (T + 1 / root3) ** 2 * (ref("below") + excess) / 4,
        ),
        Nonnegative(
            "From below: the mirror image.",
            1 / (6 * root3) - T * (1 - T**2) / 4,
            (T - 1 / root3) ** 2 * (ref("above") + excess) / 4,
        ),
        Nonnegative(
            "The third derivative from below: with equality at T = 0.",
            sp.Rational(1, 8) - (1 - T**2) * (1 - 3 * T**2) / 8,
            (T**2 + 3 * T**2 * ref("inside")) / 8,
        ),
        Nonnegative(
            "From above: a square, which is 0 at T^2 = 2/3.",
            sp.Rational(1, 24) + (1 - T**2) * (1 - 3 * T**2) / 8,
            3 * (T**2 - sp.Rational(2, 3)) ** 2 / 8,
        ),
    ),
    source=Source("", derived=True),
    constants=(
        Constant("SIGMOID_SLOPE", sp.Rational(1, 4), "upper", "1/4", "1/4", "sup sigma'"),
        Constant("SIGMOID_SECOND", 1 / (6 * root3), "upper", "9622504/100000000", "9622505/100000000", "sup |sigma''|"),
        Constant("SIGMOID_THIRD", sp.Rational(1, 8), "upper", "1/8", "1/8", "sup |sigma'''|"),
    ),
    claims=(
        Claim("sigma'(x) <= 1/4", SPACE, slope, sharp=True),
        Claim("|sigma''(x)| <= 1 / (6 sqrt(3))", SPACE, second, sharp=True),
        Claim("|sigma'''(x)| <= 1/8", SPACE, third, sharp=True),
        Claim("sigma'''(x) <= 1/24", SPACE, third_above, sharp=True, near=({"x": 2.3},)),
    ),
    code=(
        "fpcheck/certify/nodes.py:nodes_of",
        "fpcheck/check/bends.py:nodes_of",
    ),
)
