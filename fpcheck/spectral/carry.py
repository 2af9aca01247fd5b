"""The carry of a loop: what one step hands straight on, as distinct from what the whole step does.

Many looped blocks have the form ``z' = A z + (injection) + G(z)`` with a simple linear carry A (a decay per channel, a
product of residual scales, a convolution) and branches G. The spectral radius of A is easy to read off the weights and
is often quoted as "the contraction factor" of the loop. It is not: the loop's Jacobian is ``A + DG``, and nothing ties
its spectrum to that of A. In one published model the carry has radius 0.90 while the loop's own multiplier crosses 1
(arXiv 2608.26556); an FPRM carry starts below 0.1 and its branches do the rest. Report both, side by side.

Even for the carry alone the radius tells the long run only. A causal convolution makes it triangular: its eigenvalues
are the scales times the tap on the current token, whatever the other taps are, but its norm, and so the growth over
the first steps, has all taps in it. What the carry's gain must be for states to stay bounded is Theorem F1.

Shapes: ``B`` samples, states ``(B, *positions, D)`` with ``D`` channels last, ``P`` positions in all, ``n = P D``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from torch import Tensor

from fpcheck.errors import BlockError, BlockOutputError, InputError, NonFiniteError
from fpcheck.loop import Block, Injection, Loop
from fpcheck.spectral.dense import BACKWARD, dense_figures, one_thread
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.jacobian import DEFAULT_MAX_BYTES
from fpcheck.spectral.operator import check_state
from fpcheck.spectral.spectrum import spectrum

__all__ = ["CarryReport", "HasCarry", "carry_radius", "carry_report"]

# Rounding of the carry's entries, relative to the largest of them, in units of its dtype's eps. FPRM carries, float32
# against float64, widths 64 and 512, scales of every kind: 3 with 2 sublayers, 15 with 16.
_ROUNDINGS = 32.0

# Disagreement, in units of eps times the size of the terms, up to which two ways to sum P terms count as equal.
_SUM_ROUNDINGS = 100.0


@runtime_checkable
class HasCarry(Protocol):
    """A block that can say what it hands straight on."""

    def carry(self, v: Tensor, z: Tensor, x: Injection) -> Tensor:
        """The step with every branch, every constant and every norm left out, applied to ``v``.

        Linear in ``v``. Scales that depend on the state are those at ``z``, so that the map stays linear; norms that
        the state goes through are ignored, or make the block refuse.

        Args:
            v: What is handed on, ``(B, *state)``.
            z: The state at which the step is looked at, same shape.
            x: The injection, None if the loop has none.

        Returns:
            Same shape and dtype as ``v``.
        """
        ...


@final
@dataclass(frozen=True, eq=False)
class CarryReport:
    """Spectral radius of the carry and of the loop, per plain step and per sample.

    Only ``loop`` says whether the loop settles. ``carry`` is there because it is what is often quoted.

    Attributes:
        carry: Spectral radius of the linear carry.
        loop: Spectral radius of the Jacobian of the whole step.
    """

    carry: Estimate
    loop: Estimate

    @property
    def disagree(self) -> Tensor:
        """Where the two lie on different sides of 1 by more than their errors, ``(B,)`` booleans."""
        inside = [one.value + one.error < 1 for one in (self.carry, self.loop)]
        outside = [one.value - one.error > 1 for one in (self.carry, self.loop)]
        return (inside[0] & outside[1]) | (outside[0] & inside[1])

    def explain(self) -> str:
        """In how many samples the carry would mislead, and the sample in which the two differ most."""
        count, total = int(self.disagree.sum()), len(self.carry)
        worst = int((self.loop.value - self.carry.value).abs().argmax())
        return (
            f"carry and loop lie on different sides of 1 in {count} of {total} samples; they differ most in sample "
            f"{worst}: carry {self.carry[worst]}, loop {self.loop[worst]}. The loop's radius decides whether it settles"
        )


def carry_report(loop: Loop, z: Tensor, *, max_bytes: int = DEFAULT_MAX_BYTES) -> CarryReport:
    """Spectral radius of a loop's linear carry beside that of the whole loop, at the state ``z``.

    Both are those of one plain step of the block: damping and iteration of a view are left aside.

    Args:
        loop: Its block must have a carry (:class:`HasCarry`).
        z: State ``(B, *state)``, float32 or float64, best a fixed point.
        max_bytes: As in :func:`fpcheck.spectrum`, and for the carry too.

    Raises:
        BlockError: The block has no linear carry, or its ``carry`` is not linear.
        FpcheckError: As :func:`carry_radius` and :func:`fpcheck.spectrum`.

    Guarantee: estimate.
    Cost: that of :func:`carry_radius` and of :func:`fpcheck.spectrum`.
    """
    plain = Loop(loop.block, loop.x, z0=z, check=False)
    check_state(plain, z)
    carry = carry_radius(loop.block, z, loop.x, max_bytes=max_bytes)
    return CarryReport(carry=carry, loop=spectrum(plain, z, max_bytes=max_bytes).radius)


def carry_radius(block: Block, z: Tensor, x: Injection = None, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Estimate:
    """Spectral radius of a block's linear carry. It is not that of the loop: see :func:`carry_report`.

    The carry's matrix is read off its action on unit vectors. Where channels do not mix, all of them are probed at
    once, one position at a time; this is tried first, and checked on a random vector. A carry that is triangular over
    the positions (no mixing, or a causal convolution) has its diagonal for eigenvalues.

    Args:
        block: A block with a carry (:class:`HasCarry`). Norms that the state goes through are ignored by it.
        z: State ``(B, *positions, D)`` at which state-dependent scales are taken, float32 or float64.
        x: Injection.
        max_bytes: Refuse to build matrices larger than this.

    Returns:
        One figure per sample, per plain step. The error covers the rounding of the entries, 32 eps of the dtype times
        the largest of them, and that of LAPACK, carried to the eigenvalues by their condition.

    Raises:
        BlockError: The block has no carry; or ``carry`` is not linear in its first argument, or changes its shape.
        InputError: Wrong state, or more than ``max_bytes``.
        NonFiniteError: The state or the carry holds NaN or inf.

    Guarantee: estimate.
    Cost: P calls of ``carry`` and memory O(B n) where the carry is triangular; else P more and the eigenvalues of
    B D matrices of P rows, of which those with small norms are left out. n calls and dense matrices where channels mix.
    """
    if not isinstance(block, HasCarry):
        raise BlockError(
            f"block is a {type(block).__name__} without a method carry(v, z, x): it has no linear carry (post-norm "
            "blocks, such as TRM's, have none), or does not tell. Look at spectrum(loop, z) alone, or add the method"
        )
    check_state(Loop(block, x, z0=z, check=False), z)
    D = z.shape[-1] if z.ndim > 1 else 1
    P = z[0].numel() // D

    def apply(v: Tensor) -> Tensor:
        """The carry on ``(B, P, D)``, in float64 around the block's own dtype."""
        with torch.no_grad():
            out = block.carry(v.to(z).reshape(z.shape), z.detach(), x)
        if out.shape != z.shape:
            raise BlockOutputError(f"carry returned shape={tuple(out.shape)}; expected {tuple(z.shape)}, as its input")
        if not bool(torch.isfinite(out).all()):
            raise NonFiniteError("carry returned NaN or inf on a finite vector; check the block's scales")
        return out.reshape(-1, P, D).double().cpu()

    eps = torch.finfo(z.dtype).eps
    probe = torch.randn(P, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(len(z), P, D)
    probe = probe.to(z.dtype).double()
    direct = apply(probe)

    def agrees(total: Tensor, size: Tensor) -> bool:
        """Whether a sum over columns is the direct product, up to the rounding of terms of total absolute ``size``."""
        return bool(((total - direct).abs() <= _SUM_ROUNDINGS * eps * (size + direct.abs())).all())

    # First without storing anything: is every channel on its own, and triangular?
    total, size, diagonal = torch.zeros_like(direct), torch.zeros_like(direct), torch.zeros_like(direct)
    largest = direct.new_zeros(len(z))
    below = above = False
    for t, column in enumerate(_columns(apply, z, P, D)):
        total += column * probe[:, t : t + 1]
        size += (column * probe[:, t : t + 1]).abs()
        diagonal[:, t] = column[:, t]
        largest = torch.maximum(largest, column.abs().flatten(1).amax(1))
        above |= bool(column[:, :t].any())
        below |= bool(column[:, t + 1 :].any())
    apart = agrees(total, size)
    if apart and not (above and below):
        radius = diagonal.abs().flatten(1).amax(1)
        return Estimate(radius, _ROUNDINGS * eps * largest)
    channels, rows = (D, P) if apart else (1, P * D)
    _require_memory(z, channels, rows, max_bytes)
    if apart:
        # (column, B, row, channel) to (B, channel, row, column).
        A = torch.stack(list(_columns(apply, z, P, D))).permute(1, 3, 2, 0)
    else:
        A = torch.stack([out.flatten(1) for out in _basis(apply, z, P, D)], dim=-1).unsqueeze(1)
        terms = A[:, 0] * probe.reshape(len(z), 1, -1)
        if not agrees(terms.sum(-1).view_as(direct), terms.abs().sum(-1).view_as(direct)):
            raise BlockError(
                "carry(v, z, x) is not linear in v: on a random v it differs from the sum over unit vectors. It must "
                "leave out every constant, branch and norm, and take scales from z, not from v"
            )
    return _radius(A, eps)


def _columns(apply: Callable[[Tensor], Tensor], z: Tensor, P: int, D: int) -> Iterator[Tensor]:
    """Column t of every channel's matrix, ``(B, P, D)`` each: position t switched on in all channels."""
    for t in range(P):
        v = z.new_zeros(len(z), P, D)
        v[:, t] = 1.0
        yield apply(v)


def _basis(apply: Callable[[Tensor], Tensor], z: Tensor, P: int, D: int) -> Iterator[Tensor]:
    """Columns of the whole matrix, ``(B, P, D)`` each."""
    for j in range(P * D):
        v = z.new_zeros(len(z), P * D)
        v[:, j] = 1.0
        yield apply(v)


def _require_memory(z: Tensor, channels: int, rows: int, max_bytes: int) -> None:
    need = 2 * len(z) * channels * rows * rows * 8  # float64, and once more to put the columns in order
    if need > max_bytes:
        what = "does not mix channels but is not causal" if channels > 1 else "mixes channels"
        raise InputError(
            f"the carry {what}: {len(z) * channels} matrices of {rows} rows need {need / 2**30:.3g} GiB; max_bytes "
            f"allows {max_bytes / 2**30:.3g} GiB. Take fewer samples at once, a shorter sequence, or raise max_bytes"
        )


def _radius(A: Tensor, eps: float) -> Estimate:
    """Spectral radius of the block-diagonal matrices with blocks ``A`` ``(B, C, m, m)``."""
    # Scales that do not depend on the input make one matrix for all samples.
    distinct = A[:1] if bool((A[:1] == A).all()) else A
    with one_thread():
        figures = [_largest(i, blocks, eps) for i, blocks in enumerate(distinct)]
    value, error = (torch.stack(part).expand(len(A)) for part in zip(*figures, strict=True))
    return Estimate(value, error)


def _largest(i: int, blocks: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Largest modulus over the eigenvalues of ``(C, m, m)`` matrices, and its error."""
    # No eigenvalue is larger than the largest row or column sum, so most matrices of many need no decomposition.
    most = torch.minimum(blocks.abs().sum(-1).amax(-1), blocks.abs().sum(-2).amax(-1))
    value, low, high = blocks.new_zeros(()), blocks.new_zeros(()), most.new_zeros(())
    for c in most.argsort(descending=True).tolist():
        if most[c] <= low:
            high = torch.maximum(high, (1 + _ROUNDINGS * eps) * most[c])
            break
        size = float(torch.linalg.vector_norm(blocks[c]))
        delta, gamma = BACKWARD * torch.finfo(torch.float64).eps * size, _ROUNDINGS * eps * size
        lam, err, _, _ = dense_figures(i, blocks[c], delta, gamma)
        value = torch.maximum(value, lam.abs().amax())
        low, high = torch.maximum(low, (lam.abs() - err).amax()), torch.maximum(high, (lam.abs() + err).amax())
    return value, torch.maximum(high - value, value - low)
