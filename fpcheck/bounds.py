"""The walk over a batch of inputs with proofs: settle, certify each, and see when its trajectory enters the ball.

The settling is a search; what a row says is proved is a bound, rounding included, for the exact real map.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from fpcheck.certify import Certificate, Verdict, certify, decisions
from fpcheck.certify.settings import Fast, Sharp
from fpcheck.certify.statistical import Share, share
from fpcheck.errors import UnsupportedOperatorError
from fpcheck.loop import Loop
from fpcheck.settle import settle
from fpcheck.target import Target

__all__ = ["BoundRow", "Bounds", "bound", "statistical"]

# Decisions are also asked for where halting usually happens.
_HALTING = 1e-3
# choice: how far into the ball a trajectory is followed, for the figure.
_FOLLOWED = 1e-3
# Balls are made longer towards the first state with this relative residual: some three times the one above.
_AHEAD = 3e-3


@final
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
        undecided: Why nothing is said about answers although there is a read-out; else empty.
        shares: By node, its share of what the Jacobian's bound grows by over the ball: a guide to what limits
            the radius.
        distances: By loop step, a bound on the distance of the trajectory from the centre, over the radius: the
            trajectory is in the ball where this is at most 1. Followed to a thousandth of the radius.
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
    undecided: str = ""
    shares: Mapping[str, float] = field(default_factory=dict)
    distances: tuple[float, ...] = ()
    seconds: float = 0.0


@final
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


def bound(
    target: Target,
    *,
    max_steps: int = 2000,
    setting: Fast | Sharp | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    finished: Callable[[BoundRow, Certificate, Loop], None] | None = None,
) -> Bounds:
    """Settle every input's loop and certify the point it settles on.

    Args:
        target: Block, injections, start states.
        setting: How much work goes into the bounds; see `certify`.
        max_steps: Loop steps per input, at most.
        progress: Called with a stage's name, what is done and what there is to do.
        finished: Called with each input's row, certificate and loop as soon as they are there.

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
        with torch.no_grad():
            approach = _on_the_way(single, target.z0[i : i + 1], max_steps)
        found = certify(single, settled.points[i : i + 1].detach(), setting=setting, approach=approach)
        if found.verdict is Verdict.UNKNOWN and settled.kind[i] is None:
            status = settled.run.status[i].name
            found = replace(found, reason=f"the loop did not settle ({status}); where it got to, {found.reason}")
        found, undecided = _decided(found, target)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            row = _row(i, single, target.z0[i : i + 1], found, max_steps)
        rows.append(replace(row, undecided=undecided, seconds=seconds))
        certificates.append(found)
        if finished is not None:
            finished(rows[-1], found, single)
    tell("certify", loop.batch_size, loop.batch_size)
    return Bounds(target.name, dict(target.source), tuple(rows), tuple(certificates))


def statistical(bounds: Bounds, *, confidence: float = 0.95) -> Share:
    """What the certified share of these inputs says about all inputs that are drawn like them.

    Args:
        bounds: Of inputs that were drawn independently, their number fixed beforehand.
        confidence: In no more than ``1 - confidence`` of all such samples is the bound above the true share.

    Raises:
        InputError: ``confidence`` is not strictly between 0 and 1, or there are no inputs.

    Guarantee: bound at the stated confidence, rounding included.
    Source: Theorem P1.
    """
    proved = sum(row.verdict is Verdict.PROVED_ATTRACTING for row in bounds.rows)
    return share(proved, len(bounds.rows), confidence=confidence)


def _decided(found: Certificate, target: Target) -> tuple[Certificate, str]:
    """The certificate with what it says about answers, or why it says nothing: the proof of the loop stands alone."""
    if target.readout is None or found.metric is None or found.verdict is Verdict.UNKNOWN:
        return found, ""
    try:
        decided = decisions(target.readout, found.centre, found.metric, dtype=target.z0.dtype)
    except UnsupportedOperatorError as error:
        return found, str(error)
    return replace(found, decisions=decided), ""


def _on_the_way(loop: Loop, z0: Tensor, max_steps: int) -> Tensor | None:
    """The first state of the trajectory with a residual that a ball may hold."""
    z = z0
    for _ in range(max_steps):
        image = loop(z)
        if float((image - z).norm()) <= _AHEAD * float(image.norm()):
            return z
        z = image
    return None


def _row(i: int, loop: Loop, z0: Tensor, found: Certificate, max_steps: int) -> BoundRow:
    row = BoundRow(i, found.verdict, found.reason)
    if found.verdict is Verdict.UNKNOWN:
        return row
    size = float(found.centre.norm())
    total = sum(found.shares.values())
    stable = found.decision_stable
    row = replace(
        row,
        radius=found.radius,
        relative_radius=found.euclidean_radius / size if size > 0 else None,
        relative_error=found.euclidean_error_bound / size if size > 0 else None,
        stable=None if stable is None else float(stable.double().mean()),
        shares={name: share / total for name, share in found.shares.items()} if total > 0 else {},
    )
    if found.verdict is not Verdict.PROVED_ATTRACTING:
        # The rates of such a certificate are a Newton map's, not the loop's.
        return row
    return _followed(replace(row, rate=found.error_rate, ball_rate=found.rate), loop, z0, found, max_steps)


def _followed(row: BoundRow, loop: Loop, z0: Tensor, found: Certificate, max_steps: int) -> BoundRow:
    """The row with its trajectory: when it enters the ball, and what is decided where halting usually happens."""
    distances: list[float] = []
    z = z0
    for step in range(max_steps):
        image = loop(z)
        if not bool(image.isfinite().all()):
            break
        residual = float((image - z).norm() / image.norm())
        distance = found.distance(z)
        distances.append(distance / found.radius)
        if row.stable_when_halting is None and residual <= _HALTING and found.decisions is not None:
            row = replace(row, stable_when_halting=float(found.decided(z).double().mean()))
        if row.entry_step is None and distance <= found.radius:
            row = replace(row, entry_step=step, entry_residual=residual)
        known = row.entry_step is not None and (found.decisions is None or row.stable_when_halting is not None)
        # Where the distance no longer falls, rounding is all that is left.
        if known and (distances[-1] <= _FOLLOWED or min(distances[:-1], default=math.inf) <= distances[-1]):
            break
        z = image
    return replace(row, distances=tuple(distances))
