"""A3: attention on a ball, in the maximum over tokens: a Lipschitz constant without the sequence length."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Limit,
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
from proofs.numbers import dot, matrix, norm, softmax, spectral_norm

p = sp.Symbol("p", nonnegative=True)
tau = sp.Symbol("tau", real=True)
u = sp.Symbol("u", real=True)
w = sp.Symbol("w", nonnegative=True)
first = sp.Symbol("D", real=True)
along_q = sp.Symbol("eta", real=True)
along_k = sp.Symbol("chi", real=True)
length = sp.Symbol("ell", nonnegative=True)
joint = sp.Symbol("J", real=True)

V = sp.Symbol("V", positive=True)
R = sp.Symbol("R", positive=True)
alpha = sp.Symbol("alpha", positive=True)
beta = sp.Symbol("beta", positive=True)
h = sp.Symbol("h", positive=True)
m_1 = sp.Symbol("m_1", real=True)
m_2 = sp.Symbol("m_2", nonnegative=True)
spread = sp.Symbol("S", nonnegative=True)
mean_w = sp.Symbol("M", nonnegative=True)
mean_dv = sp.Symbol("E_D", real=True)
cov_q = sp.Symbol("E_q", real=True)
cov_k = sp.Symbol("E_k", real=True)
mean_y2 = sp.Symbol("Y", nonnegative=True)
mean_joint = sp.Symbol("E_J", real=True)
mean_len = sp.Symbol("L_1", nonnegative=True)
mean_len2 = sp.Symbol("L_2", nonnegative=True)
aa = sp.Symbol("a_2", nonnegative=True)
ag = sp.Symbol("G", real=True)
gg = sp.Symbol("g_2", nonnegative=True)
do = sp.Symbol("do", real=True)

KEYS = Totals(
    (p, tau, u, w, first, along_q, along_k, length, joint),
    {
        p: 1,
        p * tau: m_1,
        p * tau**2: m_2,
        p * u: 0,
        p * u**2: spread,
        p * w: mean_w,
        p * first: mean_dv,
        p * u * along_q: cov_q,
        p * u * along_k: cov_k,
        p * along_q**2: mean_y2,
        p * joint: mean_joint,
        p * length: mean_len,
        p * length**2: mean_len2,
    },
)
sharp_constant = beta + sp.sqrt(1 + beta**2)


def _rows(values, width=2):
    return [values[i : i + width] for i in range(0, len(values), width)]


def _into_ball(ctx, vector, radius):
    """The vector itself, shortened to the ball if it is outside, times the radius."""
    return [radius * v / max(ctx.mpf(1), norm(ctx, vector)) for v in vector]


def _times(a, vector):
    return [sum(a[i, j] * vector[j] for j in range(a.cols)) for i in range(a.rows)]


def _derivative(ctx, query, keys, forms, d_query, d_keys):
    """|do| for o = sum p_j x_j, scores x_i' A_j x_j, by the quotient rule of softmax."""
    weights = softmax(ctx, [dot(ctx, query, _times(a, x)) for a, x in zip(forms, keys, strict=True)])
    slopes = [
        dot(ctx, d_query, _times(a, x)) + dot(ctx, query, _times(a, dx))
        for a, x, dx in zip(forms, keys, d_keys, strict=True)
    ]
    mean = dot(ctx, weights, slopes)
    return norm(
        ctx,
        [
            sum(
                (p * (s - mean) * x[m] + p * dx[m] for p, s, x, dx in zip(weights, slopes, keys, d_keys, strict=True)),
                ctx.mpf(0),
            )
            for m in range(2)
        ],
    )


def _masked(ctx, point, forms):
    """Tokens of width 4: the query uses the first two channels, the two keys that it may see the others."""
    radius = point["R"]
    query, d_query = _into_ball(ctx, point["q"], radius), _into_ball(ctx, point["dq"], ctx.mpf(1))
    keys = [_into_ball(ctx, x, radius) for x in _rows(point["k"])]
    d_keys = [_into_ball(ctx, x, ctx.mpf(1)) for x in _rows(point["dk"])]
    beta = radius**2 * max(spectral_norm(ctx, a) for a in forms)
    return _derivative(ctx, query, keys, forms, d_query, d_keys), beta


