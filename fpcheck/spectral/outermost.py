"""The outermost eigenvalues and what follows from them, by products with J and J' alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.loop import Loop
from fpcheck.spectral.damping import best_step, critical_step_estimate, damped_radius, step_error
from fpcheck.spectral.eigenpairs import Eigenpairs, eigenvalues
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.krylov import KrylovSchur
from fpcheck.spectral.lanczos import Extreme, log_norm, spectral_norm
from fpcheck.spectral.methods import AbstractMethod, Figures, on_cpu, radius_estimate
from fpcheck.spectral.operator import AbstractOperator, JacobianOperator
from fpcheck.spectral.orders import AbstractOrder, AnyOf, LargestDamped, LargestModulus, SmallestCriticalStep
from fpcheck.spectral.regime import Regime, classify, period_estimate

__all__ = ["Krylov"]

# Unstable eigenvalues are looked for up to this number; a loop with more is past describing by them.
_MOST_UNSTABLE = 48

# Regimes that no further unstable eigenvalue can change, once they are certain.
_FINAL = (Regime.REPELLING, Regime.DAMPED_CONTRACTIVE)

# Times that the best step is improved by an eigenvalue that limits it and was not known.
_ROUNDS = 4

# Rivals of the eigenvalues that limit the best step count from this much beyond them, relative.
_RIVAL = 1e-6


@final
@dataclass(frozen=True)
class Krylov(AbstractMethod):
    """The outermost eigenvalues, by products with J and J' alone.

    One run looks for the largest moduli and for the eigenvalues that limit the damping step: more of them as long as
    an unstable one that was missed could change the regime. A second run asks which eigenvalue limits the best step
    for these, and adds it if it is a new one. Norm and log-norm by Lanczos.

    The eigenvalue that leads by each of these orders is as accurate as ``converged`` says. Those behind it may be far
    less so, and the figures that rest on the leaders alone do not suffer from that.

    Args:
        count: Eigenvalues of largest modulus to find, at least.
        rtol: As in :func:`fpcheck.spectral.eigenvalues`: relative accuracy that ``converged`` stands for.
        basis_size: Basis vectors of Krylov-Schur; default: as many as ``count`` calls for.
        max_restarts: A sample that takes more is handed back as it is, and says so.
        seed: Of the random starts.

    Cost: some hundreds of products, some tens of vectors of memory, and about one matrix product in ten for the rest.
    """

    count: int = 6
    rtol: float | None = None
    basis_size: int | None = None
    max_restarts: int = 300
    seed: int = 0

    def figures(self, loop: Loop, z: Tensor, max_bytes: int) -> Figures:
        """The outermost eigenvalues, norm and log-norm by products."""
        op = JacobianOperator(loop, z)
        norm = spectral_norm(op, max_restarts=self.max_restarts, seed=self.seed)
        mu = log_norm(op, max_restarts=self.max_restarts, seed=self.seed)
        found, products = self._unstable(op, max_bytes)
        lam, err = found.values, found.error
        step, rate = best_step(lam)
        best_error = torch.full_like(rate, torch.inf)
        for _ in range(_ROUNDS):
            # Where no step contracts there is nothing to improve; the order wants a positive number all the same.
            damped = self._run(op, self.count, LargestDamped(torch.where(step > 0, step, 1.0)), max_bytes)
            products = products + damped.products + damped.left_products
            best_error = torch.where(step > 0, step * damped.error[:, 0], 0.0)
            beyond = (damped_radius(damped.values, step) > rate * (1 + _RIVAL)) & (step > 0)
            if not bool(beyond.any()):
                break
            lam, err = torch.cat([lam, damped.values], 1), torch.cat([err, damped.error], 1)
            step, rate = best_step(lam)
            best_error = torch.full_like(rate, torch.inf)
        converged = found.converged & norm.converged & mu.converged
        return _outermost_figures(
            op, self.count, found, lam, err, (step, rate, best_error), norm, mu, converged,
            products + norm.products + mu.products,
        )  # fmt: skip

    def _run(self, op: AbstractOperator, k: int, order: AbstractOrder, max_bytes: int) -> Eigenpairs:
        solver = KrylovSchur(basis_size=self.basis_size, max_restarts=self.max_restarts, seed=self.seed)
        return eigenvalues(op, k, order=order, method=solver, rtol=self.rtol, max_bytes=max_bytes)

    def _unstable(self, op: AbstractOperator, max_bytes: int) -> tuple[Eigenpairs, Tensor]:
        """What leads by modulus and by critical step, and so many that a missed one cannot change the regime."""
        count, products = self.count, torch.zeros(op.batch_size, dtype=torch.long, device=op.device)
        while True:
            found = self._run(op, 2 * count, AnyOf(LargestModulus(), SmallestCriticalStep()), max_bytes)
            products = products + found.products + found.left_products
            size = found.values.abs().sort(dim=1, descending=True).values
            settled = size[:, min(count, size.shape[1]) - 1] < 1
            for i in (~settled).nonzero().flatten().tolist():
                settled[i] = classify(found.values[i].cpu(), found.error[i].cpu()) in _FINAL
            if size.shape[1] >= op.n or count >= _MOST_UNSTABLE or bool(settled.all()):
                return found, products
            count *= 2


def _outermost_figures(
    op: AbstractOperator,
    count: int,
    found: Eigenpairs,
    lam: Tensor,
    err: Tensor,
    best: tuple[Tensor, Tensor, Tensor],
    norm: Extreme,
    mu: Extreme,
    converged: Tensor,
    products: Tensor,
) -> Figures:
    """What follows from the outermost eigenvalues ``(B, m)``."""
    lam, err, known = lam.cpu(), err.cpu(), found.converged.cpu()
    # Where it converged, nothing else leads: an uncertain value behind the leader does not make that one uncertain.
    first = lam.abs().argmax(1, keepdim=True)
    behind = (lam.abs().gather(1, first) - lam.abs()).scatter(1, first, torch.inf)
    capped = torch.where(known.unsqueeze(1), torch.minimum(err, behind), err)
    limit = SmallestCriticalStep().key(lam).argmax(1, keepdim=True)
    alone, alone_error = lam.gather(1, limit), err.gather(1, limit)
    step, rate, rate_error = (part.cpu() for part in best)
    radius = radius_estimate(lam, capped)
    complete = found.values.shape[1] == op.n
    order = lam.abs().argsort(dim=1, descending=True, stable=True)
    kept = order if complete else order[:, : min(count, lam.shape[1])]
    stable = known & (radius.value + radius.error < 1)
    regime = []
    for i, contracts in enumerate(stable.tolist()):
        kind = Regime.CONTRACTIVE if contracts else classify(lam[i], err[i])
        settled = complete or contracts or kind in _FINAL or bool(lam[i].gather(0, kept[i])[-1].abs() < 1)
        regime.append(kind if settled else Regime.UNDECIDED)
    return Figures(
        eigenvalues=lam.gather(1, kept),
        eigenvalue_error=err.gather(1, kept),
        complete=complete,
        radius=radius,
        period=period_estimate(lam, capped),
        norm=on_cpu(norm.value),
        log_norm=on_cpu(mu.value),
        critical_step=critical_step_estimate(alone, torch.where(known.unsqueeze(1), alone_error, torch.inf)),
        best_step=Estimate(step, step_error(lam, step, rate, rate_error)),
        best_rate=Estimate(rate, rate_error),
        damping_helps=known & (alone.real + alone_error < 1).squeeze(1),
        regime=tuple(regime),
        converged=converged.cpu(),
        path=f"the {kept.shape[1]} outermost of {op.n} by products ({found.method})",
        products=products.cpu(),
    )
