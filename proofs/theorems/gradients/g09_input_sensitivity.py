"""G9: how far the fixed point moves with the input or the parameters."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, scaled, spectral_norm

L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
lam = sp.Symbol("lambda", nonnegative=True)
dx = sp.Symbol("d_x", nonnegative=True)
dz = sp.Symbol("d_z", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
c = sp.Symbol("c", nonnegative=True)
r_1 = sp.Symbol("r_1", nonnegative=True)
r_2 = sp.Symbol("r_2", nonnegative=True)
e_1 = sp.Symbol("e_1", nonnegative=True)
e_2 = sp.Symbol("e_2", nonnegative=True)
d_hat = sp.Symbol("d_s", nonnegative=True)
S = sp.Symbol("S", nonnegative=True)
A = sp.Symbol("A", nonnegative=True)
y = sp.Symbol("y", nonnegative=True)


def _affine(ctx, point):
    """f(z, x) = J z + A x in two dimensions, and two inputs."""
    jacobian = scaled(ctx, matrix(ctx, point["J"], 2, 2), point["L"])
    if jacobian is None:
        return None
    a, change = matrix(ctx, point["A"], 2, 2), ctx.matrix(point["x"]) - ctx.matrix(point["y"])
    return jacobian, a, change


def apart(ctx, point):
    found = _affine(ctx, point)
    if found is None:
        return None
    jacobian, a, change = found
    moved = ctx.lu_solve(ctx.eye(2) - jacobian, a * change)
    return norm(ctx, list(moved)), spectral_norm(ctx, a) * norm(ctx, list(change)) / (1 - point["L"])


def derivative(ctx, point):
    found = _affine(ctx, point)
    if found is None:
        return None
    jacobian, a, _ = found
    slope = ctx.inverse(ctx.eye(2) - jacobian) * a
    return spectral_norm(ctx, slope), spectral_norm(ctx, a) / (1 - point["L"])


def nonlinear(ctx, point):
    """f(z, x) = L tanh(z) + lam sin(x): a pair of fixed points z, w by choice, and the inputs that make them so."""
    rate, lam, share = point["L"], point["lam"], point["share"]
    size = lam / (1 + rate)
    z, w = size * point["z"], size * point["z"] - share * size * (1 + point["z"])
    sines = [(v - rate * ctx.tanh(v)) / lam for v in (z, w)]
    if max(map(abs, sines)) > 1:
        return None
    x, y = (ctx.asin(v) for v in sines)
    return abs(z - w), lam * abs(x - y) / (1 - rate)


def computed_states(ctx, point):
    """Two unfinished solves of L z + lam x: their distance from residuals and the inputs' distance."""
    rate, lam, z, w, x, y = (point[name] for name in ("L", "lam", "z", "w", "x", "y"))
    residuals = abs(rate * z + lam * x - z) + abs(rate * w + lam * y - w)
    return abs(z - w), (residuals + lam * abs(x - y)) / (1 - abs(rate))


SPACE = (
    Reals("J", -1, 1, 4),
    Reals("L", 0.001, 0.98),
    Reals("A", -1, 1, 4),
    Reals("x", -1, 1, 2),
    Reals("y", -1, 1, 2),
)
ALIGNED = {"J": [1, 0, 0, 1], "L": 0.5, "A": [1, 0, 0, 1], "x": [1, 0], "y": [0, 0]}

