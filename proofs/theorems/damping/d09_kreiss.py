"""D9: powers of a matrix grow at least as far as its resolvent says."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Induction,
    Limit,
    Nonnegative,
    NotChecked,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import spectral_norm

r = sp.Symbol("r", positive=True)
g = sp.Symbol("g", positive=True)
K = sp.Symbol("C", positive=True)
k = sp.Symbol("k", integer=True, nonnegative=True)
Y = sp.Symbol("Y", nonnegative=True)
y_k = sp.Symbol("y_k", nonnegative=True)
x_k = sp.Symbol("x_k", nonnegative=True)
y_next = sp.Symbol("y_next", nonnegative=True)
left = sp.Symbol("h_k", real=True)
b = sp.Symbol("b", positive=True)
t = sp.Symbol("t", positive=True)

example = sp.Matrix([[1 / r, b / r**2], [0, 1 / r]])
V = b / 4 + 1 / b
bound = K * (1 - r ** (-k)) / (r - 1)


def _complex_norm(ctx, a):
    """Largest singular value of a complex 2 x 2 matrix: from its Frobenius norm and determinant."""
    total = sum(abs(a[i, j]) ** 2 for i in range(2) for j in range(2))
    det = abs(a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0]) ** 2
    return ctx.sqrt((total + ctx.sqrt(max(total * total - 4 * det, ctx.mpf(0)))) / 2)


def resolvent(ctx, point):
    """Upper triangular, eigenvalues p and q of modulus 0.9 at most: powers are largest before the 11th."""
    p, q, b = point["p"], point["q"], point["b"]
    z = point["r"] * ctx.mpc(ctx.cos(point["angle"]), ctx.sin(point["angle"]))
    inverse = ctx.matrix([[1 / (z - p), b / ((z - p) * (z - q))], [ctx.mpc(0), 1 / (z - q)]])
    power, most = ctx.eye(2), ctx.mpf(1)
    for _ in range(30):
        power = power * ctx.matrix([[p, b], [ctx.mpf(0), q]])
        most = max(most, spectral_norm(ctx, power))
    return (point["r"] - 1) * _complex_norm(ctx, inverse), most


def nilpotent(ctx, point):
    """[[0, b], [0, 0]]: K is at least its value at the z where it is largest, b / 4 + 1 / b for b >= 2."""
    b, r = point["b"], point["r"]
    inverse = ctx.matrix([[1 / r, b / r**2], [ctx.mpf(0), 1 / r]])
    return (r - 1) * spectral_norm(ctx, inverse), b / 4 + 1 / b


THEOREM = Theorem(
    id="D9",
    title="Kreiss constant: the lower half",
    statement=(
        r"Let $A$ be a square matrix, $|\cdot|$ a norm and $\|\cdot\|$ its operator norm. If $\sup_{k \ge 0} \|A^k\| "
        r"= C < \infty$, then $z I - A$ is invertible for $|z| > 1$, and $(|z| - 1) \|(zI - A)^{-1}\| \le C$. So with "
        r"the Kreiss constant $K(A) = \sup_{|z| > 1} (|z| - 1) \|(zI - A)^{-1}\|$: $K(A) \le \sup_k \|A^k\|$; every "
        r"single $z$ gives a lower bound on how far powers grow. For $A = \begin{pmatrix} 0 & b \\ 0 & 0 "
        r"\end{pmatrix}$, $b \ge 2$, in the Euclidean norm, $K = \frac b4 + \frac1b$, while $\sup_k \|A^k\|_2 = b$."
    ),
    plain=(
        "Where the resolvent is large just outside the unit circle, powers of the matrix must grow, although all "
        "eigenvalues may lie inside: a loop then first moves away from its fixed point before it settles. Evaluating "
        "at any one z already proves a growth."
    ),
    symbols=(
        Symbol(r, "|z|; in the example z itself, real (another argument of z only multiplies by a unitary matrix)"),
        Symbol(g, "|z| - 1"),
        Symbol(K, "sup of |A^k|"),
        Symbol(k, "power"),
        Symbol(Y, "|y|, where (zI - A) y = x"),
        Symbol(y_k, "|A^k y|"),
        Symbol(y_next, "|A^(k+1) y|"),
        Symbol(x_k, "|A^k x|"),
        Symbol(left, "|y| - |z|^(-k) |A^k y|"),
        Symbol(b, "entry of the example"),
        Symbol(t, "largest singular value of the example's resolvent"),
    ),
    hypotheses=(
        Hypothesis("H1", "powers are bounded: |A^k x| <= C |x|, with |x| = 1 here", K - x_k),
        Hypothesis("H2", "|z| > 1", r - 1, "positive"),
        Hypothesis("H3", "left stands for |y| - |z|^(-k) |A^k y|", left - Y + r ** (-k) * y_k, "zero"),
        Hypothesis("H4", "the example's larger singular value: r^2 t^2 - 1 = b t", r**2 * t**2 - b * t - 1, "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "|z| |A^k y| <= |A^k x| + |A^(k+1) y|, because A^k (z y) = A^k (x + A y)",
            x_k + y_next - r * y_k,
            "triangle inequality",
            axiom=True,
        ),
        Fact("F2", "for x = 0: |z| |A^k y| = |A^(k+1) y|", y_next - r * y_k, "z y = A y", axiom=True),
    ),
    steps=(
        Induction(
            "Let (zI - A) y = x, |x| = 1, so z y = x + A y. Use it k times: |y| - |z|^(-k) |A^k y| <= C (1 - "
            "|z|^(-k)) / (|z| - 1). It begins with |y| - |y|.",
            k,
            left,
            Y - r ** (-k - 1) * y_next,
            bound,
            sp.Integer(0),
            sp.Integer(0),
            ref("IH") + ref("H3") + r ** (-k - 1) * (ref("F1") + ref("H1")),
            label="partial",
        ),
        Nonnegative(
            "What is left over is at most |z|^(-k) C |y|.",
            K / (r - 1) + r ** (-k) * y_k - Y,
            ref("partial") + ref("H3") + K * r ** (-k) / ref("H2"),
        ),
        Limit(
            "And vanishes, as |A^k y| <= C |y| and |z| = 1 + g > 1: so |y| <= C / (|z| - 1).",
            K * Y * (1 + g) ** (-k),
            k,
            sp.oo,
            sp.Integer(0),
        ),
        Induction(
            "And y = 0 for x = 0, by the same chain without |A^k x|: |y| <= |z|^(-k) |A^k y| <= |z|^(-k) C |y|, which "
            "vanishes. So zI - A is invertible.",
            k,
            left,
            Y - r ** (-k - 1) * y_next,
            sp.Integer(0),
            sp.Integer(0),
            sp.Integer(0),
            ref("IH") + ref("H3") + r ** (-k - 1) * ref("F2"),
        ),
        Identity(
            "The example: t is a singular value of the resolvent if r^4 det(G - t^2 I) = 0, G its Gram matrix; the "
            "larger one has r^2 t^2 - 1 = b t.",
            r**4 * (example.T * example - t**2 * sp.eye(2)).det(),
            (r**2 * t**2 - 1 - b * t) * (r**2 * t**2 - 1 + b * t),
        ),
        Identity(
            "With V = b / 4 + 1 / b, that polynomial at V / (r-1), times (r-1)^2, is a square, which is 0 at r = 2 "
            "b^2 / (b^2 - 4).",
            r**2 * V**2 - b * (r - 1) * V - (r - 1) ** 2,
            ((b**2 - 4) * r / (4 * b) - b / 2) ** 2,
        ),
        Nonnegative(
            "So V / (r-1) is right of the root t: (|z| - 1) times the resolvent's norm is at most V at real z, with "
            "equality there.",
            V / (r - 1) - t,
            (((b**2 - 4) * r / (4 * b) - b / 2) ** 2 / ref("H2") ** 2 - ref("H4"))
            / (r**2 * V / ref("H2") + (1 + ref("H4")) / t),
        ),
        Limit(
            "For b = 2 the value V = 1 is reached in the limit of large z.",
            (r - 1) * (2 + sp.sqrt(4 + 4 * r**2)) / (2 * r**2),
            r,
            sp.oo,
            sp.Integer(1),
        ),
    ),
    source=Source("Kreiss", 1962, "BIT 2, the easy half"),
    claims=(
        Claim(
            "(|z| - 1) |(zI - A)^-1| <= sup |A^k|",
            (
                Reals("p", -0.9, 0.9),
                Reals("q", -0.9, 0.9),
                Reals("b", -5, 5),
                Reals("r", 1.0001, 2000, log=True),
                Reals("angle", 0, 3.1416),
            ),
            resolvent,
            sharp=True,
        ),
        Claim(
            "the example: at most b / 4 + 1 / b",
            (Reals("b", 2, 20), Reals("r", 1.001, 100, log=True)),
            nilpotent,
            sharp=True,
        ),
    ),
    not_checked=(
        NotChecked(
            "the upper half, sup_k |A^k|_2 <= e n K(A) for n rows, with e the best factor; nothing in this collection "
            "uses it",
            "Spijker (1991), BIT 31; Kreiss (1962) without the sharp factor",
        ),
    ),
    code=("fpcheck/spectral/kreiss.py:Kreiss",),
    remarks=(
        "Only the lower half is proved here. Code that says 'powers grow at least value-fold' rests on it; 'at most e "
        "n value-fold' rests on the citation, and moreover needs K itself, not a lower estimate.",
        "Any operator norm will do for the lower half.",
    ),
)
