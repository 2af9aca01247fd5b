"""B5: a loop that contracts only after k steps: its fixed point, its error, a metric in which each step contracts."""

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
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import matrix, norm, spectral_norm

q = sp.Symbol("q", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
moved = sp.Symbol("D", nonnegative=True)
moved_k = sp.Symbol("D_k", nonnegative=True)
r_k = sp.Symbol("r_k", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
C = sp.Symbol("C", nonnegative=True)
m = sp.Symbol("m", nonnegative=True, integer=True)
E_0 = sp.Symbol("E_0", nonnegative=True)
E_m = sp.Symbol("E_m", nonnegative=True)
E_next = sp.Symbol("E_next", nonnegative=True)
between = sp.Symbol("b", nonnegative=True)
j = sp.Symbol("j", nonnegative=True, integer=True)
reach = sp.Symbol("a_j", nonnegative=True)
reach_next = sp.Symbol("a_next", nonnegative=True)
S_j = sp.Symbol("S_j", nonnegative=True)
p = sp.Symbol("p", positive=True)
U_j = sp.Symbol("U_j", nonnegative=True)
V_j = sp.Symbol("V_j", nonnegative=True)
U_k = sp.Symbol("U_k", nonnegative=True)
V_k = sp.Symbol("V_k", nonnegative=True)
x_j = sp.Symbol("x_j", nonnegative=True)
x_next = sp.Symbol("x_next", nonnegative=True)
r_1 = sp.Symbol("r_1", nonnegative=True)
x_0 = sp.Symbol("x_0", nonnegative=True)
x_k = sp.Symbol("x_k", nonnegative=True)
k = sp.Symbol("k", positive=True, integer=True)
a = sp.Symbol("a", positive=True)
over = sp.Symbol("d", real=True, nonzero=True)


def _powers(ctx, point):
    a, steps = matrix(ctx, point["A"], 2, 2), int(point["k"])
    powers = [ctx.eye(2)]
    for _ in range(steps):
        powers.append(a * powers[-1])
    return powers


def error(ctx, point):
    """A linear loop in the plane, z* = 0, that may stretch in one step: |z| against |f^k(z) - z| / (1 - q)."""
    last = _powers(ctx, point)[-1]
    rate, z = spectral_norm(ctx, last), ctx.matrix(point["z"])
    if rate >= 1:
        return None
    return norm(ctx, list(z)), norm(ctx, list(last * z - z)) / (1 - rate)


def residual(ctx, point):
    """|A^k z - z| against the geometric sum of |A| times |A z - z|."""
    powers = _powers(ctx, point)
    a, z = spectral_norm(ctx, powers[1]), ctx.matrix(point["z"])
    total = sum((a**i for i in range(len(powers) - 1)), ctx.mpf(0))
    return norm(ctx, list(powers[-1] * z - z)), total * norm(ctx, list(powers[1] * z - z))


def later(ctx, point):
    """After m rounds of k steps and i more: |A^(mk+i) z| against C q^m |z|, C the largest |A^i| with i < k."""
    powers = _powers(ctx, point)
    rate, z = spectral_norm(ctx, powers[-1]), ctx.matrix(point["z"])
    if rate >= 1:
        return None
    start, rounds, more = norm(ctx, list(z)), int(point["m"]), min(int(point["i"]), len(powers) - 2)
    for _ in range(rounds):
        z = powers[-1] * z
    return norm(ctx, list(powers[more] * z)), max(spectral_norm(ctx, v) for v in powers[:-1]) * rate**rounds * start


def adapted(ctx, point):
    """One step in the adapted metric sum_j q^(-j/k) |A^j z|: it shrinks by q^(1/k) at least."""
    powers = _powers(ctx, point)
    k, rate = len(powers) - 1, spectral_norm(ctx, powers[-1])
    if rate >= 1 or rate < ctx.mpf(10) ** -6:
        return None
    z = ctx.matrix(point["z"])
    pace = rate ** (ctx.mpf(1) / k)
    before, after = (
        sum((norm(ctx, list(powers[i] * start)) / pace**i for i in range(k)), ctx.mpf(0))
        for start in (z, powers[1] * z)
    )
    return after, pace * before


def nonlinear(ctx, point):
    """f(x, y) = (u sin y + b, v sin x + c): two steps decouple, and contract with |u v| however large |u| is."""
    u, v = point["u"], point["v"] / point["u"]
    b, c = point["b"]
    rate = abs(u * v)

    def step(z):
        return [u * ctx.sin(z[1]) + b, v * ctx.sin(z[0]) + c]

    fixed = [ctx.mpf(0), ctx.mpf(0)]
    for _ in range(110 if ctx.prec == 53 else 350):
        fixed = step(fixed)
    z = point["z"]
    twice = step(step(z))
    return norm(ctx, [p - w for p, w in zip(z, fixed, strict=True)]), norm(
        ctx, [p - w for p, w in zip(twice, z, strict=True)]
    ) / (1 - rate)


SPACE = (Reals("A", -4, 4, 4), Reals("z", -3, 3, 2), Reals("k", 1, 4.99))
# Its square is 0.4 times the identity, its own norm is 4.
SWAP = {"A": [0.0, 4.0, 0.1, 0.0], "z": [1.0, 1.0], "k": 2.5}

THEOREM = Theorem(
    id="B5",
    title="Contraction after k steps",
    statement=(
        r"Let $f$ map a complete normed space, or a closed subset, into itself and let its $k$-th iterate be "
        r"$q$-Lipschitz with $q < 1$. Then (a) $f$ has exactly one fixed point $z^*$; (b) $\|z - z^*\| \le "
        r"\frac{r_k}{1 - q}$ for every $z$, with $r_k = \|f^k(z) - z\|$; (c) if $f^i$ is $C$-Lipschitz for all $i < "
        r"k$, then $\|z_{mk+i} - z^*\| \le C q^m \|z_0 - z^*\|$, so every run converges; (d) if $f$ is $a$-Lipschitz, "
        r"$a \ne 1$, then $r_k \le \frac{a^k - 1}{a - 1} r_1$; (e) for $q > 0$ one step contracts by $q^{1/k}$ in the "
        r"metric $d_*(x, y) = \sum_{j<k} q^{-j/k} \|f^j(x) - f^j(y)\|$. All are attained. Nothing is asked of the "
        r"one-step Lipschitz constant, which may be of any size."
    ),
    plain=(
        "Trained loops often stretch some directions in one step and yet settle. If k steps together contract, there "
        "is one fixed point, the k-step residual bounds the distance to it, and there is a metric in which every "
        "single step contracts."
    ),
    symbols=(
        Symbol(q, "Lipschitz constant of the k-th iterate"),
        Symbol(gap, "1 - q"),
        Symbol(k, "number of steps that contract together", "contraction_steps"),
        Symbol(moved, "|f(z*) - z*| at the fixed point z* of the k-th iterate"),
        Symbol(moved_k, "|f^k(f(z*)) - f^k(z*)|"),
        Symbol(r_k, "k-step residual |f^k(z) - z|"),
        Symbol(e, "|z - z*|", "error_bound"),
        Symbol(C, "common Lipschitz constant of f^i, i < k"),
        Symbol(m, "number of rounds of k steps"),
        Symbol(E_0, "|z_0 - z*|"),
        Symbol(E_m, "|z_(mk) - z*|"),
        Symbol(E_next, "|z_((m+1)k) - z*|"),
        Symbol(between, "|z_(mk+i) - z*|, i < k"),
        Symbol(a, "one-step Lipschitz constant"),
        Symbol(over, "a - 1, not 0"),
        Symbol(r_1, "residual |f(z) - z|", "residual"),
        Symbol(j, "number of steps"),
        Symbol(reach, "j-step residual |f^j(z) - z|"),
        Symbol(reach_next, "residual of j + 1 steps"),
        Symbol(S_j, "length of step j, |f^(j+1)(z) - f^j(z)|"),
        Symbol(p, "q^(1/k), the pace per step"),
        Symbol(x_0, "|x - y|"),
        Symbol(x_j, "|f^j(x) - f^j(y)|"),
        Symbol(x_next, "|f^(j+1)(x) - f^(j+1)(y)|"),
        Symbol(x_k, "|f^k(x) - f^k(y)|"),
        Symbol(U_j, "sum over i < j of p^(-i) |f^(i+1)(x) - f^(i+1)(y)|"),
        Symbol(V_j, "sum over i < j of p^(-i) |f^i(x) - f^i(y)|"),
        Symbol(U_k, "d*(f(x), f(y)), the sum U_j for j = k"),
        Symbol(V_k, "d*(x, y), the sum V_j for j = k"),
    ),
    hypotheses=(
        Hypothesis("H1", "q < 1, written as gap = 1 - q > 0", gap - (1 - q), "zero"),
        Hypothesis("H2", "the k-th iterate is q-Lipschitz between f(z*) and z*", q * moved - moved_k),
        Hypothesis("H3", "the same between z_(mk) and z*", q * E_m - E_next),
        Hypothesis("H4", "for (c): f^i is C-Lipschitz between z_(mk) and z*", C * E_m - between),
        Hypothesis("H5", "for (e): the k-th iterate is q-Lipschitz between x and y", q * x_0 - x_k),
        Hypothesis("H6", "for (d): f is a-Lipschitz (used in F4)"),
        Hypothesis("H7", "for (e): p = q^(1/k)", p**k - q, "zero"),
        Hypothesis("H8", "for (d): a is not 1, written as d = a - 1, not 0", over - (a - 1), "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "f and its k-th iterate commute: f^k(f(z*)) = f(f^k(z*)) = f(z*), so f(z*) is a fixed point of f^k as well",
            moved - moved_k,
            "composition is associative",
            relation="zero",
            axiom=True,
        ),
        Fact("F2", "B2 for the k-th iterate", r_k / gap - e, "B2", axiom=True),
        Fact(
            "F3",
            "|f^(j+1)(z) - z| <= |f^j(z) - z| + |f^(j+1)(z) - f^j(z)|",
            reach + S_j - reach_next,
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "F4",
            "step j is at most a^j times the first (step 'steps' of B1, for any a)",
            a**j * r_1 - S_j,
            "B1",
            axiom=True,
        ),
        Fact(
            "F5",
            "what step 'shifted' shows to be the same for all j is 0 for j = 0, where both sums are empty; read at j "
            "= k",
            U_k - p * V_k + p * x_0 - p ** (1 - k) * x_k,
            "step 'shifted' of this theorem",
            relation="zero",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "(a) The k-th iterate has one fixed point z*. Its image f(z*) is fixed by f^k too, hence |f(z*) - z*| <= q "
            "|f(z*) - z*|, which leaves 0: f does not move z*. Every fixed point of f is one of f^k, so there is no "
            "other.",
            -moved,
            (ref("H2") - ref("F1") - moved * ref("H1")) / gap,
            label="fixed by one step",
        ),
        Nonnegative("(b) The a-posteriori bound for the k-th iterate.", r_k / gap - e, ref("F2"), label="error"),
        Induction(
            "(c) A round of k steps multiplies the distance by at most q.",
            m,
            E_m,
            E_next,
            bound=q**m * E_0,
            start=E_0,
            base=sp.Integer(0),
            step=q * ref("IH") + ref("H3"),
            label="rounds",
        ),
        Nonnegative(
            "The steps within a round stretch by C at most.",
            C * q**m * E_0 - between,
            C * ref("rounds") + ref("H4"),
            label="any step",
        ),
        Induction(
            "(d) The j-step residual is at most the sum of the j steps' lengths, a geometric sum.",
            j,
            reach,
            reach_next,
            bound=(a**j - 1) / over * r_1,
            start=sp.Integer(0),
            base=sp.Integer(0),
            step=ref("IH") + ref("F3") + ref("F4") - a**j / over * r_1 * ref("H8"),
            every_k=("F4",),
            label="residual",
        ),
        Identity(
            "(e) The sum for the images is p times the sum for the points, shifted by one: the first term drops out "
            "and a last one comes in. The difference stays the same when one more term is added to both sums.",
            (U_j + p ** (-j) * x_next) - p * (V_j + p ** (-j) * x_j) + p * x_0 - p ** (-j) * x_next,
            U_j - p * V_j + p * x_0 - p ** (1 - j) * x_j,
            label="shifted",
        ),
        Nonnegative(
            "For j = k the term that comes in is at most the one that drops out: that is the hypothesis on k steps.",
            p * x_0 - p ** (1 - k) * x_k,
            p ** (1 - k) * (ref("H5") + x_0 * ref("H7")),
            label="last against first",
        ),
        Nonnegative(
            "So d*(f(x), f(y)) <= p d*(x, y).",
            p * V_k - U_k,
            ref("last against first") - ref("F5"),
            label="adapted",
        ),
    ),
    source=Source("Caccioppoli", 1930, "on iterates of a map; (d) and (e) derived"),
    claims=(
        Claim(
            "error <= r_k / (1 - q), linear loops in the plane with |A| up to 4",
            SPACE,
            error,
            sharp=True,
            near=(SWAP,),
        ),
        Claim(
            "|z_(mk+i) - z*| <= C q^m |z_0 - z*|",
            (*SPACE, Reals("m", 0, 3.99), Reals("i", 0, 3.99)),
            later,
            sharp=True,
            near=({**SWAP, "z": [0.0, 1.0], "m": 2.5, "i": 1.5},),
        ),
        Claim(
            "r_k <= (1 + a + ... + a^(k-1)) r_1",
            SPACE,
            residual,
            sharp=True,
            near=({"A": [2.0, 0.0, 0.0, 2.0], "z": [1.0, 1.0], "k": 2.5},),
        ),
        Claim("d*(f(x), f(y)) <= q^(1/k) d*(x, y)", SPACE, adapted, sharp=True, near=(SWAP,)),
        Claim(
            "error <= r_2 / (1 - q) on a nonlinear loop with one-step slope up to 8",
            (Reals("u", 0.5, 8), Reals("v", -0.5, 0.5), Reals("b", -1, 1, 2), Reals("z", -2, 2, 2)),
            nonlinear,
            near=({"u": 4.0, "v": 0.4, "b": [0.0, 0.0], "z": [0.01, 0.01]},),
        ),
    ),
    not_checked=(NotChecked("the k-th iterate has exactly one fixed point", "Banach (1922), Theorem 6"),),
    code=("fpcheck/spectral/growth.py:TransientGrowth",),
    uses=("B1", "B2"),
    remarks=(
        "On a ball this needs the first k iterates to stay in it: a bound on the k-step Jacobian over a ball alone is "
        "not enough, since a one-step stretch may leave the ball before the contraction brings it back.",
        "The k-step residual may be 0 on a cycle whose period divides k; q < 1 rules such cycles out.",
    ),
)
