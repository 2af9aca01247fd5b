"""G5: when the one-step (Jacobian-free) gradient still points downhill."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
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
from proofs.numbers import dot, matrix, norm, scaled, symmetric_eigenvalues

J = sp.Symbol("J", commutative=False)
B = sp.Symbol("B", commutative=False)
Bt = sp.Symbol("B^T", commutative=False)
MM = sp.Symbol("M", commutative=False)
vt = sp.Symbol("v^T", commutative=False)
ut = sp.Symbol("u^T", commutative=False)
uu = sp.Symbol("u", commutative=False)
m = sp.Symbol("m", positive=True)
K = sp.Symbol("K", positive=True)
lam = sp.Symbol("lambda", positive=True)
a = sp.Symbol("a", real=True)
c = sp.Symbol("c", positive=True)
y = sp.Symbol("y", positive=True)
x = sp.Symbol("x", positive=True)
w = sp.Symbol("w", positive=True)
p = sp.Symbol("p", real=True)
h = sp.Symbol("h", real=True)
square = sp.Symbol("q", nonnegative=True)
L = sp.Symbol("L", positive=True)
t = sp.Symbol("t", positive=True)
S = sp.Symbol("S", positive=True)

cosine = 2 * sp.sqrt(m * K) / (m + K)
totals = Totals((lam, a), {a**2: c**2, lam * a**2: x, lam**2 * a**2: y**2})

extremal = sp.Matrix([sp.sqrt(K), sp.sqrt(m)])
image = sp.diag(m, K) * extremal
# L/(|M u| |u|) (M u) u', with |M u| |u| = sqrt(mK) (m + K).
worst = L / (sp.sqrt(m * K) * (m + K)) * image * extremal.T


def _case(ctx, point):
    """<g_JFB, g>, |u|, |M u| and M's extreme eigenvalues."""
    jacobian, b, v = scaled(ctx, matrix(ctx, point["J"], 2, 2), point["L"]), matrix(ctx, point["B"], 2, 2), point["v"]
    gram = b * b.T
    if jacobian is None or norm(ctx, v) == 0:
        return None
    low, high = symmetric_eigenvalues(ctx, gram)
    if low < ctx.mpf(10) ** -3:
        return None
    u = ctx.lu_solve(ctx.eye(2) - jacobian.T, ctx.matrix(v))
    pulled = gram * u
    return dot(ctx, v, list(pulled)), norm(ctx, list(u)), norm(ctx, list(pulled)), low, high


def lower_bound(ctx, point):
    """2 sqrt(k)/(1 + k) |u| |M u| <= <g_JFB, g> + L |u| |M u|."""
    found = _case(ctx, point)
    if found is None:
        return None
    inner, u, pulled, low, high = found
    return 2 * ctx.sqrt(low * high) / (low + high) * u * pulled, inner + point["L"] * u * pulled


def where_it_fails(ctx, point):
    """Where <g_JFB, g> <= 0, M's condition number is at least ((1 + sqrt(1 - L^2)) / L)^2."""
    found = _case(ctx, point)
    if found is None or found[0] > 0:
        return None
    return ((1 + ctx.sqrt(1 - point["L"] ** 2)) / point["L"]) ** 2, found[4] / found[3]


SPACE = (Reals("J", -1, 1, 4), Reals("L", 0.01, 0.99), Reals("B", -1, 1, 4), Reals("v", -1, 1, 2))
# M = diag(1, 4)/4, u = (2, 1), M u = (2, 4)/4, J' = L/(|u| |M u|) (M u) u'; v = u - J'u with L = 0.81 (critical: 0.8).
NEAR = {"J": [0.5, 1.0, 0.25, 0.5], "L": 0.81, "B": [0.5, 0, 0, 1.0], "v": [0.595, -0.31]}

