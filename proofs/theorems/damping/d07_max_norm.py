"""D7: damping in the max norm, from the log-norm."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix

s = sp.Symbol("s", positive=True)
a = sp.Symbol("a", real=True)
low = sp.Symbol("a_min", real=True)
R = sp.Symbol("R", nonnegative=True)
mu = sp.Symbol("mu", real=True)
top_a = sp.Symbol("a_top", real=True)
top_rest = sp.Symbol("R_top", nonnegative=True)
norm = sp.Symbol("N", nonnegative=True)


def _figures(ctx, point, size=3):
    """A random matrix, its log-norm and a function for the norm of the damped matrix, both in the max norm."""
    a = matrix(ctx, point["A"], size, size)
    rows = range(size)

    def damped(s):
        return max(abs(1 - s + s * a[i, i]) + s * sum(abs(a[i, j]) for j in rows if j != i) for i in rows)

    mu = max(a[i, i] + sum(abs(a[i, j]) for j in rows if j != i) for i in rows)
    return damped, mu, min(a[i, i] for i in rows)


def upper(ctx, point):
    damped, mu, least = _figures(ctx, point)
    s = point["share"] / max(1 - least, point["share"] / 10)
    return damped(s), 1 - s * (1 - mu)


def lower(ctx, point):
    damped, mu, _ = _figures(ctx, point)
    s = point["s"]
    return 1 - s * (1 - mu), damped(s)


def best(ctx, point):
    """At the largest step of the range."""
    damped, mu, least = _figures(ctx, point)
    if least >= 1 or mu >= 1:
        return None
    return damped(1 / (1 - least)), 1 - (1 - mu) / (1 - least)


THEOREM = Theorem(
    id="D7",
    title="Damping in the max norm",
    statement=(
        r"Let $A$ be a real square matrix, $\mu = \max_i \left( a_{ii} + \sum_{j \ne i} |a_{ij}| \right)$ its "
        r"log-norm for the max norm. Then $\|(1-s) I + s A\|_\infty \ge 1 - s (1 - \mu)$ for every $s > 0$, with "
        r"equality if $s (1 - \min_i a_{ii}) \le 1$. So if $\mu < 1$, every such step makes the damped matrix a "
        r"contraction in the max norm, whatever $\|A\|_\infty$ is; the longest, $s = \frac{1}{1 - \min_i a_{ii}}$, is "
        r"the best of them, with the factor $1 - \frac{1 - \mu}{1 - \min_i a_{ii}}$."
    ),
    plain=(
        "In the max norm the damped norm is exactly 1 - s (1 - mu) as long as no diagonal entry of the damped matrix "
        "is negative. A matrix with a large negative diagonal has a huge norm and yet a log-norm below 1: damping "
        "uses that."
    ),
    symbols=(
        Symbol(s, "damping step", "step"),
        Symbol(a, "diagonal entry of a row"),
        Symbol(low, "the least diagonal entry"),
        Symbol(R, "sum of the absolute values of the row's other entries"),
        Symbol(mu, "log-norm of A for the max norm"),
        Symbol(top_a, "diagonal entry of a row that attains mu"),
        Symbol(top_rest, "sum of absolute values of that row's other entries"),
        Symbol(norm, "max norm of the damped matrix, at least the absolute sum of each of its rows"),
    ),
    hypotheses=(
        Hypothesis("H1", "mu is the largest row value", mu - a - R),
        Hypothesis("H2", "and one row attains it", mu - top_a - top_rest, "zero"),
        Hypothesis("H3", "a_min is the least diagonal entry", a - low),
        Hypothesis("H4", "for equality: s (1 - a_min) <= 1", 1 - s * (1 - low)),
        Hypothesis("H5", "for contraction: mu < 1", 1 - mu, "positive"),
    ),
    facts=(
        Fact(
            "F1",
            "the norm is at least the absolute row sum of the row that attains mu, and |x| >= x",
            norm - (1 - s + s * top_a) - s * top_rest,
            "the max norm of a matrix is its largest absolute row sum",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "For every step, the row that attains mu gives a lower bound.",
            norm - (1 - s * (1 - mu)),
            ref("F1") - s * ref("H2"),
        ),
        Nonnegative(
            "For s (1 - a_min) <= 1 no diagonal entry of the damped matrix is negative,",
            1 - s + s * a,
            ref("H4") + s * ref("H3"),
            label="diagonal",
        ),
        Nonnegative(
            "so that a row's absolute sum is (1 - s + s a) + s R, at most 1 - s (1 - mu).",
            1 - s * (1 - mu) - ((1 - s + s * a) + s * R),
            s * ref("H1"),
        ),
        Identity(
            "In the row that attains mu it is equal to that.",
            (1 - s + s * top_a) + s * top_rest,
            1 - s * (1 - mu),
            modulo={"H2": -s},
        ),
        Nonnegative("For mu < 1 the factor is below 1.", 1 - (1 - s * (1 - mu)), s * ref("H5"), strict=True),
        Identity("And it falls with s: its slope is -(1 - mu).", sp.diff(1 - s * (1 - mu), s), mu - 1),
    ),
    source=Source(
        "Jafarpour, Davydov, Proskurnikov, Bullo",
        2021,
        "Robust implicit networks via non-Euclidean contractions (average map); short proof and equality here",
    ),
    claims=(
        Claim(
            "|(1-s) I + s A| <= 1 - s (1 - mu) up to 1 / (1 - min a_ii)",
            (Reals("A", -4, 2, 9), Reals("share", 0.01, 1)),
            upper,
            sharp=True,
        ),
        Claim(">= for every s", (Reals("A", -4, 2, 9), Reals("s", 0.001, 5, log=True)), lower, sharp=True),
        Claim(
            "the factor of the longest step",
            (Reals("A", -2, 0.9, 9),),
            best,
            sharp=True,
            near=({"A": [-0.5, 0.1, 0.1, 0.1, -0.5, 0.1, 0.1, 0.1, -0.5]},),
        ),
    ),
    remarks=(
        "With min a_ii >= 1 the condition holds for every s, and mu >= 1: nothing contracts.",
        "With weights, v_i a_ij / v_j in place of a_ij, the same holds in the weighted max norm.",
        "Over a convex set take the largest mu and the least diagonal entry of the Jacobians there.",
        "Beyond the condition a step may still contract, even better than the longest one of the range; the formula "
        "no longer says so.",
    ),
)
