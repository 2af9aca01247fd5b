"""Decides, from residuals and norms alone, how each sample's solve stands.

A small relative residual is not convergence: a state that drifts by bounded increments grows like k, so its
relative residual falls like 1/k and passes any tolerance (Theorem X1), and without a contraction no small residual
bounds an error (Theorem X3). CONVERGED therefore
asks for four things of the returned state itself:

1. its undamped residual passes ``atol + rtol * |F(z)|``;
2. the absolute residual has at least halved since its peak, or is rounding noise: something contracted;
3. ``|F(z)|`` has grown by less than 5 % over the second half of the solve: a geometric tail that passes any
   usable tolerance moved less than that, a drift (linear, square root, logarithmic) moved more;
4. if it lies further out than the solve began: going on in the direction travelled changes the residual by more
   than the residual itself, and by more than rounding. A contraction turns back there. A drift by shrinking
   increments only shrinks them further, by less than all of them; and where rounding has frozen a drift, every
   state out there looks like a fixed point, and none has been found. Where the residual changes by a hundred times
   itself, condition 3 is waived: an accelerated solve may arrive all of a sudden.

No finite test catches every drift. One whose increments are below half a rounding unit of its start is a fixed
point of the rounded map, and is called that; so is one whose increments rise and fall by more than they are.

The figures of all running samples come to the host once per evaluation, as float64 NumPy arrays ``(b,)``. The
constants below are heuristics on how to name a failure and when to stop early. None can make a state pass
that misses condition 1.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fpcheck.loop import Loop
from fpcheck.status import Status

__all__ = ["RUNNING", "Codes", "Figures", "Flags", "Monitor", "norms"]

Figures = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int8]
Flags = npt.NDArray[np.bool_]

RUNNING = -1
_GROWTH = 1.05
# Evaluations before a drift is named: the first states of any loop may march.
_WARM_UP = 8
_BLOW_UP = 1e6
# How far to go on in the direction travelled, in units of the way; not a whole number, as fixed points may be
# evenly spaced. Beyond _FAR times the scale of the start, rounding is taken for a reason to doubt.
_ONWARDS, _FAR, _SUDDEN = 0.618, 1.5, 100.0
# Cosine above which the state moves steadily one way; noise points anywhere.
_STEADY = 0.9
# A drift by constant increments is straight and even; a slow turn in a bounded loop is so for a while only.
_STRAIGHT = 0.99
# Evaluations without a 10 % better residual after which a sample counts as stalled and is examined.
_STALL = 32
_STALL_GAIN = 0.9
# A residual within this factor of what rounding the state moves F(z) by is noise: the residual is a sum of
# several such roundings over the depth of the block.
_NOISE_FACTOR = 8.0
# Return distance, relative to the last step, below which an orbit has closed: far below what a slowly
# converging flip shows (1 - rate per turn).
_RETURN = 1e-6
# Rounding moves a returning orbit by some units, and one more each step. To tell that from slow convergence,
# a step must be this many units.
_ORBIT_UNITS, _ORBIT_SIZE = 4.0, 1e5


# Below this norm, or above its inverse, squares are lost.
_SQUARES_FROM = {dtype: 1e4 * math.sqrt(torch.finfo(dtype).tiny) for dtype in (torch.float32, torch.float64)}


def norms(*states: Tensor) -> list[Figures]:
    """Euclidean norm of each sample of each ``(b, *state)``, on the host, without overflow or underflow."""
    flat = [state.detach().flatten(1) for state in states]
    flat = [v if v.dtype == torch.float64 else v.float() for v in flat]
    # Through a list, not .numpy(): that also works on the wrapped tensors of torch.func.
    rows = np.array(torch.stack([torch.linalg.vector_norm(v, dim=1) for v in flat]).tolist(), dtype=np.float64)
    smallest = _SQUARES_FROM[flat[0].dtype]
    for v, row in zip(flat, rows, strict=True):
        if not ((row > smallest) & (row < 1 / smallest)).all():
            largest = v.abs().amax(dim=1, keepdim=True).double()
            unit = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
            row[:] = (unit[:, 0] * torch.linalg.vector_norm(v.double() / unit, dim=1)).tolist()
    return list(rows)


# What the monitor keeps a row of for each running sample.
_STATES = ("z0", "previous", "state", "residual", "before", "anchor", "old_anchor")
_FIGURES = (
    "index", "absolute", "relative", "scale", "peak", "start", "reference", "best", "best_at", "looked", "period",
)  # fmt: skip


class Monitor:
    """Book-keeping of one solve.

    Attributes:
        index: Numbers of the samples still running, ``(b,)``. All arrays below are ``(b,)``, in this order.
        residual: ``F(z) - z`` of the last evaluation, ``(b, *state)``, float32 or wider.
        absolute: Its norms; ``relative``: divided by ``|F(z)|``, both infinite where they are not numbers.
        period: Gap at which a state returned.
        history: Relative residuals of every evaluation, one row ``(B,)`` each; NaN for samples that had stopped.
    """

    def __init__(self, z0: Tensor, *, rtol: float, atol: float, stationary: bool) -> None:
        batch = len(z0)
        self.rtol, self.atol = rtol, atol
        self.eps = torch.finfo(z0.dtype).eps
        self.wide = torch.promote_types(z0.dtype, torch.float32)
        # A cycle can only be named while every step applies the same map.
        self.stationary = stationary
        self._batch = batch
        self.index = np.arange(batch)
        self.history: list[Figures] = []
        self._absolutes: list[Figures] = []  # |F(z) - z| and |F(z)|, rows as in history
        self._scales: list[Figures] = []
        self.absolute = self.relative = np.full(batch, np.inf)
        self.scale = self.peak = np.zeros(batch)
        self.start = norms(z0)[0]
        # Scale of the start, entries of unit size at least: a solve may well start from almost zero.
        self.reference = np.maximum(self.start, math.sqrt(z0[0].numel()))
        self.best = np.full(batch, np.inf)
        self.best_at = np.zeros(batch, dtype=np.int64)
        self.looked = np.full(batch, np.inf)
        self.period = np.zeros(batch, dtype=np.int64)
        self.residual = self.before = torch.zeros_like(z0, dtype=self.wide)
        self.z0 = self.previous = self.state = self.anchor = self.old_anchor = z0
        self.anchor_at = 0

    @property
    def evaluations(self) -> int:
        """Evaluations recorded so far."""
        return len(self.history)

    def judge(self, loop: Loop, z: Tensor, fz: Tensor, resolution: Figures | float) -> Codes:
        """Status codes ``(b,)`` after the evaluation ``fz = F(z)``; RUNNING where the solve goes on.

        Args:
            loop: The map on the running samples, to measure its rounding noise with.
            z: States just evaluated.
            fz: Their images.
            resolution: Step with which residuals enter the state: rounding stalls a damped loop at noise / step.
        """
        with np.errstate(all="ignore"):
            finite = self._record(z, fz)
            passed = self.absolute <= self.atol + self.rtol * self.scale
            halved = (self.absolute <= 0.5 * self.peak) | (self.absolute == 0)
            settled = ~self._growing()
            closed, exactly = self._closed_orbit(z, resolution)
            stalled = (self.evaluations - self.best_at >= _STALL) | exactly
            code = np.full(len(z), RUNNING, dtype=np.int8)
            code[closed] = Status.CYCLE.value
            noise = stalled & ~(passed & halved & settled)
            if noise.any():
                floor = self._at_noise_floor(noise, loop, z, fz, resolution)
                noise = floor & (exactly | ~self.steady())
                # A damped step too small to move the state hides drift and convergence alike.
                code[(noise & ~passed) | (floor & self._stuck())] = Status.NOISE_FLOOR.value
                self.best_at[stalled] = self.evaluations  # examine again only later
            candidate = passed & (halved | noise)
            code[candidate & settled] = Status.CONVERGED.value
            outside = (self.scale > _GROWTH * self.start) | ~settled
            # A look costs an evaluation: one for each halving is enough.
            look = candidate & outside & (self.absolute <= 0.5 * self.looked)
            code[candidate & outside] = RUNNING
            if look.any():
                change = self._change_onwards(look, loop, z)
                rounding = self.eps * self.scale
                basic = change > np.maximum(self.absolute, np.where(self.scale > _FAR * self.start, rounding, 0))
                enough = basic & (settled | (change > _SUDDEN * self.absolute))
                failed = np.where(~basic & (self.absolute <= rounding), Status.NOISE_FLOOR.value, RUNNING)
                code[look] = np.where(enough, Status.CONVERGED.value, failed)[look]
                self.looked[look] = self.absolute[look]
            # Twice in a row: an accelerated solve may overshoot once and come back.
            blown_up = np.minimum(self.scale, self._past(self._scales, 1)) > _BLOW_UP * self.reference
            code[(code == RUNNING) & blown_up] = Status.DIVERGING.value
            code[~finite] = Status.NON_FINITE.value
        return code

    def out_of_budget(self, loop: Loop, z: Tensor, fz: Tensor, resolution: Figures | float) -> Codes:
        """Name what kept each sample, running still, from converging."""
        with np.errstate(all="ignore"):
            code = np.full(len(z), Status.BUDGET.value, dtype=np.int8)
            everywhere = np.ones(len(z), dtype=np.bool_)
            noise = self._at_noise_floor(everywhere, loop, z, fz, resolution) & (self._stuck() | ~self.steady())
            code[noise] = Status.NOISE_FLOOR.value
            runs_away = (self._grown() | self._marching(z)) & ~self._slowing_geometrically()
            code[runs_away] = Status.DIVERGING.value
        return code

    def keep(self, mask: Tensor) -> None:
        """Forget the samples that stopped."""
        for name in _STATES:
            setattr(self, name, getattr(self, name)[mask])
        flags = np.array(mask.tolist())
        for name in _FIGURES:
            setattr(self, name, getattr(self, name)[flags])

    def _record(self, z: Tensor, fz: Tensor) -> Flags:
        """Enter one evaluation; says which samples are finite."""
        self.previous, self.state = self.state, z
        self.before, self.residual = self.residual, fz.to(self.wide) - z.to(self.wide)
        self.absolute, self.scale = norms(self.residual, fz)
        self.relative = np.where(self.absolute == 0, 0.0, self.absolute / self.scale)
        finite = np.isfinite(self.absolute + self.scale)
        if not finite.all():
            # A state whose image is not finite has an infinite residual, not an unknown one.
            self.absolute[~finite] = self.relative[~finite] = np.inf
        if not self.history:
            self.reference = np.maximum(self.reference, self.scale)
        self.history.append(self._widened(self.relative))
        self._absolutes.append(self._widened(self.absolute))
        self._scales.append(self._widened(self.scale))
        self.peak = np.maximum(self.peak, self.absolute)
        better = self.relative < _STALL_GAIN * self.best
        self.best = np.where(better, self.relative, self.best)
        self.best_at[better] = self.evaluations
        return finite

    def _widened(self, figures: Figures) -> Figures:
        if len(figures) == self._batch:
            return figures
        row = np.full(self._batch, np.nan)
        row[self.index] = figures
        return row

    def _past(self, rows: list[Figures], ago: int) -> Figures:
        row = rows[max(len(rows) - 1 - ago, 0)]
        return row if len(self.index) == self._batch else row[self.index]

    def _growing(self) -> Flags:
        return self.scale > _GROWTH * self._past(self._scales, self.evaluations // 2)

    def _grown(self) -> Flags:
        """Whether the growth is no passing one: in both of the last doublings of the time, and beyond the start."""
        spans = (self.evaluations // 2, 3 * self.evaluations // 4, self.evaluations)
        half, quarter, first = (self._past(self._scales, ago) for ago in spans)
        grown = self._growing() & (half > _GROWTH * quarter) & (self.scale > _GROWTH * first)
        return grown & (self.evaluations >= _WARM_UP)

    def steady(self) -> Flags:
        """Whether the last two residuals point the same way: a drift, or a slow real eigenvalue."""
        return _cosine(self.residual, self.before) > _STEADY

    def _stuck(self) -> Flags:
        """Whether rounding took the last step away, although there is a residual."""
        return (norms(self.state - self.previous)[0] == 0) & (self.evaluations > 1) & (self.absolute > 0)

    def _marching(self, z: Tensor) -> Flags:
        """Whether the state moves on in a straight line, by steps that do not shrink."""
        straight = _cosine(self.residual, z - self.old_anchor) > _STRAIGHT
        shrinking = self.absolute < _STRAIGHT * self._past(self._absolutes, self.evaluations // 2)
        return straight & ~shrinking & (self.evaluations >= _WARM_UP)

    def _slowing_geometrically(self) -> Flags:
        """Tell a slow contraction from a drift: over doubled spans its log-residual falls twice as far."""
        last = self.evaluations - 1
        spans = (last - last // 4, last - last // 2, 0)
        quarter, half, now = (np.log(np.maximum(self._past(self._absolutes, ago), 1e-300)) for ago in spans)
        earlier, later = quarter - half, half - now
        return (later > 0.01) & (later > 1.5 * earlier)

    def _at_noise_floor(self, mask: Flags, loop: Loop, z: Tensor, fz: Tensor, resolution: Figures | float) -> Flags:
        """Whether the residual is what rounding the state alone would cause; costs one evaluation of ``mask``."""
        # Half of the digits right at least: noise is smaller than that in any loop of use.
        mask = mask & (self.relative * resolution <= math.sqrt(self.eps))
        floor = np.zeros(len(z), dtype=np.bool_)
        if mask.any():
            picked = torch.from_numpy(mask).to(z.device)
            z, fz = z[picked], fz[picked]
            generator = torch.Generator().manual_seed(self.evaluations)
            sign = torch.randint(0, 2, z.shape[1:], generator=generator).to(z) * 2 - 1
            moved = norms(loop.select(picked)(z + sign * self.eps * z).to(self.wide) - fz.to(self.wide))[0]
            noise = (moved + self.eps * self.scale[mask]) / np.broadcast_to(resolution, mask.shape)[mask]
            floor[mask] = self.absolute[mask] <= _NOISE_FACTOR * noise
        return floor

    def _change_onwards(self, mask: Flags, loop: Loop, z: Tensor) -> Figures:
        """How much going on in the direction travelled changes the residual; costs one evaluation of ``mask``."""
        picked = torch.from_numpy(mask).to(z.device)
        onwards = z[picked] + _ONWARDS * (z[picked] - self.z0[picked])
        residual = loop.select(picked)(onwards).to(self.wide) - onwards.to(self.wide)
        change = np.zeros(len(z))
        # Where it is not even finite, the state is at the border of the block's domain, and drifts no further.
        change[mask] = np.nan_to_num(norms(residual - self.residual[picked])[0], nan=np.inf)
        return change

    def _closed_orbit(self, z: Tensor, resolution: Figures | float) -> tuple[Flags, Flags]:
        """Brent's cycle test: has the state come back, nearly or exactly, to the one kept at the last power of two?"""
        gap = self.evaluations - self.anchor_at
        closed = exactly = np.zeros(len(z), dtype=np.bool_)
        # A state that has come back has the residual it had: most steps need no look at the states themselves.
        if self.stationary and gap > 1 and (before := self._as_before(gap)).any():
            miss = norms(z - self.anchor)[0]
            unit, moved = self.eps * self.scale, self.absolute * resolution
            exactly = (miss == 0) & (self.absolute > 0) & ~self._stuck()
            nearly = (miss <= np.maximum(_RETURN * moved, (_ORBIT_UNITS + gap) * unit)) & (moved > _ORBIT_SIZE * unit)
            # Each by its own residual: what its batch mates do must not open the test for it.
            closed = (exactly | nearly) & before
            self.period[closed] = gap
        if self.evaluations & (self.evaluations - 1) == 0:
            self.old_anchor, self.anchor, self.anchor_at = self.anchor, z, self.evaluations
        return closed, exactly

    def _as_before(self, gap: int) -> Flags:
        return np.abs(self.absolute - self._past(self._absolutes, gap)) <= 0.1 * self.absolute


def _cosine(a: Tensor, b: Tensor) -> Figures:
    a, b = a.flatten(1).double(), b.flatten(1).double()
    length_a, length_b = norms(a, b)
    dot = np.array(torch.linalg.vecdot(a, b).tolist())
    return np.where(length_a * length_b > 0, dot / (length_a * length_b), 0.0)
