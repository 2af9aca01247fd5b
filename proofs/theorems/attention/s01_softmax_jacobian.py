"""S1: softmax halves distances: its Jacobian has spectral norm at most 1/2."""

import sympy as sp

from proofs import (
    Claim,
    Constant,
    Fact,
    Hypothesis,
    Identity,
    Limit,
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
from proofs.numbers import norm, softmax

s_i = sp.Symbol("s_i", real=True)
s_j = sp.Symbol("s_j", real=True)
others = sp.Symbol("z", nonnegative=True)
p = sp.Symbol("p", nonnegative=True)
x = sp.Symbol("x", real=True)
y = sp.Symbol("y", real=True)
mu = sp.Symbol("mu", real=True)
m2 = sp.Symbol("m_2", nonnegative=True)
lo = sp.Symbol("a", real=True)
hi = sp.Symbol("b", real=True)
rest = sp.Symbol("r", nonnegative=True)
third = sp.Symbol("p_3", positive=True)
c = sp.Symbol("c", positive=True)
between = sp.Symbol("t", nonnegative=True)
n = sp.Symbol("n", positive=True, integer=True)
eps = sp.Symbol("epsilon", positive=True)
length = sp.Symbol("X", nonnegative=True)
image = sp.Symbol("N", positive=True)
spread = sp.Symbol("V_x", nonnegative=True)
spread_image = sp.Symbol("V_y", nonnegative=True)

KEYS = Totals((p, x), {p: 1, p * x: mu, p * x**2: m2})

total = sp.exp(s_i) + sp.exp(s_j) + others
p_i = sp.exp(s_i) / total
p_j = sp.exp(s_j) / total


def _jacobian_times(ctx, weights, direction):
    """(diag p - p p') x, straight from its definition."""
    mean = sum((u * v for u, v in zip(weights, direction, strict=True)), ctx.mpf(0))
    return [u * (v - mean) for u, v in zip(weights, direction, strict=True)]


def slope(ctx, point):
    return norm(ctx, _jacobian_times(ctx, softmax(ctx, point["s"]), point["x"])), norm(ctx, point["x"]) / 2


def chord(ctx, point):
    first, second = softmax(ctx, point["s"]), softmax(ctx, point["t"])
    gap = norm(ctx, [u - v for u, v in zip(first, second, strict=True)])
    return gap, norm(ctx, [u - v for u, v in zip(point["s"], point["t"], strict=True)]) / 2


THEOREM = Theorem(
    id="S1",
    title="Spectral norm of the softmax Jacobian",
    statement=(
        r"Let $p = \mathrm{softmax}(s)$, $s \in \mathbb{R}^n$. The Jacobian is $J = \mathrm{diag}(p) - p p'$, "
        r"symmetric with $x' J x = \mathrm{Var}_p(x)$, so $J$ is positive semidefinite, and $\|J\|_2 = \max_{|x|_2 = "
        r"1} \mathrm{Var}_p(x) \le \frac12$ for every number $n$ of classes. Hence softmax is $\frac12$-Lipschitz in "
        r"the Euclidean norm. For $n = 2$ the value $\frac12$ is attained, at $p = (\frac12, \frac12)$; for $n \ge "
        r"3$ it is a supremum that no finite scores attain."
    ),
    plain=(
        "Softmax never stretches; it at least halves Euclidean distances between score vectors, whatever the number "
        "of keys. Equality needs all the probability on two keys, half each, so it can only be approached with three "
        "or more."
    ),
    symbols=(
        Symbol(s_i, "one score"),
        Symbol(s_j, "another score"),
        Symbol(others, "sum of the other keys' exponentials"),
        Symbol(p, "probability of a key"),
        Symbol(x, "entry of a direction"),
        Symbol(y, "entry of a direction at a third key, neither its greatest nor its least"),
        Symbol(mu, "mean of the direction, the sum of p x"),
        Symbol(m2, "second moment, the sum of p x^2"),
        Symbol(lo, "least entry of the direction"),
        Symbol(hi, "greatest entry of the direction"),
        Symbol(rest, "sum of squares of the entries besides the greatest and the least one"),
        Symbol(third, "probability of the third key"),
        Symbol(c, "a number that is at most 1/3 and at most that probability"),
        Symbol(between, "the sum of p (b - x)(x - a) over the keys besides the third one"),
        Symbol(n, "number of keys"),
        Symbol(eps, "probability of each key besides two"),
        Symbol(length, "|x|^2"),
        Symbol(image, "|J x|^2, that is y' J x with y = J x; positive, or there is nothing to show"),
        Symbol(spread, "x' J x, the variance of x"),
        Symbol(spread_image, "y' J y, the variance of y = J x"),
    ),
    hypotheses=(
        Hypothesis("H1", "a is the least entry of x", x - lo),
        Hypothesis("H2", "b is the greatest entry of x, at another key than a (n >= 2)", hi - x),
        Hypothesis("H3", "for strictness, n >= 3: at a third key the entry y is at least a", y - lo),
        Hypothesis("H4", "and at most b", hi - y),
        Hypothesis("H5", "y^2 is one of the squares in r", rest - y**2),
        Hypothesis("H6", "c <= 1/3", sp.Rational(1, 3) - c),
        Hypothesis("H7", "c is at most the third key's probability", third - c),
        Hypothesis(
            "H8",
            "the third key's term, split off the sum of p (b - x)(x - a) of step 'mean'",
            between + third * (hi - y) * (y - lo) - ((lo + hi) * mu - lo * hi - m2),
            "zero",
        ),
    ),
    facts=(
        Fact("F1", "the variance is not negative: mu^2 <= m_2", m2 - mu**2, "S0", axiom=True),
        Fact("F2", "x' J x <= |x|^2 / 2, by step 'half'", length / 2 - spread, "step 'half' for x", axiom=True),
        Fact(
            "F3", "y' J y <= |y|^2 / 2, by step 'half'", image / 2 - spread_image, "step 'half' for y = J x", axiom=True
        ),
        Fact(
            "F4",
            "y' J x is the covariance of x and y, so (y' J x)^2 <= Var(x) Var(y)",
            spread * spread_image - image**2,
            "S0, with the deviations from the means",
            axiom=True,
        ),
    ),
    steps=(
        Identity("Diagonal entry of the Jacobian, for any number of other keys.", sp.diff(p_i, s_i), p_i * (1 - p_i)),
        Identity("Entry off the diagonal.", sp.diff(p_i, s_j), -p_i * p_j),
        Identity(
            "A key's share in x' J x = sum p x^2 - (sum p x)^2, written around the mean.",
            p * x**2 - 2 * mu * p * x + mu**2 * p,
            p * (x - mu) ** 2,
        ),
        Nonnegative("The variance is not negative: J is positive semidefinite.", m2 - mu**2, ref("F1")),
        Nonnegative(
            "Each entry lies between the least and the greatest one.",
            p * (hi - x) * (x - lo),
            p * ref("H1") * ref("H2"),
            label="between",
        ),
        Summed("Sum over the keys.", "between", KEYS, (lo + hi) * mu - lo * hi - m2, label="mean"),
        Nonnegative(
            "The variance is at most a quarter of the squared range.",
            (hi - lo) ** 2 / 4 - (m2 - mu**2),
            ref("mean") + (mu - (lo + hi) / 2) ** 2,
            label="range",
        ),
        Nonnegative(
            "The squared range is at most twice |x|^2 = a^2 + b^2 + r, because (b - a)^2 + (b + a)^2 = 2 a^2 + 2 b^2.",
            (lo**2 + hi**2 + rest) / 2 - (hi - lo) ** 2 / 4,
            rest / 2 + (lo + hi) ** 2 / 4,
            label="length",
        ),
        Nonnegative(
            "Together: x' J x is at most |x|^2 / 2.",
            (lo**2 + hi**2 + rest) / 2 - (m2 - mu**2),
            ref("range") + ref("length"),
            label="half",
        ),
        Nonnegative(
            "The same factor for the image y = J x: y' J x = |J x|^2 is at most the root of Var(x) Var(y).",
            length / 4 - image,
            (ref("F4") + ref("F2") * image / 2 + spread * ref("F3")) / image,
            label="norm",
        ),
        Identity(
            "Attained with two keys at equal scores: x = (1, -1) has mean 0 and x' J x = 1 = |x|^2 / 2.",
            (p_i * (1 - p_i) + p_j * (1 - p_j) + 2 * p_i * p_j).subs({others: 0, s_j: s_i}),
            sp.Integer(1),
        ),
        Limit(
            "Approached with n keys: n - 2 of them of probability epsilon, the two others alike, x = (1, -1, 0, ...): "
            "x' J x / |x|^2 is the probability of either.",
            (1 - (n - 2) * eps) / 2,
            eps,
            sp.Integer(0),
            sp.Rational(1, 2),
        ),
        Nonnegative(
            "Not attained with three or more: the third key, wherever its entry lies, costs at least a share of the "
            "range.",
            (lo**2 + hi**2 + y**2) / 2 - (hi - lo) ** 2 / 4 + c * (hi - y) * (y - lo) - c * (hi - lo) ** 2 / 4,
            ref("H6") * (y - (lo + hi) / 2) ** 2 + (y + lo + hi) ** 2 / 6,
            label="share",
        ),
        Nonnegative(
            "So x' J x <= |x|^2/2 - c (b - a)^2/4 with c > 0 for finite scores; if b = a, x' J x = 0.",
            (lo**2 + hi**2 + rest) / 2 - (m2 - mu**2) - c * (hi - lo) ** 2 / 4,
            ref("share")
            + ref("H5") / 2
            + ref("H7") * ref("H3") * ref("H4")
            + between
            + (mu - (lo + hi) / 2) ** 2
            - ref("H8"),
            label="strict",
        ),
    ),
    source=Source("", derived=True, place="constant 1/2 in every p-norm: Nair, arXiv 2510.23012"),
    constants=(
        Constant("SOFTMAX_LIPSCHITZ", sp.Rational(1, 2), "upper", "1/2", "1/2", "Lipschitz constant of softmax"),
    ),
    claims=(
        Claim(
            "|J x| <= |x| / 2, two keys",
            (Reals("s", -8, 8, 2), Reals("x", -2, 2, 2)),
            slope,
            sharp=True,
        ),
        Claim(
            "|J x| <= |x| / 2, five keys",
            (Reals("s", -12, 12, 5), Reals("x", -2, 2, 5)),
            slope,
            sharp=True,
            near=({"s": [6, 6, -6, -6, -6], "x": [1, -1, 0, 0, 0]},),
        ),
        Claim(
            "softmax is 1/2-Lipschitz, four keys",
            (Reals("s", -12, 12, 4), Reals("t", -12, 12, 4)),
            chord,
            sharp=True,
            near=({"s": [6.01, 5.99, -9, -9], "t": [5.99, 6.01, -9, -9]},),
        ),
    ),
    not_checked=(
        NotChecked(
            "the norm is the maximum of x' J x over unit x, and that maximum is attained; needed for the equality "
            "and for 'no finite scores', not for the bound",
            "Horn and Johnson (2013), Matrix Analysis, 4.2.2",
        ),
        NotChecked(
            "a bound on the Jacobian over the whole (convex) space is a Lipschitz constant: mean value inequality",
            "Dieudonne (1960), Foundations of Modern Analysis, 8.5.2",
        ),
    ),
    code=("fpcheck/certify/operators.py:rule_for",),
    uses=("S0",),
    remarks=(
        "With S3, |J| <= 1/2 as an operator on sums and on maxima too; the p-norms between follow by interpolation "
        "(Riesz and Thorin).",
        "A temperature T divides the scores, and with them the constant, by T.",
    ),
)
