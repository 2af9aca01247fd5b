"""C10: how the derivative of a gated product, as in SwiGLU, changes over a ball."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, series_tanh, spectral_norm

sigma = sp.Function("sigma")
g = sp.Symbol("g", real=True)
u = sp.Symbol("u", real=True)
T = sp.Symbol("T", nonnegative=True)
N = sp.Symbol("N", positive=True)
x_g = sp.Symbol("x_g", real=True)
x_u = sp.Symbol("x_u", real=True)
d0 = sp.Symbol("d_0", real=True)
d1 = sp.Symbol("d_1", real=True)
d2 = sp.Symbol("d_2", real=True)
K1 = sp.Symbol("K_1", nonnegative=True)
K2 = sp.Symbol("K_2", nonnegative=True)
K3 = sp.Symbol("K_3", nonnegative=True)
a_g = sp.Symbol("a_g", nonnegative=True)
a_u = sp.Symbol("a_u", nonnegative=True)
b_g = sp.Symbol("b_g", nonnegative=True)
b_u = sp.Symbol("b_u", nonnegative=True)
dg = sp.Symbol("Delta_g", real=True)
du = sp.Symbol("Delta_u", real=True)
ng = sp.Symbol("n_g", real=True)
nu = sp.Symbol("n_u", real=True)
R0 = sp.Symbol("R_0", real=True)
E1 = sp.Symbol("E_1", real=True)
R1 = sp.Symbol("R_1", real=True)
curve = sp.Symbol("curve", real=True)
m1 = sp.Symbol("m_1", nonnegative=True)
m2 = sp.Symbol("m_2", nonnegative=True)
e_u = sp.Symbol("e_u", nonnegative=True)
s = sp.Symbol("s", nonnegative=True)
m1_s = sp.Symbol("m_1s", nonnegative=True)
m2_s = sp.Symbol("m_2s", nonnegative=True)

E0 = d1 * dg + R0
slope = d1 + E1
change_g = slope * (u + du) - d1 * u
e_g = m1 * a_u + m2 * abs(u) * a_g
e2_g = abs(d1) * b_u + m2 * a_g * a_u + abs(u) * (K3 * a_g**2 / 2 + abs(d2) * b_g)
e2_u = m2 * a_g**2 / 2 + abs(d1) * b_g
rest = (d0 + E0) * (u + du) - d0 * u - d1 * u * dg - d0 * du
rho = m2 * abs(u) * a_g**2 / 2 + e_u * a_u

# SwiGLU's constants, C1 and C7, in the figures of the statement.
SILU = ("10998394/10000000", "1/2", "3081816/10000000")


def _rational(ctx, text):
    top, bottom = text.split("/")
    return ctx.mpf(int(top)) / int(bottom)


def silu(ctx, at):
    """SiLU and its first two derivatives, from Taylor coefficients of x (1 + tanh(x/2)) / 2."""
    share = [c / 2 for c in series_tanh(ctx, [at / 2, ctx.mpf(1) / 2, ctx.mpf(0)])]
    share[0] += ctx.mpf(1) / 2
    return at * share[0], at * share[1] + share[0], 2 * (at * share[2] + share[1])


def hessian(ctx, point):
    """The second derivative's norm as a matrix in (g, u)."""
    _, first, second = silu(ctx, point["g"])
    t = second * point["u"]
    left = spectral_norm(ctx, matrix(ctx, [t, first, first, ctx.mpf(0)], 2, 2))
    return left, (abs(t) + ctx.sqrt(t * t + 4 * first * first)) / 2


