"""The Jacobian of one loop step, dense.

Shapes: ``B`` samples, ``n`` entries in one sample's state (flattened in row-major order), ``c`` basis vectors in
one chunk. Samples are independent, so row i of every sample's Jacobian comes out of a single product of the
whole batch with the i-th basis vector: n products serve any number of samples.

Reverse mode, because it was the fastest here and asks least of a block (custom ``autograd.Function``\\ s and fused
attention often have no forward derivative). One thread, FPRM block, n = 768, chunks as below, B = 1 and B = 4:
reverse 0.25 s and 0.65 s, forward 0.28 s and 0.75 s, ``torch.func.linearize`` 0.85 s and 1.3 s in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from fpcheck.errors import BlockError, BlockOutputError, InputError, NonFiniteError
from fpcheck.loop import Loop

__all__ = ["DEFAULT_MAX_BYTES", "jacobian"]

DEFAULT_MAX_BYTES = 8 * 2**30
"""Memory that a dense request may ask for unless told otherwise: 8 GiB."""

# Cotangents of one chunk in bytes. Their intermediates are some tens of times larger and must stay near the
# caches: half of this and four times this were slower at every n and B tried.
_CHUNK_BYTES = 2 * 2**20

# Rounding of the Jacobian, relative to its Frobenius norm, in units of its dtype's eps. Measured on FPRM blocks in
# 144 variants at three states each, float32 against float64: 0.5 to 33, most below 8. The least that is assumed
# where it is measured, and what is assumed where it cannot be.
_ROUNDINGS = 4.0
_ROUNDINGS_UNMEASURED = 40.0

# Forward and reverse mode share the forward values and their rounding, so they disagree by less than each is wrong.
# With this factor the estimate was 1.1 to 20 times the true rounding in those 432 cases.
_DISAGREEMENT = 6.0

# Step of the difference quotients, relative to the state's scale. The truncation error is about its square, the
# rounding error eps over it: 1e-6 and, in float32, 1e-4.
_PROBE_STEP = 1e-3


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
    n = z[0].numel()
    require_memory(z, max_bytes)
    if chunk_size is None:
        chunk_size = max(1, _CHUNK_BYTES // (z.numel() * z.element_size()))
    elif not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1:
        raise InputError(f"chunk_size={chunk_size!r}; expected an integer >= 1, or None for 2 MiB of cotangents")
    J = z.new_zeros(len(z), n, n)
    pull = _pullback(loop, z)
    if pull is not None:
        for start in range(0, n, chunk_size):
            stop = min(start + chunk_size, n)
            basis = z.new_zeros(stop - start, len(z), n)
            basis[range(stop - start), :, range(start, stop)] = 1.0
            rows = pull(basis.view(-1, *z.shape))
            J[:, start:stop] = rows.reshape(stop - start, len(z), n).transpose(0, 1)
    if not bool(torch.isfinite(J).all()):
        raise NonFiniteError(
            f"the Jacobian {_where(~torch.isfinite(J).flatten(1).all(1))} holds NaN or inf although the state and F(z) "
            "are finite; look for a square root or a division at zero in the block"
        )
    _check_against_differences(loop, z, J)
    return J


def jacobian_rounding(loop: Loop, z: Tensor, J: Tensor) -> Tensor:
    """Estimate of ``|J - J_exact|_F``, the rounding of the derivative itself, ``(B,)`` float64.

    The larger of 4 eps of the dtype times ``|J|_F``, and six times the disagreement of forward and reverse mode on a
    random vector, which also sees a block that computes in a narrower dtype than its state. Where the block has no
    forward derivative, 40 eps times ``|J|_F``.
    """
    unit = torch.finfo(z.dtype).eps * frobenius(J)
    v = _directions(z)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # The first forward derivative of a process makes torch compile its own rules with a deprecated tool.
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
            forward = torch.func.jvp(loop, (z.detach(),), (v,))[1]
    except (RuntimeError, NotImplementedError):
        return _ROUNDINGS_UNMEASURED * unit
    gap = (forward.flatten(1) - _times(J, v)).double()
    # E |D v|^2 = |D|_F^2 |v|^2 / n for a random direction v.
    return torch.maximum(_ROUNDINGS * unit, _DISAGREEMENT * z[0].numel() ** 0.5 * _norm(gap) / _norm(v))


def check_state(loop: Loop, z: Tensor) -> None:
    """Refuse a state whose spectrum cannot be computed, before any work.

    Raises:
        InputError: Not a float32 or float64 tensor ``(B, *state)`` of the loop's batch size.
        NonFiniteError: NaN or inf.
    """
    if not isinstance(z, Tensor):
        raise InputError(f"z is a {type(z).__name__}; expected a state, a tensor (B, *state)")
    if z.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"z.dtype={z.dtype}; expected torch.float32 or torch.float64. Convert the block, its injection and the "
            "state (.double()): a Jacobian in half precision has no correct digits left for a spectrum"
        )
    if z.ndim == 0 or z.numel() == 0 or len(z) != loop.batch_size:
        raise InputError(f"z.shape={tuple(z.shape)}; expected (B, *state) with B={loop.batch_size}, as in the loop")
    if not bool(torch.isfinite(z).all()):
        raise NonFiniteError(
            f"z holds NaN or inf {_where(~torch.isfinite(z).flatten(1).all(1))}; expected a finite state, such as "
            "solution.value of samples that did not diverge"
        )


def require_memory(z: Tensor, max_bytes: int, *, workspace: int = 0) -> None:
    """Refuse dense Jacobians at ``z`` that need more than ``max_bytes``, saying how much and what to do instead.

    Args:
        z: The state.
        max_bytes: The limit.
        workspace: Bytes needed besides the Jacobians, whatever the batch size.

    Raises:
        InputError: Too large.
    """
    n = z[0].numel()
    each = n * n * z.element_size()
    need = len(z) * each + workspace
    if need <= max_bytes:
        return
    fit = max(0, (max_bytes - workspace) // each)
    advice = (
        f"take at most {fit} sample(s) at once (loop.select)"
        if fit
        else "not even one sample fits; a matrix-free method is needed at this size"
    )
    raise InputError(
        f"{len(z)} dense Jacobian(s) with n={n} need {need / 2**30:.3g} GiB, workspace included; max_bytes allows "
        f"{max_bytes / 2**30:.3g} GiB; {advice}, or raise max_bytes if the machine has the memory"
    )


def frobenius(J: Tensor) -> Tensor:
    """``|J|_F`` per sample, ``(B,)`` float64; not 0 for a J whose squares underflow."""
    two, largest = (torch.linalg.vector_norm(J, order, dim=(1, 2), dtype=torch.float64) for order in (2, torch.inf))
    return torch.maximum(two, largest)


def _pullback(loop: Loop, z: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Map cotangents ``(c, B, *state)`` to their products with each sample's Jacobian; None if F ignores z."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        try:
            out = loop(leaf)
        except RuntimeError as error:
            raise BlockError(
                f"the block cannot be differentiated: {str(error).rstrip('.')}. It must not change its input in "
                "place, nor use tensors made in inference mode"
            ) from error
    for name, got, want in (("shape", tuple(out.shape), tuple(z.shape)), ("dtype", out.dtype, z.dtype)):
        if got != want:
            raise BlockOutputError(f"the loop returned {name}={got} for a state of {name}={want}; expected the same")
    if not bool(torch.isfinite(out).all()):
        raise NonFiniteError(f"F(z) holds NaN or inf {_where(~torch.isfinite(out).flatten(1).all(1))} at this finite z")
    # A map that does not depend on z has the Jacobian 0; a map that was cut off from z looks the same here. The
    # difference quotients tell them apart.
    if not out.requires_grad:
        return None

    def one(cotangent: Tensor) -> Tensor:
        (row,) = torch.autograd.grad(out, leaf, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True)
        return row

    many: Callable[[Tensor], Tensor] = torch.func.vmap(one)

    def pull(cotangents: Tensor) -> Tensor:
        nonlocal many
        try:
            with warnings.catch_warnings():
                # An operation without a batching rule is slower, not wrong.
                warnings.filterwarnings("ignore", "There is a performance drop")
                return many(cotangents)
        except RuntimeError as error:
            if many is one_by_one:
                raise BlockError(f"the block has no derivative: {error}") from error
            # Custom gradients that look at values (.item(), numpy) cannot be batched.
            many = one_by_one
            return pull(cotangents)

    def one_by_one(cotangents: Tensor) -> Tensor:
        return torch.stack([one(cotangent) for cotangent in cotangents])

    return pull


def _check_against_differences(loop: Loop, z: Tensor, J: Tensor) -> None:
    """Refuse J where ``J v`` is not the change of F along v.

    Two step sizes: what they disagree by is the size of truncation and noise, which a correct derivative may
    miss them by. A hundredth is allowed besides, for kinks elsewhere in the block.
    """
    v = _directions(z)
    with torch.no_grad():
        scale = torch.maximum(_rms(z), _rms(loop(z.clone())))
        h = _PROBE_STEP * torch.where(scale > 0, scale, 1.0)
        wide, narrow = (_difference(loop, z, v, step) for step in (h, h / 2))
    exact = _times(J, v)
    size = _norm(narrow)
    allowed = 10 * _norm(narrow - wide) + 0.01 * torch.maximum(size, _norm(exact))
    # What cancels in F(z + h v) - F(z - h v), with room for a hundred roundings inside the block, and underflow.
    info = torch.finfo(z.dtype)
    allowed = allowed + (100 * info.eps * scale + info.tiny) * z[0].numel() ** 0.5 / h
    gap = _norm(narrow - exact)
    wrong = ~(gap <= allowed)
    if bool(wrong.any()):
        b = int(wrong.nonzero()[0])
        raise BlockError(
            f"the derivative of the block is not that of its values {_where(wrong)}: along a random direction F "
            f"changes by {size[b]:.2e} per unit, its Jacobian says {_norm(exact)[b]:.2e}, the difference is "
            f"{gap[b]:.2e}. Look for detach(), no_grad, .data, a custom gradient (straight-through rounding), or a "
            "kink at z"
        )


def _difference(loop: Loop, z: Tensor, v: Tensor, h: Tensor) -> Tensor:
    step = h.to(z.dtype).view(-1, *[1] * (z.ndim - 1)) * v
    return ((loop(z + step) - loop(z - step)).flatten(1).double()) / (2 * h.unsqueeze(1))


def _directions(z: Tensor) -> Tensor:
    """One random direction for all samples: a sample's checks must not depend on its place in the batch."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(z.shape[1:], generator=generator, dtype=torch.float64).to(z).expand_as(z)


def _times(J: Tensor, v: Tensor) -> Tensor:
    return (J @ v.flatten(1).unsqueeze(-1)).squeeze(-1)


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.flatten(1).double(), dim=1)


def _rms(a: Tensor) -> Tensor:
    return _norm(a) / a[0].numel() ** 0.5


def _where(bad: Tensor) -> str:
    which = bad.nonzero().flatten().tolist()
    return f"for sample {which[0]}" if len(which) == 1 else f"for {len(which)} samples ({which[0]}, ...)"
