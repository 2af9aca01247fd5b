"""One loop step as a pure function of the state and of every tensor that it depends on.

What is differentiated has to be an argument: `Step` takes the injection, what all samples share, and the block's
weights as one flat tuple of tensors, and autograd and `torch.func` see nothing else. A tensor that requires a gradient
but reaches the block only through a closure would be lost in silence; it is found, and refused by name.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.utils import parametrize

from fpcheck.errors import GradientNotAvailableError, InputError
from fpcheck.loop import Block, Injection, Loop, map_leaves
from fpcheck.solve.base import working_dtype

__all__ = ["Step", "transformed", "weights_once"]


@final
@dataclass(frozen=True, eq=False)
class Step:
    """F(z; tensors): the loop's step, damping and iteration of its views included.

    Attributes:
        block: As given.
        structure: The injection with its leaves left out; they are put in at each call.
        samples: How many tensors have one row per sample: the leaves of the injection. They come first.
        shared: How many follow that all samples share.
        names: Of the block's weights and floating-point buffers, which come last.
        autocast: Device type and dtype that were in force, or None.
        dtype: That the step's products are rounded in.
        view: Damping step and number of iterations of the loop.
    """

    block: Block
    structure: Injection
    samples: int
    shared: int
    names: tuple[str, ...]
    autocast: tuple[str, torch.dtype] | None
    dtype: torch.dtype
    view: tuple[float, int]

    @staticmethod
    def of(loop: Loop, shared: tuple[Tensor, ...], z0: Tensor) -> tuple[Step, tuple[Tensor, ...]]:
        """The step of a loop, and its tensors."""
        leaves = loop.leaves()
        # A step lives as long as the graph: it must not hold on to the injection.
        structure = map_leaves(loop.x, lambda _: torch.empty(0))
        weights = dict(_weights(loop.block))
        _refuse_sharded(weights, z0)
        kind = z0.device.type
        autocast = (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
        view = (loop.step, loop.iterations)
        step = Step(loop.block, structure, len(leaves), len(shared), tuple(weights), autocast, working_dtype(z0), view)
        return step, (*leaves, *shared, *weights.values())

    def __call__(self, z: Tensor, *tensors: Tensor) -> Tensor:
        """One loop step."""
        with weights_once():
            return self.on(tensors)(z)

    def on(self, tensors: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
        """The step with its tensors put in; to be called inside one `weights_once`."""
        leaves, rest = tensors[: self.samples], tensors[self.samples :]
        step = self._of_samples(rest)
        return lambda z: step(z, leaves)

    def loop(self, z0: Tensor, tensors: tuple[Tensor, ...]) -> Loop:
        """The same as a `Loop`, whose samples a solver can pick."""
        leaves, rest = tensors[: self.samples], tensors[self.samples :]
        step = self._of_samples(rest)
        if not leaves:
            return Loop(lambda z: step(z, ()), z0=z0, check=False)
        return Loop(step, leaves, z0=z0, check=False)

    def refuse_hidden(self, z: Tensor, tensors: tuple[Tensor, ...]) -> None:
        """Refuse a block whose result has a derivative in a tensor that is none of its arguments.

        At any level of nested transforms, and also where a transform maps over such a tensor. One sample tells.

        Raises:
            GradientNotAvailableError: It names the tensor where it can.
        """
        rows = [_plain(t)[:1] for t in (z, *tensors[: self.samples])]
        with torch.enable_grad():
            out = self(rows[0], *rows[1:], *map(_plain, tensors[self.samples :]))
        if not isinstance(out, Tensor) or not _followed(out):  # what is no state is the loop's to refuse
            return
        found = ", ".join(_hidden(self.block, tensors)) or "a tensor that only its code can see"
        raise GradientNotAvailableError(
            f"the block depends on {found}, which requires a gradient, or is mapped over, but is no argument, so its "
            "gradient would be lost. Pass it: fixed_point(block, z0, x, W) calls block(z, x, W); make it a parameter "
            "or buffer of the block; or detach it"
        )

    def _of_samples(self, rest: tuple[Tensor, ...]) -> Callable[[Tensor, tuple[Tensor, ...]], Tensor]:
        """The step as a function of what differs between samples."""
        shared = rest[: self.shared]
        call = self._with(dict(zip(self.names, rest[self.shared :], strict=True)))
        s, k = self.view

        def step(z: Tensor, leaves: tuple[Tensor, ...]) -> Tensor:
            left = iter(leaves)
            x = map_leaves(self.structure, lambda _: next(left))
            more = shared if x is None else (x, *shared)
            with self._casting():
                for _ in range(k):
                    out = call(z, *more)
                    z = out if s == 1.0 else z + s * (out - z)
            return z

        return step

    def _with(self, weights: dict[str, Tensor]) -> Callable[..., Tensor]:
        if not isinstance(self.block, nn.Module):
            return self.block
        block, own = self.block, dict(_weights(self.block))
        if all(weights[name] is own[name] for name in self.names):
            return block
        return lambda *arguments: functional_call(block, weights, arguments)

    def _casting(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.autocast[0], self.autocast[1])


def _weights(block: Block) -> Iterator[tuple[str, Tensor]]:
    """Parameters, and the buffers that can have a gradient; tied ones once."""
    if isinstance(block, nn.Module):
        yield from block.named_parameters()
        yield from ((n, b) for n, b in block.named_buffers() if b.is_floating_point() or b.is_complex())


@contextmanager
def weights_once() -> Iterator[None]:
    """Compute parametrised weights once inside, each.

    A caller's own ``parametrize.cached()`` is set aside meanwhile: what it holds may belong to other weights, or to no
    graph at all, and a gradient would be lost.
    """
    before = parametrize._cache, parametrize._cache_enabled
    parametrize._cache, parametrize._cache_enabled = {}, 1
    try:
        yield
    finally:
        parametrize._cache, parametrize._cache_enabled = before


def transformed() -> bool:
    """Whether a `torch.func` transform is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # torch offers no public way to ask


