r"""Groups of operators that are one function with a sharp bound.

``x * rsqrt(mean(x^2) + eps)`` bounded operator by operator stretches twenty times more than it does; read as RMSNorm it
stretches by one over the root (Theorem N1). Three groups are recognised; what is not recognised keeps its single rules.

| written | becomes | arguments |
|---|---|---|
| x rsqrt(mean(x^2) + eps), x / sqrt(...), over one dimension | ``rms`` | x, eps, dimension |
| softmax(s) times v, with reshapes between | ``weighted_sum`` | s, v |
| f(g) u for a known f, both varying | ``gated`` | g, u, name of f |

Layer norms and group norms become ``centred_rms`` with a product and a sum. Other quotients by what varies become
products with a reciprocal, and a softmax that weighs nothing a weighted sum of the identity's rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from fpcheck.certify.trace import Graph, Op, Ref

__all__ = ["GATES", "fuse"]

GATES = ("silu", "sigmoid", "tanh", "gelu")
"""Functions whose product with another varying tensor is one node."""
_VIEWS = ("view", "_unsafe_view", "reshape", "expand", "clone", "alias", "detach", "contiguous", "squeeze", "unsqueeze")


def fuse(graph: Graph) -> Graph:
    """Rewrite a graph with the groups as single operators; the map is the same."""
    graph = _rebuilt(graph, _norms)
    for find in (_rms, _weighted_sum):
        graph = _rewrite(graph, find)
    # What is left of quotients and weights when norms and weighted sums are taken out.
    graph = _rebuilt(_rebuilt(graph, _products), _softmax)
    return _rewrite(graph, _gated)


def _name(op: Op) -> str:
    return op.target.partition(".")[0].removesuffix("_copy")


def _rewrite(graph: Graph, find: Callable[[Graph, int, tuple[bool, ...]], Op | None]) -> Graph:
    varying = graph.varying()
    ops = [find(graph, i, varying) or op for i, op in enumerate(graph.ops)]
    return Graph(tuple(ops), graph.output).pruned()


def _through_views(graph: Graph, index: int) -> int:
    """The operator whose entries, in the same order, a chain of reshapes shows."""
    op = graph.ops[index]
    while _name(op) in _VIEWS and isinstance(op.args[0], Ref):
        inner = graph.ops[op.args[0].index]
        if op.shape is None or inner.shape is None or math.prod(op.shape) != math.prod(inner.shape):
            break
        index, op = op.args[0].index, inner
    return index


def _rms(graph: Graph, i: int, varying: tuple[bool, ...]) -> Op | None:
    op = graph.ops[i]
    if op.target not in ("mul.Tensor", "div.Tensor") or not all(isinstance(a, Ref) for a in op.args):
        return None
    for x, factor in (op.args, op.args[::-1])[: 1 if op.target == "div.Tensor" else 2]:
        under = _under_root(graph, factor.index, inverse=op.target == "mul.Tensor")
        if under is None or not varying[x.index]:
            continue
        shifted = graph.ops[under]
        # The bounds of a norm need eps >= 0.
        eps = _shift(shifted)
        if eps is None or not eps >= 0:
            continue
        mean = graph.ops[shifted.args[0].index]
        if mean.target != "mean.dim" or not _keeps(mean) or len(_dims(mean)) != 1:
            continue
        if _square_of(graph, mean.args[0].index) == x.index:
            shape = graph.ops[x.index].shape
            assert shape is not None
            dim = _dims(mean)[0] % len(shape)
            return Op("rms", (x, eps, dim), {}, None, op.where, op.shape)
    return None


def _under_root(graph: Graph, index: int, *, inverse: bool) -> int | None:
    """What a square root, or one over it, is taken of."""
    op = graph.ops[index]
    if inverse and op.target == "reciprocal.default":
        return _under_root(graph, op.args[0].index, inverse=False)
    power = -0.5 if inverse else 0.5
    if op.target == ("rsqrt.default" if inverse else "sqrt.default"):
        return op.args[0].index
    if op.target == "pow.Tensor_Scalar" and op.args[1] == power:
        return op.args[0].index
    return None


def _shift(op: Op) -> float | None:
    """eps of ``x + eps``, or None where the operator is something else."""
    if op.target not in ("add.Tensor", "add.Scalar") or len(op.args) != 2 or op.kwargs.get("alpha", 1) != 1:
        return None
    return float(op.args[1]) if isinstance(op.args[1], int | float) else None


def _keeps(mean: Op) -> bool:
    return bool(mean.args[2] if len(mean.args) > 2 else mean.kwargs.get("keepdim", False))


def _dims(mean: Op) -> tuple[int, ...]:
    dims = mean.args[1]
    return (dims,) if isinstance(dims, int) else tuple(dims or ())


def _square_of(graph: Graph, index: int) -> int | None:
    op = graph.ops[index]
    if op.target == "pow.Tensor_Scalar" and op.args[1] == 2:
        return op.args[0].index
    if op.target == "mul.Tensor" and isinstance(op.args[1], Ref) and op.args[0] == op.args[1]:
        return op.args[0].index
    return None


def _weighted_sum(graph: Graph, i: int, varying: tuple[bool, ...]) -> Op | None:
    op = graph.ops[i]
    if op.target not in ("bmm.default", "mm.default"):
        return None
    p, v = (a.index for a in op.args)
    source = _through_views(graph, p)
    soft = graph.ops[source]
    if _name(soft) not in ("_softmax", "_safe_softmax") or not varying[source]:
        return None
    shape = graph.ops[p].shape
    if soft.shape is None or shape is None or soft.args[1] % len(soft.shape) != len(soft.shape) - 1:
        return None
    if soft.shape[-1] != shape[-1]:
        return None
    return Op(
        "weighted_sum", (soft.args[0], Ref(v)), {"safe": _name(soft) == "_safe_softmax"}, None, op.where, op.shape
    )


def _gated(graph: Graph, i: int, varying: tuple[bool, ...]) -> Op | None:
    op = graph.ops[i]
    if op.target != "mul.Tensor" or not all(isinstance(a, Ref) and varying[a.index] for a in op.args):
        return None
    for first, second in (op.args, op.args[::-1]):
        gate = graph.ops[first.index]
        if _name(gate) in GATES and gate.shape == graph.ops[second.index].shape == op.shape:
            form = _name(gate)
            if form == "gelu" and "tanh" in (gate.kwargs.get("approximate"), *gate.args[1:]):
                form = "gelu_tanh"
            return Op("gated", (gate.args[0], second), {"function": form}, None, op.where, op.shape)
    return None


Emit = Callable[[Op], Ref]
"""Adds an operator to the new graph."""
Renamed = Callable[[Any], Any]
"""Arguments with the new graph's indices."""


