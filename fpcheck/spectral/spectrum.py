"""The spectrum of a loop at a state: everything that the linearised loop says about convergence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral.auto import Auto
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.jacobian import DEFAULT_MAX_BYTES
from fpcheck.spectral.methods import AbstractMethod
from fpcheck.spectral.operator import check_state
from fpcheck.spectral.regime import Regime

__all__ = ["Spectrum", "spectrum"]


@final
@dataclass(frozen=True, eq=False)
class Spectrum:
    """Spectral figures of a loop's Jacobian J, per sample. All are estimates, none is a bound.

    Attributes:
        eigenvalues: ``(B, k)`` complex128, by modulus, largest first; of a pair the one above the axis first. All n of
            them where ``complete``.
        eigenvalue_error: Error estimate of each, ``(B, k)`` float64.
        complete: Whether the eigenvalues are all there; else they are those of largest modulus.
        radius: Spectral radius rho(J): the rate of convergence in the long run, per loop step.
        norm: ``|J|_2``: the largest stretch of one step.
        log_norm: mu_2(J), the largest eigenvalue of ``(J + J') / 2``.
        circle_distance: ``1 - rho``: distance of the dominant eigenvalue from the unit circle, negative outside.
        critical_step: Damping steps in ``(0, critical_step)`` make the point attracting; 0 if none does.
        best_step: The step that contracts fastest; 0 if none contracts.
        best_rate: Spectral radius at ``best_step``.
        damping_helps: Whether some step makes the point attracting: every ``Re l < 1`` by more than its error,
            ``(B,)`` booleans. True for a point that attracts already.
        period: Loop steps in one turn of the dominant mode; 2 for a flip, infinite without rotation.
        regime: Kind of fixed point.
        residual: ``|F(z) - z| / |F(z)|`` of the given state, undamped, ``(B,)``; 0 where the two are equal.
        at_fixed_point: Whether ``residual <= sqrt(eps)`` of the dtype (1.5e-8, 3.5e-4 in float32). Where False,
            the figures are those of one step at that state and say little about the long run.
        converged: ``(B,)`` booleans: whether the method reached the accuracy that it was asked for. Where False the
            figures hold no more than their errors say.
        path: How the eigenvalues were computed, in words.
        products: Products with J and J' per sample, ``(B,)``.
        dtype: The state's dtype, in which J was computed. Linear algebra runs in float64 always.
        n: Entries of one sample's state.
    """

    eigenvalues: Tensor = field(repr=False)
    eigenvalue_error: Tensor = field(repr=False)
    complete: bool
    radius: Estimate
    norm: Estimate
    log_norm: Estimate
    circle_distance: Estimate
    critical_step: Estimate
    best_step: Estimate
    best_rate: Estimate
    damping_helps: Tensor
    period: Estimate
    regime: tuple[Regime, ...]
    residual: Tensor
    at_fixed_point: tuple[bool, ...]
    converged: Tensor
    path: str
    products: Tensor
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
                f"{float(self.period.value[worst]):.3g}, critical step {self.critical_step[worst]}: {regime.text}"
            )
        away = [i for i, at in enumerate(self.at_fixed_point) if not at]
        if away:
            largest = max(float(self.residual[i]) for i in away)
            lines.append(
                f"{len(away)} of {len(self)} states are not fixed points (largest relative residual {largest:.1e}): "
                "their figures describe one step at that state; solve further first"
            )
        return "\n".join(lines)


def spectrum(
    loop: Loop, z: Tensor, *, method: AbstractMethod | None = None, max_bytes: int = DEFAULT_MAX_BYTES
) -> Spectrum:
    """Eigenvalues of the loop's Jacobian at ``z`` and what follows from them, each figure with its error.

    Args:
        loop: The map; a damped or iterated view gives the spectrum of that view.
        z: State ``(B, *state)``, float32 or float64, best a fixed point: ``fixed_point(...).value``.
        method: How to compute: ``Dense()``, ``Blocks()``, ``Krylov()``; default ``Auto()``, which takes all eigenvalues
            where they fit and a matrix-free method otherwise.
        max_bytes: Refuse a request that needs more memory than this.

    Raises:
        InputError: Wrong dtype or batch size, or more than ``max_bytes``; before any work.
        NonFiniteError: ``z``, ``F(z)``, J or a result holds NaN or inf.
        BlockError: The loop cannot be differentiated.
        FpcheckError: LAPACK did not converge.

    Guarantee: estimate. Where the error of a figure is not small, it is said, not hidden; where a matrix-free method
        did not get as far as it was asked to, ``converged`` is False.
    Cost: see the methods.

    Example:
        >>> spec = spectrum(Loop(lambda z: -1.5 * z, z0=torch.ones(1, 1)), torch.zeros(1, 1))
        >>> float(spec.radius[0]), spec.regime[0].name, float(spec.critical_step[0])
        (1.5, 'FLIP', 0.8)
    """
    check_state(loop, z)
    if method is not None and not isinstance(method, AbstractMethod):
        raise InputError(f"method={method!r}; expected an object: Auto(), Dense(), Blocks() or Krylov()")
    found = (method or Auto()).figures(loop, z, max_bytes)
    lam, err = found.eigenvalues, found.eigenvalue_error
    for name, figures in (
        ("eigenvalues", lam), ("singular values", found.norm.value), ("log-norm", found.log_norm.value)
    ):  # fmt: skip
        if not bool(torch.isfinite(figures).all()):
            raise NonFiniteError(f"NaN or inf {name} of a finite Jacobian: its entries overflow float64")
    residual = _residual(loop, z)
    return Spectrum(
        eigenvalues=lam,
        eigenvalue_error=err,
        complete=found.complete,
        radius=found.radius,
        norm=found.norm,
        log_norm=found.log_norm,
        circle_distance=Estimate(1 - found.radius.value, found.radius.error),
        critical_step=found.critical_step,
        best_step=found.best_step,
        best_rate=found.best_rate,
        damping_helps=found.damping_helps,
        period=found.period,
        regime=found.regime,
        residual=residual,
        at_fixed_point=tuple((residual <= torch.finfo(z.dtype).eps ** 0.5).tolist()),
        converged=found.converged,
        path=found.path,
        products=found.products,
        dtype=z.dtype,
        n=z[0].numel(),
    )


def _residual(loop: Loop, z: Tensor) -> Tensor:
    """Relative residual per sample, undamped: a small step must not pass for a small residual."""
    with torch.no_grad():
        moved = ((loop(z.clone()) - z) / loop.step).flatten(1).double()
    difference = torch.linalg.vector_norm(moved, dim=1)
    size = torch.linalg.vector_norm(z.flatten(1).double() + moved, dim=1)
    return torch.where(difference == 0, 0.0, difference / size).cpu()
