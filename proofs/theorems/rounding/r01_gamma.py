"""R1: what n roundings can do to a product, an inner product and a product of matrices."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Induction,
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
from proofs.numbers import frobenius_norm, matrix

u = sp.Symbol("u", nonnegative=True)
delta = sp.Symbol("delta", real=True)
below = sp.Symbol("v", positive=True)
above = sp.Symbol("v_d", positive=True)
f = sp.Symbol("f", positive=True)
n = sp.Symbol("n", nonnegative=True, integer=True)
gap = sp.Symbol("g", positive=True)
P = sp.Symbol("P_n", positive=True)
minus = sp.Symbol("p_n", negative=True)
gamma = sp.Symbol("gamma", nonnegative=True)
mu = sp.Symbol("mu_n", real=True)
theta = sp.Symbol("theta", nonnegative=True)
t = sp.Symbol("t_i", nonnegative=True)
e = sp.Symbol("e_i", nonnegative=True)
T = sp.Symbol("T", nonnegative=True)
E = sp.Symbol("E", nonnegative=True)
err = sp.Symbol("e_ij", nonnegative=True)
total = sp.Symbol("t_ij", nonnegative=True)
a_i = sp.Symbol("a_i", nonnegative=True)
b_j = sp.Symbol("b_j", nonnegative=True)
a = sp.Symbol("a", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
row = sp.Symbol("r_i", nonnegative=True)
square = sp.Symbol("e_F", nonnegative=True)

TERMS = Totals((t, e), {t: T, e: E})
COLUMNS = Totals((err, b_j), {err**2: row, b_j**2: b**2})
ROWS = Totals((row, a_i), {row: square, a_i**2: a**2})


def _gamma(ctx, count, roundoff):
    return count * roundoff / (1 - count * roundoff)


def _rounded_sum(ctx, terms, deltas, roundoff):
    """Products, then sums from left to right, each result times 1 + delta."""
    rounding = iter(1 + roundoff * d for d in deltas)
    products = [x * y * next(rounding) for x, y in terms]
    value = products[0]
    for p in products[1:]:
        value = (value + p) * next(rounding)
    return value


def product(ctx, point):
    """Six factors (1 + delta) or 1/(1 + delta)."""
    roundoff, value = point["u"], ctx.mpf(1)
    for d, side in zip(point["d"], point["side"], strict=True):
        factor = 1 + roundoff * d
        value *= factor if side > 0 else 1 / factor
    return abs(value - 1), _gamma(ctx, 6, roundoff)


def inner(ctx, point):
    x, y, roundoff = point["x"], point["y"], point["u"]
    terms = list(zip(x, y, strict=True))
    exact = sum((v * w for v, w in terms), ctx.mpf(0))
    sizes = sum((abs(v * w) for v, w in terms), ctx.mpf(0))
    return abs(_rounded_sum(ctx, terms, point["d"], roundoff) - exact), _gamma(ctx, 4, roundoff) * sizes


def frobenius(ctx, point):
    """2 x 2 matrices; the same three roundings in every entry."""
    x, y, roundoff = matrix(ctx, point["A"], 2, 2), matrix(ctx, point["B"], 2, 2), point["u"]
    wrong = ctx.matrix(2, 2)
    for i in range(2):
        for j in range(2):
            terms = [(x[i, k], y[k, j]) for k in range(2)]
            wrong[i, j] = _rounded_sum(ctx, terms, point["d"], roundoff)
    bound = _gamma(ctx, 2, roundoff) * frobenius_norm(ctx, x) * frobenius_norm(ctx, y)
    return frobenius_norm(ctx, wrong - x * y), bound


ROUNDOFF = Reals("u", 1e-8, 0.1, log=True)

THEOREM = Theorem(
    id="R1",
    title="n roundings, and products of matrices",
    statement=(
        r"Let $|\delta_i| \le u < 1$, $n u < 1$ and $\gamma_n = \frac{n u}{1 - n u}$. (a) $\prod_{i \le n} (1 + "
        r"\delta_i)^{\pm 1} = 1 + \theta$ with $|\theta| \le \gamma_n$. (b) In the standard model $\mathrm{fl}(x "
        r"\circ y) = (x \circ y)(1 + \delta)$, without underflow, an inner product of length $n$ summed in any "
        r"order, with or without fused operations, has the error $|\mathrm{fl}(x^T y) - x^T y| \le \gamma_n |x|^T "
        r"|y|$. (c) A product of matrices of inner length $n$ has $|\mathrm{fl}(A B) - A B| \le \gamma_n |A| |B|$ "
        r"entry by entry and $\|\mathrm{fl}(A B) - A B\|_F \le \gamma_n \|A\|_F \|B\|_F$. The bounds are attained "
        r"to first order in $u$."
    ),
    plain=(
        "Rounding to the nearest float64 loses at most one part in 2^53 each time. This says what n of them lose "
        "together, for sums in any order as any library may compute them, so that norms of computed matrices become "
        "bounds on exact ones."
    ),
    symbols=(
        Symbol(u, "unit roundoff, 2^-53 for float64", "u"),
        Symbol(delta, "one relative rounding error"),
        Symbol(below, "1 - u"),
        Symbol(above, "1 + delta"),
        Symbol(f, "one factor, 1 + delta or 1/(1 + delta)"),
        Symbol(n, "number of factors"),
        Symbol(gap, "1 - n u"),
        Symbol(P, "product of n factors, or its inverse, which is a product of n factors as well"),
        Symbol(minus, "-P_n"),
        Symbol(mu, "-(1 - u)^n"),
        Symbol(gamma, "gamma_n", "gamma"),
        Symbol(theta, "|theta_i|, relative error of one term"),
        Symbol(t, "|x_i y_i|"),
        Symbol(e, "|x_i y_i theta_i|, the error of one term"),
        Symbol(T, "sum of |x_i y_i|"),
        Symbol(E, "sum of |x_i y_i theta_i|"),
        Symbol(err, "error of entry (i, j), in absolute value"),
        Symbol(total, "entry (i, j) of |A| |B|"),
        Symbol(a_i, "length of row i of A"),
        Symbol(b_j, "length of column j of B"),
        Symbol(a, "|A|_F"),
        Symbol(b, "|B|_F"),
        Symbol(row, "sum over j of the squared errors of row i"),
        Symbol(square, "squared Frobenius norm of the error"),
    ),
    hypotheses=(
        Hypothesis("H1", "delta is at least -u ...", delta + u),
        Hypothesis("H2", "... and at most u", u - delta),
        Hypothesis("H3", "u < 1, written as v = 1 - u > 0", below - (1 - u), "zero"),
        Hypothesis("H4", "1 + delta is positive, as |delta| <= u < 1", above - (1 + delta), "zero"),
        Hypothesis("H5", "n u < 1, written as g = 1 - n u > 0", gap - (1 - n * u), "zero"),
        Hypothesis("H6", "gamma = n u / (1 - n u)", gamma * gap - n * u, "zero"),
        Hypothesis("H7", "each factor is at least 1 - u (steps 'factor' and 'inverse')", f - (1 - u)),
        Hypothesis("H8", "p_n = -P_n", minus + P, "zero"),
        Hypothesis("H9", "for (b): theta_i is a theta of (a)", gamma - theta),
        Hypothesis("H10", "for (b): the term's error", e - t * theta, "zero"),
        Hypothesis("H11", "for (c): the entry's error, by (b)", gamma * total - err),
    ),
    facts=(
        Fact("F1", "m = -(1 - u)^n", mu + below**n, "definition", "zero", axiom=True),
        Fact(
            "F2", "entry (i, j) of |A||B| is at most |row i of A| |column j of B|", a_i * b_j - total, "S0", axiom=True
        ),
    ),
    steps=(
        Nonnegative("A factor 1 + delta is at least 1 - u.", (1 + delta) - (1 - u), ref("H1"), label="factor"),
        Nonnegative(
            "So is a factor 1/(1 + delta): (1 - u)(1 + delta) <= (1 - u)(1 + u) <= 1.",
            1 / above - (1 - u),
            (u**2 + below * ref("H2") - (1 - u) * ref("H4") - (u - delta) * ref("H3")) / above,
            label="inverse",
        ),
        Induction(
            "So a product of n factors is at least (1 - u)^n; its inverse too, being a product of inverse factors.",
            n,
            minus,
            minus * f,
            bound=-(below**n),
            start=sp.Integer(-1),
            base=sp.Integer(0),
            step=below * ref("IH") + P * (ref("H7") - ref("H3")) - (f - below) * ref("H8"),
            label="product",
        ),
        Induction(
            "Bernoulli: (1 - u)^n is at least 1 - n u.",
            n,
            mu,
            mu * below,
            bound=n * u - 1,
            start=sp.Integer(-1),
            base=sp.Integer(0),
            step=below * ref("IH") + n * u**2 - (n * u - 1) * ref("H3"),
            label="Bernoulli",
        ),
        Nonnegative(
            "Together: a product of n factors is at least 1 - n u, and so is its inverse.",
            P - (1 - n * u),
            ref("product") + ref("Bernoulli") + ref("H8") + ref("F1"),
            label="from below",
        ),
        Nonnegative(
            "So the inverse, which may stand for the product, is at most 1/(1 - n u) = 1 + gamma.",
            1 + gamma - 1 / P,
            (ref("from below") - ref("H5") + P * (ref("H5") + ref("H6"))) / (gap * P),
            label="from above",
        ),
        Nonnegative(
            "And the lower side 1 - n u is above 1 - gamma.",
            (1 - n * u) - (1 - gamma),
            n * u * gamma - gamma * ref("H5") + ref("H6"),
            label="lower",
        ),
        Nonnegative(
            "(b) Each term of the inner product passes through at most n roundings, one product and at most n - 1 "
            "sums, so it is x_i y_i (1 + theta_i).",
            gamma * t - e,
            t * ref("H9") - ref("H10"),
            label="term",
        ),
        Summed("The errors add up.", "term", TERMS, gamma * T - E, label="inner product"),
        Nonnegative(
            "(c) An entry's error, by Cauchy-Schwarz: at most gamma times row length times column length.",
            gamma**2 * a_i**2 * b_j**2 - err**2,
            (gamma * a_i * b_j + err) * (ref("H11") + gamma * ref("F2")),
            label="entry",
        ),
        Summed("Squares of a row,", "entry", COLUMNS, gamma**2 * a_i**2 * b**2 - row, label="row"),
        Summed("and of all rows.", "row", ROWS, gamma**2 * a**2 * b**2 - square, label="Frobenius"),
        Identity(
            "First order: one product and three sums of the same sign reach (1 + u)^4 - 1 = 4 u + ..., as gamma_4 "
            "does.",
            sp.series((1 + u) ** 4 - 1 - 4 * u / (1 - 4 * u), u, 0, 2).removeO(),
            sp.Integer(0),
        ),
    ),
    source=Source("Higham", 2002, "Accuracy and Stability of Numerical Algorithms, Lemma 3.1 and section 3.5"),
    claims=(
        Claim(
            "|prod (1 + delta)^(+-1) - 1| <= gamma_6",
            (ROUNDOFF, Reals("d", -1, 1, 6), Reals("side", -1, 1, 6)),
            product,
            sharp=True,
            near=({"u": 1e-7, "d": [1.0] * 6, "side": [0.5] * 6},),
            precise=True,
        ),
        Claim(
            "|fl(x'y) - x'y| <= gamma_4 |x|'|y|",
            (ROUNDOFF, Reals("x", -1, 1, 4), Reals("y", -1, 1, 4), Reals("d", -1, 1, 7)),
            inner,
            sharp=True,
            near=({"u": 1e-7, "x": [1.0, 0.0, 0.0, 0.0], "y": [1.0, 0.0, 0.0, 0.0], "d": [1.0] * 7},),
            precise=True,
        ),
        Claim(
            "|fl(A B) - A B|_F <= gamma_2 |A|_F |B|_F",
            (ROUNDOFF, Reals("A", -1, 1, 4), Reals("B", -1, 1, 4), Reals("d", -1, 1, 3)),
            frobenius,
            near=({"u": 1e-7, "A": [1.0, 0.0, 0.0, 0.0], "B": [1.0, 0.0, 0.0, 0.0], "d": [1.0] * 3},),
            precise=True,
        ),
    ),
    not_checked=(
        NotChecked("float64 sums, products and quotients obey the standard model", "IEEE 754-2019, section 4.3"),
        NotChecked(
            "in a sum of n terms, in any order, each passes through at most n - 1 sums; fused operations round "
            "less often",
            "Higham (2002), section 3.1 and 4.2",
        ),
    ),
    code=(
        "fpcheck/certify/rounding.py:gamma",
        "fpcheck/certify/roundings.py:lost",
        "fpcheck/check/clouds.py:gamma",
    ),
    uses=("S0",),
    remarks=(
        "Underflow is outside the model: it adds at most n times the smallest positive float to an inner product; so "
        "flush-to-zero must be off, or paid for.",
        "Not covered: products in reduced precision (TF32, split bf16), Strassen-type products, library exp, tanh and "
        "square root.",
        "For non-negative terms the computed sum S also bounds the exact one: it is at most S / (1 - gamma_n).",
    ),
)
