r"""How fast the Jacobian at the centre turns, for all steps with a second derivative at once.

In the metric, with columns :math:`G_o` of the nodes' cotangents and rows :math:`H_i` of their inputs' tangents, the
first-order part of the Jacobian's change is :math:`M(\delta) w = \sum c \, G_o (H_a \cdot \delta) (H_b \cdot w)` over
all terms (o, a, b) of the nodes' second derivatives. By Theorem Q6 its norm is at most :math:`\tau |\delta|` with
:math:`\tau^2` the largest eigenvalue of

.. math:: \Gamma = \sum_{p, q} c_p c_q (G_{o_p} \cdot G_{o_q}) (H_{a_p} \cdot H_{a_q}) H_{b_p}' H_{b_q}.

All second derivatives here have one form: within each of some units, the second input stands in a rectangle (x, y), and
its terms run over s, with the output at (x, s) and the first input at (s, y). So the sum over s and s' of two such
parts is a matrix product for each pair of units.

Source: Theorems Q2 and Q6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from fpcheck.check.clouds import ROOM, TINY, Cloud, Floats, gamma, gram_bound, root
from fpcheck.check.values import Values, floats

__all__ = ["Form", "Part", "Seconds", "Terms", "beside", "gram", "on_top", "tau_bound"]

Indices = NDArray[np.int64]

# definition: axes (unit, x, s) or (unit, s, y) of two parts, by pairs; and (units, x, X, y, Y) part by part.
_BY_PAIRS, _BY_PARTS = (0, 3, 1, 4, 2, 5), (0, 2, 4, 1, 3, 5)
# definition: numbers in a summand of Gamma, each of them at most as large as the largest of all.
_FACTORS = 8


@final
@dataclass(frozen=True, eq=False)
class Part:
    """Terms of one node.

    Attributes:
        out: Columns of G, ``(units, x, s)``.
        first: Rows of H that meet the movement, ``(units, s, y)``.
        second: Rows of H that meet the vector, ``(units, x, y)``; no two alike.
        number: Midpoints of the terms' numbers, in the shape of one of the three.
        spread: What these may be wrong by, each.
        on: Which of the three the numbers belong to.
    """

    out: Indices
    first: Indices
    second: Indices
    number: Floats
    spread: Floats
    on: int

    @staticmethod
    def of(out: Indices, first: Indices, second: Indices, values: Values | None = None, on: int = 0) -> Part:
        """With Arb numbers for one of the index arrays; all 1 without."""
        shape = (out, first, second)[on].shape
        if values is None:
            return Part(out, first, second, np.ones(shape), np.zeros(shape), on)
        mid, rad = floats(values)
        return Part(out, first, second, mid.reshape(shape), rad.reshape(shape), on)

    @staticmethod
    def each(out: Indices, first: Indices, second: Indices, values: Values | None = None) -> Part:
        """One term for each output."""
        return Part.of(out[:, None, None], first[:, None, None], second[:, None, None], values)


@final
@dataclass(frozen=True, eq=False)
class Terms:
    """A node's second derivative.

    Attributes:
        G: The node's cotangents ``(n, outputs)``, and combinations of them.
        H: The tangents of all its inputs ``(inputs, n)``, group after group, and combinations of them.
        parts: Its terms.
    """

    G: Cloud
    H: Cloud
    parts: tuple[Part, ...]


Form = Callable[[Cloud, tuple[Cloud, ...]], Terms]
"""From a node's cotangents and its groups' tangents."""


def on_top(*parts: Cloud) -> Cloud:
    """One on top of the other."""
    return Cloud(np.concatenate([part.mid for part in parts]), _together(parts))


def beside(*parts: Cloud) -> Cloud:
    """Side by side."""
    return Cloud(np.concatenate([part.mid for part in parts], axis=1), _together(parts))


def _together(parts: tuple[Cloud, ...]) -> float:
    return root(sum(part.error * part.error for part in parts) * ROOM + TINY)


@final
@dataclass(frozen=True, eq=False)
class Seconds:
    """The lengths of a node's columns of G and rows of H, at the midpoints, and sums over its terms.

    Attributes:
        size: Bound on the sum of ``|c| |G_o| |H_a| |H_b|``.
        lacking: Bound on what the errors of all four add to ``|M(delta)|_2`` for unit delta.
        top: Bound on every single one of them.
        count: Terms.
    """

    size: float
    lacking: float
    top: float
    count: int

    @staticmethod
    def of(terms: Terms) -> Seconds:
        """Exchange the factors for the exact ones, one after the other (Theorem Q6)."""
        g, h = _lengths(terms.G.mid.T), _lengths(terms.H.mid)
        d, e = terms.G.error, terms.H.error
        size = lacking = 0.0
        top = max(float(g.max(initial=0.0)), float(h.max(initial=0.0)))
        count = 0
        for part in terms.parts:
            x, a, b = g[part.out], h[part.first], h[part.second]
            c = np.abs(part.number) + part.spread
            size += _total(part, c, x, a, b)
            # The last factor stands for the other two at their longest.
            lacking += _total(part, part.spread, x, a, b)
            lacking += _total(part, c, np.full_like(x, d), a + e, b + e)
            lacking += _total(part, c, x, np.full_like(a, e), b + e)
            lacking += _total(part, c, x, a, np.full_like(b, e))
            top = max(top, float(c.max(initial=0.0)))
            count += part.second.size * part.out.shape[2]
        return Seconds(size * ROOM, lacking * ROOM, top, count)


def _lengths(rows: Floats) -> Floats:
    width = rows.shape[1]
    return np.sqrt((rows * rows).sum(1) * (1 + 2 * gamma(width + 1)) + width * TINY) * ROOM


def _total(part: Part, numbers: Floats, *factors: Floats) -> float:
    """The sum over all terms of a part of products of non-negative numbers."""
    x, a, b = (f * numbers if k == part.on else f for k, f in enumerate(factors))
    products = (x @ a) * b
    return float(products.sum()) * (1 + 2 * gamma(products.size + x.shape[2])) * ROOM


def tau_bound(nodes: list[Terms]) -> float:
    """A bound on the first-order part of all these nodes, per unit of movement.

    Guarantee: bound, rounding included.
    Cost: products of all rows of H, and of all columns of G, with each other.
    Source: Theorems Q2 and Q6.
    """
    if not nodes:
        return 0.0
    G, error = gram(nodes)
    return (root(gram_bound(G, error)) + sum(Seconds.of(terms).lacking for terms in nodes) * ROOM) * ROOM


def gram(nodes: list[Terms]) -> tuple[Floats, float]:
    r""":math:`\Gamma` of the midpoints, and a bound on what rounding moved it by, in the Frobenius norm."""
    n = nodes[0].H.mid.shape[1]
    total = np.zeros((n, n))
    for own, left in enumerate(nodes):
        for earlier in range(own):
            right = nodes[earlier]
            crossed = left.H.mid.T @ (_between(left, right) @ right.H.mid)
            total += crossed + crossed.T
        total += left.H.mid.T @ (_between(left, left) @ left.H.mid)
    seconds = [Seconds.of(terms) for terms in nodes]
    size, count = sum(s.size for s in seconds) * ROOM, sum(s.count for s in seconds)
    rows = max(len(terms.H.mid) for terms in nodes)
    parts = max(len(terms.parts) for terms in nodes)
    run = max((part.out.shape[2] for terms in nodes for part in terms.parts), default=1)
    # How often a summand is rounded: two dot products of length n, the sums over s and s', over parts, over rows of H
    # twice, over pairs of nodes with their transposes, and fewer products than it has factors.
    roundings = 2 * n + run * run + parts * parts + 2 * rows + 2 * len(nodes) ** 2 + _FACTORS
    # Each of them may lose TINY to underflow, and what follows enlarges that by these factors at most.
    top = np.float64(1 + max(s.top for s in seconds))  # a float of Python raises where its power overflows
    under = float(TINY * n * count * count * roundings * top**_FACTORS)
    return total, (gamma(roundings) * size * size + under) * ROOM


def _between(left: Terms, right: Terms) -> Floats:
    """The numbers between rows of H of two nodes, ``(inputs of left, inputs of right)``."""
    outs, ins = left.G.mid.T @ right.G.mid, left.H.mid @ right.H.mid.T
    found = np.zeros(ins.shape)
    for p in left.parts:
        for q in right.parts:
            found[np.ix_(p.second.ravel(), q.second.ravel())] += _pairs(p, q, outs, ins)
    return found


def _pairs(p: Part, q: Part, outs: Floats, ins: Floats) -> Floats:
    """The sums over both runs, ``(second inputs of p, second inputs of q)``."""
    (u, x, s), (v, X, S) = p.out.shape, q.out.shape
    y, Y = p.first.shape[2], q.first.shape[2]
    # Axes: unit, x, s of p, then of q; and unit, s, y.
    met = _numbered(_picked(outs, p.out, q.out), p, q, 0).reshape(u, x, s, v, X, S)
    moved = _numbered(_picked(ins, p.first, q.first), p, q, 1).reshape(u, s, y, v, S, Y)
    if s * S == 1:
        found = met.reshape(u, x, 1, v, X, 1) * moved.reshape(u, 1, y, v, 1, Y)
    else:
        met = met.transpose(_BY_PAIRS).reshape(u, v, x * X, s * S)
        moved = moved.transpose(_BY_PAIRS).reshape(u, v, s * S, y * Y)
        found = (met @ moved).reshape(u, v, x, X, y, Y).transpose(_BY_PARTS)
    return _numbered(found.reshape(p.second.size, q.second.size), p, q, 2)


def _picked(held: Floats, rows: Indices, columns: Indices) -> Floats:
    return held[rows.ravel()][:, columns.ravel()]


def _numbered(block: Floats, p: Part, q: Part, which: int) -> Floats:
    """Times the numbers of the parts, where these belong to ``which``."""
    if p.on == which:
        block = block * p.number.reshape(-1, 1)
    return block * q.number.reshape(1, -1) if q.on == which else block
