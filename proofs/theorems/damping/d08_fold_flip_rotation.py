"""D8: the three ways in which one eigenvalue (or pair) reaches the unit circle, and which of them damping undoes."""

import sympy as sp

from proofs import Claim, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref

s = sp.Symbol("s", positive=True)
theta = sp.Symbol("theta", real=True)
r = sp.Symbol("r", positive=True)
C = sp.Symbol("c", real=True)
lam = sp.Symbol("lambda", real=True)


def squared(modulus, cosine):
    """|1 - s (1 - lambda)|^2 for lambda of that modulus, at an angle with that cosine."""
    return (1 - s * (1 - modulus * cosine)) ** 2 + s**2 * modulus**2 * (1 - cosine**2)


def _damped(ctx, modulus, angle, s):
    lam = modulus * ctx.mpc(ctx.cos(angle), ctx.sin(angle))
    return abs(1 - s * (1 - lam))


def on_circle(ctx, point):
    """|lambda| = 1: at s the modulus squared is 1 - 2 s (1-s) (1 - cos): at most 1 up to s = 1."""
    return _damped(ctx, ctx.mpf(1), point["angle"], point["s"]), ctx.mpf(1)


def half_step(ctx, point):
    """No step does better than 1/2, which gives cos(theta / 2)."""
    angle = point["angle"]
    return abs(ctx.cos(angle / 2)), _damped(ctx, ctx.mpf(1), angle, point["s"])


def flip(ctx, point):
    """Flip beyond the circle: contraction up to 2 / (1 + r)."""
    r = point["r"]
    return abs(1 - point["share"] * 2 / (1 + r) * (1 + r)), ctx.mpf(1)


def rotation(ctx, point):
    r, angle = point["r"], point["angle"]
    if r * ctx.cos(angle) >= 1:
        return None
    s = point["share"] * 2 * (1 - r * ctx.cos(angle)) / (1 - 2 * r * ctx.cos(angle) + r * r)
    return _damped(ctx, r, angle, s), ctx.mpf(1)


def fold(ctx, point):
    """No step at all for a real eigenvalue of 1 or more."""
    return ctx.mpf(1), abs(1 - point["s"] * (1 - point["r"]))


ANGLE = Reals("angle", 0.001, 3.1415)

