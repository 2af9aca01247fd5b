"""All that the spectral room can say about the points a target's loop ends at, input by input.

Everything here is an estimate, except two figures that hold with a stated probability and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from fpcheck.errors import BlockError, InputError
from fpcheck.loop import Loop
from fpcheck.settle import settle
from fpcheck.spectral import (
    AbstractMethod,
    Auto,
    Dense,
    DenseMatrices,
    Diagnosis,
    HasCarry,
    JacobianOperator,
    Krylov,
    MatrixOperator,
    NonNormality,
    Regime,
    Spectrum,
    carry_radius,
    diagnose,
    log_norm_bound,
    non_normality,
    norm_bound,
    numerical_range,
    spectrum,
)
from fpcheck.status import Status
from fpcheck.target import Target

__all__ = ["METHODS", "Survey", "SurveyRow", "survey"]

METHODS: dict[str, AbstractMethod] = {"auto": Auto(), "dense": Dense(), "krylov": Krylov()}
"""Methods by the names that the command line has for them."""

# Powers, Kreiss constant and numerical range are computed from the dense Jacobian up to this size; n^3 work each.
_DENSE_SIZE = 1600
_POWERS = 60
_ANGLES = 48


@final
@dataclass(frozen=True)
class SurveyRow:
    """What the Jacobian at one input's point does. Figures that were not computed are None.

    Attributes:
        index: Which input.
        status: How the plain loop ended.
        fixed_point: "loop" if the loop settled at the point, "found" if only an accelerated solver did, None if the
            point is merely the last state: then the figures describe one step there.
        residual: Relative residual at the point.
        path: How the eigenvalues were computed.
        converged: Whether the figures are as accurate as asked for; their errors say how accurate they are.
        radius, radius_error: Spectral radius of the loop's Jacobian.
        carry_radius: Spectral radius of the carry alone, the linear part of the step with every branch removed; None
            where the block has none. It is not the loop's.
        norm, norm_error: 2-norm of the Jacobian.
        norm_bound: A number that the 2-norm exceeds with probability ``failure_probability`` at most.
        log_norm, log_norm_error: Logarithmic 2-norm, also the numerical abscissa.
        log_norm_bound: Likewise for the log-norm.
        numerical_radius: Largest modulus in the numerical range.
        critical_step, critical_step_error: Damping steps below it make the point attract; 0 if none does.
        best_step, best_rate: The step that contracts fastest and its spectral radius.
        period: Loop steps in one turn of the dominant mode; infinite for none.
        regime: Kind of point.
        departure: Departure from normality relative to the Frobenius norm, 0 for a normal matrix, 1 at most.
        kreiss: Kreiss constant, estimated from below; infinite at a point that does not attract.
        peak_growth, peak_step: Largest ``|J^k|_2`` and its k.
        contraction_steps: Smallest k with ``|J^k|_2 < 1``; None if none was found.
        findings: What was found, in one word each, most important first.
        advice: The same in sentences, with what to do.
    """

    index: int
    status: Status
    fixed_point: str | None
    residual: float
    path: str
    converged: bool
    radius: float
    radius_error: float
    carry_radius: float | None
    norm: float
    norm_error: float
    norm_bound: float
    log_norm: float
    log_norm_error: float
    log_norm_bound: float
    numerical_radius: float | None
    critical_step: float
    critical_step_error: float
    best_step: float
    best_rate: float
    period: float
    regime: Regime
    departure: float | None
    kreiss: float | None
    peak_growth: float | None
    peak_step: int | None
    contraction_steps: int | None
    findings: tuple[str, ...]
    advice: tuple[str, ...]


@final
@dataclass(frozen=True)
class Survey:
    """All rows, and the curves that the figures show.

    Attributes:
        target: Name of the target.
        source: Where block and inputs came from.
        rows: One per input.
        dtype: Dtype of the analysis.
        n: Entries of one state.
        failure_probability: Of the two probabilistic bounds, each.
        eigenvalues: Per input ``(k,)`` complex128, largest modulus first; all of them where ``complete``.
        complete: Whether the eigenvalues are all n.
        ranges: Per input the boundary of the numerical range, complex; empty where it was not computed.
        growth: Per input ``|J^k|_2`` for k = 0, 1, ...; empty where it was not computed.
        level: Always ``"estimate"``.
    """

    target: str
    source: dict[str, Any]
    rows: tuple[SurveyRow, ...]
    dtype: str
    n: int
    failure_probability: float
    eigenvalues: tuple[Tensor, ...] = field(repr=False)
    complete: bool
    ranges: tuple[Tensor, ...] = field(repr=False)
    growth: tuple[Tensor, ...] = field(repr=False)
    level: str = "estimate"

    @property
    def passed(self) -> bool:
        """Whether every figure is as accurate as asked for."""
        return all(row.converged for row in self.rows)


def survey(
    target: Target,
    *,
    method: AbstractMethod | None = None,
    starts: int = 0,
    max_steps: int = 2000,
    dtype: torch.dtype | None = torch.float64,
    failure_probability: float = 1e-6,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Survey:
    """Settle every input's loop and describe what its Jacobian does there.

    Args:
        target: Block, injections, start states.
        method: How to compute eigenvalues; default ``Auto()``.
        starts: Random starts per input, to look for more fixed points; 0 for none.
        max_steps: Loop steps per input, at most.
        dtype: Dtype of the analysis; None keeps the target's own.
        failure_probability: Of the probabilistic bounds of norm and log-norm, for each input.
        seed: Of random vectors and starts.
        progress: Called with a stage's name, what is done and what there is to do.

    Returns:
        One row per input. Growth, Kreiss constant and numerical range are absent above n = 1,600 entries.

    Raises:
        BlockError: The block is no pure map on states, or cannot be differentiated.
        InputError: The inputs do not fit it, or ``starts`` is negative.
    """
    if not isinstance(starts, int) or isinstance(starts, bool) or starts < 0:
        raise InputError(f"starts={starts!r}; expected an integer >= 0")
    tell = progress or (lambda stage, done, total: None)
    target = target if dtype is None else target.to(dtype)
    loop = Loop(target.block, target.x, z0=target.z0)
    tell("settle", 0, 1)
    settled = settle(loop, target.z0, max_steps=max_steps)
    points, kind = settled.points, settled.kind
    tell("settle", 1, 1)
    n, count = target.z0[0].numel(), loop.batch_size
    rows, eigenvalues, ranges, growth, complete = [], [], [], [], True
    for i in range(count):
        tell("spectrum", i, count)
        one, z = loop.sample(i), points[i : i + 1]
        spec = spectrum(one, z, method=method)
        op = JacobianOperator(one, z, check=False)
        bounds = [
            float(bound(op, failure_probability=failure_probability, seed=seed).value[0])
            for bound in (norm_bound, log_norm_bound)
        ]
        carry = _carry(one, z)
        shape: NonNormality | None = None
        radius, boundary = None, torch.empty(0, dtype=torch.complex128)
        if n <= _DENSE_SIZE:
            J = op.dense().double().cpu()
            shape = non_normality(DenseMatrices.of(J, op.rounding().cpu()), max_power=_POWERS)
            field_of_values = numerical_range(MatrixOperator(J), angles=_ANGLES, seed=seed)
            radius, boundary = float(field_of_values.radius.value[0]), field_of_values.points[0].cpu()
        found = diagnose(one, target.z0[i : i + 1], max_steps=max_steps, starts=starts, seed=seed, method=method)
        ended = (settled.run.status[i], kind[i], float(settled.residual[i]))
        rows.append(_row(i, ended, spec, bounds, carry, shape, radius, found))
        eigenvalues.append(spec.eigenvalues[0])
        complete &= spec.complete
        ranges.append(boundary)
        growth.append(torch.empty(0) if shape is None else shape.growth.curve[0])
    tell("spectrum", count, count)
    return Survey(
        target=target.name, source=dict(target.source), rows=tuple(rows),
        dtype=str(target.z0.dtype).removeprefix("torch."), n=n, failure_probability=failure_probability,
        eigenvalues=tuple(eigenvalues), complete=complete, ranges=tuple(ranges), growth=tuple(growth),
    )  # fmt: skip


def _carry(loop: Loop, z: Tensor) -> float | None:
    """Spectral radius of the carry, where the block has one."""
    if not isinstance(loop.block, HasCarry):
        return None
    try:
        return float(carry_radius(loop.block, z, loop.x).value[0])
    except BlockError:  # the class has the method, this configuration (post-norm) no linear carry
        return None


def _row(
    index: int,
    ended: tuple[Status, str | None, float],
    spec: Spectrum,
    bounds: list[float],
    carry: float | None,
    shape: NonNormality | None,
    numerical_radius: float | None,
    found: Diagnosis,
) -> SurveyRow:
    return SurveyRow(
        index=index,
        status=ended[0],
        fixed_point=ended[1],
        residual=ended[2],
        path=spec.path,
        converged=bool(spec.converged[0]),
        radius=float(spec.radius.value[0]),
        radius_error=float(spec.radius.error[0]),
        carry_radius=carry,
        norm=float(spec.norm.value[0]),
        norm_error=float(spec.norm.error[0]),
        norm_bound=bounds[0],
        log_norm=float(spec.log_norm.value[0]),
        log_norm_error=float(spec.log_norm.error[0]),
        log_norm_bound=bounds[1],
        numerical_radius=numerical_radius,
        critical_step=float(spec.critical_step.value[0]),
        critical_step_error=float(spec.critical_step.error[0]),
        best_step=float(spec.best_step.value[0]),
        best_rate=float(spec.best_rate.value[0]),
        period=float(spec.period.value[0]),
        regime=spec.regime[0],
        departure=None if shape is None else float(shape.relative_departure.value[0]),
        kreiss=None if shape is None else float(shape.kreiss.value.value[0]),
        peak_growth=None if shape is None else float(shape.growth.peak.value[0]),
        peak_step=None if shape is None else shape.growth.peak_step[0],
        contraction_steps=None if shape is None else shape.growth.contraction_steps[0],
        findings=tuple(finding.value for finding in found[0].findings),
        advice=found[0].lines,
    )
