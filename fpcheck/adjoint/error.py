r"""How far a computed gradient is from that of the exact fixed point.

Two questions, two types. `GradientErrorEstimate` needs nothing but the solution: it takes Newton steps on the fixed-
point equation and on the adjoint equation, in float64, and says how far the gradient moved. `GradientErrorBound` holds
by Theorems G7 and G8, for constants of the loop that somebody proved; with constants that were merely measured the same
formula gives an estimate.

Shapes: states ``(B, *state)``; figures per sample ``(B,)`` float64; figures of what all samples share are floats.
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final, overload

import torch
from torch import Tensor

from fpcheck.adjoint.adjoints import AbstractAdjoint, Implicit, OneStep, Unrolled, damped_steps
from fpcheck.adjoint.implicit import Plan, product, pulled
from fpcheck.adjoint.linear import GMRES
from fpcheck.adjoint.step import Step
from fpcheck.errors import GradientNotAvailableError, InputError
from fpcheck.solve.base import is_number, require
from fpcheck.solve.solution import Solution
from fpcheck.status import Status

__all__ = [
    "AbstractConstants",
    "AbstractGradientAccuracy",
    "EstimatedConstants",
    "GradientErrorBound",
    "GradientErrorEstimate",
    "ProvedConstants",
    "Route",
    "Sensitivity",
    "gradient_error",
]

Loss = Tensor | Callable[[Tensor], Tensor]

# choice: Newton steps are taken until the residual has fallen to this share, so that the refined gradient's own error
# is a small part of what is reported; and no more than this many.
_SHARE, _NEWTON = 0.1, 4
# choice: relative accuracy of the corrections. At 1e-3 biased gradients of slow loops came out up to 0.1 % too small.
_LINEAR = GMRES(rtol=1e-6, max_steps=2000, restart=64)
# choice: what is reported is this much more than what was seen, since the second Newton step is not seen in full.
_MARGIN = 1.5
# choice: a residual of this many float64 rounding units of the image is noise. As in the loop's own checks.
_ROUNDINGS = 1e3
# Of the recorded adjoints, the one of this loss leaves less than this share of the loss's slope unexplained.
_SAME = 0.5


@final
@dataclass(frozen=True, eq=False)
class Route:
    """How a solution got its derivatives; kept as ``solution.route``.

    Attributes:
        adjoint: The adjoint.
        plan: The map, and what the solves left.
        tensors: What the map depends on beside the state, without history.
        wanted: Which of them require a gradient.
        versions: How often each had been written to.
    """

    adjoint: AbstractAdjoint
    plan: Plan
    tensors: tuple[Tensor, ...]
    wanted: tuple[bool, ...]
    versions: tuple[int, ...]

    @staticmethod
    def of(adjoint: AbstractAdjoint, plan: Plan, tensors: tuple[Tensor, ...]) -> Route:
        """The route of a solve with these tensors."""
        versions = tuple(t._version for t in tensors)
        return Route(
            adjoint, plan, tuple(t.detach() for t in tensors), tuple(t.requires_grad for t in tensors), versions
        )

    def require_unchanged(self) -> None:
        """Refuse tensors that were written to since the solve: the gradient belonged to other values."""
        changed = sum(t._version != v for t, v in zip(self.tensors, self.versions, strict=True))
        if changed:
            raise InputError(
                f"{changed} of the tensors that the block depends on were changed in place since the solve (an "
                "optimiser step?); ask for the gradient's error before"
            )


@final
@dataclass(frozen=True)
class Sensitivity:
    r"""What is known about :math:`B = \partial F / \partial\theta` for one kind of argument.

    Args:
        norm: ``|B|_2`` at the computed state.
        lipschitz: Lipschitz constant of B in the state; 0 for an additive injection.
        condition: Condition number of ``B B^T``, for `one_step_descends`; inf where unknown.
    """

    norm: float
    lipschitz: float
    condition: float = math.inf

    def __post_init__(self) -> None:
        for name in ("norm", "lipschitz"):
            require(_size(getattr(self, name)), self, name, "a number >= 0")
        ok = self.condition == math.inf or (is_number(self.condition) and self.condition >= 1)
        require(ok, self, "condition", "a number >= 1, or inf")


@dataclass(frozen=True, kw_only=True)
class AbstractConstants(ABC):
    """Constants of a loop, one sample's or the largest of a batch, as in Theorem G7.

    They have to hold on a convex set around the computed state and the fixed point, such as a certificate's ball.

    Args:
        rate: Bound on ``|J|`` in a metric ``|v|_P = |L v|_2``; below 1.
        stretch: ``|L|_2 |L^-1|_2`` of the metric; 1 for the Euclidean norm.
        jacobian: Lipschitz constant of J, Euclidean norm.
        injection: About the derivative in the injection; None: not reported.
        weights: About the derivative in weights and shared tensors; None: not reported.
        slope: Lipschitz constant of the loss's derivative in the state; 0 for a linear loss.
        distance: Bound on the Euclidean distance from the computed state to the fixed point; None: from the residual.
    """

    rate: float
    jacobian: float
    injection: Sensitivity | None = None
    weights: Sensitivity | None = None
    slope: float = 0.0
    stretch: float = 1.0
    distance: float | None = None

    def __post_init__(self) -> None:
        require(_size(self.rate) and self.rate < 1, self, "rate", "a number in [0, 1)")
        for name in ("jacobian", "slope"):
            require(_size(getattr(self, name)), self, name, "a number >= 0")
        require(is_number(self.stretch) and self.stretch >= 1, self, "stretch", "a number >= 1")
        require(self.distance is None or _size(self.distance), self, "distance", "None or a number >= 0")
        ok = self.injection is not None or self.weights is not None
        require(ok, self, "weights", "a Sensitivity, for the injection or for the weights")

    @property
    def condition(self) -> float:
        """Bound on ``|(I - J)^-1|_2``: the factor from residuals to errors."""
        return self.stretch / (1 - self.rate)

    def one_step_descends(self, of: Sensitivity) -> bool:
        r"""Whether minus the one-step gradient is sure to be a descent direction at the exact fixed point.

        False says nothing: the condition is sufficient. It needs the rate in the Euclidean norm.

        Source: Theorem G5, :math:`\kappa(B B^T) < ((1 + \sqrt{1 - L^2}) / L)^2`.
        """
        if self.stretch != 1.0:
            return False
        L = self.rate
        return of.condition < math.inf and (L == 0 or of.condition < ((1 + math.sqrt(1 - L * L)) / L) ** 2)


@final
@dataclass(frozen=True, kw_only=True)
class ProvedConstants(AbstractConstants):
    """Constants that were proved: from a certificate, or with pen and paper."""


@final
@dataclass(frozen=True, kw_only=True)
class EstimatedConstants(AbstractConstants):
    """Constants of which at least one was only measured."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AbstractGradientAccuracy(ABC):
    """Euclidean distance of the computed gradient from that of the exact fixed point.

    Attributes:
        injection: By sample, of the derivative in the injection, ``(B,)``. Inf where nothing can be said: a sample
            that failed, or too far from the fixed point. None if it requires no gradient.
        injection_size: Length of that derivative, ``(B,)``.
        weights: Of the derivative in weights and shared tensors, which is a sum over the samples that did not fail.
            None if none requires a gradient.
        weights_size: Length of that derivative.
        condition: By sample, the factor from residuals to errors, ``(B,)``; see the two kinds.
        forward_residual: By sample ``|F(z) - z|``, ``(B,)``.
        adjoint_residual: By sample ``|v - (I - J^T) w|``, with the loss's slope v and the adjoint w that the gradient
            was made of, ``(B,)``. For one-step, phantom and window gradients it is what the series leaves out.
    """

    injection: Tensor | None
    injection_size: Tensor | None
    weights: float | None
    weights_size: float | None
    condition: Tensor
    forward_residual: Tensor
    adjoint_residual: Tensor


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class GradientErrorBound(AbstractGradientAccuracy):
    """The error is at most this, by Theorem G7 (G8 for several steps), if the constants hold.

    ``condition`` bounds ``|(I - J)^-1|``. The two residuals are computed in float64; the rounding of that, and of the
    gradient in the state's dtype, is not part of the theorem and not included.
    """

    @property
    def injection_descends(self) -> Tensor | None:
        """By sample: whether minus the gradient is sure to go downhill (G7); False says nothing."""
        return None if self.injection is None or self.injection_size is None else self.injection < self.injection_size

    @property
    def weights_descend(self) -> bool | None:
        """The same for the weights."""
        return None if self.weights is None or self.weights_size is None else self.weights < self.weights_size


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class GradientErrorEstimate(AbstractGradientAccuracy):
    """The error is about this. ``condition`` is what the corrections met: |(I - J)^-1| is at least that."""