def _rebuilt(graph: Graph, rule: Callable[[Graph, int, tuple[bool, ...], Renamed, Emit], Ref | None]) -> Graph:
    """Operators replaced by several; where the rule gives None, they stay."""
    varying = graph.varying()
    ops: list[Op] = []
    new: dict[int, int] = {}

    def renamed(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return Ref(new[arg.index])
        return tuple(renamed(a) for a in arg) if isinstance(arg, tuple) else arg

    def emit(op: Op) -> Ref:
        ops.append(op)
        return Ref(len(ops) - 1)

    for i, op in enumerate(graph.ops):
        found = rule(graph, i, varying, renamed, emit)
        if found is None:
            keywords = {k: renamed(v) for k, v in op.kwargs.items()}
            found = emit(dataclasses.replace(op, args=renamed(op.args), kwargs=keywords))
        new[i] = found.index
    return Graph(tuple(ops), new[graph.output]).pruned()


def _viewed(emit: Emit, x: Ref, shape: tuple[int, ...], where: str) -> Ref:
    return emit(Op("view.default", (x, shape), {}, None, where, shape))


def _norms(graph: Graph, i: int, varying: tuple[bool, ...], renamed: Renamed, emit: Emit) -> Ref | None:
    """Layer norms and group norms without gain and shift, followed by these as a product and a sum."""
    op = graph.ops[i]
    if op.target == "item" and op.args[1] == 0 and _is_plain_norm(graph, op.args[0].index, varying):
        return renamed(op.args[0])
    if not _is_plain_norm(graph, i, varying):
        return None
    x, gain, shift, eps = op.args[0], *op.args[-3 if "layer" in op.target else 1 :][:2], op.args[-1]
    shape = graph.ops[x.index].shape
    assert shape is not None
    if "layer" in op.target:
        width, spread = math.prod(op.args[1]), tuple(op.args[1])
    else:
        channels, size, groups = op.args[4:7]
        width, spread = channels * size // groups, (channels, *([1] * (len(shape) - 2)))
    rows = (math.prod(shape) // width, width)
    whole = shape[-1] == width
    held = renamed(x) if whole else _viewed(emit, renamed(x), rows, op.where)
    flat = shape if whole else rows
    held = emit(Op("centred_rms", (held, float(eps), len(flat) - 1), {}, None, op.where, flat))
    held = held if whole else _viewed(emit, held, shape, op.where)
    for target, extra in (("mul.Tensor", gain), ("add.Tensor", shift)):
        if extra is not None:
            factor = renamed(extra) if "layer" in op.target else _viewed(emit, renamed(extra), spread, op.where)
            held = emit(Op(target, (held, factor), {}, None, op.where, shape))
    return held


def _is_plain_norm(graph: Graph, i: int, varying: tuple[bool, ...]) -> bool:
    """A norm of which only the first result is taken, and not mean or root; its gain does not depend on the state."""
    op = graph.ops[i]
    if op.target not in ("native_layer_norm.default", "native_group_norm.default") or not op.args[-1] >= 0:
        return False
    if any(isinstance(a, Ref) and varying[a.index] for a in op.args[1:]):
        return False
    taken = {other.args[1] for other in graph.ops if other.target == "item" and other.args[0] == Ref(i)}
    return taken == {0}


def _products(graph: Graph, i: int, varying: tuple[bool, ...], renamed: Renamed, emit: Emit) -> Ref | None:
    """Quotients by what varies as products with a reciprocal; factors that both vary, broadcast to one shape."""
    op = graph.ops[i]
    if (
        op.target not in ("mul.Tensor", "div.Tensor")
        or not isinstance(op.args[1], Ref)
        or not varying[op.args[1].index]
    ):
        return None
    first, second = (renamed(a) for a in op.args)
    below = graph.ops[op.args[1].index].shape
    above = graph.ops[op.args[0].index].shape if isinstance(op.args[0], Ref) else ()
    assert op.shape is not None
    assert below is not None
    assert above is not None
    if op.target == "div.Tensor":
        second = emit(Op("reciprocal.default", (second,), {}, None, op.where, below))
    elif above == below or not (isinstance(op.args[0], Ref) and varying[op.args[0].index]):
        return None
    if isinstance(op.args[0], Ref) and varying[op.args[0].index]:
        first, second = (
            a if own == op.shape else emit(Op("expand.default", (a, op.shape), {}, None, op.where, op.shape))
            for a, own in ((first, above), (second, below))
        )
    return emit(Op("mul.Tensor", (first, second), {}, None, op.where, op.shape))


def _softmax(graph: Graph, i: int, varying: tuple[bool, ...], renamed: Renamed, emit: Emit) -> Ref | None:
    """A softmax whose weights are used for themselves: the weighted sum of the rows of the identity."""
    op = graph.ops[i]
    if _name(op) not in ("_softmax", "_safe_softmax") or not varying[i] or not op.shape:
        return None
    if op.args[1] % len(op.shape) != len(op.shape) - 1:
        return None
    keys = op.shape[-1]
    eye = emit(Op("constant", (), {}, torch.eye(keys, dtype=torch.float64), op.where, (keys, keys)))
    rows = (math.prod(op.shape) // keys, keys)
    safe = _name(op) == "_safe_softmax"
    mixed = emit(Op("weighted_sum", (renamed(op.args[0]), eye), {"safe": safe}, None, op.where, rows))
    return _viewed(emit, mixed, op.shape, op.where)
