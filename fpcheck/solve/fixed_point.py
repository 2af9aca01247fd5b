"""The front door: solve z = F(z; x) and say, sample by sample, how it went."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fpcheck.errors import ConvergenceError, GradientNotAvailableError, InputError
from fpcheck.loop import Block, Injection, Loop
from fpcheck.solve.base import AbstractSolver
from fpcheck.solve.solution import Solution
from fpcheck.solve.solvers import Anderson

__all__ = ["fixed_point"]


def fixed_point(
    block: Block | Loop,
    z0: Tensor,
    x: Injection = None,
    *,
    solver: AbstractSolver | None = None,
    throw: bool = True,
) -> Solution:
    """Find the states that one more loop step leaves where they are.

    Args:
        block: ``block(z, x) -> z'`` as for :class:`Loop`, or a ready :class:`Loop` (then leave out ``x``).
        z0: Start states ``(B, *state)``.
        x: Injection, leading dimension ``B``.
        solver: ``Picard()``, ``Damped()``, ``Anderson()``...; default ``Anderson()``.
        throw: Raise unless every sample converged. With False, look at ``solution.status``.

    Returns:
        The solution; its residuals are those of the returned states. It is computed without gradients.

    Raises:
        ConvergenceError: A sample did not converge and ``throw`` is True; ``error.solution`` holds everything.
        InputError, BlockError: The call itself is wrong.
        GradientNotAvailableError: A gradient is asked of ``solution.value``: when backward runs through it, or at
            once in forward mode, where asking is passing dual numbers.

    Example:
        >>> import torch
        >>> sol = fixed_point(lambda z, x: 0.5 * z + x, torch.zeros(1, 1), torch.ones(1, 1))
        >>> float(sol.value)
        2.0
    """
    solver = Anderson() if solver is None else solver
    if not isinstance(solver, AbstractSolver):
        hint = "fp.Anderson(), fp.Damped() or fp.Picard()"
        raise InputError(f"solver={solver!r} is a {type(solver).__name__}; expected a solver object such as {hint}")
    if isinstance(block, Loop):
        if x is not None:
            raise InputError("x was given beside a Loop, which already holds its injection; leave x out")
        loop = block
    else:
        loop = Loop(block, x, z0=z0)
    solution = solver.solve(loop, z0)
    if throw and not solution.converged:
        raise ConvergenceError("not every sample converged.\n" + solution.explain(), solution)
    if forward_ad.unpack_dual(solution.value).tangent is not None:
        raise GradientNotAvailableError(_NO_GRADIENT)
    sources = _requiring_grad(loop, z0, solution.value) if torch.is_grad_enabled() else []
    if sources:
        guarded: Tensor = _NoGradient.apply(solution.value, *sources)  # type: ignore[no-untyped-call]  # torch's own
        solution = replace(solution, value=guarded)
    return solution


_NO_GRADIENT = (
    "a gradient through fixed_point(...) was asked for, but this version solves without gradients. Unroll the loop "
    "yourself (z = solution.value.detach(), then z = loop(z) a few times), or wrap the call in torch.no_grad() if "
    "no gradient is wanted"
)


def _requiring_grad(loop: Loop, z0: Tensor, value: Tensor) -> list[Tensor]:
    leaves = [z0, *loop.leaves()]
    if isinstance(loop.block, nn.Module):
        leaves += list(loop.block.parameters())
    sources = [leaf for leaf in leaves if leaf.requires_grad]
    if not sources and not isinstance(loop.block, nn.Module):
        # A function may hold parameters that only a call shows.
        image = loop(value)
        sources = [image] if image.requires_grad else []
    return sources


class _NoGradient(torch.autograd.Function):
    """Identity whose gradient is refused by name, so that none is lost in silence."""

    @staticmethod
    def forward(value: Tensor, *sources: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Any:
        raise GradientNotAvailableError(_NO_GRADIENT)
