"""F6a: attention behind RMSNorm, for all states: the norm pays for a part of the temperature."""

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
r_j = sp.Symbol("r_j", nonnegative=True)
c_j = sp.Symbol("c_j", nonnegative=True)

eps = sp.Symbol("epsilon", positive=True)
d = sp.Symbol("d", positive=True, integer=True)
n_h = sp.Symbol("n", nonnegative=True)
q = sp.Symbol("q", positive=True)
V = sp.Symbol("V", positive=True)
beta = sp.Symbol("beta", nonnegative=True)
lam = sp.Symbol("lambda", positive=True)
h = sp.Symbol("h", positive=True)
r = sp.Symbol("r", nonnegative=True)
c = sp.Symbol("c", nonnegative=True)
mu = sp.Symbol("mu", real=True)
m_2 = sp.Symbol("m_2", nonnegative=True)
spread = sp.Symbol("S", nonnegative=True)
size = sp.Symbol("M", nonnegative=True)
mean_dv = sp.Symbol("E_D", real=True)
cov_q = sp.Symbol("E_q", real=True)
cov_k = sp.Symbol("E_k", real=True)
aa = sp.Symbol("a_2", nonnegative=True)
ag = sp.Symbol("G", real=True)
gg = sp.Symbol("g_2", nonnegative=True)
do = sp.Symbol("do", real=True)
b = sp.Symbol("b", positive=True)

KEYS = Totals(
    (p, tau, u, first, along_q, along_k, r_j),
    {
        p: 1,
        p * tau: mu,
        p * tau**2: m_2,
        p * u: 0,
        p * u**2: spread,
        p * r_j**2: size,
        p * first: mean_dv,
        p * u * along_q: cov_q,
        p * u * along_k: cov_k,
    },
)

stretch = (lam + 1 / lam) / 2
share = (
    h * lam * V * (1 - r_j**2) / 2
    + h * (aa + 2 * beta * u * ag + beta**2 * u**2 * gg) / (2 * lam * V)
    + beta * c * h * (u**2 / V + V * r_j**2) / 2
    - first
    - beta * u * along_k
    - beta * u * along_q
)


def _rows(values, width=2):
    return [values[i : i + width] for i in range(0, len(values), width)]


def _times(a, vector):
    return [sum(a[i, j] * vector[j] for j in range(a.cols)) for i in range(a.rows)]


def _norm_and_slope(ctx, token, change, eps):
    """sqrt(eps) RMSNorm of a token, and its derivative along ``change`` by the quotient rule."""
    rms = ctx.sqrt(dot(ctx, token, token) / len(token) + eps)
    slope = dot(ctx, token, change) / (len(token) * rms)
    root = ctx.sqrt(eps)
    return (
        [root * x / rms for x in token],
        [root * (dx / rms - x * slope / rms**2) for x, dx in zip(token, change, strict=True)],
    )


def _stretch(ctx, beta):
    return max(ctx.mpf(1), beta + 1 / (4 * beta)) if beta > 0 else ctx.mpf(1)


def derivative(ctx, point):
    """A query and two keys that it sees, width 2: the derivative of the output by the quotient rule of softmax."""
    eps = point["eps"]
    query, d_query = _norm_and_slope(ctx, point["q"], point["dq"], eps)
    keys, d_keys = zip(
        *(
            _norm_and_slope(ctx, token, change, eps)
            for token, change in zip(_rows(point["k"]), _rows(point["dk"]), strict=True)
        ),
        strict=True,
    )
    form = matrix(ctx, point["A"], 2, 2)
    weights = softmax(ctx, [dot(ctx, query, _times(form, x)) + s for x, s in zip(keys, point["fixed"], strict=True)])
    slopes = [
        dot(ctx, d_query, _times(form, x)) + dot(ctx, query, _times(form, dx))
        for x, dx in zip(keys, d_keys, strict=True)
    ]
    mean = dot(ctx, weights, slopes)
    out = [
        sum(
            (w * ((s - mean) * x[m] + dx[m]) for w, s, x, dx in zip(weights, slopes, keys, d_keys, strict=True)),
            ctx.mpf(0),
        )
        for m in range(2)
    ]
    moved = max(norm(ctx, change) for change in (point["dq"], *_rows(point["dk"])))
    return norm(ctx, out), _stretch(ctx, 2 * eps * spectral_norm(ctx, form)) * moved


