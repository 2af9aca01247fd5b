r"""Midpoint-radius arithmetic on tensors: every result contains the exact one, rounding included.

A `Ball` stands for every real tensor A with :math:`|A - m| \le r` entry by entry. Products run at the speed of BLAS:
one product for the midpoint, and one per non-zero radius plus one for the rounding (Rump 1999). Elementary functions
are evaluated in Arb's ball arithmetic entry by entry, because no library that torch calls promises how wrong it is;
square roots are checked by squaring.

Shapes: as the tensors'. All float64, on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import flint
import torch
from flint import arb
from torch import Tensor

from fpcheck.certify.rounding import TINY, U, gamma, inflate

__all__ = ["Ball", "rounded"]

# choice: bits of an entry's evaluation; the result is rounded to 53, so a few more suffice.
_BITS = 80


@final
@dataclass(frozen=True, eq=False)
class Ball:
    """A set of real tensors: within ``rad`` of ``mid``, entry by entry.

    Args:
        mid: Midpoints, float64, any shape.
        rad: Radii, float64, non-negative, the same shape; infinite where nothing is known.
    """

    mid: Tensor
    rad: Tensor

    def __post_init__(self) -> None:
        if self.mid.dtype != torch.float64 or self.rad.dtype != torch.float64 or self.mid.shape != self.rad.shape:
            raise ValueError(
                f"mid={self.mid.dtype} {tuple(self.mid.shape)}, rad={self.rad.dtype} {tuple(self.rad.shape)}; "
                "expected float64 tensors of one shape"
            )

    @staticmethod
    def exact(values: Tensor) -> Ball:
        """The tensor itself, its floats taken as real numbers. Integers, float32 and bfloat16 widen exactly."""
        wide = values.detach().to(torch.float64)
        return Ball(wide, torch.zeros_like(wide))

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensors."""
        return self.mid.shape

    def magnitude(self) -> Tensor:
        """Upper bounds on the moduli of the entries."""
        return inflate(self.mid.abs() + self.rad, 1)

    def lower(self) -> Tensor:
        """Lower bounds on the entries."""
        return -_above(self.rad - self.mid, self.mid.abs() + self.rad)

    def upper(self) -> Tensor:
        """Upper bounds on the entries."""
        return _above(self.mid + self.rad, self.mid.abs() + self.rad)

    # Moving entries about is exact.

    def reshape(self, *shape: int) -> Ball:
        """Reshape."""
        return Ball(self.mid.reshape(*shape), self.rad.reshape(*shape))

    def permute(self, *order: int) -> Ball:
        """Permute the dimensions."""
        return Ball(self.mid.permute(*order), self.rad.permute(*order))

    def __getitem__(self, index: object) -> Ball:
        return Ball(self.mid[index], self.rad[index])  # type: ignore[index]

    @property
    def mT(self) -> Ball:  # noqa: N802 (torch's name)
        """The transpose of the last two dimensions."""
        return Ball(self.mid.mT, self.rad.mT)

    @staticmethod
    def cat(parts: Sequence[Ball], dim: int = 0) -> Ball:
        """Concatenate."""
        return Ball(torch.cat([p.mid for p in parts], dim), torch.cat([p.rad for p in parts], dim))

    # Arithmetic.

    def __neg__(self) -> Ball:
        return Ball(-self.mid, self.rad)

    def __add__(self, other: Ball | float) -> Ball:
        b = _ball(other)
        mid = self.mid + b.mid
        return Ball(mid, inflate(self.rad + b.rad + U * mid.abs(), 3))

    def __sub__(self, other: Ball | float) -> Ball:
        return self + -_ball(other)

    def __mul__(self, other: Ball | float) -> Ball:
        b = _ball(other)
        mid = self.mid * b.mid
        rad = self.mid.abs() * b.rad + self.rad * (b.mid.abs() + b.rad) + U * mid.abs() + TINY
        return Ball(mid, inflate(rad, 7))

    def __radd__(self, other: float) -> Ball:
        return self + other

    def __rmul__(self, other: float) -> Ball:
        return self * other

    def reciprocal(self) -> Ball:
        """1 / x; the radius is infinite where x may be 0."""
        size = self.mid.abs()
        room = -_above(self.rad - size, self.rad + size)
        mid = 1 / self.mid
        # |1/(m + d) - 1/m| = |d| / (|m| |m + d|), and |m + d| >= room.
        rad = inflate(self.rad / (size * room) + U * mid.abs() + TINY, 6)
        safe = (room > 0) & mid.isfinite() & rad.isfinite()
        return Ball(torch.where(safe, mid, 0.0), torch.where(safe, rad, math.inf))

    def __truediv__(self, other: Ball | float) -> Ball:
        return self * _ball(other).reciprocal()

    def square(self) -> Ball:
        """x * x, with both factors the same x."""
        mid = self.mid * self.mid
        return Ball(mid, inflate(self.rad * (2 * self.mid.abs() + self.rad) + U * mid + TINY, 6))

    def sqrt(self) -> Ball:
        """Root of a non-negative tensor; infinite radius where an entry may be negative.

        The computed root s is believed only as far as s * s shows: ``|sqrt(v) - s| = |v - s^2| / (sqrt(v) + s)``.
        """
        low = self.lower()
        s = self.mid.clamp_min(0).sqrt()
        gap = self - Ball(s, torch.zeros_like(s)).square()
        # sqrt(v) + s >= s; where s is 0 the bound is sqrt(|v|) itself, which the square of a little more exceeds.
        rad = torch.where(s > 0, inflate(gap.magnitude() / s, 2), math.inf)
        safe = (low >= 0) & rad.isfinite()
        return Ball(torch.where(safe, s, 0.0), torch.where(safe, rad, math.inf))

    def sum(self, dim: int, *, keepdim: bool = False) -> Ball:
        """Sum over one dimension, in whatever order torch adds."""
        k = self.shape[dim]
        size = inflate(self.mid.abs().sum(dim, keepdim=keepdim), k)
        rad = self.rad.sum(dim, keepdim=keepdim) + gamma(max(k - 1, 0)) * size
        return Ball(self.mid.sum(dim, keepdim=keepdim), inflate(rad, k + 2))

    def mean(self, dim: int, *, keepdim: bool = False) -> Ball:
        """Mean over one dimension."""
        return self.sum(dim, keepdim=keepdim) / float(self.shape[dim])

    def __matmul__(self, other: Ball) -> Ball:
        """Matrix product; leading dimensions broadcast as in torch."""
        k = self.shape[-1]
        a, b = self.mid, other.mid
        # |AB - fl(AB)| <= gamma_k |A||B|, and the radii spread as |A| rB + rA (|B| + rB).
        spread = (gamma(k) * a.abs()) @ b.abs()
        if bool(other.rad.any()):
            spread = spread + a.abs() @ other.rad
        if bool(self.rad.any()):
            spread = spread + self.rad @ (b.abs() + other.rad)
        return Ball(a @ b, inflate(spread + k * TINY, k + 6))

    # Elementary functions.

    def exp(self) -> Ball:
        """Exponential."""
        return self.map(arb.exp)

    def log(self) -> Ball:
        """Natural logarithm; infinite radius where an entry may be 0 or negative."""
        return self.map(arb.log)

    def map(self, function: Callable[[arb], arb]) -> Ball:
        """A function of one real, entry by entry, in Arb's arithmetic.

        Cost: some microseconds an entry.
        """
        mids, rads = [], []
        with flint.ctx.workprec(_BITS):
            for m, r in zip(self.mid.flatten().tolist(), self.rad.flatten().tolist(), strict=True):
                if not (math.isfinite(m) and math.isfinite(r)):
                    mids.append(0.0)
                    rads.append(math.inf)
                    continue
                value = function(arb(m, r))
                if not value.is_finite():
                    mids.append(0.0)
                    rads.append(math.inf)
                    continue
                middle, radius = rounded(value)
                mids.append(middle)
                rads.append(radius)
        shape = self.shape
        middles, radii = (torch.tensor(values, dtype=torch.float64).reshape(shape) for values in (mids, rads))
        return Ball(middles, radii)


def rounded(value: arb) -> tuple[float, float]:
    """Float64 midpoint and radius of a ball around a finite Arb ball; radius infinite beyond float64."""
    middle = float(value.mid())
    if not math.isfinite(middle):
        return 0.0, math.inf
    gap = (value - middle).abs_upper()
    return middle, 0.0 if gap == 0 else math.nextafter(float(gap), math.inf)


def _ball(value: Ball | float) -> Ball:
    return value if isinstance(value, Ball) else Ball.exact(torch.tensor(value, dtype=torch.float64))


def _above(value: Tensor, size: Tensor) -> Tensor:
    """An upper bound on a sum of two numbers, computed as ``value``, whose moduli add up to ``size``."""
    return value + inflate(2 * U * size + TINY, 3)
