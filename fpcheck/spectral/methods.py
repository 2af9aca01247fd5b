"""Ways to compute a spectrum: all eigenvalues of a dense matrix, and the choice among the ways."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.loop import Loop
from fpcheck.spectral.blockwise import blockwise
from fpcheck.spectral.damping import best_step_estimate, critical_step_estimate
from fpcheck.spectral.dense import BACKWARD, dense_figures, one_thread
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.jacobian import frobenius, jacobian, jacobian_rounding, require_memory
from fpcheck.spectral.lanczos import log_norm, spectral_norm
from fpcheck.spectral.operator import JacobianOperator
from fpcheck.spectral.regime import Regime, classify, period_estimate

__all__ = ["AbstractMethod", "Blocks", "Dense", "Figures", "on_cpu", "radius_estimate"]

# Room beside the Jacobians, for one sample, in float64 matrices: a copy of J, its Schur form, complex eigenvectors
# and their inverse, squares of their moduli and a product of these.
_LAPACK_MATRICES = 12


@final
@dataclass(frozen=True, eq=False)
class Figures:
    """What a method hands to :func:`fpcheck.spectral.spectrum`; all on the CPU, float64 and complex128.

    Attributes:
        eigenvalues: ``(B, k)``, largest modulus first.
        eigenvalue_error: ``(B, k)``.
        complete: Whether these are all n.
        radius: Largest modulus.
        period: Of the eigenvalue that has it.
        norm: ``|J|_2``.
        log_norm: mu_2.
        critical_step: Largest stable damping step.
        best_step: The step that contracts fastest.
        best_rate: Spectral radius there.
        damping_helps: Whether every real part is below 1 by more than its error, ``(B,)`` booleans.
        regime: Kinds of point.
        converged: ``(B,)`` booleans.
        path: In words.
        products: With J and J', ``(B,)``.
    """

    eigenvalues: Tensor
    eigenvalue_error: Tensor
    complete: bool
    radius: Estimate
    period: Estimate
    norm: Estimate
    log_norm: Estimate
    critical_step: Estimate
    best_step: Estimate
    best_rate: Estimate
    damping_helps: Tensor
    regime: tuple[Regime, ...]
    converged: Tensor
    path: str
    products: Tensor


class AbstractMethod(abc.ABC):
    """A way to compute a spectrum."""

    @abc.abstractmethod
    def figures(self, loop: Loop, z: Tensor, max_bytes: int) -> Figures:
        """Compute, or refuse before the work if it needs more than ``max_bytes``."""


@final
@dataclass(frozen=True)
class Dense(AbstractMethod):
    """All eigenvalues, from the dense Jacobian.

    The zeros of J split it into diagonal blocks (:func:`fpcheck.spectral.structure.diagonal_blocks`), whose
    eigenvalues are those of J: a causal loop is taken token by token. Errors as in :mod:`fpcheck.spectral.dense`; a
    singular value, and an eigenvalue of the symmetric part, is known to the rounding of J and of LAPACK together
    (Weyl).

    Args:
        chunk_size: As in :func:`fpcheck.jacobian`.

    Cost: :func:`fpcheck.jacobian`, and about 40 n^3 operations per sample on one thread; n = 768 takes 0.25 s and
    0.7 s, a causal loop of 12 tokens 0.25 s and 0.15 s.
    """

    chunk_size: int | None = None

    def figures(self, loop: Loop, z: Tensor, max_bytes: int) -> Figures:
        """All eigenvalues, norm and log-norm by LAPACK."""
        n = z[0].numel()
        require_memory(z, max_bytes, workspace=_LAPACK_MATRICES * 8 * n * n)
        J = jacobian(loop, z, chunk_size=self.chunk_size, max_bytes=max_bytes)
        delta = BACKWARD * torch.finfo(torch.float64).eps * frobenius(J)
        gamma = jacobian_rounding(loop, z, J)
        with one_thread():
            parts = [dense_figures(i, J[i].double().cpu(), float(delta[i]), float(gamma[i])) for i in range(len(z))]
        lam, err, norm, log_norm = (torch.stack(part) for part in zip(*parts, strict=True))
        norm_error = (delta + gamma).cpu()
        converged = torch.ones(len(z), dtype=torch.bool)
        products = torch.full((len(z),), n)
        bounds = Estimate(norm, norm_error), Estimate(log_norm, norm_error)
        return _complete_figures(lam, err, *bounds, converged, path=f"dense, all {n}", products=products)


@final
@dataclass(frozen=True)
class Blocks(AbstractMethod):
    """All eigenvalues, block by block over the tokens, without forming J; norm and log-norm by Lanczos.

    For loops that are causal in their tokens, in either direction or up to groups of them, or symmetric in them; the
    structure is verified at the state (:func:`fpcheck.spectral.find_structure`). Where there is none, the one block is
    the dense Jacobian.

    Args:
        token_dim: Dimension of the state that counts tokens.
        seed: Of Lanczos' random start.

    Cost: :func:`fpcheck.spectral.block_eigenvalues`, and some tens to hundreds of products.
    """

    token_dim: int = 1
    seed: int = 0

    def figures(self, loop: Loop, z: Tensor, max_bytes: int) -> Figures:
        """All eigenvalues by LAPACK, norm and log-norm by products."""
        op = JacobianOperator(loop, z)
        found = blockwise(op, token_dim=self.token_dim, max_bytes=max_bytes)
        norm, mu = spectral_norm(op, seed=self.seed), log_norm(op, seed=self.seed)
        converged, products = norm.converged & mu.converged, found.products + norm.products + mu.products
        return _complete_figures(
            found.values, found.error, on_cpu(norm.value), on_cpu(mu.value), converged.cpu(),
            path=found.path, products=products.cpu(),
        )  # fmt: skip


def _complete_figures(
    lam: Tensor, err: Tensor, norm: Estimate, log_norm: Estimate, converged: Tensor, *, path: str, products: Tensor
) -> Figures:
    """What follows from all eigenvalues ``(B, n)``, sorted, and their errors."""
    best, rate = best_step_estimate(lam, err)
    return Figures(
        eigenvalues=lam, eigenvalue_error=err, complete=True, radius=radius_estimate(lam, err),
        period=period_estimate(lam, err), norm=norm, log_norm=log_norm,
        critical_step=critical_step_estimate(lam, err), best_step=best, best_rate=rate,
        damping_helps=(lam.real + err < 1).all(1),
        regime=tuple(classify(one, e) for one, e in zip(lam, err, strict=True)),
        converged=converged, path=path, products=products,
    )  # fmt: skip


def radius_estimate(lam: Tensor, err: Tensor) -> Estimate:
    """The largest modulus, which may belong to another eigenvalue than it seems to."""
    rho = lam.abs().amax(1)
    return Estimate(rho, torch.maximum((lam.abs() + err).amax(1) - rho, rho - (lam.abs() - err).amax(1)))


def on_cpu(estimate: Estimate) -> Estimate:
    """The same figures in main memory."""
    return Estimate(estimate.value.cpu(), estimate.error.cpu())