def chord(ctx, point):
    """Two states of two tokens, causal, with fixed scores."""
    eps, form = point["eps"], matrix(ctx, point["A"], 2, 2)
    fixed = point["fixed"]
    states = [_rows(point[name]) for name in ("y", "z")]
    outputs = []
    for state in states:
        tokens = [_norm_and_slope(ctx, token, token, eps)[0] for token in state]
        scores = [dot(ctx, tokens[1], _times(form, x)) + s for x, s in zip(tokens, fixed, strict=True)]
        weights = softmax(ctx, scores)
        mixed = [sum((w * x[m] for w, x in zip(weights, tokens, strict=True)), ctx.mpf(0)) for m in range(2)]
        outputs.append([tokens[0], mixed])

    def distance(a, b):
        return max(norm(ctx, [s - t for s, t in zip(x, y, strict=True)]) for x, y in zip(a, b, strict=True))

    return distance(*outputs), _stretch(ctx, 2 * eps * spectral_norm(ctx, form)) * distance(*states)


DERIVATIVE_SPACE = (
    Reals("eps", 1e-2, 1, log=True),
    Reals("q", -40, 40, 2),
    Reals("k", -40, 40, 4),
    Reals("dq", -1, 1, 2),
    Reals("dk", -1, 1, 4),
    Reals("A", -20, 20, 4),
    Reals("fixed", -3, 3, 2),
)
# beta = 40, and keys so long that the norm has made them R: the query's change alone moves the output by beta.
LONG = {
    "eps": 1.0,
    "q": [0, 0],
    "k": [40, 0, -40, 0],
    "dq": [1, 0],
    "dk": [0, 0, 0, 0],
    "A": [20, 0, 0, 20],
    "fixed": [0, 0],
}
SHORT = {**LONG, "k": [0.001, 0, 0.001, 0], "dq": [0, 0], "dk": [1, 0, 1, 0], "A": [0.1, 0, 0, 0.1]}
CHORD_SPACE = (
    Reals("eps", 0.1, 1, log=True),
    Reals("y", -2, 2, 4),
    Reals("z", -2, 2, 4),
    Reals("A", -1, 1, 4),
    Reals("fixed", -1, 1, 2),
)
SHORT_CHORD = {
    "eps": 1.0,
    "y": [0.02, 0, 0.02, 0],
    "z": [-0.02, 0, -0.02, 0],
    "A": [0.1, 0, 0, 0.1],
    "fixed": [0, 0],
}

