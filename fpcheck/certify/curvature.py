r"""How the Jacobian changes over a ball: kappa(r), a bound on :math:`|L J(z) L^{-1}|_2` for all z with |z - c|_P <= r.

The step is a graph of nodes joined by linear maps. With, at the centre, :math:`H_l` the tangents of node l's inputs (in
the metric), :math:`G_l` the cotangents of its output and :math:`C_{lk}` how its inputs follow node k's output, the
Jacobian anywhere is exactly (Theorem Q1)

.. math:: J(z) - J = \sum_l G_l E_l(z) U_l(z), \qquad U_l(z) = U_l + \sum_{k<l} C_{lk} E_k(z) U_k(z),

where only :math:`E_l(z) = D\phi_l(u_l(z)) - D\phi_l(\hat u_l)` varies. The nodes bound its blocks from how far their
inputs move; the weighted Schur test (Theorem Q3) turns block bounds into norms of weighted matrices.
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
from fpcheck.certify.norms import frobenius_bound, norm_bound, row_norm_bounds
from fpcheck.certify.rounding import ROOM, inflate, up
from fpcheck.certify.tangents import Tangents

__all__ = ["Curvature", "Geometry", "Linearisation", "Matrix", "curvature", "geometry", "linearise"]


@final
@dataclass(frozen=True, eq=False)
class Matrix:
    """All real matrices within Frobenius distance ``error`` of ``mid``."""

    mid: Tensor
    error: float

    def weighted_norm(self, left: Tensor | None = None, right: Tensor | None = None) -> float:
        """A proved bound on ``|diag(left) M diag(right)|_2`` for non-negative weights."""
        ball, error = Ball.exact(self.mid), self.error
        if left is not None:
            ball = ball * Ball.exact(left.unsqueeze(-1))
            error = up(error * float(left.max()))
        if right is not None:
            ball = ball * Ball.exact(right)
            error = up(error * float(right.max()))
        return up(norm_bound(ball, rough=True) + error)


@final
@dataclass(frozen=True, eq=False)
class Linearisation:
    """A step's nodes at a centre, and the linear maps between them.

    Attributes:
        nodes: In order.
        U: By node and group, tangents of the inputs, ``(entries, n)``.
        G: By node, cotangents of the output, ``(n, entries)``.
        C: By node, group and earlier node, bounds on the Frobenius norms of the blocks of the map between them.
    """

    nodes: list[AbstractNode]
    U: list[tuple[Matrix, ...]]
    G: list[Matrix]
    C: list[list[dict[int, Tensor]]]


@final
@dataclass(frozen=True, eq=False)
class Geometry:
    """A linearisation seen in a metric.

    Attributes:
        nodes: In order.
        H: By node and group, U L^-1.
        G: By node, L G.
        C: As in the linearisation.
        h: By node and group, bounds on the 2-norms of H's row blocks.
        g: By node, bounds on the 2-norms of G's column blocks.
    """

    nodes: list[AbstractNode]
    H: list[tuple[Matrix, ...]]
    G: list[Matrix]
    C: list[list[dict[int, Tensor]]]
    h: list[tuple[Tensor, ...]]
    g: list[Tensor]


def linearise(held: Enclosure) -> Linearisation:
    """The maps from the state to each node, from each node to the result, and between nodes, with their rounding.

    Cost: one push of as many directions as each node has outputs.
    """
    graph, values = held.graph, held.values
    nodes = nodes_of(graph, values)
    U = [tuple(_inputs(node, g, held.forward.tangents) for g in range(len(node.groups))) for node in nodes]
    G = []
    for node in nodes:
        t = held.backward.tangents[node.index]
        G.append(Matrix(t.mid.reshape(t.shape[0], -1), t.error))
    C: list[list[dict[int, Tensor]]] = [[{} for _ in node.groups] for node in nodes]
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
    return Linearisation(nodes, U, G, C)


def geometry(linear: Linearisation, metric: Metric, *, left: Tensor | None = None) -> Geometry:
    """The linearisation in a metric; with ``left``, of the map ``z - A (z - F(z))``, whose cotangents are A's."""
    H = [tuple(_in_metric(u, metric) for u in us) for us in linear.U]
    G = [_out_of_metric(g if left is None else _times(left, g), metric) for g in linear.G]
    blocks = [node.blocks for node in linear.nodes]
    h = [tuple(_row_block_norms(m, b) for m, b in zip(Hs, bs, strict=True)) for Hs, bs in zip(H, blocks, strict=True)]
    pairs = zip(G, linear.nodes, strict=True)
    g = [_row_block_norms(Matrix(m.mid.mT, m.error), node.out_blocks) for m, node in pairs]
    return Geometry(linear.nodes, H, G, linear.C, h, g)


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
class Curvature:
    """kappa over a ball, by node.

    Attributes:
        radius: The ball's, in the metric.
        kappa: Bound on the Jacobian's norm over it; infinite where a node refuses the ball.
        shares: By node, its part of kappa - Z1.
    """

    radius: float
    kappa: float
    shares: tuple[float, ...]