def over_ball(function, limits):
    """The sides of the statement's five bounds, for a function with its first two derivatives and bounds K_1 to K_3."""

    def case(ctx, point):
        k1, k2, k3 = limits(ctx)
        ag, au = point["a_g"], point["a_u"]
        centre, moved = function(ctx, point["g"]), function(ctx, point["g"] + ag * point["s_g"])
        m2 = min(abs(centre[2]) + k3 * ag, k2)
        m1 = min(abs(centre[1]) + m2 * ag, k1)
        e_u = min(abs(centre[1]) * ag + m2 * ag**2 / 2, m1 * ag)
        return point["u"], ag, au, ag * point["s_g"], au * point["s_u"], centre, moved, m1, m2, e_u, k3

    def change_g(ctx, point):
        up, ag, au, _, move_u, centre, moved, m1, m2, _, _ = case(ctx, point)
        return abs(moved[1] * (up + move_u) - centre[1] * up), m1 * au + m2 * abs(up) * ag

    def change_u(ctx, point):
        _, _, _, _, _, centre, moved, _, _, e_u, _ = case(ctx, point)
        return abs(moved[0] - centre[0]), e_u

    def beyond_g(ctx, point):
        up, ag, au, move_g, move_u, centre, moved, _, m2, _, k3 = case(ctx, point)
        bg, bu = point["b_g"], point["b_u"]
        linear_g, linear_u = move_g - bg * point["t_g"], move_u - bu * point["t_u"]
        left = moved[1] * (up + move_u) - centre[1] * up - centre[2] * up * linear_g - centre[1] * linear_u
        right = abs(centre[1]) * bu + m2 * ag * au + abs(up) * (k3 * ag**2 / 2 + abs(centre[2]) * bg)
        return abs(left), right

    def beyond_u(ctx, point):
        _, ag, _, move_g, _, centre, moved, _, m2, _, _ = case(ctx, point)
        linear_g = move_g - point["b_g"] * point["t_g"]
        return abs(moved[0] - centre[0] - centre[1] * linear_g), m2 * ag**2 / 2 + abs(centre[1]) * point["b_g"]

    def remainder(ctx, point):
        up, ag, au, move_g, move_u, centre, moved, _, m2, e_u, _ = case(ctx, point)
        left = moved[0] * (up + move_u) - centre[0] * up - centre[1] * up * move_g - centre[0] * move_u
        return abs(left), m2 * abs(up) * ag**2 / 2 + e_u * au

    return change_g, change_u, beyond_g, beyond_u, remainder


change_of_g, change_of_u, beyond_second_g, beyond_second_u, remainder = over_ball(
    silu, lambda ctx: [_rational(ctx, k) for k in SILU]
)


def _ends(ctx, point, share):
    """e_g and e_u for a share of the movement."""
    k1, k2, k3 = (_rational(ctx, k) for k in SILU)
    _, first, second = silu(ctx, point["g"])
    ag, au = share * point["a_g"], share * point["a_u"]
    m2 = min(abs(second) + k3 * ag, k2)
    m1 = min(abs(first) + m2 * ag, k1)
    return m1 * au + m2 * abs(point["u"]) * ag, min(abs(first) * ag + m2 * ag**2 / 2, m1 * ag)


def share_of_g(ctx, point):
    return _ends(ctx, point, point["share"])[0], point["share"] * _ends(ctx, point, ctx.mpf(1))[0]


def share_of_u(ctx, point):
    return _ends(ctx, point, point["share"])[1], point["share"] * _ends(ctx, point, ctx.mpf(1))[1]


def average(ctx, point):
    e_g, e_u = _ends(ctx, point, ctx.mpf(1))
    _, rho = remainder(ctx, {**point, "s_g": ctx.mpf(1), "s_u": ctx.mpf(1)})
    return rho, (e_g * point["a_g"] + e_u * point["a_u"]) / 2


SPACE = (
    Reals("g", -6, 6),
    Reals("u", -4, 4),
    Reals("a_g", 1e-3, 3, log=True),
    Reals("a_u", 1e-3, 3, log=True),
    Reals("s_g", -1, 1),
    Reals("s_u", -1, 1),
)
WIDER = (
    *SPACE,
    Reals("b_g", 1e-4, 1, log=True),
    Reals("b_u", 1e-4, 1, log=True),
    Reals("t_g", -1, 1),
    Reals("t_u", -1, 1),
)
NEAR = {"g": 1.0, "u": 2.0, "a_g": 0.002, "a_u": 0.002, "s_g": 1.0, "s_u": 1.0}
NEAR_SECOND = {**NEAR, "b_g": 0.5, "b_u": 0.5, "t_g": 1.0, "t_u": 1.0}
# At the greatest third derivative, -0.308, with hardly any nonlinear part.
NEAR_THIRD = {
    **NEAR,
    "g": 1.03,
    "a_g": 0.01,
    "a_u": 0.001,
    "s_u": -1.0,
    "b_g": 1e-4,
    "b_u": 1e-4,
    "t_g": -1.0,
    "t_u": -1.0,
}

