"""C4: SwiGLU has no global Lipschitz constant, and which one it has on a bounded set."""

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
from proofs.numbers import matrix, sigmoid, spectral_norm

sigma = sp.Function("silu")
g = sp.Symbol("g", real=True)
u = sp.Symbol("u", real=True)
x = sp.Symbol("x", positive=True)
w = sp.Symbol("w", positive=True)
v = sp.Symbol("v", positive=True)
tau = sp.Symbol("tau", real=True)
slope = sp.Symbol("s_i", real=True)
u_i = sp.Symbol("u_i", real=True)
f_i = sp.Symbol("f_i", real=True)
p_i = sp.Symbol("p_i", real=True)
q_i = sp.Symbol("q_i", real=True)
c = sp.Symbol("c", positive=True)
U = sp.Symbol("U", nonnegative=True)
S = sp.Symbol("S", nonnegative=True)
p = sp.Symbol("p", nonnegative=True)
q = sp.Symbol("q", nonnegative=True)
P = sp.Symbol("P", nonnegative=True)
Q = sp.Symbol("Q", nonnegative=True)
y = sp.Symbol("y", nonnegative=True)
out = sp.Symbol("z", nonnegative=True)
h = sp.Symbol("h", nonnegative=True)
W_g = sp.Symbol("W_g", nonnegative=True)
W_u = sp.Symbol("W_u", nonnegative=True)
W_o = sp.Symbol("W_o", nonnegative=True)


def silu(t):
    return t / (1 + sp.exp(-t))


CHANNELS = Totals(
    (slope, u_i, f_i, p_i, q_i),
    {p_i**2: p**2, q_i**2: q**2, slope**2 * u_i**2 * p_i**2: P**2, f_i**2 * q_i**2: Q**2},
)


def _silu(ctx, at):
    s = sigmoid(ctx, at)
    return at * s, s + at * s * (1 - s)


def jacobian_norm(ctx, point):
    """The Jacobian of W_o (silu(W_g x) u) with u = W_u x at one state, width 2 and two channels."""
    state = ctx.matrix(point["x"])
    gate, up, down = (matrix(ctx, point[name], 2, 2) for name in ("W_g", "W_u", "W_o"))
    at, other = gate * state, up * state
    values = [_silu(ctx, at[i]) for i in range(2)]
    inner = ctx.matrix(2, 2)
    for i in range(2):
        for j in range(2):
            inner[i, j] = values[i][1] * other[i] * gate[i, j] + values[i][0] * up[i, j]
    largest = max(abs(other[i]) for i in range(2))
    top = max(abs(values[i][0]) for i in range(2))
    steepest = ctx.mpf(10998394) / 10**7
    right = steepest * largest * spectral_norm(ctx, gate) + top * spectral_norm(ctx, up)
    return spectral_norm(ctx, down * inner), spectral_norm(ctx, down) * right


