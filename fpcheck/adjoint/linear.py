r"""Linear solvers for :math:`(I - A) u = g`, batched, sample by sample.

A is known by its products, one row of u per sample. Every solver works on g scaled to length 1 per sample, so tiny
cotangents converge like others, and measures the residual :math:`|g - (I - A) u| / |g|` of what it returns.

Shapes: g and u ``(B, n)``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.solve.base import is_count, is_number, require, resolve_rtol

__all__ = ["GMRES", "AbstractLinearSolver", "DirectSolve", "LinearSolution", "Neumann"]

Product = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, eq=False)
class LinearSolution:
    """What a linear solve returned.

    Attributes:
        value: u, ``(B, n)``.
        residual: ``|g - (I - A) u| / |g|`` of it, ``(B,)`` float64; 0 where g is 0.
        steps: Products with A, the same for all samples.
        converged: Whether the residual is within the tolerance, ``(B,)``.
        rtol: The tolerance.
    """

    value: Tensor
    residual: Tensor
    steps: int
    converged: Tensor
    rtol: float


@dataclass(frozen=True)
class AbstractLinearSolver(ABC):
    """A method for ``(I - A) u = g``. Frozen dataclasses: their fields are their options.

    Args:
        rtol: Tolerance on the relative residual; None: that of a forward solve in the same dtype.
    """

    rtol: float | None = None

    def __post_init__(self) -> None:
        require(self.rtol is None or (is_number(self.rtol) and self.rtol > 0), self, "rtol", "None or a number > 0")

    def solve(self, product: Product, g: Tensor) -> LinearSolution:
        """Solve; never raises for a hard system.

        Args:
            product: ``A u`` for ``(B, n)``; samples do not mix.
            g: Right-hand sides ``(B, n)``.
        """
        rtol = resolve_rtol(self.rtol, g.dtype)
        wide = torch.promote_types(g.dtype, torch.float32)
        # By the largest entry first: the square of a tiny number is 0.
        largest = g.abs().amax(1, keepdim=True).to(wide)
        unit = torch.where(largest > 0, largest, 1.0)
        b = g.to(wide) / unit
        length = torch.linalg.vector_norm(b, dim=1, keepdim=True)
        b = b / torch.where(length > 0, length, 1.0)

        counted = _Counted(product, g.dtype)
        u, r = self._solve(counted, b, rtol)
        # Of a huge u, b - u + A u holds the rounding of u: no residual can be seen below it.
        # choice: what rounding of u may hide
        unseen = torch.finfo(u.dtype).eps / 4 * torch.linalg.vector_norm(u, dim=1)
        residual = torch.maximum(torch.linalg.vector_norm(r, dim=1), unseen)
        value = (u * length * unit).to(g.dtype)
        return LinearSolution(value, residual.double(), counted.steps, residual <= rtol, rtol)

    @abstractmethod
    def _solve(self, product: _Counted, b: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
        """A solution for right-hand sides of length 1 (or 0), and its residual ``b - u + A u``, computed as such."""


@final
class _Counted:
    def __init__(self, product: Product, dtype: torch.dtype) -> None:
        self._product, self._dtype, self.steps = product, dtype, 0

    def __call__(self, u: Tensor) -> Tensor:
        self.steps += 1
        return self._product(u.to(self._dtype)).to(u.dtype)


@dataclass(frozen=True)
class _Iterative(AbstractLinearSolver):
    """Solvers that may need many products.

    Args:
        max_steps: Products with A, at most.
    """

    # choice: of the method; residuals are measured afterwards
    max_steps: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_count(self.max_steps), self, "max_steps", "an integer >= 1")


@final
@dataclass(frozen=True)
class Neumann(_Iterative):
    """The series ``u = g + A g + A^2 g + ...``: converges where the spectral radius of A is below 1 (Theorem G4)."""

    def _solve(self, product: _Counted, b: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
        u = b
        while True:
            r = b - u + product(u)
            size = torch.linalg.vector_norm(r, dim=1)
            # A sample past 1 / eps of its start has no digit left to converge with.
            lost = size > 1 / torch.finfo(size.dtype).eps
            if product.steps >= self.max_steps or not _worst(torch.where(lost, 0.0, size)) > rtol:
                return u, r
            u = u + r


@final
@dataclass(frozen=True)
class GMRES(_Iterative):
    """Generalised minimal residuals, restarted, per sample: also where the series diverges.

    Args:
        restart: Basis vectors kept; memory ``restart * B * n``.

    Source: Y. Saad and M. Schultz (1986); orthogonalisation by Gram and Schmidt, twice where the
    first pass cancels.
    """

    # choice: of the method; residuals are measured afterwards
    restart: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_count(self.restart), self, "restart", "an integer >= 1")

    def _solve(self, product: _Counted, b: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
        u, r = torch.zeros_like(b), b
        size = torch.linalg.vector_norm(r, dim=1)
        while _worst(size) > rtol and product.steps < self.max_steps:
            u = u + self._cycle(product, r, size, rtol)
            r = b - u + product(u)
            before, size = size, torch.linalg.vector_norm(r, dim=1)
            # Restarted from where it was, the next cycle would go the same way.
            if not bool(((size > rtol) & (size < _PROGRESS * before)).any()):
                break
        return u, r

    def _cycle(self, product: _Counted, r: Tensor, size: Tensor, rtol: float) -> Tensor:
        """The correction with the least residual in the Krylov space of r."""
        batch, n = r.shape
        m = min(self.restart, n, max(1, self.max_steps - product.steps))
        basis = r.new_empty(batch, m + 1, n)
        # Upper triangle of the rotated Hessenberg matrix, the rotations, and the rotated right-hand side.
        R, rhs = r.new_zeros(batch, m, m), r.new_zeros(batch, m + 1)
        turns: list[tuple[Tensor, Tensor]] = []
        rhs[:, 0] = size
        basis[:, 0] = r / _safe(size)[:, None]
        for j in range(m):
            # A spans the same space as I - A, with less cancellation.
            w = product(basis[:, j])
            h = r.new_zeros(batch, j + 2)
            before = torch.linalg.vector_norm(w, dim=1)
            for _ in range(2):
                part = (basis[:, : j + 1] @ w[:, :, None])[:, :, 0]
                w = w - (part[:, None, :] @ basis[:, : j + 1])[:, 0]
                h[:, : j + 1] -= part
                length = torch.linalg.vector_norm(w, dim=1)
                if bool((length >= _KEPT * before).all()):
                    break
            # What rounding leaves of a vector inside the space is no new direction.
            # choice: what rounding leaves is no direction
            length = torch.where(length > 10 * torch.finfo(w.dtype).eps * before, length, 0.0)
            h[:, j] += 1.0
            h[:, j + 1] = -length
            basis[:, j + 1] = torch.where(length[:, None] > 0, w / _safe(length)[:, None], 0.0)
            for i, (c, s) in enumerate(turns):
                h[:, i], h[:, i + 1] = c * h[:, i] + s * h[:, i + 1], c * h[:, i + 1] - s * h[:, i]
            radius = torch.hypot(h[:, j], h[:, j + 1])
            c, s = (torch.where(radius > 0, h[:, k] / _safe(radius), float(k == j)) for k in (j, j + 1))
            turns.append((c, s))
            h[:, j] = radius
            R[:, : j + 1, j] = h[:, : j + 1]
            rhs[:, j], rhs[:, j + 1] = c * rhs[:, j], -s * rhs[:, j]
            if not _worst(rhs[:, j + 1].abs()) > _CLOSE * rtol:
                m = j + 1
                break
        diagonal = R[:, :m, :m].diagonal(dim1=1, dim2=2)
        # A column of zeros: the space ended earlier for this sample, and nothing is left to solve.
        ended = diagonal == 0
        diagonal.copy_(torch.where(ended, 1.0, diagonal))
        y = torch.linalg.solve_triangular(R[:, :m, :m], torch.where(ended, 0.0, rhs[:, :m])[:, :, None], upper=True)
        return (y.mT @ basis[:, :m])[:, 0]


@final
@dataclass(frozen=True)
class DirectSolve(AbstractLinearSolver):
    """The matrix of A, column by column, and its factorisation: exact to rounding, for small states.

    Args:
        max_size: Largest n; above, the solve is refused.
    """

    # choice: of the method; residuals are measured afterwards
    max_size: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_count(self.max_size), self, "max_size", "an integer >= 1")

    def _solve(self, product: _Counted, b: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
        batch, n = b.shape
        if n > self.max_size:
            raise InputError(f"DirectSolve: n={n} is above max_size={self.max_size}; use GMRES()")
        matrix = b.new_zeros(batch, n, n)
        for i in range(n):
            column = b.new_zeros(batch, n)
            column[:, i] = 1.0
            matrix[:, :, i] = column - product(column)
        u, info = torch.linalg.solve_ex(matrix, b[:, :, None])
        u = torch.where((info == 0)[:, None], u[:, :, 0], 0.0)
        return u, b - u + product(u)


# A vector that keeps this much of its length is orthogonal to rounding after one pass (Daniel et al. 1976).
_KEPT = 0.5
# The residual that the rotations tell is the true one up to rounding.
# choice: of the method; residuals are measured afterwards
_CLOSE = 0.9
# A cycle of GMRES that leaves this much of the residual would need more cycles than anybody has.
# choice: of the method; residuals are measured afterwards
_PROGRESS = 0.999


def _worst(size: Tensor) -> float:
    """The largest; a sample that is no number any more is beyond help and must not stop the others."""
    return float(torch.where(size.isfinite(), size, 0.0).max())


def _safe(size: Tensor) -> Tensor:
    return torch.where(size > 0, size, 1.0)
