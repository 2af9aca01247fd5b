"""H1: when the answer at the fixed point is the answer at the computed state."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Induction, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import dot, matrix, norm, spectral_norm

w = sp.Symbol("w", nonnegative=True)
lip = sp.Symbol("N", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
t = sp.Symbol("t", nonnegative=True)
moved = sp.Symbol("m", nonnegative=True)
margin = sp.Symbol("M", real=True)
there = sp.Symbol("M_z", real=True)
change = sp.Symbol("c", nonnegative=True)
r = sp.Symbol("r", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
L = sp.Symbol("L", nonnegative=True)
star = sp.Symbol("s", nonnegative=True)
k = sp.Symbol("k", nonnegative=True, integer=True)
d_k = sp.Symbol("d_k", nonnegative=True)
d_next = sp.Symbol("d_next", nonnegative=True)
image = sp.Symbol("y", nonnegative=True)


def linear(ctx, point):
    """N(z) = A z: how much the margin falls, against |w_i - w_j| |A| |z - z^|."""
    a = matrix(ctx, point["A"], 2, 2)
    step = ctx.matrix(point["z"])
    return -dot(ctx, point["w"], list(a * step)), norm(ctx, point["w"]) * spectral_norm(ctx, a) * norm(ctx, list(step))


def normalised(ctx, point):
    """N = RMSNorm of a token: the same with its local constant 1 / q_min (N6)."""
    centre, eps = point["c"], point["eps"]
    reach = norm(ctx, point["z"])
    state = [u + v for u, v in zip(centre, point["z"], strict=True)]

    def rms(x):
        q = ctx.sqrt(dot(ctx, x, x) / len(x) + eps)
        return [v / q for v in x]

    fallen = dot(ctx, point["w"], [u - v for u, v in zip(rms(centre), rms(state), strict=True)])
    shortest = max(norm(ctx, centre) - reach, ctx.mpf(0))
    return fallen, norm(ctx, point["w"]) / ctx.sqrt(shortest**2 / len(centre) + eps) * reach


def iterates(ctx, point):
    """A contraction of the plane: distance of later iterates from the computed state, against r / (1 - L)."""
    a = matrix(ctx, point["A"], 2, 2)
    rate = spectral_norm(ctx, a)
    if rate >= 1:
        return None
    shift = ctx.matrix(point["b"])
    state, worst = ctx.matrix([0, 0]), ctx.mpf(0)
    for _ in range(30):
        state = a * state + shift
        worst = max(worst, norm(ctx, list(state)))
    return worst, norm(ctx, point["b"]) / (1 - rate)


THEOREM = Theorem(
    id="H1",
    title="Decode stability from an error bound",
    statement=(
        r"Let the logits be $l_j(z) = w_j \cdot N(z) + b_j$ and let $N$ have the Lipschitz constant $\Lambda$ on the "
        r"ball $B(\hat z, e)$. If at the computed state $l_i(\hat z) - l_j(\hat z) > |w_i - w_j| \, \Lambda \, e$ for "
        r"every $j \ne i$, then $i$ is the only argmax at every state of the ball. With $e = \frac{r}{1 - L}$ from B2 "
        r"the ball holds the fixed point $z^*$, and with a contraction by $L$ on it also every later iterate of $f$ "
        r"from $\hat z$. No smaller margin will do for all $N$."
    ),
    plain=(
        "If the margin between the best answer and every other one is larger than what the state can still move, "
        "the answer is that of the fixed point, and more iterations cannot change it. Each pair needs the "
        "difference of its two read-out vectors only."
    ),
    symbols=(
        Symbol(w, "|w_i - w_j|"),
        Symbol(lip, "Lipschitz constant of N on the ball"),
        Symbol(e, "radius of the ball", "error_bound"),
        Symbol(t, "distance |z - z^| of a state of the ball"),
        Symbol(moved, "|N(z) - N(z^)|"),
        Symbol(margin, "margin l_i - l_j at the computed state", "margin"),
        Symbol(there, "the same at z"),
        Symbol(change, "|(w_i - w_j).(N(z) - N(z^))|"),
        Symbol(r, "residual |f(z^) - z^|", "residual"),
        Symbol(L, "contraction factor", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(star, "|z* - z^|"),
        Symbol(k, "number of iterations after z^"),
        Symbol(d_k, "|z_k - z^| for the iterates from z^"),
        Symbol(d_next, "|z_(k+1) - z^|"),
        Symbol(image, "|f(z_k) - f(z^)|"),
    ),
    hypotheses=(
        Hypothesis("H1", "the margin is large enough", margin - w * lip * e, "positive"),
        Hypothesis("H2", "N is Lipschitz between z and z^", lip * t - moved),
        Hypothesis("H3", "z is in the ball", e - t),
        Hypothesis("H4", "for the last part: e = r / (1 - L)", e * gap - r, "zero"),
        Hypothesis("H5", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H6", "f is L-Lipschitz between z_k and z^, both in the ball", L * d_k - image),
    ),
    facts=(
        Fact("F1", "|(w_i - w_j).(N(z) - N(z^))| <= |w_i - w_j| |N(z) - N(z^)|", w * moved - change, "S0", axiom=True),
        Fact(
            "F2",
            "the margin at z is at least that at z^ less the change",
            there - margin + change,
            "|x| >= -x",
            axiom=True,
        ),
        Fact("F3", "B2 at z^", r / gap - star, "B2", axiom=True),
        Fact("F4", "|z_(k+1) - z^| <= |f(z_k) - f(z^)| + r", image + r - d_next, "triangle inequality", axiom=True),
    ),
    steps=(
        Nonnegative(
            "Between z^ and a state of the ball the margin changes by at most |w_i - w_j| times the movement of N.",
            w * lip * e - change,
            ref("F1") + w * ref("H2") + w * lip * ref("H3"),
            label="change",
        ),
        Nonnegative(
            "So at z logit i is still above logit j, strictly. This holds for every j, so i is the only argmax.",
            there,
            ref("F2") + ref("change") + ref("H1"),
            strict=True,
            label="kept",
        ),
        Nonnegative("The fixed point is in the ball.", e - star, ref("F3") + ref("H4") / gap, label="fixed point"),
        Induction(
            "So is every iterate from z^: if z_k is, the next one is within L e + r = e of z^.",
            k,
            d_k,
            d_next,
            bound=e,
            start=sp.Integer(0),
            base=e,
            step=ref("F4") + ref("H6") + L * ref("IH") + ref("H4") - e * ref("H5"),
            label="iterates",
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "the margin falls by at most |w_i - w_j| |A| |z - z^| for N(z) = A z",
            (Reals("w", -1, 1, 2), Reals("A", -1, 1, 4), Reals("z", -1, 1, 2)),
            linear,
            sharp=True,
        ),
        Claim(
            "the same for RMSNorm with 1 / q_min",
            (Reals("w", -1, 1, 2), Reals("c", -2, 2, 2), Reals("z", -1, 1, 2), Reals("eps", 1e-6, 1, log=True)),
            normalised,
            near=({"w": [0.0, -1.0], "c": [1.0, 0.0], "z": [0.0, 0.01], "eps": 1e-3},),
        ),
        Claim(
            "later iterates are within r / (1 - L) of the computed state",
            (Reals("A", -1, 1, 4), Reals("b", -1, 1, 2)),
            iterates,
            sharp=True,
            near=({"A": [0.5, 0.0, 0.0, 0.5], "b": [1.0, 0.0]},),
        ),
    ),
    uses=("B2", "S0"),
    remarks=(
        "The difference |w_i - w_j| is never more than |w_i| + |w_j| and often much less: bounds logit by logit "
        "throw that away.",
        "For RMSNorm before the read-out the constant is 1 / q_min of N6, not 1 / sqrt(eps).",
        "If e comes from elsewhere than B2, iterates need a bound of their own; inside a certified ball see H5.",
        "Iterates of a damped loop with 0 < s <= 1 stay in the same ball if f maps it into itself, which is convex.",
        "Ties are not decided: the margin must be strictly larger.",
    ),
)
