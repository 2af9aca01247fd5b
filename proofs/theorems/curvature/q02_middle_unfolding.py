"""Q2: how large a matrix that depends linearly on a direction can be, for all directions at once."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import matrix, norm, spectral_norm, symmetric_eigenvalues

d = sp.Symbol("d", nonnegative=True)
v = sp.Symbol("v", nonnegative=True)
delta = sp.Symbol("delta", positive=True)
G = sp.Symbol("G", nonnegative=True)
N = sp.Symbol("N", nonnegative=True)
t = sp.Symbol("t", positive=True)
w = sp.Symbol("w", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
tau = sp.Symbol("tau", positive=True)
x_pq = sp.Symbol("x_pq", real=True)
s_p = sp.Symbol("s_p", real=True)
s_q = sp.Symbol("s_q", real=True)
s_pa = sp.Symbol("s_pa", real=True)
s_qb = sp.Symbol("s_qb", real=True)
c_pq = sp.Symbol("c_pq", real=True)
g_i = sp.Symbol("g_i", real=True)
g = sp.Symbol("g", real=True)

BASIS = Totals((g_i, s_p, s_q), {g_i: g, s_p * s_q: c_pq})
TERMS = Totals((d, v), {d**2: delta**2, v**2: G, d * v: N})


def _slices(ctx, point):
    """Two 2 x 2 matrices M_i, any linear dependence."""
    return [matrix(ctx, point[key], 2, 2) for key in ("M1", "M2")]


def _combined(ctx, point):
    first, second = _slices(ctx, point)
    return first * point["d"][0] + second * point["d"][1]


def middle(ctx, point):
    slices = _slices(ctx, point)
    gram = slices[0].T * slices[0] + slices[1].T * slices[1]
    bound = ctx.sqrt(max(symmetric_eigenvalues(ctx, gram)[-1], ctx.mpf(0)))
    return spectral_norm(ctx, _combined(ctx, point)), bound * norm(ctx, point["d"])


def output(ctx, point):
    slices = _slices(ctx, point)
    gram = slices[0] * slices[0].T + slices[1] * slices[1].T
    bound = ctx.sqrt(max(symmetric_eigenvalues(ctx, gram)[-1], ctx.mpf(0)))
    return spectral_norm(ctx, _combined(ctx, point)), bound * norm(ctx, point["d"])


def rank_one(ctx, point):
    """sum_p x_p (s_p.a)(s_p.b): the largest |M(delta)| against the Gram formula."""
    x, s = matrix(ctx, point["X"], 2, 3), matrix(ctx, point["S"], 3, 2)
    inner, outer = x.T * x, s * s.T
    weights = ctx.matrix([[inner[p, q] * outer[p, q] for q in range(3)] for p in range(3)])
    bound = ctx.sqrt(max(symmetric_eigenvalues(ctx, s.T * weights * s)[-1], ctx.mpf(0)))
    along = s * ctx.matrix(point["d"])
    return spectral_norm(ctx, x * ctx.diag(list(along)) * s), bound * norm(ctx, point["d"])


SPACE = (Reals("M1", -1, 1, 4), Reals("M2", -1, 1, 4), Reals("d", -1, 1, 2))

THEOREM = Theorem(
    id="Q2",
    title="Unfoldings of a matrix that is linear in a direction",
    statement=(
        r"Let $M(\delta) = \sum_i \delta_i M_i$ for $\delta \in \mathbb{R}^n$ in any orthonormal basis. Then "
        r"$|M(\delta)|_2 \le \tau |\delta|$ with $\tau^2 = \lambda_{\max}(\sum_i M_i^T M_i)$, and likewise with "
        r"$\tau^2 = \lambda_{\max}(\sum_i M_i M_i^T)$. If $M(\delta) w = \sum_p x_p (s_p \cdot \delta)(s_p \cdot "
        r"w)$, with the $x_p$ as columns of $X$ and the $s_p$ as rows of $S$, then $\sum_i M_i^T M_i = S^T ((X^T "
        r"X) \circ (S S^T)) S$ with the entrywise product. Equality can hold."
    ),
    plain=(
        "The second derivative of a block is a matrix that depends linearly on the direction in which one moves. One "
        "symmetric eigenvalue bounds it for all directions at once, with a loss of a few per cent on trained blocks."
    ),
    symbols=(
        Symbol(d, "|delta_i|, one coordinate of the direction"),
        Symbol(v, "|M_i w|"),
        Symbol(delta, "|delta|, not 0"),
        Symbol(G, "sum of |M_i w|^2 = w'(sum M_i'M_i) w"),
        Symbol(N, "sum of |delta_i| |M_i w|"),
        Symbol(t, "a positive number, the same for all i"),
        Symbol(w, "|w|"),
        Symbol(m, "|M(delta) w|"),
        Symbol(tau, "root of the largest eigenvalue; if it is 0, all M_i are 0", "tau"),
        Symbol(x_pq, "x_p'x_q, entry (p, q) of X'X"),
        Symbol(s_p, "entry i of s_p"),
        Symbol(s_q, "entry i of s_q"),
        Symbol(c_pq, "sum over i of s_p s_q, entry (p, q) of S S'"),
        Symbol(s_pa, "entry a of s_p"),
        Symbol(s_qb, "entry b of s_q"),
        Symbol(g_i, "what the pair (p, q) of terms gives to entry (a, b) of M_i'M_i"),
        Symbol(g, "what it gives to that entry of the sum over i"),
    ),
    hypotheses=(
        Hypothesis("H1", "tau^2 is the largest eigenvalue of sum M_i'M_i, so G <= tau^2 |w|^2", tau**2 * w**2 - G),
        Hypothesis("H2", "t = tau |w| / |delta|, for w not 0", t * delta - tau * w, "zero"),
        Hypothesis(
            "H3",
            "for rank-one terms: M_i = sum_p (s_p)_i x_p s_p', so M_i'M_i has the terms (s_p)_i s_p x_p'x_q "
            "(s_q)_i s_q'",
            g_i - (s_p * s_pa) * x_pq * (s_q * s_qb),
            "zero",
        ),
    ),
    facts=(Fact("F1", "|sum delta_i M_i w| <= sum |delta_i| |M_i w|", N - m, "triangle inequality", axiom=True),),
    steps=(
        Nonnegative(
            "One term: twice a product is at most the sum of two squares, with a weight t that is the same for all.",
            t * d**2 + v**2 / t - 2 * d * v,
            (t * d - v) ** 2 / t,
            label="term",
        ),
        Summed("Summed over i.", "term", TERMS, t * delta**2 + G / t - 2 * N, label="sum"),
        Nonnegative(
            "The quadratic form of sum M_i'M_i is at most tau^2 |w|^2; with t = tau |w| / |delta| both terms are "
            "tau |delta| |w|. So |M(delta) w| <= tau |delta| |w| for all w: that is the bound. No symmetry is "
            "used; for the other unfolding read M_i' in place of M_i, since M(delta)' has the same norm.",
            tau * delta * w - m,
            ref("F1")
            + ref("sum") / 2
            + ref("H1") / (2 * t)
            - (tau * w / t + delta) / 2 * ref("H2")
            + tau * w * ref("H2") / t,
            label="bound",
        ),
        Summed(
            "Terms of rank one: summed over i, the pair (p, q) gives s_p' s_q x_p'x_q between s_p and s_q'. Summed "
            "over the pairs that is S' times the entrywise product of X'X and S S' times S.",
            "H3",
            BASIS,
            g - s_pa * (x_pq * c_pq) * s_qb,
            label="Gram",
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "|M(delta)| <= tau |delta|, middle unfolding",
            SPACE,
            middle,
            sharp=True,
            near=({"M1": [0.5, 0.0, 0.0, 0.0], "M2": [0.0, 0.0, 0.0, 0.0], "d": [1.0, 0.0]},),
        ),
        Claim(
            "|M(delta)| <= tau |delta|, output unfolding",
            SPACE,
            output,
            sharp=True,
            near=({"M1": [0.5, 0.0, 0.0, 0.0], "M2": [0.0, 0.0, 0.0, 0.0], "d": [1.0, 0.0]},),
        ),
        Claim(
            "the same with the Gram formula for three terms of rank one",
            (Reals("X", -1, 1, 6), Reals("S", -1, 1, 6), Reals("d", -1, 1, 2)),
            rank_one,
            sharp=True,
            near=({"X": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], "S": [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], "d": [1.0, 0.0]},),
        ),
    ),
    code=("fpcheck/certify/middle.py:first_order", "fpcheck/check/second.py:tau_bound"),
    remarks=(
        "A power iteration on sum M_i'M_i approaches tau from below: good for choosing a metric, never for a bound. R3 "
        "and R4 bound it from above.",
        "The two unfoldings can differ much (by a factor of 2.5 on a trained block); the smaller one may be taken.",
        "For a second derivative M(delta) w = M(w) delta, so tau is also the largest Frobenius norm of M(w) over "
        "unit w: the loss is that between the Frobenius and the spectral norm of M(w), at its worst w.",
    ),
)
