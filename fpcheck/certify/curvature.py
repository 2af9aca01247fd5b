r"""How the Jacobian changes over a ball: kappa(r), a bound on :math:`|L J(z) L^{-1}|_2` for all z with |z - c|_P <= r.

The step is a graph of nodes joined by linear maps. With, at the centre, :math:`H_l` the tangents of node l's inputs (in
the metric), :math:`G_l` the cotangents of its output and :math:`C_{lk}` how its inputs follow node k's output, the
Jacobian anywhere is exactly (Theorem Q1)

.. math:: J(z) - J = \sum_l G_l E_l(z) U_l(z), \qquad U_l(z) = U_l + \sum_{k<l} C_{lk} E_k(z) U_k(z),

where only :math:`E_l(z) = D\phi_l(u_l(z)) - D\phi_l(\hat u_l)` varies. The nodes bound its blocks from how far their
inputs move; the weighted Schur test (Theorem Q3) turns block bounds into :math:`E_l = R_l^{1/2} \tilde E_l C_l^{1/2}`
with :math:`|\tilde E_l|_2 \le 1`. So all nodes together need two norms, of the weighted G side by side and of the
weighted H on top of each other (Theorem Q5). The part that is linear in the state may be bounded by itself instead
(Theorem Q6, :mod:`~fpcheck.certify.middle`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.enclosure import Enclosure, push
from fpcheck.certify.metric import Metric
from fpcheck.certify.nodes import AbstractNode, Coupling, nodes_of
from fpcheck.certify.norms import frobenius_bound, gram_bound, norm_bound, row_norm_bounds
from fpcheck.certify.rounding import ROOM, TINY, gamma, inflate, root_up, up
from fpcheck.certify.tangents import Tangents

__all__ = [
    "Curvature",
    "FirstOrder",
    "Geometry",
    "Linearisation",
    "Matrix",
    "curvature",
    "geometry",
    "linearise",
    "link_shares",
]


@final
@dataclass(frozen=True, eq=False)
class Matrix:
    """All real matrices within Frobenius distance ``error`` of ``mid``."""

    mid: Tensor
    error: float


def stacked_norm(parts: list[tuple[Matrix, Tensor]]) -> float:
    """A proved bound on the 2-norm of matrices on top of each other, each with non-negative weights on its rows."""
    n = parts[0][0].mid.shape[1]
    total = torch.zeros((n, n), dtype=torch.float64)
    for M, w in parts:
        rows = M.mid * w.unsqueeze(-1)
        total += rows.mT @ rows
    count = sum(len(w) for _, w in parts)
    # Entries have one rounding each, their products one, and sums run over all rows: in moduli, at most the Frobenius
    # norm squared, which is the trace. What underflows moves a product by TINY.
    square = float(inflate(total.diagonal().sum(), count + n + len(parts) + 4))
    lost = up(TINY * count * n) * (2 + square)
    error = up(gamma(count + len(parts) + 4) * square) + lost
    errors = torch.tensor([M.error * float(w.max()) for M, w in parts], dtype=torch.float64)
    largest = gram_bound(Ball(total, torch.full_like(total, up(error / n) * ROOM)))
    return up(root_up(largest) + float(errors.norm()) * ROOM)


@final
@dataclass(frozen=True, eq=False)
class Linearisation:
    """A step's nodes at a centre, and the linear maps between them.

    Attributes:
        nodes: In order.
        U: By node and group, tangents of the inputs, ``(entries, n)``.
        G: By node, cotangents of the output, ``(n, entries)``.
        C: By node, group and earlier node, bounds on the Frobenius norms of the blocks of the map between them.
        links: The same maps themselves, ``(entries of the input, entries of the output)``, where they were kept.
    """

    nodes: list[AbstractNode]
    U: list[tuple[Matrix, ...]]
    G: list[Matrix]
    C: list[list[dict[int, Tensor]]]
    links: list[list[dict[int, Matrix]]] | None


@final
@dataclass(frozen=True, eq=False)
class Geometry:
    """A linearisation seen in a metric.

    Attributes:
        nodes: In order.
        H: By node and group, U L^-1.
        G: By node, L G.
        C: As in the linearisation.
        links: As in the linearisation.
        h: By node and group, bounds on the 2-norms of H's row blocks.
        g: By node, bounds on the 2-norms of G's column blocks.
    """

    nodes: list[AbstractNode]
    H: list[tuple[Matrix, ...]]
    G: list[Matrix]
    C: list[list[dict[int, Tensor]]]
    links: list[list[dict[int, Matrix]]] | None
    h: list[tuple[Tensor, ...]]
    g: list[Tensor]


def linearise(held: Enclosure, *, links: bool = False) -> Linearisation:
    """The maps from the state to each node, from each node to the result, and between nodes, with their rounding.

    Args:
        held: Values and tangents at the centre.
        links: Keep the maps between nodes, not only the norms of their blocks.

    Cost: one push of as many directions as each node has outputs; with links the memory of these maps.
    """
    graph, values = held.graph, held.values
    nodes = nodes_of(graph, values)
    U = [tuple(_inputs(node, g, held.forward.tangents) for g in range(len(node.groups))) for node in nodes]
    G = []
    for node in nodes:
        t = held.backward.tangents[node.index]
        G.append(Matrix(t.mid.reshape(t.shape[0], -1), t.error))
    C: list[list[dict[int, Tensor]]] = [[{} for _ in node.groups] for node in nodes]
    kept: list[list[dict[int, Matrix]]] = [[{} for _ in node.groups] for node in nodes]
    for k, node in enumerate(nodes[:-1]):
        out = values[node.index]
        size = out.mid.numel()
        columns = Tangents(torch.eye(size, dtype=torch.float64).reshape(size, *out.shape))
        passed = push(graph, values, columns, at=node.index)
        for later in range(k + 1, len(nodes)):
            for g in range(len(nodes[later].groups)):
                if passed.tangents[nodes[later].groups[g]] is not None:
                    moved = _inputs(nodes[later], g, passed.tangents)
                    C[later][g][k] = _block_norms(moved, nodes[later].blocks[g], node.out_blocks)
                    if links:
                        kept[later][g][k] = moved
    return Linearisation(nodes, U, G, C, kept if links else None)


def geometry(linear: Linearisation, metric: Metric, *, left: Tensor | None = None) -> Geometry:
    """The linearisation in a metric; with ``left``, of the map ``z - A (z - F(z))``, whose cotangents are A's."""
    H = [tuple(_in_metric(u, metric) for u in us) for us in linear.U]
    G = [_out_of_metric(g if left is None else _times(left, g), metric) for g in linear.G]
    blocks = [node.blocks for node in linear.nodes]
    h = [tuple(_row_block_norms(m, b) for m, b in zip(Hs, bs, strict=True)) for Hs, bs in zip(H, blocks, strict=True)]
    pairs = zip(G, linear.nodes, strict=True)
    g = [_row_block_norms(Matrix(m.mid.mT, m.error), node.out_blocks) for m, node in pairs]
    return Geometry(linear.nodes, H, G, linear.C, linear.links, h, g)