def same_form(ctx, point):
    form = matrix(ctx, point["A"], 2, 2)
    left, beta = _masked(ctx, point, [form, form])
    return left, beta + ctx.sqrt(1 + beta**2)


def pairwise_forms(ctx, point):
    left, beta = _masked(ctx, point, [matrix(ctx, point["A"], 2, 2), matrix(ctx, point["B"], 2, 2)])
    return left, 1 + 2 * beta


def _attention(ctx, tokens, form, values, *, causal):
    out = []
    for i, query in enumerate(tokens):
        keys = tokens[: i + 1] if causal else tokens
        weights = softmax(ctx, [dot(ctx, query, _times(form, x)) for x in keys])
        out.append(
            _times(values, [sum((p * x[m] for p, x in zip(weights, keys, strict=True)), ctx.mpf(0)) for m in range(2)])
        )
    return out


def _chord(ctx, point, *, causal):
    """Two states of three tokens in the ball, all outputs, any value matrix."""
    radius, form, values = point["R"], matrix(ctx, point["A"], 2, 2), matrix(ctx, point["V"], 2, 2)
    states = [[_into_ball(ctx, x, radius) for x in _rows(point[name])] for name in ("x", "y")]
    outputs = [_attention(ctx, s, form, values, causal=causal) for s in states]

    def distance(a, b):
        return max(norm(ctx, [s - t for s, t in zip(x, y, strict=True)]) for x, y in zip(a, b, strict=True))

    beta = radius**2 * spectral_norm(ctx, form)
    return distance(*outputs), spectral_norm(ctx, values) * (beta + ctx.sqrt(1 + beta**2)) * distance(*states)


def chord_full(ctx, point):
    return _chord(ctx, point, causal=False)


def chord_causal(ctx, point):
    return _chord(ctx, point, causal=True)


DERIVATIVE_SPACE = (
    Reals("R", 0.1, 40, log=True),
    Reals("q", -1, 1, 2),
    Reals("k", -1, 1, 4),
    Reals("dq", -1, 1, 2),
    Reals("dk", -1, 1, 4),
    Reals("A", -1, 1, 4),
)
CHORD_SPACE = (
    Reals("R", 0.05, 3, log=True),
    Reals("x", -1, 1, 6),
    Reals("y", -1, 1, 6),
    Reals("A", -1, 1, 4),
    Reals("V", -1, 1, 4),
)
EXTREMAL = {"R": 1.0, "q": [1, 0], "k": [1, 0, -1, 0], "dq": [0, 1], "dk": [1, 1, 1, -1], "A": [0, 1, 1, 0]}
SHORT = {"R": 0.05, "x": [1, 0, 1, 0, 1, 0], "y": [0.9, 0, 0.9, 0, 0.9, 0], "A": [1, 0, 0, 1], "V": [1, 0, 0, 1]}

