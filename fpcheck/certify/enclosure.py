r"""Values and Jacobians that contain the exact ones, for any block made of covered operators.

The recorded operators of one loop step (:mod:`~fpcheck.certify.trace`) are evaluated in ball arithmetic, and tangents
are passed through them with one bound on their error. The results contain F(z) and J(z) of the exact real map, for
every float z taken as a real number.

Shapes: a state of one sample ``(1, *state)`` with n numbers; a Jacobian ``(n, n)``, row: output, column: input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.fusion import fuse
from fpcheck.certify.operators import CREATORS, MOVERS, rule_for
from fpcheck.certify.reals import Reals, working_precision
from fpcheck.certify.rounding import up
from fpcheck.certify.tangents import Tangents
from fpcheck.certify.trace import Graph, Op, Ref, trace
from fpcheck.errors import NonFiniteError, UnsupportedOperatorError
from fpcheck.loop import Loop

__all__ = ["Enclosure", "enclose"]


@final
@dataclass(frozen=True, eq=False)
class Enclosure:
    """F(z) and J(z), enclosed.

    Attributes:
        value: Contains F(z), ``(1, *state)``.
        jacobian: Midpoint of J(z), ``(n, n)``.
        jacobian_error: J(z) is within this of it, in the Frobenius norm.
        graph: The operators.
        values: What each of them gives at the state.
        forward: Tangents of each, for every direction of the state.
        backward: Cotangents of each, for every direction of the result.
    """

    value: Ball
    jacobian: Tensor
    jacobian_error: float
    graph: Graph
    values: list[Any]
    forward: Passed
    backward: Passed


def enclose(loop: Loop, state: Tensor) -> Enclosure:
    """Enclose one loop step and its Jacobian at a state.

    Args:
        loop: A loop with a batch of one (``loop.sample(i)``).
        state: ``(1, *state)``; its floats are taken as real numbers.

    Raises:
        UnsupportedOperatorError: An operator without a rule, named with the line that calls it.
        NonFiniteError: Something could not be enclosed by finite balls (a root of what may be negative, overflow).

    Guarantee: bound, rounding included; at a kink (ReLU at 0) the Jacobian contains both sides' derivatives.
    Cost: n forward-mode and n reverse-mode products, in float64, and one step at 200 bits.
    """
    return enclose_graph(fuse(trace(loop, state)), state)


def enclose_graph(graph: Graph, state: Tensor) -> Enclosure:
    """The same for a step that is recorded already; see `enclose`."""
    values = evaluate(graph, state)
    out = values[graph.output]
    if not bool(out.mid.isfinite().all() and out.rad.isfinite().all()):
        raise NonFiniteError("F(z) has no finite enclosure at this state; look for roots or logarithms near 0")
    n = state.numel()
    seed = Tangents(torch.eye(n, dtype=torch.float64).reshape(n, *state.shape))
    forward, backward = push(graph, values, seed), pull(graph, values, seed)
    found = forward.tangents[graph.output]
    error = _jacobian_error(forward, backward)
    jacobian = found.mid.reshape(n, n).mT.contiguous()
    if not (bool(jacobian.isfinite().all()) and math.isfinite(error)):
        raise NonFiniteError("J(z) has no finite enclosure at this state; look for roots or logarithms near 0")
    return Enclosure(out, jacobian, error, graph, values, forward, backward)


def _jacobian_error(forward: Passed, backward: Passed) -> float:
    r"""A bound on the error of the forward Jacobian, from what each operator's own rounding does to the result.

    With T = A + M T for the exact tangents of all operators and :math:`\delta` the computed ones' residual,
    :math:`J - \tilde J = -e'(I - M)^{-1} \delta`; with :math:`\tilde G = e' + \tilde G M + \varepsilon` for the
    computed cotangents this is :math:`-\tilde G \delta + \varepsilon (I - M)^{-1} \delta`, and
    :math:`(I - M)^{-1} \delta` is the error of the computed tangents, for which a rough bound does.
    """
    total = 0.0
    for own, size, rough, residual in zip(forward.local, backward.size, forward.error, backward.local, strict=True):
        total = up(total + up(own * size)) if own and size else total
        total = up(total + up(residual * rough)) if residual and rough else total
    return up(total * (1 + 2.0**-40))


def evaluate(graph: Graph, state: Tensor) -> list[Any]:
    """The value of every operator: a ball, a plain tensor of integers or booleans, or a tuple of balls."""
    values: list[Any] = []
    with working_precision():
        for op in graph.ops:
            if op.target == "input":
                values.append(Reals.exact(state))
            elif op.target == "constant":
                assert op.value is not None
                values.append(Reals.exact(op.value) if op.value.is_floating_point() else op.value)
            else:
                values.append(_value(op, values))
        return [_rounded(v) for v in values]


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_rounded(v) for v in value)
    return value.ball() if isinstance(value, Reals) else value


@final
@dataclass(frozen=True, eq=False)
class Passed:
    """Tangents or cotangents of every operator, with bounds.

    Attributes:
        tangents: By operator; None where there is none.
        size: Bounds on the Frobenius norm of what was computed.
        error: Rough bounds on its error, carried along.
        local: Bounds on the residual that the operator's own rounding left.
    """

    tangents: list[Any]
    size: list[float]
    error: list[float]
    local: list[float]


def push(graph: Graph, values: list[Any], seed: Tangents, *, at: int = 0) -> Passed:
    """Pass tangents ``(k, *shape)`` of operator ``at``'s result (default: the state) forward through what follows."""
    tangents: list[Any] = []
    passed = Passed(tangents, [], [], [])
    for i, op in enumerate(graph.ops):
        if i == at:
            tangents.append(seed)
        elif i < at or not any(_moves(tangents[ref]) for ref in op.refs()):
            tangents.append(None)
        else:
            tangents.append(_tangent(op, values, tangents, values[i]))
        _note(passed, tangents[i])
    if tangents[graph.output] is None:  # the step does not depend on the state
        out = values[graph.output]
        tangents[graph.output] = Tangents(torch.zeros((seed.shape[0], *out.shape), dtype=torch.float64))
    return passed


