"""N3: the Jacobian of LayerNorm, what it kills, and its norm."""

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
total = sp.Symbol("S", real=True)
squares = sp.Symbol("m", nonnegative=True)
t = sp.Symbol("t", real=True)
mu = sp.Symbol("mu", real=True)
n = sp.Symbol("n", nonnegative=True)
c_i = sp.Symbol("c_i", real=True)
c_sum = sp.Symbol("c_sum", real=True)
c_2 = sp.Symbol("n_c", nonnegative=True)
s = sp.Symbol("s", positive=True)
s_min = sp.Symbol("s_min", positive=True)
u = sp.Symbol("u", nonnegative=True)
v = sp.Symbol("v", nonnegative=True)
w = sp.Symbol("w", nonnegative=True)

mean = (x_i + x_j + total) / d
root = sp.sqrt((x_i**2 + x_j**2 + squares) / d - mean**2 + eps)
out = (x_i - mean) / root


def _layer_norm(ctx, x, eps):
    d = len(x)
    mean = sum(x, ctx.mpf(0)) / d
    c = [v - mean for v in x]
    s = ctx.sqrt(sum((v * v for v in c), ctx.mpf(0)) / d + eps)
    return [v / s for v in c], c, s


def slope(ctx, point):
    """|J y| <= |y| / s, J y by the quotient rule."""
    x, y, eps = point["x"], point["y"], point["eps"]
    d = len(x)
    _, c, s = _layer_norm(ctx, x, eps)
    mean_y = sum(y, ctx.mpf(0)) / d
    change = sum((a * b for a, b in zip(c, y, strict=True)), ctx.mpf(0)) / (d * s)
    image = [(b - mean_y) / s - a * change / s**2 for a, b in zip(c, y, strict=True)]
    return norm(ctx, image), norm(ctx, y) / s


def chord(ctx, point):
    """Two states: the outputs differ by at most the inputs' distance over sqrt(eps)."""
    x, y, eps = point["x"], point["y"], point["eps"]
    first, second = _layer_norm(ctx, x, eps)[0], _layer_norm(ctx, y, eps)[0]
    return (
        norm(ctx, [a - b for a, b in zip(first, second, strict=True)]),
        norm(ctx, [a - b for a, b in zip(x, y, strict=True)]) / ctx.sqrt(eps),
    )


def size(ctx, point):
    return norm(ctx, _layer_norm(ctx, point["x"], point["eps"])[0]), ctx.sqrt(ctx.mpf(len(point["x"])))


SPACE = (Reals("x", -3, 3, 4), Reals("y", -3, 3, 4), Reals("eps", 1e-6, 1.0, log=True))

