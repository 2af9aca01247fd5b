"""Where a loop goes: it is run on as far as its dtype can tell, and helped to a fixed point where it finds none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from fpcheck.loop import Loop
from fpcheck.solve import Anderson, Picard, Solution
from fpcheck.status import Status

__all__ = ["Settled", "settle"]

# The loop is run on to a residual at which a few rounding units of the dtype remain: rates and spectra are read off
# there, and are worth no more than the point they belong to.
_FLOOR = {torch.float64: 1e-13, torch.float32: 1e-6}


@final
@dataclass(frozen=True, eq=False)
class Settled:
    """Where each sample ended.

    Attributes:
        run: The plain loop's own run.
        points: States ``(B, *state)`` to look at: fixed points where ``kind`` says so, else the last states.
        residual: Their relative residuals ``(B,)``.
        kind: "loop" if the loop settled there, "found" if only an accelerated solver did, None if neither did.
    """

    run: Solution
    points: Tensor = field(repr=False)
    residual: Tensor
    kind: tuple[str | None, ...]


@torch.no_grad()
def settle(loop: Loop, z0: Tensor, *, max_steps: int = 2000) -> Settled:
    """Run the plain loop to the rounding floor; where it does not settle, look for a fixed point from where it got to.

    Args:
        loop: The map.
        z0: Start states ``(B, *state)``.
        max_steps: Loop steps per sample, at most.
    """
    run = Picard(rtol=_FLOOR.get(z0.dtype), max_steps=max_steps).solve(loop, z0)
    points, residual = run.value.clone(), run.residual.clone()
    kind: list[str | None] = ["loop" if s is Status.CONVERGED else None for s in run.status]
    lost = [i for i, k in enumerate(kind) if k is None and torch.isfinite(run.value[i]).all()]
    if lost:
        where = torch.tensor(lost)
        found = Anderson(rtol=run.rtol, memory=10, max_steps=500).solve(loop.select(where), run.value[where])
        for j, i in enumerate(lost):
            if found.status[j] is Status.CONVERGED:
                points[i], residual[i], kind[i] = found.value[j], found.residual[j], "found"
    return Settled(run, points, residual, tuple(kind))
