"""Q4: what follows from a bound on the Jacobian that grows with the radius."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, spectral_norm

Y = sp.Symbol("Y", nonnegative=True)
Z1 = sp.Symbol("Z_1", nonnegative=True)
tau = sp.Symbol("tau", nonnegative=True)
r = sp.Symbol("r", positive=True)
t = sp.Symbol("t", nonnegative=True)
s = sp.Symbol("s", nonnegative=True)
Q_r = sp.Symbol("Q_r", nonnegative=True)
Q_t = sp.Symbol("Q_t", nonnegative=True)
I_r = sp.Symbol("I_r", nonnegative=True)
I_t = sp.Symbol("I_t", nonnegative=True)
kappa = sp.Symbol("kappa", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
image = sp.Symbol("y", nonnegative=True)
moved = sp.Symbol("m", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
eps = sp.Symbol("e_0", nonnegative=True)
apart = sp.Symbol("D", nonnegative=True)
start = sp.Symbol("b_k", nonnegative=True)
later = sp.Symbol("b_next", nonnegative=True)
off = sp.Symbol("d_k", nonnegative=True)
rho = sp.Symbol("rho", nonnegative=True)
J_size = sp.Symbol("J", nonnegative=True)
q = sp.Symbol("q", nonnegative=True)


# Roots are looked for beyond the ball too, or they could not be found outside it.
BEYOND = 1.25


def reach(radius, integral):
    return Y + Z1 * radius + tau * radius**2 / 2 + integral


def _root(ctx, function, high):
    """Where an increasing function of [0, high] changes sign."""
    low = ctx.mpf(0)
    for _ in range(60 if ctx.prec == 53 else 190):
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) > 0 else (middle, high)
    return (low + high) / 2


def _cubic(point):
    """The cubic with the slope kappa(z) = Z1 + tau z + q z^2 and f(0) = 0; Simpson's rule is exact for it."""
    z1, bend, cube = point["Z1"], point["tau"], point["q"]

    def rate(z):
        return z1 + bend * z + cube * z**2

    return (lambda z: z * (rate(z * 0) + 4 * rate(z / 2) + rate(z)) / 6), rate


def simple(ctx, point):
    """Fixed point of the cubic, against Y / (1 - kappa(r))."""
    f, rate = _cubic(point)
    radius = point["r"]
    if rate(BEYOND * radius) >= 1:
        return None
    y = point["share"] * (1 - rate(radius)) * radius
    return _root(ctx, lambda z: z - f(z) - y, BEYOND * radius), y / (1 - rate(radius))


def refined(ctx, point):
    """The same with a Y for which only the refined displacement fits into the ball: against the radius e."""
    f, rate = _cubic(point)
    radius = point["r"]
    if rate(BEYOND * radius) >= 1:
        return None
    moved = point["Z1"] * radius + point["tau"] * radius**2 / 2 + point["q"] * radius**3 / 3
    y = point["share"] * (radius - moved)
    return _root(ctx, lambda z: z - f(z) - y, BEYOND * radius), radius


def displaced(ctx, point):
    """|F(z) - z^| in the plane with F(z) = b + A z + (c_i z_i^2 / 2)_i: Z1 = |A|, tau = max |c_i|, Q = 0."""
    a, c, z = matrix(ctx, point["A"], 2, 2), point["c"], ctx.matrix(point["z"])
    out = ctx.matrix(point["b"]) + a * z + ctx.matrix([c[0] * z[0] ** 2, c[1] * z[1] ** 2]) / 2
    distance = norm(ctx, list(z))
    bound = norm(ctx, point["b"]) + spectral_norm(ctx, a) * distance + max(abs(v) for v in c) * distance**2 / 2
    return norm(ctx, list(out)), bound


def contracts(ctx, point):
    """Two states of the ball in the plane, for the same map."""
    a, c, radius = matrix(ctx, point["A"], 2, 2), point["c"], point["r"]
    ends = []
    for key in ("x", "y"):
        length = max(norm(ctx, point[key]), ctx.mpf(1))
        ends.append([radius * v / length for v in point[key]])
    images = [a * ctx.matrix(z) + ctx.matrix([c[0] * z[0] ** 2, c[1] * z[1] ** 2]) / 2 for z in ends]
    distance = norm(ctx, [u - v for u, v in zip(*ends, strict=True)])
    rate = spectral_norm(ctx, a) + max(abs(v) for v in c) * radius
    return norm(ctx, list(images[0] - images[1])), rate * distance


