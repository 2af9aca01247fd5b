"""What kind of fixed point a spectrum belongs to, and what can be done about it."""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.spectral.estimate import Estimate

__all__ = ["Regime", "classify", "period", "period_estimate"]


class Regime(enum.Enum):
    """Kind of a fixed point, read off the eigenvalues l of its Jacobian. ``regime.text`` says what to try.

    Unstable means ``|l| >= 1``; rho is the largest modulus. An estimate: see :func:`classify`. What damping can cure
    is Theorem D8.
    """

    CONTRACTIVE = "contractive"
    """rho < 1."""
    FLIP = "flip"
    """rho >= 1, every Re l < 1, every unstable eigenvalue real (so <= -1)."""
    NEIMARK_SACKER = "neimark-sacker"
    """rho >= 1, every Re l < 1, every unstable eigenvalue in a complex pair."""
    DAMPED_CONTRACTIVE = "damped-contractive"
    """rho >= 1, every Re l < 1, unstable eigenvalues of both kinds."""
    FOLD = "fold"
    """One real eigenvalue >= 1, and no other with Re l >= 1."""
    REPELLING = "repelling"
    """Any other spectrum with some Re l >= 1."""
    UNDECIDED = "undecided"
    """An eigenvalue is closer to a border between these than its error estimate."""

    @property
    def text(self) -> str:
        """What it means, where it usually comes from, and what to try next."""
        return _TEXT[self]


_TEXT = {
    Regime.CONTRACTIVE: (
        "nearby states approach the point; in the long run each step shrinks their distance by about rho, although "
        "single steps may stretch it where the 2-norm of the Jacobian is above 1. Nothing to cure; a step near "
        "best_step is faster."
    ),
    Regime.FLIP: (
        "nearby states jump from one side of the point to the other and further out: real eigenvalues at or below "
        "-1. Usually a block that overcorrects (period-2 cycles). Damping cures it: fp.Damped(step=...) below "
        "critical_step."
    ),
    Regime.NEIMARK_SACKER: (
        "nearby states spiral outwards: a complex pair of modulus 1 or more. Residuals oscillate and the orbit often "
        "ends on a closed curve around the point. Damping cures it: fp.Damped(step=...) below critical_step, best "
        "at best_step."
    ),
    Regime.DAMPED_CONTRACTIVE: (
        "nearby states both spiral outwards and jump from side to side: unstable complex pairs and eigenvalues at or "
        "below -1, none with real part 1 or more. The plain loop leaves the point; a damped one approaches it: "
        "fp.Damped(step=...) below critical_step, best at best_step."
    ),
    Regime.FOLD: (
        "nearby states move away along one direction: a single real eigenvalue at or above 1. No damping step makes "
        "the point attracting. It is the typical partner, in a fold, of an attracting point not far away: start "
        "elsewhere, or strengthen the injection. Newton-type solvers reach the point itself, the loop does not."
    ),
    Regime.REPELLING: (
        "nearby states leave the point, and no damping step makes it attracting: several eigenvalues, or a complex "
        "pair, with real part 1 or more. Look for residual scales at or above 1, or a state that is no fixed point; "
        "train with a penalty on the spectrum."
    ),
    Regime.UNDECIDED: (
        "an eigenvalue lies on a border (modulus 1, or real part 1) as closely as the error estimate can tell. An "
        "eigenvalue of exactly 1 looks like this: drift, a line of fixed points, or a loop on the very edge of a "
        "fold. Use float64; if it persists, the loop really is on the border."
    ),
}