def curvature(shape: Geometry, Z1: float, radius: float, *, proved: bool = True) -> Curvature:
    """Bound the Jacobian over the ball of a radius; ``proved=False`` estimates the norms instead, for a search."""
    rho: list[Tensor] = []
    weights: list[list[tuple[Tensor, Tensor]]] = []  # by node and group: Schur sums by output and by input block
    N: list[list[float]] = []
    shares = []
    for own_index, node in enumerate(shape.nodes):
        b = tuple(_bend(shape.C[own_index][g], rho, node.blocks[g]) for g in range(len(node.groups)))
        a = tuple((radius * h + bend) * ROOM for h, bend in zip(shape.h[own_index], b, strict=True))
        local = node.local(a, b)
        if local is None:
            return Curvature(radius, math.inf, ())
        rho.append(local.rho)
        sums = [_schur(coupling, shape.h[own_index][g], shape.g[own_index]) for g, coupling in enumerate(local.e)]
        weights.append(sums)
        own, share = [], 0.0
        for g, (out_sum, in_sum) in enumerate(sums):
            size = _weighted(shape.H[own_index][g], in_sum.sqrt()[node.blocks[g]], None, proved)
            for k, blocks in shape.C[own_index][g].items():
                for (earlier, _), earlier_size in zip(weights[k], N[k], strict=True):
                    squares = in_sum @ (blocks * blocks) @ earlier
                    size += float(squares.sqrt()) * earlier_size * ROOM
            own.append(size * ROOM)
            share += _weighted(shape.G[own_index], None, out_sum.sqrt()[node.out_blocks], proved) * own[-1] * ROOM
        N.append(own)
        shares.append(share)
    return Curvature(radius, (Z1 + sum(shares)) * ROOM, tuple(shares))


def _bend(C: dict[int, Tensor], rho: list[Tensor], blocks: Tensor) -> Tensor:
    total = torch.zeros(int(blocks.max()) + 1, dtype=torch.float64)
    for k, bounds in C.items():
        total = total + bounds @ rho[k]
    return total * ROOM


def _schur(coupling: Coupling, h: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted row and column sums; any positive weights are sound, these balance both sides (Theorem Q3)."""
    tiny = 1e-150  # choice: keeps the weights positive and finite
    theta = (h[coupling.into] + tiny) / (g[coupling.out] + tiny)
    out_sum = torch.zeros(len(g), dtype=torch.float64).index_add_(0, coupling.out, theta * coupling.bound)
    in_sum = torch.zeros(len(h), dtype=torch.float64).index_add_(0, coupling.into, coupling.bound / theta)
    return out_sum * ROOM, in_sum * ROOM


def _weighted(M: Matrix, left: Tensor | None, right: Tensor | None, proved: bool) -> float:
    left = None if left is None else left * ROOM
    right = None if right is None else right * ROOM
    if proved:
        return M.weighted_norm(left, right)
    scaled = M.mid if left is None else M.mid * left.unsqueeze(-1)
    scaled = scaled if right is None else scaled * right
    v = torch.ones(scaled.shape[1], dtype=torch.float64) / math.sqrt(scaled.shape[1])
    size = torch.zeros(())
    for _ in range(12):  # choice: enough for a search; the last evaluation is proved
        w = scaled.mT @ (scaled @ v)
        size = w.norm()
        v = w / size.clamp_min(1e-300)  # choice: no division by 0
    return float(size.sqrt())
