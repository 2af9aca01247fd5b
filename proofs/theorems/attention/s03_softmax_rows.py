"""S3: the softmax Jacobian in the maximum norm, and its largest entry."""

import sympy as sp

from proofs import (
    Claim,
    Constant,
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

p_i = sp.Symbol("p_i", nonnegative=True)
p_j = sp.Symbol("p_j", nonnegative=True)
others = sp.Symbol("r", nonnegative=True)

OTHER_KEYS = Totals((p_j,), {p_j: 1 - p_i})


def _image(ctx, point):
    weights = softmax(ctx, point["s"])
    mean = sum((u * v for u, v in zip(weights, point["x"], strict=True)), ctx.mpf(0))
    return weights, [u * (v - mean) for u, v in zip(weights, point["x"], strict=True)]


def rows(ctx, point):
    """The direction is in the unit cube."""
    weights, image = _image(ctx, point)
    return max(abs(v) for v in image), 2 * max(w * (1 - w) for w in weights)


def half(ctx, point):
    _, image = _image(ctx, point)
    return max(abs(v) for v in image), ctx.mpf(1) / 2


def columns(ctx, point):
    """The sum norm: the direction is scaled to sum of absolute values 1."""
    size = sum((abs(v) for v in point["x"]), ctx.mpf(0))
    if size == 0:
        return None
    weights, image = _image(ctx, point)
    return sum((abs(v) for v in image), ctx.mpf(0)) / size, 2 * max(w * (1 - w) for w in weights)


def entries(ctx, point):
    size = sum((abs(v) for v in point["x"]), ctx.mpf(0))
    if size == 0:
        return None
    weights, image = _image(ctx, point)
    return max(abs(v) for v in image) / size, max(w * (1 - w) for w in weights)


def quarter(ctx, point):
    size = sum((abs(v) for v in point["x"]), ctx.mpf(0))
    if size == 0:
        return None
    _, image = _image(ctx, point)
    return max(abs(v) for v in image) / size, ctx.mpf(1) / 4


SPACE = (Reals("s", -6, 6, 4), Reals("x", -1, 1, 4))
TWO = {"s": [0, 0, -6, -6], "x": [1, -1, -1, -1]}
ONE = {"s": [0.3, 0, -1, -6], "x": [1, 0, 0, 0]}

THEOREM = Theorem(
    id="S3",
    title="Softmax Jacobian in the maximum norm, and its largest entry",
    statement=(
        r"For $p = \mathrm{softmax}(s)$ and $J = \mathrm{diag}(p) - p p'$: $\|J\|_{\infty \to \infty} = \|J\|_{1 \to "
        r"1} = 2 \max_i p_i (1 - p_i) \le \frac12$ and $\|J\|_{1 \to \infty} = \max_{ij} |J_{ij}| = \max_i p_i (1 - "
        r"p_i) \le \frac14$. Each maximum of the bounds is reached where some $p_i = \frac12$. Hence "
        r"$|\mathrm{softmax}(s) - \mathrm{softmax}(t)|_\infty \le \frac12 |s - t|_\infty$ and the same with sums of "
        r"absolute values."
    ),
    plain=(
        "If no score moves by more than h, no attention weight moves by more than h/2; if a single score moves by h, "
        "no weight moves by more than h/4. Where attention is concentrated the exact factors are smaller still."
    ),
    symbols=(
        Symbol(p_i, "probability of the row's key"),
        Symbol(p_j, "probability of another key"),
        Symbol(others, "sum of the remaining probabilities"),
    ),
    hypotheses=(Hypothesis("H1", "the probabilities sum to 1", 1 - p_i - p_j - others, "zero"),),
    steps=(
        Nonnegative(
            "The entry of row i at another key is -p_i p_j (S1), of size p_i p_j.",
            p_i * p_j,
            p_i * p_j,
            label="entry",
        ),
        Summed("These sizes summed over the other keys.", "entry", OTHER_KEYS, p_i * (1 - p_i), label="off"),
        Identity(
            "With the diagonal entry, the row's sum of sizes.",
            (p_i - p_i**2) + p_i * (1 - p_i),
            2 * p_i * (1 - p_i),
            label="row",
        ),
        Nonnegative(
            "A row's sum of sizes is at most 1/2.", sp.Rational(1, 2) - 2 * p_i * (1 - p_i), (1 - 2 * p_i) ** 2 / 2
        ),
        Nonnegative(
            "An entry off the diagonal is no larger than the diagonal one in its row, as p_j <= 1 - p_i.",
            p_i * (1 - p_i) - p_i * p_j,
            p_i * (others + ref("H1")),
        ),
        Nonnegative("The diagonal entry is at most 1/4.", sp.Rational(1, 4) - p_i * (1 - p_i), (1 - 2 * p_i) ** 2 / 4),
        Identity(
            "Both are attained at p_i = 1/2.", (2 * p_i * (1 - p_i)).subs(p_i, sp.Rational(1, 2)), sp.Rational(1, 2)
        ),
    ),
    source=Source("", derived=True),
    constants=(
        Constant("SOFTMAX_INF_LIPSCHITZ", sp.Rational(1, 2), "upper", "1/2", "1/2", "Lipschitz constant, maximum norm"),
        Constant(
            "SOFTMAX_ENTRY_MAX", sp.Rational(1, 4), "upper", "1/4", "1/4", "largest entry of the softmax Jacobian"
        ),
    ),
    claims=(
        Claim("|J x|_inf <= 2 max p(1 - p) |x|_inf", SPACE, rows, sharp=True, near=(TWO,)),
        Claim("|J x|_inf <= |x|_inf / 2", SPACE, half, sharp=True, near=(TWO,)),
        Claim("|J x|_1 <= 2 max p(1 - p) |x|_1", SPACE, columns, sharp=True, near=(ONE,)),
        Claim("|J x|_inf <= max p(1 - p) |x|_1", SPACE, entries, sharp=True, near=(ONE,)),
        Claim("|J x|_inf <= |x|_1 / 4", SPACE, quarter, sharp=True, near=(ONE,)),
    ),
    not_checked=(
        NotChecked(
            "the operator norm for maxima is the largest row sum of sizes, for sums the largest column sum, and from "
            "sums to maxima the largest entry",
            "Horn and Johnson (2013), Matrix Analysis, 5.6.4, 5.6.5",
        ),
        NotChecked(
            "a bound on the Jacobian over the whole (convex) space is a Lipschitz constant: mean value inequality",
            "Dieudonne (1960), Foundations of Modern Analysis, 8.5.2",
        ),
    ),
    uses=("S1",),
    remarks=("J is symmetric, so its largest row sum is its largest column sum.",),
)
