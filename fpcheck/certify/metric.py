r"""Norms in which a loop contracts although its Jacobian's 2-norm is above 1.

A norm is :math:`|v|_P = |L v|_2` with an invertible matrix L of floats. Nothing is believed about how L was found: what
counts is the proved bound on :math:`|L J L^{-1}|_2`.

The dual Stein metric of a level k: X solves :math:`X - (J/k) X (J/k)' = I`, and L is the inverse of its Cholesky
factor; then :math:`|L J L^{-1}|_2 \le k` in exact arithmetic (Theorem B10). Among the metrics tried it gives the
largest balls: X is large only where J amplifies what it is fed with.

Shapes: ``(n, n)`` float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.norms import inverse_residual_bound, norm_bound
from fpcheck.certify.rounding import down, up

__all__ = ["Metric", "dual_stein", "euclidean", "proved_metric", "stein"]

# choice: a doubling step squares the remainder, so 60 reach any level that is below 1 by more than rounding.
_DOUBLINGS = 60


@final
@dataclass(frozen=True, eq=False)
class Metric:
    """The norm ``|v|_P = |L v|_2``, with what was proved about L.

    Attributes:
        L: The matrix, floats.
        inverse: An approximate inverse X, floats.
        defect: Bound on ``|I - L X|_F``, below 1: so L is invertible and ``L^-1 = X (I - R)^-1`` (Theorem R2).
        norm: Bound on ``|L|_2``: a Euclidean ball of radius r / norm lies in the P-ball of radius r.
        inverse_norm: Bound on ``|L^-1|_2``: the P-ball of radius r lies in a Euclidean ball of radius r inverse_norm.
    """

    L: Tensor
    inverse: Tensor
    defect: float
    norm: float
    inverse_norm: float

    def size(self, v: Ball) -> float:
        """An upper bound on ``|v|_P`` of a vector ``(n)``, or the operator bound of ``L v`` for columns ``(n, m)``."""
        columns = v if v.mid.ndim == 2 else v.reshape(-1, 1)
        return norm_bound(Ball.exact(self.L) @ columns)

    def operator_norm(self, J: Ball, error: float = 0.0) -> float:
        """An upper bound on ``|L J L^-1|_2`` for every J within ``error`` (Frobenius) of the ball.

        Guarantee: bound, rounding included.
        Source: Theorem R2.
        """
        inside = norm_bound(Ball.exact(self.L) @ J @ Ball.exact(self.inverse))
        return up(up(inside / down(1 - self.defect)) + up(up(self.norm * error) * self.inverse_norm))


def proved_metric(L: Tensor, inverse: Tensor) -> Metric | None:
    """The metric of a matrix of floats, or None where its invertibility could not be proved."""
    if not (bool(L.isfinite().all()) and bool(inverse.isfinite().all())):
        return None
    exact, approximate = Ball.exact(L), Ball.exact(inverse)
    defect = inverse_residual_bound(exact, approximate)
    if not defect < 1:
        return None
    inverse_norm = up(norm_bound(approximate) / down(1 - defect))
    return Metric(L, inverse, defect, norm_bound(exact), inverse_norm)


def euclidean(n: int) -> Metric:
    """The Euclidean norm."""
    eye = torch.eye(n, dtype=torch.float64)
    return Metric(eye, eye, 0.0, 1.0, 1.0)


def dual_stein(J: Tensor, level: float, *, source: Tensor | None = None) -> Metric | None:
    """The metric of ``X - (J/level) X (J/level)' = source`` (default: the identity); None if level is too small."""
    X = _series(J / level, torch.eye(J.shape[0], dtype=torch.float64) if source is None else source)
    if X is None:
        return None
    factor, info = torch.linalg.cholesky_ex(X)
    if int(info) != 0:
        return None
    # |L^-1|_2 = 1 makes the P-norm at least the Euclidean one.
    factor = factor / torch.linalg.matrix_norm(factor, 2)
    eye = torch.eye(J.shape[0], dtype=torch.float64)
    return proved_metric(torch.linalg.solve_triangular(factor, eye, upper=False), factor)


def stein(J: Tensor, level: float) -> Metric | None:
    """The metric of ``(J/level)' P (J/level) - P + I = 0``; None if level is too small."""
    P = _series(J.mT / level, torch.eye(J.shape[0], dtype=torch.float64))
    if P is None:
        return None
    factor, info = torch.linalg.cholesky_ex(P, upper=True)
    if int(info) != 0:
        return None
    factor = factor / torch.linalg.svdvals(factor)[-1]
    eye = torch.eye(J.shape[0], dtype=torch.float64)
    return proved_metric(factor, torch.linalg.solve_triangular(factor, eye, upper=True))


def _series(A: Tensor, source: Tensor) -> Tensor | None:
    """The sum of ``A^j source A'^j`` by doubling; None if it does not converge."""
    total = source
    for _ in range(_DOUBLINGS):
        more = A @ total @ A.mT
        if not bool(more.isfinite().all()):
            return None
        grown = total + more
        size = float(torch.linalg.matrix_norm(grown))
        if not math.isfinite(size):
            return None
        if float(torch.linalg.matrix_norm(more)) <= 1e-16 * size:  # choice: settled
            return (grown + grown.mT) / 2
        total, A = grown, A @ A
    return None