@overload
def gradient_error(solution: Solution, loss: Loss) -> GradientErrorEstimate: ...
@overload
def gradient_error(solution: Solution, loss: Loss, *, constants: ProvedConstants) -> GradientErrorBound: ...
@overload
def gradient_error(solution: Solution, loss: Loss, *, constants: EstimatedConstants) -> GradientErrorEstimate: ...
def gradient_error(
    solution: Solution, loss: Loss, *, constants: AbstractConstants | None = None
) -> AbstractGradientAccuracy:
    """How far the gradient that ``backward`` computed is from that of the exact fixed point.

    Args:
        solution: From ``fixed_point``, outside `torch.func`; with ``Implicit`` after ``backward``.
        loss: From states to the number that ``backward`` was called on. Or its derivative at ``solution.value``,
            ``(B, *state)``; then the loss is taken to be linear.
        constants: None: an estimate by Newton steps. Proved: a bound. Estimated: the bound's formula, an estimate.

    Returns:
        A `GradientErrorBound` for proved constants, else a `GradientErrorEstimate`.

    Raises:
        GradientNotAvailableError: No gradient was computed, or by ``Unrolled``, whose error is no matter of residuals.
        InputError: The loss is another one, the weights were changed since, or the block does not run in float64.

    Cost: without constants, one adjoint solve and a few with J, in float64; with constants, two products.
    Source: Theorems G2, G3, G4, G5, G7 and G8.

    Example:
        >>> import torch
        >>> from fpcheck.adjoint import fixed_point
        >>> x = torch.ones(1, 1, requires_grad=True)
        >>> sol = fixed_point(lambda z, x: 0.5 * z.cos() + x, torch.zeros(1, 1), x)
        >>> sol.value.sum().backward()
        >>> bool(gradient_error(sol, torch.sum).injection < 1e-5)
        True
    """
    route = solution.route
    if not isinstance(route, Route):
        raise GradientNotAvailableError(
            "solution.route=None; the solution came without derivatives, or under torch.func. Call fixed_point with "
            "something that requires a gradient"
        )
    if isinstance(route.adjoint, Unrolled):
        raise GradientNotAvailableError(
            "adjoint=Unrolled(); its gradient is that of a finite number of steps, exact as such; use Implicit()"
        )
    route.require_unchanged()
    found = _Computed.of(solution, route, loss)
    if constants is None:
        return _estimate(found)
    return _by_theorem(found, constants)


