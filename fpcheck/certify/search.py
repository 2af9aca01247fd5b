r"""Find a certificate: centre, metric and radius by search, each inequality by proof.

Theorem Q4: if :math:`|F(c) - c|_P \le Y`, :math:`|J(z)|_P \le \kappa < 1` for all z with :math:`|z - c|_P \le r`, and
:math:`Y \le (1 - \kappa) r`, then the ball maps into itself, holds exactly one fixed point z*, every start in it
converges to z* with rate :math:`\kappa`, and :math:`|z^* - c|_P \le Y / (1 - \kappa)`. Theorem K1: the same for the map
:math:`z - A (z - F(z))`, with any matrix A near :math:`(I - J)^{-1}`, proves existence and uniqueness where the loop
itself does not contract.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.curvature import Curvature, Geometry, Linearisation, curvature, geometry, linearise
from fpcheck.certify.decision import decisions
from fpcheck.certify.enclosure import Enclosure, enclose_graph, evaluate
from fpcheck.certify.fusion import fuse
from fpcheck.certify.metric import Metric, dual_stein, euclidean
from fpcheck.certify.norms import norm_bound
from fpcheck.certify.rounding import down, up
from fpcheck.certify.trace import Graph, trace
from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral import critical_step

__all__ = ["certify"]

# choice: levels between the spectral radius and 1 at which a metric is tried.
_LEVELS = (0.3, 0.5, 0.7)
# choice: the radius is searched to this factor.
_FINE = 1.04
# choice: a linear step contracts everywhere; a ball of this radius holds every state of interest.
_FAR = 1e9
# choice: shares of the estimated radius at which the proof is tried.
_SHRINK = (0.98, 0.93, 0.8, 0.5, 0.1, 1e-2)
# choice: steps of refinement; each is one loop step in high precision.
_REFINE = 30


@final
@dataclass(frozen=True, eq=False)
class _Attempt:
    """A metric in which the linear part contracts, with the estimated reach of the ball."""

    metric: Metric
    shape: Geometry
    Z1: float
    Y: float
    reach: float


def certify(loop: Loop, state: Tensor, *, readout: Callable[[Tensor], Tensor] | None = None) -> Certificate:
    """Prove that a sample's loop has a fixed point near a state, and, where it is so, that it attracts.

    Args:
        loop: A loop with a batch of one: ``loop.sample(i)``. Damped and iterated views are certified as the maps they
            are.
        state: ``(1, *state)``: where the loop settled. Any state is allowed; it is refined first, by steps of the loop.
        readout: From a state to logits ``(1, *tokens, classes)``, linear: then the answers are certified too.

    Returns:
        A `Certificate` for the exact real map.

    Raises:
        InputError: More than one sample, or a state of another shape.
        NonFiniteError: The state, or the loop's image of it, is not finite.
        UnsupportedOperatorError: An operator without a sound rule; the message names it and the user's line.

    Guarantee: bound, rounding included.
    Cost: n = 768, two layers: some 20 seconds on one core; memory some 3 GiB.
    Source: Theorems Q4 and K1.
    """
    if loop.batch_size != 1 or state.ndim < 2 or state.shape[0] != 1:
        raise InputError(
            f"batch_size={loop.batch_size}, state={tuple(state.shape)}; expected one sample: loop.sample(i) and "
            "state[i:i+1]"
        )
    if not bool(state.isfinite().all()):
        raise NonFiniteError("state holds NaN or inf; pass the state on which the loop settled")
    graph = fuse(trace(loop, state))
    centre = _refined(graph, state.detach().to(torch.float64))
    held = enclose_graph(graph, centre)
    linear = linearise(held)
    found = _attracting(held, linear, centre)
    if found.verdict is Verdict.UNKNOWN:
        exists = _existing(held, linear, centre)
        found = found if exists.verdict is Verdict.UNKNOWN else replace(exists, reason=found.reason)
    if readout is not None and found.metric is not None and found.verdict is not Verdict.UNKNOWN:
        found = replace(found, decisions=decisions(readout, centre, found.metric, dtype=state.dtype))
    return found


def _refined(graph: Graph, state: Tensor) -> Tensor:
    """The best of some further loop steps, made in high precision and rounded to float64 each."""
    best, best_size = state, math.inf
    for _ in range(_REFINE):
        image = evaluate(graph, state)[graph.output].mid
        size = float((image - state).norm())
        if not math.isfinite(size):
            break
        if size < best_size:
            best, best_size = state, size
        elif size > 0.9 * best_size:  # choice: no longer worth a step
            break
        state = image
    return best


def _attracting(held: Enclosure, linear: Linearisation, centre: Tensor) -> Certificate:
    """Theorem Q4 in the best dual Stein metric."""
    eigenvalues = torch.linalg.eigvals(held.jacobian)
    radius = float(eigenvalues.abs().max())
    if not radius < 1:
        step = float(critical_step(eigenvalues))
        advice = (
            f"try loop.damped(s) with s below about {step:.3f}"
            if step > 0
            else "no damping cures it: an eigenvalue has real part 1 or more"
        )
        return _unknown(
            centre,
            f"the spectral radius at the state is about {radius:.4f}, not below 1, so no metric makes a step contract; "
            + advice,
        )
    jacobian = Ball.exact(held.jacobian)
    attempts, nearest = [], math.inf
    for share in _LEVELS:
        metric = dual_stein(held.jacobian, radius + share * (1 - radius))
        if metric is None:
            continue
        Z1 = metric.operator_norm(jacobian, held.jacobian_error)
        nearest = min(nearest, Z1)
        if Z1 < 1:
            shape = geometry(linear, metric)
            Y = metric.size((held.value - Ball.exact(centre)).reshape(-1))
            attempts.append(_Attempt(metric, shape, Z1, Y, _largest(shape, Z1)))
    if not attempts:
        return _unknown(
            centre, f"no metric was found with |J(c)|_P below 1; the nearest gave {nearest:.6f}. Damping may help"
        )
    best = max(attempts, key=lambda attempt: attempt.reach / attempt.metric.norm)
    return _decide(best, centre, Verdict.PROVED_ATTRACTING)


def _existing(held: Enclosure, linear: Linearisation, centre: Tensor) -> Certificate:
    """Theorem K1 with A near (I - J)^-1, in the Euclidean norm: the Newton map's Jacobian nearly vanishes there."""
    n = centre.numel()
    eye = torch.eye(n, dtype=torch.float64)
    A, info = torch.linalg.inv_ex(eye - held.jacobian)
    if int(info) != 0 or not bool(A.isfinite().all()):
        return _unknown(centre, "I - J(c) is singular: 1 is an eigenvalue up to rounding")
    metric = euclidean(n)
    exact = Ball.exact(A)
    newton = Ball.exact(eye) - exact @ (Ball.exact(eye) - Ball.exact(held.jacobian))
    Z1 = metric.operator_norm(newton, up(norm_bound(exact) * held.jacobian_error))
    if not Z1 < 1:
        return _unknown(centre, f"|I - A (I - J(c))|_2 is bounded by {Z1:.4f} only, not below 1")
    shape = geometry(linear, metric, left=A)
    step = exact @ (held.value - Ball.exact(centre)).reshape(-1, 1)
    Y = metric.size(step.reshape(-1))
    return _decide(_Attempt(metric, shape, Z1, Y, _largest(shape, Z1)), centre, Verdict.PROVED_EXISTS)


