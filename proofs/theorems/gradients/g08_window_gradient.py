"""G8: the gradient through a window of damped steps from a detached state, as FPRM trains, against the implicit one."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Holds,
    Hypothesis,
    Identity,
    Induction,
    Nonnegative,
    Reals,
    Source,
    Summed,
    Symbol,
    Theorem,
    Totals,
    ref,
)
from proofs.numbers import frobenius_norm, matrix, scaled, spectral_norm

J = sp.Symbol("J", commutative=False)
J_j = sp.Symbol("J_j", commutative=False)
B = sp.Symbol("B", commutative=False)
B_j = sp.Symbol("B_j", commutative=False)
G = sp.Symbol("G", commutative=False)
D = sp.Symbol("D", commutative=False)
P = sp.Symbol("P", commutative=False)
v = sp.Symbol("v_1^T", commutative=False)
v_s = sp.Symbol("v_*^T", commutative=False)
s = sp.Symbol("s", positive=True)
L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
sigma = sp.Symbol("sigma", positive=True)
k = sp.Symbol("k", integer=True, nonnegative=True)
n = sp.Symbol("n", integer=True, nonnegative=True)
x = sp.Symbol("x_k", nonnegative=True)
x_next = sp.Symbol("x_n", nonnegative=True)
E = sp.Symbol("E_k", nonnegative=True)
E_next = sp.Symbol("E_n", nonnegative=True)
p = sp.Symbol("p_k", nonnegative=True)
t = sp.Symbol("t_k", real=True)
t_next = sp.Symbol("t_n", real=True)
gamma = sp.Symbol("gamma", nonnegative=True)
beta = sp.Symbol("beta", nonnegative=True)
share = sp.Symbol("c_k", real=True)
width = sp.Symbol("w", positive=True, integer=True)
column = sp.Symbol("a", nonnegative=True)
top = sp.Symbol("q", positive=True)
frob = sp.Symbol("F", nonnegative=True)
e = sp.Symbol("e_k", nonnegative=True)
e_next = sp.Symbol("e_n", nonnegative=True)
e_0 = sp.Symbol("e_0", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
g = sp.Symbol("g", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
norm_j = sp.Symbol("n_J", nonnegative=True)
norm_b = sp.Symbol("n_B", nonnegative=True)
V = sp.Symbol("V", nonnegative=True)
ell = sp.Symbol("l", nonnegative=True)
error = sp.Symbol("H", nonnegative=True)
rate = sp.Symbol("rho", positive=True)
room = sp.Symbol("room", positive=True)
delta = sp.Symbol("delta", nonnegative=True)
h = sp.Symbol("h_n", nonnegative=True)
h_next = sp.Symbol("h_m", nonnegative=True)
h_0 = sp.Symbol("h_0", nonnegative=True)

M = 1 - s + s * J
M_j = 1 - s + s * J_j
slope = b + g * gamma
floor = delta / room

STEPS = 3


def _window(ctx, jacobian, b, steps):
    """The derivative of STEPS damped steps at the fixed point, step by step as automatic differentiation takes it."""
    total = 0 * b
    for s in steps:
        total = (1 - s) * total + s * (jacobian * total + b)
    return total


def at_the_root(ctx, point):
    jacobian, b = scaled(ctx, matrix(ctx, point["J"], 2, 2), point["L"]), matrix(ctx, point["B"], 2, 2)
    if jacobian is None:
        return None
    exact = ctx.inverse(ctx.eye(2) - jacobian) * b
    factor = ctx.mpf(1)
    for s in point["s"]:
        factor *= 1 - s + s * point["L"]
    missing = spectral_norm(ctx, exact - _window(ctx, jacobian, b, point["s"]))
    return missing, spectral_norm(ctx, b) * factor / (1 - point["L"])


def published(ctx, point):
    """The published form: the whole matrix, B = I, in the Frobenius norm, undamped."""
    jacobian = scaled(ctx, matrix(ctx, point["J"], 2, 2), point["L"])
    if jacobian is None:
        return None
    exact = ctx.inverse(ctx.eye(2) - jacobian)
    missing = frobenius_norm(ctx, exact - _window(ctx, jacobian, ctx.eye(2), [ctx.mpf(1)] * STEPS))
    return missing, ctx.sqrt(ctx.mpf(2)) * point["L"] ** STEPS / (1 - point["L"])


def off_the_root(ctx, point):
    """f = L z - g z^2/2 + t (1 - b z) at t = 0, with z* = 0 and |J| <= L on [0, 2L/g], which the steps do not leave."""
    rate, g, b, s = point["L"], point["g"], point["b"], point["s"]
    y = start = point["share"] * 2 * rate / g
    total = ctx.mpf(0)
    for _ in range(STEPS):
        total = (1 - s) * total + s * ((rate - g * y) * total + 1 - b * y)
        y = (1 - s) * y + s * (rate * y - g * y**2 / 2)
    sigma, exact = 1 - s + s * rate, 1 / (1 - rate)
    bound = sigma**STEPS * exact + STEPS * s * sigma ** (STEPS - 1) * (b + g * exact) * start
    return abs(exact - total), bound


def moving_target(ctx, point):
    """z <- (1 - s) z + s (L z + t), STEPS steps per segment; between segments t moves so that z* moves by w."""
    rate, s, target = point["L"], point["s"], ctx.mpf(0)
    y = start = point["z"]
    for shift in point["w"]:
        for _ in range(STEPS):
            y = (1 - s) * y + s * (rate * y + (1 - rate) * target)
        target += shift
    factor, count = (1 - s + s * abs(rate)) ** STEPS, len(point["w"])
    return abs(y - target), factor**count * abs(start) + (1 - factor**count) / (1 - factor)


ROOT = (Reals("J", -1, 1, 4), Reals("L", 0.01, 0.98), Reals("B", -1, 1, 4), Reals("s", 0.01, 1, STEPS))
ALIGNED = {"J": [1, 0, 0, 1], "L": 0.5, "B": [1, 0, 0, 1], "s": [0.5] * STEPS}

THEOREM = Theorem(
    id="G8",
    title="Gradient through a window of damped steps",
    statement=(
        r"Let $\|J\| \le L < 1$ in an operator norm and let $D_k$ be the derivative of $k$ damped steps $y_{j+1} = (1 "
        r"- s_j) y_j + s_j f(y_j, \theta)$, $0 < s_j \le 1$, from a state $y_0$ that does not depend on $\theta$; for "
        r"one step size $s$, write $\sigma = 1 - s + s L$. (a) At a fixed point $G - D_k = \prod_{j<k} ((1-s_j) I + "
        r"s_j J)\, G$ for $G = (I - J)^{-1} B$, so $\|G - D_k\| \le \frac{\|B\|}{1-L} \prod_{j<k} (1 - s_j + s_j L)$, "
        r"for one step size $\frac{\|B\| \sigma^k}{1-L}$; sharp. For $B = I$ in $\mathbb{R}^w$ and the Euclidean "
        r"norm, the Frobenius norm of $G - D_k$ is at most $\frac{\sqrt w\, \sigma^k}{1-L}$. (b) If $J = 0$ there, "
        r"$D_k = (1 - (1-s)^k) B$: with $s = 0.1$ and $k = 6$, $46.9$ percent. (c) From $y_0$ at the distance $e_0$ "
        r"of $z^*$, if $f$ is $L$-Lipschitz, $J$ is $g$- and $B$ is $b$-Lipschitz, $\|G - D_k\| \le \sigma^k \|G\| + "
        r"k s \sigma^{k-1} (b + g \|G\|) e_0$. (d) If a segment of $k$ steps is followed by a change of $\theta$ that "
        r"moves the fixed point by at most $\delta$, the segments begin at distances $h_n \le \sigma^{kn} h_0 + "
        r"\delta \frac{1 - \sigma^{kn}}{1 - \sigma^k}$; sharp, so no better than $\frac{\delta}{1 - \sigma^k}$ can be "
        r"promised in the long run."
    ),
    plain=(
        "Training through the last k damped steps computes the beginning of the implicit gradient's series: the rest "
        "has the factor sigma^k, and damping by s keeps only 1 - (1 - s)^k even of what one step would give. On "
        "top comes an error in proportion to the distance at which the window begins, and parameters that change with "
        "every window keep that distance from vanishing."
    ),
    symbols=(
        Symbol(J, "Jacobian at the fixed point", "J"),
        Symbol(J_j, "Jacobian at the j-th state of the window"),
        Symbol(B, "parameter Jacobian at the fixed point"),
        Symbol(B_j, "parameter Jacobian at the j-th state"),
        Symbol(G, "implicit gradient"),
        Symbol(D, "derivative of the state so far"),
        Symbol(P, "product of the damped Jacobians so far, times G"),
        Symbol(v, "the loss's derivative at the end of the window, a row"),
        Symbol(v_s, "the same at the fixed point"),
        Symbol(s, "step size of the step concerned", "step"),
        Symbol(L, "bound on |J|", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(sigma, "1 - s + s L, positive (unless s = 1 and J = 0)"),
        Symbol(k, "number of steps"),
        Symbol(n, "number of segments"),
        Symbol(x, "|G - D_k - P_k|"),
        Symbol(x_next, "the same one step later"),
        Symbol(E, "|G - D_k|"),
        Symbol(E_next, "the same one step later"),
        Symbol(p, "product of the k factors 1 - s_j + s_j L"),
        Symbol(t, "|G - D_k| - p_k |G|"),
        Symbol(t_next, "the same one step later"),
        Symbol(gamma, "|G|"),
        Symbol(beta, "|B|"),
        Symbol(share, "share of B in D_k where J = 0"),
        Symbol(width, "dimension of the state"),
        Symbol(column, "length of one column of G - D_k, for B = I"),
        Symbol(top, "p_k / (1 - L), the bound on the Euclidean norm of G - D_k for B = I"),
        Symbol(frob, "its Frobenius norm"),
        Symbol(e, "|y_k - z*|"),
        Symbol(e_next, "|y_(k+1) - z*|"),
        Symbol(e_0, "|y_0 - z*|"),
        Symbol(m, "|f(y_k) - z*|"),
        Symbol(g, "Lipschitz constant of J"),
        Symbol(b, "Lipschitz constant of B"),
        Symbol(norm_j, "|J_j - J|"),
        Symbol(norm_b, "|B_j - B|"),
        Symbol(V, "|v_1|"),
        Symbol(ell, "Lipschitz constant of v"),
        Symbol(error, "error of the loss's gradient"),
        Symbol(rate, "sigma^k, the factor of a segment"),
        Symbol(room, "1 - sigma^k"),
        Symbol(delta, "how far the fixed point moves between segments, at most"),
        Symbol(h, "distance at the beginning of segment n"),
        Symbol(h_next, "at the beginning of the next"),
        Symbol(h_0, "at the first"),
    ),
    hypotheses=(
        Hypothesis("H1", "(I - J) G = B", (1 - J) * G - B, "zero"),
        Hypothesis("H2", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H3", "s <= 1 and |J| <= L at the states concerned (used in F1, F2 and F5)"),
        Hypothesis("H4", "sigma = 1 - s + s L", sigma - (1 - s + s * L), "zero"),
        Hypothesis("H5", "t_k = |G - D_k| - p_k |G|", t - E + p * gamma, "zero"),
        Hypothesis("H6", "the next one, with p_(k+1) = sigma p_k", t_next - E_next + sigma * p * gamma, "zero"),
        Hypothesis("H7", "for (c): f is L-Lipschitz between the states and z*", L * e - m),
        Hypothesis("H8", "for (c): J is g-Lipschitz there", g * e - norm_j),
        Hypothesis("H9", "for (c): B is b-Lipschitz there", b * e - norm_b),
        Hypothesis("H10", "for (d): room = 1 - sigma^k, positive", room - (1 - rate), "zero"),
    ),
    facts=(
        Fact(
            "F8",
            "no column of a matrix is longer than its Euclidean norm, nor than that norm's bound",
            top - column,
            "definition of the operator norm",
            axiom=True,
        ),
        Fact(
            "F1", "step 'exact next' in norms, |(1-s) I + s J| <= sigma", sigma * x - x_next, "norm axioms", axiom=True
        ),
        Fact("F2", "step 'next' in norms", sigma * E - E_next, "norm axioms", axiom=True),
        Fact("F3", "|G| <= |B| / (1 - L)", beta / gap - gamma, "G1", axiom=True),
        Fact(
            "F4",
            "|y_(k+1) - z*| <= (1 - s) |y_k - z*| + s |f(y_k) - z*|",
            (1 - s) * e + s * m - e_next,
            "norm axioms",
            axiom=True,
        ),
        Fact(
            "F5",
            "step 'next away' in norms",
            sigma * E + s * (norm_j * gamma + norm_b) - E_next,
            "norm axioms",
            axiom=True,
        ),
        Fact(
            "F6",
            "step 'loss' in norms, with |v_1 - v_*| <= l |y_k - z*|",
            V * E + ell * e * gamma - error,
            "norm axioms",
            axiom=True,
        ),
        Fact(
            "F7",
            "the next segment begins where this one ended, sigma^k nearer, while z* moves by delta at most",
            rate * h + delta - h_next,
            "step 'distance' and the triangle inequality",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "(a) One step differentiated: D <- (1-s) D + s (J D + B). G is left unchanged by it, whatever s, so the "
            "difference is multiplied by the damped Jacobian.",
            G - (M * D + s * B),
            M * (G - D),
            modulo={"H1": s},
            label="next",
        ),
        Identity(
            "The product of the damped Jacobians times G follows the same rule: G - D_k - P_k is multiplied by it too.",
            G - (M * D + s * B) - M * P,
            M * (G - D - P),
            modulo={"H1": s},
            label="exact next",
        ),
        Induction(
            "It is 0 for k = 0 (D_0 = 0, P_0 = G) and stays so: the exact form.",
            k,
            x,
            x_next,
            bound=sp.Integer(0),
            start=sp.Integer(0),
            base=sp.Integer(0),
            step=ref("F1") + sigma * ref("IH"),
        ),
        Induction(
            "The lengths, with p_k the product of the factors: |G - D_k| - p_k |G| stays at most 0.",
            k,
            t,
            t_next,
            bound=sp.Integer(0),
            start=sp.Integer(0),
            base=sp.Integer(0),
            step=ref("F2") - ref("H6") + sigma * ref("IH") + sigma * ref("H5"),
            label="lengths",
        ),
        Nonnegative(
            "With |G| <= |B| / (1 - L).",
            p * beta / gap - E,
            ref("lengths") + ref("H5") + p * ref("F3"),
        ),
        Nonnegative(
            "The published form: the square of a column's length is at most that of the bound q,",
            top**2 - column**2,
            ref("F8") * (top + column),
            label="column",
        ),
        Summed(
            "summed over the w columns,",
            "column",
            Totals((column,), {sp.Integer(1): width, column**2: frob**2}),
            width * top**2 - frob**2,
            label="columns",
        ),
        Nonnegative(
            "so the Frobenius norm is at most sqrt(w) q.",
            sp.sqrt(width) * top - frob,
            ref("columns") / (sp.sqrt(width) * top + frob),
        ),
        Identity(
            "Attained for numbers J = L: D <- (1 - s) D + s (L D + beta) gives D_k = beta (1 - sigma^k)/(1 - L).",
            sigma * beta * (1 - sigma**k) / gap + s * beta,
            beta * (1 - sigma ** (k + 1)) / gap,
            modulo={"H4": beta / gap, "H2": s * beta / gap},
        ),
        Identity(
            "(b) Where J = 0, the share of B follows c <- (1 - s) c + s: c_k = 1 - (1 - s)^k.",
            (1 - s) * (1 - (1 - s) ** k) + s,
            1 - (1 - s) ** (k + 1),
        ),
        Holds("Six steps with s = 1/10.", 1 - sp.Rational(9, 10) ** 6, "==", sp.Rational(468559, 10**6)),
        Identity(
            "(c) Away from the fixed point the step's own Jacobians enter; what G misses in it is their change.",
            G - (M_j * D + s * B_j),
            M_j * (G - D) + s * ((J - J_j) * G + B - B_j),
            modulo={"H1": s},
            label="next away",
        ),
        Induction(
            "The states approach z* by sigma per step.",
            k,
            e,
            e_next,
            bound=sigma**k * e_0,
            start=e_0,
            base=sp.Integer(0),
            step=ref("F4") + s * ref("H7") + sigma * ref("IH") + ref("H4") * e,
            label="distance",
        ),
        Induction(
            "Each step damps the error so far and adds one of the order of the distance, itself damped: k equal terms.",
            k,
            E,
            E_next,
            bound=sigma**k * gamma + k * s * sigma**k / sigma * slope * e_0,
            start=gamma,
            base=sp.Integer(0),
            step=ref("F5") + sigma * ref("IH") + s * (ref("H8") * gamma + ref("H9")) + s * slope * ref("distance"),
            label="away",
        ),
        Identity(
            "The loss's gradient adds the change of its own derivative.",
            v * D - v_s * G,
            (v - v_s) * G - v * (G - D),
            label="loss",
        ),
        Nonnegative(
            "Its error: |v_1| times the above, plus l sigma^k e_0 |G|.",
            V * (sigma**k * gamma + k * s * sigma**k / sigma * slope * e_0) + ell * sigma**k * e_0 * gamma - error,
            ref("F6") + V * ref("away") + ell * gamma * ref("distance"),
        ),
        Induction(
            "(d) Segment after segment the distance shrinks by sigma^k and grows by delta.",
            n,
            h,
            h_next,
            bound=rate**n * h_0 + (1 - rate**n) * floor,
            start=h_0,
            base=sp.Integer(0),
            step=ref("F7") + rate * ref("IH") - floor * ref("H10"),
        ),
        Identity(
            "A segment that begins at delta / (1 - sigma^k) is followed by one that does, if z* runs ahead.",
            rate * floor + delta,
            floor,
            modulo={"H10": floor},
        ),
    ),
    source=Source(
        "",
        derived=True,
        place="arXiv 2606.18206, Proposition 1, has sqrt(D) sigma^k / (1 - sigma) at a fixed point without damping",
    ),
    claims=(
        Claim("(a) three steps of any size at a fixed point", ROOT, at_the_root, sharp=True, near=(ALIGNED,)),
        Claim("(a) the published form", ROOT[:2], published, sharp=True, near=(ALIGNED,)),
        Claim(
            "(c) three steps of L z - g z^2/2 + t (1 - b z) from a distance",
            (
                Reals("L", 0.01, 0.98),
                Reals("g", 0.01, 10, log=True),
                Reals("b", 0.01, 10, log=True),
                Reals("share", 1e-4, 1, log=True),
                Reals("s", 0.01, 1),
            ),
            off_the_root,
        ),
        Claim(
            "(d) three segments towards a moving fixed point",
            (Reals("L", -0.99, 0.99), Reals("s", 0.01, 1), Reals("z", -20, 20), Reals("w", -1, 1, 3)),
            moving_target,
            sharp=True,
        ),
    ),
    code=(
        "fpcheck/adjoint/adjoints.py:TruncatedWindow",
        "fpcheck/adjoint/error.py:gradient_error",
        "fpcheck/train.py:train",
    ),
    uses=("G1", "G4"),
    remarks=(
        "The published proposition does not cover what the code runs: it takes the state for a fixed point, the map "
        "for undamped and the parameters for constant. In the code a segment begins at the last one's end with new "
        "parameters, so it is (c) that holds, with e_0 from (d).",
        "In (d), delta is at most |B| / (1 - L) times the length of the parameters' step (G9).",
        "Multiplying by 1/(1 - (1 - s)^k) corrects the factor of (b) where J = 0, nowhere else.",
        "(a) is G4 (b) where all steps have one size; here they may change, as a solver's do.",
        "The step sizes come from the solver's statistics and count as constants, as in the code.",
    ),
)
