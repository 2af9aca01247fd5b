"""The front door: solve z = F(z; x), say sample by sample how it went, and differentiate through it."""

from __future__ import annotations

from dataclasses import replace
from typing import final

import numpy as np
import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

from fpcheck.adjoint.adjoints import AbstractAdjoint, Implicit
from fpcheck.adjoint.error import Route
from fpcheck.adjoint.step import Step, transformed, weights_once
from fpcheck.errors import ConvergenceError, InputError
from fpcheck.loop import Block, Injection, Loop
from fpcheck.solve.base import AbstractSolver
from fpcheck.solve.solution import Solution
from fpcheck.solve.solvers import Anderson

__all__ = ["FixedPoint", "fixed_point"]


def fixed_point(
    block: Block | Loop,
    z0: Tensor,
    x: Injection = None,
    *shared: Tensor,
    solver: AbstractSolver | None = None,
    adjoint: AbstractAdjoint | None = None,
    throw: bool = True,
) -> Solution:
    """Find the states that one more loop step leaves where they are, differentiably.

    Args:
        block: ``block(z, x) -> z'`` as for :class:`Loop`, or a ready :class:`Loop` (then leave out ``x``).
        z0: Start states ``(B, *state)``. The fixed point does not depend on them: their gradient is 0.
        x: Injection, leading dimension ``B``.
        shared: Tensors that all samples share, as further arguments: ``block(z, x, *shared)``.
        solver: ``Picard()``, ``Damped()``, ``Anderson()``...; default ``Anderson()``.
        adjoint: ``Implicit()`` (default), ``OneStep()``, ``Phantom()``, ``TruncatedWindow()`` or ``Unrolled()``.
        throw: Raise unless every sample converged. With False, look at ``solution.status``; the gradient of a failed
            sample is refused, or 0 with ``zero_failed=True`` of the adjoint.

    Returns:
        The solution. ``solution.value`` is differentiable in ``x``, in ``shared`` and in the block's parameters and
        buffers, by autograd (any order with ``Implicit`` and ``Unrolled``), in forward mode, and under `torch.func`.

    Raises:
        ConvergenceError: A sample did not converge and ``throw`` is True; ``error.solution`` holds everything.
        InputError, BlockError: The call itself is wrong.
        GradientNotAvailableError: The block depends on a tensor that requires a gradient and is none of its arguments;
            in backward: a failed sample's gradient, or a second derivative that the adjoint does not have.
        AdjointConvergenceError: In backward: the adjoint equation was not solved.

    Example:
        >>> import torch
        >>> x = torch.ones(1, 1, requires_grad=True)
        >>> sol = fixed_point(lambda z, x: 0.5 * z + x, torch.zeros(1, 1), x)
        >>> float(sol.value)
        2.0
        >>> float(torch.autograd.grad(sol.value.sum(), x)[0])
        2.0

    Source: Theorem G1.
    """
    find = _find_untraced if torch.compiler.is_compiling() else _find
    return find(block, z0, x, shared, solver, adjoint, throw, check=not isinstance(block, Loop))[0]


def _find(
    block: Block | Loop,
    z0: Tensor,
    x: Injection,
    shared: tuple[Tensor, ...],
    solver: AbstractSolver | None,
    adjoint: AbstractAdjoint | None,
    throw: bool,
    *,
    check: bool,
) -> tuple[Solution, Solution]:
    """The solution with its derivatives, and the same as plain numbers, which no transform wraps."""
    solver = Anderson() if solver is None else solver
    adjoint = Implicit() if adjoint is None else adjoint
    if not isinstance(solver, AbstractSolver):
        hint = "fp.Anderson(), fp.Damped() or fp.Picard()"
        raise InputError(f"solver={solver!r} is a {type(solver).__name__}; expected a solver object such as {hint}")
    if not isinstance(adjoint, AbstractAdjoint):
        raise InputError(
            f"adjoint={adjoint!r} is a {type(adjoint).__name__}; expected an adjoint object such as fp.Implicit()"
        )
    loop = _loop(block, x, shared, z0)
    step, tensors = Step.of(loop, shared, z0)
    tracked = _tracked((z0, *tensors))
    # Values under a transform cannot be looked at; the solver looks at what is behind them.
    if check and not tracked:
        _check(block, x, shared, z0)
    if tracked or torch.is_grad_enabled():
        step.refuse_hidden(z0, tensors)
    if tracked or (torch.is_grad_enabled() and any(t.requires_grad for t in (z0, *tensors))):
        value, plan = adjoint.attach(step, solver, z0, tensors)
        plain = _together(plan.solutions)
        # Under a transform values and versions are not to be had.
        route = None if tracked else Route.of(adjoint, plan, tensors)
        solution = replace(plain, value=value, route=route)
    else:
        with torch.no_grad(), weights_once():
            solution = plain = solver.solve(step.loop(z0, tensors), z0)
    if throw and not plain.converged:
        raise ConvergenceError("not every sample converged.\n" + plain.explain(), plain)
    return solution, plain