def basin(ctx, point):
    """A start at r - e_0 from the fixed point of the cubic: every iterate stays within r of the centre."""
    f, rate = _cubic(point)
    radius = point["r"]
    if rate(BEYOND * radius) >= 1:
        return None
    y = point["share"] * (1 - rate(radius)) * radius
    fixed = _root(ctx, lambda z: z - f(z) - y, BEYOND * radius)
    state = fixed + point["side"] * (radius - fixed)
    worst = abs(state)
    for _ in range(4):
        state = y + f(state)
        worst = max(worst, abs(state))
    return worst, radius


CUBIC = (
    Reals("Z1", 0, 0.99),
    Reals("tau", 0, 2),
    Reals("q", 0, 2),
    Reals("r", 0.01, 2, log=True),
    Reals("share", 0.01, 1),
)
PLANE = (Reals("A", -1, 1, 4), Reals("c", -1, 1, 2))
ALIGNED = {"A": [0.5, 0.0, 0.0, 0.5], "c": [0.5, 0.5]}

THEOREM = Theorem(
    id="Q4",
    title="Certified ball from a Jacobian bound that grows with the radius",
    statement=(
        r"Let $\|F(\hat z) - \hat z\| \le Y$ and $\|DF(z)\| \le \kappa(s) = Z_1 + \tau s + Q(s)$ for $\|z - \hat "
        r"z\| \le s \le r$, with $Q \ge 0$ non-decreasing, in any norm. (a) $\kappa$ is non-decreasing. (b) If "
        r"$\kappa = \kappa(r) < 1$ and $Y \le (1 - \kappa) r$, then $F$ maps $B(\hat z, r)$ into itself, has "
        r"exactly one fixed point $z^*$ there, $\|z^* - \hat z\| \le \frac{Y}{1 - \kappa}$, $\|z_k - z^*\| \le "
        r"\kappa^k \|z_0 - z^*\|$ from every start in it, and $\rho(DF(z^*)) \le \kappa$. (c) $\|F(z) - \hat z\| "
        r"\le Y + Z_1 t + \frac{\tau}{2} t^2 + \int_0^t Q(s) \, ds$ for $t = \|z - \hat z\| \le r$; so in (b) the "
        r"weaker condition $Y + Z_1 r + \frac{\tau}{2} r^2 + \int_0^r Q \le r$ with $\kappa(r) < 1$ is enough for "
        r"all but the distance, which is then at most $r$. (d) If (b) or (c) holds at some $e_0 \le r$ and "
        r"$\kappa(r) < 1$, then $z^*$ is the only fixed point in $B(\hat z, r)$, and every start in $B(z^*, r - "
        r"e_0)$ converges to it with the rate $\kappa(r)$ and without leaving $B(\hat z, r)$. The distances and "
        r"the rate can be attained."
    ),
    plain=(
        "The certificate of a computed state: residual, slope at the centre, curvature. A small radius says how near "
        "the fixed point is, a large one how far uniqueness and attraction reach; the largest is found by bisection, "
        "because the bound only grows."
    ),
    symbols=(
        Symbol(Y, "bound on the residual at the centre", "Y"),
        Symbol(Z1, "bound on |DF| at the centre", "Z1"),
        Symbol(tau, "first-order growth of the bound", "tau"),
        Symbol(r, "radius", "radius"),
        Symbol(t, "a distance |z - z^|, at most r"),
        Symbol(s, "position on the segment from z^ to z, 0 to 1"),
        Symbol(Q_r, "Q(r)", "Q"),
        Symbol(Q_t, "Q(t)"),
        Symbol(I_r, "integral of Q from 0 to r"),
        Symbol(I_t, "integral of Q from 0 to t"),
        Symbol(kappa, "kappa(r)", "kappa"),
        Symbol(gap, "1 - kappa(r)"),
        Symbol(image, "|F(z) - z^|"),
        Symbol(moved, "|F(z) - F(z^)|"),
        Symbol(e, "|z* - z^|", "error_bound"),
        Symbol(eps, "radius e_0 at which (b) or (c) holds"),
        Symbol(apart, "distance of two fixed points in the ball"),
        Symbol(start, "|z_k - z*|"),
        Symbol(later, "|z_(k+1) - z*|"),
        Symbol(off, "|z_k - z^|"),
        Symbol(rho, "modulus of an eigenvalue of DF(z*)"),
        Symbol(J_size, "|DF(z*)|"),
        Symbol(q, "coefficient, if Q(s) = q s^2"),
    ),
    hypotheses=(
        Hypothesis("H1", "kappa(r) = Z_1 + tau r + Q(r)", kappa - (Z1 + tau * r + Q_r), "zero"),
        Hypothesis("H2", "kappa(r) < 1, written as gap = 1 - kappa > 0", gap - (1 - kappa), "zero"),
        Hypothesis("H3", "t <= r", r - t),
        Hypothesis("H4", "Q is non-decreasing", Q_r - Q_t),
        Hypothesis("H5", "for (b): Y <= (1 - kappa) r", (1 - kappa) * r - Y),
        Hypothesis("H6", "for (c): the refined displacement fits into the ball", r - reach(r, I_r)),
        Hypothesis("H7", "F is kappa-Lipschitz between two fixed points, which it does not move", (kappa - 1) * apart),
        Hypothesis("H8", "for (d): z_k is in the ball of radius r - e_0 around z*, as z_0 is", r - eps - start),
        Hypothesis("H9", "DF(z*) is bounded as on the whole ball", kappa - J_size),
        Hypothesis(
            "H10", "F is kappa-Lipschitz between z_k and z*, if z_k is within r of the centre", kappa * start - later
        ),
        Hypothesis("H11", "for (d): z* is within e_0 of the centre, by (b) or (c) at that radius", eps - e),
    ),
    facts=(
        Fact(
            "F1",
            "F(z) - F(z^) is the integral of DF along the segment, applied to z - z^: at most the integral of kappa",
            Z1 * t + tau * t**2 / 2 + I_t - moved,
            "mean value inequality, Dieudonne (1960), 8.5.1",
        ),
        Fact("F2", "|F(z) - z^| <= |F(z) - F(z^)| + Y", Y + moved - image, "triangle inequality", axiom=True),
        Fact("F3", "Q is not negative, so its integral grows", I_r - I_t, "monotonicity of the integral", axiom=True),
        Fact("F4", "Q <= Q(r) on [0, r]", Q_r * r - I_r, "monotonicity of the integral", axiom=True),
        Fact("F5", "B3 with L = kappa(r), R = r: the distance", Y / gap - e, "B3", axiom=True),
        Fact("F6", "an eigenvalue's modulus is at most any operator norm", J_size - rho, "definition", axiom=True),
        Fact("F7", "|z_k - z^| <= |z_k - z*| + |z* - z^|", start + e - off, "triangle inequality", axiom=True),
    ),
    steps=(
        Nonnegative(
            "(a) kappa(r) - kappa(t) is not negative: a radius at which kappa < 1 admits every smaller one, and "
            "bisection is sound.",
            kappa - (Z1 + tau * t + Q_t),
            tau * ref("H3") + ref("H4") + ref("H1"),
            label="monotone",
        ),
        Nonnegative(
            "(b) The hypotheses of B3 hold with L = kappa(r): the ball goes into itself, there is one fixed point, and "
            "the rate is kappa.",
            r - (Y + kappa * r),
            ref("H5"),
            label="B3 applies",
        ),
        Nonnegative("Its distance from the centre.", Y / gap - e, ref("F5"), label="distance"),
        Nonnegative(
            "The eigenvalues at the fixed point are at most kappa in modulus.",
            kappa - rho,
            ref("F6") + ref("H9"),
            label="radius",
        ),
        Identity(
            "(c) The first two terms of the bound, integrated along the segment.",
            sp.integrate((Z1 + tau * s * t) * t, (s, 0, 1)),
            Z1 * t + tau * t**2 / 2,
        ),
        Nonnegative(
            "So the image of a state at distance t is at most this far from the centre.",
            reach(t, I_t) - image,
            ref("F1") + ref("F2"),
            label="displacement",
        ),
        Nonnegative(
            "The bound grows with t and at r it is at most r: the ball goes into itself. With kappa(r) < 1 F is a "
            "contraction there.",
            r - image,
            ref("displacement") + Z1 * ref("H3") + tau * (r + t) * ref("H3") / 2 + ref("F3") + ref("H6"),
            label="into itself",
        ),
        Nonnegative(
            "It asks for less than (b): the refined displacement is never more than Y + kappa(r) r.",
            Y + kappa * r - reach(r, I_r),
            tau * r**2 / 2 + ref("F4") + r * ref("H1"),
            label="weaker condition",
        ),
        Identity(
            "For Q(s) = q s^2 the integral is a third of Q(r) r.",
            sp.integrate(q * s**2, (s, 0, r)),
            q * r**2 * r / 3,
        ),
        Nonnegative(
            "(d) Two fixed points in the ball of radius r: D <= kappa D leaves only D = 0; nothing is asked of Y "
            "there.",
            -apart,
            (ref("H7") - apart * ref("H2")) / gap,
            label="unique",
        ),
        Nonnegative(
            "A state within r - e_0 of z* is within r of the centre, where the rate kappa(r) holds ...",
            r - off,
            ref("F7") + ref("H8") + ref("H11"),
            label="basin",
        ),
        Nonnegative(
            "... so the next one is nearer to z*, hence again within r - e_0 of it, and so on.",
            r - eps - later,
            ref("H10") + gap * start - start * ref("H2") + ref("H8"),
            label="stays",
        ),
    ),
    source=Source("", derived=True, place="Banach (1922), Theorem 6, with a bound on the derivative over the ball"),
    claims=(
        Claim(
            "distance <= Y / (1 - kappa(r)) on Y + Z1 z + tau z^2/2 + q z^3/3",
            CUBIC,
            simple,
            sharp=True,
            near=({"Z1": 0.5, "tau": 0.0, "q": 0.0, "r": 1.0, "share": 0.5},),
        ),
        Claim(
            "distance <= r if the refined displacement fits",
            CUBIC,
            refined,
            sharp=True,
            near=({"Z1": 0.2, "tau": 0.3, "q": 0.1, "r": 1.0, "share": 1.0},),
        ),
        Claim(
            "the refined displacement in the plane",
            (*PLANE, Reals("b", -1, 1, 2), Reals("z", -1, 1, 2)),
            displaced,
            sharp=True,
            near=({**ALIGNED, "b": [0.5, 0.0], "z": [0.5, 0.0]},),
        ),
        Claim(
            "F is kappa(r)-Lipschitz on the ball",
            (*PLANE, Reals("r", 0.01, 2, log=True), Reals("x", -1, 1, 2), Reals("y", -1, 1, 2)),
            contracts,
            sharp=True,
            near=({**ALIGNED, "r": 1.0, "x": [1.0, 0.0], "y": [0.999, 0.0]},),
        ),
        Claim(
            "iterates from B(z*, r - e_0) stay in B(z^, r)",
            (*CUBIC, Reals("side", -1, 1)),
            basin,
            sharp=True,
            near=({"Z1": 0.5, "tau": 0.2, "q": 0.1, "r": 1.0, "share": 0.5, "side": 1.0},),
        ),
    ),
    not_checked=(
        NotChecked("a contraction of a closed ball into itself has a fixed point", "Banach (1922), Theorem 6"),
    ),
    code=(
        "fpcheck/certify/search.py:certify",
        "fpcheck/check/full.py:full_lines",
        "fpcheck/check/quick.py:quick_lines",
    ),
    uses=("B3",),
    remarks=(
        "The condition Y <= (1 - kappa(r)) r is not monotone in r: it fails for very small r. Part (d) separates the "
        "two questions: existence and distance at a small radius, uniqueness and attraction at a large one, where only "
        "kappa(r) < 1 is needed.",
        "In the metric |L v| the ball is an ellipsoid; see B10 for the Euclidean ball inside.",
        "Near the largest radius the rate is close to 1; a smaller ball has a better one.",
    ),
)
