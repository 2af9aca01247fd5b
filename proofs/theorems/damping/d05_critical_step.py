"""D5: the damping step at which a multiplier reaches the unit circle."""

import sympy as sp

from proofs import Claim, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref

a = sp.Symbol("a", real=True)
b = sp.Symbol("b", real=True)
s = sp.Symbol("s", positive=True)
q = sp.Symbol("q", positive=True)

modulus_squared = (1 - s * (1 - a)) ** 2 + (s * b) ** 2
critical = 2 * (1 - a) / ((1 - a) ** 2 + b**2)


def below(ctx, point):
    """A step at a share of the critical one: the damped multiplier's modulus is at most 1."""
    re, im, share = point["re"], point["im"], point["share"]
    step = share * 2 * (1 - re) / ((1 - re) ** 2 + im**2)
    return abs(ctx.mpc(1 - step * (1 - re), step * im)), ctx.mpf(1)


def above(ctx, point):
    """Beyond it: at least 1."""
    re, im, excess = point["re"], point["im"], point["excess"]
    step = (1 + excess) * 2 * (1 - re) / ((1 - re) ** 2 + im**2)
    return ctx.mpf(1), abs(ctx.mpc(1 - step * (1 - re), step * im))


THEOREM = Theorem(
    id="D5",
    title="Critical damping step of one multiplier",
    statement=(
        r"Let $\lambda = a + i b$ be an eigenvalue of $J$ with $a < 1$. The damped map $(1-s) z + s f(z)$, $s > 0$, "
        r"has the multiplier $1 - s(1 - \lambda)$, and $|1 - s(1-\lambda)| < 1$ exactly if "
        r"$s < s_c = \frac{2(1 - a)}{|1 - \lambda|^2}$. The modulus is least at $s_c / 2$, where it is "
        r"$|b| / |1 - \lambda|$."
    ),
    plain=(
        "Each eigenvalue left of 1 allows damping steps up to its own critical step; a fixed point is attracting for "
        "the damped loop below the smallest of them. A trained loop with an eigenvalue -0.126 + 1.031i needs s < 0.966."
    ),
    symbols=(
        Symbol(a, "real part of the eigenvalue"),
        Symbol(b, "imaginary part of the eigenvalue"),
        Symbol(s, "damping step", "step"),
        Symbol(q, "|1 - lambda|^2"),
    ),
    hypotheses=(
        Hypothesis("H1", "Re lambda < 1", 1 - a, "positive"),
        Hypothesis("H2", "q = |1 - lambda|^2, which is positive since Re lambda < 1", q - (1 - a) ** 2 - b**2, "zero"),
    ),
    steps=(
        Identity(
            "The modulus of the damped multiplier differs from 1 by s |1 - lambda|^2 times the distance from s_c.",
            1 - modulus_squared,
            s * ((1 - a) ** 2 + b**2) * (critical - s),
            label="difference",
        ),
        Nonnegative("The factor in front is positive, so the sign is that of s_c - s.", s * q, s * q, strict=True),
        Nonnegative("The critical step itself is positive.", 2 * (1 - a) / q, 2 * ref("H1") / q, strict=True),
        Identity(
            "As a parabola in s, the squared modulus is its least value plus a square that vanishes at s_c / 2.",
            modulus_squared,
            b**2 / ((1 - a) ** 2 + b**2) + ((1 - a) ** 2 + b**2) * (s - critical / 2) ** 2,
        ),
        Identity(
            "The figure quoted for lambda = -0.126 + 1.031i.",
            critical.subs({a: sp.Rational(-126, 1000), b: sp.Rational(1031, 1000)}),
            sp.Rational(2252000, 2330837),
        ),
    ),
    source=Source("", derived=True, place="arXiv 2606.18206, damping theorem, gives existence of some step"),
    claims=(
        Claim(
            "modulus <= 1 up to the critical step",
            (Reals("re", -5, 0.99), Reals("im", -5, 5), Reals("share", 0.001, 1)),
            below,
            sharp=True,
        ),
        Claim(
            "modulus >= 1 from the critical step on",
            (Reals("re", -5, 0.99), Reals("im", -5, 5), Reals("excess", 0, 3)),
            above,
            sharp=True,
        ),
    ),
    not_checked=(
        NotChecked(
            "a fixed point whose multipliers all have modulus below 1 attracts a neighbourhood",
            "Ostrowski's theorem, e.g. Ortega and Rheinboldt (1970), 10.1.3",
        ),
    ),
    code=("fpcheck/spectral/damping.py:critical_step", "fpcheck/solve/solvers.py:Damped"),
)
