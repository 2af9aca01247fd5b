"""What a solve returns."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import final

from torch import Tensor

from fpcheck.status import Status

__all__ = ["Solution"]


@final
@dataclass(frozen=True)
class Solution:
    """States and how each was reached. ``B`` samples; every figure belongs to the returned state itself.

    Attributes:
        value: Returned states ``(B, *state)``.
        status: One :class:`~fpcheck.Status` per sample.
        residual: ``|F(z) - z| / |F(z)|`` of the returned state, Euclidean norm per sample, undamped, ``(B,)``
            float64.
        residual_norm: ``|F(z) - z|`` itself, ``(B,)`` float64.
        steps: States of each sample that the block was evaluated at, ``(B,)`` int64. A few evaluations come on top,
            to tell a stall from rounding noise (one for every 32 at most) and convergence from drift (one, where the
            state lies further out than its start).
        period: Period of the orbit where the status is CYCLE, else 0, ``(B,)`` int64.
        history: Relative residual at every state visited, ``(steps, B)`` float64: inf where it is not finite, NaN
            after a sample stopped.
        rtol: Tolerance that CONVERGED samples passed: ``residual_norm <= atol + rtol * |F(z)|``.
        atol: See ``rtol``.
        route: How the value got its derivatives, for `fpcheck.adjoint.gradient_error`; None if it has none.
    """

    value: Tensor
    status: tuple[Status, ...]
    residual: Tensor
    residual_norm: Tensor
    steps: Tensor
    period: Tensor
    history: Tensor = field(repr=False)
    rtol: float
    atol: float
    route: object | None = field(default=None, repr=False)

    @property
    def converged(self) -> bool:
        """Whether every sample converged."""
        return all(s is Status.CONVERGED for s in self.status)

    @property
    def counts(self) -> dict[Status, int]:
        """How many samples ended in each status, most frequent first."""
        return dict(Counter(self.status).most_common())

    def explain(self) -> str:
        """One line per status that occurred: how many samples, which, and what to try."""
        lines = []
        for status, count in self.counts.items():
            where = [i for i, s in enumerate(self.status) if s is status]
            shown = ", ".join(map(str, where[:8])) + (", ..." if count > 8 else "")
            worst = max(float(self.residual[i]) for i in where)
            lines.append(
                f"{status.name}: {count} of {len(self.status)} samples ({shown}), largest relative residual "
                f"{worst:.1e}: {status.text}"
            )
        return "\n".join(lines)
