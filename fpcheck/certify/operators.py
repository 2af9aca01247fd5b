r"""A sound rule for each operator: its value in ball arithmetic, and how tangents pass through it.

The value rule gets the arguments as `Reals` (or plain tensors for masks and indices, or numbers). The tangent rule gets
them rounded to `Ball`, with the result, and the arguments' `Tangents` (None where one does not depend on the state),
which have one dimension more, in front: one entry per direction of the state.

Three kinds of operators: those that only move entries (exact); those that are linear in the state; and functions of
entries, rows or pairs, with their derivatives written out here and not taken from torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from flint import arb
from torch import Tensor
from torch.nn import functional as F

from fpcheck.certify.balls import Ball
from fpcheck.certify.functions import FUNCTIONS, GELU_TANH, Function, clamp, power, softplus
from fpcheck.certify.reals import Reals
from fpcheck.certify.rounding import up
from fpcheck.certify.tangents import Tangents

__all__ = ["CREATORS", "MOVERS", "Argument", "Tangent", "rule_for"]

Argument = Any
"""Reals or Ball, Tensor (integers or booleans), number, None, or a tuple of these."""
Tangent = Tangents | None

# Entries are moved, copied or repeated, never changed. What depends on the layout in memory (as_strided) is not here.
MOVERS = frozenset(
    {
        "alias", "clone", "detach", "contiguous", "lift_fresh", "view", "_unsafe_view", "reshape",
        "transpose", "t", "permute", "expand", "squeeze", "unsqueeze", "slice", "select", "narrow", "flip", "roll",
        "cat", "stack", "unbind", "split", "split_with_sizes", "chunk", "index_select", "repeat", "tril", "triu",
        "unfold", "diagonal", "movedim", "flatten", "select_scatter", "slice_scatter", "copy",
    }
)  # fmt: skip
# Results hold exact numbers, whatever the rounding: whole numbers and what the caller wrote.
CREATORS = frozenset({"ones", "zeros", "full", "ones_like", "zeros_like", "full_like", "new_zeros", "new_ones",
                      "arange", "scalar_tensor", "empty", "eye"})  # fmt: skip

Held = TypeVar("Held", Reals, Tangents)
Rows = TypeVar("Rows", Reals, Ball)

_RULES: dict[str, Any] = {}


def rule_for(target: str) -> Any | None:
    """The rule of an operator such as "mul.Tensor": ``value``, ``tangent``, ``cotangent``; None if there is none."""
    name = target.partition(".")[0]
    return _RULES.get(target) or _RULES.get(name) or _RULES.get(name.removesuffix("_copy"))


def _rule(*names: str) -> Callable[[type], type]:
    """Register a class with static methods ``value``, ``tangent`` and ``cotangent`` for some operators."""

    def register(held: type) -> type:
        for name in names:
            _RULES[name] = held
        return held

    return register


def _aligned(t: Tangents, ndim: int) -> Tangents:
    """A tangent whose value has fewer dimensions than the result, with ones put in between."""
    missing = ndim - (t.mid.ndim - 1)
    return t.reshape(t.shape[0], *([1] * missing), *t.shape[1:]) if missing > 0 else t


def _times(t: Tangent, factor: Ball, ndim: int) -> Tangent:
    return None if t is None else _aligned(t, ndim) * factor


def _plus(a: Tangent, b: Tangent) -> Tangent:
    if a is None or b is None:
        return a if b is None else b
    return a + b


def _reals(value: Argument) -> Reals:
    if isinstance(value, Reals):
        return value
    return Reals.exact(value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64))


def _as_ball(value: Argument) -> Ball:
    if isinstance(value, Ball):
        return value
    if isinstance(value, Tensor):
        return Ball.exact(value)
    return Ball.exact(torch.tensor(float(value), dtype=torch.float64))


@_rule("add", "sub", "rsub")
class _Sum:
    """a + alpha b, in every order; which of the three, the engine says by ``name``."""

    @staticmethod
    def _signs(name: str, alpha: float) -> tuple[float, float]:
        return {"add": (1.0, alpha), "sub": (1.0, -alpha), "rsub": (-alpha, 1.0)}[name]

    @staticmethod
    def value(name: str, a: Argument, b: Argument, *scalar_alpha: float, alpha: float = 1) -> Reals:
        first, second = _Sum._signs(name, scalar_alpha[0] if scalar_alpha else alpha)
        return _scaled(_reals(a), first) + _scaled(_reals(b), second)

    @staticmethod
    def tangent(
        name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent], *, alpha: float = 1
    ) -> Tangent:
        first, second = _Sum._signs(name, args[2] if len(args) > 2 else alpha)
        n = out.mid.ndim
        a = None if tangents[0] is None else _scaled(_aligned(tangents[0], n), first)
        b = None if tangents[1] is None else _scaled(_aligned(tangents[1], n), second)
        total = _plus(a, b)
        return None if total is None else _spread(total, out)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents, *, alpha: float = 1) -> Sequence[Tangent]:
        first, second = _Sum._signs(name, args[2] if len(args) > 2 else alpha)
        return _unspread(_scaled(g, first), args[0]), _unspread(_scaled(g, second), args[1])


def _scaled(held: Held, factor: float) -> Held:
    if factor == 1:
        return held
    return -held if factor == -1 else held * float(factor)


def _unspread(g: Tangents, own: Argument) -> Tangent:
    """The transpose of broadcasting to the result's shape."""
    if not isinstance(own, Ball):
        return None
    shape = own.shape
    ahead = g.mid.ndim - 1 - len(shape)
    for _ in range(ahead):
        g = g.sum(1)
    for d, size in enumerate(shape):
        if size == 1 and g.shape[d + 1] != 1:
            g = g.sum(d + 1, keepdim=True)
    return g


