"""S2: the softmax Jacobian from the maximum norm to the sum norm, exactly."""

import sympy as sp

from proofs import (
    Claim,
    Constant,
    Fact,
    Hypothesis,
    Identity,
    Nonnegative,
    NotChecked,
    Reals,
    Source,
    Summed,
    Symbol,
    Theorem,
    Totals,
    ref,
)
from proofs.numbers import softmax

p = sp.Symbol("p", nonnegative=True)
x = sp.Symbol("x", real=True)
y = sp.Symbol("y", real=True)
m_x = sp.Symbol("mu_x", real=True)
m_y = sp.Symbol("mu_y", real=True)
xx = sp.Symbol("m_xx", nonnegative=True)
yy = sp.Symbol("m_yy", nonnegative=True)
xy = sp.Symbol("m_xy", real=True)
top = sp.Symbol("V", nonnegative=True)
x_j = sp.Symbol("x_j", real=True)
p_j = sp.Symbol("p_j", nonnegative=True)
mean_rest = sp.Symbol("mu_r", real=True)
square_rest = sp.Symbol("m_r", nonnegative=True)
mass = sp.Symbol("P", nonnegative=True)

KEYS = Totals(
    (p, x, y),
    {p: 1, p * x: m_x, p * y: m_y, p * x**2: xx, p * y**2: yy, p * x * y: xy},
)


def variance(value):
    """The variance as a function of one entry, the others fixed."""
    return square_rest + p_j * value**2 - (mean_rest + p_j * value) ** 2


def exact_norm(ctx, weights):
    """4 max over sets S of p(S)(1 - p(S)), by going through all sets."""
    best = ctx.mpf(0)
    for bits in range(2 ** len(weights)):
        inside = sum((w for k, w in enumerate(weights) if bits >> k & 1), ctx.mpf(0))
        best = max(best, 4 * inside * (1 - inside))
    return best


def _image_sum(ctx, weights, direction):
    mean = sum((u * v for u, v in zip(weights, direction, strict=True)), ctx.mpf(0))
    return sum((abs(u * (v - mean)) for u, v in zip(weights, direction, strict=True)), ctx.mpf(0))


def slope(ctx, point):
    weights = softmax(ctx, point["s"])
    return _image_sum(ctx, weights, point["x"]), exact_norm(ctx, weights)


def attained(ctx, point):
    """The best of all sign vectors reaches the formula: the other inequality."""
    weights = softmax(ctx, point["s"])
    signs = ([ctx.mpf(1 if bits >> k & 1 else -1) for k in range(len(weights))] for bits in range(2 ** len(weights)))
    return exact_norm(ctx, weights), max(_image_sum(ctx, weights, x) for x in signs)


def at_most_one(ctx, point):
    weights = softmax(ctx, point["s"])
    return _image_sum(ctx, weights, point["x"]), ctx.mpf(1)


def chord(ctx, point):
    first, second = softmax(ctx, point["s"]), softmax(ctx, point["t"])
    gap = sum((abs(u - v) for u, v in zip(first, second, strict=True)), ctx.mpf(0))
    return gap, max(abs(u - v) for u, v in zip(point["s"], point["t"], strict=True))


SPACE = (Reals("s", -6, 6, 4), Reals("x", -1, 1, 4))

