"""N4: the second and third derivative of RMSNorm."""

import sympy as sp

from proofs import Claim, Constant, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import norm

d = sp.Symbol("d", positive=True, integer=True)
eps = sp.Symbol("epsilon", positive=True)
q = sp.Symbol("q", positive=True)
n = sp.Symbol("n", nonnegative=True)
t = sp.Symbol("t", real=True)
u = sp.Symbol("u", real=True)
x_i = sp.Symbol("x_i", real=True)
a_i = sp.Symbol("a_i", real=True)
b_i = sp.Symbol("b_i", real=True)
p_a = sp.Symbol("p_a", real=True)
p_b = sp.Symbol("p_b", real=True)
n_a = sp.Symbol("n_a", nonnegative=True)
n_b = sp.Symbol("n_b", nonnegative=True)
g_ab = sp.Symbol("g_ab", real=True)
A = sp.Symbol("A", nonnegative=True)
B = sp.Symbol("B", nonnegative=True)
gamma = sp.Symbol("gamma", real=True)
K = sp.Symbol("K", nonnegative=True)

# q(x + t a + u b), from the inner products of x, a and b alone.
moved = sp.sqrt((n + 2 * t * p_a + 2 * u * p_b + t**2 * n_a + u**2 * n_b + 2 * t * u * g_ab) / d + eps)
still = sp.sqrt(n / d + eps)
second_i = -(p_a * b_i + p_b * a_i + g_ab * x_i) / (d * q**3) + 3 * p_a * p_b * x_i / (d**2 * q**5)
# D2 phi[a, a] = along_a a + along_x x.
along_a = -2 * p_a / (d * q**3)
along_x = -n_a / (d * q**3) + 3 * p_a**2 / (d**2 * q**5)
fourth = (
    -(n_a * n_b + 2 * g_ab**2) / (d * q**3)
    + 3 * (p_a**2 * n_b + p_b**2 * n_a + 4 * p_a * p_b * g_ab) / (d**2 * q**5)
    - 15 * p_a**2 * p_b**2 / (d**3 * q**7)
)
# The same for unit vectors, times d q^3, with A = a.x / (sqrt(d) q) and B likewise.
unit = -(1 + 2 * gamma**2) + 3 * (A**2 + B**2 + 4 * A * B * gamma) - 15 * A**2 * B**2
# Inner products of y = x / (sqrt(d) q) and the unit vectors, and the squared length of a combination of the three.
y2 = n / (d * q**2)
gram = sp.Matrix([[y2, A, B], [A, 1, gamma], [B, gamma, 1]])
weights = sp.Matrix([1 - gamma**2, -(A - gamma * B), -(B - gamma * A)])
combined = (weights.T * gram * weights)[0]


def taylor(ctx, x, a, eps, order):
    """The order-th derivative of N at x along a: the Taylor coefficients of t -> N(x + t a), times order!."""
    d = len(x)
    mean = [
        sum((v * w for v, w in zip(left, right, strict=True)), ctx.mpf(0)) / d
        for left, right in ((x, x), (x, a), (a, a))
    ]
    square = [mean[0] + eps, 2 * mean[1], mean[2]]
    # h = square^(-1/2) solves 2 square h' + square' h = 0.
    h = [1 / ctx.sqrt(square[0])]
    for k in range(order):
        total = square[1] * (2 * k + 1) * h[k]
        if k > 0:
            total += square[2] * 2 * k * h[k - 1]
        h.append(-total / (2 * square[0] * (k + 1)))
    factorial = ctx.mpf(1)
    for k in range(2, order + 1):
        factorial *= k
    return [factorial * (v * h[order] + w * h[order - 1]) for v, w in zip(x, a, strict=True)]


def _plus(x, y, sign=1):
    return [v + sign * w for v, w in zip(x, y, strict=True)]


def _q(ctx, point):
    x = point["x"]
    return ctx.sqrt(sum((v * v for v in x), ctx.mpf(0)) / len(x) + point["eps"])


