"""F6: a looped transformer that contracts for every value of its weights."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Induction,
    Nonnegative,
    Reals,
    Source,
    Summed,
    Symbol,
    Theorem,
    Totals,
    ref,
)
from proofs.numbers import dot, matrix, norm, softmax, spectral_norm

p = sp.Symbol("p", real=True)
r = sp.Symbol("r", real=True)
p_c = sp.Symbol("p_c", real=True)
r_c = sp.Symbol("r_c", real=True)
u_c = sp.Symbol("u_c", real=True)
v_c = sp.Symbol("v_c", real=True)
n_c = sp.Symbol("n_c", real=True)
U = sp.Symbol("U", nonnegative=True)
W = sp.Symbol("W", nonnegative=True)
N = sp.Symbol("N", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
s_i = sp.Symbol("s_i", real=True)
t_c = sp.Symbol("t_c", real=True)
w_c = sp.Symbol("w_c", nonnegative=True)
o_c = sp.Symbol("o_c", real=True)
O = sp.Symbol("O", nonnegative=True)  # noqa: E741
P = sp.Symbol("P", nonnegative=True)
q_i = sp.Symbol("q_i", nonnegative=True)
Q = sp.Symbol("Q", nonnegative=True)
S = sp.Symbol("S", nonnegative=True)
G = sp.Symbol("G", nonnegative=True)
s_h = sp.Symbol("s_h", real=True)
l_h = sp.Symbol("l_h", nonnegative=True)
H = sp.Symbol("H", nonnegative=True)
sigma_1 = sp.Symbol("sigma_1", nonnegative=True)
rest = sp.Symbol("m", nonnegative=True)
k = sp.Symbol("k", positive=True, integer=True)
size = sp.Symbol("B", nonnegative=True)
length = sp.Symbol("w", nonnegative=True)
divisor = sp.Symbol("D", positive=True)
q = sp.Symbol("rate", positive=True)
j = sp.Symbol("j", nonnegative=True, integer=True)
e_0 = sp.Symbol("e_0", nonnegative=True)
e_j = sp.Symbol("e_j", nonnegative=True)
e_next = sp.Symbol("e_j1", nonnegative=True)

CHANNELS = Totals((u_c, v_c, n_c), {u_c**2: U, v_c**2: W, n_c**2: N})
OUTPUTS = Totals((o_c, t_c), {o_c**2: O, t_c: P})
TAPS = Totals((s_i, q_i), {s_i**2: S, s_i**2 * q_i: Q})
HEADS = Totals((s_h, l_h), {s_h**2: G, l_h**2: H})


def _rows(values, width=2):
    return [values[i : i + width] for i in range(0, len(values), width)]


def _times(a, vector):
    return [sum(a[i, j] * vector[j] for j in range(a.cols)) for i in range(a.rows)]


def _ball(ctx, vector):
    scale = max(ctx.mpf(1), norm(ctx, vector))
    return [v / scale for v in vector]


def _schatten(ctx, a, doublings=5):
    """The Schatten norm of order 2^(doublings + 1) from powers of a'a."""
    top = max(abs(v) for v in a)
    if top == 0:
        return ctx.mpf(0)
    power = a.T * a / top**2
    scale = ctx.mpf(1)
    for i in range(1, doublings):
        size = max(abs(v) for v in power)
        scale *= size ** (ctx.mpf(1) / 2**i)
        power = power * power / size**2
    # |power|_F is the root of the trace of its square.
    return top * scale * norm(ctx, list(power)) ** (ctx.mpf(1) / 2**doublings)


def _unit(ctx, values):
    a = matrix(ctx, values, 2, 2)
    return a / max(ctx.mpf(1), _schatten(ctx, a))


def _stretch(ctx, c):
    wide = max(abs(c), ctx.mpf(1) / 2)
    return wide + 1 / (4 * wide)


def _norm(ctx, token, eps):
    q = ctx.sqrt(dot(ctx, token, token) / 2 + eps)
    return [ctx.sqrt(eps) * v / q for v in token]


def _residual(ctx, share, channels, h, g):
    """Two channels; the pairs (p_c, r_c) are (channels[0], channels[2]) and (channels[1], channels[3])."""
    p, r = _ball(ctx, share)
    pairs = [_ball(ctx, [channels[c], channels[2 + c]]) for c in range(2)]
    return [p * a * x + r * b * y for (a, b), x, y in zip(pairs, h, g, strict=True)]


