"""B3: a fixed point near a computed state, from a Lipschitz constant that holds near it only."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, spectral_norm

L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
R = sp.Symbol("R", positive=True)
r = sp.Symbol("r", nonnegative=True)
t = sp.Symbol("t", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
image = sp.Symbol("y", nonnegative=True)
apart = sp.Symbol("D", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
u = sp.Symbol("u", positive=True)
kappa = sp.Symbol("kappa", nonnegative=True)
w_1 = sp.Symbol("w_1", nonnegative=True)
w_2 = sp.Symbol("w_2", nonnegative=True)


def stays(ctx, point):
    """f(z) = A z + b about z^ = 0: the image of a point of the ball, against R."""
    a, radius = matrix(ctx, point["A"], 2, 2), point["R"]
    rate = spectral_norm(ctx, a)
    size, length = norm(ctx, point["b"]), norm(ctx, point["z"])
    if rate >= 1 or size == 0 or length == 0:
        return None
    b = [v / size * point["share"] * (1 - rate) * radius for v in point["b"]]
    z = ctx.matrix([v / length * point["depth"] * radius for v in point["z"]])
    return norm(ctx, [u + v for u, v in zip(a * z, b, strict=True)]), radius


def near_by(ctx, point):
    """f(z) = c z^2 + b has slope 2 c R at the ball's edge, and no Lipschitz constant on the line."""
    c, radius = point["c"], point["R"]
    rate = 2 * c * radius
    if rate >= 1:
        return None
    b = point["share"] * (1 - rate) * radius
    return 2 * b / (1 + ctx.sqrt(1 - 4 * c * b)), b / (1 - rate)


def near_by_plane(ctx, point):
    """f(z) = A z + b in the plane: |z*| against |b| / (1 - L)."""
    a = matrix(ctx, point["A"], 2, 2)
    rate = spectral_norm(ctx, a)
    if rate >= 1:
        return None
    det = (1 - a[0, 0]) * (1 - a[1, 1]) - a[0, 1] * a[1, 0]
    b = point["b"]
    fixed = [((1 - a[1, 1]) * b[0] + a[0, 1] * b[1]) / det, (a[1, 0] * b[0] + (1 - a[0, 0]) * b[1]) / det]
    return norm(ctx, fixed), norm(ctx, b) / (1 - rate)