def _inputs(node: AbstractNode, group: int, tangents: list[Any]) -> Matrix:
    """Tangents of a group of inputs, ``(entries, directions)``, centred where the node says so."""
    t = tangents[node.groups[group]]
    weights = node.centring(group)
    if weights is not None:
        rows = t.reshape(t.shape[0], *weights.shape)
        t = rows - (rows * weights).sum(-1, keepdim=True).expand(*rows.shape)
    return Matrix(t.mid.reshape(t.shape[0], -1).mT, t.error)


def _in_metric(U: Matrix, metric: Metric) -> Matrix:
    """U L^-1, as U X: what X lacks of the inverse counts as error (Theorem R2)."""
    product = Ball.exact(U.mid) @ Ball.exact(metric.inverse)
    size = frobenius_bound(product)
    lacking = up(size * metric.defect) / (1 - metric.defect) * ROOM
    error = up(up(U.error * metric.inverse_norm) + up(_spread(product) + lacking))
    return Matrix(product.mid, error)


def _times(A: Tensor, G: Matrix) -> Matrix:
    product = Ball.exact(A) @ Ball.exact(G.mid)
    return Matrix(product.mid, up(up(G.error * norm_bound(Ball.exact(A))) + _spread(product)))


def _out_of_metric(G: Matrix, metric: Metric) -> Matrix:
    product = Ball.exact(metric.L) @ Ball.exact(G.mid)
    return Matrix(product.mid, up(up(G.error * metric.norm) + _spread(product)))


