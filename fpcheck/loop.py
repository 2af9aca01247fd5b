"""A loop: a block together with its injection, seen as a pure map on states, z -> F(z; x).

Shapes: a state is ``(B, *state)``; the injection is a tensor, or a tuple or dict of tensors, each with the
same leading ``B``. Samples are independent of each other: sample i of F(z; x) depends on sample i alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from fpcheck.errors import (
    BatchCouplingError,
    BlockOutputError,
    FpcheckError,
    ImpureBlockError,
    InputError,
    NonFiniteError,
)

__all__ = ["Block", "Injection", "Loop", "map_leaves"]

Injection = Tensor | tuple[Tensor, ...] | dict[str, Tensor] | None
Block = Callable[..., Tensor]

# Two evaluations of the same real map may differ by summation order. Over the depth of a block this grows to
# some tens of rounding units of the largest entry; 1e3 leaves room and still sees any real coupling.
_ROUNDINGS = 1e3
# In bfloat16 and float16 that room would be wider than the values themselves; there, 5 % of the largest entry.
_MOST = 0.05


@final
class Loop:
    """A block with its injection: calling it applies one loop step.

    Args:
        block: ``nn.Module`` or function ``block(z, x) -> z'`` (``block(z)`` when ``x`` is None). Evaluation
            mode, weights fixed, samples independent.
        x: Injection: a tensor, or a tuple or dict of tensors, leading dimension ``B``; None for none.
        z0: A state ``(B, *state)`` to check the block on. Default: shaped like ``x`` when ``x`` is a tensor.
        check: Verify on construction what the mathematics assumes. Costs two calls on the batch and two on
            single samples.

    Raises:
        BlockOutputError: The block changes shape, dtype or device, or returns no tensor.
        ImpureBlockError: Dropout or batch-norm in train mode, two equal calls differ, or the call overwrites its
            arguments or buffers.
        NonFiniteError: Weights, injection or output hold NaN or inf.
        BatchCouplingError: A sample's result depends on its batch.
        InputError: ``x`` or ``z0`` has a wrong type or batch size.

    Example:
        >>> import torch
        >>> loop = Loop(lambda z, x: 0.5 * z + x, torch.ones(2, 3))
        >>> loop(torch.zeros(2, 3))[0]
        tensor([1., 1., 1.])
    """

    def __init__(self, block: Block, x: Injection = None, *, z0: Tensor | None = None, check: bool = True) -> None:
        if not callable(block):
            raise InputError(f"block={block!r} is a {type(block).__name__}; expected a module or function (z, x) -> z'")
        x = tuple(x) if isinstance(x, list) else x  # one type for the batch and for selections of it
        leaves = list(_leaves(x))
        if z0 is None:
            if not (isinstance(x, Tensor) and x.is_floating_point()):
                raise InputError("z0=None; pass z0=, a state to check the block on: it cannot be read off x")
            z0 = torch.zeros_like(x)
        _check_state(z0)
        self._block = block
        self._x = x
        self._batch = z0.shape[0]
        self._k = 1
        self._s = 1.0
        for name, leaf in leaves:
            if leaf.ndim == 0 or leaf.shape[0] != self._batch:
                raise InputError(
                    f"{name}.shape={tuple(leaf.shape)}; expected a leading batch dimension of {self._batch}, as in "
                    f"the state {tuple(z0.shape)}. What all samples share belongs inside the block."
                )
        if check:
            self._check(z0, leaves)

    @property
    def block(self) -> Block:
        """The block as given."""
        return self._block

    @property
    def x(self) -> Injection:
        """The injection as given (a list becomes a tuple)."""
        return self._x

    def leaves(self) -> list[Tensor]:
        """The tensors of the injection, in order."""
        return [leaf for _, leaf in _leaves(self._x)]

    @property
    def batch_size(self) -> int:
        """Number of independent samples."""
        return self._batch

    @property
    def step(self) -> float:
        """Damping step s of ``(1 - s) z + s F(z)``; 1 is the plain loop."""
        return self._s

    @property
    def iterations(self) -> int:
        """How many damped steps of the block one call makes; 1 is the plain loop."""
        return self._k

    def __repr__(self) -> str:
        name = type(self._block).__name__ if isinstance(self._block, nn.Module) else repr(self._block)
        return f"Loop({name}, batch_size={self._batch}, step={self._s:g}, iterations={self._k})"

    def __call__(self, z: Tensor) -> Tensor:
        """Apply the loop once to a state ``(B, *state)``.

        Raises:
            BlockOutputError: The block changes the state's shape, dtype or device.
        """
        for _ in range(self._k):
            out = self._block(z) if self._x is None else self._block(z, self._x)
            _check_output(out, z)
            z = out if self._s == 1.0 else z + self._s * (out - z)
        return z

    def damped(self, s: float) -> Loop:
        """The loop ``z -> (1 - s) z + s F(z)``: same fixed points, other stability.

        Args:
            s: Step > 0; 1 is the loop itself. Steps above 1 (over-relaxation) are allowed.
        """
        if isinstance(s, bool) or not (isinstance(s, int | float) and 0 < s < float("inf")):
            raise InputError(f"s={s!r}; expected a finite number > 0")
        if self._k != 1:
            raise InputError("damped() of an iterated loop; damp first, then iterate: loop.damped(s).iterated(k)")
        return self._copy(s=self._s * s)

    def iterated(self, k: int) -> Loop:
        """The loop applied ``k`` times as one map."""
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise InputError(f"k={k!r}; expected an integer >= 1")
        return self._copy(k=self._k * k)

    def select(self, index: Tensor) -> Loop:
        """The loop on the samples ``index`` (integers or booleans ``(B,)``) alone."""
        picked = map_leaves(self._x, lambda leaf: leaf[index.to(leaf.device)])
        size = int(index.sum()) if index.dtype == torch.bool else len(index)
        return self._copy(x=picked, batch=size)

    def sample(self, i: int) -> Loop:
        """The loop on sample ``i`` alone, as a batch of one."""
        if not -self._batch <= i < self._batch:
            raise InputError(f"i={i}; expected an index into a batch of {self._batch}")
        return self.select(torch.tensor([i % self._batch]))

    def with_injection(self, x: Injection) -> Loop:
        """The loop with another injection, of the same structure and shapes."""
        return self._copy(x=x, batch=self._batch)

    def _copy(
        self, *, x: Injection = None, batch: int | None = None, s: float | None = None, k: int | None = None
    ) -> Loop:
        new = object.__new__(Loop)
        new._block = self._block
        new._x = self._x if batch is None else x
        new._batch = self._batch if batch is None else batch
        new._s = self._s if s is None else s
        new._k = self._k if k is None else k
        return new

    def _check(self, z0: Tensor, leaves: list[tuple[str, Tensor]]) -> None:
        """Call the block a few times and refuse it if it is not a pure map on states."""
        for name, leaf in [("z0", z0), *leaves]:
            _require_finite(name, leaf)
        buffers: dict[str, Tensor] = {}
        if isinstance(self._block, nn.Module):
            _check_modules(self._block)
            for name, parameter in self._block.named_parameters():
                _require_finite(f"weight {name}", parameter)
            buffers = {name: b.detach().clone() for name, b in self._block.named_buffers()}
        # Not at z0 if it can be helped: a start at zero hides a coupling that vanishes there.
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(z0.shape, generator=generator, dtype=torch.float64).to(z0)
        with torch.no_grad():
            first = self._call_or_explain(probe, leaves)
            if not torch.isfinite(first).all():
                probe = z0.detach()  # the block may be defined near its start only
                first = self._call_or_explain(probe, leaves)
                if not torch.isfinite(first).all():
                    raise NonFiniteError(
                        "block(z, x) returned NaN or inf at z0 and at a random state of unit scale; check its weights "
                        "and its divisions (a norm without eps, a fully masked attention row)"
                    )
            second = self(probe)
            if not torch.equal(first, second) and _distance(first, second) > _tolerance(first):
                raise ImpureBlockError(
                    f"two calls block(z, x) with the same z and x differ by {_distance(first, second):.1e}; the block "
                    "must be deterministic: call .eval(), remove sampling and functional dropout"
                )
            if isinstance(self._block, nn.Module):
                for name, buffer in self._block.named_buffers():
                    if name in buffers and not torch.equal(buffers[name], buffer):
                        raise ImpureBlockError(
                            f"the call changed the buffer {name!r}; the block must not update itself: call .eval(), "
                            "or remove the spectral norm or running statistics it updates"
                        )
            if self._batch > 1:
                self._check_independence(probe, first)

    def _call_or_explain(self, z: Tensor, leaves: list[tuple[str, Tensor]]) -> Tensor:
        arguments = [("the state z", z), *leaves]
        before = [argument.clone() for _, argument in arguments]
        try:
            out = self(z)
        except FpcheckError:
            raise
        except Exception as error:
            shape = tuple(z.shape)
            raise BlockOutputError(
                f"block(z, x) failed on a state of shape {shape}, dtype {z.dtype}: {type(error).__name__}: {error}. "
                "Expected block(z, x) -> z'; if the state has another shape, pass z0="
            ) from error
        for (name, argument), copy in zip(arguments, before, strict=True):
            if not torch.equal(argument, copy):
                raise ImpureBlockError(
                    f"the call overwrote {name}; the block must leave its arguments alone: write z = z + x, not z += x"
                )
        return out

    def _check_independence(self, probe: Tensor, whole: Tensor) -> None:
        for i in (0, self._batch - 1):
            try:
                alone = self.sample(i)(probe[i : i + 1])
            except Exception as error:
                raise BatchCouplingError(
                    f"block(z, x) works on the batch of {self._batch} but fails on sample {i} alone "
                    f"({type(error).__name__}: {error}); samples must be independent: pass per-sample tensors through x"
                ) from error
            if _distance(alone, whole[i : i + 1]) > _tolerance(whole):
                raise BatchCouplingError(
                    f"sample {i} alone and in its batch of {self._batch} give different results; samples must be "
                    "independent (no batch statistics, no batch-wide reductions)"
                )


def _leaves(x: Injection) -> Iterator[tuple[str, Tensor]]:
    items: list[tuple[str, Any]]
    if x is None:
        return
    if isinstance(x, Tensor):
        items = [("x", x)]
    elif isinstance(x, tuple):
        items = [(f"x[{i}]", leaf) for i, leaf in enumerate(x)]
    elif isinstance(x, Mapping):
        items = [(f"x[{key!r}]", leaf) for key, leaf in x.items()]
    else:
        raise InputError(f"x is a {type(x).__name__}; expected a tensor, or a tuple or dict of tensors, or None")
    for name, leaf in items:
        if not isinstance(leaf, Tensor):
            raise InputError(f"{name} is a {type(leaf).__name__}; expected a tensor with a leading batch dimension")
        yield name, leaf


def map_leaves(x: Injection, fn: Callable[[Tensor], Tensor]) -> Injection:
    """Apply ``fn`` to every tensor of an injection, keeping its structure."""
    if x is None:
        return None
    if isinstance(x, Tensor):
        return fn(x)
    if isinstance(x, tuple):
        make: Callable[[Iterator[Tensor]], tuple[Tensor, ...]] = getattr(type(x), "_make", tuple)  # named tuples
        return make(fn(leaf) for leaf in x)
    return {key: fn(leaf) for key, leaf in x.items()}


def _check_state(z: object) -> None:
    if not isinstance(z, Tensor):
        raise InputError(f"the state is a {type(z).__name__}; expected a floating-point tensor (B, *state)")
    if not z.is_floating_point():
        raise InputError(f"the state has dtype {z.dtype}; expected a floating-point dtype")
    if z.ndim == 0 or z.shape[0] == 0 or z.numel() == 0:
        raise InputError(
            f"the state has shape {tuple(z.shape)}; expected (B, *state) with at least one sample and entry"
        )


def _check_output(out: object, z: Tensor) -> None:
    if not isinstance(out, Tensor):
        raise BlockOutputError(f"block(z, x) returned a {type(out).__name__}; expected the next state, a tensor like z")
    for name in ("shape", "dtype", "device"):
        got, want = getattr(out, name), getattr(z, name)
        if got != want:
            got, want = (tuple(got), tuple(want)) if name == "shape" else (got, want)
            raise BlockOutputError(
                f"block(z, x) returned {name}={got} for a state of {name}={want}; a loop needs the same {name} in and "
                "out"
            )


def _check_modules(block: nn.Module) -> None:
    stochastic = nn.modules.dropout._DropoutNd
    batch_statistics = nn.modules.batchnorm._BatchNorm
    for name, module in block.named_modules():
        where = name or type(module).__name__
        if not module.training:
            continue
        if isinstance(module, stochastic) and module.p > 0:
            raise ImpureBlockError(f"dropout {where!r} (p={module.p}) is in train mode; call block.eval()")
        if isinstance(module, batch_statistics):
            raise ImpureBlockError(f"batch-norm {where!r} is in train mode; call block.eval()")
        if isinstance(module, nn.MultiheadAttention) and module.dropout > 0:
            raise ImpureBlockError(
                f"attention {where!r} (dropout={module.dropout}) is in train mode; call block.eval()"
            )


def _require_finite(name: str, value: Tensor) -> None:
    if (value.is_floating_point() or value.is_complex()) and not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise NonFiniteError(f"{name} holds {bad} NaN or inf of {value.numel()} entries; a loop needs finite numbers")


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max()) if a.numel() else 0.0


def _tolerance(out: Tensor) -> float:
    return min(_ROUNDINGS * torch.finfo(out.dtype).eps, _MOST) * max(1.0, float(out.abs().max()))