def _spread(t: Tangents, out: Ball) -> Tangents:
    """Broadcast a tangent to the result's shape."""
    shape = (t.shape[0], *out.shape)
    return t if t.shape == torch.Size(shape) else t.expand(*shape)


@_rule("neg")
class _Negation:
    @staticmethod
    def value(name: str, a: Argument) -> Reals:
        return -_reals(a)

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent]) -> Tangent:
        return None if tangents[0] is None else -tangents[0]

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        return (-g,)


@_rule("mul")
class _Product:
    @staticmethod
    def value(name: str, a: Argument, b: Argument) -> Reals:
        return _reals(a) * _reals(b)

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent]) -> Tangent:
        n = out.mid.ndim
        left = _times(tangents[0], _as_ball(args[1]), n)
        right = _times(tangents[1], _as_ball(args[0]), n)
        total = _plus(left, right)
        return None if total is None else _spread(total, out)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        return tuple(
            _unspread(g * _as_ball(other), own) if isinstance(own, Ball) else None
            for own, other in ((args[0], args[1]), (args[1], args[0]))
        )


@_rule("div.Tensor", "div.Scalar")
class _Quotient:
    @staticmethod
    def value(name: str, a: Argument, b: Argument) -> Reals:
        return _reals(a) / _reals(b)

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent]) -> Tangent:
        inverse = _as_ball(args[1]).reciprocal()
        left = _times(tangents[0], inverse, out.mid.ndim)
        right = _times(tangents[1], -(out * inverse), out.mid.ndim)
        total = _plus(left, right)
        return None if total is None else _spread(total, out)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        inverse = _as_ball(args[1]).reciprocal()
        above = _unspread(g * inverse, args[0]) if isinstance(args[0], Ball) else None
        below = _unspread(g * -(out * inverse), args[1]) if isinstance(args[1], Ball) else None
        return above, below


def _function_of(name: str, args: Sequence[Argument], keywords: dict[str, Any]) -> Function:
    if name == "gelu":
        form = keywords.get("approximate", args[1] if len(args) > 1 else "none")
        return GELU_TANH if form == "tanh" else FUNCTIONS["gelu"]
    if name == "pow":
        return power(args[1])
    if keywords:
        raise ValueError(f"{name} with {', '.join(keywords)}")
    if name in ("clamp", "clamp_min", "clamp_max"):
        ends = (*args[1:], None)
        return clamp(None, ends[0]) if name == "clamp_max" else clamp(ends[0], ends[1])
    if name == "softplus":
        beta = args[1] if len(args) > 1 else 1
        threshold = args[2] if len(args) > 2 else 20  # definition: torch's own default
        return softplus(float(beta), float(threshold))
    return FUNCTIONS[name]


@_rule(
    "exp", "log", "tanh", "sigmoid", "silu", "gelu", "relu", "erf", "sin", "cos", "pow.Tensor_Scalar", "abs", "expm1",
    "log1p", "clamp.default", "clamp_min.default", "clamp_max.default", "softplus",
)  # fmt: skip
class _Entrywise:
    @staticmethod
    def value(name: str, x: Argument, *more: Argument, **keywords: Any) -> Reals:
        if name == "pow" and more[0] == 2:
            return _reals(x).square()
        return _reals(x).map(_function_of(name, (x, *more), keywords).value)

    @staticmethod
    def tangent(
        name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent], **keywords: Any
    ) -> Tangent:
        return None if tangents[0] is None else tangents[0] * _Entrywise._slope(name, args, keywords)

    @staticmethod
    def _slope(name: str, args: Sequence[Argument], keywords: dict[str, Any]) -> Ball:
        x = _as_ball(args[0])
        return x * 2.0 if name == "pow" and args[1] == 2 else x.map(_function_of(name, args, keywords).slope)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents, **keywords: Any) -> Sequence[Tangent]:
        return (g * _Entrywise._slope(name, args, keywords),)


