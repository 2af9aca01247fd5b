"""What gradients through fixed points are judged by: plain loops that autograd follows, and closed forms.

``SHAPES`` are batch and state sizes, batches of one and states of one entry included. The maps contract by 0.5 or less
in every norm used here, so 60 steps end below 1e-18 of the start, and 1 / (1 - L) <= 2 is all that a residual grows by.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fpcheck as fp
from fpcheck.adjoint import AbstractAdjoint
from fpcheck.solve import AbstractSolver

SHAPES = [(1, 1), (1, 3), (3, 1), (2, 3)]
FIRST_ORDER = [fp.OneStep(), fp.Phantom(k=3, s=0.5), fp.TruncatedWindow(k=3)]
EVERY_ORDER = [fp.Implicit(fp.GMRES(rtol=1e-12)), fp.Implicit(fp.Neumann(rtol=1e-12)),
               fp.Implicit(fp.DirectSolve(rtol=1e-12)), fp.Unrolled()]  # fmt: skip
LENGTH = 60


class Arguments(NamedTuple):
    """Injection ``(B, n)`` and what the samples share: ``W (n, n)`` and ``b (n,)``."""

    x: Tensor
    W: Tensor
    b: Tensor


def arguments(batch: int, n: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Arguments:
    draw = torch.Generator().manual_seed(seed)
    W = torch.randn(n, n, generator=draw, dtype=torch.float64)
    W = 0.5 * W / torch.linalg.matrix_norm(W, 2)
    x = torch.randn(batch, n, generator=draw, dtype=torch.float64)
    b = torch.randn(n, generator=draw, dtype=torch.float64)
    return Arguments(x.to(dtype), W.to(dtype), b.to(dtype))


def step(z: Tensor, x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(z @ W.T + x + b)


def name(adjoint: AbstractAdjoint) -> str:
    linear = getattr(adjoint, "linear", None)
    return type(adjoint).__name__ + (f"-{type(linear).__name__}" if linear is not None else "")


def solver_for(adjoint: AbstractAdjoint, dtype: torch.dtype = torch.float64) -> AbstractSolver:
    # A hundred rounding units above the floor in float64; the default in float32.
    rtol = 1e-13 if dtype is torch.float64 else None
    return fp.Picard(rtol=rtol) if isinstance(adjoint, fp.Unrolled) else fp.Anderson(rtol=rtol)


def in_dtype(adjoint: AbstractAdjoint, dtype: torch.dtype) -> AbstractAdjoint:
    """The adjoint with a tolerance that its dtype can reach."""
    if isinstance(adjoint, fp.Implicit) and dtype is not torch.float64:
        return fp.Implicit(type(adjoint.linear)())
    return adjoint


def state(adjoint: AbstractAdjoint) -> Callable[..., Tensor]:
    """The fixed point as a function of x, W and b, from a start of zeros."""

    def solved(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return fp.fixed_point(
            step, torch.zeros_like(x), x, W, b, solver=solver_for(adjoint, x.dtype), adjoint=in_dtype(adjoint, x.dtype)
        ).value

    return solved


def unrolled(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """The same by a plain loop: the oracle of every order."""
    z = torch.zeros_like(x)
    for _ in range(LENGTH):
        z = step(z, x, W, b)
    return z


def oracle(adjoint: AbstractAdjoint) -> Callable[..., Tensor]:
    """What the adjoint says that it differentiates, written out."""
    if not isinstance(adjoint, fp.OneStep | fp.Phantom | fp.TruncatedWindow):
        return unrolled
    count, size = getattr(adjoint, "k", 1), getattr(adjoint, "s", 1.0)

    def window(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        z = unrolled(x.detach(), W.detach(), b.detach()).detach()
        for _ in range(count):
            z = (1 - size) * z + size * step(z, x, W, b)
        return z

    return window


def loss(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss whose derivative depends on the state, so that a second derivative has all of its terms."""
    return lambda *args: f(*args).square().sum() + f(*args).sin().sum()


def gap(got: object, want: object) -> float:
    """Largest difference over all leaves, relative to the largest entry of what is wanted."""
    pairs = list(zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want), strict=True))
    size = max(float(w.detach().abs().max()) for _, w in pairs)
    assert all(g.shape == w.shape for g, w in pairs)
    return max(float((g.detach().double() - w.detach().double()).abs().max()) for g, w in pairs) / size


class Block(nn.Module):
    """The same step as a module, with W and b for parameters."""

    def __init__(self, n: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        super().__init__()
        _, W, b = arguments(1, n, dtype, seed)
        self.W, self.b = nn.Parameter(W), nn.Parameter(b)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return step(z, x, self.W, self.b)


def layer(block: nn.Module, adjoint: AbstractAdjoint | None = None, **options: object) -> fp.FixedPoint:
    adjoint = EVERY_ORDER[0] if adjoint is None else adjoint
    return fp.FixedPoint(block, solver=solver_for(adjoint), adjoint=adjoint, **options)
