"""B1: how far an iterate is from the fixed point, before the loop is run: from its first step."""

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
from proofs.numbers import matrix, norm, spectral_norm

L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
k = sp.Symbol("k", nonnegative=True, integer=True)
m = sp.Symbol("m", nonnegative=True, integer=True)
d = sp.Symbol("d", nonnegative=True)
s_k = sp.Symbol("s_k", nonnegative=True)
s_next = sp.Symbol("s_next", nonnegative=True)
s_later = sp.Symbol("s_later", nonnegative=True)
c_m = sp.Symbol("c_m", nonnegative=True)
c_next = sp.Symbol("c_next", nonnegative=True)
e_0 = sp.Symbol("e_0", nonnegative=True)
e_k = sp.Symbol("e_k", nonnegative=True)
e_next = sp.Symbol("e_next", nonnegative=True)


def _run(ctx, point):
    """A linear loop in the plane, z* = 0: rate, distances of z_0 and z_k to it, first step, k."""
    a, start, steps = matrix(ctx, point["A"], 2, 2), point["z"], int(point["k"])
    rate = spectral_norm(ctx, a)
    if rate >= 1:
        return None
    states = [ctx.matrix(start)]
    for _ in range(max(steps, 1)):
        states.append(a * states[-1])
    first = norm(ctx, list(states[1] - states[0]))
    return rate, norm(ctx, list(states[0])), norm(ctx, list(states[steps])), first, steps


def from_first_step(ctx, point):
    run = _run(ctx, point)
    if run is None:
        return None
    rate, _, error, first, steps = run
    return error, rate**steps / (1 - rate) * first


def from_first_error(ctx, point):
    run = _run(ctx, point)
    if run is None:
        return None
    rate, start, error, _, steps = run
    return error, rate**steps * start


def nonlinear(ctx, point):
    """z <- L sin(z): fixed point 0."""
    rate, z, steps = point["L"], point["z"], int(point["k"])
    first = abs(rate * ctx.sin(z) - z)
    for _ in range(steps):
        z = rate * ctx.sin(z)
    return abs(z), rate**steps / (1 - rate) * first


SPACE = (Reals("A", -1, 1, 4), Reals("z", -3, 3, 2), Reals("k", 0, 6.5))
NEAR = ({"A": [0.5, 0.0, 0.0, 0.5], "z": [1.0, 1.0], "k": 3.2},)

