r"""The first-order part of the Jacobian's change, for all nodes at once: :math:`|M(\delta)|_2 \le \tau |\delta|`.

In the metric, :math:`M(\delta) = \sum_l G_l D^2\phi_l(\hat u_l)[H_l \delta] H_l` is linear in the movement
:math:`\delta`, and Theorem Q2 bounds it by the largest eigenvalue of :math:`\Gamma = \sum_i M_i' M_i` over an
orthonormal basis. The second derivative of every node is a short list of terms: an output, two inputs and a number c,

.. math:: M(\delta) w = \sum_p c_p \, G_{o_p} (H_{a_p} \cdot \delta) (H_{b_p} \cdot w),

with columns of G and rows of H. Then no sum over a basis is needed (Theorem Q6):

.. math:: \Gamma = \sum_{p,q} c_p c_q (G_{o_p} \cdot G_{o_q}) (H_{a_p} \cdot H_{a_q}) H_{b_p}' H_{b_q}.

Where a term's output or input is itself a combination of entries (a norm's row along itself, a score's pull on a row of
values), that combination is added to G or H as one more column or row. Terms come in families over a few axes: entry
(i, j) of a product of matrices has one term with (i, k) and (k, j) for every k. The sum over pairs of terms of two
families is then one einsum of a block of G'G with a block of H H', over the axes that their second inputs lack.

Shapes: n numbers in a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.curvature import FirstOrder, Geometry, Matrix
from fpcheck.certify.enclosure import Enclosure
from fpcheck.certify.functions import FUNCTIONS, GELU_TANH, Function
from fpcheck.certify.nodes import AbstractNode, Bilinear, Entrywise, Gated, Product, RowNorm, WeightedSum
from fpcheck.certify.norms import frobenius_bound, gram_bound, norm_bound, row_norm_bounds
from fpcheck.certify.operators import _RowNorm
from fpcheck.certify.rounding import ROOM, TINY, gamma, root_up, up
from fpcheck.certify.trace import Op

__all__ = ["Family", "Terms", "first_order", "gram", "terms_of"]


@final
@dataclass(frozen=True, eq=False)
class Family:
    """Terms of a node over a few axes, each a letter; index tensors have the sizes of their own axes.

    Attributes:
        axes: Letters of ``out``, ``first`` and ``second``.
        out: Columns of G.
        first: Rows of H, which meet the movement.
        second: Rows of H, which meet the vector; all different.
        coefficient: Balls around the numbers, over the axes of ``on``.
        on: Which of the three has the axes of the numbers: 0, 1 or 2.
    """

    axes: tuple[str, str, str]
    out: Tensor
    first: Tensor
    second: Tensor
    coefficient: Ball
    on: int


@final
@dataclass(frozen=True, eq=False)
class Terms:
    """A node's second derivative at the centre, between G and H.

    Attributes:
        G: ``(n, outputs)``: the node's cotangents, and combinations of them.
        H: ``(inputs, n)``: the tangents of all its groups, one after the other, and combinations of them.
        families: The terms.
    """

    G: Matrix
    H: Matrix
    families: tuple[Family, ...]


def first_order(held: Enclosure, shape: Geometry) -> FirstOrder:
    """Bound the first-order part of all nodes whose second derivative has a form here; the others are not covered.

    Guarantee: bound, rounding included.
    Cost: products of all of G and of all of H with themselves, so some n^3; no higher power of n.
    Source: Theorems Q2 and Q6.
    """
    found = [terms_of(held, shape, own) for own in range(len(shape.nodes))]
    terms = [t for t in found if t is not None]
    covered = tuple(t is not None for t in found)
    if not terms:
        return FirstOrder(0.0, covered)
    largest = gram_bound(gram(terms))
    # |M|_2 of the exact G, H and numbers is at most this much above that of the computed ones.
    lacking = sum(_lacking(t) for t in terms) * ROOM
    return FirstOrder(up(root_up(largest) + lacking), covered)


def gram(terms: list[Terms]) -> Ball:
    r"""A ball around :math:`\Gamma` for the midpoints of the terms' matrices and numbers, ``(n, n)``."""
    n = terms[0].H.mid.shape[1]
    total = torch.zeros((n, n), dtype=torch.float64)
    roundings, size = 0, 0.0
    for i, later in enumerate(terms):
        for earlier in terms[:i]:
            part = later.H.mid.mT @ (_pairs(later, earlier) @ earlier.H.mid)
            total += part + part.mT
        total += later.H.mid.mT @ (_pairs(later, later) @ later.H.mid)
        for family in later.families:
            size += _sizes(later, family)[0]
            roundings += 2 * math.prod(_extents(family).values())
        roundings += len(later.H.mid)
    # Each summand is a product of eight numbers and runs through two dot products of length n and through sums over
    # terms, rows and pairs of nodes. In moduli all of it is at most the square of the terms' sizes, summed.
    roundings += 2 * n + 2 * len(terms) ** 2 + 20  # choice: more than enough
    error = up(gamma(roundings) * up(size * size)) + up(TINY * roundings * n)
    return Ball(total, torch.full_like(total, up(error / n) * ROOM))


