r"""Derivatives of a fixed point through its equation, of every order.

At :math:`z^* = F(z^*; \theta)` (Theorem G1) a cotangent g is pulled back by solving :math:`(I - J^T) u = g` and then
through one step, :math:`\bar\theta = (\partial_\theta F)^T u`; a tangent is pushed forward by
:math:`(I - J) \dot z = \partial_\theta F \, \dot\theta`. Both linear solves are functions with derivatives of their
own, which are linear solves again; so second and higher derivatives are as right as first ones.

The functions take every tensor as an argument and hold no graph, so `torch.func` may wrap them in any order.

Shapes: states ``(B, *state)``; tensors: see :class:`~fpcheck.adjoint.step.Step`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import vjp

from fpcheck.adjoint.linear import AbstractLinearSolver, LinearSolution
from fpcheck.adjoint.step import Step, transformed, weights_once
from fpcheck.errors import AdjointConvergenceError, GradientNotAvailableError
from fpcheck.solve.base import AbstractSolver, default_rtol
from fpcheck.solve.solution import Solution
from fpcheck.status import Status

__all__ = ["Plan", "call", "forward_mode", "implicit", "mapped", "primals", "product", "pulled", "settled"]


@final
@dataclass(eq=False)
class Plan:
    """What the functions below need beside tensors, and where they leave what they found.

    Attributes:
        step: The map.
        solver: Of the fixed point.
        linear: Of the adjoint equation; None where there is none.
        masked: What becomes of a failed sample's gradient: 0 if True, an error if not.
        solutions: One per solve; several under ``vmap`` over weights.
        adjoints: One per linear solve, in order.
    """

    step: Step
    solver: AbstractSolver
    linear: AbstractLinearSolver | None
    masked: bool
    solutions: list[Solution] = field(default_factory=list)
    adjoints: list[LinearSolution] = field(default_factory=list)

    def require(self, fine: Tensor) -> None:
        """Refuse the gradient of samples that are no fixed points, unless they are masked."""
        if not self.masked and not bool(fine.all()):
            raise GradientNotAvailableError(
                f"{int((~fine).sum())} of {len(fine)} samples did not converge, so their states have no gradient "
                "through the fixed point. Make them converge (solution.explain() says how), leave them out of the "
                "batch, or pass zero_failed=True to the adjoint"
            )

    @property
    def hopeless(self) -> bool:
        """Whether no sample converged at all: there is no state to put in the place of a failed one."""
        return all(s is not Status.CONVERGED for solution in self.solutions for s in solution.status)

    def usable(self, z: Tensor, fine: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """A failed sample's state and injection replaced by those of one that converged.

        Its cotangent is 0, but 0 times the derivative at a state of NaN or inf is NaN, in the weights' gradient too.
        """
        if all(solution.converged for solution in self.solutions):
            return z, list(tensors)
        rows = torch.where(fine, torch.arange(len(fine), device=z.device), fine.int().argmax())
        n = self.step.samples
        return z.index_select(0, rows), [*(t.index_select(0, rows) for t in tensors[:n]), *tensors[n:]]

    def known(self, fine: Tensor, cotangents: list[Tensor | None]) -> list[Tensor | None]:
        """Cotangents, 0 where no sample of the batch converged."""
        if all(solution.converged for solution in self.solutions):
            return cotangents
        return [None if g is None else torch.where(fine.any(), g, 0.0) for g in cotangents]

    def linear_solver(self) -> AbstractLinearSolver:
        """The linear solver; its default tolerance is that of the dtype that the step computes in."""
        assert self.linear is not None
        if self.linear.rtol is not None:
            return self.linear
        return replace(self.linear, rtol=default_rtol(self.step.dtype))


def call(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Apply one of torch's functions, which have no types."""
    return function.apply(*arguments)


def implicit(plan: Plan, z0: Tensor, tensors: tuple[Tensor, ...]) -> Tensor:
    """The fixed point, differentiable through its equation."""
    found: Tensor = call(_Implicit, plan, z0, *tensors)[0]
    return found