@_rule("sqrt", "rsqrt", "reciprocal", "square")
class _Algebraic:
    """Roots and reciprocals without elementary functions."""

    @staticmethod
    def value(name: str, x: Argument) -> Reals:
        ball = _reals(x)
        if name == "square":
            return ball.square()
        if name == "reciprocal":
            return ball.reciprocal()
        return ball.sqrt() if name == "sqrt" else ball.sqrt().reciprocal()

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent]) -> Tangent:
        return None if tangents[0] is None else tangents[0] * _Algebraic._slope(name, out, _as_ball(args[0]))

    @staticmethod
    def _slope(name: str, out: Ball, x: Ball) -> Ball:
        if name == "square":
            return x * 2.0
        if name == "reciprocal":
            return -out.square()
        return out.reciprocal() * 0.5 if name == "sqrt" else out * out.square() * -0.5

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        return (g * _Algebraic._slope(name, out, _as_ball(args[0])),)


@_rule("mean.dim", "sum.dim_IntList", "mean.default", "sum.default")
class _Reduction:
    @staticmethod
    def _dims(n: int, args: Sequence[Argument], keywords: dict[str, Any]) -> tuple[list[int], bool]:
        dims = args[1] if len(args) > 1 else keywords.get("dim")
        keep = args[2] if len(args) > 2 else keywords.get("keepdim", False)
        chosen = range(n) if dims is None or dims == () else [dims] if isinstance(dims, int) else dims
        return sorted((d % n for d in chosen), reverse=True), bool(keep)

    @staticmethod
    def _over(name: str, x: Held, dims: list[int], keep: bool, shift: int) -> Held:
        for d in dims:
            x = x.mean(d + shift, keepdim=keep) if name == "mean" else x.sum(d + shift, keepdim=keep)
        return x

    @staticmethod
    def value(name: str, x: Argument, *more: Argument, **keywords: Any) -> Reals:
        ball = _reals(x)
        dims, keep = _Reduction._dims(ball.ndim, (x, *more), keywords)
        return _Reduction._over(name, ball, dims, keep, 0)

    @staticmethod
    def tangent(
        name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent], **keywords: Any
    ) -> Tangent:
        if tangents[0] is None:
            return None
        dims, keep = _Reduction._dims(_as_ball(args[0]).mid.ndim, args, keywords)
        return _Reduction._over(name, tangents[0], dims, keep, 1)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents, **keywords: Any) -> Sequence[Tangent]:
        shape = _as_ball(args[0]).shape
        dims, keep = _Reduction._dims(len(shape), args, keywords)
        kept = g if keep else g.reshape(g.shape[0], *(1 if d in dims else size for d, size in enumerate(shape)))
        spread = kept.expand(g.shape[0], *shape)
        count = math.prod(shape[d] for d in dims)
        return (
            spread * (Ball.exact(torch.tensor(float(count), dtype=torch.float64)).reciprocal())
            if name == "mean"
            else spread,
        )


@_rule("var.correction", "std.correction")
class _Variance:
    """Mean squared distance from the mean, over n - correction; and its root."""

    @staticmethod
    def _plan(
        shape: Sequence[int], args: Sequence[Argument], keywords: dict[str, Any]
    ) -> tuple[list[int], bool, float]:
        """Dimensions, whether they stay, and what the sum of squares is divided by."""
        dims, _ = _Reduction._dims(len(shape), args, keywords)
        keep = bool(keywords.get("keepdim", False))
        correction = keywords.get("correction")
        count = math.prod(shape[d] for d in dims) - (1 if correction is None else correction)
        if not count > 0:
            raise ValueError("a variance over no more entries than its correction")
        return dims, keep, float(count)

    @staticmethod
    def value(name: str, x: Argument, *more: Argument, **keywords: Any) -> Reals:
        held = _reals(x)
        dims, keep, count = _Variance._plan(held.shape, (x, *more), keywords)
        centred = held - _Reduction._over("mean", held, dims, True, 0)
        total = _Reduction._over("sum", centred.square(), dims, keep, 0) / count
        return total.sqrt() if name == "std" else total

    @staticmethod
    def _slope(name: str, out: Ball, x: Ball, dims: list[int], keep: bool, count: float) -> Ball:
        """What a movement of each entry does: 2 (x - mean) / count, over twice the root for ``std``."""
        mean = x
        for d in dims:
            mean = mean.mean(d, keepdim=True)
        centred = x - mean
        if name == "var":
            return centred * _ratio(2.0, count)
        root = out if keep else out.reshape(*(1 if d in dims else size for d, size in enumerate(x.shape)))
        return centred * root.reciprocal() * _ratio(1.0, count)

    @staticmethod
    def tangent(
        name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent], **keywords: Any
    ) -> Tangent:
        if tangents[0] is None:
            return None
        x = _as_ball(args[0])
        dims, keep, count = _Variance._plan(x.shape, args, keywords)
        return _Reduction._over("sum", tangents[0] * _Variance._slope(name, out, x, dims, keep, count), dims, keep, 1)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents, **keywords: Any) -> Sequence[Tangent]:
        x = _as_ball(args[0])
        dims, keep, count = _Variance._plan(x.shape, args, keywords)
        kept = g if keep else g.reshape(g.shape[0], *(1 if d in dims else size for d, size in enumerate(x.shape)))
        return (kept.expand(g.shape[0], *x.shape) * _Variance._slope(name, out, x, dims, keep, count),)


