"""H5: the answer of a state inside a certified ball, of all later ones and of the fixed point."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Induction, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import dot, matrix, norm, spectral_norm

kappa = sp.Symbol("kappa", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
Yc = sp.Symbol("Y", nonnegative=True)
e_0 = sp.Symbol("e_0", nonnegative=True)
d_k = sp.Symbol("d_k", nonnegative=True)
D = sp.Symbol("D", nonnegative=True)
n = sp.Symbol("n", nonnegative=True, integer=True)
d_n = sp.Symbol("d_n", nonnegative=True)
d_next = sp.Symbol("d_next", nonnegative=True)
moved = sp.Symbol("m", nonnegative=True)
star = sp.Symbol("s", nonnegative=True)
r = sp.Symbol("r", positive=True)
row = sp.Symbol("w", nonnegative=True)
margin = sp.Symbol("M", real=True)
there = sp.Symbol("M_z", real=True)
change = sp.Symbol("c", nonnegative=True)
dist = sp.Symbol("d", nonnegative=True)


def _run(ctx, point):
    """A contraction of the plane about the centre 0, a start, and the iterates from there."""
    a = matrix(ctx, point["A"], 2, 2)
    rate = spectral_norm(ctx, a)
    if rate >= 1:
        return None
    shift, state = ctx.matrix(point["b"]), ctx.matrix(point["z"])
    states = [state]
    for _ in range(25):
        state = a * state + shift
        states.append(state)
    return states, norm(ctx, list(states[0])), norm(ctx, point["b"]) / (1 - rate)


def distance(ctx, point):
    found = _run(ctx, point)
    if found is None:
        return None
    states, start, offset = found
    return max(norm(ctx, list(s)) for s in states), max(start, offset)


def logits(ctx, point):
    """The margin that any later iterate has lost since the centre, against |w_i - w_j| max(d_k, e_0)."""
    found = _run(ctx, point)
    if found is None:
        return None
    states, start, offset = found
    return max(-dot(ctx, point["w"], list(s)) for s in states), norm(ctx, point["w"]) * max(start, offset)


def published(ctx, point):
    """max(d_k, e_0) against d_k + 2 e_0: the form with two triangle inequalities is weaker."""
    return max(point["d"], point["e"]), point["d"] + 2 * point["e"]


SPACE = (Reals("A", -1, 1, 4), Reals("b", -1, 1, 2), Reals("z", -2, 2, 2))
NEAR = {"A": [0.5, 0.0, 0.0, 0.5], "b": [0.5, 0.0], "z": [0.5, 0.0]}

THEOREM = Theorem(
    id="H5",
    title="Decode stability inside a certified ball",
    statement=(
        r"Let $F$ contract by $\kappa < 1$ on a ball $B(z_c, r)$ that it maps into itself (Q4), $\|F(z_c) - z_c\| "
        r"\le Y$, $e_0 = \frac{Y}{1 - \kappa}$. If an iterate $z_k$ is in the ball, then with $D = \max(\|z_k - "
        r"z_c\|, e_0)$ every later iterate and the fixed point are within $D \le \max(r, e_0)$ of $z_c$. Let "
        r"$l_j(z) = w_j \cdot z + b_j$ and $\omega_{ij} = \sup_{\|v\| \le 1} |(w_i - w_j) \cdot v|$. If $l_i(z_c) "
        r"- l_j(z_c) > \omega_{ij} D$ for every $j \ne i$, then $i$ is the only argmax at $z_k$, at every later "
        r"iterate and at $z^*$. $D$ and the margin cannot be improved."
    ),
    plain=(
        "Once an iterate has entered a certified ball, the read-out margins at the ball's centre decide the answer for "
        "good. For an answer that holds at every state of the ball, D = r."
    ),
    symbols=(
        Symbol(kappa, "contraction factor on the ball", "kappa"),
        Symbol(gap, "1 - kappa"),
        Symbol(Yc, "bound on the residual at the centre", "Y"),
        Symbol(e_0, "Y / (1 - kappa)"),
        Symbol(r, "radius of the ball", "radius"),
        Symbol(d_k, "|z_k - z_c|"),
        Symbol(D, "the larger of d_k and e_0"),
        Symbol(n, "number of further iterations"),
        Symbol(d_n, "|z_(k+n) - z_c|"),
        Symbol(d_next, "|z_(k+n+1) - z_c|"),
        Symbol(moved, "|F(z_(k+n)) - F(z_c)|"),
        Symbol(star, "|z* - z_c|"),
        Symbol(row, "dual norm of w_i - w_j; in the metric |L v| it is |(w_i - w_j)' L^-1|_2"),
        Symbol(margin, "l_i - l_j at the centre", "margin"),
        Symbol(there, "l_i - l_j at one of the states"),
        Symbol(change, "|(w_i - w_j).(z - z_c)|"),
        Symbol(dist, "|z - z_c| for one of the states"),
    ),
    hypotheses=(
        Hypothesis("H1", "kappa < 1, written as gap = 1 - kappa > 0", gap - (1 - kappa), "zero"),
        Hypothesis("H2", "F contracts between z_(k+n) and the centre, both in the ball", kappa * d_n - moved),
        Hypothesis("H3", "e_0 = Y / (1 - kappa)", e_0 * gap - Yc, "zero"),
        Hypothesis("H4", "D is at least d_k ...", D - d_k),
        Hypothesis("H5", "... and at least e_0", D - e_0),
        Hypothesis("H6", "the margin at the centre is large enough", margin - row * D, "positive"),
        Hypothesis("H7", "z_k is in the ball, and D is the larger of d_k and e_0 <= r (Q4): for the last step", r - D),
        Hypothesis("H8", "z is one of these states (steps 'iterates' and 'fixed point')", D - dist),
    ),
    facts=(
        Fact(
            "F1",
            "|F(z_(k+n)) - z_c| <= |F(z_(k+n)) - F(z_c)| + |F(z_c) - z_c|",
            moved + Yc - d_next,
            "triangle inequality",
            axiom=True,
        ),
        Fact("F2", "Q4: the fixed point is within Y / (1 - kappa) of the centre", Yc / gap - star, "Q4", axiom=True),
        Fact("F3", "|(w_i - w_j).v| is at most the dual norm times |v|", row * dist - change, "dual norm", axiom=True),
        Fact(
            "F4",
            "the margin at z is at least that at z_c less the change",
            there - margin + change,
            "|x| >= -x",
            axiom=True,
        ),
    ),
    steps=(
        Induction(
            "The next distance is at most kappa d_n + (1 - kappa) e_0, a mean of d_n and e_0, hence not above the "
            "larger one. So no later iterate is farther than D.",
            n,
            d_n,
            d_next,
            bound=D,
            start=d_k,
            base=ref("H4"),
            step=ref("F1") + ref("H2") + kappa * ref("IH") + gap * ref("H5") + ref("H3") - D * ref("H1"),
            label="iterates",
        ),
        Nonnegative("Nor is the fixed point.", D - star, ref("F2") + ref("H5") + ref("H3") / gap, label="fixed point"),
        Nonnegative(
            "Between the centre and any of these states the margin changes by at most the dual norm times D, so "
            "logit i stays strictly above logit j.",
            there,
            ref("F4") + ref("F3") + row * ref("H8") + ref("H6"),
            strict=True,
            label="kept",
        ),
        Nonnegative(
            "D = r covers every state of the ball: a margin above the dual norm times r decides for all of them.",
            row * r - row * D,
            row * ref("H7"),
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "later iterates are within max(d_k, e_0) of the centre",
            SPACE,
            distance,
            sharp=True,
            near=(NEAR,),
        ),
        Claim(
            "no margin falls by more than |w_i - w_j| max(d_k, e_0)",
            (*SPACE, Reals("w", -1, 1, 2)),
            logits,
            sharp=True,
            near=({**NEAR, "w": [-1.0, 0.0]},),
        ),
        Claim(
            "max(d_k, e_0) is at most d_k + 2 e_0",
            (Reals("d", 0, 5), Reals("e", 0, 5)),
            published,
            sharp=True,
            near=({"d": 1.0, "e": 0.0},),
        ),
    ),
    code=(
        "fpcheck/certify/progress.py:steps_to_decision",
        "fpcheck/certify/certificate.py:Certificate",
        "fpcheck/certify/decision.py:decisions",
        "fpcheck/check/full.py:full_lines",
        "fpcheck/check/quick.py:quick_lines",
    ),
    uses=("Q4",),
    remarks=(
        "Two triangle inequalities over z* give d_k + 2 e_0 instead of max(d_k, e_0), which is what one finds written "
        "elsewhere.",
        "Whether z_k is in the ball must be decided in the ball's own norm, and rounded up.",
        "For a read-out after a final norm, multiply the dual norm by its Lipschitz constant on the ball (N6), or "
        "make the norm a node of F.",
        "Iterates before the entry have to be looked at one by one; there are finitely many.",
    ),
)
