"""B4: what evaluation errors, such as rounding, cost: a computed residual, and a loop run with them."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Induction,
    Limit,
    Nonnegative,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import matrix, norm, spectral_norm

L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
delta = sp.Symbol("delta", nonnegative=True)
r = sp.Symbol("r", nonnegative=True)
computed = sp.Symbol("rho", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
k = sp.Symbol("k", nonnegative=True, integer=True)
e_0 = sp.Symbol("e_0", nonnegative=True)
e_k = sp.Symbol("e_k", nonnegative=True)
e_next = sp.Symbol("e_next", nonnegative=True)
m_k = sp.Symbol("m_k", nonnegative=True)
Y = sp.Symbol("Y", nonnegative=True)
R = sp.Symbol("R", positive=True)
t = sp.Symbol("t", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
image = sp.Symbol("y", nonnegative=True)
h = sp.Symbol("h", positive=True)
x = sp.Symbol("x", positive=True)

floor = delta / gap


def from_computed_residual(ctx, point):
    """f(z) = A z + b in the plane, evaluated with an error of length share * delta."""
    a, b, z, delta = matrix(ctx, point["A"], 2, 2), point["b"], ctx.matrix(point["z"]), point["delta"]
    rate, length = spectral_norm(ctx, a), norm(ctx, point["w"])
    if rate >= 1 or length == 0:
        return None
    wrong = [point["share"] * delta * v / length for v in point["w"]]
    det = (1 - a[0, 0]) * (1 - a[1, 1]) - a[0, 1] * a[1, 0]
    fixed = [((1 - a[1, 1]) * b[0] + a[0, 1] * b[1]) / det, (a[1, 0] * b[0] + (1 - a[0, 0]) * b[1]) / det]
    residual = norm(ctx, [u + v + w - y for u, v, w, y in zip(a * z, b, wrong, z, strict=True)])
    return norm(ctx, [u - v for u, v in zip(z, fixed, strict=True)]), (residual + delta) / (1 - rate)


def along_the_run(ctx, point):
    """z <- L sin(z) + error: the distance to 0 after as many steps as there are errors."""
    rate, z, delta, steps = point["L"], point["z"], point["delta"], point["w"]
    start = abs(z)
    for w in steps:
        z = rate * ctx.sin(z) + w * delta
    n = len(steps)
    return abs(z), rate**n * start + (1 - rate**n) / (1 - rate) * delta


def in_the_end(ctx, point):
    """z <- L z + error, with an error that repeats over two steps: the farther of the two limits, and the floor."""
    rate, first, second = point["L"], point["w"][0], point["w"][1]
    limits = [(rate * first + second) / (1 - rate**2), (rate * second + first) / (1 - rate**2)]
    return max(abs(v) for v in limits), 1 / (1 - abs(rate))


def in_the_ball(ctx, point):
    """z <- A z + b + error about 0, |b| = Y: the next iterate against the radius Y + kappa R + phi <= R allows."""
    a, radius = matrix(ctx, point["A"], 2, 2), point["R"]
    rate = spectral_norm(ctx, a)
    lengths = [norm(ctx, point[name]) for name in ("b", "z", "w")]
    if rate >= 1 or min(lengths) == 0:
        return None
    room = (1 - rate) * radius
    parts = {"b": point["split"] * room, "z": point["depth"] * radius, "w": (1 - point["split"]) * room}
    b, z, w = ([v / n * parts[name] for v in point[name]] for name, n in zip(parts, lengths, strict=True))
    return norm(ctx, [p + q + s for p, q, s in zip(a * ctx.matrix(z), b, w, strict=True)]), radius


THEOREM = Theorem(
    id="B4",
    title="Evaluation error: computed residuals and running loops",
    statement=(
        r"Let $f$ be $L$-Lipschitz with $L < 1$, $f(z^*) = z^*$, and let every evaluation return $f(z) + w$ with "
        r"$\|w\| \le \delta$. (a) A computed residual $\tilde r$ at $\hat z$ gives "
        r"$\|\hat z - z^*\| \le \frac{\tilde r + \delta}{1 - L}$. (b) A loop run with these evaluations satisfies "
        r"$\|z_k - z^*\| \le L^k \|z_0 - z^*\| + \frac{1 - L^k}{1 - L} \delta$, hence "
        r"$\limsup_k \|z_k - z^*\| \le \frac{\delta}{1 - L}$. (c) If $f$ is $\kappa$-Lipschitz only on the ball of "
        r"radius $R$ about $\hat z$, $\|f(\hat z) - \hat z\| \le Y$ and $Y + \kappa R + \delta \le R$, then no "
        r"computed iterate leaves the ball, and (b) holds in it with $L = \kappa$. (d) No better is possible: for "
        r"every $L$ and $\delta$ there are a map and errors with equality in (a), in (b) for every $k$, and in the "
        r"limit."
    ),
    plain=(
        "Rounding of size delta per step leaves a loop within delta / (1 - L) of its fixed point and no nearer: a slow "
        "loop in low precision never gets close, however small its residual looks. The certified ball survives "
        "rounding if it has that much room."
    ),
    symbols=(
        Symbol(L, "Lipschitz constant of f (kappa on the ball)", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(delta, "bound on the evaluation error", "phi"),
        Symbol(r, "true residual |f(z^) - z^|"),
        Symbol(computed, "computed residual", "residual"),
        Symbol(e, "|z^ - z*|", "error_bound"),
        Symbol(k, "number of steps"),
        Symbol(e_0, "|z_0 - z*|"),
        Symbol(e_k, "|z_k - z*|"),
        Symbol(e_next, "|z_(k+1) - z*|"),
        Symbol(m_k, "|f(z_k) - z*|"),
        Symbol(Y, "bound on the residual at the ball's centre", "residual"),
        Symbol(R, "radius of the ball", "radius"),
        Symbol(t, "distance of an iterate to the centre"),
        Symbol(m, "|f(z) - f(z^)|"),
        Symbol(image, "distance of the next computed iterate to the centre"),
        Symbol(h, "-log L, for L > 0"),
        Symbol(x, "number of steps, as a real"),
    ),
    hypotheses=(
        Hypothesis("H1", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H2", "every evaluation is wrong by at most delta (used in F1, F3 and F4)"),
        Hypothesis("H3", "f is L-Lipschitz between the iterate and z*, which f does not move", L * e_k - m_k),
        Hypothesis("H4", "for (c): f is L-Lipschitz between the iterate and the centre", L * t - m),
        Hypothesis("H5", "for (c): the iterate is in the ball", R - t),
        Hypothesis("H6", "for (c): the ball has room for the errors", R - Y - L * R - delta),
    ),
    facts=(
        Fact(
            "F1",
            "the true residual exceeds the computed one by at most delta",
            computed + delta - r,
            "triangle inequality",
            axiom=True,
        ),
        Fact("F2", "B2 with the true residual", r / gap - e, "B2", axiom=True),
        Fact("F3", "|z_(k+1) - z*| <= |f(z_k) - z*| + delta", m_k + delta - e_next, "triangle inequality", axiom=True),
        Fact(
            "F4",
            "|f(z) + w - z^| <= |f(z) - f(z^)| + |f(z^) - z^| + |w|",
            m + Y + delta - image,
            "triangle inequality",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "(a) The true residual is at most the computed one plus delta; insert that into B2.",
            (computed + delta) / gap - e,
            ref("F2") + ref("F1") / gap,
            label="a",
        ),
        Induction(
            "(b) Each step multiplies the distance by at most L and adds at most delta; the errors add up to a "
            "geometric sum.",
            k,
            e_k,
            e_next,
            bound=L**k * e_0 + (1 - L**k) / gap * delta,
            start=e_0,
            base=sp.Integer(0),
            step=L * ref("IH") + ref("F3") + ref("H3") - floor * ref("H1"),
            label="b",
        ),
        Limit(
            "In the long run only the floor is left (L = e^-h; for L = 0 it is reached after one step).",
            sp.exp(-h * x) * e_0 + (1 - sp.exp(-h * x)) / (1 - sp.exp(-h)) * delta,
            x,
            sp.oo,
            delta / (1 - sp.exp(-h)),
        ),
        Nonnegative(
            "(c) A computed iterate of the ball is followed by another one: kappa R + Y + delta is at most R.",
            R - image,
            ref("F4") + ref("H4") + L * ref("H5") + ref("H6"),
            label="c",
        ),
        Nonnegative(
            "The room asked for is at least the floor: R - Y/(1 - kappa) >= delta/(1 - kappa).",
            R - (Y + delta) / gap,
            (ref("H6") + R * ref("H1")) / gap,
        ),
        Identity(
            "(d) Attained in (b): for f(z) = L z and the constant error delta, z_k = L^k z_0 + delta (1 - L^k)/(1 - "
            "L), since it satisfies the recursion (and gives z_0 at k = 0).",
            L * (L**k * e_0 + floor * (1 - L**k)) + delta,
            L ** (k + 1) * e_0 + floor * (1 - L ** (k + 1)),
            modulo={"H1": floor},
        ),
        Identity(
            "A loop that starts at delta/(1 - L) stays there for ever, though the fixed point is 0.",
            L * floor + delta,
            floor,
            modulo={"H1": floor},
        ),
        Identity(
            "Attained in (a): at that state the computed residual is 0, and the bound is the distance itself.",
            (L * floor + delta - floor + delta) / gap,
            floor,
            modulo={"H1": floor / gap},
        ),
    ),
    source=Source("Ostrowski", 1967, "The round-off stability of iterations; (c) and (d) as stated here derived"),
    claims=(
        Claim(
            "(a) error <= (computed residual + delta) / (1 - L)",
            (
                Reals("A", -1, 1, 4),
                Reals("b", -1, 1, 2),
                Reals("z", -3, 3, 2),
                Reals("w", -1, 1, 2),
                Reals("delta", 1e-3, 1, log=True),
                Reals("share", 0, 1),
            ),
            from_computed_residual,
            sharp=True,
            near=({"A": [0.5, 0, 0, 0.5], "b": [0, 0], "z": [2, 0], "w": [1, 0], "delta": 1.0, "share": 1.0},),
        ),
        Claim(
            "(b) the run of L sin(z) with errors",
            (Reals("L", 0, 0.99), Reals("z", -3, 3), Reals("delta", 1e-3, 1, log=True), Reals("w", -1, 1, 5)),
            along_the_run,
            near=({"L": 0.5, "z": 0.01, "delta": 0.001, "w": [1.0] * 5},),
        ),
        Claim("(b) limsup <= delta / (1 - L)", (Reals("L", -0.99, 0.99), Reals("w", -1, 1, 2)), in_the_end, sharp=True),
        Claim(
            "(c) computed iterates stay in the ball",
            (
                Reals("A", -1, 1, 4),
                Reals("b", -1, 1, 2),
                Reals("z", -1, 1, 2),
                Reals("w", -1, 1, 2),
                Reals("R", 0.01, 10, log=True),
                Reals("split", 0, 1),
                Reals("depth", 0, 1),
            ),
            in_the_ball,
            sharp=True,
            near=(
                {"A": [0.5, 0, 0, 0.5], "b": [1, 0], "z": [1, 0], "w": [1, 0], "R": 1.0, "split": 0.5, "depth": 1.0},
            ),
        ),
    ),
    code=("fpcheck/certify/running.py:running", "fpcheck/spectral/multistart.py:multistart"),
    uses=("B2", "B3"),
    remarks=(
        "In (c) the fixed point exists by B3, since Y <= (1 - kappa) R.",
        "A state whose computed residual is 0 can be delta/(1 - L) away from the fixed point: a zero residual proves "
        "nothing below that.",
        "delta is an absolute bound in the stated norm; for relative rounding it is the largest one over the ball.",
    ),
)