def _spread(ball: Ball) -> float:
    return frobenius_bound(Ball.exact(ball.rad))


def _pool(squares: Tensor, blocks: Tensor, dim: int) -> Tensor:
    shape = list(squares.shape)
    shape[dim] = int(blocks.max()) + 1
    return torch.zeros(shape, dtype=torch.float64).index_add_(dim, blocks, squares)


def _block_norms(M: Matrix, rows: Tensor, columns: Tensor) -> Tensor:
    """Bounds on the Frobenius norms of all blocks."""
    squares = _pool(_pool(M.mid * M.mid, rows, 0), columns, 1)
    return inflate(squares, M.mid.numel()).sqrt() * ROOM + M.error


def _row_block_norms(M: Matrix, rows: Tensor) -> Tensor:
    """Bounds on the 2-norms of the blocks of rows."""
    count = int(rows.max()) + 1
    if count == len(rows):
        return row_norm_bounds(Ball.exact(M.mid)) * ROOM + M.error
    order = torch.argsort(rows, stable=True).reshape(count, -1)
    return torch.tensor([norm_bound(Ball.exact(M.mid[index])) for index in order], dtype=torch.float64) * ROOM + M.error


@final
@dataclass(frozen=True, eq=False)
class FirstOrder:
    """The part of the Jacobian's change that is linear in the state, bounded for some nodes at once (Theorem Q6).

    Attributes:
        tau: Bound on the norm of that part's sum over the covered nodes, per unit of distance.
        covered: By node, whether it is in the sum.
    """

    tau: float
    covered: tuple[bool, ...]


@final
@dataclass(frozen=True, eq=False)
class Curvature:
    """kappa over a ball.

    Attributes:
        radius: The ball's, in the metric.
        kappa: Bound on the Jacobian's norm over it; infinite where a node refuses the ball.
        shares: By node, a part of kappa - Z1. The bound is for all nodes together; it is divided as the sizes of
            their terms are, which is a guide to what limits the ball, and no bound.
    """

    radius: float
    kappa: float
    shares: tuple[float, ...]


@final
@dataclass(frozen=True, eq=False)
class _Weights:
    """Schur sums of a node, by entry: ``E = R^1/2 E~ C^1/2`` with |E~|_2 <= 1, its groups of inputs side by side."""

    out: Tensor
    into: tuple[Tensor, ...]


def curvature(
    shape: Geometry,
    Z1: float,
    radius: float,
    *,
    first: FirstOrder | None = None,
    proved: bool = True,
    links: Tensor | None = None,
) -> Curvature:
    r"""Bound the Jacobian over the ball of a radius.

    Args:
        shape: The step's nodes in the metric.
        Z1: Bound on the Jacobian's norm at the centre.
        radius: Of the ball.
        first: A separate bound on the first-order part: then :math:`\kappa = Z_1 + \tau r + |G E B| + |G E_2 H|`.
        proved: False estimates the norms instead, for a search.
        links: For an estimate, what `link_shares` found at some radius, so that it need not be found again.

    Guarantee: bound, rounding included, if ``proved``.
    Source: Theorems Q1, Q3, Q5 and Q6.
    """
    if not shape.nodes:  # a linear step has the same Jacobian everywhere
        return Curvature(radius, Z1, ())
    found = _over_ball(shape, radius, first)
    if found is None:
        return Curvature(radius, math.inf, ())
    E, rest = found
    k = _links(shape, E, proved) if links is None or proved else _blockwise(shape, E) * links
    whole = _resolvent(k)
    sizes = _sizes(shape, E)
    change = _product(shape, E, whole, sizes, proved)
    if first is not None:
        eye = torch.eye(len(k), dtype=torch.float64)
        split = up(first.tau * radius) + _product(shape, E, whole - eye, sizes, proved)
        split += _product(shape, rest, eye, _sizes(shape, rest), proved)
        change = min(change, split * ROOM)
    weight = sizes[0] * (whole @ sizes[1])
    shares = change * weight / weight.sum().clamp_min(2.0**-1000)
    return Curvature(radius, (Z1 + change) * ROOM, tuple(shares.tolist()))


