"""G4: the gradient from a truncated Neumann series, undamped or damped (phantom); one term is the one-step gradient."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Induction,
    Nonnegative,
    NotChecked,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import matrix, norm, scaled, spectral_norm

J = sp.Symbol("J^T", commutative=False)
u = sp.Symbol("u", commutative=False)
v = sp.Symbol("v", commutative=False)
P = sp.Symbol("P", commutative=False)
w = sp.Symbol("w", commutative=False)
k = sp.Symbol("k", integer=True, nonnegative=True)
s = sp.Symbol("s", positive=True)
L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
V = sp.Symbol("V", nonnegative=True)
U = sp.Symbol("U", nonnegative=True)
beta = sp.Symbol("beta", nonnegative=True)
E = sp.Symbol("E", nonnegative=True)
d = sp.Symbol("d_k", nonnegative=True)
d_next = sp.Symbol("d_n", nonnegative=True)
d_0 = sp.Symbol("d_0", nonnegative=True)
p = sp.Symbol("p_k", nonnegative=True)
p_next = sp.Symbol("p_n", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
x = sp.Symbol("x_k", nonnegative=True)
x_next = sp.Symbol("x_n", nonnegative=True)
y = sp.Symbol("y_k", nonnegative=True)
y_next = sp.Symbol("y_n", nonnegative=True)

damped = 1 - s + s * L
M = 1 - s + s * J
power = J ** (k + 1)

TERMS = 4


def _truth(ctx, point):
    jacobian = scaled(ctx, matrix(ctx, point["J"], 2, 2), point["L"])
    if jacobian is None:
        return None
    v = ctx.matrix(point["v"])
    return jacobian, ctx.lu_solve(ctx.eye(2) - jacobian.T, v), v, matrix(ctx, point["B"], 2, 2)


def _neumann(ctx, point, terms):
    """The error of the first ``terms`` terms, and |B| L^terms |v| / (1 - L)."""
    found = _truth(ctx, point)
    if found is None:
        return None
    jacobian, exact, v, b = found
    term, total = v, v
    for _ in range(terms - 1):
        term = jacobian.T * term
        total = total + term
    size = spectral_norm(ctx, b) * norm(ctx, list(v))
    return norm(ctx, list(b.T * (exact - total))), size * point["L"] ** terms / (1 - point["L"])


def one_step(ctx, point):
    return _neumann(ctx, point, 1)


def several(ctx, point):
    return _neumann(ctx, point, TERMS)


def phantom(ctx, point):
    """TERMS terms of s ((1 - s) I + s J)^j."""
    found = _truth(ctx, point)
    if found is None:
        return None
    jacobian, exact, v, b = found
    s = point["s"]
    damped = (1 - s) * ctx.eye(2) + s * jacobian.T
    term, total = s * v, s * v
    for _ in range(TERMS - 1):
        term = damped * term
        total = total + term
    size = spectral_norm(ctx, b) * norm(ctx, list(v))
    rate = 1 - s + s * point["L"]
    return norm(ctx, list(b.T * (exact - total))), size * rate**TERMS / (1 - point["L"])


SPACE = (Reals("J", -1, 1, 4), Reals("L", 0.01, 0.98), Reals("v", -1, 1, 2), Reals("B", -1, 1, 4))
ALIGNED = {"J": [1, 0, 0, 1], "L": 0.5, "v": [1, 0], "B": [1, 0, 0, 1], "s": 0.5}

THEOREM = Theorem(
    id="G4",
    title="Truncated Neumann series, one-step and phantom gradients",
    statement=(
        r"Let $\|J\| \le L < 1$ in the Euclidean norm and $(I - J^T) u = v$, so that the gradient is $B^T u$. (a) The "
        r"first $k + 1$ terms $u_k = \sum_{j=0}^{k} (J^T)^j v$ of its series miss exactly $u - u_k = (J^T)^{k+1} u$: "
        r"the gradient error is at most $\frac{\|B\| L^{k+1} \|v\|}{1-L}$; $k = 0$, $u_0 = v$, is the one-step "
        r"(Jacobian-free) gradient. (b) For $0 < s \le 1$ the $k$ terms $u_k = s \sum_{j<k} ((1-s) I + s J^T)^j v$ "
        r"miss exactly $((1-s) I + s J^T)^k u$, and the error is at most $\frac{\|B\| L_s^k \|v\|}{1-L}$ with "
        r"$L_s = 1 - s + s L$. Both bounds are sharp."
    ),
    plain=(
        "Backpropagating through a few steps at the fixed point replaces the implicit gradient by the beginning of its "
        "series. The rest shrinks by L per term, by 1 - s + s L with damping; where the slow directions matter, one "
        "step keeps only the share 1 - L of the gradient."
    ),
    symbols=(
        Symbol(J, "transpose of the Jacobian in the state"),
        Symbol(u, "exact adjoint"),
        Symbol(v, "the loss's derivative in the state"),
        Symbol(P, "((1-s) I + s J^T)^k u in (b)"),
        Symbol(w, "the sum so far, u_k"),
        Symbol(k, "number of the sum"),
        Symbol(s, "damping step", "step"),
        Symbol(L, "bound on |J|", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(V, "|v|"),
        Symbol(U, "|u|"),
        Symbol(beta, "|B|"),
        Symbol(E, "gradient error"),
        Symbol(d, "|u - u_k| in (a)"),
        Symbol(d_next, "|u - u_(k+1)| in (a)"),
        Symbol(d_0, "|u - u_0| = |J^T u| in (a)"),
        Symbol(p, "|u - u_k| in (b)"),
        Symbol(p_next, "|u - u_(k+1)| in (b)"),
        Symbol(m, "|J^T (u - u_k)| in (b)"),
        Symbol(x, "|u - u_k - (J^T)^(k+1) u| in (a)"),
        Symbol(x_next, "the same for k + 1"),
        Symbol(y, "|u - u_k - ((1-s) I + s J^T)^k u| in (b)"),
        Symbol(y_next, "the same for k + 1"),
    ),
    hypotheses=(
        Hypothesis("H1", "the adjoint equation", u - J * u - v, "zero"),
        Hypothesis("H2", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis(
            "H3", "|J| <= L, applied to u - u_k in (a), where step 'next' gives the next difference", L * d - d_next
        ),
        Hypothesis("H4", "the same for k = 0: u - u_0 = J^T u", L * U - d_0),
        Hypothesis("H5", "the same in (b)", L * p - m),
        Hypothesis("H6", "the same for the vector of x_k, by step 'exact next'", L * x - x_next),
        Hypothesis("H7", "for (b): s <= 1", 1 - s),
    ),
    facts=(
        Fact("F1", "|u| <= |v| / (1 - L)", V / gap - U, "G1", axiom=True),
        Fact(
            "F2",
            "step 'next damped' in norms: |(1-s) x + s J^T x| <= (1-s) |x| + s |J^T x|",
            (1 - s) * p + s * m - p_next,
            "norm axioms",
            axiom=True,
        ),
        Fact(
            "F3", "gradient error in (a): |B^T (u - u_k)| <= |B| |u - u_k|", beta * d - E, "operator norm", axiom=True
        ),
        Fact(
            "F4",
            "step 'exact next damped' in norms, with |(1-s) I + s J^T| <= 1 - s + s L",
            damped * y - y_next,
            "norm axioms",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "(a) The sums follow u_(k+1) = v + J^T u_k, the equation that u solves: the difference is multiplied by "
            "J^T.",
            u - (v + J * w),
            J * (u - w),
            modulo={"H1": sp.Integer(1)},
            label="next",
        ),
        Identity("It begins with u - v = J^T u.", u - v, J * u, modulo={"H1": sp.Integer(1)}, label="begin"),
        Identity(
            "Hence the vector u - u_k - (J^T)^(k+1) u is multiplied by J^T as well,",
            u - (v + J * w) - J * power * u,
            J * (u - w - power * u),
            modulo={"H1": sp.Integer(1)},
            label="exact next",
        ),
        Induction(
            "and it is 0 for k = 0 (step 'begin'): it stays 0, which is the exact form.",
            k,
            x,
            x_next,
            bound=sp.Integer(0),
            start=sp.Integer(0),
            base=sp.Integer(0),
            step=ref("H6") + L * ref("IH"),
            label="exact",
        ),
        Induction(
            "The lengths: L^(k+1) |v| / (1 - L).",
            k,
            d,
            d_next,
            bound=L ** (k + 1) * V / gap,
            start=d_0,
            base=ref("H4") + L * ref("F1"),
            step=ref("H3") + L * ref("IH"),
            label="length",
        ),
        Nonnegative("The gradient error.", beta * L ** (k + 1) * V / gap - E, ref("F3") + beta * ref("length")),
        Identity(
            "(b) Damped sums follow u_(k+1) = s v + ((1-s) I + s J^T) u_k, and u solves that equation too, because "
            "I - ((1-s) I + s J^T) = s (I - J^T).",
            u - (s * v + M * w),
            M * (u - w),
            modulo={"H1": s},
            label="next damped",
        ),
        Identity(
            "With P = ((1-s) I + s J^T)^k u, the vector u - u_k - P is multiplied by (1-s) I + s J^T, as P is.",
            u - (s * v + M * w) - M * P,
            M * (u - w - P),
            modulo={"H1": s},
            label="exact next damped",
        ),
        Induction(
            "It is 0 for k = 0, where u_0 = 0, and stays so.",
            k,
            y,
            y_next,
            bound=sp.Integer(0),
            start=sp.Integer(0),
            base=sp.Integer(0),
            step=ref("F4") + (ref("H7") + s * L) * ref("IH"),
        ),
        Induction(
            "The lengths: (1 - s + s L)^k |v| / (1 - L).",
            k,
            p,
            p_next,
            bound=damped**k * V / gap,
            start=U,
            base=ref("F1"),
            step=ref("F2") + s * ref("H5") + (ref("H7") + s * L) * ref("IH"),
            label="length damped",
        ),
        Nonnegative(
            "The gradient error, with |B^T (u - u_k)| <= |B| |u - u_k|.",
            beta * damped**k * V / gap - beta * p,
            beta * ref("length damped"),
        ),
        Identity(
            "Attained for numbers J = L: u = v/(1 - L) and the sum is v (1 - L^(k+1))/(1 - L).",
            V / (1 - L) - V * (1 - L ** (k + 1)) / (1 - L),
            L ** (k + 1) * V / (1 - L),
        ),
        Identity(
            "The closed form of that sum follows u_(k+1) = v + L u_k.",
            V + L * V * (1 - L ** (k + 1)) / (1 - L),
            V * (1 - L ** (k + 2)) / (1 - L),
        ),
        Identity(
            "So does the damped one, v (1 - L_s^k)/(1 - L), which attains (b).",
            s * V + damped * V * (1 - damped**k) / (1 - L),
            V * (1 - damped ** (k + 1)) / (1 - L),
        ),
    ),
    source=Source(
        "",
        derived=True,
        place="one-step gradient: Fung et al. (2022), Bolte, Pauwels and Vaiter (2023); phantom: Geng et al. (2021)",
    ),
    claims=(
        Claim("one-step gradient", SPACE, one_step, sharp=True, near=(ALIGNED,)),
        Claim("four terms", SPACE, several, sharp=True, near=(ALIGNED,)),
        Claim(
            "phantom gradient, four terms",
            (*SPACE, Reals("s", 0.01, 1)),
            phantom,
            sharp=True,
            near=(ALIGNED,),
        ),
    ),
    not_checked=(
        NotChecked("a matrix and its transpose have the same Euclidean norm", "Horn and Johnson (2013), 5.6.6"),
    ),
    code=(
        "fpcheck/adjoint/adjoints.py:Phantom",
        "fpcheck/adjoint/error.py:gradient_error",
        "fpcheck/adjoint/linear.py:Neumann",
    ),
    uses=("G1",),
    remarks=(
        "For s = 1, k terms of (b) are the k terms of (a), and both give L^k.",
        "The relative error can be 1 even where L is moderate: if B sees only fast directions, |G| is much smaller "
        "than |B| / (1 - L), and the bound is relative to the latter.",
        "This is about the series at the fixed point; G8 has the steps that a solver really takes.",
    ),
)
