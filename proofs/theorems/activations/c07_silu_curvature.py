"""C7: the curvature of SiLU."""

import sympy as sp

from proofs import (
    Claim,
    Constant,
    Enclosed,
    Extremum,
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
x_3 = sp.Symbol("x_3", positive=True)


def silu(t):
    return t / (1 + sp.exp(-t))


def second_form(t):
    T = sp.tanh(t / 2)
    return (1 - T**2) * (2 - t * T) / 4


def third_form(t):
    """The negative third derivative, which begins at 0 and is positive until x = 3.4."""
    T = sp.tanh(t / 2)
    return (1 - T**2) * (6 * T - t * (3 * T**2 - 1)) / 8


def switch(t):
    T = sp.tanh(t / 2)
    return 2 - 6 * T**2 - t * T * (2 - 3 * T**2)


T = sp.tanh(x / 2)
half = sp.exp(x / 2)
# Beyond [1/2, 3/2] this rational bound serves, which is below the maximum.
low = sp.Rational(3, 10)
majorant = (3 + x) / (1 + x / 2) ** 2
peak = Root(
    "The fourth derivative has exactly one zero between 1/2 and 3/2, because its switch is monotone there.",
    switch(x_3),
    x_3,
    "1/2",
    "3/2",
)


def _derivative(ctx, point, order):
    """A derivative of x (1 + tanh(x/2)) / 2 from its Taylor coefficients."""
    at = point["x"]
    inner = [at / 2, ctx.mpf(1) / 2, *([ctx.mpf(0)] * (order - 1))]
    share = [c / 2 for c in series_tanh(ctx, inner)]
    share[0] += ctx.mpf(1) / 2
    return (at * share[order] + share[order - 1]) * ctx.factorial(order)


def second(ctx, point):
    return abs(_derivative(ctx, point, 2)), ctx.mpf(1) / 2


def third(ctx, point):
    return abs(_derivative(ctx, point, 3)), ctx.mpf(308182) / 10**6


SPACE = (Reals("x", -30, 30),)

THEOREM = Theorem(
    id="C7",
    title="Curvature of SiLU",
    statement=(
        r"For $\mathrm{silu}(x) = x / (1 + e^{-x})$ and all real $x$: $|\mathrm{silu}''(x)| \le \frac12$, attained at "
        r"$0$, and $|\mathrm{silu}'''(x)| \le c_3 = 0.3081815\ldots$, attained at $\pm x_3$, $x_3 = 1.031958\ldots$, "
        r"the root between $\frac12$ and $\frac32$ of $2 - 6 T^2 = x T (2 - 3 T^2)$ with $T = \tanh(x/2)$."
    ),
    plain=(
        "The slope of SiLU changes by at most 1/2 per unit, and that rate by at most 0.308182. Bounds on how the "
        "Jacobian of a SwiGLU layer changes over a ball rest on these two numbers."
    ),
    symbols=(
        Symbol(x, "positive argument"),
        Symbol(y, "any real argument"),
        Symbol(x_3, "where the third derivative is greatest in modulus"),
    ),
    hypotheses=(Hypothesis("H1", "the argument is real; nothing else"),),
    steps=(
        Identity("The second derivative, with T = tanh(x/2); it is even.", sp.diff(silu(y), y, 2), second_form(y)),
        Nonnegative("T lies strictly inside (-1, 1).", 1 - T**2, 1 / sp.cosh(x / 2) ** 2, strict=True, label="inside"),
        Nonnegative("In particular below 1.", 1 - T, sp.exp(-x / 2) / sp.cosh(x / 2), strict=True, label="below"),
        Nonnegative(
            "The second derivative from above.",
            sp.Rational(1, 2) - second_form(x),
            (2 * T**2 + ref("inside") * x * T) / 4,
        ),
        Identity("At 0 it is the bound.", second_form(y).subs(y, 0), sp.Rational(1, 2)),
        Extremum(
            "The exponential lies above its tangent at 0: exp(x/2) >= 1 + x/2.",
            f=half - x / 2,
            var=x,
            lo=0,
            hi=sp.oo,
            at=sp.Integer(0),
            value=sp.Integer(1),
            factor=sp.Rational(1, 2),
            switch=half - 1,
            slope=half / 2,
            kind="minimum",
            label="tangent",
        ),
        Nonnegative(
            "Squared: exp(x) >= (1 + x/2)^2.",
            sp.exp(x) - (1 + x / 2) ** 2,
            ref("tangent") * (half + 1 + x / 2),
            label="square",
        ),
        Nonnegative(
            "So 1 - T^2 = 4 exp(-x) / (1 + exp(-x))^2 decays at least like 4 / (1 + x/2)^2.",
            4 / (1 + x / 2) ** 2 - (1 - T**2),
            4 * (ref("square") + 2 + sp.exp(-x)) / ((1 + x / 2) ** 2 * (half + 1 / half) ** 2),
            label="decay",
        ),
        Nonnegative(
            "The second derivative from below: x T (1 - T^2) <= x (1 - T^2), and exp(x) + 2 + exp(-x) exceeds 2 x.",
            sp.Rational(1, 2) + second_form(x),
            (
                2 * ref("inside")
                + x * ref("inside") * ref("below")
                + 2 * (ref("square") + (x / 2 - 1) ** 2 + 2 + sp.exp(-x)) / (half + 1 / half) ** 2
            )
            / 4,
        ),
        Identity(
            "The third derivative; it is odd, so a positive argument is enough.",
            -sp.diff(second_form(y), y),
            third_form(y),
        ),
        Identity(
            "The fourth derivative is a positive factor times a switch.",
            sp.diff(third_form(y), y),
            (1 - sp.tanh(y / 2) ** 2) * switch(y) / 4,
        ),
        peak,
        Extremum(
            "On [1/2, 3/2] the switch falls, so minus the third derivative is greatest at its zero.",
            f=third_form(x),
            var=x,
            lo=sp.Rational(1, 2),
            hi=sp.Rational(3, 2),
            at=peak,
            value=third_form(x_3),
            factor=1 / (4 * sp.cosh(x / 2) ** 2),
            switch=switch(x),
        ),
        Sign("There it is positive, so this is also the greatest modulus.", third_form(x), x, "1/2", "3/2"),
        Enclosed("The point, in figures.", x_3, "1031958/1000000", "1031959/1000000", at=peak),
        Enclosed("The value; it is above 3/10.", third_form(x_3), "308181/1000000", "308182/1000000", at=peak),
        Sign(
            "On [0, 1/2] the third derivative is below 3/10 in modulus: from above,", low - third_form(x), x, 0, "1/2"
        ),
        Sign("and from below.", low + third_form(x), x, 0, "1/2"),
        Sign("On [3/2, 14] likewise: from above,", low - third_form(x), x, "3/2", 14),
        Sign("and from below.", low + third_form(x), x, "3/2", 14),
        Nonnegative(
            "Everywhere it is at most (1 - T^2) (6 + 2 x) / 8 in modulus, because 0 <= T < 1, and hence at most "
            "(3 + x) / (1 + x/2)^2: from above,",
            majorant - third_form(x),
            ref("decay") * (6 + 2 * x) / 8 + ref("inside") * (6 * ref("below") + x * (1 + 3 * T**2)) / 8,
        ),
        Nonnegative(
            "and from below.",
            majorant + third_form(x),
            ref("decay") * (6 + 2 * x) / 8 + ref("inside") * (6 + 6 * T + 3 * x * ref("inside")) / 8,
        ),
        Sign("From 14 on, that is below 3/10. The four intervals cover all positive x.", low - majorant, x, 14, sp.oo),
    ),
    source=Source("", derived=True),
    constants=(
        Constant("SILU_SECOND", sp.Rational(1, 2), "upper", "1/2", "1/2", "sup |silu''|"),
        Constant(
            "SILU_THIRD",
            third_form(x_3),
            "upper",
            "3081815/10000000",
            "3081816/10000000",
            "sup |silu'''|",
            at=peak,
        ),
    ),
    claims=(
        Claim("|silu''(x)| <= 1/2", SPACE, second, sharp=True),
        Claim("|silu'''(x)| <= 0.308182", SPACE, third, sharp=True),
    ),
    code=(
        "fpcheck/certify/nodes.py:nodes_of",
        "fpcheck/check/bends.py:nodes_of",
    ),
    remarks=("The third derivative's bound is 0.3081815..., so 0.3081 is too small: an upper bound is rounded up.",),
)
