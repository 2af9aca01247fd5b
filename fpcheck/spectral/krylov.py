r"""Eigenvalues on the outside of the spectrum from products with vectors: the Krylov-Schur method, batched.

A run builds an orthonormal basis V of the Krylov space of J and a random start, such that

.. math:: J V = V H + v b'

with a small matrix H, one more basis vector v and a row b'. Eigenvalues of H (Ritz values) approximate eigenvalues of
J; with ``H x = l x`` the pair ``(l, V x)`` has the residual ``|b' x|``. A full basis is cut back: a real Schur form of
H with the wanted eigenvalues in front gives an orthonormal basis of what is wanted, for which the same relation holds
with the leading part of the Schur form in place of H, and the basis grows again from there.

Shapes: ``B`` samples, ``A <= B`` of them still at work, ``n`` rows of J, ``m`` basis vectors, ``p < m`` of them kept.
``V`` is ``(A, m + 1, n)``, a basis vector per row; ``H`` is stored transposed, ``(A, m, m + 1)`` with b as its last
column, so that a step writes a row. Both are float64.
All samples step together; only the Schur forms are taken one by one, since no batched routine computes them.

Source: G. W. Stewart (2001), A Krylov-Schur algorithm for large eigenproblems, SIAM J. Matrix Anal. Appl. 23.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from fpcheck.errors import FpcheckError, InputError, NonFiniteError
from fpcheck.spectral.operator import AbstractOperator, where
from fpcheck.spectral.orders import AbstractOrder, sort_by

__all__ = ["AbstractEigensolver", "DenseEigensolver", "KrylovSchur", "RitzPairs"]

_EPS = torch.finfo(torch.float64).eps

# A residual of this many eps |J| is as small as it gets: asking for less would never end (eigenvalues near 0).
_FLOOR = 16.0

# Below this many eps |J v|, what orthogonalisation leaves of J v is its rounding: the space is invariant.
_INVARIANT = 64.0

# Components along the basis of up to so many eps leave a vector orthogonal to it.
_ORTHOGONAL = 8.0

_DIRECTIONS = 16

# A second look builds so many basis vectors beside what was found, depending on what it took to find that.
_SMALLEST_LOOK = 16
_LARGEST_LOOK = 48
_LOOK_SHARE = 8

# Residuals, relative to the largest modulus, below which a Ritz value is taken as found in a second look.
_SETTLED = 1e-3

# Finished samples are dropped when they make up this part of those at work: to record a loop again costs a step.
_DROP = 0.25


@final
@dataclass(frozen=True, eq=False)
class RitzPairs:
    """What one run found, per sample: approximate eigenvalues and right vectors, most wanted first.

    Attributes:
        values: ``(B, q)`` complex128, conjugate pairs side by side with the upper member first.
        vectors: ``(B, n, q)`` complex128 of unit length.
        residual: ``|J x - l x|_2`` by the method's own account, ``(B, q)``; infinite where there is no pair.
        finished: Whether the run ended because nothing wanted was left to improve, ``(B,)``.
        norm: Largest stretch of a vector that the run met, ``(B,)``: a lower estimate of ``|J|_2``.
        products: With J, ``(B,)`` integers.
        restarts: ``(B,)`` integers; None if the method does not tell.
        method: In words.
        run: What :meth:`AbstractEigensolver.refine` goes on with; None if the method cannot.
    """

    values: Tensor
    vectors: Tensor
    residual: Tensor
    finished: Tensor
    norm: Tensor
    products: Tensor
    restarts: Tensor | None
    method: str
    run: Any = None


class AbstractEigensolver(abc.ABC):
    """A way to find eigenvalues of a batch of operators."""

    @abc.abstractmethod
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
        """Find at least the ``k`` eigenvalues (``k + 1`` where a pair straddles the end) that lead by ``order``.

        Args:
            op: The matrices.
            k: How many.
            order: Which.
            rounding: Of the products, ``(B,)``: smaller residuals mean nothing.
            start: Number of the run: another one starts from other random vectors.
            confirm: Look for what may have been missed before saying that a sample is finished.
            max_bytes: Refuse to use more memory than this.
        """

    def refine(self, found: RitzPairs, which: Tensor) -> RitzPairs:
        """Go on with the finished samples ``which`` (booleans) until their residuals are at rounding level."""
        return found

    def fallback(self, n: int) -> AbstractEigensolver | None:
        """What to use for samples of which this method could not find out enough; None for nothing."""
        return None


@final
@dataclass(frozen=True)
class DenseEigensolver(AbstractEigensolver):
    """All eigenvalues by LAPACK, from the assembled matrices: n products and about 25 n^3 operations per sample."""

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
        B, n = op.batch_size, op.n
        # J, its eigenvectors and their conjugates, a complex copy of J, and those of the run on J'.
        require_bytes(B * n * n * 8 * 8, max_bytes, f"{B} dense matrices with n={n}", "select fewer samples at once")
        J = op.dense(max_bytes=max_bytes).double()
        if not bool(torch.isfinite(J).all()):
            raise NonFiniteError(f"the matrix {where(~torch.isfinite(J).flatten(1).all(1))} holds NaN or inf")
        try:
            values, vectors = (part.to(op.device) for part in torch.linalg.eig(J.cpu()))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # public, but missing in its stub
            raise FpcheckError(f"LAPACK did not converge on a matrix with n={n}: {error}") from error
        residual = torch.linalg.vector_norm(J.to(vectors.dtype) @ vectors - vectors * values.unsqueeze(1), dim=1)
        values, residual, vectors = sort_pairs(values, residual, vectors, order)
        whole = torch.ones(B, dtype=torch.bool, device=op.device)
        return RitzPairs(
            values=values,
            vectors=vectors,
            residual=residual,
            finished=whole,
            norm=torch.linalg.matrix_norm(J, 2),
            products=n * whole.long(),
            restarts=0 * whole.long(),
            method=f"dense matrices and LAPACK (n={n})",
        )


@final
@dataclass(frozen=True)
class KrylovSchur(AbstractEigensolver):
    """Restarted Arnoldi iteration in the form of Krylov and Schur.

    Args:
        tol: A pair is found when its residual is at most ``tol`` times its modulus, or at rounding level.
        basis_size: Basis vectors m. More need fewer products and more memory and time beside them. Default: 20, or
            ``2 k + 2`` if that is more.
        max_restarts: A sample that is not finished after the products of so many is handed back as it is, and says so.
        seed: Of the random starts.
        dense_size: Matrices with n up to this, or up to ``basis_size``, are assembled at once: it is cheaper, and
            complete.
        fallback_size: Matrices with n up to this are assembled if ``4 n`` products on either side have not settled
            them, or if the two runs of :func:`eigenvalues` disagree.
    """

    tol: float = 1e-10
    basis_size: int | None = None
    max_restarts: int = 300
    seed: int = 0
    dense_size: int = 64
    fallback_size: int = 512

    def __post_init__(self) -> None:
        names = ("max_restarts", "seed", "dense_size", "fallback_size")
        require_options(self.tol, **{name: getattr(self, name) for name in names})

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
        B, n = op.batch_size, op.n
        m = basis_size(self.basis_size, k)
        if n <= max(m, self.dense_size):
            return DenseEigensolver().run(
                op, k, order, rounding=rounding, start=start, confirm=confirm, max_bytes=max_bytes
            )
        # The basis, its successor while it is cut back, and the results of two runs, with complex vectors.
        each = n * 8 * 5 * (m + 1)
        advice = f"select at most {max_bytes // each} samples at once, or choose a smaller basis_size"
        require_bytes(B * each, max_bytes, f"{B} bases of {m + 1} vectors with n={n}", advice)
        run = _Run(op, k, order, rounding.cpu(), tol=self.tol, m=m, seed=1000 * self.seed + start)
        most = m + self.max_restarts * (m - run.p)
        limit = np.full(B, min(most, 4 * n) if n <= self.fallback_size else most)
        run.advance(np.arange(B), p=run.p, m=run.m, limit=limit)
        if confirm:
            run.confirm(limit)
        return run.pairs()

    def refine(self, found: RitzPairs, which: Tensor) -> RitzPairs:
        """See :class:`AbstractEigensolver`."""
        if found.run is None:
            return found
        found.run.refine(which.cpu().numpy().nonzero()[0])
        pairs: RitzPairs = found.run.pairs()
        return pairs

    def fallback(self, n: int) -> AbstractEigensolver | None:
        """See :class:`AbstractEigensolver`."""
        return DenseEigensolver() if n <= self.fallback_size else None


@final
@dataclass(frozen=True, eq=False)
class _Decompositions:
    """Relations ``J V = V T + v b'``, one per sample, from which a run can go on.

    ``V`` is ``(A, p + 1, n)``, v after the last basis vector, ``T`` ``(A, p, p)`` quasi-triangular, ``b`` ``(A, p)``,
    and ``size`` ``(A,)`` says how many basis vectors are in use; what lies beyond is zero. All but V are on the CPU.
    """

    V: Tensor
    T: Tensor
    b: Tensor
    size: Tensor

    def select(self, index: Tensor) -> _Decompositions:
        """Some samples, with no more room than they need: others may have grown larger."""
        size = self.size[index]
        q = int(size.max()) if len(size) else 0
        V = self.V[index.to(self.V.device), : q + 1]
        return _Decompositions(V, self.T[index, :q, :q], self.b[index, :q], size)

    def put(self, index: Tensor, other: _Decompositions) -> _Decompositions:
        """Others for some samples, with room for the larger of both."""
        q = other.T.shape[1]
        more = max(0, q - self.T.shape[1])
        pad = torch.nn.functional.pad
        V, T, b = pad(self.V, (0, 0, 0, more)), pad(self.T, (0, more, 0, more)), pad(self.b, (0, more))
        size = self.size.clone()
        there = index.to(V.device)
        V[there], T[index], b[index], size[index] = 0.0, 0.0, 0.0, other.size
        V[there, : q + 1], T[index, :q, :q], b[index, :q] = other.V, other.T, other.b
        return _Decompositions(V, T, b, size)

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values ``(A, p)``, their residuals (infinite beyond ``size``) and the eigenvectors of T."""
        values, X = torch.linalg.eig(self.T)
        residual = (self.b.unsqueeze(1).to(X.dtype) @ X).squeeze(1).abs()
        if bool((self.size == self.b.shape[1]).all()):
            return values, residual, X
        # T is block diagonal with zeros beyond its size: each of these columns has an eigenvector of its own.
        beyond = torch.arange(self.b.shape[1]) >= self.size.unsqueeze(1)
        absent = ((X.abs() > 0.5) & beyond.unsqueeze(2)).any(1)
        return values.masked_fill(absent, torch.nan), residual.masked_fill(absent, torch.inf), X


