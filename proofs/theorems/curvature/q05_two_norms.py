"""Q5: the change of a whole graph's Jacobian between two norms, all nodes at once."""

from typing import Any

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import norm, spectral_norm

n_lm = sp.Symbol("n", nonnegative=True)
x_m = sp.Symbol("x_m", nonnegative=True)
y_m = sp.Symbol("y_m", nonnegative=True)
kx_m = sp.Symbol("z_m", nonnegative=True)
x_l = sp.Symbol("x", nonnegative=True)
NX = sp.Symbol("X_N", nonnegative=True)
NKX = sp.Symbol("Z_N", nonnegative=True)
NY = sp.Symbol("y", nonnegative=True)
phi = sp.Symbol("phi", positive=True)
X2 = sp.Symbol("X", nonnegative=True)
Y2 = sp.Symbol("Y", nonnegative=True)
V2 = sp.Symbol("V", nonnegative=True)
g = sp.Symbol("g", nonnegative=True)
h = sp.Symbol("h", nonnegative=True)
nu = sp.Symbol("nu", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
t = sp.Symbol("t", nonnegative=True)
a = sp.Symbol("a", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
P = sp.Symbol("P", nonnegative=True)
A2 = sp.Symbol("A_2", nonnegative=True)
B2 = sp.Symbol("B_2", nonnegative=True)
p = sp.Symbol("p", positive=True)
q = sp.Symbol("q", positive=True)
G2 = sp.Symbol("G_2", nonnegative=True)
H2 = sp.Symbol("H_2", nonnegative=True)
S = sp.Symbol("S", nonnegative=True)
S_back = sp.Symbol("S_b", nonnegative=True)
s2 = sp.Symbol("s_2", nonnegative=True)
w2 = sp.Symbol("w_2", nonnegative=True)
g_l = sp.Symbol("g_l", positive=True)
h_m = sp.Symbol("h_m", positive=True)
sums = sp.Symbol("f_l", nonnegative=True)
back = sp.Symbol("d_m", positive=True)

CHAIN = Totals((n_lm, x_m, y_m, kx_m), {n_lm * x_m: NX, n_lm * y_m: NY, n_lm * kx_m: NKX})
NODES = Totals((x_l, NY, phi), {phi * x_l**2: X2**2, phi * NY**2: V2**2})
PAIRS = Totals((t, a, b, p, q), {t * a * b: P, t * p * a**2: A2, t * q * b**2: B2})
LEFT = Totals((s2, g_l, sums), {s2 * g_l**2: G2, g_l * sums: S})
RIGHT = Totals((w2, h_m, back), {w2 * h_m**2: H2, h_m * back: S_back})


def _resolvent(ctx, k):
    """(I - k)^-1 for three nodes, k below the diagonal."""
    return ctx.matrix([[1, 0, 0], [k[0], 1, 0], [k[1] + k[2] * k[0], k[2], 1]])


def nodes(ctx, point):
    """Three scalar nodes, one number in a state: |G E W| and the bound, any weights."""
    k = point["k"]
    inputs: list[Any] = []
    for i, row in enumerate(((), (k[0],), (k[1], k[2]))):
        earlier = (v * e * x for v, e, x in zip(row, point["e"], inputs, strict=False))
        inputs.append(point["h"][i] + sum(earlier, ctx.mpf(0)))
    found = sum((v * e * x for v, e, x in zip(point["g"], point["e"], inputs, strict=True)), ctx.mpf(0))
    whole = _resolvent(ctx, [abs(v) for v in k])
    s, w = point["s"], point["w"]
    middle = ctx.matrix([[whole[i, j] * w[j] / s[i] for j in range(3)] for i in range(3)])
    left = norm(ctx, [v * x for v, x in zip(point["g"], s, strict=True)])
    right = norm(ctx, [v / x for v, x in zip(point["h"], w, strict=True)])
    return abs(found), left * spectral_norm(ctx, middle) * right


def chosen(ctx, point):
    """The weights of the theorem, with g and h as norms of nodes: the product against the sum over pairs."""
    g_, h_ = point["g"], point["h"]
    whole = _resolvent(ctx, point["k"])
    forward = [sum(whole[i, j] * h_[j] for j in range(3)) for i in range(3)]
    backward = [sum(whole[i, j] * g_[i] for i in range(3)) for j in range(3)]
    s = [ctx.sqrt(f / v) for f, v in zip(forward, g_, strict=True)]
    w = [ctx.sqrt(v / f) for f, v in zip(backward, h_, strict=True)]
    middle = ctx.matrix([[whole[i, j] * w[j] / s[i] for j in range(3)] for i in range(3)])
    left = norm(ctx, [v * x for v, x in zip(g_, s, strict=True)])
    right = norm(ctx, [v / x for v, x in zip(h_, w, strict=True)])
    return left * spectral_norm(ctx, middle) * right, sum(v * f for v, f in zip(g_, forward, strict=True))


THEOREM = Theorem(
    id="Q5",
    title="A graph's change of Jacobian between two norms",
    statement=(
        r"Let $E_l = R_l^{1/2} \tilde E_l C_l^{1/2}$ with $|\tilde E_l|_2 \le 1$ for nodes $l = 1, \ldots, M$ (as Q3 "
        r"gives it), $W_l = H_l + \sum_{m<l} C_{lm} E_m W_m$ (as Q1 gives it), $k_{lm} \ge |C_l^{1/2} C_{lm} "
        r"R_m^{1/2}|_2$ and $N = (I - k)^{-1}$. Then for all $s, w > 0$: $|\sum_l G_l E_l W_l|_2 \le |[s_l G_l "
        r"R_l^{1/2}]_l|_2 \, |\mathrm{diag}(s)^{-1} N \, \mathrm{diag}(w)|_2 \, |[w_l^{-1} C_l^{1/2} H_l]_l|_2$, the "
        r"matrices side by side in the first factor and on top of each other in the last; and $|\sum_l G_l E_l (W_l - "
        r"H_l)|_2$ is at most the same with $N - I$. With $g_l = |G_l R_l^{1/2}|_2$, $h_l = |C_l^{1/2} H_l|_2$, $s_l^2 "
        r"= (N h)_l / g_l$ and $w_l^2 = h_l / (N^T g)_l$ the product is at most $\sum_{l,m} g_l N_{lm} h_m$. Equality "
        r"can hold."
    ),
    plain=(
        "Bounds for the nodes of a block need not be added up node by node: two norms of stacked matrices do for all "
        "of them, never worse than the sum, and better where the nodes do not all pull in the same direction."
    ),
    symbols=(
        Symbol(n_lm, "N_lm, entry of (I - k)^-1, or of (I - k)^-1 - I"),
        Symbol(x_m, "|C_m^(1/2) W_m v| for a unit vector v"),
        Symbol(y_m, "|C_m^(1/2) H_m v|"),
        Symbol(kx_m, "(k x)_m"),
        Symbol(x_l, "x_l"),
        Symbol(NX, "(N x)_l"),
        Symbol(NKX, "(N k x)_l"),
        Symbol(NY, "(N y)_l"),
        Symbol(phi, "1 / s_l^2"),
        Symbol(X2, "root of the sum of x_l^2 / s_l^2"),
        Symbol(V2, "root of the sum of (N y)_l^2 / s_l^2"),
        Symbol(Y2, "root of the sum of y_m^2 / w_m^2"),
        Symbol(g, "|[s_l G_l R_l^(1/2)]|_2"),
        Symbol(h, "|[C_l^(1/2) H_l / w_l]|_2"),
        Symbol(nu, "|diag(s)^-1 N diag(w)|_2"),
        Symbol(m, "|sum G_l E_l W_l v|"),
        Symbol(t, "N_lm w_m / s_l"),
        Symbol(a, "entry l of a unit vector, without its sign"),
        Symbol(b, "entry m of a unit vector, without its sign"),
        Symbol(P, "sum over pairs of t a b"),
        Symbol(A2, "sum over pairs of t (u_m / v_l) a^2"),
        Symbol(B2, "sum over pairs of t (v_l / u_m) b^2"),
        Symbol(p, "u_m / v_l"),
        Symbol(q, "v_l / u_m"),
        Symbol(G2, "sum of s_l^2 g_l^2"),
        Symbol(H2, "sum of h_m^2 / w_m^2"),
        Symbol(S, "sum over pairs of g_l N_lm h_m, row by row"),
        Symbol(S_back, "the same sum, column by column"),
        Symbol(s2, "s_l^2"),
        Symbol(w2, "1 / w_m^2"),
        Symbol(g_l, "|G_l R_l^(1/2)|_2"),
        Symbol(h_m, "|C_m^(1/2) H_m|_2"),
        Symbol(sums, "(N h)_l"),
        Symbol(back, "(N'g)_m"),
    ),
    hypotheses=(
        Hypothesis("H1", "N = I + N k, row l applied to x", NX - x_l - NKX, "zero"),
        Hypothesis("H2", "p q = 1", p * q - 1, "zero"),
        Hypothesis("H3", "s_l^2 = (N h)_l / g_l", s2 * g_l - sums, "zero"),
        Hypothesis("H4", "1 / w_m^2 = (N'g)_m / h_m", w2 * h_m - back, "zero"),
        Hypothesis(
            "H5",
            "with the chosen weights the sum over m of t u_m is (N h)_l / s_l = s_l g_l = v_l, so the sum over pairs "
            "of t (u_m / v_l) a^2 is the sum of a^2, 1",
            A2 - 1,
            "zero",
        ),
        Hypothesis(
            "H6",
            "and the sum over l of t v_l is w_m (N'g)_m = h_m / w_m = u_m, so the sum over pairs of t (v_l / u_m) b^2 "
            "is the sum of b^2, 1",
            B2 - 1,
            "zero",
        ),
    ),
    facts=(
        Fact(
            "F1",
            "|C_m^(1/2) W_m v| <= |C_m^(1/2) H_m v| + sum of |C_m^(1/2) C_mj R_j^(1/2)| |E~_j| |C_j^(1/2) W_j v|",
            y_m + kx_m - x_m,
            "triangle inequality, operator norms, |E~_j| <= 1",
            axiom=True,
        ),
        Fact(
            "F2",
            "sum of (s_l G_l R_l^(1/2)) (E~_l C_l^(1/2) W_l v / s_l), a stack of vectors of at most x_l / s_l",
            g * X2 - m,
            "operator norm, |E~_l| <= 1",
            axiom=True,
        ),
        Fact("F3", "diag(s)^-1 N y is diag(s)^-1 N diag(w) times y / w", nu * Y2 - V2, "operator norm", axiom=True),
        Fact("F5", "a finite double sum in either order", S - S_back, "definition", "zero", axiom=True),
        Fact("F4", "y / w is the stack of C_l^(1/2) H_l v / w_l, node by node", h - Y2, "operator norm", axiom=True),
    ),
    steps=(
        Nonnegative(
            "N is not negative, as a sum of powers of k; so F1 may be multiplied by its entries,",
            n_lm * (y_m + kx_m - x_m),
            n_lm * ref("F1"),
            label="entry",
        ),
        Summed("and summed over the nodes m.", "entry", CHAIN, NY + NKX - NX, label="row of N"),
        Nonnegative(
            "Since N k = N - I, all of N x drops out but x itself: x <= N y, node by node. For W - H in place of W: by "
            "F1 without y it is at most k x <= k N y = (N - I) y.",
            NY - x_l,
            ref("row of N") + ref("H1"),
            label="chain",
        ),
        Nonnegative(
            "Squares keep the order,",
            phi * NY**2 - phi * x_l**2,
            phi * (NY + x_l) * ref("chain"),
            label="square",
        ),
        Summed("also summed over the nodes.", "square", NODES, V2**2 - X2**2, label="squares"),
        Nonnegative(
            "So do roots: here V^2 - X^2 as a product,",
            V2 * (V2 + X2) - X2 * (V2 + X2),
            ref("squares"),
            label="roots",
        ),
        Nonnegative(
            "and V + X is positive unless both are 0: the bound, times that.",
            (g * nu * h - m) * (V2 + X2),
            (V2 + X2) * (ref("F2") + g * ref("F3") + g * nu * ref("F4")) + g * ref("roots"),
            label="bound",
        ),
        Nonnegative(
            "That the middle factor is 1 with the chosen weights: for one pair of nodes and unit vectors a, b,",
            t * p * a**2 + t * q * b**2 - 2 * t * a * b,
            t * q * (p * a - b) ** 2 + t * a * (2 * b - p * a) * ref("H2"),
            label="pair",
        ),
        Summed("summed over the pairs,", "pair", PAIRS, A2 + B2 - 2 * P, label="pairs"),
        Nonnegative(
            "the form is at most 1 (Schur's test).",
            1 - P,
            ref("pairs") / 2 - ref("H5") / 2 - ref("H6") / 2,
            label="middle",
        ),
        Nonnegative(
            "The first factor squared is at most the sum of s_l^2 g_l^2, each of which is g_l (N h)_l.",
            g_l * sums - s2 * g_l**2,
            -g_l * ref("H3"),
            label="first",
        ),
        Summed("Summed over the nodes that is S.", "first", LEFT, S - G2, label="left"),
        Nonnegative(
            "The last one squared is at most the sum of h_m^2 / w_m^2, each of which is h_m (N'g)_m.",
            h_m * back - w2 * h_m**2,
            -h_m * ref("H4"),
            label="last",
        ),
        Summed("Summed over the nodes,", "last", RIGHT, S_back - H2, label="right"),
        Nonnegative(
            "that is S too, with the order of the sums exchanged: the product of both factors is at most S.",
            S - H2,
            ref("right") + ref("F5"),
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "|sum G_l E_l W_l| <= the product, three nodes, any weights",
            (
                Reals("g", -1, 1, 3),
                Reals("e", -1, 1, 3),
                Reals("k", -1, 1, 3),
                Reals("h", -1, 1, 3),
                Reals("s", 0.2, 5, 3, log=True),
                Reals("w", 0.2, 5, 3, log=True),
            ),
            nodes,
            sharp=True,
            near=(
                {
                    "g": [0.5, 0.5, 0.5],
                    "e": [1.0, 1.0, 1.0],
                    "k": [0.0, 0.0, 0.0],
                    "h": [0.5, 0.5, 0.5],
                    "s": [1.0, 1.0, 1.0],
                    "w": [1.0, 1.0, 1.0],
                },
            ),
        ),
        Claim(
            "with the chosen weights the product is at most the sum over pairs of nodes",
            (Reals("g", 0.1, 1, 3), Reals("k", 0, 1, 3), Reals("h", 0.1, 1, 3)),
            chosen,
            sharp=True,
        ),
    ),
    code=("fpcheck/certify/curvature.py:curvature", "fpcheck/check/full.py:full_lines"),
    uses=("Q1", "Q3"),
    remarks=(
        "Any positive weights are sound, so g and h may be estimates; the middle factor is then computed and proved.",
        "Several groups of inputs of a node stand on top of each other in the last factor, with a C of their own.",
        "If the first-order part of a node's change is bounded apart (Q6), the rest of it is G E (W - H), with N - I, "
        "and G E_2 H, with I in place of N.",
    ),
)
