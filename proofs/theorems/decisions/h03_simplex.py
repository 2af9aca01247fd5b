"""H3: how much a probability vector may move before its largest entry changes."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import softmax

p_i = sp.Symbol("p_i", nonnegative=True)
p_j = sp.Symbol("p_j", nonnegative=True)
d_i = sp.Symbol("d_i", real=True)
d_j = sp.Symbol("d_j", real=True)
a_i = sp.Symbol("a_i", nonnegative=True)
a_j = sp.Symbol("a_j", nonnegative=True)
rest = sp.Symbol("R", nonnegative=True)
tv = sp.Symbol("V", nonnegative=True)
moved = sp.Symbol("x", positive=True)


def gap_lost(ctx, point):
    """How much the gap between the two entries falls, against the l1 distance, that is twice the total variation."""
    p, q = softmax(ctx, point["p"]), softmax(ctx, point["q"])
    return (p[0] - p[1]) - (q[0] - q[1]), sum((abs(a - b) for a, b in zip(p, q, strict=True)), ctx.mpf(0))


THEOREM = Theorem(
    id="H3",
    title="Decode stability on the simplex",
    statement=(
        r"Let $p$ and $q$ be probability vectors with total variation distance $\mathrm{TV} = \frac12 \sum_k |p_k "
        r"- q_k|$. For any two entries $(q_i - q_j) \ge (p_i - p_j) - 2 \, \mathrm{TV}$. So if the gap between the "
        r"largest and the second largest entry of $p$ is more than $2 \, \mathrm{TV}$, the argmax of $q$ is that "
        r"of $p$; if it is more than twice the sum of the remaining TV steps of a loop, the argmax stays for good. "
        r"The factor 2 cannot be lowered."
    ),
    plain=(
        "For loops whose state is a probability vector: compare the gap between the two best entries with twice the "
        "total variation that is still to come, or with the l1 distance itself."
    ),
    symbols=(
        Symbol(p_i, "largest entry of p"),
        Symbol(p_j, "another entry of p"),
        Symbol(d_i, "q_i - p_i"),
        Symbol(d_j, "q_j - p_j"),
        Symbol(a_i, "|q_i - p_i|"),
        Symbol(a_j, "|q_j - p_j|"),
        Symbol(rest, "sum of |q_k - p_k| over the other entries"),
        Symbol(tv, "total variation distance of p and q"),
        Symbol(moved, "mass moved from i to j"),
    ),
    hypotheses=(
        Hypothesis("H1", "TV is half of the l1 distance", 2 * tv - a_i - a_j - rest, "zero"),
        Hypothesis("H2", "for the argmax: the gap is more than 2 TV", p_i - p_j - 2 * tv, "positive"),
    ),
    facts=(
        Fact("F1", "q_i - p_i >= -|q_i - p_i|", d_i + a_i, "|x| >= -x", axiom=True),
        Fact("F2", "q_j - p_j <= |q_j - p_j|", a_j - d_j, "|x| >= x", axiom=True),
    ),
    steps=(
        Nonnegative(
            "The gap loses at most what the two entries move, and that is at most the l1 distance, 2 TV.",
            (p_i + d_i) - (p_j + d_j) - (p_i - p_j - 2 * tv),
            ref("F1") + ref("F2") + ref("H1") + rest,
            label="gap",
        ),
        Nonnegative(
            "So q_i > q_j, for every j.",
            (p_i + d_i) - (p_j + d_j),
            ref("gap") + ref("H2"),
            strict=True,
        ),
        Identity(
            "The factor: mass x moved from i to j costs 2 x of the gap, and TV is (x + x)/2 = x.",
            (p_i - p_j) - ((p_i - moved) - (p_j + moved)),
            2 * ((moved + moved) / 2),
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "the gap falls by at most 2 TV",
            (Reals("p", -4, 4, 4), Reals("q", -4, 4, 4)),
            gap_lost,
            sharp=True,
            near=({"p": [2.0, 1.0, -4.0, -4.0], "q": [1.0, 2.0, -4.0, -4.0]},),
        ),
    ),
    uses=("H2",),
    remarks=(
        "Some define total variation without the factor 1/2; then the gap must exceed it once.",
        "Several steps: TV of the ends is at most the sum of the steps' TV, so H2 applies with TV as the distance and "
        "omega = 2.",
    ),
)
