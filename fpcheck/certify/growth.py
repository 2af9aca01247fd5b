r"""How large a loop step's result can be, for all states at once: an affine bound, operator by operator.

Every result is read as :math:`y(z) = A z + n(z)`. The linear part A is carried exactly, along the path that hands the
state on; of the rest, each block of entries has a bound :math:`|n_b(z)| \le s_b N(z) + c_b` that holds for all states
z, where N is a norm of the state. A norm layer has :math:`s = 0` and :math:`c = \sqrt d` per row, a softmax-weighted
sum is at most as long as the longest row of values, a gate multiplies by at most what bounds it (Theorem F7).

Only operators that are continuous, and defined for all states, have a rule: so the step is a continuous map.

Every figure is computed in float64 from non-negative numbers by some thousands of roundings at most, and then enlarged
by a factor that makes up for 2^22 of them.

Shapes: as the operators' results; bounds ``(blocks,)``. A block is a set of entries that share a number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, final

import flint
import torch
from flint import arb
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.enclosure import _index_maps, _leaves, _move_tangents, _resolve, _rounded, _unsupported, _value
from fpcheck.certify.functions import FUNCTIONS, power
from fpcheck.certify.norms import norm_bound, quick_norm_bound, row_norm_bounds
from fpcheck.certify.operators import MOVERS, _padded, _Reduction, _Sum, rule_for
from fpcheck.certify.reals import Reals, working_precision
from fpcheck.certify.rounding import ROOM, TINY, root_up, up
from fpcheck.certify.tangents import Tangents
from fpcheck.certify.trace import Graph, Op

__all__ = ["AbstractMeasure", "Euclidean", "Growth", "LongestToken", "growth", "whole"]


class AbstractMeasure(ABC):
    """A norm N of a state ``(1, *state)``, in which growth is measured."""

    @abstractmethod
    def length(self, state: Ball) -> float:
        """An upper bound on N of a state."""

    @abstractmethod
    def stretch(self, A: Ball) -> float:
        """A bound g with ``|A z|_2 <= g N(z)``, for a matrix ``(rows, n)``."""

    @abstractmethod
    def euclidean(self, n: int) -> float:
        """A bound g with ``|z|_2 <= g N(z)``."""


@final
@dataclass(frozen=True)
class Euclidean(AbstractMeasure):
    """The Euclidean norm of all entries."""

    def length(self, state: Ball) -> float:  # noqa: D102 (inherited)
        return float(row_norm_bounds(state.reshape(1, -1)).max())

    def stretch(self, A: Ball) -> float:  # noqa: D102 (inherited)
        return norm_bound(A)

    def euclidean(self, n: int) -> float:  # noqa: D102 (inherited)
        return 1.0


@final
@dataclass(frozen=True)
class LongestToken(AbstractMeasure):
    r""":math:`\max_t |z_t|_2`, the largest Euclidean length of a token: a row of the last dimension.

    Attributes:
        width: Entries of a token.
    """

    width: int

    def length(self, state: Ball) -> float:  # noqa: D102 (inherited)
        return float(row_norm_bounds(state.reshape(-1, self.width)).max())

    def stretch(self, A: Ball) -> float:  # noqa: D102 (inherited)
        pieces = (A[:, start : start + self.width] for start in range(0, A.shape[1], self.width))
        sizes = [norm_bound(piece) for piece in pieces if bool((piece.mid != 0).any() or (piece.rad != 0).any())]
        total = 0.0
        for size in sizes:
            total = up(total + size)
        # The k tokens that matter have together at most the root of k times the length of the longest.
        return min(total, up(norm_bound(A) * root_up(len(sizes)))) if len(sizes) > 1 else total

    def euclidean(self, n: int) -> float:  # noqa: D102 (inherited)
        return root_up(n / self.width)


@final
@dataclass(frozen=True, eq=False)
class Growth:
    """What is known of one result ``y(z) = A z + n(z)``, for all states.

    Attributes:
        linear: A, one entry per direction of the state in front; None for 0.
        block: The block of every entry of n.
        slope: By block, s of ``|n_b(z)|_2 <= s N(z) + c``.
        const: By block, c.
        total: The same two numbers for all entries together.
        low: Below every entry of y.
        high: Above every entry of y.
        entry: Bounds on the modulus of each entry of n, shaped as it, where these are better than the blocks'.
    """

    linear: Tangents | None
    block: Tensor
    slope: Tensor
    const: Tensor
    total: tuple[float, float]
    low: float = -math.inf
    high: float = math.inf
    entry: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """Shape of y."""
        return self.block.shape

    @property
    def sup(self) -> float:
        """A bound on the modulus of every entry of y, from their range."""
        return max(abs(self.low), abs(self.high))


def growth(graph: Graph, measure: AbstractMeasure) -> Growth:
    """Bound the result of a fused graph for all states.

    Args:
        graph: A loop step, recorded and fused.
        measure: The norm of the state.

    Raises:
        UnsupportedOperatorError: An operator that is not known to be continuous and defined for all states, or one
            without a rule.

    Guarantee: bound, rounding included.
    Cost: the state's tangents through the linear operators on its path, and a norm of each weight matrix.
    Source: Theorem F7.
    """
    return _Calculus(graph, measure).run()


def whole(g: Growth, measure: AbstractMeasure) -> Growth:
    """The same with A counted among the rest, row by row of the last dimension.

    Guarantee: bound, rounding included.
    """
    if g.linear is None:
        return g
    n = g.linear.shape[0]
    A, spread = Ball.exact(g.linear.mid.reshape(n, -1).mT), up(g.linear.error * measure.euclidean(n))
    width = g.shape[-1] if g.block.ndim else 1
    pieces = [measure.stretch(A[i : i + width]) for i in range(0, A.shape[0], width)]
    slope, const = _by_rows(g)
    slope = (slope + torch.tensor(pieces, dtype=torch.float64) + spread) * ROOM
    total = up(g.total[0] + up(up(norm_bound(A) * measure.euclidean(n)) + spread))
    return _made(_row_numbers(g.shape), slope, const, (total, g.total[1]), low=g.low, high=g.high)


# Functions with |f(y)| <= |y|, which therefore keep every bound.
_BELOW = frozenset({"silu", "gelu", "relu", "tanh", "sin", "abs"})
# Ranges of functions that are bounded on the whole line.
_RANGES = {
    "tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "erf": (-1.0, 1.0), "sin": (-1.0, 1.0), "cos": (-1.0, 1.0),
}  # fmt: skip
# Continuous where they are finite: their range over a bounded one, or over one that stays away from their pole.
_ENTRYWISE = (*_BELOW, *_RANGES, "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "square", "pow")
_CLAMPS = ("clamp", "clamp_min", "clamp_max")


class _Calculus:
    def __init__(self, graph: Graph, measure: AbstractMeasure) -> None:
        self.graph, self.measure = graph, measure
        self.varying = graph.varying()
        self.fixed = _fixed_values(graph, self.varying)

    def run(self) -> Growth:
        # What depends on the state has zeros as its value: rules of linear operators look at shapes alone there.
        found: list[Any] = []
        for i, op in enumerate(self.graph.ops):
            if not self.varying[i]:
                found.append(self.fixed[i])
            elif op.target == "input":
                found.append(_identity(op))
            else:
                found.append(self._bound(op, found))
        out = found[self.graph.output]
        if isinstance(out, Growth):
            return out
        return _of_fixed(out)  # a step that does not depend on its state

    def _bound(self, op: Op, found: list[Any]) -> Any:
        args = _resolve(op.args, found)
        name = op.target.partition(".")[0]
        if op.target == "item":
            return args[0][args[1]]
        if name == "_to_copy" and (op.kwargs.get("dtype") or torch.float64).is_floating_point:
            return args[0]
        if name.removesuffix("_copy") in MOVERS:
            return self._moved(op, args)
        try:
            return self._rule(op, name, args)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _unsupported(op, str(error)) from error

    def _rule(self, op: Op, name: str, args: tuple[Any, ...]) -> Any:
        if name in ("add", "sub", "rsub", "neg"):
            return self._sum(op, name, args)
        if name == "mul":
            return self._product(op, *args)
        if name == "div" and op.target in ("div.Tensor", "div.Scalar"):
            return self._product(op, args[0], self._reciprocal(args[1]))
        if name in ("mm", "bmm"):
            return self._matrix_product(op, *args)
        if name in ("addmm", "baddbmm"):
            return self._affine_product(op, *args)
        if name in ("rms", "centred_rms"):
            return _normalised(args[0].shape, args[2] % args[0].block.ndim, float(args[1]))
        if name == "native_layer_norm":
            return (self._layer_norm(op, *args),)
        if name == "native_group_norm":
            return (self._group_norm(op, *args),)
        if name in ("_softmax", "_safe_softmax"):
            return _weights(args[0].shape, args[1] % args[0].block.ndim)
        if name == "weighted_sum":
            return self._weighted(op, *args)
        if name == "gated":
            function = op.kwargs["function"].removesuffix("_tanh")  # both forms of GELU are below the identity
            return self._product(op, self._entrywise(function, args[0], ()), args[1])
        if name in ("mean", "sum"):
            return self._reduced(op, name, args)
        if name == "convolution":
            return self._convolution(op, args)
        if name in ("where", "masked_fill"):
            return self._choice(name, args, self._linear(op, args))
        if name == "constant_pad_nd":
            filler = _of_fixed(_scalar(args[2] if len(args) > 2 else 0.0))
            index = _padded(args[0].shape, args[1])
            index = torch.where(index < 0, args[0].block.numel(), index)
            return replace(_picked([args[0], filler], index), linear=self._linear(op, args))
        if name in ("amax", "amin"):
            return self._extreme(op, args)
        if name in ("maximum", "minimum"):
            first, second = (self._whole(a) for a in args)
            together = _together(first, second, torch.broadcast_shapes(first.shape, second.shape))
            pick = max if name == "maximum" else min
            return replace(together, low=pick(first.low, second.low), high=pick(first.high, second.high))
        if name in _ENTRYWISE or name in _CLAMPS:
            return self._entrywise(name, args[0], args[1:])
        raise ValueError("it is not known to be continuous, defined for all states, and of bounded growth")

    # Linear parts.

    def _linear(self, op: Op, args: tuple[Any, ...]) -> Tangents | None:
        """The linear part of an operator that is linear in what depends on the state."""
        parts = [a.linear if isinstance(a, Growth) else None for a in args]
        if all(p is None for p in parts):
            return None
        assert op.shape is not None
        out = Ball.exact(torch.zeros(op.shape, dtype=torch.float64))
        held = [_zeros(a) for a in args]
        found = rule_for(op.target).tangent(  # type: ignore[union-attr]  # every operator here has a rule
            op.target.partition(".")[0], out, held, parts, **op.kwargs
        )
        assert isinstance(found, Tangents)
        return found

    def _whole(self, a: Any) -> Growth:
        return whole(a, self.measure) if isinstance(a, Growth) else _of_fixed(_scalar(a))

    # Operators.

    def _sum(self, op: Op, name: str, args: tuple[Any, ...]) -> Growth:
        linear = self._linear(op, args)
        if name == "neg":
            g: Growth = args[0]
            return replace(g, linear=linear, low=-g.high, high=-g.low)
        alpha = args[2] if len(args) > 2 else op.kwargs.get("alpha", 1)
        signs = _Sum._signs(name, float(alpha))
        parts = [_scaled(_rest(a), s) for a, s in zip(args[:2], signs, strict=True)]
        return replace(_added(*parts), linear=linear)

    def _product(self, op: Op, a: Any, b: Any) -> Growth:
        if not isinstance(a, Growth):
            a, b = b, a
        assert op.shape is not None
        if not isinstance(b, Growth):
            factor = _scalar(b)
            g = _expanded(a, op.shape)
            linear = None
            if a.linear is not None:
                linear = rule_for("mul").tangent(  # type: ignore[union-attr]  # it has a rule
                    "mul", _zeros(g), [_zeros(a), factor], [a.linear, None]
                )
            size = factor.magnitude().expand(op.shape)
            low, high = _range_product((g.low, g.high), _range(factor))
            return replace(_times(g, size), linear=linear, low=low, high=high)
        first, second = (_expanded(self._whole(g), op.shape) for g in (a, b))
        options = [_times(first, _entry_bounds(second)), _times(second, _entry_bounds(first))]
        best = min(options, key=lambda g: g.total)
        low, high = _range_product((first.low, first.high), (second.low, second.high))
        return replace(best, low=low, high=high)

    def _reciprocal(self, a: Any) -> Any:
        if isinstance(a, Growth):
            return self._entrywise("reciprocal", a, ())
        inverse = _scalar(a).reciprocal()
        if not bool(inverse.rad.isfinite().all()):
            raise ValueError("a division by what may be 0")
        return inverse

    def _matrix_product(self, op: Op, a: Any, b: Any) -> Growth:
        assert op.shape is not None
        linear = None
        if isinstance(a, Growth) != isinstance(b, Growth):
            linear = self._linear(op, (a, b))
            if isinstance(a, Growth):
                return replace(_through(_rest(a), b, op.shape), linear=linear)
            turned = _transposed(_rest(b))
            found = _through(turned, a.mT, (*op.shape[:-2], op.shape[-1], op.shape[-2]))
            return replace(_transposed(found), linear=linear)
        first, second = self._whole(a), self._whole(b)
        slope, const = _by_rows(first)
        (t, u), numbers = second.total, _row_numbers(torch.Size(op.shape))
        # (s N + c)(t N + u) is affine only if s t = 0.
        growing = torch.where((slope > 0) & torch.tensor(t > 0), math.inf, _mul(slope, u) + _mul(const, t))
        rest = _made(numbers, growing * ROOM, _mul(const, u) * ROOM, (math.inf, math.inf))
        return rest

    def _affine_product(self, op: Op, c: Any, a: Any, b: Any) -> Growth:
        beta, alpha = float(op.kwargs.get("beta", 1)), float(op.kwargs.get("alpha", 1))
        product = self._matrix_product(replace(op, target="bmm.default", kwargs={}), a, b)
        held = _scaled(_rest(product), alpha)
        linear = None if product.linear is None else product.linear * alpha
        found = _added(_scaled(_rest(c), beta), held)
        if isinstance(c, Growth) and c.linear is not None:
            moved = self._linear(Op("add.Tensor", (), {}, None, "", op.shape), (_zeros(product), c))
            assert moved is not None
            linear = moved * beta if linear is None else linear + moved * beta
        return replace(found, linear=linear)

    def _layer_norm(self, op: Op, x: Growth, shape: Any, w: Any, b: Any, eps: float) -> Growth:
        width = math.prod(shape)
        rows = _normalised(torch.Size((x.block.numel() // width, width)), 1, eps)
        return self._affine(op, replace(rows, block=rows.block.reshape(x.shape)), w, b)

    def _group_norm(
        self, op: Op, x: Growth, w: Any, b: Any, N: int, C: int, size: int, groups: int, eps: float
    ) -> Growth:
        rows = _normalised(torch.Size((N * groups, C * size // groups)), 1, eps)
        spread = [1, C, *([1] * (x.block.ndim - 2))]
        w, b = (None if v is None else v.reshape(*spread) for v in (w, b))
        return self._affine(op, replace(rows, block=rows.block.reshape(x.shape)), w, b)

    def _affine(self, op: Op, g: Growth, gain: Any, shift: Any) -> Growth:
        if any(isinstance(v, Growth) for v in (gain, shift)):
            raise ValueError("a norm whose gain or shift depends on the state")
        op = replace(op, shape=tuple(g.shape))
        g = g if gain is None else self._product(op, g, gain)
        return g if shift is None else _added(g, _expanded(_of_fixed(shift), g.shape))

    def _weighted(self, op: Op, scores: Any, values: Any) -> Growth:
        """A weighted mean of rows is at most as long as the longest of them."""
        held = self._whole(values)
        keys = held.shape[-2]
        slope, const = (v.reshape(-1, keys).amax(-1) for v in _by_rows(held))
        assert op.shape is not None
        rows = math.prod(op.shape[:-1]) // slope.numel()
        slope, const = slope.repeat_interleave(rows), const.repeat_interleave(rows)
        # The weights of one query have length 1 at most; those of all of them, the root of their number.
        root = root_up(rows)
        total = (up(held.total[0] * root), up(held.total[1] * root))
        return _made(
            _row_numbers(torch.Size(op.shape)), slope, const, total, low=min(held.low, 0.0), high=max(held.high, 0.0)
        )

    def _reduced(self, op: Op, name: str, args: tuple[Any, ...]) -> Growth:
        """A sum of k entries is at most the root of k times their Euclidean length."""
        g = _rest(args[0])
        dims, _ = _Reduction._dims(g.block.ndim, args, op.kwargs)
        k = math.prod(g.shape[d] for d in dims)
        factor = root_up(k) if name == "sum" else root_up(up(1 / k))
        assert op.shape is not None
        return replace(
            _in_one(op.shape, (up(g.total[0] * factor), up(g.total[1] * factor))), linear=self._linear(op, args)
        )

    def _extreme(self, op: Op, args: tuple[Any, ...]) -> Growth:
        """Every result is one of the entries, each of another."""
        g = self._whole(args[0])
        assert op.shape is not None
        return replace(_in_one(op.shape, g.total), low=g.low, high=g.high)

    def _convolution(self, op: Op, args: tuple[Any, ...]) -> Growth:
        x, weight, bias = args[:3]
        if isinstance(weight, Growth) or isinstance(bias, Growth):
            raise ValueError("a convolution whose weights depend on the state")
        if args[6]:
            raise ValueError("a transposed convolution")
        linear = self._linear(op, args)
        g, groups = _rest(x), args[8]
        assert op.shape is not None
        taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        gain = 0.0
        if g.total != (0.0, 0.0):
            # Each tap is a matrix on the channels, block by block of the groups, and a shift of the places.
            for tap in range(taps.shape[-1]):
                gain = up(gain + _largest_norm(taps[..., tap]))
        found = _in_one(op.shape, (up(g.total[0] * gain), up(g.total[1] * gain)))
        if bias is not None:
            spread = bias.reshape(-1, *([1] * (len(op.shape) - 2)))
            found = _added(found, _expanded(_of_fixed(spread), op.shape))
        return replace(found, linear=linear)

    def _choice(self, name: str, args: tuple[Any, ...], linear: Tangents | None) -> Growth:
        mask, yes, no = (args[1], args[2], args[0]) if name == "masked_fill" else args
        if not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
            raise ValueError("the mask is not a fixed tensor of booleans")
        first, second = _rest(yes), _rest(no)
        shape = torch.broadcast_shapes(mask.shape, first.shape, second.shape)
        index = torch.where(
            mask.expand(shape),
            torch.arange(first.block.numel()).reshape(first.shape).expand(shape),
            (torch.arange(second.block.numel()) + first.block.numel()).reshape(second.shape).expand(shape),
        )
        return replace(_picked([first, second], index), linear=linear)

    def _entrywise(self, name: str, a: Growth, more: tuple[Any, ...]) -> Growth:
        if not isinstance(a, Growth) or any(isinstance(m, Growth | Ball | Tensor) for m in more):
            raise ValueError("an exponent or a bound that is a tensor")
        g = self._whole(a)
        low, high = _image(name, more, g.low, g.high)
        kept = replace(g, low=low, high=high) if name in _BELOW else None
        sup = max(abs(low), abs(high))
        if not math.isfinite(sup) and kept is None:
            # Unbounded, but continuous; whether it matters is seen where it is used.
            if not (name in _CLAMPS or name in ("exp", "expm1", "square") or (name == "pow" and _whole_power(more))):
                raise ValueError(f"entries from {g.low:g} to {g.high:g}, where it is not known to be defined")
            return replace(_in_one(g.shape, (math.inf, math.inf)), low=low, high=high)
        if not math.isfinite(sup):
            assert kept is not None
            return kept
        numbers = torch.arange(g.block.numel()).reshape(g.shape)
        ends = torch.full((numbers.numel(),), sup, dtype=torch.float64)
        total = (0.0, up(root_up(numbers.numel()) * sup))
        ranged = _made(numbers, torch.zeros_like(ends), ends, total, low=low, high=high)
        return ranged if kept is None else min((ranged, kept), key=lambda h: h.total)

    def _moved(self, op: Op, args: tuple[Any, ...]) -> Any:
        balls = _all_zeros(args)
        _, maps = _index_maps(op, balls)
        parts = [_rest(a) for a in _leaves(args) if isinstance(a, Growth | Ball)]
        linear: Any = None
        if any(isinstance(a, Growth) and a.linear is not None for a in _leaves(args)):
            linear = _move_tangents(op, balls, _all_linear(args))
        if isinstance(maps, tuple):
            linear = linear or (None,) * len(maps)
            return tuple(replace(_picked(parts, m), linear=t) for m, t in zip(maps, linear, strict=True))
        return replace(_picked(parts, maps), linear=linear)


def _fixed_values(graph: Graph, varying: tuple[bool, ...]) -> list[Any]:
    """Values of what does not depend on the state; None elsewhere."""
    values: list[Any] = []
    with working_precision():
        for i, op in enumerate(graph.ops):
            if varying[i]:
                values.append(None)
            elif op.target == "constant":
                assert op.value is not None
                values.append(Reals.exact(op.value) if op.value.is_floating_point() else op.value)
            else:
                values.append(_value(op, values))
        return [_rounded(v) for v in values]


def _zeros(a: Any) -> Any:
    return Ball.exact(torch.zeros(a.shape, dtype=torch.float64)) if isinstance(a, Growth) else a


def _all_zeros(args: Any) -> Any:
    return tuple(_all_zeros(a) for a in args) if isinstance(args, tuple) else _zeros(args)


def _all_linear(args: Any) -> Any:
    if isinstance(args, tuple):
        return tuple(_all_linear(a) for a in args)
    return args.linear if isinstance(args, Growth) else None


def _scalar(a: Any) -> Ball:
    """A fixed argument as a ball."""
    if isinstance(a, Ball):
        return a
    return Ball.exact(a if isinstance(a, Tensor) else torch.tensor(float(a), dtype=torch.float64))


def _identity(op: Op) -> Growth:
    assert op.shape is not None
    n = math.prod(op.shape)
    seed = Tangents(torch.eye(n, dtype=torch.float64).reshape(n, *op.shape))
    return replace(_in_one(op.shape, (0.0, 0.0)), linear=seed)


def _made(
    block: Tensor, slope: Tensor, const: Tensor, total: tuple[float, float], *, low: float = -math.inf,
    high: float = math.inf,
) -> Growth:  # fmt: skip
    """A rest without a linear part; the better of the total and what the blocks add up to."""
    slope, const = (torch.nan_to_num(v, nan=math.inf, posinf=math.inf) for v in (slope, const))
    # What has no finite constant has no bound at all, whatever its slope.
    slope = torch.where(const.isinf(), math.inf, slope)
    stacked = (_stacked(slope), _stacked(const))
    total = total if all(math.isfinite(v) for v in total) else (math.inf, math.inf)
    return Growth(None, block, slope, const, min(total, stacked), low, high)


def _in_one(shape: Any, total: tuple[float, float]) -> Growth:
    """All entries in one block."""
    slope, const = (torch.tensor([v], dtype=torch.float64) for v in total)
    return _made(torch.zeros(tuple(shape), dtype=torch.long), slope, const, total)


def _of_fixed(ball: Ball) -> Growth:
    """A fixed tensor, row by row."""
    size = row_norm_bounds(ball if ball.mid.ndim else ball.reshape(1)).reshape(-1)
    low, high = _range(ball)
    return _made(_row_numbers(ball.shape), torch.zeros_like(size), size, (math.inf, math.inf), low=low, high=high)


def _rest(a: Any) -> Growth:
    """What there is beside the linear part."""
    return replace(a, linear=None) if isinstance(a, Growth) else _of_fixed(_scalar(a))


def _range(ball: Ball) -> tuple[float, float]:
    return (float(ball.lower().min()), float(ball.upper().max())) if ball.mid.numel() else (0.0, 0.0)


def _row_numbers(shape: torch.Size) -> Tensor:
    """Every row of the last dimension a block."""
    if not shape:
        return torch.zeros((), dtype=torch.long)
    rows = torch.arange(math.prod(shape[:-1])).reshape(*shape[:-1], 1)
    return rows.expand(shape)


def _mul(a: Tensor, b: Tensor | float) -> Tensor:
    """Products of bounds, in which 0 times no bound is 0."""
    other = b if isinstance(b, Tensor) else torch.tensor(b, dtype=torch.float64)
    return torch.where((a == 0) | (other == 0), 0.0, a * other)


def _stacked(bounds: Tensor) -> float:
    """A bound on the root of the sum of squares."""
    if not bool((bounds > 0).any()):
        return 0.0
    top = float(bounds.max())
    if not math.isfinite(top):
        return math.inf
    # Over the largest: squares neither overflow, nor lose more than TINY each.
    square = float(((bounds / top) ** 2).sum()) + bounds.numel() * TINY
    return up(root_up(square * ROOM) * top * ROOM)


def _by_rows(g: Growth) -> tuple[Tensor, Tensor]:
    """Bounds on the rows of the last dimension, each from the blocks that it meets (triangle inequality in l2)."""
    rows = _row_numbers(g.shape).flatten()
    count, blocks = int(rows.max()) + 1, len(g.slope)
    pairs = torch.unique(rows * blocks + g.block.flatten())
    row, block = pairs // blocks, pairs % blocks
    found = []
    for bound in (g.slope, g.const):
        own = bound[block]
        top = torch.zeros(count, dtype=torch.float64).scatter_reduce(0, row, own, "amax")
        scale = torch.where((top > 0) & top.isfinite(), top, 1.0)
        square = torch.zeros(count, dtype=torch.float64).index_add(0, row, (own / scale[row]) ** 2)
        root = ((square + len(pairs) * TINY).sqrt() * ROOM * scale) * ROOM
        found.append(torch.where(top > 0, root, 0.0))
    return found[0], found[1]


def _picked(parts: list[Growth], index: Tensor) -> Growth:
    """Entries of all parts, one after the other, picked by flat index; -1 gives a zero.

    A block of which an entry is picked c times, and none more often, becomes at most the root of c times as long.
    """
    offsets, start = [], 0
    for g in parts:
        offsets.append(g.block.flatten() + start)
        start += len(g.slope)
    blocks = torch.cat([*offsets, torch.tensor([start])])
    used = torch.where(index < 0, len(blocks) - 1, index).flatten()
    copies = torch.bincount(used[used < len(blocks) - 1], minlength=len(blocks))
    most = torch.zeros(start + 1, dtype=torch.long).scatter_reduce(0, blocks, copies, "amax")
    factor = torch.where(most > 1, (most.double()).sqrt() * ROOM, 1.0)
    zero = torch.zeros(1, dtype=torch.float64)
    slope, const = (torch.cat([*(getattr(g, v) for g in parts), zero]) * factor for v in ("slope", "const"))
    root = root_up(max(int(most.max()), 1))
    totals = torch.tensor([g.total for g in parts], dtype=torch.float64)
    total = (up(_stacked(totals[:, 0]) * root), up(_stacked(totals[:, 1]) * root))
    # Only the blocks that are still there count.
    kept, numbers = torch.unique(blocks[used], return_inverse=True)
    low = min(*(g.low for g in parts), *([0.0] if bool((index < 0).any()) else [math.inf]))
    high = max(*(g.high for g in parts), *([0.0] if bool((index < 0).any()) else [-math.inf]))
    found = _made(numbers.reshape(index.shape), slope[kept], const[kept], total, low=low, high=high)
    if all(g.entry is None for g in parts):
        return found
    entries = torch.cat([*(_entries(g).flatten() for g in parts), zero])
    return replace(found, entry=entries[torch.where(index < 0, len(entries) - 1, index)])


def _expanded(g: Growth, shape: Any) -> Growth:
    """Broadcast; the linear part is left out if the shape changes."""
    if tuple(g.shape) == tuple(shape):
        return g
    numbers = torch.arange(g.block.numel()).reshape(g.shape)
    return _picked([g], numbers.expand(tuple(shape)))


def _transposed(g: Growth) -> Growth:
    return replace(g, block=g.block.mT, linear=None, entry=None if g.entry is None else g.entry.mT)


def _scaled(g: Growth, factor: float) -> Growth:
    if abs(factor) == 1:
        return g if factor == 1 else replace(g, low=-g.high, high=-g.low)
    size = torch.tensor(abs(factor), dtype=torch.float64)
    low, high = _range_product((g.low, g.high), (factor, factor))
    return replace(_times(g, size.expand(g.shape)), low=low, high=high)


def _times(g: Growth, size: Tensor) -> Growth:
    """Each entry times a number of at most ``size``: a block by at most the largest of them in it."""
    most = torch.zeros(len(g.slope), dtype=torch.float64)
    most = most.scatter_reduce(0, g.block.flatten(), size.flatten(), "amax")
    top = float(size.max()) if size.numel() else 0.0
    total = (_up_product(g.total[0], top), _up_product(g.total[1], top))
    return _made(g.block, _mul(g.slope, most) * ROOM, _mul(g.const, most) * ROOM, total)


def _up_product(a: float, b: float) -> float:
    return up(a * b) if a and b else 0.0


def _added(a: Growth, b: Growth) -> Growth:
    """A sum, in the blocks that both share, or row by row."""
    shape = torch.broadcast_shapes(a.shape, b.shape)
    a, b = _expanded(a, shape), _expanded(b, shape)
    total = (up(a.total[0] + b.total[0]), up(a.total[1] + b.total[1]))
    if b.total == (0.0, 0.0):
        total, block, slope, const = a.total, a.block, a.slope, a.const
    elif a.total == (0.0, 0.0):
        total, block, slope, const = b.total, b.block, b.slope, b.const
    elif torch.equal(a.block, b.block):
        block, slope, const = a.block, (a.slope + b.slope) * ROOM, (a.const + b.const) * ROOM
    else:
        (s, c), (t, u) = _by_rows(a), _by_rows(b)
        block, slope, const = _row_numbers(torch.Size(shape)), (s + t) * ROOM, (c + u) * ROOM
    low, high = a.low + b.low, a.high + b.high
    return _made(block, slope, const, total, low=math.nextafter(low, -math.inf), high=math.nextafter(high, math.inf))


def _together(a: Growth, b: Growth, shape: Any) -> Growth:
    """Entries each of which is one of two: at most as long as both stacked."""
    a, b = _expanded(a, shape), _expanded(b, shape)
    pairs = [torch.stack([p, q]) for p, q in zip(_by_rows(a), _by_rows(b), strict=True)]
    slope, const = (pair.sum(0) * ROOM for pair in pairs)
    total = tuple(_stacked(torch.tensor(pair, dtype=torch.float64)) for pair in zip(a.total, b.total, strict=True))
    return _made(_row_numbers(torch.Size(shape)), slope, const, (total[0], total[1]))


def _entry_bounds(g: Growth) -> Tensor:
    """Bounds on the modulus of every entry of a result without a linear part, by its range too."""
    assert g.linear is None
    return _entries(g).clamp_max(g.sup)


def _entries(g: Growth) -> Tensor:
    """Bounds on the modulus of every entry of the rest."""
    own = torch.where(g.slope == 0, g.const, math.inf)[g.block]
    return own if g.entry is None else torch.minimum(own, g.entry)


def _through(g: Growth, matrices: Ball, shape: Any) -> Growth:
    """Rows ``(*batch, r, k)`` times fixed matrices ``(*batch, k, j)``: an entry is at most row times column long."""
    norm = _largest_norm(matrices)
    s, c = _by_rows(g)
    total = (_up_product(g.total[0], norm), _up_product(g.total[1], norm))
    found = _made(_row_numbers(torch.Size(shape)), _mul(s, norm) * ROOM, _mul(c, norm) * ROOM, total)
    rows = torch.where(s == 0, c, math.inf).reshape(*shape[:-1], 1)
    columns = row_norm_bounds(matrices.mT).unsqueeze(-2)
    return replace(found, entry=_mul(rows, columns) * ROOM)


def _largest_norm(matrices: Ball) -> float:
    """A bound on the largest 2-norm of a batch of matrices."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    if flat.shape[0] > 64:  # choice: of cost
        return quick_norm_bound(flat)
    return float(torch.tensor([norm_bound(flat[i]) for i in range(flat.shape[0])], dtype=torch.float64).max())


