r"""A claimed rate refuted: two states of a ball whose images are further apart than the claim allows.

The pair is found by ascent on the norm of the Jacobian over the ball; what counts is its evaluation, which is enclosed.
Finding none says nothing about the claim.

Shapes: states ``(1, *state)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpcheck.certify.balls import Ball
from fpcheck.certify.enclosure import evaluate
from fpcheck.certify.fusion import fuse
from fpcheck.certify.metric import Metric
from fpcheck.certify.rounding import TINY, down, gamma
from fpcheck.certify.trace import trace
from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop

__all__ = ["Violation", "violation"]

_STARTS = 4  # choice: ascents
_STEPS = 6  # choice: steps of each
_TURNS = 8  # choice: turns of the power iteration at each step
# choice: half distances of the pair, as shares of the radius.
_SHARES = (1.0, 0.5, 0.1, 1e-2, 1e-3)
_PROOFS = 4  # choice: pairs that are evaluated with proof, the most promising first
_INSIDE = 1 - 1e-6  # choice: share of the radius that the search uses, so that rounding leaves the pair in the ball


@final
@dataclass(frozen=True, eq=False)
class Violation:
    """Two states that refute a claimed rate.

    Attributes:
        first: ``(1, *state)``, floats.
        second: The same.
        ratio: Lower bound on ``|F(first) - F(second)|_P / |first - second|_P``, above the claimed rate.
    """

    first: Tensor
    second: Tensor
    ratio: float


def violation(
    loop: Loop, centre: Tensor, rate: float, *, metric: Metric, radius: float, generator: torch.Generator | None = None
) -> Violation | None:
    """Refute that a loop step is ``rate``-Lipschitz on a ball, if a pair of states that shows it can be found.

    Args:
        loop: A loop with a batch of one (``loop.sample(i)``).
        centre: The ball's centre, ``(1, *state)``, in the loop's dtype.
        rate: The claimed factor per loop step.
        metric: The norm of the claim; `euclidean` for the 2-norm.
        radius: The ball's radius in it, above 0.
        generator: For the starts of the search; default: seeded with 0.

    Returns:
        A pair in the ball; None if the search found none, which proves nothing.

    Raises:
        InputError: A radius or rate that is no number, or more than one sample.
        NonFiniteError: The centre is not finite.
        UnsupportedOperatorError: An operator without a sound rule.

    Guarantee: bound, rounding included: both images are enclosed, and both states are proved to lie in the ball.
    Cost: some hundred Jacobian-vector products, and up to eight evaluations at 200 bits.
    """
    if loop.batch_size != 1 or centre.ndim < 2 or centre.shape[0] != 1:
        raise InputError(
            f"batch_size={loop.batch_size}, centre={tuple(centre.shape)}; expected one sample: loop.sample(i)"
        )
    if not (0 < radius < math.inf) or not (0 <= rate < math.inf):
        raise InputError(f"radius={radius}, rate={rate}; expected a radius above 0 and a rate from 0, both finite")
    if not bool(centre.isfinite().all()):
        raise NonFiniteError("centre holds NaN or inf; pass the centre of the ball that was claimed")
    pairs = _candidates(loop, centre, metric, radius * _INSIDE, generator or torch.Generator().manual_seed(0))
    graph = fuse(trace(loop, centre))
    middle = Ball.exact(centre)
    for a, b in pairs[:_PROOFS]:
        first, second = Ball.exact(a), Ball.exact(b)
        if not all(metric.size((s - middle).reshape(-1)) <= radius for s in (first, second)):
            continue
        images = [evaluate(graph, s)[graph.output] for s in (a, b)]
        apart = _size_below(metric, (images[0] - images[1]).reshape(-1, 1))
        before = metric.size((first - second).reshape(-1))
        if before > 0 and down(apart / before) > rate:
            return Violation(a, b, down(apart / before))
    return None


def _size_below(metric: Metric, column: Ball) -> float:
    """A lower bound on ``|v|_P``."""
    moved = Ball.exact(metric.L) @ column
    least = (moved.mid.abs() - moved.rad).clamp_min(0)
    square = float((least * least).sum())
    if not math.isfinite(square):
        return 0.0
    n = least.numel()
    # n products and sums and the difference, each right to u; then a root right to a few units.
    square = square * (1 - 2 * gamma(n + 4)) - n * TINY
    return down(math.sqrt(square) * (1 - 2.0**-50)) if square > 0 else 0.0


def _candidates(
    loop: Loop, centre: Tensor, metric: Metric, radius: float, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of states, by the ratio that floats give them, largest first."""
    n = centre.numel()
    found: list[tuple[float, Tensor, Tensor]] = []

    def state(delta: Tensor) -> Tensor:
        return (centre.to(torch.float64).reshape(-1) + metric.inverse @ delta).reshape(centre.shape).to(centre)

    starts = [torch.zeros(n, dtype=torch.float64)]
    starts += [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(_STARTS - 1)]
    with sdpa_kernel(SDPBackend.MATH):
        for delta in starts:
            size = float(delta.norm())
            delta = delta * (radius / size) if size > 0 else delta
            for _ in range(_STEPS):
                v, slope = _steepest(loop, state(delta), metric, generator)
                for share in _SHARES:
                    base, half = (1 - share) * delta, share * radius * v
                    a, b = state(base + half), state(base - half)
                    with torch.no_grad():
                        images = loop(a), loop(b)
                    ends = [q.double().reshape(-1) for q in (images[0] - images[1], a - b)]
                    apart, before = (float((metric.L @ e).norm()) for e in ends)
                    # What rounding may have put between the images is not to lead the list.
                    noise = torch.finfo(centre.dtype).eps * float(images[0].norm()) * metric.norm
                    if before > 0 and math.isfinite(apart):
                        found.append(((apart - noise) / before, a, b))
                if not (bool(slope.isfinite().all()) and float(slope.norm()) > 0):
                    break
                delta = radius * slope / slope.norm()
    found.sort(key=lambda entry: -entry[0])
    return [(a, b) for _, a, b in found]


