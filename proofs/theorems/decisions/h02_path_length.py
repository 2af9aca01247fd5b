"""H2: the answer cannot change any more once the remaining path is shorter than the margin."""

import sympy as sp

from proofs import (
    Claim,
    Fact,
    Hypothesis,
    Identity,
    Induction,
    Limit,
    Nonnegative,
    Reals,
    Source,
    Summed,
    Symbol,
    Theorem,
    Totals,
    ref,
)
from proofs.numbers import dot, norm

n = sp.Symbol("n", nonnegative=True, integer=True)
d_n = sp.Symbol("d_n", nonnegative=True)
d_next = sp.Symbol("d_next", nonnegative=True)
x_n = sp.Symbol("x_n", real=True)
x_next = sp.Symbol("x_next", real=True)
R_t = sp.Symbol("R_t", nonnegative=True)
R_n = sp.Symbol("R_n", nonnegative=True)
step = sp.Symbol("s_n", nonnegative=True)
row = sp.Symbol("w", nonnegative=True)
margin = sp.Symbol("M", real=True)
there = sp.Symbol("M_z", real=True)
change = sp.Symbol("c", nonnegative=True)
L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
s_0 = sp.Symbol("s_t", nonnegative=True)
g_n = sp.Symbol("g_n", nonnegative=True)
j = sp.Symbol("j", nonnegative=True, integer=True)
left = sp.Symbol("l", nonnegative=True)
k = sp.Symbol("k", nonnegative=True, integer=True)
count = sp.Symbol("m", positive=True, integer=True)
term = sp.Symbol("a_u", positive=True)
over = sp.Symbol("o_u", nonnegative=True)
block = sp.Symbol("B", nonnegative=True)
H_k = sp.Symbol("H_k", nonnegative=True)
H_next = sp.Symbol("H_next", nonnegative=True)
minus = sp.Symbol("h_k", nonpositive=True)
minus_next = sp.Symbol("h_next", nonpositive=True)

BLOCK = Totals((term, over), {term: block, 1: count})


def _path(ctx, point):
    steps = [[point["s"][2 * i], point["s"][2 * i + 1]] for i in range(4)]
    return steps, sum((norm(ctx, v) for v in steps), ctx.mpf(0))


def straight(ctx, point):
    """Distance after four steps against the length of the path."""
    steps, length = _path(ctx, point)
    return norm(ctx, [sum((v[i] for v in steps), ctx.mpf(0)) for i in range(2)]), length


def margin_lost(ctx, point):
    steps, length = _path(ctx, point)
    moved = [sum((v[i] for v in steps), ctx.mpf(0)) for i in range(2)]
    return -dot(ctx, point["w"], moved), norm(ctx, point["w"]) * length


def geometric(ctx, point):
    """Steps that shrink by L at least, one ratio each: the path against the first step over 1 - L."""
    rate, total, step = point["L"], ctx.mpf(0), ctx.mpf(1)
    for ratio in point["q"]:
        total += step
        step *= rate * ratio
    return total + step / (1 - rate * point["q"][-1]), 1 / (1 - rate)


def harmonic(ctx, point):
    """1 + k/2 against the sum of 1/u up to 2^k."""
    k = int(point["k"])
    return 1 + ctx.mpf(k) / 2, sum((ctx.mpf(1) / u for u in range(1, 2**k + 1)), ctx.mpf(0))


PATH = (Reals("s", -1, 1, 8),)
STRAIGHT = {"s": [0.5, 0.0, 0.25, 0.0, 0.5, 0.0, 0.25, 0.0]}

