"""D10: the spectral radius between row sums with positive weights."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Induction, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, spectral_radius

j = sp.Symbol("j", nonnegative=True, integer=True)
k = sp.Symbol("k", nonnegative=True, integer=True)
q = sp.Symbol("q", nonnegative=True)
p = sp.Symbol("p", nonnegative=True)
size = sp.Symbol("l", nonnegative=True)
U = sp.Symbol("U", positive=True)
v_i = sp.Symbol("v_i", positive=True)
v_j = sp.Symbol("v_j", positive=True)
S = sp.Symbol("S", nonnegative=True)
T = sp.Symbol("T", nonnegative=True)
a_ij = sp.Symbol("a_ij", nonnegative=True)
D = sp.Symbol("D", real=True)
y_j = sp.Symbol("y_j", nonnegative=True)
y_i = sp.Symbol("y_i", nonnegative=True)
mu = sp.Symbol("mu", nonnegative=True)
mu_next = sp.Symbol("mu_next", nonnegative=True)
nu = sp.Symbol("nu", nonpositive=True)
nu_next = sp.Symbol("nu_next", nonpositive=True)


def _sums(a, weights):
    n = len(weights)
    return [sum(abs(a[i, c]) * weights[c] for c in range(n)) / weights[i] for i in range(n)]


def upper(ctx, point):
    a = matrix(ctx, point["A"], 3, 3)
    return spectral_radius(ctx, a), max(_sums(a, point["v"]))


def lower(ctx, point):
    a = matrix(ctx, [abs(x) for x in point["A"]], 3, 3)
    return min(_sums(a, point["v"])), spectral_radius(ctx, a)


SPACE = (Reals("A", -2, 2, 9), Reals("v", 0.1, 2, 3))
# Symmetric, eigenvector (1, 1, 1) with the eigenvalue 4.
NEAR = ({"A": [2.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 2.0], "v": [1.0, 1.0, 1.0]},)

THEOREM = Theorem(
    id="D10",
    title="Spectral radius from weighted row sums",
    statement=(
        r"For every square matrix $A$ and every $v > 0$: $\rho(A) \le \max_i \sum_j |a_{ij}| \frac{v_j}{v_i}$. If "
        r"$A \ge 0$, then also $\min_i \sum_j a_{ij} \frac{v_j}{v_i} \le \rho(A)$. Both are attained when $A > 0$ and "
        r"$v$ is its Perron vector."
    ),
    plain=(
        "One product of a matrix of absolute values with a positive vector bounds every eigenvalue, in exact or "
        "rounded arithmetic: no eigenvalue computation has to be trusted. For a non-negative matrix it also bounds "
        "from below."
    ),
    symbols=(
        Symbol(q, "largest weighted row sum"),
        Symbol(p, "smallest weighted row sum"),
        Symbol(size, "modulus of an eigenvalue"),
        Symbol(U, "largest |x_j| / v_j of its eigenvector x, not 0; attained in row i"),
        Symbol(v_i, "weight of row i"),
        Symbol(v_j, "weight of column j"),
        Symbol(S, "sum of |a_ij| |x_j|"),
        Symbol(T, "sum of |a_ij| v_j"),
        Symbol(a_ij, "entry of A, not negative in (b)"),
        Symbol(j, "number of columns added up so far"),
        Symbol(k, "power"),
        Symbol(y_j, "entry j of A^k v"),
        Symbol(y_i, "entry i of A^(k+1) v"),
        Symbol(mu, "smallest (A^k v)_j / v_j"),
        Symbol(mu_next, "smallest (A^(k+1) v)_i / v_i, attained in row i"),
        Symbol(nu, "-mu"),
        Symbol(nu_next, "-mu_next"),
        Symbol(D, "mu times the sum of a_ij v_j minus the sum of a_ij y_j, over the first j columns"),
    ),
    hypotheses=(
        Hypothesis("H1", "q is the largest weighted row sum", q * v_i - T),
        Hypothesis("H2", "for the lower bound: p is the smallest weighted row sum, A >= 0", T - p * v_i),
        Hypothesis("H3", "y_j >= mu v_j, by the definition of mu", y_j - mu * v_j),
    ),
    facts=(
        Fact(
            "F1",
            "row i of A x = lambda x, where |x_i| = U v_i: |lambda| U v_i <= sum_j |a_ij| |x_j|",
            S - size * U * v_i,
            "triangle inequality for complex numbers",
            axiom=True,
        ),
        Fact("F2", "B6, step 'columns', with M = |A|: S <= U T", U * T - S, "B6", axiom=True),
        Fact(
            "F3",
            "D of step 'columns' for all columns is mu T - y_i",
            mu * T - y_i - D,
            "definition of T and y_i",
            relation="zero",
            axiom=True,
        ),
        Fact(
            "F4",
            "mu_next is y_i / v_i in the row where that is least",
            mu_next * v_i - y_i,
            "definition",
            "zero",
            axiom=True,
        ),
        Fact("F5", "nu = -mu", nu + mu, "definition", "zero", axiom=True),
        Fact("F6", "nu_next = -mu_next", nu_next + mu_next, "definition", "zero", axiom=True),
    ),
    steps=(
        Nonnegative(
            "Upper bound: in the row where |x_i| / v_i is largest, |lambda| U v_i <= S <= U T <= U q v_i; divide by U "
            "v_i.",
            q - size,
            (ref("F1") + ref("F2") + U * ref("H1")) / (U * v_i),
            label="upper",
        ),
        Induction(
            "Lower bound, A >= 0: column by column, a_ij y_j is at least mu a_ij v_j; so are the sums.",
            j,
            D,
            D + a_ij * (mu * v_j - y_j),
            bound=sp.Integer(0),
            start=sp.Integer(0),
            base=sp.Integer(0),
            step=ref("IH") + a_ij * ref("H3"),
            label="columns",
        ),
        Nonnegative(
            "So the smallest quotient grows by p at least: mu_next v_i = y_i >= mu T >= mu p v_i.",
            mu_next - p * mu,
            (ref("columns") - ref("F3") + ref("F4") + mu * ref("H2")) / v_i,
            label="one power",
        ),
        Induction(
            "Hence A^k v >= p^k v, and the norm of A^k in the v-weighted maximum norm is at least p^k.",
            k,
            nu,
            nu_next,
            bound=-(p**k),
            start=sp.Integer(-1),
            base=sp.Integer(0),
            step=p * ref("IH") + ref("one power") + p * ref("F5") - ref("F6"),
            label="powers",
        ),
    ),
    source=Source("Collatz", 1942, "Einschliessungssatz fuer die charakteristischen Zahlen von Matrizen"),
    claims=(
        Claim("rho(A) <= largest weighted row sum", SPACE, upper, sharp=True, near=NEAR),
        Claim("smallest weighted row sum <= rho(A) for A >= 0", SPACE, lower, sharp=True, near=NEAR),
    ),
    not_checked=(
        NotChecked(
            "rho(A) is the limit of |A^k|^(1/k), hence at least p", "Gelfand (1941); Horn and Johnson (2013), 5.6.14"
        ),
    ),
    uses=("B6",),
    remarks=("For v = 1 the upper bound is the largest row sum of |A|, which Gershgorin's circles give as well.",),
)
