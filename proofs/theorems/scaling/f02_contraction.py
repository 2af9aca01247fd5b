"""F2: when an FPRM block contracts, in the form that the official code has."""

import sympy as sp

from proofs import (
    Claim,
    Enclosed,
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
from proofs.numbers import norm

alpha = sp.Symbol("alpha_1", positive=True)
A_1 = sp.Symbol("A_1", positive=True)
B_1 = sp.Symbol("B_1", positive=True)
G = sp.Symbol("G", positive=True)
gain = sp.Symbol("alpha_2w", nonnegative=True)
u = sp.Symbol("u", nonnegative=True)
v = sp.Symbol("v", nonnegative=True)
n_v = sp.Symbol("n_v", nonnegative=True)
n_u = sp.Symbol("n_u", nonnegative=True)
n_a = sp.Symbol("n_a", nonnegative=True)
w_i = sp.Symbol("w_i", nonnegative=True)
s_i = sp.Symbol("s_i", nonnegative=True)
V = sp.Symbol("V", nonnegative=True)
w = sp.Symbol("w", nonnegative=True)
T = sp.Symbol("T", nonnegative=True)
C_v = sp.Symbol("C_v", nonnegative=True)
l_g = sp.Symbol("l", nonnegative=True)
j = sp.Symbol("j", nonnegative=True, integer=True)
K = sp.Symbol("K", positive=True, integer=True)
e = sp.Symbol("e", nonnegative=True)
e_0 = sp.Symbol("e_0", nonnegative=True)
e_j = sp.Symbol("e_j", nonnegative=True)
e_next = sp.Symbol("e_j1", nonnegative=True)
moved = sp.Symbol("m_j", nonnegative=True)
eps = sp.Symbol("epsilon", positive=True)
A = sp.Symbol("A", positive=True)
root = sp.Symbol("r", positive=True)
kappa = sp.Symbol("kappa", positive=True)
h = sp.Symbol("h", real=True)

TAPS = Totals(over=(w_i, s_i), table={w_i: w, w_i * s_i: T})
CHANNELS = Totals(over=(u, v, alpha), table={v**2: n_v, alpha**2 * v**2: n_a, u**2: n_u})
GUARD = sp.Rational(1, 10**5)


def threshold(alpha_1, alpha_2):
    """The largest admissible constant of a sublayer behind its norm, for two layers and no convolution."""
    power = alpha_1**4
    beta_1 = (1 - alpha_2 * power) * (1 - alpha_1) / (1 - power + GUARD)
    return (alpha_2 ** sp.Rational(-1, 4) - alpha_1) / beta_1


def _scales(ctx, point):
    rows = []
    for a1, a2 in zip(point["a1"], point["a2"], strict=True):
        power = a1**2
        b2 = 1 - a2 * power
        rows.append((a1, a2, b2 * (1 - a1) / (1 - power + ctx.mpf(1) / 10**5), b2))
    return rows


def _block(ctx, point, y):
    """Two positions, two channels; g turns the normalised token by an angle, times l sqrt(eps)."""
    scales, eps, taps = _scales(ctx, point), point["eps"], point["w"]
    tokens = []
    for t in range(2):
        mixed = [taps[2 * c] * y[2 * t + c] + (taps[2 * c + 1] * y[c] if t else 0) for c in range(2)]
        tokens.append([s[1] * m + s[3] * x for s, m, x in zip(scales, mixed, point["x"], strict=True)])
    for angle in point["turn"]:
        for t in range(2):
            p, r = tokens[t]
            size = point["l"] * ctx.sqrt(eps) / ctx.sqrt((p * p + r * r) / 2 + eps)
            out = size * (ctx.cos(angle) * p - ctx.sin(angle) * r), size * (ctx.sin(angle) * p + ctx.cos(angle) * r)
            tokens[t] = [s[0] * q + s[2] * o for s, q, o in zip(scales, tokens[t], out, strict=True)]
    return [*tokens[0], *tokens[1]]


def contraction(ctx, point):
    y, z = point["y"], point["z"]
    distance = norm(ctx, [a - b for a, b in zip(y, z, strict=True)])
    if distance == 0:
        return None
    moved = norm(ctx, [a - b for a, b in zip(_block(ctx, point, y), _block(ctx, point, z), strict=True)])
    scales, taps = _scales(ctx, point), point["w"]
    start = max(scales[c][1] * (abs(taps[2 * c]) + abs(taps[2 * c + 1])) for c in range(2))
    each = max(s[0] for s in scales) + max(s[2] for s in scales) * point["l"]
    return moved, start * each**2 * distance


THEOREM = Theorem(
    id="F2",
    title="Contraction of the FPRM block as the code has it",
    statement=(
        r"Let the block of F1 have scales per channel that do not depend on the state, pre- or peri-norm sublayers "
        r"$g_j \circ N$ that are $l$-Lipschitz in the Euclidean norm of the whole state, and no norm at the output. "
        r"With $A_1 = \max_c \alpha_1$, $B_1 = \max_c \beta_1$ and $G = \max_c \alpha_2 \sum_i |w_i|$ over the "
        r"channels $c$, $F$ is Lipschitz with $G (A_1 + B_1 l)^{2K}$, which these numbers do not let improve. It is "
        r"below 1 exactly if $l < (G^{-1/(2K)} - A_1) / B_1$. Globally $l \ge \kappa / \sqrt\epsilon$, where $\kappa$ "
        r"is the norm of the linear map by which $g$ acts on equal tokens, $W_o W_v$ for attention: with $\epsilon = "
        r"10^{-5}$, two layers and no convolution the condition then asks for $\kappa < 0.0043$ at $\alpha_1 = "
        r"\alpha_2 = \frac12$ and for $\kappa < 0.0063$ at $\alpha_1 = \frac34, \alpha_2 = \frac14$."
    ),
    plain=(
        "The published contraction condition, alpha_2 times a layer constant below 1, gains a factor for the "
        "convolution and takes the worst channel of each scale. With a constant that holds for all states it can be "
        "met only by an attention whose output is nearly nothing, because the norm's own constant is 1 / sqrt(eps) = "
        "316. It is useful on a ball, with l from N6."
    ),
    symbols=(
        Symbol(alpha, "alpha_1 of one channel", "alpha_1"),
        Symbol(A_1, "the largest alpha_1 of all channels"),
        Symbol(B_1, "the largest beta_1 of all channels"),
        Symbol(G, "the largest alpha_2 times sum of |w_i| of all channels"),
        Symbol(gain, "that of one channel"),
        Symbol(u, "size of a channel's convolved difference times alpha_2, over all positions"),
        Symbol(v, "size of a channel's difference, over all positions"),
        Symbol(n_v, "sum of v^2 over channels"),
        Symbol(n_u, "sum of u^2 over channels"),
        Symbol(n_a, "sum of (alpha_1 v)^2 over channels"),
        Symbol(w_i, "|w_i|, a tap of the channel's kernel"),
        Symbol(s_i, "norm of the difference shifted by that tap"),
        Symbol(V, "norm of the channel's difference"),
        Symbol(w, "sum of |w_i|"),
        Symbol(T, "sum of |w_i| s_i"),
        Symbol(C_v, "norm of the channel's convolved difference"),
        Symbol(l_g, "Lipschitz constant of each sublayer behind its norm"),
        Symbol(j, "number of the sublayer"),
        Symbol(K, "number of layers of two sublayers each", "L_layers"),
        Symbol(e, "distance of two states"),
        Symbol(e_0, "distance of their stream starts"),
        Symbol(e_j, "distance of their streams before sublayer j"),
        Symbol(e_next, "and after it"),
        Symbol(moved, "distance of that sublayer's outputs"),
        Symbol(eps, "the norm's epsilon", "eps"),
        Symbol(A, "G to the power -1/(2K)"),
        Symbol(root, "A_1 + B_1 l"),
        Symbol(kappa, "norm of W, the linear map by which g acts on equal tokens"),
        Symbol(h, "a token along the direction that W stretches most, over sqrt(d)"),
    ),
    hypotheses=(
        Hypothesis("H1", "every alpha_1 is at most A_1", A_1 - alpha),
        Hypothesis("H2", "every g_j(N(.)) is l-Lipschitz", l_g * e_j - moved),
        Hypothesis("H3", "alpha_2 sum |w_i| of every channel is at most G", G - gain),
    ),
    facts=(
        Fact("F1", "a shift with zero padding forgets entries and adds none", V - s_i, "sum of squares", axiom=True),
        Fact("F2", "|C v| <= sum of |w_i| s_i in one channel", T - C_v, "triangle inequality", axiom=True),
        Fact(
            "F3",
            "|alpha_2 C v| <= alpha_2 w |v| in one channel, by step 'kernel'",
            gain * v - u,
            "step 'kernel'",
            axiom=True,
        ),
        Fact(
            "F4",
            "the injection and the bias drop out: e_0 <= G e, by step 'start'",
            G * e - e_0,
            "step 'start'",
            axiom=True,
        ),
        Fact(
            "F5",
            "e_{j+1} <= A_1 e_j + B_1 m_j, by step 'scale', for beta_1 likewise",
            A_1 * e_j + B_1 * moved - e_next,
            "triangle inequality",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative("One tap.", w_i * V - w_i * s_i, w_i * ref("F1"), label="tap"),
        Summed("All taps of a channel's kernel.", of="tap", totals=TAPS, result=w * V - T, label="taps"),
        Nonnegative("So the convolution stretches by at most w.", w * V - C_v, ref("taps") + ref("F2"), label="kernel"),
        Nonnegative(
            "With alpha_2, one channel, squared.",
            G**2 * v**2 - u**2,
            (ref("F3") + v * ref("H3")) * (G * v + u),
            label="channel",
        ),
        Summed(
            "All channels: the stream starts at most G apart.",
            of="channel",
            totals=CHANNELS,
            result=G**2 * n_v - n_u,
            label="start",
        ),
        Nonnegative(
            "A scale per channel stretches by at most its largest entry: one channel, squared;",
            A_1**2 * v**2 - alpha**2 * v**2,
            ref("H1") * (A_1 + alpha) * v**2,
            label="entry",
        ),
        Summed("and all of them.", of="entry", totals=CHANNELS, result=A_1**2 * n_v - n_a, label="scale"),
        Nonnegative(
            "One sublayer stretches by at most A_1 + B_1 l.",
            (A_1 + B_1 * l_g) * e_j - e_next,
            ref("F5") + B_1 * ref("H2"),
            label="sublayer",
        ),
        Induction(
            "All of them.",
            k=j,
            quantity=e_j,
            following=e_next,
            bound=G * (A_1 + B_1 * l_g) ** j * e,
            start=e_0,
            base=ref("F4"),
            step=(A_1 + B_1 * l_g) * ref("IH") + ref("sublayer"),
        ),
        Identity(
            "With A = G^(-1/(2K)) the constant is the 2K-th power of (A_1 + B_1 l) / A; so it is below 1 exactly if "
            "A_1 + B_1 l < A (as in D2).",
            A ** (-2 * K) * root ** (2 * K),
            (root / A) ** (2 * K),
        ),
        Identity(
            "Equal tokens go through attention as through the linear map W. Along the direction that W stretches by "
            "kappa, the sublayer's output has kappa times the length of the normalised token, whose slope at 0 is 1 / "
            "sqrt(epsilon) (N1).",
            sp.diff(kappa * h / sp.sqrt(h**2 + eps), h).subs(h, 0),
            kappa / sp.sqrt(eps),
        ),
        Enclosed(
            "What the condition then leaves for kappa with the official epsilon, two layers and both alphas 1/2,",
            threshold(sp.Rational(1, 2), sp.Rational(1, 2)) * sp.sqrt(sp.Rational(1, 10**5)),
            "42/10000",
            "43/10000",
        ),
        Enclosed(
            "and for alpha_1 = 3/4, alpha_2 = 1/4.",
            threshold(sp.Rational(3, 4), sp.Rational(1, 4)) * sp.sqrt(sp.Rational(1, 10**5)),
            "62/10000",
            "63/10000",
        ),
    ),
    source=Source(
        "FPRM", 2026, "arXiv 2606.18206, Theorem 2 (contraction), extended here to the official code's block"
    ),
    claims=(
        Claim(
            "|F(y) - F(z)| <= G (A_1 + B_1 l)^2 |y - z|",
            (
                Reals("a1", 0.05, 0.95, 2),
                Reals("a2", 0.05, 0.95, 2),
                Reals("w", -2, 2, 4),
                Reals("l", 0, 3),
                Reals("turn", -3, 3, 2),
                Reals("x", -1, 1, 2),
                Reals("y", -1, 1, 4),
                Reals("z", -1, 1, 4),
                Reals("eps", 1e-3, 1, log=True),
            ),
            contraction,
            sharp=True,
            near=(
                {
                    "a1": [0.5, 0.5],
                    "a2": [0.5, 0.5],
                    "w": [1.0, 0.0, 1.0, 0.0],
                    "l": 1.0,
                    "turn": [0.0, 0.0],
                    "x": [0.0, 0.0],
                    "y": [0.002, 0.0, 0.0, 0.0],
                    "z": [-0.002, 0.0, 0.0, 0.0],
                    "eps": 1.0,
                },
            ),
        ),
    ),
    uses=("D2", "F1", "N1", "N6"),
    remarks=(
        "A norm at the output multiplies the constant by 1 / q_min of that norm (N6), a norm at the input likewise.",
        "outer_only has A_1 = B_1 = 1: then even l = 1 and two layers ask for G < 1/16.",
        "Under peri-norm l contains the second norm's constant too, 1 / sqrt(eps) where an output can vanish.",
        "Scales that depend on the state add the derivatives of the scales; they are not covered.",
        "Positions that bypass the convolution have w = 1; G is then at least max alpha_2.",
        "Sufficient only: trained blocks have local norms above 1 while their spectral radius is below 1 (B5 to B7).",
    ),
)
