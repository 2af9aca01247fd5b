"""G10: the implicit gradient at a repelling fixed point exists, and no unrolled gradient tends to it."""

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
from proofs.numbers import eigenvalues, matrix, norm, spectral_norm

J = sp.Symbol("J", commutative=False)
B = sp.Symbol("B", commutative=False)
G = sp.Symbol("G", commutative=False)
D = sp.Symbol("D", commutative=False)
y = sp.Symbol("y^T", commutative=False)
lam = sp.Symbol("lambda")
s = sp.Symbol("s", positive=True)
mu = sp.Symbol("mu", nonnegative=True)
k = sp.Symbol("k", integer=True, nonnegative=True)
p = sp.Symbol("p_k", nonnegative=True)
p_next = sp.Symbol("p_n", nonnegative=True)
p_0 = sp.Symbol("p_0", nonnegative=True)
q = sp.Symbol("q", nonnegative=True)
apart = sp.Symbol("a", positive=True)
Y = sp.Symbol("Y", positive=True)
E = sp.Symbol("E", nonnegative=True)
N = sp.Symbol("N", commutative=False)
n = sp.Symbol("n", nonnegative=True)
theta = sp.Symbol("theta", real=True)

STEPS = 4


def distance_from_the_gradient(ctx, point):
    """|m|^k |y'B| / (|1 - lambda| |y|) <= |G - D_k|, by a real left eigenvector y of J = X diag(lam) X^-1."""
    basis = matrix(ctx, point["X"], 2, 2)
    if abs(basis[0, 0] * basis[1, 1] - basis[0, 1] * basis[1, 0]) < ctx.mpf(1) / 20:
        return None
    back = ctx.inverse(basis)
    lam, s = point["lam"], point["s"]
    if min(abs(1 - v) for v in lam) < ctx.mpf(1) / 20:
        return None
    jacobian, b = basis * ctx.diag(lam) * back, ctx.matrix(point["B"])
    exact = ctx.lu_solve(ctx.eye(2) - jacobian, b)
    total = 0 * b
    for _ in range(STEPS):
        total = (1 - s) * total + s * (jacobian * total + b)
    row = [back[0, 0], back[0, 1]]
    share = abs(row[0] * b[0] + row[1] * b[1]) / abs(1 - lam[0])
    return abs(1 - s + s * lam[0]) ** STEPS * share / norm(ctx, row), norm(ctx, list(exact - total))


def singular_only_at_one(ctx, point):
    """The least singular value of I - J is at most the least |1 - lambda|: an eigenvalue at 1 makes it 0."""
    a = ctx.eye(2) - matrix(ctx, point["J"], 2, 2)
    size = abs(a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0])
    if size < ctx.mpf(10) ** -3:
        return None
    return 1 / min(abs(v) for v in eigenvalues(ctx, a)), spectral_norm(ctx, ctx.inverse(a))


SPACE = (Reals("X", -1, 1, 4), Reals("lam", -3, 3, 2), Reals("B", -1, 1, 2), Reals("s", 0.01, 1))
ALIGNED = {"X": [1, 0, 0, 1], "lam": [2, 0], "B": [1, 0], "s": 1.0}

