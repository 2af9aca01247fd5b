"""B2: how far a computed state is from the fixed point, from its residual."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref

L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
r = sp.Symbol("r", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)


def _affine(ctx, point):
    """f(z) = L z + b on the line has the fixed point b / (1 - L)."""
    rate, b, z = point["L"], point["b"], point["z"]
    error = abs(z - b / (1 - rate))
    residual = abs(rate * z + b - z)
    return error, residual, rate


def upper(ctx, point):
    error, residual, rate = _affine(ctx, point)
    return error, residual / (1 - abs(rate))


def lower(ctx, point):
    error, residual, rate = _affine(ctx, point)
    return residual / (1 + abs(rate)), error


def upper_nonlinear(ctx, point):
    """f(z) = L sin(z) + b: its fixed point by bisection of z - f(z), which is increasing."""
    rate, b, z = point["L"], point["b"], point["z"]
    left, right = b - 1, b + 1
    for _ in range(60 if ctx.prec == 53 else 200):
        middle = (left + right) / 2
        if middle - rate * ctx.sin(middle) - b > 0:
            right = middle
        else:
            left = middle
    return abs(z - (left + right) / 2), abs(rate * ctx.sin(z) + b - z) / (1 - abs(rate))


SPACE = (Reals("L", -0.999, 0.999), Reals("b", -2, 2), Reals("z", -20, 20))

THEOREM = Theorem(
    id="B2",
    title="A-posteriori error of a computed state",
    statement=(
        r"Let $f$ be $L$-Lipschitz in a norm with $L < 1$, $f(z^*) = z^*$, and let $\hat z$ be any state with residual "
        r"$r = \|f(\hat z) - \hat z\|$. Then $\frac{r}{1+L} \le \|\hat z - z^*\| \le \frac{r}{1-L}$, and neither side "
        r"can be improved."
    ),
    plain=(
        "The undamped residual at the returned state, divided by 1 - L, bounds the distance to the fixed point; "
        "divided by 1 + L it bounds it from below. No start, no history and no number of steps enters."
    ),
    symbols=(
        Symbol(L, "Lipschitz constant of f in the stated norm", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(r, "residual |f(z) - z| at the computed state", "residual"),
        Symbol(e, "distance |z - z*| from the computed state to the fixed point", "error_bound"),
        Symbol(m, "|f(z) - f(z*)|"),
    ),
    hypotheses=(
        Hypothesis("H1", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H2", "f is L-Lipschitz between the two states: |f(z) - f(z*)| <= L |z - z*|", L * e - m),
    ),
    facts=(
        Fact(
            "F1",
            "|z - z*| <= |z - f(z)| + |f(z) - f(z*)|, because z* = f(z*)",
            r + m - e,
            "triangle inequality",
            axiom=True,
        ),
        Fact("F2", "|z - f(z)| <= |z - z*| + |f(z*) - f(z)|", e + m - r, "triangle inequality", axiom=True),
    ),
    steps=(
        Nonnegative(
            "Insert the Lipschitz bound into the triangle inequality: the error times 1 - L is at most the residual.",
            r - (1 - L) * e,
            ref("F1") + ref("H2"),
        ),
        Nonnegative(
            "Divide by 1 - L, which is positive.",
            r / gap - e,
            (ref("1") + e * ref("H1") * -1) / gap,
            label="upper bound",
        ),
        Nonnegative(
            "The other triangle inequality gives the lower side in the same way.",
            e - r / (1 + L),
            (ref("F2") + ref("H2")) / (1 + L),
            label="lower bound",
        ),
    ),
    source=Source("Banach", 1922, "Theorem 6, in its a-posteriori form"),
    claims=(
        Claim("error <= r / (1 - L) on affine maps", SPACE, upper, sharp=True),
        Claim("r / (1 + L) <= error on affine maps", SPACE, lower, sharp=True),
        Claim("error <= r / (1 - L) on L sin(z) + b", SPACE, upper_nonlinear, near=({"L": 0.99, "b": 0.0, "z": 0.01},)),
    ),
    not_checked=(
        NotChecked("the fixed point exists (f maps a complete space into itself)", "Banach (1922), Theorem 6"),
    ),
    remarks=(
        "The residual is that of f itself: a damped step is s times as long and promises s times as much (B8).",
        "Affine maps attain both sides: L z + b with L >= 0 the upper, with L <= 0 the lower one.",
    ),
)
