"""The walk over a batch of inputs with proofs: settle, certify each, and see when its trajectory enters the ball.

The settling is a search; what a row says is proved is a bound, rounding included, for the exact real map.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fpcheck.certify import Certificate, Verdict, certify
from fpcheck.loop import Loop
from fpcheck.settle import settle
from fpcheck.target import Target

__all__ = ["BoundRow", "Bounds", "bound"]

# Decisions are also asked for where halting usually happens.
_HALTING = 1e-3


@dataclass(frozen=True)
class BoundRow:
    """What was proved about one input. Figures that do not apply are None.

    Attributes:
        index: Which input.
        verdict: What was proved.
        reason: Why not, in words; empty if attracting.
        rate: Bound on the factor per loop step near the fixed point, in the metric.
        ball_rate: The same over the whole ball.
        radius: Radius of the ball, in the metric.
        relative_radius: Radius of a Euclidean ball inside it, over the norm of its centre.
        relative_error: Bound on the Euclidean distance of the fixed point from the centre, over the centre's norm.
        entry_step: First loop step at which the trajectory is proved to be in the ball.
        entry_residual: Its relative residual there.
        stable: Share of tokens whose answer at the fixed point is proved.
        stable_when_halting: Share of tokens whose answer is proved never to change from the first state on whose
            relative residual is at most 1e-3.
        limits: The node with the largest share of the curvature, and its share.
        seconds: How long the proof took.
    """

    index: int
    verdict: Verdict
    reason: str
    rate: float | None = None
    ball_rate: float | None = None
    radius: float | None = None
    relative_radius: float | None = None
    relative_error: float | None = None
    entry_step: int | None = None
    entry_residual: float | None = None
    stable: float | None = None
    stable_when_halting: float | None = None
    limits: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Bounds:
    """All rows, with their certificates.

    Attributes:
        target: Name of the target.
        source: Where block and inputs came from.
        rows: One per input.
        certificates: One per input.
        level: Always ``"bound"``.
    """

    target: str
    source: dict[str, Any]
    rows: tuple[BoundRow, ...]
    certificates: tuple[Certificate, ...]
    level: str = "bound"

    @property
    def passed(self) -> bool:
        """Whether every input was proved to have an attracting fixed point."""
        return all(row.verdict is Verdict.PROVED_ATTRACTING for row in self.rows)


def bound(target: Target, *, max_steps: int = 2000, progress: Callable[[str, int, int], None] | None = None) -> Bounds:
    """Settle every input's loop and certify the point it settles on.

    Args:
        target: Block, injections, start states.
        max_steps: Loop steps per input, at most.
        progress: Called with a stage's name, what is done and what there is to do.

    Raises:
        BlockError, InputError: The block is no pure map on states, or has an operator without a sound rule.

    Guarantee: bound, for the exact real map of the weights and injections as stored.
    """
    tell = progress or (lambda stage, done, total: None)
    # Widening the stored numbers changes none of them, and lets the search settle beyond float32.
    target = target.to(torch.float64)
    loop = Loop(target.block, target.x, z0=target.z0)
    tell("settle", 0, 1)
    settled = settle(loop, target.z0, max_steps=max_steps)
    tell("settle", 1, 1)
    rows, certificates = [], []
    for i in range(loop.batch_size):
        tell("certify", i, loop.batch_size)
        start = time.perf_counter()
        single = loop.sample(i)
        found = certify(single, settled.points[i : i + 1].detach(), readout=target.readout)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            rows.append(_row(i, single, target.z0[i : i + 1], found, seconds, max_steps))
        certificates.append(found)
    tell("certify", loop.batch_size, loop.batch_size)
    return Bounds(target.name, dict(target.source), tuple(rows), tuple(certificates))


def _row(i: int, loop: Loop, z0: Tensor, found: Certificate, seconds: float, max_steps: int) -> BoundRow:
    row = BoundRow(i, found.verdict, found.reason, seconds=seconds)
    if found.verdict is Verdict.UNKNOWN:
        return row
    size = float(found.centre.norm())
    step, residual, halting = _trajectory(loop, z0, found, max_steps)
    total = sum(found.shares.values())
    name, share = max(found.shares.items(), key=lambda pair: pair[1], default=("", 0.0))
    stable = found.decision_stable
    return replace(
        row,
        rate=found.error_rate,
        ball_rate=found.rate,
        radius=found.radius,
        relative_radius=found.euclidean_radius / size if size > 0 else None,
        relative_error=found.euclidean_error_bound / size if size > 0 else None,
        entry_step=step,
        entry_residual=residual,
        stable=None if stable is None else float(stable.double().mean()),
        stable_when_halting=halting,
        limits=f"{name} ({share / total:.0%})" if total > 0 else None,
    )


def _trajectory(
    loop: Loop, z0: Tensor, found: Certificate, max_steps: int
) -> tuple[int | None, float | None, float | None]:
    """Step and relative residual at which the trajectory enters the ball; share decided at halting."""
    entry: int | None = None
    entry_residual: float | None = None
    halting: float | None = None
    if found.verdict is not Verdict.PROVED_ATTRACTING:
        return entry, entry_residual, halting
    z = z0
    for step in range(max_steps):
        image = loop(z)
        residual = float((image - z).norm() / image.norm())
        if halting is None and residual <= _HALTING and found.decisions is not None:
            halting = float(found.decided(z).double().mean())
        if entry is None and found.holds(z):
            entry, entry_residual = step, residual
        if entry is not None and (halting is not None or found.decisions is None):
            break
        z = image
    return entry, entry_residual, halting
