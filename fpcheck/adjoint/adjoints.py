"""How a gradient gets through a fixed point: adjoints as objects.

`Implicit` differentiates the equation itself, in every order. The others differentiate some loop steps instead:
`OneStep`, `Phantom` and `TruncatedWindow` from the fixed point on, which costs less and has a bias (Theorems G4, G5,
G8); `Unrolled` from the start on, which costs the memory of all steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from fpcheck.adjoint.implicit import Plan, call, forward_mode, implicit, mapped, primals, settled
from fpcheck.adjoint.linear import GMRES, AbstractLinearSolver
from fpcheck.adjoint.step import Step, weights_once
from fpcheck.errors import GradientNotAvailableError
from fpcheck.solve.base import AbstractSolver, is_count, is_number, require
from fpcheck.solve.solvers import Picard

__all__ = ["AbstractAdjoint", "Implicit", "OneStep", "Phantom", "TruncatedWindow", "Unrolled", "damped_steps"]


Attached = tuple[Tensor, Plan]
"""States with their derivatives, and what the solves left."""


class AbstractAdjoint(ABC):
    """A way to differentiate a fixed point. Frozen dataclasses: their fields are their options."""

    @abstractmethod
    def attach(self, step: Step, solver: AbstractSolver, z0: Tensor, tensors: tuple[Tensor, ...]) -> Attached:
        """Solve, and give the result its derivatives.

        Args:
            step: The map.
            solver: Finds the fixed point.
            z0: Start states.
            tensors: What the map depends on beside the state.
        """


@final
@dataclass(frozen=True)
class Implicit(AbstractAdjoint):
    """Through the equation z = F(z): exact at a fixed point, in every order, in forward and reverse mode.

    Memory does not grow with the number of loop steps.

    Args:
        linear: Solver of the adjoint equation ``(I - J^T) u = g``.
        zero_failed: A sample whose forward or adjoint solve failed gets gradient 0. With False (the default) asking for
            its gradient raises.

    Source: Theorem G1.
    """

    linear: AbstractLinearSolver = field(default_factory=GMRES)
    zero_failed: bool = False

    def __post_init__(self) -> None:
        require(isinstance(self.linear, AbstractLinearSolver), self, "linear", "a linear solver such as GMRES()")

    def attach(self, step: Step, solver: AbstractSolver, z0: Tensor, tensors: tuple[Tensor, ...]) -> Attached:
        """See `AbstractAdjoint`."""
        plan = Plan(step, solver, self.linear, self.zero_failed)
        return implicit(plan, z0, tensors), plan


@dataclass(frozen=True)
class _Steps(AbstractAdjoint):
    """Adjoints that differentiate loop steps made from the fixed point on.

    First derivatives only: a second one would be that of the steps, not of the fixed point, and is refused.
    """

    zero_failed: bool = field(default=False, kw_only=True)

    def _count(self) -> int:
        return 1

    def _size(self) -> float:
        return 1.0

    def attach(self, step: Step, solver: AbstractSolver, z0: Tensor, tensors: tuple[Tensor, ...]) -> Attached:
        """See `AbstractAdjoint`."""
        plan = Plan(step, solver, None, self.zero_failed)
        star, fine, _ = settled(plan, z0, tensors)
        z, known = plan.usable(star, fine, tensors)
        s = self._size()
        with weights_once():
            advance = step.on(tuple(known))
            for _ in range(0 if plan.hopeless else self._count()):
                image = advance(z)
                z = image if s == 1.0 else z + s * (image - z)
        # The value stays the one that passed the solver's test; the derivative is that of the steps.
        value: Tensor = call(_Guard, plan, False, star, z, fine, *tensors)
        return value, plan


@final
@dataclass(frozen=True)
class OneStep(_Steps):
    """The derivative of one loop step at the fixed point (Theorem G5): no solve, biased."""


@final
@dataclass(frozen=True)
class Phantom(_Steps):
    """The derivative of k damped loop steps at the fixed point.

    Args:
        k: Steps.
        s: Damping step, in (0, 1].

    Source: Geng et al. (2021), On training implicit models; Theorem G4.
    """

    k: int = 5  # choice: as many as published recipes take
    s: float = 1.0

    def __post_init__(self) -> None:
        require(is_count(self.k), self, "k", "an integer >= 1")
        require(is_number(self.s) and 0 < self.s <= 1, self, "s", "a number in (0, 1]")

    def _count(self) -> int:
        return self.k

    def _size(self) -> float:
        return self.s


@final
@dataclass(frozen=True)
class TruncatedWindow(_Steps):
    """The derivative of the last k loop steps: FPRM's own training window (arXiv 2606.18206; Theorem G8).

    Args:
        k: Steps.
    """

    k: int = 6  # choice: FPRM's own window

    def __post_init__(self) -> None:
        require(is_count(self.k), self, "k", "an integer >= 1")

    def _count(self) -> int:
        return self.k


@final
@dataclass(frozen=True)
class Unrolled(AbstractAdjoint):
    """Backpropagation through every loop step from the start: right in every order, with the memory of all steps.

    The steps are those of plain iteration, for each sample as many as it needed; so the solver has to be `Picard`.

    Args:
        zero_failed: See `Implicit`.
    """

    zero_failed: bool = False

    def attach(self, step: Step, solver: AbstractSolver, z0: Tensor, tensors: tuple[Tensor, ...]) -> Attached:
        """See `AbstractAdjoint`."""
        if not isinstance(solver, Picard):
            raise GradientNotAvailableError(
                f"solver={type(solver).__name__}() with adjoint=Unrolled(); the loop is unrolled by plain iteration; "
                "expected solver=Picard(); or use adjoint=Implicit()"
            )
        plan = Plan(step, solver, None, self.zero_failed)
        star, fine, steps = settled(plan, z0, tensors)
        z, known = plan.usable(z0, fine, tensors)
        counts = [int(count) for solution in plan.solutions for count in solution.steps]
        column = steps.view(-1, *[1] * (z.ndim - 1))
        with weights_once():
            advance = step.on(tuple(known))
            for k in range(1, 1 if plan.hopeless else max(counts)):
                image = advance(z)
                z = image if k < min(counts) else torch.where(k < column, image, z)
        value: Tensor = call(_Guard, plan, True, star, z, fine, *tensors)
        return value, plan


def damped_steps(adjoint: AbstractAdjoint) -> tuple[int, float] | None:
    """Number and size of the loop steps that an adjoint differentiates from the fixed point on; None: it solves."""
    return (adjoint._count(), adjoint._size()) if isinstance(adjoint, _Steps) else None


class _Guard(torch.autograd.Function):
    """The state ``star`` with the derivative of ``z``, for the samples that converged; ``further``: in all orders."""

    @staticmethod
    def forward(plan: Plan, further: bool, star: Tensor, z: Tensor, fine: Tensor, *tensors: Tensor) -> Tensor:
        return star.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.plan, ctx.further, _, _, *saved = inputs
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        fine, *tensors = ctx.saved_tensors
        return None, None, None, call(_Kept, ctx.plan, ctx.further, g, fine, *tensors), None, *(None for _ in tensors)

    @staticmethod
    @forward_mode
    def jvp(ctx: Any, _p: Any, _f: Any, _s: Any, tangent: Tensor | None, *_: Any) -> Any:
        return None if tangent is None else call(_Kept, ctx.plan, ctx.further, tangent, *primals(ctx))

    @staticmethod
    def vmap(info: Any, in_dims: Any, plan: Plan, further: bool, *tensors: Tensor) -> Any:
        rows = 3 + plan.step.samples  # choice: tensors before the injection, a count
        return mapped(lambda *t: call(_Guard, plan, further, *t), info.batch_size, in_dims[2:], tensors, rows)


class _Kept(torch.autograd.Function):
    """A first derivative, of the samples that converged; unless ``further``, it has no derivative itself."""

    @staticmethod
    def forward(plan: Plan, further: bool, g: Tensor, fine: Tensor, *tensors: Tensor) -> Tensor:
        plan.require(fine)
        return torch.where(fine.view(-1, *[1] * (g.ndim - 1)), g, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.plan, ctx.further, _, fine, *tensors = inputs
        ctx.count = len(tensors)
        ctx.save_for_backward(fine)
        ctx.save_for_forward(fine)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        if not ctx.further:
            raise GradientNotAvailableError(_SECOND)
        return None, None, call(_Kept, ctx.plan, True, g, *ctx.saved_tensors), None, *(None,) * ctx.count

    @staticmethod
    @forward_mode
    def jvp(ctx: Any, _p: Any, _f: Any, tangent: Tensor | None, *_: Any) -> Any:
        if not ctx.further:
            raise GradientNotAvailableError(_SECOND)
        return None if tangent is None else call(_Kept, ctx.plan, True, tangent, *primals(ctx))

    @staticmethod
    def vmap(info: Any, in_dims: Any, plan: Plan, further: bool, *tensors: Tensor) -> Any:
        rows = 2 + plan.step.samples
        return mapped(lambda *t: call(_Kept, plan, further, *t), info.batch_size, in_dims[2:], tensors, rows)


_SECOND = (
    "a second derivative through OneStep, Phantom or TruncatedWindow was asked for; it would be that of a few loop "
    "steps, not of the fixed point. Use adjoint=Implicit(), which is right in every order"
)
