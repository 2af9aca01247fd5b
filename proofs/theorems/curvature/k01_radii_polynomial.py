"""K1: a fixed point near a computed state from an approximate inverse, whether it attracts or not."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, spectral_norm

Y = sp.Symbol("Y", nonnegative=True)
Z1 = sp.Symbol("Z_1", nonnegative=True)
Z2 = sp.Symbol("Z_2", nonnegative=True)
Z = sp.Symbol("Z", nonnegative=True)
r = sp.Symbol("r", positive=True)
t = sp.Symbol("t", nonnegative=True)
s = sp.Symbol("s", nonnegative=True)
image = sp.Symbol("y", nonnegative=True)
curved = sp.Symbol("c", nonnegative=True)
slope = sp.Symbol("l", nonnegative=True)
x = sp.Symbol("x", nonnegative=True)
kept = sp.Symbol("k", nonnegative=True)
w = sp.Symbol("w", nonnegative=True)
root = sp.Symbol("h", nonnegative=True)
gap = sp.Symbol("g", positive=True)
bend = sp.Symbol("Z_b", positive=True)
near = sp.Symbol("r_1", nonnegative=True)
far = sp.Symbol("r_2", positive=True)
lam = sp.Symbol("lambda", real=True)
b = sp.Symbol("b", real=True)
z = sp.Symbol("z", real=True)
inverse = sp.Symbol("a", real=True)


def polynomial(radius):
    return Y + (Z1 - 1) * radius + Z2 * radius**2 / 2


def _scalar(ctx, point):
    """f(z) = y + a z + c z^2 / 2 about 0, T with the factor A: both fixed points' moduli and the two radii."""
    y, a, c, factor = point["y"], point["a"], point["c"], point["A"]
    first, second = abs(factor * y), abs(1 - factor * (1 - a))
    curvature = abs(factor * c)
    room = (1 - second) ** 2 - 2 * curvature * first
    inside = (1 - a) ** 2 - 2 * c * y
    if second >= 1 or room <= 0 or inside <= 0 or curvature == 0:
        return None
    sign = 1 if a < 1 else -1
    total = (1 - a) + sign * ctx.sqrt(inside)
    radii = 2 * first / (1 - second + ctx.sqrt(room)), (1 - second + ctx.sqrt(room)) / curvature
    return abs(2 * y / total), abs(total / c), *radii


def nearest(ctx, point):
    found = _scalar(ctx, point)
    return None if found is None else (found[0], found[2])


def next_one(ctx, point):
    found = _scalar(ctx, point)
    return None if found is None else (found[3], found[1])


def plane(ctx, point):
    """f(z) = b + J z + (c_i z_i^2 / 2)_i with eigenvalues of any size; its fixed point by Newton's method."""
    j, a = matrix(ctx, point["J"], 2, 2), matrix(ctx, point["A"], 2, 2)
    start, c = ctx.matrix(point["b"]), point["c"]
    first = norm(ctx, list(a * start))
    second = spectral_norm(ctx, ctx.eye(2) - a * (ctx.eye(2) - j))
    curvature = spectral_norm(ctx, a) * max(abs(v) for v in c)
    if second >= 1 or (1 - second) ** 2 - 2 * curvature * first <= ctx.mpf(1) / 100:
        return None
    state = [ctx.mpf(0), ctx.mpf(0)]
    for _ in range(6 if ctx.prec == 53 else 11):
        p, q = state
        rest = [
            p - start[0] - j[0, 0] * p - j[0, 1] * q - c[0] * p * p / 2,
            q - start[1] - j[1, 0] * p - j[1, 1] * q - c[1] * q * q / 2,
        ]
        left, right = 1 - j[0, 0] - c[0] * p, 1 - j[1, 1] - c[1] * q
        det = left * right - j[0, 1] * j[1, 0]
        p -= (right * rest[0] + j[0, 1] * rest[1]) / det
        q -= (left * rest[1] + j[1, 0] * rest[0]) / det
        state = [p, q]
    radius = 2 * first / (1 - second + ctx.sqrt((1 - second) ** 2 - 2 * curvature * first))
    return norm(ctx, state), radius