def _refuse_sharded(weights: dict[str, Tensor], z0: Tensor) -> None:
    """Refuse shards that the block itself would gather at each call: the gathered weights are no arguments of it."""
    module = sys.modules.get("torch.distributed.tensor")  # not imported yet: no tensor is sharded
    if module is None or isinstance(z0, module.DTensor):
        return
    for name, weight in weights.items():
        if isinstance(weight, module.DTensor):
            raise InputError(
                f"weight {name} is a DTensor and the state is not; with FSDP, call fully_shard on the FixedPoint layer "
                "or on what holds it, not on its block: whole weights are needed along the solve"
            )


def _plain(t: Tensor) -> Tensor:
    """The tensor behind all transforms; of one that is mapped over, the first entry."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(t):
        inner = functorch.get_unwrapped(t)
        t = inner.select(functorch.maybe_get_bdim(t), 0) if functorch.is_batchedtensor(t) else inner
    return t.detach()


def _followed(out: Tensor) -> bool:
    """Whether autograd, forward mode or a transform at any level follows this tensor."""
    functorch = torch._C._functorch
    with ExitStack() as levels:
        while True:
            if functorch.is_batchedtensor(out) or out.requires_grad or forward_ad.unpack_dual(out).tangent is not None:
                return True
            if not transformed():
                return False
            levels.enter_context(retrieve_current_functorch_interpreter().lower())
            if functorch.is_functorch_wrapped_tensor(out):
                out = functorch.get_unwrapped(out)


def _hidden(block: Block, tensors: tuple[Tensor, ...]) -> Iterator[str]:
    """Names of tensors that require a gradient and that the block's code can see."""
    code: Any = type(block).forward if isinstance(block, nn.Module) else block
    seen: dict[str, Any] = dict(vars(block)) if isinstance(block, nn.Module) else {}
    try:
        held = inspect.getclosurevars(inspect.unwrap(code))
        seen = {**held.globals, **held.nonlocals, **seen}
    except TypeError:
        pass  # a callable object: no closure to look into
    for name, value in seen.items():
        if isinstance(value, Tensor) and value.requires_grad and not any(value is t for t in tensors):
            yield f"{name!r} of shape {tuple(value.shape)}"
        elif isinstance(value, nn.Module) and value is not block and any(p.requires_grad for p in value.parameters()):
            yield f"the weights of {name!r}"
