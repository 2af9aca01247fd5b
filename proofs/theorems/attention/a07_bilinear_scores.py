"""A7: attention scores over a ball: how much their derivative changes, and how far they are from linear."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Summed, Symbol, Theorem, Totals, ref
from proofs.numbers import dot, norm

q = sp.Symbol("q", real=True)
k = sp.Symbol("k", real=True)
dq = sp.Symbol("Delta_q", real=True)
dk = sp.Symbol("Delta_k", real=True)
dk_linear = sp.Symbol("Delta_k1", real=True)
y = sp.Symbol("y", real=True)
r_m = sp.Symbol("r_m", real=True)
e_m = sp.Symbol("e_m", real=True)
f_m = sp.Symbol("f_m", real=True)

c = sp.Symbol("c", positive=True)
a_q = sp.Symbol("a_q", nonnegative=True)
a_k = sp.Symbol("a_k", nonnegative=True)
b_k = sp.Symbol("b_k", nonnegative=True)
size_q = sp.Symbol("Q", nonnegative=True)
size_k = sp.Symbol("K", nonnegative=True)
size_b = sp.Symbol("B", nonnegative=True)
size_y = sp.Symbol("Y", nonnegative=True)
qk = sp.Symbol("D", real=True)
yk = sp.Symbol("F", real=True)
yk_linear = sp.Symbol("F_1", real=True)
rest = sp.Symbol("r", real=True)
change = sp.Symbol("e", real=True)
change_2 = sp.Symbol("f", real=True)
t = sp.Symbol("t", real=True)

COORDINATES = Totals(
    (q, k, dq, dk, dk_linear, y, r_m, e_m, f_m),
    {dq * dk: qk, y * dk: yk, y * dk_linear: yk_linear, r_m: rest, e_m: change, f_m: change_2},
)


def _plus(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def remainder(ctx, point):
    """Score at the displaced point less its linear part; c = 1/sqrt(3) for three channels."""
    q, k, dq, dk = (point[name] for name in ("q", "k", "dq", "dk"))
    scale = 1 / ctx.sqrt(ctx.mpf(3))
    exact = scale * dot(ctx, _plus(q, dq), _plus(k, dk))
    linear = scale * (dot(ctx, q, k) + dot(ctx, dq, k) + dot(ctx, q, dk))
    return abs(exact - linear), scale * norm(ctx, dq) * norm(ctx, dk)


def on_query(ctx, point):
    """The derivative along a query direction y, displaced less at the centre."""
    y, k, dk = point["y"], point["k"], point["dk"]
    scale = 1 / ctx.sqrt(ctx.mpf(3))
    return abs(scale * dot(ctx, y, _plus(k, dk)) - scale * dot(ctx, y, k)), scale * norm(ctx, dk) * norm(ctx, y)


def second_on_query(ctx, point):
    """The same less what is linear in the state; the key moved by a linear part and another one."""
    y, k, first, second = point["y"], point["k"], point["dk"], point["other"]
    scale = 1 / ctx.sqrt(ctx.mpf(3))
    moved = scale * dot(ctx, y, _plus(k, _plus(first, second))) - scale * dot(ctx, y, k)
    return abs(moved - scale * dot(ctx, y, first)), scale * norm(ctx, second) * norm(ctx, y)


THEOREM = Theorem(
    id="A7",
    title="Scores over a ball",
    statement=(
        r"Let $\phi_{ij}(q, k) = c\, q_i \cdot k_j$ with $c > 0$; at a centre $\hat q, \hat k$ let $q_i$ and $k_j$ "
        r"move by $\Delta q_i, \Delta k_j$ with $|\Delta q_i|_2 \le a^q_i$, $|\Delta k_j|_2 \le a^k_j$, of which "
        r"parts of length at most $b^q_i, b^k_j$ are not linear in the state. Then $\phi$ less its linearisation is "
        r"$c\, \Delta q_i \cdot \Delta k_j$, at most $\rho_{ij} = c\, a^q_i a^k_j$. The derivative of $\phi_{ij}$ "
        r"changes by at most $e = c\, a^k_j$ on $q_i$ and $c\, a^q_i$ on $k_j$; less the part that is linear in the "
        r"state, by at most $e_2 = c\, b^k_j$ on $q_i$ and $c\, b^q_i$ on $k_j$. All are attained; there is no third "
        r"derivative."
    ),
    plain=(
        "Raw attention scores are exactly quadratic, so over a ball their Jacobian changes by no more than the other "
        "factor moves, and they differ from their linearisation by the product of the two movements."
    ),
    symbols=(
        Symbol(q, "a query's coordinate"),
        Symbol(k, "a key's coordinate"),
        Symbol(dq, "how the query's coordinate moves"),
        Symbol(dk, "how the key's coordinate moves"),
        Symbol(dk_linear, "the part of that which is linear in the state"),
        Symbol(y, "coordinate of a direction of the query"),
        Symbol(r_m, "a coordinate's share in the remainder"),
        Symbol(e_m, "a coordinate's share in the change of the derivative"),
        Symbol(f_m, "the same less what is linear in the state"),
        Symbol(c, "scale of the scores, 1/sqrt(head width) over the temperature"),
        Symbol(a_q, "bound on the query's movement"),
        Symbol(a_k, "bound on the key's movement"),
        Symbol(b_k, "bound on the part of the key's movement that is not linear in the state"),
        Symbol(size_q, "squared length of the query's movement"),
        Symbol(size_k, "squared length of the key's movement"),
        Symbol(size_b, "squared length of its part that is not linear in the state"),
        Symbol(size_y, "squared length of the direction y"),
        Symbol(qk, "inner product of the two movements"),
        Symbol(yk, "inner product of y and the key's movement"),
        Symbol(yk_linear, "inner product of y and its linear part"),
        Symbol(rest, "remainder of q.k, without the scale"),
        Symbol(change, "change of the derivative along y, without the scale"),
        Symbol(change_2, "the same less what is linear in the state"),
        Symbol(t, "a factor between parallel movements"),
    ),
    hypotheses=(
        Hypothesis("H1", "the query moves by at most a_q", a_q**2 - size_q),
        Hypothesis("H2", "the key moves by at most a_k", a_k**2 - size_k),
        Hypothesis("H3", "its part that is not linear in the state is at most b_k long", b_k**2 - size_b),
        Hypothesis(
            "H4",
            "a coordinate of the remainder: product less value and linear terms",
            r_m - ((q + dq) * (k + dk) - q * k - dq * k - q * dk),
            "zero",
        ),
        Hypothesis(
            "H5",
            "a coordinate of the derivative along y, displaced less at the centre",
            e_m - (y * (k + dk) - y * k),
            "zero",
        ),
        Hypothesis("H6", "the same less its part that is linear in the state", f_m - (e_m - y * dk_linear), "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "the inner product of the movements is at most the product of lengths",
            size_q * size_k - qk**2,
            "S0",
            axiom=True,
        ),
        Fact("F2", "the same for y and the key's movement", size_y * size_k - yk**2, "S0", axiom=True),
        Fact(
            "F3",
            "the same for y and the part that is not linear in the state",
            size_y * size_b - (yk - yk_linear) ** 2,
            "S0",
            axiom=True,
        ),
    ),
    steps=(
        Identity("One coordinate of the remainder.", r_m, dq * dk, {"H4": sp.Integer(1)}, label="coordinate"),
        Summed(
            "Summed over the coordinates: the remainder is exactly the product of the movements.",
            "coordinate",
            COORDINATES,
            rest - qk,
            label="remainder",
        ),
        Nonnegative(
            "So the remainder of the score is at most c a_q a_k (squares compared).",
            (c * a_q * a_k) ** 2 - (c * rest) ** 2,
            c**2 * (ref("H1") * a_k**2 + size_q * ref("H2") + ref("F1") - (rest + qk) * ref("remainder")),
            label="rho",
        ),
        Identity(
            "One coordinate of the derivative's change along y: the query itself drops out.",
            e_m,
            y * dk,
            {"H5": 1},
            label="slope",
        ),
        Summed("Summed over the coordinates.", "slope", COORDINATES, change - yk, label="slopes"),
        Nonnegative(
            "So the derivative on the query changes by at most c a_k; on the key, with the roles exchanged, by c a_q.",
            c**2 * a_k**2 * size_y - (c * change) ** 2,
            c**2 * (ref("H2") * size_y + ref("F2") - (change + yk) * ref("slopes")),
            label="e",
        ),
        Identity(
            "Less the linear part: only the key's movement that is not linear in the state remains.",
            f_m,
            y * (dk - dk_linear),
            {"H6": sp.Integer(1), "slope": sp.Integer(1)},
            label="second",
        ),
        Summed("Summed over the coordinates.", "second", COORDINATES, change_2 - (yk - yk_linear), label="seconds"),
        Nonnegative(
            "So it is at most c b_k; on the key, with the roles exchanged, c b_q.",
            c**2 * b_k**2 * size_y - (c * change_2) ** 2,
            c**2 * (ref("H3") * size_y + ref("F3") - (change_2 + yk - yk_linear) * ref("seconds")),
            label="e 2",
        ),
        Identity(
            "Attained: if the key moves by t times the query's movement, the squared inner product is that of the "
            "lengths; likewise along y parallel to the key's movement.",
            (t * size_q) ** 2,
            size_q * (t**2 * size_q),
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "the score less its linearisation is at most c a_q a_k",
            tuple(Reals(name, -1, 1, 3) for name in ("q", "k", "dq", "dk")),
            remainder,
            sharp=True,
            near=({"q": [0.5, 0, 0], "k": [0, 0.5, 0], "dq": [0.5, 0.25, 0], "dk": [1, 0.5, 0]},),
        ),
        Claim(
            "the derivative on a query changes by at most c a_k",
            tuple(Reals(name, -1, 1, 3) for name in ("y", "k", "dk")),
            on_query,
            sharp=True,
        ),
        Claim(
            "less the linear part, by at most c b_k",
            tuple(Reals(name, -1, 1, 3) for name in ("y", "k", "dk", "other")),
            second_on_query,
            sharp=True,
            near=({"y": [0.5, 0.25, 0], "k": [0, 0.5, 0], "dk": [0.5, 0, 0], "other": [0.5, 0.25, 0]},),
        ),
    ),
    code=(
        "fpcheck/certify/nodes.py:nodes_of",
        "fpcheck/check/bends.py:nodes_of",
    ),
    uses=("S0",),
    remarks=(
        "The first part of the movement is whatever is linear in the state; the split need not be orthogonal.",
        "Rotary positions act on q and k before, as fixed linear maps. Normalised queries and keys need the "
        "normalisation as a node of its own in front.",
        "Masked pairs have no row here at all (S4).",
    ),
)