SCALAR = (Reals("y", -1, 1), Reals("a", -3, 3), Reals("c", -2, 2), Reals("A", -3, 3))

THEOREM = Theorem(
    id="K1",
    title="Radii polynomial: existence and uniqueness without attraction",
    statement=(
        r"Let $f$ be differentiable on $B(\hat z, R) \subset \mathbb{R}^n$ or $\mathbb{C}^n$, $J = Df(\hat z)$, "
        r"$A$ any matrix and $T(z) = z - A(z - f(z))$. Let $\|A(\hat z - f(\hat z))\| \le Y$, $\|I - A(I - J)\| "
        r"\le Z_1$, and let $DT$ have the Lipschitz constant $Z_2$ on the ball. With $p(r) = Y + (Z_1 - 1) r + "
        r"\frac{Z_2}{2} r^2$: (a) if $0 < r \le R$, $p(r) \le 0$ and $p'(r) < 0$, then $A$ is invertible and $f$ "
        r"has exactly one fixed point in $B(\hat z, r)$; (b) every fixed point $z$ of $f$ in $B(\hat z, R)$ has "
        r"$p(\|z - \hat z\|) \ge 0$. So the fixed point lies within $r_1 = \frac{2 Y}{g + \sqrt{g^2 - 2 Z_2 Y}}$ "
        r"of $\hat z$, $g = 1 - Z_1$, and no other one lies nearer than $r_2 = \frac{g + \sqrt{g^2 - 2 Z_2 "
        r"Y}}{Z_2}$ (or $R$, if that is smaller). Both radii are attained. (c) If $\|DT\| \le Z < 1$ on $B(\hat z, "
        r"r)$ and $Y \le (1 - Z) r$, the conclusion of (a) holds too. No eigenvalue of $J$ need be below 1 in "
        r"modulus."
    ),
    plain=(
        "With a rough inverse of I - J, existence and uniqueness of a fixed point can be proved also where the loop "
        "itself stretches, at a repelling or nearly neutral point. It says nothing about whether the loop goes there."
    ),
    symbols=(
        Symbol(Y, "bound on |A (z^ - f(z^))|", "Y"),
        Symbol(Z1, "bound on |I - A (I - J)|", "Z1"),
        Symbol(Z2, "Lipschitz constant of DT on the ball", "Z2"),
        Symbol(Z, "for (c): bound on |DT| over the ball"),
        Symbol(r, "radius", "radius"),
        Symbol(t, "distance |z - z^| of a state of the ball"),
        Symbol(s, "position on the segment from z^ to z, 0 to 1"),
        Symbol(image, "|T(z) - z^|"),
        Symbol(curved, "|T(z) - T(z^) - DT(z^)(z - z^)|"),
        Symbol(slope, "|DT(z)|"),
        Symbol(x, "length of a vector v"),
        Symbol(kept, "|v - A (I - J) v|"),
        Symbol(w, "|A (I - J) v|"),
        Symbol(gap, "1 - Z_1"),
        Symbol(bend, "Z_2, where it is not 0"),
        Symbol(root, "square root of g^2 - 2 Z_2 Y, where that is not negative"),
        Symbol(near, "2 Y / (g + h)"),
        Symbol(far, "(g + h) / Z_2"),
        Symbol(lam, "an eigenvalue, other than 1 and of any size"),
        Symbol(b, "a shift"),
        Symbol(z, "a number"),
        Symbol(inverse, "1 / (1 - lambda)"),
    ),
    hypotheses=(
        Hypothesis("H1", "p(r) <= 0", -polynomial(r)),
        Hypothesis("H2", "p'(r) = Z_1 - 1 + Z_2 r < 0", 1 - Z1 - Z2 * r, "positive"),
        Hypothesis("H3", "z is in the ball of radius r", r - t),
        Hypothesis("H4", "|I - A (I - J)| <= Z_1 on v", Z1 * x - kept),
        Hypothesis("H5", "|DT(z)| <= |DT(z^)| + Z_2 |z - z^|, from H4 and the Lipschitz constant", Z1 + Z2 * t - slope),
        Hypothesis("H6", "for (b): z is a fixed point of f, so T(z) = z and |T(z) - z^| = t", image - t, "zero"),
        Hypothesis("H7", "for the radii: g = 1 - Z_1", gap - (1 - Z1), "zero"),
        Hypothesis("H8", "h^2 = g^2 - 2 Z_2 Y", root**2 - gap**2 + 2 * bend * Y, "zero"),
        Hypothesis("H9", "r_1 = 2 Y / (g + h)", near * (gap + root) - 2 * Y, "zero"),
        Hypothesis("H10", "r_2 = (g + h) / Z_2", far * bend - gap - root, "zero"),
        Hypothesis("H11", "for (c): Y <= (1 - Z) r and Z < 1 (used in B3)", (1 - Z) * r - Y),
        Hypothesis("H12", "for the example: a = 1 / (1 - lambda)", inverse * (1 - lam) - 1, "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "the remainder is at most the integral of Z_2 s t along the segment, times t",
            Z2 * t**2 / 2 - curved,
            "mean value inequality, Dieudonne (1960), 8.5.4 and 8.14.3",
        ),
        Fact(
            "F2",
            "|T(z) - z^| <= |T(z^) - z^| + |DT(z^)(z - z^)| + the remainder",
            Y + Z1 * t + curved - image,
            "triangle inequality, T(z^) - z^ = -A (z^ - f(z^))",
            axiom=True,
        ),
        Fact("F3", "|v| <= |v - A (I - J) v| + |A (I - J) v|", kept + w - x, "triangle inequality", axiom=True),
    ),
    steps=(
        Identity(
            "The remainder's bound: Z_2 times the distance from the centre, integrated along the segment.",
            sp.integrate(Z2 * s * t * t, (s, 0, 1)),
            Z2 * t**2 / 2,
        ),
        Nonnegative(
            "So T sends a state at distance t to distance at most p(t) + t.",
            polynomial(t) + t - image,
            ref("F2") + ref("F1"),
            label="image",
        ),
        Nonnegative(
            "p(t) + t increases with t, and p(r) <= 0: the ball of radius r is mapped into itself.",
            r - image,
            ref("image") + Z1 * ref("H3") + Z2 * (r + t) * ref("H3") / 2 + ref("H1"),
            label="into itself",
        ),
        Nonnegative(
            "There the slope is at most Z_1 + Z_2 r = 1 + p'(r) < 1: T is a contraction, so it has one fixed point.",
            1 - slope,
            ref("H5") + Z2 * ref("H3") + ref("H2"),
            strict=True,
            label="contraction",
        ),
        Nonnegative("In particular Z_1 < 1.", 1 - Z1, ref("H2") + Z2 * r, strict=True, label="Z1"),
        Nonnegative(
            "A (I - J) v = 0 only for v = 0: it is injective, hence (finite dimension) invertible, and so is A. "
            "Then T(z) = z exactly if f(z) = z, and what holds for T holds for f.",
            w - (1 - Z1) * x,
            ref("F3") + ref("H4"),
            label="injective",
        ),
        Nonnegative(
            "(b) For a fixed point at distance t, t = |T(z) - z^| <= p(t) + t.",
            polynomial(t),
            ref("image") + ref("H6"),
            label="fixed points",
        ),
        Identity(
            "p has the slope -h at r_1 ...",
            bend * near - gap,
            -root,
            modulo={"H8": 1 / (gap + root), "H9": bend / (gap + root)},
            label="slope",
        ),
        Identity("... and h at r_2 ...", bend * far - gap, root, modulo={"H10": 1}, label="other slope"),
        Identity(
            "... and these are its roots. Between them p is negative, so by (b) no fixed point lies there; and for "
            "h > 0 the radius r_1 satisfies (a).",
            Y - gap * t + bend * t**2 / 2,
            bend * (t - near) * (t - far) / 2,
            modulo={"H9": -sp.Rational(1, 2), "H10": -near / 2, "slope": t / 2, "other slope": t / 2},
            label="roots",
        ),
        Identity("That is p, with g for 1 - Z_1.", Y - gap * t, Y + (Z1 - 1) * t, modulo={"H7": -t}),
        Nonnegative(
            "(c) The first-order form: with L = Z and residual Y, T satisfies the hypotheses of B3, so it has one "
            "fixed point in the ball. Z bounds |DT(z^)| too, so A is invertible as before.",
            r - (Y + Z * r),
            ref("H11"),
        ),
        Identity(
            "Attained: f(z) = Y + Z_1 z + Z_2 z^2/2 on the line with A = 1 has f(z) - z = p(z): its fixed points are "
            "the two roots.",
            Y + Z1 * z + Z2 * z**2 / 2 - z,
            polynomial(r).subs(r, z),
        ),
        Identity(
            "At a repelling point: for f(z) = lambda z + b and A = 1/(1 - lambda), T is constant, Z_1 = Z_2 = 0, "
            "however large |lambda| is.",
            z - inverse * (z - lam * z - b),
            inverse * b,
            modulo={"H12": -z},
        ),
    ),
    source=Source(
        "Day, Lessard, Mischaikow", 2007, "Validated continuation for equilibria of PDEs; Kantorovich (1948) for (b)"
    ),
    claims=(
        Claim(
            "the nearest fixed point of y + a z + c z^2 / 2 is within r_1",
            SCALAR,
            nearest,
            sharp=True,
            near=({"y": 0.2, "a": 0.3, "c": 0.5, "A": 1.0}, {"y": 0.2, "a": 3.0, "c": 0.5, "A": -0.5}),
        ),
        Claim(
            "the other one is not nearer than r_2",
            SCALAR,
            next_one,
            sharp=True,
            near=({"y": 0.2, "a": 0.3, "c": 0.5, "A": 1.0}, {"y": 0.2, "a": 3.0, "c": 0.5, "A": -0.5}),
        ),
        Claim(
            "the fixed point of a map of the plane is within r_1",
            (Reals("J", -3, 3, 4), Reals("A", -2, 2, 4), Reals("b", -1, 1, 2), Reals("c", -1, 1, 2)),
            plane,
            sharp=True,
            near=({"J": [0.3, 0.0, 0.0, 0.3], "A": [1.0, 0.0, 0.0, 1.0], "b": [0.2, 0.0], "c": [0.5, 0.5]},),
        ),
    ),
    not_checked=(
        NotChecked("a contraction of a closed ball into itself has a fixed point", "Banach (1922), Theorem 6"),
        NotChecked("an injective square matrix is invertible; A is, if A (I - J) is", "Horn and Johnson (2013), 0.5"),
    ),
    code=(
        "fpcheck/certify/search.py:certify",
        "fpcheck/check/full.py:full_lines",
        "fpcheck/check/quick.py:quick_lines",
    ),
    uses=("B3",),
    remarks=(
        "For Z_2 = 0 there is one radius, r_1 = Y / g, and nothing beyond it in the ball.",
        "p(r) <= 0 alone, without p'(r) < 0, leaves out only the double root g^2 = 2 Z_2 Y, where existence holds by "
        "Kantorovich's theorem and the rate is lost.",
        "DT(z) - DT(z^) = A (J(z) - J): a bound on the change of J, in whatever form, serves for T after "
        "multiplication by A.",
        "If only an enclosure of J is known, Z_1 must bound I - A (I - J) for all of it.",
        "It does not say that the loop converges to the fixed point: K3 decides that.",
    ),
)
