r"""How far the curved steps of a program bend over a ball, block by block, again from the statements of the theorems.

From bounds a on how far each block of a step's inputs moves, b on the part of it that is not linear in the state, and
eta on the linear part of its output, a step gives ``e``, bounds on the blocks of the change of its derivative; ``e2``,
the same less the first-order part of that change; and ``rho``, bounds on the blocks of its value less value and
derivative at the centre. All in Arb, rounded up at the end. Some steps also have their second derivative, term by term.

Source: Theorem N5 (norm), Theorem A5 (attend), Theorem A7 (matmul, mul), Theorems C10 and C11 (gated), Theorems C5, C6
and C7 (map), Theorem C8 (relu, abs, clamp), Theorem C12 (other functions, and powers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import numpy as np
from flint import arb
from numpy.typing import NDArray

from fpcheck import constants as c
from fpcheck.check.clouds import Cloud, Floats
from fpcheck.check.program import CURVED, Program, Step
from fpcheck.check.second import Form, Part, Terms, beside, on_top
from fpcheck.check.tangents import Stack
from fpcheck.check.values import POWERS, Values, curve, curve_of_power, normed, slope, softmax

__all__ = ["Bend", "Indices", "Node", "nodes_of"]

Indices = NDArray[np.int64]

# Bounds on the first three derivatives over the whole line.
_SUPREMA: dict[str, tuple[float, float, float]] = {
    "silu": (c.SILU_SLOPE_MAX, c.SILU_SECOND, c.SILU_THIRD),
    "gelu": (c.GELU_ERF_SLOPE_MAX, c.GELU_ERF_SECOND, c.GELU_ERF_THIRD),
    "gelu_tanh": (c.GELU_TANH_SLOPE_MAX, c.GELU_TANH_SECOND, c.GELU_TANH_THIRD),
    "sigmoid": (c.SIGMOID_SLOPE, c.SIGMOID_SECOND, c.SIGMOID_THIRD),
    "tanh": (1.0, c.TANH_SECOND, c.TANH_THIRD),
}


@final
@dataclass(frozen=True, eq=False)
class Bend:
    """Bounds over a ball.

    Attributes:
        e: By group: output block, input block, bound; parallel arrays.
        e2: By group, bounds for the same blocks, less the part that is linear in the state.
        rho: By output block.
    """

    e: tuple[tuple[Indices, Indices, Floats], ...]
    e2: tuple[Floats, ...]
    rho: Floats


@final
@dataclass(frozen=True, eq=False)
class Node:
    """A curved step.

    Attributes:
        register: Of its result.
        name: For messages.
        groups: Registers of its inputs.
        blocks: By group, the block of each entry.
        out_blocks: The block of each output entry.
        centre: By group, matrices that take a weighted mean off each row of inputs first; None for none.
        bend: From a and b (by group) and eta (by output block): the bounds, or None outside of the theorem's domain.
        form: Its second derivative at the centre; None where e2 is e, and nothing is taken off.
    """

    register: int
    name: str
    groups: tuple[int, ...]
    blocks: tuple[Indices, ...]
    out_blocks: Indices
    centre: tuple[Stack | None, ...]
    bend: Callable[[tuple[Floats, ...], tuple[Floats, ...], Floats], Bend | None]
    form: Form | None


def nodes_of(program: Program, values: list[Values]) -> list[Node]:
    """The curved steps of a program at a centre, in order. Runs at the precision that the caller has set."""
    found = []
    for number, step in enumerate(program.steps):
        moving = [program.varying[r] for r in step.of]
        held = [values[r] for r in step.of]
        register = number + 1
        if not any(moving):
            continue
        if step.op == "norm":
            found.append(_norm(register, step, held[0]))
        elif step.op == "attend":
            found.append(_attend(register, step, held, values[register], values_move=moving[1]))
        elif step.op == "gated":
            found.append(_gated(register, step, held))
        elif step.op == "clamp" or (step.op == "map" and step.function in ("relu", "abs")):
            found.append(_kinked(register, step, held[0]))
        elif step.op == "map" and step.function in CURVED:
            found.append(_map(register, step, held[0]))
        elif step.op in ("map", "power"):
            found.append(_smooth(register, step, held[0]))
        elif step.op == "matmul" and all(moving):
            found.append(_product(register, step))
        elif step.op == "mul" and all(moving):
            found.append(_entry_product(register, step))
    return found


def _above(values: list[arb]) -> Floats:
    """Upper bounds on non-negative numbers; infinite where nothing is known."""
    found = np.zeros(len(values))
    for i, value in enumerate(values):
        top = float(value.upper()) if value.is_finite() else math.inf
        found[i] = np.nextafter(top, math.inf) if top == top else math.inf
    return np.maximum(found, 0.0)


def _reals(values: Floats) -> list[arb]:
    return [arb(v) for v in values.tolist()]


def _least(x: arb, y: arb) -> arb:
    """Of two upper bounds the one that is surely less; either is right."""
    return x if x < y else y


def _size(x: arb) -> arb:
    return arb(abs(x).upper())


def _norm(register: int, step: Step, values: Values) -> Node:
    (d,) = step.numbers
    count = len(values) // d
    held = [normed(values[i * d : (i + 1) * d], step) for i in range(count)]
    roots = [arb(q.lower()) for _, q in held]
    rows = np.repeat(np.arange(count), d)
    each = np.arange(count)

    def bend(a: tuple[Floats, ...], b: tuple[Floats, ...], eta: Floats) -> Bend | None:
        es, e2s, rhos = [], [], []
        for q, move, bent in zip(roots, _reals(a[0]), _reals(b[0]), strict=True):
            least = q - move / arb(d).sqrt()
            if not least > 0:
                return None
            e = 2 * move / (arb(3 * d).sqrt() * q * least)  # definition: of Theorem N5
            es.append(e)
            first = 2 * bent / (arb(3 * d).sqrt() * q * q)  # definition: of Theorem N5
            e2s.append(first + 3 * move * move / (2 * d * q * q * least))  # definition: of Theorem N5
            rhos.append(e * move / 2)
        return Bend(((each, each, _above(es)),), (_above(e2s),), _above(rhos))

    def form(G: Cloud, H: tuple[Cloud, ...]) -> Terms:
        # With c the row, less its mean where the norm takes that off, P taking it off and q the root, the derivative
        # on w is P w / q - c (c.w) / (d q^3), and its derivative on v is
        # -(c.v) P w / (d q^3) - (c.w) P v / (d q^3) - c (P v.P w) / (d q^3) + 3 c (c.v)(c.w) / (d^2 q^5).
        (tangents,) = H
        if step.flag:
            off: Values = [(1 if p == q else 0) - arb(1) / d for p in range(d) for q in range(d)]
            tangents = Stack.of(off, 1, d, d)(tangents, 1, count)
        # Of y = c / q, c = y q.
        along = Stack.of([v * q for y, q in held for v in y], count, 1, d)
        met = along(G.T, count)
        cubes = [-1 / (d * q * q * q) for _, q in held]
        fifths = [3 / (arb(d * d) * q * q * q * q * q) for _, q in held]  # definition: of the derivative above
        entry = np.arange(count * d).reshape(count, d)
        alpha, xi = count * d + each, count * d + each
        line, column = entry[:, None, :], entry[:, :, None]
        parts = (
            Part.of(column, alpha[:, None, None], column, cubes, 1),
            Part.of(line, column, alpha[:, None, None], cubes, 2),
            Part.of(xi[:, None, None], line, line, cubes, 0),
            Part.each(xi, alpha, alpha, fifths),
        )
        return Terms(beside(G, met.T), on_top(tangents, along(tangents, count)), parts)

    return Node(register, "norm", step.of, (rows,), rows, (None,), bend, form)


def _product(register: int, step: Step) -> Node:
    b, i, k, j = step.numbers
    left = np.broadcast_to(np.arange(b * i).reshape(b, i, 1), (b, i, k)).ravel()
    right = np.broadcast_to(np.arange(b * j).reshape(b, 1, j), (b, k, j)).ravel()
    row = np.broadcast_to(np.arange(b * i).reshape(b, i, 1), (b, i, j)).ravel()
    column = np.broadcast_to(np.arange(b * j).reshape(b, 1, j), (b, i, j)).ravel()
    first = np.arange(b * i * k).reshape(b, i, k)
    second = b * i * k + np.arange(b * k * j).reshape(b, k, j)
    out = np.arange(b * i * j).reshape(b, i, j)
    flipped = [np.swapaxes(v, 1, 2) for v in (out, first, second)]
    # The left matrix at (i, k), over j; the right one turned, at (j, k), over i.
    parts = (Part.of(out, flipped[2], first), Part.of(flipped[0], first, flipped[2]))
    return _bilinear(register, step, (left, right), row, column, parts)


def _entry_product(register: int, step: Step) -> Node:
    each = np.arange(step.size)
    parts = (Part.each(each, each, each + step.size), Part.each(each, each + step.size, each))
    return _bilinear(register, step, (each, each), each, each, parts)


def _bilinear(
    register: int, step: Step, blocks: tuple[Indices, ...], row: Indices, column: Indices, parts: tuple[Part, ...]
) -> Node:
    """Output p is the inner product of block row[p] and block column[p] (Theorem A7 with c = 1)."""
    each = np.arange(step.size)

    def bend(a: tuple[Floats, ...], b: tuple[Floats, ...], eta: Floats) -> Bend:
        first, second = a[0][row], a[1][column]
        rho = _above([x * y for x, y in zip(_reals(first), _reals(second), strict=True)])
        return Bend(((each, row, second), (each, column, first)), (b[1][column], b[0][row]), rho)

    def form(G: Cloud, H: tuple[Cloud, ...]) -> Terms:
        return Terms(G, on_top(*H), parts)

    return Node(register, "product", step.of, blocks, each, (None, None), bend, form)


def _gated(register: int, step: Step, held: list[Values]) -> Node:
    g, u = held
    top, second, third = (arb(v) for v in _SUPREMA[step.function])
    slopes, curves = [slope(step.function)(v) for v in g], [curve(step.function)(v) for v in g]
    d1, d2, size = ([_size(v) for v in values] for values in (slopes, curves, u))
    each = np.arange(len(g))

    def bend(a: tuple[Floats, ...], b: tuple[Floats, ...], eta: Floats) -> Bend:
        on_g, on_u, on_g2, on_u2, rho = [], [], [], [], []
        for first, bent, value, x, y, bx, by in zip(d1, d2, size, *map(_reals, a + b), strict=True):
            m2 = _least(bent + third * x, second)
            m1 = _least(first + m2 * x, top)
            e_u = _least(first * x + m2 * x * x / 2, m1 * x)
            on_g.append(m1 * y + m2 * value * x)
            on_u.append(e_u)
            on_g2.append(first * by + m2 * x * y + value * (third * x * x / 2 + bent * bx))
            on_u2.append(m2 * x * x / 2 + first * bx)
            rho.append(m2 * value * x * x / 2 + e_u * y)
        e = ((each, each, _above(on_g)), (each, each, _above(on_u)))
        return Bend(e, (_above(on_g2), _above(on_u2)), _above(rho))

    def form(G: Cloud, H: tuple[Cloud, ...]) -> Terms:
        other = each + len(g)
        turned = [bent * value for bent, value in zip(curves, u, strict=True)]
        parts = (
            Part.each(each, each, each, turned),
            Part.each(each, each, other, slopes),
            Part.each(each, other, each, slopes),
        )
        return Terms(G, on_top(*H), parts)

    return Node(register, "gated", step.of, (each, each), each, (None, None), bend, form)


def _map(register: int, step: Step, held: Values) -> Node:
    each = np.arange(len(held))
    _, second, third = (arb(v) for v in _SUPREMA[step.function])
    curves = [curve(step.function)(v) for v in held]
    d2 = [_size(v) for v in curves]

    def bend(a: tuple[Floats, ...], b: tuple[Floats, ...], eta: Floats) -> Bend:
        es, e2s, rhos = [], [], []
        for bent, x, bx in zip(d2, _reals(a[0]), _reals(b[0]), strict=True):
            e = _least(bent + third * x, second) * x
            es.append(e)
            e2s.append(bent * bx + third * x * x / 2)
            rhos.append(e * x / 2)
        return Bend(((each, each, _above(es)),), (_above(e2s),), _above(rhos))

    def form(G: Cloud, H: tuple[Cloud, ...]) -> Terms:
        return Terms(G, H[0], (Part.each(each, each, each, curves),))

    return Node(register, step.function, step.of, (each,), each, (None,), bend, form)


def _kinked(register: int, step: Step, held: Values) -> Node:
    """Straight pieces: an entry that may reach a kink may change its slope by the largest difference of two."""
    each = np.arange(len(held))
    kinks = [k for k in step.scale if math.isfinite(k)] if step.op == "clamp" else [0.0]
    largest = 2.0 if step.function == "abs" else 1.0
    # Distance from the nearest kink; 0 where the centre may be on one.
    gaps = [min((float(abs(v - k).lower()) for k in kinks), default=math.inf) for v in held]

    def bend(a: tuple[Floats, ...], b: tuple[Floats, ...], eta: Floats) -> Bend:
        reached = np.array([0.0 if x < np.nextafter(gap, 0.0) else largest for x, gap in zip(a[0], gaps, strict=True)])
        return Bend(((each, each, reached),), (reached,), reached * a[0])

    return Node(register, step.function or step.op, step.of, (each,), each, (None,), bend, None)


def _smooth(register: int, step: Step, held: Values) -> Node:
    """Without bounds on the whole line: the second and third derivative over the intervals that entries may reach."""
    each = np.arange(len(held))
    exponent = step.shift if step.op == "power" else POWERS.get(step.function)
    own = curve(step.function) if exponent is None else partial(curve_of_power, exponent=exponent)
    d2 = [_size(own(v)) for v in held]

    def bend(a: tuple[Floats, ...], b: tuple[Floats, ...], eta: Floats) -> Bend | None:
        es, e2s, rhos = [], [], []
        for value, bent, x, bx in zip(held, d2, _reals(a[0]), _reals(b[0]), strict=True):
            reach = value + arb(0, 1) * x
            if exponent is None:
                second, third = (_size(v) for v in _BENT[step.function](reach))
            else:
                second, third = _power_bends(reach, exponent)
            if not (second.is_finite() and third.is_finite()):
                return None
            es.append(second * x)
            e2s.append(bent * bx + third * x * x / 2)
            rhos.append(second * x * x / 2)
        return Bend(((each, each, _above(es)),), (_above(e2s),), _above(rhos))

    return Node(register, step.function or step.op, step.of, (each,), each, (None,), bend, None)


def _power_bends(x: arb, exponent: float) -> tuple[arb, arb]:
    """Bounds on the second and third derivative of x^exponent; not finite where it may not be defined."""
    whole = exponent.is_integer()
    if not (x > 0 or (whole and (exponent >= 0 or x < 0))):
        return arb("nan"), arb("nan")
    e = arb(exponent)
    found = []
    for factor, by in ((e * (e - 1), 2), (e * (e - 1) * (e - 2), 3)):  # definition: derivatives of a power
        if whole and 0 <= exponent < by:
            found.append(arb(0))
            continue
        rest = e - by
        # A power of the modulus is largest at one of its ends.
        end = x.abs_upper() if exponent >= by else x.abs_lower()
        found.append(_size(factor) * _size(arb(end) ** rest))
    return found[0], found[1]


def _erf_bends(x: arb) -> tuple[arb, arb]:
    # The derivatives of slope exp(-x^2): -2 x times it, and (4 x^2 - 2) times it.
    first = slope("erf")(x)
    return 2 * x * first, (4 * x * x - 2) * first  # definition: derivatives of erf


# Second and third derivatives.
_BENT: dict[str, Callable[[arb], tuple[arb, arb]]] = {
    "exp": lambda x: (x.exp(), x.exp()),
    "expm1": lambda x: (x.exp(), x.exp()),
    "log": lambda x: (_inverse(x, 2), 2 * _inverse(x, 3)),  # definition: derivatives of log
    "log1p": lambda x: (_inverse(1 + x, 2), 2 * _inverse(1 + x, 3)),  # definition: derivatives of log
    "sin": lambda x: (x.sin(), x.cos()),
    "cos": lambda x: (x.cos(), x.sin()),
    "erf": _erf_bends,
}


def _inverse(x: arb, power: int) -> arb:
    """A bound on x^-power for positive x; not finite where it may not be."""
    return 1 / arb(x.lower()) ** power if x > 0 else arb("nan")


def _attend(register: int, step: Step, held: list[Values], out: Values, *, values_move: bool) -> Node:
    b, i, j, k = step.numbers
    rows = b * i
    p: list[list[arb]] = [softmax(held[0][r * j : (r + 1) * j], step.flag) for r in range(rows)]
    present = [[v is not None for v in held[0][r * j : (r + 1) * j]] for r in range(rows)]
    w: list[list[arb]] = []
    centring: Values = []
    pulls: Values = []
    for r in range(rows):
        o = out[r * k : (r + 1) * k]
        sizes = []
        for key in range(j):
            start = ((r // i) * j + key) * k
            gap = [x - y for x, y in zip(held[1][start : start + k], o, strict=True)]
            # Upper bounds first: a ball around 0 has no real root.
            sizes.append(_size(sum((_size(x) * _size(x) for x in gap), arb(0))).sqrt())
            pulls += [p[r][key] * x for x in gap]
        w.append(sizes)
        for key in range(j):
            centring += [(1 if key == other else 0) - p[r][other] for other in range(j)]
    query = np.repeat(np.arange(rows), j)
    value = ((np.arange(rows) // i) * j)[:, None] + np.arange(j)[None, :]
    scores = np.arange(rows * j)
    groups = 2 if values_move else 1
    still = np.zeros(b * j)

    def bend(a: tuple[Floats, ...], b: tuple[Floats, ...], eta: Floats) -> Bend | None:
        on_scores: list[arb] = []
        on_values: list[arb] = []
        on_scores2: list[arb] = []
        on_values2: list[arb] = []
        rho: list[arb] = []
        move, bent_move = (v[1] if values_move else still for v in (a, b))
        for r in range(rows):
            keys = [key for key in range(j) if present[r][key]]
            x, bx = ({key: arb(v[r * j + key]) for key in keys} for v in (a[0], b[0]))
            nu, bnu = ({key: arb(v[int(value[r, key])]) for key in keys} for v in (move, bent_move))
            if not all(x[key] < 20 for key in keys):  # choice: beyond, the bounds are far from useful
                return None
            # Of p, upper bounds.
            q = {key: _size(p[r][key]) for key in keys}
            excess = {key: x[key].exp() - 1 - x[key] for key in keys}
            ell = (1 + sum((q[key] * excess[key] for key in keys), arb(0))).log()
            d = {key: q[key] * (x[key].exp() - 1).max(1 - (-x[key] - ell).exp()) for key in keys}
            d2 = {key: q[key] * excess[key].max(ell) for key in keys}
            own = w[r]
            second = sum(
                (d[key] * nu[key] + (d2[key] + q[key] * bx[key]) * own[key] + q[key] * bnu[key] for key in keys), arb(0)
            )
            first = sum(((q[key] + d[key]) * nu[key] + d[key] * own[key] for key in keys), arb(0))
            omega = _least(first, arb(float(eta[r])) + second)
            for key in range(j):
                if not present[r][key]:
                    for found in (on_scores, on_values, on_scores2, on_values2):
                        found.append(arb(0))
                    continue
                more = d2[key] + q[key] * bx[key]
                on_scores.append(d[key] * own[key] + (q[key] + d[key]) * (nu[key] + omega))
                on_values.append(d[key])
                on_scores2.append(more * own[key] + q[key] * (bnu[key] + second) + d[key] * (nu[key] + omega))
                on_values2.append(more)
            rho.append(sum((d[key] * nu[key] + d2[key] * own[key] for key in keys), arb(0)))
        e = ((query, scores, _above(on_scores)), (query, value.ravel(), _above(on_values)))
        return Bend(e[:groups], (_above(on_scores2), _above(on_values2))[:groups], _above(rho))

    def form(G: Cloud, H: tuple[Cloud, ...]) -> Terms:
        # With centred scores s the derivative is the sum of p_j (s_j (v_j - o) + v_j's own), and its derivative the sum
        # of p_j s_j s_j (v_j - o), p_j s_j v_j and p_j v_j s_j. One more output for each score: its pull on the row.
        pulled = Stack.of(pulls, rows, j, k)(G.T, rows)
        score = scores.reshape(b, i, j)
        output = np.arange(rows * k).reshape(b, i, k)
        values = rows * j + np.arange(b * j * k).reshape(b, j, k)
        weights = [v for row in p for v in row]
        across = np.swapaxes(values, 1, 2)
        parts = (
            Part.each(rows * k + scores, scores, scores),
            # Values at (width, key), over the queries; scores at (query, key), over the width.
            Part.of(np.swapaxes(output, 1, 2), score, across, weights, 1),
            Part.of(output, across, score, weights, 2),
        )
        return Terms(beside(G, pulled.T), on_top(*H), parts if values_move else parts[:1])

    blocks = (scores, np.repeat(np.arange(b * j), k))
    centre = (Stack.of(centring, rows, j, j), None)
    out_blocks = np.repeat(np.arange(rows), k)
    return Node(register, "attend", step.of[:groups], blocks[:groups], out_blocks, centre[:groups], bend, form)
