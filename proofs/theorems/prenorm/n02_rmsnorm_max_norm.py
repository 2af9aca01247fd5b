"""N2: the Jacobian of RMSNorm in the maximum norm."""

import sympy as sp

from proofs import (
    Claim,
    Hypothesis,
    Identity,
    Limit,
    Nonnegative,
    NotChecked,
    Reals,
    Source,
    Summed,
    Symbol,
    Theorem,
    Totals,
    ref,
)

d = sp.Symbol("d", positive=True, integer=True)
eps = sp.Symbol("epsilon", positive=True)
c = sp.Symbol("c", positive=True)
q = sp.Symbol("q", positive=True)
q_min = sp.Symbol("q_min", positive=True)
x_i = sp.Symbol("x_i", nonnegative=True)
x_j = sp.Symbol("x_j", nonnegative=True)
x_1 = sp.Symbol("x_1", positive=True)
s_1 = sp.Symbol("s_1", nonnegative=True)
s_2 = sp.Symbol("s_2", nonnegative=True)

# Sums over the other channels, of which there are d - 1.
OTHERS = Totals(over=(x_j,), table={sp.Integer(1): d - 1, x_j: s_1, x_j**2: s_2})
# The row sum of |J| in the row of channel i, times q; s_1 and s_2 sum the other channels and their squares.
row = (s_2 + d * eps + x_i * s_1) / (d * q**2)
bound = (c + 2) / 2


def _jacobian_row_sums(ctx, x, eps):
    d = len(x)
    q = ctx.sqrt(sum((v * v for v in x), ctx.mpf(0)) / d + eps)
    rows = [sum(abs((ctx.mpf(i == j) - x[i] * x[j] / (d * q * q)) / q) for j in range(d)) for i in range(d)]
    return rows, q


def row_sums(ctx, point):
    rows, q = _jacobian_row_sums(ctx, point["x"], point["eps"])
    return max(rows), (1 + ctx.sqrt(ctx.mpf(len(rows)))) / (2 * q)


def chord(ctx, point):
    """Two states, with q_min the least q on the segment between them."""
    x, eps = point["x"], point["eps"]
    y = [v + point["size"] * w for v, w in zip(x, point["v"], strict=True)]
    d = len(x)
    xx, xv = sum(v * v for v in x), sum(v * (w - v) for v, w in zip(x, y, strict=True))
    vv = sum((w - v) ** 2 for v, w in zip(x, y, strict=True))
    if vv == 0:
        return None
    nearest = min(max(-xv / vv, ctx.mpf(0)), ctx.mpf(1))
    q_min = ctx.sqrt((xx + 2 * nearest * xv + nearest**2 * vv) / d + eps)
    ends = [ctx.sqrt(sum(v * v for v in z) / d + eps) for z in (x, y)]
    left = max(abs(w / ends[1] - v / ends[0]) for v, w in zip(x, y, strict=True))
    return left, (1 + ctx.sqrt(ctx.mpf(d))) / (2 * q_min) * max(abs(w - v) for v, w in zip(x, y, strict=True))


SPACE = (Reals("x", -3, 3, 4), Reals("eps", 1e-8, 1.0, log=True))

