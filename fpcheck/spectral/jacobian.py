"""The Jacobian of one loop step, dense.

Shapes: ``B`` samples, ``n`` entries in one sample's state (flattened in row-major order), ``c`` basis vectors in
one chunk. Samples are independent, so row i of every sample's Jacobian comes out of a single product of the
whole batch with the i-th basis vector: n products serve any number of samples.

Reverse mode, because it was the fastest here and asks least of a block (custom ``autograd.Function``\\ s and fused
attention often have no forward derivative). One thread, FPRM block, n = 768, chunks as below, B = 1 and B = 4:
reverse 0.25 s and 0.65 s, forward 0.28 s and 0.75 s, ``torch.func.linearize`` 0.85 s and 1.3 s in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fpcheck.errors import NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral.operator import (
    DEFAULT_MAX_BYTES,
    JacobianOperator,
    check_state,
    directions,
    require_derivative,
    require_memory,
    where,
)

__all__ = ["DEFAULT_MAX_BYTES", "check_state", "frobenius", "jacobian", "jacobian_rounding", "require_memory"]


def jacobian(loop: Loop, z: Tensor, *, chunk_size: int | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> Tensor:
    """Jacobian of ``loop`` at ``z``, one dense matrix per sample.

    Every result is compared with central differences along one random direction per sample (four loop calls),
    so that a detached path, a wrong custom gradient or a kink at ``z`` is an error and not a wrong number.

    Args:
        loop: The map; damped and iterated views are differentiated as they are.
        z: State ``(B, *state)``, float32 or float64, finite. It need not be a fixed point.
        chunk_size: Basis vectors per product. Default: as many as make 2 MiB of cotangents.
        max_bytes: Refuse a result larger than this.

    Returns:
        ``(B, n, n)`` in the state's dtype and on its device, without gradient: entry ``[b, i, j]`` is the
        derivative of entry i of ``F(z)`` with respect to entry j of ``z``, sample b, per loop step.

    Raises:
        InputError: Not a float32 or float64 state of the loop's batch size, or more than ``max_bytes``.
        NonFiniteError: ``z``, ``F(z)`` or the Jacobian holds NaN or inf.
        BlockOutputError: The loop changes the shape or dtype of its state.
        BlockError: The loop cannot be differentiated, or its derivative is not that of its values.

    Guarantee: estimate (floating point; see :func:`jacobian_rounding`).
    Cost: n products of a transposed Jacobian with a vector for the whole batch; the result is the only
    ``(B, n, n)`` array.

    Example:
        >>> loop = Loop(torch.sin, z0=torch.zeros(1, 2))
        >>> jacobian(loop, torch.zeros(1, 2))
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    check_state(loop, z)
    require_memory(z, max_bytes)
    J = JacobianOperator(loop, z, check=False).dense(chunk_size=chunk_size, max_bytes=max_bytes)
    finite = torch.isfinite(J).flatten(1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(
            f"the Jacobian {where(~finite)} holds NaN or inf although the state and F(z) are finite; look for a square "
            "root or a division at zero in the block"
        )
    v = directions(z, 0)[..., 0]
    require_derivative(loop, z, v, (J @ v.unsqueeze(-1)).squeeze(-1))
    return J


def jacobian_rounding(loop: Loop, z: Tensor, J: Tensor) -> Tensor:
    """Estimate of ``|J - J_exact|_F``, the rounding of the derivative itself, ``(B,)`` float64.

    As in :meth:`fpcheck.spectral.operator.JacobianOperator.rounding_of`: from what forward mode gives a rounding away,
    at least 4 eps of the dtype times ``|J|_F``, 40 eps where the block has no forward derivative.
    """
    V = directions(z, 0)
    return JacobianOperator(loop, z, check=False).rounding_of(V, J @ V, frobenius(J))


def frobenius(J: Tensor) -> Tensor:
    """``|J|_F`` per sample, ``(B,)`` float64; not 0 for a J whose squares underflow."""
    two, largest = (torch.linalg.vector_norm(J, order, dim=(1, 2), dtype=torch.float64) for order in (2, torch.inf))
    return torch.maximum(two, largest)
