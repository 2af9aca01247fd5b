"""D1: a carried share below one and a bounded update give an absorbing ball, whatever the weights."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Induction,
    Nonnegative,
    NotChecked,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import norm

a = sp.Symbol("a", positive=True)
gap = sp.Symbol("gap", positive=True)
b = sp.Symbol("b", nonnegative=True)
M = sp.Symbol("M", nonnegative=True)
c = sp.Symbol("c", nonnegative=True)
R = sp.Symbol("R", nonnegative=True)
z = sp.Symbol("z", nonnegative=True)
f = sp.Symbol("f", nonnegative=True)
D = sp.Symbol("D", nonnegative=True)
D_0 = sp.Symbol("D_0", nonnegative=True)
D_1 = sp.Symbol("D_1", nonnegative=True)
k = sp.Symbol("k", nonnegative=True, integer=True)


def _step(ctx, point, z):
    """a z + c + b G(z / q): G has length M, in a direction that depends on its argument by the weights."""
    q = ctx.sqrt((z[0] ** 2 + z[1] ** 2) / 2 + point["eps"])
    w = point["w"]
    angle = w[0] + w[1] * z[0] / q + w[2] * z[1] / q
    update = [point["M"] * ctx.cos(angle), point["M"] * ctx.sin(angle)]
    return [point["a"] * v + s + point["b"] * u for v, s, u in zip(z, point["c"], update, strict=True)]


def _radius(ctx, point):
    return (norm(ctx, point["c"]) + point["b"] * point["M"]) / (1 - point["a"])


def invariant(ctx, point):
    """From inside the ball."""
    radius = _radius(ctx, point)
    length = max(norm(ctx, point["z"]), ctx.mpf(1))
    return norm(ctx, _step(ctx, point, [radius * v / length for v in point["z"]])), radius


def absorbing(ctx, point):
    """From outside: the distance to the ball after four steps."""
    radius = _radius(ctx, point)
    z = [radius * 4 * v for v in point["z"]]
    start = norm(ctx, z) - radius
    if start <= 0:
        return None
    for _ in range(4):
        z = _step(ctx, point, z)
    return max(norm(ctx, z) - radius, ctx.mpf(0)), point["a"] ** 4 * start


SPACE = (
    Reals("a", 0, 0.99),
    Reals("b", 0, 2),
    Reals("M", 0.1, 3),
    Reals("c", -2, 2, 2),
    Reals("w", -3, 3, 3),
    Reals("z", -1, 1, 2),
    Reals("eps", 1e-5, 0.1, log=True),
)
ALIGNED = {"a": 0.9, "b": 1, "M": 1, "c": [1, 0], "w": [0, 0, 0], "z": [1, 0], "eps": 0.01}

THEOREM = Theorem(
    id="D1",
    title="Absorbing ball of a scaled pre-norm block",
    statement=(
        r"Let $f(z) = a z + c + b\, G(\mathrm{norm}(z))$ with $0 \le a < 1$, $b \ge 0$ and $|G| \le M$ on the range "
        r"of the norm. The ball of radius $R = \frac{|c| + b M}{1 - a}$ around 0 is invariant, and "
        r"$\mathrm{dist}(z_k, B_R) \le a^k\, \mathrm{dist}(z_0, B_R)$ for $z_{k+1} = f(z_k)$. If $G$ is continuous, "
        r"$f$ has a fixed point in the ball. No smaller radius and no smaller rate serve for all such $f$."
    ),
    plain=(
        "A pre-norm block that hands on less than its whole state cannot run away: every run ends up near one ball, "
        "and there is a fixed point in it, for every value of the weights. Whether the run settles there is another "
        "question."
    ),
    symbols=(
        Symbol(a, "share of the state that is handed on; a = 0 is trivial"),
        Symbol(gap, "1 - a"),
        Symbol(b, "scale of the update"),
        Symbol(M, "bound of the update on the range of the norm"),
        Symbol(c, "|c|, the injection's length"),
        Symbol(R, "radius (|c| + b M) / (1 - a)"),
        Symbol(z, "|z|"),
        Symbol(f, "|f(z)|"),
        Symbol(D, "dist(z_k, ball) = max(|z_k| - R, 0)"),
        Symbol(D_0, "the same at the start"),
        Symbol(D_1, "the same of the next state"),
        Symbol(k, "number of steps"),
    ),
    hypotheses=(
        Hypothesis("H1", "a < 1, written as gap = 1 - a > 0", gap - (1 - a), "zero"),
        Hypothesis("H2", "R (1 - a) = |c| + b M", R * gap - c - b * M, "zero"),
        Hypothesis("H3", "|G(norm(z))| <= M"),
    ),
    facts=(
        Fact("F1", "|f(z)| <= a |z| + |c| + b M, by H3", a * z + c + b * M - f, "triangle inequality", axiom=True),
        Fact("F2", "the distance is at least |z| - R", D - (z - R), "definition of the maximum", axiom=True),
        Fact(
            "F3",
            "the next distance is the greater of |f(z)| - R and 0; both are at most a D, by steps outside and zero",
            a * D - D_1,
            "a maximum is at most what bounds its members",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "One step brings the length nearer to R: |f(z)| - R <= a (|z| - R).",
            a * (z - R) - (f - R),
            ref("F1") + ref("H2") - R * ref("H1"),
            label="one step",
        ),
        Nonnegative(
            "So it is invariant: for |z| <= R, with D = 0 put in, the length stays at most R; in general it exceeds R "
            "by at most a D.",
            a * D - (f - R),
            ref("one step") + a * ref("F2"),
            label="outside",
        ),
        Nonnegative("And 0 is at most a D.", a * D, a * D, label="zero"),
        Induction(
            "k steps.",
            k=k,
            quantity=D,
            following=D_1,
            bound=a**k * D_0,
            start=D_0,
            base=sp.Integer(0),
            step=a * ref("IH") + ref("F3"),
        ),
        Identity(
            "Sharp: on the line through c, with G constant of length M along c, R itself is the fixed point, and "
            "distances to it shrink by exactly a.",
            (a * z + c + b * M) - R,
            a * (z - R),
            modulo={"H2": -1, "H1": R},
        ),
    ),
    source=Source("FPRM", 2026, "arXiv 2606.18206, Theorem 1 (boundedness), without a convolution of the state"),
    claims=(
        Claim("|f(z)| <= R on the ball", SPACE, invariant, sharp=True, near=(ALIGNED,)),
        Claim("dist(z_4, ball) <= a^4 dist(z_0, ball)", SPACE, absorbing, sharp=True, near=(ALIGNED,)),
    ),
    not_checked=(
        NotChecked(
            "a continuous map of the closed ball into itself has a fixed point",
            "Brouwer (1911), Satz 4",
        ),
        NotChecked(
            "a continuous G is bounded on the range of the norm, whose closure is compact",
            "Weierstrass, e.g. Rudin (1976), Theorem 4.16",
        ),
    ),
    code=("fpcheck/certify/globally.py:GlobalCertificate",),
    uses=("N1",),
    remarks=(
        "Nothing is said about uniqueness or convergence: a bounded loop may cycle or be chaotic within the ball.",
        "With RMSNorm the range is the ball of radius sqrt(d) per token, so M depends on the weights alone.",
        "Any norm in which the triangle inequality holds serves, also one per channel; the form that the official code "
        "has, with a convolution of the state, is F1.",
    ),
)
