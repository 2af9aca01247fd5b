r"""How far each kind of node can bend over a ball: local bounds, block by block.

A node is a function y = phi(u) of one or two groups of inputs. Its entries fall into blocks (rows of a norm, single
scores, rows of values, single channels). From bounds a on how far each input block moves, and b on the part of that
which is not linear in the state, a node gives

* ``e``: bounds on the blocks of the change of its Jacobian, :math:`D\phi(u) - D\phi(\hat u)`;
* ``e2``: the same less the part that is linear in the state;
* ``rho``: bounds on the blocks of :math:`\phi(u) - \phi(\hat u) - D\phi(\hat u)(u - \hat u)`.

All of them grow with a and b, and ``e(s a) <= s e(a)`` for s in [0, 1].

Every figure is computed in float64 from non-negative numbers by some hundreds of roundings at most, and then enlarged
by a factor that makes up for 2^22 of them.

Symbols: as in Theorems N5, A5, A7, C10, C11. Shapes: bounds ``(blocks,)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import flint
import torch
from flint import arb
from torch import Tensor

from fpcheck import constants as c
from fpcheck.certify.balls import Ball
from fpcheck.certify.functions import FUNCTIONS, GELU_TANH, Function
from fpcheck.certify.norms import row_norm_bounds
from fpcheck.certify.operators import _RowNorm, _WeightedSum
from fpcheck.certify.rounding import ROOM
from fpcheck.certify.trace import Graph, Op, Ref
from fpcheck.errors import NonFiniteError, UnsupportedOperatorError

__all__ = ["AbstractNode", "Coupling", "Local", "nodes_of"]

# choice: bits of the derivatives' evaluation; the result is rounded to 53, so a few more suffice.
_BITS = 80
_CURVES = {
    "silu": (c.SILU_SLOPE_MAX, c.SILU_SECOND, c.SILU_THIRD),
    "gelu": (c.GELU_ERF_SLOPE_MAX, c.GELU_ERF_SECOND, c.GELU_ERF_THIRD),
    "gelu_tanh": (c.GELU_TANH_SLOPE_MAX, c.GELU_TANH_SECOND, c.GELU_TANH_THIRD),
    "sigmoid": (c.SIGMOID_SLOPE, c.SIGMOID_SECOND, c.SIGMOID_THIRD),
    "tanh": (1.0, c.TANH_SECOND, c.TANH_THIRD),
}
"""Bounds on the first three derivatives over the whole line (Theorems C1, C2, C3, C5, C6, C7)."""


@final
@dataclass(frozen=True, eq=False)
class Coupling:
    """Bounds on the blocks of a sparse matrix: ``bound[p]`` on block (``out[p]``, ``into[p]``)."""

    out: Tensor
    into: Tensor
    bound: Tensor


@final
@dataclass(frozen=True, eq=False)
class Local:
    """What a node says about a ball: couplings by group of inputs, and ``rho`` by output block."""

    e: tuple[Coupling, ...]
    e2: tuple[Coupling, ...]
    rho: Tensor


class AbstractNode(ABC):
    """One nonlinear operator of a graph, at a centre.

    Attributes:
        index: Its operator.
        groups: The operators whose results it takes, one by group.
        name: For messages and figures.
        where: The user's line.
    """

    index: int
    groups: tuple[int, ...]
    name: str
    where: str

    @property
    @abstractmethod
    def blocks(self) -> tuple[Tensor, ...]:
        """For each group the block of every entry, flat."""

    @property
    @abstractmethod
    def out_blocks(self) -> Tensor:
        """The block of every output entry, flat."""

    def centring(self, group: int) -> Ball | None:
        """Weights p of a group whose rows are centred, ``x - sum p x``, ``(rows, entries)``; None for none."""
        return None

    @abstractmethod
    def local(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Local | None:
        """Bounds over the ball, or None where the movement leaves the domain of the bounds."""


def nodes_of(graph: Graph, values: list[Any]) -> list[AbstractNode]:
    """The nonlinear operators of a fused graph, in order.

    Raises:
        UnsupportedOperatorError: One without a curvature bound.
    """
    varying = graph.varying()
    found: list[AbstractNode] = []
    for i, op in enumerate(graph.ops):
        if varying[i]:
            node = _node(graph, values, i, op, varying)
            if node is not None:
                found.append(node)
    return found


def _node(graph: Graph, values: list[Any], i: int, op: Op, varying: tuple[bool, ...]) -> AbstractNode | None:
    name = op.target.partition(".")[0]
    moving = [a.index for a in op.args if isinstance(a, Ref) and varying[a.index]]
    if name in ("rms", "centred_rms"):
        return RowNorm(i, op, values)
    if name == "weighted_sum":
        return WeightedSum(i, op, values, varying)
    factors = op.args[1:3] if name in ("addmm", "baddbmm") else op.args[:2]
    both = len(factors) == 2 and all(isinstance(a, Ref) and varying[a.index] for a in factors)
    if name in ("bmm", "mm", "addmm", "baddbmm") and both:
        return Bilinear(i, op, values)
    if name == "gated":
        return Gated(i, op, values)
    if name == "mul" and len(moving) == 2:
        return Product(i, op, values)
    if name in _CURVES:
        return Entrywise(i, op, values)
    if name in ("relu", "abs", "clamp", "clamp_min", "clamp_max"):
        return Kinked(i, op, values)
    if op.target in _SMOOTH:
        return Smooth(i, op, values)
    if name in _LINEAR or (name in ("mul", "bmm", "mm", "addmm", "baddbmm") and not both):
        return None
    if name == "div" and not (isinstance(op.args[1], Ref) and varying[op.args[1].index]):
        return None
    raise _no_curvature(op)


_LINEAR = frozenset(
    {
        "input", "item", "add", "sub", "rsub", "neg", "mean", "sum", "convolution", "masked_fill", "where",
        "constant_pad_nd", "_to_copy", "view", "_unsafe_view", "reshape", "transpose", "t", "permute", "expand",
        "squeeze", "unsqueeze", "slice", "select", "cat", "stack", "unbind", "split", "clone", "alias", "detach",
        "view_copy", "transpose_copy", "permute_copy", "expand_copy", "squeeze_copy", "unsqueeze_copy", "slice_copy",
        "select_copy", "unbind_copy", "split_copy", "alias_copy", "t_copy", "flip", "roll", "lift_fresh_copy",
        "split_with_sizes", "split_with_sizes_copy", "index_select", "select_scatter", "slice_scatter", "copy",
    }
)  # fmt: skip


def _no_curvature(op: Op) -> UnsupportedOperatorError:
    where = f" at {op.where}" if op.where else ""
    return UnsupportedOperatorError(
        f"operator={op.target}{where} has a value and a Jacobian, but no bound on how it bends over a ball"
    )


def _diagonal(bound: Tensor) -> Coupling:
    entries = torch.arange(len(bound))
    return Coupling(entries, entries, bound * ROOM)


@final
class RowNorm(AbstractNode):
    """RMSNorm, or a layer norm without gain, over one dimension (Theorem N5)."""

    def __init__(self, index: int, op: Op, values: list[Any]) -> None:
        x, eps, dim = op.args
        self.index, self.groups, self.name, self.where = index, (x.index,), op.target, op.where
        centre = values[x.index]
        inverse = _RowNorm.inverse_root(op.target, centre, eps, dim)
        self.root = inverse.reciprocal().lower().flatten().clamp_min(0)
        self.width = centre.shape[dim]
        rows = torch.arange(self.root.numel()).reshape(inverse.shape)
        self._rows = rows.expand(centre.shape).flatten()

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """One block a row."""
        return (self._rows,)

    @property
    def out_blocks(self) -> Tensor:
        """One block a row."""
        return self._rows

    def local(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Local | None:
        """Theorem N5."""
        (move,), (bend,) = a, b
        d = float(self.width)
        # Rounded down: the movement over the root of d, enlarged, is taken off.
        least = (self.root - move / math.sqrt(d) * ROOM) * (2 - ROOM)
        if not bool((least > 0).all()):
            return None
        root, second = self.root, c.RMS_SECOND / math.sqrt(d) * ROOM
        e = second * move / (root * least)
        e2 = second * bend / root**2 + c.RMS_THIRD * move**2 / (2 * d * root**2 * least)
        return Local((_diagonal(e),), (_diagonal(e2),), second * move**2 / (2 * root * least) * ROOM)


@final
class Bilinear(AbstractNode):
    """A product of two varying matrices, ``(*batch, i, k)`` by ``(*batch, k, j)``: rows times columns (Theorem A7).

    In the form ``beta c + alpha a b`` too, of which the first part is linear.
    """

    def __init__(self, index: int, op: Op, values: list[Any]) -> None:
        first, second = op.args[-2:]
        self._scale = abs(float(op.kwargs.get("alpha", 1)))
        self.index, self.groups, self.name, self.where = index, (first.index, second.index), "product", op.where
        a, b = values[first.index], values[second.index]
        (rows, inner), columns = a.shape[-2:], b.shape[-1]
        batch = math.prod(a.shape[:-2])
        self._left = torch.arange(batch * rows).reshape(batch, rows, 1).expand(batch, rows, inner).flatten()
        self._right = torch.arange(batch * columns).reshape(batch, 1, columns).expand(batch, inner, columns).flatten()
        self._count = batch * rows * columns
        pair = torch.arange(self._count).reshape(batch, rows, columns)
        self._row = torch.arange(batch * rows).reshape(batch, rows, 1).expand_as(pair).flatten()
        self._column = torch.arange(batch * columns).reshape(batch, 1, columns).expand_as(pair).flatten()

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """Rows of the first matrix, columns of the second."""
        return self._left, self._right

    @property
    def out_blocks(self) -> Tensor:
        """Single entries."""
        return torch.arange(self._count)

    def local(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Local | None:
        """Theorem A7: the derivative in a row is the other's column, and the other way round."""
        out = torch.arange(self._count)

        def couplings(left: Tensor, right: Tensor) -> tuple[Coupling, ...]:
            return (
                Coupling(out, self._row, self._scale * right[self._column] * ROOM),
                Coupling(out, self._column, self._scale * left[self._row] * ROOM),
            )

        return Local(couplings(*a), couplings(*b), self._scale * a[0][self._row] * a[1][self._column] * ROOM)


