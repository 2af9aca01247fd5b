"""C5: slope and curvature of tanh."""

import sympy as sp

from proofs import Claim, Constant, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import series_tanh

x = sp.Symbol("x", real=True)
T = sp.tanh(x)
root3 = sp.sqrt(3)
# 2 / sqrt(3) - 1, in a form that shows that it is positive.
excess = 1 / (2 * root3 + 3)


def _derivative(ctx, point, order):
    """A derivative of tanh from its Taylor coefficients."""
    inner = [point["x"], ctx.mpf(1), *([ctx.mpf(0)] * (order - 1))]
    return series_tanh(ctx, inner)[order] * ctx.factorial(order)


def slope(ctx, point):
    return abs(_derivative(ctx, point, 1)), ctx.mpf(1)


def second(ctx, point):
    return abs(_derivative(ctx, point, 2)), 4 / (3 * ctx.sqrt(ctx.mpf(3)))


def third(ctx, point):
    return abs(_derivative(ctx, point, 3)), ctx.mpf(2)


def third_above(ctx, point):
    return _derivative(ctx, point, 3), ctx.mpf(2) / 3


SPACE = (Reals("x", -20, 20),)

THEOREM = Theorem(
    id="C5",
    title="Slope and curvature of tanh",
    statement=(
        r"For all real $x$: $0 < \tanh'(x) \le 1$, $|\tanh''(x)| \le \frac{4}{3\sqrt3} = 0.76980\ldots$ and "
        r"$-2 \le \tanh'''(x) \le \frac23$. All are attained: the first and the lower side of the last at $0$, the "
        r"second where $\tanh x = \pm\frac{1}{\sqrt3}$, the upper side of the last where $\tanh^2 x = \frac23$."
    ),
    plain="tanh stretches by at most 1; its slope changes by at most 0.76981 per unit, and that rate by at most 2.",
    symbols=(Symbol(x, "any real argument"),),
    hypotheses=(Hypothesis("H1", "x is real; nothing else"),),
    steps=(
        Nonnegative("tanh lies strictly inside (-1, 1).", 1 - T**2, 1 / sp.cosh(x) ** 2, strict=True, label="inside"),
        Nonnegative("Its two sides: above -1 ...", 1 + T, sp.exp(x) / sp.cosh(x), strict=True, label="above"),
        Nonnegative("... and below 1.", 1 - T, sp.exp(-x) / sp.cosh(x), strict=True, label="below"),
        Identity(
            "All derivatives are polynomials in T = tanh x, because T' = 1 - T^2: the first,", sp.diff(T, x), 1 - T**2
        ),
        Identity("the second,", sp.diff(T, x, 2), -2 * T * (1 - T**2)),
        Identity("and the third.", sp.diff(T, x, 3), -2 * (1 - T**2) * (1 - 3 * T**2)),
        Nonnegative(
            "The slope is at most 1, with equality at T = 0; it is positive by the first step.", 1 - (1 - T**2), T**2
        ),
        Nonnegative(
            "The second derivative from above: a cubic in T with a double zero at T = -1/sqrt(3), where equality "
            "holds.",
            4 / (3 * root3) + 2 * T * (1 - T**2),
            2 * (T + 1 / root3) ** 2 * (ref("below") + excess),
            label="second above",
        ),
        Nonnegative(
            "From below: the mirror image.",
            4 / (3 * root3) - 2 * T * (1 - T**2),
            2 * (T - 1 / root3) ** 2 * (ref("above") + excess),
            label="second below",
        ),
        Nonnegative(
            "The third derivative from below: with equality at T = 0.",
            2 - 2 * (1 - T**2) * (1 - 3 * T**2),
            2 * T**2 + 6 * T**2 * ref("inside"),
        ),
        Nonnegative(
            "From above: a square, which is 0 at T^2 = 2/3.",
            sp.Rational(2, 3) + 2 * (1 - T**2) * (1 - 3 * T**2),
            6 * (T**2 - sp.Rational(2, 3)) ** 2,
        ),
    ),
    source=Source("", derived=True),
    constants=(
        Constant("TANH_SECOND", 4 / (3 * root3), "upper", "76980035/100000000", "76980036/100000000", "sup |tanh''|"),
        Constant("TANH_THIRD", sp.Integer(2), "upper", 2, 2, "sup |tanh'''|"),
    ),
    claims=(
        Claim("|tanh'(x)| <= 1", SPACE, slope, sharp=True),
        Claim("|tanh''(x)| <= 4 / (3 sqrt(3))", SPACE, second, sharp=True),
        Claim("|tanh'''(x)| <= 2", SPACE, third, sharp=True),
        Claim("tanh'''(x) <= 2/3", SPACE, third_above, sharp=True, near=({"x": 1.1},)),
    ),
    code=(
        "fpcheck/blocks/contractive.py:ContractiveBlock",
        "fpcheck/certify/nodes.py:nodes_of",
        "fpcheck/check/bends.py:nodes_of",
    ),
)
