r"""The real map behind a block: its operators, recorded once, with the user's line for each.

A loop step is traced for one sample with tensors that have shapes but no values. Control flow that depends on values
cannot be followed that way and is refused, so the recorded operators are the same map for every state. In-place
operations are rewritten. Each operator is then read as a function of real numbers: casts are the identity, the weights
and the injection are the real numbers that their floats denote.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functionalize
from torch.fx import Node, traceback
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fpcheck.errors import InputError, UnsupportedOperatorError
from fpcheck.loop import Loop

__all__ = ["Graph", "Op", "Ref", "trace"]


@final
@dataclass(frozen=True)
class Ref:
    """An argument that is the result of an earlier operator."""

    index: int


@final
@dataclass(frozen=True)
class Op:
    """One operator: ``target`` is its name with overload ("mul.Tensor"), "input", "constant" or "item".

    Args:
        target: Which operator.
        args: Positional arguments; tensors as `Ref`, also inside lists.
        kwargs: Keyword arguments, likewise.
        value: The tensor of a "constant".
        where: The user's file and line, or an empty string.
        shape: Shape of the result, None if it is not a tensor.
    """

    target: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    value: Tensor | None
    where: str
    shape: tuple[int, ...] | None

    def refs(self) -> Iterator[int]:
        """Indices of the operators whose results it takes."""
        yield from _refs(self.args)
        yield from _refs(tuple(self.kwargs.values()))


def _refs(args: Any) -> Iterator[int]:
    if isinstance(args, Ref):
        yield args.index
    elif isinstance(args, tuple | list):
        for part in args:
            yield from _refs(part)


@final
@dataclass(frozen=True)
class Graph:
    """A map on states ``(1, *state)`` as operators in order; ``ops[0]`` is the state, ``output`` the result's index."""

    ops: tuple[Op, ...]
    output: int

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the state, with its leading 1."""
        shape = self.ops[0].shape
        assert shape is not None
        return shape

    def varying(self) -> tuple[bool, ...]:
        """For each operator, whether its result depends on the state."""
        found = [True]
        for op in self.ops[1:]:
            found.append(any(found[i] for i in op.refs()))
        return tuple(found)

    def pruned(self) -> Graph:
        """Without what the result does not need (but for the input)."""
        needed = {0, self.output}
        for i in range(len(self.ops) - 1, -1, -1):
            if i in needed:
                needed.update(self.ops[i].refs())
        order = sorted(needed)
        new = {old: k for k, old in enumerate(order)}

        def moved(arg: Any) -> Any:
            if isinstance(arg, Ref):
                return Ref(new[arg.index])
            return tuple(moved(a) for a in arg) if isinstance(arg, tuple) else arg

        ops = [
            dataclasses.replace(op, args=moved(op.args), kwargs={k: moved(v) for k, v in op.kwargs.items()})
            for op in (self.ops[old] for old in order)
        ]
        return Graph(tuple(ops), new[self.output])


def trace(step: Loop | Callable[[Tensor], Tensor], state: Tensor) -> Graph:
    """Record one step of a loop on one sample, or another map of its state, such as a read-out.

    Args:
        step: A loop with a batch of one (``loop.sample(i)``), or a function of a state.
        state: A state ``(1, *state)``; only shape and dtype count.

    Raises:
        InputError: More than one sample.
        UnsupportedOperatorError: The block looks at values (``if z.norm() > 1``), or calls what cannot be recorded.
    """
    batch = step.batch_size if isinstance(step, Loop) else 1
    if batch != 1 or state.shape[:1] != (1,):
        raise InputError(f"batch_size={batch}, state={tuple(state.shape)}; expected one sample: loop.sample(i)")

    def watched(z: Tensor) -> Tensor:
        with _Watch():
            return step(z)

    frozen = [p for p in _parameters(step) if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _NoFastPath(), torch.no_grad():
            with traceback.preserve_node_meta():
                from torch.fx.experimental.proxy_tensor import make_fx  # slow to import, and only needed here

                module = make_fx(
                    functionalize(watched, remove="mutations_and_views"),
                    tracing_mode="fake",
                    _allow_non_fake_inputs=True,
                )(state.detach().clone())
            graph = _graph(module, state)
            _replay(module, step, state)
    except UnsupportedOperatorError:
        raise
    except Exception as error:  # torch reports what it cannot trace in many classes
        raise UnsupportedOperatorError(
            f"the block cannot be recorded ({type(error).__name__}: {str(error).splitlines()[0]}); expected tensor "
            "operators only, no branch on values and no .item()"
        ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
    return graph


def _replay(module: torch.fx.GraphModule, step: Callable[[Tensor], Tensor], state: Tensor) -> None:
    """Run what was recorded at two states that it has not seen, and compare with the loop.

    Whatever escapes the recording (numbers that leave torch, memory that nobody filled) shows here.
    """
    # Small steps from the state: the block may be defined near it only.
    generator = torch.Generator().manual_seed(0)
    size = float(state.detach().abs().max()) or 1.0
    for scale in (0.0, 1e-2 * size):  # choice: far beyond rounding, in every dtype
        noise = torch.randn(state.shape, generator=generator, dtype=torch.float64)
        probe = (state.detach() + scale * noise.to(state)).to(state)
        expected = step(probe)
        # Both run the same operators; kernels may still add in another order.
        # choice: wide of any rounding, and far below the probes.
        room = 1e6 * torch.finfo(state.dtype).eps * (1 + float(expected.detach().abs().max()))
        gap = float((module(probe.clone()) - expected).abs().max())
        if gap > room and math.isfinite(room):
            raise UnsupportedOperatorError(
                f"what was recorded differs from the block by {gap:.1e} at the same state: the block computes outside "
                "of torch, or with memory that nobody filled; expected tensor operators only"
            )


class _Watch(TorchFunctionMode):
    """Notes the user's line of every call, and stops values from leaving torch."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _LEAKS:
            raise UnsupportedOperatorError(
                f"Tensor.{func.__name__}{_at(_caller())} takes values out of torch, where no rule can follow; "
                "rewrite that line with tensor operators, or ask for level estimate"
            )
        traceback.set_stack_trace([_caller()])
        return func(*args, **(kwargs or {}))


