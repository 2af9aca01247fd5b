"""F1b: which other variants of the FPRM block are bounded, and which is not."""

import sympy as sp

from proofs import (
    Claim,
    Enclosed,
    Extremum,
    Fact,
    Hypothesis,
    Identity,
    Induction,
    Nonnegative,
    NotChecked,
    Reals,
    Root,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import norm, sigmoid

d = sp.Symbol("d", positive=True, integer=True)
eps = sp.Symbol("epsilon", positive=True)
q = sp.Symbol("q", positive=True)
n = sp.Symbol("n", nonnegative=True)
v = sp.Symbol("v", real=True)
others = sp.Symbol("m", nonnegative=True)
alpha_2 = sp.Symbol("alpha_2", positive=True)
gap_2 = sp.Symbol("g_2", positive=True)
a = sp.Symbol("a", positive=True)
a_max = sp.Symbol("a_max", positive=True)
p = sp.Symbol("p", positive=True)
gap_p = sp.Symbol("g_p", positive=True)
beta_2 = sp.Symbol("beta_2", positive=True)
K = sp.Symbol("K", positive=True, integer=True)
j = sp.Symbol("j", nonnegative=True, integer=True)
k = sp.Symbol("k", nonnegative=True, integer=True)
c_f = sp.Symbol("c_f", nonnegative=True)
X = sp.Symbol("X", nonnegative=True)
Y = sp.Symbol("Y", nonnegative=True)
F = sp.Symbol("F", nonnegative=True)
F_out = sp.Symbol("F_o", nonnegative=True)
H = sp.Symbol("H_j", nonnegative=True)
H_0 = sp.Symbol("H_0", nonnegative=True)
H_next = sp.Symbol("H_j1", nonnegative=True)
w = sp.Symbol("w", nonnegative=True)
bias = sp.Symbol("b_c", nonnegative=True)
R = sp.Symbol("R", nonnegative=True)
gap = sp.Symbol("g", positive=True)
D = sp.Symbol("D", nonnegative=True)
D_M = sp.Symbol("D_M", nonnegative=True)
y = sp.Symbol("y", positive=True)
c = sp.Symbol("c", positive=True)
y_star = sp.Symbol("y_star", positive=True)
start = sp.Symbol("y_0", positive=True)
minus = sp.Symbol("m_k", real=True)
minus_next = sp.Symbol("m_k1", real=True)

GUARD = sp.Rational(1, 10**5)
eta = gap_p / (gap_p + GUARD)
outer = alpha_2 * bias + gap_2 * X + 2 * K * c_f
drift = 2 * K * c - (y_star - 1)
peak = Root(
    "The equation y = 1 + e^(-y) has exactly one root between 1 and 2.", 1 + sp.exp(-y_star) - y_star, y_star, 1, 2
)


def _scales(ctx, a1, a2):
    power = a1**2
    b2 = 1 - a2 * power
    return b2 * (1 - a1) / (1 - power + ctx.mpf(1) / 10**5), b2, power


def _run(ctx, a1, a2, first, point):
    """One position, one channel, two sublayers with given outputs."""
    b1, b2, _ = _scales(ctx, a1, a2)
    h = a2 * first + b2 * point["X"] * point["x"]
    for o in point["o"]:
        h = a1 * h + b1 * point["cf"] * o
    return abs(h)


def output_norm(ctx, point):
    h = point["h"]
    root = ctx.sqrt(sum((s * s for s in h), ctx.mpf(0)) / len(h) + point["eps"])
    return norm(ctx, [s / root for s in h]), ctx.sqrt(ctx.mpf(len(h)))


def input_norm(ctx, point):
    h, a1, a2 = point["h"], point["a1"], point["a2"]
    root = ctx.sqrt(sum((s * s for s in h), ctx.mpf(0)) / len(h) + point["eps"])
    _, b2, power = _scales(ctx, a1, a2)
    share = (1 - power) / (1 - power + ctx.mpf(1) / 10**5)
    right = a2 * power * ctx.sqrt(ctx.mpf(len(h))) + power * b2 * point["X"] + share * b2 * point["cf"]
    return _run(ctx, a1, a2, h[0] / root, point), right


def outer_only(ctx, point):
    """From inside the set: alpha_1 = beta_1 = 1, a convolution of gain w."""
    a2 = point["a2"]
    if a2 * abs(point["w"]) >= 1:
        return None
    force = a2 * abs(point["bias"]) + (1 - a2) * point["X"] + 2 * point["cf"]
    radius = force / (1 - a2 * abs(point["w"]))
    h = a2 * (point["w"] * radius * point["y"] + point["bias"]) + (1 - a2) * point["X"] * point["x"]
    return abs(h + sum(point["cf"] * o for o in point["o"])), radius


def input_dependent(ctx, point):
    """Scales that depend on the state; no convolution."""
    y = 5 * point["y"]
    a1, a2 = sigmoid(ctx, point["s"][0] * y + point["s"][1]), sigmoid(ctx, point["s"][2] * y + point["s"][3])
    return _run(ctx, a1, a2, y, point), max(abs(y), point["X"] + point["cf"])


def runaway(ctx, point):
    """outer_only with alpha_2 = sigmoid(y), x = 0 and updates c: six steps."""
    y = begin = point["y0"]
    for _ in range(6):
        y = sigmoid(ctx, y) * y + 2 * point["c"]
    return begin + 6 * (2 * point["c"] - ctx.mpf(2785) / 10**4), y


BLOCK = (
    Reals("a1", 0.01, 0.99),
    Reals("a2", 0.01, 0.99),
    Reals("X", 0, 3),
    Reals("x", -1, 1),
    Reals("cf", 0, 3),
    Reals("o", -1, 1, 2),
)
ONES = {"a1": 0.75, "a2": 0.5, "X": 1.0, "x": 1.0, "cf": 1.0, "o": [1.0, 1.0]}

THEOREM = Theorem(
    id="F1b",
    title="Boundedness of the other FPRM variants",
    statement=(
        r"In the notation of F1. (i) With a norm at the output, and with post-norm layers, $|F(y)|_2 < \sqrt d$ per "
        r"token. (ii) With a norm at the input, $|F(y)| \le a \sqrt d + p \beta_2 |x| + \eta \beta_2 c_f$ per "
        r"channel, whatever the convolution. (iii) With outer_only ($\alpha_1 = \beta_1 = 1$, $\beta_2 = 1 - "
        r"\alpha_2$), $|F(y)| \le \alpha_2 (w |y| + |b_c|) + (1 - \alpha_2)|x| + 2 K c_f$; if $\alpha_2 w < 1$, the "
        r"set $|y| \le R = \frac{\alpha_2 |b_c| + (1-\alpha_2)|x| + 2 K c_f}{1 - \alpha_2 w}$ is invariant, and the "
        r"excess over $R$ shrinks by $\alpha_2 w$ per step. (iv) With scales that depend on the state, in $(0, 1)$, "
        r"and no convolution, $|F(y)| \le \max(|y|, M)$ with $M = |x| + c_f$, and the excess over $M$ shrinks by "
        r"$\sup a$, which is below 1 on every bounded set. (v) With outer_only and scales that depend on the state "
        r"there is no bound: for $\alpha_2 = 1/(1 + e^{-y})$, $x = 0$ and updates of at least $c$, $y_k \ge y_0 + k "
        r"(2 K c - 0.2785)$ for $y_0 > 0$, which grows without end if $2 K c > 0.2785$."
    ),
    plain=(
        "A norm at the input or output bounds the block for all weights. Scaling only the outer residual needs "
        "alpha_2 times the kernel's absolute sum below 1, with a radius that grows with the number of layers; if its "
        "scale also depends on the state, the loop can drift away."
    ),
    symbols=(
        Symbol(d, "width (channels of a token)"),
        Symbol(eps, "the norm's epsilon", "eps"),
        Symbol(q, "root of mean square plus epsilon"),
        Symbol(n, "|h|^2 before a norm"),
        Symbol(v, "a channel before a norm"),
        Symbol(others, "sum of squares of the other channels"),
        Symbol(alpha_2, "share of the convolved state, of one channel", "alpha_2"),
        Symbol(gap_2, "1 - alpha_2, which is beta_2 with outer_only"),
        Symbol(a, "alpha_2 p, at one position"),
        Symbol(a_max, "upper bound of a over positions and the states of a bounded set"),
        Symbol(p, "alpha_1 to the power 2K"),
        Symbol(gap_p, "1 - p"),
        Symbol(beta_2, "scale of the injection", "beta_2"),
        Symbol(K, "number of layers", "L_layers"),
        Symbol(j, "number of the sublayer"),
        Symbol(k, "number of steps of the loop"),
        Symbol(c_f, "bound of the sublayers' outputs in this channel"),
        Symbol(X, "|x|, largest over positions"),
        Symbol(Y, "|y|, largest over positions"),
        Symbol(F, "|F(y)| in the channel, at one position"),
        Symbol(F_out, "the same with outer_only"),
        Symbol(H, "|h_j| with outer_only"),
        Symbol(H_0, "|h_0| with outer_only"),
        Symbol(H_next, "|h_{j+1}| with outer_only"),
        Symbol(w, "gain of the convolution, as in F1"),
        Symbol(bias, "|b_c|, bias of the convolution"),
        Symbol(R, "radius of the invariant set in (iii)"),
        Symbol(gap, "1 - alpha_2 w"),
        Symbol(D, "excess of |y| over R in (iii): max(|y| - R, 0)"),
        Symbol(D_M, "excess of |y| over M in (iv): max(|y| - M, 0)"),
        Symbol(y, "the witness's state"),
        Symbol(y_star, "where the witness loses most in one step"),
        Symbol(c, "lower bound of its updates"),
        Symbol(start, "its start"),
        Symbol(minus, "-y_k in the witness"),
        Symbol(minus_next, "-y_(k+1) in the witness"),
    ),
    hypotheses=(
        Hypothesis("H1", "q^2 = |h|^2 / d + epsilon", d * q**2 - n - d * eps, "zero"),
        Hypothesis("H2", "|h|^2 is the channel's square and those of the others", n - v**2 - others, "zero"),
        Hypothesis("H3", "alpha_2 < 1, with g_2 = 1 - alpha_2 > 0", gap_2 - (1 - alpha_2), "zero"),
        Hypothesis("H4", "p < 1, with g_p = 1 - p > 0", gap_p - (1 - p), "zero"),
        Hypothesis("H5", "beta_2 = 1 - a", beta_2 - (1 - a), "zero"),
        Hypothesis("H6", "alpha_2 w < 1 in (iii), with g = 1 - alpha_2 w > 0", gap - (1 - alpha_2 * w), "zero"),
        Hypothesis("H7", "R (1 - alpha_2 w) = alpha_2 |b_c| + (1 - alpha_2) |x| + 2 K c_f", R * gap - outer, "zero"),
        Hypothesis("H8", "a <= a_max over positions, for the states of a bounded set", a_max - a),
        Hypothesis("H9", "the witness's updates are at least c, so y_(k+1) >= alpha_2 y_k + 2 K c", None),
    ),
    facts=(
        Fact(
            "F1",
            "without a convolution (iv): F1 at one position",
            a * Y + p * beta_2 * X + eta * beta_2 * c_f - F,
            "F1",
            axiom=True,
        ),
        Fact("F2", "|h_{j+1}| <= |h_j| + c_f with outer_only", H + c_f - H_next, "triangle inequality", axiom=True),
        Fact(
            "F3",
            "|h_0| <= alpha_2 (w |y| + |b_c|) + (1 - alpha_2) |x|",
            alpha_2 * (w * Y + bias) + gap_2 * X - H_0,
            "triangle inequality, tap by tap",
            axiom=True,
        ),
        Fact(
            "F4", "step 'outer' at j = 2K, where the stream is F", H_0 + 2 * K * c_f - F_out, "step 'outer'", axiom=True
        ),
        Fact("F5", "the excess is at least |y| - R", D - (Y - R), "definition of the maximum", axiom=True),
        Fact("F6", "and at least |y| - M in (iv)", D_M - (Y - X - c_f), "definition of the maximum", axiom=True),
        Fact(
            "F7",
            "in the witness y_(k+1) >= y_k - (y* - 1) + 2 K c, by H9 and the steps before",
            minus + (y_star - 1) - 2 * K * c - minus_next,
            "steps 'witness' and 'most'",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "(i) What comes out of a norm is shorter than sqrt(d), and the last operation is a norm.",
            d - n / q**2,
            (d * eps + ref("H1")) / q**2,
            strict=True,
        ),
        Nonnegative(
            "(ii) So a single channel v / q of it is below sqrt(d); put that for the convolved state in F1.",
            d - v**2 / q**2,
            (d * eps + others + ref("H1") + ref("H2")) / q**2,
            strict=True,
        ),
        Induction(
            "(iii) The sublayers' outputs add up without decay.",
            k=j,
            quantity=H,
            following=H_next,
            bound=H_0 + j * c_f,
            start=H_0,
            base=sp.Integer(0),
            step=ref("IH") + ref("F2"),
            label="outer",
        ),
        Nonnegative(
            "One application.",
            alpha_2 * w * Y + outer - F_out,
            ref("F4") + ref("F3"),
            label="outer step",
        ),
        Nonnegative(
            "Measured from R the size shrinks by alpha_2 w; k steps as in F1.",
            alpha_2 * w * D - (F_out - R),
            ref("outer step") + alpha_2 * w * ref("F5") + ref("H7") - R * ref("H6"),
        ),
        Nonnegative(
            "(iv) With beta_2 = 1 - a, one application is at most a mean of |y| and M with the weights a and 1 - a ...",
            a * Y + (1 - a) * (X + c_f) - F,
            ref("F1")
            + beta_2 * (gap_p * X + GUARD / (gap_p + GUARD) * c_f)
            - beta_2 * X * ref("H4")
            - (X + c_f) * ref("H5"),
            label="mean",
        ),
        Nonnegative(
            "... so its excess over M is at most a_max times the excess before: nothing above max(|y|, M) is ever "
            "reached.",
            a_max * D_M - (F - X - c_f),
            ref("mean") + a * ref("F6") + D_M * ref("H8"),
        ),
        Identity(
            "(v) Witness: what is lost in one step is y / (1 + e^y).",
            y - y / (1 + sp.exp(-y)),
            y / (1 + sp.exp(y)),
            label="witness",
        ),
        peak,
        Extremum(
            "That is greatest where y = 1 + e^(-y), and there it is y - 1.",
            f=y / (1 + sp.exp(y)),
            var=y,
            lo=0,
            hi=sp.oo,
            at=peak,
            value=y_star - 1,
            factor=sp.exp(y) / (1 + sp.exp(y)) ** 2,
            switch=1 + sp.exp(-y) - y,
            slope=1 + sp.exp(-y),
            label="most",
        ),
        Enclosed("In figures.", y_star - 1, "2784/10000", "2785/10000", at=peak),
        Induction(
            "So k steps gain at least k (2 K c - y* + 1), written for m_k = -y_k; this exceeds every bound.",
            k=k,
            quantity=minus,
            following=minus_next,
            bound=-(start + k * drift),
            start=-start,
            base=sp.Integer(0),
            step=ref("IH") + ref("F7"),
        ),
    ),
    source=Source("", derived=True, place="for the block of arXiv 2606.18206 in all its official variants"),
    claims=(
        Claim(
            "(i) |F|_2 <= sqrt(d)",
            (Reals("h", -3, 3, 3), Reals("eps", 1e-6, 1, log=True)),
            output_norm,
            sharp=True,
        ),
        Claim(
            "(ii) with a norm at the input",
            (*BLOCK, Reals("h", -3, 3, 3), Reals("eps", 1e-6, 1, log=True)),
            input_norm,
            sharp=True,
            near=({**ONES, "h": [3.0, 0.0, 0.0], "eps": 1e-6},),
        ),
        Claim(
            "(iii) the set is invariant with outer_only",
            (*BLOCK, Reals("w", -2, 2), Reals("bias", -1, 1), Reals("y", -1, 1)),
            outer_only,
            sharp=True,
            near=({**ONES, "w": 1.5, "bias": 0.5, "y": 1.0},),
        ),
        Claim(
            "(iv) |F| <= max(|y|, |x| + c_f) with scales that depend on the state",
            (*BLOCK[2:], Reals("y", -1, 1), Reals("s", -3, 3, 4)),
            input_dependent,
            sharp=True,
            near=({"X": 1.0, "x": 1.0, "cf": 1.0, "o": [1.0, 1.0], "y": 0.9, "s": [0.9, 0.0, 2.0, 3.0]},),
        ),
        Claim(
            "(v) the witness gains at least 2 c - 0.2785 per step of one layer",
            (Reals("y0", 0.01, 5), Reals("c", 0.13925, 3)),
            runaway,
            near=({"y0": 1.278, "c": 0.1393},),
        ),
    ),
    not_checked=(
        NotChecked(
            "under pre-norm the sublayers' outputs are bounded (as in F1)",
            "Weierstrass, e.g. Rudin (1976), Theorem 4.16",
        ),
        NotChecked(
            "a is bounded below 1 on a bounded set: it is continuous there",
            "Weierstrass, e.g. Rudin (1976), Theorem 4.16",
        ),
    ),
    uses=("F1", "N1"),
    remarks=(
        "Without residual scaling at all there is no bound either: F5.",
        "(iv) with a convolution of gain above 1 is not covered: the scales can approach 1 where the state is large.",
    ),
)