def pull(graph: Graph, values: list[Any], seed: Tangents) -> Passed:
    """Pass cotangents ``(k, *state)`` of the result back through the operators."""
    varying = graph.varying()
    gathered: list[Any] = [None] * len(graph.ops)
    gathered[graph.output] = seed
    for i in range(len(graph.ops) - 1, 0, -1):
        op, g = graph.ops[i], gathered[i]
        if not varying[i] or not _moves(g):
            continue
        for ref, part, item in _cotangents(op, values, _fresh(g), values[i]):
            if varying[ref]:
                gathered[ref] = _added(gathered[ref], part, item, values[ref])
    passed = Passed(gathered, [], [], [])
    for g in gathered:
        _note(passed, g)
    return passed


def _fresh(tangent: Any) -> Any:
    if isinstance(tangent, tuple):
        return tuple(_fresh(t) for t in tangent)
    return tangent.fresh() if isinstance(tangent, Tangents) else None


def _note(passed: Passed, tangent: Any) -> None:
    parts = [t for t in (tangent if isinstance(tangent, tuple) else (tangent,)) if t is not None]
    passed.size.append(up(sum((t.norm() for t in parts), 0.0)) * (1 + 2.0**-45))
    passed.error.append(up(sum((t.error for t in parts), 0.0)) * (1 + 2.0**-45))
    passed.local.append(up(sum((t.local for t in parts), 0.0)) * (1 + 2.0**-45))


def _added(held: Any, part: Tangents, item: int | None, value: Any) -> Any:
    """Add a cotangent to what was gathered; ``item`` says to which entry of a tuple it belongs."""
    if item is None:
        return part if held is None else held + part
    parts: list[Any] = list(held) if held is not None else [None] * len(value)
    parts[item] = part if parts[item] is None else parts[item] + part
    return tuple(parts)


def _cotangents(op: Op, values: list[Any], g: Any, out: Any) -> Iterator[tuple[int, Tangents, int | None]]:
    """The operator's cotangent, for each argument: index, part, and entry where the argument is a tuple."""
    args = _resolve(op.args, values)
    name = op.target.partition(".")[0]
    if op.target == "item":
        yield op.args[0].index, g, op.args[1]
        return
    if name == "_to_copy":
        yield op.args[0].index, g, None
        return
    if name.removesuffix("_copy") in MOVERS:
        yield from _move_cotangents(op, args, g)
        return
    rule = rule_for(op.target)
    if rule is None:
        raise _unsupported(op, "of a tensor that depends on the state")
    try:
        parts = rule.cotangent(name, out, args, g if isinstance(out, Ball) else g[0], **op.kwargs)
    except (ValueError, KeyError, TypeError) as error:
        raise _unsupported(op, str(error)) from error
    for arg, part in zip(op.args, parts, strict=False):
        if isinstance(arg, Ref) and part is not None:
            yield arg.index, part, None


