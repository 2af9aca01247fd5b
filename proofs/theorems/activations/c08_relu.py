"""C8: ReLU has slope at most 1 and no bound on its curvature."""

import sympy as sp

from proofs import Claim, Hypothesis, Limit, Nonnegative, Reals, Source, Symbol, Theorem, ref

a = sp.Symbol("a", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
c = sp.Symbol("c", nonnegative=True)
d = sp.Symbol("d", nonnegative=True)
h = sp.Symbol("h", positive=True)
M = sp.Symbol("M", positive=True)


def chord(ctx, point):
    x, y = point["x"], point["y"]
    return abs(max(x, ctx.mpf(0)) - max(y, ctx.mpf(0))), abs(x - y)


THEOREM = Theorem(
    id="C8",
    title="ReLU",
    statement=(
        r"$\mathrm{relu}(x) = \max(x, 0)$ satisfies $|\mathrm{relu}(x) - \mathrm{relu}(y)| \le |x - y|$, with "
        r"equality for $x, y \ge 0$. It has no curvature bound: there is no $M$ with $|\mathrm{relu}(x + h) - 2\, "
        r"\mathrm{relu}(x) + \mathrm{relu}(x - h)| \le M h^2$ for all $x$ and $h$, as a bound $M$ on a second "
        r"derivative, or a Lipschitz constant $M$ of the slope, would give."
    ),
    plain=(
        "ReLU stretches nothing, but its slope jumps. A bound on how the Jacobian changes over a ball needs a smooth "
        "activation, or a ball in which no channel changes its sign."
    ),
    symbols=(
        Symbol(a, "max(x, 0)"),
        Symbol(b, "max(-x, 0)"),
        Symbol(c, "max(y, 0)"),
        Symbol(d, "max(-y, 0)"),
        Symbol(h, "distance from the kink"),
        Symbol(M, "a supposed bound of the curvature"),
    ),
    hypotheses=(
        Hypothesis("H1", "x = a - b, where a or b is 0", a * b, "zero"),
        Hypothesis("H2", "y = c - d, where c or d is 0", c * d, "zero"),
    ),
    steps=(
        Nonnegative(
            "Squared difference of the arguments minus that of the values: the negative parts' squared difference and "
            "products of positive with negative parts.",
            ((a - b) - (c - d)) ** 2 - (a - c) ** 2,
            (b - d) ** 2 + 2 * (a * d + b * c) - 2 * ref("H1") - 2 * ref("H2"),
        ),
        Limit(
            "At the kink the second difference relu(h) - 2 relu(0) + relu(-h) is h; over h^2 it has no bound.",
            (h - 2 * 0 + 0) / h**2,
            h,
            sp.Integer(0),
            sp.oo,
        ),
        Nonnegative(
            "For every M already h = 1/(2 M) breaks the inequality.",
            (h - M * h**2).subs(h, 1 / (2 * M)),
            1 / (4 * M),
            strict=True,
        ),
    ),
    source=Source("", derived=True),
    claims=(Claim("|relu(x) - relu(y)| <= |x - y|", (Reals("x", -3, 3), Reals("y", -3, 3)), chord, sharp=True),),
    code=(
        "fpcheck/certify/nodes.py:nodes_of",
        "fpcheck/check/bends.py:nodes_of",
    ),
    remarks=(
        "At 0 there is no derivative; what frameworks return there is a convention.",
        "The squared ReLU has the second derivative 2 where x > 0, but no bound on its slope.",
    ),
)
