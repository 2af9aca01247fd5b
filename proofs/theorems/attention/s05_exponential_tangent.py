"""S5: the exponential above its tangent, and by how much at most."""

import sympy as sp

from proofs import Claim, Extremum, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref

x = sp.Symbol("x", real=True)
y = sp.Symbol("y", positive=True)
z = sp.Symbol("z", nonnegative=True)


def tangent(ctx, point):
    return 1 + point["x"], ctx.exp(point["x"])


def excess(ctx, point):
    """The bound is the one for any a >= |x|."""
    x, more = point["x"], point["more"]
    a = abs(x) + more
    return ctx.expm1(x) - x, ctx.expm1(a) - a


def drop(ctx, point):
    a = abs(point["x"]) + point["more"]
    return abs(ctx.expm1(point["x"])), ctx.expm1(a)


THEOREM = Theorem(
    id="S5",
    title="The exponential and its tangent",
    statement=(
        r"For real $x$ and every $a \ge |x|$: $1 + x \le e^x \le 1 + x + (e^a - 1 - a)$ and $e^{-a} \le e^x \le e^a$. "
        r"Equality on the left at $x = 0$, on the right at $x = a$."
    ),
    plain=(
        "The two sides between which a softmax weight moves: the exponential is at least its tangent, and exceeds it "
        "by no more than at the far end of the range."
    ),
    symbols=(
        Symbol(x, "any real number"),
        Symbol(y, "|x|, if x is not 0"),
        Symbol(z, "a - |x|"),
    ),
    hypotheses=(Hypothesis("H1", "a = |x| + z is at least |x|", z),),
    facts=(
        Fact("F1", "step 1 at z", sp.exp(z) - 1 - z, "step 1", axiom=True),
        Fact("F2", "step 1 at y = |x|", sp.exp(y) - 1 - y, "step 1", axiom=True),
    ),
    steps=(
        Extremum(
            "The exponential less its tangent falls before 0 and rises after it, so it is never below 0.",
            f=sp.exp(x) - 1 - x,
            var=x,
            lo=-sp.oo,
            hi=sp.oo,
            at=sp.Integer(0),
            value=sp.Integer(0),
            factor=sp.Integer(1),
            switch=sp.exp(x) - 1,
            slope=sp.exp(x),
            kind="minimum",
        ),
        Identity(
            "The excess over the tangent at y and at -y differ by twice sinh y - y.",
            (sp.exp(y) - 1 - y) - (sp.exp(-y) - 1 + y),
            2 * (sp.sinh(y) - y),
        ),
        Extremum(
            "That is never negative for y >= 0, so the excess at x is at most that at |x|.",
            f=sp.sinh(y) - y,
            var=y,
            lo=0,
            hi=sp.oo,
            at=sp.Integer(0),
            value=sp.Integer(0),
            factor=sp.Integer(1),
            switch=sp.cosh(y) - 1,
            slope=sp.sinh(y),
            kind="minimum",
        ),
        Nonnegative(
            "And from |x| = y to a = y + z it does not fall.",
            (sp.exp(y + z) - 1 - (y + z)) - (sp.exp(y) - 1 - y),
            sp.exp(y) * ref("F1") + (ref("F2") + y) * z,
            label="excess",
        ),
        Nonnegative(
            "The exponential itself rises: e^a >= e^|x|, hence e^x lies between e^-a and e^a.",
            sp.exp(y + z) - sp.exp(y),
            sp.exp(y) * (ref("F1") + z),
            label="rise",
        ),
    ),
    source=Source("", derived=True, place="elementary"),
    claims=(
        Claim("1 + x <= e^x", (Reals("x", -5, 5),), tangent, sharp=True),
        Claim("e^x - 1 - x <= e^a - 1 - a", (Reals("x", -5, 5), Reals("more", 0, 2)), excess, sharp=True),
        Claim("|e^x - 1| <= e^a - 1", (Reals("x", -5, 5), Reals("more", 0, 2)), drop, sharp=True),
    ),
)
