"""X2: a post-norm loop whose gradient vanishes while its state never settles."""

import sympy as sp

from proofs import (
    Claim,
    Enclosed,
    Hypothesis,
    Identity,
    Induction,
    Limit,
    Nonnegative,
    NotChecked,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import dot, norm, spectral_norm, spectral_radius

d = sp.Symbol("d", positive=True, integer=True)
eps = sp.Symbol("epsilon", positive=True)
M = sp.Symbol("M", positive=True)
a = sp.Symbol("a", positive=True)
w_i = sp.Symbol("w_i", real=True)
w_j = sp.Symbol("w_j", real=True)
rest = sp.Symbol("m", nonnegative=True)
n = sp.Symbol("n", nonnegative=True)
rho = sp.Symbol("rho", positive=True)
q = sp.Symbol("q", positive=True)
k = sp.Symbol("k", integer=True, nonnegative=True)
Q2 = sp.Symbol("Q2", positive=True)
gap = sp.Symbol("gap", nonnegative=True)
g = sp.Symbol("g", positive=True)
E = sp.Symbol("E", positive=True)
S = sp.Symbol("S", positive=True)
T = sp.Symbol("T", positive=True)
W = sp.Symbol("W", nonnegative=True)
p = sp.Symbol("p", nonnegative=True)
u = sp.Symbol("u", nonnegative=True)
Y = sp.Symbol("Y", nonnegative=True)
y_v = sp.Symbol("y_v", real=True)
y_1 = sp.Symbol("y_1", real=True)
y_2 = sp.Symbol("y_2", nonnegative=True)
x_1 = sp.Symbol("x_1", real=True)
x_2 = sp.Symbol("x_2", real=True)
delta = sp.Symbol("delta", nonnegative=True)
s = sp.Symbol("s", positive=True)

# One step in coordinates along v (a) and across it (w_i, w_j, the others with squared length m).
root = sp.sqrt((M**2 * a**2 + w_i**2 + w_j**2 + rest) / d + eps)
along, across = -M * a / root, w_i / root
# On the cycle: w = 0, a = rho, and epsilon = M^2 (1 - rho^2 / d) by the definition of rho.
on_cycle = {w_i: 0, w_j: 0, rest: 0, a: rho, eps: M**2 * (1 - rho**2 / d)}
# On a fixed point: a = 0, and epsilon = 1 - |w|^2 / d.
on_sphere = {a: 0, eps: 1 - (w_i**2 + w_j**2 + rest) / d}


def closed(power):
    """Q_k^2, the square of the product of all divisors, for a start a v + w with |w|^2 = n."""
    return (
        eps**power
        + a**2 / d * M**2 * (M ** (2 * power) - eps**power) / (M**2 - eps)
        + n / d * (1 - eps**power) / (1 - eps)
    )


# The same with E = epsilon^k, S and T for the two sums, W = |w|, and one coordinate across w, for derivatives.
divisor = sp.sqrt(E + (a**2 * S + (W + x_1) ** 2 * T + x_2**2 * T) / d)
here = {x_1: 0, x_2: 0}
length = y_v**2 + y_1**2 + y_2**2
Q = sp.sqrt(E + (a**2 * S + W**2 * T) / d)


def step(ctx, z, gain, eps):
    """z -> rms(z + g(z)) with g(z) = -(1 + M) z_1 in the first channel: the residual stream, then the norm."""
    h = [z[0] - (1 + gain) * z[0], *z[1:]]
    q = ctx.sqrt(dot(ctx, h, h) / len(z) + eps)
    return [v / q for v in h], h, q


def jacobian(ctx, h, q, gain):
    """Of one step, by the quotient rule at the pre-norm state h."""
    size = len(h)
    rows = [[((i == j) - h[i] * h[j] / (size * q * q)) / q for j in range(size)] for i in range(size)]
    return ctx.matrix([[row[0] * -gain, *row[1:]] for row in rows])


def through(ctx, z, gain, eps, count):
    """The state after ``count`` steps, the residual there, and the product of the Jacobians."""
    product = ctx.eye(len(z))
    for _ in range(count):
        z, h, q = step(ctx, z, gain, eps)
        product = jacobian(ctx, h, q, gain) * product
    after = step(ctx, z, gain, eps)[0]
    return z, norm(ctx, [x - y for x, y in zip(after, z, strict=True)]), product


def cycle_gradient(ctx, point):
    gain, eps, count = point["M"], point["eps"], 1 + int(point["k"])
    z = [ctx.sqrt(3 * (1 - eps / gain**2)), ctx.mpf(0), ctx.mpf(0)]
    return spectral_norm(ctx, through(ctx, z, gain, eps, count)[2]), gain**-count


def cycle_residual(ctx, point):
    gain, eps = point["M"], point["eps"]
    z = [ctx.sqrt(3 * (1 - eps / gain**2)), ctx.mpf(0), ctx.mpf(0)]
    return 2 * ctx.sqrt(3 * (1 - eps / gain**2)), through(ctx, z, gain, eps, int(point["k"]))[1]


def size_along(ctx, point, count):
    """|a_k| by the closed form."""
    gain, eps, a, n = point["M"], point["eps"], point["a"], dot(ctx, point["w"], point["w"])
    powers = sum((eps ** (count - j) * (a**2 * gain ** (2 * j) + n) for j in range(1, count + 1)), ctx.mpf(0))
    return gain**count * a / ctx.sqrt(eps**count + powers / 3)


def orbit_residual(ctx, point):
    count = int(point["k"])
    least = size_along(ctx, point, count) + size_along(ctx, point, count + 1)
    return least, through(ctx, [point["a"], *point["w"]], point["M"], point["eps"], count)[1]


def orbit_gradient(ctx, point):
    gain, eps, a, count = point["M"], point["eps"], point["a"], 1 + int(point["k"])
    t = norm(ctx, point["w"]) / a
    product = through(ctx, [a, *point["w"]], gain, eps, count)[2]
    bound = ctx.sqrt(1 + t**2) + 3 * eps**count / (a**2 * gain**count)
    return spectral_norm(ctx, product), ctx.sqrt(ctx.mpf(3)) / (a * gain**count) * bound


def injection(ctx, point):
    """Derivative of z_k with respect to a constant injection u in z -> rms(z + g(z) + u), at u = 0."""
    gain, eps = point["M"], point["eps"]
    z = [ctx.sqrt(3 * (1 - eps / gain**2)), ctx.mpf(0), ctx.mpf(0)]
    total = ctx.zeros(3)
    for _ in range(1 + int(point["k"])):
        z, h, q = step(ctx, z, gain, eps)
        slope = jacobian(ctx, h, q, gain)
        bare = slope * ctx.diag([-1 / gain, ctx.mpf(1), ctx.mpf(1)])
        total = slope * total + bare
    return spectral_norm(ctx, total), 1 / (gain - 1)


def gain_gradient(ctx, point):
    """Derivative of the cycle's size with respect to M, by a divided difference, which lies between the two ends."""
    gain, eps, more = point["M"], point["eps"], point["more"]
    far, near = (ctx.sqrt(3 * (1 - eps / g**2)) for g in (gain + more, gain))
    return (far - near) / more, 3 * eps / (gain**3 * near)


def damped_radius(ctx, point):
    gain, eps, share = point["M"], point["eps"], point["share"]
    size = norm(ctx, point["w"])
    z = [ctx.mpf(0)] + [v / size * ctx.sqrt(3 * (1 - eps)) for v in point["w"]]
    _, h, q = step(ctx, z, gain, eps)
    s = share * 2 / (1 + gain)
    return spectral_radius(ctx, (1 - s) * ctx.eye(3) + s * jacobian(ctx, h, q, gain)), ctx.mpf(1)


GAIN, EPS, STEPS = Reals("M", 1.01, 20, log=True), Reals("eps", 1e-8, 0.5, log=True), Reals("k", 0, 7.999)
START = (Reals("a", 0.02, 3, log=True), Reals("w", -2, 2, 2))

THEOREM = Theorem(
    id="X2",
    title="A post-norm loop that never settles and has no gradient",
    statement=(
        r"Let $N(h) = h / \sqrt{|h|^2/d + \epsilon}$ with $d \ge 2$, $0 < \epsilon \le \frac12$, let $v$ be a unit "
        r"vector, $M > 1$, and let $f(z) = N(z + g(z))$ with the linear sublayer $g(z) = -(1+M) \langle v, z \rangle "
        r"v$. Put $\varrho = \sqrt{d (1 - \epsilon / M^2)}$. (a) $f(\pm \varrho v) = \mp \varrho v$: a cycle of "
        r"period 2 with residual $2 \varrho$ at every step, while no two outputs of $N$ are further apart than $2 "
        r"\sqrt d$. (b) At both of its points the Jacobian is $-\frac{\epsilon}{M^2}$ along $v$ and $\frac1M$ across "
        r"it, so that through $k \ge 1$ steps $\|D z_k\|_2 = M^{-k}$. To a constant injection $x$, as in $N(z + g(z) "
        r"+ x)$, the state responds with at most $\|\partial z_k / \partial x\|_2 \le \frac{1}{M-1}$, and the cycle "
        r"to its gain with $0 < \frac{d \varrho}{d M} = \frac{d\, \epsilon}{M^3 \varrho}$. (c) From a start $z_0 = a "
        r"v + w$ with $a > 0$, $w \perp v$ (likewise for $a < 0$) the orbit is $z_k = \frac{(-M)^k a v + w}{Q_k}$ "
        r"with $Q_k^2 = \epsilon^k + \frac{a^2}{d} \frac{M^2 (M^{2k} - \epsilon^k)}{M^2 - \epsilon} + \frac{|w|^2}{d} "
        r"\frac{1 - \epsilon^k}{1 - \epsilon}$. With $a_k = (-M)^k a / Q_k$ its residual is at least $|a_k| + "
        r"|a_{k+1}|$, which tends to $2 \varrho$. Its gradient vanishes all the same: with $t = |w| / a$ and $k \ge "
        r"1$, $\|D z_k\|_2 \le \frac{\sqrt d}{a M^k} \left( \sqrt{1+t^2} + \frac{d\, \epsilon^k}{a^2 M^k} \right)$. "
        r"(d) The fixed points $a = 0$, $|w|^2 = d(1 - \epsilon)$ have the multipliers $-M$ along $v$, $\epsilon$ "
        r"along $w$, and 1 else. The damped loop $(1-s) z + s f(z)$, $0 < s < \frac{2}{1+M}$, makes them $1 - "
        r"s(1+M)$, $1 - s(1 - \epsilon)$, both of modulus below 1, and 1."
    ),
    plain=(
        "Residual, then norm, as in post-norm blocks: here almost every start flips sign for ever, with a residual as "
        "large as the norm allows, and yet what a gradient can carry through k steps falls like M to the power -k. "
        "Training cannot see the flip: with gain 2 and epsilon 1e-5 the state's relative derivative with respect to "
        "the very gain that causes it is 1.3e-6. A small gradient is no sign of a settled state. Damping below 2 / (1 "
        "+ M) removes the flip, and the gradient along the fixed points then survives."
    ),
    symbols=(
        Symbol(d, "width (channels of a token)"),
        Symbol(eps, "the norm's epsilon", "eps"),
        Symbol(M, "gain: the residual stream plus sublayer multiplies by -M along v"),
        Symbol(a, "the state's part along v"),
        Symbol(w_i, "one channel across v"),
        Symbol(w_j, "another channel across v"),
        Symbol(rest, "sum of squares of the other channels across v"),
        Symbol(n, "squared length of the start's part across v"),
        Symbol(rho, "size of the states of the cycle"),
        Symbol(q, "the norm's divisor at one step"),
        Symbol(k, "number of steps"),
        Symbol(Q2, "square of the product of the divisors of the first k steps"),
        Symbol(gap, "|Q_k^2 - its closed form|"),
        Symbol(g, "M - 1"),
        Symbol(E, "epsilon^k"),
        Symbol(S, "sum of epsilon^(k-j) M^(2j) over j = 1, ..., k"),
        Symbol(T, "sum of epsilon^(k-j) over j = 1, ..., k"),
        Symbol(W, "length of the start's part across v"),
        Symbol(p, "squared length of the derivative D z_k y on the cycle"),
        Symbol(u, "its share along v"),
        Symbol(Y, "|y|^2"),
        Symbol(y_v, "a direction's part along v"),
        Symbol(y_1, "its part along w"),
        Symbol(y_2, "length of its part across both"),
        Symbol(x_1, "a displacement along w"),
        Symbol(x_2, "a displacement across both"),
        Symbol(delta, "size of the response to an injection of size 1"),
        Symbol(s, "damping step", "step"),
    ),
    hypotheses=(
        Hypothesis("H1", "M > 1: the flipped direction is amplified", M - 1, "positive"),
        Hypothesis("H2", "epsilon <= 1/2, as in every norm in use", sp.Rational(1, 2) - eps),
        Hypothesis("H3", "rho^2 = d (1 - epsilon / M^2), positive by H1 and H2", rho**2 - d * (1 - eps / M**2), "zero"),
        Hypothesis("H4", "k >= 1, and S holds the term j = k, which is M^(2k), beside positive ones", S - M ** (2 * k)),
        Hypothesis("H5", "k >= 1, and T holds the term j = k, which is 1", T - 1),
        Hypothesis("H6", "T = (1 - E) / (1 - epsilon), the geometric sum", (1 - eps) * T - 1 + E, "zero"),
        Hypothesis(
            "H7",
            "Q_k^2 = E + (a^2 S + |w|^2 T) / d, the closed form in these letters",
            d * (Q2 - E) - a**2 * S - W**2 * T,
            "zero",
        ),
        Hypothesis("H8", "s (1 + M) < 2, for part (d) only", 2 - s * (1 + M), "positive"),
    ),
    facts=(),
    steps=(
        # (a)
        Nonnegative("Epsilon is below 1.", 1 - eps, ref("H2") + sp.Rational(1, 2), strict=True, label="half"),
        Identity(
            "The residual stream plus the sublayer multiplies by -M along v and by 1 across it.",
            a - (1 + M) * a,
            -M * a,
        ),
        Nonnegative(
            "The cycle exists: 1 - epsilon / M^2 is positive.",
            1 - eps / M**2,
            (ref("half") + ref("H1") * (M + 1)) / M**2,
            strict=True,
        ),
        Identity("At rho v the norm's divisor is M.", M**2 * rho**2 / d + eps, M**2, modulo={"H3": M**2 / d}),
        Identity("So rho v goes to -rho v, and by symmetry back.", along.subs(on_cycle), -rho),
        Nonnegative(
            "Its size stays below sqrt(d), the most that N can return.",
            d - rho**2,
            d * eps / M**2 - ref("H3"),
            strict=True,
        ),
        # (b)
        Identity(
            "The Jacobian of one step, in coordinates along and across v. Along v:",
            sp.diff(along, a),
            -M * (eps + (w_i**2 + w_j**2 + rest) / d) / root**3,
        ),
        Identity("How the part along v changes with one across.", sp.diff(along, w_i), M * a * w_i / (d * root**3)),
        Identity(
            "How a part across v changes with the one along.", sp.diff(across, a), -(M**2) * a * w_i / (d * root**3)
        ),
        Identity("A part across v, by itself.", sp.diff(across, w_i), (1 - w_i**2 / (d * root**2)) / root),
        Identity("Two parts across v.", sp.diff(across, w_j), -w_i * w_j / (d * root**3)),
        Identity(
            "On the cycle it is diagonal: 1 - rho^2/d, which is epsilon / M^2, with a minus sign along v, and 1/M "
            "across it; the same at -rho v, because f is odd.",
            sp.Matrix(3, 3, lambda i, j: sp.diff((along, across, w_j / root)[i], (a, w_i, w_j)[j]).subs(on_cycle)),
            sp.diag(-(1 - rho**2 / d), 1 / M, 1 / M),
        ),
        Identity("And 1 - rho^2/d is epsilon / M^2.", 1 - rho**2 / d, eps / M**2, modulo={"H3": -1 / d}),
        Nonnegative(
            "The multiplier along v is the smaller one.",
            1 / M**2 - eps**2 / M**4,
            (ref("half") * (1 + eps) + ref("H1") * (M + 1)) / M**4,
            label="smaller",
        ),
        Induction(
            "So each step divides a derivative by M at least: |D z_k y|^2 <= M^(-2k) |y|^2, with equality for y "
            "across v.",
            k,
            p,
            eps**2 / M**4 * u + (p - u) / M**2,
            Y * M ** (-2 * k),
            Y,
            sp.Integer(0),
            ref("IH") / M**2 + u * ref("smaller"),
        ),
        Nonnegative(
            "The norm alone passes an injection on with 1/M across v and epsilon / M^3 along it: less.",
            1 / M - eps / M**3,
            (ref("half") + ref("H1") * (M + 1)) / M**3,
        ),
        Induction(
            "Responses add up like delta -> (delta + 1) / M, at most: they stay below 1 / (M - 1).",
            k,
            delta,
            (delta + 1) / M,
            1 / (M - 1),
            sp.Integer(0),
            1 / ref("H1"),
            ref("IH") / M,
        ),
        Identity(
            "How the cycle's size answers to the gain that causes it.",
            sp.diff(sp.sqrt(d * (1 - eps / M**2)), M),
            d * eps / (M**3 * sp.sqrt(d * (1 - eps / M**2))),
        ),
        Enclosed(
            "Relative to the size, in figures, for M = 2 and epsilon = 1e-5.",
            sp.Rational(1, 10**5) / (8 * (1 - sp.Rational(1, 4 * 10**5))),
            "125/100000000",
            "126/100000000",
        ),
        # (c)
        Identity(
            "After k steps the state is A^k z_0 / Q_k, A = I - (1 + M) v v', with the divisors' product Q_k. The next "
            "divisor's square times Q_k^2 is Q_{k+1}^2: a linear recursion.",
            Q2 * ((M ** (2 * k + 2) * a**2 + n) / (d * Q2) + eps),
            (M ** (2 * k + 2) * a**2 + n) / d + eps * Q2,
        ),
        Identity(
            "The closed form obeys the same recursion.",
            closed(k + 1),
            (M ** (2 * k + 2) * a**2 + n) / d + eps * closed(k),
        ),
        Identity("It begins at 1, the empty product.", closed(0), sp.Integer(1)),
        Induction(
            "So the two never differ: their difference is multiplied by epsilon at every step and begins at 0.",
            k,
            gap,
            eps * gap,
            sp.Integer(0),
            sp.Integer(0),
            sp.Integer(0),
            eps * ref("IH"),
        ),
        Identity(
            "With a_k = (-M)^k a / Q_k: how far 1 / a_k^2 is from its value 1 / rho^2 on the cycle.",
            closed(k) / (M ** (2 * k) * a**2) - 1 / (d * (1 - eps / M**2)),
            (eps / M**2) ** k * (1 / a**2 - 1 / (d * (1 - eps / M**2)))
            + n / a**2 * M ** (-2 * k) * (1 - eps**k) / (d * (1 - eps)),
        ),
        Limit(
            "Both terms vanish, as (epsilon / M^2)^k <= M^(-2k) and M > 1, here M = 1 + g: |a_k| tends to rho.",
            (1 + g) ** (-2 * k),
            k,
            sp.oo,
            sp.Integer(0),
        ),
        Nonnegative(
            "A step from a v + w leads to (-M a v + w) / q. The signs along v differ, so these parts alone are |a_k| "
            "+ |a_{k+1}| apart; what is across only adds to the residual.",
            (-M * a / q - a) ** 2 + (1 / q - 1) ** 2 * n - (a + M * a / q) ** 2,
            (1 / q - 1) ** 2 * n,
        ),
        # the gradient off the cycle
        Identity(
            "The gradient, first along the start itself (Euler): lengthening the start changes z_k by its share E / "
            "Q_k^2. Along v:",
            (a * sp.diff(a / divisor, a) + W * sp.diff(a / divisor, x_1)).subs(here),
            a / Q * E / Q**2,
        ),
        Identity(
            "Across v, likewise.",
            (a * sp.diff((W + x_1) / divisor, a) + W * sp.diff((W + x_1) / divisor, x_1)).subs(here),
            W / Q * E / Q**2,
        ),
        Identity("Then along w.", sp.diff((W + x_1) / divisor, x_1).subs(here), (E + a**2 * S / d) / Q**3),
        Identity("What that does along v.", sp.diff(a / divisor, x_1).subs(here), -a * W * T / (d * Q**3)),
        Identity("Across both.", sp.diff(x_2 / divisor, x_2).subs(here), 1 / Q),
        Identity("And that does nothing elsewhere.", sp.diff(a / divisor, x_2).subs(here), sp.Integer(0)),
        Nonnegative(
            "Q_k^2 is at least its part along v, hence at least M^(2k) a^2 / d.",
            Q2 - a**2 * M ** (2 * k) / d,
            E + W**2 * T / d + a**2 * ref("H4") / d + ref("H7") / d,
            label="large",
        ),
        Nonnegative(
            "T is at most 1 / (1 - epsilon), hence at most 2.",
            2 - T,
            (2 * ref("H2") + E - ref("H6")) / ref("half"),
            label="sum",
        ),
        Nonnegative(
            "Together: a displacement (x_1, x_2) across v, along w and across both, changes z_k by at most its length "
            "over Q_k. What w turns aside, along v, the shortening along w makes good, since T <= 2.",
            (x_1**2 + x_2**2) / Q**2
            - x_1**2 * ((E + a**2 * S / d) ** 2 + (M**k * a * W * T / d) ** 2) / Q**6
            - x_2**2 / Q**2,
            x_1**2
            * (W**2 * T / d)
            * (2 * E + 2 * a**2 * ref("H4") / d + a**2 * M ** (2 * k) * ref("sum") / d + W**2 * T / d)
            / Q**6,
        ),
        Nonnegative(
            "A direction y is the start times y_v / a, plus a rest across v of squared length at most (1 + t^2) |y|^2.",
            (1 + W**2 / a**2) * length - (y_1 - y_v * W / a) ** 2 - y_2**2,
            (y_1 * W / a + y_v) ** 2 + y_2**2 * W**2 / a**2,
        ),
        Nonnegative(
            "The state's own squared length is below d.",
            d * Q2 - (M ** (2 * k) * a**2 + W**2),
            d * E + a**2 * ref("H4") + W**2 * ref("H5") + ref("H7"),
            strict=True,
            label="inside",
        ),
        Nonnegative(
            "1 / Q_k^2 is at most d / (a M^k)^2.",
            d / (a**2 * M ** (2 * k)) - 1 / Q2,
            d / (a**2 * M ** (2 * k)) * ref("large") / Q2,
            label="inverse",
        ),
        Nonnegative(
            "So the first part's squared length, (y_v / a)^2 |z_k|^2 E^2 / Q_k^4, is at most that of the bound's last "
            "term.",
            d**3 * E**2 * length / (a**6 * M ** (4 * k))
            - y_v**2 / a**2 * (M ** (2 * k) * a**2 + W**2) / Q2 * E**2 / Q2**2,
            E**2 / (a**2 * Q2**3) * (y_v**2 * ref("inside") + d * Q2 * (y_1**2 + y_2**2))
            + d * E**2 * length / a**2 * ref("inverse") * (d / (a**2 * M ** (2 * k)) + 1 / Q2),
        ),
        Nonnegative(
            "And the second part's, (1 + t^2) |y|^2 / Q_k^2, is at most that of the bound's first term. The triangle "
            "inequality adds the two.",
            d * (1 + W**2 / a**2) * length / (a**2 * M ** (2 * k)) - (1 + W**2 / a**2) * length / Q2,
            (1 + W**2 / a**2) * length * ref("inverse"),
        ),
        # (d)
        Identity(
            "The fixed points: with a = 0 and |w|^2 = d (1 - epsilon) the divisor is 1.",
            root.subs(on_sphere),
            sp.Integer(1),
        ),
        Identity("Along v they have the multiplier -M.", sp.diff(along, a).subs(on_sphere), -M),
        Identity("From along v to across, none.", sp.diff(across, a).subs(on_sphere), sp.Integer(0)),
        Identity("Nor back.", sp.diff(along, w_i).subs(on_sphere), sp.Integer(0)),
        Identity(
            "Across v the Jacobian is I - w w' / d: 1, except along w, where it is 1 - (1 - epsilon) = epsilon.",
            sp.diff(across, w_i).subs(on_sphere),
            1 - w_i**2 / d,
        ),
        Identity("Its other entries.", sp.diff(across, w_j).subs(on_sphere), -w_i * w_j / d),
        Nonnegative(
            "Damped, the flip's multiplier 1 - s (1 + M) is above -1 up to the critical step 2 / (1 + M), as in D5; "
            "and below 1.",
            1 - (1 - s * (1 + M)) ** 2,
            s * (1 + M) * ref("H8"),
            strict=True,
        ),
        Nonnegative("Such a step is below 1.", 1 - s, (ref("H8") + s * ref("H1")) / 2, strict=True, label="short"),
        Nonnegative(
            "The multiplier along w becomes 1 - s (1 - epsilon), which is positive and below 1.",
            1 - (1 - s * (1 - eps)) ** 2,
            s * ref("half") * (1 + ref("short") + s * eps),
            strict=True,
        ),
    ),
    source=Source("", derived=True, place="the loop is the power method, which finds the eigenvalue -M and its sign"),
    claims=(
        Claim("on the cycle |D z_k| <= M^-k", (GAIN, EPS, STEPS), cycle_gradient, sharp=True),
        Claim("on the cycle the residual is at least 2 rho", (GAIN, EPS, STEPS), cycle_residual, sharp=True),
        Claim(
            "the residual of any orbit is at least |a_k| + |a_{k+1}|",
            (GAIN, EPS, STEPS, *START),
            orbit_residual,
            sharp=True,
            near=({"M": 3.0, "eps": 1e-3, "k": 2.5, "a": 1.0, "w": [0.0, 0.0]},),
        ),
        Claim(
            "|D z_k| of any orbit",
            (GAIN, EPS, STEPS, *START),
            orbit_gradient,
            sharp=True,
            near=(
                {"M": 3.0, "eps": 1e-8, "k": 5.5, "a": 1.0, "w": [0.8, 0.6]},
                {"M": 20.0, "eps": 0.5, "k": 0.5, "a": 0.04, "w": [0.0, 0.0]},
            ),
        ),
        Claim(
            "|d z_k / d injection| <= 1 / (M - 1)",
            (GAIN, EPS, STEPS),
            injection,
            sharp=True,
            near=({"M": 10.0, "eps": 0.01, "k": 7.5},),
        ),
        Claim(
            "d rho / d M <= d eps / (M^3 rho), as rho is concave in M",
            (GAIN, EPS, Reals("more", 1e-4, 1.0, log=True)),
            gain_gradient,
            sharp=True,
        ),
        Claim(
            "damped multipliers at the fixed points are at most 1",
            (GAIN, EPS, Reals("share", 0.001, 1), Reals("w", 0.1, 2, 2)),
            damped_radius,
            sharp=True,
        ),
    ),
    not_checked=(
        NotChecked(
            "the damped loop then settles from nearby starts, to some point of the sphere of fixed points, along which "
            "it is neutral",
            "Aulbach (1984), Continuous and Discrete Dynamics near Manifolds of Equilibria",
        ),
    ),
    uses=("N1", "D5"),
    remarks=(
        "The sublayer is an honest one: attention on one token, or on equal tokens, is exactly the linear map W_o W_v.",
        "A residual scale in front, N(alpha z + beta g(z)), changes nothing but epsilon: N of alpha times a state is "
        "N with epsilon / alpha^2.",
        "Only a gradient through the loop vanishes. The last step's own parameters still receive theirs, of size 1 / "
        "M at most.",
        "Contrast: with damping the state settles, and the gradient along the sphere of fixed points, multiplier 1, "
        "does not vanish.",
        "The starts with a = 0 are a hyperplane, of measure 0; from there the state does settle, on the sphere of "
        "fixed points, but any part along v grows by the factor -M.",
    ),
)
