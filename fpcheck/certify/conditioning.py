r"""How firmly a certified fixed point is tied down: :math:`|(I - J(z))^{-1}|` over a ball, and what follows from it.

With A near :math:`(I - J)^{-1}` and :math:`|I - A (I - J(z))| \le q < 1` for all z of the ball, I - J(z) is invertible
and :math:`|(I - J(z))^{-1}| \le |A| / (1 - q)` (Theorem K5). Where the loop contracts in the metric,
:math:`1 / (1 - \kappa)` holds too (Theorem G1); of both bounds the smaller one counts, in each norm.

Shapes: as in :mod:`~fpcheck.certify.enclosure`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.curvature import Linearisation, curvature, geometry
from fpcheck.certify.enclosure import Enclosure
from fpcheck.certify.metric import Metric, euclidean
from fpcheck.certify.norms import norm_bound
from fpcheck.certify.rounding import down, up
from fpcheck.errors import InputError

__all__ = ["Conditioning", "conditioning", "verified_inverse"]


@final
@dataclass(frozen=True, eq=False)
class Conditioning:
    """Bounds that hold at the fixed point and at every state of the ball around the centre.

    Attributes:
        radius: The ball's, in the metric; it holds z*.
        inverse: On |(I - J(z))^-1|_2.
        metric_inverse: The same in the metric.
        change: On |J(z) - J(c)|_2, for the centre c. Two states of the ball differ by at most twice as much.
        metric_change: The same in the metric.
        distance: On |z* - c|_2.
        metric: The certificate's.
    """

    radius: float
    inverse: float
    metric_inverse: float
    change: float
    metric_change: float
    distance: float
    metric: Metric

    def adjoint_error(self, residual: float, length: float) -> float:
        """A bound on |w - u|_2, for the adjoint u of the exact gradient at z* and any w computed at the centre.

        Args:
            residual: Bound on |v - (I - J(c))' w|_2, with v the loss's slope in the state at z*.
            length: Bound on |w|_2.

        Guarantee: bound. :math:`u - w = (I - J(z^*))^{-T} (v - (I - J(c))' w + (J(z^*) - J(c))' w)`.
        Source: Theorem K5.
        """
        return up(self.inverse * up(residual + up(self.change * length)))


def conditioning(
    held: Enclosure, linear: Linearisation, found: Certificate, *, radius: float | None = None
) -> Conditioning:
    """Bound the inverse of I - J(z) over a ball about a proved fixed point.

    Args:
        held: The enclosure at the certificate's centre.
        linear: Its linearisation.
        found: A certificate of existence or of attraction.
        radius: The ball, in the certificate's metric, from ``found.error_bound``, which is the default: then the
            bounds are those at the fixed point.

    Raises:
        InputError: The certificate proves no fixed point, or the ball need not hold it.

    Guarantee: bound, rounding included; infinite where a bound could not be proved.
    Cost: an inverse, two curvatures.
    Source: Theorems K5 and G1.
    """
    if found.verdict is Verdict.UNKNOWN or found.metric is None:
        raise InputError(f"verdict={found.verdict.value}; expected a certificate that proves a fixed point")
    radius = found.error_bound if radius is None else radius
    if not found.error_bound <= radius < math.inf:
        raise InputError(f"radius={radius}; expected at least error_bound={found.error_bound}, and finite")
    metric, plain = found.metric, euclidean(held.jacobian.shape[0])
    # The ball in the metric lies in a Euclidean one, and kappa of either is a bound on the change.
    wide = curvature(geometry(linear, plain), 0.0, up(radius * metric.inverse_norm)).kappa
    own = curvature(geometry(linear, metric), 0.0, radius).kappa
    condition = up(metric.norm * metric.inverse_norm)
    change = min(wide, up(own * condition))
    metric_change = min(own, up(wide * condition))
    inverse, metric_inverse = (
        verified_inverse(held.jacobian, held.jacobian_error, norm, off)
        for norm, off in ((plain, change), (metric, metric_change))
    )
    if found.verdict is Verdict.PROVED_ATTRACTING:
        kappa = up(found.centre_rate + metric_change)
        if kappa < 1:
            metric_inverse = min(metric_inverse, up(1 / down(1 - kappa)))
    return Conditioning(
        radius,
        min(inverse, up(metric_inverse * condition)),
        min(metric_inverse, up(inverse * condition)),
        change,
        metric_change,
        found.euclidean_error_bound,
        metric,
    )


def verified_inverse(jacobian: Tensor, error: float, metric: Metric, change: float) -> float:
    """A bound on ``|(I - J)^-1|_P`` for every J near a computed one; infinite where none could be proved.

    Args:
        jacobian: The computed J(c), ``(n, n)``.
        error: The exact J(c) is within this of it, in the Frobenius norm.
        metric: The norm.
        change: J is within this of J(c), in the metric.

    Guarantee: bound, rounding included.
    Source: Theorem K5.
    """
    eye = torch.eye(jacobian.shape[0], dtype=torch.float64)
    A, info = torch.linalg.inv_ex(eye - jacobian)
    if int(info) != 0 or not bool(A.isfinite().all()):
        return math.inf
    exact = Ball.exact(A)
    size = metric.operator_norm(exact)
    newton = Ball.exact(eye) - exact @ (Ball.exact(eye) - Ball.exact(jacobian))
    # The enclosure's error is a Euclidean one; it passes A first.
    defect = metric.operator_norm(newton, up(norm_bound(exact) * error))
    defect = up(defect + up(size * change))
    return up(size / down(1 - defect)) if defect < 1 else math.inf
