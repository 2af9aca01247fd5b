"""N6: where the local Lipschitz constant of a normalised sublayer comes from."""

import sympy as sp

from proofs import Claim, Enclosed, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm, spectral_norm

d = sp.Symbol("d", positive=True, integer=True)
eps = sp.Symbol("epsilon", positive=True)
R = sp.Symbol("R", nonnegative=True)
M = sp.Symbol("M", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
low = sp.Symbol("f", nonnegative=True)
q_hat = sp.Symbol("Q", positive=True)
q = sp.Symbol("q", positive=True)
q_min = sp.Symbol("q_min", positive=True)
q_simple = sp.Symbol("Q_R", positive=True)
lam = sp.Symbol("lambda", nonnegative=True)
move_in = sp.Symbol("e_0", nonnegative=True)
move_mid = sp.Symbol("e_1", nonnegative=True)
move_out = sp.Symbol("e_2", nonnegative=True)


def _q(ctx, z, eps):
    return ctx.sqrt(sum((v * v for v in z), ctx.mpf(0)) / len(z) + eps)


def _inside(ctx, centre, direction, radius):
    """A point of the ball: the direction is cut at length 1."""
    length = max(norm(ctx, direction), ctx.mpf(1))
    return [c + radius * v / length for c, v in zip(centre, direction, strict=True)]


def _q_min(ctx, point):
    z, radius = point["z"], point["R"]
    shortest = max(norm(ctx, z) - radius, ctx.mpf(0))
    return ctx.sqrt(shortest**2 / len(z) + point["eps"])


def smallest_root(ctx, point):
    return _q_min(ctx, point), _q(ctx, _inside(ctx, point["z"], point["y"], point["R"]), point["eps"])


def simple_root(ctx, point):
    z = point["z"]
    return _q(ctx, z, point["eps"]) - point["R"] / ctx.sqrt(ctx.mpf(len(z))), _q_min(ctx, point)


def sublayer(ctx, point):
    """g(u) = W u: two states of the ball, and |W| / q_min times their distance."""
    w = matrix(ctx, point["W"], 2, 2)
    ends = [_inside(ctx, point["z"], point[k], point["R"]) for k in ("y", "x")]
    images = []
    for end in ends:
        root = _q(ctx, end, point["eps"])
        unit = [v / root for v in end]
        images.append([w[i, 0] * unit[0] + w[i, 1] * unit[1] for i in range(2)])
    moved = norm(ctx, [a - b for a, b in zip(*images, strict=True)])
    distance = norm(ctx, [a - b for a, b in zip(*ends, strict=True)])
    return (moved, spectral_norm(ctx, w) / _q_min(ctx, point) * distance) if distance > 0 else None


SPACE = (
    Reals("z", -2, 2, 2),
    Reals("R", 1e-3, 3, log=True),
    Reals("y", -1, 1, 2),
    Reals("eps", 1e-6, 1, log=True),
)
NEAR = {"z": [1.0, 0.0], "R": 0.5, "y": [-1.0, 0.001], "eps": 1e-5}

THEOREM = Theorem(
    id="N6",
    title="Local Lipschitz constant of a normalised sublayer",
    statement=(
        r"Let $B$ be the ball of radius $R$ around a token $\hat z \in \mathbb{R}^d$ and $N$ RMSNorm. The least value "
        r"of $q$ on $B$ is $q_{\min} = \sqrt{\max(|\hat z| - R, 0)^2 / d + \epsilon} \ge q(\hat z) - \frac{R}{\sqrt "
        r"d}$. If $g$ is $\lambda$-Lipschitz on the ball of radius $\sqrt d$, then $g \circ N$ has on $B$ the "
        r"Lipschitz constant $l \le \frac{\lambda}{q_{\min}}$, which is at most $\frac{\lambda}{q(\hat z) - R/\sqrt "
        r"d}$ where the denominator is positive."
    ),
    plain=(
        "A sublayer behind a norm stretches by its own constant divided by the smallest root mean square that a token "
        "of the ball can have. Without a ball that is sqrt(eps), a factor of 316 for eps = 1e-5; near a state of "
        "ordinary size it is about 1."
    ),
    symbols=(
        Symbol(d, "width (channels of a token)"),
        Symbol(eps, "the norm's epsilon", "eps"),
        Symbol(R, "radius of the ball around the centre"),
        Symbol(M, "|z| at the centre"),
        Symbol(m, "|z| at a state of the ball"),
        Symbol(low, "max(M - R, 0)"),
        Symbol(q_hat, "q at the centre"),
        Symbol(q, "q at the state of the ball"),
        Symbol(q_min, "root of f^2 / d + epsilon"),
        Symbol(q_simple, "q at the centre less R / sqrt(d)"),
        Symbol(lam, "Lipschitz constant of g on the range of the norm"),
        Symbol(move_in, "distance of two states of the ball"),
        Symbol(move_mid, "distance of their normalisations"),
        Symbol(move_out, "distance of what g makes of those"),
    ),
    hypotheses=(
        Hypothesis("H1", "q^2 = |z|^2 / d + epsilon at the state", d * q**2 - m**2 - d * eps, "zero"),
        Hypothesis("H2", "the same at the centre", d * q_hat**2 - M**2 - d * eps, "zero"),
        Hypothesis("H3", "q_min^2 = f^2 / d + epsilon", d * q_min**2 - low**2 - d * eps, "zero"),
        Hypothesis("H4", "f = max(M - R, 0) is at least M - R", low - M + R),
        Hypothesis("H5", "and at most M", M - low),
        Hypothesis(
            "H6", "for the simple form: Q_R = Q - R / sqrt(d) is positive", q_simple - q_hat + R / sp.sqrt(d), "zero"
        ),
        Hypothesis(
            "H7", "g is lambda-Lipschitz on the range of the norm, |N| < sqrt(d) (N1)", lam * move_mid - move_out
        ),
    ),
    facts=(
        Fact("F1", "|z| >= M - R and |z| >= 0, so |z| >= f", m - low, "triangle inequality", axiom=True),
        Fact(
            "F2",
            "|N(x) - N(y)| <= |x - y| / q_min on the ball, which is convex",
            move_in / q_min - move_mid,
            "N1",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "The root increases with the token's length: q_min is a lower bound on the ball.",
            q - q_min,
            ((m + low) * ref("F1") + ref("H1") - ref("H3")) / (d * (q + q_min)),
        ),
        Identity(
            "It is attained: on the segment from the centre towards 0 there is a state of length f, if f > 0 at "
            "distance R.",
            (d * q**2 - d * q_min**2).subs({q: sp.sqrt(low**2 / d + eps)}),
            sp.Integer(0),
            modulo={"H3": -1},
        ),
        Nonnegative(
            "The centre's length over sqrt(d) is below Q ...",
            q_hat - M / sp.sqrt(d),
            (d * eps + ref("H2")) / (d * (q_hat + M / sp.sqrt(d))),
            label="centre",
        ),
        Nonnegative(
            "... and f over sqrt(d) below q_min.",
            q_min - low / sp.sqrt(d),
            (d * eps + ref("H3")) / (d * (q_min + low / sp.sqrt(d))),
            label="least",
        ),
        Nonnegative(
            "So Q - q_min = (M - f)(M + f) / (d (Q + q_min)) is at most (M - f) / sqrt(d), which is at most R / "
            "sqrt(d).",
            q_min - (q_hat - R / sp.sqrt(d)),
            ref("H4") / sp.sqrt(d)
            + ref("H5") * (ref("centre") + ref("least")) / (sp.sqrt(d) * (q_hat + q_min))
            - (ref("H2") - ref("H3")) / (d * (q_hat + q_min)),
            label="simple",
        ),
        Nonnegative(
            "First the norm, then g: the two constants multiply.",
            lam / q_min * move_in - move_out,
            lam * ref("F2") + ref("H7"),
        ),
        Nonnegative(
            "The simple form is larger.",
            lam / q_simple - lam / q_min,
            lam * (ref("simple") - ref("H6")) / (q_min * q_simple),
        ),
        Enclosed(
            "Without a lower bound on the state q_min is sqrt(epsilon): the factor for eps = 1e-5,",
            1 / sp.sqrt(sp.Rational(1, 10**5)),
            "316",
            "317",
        ),
        Enclosed("and for eps = 1e-6.", 1 / sp.sqrt(sp.Rational(1, 10**6)), "999", "1001"),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("q_min <= q on the ball", SPACE, smallest_root, sharp=True, near=({**NEAR, "y": [-1.0, 0.0]},)),
        Claim("q at the centre - R / sqrt(d) <= q_min", SPACE, simple_root, sharp=True),
        Claim(
            "Lipschitz with |W| / q_min on the ball",
            (*SPACE, Reals("x", -1, 1, 2), Reals("W", -2, 2, 4)),
            sublayer,
            sharp=True,
            near=({**NEAR, "y": [-1.0, 0.01], "x": [-1.0, -0.01], "W": [1.0, 0.0, 0.0, 1.0]},),
        ),
    ),
    uses=("N1",),
    remarks=(
        "A state of several tokens moves each of them by at most its own distance: the smallest q_min over tokens "
        "serves.",
        "The first form needs no R < sqrt(d) q; it goes over into 1 / sqrt(eps) where the ball reaches 0.",
        "Within the ball g need only be Lipschitz on the part of the range that the ball reaches.",
    ),
)
