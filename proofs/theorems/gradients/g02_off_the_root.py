"""G2: how wrong the implicit gradient is when it is taken at a state that is not quite the fixed point."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, scaled, spectral_norm

J = sp.Symbol("J_1", commutative=False)
J_s = sp.Symbol("J_*", commutative=False)
B = sp.Symbol("B_1", commutative=False)
B_s = sp.Symbol("B_*", commutative=False)
N = sp.Symbol("N_1", commutative=False)
N_s = sp.Symbol("N_*", commutative=False)
L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
n = sp.Symbol("n_1", nonnegative=True)
n_s = sp.Symbol("n_*", nonnegative=True)
R = sp.Symbol("R", nonnegative=True)
G = sp.Symbol("G_1", nonnegative=True)
G_s = sp.Symbol("G_*", nonnegative=True)
D = sp.Symbol("D", nonnegative=True)
change_b = sp.Symbol("d_B", nonnegative=True)
change_j = sp.Symbol("d_J", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
g = sp.Symbol("g", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
r = sp.Symbol("r", nonnegative=True)


def _two_points(ctx, point):
    """Two Jacobians of norm at most L and two B's of one parameter: |G_1 - G_*|, the changes' norms, |B_*|, |G_1|."""
    rate = point["L"]
    first = scaled(ctx, matrix(ctx, point["J"], 2, 2), rate * point["share"])
    second = scaled(ctx, matrix(ctx, point["K"], 2, 2), rate)
    if first is None or second is None:
        return None
    b_1, b_2 = ctx.matrix(point["B"]), ctx.matrix(point["C"])
    g_1, g_2 = ctx.lu_solve(ctx.eye(2) - first, b_1), ctx.lu_solve(ctx.eye(2) - second, b_2)
    d_g, d_b, size_b, size_g = (norm(ctx, list(x)) for x in (g_1 - g_2, b_1 - b_2, b_2, g_1))
    return d_g, d_b, spectral_norm(ctx, first - second), size_b, size_g, 1 - rate


def from_the_root(ctx, point):
    found = _two_points(ctx, point)
    if found is None:
        return None
    change, d_b, d_j, size, _, gap = found
    return change, d_b / gap + d_j * size / gap**2


def from_the_computed(ctx, point):
    found = _two_points(ctx, point)
    if found is None:
        return None
    change, d_b, d_j, _, size, gap = found
    return change, (d_b + d_j * size) / gap


def _loop(point):
    """f = L z - g z^2/2 + t (1 - b z) at t = 0, whose fixed point is 0; |J| <= L at 0 <= z <= 2L/g, B >= 0 to 1/b."""
    rate, g, b = point["L"], point["g"], point["b"]
    z = point["share"] * min(2 * rate / g, 1 / b)
    slope = rate - g * z
    image = rate * z - g * z**2 / 2
    here = (1 - b * z) / (1 - slope)
    return abs(here - 1 / (1 - rate)), z, abs(image - z), here, 1 - rate, g, b


def computed_on_a_loop(ctx, point):
    change, _, residual, here, gap, g, b = _loop(point)
    return change, (b + g * here) / gap * residual / gap


def root_on_a_loop(ctx, point):
    change, distance, _, _, gap, g, b = _loop(point)
    return change, (b / gap + g / gap**2) * distance


SPACE = (
    Reals("J", -1, 1, 4),
    Reals("K", -1, 1, 4),
    Reals("share", 0, 1),
    Reals("L", 0.001, 0.98),
    Reals("B", -1, 1, 2),
    Reals("C", -1, 1, 2),
)
ONE = [1, 0, 0, 1]
ALIGNED = {"J": ONE, "K": ONE, "share": 0.999, "L": 0.5, "B": [0.5, 0], "C": [1, 0]}
LOOPS = (
    Reals("L", 0.01, 0.98),
    Reals("g", 0.01, 10, log=True),
    Reals("b", 0.01, 10, log=True),
    Reals("share", 1e-4, 1, log=True),
)

THEOREM = Theorem(
    id="G2",
    title="Gradient error away from the root",
    statement=(
        r"Let $G(z) = (I - J(z))^{-1} B(z)$, with $J = \partial_z f$ and $B = \partial_\theta f$, let $z^*$ be the "
        r"fixed point, where $\|(I - J(z^*))^{-1}\| \le \frac{1}{1-L}$ and $\|B(z^*)\| \le R$, and let $J$ be "
        r"$g$-Lipschitz and $B$ $b$-Lipschitz between $\hat z$ and $z^*$. (a) $\|G(\hat z) - G(z^*)\| \le \frac{b + g "
        r"\|G(\hat z)\|}{1-L} \|\hat z - z^*\|$. (b) If the bound on the inverse holds at $\hat z$ too, it is at most "
        r"$\left(\frac{b}{1-L} + \frac{g R}{(1-L)^2}\right) \|\hat z - z^*\|$. (c) If $f$ is $L$-Lipschitz between "
        r"them, $\|\hat z - z^*\| \le \frac{r}{1-L}$ with the residual $r = \|f(\hat z) - \hat z\|$. Equality is "
        r"attained in (a), and approached in (b) and (c)."
    ),
    plain=(
        "An implicit gradient at a state that has not quite settled is wrong by a multiple of the residual. In (a) "
        "everything but the constants b, g and L is computed anyway; the price of a slow loop is 1/(1 - L)^2 for the "
        "gradient at hand and up to 1/(1 - L)^3 in advance."
    ),
    symbols=(
        Symbol(J, "Jacobian at the computed state"),
        Symbol(J_s, "Jacobian at the fixed point"),
        Symbol(B, "parameter Jacobian at the computed state"),
        Symbol(B_s, "parameter Jacobian at the fixed point"),
        Symbol(N, "inverse of I - J_1"),
        Symbol(N_s, "inverse of I - J_*"),
        Symbol(L, "with |N| <= 1/(1 - L); Lipschitz constant of f in (c)", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(n, "|N_1|"),
        Symbol(n_s, "|N_*|"),
        Symbol(R, "bound on |B_*|"),
        Symbol(G, "|G_1|, the size of the gradient at the computed state"),
        Symbol(G_s, "|G_*|"),
        Symbol(D, "|G_1 - G_*|"),
        Symbol(change_b, "|B_1 - B_*|"),
        Symbol(change_j, "|J_1 - J_*|"),
        Symbol(b, "Lipschitz constant of B"),
        Symbol(g, "Lipschitz constant of J"),
        Symbol(e, "|z^ - z*|", "error_bound"),
        Symbol(r, "residual |f(z^) - z^|", "residual"),
    ),
    hypotheses=(
        Hypothesis("H1", "N_1 (I - J_1) = I: the computed state has an implicit gradient", N * (1 - J) - 1, "zero"),
        Hypothesis("H2", "(I - J_1) N_1 = I, the same from the other side", (1 - J) * N - 1, "zero"),
        Hypothesis("H3", "N_* (I - J_*) = I", N_s * (1 - J_s) - 1, "zero"),
        Hypothesis("H4", "(I - J_*) N_* = I", (1 - J_s) * N_s - 1, "zero"),
        Hypothesis("H5", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H6", "|N_*| <= 1/(1 - L)", 1 / gap - n_s),
        Hypothesis("H7", "J is g-Lipschitz between the two states", g * e - change_j),
        Hypothesis("H8", "B is b-Lipschitz between them", b * e - change_b),
        Hypothesis("H9", "for (b): |N_1| <= 1/(1 - L)", 1 / gap - n),
        Hypothesis("H10", "for (b): |G_*| <= R/(1 - L), from |B_*| <= R", R / gap - G_s),
    ),
    facts=(
        Fact(
            "F1",
            "step 'from computed' in norms: |N_* X| <= |N_*| |X| and |B_1 - B_* + (J_1 - J_*) G_1| <= d_B + d_J G",
            n_s * (change_b + change_j * G) - D,
            "norm axioms",
            axiom=True,
        ),
        Fact(
            "F2",
            "step 'from the root' in norms",
            n * (change_b + change_j * G_s) - D,
            "norm axioms",
            axiom=True,
        ),
        Fact("F3", "|z^ - z*| <= r / (1 - L)", r / gap - e, "B2", axiom=True),
    ),
    steps=(
        Identity(
            "(a) The resolvent identity, N_1 - N_* = N_* (J_1 - J_*) N_1, applied to B_1: the difference of the "
            "gradients is one solve at the root, with a right side that the computed gradient gives.",
            N * B - N_s * B_s,
            N_s * (B - B_s + (J - J_s) * N * B),
            modulo={"H2": (N_s, B), "H3": (sp.Integer(-1), N * B)},
            label="from computed",
        ),
        Nonnegative(
            "Insert the Lipschitz bounds and that on the inverse.",
            (b + g * G) * e / gap - D,
            ref("F1") + ref("H6") * (change_b + change_j * G) + (ref("H8") + ref("H7") * G) / gap,
            label="a",
        ),
        Identity(
            "(b) The same with the points exchanged: now the inverse is that at the computed state, and the right side "
            "needs the gradient at the root.",
            N * B - N_s * B_s,
            N * (B - B_s + (J - J_s) * N_s * B_s),
            modulo={"H4": (-N, B_s), "H1": (sp.Integer(1), N_s * B_s)},
            label="from the root",
        ),
        Nonnegative(
            "Insert |N_1| <= 1/(1 - L) and |G_*| <= R/(1 - L).",
            (b / gap + g * R / gap**2) * e - D,
            ref("F2")
            + ref("H9") * (change_b + change_j * G_s)
            + (ref("H8") + ref("H7") * G_s) / gap
            + g * e * ref("H10") / gap,
            label="b",
        ),
        Nonnegative(
            "(c) With the residual in place of the distance: (a) becomes computable.",
            (b + g * G) * r / gap**2 - D,
            ref("a") + (b + g * G) * ref("F3") / gap,
        ),
        Nonnegative(
            "And (b) becomes a bound in advance.",
            (b / gap + g * R / gap**2) * r / gap - D,
            ref("b") + (b / gap + g * R / gap**2) * ref("F3"),
        ),
        Identity(
            "Attained in (a): numbers with J_* = L, J_1 = L - g e, B_* = R, B_1 = R - b e, e the distance.",
            R / (1 - L) - (R - b * e) / (1 - L + g * e),
            (b + g * (R - b * e) / (1 - L + g * e)) * e / (1 - L),
        ),
        Identity(
            "For these numbers the bound (b) is too large by a share that vanishes with e.",
            (b / (1 - L) + g * R / (1 - L) ** 2) * e - (R / (1 - L) - (R - b * e) / (1 - L + g * e)),
            g * e**2 * (b * (1 - L) + g * R) / ((1 - L) ** 2 * (1 - L + g * e)),
        ),
    ),
    source=Source(
        "Blondel et al.", 2022, "Efficient and modular implicit differentiation, Theorem 1, for (b); (a) derived here"
    ),
    claims=(
        Claim("(a) between any two pairs of matrices", SPACE, from_the_computed, sharp=True, near=(ALIGNED,)),
        Claim("(b) between any two pairs of matrices", SPACE, from_the_root, near=(ALIGNED,)),
        Claim(
            "(a) with the residual, on the loop L z - g z^2/2 + t (1 - b z)",
            LOOPS,
            computed_on_a_loop,
            near=({"L": 0.5, "g": 1.0, "b": 1.0, "share": 0.0001},),
            sharp=True,
        ),
        Claim(
            "(b) on the same loop",
            LOOPS,
            root_on_a_loop,
            near=({"L": 0.5, "g": 1.0, "b": 1.0, "share": 0.0001},),
            sharp=True,
        ),
    ),
    code=("fpcheck/adjoint/error.py:gradient_error",),
    uses=("B2", "G1"),
    remarks=(
        "(a) is stronger than the published form in three ways: it needs the bound on the inverse at the root only, "
        "the size of the gradient is the computed one, and it is attained at every distance.",
        "Where f comes from a transformer block, N4, A6 and C7 bound how fast its Jacobian changes.",
        "Without a bound on the inverse at the root none of this holds: a state may have a small residual and a tame "
        "gradient while the root nearby has J = I.",
    ),
)