def link_shares(shape: Geometry, radius: float) -> Tensor | None:
    """By pair of nodes, about how much smaller the norm of the map between them is than its block bounds say."""
    found = _over_ball(shape, radius, None)
    if found is None or shape.links is None:
        return None
    tiny = 2.0**-500  # no division by 0
    return _links(shape, found[0], False) / (_blockwise(shape, found[0]) + tiny)


def _over_ball(
    shape: Geometry, radius: float, first: FirstOrder | None
) -> tuple[list[_Weights], list[_Weights]] | None:
    """By node the Schur sums of its Jacobian's change over a ball, and of that less its first-order part."""
    rho: list[Tensor] = []
    E: list[_Weights] = []
    rest: list[_Weights] = []
    for own, node in enumerate(shape.nodes):
        b = tuple(_bend(shape.C[own][g], rho, node.blocks[g]) for g in range(len(node.groups)))
        a = tuple((radius * h + bend) * ROOM for h, bend in zip(shape.h[own], b, strict=True))
        local = node.local(a, b)
        if local is None:
            return None
        rho.append(local.rho)
        E.append(_weights(shape, own, local.e))
        if first is not None:
            rest.append(_weights(shape, own, local.e2 if first.covered[own] else local.e))
    return E, rest


def _bend(C: dict[int, Tensor], rho: list[Tensor], blocks: Tensor) -> Tensor:
    total = torch.zeros(int(blocks.max()) + 1, dtype=torch.float64)
    for k, bounds in C.items():
        total = total + bounds @ rho[k]
    return total * ROOM


def _weights(shape: Geometry, own: int, couplings: tuple[Coupling, ...]) -> _Weights:
    node = shape.nodes[own]
    sums = [_schur(coupling, h, shape.g[own]) for coupling, h in zip(couplings, shape.h[own], strict=True)]
    out = torch.stack([s for s, _ in sums]).sum(0) * ROOM
    return _Weights(out[node.out_blocks], tuple(s[b] for (_, s), b in zip(sums, node.blocks, strict=True)))


