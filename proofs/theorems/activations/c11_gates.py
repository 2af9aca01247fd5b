"""C11: input-dependent gates: the gated product over a ball, and the weights made of two gates."""

import sympy as sp

from proofs import (
    Claim,
    Constant,
    Fact,
    Hypothesis,
    Identity,
    Induction,
    Nonnegative,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import series_product, series_tanh
from proofs.theorems.activations.c10_swiglu_over_ball import NEAR, NEAR_SECOND, SPACE, WIDER, over_ball

al = sp.Symbol("alpha", positive=True)
al2 = sp.Symbol("alpha_2", positive=True)
n = sp.Symbol("n", positive=True, integer=True)
k = sp.Symbol("k", positive=True, integer=True)
j = sp.Symbol("j", nonnegative=True, integer=True)
p = sp.Symbol("p", positive=True)
m = sp.Symbol("m", real=True)
eps = sp.Symbol("epsilon", positive=True)
A = sp.Symbol("A", positive=True)
top = sp.Symbol("A_n", nonnegative=True)
centre = sp.Symbol("c", real=True)
a = sp.Symbol("a", nonnegative=True)
t = sp.Symbol("t", real=True)
t2 = sp.Symbol("t_2", real=True)
T = sp.Symbol("T", nonnegative=True)
s1, s2, s3 = sp.symbols("s_1 s_2 s_3", real=True)
q1, q2, q3 = sp.symbols("q_1 q_2 q_3", real=True)
B1, B2, B3, B12, B112 = sp.symbols("B_1 B_2 B_3 B_12 B_112", real=True)

D = 1 - al * p + eps
r = (1 - al) / D
beta_2 = 1 - al2 * al * p
bend = 1 / (6 * sp.sqrt(3))
mixed = 1 / (25 * sp.sqrt(5))
T_0 = 1 / sp.sqrt(5)

along = s1 * t + s2 * t**2 / 2 + s3 * t**3 / 6
across = q1 * t2 + q2 * t2**2 / 2 + q3 * t2**3 / 6
B = B1 * along + B2 * along**2 / 2 + B3 * along**3 / 6
B_both = B + B12 * along * across + B112 * along**2 * across / 2


def _sigmoid(ctx, at):
    share = [c / 2 for c in series_tanh(ctx, [at / 2, ctx.mpf(1) / 2, ctx.mpf(0), ctx.mpf(0)])]
    share[0] += ctx.mpf(1) / 2
    return share[0], share[1], 2 * share[2], 6 * share[3]


change_of_g, change_of_u, beyond_second_g, beyond_second_u, remainder = over_ball(
    _sigmoid, lambda ctx: (ctx.mpf(1) / 4, 1 / (6 * ctx.sqrt(ctx.mpf(3))), ctx.mpf(1) / 8)
)


def _weights(ctx, point):
    """The polynomial and quotient of the statement, by long-hand products."""
    count, gate, epsilon = 2 * int(point["K"]), point["alpha"], ctx.mpf(1) / 10**5
    below = 1 - gate**count + epsilon
    return count, gate, below, (1 - gate) / below


def fall_of_r(ctx, point):
    count, gate, below, _ = _weights(ctx, point)
    slope = (-below + (1 - gate) * count * gate ** (count - 1)) / below**2
    return abs(slope), 1 / below


def mixed_of_chain(ctx, point):
    first, second = _sigmoid(ctx, point["a"]), _sigmoid(ctx, point["b"])
    left = abs(point["B_112"] * first[1] ** 2 * second[1] + point["B_12"] * first[2] * second[1])
    return left, abs(point["B_112"]) / 64 + abs(point["B_12"]) / (24 * ctx.sqrt(ctx.mpf(3)))


def r_below_one(ctx, point):
    return _weights(ctx, point)[3], ctx.mpf(1)


def fall_of_r_over_ball(ctx, point):
    """The gate anywhere within a of its input at the centre."""
    centre, moved = _sigmoid(ctx, point["input"])[0], _sigmoid(ctx, point["input"] + point["share"] * point["a"])[0]
    top = centre + point["a"] / 4
    if top >= 1:
        return None
    count = 2 * int(point["K"])
    return fall_of_r(ctx, {"K": point["K"], "alpha": moved})[0], 1 / (1 - top**count + ctx.mpf(1) / 10**5)


def mixed_second_of_chain(ctx, point):
    first, second = _sigmoid(ctx, point["a"]), _sigmoid(ctx, point["b"])
    return abs(point["B_12"] * first[1] * second[1]), abs(point["B_12"]) / 16


def first_of_chain(ctx, point):
    return abs(_composed(ctx, point)[1]), abs(point["B_1"]) / 4


def slope_of_beta_1(ctx, point):
    count, gate, below, quotient = _weights(ctx, point)
    other = point["alpha_2"]
    weight = 1 - other * gate**count
    inner = -count * other * gate ** (count - 1)
    slope = (-below + (1 - gate) * count * gate ** (count - 1)) / below**2
    return abs(weight * slope + inner * quotient), weight / below + quotient * abs(inner)


def _composed(ctx, point):
    """Taylor coefficients of B(sigma(a)) for a polynomial B, without the constant."""
    values = _sigmoid(ctx, point["a"])
    inner = [ctx.mpf(0), values[1], values[2] / 2, values[3] / 6]
    square = series_product(ctx, inner, inner)
    cube = series_product(ctx, square, inner)
    return [
        point["B_1"] * x + point["B_2"] * y / 2 + point["B_3"] * z / 6
        for x, y, z in zip(inner, square, cube, strict=True)
    ]


def second_of_chain(ctx, point):
    left = abs(2 * _composed(ctx, point)[2])
    return left, abs(point["B_2"]) / 16 + abs(point["B_1"]) / (6 * ctx.sqrt(ctx.mpf(3)))


def third_of_chain(ctx, point):
    left = abs(6 * _composed(ctx, point)[3])
    right = abs(point["B_3"]) / 64 + 3 * abs(point["B_2"]) / (25 * ctx.sqrt(ctx.mpf(5))) + abs(point["B_1"]) / 8
    return left, right


GATES = (Reals("alpha", 1e-4, 0.9999), Reals("K", 1, 4.999), Reals("alpha_2", 1e-4, 0.9999))
BALL = (Reals("input", -9, 9), Reals("a", 1e-3, 3, log=True), Reals("share", -1, 1), Reals("K", 1, 4.999))
CHAIN = (Reals("a", -8, 8), Reals("B_1", -1, 1), Reals("B_2", -1, 1), Reals("B_3", -1, 1))
MIXED = (Reals("a", -8, 8), Reals("b", -8, 8), Reals("B_12", -1, 1), Reals("B_112", -1, 1))

THEOREM = Theorem(
    id="C11",
    title="Input-dependent gates",
    statement=(
        r"Let $\sigma$ be the sigmoid. (a) A gate $\sigma(a) h$ is a gated product with $K_1 = \frac14$, $K_2 = "
        r"\frac1{6\sqrt3}$, $K_3 = \frac18$ (C6), so all bounds of C10 hold. (b) Let $\alpha, \alpha_2 \in (0, 1)$, "
        r"$n \ge 2$, $\epsilon > 0$, $\beta_2 = 1 - \alpha_2 \alpha^n$, $r = \frac{1 - \alpha}{1 - \alpha^n + "
        r"\epsilon}$ and $\beta_1 = \beta_2 r$. Then $\beta_1, \beta_2, r \in (0, 1)$; $\beta_2$, $r$ and $\beta_1$ "
        r"fall with $\alpha$, $\beta_2$ and $\beta_1$ with $\alpha_2$; $|\partial_\alpha \beta_2| = n \alpha_2 "
        r"\alpha^{n-1}$, $|\partial_{\alpha_2} \beta_2| = \alpha^n$, $|r'| \le \frac{1}{1 - \alpha^n + \epsilon}$, "
        r"$|\partial_\alpha \beta_1| \le \frac{\beta_2}{1 - \alpha^n + \epsilon} + r n \alpha_2 \alpha^{n-1}$ and "
        r"$|\partial_{\alpha_2} \beta_1| = r \alpha^n$. If the gate's input stays within $a$, then $\alpha \le A$ "
        r"with $A = \hat\alpha + \frac a4$, and if $A < 1$, $|r'| \le \frac{1}{1 - A^n + \epsilon}$. (c) If $B$ is a "
        r"function of the gates with partial derivatives $B_1, B_2, B_3$ of order 1 to 3 in one gate, $B_{12}$ in two "
        r"and $B_{112}$ in two with order 2 in the first, then as a function of the gates' inputs its derivatives are "
        r"at most $\frac14 |B_1|$, $\frac1{16} |B_2| + \frac{1}{6\sqrt3} |B_1|$, $\frac{1}{64} |B_3| + "
        r"\frac{3}{25\sqrt5} |B_2| + \frac18 |B_1|$, $\frac1{16} |B_{12}|$ and $\frac1{64} |B_{112}| + "
        r"\frac{1}{24\sqrt3} |B_{12}|$."
    ),
    plain=(
        "What an input-dependent residual scale adds to the change of a block's Jacobian over a ball. The weights "
        "beta_1 and beta_2 are smooth functions of two gates, so it is enough to enclose their derivatives over the "
        "gates' range."
    ),
    symbols=(
        Symbol(al, "the first gate", "alpha_1"),
        Symbol(al2, "the second gate", "alpha_2"),
        Symbol(n, "number of sublayers, 2K"),
        Symbol(k, "an exponent, 1, 2, ..."),
        Symbol(j, "an exponent, 0, 1, ..."),
        Symbol(p, "alpha^j; from H3 on alpha^(n - 1)"),
        Symbol(m, "k (1 - alpha) alpha^(k - 1) - (1 - alpha^k), at k = n from H3 on"),
        Symbol(eps, "the quotient's epsilon"),
        Symbol(A, "upper bound of the gate over the ball"),
        Symbol(top, "A^n"),
        Symbol(centre, "the gate at the centre"),
        Symbol(a, "how far its input moves"),
        Symbol(t, "position along the first gate's input"),
        Symbol(t2, "position along the second gate's input"),
        Symbol(T, "|tanh| of half the gate's input"),
        Symbol(s1, "sigma' at the first gate's input"),
        Symbol(s2, "sigma'' there"),
        Symbol(s3, "sigma''' there"),
        Symbol(q1, "sigma' at the second gate's input"),
        Symbol(q2, "sigma'' there"),
        Symbol(q3, "sigma''' there"),
        Symbol(B1, "first derivative of B in the first gate"),
        Symbol(B2, "second derivative of B in the first gate"),
        Symbol(B3, "third derivative of B in the first gate"),
        Symbol(B12, "mixed second derivative of B"),
        Symbol(B112, "mixed third derivative of B"),
    ),
    hypotheses=(
        Hypothesis("H1", "alpha < 1", 1 - al, "positive"),
        Hypothesis("H2", "alpha_2 < 1", 1 - al2, "positive"),
        Hypothesis(
            "H3",
            "m is the value of step 'mean' at k = n, with p = alpha^(n - 1)",
            m - (n * (1 - al) * p - (1 - al * p)),
            "zero",
        ),
        Hypothesis("H5", "T = |tanh| of half an input, so T^2 < 1", 1 - T**2, "positive"),
        Hypothesis("H4", "A^n < 1, that is A < 1", 1 - top, "positive"),
    ),
    facts=(
        Fact(
            "F1",
            "the gate moves by at most a/4, because sigma' <= 1/4 (C6)",
            centre + a / 4 - al,
            "mean value theorem: Rudin, Principles of Mathematical Analysis (1976), 5.10",
        ),
        Fact(
            "F2", "alpha^n <= A^n, because alpha <= A", top - al * p, "powers increase on positive numbers", axiom=True
        ),
        Fact("S1", "|sigma'| <= 1/4", sp.Rational(1, 4) - abs(s1), "C6", axiom=True),
        Fact("S2", "|sigma''| <= 1/(6 sqrt 3)", bend - abs(s2), "C6", axiom=True),
        Fact("S3", "|sigma'''| <= 1/8", sp.Rational(1, 8) - abs(s3), "C6", axiom=True),
        Fact("S4", "the same at the second gate", sp.Rational(1, 4) - abs(q1), "C6", axiom=True),
        Fact(
            "S5",
            "sigma' sigma'' at one input, in T: sigma' = (1 - T^2)/4 and |sigma''| = T (1 - T^2)/4",
            abs(s1 * s2) - T * (1 - T**2) ** 2 / 16,
            "C6",
            relation="zero",
            axiom=True,
        ),
        Fact(
            "T1",
            "two terms",
            abs(B2 * s1**2) + abs(B1 * s2) - abs(B2 * s1**2 + B1 * s2),
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "T2",
            "three terms",
            abs(B3 * s1**3) + 3 * abs(B2 * s1 * s2) + abs(B1 * s3) - abs(B3 * s1**3 + 3 * B2 * s1 * s2 + B1 * s3),
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "T3",
            "two terms",
            abs(B112 * s1**2 * q1) + abs(B12 * s2 * q1) - abs(B112 * s1**2 * q1 + B12 * s2 * q1),
            "triangle inequality",
            axiom=True,
        ),
    ),
    steps=(
        Induction(
            "Powers of a gate are at most 1.",
            j,
            p,
            al * p,
            sp.Integer(1),
            sp.Integer(1),
            sp.Integer(0),
            al * ref("IH") + ref("H1"),
            label="power",
        ),
        Identity(
            "k (1 - alpha) alpha^(k-1) exceeds 1 - alpha^k by a value m that obeys a recursion;",
            (k + 1) * (1 - al) * al**k - (1 - al ** (k + 1)),
            al * (k * (1 - al) * al ** (k - 1) - (1 - al**k)) - (1 - al) * (1 - al**k),
        ),
        Induction(
            "it begins at 0 and is never positive: the least of the powers 1, ..., alpha^(k-1) is at most their mean.",
            k,
            m,
            al * m - (1 - al) * (1 - p),
            sp.Integer(0),
            sp.Integer(0),
            sp.Integer(0),
            al * ref("IH") + ref("H1") * ref("power"),
            first=1,
            label="mean",
        ),
        Nonnegative(
            "beta_2 is positive,", beta_2, ref("H2") + al2 * (ref("H1") + al * ref("power")), strict=True, label="b2"
        ),
        Nonnegative("and below 1.", 1 - beta_2, al2 * al * p, strict=True),
        Nonnegative(
            "The quotient's denominator is positive,", D, ref("H1") + al * ref("power") + eps, strict=True, label="D"
        ),
        Nonnegative("so r is positive,", r, ref("H1") / ref("D"), strict=True, label="r"),
        Nonnegative(
            "and below 1. Hence beta_1 = beta_2 r lies between 0 and 1 as well.",
            1 - r,
            (al * ref("power") + eps) / ref("D"),
            strict=True,
        ),
        Identity("Slopes of beta_2: in alpha,", sp.diff(1 - al2 * al**n, al), -n * al2 * al ** (n - 1)),
        Identity("and in alpha_2.", sp.diff(1 - al2 * al**n, al2), -(al**n)),
        Identity(
            "Slope of r, by the quotient rule.",
            sp.diff((1 - al) / (1 - al**n + eps), al),
            -1 / (1 - al**n + eps) + (1 - al) * n * al ** (n - 1) / (1 - al**n + eps) ** 2,
        ),
        Nonnegative(
            "It is negative.",
            1 / D - n * (1 - al) * p / D**2,
            (eps + ref("mean") + ref("H3")) / ref("D") ** 2,
            strict=True,
            label="falls",
        ),
        Nonnegative(
            "Its modulus is at most 1 over the denominator.",
            1 / D - (1 / D - n * (1 - al) * p / D**2),
            n * ref("H1") * p / ref("D") ** 2,
            label="r slope",
        ),
        Identity(
            "Slope of beta_1 = beta_2 r in alpha_2: negative,",
            sp.diff((1 - al2 * al**n) * (1 - al) / (1 - al**n + eps), al2),
            -(al**n) * (1 - al) / (1 - al**n + eps),
        ),
        Identity(
            "and in alpha, by the product rule: two negative terms.",
            sp.diff((1 - al2 * al**n) * (1 - al) / (1 - al**n + eps), al),
            (1 - al2 * al**n) * (-1 / (1 - al**n + eps) + (1 - al) * n * al ** (n - 1) / (1 - al**n + eps) ** 2)
            - (1 - al) / (1 - al**n + eps) * n * al2 * al ** (n - 1),
        ),
        Nonnegative(
            "So beta_1 falls with alpha, and minus its slope, beta_2 |r'| + r n alpha_2 alpha^(n-1), is at most this:",
            beta_2 / D + r * n * al2 * p - (beta_2 * (1 / D - n * (1 - al) * p / D**2) + r * n * al2 * p),
            ref("b2") * ref("r slope"),
        ),
        Nonnegative(
            "Over the ball the denominator is at least 1 - A^n + epsilon, where A is the gate at the centre plus a/4.",
            1 / (1 - top + eps) - 1 / D,
            ref("F2") / (ref("D") * (ref("H4") + eps)),
        ),
        Nonnegative("That A bounds the gate.", centre + a / 4 - al, ref("F1")),
        Identity("Chain rule, first derivative in a gate's input.", sp.diff(B, t).subs(t, 0), B1 * s1),
        Identity("Second.", sp.diff(B, t, 2).subs(t, 0), B2 * s1**2 + B1 * s2),
        Identity("Third.", sp.diff(B, t, 3).subs(t, 0), B3 * s1**3 + 3 * B2 * s1 * s2 + B1 * s3),
        Identity("Mixed, second order.", sp.diff(B_both, t, t2).subs({t: 0, t2: 0}), B12 * s1 * q1),
        Identity(
            "Mixed, third order.", sp.diff(B_both, t, 2, t2).subs({t: 0, t2: 0}), B112 * s1**2 * q1 + B12 * s2 * q1
        ),
        Nonnegative(
            "|sigma' sigma''| is greatest at T = 1/sqrt(5): a quintic in T with a double zero there; what remains is "
            "positive for T^2 < 1.",
            mixed - abs(s1 * s2),
            (T - T_0) ** 2 * (6 * T_0 / 5 + 2 * T_0 * ref("H5") + 2 * T / 5 + T * ref("H5")) / 16 - ref("S5"),
            label="product",
        ),
        Nonnegative("So the first derivative is bounded,", abs(B1) / 4 - abs(B1 * s1), abs(B1) * ref("S1")),
        Nonnegative(
            "the second,",
            abs(B2) / 16 + bend * abs(B1) - abs(B2 * s1**2 + B1 * s2),
            ref("T1") + abs(B2) * ref("S1") * (sp.Rational(1, 4) + abs(s1)) + abs(B1) * ref("S2"),
        ),
        Nonnegative(
            "the third,",
            abs(B3) / 64 + 3 * mixed * abs(B2) + abs(B1) / 8 - abs(B3 * s1**3 + 3 * B2 * s1 * s2 + B1 * s3),
            ref("T2")
            + abs(B3) * ref("S1") * (sp.Rational(1, 16) + abs(s1) / 4 + s1**2)
            + 3 * abs(B2) * ref("product")
            + abs(B1) * ref("S3"),
        ),
        Nonnegative(
            "the mixed one of order 2,",
            abs(B12) / 16 - abs(B12 * s1 * q1),
            abs(B12) * (ref("S1") / 4 + abs(s1) * ref("S4")),
        ),
        Nonnegative(
            "and that of order 3.",
            abs(B112) / 64 + bend * abs(B12) / 4 - abs(B112 * s1**2 * q1 + B12 * s2 * q1),
            ref("T3")
            + abs(B112) * (ref("S1") * (sp.Rational(1, 4) + abs(s1)) / 4 + s1**2 * ref("S4"))
            + abs(B12) * (ref("S2") / 4 + abs(s2) * ref("S4")),
        ),
    ),
    source=Source("", derived=True),
    constants=(
        Constant(
            "SIGMOID_SLOPE_SECOND",
            mixed,
            "upper",
            "17888543/1000000000",
            "17888544/1000000000",
            "sup |sigma' sigma''| at one input, of the sigmoid",
        ),
    ),
    claims=(
        Claim("change of the gate's derivative in its input", SPACE, change_of_g, near=(NEAR,)),
        Claim("change of the gate's derivative in h", SPACE, change_of_u, near=(NEAR,)),
        Claim("change in its input beyond second order", WIDER, beyond_second_g, near=(NEAR_SECOND,)),
        Claim("change in h beyond second order", WIDER, beyond_second_u, near=(NEAR_SECOND,)),
        Claim("remainder of the gated product", SPACE, remainder, near=(NEAR,)),
        Claim("|r'| <= 1 / (1 - alpha^n + eps)", GATES[:2], fall_of_r, sharp=True),
        Claim("r <= 1", GATES[:2], r_below_one, sharp=True),
        Claim("|r'| over a ball", BALL, fall_of_r_over_ball, sharp=True),
        Claim("first derivative in a gate's input", CHAIN, first_of_chain, sharp=True),
        Claim("mixed second derivative", MIXED[:3], mixed_second_of_chain, sharp=True),
        Claim("slope of beta_1 in alpha", GATES, slope_of_beta_1, sharp=True),
        Claim("second derivative in a gate's input", CHAIN, second_of_chain, sharp=True),
        Claim("third derivative in a gate's input", CHAIN, third_of_chain, sharp=True),
        Claim(
            "mixed third derivative",
            MIXED,
            mixed_of_chain,
            sharp=True,
            near=({"a": 1.317, "b": 0.0, "B_12": 1.0, "B_112": 0.0},),
        ),
    ),
    code=(
        "fpcheck/certify/nodes.py:nodes_of",
        "fpcheck/check/bends.py:nodes_of",
    ),
    uses=("C6", "C10"),
    remarks=(
        "The slope of r is -1/epsilon at alpha = 1: a gate that may come near 1 makes these bounds useless. The "
        "remedy is A < 1 from the ball, not a global constant.",
        "Scales that do not depend on the input are constants: the block is linear in them and none of this is needed.",
    ),
)
