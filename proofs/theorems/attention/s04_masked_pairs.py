"""S4: masked keys drop out of every sum; a finite mask leaves a little."""

import sympy as sp

from proofs import Claim, Hypothesis, Identity, Limit, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import softmax

E = sp.Symbol("E", positive=True)
Z = sp.Symbol("Z", positive=True)
Z_m = sp.Symbol("Z_m", positive=True)
B = sp.Symbol("B", positive=True)
m = sp.Symbol("m", integer=True, positive=True)
top = sp.Symbol("M", positive=True)
peak = sp.Symbol("A", positive=True)

MASKED = Totals((E,), {sp.Integer(1): m, E: Z_m})
total = Z + sp.exp(-B) * Z_m
lost = sp.exp(-B) * Z_m / total


def _weights(ctx, point):
    """Two keys that may be attended to, two whose scores are lowered by B."""
    scores = [*point["s"], *(t - point["B"] for t in point["t"])]
    return softmax(ctx, point["s"]), softmax(ctx, scores)


def masked_mass(ctx, point):
    _, finite = _weights(ctx, point)
    return sum(finite[2:], ctx.mpf(0)), 2 * ctx.exp(max(point["t"]) - max(point["s"]) - point["B"])


def distance(ctx, point):
    exact, finite = _weights(ctx, point)
    gap = sum((abs(a - b) for a, b in zip([*exact, 0, 0], finite, strict=True)), ctx.mpf(0))
    return gap, 4 * ctx.exp(max(point["t"]) - max(point["s"]) - point["B"])


SPACE = (Reals("s", -10, 10, 2), Reals("t", -10, 10, 2), Reals("B", 0, 30))
NEAR = ({"s": [0, -10], "t": [0, 0], "B": 12.0},)

THEOREM = Theorem(
    id="S4",
    title="Masked keys",
    statement=(
        r"Lower the scores of $m$ masked keys of a row by $B$. For $B \to \infty$ their probabilities tend to 0 and "
        r"the others to the softmax over the allowed keys alone, so with a mask of $-\infty$ every sum over keys is "
        r"a sum over the allowed ones. For finite $B$ the masked keys hold the weight $\mu \le m e^{t - s - B}$, "
        r"with $t$ the greatest masked score and $s$ the greatest allowed one; each other probability is $(1 - \mu)$ "
        r"times its masked value, so all weights together differ by $2 \mu$. If no key is allowed, the weights do "
        r"not depend on $B$ at all."
    ),
    plain=(
        "A mask of minus infinity removes keys exactly. A mask of -1e9 is another function, by less than any "
        "rounding unless all keys are masked: then it attends to them as if there were no mask. Such rows have no "
        "defined output."
    ),
    symbols=(
        Symbol(E, "exponential of a key's score, before masking"),
        Symbol(Z, "sum of the allowed keys' exponentials"),
        Symbol(Z_m, "sum of the masked keys' exponentials, before masking"),
        Symbol(B, "by how much the masked scores are lowered"),
        Symbol(m, "number of masked keys"),
        Symbol(top, "exponential of the greatest masked score"),
        Symbol(peak, "exponential of the greatest allowed score"),
    ),
    hypotheses=(
        Hypothesis("H1", "each masked key's exponential is at most M", top - E),
        Hypothesis("H2", "the allowed keys' exponentials sum to at least the greatest one", Z - peak),
    ),
    steps=(
        Limit("A masked key's probability vanishes.", E * sp.exp(-B) / total, B, sp.oo, sp.Integer(0)),
        Limit("An allowed key's tends to its share among the allowed ones.", E / total, B, sp.oo, E / Z),
        Identity("For finite B it is that share times 1 - mu.", E / total, E / Z * (1 - lost), label="share"),
        Summed("The masked keys' exponentials, before masking.", "H1", MASKED, m * top - Z_m, label="masked"),
        Nonnegative(
            "The weight mu that they keep, without its own share in the denominator.",
            sp.exp(-B) * Z_m / Z - lost,
            sp.exp(-2 * B) * Z_m**2 / (Z * total),
            label="dropped",
        ),
        Nonnegative(
            "So mu is at most m exp(t - s - B).",
            m * top * sp.exp(-B) / peak - lost,
            ref("dropped") + sp.exp(-B) * (ref("masked") * Z + Z_m * ref("H2")) / (Z * peak),
            label="mass",
        ),
        Identity(
            "All weights together: the allowed ones lose mu in total, the masked ones gain it.",
            (1 - (1 - lost)) + lost,
            2 * lost,
        ),
        Identity(
            "No key allowed: lowering all scores by B cancels.",
            E * sp.exp(-B) / (sp.exp(-B) * Z_m),
            E / Z_m,
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("weight of the masked keys", SPACE, masked_mass, sharp=True, near=NEAR),
        Claim("change of all weights", SPACE, distance, sharp=True, near=NEAR),
    ),
    remarks=(
        "In floating point, 0 times infinity makes NaN in the formulas of the Jacobian: leave masked pairs out, do not "
        "multiply them by 0.",
    ),
)
