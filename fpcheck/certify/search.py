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
from fpcheck.certify.curvature import (
    Curvature,
    FirstOrder,
    Geometry,
    Linearisation,
    curvature,
    geometry,
    linearise,
    link_shares,
)
from fpcheck.certify.decision import decisions
from fpcheck.certify.enclosure import Enclosure, enclose_graph, evaluate
from fpcheck.certify.fusion import fuse
from fpcheck.certify.metric import DualStein, Metric, euclidean
from fpcheck.certify.middle import first_order
from fpcheck.certify.norms import norm_bound
from fpcheck.certify.repelling import repelling
from fpcheck.certify.rounding import down, up
from fpcheck.certify.settings import Fast, Sharp
from fpcheck.certify.trace import Graph, trace
from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral import critical_step

__all__ = ["certify"]

# choice: a linear step contracts everywhere; a ball of this radius holds every state of interest.
_FAR = 1e9
# choice: evaluations of a search for the radius, and how near to 1 it has to come.
_EVALUATIONS, _CLOSE = 40, 0.98
# choice: attempts at a proof, each with a smaller ball.
_PROOFS = 4
# choice: steps of refinement; each is one loop step in high precision.
_REFINE = 30
# choice: the level tried last, nearly 1, where no other gave a metric.
_LAST = 0.9
# choice: rounds of making the ball longer towards a state on the way; what each adds to what lacks by estimate, what a
# proof may lose of it, and how long the ball may become.
_STRETCHES, _BEYOND, _SPARE, _LONGEST = 2, 1.15, 1.04, 100.0


@final
@dataclass(frozen=True, eq=False)
class _Attempt:
    """A metric in which the linear part contracts, with the estimated reach of the ball."""

    metric: Metric
    shape: Geometry
    Z1: float
    Y: float
    reach: float
    first: FirstOrder | None = None


def certify(
    loop: Loop,
    state: Tensor,
    *,
    readout: Callable[[Tensor], Tensor] | None = None,
    setting: Fast | Sharp | None = None,
    metric: Metric | None = None,
    approach: Tensor | None = None,
) -> Certificate:
    """Prove that a sample's loop has a fixed point near a state, and that it attracts, or that it does not.

    Args:
        loop: A loop with a batch of one: ``loop.sample(i)``. Damped and iterated views are certified as the maps they
            are.
        state: ``(1, *state)``: where the loop settled. Any state is allowed; it is refined first, by steps of the loop.
        readout: From a state to logits ``(1, *tokens, classes)``, linear: then the answers are certified too.
        setting: How much work goes into the bounds: ``Fast()`` (the default) or ``Sharp()``.
        metric: The norm to prove attraction in; the default searches for one that gives a large ball.
        approach: ``(1, *state)``: a state on the loop's way to the fixed point. The searched metric then makes the ball
            longer in the direction that the loop comes from, if it can so that the ball holds this state.

    Returns:
        A `Certificate` for the exact real map.

    Raises:
        InputError: More than one sample, or a state of another shape.
        NonFiniteError: The state, or the loop's image of it, is not finite.
        UnsupportedOperatorError: An operator without a sound rule; the message names it and the user's line.

    Guarantee: bound, rounding included.
    Cost: n = 768, two layers, one core: some 15 seconds, and one minute in the sharp setting.
    Source: Theorems Q4, K1 and K3.
    """
    setting = Fast() if setting is None else setting
    if loop.batch_size != 1 or state.ndim < 2 or state.shape[0] != 1:
        raise InputError(
            f"batch_size={loop.batch_size}, state={tuple(state.shape)}; expected one sample: loop.sample(i) and "
            "state[i:i+1]"
        )
    if approach is not None and approach.shape != state.shape:
        raise InputError(f"approach={tuple(approach.shape)}; expected a state like state={tuple(state.shape)}")
    if metric is not None and len(metric.L) != state.numel():
        raise InputError(f"metric.L={tuple(metric.L.shape)}; expected one row for each of n={state.numel()} numbers")
    for name, given in (("state", state), ("approach", approach)):
        if given is not None and not bool(given.isfinite().all()):
            raise NonFiniteError(f"{name} holds NaN or inf; pass the state on which the loop settled")
    graph = fuse(trace(loop, state))
    centre = _refined(graph, state.detach().to(torch.float64))
    held = enclose_graph(graph, centre)
    linear = linearise(held, links=isinstance(setting, Sharp))
    offset = None if approach is None else (approach.detach().to(torch.float64) - centre).reshape(-1)
    found = _attracting(held, linear, centre, setting, metric, offset)
    if found.verdict is Verdict.UNKNOWN:
        exists = _existing(held, linear, centre, setting)
        if exists.verdict is not Verdict.UNKNOWN:
            witness = repelling(held, linear, exists)
            verdict = exists.verdict if witness is None else Verdict.REFUTED
            found = replace(exists, verdict=verdict, reason=found.reason, witness=witness)
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
        if size <= 2.0**-52 * float(state.norm()):  # as near as rounded states come
            break
        state = image
    return best