@final
class WeightedSum(AbstractNode):
    """Softmax-weighted values, with centred scores (Theorem A5). Groups: scores, values."""

    def __init__(self, index: int, op: Op, values: list[Any], varying: tuple[bool, ...]) -> None:
        scores, held = op.args
        self.index, self.groups, self.name, self.where = index, (scores.index, held.index), "softmax", op.where
        # Fixed values do not move; then scores are the only group.
        self.groups = self.groups if varying[held.index] else self.groups[:1]
        s, v = values[scores.index], values[held.index]
        p = _WeightedSum.weights(s, op.kwargs["safe"])
        keys, width = v.shape[-2:]
        batch = math.prod(v.shape[:-2])
        rows = p.mid.numel() // (batch * keys)
        self._p = p.reshape(batch * rows, keys)
        self.p = self._p.upper().clamp_min(0)
        o = values[index].reshape(batch, rows, 1, width)
        gap = v.reshape(batch, 1, keys, width) - o
        self.w = row_norm_bounds(gap).reshape(batch * rows, keys)
        self._rows, self._keys, self._width = batch * rows, keys, width
        pair = torch.arange(batch * rows * keys)
        self._query = pair // keys
        self._value = (pair // (rows * keys)) * keys + pair % keys
        self._present = (s.mid != -math.inf).reshape(batch * rows, keys)

    def centring(self, group: int) -> Ball | None:
        """Scores are taken less their mean under the centre's weights; softmax does not see the difference."""
        return self._p if group == 0 else None

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """Single scores; rows of values."""
        values = torch.arange(int(self._value.max()) + 1).repeat_interleave(self._width)
        return (torch.arange(self._rows * self._keys), values)[: len(self.groups)]

    @property
    def out_blocks(self) -> Tensor:
        """One block a query."""
        return torch.arange(self._rows).repeat_interleave(self._width)

    def local(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Local | None:
        """Theorem A5, with eta left out (it would need the node's own row of tangents)."""
        shape = (self._rows, self._keys)
        move, bend = (torch.where(self._present, x.reshape(shape), 0.0) for x in (a[0], b[0]))
        still = torch.zeros(shape, dtype=torch.float64)
        nu, beta = (x[1][self._value].reshape(shape) if len(x) > 1 else still for x in (a, b))
        if not float(move.max()) < 5.0:  # choice: beyond, the bounds are far from useful
            return None
        p, w = self.p, self.w
        above = (Ball.exact(move).exp() - 1.0).upper().clamp_min(0)
        bent = (Ball.exact(move).exp() - 1.0 - Ball.exact(move)).upper().clamp_min(0)
        total = (p * bent).sum(-1, keepdim=True) * ROOM
        lift = (Ball.exact(total) + 1.0).log().upper().clamp_min(0)
        below = (1.0 + -(-(Ball.exact(move) + Ball.exact(lift.expand(shape)))).exp()).upper().clamp_min(0)
        delta = p * torch.maximum(above, below) * ROOM
        delta2 = p * torch.maximum(bent, lift) * ROOM

        def over(x: Tensor) -> Tensor:
            return x.sum(-1, keepdim=True) * ROOM

        bent_out = over(delta * nu + (delta2 + p * bend) * w + p * beta)
        out = over((p + delta) * nu + delta * w)
        on_scores = delta * w + (p + delta) * (nu + out)
        on_scores2 = (delta2 + p * bend) * w + p * (beta + bent_out) + delta * (nu + out)
        on_values2 = delta2 + p * bend
        keep = self._present

        def coupling(bound: Tensor, into: Tensor) -> Coupling:
            return Coupling(self._query, into, torch.where(keep, bound, 0.0).flatten() * ROOM)

        scores = torch.arange(self._rows * self._keys)
        e = (coupling(on_scores, scores), coupling(delta, self._value))
        e2 = (coupling(on_scores2, scores), coupling(on_values2, self._value))
        groups = len(self.groups)
        return Local(e[:groups], e2[:groups], over(delta * nu + delta2 * w).flatten())


class _Separate(AbstractNode):
    """A node that works entry by entry: every entry of an input or of the result is a block."""

    _entries: Tensor

    @property
    def blocks(self) -> tuple[Tensor, ...]:
        """Single entries."""
        return (self._entries,) * len(self.groups)

    @property
    def out_blocks(self) -> Tensor:
        """Single entries."""
        return self._entries


@final
class Product(_Separate):
    """g u, entry by entry, both varying: the bilinear form of one entry (Theorem A7)."""

    def __init__(self, index: int, op: Op, values: list[Any]) -> None:
        first, second = op.args
        self.index, self.groups, self.name, self.where = index, (first.index, second.index), "product", op.where
        if not values[first.index].shape == values[second.index].shape:
            raise UnsupportedOperatorError(f"product at {op.where} broadcasts one varying tensor over another")
        self._entries = torch.arange(values[index].mid.numel())

    def local(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Local | None:
        """The derivative in one factor is the other."""
        return Local((_diagonal(a[1]), _diagonal(a[0])), (_diagonal(b[1]), _diagonal(b[0])), a[0] * a[1] * ROOM)


def _function(name: str) -> Function:
    return GELU_TANH if name == "gelu_tanh" else FUNCTIONS[name]


@final
class Gated(_Separate):
    """f(g) u, entry by entry (Theorems C10, C11)."""

    def __init__(self, index: int, op: Op, values: list[Any]) -> None:
        g, u = op.args
        self.index, self.groups, self.name, self.where = index, (g.index, u.index), "gate", op.where
        form = op.kwargs["function"]
        held = _function(form)
        assert held.curve is not None
        centre = values[g.index].reshape(-1)
        self.d1, self.d2 = centre.map(held.slope).magnitude(), centre.map(held.curve).magnitude()
        self.u = values[u.index].reshape(-1).magnitude()
        self.bounds = _CURVES[form]
        self._entries = torch.arange(self.u.numel())

    def local(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Local | None:
        """Theorem C10 (SwiGLU) and C11 (gates), with the function's own constants."""
        (a_g, a_u), (b_g, b_u), (top, second, third) = a, b, self.bounds
        d1, d2, u = self.d1, self.d2, self.u
        curve = (d2 + third * a_g).clamp_max(second) * ROOM
        steep = (d1 + curve * a_g).clamp_max(top) * ROOM
        e_g = steep * a_u + curve * u * a_g
        e_u = torch.minimum(d1 * a_g + curve * a_g**2 / 2, steep * a_g)
        e2_g = d1 * b_u + curve * a_g * a_u + u * (third / 2 * a_g**2 + d2 * b_g)
        e2_u = curve * a_g**2 / 2 + d1 * b_g
        rho = (e_g * a_g + e_u * a_u) / 2 * ROOM
        return Local((_diagonal(e_g), _diagonal(e_u)), (_diagonal(e2_g), _diagonal(e2_u)), rho)


@final
class Entrywise(_Separate):
    """f(x), entry by entry, for f with three bounded derivatives."""

    def __init__(self, index: int, op: Op, values: list[Any]) -> None:
        (x, *more), form = op.args, op.target.partition(".")[0]
        if form == "gelu" and "tanh" in (op.kwargs.get("approximate"), *more):
            form = "gelu_tanh"
        self.index, self.groups, self.name, self.where = index, (x.index,), form, op.where
        held = _function(form)
        assert held.curve is not None
        self.d2 = values[x.index].reshape(-1).map(held.curve).magnitude()
        self.bounds = _CURVES[form]
        self._entries = torch.arange(self.d2.numel())

    def local(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Local | None:
        """Mean values: |f'(x + t) - f'(x)| is at most min(|f''| + sup |f'''| a, sup |f''|) a."""
        (move,), (bend,), (_, second, third) = a, b, self.bounds
        curve = (self.d2 + third * move).clamp_max(second) * ROOM
        e2 = self.d2 * bend + third * move**2 / 2
        return Local((_diagonal(curve * move),), (_diagonal(e2),), curve * move**2 / 2 * ROOM)


@final
class Kinked(_Separate):
    """Straight pieces, entry by entry (ReLU, modulus, clamp): no bend, but for entries that may reach a kink.

    There the slope may change by the largest difference of two slopes (Theorem C8).
    """

    def __init__(self, index: int, op: Op, values: list[Any]) -> None:
        x, *more = op.args
        name = op.target.partition(".")[0]
        self.index, self.groups, self.name, self.where = index, (x.index,), name, op.where
        kinks = [float(k) for k in more if k is not None] if name.startswith("clamp") else [0.0]
        self.jump = 2.0 if name == "abs" else 1.0
        centre = values[x.index].reshape(-1)
        # Distance of the whole ball from the nearest kink.
        gaps = [torch.maximum((centre - k).lower(), -(centre - k).upper()) for k in kinks]
        self.gap = torch.stack(gaps).amin(0).clamp_min(0)
        self._entries = torch.arange(self.gap.numel())

    def local(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Local | None:
        """Where no kink is within reach nothing changes; elsewhere the slope by the jump, the value by jump times a."""
        (move,) = a
        reached = self.jump * (~(move * ROOM < self.gap)).double()
        return Local((_diagonal(reached),), (_diagonal(reached),), reached * move * ROOM)


Bend = Callable[..., tuple[arb, arb]]
"""Bounds on the moduli of the second and third derivative over a ball; not finite where f may not be defined."""


def _power_bends(x: arb, exponent: float) -> tuple[arb, arb]:
    """Of x^e: e (e - 1) x^(e - 2), and e (e - 1)(e - 2) x^(e - 3)."""
    whole = float(exponent).is_integer()
    if not (x > 0 or (whole and (exponent >= 0 or not x.contains(0)))):
        return arb.nan(), arb.nan()
    e = arb(exponent)
    second = abs(e * (e - 1))
    return (
        arb(0) if exponent in (0, 1) else second * _power_size(x, exponent - 2),
        arb(0) if exponent in (0, 1, 2) else second * abs(e - 2) * _power_size(x, exponent - 2 - 1),
    )


def _power_size(x: arb, exponent: float) -> arb:
    """|x|^exponent is largest at the end of the ball that is farthest from 0, or nearest to it."""
    end = x.abs_upper() if exponent >= 0 else x.abs_lower()
    return arb(1) if exponent == 0 else end ** arb(exponent)


def _log_bends(x: arb) -> tuple[arb, arb]:
    return (_power_size(x, -2), 2 * _power_size(x, -2 - 1)) if x > 0 else (arb.nan(), arb.nan())


def _erf_bends(x: arb) -> tuple[arb, arb]:
    slope = 2 * (-x * x).exp() / arb.pi().sqrt()
    return abs(2 * x * slope), abs((2 * x * (2 * x) - 2) * slope)


_SMOOTH: dict[str, Bend] = {
    "exp.default": lambda x: (x.exp(), x.exp()),
    "expm1.default": lambda x: (x.exp(), x.exp()),
    "log.default": _log_bends,
    "log1p.default": lambda x: _log_bends(1 + x),
    "sin.default": lambda x: (abs(x.sin()), abs(x.cos())),
    "cos.default": lambda x: (abs(x.cos()), abs(x.sin())),
    "erf.default": _erf_bends,
    "sqrt.default": lambda x: _power_bends(x, 0.5),
    "rsqrt.default": lambda x: _power_bends(x, -0.5),
    "reciprocal.default": lambda x: _power_bends(x, -1.0),
    "square.default": lambda x: _power_bends(x, 2.0),
    "pow.Tensor_Scalar": _power_bends,
}


@final
class Smooth(_Separate):
    """f(x), entry by entry, with the derivatives enclosed over the very intervals that the entries may reach.

    For functions without bounds on the whole line, or none that are of use (Theorem C12).
    """

    def __init__(self, index: int, op: Op, values: list[Any]) -> None:
        x, *more = op.args
        name = op.target.partition(".")[0]
        self.index, self.groups, self.name, self.where = index, (x.index,), name, op.where
        self._bends, self._more = _SMOOTH[op.target], tuple(more)
        self._centre = values[x.index].reshape(-1)
        self._entries = torch.arange(self._centre.mid.numel())
        held = self._derivatives(torch.zeros(self._entries.numel(), dtype=torch.float64))
        if held is None:
            raise NonFiniteError(f"{name} at {op.where} has no finite second derivative at the centre")
        self.d2 = held[0]

    def _derivatives(self, move: Tensor) -> tuple[Tensor, Tensor] | None:
        """Bounds on the second and third derivative within ``move`` of the centre; None where f may not be defined."""
        reach = (self._centre.rad + move) * ROOM
        if not bool(reach.isfinite().all() and self._centre.mid.isfinite().all()):
            return None
        seconds, thirds = [], []
        with flint.ctx.workprec(_BITS):
            for m, r in zip(self._centre.mid.tolist(), reach.tolist(), strict=True):
                bends = self._bends(arb(m, r), *self._more)
                if not all(v.is_finite() for v in bends):
                    return None
                found = [math.nextafter(float(v.abs_upper()), math.inf) for v in bends]
                seconds.append(found[0])
                thirds.append(found[1])
        second, third = (torch.tensor(v, dtype=torch.float64) for v in (seconds, thirds))
        return (second, third) if bool(second.isfinite().all() and third.isfinite().all()) else None

    def local(self, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Local | None:
        """Theorem C12."""
        (move,), (bend,) = a, b
        held = self._derivatives(move)
        if held is None:
            return None
        second, third = held
        e2 = self.d2 * bend + third * move**2 / 2
        return Local((_diagonal(second * move),), (_diagonal(e2),), second * move**2 / 2 * ROOM)
