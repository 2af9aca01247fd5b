"""A8: when the largest bound per token bounds the whole matrix, and when it does not."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import matrix, norm, spectral_norm

e = sp.Symbol("e", nonnegative=True)
x_i = sp.Symbol("X_i", nonnegative=True)
y_i = sp.Symbol("Y_i", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
X = sp.Symbol("X", nonnegative=True)
Y = sp.Symbol("Y", nonnegative=True)
S = sp.Symbol("S", nonnegative=True)
n = sp.Symbol("n", integer=True, positive=True)
block = sp.Symbol("b", nonnegative=True)
part = sp.Symbol("t", nonnegative=True)
out = sp.Symbol("z", nonnegative=True)
top = sp.Symbol("M", nonnegative=True)
row = sp.Symbol("B", nonnegative=True)
total = sp.Symbol("T", nonnegative=True)

TOKENS = Totals((e, x_i, y_i), {sp.Integer(1): n, e**2: S, x_i: X, y_i: Y})
COLUMNS = Totals((block, part), {block: row, block * part: total})


def block_diagonal(ctx, point):
    blocks = [matrix(ctx, point["E"][4 * i : 4 * i + 4], 2, 2) for i in range(3)]
    whole = ctx.matrix(6, 6)
    for i, b in enumerate(blocks):
        for r in range(2):
            for c in range(2):
                whole[2 * i + r, 2 * i + c] = b[r, c]
    return spectral_norm(ctx, whole), max(spectral_norm(ctx, b) for b in blocks)


def _tokens(ctx, point):
    """Two tokens of two channels: the matrix and its blocks of rows."""
    return matrix(ctx, point["E"], 4, 4), [matrix(ctx, point["E"][8 * i : 8 * i + 8], 2, 4) for i in range(2)]


def dense_rows(ctx, point):
    whole, rows = _tokens(ctx, point)
    return spectral_norm(ctx, whole), ctx.sqrt(sum((spectral_norm(ctx, r) ** 2 for r in rows), ctx.mpf(0)))


def dense_count(ctx, point):
    whole, rows = _tokens(ctx, point)
    return spectral_norm(ctx, whole), ctx.sqrt(ctx.mpf(2)) * max(spectral_norm(ctx, r) for r in rows)


def token_maximum(ctx, point):
    whole, _ = _tokens(ctx, point)
    x = point["x"]
    image = [sum(whole[i, j] * x[j] for j in range(4)) for i in range(4)]
    sums = [
        sum(
            (
                spectral_norm(ctx, ctx.matrix([[whole[2 * i + r, 2 * j + c] for c in range(2)] for r in range(2)]))
                for j in range(2)
            ),
            ctx.mpf(0),
        )
        for i in range(2)
    ]
    largest = max(norm(ctx, x[2 * j : 2 * j + 2]) for j in range(2))
    return max(norm(ctx, image[2 * i : 2 * i + 2]) for i in range(2)), max(sums) * largest


DENSE = (Reals("E", -1, 1, 16),)
PARALLEL = [1.0, 0.5, -0.5, 0.25, *[0.0] * 4]

THEOREM = Theorem(
    id="A8",
    title="Bounds per token and the norm of the whole",
    statement=(
        r"Let a matrix $E$ consist of blocks $E_{ij}$ for $n$ tokens, with rows of blocks $E_{i:}$. If it is block "
        r"diagonal, $\|E\|_2 = \max_i \|E_{ii}\|_2$. If not, $\|E\|_2^2 \le \sum_i \|E_{i:}\|_2^2 \le n \max_i "
        r"\|E_{i:}\|_2^2$, and both can be equalities, so a maximum over tokens can be too small by the factor "
        r"$\sqrt n$. In the norm $\max_i |x_i|_2$ instead: $\|E\| \le \max_i \sum_j \|E_{ij}\|_2$."
    ),
    plain=(
        "Norms and feed-forward layers act on each token alone: there the worst token's bound is the bound. "
        "Attention mixes tokens: there the worst token's bound is not enough in the Euclidean norm."
    ),
    symbols=(
        Symbol(e, "norm of a token's row of blocks"),
        Symbol(x_i, "squared length of a token of x"),
        Symbol(y_i, "squared length of a token of E x"),
        Symbol(m, "largest norm of a token's block, or row of blocks"),
        Symbol(X, "|x|^2"),
        Symbol(Y, "|E x|^2"),
        Symbol(S, "sum of the squared norms of the rows of blocks"),
        Symbol(n, "number of tokens"),
        Symbol(block, "norm of one block of a row"),
        Symbol(part, "length of the token of x that it meets"),
        Symbol(out, "length of a token of E x"),
        Symbol(top, "largest length of a token of x"),
        Symbol(row, "sum of the block norms of a row"),
        Symbol(total, "sum of block norm times token length in a row"),
    ),
    hypotheses=(
        Hypothesis("H1", "block diagonal: a token of E x comes from the same token of x", m**2 * x_i - y_i),
        Hypothesis("H2", "m is the largest", m - e),
        Hypothesis(
            "H3", "equality case: all rows of blocks are e_i times the same unit row, along x", y_i - e**2 * X, "zero"
        ),
        Hypothesis("H4", "M is the largest length of a token", top - part),
    ),
    facts=(
        Fact("F1", "a token of E x is its row of blocks times x", e**2 * X - y_i, "definition of the norm", axiom=True),
        Fact("F2", "a token of E x is a sum over its row", total - out, "triangle inequality", axiom=True),
    ),
    steps=(
        Summed(
            "Block diagonal: the sum over tokens of |E_ii x_i|^2 is at most m^2 |x|^2; equality for an x on the "
            "worst token.",
            "H1",
            TOKENS,
            m**2 * X - Y,
            label="diagonal",
        ),
        Summed("Dense: every token of E x may use all of x.", "F1", TOKENS, S * X - Y, label="rows"),
        Nonnegative("Each row's norm is at most the largest one.", m**2 - e**2, ref("H2") * (m + e), label="largest"),
        Summed("Summed over the n tokens.", "largest", TOKENS, n * m**2 - S, label="count"),
        Nonnegative("So |E x|^2 is at most n m^2 |x|^2.", n * m**2 * X - Y, ref("rows") + X * ref("count")),
        Summed(
            "If all rows are parallel to x, the first bound is an equality; with equal e_i the second too.",
            "H3",
            TOKENS,
            Y - S * X,
        ),
        Nonnegative("Largest token: one block's share.", block * top - block * part, block * ref("H4"), label="share"),
        Summed("Summed over the row.", "share", COLUMNS, row * top - total, label="row"),
        Nonnegative("So a token of E x is at most its row sum times M.", row * top - out, ref("row") + ref("F2")),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("block diagonal: |E| <= largest block norm", (Reals("E", -1, 1, 12),), block_diagonal, sharp=True),
        Claim(
            "dense: |E|^2 <= sum of squared row norms",
            DENSE,
            dense_rows,
            sharp=True,
            near=({"E": [*PARALLEL, *[v / 2 for v in PARALLEL]]},),
        ),
        Claim("dense: |E| <= sqrt(n) times the largest", DENSE, dense_count, sharp=True, near=({"E": PARALLEL * 2},)),
        Claim(
            "in the maximum over tokens: largest row sum",
            (*DENSE, Reals("x", -1, 1, 4)),
            token_maximum,
            sharp=True,
            near=({"E": [1.0, 0, 1, 0, *[0.0] * 12], "x": [1, 0, 1, 0]},),
        ),
    ),
    remarks=(
        "For attention use bounds per pair of tokens and a weighted Schur test, or the norm of A3.",
        "A causal mask makes E block lower triangular; that does not make the maximum over tokens a bound.",
    ),
)
