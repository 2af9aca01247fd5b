"""X1: relative residuals fire on a state that runs away, and no finite number of small residuals is safe."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Induction, Limit, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import dot, norm

k = sp.Symbol("k", integer=True, nonnegative=True)
c = sp.Symbol("c", positive=True)
C = sp.Symbol("C", positive=True)
tau = sp.Symbol("tau", positive=True)
low = sp.Symbol("b", real=True)
start = sp.Symbol("l_0", real=True)
height = sp.Symbol("l_k", real=True)
gain = sp.Symbol("i_k", real=True)
size = sp.Symbol("n", nonnegative=True)
step = sp.Symbol("Delta", nonnegative=True)
room = sp.Symbol("R", positive=True)

d = sp.Symbol("d", positive=True, integer=True)
eps = sp.Symbol("epsilon", positive=True)
a0 = sp.Symbol("a_0", positive=True)
a = sp.Symbol("a", positive=True)
q0 = sp.Symbol("q_0", positive=True)
q = sp.Symbol("q", positive=True)

t = sp.Symbol("t", nonnegative=True)
gap = sp.Symbol("gap", nonnegative=True)
x = sp.Symbol("x", real=True)
y = sp.Symbol("y", real=True)
p = sp.Symbol("p", positive=True)


def _biggest(ctx, v):
    return max(abs(value) for value in v)


def bounded_drift(ctx, point):
    """A drift along the first axis by a varying amount, with a wobble across it; C and c read off the increments."""
    count = 1 + int(point["k"])
    steps = [
        [point["v"] + point["more"] * (j % 2), point["wobble"] * (-1) ** j, point["wobble"] * (j % 3 - 1)]
        for j in range(count + 1)
    ]
    z = list(point["z"])
    first = norm(ctx, z)
    for j in range(count + 1):
        z = [s + t for s, t in zip(z, steps[j], strict=True)]
    most, least = max(norm(ctx, v) for v in steps), min(v[0] for v in steps)
    if (count + 1) * least <= first:
        return None
    return norm(ctx, steps[count]) / norm(ctx, z), most / ((count + 1) * least - first)


def same_in_max_norm(ctx, point):
    """z <- z + v with the largest entry for a norm, as in the token residual of the official loop."""
    count = 1 + int(point["k"])
    z, v = point["z"], point["v"]
    end = [s + count * t for s, t in zip(z, v, strict=True)]
    bound = count * _biggest(ctx, v) - _biggest(ctx, z)
    if bound <= 0:
        return None
    return _biggest(ctx, v) / _biggest(ctx, end), _biggest(ctx, v) / bound


def size_in_norm(ctx, point):
    """|z_k| >= k c - |z_0| on the same loops."""
    count = 1 + int(point["k"])
    z, v = point["z"], point["v"]
    end = [s + count * t for s, t in zip(z, v, strict=True)]
    return count * norm(ctx, v) - norm(ctx, z), norm(ctx, end)


def _prenorm(ctx, point):
    """z <- z + gamma v v' N(z) in three channels, v the first axis, from a_0 v."""
    width, eps, gamma = 3, point["eps"], point["gamma"]
    z = [point["a"], ctx.mpf(0), ctx.mpf(0)]
    count = 1 + int(point["k"])
    for _ in range(count):
        before, q = z, ctx.sqrt(dot(ctx, z, z) / width + eps)
        z = [z[0] + gamma * z[0] / q, z[1], z[2]]
    change = norm(ctx, [s - t for s, t in zip(z, before, strict=True)])
    first = ctx.sqrt(point["a"] ** 2 / width + eps)
    return count, z, change, gamma * point["a"] / first, gamma * ctx.sqrt(ctx.mpf(width))


def prenorm_step(ctx, point):
    """Its steps never fall below the first one."""
    _, _, change, least, _ = _prenorm(ctx, point)
    return least, change


def prenorm_longest(ctx, point):
    """Nor reach gamma sqrt(d)."""
    _, _, change, _, most = _prenorm(ctx, point)
    return change, most


def prenorm_fires(ctx, point):
    """Its relative residual."""
    count, z, change, least, most = _prenorm(ctx, point)
    return change / norm(ctx, z), most / (point["a"] + count * least)


