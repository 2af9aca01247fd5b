"""The iteration that all solvers share: evaluate, judge, drop finished samples, advance the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.solve.base import default_rtol, resolve_rtol, working_dtype
from fpcheck.solve.monitor import RUNNING, Figures, Flags, Monitor
from fpcheck.solve.solution import Solution
from fpcheck.status import Status

__all__ = ["AbstractMethod", "check_start", "iterate", "pick"]


class AbstractMethod(ABC):
    """How a solver chooses its next state; holds one row of memory per running sample.

    States are never written to in place: what was kept of an earlier step stays what it was.
    """

    stationary = False
    """Whether every step applies the same map, so that a returning state means a cycle."""

    resolution: Figures | float = 1.0
    """Step with which a residual enters the state, for all samples or ``(b,)``."""

    @abstractmethod
    def advance(self, z: Tensor, fz: Tensor, last: Monitor) -> Tensor:
        """The next states ``(b, *state)``.

        Args:
            z: States.
            fz: Their images ``F(z)``.
            last: Holds the figures of this evaluation: ``last.residual``, ``last.absolute``, ``last.scale``.
        """

    def keep(self, mask: Tensor) -> None:  # noqa: B027  # methods without memory have nothing to forget
        """Forget the samples that stopped."""


def pick(mask: Flags, new: Tensor, old: Tensor) -> Tensor:
    """``new`` where ``mask`` ``(b,)``, ``old`` elsewhere; copies nothing when all samples agree."""
    if mask.all():
        return new
    if not mask.any():
        return old
    return torch.where(torch.from_numpy(mask).to(new.device).view(-1, *[1] * (new.ndim - 1)), new, old)


@torch.no_grad()
def iterate(
    loop: Loop,
    z0: Tensor,
    method: AbstractMethod,
    *,
    rtol: float | None,
    atol: float,
    max_steps: int,
    best: bool,
) -> Solution:
    """Run ``method`` until every sample is decided; a decided sample is taken out of the batch.

    Args:
        loop: The map.
        z0: Start states ``(B, *state)``.
        method: Chooses the next state.
        rtol: Relative tolerance; None for the default of the dtype, under autocast of the one cast to.
        atol: Absolute tolerance.
        max_steps: States evaluated per sample, at most.
        best: Hand back the best state seen where the solve failed, instead of the last.
    """
    check_start(loop, z0)
    # Rounding in autocast's dtype sets the floor of the residual, although the state is wider.
    rtol = resolve_rtol(default_rtol(working_dtype(z0)) if rtol is None else rtol, z0.dtype)
    batch = len(z0)
    monitor = Monitor(z0, rtol=rtol, atol=atol, stationary=method.stationary)
    status = [Status.BUDGET] * batch
    relative, absolute = np.zeros(batch), np.zeros(batch)
    steps, period = np.zeros(batch, dtype=np.int64), np.zeros(batch, dtype=np.int64)

    running, z = loop, z0.detach().clone()
    value = z.clone()
    kept, kept_relative, kept_absolute = z, np.full(batch, np.inf), np.full(batch, np.inf)
    for step in range(1, max_steps + 1):
        fz = running(z)
        code = monitor.judge(running, z, fz, method.resolution)
        left = code == RUNNING
        if step == max_steps and left.any():
            code[left] = monitor.out_of_budget(running, z, fz, method.resolution)[left]
        done = code != RUNNING

        # With ``best``, a failed sample hands back its best state; a converged one always the state that passed.
        take = (code == Status.CONVERGED.value) | (monitor.relative < kept_relative) | (not best)
        kept = pick(take, z, kept)
        kept_relative = np.where(take, monitor.relative, kept_relative)
        kept_absolute = np.where(take, monitor.absolute, kept_absolute)
        if done.any():
            stopped = monitor.index[done]
            steps[stopped] = step
            period[stopped] = np.where(code == Status.CYCLE.value, monitor.period, 0)[done]
            relative[stopped], absolute[stopped] = kept_relative[done], kept_absolute[done]
            for i, member in zip(stopped, code[done], strict=True):
                status[i] = Status(int(member))
            alive = torch.from_numpy(~done).to(z.device)
            value[torch.from_numpy(stopped).to(z.device)] = kept[~alive]
            if done.all():
                break
            z, fz, kept = z[alive], fz[alive], kept[alive]
            kept_relative, kept_absolute = kept_relative[~done], kept_absolute[~done]
            monitor.keep(alive)
            method.keep(alive)
            running = loop.select(torch.from_numpy(monitor.index).to(z.device))
        z = method.advance(z, fz, monitor)

    def to_device(row: np.ndarray) -> Tensor:
        return torch.from_numpy(row).to(z0.device)

    return Solution(
        value=value, status=tuple(status), residual=to_device(relative), residual_norm=to_device(absolute),
        steps=to_device(steps), period=to_device(period), history=to_device(np.stack(monitor.history)),
        rtol=rtol, atol=atol,
    )  # fmt: skip


def check_start(loop: Loop, z0: Tensor) -> None:
    """Refuse start states that no solver can work with.

    Raises:
        InputError: Not a floating-point tensor of the loop's batch size.
        NonFiniteError: NaN or inf.
    """
    if not isinstance(z0, Tensor) or not z0.is_floating_point():
        found = z0.dtype if isinstance(z0, Tensor) else type(z0).__name__
        raise InputError(f"z0 has type {found}; expected a floating-point tensor (B, *state)")
    if z0.ndim == 0 or len(z0) != loop.batch_size or z0.numel() == 0:
        raise InputError(f"z0.shape={tuple(z0.shape)}; expected (B, *state) with B={loop.batch_size}, as in x")
    if not torch.isfinite(z0).all():
        raise NonFiniteError("z0 holds NaN or inf; start from finite states")
