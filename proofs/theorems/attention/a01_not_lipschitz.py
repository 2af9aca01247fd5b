"""A1: dot-product self-attention has no global Lipschitz constant."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Limit,
    Nonnegative,
    NotChecked,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import softmax

m = sp.Symbol("m", integer=True, positive=True)
t = sp.Symbol("t", positive=True)
eps = sp.Symbol("epsilon", real=True)
g = sp.Symbol("g", positive=True)
own = sp.Symbol("gamma", real=True)
L = sp.Symbol("L", positive=True)
size_w = sp.Symbol("w", positive=True)
size_a = sp.Symbol("a", nonnegative=True)
size_do = sp.Symbol("delta", nonnegative=True)

n = m + 1
total = sp.exp(eps**2 * own) + sp.exp(eps * t * g) + n - 2
weight_own = sp.exp(eps**2 * own) / total
weight_far = sp.exp(eps * t * g) / total
slope = t**2 * g * m / n**2


def _jacobian(ctx, tokens, form, value, *, causal):
    """Jacobian of one-channel attention with scores form x_i x_j, by the quotient rule of softmax."""
    count = len(tokens)
    rows = []
    for i in range(count):
        keys = range(i + 1) if causal else range(count)
        weights = softmax(ctx, [form * tokens[i] * tokens[j] for j in keys])
        row = []
        for k in range(count):
            slopes = [form * ((i == k) * tokens[j] + (j == k) * tokens[i]) for j in keys]
            mean = sum((p * s for p, s in zip(weights, slopes, strict=True)), ctx.mpf(0))
            row.append(
                value
                * sum(
                    (p * (s - mean) * tokens[j] + p * (j == k) for p, s, j in zip(weights, slopes, keys, strict=True)),
                    ctx.mpf(0),
                )
            )
        rows.append(row)
    return rows


def _lower(ctx, point, *, causal):
    """Three tokens of one channel: far token t, query last at 0."""
    t, form, value = point["t"], point["A"], point["V"]
    rows = _jacobian(ctx, [t, ctx.mpf(0), ctx.mpf(0)], form, value, causal=causal)
    bound = abs(value) * (abs(form) * t**2 * 2 / 9 - ctx.mpf(1) / 3)
    return bound, abs(rows[2][2])


def full(ctx, point):
    return _lower(ctx, point, causal=False)


def causal(ctx, point):
    return _lower(ctx, point, causal=True)


SPACE = (Reals("t", 0.1, 100, log=True), Reals("A", -3, 3), Reals("V", -3, 3))

THEOREM = Theorem(
    id="A1",
    title="Dot-product attention is not Lipschitz",
    statement=(
        r"Let $o_i = \sum_j p_{ij} W_v x_j$, $p_i = \mathrm{softmax}_j(x_i' A x_j)$, on $n \ge 2$ tokens in "
        r"$\mathbb{R}^d$, with or without a causal mask, and $A \ne 0$, $W_v \ne 0$. No constant $L$ makes $x "
        r"\mapsto o$ $L$-Lipschitz, in any norm. Witness: choose $w$ with $W_v w \ne 0$ and $A w \ne 0$, $a = A w / "
        r"|A w|$; the first token is $t w$, all others are 0. Moving the last token along $a$ moves its output with "
        r"the derivative $\frac{1}{n} W_v a + t^2 \frac{n - 1}{n^2} |A w|_2 W_v w$, which grows without bound with "
        r"$t$."
    ),
    plain=(
        "A token of zeros listens to all tokens equally, and a far token makes it react as the square of that "
        "distance. So a Lipschitz constant of attention can only hold on bounded tokens (A3), or at a state (A4)."
    ),
    symbols=(
        Symbol(m, "number of tokens less one, n - 1"),
        Symbol(t, "how far the far token is"),
        Symbol(eps, "how far the last token has moved along a"),
        Symbol(g, "a' A w = |A w|"),
        Symbol(own, "a' A a"),
        Symbol(L, "any candidate for a Lipschitz constant"),
        Symbol(size_w, "length of W_v w"),
        Symbol(size_a, "length of W_v a"),
        Symbol(size_do, "length of the derivative"),
    ),
    hypotheses=(
        Hypothesis(
            "H1",
            "A w and W_v w are not 0, so g and |W_v w| are positive. Such a w exists: one vector with A w_1 not 0, "
            "one with W_v w_2 not 0; if neither serves, their sum does",
            g * size_w,
            "positive",
        ),
        Hypothesis(
            "H2",
            "t is chosen so that t^2 g |W_v w| (n - 1) = n^2 (L + |W_v a|/n)",
            t**2 * g * size_w * m - n**2 * (L + size_a / n),
            "zero",
        ),
    ),
    facts=(
        Fact(
            "F1",
            "the derivative is W_v a / n + slope W_v w (steps 1 and 2): its length by the triangle inequality",
            size_do - (slope * size_w - size_a / n),
            "triangle inequality",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "The last token is epsilon a: its score with itself is epsilon^2 a'A a, with the far token epsilon t g, "
            "with the others 0. Its own value is epsilon W_v a; derivative of that factor at 0.",
            sp.diff(eps * weight_own, eps).subs(eps, 0),
            1 / n,
        ),
        Identity(
            "The far token's value is t W_v w; derivative of its factor at 0. The other values are 0.",
            sp.diff(t * weight_far, eps).subs(eps, 0),
            slope,
        ),
        Limit("It has no bound in t.", slope, t, sp.oo, sp.oo),
        Nonnegative(
            "For every L there is a state, with t from H2, where the derivative is at least L long.",
            size_do - L,
            ref("F1") + ref("H2") / n**2,
        ),
    ),
    source=Source("Kim, Papamakarios and Mnih", 2021, "The Lipschitz Constant of Self-Attention, Theorem 3.1"),
    claims=(
        Claim("the derivative is at least the stated one, all keys", SPACE, full, sharp=True),
        Claim("the derivative is at least the stated one, causal", SPACE, causal, sharp=True),
    ),
    not_checked=(
        NotChecked(
            "all norms on a finite-dimensional space are equivalent, so no other norm helps",
            "Horn and Johnson (2013), Matrix Analysis, 5.4.4",
        ),
    ),
    remarks=(
        "If A = 0 or W_v = 0, attention is linear in x and has a Lipschitz constant: the hypotheses cannot be dropped.",
        "The published theorem says this for every p-norm of the Jacobian; the witness here is explicit and fits a "
        "causal mask, because the query is the last token.",
        "A normalisation in front keeps the tokens bounded, which is why A3 applies to pre-norm blocks.",
    ),
)
