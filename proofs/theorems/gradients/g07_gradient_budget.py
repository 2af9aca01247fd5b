"""G7: the whole error of a computed gradient, from the forward and the adjoint residual, and whether it descends."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import dot, matrix, norm, scaled, spectral_norm

J = sp.Symbol("J_1", commutative=False)
J_s = sp.Symbol("J_*", commutative=False)
B = sp.Symbol("B_1", commutative=False)
B_s = sp.Symbol("B_*", commutative=False)
v = sp.Symbol("v_1^T", commutative=False)
v_s = sp.Symbol("v_*^T", commutative=False)
w = sp.Symbol("w^T", commutative=False)
u = sp.Symbol("u^T", commutative=False)
res = sp.Symbol("rho^T", commutative=False)
L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
e = sp.Symbol("e", nonnegative=True)
r = sp.Symbol("r", nonnegative=True)
rho = sp.Symbol("rho", nonnegative=True)
g = sp.Symbol("g", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
ell = sp.Symbol("l", nonnegative=True)
W = sp.Symbol("W", nonnegative=True)
V = sp.Symbol("V", nonnegative=True)
beta = sp.Symbol("beta", nonnegative=True)
beta_s = sp.Symbol("beta_*", nonnegative=True)
norm_b = sp.Symbol("n_B", nonnegative=True)
norm_j = sp.Symbol("n_J", nonnegative=True)
n_v = sp.Symbol("n_v", nonnegative=True)
a = sp.Symbol("a", nonnegative=True)
d = sp.Symbol("d", nonnegative=True)
E = sp.Symbol("E", nonnegative=True)
size = sp.Symbol("G_1", positive=True)
true = sp.Symbol("G_*", nonnegative=True)
h = sp.Symbol("h", real=True)
bound = sp.Symbol("T", nonnegative=True)
side = sp.Symbol("S", positive=True)

R = r / gap


def budget(distance):
    return b * distance * W + (beta + b * distance) * (rho + (ell + g * W) * distance) / gap


def _total(distance, gap, g, b, ell, size_w, size_b, rho):
    """The bound of the statement, in numbers."""
    return b * distance * size_w + (size_b + b * distance) * (rho + (ell + g * size_w) * distance) / gap


def between_two_states(ctx, point):
    """Two Jacobians, two B of one parameter, two v, any w; the distance is 1, so the changes are the constants."""
    rate = point["L"]
    here = scaled(ctx, matrix(ctx, point["J"], 2, 2), rate * point["share"])
    root = scaled(ctx, matrix(ctx, point["K"], 2, 2), rate)
    if here is None or root is None:
        return None
    b_1, b_2, v_1, v_2, w = (ctx.matrix(point[name]) for name in ("B", "C", "v", "y", "w"))
    u = ctx.lu_solve(ctx.eye(2) - root.T, v_2)
    rho = norm(ctx, list(v_1 - w + here.T * w))
    error = abs((b_1.T * w)[0] - (b_2.T * u)[0])
    changes = norm(ctx, list(b_1 - b_2)), norm(ctx, list(v_1 - v_2))
    return error, _total(
        ctx.mpf(1),
        1 - rate,
        spectral_norm(ctx, here - root),
        changes[0],
        changes[1],
        norm(ctx, list(w)),
        norm(ctx, list(b_1)),
        rho,
    )


def on_a_loop(ctx, point):
    """f = L z - g z^2/2 + t (1 - b z), loss slope 1 - l z, at t = 0 with z* = 0: |J| <= L for 0 <= z <= 2L/g."""
    rate, g, b, ell = point["L"], point["g"], point["b"], point["l"]
    z = point["share"] * 2 * rate / g
    slope, here, pull = rate - g * z, 1 - b * z, 1 - ell * z
    w = (pull - point["rho"]) / (1 - slope)
    residual = abs(rate * z - g * z**2 / 2 - z)
    return abs(here * w - 1 / (1 - rate)), _total(
        residual / (1 - rate), 1 - rate, g, b, ell, abs(w), abs(here), abs(point["rho"])
    )


def angle(ctx, point):
    """An error shorter than the computed gradient: |g_1| |g| sqrt(1 - T^2/|g_1|^2) <= <g_1, g>."""
    computed, error = point["g"], point["error"]
    exact = [x - y for x, y in zip(computed, error, strict=True)]
    gap = norm(ctx, computed) ** 2 - norm(ctx, error) ** 2
    if gap < 0:
        return None
    return ctx.sqrt(gap) * norm(ctx, exact), dot(ctx, computed, exact)


SPACE = (
    Reals("J", -1, 1, 4),
    Reals("K", -1, 1, 4),
    Reals("share", 0, 1),
    Reals("L", 0.001, 0.98),
    *(Reals(name, -1, 1, 2) for name in ("B", "C", "v", "y", "w")),
)
# Numbers 0.4, 0.5 for J, 0.5, 1 for B, 0.6, 1 for v; w = 0.5 has the residual 0.6 - 0.6 * 0.5.
ALIGNED = {
    "J": [1, 0, 0, 1],
    "K": [1, 0, 0, 1],
    "share": 0.8,
    "L": 0.5,
    "B": [0.5, 0],
    "C": [1, 0],
    "v": [0.6, 0],
    "y": [1, 0],
    "w": [0.5, 0],
}
LOOPS = (
    Reals("L", 0.01, 0.98),
    *(Reals(name, 0.01, 10, log=True) for name in ("g", "b", "l")),
    Reals("share", 1e-5, 1, log=True),
    Reals("rho", -2, 2),
)

THEOREM = Theorem(
    id="G7",
    title="Error budget of a computed gradient",
    statement=(
        r"Let $f$ be $L$-Lipschitz with $L < 1$ in the Euclidean norm, $J = \partial_z f$ $g$-Lipschitz, $B = "
        r"\partial_\theta f$ $b$-Lipschitz and the loss's derivative $v$ $l$-Lipschitz in $z$. At a state $\hat z$ "
        r"with residual $r = |f(\hat z) - \hat z|$ let $w$ be any vector, $\rho = |v(\hat z) - (I - J(\hat z)^T) w|$ "
        r"its adjoint residual, $\hat g = B(\hat z)^T w$ and $g^*$ the exact gradient at the fixed point. (a) With "
        r"$e = \frac{r}{1-L}$, $|\hat g - g^*| \le T = b e |w| + (\|B(\hat z)\| + b e) \frac{\rho + (l + g |w|) "
        r"e}{1-L}$. (b) $|w| \le \frac{|v(\hat z)| + \rho}{1-L}$. (c) If $T < |\hat g|$ then $\langle \hat g, g^* "
        r"\rangle \ge |\hat g| |g^*| \sqrt{1 - \frac{T^2}{|\hat g|^2}}$ and $\langle \hat g, g^* \rangle > 0$: "
        r"$-\hat g$ is a descent direction. With the distance itself for $e$, (a) is attained."
    ),
    plain=(
        "What a trainer can report with each sample's gradient: the two residuals and the norms of what was computed "
        "bound its whole error, and show whether the step goes downhill. The two residuals should be of one size, up "
        "to the factor (l + g|w|)/(1 - L)."
    ),
    symbols=(
        Symbol(J, "Jacobian at the computed state"),
        Symbol(J_s, "Jacobian at the fixed point"),
        Symbol(B, "parameter Jacobian at the computed state"),
        Symbol(B_s, "parameter Jacobian at the fixed point"),
        Symbol(v, "the loss's derivative at the computed state, a row"),
        Symbol(v_s, "the loss's derivative at the fixed point, a row"),
        Symbol(w, "computed adjoint, a row"),
        Symbol(u, "exact adjoint at the fixed point, a row"),
        Symbol(res, "adjoint residual, a row"),
        Symbol(L, "Lipschitz constant of f", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(e, "|z^ - z*|", "error_bound"),
        Symbol(r, "residual |f(z^) - z^|", "residual"),
        Symbol(rho, "length of the adjoint residual"),
        Symbol(g, "Lipschitz constant of J"),
        Symbol(b, "Lipschitz constant of B"),
        Symbol(ell, "Lipschitz constant of v"),
        Symbol(W, "|w|"),
        Symbol(V, "|v| at the computed state"),
        Symbol(beta, "|B| at the computed state"),
        Symbol(beta_s, "|B| at the fixed point"),
        Symbol(norm_b, "|B_1 - B_*|"),
        Symbol(norm_j, "|J_1 - J_*|"),
        Symbol(n_v, "|v_1 - v_*|"),
        Symbol(a, "length of (I - J_*^T)(u - w)"),
        Symbol(d, "|u - w|"),
        Symbol(E, "|g^ - g*|"),
        Symbol(size, "|g^|, for (c)"),
        Symbol(true, "|g*|"),
        Symbol(h, "<g^, g*>"),
        Symbol(bound, "the bound T on E"),
        Symbol(side, "sqrt(|g^|^2 - T^2)"),
    ),
    hypotheses=(
        Hypothesis("H1", "the exact adjoint", u * (1 - J_s) - v_s, "zero"),
        Hypothesis("H2", "the adjoint residual", res - v + w * (1 - J), "zero"),
        Hypothesis("H3", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H4", "J is g-Lipschitz between the two states", g * e - norm_j),
        Hypothesis("H5", "B is b-Lipschitz", b * e - norm_b),
        Hypothesis("H6", "v is l-Lipschitz", ell * e - n_v),
        Hypothesis("H7", "for (c): T bounds the error", bound - E),
        Hypothesis("H8", "for (c): T is below |g^|, and S^2 = |g^|^2 - T^2", side**2 - size**2 + bound**2, "zero"),
    ),
    facts=(
        Fact("F1", "|u - w| <= |(I - J_*^T)(u - w)| / (1 - L)", a / gap - d, "G1", axiom=True),
        Fact(
            "F2",
            "step 'system' in norms: the right side's three parts",
            n_v + rho + W * norm_j - a,
            "norm axioms",
            axiom=True,
        ),
        Fact("F3", "step 'gradient' in norms", W * norm_b + beta_s * d - E, "norm axioms", axiom=True),
        Fact("F4", "|B_*| <= |B_1| + |B_1 - B_*|", beta + norm_b - beta_s, "triangle inequality", axiom=True),
        Fact("F5", "the distance", R - e, "B2", axiom=True),
        Fact("F6", "w solves its system with the right side v_1 - rho", (V + rho) / gap - W, "G1", axiom=True),
        Fact(
            "F7",
            "|g^ - g*|^2 = |g^|^2 + |g*|^2 - 2 <g^, g*>",
            E**2 - size**2 - true**2 + 2 * h,
            "definition of the Euclidean norm",
            relation="zero",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "Put w into the system at the fixed point: what is missing there is the loss's change, the residual that "
            "was computed, and the Jacobian's change times w.",
            (u - w) * (1 - J_s),
            v_s - v + res - w * (J - J_s),
            modulo={"H1": sp.Integer(1), "H2": sp.Integer(-1)},
            label="system",
        ),
        Nonnegative(
            "So the adjoint's error is bounded by numbers at hand.",
            (rho + (ell + g * W) * e) / gap - d,
            ref("F1") + (ref("F2") + ref("H6") + W * ref("H4")) / gap,
            label="adjoint",
        ),
        Identity(
            "The gradients' difference: B's change times w, and B at the fixed point times the adjoint's error.",
            w * B - u * B_s,
            w * (B - B_s) + (w - u) * B_s,
            label="gradient",
        ),
        Nonnegative(
            "Together, with the distance e.",
            budget(e) - E,
            ref("F3") + W * ref("H5") + (ref("F4") + ref("H5")) * d + (beta + b * e) * ref("adjoint"),
            label="with the distance",
        ),
        Nonnegative(
            "(a) The bound grows with e, and e <= r / (1 - L).",
            budget(R) - E,
            ref("with the distance")
            + ref("F5") * (b * W + (beta * (ell + g * W) + b * rho + b * (ell + g * W) * (R + e)) / gap),
            label="a",
        ),
        Nonnegative("(b) In advance, w is no longer than this.", (V + rho) / gap - W, ref("F6")),
        Nonnegative(
            "(c) From three lengths to an angle: 2 <g^, g*> = |g^|^2 + |g*|^2 - E^2 >= 2 S |g*|.",
            h - side * true,
            ((true - side) ** 2 + ref("F7") - ref("H8") + ref("H7") * (bound + E)) / 2,
            label="angle",
        ),
        Nonnegative(
            "It is positive: even without |g*| the other squares leave S^2 / 2.",
            h,
            (side**2 + true**2 + ref("F7") - ref("H8") + ref("H7") * (bound + E)) / 2,
            strict=True,
        ),
        Identity(
            "Attained: numbers with J_* = L, J_1 = L - g e, B_* = B_1 + b e, v_* = v_1 + l e, and v_1 = (1 - J_1) w + "
            "rho.",
            (beta + b * e) * ((1 - L + g * e) * W + rho + ell * e) / (1 - L) - beta * W,
            b * e * W + (beta + b * e) * (rho + (ell + g * W) * e) / (1 - L),
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("(a) between any two states", SPACE, between_two_states, sharp=True, near=(ALIGNED,)),
        Claim(
            "(a) on the loop L z - g z^2/2 + t (1 - b z), from residuals alone",
            LOOPS,
            on_a_loop,
            near=({"L": 0.5, "g": 1.0, "b": 1.0, "l": 1.0, "share": 1e-5, "rho": 0.01},),
        ),
        Claim(
            "(c) the angle",
            (Reals("g", -1, 1, 3), Reals("error", -1, 1, 3)),
            angle,
            sharp=True,
        ),
    ),
    not_checked=(
        NotChecked("a matrix and its transpose have the same Euclidean norm", "Horn and Johnson (2013), 5.6.6"),
    ),
    code=("fpcheck/adjoint/error.py:gradient_error",),
    uses=("B2", "G1", "G2", "G3"),
    remarks=(
        "With rho = 0, (a) is G2's bound for one row; with r = 0 it is G3's.",
        "A loss that names the parameters directly adds its own derivative, exact up to its Lipschitz constant times "
        "e.",
        "The bounds of several samples add up; a mean of gradients whose summed T stays below its length descends.",
        "If f has the rate L only on a ball, the ball of radius r/(1 - L) about the computed state is enough (B3).",
    ),
)
