"""What a loop does along its orbit: growth of directions, stretch of steps, returns and turns.

Off a fixed point there is no spectrum to go by, but there are products of the Jacobians along the orbit
``z, F(z), F(F(z)), ...``. The exponents of their growth (Lyapunov exponents) say whether neighbours of the orbit come
closer in the long run, whatever single steps do: all negative where the orbit settles or becomes periodic, the largest
zero on a closed curve, positive for chaos.

Shapes: ``B`` samples, ``n`` entries in one sample's state, ``k`` directions, ``K`` loop steps, ``m <= 8`` coordinates
that an orbit is followed in. Natural logarithms, per loop step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.solve.base import is_count, is_number
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.lanczos import spectral_norm
from fpcheck.spectral.operator import AbstractOperator, JacobianOperator, check_state
from fpcheck.spectral.rate import RateFit, measured_rate

__all__ = ["LyapunovExponents", "Trajectory", "follow", "local_expansion", "lyapunov_exponents", "orbit"]

# Blocks that a run is cut into to see how its averages scatter, and Student's t for 95 % with one fewer.
_BLOCKS, _T95 = 10, 2.262
_LEAST_STEPS = 4 * _BLOCKS

# Rounding of one product with J, relative to its length, in units of eps: as much as is assumed of a Jacobian whose
# rounding is not measured. (A slope 1 - 2 z near z = 1/2 loses two digits by itself.)
_ROUNDINGS = 40.0

# Accuracy that the norm of each Jacobian is asked for.
_NORM_RTOL = 1e-3

# Coordinates in which returns and turns are looked for. Random ones, of larger states: a return shows in all of
# them, and that 8 miss a distance by a factor of 1e6 has a chance of 1e-48.
_COORDINATES = 8

# A return is exact to this part of the orbit's spread, or to so many rounding units of the state.
_RETURN, _RETURN_UNITS = 1e-6, 64.0
# Or it is closing in geometrically: by this factor from each eighth of the run to the next, over the last four, to
# this part of the spread. A drift by steps like 1/k closes in by 0.83; a near return on a closed curve keeps its miss.
_CLOSING, _CLOSE = 0.67, 0.1

# Fewest rows that can show a turn.
_LEAST_ROWS = 8
# Padding of a transform: finer than this, the parabola through its largest value gains nothing.
_PADDING = 8


@final
@dataclass(frozen=True, eq=False)
class LyapunovExponents:
    """Lyapunov exponents of a batch of orbits. Estimates from a run of finite length.

    Attributes:
        value: ``(B, k)`` float64, natural logarithm per loop step, in the order of the QR method: largest first up to
            their errors. ``-inf`` where a step left nothing of a direction. NaN where ``finite`` is False.
        error: ``(B, k)``: half the width of a 95 % interval from the scatter of ten parts of the run, and rounding.
            Infinite where nothing is known.
        total: Sum of the exponents: for ``k = n`` the mean of ``log |det J|``, the growth of volumes.
        converged: Whether every error of a sample is at most ``tol``, ``(B,)`` booleans.
        finite: Whether the orbit and its products stayed finite to the end, ``(B,)`` booleans.
        state: Last finite state of each orbit, ``(B, *state)``.
        steps: Loop steps averaged over.
        tol: See ``converged``.
    """

    value: Tensor
    error: Tensor
    total: Estimate
    converged: Tensor
    finite: Tensor
    state: Tensor = field(repr=False)
    steps: int
    tol: float

    def __len__(self) -> int:
        return len(self.value)

    @property
    def leading(self) -> Estimate:
        """The largest exponent of each sample."""
        first = self.value.nan_to_num(nan=-math.inf, neginf=-math.inf).argmax(1, keepdim=True)
        return Estimate(self.value.gather(1, first)[:, 0], self.error.gather(1, first)[:, 0])

    def explain(self) -> str:
        """One line per sample."""
        lines = []
        for i, leading in enumerate(self.leading):
            if not bool(self.finite[i]):
                lines.append(
                    f"sample {i}: the orbit or its products left the range of the dtype within {self.steps} steps; "
                    "take fewer steps and a shorter transient, or start where the loop stays bounded"
                )
                continue
            low, high = float(leading.value - leading.error), float(leading.value + leading.error)
            kind = "neighbours separate" if low > 0 else "neighbours approach" if high < 0 else "the sign is open"
            doubt = "" if bool(self.converged[i]) else f"; an error exceeds tol={self.tol:g}: take more steps"
            lines.append(f"sample {i}: leading exponent {leading} per step, {kind}{doubt}")
        return "\n".join(lines)


def lyapunov_exponents(
    loop: Loop,
    z0: Tensor,
    *,
    steps: int = 1000,
    transient: int = 500,
    count: int = 1,
    seed: int = 0,
    tol: float = 0.01,
) -> LyapunovExponents:
    """Lyapunov exponents of the orbits from ``z0``, by QR along the iterates.

    An orthonormal frame is carried along, ``J(z) Q = Q' R``, and the logarithms of R's diagonal are averaged under a
    sine-squared window, in which the alignment of the frame and incomplete turns fade.

    Args:
        loop: The map.
        z0: Start states ``(B, *state)``, float32 or float64.
        steps: Loop steps to average over, at least 40.
        transient: Loop steps before that, for the orbit to reach what attracts it.
        count: Exponents k, 1 to n.
        seed: Of the first frame, the same for every sample.
        tol: Largest error that counts as converged.

    Returns:
        Exponents with errors. An orbit that overflows has none, and says so.

    Raises:
        InputError: ``count``, ``steps``, ``transient`` or ``tol`` out of range; wrong dtype or batch size.
        NonFiniteError: ``z0`` holds NaN or inf, or no orbit stayed finite.
        BlockError: The loop cannot be differentiated, or its derivative is wrong.

    Guarantee: estimate. The error is that of the average; where an orbit has not reached its attractor yet, or visits
        a part of it only rarely, no run of this length can tell.
    Cost: ``transient + steps`` loop steps and ``steps * k`` products with J for the whole batch, and as many QR
        factorisations ``(n, k)``. Memory: k vectors of state size and one record of a loop step.
    Source: Benettin, Galgani, Giorgilli, Strelcyn (1980); Eckmann, Ruelle (1985). Window: Das, Saiki, Sander, Yorke
        (2017).

    Example:
        >>> loop = Loop(lambda z: 3.2 * z * (1 - z), z0=torch.full((1, 1), 0.3, dtype=torch.float64))
        >>> found = lyapunov_exponents(loop, torch.full((1, 1), 0.3, dtype=torch.float64))
        >>> round(float(found.leading[0]), 4)  # log(0.16) / 2: the 2-cycle has the multiplier 4 + 2 r - r^2 = 0.16
        -0.9163
    """
    check_state(loop, z0)
    batch, n = len(z0), z0[0].numel()
    _require(is_count(steps) and steps >= _LEAST_STEPS, "steps", steps, f"an integer >= {_LEAST_STEPS}")
    _require(transient == 0 or is_count(transient), "transient", transient, "an integer >= 0")
    _require(is_count(count) and count <= n, "count", count, f"an integer from 1 to n={n}, the entries of a state")
    _require(is_number(tol) and tol > 0, "tol", tol, "a number > 0")
    state = z0.detach().clone()
    for step in orbit(loop, z0, transient):
        state[step.who] = step.image
    Q = _frame(z0, count, seed)
    logs = torch.full((steps, batch, count), math.nan, dtype=torch.float64, device=z0.device)
    noise = torch.full_like(logs, math.nan)
    for j, step in enumerate(orbit(loop, state, steps)):
        operator = JacobianOperator(step.loop, step.z, check=j == 0)
        Q[step.who], logs[j, step.who], noise[j, step.who] = _advance(operator, Q[step.who])
        state[step.who] = step.image
    finite = ~logs.isnan().flatten(2).any(2).any(0)
    if not bool(finite.any()):
        raise NonFiniteError(
            f"no orbit stayed finite for transient={transient} and steps={steps} loop steps; take fewer, or start "
            "where the loop stays bounded (fp.fixed_point and its status tell)"
        )
    value, error = _average(logs)
    total, total_error = _average(logs.sum(2))
    rounding = noise.mean(0)
    error = (error + rounding).nan_to_num(nan=math.inf, posinf=math.inf)
    total_error = (total_error + rounding.sum(1)).nan_to_num(nan=math.inf, posinf=math.inf)
    return LyapunovExponents(
        value=value,
        error=error,
        total=Estimate(total, total_error),
        converged=(error <= tol).all(1) & finite,
        finite=finite,
        state=state,
        steps=steps,
        tol=tol,
    )


@final
@dataclass(frozen=True, eq=False)
class Trajectory:
    """A piece of each sample's orbit, and what was measured on it. Row j belongs to the state after j loop steps.

    Rows are NaN from where an orbit left the range of the dtype.

    Attributes:
        residual: ``|F(z) - z|``, ``(K, B)`` float64.
        size: ``|z|``, ``(K, B)``.
        stretch: ``|F(z') - F(z)| / |z' - z|`` with ``z' = F(z)``: what the step does to the actual difference of
            states, ``(K - 1, B)``. NaN where the state no longer moves.
        norm: ``|J(z)|_2``, the most that a step can stretch, ``(K, B)``; None from :func:`follow`.
        norm_error: Error estimate of each.
        growth: ``log |J(z) q|`` for the direction q that the steps before have turned a random one into, ``(K, B)``.
        exponent: Leading Lyapunov exponent over the run, ``(B,)``: the mean growth.
        rate: Factor per loop step in the residuals, as :func:`measured_rate` reads it.
        period: Smallest p after which the orbit returns to itself, ``(B,)`` int64; 1 where it settled or is settling,
            0 where no p up to a quarter of the run was found.
        miss: How far it then was from itself, relative to its spread, ``(B,)``; NaN where ``period`` is 0.
        turning: Loop steps in one turn of the residual, ``(B,)``: 2 where it alternates, infinite where no full turn
            shows, NaN where there are too few residuals above rounding.
        bounded: Whether the orbit went no further out (5 %) in the second half of the run than in the first.
        finite: Whether it stayed finite, ``(B,)`` booleans.
        steps: Rows of each sample, ``(B,)`` int64.
        state: Last finite state ``(B, *state)``.
        straightness: Way travelled in the second half of the run, from end to end, over the length of the path,
            ``(B,)``: 1 for a straight line, about 0 for going round. In the coordinates the orbit is followed in.
    """

    residual: Tensor = field(repr=False)
    size: Tensor = field(repr=False)
    stretch: Tensor = field(repr=False)
    norm: Tensor | None = field(repr=False)
    norm_error: Tensor | None = field(repr=False)
    growth: Tensor = field(repr=False)
    exponent: Estimate
    rate: RateFit
    period: Tensor
    miss: Tensor
    turning: Estimate
    bounded: Tensor
    finite: Tensor
    steps: Tensor
    state: Tensor = field(repr=False)
    straightness: Tensor

    def __len__(self) -> int:
        return len(self.period)

    def explain(self) -> str:
        """One line per sample."""
        lines = []
        for i, exponent in enumerate(self.exponent):
            if not bool(self.finite[i]):
                lines.append(f"sample {i}: left the range of the dtype after {int(self.steps[i])} steps")
                continue
            p = int(self.period[i])
            returns = {0: "no return found", 1: "settled or settling"}.get(p, f"returns after {p} steps")
            lines.append(
                f"sample {i}: {returns}, residual turns in {self.turning[i]} steps, measured rate "
                f"{float(self.rate.rate[i]):.4g} +- {float(self.rate.error[i]):.0e}, leading exponent {exponent}"
            )
        return "\n".join(lines)


def local_expansion(loop: Loop, z0: Tensor, *, steps: int = 200, seed: int = 0) -> Trajectory:
    """Follow the orbits from ``z0`` and measure, step by step, how much they stretch.

    Three figures per step that are often taken for each other: the most that the step can stretch (``norm``), what it
    does to the state's own movement (``stretch``) and to the direction that grows in the long run (``growth``). A loop
    may have a norm above 1 at every step and still contract.

    Args:
        loop: The map.
        z0: Start states ``(B, *state)``, float32 or float64.
        steps: Loop steps K, at least 40.
        seed: Of the first direction, the same for every sample.

    Raises:
        InputError: ``steps`` is too small; wrong dtype or batch size.
        NonFiniteError: ``z0`` holds NaN or inf, or no orbit stayed finite.
        BlockError: The loop cannot be differentiated, or its derivative is wrong.

    Guarantee: estimate. Norms are those of :func:`spectral_norm`, to a thousandth and with their errors.
    Cost: K loop steps and 10 K to 20 K products for the whole batch; memory for 8 coordinates per step.
    """
    found = follow(loop, z0, steps=steps, seed=seed, norms=True)
    if not bool(found.finite.any()):
        raise NonFiniteError(
            f"no orbit stayed finite for steps={steps} loop steps; take fewer, or start where the loop stays bounded "
            "(fp.fixed_point and its status tell)"
        )
    return found


def follow(loop: Loop, z0: Tensor, *, steps: int, seed: int = 0, norms: bool = False) -> Trajectory:
    """:func:`local_expansion` without the norms, unless asked for: K products. No orbit need last."""
    check_state(loop, z0)
    _require(is_count(steps) and steps >= _LEAST_STEPS, "steps", steps, f"an integer >= {_LEAST_STEPS}")
    batch, device = len(z0), z0.device
    project = _coordinates(z0)

    def rows(*shape: int) -> Tensor:
        return torch.full((steps, batch, *shape), math.nan, dtype=torch.float64, device=device)

    residual, size, growth, noise, norm, norm_error = (rows() for _ in range(6))
    places, moves = rows(min(_COORDINATES, z0[0].numel())), rows(min(_COORDINATES, z0[0].numel()))
    state = z0.detach().clone()
    Q = _frame(z0, 1, seed)
    for j, step in enumerate(orbit(loop, z0, steps)):
        i = step.who
        operator = JacobianOperator(step.loop, step.z, check=j == 0)
        move = step.image.flatten(1).double() - step.z.flatten(1).double()
        residual[j, i], size[j, i] = _length(move), _length(step.z.flatten(1).double())
        places[j, i], moves[j, i] = project(step.z.flatten(1).double()), project(move)
        Q[i], logs, rounding = _advance(operator, Q[i])
        growth[j, i], noise[j, i] = logs[:, 0], rounding[:, 0]
        if norms:
            norm[j, i], norm_error[j, i] = _norms(operator)
        state[i] = step.image
    finite = ~(residual + growth).isnan().any(0)
    exponent, error = _average(growth)
    error = (error + noise.mean(0)).nan_to_num(nan=math.inf, posinf=math.inf)
    fit = measured_rate(residual)
    period, miss = _return(places, torch.finfo(z0.dtype).eps * size)
    half = steps // 2
    return Trajectory(
        residual=residual,
        size=size,
        stretch=residual[1:] / torch.where(residual[:-1] > 0, residual[:-1], math.nan),
        norm=norm if norms else None,
        norm_error=norm_error if norms else None,
        growth=growth,
        exponent=Estimate(exponent, error),
        rate=fit,
        period=torch.where(finite, period, 0),
        miss=torch.where(finite, miss, math.nan),
        turning=_turning(moves, fit),
        bounded=finite & (size[half:].amax(0) <= 1.05 * size[:half].amax(0)),
        finite=finite,
        steps=(~residual.isnan()).sum(0),
        state=state,
        straightness=_length(places[-1] - places[half]) / _length(moves[half:-1]).sum(0),
    )


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise InputError(f"{name}={value!r}; expected {expected}")


class OrbitStep(NamedTuple):
    who: Tensor  # samples whose orbits are still finite, (b,)
    loop: Loop  # the map on these
    z: Tensor  # their states, (b, *state)
    image: Tensor  # F(z)


def orbit(loop: Loop, z: Tensor, steps: int) -> Iterator[OrbitStep]:
    """Loop steps, one after the other; an orbit whose next state is not finite drops out."""
    index, running = torch.arange(len(z), device=z.device), loop
    z = z.detach()
    for _ in range(steps):
        with torch.no_grad():
            image = running(z)
        alive = torch.isfinite(image.flatten(1)).all(1)
        if not bool(alive.all()):
            index, z, image = index[alive], z[alive], image[alive]
            if len(index) == 0:
                return
            running = loop.select(index)
        yield OrbitStep(index, running, z, image)
        z = image


def _frame(z: Tensor, count: int, seed: int) -> Tensor:
    """A random orthonormal frame ``(B, n, k)``, the same for every sample."""
    generator = torch.Generator().manual_seed(seed)
    frame = torch.randn(z[0].numel(), count, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(frame)[0].to(z.device).expand(len(z), -1, -1).clone()


def _advance(operator: AbstractOperator, Q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The next frame, the logarithms of R's diagonal and their rounding, ``(b, k)`` each."""
    image = operator.matvec(Q)
    Q, R = torch.linalg.qr(image)
    factor = R.diagonal(dim1=1, dim2=2).abs()
    # What is left of a column after the others are taken out of it keeps the rounding of the whole column.
    unit = _ROUNDINGS * torch.finfo(operator.dtype).eps
    return Q, factor.log(), unit * torch.linalg.vector_norm(R, dim=1) / factor


def _average(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of ``(K, ...)`` over the first dimension under a sine-squared window, and its 95 % error.

    Such a window suppresses what the ends do by 1/K^3 instead of 1/K, and gives away half as much again of the
    variance of pure noise.
    """
    part = len(rows) // _BLOCKS
    blocks = rows[: part * _BLOCKS].unflatten(0, (_BLOCKS, part)).transpose(0, 1)
    scatter = _windowed(blocks).std(0)
    return _windowed(rows), _T95 / math.sqrt(_BLOCKS) * scatter


def _windowed(rows: Tensor) -> Tensor:
    count = len(rows)
    place = torch.arange(count, dtype=torch.float64, device=rows.device)
    window = torch.sin(math.pi * (place + 0.5) / count).square()
    return torch.tensordot(window / window.sum(), rows, dims=([0], [0]))


def _norms(operator: AbstractOperator) -> tuple[Tensor, Tensor]:
    """``|J|_2`` and its error, ``(b,)`` each; NaN and infinity where products overflow, as on the way to infinity."""
    try:
        found = spectral_norm(operator, rtol=_NORM_RTOL).value
    except NonFiniteError:
        if operator.batch_size == 1:
            unknown = torch.full((1,), math.nan, dtype=torch.float64, device=operator.device)
            return unknown, torch.full_like(unknown, math.inf)
        parts = [_norms(operator.select(torch.tensor([i]))) for i in range(operator.batch_size)]
        value, error = zip(*parts, strict=True)
        return torch.cat(value), torch.cat(error)
    return found.value, found.error


def _length(v: Tensor) -> Tensor:
    """Norms over the last dimension, also where squares overflow."""
    largest = v.abs().amax(-1, keepdim=True)
    unit = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    return unit[..., 0] * torch.linalg.vector_norm(v / unit, dim=-1)


def _coordinates(z: Tensor) -> Callable[[Tensor], Tensor]:
    """Map from states ``(b, n)`` to coordinates ``(b, m)``: all of them, or eight random ones of the same scale."""
    n = z[0].numel()
    if n <= _COORDINATES:
        return lambda v: v
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(n, _COORDINATES, generator=generator, dtype=torch.float64) / math.sqrt(_COORDINATES)
    matrix = matrix.to(z.device)
    return lambda v: v @ matrix


def _return(places: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest p after which the orbits ``(K, B, m)`` come back, and by how much of their spread they miss."""
    steps, batch = places.shape[:2]
    late = places[steps // 2 :]
    spread = _length(late - late.mean(0)).amax(0)
    close = torch.maximum(_RETURN * spread, _RETURN_UNITS * rounding[steps // 2 :].amax(0))
    period = torch.zeros(batch, dtype=torch.int64, device=places.device)
    miss = torch.full((batch,), math.nan, dtype=torch.float64, device=places.device)
    part = steps // 8
    for p in range(1, steps // 4 + 1):
        gap = _length(places[p:] - places[:-p])[-4 * part :].unflatten(0, (4, part)).amax(1)
        closing = (gap[1:] <= _CLOSING * gap[:-1]).all(0) & (gap[-1] <= _CLOSE * spread)
        found = (period == 0) & ((gap[-1] <= close) | closing)
        period = torch.where(found, p, period)
        miss = torch.where(found, torch.where(gap[-1] > 0, gap[-1] / spread, 0.0), miss)
        if bool((period > 0).all()):
            break
    return period, miss


def _turning(moves: Tensor, fit: RateFit) -> Estimate:
    """Period of the strongest oscillation of the residual vectors ``(K, B, m)``.

    The power spectrum is the transform of the autocorrelation, and its highest peak the strongest oscillation in it.
    The residuals are divided by their geometric trend, and only the rows above rounding count.
    """
    first, count = fit.first.to(moves.device), fit.count.to(moves.device)
    row = torch.arange(len(moves), dtype=torch.float64, device=moves.device)[:, None]
    length = _length(moves)
    level = length.log() - row * fit.rate.to(moves.device).log()
    known = (row >= first) & (row < first + count) & torch.isfinite(level)
    top = torch.where(known, level, -math.inf).amax(0)
    weight = torch.where(known, (level - top).exp() / length, 0.0)
    steady = moves.nan_to_num(nan=0.0) * weight[:, :, None]

    def peak(start: Tensor, rows: Tensor) -> Tensor:
        window = torch.sin(math.pi * (row - start + 0.5) / rows).square()
        window = torch.where((row >= start) & (row < start + rows), window, 0.0)
        return _peak_frequency(steady * window[:, :, None])

    half = count // 2
    frequency = peak(first, count)
    parts = peak(first, half), peak(first + half, count - half)
    # Without noise the parabola is right to a thousandth of a resolution unit.
    error = torch.maximum((parts[0] - parts[1]).abs() / 2, 1e-3 / count)
    # A slow beat on top of an alternation shows no full turn either.
    error = torch.where((0.5 - frequency) * count < 1, error.maximum(1 / count), error)
    turns = frequency * count >= 1
    value = torch.where(turns, 1 / frequency, math.inf)
    error = torch.where(turns, error / frequency.square(), math.inf)
    enough = count >= _LEAST_ROWS
    return Estimate(
        torch.where(enough, value, math.nan), torch.where(enough, error, math.inf).nan_to_num(math.inf, math.inf)
    )


def _peak_frequency(rows: Tensor) -> Tensor:
    """Frequency of the highest peak, in turns per step from 0 to 1/2, of real signals ``(K, B, m)``; ``(B,)``."""
    size = _PADDING * len(rows)
    power = torch.fft.rfft(rows, n=size, dim=0).abs().square().sum(2)
    # A peak at either end stays there: what the parabola adds is clamped.
    power = torch.cat([power[:1], power, power[-1:]])
    at = power[1:-1].argmax(0, keepdim=True) + 1
    below, top, above = (power.gather(0, at + shift).clamp(min=1e-300).log()[0] for shift in (-1, 0, 1))
    bend = below - 2 * top + above
    shift = torch.where(bend < 0, 0.5 * (below - above) / bend, 0.0)
    return ((at[0] - 1 + shift) / size).clamp(0.0, 0.5)
