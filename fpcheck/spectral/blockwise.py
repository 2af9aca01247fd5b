"""All eigenvalues of a loop whose Jacobian falls apart over tokens, without forming it.

Only the diagonal blocks count (:mod:`fpcheck.spectral.structure`). Each row of J costs one product; of what comes back
only the columns of its own block are kept. So n products give T blocks of ``d x d`` instead of one ``n x n`` matrix,
and eigenvalues at cost ``T d^3`` instead of ``T^3 d^3``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from fpcheck.errors import FpcheckError, InputError
from fpcheck.loop import Loop
from fpcheck.spectral.dense import (
    BACKWARD,
    FIRST_ORDER_LIMIT,
    eigenvalues_with_errors,
    first_order,
    one_thread,
    sorted_by_modulus,
)
from fpcheck.spectral.operator import DEFAULT_MAX_BYTES, JacobianOperator, chunk_columns
from fpcheck.spectral.structure import BOTH, Structure, diagonal_blocks, rows, structure_of

__all__ = ["BlockEigenvalues", "block_eigenvalues", "blockwise"]

# Room for the eigenvalues of a block, in float64 matrices: a copy, its Schur form, complex eigenvectors and their
# inverse, squares of their moduli and a product of these.
_LAPACK_MATRICES = 12

# Room for all blocks that are taken at once.
_TOGETHER_BYTES = 16 * 2**20


@final
@dataclass(frozen=True, eq=False)
class BlockEigenvalues:
    """All eigenvalues of a loop's Jacobian, block by block. Estimates, none is a bound.

    Attributes:
        values: ``(B, n)`` complex128, by modulus, largest first; of a pair the one above the axis first.
        error: Error estimate of each, ``(B, n)`` float64.
        structure: What the Jacobian falls apart into.
        products: Products with J and J' per sample, those for the structure included.
    """

    values: Tensor = field(repr=False)
    error: Tensor = field(repr=False)
    structure: Structure
    products: int

    @property
    def path(self) -> str:
        """Which way was taken, in words."""
        return self.structure.path

    def __len__(self) -> int:
        return len(self.values)


def block_eigenvalues(
    loop: Loop, z: Tensor, *, token_dim: int = 1, max_bytes: int = DEFAULT_MAX_BYTES
) -> BlockEigenvalues:
    """All eigenvalues of the loop's Jacobian at ``z``, from the blocks that it falls apart into over tokens.

    The structure is verified first (:func:`fpcheck.spectral.find_structure`). Errors are those of
    :func:`fpcheck.spectrum`, of each block by itself: entries between blocks are zero by structure and have no
    rounding. Where there is no structure the one block is the dense Jacobian.

    Args:
        loop: The map.
        z: State ``(B, *state)``.
        token_dim: Dimension of z that counts tokens.
        max_bytes: Refuse blocks that need more than this, LAPACK's workspace included; after the T products that
            tell how large they are, before the n products that fill them.

    Raises:
        InputError: z is no state of the loop, has no such dimension, or more than ``max_bytes``.
        NonFiniteError: ``z``, ``F(z)`` or a product holds NaN or inf.
        BlockError: The loop cannot be differentiated.
        FpcheckError: LAPACK did not converge.

    Guarantee: estimate.
    Cost: that of :func:`fpcheck.spectral.find_structure`, and n products and about ``40 d^3`` operations for each of T
    blocks of ``d x d``; no more products and two blocks where tokens are symmetric.

    Example:
        >>> loop = Loop(lambda z: z.cumsum(1) / 4, z0=torch.zeros(1, 3, 2))
        >>> found = block_eigenvalues(loop, torch.zeros(1, 3, 2))
        >>> found.path, found.values[0].real.tolist()
        ('causal: 3 blocks of 2', [0.25, 0.25, 0.25, 0.25, 0.25, 0.25])
    """
    return blockwise(JacobianOperator(loop, z), token_dim=token_dim, max_bytes=max_bytes)


def blockwise(op: JacobianOperator, *, token_dim: int = 1, max_bytes: int = DEFAULT_MAX_BYTES) -> BlockEigenvalues:
    """:func:`block_eigenvalues` for an operator that is there already."""
    structure = structure_of(op, token_dim=token_dim)
    entries = structure.entries.to(op.device)
    gamma = op.rounding().cpu()
    if structure.symmetric is None:
        index = [entries[part.to(op.device)].flatten() for part in structure.components]
        _require_memory(op, [len(part) for part in index], max_bytes)
        blocks, products = _diagonal_blocks(op, index), op.n
    else:
        (A, C), T = structure.symmetric, len(entries)
        _require_memory(op, [A.shape[1]] * 2, max_bytes)
        blocks, products = [torch.stack([A, A + T * C], dim=1)], 0
        # Tokens that act alike up to rounding may differ by as much as was let pass.
        gamma = (1 + BOTH) * gamma
    with one_thread():
        parts = [_eigenvalues(same, gamma) for same in blocks]
    if structure.symmetric is not None:
        times = torch.tensor([T - 1, 1])
        parts = [(lam.repeat_interleave(times, 1), err.repeat_interleave(times, 1)) for lam, err in parts]
    lam, err = (torch.cat([figure.flatten(1) for figure in part], dim=1) for part in zip(*parts, strict=True))
    order = torch.stack([sorted_by_modulus(one) for one in lam])
    return BlockEigenvalues(lam.gather(1, order), err.gather(1, order), structure, structure.products + products)


def _diagonal_blocks(op: JacobianOperator, index: list[Tensor]) -> list[Tensor]:
    """``J[index, index]`` for each index set, those of one size e together, ``(B, K, e, e)``; one product per row."""
    blocks = []
    for e in sorted({len(part) for part in index}):
        same = torch.stack([part for part in index if len(part) == e])
        K = len(same)
        J = torch.zeros(op.batch_size, K, e, e, dtype=op.dtype, device=op.device)
        blocks.append(J)
        # Of each row: its block, and its place there.
        each = torch.arange(K * e, device=op.device)
        for some in each.split(chunk_columns(op)):
            k, i = some // e, some % e
            J[:, k, i] = rows(op, same[k, i]).gather(2, same[k].expand(op.batch_size, -1, -1))
    return blocks


def _eigenvalues(A: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and errors ``(B, K, e)`` of K blocks ``(B, K, e, e)``, gamma ``(B,)``."""
    B, K, e, _ = A.shape
    size = _together(B * K, e)
    some = zip(A.flatten(0, 1).split(size), gamma.repeat_interleave(K).split(size), strict=True)
    parts = [_some_eigenvalues(part.double().cpu(), errors) for part, errors in some]
    lam, err = (torch.cat(part).view(B, K, e) for part in zip(*parts, strict=True))
    return lam, err