THEOREM = Theorem(
    id="C4",
    title="SwiGLU on a bounded set",
    statement=(
        r"Let $F(x) = W_o y$, $y_i = \mathrm{silu}(g_i) u_i$, $g = W_g x$, $u = W_u x$. Along a ray, $F(\lambda h) / "
        r"\lambda^2$ tends to $W_o r$ with $r_i = \max((W_g h)_i, 0) (W_u h)_i$; if this is not $0$ for some $h$, $F$ "
        r"is not Lipschitz on the whole space. On a convex set where $|u_i| \le U$ and $|\mathrm{silu}(g_i)| \le S$ "
        r"for all channels, it is Lipschitz in the Euclidean norm with $\|W_o\| (c\, U \|W_g\| + S \|W_u\|)$, $c = "
        r"\sup |\mathrm{silu}'| = 1.0998393\ldots$ (C1)."
    ),
    plain=(
        "A SwiGLU layer multiplies two functions of its input, so it stretches without bound far out. With bounds on "
        "the two factors at hand it has a Lipschitz constant, and the factor 1.0998394 of SiLU belongs to it."
    ),
    symbols=(
        Symbol(g, "gate input of a channel"),
        Symbol(u, "other input of a channel"),
        Symbol(x, "how far along the ray"),
        Symbol(w, "gate input per unit along the ray"),
        Symbol(v, "other input per unit along the ray"),
        Symbol(tau, "position along a direction h"),
        Symbol(slope, "silu'(g_i)"),
        Symbol(u_i, "other input of channel i"),
        Symbol(f_i, "silu(g_i)"),
        Symbol(p_i, "(W_g h)_i"),
        Symbol(q_i, "(W_u h)_i"),
        Symbol(c, "sup |silu'|, C1"),
        Symbol(U, "bound of |u_i| on the set"),
        Symbol(S, "bound of |silu(g_i)| on the set"),
        Symbol(p, "|W_g h|"),
        Symbol(q, "|W_u h|"),
        Symbol(P, "length of the vector of s_i u_i p_i"),
        Symbol(Q, "length of the vector of f_i q_i"),
        Symbol(y, "length of the derivative of y along h"),
        Symbol(out, "length of the derivative of F along h"),
        Symbol(h, "length of the direction h"),
        Symbol(W_g, "operator norm of the gate matrix"),
        Symbol(W_u, "operator norm of the other input matrix"),
        Symbol(W_o, "operator norm of the output matrix"),
    ),
    hypotheses=(
        Hypothesis("H1", "|u_i| <= U for every channel, squared", U**2 - u_i**2),
        Hypothesis("H2", "|silu(g_i)| <= S for every channel, squared", S**2 - f_i**2),
    ),
    facts=(
        Fact("F1", "|silu'| <= c, squared", c**2 - slope**2, "C1", axiom=True),
        Fact("F2", "|s_i u_i p_i + f_i q_i| as vectors, in two terms", P + Q - y, "triangle inequality", axiom=True),
        Fact("F3", "|W_g h| <= |W_g| |h|", W_g * h - p, "definition of the operator norm", axiom=True),
        Fact("F4", "|W_u h| <= |W_u| |h|", W_u * h - q, "definition of the operator norm", axiom=True),
        Fact(
            "F6", "P <= c U |W_g h|, from step 'first sum'", c * U * p - P, "the square root is increasing", axiom=True
        ),
        Fact("F7", "Q <= S |W_u h|, from step 'second sum'", S * q - Q, "the square root is increasing", axiom=True),
        Fact("F5", "|W_o y'| <= |W_o| |y'|", W_o * y - out, "definition of the operator norm", axiom=True),
    ),
    steps=(
        Limit(
            "Along a ray a channel's inputs are w x and v x. For w > 0 it grows quadratically: over x^2 it tends to w "
            "v.",
            silu(w * x) * v * x / x**2,
            x,
            sp.oo,
            w * v,
        ),
        Limit(
            "For a falling gate input the channel over x^2 tends to 0.",
            silu(-w * x) * v * x / x**2,
            x,
            sp.oo,
            sp.Integer(0),
        ),
        Identity(
            "For a gate input of 0 it is 0. The channels' limits, weighted by W_o, make up W_o r.",
            silu(g).subs(g, 0) * u,
            sp.Integer(0),
        ),
        Limit(
            "So no constant is a Lipschitz constant: F is 0 at x = 0, and its length at x, which is x^2 times "
            "something that tends to r > 0, is more than any multiple of x. For one channel:",
            silu(w * x) * v * x / x,
            x,
            sp.oo,
            sp.oo,
        ),
        Identity(
            "Derivative of a channel along a direction h with (W_g h)_i = p_i and (W_u h)_i = q_i.",
            sp.diff(sigma(g + tau * p_i) * (u + tau * q_i), tau),
            sp.diff(sigma(g + tau * p_i), tau) * (u + tau * q_i) + sigma(g + tau * p_i) * q_i,
        ),
        Nonnegative(
            "First term of channel i: squared, at most c^2 U^2 p_i^2.",
            c**2 * U**2 * p_i**2 - slope**2 * u_i**2 * p_i**2,
            p_i**2 * (c**2 * ref("H1") + u_i**2 * ref("F1")),
            label="first",
        ),
        Summed(
            "Over all channels, any number of them.", "first", CHANNELS, c**2 * U**2 * p**2 - P**2, label="first sum"
        ),
        Nonnegative(
            "Second term of channel i likewise.",
            S**2 * q_i**2 - f_i**2 * q_i**2,
            q_i**2 * ref("H2"),
            label="second",
        ),
        Summed("Over all channels.", "second", CHANNELS, S**2 * q**2 - Q**2, label="second sum"),
        Nonnegative(
            "The two terms together, along h.",
            (c * U * W_g + S * W_u) * h - y,
            ref("F2") + ref("F6") + ref("F7") + c * U * ref("F3") + S * ref("F4"),
            label="inner",
        ),
        Nonnegative(
            "And through the output matrix. This bounds the Jacobian's norm on the set; on a convex set that bound is "
            "a Lipschitz constant, by the mean value inequality.",
            W_o * (c * U * W_g + S * W_u) * h - out,
            ref("F5") + W_o * ref("inner"),
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "|J| <= |W_o| (c max|u_i| |W_g| + max|silu(g_i)| |W_u|), at one state",
            (Reals("x", -3, 3, 2), Reals("W_g", -2, 2, 4), Reals("W_u", -2, 2, 4), Reals("W_o", -2, 2, 4)),
            jacobian_norm,
            sharp=True,
            near=(
                # Both channels alike, with the gate input where SiLU is steepest.
                {"x": [2.399357, 0.0], "W_g": [1.0, 0, 1, 0], "W_u": [1.0, 0, 1, 0], "W_o": [1.0, 1, 1, 1]},
            ),
        ),
    ),
    not_checked=(
        NotChecked(
            "a bound of the Jacobian's norm on a convex set is a Lipschitz constant there",
            "mean value inequality: Rudin, Principles of Mathematical Analysis (1976), 9.19",
        ),
    ),
    remarks=(
        "U and S are largest over the channels and the set; C10 keeps the channels apart.",
        "The factor is 1.0998394, not 1: with 1 the bound is false where a gate input is near 2.4.",
    ),
    uses=("C1",),
)