def _move_cotangents(op: Op, args: Any, g: Any) -> Iterator[tuple[int, Tangents, int | None]]:
    held, maps = _index_maps(op, args)
    refs = [r for r, a in zip(_reference_leaves(op.args), _leaves(args), strict=True) if isinstance(a, Ball)]
    sizes = [_count(h.shape) for h in held]
    pieces = zip(maps, g, strict=True) if isinstance(maps, tuple) else ((maps, g),)
    for index, part in pieces:
        if part is None:
            continue
        whole = part.gathered(index, (sum(sizes),))
        start = 0
        for ref, ball, size in zip(refs, held, sizes, strict=True):
            own = Tangents(whole.mid[:, start : start + size], whole.error, whole.local)
            yield ref.index, own.reshape(whole.shape[0], *ball.shape), None
            start += size


def _reference_leaves(args: Any) -> list[Any]:
    return [leaf for a in args for leaf in _reference_leaves(a)] if isinstance(args, tuple) else [args]


def _moves(tangent: Any) -> bool:
    return any(t is not None for t in tangent) if isinstance(tangent, tuple) else tangent is not None


def _value(op: Op, values: list[Any]) -> Any:
    args = _resolve(op.args, values)
    name = op.target.partition(".")[0]
    if op.target == "item":
        if not isinstance(args[0], tuple) or args[1] >= len(args[0]):
            raise _unsupported(op, f"result {args[1]} of the operator before it")
        return args[0][args[1]]
    if op.target in ("view.dtype", "view_copy.dtype"):
        raise _unsupported(op, "it reads bits as another type")
    if name == "_to_copy":
        return _cast(op, args[0])
    if name.removesuffix("_copy") in MOVERS:
        return _move(op, args)
    if name == "embedding" and isinstance(args[1], Tensor):
        return args[0].moved(_rows(args[0].shape, args[1]))
    plain = [a for a in _leaves(args) if isinstance(a, Reals | Tensor)]
    if not any(isinstance(a, Reals) for a in plain) and (name in CREATORS or plain):
        return _exact_result(op, args)
    rule = rule_for(op.target)
    if rule is None:
        raise _unsupported(op)
    try:
        return rule.value(name, *args, **op.kwargs)
    except (ValueError, KeyError, TypeError) as error:
        raise _unsupported(op, str(error)) from error


def _tangent(op: Op, values: list[Any], tangents: list[Any], out: Any) -> Any:
    args, moved = _resolve(op.args, values), _fresh(_resolve(op.args, tangents))
    name = op.target.partition(".")[0]
    if op.target == "item":
        return moved[0][args[1]]
    if name == "_to_copy":
        return moved[0]
    if name.removesuffix("_copy") in MOVERS:
        return _move_tangents(op, args, moved)
    rule = rule_for(op.target)
    if rule is None:
        raise _unsupported(op, "of a tensor that depends on the state")
    # Arguments that are no tensors carry no tangent.
    parts = [t if isinstance(t, Tangents) else None for t in moved]
    try:
        return rule.tangent(name, out, args, parts, **op.kwargs)
    except (ValueError, KeyError, TypeError) as error:
        raise _unsupported(op, str(error)) from error


def _resolve(args: Any, held: list[Any]) -> Any:
    if isinstance(args, Ref):
        return held[args.index]
    return tuple(_resolve(a, held) for a in args) if isinstance(args, tuple) else args


def _leaves(args: Any) -> list[Any]:
    return [leaf for a in args for leaf in _leaves(a)] if isinstance(args, tuple) else [args]


def _operator(op: Op) -> Any:
    name, _, overload = op.target.partition(".")
    return getattr(getattr(torch.ops.aten, name), overload)


def _rows(shape: tuple[int, ...], index: Tensor) -> Tensor:
    return torch.arange(shape[0] * shape[1]).reshape(shape)[index]