def _steepest(loop: Loop, z: Tensor, metric: Metric, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """About the top right singular vector of L J(z) L^-1, and how the norm changes with the state, in the metric."""
    n = z.numel()
    point = z.detach().clone().requires_grad_()
    image = loop(point).reshape(-1)
    v = torch.randn(n, generator=generator, dtype=torch.float64)
    v = v / v.norm()
    # A derivative of <u, J v> by u, which it is linear in, is J v; autograd's graph is kept for all of them.
    probe = torch.zeros_like(image, requires_grad=True)
    (back,) = torch.autograd.grad(image, point, probe, create_graph=True, allow_unused=True)
    if back is None:
        return v, torch.zeros_like(v)
    u = v
    for _ in range(_TURNS):
        (forward,) = torch.autograd.grad(back.reshape(-1), probe, (metric.inverse @ v).to(z), retain_graph=True)
        u = metric.L @ forward.double()
        u = u / u.norm().clamp_min(1e-300)  # choice: no division by 0
        (pulled,) = torch.autograd.grad(image, point, (metric.L.mT @ u).to(z), retain_graph=True)
        v = metric.inverse.mT @ pulled.double().reshape(-1)
        v = v / v.norm().clamp_min(1e-300)  # choice: no division by 0
    (along,) = torch.autograd.grad(image, point, (metric.L.mT @ u).to(z), create_graph=True)
    size = along.reshape(-1) @ (metric.inverse @ v).to(z)
    if not size.requires_grad:  # a linear step
        return v, torch.zeros_like(v)
    (slope,) = torch.autograd.grad(size, point, allow_unused=True)
    return v, torch.zeros_like(v) if slope is None else metric.inverse.mT @ slope.double().reshape(-1)
