"""R3: a completed floating-point Cholesky factorisation as a proof of a spectral norm."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Nonnegative, NotChecked, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import frobenius_norm, symmetric_eigenvalues

u = sp.Symbol("u", nonnegative=True)
g = sp.Symbol("g", nonnegative=True)
gamma = sp.Symbol("gamma", nonnegative=True)
n = sp.Symbol("n", positive=True, integer=True)
K = sp.Symbol("K", positive=True)
c = sp.Symbol("c", nonnegative=True)
room = sp.Symbol("p", nonnegative=True)
b_ii = sp.Symbol("b", nonnegative=True)
delta_1 = sp.Symbol("delta_1", real=True)
delta_2 = sp.Symbol("delta_2", real=True)
y = sp.Symbol("y", positive=True)
a = sp.Symbol("a", positive=True)
trace = sp.Symbol("t", nonnegative=True)
e = sp.Symbol("e_ij", nonnegative=True)
d_i = sp.Symbol("d_i", nonnegative=True)
d_j = sp.Symbol("d_j", nonnegative=True)
x_i = sp.Symbol("x_i", nonnegative=True)
x_j = sp.Symbol("x_j", nonnegative=True)
s = sp.Symbol("s", nonnegative=True)
back = sp.Symbol("D", nonnegative=True)
form = sp.Symbol("A_x", real=True)
gram = sp.Symbol("B_x", real=True)
a_x = sp.Symbol("a_x", nonnegative=True)
b_x = sp.Symbol("b_x", nonnegative=True)
off = sp.Symbol("o_x", real=True)
exact = sp.Symbol("N", nonnegative=True)
F = sp.Symbol("F", nonnegative=True)

PAIRS = Totals((e, d_i, d_j, x_i, x_j), {e * x_i * x_j: back, d_i * d_j * x_i * x_j: s**2})
WEIGHTED = Totals((a, b_ii, x_i), {x_i**2: 1, b_ii * x_i**2: b_x, a * x_i**2: a_x})
DIAGONAL = Totals((a,), {1: n, a: trace})


def _factored(ctx, point, roundoff):
    """A 2 x 2 matrix whose computed factor is R: A = R'R - dA with any dA that the backward error allows."""
    r = point["R"]
    gamma_3 = 3 * roundoff / (1 - 3 * roundoff)
    share = gamma_3 / (1 - gamma_3)
    square = [[r[0] ** 2, r[0] * r[1]], [r[0] * r[1], r[1] ** 2 + r[2] ** 2]]
    e = point["e"]
    first, second = square[0][0] / (1 + share * e[0]), square[1][1] / (1 + share * e[1])
    off = square[0][1] - share * e[2] * ctx.sqrt(first * second)
    return first, second, off, share


def backward(ctx, point):
    """-lambda_min(A) against gamma/(1 - gamma) times the trace."""
    first, second, off, share = _factored(ctx, point, point["u"])
    return -symmetric_eigenvalues(ctx, ctx.matrix([[first, off], [off, second]]))[0], share * (first + second)


def diagonal(ctx, point):
    """The computed diagonal, against the exact one."""
    roundoff, level, b = point["u"], point["K"], point["b"] * point["K"]
    shift = point["c"] * (level - b)
    computed = ((level - b) * (1 + roundoff * point["d"][0]) - shift) * (1 + roundoff * point["d"][1])
    return computed - (level - b - shift), roundoff * (2 + roundoff) * level


def test(ctx, point):
    """K = 1: M'M that the computed B, the rounded diagonal and the factored A all allow; its largest eigenvalue."""
    roundoff = point["u"]
    first, second, off, share = _factored(ctx, point, roundoff)
    gamma_m = 3 * roundoff / (1 - 3 * roundoff)
    fixed = 2 * share + roundoff * (2 + roundoff)
    wrong = ctx.matrix([[point["w"][0], point["w"][2]], [point["w"][2], point["w"][1]]])
    length = max(frobenius_norm(ctx, wrong), ctx.mpf(1))
    d = [1 + roundoff * v for v in point["d"]]
    # trace M'M = trace B + gamma |M|_F^2 trace(wrong), with |M|_F^2 = trace M'M also in the shift c.
    entries = [1 - (v / d[2 + i] + fixed) / d[i] for i, v in enumerate((first, second))]
    scale = 1 - gamma_m * (wrong[0, 0] + wrong[1, 1]) / length + gamma_m * (1 / d[0] + 1 / d[1])
    size = (entries[0] + entries[1]) / scale
    b = [v - gamma_m * size / d[i] for i, v in enumerate(entries)]
    square = ctx.matrix([[b[0], -off], [-off, b[1]]]) + wrong * (gamma_m * size / length)
    values = symmetric_eigenvalues(ctx, square)
    if values[0] < 0 or min(b) < 0:
        return None
    return values[-1], ctx.mpf(1)


