"""A5: softmax-weighted values over a ball, from centred scores."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import dot, norm, softmax

# One key.
P = sp.Symbol("P", positive=True)
x = sp.Symbol("x", real=True)
x_1 = sp.Symbol("x_1", real=True)
x_2 = sp.Symbol("x_2", real=True)
E = sp.Symbol("E", positive=True)
U = sp.Symbol("U", positive=True)
G = sp.Symbol("G", nonnegative=True)
b_s = sp.Symbol("b_s", nonnegative=True)
delta = sp.Symbol("delta", real=True)
dp = sp.Symbol("dp", nonnegative=True)
dp2 = sp.Symbol("dp_2", nonnegative=True)
u = sp.Symbol("u", real=True)
w = sp.Symbol("w", nonnegative=True)
dv = sp.Symbol("dv", real=True)
dv_1 = sp.Symbol("dv_1", real=True)
dv_2 = sp.Symbol("dv_2", real=True)
nu = sp.Symbol("nu", nonnegative=True)
b_v = sp.Symbol("b_v", nonnegative=True)
g = sp.Symbol("g", real=True)
# The whole row.
Z = sp.Symbol("Z", positive=True)
T = sp.Symbol("T", positive=True)
lse = sp.Symbol("lambda", real=True)
ell = sp.Symbol("ell", real=True)
o = sp.Symbol("o", real=True)
do = sp.Symbol("y", real=True)
do_1 = sp.Symbol("y_1", real=True)
lin_size = sp.Symbol("H", nonnegative=True)
om = sp.Symbol("omega", nonnegative=True)
om_2 = sp.Symbol("omega_2", nonnegative=True)
mean_du = sp.Symbol("S_u", real=True)
mean_ddv = sp.Symbol("S_d", real=True)
lin_s = sp.Symbol("D_s", real=True)
lin_v = sp.Symbol("D_v", real=True)
lin_s1 = sp.Symbol("D_s1", real=True)
lin_v1 = sp.Symbol("D_v1", real=True)
s_nu = sp.Symbol("A_1", nonnegative=True)
s_dnu = sp.Symbol("A_2", nonnegative=True)
s_dw = sp.Symbol("A_3", nonnegative=True)
s_d2w = sp.Symbol("A_4", nonnegative=True)
s_bw = sp.Symbol("A_5", nonnegative=True)
s_bv = sp.Symbol("A_6", nonnegative=True)

KEYS = Totals(
    (P, x, x_1, x_2, E, U, G, b_s, delta, dp, dp2, u, w, dv, dv_1, dv_2, nu, b_v, g),
    {
        P: 1,
        P * x: 0,
        P * E: Z,
        P * G: T - 1,
        delta: 0,
        P * u: 0,
        delta * u: mean_du,
        P * dv: lin_v,
        delta * dv: mean_ddv,
        P * x * u: lin_s,
        P * x_1 * u: lin_s1,
        P * dv_1: lin_v1,
        P * nu: s_nu,
        dp * nu: s_dnu,
        dp * w: s_dw,
        dp2 * w: s_d2w,
        P * b_s * w: s_bw,
        P * b_v: s_bv,
        g: do,
    },
)


def both_sides(upper, lower, first, second):
    """a b - s t, from a - s, a + s (``lower`` is a + s) and b - t, b + t: half the sum of the mixed products."""
    return (upper * second + lower * first) / 2


def _rows(values):
    return [values[i : i + 2] for i in range(0, len(values), 2)]


class _Row:
    """Three keys with values of two channels: exact changes, and the bounds of the statement with the least a and b."""

    def __init__(self, ctx, point):
        keys = range(3)
        p = softmax(ctx, point["s"])

        def centred(values):
            mean = dot(ctx, p, values)
            return [value - mean for value in values]

        x_1, x_2 = centred(point["x"]), centred(point["x2"])
        x = [a + b for a, b in zip(x_1, x_2, strict=True)]
        nothing = [ctx.mpf(0)] * 6
        v, dv_1, dv_2 = (_rows(point.get(name, nothing)) for name in ("v", "dv", "dv2"))
        dv = [[a + b for a, b in zip(first, second, strict=True)] for first, second in zip(dv_1, dv_2, strict=True)]
        moved = softmax(ctx, [s + h for s, h in zip(point["s"], x, strict=True)])

        def mix(weights, vectors):
            return [sum((weights[j] * vectors[j][m] for j in keys), ctx.mpf(0)) for m in range(2)]

        o = mix(p, v)
        off = [[a - b for a, b in zip(value, o, strict=True)] for value in v]
        new = mix(
            moved, [[a + b for a, b in zip(value, change, strict=True)] for value, change in zip(v, dv, strict=True)]
        )
        do = [a - b for a, b in zip(new, o, strict=True)]
        weighted = [p[j] * x[j] for j in keys]
        weighted_1 = [p[j] * x_1[j] for j in keys]
        lin = [a + b for a, b in zip(mix(weighted, off), mix(p, dv), strict=True)]
        lin_1 = [a + b for a, b in zip(mix(weighted_1, off), mix(p, dv_1), strict=True)]

        # What the statement bounds.
        self.change = [moved[j] - p[j] for j in keys]
        self.change_2 = [moved[j] - p[j] - p[j] * x[j] for j in keys]
        self.change_lin = [moved[j] - p[j] - p[j] * x_1[j] for j in keys]
        self.output = norm(ctx, do)
        self.remainder = norm(ctx, [a - b for a, b in zip(do, lin, strict=True)])
        slopes = [[moved[j] * (off[j][m] + dv[j][m] - do[m]) - p[j] * off[j][m] for m in range(2)] for j in keys]
        self.slopes = [norm(ctx, row) for row in slopes]
        first_order = [[p[j] * (x_1[j] * off[j][m] + dv_1[j][m] - lin_1[m]) for m in range(2)] for j in keys]
        self.slopes_2 = [norm(ctx, [a - b for a, b in zip(slopes[j], first_order[j], strict=True)]) for j in keys]

        # The bounds.
        a_s, b_s = [abs(h) for h in x], [abs(h) for h in x_2]
        nu, b_v = [norm(ctx, h) for h in dv], [norm(ctx, h) for h in dv_2]
        w = [norm(ctx, h) for h in off]
        excess = [ctx.expm1(a) - a for a in a_s]
        self.ell = ctx.log(1 + dot(ctx, p, excess))
        self.lse = ctx.log(sum((p[j] * ctx.exp(x[j]) for j in keys), ctx.mpf(0)))
        self.dp = [p[j] * max(ctx.expm1(a_s[j]), -ctx.expm1(-a_s[j] - self.ell)) for j in keys]
        self.dp2 = [p[j] * max(excess[j], self.ell) for j in keys]
        self.dp2_lin = [self.dp2[j] + p[j] * b_s[j] for j in keys]
        self.rho = dot(ctx, self.dp, nu) + dot(ctx, self.dp2, w)
        self.om_2 = dot(ctx, self.dp, nu) + dot(ctx, self.dp2_lin, w) + dot(ctx, p, b_v)
        first = sum(((p[j] + self.dp[j]) * nu[j] + self.dp[j] * w[j] for j in keys), ctx.mpf(0))
        self.om = min(first, norm(ctx, lin_1) + self.om_2)
        self.e = [self.dp[j] * w[j] + (p[j] + self.dp[j]) * (nu[j] + self.om) for j in keys]
        self.e2 = [self.dp2_lin[j] * w[j] + p[j] * (b_v[j] + self.om_2) + self.dp[j] * (nu[j] + self.om) for j in keys]


def lse_change(ctx, point):
    row = _Row(ctx, point)
    return row.lse, row.ell


def weights(ctx, point):
    row = _Row(ctx, point)
    return abs(row.change[0]), row.dp[0]


def weights_less_linear(ctx, point):
    row = _Row(ctx, point)
    return abs(row.change_2[0]), row.dp2[0]


def weights_less_state_linear(ctx, point):
    row = _Row(ctx, point)
    return abs(row.change_lin[0]), row.dp2_lin[0]


def output(ctx, point):
    row = _Row(ctx, point)
    return row.output, row.om


def remainder(ctx, point):
    row = _Row(ctx, point)
    return row.remainder, row.rho


def slope(ctx, point):
    row = _Row(ctx, point)
    return row.slopes[0], row.e[0]


def slope_less_linear(ctx, point):
    row = _Row(ctx, point)
    return row.slopes_2[0], row.e2[0]


SCORES = (Reals("s", -10, 10, 3), Reals("x", -3, 3, 3), Reals("x2", -1, 1, 3))
SPACE = (
    *SCORES,
    Reals("v", -2, 2, 6),
    Reals("dv", -1, 1, 6),
    Reals("dv2", -1, 1, 6),
)
# A key of little weight whose score moves far: nearly all bounds are equalities in the limit of no weight.
RARE = {
    "s": [-9, 0, 0],
    "x": [2, 0, 0],
    "x2": [0, 0, 0],
    "v": [1, 0, 0, 0, 0, 0],
    "dv": [0.5, 0, 0, 0, 0, 0],
    "dv2": [0, 0, 0, 0, 0, 0],
}
RARE_SPLIT = {**RARE, "x": [1, 0, 0], "x2": [1, 0, 0], "dv": [0.25, 0, 0, 0, 0, 0], "dv2": [0.25, 0, 0, 0, 0, 0]}

THEOREM = Theorem(
    id="A5",
    title="Softmax-weighted values over a ball",
    statement=(
        r"Let $o = \sum_j p_j v_j$, $p = \mathrm{softmax}(s)$, with centre $\hat p, \hat v, \hat o$, and centred "
        r"scores $\tilde s_j = s_j - \sum_k \hat p_k s_k$ with the numbers $\hat p$ fixed. Let $|\Delta \tilde s_j| "
        r"\le a_j$, $|\Delta v_j|_2 \le \nu_j$, of which the parts not linear in the state are at most $b_j$ and "
        r"$\beta_j$, and $w_j = |\hat v_j - \hat o|_2$. Put $\ell = \log\left(1 + \sum_j \hat p_j (e^{a_j} - 1 - "
        r"a_j)\right)$, $\delta_j = \hat p_j \max(e^{a_j} - 1, 1 - e^{-a_j - \ell})$, $\delta'_j = \hat p_j "
        r"\max(e^{a_j} - 1 - a_j, \ell)$, $\omega_2 = \sum_j \left(\delta_j \nu_j + (\delta'_j + \hat p_j b_j) w_j + "
        r"\hat p_j \beta_j\right)$ and $\omega = \min\left(\sum_j (\hat p_j + \delta_j) \nu_j + \delta_j w_j, \eta + "
        r"\omega_2\right)$, where $\eta$ bounds the part of $\Delta o$ that is linear in the state. Then $0 \le "
        r"\Delta \mathrm{lse} \le \ell$, $|\Delta p_j| \le \delta_j$, $|\Delta p_j - \hat p_j \Delta \tilde s_j| \le "
        r"\delta'_j$, $|\Delta o|_2 \le \omega$; $o$ less its linearisation is at most $\rho = \sum_j (\delta_j "
        r"\nu_j + \delta'_j w_j)$. The derivative of $o$ changes by at most $e = \delta_j w_j + (\hat p_j + "
        r"\delta_j)(\nu_j + \omega)$ on $\tilde s_j$ and $\delta_j$ on $v_j$; less the part linear in the state, by "
        r"at most $e_2 = (\delta'_j + \hat p_j b_j) w_j + \hat p_j (\beta_j + \omega_2) + \delta_j (\nu_j + \omega)$ "
        r"on $\tilde s_j$ and $\delta'_j + \hat p_j b_j$ on $v_j$."
    ),
    plain=(
        "How far softmax-weighted values and their Jacobian can move when scores and values move within given bounds. "
        "Centred scores leave out the common movement of all scores of a row, which softmax does not see."
    ),
    symbols=(
        Symbol(P, "probability of a key at the centre"),
        Symbol(x, "movement of its centred score"),
        Symbol(x_1, "the part of that which is linear in the state"),
        Symbol(x_2, "the rest of it"),
        Symbol(E, "exp(x)"),
        Symbol(U, "exp(a), a the bound on |x|"),
        Symbol(G, "exp(a) - 1 - a"),
        Symbol(b_s, "bound on |x_2|"),
        Symbol(delta, "movement of the probability"),
        Symbol(dp, "bound on it, delta_j of the statement"),
        Symbol(dp2, "bound on it less P x, delta'_j of the statement"),
        Symbol(u, "component of v - o at the centre along a unit vector f"),
        Symbol(w, "length of v - o at the centre"),
        Symbol(dv, "component of the value's movement along f"),
        Symbol(dv_1, "the part of that which is linear in the state"),
        Symbol(dv_2, "the rest of it"),
        Symbol(nu, "bound on the value's movement"),
        Symbol(b_v, "bound on the part of it that is not linear in the state, beta_j of the statement"),
        Symbol(g, "movement of the key's term p v along f"),
        Symbol(Z, "sum of P exp(x), the factor by which the sum of exponentials changes"),
        Symbol(T, "1 + sum of P G"),
        Symbol(lse, "log Z, the change of the logarithm of the sum of exponentials of centred scores"),
        Symbol(ell, "log T, its bound"),
        Symbol(o, "component of the output at the centre along f"),
        Symbol(do, "component of the output's movement"),
        Symbol(do_1, "the part of that which is linear in the state: D_s1 + D_v1"),
        Symbol(lin_size, "bound on |y_1|, eta of the statement"),
        Symbol(om, "bound on the output's movement"),
        Symbol(om_2, "bound on the part of it that is not linear in the state"),
        Symbol(mean_du, "sum of delta u"),
        Symbol(mean_ddv, "sum of delta dv"),
        Symbol(lin_s, "sum of P x u"),
        Symbol(lin_v, "sum of P dv"),
        Symbol(lin_s1, "sum of P x_1 u"),
        Symbol(lin_v1, "sum of P dv_1"),
        Symbol(s_nu, "sum of P nu"),
        Symbol(s_dnu, "sum of dp nu"),
        Symbol(s_dw, "sum of dp w"),
        Symbol(s_d2w, "sum of dp_2 w"),
        Symbol(s_bw, "sum of P b_s w"),
        Symbol(s_bv, "sum of P b_v"),
    ),
    hypotheses=(
        Hypothesis("H1", "new probability: P + delta = P E / Z, so delta is", delta - P * (E / Z - 1), "zero"),
        Hypothesis("H2", "dp covers the rise", dp - P * (U - 1)),
        Hypothesis("H3", "and the fall", dp - P * (1 - 1 / (U * T))),
        Hypothesis("H4", "dp_2 covers the excess", dp2 - P * G),
        Hypothesis("H5", "and the normalisation", dp2 - P * ell),
        Hypothesis("H6", "u is at most w", w - u),
        Hypothesis("H7", "and at least -w", w + u),
        Hypothesis("H8", "dv is at most nu", nu - dv),
        Hypothesis("H9", "and at least -nu", nu + dv),
        Hypothesis("H10", "x is the sum of its parts", x - x_1 - x_2, "zero"),
        Hypothesis("H11", "x_2 is at most b_s", b_s - x_2),
        Hypothesis("H12", "and at least -b_s", b_s + x_2),
        Hypothesis("H13", "dv is the sum of its parts", dv - dv_1 - dv_2, "zero"),
        Hypothesis("H14", "dv_2 is at most b_v", b_v - dv_2),
        Hypothesis(
            "H15",
            "a key's term moves by the new one less the old one",
            g - ((P + delta) * (o + u + dv) - P * (o + u)),
            "zero",
        ),
        Hypothesis("H16", "y_1 = D_s1 + D_v1", do_1 - lin_s1 - lin_v1, "zero"),
    ),
    facts=(
        Fact("F1", "e^x >= 1 + x", E - 1 - x, "S5", axiom=True),
        Fact("F2", "e^x <= 1 + x + (e^a - 1 - a)", 1 + x + G - E, "S5", axiom=True),
        Fact("F3", "e^x <= e^a", U - E, "S5", axiom=True),
        Fact("F4", "e^x >= e^-a", E * U - 1, "S5", axiom=True),
        Fact("F5", "e^y >= 1 + y at y = x - log Z", E / Z - 1 - (x - lse), "S5", axiom=True),
        Fact("F6", "e^y >= 1 + y at y = log(Z / T)", Z / T - 1 - (lse - ell), "S5", axiom=True),
        Fact("F7", "e^y >= 1 + y at y = -log Z", 1 / Z - 1 + lse, "S5", axiom=True),
        Fact("F8", "y <= omega", om - do, "steps 'omega' and 'omega, second way'", axiom=True),
        Fact("F9", "-y <= omega", om + do, "the same for -f", axiom=True),
        Fact("F10", "y_1 - y <= omega_2", om_2 + do - do_1, "step 'omega 2' for -f", axiom=True),
        Fact("F11", "y_1 <= eta, by definition of eta", lin_size - do_1, "definition", axiom=True),
    ),
    steps=(
        Nonnegative(
            "One key, centred score: its exponential is above the tangent.",
            P * (E - 1 - x),
            P * ref("F1"),
            label="tangent",
        ),
        Summed(
            "Summed with the centre's weights, the movements cancel, because they are centred.",
            "tangent",
            KEYS,
            Z - 1,
            label="Z >= 1",
        ),
        Nonnegative("And it is not further above it than at a.", P * (1 + x + G - E), P * ref("F2"), label="excess"),
        Summed("Summed likewise.", "excess", KEYS, T - Z, label="Z <= T"),
        Nonnegative("So log Z is not negative,", lse, ref("F7") + ref("Z >= 1") / Z, label="lse"),
        Nonnegative("and at most l = log T.", ell - lse, ref("F6") + ref("Z <= T") / T, label="lse bound"),
        Nonnegative(
            "A probability rises by at most dp,",
            dp - delta,
            ref("H2") + P * (ref("F3") + E * ref("Z >= 1") / Z) - ref("H1"),
            label="rise",
        ),
        Nonnegative(
            "and falls by at most dp.",
            dp + delta,
            ref("H3") + P * (ref("F4") * T + ref("Z <= T")) / (Z * U * T) + ref("H1"),
            label="fall",
        ),
        Nonnegative(
            "Less its linear part P x, it rises by at most dp_2, as Z >= 1,",
            dp2 - (delta - P * x),
            ref("H4") + P * (ref("F2") + E * ref("Z >= 1") / Z) - ref("H1"),
            label="rise 2",
        ),
        Nonnegative(
            "and falls by at most dp_2, as E/Z >= 1 + x - log Z.",
            dp2 + (delta - P * x),
            ref("H5") + P * (ref("F5") + ref("lse bound")) + ref("H1"),
            label="fall 2",
        ),
        Nonnegative("The new probability.", P + delta, P * E / Z + ref("H1"), label="new"),
        Identity(
            "The output's movement: one key's term.",
            g,
            delta * o + delta * u + (P + delta) * dv,
            {"H15": sp.Integer(1)},
            label="term",
        ),
        Summed(
            "Summed: the movements of the probabilities cancel.",
            "term",
            KEYS,
            do - (mean_du + lin_v + mean_ddv),
            label="movement",
        ),
        Nonnegative(
            "One key's share in it is at most dp w + (P + dp) nu.",
            dp * w + (P + dp) * nu - delta * u - P * dv - delta * dv,
            both_sides(ref("rise"), ref("fall"), ref("H6"), ref("H7")) + ref("new") * ref("H8") + ref("rise") * nu,
            label="share",
        ),
        Summed("Summed.", "share", KEYS, s_dw + s_nu + s_dnu - mean_du - lin_v - mean_ddv, label="shares"),
        Nonnegative(
            "So the movement along any unit f is at most the first form of omega.",
            s_dw + s_nu + s_dnu - do,
            ref("shares") - ref("movement"),
            label="omega",
        ),
        Nonnegative(
            "Less the linearisation, one key's share is at most dp_2 w + dp nu.",
            dp2 * w + dp * nu - (delta - P * x) * u - delta * dv,
            both_sides(ref("rise 2"), ref("fall 2"), ref("H6"), ref("H7"))
            + both_sides(ref("rise"), ref("fall"), ref("H8"), ref("H9")),
            label="remainder share",
        ),
        Summed(
            "Summed.", "remainder share", KEYS, s_d2w + s_dnu - mean_du + lin_s - mean_ddv, label="remainder shares"
        ),
        Nonnegative(
            "So the output less its linearisation D_s + D_v is at most rho.",
            s_dnu + s_d2w - (do - lin_s - lin_v),
            ref("remainder shares") - ref("movement"),
            label="rho",
        ),
        Nonnegative(
            "What the linearisation holds beyond the part that is linear in the state, one key.",
            P * b_s * w + P * b_v - P * (x - x_1) * u - P * (dv - dv_1),
            P * both_sides(ref("H11"), ref("H12"), ref("H6"), ref("H7"))
            + P * ref("H14")
            - P * u * ref("H10")
            - P * ref("H13"),
            label="nonlinear share",
        ),
        Summed(
            "Summed.",
            "nonlinear share",
            KEYS,
            s_bw + s_bv - (lin_s - lin_s1) - (lin_v - lin_v1),
            label="nonlinear shares",
        ),
        Nonnegative(
            "So the output's movement less y_1 = D_s1 + D_v1 is at most omega_2.",
            s_dnu + s_d2w + s_bw + s_bv - (do - lin_s1 - lin_v1),
            ref("rho") + ref("nonlinear shares"),
            label="omega 2",
        ),
        Nonnegative(
            "Hence the second form of omega: y = y_1 + (y - y_1) is at most eta + omega_2.",
            lin_size + s_dnu + s_d2w + s_bw + s_bv - do,
            ref("omega 2") + ref("F11") + ref("H16"),
            label="omega, second way",
        ),
        Identity(
            "The derivative of o on a score is p (v - o) (A6). Displaced less at the centre, along f:",
            (P + delta) * (u + dv - do) - P * u,
            delta * u + (P + delta) * (dv - do),
            label="slope",
        ),
        Nonnegative(
            "It is at most e; and on a value, where the derivative is p times the identity, at most dp.",
            dp * w + (P + dp) * (nu + om) - (delta * u + (P + delta) * (dv - do)),
            both_sides(ref("rise"), ref("fall"), ref("H6"), ref("H7"))
            + ref("new") * (ref("H8") + ref("F9"))
            + ref("rise") * (nu + om),
            label="e",
        ),
        Nonnegative(
            "Its part that is linear in the state is P x_1 u + P (dv_1 - y_1), as centred x_1 have mean 0 (A6). Less "
            "that, it is at most e_2.",
            (dp2 + P * b_s) * w
            + P * (b_v + om_2)
            + dp * (nu + om)
            - ((P + delta) * (u + dv - do) - P * u - P * x_1 * u - P * (dv_1 - do_1)),
            both_sides(ref("rise 2"), ref("fall 2"), ref("H6"), ref("H7"))
            + P * both_sides(ref("H11"), ref("H12"), ref("H6"), ref("H7"))
            + P * (ref("H14") + ref("F10"))
            + both_sides(ref("rise"), ref("fall"), ref("H8"), ref("H9"))
            + both_sides(ref("rise"), ref("fall"), ref("F9"), ref("F8"))
            - P * u * ref("H10")
            - P * ref("H13"),
            label="e 2",
        ),
        Nonnegative(
            "On a value: the probability's movement less P x_1 is at most dp_2 + P b_s (and likewise below).",
            dp2 + P * b_s - (delta - P * x_1),
            ref("rise 2") + P * ref("H11") - P * ref("H10"),
            label="e 2 on values",
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("lse change <= l", SCORES, lse_change, sharp=True, near=(RARE,)),
        Claim("|dp| <= delta", SCORES, weights, sharp=True, near=(RARE,)),
        Claim("|dp - p ds| <= delta'", SCORES, weights_less_linear, sharp=True, near=(RARE,)),
        Claim(
            "|dp - linear in the state| <= delta' + p b",
            SCORES,
            weights_less_state_linear,
            sharp=True,
            near=(RARE_SPLIT,),
        ),
        Claim("|do| <= omega", SPACE, output, sharp=True, near=(RARE,)),
        Claim("o less its linearisation <= rho", SPACE, remainder, sharp=True, near=(RARE,)),
        Claim("change of the derivative on a score <= e", SPACE, slope, sharp=True, near=(RARE,)),
        Claim(
            "the same less what is linear in the state <= e_2", SPACE, slope_less_linear, sharp=True, near=(RARE_SPLIT,)
        ),
    ),
    code=(
        "fpcheck/certify/nodes.py:nodes_of",
        "fpcheck/check/bends.py:nodes_of",
    ),
    uses=("S5", "A6"),
    remarks=(
        "The weights of the centring are those of the centre, as fixed numbers: with weights that move along, the "
        "centred scores would no longer be a linear map of the scores.",
        "delta_j need not grow at least in proportion to the radius (the normalisation l saturates it), so rho must be "
        "taken from here, not as half the sum of e times a.",
        "Sums run over the keys that the query may attend to (S4).",
    ),
)
