"""Q3: the weighted Schur test for a matrix in the middle of which only block norms are known."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import matrix, spectral_norm

e = sp.Symbol("e", nonnegative=True)
x = sp.Symbol("x", nonnegative=True)
y = sp.Symbol("y", nonnegative=True)
theta = sp.Symbol("theta", positive=True)
phi = sp.Symbol("phi", positive=True)
t = sp.Symbol("t", positive=True)
N = sp.Symbol("N", nonnegative=True)
P = sp.Symbol("P", positive=True)
Q = sp.Symbol("Q", positive=True)
m = sp.Symbol("m", nonnegative=True)
a = sp.Symbol("a", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
left = sp.Symbol("K", nonnegative=True)
right = sp.Symbol("H", nonnegative=True)

PAIRS = Totals((e, x, y, theta, phi), {e * x * y: N, theta * e * x**2: P**2, phi * e * y**2: Q**2})

SIZES = (1, 2)


def _sides(ctx, left_factor, middle, right_factor, weights):
    """Blocks of 1 and 2 rows: |X E Y| and the bound, from the norms of the blocks."""
    cuts = (range(1), range(1, 3))
    norms = [
        [spectral_norm(ctx, ctx.matrix([[middle[i, j] for j in cuts[q]] for i in cuts[p]])) for q in range(len(SIZES))]
        for p in range(len(SIZES))
    ]
    rows = [sum((weights[2 * p + q] * norms[p][q] for q in range(2)), ctx.mpf(0)) for p in range(2)]
    columns = [sum((norms[p][q] / weights[2 * p + q] for p in range(2)), ctx.mpf(0)) for q in range(2)]
    spread = [ctx.diag([ctx.sqrt(v[0]), ctx.sqrt(v[1]), ctx.sqrt(v[1])]) for v in (rows, columns)]
    bound = spectral_norm(ctx, left_factor * spread[0]) * spectral_norm(ctx, spread[1] * right_factor)
    return spectral_norm(ctx, left_factor * middle * right_factor), bound


def schur(ctx, point):
    return _sides(
        ctx, matrix(ctx, point["X"], 2, 3), matrix(ctx, point["E"], 3, 3), matrix(ctx, point["Y"], 3, 2), point["theta"]
    )


def aligned(ctx, point):
    """All factors positive and of rank one, any weights."""
    u, v = ctx.matrix([point["u"]]), ctx.matrix(point["v"])
    middle = ctx.matrix(point["c"]) * ctx.matrix([point["d"]])
    return _sides(ctx, u, middle, v, point["theta"])


THEOREM = Theorem(
    id="Q3",
    title="Weighted Schur test",
    statement=(
        r"Let $E$ be cut into blocks with $|E_{ij}|_2 \le e_{ij}$, let $\theta_{ij} > 0$ be any weights, $R_i = \sum_j "
        r"\theta_{ij} e_{ij}$ and $C_j = \sum_i e_{ij} / \theta_{ij}$, each repeated over the rows of its block. Then "
        r"$|X E Y|_2 \le |X \, \mathrm{diag}(R)^{1/2}|_2 \, |\mathrm{diag}(C)^{1/2} Y|_2$ for all $X$ and $Y$ that "
        r"fit. Equality can hold."
    ),
    plain=(
        "A change that is known only by the sizes of its blocks is bounded between two known matrices without taking "
        "the largest block everywhere: a token that matters little may change much. The weights are free; a bad choice "
        "costs accuracy, never soundness."
    ),
    symbols=(
        Symbol(e, "bound e_ij on the norm of block (i, j)"),
        Symbol(x, "|x_i|, length of block i of x = X'a"),
        Symbol(y, "|y_j|, length of block j of y = Y b"),
        Symbol(theta, "weight theta_ij"),
        Symbol(phi, "1 / theta_ij"),
        Symbol(t, "a positive number, the same for all pairs"),
        Symbol(N, "sum over pairs of e_ij |x_i| |y_j|"),
        Symbol(P, "root of the sum of theta_ij e_ij |x_i|^2 = sum of R_i |x_i|^2, that is |diag(R)^(1/2) x|"),
        Symbol(Q, "root of the sum of e_ij |y_j|^2 / theta_ij = sum of C_j |y_j|^2, that is |diag(C)^(1/2) y|"),
        Symbol(m, "|a'X E Y b|"),
        Symbol(a, "|a|"),
        Symbol(b, "|b|"),
        Symbol(left, "|X diag(R)^(1/2)|_2"),
        Symbol(right, "|diag(C)^(1/2) Y|_2"),
    ),
    hypotheses=(
        Hypothesis("H1", "phi = 1 / theta", theta * phi - 1, "zero"),
        Hypothesis("H2", "t = Q / P; if P or Q is 0, so is N, and nothing is to be shown", t * P - Q, "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "|x'E y| <= sum |x_i'E_ij y_j| <= sum e_ij |x_i| |y_j|",
            N - m,
            "triangle inequality and the definition of the operator norm",
            axiom=True,
        ),
        Fact("F2", "|diag(R)^(1/2) X'a| <= |X diag(R)^(1/2)|_2 |a|", left * a - P, "operator norm", axiom=True),
        Fact("F3", "|diag(C)^(1/2) Y b| <= |diag(C)^(1/2) Y|_2 |b|", right * b - Q, "operator norm", axiom=True),
    ),
    steps=(
        Nonnegative(
            "One pair: twice the product of two numbers is at most the sum of their squares; the weight goes to "
            "one, its inverse to the other.",
            t * theta * e * x**2 + phi * e * y**2 / t - 2 * e * x * y,
            e * phi / t * (t * theta * x - y) ** 2 + e * x * (2 * y - t * theta * x) * ref("H1"),
            label="pair",
        ),
        Summed(
            "Summed over all pairs: in P^2 each row gathers R_i, in Q^2 each column C_j.",
            "pair",
            PAIRS,
            t * P**2 + Q**2 / t - 2 * N,
            label="all pairs",
        ),
        Nonnegative(
            "At t = Q / P both squares are P Q: the sum is at most that (Cauchy-Schwarz).",
            P * Q - N,
            ref("all pairs") / 2 - (P + Q / t) / 2 * ref("H2") + Q * ref("H2") / t,
            label="product",
        ),
        Nonnegative(
            "Both factors are at most their operator norms; the largest |a'X E Y b| for unit a and b is |X E Y|_2.",
            left * right * a * b - m,
            ref("F1") + ref("product") + right * b * ref("F2") + P * ref("F3"),
        ),
    ),
    source=Source("Schur", 1911, "Bemerkungen zur Theorie der beschraenkten Bilinearformen; pairwise weights derived"),
    claims=(
        Claim(
            "|X E Y| <= the product, blocks of 1 and 2 rows",
            (Reals("X", -1, 1, 6), Reals("E", -1, 1, 9), Reals("Y", -1, 1, 6), Reals("theta", 0.1, 10, 4, log=True)),
            schur,
            sharp=True,
            near=(
                {
                    "X": [0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
                    "E": [0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                    "Y": [0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
                    "theta": [1.0, 1.0, 1.0, 1.0],
                },
            ),
        ),
        Claim(
            "the same for factors of rank one, none of whose entries is 0",
            (
                Reals("u", 0.1, 1, 3),
                Reals("c", 0.1, 1, 3),
                Reals("d", 0.1, 1, 3),
                Reals("v", 0.1, 1, 3),
                Reals("theta", 0.1, 10, 4, log=True),
            ),
            aligned,
            sharp=True,
            near=(
                {
                    "u": [1.0, 0.5, 0.5],
                    "c": [1.0, 0.5, 0.5],
                    "d": [1.0, 0.5, 0.5],
                    "v": [1.0, 0.5, 0.5],
                    "theta": [1.0, 1.0, 1.0, 1.0],
                },
            ),
        ),
    ),
    code=(
        "fpcheck/certify/curvature.py:curvature",
        "fpcheck/check/full.py:full_lines",
    ),
    remarks=(
        "theta = 1 is the common form and loses a factor of 2 to 5 on trained blocks. A good choice is theta_ij = "
        "|y-side row block j| / |x-side column block i|, with |x_i|, |y_j| replaced by norms of the blocks of X "
        "and Y.",
        "If E is block diagonal, R = theta e and C = e / theta token by token: no largest token enters.",
    ),
)
