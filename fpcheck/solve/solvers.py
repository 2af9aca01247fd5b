"""Picard, damped and Anderson iteration.

All test the undamped residual of the state they return, sample by sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from fpcheck.loop import Loop
from fpcheck.solve.base import AbstractSolver, is_count, is_number, require
from fpcheck.solve.engine import AbstractMethod, iterate, pick
from fpcheck.solve.monitor import Figures, Flags, Monitor, norms
from fpcheck.solve.solution import Solution

__all__ = ["Anderson", "Damped", "Picard"]


@dataclass(frozen=True)
class _Tolerances(AbstractSolver):
    """Options that every solver has.

    Args:
        rtol: CONVERGED needs ``|F(z) - z| <= atol + rtol * |F(z)|``; None: 1e-10 in float64, 1e-5 in float32,
            3e-2 in bfloat16, 3e-3 in float16.
        atol: See ``rtol``.
        max_steps: States evaluated per sample, at most; see ``Solution.steps``.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 1000

    def __post_init__(self) -> None:
        require(self.rtol is None or (is_number(self.rtol) and self.rtol >= 0), self, "rtol", "None or a number >= 0")
        require(is_number(self.atol) and self.atol >= 0, self, "atol", "a finite number >= 0")
        require(self.atol > 0 or self.rtol != 0, self, "rtol", "a number > 0 when atol=0, else no state can pass")
        require(is_count(self.max_steps), self, "max_steps", "an integer >= 1")


@final
@dataclass(frozen=True)
class Picard(_Tolerances):
    """Plain iteration ``z <- F(z)``: converges exactly where the loop itself does.

    Cycles are recognised by their return and end the solve early.
    """

    def solve(self, loop: Loop, z0: Tensor) -> Solution:
        """Iterate ``z <- F(z)`` from ``z0``; see :class:`AbstractSolver`."""
        return iterate(loop, z0, _PicardMethod(), rtol=self.rtol, atol=self.atol, max_steps=self.max_steps, best=False)


class _PicardMethod(AbstractMethod):
    stationary = True

    def advance(self, z: Tensor, fz: Tensor, last: Monitor) -> Tensor:
        return fz


@final
@dataclass(frozen=True)
class Damped(_Tolerances):
    """Patience-damped iteration ``z <- (1 - s) z + s F(z)``: shrink ``s`` when the residual stops falling.

    The corrected form of FPRM's FPOPT: per sample, no batch coupling, the residual undamped and measured at the
    returned state, ``s`` in float32 or wider, a NaN in one sample harmless to the others. Patience counts
    evaluations that did not bring the residual a tenth below its best; any fall at all would do just below the
    critical step, where the loop settles by fractions of a percent for ever. A state that moves steadily one way
    while its residual falls is spared: that is a slow real eigenvalue, which damping only slows further. A
    residual twice its best ends patience at once. The best is forgotten at each decay, so that a step that has
    become stable is kept.

    Args:
        step: First step, in (0, 1].
        decay: Factor on ``s`` when patience ends, in (0, 1]; 1 keeps the step constant.
        patience: Evaluations in a row, at least 1; see above.
        min_step: ``s`` never falls below this.

    Source: arXiv 2606.18206, damping theorem; Theorem B8: the fixed points stay; Theorem D5: every eigenvalue with
    real part below 1 allows small steps; Theorem D6: one with a larger real part allows none.
    """

    step: float = 1.0
    decay: float = 0.9
    patience: int = 5
    min_step: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_number(self.step) and 0 < self.step <= 1, self, "step", "a number in (0, 1]")
        require(is_number(self.decay) and 0 < self.decay <= 1, self, "decay", "a number in (0, 1]")
        require(is_count(self.patience), self, "patience", "an integer >= 1")
        within = is_number(self.min_step) and 0 < self.min_step <= self.step
        require(within, self, "min_step", f"a number in (0, step={self.step}]")

    def solve(self, loop: Loop, z0: Tensor) -> Solution:
        """Iterate with a per-sample step from ``z0``; see :class:`AbstractSolver`."""
        method = _DampedMethod(self, len(z0))
        return iterate(loop, z0, method, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps, best=True)


