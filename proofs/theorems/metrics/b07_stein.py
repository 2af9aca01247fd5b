"""B7: the metric of a Stein equation, in which a Jacobian with spectral radius below k0 contracts by k0."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import eigenvalues, matrix, norm, spectral_norm, spectral_radius, stein, symmetric_eigenvalues

J = sp.Symbol("J", commutative=False)
Jt = sp.Symbol("J^T", commutative=False)
L = sp.Symbol("L", commutative=False)
Lt = sp.Symbol("L^T", commutative=False)
P = sp.Symbol("P", commutative=False)
S = sp.Symbol("S", commutative=False)
q = sp.Symbol("q", positive=True)
k_0 = sp.Symbol("k_0", positive=True)
A = sp.Symbol("A", nonnegative=True)
A_1 = sp.Symbol("A_1", nonnegative=True)
A_2 = sp.Symbol("A_2", nonnegative=True)
A_s = sp.Symbol("A_s", nonnegative=True)
B = sp.Symbol("B", positive=True)
form = sp.Symbol("Q", nonnegative=True)
s = sp.Symbol("s", nonnegative=True)
c = sp.Symbol("c", positive=True)
lam = sp.Symbol("lambda", positive=True)
d_x = sp.Symbol("d_x", nonnegative=True)
d_f = sp.Symbol("d_f", nonnegative=True)


def congruent(ctx, a, root):
    """L a L^-1."""
    return root * a * ctx.inverse(root)


def _metric_rate(ctx, matrices, root):
    """The smallest q with J'PJ <= q^2 P for all of the matrices: largest eigenvalue of the pencil (J'PJ, P)."""
    metric = root.T * root
    back = ctx.inverse(metric)
    return ctx.sqrt(max(max(v.real for v in eigenvalues(ctx, back * j.T * metric * j)) for j in matrices))


def contracts(ctx, point):
    a, root = matrix(ctx, point["J"], 2, 2), matrix(ctx, point["L"], 2, 2)
    if abs(root[0, 0] * root[1, 1] - root[0, 1] * root[1, 0]) < ctx.mpf(1) / 20:
        return None
    return spectral_norm(ctx, congruent(ctx, a, root)), _metric_rate(ctx, [a], root)


def chord(ctx, point):
    """f(z) = J tanh(z): its Jacobians lie in the hull of J diag(d), d in {0, 1}^2."""
    a, root = matrix(ctx, point["J"], 2, 2), matrix(ctx, point["L"], 2, 2)
    if abs(root[0, 0] * root[1, 1] - root[0, 1] * root[1, 0]) < ctx.mpf(1) / 20:
        return None
    vertices = [a * ctx.diag([u, v]) for u in (0, 1) for v in (0, 1)]
    x, y = ctx.matrix(point["x"]), ctx.matrix(point["y"])
    images = a * ctx.matrix([ctx.tanh(u) - ctx.tanh(v) for u, v in zip(x, y, strict=True)])
    return norm(ctx, list(root * images)), _metric_rate(ctx, vertices, root) * norm(ctx, list(root * (x - y)))


def _stein_metric(ctx, point):
    a = matrix(ctx, point["J"], 2, 2)
    target = spectral_radius(ctx, a) + point["room"]
    metric = stein(ctx, a.T / target, ctx.eye(2))
    return a, target, metric, ctx.cholesky((metric + metric.T) / 2).T


def exact(ctx, point):
    a, target, metric, root = _stein_metric(ctx, point)
    top = symmetric_eigenvalues(ctx, (metric + metric.T) / 2)[-1]
    return spectral_norm(ctx, congruent(ctx, a, root)), target * ctx.sqrt(1 - 1 / top)


def exact_below(ctx, point):
    left, right = exact(ctx, point)
    return right, left


def below_target(ctx, point):
    a, target, _, root = _stein_metric(ctx, point)
    return spectral_norm(ctx, congruent(ctx, a, root)), target


SPACE = (Reals("J", -3, 3, 4), Reals("room", 0.05, 2, log=True))
FAR = {"J": [0.5, 3.0, 0.0, 0.4], "room": 0.05}

THEOREM = Theorem(
    id="B7",
    title="Contraction in a quadratic metric, and the Stein equation",
    statement=(
        r"Let $P = L^T L$ with $L$ invertible, $\|v\|_P = |L v|_2$. (a) $\|J\|_P = |L J L^{-1}|_2 \le q$ exactly if "
        r"$J^T P J \le q^2 P$. (b) If this holds, with one $P$, for several matrices, it holds for all of their "
        r"convex hull; a map with its Jacobians in the hull, on a convex set, is $q$-Lipschitz in $\|\cdot\|_P$. (c) "
        r"If $P$ solves the Stein equation $\frac{J^T}{k_0} P \frac{J}{k_0} - P + I = 0$, then "
        r"$\|J\|_P = k_0 \sqrt{1 - \frac{1}{\lambda_{\max}(P)}} < k_0$. For every $k_0 > \rho(J)$ it has such a "
        r"solution."
    ),
    plain=(
        "Whatever the Euclidean norm says, a Jacobian with spectral radius below k0 is a contraction by k0 in the "
        "metric that one linear equation gives, and the same metric may serve for all Jacobians over a ball."
    ),
    symbols=(
        Symbol(J, "Jacobian", "J"),
        Symbol(Jt, "its transpose"),
        Symbol(L, "root of the metric, invertible", "L"),
        Symbol(Lt, "its transpose"),
        Symbol(P, "metric L'L"),
        Symbol(S, "a partial sum of (J'/k0)^j (J/k0)^j, the series that solves the equation"),
        Symbol(q, "contraction factor", "kappa"),
        Symbol(k_0, "target, above the spectral radius", "k0"),
        Symbol(B, "|w|_2 of a vector w = L v, not 0; it is |v|_P"),
        Symbol(A, "|L J L^-1 w|_2; it is |J v|_P"),
        Symbol(A_1, "the same for one matrix of several"),
        Symbol(A_2, "the same for another"),
        Symbol(A_s, "the same for s times the first plus 1 - s times the other"),
        Symbol(form, "v'(q^2 P - J'PJ)v"),
        Symbol(s, "weight of the first matrix in a convex combination"),
        Symbol(c, "|v|_2"),
        Symbol(lam, "largest eigenvalue of P"),
        Symbol(d_x, "|x - y|_P"),
        Symbol(d_f, "|f(x) - f(y)|_P"),
    ),
    hypotheses=(
        Hypothesis("H1", "J'PJ <= q^2 P as quadratic forms (used in F1: Q >= 0 for every v)"),
        Hypothesis("H2", "for (b): the first matrix satisfies it, hence A_1 <= q B by (a)", q * B - A_1),
        Hypothesis("H3", "for (b): so does the second", q * B - A_2),
        Hypothesis("H4", "for (b): the weights s and 1 - s are not negative", 1 - s),
        Hypothesis("H5", "for (c): the Stein equation, times k0^2", Jt * P * J - k_0**2 * (P - 1), "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "w' (step 'congruence') w, with |x|^2 = x'x",
            q**2 * B**2 - A**2 - form,
            "definition of the Euclidean norm",
            relation="zero",
            axiom=True,
        ),
        Fact(
            "F2",
            "|(s M_1 + (1 - s) M_2) w| <= s |M_1 w| + (1 - s) |M_2 w|",
            s * A_1 + (1 - s) * A_2 - A_s,
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "F3",
            "v' (step 'Stein form') v, with q = k0: |L J v|^2 = k0^2 (|L v|^2 - |v|^2)",
            A**2 - k_0**2 * (B**2 - c**2),
            "definition of the Euclidean norm",
            relation="zero",
            axiom=True,
        ),
        Fact(
            "F4",
            "|L v|^2 = v'Pv <= lambda |v|^2, with equality for the eigenvector of lambda",
            lam * c**2 - B**2,
            "Rayleigh quotient; e.g. Horn and Johnson (2013), Theorem 4.2.2",
        ),
        Fact(
            "F5",
            "f moves two points apart by at most the largest norm of its Jacobians between them",
            q * d_x - d_f,
            "mean value inequality, Dieudonne (1960), 8.5.4",
        ),
    ),
    steps=(
        Identity(
            "(a) With v = L^-1 w, the condition on J is a condition on M = L J L^-1: congruent, hence equivalent.",
            Lt**-1 * (q**2 * Lt * L - Jt * Lt * L * J) * L**-1,
            q**2 - (Lt**-1 * Jt * Lt) * (L * J * L**-1),
            label="congruence",
        ),
        Nonnegative(
            "So |M w| <= q |w| for every w, which is the operator norm's definition.",
            q * B - A,
            (form + ref("F1")) / (q * B + A),
            label="contracts",
        ),
        Nonnegative(
            "Conversely |M w| <= q |w| gives back the form's sign: (q |w| - |M w|)(q |w| + |M w|).",
            q**2 * B**2 - A**2,
            ref("contracts") * (q * B + A),
        ),
        Nonnegative(
            "(b) Two matrices, and by repetition any number: convex combinations contract as well.",
            q * B - A_s,
            ref("F2") + s * ref("H2") + ref("H4") * ref("H3"),
            label="hull",
        ),
        Nonnegative("On a convex set the Jacobians' bound is the map's.", q * d_x - d_f, ref("F5")),
        Identity(
            "(c) For a solution of the Stein equation the form is k0^2 times the identity, positive.",
            k_0**2 * P - Jt * P * J,
            k_0**2,
            modulo={"H5": sp.Integer(-1)},
            label="Stein form",
        ),
        Nonnegative(
            "Since |v|^2 is at least |L v|^2 / lambda, |M w|^2 <= k0^2 (1 - 1/lambda) |w|^2.",
            k_0**2 * (1 - 1 / lam) * B**2 - A**2,
            k_0**2 / lam * ref("F4") - ref("F3"),
            label="rate",
        ),
        Identity(
            "Equality for the eigenvector of lambda, where |L v|^2 = lambda |v|^2.",
            k_0**2 * (lam * c**2 - c**2),
            k_0**2 * (1 - 1 / lam) * (lam * c**2),
        ),
        Nonnegative(
            "And below k0 at once: k0^2 |w|^2 - |M w|^2 = k0^2 |v|^2 > 0.",
            k_0**2 * B**2 - A**2,
            k_0**2 * c**2 - ref("F3"),
        ),
        Identity(
            "Existence: the partial sums S of (J'/k0)^j (J/k0)^j start at 0 and follow S <- I + (J'/k0) S (J/k0). "
            "Their defect in the equation is multiplied by J'/k0 from the left and J/k0 from the right each time, so "
            "it is a power of both.",
            1 + Jt * (1 + Jt * S * J / k_0**2) * J / k_0**2 - (1 + Jt * S * J / k_0**2),
            Jt * (1 + Jt * S * J / k_0**2 - S) * J / k_0**2,
            label="defect",
        ),
    ),
    source=Source("Stein", 1952, "Some general theorems on iterants; the exact rate in (c) derived"),
    claims=(
        Claim(
            "|L J L^-1| <= q for the smallest q with J'PJ <= q^2 P",
            (Reals("J", -3, 3, 4), Reals("L", -2, 2, 4)),
            contracts,
            sharp=True,
        ),
        Claim(
            "q-Lipschitz in the P norm for Jacobians in a hull: J tanh(z)",
            (Reals("J", -3, 3, 4), Reals("L", -2, 2, 4), Reals("x", -2, 2, 2), Reals("y", -2, 2, 2)),
            chord,
            near=({"J": [0.5, 0.2, 0.1, 0.5], "L": [1.0, 0.0, 0.0, 1.0], "x": [0.01, 0.006], "y": [-0.01, -0.006]},),
        ),
        Claim("|L J L^-1| <= k0 sqrt(1 - 1/lambda_max(P))", SPACE, exact, sharp=True, near=(FAR,)),
        Claim("|L J L^-1| >= k0 sqrt(1 - 1/lambda_max(P))", SPACE, exact_below, sharp=True, near=(FAR,)),
        Claim("|L J L^-1| <= k0", SPACE, below_target, near=(FAR,)),
    ),
    not_checked=(
        NotChecked(
            "the defect, a product of powers of J'/k0 and J/k0, tends to 0 and the series converges exactly if rho(J) "
            "< k0",
            "Stein (1952); Horn and Johnson (2013), Theorem 5.6.12",
        ),
    ),
    uses=("B3",),
    remarks=(
        "A computed P need not solve the equation, and k0 must not be reported as the rate: only a verified bound on "
        "|L J L^-1|_2 counts, for whatever L was stored.",
        "Every such norm is at least rho(J) (E2), so k0 cannot go below it.",
        "B10 has the dual metric, in which the second derivatives of a block come out smaller.",
    ),
)
