"""B5a: contraction after k steps on a ball only, and the cycle that a careless test takes for a fixed point."""

import sympy as sp

from proofs import Claim, Fact, Holds, Hypothesis, Identity, Nonnegative, Reals, Sign, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, spectral_norm

q = sp.Symbol("q", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
R = sp.Symbol("R", positive=True)
r_1 = sp.Symbol("r_1", nonnegative=True)
r_k = sp.Symbol("r_k", nonnegative=True)
a = sp.Symbol("a", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
away = sp.Symbol("y", nonnegative=True)
moved = sp.Symbol("D", nonnegative=True)
moved_k = sp.Symbol("D_k", nonnegative=True)
x = sp.Symbol("x", real=True)


def square(t):
    return t**2 - 1


twice = x**4 - 2 * x**2
radius = sp.Rational(1, 5)


def _ball(ctx, point):
    """f(z) = A z + b about 0, with R such that r_k is a share of (1 - q) R: A^k, f^k(0), q, R."""
    a, b, steps = matrix(ctx, point["A"], 2, 2), ctx.matrix(point["b"]), int(point["k"])
    power, image = ctx.eye(2), ctx.matrix([0, 0])
    for _ in range(steps):
        power, image = a * power, a * image + b
    rate, residual = spectral_norm(ctx, power), norm(ctx, list(image))
    if rate >= 1 or residual == 0:
        return None
    return power, image, rate, residual / (point["share"] * (1 - rate))


def stays(ctx, point):
    found = _ball(ctx, point)
    length = norm(ctx, point["z"])
    if found is None or length == 0:
        return None
    power, image, _, room = found
    z = ctx.matrix([point["depth"] * room * v / length for v in point["z"]])
    return norm(ctx, list(power * z + image)), room


def near_by(ctx, point):
    """The fixed point of f, from the linear system, lies within r_k / (1 - q)."""
    found = _ball(ctx, point)
    if found is None:
        return None
    _, image, rate, _ = found
    a = matrix(ctx, point["A"], 2, 2)
    det = (1 - a[0, 0]) * (1 - a[1, 1]) - a[0, 1] * a[1, 0]
    b = point["b"]
    fixed = [((1 - a[1, 1]) * b[0] + a[0, 1] * b[1]) / det, (a[1, 0] * b[0] + (1 - a[0, 0]) * b[1]) / det]
    return norm(ctx, fixed), norm(ctx, list(image)) / (1 - rate)


SPACE = (Reals("A", -4, 4, 4), Reals("b", -1, 1, 2), Reals("k", 1, 4.99), Reals("share", 0.01, 1))
# Its square is 0.4 times the identity; f(f(0)) = A b + b is along (1, 0.1) for this b.
SWAP = {"A": [0.0, 4.0, 0.1, 0.0], "b": [1.0, 0.1], "k": 2.5, "share": 1.0}

THEOREM = Theorem(
    id="B5a",
    title="Contraction after k steps on a ball",
    statement=(
        r"Let $f^k$ be defined and $q$-Lipschitz on the closed ball $B(\hat z, R)$, $q < 1$, and "
        r"$r_k = \|f^k(\hat z) - \hat z\| \le (1 - q) R$. Then $f^k$ maps the ball into itself and has exactly one "
        r"fixed point $z^*$ in it, $\|\hat z - z^*\| \le \frac{r_k}{1 - q}$. If moreover $f$ is $a$-Lipschitz on the "
        r"ball and $\frac{a r_k}{1 - q} + r_1 \le R$ with $r_1 = \|f(\hat z) - \hat z\|$, then $z^*$ is a fixed point "
        r"of $f$ itself, the only one in the ball. Without this last condition it need not be: it may lie on a cycle."
    ),
    plain=(
        "A k-step contraction on a small ball proves a point that returns after k steps. That it is a fixed point of "
        "the loop, and not one of a cycle, takes one more inequality: one step must not leave the ball."
    ),
    symbols=(
        Symbol(q, "Lipschitz constant of the k-th iterate on the ball"),
        Symbol(gap, "1 - q"),
        Symbol(R, "radius of the ball", "radius"),
        Symbol(r_1, "residual |f(z^) - z^|", "residual"),
        Symbol(r_k, "k-step residual |f^k(z^) - z^|"),
        Symbol(a, "one-step Lipschitz constant on the ball"),
        Symbol(e, "|z^ - z*|", "error_bound"),
        Symbol(m, "|f(z*) - f(z^)|"),
        Symbol(away, "|f(z*) - z^|"),
        Symbol(moved, "|f(z*) - z*|"),
        Symbol(moved_k, "|f^k(f(z*)) - f^k(z*)|"),
        Symbol(x, "argument of the example"),
    ),
    hypotheses=(
        Hypothesis("H1", "q < 1, written as gap = 1 - q > 0", gap - (1 - q), "zero"),
        Hypothesis("H2", "f^k is q-Lipschitz on the ball, and r_k <= (1 - q) R (used in F1)"),
        Hypothesis("H3", "f is a-Lipschitz between z* and the centre", a * e - m),
        Hypothesis("H4", "one step from the centre, and on, stays in the ball", R - a * r_k / gap - r_1),
        Hypothesis(
            "H5", "f^k is q-Lipschitz between f(z*) and z*, both in the ball by step 'stays'", q * moved - moved_k
        ),
    ),
    facts=(
        Fact(
            "F1",
            "B3 for f^k on the ball: there is one fixed point z* of f^k in it, and it is near",
            r_k / gap - e,
            "B3",
            axiom=True,
        ),
        Fact("F2", "|f(z*) - z^| <= |f(z*) - f(z^)| + |f(z^) - z^|", m + r_1 - away, "triangle inequality", axiom=True),
        Fact(
            "F3",
            "f and f^k commute: f^k(f(z*)) = f(f^k(z*)) = f(z*)",
            moved - moved_k,
            "composition is associative",
            relation="zero",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "f(z*) is in the ball: it is at most a |z* - z^| + r_1 from the centre, and z* is near the centre.",
            R - away,
            ref("F2") + ref("H3") + a * ref("F1") + ref("H4"),
            label="stays",
        ),
        Nonnegative(
            "f(z*) is fixed by f^k as z* is, and f^k contracts between the two: D <= q D leaves D = 0.",
            -moved,
            (ref("H5") - ref("F3") - moved * ref("H1")) / gap,
            label="fixed by one step",
        ),
        Identity(
            "The condition is needed: f(x) = x^2 - 1 takes two steps at once to x^4 - 2 x^2.", square(square(x)), twice
        ),
        Holds("0 returns after two steps: r_2 = 0,", twice.subs(x, 0), "==", sp.Integer(0)),
        Holds("though one step moves it by 1.", sp.Abs(square(sp.Integer(0))), "==", sp.Integer(1)),
        Sign(
            "On the ball of radius 1/5 two steps contract by 4/5 at least: the slope is below 4/5,",
            sp.Rational(4, 5) - sp.diff(twice, x),
            x,
            -radius,
            radius,
        ),
        Sign("and above -4/5.", sp.Rational(4, 5) + sp.diff(twice, x), x, -radius, radius),
        Sign("But f has no fixed point in the ball.", square(x) - x, x, -radius, radius, sign=-1),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "f^k maps the ball into itself",
            (*SPACE, Reals("z", -1, 1, 2), Reals("depth", 0, 1)),
            stays,
            sharp=True,
            near=({**SWAP, "z": [1.0, 1.0], "depth": 1.0},),
        ),
        Claim("distance <= r_k / (1 - q)", SPACE, near_by, sharp=True, near=(SWAP,)),
    ),
    uses=("B3", "B5"),
    remarks=(
        "A bound on the k-step Jacobian by a product of one-step bounds must cover the images of the ball under f, "
        "..., f^(k-1), which may lie outside it.",
        "The rates of B5 (c) hold for starts in the ball with C a common Lipschitz constant of f^i, i < k, on it.",
    ),
)