def _convolve(ctx, share, taps, z):
    """Two tokens, two channels, kernel of width 2, whose first tap hits the token before."""
    s = _ball(ctx, share)
    w = [_ball(ctx, [taps[c], taps[2 + c]]) for c in range(2)]
    return [
        [s[1] * w[c][1] * z[t][c] + (s[0] * w[c][0] * z[t - 1][c] if t else ctx.mpf(0)) for c in range(2)]
        for t in range(2)
    ]


def _heads(ctx, weights):
    """Two heads of width 1, whose matrices are rows: their Schatten norm is their length."""
    return [_ball(ctx, row) for row in _rows(weights[:12])], _ball(ctx, weights[12:14]), _unit(ctx, weights[14:18])


def _attend(ctx, heads, beta, fixed, n, eps):
    """Causal."""
    rows, gains, W_o = heads
    outs = []
    for t in range(2):
        stack = []
        for head in range(2):
            query, key, value = rows[3 * head : 3 * head + 3]
            scores = [
                beta / (2 * eps) * dot(ctx, query, n[t]) * dot(ctx, key, n[i]) + fixed[(t + i + head) % 2]
                for i in range(t + 1)
            ]
            gain = gains[head] / _stretch(ctx, beta)
            stack.append(dot(ctx, softmax(ctx, scores), [gain * dot(ctx, value, n[i]) for i in range(t + 1)]))
        outs.append(_times(W_o, stack))
    return outs


def _gate(ctx, matrices, rho, fixed, n, eps):
    gate, up, down = matrices
    arguments = [rho / ctx.sqrt(2 * eps) * v + f for v, f in zip(_times(gate, n), fixed, strict=True)]
    opened = [ctx.tanh(g) * v for g, v in zip(arguments, _times(up, n), strict=True)]
    return [v / _stretch(ctx, rho / 2) for v in _times(down, opened)]


def _distance(ctx, a, b):
    return max(norm(ctx, [s - t for s, t in zip(x, y, strict=True)]) for x, y in zip(a, b, strict=True))


def _block(ctx, point, states):
    """Two tokens of width 2; the weights are points on a curve, so that a few coordinates reach many blocks."""
    eps, through = 1, point["through"]
    weights = [point["size"] * ctx.cos(point["seed"] * (i + 1) ** 2 + i) for i in range(60)]
    heads = _heads(ctx, weights[18:36])
    matrices = [_unit(ctx, weights[i : i + 4]) for i in (39, 43, 47)]
    x = _rows(weights[2:6])
    results = []
    for state in states:
        mixed = _convolve(
            ctx, [through * weights[0], point["size"]], [through * weights[1], through, 1, 1], _rows(state)
        )
        h = [
            [point["rate"] * v + through * w for v, w in zip(*pair, strict=True)] for pair in zip(mixed, x, strict=True)
        ]
        for first in (6, 12):
            n = [_norm(ctx, token, eps) for token in h]
            if first == 6:
                outs = _attend(ctx, heads, weights[36], weights[37:39], n, eps)
            else:
                outs = [_gate(ctx, matrices, weights[51], weights[52:54], token, eps) for token in n]
            share = [point["size"], through * weights[first]]
            channels = [1, 1, *(through * w for w in weights[first + 1 : first + 3])]
            h = [_residual(ctx, share, channels, a, b) for a, b in zip(h, outs, strict=True)]
        results.append(h)
    return results


def block(ctx, point):
    """The statement itself, on two states of a whole block with weights of any size."""
    outputs = _block(ctx, point, (point["y"], point["z"]))
    return _distance(ctx, *outputs), point["rate"] * _distance(ctx, _rows(point["y"]), _rows(point["z"]))


def convolution(ctx, point):
    d = _rows(point["d"])
    moved = _convolve(ctx, point["share"], point["taps"], d)
    return max(norm(ctx, v) for v in moved), max(norm(ctx, v) for v in d)


def attention(ctx, point):
    heads = _heads(ctx, point["W"])
    outputs = [
        _attend(ctx, heads, point["beta"], point["fixed"], [_norm(ctx, t, 1) for t in _rows(point[name])], 1)
        for name in ("y", "z")
    ]
    return _distance(ctx, *outputs), _distance(ctx, _rows(point["y"]), _rows(point["z"]))


def residual_sum(ctx, point):
    u, v = point["u"], point["v"]
    return (
        norm(ctx, _residual(ctx, point["share"], point["channels"], u, v)),
        max(norm(ctx, u), norm(ctx, v)),
    )


