"""F1: when an FPRM block is bounded, in the form that the official code has."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Induction,
    Nonnegative,
    NotChecked,
    Reals,
    Source,
    Summed,
    Symbol,
    Theorem,
    Totals,
    ref,
)

alpha_1 = sp.Symbol("alpha_1", positive=True)
alpha_2 = sp.Symbol("alpha_2", positive=True)
gap_1 = sp.Symbol("g_1", positive=True)
gap_p = sp.Symbol("g_p", positive=True)
beta_1 = sp.Symbol("beta_1", positive=True)
beta_2 = sp.Symbol("beta_2", positive=True)
p = sp.Symbol("p", positive=True)
h_0 = sp.Symbol("h_0", real=True)
o = sp.Symbol("o", real=True)
weighted = sp.Symbol("S_j", real=True)
H = sp.Symbol("H_j", nonnegative=True)
H_0 = sp.Symbol("H_0", nonnegative=True)
H_next = sp.Symbol("H_j1", nonnegative=True)
c_f = sp.Symbol("c_f", nonnegative=True)
X = sp.Symbol("X", nonnegative=True)
Y = sp.Symbol("Y", nonnegative=True)
F = sp.Symbol("F", nonnegative=True)
w = sp.Symbol("w", nonnegative=True)
w_0 = sp.Symbol("w_0", nonnegative=True)
w_i = sp.Symbol("w_i", nonnegative=True)
bias = sp.Symbol("b_c", nonnegative=True)
R = sp.Symbol("R", nonnegative=True)
gap = sp.Symbol("g", positive=True)
D = sp.Symbol("D", nonnegative=True)
D_0 = sp.Symbol("D_0", nonnegative=True)
D_1 = sp.Symbol("D_1", nonnegative=True)
j = sp.Symbol("j", nonnegative=True, integer=True)
k = sp.Symbol("k", nonnegative=True, integer=True)
i = sp.Symbol("i", positive=True, integer=True)
theta = sp.Symbol("theta", positive=True)
time = sp.Symbol("t", nonnegative=True, integer=True)
power = sp.Symbol("theta_i", nonnegative=True)
w_theta = sp.Symbol("w_theta", nonnegative=True)
rest = sp.Symbol("w_r", nonnegative=True)
earlier = sp.Symbol("y_ti", nonnegative=True)
tap = sp.Symbol("v", positive=True)
growth = sp.Symbol("r", positive=True)
start = sp.Symbol("y_0", positive=True)
minus = sp.Symbol("m_k", real=True)

# Sums over the taps of earlier positions.
TAPS = Totals(over=(w_i, power), table={w_i: rest, w_i * power: w_theta - w_0})

GUARD = sp.Rational(1, 10**5)
a = alpha_2 * p
eta = gap_p / (gap_p + GUARD)
forcing = a * bias + p * beta_2 * X + eta * beta_2 * c_f


def _scales(ctx, point):
    a1, a2 = point["a1"], point["a2"]
    power = a1**2
    b2 = 1 - a2 * power
    return a1, a2, b2 * (1 - a1) / (1 - power + ctx.mpf(1) / 10**5), b2


def _block(ctx, point, y, x, updates):
    """One channel of three positions: causal convolution of two taps, then two sublayers with outputs of size c_f."""
    a1, a2, b1, b2 = _scales(ctx, point)
    taps = point["w"]
    out = []
    for t in range(3):
        mixed = taps[0] * y[t] + (taps[1] * y[t - 1] if t else 0) + point["bias"]
        h = a2 * mixed + b2 * x[t]
        for s in range(2):
            h = a1 * h + b1 * point["cf"] * updates[2 * t + s]
        out.append(h)
    return out


def _force_and_gain(ctx, point, gain):
    """What is added per step, and the gain, in the sup norm weighted by theta^t."""
    a1, a2, _, b2 = _scales(ctx, point)
    power = a1**2
    share = (1 - power) / (1 - power + ctx.mpf(1) / 10**5)
    force = a2 * power * abs(point["bias"]) + power * b2 * point["X"] + share * b2 * point["cf"]
    return force, a2 * power * gain


def _norm(point, y):
    return max(abs(v) * point["theta"] ** t for t, v in enumerate(y))


def one_step(ctx, point):
    y = [3 * v for v in point["y"]]
    x = [point["X"] * v for v in point["x"]]
    force, gain = _force_and_gain(ctx, point, abs(point["w"][0]) + point["theta"] * abs(point["w"][1]))
    return _norm(point, _block(ctx, point, y, x, point["o"])), gain * _norm(point, y) + force


def excess(ctx, point):
    """After two steps from outside: the distance to the ball, against the gain squared times that at the start."""
    force, gain = _force_and_gain(ctx, point, abs(point["w"][0]) + point["theta"] * abs(point["w"][1]))
    if gain >= 1:
        return None
    radius = force / (1 - gain)
    y = [(3 + 2 * radius) * v for v in point["y"]]
    begin = _norm(point, y) - radius
    if begin <= 0:
        return None
    x = [point["X"] * v for v in point["x"]]
    for _ in range(2):
        y = _block(ctx, point, y, x, point["o"])
    return max(_norm(point, y) - radius, ctx.mpf(0)), gain**2 * begin


def invariant_without_convolution(ctx, point):
    """|y| <= alpha_1^(2K) |x| + eta c_f stays so."""
    power = point["a1"] ** 2
    share = (1 - power) / (1 - power + ctx.mpf(1) / 10**5)
    radius = power * point["X"] + share * point["cf"]
    plain = {**point, "w": [ctx.mpf(1), ctx.mpf(0)], "bias": ctx.mpf(0)}
    y = [radius * v for v in point["y"]]
    x = [point["X"] * v for v in point["x"]]
    return max(abs(v) for v in _block(ctx, plain, y, x, point["o"])), radius


SPACE = (
    Reals("a1", 0.01, 0.99),
    Reals("a2", 0.01, 0.99),
    Reals("w", -3, 3, 2),
    Reals("bias", -1, 1),
    Reals("theta", 0.05, 1),
    Reals("X", 0, 3),
    Reals("cf", 0, 3),
    Reals("x", -1, 1, 3),
    Reals("y", -1, 1, 3),
    Reals("o", -1, 1, 6),
)
ALIGNED = {
    "a1": 0.75,
    "a2": 0.5,
    "w": [1.0, 0.5],
    "bias": 0.5,
    "theta": 1.0,
    "X": 1.0,
    "cf": 1.0,
    "x": [1.0] * 3,
    "y": [1.0] * 3,
    "o": [1.0] * 6,
}

THEOREM = Theorem(
    id="F1",
    title="Boundedness of the FPRM block as the code has it",
    statement=(
        r"One channel of the block: $h_0 = \alpha_2\, C y + \beta_2 x$, $h_{j+1} = \alpha_1 h_j + \beta_1 o_j$, $F(y) "
        r"= h_{2K}$, with $\alpha_1, \alpha_2 \in (0, 1)$ of its own, $p = \alpha_1^{2K}$, $\beta_2 = 1 - \alpha_2 "
        r"p$, $\beta_1 = \beta_2 (1 - \alpha_1) / (1 - p + 10^{-5})$, sublayer outputs $|o_j| \le c_f$ at every "
        r"position, and a depthwise convolution $C$ with taps $w_i$ and bias $b_c$. Then $h_{2K} = p\, h_0 + \beta_1 "
        r"\sum_{j < 2K} \alpha_1^{2K-1-j} o_j$ with $\beta_1 \sum_{j<2K} \alpha_1^j = \eta \beta_2$, $\eta = "
        r"\frac{1-p}{1-p+10^{-5}} < 1$, and with $|\cdot|$ the largest absolute value over positions, $w = \sum_i "
        r"|w_i|$ and $a = \alpha_2 p$: $|F(y)| \le a w |y| + a |b_c| + p \beta_2 |x| + \eta \beta_2 c_f$. If $a w < "
        r"1$, the set $|y| \le R = \frac{a |b_c| + p \beta_2 |x| + \eta \beta_2 c_f}{1 - a w}$ is invariant, and the "
        r"excess of $|y|$ over $R$ shrinks by $a w$ per step; if this holds in every channel, a continuous block has "
        r"a fixed point in the set. Without a convolution $R = p |x| + \eta c_f$, whatever the weights. For a causal "
        r"convolution $a |w_0| < 1$ suffices, $w_0$ being the tap of the current position: the same holds for the "
        r"largest $\theta^t |y_t|$ and $w_\theta = \sum_i |w_i| \theta^i$ with any $\theta \in (0, 1]$ such that $a "
        r"w_\theta < 1$; if $a |w_0| > 1$, zero sublayer weights and $x = 0$ make the first position grow without "
        r"bound."
    ),
    plain=(
        "The published boundedness theorem leaves out the convolution of the state that the official code has. "
        "Without it every FPRM block is bounded; with it, a gain condition per channel must be checked: alpha_2 "
        "alpha_1^(2K) times the kernel's absolute sum (for a causal kernel: its current tap) below 1. Nothing in the "
        "code enforces it."
    ),
    symbols=(
        Symbol(alpha_1, "share of the stream that a sublayer hands on, of one channel", "alpha_1"),
        Symbol(alpha_2, "share of the convolved state, of one channel", "alpha_2"),
        Symbol(gap_1, "1 - alpha_1"),
        Symbol(gap_p, "1 - p"),
        Symbol(beta_1, "scale of a sublayer's output", "beta_1"),
        Symbol(beta_2, "scale of the injection", "beta_2"),
        Symbol(p, "alpha_1 to the power 2K, K = L_layers", "power"),
        Symbol(h_0, "stream before the first sublayer, one position"),
        Symbol(o, "output of sublayer j, one position"),
        Symbol(weighted, "sum of alpha_1^(j-1-i) o_i over i < j"),
        Symbol(H, "|h_j|, one position"),
        Symbol(H_0, "|h_0|, one position"),
        Symbol(H_next, "|h_{j+1}|, one position"),
        Symbol(c_f, "bound of the sublayers' outputs in this channel"),
        Symbol(X, "|x|, largest over positions"),
        Symbol(Y, "|y|, largest over positions (weighted by theta^t)"),
        Symbol(F, "|F(y)|, likewise"),
        Symbol(w, "gain of the convolution: sum of |w_i| (weighted by theta^i)"),
        Symbol(w_0, "|w_0|, tap of the current position"),
        Symbol(w_i, "|w_i|, tap of i positions earlier"),
        Symbol(bias, "|b_c|, bias of the convolution"),
        Symbol(R, "radius of the invariant set"),
        Symbol(gap, "1 - a w"),
        Symbol(D, "max(|y_k| - R, 0) after k steps"),
        Symbol(D_0, "the same at the start"),
        Symbol(D_1, "the same after one more step"),
        Symbol(j, "number of the sublayer"),
        Symbol(k, "number of steps of the loop"),
        Symbol(i, "lag of a tap"),
        Symbol(theta, "base of the weights over positions"),
        Symbol(power, "theta to the power i"),
        Symbol(w_theta, "|w_0| plus the sum of |w_i| theta^i over the earlier positions' taps"),
        Symbol(rest, "w - |w_0|, the sum of the earlier positions' |w_i|"),
        Symbol(time, "a position"),
        Symbol(earlier, "|y| at position t - i, weighted by theta^(t-i)"),
        Symbol(tap, "|w_0| in the witness"),
        Symbol(growth, "a |v| - 1 in the witness"),
        Symbol(start, "the witness's start"),
        Symbol(minus, "-y_k in the witness"),
    ),
    hypotheses=(
        Hypothesis("H1", "alpha_1 < 1, with g_1 = 1 - alpha_1 > 0", gap_1 - (1 - alpha_1), "zero"),
        Hypothesis("H2", "p < 1 as a power of alpha_1, with g_p = 1 - p > 0", gap_p - (1 - p), "zero"),
        Hypothesis(
            "H3", "beta_2 = 1 - alpha_2 alpha_1^(2K), positive since both alphas are below 1", beta_2 - (1 - a), "zero"
        ),
        Hypothesis(
            "H4",
            "beta_1 = beta_2 (1 - alpha_1) / (1 - alpha_1^(2K) + 1e-5)",
            beta_1 * (gap_p + GUARD) - beta_2 * gap_1,
            "zero",
        ),
        Hypothesis("H5", "|o_j| <= c_f in this channel, at every position and for every stream"),
        Hypothesis("H6", "a w < 1, with g = 1 - a w > 0 (where a set is claimed)", gap - (1 - a * w), "zero"),
        Hypothesis("H7", "R (1 - a w) = a |b_c| + p beta_2 |x| + eta beta_2 c_f", R * gap - forcing, "zero"),
        Hypothesis("H8", "theta <= 1 (the unweighted norm has theta = 1)", 1 - theta),
        Hypothesis(
            "H9",
            "where a |w_0| < 1 is assumed: theta is so small that a theta (w - |w_0|) <= (1 - a |w_0|) / 2",
            (1 - a * w_0) / 2 - a * theta * rest,
        ),
        Hypothesis("H10", "after the induction: all sublayers, j = 2K, so alpha_1^j = p", alpha_1**j - p, "zero"),
        Hypothesis("H11", "in the witness, whose tap is v: a |v| = 1 + r with r > 0", a * tap - 1 - growth, "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "|h_{j+1}| <= alpha_1 |h_j| + beta_1 c_f, by H5",
            alpha_1 * H + beta_1 * c_f - H_next,
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "F2",
            "|h_0| <= alpha_2 (w |y| + |b_c|) + beta_2 |x|",
            alpha_2 * (w * Y + bias) + beta_2 * X - H_0,
            "triangle inequality, tap by tap",
            axiom=True,
        ),
        Fact("F3", "F(y) = h_j for j = 2K", H - F, "definition of the block", "zero", axiom=True),
        Fact("F4", "the excess is at least |y_k| - R", D - (Y - R), "definition of the maximum", axiom=True),
        Fact(
            "F5",
            "the next excess is the greater of |F(y)| - R and 0; both are at most a w D, by step 'excess'",
            a * w * D - D_1,
            "a maximum is at most what bounds its members",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "The unrolled form, by induction: one more sublayer multiplies the stream and the weighted sum by alpha_1.",
            alpha_1 * (alpha_1**j * h_0 + beta_1 * weighted) + beta_1 * o,
            alpha_1 ** (j + 1) * h_0 + beta_1 * (alpha_1 * weighted + o),
        ),
        Induction(
            "Its size: the sublayers together add at most beta_1 c_f times the geometric sum.",
            k=j,
            quantity=H,
            following=H_next,
            bound=alpha_1**j * H_0 + beta_1 * c_f * (1 - alpha_1**j) / gap_1,
            start=H_0,
            base=sp.Integer(0),
            step=alpha_1 * ref("IH") + ref("F1") - beta_1 * c_f / gap_1 * ref("H1"),
            label="stream",
        ),
        Nonnegative(
            "At j = 2K.",
            p * H_0 + beta_1 * c_f * gap_p / gap_1 - F,
            ref("stream") + ref("F3") - H_0 * ref("H10") + beta_1 * c_f / gap_1 * (ref("H2") + ref("H10")),
            label="all sublayers",
        ),
        Identity(
            "The geometric sum times beta_1 is eta beta_2 ...",
            beta_1 * gap_p / gap_1,
            eta * beta_2,
            modulo={"H4": gap_p / (gap_1 * (gap_p + GUARD))},
            label="sum",
        ),
        Nonnegative(
            "... with eta below 1: the guard in the code only helps.", 1 - eta, GUARD / (gap_p + GUARD), strict=True
        ),
        Nonnegative(
            "One application of the block.",
            a * w * Y + forcing - F,
            ref("all sublayers") + p * ref("F2") - c_f * ref("sum"),
            label="block",
        ),
        Nonnegative(
            "Measured from R, the size shrinks by a w; so |y| <= R is kept, and an excess D becomes at most a w D.",
            a * w * D - (F - R),
            ref("block") + a * w * ref("F4") + ref("H7") - R * ref("H6"),
            label="excess",
        ),
        Induction(
            "k steps.",
            k=k,
            quantity=D,
            following=D_1,
            bound=(a * w) ** k * D_0,
            start=D_0,
            base=sp.Integer(0),
            step=a * w * ref("IH") + ref("F5"),
        ),
        Identity(
            "Without a convolution w = 1 and b_c = 0; then 1 - a w is beta_2 and cancels: R = p |x| + eta c_f.",
            (p * X + eta * c_f) * (1 - a * w).subs(w, 1),
            forcing.subs(bias, 0),
            modulo={"H3": -(p * X + eta * c_f)},
        ),
        Identity(
            "A causal tap of lag i in the norm max_t theta^t |y_t|: the weight splits, so the tap's gain is |w_i| "
            "theta^i.",
            theta**time * w_i * (earlier * theta ** (i - time)),
            w_i * theta**i * earlier,
        ),
        Induction(
            "Taps of a lag i >= 1 gain at most theta times their absolute value, as theta^i <= theta.",
            k=i,
            quantity=power,
            following=theta * power,
            bound=theta,
            start=theta,
            base=sp.Integer(0),
            step=theta * ref("IH") + theta * ref("H8"),
            first=1,
            label="lag",
        ),
        Nonnegative("For one tap:", w_i * theta - w_i * power, w_i * ref("lag"), label="tap"),
        Summed(
            "Summed over the earlier positions' taps: w_theta <= |w_0| + theta (w - |w_0|).",
            of="tap",
            totals=TAPS,
            result=w_0 + theta * rest - w_theta,
            label="taps",
        ),
        Nonnegative(
            "So a small theta leaves 1 - a w_theta at least half of 1 - a |w_0|.",
            (1 - a * w_theta) - (1 - a * w_0) / 2,
            a * ref("taps") + ref("H9"),
        ),
        Identity(
            "Witness: sublayers with zero weights, x = 0 and no bias. The first content position sees its own tap "
            "alone, and one application multiplies it by a |v| = 1 + r in absolute value.",
            p * (alpha_2 * tap * start),
            (1 + growth) * start,
            modulo={"H11": start},
            label="witness",
        ),
        Induction(
            "It grows at least linearly without end: |y_k| >= (1 + k r) |y_0|, written for m_k = -|y_k|.",
            k=k,
            quantity=minus,
            following=(1 + growth) * minus,
            bound=-(1 + k * growth) * start,
            start=-start,
            base=sp.Integer(0),
            step=(1 + growth) * ref("IH") + k * growth**2 * start,
        ),
    ),
    source=Source(
        "FPRM", 2026, "arXiv 2606.18206, Theorem 1 (boundedness), extended here to the official code's block"
    ),
    claims=(
        Claim(
            "|F(y)| <= a w |y| + a |b_c| + p beta_2 |x| + eta beta_2 c_f", SPACE, one_step, sharp=True, near=(ALIGNED,)
        ),
        Claim(
            "the excess over R after two steps",
            SPACE,
            excess,
            sharp=True,
            near=({**ALIGNED, "a1": 0.6, "w": [1.0, 0.0]},),
        ),
        Claim(
            "without a convolution p |x| + eta c_f is invariant",
            SPACE,
            invariant_without_convolution,
            sharp=True,
            near=(ALIGNED,),
        ),
    ),
    not_checked=(
        NotChecked(
            "under pre-norm the sublayers' outputs are bounded: they are continuous on the range of RMSNorm, whose "
            "closure is compact; so c_f exists for every value of the weights",
            "Weierstrass, e.g. Rudin (1976), Theorem 4.16",
        ),
        NotChecked("a continuous map of a closed ball into itself has a fixed point", "Brouwer (1911), Satz 4"),
    ),
    code=("fpcheck/spectral/carry.py:carry_report",),
    uses=("D1", "N1"),
    remarks=(
        "The published theorem has no convolution, for which it is right; the official code applies one to the state "
        "before everything else, and its kernel is not constrained. PyTorch's default initialisation of a depthwise "
        "kernel with k taps keeps the sum of absolute values below sqrt(k), so a w < 1 holds at the start of the "
        "training.",
        "Under peri-norm c_f = sqrt(d), whatever the weights (N1): the radius is then explicit.",
        "Positions before the content (puzzle tokens) bypass the convolution: for them w = 1 and b_c = 0.",
        "For a square kernel with zero padding there is no first position; a kernel with its centre tap alone is the "
        "witness there.",
        "Each channel has its own radius, because neither the convolution nor the scales mix channels.",
        "Input-dependent scales, norms at the input or output, and outer_only are in F1b.",
    ),
)
