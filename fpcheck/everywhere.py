"""The walk over a batch of inputs with proofs for all states: does the loop contract there, or is it bounded?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

from fpcheck.certify import GlobalVerdict, certify_global
from fpcheck.loop import Loop
from fpcheck.target import Target

__all__ = ["Everywhere", "GlobalRow", "everywhere"]


@final
@dataclass(frozen=True)
class GlobalRow:
    """What was proved about one input's loop for all states. Figures that do not apply are None.

    Attributes:
        index: Which input.
        verdict: What was proved.
        reason: Why not, in words; empty if anything was.
        norm: In which norm of states: ``"longest token"``, ``"euclidean"`` or ``"metric"``.
        rate: a of N(F(z)) <= a N(z) + b; for a contraction also a Lipschitz constant.
        radius: Of the ball that no run leaves and that all runs come near.
        start: Norm of the start state.
        seconds: How long the proof took.
    """

    index: int
    verdict: GlobalVerdict
    reason: str
    norm: str
    rate: float | None
    radius: float | None
    start: float | None
    seconds: float


@final
@dataclass(frozen=True)
class Everywhere:
    """All rows.

    Attributes:
        target: Name of the target.
        source: Where block and inputs came from.
        rows: One per input.
        level: Always ``"global"``.
    """

    target: str
    source: dict[str, Any]
    rows: tuple[GlobalRow, ...]
    level: str = "global"

    @property
    def passed(self) -> bool:
        """Whether something was proved for every input."""
        return all(row.verdict is not GlobalVerdict.UNKNOWN for row in self.rows)


_NORMS = {"LongestToken": "longest token", "Euclidean": "euclidean", "InMetric": "metric"}


def everywhere(target: Target, *, progress: Callable[[str, int, int], None] | None = None) -> Everywhere:
    """Prove for every input what its loop does from all states.

    Args:
        target: Block, injections, start states.
        progress: Called with a stage's name, what is done and what there is to do.

    Raises:
        BlockError, InputError: The block is no pure map on states, or has an operator without a sound rule.

    Guarantee: bound, for the exact real map of the weights and injections as stored.
    """
    tell = progress or (lambda stage, done, total: None)
    target = target.to(torch.float64)
    loop = Loop(target.block, target.x, z0=target.z0)
    rows = []
    for i in range(loop.batch_size):
        tell("certify", i, loop.batch_size)
        begin = time.perf_counter()
        z0 = target.z0[i : i + 1]
        found = certify_global(loop.sample(i), z0)
        proved = found.verdict is not GlobalVerdict.UNKNOWN
        rows.append(
            GlobalRow(
                index=i,
                verdict=found.verdict,
                reason=found.reason,
                norm=_NORMS[type(found.measure).__name__],
                rate=found.rate if proved else None,
                radius=found.radius if proved else None,
                start=found.length(z0) if proved else None,
                seconds=time.perf_counter() - begin,
            )
        )
    tell("certify", loop.batch_size, loop.batch_size)
    return Everywhere(target.name, dict(target.source), tuple(rows))
