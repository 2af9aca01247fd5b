"""B10: the metric of the dual Stein equation, and how it compares with the Euclidean one."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, spectral_norm, spectral_radius, stein, symmetric_eigenvalues

K = sp.Symbol("K", commutative=False)
Kt = sp.Symbol("K^T", commutative=False)
L = sp.Symbol("L", commutative=False)
Lt = sp.Symbol("L^T", commutative=False)
W = sp.Symbol("W", commutative=False)
S = sp.Symbol("S", commutative=False)
k_0 = sp.Symbol("k_0", positive=True)
alpha = sp.Symbol("alpha", positive=True)
A = sp.Symbol("A", nonnegative=True)
B = sp.Symbol("B", positive=True)
form = sp.Symbol("Q", nonnegative=True)
n = sp.Symbol("n", positive=True)
x = sp.Symbol("x", positive=True)
t = sp.Symbol("t", nonnegative=True)
c = sp.Symbol("c", positive=True)
lam = sp.Symbol("lambda", positive=True)
e_norm = sp.Symbol("v_2", nonnegative=True)
p_norm = sp.Symbol("v_P", nonnegative=True)
l_norm = sp.Symbol("l", positive=True)
back = sp.Symbol("b", positive=True)
cond = sp.Symbol("kappa_L", positive=True)
r = sp.Symbol("r", positive=True)


def _symmetric(a):
    return (a + a.T) / 2


def _metric(ctx, a, target, w):
    """X and L = C^-1 for X = C C'."""
    x = _symmetric(stein(ctx, a / target, w))
    return x, ctx.inverse(ctx.cholesky(x))


def contracts(ctx, point):
    """Right side W = g g' of rank one: the rate k0 itself is reached."""
    a, g = matrix(ctx, point["J"], 2, 2), ctx.matrix(point["g"])
    target = spectral_radius(ctx, a) + point["room"]
    image = a * g
    if abs(g[0] * image[1] - g[1] * image[0]) < ctx.mpf(1) / 100:
        return None  # X would be singular, or nearly so
    _, root = _metric(ctx, a, target, g * g.T)
    return spectral_norm(ctx, root * a * ctx.inverse(root)), target


def exact(ctx, point):
    a = matrix(ctx, point["J"], 2, 2)
    target = spectral_radius(ctx, a) + point["room"]
    x, root = _metric(ctx, a, target, ctx.eye(2))
    return spectral_norm(ctx, root * a * ctx.inverse(root)), target * ctx.sqrt(
        1 - 1 / symmetric_eigenvalues(ctx, x)[-1]
    )


def exact_below(ctx, point):
    left, right = exact(ctx, point)
    return right, left


def _scaled(ctx, point):
    """L scaled so that its inverse has norm 1; its condition number; the vector."""
    root = matrix(ctx, point["L"], 3, 3)
    if abs(ctx.det(root)) < ctx.mpf(1) / 20:
        return None
    back = spectral_norm(ctx, ctx.inverse(root))
    return root * back, spectral_norm(ctx, root) * back, ctx.matrix(point["v"])


def outer(ctx, point):
    found = _scaled(ctx, point)
    if found is None:
        return None
    root, _, v = found
    return norm(ctx, list(v)), norm(ctx, list(root * v))


def inner(ctx, point):
    found = _scaled(ctx, point)
    if found is None:
        return None
    root, condition, v = found
    return norm(ctx, list(root * v)), condition * norm(ctx, list(v))


SPACE = (Reals("J", -3, 3, 4), Reals("room", 0.05, 2, log=True))
NORMS = (Reals("L", -2, 2, 9), Reals("v", -1, 1, 3))
DIAGONAL = [2.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.5]