def _attracting(
    held: Enclosure,
    linear: Linearisation,
    centre: Tensor,
    setting: Fast | Sharp,
    metric: Metric | None,
    offset: Tensor | None,
) -> Certificate:
    """Theorem Q4 in the metric that is given, or the best dual Stein metric."""
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
            held,
            centre,
            f"the spectral radius at the state is about {radius:.4f}, not below 1, so no metric makes a step contract; "
            + advice,
        )
    attempts: list[_Attempt] = []
    nearest = math.inf
    if metric is not None:
        attempt = _attempt(held, linear, centre, metric)
        nearest = attempt.Z1
        attempts += [attempt] if attempt.Z1 < 1 else []
    for level in (*setting.levels, _LAST) if metric is None else ():
        if level == _LAST and attempts:
            break
        family = DualStein(held.jacobian, radius + level * (1 - radius))
        plain = family.metric()
        if plain is None:
            continue
        attempt = _attempt(held, linear, centre, plain)
        nearest = min(nearest, attempt.Z1)
        if not attempt.Z1 < 1:
            continue
        attempts.append(attempt)
        if offset is not None:
            attempts += _stretched(held, linear, centre, family, attempt, offset)
    if not attempts:
        return _unknown(
            held,
            centre,
            f"no metric was found with |J(c)|_P below 1; the nearest gave {nearest:.6f}. Damping may help",
            metric,
        )
    best = max(attempts, key=lambda attempt: _worth(attempt, offset))
    return _decide(held, _sharpened(held, best, setting), centre, Verdict.PROVED_ATTRACTING)


def _attempt(held: Enclosure, linear: Linearisation, centre: Tensor, metric: Metric) -> _Attempt:
    """A metric with its bounds at the centre and about how far it reaches, by the bounds of the fast setting."""
    Z1 = metric.operator_norm(Ball.exact(held.jacobian), held.jacobian_error)
    Y = metric.size((held.value - Ball.exact(centre)).reshape(-1))
    shape = geometry(linear, metric)
    return _Attempt(metric, shape, Z1, Y, _largest(replace(shape, links=None), Z1))


def _stretched(
    held: Enclosure, linear: Linearisation, centre: Tensor, family: DualStein, plain: _Attempt, offset: Tensor
) -> list[_Attempt]:
    """Metrics with a longer axis towards a state, until the ball holds it by estimate; none where it does already."""
    found: list[_Attempt] = []
    last, longer = plain, 1.0
    for _ in range(_STRETCHES):
        lacking = float((last.metric.L @ offset).norm()) / max(last.reach, 1e-12)  # choice: no division by 0
        if not 1 < lacking * _SPARE < _LONGEST / longer:
            break
        longer *= lacking * _BEYOND
        metric = family.metric(along=offset, longer=longer)
        last = plain if metric is None else _attempt(held, linear, centre, metric)
        if metric is None or not last.Z1 < 1:
            break
        found.append(last)
    return found


def _worth(attempt: _Attempt, offset: Tensor | None) -> float:
    """The Euclidean radius of the ball, less where a state that it should hold is beyond its reach."""
    wide = attempt.reach / attempt.metric.norm
    if offset is None:
        return wide
    away = float((attempt.metric.L @ offset).norm())
    return wide * min(1.0, attempt.reach / away) if away > 0 else wide


def _sharpened(held: Enclosure, attempt: _Attempt, setting: Fast | Sharp) -> _Attempt:
    """With the first-order part bounded by itself, and the maps between nodes by their own norms."""
    if isinstance(setting, Fast) or not attempt.reach > 0:
        return attempt
    first = first_order(held, attempt.shape)
    return replace(attempt, first=first, reach=_largest(attempt.shape, attempt.Z1, first, guess=attempt.reach))


def _existing(held: Enclosure, linear: Linearisation, centre: Tensor, setting: Fast | Sharp) -> Certificate:
    """Theorem K1 with A near (I - J)^-1, in the Euclidean norm: the Newton map's Jacobian nearly vanishes there."""
    n = centre.numel()
    eye = torch.eye(n, dtype=torch.float64)
    A, info = torch.linalg.inv_ex(eye - held.jacobian)
    if int(info) != 0 or not bool(A.isfinite().all()):
        return _unknown(held, centre, "I - J(c) is singular: 1 is an eigenvalue up to rounding")
    metric = euclidean(n)
    exact = Ball.exact(A)
    newton = Ball.exact(eye) - exact @ (Ball.exact(eye) - Ball.exact(held.jacobian))
    Z1 = metric.operator_norm(newton, up(norm_bound(exact) * held.jacobian_error))
    if not Z1 < 1:
        return _unknown(held, centre, f"|I - A (I - J(c))|_2 is bounded by {Z1:.4f} only, not below 1")
    shape = geometry(linear, metric, left=A)
    step = exact @ (held.value - Ball.exact(centre)).reshape(-1, 1)
    Y = metric.size(step.reshape(-1))
    attempt = _Attempt(metric, shape, Z1, Y, _largest(replace(shape, links=None), Z1))
    return _decide(held, _sharpened(held, attempt, setting), centre, Verdict.PROVED_EXISTS)