def _some_eigenvalues(A: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Of blocks ``(N, e, e)``."""
    delta = BACKWARD * torch.finfo(torch.float64).eps * torch.linalg.vector_norm(A, dim=(1, 2))
    # The plain case, for all at once: no zeros that might split a block further, first-order errors small. A column
    # is no longer than the 2-norm.
    norm = torch.linalg.vector_norm(A, dim=1).amax(1)
    try:
        lam, err = first_order(A, torch.ones_like(A), delta.unsqueeze(1), gamma.unsqueeze(1))
        plain = (A != 0).all(2).all(1) & (err.amax(1) <= FIRST_ORDER_LIMIT * norm)
        for i in (~plain).nonzero().flatten().tolist():
            lam[i], err[i] = _one(A[i], float(gamma[i]))
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # public, but missing in its stub
        raise FpcheckError(
            f"LAPACK did not converge on a block of the Jacobian (e={A.shape[1]} rows): {error}"
        ) from error
    return lam, err


def _one(A: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues of one block; zeros within it may split it further."""
    norm = float(torch.linalg.matrix_norm(A, 2))
    parts = []
    for index in diagonal_blocks(A):
        part = A[index][:, index]
        delta = BACKWARD * torch.finfo(torch.float64).eps * float(torch.linalg.vector_norm(part))
        parts.append(eigenvalues_with_errors(part, delta, gamma, norm))
    lam, err = zip(*parts, strict=True)
    return torch.cat(lam), torch.cat(err)


def _together(N: int, e: int) -> int:
    """How many of N blocks of e rows LAPACK takes at once: a call costs as much as a block of some ten rows."""
    return min(N, max(1, _TOGETHER_BYTES // (_LAPACK_MATRICES * 8 * e * e)))


def _require_memory(op: JacobianOperator, sizes: list[int], max_bytes: int) -> None:
    B = op.batch_size
    each = sum(e * e for e in sizes) * op.dtype.itemsize
    workspace = max(_together(B * sizes.count(e), e) * _LAPACK_MATRICES * 8 * e * e for e in set(sizes))
    need = B * each + workspace
    if need <= max_bytes:
        return
    fit = max(0, (max_bytes - workspace) // each)
    advice = f"take at most {fit} sample(s) at once (select)" if fit else "not even one sample fits; use Krylov()"
    raise InputError(
        f"{len(sizes)} block(s) of up to {max(sizes)} rows for each of {B} sample(s) need "
        f"{need / 2**30:.3g} GiB, workspace included; max_bytes allows {max_bytes / 2**30:.3g} GiB; {advice}, or raise "
        "max_bytes if the machine has the memory"
    )