THEOREM = Theorem(
    id="B10",
    title="The dual Stein metric, and the Euclidean balls inside and around its balls",
    statement=(
        r"Let $X = C C^T$ be positive definite, $L = C^{-1}$, $k_0 > 0$, and $\|v\|_P = |L v|_2$. (a) If "
        r"$X - \frac{J}{k_0} X \frac{J^T}{k_0} = W$ with $W \ge 0$, then $\|J\|_P = |L J L^{-1}|_2 \le k_0$, which is "
        r"attained for some $W$. (b) For $W = I$: $\|J\|_P = k_0 \sqrt{1 - \frac{1}{\lambda_{\max}(X)}}$. (c) "
        r"Multiplying $L$ by a number leaves $\|J\|_P$ as it is; scaled so that $|L^{-1}|_2 = 1$, "
        r"$|v|_2 \le \|v\|_P \le \mathrm{cond}(L) |v|_2$ with $\mathrm{cond}(L) = |L|_2 |L^{-1}|_2$, so the ball "
        r"$\|v\|_P \le r$ lies in the Euclidean ball of radius $r$ and contains that of radius "
        r"$\frac{r}{\mathrm{cond}(L)}$; both are the best."
    ),
    plain=(
        "The metric that certificates use: the inverse of the covariance that noise builds up in the linearised loop. "
        "The Jacobian contracts by k0 in it, and the certified ellipsoid holds a Euclidean ball smaller by the "
        "condition number."
    ),
    symbols=(
        Symbol(K, "Jacobian over the target, J/k0"),
        Symbol(Kt, "its transpose"),
        Symbol(L, "root of the metric, C^-1", "L"),
        Symbol(Lt, "its transpose"),
        Symbol(W, "right side of the dual equation"),
        Symbol(S, "a partial sum of K^j W K'^j, the series that solves the equation"),
        Symbol(k_0, "target", "k0"),
        Symbol(alpha, "a factor on L"),
        Symbol(B, "|w|_2 of a vector w, not 0"),
        Symbol(A, "|N' w|_2 for N = L K L^-1"),
        Symbol(form, "(L'w)' W (L'w)"),
        Symbol(x, "|u|_2 of a vector u, not 0"),
        Symbol(n, "|N u|_2, where it is not 0"),
        Symbol(t, "|N' N u|_2"),
        Symbol(c, "|L'w|_2"),
        Symbol(lam, "largest eigenvalue of X"),
        Symbol(e_norm, "|v|_2"),
        Symbol(p_norm, "|v|_P = |L v|_2"),
        Symbol(l_norm, "|L|_2"),
        Symbol(back, "|L^-1|_2"),
        Symbol(cond, "condition number of L", "cond"),
        Symbol(r, "radius of a ball in the P norm", "radius"),
    ),
    hypotheses=(
        Hypothesis("H1", "W >= 0 as a quadratic form (used in F1: Q >= 0 for every w)"),
        Hypothesis("H2", "for (b): W = I (used in F4)"),
        Hypothesis("H3", "for (c): L is scaled so that |L^-1|_2 = 1", back - 1, "zero"),
        Hypothesis("H4", "cond(L) = |L|_2 |L^-1|_2", cond - l_norm * back, "zero"),
        Hypothesis("H5", "for the inner ball: |v|_2 <= r / cond(L)", r / cond - e_norm),
        Hypothesis("H6", "for the outer ball: |v|_P <= r", r - p_norm),
    ),
    facts=(
        Fact(
            "F1",
            "w' (step 'congruence') w, with |y|^2 = y'y: |N'w|^2 = |w|^2 - (L'w)'W(L'w)",
            B**2 - A**2 - form,
            "definition of the Euclidean norm",
            relation="zero",
            axiom=True,
        ),
        Fact(
            "F2",
            "|N u|^2 = u'(N'N u) <= |u| |N'N u|",
            x * t - n**2,
            "Cauchy-Schwarz inequality, e.g. Steele (2004), 1.1",
        ),
        Fact(
            "F3",
            "step 'transpose', read at w = N u: |N'N u| <= |N u|",
            n - t,
            "step 'transpose' of this theorem",
            axiom=True,
        ),
        Fact(
            "F4",
            "F1 for W = I: the form is |L'w|^2",
            B**2 - A**2 - c**2,
            "definition of the Euclidean norm",
            relation="zero",
            axiom=True,
        ),
        Fact(
            "F5",
            "|w|^2 = |C'L'w|^2 = (L'w)' C C' (L'w) <= lambda |L'w|^2, with equality when L'w is the eigenvector of "
            "lambda",
            lam * c**2 - B**2,
            "Rayleigh quotient; e.g. Horn and Johnson (2013), Theorem 4.2.2",
        ),
        Fact(
            "F6",
            "|v| = |L^-1 L v| <= |L^-1| |L v|",
            back * p_norm - e_norm,
            "definition of the operator norm",
            axiom=True,
        ),
        Fact("F7", "|L v| <= |L| |v|", l_norm * e_norm - p_norm, "definition of the operator norm", axiom=True),
    ),
    steps=(
        Identity(
            "(a) Multiply the equation by L from the left and L' from the right; X = C C' becomes the identity, and "
            "the other term N N' with N = L K L^-1.",
            L * (L**-1 * Lt**-1 - K * L**-1 * Lt**-1 * Kt) * Lt,
            1 - (L * K * L**-1) * (Lt**-1 * Kt * Lt),
            label="congruence",
        ),
        Nonnegative(
            "So |N'w| <= |w| for every w.",
            B - A,
            (form + ref("F1")) / (A + B),
            label="transpose",
        ),
        Nonnegative(
            "N itself does not stretch either: |N u|^2 <= |u| |N'N u| <= |u| |N u|; divide by |N u|.",
            x - n,
            (ref("F2") + x * ref("F3")) / n,
            label="not stretched",
        ),
        Nonnegative(
            "J is k0 times K: |L J L^-1 u| <= k0 |u|.", k_0 * x - k_0 * n, k_0 * ref("not stretched"), label="rate"
        ),
        Nonnegative(
            "(b) For W = I: |N'w|^2 <= (1 - 1/lambda) |w|^2, and N has the same norm as its transpose.",
            (1 - 1 / lam) * B**2 - A**2,
            ref("F5") / lam + ref("F4"),
        ),
        Identity(
            "Equality where |w|^2 = lambda |L'w|^2.",
            lam * c**2 - c**2,
            (1 - 1 / lam) * (lam * c**2),
        ),
        Identity(
            "Existence: the partial sums S of K^j W K'^j start at 0 and follow S <- W + K S K'. Their defect in the "
            "equation is multiplied by K from the left and K' from the right each time, so it is a power of both.",
            W + K * (W + K * S * Kt) * Kt - (W + K * S * Kt),
            K * (W + K * S * Kt - S) * Kt,
            label="defect",
        ),
        Identity("(c) A factor on L cancels.", (alpha * L) * K * (alpha * L) ** -1, L * K * L**-1),
        Nonnegative(
            "The P norm is at least the Euclidean one.", p_norm - e_norm, ref("F6") - p_norm * ref("H3"), label="outer"
        ),
        Nonnegative(
            "And at most cond(L) times it.",
            cond * e_norm - p_norm,
            ref("F7") + e_norm * (ref("H4") + l_norm * ref("H3")),
            label="inner",
        ),
        Nonnegative("The P ball lies in the Euclidean ball of the same radius.", r - e_norm, ref("H6") + ref("outer")),
        Nonnegative(
            "The Euclidean ball of radius r / cond(L) lies in the P ball.", r - p_norm, cond * ref("H5") + ref("inner")
        ),
    ),
    source=Source("", derived=True, place="the equation is that of Stein (1952) for the transpose"),
    claims=(
        Claim(
            "|L J L^-1| <= k0 for W of rank one",
            (*SPACE, Reals("g", -1, 1, 2)),
            contracts,
            sharp=True,
            near=({"J": [0.5, 1.0, -1.0, 0.5], "room": 0.2, "g": [1.0, 0.5]},),
        ),
        Claim("|L J L^-1| <= k0 sqrt(1 - 1/lambda_max(X)) for W = I", SPACE, exact, sharp=True),
        Claim("|L J L^-1| >= k0 sqrt(1 - 1/lambda_max(X)) for W = I", SPACE, exact_below, sharp=True),
        Claim("|v|_2 <= |v|_P", NORMS, outer, sharp=True, near=({"L": DIAGONAL, "v": [0.0, 0.0, 1.0]},)),
        Claim("|v|_P <= cond(L) |v|_2", NORMS, inner, sharp=True, near=({"L": DIAGONAL, "v": [1.0, 0.0, 0.0]},)),
    ),
    not_checked=(
        NotChecked(
            "the defect tends to 0 and the series converges if rho(J) < k0; for W = I its sum is positive definite",
            "Stein (1952); Horn and Johnson (2013), Theorem 5.6.12",
        ),
        NotChecked(
            "a matrix and its transpose have the same spectral norm (for the equality in (b))",
            "Horn and Johnson (2013), 5.6",
        ),
    ),
    code=("fpcheck/certify/metric.py:Metric",),
    uses=("B7",),
    remarks=(
        "Only W >= 0 is asked for: X may be a computed matrix, and L the stored root. What counts is a verified bound "
        "on |L J L^-1|_2; k0 must not be reported as the rate.",
        "W = 0 is possible only if J/k0 is similar to an orthogonal matrix; then the rate is k0 in every direction.",
        "A relative radius must be quoted for the inner ball, r / cond(L), not for r.",
    ),
)
