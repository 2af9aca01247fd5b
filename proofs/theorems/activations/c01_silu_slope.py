"""C1: the steepest and the flattest slope of SiLU."""

import sympy as sp

from proofs import Claim, Constant, Enclosed, Extremum, Hypothesis, Identity, Reals, Root, Source, Symbol, Theorem
from proofs.numbers import sigmoid

x = sp.Symbol("x", positive=True)
y = sp.Symbol("y", real=True)
x_star = sp.Symbol("x_star", positive=True)


def logistic(t):
    return 1 / (1 + sp.exp(-t))


def silu(t):
    return t * logistic(t)


slope = logistic(y) + y * logistic(y) * (1 - logistic(y))
slope_at_x = slope.subs(y, x)
peak = Root(
    "The switch 2 - x tanh(x/2) has exactly one root between 2 and 3.",
    2 - x_star * sp.tanh(x_star / 2),
    x_star,
    2,
    3,
)


def steepest(ctx, point):
    s = sigmoid(ctx, point["x"])
    return s + point["x"] * s * (1 - s), ctx.mpf(10998394) / 10**7


def flattest(ctx, point):
    s = sigmoid(ctx, point["x"])
    return -(s + point["x"] * s * (1 - s)), ctx.mpf(998394) / 10**7


THEOREM = Theorem(
    id="C1",
    title="Slope of SiLU",
    statement=(
        r"For $\mathrm{silu}(x) = x / (1 + e^{-x})$ and all real $x$: $1 - c \le \mathrm{silu}'(x) \le c$ with "
        r"$c = \frac12 + \frac{x^*}{4} = 1.0998393\ldots$, where $x^* = 2.399357\ldots$ is the positive root of "
        r"$x \tanh(x/2) = 2$. Both sides are attained, at $\pm x^*$."
    ),
    plain=(
        "SiLU stretches by at most 1.0998394, not by at most 1: a SwiGLU layer's Lipschitz constant must carry this "
        "factor. Downhill it is never steeper than 0.0998394."
    ),
    symbols=(
        Symbol(x, "positive argument"),
        Symbol(y, "any real argument"),
        Symbol(x_star, "where the slope is greatest"),
    ),
    hypotheses=(Hypothesis("H1", "x is real; nothing else"),),
    steps=(
        Identity("The slope, by the product rule.", sp.diff(silu(y), y), slope),
        Identity("It is point-symmetric about 1/2, so x >= 0 is enough.", slope.subs(y, -y), 1 - slope),
        peak,
        Extremum(
            "The second derivative is the logistic function's slope times 2 - x tanh(x/2), which falls strictly: the "
            "slope rises until x* and falls after it. At x*, tanh(x*/2) = 2/x* turns the slope into 1/2 + x*/4.",
            f=slope_at_x,
            var=x,
            lo=0,
            hi=sp.oo,
            at=peak,
            value=sp.Rational(1, 2) + x_star / 4,
            factor=sp.exp(-x) / (1 + sp.exp(-x)) ** 2,
            switch=2 - x * sp.tanh(x / 2),
            slope=sp.tanh(x / 2) + x / 2 / sp.cosh(x / 2) ** 2,
        ),
        Enclosed("The root, in figures.", x_star, "2399357/1000000", "2399358/1000000", at=peak),
        Enclosed("The slope there.", sp.Rational(1, 2) + x_star / 4, "10998393/10000000", "10998394/10000000", at=peak),
        Identity(
            "At 0 the slope is 1/2, below the maximum and above the minimum.", slope.subs(y, 0), sp.Rational(1, 2)
        ),
    ),
    source=Source("", derived=True, place="value also in the Coq proof of 1.099840 for the same slope"),
    constants=(
        Constant(
            "SILU_SLOPE_MAX",
            sp.Rational(1, 2) + x_star / 4,
            "upper",
            "10998393/10000000",
            "10998394/10000000",
            "sup |silu'|",
            at=peak,
        ),
        Constant(
            "SILU_SLOPE_MIN",
            sp.Rational(1, 2) - x_star / 4,
            "lower",
            "-998394/10000000",
            "-998393/10000000",
            "inf silu'",
            at=peak,
        ),
    ),
    claims=(
        Claim("silu'(x) <= 1.0998394", (Reals("x", -60, 60),), steepest, sharp=True),
        Claim("-silu'(x) <= 0.0998394", (Reals("x", -60, 60),), flattest, sharp=True),
    ),
    code=("fpcheck/certify/nodes.py:nodes_of",),
)
