"""The spectrum of a loop at a state: everything that the linearised loop says about convergence.

Symbols: J Jacobian ``(n, n)`` of one sample, M where it is not zero, l eigenvalue, x its right eigenvector of unit
length, y its left eigenvector scaled to ``y^H x = 1`` (a row of the inverse of the matrix of all x).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import final

import scipy.optimize
import torch
from torch import Tensor

from fpcheck.errors import FpcheckError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral.damping import best_step, critical_step
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.jacobian import (
    DEFAULT_MAX_BYTES,
    check_state,
    frobenius,
    jacobian,
    jacobian_rounding,
    require_memory,
)
from fpcheck.spectral.regime import Regime, classify, period
from fpcheck.spectral.structure import diagonal_blocks

__all__ = ["Spectrum", "spectrum"]

# Backward error of LAPACK's eigenvalue and singular value routines in units of eps |J|_F. Typically below 1; the
# rest is for defective eigenvalues, whose first-order error is too small by the size of their Jordan block.
_BACKWARD = 10.0

# First-order theory is given up where it predicts an error larger than this, relative to |J|_2.
_FIRST_ORDER_LIMIT = 1e-3

# Room beside the Jacobians, for one sample, in float64 matrices: a copy of J, its Schur form, complex eigenvectors
# and their inverse, squares of their moduli and a product of these.
_LAPACK_MATRICES = 12


@final
@dataclass(frozen=True, eq=False)
class Spectrum:
    """Spectral figures of a loop's Jacobian J, per sample. All are estimates, none is a bound.

    Attributes:
        eigenvalues: ``(B, n)`` complex128, by modulus, largest first; of a pair the one above the axis first.
        eigenvalue_error: Error estimate of each, ``(B, n)`` float64.
        radius: Spectral radius rho(J): the rate of convergence in the long run, per loop step.
        norm: ``|J|_2``: the largest stretch of one step.
        log_norm: mu_2(J), the largest eigenvalue of ``(J + J') / 2``.
        circle_distance: ``1 - rho``, ``(B,)``: distance of the dominant eigenvalue from the unit circle, negative
            outside. Its error is that of ``radius``.
        critical_step: Damping steps in ``(0, critical_step)`` make the point attracting, ``(B,)``; 0 if none does.
        best_step: The step that contracts fastest, ``(B,)``; 0 if none contracts.
        best_rate: Spectral radius at ``best_step``, ``(B,)``.
        damping_helps: Whether some step makes the point attracting: every ``Re l < 1`` by more than its error,
            ``(B,)`` booleans. True for a point that attracts already.
        period: Loop steps in one turn of the dominant mode, ``(B,)``; 2 for a flip, infinite without rotation.
        regime: Kind of fixed point.
        residual: ``|F(z) - z| / |F(z)|`` of the given state, undamped, ``(B,)``; 0 where the two are equal.
        at_fixed_point: Whether ``residual <= sqrt(eps)`` of the dtype (1.5e-8, 3.5e-4 in float32). Where False,
            the figures are those of one step at that state and say little about the long run.
        dtype: The state's dtype, in which J was computed. LAPACK works in float64 always.
        n: Entries of one sample's state.
    """

    eigenvalues: Tensor = field(repr=False)
    eigenvalue_error: Tensor = field(repr=False)
    radius: Estimate
    norm: Estimate
    log_norm: Estimate
    circle_distance: Tensor
    critical_step: Tensor
    best_step: Tensor
    best_rate: Tensor
    damping_helps: Tensor
    period: Tensor
    regime: tuple[Regime, ...]
    residual: Tensor
    at_fixed_point: tuple[bool, ...]
    dtype: torch.dtype
    n: int

    def __len__(self) -> int:
        return len(self.regime)

    def explain(self) -> str:
        """One line per regime that occurred: how many samples, which, the figures of the worst, what to try."""
        lines = []
        for regime, count in Counter(self.regime).most_common():
            where = [i for i, r in enumerate(self.regime) if r is regime]
            worst = max(where, key=lambda i: float(self.radius.value[i]))
            shown = ", ".join(map(str, where[:8])) + (", ..." if count > 8 else "")
            lines.append(
                f"{regime.name}: {count} of {len(self)} samples ({shown}), largest rho {self.radius[worst]}, period "
                f"{self.period[worst]:.3g}, critical step {self.critical_step[worst]:.3g}: {regime.text}"
            )
        away = [i for i, at in enumerate(self.at_fixed_point) if not at]
        if away:
            largest = max(float(self.residual[i]) for i in away)
            lines.append(
                f"{len(away)} of {len(self)} states are not fixed points (largest relative residual {largest:.1e}): "
                "their figures describe one step at that state; solve further first"
            )
        return "\n".join(lines)


def spectrum(loop: Loop, z: Tensor, *, chunk_size: int | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> Spectrum:
    """Eigenvalues of the loop's Jacobian at ``z`` and what follows from them, each figure with its error.

    The zeros of J split it into diagonal blocks (:func:`fpcheck.spectral.structure.diagonal_blocks`), whose
    eigenvalues are those of J: a causal loop is taken token by token.

    Errors are first order. J comes with two: ``delta = 10 eps |J|_F``, of LAPACK, anywhere in the matrix, and
    ``gamma``, of differentiation (:func:`jacobian_rounding`), only where J is not zero: entries that are zero by
    structure, such as those of a causal block, have no rounding. A singular value, and an eigenvalue of the
    symmetric part, is known to ``delta + gamma``; an eigenvalue of J to
    ``delta |y| + gamma sqrt(sum over M of |y_j x_k|^2)``. Where that is no longer small (a defective eigenvalue has
    an infinite y) the error is read off a second decomposition, of J with a random perturbation of that size. An
    ill-conditioned figure comes with a large error; nothing is left out.

    Args:
        loop: The map; a damped or iterated view gives the spectrum of that view.
        z: State ``(B, *state)``, float32 or float64, best a fixed point: ``fixed_point(...).value``.
        chunk_size: As in :func:`jacobian`.
        max_bytes: Refuse a request that needs more than this for Jacobians and LAPACK together.

    Raises:
        InputError: Wrong dtype or batch size, or more than ``max_bytes``; before any work.
        NonFiniteError: ``z``, ``F(z)``, J or a result holds NaN or inf.
        BlockError: The loop cannot be differentiated.
        FpcheckError: LAPACK did not converge.

    Guarantee: estimate.
    Cost: :func:`jacobian`, and about 40 n^3 operations per sample on one thread; n = 768 takes 0.25 s and 0.7 s, a
    causal loop of 12 tokens 0.25 s and 0.15 s.
    Source: first-order perturbation of eigenvalues: Wilkinson (1965), chapter 2; of singular values: Weyl.

    Example:
        >>> spec = spectrum(Loop(lambda z: -1.5 * z, z0=torch.ones(1, 1)), torch.zeros(1, 1))
        >>> float(spec.radius[0]), spec.regime[0].name, float(spec.critical_step[0])
        (1.5, 'FLIP', 0.8)
    """
    check_state(loop, z)
    n = z[0].numel()
    require_memory(z, max_bytes, workspace=_LAPACK_MATRICES * 8 * n * n)
    J = jacobian(loop, z, chunk_size=chunk_size, max_bytes=max_bytes)
    delta = _BACKWARD * torch.finfo(torch.float64).eps * frobenius(J)
    gamma = jacobian_rounding(loop, z, J)
    with _one_thread():
        parts = [_one(i, J[i].double().cpu(), float(delta[i]), float(gamma[i])) for i in range(len(z))]
    lam, err, norm, log_norm = (torch.stack(part) for part in zip(*parts, strict=True))
    norm_error = (delta + gamma).cpu()
    for name, figures in (("eigenvalues", lam), ("singular values", norm), ("log-norm", log_norm)):
        if not bool(torch.isfinite(figures).all()):
            raise NonFiniteError(
                f"LAPACK returned NaN or inf {name} for a finite Jacobian: its entries overflow float64"
            )
    rho = lam[:, 0].abs()
    # The largest modulus may belong to another eigenvalue than it seems to.
    rho_error = torch.maximum((lam.abs() + err).amax(1) - rho, rho - (lam.abs() - err).amax(1))
    step, rate = best_step(lam)
    residual = _residual(loop, z)
    return Spectrum(
        eigenvalues=lam,
        eigenvalue_error=err,
        radius=Estimate(rho, rho_error),
        norm=Estimate(norm, norm_error),
        log_norm=Estimate(log_norm, norm_error),
        circle_distance=1 - rho,
        critical_step=critical_step(lam),
        best_step=step,
        best_rate=rate,
        damping_helps=(lam.real + err < 1).all(1),
        period=period(lam),
        regime=tuple(classify(one, e) for one, e in zip(lam, err, strict=True)),
        residual=residual,
        at_fixed_point=tuple((residual <= torch.finfo(z.dtype).eps ** 0.5).tolist()),
        dtype=z.dtype,
        n=n,
    )


def _one(i: int, J: Tensor, delta: float, gamma: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sorted eigenvalues with their errors, the 2-norm and the log-norm of sample i."""
    try:
        norm = torch.linalg.matrix_norm(J, 2)
        log_norm = torch.linalg.eigvalsh((J + J.T) / 2)[-1]
        lam, err = _by_blocks(J, delta, gamma, float(norm))
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # public, but missing in its stub
        raise FpcheckError(f"LAPACK did not converge on the Jacobian of sample {i} (n={len(J)}): {error}") from error
    # Stable sorts, least important key first: modulus; equal moduli by real part; a pair by imaginary part.
    order = torch.arange(len(J))
    for key in (lam.imag, lam.real, lam.abs()):
        order = order[key[order].argsort(descending=True, stable=True)]
    return lam[order], err[order], norm, log_norm


def _by_blocks(J: Tensor, delta: float, gamma: float, norm: float) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the diagonal blocks that J's zeros leave, each with the errors of its own block."""
    size = float(torch.linalg.vector_norm(J)) or 1.0
    parts = []
    for index in diagonal_blocks(J):
        A = J[index][:, index]
        share = float(torch.linalg.vector_norm(A)) / size
        # LAPACK's backward error goes with the block; that of differentiation may sit in it altogether.
        parts.append(_eigenvalues(A, delta * share, gamma, norm))
    lam, err = zip(*parts, strict=True)
    return torch.cat(lam), torch.cat(err)


def _eigenvalues(J: Tensor, delta: float, gamma: float, norm: float) -> tuple[Tensor, Tensor]:
    mask = (J != 0).double()
    lam, err = _first_order(J, mask, delta, gamma)
    far = ~(err <= _FIRST_ORDER_LIMIT * norm)
    if bool(far.any()):
        # k eigenvalues on a circle of radius r, where a defective one was, have first-order errors far below r when
        # nothing but the rounding of LAPACK spread them, and may have been returned exactly (a triangular J). A
        # random E of size delta has only about delta / n along any one direction, so the error delta / (k (delta /
        # n)^(1 - 1/k)) of the eigenvalues that it spreads is n / k >= 1 times their radius: it covers both.
        generator = torch.Generator().manual_seed(0)
        E = torch.randn(J.shape, generator=generator, dtype=torch.float64)
        F = E * mask
        E = E * (delta / torch.linalg.vector_norm(E)) + F * (gamma / torch.linalg.vector_norm(F))
        moved, moved_err = _first_order(J + E, mask, delta, gamma)
        # One to one: a well-conditioned eigenvalue may lie in the same place as a defective one.
        distance = (lam[:, None] - moved).abs()
        partner = torch.from_numpy(scipy.optimize.linear_sum_assignment(distance.numpy())[1])
        measured = torch.maximum(distance[range(len(J)), partner], moved_err[partner])
        # No eigenvalue moves further than this, whatever its condition (Elsner 1985).
        size = torch.linalg.vector_norm(E).item()
        furthest = (2 * norm + size) ** (1 - 1 / len(J)) * size ** (1 / len(J))
        err[far] = torch.minimum(err, measured.clamp(max=furthest))[far]
    return lam, err


def _first_order(J: Tensor, mask: Tensor, delta: float, gamma: float) -> tuple[Tensor, Tensor]:
    lam, X = torch.linalg.eig(J)
    Y, singular = torch.linalg.inv_ex(X)
    if int(singular):
        return lam, torch.full_like(lam.real, torch.inf)
    y2, x2 = Y.abs().square(), X.abs().square()
    err = delta * y2.sum(1).sqrt() + gamma * ((y2 @ mask) * x2.T).sum(1).sqrt()
    return lam, err.nan_to_num(nan=torch.inf, posinf=torch.inf)


@contextmanager
def _one_thread() -> Iterator[None]:
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


def _residual(loop: Loop, z: Tensor) -> Tensor:
    """Relative residual per sample, undamped: a small step must not pass for a small residual."""
    with torch.no_grad():
        moved = ((loop(z.clone()) - z) / loop.step).flatten(1).double()
    difference = torch.linalg.vector_norm(moved, dim=1)
    size = torch.linalg.vector_norm(z.flatten(1).double() + moved, dim=1)
    return torch.where(difference == 0, 0.0, difference / size).cpu()
