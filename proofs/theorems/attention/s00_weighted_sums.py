"""S0: Cauchy-Schwarz, the variance, and how much it can be, for sums with weights."""

import sympy as sp

from proofs import Claim, Hypothesis, Identity, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import softmax

w = sp.Symbol("w", nonnegative=True)
x = sp.Symbol("x", real=True)
y = sp.Symbol("y", real=True)
X = sp.Symbol("X", positive=True)
Y = sp.Symbol("Y", nonnegative=True)
S = sp.Symbol("S", real=True)
p = sp.Symbol("p", nonnegative=True)
mu = sp.Symbol("mu", real=True)
m2 = sp.Symbol("m_2", nonnegative=True)
lo = sp.Symbol("a", real=True)
hi = sp.Symbol("b", real=True)

TERMS = Totals((w, x, y), {w * x**2: X, w * y**2: Y, w * x * y: S})
KEYS = Totals((p, x), {p: 1, p * x: mu, p * x**2: m2})


def cauchy_schwarz(ctx, point):
    weights, a, b = point["w"], point["x"], point["y"]

    def total(f, g):
        return sum((u * s * t for u, s, t in zip(weights, f, g, strict=True)), ctx.mpf(0))

    return total(a, b) ** 2, total(a, a) * total(b, b)


def _mean_and_variance(ctx, point):
    weights = softmax(ctx, point["s"])
    mean = sum((u * v for u, v in zip(weights, point["x"], strict=True)), ctx.mpf(0))
    return mean, sum((u * (v - mean) ** 2 for u, v in zip(weights, point["x"], strict=True)), ctx.mpf(0))


def mean_square(ctx, point):
    weights = softmax(ctx, point["s"])
    mean, _ = _mean_and_variance(ctx, point)
    return mean**2, sum((u * v * v for u, v in zip(weights, point["x"], strict=True)), ctx.mpf(0))


def range_bound(ctx, point):
    _, variance = _mean_and_variance(ctx, point)
    return variance, (max(point["x"]) - min(point["x"])) ** 2 / 4


WEIGHTED = (Reals("s", -12, 12, 4), Reals("x", -2, 2, 4))

THEOREM = Theorem(
    id="S0",
    title="Sums with weights: Cauchy-Schwarz and the variance",
    statement=(
        r"For any number of weights $w_j \ge 0$ and reals $x_j, y_j$: $\left(\sum_j w_j x_j y_j\right)^2 \le \sum_j "
        r"w_j x_j^2 \sum_j w_j y_j^2$. If the weights $p_j \ge 0$ sum to 1 and $\mu = \sum_j p_j x_j$, then $\mu^2 "
        r"\le \sum_j p_j x_j^2$, that is $\mathrm{Var}_p(x) = \sum_j p_j (x_j - \mu)^2 = \sum_j p_j x_j^2 - \mu^2 "
        r"\ge 0$; and if $a \le x_j \le b$ for all $j$, then $\mathrm{Var}_p(x) \le (b - a)^2 / 4$. Every one of "
        r"these can be an equality."
    ),
    plain=(
        "Softmax weights are a probability, so what attention does to a perturbation is a mean, a variance or a "
        "covariance. These are the three inequalities that bound them, whatever the number of keys."
    ),
    symbols=(
        Symbol(w, "weight of a term"),
        Symbol(x, "first number of a term"),
        Symbol(y, "second number of a term"),
        Symbol(X, "sum of w x^2"),
        Symbol(Y, "sum of w y^2"),
        Symbol(S, "sum of w x y"),
        Symbol(p, "probability of a key"),
        Symbol(mu, "mean, the sum of p x"),
        Symbol(m2, "second moment, the sum of p x^2"),
        Symbol(lo, "lower end of the x"),
        Symbol(hi, "upper end of the x"),
    ),
    hypotheses=(
        Hypothesis("H1", "each x is at least a", x - lo),
        Hypothesis("H2", "each x is at most b", hi - x),
    ),
    steps=(
        Nonnegative(
            "One term of a sum of squares with weights; X and S do not depend on the term.",
            w * (S * x - X * y) ** 2,
            w * (S * x - X * y) ** 2,
            label="square",
        ),
        Summed(
            "The sum of these squares over all terms, multiplied out.", "square", TERMS, X * (X * Y - S**2), "squares"
        ),
        Nonnegative(
            "Divide by X, if it is positive. If X = 0, every w x^2 is 0, hence every w x y, and both sides are 0.",
            X * Y - S**2,
            ref("squares") / X,
            label="Cauchy-Schwarz",
        ),
        Nonnegative("One term of the variance.", p * (x - mu) ** 2, p * (x - mu) ** 2, label="deviation"),
        Summed("The variance, multiplied out; the probabilities sum to 1.", "deviation", KEYS, m2 - mu**2, "variance"),
        Nonnegative(
            "Each x lies between a and b, so this product has no negative factor.",
            p * (hi - x) * (x - lo),
            p * ref("H1") * ref("H2"),
            label="between",
        ),
        Summed("Its mean.", "between", KEYS, (lo + hi) * mu - lo * hi - m2, "mean"),
        Nonnegative(
            "The variance is short of a quarter of the squared range by that mean and by a square.",
            (hi - lo) ** 2 / 4 - (m2 - mu**2),
            ref("mean") + (mu - (lo + hi) / 2) ** 2,
            label="range",
        ),
        Identity(
            "Equality there: two keys of probability 1/2, at the ends a and b.",
            (lo**2 + hi**2) / 2 - ((lo + hi) / 2) ** 2,
            (hi - lo) ** 2 / 4,
        ),
    ),
    source=Source("Cauchy, Schwarz; Popoviciu", 1935, "inequality on variances"),
    claims=(
        Claim(
            "(sum w x y)^2 <= sum w x^2 sum w y^2",
            (Reals("w", 0, 2, 4), Reals("x", -2, 2, 4), Reals("y", -2, 2, 4)),
            cauchy_schwarz,
            sharp=True,
            near=({"w": [1, 1, 1, 0.5], "x": [1, -0.5, 0.2, 1], "y": [2, -1, 0.4, 2]},),
        ),
        Claim(
            "mean^2 <= second moment",
            WEIGHTED,
            mean_square,
            sharp=True,
            near=({"s": [0, 1, -1, 0], "x": [1, 1, 1, 1]},),
        ),
        Claim(
            "variance <= range^2 / 4",
            WEIGHTED,
            range_bound,
            sharp=True,
            near=({"s": [6, 6, -6, -6], "x": [2, -2, 0, 1]},),
        ),
    ),
    remarks=(
        "With weights 1 and coordinates as terms, the first inequality is that of Cauchy and Schwarz for vectors.",
        "With |x| in place of x, the second one says that a mean of lengths is at most the root of the mean square.",
    ),
)