def _normalised(shape: torch.Size, dim: int, eps: float) -> Growth:
    """Rows over their root mean square: at most as long as the root of their width (Theorem N1)."""
    if not eps > 0:
        raise ValueError(f"a norm with eps={eps:g}, which is not continuous at 0")
    return _lanes(shape, dim, root_up(shape[dim]))


def _weights(shape: torch.Size, dim: int) -> Growth:
    """Non-negative rows that add up to 1 are at most of length 1."""
    return replace(_lanes(shape, dim, 1.0), low=0.0, high=1.0)


def _lanes(shape: torch.Size, dim: int, length: float) -> Growth:
    """Every row along a dimension a block, of at most that length."""
    numbers = torch.arange(math.prod(shape) // shape[dim]).reshape(*(1 if d == dim else s for d, s in enumerate(shape)))
    size = torch.full((numbers.numel(),), length, dtype=torch.float64)
    return _made(numbers.expand(shape), torch.zeros_like(size), size, (math.inf, math.inf))


def _range_product(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    corners = [0.0 if 0 in (p, q) else p * q for p in a for q in b]
    return math.nextafter(min(corners), -math.inf), math.nextafter(max(corners), math.inf)


def _whole_power(more: tuple[Any, ...]) -> bool:
    return float(more[0]).is_integer() and more[0] >= 0


def _image(name: str, more: tuple[Any, ...], low: float, high: float) -> tuple[float, float]:
    """The range of a function of entries in [low, high]; infinite ends where none is known."""
    if name in _RANGES:
        return _RANGES[name]
    if name == "abs":
        return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))
    if name == "relu":
        return max(low, 0.0), max(high, 0.0)
    if name in _CLAMPS:
        ends = (*more, None)
        least, most = (None, ends[0]) if name == "clamp_max" else (ends[0], ends[1])
        # On floats this is exact.
        held = [v if least is None else max(v, float(least)) for v in (low, high)]
        held = [v if most is None else min(v, float(most)) for v in held]
        return held[0], held[1]
    if name in ("silu", "gelu"):
        size = max(abs(low), abs(high))
        return -size, size
    if name in ("exp", "expm1") and low == -math.inf and math.isfinite(high):
        floor = 0.0 if name == "exp" else -1.0
        return floor, _end(FUNCTIONS[name].value, high, math.inf)
    if name in ("rsqrt", "reciprocal") and low > 0 and high == math.inf:
        return 0.0, _end(FUNCTIONS[name].value, low, math.inf)
    if not (math.isfinite(low) and math.isfinite(high)):
        even = name == "square" or (name == "pow" and _whole_power(more) and more[0] % 2 == 0)
        return (0.0 if even or name == "exp" else -math.inf), math.inf
    if name == "pow" and _whole_power(more) and low >= 0:
        return _end(power(more[0]).value, low, -math.inf), _end(power(more[0]).value, high, math.inf)
    whole = power(2) if name == "square" else power(more[0]) if name == "pow" else FUNCTIONS[name]
    with flint.ctx.workprec(80):  # choice: bits; the ends are rounded to 53
        middle = (arb(low) + arb(high)) / 2
        found = whole.value(arb(middle.mid(), ((arb(high) - arb(low)) / 2 * arb(ROOM)).upper()))
    if not found.is_finite():
        return -math.inf, math.inf
    return math.nextafter(float(found.lower()), -math.inf), math.nextafter(float(found.upper()), math.inf)


def _end(function: Any, at: float, towards: float) -> float:
    with flint.ctx.workprec(80):  # choice: bits; the end is rounded to 53
        value = function(arb(at))
    if not value.is_finite():
        return towards
    return math.nextafter(float(value.upper() if towards > 0 else value.lower()), towards)