def second(ctx, point):
    """D2 N[a, b] as (D2 N[a+b, a+b] - D2 N[a-b, a-b]) / 4."""
    x, a, b, eps = point["x"], point["a"], point["b"], point["eps"]
    high, low = taylor(ctx, x, _plus(a, b), eps, 2), taylor(ctx, x, _plus(a, b, -1), eps, 2)
    left = norm(ctx, [(v - w) / 4 for v, w in zip(high, low, strict=True)])
    return left, 2 * norm(ctx, a) * norm(ctx, b) / (ctx.sqrt(ctx.mpf(3 * len(x))) * _q(ctx, point) ** 2)


def third(ctx, point):
    """D3 N[a, a, b] as (D3 N[a+b] - D3 N[a-b] - 2 D3 N[b]) / 6, with the cubes meant."""
    x, a, b, eps = point["x"], point["a"], point["b"], point["eps"]
    parts = [taylor(ctx, x, v, eps, 3) for v in (_plus(a, b), _plus(a, b, -1), b)]
    left = norm(ctx, [(v - w - 2 * z) / 6 for v, w, z in zip(*parts, strict=True)])
    return left, 3 * norm(ctx, a) ** 2 * norm(ctx, b) / (len(x) * _q(ctx, point) ** 3)


SPACE = (Reals("x", -2, 2, 3), Reals("a", -1, 1, 3), Reals("b", -1, 1, 3), Reals("eps", 1e-6, 1.0, log=True))
NEAR_SECOND = (
    # |x|^2/d = 1/3, q^2 = 1/3 + eps, and (a.x)^2 = d q^2 |a|^2 / 3 for a = b, eps near 0: cos^2 = 1/3.
    {"x": [1, 0, 0], "a": [0.577, 0.816, 0], "b": [0.577, 0.816, 0], "eps": 1e-4},
)
NEAR_THIRD = ({"x": [0.3, 0, 0], "a": [0, 0.9, 0], "b": [0, 0.9, 0], "eps": 0.5},)

