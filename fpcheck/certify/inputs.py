r"""Nearby injections: how far the fixed point moves with its injection, and which of them share a certificate.

The step is read as a function of state and injection together, :math:`(z, x) \to (F(z; x), x)`, so that one bound on
its curvature, in the norm :math:`|L z|^2 + |x|^2 / s^2`, holds for every state and injection of a ball (Theorem K6).

Shapes: ``(1, n + m)``: the state's n numbers, then the injection's m, its tensors in order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.conditioning import verified_inverse
from fpcheck.certify.curvature import curvature, geometry, linearise
from fpcheck.certify.enclosure import Enclosure, enclose_graph
from fpcheck.certify.fusion import fuse
from fpcheck.certify.metric import Metric, euclidean, proved_metric
from fpcheck.certify.norms import norm_bound
from fpcheck.certify.rounding import down, up
from fpcheck.certify.trace import trace
from fpcheck.errors import InputError
from fpcheck.loop import Injection, Loop, map_leaves

__all__ = ["Nearby", "nearby"]

# choice: shares of the certified radius that are left for the state.
_SHARES = (0.7, 0.4, 0.2, 5e-2, 1e-2)
_HALVINGS = 12  # choice: of the injection's radius, from what the linear part alone would allow


@final
@dataclass(frozen=True, eq=False)
class Nearby:
    """What a certificate says about other injections.

    Attributes:
        slope: Bound on |dz*/dx|, from the Euclidean norm of injections to the metric, at the certified injection.
        euclidean_slope: The same in Euclidean norms only.
        injection_radius: Every injection within this Euclidean distance of the certified one has exactly one fixed
            point in the ball of ``radius``, and attracts all of that ball; 0 where none could be proved.
        radius: Of that ball about the certificate's centre, in the metric.
        rate: For all of these injections and states.
        uniform_slope: Their fixed points differ by at most this, in the metric, times the distance of the injections.
        metric: The certificate's.
    """

    slope: float
    euclidean_slope: float
    injection_radius: float
    radius: float
    rate: float
    uniform_slope: float
    metric: Metric


def nearby(loop: Loop, found: Certificate, *, dtype: torch.dtype | None = None) -> Nearby:
    """Bound how the fixed point of a certified loop moves with its injection.

    Args:
        loop: The loop that was certified, with an injection of floating-point tensors.
        found: Its certificate of attraction.
        dtype: What the loop computes in, if not float64.

    Raises:
        InputError: No attraction proved, or no injection by which to differentiate.
        UnsupportedOperatorError: An operator without a sound rule in the injection.

    Guarantee: bound, rounding included; slopes are infinite and ``injection_radius`` is 0 where nothing was proved.
    Cost: that of a certificate with n + m numbers in place of n.
    Source: Theorems K5, K6 and G9.
    """
    metric = found.metric
    if found.verdict is not Verdict.PROVED_ATTRACTING or metric is None:
        raise InputError(f"verdict={found.verdict.value}; expected a certificate of attraction")
    held = _joint(loop, found.centre, dtype or torch.float64)
    linear = linearise(held)
    n = found.centre.numel()
    # The rows of F: the others are those of the injection itself.
    own, partial = held.jacobian[:n, :n], held.jacobian[:n, n:]
    through = Ball.exact(metric.L) @ Ball.exact(partial)
    size = up(norm_bound(through) + up(metric.norm * held.jacobian_error))
    Z1 = metric.operator_norm(Ball.exact(own), held.jacobian_error)
    # A power of two, so that its inverse is exact: then the injection counts about as much as the state.
    scale = 2.0 ** -math.frexp(size)[1] if 0 < size < math.inf else 1.0
    joined = _joined(metric, scale, partial.shape[1])
    if joined is None:
        return Nearby(math.inf, math.inf, 0.0, 0.0, math.inf, math.inf, metric)
    shape = geometry(linear, joined)

    def change(radius: float, injections: float) -> float:
        """On both parts of the Jacobian's change over states and injections that far from the certified ones."""
        reach = up(math.hypot(radius, up(injections / scale)) * (1 + 2.0**-50))
        return curvature(shape, 0.0, reach).kappa

    here = change(found.error_bound, 0.0)
    gap = down(1 - up(Z1 + here))
    slope = up(up(size + up(here / scale)) / gap) if gap > 0 else math.inf
    plain = euclidean(n)
    # The change in the metric, seen in the Euclidean norm.
    inverse = verified_inverse(own, held.jacobian_error, plain, up(up(metric.norm * metric.inverse_norm) * here))
    direct = up(norm_bound(Ball.exact(partial)) + held.jacobian_error)
    direct = up(inverse * up(direct + up(up(here / scale) * metric.inverse_norm)))
    euclidean_slope = min(up(slope * metric.inverse_norm), direct)
    best = Nearby(slope, euclidean_slope, 0.0, 0.0, math.inf, math.inf, metric)
    for share in _SHARES:
        radius = found.radius * share
        room = down(down(1 - Z1) * radius) - found.residual
        injections = room / size if size > 0 and room > 0 else 0.0
        for _ in range(_HALVINGS):
            if not injections > best.injection_radius:
                break
            bent = change(radius, injections)
            kappa, moved = up(Z1 + bent), up(size + up(bent / scale))
            if kappa < 1 and up(found.residual + up(moved * injections)) <= down(down(1 - kappa) * radius):
                uniform = up(moved / down(1 - kappa))
                best = Nearby(slope, euclidean_slope, injections, radius, kappa, uniform, metric)
                break
            injections /= 2
    return best


def _joined(metric: Metric, scale: float, m: int) -> Metric | None:
    """The norm of states and injections together: the metric, beside the Euclidean norm over a scale."""
    eye = torch.eye(m, dtype=torch.float64)
    return proved_metric(torch.block_diag(metric.L, eye / scale), torch.block_diag(metric.inverse, eye * scale))


def _joint(loop: Loop, centre: Tensor, dtype: torch.dtype) -> Enclosure:
    """The map (z, x) -> (F(z; x), x) at a state and the loop's injection."""
    leaves = loop.leaves()
    if not leaves or not all(leaf.is_floating_point() for leaf in leaves):
        kinds = [str(leaf.dtype) for leaf in leaves]
        raise InputError(f"injection={kinds}; expected tensors of floating-point numbers, by which to differentiate")
    n, sizes = centre.numel(), [leaf.numel() for leaf in leaves]
    joint = torch.cat([part.detach().double().reshape(1, -1) for part in (centre, *leaves)], 1)

    def step(both: Tensor) -> Tensor:
        z, *parts = both.split([n, *sizes], 1)
        held = iter(zip(parts, leaves, strict=True))

        def replaced(_: Tensor) -> Tensor:
            part, leaf = next(held)
            return part.reshape(leaf.shape).to(leaf.dtype)

        injection: Injection = map_leaves(loop.x, replaced)
        image = loop.with_injection(injection)(z.reshape(centre.shape))
        return torch.cat([image.reshape(1, -1), *parts], 1)

    return enclose_graph(fuse(trace(step, joint.to(dtype))), joint)
