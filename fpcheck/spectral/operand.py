"""What a function of dense matrices is given: tensors, operators to write out, or matrices with a known error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from fpcheck.errors import FpcheckError, InputError, NonFiniteError
from fpcheck.spectral.dense import BACKWARD, one_thread
from fpcheck.spectral.jacobian import frobenius
from fpcheck.spectral.operator import DEFAULT_MAX_BYTES, AbstractOperator, MatrixOperator, where

__all__ = ["DenseMatrices", "Matrices", "dense_matrices", "lapack"]

# Squares and products of entries must stay within float64.
_LARGEST_ENTRY = 1e100


@final
@dataclass(frozen=True, eq=False)
class DenseMatrices:
    """Matrices written out, and how well they are known.

    Attributes:
        A: ``(B, n, n)`` float64.
        delta: Estimate, in the 2-norm, of everything that is wrong with each, ``(B,)`` float64: the rounding of J, and
            the backward error of linear algebra with it.
    """

    A: Tensor
    delta: Tensor

    @classmethod
    def of(cls, A: Tensor, rounding: Tensor) -> DenseMatrices:
        """Matrices ``(B, n, n)`` with ``(B,)`` roundings of their own; ten of float64 join them for LAPACK."""
        A = A.double()
        return cls(A, rounding.to(A) + BACKWARD * torch.finfo(torch.float64).eps * frobenius(A))


Matrices = Tensor | AbstractOperator | DenseMatrices
"""``(B, n, n)`` or ``(n, n)`` float32 or float64, taken as exact; an operator; or matrices with a known error."""


def dense_matrices(J: Matrices, *, each: int, once: int, max_n: int | None = None) -> DenseMatrices:
    """The matrices in float64, written out if they are not.

    Args:
        J: What the caller was given.
        each: Float64 matrices of size n that the caller needs for each sample, these included.
        once: What it needs besides, whatever the batch size.
        max_n: Largest n that the caller takes.

    Raises:
        InputError: Wrong type or shape, or too large; before any work.
        NonFiniteError: NaN or inf.
    """
    given = J if isinstance(J, (AbstractOperator, DenseMatrices)) else MatrixOperator(J)
    B, n = (len(given.A), given.A.shape[1]) if isinstance(given, DenseMatrices) else (given.batch_size, given.n)
    if max_n is not None and n > max_n:
        raise InputError(
            f"n={n}; expected n <= {max_n}: pseudospectra take dense eigenvalue problems of size 2 n. For larger ones "
            "kreiss_constant and transient_growth tell what perturbations do"
        )
    need = 8 * n * n * (B * each + once)
    if need > DEFAULT_MAX_BYTES:
        fit = (DEFAULT_MAX_BYTES // (8 * n * n) - once) // each
        advice = f"take at most {fit} sample(s) at once (select)" if fit >= 1 else "not even one sample fits"
        raise InputError(
            f"{B} dense matrices with n={n} need {need / 2**30:.3g} GiB with their workspace; "
            f"{DEFAULT_MAX_BYTES / 2**30:.3g} GiB are allowed; {advice}"
        )
    if isinstance(given, DenseMatrices):
        return given
    A = given.dense()
    bad = ~torch.isfinite(A).flatten(1).all(1)
    if bool(bad.any()):
        raise NonFiniteError(f"the matrix {where(bad)} holds NaN or inf; expected finite entries")
    largest = float(A.abs().amax())
    if largest > _LARGEST_ENTRY:
        raise InputError(
            f"the largest entry of J is {largest:.1e}; expected at most {_LARGEST_ENTRY:.0e}, since squares overflow. "
            "Such a loop expands without end; scale J if only its shape is of interest"
        )
    return DenseMatrices.of(A, given.rounding())


@contextmanager
def lapack() -> Iterator[None]:
    """LAPACK on one thread (:func:`fpcheck.spectral.dense.one_thread`), its failures as errors of this library.

    Raises:
        FpcheckError: It did not converge.
    """
    try:
        with one_thread():
            yield
    except (torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:  # type: ignore[attr-defined]  # missing in its stub
        raise FpcheckError(f"LAPACK did not converge on these matrices: {error}") from error