_GAIN, _DOUBLED = 0.9, 2.0


class _DampedMethod(AbstractMethod):
    def __init__(self, options: Damped, batch: int) -> None:
        self.options = options
        self.stationary = options.decay == 1.0
        self.resolution: Figures = np.full(batch, options.step)
        self.best = np.full(batch, np.inf)
        self.waited = np.zeros(batch, dtype=np.int64)

    def advance(self, z: Tensor, fz: Tensor, last: Monitor) -> Tensor:
        lower = last.absolute < self.best
        better = last.absolute < _GAIN * self.best
        idle = ~better
        if (lower & idle).any():
            idle &= ~(lower & last.steady())
        self.waited = np.where(idle, self.waited + 1, 0)
        impatient = (self.waited >= self.options.patience) | (last.absolute > _DOUBLED * self.best)
        shorter = np.maximum(self.resolution * self.options.decay, self.options.min_step)
        self.resolution = np.where(impatient, shorter, self.resolution)
        self.best = np.where(better | impatient, last.absolute, self.best)
        self.waited[impatient] = 0
        if (self.resolution == 1).all():
            return fz
        # In float32 or wider: in bfloat16 a step of 0.997 is 1, and the weights (1 - s) and s do not add up to 1.
        s = torch.from_numpy(self.resolution).to(last.residual).view(-1, *[1] * (z.ndim - 1))
        return (z + s * last.residual).to(z.dtype)

    def keep(self, mask: Tensor) -> None:
        flags = np.array(mask.tolist())
        self.resolution, self.best, self.waited = self.resolution[flags], self.best[flags], self.waited[flags]


@final
@dataclass(frozen=True)
class Anderson(_Tolerances):
    """Anderson acceleration (type II), per sample, with regularised least squares and a safeguard.

    ``z <- z + b f - (dZ + b dF) g`` with ``f = F(z) - z``, ``dZ`` and ``dF`` the last ``memory`` differences of
    states and residuals, ``g`` minimising ``|f - dF g|^2`` plus a small ridge. A residual that exceeds
    ``safeguard`` times the best one sends the sample back to its best state with an empty memory and half the
    mixing ``b``; the fifth such residual in a row of ever smaller mixings is accepted instead, as a fresh start,
    because the best state then is a trap: a least residual that is none. Finds repelling fixed points too: that it
    converged says nothing about the loop's stability.

    Args:
        memory: Differences kept, at least 1.
        mixing: First mixing factor ``b``, in (0, 1].
        safeguard: See above, > 1.

    Source: D. G. Anderson (1965); H. F. Walker and P. Ni (2011), type II form.
    """

    memory: int = 8
    mixing: float = 1.0
    safeguard: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_count(self.memory), self, "memory", "an integer >= 1")
        require(is_number(self.mixing) and 0 < self.mixing <= 1, self, "mixing", "a number in (0, 1]")
        require(is_number(self.safeguard) and self.safeguard > 1, self, "safeguard", "a number > 1")

    def solve(self, loop: Loop, z0: Tensor) -> Solution:
        """Accelerated iteration from ``z0``; see :class:`AbstractSolver`."""
        method = _AndersonMethod(self, z0)
        return iterate(loop, z0, method, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps, best=True)


# Relative to the columns' unit length: large enough that columns parallel to rounding do not blow up the
# weights, small enough not to slow the iteration.
_RIDGE = {torch.float64: 1e-13, torch.float32: 1e-6}
_RETREATS = 4
# A change of the residual by fewer rounding units of |F(z)| is noise: divided by it, a drift would leap away.
_NOISE = 2.0