def schatten(ctx, point):
    a = matrix(ctx, point["W"], 2, 2)
    return spectral_norm(ctx, a), _schatten(ctx, a)


SPACE = (
    Reals("rate", 0.1, 0.99),
    Reals("seed", 0, 3),
    Reals("size", 0.1, 100, log=True),
    Reals("through", 0, 1),
    Reals("y", -2, 2, 4),
    Reals("z", -2, 2, 4),
)
# Nothing but the stream counts, and it hands on the state with the factor rate.
STREAM = {
    "rate": 0.9,
    "seed": 1.0,
    "size": 2.0,
    "through": 0.0,
    "y": [1, 0, 1, 0],
    "z": [-1, 0, -1, 0],
}
RESIDUAL_SPACE = (
    Reals("share", -2, 2, 2),
    Reals("channels", -2, 2, 4),
    Reals("u", -1, 1, 2),
    Reals("v", -1, 1, 2),
)
# Pairs in the two channels that favour the stream and the sublayer, with the lengths in proportion.
EVEN = {"share": [0.6, 0.8], "channels": [0.6, 0.6, 0.8, 0.8], "u": [0.6, 0.8], "v": [0.6, 0.8]}
ATTENTION_SPACE = (
    Reals("W", -3, 3, 18),
    Reals("beta", -40, 40),
    Reals("fixed", -3, 3, 2),
    Reals("y", -2, 2, 4),
    Reals("z", -2, 2, 4),
)
# Both heads hand on one channel each of equal tokens, with half of the squared budget; W_o adds the two up.
HEADS_ADD = {
    "W": [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 1, 3, 3, 0, 0],
    "beta": 0.4,
    "fixed": [0, 0],
    "y": [0.02, 0, 0.02, 0],
    "z": [-0.02, 0, -0.02, 0],
}
# One head at a high temperature: the query moves alone, at 0. Not divided by its constant, it would move 6 times as
# far.
HOT = {
    "W": [1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0, 0],
    "beta": 36.0,
    "fixed": [0, 0],
    "y": [2, 0, 0.01, 0],
    "z": [2, 0, -0.01, 0],
}

