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
from fpcheck.errors import InputError

__all__ = ["DualStein", "Metric", "diagonal", "dual_stein", "euclidean", "per_token", "proved_metric", "stein"]

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


def diagonal(weights: Tensor) -> Metric | None:
    """The norm ``|diag(weights) v|_2``; None where a weight is not positive and finite."""
    if not bool((weights > 0).all() and weights.isfinite().all()):
        return None
    weights = weights.detach().to(torch.float64) / weights.min()
    return proved_metric(torch.diag(weights), torch.diag(1 / weights))


@final
class DualStein:
    """The metrics of ``X - (J/level) X (J/level)' = I + b d d'``: with b > 0, balls that are longer in direction d.

    Whatever the right-hand side, ``|L J L^-1|_2`` is at most level in exact arithmetic (Theorem B10). An axis that is
    longer where the loop comes from costs little: it is one direction among many in which the nodes move.

    Args:
        J: ``(n, n)``.
        level: Contraction that is aimed at.
    """

    def __init__(self, J: Tensor, level: float) -> None:
        self._step = J / level
        self._plain = _series(self._step, torch.eye(J.shape[0], dtype=torch.float64))

    def metric(self, *, along: Tensor | None = None, longer: float = 1.0) -> Metric | None:
        """The metric, with the axis through ``along`` about ``longer`` times as long; None if level is too small."""
        X = self._plain
        if X is not None and along is not None:
            d = along / along.norm()
            more = _series(self._step, torch.outer(d, d))
            # X + b d d' has d'(X + b d d')^-1 d = q / (1 + b q) for q = d'X^-1 d.
            q = float(d @ torch.linalg.solve(X, d))
            X = None if more is None else X + (longer**2 - 1) / q * more
        if X is None:
            return None
        factor, info = torch.linalg.cholesky_ex(X)
        if int(info) != 0:
            return None
        # |L^-1|_2 = 1 makes the P-norm at least the Euclidean one.
        factor = factor / torch.linalg.matrix_norm(factor, 2)
        eye = torch.eye(X.shape[0], dtype=torch.float64)
        return proved_metric(torch.linalg.solve_triangular(factor, eye, upper=False), factor)


def dual_stein(J: Tensor, level: float) -> Metric | None:
    """The metric of ``X - (J/level) X (J/level)' = I``; None if level is too small."""
    return DualStein(J, level).metric()


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


def per_token(J: Tensor, level: float, tokens: int, *, decay: float) -> Metric | None:
    """Dual Stein metrics of the diagonal blocks, one a token, for a step in which no token sees a later one.

    Args:
        J: ``(n, n)``, tokens in order; block lower triangular for a causal loop.
        level: Contraction aimed at within each token.
        tokens: Number of diagonal blocks.
        decay: Below 1: each token counts that much less than the one before it, so that what it takes from earlier
            tokens counts little.

    Returns:
        The metric, None if level is too small for a block. In exact arithmetic ``|L J L^-1|_2`` tends to at most level
        as ``decay`` tends to 0 for a causal step; for any other J the metric is as sound, and unlikely to be good.

    Raises:
        InputError: ``tokens`` does not divide n.
    """
    n = J.shape[0]
    if tokens < 1 or n % tokens:
        raise InputError(f"tokens={tokens}; expected a divisor of n={n}, the numbers of a state")
    d = n // tokens
    inverse = torch.zeros_like(J)
    for t in range(tokens):
        own = slice(t * d, (t + 1) * d)
        X = _series(J[own, own] / level, torch.eye(d, dtype=torch.float64))
        if X is None:
            return None
        factor, info = torch.linalg.cholesky_ex(X)
        if int(info) != 0:
            return None
        inverse[own, own] = factor / decay**t
    inverse = inverse / torch.linalg.matrix_norm(inverse, 2)
    eye = torch.eye(J.shape[0], dtype=torch.float64)
    return proved_metric(torch.linalg.solve_triangular(inverse, eye, upper=False), inverse)