THEOREM = Theorem(
    id="R3",
    title="Spectral norm proved by a Cholesky factorisation in floating point",
    statement=(
        r"Let $M$ be an $m \times n$ matrix and $K > 0$, both of floats, $B = \mathrm{fl}(M^T M)$ (one triangle, "
        r"mirrored), $g = \frac{\gamma_{n+1}}{1 - \gamma_{n+1}}$ and $c$ a float with $c \ge \gamma_m \|M\|_F^2 + "
        r"g n K + u (2 + u) K$. Let $\tilde A$ have the off-diagonal entries $-b_{ij}$ and the diagonal "
        r"$\mathrm{fl}(\mathrm{fl}(K - b_{ii}) - c)$. If the Cholesky factorisation of $\tilde A$ in floating "
        r"point completes, with positive pivots and without underflow, then $|M|_2 \le \sqrt K$. On the way: "
        r"$\lambda_{\min}(\tilde A) \ge -g \, \mathrm{tr} \tilde A$, which is attained, and the rounded diagonal "
        r"is at most $K - b_{ii} - c + u(2 + u) K$, attained in the limit."
    ),
    plain=(
        "The sharpest cheap proof of a norm: one matrix product and one Cholesky factorisation in ordinary "
        "float64. If it completes, the norm is proved, with a loss of about n^2 roundings; if not, nothing is "
        "claimed."
    ),
    symbols=(
        Symbol(u, "unit roundoff", "u"),
        Symbol(n, "columns of M"),
        Symbol(g, "gamma_(n+1) / (1 - gamma_(n+1))"),
        Symbol(gamma, "gamma_m, m the rows of M"),
        Symbol(K, "the square of the norm to be proved"),
        Symbol(c, "the shift"),
        Symbol(b_ii, "diagonal entry of B, a sum of squares"),
        Symbol(room, "K - b_ii"),
        Symbol(delta_1, "rounding error of K - b_ii"),
        Symbol(delta_2, "rounding error of the shift"),
        Symbol(y, "fl(K - b_ii) - c before its rounding; positive, as the pivots are"),
        Symbol(a, "diagonal entry of A~"),
        Symbol(trace, "trace of A~"),
        Symbol(e, "|dA_ij|, backward error of the factorisation"),
        Symbol(d_i, "root of diagonal entry i"),
        Symbol(d_j, "root of diagonal entry j"),
        Symbol(x_i, "|entry i| of a unit vector x"),
        Symbol(x_j, "|entry j| of x"),
        Symbol(s, "sum of d_i |x_i|"),
        Symbol(back, "sum of |dA_ij| |x_i| |x_j|"),
        Symbol(form, "x'A~x"),
        Symbol(gram, "x'Bx"),
        Symbol(a_x, "sum of a_ii x_i^2"),
        Symbol(b_x, "sum of b_ii x_i^2"),
        Symbol(off, "sum of b_ij x_i x_j over i and j not equal"),
        Symbol(exact, "|M x|^2"),
        Symbol(F, "|M|_F^2"),
    ),
    hypotheses=(
        Hypothesis("H1", "p = K - b_ii, not negative, or the pivot would be", room - K + b_ii, "zero"),
        Hypothesis("H2", "|delta_1| <= u", u - delta_1),
        Hypothesis("H3", "|delta_2| <= u", u - delta_2),
        Hypothesis("H4", "y = (K - b_ii)(1 + delta_1) - c", y - room * (1 + delta_1) + c, "zero"),
        Hypothesis("H5", "a = y (1 + delta_2)", a - y * (1 + delta_2), "zero"),
        Hypothesis("H6", "the shift is large enough", c - gamma * F - g * n * K - u * (2 + u) * K),
    ),
    facts=(
        Fact(
            "F1",
            "if the factorisation completes with the computed factor R, then R'R = A~ + dA with |dA_ij| <= g d_i d_j",
            g * d_i * d_j - e,
            "Demmel (1989), LAPACK Working Note 14; Higham (2002), Theorem 10.5",
        ),
        Fact(
            "F2",
            "Cauchy-Schwarz: s^2 <= (sum of d_i^2)(sum of x_i^2), the trace times 1",
            trace - s**2,
            "S0",
            axiom=True,
        ),
        Fact(
            "F3",
            "0 <= |R x|^2 = x'A~x + x'dA x",
            form + back,
            "squares are not negative; triangle inequality",
            axiom=True,
        ),
        Fact("F4", "x'A~x, off-diagonal entries -b_ij", form - a_x + off, "definition of A~", "zero", axiom=True),
        Fact("F6", "x'Bx", gram - b_x - off, "definition", "zero", axiom=True),
        Fact(
            "F5",
            "x'(M'M - B)x is at most |M'M - B|_F <= gamma_m |M'|_F |M|_F",
            gram + gamma * F - exact,
            "R1",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "y is at most (1 + u) K.",
            (1 + u) * K - y,
            (1 + u) * (b_ii + ref("H1") * -1) + room * ref("H2") + c - ref("H4"),
            label="y",
        ),
        Nonnegative(
            "The diagonal of A~ exceeds its exact value by at most u K for the first rounding and u (1 + u) K for "
            "the second.",
            K - b_ii - c + u * (2 + u) * K - a,
            room * ref("H2") + u * b_ii + y * ref("H3") + u * ref("y") - ref("H1") * (1 + u) - ref("H4") - ref("H5"),
            label="diagonal",
        ),
        Nonnegative(
            "So it is at most K, the shift being larger than these roundings,",
            K - a,
            ref("diagonal") + b_ii + ref("H6") + gamma * F + g * n * K,
            label="entry",
        ),
        Summed("and the trace at most n K.", "entry", DIAGONAL, n * K - trace, label="trace"),
        Nonnegative(
            "The backward error in the direction x, one pair of entries,",
            g * d_i * d_j * x_i * x_j - e * x_i * x_j,
            x_i * x_j * ref("F1"),
            label="pair",
        ),
        Summed("summed over all pairs.", "pair", PAIRS, g * s**2 - back, label="backward"),
        Nonnegative(
            "Hence x'A~x is at least -g times the trace, for every unit vector x.",
            form + g * trace,
            ref("F3") + ref("backward") + g * ref("F2"),
            label="definite",
        ),
        Nonnegative(
            "In the direction x the rounded diagonal counts with the weights x_i^2,",
            x_i**2 * (K - b_ii - c + u * (2 + u) * K - a),
            x_i**2 * ref("diagonal"),
            label="weighted",
        ),
        Summed("which sum to 1.", "weighted", WEIGHTED, K - b_x - c + u * (2 + u) * K - a_x, label="rounded"),
        Nonnegative(
            "The shift pays for the factorisation, for the rounded diagonal and for the rounded product: |M x|^2 "
            "<= K for every unit vector x.",
            K - exact,
            ref("definite") + g * ref("trace") + ref("rounded") - ref("F4") - ref("F6") + ref("F5") + ref("H6"),
            label="norm",
        ),
    ),
    source=Source("Rump", 2006, "Verification of positive definiteness, BIT 46, with the product's rounding added"),
    claims=(
        Claim(
            "-lambda_min <= g trace, for any admissible backward error",
            (Reals("u", 1e-4, 0.1, log=True), Reals("R", -1, 1, 3), Reals("e", -1, 1, 3)),
            backward,
            sharp=True,
            near=({"u": 0.01, "R": [1.0, -1.0, 0.0], "e": [1.0, 1.0, 1.0]},),
            precise=True,
        ),
        Claim(
            "the rounded diagonal is at most u (2 + u) K too large",
            (
                Reals("u", 1e-6, 0.1, log=True),
                Reals("K", 0.1, 10),
                Reals("b", 0, 1),
                Reals("c", 0, 0.9),
                Reals("d", -1, 1, 2),
            ),
            diagonal,
            sharp=True,
            near=({"u": 0.01, "K": 1.0, "b": 0.0, "c": 0.0, "d": [1.0, 1.0]},),
            precise=True,
        ),
        Claim(
            "|M|_2^2 <= K, M'M anything that the computed numbers allow",
            (
                Reals("u", 1e-8, 1e-2, log=True),
                Reals("R", -0.7, 0.7, 3),
                Reals("e", -1, 1, 3),
                Reals("w", -1, 1, 3),
                Reals("d", -1, 1, 4),
            ),
            test,
            near=({"u": 1e-6, "R": [0.01, 0.0, 0.01], "e": [0.0, 0.0, 0.0], "w": [1.0, 0.0, 0.0], "d": [0.0] * 4},),
        ),
    ),
    not_checked=(
        NotChecked(
            "that the bound of F1 holds for the order of operations of the library's factorisation (blocked or not)",
            "Higham (2002), section 10.1.1",
        ),
    ),
    code=(
        "fpcheck/certify/norms.py:norm_bound",
        "fpcheck/check/clouds.py:norm_bound",
    ),
    uses=("R1", "S0"),
    remarks=(
        "K need not be the square of a float: k = sqrt(K), rounded up, is the norm that is reported.",
        "c may be any larger number; computing it in floating point and adding a few per cent is simplest.",
        "Not-a-numbers and infinities must be excluded before: comparisons with them are false.",
        "Underflow adds about n^2 times the smallest positive float, which a larger c covers.",
        "The same test proves tau^2 of Q2: with the matrix sum of M_i'M_i in place of B and its own error bound.",
    ),
)
