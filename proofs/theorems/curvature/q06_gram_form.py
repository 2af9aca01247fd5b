"""Q6: the first-order part of a Jacobian's change from the Gram matrices of its terms, in floats."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import matrix, norm, spectral_norm, symmetric_eigenvalues

c_p = sp.Symbol("c_p", real=True)
c_q = sp.Symbol("c_q", real=True)
a_pi = sp.Symbol("a_pi", real=True)
a_qi = sp.Symbol("a_qi", real=True)
x_pq = sp.Symbol("x_pq", real=True)
b_pj = sp.Symbol("b_pj", real=True)
b_qk = sp.Symbol("b_qk", real=True)
a_pq = sp.Symbol("a_pq", real=True)
term = sp.Symbol("g_i", real=True)
total = sp.Symbol("g", real=True)
BASIS = Totals((term, a_pi, a_qi), {term: total, a_pi * a_qi: a_pq})

c = sp.Symbol("c", nonnegative=True)
d = sp.Symbol("d", nonnegative=True)
x = sp.Symbol("x", nonnegative=True)
a = sp.Symbol("a", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
y = sp.Symbol("y", nonnegative=True)
u = sp.Symbol("u", nonnegative=True)
v = sp.Symbol("v", nonnegative=True)
ox = sp.Symbol("o_x", nonnegative=True)
oa = sp.Symbol("o_a", nonnegative=True)
t_p = sp.Symbol("t_p", nonnegative=True)
t_q = sp.Symbol("t_q", nonnegative=True)
e_pq = sp.Symbol("e_pq", nonnegative=True)
e_p = sp.Symbol("e_p", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
S = sp.Symbol("S", nonnegative=True)
S_q = sp.Symbol("S_q", nonnegative=True)
gamma = sp.Symbol("gamma", nonnegative=True)
lost = sp.Symbol("F", nonnegative=True)
OTHER = Totals((t_q, e_pq), {t_q: S_q, e_pq: e_p})
OWN = Totals((t_p, e_p), {t_p: S, e_p: e})

r = sp.Symbol("r", nonnegative=True)
delta = sp.Symbol("delta", nonnegative=True)
eps = sp.Symbol("epsilon", nonnegative=True)
gap = sp.Symbol("m", nonnegative=True)
first = sp.Symbol("m_1", nonnegative=True)
second = sp.Symbol("m_2", nonnegative=True)
third = sp.Symbol("m_3", nonnegative=True)
fourth = sp.Symbol("m_4", nonnegative=True)

G, H, B, E, E1, E2 = (sp.Symbol(name, commutative=False) for name in ("G", "H", "B", "E", "E_1", "E_2"))


def gram(ctx, point):
    """Three terms x_p (a_p.delta)(b_p.w) in the plane: the largest |M(delta)| against the root of the eigenvalue."""
    X, A, C = matrix(ctx, point["X"], 2, 3), matrix(ctx, point["A"], 3, 2), matrix(ctx, point["B"], 3, 2)
    outer, inner = X.T * X, A * A.T
    weights = ctx.matrix([[outer[p, q] * inner[p, q] for q in range(3)] for p in range(3)])
    bound = ctx.sqrt(max(symmetric_eigenvalues(ctx, C.T * weights * C)[-1], ctx.mpf(0)))
    along = A * ctx.matrix(point["d"])
    return spectral_norm(ctx, X * ctx.diag(list(along)) * C), bound * norm(ctx, point["d"])


def moduli(ctx, point):
    """What rounding may move, in moduli, against the square of the sum of sizes: two terms in the plane."""
    X, A, C = ([[abs(w) for w in point[key][2 * p : 2 * p + 2]] for p in range(2)] for key in ("X", "A", "B"))
    found = ctx.matrix(2, 2)
    for p in range(2):
        for q in range(2):
            number = sum(X[p][i] * X[q][i] for i in range(2)) * sum(A[p][i] * A[q][i] for i in range(2))
            for i in range(2):
                for j in range(2):
                    found[i, j] += number * C[p][i] * C[q][j]
    size = sum(norm(ctx, X[p]) * norm(ctx, A[p]) * norm(ctx, C[p]) for p in range(2))
    return ctx.sqrt(sum(found[i, j] ** 2 for i in range(2) for j in range(2))), size**2


def exchange(ctx, point):
    """One scalar term with all of its factors moved by as much as their errors allow."""
    c0, x0, a0, b0 = point["f"]
    dc, dx, da, db = (s * e for s, e in zip(point["s"], (point["r"], point["d"], point["e"], point["e"]), strict=True))
    moved = (c0 + dc) * (x0 + dx) * (a0 + da) * (b0 + db) - c0 * x0 * a0 * b0
    c1, x1, a1, b1 = abs(c0) + point["r"], abs(x0), abs(a0), abs(b0)
    e0, d0 = point["e"], point["d"]
    bound = point["r"] * x1 * a1 * b1 + c1 * (d0 * (a1 + e0) * (b1 + e0) + x1 * e0 * (b1 + e0) + x1 * a1 * e0)
    return abs(moved), bound


THEOREM = Theorem(
    id="Q6",
    title="The first-order part from Gram matrices",
    statement=(
        r"Let $M(\delta) w = \sum_p c_p x_p (a_p \cdot \delta)(b_p \cdot w)$. Then $\sum_i M_i^T M_i = \sum_{p,q} c_p "
        r"c_q (x_p \cdot x_q)(a_p \cdot a_q) \, b_p b_q^T =: \Gamma$, so $|M(\delta)|_2 \le \lambda_{\max}"
        r"(\Gamma)^{1/2} |\delta|$. Evaluated in floats with at most $K$ roundings on the way of each summand, "
        r"$\Gamma$ is wrong by at most $\gamma_K S^2$ in the Frobenius norm, $S = \sum_p |c_p| |x_p| |a_p| |b_p|$. If "
        r"the $c_p$ are known to $r_p$, the $x_p$ to $\delta$ and the $a_p$, $b_p$ to $\varepsilon$, the exact "
        r"$|M(\delta)|_2$ exceeds that of the midpoints by at most $\sum_p r_p x a b + c (\delta (a + \varepsilon)(b + "
        r"\varepsilon) + x \varepsilon (b + \varepsilon) + x a \varepsilon)$ per unit of $|\delta|$, with the lengths "
        r"$x, a, b$ and the largest modulus $c$ of term $p$. And with $E = E_1 + E_2$ on the nodes: $G E (H + B) = G "
        r"E_1 H + G E B + G E_2 H$, so the first-order part $G E_1 H$ may be bounded so, and the rest by Q5. Equality "
        r"can hold in all."
    ),
    plain=(
        "How fast the Jacobian of a whole block turns is one eigenvalue of an n by n matrix, and that matrix is a sum "
        "over pairs of second derivatives of single nodes: no sum over all n directions is needed."
    ),
    symbols=(
        Symbol(c_p, "number of term p"),
        Symbol(c_q, "number of term q"),
        Symbol(a_pi, "entry i of a_p"),
        Symbol(a_qi, "entry i of a_q"),
        Symbol(x_pq, "x_p'x_q"),
        Symbol(b_pj, "entry j of b_p"),
        Symbol(b_qk, "entry k of b_q"),
        Symbol(a_pq, "a_p'a_q"),
        Symbol(term, "what the pair (p, q) gives to entry (j, k) of M_i'M_i"),
        Symbol(total, "the same summed over i"),
        Symbol(c, "|c_p|, at its largest"),
        Symbol(d, "|c_q|"),
        Symbol(x, "|x_p|"),
        Symbol(a, "|a_p|"),
        Symbol(b, "|b_p|"),
        Symbol(y, "|x_q|"),
        Symbol(u, "|a_q|"),
        Symbol(v, "|b_q|"),
        Symbol(ox, "sum over entries of |x_p||x_q|"),
        Symbol(oa, "sum over entries of |a_p||a_q|"),
        Symbol(t_p, "c x a b, the size of term p"),
        Symbol(t_q, "d y u v, the size of term q"),
        Symbol(e_pq, "Frobenius norm of the moduli that the pair (p, q) adds up"),
        Symbol(e_p, "their sum over q"),
        Symbol(e, "their sum over p and q"),
        Symbol(S, "sum over p of the sizes"),
        Symbol(S_q, "the same sum over q"),
        Symbol(gamma, "gamma_K"),
        Symbol(lost, "|fl(Gamma) - Gamma|_F"),
        Symbol(r, "radius of c_p"),
        Symbol(delta, "error of x_p"),
        Symbol(eps, "error of a_p and of b_p"),
        Symbol(gap, "what the exact term exceeds its midpoint by, for unit vectors"),
        Symbol(first, "what exchanging x_p changes, next to the exact a_p and b_p"),
        Symbol(second, "what exchanging a_p changes, next to the exact b_p"),
        Symbol(third, "what exchanging b_p changes"),
        Symbol(fourth, "what exchanging c_p changes"),
        Symbol(G, "all G_l side by side, in the metric"),
        Symbol(H, "all H_l on top of each other, in the metric"),
        Symbol(B, "how U(z) differs from its value at the centre, in the metric"),
        Symbol(E, "change of the nodes' Jacobians, block diagonal"),
        Symbol(E1, "its first-order part"),
        Symbol(E2, "the rest of it"),
    ),
    hypotheses=(
        Hypothesis(
            "H1",
            "M_i = sum_p c_p (a_p)_i x_p b_p', so M_i'M_i has the entries",
            term - (c_p * a_pi * b_pj) * x_pq * (c_q * a_qi * b_qk),
            "zero",
        ),
        Hypothesis("H2", "size of term p", t_p - c * x * a * b, "zero"),
        Hypothesis("H3", "size of term q", t_q - d * y * u * v, "zero"),
        Hypothesis("H4", "|b_p||b_q|' has the Frobenius norm b v", e_pq - c * d * ox * oa * b * v, "zero"),
        Hypothesis("H5", "E = E_1 + E_2", E - E1 - E2, "zero"),
    ),
    facts=(
        Fact("F1", "Cauchy-Schwarz for the moduli of x_p and x_q", x * y - ox, "S0", axiom=True),
        Fact("F2", "the same for a_p and a_q", a * u - oa, "S0", axiom=True),
        Fact(
            "F3",
            "entry by entry the error is at most gamma_K times the sum of the moduli; the Frobenius norm keeps this "
            "and the triangle inequality",
            gamma * e - lost,
            "R1",
            axiom=True,
        ),
        Fact(
            "F4",
            "the four factors are exchanged for the exact ones one after the other",
            first + second + third + fourth - gap,
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "F5", "exact a_p, b_p are at most eps longer", c * delta * (a + eps) * (b + eps) - first, "norm", axiom=True
        ),
        Fact("F6", "the same for b_p", c * x * eps * (b + eps) - second, "norm", axiom=True),
        Fact("F7", "b_p last", c * x * a * eps - third, "norm", axiom=True),
        Fact("F9", "the index has two names", S - S_q, "definition", "zero", axiom=True),
        Fact("F8", "c_p", r * x * a * b - fourth, "norm", axiom=True),
    ),
    steps=(
        Summed(
            "Summed over an orthonormal basis, only the product of the first inputs is touched: it becomes their dot "
            "product. With Q2 that is the bound.",
            "H1",
            BASIS,
            total - c_p * c_q * x_pq * a_pq * b_pj * b_qk,
            label="Gram",
        ),
        Nonnegative(
            "Rounding: the moduli of a pair of terms are at most the product of their sizes,",
            t_p * t_q - e_pq,
            c * d * b * v * (oa * ref("F1") + x * y * ref("F2"))
            + t_q * ref("H2")
            + c * x * a * b * ref("H3")
            - ref("H4"),
            label="pair",
        ),
        Summed("summed over q", "pair", OTHER, t_p * S_q - e_p, label="row"),
        Summed("and over p the square of their sum.", "row", OWN, S * S_q - e, label="moduli"),
        Nonnegative(
            "So the error is at most gamma_K S^2.",
            gamma * S**2 - lost,
            ref("F3") + gamma * ref("moduli") + gamma * S * ref("F9"),
        ),
        Nonnegative(
            "Errors of the data: the four changes add up. Summed over the terms that bounds the change of M.",
            r * x * a * b + c * (delta * (a + eps) * (b + eps) + x * eps * (b + eps) + x * a * eps) - gap,
            ref("F4") + ref("F5") + ref("F6") + ref("F7") + ref("F8"),
        ),
        Identity(
            "The splitting is an identity: what is not of first order is E times B, and E_2 times H.",
            G * E * (H + B),
            G * E1 * H + G * E * B + G * E2 * H,
            modulo={"H5": (G, H)},
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "|M(delta)| <= root of the largest eigenvalue, three terms",
            (Reals("X", -1, 1, 6), Reals("A", -1, 1, 6), Reals("B", -1, 1, 6), Reals("d", -1, 1, 2)),
            gram,
            sharp=True,
            near=(
                {
                    "X": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                    "A": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                    "B": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                    "d": [1.0, 0.0],
                },
            ),
        ),
        Claim(
            "the sum of the moduli is at most S^2",
            (Reals("X", -1, 1, 4), Reals("A", -1, 1, 4), Reals("B", -1, 1, 4)),
            moduli,
            sharp=True,
            near=({"X": [0.5] * 4, "A": [0.5] * 4, "B": [0.5] * 4},),
        ),
        Claim(
            "what a term changes with the errors of its factors",
            (
                Reals("f", -1, 1, 4),
                Reals("s", -1, 1, 4),
                Reals("r", 0, 0.5),
                Reals("d", 0, 0.5),
                Reals("e", 0, 0.5),
            ),
            exchange,
            sharp=True,
            near=({"f": [0.5] * 4, "s": [1.0] * 4, "r": 0.1, "d": 0.1, "e": 0.1},),
        ),
    ),
    code=(
        "fpcheck/certify/middle.py:first_order",
        "fpcheck/certify/curvature.py:curvature",
        "fpcheck/check/full.py:full_lines",
        "fpcheck/check/second.py:tau_bound",
    ),
    uses=("Q2", "S0", "R1"),
    remarks=(
        "For second derivatives of nodes the terms are few: an entrywise function has one an entry, a gate three, a "
        "product of matrices two for each product of numbers, a norm three for each entry.",
        "R3 proves the largest eigenvalue.",
        "E_1 is at most as large as the bound on E: for bounds with e(s a) <= s e(a), E along a line divided by s "
        "tends to E_1. It is not needed here: E, not E_1, multiplies B.",
        "A node without such a form keeps E whole in place of E_2, and no part in M.",
    ),
)
