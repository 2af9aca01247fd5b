"""G1: the derivative of a fixed point by the implicit function theorem, and how large it can be."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, scaled, spectral_norm

J = sp.Symbol("J", commutative=False)
B = sp.Symbol("B", commutative=False)
N = sp.Symbol("N", commutative=False)
Z = sp.Symbol("Z", commutative=False)
vt = sp.Symbol("v^T", commutative=False)
ut = sp.Symbol("u^T", commutative=False)
L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
c = sp.Symbol("c", nonnegative=True)
j = sp.Symbol("j", nonnegative=True)
a = sp.Symbol("a", nonnegative=True)
q = sp.Symbol("q", nonnegative=True)
beta = sp.Symbol("beta", nonnegative=True)
p = sp.Symbol("p", nonnegative=True)


def _gradient(ctx, point):
    """|G| for G = (I - J)^-1 B, with |B| and |J|."""
    jacobian, rate = scaled(ctx, matrix(ctx, point["J"], 2, 2), point["L"]), point["L"]
    if jacobian is None:
        return None
    b = matrix(ctx, point["B"], 2, 2)
    inverse = ctx.inverse(ctx.eye(2) - jacobian)
    return spectral_norm(ctx, inverse * b), spectral_norm(ctx, b), rate, spectral_norm(ctx, inverse), jacobian


def upper(ctx, point):
    found = _gradient(ctx, point)
    return None if found is None else (found[0], found[1] / (1 - found[2]))


def inverse_from_below(ctx, point):
    found = _gradient(ctx, point)
    return None if found is None else (1 / (1 + found[2]), found[3])


def condition(ctx, point):
    found = _gradient(ctx, point)
    if found is None:
        return None
    return spectral_norm(ctx, ctx.eye(2) - found[4]) * found[3], (1 + found[2]) / (1 - found[2])


def branch(ctx, point):
    """The slope of the fixed point of L sin(z) + t from fixed points alone: z is free, t = z - L sin(z)."""
    rate, first, width = point["L"], point["z"], point["width"]
    second = first + width
    moved = width - rate * (ctx.sin(second) - ctx.sin(first))
    return width, abs(moved) / (1 - rate)


SPACE = (Reals("J", -1, 1, 4), Reals("L", 0.001, 0.99), Reals("B", -1, 1, 4))
ALIGNED = {"J": [1, 0, 0, 1], "L": 0.5, "B": [1, 0, 0, 1]}
OPPOSED = {"J": [-1, 0, 0, -1], "L": 0.5, "B": [1, 0, 0, 1]}
MIXED = {"J": [1, 0, 0, -1], "L": 0.5, "B": [1, 0, 0, 1]}

THEOREM = Theorem(
    id="G1",
    title="Implicit gradient and its size",
    statement=(
        r"Let $f(z, \theta)$ be continuously differentiable near $(z^*, \theta^*)$ with $z^* = f(z^*, \theta^*)$, and "
        r"write $J = \partial_z f$, $B = \partial_\theta f$ there. (a) If $I - J$ is invertible, the fixed point "
        r"continues to a differentiable $z^*(\theta)$ with $\frac{d z^*}{d\theta} = G = (I - J)^{-1} B$, and a loss "
        r"with $\partial_z \ell = v^T$ has the gradient $v^T G = u^T B$, where $u^T (I - J) = v^T$. (b) If "
        r"$\|J\| \le L < 1$ in an operator norm, $I - J$ is invertible, $\frac{1}{1+L} \le \|(I-J)^{-1}\| \le "
        r"\frac{1}{1-L}$, $\|G\| \le \frac{\|B\|}{1-L}$, and $I - J$ has a condition number of at most "
        r"$\frac{1+L}{1-L}$. All four are sharp."
    ),
    plain=(
        "The gradient of the settled state solves one linear system; no step of the solve enters. It is at most 1/(1 - "
        "L) times as large as one step's, and errors of the right side are amplified by no more than that: a slow "
        "loop has a large gradient that is hard to compute."
    ),
    symbols=(
        Symbol(J, "Jacobian of f in the state, at the fixed point", "J"),
        Symbol(B, "Jacobian of f in the parameters, at the fixed point"),
        Symbol(N, "inverse of I - J"),
        Symbol(Z, "derivative of the fixed point"),
        Symbol(vt, "the loss's derivative in the state, a row"),
        Symbol(ut, "solution of the adjoint system, a row"),
        Symbol(L, "bound on |J|", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(c, "|x| of any vector x"),
        Symbol(j, "|J x|"),
        Symbol(a, "|(I - J) x|"),
        Symbol(q, "|B y| of a vector y; then (I - J) x = B y for x = G y"),
        Symbol(beta, "|B|"),
        Symbol(p, "|y|"),
    ),
    hypotheses=(
        Hypothesis("H1", "f is continuously differentiable near the fixed point"),
        Hypothesis("H2", "I - J is invertible, with inverse N: N (I - J) = I", N * (1 - J) - 1, "zero"),
        Hypothesis("H3", "u^T solves the adjoint system", ut * (1 - J) - vt, "zero"),
        Hypothesis("H4", "for (b): |J x| <= L |x|", L * c - j),
        Hypothesis("H5", "for (b): L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "both sides of z*(theta) = f(z*(theta), theta) have the same derivative: Z = J Z + B",
            Z - J * Z - B,
            "chain rule, Dieudonne (1960), 8.2.1",
            relation="zero",
        ),
        Fact("F2", "|x| <= |x - J x| + |J x|", a + j - c, "triangle inequality", axiom=True),
        Fact("F3", "|x - J x| <= |x| + |J x|", c + j - a, "triangle inequality", axiom=True),
        Fact("F4", "|B y| <= |B| |y|", beta * p - q, "definition of the operator norm", axiom=True),
        Fact(
            "F5",
            "x = G y means (I - J) x = B y (step 'derivative')",
            a - q,
            "definition of x",
            relation="zero",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "(a) Multiply the differentiated equation (I - J) Z = B by N from the left.",
            Z,
            N * B,
            modulo={"H2": (sp.Integer(-1), Z), "F1": N},
            label="derivative",
        ),
        Identity(
            "The loss's gradient needs no more than one row: solve for u^T first, then multiply by B.",
            vt * Z,
            ut * B,
            modulo={"H3": (sp.Integer(-1), Z), "F1": ut},
            label="adjoint",
        ),
        Nonnegative(
            "(b) I - J keeps at least 1 - L of every length; it sends only 0 to 0, so (being square) it is invertible.",
            a - (1 - L) * c,
            ref("F2") + ref("H4"),
            label="injective",
        ),
        Nonnegative(
            "Read for x = N w: |N w| <= |w| / (1 - L), the upper bound on the inverse.",
            a / gap - c,
            (ref("injective") - c * ref("H5")) / gap,
            label="upper",
        ),
        Nonnegative(
            "I - J stretches by at most 1 + L, so |N w| >= |w| / (1 + L), the lower bound; the two bounds' quotient is "
            "that on the condition number.",
            c - a / (1 + L),
            (ref("F3") + ref("H4")) / (1 + L),
            label="lower",
        ),
        Nonnegative(
            "The gradient: |G y| <= |B| |y| / (1 - L).",
            beta * p / gap - c,
            ref("upper") + (ref("F4") - ref("F5")) / gap,
        ),
        Identity("Attained: the numbers J = L and B = 1 have G = 1/(1 - L).", (1 - L) * (1 / (1 - L)), sp.Integer(1)),
        Identity("J = -L attains the lower side.", (1 + L) * (1 / (1 + L)), sp.Integer(1)),
        Identity(
            "J = diag(L, -L) attains both, hence the condition number.",
            (sp.eye(2) - sp.diag(L, -L)) * sp.diag(1 / (1 - L), 1 / (1 + L)),
            sp.eye(2),
        ),
    ),
    source=Source("Dini", 1878, "implicit function theorem; for fixed points of layers Bai, Kolter and Koltun (2019)"),
    claims=(
        Claim("|G| <= |B| / (1 - L)", SPACE, upper, sharp=True, near=(ALIGNED,)),
        Claim("1 / (1 + L) <= |(I - J)^-1|", SPACE, inverse_from_below, sharp=True, near=(OPPOSED,)),
        Claim("condition number of I - J <= (1 + L) / (1 - L)", SPACE, condition, sharp=True, near=(MIXED,)),
        Claim(
            "fixed points of L sin(z) + t move by at most |dt| / (1 - L)",
            (Reals("L", 0, 0.99), Reals("z", -4, 4), Reals("width", 1e-3, 3, log=True)),
            branch,
            sharp=True,
            near=({"L": 0.9, "z": 0.0, "width": 0.001},),
        ),
    ),
    not_checked=(
        NotChecked("the fixed point continues to a differentiable branch", "Dieudonne (1960), 10.2.1"),
        NotChecked(
            "a square matrix that sends only 0 to 0 is invertible, and its inverse also is one from the right",
            "Horn and Johnson (2013), 0.5",
        ),
    ),
    code=(
        "fpcheck/adjoint/adjoints.py:Implicit",
        "fpcheck/adjoint/fixed_point.py:fixed_point",
        "fpcheck/adjoint/implicit.py:implicit",
        "fpcheck/certify/conditioning.py:conditioning",
    ),
    remarks=(
        "(b) holds in whatever norm J is small, with B's and G's norms taken in it; in the Euclidean norm |J| often "
        "exceeds 1 at points where the loop settles, and then (b) says nothing while (a) still holds.",
        "There is no lower bound |B|/(1 - L): where B is small in the slow directions, G is small as well. What "
        "always holds is |G| >= |B|/(1 + L), by the lower side.",
        "A loss that also depends on the parameters directly adds that derivative to v^T G.",
    ),
)
