"""Many starts, and how many different fixed points they end on.

Shapes: ``B`` samples, ``S = 1 + n_starts`` starts of each (the given state, then random ones), ``n`` entries in one
sample's state. The starts of all samples are solved as one batch.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.loop import Loop
from fpcheck.solve import AbstractSolver, Picard, Solution
from fpcheck.solve.base import is_count, is_number
from fpcheck.solve.engine import check_start
from fpcheck.spectral.approach import approach_rate
from fpcheck.spectral.rate import measured_rate
from fpcheck.status import Status

__all__ = ["FixedPoints", "Multistart", "multistart"]

# States solved side by side, in bytes. A solver keeps some ten copies of them, a block's intermediates are some
# tens: a few GiB in all.
_CHUNK_BYTES = 64 * 2**20
_MAX_BYTES = 8 * 2**30

# A limit is as far from its fixed point as residual / (1 - rate), exactly so for one mode. Several modes that are
# not orthogonal can add up to more; ten times covers the loops tried.
_SAFETY = 10.0
# Rounding of a state near its limit, in units of eps, before the loop's memory of it (1 / (1 - rate)) adds it up.
_ROUNDINGS = 4.0
# Rates closer to 1 than this cannot be told from it by any history.
_SLOWEST = 1 - 1e-6

# Loop steps to a typical size of states.
_SETTLE = 50


@final
@dataclass(frozen=True, eq=False)
class FixedPoints:
    """The different limits of one sample's starts, most frequent first; ``m`` of them.

    Attributes:
        value: ``(m, *state)``: of each, the limit with the smallest error.
        error: Estimated distance of that limit from the fixed point, Euclidean, ``(m,)`` float64.
        starts: How many starts ended there, ``(m,)`` int64; the given state counts.
        share: Share of the random starts that did, ``(m,)``: the size of its basin as these starts see it.
        share_error: Standard error of the share.
        rate: Factor per loop step with which nearby states approach it (:func:`approach_rate`), ``(m,)``; NaN where
            they vanish at once.
        rate_error: Estimate of its error.
    """

    value: Tensor
    error: Tensor
    starts: Tensor
    share: Tensor
    share_error: Tensor
    rate: Tensor
    rate_error: Tensor

    def __len__(self) -> int:
        return len(self.starts)


@final
@dataclass(frozen=True, eq=False)
class Multistart:
    """Where many starts of each sample ended.

    Attributes:
        points: Different limits of each sample.
        label: Which of them each start ended on, ``(B, S)`` int64; -1 where it did not converge. Start 0 is the given
            state.
        status: How each start's solve ended, B rows of S.
        steps: States each start's solve evaluated, ``(B, S)`` int64.
        multistable: Whether the starts reached more than one fixed point that is not repelling, ``(B,)`` booleans.
        spread: Largest distance between two limits, ``(B,)`` float64; 0 with fewer than two.
        size: Euclidean norm of the largest limit, to compare the spread with, ``(B,)``; 0 without any.
    """

    points: tuple[FixedPoints, ...]
    label: Tensor = field(repr=False)
    status: tuple[tuple[Status, ...], ...] = field(repr=False)
    steps: Tensor = field(repr=False)
    multistable: Tensor
    spread: Tensor
    size: Tensor

    def __len__(self) -> int:
        return len(self.points)

    def explain(self) -> str:
        """One line per sample."""
        return "\n".join(f"sample {i}: {self.describe(i)}" for i in range(len(self)))

    def describe(self, i: int) -> str:
        """What was found for sample i."""
        points, total = self.points[i], len(self.status[i])
        rest = [f"{count} {s.name}" for s, count in Counter(self.status[i]).items() if s is not Status.CONVERGED]
        ended = f" ({', '.join(rest)})" if rest else ""
        if len(points) == 0:
            return f"none of {total} starts settled{ended}"
        shares = ", ".join(
            f"{float(share):.2f} +- {float(error):.2f}"
            for share, error in zip(points.share[:5], points.share_error[:5], strict=True)
        )
        more = ", ..." if len(points) > 5 else ""
        settled = int(points.starts.sum())
        found = (
            f"{len(points)} fixed point(s) from {settled} of {total} starts{ended}, shares of the random starts "
            f"{shares}{more}"
        )
        if len(points) > 1:
            found += f", up to {float(self.spread[i]):.2e} apart (size {float(self.size[i]):.2e})"
        if len(points) > 4 and len(points) > settled / 2:
            found += "; nearly every start has a limit of its own, as on a line of fixed points"
        return found


def multistart(
    loop: Loop,
    n_starts: int,
    *,
    around: Tensor | None = None,
    decades: float = 1.0,
    solver: AbstractSolver | None = None,
    seed: int = 0,
) -> Multistart:
    """Solve from many random starts and cluster the limits.

    Random starts are normal; their scales are spread evenly, in logarithm, from ``10^-decades`` to ``10^decades``
    times the natural size of the state: its root mean square at ``around``, or after 50 loop steps if that is larger.
    Every other one is centred at zero, the rest at the state after 50 steps. All samples use the same random numbers.

    Two limits count as one fixed point where a chain of limits joins them, each no further from the next than ten
    times their errors allow. The error of a limit is ``(residual + rounding) / (1 - rate)`` with the rate measured on
    the solve's own residuals: what a geometric tail has still to go (the form of Theorem B4, with estimates).

    Args:
        loop: The map.
        n_starts: Random starts of each sample.
        around: A state ``(B, *state)``, solved from too. Default: zeros shaped like the injection, if that is a tensor.
        decades: See above, >= 0.
        solver: Default ``Picard()``, which ends on attracting points alone. Accelerated solvers find others too.
        seed: Of the random starts.

    Raises:
        InputError: A wrong argument, or more than 8 GiB for the limits.
        NonFiniteError: ``around`` holds NaN or inf.

    Guarantee: estimate. A fixed point with a small basin is easily missed: one with the share p is, with
        ``n_starts`` starts, with probability ``(1 - p)^n_starts``.
    Cost: ``(1 + n_starts) * B`` solves in batches of 64 MiB of states, and 400 loop steps for each different limit.

    Example:
        >>> z = torch.zeros(1, 1, dtype=torch.float64)
        >>> found = multistart(Loop(lambda z: torch.tanh(2.5 * z), z0=z), 20, around=z + 0.1)
        >>> len(found.points[0]), bool(found.multistable)
        (2, True)
    """
    solver = Picard() if solver is None else solver
    if not is_count(n_starts):
        raise InputError(f"n_starts={n_starts!r}; expected an integer >= 1")
    if not (is_number(decades) and decades >= 0):
        raise InputError(f"decades={decades!r}; expected a finite number >= 0")
    if not isinstance(solver, AbstractSolver):
        raise InputError(f"solver={solver!r}; expected a solver object such as fp.Picard()")
    if around is None:
        if not (isinstance(loop.x, Tensor) and loop.x.is_floating_point()):
            raise InputError("around=None; pass around=, a state to start from: its shape cannot be read off x")
        around = torch.zeros_like(loop.x)
    check_start(loop, around)
    batch, total = len(around), 1 + n_starts
    need = total * around.numel() * around.element_size()
    if need > _MAX_BYTES:
        raise InputError(
            f"n_starts={n_starts} limits of {batch} samples need {need / 2**30:.3g} GiB; at most "
            f"{_MAX_BYTES / 2**30:.3g} are used: take fewer starts or fewer samples at once (loop.select)"
        )
    starts = _starts(loop, around.detach(), n_starts, decades, seed)
    sample = torch.arange(batch, device=around.device).repeat_interleave(total)
    parts = [
        solver.solve(loop.select(sample[rows]), starts[rows])
        for rows in torch.arange(len(sample), device=around.device).split(_rows(around))
    ]
    limits = torch.cat([part.value for part in parts])
    residual = torch.cat([part.residual_norm for part in parts])
    status = [status for part in parts for status in part.status]
    settled = torch.tensor([s is Status.CONVERGED for s in status], device=around.device).view(batch, total)
    rate = torch.cat([_tail_rate(part) for part in parts]).to(around.device)
    size = torch.linalg.vector_norm(limits.flatten(1).double(), dim=1)
    error = (residual + _ROUNDINGS * torch.finfo(around.dtype).eps * size) / (1 - rate)

    label, spread = _clusters(limits.view(batch, total, -1).double(), error.view(batch, total), settled)
    points = _fixed_points(loop, limits.view(batch, total, *around.shape[1:]), error.view(batch, total), label)
    return Multistart(
        points=points,
        label=label,
        status=tuple(tuple(status[i * total : (i + 1) * total]) for i in range(batch)),
        steps=torch.cat([part.steps for part in parts]).view(batch, total),
        multistable=torch.tensor(
            [int((~(one.rate - one.rate_error > 1)).sum()) > 1 for one in points], device=around.device
        ),
        spread=spread,
        size=torch.where(settled, size.view(batch, total), 0.0).amax(1),
    )


def _rows(z: Tensor) -> int:
    """States of one chunk."""
    return max(1, _CHUNK_BYTES // (z[0].numel() * z.element_size()))


def _starts(loop: Loop, around: Tensor, n_starts: int, decades: float, seed: int) -> Tensor:
    """``(B * S, *state)``, sample by sample."""
    walk = Picard(max_steps=_SETTLE).solve(loop, around)
    ran_away = torch.tensor([s in (Status.DIVERGING, Status.NON_FINITE) for s in walk.status], device=around.device)
    centre = torch.where(_column(ran_away, around), around, walk.value)
    natural = torch.maximum(_rms(around), _rms(centre))
    natural = torch.where(natural > 0, natural, 1.0)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n_starts, *around.shape[1:], generator=generator, dtype=torch.float64)
    scale = 10.0 ** torch.linspace(-decades, decades, n_starts, dtype=torch.float64)
    noise = (noise * _column(scale, noise)).to(around.device)
    random = noise.unsqueeze(0) * natural.view(-1, *[1] * noise.ndim)
    random[:, 1::2] += centre.unsqueeze(1).double()
    return torch.cat([around.unsqueeze(1), random.to(around.dtype)], dim=1).flatten(0, 1)


def _tail_rate(solution: Solution) -> Tensor:
    """Rate at which each solve ended, on the slow side of its error; ``(b,)``.

    Where the history is too short to fit, the mean factor of the whole solve: too fast by its transient, in a solve
    that took only a handful of steps.
    """
    fit = measured_rate(solution.history)
    history = solution.history.cpu()
    last = (solution.steps.cpu() - 1).clamp(min=0)
    ends = history.gather(0, last.unsqueeze(0))[0] / history[0]
    mean = ends.nan_to_num(nan=0.0, posinf=1.0) ** (1 / last.clamp(min=1))
    return torch.where(fit.rate.isnan(), mean, fit.rate + fit.error).clamp(max=_SLOWEST)


def _clusters(limits: Tensor, error: Tensor, settled: Tensor) -> tuple[Tensor, Tensor]:
    """Single linkage within the errors: labels ``(B, S)``, most frequent first, -1 if not settled; and the spread."""
    # Not by inner products, which would lose the digits that tell close limits apart.
    distance = torch.cdist(limits, limits, compute_mode="donot_use_mm_for_euclid_dist")
    both = settled.unsqueeze(1) & settled.unsqueeze(2)
    spread = torch.where(both, distance, 0.0).flatten(1).amax(1)
    joined = both & (distance <= _SAFETY * (error.unsqueeze(1) + error.unsqueeze(2)))
    total = limits.shape[1]
    # Every limit takes the smallest number among its neighbours until nothing changes: the first of its cluster.
    number = torch.arange(total, device=limits.device).expand_as(settled)
    while True:
        smallest = torch.where(joined, number.unsqueeze(1), total).amin(2)
        smallest = torch.where(settled, smallest, number)
        if torch.equal(smallest, number):
            break
        number = smallest
    members = torch.zeros(settled.shape, dtype=torch.int64, device=limits.device)
    members = members.scatter_add(1, number, settled.long())
    order = members.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)
    return torch.where(settled, rank.gather(1, number), -1), spread


def _fixed_points(loop: Loop, limits: Tensor, error: Tensor, label: Tensor) -> tuple[FixedPoints, ...]:
    """The clusters of each sample, each with its best limit, its share, and the rate there."""
    batch, total = label.shape
    best, owner = [], []
    for i in range(batch):
        for cluster in range(int(label[i].max()) + 1):
            own = torch.where(label[i] == cluster, error[i], math.inf)
            best.append(int(own.argmin()))
            owner.append(i)
    where = torch.tensor(owner, dtype=torch.int64, device=limits.device)
    states = limits[where, torch.tensor(best, dtype=torch.int64, device=limits.device)]
    fits = [
        approach_rate(loop.select(where[rows]), states[rows])
        for rows in torch.arange(len(where), device=limits.device).split(_rows(limits[:, 0]))
        if len(rows)
    ]
    none = torch.zeros(0, dtype=torch.float64)
    rates = torch.cat([none, *(fit.rate for fit in fits)]).to(limits.device)
    rate_errors = torch.cat([none, *(fit.error for fit in fits)]).to(limits.device)
    points = []
    for i in range(batch):
        mine = [j for j, sample in enumerate(owner) if sample == i]
        hits = label[i] == torch.arange(len(mine), device=label.device).unsqueeze(1)
        random = hits[:, 1:].sum(1).double()
        # One success and one failure more than were seen: a share of 0 or 1 is not known exactly either.
        smoothed = (random + 1) / (total + 1)
        points.append(
            FixedPoints(
                value=states[mine],
                error=error[i, [best[j] for j in mine]],
                starts=hits.sum(1),
                share=random / (total - 1),
                share_error=(smoothed * (1 - smoothed) / (total + 1)).sqrt(),
                rate=rates[mine],
                rate_error=rate_errors[mine],
            )
        )
    return tuple(points)


def _rms(z: Tensor) -> Tensor:
    return torch.linalg.vector_norm(z.flatten(1).double(), dim=1) / math.sqrt(z[0].numel())


def _column(per_sample: Tensor, like: Tensor) -> Tensor:
    return per_sample.view(-1, *[1] * (like.ndim - 1))