def _ratio(above: float, below: float) -> Ball:
    return Ball.exact(torch.tensor(above, dtype=torch.float64)) / below


@_rule("amax", "amin")
class _Extreme:
    """The largest or the smallest entry along dimensions; where several may be it, the derivative holds them all."""

    @staticmethod
    def value(name: str, x: Argument, *more: Argument, **keywords: Any) -> Reals:
        held = _reals(x)
        dims, keep = _Reduction._dims(held.ndim, (x, *more), keywords)
        shape = [1 if d in dims else size for d, size in enumerate(held.shape)]
        order = (*(d for d in range(held.ndim) if d not in dims), *sorted(dims))
        lanes = torch.arange(len(held.entries)).reshape(held.shape).permute(*order).reshape(math.prod(shape), -1)
        if lanes.shape[1] == 0:
            raise ValueError("an extreme of no entries")
        best = []
        for lane in lanes.tolist():
            top = held.entries[lane[0]]
            for i in lane[1:]:
                top = _extreme(name, top, held.entries[i])
            best.append(top)
        kept = shape if keep else [size for d, size in enumerate(held.shape) if d not in dims]
        return Reals(tuple(kept), best)

    @staticmethod
    def _weights(name: str, x: Ball, dims: list[int]) -> Ball:
        """1 for the entry that is it, 0 for those that are not, [0, 1] for those that may be."""
        low, high = (x.lower(), x.upper()) if name == "amax" else (-x.upper(), -x.lower())
        may = high >= low.amax(dims, keepdim=True)
        sure = may & (may.sum(dims, keepdim=True) == 1)
        return Ball(torch.where(sure, 1.0, 0.5 * may.double()), 0.5 * (may & ~sure).double())

    @staticmethod
    def tangent(
        name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent], **keywords: Any
    ) -> Tangent:
        if tangents[0] is None:
            return None
        x = _as_ball(args[0])
        dims, keep = _Reduction._dims(x.mid.ndim, args, keywords)
        return _Reduction._over("sum", tangents[0] * _Extreme._weights(name, x, dims), dims, keep, 1)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents, **keywords: Any) -> Sequence[Tangent]:
        x = _as_ball(args[0])
        dims, keep = _Reduction._dims(x.mid.ndim, args, keywords)
        kept = g if keep else g.reshape(g.shape[0], *(1 if d in dims else size for d, size in enumerate(x.shape)))
        return (kept.expand(g.shape[0], *x.shape) * _Extreme._weights(name, x, dims),)


def _extreme(name: str, p: arb | None, q: arb | None) -> arb | None:
    """The larger or the smaller; None stands for minus infinity."""
    if p is None or q is None:
        return (q if p is None else p) if name in ("amax", "maximum") else None
    return p.max(q) if name in ("amax", "maximum") else p.min(q)


@_rule("maximum", "minimum")
class _Larger:
    """The larger or the smaller of two, entry by entry."""

    @staticmethod
    def value(name: str, a: Argument, b: Argument) -> Reals:
        first, second = _reals(a), _reals(b)
        shape = tuple(torch.broadcast_shapes(first.shape, second.shape))
        pairs = zip(first.expand(shape).entries, second.expand(shape).entries, strict=True)
        return Reals(shape, [_extreme(name, p, q) for p, q in pairs])

    @staticmethod
    def _weight(name: str, args: Sequence[Argument]) -> Ball:
        """1 where the first is it, 0 where the second is, [0, 1] where either may be."""
        gap = _as_ball(args[0]) - _as_ball(args[1])
        gap = gap if name == "maximum" else -gap
        sure = (gap.lower() > 0) | (gap.upper() < 0)
        return Ball(torch.where(sure, (gap.mid > 0).double(), 0.5), 0.5 * (~sure).double())

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent]) -> Tangent:
        weight, n = _Larger._weight(name, args), out.mid.ndim
        total = _plus(_times(tangents[0], weight, n), _times(tangents[1], 1.0 + -weight, n))
        return None if total is None else _spread(total, out)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        weight = _Larger._weight(name, args)
        return _unspread(g * weight, args[0]), _unspread(g * (1.0 + -weight), args[1])


def _left_product(t: Tangents, b: Ball) -> Tangents:
    """Tangents ``(n, *batch, i, k)`` times ``(*batch, k, j)``, as one product per batch entry."""
    n, (i, k) = t.shape[0], t.shape[-2:]
    batch = list(t.shape[1:-2])
    b = b.reshape(*([1] * (len(batch) + 2 - b.mid.ndim)), *b.shape)
    front = t.permute(*range(1, len(batch) + 1), 0, len(batch) + 1, len(batch) + 2).reshape(*batch, n * i, k)
    product = (front @ b).reshape(*batch, n, i, b.shape[-1])
    return product.permute(len(batch), *range(len(batch)), len(batch) + 1, len(batch) + 2)