def settled(plan: Plan, z0: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The fixed point as a constant, through which no derivative goes, which samples converged ``(B,)``, and steps."""
    found: tuple[Tensor, Tensor, Tensor] = call(_Settled, plan, z0.detach(), *(t.detach() for t in tensors))
    return found


def _solve(plan: Plan, z0: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """States, and which of them are fixed points."""
    with torch.no_grad(), weights_once():
        solution = plan.solver.solve(plan.step.loop(z0, tensors), z0)
    # Another tensor than the one handed out: that one will know its graph, which knows the plan.
    plan.solutions.append(replace(solution, value=solution.value.detach()))
    fine = torch.tensor([s is Status.CONVERGED for s in solution.status], device=z0.device)
    return solution.value, fine


def forward_mode(jvp: Callable[..., Any]) -> Callable[..., Any]:
    """Forward mode on inside a ``jvp``: torch runs it with forward mode off, where an outer tangent is lost in silence.

    With it on, saved tensors must be read by `primals`.
    """

    @wraps(jvp)
    def wrapped(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            return jvp(ctx, *tangents)

    return wrapped


def primals(ctx: Any) -> list[Tensor]:
    """What was saved, without the tangents of the level at work; those of outer levels stay."""
    return [forward_ad.unpack_dual(t).primal for t in ctx.saved_tensors]


class _Settled(torch.autograd.Function):
    """The fixed point as a constant."""

    @staticmethod
    def forward(plan: Plan, z0: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *_solve(plan, z0, tensors), plan.solutions[-1].steps

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(*output)
        ctx.count = len(inputs)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> Any:
        return (None,) * ctx.count

    @staticmethod
    def vmap(info: Any, in_dims: Any, plan: Plan, *tensors: Tensor) -> Any:
        return mapped(lambda *t: call(_Settled, plan, *t), info.batch_size, in_dims[1:], tensors, 1 + plan.step.samples)


class _Implicit(torch.autograd.Function):
    """The fixed point, with its derivatives."""

    @staticmethod
    def forward(plan: Plan, z0: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        return _solve(plan, z0, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        plan, _, *tensors = inputs
        ctx.plan = plan
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output, *tensors)
        ctx.save_for_forward(*output, *tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Any) -> Any:
        z, fine, *tensors = ctx.saved_tensors
        plan, wanted = ctx.plan, ctx.needs_input_grad[2:]
        z, tensors = plan.usable(z, fine, tensors)
        if not (torch.is_grad_enabled() or transformed()):
            return None, None, *plan.known(fine, _first_order(plan, fine, g, z, tensors, wanted))
        u = _inverse(plan, True, fine, g, z, tensors)
        return None, None, *plan.known(fine, pulled(lambda *t: plan.step(z, *t), tensors, wanted, u))

    @staticmethod
    @forward_mode
    def jvp(ctx: Any, _plan: Any, _z0: Any, *tangents: Tensor | None) -> Any:
        z, fine, *tensors = primals(ctx)
        plan = ctx.plan
        z, tensors = plan.usable(z, fine, tensors)
        rhs = _pushed(lambda *t: plan.step(z, *t), tensors, tangents)
        return _inverse(plan, False, fine, rhs, z, tensors), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, plan: Plan, *tensors: Tensor) -> Any:
        return mapped(
            lambda *t: call(_Implicit, plan, *t), info.batch_size, in_dims[1:], tensors, 1 + plan.step.samples
        )


def _inverse(plan: Plan, turned: bool, fine: Tensor, g: Tensor, z: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    found: Tensor = call(_Inverse, plan, turned, fine, g, z, *tensors)
    return found


class _Inverse(torch.autograd.Function):
    """``(I - J)^-1 g``, or with ``turned`` ``(I - J^T)^-1 g``, J at (z; tensors), for the samples that are ``fine``."""

    @staticmethod
    def forward(plan: Plan, turned: bool, fine: Tensor, g: Tensor, z: Tensor, *tensors: Tensor) -> Tensor:
        _refuse_old_vmap(g)
        return _solved(plan, fine, g, product(plan.step, z, tensors, turned))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        plan, turned, fine, _, z, *tensors = inputs
        ctx.plan, ctx.turned = plan, turned
        ctx.save_for_backward(output, fine, z, *tensors)
        ctx.save_for_forward(output, fine, z, *tensors)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        # du = M^-1 (dg - dM u), so <g, du> = <v, dg> + <v, dJ u> with v = M^-T g; J^T in the place of J if turned.
        u, fine, z, *tensors = ctx.saved_tensors
        step = ctx.plan.step
        v = _inverse(ctx.plan, not ctx.turned, fine, g, z, tensors)
        left, right = (u, v) if ctx.turned else (v, u)

        def coupling(z: Tensor, *t: Tensor) -> Tensor:
            return (vjp(lambda y: step(y, *t), z)[1](left)[0] * right).sum()

        one = torch.ones((), dtype=u.dtype, device=u.device)
        return None, None, None, v, *pulled(coupling, [z, *tensors], ctx.needs_input_grad[4:], one)

    @staticmethod
    @forward_mode
    def jvp(ctx: Any, _p: Any, _t: Any, _f: Any, tangent: Tensor | None, *tangents: Tensor | None) -> Tensor:
        u, fine, z, *tensors = primals(ctx)
        step, turned = ctx.plan.step, ctx.turned

        def image(z: Tensor, *t: Tensor) -> Tensor:
            if not turned:
                return _pushed(lambda y: step(y, *t), [z], [u])
            found: Tensor = vjp(lambda y: step(y, *t), z)[1](u)[0]
            return found

        rhs = _pushed(image, [z, *tensors], tangents)
        return _inverse(ctx.plan, turned, fine, rhs if tangent is None else tangent + rhs, z, tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, plan: Plan, turned: bool, *tensors: Tensor) -> Any:
        # definition: fine, g and z come before the tensors
        return mapped(
            lambda *t: call(_Inverse, plan, turned, *t),
            info.batch_size,
            in_dims[2:],
            tensors,
            3 + plan.step.samples,
        )


def _refuse_old_vmap(g: Tensor) -> None:
    """Batched by a vmap that does not ask functions for their rule: values cannot be looked at."""
    if torch._C._functorch.is_legacy_batchedtensor(g):  # torch offers no public way to ask
        raise GradientNotAvailableError(
            "is_grads_batched=True or vectorize=True was asked for, whose vmap passes functions by; use "
            "torch.func.jacrev, torch.func.jacfwd or torch.func.vmap, or leave the option out"
        )


def _failed(solution: LinearSolution, failed: Tensor) -> str:
    where = failed.nonzero().flatten().tolist()
    shown = ", ".join(map(str, where[:8])) + (", ..." if len(where) > 8 else "")  # choice: samples named in a message
    worst = float(solution.residual[failed].max())
    return (
        f"the adjoint equation (I - J^T) u = g was not solved for {len(where)} of {len(failed)} samples ({shown}): "
        f"residual {worst:.1e} of |g| after {solution.steps} products, above rtol={solution.rtol:.1e}. Try GMRES with "
        "a larger restart or max_steps, DirectSolve() for small states, or a wider dtype"
    )


def _solved(plan: Plan, fine: Tensor, g: Tensor, times: Callable[[Tensor], Tensor]) -> Tensor:
    """The linear solve for the samples that are ``fine``, its outcome judged."""
    plan.require(fine)
    flat = torch.where(fine[:, None], g.reshape(len(g), -1), 0.0)
    solution = plan.linear_solver().solve(times, flat)
    plan.adjoints.append(solution)
    failed = ~solution.converged
    if bool(failed.any()) and not plan.masked:
        raise AdjointConvergenceError(_failed(solution, failed), solution)
    return torch.where((solution.converged & fine)[:, None], solution.value, 0.0).reshape(g.shape)


def _first_order(
    plan: Plan, fine: Tensor, g: Tensor, z: Tensor, tensors: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The cotangents of plain backward, which nobody differentiates again: all from one recorded step."""
    _refuse_old_vmap(g)
    with torch.enable_grad():
        y = z.detach().clone().requires_grad_()
        known = [t.detach().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True)]
        out = plan.step(y, *known)
    u = _solved(plan, fine, g, _turned(out, y))
    some = [t for t, want in zip(known, wanted, strict=True) if want]
    found = iter(torch.autograd.grad(out, some, u, allow_unused=True) if out.requires_grad and some else ())
    return [next(found, None) if want else None for want in wanted]