class _Bases:
    """The bases of some samples, growing side by side to m vectors."""

    def __init__(self, op: AbstractOperator, m: int, start: _Decompositions, seed: int) -> None:
        A, n = op.batch_size, op.n
        self.op, self.m, self.seed, self.steps = op, m, seed, 0
        self.V = torch.zeros(A, m + 1, n, dtype=torch.float64, device=op.device)
        self.H = torch.zeros(A, m, m + 1, dtype=torch.float64, device=op.device)
        self.V[:, : start.V.shape[1]] = start.V
        self._continue_from(start)

    def grow(self) -> None:
        """Fill every basis. Where one was cut back shorter than the others, it takes its extra steps alone."""
        common = int(self.size.max())
        for j in range(int(self.size.min()), self.m):
            ahead = (self.size > j).nonzero().flatten().to(self.V.device) if j < common else None
            if ahead is None:
                self._step(j)
            else:
                kept = self.V[ahead, j + 1], self.H[ahead, j]
                self._step(j)
                self.V[ahead, j + 1], self.H[ahead, j] = kept

    def _step(self, j: int) -> None:
        """One more basis vector: J v, orthogonalised against all before.

        As few operations as possible, and results written in place: beside a product of two milliseconds, ten small
        operations count.
        """
        self.steps += 1
        basis = self.V.narrow(1, 0, j + 1)
        w = self.op.matvec(self.V.select(1, j)).unsqueeze(1)
        h, rest, beta = _orthogonal(w, basis)
        # A rough check for all samples together.
        if not float(beta.amin()) > _INVARIANT * _EPS * float(torch.linalg.vector_norm(h)):
            rest, beta = self._new_direction(w, h, rest, beta, basis)
        else:
            rest.div_(beta)
        self.V.narrow(1, j + 1, 1).copy_(rest)
        row = self.H.narrow(1, j, 1)
        row.narrow(2, 0, j + 1).copy_(h)
        row.narrow(2, j + 1, 1).copy_(beta)

    def _new_direction(self, w: Tensor, h: Tensor, rest: Tensor, beta: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Go on at random where the space is invariant, to find what the start vector had no part in."""
        size = torch.linalg.vector_norm(h, dim=2, keepdim=True)
        if bool(((size == 0) & (w != 0)).any()):
            raise NonFiniteError("products with J are not zero but vanish when squared; scale the operator")
        invariant = beta <= _INVARIANT * _EPS * size
        if bool(invariant.any()):
            fresh = random_unit(self.op, self.seed, self.steps).expand_as(rest)
            rest = torch.where(invariant, _orthogonal(fresh, basis)[1], rest)
        rest = rest / torch.linalg.vector_norm(rest, dim=2, keepdim=True)
        return rest, torch.where(invariant, 0.0, beta)

    def cut_back(self, order: AbstractOrder, p: int) -> tuple[_Decompositions, Any]:
        """Keep the p most wanted dimensions (p - 1 where that would tear a pair); also ``(A,)`` largest stretches."""
        A, m = len(self.H), self.m
        H = self.H.cpu().numpy()
        with np.errstate(over="ignore"):  # looked for right below
            stretch = np.linalg.norm(H, axis=2).max(1)
        if not np.isfinite(stretch).all():
            raise NonFiniteError(
                f"products with J {where(~torch.from_numpy(np.isfinite(stretch)))} of those at work hold NaN or inf, "
                "or overflow float64 when squared; check the state, or scale the operator"
            )
        forms = [_schur_form(one.T) for one in H[:, :, :m]]
        ritz = torch.from_numpy(np.stack([form[2] for form in forms]))
        wanted = sort_by(order.key(ritz), ritz)[:, :p].numpy()
        T, Z, size = np.zeros((A, p, p)), np.zeros((A, p, m)), np.zeros(A, dtype=np.int64)
        for i, (form, first) in enumerate(zip(forms, wanted, strict=True)):
            t, z = _reorder(*form, first)
            q = size[i] = p - 1 if t[p, p - 1] else p
            T[i, :q, :q], Z[i, :q] = t[:q, :q], z[:, :q].T
        turn = torch.from_numpy(Z)
        b = torch.from_numpy((Z @ H[:, :, m:]).squeeze(2))
        following = self.V[:, m].clone()
        self.V[:, :p] = turn.to(self.V.device) @ self.V[:, :m]
        kept = _Decompositions(self.V[:, : p + 1], torch.from_numpy(T), b, torch.from_numpy(size))
        self.V[torch.arange(A), kept.size] = following
        self._continue_from(kept)
        return kept, stretch

    def _continue_from(self, start: _Decompositions) -> None:
        A, p = start.b.shape
        self.size = start.size
        H = np.zeros(self.H.shape)
        H[:, :p, :p] = start.T.mT.numpy()
        H[np.arange(A), :p, start.size] = start.b.numpy()
        self.H.copy_(torch.from_numpy(H))

    def select(self, index: Tensor) -> None:
        """Go on with some samples only."""
        here = index.to(self.V.device)
        self.op, self.V, self.H, self.size = self.op.select(index), self.V[here], self.H[here], self.size[index]


class _Run:
    """One run over a batch: where every sample stands, and what it took. Samples are picked by NumPy indices."""

    def __init__(
        self, op: AbstractOperator, k: int, order: AbstractOrder, rounding: Tensor, *, tol: float, m: int, seed: int
    ) -> None:
        B = op.batch_size
        self.op, self.k, self.order, self.tol, self.seed = op, k, order, tol, seed
        # How many to keep: half of the basis took the fewest products on random matrices and on FPRM blocks.
        self.m, self.p = m, max(m // 2, k + 3)
        start = random_unit(op, seed, 0).expand(B, 1, op.n)
        none = torch.zeros(B, 0, 0, dtype=torch.float64)
        self.state = _Decompositions(start, none, none.flatten(1), torch.zeros(B, dtype=torch.long))
        self.rounding = rounding.cpu().numpy()
        self.finished = np.zeros(B, dtype=bool)
        self.norm = np.zeros(B)
        self.products = np.zeros(B, dtype=np.int64)
        self.restarts = np.zeros(B, dtype=np.int64)

    def advance(self, index: Any, *, p: int, m: int, limit: Any) -> None:
        """Grow and cut back the samples ``index`` until they are finished or have taken ``limit`` products."""
        op, order = self.op, self.order
        if len(index) < op.batch_size:
            op, order = op.select(torch.from_numpy(index)), order.select(torch.from_numpy(index))
        self.seed += 1
        bases = _Bases(op, m, self.state.select(torch.from_numpy(index)), self.seed)
        working = np.ones(len(index), dtype=bool)
        while True:
            at = index[working]
            self.products[at] += m - bases.size.numpy()[working]
            bases.grow()
            state, stretch = bases.cut_back(order, p)
            self.norm[at] = np.maximum(self.norm[at], stretch[working])
            finished = self._is_finished(state, index, order)
            stop = working & (finished | (self.products[index] >= limit))
            if stop.any():
                self.finished[index[stop]] = finished[stop]
                self.state = self.state.put(torch.from_numpy(index[stop]), state.select(torch.from_numpy(stop)))
                working &= ~stop
                if not working.any():
                    return
            self.restarts[index[working]] += 1
            if (~working).sum() >= _DROP * len(working):
                keep = working.nonzero()[0]
                bases.select(torch.from_numpy(keep))
                index, limit, order = index[keep], limit[keep], order.select(torch.from_numpy(keep))
                working = working[keep]

    def confirm(self, limit: Any) -> None:
        """Look again beside what was found, from another random start, until nothing new comes up.

        Each restart filters out what looked unimportant at the time, and what is kept fills the basis. A dense arc of
        eigenvalues may then be represented by one Ritz value deep inside, while its ends and outliers elsewhere have
        converged: without a second look some of those were taken for the largest. A first basis that sufficed was
        not filtered.
        """
        index = (self.finished & (self.restarts > 0)).nonzero()[0]
        while len(index):
            before = self.state
            self._look(index, _SETTLED, np.zeros_like(index))
            # What had not converged to rounding was taken as invariant to see what there is beside it, no more.
            self.state = before
            index = index[~self.finished[index]]
            if len(index):
                self.refine(index)
                self._look(index, 0.0, limit[index])
                index = index[self.finished[index]]

    def refine(self, index: Any) -> None:
        """Bring residuals down to rounding level, as far as about as many products again can."""
        tol, self.tol = self.tol, 0.0
        p = int(self.state.size[index].max())
        m = min(p + self.m - self.p, self.op.n - 1)
        self.advance(index, p=p, m=m, limit=2 * self.products[index] + 10 * self.m)
        # They were finished before, to a looser tolerance.
        self.tol, self.finished[index] = tol, True

    def _look(self, index: Any, settled: float, limit: Any) -> None:
        """Take what was found as invariant and go on beside it, from a random vector.

        Args:
            index: Samples.
            settled: Residuals of up to this, relative to the largest modulus, or at rounding level, count as found.
            limit: Products to stop at, after one basis at least.
        """
        state = self.state.select(torch.from_numpy(index))
        ritz, residual = (part.numpy() for part in state.ritz()[:2])
        largest = np.nan_to_num(np.abs(ritz)).max(1, keepdims=True)
        found = residual <= np.maximum(settled * largest, self._floor(index))
        start = random_unit(self.op, self.seed, -1)
        V, T, size = (torch.zeros_like(part) for part in (state.V, state.T, state.size))
        for i, q in enumerate(state.size.tolist()):
            t, z, values = _schur_form(state.T[i, :q, :q].numpy())
            nearest = np.nanargmin(np.abs(values[:, None] - ritz[i]), axis=1)
            chosen = found[i, nearest].nonzero()[0]
            t, z = _reorder(t, z, values, chosen)
            r = size[i] = len(chosen)
            T[i, :r, :r] = torch.from_numpy(t[:r, :r])
            V[i, :r] = torch.from_numpy(np.ascontiguousarray(z[:, :r].T)).to(V.device) @ state.V[i, :q]
            rest = start
            for _ in range(2):
                rest = rest - (V[i, :r] @ rest) @ V[i, :r]
            V[i, r] = rest / torch.linalg.vector_norm(rest)
        self.state = self.state.put(torch.from_numpy(index), _Decompositions(V, T, torch.zeros_like(state.b), size))
        # The harder the eigenvalues were to find, the closer others may lie, and the closer one has to look.
        look = min(max(int(self.products[index].max()) // _LOOK_SHARE, _SMALLEST_LOOK), _LARGEST_LOOK)
        m = min(int(size.max()) + look, self.op.n - 1)
        self.advance(index, p=m - look // 2, m=m, limit=limit)

    def _is_finished(self, state: _Decompositions, index: Any, order: AbstractOrder) -> Any:
        """Whether the wanted pairs have converged, and nothing that has not may still turn out to lead."""
        values, residual, _ = state.ritz()
        resolved = residual.numpy() <= np.maximum(self.tol * np.abs(values.numpy()), self._floor(index))
        if not (resolved.sum(1) >= self.k).any():
            return np.zeros(len(index), dtype=bool)
        rank = sort_by(order.key(values).masked_fill(~torch.isfinite(residual), -torch.inf), values)
        values, residual = values.gather(1, rank), residual.gather(1, rank)
        present = torch.isfinite(residual)
        done = torch.from_numpy(resolved).gather(1, rank)
        wanted = torch.arange(values.shape[1]) < count_whole(values, self.k).unsqueeze(1)
        # A Ritz value may move by its residual, in a normal matrix, and stand for a crowd of which one member leads.
        # Tighter guesses (what chords of a dense arc fall short of it) saved 3 % of the products, and took the second
        # modulus for the first in one of a hundred crowded spectra, in both runs.
        missing = ~done & present & (wanted | _may_lead(order, values, residual, present))
        return ~missing.any(1).numpy()

    def _floor(self, index: Any) -> Any:
        return np.maximum(_FLOOR * _EPS * self.norm[index], 0.1 * self.rounding[index])[:, None]

    def pairs(self) -> RitzPairs:
        """The present Ritz pairs, sorted."""
        values, residual, X = self.state.ritz()
        values, residual, X = sort_pairs(values, residual, X, self.order)
        V, device = self.state.V[:, : X.shape[1]], self.op.device
        X = X.to(device)
        vectors = torch.complex(V.mT @ X.real, V.mT @ X.imag)
        # Of unit length already, but for rounding: what is measured with them must not rest on that.
        # What is absent is zero, and stays so.
        length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
        vectors = vectors / torch.where(length > 0, length, 1.0)
        counts = (self.finished, self.norm, self.products, self.restarts)
        finished, norm, products, restarts = (torch.from_numpy(part.copy()).to(device) for part in counts)
        return RitzPairs(
            values=torch.where(torch.isfinite(residual), values, 0.0).to(device),
            vectors=vectors,
            residual=residual.to(device),
            finished=finished,
            norm=norm,
            products=products,
            restarts=restarts,
            method=f"Krylov-Schur with {self.m} basis vectors",
            run=self,
        )


def _orthogonal(w: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients ``(A, 1, j)`` of w in the basis, what is left of it, and the length of that.

    Classical Gram-Schmidt, twice, which is enough. The second time is left out if its coefficients are at rounding
    level for every sample: they are measured, for judging by how much of w was left lost all orthogonality over some
    restarts.
    """
    transposed = basis.mT
    h = torch.bmm(w, transposed)
    rest = torch.baddbmm(w, h, basis, alpha=-1)
    g = torch.bmm(rest, transposed)
    beta = torch.linalg.vector_norm(rest, dim=2, keepdim=True)
    if float(torch.linalg.vector_norm(g)) <= _ORTHOGONAL * _EPS * float(beta.amin()):
        return h, rest, beta
    rest = torch.baddbmm(rest, g, basis, alpha=-1)
    return h + g, rest, torch.linalg.vector_norm(rest, dim=2, keepdim=True)


def random_unit(op: AbstractOperator, seed: int, step: int) -> Tensor:
    """A random unit vector ``(n,)``, one for all samples: a sample's result must not depend on its batch."""
    generator = torch.Generator().manual_seed(1_000_003 * seed + step + 1)
    v = torch.randn(op.n, generator=generator, dtype=torch.float64)
    return (v / torch.linalg.vector_norm(v)).to(op.device)


def require_bytes(need: int, max_bytes: int, what: str, advice: str) -> None:
    """Refuse a request beyond memory before work starts."""
    if need > max_bytes:
        raise InputError(
            f"{what} need {need / 2**30:.3g} GiB; max_bytes allows {max_bytes / 2**30:.3g} GiB; {advice}, or raise "
            "max_bytes if the machine has the memory"
        )


def count_whole(values: Tensor, k: int) -> Tensor:
    """``k``, or ``k + 1`` where the k-th value is the upper member of a pair, ``(B,)``."""
    return k + (values[:, k - 1].imag > 0).long()


def sort_pairs(
    values: Tensor, residual: Tensor, vectors: Tensor, order: AbstractOrder
) -> tuple[Tensor, Tensor, Tensor]:
    """Values ``(B, q)``, their residuals and vectors ``(B, *, q)`` by ``order``; those without a residual come last."""
    key = order.key(values).masked_fill(~torch.isfinite(residual), -torch.inf)
    index = sort_by(key, values)
    columns = index.unsqueeze(1).expand_as(vectors)
    return values.gather(1, index), residual.gather(1, index), vectors.gather(2, columns)


def residual_of(op: AbstractOperator, values: Tensor, vectors: Tensor) -> Tensor:
    """``|J x - l x|_2`` of unit vectors ``(B, n, q)``, by q products with real vectors, ``(B, q)``.

    One product serves each real vector, two serve a pair, which stands side by side with the upper member first.
    """
    lower = (values.imag < 0).unsqueeze(1)
    product = op.matvec(torch.where(lower, -vectors.imag, vectors.real))
    # For a pair with J (u +- iw): J u stands in the upper member's column, J w in the lower one's.
    imag = torch.where((values.imag > 0).unsqueeze(1), product.roll(-1, 2), 0.0)
    real = torch.where(lower, product.roll(1, 2), product)
    Jx = torch.complex(real, torch.where(lower, -product, imag))
    return torch.linalg.vector_norm(Jx - vectors * values.unsqueeze(1), dim=1)


def _may_lead(order: AbstractOrder, values: Tensor, move: Tensor, present: Tensor) -> Tensor:
    """Which values would lead by some part of ``order`` if they moved by ``move`` in the best direction, ``(A, q)``."""
    angle = torch.arange(_DIRECTIONS, dtype=torch.float64, device=values.device) * (2 * torch.pi / _DIRECTIONS)
    moved = values.unsqueeze(2) + move.unsqueeze(2) * torch.polar(torch.ones_like(angle), angle)
    out = torch.zeros_like(present)
    for part in order.parts():
        lead = part.key(values).masked_fill(~present, -torch.inf).amax(1, keepdim=True)
        out |= part.key(moved.flatten(1)).view(moved.shape).amax(2) >= lead
    return out & present


def _schur_form(H: Any) -> tuple[Any, Any, Any]:
    """``(T, Z, values)``: H = Z T Z' with T quasi-triangular, and the eigenvalues in the order of its diagonal."""
    T, _, real, imag, Z, _, info = lapack.dgees(lambda *_: 0, H, lwork=10 * len(H))
    if info:
        raise FpcheckError(f"LAPACK did not find the Schur form of a matrix with n={len(H)} (dgees: info={info})")
    return T, Z, real + 1j * imag


def _reorder(T: Any, Z: Any, values: Any, first: Any) -> tuple[Any, Any]:
    """The Schur form with the eigenvalues ``first`` in front, in any order; half a pair stays behind."""
    select = np.zeros(len(T), dtype=np.int32)
    select[first] = 1
    for i in first:
        partner = i + (values[i].imag > 0) - (values[i].imag < 0)
        select[i] &= select[partner]
    # Where two eigenvalues are too close to change places (info = 1) it does not matter which of them is kept.
    T, Z, *_ = lapack.dtrsen(select, T, Z, job=b"N")
    return T, Z


def basis_size(given: int | None, k: int) -> int:
    """Basis vectors for k eigenvalues: as given, or by default as many as ARPACK takes."""
    if given is None:
        return max(2 * k + 2, 20)
    _require_integer("basis_size", given, k + 5)
    return given


def require_options(tol: object, **integers: object) -> None:
    """Refuse a tolerance or a count that makes no sense."""
    if not (isinstance(tol, float) and 0 < tol < 1):
        raise InputError(f"tol={tol!r}; expected a float in (0, 1), relative to the eigenvalue")
    for name, value in integers.items():
        _require_integer(name, value, 0)


def _require_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value!r}; expected an integer >= {least}")
