"""K5: the inverse of I - J over a ball, from one approximate inverse at its centre, and the adjoint's error."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, spectral_norm

q_0 = sp.Symbol("q_0", nonnegative=True)
q = sp.Symbol("q", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
alpha = sp.Symbol("alpha", nonnegative=True)
delta = sp.Symbol("delta", nonnegative=True)
x = sp.Symbol("x", nonnegative=True)
image = sp.Symbol("y", nonnegative=True)
centre = sp.Symbol("c", nonnegative=True)
moved = sp.Symbol("m", nonnegative=True)
through = sp.Symbol("t", nonnegative=True)
rho = sp.Symbol("rho", nonnegative=True)
w_size = sp.Symbol("W", nonnegative=True)
right = sp.Symbol("b", nonnegative=True)
off = sp.Symbol("e", nonnegative=True)
N = sp.Symbol("N", nonnegative=True)
J_c, J_s, u, w, v, r = (sp.Symbol(name, commutative=False) for name in ("J_c", "J_s", "u", "w", "v", "r"))


def _inverse(ctx, point):
    j, a = matrix(ctx, point["J"], 2, 2), matrix(ctx, point["A"], 2, 2)
    change = matrix(ctx, point["E"], 2, 2)
    eye = ctx.eye(2)
    defect = spectral_norm(ctx, eye - a * (eye - j)) + spectral_norm(ctx, a) * spectral_norm(ctx, change)
    if defect >= 1:
        return None
    return (eye - j - change) ** (-1), spectral_norm(ctx, a) / (1 - defect), j, change


def inverse(ctx, point):
    found = _inverse(ctx, point)
    return None if found is None else (spectral_norm(ctx, found[0]), found[1])


def adjoint(ctx, point):
    found = _inverse(ctx, point)
    if found is None:
        return None
    exact, bound, j, change = found
    slope, guess = ctx.matrix(point["v"]), ctx.matrix(point["w"])
    residual = norm(ctx, list(slope - guess + j.T * guess))
    room = residual + spectral_norm(ctx, change) * norm(ctx, list(guess))
    return norm(ctx, list(exact.T * slope - guess)), bound * room


SPACE = (Reals("J", -2, 2, 4), Reals("A", -2, 2, 4), Reals("E", -0.3, 0.3, 4))
FLAT = {"J": [0.5, 0.0, 0.0, 0.5], "A": [1.0, 0.0, 0.0, 1.0], "E": [0.1, 0.0, 0.0, 0.1]}

THEOREM = Theorem(
    id="K5",
    title="The inverse of I - J over a ball, and the error of an adjoint",
    statement=(
        r"Let $\|I - A (I - J)\| \le q_0$ at the centre of a ball, $\|A\| \le \alpha$, and $\|J(z) - J\| \le "
        r"\delta$ on the ball, with $q = q_0 + \alpha \delta < 1$. (a) For every $z$ of the ball $I - J(z)$ is "
        r"invertible and $\|(I - J(z))^{-1}\| \le \frac{\alpha}{1 - q}$. (b) In the Euclidean norm let $(I - "
        r"J(z^*))^T u = v$ for some $z^*$ of the ball, with $\|(I - J(z^*))^{-1}\| \le N$. Any $w$ with $\|v - (I "
        r"- J)^T w\| \le \rho$ satisfies $\|w - u\| \le N (\rho + \delta \|w\|)$. Both are attained."
    ),
    plain=(
        "How much a fixed point amplifies a push, bounded over a whole ball from one inverse at its centre; and "
        "how far an adjoint that was solved at the centre is from that of the fixed point, on which the exact "
        "gradient rests."
    ),
    symbols=(
        Symbol(q_0, "bound on |I - A (I - J)|"),
        Symbol(alpha, "bound on |A|"),
        Symbol(delta, "bound on |J(z) - J| over the ball", "change"),
        Symbol(q, "q_0 + alpha delta", "defect"),
        Symbol(gap, "1 - q"),
        Symbol(x, "length of a vector v"),
        Symbol(image, "|(I - J(z)) v|"),
        Symbol(centre, "|v - A (I - J) v|"),
        Symbol(moved, "|A (J(z) - J) v|"),
        Symbol(through, "|A (I - J(z)) v|"),
        Symbol(rho, "bound on |v - (I - J)' w|", "residual"),
        Symbol(w_size, "|w|", "length"),
        Symbol(right, "|v - (I - J)' w + (J(z*) - J)' w|"),
        Symbol(off, "|u - w|"),
        Symbol(N, "bound on |(I - J(z*))^-1|", "inverse"),
        Symbol(J_c, "transpose of J"),
        Symbol(J_s, "transpose of J(z*)"),
        Symbol(u, "the adjoint"),
        Symbol(w, "an approximate adjoint"),
        Symbol(v, "slope of the loss"),
        Symbol(r, "v - (I - J)' w"),
    ),
    hypotheses=(
        Hypothesis("H1", "|v - A (I - J) v| <= q_0 |v|", q_0 * x - centre),
        Hypothesis("H2", "|A (J(z) - J) v| <= alpha delta |v|", alpha * delta * x - moved),
        Hypothesis("H3", "|A (I - J(z)) v| <= alpha |(I - J(z)) v|", alpha * image - through),
        Hypothesis("H4", "q = q_0 + alpha delta", q - q_0 - alpha * delta, "zero"),
        Hypothesis("H5", "q < 1, written as gap = 1 - q > 0", gap - (1 - q), "zero"),
        Hypothesis("H6", "for (b): (I - J(z*))' u = v", (1 - J_s) * u - v, "zero"),
        Hypothesis("H7", "r = v - (I - J)' w", r - v + (1 - J_c) * w, "zero"),
        Hypothesis("H8", "|(I - J(z*))^-1| <= N, so that |u - w| <= N |(I - J(z*))' (u - w)|", N * right - off),
    ),
    facts=(
        Fact(
            "F1",
            "v = A (I - J(z)) v + A (J(z) - J) v + (v - A (I - J) v)",
            through + moved + centre - x,
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "F2",
            "|r + (J(z*) - J)' w| <= |r| + |J(z*) - J| |w|; a matrix and its transpose have the same 2-norm",
            rho + delta * w_size - right,
            "triangle inequality and the operator norm",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "(a) I - J(z) shortens no vector by more than the factor (1 - q)/alpha: it is injective, hence invertible.",
            alpha * image - (1 - q) * x,
            ref("F1") + ref("H1") + ref("H2") + ref("H3") + x * ref("H4"),
            label="injective",
        ),
        Nonnegative(
            "That is the bound on the inverse.",
            alpha * image / gap - x,
            (ref("injective") - x * ref("H5")) / gap,
        ),
        Identity(
            "(b) u - w solves the system of z* with the residual at the centre and the change of J on the right.",
            (1 - J_s) * (u - w),
            r + (J_s - J_c) * w,
            modulo={"H6": 1, "H7": -1},
        ),
        Nonnegative(
            "So its length is at most N times that of the right side.",
            N * (rho + delta * w_size) - off,
            N * ref("F2") + ref("H8"),
        ),
        Identity(
            "Attained: J = 0, A = 1, J(z) = delta on the line has the inverse 1/(1 - delta).",
            1 / (1 - delta),
            1 / (1 - (0 + 1 * delta)),
        ),
    ),
    source=Source("", derived=True, place="as Rump (2010), Acta Numerica 19, for a set of matrices"),
    claims=(
        Claim("|(I - J(z))^-1| <= alpha / (1 - q)", SPACE, inverse, sharp=True, near=(FLAT,)),
        Claim(
            "|w - u| <= N (rho + delta |w|), with N of (a)",
            (*SPACE, Reals("v", -1, 1, 2), Reals("w", -1, 1, 2)),
            adjoint,
            sharp=True,
            near=({**FLAT, "E": [0.0] * 4, "J": [0.0] * 4, "v": [1.0, 0.0], "w": [0.5, 0.0]},),
        ),
    ),
    not_checked=(NotChecked("an injective square matrix is invertible", "Horn and Johnson (2013), 0.5"),),
    code=(
        "fpcheck/certify/conditioning.py:conditioning",
        "fpcheck/certify/conditioning.py:verified_inverse",
        "fpcheck/certify/inputs.py:nearby",
    ),
    uses=("K1",),
    remarks=(
        "Unlike 1/(1 - kappa) it does not ask the loop to contract, and in the Euclidean norm it needs no metric.",
        "A gradient B'u follows with the error of B at the centre on top (G2, G7).",
    ),
)