THEOREM = Theorem(
    id="H2",
    title="Decode stability from the length of the remaining path",
    statement=(
        r"Let $z_t, z_{t+1}, \ldots$ be any sequence of states with steps $s_u = \|z_{u+1} - z_u\|$ and remaining "
        r"path $R_t = \sum_{u \ge t} s_u$, and let the margin $l_i - l_j$ be $\omega$-Lipschitz. (a) If $l_i(z_t) "
        r"- l_j(z_t) > \omega R_t$ for every $j \ne i$, then $i$ is the only argmax at every later state and in "
        r"the limit. (b) If $s_{u+1} \le L s_u$ for all $u \ge t$ with $L < 1$, then $R_t \le \frac{s_t}{1 - L}$. "
        r"Both are sharp. (c) Steps that go to 0 are not enough: with $s_u = 1/u$ the path is infinite, $\sum_{u "
        r"\le 2^k} \frac1u \ge 1 + \frac k2$, and no margin and no number of unchanged answers decides."
    ),
    plain=(
        "An answer is safe once all the movement that is still to come is less than the margin. With a contraction "
        "that is one step divided by 1 - L. A long run of the same answer proves nothing if the steps only shrink "
        "like 1/u."
    ),
    symbols=(
        Symbol(n, "number of further steps"),
        Symbol(d_n, "|z_(t+n) - z_t|"),
        Symbol(d_next, "|z_(t+n+1) - z_t|"),
        Symbol(x_n, "what |z_(t+n) - z_t| exceeds the path by"),
        Symbol(x_next, "the same one step later"),
        Symbol(R_t, "remaining path"),
        Symbol(R_n, "length of the first n of these steps"),
        Symbol(step, "length of the step from z_(t+n)", "step"),
        Symbol(row, "Lipschitz constant of l_i - l_j"),
        Symbol(margin, "l_i - l_j at z_t", "margin"),
        Symbol(there, "l_i - l_j at z_(t+n)"),
        Symbol(change, "how much l_i - l_j has changed"),
        Symbol(L, "ratio of two steps, at most", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(s_0, "first of the remaining steps"),
        Symbol(j, "number of steps"),
        Symbol(g_n, "length of the first j of them"),
        Symbol(left, "length of step j"),
        Symbol(k, "number of doublings"),
        Symbol(count, "a power of 2"),
        Symbol(term, "1/u, for u from m + 1 to 2 m"),
        Symbol(over, "2 m - u"),
        Symbol(block, "sum of 1/u over these u"),
        Symbol(H_k, "sum of 1/u up to 2^k"),
        Symbol(H_next, "sum of 1/u up to 2^(k+1)"),
        Symbol(minus, "-H_k"),
        Symbol(minus_next, "-H_next"),
    ),
    hypotheses=(
        Hypothesis("H1", "the first n steps are a part of the path", R_t - R_n),
        Hypothesis("H2", "the margin is larger than omega R_t", margin - row * R_t, "positive"),
        Hypothesis("H3", "l_i - l_j is omega-Lipschitz", row * d_n - change),
        Hypothesis("H4", "for (b): L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H5", "for (b): step j is at most L^j times the first", L**j * s_0 - left),
        Hypothesis("H6", "for (c): 1/u is 1/(2 m) or more for u = 2 m - o", term * (2 * count - over) - 1, "zero"),
        Hypothesis("H7", "for (c): the next block is added", H_next - H_k - block, "zero"),
        Hypothesis("H8", "h_k = -H_k", minus + H_k, "zero"),
        Hypothesis("H9", "h_next = -H_next", minus_next + H_next, "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "|z_(t+n+1) - z_t| <= |z_(t+n) - z_t| + s_(t+n)",
            d_n + step - d_next,
            "triangle inequality",
            axiom=True,
        ),
        Fact("F2", "definition of x_n", x_n - d_n + R_n, "definition", "zero", axiom=True),
        Fact("F4", "definition of x_next", x_next - d_next + R_n + step, "definition", "zero", axiom=True),
        Fact(
            "F3",
            "the margin at a state is at least that at z_t less the change",
            there - margin + change,
            "|x| >= -x",
            axiom=True,
        ),
    ),
    steps=(
        Induction(
            "One more step adds its length to the path, and at most that to the distance. Both begin at 0, so the "
            "distance is never more than the path.",
            n,
            x_n,
            x_next,
            bound=sp.Integer(0),
            start=sp.Integer(0),
            base=sp.Integer(0),
            step=ref("IH") + ref("F1") + ref("F2") - ref("F4"),
            label="path",
        ),
        Nonnegative(
            "(a) The margin at any later state is at least margin - omega R_t > 0. The same number bounds it in "
            "the limit (the path is finite, so the states converge).",
            there,
            ref("F3") + ref("H3") + row * (ref("path") + ref("F2")) + row * ref("H1") + ref("H2"),
            strict=True,
            label="kept",
        ),
        Induction(
            "(b) j steps are at most s_t (1 - L^j) / (1 - L), and that is below s_t / (1 - L).",
            j,
            g_n,
            g_n + left,
            bound=(1 - L**j) / gap * s_0,
            start=sp.Integer(0),
            base=sp.Integer(0),
            step=ref("IH") + ref("H5") - L**j * s_0 / gap * ref("H4"),
            every_k=("H5",),
            label="geometric",
        ),
        Nonnegative("For every j.", s_0 / gap - g_n, ref("geometric") + L**j * s_0 / gap),
        Nonnegative(
            "(c) Each 1/u with u <= 2 m is at least 1/(2 m).",
            term - 1 / (2 * count),
            over * term / (2 * count) + ref("H6") / (2 * count),
            label="term",
        ),
        Summed(
            "There are m of them between m + 1 and 2 m: together at least 1/2.",
            "term",
            BLOCK,
            block - sp.Rational(1, 2),
            label="block",
        ),
        Induction(
            "Each doubling adds 1/2 at least.",
            k,
            minus,
            minus_next,
            bound=-1 - k / 2,
            start=sp.Integer(-1),
            base=sp.Integer(0),
            step=ref("IH") + ref("block") + ref("H7") + ref("H8") - ref("H9"),
            label="doubling",
        ),
        Limit("That has no bound: the path is infinite although the steps go to 0.", 1 + k / 2, k, sp.oo, sp.oo),
        Identity(
            "On the line, z_u = 1 + 1/2 + ... + 1/u with logits M and z: for any M the answer is the first one "
            "until the sum exceeds M, which it does by 2^k <= u with 1 + k/2 > M, and the other one from then on.",
            (1 + k / 2).subs(k, 2 * margin),
            1 + margin,
        ),
    ),
    source=Source("", derived=True, place="path length; the doubling argument is Oresme's, about 1350"),
    claims=(
        Claim("distance <= length of the path", PATH, straight, sharp=True, near=(STRAIGHT,)),
        Claim(
            "the margin falls by at most |w_i - w_j| times the path",
            (*PATH, Reals("w", -1, 1, 2)),
            margin_lost,
            sharp=True,
            near=({**STRAIGHT, "w": [-1.0, 0.0]},),
        ),
        Claim(
            "path <= first step / (1 - L)",
            (Reals("L", 0.01, 0.99), Reals("q", 0, 1, 6)),
            geometric,
            sharp=True,
            near=({"L": 0.5, "q": [1.0] * 6},),
        ),
        Claim("1 + k/2 <= sum of 1/u up to 2^k", (Reals("k", 0, 6.99),), harmonic, sharp=True),
    ),
    remarks=(
        "R_t is about what is still to come; it cannot be read off the steps that were made, only bounded by a "
        "theorem such as (b).",
        "The steps are those of the states that are read out. In a damped loop they are s times the residual.",
        "(b) needs the ratio for all later steps, hence a contraction on a set that the iterates do not leave (B3, "
        "B1).",
    ),
)
