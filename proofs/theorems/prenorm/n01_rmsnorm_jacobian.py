"""N1: the Jacobian of RMSNorm, its norm, and its Lipschitz constants."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Limit,
    Nonnegative,
    NotChecked,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import norm

d = sp.Symbol("d", positive=True, integer=True)
eps = sp.Symbol("epsilon", positive=True)
x_i = sp.Symbol("x_i", real=True)
x_j = sp.Symbol("x_j", real=True)
rest = sp.Symbol("m", nonnegative=True)
n = sp.Symbol("n", nonnegative=True)
q = sp.Symbol("q", positive=True)
q_min = sp.Symbol("q_min", positive=True)
u = sp.Symbol("u", nonnegative=True)
w = sp.Symbol("w", nonnegative=True)

root = sp.sqrt((x_i**2 + x_j**2 + rest) / d + eps)


def _rms(ctx, x, eps):
    q = ctx.sqrt(sum((v * v for v in x), ctx.mpf(0)) / len(x) + eps)
    return [v / q for v in x], q


def slope(ctx, point):
    """|J y| <= |y| / q, J y from the definition by the quotient rule."""
    x, y, eps = point["x"], point["y"], point["eps"]
    _, q = _rms(ctx, x, eps)
    along = sum((a * b for a, b in zip(x, y, strict=True)), ctx.mpf(0))
    image = [b / q - a * along / (len(x) * q**3) for a, b in zip(x, y, strict=True)]
    return norm(ctx, image), norm(ctx, y) / q


def chord(ctx, point):
    """Two states: the outputs differ by at most the inputs' distance over sqrt(eps)."""
    x, y, eps = point["x"], point["y"], point["eps"]
    first, _ = _rms(ctx, x, eps)
    second, _ = _rms(ctx, y, eps)
    return (
        norm(ctx, [a - b for a, b in zip(first, second, strict=True)]),
        norm(ctx, [a - b for a, b in zip(x, y, strict=True)]) / ctx.sqrt(eps),
    )


def size(ctx, point):
    out, _ = _rms(ctx, point["x"], point["eps"])
    return norm(ctx, out), ctx.sqrt(ctx.mpf(len(out)))


SPACE = (Reals("x", -3, 3, 4), Reals("y", -3, 3, 4), Reals("eps", 1e-6, 1.0, log=True))

THEOREM = Theorem(
    id="N1",
    title="Jacobian and Lipschitz constant of RMSNorm",
    statement=(
        r"For $N(x) = x / q(x)$, $q(x) = \sqrt{|x|^2/d + \epsilon}$ on $\mathbb{R}^d$, $d \ge 2$, $\epsilon > 0$: "
        r"$J = \frac1q \left(I - \frac{x x'}{d q^2}\right)$ has the eigenvalue $1/q$ on the complement of $x$ and "
        r"$\epsilon / q^3$ along $x$, so $\|J\|_2 = 1/q$. Hence $N$ is $1/q_{\min}$-Lipschitz on a convex set where "
        r"$q \ge q_{\min}$, $1/\sqrt\epsilon$-Lipschitz everywhere, and $|N(x)|_2 < \sqrt d$."
    ),
    plain=(
        "RMSNorm stretches by one over the root-mean-square of its input. Near zero that is 316 for eps = 1e-5, which "
        "makes global constants useless; at a state of ordinary size it is about 1."
    ),
    symbols=(
        Symbol(d, "width (channels of a token)"),
        Symbol(eps, "the norm's epsilon", "eps"),
        Symbol(x_i, "one channel"),
        Symbol(x_j, "another channel"),
        Symbol(rest, "sum of squares of the other channels"),
        Symbol(n, "|x|^2"),
        Symbol(q, "root of mean square plus epsilon"),
        Symbol(q_min, "lower bound on q over the set"),
        Symbol(u, "squared length of a direction's part along x"),
        Symbol(w, "squared length of its part across x"),
    ),
    hypotheses=(
        Hypothesis("H1", "q^2 = |x|^2 / d + epsilon", d * q**2 - n - d * eps, "zero"),
        Hypothesis("H2", "q >= q_min on the set (for the local constant)", q - q_min),
    ),
    facts=(
        Fact(
            "F1",
            "q >= sqrt(epsilon), as q^2 - epsilon is a mean of squares",
            q - sp.sqrt(eps),
            "the square root is increasing",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "Diagonal entry of the Jacobian, for any number of other channels.",
            sp.diff(x_i / root, x_i),
            1 / root - x_i**2 / (d * root**3),
        ),
        Identity("Entry off the diagonal.", sp.diff(x_i / root, x_j), -x_i * x_j / (d * root**3)),
        Identity(
            "Along x the Jacobian multiplies by 1/q - |x|^2/(d q^3) = epsilon/q^3; across x by 1/q.",
            1 / q - n / (d * q**3),
            eps / q**3,
            modulo={"H1": 1 / (d * q**3)},
            label="along",
        ),
        Nonnegative(
            "The eigenvalue along x is the smaller one.",
            1 / q - eps / q**3,
            n / (d * q**3) + ref("along"),
            label="smaller",
        ),
        Nonnegative(
            "So |J y|^2 <= |y|^2 / q^2 for y with parts of squared length u along and w across x; equality for u = 0.",
            (u + w) / q**2 - (u * eps**2 / q**6 + w / q**2),
            u * (1 / q + eps / q**3) * ref("smaller"),
        ),
        Nonnegative("On the set: 1/q <= 1/q_min.", 1 / q_min - 1 / q, ref("H2") / (q * q_min)),
        Nonnegative("Everywhere: 1/q <= 1/sqrt(epsilon).", 1 / sp.sqrt(eps) - 1 / q, ref("F1") / (q * sp.sqrt(eps))),
        Limit(
            "The global constant is attained in the limit x to 0.",
            1 / sp.sqrt(n / d + eps),
            n,
            sp.Integer(0),
            1 / sp.sqrt(eps),
        ),
        Nonnegative(
            "The output's squared length |x|^2 / q^2 is below d.",
            d - n / q**2,
            (d * eps + ref("H1")) / q**2,
            strict=True,
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("|J y| <= |y| / q", SPACE, slope, sharp=True, near=({"x": [1, 0, 0, 0], "y": [0, 1, 0, 0], "eps": 0.1},)),
        Claim(
            "Lipschitz with 1 / sqrt(eps)",
            SPACE,
            chord,
            sharp=True,
            near=({"x": [0.001, 0, 0, 0], "y": [-0.001, 0, 0, 0], "eps": 1.0},),
        ),
        Claim("|N(x)| <= sqrt(d)", (Reals("x", -3, 3, 4), Reals("eps", 1e-6, 1.0, log=True)), size, sharp=True),
    ),
    not_checked=(
        NotChecked(
            "a bound on the Jacobian along the segment between two points bounds the distance of their images",
            "mean value inequality, Dieudonne, Foundations of Modern Analysis (1960), 8.5.1",
        ),
    ),
    code=(
        "fpcheck/certify/growth.py:growth",
        "fpcheck/certify/fusion.py:fuse",
        "fpcheck/certify/operators.py:rule_for",
    ),
    remarks=("For d = 1 there is no direction across x and the norm is epsilon/q^3.",),
)