def _largest(shape: Geometry, Z1: float, first: FirstOrder | None = None, guess: float = 1.0) -> float:
    """About the largest radius with kappa below 1, by estimated norms.

    kappa - Z1 grows at least in proportion to the radius (but for kinks), so each evaluation bounds the rest.
    """
    low, high, radius = 0.0, math.inf, guess
    links = link_shares(shape, guess)
    for _ in range(_EVALUATIONS):
        if radius > _FAR:
            return radius
        share = (curvature(shape, Z1, radius, first=first, proved=False, links=links).kappa - Z1) / (1 - Z1)
        if share < 1:
            low = max(low, radius)
            if share > _CLOSE:
                break
        else:
            high = min(high, radius)
        # choice: between the first power, at which kappa - Z1 grows in small balls, and the second.
        ahead = max(share, 1e-6) ** -0.7 * 0.995 if math.isfinite(share) else 0.25
        radius *= ahead
        if not low < radius < high:
            radius = math.sqrt(low * high) if low > 0 else high / 8  # choice: of the search
        if radius < 1e-12:  # choice: a smaller ball helps nobody
            return 0.0
    return low


def _decide(held: Enclosure, attempt: _Attempt, centre: Tensor, verdict: Verdict) -> Certificate:
    Y, Z1, metric = attempt.Y, attempt.Z1, attempt.metric
    failed = f"no ball: kappa reaches 1 at a radius below 1e-12 although |J(c)|_P is {Z1:.4f}"
    radius = attempt.reach * 0.985  # choice: estimates are a little low
    for _ in range(_PROOFS if radius > 0 else 0):
        found = curvature(attempt.shape, Z1, radius, first=attempt.first)
        room = down(down(1 - found.kappa) * found.radius)
        if found.kappa < 1 and room >= Y:
            break
        failed = (
            f"Y <= (1 - kappa) r fails: Y = {Y:.3e}, kappa = {found.kappa:.4f} at r = {found.radius:.3e}; refine the "
            "state in float64"
        )
        over = (found.kappa - Z1) / (1 - Z1)
        if over < 1:  # the residual is what is too large
            radius /= 2
        else:
            # choice: a little more than in proportion, of which kappa - Z1 takes off at least as much.
            radius *= 0.998 / over if math.isfinite(over) else 0.5
    else:
        return _unknown(held, centre, failed, metric, Y, Z1)
    near = _near(attempt, found)
    error = up(Y / down(1 - near.kappa))
    names = {f"{i} {node.name}": s for i, (node, s) in enumerate(zip(attempt.shape.nodes, found.shares, strict=True))}
    return Certificate(
        verdict=verdict,
        reason="",
        setting="fast" if attempt.first is None else "sharp",
        centre=centre,
        metric=metric,
        residual=Y,
        centre_rate=Z1,
        tau=None if attempt.first is None else attempt.first.tau,
        radius=found.radius,
        rate=found.kappa,
        error_bound=error,
        error_rate=near.kappa,
        near_radius=near.radius,
        shares=names,
        decisions=None,
        graph=held.graph,
    )


def _near(attempt: _Attempt, found: Curvature) -> Curvature:
    """A much smaller ball that the residual still allows: it gives the error bound and the rate in the long run."""
    radius = 2 * attempt.Y / (1 - attempt.Z1)
    if not 0 < radius < found.radius:
        return found
    small = curvature(replace(attempt.shape, links=None), attempt.Z1, radius)
    return small if small.kappa < 1 and down(down(1 - small.kappa) * radius) >= attempt.Y else found


def _unknown(
    held: Enclosure,
    centre: Tensor,
    reason: str,
    metric: Metric | None = None,
    Y: float = math.inf,
    Z1: float = math.inf,
) -> Certificate:
    return Certificate(
        verdict=Verdict.UNKNOWN,
        reason=reason,
        setting=None,
        centre=centre,
        metric=metric,
        residual=Y,
        centre_rate=Z1,
        tau=None,
        radius=0.0,
        rate=math.inf,
        error_bound=math.inf,
        error_rate=math.inf,
        near_radius=0.0,
        shares={},
        decisions=None,
        graph=held.graph,
    )
