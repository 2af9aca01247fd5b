"""K4: what a certificate of the plain loop says about the damped one."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, spectral_norm

Y = sp.Symbol("Y", nonnegative=True)
Z1 = sp.Symbol("Z_1", nonnegative=True)
Q = sp.Symbol("Q", nonnegative=True)
s = sp.Symbol("s", positive=True)
r = sp.Symbol("r", positive=True)
kappa = sp.Symbol("kappa", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
residual = sp.Symbol("y", nonnegative=True)
damped_residual = sp.Symbol("y_s", nonnegative=True)
change = sp.Symbol("c", nonnegative=True)
damped_change = sp.Symbol("c_s", nonnegative=True)
slope = sp.Symbol("l", nonnegative=True)
centre_slope = sp.Symbol("l_0", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
J = sp.Symbol("J", commutative=False)
J_z = sp.Symbol("J_z", commutative=False)
f = sp.Symbol("F", real=True)
z = sp.Symbol("z", real=True)
lam = sp.Symbol("lambda", real=True)


def _map(ctx, point):
    """F(z) = b + J z + (c_i z_i^2 / 2)_i about 0: Jacobian at z, and the bounds of the theorem."""
    j, c, step = matrix(ctx, point["J"], 2, 2), point["c"], point["s"]
    first = spectral_norm(ctx, (1 - step) * ctx.eye(2) + step * j)
    return j, c, step, first


def slope_over_ball(ctx, point):
    """|D F_s(z)| against Z_1 + s Q at a state of the ball of radius r, where Q = max |c_i| r."""
    j, c, step, first = _map(ctx, point)
    radius = point["r"]
    state = ctx.matrix(point["z"])
    size = norm(ctx, list(state))
    if size == 0:
        return None
    state = state * (radius * min(ctx.mpf(1), size) / size)
    there = j + ctx.diag([c[0] * state[0], c[1] * state[1]])
    bound = first + step * max(abs(v) for v in c) * radius
    return spectral_norm(ctx, (1 - step) * ctx.eye(2) + step * there), bound


def distance(ctx, point):
    """On the line: the fixed point of y + a z + c z^2/2 next to 0 against s Y / (1 - kappa_s)."""
    y, a, c, step = point["y"], point["a"], point["c"], point["s"]
    inside = (1 - a) ** 2 - 2 * c * y
    if a >= 1 or inside <= 0:
        return None
    root = 2 * y / ((1 - a) + ctx.sqrt(inside))
    radius = point["r"]
    rate = abs(1 - step + step * a) + step * abs(c) * radius
    if rate >= 1 or step * abs(y) > (1 - rate) * radius:
        return None
    return abs(root), step * abs(y) / (1 - rate)


THEOREM = Theorem(
    id="K4",
    title="Certified ball of a damped loop",
    statement=(
        r"Let $F_s(z) = (1 - s) z + s F(z)$ with $s > 0$, $J = DF(\hat z)$, $\|F(\hat z) - \hat z\| \le Y$, "
        r"$\|(1 - s) I + s J\| \le Z_1$ and $\|DF(z) - J\| \le Q$ for all $z$ with $\|z - \hat z\| \le r$, in any "
        r"norm. Then $\|DF_s(z)\| \le \kappa = Z_1 + s Q$ there, and if $\kappa < 1$ and $s Y \le (1 - \kappa) r$, "
        r"$F_s$ maps the ball into itself and converges in it with the rate $\kappa$ to a fixed point $z^*$ of $F$, "
        r"the only one there, with $\|z^* - \hat z\| \le \frac{s Y}{1 - \kappa}$. No eigenvalue $\lambda$ of $J$ then "
        r"has $|1 - s + s \lambda| \ge 1$. The slope and the distance are attained."
    ),
    plain=(
        "Curvature and residual of the damped map are those of the loop times the step: once a block is linearised, "
        "any damping step can be proved at the price of a metric."
    ),
    symbols=(
        Symbol(Y, "bound on the residual |F(z^) - z^|", "Y"),
        Symbol(Z1, "bound on |(1 - s) I + s J|", "Z1"),
        Symbol(Q, "bound on |DF(z) - J| over the ball"),
        Symbol(s, "damping step", "step"),
        Symbol(r, "radius", "radius"),
        Symbol(kappa, "Z_1 + s Q", "kappa"),
        Symbol(gap, "1 - kappa"),
        Symbol(residual, "|F(z^) - z^|"),
        Symbol(damped_residual, "|F_s(z^) - z^|"),
        Symbol(change, "|DF(z) - J|"),
        Symbol(damped_change, "|DF_s(z) - DF_s(z^)|"),
        Symbol(slope, "|DF_s(z)|"),
        Symbol(centre_slope, "|(1 - s) I + s J|"),
        Symbol(e, "|z* - z^|", "error_bound"),
        Symbol(J, "Jacobian of F at the centre"),
        Symbol(J_z, "Jacobian of F at z"),
        Symbol(f, "a component of F(z)"),
        Symbol(z, "the same component of z"),
        Symbol(lam, "slope of a linear F on the line"),
    ),
    hypotheses=(
        Hypothesis("H1", "|F(z^) - z^| <= Y", Y - residual),
        Hypothesis("H2", "|(1 - s) I + s J| <= Z_1", Z1 - centre_slope),
        Hypothesis("H3", "|DF(z) - J| <= Q on the ball", Q - change),
        Hypothesis("H4", "kappa = Z_1 + s Q", kappa - Z1 - s * Q, "zero"),
        Hypothesis("H5", "kappa < 1, written as gap = 1 - kappa > 0", gap - (1 - kappa), "zero"),
        Hypothesis("H6", "s Y <= (1 - kappa) r", (1 - kappa) * r - s * Y),
    ),
    facts=(
        Fact(
            "F1", "a norm is homogeneous: |s (F(z^) - z^)|", damped_residual - s * residual, "norm", "zero", axiom=True
        ),
        Fact("F2", "the same for s (DF(z) - J)", damped_change - s * change, "norm", "zero", axiom=True),
        Fact(
            "F3",
            "|DF_s(z)| <= |DF_s(z^)| + |DF_s(z) - DF_s(z^)|",
            centre_slope + damped_change - slope,
            "triangle inequality",
            axiom=True,
        ),
        Fact("F4", "Q4 for F_s with the residual s Y", s * Y / gap - e, "Q4", axiom=True),
    ),
    steps=(
        Identity("F_s(z) - z is s times F(z) - z: the same fixed points, ...", (1 - s) * z + s * f - z, s * (f - z)),
        Nonnegative(
            "... and a residual of at most s Y at the centre.", s * Y - damped_residual, s * ref("H1") - ref("F1")
        ),
        Identity(
            "The Jacobian changes by s times as much.",
            (1 - s) + s * J_z - ((1 - s) + s * J),
            s * (J_z - J),
        ),
        Nonnegative(
            "So its norm over the ball is at most kappa, ...",
            kappa - slope,
            ref("F3") - ref("F2") + s * ref("H3") + ref("H2") + ref("H4"),
            label="slope",
        ),
        Nonnegative(
            "... and the ball goes into itself: Q4 applies to F_s, eigenvalues included.",
            r - (s * Y + kappa * r),
            ref("H6"),
        ),
        Nonnegative("Its distance is that of Q4.", s * Y / gap - e, ref("F4")),
        Identity(
            "Attained: F(z) = Y + lambda z has its fixed point at Y/(1 - lambda), which is s Y over 1 - (1 - s + s "
            "lambda).",
            s * Y / (1 - (1 - s + s * lam)),
            Y / (1 - lam),
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "|D F_s| <= Z_1 + s Q on quadratic maps of the plane",
            (
                Reals("J", -3, 3, 4),
                Reals("c", -2, 2, 2),
                Reals("s", 0.01, 2, log=True),
                Reals("r", 0.01, 2, log=True),
                Reals("z", -1, 1, 2),
            ),
            slope_over_ball,
            sharp=True,
            near=({"J": [0.5, 0.0, 0.0, 0.5], "c": [1.0, 1.0], "s": 0.5, "r": 1.0, "z": [1.0, 0.0]},),
        ),
        Claim(
            "the fixed point of y + a z + c z^2/2 is within s Y / (1 - kappa)",
            (
                Reals("y", -1, 1),
                Reals("a", -5, 1),
                Reals("c", -1, 1),
                Reals("s", 0.01, 1, log=True),
                Reals("r", 0.01, 10, log=True),
            ),
            distance,
            sharp=True,
            near=({"y": 0.2, "a": -2.0, "c": 0.0, "s": 0.3, "r": 1.0},),
        ),
    ),
    code=("fpcheck/certify/damped.py:certified_steps", "fpcheck/certify/damped.py:prove_step"),
    uses=("Q4",),
    remarks=(
        "A metric for the plain loop need not serve: Z_1 belongs to the step and is bounded anew for each.",
        "Q does not depend on s if the metric is kept; its radius does.",
    ),
)