THEOREM = Theorem(
    id="B1",
    title="A-priori error of an iterate",
    statement=(
        r"Let $f$ map a closed subset of a complete normed space into itself and be $L$-Lipschitz on it with $L < 1$. "
        r"From any start $z_0$ in it the iterates $z_{k+1} = f(z_k)$ converge to the only fixed point $z^*$, and for "
        r"every $k \ge 0$: $\|z_k - z^*\| \le L^k \|z_0 - z^*\|$ and "
        r"$\|z_k - z^*\| \le \frac{L^k}{1 - L} \|z_1 - z_0\|$. Both are attained for every $k$."
    ),
    plain=(
        "A contraction loses the factor L of its error per step. The first step and L alone say how many steps are "
        "enough, before any of them is run."
    ),
    symbols=(
        Symbol(L, "Lipschitz constant of f in the stated norm", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(k, "number of steps"),
        Symbol(m, "further steps"),
        Symbol(d, "length |z_1 - z_0| of the first step"),
        Symbol(s_k, "length of step k, |z_(k+1) - z_k|"),
        Symbol(s_next, "length of the step after it"),
        Symbol(s_later, "length of step k + m"),
        Symbol(c_m, "|z_(k+m) - z_k|"),
        Symbol(c_next, "|z_(k+m+1) - z_k|"),
        Symbol(e_0, "|z_0 - z*|"),
        Symbol(e_k, "|z_k - z*|"),
        Symbol(e_next, "|z_(k+1) - z*|"),
    ),
    hypotheses=(
        Hypothesis("H1", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H2", "f is L-Lipschitz between two successive iterates", L * s_k - s_next),
        Hypothesis("H3", "f is L-Lipschitz between an iterate and z*, which f does not move", L * e_k - e_next),
        Hypothesis("H4", "the set is closed, the space complete, and f maps the set into itself"),
    ),
    facts=(
        Fact(
            "F1",
            "|z_(k+m+1) - z_k| <= |z_(k+m) - z_k| + s_(k+m)",
            c_m + s_later - c_next,
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "F2", "step 'steps', read at k + m", L ** (k + m) * d - s_later, "step 'steps' of this theorem", axiom=True
        ),
        Fact("F3", "B2 at z_0, whose residual is d", d / gap - e_0, "B2", axiom=True),
    ),
    steps=(
        Induction(
            "Steps shrink geometrically: each is at most L times the one before.",
            k,
            s_k,
            s_next,
            bound=L**k * d,
            start=d,
            base=sp.Integer(0),
            step=L * ref("IH") + ref("H2"),
            label="steps",
            every_k=("F2",),
        ),
        Induction(
            "Adding up m steps from z_k on: a geometric sum, which the induction over m collects.",
            m,
            c_m,
            c_next,
            bound=L**k * (1 - L**m) / gap * d,
            start=sp.Integer(0),
            base=sp.Integer(0),
            step=ref("IH") + ref("F1") + ref("F2") - L ** (k + m) * d / gap * ref("H1"),
            label="sum",
            every_k=("F2",),
        ),
        Nonnegative(
            "So all later iterates stay within L^k d / (1 - L) of z_k, which tends to 0 with k: a Cauchy sequence.",
            L**k * d / gap - c_m,
            ref("sum") + L ** (k + m) * d / gap,
            label="Cauchy",
        ),
        Induction(
            "The distance to the fixed point shrinks by L per step.",
            k,
            e_k,
            e_next,
            bound=L**k * e_0,
            start=e_0,
            base=sp.Integer(0),
            step=L * ref("IH") + ref("H3"),
            label="decay",
            every_k=("F2",),
        ),
        Nonnegative(
            "Bound the unknown first distance by the first step.",
            L**k * d / gap - e_k,
            ref("decay") + L**k * ref("F3"),
            label="a priori",
        ),
        Identity(
            "Attained: for f(z) = L z and z_0 = 1 the error is L^k and the first step 1 - L.",
            L**k / gap * (1 - L),
            L**k,
            modulo={"H1": -(L**k) / gap},
        ),
    ),
    source=Source("Banach", 1922, "Theorem 6, in its a-priori form"),
    claims=(
        Claim(
            "error <= L^k / (1 - L) first step, linear loops in the plane",
            SPACE,
            from_first_step,
            sharp=True,
            near=NEAR,
        ),
        Claim("error <= L^k first error, linear loops in the plane", SPACE, from_first_error, sharp=True, near=NEAR),
        Claim(
            "error <= L^k / (1 - L) first step on L sin(z)",
            (Reals("L", 0.01, 0.99), Reals("z", -3, 3), Reals("k", 0, 6.5)),
            nonlinear,
            near=({"L": 0.9, "z": 0.01, "k": 1.5},),
        ),
    ),
    not_checked=(
        NotChecked(
            "a Cauchy sequence in a closed subset of a complete space converges in it; its limit is fixed because f is "
            "continuous",
            "Banach (1922), Theorem 6; any text on metric spaces",
        ),
    ),
    code=(
        "fpcheck/blocks/contractive.py:ContractiveBlock",
        "fpcheck/certify/globally.py:GlobalCertificate",
        "fpcheck/certify/progress.py:steps_to_tolerance",
    ),
    uses=("B2",),
    remarks=(
        "L^k d <= (1 - L) tau is enough for an error of tau. The a-posteriori form (B2) is never worse: the last step "
        "is at most L^k d, and usually much shorter.",
    ),
)