THEOREM = Theorem(
    id="S2",
    title="Softmax Jacobian from maximum to sum",
    statement=(
        r"For $p = \mathrm{softmax}(s)$ and $J = \mathrm{diag}(p) - p p'$: $\|J\|_{\infty \to 1} = \max_{|x|_\infty "
        r"\le 1} |J x|_1 = 4 \max_S p(S) (1 - p(S)) \le 1$, where $S$ runs over the sets of keys and $p(S) = \sum_{j "
        r"\in S} p_j$. Hence $|\mathrm{softmax}(s) - \mathrm{softmax}(t)|_1 \le |s - t|_\infty$. The value 1 is "
        r"attained exactly if some set of keys has probability $\frac12$."
    ),
    plain=(
        "If no score moves by more than h, the attention weights move by at most h in total, whatever the number of "
        "keys, and by less where attention is concentrated: 4 p (1 - p) if one key holds the weight p > 1/2."
    ),
    symbols=(
        Symbol(p, "probability of a key"),
        Symbol(x, "entry of a direction, |x| <= 1"),
        Symbol(y, "entry of a sign vector, or of any second direction"),
        Symbol(m_x, "sum of p x"),
        Symbol(m_y, "sum of p y"),
        Symbol(xx, "sum of p x^2"),
        Symbol(yy, "sum of p y^2"),
        Symbol(xy, "sum of p x y"),
        Symbol(top, "greatest variance of a direction in the unit cube"),
        Symbol(x_j, "one entry, while the others stay"),
        Symbol(p_j, "its key's probability"),
        Symbol(mean_rest, "sum of p x over the other keys"),
        Symbol(square_rest, "sum of p x^2 over the other keys"),
        Symbol(mass, "probability of the set S of keys with sign +1"),
    ),
    hypotheses=(
        Hypothesis("H1", "an entry is at most 1", 1 - x_j),
        Hypothesis("H2", "and at least -1", 1 + x_j),
        Hypothesis("H3", "a probability is at most 1", 1 - p_j),
    ),
    facts=(
        Fact("F1", "V bounds the variance of x", top - (xx - m_x**2), "definition of V", axiom=True),
        Fact("F2", "V bounds the variance of y", top - (yy - m_y**2), "definition of V", axiom=True),
    ),
    steps=(
        Nonnegative(
            "|J x|_1 is the greatest y' J x over sign vectors y, and y' J x is the covariance of x and y. One key's "
            "term of the variance of x - y.",
            p * (x - y - (m_x - m_y)) ** 2,
            p * (x - y - (m_x - m_y)) ** 2,
            label="difference",
        ),
        Summed(
            "The variance of x - y is not negative.",
            "difference",
            KEYS,
            xx - 2 * xy + yy - (m_x - m_y) ** 2,
            label="polarised",
        ),
        Nonnegative(
            "So the covariance is at most the mean of the two variances, hence at most the greatest variance V.",
            top - (xy - m_x * m_y),
            ref("F1") / 2 + ref("F2") / 2 + ref("polarised") / 2,
            label="diagonal",
        ),
        Nonnegative(
            "And V is reached at signs: as a function of one entry, the variance lies below its chord between -1 and "
            "1. So moving one entry after the other to the better end never lowers it.",
            (1 + x_j) / 2 * variance(1) + (1 - x_j) / 2 * variance(-1) - variance(x_j),
            p_j * ref("H3") * ref("H1") * ref("H2"),
            label="vertices",
        ),
        Identity(
            "For signs, + on a set of probability P: the second moment is 1, the mean is P - (1 - P). This variance "
            "is also reached by |J x|_1, with y = x, so the formula is exact.",
            1 - (mass - (1 - mass)) ** 2,
            4 * mass * (1 - mass),
            label="signs",
        ),
        Nonnegative(
            "This is at most 1, with equality exactly for P = 1/2.",
            1 - 4 * mass * (1 - mass),
            (1 - 2 * mass) ** 2,
        ),
    ),
    source=Source("", derived=True),
    constants=(
        Constant(
            "SOFTMAX_INF_TO_ONE", sp.Integer(1), "upper", 1, 1, "norm of the softmax Jacobian from maximum to sum"
        ),
    ),
    claims=(
        Claim(
            "|J x|_1 <= 4 max p(S)(1 - p(S))",
            SPACE,
            slope,
            sharp=True,
            near=(
                {"s": [1.0, 0.0, -1.0, 0.5], "x": [1, -1, -1, -1]},
                {"s": [1.0, 0.0, -1.0, 0.5], "x": [1, -1, 1, -1]},
            ),
        ),
        Claim("some sign vector attains it", (Reals("s", -6, 6, 4),), attained, sharp=True),
        Claim(
            "|J x|_1 <= 1",
            SPACE,
            at_most_one,
            sharp=True,
            near=({"s": [0, 0, -6, -6], "x": [1, -1, 1, -1]},),
        ),
        Claim(
            "softmax differs by at most the greatest score difference",
            (Reals("s", -6, 6, 4), Reals("t", -6, 6, 4)),
            chord,
            sharp=True,
            near=({"s": [0.01, 0, 0.01, 0], "t": [0, 0.01, 0, 0.01]},),
        ),
    ),
    not_checked=(
        NotChecked(
            "a bound on the Jacobian over the whole (convex) space is a Lipschitz constant: mean value inequality",
            "Dieudonne (1960), Foundations of Modern Analysis, 8.5.2",
        ),
    ),
    uses=("S1",),
    remarks=(
        "Finding the best set is a partition problem; for large n use 1, or 4 p (1 - p) with the largest weight p if "
        "p >= 1/2 (then the set of that key alone is the best one).",
    ),
)