def _right_product(a: Ball, t: Tangents) -> Tangents:
    """``(*batch, i, k)`` times tangents ``(n, *batch, k, j)``."""
    return _left_product(t.mT, a.mT).mT


@_rule("mm", "bmm")
class _MatrixProduct:
    @staticmethod
    def value(name: str, a: Argument, b: Argument) -> Reals:
        return _reals(a) @ _reals(b)

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent]) -> Tangent:
        a, b = _as_ball(args[0]), _as_ball(args[1])
        left = None if tangents[0] is None else _left_product(tangents[0], b)
        right = None if tangents[1] is None else _right_product(a, tangents[1])
        return _plus(left, right)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        a, b = _as_ball(args[0]), _as_ball(args[1])
        return _left_product(g, b.mT), _right_product(a.mT, g)


@_rule("addmm", "baddbmm")
class _AffineProduct:
    """beta c + alpha a b."""

    @staticmethod
    def value(name: str, c: Argument, a: Argument, b: Argument, *, beta: float = 1, alpha: float = 1) -> Reals:
        return _scaled(_reals(c), beta) + _scaled(_reals(a) @ _reals(b), alpha)

    @staticmethod
    def tangent(
        name: str,
        out: Ball,
        args: Sequence[Argument],
        tangents: Sequence[Tangent],
        *,
        beta: float = 1,
        alpha: float = 1,
    ) -> Tangent:
        product = _MatrixProduct.tangent(name, out, args[1:], tangents[1:])
        product = None if product is None else _scaled(product, alpha)
        c = None if tangents[0] is None else _spread(_scaled(_aligned(tangents[0], out.mid.ndim), beta), out)
        return _plus(product, c)

    @staticmethod
    def cotangent(
        name: str, out: Any, args: Sequence[Argument], g: Tangents, *, beta: float = 1, alpha: float = 1
    ) -> Sequence[Tangent]:
        left, right = _MatrixProduct.cotangent(name, out, args[1:], g)
        return _unspread(_scaled(g, beta), args[0]), *(None if t is None else _scaled(t, alpha) for t in (left, right))


@_rule("_softmax", "_safe_softmax")
class _Softmax:
    """Softmax of one dimension; entries of minus infinity are left out, with their derivatives."""

    @staticmethod
    def value(name: str, x: Argument, dim: int, *_: Argument, **__: Any) -> Reals:
        scores = _reals(x)
        present = torch.tensor([v is not None for v in scores.entries]).reshape(scores.shape)
        empty = ~present.any(dim, keepdim=True)
        if name == "_softmax" and bool(empty.any()):
            raise ValueError("a row of scores is wholly masked: softmax is 0/0 there")
        # A common shift changes nothing; any float serves, the largest midpoint keeps the exponentials in range.
        mids = scores.ball().mid
        top = torch.where(empty, 0.0, mids.amax(dim, keepdim=True)).expand(scores.shape).flatten().tolist()
        weights = Reals(
            scores.shape, [arb(0) if v is None else (v - t).exp() for v, t in zip(scores.entries, top, strict=True)]
        )
        # A row without any entry: 0 over 1 in the safe form.
        return weights / (weights.sum(dim, keepdim=True) + Reals.exact(empty))

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent], **_: Any) -> Tangent:
        t = tangents[0]
        if t is None:
            return None
        dim = args[1] % out.mid.ndim + 1

        def apply(held: Tangents) -> Tangents:
            weighted = held * out
            return weighted - weighted.sum(dim, keepdim=True).expand(*held.shape) * out

        return _with_gain(t, 0.5, apply)  # Theorem S1

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents, **_: Any) -> Sequence[Tangent]:
        return (_Softmax.tangent(name, out, args, (g,)),)  # the Jacobian diag p - pp' is symmetric


@_rule("_log_softmax")
class _LogSoftmax:
    """Scores less the logarithm of the sum of their exponentials along one dimension."""

    @staticmethod
    def value(name: str, x: Argument, dim: int, *_: Argument) -> Reals:
        scores = _reals(x)
        if any(v is None for v in scores.entries):
            raise ValueError("a masked score: its logarithm is minus infinity")
        # A common shift changes nothing; the largest midpoint keeps the exponentials in range.
        shifted = scores - Reals.exact(scores.ball().mid.amax(dim, keepdim=True))
        return shifted - shifted.exp().sum(dim, keepdim=True).map(arb.log)

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent]) -> Tangent:
        t = tangents[0]
        if t is None:
            return None
        dim = args[1] % out.mid.ndim + 1
        return t - (t * out.exp()).sum(dim, keepdim=True).expand(*t.shape)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        dim = args[1] % out.mid.ndim + 1
        return (g - g.sum(dim, keepdim=True).expand(*g.shape) * out.exp(),)