THEOREM = Theorem(
    id="D8",
    title="Fold, flip, rotation: what damping undoes",
    statement=(
        r"Let an eigenvalue of the Jacobian be $\lambda = r e^{i \theta}$. Flip ($\theta = \pi$, $\lambda = -r$, $r "
        r"\ge 1$): $|1 - s(1-\lambda)| < 1$ exactly for $0 < s < \frac{2}{1+r}$. Neimark-Sacker ($0 < |\theta| < "
        r"\pi$, $r \ge 1$): if $r \cos\theta < 1$, exactly for $0 < s < \frac{2 (1 - r \cos\theta)}{1 - 2 r "
        r"\cos\theta + r^2}$, otherwise for no $s$. At the crossing, $r = 1$, both intervals are $0 < s < 1$, and $s "
        r"= \frac12$ is the best step, with modulus $\cos\frac{\theta}{2}$. Fold ($\lambda = r \ge 1$): for no $s$; "
        r"at the crossing, $\lambda = 1$ stays 1 for every $s$."
    ),
    plain=(
        "Of the three ways to lose stability, damping undoes two: the flip (overshoot, period-2 cycles) and the "
        "Neimark-Sacker rotation, each by any step below 1 at the moment when it happens. It cannot undo a fold. A "
        "slow rotation, theta near 0, gains little: half the step leaves the modulus cos(theta / 2)."
    ),
    symbols=(
        Symbol(s, "damping step", "step"),
        Symbol(theta, "angle of the eigenvalue"),
        Symbol(r, "its modulus"),
        Symbol(C, "cos(theta)"),
        Symbol(lam, "real eigenvalue of a fold"),
    ),
    hypotheses=(
        Hypothesis("H1", "case 1: r cos(theta) < 1", 1 - r * C, "positive"),
        Hypothesis("H2", "cos(theta) <= 1", 1 - C),
        Hypothesis("H3", "cos(theta) >= -1", 1 + C),
        Hypothesis("H4", "fold: lambda >= 1", lam - 1),
        Hypothesis("H5", "case 2: r cos(theta) >= 1", r * C - 1),
    ),
    steps=(
        Identity(
            "Any eigenvalue: the squared modulus by modulus and cosine. This is D5 with a = r c, b^2 = r^2 (1 - c^2).",
            squared(r, C),
            1 - 2 * s * (1 - r * C) + s**2 * (1 - 2 * r * C + r**2),
        ),
        Nonnegative(
            "|1 - lambda|^2 is positive under H1.",
            1 - 2 * r * C + r**2,
            ref("H1") ** 2 + r**2 * ref("H2") * ref("H3"),
            strict=True,
            label="distance",
        ),
        Identity(
            "So it is below 1 exactly for s below the critical step.",
            1 - squared(r, C),
            s * (1 - 2 * r * C + r**2) * (2 * (1 - r * C) / (1 - 2 * r * C + r**2) - s),
        ),
        Identity(
            "At the crossing, r = 1, the critical step is 1 whatever the angle.",
            (2 * (1 - r * C) / (1 - 2 * r * C + r**2)).subs(r, 1),
            sp.Integer(1),
        ),
        Identity(
            "There the squared modulus is 1 - 2 s (1-s) (1 - cos theta).", squared(1, C), 1 - 2 * s * (1 - s) * (1 - C)
        ),
        Identity(
            "Which is (1 + cos theta) / 2 at s = 1/2, plus a square.",
            squared(1, C),
            (1 + C) / 2 + 2 * (1 - C) * (s - sp.Rational(1, 2)) ** 2,
        ),
        Identity("That is the square of cos(theta / 2).", (1 + sp.cos(theta)) / 2, sp.cos(theta / 2) ** 2),
        Identity(
            "The flip: cos theta = -1, critical step 2 / (1 + r).",
            (2 * (1 - r * C) / (1 - 2 * r * C + r**2)).subs(C, -1),
            2 / (1 + r),
        ),
        Nonnegative(
            "A pair with r cos(theta) >= 1 has real part 1 or more: for no s, as in D6.",
            squared(r, C) - 1,
            2 * s * ref("H5") + s**2 * (ref("H5") ** 2 + r**2 * ref("H2") * ref("H3")),
        ),
        Nonnegative("A fold: the multiplier 1 - s (1 - lambda) is at least 1.", 1 - s * (1 - lam) - 1, s * ref("H4")),
        Identity("It stays 1 at the crossing.", (1 - s * (1 - lam)).subs(lam, 1), sp.Integer(1)),
    ),
    source=Source("", derived=True, place="from D5 and D6"),
    claims=(
        Claim("on the circle every step up to 1 helps", (ANGLE, Reals("s", 0.001, 1)), on_circle, sharp=True),
        Claim("and none more than one half", (ANGLE, Reals("s", 0.001, 1.5)), half_step, sharp=True),
        Claim(
            "flip", (Reals("r", 1, 20), Reals("share", 0.001, 1)), flip, sharp=True, near=({"r": 2.0, "share": 1.0},)
        ),
        Claim("rotation", (Reals("r", 1, 20), ANGLE, Reals("share", 0.001, 1)), rotation, sharp=True),
        Claim("fold", (Reals("r", 1, 20), Reals("s", 0.001, 20, log=True)), fold, sharp=True),
    ),
    not_checked=(
        NotChecked(
            "what the loop does at the crossing: two fixed points merge (fold), a cycle of period 2 (flip) or a "
            "closed curve (Neimark-Sacker) branches off",
            "Kuznetsov (2004), Elements of Applied Bifurcation Theory, chapter 4",
        ),
    ),
    code=("fpcheck/spectral/regime.py:Regime",),
    uses=("D5", "D6"),
    remarks=(
        "Undone is the instability, for one eigenvalue or pair. A step must suit all eigenvalues: the smallest "
        "critical step counts.",
        "Beyond the crossing a slow rotation, r cos(theta) >= 1, joins the folds: damping must come before the pair "
        "passes real part 1.",
    ),
)