# What dynamo may meet: a solve decides by values and is not to be traced. One graph break; a compiled block stays so.
_find_untraced = _disable_dynamo(_find)


def _loop(block: Block | Loop, x: Injection, shared: tuple[Tensor, ...], z0: Tensor) -> Loop:
    if isinstance(block, Loop):
        if x is not None or shared:
            raise InputError("x was given beside a Loop, which already holds its injection; leave x out")
        return block
    for i, tensor in enumerate(shared):
        if not isinstance(tensor, Tensor):
            raise InputError(f"shared[{i}] is a {type(tensor).__name__}; expected a tensor")
    return Loop(block, x, z0=z0, check=False)


def _check(block: Block, x: Injection, shared: tuple[Tensor, ...], z0: Tensor) -> None:
    """Refuse a block that is no pure map on states; the shared tensors are held fixed."""
    if not shared:
        Loop(block, x, z0=z0)
    elif x is None:
        Loop(lambda z: block(z, *shared), z0=z0)
    else:
        Loop(lambda z, x: block(z, x, *shared), x, z0=z0)


def _tracked(tensors: tuple[Tensor, ...]) -> bool:
    """Whether a `torch.func` transform or forward mode is at work."""
    return transformed() or any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _together(solutions: list[Solution]) -> Solution:
    """One solution for several solves, sample after sample."""
    if len(solutions) == 1:
        return solutions[0]
    longest = max(len(s.history) for s in solutions)
    history = [
        torch.cat([s.history, s.history.new_full((longest - len(s.history), s.history.shape[1]), np.nan)])
        for s in solutions
    ]
    return replace(
        solutions[0],
        value=torch.cat([s.value for s in solutions]),
        status=tuple(status for s in solutions for status in s.status),
        residual=torch.cat([s.residual for s in solutions]),
        residual_norm=torch.cat([s.residual_norm for s in solutions]),
        steps=torch.cat([s.steps for s in solutions]),
        period=torch.cat([s.period for s in solutions]),
        history=torch.cat(history, 1),
    )


@final
class FixedPoint(nn.Module):
    """A layer whose output is the fixed point of a block, for use inside a model.

    Args:
        block: ``block(z, x) -> z'``, a module.
        solver: See :func:`fixed_point`.
        adjoint: See :func:`fixed_point`.
        throw: See :func:`fixed_point`.

    Attributes:
        solution: Of the last call, its value without gradients; None before. Under ``vmap``: of all entries' samples.

    Shapes: ``layer(x)`` for an injection that is shaped like the state (the start is 0), else ``layer(x, z0)``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.weight = nn.Parameter(torch.eye(2) / 2)
        ...     def forward(self, z, x):
        ...         return z @ self.weight + x
        >>> layer = FixedPoint(Block())
        >>> layer(torch.ones(1, 2)).tolist()
        [[2.0, 2.0]]
    """

    def __init__(
        self,
        block: nn.Module,
        *,
        solver: AbstractSolver | None = None,
        adjoint: AbstractAdjoint | None = None,
        throw: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(block, nn.Module):
            raise InputError(
                f"block={block!r} is a {type(block).__name__}; expected an nn.Module; for a function, call "
                "fp.fixed_point"
            )
        self.block = block
        self.solver, self.adjoint, self.throw = solver, adjoint, throw
        self.solution: Solution | None = None
        # The block is looked at once for each kind of batch, not at every step of a training.
        self._checked: set[tuple[torch.Size, torch.dtype, torch.device, bool]] = set()

    def forward(self, x: Injection, z0: Tensor | None = None) -> Tensor:
        """The fixed points ``(B, *state)``."""
        if z0 is None:
            if not isinstance(x, Tensor):
                raise InputError("z0=None; pass z0, a start state: it cannot be read off x, which is no single tensor")
            z0 = torch.zeros_like(x)
        key = (z0.shape, z0.dtype, z0.device, self.training)
        check = key not in self._checked
        find = _find_untraced if torch.compiler.is_compiling() else _find
        found, self.solution = find(self.block, z0, x, (), self.solver, self.adjoint, self.throw, check=check)
        if not _tracked((z0,)):
            self._checked.add(key)
        return found.value
