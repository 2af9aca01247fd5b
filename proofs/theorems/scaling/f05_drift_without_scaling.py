"""F5: a pre-norm block without residual scaling can drift away."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Induction, Limit, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import norm

d = sp.Symbol("d", positive=True, integer=True)
eps = sp.Symbol("epsilon", positive=True)
c = sp.Symbol("c", positive=True)
z_i = sp.Symbol("z_i", real=True)
n = sp.Symbol("n", positive=True)
n_0 = sp.Symbol("n_0", positive=True)
q = sp.Symbol("q", positive=True)
q_0 = sp.Symbol("q_0", positive=True)
k = sp.Symbol("k", nonnegative=True, integer=True)
minus = sp.Symbol("m_k", real=True)
minus_next = sp.Symbol("m_k1", real=True)
following = sp.Symbol("n_k1", positive=True)
R = sp.Symbol("R", positive=True)
excess = sp.Symbol("t", positive=True)


def _run(ctx, point):
    """z <- z + c N(z) in three channels; the number of steps, the start, its root and the end."""
    z = first = point["z"]
    root = ctx.sqrt(sum((v * v for v in z), ctx.mpf(0)) / len(z) + point["eps"])
    count = int(point["k"]) + 1
    for _ in range(count):
        q = ctx.sqrt(sum((v * v for v in z), ctx.mpf(0)) / len(z) + point["eps"])
        z = [v + point["c"] * v / q for v in z]
    return count, norm(ctx, first), root, norm(ctx, z)


def at_least(ctx, point):
    count, start, root, end = _run(ctx, point)
    return start + count * point["c"] * start / root, end


def at_most(ctx, point):
    count, start, _, end = _run(ctx, point)
    return end, start + count * point["c"] * ctx.sqrt(ctx.mpf(3))


SPACE = (Reals("z", -2, 2, 3), Reals("c", 0.01, 3), Reals("eps", 1e-6, 1, log=True), Reals("k", 0, 29.99))

THEOREM = Theorem(
    id="F5",
    title="Drift without residual scaling",
    statement=(
        r"The pre-norm loop $z_{k+1} = z_k + c N(z_k)$ with RMSNorm $N$ and $c > 0$, a block without residual "
        r"scaling, satisfies for every $z_0 \ne 0$ and $k \ge 0$: $|z_0| + k\, c \frac{|z_0|}{q(z_0)} \le |z_k| \le "
        r"|z_0| + k\, c \sqrt d$. So no bounded set contains a run for good, and 0 is its only fixed point. The steps "
        r"tend to $c \sqrt d$: neither side's rate can be improved as $\epsilon \to 0$."
    ),
    plain=(
        "Without residual scaling pre-norm promises nothing: the norm bounds what is added, not what is carried, and "
        "one choice of weights drifts away at a constant speed. A residual relative to the state's size then goes to "
        "0 although nothing settles (X1)."
    ),
    symbols=(
        Symbol(d, "width (channels of a token)"),
        Symbol(eps, "the norm's epsilon", "eps"),
        Symbol(c, "factor of the sublayer"),
        Symbol(z_i, "a channel of z_k"),
        Symbol(n, "|z_k|"),
        Symbol(following, "|z_(k+1)|"),
        Symbol(n_0, "|z_0|"),
        Symbol(q, "q(z_k)"),
        Symbol(q_0, "q(z_0)"),
        Symbol(k, "number of steps"),
        Symbol(minus, "-|z_k|"),
        Symbol(minus_next, "-|z_(k+1)|"),
        Symbol(R, "any radius"),
        Symbol(excess, "by how much k exceeds (R - |z_0|) q(z_0) / (c |z_0|)"),
    ),
    hypotheses=(
        Hypothesis("H1", "q^2 = |z_k|^2 / d + epsilon", d * q**2 - n**2 - d * eps, "zero"),
        Hypothesis("H2", "the same at the start", d * q_0**2 - n_0**2 - d * eps, "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "|z_(k+1)| = (1 + c / q) |z_k|, by the first step",
            following - n - c * n / q,
            "homogeneity",
            "zero",
            axiom=True,
        ),
        Fact("F2", "m_k = -|z_k|", minus + n, "definition", "zero", axiom=True),
        Fact("F3", "m_(k+1) = -|z_(k+1)|", minus_next + following, "definition", "zero", axiom=True),
    ),
    steps=(
        Identity(
            "One step stretches the state by one factor and keeps its direction.", z_i + c * z_i / q, (1 + c / q) * z_i
        ),
        Nonnegative(
            "It is longer by c |z| / q > 0: no state other than 0 is a fixed point.", c * n / q, c * n / q, strict=True
        ),
        Induction(
            "So the length never falls below that of the start; lower bounds are written for m_k = -|z_k|.",
            k=k,
            quantity=minus,
            following=minus_next,
            bound=-n_0,
            start=-n_0,
            base=sp.Integer(0),
            step=ref("IH") + c * n / q + ref("F1") + ref("F2") - ref("F3"),
            label="longer",
        ),
        Nonnegative("In terms of the length.", n - n_0, ref("longer") + ref("F2"), label="length"),
        Nonnegative(
            "A longer state makes a longer step: |z| / q grows with |z|.",
            n / q - n_0 / q_0,
            (eps * (n + n_0) * ref("length") + (n**2 * ref("H2") - n_0**2 * ref("H1")) / d)
            / (q * q_0 * (n * q_0 + n_0 * q)),
            label="speed",
        ),
        Induction(
            "So every step is at least as long as the first one, c |z_0| / q(z_0).",
            k=k,
            quantity=minus,
            following=minus_next,
            bound=-(n_0 + k * c * n_0 / q_0),
            start=-n_0,
            base=sp.Integer(0),
            step=ref("IH") + c * ref("speed") + ref("F1") + ref("F2") - ref("F3"),
        ),
        Nonnegative(
            "A step is shorter than c sqrt(d), because |N| is below sqrt(d) (N1).",
            sp.sqrt(d) - n / q,
            (d * eps + ref("H1")) / (q * (sp.sqrt(d) * q + n)),
            strict=True,
            label="below",
        ),
        Induction(
            "The upper side.",
            k=k,
            quantity=n,
            following=following,
            bound=n_0 + k * c * sp.sqrt(d),
            start=n_0,
            base=sp.Integer(0),
            step=ref("IH") + c * ref("below") - ref("F1"),
        ),
        Nonnegative(
            "The lower side exceeds any R once k exceeds (R - |z_0|) q(z_0) / (c |z_0|).",
            n_0 + ((R - n_0) * q_0 / (c * n_0) + excess) * c * n_0 / q_0 - R,
            excess * c * n_0 / q_0,
            strict=True,
        ),
        Limit("The steps tend to c sqrt(d) in length.", c * n / sp.sqrt(n**2 / d + eps), n, sp.oo, c * sp.sqrt(d)),
        Limit(
            "And for epsilon to 0 the lower rate does.",
            c * n_0 / sp.sqrt(n_0**2 / d + eps),
            eps,
            sp.Integer(0),
            c * sp.sqrt(d),
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("|z_k| >= |z_0| + k c |z_0| / q(z_0)", SPACE, at_least, sharp=True),
        Claim("|z_k| <= |z_0| + k c sqrt(d)", SPACE, at_most, sharp=True),
    ),
    uses=("N1",),
    remarks=(
        "It is a block that the official code can hold: residual_scale none, no convolution, x = 0, one token (or "
        "equal ones), attention with W_o W_v = c I and a SwiGLU of zeros.",
        "With a share a < 1 handed on, the same sublayer has an absorbing ball (D1).",
        "Post-norm keeps |z| < sqrt(d) instead (F1b); a bounded loop need not settle either.",
    ),
)
