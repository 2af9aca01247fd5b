"""A computed gradient, the true one, and what was said about the difference; for the tests and the benchmark."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from random_loops import Case, case
from torch import Tensor

import fpcheck as fp
from fpcheck.adjoint import GradientErrorEstimate, gradient_error
from fpcheck.solve import Picard, Solution


@dataclass(frozen=True)
class Figure:
    of: str
    said: float
    true: float
    size: float

    @property
    def ratio(self) -> float:
        return self.said / self.true if self.true > 0 else math.inf

    @property
    def holds(self) -> bool:
        # The truth is itself a float64 gradient of a solve to 1e-13: this many units of rounding are not resolved.
        return self.said >= self.true - 1e-11 * self.size


def gradients(loop: Case, z0: Tensor, solver: Any, adjoint: Any) -> tuple[Solution, Tensor, Tensor] | None:
    """The solution and ``.grad`` of injection ``(B, m)`` and weights ``(p,)``; None where a solve failed."""
    many = isinstance(loop.x, tuple)
    leaves = [t.clone().requires_grad_() for t in (loop.x if many else (loop.x,))]
    solution = fp.fixed_point(
        loop.block, z0, tuple(leaves) if many else leaves[0], solver=solver, adjoint=adjoint, throw=False
    )
    if not solution.converged:
        return None
    try:
        loop.loss(solution.value).backward()
    except fp.AdjointConvergenceError:
        return None
    weights = [p.grad.flatten().double() for p in loop.block.parameters() if p.grad is not None]
    loop.block.zero_grad(set_to_none=True)
    return solution, torch.cat([t.grad.flatten(1).double() for t in leaves], 1), torch.cat(weights)


def compare(
    kind: str, seed: int, dtype: torch.dtype, rtol: float, adjoint: Any
) -> tuple[GradientErrorEstimate, list[Figure]] | None:
    """What is said of one random loop, solved by plain iteration to ``rtol``; None where it does not converge."""
    loop = case(kind, seed, dtype)
    found = gradients(loop, loop.z0, Picard(rtol=rtol), adjoint)
    if found is None:
        return None
    solution, of_x, of_w = found
    said = gradient_error(solution, loop.loss)
    exact = gradients(
        loop.to(torch.float64),
        solution.value.detach().double(),
        fp.Anderson(rtol=1e-13, max_steps=2000),
        fp.Implicit(fp.GMRES(rtol=1e-13, max_steps=5000)),
    )
    if exact is None:
        return None
    _, true_x, true_w = exact
    rows = [
        Figure("injection", float(said.injection[i]), float((of_x - true_x)[i].norm()), float(true_x[i].norm()))
        for i in range(len(of_x))
    ]
    return said, [*rows, Figure("weights", said.weights, float((of_w - true_w).norm()), float(true_w.norm()))]