def product(step: Step, z: Tensor, tensors: Sequence[Tensor], turned: bool) -> Callable[[Tensor], Tensor]:
    """Products with J, or with its transpose, from one recorded step."""
    with torch.enable_grad():
        y = z.detach().clone().requires_grad_()
        out = step(y, *(t.detach() for t in tensors))
    return _turned(out, y) if turned else _straight(out, y)


def _turned(out: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Products with the transpose of the derivative of a recorded step."""

    def times(u: Tensor) -> Tensor:
        if not out.requires_grad:  # a constant map
            return torch.zeros_like(u)
        (found,) = torch.autograd.grad(out, y, u.reshape(y.shape), retain_graph=True, materialize_grads=True)
        return found.reshape(u.shape)

    return times


def _straight(out: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """Products with the derivative: the pull-back is linear, and its own pull-back is the push-forward."""
    if not out.requires_grad:  # a constant map
        return torch.zeros_like
    probe = torch.zeros_like(out, requires_grad=True)
    (back,) = torch.autograd.grad(out, y, probe, create_graph=True, materialize_grads=True)
    if not back.requires_grad:
        return torch.zeros_like
    return lambda u: torch.autograd.grad(back, probe, u.reshape(y.shape), retain_graph=True)[0].reshape(u.shape)


def pulled(
    fn: Callable[..., Tensor], primals: Sequence[Tensor], wanted: Sequence[bool], g: Tensor
) -> list[Tensor | None]:
    """Cotangents of the wanted arguments, None for the others."""
    picked = [i for i, want in enumerate(wanted) if want]

    def part(*some: Tensor) -> Tensor:
        whole = list(primals)
        for i, value in zip(picked, some, strict=True):
            whole[i] = value
        return fn(*whole)

    found: list[Tensor | None] = [None] * len(primals)
    if picked:
        for i, value in zip(picked, vjp(part, *(primals[i] for i in picked))[1](g), strict=True):
            found[i] = value
    return found


def _pushed(fn: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Tensor:
    """The tangent of the result, by two reverse passes: kernels without forward mode have those, too."""
    picked = [i for i, tangent in enumerate(tangents) if tangent is not None]

    def part(*some: Tensor) -> Tensor:
        whole = list(primals)
        for i, value in zip(picked, some, strict=True):
            whole[i] = value
        return fn(*whole)

    if not picked:
        return torch.zeros_like(fn(*primals))
    back = vjp(part, *(primals[i] for i in picked))
    found: Tensor = vjp(back[1], torch.zeros_like(back[0]))[1](tuple(tangents[i] for i in picked))[0]
    return found


def mapped(
    apply: Callable[..., Any], size: int, dims: Sequence[int | None], tensors: Sequence[Tensor], rows: int
) -> tuple[Any, Any]:
    """A call for each of ``size`` entries: as more samples if only the first ``rows`` tensors differ, else in turn."""
    if any(d is not None for d in dims[rows:]):
        entries = [
            apply(*(t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=True)))
            for i in range(size)
        ]
        if isinstance(entries[0], Tensor):
            return torch.stack(entries), 0
        return tuple(torch.stack(parts) for parts in zip(*entries, strict=True)), (0,) * len(entries[0])
    folded = []
    for t, d in zip(tensors[:rows], dims[:rows], strict=True):
        wide = t.expand(size, *t.shape) if d is None else t.movedim(d, 0)
        folded.append(wide.flatten(0, 1))
    found = apply(*folded, *tensors[rows:])
    if isinstance(found, Tensor):
        return found.unflatten(0, (size, -1)), 0
    return tuple(part.unflatten(0, (size, -1)) for part in found), (0,) * len(found)
