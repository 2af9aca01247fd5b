"""ARPACK, through SciPy, as another way to the same eigenvalues: one sample after the other, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, LinearOperator, eigs
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.spectral.krylov import (
    AbstractEigensolver,
    DenseEigensolver,
    RitzPairs,
    basis_size,
    require_options,
    residual_of,
    sort_pairs,
)
from fpcheck.spectral.operator import AbstractOperator
from fpcheck.spectral.orders import AbstractOrder, LargestModulus, LargestReal

__all__ = ["Arpack"]

_WHICH: dict[type[AbstractOrder], Any] = {LargestModulus: "LM", LargestReal: "LR"}


@final
@dataclass(frozen=True)
class Arpack(AbstractEigensolver):
    """Implicitly restarted Arnoldi by ARPACK. It knows two orders: ``LargestModulus`` and ``LargestReal``.

    It hands back converged pairs only, so nothing tells of others that were about to overtake them.

    Args:
        tol: As in :class:`KrylovSchur`.
        basis_size: ARPACK's ``ncv``. Default: that of :class:`KrylovSchur`.
        max_restarts: ARPACK's ``maxiter``. A sample that runs out of it comes back with what there is, not finished.
        seed: Of the random starts.
    """

    tol: float = 1e-10
    basis_size: int | None = None
    max_restarts: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        require_options(self.tol, max_restarts=self.max_restarts, seed=self.seed)

    def run(
        self,
        op: AbstractOperator,
        k: int,
        order: AbstractOrder,
        *,
        rounding: Tensor,
        start: int,
        confirm: bool,
        max_bytes: int,
    ) -> RitzPairs:
        """See :class:`AbstractEigensolver`."""
        if type(order) not in _WHICH:
            raise InputError(f"order={order!r}; ARPACK knows LargestModulus() and LargestReal(): use KrylovSchur()")
        m = basis_size(self.basis_size, k)
        if m >= op.n:
            return DenseEigensolver().run(
                op, k, order, rounding=rounding, start=start, confirm=confirm, max_bytes=max_bytes
            )
        # One more than asked for, so that a pair that straddles the end is whole.
        found = [self._one(op, i, k + 1, order, m, start) for i in range(op.batch_size)]
        values = torch.stack([one[0] for one in found]).to(op.device)
        vectors = torch.stack([one[1] for one in found]).to(op.device)
        absent = torch.arange(k + 1, device=op.device) >= torch.tensor([one[2] for one in found]).to(op.device)[:, None]
        residual = residual_of(op, values, vectors).masked_fill(absent, torch.inf)
        values, residual, vectors = sort_pairs(values, residual, vectors, order)
        counts = torch.tensor([one[3:] for one in found], dtype=torch.float64, device=op.device)
        return RitzPairs(
            values=values,
            vectors=vectors,
            residual=residual,
            finished=counts[:, 0] == 1,
            norm=counts[:, 1],
            products=counts[:, 2].long() + k + 1,
            restarts=None,
            method=f"ARPACK with {m} basis vectors",
        )

    def _one(
        self, op: AbstractOperator, i: int, k: int, order: AbstractOrder, m: int, start: int
    ) -> tuple[Tensor, Tensor, int, bool, float, int]:
        one = op.to_scipy(i)
        norm, products = 0.0, 0

        def product(v: Any) -> Any:
            nonlocal norm, products
            out = one.matvec(v)
            products += 1
            norm = max(norm, float(np.linalg.norm(out) / np.linalg.norm(v)))
            return out

        counted = LinearOperator(shape=one.shape, dtype=one.dtype, matvec=product)
        v0 = np.random.default_rng([self.seed, start]).standard_normal(op.n)
        lam: Any
        X: Any
        try:
            lam, X = eigs(counted, k, which=_WHICH[type(order)], ncv=m, tol=self.tol, maxiter=self.max_restarts, v0=v0)
            finished = True
        except ArpackNoConvergence as error:
            lam, X, finished = error.eigenvalues, error.eigenvectors, False
        except ArpackError:  # such as a start vector that J maps to zero
            lam, X, finished = np.zeros(0), np.zeros((op.n, 0)), False
        # Pairs side by side, the upper member first, for as long as whole ones fit. ARPACK may tear the last one.
        values = np.zeros(k, dtype=complex)
        vectors = np.zeros((op.n, k), dtype=complex)
        count = 0
        key = order.key(torch.from_numpy(np.asarray(lam, dtype=complex)).unsqueeze(0))[0].numpy()
        for j in np.argsort(-key, kind="stable"):
            own = [lam[j]] if lam[j].imag == 0 else [lam[j], lam[j].conj()]
            if lam[j].imag < 0 or count + len(own) > k:
                continue
            values[count : count + len(own)] = own
            vectors[:, count : count + len(own)] = np.stack([X[:, j], X[:, j].conj()], axis=1)[:, : len(own)]
            count += len(own)
        return torch.from_numpy(values), torch.from_numpy(vectors), count, finished, norm, products
