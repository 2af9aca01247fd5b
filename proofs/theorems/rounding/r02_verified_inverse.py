"""R2: an approximate inverse as a proof of invertibility, and norms with the exact inverse."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import frobenius_norm, matrix, spectral_norm

L, X, R, V, Li = (sp.Symbol(name, commutative=False) for name in ("L", "X", "R", "V", "L_inv"))
r_0 = sp.Symbol("r_0", nonnegative=True)
gap = sp.Symbol("g", positive=True)
x = sp.Symbol("x", nonnegative=True)
kept = sp.Symbol("k", nonnegative=True)
image = sp.Symbol("w", nonnegative=True)
AX = sp.Symbol("M", nonnegative=True)
out = sp.Symbol("y", nonnegative=True)
u = sp.Symbol("u", nonnegative=True)
one = sp.Symbol("v", positive=True)
gamma = sp.Symbol("gamma", nonnegative=True)
dist = sp.Symbol("d", nonnegative=True)
float_r = sp.Symbol("F", nonnegative=True)
off = sp.Symbol("o", nonnegative=True)
exact = sp.Symbol("E", nonnegative=True)
L_F = sp.Symbol("L_F", nonnegative=True)
X_F = sp.Symbol("X_F", nonnegative=True)


def transferred(ctx, point):
    """|A L^-1| against |A X| / (1 - |I - L X|), with X the inverse of L made worse."""
    root, a = matrix(ctx, point["L"], 2, 2), matrix(ctx, point["A"], 2, 2)
    if abs(root[0, 0] * root[1, 1] - root[0, 1] * root[1, 0]) < ctx.mpf(1) / 10:
        return None
    inverse = root ** (-1)
    near = inverse * (ctx.eye(2) + matrix(ctx, point["P"], 2, 2))
    defect = spectral_norm(ctx, ctx.eye(2) - root * near)
    if defect >= 1:
        return None
    return spectral_norm(ctx, a * inverse), spectral_norm(ctx, a * near) / (1 - defect)


def transferred_below(ctx, point):
    root, a = matrix(ctx, point["L"], 2, 2), matrix(ctx, point["A"], 2, 2)
    if abs(root[0, 0] * root[1, 1] - root[0, 1] * root[1, 0]) < ctx.mpf(1) / 10:
        return None
    inverse = root ** (-1)
    near = inverse * (ctx.eye(2) + matrix(ctx, point["P"], 2, 2))
    defect = spectral_norm(ctx, ctx.eye(2) - root * near)
    return spectral_norm(ctx, a * near) / (1 + defect), spectral_norm(ctx, a * inverse)


def residual(ctx, point):
    """|R|_F from a computed R: two products and one sum per entry, then the difference from I, rounded alike in all."""
    root, near, roundoff = matrix(ctx, point["L"], 2, 2), matrix(ctx, point["X"], 2, 2), point["u"]
    computed, rounding = ctx.matrix(2, 2), [1 + roundoff * d for d in point["d"]]
    for i in range(2):
        for j in range(2):
            products = [root[i, k] * near[k, j] * rounding[k] for k in range(2)]
            total = (products[0] + products[1]) * rounding[2]
            computed[i, j] = ((1 if i == j else 0) - total) * rounding[3]
    gamma_2 = 2 * roundoff / (1 - 2 * roundoff)
    bound = frobenius_norm(ctx, computed) / (1 - roundoff) + gamma_2 * frobenius_norm(ctx, root) * frobenius_norm(
        ctx, near
    )
    return frobenius_norm(ctx, ctx.eye(2) - root * near), bound


SPACE = (Reals("L", -2, 2, 4), Reals("P", -0.6, 0.6, 4), Reals("A", -1, 1, 4))
SCALED = {"L": [1.0, 0.0, 0.0, 1.0], "A": [0.5, 0.0, 0.0, 0.5]}

THEOREM = Theorem(
    id="R2",
    title="Verified inverse from a residual",
    statement=(
        r"Let $L$ be square, $X$ any matrix of its size, $R = I - L X$ with $\|R\| \le r_0 < 1$ in an operator "
        r"norm. (a) $L$ is invertible, $L^{-1} = X (I - R)^{-1}$. (b) $\frac{\|A X\|}{1 + r_0} \le \|A L^{-1}\| "
        r"\le \frac{\|A X\|}{1 - r_0}$ for every $A$. (c) If $\mathrm{fl}(R)$ is computed as an inner product of "
        r"length $n$ that is then subtracted from the entry of $I$, then $\|R\|_F \le "
        r"\frac{\|\mathrm{fl}(R)\|_F}{1 - u} + \gamma_n \|L\|_F \|X\|_F$. (b) is attained."
    ),
    plain=(
        "No inverse need be trusted: multiply a computed one by the matrix, see how far the product is from the "
        "identity, and divide every norm in which the computed inverse stood for the exact one by one minus that."
    ),
    symbols=(
        Symbol(L, "a matrix, such as the root of a metric", "L"),
        Symbol(X, "its approximate inverse", "X"),
        Symbol(R, "I - L X"),
        Symbol(V, "inverse of I - R"),
        Symbol(Li, "inverse of L"),
        Symbol(r_0, "bound on |R|", "r0"),
        Symbol(gap, "1 - r_0"),
        Symbol(x, "|v| of a vector v"),
        Symbol(kept, "|R v|"),
        Symbol(image, "|(I - R) v|"),
        Symbol(AX, "|A X|"),
        Symbol(out, "|A X v|, which is |A L^-1 w| for w = (I - R) v"),
        Symbol(u, "unit roundoff", "u"),
        Symbol(one, "1 - u"),
        Symbol(gamma, "gamma_n", "gamma"),
        Symbol(float_r, "|fl(R)|_F"),
        Symbol(dist, "|I - fl(L X)|_F"),
        Symbol(off, "|fl(L X) - L X|_F"),
        Symbol(exact, "|R|_F"),
        Symbol(L_F, "|L|_F"),
        Symbol(X_F, "|X|_F"),
    ),
    hypotheses=(
        Hypothesis("H1", "R = I - L X", R - 1 + L * X, "zero"),
        Hypothesis("H2", "r_0 < 1, written as g = 1 - r_0 > 0", gap - (1 - r_0), "zero"),
        Hypothesis("H3", "|R v| <= r_0 |v|", r_0 * x - kept),
        Hypothesis(
            "H4", "V is the inverse of I - R, which step 'injective' provides: (I - R) V = I", (1 - R) * V - 1, "zero"
        ),
        Hypothesis("H5", "L has an inverse, which step 'L X V' provides: L_inv L = I", Li * L - 1, "zero"),
        Hypothesis("H6", "for (c): u < 1, written as v = 1 - u > 0", one - (1 - u), "zero"),
        Hypothesis(
            "H7",
            "for (c): the last rounding, fl(R) = (I - fl(L X))(1 + delta) entry by entry, |delta| <= u",
            float_r - one * dist,
        ),
    ),
    facts=(
        Fact("F1", "|v| <= |(I - R) v| + |R v|", image + kept - x, "triangle inequality", axiom=True),
        Fact("F2", "|(I - R) v| <= |v| + |R v|", x + kept - image, "triangle inequality", axiom=True),
        Fact("F3", "|A X v| <= |A X| |v|", AX * x - out, "operator norm", axiom=True),
        Fact("F4", "R1 for the product L X", gamma * L_F * X_F - off, "R1", axiom=True),
        Fact("F5", "|R| <= |I - fl(L X)| + |fl(L X) - L X|", dist + off - exact, "triangle inequality", axiom=True),
    ),
    steps=(
        Nonnegative(
            "I - R does not shorten a vector by more than 1 - r_0: it is injective, hence invertible.",
            image - (1 - r_0) * x,
            ref("F1") + ref("H3"),
            label="injective",
        ),
        Identity(
            "L times X V is the identity: L has a right inverse, so it is invertible.",
            L * X * V,
            sp.Integer(1),
            modulo={"H4": 1, "H1": (1, V)},
            label="L X V",
        ),
        Identity(
            "The inverse of L is X V = X (I - R)^-1.",
            Li,
            X * V,
            modulo={"L X V": (-Li, 1), "H5": (1, X * V)},
            label="inverse",
        ),
        Nonnegative(
            "(b) For w = (I - R) v, A L^-1 w = A X v is at most |A X| |v|, and |v| is at most |w|/(1 - r_0).",
            AX * image / gap - out,
            AX / gap * (ref("injective") - x * ref("H2")) + ref("F3"),
            label="upper",
        ),
        Nonnegative(
            "The other side: A X v = A L^-1 w with |w| <= (1 + r_0) |v|.",
            (1 + r_0) * x - image,
            ref("F2") + ref("H3"),
        ),
        Nonnegative(
            "(c) Undo the last rounding, then R1 for the product.",
            float_r / one + gamma * L_F * X_F - exact,
            ref("H7") / one + ref("F4") + ref("F5"),
            label="residual",
        ),
        Identity(
            "Attained: for 1 x 1 matrices L = 1, X = 1 - r_0 both sides of the upper bound are |A|.",
            (1 - r_0) / gap,
            sp.Integer(1),
            modulo={"H2": -1 / gap},
        ),
    ),
    source=Source(
        "Rump", 2010, "Verification methods: rigorous results using floating-point arithmetic, Acta Numerica 19"
    ),
    claims=(
        Claim(
            "|A L^-1| <= |A X| / (1 - r0)",
            SPACE,
            transferred,
            sharp=True,
            near=({**SCALED, "P": [-0.5, 0.0, 0.0, -0.5]},),
        ),
        Claim(
            "|A X| / (1 + r0) <= |A L^-1|",
            SPACE,
            transferred_below,
            sharp=True,
            near=({**SCALED, "P": [0.5, 0.0, 0.0, 0.5]},),
        ),
        Claim(
            "|R|_F <= |fl(R)|_F / (1 - u) + gamma_2 |L|_F |X|_F",
            (Reals("u", 1e-8, 0.1, log=True), Reals("L", -2, 2, 4), Reals("X", -2, 2, 4), Reals("d", -1, 1, 4)),
            residual,
            near=({"u": 1e-6, "L": [1.0, 0.0, 0.0, 0.0], "X": [0.5, 0.0, 0.0, 0.0], "d": [-1.0] * 4},),
            precise=True,
        ),
    ),
    not_checked=(NotChecked("an injective square matrix is invertible", "Horn and Johnson (2013), 0.5"),),
    code=(
        "fpcheck/certify/curvature.py:curvature",
        "fpcheck/certify/metric.py:Metric",
        "fpcheck/certify/norms.py:norm_bound",
        "fpcheck/check/full.py:full_lines",
        "fpcheck/check/clouds.py:Cloud",
    ),
    uses=("R1",),
    remarks=(
        "The Frobenius norm of R bounds |R|_2, and it is what one computes. By R1 a computed norm of N numbers is at "
        "least (1 - u) sqrt(1 - gamma_N) times the exact one, if the square root is correctly rounded.",
        "If X L is used in place of L X, |L^-1 A| is bounded, not |A L^-1|.",
    ),
)