def _extents(family: Family) -> dict[str, int]:
    """The size of every axis."""
    indices = (family.out, family.first, family.second)
    return {
        letter: size
        for axes, index in zip(family.axes, indices, strict=True)
        for letter, size in zip(axes, index.shape, strict=True)
    }


def _pairs(left: Terms, right: Terms) -> Tensor:
    """The numbers between ``H_b'`` and ``H_b`` for two nodes' terms, ``(inputs of left, inputs of right)``."""
    outs = left.G.mid.mT @ right.G.mid
    ins = left.H.mid @ right.H.mid.mT
    found = torch.zeros_like(ins)
    for p in left.families:
        for q in right.families:
            block = _sums(p, q, outs, ins)
            found[p.second.flatten().unsqueeze(1), q.second.flatten()] += block
    return found


def _sums(p: Family, q: Family, outs: Tensor, ins: Tensor) -> Tensor:
    """What all pairs of terms of two families add up to, by their second inputs."""
    parts = []
    sources = ((outs, p.out, q.out), (ins, p.first, q.first))
    for which, (held, rows, columns) in enumerate(sources):
        block = held[rows.flatten().unsqueeze(1), columns.flatten()]
        parts.append(_numbered(block, p, q, which).reshape(*rows.shape, *columns.shape))
    names = [a + b.upper() for a, b in zip(p.axes, q.axes, strict=True)]
    # The letters of both are apart: small ones and capitals.
    block = torch.einsum(f"{names[0]},{names[1]}->{names[2]}", *parts)
    return _numbered(block.reshape(p.second.numel(), q.second.numel()), p, q, 2)


def _numbered(block: Tensor, p: Family, q: Family, which: int) -> Tensor:
    """Rows and columns times the families' numbers, where these have the axes of ``which``."""
    if p.on == which:
        block = block * p.coefficient.mid.reshape(-1, 1)
    return block * q.coefficient.mid.flatten() if q.on == which else block


def _sizes(terms: Terms, family: Family) -> tuple[float, float]:
    """Sums over the terms of a family: of ``|c| |G_o| |H_a| |H_b|``, and of what errors may change of it."""
    g, h = row_norm_bounds(Ball.exact(terms.G.mid.mT)), row_norm_bounds(Ball.exact(terms.H.mid))
    g, a, b = g[family.out], h[family.first], h[family.second]
    c, rad = family.coefficient.magnitude(), family.coefficient.rad
    names = family.axes

    def total(numbers: Tensor, *factors: Tensor) -> float:
        parts = [numbers.expand(factors[family.on].shape), *factors]
        return float(torch.einsum(f"{names[family.on]},{','.join(names)}->", *parts)) * ROOM

    e = terms.H.error
    changes = (
        total(rad, g, a, b)
        + total(c, g, a, torch.full_like(b, e))
        + total(c, g, torch.full_like(a, e), b + e)
        + total(c, torch.full_like(g, terms.G.error), a + e, b + e)
    )
    return total(c, g, a, b), changes * ROOM


def _lacking(terms: Terms) -> float:
    """A bound on what the errors of G, of H and of the numbers do to ``|M(delta)|_2`` for unit delta.

    The four factors of a term are exchanged for the exact ones, one after the other.
    """
    return sum(_sizes(terms, family)[1] for family in terms.families) * ROOM


# The forms of the nodes.