THEOREM = Theorem(
    id="G5",
    title="When the one-step gradient descends",
    statement=(
        r"Let $\|J\|_2 \le L < 1$, $v \ne 0$, $u = (I - J^T)^{-1} v$, $g = B^T u$ the gradient and $g_1 = B^T v$ the "
        r"one-step (Jacobian-free) gradient. If $M = B B^T$ has its eigenvalues in $[m, K]$, $m > 0$, and $\kappa = "
        r"\frac{K}{m}$, then $\langle g_1, g \rangle \ge \left(\frac{2 \sqrt\kappa}{1 + \kappa} - L\right) |u| |M u|$. "
        r"So $-g_1$ is a descent direction if $\kappa < \left(\frac{1 + \sqrt{1 - L^2}}{L}\right)^2$, in particular if "
        r"$\kappa \le \frac{1}{L^2}$ or (Fung et al.) $\kappa < \frac{1}{L}$. No larger $\kappa$ can be allowed: at "
        r"equality $\langle g_1, g \rangle = 0$ occurs."
    ),
    plain=(
        "Backpropagating through one step points downhill as long as the parameters reach all directions of the state "
        "about equally well: the condition number of B B' may be up to about 4/L^2 for a fast loop, but hardly above 1 "
        "for L near 1. The condition is exact, and weaker than the published 1/L."
    ),
    symbols=(
        Symbol(J, "Jacobian in the state", "J"),
        Symbol(B, "Jacobian in the parameters"),
        Symbol(Bt, "its transpose"),
        Symbol(MM, "B B^T"),
        Symbol(vt, "the loss's derivative in the state, as a row"),
        Symbol(ut, "the adjoint, as a row"),
        Symbol(uu, "the adjoint, as a column"),
        Symbol(m, "lower bound on M's eigenvalues"),
        Symbol(K, "upper bound on M's eigenvalues"),
        Symbol(lam, "one eigenvalue of M"),
        Symbol(a, "u's coordinate along its eigenvector"),
        Symbol(c, "|u|, not 0"),
        Symbol(y, "|M u|"),
        Symbol(x, "u'Mu"),
        Symbol(w, "|J'u|; if it is 0, so is p"),
        Symbol(p, "(J'u)'Mu"),
        Symbol(h, "<g_1, g>"),
        Symbol(square, "squared length of |M u| J'u - |J'u| M u"),
        Symbol(L, "bound on |J|", "rate"),
        Symbol(t, "square root of the condition number K/m"),
        Symbol(S, "sqrt(1 - L^2)"),
    ),
    hypotheses=(
        Hypothesis("H1", "the adjoint system", ut * (1 - J) - vt, "zero"),
        Hypothesis("H2", "M = B B^T", MM - B * Bt, "zero"),
        Hypothesis("H3", "M's eigenvalues are at least m", lam - m),
        Hypothesis("H4", "and at most K", K - lam),
        Hypothesis("H5", "|J'u| <= L |u|", L * c - w),
        Hypothesis("H6", "for descent: L < 2 sqrt(mK) / (m + K)", cosine - L, "positive"),
        Hypothesis("H7", "S = sqrt(1 - L^2), positive as L < 1", S**2 - (1 - L**2), "zero"),
        Hypothesis("H8", "for the condition in kappa: t < (1 + S) / L", (1 + S) / L - t, "positive"),
        Hypothesis("H9", "t >= 1, as K >= m", t - 1),
        Hypothesis("H10", "L < 1", 1 - L, "positive"),
    ),
    facts=(
        Fact("F1", "step 'inner product' in names: h = x - p", h - x + p, "names", relation="zero", axiom=True),
        Fact(
            "F2",
            "the squared length, multiplied out",
            square - 2 * y * w * (y * w - p),
            "definition of the Euclidean norm",
            relation="zero",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "The inner product of the two gradients in terms of the adjoint u alone: v^T B B^T u = u'Mu - (J'u)'Mu.",
            vt * B * Bt * uu,
            ut * MM * uu - ut * J * MM * uu,
            modulo={"H1": (sp.Integer(-1), B * Bt * uu), "H2": (-ut * (1 - J), uu)},
            label="inner product",
        ),
        Nonnegative(
            "Along each eigenvector of M, (lambda - m)(K - lambda) is not negative.",
            (lam - m) * (K - lam) * a**2,
            ref("H3") * ref("H4") * a**2,
            label="per eigenvector",
        ),
        Summed(
            "Summed over an orthonormal basis of eigenvectors: (m + K) u'Mu >= |Mu|^2 + mK |u|^2.",
            "per eigenvector",
            totals,
            (m + K) * x - y**2 - m * K * c**2,
            label="Kantorovich",
        ),
        Nonnegative(
            "The right side is at least 2 sqrt(mK) |Mu| |u|: M turns no vector by more than the angle of this cosine.",
            x - cosine * y * c,
            (ref("Kantorovich") + (y - sp.sqrt(m * K) * c) ** 2) / (m + K),
            label="angle",
        ),
        Nonnegative(
            "(J'u)'Mu <= |J'u| |Mu| (Cauchy and Schwarz, from a square).",
            y * w - p,
            (square - ref("F2")) / (2 * y * w),
            label="product",
        ),
        Nonnegative(
            "Together, with |J'u| <= L |u|.",
            h - (cosine - L) * y * c,
            ref("F1") + ref("angle") + ref("product") + y * ref("H5"),
            label="bound",
        ),
        Nonnegative("Descent.", h, ref("bound") + ref("H6") * y * c, strict=True),
        Identity("In kappa = K/m = t^2 the cosine is 2t/(1 + t^2).", cosine.subs(K, t**2 * m), 2 * t / (1 + t**2)),
        Nonnegative(
            "t is above the smaller root L/(1 + S) of L t^2 - 2 t + L, because t >= 1 > L.",
            t - L / (1 + S),
            ref("H9") + (ref("H10") + S) / (1 + S),
            strict=True,
            label="above",
        ),
        Nonnegative(
            "So below the larger root (1 + S)/L the cosine exceeds L: descent.",
            2 * t / (1 + t**2) - L,
            L * ref("H8") * ref("above") / (1 + t**2) - ref("H7") / (1 + t**2) * t / (1 + S),
            strict=True,
        ),
        Nonnegative(
            "kappa <= 1/L^2, that is t <= 1/L, is enough: 1/L is below (1 + S)/L.",
            (1 + S) / L - 1 / L,
            S / L,
            strict=True,
        ),
        Nonnegative("And kappa < 1/L is more than that.", 1 / L**2 - 1 / L, ref("H10") / L**2, strict=True),
        Identity(
            "The bound is attained, for every m, K and L: M = diag(m, K), u = (sqrt(K), sqrt(m)), and J' = L (Mu) u' / "
            "(|Mu| |u|), for which <g_1, g> is v'Mu with v = u - J'u. At L = cosine it is 0.",
            ((extremal - worst * extremal).T * image)[0],
            (cosine - L) * sp.sqrt(m * K) * (m + K),
        ),
        Identity(
            "There |u|^2 |Mu|^2 is (sqrt(mK) (m + K))^2,",
            extremal.dot(extremal) * image.dot(image),
            m * K * (m + K) ** 2,
        ),
        Identity(
            "and J J' is L^2 times the projection on u, so |J| = L.",
            worst.T * worst,
            L**2 / (m + K) * extremal * extremal.T,
        ),
    ),
    source=Source("Fung et al.", 2022, "JFB, Theorem 3.1, with kappa < 1/L; the exact condition derived here"),
    claims=(
        Claim("the lower bound on <g_1, g>", SPACE, lower_bound, sharp=True, near=(NEAR,)),
        Claim("kappa where descent fails", SPACE, where_it_fails, sharp=True, near=(NEAR,)),
    ),
    not_checked=(
        NotChecked("M has an orthonormal basis of eigenvectors", "spectral theorem, Horn and Johnson (2013), 2.5.6"),
    ),
    code=(
        "fpcheck/adjoint/adjoints.py:OneStep",
        "fpcheck/adjoint/error.py:gradient_error",
    ),
    uses=("G1", "G4"),
    remarks=(
        "B must reach every direction of the state: with fewer parameters than state entries M is singular and "
        "nothing is promised.",
        "The same for k + 1 terms of the series (G4): g_k = B'(I - (J')^(k+1)) u, so L^(k+1) takes the place of L.",
        "Descent for one sample says nothing of the batch's sum; there B differs from sample to sample.",
    ),
)
