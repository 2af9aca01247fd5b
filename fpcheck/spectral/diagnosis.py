"""A diagnosis of a loop in words, each with its figures, and each piece of advice tried out before it is given.

The walk, for a whole batch at once:

1. run the plain loop;
2. where it does not settle, follow its orbit: does it return, turn, drift, escape, or is it chaotic?
3. look for a fixed point, with damping first, because a point that damping reaches is the one that can be advised;
4. read the spectrum there;
5. where damping is advised, run the damped loop, and say whether it did what it was said to do;
6. on request, start from many places.

A sample's findings do not depend on the samples beside it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, final

import torch
from torch import Tensor

from fpcheck.errors import BlockError, InputError
from fpcheck.loop import Loop
from fpcheck.solve import AbstractSolver, Anderson, Damped, Picard, Solution
from fpcheck.solve.base import default_rtol, is_count
from fpcheck.spectral.approach import approach_rate
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.jacobian import DEFAULT_MAX_BYTES
from fpcheck.spectral.lyapunov import Trajectory, follow, orbit
from fpcheck.spectral.methods import AbstractMethod
from fpcheck.spectral.multistart import Multistart, multistart
from fpcheck.spectral.operator import JacobianOperator, check_state
from fpcheck.spectral.regime import Regime, classify, period_estimate
from fpcheck.spectral.spectrum import Spectrum, spectrum
from fpcheck.status import Status

__all__ = ["DampedRun", "Diagnosis", "Finding", "SampleDiagnosis", "StepCount", "diagnose"]

Result = TypeVar("Result")

# Jacobians of one spectrum call, in bytes.
_SPECTRUM_BYTES = 2**30

# A leading exponent is positive, and the orbit chaotic, where it exceeds its 95 % error twice.
_SURE = 2.0
# An exponent of zero is believed from errors no larger than this.
_LEVEL = 0.02
# Straightness of a drift; of an orbit that turns in any way, far less.
_STRAIGHT = 0.9

# Growth of the residual over growth of the state, in logarithms. 1 for a state that grows exponentially, 0 for a
# drift by constant steps, 1/2 for one by steps like k.
_EXPONENTIAL = 0.75

# A damped solve whose residual fell to this part is helped to the end.
_WELL_ON_THE_WAY = 1e-3

# Movements shorter than this, relative to the state, may be rounding. A smooth map misses its linearisation there by
# about as little; rounding, which made the movement, by all of it.
_SHORT, _ROUGH = 0.02, 0.25
# No block of use amplifies its own rounding this much.
_NARROWER = 1e4

# Where the damped loop is started near its point: this far, relative to it, and at least so many times the tolerance.
_NEAR, _NEAR_TOLERANCES = 1e-3, 100.0
# And it has come back when its residual is down to this part, and its distance to a tenth.
_CLOSER = 1e-3
# Measured and predicted rates may differ by this part besides their errors: the point is not exact either.
_RATE_ROOM = 0.02
# A finite difference of relative size sqrt(eps) is wrong by about that.
_RESOLUTION = 10.0

# What a start holds of the slowest mode may be this much more or less than expected.
_SHARE = 10.0

# A modulus just outside the unit circle, rounding included.
_BEYOND = 1 + 1e-12

# Loop steps over which the rounding floor is measured.
_FLOOR_STEPS = 64


class Finding(enum.Enum):
    """One thing that was found about a sample. ``finding.text`` says what it means and what to do."""

    CONTRACTING = "contracting"
    CONTRACTING_WHEN_DAMPED = "contracting when damped"
    FLIP = "flip"
    NEIMARK_SACKER = "neimark-sacker"
    FOLD = "fold"
    REPELLING = "repelling"
    CYCLE = "cycle"
    QUASI_PERIODIC = "quasi-periodic"
    CHAOTIC = "chaotic"
    DRIFT = "drift"
    ESCAPING = "escaping"
    NOISE_FLOOR = "noise floor"
    MULTI_STABLE = "multi-stable"
    UNDECIDED = "undecided"

    @property
    def text(self) -> str:
        """What it means and what to do."""
        return _TEXT[self]


_TEXT = {
    Finding.CONTRACTING: "the loop attracts nearby states to a fixed point; nothing to cure",
    Finding.CONTRACTING_WHEN_DAMPED: (
        "the plain loop leaves the point, a damped one approaches it: use fp.Damped(step=..., decay=1.0) with the "
        "advised step"
    ),
    Finding.FLIP: "overcorrection: an eigenvalue at or below -1 throws states from one side of the point to the other",
    Finding.NEIMARK_SACKER: "rotation: a complex pair of modulus 1 or more makes states spiral outwards",
    Finding.FOLD: (
        "a real eigenvalue at or above 1: no damping helps. Start elsewhere, strengthen the injection, or use a "
        "Newton-like solver (fp.Anderson()) if the point itself is wanted"
    ),
    Finding.REPELLING: "several directions lead away and no damping helps: look for residual scales at or above 1",
    Finding.CYCLE: "the loop ends on a cycle: its answer depends on the step it is stopped at",
    Finding.QUASI_PERIODIC: "the loop circles for ever without returning: its answer depends on where it is stopped",
    Finding.CHAOTIC: (
        "neighbouring states separate exponentially inside a bounded region: a rounding error changes the answer"
    ),
    Finding.DRIFT: (
        "the state moves on for ever, so its relative residual falls like 1/k although nothing settles: no tolerance "
        "on it means anything. Use residual scaling below 1 or an output norm; damping does not cure drift"
    ),
    Finding.ESCAPING: "the state grows without limit: it overflows sooner or later",
    Finding.NOISE_FLOOR: "the residual stopped at the rounding of the dtype: loosen rtol, or use a wider dtype",
    Finding.MULTI_STABLE: "where the loop ends depends on where it starts",
    Finding.UNDECIDED: "the figures leave more than one answer open",
}


@final
@dataclass(frozen=True, eq=False)
class StepCount:
    """A predicted number of loop steps beside the real one.

    Attributes:
        steps: Loop steps from the start until ``|F(z) - z| <= goal``, if the residual falls by ``rate`` at each.
            Its error: that of the rate; what the start may hold of the slowest mode, ten times less than
            ``1 / sqrt(n)`` (a random start) or more than ``norm / rate`` (a non-normal Jacobian); and the steps that
            a quadratically convergent iteration needs, for curvature on the way. A defective eigenvalue takes longer.
        rate: The rate that was used.
        goal: ``atol + rtol |z|`` at the fixed point.
        taken: Loop steps that it really took; None if it did not get there.
    """

    steps: Estimate
    rate: Estimate
    goal: float
    taken: int | None

    @property
    def confirmed(self) -> bool:
        """Whether the real number lies within the error of the predicted one."""
        return self.taken is not None and abs(self.taken - float(self.steps)) <= float(self.steps.error)

    def __str__(self) -> str:
        if self.goal == 0:
            return "a fixed point at zero passes no relative tolerance: give atol"
        guess = f"{float(self.steps):.0f} +- {float(self.steps.error):.0f} steps predicted (estimate)"
        if self.taken is None:
            return f"{guess}, not reached"
        return f"{guess}, {self.taken} taken" + ("" if self.confirmed else ": outside the error")


@final
@dataclass(frozen=True, eq=False)
class DampedRun:
    """What the advised damping was said to do, and what it did.

    Attributes:
        step: The advised step.
        critical_step: Steps below it make the point attract.
        predicted_rate: Spectral radius of the damped loop.
        measured_rate: Factor with which nearby states approached the point, measured on states alone.
        count: Steps from the start of the diagnosis, predicted and taken.
        returned: Whether the damped loop came back to the point from nearby.
        resolution: Rates below this cannot be told apart by differences of states in the loop's dtype.
    """

    step: float
    critical_step: Estimate
    predicted_rate: Estimate
    measured_rate: Estimate
    count: StepCount
    returned: bool
    resolution: float

    @property
    def confirmed(self) -> bool:
        """Whether it came back at the predicted rate, within the errors, 2 % and what differences resolve."""
        predicted, measured = float(self.predicted_rate), float(self.measured_rate)
        if math.isnan(measured):  # differences vanished at once
            return self.returned
        room = (
            float(self.predicted_rate.error)
            + float(self.measured_rate.error)
            + _RATE_ROOM * predicted
            + self.resolution
        )
        return self.returned and abs(measured - predicted) <= room


@final
@dataclass(frozen=True, eq=False)
class SampleDiagnosis:
    """What was found about one sample. Figures that were not computed are None.

    Attributes:
        findings: The most telling first: where the loop goes, then the kind of its fixed point, then the rest.
        lines: One sentence for each finding, with its figures and the advice.
        status: How the plain loop ended.
        steps: States that it was evaluated at.
        residual: Its last relative residual.
        settled: Whether it settled, as far as its dtype can tell.
        point: A fixed point ``(*state)``: where it settled, or one that a damped or accelerated solver found.
        regime: Kind of that point.
        radius: Spectral radius there.
        period: Loop steps in one turn of the unstable pair, else of the dominant mode.
        count: Steps of the plain loop to the tolerance, where the point attracts.
        damped: The advised damping.
        exponent: Leading Lyapunov exponent of an orbit that did not settle, natural logarithm per loop step.
        orbit_period: Steps after which that orbit returns; 0 if it does not.
        turning: Loop steps in one turn of its residual.
        floor: Relative residual at the rounding floor: median over 64 steps, with the largest deviation.
    """

    findings: tuple[Finding, ...]
    lines: tuple[str, ...]
    status: Status
    steps: int
    residual: float
    settled: bool
    point: Tensor | None = field(repr=False)
    regime: Regime | None
    radius: Estimate | None
    period: Estimate | None
    count: StepCount | None
    damped: DampedRun | None
    exponent: Estimate | None
    orbit_period: int | None
    turning: Estimate | None
    floor: Estimate | None


@final
@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Diagnoses of a batch, one per sample; ``diagnosis[i]`` is the i-th. Nothing here is proved.

    Attributes:
        samples: See :class:`SampleDiagnosis`.
        starts: Where many starts ended; None unless asked for.
    """

    samples: tuple[SampleDiagnosis, ...]
    starts: Multistart | None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> SampleDiagnosis:
        return self.samples[i]

    def __iter__(self) -> Iterator[SampleDiagnosis]:
        return iter(self.samples)

    def explain(self) -> str:
        """One line per sample and finding."""
        return "\n".join(
            f"sample {i}: {finding.name}: {line}"
            for i, sample in enumerate(self.samples)
            for finding, line in zip(sample.findings, sample.lines, strict=True)
        )


