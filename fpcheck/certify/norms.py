r"""Proved upper bounds on the 2-norm of a matrix.

A singular value that a library computes proves nothing. What proves :math:`|M|_2 \le k` is a factorisation: if
:math:`k^2 I - M'M = R'R + E` with :math:`|E|_F \le \rho`, then :math:`x'M'Mx \le (k^2 + \rho) |x|^2`, whatever R is and
however it was found. Here R comes from a Cholesky factorisation, and the norm of E is bounded with its rounding
(Theorem R3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.rounding import TINY, U, gamma, inflate, root_up, up

__all__ = [
    "frobenius_bound",
    "gram_bound",
    "inverse_residual_bound",
    "norm_bound",
    "quick_norm_bound",
    "row_norm_bounds",
]

# choice: relative steps above the estimated eigenvalue at which the proof is tried; each costs one factorisation.
_STEPS = (1e-12, 1e-10, 1e-8, 1e-5, 1e-2)
# choice: the same where a percent or two do not matter, above a power iteration.
_ROUGH_STEPS = (1e-2, 5e-2, 0.2)
_ITERATIONS = 25  # choice: of that power iteration


def frobenius_bound(M: Ball) -> float:
    """An upper bound on the Frobenius norm.

    Guarantee: bound, rounding included.
    """
    size = M.magnitude()
    square = inflate((size * size).sum(), size.numel() + 1)
    return root_up(float(square))


def row_norm_bounds(M: Ball) -> Tensor:
    """Upper bounds on the Euclidean norms of the rows (last dimension), ``(*batch, rows)``.

    Guarantee: bound, rounding included.
    """
    size = M.magnitude()
    square = inflate((size * size).sum(-1), size.shape[-1] + 1)
    # A root that is too small by a few units in the last place becomes an upper bound by a larger step than that.
    return inflate(square.sqrt() * (1 + 2.0**-50), 1)


def quick_norm_bound(M: Ball) -> float:
    """An upper bound on the 2-norm of one matrix, or of each in a batch, from row and column sums or squares.

    Guarantee: bound, rounding included: the lesser of the Frobenius norm and the root of 1-norm times max-norm.
    Cost: O(size). Up to some root of n above the norm.
    """
    size = M.magnitude()
    rows = inflate(size.sum(-1), M.shape[-1]).amax(-1)
    columns = inflate(size.sum(-2), M.shape[-2]).amax(-1)
    square = torch.minimum(
        inflate((size * size).sum((-2, -1)), M.shape[-1] * M.shape[-2] + 1), inflate(rows * columns, 1)
    )
    return root_up(float(square.max())) if square.numel() else 0.0


def norm_bound(M: Ball, *, rough: bool = False) -> float:
    """An upper bound on the 2-norm of a matrix ``(rows, columns)``; infinite if nothing could be proved.

    Args:
        M: The matrix.
        rough: Start from a power iteration and be content with a percent or two: half the cost.

    Guarantee: bound, rounding included; relative excess about 1e-11 where the radii are small, 1e-2 if ``rough``.
    Cost: an eigenvalue computation and two products of the smaller side; O(n^3).
    Source: Theorem R3.
    """
    if M.mid.ndim != 2:
        raise ValueError(f"M.shape={tuple(M.shape)}; expected a matrix")
    crude = frobenius_bound(M)
    if not math.isfinite(crude) or crude == 0.0 or min(M.shape) == 1:
        return crude
    # A power of two brings the entries near 1, where squares neither overflow nor vanish. The product with it is exact
    # but for entries that underflow; `lost` below accounts for these.
    exponent = math.frexp(float(M.mid.abs().max()))[1]
    scale = math.ldexp(1.0, min(max(-exponent, -1000), 1000))  # choice: a normal number
    point = M.mid * scale
    spread = frobenius_bound(Ball.exact(M.rad))
    tall = point if M.shape[0] >= M.shape[1] else point.mT
    # |fl(M'M) - M'M|_F <= gamma_k |M|_F^2, and the entries that underflowed in scaling move M by TINY each.
    size = frobenius_bound(Ball.exact(point))
    lost = TINY * tall.numel() * (2 * size + 1)
    error = up(up(gamma(tall.shape[0]) * up(size * size)) + lost)
    proved = _gram_bound(tall.mT @ tall, error, rough=rough)
    if proved is None:
        return crude
    return min(crude, up(up(root_up(proved) / scale) + spread))


def gram_bound(A: Ball) -> float:
    """An upper bound on the largest eigenvalue of a symmetric positive semidefinite matrix; infinite if unproved.

    Guarantee: bound, rounding included.
    Source: Theorem R3.
    """
    found = _gram_bound(A.mid, frobenius_bound(Ball.exact(A.rad)), rough=False)
    return math.inf if found is None else found


def _gram_bound(A: Tensor, error: float, *, rough: bool) -> float | None:
    """``k + rho`` with ``k I - S = R'R + E``, |E|_F <= rho, for the symmetric part S of A; A is known to ``error``."""
    n = A.shape[0]
    symmetric = (A + A.mT) / 2
    largest = _power_iteration(symmetric) if rough else float(torch.linalg.eigvalsh(symmetric)[-1])
    if not (math.isfinite(largest) and math.isfinite(error)):
        return None
    # Halving is exact; the sum is wrong by u of itself.
    size = frobenius_bound(Ball.exact(symmetric))
    error = up(error + up(2 * U * size))
    for step in _ROUGH_STEPS if rough else _STEPS:
        level = largest * (1 + step) if largest > 0 else step
        shifted = -symmetric
        shifted.diagonal().add_(level)  # wrong by u of the diagonal's result
        R, info = torch.linalg.cholesky_ex(shifted, upper=True)
        if int(info) != 0:
            continue
        # The residual shifted - R'R, and what its two products and sums lost.
        factor = frobenius_bound(Ball.exact(R))
        residual = frobenius_bound(Ball.exact(shifted - R.mT @ R))
        sums = gamma(3) * up(frobenius_bound(Ball.exact(shifted)) + residual)
        lost = up(up(gamma(n) * up(factor * factor)) + up(sums))
        rho = up(up(residual + lost) + up(error + TINY * n * n))
        if math.isfinite(rho):
            return up(level + rho)
    return None


def _power_iteration(symmetric: Tensor) -> float:
    v = symmetric.diagonal().clamp_min(0) + 2.0**-40
    size = 0.0
    for _ in range(_ITERATIONS):
        v = v / v.norm()
        w = symmetric @ v
        size, v = float(v @ w), w
    return size


def inverse_residual_bound(L: Ball, X: Ball) -> float:
    """An upper bound on ``|I - L X|_F``; below 1 it proves L invertible, with ``L^-1 = X (I - R)^-1``.

    Guarantee: bound, rounding included.
    Source: Theorem R2.
    """
    return frobenius_bound(Ball.exact(torch.eye(L.shape[0], dtype=torch.float64)) - L @ X)