THEOREM = Theorem(
    id="F6a",
    title="Attention behind RMSNorm has a Lipschitz constant for all states",
    statement=(
        r"Let $N(h) = \sqrt\epsilon\, h / \sqrt{|h|^2/d + \epsilon}$ on each token, $d \ge 2$, $R = \sqrt{\epsilon "
        r"d}$, and $o_i = \sum_j p_{ij} W_v N(h_j)$ with $p_i$ the softmax of $s_{ij} = N(h_i)' A N(h_j) + b_{ij}$ "
        r"over the keys $j$ that query $i$ may attend to (any fixed, non-empty set; fixed $b_{ij}$ of any size), and "
        r"$R^2 \|A\|_2 \le \beta$. In the norm $\max_i |h_i|_2$ the map $h \mapsto o$ has on the whole space a "
        r"Lipschitz constant of at most $\|W_v\|_2 \max\left(1, \beta + \frac{1}{4\beta}\right)$ (1 for $\beta = 0$). "
        r"The number of tokens does not enter. No constant below $\|W_v\|_2 \max(1, \beta)$ holds for all such maps."
    ),
    plain=(
        "Where normalised tokens are long enough to make attention sensitive, the norm that made them so has a small "
        "slope. So attention behind a norm with a large epsilon needs no ball, and scores of size up to 1/2 cost "
        "nothing. Scores that do not depend on the state cost nothing at any size."
    ),
    symbols=(
        Symbol(eps, "the norm's epsilon", "rms_norm_eps"),
        Symbol(d, "width of a token"),
        Symbol(n_h, "|h|^2 of a token"),
        Symbol(q, "root of mean square plus epsilon"),
        Symbol(p, "probability of a key"),
        Symbol(tau, "f . v, the value's component along a unit vector f; lengths are in units of R"),
        Symbol(u, "the same less its mean"),
        Symbol(w, "|u|"),
        Symbol(first, "f . dv, the component of the value's change"),
        Symbol(along_q, "dm_i' B m_j, for A = beta B / R^2 and normalised tokens R m"),
        Symbol(along_k, "m_i' B dm_j"),
        Symbol(length, "length of W_v'f + beta u B'm_i"),
        Symbol(joint, "f . dv + beta u m_i' B dm_j = (W_v'f + beta u B'm_i) . dm_j"),
        Symbol(r_j, "|m_j|, below 1"),
        Symbol(c_j, "the norm's slope at key j"),
        Symbol(V, "|W_v|; positive, or there is nothing to show"),
        Symbol(beta, "bound on the state's scores", "beta"),
        Symbol(lam, "a number that is at least 2 beta, chosen at the end"),
        Symbol(h, "bound on the tokens' changes |dh_j|, in units of R"),
        Symbol(r, "|m_i|, of the query"),
        Symbol(c, "the norm's slope at the query"),
        Symbol(mu, "mean of tau"),
        Symbol(m_2, "mean of tau^2"),
        Symbol(spread, "mean of u^2, the variance of tau"),
        Symbol(size, "mean of r_j^2"),
        Symbol(mean_dv, "mean of f . dv"),
        Symbol(cov_q, "mean of u (dm_i' B m_j)"),
        Symbol(cov_k, "mean of u (m_i' B dm_j)"),
        Symbol(aa, "|W_v'f|^2"),
        Symbol(ag, "W_v'f . B'm_i"),
        Symbol(gg, "|B'm_i|^2"),
        Symbol(do, "component of the output's change along f"),
        Symbol(b, "a beta of at least 1/2"),
    ),
    hypotheses=(
        Hypothesis("H1", "q^2 = |h|^2 / d + epsilon", d * q**2 - n_h - d * eps, "zero"),
        Hypothesis("H2", "u = tau - mean: the deviation", u - tau + mu, "zero"),
        Hypothesis("H3", "w = |u| is at least u", w - u),
        Hypothesis("H4", "and at least -u", w + u),
        Hypothesis("H5", "w^2 = u^2", w**2 - u**2, "zero"),
        Hypothesis(
            "H6",
            "the squared length of W_v'f + beta u B'm_i",
            length**2 - (aa + 2 * beta * u * ag + beta**2 * u**2 * gg),
            "zero",
        ),
        Hypothesis("H7", "the joint change, by definition", joint - first - beta * u * along_k, "zero"),
        Hypothesis("H8", "slope and length of a normalised key, by step 'slope'", c_j**2 + r_j**2 - 1, "zero"),
        Hypothesis("H9", "and of the query", c**2 + r**2 - 1, "zero"),
        Hypothesis("H10", "lambda is at least 2 beta", lam - 2 * beta),
    ),
    facts=(
        Fact("F1", "|f . v_j| <= |W_v| |m_j|, squared", V**2 * r_j**2 - tau**2, "norm of W_v, S0", axiom=True),
        Fact("F2", "dm_i' B m_j <= |dm_i| |m_j| <= c h r_j", c * h * r_j - along_q, "|B| <= 1, N1, S0", axiom=True),
        Fact("F3", "-dm_i' B m_j <= c h r_j", c * h * r_j + along_q, "|B| <= 1, N1, S0", axiom=True),
        Fact(
            "F4",
            "(W_v'f + beta u B'm_i) . dm_j <= its length times c_j h",
            length * c_j * h - joint,
            "N1, S0",
            axiom=True,
        ),
        Fact(
            "F5",
            "derivative of attention: mean of f . dv plus the covariance of f . v and ds",
            do - (mean_dv + beta * cov_q + beta * cov_k),
            "A6",
            "zero",
            axiom=True,
        ),
        Fact("F6", "|W_v'f| <= V", V**2 - aa, "norm of W_v", axiom=True),
        Fact("F7", "|B'm_i| <= r", r**2 - gg, "|B| <= 1", axiom=True),
    ),
    steps=(
        Identity(
            "The norm's slope is sqrt(epsilon) / q (N1), and its output has the squared length R^2 r^2 = epsilon |h|^2 "
            "/ q^2. So the squares of slope and r add to 1: long tokens move little.",
            eps / q**2 + n_h / (d * q**2),
            1,
            {"H1": -1 / (d * q**2)},
            label="slope",
        ),
        Nonnegative(
            "One key's squared component is bounded.", p * (V**2 * r_j**2 - tau**2), p * ref("F1"), label="component"
        ),
        Summed("Averaged over the keys.", "component", KEYS, V**2 * size - m_2, label="components"),
        Identity(
            "One key's squared deviation.", p * u**2, p * (tau - mu) ** 2, {"H2": p * (u + tau - mu)}, label="deviation"
        ),
        Summed(
            "The variance is the second moment less the squared mean.",
            "deviation",
            KEYS,
            spread - (m_2 - mu**2),
            label="moment",
        ),
        Nonnegative(
            "So the variance of the values along f is at most V^2 times the mean squared length of the keys.",
            V**2 * size - spread,
            ref("components") + mu**2 - ref("moment"),
            label="variance",
        ),
        Nonnegative(
            "One key: its joint change is at most (lambda V c_j^2 + length^2 / (lambda V)) h / 2, as twice a product "
            "is at most the sum of squares; likewise |u| r_j is at most (u^2 / V + V r_j^2) / 2.",
            p * share,
            p
            * (
                ref("F4")
                + h * (lam * V * c_j - length) ** 2 / (2 * lam * V)
                + beta * c * h * (w - V * r_j) ** 2 / (2 * V)
                + beta * (ref("H3") * ref("F3") + ref("H4") * ref("F2")) / 2
                - h * lam * V / 2 * ref("H8")
                - h / (2 * lam * V) * ref("H6")
                + ref("H7")
                - beta * c * h / (2 * V) * ref("H5")
            ),
            label="share",
        ),
        Summed(
            "Averaged over the keys, the mixed term vanishes, because the deviations have mean 0 and A is one matrix.",
            "share",
            KEYS,
            h * lam * V * (1 - size) / 2
            + h * (aa + beta**2 * spread * gg) / (2 * lam * V)
            + beta * c * h * (spread / V + V * size) / 2
            - mean_dv
            - beta * cov_k
            - beta * cov_q,
            label="shares",
        ),
        Nonnegative(
            "The query's slope is at most 1 - r^2 / 2.",
            1 - r**2 / 2 - c,
            (1 - c) ** 2 / 2 - ref("H9") / 2,
            label="query slope",
        ),
        Nonnegative(
            "With the bounds on the variance, on |W_v'f| and on |B'm_i|, everything that grows with the keys' lengths "
            "cancels for lambda >= 2 beta.",
            V * stretch * h - do,
            ref("shares")
            - ref("F5")
            + h / (2 * lam * V) * ref("F6")
            + h * beta**2 / (2 * lam * V) * (spread * ref("F7") + r**2 * ref("variance"))
            + beta * c * h / (2 * V) * ref("variance")
            + beta * h * V * size * ref("query slope")
            + V * h * size * ref("H10") / 2
            + V * h * beta * size * r**2 * (ref("H10") + beta) / (2 * lam),
            label="stretch",
        ),
        Identity(
            "For beta >= 1/2 the best lambda is 2 beta;", stretch.subs(lam, 2 * b), b + 1 / (4 * b), label="large"
        ),
        Identity("below, it is 1, and the constant is 1.", stretch.subs(lam, 1), 1),
        Nonnegative(
            "The constant is the larger one of the two: their difference is a square.",
            b + 1 / (4 * b) - 1,
            (2 * b - 1) ** 2 / (4 * b),
        ),
        Limit(
            "No constant below max(1, beta) holds: 1 is that of equal short tokens, where the slope is 1 (N1). And a "
            "query at 0 that sees the keys +-R m e_1, with W_v = I and A = beta I / R^2, moves the output by beta m^2 "
            "times its own change along e_1; m^2 tends to 1 as the keys grow.",
            b * n_h / (d * (n_h / d + eps)),
            n_h,
            sp.oo,
            b,
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "|do| <= max(1, beta + 1/(4 beta)) for W_v = I",
            DERIVATIVE_SPACE,
            derivative,
            sharp=True,
            near=(SHORT, LONG),
        ),
        Claim("the same between two states, causal", CHORD_SPACE, chord, sharp=True, near=(SHORT_CHORD,)),
    ),
    not_checked=(
        NotChecked(
            "a bound on the derivative over the whole space is a Lipschitz constant",
            "mean value inequality, Dieudonne (1960), Foundations of Modern Analysis, 8.5.2",
        ),
    ),
    code=("fpcheck/blocks/contractive.py:ContractiveBlock",),
    uses=("S0", "A6", "N1"),
    remarks=(
        "For beta >= 1/2 the constant is at most 1/(4 beta) above the smallest possible one. A search over two and "
        "three keys found derivatives of up to 1.013 at beta = 1, where it is 1.25, and none above 1 at beta = 0.8.",
        "A3 on the ball |N(h)| <= R alone would give beta + sqrt(1 + beta^2), 2.4 at beta = 1. What it leaves out is "
        "that the norm's slope falls where its output grows.",
        "One matrix A for all pairs: rotary positions belong into the fixed scores b_ij, which may depend on "
        "everything except the state. One head, before the output projection; F6 adds heads up.",
        "d >= 2 is a hypothesis of N1; for d = 1 the norm's slope is smaller still.",
    ),
)
