"""B6: contraction in a weighted maximum norm, from a non-negative matrix of bounds; the causal case."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Induction, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, spectral_norm

j = sp.Symbol("j", nonnegative=True, integer=True)
q = sp.Symbol("q", positive=True)
D = sp.Symbol("D", real=True)
M_ij = sp.Symbol("M_ij", nonnegative=True)
u_j = sp.Symbol("u_j", nonnegative=True)
v_j = sp.Symbol("v_j", positive=True)
v_i = sp.Symbol("v_i", positive=True)
U = sp.Symbol("U", nonnegative=True)
S = sp.Symbol("S", nonnegative=True)
T = sp.Symbol("T", nonnegative=True)
y_i = sp.Symbol("y_i", nonnegative=True)
kappa = sp.Symbol("kappa", nonnegative=True)
g = sp.Symbol("g", positive=True)
m = sp.Symbol("m", nonnegative=True)
B = sp.Symbol("B", nonnegative=True)
w = sp.Symbol("w", positive=True)


def _rate(ctx, bounds, weights):
    """max_i (M v)_i / v_i."""
    n = len(weights)
    return max(sum((bounds[i, k] * weights[k] for k in range(n)), ctx.mpf(0)) / weights[i] for i in range(n))


def _weighted(values, weights):
    return max(abs(a) / b for a, b in zip(values, weights, strict=True))


def entries(ctx, point):
    bounds, weights, u = matrix(ctx, point["M"], 3, 3), point["v"], point["u"]
    shares = matrix(ctx, point["share"], 3, 3)
    image = [sum((shares[i, k] * bounds[i, k] * u[k] for k in range(3)), ctx.mpf(0)) for i in range(3)]
    return _weighted(image, weights), _rate(ctx, bounds, weights) * _weighted(u, weights)


def chord(ctx, point):
    """f(z)_i = sum_j M_ij sin(z_j): its slopes are at most M_ij everywhere."""
    bounds, weights, x, y = matrix(ctx, point["M"], 2, 2), point["v"], point["x"], point["y"]
    change = [ctx.sin(a) - ctx.sin(b) for a, b in zip(x, y, strict=True)]
    image = [sum((bounds[i, k] * change[k] for k in range(2)), ctx.mpf(0)) for i in range(2)]
    apart = [a - b for a, b in zip(x, y, strict=True)]
    return _weighted(image, weights), _rate(ctx, bounds, weights) * _weighted(apart, weights)


def blocks(ctx, point):
    """Two blocks of two: M_ij is the spectral norm of block (i, j)."""
    a, weights, u = matrix(ctx, point["J"], 4, 4), point["v"], ctx.matrix(point["u"])
    bounds = ctx.matrix(2, 2)
    for i in range(2):
        for k in range(2):
            bounds[i, k] = spectral_norm(ctx, a[2 * i : 2 * i + 2, 2 * k : 2 * k + 2])
    image = a * u
    sizes, images = ([norm(ctx, list(z[2 * i : 2 * i + 2])) for i in range(2)] for z in (u, image))
    return _weighted(images, weights), _rate(ctx, bounds, weights) * _weighted(sizes, weights)


def causal(ctx, point):
    """Lower triangular, diagonal at most kappa, at most m below it: the weights (1 + m/g)^t against q = kappa + g."""
    n, m, g, kappa = 4, point["m"], point["g"], point["kappa"]
    bounds, below = ctx.matrix(n, n), iter(point["below"])
    for i in range(n):
        for k in range(i):
            bounds[i, k] = next(below) * m
        bounds[i, i] = point["diagonal"][i] * kappa
    return _rate(ctx, bounds, [(1 + m / g) ** i for i in range(n)]), kappa + g


ONES = [1.0] * 9

THEOREM = Theorem(
    id="B6",
    title="Contraction in a weighted maximum norm, and causal loops",
    statement=(
        r"Let $z = (z_1, \ldots, z_n)$ be split into blocks (entries, tokens), let $M \ge 0$ bound the blocks of the "
        r"Jacobian, $M_{ij} \ge \|J_{ij}(z)\|$, on a convex set, and let $v > 0$ satisfy $M v \le q v$. (a) Then $f$ "
        r"is $q$-Lipschitz on the set in the norm $\|u\|_v = \max_i \|u_i\| / v_i$; for $q < 1$ a contraction. For $J "
        r"= M$ and $q = \max_i (M v)_i / v_i$ this is attained. (b) If $M$ is lower triangular with diagonal entries "
        r"$\kappa_t$ (a causal loop), then such a $v$ exists for every $q > \max_t \kappa_t$. (c) If moreover "
        r"$\kappa_t \le \kappa$ and all entries below the diagonal are "
        r"at most $m$, then $v_t = (1 + m/g)^t$ will do for $q = \kappa + g$, $g > 0$."
    ),
    plain=(
        "Bounds on the blocks of a Jacobian and positive weights give a contraction test that needs only a product of "
        "a non-negative matrix with a vector. In a causal loop only the diagonal blocks decide whether there is such "
        "a norm; the coupling between tokens decides how unequal the weights are."
    ),
    symbols=(
        Symbol(j, "number of columns added up so far; in (c) the number of the row"),
        Symbol(q, "contraction factor", "kappa"),
        Symbol(M_ij, "bound on |J_ij|"),
        Symbol(u_j, "|u_j|, size of block j of the argument"),
        Symbol(v_j, "weight of block j"),
        Symbol(v_i, "weight of block i"),
        Symbol(U, "|u|_v"),
        Symbol(D, "sum of M_ij |u_j| minus |u|_v times the sum of M_ij v_j, over the first j columns"),
        Symbol(S, "sum of M_ij |u_j| over all columns"),
        Symbol(T, "(M v)_i"),
        Symbol(y_i, "size of block i of J u, or of f(x) - f(y) with u = x - y"),
        Symbol(kappa, "diagonal entry of M in this row; in (c) the bound on all of them"),
        Symbol(g, "q - kappa"),
        Symbol(m, "bound on the entries below the diagonal"),
        Symbol(B, "sum of M_ij v_j left of the diagonal; in (c) m times the sum of the first j weights"),
        Symbol(w, "the weight of a new row"),
    ),
    hypotheses=(
        Hypothesis("H1", "M v <= q v in row i", q * v_i - T),
        Hypothesis("H2", "|u_j| <= v_j |u|_v, by the definition of the norm", v_j * U - u_j),
        Hypothesis("H3", "for (b) and (c): g = q - kappa > 0", g - (q - kappa), "zero"),
        Hypothesis("H4", "for (b): the new weight is at least what is left of the diagonal over g", w - B / g),
        Hypothesis("H5", "the set is convex and f continuously differentiable on it (for F2)"),
    ),
    facts=(
        Fact(
            "F1",
            "|(J u)_i| <= sum_j |J_ij| |u_j| <= sum_j M_ij |u_j|",
            S - y_i,
            "triangle inequality, definition of the blocks' norms",
            axiom=True,
        ),
        Fact(
            "F2",
            "D of step 'columns' for all columns is S - |u|_v (M v)_i",
            S - U * T - D,
            "definition of S and T",
            relation="zero",
            axiom=True,
        ),
    ),
    steps=(
        Induction(
            "(a) Column by column, M_ij |u_j| is at most |u|_v times M_ij v_j; so are the sums.",
            j,
            D,
            D + M_ij * (u_j - v_j * U),
            bound=sp.Integer(0),
            start=sp.Integer(0),
            base=sp.Integer(0),
            step=ref("IH") + M_ij * ref("H2"),
            label="columns",
        ),
        Nonnegative(
            "Row i of J u is at most S, S at most |u|_v (M v)_i, and that at most q v_i |u|_v.",
            q * v_i * U - y_i,
            ref("F1") + ref("columns") - ref("F2") + U * ref("H1"),
            label="row",
        ),
        Nonnegative(
            "Divide by the weight: every row, hence the largest, is at most q |u|_v.",
            q * U - y_i / v_i,
            ref("row") / v_i,
            label="contraction",
        ),
        Nonnegative(
            "(b) The weights one after the other. A row of a lower triangular M sees only the weights chosen before "
            "it and its own; any positive weight w >= B/g satisfies the row, and earlier rows are not touched.",
            q * w - (B + kappa * w),
            g * ref("H4") - w * ref("H3"),
            label="next weight",
        ),
        Induction(
            "(c) With the weights (1 + m/g)^t, t = 0, 1, ..., what is left of the diagonal in row t is at most g "
            "times the weight of the row, so the rows satisfy step 'next weight'.",
            j,
            B,
            B + m * (1 + m / g) ** j,
            bound=g * (1 + m / g) ** j,
            start=sp.Integer(0),
            base=g,
            step=ref("IH"),
            label="explicit weights",
        ),
    ),
    source=Source(
        "Collatz", 1942, "Einschliessungssatz fuer die charakteristischen Zahlen von Matrizen; (b), (c) derived"
    ),
    claims=(
        Claim(
            "|J u|_v <= q |u|_v for |J| <= M by entries",
            (Reals("M", 0, 2, 9), Reals("share", -1, 1, 9), Reals("v", 0.1, 2, 3), Reals("u", -2, 2, 3)),
            entries,
            sharp=True,
            near=({"M": ONES, "share": ONES, "v": [1.0, 0.5, 1.5], "u": [1.0, 0.5, 1.5]},),
        ),
        Claim(
            "|f(x) - f(y)|_v <= q |x - y|_v for sums of sines",
            (Reals("M", 0, 2, 4), Reals("v", 0.1, 2, 2), Reals("x", -2, 2, 2), Reals("y", -2, 2, 2)),
            chord,
            near=({"M": ONES[:4], "v": [1.0, 0.5], "x": [0.02, 0.01], "y": [-0.02, -0.01]},),
        ),
        Claim(
            "|J u|_v <= q |u|_v with blocks of two",
            (Reals("J", -2, 2, 16), Reals("v", 0.1, 2, 2), Reals("u", -2, 2, 4)),
            blocks,
            sharp=True,
            near=({"J": [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0] * 2, "v": [1.0, 0.5], "u": [1.0, 0.0, 0.5, 0.0]},),
        ),
        Claim(
            "(M v)_t <= q v_t for a causal M with the explicit weights",
            (
                Reals("below", 0, 1, 6),
                Reals("diagonal", 0, 1, 4),
                Reals("m", 0.01, 10, log=True),
                Reals("g", 0.01, 1, log=True),
                Reals("kappa", 0, 1),
            ),
            causal,
            sharp=True,
            near=({"below": ONES[:6], "diagonal": ONES[:4], "m": 5.0, "g": 0.02, "kappa": 0.9},),
        ),
    ),
    not_checked=(
        NotChecked(
            "F1 for a chord: block i of f(x) - f(y) is at most sum_j M_ij |x_j - y_j|, because it is the integral of "
            "J(y + s(x - y)) (x - y) over s in [0, 1]",
            "mean value theorem in integral form, Ortega and Rheinboldt (1970), 3.2.7",
        ),
        NotChecked(
            "the infimum of q over all v > 0 is rho(M)",
            "Collatz (1942), Wielandt (1950); Horn and Johnson (2013), Corollary 8.1.31",
        ),
    ),
    uses=("B3",),
    remarks=(
        "The blocks may have norms of their own, such as |L_t J_ts L_s^-1|_2 with a metric for each token (B7, B10).",
        "The weights of (c) grow geometrically with the number of tokens, and the Euclidean ball inside shrinks as "
        "fast. A causal loop can be certified token by token instead.",
        "Every positive v gives a sound q, however it was found.",
    ),
)