class _AndersonMethod(AbstractMethod):
    """Flattened states ``(b, n)``; ``m`` slots of differences, used in turn; unused slots are zero.

    A slot holds the change ``df`` of the residual, scaled to unit length, and ``dg``, the change of ``z + b f``
    in the same scale.
    """

    def __init__(self, options: Anderson, z0: Tensor) -> None:
        self.options = options
        self.wide = torch.promote_types(z0.dtype, torch.float32)
        self.noise = _NOISE * torch.finfo(z0.dtype).eps
        batch, n, m = len(z0), z0[0].numel(), options.memory
        self.df = torch.zeros(batch, m, n, dtype=self.wide, device=z0.device)
        self.dg = torch.zeros_like(self.df)
        self.gram = torch.zeros(batch, m, m, dtype=self.wide, device=z0.device)
        self.previous: tuple[Tensor, Tensor] | None = None
        self.best_z = z0.flatten(1).to(self.wide)
        self.best_f = torch.zeros_like(self.best_z)
        self.best = np.full(batch, np.inf)
        self.mixing = torch.full((batch, 1), options.mixing, dtype=self.wide, device=z0.device)
        self.retreats = np.zeros(batch, dtype=np.int64)
        self.count = 0

    def advance(self, z: Tensor, fz: Tensor, last: Monitor) -> Tensor:
        state, f = z.flatten(1).to(self.wide), last.residual.flatten(1)
        if self.previous is not None:
            self._remember(state - self.previous[0], f - self.previous[1], last.scale)
        worse = last.absolute > self.options.safeguard * self.best
        if worse.any():
            state, f = self._retreat(worse, state, f)
        better = last.absolute < self.best
        self.best = np.where(better, last.absolute, self.best)
        self.best_z, self.best_f = pick(better, state, self.best_z), pick(better, f, self.best_f)
        self.previous = (state, f)
        step = self.mixing * f - (self._weights(f) @ self.dg)[:, 0]
        return (state + step).view(z.shape).to(z.dtype)

    def _remember(self, dz: Tensor, df: Tensor, scale: Figures) -> None:
        slot = self.count % self.options.memory
        self.count += 1
        length = norms(df)[0]
        telling = length > np.maximum(self.noise * scale, torch.finfo(self.wide).tiny)
        unit = torch.from_numpy(np.where(telling, length, np.inf)).to(df)[:, None]
        self.df[:, slot] = df / unit
        self.dg[:, slot] = (dz + self.mixing * df) / unit
        row = self._times_df(self.df[:, slot])[:, 0]
        self.gram[:, slot, :] = row
        self.gram[:, :, slot] = row

    def _retreat(self, worse: Flags, state: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
        column = torch.from_numpy(worse).to(f.device)
        for memory in (self.df, self.dg, self.gram):
            memory[column] = 0
        trapped = worse & (self.retreats >= _RETREATS)
        self.best[trapped] = np.inf
        self.retreats = np.where(trapped, 0, self.retreats + worse)
        self.mixing = torch.from_numpy(self.options.mixing / 2.0**self.retreats).to(f)[:, None]
        back = worse & ~trapped
        return pick(back, self.best_z, state), pick(back, self.best_f, f)

    def _times_df(self, f: Tensor) -> Tensor:
        """Inner products of ``f`` with every slot's ``df``, ``(b, 1, m)``; a row times a matrix, which is fast."""
        return f[:, None, :] @ self.df.mT

    def _weights(self, f: Tensor) -> Tensor:
        """Ridge least squares per sample, ``(b, 1, m)``; zero on empty slots."""
        # Columns of unit length: the diagonal is 1, and becomes 1 on empty slots, where the right side is 0.
        gram = self.gram.clone()
        gram.diagonal(dim1=1, dim2=2).fill_(1 + _RIDGE[self.wide])
        return torch.linalg.solve(gram, self._times_df(f).mT).mT

    def keep(self, mask: Tensor) -> None:
        for name in ("df", "dg", "gram", "best_z", "best_f", "mixing"):
            setattr(self, name, getattr(self, name)[mask])
        flags = np.array(mask.tolist())
        self.best, self.retreats = self.best[flags], self.retreats[flags]
        if self.previous is not None:
            self.previous = (self.previous[0][mask], self.previous[1][mask])