_SINGLE = ("e", "e", "e")


def terms_of(held: Enclosure, shape: Geometry, own: int) -> Terms | None:
    """The terms of a node, or None where there is no form for it."""
    node = shape.nodes[own]
    form = _FORMS.get(type(node))
    if form is None:
        return None
    return form(node, held.graph.ops[node.index], held.values, shape.G[own], _on_top(*shape.H[own]))


def _on_top(*parts: Matrix) -> Matrix:
    return Matrix(torch.cat([p.mid for p in parts]), _together(*(p.error for p in parts)))


def _beside(*parts: Matrix) -> Matrix:
    return Matrix(torch.cat([p.mid for p in parts], 1), _together(*(p.error for p in parts)))


def _together(*errors: float) -> float:
    return float(torch.tensor(errors, dtype=torch.float64).norm()) * ROOM


def _number(value: float) -> Ball:
    return Ball.exact(torch.tensor(value, dtype=torch.float64))


def _function(name: str) -> Function:
    return GELU_TANH if name == "gelu_tanh" else FUNCTIONS[name]


def _gated(node: Gated, op: Op, values: list[Any], G: Matrix, H: Matrix) -> Terms:
    """f(g) u: f'' u for g twice, f' for g with u."""
    form = _function(op.kwargs["function"])
    assert form.curve is not None
    g, u = (values[i].reshape(-1) for i in node.groups)
    entry = torch.arange(len(u.mid))
    other = entry + len(entry)
    slope = g.map(form.slope)
    return Terms(
        G,
        H,
        (
            Family(_SINGLE, entry, entry, entry, g.map(form.curve) * u, 0),
            Family(_SINGLE, entry, entry, other, slope, 0),
            Family(_SINGLE, entry, other, entry, slope, 0),
        ),
    )


def _entrywise(node: Entrywise, op: Op, values: list[Any], G: Matrix, H: Matrix) -> Terms:
    """f'' for the entry twice."""
    form = _function(node.name)
    assert form.curve is not None
    x = values[node.groups[0]].reshape(-1)
    entry = torch.arange(len(x.mid))
    return Terms(G, H, (Family(_SINGLE, entry, entry, entry, x.map(form.curve), 0),))


def _product(node: Product, op: Op, values: list[Any], G: Matrix, H: Matrix) -> Terms:
    """g u: the one with the other, in both orders."""
    entry = torch.arange(G.mid.shape[1])
    other = entry + len(entry)
    one = Ball.exact(torch.ones(len(entry), dtype=torch.float64))
    return Terms(G, H, (Family(_SINGLE, entry, entry, other, one, 0), Family(_SINGLE, entry, other, entry, one, 0)))


def _bilinear(node: Bilinear, op: Op, values: list[Any], G: Matrix, H: Matrix) -> Terms:
    """Entry (i, j) of a product of matrices: (i, k) with (k, j) for all k, in both orders."""
    left, right = (values[i] for i in node.groups)
    (rows, inner), columns = left.shape[-2:], right.shape[-1]
    batch = left.mid.numel() // (rows * inner)
    out = torch.arange(batch * rows * columns).reshape(batch, rows, columns)
    first = torch.arange(batch * rows * inner).reshape(batch, rows, inner)
    second = torch.arange(batch * inner * columns).reshape(batch, inner, columns) + first.numel()
    scale = Ball.exact(torch.full(out.shape, float(op.kwargs.get("alpha", 1)), dtype=torch.float64))
    return Terms(
        G,
        H,
        (
            Family(("bij", "bik", "bkj"), out, first, second, scale, 0),
            Family(("bij", "bkj", "bik"), out, second, first, scale, 0),
        ),
    )


