r"""Which eigenvalues are wanted first.

A Krylov method finds eigenvalues from the outside of the spectrum inwards: polynomials of low degree can be large at
one eigenvalue and small on a disc that holds the others, but not the other way round. Each order here is *exterior*:
what it wants lies outside a disc (or half-plane, a disc of infinite radius) that holds the rest. Its docstring says
which. An order that wants eigenvalues inside, such as those of least modulus, would need ``(J - c I)^-1``.

Shapes: ``B`` samples, ``m`` eigenvalues of each; ``(B, m)`` complex128 in, ``(B, m)`` float64 out.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from fpcheck.errors import InputError

__all__ = [
    "AbstractOrder",
    "AnyOf",
    "LargestDamped",
    "LargestModulus",
    "LargestReal",
    "SmallestCriticalStep",
    "sort_by",
]


class AbstractOrder(abc.ABC):
    """A ranking of eigenvalues."""

    @abc.abstractmethod
    def key(self, lam: Tensor) -> Tensor:
        """How much each eigenvalue of ``(B, m)`` is wanted, larger is more; equal for both members of a pair."""

    def select(self, index: Tensor) -> AbstractOrder:
        """The order for the samples ``index`` (integers) alone."""
        return self

    def parts(self) -> tuple[AbstractOrder, ...]:
        """The orders whose leading eigenvalues are asked for: this one, unless it is made of others."""
        return (self,)


@final
@dataclass(frozen=True)
class LargestModulus(AbstractOrder):
    """By ``|l|``: what dominates the loop in the long run lies outside the disc of the rest around 0."""

    def key(self, lam: Tensor) -> Tensor:
        """``|l|``."""
        return lam.abs()


@final
@dataclass(frozen=True)
class LargestReal(AbstractOrder):
    """By ``Re l``: outside the half-plane to the left. Damping helps exactly if the first is below 1."""

    def key(self, lam: Tensor) -> Tensor:
        """``Re l``."""
        return lam.real


@final
@dataclass(frozen=True)
class SmallestCriticalStep(AbstractOrder):
    r"""By the critical step ``2 (1 - Re l) / |1 - l|^2``, smallest first; ``Re l >= 1`` before all, by real part.

    The eigenvalues whose critical step is at least s fill the closed disc around ``1 - 1/s`` with radius ``1/s``, which
    touches 1 from the left: the first lies outside the disc of the rest. As s falls to 0 the disc becomes the
    half-plane ``Re l <= 1``.

    All of these discs touch 1, so the order jumps there: ``1 - e`` comes last, ``1 + e`` first. A run that has not yet
    resolved what lies next to 1 may take the one for the other and drop it. Ask for ``AnyOf(SmallestCriticalStep(),
    LargestReal())``, which keeps what lies there, unless nothing does.
    """

    def key(self, lam: Tensor) -> Tensor:
        """Minus the critical step, or ``Re l - 1`` where there is none."""
        w = 1 - lam
        size = w.abs()
        # Divided twice instead of by the square, which would overflow first.
        return torch.where(w.real > 0, -2 * (w.real / size) / size, -w.real)


@final
@dataclass(frozen=True, eq=False)
class LargestDamped(AbstractOrder):
    """By ``|1 - s (1 - l)|``, the modulus under damping: outside the disc of the rest around ``1 - 1/s``.

    Args:
        step: Damping step s > 0, a number or one per sample ``(B,)``.
    """

    step: Tensor | float

    def __post_init__(self) -> None:
        step = torch.as_tensor(self.step)
        if step.ndim > 1 or not bool(((step > 0) & torch.isfinite(step)).all()):
            raise InputError(f"step={self.step!r}; expected a finite number > 0, or one per sample (B,)")

    def key(self, lam: Tensor) -> Tensor:
        """``|1 - s (1 - l)|``."""
        step = torch.as_tensor(self.step, dtype=torch.float64, device=lam.device)
        return (1 - (step.unsqueeze(-1) if step.ndim else step) * (1 - lam)).abs()

    def select(self, index: Tensor) -> LargestDamped:
        """The order for some samples."""
        step = torch.as_tensor(self.step)
        return LargestDamped(step[index.to(step.device)]) if step.ndim else self


@final
class AnyOf(AbstractOrder):
    """First what leads by any of several orders, then what comes second by any of them, and so on.

    One run then answers several questions, for hardly more products than one of them. Each order's leading
    eigenvalue is checked as if it had been asked for alone.

    Args:
        orders: At least one. Ask for at least twice as many eigenvalues as there are orders: pairs count twice.
    """

    def __init__(self, *orders: AbstractOrder) -> None:
        if not orders or not all(isinstance(order, AbstractOrder) for order in orders):
            raise InputError(f"orders={orders!r}; expected at least one AbstractOrder, such as LargestModulus()")
        self.orders = orders

    def __repr__(self) -> str:
        return f"AnyOf({', '.join(map(repr, self.orders))})"

    def key(self, lam: Tensor) -> Tensor:
        """Minus the best rank by any of the orders; the first has 0. Members of a pair share their rank."""
        ranks = []
        for order in self.orders:
            key = order.key(lam)
            ranks.append((key.unsqueeze(-2) > key.unsqueeze(-1)).sum(-1))
        return -torch.stack(ranks).amin(0).double()

    def select(self, index: Tensor) -> AnyOf:
        """The order for some samples."""
        return AnyOf(*(order.select(index) for order in self.orders))

    def parts(self) -> tuple[AbstractOrder, ...]:
        """The orders it is made of."""
        return tuple(part for order in self.orders for part in order.parts())


def sort_by(key: Tensor, lam: Tensor) -> Tensor:
    """Indices ``(B, m)`` that sort by ``key``, largest first, and equal keys by real part.

    Pairs that stand side by side in ``lam``, the upper member first, still do so afterwards: the sort is stable.
    """
    # In one call of NumPy, on few numbers: a Krylov method sorts often.
    index = np.lexsort((-lam.real.cpu().numpy(), -key.cpu().numpy()), axis=-1)
    return torch.from_numpy(index).to(lam.device)
