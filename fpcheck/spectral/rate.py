"""The rate at which a loop really converged, read off its residuals.

In the long run a residual behaves like ``c k^p rho^k w(k)``: rho is the spectral radius at the limit, p > 0 belongs
to a defective dominant eigenvalue and p < 0 to a crowd of eigenvalues near the edge of the spectrum, and w
oscillates for a complex pair. Before that come transients, after it the rounding floor. The fit leaves both out and
reads the slope of the logarithm in between.

Natural logarithms; ``k`` counts loop steps from the first row of the history.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fpcheck.errors import InputError

__all__ = ["RateFit", "measured_rate"]

Real = npt.NDArray[np.float64]

# Fewer points than this cannot show a slope and its error at once.
_MIN_POINTS = 6

# A level tail counts as rounding floor only this far below the largest residual. Cycles and chaos are level too,
# but near the top, and there the level itself is the answer (rate 1).
_FLOOR_DEPTH = 1e-4

# Residuals closer to the floor than this factor are bent by it (by 3 per cent at 30 times the floor).
_FLOOR_MARGIN = 30.0

# Share of the decay that is left out at its beginning as transient.
_TRANSIENT = 1 / 3

# The term p log k is used where it explains all but this share of what a straight line leaves over. At 0.2 it
# began to take slow oscillations for an algebraic factor.
_ALGEBRAIC = 0.05


@final
@dataclass(frozen=True, eq=False)
class RateFit:
    """Measured convergence rates per loop step. NaN where a sample gave fewer than 6 usable points.

    Attributes:
        rate: Factor per loop step, ``(B,)`` float64, to be compared with a spectral radius; above 1 for growth.
        error: Estimate of its error, ``(B,)``, of the kind of a standard error: it covers the difference to the
            spectral radius in about nine cases of ten.
        first: First row of the history used, ``(B,)`` int64.
        last: Last row used, ``(B,)`` int64.
        count: Rows used, ``(B,)`` int64; 0 where the rate is NaN.
    """

    rate: Tensor
    error: Tensor
    first: Tensor
    last: Tensor
    count: Tensor


def measured_rate(history: Tensor, *, floor: float = 0.0) -> RateFit:
    """Asymptotic convergence rate of each sample, from the residuals of a plain or damped iteration.

    What it needs: a residual that falls from 1 to 1e-13 gives the spectral radius to 2 per cent where that is 0.7
    or more, complex pairs and Jordan blocks of size 2 included, if the window holds two periods of the residual
    (half those of the eigenvalue). Faster loops leave 20 to 40 points: still 2 per cent when one real eigenvalue
    dominates, up to 20 per cent when a pair or a larger Jordan block does. ``error`` says which case it is.

    Args:
        history: Residual norms, absolute or relative, ``(K, B)``, one row per loop step, NaN after a sample
            stopped: ``solution.history``.
        floor: Residuals at and after the first one not above this are rounding noise and are not used. A floor
            that shows as a level tail four decades below the largest residual is found without it.

    Raises:
        InputError: ``history`` is not floating point ``(K, B)``, or holds negative values; negative ``floor``.

    Guarantee: estimate.
    Source: least squares on log residuals under a sine-squared window, which averages an oscillation away faster
        than equal weights do (Das, Saiki, Sander, Yorke 2017, on weighted Birkhoff averages).

    Example:
        >>> fit = measured_rate(0.5 ** torch.arange(40, dtype=torch.float64).unsqueeze(1))
        >>> round(float(fit.rate[0]), 6)
        0.5
    """
    if not isinstance(history, Tensor) or not history.is_floating_point() or history.ndim != 2:
        found = f"{history.dtype} {tuple(history.shape)}" if isinstance(history, Tensor) else type(history).__name__
        raise InputError(f"history is {found}; expected residual norms, a floating-point tensor (K, B)")
    if bool((history < 0).any()):
        raise InputError(
            f"history holds negative values (column {int((history < 0).any(0).nonzero()[0])}); expected norms"
        )
    if not floor >= 0:
        raise InputError(f"floor={floor!r}; expected a number >= 0")
    columns = history.detach().to("cpu", torch.float64).numpy().T
    fits = [_fit(column, floor) for column in columns]
    real = torch.tensor([fit[:2] for fit in fits], dtype=torch.float64).reshape(-1, 2)
    rows = torch.tensor([fit[2:] for fit in fits], dtype=torch.int64).reshape(-1, 2)
    count = torch.where(real[:, 0].isnan(), 0, rows[:, 1] - rows[:, 0] + 1)
    return RateFit(rate=real[:, 0], error=real[:, 1], first=rows[:, 0], last=rows[:, 1], count=count)


def _fit(residual: Real, floor: float) -> tuple[float, float, int, int]:
    """Rate, error, first and last row of one sample."""
    unusable = np.flatnonzero(~(np.isfinite(residual) & (residual > floor)))
    y = np.log(residual[: unusable[0] if len(unusable) else None])
    top = _top(y)
    end = top + _decay_end(y[top:])
    start = top + int((end - top) * _TRANSIENT)
    size = end - start
    if size < _MIN_POINTS:
        return math.nan, math.nan, 0, 0
    k = np.arange(start, end, dtype=np.float64)
    weight = _window(size)
    line = _least_squares([np.ones(size), k - k.mean()], y[start:end], weight)
    best, change = line, 0.0
    if size >= 2 * _MIN_POINTS:
        bent = _least_squares([np.ones(size), k - k.mean(), np.log(k + 1)], y[start:end], weight)
        if bent.misfit < _ALGEBRAIC * line.misfit:
            best, change = bent, abs(bent.slope - line.slope)
    # The slope that is left over, in the two halves: half their difference is what a trend or an oscillation longer
    # than the window can hide. Half the correction by the third term likewise.
    halves = [_slope(half) for half in np.array_split(best.rest, 2)]
    error = max(best.slope_error, abs(halves[1] - halves[0]) / 2, change / 2)
    rate = math.exp(best.slope)
    return rate, rate * error, start, end - 1


def _top(y: Real) -> int:
    """Where the decay begins: at the largest residual, unless too little follows it (growth, cycles)."""
    if len(y) == 0:
        return 0
    top = int(y.argmax())
    return top if len(y) - top >= max(2 * _MIN_POINTS, len(y) / 3) else 0


def _decay_end(y: Real) -> int:
    """Number of leading rows that lie clearly above the rounding floor, if the tail is one."""
    n = len(y)
    if n < 2 * _MIN_POINTS:
        return n
    # The two straight lines that fit best, one after the other. The tail is a floor if its line does not fall, read
    # off its later part, since the place where it begins is not sharp.
    before, after = _line_misfits(y), _line_misfits(y[::-1])[::-1]
    splits = np.arange(4, n - 3)
    split = int(splits[np.argmin(before[splits - 1] + after[splits])])
    tail = y[split + (n - split) // 3 :]
    if len(tail) < 3:
        return n
    k = np.arange(len(tail), dtype=np.float64)
    line = _least_squares([np.ones(len(tail)), k - k.mean()], tail, np.ones(len(tail)))
    level = float(tail.mean())
    # 1e-6: an exactly constant tail has no error to compare with.
    # Nor if it rises: that is growth.
    if abs(line.slope) > 3 * line.slope_error + 1e-6 or level > float(y.max()) + math.log(_FLOOR_DEPTH):
        return n
    above = np.flatnonzero(y[:split] > level + math.log(_FLOOR_MARGIN))
    return int(above[-1]) + 1 if len(above) else 0


def _line_misfits(y: Real) -> Real:
    """Sum of squares that the best straight line leaves over on ``y[: m + 1]``, for every m."""
    y = y - y.mean()
    k = np.arange(len(y), dtype=np.float64)
    count = k + 1
    cov = np.cumsum(k * y) - np.cumsum(k) * np.cumsum(y) / count
    var = np.cumsum(k * k) - np.cumsum(k) ** 2 / count
    total = np.cumsum(y * y) - np.cumsum(y) ** 2 / count
    rest: Real = np.maximum(total - cov**2 / np.maximum(var, 0.5), 0.0)  # var is 0 for one row, 0.5 for two
    return rest


@dataclass(frozen=True)
class _Line:
    slope: float
    slope_error: float
    misfit: float
    rest: Real


def _least_squares(columns: list[Real], y: Real, weight: Real) -> _Line:
    """Weighted least squares; the slope is the coefficient of the second column, its error as for equal noise."""
    X = np.stack(columns, axis=1)
    root = np.sqrt(weight)[:, None]
    coefficients = np.linalg.lstsq(root * X, root[:, 0] * y, rcond=None)[0]
    rest = y - X @ coefficients
    misfit = float(weight @ rest**2)
    noise = misfit / max(float(weight.sum()) - X.shape[1], 1.0)
    gain = np.linalg.pinv(root * X)[1] * root[:, 0]
    return _Line(float(coefficients[1]), math.sqrt(noise) * float(np.linalg.norm(gain)), misfit, rest)


def _slope(y: Real) -> float:
    return _least_squares([np.ones(len(y)), np.arange(len(y), dtype=np.float64)], y, _window(len(y))).slope


def _window(size: int) -> Real:
    window: Real = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
    return window
