"""The whole walk on a batch of inputs: settle, look at the spectrum, compare prediction with measurement.

Everything here is an estimate: floating-point figures with an error statement, no proof. A row can say that a
fixed point attracts as far as was measured; it cannot say PROVED.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fpcheck.loop import Loop
from fpcheck.settle import settle
from fpcheck.solve import Solution
from fpcheck.spectral import Regime, Spectrum, approach_rate, measured_rate, spectrum
from fpcheck.status import Status
from fpcheck.target import Target

__all__ = ["Assessment", "Row", "assess"]


@dataclass(frozen=True)
class Row:
    """What was found for one input. Figures that were not computed are None.

    Attributes:
        index: Which input.
        status: How the plain loop ended.
        steps: Loop steps until the relative residual passed the halting tolerance; None if it never did.
        residual: Relative residual of the state that was analysed.
        fixed_point: Whether that state is a fixed point: "loop" if the loop settled there, "found" if only an
            accelerated solver did, None if neither did and the spectrum belongs to the last state.
        radius: Spectral radius estimate of the loop's Jacobian there.
        radius_error: Its error estimate.
        norm: Estimate of the Jacobian's 2-norm.
        log_norm: Estimate of its logarithmic 2-norm mu_2.
        critical_step: Largest damping step below which the point attracts; 0 if none does.
        predicted_rate: Asymptotic factor per loop step that the spectrum predicts, the spectral radius.
        measured_rate: Factor per loop step by which nearby states approached the point, without a derivative.
        measured_rate_error: Estimate of its error.
        residual_rate: Factor per loop step in the tail of the residuals. Fast loops reach the rounding floor before
            their slowest mode shows, so this can differ from the other two.
        residual_rate_error: Estimate of its error.
        regime: Kind of point.
        right: Share of scored positions answered right; None without labels.
        attracting: Whether the loop settled on a point that attracts, as far as was measured.
        reason: Why not, in words; empty if attracting.
    """

    index: int
    status: Status
    steps: int | None
    residual: float
    fixed_point: str | None
    radius: float
    radius_error: float
    norm: float
    log_norm: float
    critical_step: float
    predicted_rate: float
    measured_rate: float | None
    measured_rate_error: float | None
    residual_rate: float | None
    residual_rate_error: float | None
    regime: Regime
    right: float | None
    attracting: bool
    reason: str


@dataclass(frozen=True)
class Assessment:
    """All rows, and what the figures need.

    Attributes:
        target: Name of the target.
        source: Where block and inputs came from.
        rows: One per input.
        rtol: Halting tolerance on the relative residual.
        max_steps: Largest number of loop steps.
        dtype: Dtype of the analysis.
        history: Relative residual per loop step, ``(steps, B)`` float64, NaN after a sample stopped.
        eigenvalues: ``(B, n)`` complex128, largest modulus first.
        level: Always ``"estimate"``: nothing here is proved.
    """

    target: str
    source: dict[str, Any]
    rows: tuple[Row, ...]
    rtol: float
    max_steps: int
    dtype: str
    history: Tensor = field(repr=False)
    eigenvalues: Tensor = field(repr=False)
    level: str = "estimate"

    @property
    def passed(self) -> bool:
        """Whether every input settled on an attracting fixed point, as far as was measured."""
        return all(row.attracting for row in self.rows)


def assess(
    target: Target,
    *,
    rtol: float = 1e-5,
    max_steps: int = 2000,
    dtype: torch.dtype | None = torch.float64,
    progress: Callable[[str, int, int], None] | None = None,
) -> Assessment:
    """Settle every input's loop and describe the point it settles on.

    Args:
        target: Block, injections, start states.
        rtol: Halting tolerance: ``steps`` counts loop steps until ``|F(z) - z| <= rtol * |F(z)|``.
        max_steps: Loop steps per input, at most.
        dtype: Dtype of the analysis; float64 shows rates down to residuals of 1e-13. None keeps the target's own.
        progress: Called with a stage's name, what is done and what there is to do.

    Returns:
        The assessment, level ``"estimate"``.

    Raises:
        BlockError, InputError: The block is no pure map on states, or the inputs do not fit it.
    """
    tell = progress or (lambda stage, done, total: None)
    target = target if dtype is None else target.to(dtype)
    loop = Loop(target.block, target.x, z0=target.z0)
    dtype = target.z0.dtype
    count = loop.batch_size

    tell("settle", 0, 1)
    settled = settle(loop, target.z0, max_steps=max_steps)
    run, points, residual, kind = settled.run, settled.points, settled.residual, settled.kind
    with torch.no_grad():
        right = _right(target, run.value)
    tell("settle", 1, 1)
    seen = measured_rate(run.history)
    tell("rate", 0, 1)
    near = approach_rate(loop, points)
    tell("rate", 1, 1)

    parts: list[Spectrum] = []
    for i in range(count):
        tell("spectrum", i, count)
        parts.append(spectrum(loop.sample(i), points[i : i + 1]))
    tell("spectrum", count, count)

    rows = []
    for i, part in enumerate(parts):
        steps = _steps(run, i, rtol)
        regime, status = part.regime[0], run.status[i]
        attracting = status is Status.CONVERGED and regime is Regime.CONTRACTIVE
        rows.append(
            Row(
                index=i,
                status=status,
                steps=steps,
                residual=float(residual[i]),
                fixed_point=kind[i],
                radius=float(part.radius.value[0]),
                radius_error=float(part.radius.error[0]),
                norm=float(part.norm.value[0]),
                log_norm=float(part.log_norm.value[0]),
                critical_step=float(part.critical_step[0]),
                predicted_rate=float(part.radius.value[0]),
                measured_rate=_known(near.rate[i]) if kind[i] is not None else None,
                measured_rate_error=_known(near.error[i]) if kind[i] is not None else None,
                residual_rate=_known(seen.rate[i]),
                residual_rate_error=_known(seen.error[i]),
                regime=regime,
                right=None if right is None else float(right[i]),
                attracting=attracting,
                reason="" if attracting else _reason(status, regime, kind[i], float(residual[i]), dtype),
            )
        )
    eigenvalues = torch.cat([part.eigenvalues for part in parts])
    return Assessment(
        target=target.name, source=dict(target.source), rows=tuple(rows), rtol=rtol, max_steps=max_steps,
        dtype=str(dtype).removeprefix("torch."), history=run.history, eigenvalues=eigenvalues,
    )  # fmt: skip


def _known(figure: Tensor) -> float | None:
    """A number, or None where the fit had too little to go by."""
    return None if torch.isnan(figure) else float(figure)


def _steps(run: Solution, i: int, rtol: float) -> int | None:
    """Loop steps until the residual first passes ``rtol``; only for a loop that settled for good."""
    if run.status[i] is not Status.CONVERGED:
        return None
    passed = torch.nonzero(run.history[:, i] <= rtol)
    # Row k is the residual of the state after k steps.
    return int(passed[0]) if len(passed) else None


def _right(target: Target, states: Tensor) -> Tensor | None:
    if target.labels is None or target.readout is None:
        return None
    answers = target.readout(states).argmax(-1)
    scored = target.labels >= 0
    hits = ((answers == target.labels) & scored).flatten(1).sum(1)
    return hits / scored.flatten(1).sum(1)


def _reason(status: Status, regime: Regime, kind: str | None, residual: float, dtype: torch.dtype) -> str:
    if status is Status.CONVERGED:
        return f"the loop settled, but its point is {regime.value}"
    found = f"the nearest fixed point that was found is {regime.value}" if kind else "no fixed point was found nearby"
    # A float64 loop that stops improving at float32's rounding computes something in float32.
    narrow = dtype is torch.float64 and 1e-9 < residual < 1e-5 and status in (Status.CYCLE, Status.NOISE_FLOOR)
    hint = "; the residual stalled at the rounding of float32: does the block cast inside? try --dtype own"
    return f"the loop did not settle: {status.name}, {found}" + (hint if narrow else "")
