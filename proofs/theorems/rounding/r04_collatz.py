"""R4: a spectral norm from above with one product of non-negative numbers."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import matrix, spectral_norm

norm2 = sp.Symbol("N", nonnegative=True)
q = sp.Symbol("q", nonnegative=True)
q_abs = sp.Symbol("q_a", nonnegative=True)
rho = sp.Symbol("rho", nonnegative=True)
v_i = sp.Symbol("v_i", positive=True)
v_j = sp.Symbol("v_j", positive=True)
g_ij = sp.Symbol("g_ij", nonnegative=True)
h_ij = sp.Symbol("h_ij", nonnegative=True)
T = sp.Symbol("T", nonnegative=True)
H = sp.Symbol("H", nonnegative=True)
S = sp.Symbol("S", nonnegative=True)
a_ki = sp.Symbol("a_ki", nonnegative=True)
s_k = sp.Symbol("s_k", nonnegative=True)
rows = sp.Symbol("A_inf", nonnegative=True)
cols = sp.Symbol("A_1", nonnegative=True)
column = sp.Symbol("c_i", nonnegative=True)

COLUMNS = Totals((g_ij, h_ij, v_j), {g_ij * v_j: T, h_ij * v_j: H})
ONES = Totals((a_ki, s_k), {a_ki: column, a_ki * s_k: S})


def _gram(a):
    return a.T * a


def exact(ctx, point):
    a, v = matrix(ctx, point["A"], 3, 2), point["v"]
    gram = _gram(a)
    sums = [sum(abs(gram[i, j]) * v[j] for j in range(2)) / v[i] for i in range(2)]
    return spectral_norm(ctx, a), ctx.sqrt(max(sums))


def absolute(ctx, point):
    """The bound without forming A'A, which is weaker."""
    a, v = matrix(ctx, point["A"], 3, 2), point["v"]
    through = [sum(abs(a[k, j]) * v[j] for j in range(2)) for k in range(3)]
    sums = [sum(abs(a[k, i]) * through[k] for k in range(3)) / v[i] for i in range(2)]
    gram = _gram(a)
    plain = [sum(abs(gram[i, j]) * v[j] for j in range(2)) / v[i] for i in range(2)]
    return max(plain), max(sums)


def one_and_infinity(ctx, point):
    a = matrix(ctx, point["A"], 3, 2)
    rows_ = max(sum(abs(a[k, j]) for j in range(2)) for k in range(3))
    cols_ = max(sum(abs(a[k, j]) for k in range(3)) for j in range(2))
    return spectral_norm(ctx, a), ctx.sqrt(rows_ * cols_)


SPACE = (Reals("A", -2, 2, 6), Reals("v", 0.1, 2, 2))
NEAR = ({"A": [1.0, 1.0, 1.0, 1.0, 1.0, 1.0], "v": [1.0, 1.0]},)

THEOREM = Theorem(
    id="R4",
    title="Spectral norm from above by weighted row sums",
    statement=(
        r"For every real matrix $A$ and every $v > 0$: $|A|_2^2 \le \max_i \frac{(|A^T A| v)_i}{v_i} \le \max_i "
        r"\frac{(|A|^T (|A| v))_i}{v_i}$, with entrywise absolute values; for $v = 1$ the last is at most $\|A\|_1 "
        r"\|A\|_\infty$. The first is an equality if $A^T A > 0$ entrywise and $v$ is its Perron vector; all are "
        r"if $A$ has equal entries and $v = 1$."
    ),
    plain=(
        "A spectral norm bounded by sums and products of non-negative numbers: no eigenvalue has to be trusted, and "
        "rounding is easily paid for. A few power iterations on the absolute values make v good enough to lose little."
    ),
    symbols=(
        Symbol(norm2, "|A|_2^2"),
        Symbol(rho, "spectral radius of A'A"),
        Symbol(q, "largest (|A'A| v)_i / v_i"),
        Symbol(q_abs, "largest (|A|'(|A| v))_i / v_i"),
        Symbol(v_i, "weight of row i"),
        Symbol(v_j, "weight of column j"),
        Symbol(g_ij, "|entry (i, j) of A'A|"),
        Symbol(h_ij, "entry (i, j) of |A|'|A|"),
        Symbol(T, "(|A'A| v)_i, in the row where it is largest against v_i"),
        Symbol(H, "(|A|'(|A| v))_i in that row"),
        Symbol(S, "(|A|'(|A| v))_i for v = 1, in any row"),
        Symbol(a_ki, "|entry (k, i) of A|"),
        Symbol(s_k, "sum of row k of |A|"),
        Symbol(rows, "largest row sum of |A|"),
        Symbol(cols, "largest column sum of |A|"),
        Symbol(column, "sum of column i of |A|"),
    ),
    hypotheses=(
        Hypothesis("H1", "T belongs to the row where the quotient is q", T - q * v_i, "zero"),
        Hypothesis("H2", "q_a is the largest of the weaker quotients", q_abs * v_i - H),
        Hypothesis("H3", "row sums are at most |A|_inf", rows - s_k),
        Hypothesis("H4", "column sums are at most |A|_1", cols - column),
    ),
    facts=(
        Fact("F1", "|A|_2^2 is the largest eigenvalue of A'A", rho - norm2, "definition", "zero", axiom=True),
        Fact("F2", "D10 for A'A", q - rho, "D10", axiom=True),
        Fact("F3", "|sum_k a_ki a_kj| <= sum_k |a_ki||a_kj|", h_ij - g_ij, "triangle inequality", axiom=True),
    ),
    steps=(
        Nonnegative(
            "The spectral radius of A'A is at most its weighted row sums.",
            q - norm2,
            ref("F1") + ref("F2"),
            label="first",
        ),
        Nonnegative(
            "Entry by entry |A'A| is at most |A|'|A|,", h_ij * v_j - g_ij * v_j, v_j * ref("F3"), label="entry"
        ),
        Summed("so row by row too,", "entry", COLUMNS, H - T, label="row"),
        Nonnegative(
            "and the largest quotient is not smaller.",
            q_abs - q,
            (ref("H2") + ref("row") + ref("H1")) / v_i,
            label="second",
        ),
        Nonnegative(
            "For v = 1: each row sum is at most the largest,", rows * a_ki - a_ki * s_k, a_ki * ref("H3"), label="term"
        ),
        Summed("summed over the rows k with |a_ki|,", "term", ONES, rows * column - S, label="column"),
        Nonnegative("and each column sum is at most the largest.", rows * cols - S, ref("column") + rows * ref("H4")),
    ),
    source=Source("Collatz", 1942, "Einschliessungssatz, applied to A'A; Schur (1911) for the last form"),
    claims=(
        Claim("|A|_2 <= root of the largest (|A'A| v)_i / v_i", SPACE, exact, sharp=True, near=NEAR),
        Claim("that is at most the bound with |A|'|A|", SPACE, absolute, sharp=True, near=NEAR),
        Claim("|A|_2 <= root of |A|_1 |A|_inf", (Reals("A", -2, 2, 6),), one_and_infinity, sharp=True, near=NEAR),
    ),
    uses=("D10",),
    remarks=(
        "All terms are non-negative, so a computed sum S of n products is at most S / (1 - gamma_n) in exact "
        "arithmetic (R1); for |A'A| add gamma_m |A|'|A| first, m the number of rows.",
        "For a matrix with entries of mixed signs the loss can be as large as the root of the dimension; R3 loses "
        "nothing.",
    ),
)
