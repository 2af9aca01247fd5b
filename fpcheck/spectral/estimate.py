"""A figure together with an estimate of its error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch import Tensor

from fpcheck.errors import InputError

__all__ = ["Estimate"]


@final
@dataclass(frozen=True, eq=False)
class Estimate:
    """One figure per sample, each with an estimate of its error. Nothing here is proved.

    ``error`` is first order: the rounding of the Jacobian and of the linear algebra, carried to the figure by
    its condition number. It says how many digits to believe. A figure whose true value lies outside
    ``value +- error`` breaks no promise, and no verdict may rest on it.

    Attributes:
        value: ``(B,)`` float64, or a scalar for one sample.
        error: The same shape, float64, not negative; infinite where nothing is known.

    Example:
        >>> import torch
        >>> Estimate(torch.tensor([0.7052, 1.2]), torch.tensor([2e-13, 3e-16]))[0]
        0.7052 +- 2e-13 (estimate)
    """

    value: Tensor
    error: Tensor

    def __post_init__(self) -> None:
        if self.value.shape != self.error.shape or self.value.ndim > 1:
            raise InputError(
                f"value.shape={tuple(self.value.shape)}, error.shape={tuple(self.error.shape)}; expected both (B,), "
                "or both scalar"
            )
        if not bool((self.error >= 0).all()):
            raise InputError(f"error={self.error}; expected numbers >= 0 (infinity where nothing is known)")

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, i: int) -> Estimate:
        return Estimate(self.value[i], self.error[i])

    def __iter__(self) -> Iterator[Estimate]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        if self.value.numel() != 1:
            raise InputError(
                f"float() of an estimate for {len(self)} samples; take one of them first: float(estimate[i])"
            )
        return float(self.value)

    def __format__(self, spec: str) -> str:
        """Format with ``spec`` applied to the value, four significant digits by default."""
        if self.value.ndim:
            return "[" + ", ".join(format(one, spec) for one in self) + "]"
        return f"{format(float(self.value), spec or '.4g')} +- {float(self.error):.0e} (estimate)"

    def __str__(self) -> str:
        return format(self)

    __repr__ = __str__