def diagnose(
    loop: Loop,
    z0: Tensor,
    *,
    rtol: float | None = None,
    atol: float = 0.0,
    max_steps: int = 1000,
    orbit_steps: int = 1000,
    starts: int = 0,
    seed: int = 0,
    method: AbstractMethod | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Diagnosis:
    """Say what the loop does from ``z0``, why, and what to do about it.

    Args:
        loop: The map, undamped.
        z0: Start states ``(B, *state)``, float32 or float64.
        rtol: Tolerance that counts as settled and that steps are predicted to; None for the dtype's default.
        atol: Absolute tolerance beside it; a fixed point at zero needs one.
        max_steps: Loop steps of the plain loop, and of each solver that looks for a fixed point.
        orbit_steps: Loop steps that an orbit which does not settle is run on and then followed for, at least 40.
        starts: Random starts per sample, to look for more fixed points; 0 for none.
        seed: Of directions and starts.
        method: How spectra are computed; as for :func:`spectrum`.
        max_bytes: As for :func:`spectrum`.

    Returns:
        Findings with figures. Advice was tried out: a line that was not confirmed says so.

    Raises:
        InputError: An argument out of range, a wrong dtype or batch size.
        NonFiniteError: ``z0`` holds NaN or inf.
        BlockError: The block cannot be differentiated at any sample.

    Guarantee: estimate.
    Cost: a plain run and a spectrum; where the loop does not settle, up to four solves more, ``2 orbit_steps`` loop
        steps, ``orbit_steps`` products with J, and a damped run.

    Example:
        >>> z = torch.full((1, 1), 0.3, dtype=torch.float64)
        >>> found = diagnose(Loop(lambda z: 3.2 * z * (1 - z), z0=z), z)
        >>> [finding.name for finding in found[0].findings]
        ['CYCLE', 'FLIP', 'CONTRACTING_WHEN_DAMPED']
    """
    if loop.step != 1.0:
        raise InputError(f"loop.step={loop.step:g}; expected the undamped loop: damping is what the diagnosis advises")
    if not (starts == 0 or is_count(starts)):
        raise InputError(f"starts={starts!r}; expected an integer >= 0")
    if not is_count(orbit_steps) or orbit_steps < 40:
        raise InputError(f"orbit_steps={orbit_steps!r}; expected an integer >= 40")
    plain = Picard(rtol=rtol, atol=atol, max_steps=max_steps)
    check_state(loop, z0)
    _require_derivative(loop, z0)

    run = plain.solve(loop, z0)
    settled = [s in (Status.CONVERGED, Status.NOISE_FLOOR) for s in run.status]
    orbits, failures = _orbits(loop, run.value, [i for i, done in enumerate(settled) if not done], orbit_steps, seed)
    stalled = _stalled(loop, orbits)
    for i in stalled:
        del orbits[i]
        settled[i] = True
    resting = {i: stalled.get(i, run.value[i]) for i, done in enumerate(settled) if done}
    points = _points(loop, z0, run, resting, orbits, max_steps)
    spectra, more = _spectra(loop, points, method, max_bytes)
    failures |= more
    cases = [
        _Case(
            run=run,
            i=i,
            settled=settled[i],
            ran=(0 if settled[i] else orbit_steps) + int(run.steps[i]),
            orbit=orbits.get(i),
            point=points.get(i),
            spectrum=spectra.get(i),
            failure=failures.get(i),
        )
        for i in range(len(z0))
    ]
    counts = _plain_counts(loop, z0, cases)
    damped = _damped_runs(loop, z0, cases, max_steps)
    floors = _floors(loop, {i: z for i, z in resting.items() if run.status[i] is not Status.CONVERGED})
    many = multistart(loop, starts, around=z0, solver=plain, seed=seed) if starts else None
    samples = [_sample(case, counts.get(i), damped.get(i), floors.get(i), many) for i, case in enumerate(cases)]
    return Diagnosis(samples=tuple(samples), starts=many)


# A batch result, and the row in it that belongs to a sample.
_Row = tuple[Result, int]


@dataclass(frozen=True)
class _Case:
    """All that was measured about sample i."""

    run: Solution
    i: int
    settled: bool
    ran: int  # loop steps before its orbit was followed
    orbit: _Row[Trajectory] | None  # None also where it overflowed before
    point: Tensor | None
    spectrum: _Row[Spectrum] | None
    failure: BlockError | None

    @property
    def regime(self) -> Regime | None:
        """Kind of the point.

        What an error leaves open the run may decide: a loop that was not drawn to the point is not contractive there,
        so eigenvalues on the border count as outside it.
        """
        if self.spectrum is None:
            return None
        spec, j = self.spectrum
        regime = spec.regime[j]
        if regime is not Regime.UNDECIDED or self.settled or not bool(spec.converged[j]):
            return regime
        lam, err = spec.eigenvalues[j], spec.eigenvalue_error[j]
        size = lam.abs()
        return classify(lam * torch.where((size < 1) & (size + err >= 1), _BEYOND / size, 1.0))


def _require_derivative(loop: Loop, z0: Tensor) -> None:
    """Refuse a block without a derivative before any work, on the first sample that has an image."""
    with torch.no_grad():
        usable = torch.isfinite(loop(z0.clone()).flatten(1)).all(1).nonzero()[:1, 0]
    if len(usable):
        JacobianOperator(loop.select(usable), z0[usable], check=False).matvec(z0[usable].flatten(1))


def _each(
    compute: Callable[[Loop, Tensor], Result], loop: Loop, z: Tensor, names: Sequence[int]
) -> tuple[dict[int, _Row[Result]], dict[int, BlockError]]:
    """``compute`` on the whole batch; where a sample spoils that, on each alone. Results and errors by name."""
    try:
        whole = compute(loop, z)
    except BlockError as error:
        if len(z) == 1:
            return {}, {names[0]: error}
        results: dict[int, _Row[Result]] = {}
        errors: dict[int, BlockError] = {}
        for j, name in enumerate(names):
            one, failed = _each(compute, loop.sample(j), z[j : j + 1], [name])
            results |= one
            errors |= failed
        return results, errors
    return {name: (whole, j) for j, name in enumerate(names)}, {}


def _orbits(
    loop: Loop, states: Tensor, lost: Sequence[int], steps: int, seed: int
) -> tuple[dict[int, _Row[Trajectory]], dict[int, BlockError]]:
    """Orbits of the samples that did not settle, followed once they had time to reach what attracts them.

    A sample that overflows on the way has none.
    """
    if not lost:
        return {}, {}
    where = torch.tensor(lost, device=states.device)
    ran = 0
    for step in orbit(loop.select(where), states[where], steps):
        last, ran = step, ran + 1
    if ran < steps:  # all left
        return {}, {}
    alive = [lost[j] for j in last.who.tolist()]
    return _each(lambda part, z: follow(part, z, steps=steps, seed=seed), last.loop, last.image, alive)


def _stalled(loop: Loop, orbits: dict[int, _Row[Trajectory]]) -> dict[int, Tensor]:
    """States whose movement is rounding: those of a block that computes in a narrower dtype than its state.

    Over a distance as short as that movement a smooth map is linear. Rounding is not: F changes by something of its
    own size.
    """
    states = {}
    for i, (path, j) in orbits.items():
        small = path.residual[-1, j] <= _SHORT * path.size[-1, j]
        if bool(path.bounded[j]) and bool(small) and int(path.period[j]) != 1:
            states[i] = path.state[j]
    if not states:
        return {}
    z = torch.stack(list(states.values()))
    part = loop.select(torch.tensor(list(states), device=z.device))
    with torch.no_grad():
        image = part(z)
        length = _sizes(image.double() - z.double())
        generator = torch.Generator().manual_seed(0)
        direction = torch.randn(z.shape[1:], generator=generator, dtype=torch.float64).to(z.device)
        away = _column(length / torch.linalg.vector_norm(direction), z) * direction
        added = ((z.double() + away).to(z.dtype) - z).double()
        change = part(z + added.to(z.dtype)).double() - image.double()
    expected = JacobianOperator(part, z, check=False).matvec(added.flatten(1))
    rough = _sizes(change.flatten(1) - expected) > _ROUGH * length
    return {i: states[i] for i, bad in zip(states, rough.tolist(), strict=True) if bad}


def _points(
    loop: Loop,
    z0: Tensor,
    run: Solution,
    resting: dict[int, Tensor],
    orbits: dict[int, _Row[Trajectory]],
    max_steps: int,
) -> dict[int, Tensor]:
    """A fixed point of each sample, where one was found: ``(*state)``."""
    fine, device = default_rtol(z0.dtype), z0.device
    points = dict(resting)
    far = z0.clone()  # where each orbit got to
    for i, (path, j) in orbits.items():
        if bool(path.finite[j]):
            far[i] = path.state[j]
    coming = [i for i, (path, j) in orbits.items() if int(path.period[j]) == 1]
    # No relative tolerance finds a fixed point at zero, but its image shows it.
    with torch.no_grad():
        still = (loop(torch.zeros_like(z0)) == 0).flatten(1).all(1)
    small = _sizes(far) <= math.sqrt(torch.finfo(z0.dtype).eps) * _sizes(z0)
    points |= {i: torch.zeros_like(z0[i]) for i in coming if bool(still[i]) and bool(small[i])}

    def search(solver: AbstractSolver, starts: dict[int, Tensor]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Fixed points, and states well on the way to one."""
        if not starts:
            return {}, {}
        part, begin = loop.select(torch.tensor(list(starts), device=device)), torch.stack(list(starts.values()))
        found = solver.solve(part, begin)
        closer = found.residual_norm <= _WELL_ON_THE_WAY * torch.tensor(_first_residuals(part, begin), device=device)
        ended = list(zip(starts, found.status, found.value, closer.tolist(), strict=True))
        return (
            {i: z for i, status, z, _ in ended if status is Status.CONVERGED},
            {i: z for i, status, z, close in ended if status is not Status.CONVERGED and close},
        )

    damped = Damped(rtol=fine, atol=run.atol, max_steps=max_steps)
    anderson = Anderson(rtol=fine, atol=run.atol, max_steps=max_steps)
    # Damped iteration first: a point that it reaches is one that damping makes attracting. But where the orbit is on
    # its way to a point, that one: the solver that only speeds up, from where the orbit got to.
    wandering = [i for i in range(len(z0)) if i not in coming]
    rounds = (
        ((wandering, damped, z0), (coming, anderson, far)),
        ((wandering, damped, far), (coming, damped, far)),
        ((wandering, anderson, far), (coming, damped, z0)),
        ((wandering, anderson, z0), (coming, anderson, z0)),
    )
    for who, solver, start in (attempt for attempts in rounds for attempt in attempts):
        found, nearly = search(solver, {i: start[i] for i in who if i not in points})
        points |= found
        # Patience may stop at a step just below the critical one, where a damped loop takes for ever.
        points |= search(anderson, nearly)[0]
    # A loose tolerance will do for a run, not for a spectrum.
    loose = {i: z for i, z in points.items() if run.status[i] is Status.CONVERGED and float(run.residual[i]) > fine}
    return points | search(anderson, loose)[0]


def _spectra(
    loop: Loop, points: dict[int, Tensor], method: AbstractMethod | None, max_bytes: int
) -> tuple[dict[int, _Row[Spectrum]], dict[int, BlockError]]:
    spectra: dict[int, _Row[Spectrum]] = {}
    failures: dict[int, BlockError] = {}
    names = list(points)
    n = next(iter(points.values())).numel() if points else 1
    group = max(1, _SPECTRUM_BYTES // (8 * n * n))
    for start in range(0, len(names), group):
        some = names[start : start + group]
        states = torch.stack([points[i] for i in some])
        found, failed = _each(
            lambda part, z: spectrum(part, z, method=method, max_bytes=max_bytes),
            loop.select(torch.tensor(some, device=states.device)),
            states,
            some,
        )
        spectra |= found
        failures |= failed
    if failures and not spectra:
        raise next(iter(failures.values()))
    return spectra, failures


def _plain_counts(loop: Loop, z0: Tensor, cases: list[_Case]) -> dict[int, StepCount]:
    """Predicted and real steps of the plain loop to each attracting point."""
    begin = _first_residuals(loop, z0)
    counts = {}
    for case in cases:
        if case.regime is Regime.CONTRACTIVE and case.spectrum is not None and case.point is not None:
            spec, j = case.spectrum
            goal = case.run.atol + case.run.rtol * float(_sizes(case.point.unsqueeze(0)))
            rate, reached = spec.radius[j], case.run.status[case.i] is Status.CONVERGED
            counts[case.i] = StepCount(
                steps=_predict(begin[case.i], goal, rate, float(spec.norm.value[j]), spec.n),
                rate=rate,
                goal=goal,
                # The first state is evaluated before any step.
                taken=int(case.run.steps[case.i]) - 1 if reached else None,
            )
    return counts


def _damped_runs(loop: Loop, z0: Tensor, cases: list[_Case], max_steps: int) -> dict[int, DampedRun]:
    """Where damping makes a point attract that the plain loop leaves: the damped loop, run."""
    device = z0.device
    advised = [
        (case.i, case.point, *case.spectrum)
        for case in cases
        if case.spectrum is not None
        and case.point is not None
        and case.regime is not Regime.CONTRACTIVE
        and bool(case.spectrum[0].damping_helps[case.spectrum[1]])
    ]
    if not advised:
        return {}
    where = torch.tensor([i for i, *_ in advised], device=device)
    point = torch.stack([state for _, state, *_ in advised])
    step = torch.stack([spec.best_step.value[j] for *_, spec, j in advised]).to(z0)
    loop, start = loop.select(where), z0[where]
    run = cases[0].run
    goal = run.atol + run.rtol * _sizes(point)

    # Near the point, in one random direction for all; at a point of zero, by the scale of the start.
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(z0.shape[1:], generator=generator, dtype=torch.float64).to(device)
    scale = torch.where(_sizes(point) > 0, _sizes(point), torch.where(_sizes(start) > 0, _sizes(start), 1.0))
    most = _sizes(start).maximum(scale)
    away = (_NEAR * scale).maximum((_NEAR_TOLERANCES * goal).minimum(most)) / torch.linalg.vector_norm(direction)
    near = (point.double() + _column(away, z0) * direction).to(z0.dtype)

    taken, _ = _run_damped(loop, start, step, goal, max_steps)
    enough = goal.maximum(_CLOSER * torch.tensor(_first_residuals(loop, near)).to(goal))
    back, ended = _run_damped(loop, near, step, enough, max_steps)
    closer = _sizes(ended.double() - point.double()) < 0.1 * _sizes(near.double() - point.double())
    measured = approach_rate(Loop(lambda z, s: z + s * (loop(z) - z), _column(step, z0), z0=point, check=False), point)
    begin = _first_residuals(loop, start)
    runs = {}
    for k, (i, _, spec, j) in enumerate(advised):
        s, rate = float(step[k]), spec.best_rate[j]
        norm = 1 - s + s * float(spec.norm.value[j])
        runs[i] = DampedRun(
            step=s,
            critical_step=spec.critical_step[j],
            predicted_rate=rate,
            measured_rate=Estimate(measured.rate[k], measured.error[k].nan_to_num(nan=math.inf)),
            count=StepCount(_predict(begin[k], float(goal[k]), rate, norm, spec.n), rate, float(goal[k]), taken[k]),
            returned=back[k] is not None and bool(closer[k]),
            resolution=_RESOLUTION * math.sqrt(torch.finfo(z0.dtype).eps),
        )
    return runs


@torch.no_grad()
def _run_damped(loop: Loop, z: Tensor, step: Tensor, goal: Tensor, max_steps: int) -> tuple[list[int | None], Tensor]:
    """``z <- z + s (F(z) - z)`` with one s per sample: loop steps until the undamped residual passes, last states."""
    taken: list[int | None] = [None] * len(z)
    for k in range(max_steps + 1):
        move = loop(z) - z
        passed = (_sizes(move) <= goal).tolist()
        taken = [k if t is None and p else t for t, p in zip(taken, passed, strict=True)]
        if all(t is not None for t in taken):
            break
        z = z + _column(step, z) * move
    return taken, z


@torch.no_grad()
def _first_residuals(loop: Loop, z: Tensor) -> list[float]:
    residuals: list[float] = _sizes(loop(z.clone()) - z).tolist()
    return residuals


def _predict(begin: float, goal: float, rate: Estimate, norm: float, n: int) -> Estimate:
    """Steps from a residual to a smaller one; see :class:`StepCount`."""

    def steps(rho: float) -> float:
        return 1.0 if rho <= 0 else math.inf if rho >= 1 else math.log(begin / goal) / -math.log(rho)

    rho, err = float(rate), float(rate.error)
    if begin <= goal:
        value, error = 0.0, 0.0
    elif goal <= 0 or rho + err >= 1:
        value, error = math.inf, math.inf
    else:
        value = max(1.0, steps(rho))
        uncertain = max(steps(rho + err) - value, value - steps(rho - err))
        share = _SHARE * max(math.sqrt(n), norm / max(rho, 1e-300))
        lucky = math.log(share) / -math.log(max(rho, 1e-300))
        value, error = math.ceil(value), uncertain + lucky + 1 + math.log2(1 + math.log(begin / goal))
    return Estimate(torch.tensor(value, dtype=torch.float64), torch.tensor(error, dtype=torch.float64))


@torch.no_grad()
def _floors(loop: Loop, states: dict[int, Tensor]) -> dict[int, Estimate]:
    """Relative residuals of the loop run on from states at the rounding floor."""
    if not states:
        return {}
    z = torch.stack(list(states.values()))
    part = loop.select(torch.tensor(list(states), device=z.device))
    rows = []
    for _ in range(_FLOOR_STEPS):
        image = part(z)
        rows.append(_sizes(image.double() - z.double()) / _sizes(image))
        z = image
    level = torch.stack(rows).cpu()
    middle = level.median(0).values
    return {i: Estimate(middle[k], (level[:, k] - middle[k]).abs().max()) for k, i in enumerate(states)}


def _sample(
    case: _Case, count: StepCount | None, damped: DampedRun | None, floor: Estimate | None, many: Multistart | None
) -> SampleDiagnosis:
    found = list(_findings(case, count, damped, floor, many))
    run, i = case.run, case.i
    spec, j = case.spectrum or (None, 0)
    path, k = case.orbit or (None, 0)
    return SampleDiagnosis(
        findings=tuple(finding for finding, _ in found),
        lines=tuple(f"{words}. {finding.text[0].upper()}{finding.text[1:]}." for finding, words in found),
        status=run.status[i],
        steps=int(run.steps[i]),
        residual=float(run.residual[i]),
        settled=case.settled,
        point=case.point,
        regime=case.regime,
        radius=None if spec is None else spec.radius[j],
        period=None if spec is None else _period(spec, j),
        count=count,
        damped=damped,
        exponent=None if path is None else path.exponent[k],
        orbit_period=None if path is None else int(path.period[k]),
        turning=None if path is None else path.turning[k],
        floor=floor,
    )


def _findings(
    case: _Case, count: StepCount | None, damped: DampedRun | None, floor: Estimate | None, many: Multistart | None
) -> Iterator[tuple[Finding, str]]:
    elsewhere = None if case.settled else _orbit_finding(case)
    if elsewhere is not None:
        yield elsewhere, _orbit_words(case, elsewhere)
    if case.spectrum is not None:
        yield from _point_findings(case, count, elsewhere)
    if damped is not None:
        doubt = "" if damped.confirmed else (
            "; NOT confirmed: "
            + ("the rates disagree" if damped.returned else "the damped loop did not come back from nearby")
        )  # fmt: skip
        yield (
            Finding.CONTRACTING_WHEN_DAMPED,
            f"step {damped.step:.3g}, of those below {damped.critical_step}: rate {damped.predicted_rate} predicted, "
            f"{damped.measured_rate} measured; from the start {damped.count}{doubt}",
        )
    if floor is not None:
        dtype = case.run.value.dtype
        units = float(floor) / torch.finfo(dtype).eps
        inside = "; the block computes in a narrower dtype than its state" if units > _NARROWER else ""
        yield (
            Finding.NOISE_FLOOR,
            f"relative residual {floor} over {_FLOOR_STEPS} steps, {units:.2g} rounding units of {dtype}, where "
            f"rtol={case.run.rtol:.1e} was asked for{inside}",
        )
    if many is not None and bool(many.multistable[case.i]):
        yield Finding.MULTI_STABLE, many.describe(case.i)
    if case.failure is not None:
        yield Finding.UNDECIDED, f"not all figures could be computed: {str(case.failure).rstrip('.')}"
    elif elsewhere is None and case.spectrum is None:
        yield Finding.UNDECIDED, f"the plain loop ended {case.run.status[case.i].name}, no fixed point was found"


def _orbit_finding(case: _Case) -> Finding | None:
    """What the orbit does that did not settle; None where it seems to be settling, or nothing is known."""
    if case.orbit is None:
        return Finding.ESCAPING if case.failure is None else None
    path, j = case.orbit
    if not bool(path.finite[j]):
        return Finding.ESCAPING
    exponent, period = path.exponent[j], int(path.period[j])
    value, error = float(exponent), float(exponent.error)
    approaching = value + error < 0
    straight = float(path.straightness[j]) > _STRAIGHT and not approaching
    if not bool(path.bounded[j]):
        if approaching and case.regime is Regime.CONTRACTIVE:
            return None
        return Finding.DRIFT if _growth(path, j) < _EXPONENTIAL else Finding.ESCAPING
    if period > 0:
        return Finding.CYCLE if period > 1 else None
    if straight:
        return Finding.DRIFT
    if value > _SURE * error:
        return Finding.CHAOTIC
    if abs(value) <= _SURE * error and error <= _LEVEL:
        return Finding.QUASI_PERIODIC
    return None


def _growth(path: Trajectory, j: int) -> float:
    """Growth of the residual over growth of the state, in logarithms, between the ends of the orbit."""
    part = len(path.size) // 8
    residual, size = (rows[:, j].log() for rows in (path.residual, path.size))
    change, grown = (float(rows[-part:].mean() - rows[:part].mean()) for rows in (residual, size))
    return change / grown if grown > 0 else math.inf


def _orbit_words(case: _Case, finding: Finding) -> str:
    if case.orbit is None or not bool(case.orbit[0].finite[case.orbit[1]]):
        return f"left the range of {case.run.value.dtype}"
    path, j = case.orbit
    exponent = path.exponent[j]
    if finding is Finding.CYCLE:
        return f"returns after {int(path.period[j])} steps, missing itself by {float(path.miss[j]):.0e} of its spread"
    if finding is Finding.QUASI_PERIODIC:
        return f"bounded, one turn in {path.turning[j]} steps, never back; leading exponent {exponent} per step"
    if finding is Finding.CHAOTIC:
        return (
            f"bounded, leading exponent {exponent} per step: an error doubles every "
            f"{math.log(2) / float(exponent):.3g} steps"
        )
    row = torch.arange(len(path.size), dtype=torch.float64)
    k, relative = (case.ran + row).log(), (path.residual[:, j] / path.size[:, j]).log().cpu()
    k = k - k.mean()
    power = float((k * relative).sum() / k.square().sum())
    return (
        f"moves by {float(path.residual[-1, j]):.2e} per step at a size of {float(path.size[-1, j]):.2e}, straight to "
        f"{float(path.straightness[j]):.2f}; relative residual like k^{power:.2f} (estimate)"
    )


def _point_findings(case: _Case, count: StepCount | None, elsewhere: Finding | None) -> Iterator[tuple[Finding, str]]:
    assert case.spectrum is not None
    spec, j = case.spectrum
    regime, radius = case.regime, spec.radius[j]
    lam, err = spec.eigenvalues[j], spec.eigenvalue_error[j]
    where = "the loop settled there" if case.settled else "found by another solver"
    doubt = "" if bool(spec.converged[j]) else " (the spectrum is not as accurate as it should be)"
    if regime is Regime.CONTRACTIVE and elsewhere is not None:
        yield (
            Finding.MULTI_STABLE,
            f"a fixed point attracts (spectral radius {radius}), yet this start does not end there: {elsewhere.value}",
        )
    elif regime is Regime.CONTRACTIVE:
        yield Finding.CONTRACTING, f"spectral radius {radius}{doubt}; {count}"
    if regime in (Regime.FLIP, Regime.DAMPED_CONTRACTIVE):
        lowest = int(torch.where(lam.imag.abs() <= err, lam.real, math.inf).argmin())
        yield (
            Finding.FLIP,
            f"fixed point ({where}) with the eigenvalue {Estimate(lam.real[lowest], err[lowest])}, period 2{doubt}",
        )
    if regime in (Regime.NEIMARK_SACKER, Regime.DAMPED_CONTRACTIVE):
        turn = "" if case.orbit is None else f", {case.orbit[0].turning[case.orbit[1]]} measured on the orbit"
        pair = int(torch.where(lam.imag.abs() > err, lam.abs(), -1.0).argmax())
        yield (
            Finding.NEIMARK_SACKER,
            f"fixed point ({where}) with a pair of modulus {Estimate(lam[pair].abs(), err[pair])}, one turn in "
            f"{_period(spec, j)} steps{turn}{doubt}",
        )
    if regime is Regime.FOLD:
        highest = int(lam.real.argmax())
        yield (
            Finding.FOLD,
            f"fixed point ({where}) with the eigenvalue {Estimate(lam.real[highest], err[highest])}{doubt}",
        )
    if regime is Regime.REPELLING:
        yield Finding.REPELLING, f"fixed point ({where}) with spectral radius {radius}{doubt}"
    if regime is Regime.UNDECIDED:
        yield Finding.UNDECIDED, f"fixed point ({where}) with spectral radius {radius}: {regime.text.rstrip('.')}"


def _period(spec: Spectrum, j: int) -> Estimate:
    """Steps in one turn of the unstable complex pair of largest modulus, else of the dominant mode."""
    lam, err = spec.eigenvalues[j], spec.eigenvalue_error[j]
    rotating = (lam.imag.abs() > err) & (lam.abs() + err >= 1)
    if not bool(rotating.any()):
        return spec.period[j]
    pair = int(torch.where(rotating, lam.abs(), -1.0).argmax())
    return period_estimate(lam[pair : pair + 1], err[pair : pair + 1])


def _sizes(z: Tensor) -> Tensor:
    return torch.linalg.vector_norm(z.flatten(1).double(), dim=1)


def _column(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.view(-1, *[1] * (like.ndim - 1))
