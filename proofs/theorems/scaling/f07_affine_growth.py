"""F7: affine bounds for all states, operator by operator, and what a slope below one gives."""

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
    Summed,
    Symbol,
    Theorem,
    Totals,
    ref,
)
from proofs.numbers import matrix, norm, softmax, spectral_norm

N = sp.Symbol("N", nonnegative=True)
s = sp.Symbol("s", nonnegative=True)
c = sp.Symbol("c", nonnegative=True)
t = sp.Symbol("t", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
S = sp.Symbol("S", positive=True)
C = sp.Symbol("C", positive=True)
u = sp.Symbol("u", nonnegative=True)
v = sp.Symbol("v", nonnegative=True)
both = sp.Symbol("w", nonnegative=True)
stack = sp.Symbol("q", nonnegative=True)
p_j = sp.Symbol("p_j", nonnegative=True)
s_j = sp.Symbol("s_j", nonnegative=True)
c_j = sp.Symbol("c_j", nonnegative=True)
s_mean = sp.Symbol("s_p", nonnegative=True)
c_mean = sp.Symbol("c_p", nonnegative=True)
s_top = sp.Symbol("s_m", nonnegative=True)
c_top = sp.Symbol("c_m", nonnegative=True)
mean = sp.Symbol("m", nonnegative=True)
g_i = sp.Symbol("g_i", real=True)
u_i = sp.Symbol("u_i", real=True)
G = sp.Symbol("G", nonnegative=True)
U = sp.Symbol("U", nonnegative=True)
P = sp.Symbol("P", nonnegative=True)
z = sp.Symbol("z", nonnegative=True)
z_2 = sp.Symbol("z_2", nonnegative=True)
linear = sp.Symbol("k", nonnegative=True)
L = sp.Symbol("L", nonnegative=True)
L_inverse = sp.Symbol("K", nonnegative=True)
rest = sp.Symbol("r", nonnegative=True)
f = sp.Symbol("f", nonnegative=True)
a = sp.Symbol("a", positive=True)
b = sp.Symbol("b", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
R = sp.Symbol("R", nonnegative=True)
D = sp.Symbol("D", nonnegative=True)
D_0 = sp.Symbol("D_0", nonnegative=True)
D_1 = sp.Symbol("D_1", nonnegative=True)
j = sp.Symbol("j", nonnegative=True, integer=True)

ROWS = Totals((p_j, s_j, c_j), {p_j: sp.Integer(1), p_j * s_j: s_mean, p_j * c_j: c_mean})
ENTRIES = Totals((g_i, u_i), {u_i**2: U, g_i**2 * u_i**2: P})


def stacking(ctx, point):
    parts = [point["s"][i] * point["N"] + point["c"][i] for i in range(3)]
    return norm(ctx, parts), norm(ctx, point["s"]) * point["N"] + norm(ctx, point["c"])


def attention(ctx, point):
    """A gate times a weighted mean of two rows of two entries, each row of any direction and of the stated length."""
    weights = softmax(ctx, point["scores"])
    rows = []
    for i in range(2):
        length = point["s"][i] * point["N"] + point["c"][i]
        rows.append([length * ctx.cos(point["angle"][i]), length * ctx.sin(point["angle"][i])])
    mixed = [sum((w * row[i] for w, row in zip(weights, rows, strict=True)), ctx.mpf(0)) for i in range(2)]
    gates = [ctx.tanh(g) for g in point["gates"]]
    bound = max(abs(g) for g in gates) * (max(point["s"]) * point["N"] + max(point["c"]))
    return norm(ctx, [g * m for g, m in zip(gates, mixed, strict=True)]), bound


def _step(ctx, point, state):
    """A z + n(z) with |n(z)| = s |z| + c, in a direction that turns with the state."""
    A = matrix(ctx, point["A"], 2, 2)
    angle = point["turn"][0] + point["turn"][1] * ctx.sin(state[0]) + point["turn"][2] * ctx.cos(state[1])
    length = point["s"] * norm(ctx, state) + point["c"]
    more = [length * ctx.cos(angle), length * ctx.sin(angle)]
    return [A[i, 0] * state[0] + A[i, 1] * state[1] + more[i] for i in range(2)]


def _metric(ctx, point):
    """L = diag(1, l) and the slope and constant of the statement."""
    stretch = point["l"]
    inside = ctx.matrix([[1, 0], [0, stretch]]) * matrix(ctx, point["A"], 2, 2) * ctx.matrix([[1, 0], [0, 1 / stretch]])
    longest, shortest = max(ctx.mpf(1), stretch), min(ctx.mpf(1), stretch)
    return spectral_norm(ctx, inside) + longest / shortest * point["s"], longest * point["c"]


def _length(ctx, point, state):
    return norm(ctx, [state[0], point["l"] * state[1]])


def one_step(ctx, point):
    slope, const = _metric(ctx, point)
    state = [3 * x for x in point["z"]]
    return _length(ctx, point, _step(ctx, point, state)), slope * _length(ctx, point, state) + const


def three_steps(ctx, point):
    slope, const = _metric(ctx, point)
    if slope >= ctx.mpf(99) / 100:
        return None
    radius = const / (1 - slope)
    state = [(5 + 2 * radius) * x for x in point["z"]]
    start = _length(ctx, point, state) - radius
    if start <= 0:
        return None
    for _ in range(3):
        state = _step(ctx, point, state)
    return max(_length(ctx, point, state) - radius, ctx.mpf(0)), slope**3 * start


SPACE = (
    Reals("A", -1, 1, 4),
    Reals("s", 0, 0.5),
    Reals("c", 0, 2),
    Reals("l", 0.5, 2, log=True),
    Reals("turn", -3, 3, 3),
    Reals("z", -1, 1, 2),
)
ALIGNED = {"A": [0.6, 0, 0, 0.2], "s": 0.2, "c": 0.5, "l": 1.0, "turn": [0, 0, 0], "z": [1.0, 0.0]}

THEOREM = Theorem(
    id="F7",
    title="Affine growth of a loop step",
    statement=(
        r"Let $N$ be a norm of the state $z$, and let $|u(z)| \le s N(z) + c$ and $|v(z)| \le t N(z) + e$ hold for all "
        r"$z$, in Euclidean norms. Then $|u + v| \le (s + t) N + c + e$; $|W u| \le |W|_2 (s N + c)$; $u$ and $v$ "
        r"stacked have at most the length $\sqrt{s^2 + t^2} N + \sqrt{c^2 + e^2}$; a mean $\sum_j p_j v_j$ with "
        r"weights $p_j \ge 0$, $\sum_j p_j = 1$, of rows with $|v_j| \le s_j N + c_j$ at most $\max_j s_j N + \max_j "
        r"c_j$; an entrywise product at most $\sup_i |g_i| (s N + c)$. If $F(z) = A z + n(z)$ with $|n(z)| \le s "
        r"|z|_2 + c$, then in the norm $|z|_P = |L z|_2$ of any invertible $L$: $|F(z)|_P \le a |z|_P + b$ with $a = "
        r"|L A L^{-1}|_2 + s |L|_2 |L^{-1}|_2$ and $b = |L|_2 c$. If $N(F(z)) \le a N(z) + b$ for all $z$ with $a < "
        r"1$, the ball $N(z) \le R = \frac{b}{1 - a}$ is invariant and holds all fixed points, and the excess of "
        r"$N(z_k)$ over $R$ is at most $a^k$ times that of $N(z_0)$. If $F$ is continuous, it has a fixed point in "
        r"the ball."
    ),
    plain=(
        "The size of a step's result can be bounded for all states at once, by going through its operators: norms cut "
        "off all growth, attention never makes the longest value longer, and what is handed on is a known matrix. If "
        "the slope ends up below one, no run can grow without end."
    ),
    symbols=(
        Symbol(N, "N(z)"),
        Symbol(s, "slope of u, or of the rest n", "slope"),
        Symbol(c, "constant of u, or of the rest n", "const"),
        Symbol(t, "slope of v"),
        Symbol(e, "constant of v"),
        Symbol(S, "root of s^2 + t^2; if it is 0, the bounds do not depend on the state and nothing is to be shown"),
        Symbol(C, "root of c^2 + e^2; likewise"),
        Symbol(u, "|u(z)|"),
        Symbol(v, "|v(z)|"),
        Symbol(both, "|u(z) + v(z)|"),
        Symbol(stack, "length of u and v stacked"),
        Symbol(p_j, "weight of row j"),
        Symbol(s_j, "slope of row j"),
        Symbol(c_j, "constant of row j"),
        Symbol(s_mean, "sum of p_j s_j"),
        Symbol(c_mean, "sum of p_j c_j"),
        Symbol(s_top, "largest s_j"),
        Symbol(c_top, "largest c_j"),
        Symbol(mean, "|sum of p_j v_j|"),
        Symbol(g_i, "entry of the factor"),
        Symbol(u_i, "entry of u"),
        Symbol(G, "bound of all |g_i|"),
        Symbol(U, "sum of u_i^2"),
        Symbol(P, "sum of g_i^2 u_i^2"),
        Symbol(z, "|z|_P, later N(z)"),
        Symbol(z_2, "|z|_2"),
        Symbol(linear, "|L A L^-1|_2"),
        Symbol(L, "|L|_2"),
        Symbol(L_inverse, "|L^-1|_2"),
        Symbol(rest, "|n(z)|_2"),
        Symbol(f, "|F(z)|_P, later N(F(z))"),
        Symbol(a, "slope of the whole step; a = 0 is trivial", "rate"),
        Symbol(b, "its constant", "constant"),
        Symbol(gap, "1 - a"),
        Symbol(R, "radius b / (1 - a)", "radius"),
        Symbol(D, "excess of N(z_k) over R, or 0"),
        Symbol(D_0, "the same at the start"),
        Symbol(D_1, "the same of the next state"),
        Symbol(j, "number of steps"),
    ),
    hypotheses=(
        Hypothesis("H1", "|u(z)| <= s N + c for all z", s * N + c - u),
        Hypothesis("H2", "|v(z)| <= t N + e for all z", t * N + e - v),
        Hypothesis("H3", "S^2 = s^2 + t^2", S**2 - s**2 - t**2, "zero"),
        Hypothesis("H4", "C^2 = c^2 + e^2", C**2 - c**2 - e**2, "zero"),
        Hypothesis("H5", "no s_j is above the largest", s_top - s_j),
        Hypothesis("H6", "no c_j is above the largest", c_top - c_j),
        Hypothesis("H7", "no |g_i| is above G", G**2 - g_i**2),
        Hypothesis("H8", "|n(z)| <= s |z|_2 + c for all z", s * z_2 + c - rest),
        Hypothesis("H9", "a < 1, written as gap = 1 - a > 0", gap - (1 - a), "zero"),
        Hypothesis("H10", "R (1 - a) = b", R * gap - b, "zero"),
        Hypothesis("H11", "N(F(z)) <= a N(z) + b for all z", a * z + b - f),
    ),
    facts=(
        Fact("F1", "|u + v| <= |u| + |v|", u + v - both, "triangle inequality", axiom=True),
        Fact("F2", "u and v stacked: the squares add up", u**2 + v**2 - stack**2, "definition", "zero", axiom=True),
        Fact(
            "F3",
            "|sum p_j v_j| <= sum p_j |v_j| <= sum p_j (s_j N + c_j)",
            s_mean * N + c_mean - mean,
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "F4",
            "|L (A z + n)| <= |L A L^-1| |L z| + |L| |n|",
            linear * z + L * rest - f,
            "triangle inequality and the definition of the operator norm",
            axiom=True,
        ),
        Fact("F5", "|z|_2 = |L^-1 L z|_2 <= |L^-1| |z|_P", L_inverse * z - z_2, "operator norm", axiom=True),
        Fact("F6", "the excess is at least N(z_k) - R", D - (z - R), "definition of the maximum", axiom=True),
        Fact(
            "F7",
            "the next excess is the greater of N(F(z)) - R and 0; both are at most a D, by step 'excess'",
            a * D - D_1,
            "a maximum is at most what bounds its members",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "A sum.",
            (s + t) * N + c + e - both,
            ref("H1") + ref("H2") + ref("F1"),
        ),
        Nonnegative(
            "Stacked: the mixed term s c + t e is at most S C (Lagrange's identity).",
            S * C - (s * c + t * e),
            ((s * e - t * c) ** 2 + C**2 * ref("H3") + (s**2 + t**2) * ref("H4")) / (S * C + s * c + t * e),
            label="mixed",
        ),
        Nonnegative(
            "So the square of the stacked length is at most the square of S N + C.",
            (S * N + C) ** 2 - stack**2,
            2 * N * ref("mixed")
            + N**2 * ref("H3")
            + ref("H4")
            + (s * N + c + u) * ref("H1")
            + (t * N + e + v) * ref("H2")
            + ref("F2"),
        ),
        Nonnegative(
            "One row of a weighted mean.",
            p_j * s_top * N + p_j * c_top - p_j * s_j * N - p_j * c_j,
            p_j * N * ref("H5") + p_j * ref("H6"),
            label="row",
        ),
        Summed(
            "All rows: the weights add up to 1.",
            "row",
            ROWS,
            s_top * N + c_top - s_mean * N - c_mean,
            label="rows",
        ),
        Nonnegative(
            "So a mean is bounded by the largest row's bound.", s_top * N + c_top - mean, ref("rows") + ref("F3")
        ),
        Nonnegative("One entry of a product.", G**2 * u_i**2 - g_i**2 * u_i**2, u_i**2 * ref("H7"), label="entry"),
        Summed("All entries: |g u| <= G |u|, squared.", "entry", ENTRIES, G**2 * U - P),
        Nonnegative(
            "The whole step in the norm of L.",
            (linear + s * L * L_inverse) * z + L * c - f,
            ref("F4") + L * ref("H8") + L * s * ref("F5"),
        ),
        Nonnegative(
            "One step brings the size nearer to R; so N(z) <= R stays true, and an excess D becomes at most a D.",
            a * D - (f - R),
            ref("H11") + a * ref("F6") + ref("H10") - R * ref("H9"),
            label="excess",
        ),
        Induction(
            "k steps.",
            k=j,
            quantity=D,
            following=D_1,
            bound=a**j * D_0,
            start=D_0,
            base=sp.Integer(0),
            step=a * ref("IH") + ref("F7"),
        ),
        Identity(
            "At a fixed point a N(z) + b - N(z) is not negative, and it is (1 - a)(R - N(z)): so N(z) <= R.",
            a * z + b - z,
            gap * (R - z),
            modulo={"H9": z, "H10": -1},
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "three parts stacked",
            (Reals("s", 0, 2, 3), Reals("c", 0, 2, 3), Reals("N", 0, 5)),
            stacking,
            sharp=True,
        ),
        Claim(
            "a gate times a weighted mean of two rows",
            (
                Reals("s", 0, 2, 2),
                Reals("c", 0, 2, 2),
                Reals("N", 0, 5),
                Reals("scores", -3, 3, 2),
                Reals("angle", -3, 3, 2),
                Reals("gates", -20, 20, 2),
            ),
            attention,
            sharp=True,
            near=({"s": [1, 1], "c": [1, 1], "N": 1, "scores": [0, 0], "angle": [0, 0], "gates": [19, 19]},),
        ),
        Claim("|F(z)|_P <= a |z|_P + b", SPACE, one_step, sharp=True, near=(ALIGNED,)),
        Claim("the excess over R after three steps", SPACE, three_steps, sharp=True, near=(ALIGNED,)),
    ),
    not_checked=(
        NotChecked("a continuous map of a closed ball into itself has a fixed point", "Brouwer (1911), Satz 4"),
    ),
    code=(
        "fpcheck/certify/growth.py:growth",
        "fpcheck/certify/globally.py:certify_global",
    ),
    uses=("D1", "N1"),
    remarks=(
        "More than two parts are stacked one after the other.",
        "The rows of an RMSNorm or layer norm of width d have slope 0 and constant sqrt(d) (N1, N3); SiLU, GELU, ReLU "
        "and tanh keep every bound, because they are below the identity in size.",
        "The product of two results that both grow has no affine bound. A block whose residual path hands on the "
        "whole state has slope 1 at best: the theorem then says nothing, and some such blocks drift away (F5).",
        "Scales that depend on the state, below 1 but with supremum 1, are not covered: see F1b (iv) for what holds "
        "there.",
    ),
)