def _largest(shape: Geometry, Z1: float) -> float:
    """About the largest radius with kappa below 1, by estimated norms."""
    low, high = 0.0, 1.0
    while curvature(shape, Z1, high, proved=False).kappa < 1:
        if high > _FAR:
            return high
        low, high = high, 4 * high  # choice: of the search
    while low == 0.0 or high / low > _FINE:
        middle = math.sqrt(low * high) if low > 0 else high / 8  # choice: of the search
        if curvature(shape, Z1, middle, proved=False).kappa < 1:
            low = middle
        else:
            high = middle
        if high < 1e-12:  # choice: a smaller ball helps nobody
            return 0.0
    return low


def _decide(attempt: _Attempt, centre: Tensor, verdict: Verdict) -> Certificate:
    Y, Z1, metric = attempt.Y, attempt.Z1, attempt.metric
    failed = f"no ball: kappa reaches 1 at a radius below 1e-12 although |J(c)|_P is {Z1:.4f}"
    for shrink in _SHRINK if attempt.reach > 0 else ():
        found = curvature(attempt.shape, Z1, attempt.reach * shrink)
        room = down(down(1 - found.kappa) * found.radius)
        if found.kappa < 1 and room >= Y:
            break
        failed = (
            f"Y <= (1 - kappa) r fails: Y = {Y:.3e}, kappa = {found.kappa:.4f} at r = {found.radius:.3e}; refine the "
            "state in float64"
        )
    else:
        return _unknown(centre, failed, metric, Y, Z1)
    near = _near(attempt, found)
    error = up(Y / down(1 - near.kappa))
    names = {f"{i} {node.name}": s for i, (node, s) in enumerate(zip(attempt.shape.nodes, found.shares, strict=True))}
    return Certificate(
        verdict, "", centre, metric, Y, Z1, found.radius, found.kappa, error, near.kappa, names, decisions=None
    )


def _near(attempt: _Attempt, found: Curvature) -> Curvature:
    """A much smaller ball that the residual still allows: it gives the error bound and the rate in the long run."""
    radius = 2 * attempt.Y / (1 - attempt.Z1)
    if not 0 < radius < found.radius:
        return found
    small = curvature(attempt.shape, attempt.Z1, radius)
    return small if small.kappa < 1 and down(down(1 - small.kappa) * radius) >= attempt.Y else found


def _unknown(
    centre: Tensor, reason: str, metric: Metric | None = None, Y: float = math.inf, Z1: float = math.inf
) -> Certificate:
    infinite = math.inf
    return Certificate(Verdict.UNKNOWN, reason, centre, metric, Y, Z1, 0.0, infinite, infinite, infinite, {}, None)