TAYLOR = "Rudin, Principles of Mathematical Analysis (1976), 5.10 and 5.15"

THEOREM = Theorem(
    id="C10",
    title="A gated product over a ball",
    statement=(
        r"Let $y = \sigma(g) u$ be one channel of a gated layer, with $|\sigma'| \le K_1$, $|\sigma''| \le K_2$, "
        r"$|\sigma'''| \le K_3$ (SwiGLU: $K_1 = 1.0998394$, $K_2 = \frac12$, $K_3 = 0.3081816$). At a centre $(g, u)$ "
        r"let $d_1 = \sigma'(g)$, $d_2 = \sigma''(g)$. The second derivative has the norm $\frac12(|t| + \sqrt{t^2 + "
        r"4 d_1^2})$, $t = d_2 u$. Let the inputs move by $|\Delta_g| \le a_g$, $|\Delta_u| \le a_u$, of which parts "
        r"$|n_g| \le b_g$, $|n_u| \le b_u$ are left when a linear part is taken off. With $m_2 = \min(|d_2| + K_3 "
        r"a_g, K_2)$ and $m_1 = \min(|d_1| + m_2 a_g, K_1)$: the derivative with respect to $g$ changes by at most "
        r"$e_g = m_1 a_u + m_2 |u| a_g$, that with respect to $u$ by at most $e_u = \min(|d_1| a_g + \frac12 m_2 "
        r"a_g^2, m_1 a_g)$; without the second derivative applied to the linear parts, by at most $e_g^{(2)} = |d_1| "
        r"b_u + m_2 a_g a_u + |u| (\frac12 K_3 a_g^2 + |d_2| b_g)$ and $e_u^{(2)} = \frac12 m_2 a_g^2 + |d_1| b_g$; "
        r"and $y$ without its first-order part by at most $\rho = \frac12 m_2 |u| a_g^2 + e_u a_u \le \frac12 (e_g "
        r"a_g + e_u a_u)$. For $0 \le s \le 1$, $e_g$ and $e_u$ at $(s a_g, s a_u)$ are at most $s$ times those at "
        r"$(a_g, a_u)$."
    ),
    plain=(
        "How far the Jacobian of a SwiGLU channel can be from the one at the centre, if its two inputs stay within "
        "given distances. Each channel has its own numbers, so no maximum over channels is lost."
    ),
    symbols=(
        Symbol(g, "gate input at the centre"),
        Symbol(u, "other input at the centre"),
        Symbol(T, "|t| = |sigma''(g) u|"),
        Symbol(N, "norm of the second derivative"),
        Symbol(x_g, "a direction's part along g"),
        Symbol(x_u, "a direction's part along u"),
        Symbol(d0, "sigma at the centre"),
        Symbol(d1, "sigma' at the centre"),
        Symbol(d2, "sigma'' at the centre"),
        Symbol(K1, "bound of |sigma'| everywhere"),
        Symbol(K2, "bound of |sigma''| everywhere"),
        Symbol(K3, "bound of |sigma'''| everywhere"),
        Symbol(a_g, "bound of the movement of g"),
        Symbol(a_u, "bound of the movement of u"),
        Symbol(b_g, "bound of its nonlinear part, for g"),
        Symbol(b_u, "bound of its nonlinear part, for u"),
        Symbol(dg, "movement of g"),
        Symbol(du, "movement of u"),
        Symbol(ng, "its nonlinear part, for g"),
        Symbol(nu, "its nonlinear part, for u"),
        Symbol(R0, "sigma(g + Delta_g) - sigma(g) - sigma'(g) Delta_g"),
        Symbol(E1, "sigma'(g + Delta_g) - sigma'(g)"),
        Symbol(R1, "sigma'(g + Delta_g) - sigma'(g) - sigma''(g) Delta_g"),
        Symbol(curve, "sigma'' anywhere within a_g of g"),
        Symbol(m1, "min(|d_1| + m_2 a_g, K_1)"),
        Symbol(m2, "min(|d_2| + K_3 a_g, K_2)"),
        Symbol(e_u, "min(|d_1| a_g + m_2 a_g^2 / 2, m_1 a_g)"),
        Symbol(s, "share of the movement, 0 <= s <= 1"),
        Symbol(m1_s, "m_1 for the movement s a_g"),
        Symbol(m2_s, "m_2 for the movement s a_g"),
    ),
    hypotheses=(
        Hypothesis("H1", "|Delta_g| <= a_g", a_g - abs(dg)),
        Hypothesis("H2", "|Delta_u| <= a_u", a_u - abs(du)),
        Hypothesis("H3", "|n_g| <= b_g", b_g - abs(ng)),
        Hypothesis("H4", "|n_u| <= b_u", b_u - abs(nu)),
        Hypothesis("H5", "|sigma'| <= K_1 everywhere, so at the moved point", K1 - abs(slope)),
        Hypothesis("H6", "|sigma''| <= K_2 everywhere", K2 - abs(curve)),
        Hypothesis("H7", "sigma has three continuous derivatives and |sigma'''| <= K_3 everywhere (used in F1 and F6)"),
        Hypothesis("H8", "R_1 is what the second derivative leaves of E_1", R1 - (E1 - d2 * dg), "zero"),
        Hypothesis("H9", "s <= 1", 1 - s),
        Hypothesis(
            "H10", "N is the positive root of N^2 = |t| N + d_1^2 (not both t = d_1 = 0)", N**2 - T * N - d1**2, "zero"
        ),
    ),
    facts=(
        Fact(
            "F1",
            "|sigma''| changes by at most K_3 a_g within a_g",
            abs(d2) + K3 * a_g - abs(curve),
            f"mean value theorem: {TAYLOR}",
        ),
        Fact(
            "F2",
            "sigma' changes by at most its greatest slope m_2 times the movement",
            m2 * abs(dg) - abs(E1),
            f"mean value theorem: {TAYLOR}",
        ),
        Fact(
            "F3",
            "sigma changes by at most its greatest slope m_1 times the movement",
            m1 * abs(dg) - abs(E0),
            f"mean value theorem: {TAYLOR}",
        ),
        Fact("F5", "second-order remainder of sigma", m2 * dg**2 / 2 - abs(R0), f"Taylor's theorem: {TAYLOR}"),
        Fact("F6", "second-order remainder of sigma'", K3 * dg**2 / 2 - abs(R1), f"Taylor's theorem: {TAYLOR}"),
        Fact(
            "D1",
            "m_2 is the smaller one of two bounds of |sigma''| (steps 'curve' and H6)",
            m2 - abs(curve),
            "definition of the minimum",
            axiom=True,
        ),
        Fact(
            "D2",
            "m_1 is the smaller one of two bounds of |sigma'| (steps 'slope' and H5)",
            m1 - abs(slope),
            "definition of the minimum",
            axiom=True,
        ),
        Fact("D3", "e_u is at most its second part", m1 * a_g - e_u, "definition of the minimum", axiom=True),
        Fact(
            "D4",
            "e_u is the smaller one of two bounds (steps 'u far' and 'u near')",
            e_u - abs(E0),
            "definition of the minimum",
            axiom=True,
        ),
        Fact(
            "D5",
            "m_2 for s a_g is at most m_2: its first part is (step 'curve grows'), its second is the same",
            m2 - m2_s,
            "definition of the minimum",
            axiom=True,
        ),
        Fact(
            "D6",
            "m_1 for s a_g is at most m_1: its first part is (step 'slope grows'), its second is the same",
            m1 - m1_s,
            "definition of the minimum",
            axiom=True,
        ),
        Fact("T1", "|d_1 + E_1| <= |d_1| + |E_1|", abs(d1) + abs(E1) - abs(slope), "triangle inequality", axiom=True),
        Fact(
            "T2",
            "sigma'(moved) Delta_u + E_1 u, in two terms",
            abs(slope * du) + abs(E1 * u) - abs(slope * du + E1 * u),
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "T3", "d_1 Delta_g + R_0, in two terms", abs(d1 * dg) + abs(R0) - abs(E0), "triangle inequality", axiom=True
        ),
        Fact(
            "T4",
            "four terms",
            abs(E1 * du)
            + abs(d1 * nu)
            + abs(u * R1)
            + abs(u * d2 * ng)
            - abs(E1 * du + d1 * nu + u * R1 + u * d2 * ng),
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "T5",
            "R_0 + d_1 n_g, in two terms",
            abs(R0) + abs(d1 * ng) - abs(R0 + d1 * ng),
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "T6",
            "u R_0 + E_0 Delta_u, in two terms",
            abs(u * R0) + abs(E0 * du) - abs(u * R0 + E0 * du),
            "triangle inequality",
            axiom=True,
        ),
    ),
    steps=(
        Identity("The derivative with respect to g,", sp.diff(sigma(g) * u, g), sp.diff(sigma(g), g) * u),
        Identity("and with respect to u, by the product rule.", sp.diff(sigma(g) * u, u), sigma(g)),
        Identity(
            "Second derivatives: t = sigma'' u for g, g;", sp.diff(sigma(g) * u, g, 2), sp.diff(sigma(g), g, 2) * u
        ),
        Identity("sigma' for g, u; and none for u, u.", sp.diff(sigma(g) * u, g, u), sp.diff(sigma(g), g)),
        Identity(
            "The norm in the statement is the root N of H10.",
            (N**2 - T * N - d1**2).subs(N, (T + sp.sqrt(T**2 + 4 * d1**2)) / 2),
            sp.Integer(0),
        ),
        Nonnegative(
            "The matrix [[t, d_1], [d_1, 0]] has the norm N. For t >= 0; the signs of t and d_1 change no length, if "
            "that of x_u goes along.",
            N**2 * (x_g**2 + x_u**2) - ((T * x_g + d1 * x_u) ** 2 + (d1 * x_g) ** 2),
            T * (d1 * x_g - N * x_u) ** 2 / N + ref("H10") * (x_g**2 + x_u**2 + T * x_g**2 / N),
        ),
        Identity(
            "Equality in the direction (N, d_1).",
            (T * N + d1**2) ** 2 + (d1 * N) ** 2,
            N**2 * (N**2 + d1**2),
            modulo={"H10": -(T * N + d1**2) - N**2},
        ),
        Nonnegative(
            "sigma'' within a_g is at most |d_2| + K_3 a_g; so at most m_2.",
            abs(d2) + K3 * a_g - abs(curve),
            ref("F1"),
            label="curve",
        ),
        Nonnegative(
            "sigma' at the moved point is at most |d_1| + m_2 a_g; so at most m_1.",
            abs(d1) + m2 * a_g - abs(slope),
            ref("T1") + ref("F2") + m2 * ref("H1"),
            label="slope",
        ),
        Identity("The derivative with respect to g changes by two terms.", change_g, slope * du + E1 * u),
        Nonnegative(
            "Hence by at most e_g.",
            e_g - abs(slope * du + E1 * u),
            ref("T2") + abs(slope) * ref("H2") + a_u * ref("D2") + abs(u) * (ref("F2") + m2 * ref("H1")),
            label="e_g",
        ),
        Nonnegative(
            "That with respect to u changes by E_0 = sigma(moved) - sigma: by at most m_1 a_g,",
            m1 * a_g - abs(E0),
            ref("F3") + m1 * ref("H1"),
            label="u far",
        ),
        Nonnegative(
            "and by at most |d_1| a_g + m_2 a_g^2 / 2; so by at most e_u.",
            abs(d1) * a_g + m2 * a_g**2 / 2 - abs(E0),
            ref("T3") + ref("F5") + abs(d1) * ref("H1") + m2 * ref("H1") * (a_g + abs(dg)) / 2,
            label="u near",
        ),
        Identity(
            "Take the second derivative, applied to the linear parts Delta_g - n_g and Delta_u - n_u, off the change "
            "for g.",
            change_g - d2 * u * (dg - ng) - d1 * (du - nu),
            E1 * du + d1 * nu + u * R1 + u * d2 * ng,
            modulo={"H8": -u},
        ),
        Nonnegative(
            "Four terms, so the bound of the statement.",
            e2_g - abs(E1 * du + d1 * nu + u * R1 + u * d2 * ng),
            ref("T4")
            + abs(du) * (ref("F2") + m2 * ref("H1"))
            + m2 * a_g * ref("H2")
            + abs(d1) * ref("H4")
            + abs(u) * (ref("F6") + K3 * ref("H1") * (a_g + abs(dg)) / 2 + abs(d2) * ref("H3")),
        ),
        Identity("The same for u.", E0 - d1 * (dg - ng), R0 + d1 * ng),
        Nonnegative(
            "Its bound.",
            e2_u - abs(R0 + d1 * ng),
            ref("T5") + ref("F5") + m2 * ref("H1") * (a_g + abs(dg)) / 2 + abs(d1) * ref("H3"),
        ),
        Identity("The channel's value without its first-order part.", rest, u * R0 + E0 * du),
        Nonnegative(
            "Its bound rho.",
            rho - abs(u * R0 + E0 * du),
            ref("T6")
            + abs(u) * (ref("F5") + m2 * ref("H1") * (a_g + abs(dg)) / 2)
            + abs(du) * ref("D4")
            + e_u * ref("H2"),
        ),
        Nonnegative(
            "It is at most the average (e_g a_g + e_u a_u) / 2 that integration over the segment would give.",
            (e_g * a_g + e_u * a_u) / 2 - rho,
            a_u * ref("D3") / 2,
        ),
        Nonnegative(
            "A share s of the movement: the first part of m_2 is smaller,",
            (abs(d2) + K3 * a_g) - (abs(d2) + K3 * s * a_g),
            K3 * a_g * ref("H9"),
            label="curve grows",
        ),
        Nonnegative(
            "and that of m_1.",
            (abs(d1) + m2 * a_g) - (abs(d1) + m2_s * s * a_g),
            a_g * (m2 * ref("H9") + s * ref("D5")),
            label="slope grows",
        ),
        Nonnegative(
            "So e_g is at most s times as great,",
            s * e_g - (m1_s * s * a_u + m2_s * abs(u) * s * a_g),
            s * (a_u * ref("D6") + abs(u) * a_g * ref("D5")),
        ),
        Nonnegative("both parts of e_u are: the second,", s * m1 * a_g - m1_s * s * a_g, s * a_g * ref("D6")),
        Nonnegative(
            "and the first.",
            s * (abs(d1) * a_g + m2 * a_g**2 / 2) - (abs(d1) * s * a_g + m2_s * (s * a_g) ** 2 / 2),
            s * a_g**2 * (m2 * ref("H9") + s * ref("D5")) / 2,
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("norm of the second derivative", SPACE[:2], hessian, sharp=True),
        Claim("change of dy/dg <= e_g", SPACE, change_of_g, near=(NEAR,)),
        Claim("change of dy/du <= e_u", SPACE, change_of_u, near=(NEAR,)),
        Claim("change of dy/dg beyond second order", WIDER, beyond_second_g, near=(NEAR_SECOND, NEAR_THIRD)),
        Claim("change of dy/du beyond second order", WIDER, beyond_second_u, near=(NEAR_SECOND,)),
        Claim("remainder of y <= rho", SPACE, remainder, near=(NEAR,)),
        Claim("rho <= (e_g a_g + e_u a_u) / 2", SPACE[:4], average, sharp=True),
        Claim("e_g for a share s <= s e_g", (*SPACE[:4], Reals("share", 0.001, 1)), share_of_g, sharp=True),
        Claim("e_u for a share s <= s e_u", (*SPACE[:4], Reals("share", 0.001, 1)), share_of_u, sharp=True),
    ),
    code=(
        "fpcheck/certify/nodes.py:nodes_of",
        "fpcheck/check/bends.py:nodes_of",
    ),
    remarks=(
        "rho is not larger than (e_g a_g + e_u a_u) / 2, the bound from integrating e over the segment, and smaller "
        "where e_u < m_1 a_g.",
        "All bounds are attained to first order as the movements shrink.",
        "The two arguments of m_2 meet at a_g = (K_2 - |d_2|) / K_3; beyond it the global bound serves.",
    ),
    uses=("C1", "C7"),
)