def _schur(coupling: Coupling, h: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted row and column sums; any positive weights are sound, these balance both sides (Theorem Q3)."""
    # choice: no weight more than this far from the largest one, where a row or column is nearly 0.
    least = 1e-6
    tiny = 2.0**-500  # keeps the weights positive and finite where all are 0
    theta = (h[coupling.into] + (least * h.max() + tiny)) / (g[coupling.out] + (least * g.max() + tiny))
    out_sum = torch.zeros(len(g), dtype=torch.float64).index_add_(0, coupling.out, theta * coupling.bound)
    in_sum = torch.zeros(len(h), dtype=torch.float64).index_add_(0, coupling.into, coupling.bound / theta)
    return out_sum * ROOM, in_sum * ROOM


def _sizes(shape: Geometry, weights: list[_Weights]) -> tuple[Tensor, Tensor]:
    """By node, about the Frobenius norms of the weighted G and H: good for balancing nodes, and nothing rests on it."""
    left, right = [], []
    for own, (node, w) in enumerate(zip(shape.nodes, weights, strict=True)):
        left.append(float((shape.g[own][node.out_blocks] ** 2 @ w.out).sqrt()))
        right.append(
            math.sqrt(sum(float(h[b] ** 2 @ c) for h, b, c in zip(shape.h[own], node.blocks, w.into, strict=True)))
        )
    return torch.tensor(left, dtype=torch.float64), torch.tensor(right, dtype=torch.float64)


def _links(shape: Geometry, E: list[_Weights], proved: bool) -> Tensor:
    """By pair of nodes, bounds on ``|C_l^1/2 C_lk R_k^1/2|_2``."""
    k = _blockwise(shape, E)
    if shape.links is None:
        return k
    for own in range(len(E)):
        for earlier in range(own):
            maps = [(held.get(earlier), w) for held, w in zip(shape.links[own], E[own].into, strict=True)]
            parts = [(M, w.sqrt()) for M, w in maps if M is not None]
            if parts:
                size = _link(parts, E[earlier].out.sqrt(), proved)
                k[own, earlier] = torch.minimum(k[own, earlier], torch.tensor(size, dtype=torch.float64))
    return k


def _blockwise(shape: Geometry, E: list[_Weights]) -> Tensor:
    """The same from the norms of the maps' blocks."""
    count = len(E)
    k = torch.zeros((count, count), dtype=torch.float64)
    for own, node in enumerate(shape.nodes):
        for earlier in range(own):
            columns = _by_block(E[earlier].out, shape.nodes[earlier].out_blocks)
            squares = torch.zeros((), dtype=torch.float64)
            for g, into in enumerate(E[own].into):
                if earlier in shape.C[own][g]:
                    bounds = shape.C[own][g][earlier]
                    squares += _by_block(into, node.blocks[g]) @ (bounds * bounds) @ columns
            k[own, earlier] = squares.sqrt() * ROOM
    return k


def _by_block(entries: Tensor, blocks: Tensor) -> Tensor:
    """The value that all entries of a block share."""
    held = torch.zeros(int(blocks.max()) + 1, dtype=torch.float64)
    held[blocks] = entries
    return held


def _link(parts: list[tuple[Matrix, Tensor]], columns: Tensor, proved: bool) -> float:
    """The 2-norm of maps on top of each other, with weights on rows and columns."""
    if not proved:
        return _estimate(parts, columns)
    rows = Ball.cat([Ball.exact(M.mid) * Ball.exact(w.unsqueeze(-1) * ROOM) for M, w in parts])
    errors = torch.tensor([M.error * float(w.max()) for M, w in parts], dtype=torch.float64)
    largest = float(columns.max()) * ROOM
    return up(norm_bound(rows * Ball.exact(columns * ROOM), rough=True) + float(errors.norm()) * largest * ROOM)


def _resolvent(k: Tensor) -> Tensor:
    """An upper bound on ``(I - k)^-1 = I + k + k^2 + ...`` for k >= 0 strictly below the diagonal."""
    found = torch.eye(len(k), dtype=torch.float64)
    for own in range(1, len(k)):
        found[own] += k[own] @ found * ROOM
    return found


def _product(shape: Geometry, weights: list[_Weights], A: Tensor, sizes: tuple[Tensor, Tensor], proved: bool) -> float:
    r"""Bound on ``|G R^1/2 M C^1/2 H|_2`` for matrices M whose block (l, k) has a norm of at most ``A[l, k]``.

    Nodes are scaled against each other: ``|G R^1/2 s| |s^-1 A w| |w^-1 C^1/2 H|`` for positive s and w. With these the
    middle factor would be 1 and the product the sum over pairs of nodes, were the sizes exact (Theorem Q5).
    """
    left, right = sizes
    tiny = 2.0**-500  # keeps the scales positive and finite
    s = ((A @ right + tiny) / (left + tiny)).sqrt()
    w = ((right + tiny) / (A.mT @ left + tiny)).sqrt()
    middle = norm_bound(Ball.exact(A / s.unsqueeze(-1) * w * ROOM))
    G = [(Matrix(M.mid.mT, M.error), x.out.sqrt() * c * ROOM) for M, x, c in zip(shape.G, weights, s, strict=True)]
    H = [
        (M, into.sqrt() / c * ROOM)
        for Ms, x, c in zip(shape.H, weights, w, strict=True)
        for M, into in zip(Ms, x.into, strict=True)
    ]
    norm = stacked_norm if proved else _estimate
    return up(up(norm(G) * middle) * norm(H))


def _estimate(parts: list[tuple[Matrix, Tensor]], columns: Tensor | None = None) -> float:
    """About the norm of weighted matrices on top of each other, from below: for a search, never for a proof."""
    width = parts[0][0].mid.shape[1]
    c = torch.ones(width, dtype=torch.float64) if columns is None else columns
    squares = [w * w for _, w in parts]
    v = c / c.norm().clamp_min(2.0**-500)
    size = torch.zeros(())
    for _ in range(6):  # choice: enough for a search; what is claimed is proved
        images = [M.mid.mT @ (w * (M.mid @ (c * v))) for (M, _), w in zip(parts, squares, strict=True)]
        image = c * torch.stack(images).sum(0)
        size = image.norm()
        v = image / size.clamp_min(2.0**-500)
    return float(size.sqrt())
