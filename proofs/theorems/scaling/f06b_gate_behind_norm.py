"""F6b: a gated layer behind RMSNorm, for all states."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
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
from proofs.numbers import dot, matrix, norm, spectral_norm

g = sp.Symbol("g", real=True)
gamma = sp.Symbol("gamma", real=True)
a_i = sp.Symbol("a_i", real=True)
b_i = sp.Symbol("b_i", real=True)
k_i = sp.Symbol("k_i", real=True)
u_i = sp.Symbol("u_i", real=True)
d_i = sp.Symbol("d_i", real=True)
A = sp.Symbol("A", nonnegative=True)
B = sp.Symbol("B", nonnegative=True)
K = sp.Symbol("K", nonnegative=True)
D = sp.Symbol("D", nonnegative=True)
rho = sp.Symbol("rho", nonnegative=True)
r = sp.Symbol("r", nonnegative=True)
c = sp.Symbol("c", nonnegative=True)
h = sp.Symbol("h", positive=True)
lam = sp.Symbol("lambda", positive=True)
b = sp.Symbol("b", positive=True)

NEURONS = Totals((a_i, b_i, k_i, d_i), {a_i**2: A, b_i**2: B, k_i**2: K, d_i**2: D})
stretch = (lam + 1 / lam) / 2


def _times(a, vector):
    return [sum(a[i, j] * vector[j] for j in range(a.cols)) for i in range(a.rows)]


def _gated(ctx, point, token):
    """tanh(W_g n + f) times W_u n behind the norm, from the definition."""
    eps = point["eps"]
    size = ctx.sqrt(dot(ctx, token, token) / len(token) + eps)
    n = [ctx.sqrt(eps) * x / size for x in token]
    gate, up = _times(matrix(ctx, point["G"], 2, 2), n), _times(matrix(ctx, point["U"], 2, 2), n)
    return [ctx.tanh(s + f) * v for s, f, v in zip(gate, point["fixed"], up, strict=True)]


def chord(ctx, point):
    y, z = point["y"], point["z"]
    moved = norm(ctx, [s - t for s, t in zip(_gated(ctx, point, y), _gated(ctx, point, z), strict=True)])
    rho = spectral_norm(ctx, matrix(ctx, point["G"], 2, 2)) * ctx.sqrt(2 * point["eps"])
    stretch = (rho + 1 / rho) / 2 if rho > 1 else ctx.mpf(1)
    distance = norm(ctx, [s - t for s, t in zip(y, z, strict=True)])
    return moved, spectral_norm(ctx, matrix(ctx, point["U"], 2, 2)) * stretch * distance


# rho = 2: the constant is 5/4. R = sqrt(2); the token lies along e_1 with r^2 = (rho^2 - 1)/(2 rho^2) = 3/8 and moves
# along e_2, by which the open first gate opens and the second, saturated one hands on.
HALF = 1e-3
EXTREMAL = {
    "eps": 1.0,
    "y": [(2 * 3 / 5) ** 0.5, HALF],
    "z": [(2 * 3 / 5) ** 0.5, -HALF],
    "G": [0, 2**0.5, 0, 0],
    "U": [1, 0, 0, 1],
    "fixed": [0, 30],
}

THEOREM = Theorem(
    id="F6b",
    title="A gated layer behind RMSNorm has a Lipschitz constant for all states",
    statement=(
        r"Let $N$ and $R = \sqrt{\epsilon d}$ be as in F6a and $y_i = \tanh\left((W_g N(h))_i + f_i\right) (W_u "
        r"N(h))_i$ with fixed $f_i$ of any size, and $R \|W_g\|_2 \le \rho$. In the Euclidean norm the map $h \mapsto "
        r"y$ has on the whole space a Lipschitz constant of at most $\|W_u\|_2 \max\left(1, \frac{\rho}{2} + "
        r"\frac{1}{2\rho}\right)$ (1 for $\rho \le 1$), which cannot be improved in these numbers."
    ),
    plain=(
        "A product of two functions of the state has no constant for all states, unless they are bounded. Behind the "
        "norm they are; and where a gate reacts it is not fully open. So gates of strength up to 1 cost nothing, and "
        "gates that depend on the injection alone cost nothing at any strength."
    ),
    symbols=(
        Symbol(g, "argument of one gate"),
        Symbol(gamma, "tanh g, value of one gate"),
        Symbol(a_i, "(W_u dn)_i, change of what the gate multiplies; W_u has norm 1, lengths are in units of R"),
        Symbol(k_i, "(B dn)_i, change of the gate's argument over rho, for W_g = rho B / R"),
        Symbol(u_i, "(W_u n)_i, what the gate multiplies"),
        Symbol(b_i, "rho k_i u_i, change by the gate before its slope"),
        Symbol(d_i, "change of one output"),
        Symbol(A, "sum of a_i^2"),
        Symbol(B, "sum of b_i^2"),
        Symbol(K, "sum of k_i^2"),
        Symbol(D, "sum of d_i^2"),
        Symbol(rho, "strength of the gates", "rho"),
        Symbol(r, "length of the normalised token, below 1"),
        Symbol(c, "the norm's slope there"),
        Symbol(h, "length of the token's change"),
        Symbol(lam, "a number that is at least rho, chosen at the end"),
        Symbol(b, "a rho of at least 1"),
    ),
    hypotheses=(
        Hypothesis("H1", "product rule, with the slope of tanh", d_i - gamma * a_i - (1 - gamma**2) * b_i, "zero"),
        Hypothesis("H2", "b_i = rho k_i u_i", b_i - rho * k_i * u_i, "zero"),
        Hypothesis("H3", "slope and length of a normalised token (F6a, step 'slope')", c**2 + r**2 - 1, "zero"),
        Hypothesis("H4", "lambda is at least rho", lam - rho),
    ),
    facts=(
        Fact("F1", "gates lie between -1 and 1, by step 'gate'", 1 - gamma**2, "step 'gate'", axiom=True),
        Fact("F2", "|u_i| <= |W_u| |n| <= r, squared", r**2 - u_i**2, "norm of W_u", axiom=True),
        Fact("F3", "|W_u dn| <= |dn| <= c h, squared", c**2 * h**2 - A, "norm of W_u, N1", axiom=True),
        Fact("F4", "|B dn| <= |dn| <= c h, squared", c**2 * h**2 - K, "norm of B, N1", axiom=True),
    ),
    steps=(
        Identity("The slope of tanh is 1 - tanh^2.", sp.diff(sp.tanh(g), g), 1 - sp.tanh(g) ** 2),
        Nonnegative("tanh lies between -1 and 1.", 1 - sp.tanh(g) ** 2, 1 / sp.cosh(g) ** 2, label="gate"),
        Nonnegative(
            "One neuron: gamma^2 + (1 - gamma^2)^2 is at most 1, so its squared change is at most a_i^2 + b_i^2.",
            a_i**2 + b_i**2 - d_i**2,
            gamma**2 * ref("F1") * (a_i**2 + b_i**2)
            + ((1 - gamma**2) * a_i - gamma * b_i) ** 2
            - (d_i + gamma * a_i + (1 - gamma**2) * b_i) * ref("H1"),
            label="neuron",
        ),
        Summed("All neurons.", "neuron", NEURONS, A + B - D, label="neurons"),
        Nonnegative(
            "The gate's part of one neuron.",
            rho**2 * r**2 * k_i**2 - b_i**2,
            rho**2 * k_i**2 * ref("F2") - (b_i + rho * k_i * u_i) * ref("H2"),
            label="part",
        ),
        Summed("All neurons.", "part", NEURONS, rho**2 * r**2 * K - B, label="parts"),
        Nonnegative(
            "So the squared change is at most (1 - r^2)(1 + rho^2 r^2) h^2.",
            (1 - r**2) * (1 + rho**2 * r**2) * h**2 - D,
            ref("neurons")
            + ref("parts")
            + ref("F3")
            + rho**2 * r**2 * ref("F4")
            - h**2 * (1 + rho**2 * r**2) * ref("H3"),
            label="total",
        ),
        Nonnegative(
            "For every lambda >= rho and every token that is at most the square of (lambda + 1/lambda) h / 2.",
            stretch**2 * h**2 - D,
            ref("total")
            + h**2 * c**2 * r**2 * ref("H4") * (lam + rho)
            + h**2 * (lam**2 * (1 - 2 * r**2) - 1) ** 2 / (4 * lam**2)
            - h**2 * r**2 * (lam**2 - rho**2) * ref("H3"),
            label="stretch",
        ),
        Identity("With lambda = 1 for rho <= 1 it is 1;", stretch.subs(lam, 1), 1),
        Nonnegative(
            "with lambda = rho = b >= 1 it is b/2 + 1/(2b), which is never below 1.",
            stretch.subs(lam, b) - 1,
            (b - 1) ** 2 / (2 * b),
        ),
        Identity(
            "It is attained: W_u = I, a token with r^2 = (b^2 - 1)/(2 b^2) along e_1 that moves along e_2, W_g with "
            "the single entry b/R in row 1 and column 2, an open first gate and a second one that tends to "
            "saturation. The squares of both parts add up to",
            (1 - (b**2 - 1) / (2 * b**2)) * (1 + b**2 * (b**2 - 1) / (2 * b**2)),
            stretch.subs(lam, b) ** 2,
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "Lipschitz with |W_u| max(1, rho/2 + 1/(2 rho))",
            (
                Reals("eps", 0.1, 1, log=True),
                Reals("y", -3, 3, 2),
                Reals("z", -3, 3, 2),
                Reals("G", -3, 3, 4),
                Reals("U", -1, 1, 4),
                Reals("fixed", -30, 30, 2),
            ),
            chord,
            sharp=True,
            near=(EXTREMAL,),
        ),
    ),
    not_checked=(
        NotChecked(
            "a bound on the derivative over the whole space is a Lipschitz constant",
            "mean value inequality, Dieudonne (1960), Foundations of Modern Analysis, 8.5.2",
        ),
    ),
    code=("fpcheck/blocks/contractive.py:ContractiveBlock",),
    uses=("N1", "F6a", "C5"),
    remarks=(
        "max(1, rho/2 + 1/(2 rho)) is F6a's constant at beta = rho/2.",
        "An output matrix multiplies the constant by its norm. SwiGLU instead has no constant for all states without "
        "the norm, and behind it one that grows with R (C4).",
    ),
)