def _normalised(x: Rows, eps: float) -> tuple[Rows, Rows]:
    """Rows (last dimension) centred and divided by the root of their variance plus eps; and one over that root."""
    centred = x - x.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + float(eps)).sqrt().reciprocal()
    return centred * inverse, inverse


def _normalised_tangent(t: Tangents, y: Ball, inverse: Ball) -> Tangents:
    """(t - mean t - y mean(y t)) / root, by the quotient rule."""
    along = (t * y).mean(-1, keepdim=True).expand(*t.shape)
    return (t - t.mean(-1, keepdim=True) - along * y) * inverse


@_rule("native_layer_norm")
class _LayerNorm:
    @staticmethod
    def value(name: str, x: Argument, shape: Sequence[int], w: Argument, b: Argument, eps: float) -> tuple[Reals]:
        ball = _reals(x)
        rows = ball.reshape(-1, math.prod(shape))
        y = _normalised(rows, eps)[0].reshape(*ball.shape)
        y = y if w is None else y * _reals(w)
        return (y if b is None else y + _reals(b),)

    @staticmethod
    def tangent(name: str, out: tuple[Ball], args: Sequence[Argument], tangents: Sequence[Tangent]) -> tuple[Tangent]:
        if any(t is not None for t in tangents[2:]):
            raise ValueError("a norm whose gain or shift depends on the state")
        x, t = _as_ball(args[0]), tangents[0]
        if t is None:
            return (None,)
        width = math.prod(args[1])
        y, inverse = _normalised(x.reshape(-1, width), args[4])
        moved = _normalised_tangent(t.reshape(t.shape[0], -1, width), y, inverse).reshape(*t.shape)
        return (moved if args[2] is None else moved * _as_ball(args[2]),)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        x, width = _as_ball(args[0]), math.prod(args[1])
        g = g if args[2] is None else g * _as_ball(args[2])
        y, inverse = _normalised(x.reshape(-1, width), args[4])
        return (_normalised_tangent(g.reshape(g.shape[0], -1, width), y, inverse).reshape(*g.shape),)  # symmetric


@_rule("native_group_norm")
class _GroupNorm:
    @staticmethod
    def value(
        name: str, x: Argument, w: Argument, b: Argument, N: int, C: int, size: int, groups: int, eps: float
    ) -> tuple[Reals]:
        ball = _reals(x)
        y = _normalised(ball.reshape(N * groups, -1), eps)[0].reshape(N, C, size)
        y = y if w is None else y * _reals(w).reshape(C, 1)
        y = y if b is None else y + _reals(b).reshape(C, 1)
        return (y.reshape(*ball.shape),)

    @staticmethod
    def tangent(name: str, out: tuple[Ball], args: Sequence[Argument], tangents: Sequence[Tangent]) -> tuple[Tangent]:
        x, w, _b, N, C, size, groups, eps = args
        if any(t is not None for t in tangents[1:3]):
            raise ValueError("a norm whose gain or shift depends on the state")
        t = tangents[0]
        if t is None:
            return (None,)
        y, inverse = _normalised(_as_ball(x).reshape(N * groups, -1), eps)
        moved = _normalised_tangent(t.reshape(t.shape[0], N * groups, -1), y, inverse)
        moved = moved.reshape(t.shape[0], N, C, size)
        moved = moved if w is None else moved * _as_ball(w).reshape(C, 1)
        return (moved.reshape(*t.shape),)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        x, w, _b, N, C, size, groups, eps = args
        held = g.reshape(g.shape[0], N, C, size)
        held = held if w is None else held * _as_ball(w).reshape(C, 1)
        y, inverse = _normalised(_as_ball(x).reshape(N * groups, -1), eps)
        moved = _normalised_tangent(held.reshape(g.shape[0], N * groups, -1), y, inverse)
        return (moved.reshape(*g.shape),)