THEOREM = Theorem(
    id="B3",
    title="Local ball: existence, uniqueness and distance from one state",
    statement=(
        r"Let $f$ be $L$-Lipschitz on the closed ball $B(\hat z, R)$ with $L < 1$, and let the residual "
        r"$r = \|f(\hat z) - \hat z\|$ satisfy $r \le (1 - L) R$. Then $f$ maps the ball into itself, has exactly one "
        r"fixed point $z^*$ in it, $\|\hat z - z^*\| \le \frac{r}{1 - L}$, and $\|z_k - z^*\| \le L^k \|z_0 - z^*\|$ "
        r"from every start in it. If $\|J(z)\| \le \kappa$ on the ball, then $L = \kappa$ will do. Neither $r \le (1 "
        r"- L) R$ nor the distance can be improved."
    ),
    plain=(
        "A bound on the Jacobian over a small ball and a residual small against the ball's radius prove that there is "
        "a fixed point, the only one there, and how near. Nothing is assumed outside the ball: this is what a "
        "certificate of a computed state checks."
    ),
    symbols=(
        Symbol(L, "Lipschitz constant of f on the ball", "kappa"),
        Symbol(gap, "1 - L"),
        Symbol(R, "radius of the ball", "radius"),
        Symbol(r, "residual at the centre", "residual"),
        Symbol(t, "distance |z - z^| of a point of the ball to the centre"),
        Symbol(m, "|f(z) - f(z^)|"),
        Symbol(image, "|f(z) - z^|"),
        Symbol(apart, "distance of two fixed points in the ball"),
        Symbol(e, "|z^ - z*|", "error_bound"),
        Symbol(u, "excess of a residual over (1 - L) R"),
        Symbol(kappa, "bound on |J| over the ball"),
        Symbol(w_1, "distance of two points of the ball"),
        Symbol(w_2, "distance of their images"),
    ),
    hypotheses=(
        Hypothesis("H1", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H2", "f is L-Lipschitz between z and the centre", L * t - m),
        Hypothesis("H3", "z is in the ball", R - t),
        Hypothesis("H4", "the residual is small enough", (1 - L) * R - r),
        Hypothesis(
            "H5", "f is L-Lipschitz between two fixed points of the ball, which it does not move", (L - 1) * apart
        ),
        Hypothesis("H6", "for the last part: |J(z)| <= kappa on the ball, and kappa <= L", L - kappa),
    ),
    facts=(
        Fact("F1", "|f(z) - z^| <= |f(z) - f(z^)| + |f(z^) - z^|", m + r - image, "triangle inequality", axiom=True),
        Fact("F2", "B2 at the centre, f being L-Lipschitz between it and z*", r / gap - e, "B2", axiom=True),
        Fact(
            "F3",
            "the segment between two points of a ball lies in it, so their images are at most kappa times as far apart",
            kappa * w_1 - w_2,
            "mean value inequality, Dieudonne (1960), 8.5.4",
        ),
    ),
    steps=(
        Nonnegative(
            "A point of the ball is sent to at most L R + r from the centre, and that is at most R.",
            R - image,
            ref("F1") + ref("H2") + L * ref("H3") + ref("H4"),
            label="into itself",
        ),
        Nonnegative(
            "Two fixed points D apart: D <= L D leaves only D <= 0, so they are the same.",
            -apart,
            (ref("H5") - apart * ref("H1")) / gap,
            label="unique",
        ),
        Nonnegative("The centre is within r / (1 - L) of the fixed point.", r / gap - e, ref("F2"), label="distance"),
        Nonnegative(
            "That distance is at most R: the smaller ball of radius r / (1 - L) satisfies the hypotheses as well.",
            R - r / gap,
            (ref("H4") + R * ref("H1")) / gap,
            label="smaller ball",
        ),
        Nonnegative(
            "A Jacobian bound on the ball is a Lipschitz constant there, because balls are convex.",
            L * w_1 - w_2,
            ref("F3") + w_1 * ref("H6"),
        ),
        Identity(
            "Sharp: f(z) = L z + r on the line about 0 has residual r and its fixed point exactly r / (1 - L) away.",
            L * (r / gap) + r,
            r / gap,
            modulo={"H1": r / gap},
        ),
        Identity(
            "With r = (1 - L) R + u, u > 0, that fixed point is u / (1 - L) outside the ball: the condition is needed.",
            ((1 - L) * R + u) / gap - R,
            u / gap,
            modulo={"H1": -R / gap},
        ),
    ),
    source=Source("Banach", 1922, "Theorem 6, applied to a ball that f maps into itself"),
    claims=(
        Claim(
            "the ball is mapped into itself",
            (
                Reals("A", -1, 1, 4),
                Reals("b", -1, 1, 2),
                Reals("z", -1, 1, 2),
                Reals("R", 0.01, 10, log=True),
                Reals("share", 0, 1),
                Reals("depth", 0, 1),
            ),
            stays,
            sharp=True,
            near=({"A": [0.5, 0, 0, 0.5], "b": [1, 0], "z": [1, 0], "R": 1.0, "share": 1.0, "depth": 1.0},),
        ),
        Claim(
            "distance <= r / (1 - L), affine maps of the plane",
            (Reals("A", -1, 1, 4), Reals("b", -1, 1, 2)),
            near_by_plane,
            sharp=True,
            near=({"A": [0.5, 0, 0, 0.5], "b": [1, 0]},),
        ),
        Claim(
            "distance <= r / (1 - L) for c z^2 + b, Lipschitz near 0 only",
            (Reals("c", 1e-4, 3, log=True), Reals("R", 0.01, 3, log=True), Reals("share", 0.001, 1)),
            near_by,
        ),
    ),
    not_checked=(
        NotChecked(
            "a contraction of a closed ball of a complete space into itself has a fixed point",
            "Banach (1922), Theorem 6",
        ),
    ),
    uses=("B1", "B2"),
    remarks=(
        "Uniqueness is within the ball only: other fixed points may lie outside it.",
        "In a weighted norm the ball is an ellipsoid; the Euclidean ball inside it is smaller by the condition number "
        "(B10).",
        "The decay from every start of the ball is B1 on the ball.",
    ),
)