THEOREM = Theorem(
    id="G9",
    title="Sensitivity of the fixed point to the input",
    statement=(
        r"Let $f(\cdot, x)$ be $L$-Lipschitz with $L < 1$ for every input $x$, and $f(z, \cdot)$ $\lambda$-Lipschitz "
        r"at the fixed points $z = z^*(x')$. (a) $\|z^*(x) - z^*(x')\| \le \frac{\lambda}{1-L} \|x - x'\|$. (b) Where "
        r"$f$ is differentiable, $\|\frac{d z^*}{dx}\| \le \frac{\|\partial_x f\|}{1-L}$. (c) Any two states with "
        r"residuals $r$ and $r'$ for the inputs $x$ and $x'$ satisfy $\|z - z'\| \le \frac{r + r' + \lambda \|x - "
        r"x'\|}{1-L}$. All are sharp; the same holds with parameters in place of the input."
    ),
    plain=(
        "An input that changes a little moves the settled state by at most lambda/(1 - L) times as much: a loop that "
        "contracts has no jumps between inputs, but a slow one amplifies. A training step moves every fixed point by "
        "at most |B| / (1 - L) times its own length."
    ),
    symbols=(
        Symbol(L, "Lipschitz constant of f in the state, for every input", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(lam, "Lipschitz constant of f in the input, at z*(x')"),
        Symbol(dx, "|x - x'|"),
        Symbol(dz, "|z*(x) - z*(x')|"),
        Symbol(m, "|f(z*(x), x) - f(z*(x'), x)|"),
        Symbol(c, "|f(z*(x'), x) - f(z*(x'), x')|"),
        Symbol(r_1, "residual of a state for x", "residual"),
        Symbol(r_2, "residual of another one for x'"),
        Symbol(e_1, "distance of the first state to z*(x)"),
        Symbol(e_2, "distance of the other to z*(x')"),
        Symbol(d_hat, "distance of the two states"),
        Symbol(S, "|dz*/dx y| of an input direction y"),
        Symbol(A, "|d_x f|"),
        Symbol(y, "|y|"),
    ),
    hypotheses=(
        Hypothesis("H1", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H2", "f is L-Lipschitz in the state, here for the input x", L * dz - m),
        Hypothesis("H3", "f is lambda-Lipschitz in the input, at z*(x')", lam * dx - c),
        Hypothesis("H4", "for (b): f is continuously differentiable near the fixed point"),
    ),
    facts=(
        Fact(
            "F1",
            "z*(x) = f(z*(x), x) and z*(x') = f(z*(x'), x'); f(z*(x'), x) is put between them",
            m + c - dz,
            "triangle inequality",
            axiom=True,
        ),
        Fact("F2", "|z - z*(x)| <= r / (1 - L)", r_1 / gap - e_1, "B2", axiom=True),
        Fact("F3", "|z' - z*(x')| <= r' / (1 - L)", r_2 / gap - e_2, "B2", axiom=True),
        Fact(
            "F4",
            "from one state over the two fixed points to the other",
            e_1 + dz + e_2 - d_hat,
            "triangle inequality",
            axiom=True,
        ),
        Fact("F5", "|(I - J)^-1 d_x f y| <= |d_x f| |y| / (1 - L)", A * y / gap - S, "G1", axiom=True),
    ),
    steps=(
        Nonnegative(
            "(a) Change the state with the input x, then the input at the state z*(x').",
            lam * dx - (1 - L) * dz,
            ref("F1") + ref("H2") + ref("H3"),
            label="uniform",
        ),
        Nonnegative("Divide by 1 - L.", lam * dx / gap - dz, (ref("uniform") - dz * ref("H1")) / gap, label="a"),
        Nonnegative("(b) G1 with the input as the parameter.", A * y / gap - S, ref("F5")),
        Nonnegative(
            "(c) Each state is near its own fixed point, and these are near to each other.",
            (r_1 + r_2 + lam * dx) / gap - d_hat,
            ref("F4") + ref("F2") + ref("F3") + ref("a"),
        ),
        Identity(
            "Attained: f(z, x) = L z + lambda x has z* = lambda x / (1 - L).",
            L * (lam * dx / (1 - L)) + lam * dx,
            lam * dx / (1 - L),
        ),
        Identity(
            "In (c): a state r/(1 - L) above the fixed point has the residual r.",
            (lam * dx / (1 - L) + r_1 / (1 - L)) - (L * (lam * dx / (1 - L) + r_1 / (1 - L)) + lam * dx),
            r_1,
        ),
    ),
    source=Source("", place="uniform contraction principle, e.g. Granas and Dugundji (2003), 1.1; (c) derived"),
    claims=(
        Claim("(a) fixed points of J z + A x", SPACE, apart, sharp=True, near=(ALIGNED,)),
        Claim(
            "(a) fixed points of L tanh(z) + lambda sin(x)",
            (
                Reals("L", 0.01, 0.98),
                Reals("lam", 0.01, 10, log=True),
                Reals("z", -1, 1),
                Reals("share", 1e-3, 1, log=True),
            ),
            nonlinear,
            near=({"L": 0.5, "lam": 0.02, "z": 0.001, "share": 0.001},),
        ),
        Claim("(b) the derivative", SPACE, derivative, sharp=True, near=(ALIGNED,)),
        Claim(
            "(c) two unfinished solves of L z + lambda x",
            (
                Reals("L", -0.99, 0.99),
                Reals("lam", 0.01, 10, log=True),
                *(Reals(name, -2, 2) for name in ("z", "w", "x", "y")),
            ),
            computed_states,
            sharp=True,
        ),
    ),
    not_checked=(NotChecked("the fixed points exist for both inputs", "Banach (1922), Theorem 6"),),
    code=("fpcheck/certify/inputs.py:nearby",),
    uses=("B2", "G1"),
    remarks=(
        "Constants on a ball are enough if it holds the path of (a): L for the input x between the two fixed points.",
        "Where no loop contracts, a small change of the input can end at another fixed point, far away.",
    ),
)
