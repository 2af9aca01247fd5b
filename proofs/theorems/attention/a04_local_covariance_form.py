"""A4: how much an attention output moves at a given state, by the covariance of values and keys."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import dot, norm, softmax, spectral_norm

p = sp.Symbol("p", nonnegative=True)
u = sp.Symbol("u", real=True)
w = sp.Symbol("w", nonnegative=True)
dv = sp.Symbol("dv", real=True)
size_dv = sp.Symbol("z", nonnegative=True)
along_q = sp.Symbol("kappa", real=True)
along_k = sp.Symbol("chi", real=True)
size_dk = sp.Symbol("d", nonnegative=True)

c = sp.Symbol("c", positive=True)
size_q = sp.Symbol("Q", nonnegative=True)
size_dq = sp.Symbol("N", nonnegative=True)
cov_norm = sp.Symbol("C", nonnegative=True)
do = sp.Symbol("do", real=True)
mean_dv = sp.Symbol("D", real=True)
mean_z = sp.Symbol("Z", nonnegative=True)
cov_dq = sp.Symbol("K", real=True)
cov_dk = sp.Symbol("X", real=True)
mean_wd = sp.Symbol("W", nonnegative=True)

KEYS = Totals(
    (p, u, w, dv, size_dv, along_q, along_k, size_dk),
    {p * dv: mean_dv, p * size_dv: mean_z, p * u * along_q: cov_dq, p * u * along_k: cov_dk, p * w * size_dk: mean_wd},
)


def _rows(values):
    return [values[i : i + 2] for i in range(0, len(values), 2)]


def local(ctx, point):
    """Three keys, two channels; the derivative by the quotient rule of softmax."""
    q, dq = point["q"], point["dq"]
    k, v, dk, dv = (_rows(point[name]) for name in ("k", "v", "dk", "dv"))
    scale = 1 / ctx.sqrt(ctx.mpf(2))
    weights = softmax(ctx, [scale * dot(ctx, q, key) for key in k])
    slopes = [scale * (dot(ctx, dq, key) + dot(ctx, q, change)) for key, change in zip(k, dk, strict=True)]
    mean_slope = dot(ctx, weights, slopes)
    moved = [
        sum(
            (p * (s - mean_slope) * a[m] + p * b[m] for p, s, a, b in zip(weights, slopes, v, dv, strict=True)),
            ctx.mpf(0),
        )
        for m in range(2)
    ]
    centre = [sum((p * a[m] for p, a in zip(weights, v, strict=True)), ctx.mpf(0)) for m in range(2)]
    off = [[x - y for x, y in zip(a, centre, strict=True)] for a in v]
    cov = ctx.matrix(
        [
            [sum((p * a[m] * b[i] for p, a, b in zip(weights, off, k, strict=True)), ctx.mpf(0)) for i in range(2)]
            for m in range(2)
        ]
    )
    bound = (
        sum((p * norm(ctx, b) for p, b in zip(weights, dv, strict=True)), ctx.mpf(0))
        + scale * spectral_norm(ctx, cov) * norm(ctx, dq)
        + scale
        * norm(ctx, q)
        * sum((p * norm(ctx, a) * norm(ctx, b) for p, a, b in zip(weights, off, dk, strict=True)), ctx.mpf(0))
    )
    return norm(ctx, moved), bound


THEOREM = Theorem(
    id="A4",
    title="Local covariance form of attention",
    statement=(
        r"Let $o = \sum_j p_j v_j$, $p = \mathrm{softmax}(s)$, $s_j = c\, q \cdot k_j + b_j$ with fixed $b_j$, $c > "
        r"0$. For changes $dq, dk_j, dv_j$: $|do|_2 \le \sum_j p_j |dv_j|_2 + c\, \|\mathrm{Cov}_p(v, k)\|_2 |dq|_2 "
        r"+ c\, |q|_2 \sum_j p_j |v_j - o|_2 |dk_j|_2$, where $\mathrm{Cov}_p(v, k) = \sum_j p_j (v_j - o) k_j'$. "
        r"For every set of keys whose values lie on a line there are changes of any lengths that attain it."
    ),
    plain=(
        "At a given state attention stretches by what its weights actually spread: the covariance of values and keys "
        "for a change of the query, the mean deviation of the values for a change of the keys. This is far below a "
        "global bound."
    ),
    symbols=(
        Symbol(p, "probability of a key"),
        Symbol(u, "component of v - o along a unit vector f"),
        Symbol(w, "length of v - o"),
        Symbol(dv, "component of the value's change along f"),
        Symbol(size_dv, "length of the value's change"),
        Symbol(along_q, "k . dq, the key along the query's change"),
        Symbol(along_k, "q . dk, the query along the key's change"),
        Symbol(size_dk, "length of the key's change"),
        Symbol(c, "scale of the scores"),
        Symbol(size_q, "length of the query"),
        Symbol(size_dq, "length of the query's change"),
        Symbol(cov_norm, "spectral norm of Cov(v, k)"),
        Symbol(do, "component of the output's change along f"),
        Symbol(mean_dv, "mean of dv"),
        Symbol(mean_z, "mean length of the values' changes"),
        Symbol(cov_dq, "mean of u (k . dq), that is f' Cov(v, k) dq"),
        Symbol(cov_dk, "mean of u (q . dk)"),
        Symbol(mean_wd, "mean of |v - o| |dk|"),
    ),
    hypotheses=(
        Hypothesis("H1", "f is a unit vector: dv <= |dv|", size_dv - dv),
        Hypothesis("H2", "and u <= |v - o|", w - u),
        Hypothesis("H3", "and -u <= |v - o|", w + u),
    ),
    facts=(
        Fact("F1", "q . dk <= |q| |dk|", size_q * size_dk - along_k, "S0 (Cauchy-Schwarz)", axiom=True),
        Fact("F2", "-q . dk <= |q| |dk|", size_q * size_dk + along_k, "S0 (Cauchy-Schwarz)", axiom=True),
        Fact(
            "F3",
            "f' Cov(v, k) dq <= |Cov(v, k)| |dq|",
            cov_norm * size_dq - cov_dq,
            "definition of the spectral norm, with S0",
            axiom=True,
        ),
        Fact(
            "F4",
            "first derivative of attention: mean of dv plus the covariance of v and ds = c (k . dq + q . dk)",
            do - (mean_dv + c * (cov_dq + cov_dk)),
            "A6",
            "zero",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "One key's change of value along f is at most its length.",
            p * size_dv - p * dv,
            p * ref("H1"),
            label="value",
        ),
        Summed("Averaged over the keys.", "value", KEYS, mean_z - mean_dv, label="values"),
        Nonnegative(
            "One key's product u (q . dk) is at most |v - o| |q| |dk|: both factors are bounded on both sides.",
            p * w * size_q * size_dk - p * u * along_k,
            p * (ref("H2") * ref("F2") + ref("H3") * ref("F1")) / 2,
            label="key",
        ),
        Summed("Averaged over the keys.", "key", KEYS, size_q * mean_wd - cov_dk, label="keys"),
        Nonnegative(
            "Insert both and the covariance bound into the first derivative. This holds for every unit vector f, so "
            "also for the one along do, where the component is |do|.",
            mean_z + c * cov_norm * size_dq + c * size_q * mean_wd - do,
            ref("values") + c * ref("F3") + c * ref("keys") - ref("F4"),
            label="bound",
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "|do| is at most the local covariance form",
            (
                Reals("q", -2, 2, 2),
                Reals("k", -2, 2, 6),
                Reals("v", -2, 2, 6),
                Reals("dq", -1, 1, 2),
                Reals("dk", -1, 1, 6),
                Reals("dv", -1, 1, 6),
            ),
            local,
            sharp=True,
            near=(
                {
                    "q": [1, 0],
                    "k": [0, 1, 0, -1, 0, 0],
                    "v": [1, 0, -1, 0, 0, 0],
                    "dq": [0, 1],
                    "dk": [1, 0, -1, 0, 0, 0],
                    "dv": [1, 0, 1, 0, 1, 0],
                },
            ),
        ),
    ),
    uses=("S0", "A6"),
    remarks=(
        "Attained: values on a line along f, dv_j along f, dq along the right singular vector of the covariance, "
        "dk_j along sign(u_j) q.",
        "Masked pairs have p = 0 and drop out (S4). The fixed b_j cover relative position biases; rotary positions "
        "act on q and k before.",
        "One head, before the output projection.",
    ),
)
