r"""The largest damping step with a proof, and the step with the best proved rate, from one linearisation.

The damped map :math:`F_s(z) = (1 - s) z + s F(z)` has the fixed points of F, the Jacobian :math:`I + s (J - I)`, and s
times the residual and the curvature of F in the same metric (Theorem K4): nothing but the metric has to be made anew.

Shapes: as in :mod:`~fpcheck.certify.enclosure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.curvature import Linearisation, curvature, geometry
from fpcheck.certify.enclosure import Enclosure
from fpcheck.certify.metric import Metric, dual_stein
from fpcheck.certify.rounding import down, up
from fpcheck.spectral import critical_step

__all__ = ["CertifiedStep", "CertifiedSteps", "certified_steps", "prove_step"]

# choice: how far below the critical step, as a share of it, the proof is tried.
_BELOW = (1e-4, 1e-3, 1e-2, 5e-2, 0.2, 0.5)
# choice: levels between the spectral radius and 1 at which a metric is tried.
_LEVELS = (0.5, 0.8)
# choice: the same for the best rate, the lowest first.
_LOW_LEVELS = (0.02, 0.05, 0.1, 0.3, 0.5)
# choice: balls that are tried, as multiples of the least that the residual allows.
_BALLS = (2.0, 32.0)
_STEPS = 128  # choice: steps among which the eigenvalues pick the fastest


@final
@dataclass(frozen=True, eq=False)
class CertifiedStep:
    """A damping step with which the loop is proved to converge near the centre.

    Attributes:
        step: s, relative to the loop that was enclosed.
        metric: The norm of the proof.
        radius: Every start within this of the centre, in the metric, converges.
        rate: Bound on the factor per damped step there.
        error_bound: Bound on the distance of the fixed point from the centre, in the metric.
    """

    step: float
    metric: Metric
    radius: float
    rate: float
    error_bound: float


@final
@dataclass(frozen=True, eq=False)
class CertifiedSteps:
    """What damping is proved to do.

    Attributes:
        largest: The largest step in (0, 1] for which a proof was found; larger ones may converge too.
        fastest: The one with the smallest proved rate among those that were tried.
    """

    largest: CertifiedStep
    fastest: CertifiedStep


def certified_steps(held: Enclosure, linear: Linearisation) -> CertifiedSteps | None:
    """Find damping steps in (0, 1] with a proof that the damped loop converges to a fixed point near the centre.

    Args:
        held: The enclosure at a centre near a fixed point.
        linear: Its linearisation.

    Returns:
        The largest and the fastest step; None where none was proved, as where no damping helps.

    Guarantee: bound, rounding included. The search relies on computed eigenvalues, the proofs do not.
    Cost: some metrics and their norms, and two or three curvatures.
    Source: Theorem K4.
    """
    eigenvalues = torch.linalg.eigvals(held.jacobian)
    critical = float(critical_step(eigenvalues))
    if not critical > 0:
        return None
    # Beyond 1 by more than a rounding, the plain loop comes first.
    tries = [1.0] if critical > 1 else []
    tries += [critical * (1 - below) for below in _BELOW if critical * (1 - below) < 1]
    largest = next((found for s in tries if (found := _first(held, linear, s, _LEVELS)) is not None), None)
    if largest is None:
        return None
    # choice: of the grid
    grid = [largest.step * (k + 1) / _STEPS for k in range(_STEPS)]
    best = min(grid, key=lambda s: _radius(eigenvalues, s))
    fastest = _first(held, linear, best, _LOW_LEVELS)
    return CertifiedSteps(largest, largest if fastest is None or largest.rate < fastest.rate else fastest)


def _radius(eigenvalues: Tensor, s: float) -> float:
    return float((1 + s * (eigenvalues - 1)).abs().max())


def _first(held: Enclosure, linear: Linearisation, s: float, levels: tuple[float, ...]) -> CertifiedStep | None:
    """The first level whose metric gives a proof."""
    eye = torch.eye(held.jacobian.shape[0], dtype=torch.float64)
    moved = eye + s * (held.jacobian - eye)
    radius = float(torch.linalg.eigvals(moved).abs().max())
    for share in levels if radius < 1 else ():
        metric = dual_stein(moved, radius + share * (1 - radius))
        found = None if metric is None else prove_step(held, linear, s, metric)
        if found is not None:
            return found
    return None


def prove_step(held: Enclosure, linear: Linearisation, step: float, metric: Metric) -> CertifiedStep | None:
    """Prove that the loop damped with a step converges near the centre; None if this metric does not show it.

    Guarantee: bound, rounding included.
    Source: Theorem K4.
    """
    eye = Ball.exact(torch.eye(held.jacobian.shape[0], dtype=torch.float64))
    jacobian = eye + (Ball.exact(held.jacobian) - eye) * step
    Z1 = metric.operator_norm(jacobian, up(step * held.jacobian_error))
    if not Z1 < 1:
        return None
    centre = held.values[0]
    Y = up(step * metric.size((held.value - centre).reshape(-1)))
    least = Y / (1 - Z1) + 2.0**-52 * (1 + float(centre.mid.abs().max()))
    shape = geometry(linear, metric)
    for multiple in _BALLS:
        radius = least * multiple
        kappa = up(Z1 + up(step * curvature(shape, 0.0, radius).kappa))
        if kappa < 1 and down(down(1 - kappa) * radius) >= Y:
            return CertifiedStep(step, metric, radius, kappa, up(Y / down(1 - kappa)))
    return None
