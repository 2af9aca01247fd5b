r"""Groups of operators that are one function with a sharp bound.

``x * rsqrt(mean(x^2) + eps)`` bounded operator by operator stretches twenty times more than it does; read as RMSNorm it
stretches by one over the root (Theorem N1). Three groups are recognised; what is not recognised keeps its single rules.

| written | becomes | arguments |
|---|---|---|
| x rsqrt(mean(x^2) + eps), x / sqrt(...), over one dimension | ``rms`` | x, eps, dimension |
| softmax(s) times v, with reshapes between | ``weighted_sum`` | s, v |
| f(g) u for a known f, both varying | ``gated`` | g, u, name of f |

Layer norms with a gain or shift become ``centred_rms`` with a product and a sum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from fpcheck.certify.trace import Graph, Op, Ref

__all__ = ["GATES", "fuse"]

GATES = ("silu", "sigmoid", "tanh", "gelu")
"""Functions whose product with another varying tensor is one node."""
_VIEWS = ("view", "_unsafe_view", "reshape", "expand", "clone", "alias", "detach", "contiguous", "squeeze", "unsqueeze")


def fuse(graph: Graph) -> Graph:
    """Rewrite a graph with the groups as single operators; the map is the same."""
    graph = _split_norms(graph)
    for find in (_rms, _weighted_sum, _gated):
        graph = _rewrite(graph, find)
    return graph


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
    if op.target != "mul.Tensor" or not all(isinstance(a, Ref) for a in op.args):
        return None
    for x, factor in (op.args, op.args[::-1]):
        root = graph.ops[factor.index]
        if root.target != "rsqrt.default" or not varying[x.index]:
            continue
        shifted = graph.ops[root.args[0].index]
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


def _split_norms(graph: Graph) -> Graph:
    """Layer norms without gain and shift, followed by these as a product and a sum."""
    ops: list[Op] = []
    new: dict[int, int] = {}
    rows: dict[int, int] = {}  # a layer norm's first result

    def moved(arg: Any) -> Any:
        if isinstance(arg, Ref):
            return Ref(new[arg.index])
        return tuple(moved(a) for a in arg) if isinstance(arg, tuple) else arg

    # Those of which only the first result is taken, and not mean or root.
    takers = [op.args for op in graph.ops if op.target == "item"]
    simple = {a.index for a, _ in takers} - {a.index for a, which in takers if which != 0}
    for i, op in enumerate(graph.ops):
        if op.target == "item" and op.args[0].index in rows:
            new[i] = rows[op.args[0].index]
            continue
        if op.target == "native_layer_norm.default" and len(op.args[1]) == 1 and op.args[4] >= 0 and i in simple:
            x, _, gain, shift, eps = op.args
            shape = graph.ops[x.index].shape
            assert shape is not None
            ops.append(Op("centred_rms", (moved(x), float(eps), len(shape) - 1), {}, None, op.where, shape))
            for target, extra in (("mul.Tensor", gain), ("add.Tensor", shift)):
                if extra is not None:
                    ops.append(Op(target, (Ref(len(ops) - 1), moved(extra)), {}, None, op.where, shape))
            rows[i] = len(ops) - 1
            new[i] = rows[i]
            continue
        new[i] = len(ops)
        ops.append(dataclasses.replace(op, args=moved(op.args), kwargs={k: moved(v) for k, v in op.kwargs.items()}))
    return Graph(tuple(ops), new[graph.output]).pruned()
