r"""Tangents with one error for all of them: float64 midpoints, and a bound on the error's Frobenius norm.

A linear map of 2-norm s makes an error of Frobenius norm e into one of at most s e. Entry by entry the factor would be
the largest row sum, some :math:`\sqrt d` times as much at each layer.

Shapes: ``(k, *shape)``: k directions in front.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.norms import frobenius_bound, norm_bound, quick_norm_bound
from fpcheck.certify.rounding import TINY, gamma, inflate, root_up, up

__all__ = ["Tangents"]


@final
@dataclass(frozen=True, eq=False)
class Tangents:
    """All real tensors within Frobenius distance ``error`` of ``mid``.

    Args:
        mid: ``(k, *shape)`` float64.
        error: Bound on the distance, over all directions together.
        local: The part of it that arose since `fresh`: what one operator's own rounding does.
    """

    mid: Tensor
    error: float = 0.0
    local: float = 0.0

    @property
    def shape(self) -> torch.Size:
        """Shape of the midpoints."""
        return self.mid.shape

    def fresh(self) -> Tangents:
        """The same, with nothing counted as local."""
        return Tangents(self.mid, self.error)

    def _through(self, mid: Tensor, amplification: float, rounding: float) -> Tangents:
        """The image under a map that multiplies errors by at most ``amplification``, computed with an error."""
        return Tangents(
            mid,
            _total(_product(self.error, amplification), rounding),
            _total(_product(self.local, amplification), rounding),
        )

    def reshape(self, *shape: int) -> Tangents:
        """Reshape."""
        return Tangents(self.mid.reshape(*shape), self.error, self.local)

    def permute(self, *order: int) -> Tangents:
        """Permute the dimensions."""
        return Tangents(self.mid.permute(*order), self.error, self.local)

    @property
    def mT(self) -> Tangents:  # noqa: N802 (torch's name)
        """Transpose of the last two dimensions."""
        return Tangents(self.mid.mT, self.error, self.local)

    def expand(self, *shape: int) -> Tangents:
        """Broadcast: each copy brings the error again, so it grows with the root of their number."""
        wide = self.mid.expand(*shape)
        return self._through(wide, root_up(wide.numel() / max(self.mid.numel(), 1)), 0.0)

    def moved(self, index: Tensor) -> Tangents:
        """Entries of each direction picked by flat index, -1 for a zero."""
        flat = torch.cat([self.mid.reshape(self.shape[0], -1), torch.zeros((self.shape[0], 1), dtype=torch.float64)], 1)
        picked = flat[:, index.flatten()].reshape(self.shape[0], *index.shape)
        return self._through(picked, root_up(_copies(index)), 0.0)

    def gathered(self, index: Tensor, shape: Sequence[int]) -> Tangents:
        """The transpose of `moved`: each entry is added to where it came from, in a tensor of ``shape``."""
        size = math.prod(shape)
        out = torch.zeros((self.shape[0], size + 1), dtype=torch.float64)
        flat = torch.where(index < 0, size, index).flatten()
        out.index_add_(1, flat, self.mid.reshape(self.shape[0], -1))
        copies = _copies(index)
        # A sum of c entries is wrong by gamma_(c-1) times the sum of their moduli, at most root c times the norm.
        rounding = _product(gamma(max(copies - 1, 0)), _product(root_up(copies), _frobenius(self.mid)))
        mid = out[:, :size].reshape(self.shape[0], *shape)
        return self._through(mid, root_up(copies), _total(rounding, _underflow(mid, copies)) if copies > 1 else 0.0)

    def __neg__(self) -> Tangents:
        return Tangents(-self.mid, self.error, self.local)

    def __add__(self, other: Tangents) -> Tangents:
        shape = torch.broadcast_shapes(self.shape, other.shape)
        a, b = (t if t.shape == shape else t.expand(*shape) for t in (self, other))
        mid = a.mid + b.mid
        rounding = _rounded(mid, 1)
        return Tangents(mid, _total(a.error, b.error, rounding), _total(a.local, b.local, rounding))

    def __sub__(self, other: Tangents) -> Tangents:
        return self + -other

    def __mul__(self, factor: Ball | float) -> Tangents:
        """Times numbers that do not depend on the direction (broadcast)."""
        ball = factor if isinstance(factor, Ball) else Ball.exact(torch.tensor(float(factor), dtype=torch.float64))
        shape = torch.broadcast_shapes(self.shape, (1, *ball.shape) if ball.mid.ndim else ())
        t = self if self.shape == shape else self.expand(*shape)
        mid = t.mid * ball.mid
        largest = float(ball.magnitude().max()) if ball.mid.numel() else 0.0
        spread = float(ball.rad.max()) if ball.mid.numel() else 0.0
        return t._through(
            mid, largest, _total(_product(_frobenius(t.mid), spread) if spread else 0.0, _rounded(mid, 1))
        )

    def sum(self, dim: int, *, keepdim: bool = False) -> Tangents:
        """Sum over one dimension: the error grows with the root of the number of terms."""
        k = self.shape[dim]
        mid = self.mid.sum(dim, keepdim=keepdim)
        # Each sum of k is wrong by gamma_(k-1) times the sum of moduli, which is at most the root of k times the norm.
        rounding = _product(gamma(max(k - 1, 0)), _product(root_up(k), _frobenius(self.mid)))
        return self._through(mid, root_up(k), _total(rounding, _underflow(mid, k)))

    def mean(self, dim: int, *, keepdim: bool = False) -> Tangents:
        """Mean over one dimension."""
        total = self.sum(dim, keepdim=keepdim)
        mid = total.mid / self.shape[dim]
        return total._through(mid, up(1 / self.shape[dim]), _rounded(mid, 1))

    def __matmul__(self, matrix: Ball) -> Tangents:
        """``(*batch, r, k)`` times ``(*batch, k, j)``."""
        k = self.shape[-1]
        mid = self.mid @ matrix.mid
        size = _frobenius(self.mid)
        # |A E| <= |A|_F |E|_F for the radii, and gamma_k |A|_F |B|_F for the rounding.
        rounding = _total(
            _product(size, frobenius_bound(Ball.exact(matrix.rad))),
            _product(gamma(k), _product(size, frobenius_bound(matrix))),
            _underflow(mid, k),
        )
        return self._through(mid, _norm(matrix), rounding)

    def norm(self) -> float:
        """A bound on the Frobenius norm of what it stands for."""
        return _total(_frobenius(self.mid), self.error)


def _norm(matrix: Ball) -> float:
    """The best bound on the largest 2-norm of the batch that is worth its cost."""
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    if flat.shape[0] > 64:  # choice: of cost
        return quick_norm_bound(matrix)
    # A tensor's maximum keeps a NaN, which Python's own may lose.
    norms = torch.tensor([norm_bound(flat[i]) for i in range(flat.shape[0])], dtype=torch.float64)
    return float(norms.max()) if norms.numel() else 0.0


def _copies(index: Tensor) -> int:
    """How often the most frequent entry is picked."""
    used = index[index >= 0].flatten()
    return int(torch.bincount(used).max()) if used.numel() else 0


def _frobenius(mid: Tensor) -> float:
    return root_up(float(inflate(torch.dot(mid.reshape(-1), mid.reshape(-1)), mid.numel() + 1)))


def _rounded(mid: Tensor, roundings: int) -> float:
    return _total(_product(gamma(roundings), _frobenius(mid)), _underflow(mid, roundings))


def _underflow(mid: Tensor, roundings: int) -> float:
    return up(roundings * TINY * root_up(max(mid.numel(), 1)))


def _product(a: float, b: float) -> float:
    return up(a * b) + TINY if a and b else 0.0


def _total(*parts: float) -> float:
    return float(inflate(torch.tensor(parts, dtype=torch.float64).sum(), len(parts)))