THEOREM = Theorem(
    id="N2",
    title="RMSNorm in the maximum norm",
    statement=(
        r"For $N(x) = x/q$, $q = \sqrt{|x|^2/d + \epsilon}$ on $\mathbb{R}^d$, $d \ge 2$, the Jacobian satisfies "
        r"$\|J\|_\infty \le \frac{1 + \sqrt d}{2q}$, which is attained in the limit $\epsilon \to 0$. Hence $N$ is "
        r"$\frac{1 + \sqrt d}{2 q_{\min}}$-Lipschitz in the maximum norm on a convex set where $q \ge q_{\min}$."
    ),
    plain=(
        "In the maximum norm RMSNorm can stretch by (1 + sqrt(d)) / 2 times as much as in the Euclidean one: 12 times "
        "at width 512. Residuals measured in the maximum norm pay this factor."
    ),
    symbols=(
        Symbol(d, "width (channels of a token)"),
        Symbol(eps, "the norm's epsilon", "eps"),
        Symbol(c, "sqrt(d) - 1"),
        Symbol(q, "root of mean square plus epsilon"),
        Symbol(q_min, "lower bound on q over the set"),
        Symbol(x_i, "absolute value of the row's channel"),
        Symbol(x_j, "absolute value of another channel"),
        Symbol(x_1, "a positive value of x_i"),
        Symbol(s_1, "sum of |x_j| over the other channels"),
        Symbol(s_2, "sum of x_j^2 over the other channels"),
    ),
    hypotheses=(
        Hypothesis("H1", "q^2 = (x_i^2 + s_2) / d + epsilon", d * q**2 - x_i**2 - s_2 - d * eps, "zero"),
        Hypothesis("H2", "sqrt(d) = 1 + c with c > 0, as d >= 2", d - (1 + c) ** 2, "zero"),
        Hypothesis("H3", "q >= q_min on the set (for the Lipschitz constant)", q - q_min),
    ),
    steps=(
        Identity(
            "The diagonal entry (N1), times q, is not negative: no case distinction for its absolute value.",
            1 - x_i**2 / (d * q**2),
            (s_2 + d * eps) / (d * q**2),
            modulo={"H1": 1 / (d * q**2)},
        ),
        Identity(
            "So the row's sum of absolute values, times q, is this.",
            1 - x_i**2 / (d * q**2) + x_i * s_1 / (d * q**2),
            row,
            modulo={"H1": 1 / (d * q**2)},
        ),
        Nonnegative(
            "For one other channel.",
            x_i**2 / (2 * c) - x_i * x_j + c * x_j**2 / 2,
            (x_i - c * x_j) ** 2 / (2 * c),
            label="channel",
        ),
        Summed(
            "Summed over the d - 1 others.",
            of="channel",
            totals=OTHERS,
            result=(d - 1) * x_i**2 / (2 * c) - x_i * s_1 + c * s_2 / 2,
            label="channels",
        ),
        Nonnegative(
            "With d - 1 = c (c + 2) and sqrt(d) = 1 + c: the row sum times q is at most (1 + sqrt(d)) / 2.",
            bound - row,
            (ref("channels") + c * d * eps / 2 - x_i**2 / (2 * c) * ref("H2") + bound * ref("H1")) / (d * q**2),
            label="row",
        ),
        Nonnegative(
            "On the set: divide by q >= q_min.",
            bound / q_min - row / q,
            ref("row") / q + bound * ref("H3") / (q * q_min),
        ),
        Limit(
            "Attained: where all other channels are x_i / c, the row sum tends to the bound as epsilon goes to 0.",
            row.subs(q, sp.sqrt((x_i**2 + s_2) / d + eps))
            .subs({s_1: (c + 2) * x_1, s_2: (c + 2) * x_1**2 / c})
            .subs({d: (1 + c) ** 2, x_i: x_1}),
            eps,
            sp.Integer(0),
            bound,
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "|J|_inf <= (1 + sqrt(d)) / (2 q)", SPACE, row_sums, sharp=True, near=({"x": [1, 1, 1, 1], "eps": 1e-8},)
        ),
        Claim(
            "Lipschitz in the maximum norm",
            (*SPACE, Reals("v", -1, 1, 4), Reals("size", 1e-4, 4, log=True)),
            chord,
            near=({"x": [1, 1, 1, 1], "v": [1, -1, -1, -1], "size": 1e-3, "eps": 1e-8},),
        ),
    ),
    not_checked=(
        NotChecked(
            "a bound of the Jacobian's norm on a convex set is a Lipschitz constant",
            "mean value inequality, Rudin (1976), Theorem 9.19",
        ),
    ),
    uses=("N1",),
    remarks=(
        "For d = 4 the extremal token has four equal channels; in general one channel is sqrt(d) - 1 times the others.",
        "For d = 1 the Jacobian is epsilon / q^3, below the bound 1 / q.",
    ),
)