@final
@dataclass(frozen=True, eq=False)
class _Computed:
    """The computed gradient, and what it was computed from; float64 but for ``z``.

    Attributes:
        route: See `Route`.
        loss: See `gradient_error`.
        step: The map, without autocast.
        tensors: Its arguments.
        z: The state, in its dtype.
        fine: Samples whose gradient exists ``(B,)``.
        slope: The loss's derivative v there; 0 for the others.
        w: The adjoint ``(B, n)``.
        gradient: One per argument; None where not wanted.
        residual: F(z) - z, ``(B, n)``.
        rho: v - (I - J^T) w, ``(B, n)``.
    """

    route: Route
    loss: Loss
    step: Step
    tensors: list[Tensor]
    z: Tensor
    fine: Tensor
    slope: Tensor
    w: Tensor
    gradient: list[Tensor | None]
    residual: Tensor
    rho: Tensor

    @staticmethod
    def of(solution: Solution, route: Route, loss: Loss) -> _Computed:
        z, plan = solution.value.detach(), route.plan
        # The exact map: no autocast, every argument in float64.
        step = replace(plan.step, autocast=None)
        tensors = [t.double() if t.is_floating_point() else t for t in route.tensors]
        state = z.double()
        image = _image(step, state, tensors)
        fine = torch.tensor([s is Status.CONVERGED for s in solution.status], device=z.device)
        transpose = product(step, state, tensors, True)
        slope = _slope(loss, z)
        steps = damped_steps(route.adjoint)
        if steps is None:
            w, kept = _recorded(plan, transpose, slope, fine)
            fine = fine & kept
        v = torch.where(fine[:, None], slope.flatten(1).double(), 0.0)
        if steps is None:
            w = torch.where(fine[:, None], w, 0.0)
            cast = w.to(z.dtype).view_as(z)
            gradient = pulled(lambda *t: plan.step(z, *t), route.tensors, route.wanted, cast)
        else:
            # Theorem G4 (b): the derivative of k damped steps is this sum, up to the distance of their states.
            count, s = steps
            w, term = torch.zeros_like(v), s * v
            for _ in range(count):
                w, term = w + term, (1 - s) * term + s * transpose(term)

            def several(*t: Tensor) -> Tensor:
                y = z
                for _ in range(count):
                    y = y + s * (plan.step(y, *t) - y) if s != 1.0 else plan.step(y, *t)
                return y

            gradient = pulled(several, route.tensors, route.wanted, v.to(z.dtype).view_as(z))
        gradient = [None if g is None else g.double() for g in gradient]
        residual = (image - state).flatten(1)
        return _Computed(
            route, loss, step, tensors, z, fine, v, w, gradient, residual, v - w + transpose(w)
        )  # fmt: skip

    def lengths(self, gradient: Sequence[Tensor | None]) -> tuple[Tensor | None, float | None]:
        """Of the injection's part by sample, and of the rest."""
        samples = self.step.samples
        rows = [g.flatten(1) for g in gradient[:samples] if g is not None]
        rest = [g.flatten() for g in gradient[samples:] if g is not None]
        return (
            torch.linalg.vector_norm(torch.cat(rows, 1), dim=1) if rows else None,
            float(torch.linalg.vector_norm(torch.cat(rest))) if rest else None,
        )

    def away(self, other: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The gradient minus another."""
        return _minus(self.gradient, other)


def _estimate(found: _Computed) -> GradientErrorEstimate:
    """By Newton steps on both equations: the change of the gradient, and what the steps left to do."""
    step, tensors, start = found.step, found.tensors, found.z.double()
    shape = start.shape
    state, r = start, found.residual
    first = size = torch.linalg.vector_norm(r, dim=1)
    for _ in range(_NEWTON):
        noise = _ROUNDINGS * torch.finfo(torch.float64).eps * torch.linalg.vector_norm(state.flatten(1), dim=1)
        open_ = found.fine & (size > noise) & (size > _SHARE * first)
        if not bool(open_.any()):
            break
        solved = _LINEAR.solve(product(step, state, tensors, False), torch.where(open_[:, None], r, 0.0))
        moved = state + solved.value.view(shape)
        image = (step(moved, *tensors) - moved).flatten(1).detach()
        after = torch.linalg.vector_norm(image, dim=1)
        better = open_ & (after < size)
        if not bool(better.any()):
            break
        state = torch.where(better.view(-1, *[1] * (state.ndim - 1)), moved, state)
        r, size = torch.where(better[:, None], image, r), torch.where(better, after, size)
    left = torch.where(size <= noise, 0.0, size / torch.where(first > 0, first, 1.0))

    # The adjoint equation at the refined state, as a correction to w.
    transpose = product(step, state, tensors, True)
    v = torch.where(found.fine[:, None], _slope(found.loss, state.to(found.z.dtype)).flatten(1).double(), 0.0)
    solved = _LINEAR.solve(transpose, v - found.w + transpose(found.w))
    w = found.w + solved.value

    def pull(adjoint: Tensor) -> list[Tensor | None]:
        return pulled(lambda *t: step(state, *t), tensors, found.route.wanted, adjoint.view(shape))

    same, refined = pull(found.w), pull(w)
    # Two parts, lest they cancel by chance: what moving the state changes, and what solving for w changes.
    moves, solves = found.lengths(found.away(same)), found.lengths(_minus(same, refined))
    sizes = found.lengths(found.gradient)
    # What is left of the error after the steps, as a share of it; unknown beyond a half.
    open_share = torch.maximum(left, solved.residual)
    factor = torch.where(open_share <= 0.5, _MARGIN * (1 + open_share) / (1 - open_share), math.inf)
    # choice: the slope is evaluated, and the gradient summed, in the state's dtype: a few of its rounding units.
    noise_unit = 4 * torch.finfo(found.z.dtype).eps
    injection = weights = None
    if moves[0] is not None and solves[0] is not None and sizes[0] is not None:
        injection = torch.where(found.fine, factor * (moves[0] + solves[0]) + noise_unit * sizes[0], math.inf)
    if moves[1] is not None and solves[1] is not None and sizes[1] is not None:
        worst = float(factor[found.fine].max()) if bool(found.fine.any()) else 1.0
        weights = worst * (moves[1] + solves[1]) + noise_unit * sizes[1]
    distance = torch.linalg.vector_norm((state - start).flatten(1), dim=1)
    condition = torch.maximum(_ratio(distance, first), _ratio(*(torch.linalg.vector_norm(t, dim=1) for t in (w, v))))
    return GradientErrorEstimate(
        injection=injection,
        injection_size=sizes[0],
        weights=weights,
        weights_size=sizes[1],
        condition=condition,
        forward_residual=first,
        adjoint_residual=torch.linalg.vector_norm(found.rho, dim=1),
    )


def _by_theorem(found: _Computed, constants: AbstractConstants) -> AbstractGradientAccuracy:
    """Theorem G7, and G8 (c) for several steps."""
    residual, rho, w, v = (
        torch.linalg.vector_norm(t, dim=1) for t in (found.residual, found.rho, found.w, found.slope)
    )
    S, c = constants.condition, constants
    distance = torch.full_like(residual, c.distance) if c.distance is not None else S * residual
    steps = damped_steps(found.route.adjoint)
    one = isinstance(found.route.adjoint, Implicit | OneStep) or steps == (1, 1.0)
    if not one and c.stretch != 1.0:
        raise InputError(
            f"stretch={c.stretch} with adjoint={found.route.adjoint}; the error of several steps is bounded in the "
            "Euclidean norm only: expected stretch=1"
        )

    def total(of: Sensitivity | None, size: object) -> Tensor | None:
        if of is None or size is None:
            return None
        beta, b = of.norm, of.lipschitz
        reach = beta + b * distance  # |B| at the fixed point
        if one or steps is None:
            found_ = b * distance * w + reach * S * (rho + (c.slope + c.jacobian * w) * distance)
        else:
            k, s = steps
            sigma = 1 - s + s * c.rate
            whole = reach * S
            drift = k * s * sigma ** (k - 1) * (b + c.jacobian * whole) * distance
            found_ = (sigma**k * whole + drift) * v + whole * c.slope * distance
        return torch.where(found.fine, found_, math.inf)

    sizes = found.lengths(found.gradient)
    weights = total(c.weights, sizes[1])
    kind = GradientErrorBound if isinstance(constants, ProvedConstants) else GradientErrorEstimate
    return kind(
        injection=total(c.injection, sizes[0]),
        injection_size=sizes[0],
        weights=None if weights is None else float(weights[found.fine].sum()),
        weights_size=sizes[1],
        condition=torch.full_like(residual, S),
        forward_residual=residual,
        adjoint_residual=rho,
    )


def _recorded(plan: Plan, transpose: Callable[[Tensor], Tensor], slope: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
    """The adjoint that backward found for this loss, and which samples it was found for."""
    v = torch.where(fine[:, None], slope.flatten(1).double(), 0.0)
    best: tuple[float, Tensor, Tensor] | None = None
    for solved in plan.adjoints:
        w = solved.value.detach().double()
        if w.shape != v.shape:
            continue
        kept = solved.converged
        rest = torch.where(kept[:, None], v - w + transpose(w), 0.0)
        miss = float(torch.linalg.vector_norm(rest))
        if best is None or miss < best[0]:
            best = miss, w, kept
    if best is None:
        raise GradientNotAvailableError("no adjoint was solved; call backward before asking for the gradient's error")
    size = float(torch.linalg.vector_norm(v))
    if not best[0] <= _SAME * size:
        raise InputError(
            f"loss: the adjoint that backward solved leaves {best[0]:.1e} of this loss's slope {size:.1e} unexplained; "
            "expected the loss that backward was called on, or its derivative at solution.value"
        )
    return best[1], best[2]


def _slope(loss: Loss, z: Tensor) -> Tensor:
    """The loss's derivative at a state."""
    if isinstance(loss, Tensor):
        if loss.shape != z.shape:
            raise InputError(f"loss.shape={tuple(loss.shape)}; expected a derivative of shape {tuple(z.shape)}")
        return loss.detach()
    with torch.enable_grad():
        y = z.detach().clone().requires_grad_()
        value = loss(y)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise InputError("loss(z) is no differentiable number; expected the scalar that backward was called on")
        return torch.autograd.grad(value, y)[0]


def _image(step: Step, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    try:
        with torch.no_grad():
            image = step(z, *tensors)
    except RuntimeError as error:
        raise InputError(
            f"the block does not run in float64: {str(error).splitlines()[0]}. The gradient's error is measured in a "
            "wider dtype: pass every tensor as an argument, parameter or buffer"
        ) from error
    if image.dtype != torch.float64:
        raise InputError(f"the block returns {image.dtype} for float64 states; expected float64: let it cast nothing")
    return image


def _minus(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if a is None or b is None else a - b for a, b in zip(left, right, strict=True)]


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)


def _size(value: object) -> bool:
    return is_number(value) and float(value) >= 0  # type: ignore[arg-type]  # a number by the first test