@_rule("masked_fill", "where", "constant_pad_nd")
class _Choice:
    """Entries chosen by a fixed mask, or put in by padding."""

    @staticmethod
    def _parts(name: str, args: Sequence[Any]) -> tuple[Any, Any, Any]:
        """Mask, what stands where it is true, what stands elsewhere."""
        return (args[1], args[2], args[0]) if name == "masked_fill" else (args[0], args[1], args[2])

    @staticmethod
    def value(name: str, *args: Argument) -> Reals:
        if name == "constant_pad_nd":
            x = _reals(args[0])
            index = _padded(x.shape, args[1])
            filler = _reals(args[2] if len(args) > 2 else 0.0).entries[0]
            picked = x.moved(index)
            return Reals(
                picked.shape,
                [filler if i < 0 else v for i, v in zip(index.flatten().tolist(), picked.entries, strict=True)],
            )
        mask, yes, no = _Choice._parts(name, args)
        if not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
            raise ValueError("the mask is not a fixed tensor of booleans")
        first, second = _reals(yes), _reals(no)
        shape = torch.broadcast_shapes(mask.shape, first.shape, second.shape)
        entries = zip(
            mask.expand(shape).flatten().tolist(),
            first.expand(shape).entries,
            second.expand(shape).entries,
            strict=True,
        )
        return Reals(tuple(shape), [p if m else q for m, p, q in entries])

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent]) -> Tangent:
        if name == "constant_pad_nd":
            t = tangents[0]
            return None if t is None else t.moved(_padded(args[0].shape, args[1]))
        mask = _Choice._parts(name, args)[0]
        _, yes, no = _Choice._parts(name, tangents)
        keep = Ball.exact(mask.expand(out.shape))
        drop = Ball.exact(~mask.expand(out.shape))
        return _plus(_times(yes, keep, out.mid.ndim), _times(no, drop, out.mid.ndim))

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        if name == "constant_pad_nd":
            return (g.gathered(_padded(args[0].shape, args[1]), args[0].shape),)
        mask = _Choice._parts(name, args)[0]
        yes = g * Ball.exact(mask.expand(out.shape))
        no = g * Ball.exact(~mask.expand(out.shape))
        parts = (no, None, yes) if name == "masked_fill" else (None, yes, no)
        return tuple(
            None if t is None or not isinstance(a, Ball) else _unspread(t, a) for t, a in zip(parts, args, strict=True)
        )


def _padded(shape: Sequence[int], pad: Sequence[int]) -> Tensor:
    """Where each entry of a padded tensor comes from; -1 for the filler."""
    return F.pad(torch.arange(math.prod(shape)).reshape(tuple(shape)), list(pad), value=-1)


@_rule("convolution")
class _Convolution:
    """Convolution as a matrix product: the windows are moved out, the sums are ours."""

    @staticmethod
    def _plan(shape: Sequence[int], w: Sequence[int], args: Sequence[Argument]) -> tuple[Tensor, list[int], int]:
        """Index of the windows ``(N, groups, channels * window, places)``, shape of the places, groups."""
        _, _, _, stride, padding, dilation, transposed, _, groups = args
        if transposed or len(stride) > 2:
            raise ValueError("transposed or three-dimensional convolution")
        flat = len(stride) == 1
        if flat:
            shape, w = (*shape[:2], 1, shape[2]), (*w[:2], 1, w[2])
            stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
        # unfold wants floating-point numbers; whole ones up to 2^53 are exact. Padding gives 0, hence the shift by 1.
        numbers = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(tuple(shape))
        columns = F.unfold(numbers, tuple(w[2:]), dilation=dilation, padding=padding, stride=stride).long() - 1
        places = [(shape[2 + d] + 2 * padding[d] - dilation[d] * (w[2 + d] - 1) - 1) // stride[d] + 1 for d in (0, 1)]
        return columns.reshape(shape[0], groups, -1, columns.shape[-1]), places[1:] if flat else places, groups

    @staticmethod
    def value(name: str, x: Argument, w: Argument, b: Argument, *more: Argument) -> Reals:
        held, weight = _reals(x), _reals(w)
        index, places, groups = _Convolution._plan(held.shape, weight.shape, (x, w, b, *more))
        product = weight.reshape(groups, weight.shape[0] // groups, -1) @ held.moved(index)
        out = product.reshape(held.shape[0], weight.shape[0], *places)
        return out if b is None else out + _reals(b).reshape(-1, *([1] * len(places)))

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent]) -> Tangent:
        if tangents[1] is not None or tangents[2] is not None:
            raise ValueError("a convolution whose weights depend on the state")
        t = tangents[0]
        if t is None:
            return None
        weight = _as_ball(args[1])
        index, _, groups = _Convolution._plan(_as_ball(args[0]).shape, weight.shape, args)
        moved = _right_product(weight.reshape(groups, weight.shape[0] // groups, -1), t.moved(index))
        return moved.reshape(t.shape[0], *out.shape)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        x, weight = _as_ball(args[0]), _as_ball(args[1])
        index, places, groups = _Convolution._plan(x.shape, weight.shape, args)
        rows = weight.shape[0] // groups
        held = g.reshape(g.shape[0], x.shape[0], groups, rows, math.prod(places))
        columns = _right_product(weight.reshape(groups, rows, -1).mT, held)
        return (columns.gathered(index, x.shape),)


def _with_gain(t: Tangents, gain: float, function: Callable[[Tangents], Tangents]) -> Tangents:
    """A linear map whose 2-norm is known to be at most ``gain``; its rounding is that of the steps that compute it."""
    out = function(Tangents(t.mid))
    return Tangents(out.mid, up(up(gain * t.error) + out.error), up(up(gain * t.local) + out.error))


@_rule("rms", "centred_rms")
class _RowNorm:
    """Rows divided by the root of their mean square plus eps; centred first in the second form (Theorems N1, N3)."""

    @staticmethod
    def value(name: str, x: Argument, eps: float, dim: int) -> Reals:
        held = _reals(x)
        if name == "centred_rms":
            held = held - held.mean(dim, keepdim=True)
        return held / (held.square().mean(dim, keepdim=True) + eps).sqrt()

    @staticmethod
    def inverse_root(name: str, x: Ball, eps: float, dim: int) -> Ball:
        """One over the root, by row."""
        held = x - x.mean(dim, keepdim=True) if name == "centred_rms" else x
        return (held.square().mean(dim, keepdim=True) + eps).sqrt().reciprocal()

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent]) -> Tangent:
        return None if tangents[0] is None else _RowNorm.cotangent(name, out, args, tangents[0])[0]

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents) -> Sequence[Tangent]:
        """The Jacobian of a row is symmetric: (t - y mean(y t)) / root, of the centred t in the second form."""
        x, eps, dim = _as_ball(args[0]), args[1], args[2]
        inverse = _RowNorm.inverse_root(name, x, eps, dim)

        def apply(t: Tangents) -> Tangents:
            along = (t * out).mean(dim + 1, keepdim=True).expand(*t.shape) * out
            held = t - t.mean(dim + 1, keepdim=True) if name == "centred_rms" else t
            return (held - along) * inverse

        return (_with_gain(g, float(inverse.magnitude().max()), apply),)


