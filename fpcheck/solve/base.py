"""The interface every solver implements."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from numbers import Integral, Real

import torch
from torch import Tensor

from fpcheck.errors import InputError, ToleranceError
from fpcheck.loop import Loop
from fpcheck.solve.solution import Solution

__all__ = ["AbstractSolver", "default_rtol", "is_count", "is_number", "require", "resolve_rtol", "working_dtype"]

# Tolerances that a contracting loop reaches in each dtype with room to spare: about 100 rounding units in
# float64 and float32; in bfloat16 and float16 the measured floor of loops is 2 to 3 units.
_DEFAULT_RTOL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 3e-2}


def default_rtol(dtype: torch.dtype) -> float:
    """The relative tolerance that ``rtol=None`` stands for.

    Raises:
        InputError: No solver works in ``dtype``.
    """
    if dtype not in _DEFAULT_RTOL:
        known = ", ".join(str(known) for known in _DEFAULT_RTOL)
        raise InputError(f"states have dtype {dtype}; expected one of {known}")
    return _DEFAULT_RTOL[dtype]


def is_number(value: object) -> bool:
    """Whether ``value`` is a finite real number."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> bool:
    """Whether ``value`` is an integer >= 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def require(ok: bool, owner: object, name: str, expected: str) -> None:
    """Refuse option ``name`` of ``owner`` unless ``ok``, showing its value and what was expected."""
    if not ok:
        raise InputError(f"{type(owner).__name__}: {name}={getattr(owner, name)!r}; expected {expected}")


class AbstractSolver(ABC):
    """A method for z = F(z). Solvers are frozen dataclasses: their fields are their options, nothing else is."""

    @abstractmethod
    def solve(self, loop: Loop, z0: Tensor) -> Solution:
        """Iterate from ``z0`` until each sample converges or is given up; never raises for a hard problem.

        Args:
            loop: The map, with its injection.
            z0: Start states ``(B, *state)``.
        """


def resolve_rtol(rtol: float | None, dtype: torch.dtype) -> float:
    """``rtol`` or the dtype's default.

    Raises:
        InputError: See :func:`default_rtol`.
        ToleranceError: ``rtol`` is below one rounding unit of ``dtype``, where the test could fire only by chance.
    """
    default, eps = default_rtol(dtype), torch.finfo(dtype).eps
    if rtol is None:
        return default
    if 0 < rtol < eps:
        raise ToleranceError(
            f"rtol={rtol:.1e} is below the rounding unit {eps:.1e} of {dtype}; residuals stall above it. Use "
            f"rtol >= {default:.0e} or solve in a wider dtype"
        )
    return float(rtol)


def working_dtype(z: Tensor) -> torch.dtype:
    """The dtype that products are rounded in: autocast's where it is on and casts the state, else the state's."""
    kind = z.device.type
    if z.dtype is torch.float32 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return z.dtype