THEOREM = Theorem(
    id="F6",
    title="A looped transformer that contracts for every value of its weights",
    statement=(
        r"Let a block be $h_0 = \mathrm{rate} \cdot C(z) + x$ and $h_{j+1} = a_j \odot h_j + b_j \odot g_j(N(h_j); "
        r"x)$, with $N$ as in F6a, and let: (1) $a_{jc} = p\, p_c$, $b_{jc} = r\, r_c$ in channel $c$, with $(p, r)$ "
        r"and all $(p_c, r_c)$ in the unit disc; (2) $C(z)_t = \sum_i s_i w_i \odot z_{t-i}$, with $s$ and, for each "
        r"channel, $(w_{ic})_i$ in unit balls; (3) $g_j$ an attention $W_o [s_1 o_1; \ldots; s_H o_H]$ with heads as "
        r"in F6a, $|s| \le 1$ and head $h$ divided by its constant there, or $W_o$ times a gated layer of F6b divided "
        r"by its constant, or $W_o \tanh(W_u N(h) + f(x))$; (4) every matrix $W$ used as $W / \max(1, B(W))$ with "
        r"$B(W) = \left(\mathrm{tr}\, (W'W)^{k}\right)^{1/(2k)}$, $k \ge 1$. Then for all weights, injections $x$ and "
        r"states, in the norm $\max_t |z_t|_2$: $\|F(y; x) - F(z; x)\| \le \mathrm{rate} \cdot \|y - z\|$. So for "
        r"rate < 1 the loop has one fixed point and goes there from every start (B1). No smaller constant holds for "
        r"all such blocks."
    ),
    plain=(
        "Every part of the block is built to stretch no distance, and the state enters with the factor rate. So it "
        "settles whatever training does to the weights, at a rate that is known beforehand and free of the sequence "
        "length. What the injection alone decides, such as fixed scores and gates, is not limited."
    ),
    symbols=(
        Symbol(p, "share of the stream", "alpha_share[0]"),
        Symbol(r, "share of the sublayer", "alpha_share[1]"),
        Symbol(p_c, "the stream's factor in one channel", "alpha_channels[0]"),
        Symbol(r_c, "the sublayer's factor in one channel", "alpha_channels[1]"),
        Symbol(u_c, "difference of two streams, one channel"),
        Symbol(v_c, "difference of the sublayer's outputs, one channel"),
        Symbol(n_c, "difference of the residual sums, one channel"),
        Symbol(U, "sum of u_c^2"),
        Symbol(W, "sum of v_c^2"),
        Symbol(N, "sum of n_c^2"),
        Symbol(e, "distance of the states or streams: bound on every token's difference"),
        Symbol(s_i, "s_i, the shared factor of tap i", "conv_share"),
        Symbol(w_c, "sum over taps of w_ic^2, at most 1", "conv_taps"),
        Symbol(o_c, "difference of the convolved states, one channel of one token"),
        Symbol(t_c, "sum over taps of s_i^2 d_ic^2, d_i the difference of token t - i"),
        Symbol(O, "sum over channels of o_c^2"),
        Symbol(P, "sum over channels of t_c, which is the sum over taps of s_i^2 q_i"),
        Symbol(q_i, "|d_i|^2, squared length of the difference of token t - i"),
        Symbol(Q, "sum over taps of s_i^2 q_i"),
        Symbol(S, "|s|^2 of the taps"),
        Symbol(G, "sum of squared gains of the heads"),
        Symbol(s_h, "gain of one head", "alpha_heads"),
        Symbol(l_h, "difference of one head's output"),
        Symbol(H, "sum over heads of l_h^2, squared difference of the stacked heads"),
        Symbol(sigma_1, "largest singular value of W"),
        Symbol(rest, "sum of the other singular values to the power 2k"),
        Symbol(k, "the Schatten norm has the order 2k"),
        Symbol(size, "B(W)"),
        Symbol(length, "|W|"),
        Symbol(divisor, "max(1, B(W))"),
        Symbol(q, "the rate", "rate"),
        Symbol(j, "number of the sublayer"),
        Symbol(e_0, "distance of the streams' starts"),
        Symbol(e_j, "distance of the streams before sublayer j"),
        Symbol(e_next, "and after it"),
    ),
    hypotheses=(
        Hypothesis("H1", "(p_c, r_c) in the unit disc", 1 - p_c**2 - r_c**2),
        Hypothesis("H2", "(p, r) in the unit disc", 1 - p**2 - r**2),
        Hypothesis("H3", "the residual sum", n_c - p * p_c * u_c - r * r_c * v_c, "zero"),
        Hypothesis("H4", "the taps of a channel in the unit ball", 1 - w_c),
        Hypothesis("H5", "s of the taps in the unit ball", 1 - S),
        Hypothesis("H6", "the divisor is at least 1", divisor - 1),
        Hypothesis("H7", "and at least B(W)", divisor - size),
        Hypothesis("H8", "the heads' gains in the unit ball", 1 - G),
    ),
    facts=(
        Fact("F1", "streams differ by at most e in a token", e**2 - U, "definition of the norm", axiom=True),
        Fact(
            "F2",
            "the sublayer is 1-Lipschitz, by F6a, F6b or C5 with steps 'heads' and 'unit'",
            e**2 - W,
            "F6a, F6b, C5",
            axiom=True,
        ),
        Fact("F3", "Cauchy-Schwarz over the taps of a channel", w_c * t_c - o_c**2, "S0", axiom=True),
        Fact("F4", "t_c is a sum of squares", t_c, "definition", axiom=True),
        Fact("F5", "channels and taps may be added up in either order", P - Q, "sums commute", "zero", axiom=True),
        Fact("F6", "every token's difference is at most e, squared", e**2 - q_i, "definition of the norm", axiom=True),
        Fact("F7", "a head, divided by its constant, is s_h-Lipschitz", s_h**2 * e**2 - l_h**2, "F6a", axiom=True),
        Fact(
            "F8",
            "the trace of (W'W)^k is the sum of the singular values to the power 2k",
            size ** (2 * k) - sigma_1 ** (2 * k) - rest,
            "spectral theorem",
            "zero",
            axiom=True,
        ),
        Fact("F9", "|W| = sigma_1 is at most B(W), by step 'Schatten'", size - length, "step 'Schatten'", axiom=True),
        Fact(
            "F10",
            "the streams start at most rate e apart: the injection drops out, step 'convolution'",
            q * e - e_0,
            "homogeneity of the norm",
            axiom=True,
        ),
        Fact("F11", "no sublayer stretches, by step 'residual'", e_j - e_next, "step 'residual'", axiom=True),
    ),
    steps=(
        Nonnegative(
            "Residual sum, one channel: Cauchy-Schwarz with what the pair (p_c, r_c) leaves over.",
            p**2 * u_c**2 + r**2 * v_c**2 - n_c**2,
            ref("H1") * (p**2 * u_c**2 + r**2 * v_c**2)
            + (r_c * p * u_c - p_c * r * v_c) ** 2
            - (n_c + p * p_c * u_c + r * r_c * v_c) * ref("H3"),
            label="channel",
        ),
        Summed("All channels of a token.", "channel", CHANNELS, p**2 * U + r**2 * W - N, label="channels"),
        Nonnegative(
            "So a residual sum of 1-Lipschitz maps is 1-Lipschitz, however the budget is split, in every channel in "
            "its own way.",
            e**2 - N,
            ref("channels") + p**2 * ref("F1") + r**2 * ref("F2") + e**2 * ref("H2"),
            label="residual",
        ),
        Nonnegative(
            "Convolution, one channel of one token.", t_c - o_c**2, ref("F3") + ref("H4") * ref("F4"), label="kernel"
        ),
        Summed("All channels.", "kernel", OUTPUTS, P - O, label="kernels"),
        Nonnegative("One tap.", s_i**2 * e**2 - s_i**2 * q_i, s_i**2 * ref("F6"), label="tap"),
        Summed("All taps.", "tap", TAPS, S * e**2 - Q, label="taps"),
        Nonnegative(
            "So the convolution does not stretch.",
            e**2 - O,
            ref("kernels") - ref("F5") + ref("taps") + e**2 * ref("H5"),
            label="convolution",
        ),
        Summed("All heads of an attention.", "F7", HEADS, G * e**2 - H, label="stack"),
        Nonnegative("So the stacked heads do not stretch.", e**2 - H, ref("stack") + e**2 * ref("H8"), label="heads"),
        Nonnegative(
            "The largest singular value is at most the Schatten norm; the power 2k keeps the order.",
            size ** (2 * k) - sigma_1 ** (2 * k),
            rest + ref("F8"),
            label="Schatten",
        ),
        Nonnegative(
            "So a matrix divided by max(1, B(W)) has norm at most 1.",
            1 - length / divisor,
            (ref("H7") + ref("F9")) / divisor,
            label="unit",
        ),
        Induction(
            "The chain: the streams stay at most rate e apart, after any number of sublayers.",
            k=j,
            quantity=e_j,
            following=e_next,
            bound=q * e,
            start=e_0,
            base=ref("F10"),
            step=ref("IH") + ref("F11"),
        ),
        Identity(
            "The constant cannot be smaller: with p = p_c = 1, r = 0 and a single tap of 1 the block is rate z + x.",
            sp.diff(q * e + rest, e),
            q,
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("residual sum: |a u + b v| <= max(|u|, |v|)", RESIDUAL_SPACE, residual_sum, sharp=True, near=(EVEN,)),
        Claim(
            "|W| <= (tr (W'W)^32)^(1/64)",
            (Reals("W", -3, 3, 4),),
            schatten,
            sharp=True,
            near=({"W": [1.0, 0.5, 2.0, 1.0]},),
        ),
        Claim(
            "convolution: max_t |C(d)_t| <= max_t |d_t|",
            (Reals("share", -2, 2, 2), Reals("taps", -2, 2, 4), Reals("d", -1, 1, 4)),
            convolution,
            sharp=True,
            near=({"share": [1.2, 1.6], "taps": [1.2, 1.2, 1.6, 1.6], "d": [0.6, 0.8, 0.6, 0.8]},),
        ),
        Claim("attention with two heads is 1-Lipschitz", ATTENTION_SPACE, attention, sharp=True, near=(HEADS_ADD, HOT)),
        Claim("the block: |F(y) - F(z)| <= rate |y - z|", SPACE, block, sharp=True, near=(STREAM,)),
    ),
    code=("fpcheck/blocks/contractive.py:ContractiveBlock", "fpcheck/certify/globally.py:certify_global"),
    uses=("B1", "C5", "F6a", "F6b", "S0"),
    remarks=(
        "The order of the Schatten norm only decides how much is given away: at most the factor n^(1/(2k)) for a "
        "smaller side n, 1.07 for n = 64 and k = 32, where the Frobenius norm (k = 1) may give away 8.",
        "About the exact map. A step in floating point with evaluation error e obeys rate |y - z| + 2 e.",
        "The hypotheses are met by parametrisation, v / max(1, |v|), not by projection: gradient descent is free.",
    ),
)