@_rule("weighted_sum")
class _WeightedSum:
    """Softmax of the last dimension of the scores, times values: o = p v."""

    @staticmethod
    def _weights(s: Argument, safe: bool) -> Any:
        return _Softmax.value("_safe_softmax" if safe else "_softmax", s, -1)

    @staticmethod
    def value(name: str, s: Argument, v: Argument, *, safe: bool) -> Reals:
        held = _reals(v)
        p = _WeightedSum._weights(s, safe)
        return p.reshape(*held.shape[:-2], -1, held.shape[-2]) @ held

    @staticmethod
    def weights(s: Ball, safe: bool) -> Ball:
        """The softmax at the centre, from rounded scores (shaped as they are)."""
        p = _WeightedSum._weights(Reals(tuple(s.shape), _entries(s)), safe)
        return p.ball()

    @staticmethod
    def tangent(name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent], *, safe: bool) -> Tangent:
        s, v = _as_ball(args[0]), _as_ball(args[1])
        p = _WeightedSum.weights(s, safe)
        rows = p.reshape(*v.shape[:-2], -1, v.shape[-2])
        from_values = None if tangents[1] is None else _right_product(rows, tangents[1])
        if tangents[0] is None:
            return from_values
        moved = _softmax_jacobian(p, tangents[0])
        from_scores = _left_product(moved.reshape(moved.shape[0], *rows.shape), v)
        return _plus(from_scores, from_values)

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents, *, safe: bool) -> Sequence[Tangent]:
        s, v = _as_ball(args[0]), _as_ball(args[1])
        p = _WeightedSum.weights(s, safe)
        rows = p.reshape(*v.shape[:-2], -1, v.shape[-2])
        held = _left_product(g, v.mT)
        return _softmax_jacobian(p, held.reshape(held.shape[0], *s.shape)), _right_product(rows.mT, g)


def _entries(ball: Ball) -> list[arb | None]:
    pairs = zip(ball.mid.flatten().tolist(), ball.rad.flatten().tolist(), strict=True)
    return [None if m == -math.inf else arb(m, r) for m, r in pairs]


def _softmax_jacobian(p: Ball, t: Tangents) -> Tangents:
    """(diag p - pp') t over the last dimension; its 2-norm is at most 1/2 (Theorem S1)."""

    def apply(held: Tangents) -> Tangents:
        weighted = held * p
        return weighted - weighted.sum(-1, keepdim=True).expand(*held.shape) * p

    return _with_gain(t, 0.5, apply)


@_rule("gated")
class _Gated:
    """f(g) u, entry by entry."""

    @staticmethod
    def _function(name: str) -> Function:
        return GELU_TANH if name == "gelu_tanh" else FUNCTIONS[name]

    @staticmethod
    def value(name: str, g: Argument, u: Argument, *, function: str) -> Reals:
        return _reals(g).map(_Gated._function(function).value) * _reals(u)

    @staticmethod
    def slopes(args: Sequence[Argument], function: str) -> tuple[Ball, Ball]:
        """Derivatives in g and in u."""
        g, u = _as_ball(args[0]), _as_ball(args[1])
        held = _Gated._function(function)
        return g.map(held.slope) * u, g.map(held.value)

    @staticmethod
    def tangent(
        name: str, out: Ball, args: Sequence[Argument], tangents: Sequence[Tangent], *, function: str
    ) -> Tangent:
        in_g, in_u = _Gated.slopes(args, function)
        return _plus(*(None if t is None else t * s for t, s in zip(tangents, (in_g, in_u), strict=True)))

    @staticmethod
    def cotangent(name: str, out: Any, args: Sequence[Argument], g: Tangents, *, function: str) -> Sequence[Tangent]:
        in_g, in_u = _Gated.slopes(args, function)
        return g * in_g, g * in_u