def classify(eigenvalues: Tensor, error: Tensor | float = 0.0) -> Regime:
    """Regime of one spectrum, UNDECIDED where its errors leave two regimes open.

    A complex pair closer to the real axis than its error counts as two real eigenvalues: the two cannot be told
    apart, and a rotation that slow is none.

    Args:
        eigenvalues: ``(n,)``, complex or real.
        error: Error estimate of each, ``(n,)`` or one number for all.

    Raises:
        InputError: ``eigenvalues`` is not one non-empty row.

    Guarantee: estimate, as good as ``error``.

    Example:
        >>> classify(torch.tensor([-1.1, 0.5])), classify(torch.tensor([0.999, 0.2]), error=0.01)
        (<Regime.FLIP: 'flip'>, <Regime.UNDECIDED: 'undecided'>)
    """
    if eigenvalues.ndim != 1 or len(eigenvalues) == 0:
        raise InputError(f"eigenvalues.shape={tuple(eigenvalues.shape)}; expected one sample's spectrum, (n,)")
    lam = eigenvalues.to(torch.complex128)
    err = torch.as_tensor(error, dtype=torch.float64).expand(lam.shape)
    real = lam.imag.abs() <= err
    # Both borders moved away from 1 by the error, one way and the other. The sets of unstable eigenvalues in
    # between are nested, and every regime that holds at both ends holds in between.
    fewest, most = (_regime(real, lam.abs() >= 1 + e, lam.real >= 1 + e) for e in (err, -err))
    return fewest if fewest is most else Regime.UNDECIDED


def _regime(real: Tensor, unstable: Tensor, blocking: Tensor) -> Regime:
    if not bool(unstable.any()):
        return Regime.CONTRACTIVE
    if bool(blocking.any()):
        return Regime.FOLD if bool(real[blocking].all()) and int(blocking.sum()) == 1 else Regime.REPELLING
    kinds = real[unstable]
    if bool(kinds.all()):
        return Regime.FLIP
    return Regime.DAMPED_CONTRACTIVE if bool(kinds.any()) else Regime.NEIMARK_SACKER


def period(eigenvalues: Tensor) -> Tensor:
    """Loop steps in one turn of the dominant mode: ``2 pi / |arg l|`` of the eigenvalue of largest modulus.

    Args:
        eigenvalues: ``(*batch, n)``.

    Returns:
        ``(*batch)`` float64; 2 for a negative dominant eigenvalue, infinite for a positive one. The residual
        oscillates twice as fast, because its norm does not see a sign.
    """
    lam = eigenvalues.to(torch.complex128)
    dominant = lam.gather(-1, lam.abs().argmax(-1, keepdim=True)).squeeze(-1)
    return 2 * math.pi / dominant.angle().abs()


def period_estimate(eigenvalues: Tensor, error: Tensor) -> Estimate:
    """The period of eigenvalues that are known up to ``error``.

    The angle of l is known to ``asin(e / |l|)``; a real eigenvalue keeps its angle, for alone it cannot leave the
    axis. Every eigenvalue that may be the dominant one counts.

    Args:
        eigenvalues: ``(*batch, n)``.
        error: Largest distance of each from its true value, ``(*batch, n)``.
    """
    lam = eigenvalues.to(torch.complex128)
    size, err = lam.abs(), error.to(lam.device, torch.float64)
    value = period(lam)
    angle = lam.angle().abs()
    turn = torch.asin((err / size).nan_to_num(nan=1.0).clamp(max=1.0))
    turn = torch.where((lam.imag == 0) & (err < 0.1 * size), 0.0, turn)
    longest = 2 * math.pi / (angle - turn).clamp(min=0.0)
    shortest = 2 * math.pi / (angle + turn).clamp(max=math.pi)
    rivals = size + err >= (size - err).amax(-1, keepdim=True)
    longest = torch.where(rivals, longest, 0.0).amax(-1)
    shortest = torch.where(rivals, shortest, torch.inf).amin(-1)
    # Infinite for certain (a positive dominant eigenvalue) leaves no doubt.
    certain = torch.isinf(value) & torch.isinf(shortest)
    move = torch.maximum(longest - value, value - shortest)
    return Estimate(value, torch.where(certain, 0.0, move.nan_to_num(nan=math.inf, posinf=math.inf)))