THEOREM = Theorem(
    id="N3",
    title="Jacobian and Lipschitz constant of LayerNorm",
    statement=(
        r"For $\mathrm{LN}(x) = c/s$, $c = Cx$, $C = I - \frac1d \mathbf{1}\mathbf{1}'$, $s = \sqrt{|c|^2/d + "
        r"\epsilon}$ on $\mathbb{R}^d$, $d \ge 3$: $\mathrm{LN}(x) = N(Cx)$ with RMSNorm $N$, and $J = \frac1s "
        r"\left(C - \frac{c c'}{d s^2}\right)$. It has the eigenvalue $0$ along $\mathbf{1}$, $\epsilon/s^3$ along "
        r"$c$ and $1/s$ on the complement, so $\|J\|_2 = 1/s$. Hence LN is $1/s_{\min}$-Lipschitz on a convex set "
        r"where $s \ge s_{\min}$, $1/\sqrt\epsilon$-Lipschitz everywhere, and $|\mathrm{LN}(x)|_2 < \sqrt d$."
    ),
    plain=(
        "LayerNorm is RMSNorm of the centred vector: every bound for RMSNorm holds with the standard deviation in the "
        "place of the root mean square. It is blind to a shift of all channels."
    ),
    symbols=(
        Symbol(d, "width (channels of a token)"),
        Symbol(eps, "the norm's epsilon"),
        Symbol(x_i, "one channel"),
        Symbol(x_j, "another channel"),
        Symbol(total, "sum of the other channels"),
        Symbol(squares, "sum of squares of the other channels"),
        Symbol(t, "a shift of all channels"),
        Symbol(mu, "mean of x"),
        Symbol(n, "|x|^2"),
        Symbol(c_i, "a channel of c"),
        Symbol(c_sum, "sum of the channels of c"),
        Symbol(c_2, "|c|^2"),
        Symbol(s, "root of the variance plus epsilon"),
        Symbol(s_min, "lower bound on s over the set"),
        Symbol(u, "squared length of a direction's part along c"),
        Symbol(v, "squared length of its part along the all-ones vector"),
        Symbol(w, "squared length of the rest"),
    ),
    hypotheses=(
        Hypothesis("H1", "s^2 = |c|^2 / d + epsilon", d * s**2 - c_2 - d * eps, "zero"),
        Hypothesis("H2", "the channels of c = C x sum to 0", c_sum, "zero"),
        Hypothesis("H3", "s >= s_min on the set (for the local constant)", s - s_min),
        Hypothesis("H4", "|c|^2 = |x|^2 - d mu^2", c_2 - n + d * mu**2, "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "s >= sqrt(epsilon), as s^2 - epsilon is a mean of squares",
            s - sp.sqrt(eps),
            "the square root is increasing",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "Diagonal entry of the Jacobian, for any number of other channels.",
            sp.diff(out, x_i),
            (1 - 1 / d) / root - (x_i - mean) ** 2 / (d * root**3),
        ),
        Identity(
            "Entry off the diagonal. Both are the entries of (C - c c' / (d s^2)) / s.",
            sp.diff(out, x_j),
            -1 / (d * root) - (x_i - mean) * (x_j - mean) / (d * root**3),
        ),
        Identity(
            "A shift of all channels changes nothing (the sums of the other d - 2 channels and of their squares move "
            "along).",
            out.subs(
                {
                    x_i: x_i + t,
                    x_j: x_j + t,
                    total: total + (d - 2) * t,
                    squares: squares + 2 * t * total + (d - 2) * t**2,
                },
                simultaneous=True,
            ),
            out,
        ),
        Identity(
            "So the all-ones vector is killed: row i of C sums to 1 - d/d and row i of c c' to c_i times the sum of c.",
            (1 - d * (1 / d)) / s - c_i * c_sum / (d * s**3),
            sp.Integer(0),
            modulo={"H2": -c_i / (d * s**3)},
        ),
        Identity(
            "Along c, where C c = c, the Jacobian multiplies by 1/s - |c|^2/(d s^3) = epsilon/s^3; across both by 1/s.",
            1 / s - c_2 / (d * s**3),
            eps / s**3,
            modulo={"H1": 1 / (d * s**3)},
            label="along",
        ),
        Nonnegative(
            "The eigenvalue along c is the smaller one.",
            1 / s - eps / s**3,
            c_2 / (d * s**3) + ref("along"),
            label="smaller",
        ),
        Nonnegative(
            "The three eigenspaces are orthogonal, so |J y|^2 <= |y|^2 / s^2; equality for y across both, which "
            "exists for d >= 3.",
            (u + v + w) / s**2 - (u * eps**2 / s**6 + w / s**2),
            u * (1 / s + eps / s**3) * ref("smaller") + v / s**2,
        ),
        Nonnegative("On the set: 1/s <= 1/s_min.", 1 / s_min - 1 / s, ref("H3") / (s * s_min)),
        Nonnegative("Everywhere: 1/s <= 1/sqrt(epsilon).", 1 / sp.sqrt(eps) - 1 / s, ref("F1") / (s * sp.sqrt(eps))),
        Limit(
            "The global constant is attained where all channels agree.",
            1 / sp.sqrt(c_2 / d + eps),
            c_2,
            sp.Integer(0),
            1 / sp.sqrt(eps),
        ),
        Nonnegative(
            "The output's squared length |c|^2 / s^2 is below d.",
            d - c_2 / s**2,
            (d * eps + ref("H1")) / s**2,
            strict=True,
        ),
        Nonnegative(
            "Centring never lengthens, |C x| <= |x|: so a bound for RMSNorm in terms of a displacement's length holds "
            "with the same length here.",
            n - c_2,
            d * mu**2 - ref("H4"),
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "|J y| <= |y| / s", SPACE, slope, sharp=True, near=({"x": [1, -1, 0, 0], "y": [0, 0, 1, -1], "eps": 0.1},)
        ),
        Claim(
            "Lipschitz with 1 / sqrt(eps)",
            SPACE,
            chord,
            sharp=True,
            near=({"x": [0.001, -0.001, 0, 0], "y": [-0.001, 0.001, 0, 0], "eps": 1.0},),
        ),
        Claim("|LN(x)| <= sqrt(d)", (Reals("x", -3, 3, 4), Reals("eps", 1e-6, 1.0, log=True)), size, sharp=True),
    ),
    not_checked=(
        NotChecked(
            "a bound of the Jacobian's norm on a convex set is a Lipschitz constant",
            "mean value inequality, Rudin (1976), Theorem 9.19",
        ),
    ),
    code=("fpcheck/certify/operators.py:rule_for",),
    uses=("N1",),
    remarks=(
        "For d = 2 there is no direction across both: the norm is epsilon/s^3 unless both channels agree, where it is "
        "1/sqrt(epsilon).",
        "A learned gain multiplies by a diagonal matrix and costs its largest entry; a learned shift costs nothing.",
    ),
)