THEOREM = Theorem(
    id="G10",
    title="Implicit gradient at a repelling fixed point",
    statement=(
        r"(a) $I - J$ is invertible exactly if $1$ is no eigenvalue of $J$: the implicit gradient $G = (I - J)^{-1} "
        r"B$ exists at repelling fixed points too, and $\|(I - J)^{-1}\| \ge \frac{1}{|1 - \lambda|}$ for every "
        r"eigenvalue $\lambda$. (b) The derivative $D_k$ of $k$ damped steps at the fixed point differs from it: for "
        r"an eigenvalue $\lambda \ne 1$ with left eigenvector $y$, $|G - D_k|_2 \ge |1 - s + s \lambda|^k \frac{|y^T "
        r"B|}{|1 - \lambda| |y|}$ for one parameter, with equality for numbers. So if $|1 - s + s\lambda| \ge 1$ and "
        r"$y^T B \ne 0$, $D_k$ does not tend to $G$; for $f(z, \theta) = 2 z + \theta$, $G = -1$ while $D_k = 2^k - "
        r"1$."
    ),
    plain=(
        "A linear solver returns an implicit gradient also where the loop runs away from its fixed point. It is the "
        "derivative of a state that the loop does not reach; even its sign can be the opposite of what unrolling "
        "gives: attraction must be checked before such a gradient is used."
    ),
    symbols=(
        Symbol(J, "Jacobian in the state", "J"),
        Symbol(B, "derivative of f in one parameter"),
        Symbol(G, "implicit gradient"),
        Symbol(N, "inverse of I - J"),
        Symbol(n, "|N|"),
        Symbol(D, "derivative of the state after some steps"),
        Symbol(y, "left eigenvector of J, a row"),
        Symbol(lam, "its eigenvalue, complex"),
        Symbol(s, "damping step", "step"),
        Symbol(mu, "|1 - s + s lambda|"),
        Symbol(k, "number of steps"),
        Symbol(p, "|y^T (G - D_k)|"),
        Symbol(p_next, "|y^T (G - D_(k+1))|"),
        Symbol(p_0, "|y^T G|"),
        Symbol(q, "|y^T B|"),
        Symbol(apart, "|1 - lambda|"),
        Symbol(Y, "|y|"),
        Symbol(E, "|G - D_k|"),
        Symbol(theta, "parameter of the example"),
    ),
    hypotheses=(
        Hypothesis("H1", "(I - J) G = B", (1 - J) * G - B, "zero"),
        Hypothesis("H2", "y^T J = lambda y^T", y * J - lam * y, "zero"),
        Hypothesis("H3", "lambda is not 1: |1 - lambda| = a > 0"),
        Hypothesis("H4", "(I - J) N = I", (1 - J) * N - 1, "zero"),
        Hypothesis("H5", "for the last part of (b): mu >= 1", mu - 1),
    ),
    facts=(
        Fact(
            "F4", "step 'inverse' in norms: |y| <= |1 - lambda| |y| |N|", apart * Y * n - Y, "norm axioms", axiom=True
        ),
        Fact(
            "F1",
            "step 'next' in moduli: |y^T (G - D_(k+1))| = mu |y^T (G - D_k)|",
            p_next - mu * p,
            "modulus of a product",
            relation="zero",
            axiom=True,
        ),
        Fact(
            "F2",
            "step 'begin' in moduli: |1 - lambda| |y^T G| = |y^T B|",
            apart * p_0 - q,
            "modulus of a product",
            relation="zero",
            axiom=True,
        ),
        Fact(
            "F3",
            "|y^T (G - D_k)| <= |y| |G - D_k|",
            Y * E - p,
            "Cauchy and Schwarz, e.g. Horn and Johnson (2013), 5.1.4",
        ),
    ),
    steps=(
        Identity(
            "(a) An eigenvector of J for lambda is one of I - J for 1 - lambda: I - J is singular exactly if some "
            "lambda is 1, and its inverse stretches the eigenvector by 1/|1 - lambda|.",
            y * (1 - J),
            (1 - lam) * y,
            modulo={"H2": sp.Integer(-1)},
            label="shifted",
        ),
        Identity(
            "The same for the inverse.",
            y,
            (1 - lam) * y * N,
            modulo={"H4": -y, "shifted": (sp.Integer(1), N)},
            label="inverse",
        ),
        Nonnegative("Its norm.", n - 1 / apart, ref("F4") / (apart * Y)),
        Identity(
            "(b) Along y: the implicit gradient's share,",
            (1 - lam) * y * G,
            y * B,
            modulo={"H1": y, "shifted": (sp.Integer(-1), G)},
            label="begin",
        ),
        Identity(
            "and the difference, multiplied by 1 - s + s lambda in each step.",
            y * (G - ((1 - s) * D + s * (J * D + B))),
            (1 - s + s * lam) * y * (G - D),
            modulo={"H1": s * y, "H2": (s, G - D)},
            label="next",
        ),
        Induction(
            "So the share of the difference is mu^k |y^T G| for every k (from below, which is what matters).",
            k,
            -p,
            -p_next,
            bound=-(mu**k) * p_0,
            start=-p_0,
            base=sp.Integer(0),
            step=ref("F1") + mu * ref("IH"),
            label="share",
        ),
        Nonnegative(
            "The difference is at least that long.",
            E - mu**k * q / (apart * Y),
            (ref("F3") + ref("share")) / Y + mu**k * ref("F2") / (apart * Y),
        ),
        Induction(
            "If mu >= 1, the share never gets below its first value",
            k,
            -p,
            -p_next,
            bound=-p_0,
            start=-p_0,
            base=sp.Integer(0),
            step=ref("F1") + mu * ref("IH") + ref("H5") * p_0,
            label="kept",
        ),
        Nonnegative(
            "and D_k stays away from G, at least as far as one solve with y^T B on the right.",
            E - q / (apart * Y),
            (ref("F3") + ref("kept")) / Y + ref("F2") / (apart * Y),
        ),
        Identity(
            "The example f = 2 z + theta: D <- 2 D + 1 from 0 gives 2^k - 1.",
            2 * (2**k - 1) + 1,
            2 ** (k + 1) - 1,
        ),
        Identity("Its fixed point -theta has the derivative -1.", 2 * (-theta) + theta, -theta),
        Identity("The distance 2^k is the bound: mu = 2, |1 - lambda| = 1.", 2**k - 1 - (-1), 2**k),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("(a) |(I - J)^-1| >= 1/|1 - lambda|", (Reals("J", -3, 3, 4),), singular_only_at_one, sharp=True),
        Claim("(b) distance of the unrolled gradient", SPACE, distance_from_the_gradient, sharp=True, near=(ALIGNED,)),
    ),
    not_checked=(
        NotChecked(
            "a square matrix is invertible exactly if 0 is no eigenvalue; left and right eigenvalues are the same",
            "Horn and Johnson (2013), 1.2",
        ),
    ),
    uses=("G1", "G8"),
    remarks=(
        "Where all real parts are below 1, a small enough damping step makes D_k tend to G (D5); where one is not, no "
        "step does (D6).",
    ),
)
