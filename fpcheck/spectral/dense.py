"""Dense eigenvalues with their errors, of one matrix at a time.

Symbols: J Jacobian ``(n, n)`` of one sample, M where it is not zero, l eigenvalue, x its right eigenvector of unit
length, y its left eigenvector scaled to ``y^H x = 1`` (a row of the inverse of the matrix of all x).

Errors are first order. J comes with two: ``delta``, of LAPACK, anywhere in the matrix, and ``gamma``, of
differentiation, only where J is not zero: entries that are zero by structure, such as those of a causal block, have
no rounding. An eigenvalue of J is known to ``delta |y| + gamma sqrt(sum over M of |y_j x_k|^2)``. Where that is no
longer small (a defective eigenvalue has an infinite y) the error is read off a second decomposition, of J with a
random perturbation of that size. An ill-conditioned figure comes with a large error; nothing is left out.

Source: first-order perturbation of eigenvalues: Wilkinson (1965), chapter 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import scipy.optimize
import torch
from torch import Tensor

from fpcheck.errors import FpcheckError
from fpcheck.spectral.structure import diagonal_blocks

__all__ = [
    "BACKWARD",
    "FIRST_ORDER_LIMIT",
    "dense_figures",
    "eigenvalues_with_errors",
    "first_order",
    "one_thread",
    "sorted_by_modulus",
]

BACKWARD = 10.0
"""Backward error of LAPACK's eigenvalue and singular value routines in units of ``eps |J|_F``. Typically below 1; the
rest is for defective eigenvalues, whose first-order error is too small by the size of their Jordan block."""

FIRST_ORDER_LIMIT = 1e-3
"""First-order theory is given up where it predicts an error larger than this, relative to ``|J|_2``."""


def dense_figures(i: int, J: Tensor, delta: float, gamma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sorted eigenvalues with their errors, the 2-norm and the log-norm of sample i."""
    try:
        norm = torch.linalg.matrix_norm(J, 2)
        log_norm = torch.linalg.eigvalsh((J + J.T) / 2)[-1]
        lam, err = _by_blocks(J, delta, gamma, float(norm))
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # public, but missing in its stub
        raise FpcheckError(f"LAPACK did not converge on the Jacobian of sample {i} (n={len(J)}): {error}") from error
    order = sorted_by_modulus(lam)
    return lam[order], err[order], norm, log_norm


def sorted_by_modulus(lam: Tensor) -> Tensor:
    """Order of ``(n,)`` eigenvalues: by modulus, largest first; equal moduli by real part; a pair by imaginary part."""
    # Stable sorts, least important key first.
    order = torch.arange(len(lam), device=lam.device)
    for key in (lam.imag, lam.real, lam.abs()):
        order = order[key[order].argsort(descending=True, stable=True)]
    return order


def _by_blocks(J: Tensor, delta: float, gamma: float, norm: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the diagonal blocks that J's zeros leave, each with the errors of its own block."""
    size = float(torch.linalg.vector_norm(J)) or 1.0
    parts = []
    for index in diagonal_blocks(J):
        A = J[index][:, index]
        share = float(torch.linalg.vector_norm(A)) / size
        # LAPACK's backward error goes with the block; that of differentiation may sit in it altogether.
        parts.append(eigenvalues_with_errors(A, delta * share, gamma, norm))
    lam, err = zip(*parts, strict=True)
    return torch.cat(lam), torch.cat(err)


def eigenvalues_with_errors(J: Tensor, delta: float, gamma: float, norm: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues of one matrix, in LAPACK's order, and their errors.

    Args:
        J: ``(n, n)`` float64 on the CPU.
        delta: Size of an error anywhere in J.
        gamma: Size of an error where J is not zero.
        norm: 2-norm of the matrix that J is a part of.
    """
    mask = (J != 0).double()
    lam, err = first_order(J, mask, delta, gamma)
    far = ~(err <= FIRST_ORDER_LIMIT * norm)
    if bool(far.any()):
        # k eigenvalues on a circle of radius r, where a defective one was, have first-order errors far below r when
        # nothing but the rounding of LAPACK spread them, and may have been returned exactly (a triangular J). A
        # random E of size delta has only about delta / n along any one direction, so the error delta / (k (delta /
        # n)^(1 - 1/k)) of the eigenvalues that it spreads is n / k >= 1 times their radius: it covers both.
        generator = torch.Generator().manual_seed(0)
        E = torch.randn(J.shape, generator=generator, dtype=torch.float64)
        F = E * mask
        E = E * (delta / torch.linalg.vector_norm(E)) + F * (gamma / torch.linalg.vector_norm(F))
        moved, moved_err = first_order(J + E, mask, delta, gamma)
        # One to one: a well-conditioned eigenvalue may lie in the same place as a defective one.
        distance = (lam[:, None] - moved).abs()
        partner = torch.from_numpy(scipy.optimize.linear_sum_assignment(distance.numpy())[1])
        measured = torch.maximum(distance[range(len(J)), partner], moved_err[partner])
        # No eigenvalue moves further than this, whatever its condition (Elsner 1985).
        size = torch.linalg.vector_norm(E).item()
        furthest = (2 * norm + size) ** (1 - 1 / len(J)) * size ** (1 / len(J))
        err[far] = torch.minimum(err, measured.clamp(max=furthest))[far]
    return lam, err


def first_order(J: Tensor, mask: Tensor, delta: Tensor | float, gamma: Tensor | float) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(*batch, n)`` and their first-order errors, infinite where eigenvectors are dependent.

    Args:
        J: ``(*batch, n, n)``.
        mask: 1 where J is not zero, else 0, like J.
        delta: Size of an error anywhere in J, a number or ``(*batch, 1)``.
        gamma: Size of an error where J is not zero, likewise.
    """
    lam, X = torch.linalg.eig(J)
    Y, singular = torch.linalg.inv_ex(X)
    y2, x2 = Y.abs().square(), X.abs().square()
    err = delta * y2.sum(-1).sqrt() + gamma * ((y2 @ mask) * x2.mT).sum(-1).sqrt()
    err = torch.where(singular.bool().unsqueeze(-1), torch.inf, err)
    return lam, err.nan_to_num(nan=torch.inf, posinf=torch.inf)


@contextmanager
def one_thread() -> Iterator[None]:
    """LAPACK's eigenvalue routines on one thread.

    At these sizes a second thread gains little on an idle machine, and on a busy one the threads wait for each
    other: n = 768 on two cores beside two other jobs took 20 s instead of 1 s.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
