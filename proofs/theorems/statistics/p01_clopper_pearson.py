"""P1: from a count in a sample to a bound on a share, with a stated confidence."""

import math

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref

p = sp.Symbol("p", nonnegative=True)
q = sp.Symbol("q", nonnegative=True)
a_i = sp.Symbol("a_i", nonnegative=True)
b_i = sp.Symbol("b_i", nonnegative=True)
A = sp.Symbol("A", nonnegative=True)
B = sp.Symbol("B", nonnegative=True)
alpha = sp.Symbol("alpha", positive=True)
missed = sp.Symbol("m", nonnegative=True)
covered = sp.Symbol("c", nonnegative=True)
tail_p = sp.Symbol("T_p", nonnegative=True)
tail_q = sp.Symbol("T_q", nonnegative=True)

DRAWS = Totals((a_i, b_i), {a_i: A, b_i: B})
SIZE = 3


def _tail(ctx, k, q):
    """P(X >= k) for SIZE draws with probability q each."""
    return sum((math.comb(SIZE, j) * q**j * (1 - q) ** (SIZE - j) for j in range(k, SIZE + 1)), ctx.mpf(0))


def _limit(ctx, k, alpha):
    """The largest q whose tail is at most alpha, from below; 0 for k = 0, whose tail is 1."""
    if k == 0:
        return ctx.mpf(0)
    low, high = ctx.mpf(0), ctx.mpf(1)
    for _ in range(50 if ctx.prec <= 53 else 200):
        middle = (low + high) / 2
        low, high = (middle, high) if _tail(ctx, k, middle) <= alpha else (low, middle)
    return low


def missing(ctx, point):
    """The probability that the bound lies above p, by counting all outcomes."""
    p, alpha = point["p"], point["alpha"]
    total = ctx.mpf(0)
    for k in range(SIZE + 1):
        if _limit(ctx, k, alpha) > p:
            total += math.comb(SIZE, k) * p**k * (1 - p) ** (SIZE - k)
    return total, alpha


# At q = 3/5 two of three or more have the probability 3 * 0.6^2 * 0.4 + 0.6^3 = 0.648: a p just below is missed.
EDGE = {"p": 0.59999, "alpha": 0.648}

THEOREM = Theorem(
    id="P1",
    title="A lower confidence bound on a share",
    statement=(
        r"Let $X$ be the number of successes among $n$ independent draws with probability $p$ each, $0 < \alpha < 1$, "
        r"and for each $k$ let $L(k)$ be a number in $[0, 1]$ with $P_{L(k)}(X \ge k) \le \alpha$, or $L(k) = 0$. Then "
        r"$P_p(L(X) \le p) \ge 1 - \alpha$ for every $p$, whatever $n$. For given $n$ and $k$ no larger $L(k)$ serves "
        r"all $p$, if $L$ grows with $k$."
    ),
    plain=(
        "If k of n inputs, drawn independently like all others, are certified, then the share of inputs that can be "
        "certified is at least L(k), and in no more than alpha of all samples is this wrong. It says nothing about "
        "one input."
    ),
    symbols=(
        Symbol(p, "probability of success, the share in question"),
        Symbol(q, "L(k*), where k* is the least k with L(k) > p; if there is none, nothing is missed"),
        Symbol(a_i, "1 if the uniform number U_i of draw i is at most p, else 0"),
        Symbol(b_i, "1 if U_i is at most q, else 0"),
        Symbol(A, "number of successes at p"),
        Symbol(B, "number of successes at q"),
        Symbol(alpha, "one minus the confidence"),
        Symbol(missed, "P_p(L(X) > p)"),
        Symbol(covered, "P_p(L(X) <= p)"),
        Symbol(tail_p, "P_p(X >= k*)"),
        Symbol(tail_q, "P_q(X >= k*)"),
    ),
    hypotheses=(
        Hypothesis("H1", "q > p", q - p, "positive"),
        Hypothesis("H2", "P_q(X >= k*) <= alpha; L(k*) is above p >= 0, so it is not the excepted 0", alpha - tail_q),
        Hypothesis("H3", "the draws are independent, with the same probability"),
    ),
    facts=(
        Fact(
            "F1",
            "U_i <= p implies U_i <= q, as p < q by H1: so a_i <= b_i",
            b_i - a_i,
            "order of the real numbers",
            axiom=True,
        ),
        Fact(
            "F2",
            "A >= k* implies B >= k*, by step 'draws': so P_p(X >= k*) <= P_q(X >= k*)",
            tail_q - tail_p,
            "a probability grows with the event",
            axiom=True,
        ),
        Fact(
            "F3",
            "L(X) > p implies X >= k*, since k* is the least k with L(k) > p",
            tail_p - missed,
            "a probability grows with the event",
            axiom=True,
        ),
        Fact("F4", "an event or its opposite", covered + missed - 1, "definition of probability", "zero", axiom=True),
    ),
    steps=(
        Nonnegative(
            "Both numbers of successes from the same uniform numbers: one draw.", b_i - a_i, ref("F1"), label="draw"
        ),
        Summed("All draws: more successes at the larger probability.", "draw", DRAWS, B - A, label="draws"),
        Nonnegative(
            "What is missed has at most the probability alpha.", alpha - missed, ref("F3") + ref("F2") + ref("H2")
        ),
        Nonnegative(
            "So what is covered has at least 1 - alpha.",
            covered - (1 - alpha),
            ref("F3") + ref("F2") + ref("H2") + ref("F4"),
        ),
    ),
    source=Source("Clopper & Pearson", 1934, "The use of confidence or fiducial limits, Biometrika 26"),
    claims=(
        Claim(
            "the bound of three draws is above p with probability alpha at most",
            (Reals("p", 0.01, 0.99), Reals("alpha", 0.01, 0.99)),
            missing,
            sharp=True,
            near=(EDGE,),
        ),
    ),
    code=("fpcheck/certify/statistical.py:share_bound", "fpcheck/bounds.py:statistical"),
    remarks=(
        "Any L(k) whose tail is proved to be at most alpha will do; a smaller one is only less sharp. So it may be "
        "guessed, and rounded down.",
        "Sharp: for p just below L(k) with increasing L, the miss has the probability P_p(X >= k), which tends to "
        "alpha.",
        "The draws must be independent, and their number fixed beforehand: stopping when enough are certified is not "
        "covered.",
    ),
)
