r"""Matrices known up to an error in the Frobenius norm, and proofs of their norms.

Products are float64 and run in BLAS; :math:`|AB - fl(AB)|_F \le \gamma_k |A|_F |B|_F` for an inner length k, in every
order of summation (Theorem R1). Figures about errors are sums, products and roots of non-negative numbers, and each is
enlarged by 2^-30 of itself, which makes up for 2^20 roundings.

Source: Theorems R1, R2 and R3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.sparse.linalg import ArpackError, eigsh

__all__ = ["ROOM", "TINY", "Cloud", "Floats", "frobenius", "gamma", "gram_bound", "norm_bound", "product_loss", "root"]

Floats = NDArray[np.float64]

ROOM = 1 + 2.0**-30
"""Makes up for 2^20 roundings of 2^-53 each in a chain of non-negative numbers."""
TINY = 2.0**-1020
"""Above what an operation loses to underflow, flushed to zero or not."""
# choice: relative steps above the largest eigenvalue at which a proof is tried.
_STEPS = (1e-11, 1e-8, 1e-5, 1e-2)
# choice: rows from which on an iteration finds the largest eigenvalue sooner than a factorisation.
_MANY = 200


def gamma(k: int) -> float:
    """A bound on k roundings in a row, k u / (1 - k u), for k below 2^40 (Theorem R1)."""
    return k * 2.0**-53 * (1 + 2.0**-12)


def root(value: float) -> float:
    """A bound on a square root."""
    return math.sqrt(value) * ROOM


def frobenius(M: Floats) -> float:
    """A bound on the Frobenius norm."""
    flat = M.ravel()
    return math.sqrt(float(flat @ flat) * (1 + 2 * gamma(flat.size)) + flat.size * TINY) * ROOM


@final
@dataclass(frozen=True, eq=False)
class Cloud:
    """All real matrices ``(rows, columns)`` within ``error`` of ``mid`` in the Frobenius norm."""

    mid: Floats
    error: float

    def size(self) -> float:
        """A bound on the Frobenius norms."""
        return (frobenius(self.mid) + self.error) * ROOM

    def norm(self) -> float:
        """A bound on the 2-norms."""
        return (norm_bound(self.mid) + self.error) * ROOM

    def __matmul__(self, other: Cloud) -> Cloud:
        return Cloud(self.mid @ other.mid, _product_error(self, other))

    def weighted(self, left: Floats | None, right: Floats | None) -> Cloud:
        """``diag(left) M diag(right)`` for non-negative weights."""
        mid, error = self.mid, self.error
        if left is not None:
            mid, error = mid * left[:, None], error * float(left.max()) * ROOM
        if right is not None:
            mid, error = mid * right[None, :], error * float(right.max()) * ROOM
        return Cloud(mid, (error + gamma(2) * frobenius(mid) + mid.size * TINY) * ROOM)

    @property
    def T(self) -> Cloud:  # noqa: N802 (numpy's name)
        """The transposes."""
        return Cloud(self.mid.T, self.error)


def _product_error(a: Cloud, b: Cloud) -> float:
    inner = a.mid.shape[1]
    size_a, size_b = frobenius(a.mid), frobenius(b.mid)
    # |A B - a b| <= |A - a| |B| + |a| |B - b|; the 2-norms of the midpoints are at most their Frobenius norms.
    spread = a.error * (_two(b.mid, size_b) + b.error) + _two(a.mid, size_a) * b.error
    return (spread + gamma(inner) * size_a * size_b + a.mid.shape[0] * b.mid.shape[1] * inner * TINY) * ROOM


def _two(M: Floats, size: float) -> float:
    """A cheap bound on the 2-norm."""
    moduli = np.abs(M)
    sums = float(moduli.sum(0).max(initial=0.0)) * float(moduli.sum(1).max(initial=0.0))
    return min(size, root(sums * ROOM))


def norm_bound(M: Floats) -> float:
    """A proved bound on the 2-norm of a matrix of floats; not finite where the matrix is not.

    With A = M'M (or MM'), R a Cholesky factor of B = k I - A and E = B - R'R: x'Ax = k |x|^2 - |Rx|^2 - x'Ex, so the
    square of the norm is at most k + |E|_F, and what the computation of A, B and E lost is added. Where R comes from
    does not matter.

    Source: Theorem R3.
    """
    size = frobenius(M)
    if not math.isfinite(size) or size == 0.0 or min(M.shape) <= 1:
        return size
    crude = _two(M, size)
    tall = M if M.shape[0] >= M.shape[1] else M.T
    scale = 2.0 ** -math.frexp(float(np.abs(tall).max()))[1]
    if not 2.0**-200 < scale < 2.0**200:  # choice: far from underflow of squares
        return crude
    tall = tall * scale  # exact
    return min(crude, root(gram_bound(tall.T @ tall, product_loss(tall))) / scale)


def product_loss(tall: Floats) -> float:
    """A bound on what rounding moved the computed M'M by, in the Frobenius norm."""
    size = frobenius(tall)
    return (gamma(tall.shape[0]) * size * size + tall.size * tall.shape[1] * TINY) * ROOM


def gram_bound(gram: Floats, error: float) -> float:
    """A proved bound on the largest eigenvalue of every symmetric matrix within ``error`` of a matrix of floats.

    Infinite where no factorisation was found. Source: Theorem R3.
    """
    n = gram.shape[0]
    if not (math.isfinite(error) and bool(np.isfinite(gram).all())):
        return math.inf
    gram = (gram + gram.T) / 2
    lost = error + gamma(2) * frobenius(gram)
    for level in _levels(gram):
        shifted = -gram
        shifted.flat[:: n + 1] += level  # one rounding each
        factor, info = linalg.lapack.dpotrf(shifted, lower=0, clean=1)
        if info != 0:
            continue
        product = factor.T @ factor
        size_r, size_b, size_p = frobenius(factor), frobenius(shifted), frobenius(product)
        off = frobenius(shifted - product) + gamma(n) * size_r * size_r + gamma(2) * (size_p + size_b)
        found = (level + off + lost + n * n * n * TINY) * ROOM
        if math.isfinite(found):
            return found
    # Without a proof the sum of the moduli of a row does, for a symmetric matrix.
    return (float(np.abs(gram).sum(0).max()) * (1 + 2 * gamma(n)) + lost) * ROOM


def _levels(gram: Floats) -> Iterator[float]:
    """Numbers above about the largest eigenvalue, at which a proof may succeed; nothing rests on them."""
    n = gram.shape[0]
    if n >= _MANY:
        try:
            found = eigsh(gram, k=1, which="LA", v0=np.ones(n), return_eigenvectors=False, tol=_STEPS[0])
            yield from _above(float(found[0]))
        except (ArpackError, ValueError):
            pass  # the slower way does
    try:
        found = linalg.eigh(gram, eigvals_only=True, subset_by_index=(n - 1, n - 1), check_finite=False)
        yield from _above(float(found[0]))
    except (linalg.LinAlgError, ValueError):
        yield from _above(float(np.abs(gram).sum(0).max()))


def _above(largest: float) -> Iterator[float]:
    return (largest * (1 + step) if largest > 0 else TINY for step in _STEPS)