THEOREM = Theorem(
    id="N4",
    title="Curvature of RMSNorm",
    statement=(
        r"For $N(x) = x/q$, $q = \sqrt{|x|^2/d + \epsilon}$ on $\mathbb{R}^d$: "
        r"$D^2N[a,b] = -\frac{(x \cdot a) b + (x \cdot b) a + (a \cdot b) x}{d q^3} + "
        r"\frac{3 (x \cdot a)(x \cdot b) x}{d^2 q^5}$, "
        r"$|D^2N[a,b]| \le \frac{2}{\sqrt{3d}\, q^2} |a||b|$, with equality for some $a = b$ exactly if "
        r"$|x|^2/d \ge \epsilon/2$, and $|D^3N[a,b,c]| \le \frac{3}{d q^3} |a||b||c|$, with equality for "
        r"$a = b = c$ orthogonal to $x$. All norms are Euclidean."
    ),
    plain=(
        "How fast the slope of RMSNorm changes: at most 1.1547 / (sqrt(d) q^2) per unit of movement. The wider the "
        "token, the flatter the norm; this is what makes balls of a useful radius certifiable."
    ),
    symbols=(
        Symbol(d, "width (channels of a token)"),
        Symbol(eps, "the norm's epsilon", "eps"),
        Symbol(q, "root of mean square plus epsilon"),
        Symbol(n, "|x|^2"),
        Symbol(t, "how far along a"),
        Symbol(u, "how far along b"),
        Symbol(x_i, "a channel of x"),
        Symbol(a_i, "the same channel of a direction a"),
        Symbol(b_i, "the same channel of a direction b"),
        Symbol(p_a, "x . a"),
        Symbol(p_b, "x . b"),
        Symbol(n_a, "|a|^2"),
        Symbol(n_b, "|b|^2"),
        Symbol(g_ab, "a . b"),
        Symbol(A, "x . a / (sqrt(d) q |a|); not negative, by the choice of the sign of a"),
        Symbol(B, "x . b / (sqrt(d) q |b|); not negative, by the choice of the sign of b"),
        Symbol(gamma, "a . b / (|a| |b|)"),
        Symbol(K, "bound of a quadratic map on the unit sphere"),
    ),
    hypotheses=(
        Hypothesis("H1", "q^2 = |x|^2/d + epsilon", d * q**2 - n - d * eps, "zero"),
        Hypothesis(
            "H2",
            "the unit vectors along a and b are not parallel, |gamma| < 1; parallel ones follow by continuity",
            1 - gamma**2,
            "positive",
        ),
    ),
    facts=(
        Fact(
            "F1",
            "|y - A a|^2 >= 0 for y = x / (sqrt(d) q) and the unit vector a",
            y2 - A**2,
            "squared norm",
            axiom=True,
        ),
        Fact("F2", "|y - B b|^2 >= 0 likewise", y2 - B**2, "squared norm", axiom=True),
        Fact(
            "F3",
            "|(1 - gamma^2) y - (A - gamma B) a - (B - gamma A) b|^2 >= 0, multiplied out",
            combined,
            "squared norm",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "Second derivative, one channel, for any number of others: differentiate along a and along b. Only inner "
            "products of x, a and b enter.",
            sp.diff((x_i + t * a_i + u * b_i) / moved, t, u).subs({t: 0, u: 0}),
            second_i.subs(q, still),
            label="second derivative",
        ),
        Identity(
            "For a = b: minus twice x.a times a and |a|^2 times x, and a part along x.",
            second_i.subs({b_i: a_i, p_b: p_a, g_ab: n_a}),
            along_a * a_i + along_x * x_i,
        ),
        Identity(
            "Its squared length in inner products; it falls short of 4 |a|^4 / (3 d q^4) by a square times d q^2 + 3 "
            "d eps.",
            4 * n_a**2 / (3 * d * q**4) - (along_a**2 * n_a + 2 * along_a * along_x * p_a + along_x**2 * n),
            (4 * d * q**2 - 3 * n) * (3 * p_a**2 - d * q**2 * n_a) ** 2 / (3 * d**4 * q**10),
            label="shortfall",
        ),
        Nonnegative(
            "By H1, 4 d q^2 - 3 |x|^2 = d q^2 + 3 d eps > 0: hence |D2 N[a, a]| <= 2 |a|^2 / (sqrt(3 d) q^2).",
            4 * n_a**2 / (3 * d * q**4) - (along_a**2 * n_a + 2 * along_a * along_x * p_a + along_x**2 * n),
            ref("shortfall")
            + (d * q**2 + 3 * d * eps + 3 * ref("H1")) * (3 * p_a**2 - d * q**2 * n_a) ** 2 / (3 * d**4 * q**10),
            label="diagonal",
        ),
        Identity(
            "Equality means (x.a)^2 = d q^2 |a|^2 / 3. As (x.a)^2 takes all values from 0 to |x|^2 |a|^2, there is "
            "such an a exactly if 3 |x|^2 >= d q^2, which is |x|^2 / d >= eps / 2.",
            3 * n - d * q**2,
            2 * d * (n / d - eps / 2),
            modulo={"H1": -1},
        ),
        Nonnegative(
            "From equal to different arguments, for a symmetric bilinear map with |M[a, a]| <= K |a|^2: 4 M[a, b] = "
            "M[a+b, a+b] - M[a-b, a-b], so |4 M[a, b]| <= K (|a+b|^2 + |a-b|^2) = 4 K for unit vectors.",
            4 * K - (K * (n_a + n_b + 2 * g_ab) + K * (n_a + n_b - 2 * g_ab)).subs({n_a: 1, n_b: 1}),
            sp.Integer(0),
            label="polarisation",
        ),
        Identity(
            "N is the gradient of d q, so b . D3 N[a, a, b] is a fourth derivative of d q: twice along a, twice along "
            "b.",
            d * sp.diff(moved, t, 2, u, 2).subs({t: 0, u: 0}),
            fourth.subs(q, still),
        ),
        Identity(
            "That d q has N as its gradient.",
            sp.diff(d * sp.sqrt((x_i**2 + n) / d + eps), x_i),
            x_i / sp.sqrt((x_i**2 + n) / d + eps),
        ),
        Identity(
            "For unit vectors, d q^3 times it is a polynomial in A, B and gamma.",
            (d * q**3 * fourth).subs({n_a: 1, n_b: 1, g_ab: gamma, p_a: sp.sqrt(d) * q * A, p_b: sp.sqrt(d) * q * B}),
            unit,
        ),
        Nonnegative(
            "|y|^2 < 1, because eps > 0.", 1 - y2, (d * eps + ref("H1")) / (d * q**2), strict=True, label="inside"
        ),
        Nonnegative(
            "Hence A B < 1.",
            1 - A * B,
            (2 * ref("inside") + ref("F1") + ref("F2") + (A - B) ** 2) / 2,
            strict=True,
            label="product",
        ),
        Nonnegative(
            "The squared length in F3 is 1 - gamma^2 times the Gram determinant of y, a, b, so that is not negative; "
            "with |y| < 1 this says (gamma - A B)^2 <= (1 - A^2)(1 - B^2).",
            (1 - A**2) * (1 - B**2) - (gamma - A * B) ** 2,
            ref("F3") / ref("H2") + ref("inside") * ref("H2"),
            label="Gram",
        ),
        Nonnegative(
            "And (1 - A^2)(1 - B^2) <= (1 - A B)^2.",
            (1 - A * B) ** 2 - (gamma - A * B) ** 2,
            (A - B) ** 2 + ref("Gram"),
            label="square",
        ),
        Nonnegative(
            "So gamma - A B lies between -(1 - A B) and 1 - A B. The lower side: a number times 2 (1 - A B) is its "
            "square plus the difference of squares above.",
            1 - A * B + (gamma - A * B),
            ((1 - A * B + gamma - A * B) ** 2 + ref("square")) / (2 * ref("product")),
            label="low",
        ),
        Nonnegative(
            "The upper side likewise.",
            1 - A * B - (gamma - A * B),
            ((1 - A * B - gamma + A * B) ** 2 + ref("square")) / (2 * ref("product")),
            label="high",
        ),
        Nonnegative(
            "The polynomial is at least -3 ...",
            unit + 3,
            2 * ref("Gram") + 5 * (A - B) ** 2 + 8 * A * B * ref("low") + 2 * A * B + A**2 * B**2,
        ),
        Nonnegative(
            "... and at most 3. So |b . D3 N[a, a, b]| <= 3 / (d q^3) for unit vectors.",
            3 - unit,
            3 * ref("Gram")
            + 3 * A * B * ref("high")
            + 5 * (gamma - A * B - A * B / 2) ** 2
            + sp.Rational(15, 4) * (A * B - sp.Rational(2, 5)) ** 2
            + sp.Rational(2, 5),
        ),
        Identity(
            "Polarised in b as above: |c . D3 N[a, a, b]| <= 3 / (d q^3) for unit a, b, c; polarised in a: the same "
            "for c . D3 N[a, b, e]. It is attained for a = b orthogonal to x, where A = B = 0.",
            unit.subs({A: 0, B: 0, gamma: 1}),
            sp.Integer(-3),
        ),
    ),
    source=Source("", derived=True),
    constants=(
        Constant(
            "RMS_SECOND",
            2 / sp.sqrt(3),
            "upper",
            "1154700538/1000000000",
            "1154700539/1000000000",
            "|D2 N| <= RMS_SECOND / (sqrt(d) q^2)",
        ),
        Constant("RMS_THIRD", sp.Integer(3), "upper", 3, 3, "|D3 N| <= RMS_THIRD / (d q^3)"),
    ),
    claims=(
        Claim("|D2 N[a, b]| <= 2 |a||b| / (sqrt(3d) q^2)", SPACE, second, sharp=True, near=NEAR_SECOND),
        Claim("|D3 N[a, a, b]| <= 3 |a|^2 |b| / (d q^3)", SPACE, third, sharp=True, near=NEAR_THIRD),
    ),
    uses=("N1",),
    remarks=(
        "No bound needs eps > 0 to be large: q enters, not eps.",
        "That a symmetric multilinear map on a Euclidean space has its norm on the diagonal is Banach's theorem "
        "(1938); it is not used, because the fourth-order form is bounded for two different vectors at once.",
        "Where |x|^2/d < eps/2 the second derivative is strictly smaller than the bound; at x = 0 it vanishes.",
    ),
)
