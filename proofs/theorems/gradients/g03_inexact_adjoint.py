"""G3: how wrong a gradient is whose adjoint system was solved to a tolerance."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, scaled, spectral_norm

J = sp.Symbol("J", commutative=False)
N = sp.Symbol("N", commutative=False)
B = sp.Symbol("B", commutative=False)
u = sp.Symbol("u^T", commutative=False)
w = sp.Symbol("w^T", commutative=False)
v = sp.Symbol("v^T", commutative=False)
res = sp.Symbol("rho^T", commutative=False)
L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
beta = sp.Symbol("beta", nonnegative=True)
rho = sp.Symbol("rho", nonnegative=True)
d = sp.Symbol("d", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
E = sp.Symbol("E", nonnegative=True)
tau = sp.Symbol("tau", nonnegative=True)


def _solves(ctx, point):
    """A computed adjoint w, its residual v - (I - J')w, the exact one u, and B."""
    jacobian = scaled(ctx, matrix(ctx, point["J"], 2, 2), point["L"])
    if jacobian is None:
        return None
    system = ctx.eye(2) - jacobian.T
    v, w = ctx.matrix(point["v"]), ctx.matrix(point["w"])
    return ctx.lu_solve(system, v), w, v - system * w, matrix(ctx, point["B"], 2, 2)


def gradient(ctx, point):
    found = _solves(ctx, point)
    if found is None:
        return None
    exact, computed, residual, b = found
    return norm(ctx, list(b.T * (computed - exact))), spectral_norm(ctx, b) * norm(ctx, list(residual)) / (
        1 - point["L"]
    )


def adjoint_from_below(ctx, point):
    found = _solves(ctx, point)
    if found is None:
        return None
    exact, computed, residual, _ = found
    return norm(ctx, list(residual)) / (1 + point["L"]), norm(ctx, list(computed - exact))


SPACE = (
    Reals("J", -1, 1, 4),
    Reals("L", 0.001, 0.98),
    Reals("v", -1, 1, 2),
    Reals("w", -2, 2, 2),
    Reals("B", -1, 1, 4),
)
ALIGNED = {"J": [1, 0, 0, 1], "L": 0.5, "v": [1, 0], "w": [1, 0], "B": [1, 0, 0, 1]}
OPPOSED = {"J": [-1, 0, 0, -1], "L": 0.5, "v": [1, 0], "w": [1, 0], "B": [1, 0, 0, 1]}

THEOREM = Theorem(
    id="G3",
    title="Gradient error of an inexact adjoint solve",
    statement=(
        r"Let $\|J\| \le L < 1$ in the Euclidean norm and $(I - J^T) u = v$, so that the gradient is $B^T u$. Any $w$ "
        r"with adjoint residual $\rho = \|v - (I - J^T) w\|$ satisfies $\frac{\rho}{1+L} \le \|w - u\| \le "
        r"\frac{\rho}{1-L}$ and $\|B^T w - B^T u\| \le \frac{\|B\| \rho}{1-L}$. So $\rho \le \frac{\tau (1-L)}{\|B\|}$ "
        r"promises a gradient error of at most $\tau$. All three are sharp."
    ),
    plain=(
        "The backward solve may stop as soon as its residual is small: the gradient's error is the residual times |B| "
        "/ (1 - L), however w was found. A tolerance without the factor 1 - L promises nothing for slow loops."
    ),
    symbols=(
        Symbol(J, "Jacobian of f in the state", "J"),
        Symbol(N, "inverse of I - J"),
        Symbol(B, "Jacobian of f in the parameters"),
        Symbol(u, "exact adjoint, as a row: u^T (I - J) = v^T"),
        Symbol(w, "computed adjoint, as a row"),
        Symbol(v, "the loss's derivative in the state, as a row"),
        Symbol(res, "the adjoint residual v^T - w^T (I - J), as a row"),
        Symbol(L, "bound on |J|", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(beta, "|B|"),
        Symbol(rho, "length of the adjoint residual"),
        Symbol(d, "|w - u|"),
        Symbol(m, "|J^T (w - u)|"),
        Symbol(E, "|B^T w - B^T u|, the gradient's error"),
        Symbol(tau, "tolerance for the gradient"),
    ),
    hypotheses=(
        Hypothesis("H1", "(I - J) N = I", (1 - J) * N - 1, "zero"),
        Hypothesis("H2", "the exact adjoint solves its system", u * (1 - J) - v, "zero"),
        Hypothesis("H3", "the residual's definition", res - v + w * (1 - J), "zero"),
        Hypothesis("H4", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H5", "|J| <= L; the transpose has the same Euclidean norm", L * d - m),
        Hypothesis("H6", "for the tolerance: |B| rho <= tau (1 - L)", tau * gap - beta * rho),
    ),
    facts=(
        Fact(
            "F1",
            "|w - u| <= |(w - u) - J^T (w - u)| + |J^T (w - u)|, and the first is rho by step 'error'",
            rho + m - d,
            "triangle inequality",
            axiom=True,
        ),
        Fact("F2", "rho <= |w - u| + |J^T (w - u)|", d + m - rho, "triangle inequality", axiom=True),
        Fact("F3", "|B^T (w - u)| <= |B| |w - u|", beta * d - E, "definition of the operator norm", axiom=True),
    ),
    steps=(
        Identity(
            "The error solves the same system with the residual as its right side: (u - w)^T (I - J) = rho^T.",
            (u - w) * (1 - J),
            res,
            modulo={"H2": sp.Integer(1), "H3": sp.Integer(-1)},
            label="error",
        ),
        Identity(
            "So the gradient's error is the implicit gradient's matrix N B applied to the residual.",
            (u - w) * B,
            res * N * B,
            modulo={"error": (sp.Integer(1), N * B), "H1": (-(u - w), B)},
        ),
        Nonnegative(
            "Its length, as in B2.",
            rho / gap - d,
            (ref("F1") + ref("H5") - d * ref("H4")) / gap,
            label="upper",
        ),
        Nonnegative(
            "And from below: a residual of rho cannot come from a smaller error than rho / (1 + L).",
            d - rho / (1 + L),
            (ref("F2") + ref("H5")) / (1 + L),
        ),
        Nonnegative("The gradient's error.", beta * rho / gap - E, ref("F3") + beta * ref("upper"), label="gradient"),
        Nonnegative("The tolerance.", tau - E, ref("gradient") + ref("H6") / gap),
        Identity(
            "Attained for numbers J = L, B = beta: u = v/(1 - L), w = (v - rho)/(1 - L).",
            beta * (rho + tau) / (1 - L) - beta * tau / (1 - L),
            beta * rho / (1 - L),
        ),
    ),
    source=Source("", derived=True, place="the residual bound of linear systems"),
    claims=(
        Claim("|B'w - B'u| <= |B| rho / (1 - L)", SPACE, gradient, sharp=True, near=(ALIGNED,)),
        Claim("rho / (1 + L) <= |w - u|", SPACE, adjoint_from_below, sharp=True, near=(OPPOSED,)),
    ),
    not_checked=(
        NotChecked("a matrix and its transpose have the same Euclidean norm", "Horn and Johnson (2013), 5.6.6"),
    ),
    code=("fpcheck/adjoint/error.py:gradient_error",),
    uses=("B2", "G1"),
    remarks=(
        "In another norm, bound J^T in the dual norm, which equals |J|: the maximum norm's dual is the sum of "
        "magnitudes.",
        "An adjoint loop w <- v + J^T w that stops on its own step is covered: that step is the residual.",
        "Where J's norm exceeds 1 but 1 is no eigenvalue, 1/(1 - L) may be replaced by |(I - J)^-1|.",
    ),
)
