r"""Tensors of real numbers in Arb's ball arithmetic, with enough bits that nothing is lost along a loop step.

In float64, a radius grows by the largest row sum of each weight matrix that it passes, some :math:`\sqrt d` times more
than an error does: after two layers 1e-16 has become 1e-4. Here the start is 2^-200 and the result is rounded once.

Shapes: as torch's; entries in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import flint
import torch
from flint import arb, arb_mat
from torch import Tensor

from fpcheck.certify.balls import Ball, rounded

__all__ = ["BITS", "Reals"]

# choice: the more, the less is lost.
BITS = 200
"""Working precision of values; a step's growth of radii, some 1e12, leaves more than twice a float64."""


@final
@dataclass(frozen=True, eq=False)
class Reals:
    """A tensor of Arb balls; ``None`` stands for minus infinity, as a mask puts it among scores."""

    shape: tuple[int, ...]
    entries: list[arb | None]

    @staticmethod
    def exact(values: Tensor) -> Reals:
        """A tensor's floats as real numbers."""
        wide = values.detach().to(torch.float64)
        return Reals(tuple(wide.shape), [None if v == -math.inf else arb(v) for v in wide.flatten().tolist()])

    def ball(self) -> Ball:
        """Rounded to float64 midpoints and radii; minus infinity stays, with radius 0."""
        mids, rads = [], []
        for value in self.entries:
            if value is None:
                mids.append(-math.inf)
                rads.append(0.0)
            elif not value.is_finite():
                mids.append(0.0)
                rads.append(math.inf)
            else:
                middle, radius = rounded(value)
                mids.append(middle)
                rads.append(radius)
        mid, rad = (torch.tensor(v, dtype=torch.float64).reshape(self.shape) for v in (mids, rads))
        return Ball(mid, rad)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def moved(self, index: Tensor) -> Reals:
        """Entries picked by flat index, shaped as the index; -1 gives a zero."""
        zero = arb(0)
        return Reals(tuple(index.shape), [zero if i < 0 else self.entries[i] for i in index.flatten().tolist()])

    def reshape(self, *shape: int) -> Reals:
        """Reshape; one entry may be -1."""
        return self.moved(self._numbers().reshape(*shape))

    def permute(self, *order: int) -> Reals:
        """Permute the dimensions."""
        return self.moved(self._numbers().permute(*order))

    def expand(self, shape: Sequence[int]) -> Reals:
        """Broadcast."""
        return self if tuple(shape) == self.shape else self.moved(self._numbers().expand(*shape))

    def _numbers(self) -> Tensor:
        return torch.arange(len(self.entries)).reshape(self.shape)

    def _with(self, other: Reals | float, function: Callable[[arb, arb], arb], *, additive: bool = False) -> Reals:
        b = other if isinstance(other, Reals) else Reals((), [arb(other)])
        shape = tuple(torch.broadcast_shapes(self.shape, b.shape))
        first, second = self.expand(shape).entries, b.expand(shape).entries
        return Reals(shape, [_both(function, p, q, additive) for p, q in zip(first, second, strict=True)])

    def __neg__(self) -> Reals:
        return self.map(lambda v: -v)

    def __add__(self, other: Reals | float) -> Reals:
        return self._with(other, lambda p, q: p + q, additive=True)

    def __sub__(self, other: Reals | float) -> Reals:
        return self._with(other, lambda p, q: p - q)

    def __mul__(self, other: Reals | float) -> Reals:
        return self._with(other, lambda p, q: p * q)

    def __truediv__(self, other: Reals | float) -> Reals:
        return self._with(other, lambda p, q: p / q)

    def map(self, function: Callable[[arb], arb]) -> Reals:
        """A function of one real, entry by entry."""
        return Reals(self.shape, [function(_present(v)) for v in self.entries])

    def square(self) -> Reals:
        """x * x."""
        return self.map(lambda v: v * v)

    def sqrt(self) -> Reals:
        """Root; not finite where an entry may be negative."""
        return self.map(arb.sqrt)

    def reciprocal(self) -> Reals:
        """1 / x; not finite where x may be 0."""
        return self.map(lambda v: 1 / v)

    def exp(self) -> Reals:
        """Exponential; of minus infinity it is 0."""
        return Reals(self.shape, [arb(0) if v is None else v.exp() for v in self.entries])

    def sum(self, dim: int, *, keepdim: bool = False) -> Reals:
        """Sum over one dimension."""
        d = dim % self.ndim
        lanes = self._numbers().movedim(d, -1)
        totals = [
            sum((_present(self.entries[i]) for i in lane), arb(0))
            for lane in lanes.reshape(-1, lanes.shape[-1]).tolist()
        ]
        shape = list(self.shape)
        shape[d : d + 1] = [1] if keepdim else []
        return Reals(tuple(shape), list(totals))

    def mean(self, dim: int, *, keepdim: bool = False) -> Reals:
        """Mean over one dimension."""
        return self.sum(dim, keepdim=keepdim) / float(self.shape[dim])

    def __matmul__(self, other: Reals) -> Reals:
        """Matrix product; leading dimensions broadcast."""
        batch = torch.broadcast_shapes(self.shape[:-2], other.shape[:-2])
        (i, k), j = self.shape[-2:], other.shape[-1]
        a = self.expand((*batch, i, k)).entries
        b = other.expand((*batch, k, j)).entries
        out: list[arb | None] = []
        for number, _ in enumerate(product(*(range(s) for s in batch))):
            left = arb_mat(i, k, [_present(v) for v in a[number * i * k : (number + 1) * i * k]])
            right = arb_mat(k, j, [_present(v) for v in b[number * k * j : (number + 1) * k * j]])
            out += (left * right).entries()
        return Reals((*batch, i, j), out)


def _present(value: arb | None) -> arb:
    if value is None:
        raise ValueError("minus infinity outside a softmax")
    return value


def _both(function: Callable[[arb, arb], arb], p: arb | None, q: arb | None, additive: bool) -> arb | None:
    """Minus infinity plus anything stays what it is; any other use of it is refused."""
    if p is None or q is None:
        if additive:
            return None
        raise ValueError("minus infinity outside a softmax")
    return function(p, q)


def working_precision() -> AbstractContextManager[Any]:
    """Context in which all of this is to run."""
    return flint.ctx.workprec(BITS)