def _index_maps(op: Op, args: Any) -> tuple[list[Any], Tensor | tuple[Tensor, ...]]:
    """Where a mover takes each entry of its result from: entry k of all arguments in a row, -1 for a zero.

    Found by moving whole numbers, so it is exact and needs to know nothing about the operator.
    """
    held: list[Any] = []
    start = 1  # what an operator fills in itself is 0

    def numbered(arg: Any) -> Any:
        nonlocal start
        if isinstance(arg, tuple):
            return [numbered(a) for a in arg]
        if not isinstance(arg, Reals | Ball):
            return arg
        held.append(arg)
        first, start = start, start + _count(arg.shape)
        return torch.arange(first, start).reshape(tuple(arg.shape))

    writes = op.target.startswith(("copy.", "select_scatter.", "slice_scatter."))
    if writes and _any_real(args) and not isinstance(args[0], Reals | Ball):
        raise _unsupported(op, "a cast of real numbers to whole ones")
    found = _operator(op)(*[numbered(a) for a in args], **op.kwargs)
    if not held:
        return held, tuple(found) if isinstance(found, list | tuple) else found
    return held, tuple(m - 1 for m in found) if isinstance(found, list | tuple) else found - 1


def _any_real(args: Any) -> bool:
    """Whether real numbers are among the arguments."""
    return any(isinstance(leaf, Reals | Ball) for leaf in _leaves(args))


def _count(shape: Any) -> int:
    return math.prod(shape)


def _move(op: Op, args: Any) -> Any:
    held, maps = _index_maps(op, args)
    if not held:
        return maps  # whole numbers or booleans, moved by torch
    together = Reals((-1,), [entry for h in held for entry in h.entries])
    return tuple(together.moved(m) for m in maps) if isinstance(maps, tuple) else together.moved(maps)


def _move_tangents(op: Op, args: Any, moved: Any) -> Any:
    """The same for every direction; what does not depend on the state has zero tangents."""
    held, maps = _index_maps(op, args)
    tangents = [t for a, t in zip(_leaves(args), _all_tangents(args, moved), strict=True) if isinstance(a, Ball)]
    k = next(t.shape[0] for t in tangents if t is not None)
    rows, error = [], 0.0
    for ball, tangent in zip(held, tangents, strict=True):
        absent = torch.zeros((k, _count(ball.shape)), dtype=torch.float64)
        rows.append(absent if tangent is None else tangent.mid.reshape(k, -1))
        error = up(error + (0.0 if tangent is None else tangent.error))
    together = Tangents(torch.cat(rows, 1), error)
    return tuple(together.moved(m) for m in maps) if isinstance(maps, tuple) else together.moved(maps)


def _all_tangents(args: Any, moved: Any) -> list[Any]:
    """The tangents in the order of the arguments' leaves; None spreads over a list."""
    if not isinstance(args, tuple):
        return [moved]
    parts = moved if isinstance(moved, tuple) else (moved,) * len(args)
    return [leaf for a, t in zip(args, parts, strict=True) for leaf in _all_tangents(a, t)]


def _cast(op: Op, value: Any) -> Any:
    """A cast between floating-point types is the identity on real numbers; of integers it is exact."""
    target = op.kwargs.get("dtype")
    if isinstance(value, Reals):
        if target is not None and not target.is_floating_point:
            raise _unsupported(op, "a cast of real numbers to whole ones")
        return value
    return Reals.exact(value) if target is not None and target.is_floating_point else value


def _exact_result(op: Op, args: Any) -> Any:
    """Operators on whole numbers and booleans, run by torch; tensors that are created hold exact numbers."""
    name, keywords = op.target.partition(".")[0], dict(op.kwargs)
    if keywords.get("device") is not None:
        keywords["device"] = torch.device("cpu")
    found = _operator(op)(*args, **keywords)
    if not found.is_floating_point():
        return found
    numbers = [a for a in _leaves(args) if isinstance(a, float)]
    if name in CREATORS and (name != "arange" or all(a.is_integer() for a in numbers)):
        return Reals.exact(found)
    raise _unsupported(op, "floating-point results of whole-number arguments")


def _unsupported(op: Op, why: str = "") -> UnsupportedOperatorError:
    where = f" at {op.where}" if op.where else ""
    reason = f" ({why})" if why else ""
    return UnsupportedOperatorError(
        f"operator={op.target}{where} has no sound rule{reason}; rewrite that line with operators that have one, or "
        "ask for level estimate"
    )