def _weighted_sum(node: WeightedSum, op: Op, values: list[Any], G: Matrix, H: Matrix) -> Terms:
    """Softmax-weighted values, with centred scores s: p (v - o) for s twice, p for s with v."""
    v = values[op.args[1].index]
    keys, width = v.shape[-2:]
    p = node.centring(0)
    assert p is not None
    queries = p.shape[0]
    rows = queries // (v.mid.numel() // (keys * width))
    n = G.mid.shape[0]
    o = values[node.index].reshape(-1, rows, 1, width)
    gap = v.reshape(-1, 1, keys, width) - o
    pull = gap.reshape(queries, keys, width) * p.reshape(queries, keys, 1)
    # One more output for each pair of query and key: what its score does to the query's result.
    columns = Ball.exact(G.mid.reshape(n, queries, width).permute(1, 0, 2)) @ pull.mT
    spread = frobenius_bound(Ball.exact(columns.rad)) + G.error * max(norm_bound(pull[i]) for i in range(queries))
    virtual = Matrix(columns.mid.permute(1, 0, 2).reshape(n, queries * keys), spread * ROOM)
    batch = queries // rows
    score = torch.arange(queries * keys).reshape(batch, rows, keys)
    out = torch.arange(queries * width).reshape(batch, rows, width)
    value = queries * keys + torch.arange(batch * keys * width).reshape(batch, keys, width)
    weight = p.reshape(batch, rows, keys)
    one = Ball.exact(torch.ones(score.shape, dtype=torch.float64))
    families = (
        Family(("bqj", "bqj", "bqj"), queries * width + score, score, score, one, 0),
        Family(("bqk", "bqj", "bjk"), out, score, value, weight, 1),
        Family(("bqk", "bjk", "bqj"), out, value, score, weight, 2),
    )
    # Fixed values have no movement of their own.
    return Terms(_beside(G, virtual), H, families[: 1 if len(node.groups) == 1 else 3])


def _row_norm(node: RowNorm, op: Op, values: list[Any], G: Matrix, H: Matrix) -> Terms:
    """x / q: each entry with the movement along x, and along x with all entries twice and itself twice."""
    source, eps, dim = op.args
    x = values[source.index]
    order = [i for i in range(x.mid.ndim) if i != dim % x.mid.ndim] + [dim % x.mid.ndim]
    entries = torch.arange(x.mid.numel()).reshape(x.shape).permute(*order).flatten(0, -2)
    rows, width = entries.shape
    n = H.mid.shape[1]
    inverse = _RowNorm.inverse_root(op.target, x, eps, dim).reshape(-1, 1)
    x = x.permute(*order).reshape(rows, width)
    if op.target == "centred_rms":
        x = x - x.mean(-1, keepdim=True).reshape(rows, 1)
        means = H.mid[entries] - H.mid[entries].mean(1, keepdim=True)
        centred = torch.empty_like(H.mid)
        centred[entries] = means
        # Taking means off makes no error longer; the sum of d entries and the difference round.
        H = Matrix(centred, up(H.error + gamma(width + 2) * 2 * frobenius_bound(Ball.exact(H.mid))) * ROOM)
    held = x.reshape(rows, 1, width)
    along_in, along_out = held @ Ball.exact(H.mid[entries]), held @ Ball.exact(G.mid.mT[entries])
    # Rows are apart, so an error grows by the longest of them at most.
    longest = float(row_norm_bounds(x).max())

    def combined(found: Ball, error: float) -> Matrix:
        spread = frobenius_bound(Ball.exact(found.rad))
        return Matrix(found.mid.reshape(rows, n), up(spread + error * longest) * ROOM)

    inputs, outputs = combined(along_in, H.error), combined(along_out, G.error)
    alpha, xi = len(H.mid) + torch.arange(rows), G.mid.shape[1] + torch.arange(rows)
    d = _number(float(width))
    inverse = inverse.reshape(-1)
    cube = -(inverse * inverse * inverse) / d
    fifth = inverse * inverse * inverse * inverse * inverse / (d * d) * 3.0  # definition: of the second derivative
    return Terms(
        _beside(G, Matrix(outputs.mid.mT, outputs.error)),
        _on_top(H, inputs),
        (
            Family(("tk", "t", "tk"), entries, alpha, entries, cube, 1),
            Family(("tk", "tk", "t"), entries, entries, alpha, cube, 2),
            Family(("t", "tk", "tk"), xi, entries, entries, cube, 0),
            Family(("t", "t", "t"), xi, alpha, alpha, fifth, 0),
        ),
    )


_FORMS: dict[type[AbstractNode], Callable[..., Terms]] = {
    Gated: _gated,
    Entrywise: _entrywise,
    Product: _product,
    Bilinear: _bilinear,
    WeightedSum: _weighted_sum,
    RowNorm: _row_norm,
}