def hyperbola(ctx, point):
    """z <- sqrt(1 + z^2): the residual after k steps."""
    z = abs(point["z"])
    count = int(point["k"]) + 1
    for _ in range(count):
        z = ctx.sqrt(1 + z * z)
    return ctx.sqrt(1 + z * z) - z, 1 / (2 * ctx.sqrt(point["z"] ** 2 + count))


def hyperbola_slope(ctx, point):
    """|f(x) - f(y)| <= |x - y|."""
    first, second = point["x"], point["x"] + point["more"]
    return abs(ctx.sqrt(1 + first**2) - ctx.sqrt(1 + second**2)), abs(first - second)


STEPS = Reals("k", 0, 39.999)

THEOREM = Theorem(
    id="X1",
    title="Relative residuals fire on divergence",
    statement=(
        r"(a) Let $|\cdot|$ be any norm, $\ell$ a linear functional with $\ell(z) \le |z|$ for all $z$, and let a "
        r"loop's states satisfy $|z_{k+1} - z_k| \le C$ and $\ell(z_{k+1} - z_k) \ge c > 0$ for all $k \ge 0$. Then "
        r"the residual $|z_{k+1} - z_k| \ge c$ never falls, $|z_k| \ge k c - |z_0| \to \infty$, and yet the relative "
        r"residual satisfies $\frac{|z_{k+1} - z_k|}{|z_{k+1}|} \le \frac{C}{(k+1) c - |z_0|}$ as soon as $(k+1) c > "
        r"|z_0|$: it is below every $\tau > 0$ from step $(k+1) > \frac{1}{c} \left( |z_0| + \frac{C}{\tau} \right)$ "
        r"on, for ever. Neither bound can be improved: $z_{k+1} = z_k + v$. (b) A pre-norm block without residual "
        r"scaling does this: $f(z) = z + \gamma \langle v, N(z) \rangle v$ with $N(z) = z / q(z)$, $q(z) = "
        r"\sqrt{|z|^2 / d + \epsilon}$, $|v|_2 = 1$, $\gamma > 0$, from $z_0 = a_0 v$, $a_0 > 0$, has $c = \gamma a_0 "
        r"/ q(z_0)$ and $C = \gamma \sqrt d$, and its relative residual is at most $\frac{\gamma \sqrt d}{a_0 + (k+1) "
        r"c}$. (c) No test on finitely many residuals is safe, absolute ones included: $f(z) = \sqrt{1 + z^2}$ on the "
        r"line has $|f(x) - f(y)| < |x - y|$ for $x \ne y$ and no fixed point; its states $|z_k| = \sqrt{z_0^2 + k}$ "
        r"run away, while the residual from step $k \ge 1$ on is below $\frac{1}{2 \sqrt{z_0^2 + k}}$, hence below "
        r"every tolerance for as many steps as one likes."
    ),
    plain=(
        "A state that grows by steady steps has a relative residual of about 1/k: a tolerance of 0.1 stops such a "
        "loop after some ten steps and calls it converged. A tolerance on the residual promises nothing unless "
        "something is known to contract, however many steps in a row it holds."
    ),
    symbols=(
        Symbol(k, "number of steps"),
        Symbol(c, "progress of each step, at least"),
        Symbol(C, "length of each step, at most"),
        Symbol(tau, "tolerance", "rtol"),
        Symbol(low, "a lower bound on l(z_0): -|z_0| in (a), a_0 in (b)"),
        Symbol(start, "l(z_0)"),
        Symbol(height, "l(z_k)"),
        Symbol(gain, "l(z_{k+1} - z_k)"),
        Symbol(size, "|z_{k+1}|"),
        Symbol(step, "|z_{k+1} - z_k|"),
        Symbol(room, "(k+1) c + b"),
        Symbol(d, "width"),
        Symbol(eps, "the norm's epsilon", "eps"),
        Symbol(a0, "start along v"),
        Symbol(a, "state along v"),
        Symbol(q0, "the norm's divisor at the start"),
        Symbol(q, "the norm's divisor at the state"),
        Symbol(t, "square of a state in part (c)"),
        Symbol(gap, "|z_k^2 - (z_0^2 + k)| in part (c)"),
        Symbol(x, "a state on the line"),
        Symbol(y, "another state on the line"),
        Symbol(p, "a positive state on the line"),
    ),
    hypotheses=(
        Hypothesis("H1", "steps are no longer than C", C - step),
        Hypothesis("H2", "each step makes progress c in the direction of l", gain - c),
        Hypothesis("H3", "enough steps: R = (k+1) c + b is positive", room - (k + 1) * c - low, "zero"),
        Hypothesis("H4", "for the tolerance: R > C / tau", room - C / tau, "positive"),
        Hypothesis("H5", "part (b): q_0^2 = a_0^2 / d + epsilon", q0**2 - a0**2 / d - eps, "zero"),
        Hypothesis("H6", "part (b): q^2 = a^2 / d + epsilon", q**2 - a**2 / d - eps, "zero"),
        Hypothesis("H7", "part (b): a >= a_0, which the steps, being positive, preserve", a - a0),
    ),
    facts=(
        Fact(
            "F1", "|z_{k+1}| >= l(z_{k+1}) = l(z_k) + l(z_{k+1} - z_k)", size - gain - height, "l(z) <= |z|", axiom=True
        ),
        Fact(
            "F2",
            "l(z_0) >= b: as l(-z_0) <= |z_0| in (a), with equality in (b)",
            start - low,
            "l(z) <= |z|",
            axiom=True,
        ),
        Fact("F3", "|z_{k+1} - z_k| >= l(z_{k+1} - z_k)", step - gain, "l(z) <= |z|", axiom=True),
    ),
    steps=(
        # (a)
        Nonnegative("The residual never falls below c.", step - c, ref("F3") + ref("H2")),
        Induction(
            "The states make progress: l(z_k) >= l(z_0) + k c.",
            k,
            -height,
            -height - gain,
            -start - k * c,
            -start,
            sp.Integer(0),
            ref("IH") + ref("H2"),
            label="progress",
        ),
        Nonnegative(
            "So they run away: |z_{k+1}| >= (k+1) c + b.",
            size - room,
            ref("F1") + ref("progress") + ref("H2") + ref("F2") - ref("H3"),
            label="size",
        ),
        Nonnegative(
            "The relative residual is at most C over that, whatever the size is beyond it.",
            C / room - step / (room + (size - room)),
            (C * ref("size") + room * ref("H1")) / (room * (room + ref("size"))),
        ),
        Nonnegative(
            "Which is below the tolerance when R exceeds C / tau.",
            tau - C / room,
            tau * ref("H4") / room,
            strict=True,
        ),
        Limit("And it tends to 0.", C / ((k + 1) * c + low), k, sp.oo, sp.Integer(0)),
        Identity(
            "Equality: from z_0 = b u, b < 0, by steps c u with |u| = l(u) = 1, state k + 1 is ((k+1) c + b) u, and C "
            "= c.",
            low + (k + 1) * c,
            room,
            modulo={"H3": -1},
        ),
        # (b)
        Identity(
            "A pre-norm step from a v moves by gamma a / q along v, and a / q has a positive slope.",
            sp.diff(a / sp.sqrt(a**2 / d + eps), a),
            eps / (a**2 / d + eps) ** sp.Rational(3, 2),
        ),
        Nonnegative(
            "So no step is shorter than the first: a^2 / q^2 >= a_0^2 / q_0^2, here times q^2 q_0^2.",
            a**2 * q0**2 - a0**2 * q**2,
            eps * ref("H7") * (a + a0) + a**2 * ref("H5") - a0**2 * ref("H6"),
        ),
        Nonnegative(
            "No step is as long as gamma sqrt(d): a^2 / q^2 < d.",
            d - a**2 / q**2,
            (d * ref("H6") + d * eps) / q**2,
            strict=True,
        ),
        Nonnegative(
            "The rest is (a) with l(z) = <v, z> and b = a_0: then R is positive from the first step on.",
            a0 + (k + 1) * c,
            a0 + (k + 1) * c,
            strict=True,
        ),
        # (c)
        Identity("sqrt(1 + z^2) adds 1 to the square of the state.", sp.sqrt(1 + t) ** 2, t + 1),
        Induction(
            "So z_k^2 = z_0^2 + k: the difference of the two begins at 0 and stays as it is.",
            k,
            gap,
            gap,
            sp.Integer(0),
            sp.Integer(0),
            sp.Integer(0),
            ref("IH"),
        ),
        Nonnegative("There is no fixed point: 1 + z^2 exceeds z^2.", (1 + x**2) - x**2, sp.Integer(1), strict=True),
        Nonnegative(
            "The residual of a state p > 0 is 1 over the sum of this state and the next, so it is below 1 / (2 p).",
            1 / (2 * p) - (sp.sqrt(1 + p**2) - p),
            1 / (2 * p * (sp.sqrt(1 + p**2) + p) ** 2),
            strict=True,
        ),
        Limit("And it tends to 0.", 1 / (2 * sp.sqrt(t + k)), k, sp.oo, sp.Integer(0)),
        Identity(
            "The difference of two images, times their sum.",
            (sp.sqrt(1 + x**2) - sp.sqrt(1 + y**2)) * (sp.sqrt(1 + x**2) + sp.sqrt(1 + y**2)),
            (x - y) * (x + y),
        ),
        Nonnegative(
            "An image is larger than the state's absolute value, so that their sum is larger than |x + y|: distances "
            "shrink.",
            sp.sqrt(1 + x**2) - sp.Abs(x),
            1 / (sp.sqrt(1 + x**2) + sp.Abs(x)),
            strict=True,
        ),
    ),
    source=Source(
        "",
        derived=True,
        place="seen on the official pre-norm block without residual scaling: halts at step 14, the state at norm 68",
    ),
    claims=(
        Claim(
            "relative residual <= C / ((k+1) c - |z_0|)",
            (Reals("z", -2, 2, 3), Reals("v", 0.1, 2), Reals("more", 0, 2), Reals("wobble", -1, 1), STEPS),
            bounded_drift,
            sharp=True,
            near=({"z": [-1.0, 0.0, 0.0], "v": 1.0, "more": 0.0, "wobble": 0.0, "k": 30.5},),
        ),
        Claim(
            "the same in the max norm",
            (Reals("z", -2, 2, 3), Reals("v", -2, 2, 3), STEPS),
            same_in_max_norm,
            sharp=True,
            near=({"z": [-1.0, 0.0, 0.0], "v": [1.0, 0.0, 0.0], "k": 30.5},),
        ),
        Claim(
            "|z_k| >= k c - |z_0|",
            (Reals("z", -2, 2, 3), Reals("v", -2, 2, 3), STEPS),
            size_in_norm,
            sharp=True,
            near=({"z": [-1.0, 0.0, 0.0], "v": [1.0, 0.0, 0.0], "k": 30.5},),
        ),
        Claim(
            "pre-norm steps never shrink",
            (Reals("a", 0.01, 3, log=True), Reals("gamma", 0.01, 3, log=True), Reals("eps", 1e-8, 1, log=True), STEPS),
            prenorm_step,
            sharp=True,
        ),
        Claim(
            "pre-norm steps stay below gamma sqrt(d)",
            (Reals("a", 0.01, 3, log=True), Reals("gamma", 0.01, 3, log=True), Reals("eps", 1e-8, 1, log=True), STEPS),
            prenorm_longest,
            sharp=True,
        ),
        Claim(
            "the relative residual of the pre-norm block",
            (Reals("a", 0.01, 3, log=True), Reals("gamma", 0.01, 3, log=True), Reals("eps", 1e-8, 1, log=True), STEPS),
            prenorm_fires,
            sharp=True,
        ),
        Claim(
            "residual of sqrt(1 + z^2) below 1 / (2 |z_k|)",
            (Reals("z", -20, 20), Reals("k", 0, 99.999)),
            hyperbola,
            sharp=True,
        ),
        Claim(
            "sqrt(1 + z^2) stretches no distance",
            (Reals("x", -200, 200), Reals("more", 0.01, 10)),
            hyperbola_slope,
            sharp=True,
        ),
    ),
    code=("fpcheck/solve/monitor.py:Monitor", "fpcheck/solve/official.py:OfficialFPOPT"),
    remarks=(
        "The official token residual is the case of the max norm, token by token, with l the entry that grows.",
        "Progress in one direction is needed: a state that goes round in a circle has increments between c and C, and "
        "does not run away; nor does its relative residual fall.",
        "Residual scaling with a gain below 1 on the state excludes (a): the states are then bounded. It does not "
        "exclude a slow contraction, for which see X3.",
        "In (c) the residual falls like 1 / sqrt(k); with steps 1/k it falls like 1/k, and the state still runs away, "
        "as log k. The sum of the remaining steps is what must be bounded.",
    ),
)