_LEAKS = frozenset(
    {
        Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.data_ptr, Tensor.untyped_storage, Tensor.__dlpack__,
        Tensor.storage,
    }
)  # fmt: skip


class _NoFastPath:
    """Keeps attention modules on the path of single operators."""

    def __enter__(self) -> None:
        self.before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self.before)


def _parameters(step: Any) -> list[nn.Parameter]:
    owner = step.block if isinstance(step, Loop) else getattr(step, "__self__", step)
    return list(owner.parameters()) if isinstance(owner, nn.Module) else []


def _graph(module: torch.fx.GraphModule, state: Tensor) -> Graph:
    ops: list[Op] = []
    index: dict[Node, int] = {}

    def convert(arg: Any) -> Any:
        if isinstance(arg, Node):
            return Ref(index[arg])
        if isinstance(arg, list | tuple):
            return tuple(convert(a) for a in arg)
        return arg

    output = -1
    for node in module.graph.nodes:
        where = node.meta.get("stack_trace") or ""
        if node.op == "placeholder":
            op = Op("input", (), {}, None, where, tuple(state.shape))
        elif node.op == "get_attr":
            value = _attribute(module, str(node.target)).detach()
            op = Op("constant", (), {}, value, where, tuple(value.shape))
        elif node.op == "output":
            output = index[_single(node.args[0])]
            break
        elif node.target.__class__.__name__ == "OpOverload":
            target = node.target
            name = f"{target._schema.name.partition('::')[2]}.{target._overloadname}"
            if target._schema.is_mutable:
                name = _not_in_place(node, name, where)
            if name in _FILLED and _fills_exactly(node):
                shape = _shape(node)
                assert shape is not None
                index[node] = len(ops)
                ops.append(Op("constant", (), {}, _FILLED[name](shape, dtype=node.meta["val"].dtype), where, shape))
                continue
            arguments = tuple(convert(a) for a in node.args)
            keywords = {k: convert(v) for k, v in node.kwargs.items()}
            op = Op(name, arguments, keywords, None, where, _shape(node))
        elif getattr(node.target, "__name__", "") == "getitem":
            op = Op("item", tuple(convert(a) for a in node.args), {}, None, where, _shape(node))
        else:
            raise UnsupportedOperatorError(f"operator={node.target}{_at(where)} cannot be read as tensor operators")
        index[node] = len(ops)
        ops.append(op)
    return Graph(tuple(ops), output).pruned()


# Tensors of zeros and ones depend on the shape of their argument only.
_FILLED = {
    "zeros_like.default": torch.zeros,
    "new_zeros.default": torch.zeros,
    "ones_like.default": torch.ones,
    "new_ones.default": torch.ones,
}
# Operators whose result is a new tensor, of which nothing else can be a view.
_NEW = frozenset({"mean.dim", "zeros_like.default", "ones_like.default", "zeros.default", "ones.default"})


def _fills_exactly(node: Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _not_in_place(node: Node, name: str, where: str) -> str:
    """The operator without side effect that an in-place one amounts to, if nothing else sees its argument.

    Writing into a tensor changes every view of it; a graph that is read as a function would lose that.
    """
    first = node.args[0]
    plain, _, overload = name.partition(".")
    if isinstance(first, Node) and plain.endswith("_") and len(first.users) == 1 and _target_name(first) in _NEW:
        return f"{plain[:-1]}.{overload}"
    raise UnsupportedOperatorError(
        f"operator={name}{_at(where)} writes into a tensor that others may see; build that tensor without writing into "
        "it (torch.where, torch.cat), or ask for level estimate"
    )


def _target_name(node: Node) -> str:
    target: Any = node.target
    if target.__class__.__name__ != "OpOverload":
        return ""
    return f"{target._schema.name.partition('::')[2]}.{target._overloadname}"


def _single(value: Any) -> Node:
    return value[0] if isinstance(value, list | tuple) else value


def _attribute(module: nn.Module, path: str) -> Tensor:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _shape(node: Node) -> tuple[int, ...] | None:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, Tensor) else None


_OWN = {str(Path(inspect.getfile(torch)).parent), str(Path(__file__).parent)}


def _caller() -> str:
    """The innermost line of the call stack outside torch and this room, as ``file:line``."""
    frame = inspect.currentframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if not any(file.startswith(own) for own in _OWN):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _at(where: str) -> str:
    return f" ({where})" if where else ""
