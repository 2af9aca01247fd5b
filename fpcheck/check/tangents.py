r"""Derivatives at the centre: each step's own, and what they do to directions pushed through the program.

Each step's derivative is a list of small matrices or a factor per entry, evaluated in Arb and rounded once. Directions
are columns; a register of m entries holds an ``(m, directions)`` cloud. Errors are carried along with proved 2-norms of
the small matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from flint import arb

from fpcheck.check.clouds import ROOM, TINY, Cloud, Floats, frobenius, gamma, norm_bound
from fpcheck.check.program import Program, Step
from fpcheck.check.values import FUNCTIONS, Values, floats, normed, slope, slope_of_power, softmax

__all__ = ["Derivatives", "Stack", "derivatives", "push"]

Move = Callable[[Cloud], Cloud]


@final
@dataclass(frozen=True, eq=False)
class Stack:
    """Small matrices ``(count, rows, columns)``, each within ``error`` (Frobenius) of its midpoint."""

    mid: Floats
    error: float
    norm: float
    size: float

    @staticmethod
    def of(values: Values, count: int, rows: int, columns: int, *, turned: bool = False) -> Stack:
        """From Arb entries, row-major; ``turned`` transposes each."""
        mid, rad = (part.reshape(count, rows, columns) for part in floats(values))
        if turned:
            mid, rad = np.swapaxes(mid, 1, 2), np.swapaxes(rad, 1, 2)
        mid = np.ascontiguousarray(mid)
        error = max(frobenius(part) for part in rad)
        norm = max(norm_bound(part) for part in mid)
        return Stack(mid, error, norm, max(frobenius(part) for part in mid))

    def __call__(self, t: Cloud, count: int, repeat: int = 1) -> Cloud:
        """Apply to rows ``(count, repeat, columns, directions)``; matrix i to all ``repeat`` of its rows."""
        rows, columns = self.mid.shape[1:]
        shape = (count, repeat, columns, t.mid.size // (count * repeat * columns))
        mid = self.mid[:, None] @ t.mid.reshape(shape)
        size = frobenius(t.mid)
        error = (self.norm + self.error) * t.error + self.error * size + gamma(columns) * self.size * size
        error = (error + mid.size * columns * TINY) * ROOM
        return Cloud(mid.reshape(-1, t.mid.shape[1]) if rows else mid, error)


def _scaling(values: Values) -> Move:
    """A factor for each entry."""
    mid, rad = floats(values)
    largest, spread = float(np.abs(mid).max(initial=0.0)), float(rad.max(initial=0.0))

    def apply(t: Cloud) -> Cloud:
        size = frobenius(t.mid)
        moved = t.mid * mid[:, None]
        error = (largest + spread) * t.error + (spread + gamma(1) * largest) * size + moved.size * TINY
        return Cloud(moved, error * ROOM)

    return apply


def _moves(step: Step, held: list[Values], varying: list[bool]) -> list[Move | None]:
    """For each register that a step reads, how its directions reach the result; None where it is fixed."""
    if step.op in ("mul", "div"):
        factors = held[::-1] if step.op == "mul" else [[1 / v for v in held[1]], []]
        return [_scaling(f) if moves else None for f, moves in zip(factors, varying, strict=True)]
    if step.op == "map":
        return [_scaling([slope(step.function)(v) for v in held[0]])]
    if step.op == "power":
        return [_scaling([slope_of_power(v, step.shift) for v in held[0]])]
    if step.op == "clamp":
        return [_scaling([_clamp_slope(v, *step.scale) for v in held[0]])]
    if step.op == "gated":
        g, u = held
        own = slope(step.function)
        from_g = [own(x) * y for x, y in zip(g, u, strict=True)]
        return [_scaling(from_g), _scaling(_value(step.function, g))]
    if step.op == "matmul":
        return _product_moves(step, held, varying)
    if step.op == "norm":
        return [_norm_move(step, held[0])]
    if step.op == "attend":
        return [move if moves else None for move, moves in zip(_attend_moves(step, held), varying, strict=True)]
    if step.op == "total":
        (columns,) = step.numbers
        ones = Stack.of([arb(1)] * columns, 1, 1, columns)
        return [lambda t: ones(t, 1, step.size)]
    raise AssertionError(step.op)


def _clamp_slope(x: arb, low: float, high: float) -> arb:
    """At a kink both sides."""
    if arb(low) < x < arb(high):
        return arb(1)
    return arb(0) if x < arb(low) or x > arb(high) else arb(0.5, 0.5)


def _value(function: str, values: Values) -> Values:
    return [FUNCTIONS[function](v) for v in values]


def _product_moves(step: Step, held: list[Values], varying: list[bool]) -> list[Move | None]:
    b, i, k, j = step.numbers
    found: list[Move | None] = [None, None]
    if varying[0]:
        right = Stack.of(held[1], b, k, j, turned=True)
        found[0] = lambda t: right(t, b, i)
    if varying[1]:
        left = Stack.of(held[0], b, i, k)

        def from_right(t: Cloud) -> Cloud:
            m = t.mid.shape[1]
            out = left(Cloud(t.mid.reshape(b * k, j * m), t.error), b)
            return Cloud(out.mid.reshape(b * i * j, m), out.error)

        found[1] = from_right
    return found


def _norm_move(step: Step, values: Values) -> Move:
    """(P - y y' / width) / root of each row; P takes the mean off where the norm does."""
    (width,) = step.numbers
    entries: Values = []
    count = len(values) // width
    for row in range(count):
        y, root = normed(values[row * width : (row + 1) * width], step)
        inverse, share = 1 / root, arb(1) / width if step.flag else arb(0)
        scaled = [v / width for v in y]
        for p in range(width):
            entries += [((1 if p == q else 0) - share - y[p] * scaled[q]) * inverse for q in range(width)]
    stack = Stack.of(entries, count, width, width)
    return lambda t: stack(t, count)


def _attend_moves(step: Step, held: list[Values]) -> list[Move | None]:
    """d o / d s_j = p_j (v_j - o), d o / d v_j = p_j."""
    b, i, j, k = step.numbers
    weights: Values = []
    entries: Values = []
    for m in range(b):
        values = [held[1][(m * j + key) * k : (m * j + key + 1) * k] for key in range(j)]
        for row in range(i):
            start = (m * i + row) * j
            p = softmax(held[0][start : start + j], step.flag)
            weights += p
            for c in range(k):
                o = sum((p[key] * values[key][c] for key in range(j)), arb(0))
                entries += [p[key] * (values[key][c] - o) for key in range(j)]
    on_scores, on_values = Stack.of(entries, b * i, k, j), Stack.of(weights, b, i, j)

    def from_values(t: Cloud) -> Cloud:
        m = t.mid.shape[1]
        out = on_values(Cloud(t.mid.reshape(b * j, k * m), t.error), b)
        return Cloud(out.mid.reshape(b * i * k, m), out.error)

    return [lambda t: on_scores(t, b * i), from_values]


@final
@dataclass(frozen=True, eq=False)
class Derivatives:
    """A program with the derivatives of its steps at a centre."""

    program: Program
    moves: tuple[list[Move | None], ...]
    last_use: tuple[int, ...]


def derivatives(program: Program, values: list[Values]) -> Derivatives:
    """Prepare to push. Runs at the precision that the caller has set."""
    moves: list[list[Move | None]] = []
    last = list(range(len(values)))
    for number, step in enumerate(program.steps):
        for r in step.of:
            last[r] = number + 1
        flags = [program.varying[r] for r in step.of]
        if step.op in ("gather", "sum") or not any(flags):
            moves.append([])
        else:
            moves.append(_moves(step, [values[r] for r in step.of], flags))
    return Derivatives(program, tuple(moves), tuple(last))


def push(at: Derivatives, register: int, directions: Floats, visit: Callable[[int, Cloud], None]) -> Cloud:
    """Push exact directions ``(entries, directions)`` of a register through the program.

    Args:
        at: The program at its centre.
        register: Where they start.
        directions: Columns.
        visit: Called with each register that they reach, in order, and its cloud.

    Returns:
        What arrives at the output; zero where nothing does.
    """
    program = at.program
    held: dict[int, Cloud] = {register: Cloud(directions, 0.0)}
    visit(register, held[register])
    for number, step in enumerate(program.steps):
        own = number + 1
        if own > register and any(r in held for r in step.of):
            held[own] = _apply(step, at.moves[number], [held.get(r) for r in step.of], program)
            visit(own, held[own])
        for r in step.of:
            if at.last_use[r] == own and r != program.output:
                held.pop(r, None)
    nothing = Cloud(np.zeros((program.size(program.output), directions.shape[1])), 0.0)
    return held.get(program.output, nothing)


def _apply(step: Step, moves: list[Move | None], parts: list[Cloud | None], program: Program) -> Cloud:
    if step.op == "gather":
        return _gathered(step, parts, program)
    if step.op == "sum":
        return _summed([(c, t) for c, t in zip(step.scale, parts, strict=True) if t is not None])
    return _summed([(1.0, move(t)) for move, t in zip(moves, parts, strict=True) if move is not None and t is not None])


def _summed(terms: list[tuple[float, Cloud]]) -> Cloud:
    factor, first = terms[0]
    mid = first.mid if factor == 1 else factor * first.mid
    error, size = abs(factor) * first.error, abs(factor) * frobenius(first.mid)
    for factor, t in terms[1:]:
        mid = mid + (t.mid if factor == 1 else factor * t.mid)
        error += abs(factor) * t.error
        size += abs(factor) * frobenius(t.mid)
    exact = len(terms) == 1 and abs(terms[0][0]) == 1
    lost = 0.0 if exact else gamma(len(terms) + 1) * size + mid.size * len(terms) * TINY
    return Cloud(mid, (error + lost) * ROOM)


def _gathered(step: Step, parts: list[Cloud | None], program: Program) -> Cloud:
    assert step.values is not None
    columns = next(t.mid.shape[1] for t in parts if t is not None)
    rows = [np.zeros((program.size(r), columns)) if t is None else t.mid for r, t in zip(step.of, parts, strict=True)]
    together = rows[0] if len(rows) == 1 else np.concatenate(rows)
    index = step.values
    mid = together[np.maximum(index, 0)]
    mid[index < 0] = 0.0
    # An entry that is taken m times counts m times in the square of the norm.
    times = int(np.bincount(index[index >= 0]).max(initial=0)) if index.size else 0
    error = sum(t.error for t in parts if t is not None)
    return Cloud(mid, error if times <= 1 else error * times**0.5 * ROOM)