THEOREM = Theorem(
    id="A3",
    title="Attention on a ball, in the maximum over tokens",
    statement=(
        r"Let $o_i = \sum_j p_{ij} W_v x_j$ with $p_i$ the softmax of $s_{ij} = x_i' A_{ij} x_j + b_{ij}$ over the "
        r"keys $j$ that query $i$ may attend to (any fixed, non-empty set; fixed $b_{ij}$), $|x_j|_2 \le R$ for all "
        r"tokens, and $\beta = R^2 \max_{ij} \|A_{ij}\|_2$. In the norm $\max_i |x_i|_2$ the map $x \mapsto o$ has a "
        r"Lipschitz constant of at most $\|W_v\|_2 (1 + 2\beta)$, and if $A_{ij}$ is the same matrix for all pairs, "
        r"of at most $\|W_v\|_2 \left(\beta + \sqrt{1 + \beta^2}\right) \le \|W_v\|_2 (1 + 2\beta)$. The number of "
        r"tokens does not enter. For scaled dot products $A = W_q' W_k / \sqrt{d_k}$, so $\beta \le R^2 \|W_q\|_2 "
        r"\|W_k\|_2 / \sqrt{d_k}$."
    ),
    plain=(
        "On bounded tokens, attention has a Lipschitz constant that is free of the sequence length, if distances are "
        "the largest distance of a token. With one score matrix for all pairs the constant is the best possible one."
    ),
    symbols=(
        Symbol(p, "probability of a key"),
        Symbol(tau, "f . v, the value's component along a unit vector f"),
        Symbol(u, "f . (v - o), the same less its mean"),
        Symbol(w, "|u|"),
        Symbol(first, "f . dv, the component of the value's change"),
        Symbol(along_q, "dx_i' A x_j, the score's change by the query"),
        Symbol(along_k, "x_i' A dx_j, the score's change by the key"),
        Symbol(length, "length of W_v'f + u A'x_i"),
        Symbol(joint, "f . dv + u x_i' A dx_j = (W_v'f + u A'x_i) . dx_j"),
        Symbol(V, "|W_v|; positive, or there is nothing to show"),
        Symbol(R, "bound on the tokens' lengths"),
        Symbol(alpha, "bound on |A_ij|; positive, as every larger number is a bound too"),
        Symbol(beta, "R^2 alpha"),
        Symbol(h, "bound on the tokens' changes |dx_j|"),
        Symbol(m_1, "mean of tau"),
        Symbol(m_2, "mean of tau^2"),
        Symbol(spread, "mean of u^2, the variance of tau"),
        Symbol(mean_w, "mean of |u|"),
        Symbol(mean_dv, "mean of f . dv"),
        Symbol(cov_q, "mean of u (dx_i' A x_j)"),
        Symbol(cov_k, "mean of u (x_i' A dx_j)"),
        Symbol(mean_y2, "mean of (dx_i' A x_j)^2"),
        Symbol(mean_joint, "mean of the joint change"),
        Symbol(mean_len, "mean of the lengths |W_v'f + u A'x_i|"),
        Symbol(mean_len2, "mean of their squares"),
        Symbol(aa, "|W_v'f|^2"),
        Symbol(ag, "W_v'f . A'x_i"),
        Symbol(gg, "|A'x_i|^2"),
        Symbol(do, "component of the output's change along f"),
    ),
    hypotheses=(
        Hypothesis("H1", "beta = R^2 alpha", beta - R**2 * alpha, "zero"),
        Hypothesis("H2", "u = tau - mean: the deviation", u - tau + m_1, "zero"),
        Hypothesis("H3", "w = |u| is at least u", w - u),
        Hypothesis("H4", "and at least -u", w + u),
        Hypothesis(
            "H5",
            "for one matrix A: the squared length of W_v'f + u A'x_i",
            length**2 - (aa + 2 * u * ag + u**2 * gg),
            "zero",
        ),
        Hypothesis("H6", "the joint change, by definition", joint - first - u * along_k, "zero"),
    ),
    facts=(
        Fact("F1", "|f . v_j| <= |W_v| |x_j| <= V R, squared", V**2 * R**2 - tau**2, "norm of W_v, S0", axiom=True),
        Fact("F2", "f . dv_j <= |W_v| |dx_j| <= V h", V * h - first, "norm of W_v, S0", axiom=True),
        Fact("F3", "dx_i' A x_j <= alpha R h", alpha * R * h - along_q, "norm of A, S0", axiom=True),
        Fact("F4", "-dx_i' A x_j <= alpha R h", alpha * R * h + along_q, "norm of A, S0", axiom=True),
        Fact("F5", "x_i' A dx_j <= alpha R h", alpha * R * h - along_k, "norm of A, S0", axiom=True),
        Fact("F6", "-x_i' A dx_j <= alpha R h", alpha * R * h + along_k, "norm of A, S0", axiom=True),
        Fact("F7", "the squared mean of |u| is at most the mean of |u|^2 = u^2", spread - mean_w**2, "S0", axiom=True),
        Fact(
            "F8",
            "derivative of attention: mean of f . dv plus the covariance of f . v and ds",
            do - (mean_dv + cov_q + cov_k),
            "A6",
            "zero",
            axiom=True,
        ),
        Fact(
            "F9",
            "Cauchy-Schwarz over the keys, with their probabilities",
            spread * mean_y2 - cov_q**2,
            "S0",
            axiom=True,
        ),
        Fact("F10", "(W_v'f + u A'x_i) . dx_j <= its length times h", length * h - joint, "S0", axiom=True),
        Fact(
            "F11", "mean of lengths squared is at most the mean of squares", mean_len2 - mean_len**2, "S0", axiom=True
        ),
        Fact("F12", "|W_v'f| <= V", V**2 - aa, "norm of W_v", axiom=True),
        Fact("F13", "|A'x_i| <= alpha R", alpha**2 * R**2 - gg, "norm of A", axiom=True),
    ),
    steps=(
        Nonnegative(
            "One key's squared component is bounded.", p * (V**2 * R**2 - tau**2), p * ref("F1"), label="component"
        ),
        Summed("Averaged over the keys.", "component", KEYS, V**2 * R**2 - m_2, label="components"),
        Identity(
            "One key's squared deviation.",
            p * u**2,
            p * (tau - m_1) ** 2,
            {"H2": p * (u + tau - m_1)},
            label="deviation",
        ),
        Summed(
            "The variance is the second moment less the squared mean.",
            "deviation",
            KEYS,
            spread - (m_2 - m_1**2),
            label="moment",
        ),
        Nonnegative(
            "So the variance of the values along f is at most V^2 R^2.",
            V**2 * R**2 - spread,
            ref("components") + m_1**2 - ref("moment"),
            label="variance",
        ),
        Nonnegative(
            "The mean deviation is at most V R.",
            V * R - mean_w,
            (ref("variance") + ref("F7")) / (V * R + mean_w),
            label="mean deviation",
        ),
        Nonnegative(
            "One key, any matrices A_ij: its share in the derivative is at most V h + 2 |u| alpha R h.",
            p * (V * h + 2 * w * alpha * R * h - first - u * along_q - u * along_k),
            p
            * (
                ref("F2")
                + (ref("H3") * ref("F4") + ref("H4") * ref("F3")) / 2
                + (ref("H3") * ref("F6") + ref("H4") * ref("F5")) / 2
            ),
            label="share",
        ),
        Summed(
            "Averaged over the keys.",
            "share",
            KEYS,
            V * h + 2 * mean_w * alpha * R * h - mean_dv - cov_q - cov_k,
            label="shares",
        ),
        Nonnegative(
            "So along every unit f, and for f along do itself, the change is at most V (1 + 2 beta) h.",
            V * (1 + 2 * beta) * h - do,
            ref("shares") + 2 * alpha * R * h * ref("mean deviation") - ref("F8") + 2 * V * h * ref("H1"),
            label="pairwise",
        ),
        Nonnegative(
            "One matrix A: the square of one key's score change by the query is bounded.",
            p * (alpha**2 * R**2 * h**2 - along_q**2),
            p * ref("F3") * ref("F4"),
            label="query share",
        ),
        Summed("Averaged over the keys.", "query share", KEYS, alpha**2 * R**2 * h**2 - mean_y2, label="query shares"),
        Nonnegative(
            "So the squared change by the query is at most (V beta h)^2.",
            (V * beta * h) ** 2 - cov_q**2,
            ref("F9")
            + spread * ref("query shares")
            + alpha**2 * R**2 * h**2 * ref("variance")
            + V**2 * h**2 * (beta + R**2 * alpha) * ref("H1"),
            label="query squared",
        ),
        Nonnegative(
            "Without squares, by 2 X (X - x) = (X^2 - x^2) + (X - x)^2.",
            V * beta * h - cov_q,
            (ref("query squared") + (V * beta * h - cov_q) ** 2) / (2 * V * beta * h),
            label="query",
        ),
        Nonnegative(
            "Value and key change go through the same dx_j: together they are at most h |W_v'f + u A'x_i| for one key.",
            p * (length * h - joint),
            p * ref("F10"),
            label="joint share",
        ),
        Summed("Averaged over the keys.", "joint share", KEYS, h * mean_len - mean_joint, label="joint shares"),
        Identity(
            "One key's squared length, weighted.",
            p * length**2,
            p * (aa + 2 * u * ag + u**2 * gg),
            {"H5": p},
            label="squared length",
        ),
        Summed(
            "Averaged over the keys, the mixed term vanishes, because the deviations have mean 0 and A is one matrix.",
            "squared length",
            KEYS,
            mean_len2 - (aa + spread * gg),
            label="squared lengths",
        ),
        Nonnegative(
            "So the squared mean length is at most V^2 (1 + beta^2).",
            V**2 * (1 + beta**2) - mean_len**2,
            ref("F11")
            + ref("F12")
            + gg * ref("variance")
            + V**2 * R**2 * ref("F13")
            - ref("squared lengths")
            + V**2 * (beta + R**2 * alpha) * ref("H1"),
            label="lengths",
        ),
        Nonnegative(
            "Without squares, by 2 X (X - x) = (X^2 - x^2) + (X - x)^2.",
            V * sp.sqrt(1 + beta**2) - mean_len,
            (ref("lengths") + (V * sp.sqrt(1 + beta**2) - mean_len) ** 2) / (2 * V * sp.sqrt(1 + beta**2)),
            label="length",
        ),
        Identity(
            "The joint change of one key, weighted.",
            p * joint,
            p * (first + u * along_k),
            {"H6": p},
            label="joint",
        ),
        Summed("Averaged over the keys.", "joint", KEYS, mean_joint - mean_dv - cov_k, label="joints"),
        Nonnegative(
            "Together: the change by the query, and that by values and keys.",
            V * sharp_constant * h - do,
            ref("query") + h * ref("length") + ref("joint shares") + ref("joints") - ref("F8"),
            label="one matrix",
        ),
        Identity(
            "It is attained if the query sees only two keys +-R e_1 of weight 1/2 each, W_v = I, A'x_i = alpha R e_2 "
            "and A e_1 = alpha e_3: with dx_j along e_1 +- beta e_2 and dx_i along e_3 a key's share is the product "
            "of (1, +-beta) and its unit vector, the query's is beta.",
            (1 + beta * beta) / sp.sqrt(1 + beta**2) + beta,
            sharp_constant,
        ),
        Limit(
            "For small beta no constant 1 + 2 beta with less than 1 would do.",
            sharp_constant,
            beta,
            sp.Integer(0),
            sp.Integer(1),
        ),
        Limit("For large beta none with less than 2 beta would do.", sharp_constant / beta, beta, sp.oo, sp.Integer(2)),
        Nonnegative(
            "The sharp constant is the smaller one.",
            1 + 2 * beta - sharp_constant,
            2 * beta / (1 + beta + sp.sqrt(1 + beta**2)),
        ),
    ),
    source=Source("", derived=True, place="geometry as in arXiv 2602.18849"),
    claims=(
        Claim(
            "one matrix: |do| <= beta + sqrt(1 + beta^2)",
            DERIVATIVE_SPACE,
            same_form,
            sharp=True,
            near=(EXTREMAL,),
        ),
        Claim(
            "a matrix for each pair: |do| <= 1 + 2 beta",
            (*DERIVATIVE_SPACE, Reals("B", -1, 1, 4)),
            pairwise_forms,
            sharp=True,
            near=({**EXTREMAL, "R": 40.0, "dk": [0.0006, 1, 0.0006, -1], "B": [0, 1, 1, 0]},),
        ),
        Claim("Lipschitz in the ball, all keys", CHORD_SPACE, chord_full, near=(SHORT,)),
        Claim("Lipschitz in the ball, causal", CHORD_SPACE, chord_causal, near=(SHORT,)),
    ),
    not_checked=(
        NotChecked(
            "a bound on the derivative over a convex set (all tokens in the ball) is a Lipschitz constant",
            "mean value inequality, Dieudonne (1960), Foundations of Modern Analysis, 8.5.2",
        ),
    ),
    uses=("S0", "A6"),
    remarks=(
        "Different matrices for different pairs arise with rotary positions, A_ij = W_q' P_(j-i) W_k / sqrt(d_k): "
        "then only the first constant holds, with the norms of the products as stored. Neither its 1 (beta to 0) nor "
        "its 2 (beta to infinity) can be lowered, but for a given beta it is not attained.",
        "The second constant is attained by a query that does not see itself; without a mask it is approached with "
        "many copies of the two keys. So no better constant in R and the norms is free of the number of tokens.",
        "One head, before the output projection. Outside a ball there is no constant (A1).",
        "A mask that depends on the state is not covered.",
    ),
)
