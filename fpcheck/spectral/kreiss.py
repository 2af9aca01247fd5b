r"""The Kreiss constant: what the resolvent says about transient growth.

.. math:: K(J) = \sup_{|z| > 1} (|z| - 1) \, |(z I - J)^{-1}|_2, \qquad K(J) \le \sup_k |J^k|_2 \le e \, n \, K(J)

Every single z gives a lower estimate of K, and so does every subspace: for orthonormal V the smallest singular value
of ``(z I - J) V`` is at least that of ``z I - J``. With the QR factorisation ``J V = V H + W G`` it is that of a matrix
with 2 m rows and m columns, ``[z I - H; -G]``, which costs nothing to search over z. The search therefore runs in a
small subspace; at the point that it finds, the right singular vector of the full ``z I - J`` joins the subspace, which
makes the two agree there, and so does that of the best point elsewhere; and so on until nothing is gained.

Shapes: ``B`` samples, ``n`` rows, ``m`` basis vectors, ``P`` points z. Points are ``z = (1 + t) e^(i a)`` with a in
[0, pi]: J is real, so the conjugate of z gives the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import final

import torch
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.operand import Matrices, dense_matrices, lapack

__all__ = ["Kreiss", "kreiss_constant"]

# Up to this size the subspace is everything; above it, starting with fewer vectors is cheaper than searching with all.
_WHOLE = 64

# Angles of the search: evenly spaced ones, which see broad maxima, and those of the largest eigenvalues, above which
# the narrow ones stand.
_ANGLES = 25
_EIGENVALUES = 8

# Angles of the first vectors of a subspace, beside those of three eigenvalues.
_STARTS = 7

# Cells of the grid between the two best angles, so that both are not the same maximum.
_APART = 2.5

# Distances t of the search, evenly in log t.
_DISTANCES = 20

# The grid around the best point, 3 by 3, shrinks by this, so often: to 5e-7 of a cell, and the square of that in value.
_SHRINK = 0.6
_REFINEMENTS = 28

# A new vector that gains less than this, relative to the value, has nothing left to gain.
_GAIN = 1e-6

# Squares of singular values are wrong by rounding of the largest; below this fraction of it that is more than 1e-8.
_LOST = 1e-8

_CHUNK_BYTES = 64 * 2**20


@final
@dataclass(frozen=True, eq=False)
class Kreiss:
    """Lower estimates of Kreiss constants, per sample: the value at one z each. None is a bound.

    ``K <= sup_k |J^k|_2 <= e n K`` (left half: Theorem D9; the factor e n: Spijker 1991). The left half holds for a
    lower estimate too: powers grow at least ``value``-fold. The right half needs K itself.

    Attributes:
        value: ``(|z| - 1) |(zI - J)^-1|_2`` at ``z = at``, and at least 1, which is the limit for large z. Its error is
            that of the evaluation, not the distance from K. Infinite, with error 0, where an eigenvalue lies outside
            the unit circle by more than rounding: then powers grow without end.
        at: ``(B,)`` complex128, the z that attains it, on or above the real axis; infinite where no z gives more than
            1; where the value is infinite, the largest eigenvalue.
        on_circle: ``(B,)`` booleans: whether a change of J by no more than its error puts an eigenvalue on the unit
            circle. Whether K is finite is then unknown.
        converged: ``(B,)`` booleans: whether the search ended by itself, and ``on_circle`` is False. It does not
            exclude a higher maximum elsewhere.
        n: Rows of J.
    """

    value: Estimate
    at: Tensor
    on_circle: Tensor
    converged: Tensor
    n: int

    def __len__(self) -> int:
        return len(self.at)

    def explain(self, i: int) -> str:
        """One line about sample i."""
        value, z = float(self.value.value[i]), complex(self.at[i])
        if math.isinf(value):
            return f"Kreiss constant infinite: eigenvalue {z:.4g} outside the unit circle, powers grow without end"
        where = "in the limit of large z" if math.isinf(abs(z)) else f"at z = {z:.4g}"
        text = f"Kreiss constant at least about {value:.4g} ({where})"
        if bool(self.on_circle[i]):
            return f"{text}; an eigenvalue lies on the unit circle up to rounding, so it may be infinite"
        return text if bool(self.converged[i]) else f"{text}; the search was cut off"


def kreiss_constant(J: Matrices, *, max_rounds: int = 12) -> Kreiss:
    """Lower estimate of the Kreiss constant: powers of J grow at least that much.

    A grid over angle and distance from the unit circle, then a refinement around its best point, in a subspace that
    learns from the full matrix (:mod:`fpcheck.spectral.kreiss`). The highest of several maxima may be missed where it
    is narrow; what is found is a lower estimate all the same.

    Args:
        J: ``(B, n, n)`` or ``(n, n)``, float32 or float64, or an operator, which is written out.
        max_rounds: Extend the subspace at most this often; each round takes two factorisations of ``zI - J``.

    Raises:
        InputError: Wrong type or shape, ``max_rounds`` no positive integer, or too large for memory.
        NonFiniteError: NaN or inf in J.
        FpcheckError: LAPACK did not converge.

    Guarantee: estimate, from below.
    Cost: one set of eigenvalues and 15 to 35 complex LU factorisations; n = 768 takes 1.6 s on one thread.
    Source: Kreiss (1962); Spijker (1991); subspaces that interpolate singular values: Kressner, Vandereycken (2014).

    Example:
        >>> # [[0, b], [0, 0]] with b >= 2 has K = b / 4 + 1 / b.
        >>> kreiss = kreiss_constant(torch.tensor([[0.0, 8.0], [0.0, 0.0]], dtype=torch.float64))
        >>> round(float(kreiss.value[0]), 6)
        2.125
    """
    if not isinstance(max_rounds, int) or isinstance(max_rounds, bool) or max_rounds < 1:
        raise InputError(f"max_rounds={max_rounds!r}; expected an integer >= 1")
    given = dense_matrices(J, each=6, once=4)
    A, delta = given.A, given.delta
    n = A.shape[1]
    with lapack():
        lam = torch.linalg.eigvals(A)
        lam = lam.gather(1, lam.abs().argsort(dim=1, descending=True, stable=True))
        search = _Search(A, lam, delta)
        space = search.whole() if n <= _WHOLE else search.start()
        found = space.figures()
        active = torch.arange(0 if n <= _WHOLE else len(A), device=A.device)
        keep = active
        for _ in range(max_rounds):
            if len(active) == 0:
                break
            space = space.select(keep)
            search = search.select(keep)
            before = space.value
            space = search.extend(space)
            found[:, active] = space.figures()
            keep = (space.value > (1 + _GAIN) * before).nonzero().flatten()
            active = active[keep]
    done = torch.ones(len(A), dtype=torch.bool, device=A.device).index_fill(0, active, False)
    return _result(found, lam[:, 0], delta, done, n)


def _result(found: Tensor, largest: Tensor, delta: Tensor, done: Tensor, n: int) -> Kreiss:
    t, a, value, distance = found
    # sigma_min = t / value is known to delta and the rounding of z, t to the rounding of |z|.
    error = value * (value / t * (delta + _rounding(t)) + _rounding(t) / t)
    at = torch.polar(1 + t, a)
    low = value - error <= 1
    value, error = torch.where(low, 1.0, value), torch.where(low, 0.0, error)
    at = torch.where(low, torch.full_like(at, torch.inf), at)
    # A change of J smaller than its distance from the circle moves no eigenvalue across it.
    known = distance > delta + _rounding(0 * t)
    outside = known & (largest.abs() > 1)
    value, error = torch.where(outside, torch.inf, value), torch.where(outside, 0.0, error)
    at = torch.where(outside, torch.complex(largest.real, largest.imag.abs()), at)
    return Kreiss(
        value=Estimate(value.cpu(), error.cpu()),
        at=at.cpu(),
        on_circle=~known.cpu(),
        converged=(outside | (done & known)).cpu(),
        n=n,
    )


@final
@dataclass(frozen=True, eq=False)
class _Space:
    """A subspace, and the best points that it knows.

    Attributes:
        V: Orthonormal basis ``(B, n, m)``.
        H: ``V' J V``.
        G: ``(B, g, m)``, triangular factor of what ``J V`` has outside; no rows where V is everything.
        t: Distance from the circle of the point with the largest value, ``(B,)``.
        a: Its angle.
        value: ``t`` over the smallest singular value there.
        second_t: Distance of the best point at another angle.
        second_a: Its angle.
        distance: Smallest singular value on the unit circle.
    """

    V: Tensor
    H: Tensor
    G: Tensor
    t: Tensor
    a: Tensor
    value: Tensor
    second_t: Tensor
    second_a: Tensor
    distance: Tensor

    def figures(self) -> Tensor:
        """t, a, value and distance, ``(4, B)``."""
        return torch.stack([self.t, self.a, self.value, self.distance])

    def select(self, index: Tensor) -> _Space:
        """Some samples."""
        return _Space(*(getattr(self, f.name)[index] for f in fields(self)))


class _Search:
    """The search for one batch of matrices.

    Args:
        A: ``(B, n, n)`` float64.
        lam: Eigenvalues, largest modulus first.
        delta: Error of A, ``(B,)``.
    """

    def __init__(self, A: Tensor, lam: Tensor, delta: Tensor) -> None:
        self.A, self.lam, self.delta = A, lam, delta
        # Of a pair one is enough.
        above = torch.where(lam.imag < 0, -1.0, lam.abs()).argsort(dim=1, descending=True, stable=True)
        self.likely = lam.gather(1, above)[:, :_EIGENVALUES].angle().abs()
        self.angles = torch.cat([self._even_angles(_ANGLES), self.likely], dim=1)

    def select(self, index: Tensor) -> _Search:
        """That of some samples."""
        return _Search(self.A[index], self.lam[index], self.delta[index])

    def whole(self) -> _Space:
        """Everything: nothing is left to learn."""
        B, n, _ = self.A.shape
        return self._with_best(torch.eye(n).to(self.A).expand(B, n, n), self.A, self.A[:, :0])

    def start(self) -> _Space:
        """Singular vectors as far outside the circle as the eigenvalues lie inside: where maxima usually are."""
        angles = torch.cat([self._even_angles(_STARTS), self.likely[:, :3]], dim=1)
        points = torch.polar((1 + (1 - self.lam[:, :1].abs()).abs()).expand_as(angles), angles)
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(self.A.shape[1], 1, generator=generator, dtype=torch.complex128).to(self.A.device)
        return self._spanned_by([self._inverse_iteration(z, v.expand(len(z), -1, -1), 3) for z in points.unbind(1)])

    def extend(self, space: _Space) -> _Space:
        """Add the singular vectors at the best points."""
        columns = [space.V]
        for t, a in ((space.t, space.a), (space.second_t, space.second_a)):
            z = torch.polar(1 + t, a)
            right = torch.linalg.svd(_compressed(space.H, space.G, z[:, None])[:, 0], full_matrices=False)[2]
            columns.append(self._inverse_iteration(z, space.V.to(z.dtype) @ right[:, -1:].mH, 2))
        return self._spanned_by(columns)

    def _even_angles(self, count: int) -> Tensor:
        return _even(0, math.pi, count, self.A).expand(len(self.A), -1)

    def _spanned_by(self, columns: list[Tensor]) -> _Space:
        real = torch.cat([part for x in columns for part in ((x.real, x.imag) if x.is_complex() else (x,))], dim=2)
        V = torch.linalg.qr(real)[0]
        JV = self.A @ V
        H = V.mT @ JV
        return self._with_best(V, H, torch.linalg.qr(JV - V @ H, mode="r")[1])

    def _inverse_iteration(self, z: Tensor, x: Tensor, steps: int) -> Tensor:
        """Approach the right singular vector ``(B, n, 1)`` of ``zI - J`` for its smallest singular value."""
        shifted = -self.A.to(z.dtype)
        # A hair outside: on an eigenvalue there would be no inverse.
        shifted.diagonal(dim1=1, dim2=2).add_((z * (1 + 1e-12))[:, None])
        LU, pivots, _ = torch.linalg.lu_factor_ex(shifted)
        for _ in range(steps):
            half = torch.linalg.lu_solve(LU, pivots, _unit(x), adjoint=True)
            x = torch.linalg.lu_solve(LU, pivots, _unit(half))
        return _unit(x)

    def _with_best(self, V: Tensor, H: Tensor, G: Tensor) -> _Space:
        cell = math.pi / (_ANGLES - 1)
        around = _even(-1, 1, 3, H)
        distance, circle_a = _least(_smallest(H, G, _circle(self.angles)), self.angles)
        for i in range(_REFINEMENTS):
            a = circle_a[:, None] + _SHRINK**i * cell * around
            distance, circle_a = _least(_smallest(H, G, _circle(a)), a)
        # At a maximum of at least 1, t is at least half the distance of J from the circle: sigma_min falls no faster
        # than z moves, so t >= sigma_min >= distance - t. Closer than rounding to the circle nothing can be told.
        nearest = torch.maximum(distance / 2, self.delta + _rounding(0 * distance))
        furthest = 1e3 * (1 + torch.linalg.matrix_norm(self.A))
        reach = (furthest / nearest).log()[:, None] / (_DISTANCES - 1)
        u, a = _mesh(nearest.log()[:, None] + reach * torch.arange(_DISTANCES).to(H), self.angles)
        score = self._score(H, G, u, a)
        _, u1, a1 = _least(score, u, a)
        elsewhere = (a - a1[:, None]).abs() > _APART * cell
        _, u2, a2 = _least(torch.where(elsewhere, score, torch.inf), u, a)
        least1, u1, a1 = self._refined(H, G, u1, a1, reach, cell)
        least2, u2, a2 = self._refined(H, G, u2, a2, reach, cell)
        swap = least2 < least1
        u1, u2 = torch.where(swap, u2, u1), torch.where(swap, u1, u2)
        a1, a2 = torch.where(swap, a2, a1), torch.where(swap, a1, a2)
        t, a = u1.exp(), _folded(a1)
        sigma = torch.linalg.svdvals(_compressed(H, G, torch.polar(1 + t, a)[:, None]))[:, 0, -1]
        return _Space(V, H, G, t, a, t / sigma, u2.exp(), _folded(a2), distance)

    def _refined(self, H: Tensor, G: Tensor, u: Tensor, a: Tensor, reach: Tensor, cell: float) -> tuple[Tensor, ...]:
        """Least score near one point of the grid for each sample, and its place."""
        around = _even(-1, 1, 3, H)
        for i in range(_REFINEMENTS):
            us, angles = _mesh(*(x[:, None] + _SHRINK**i * size * around for x, size in ((u, reach), (a, cell))))
            least, u, a = _least(self._score(H, G, us, angles), us, angles)
        return least, u, a

    def _score(self, H: Tensor, G: Tensor, u: Tensor, a: Tensor) -> Tensor:
        """One over the value, with rounding counted against it: else a search close to the circle finds noise."""
        t = u.exp()
        return (_smallest(H, G, torch.polar(1 + t, a)) + self.delta[:, None] + _rounding(t)) / t


def _smallest(H: Tensor, G: Tensor, z: Tensor) -> Tensor:
    """Smallest singular value of ``(z I - J) V`` at points ``(B, P)``.

    From the eigenvalues of ``S^H S = |z|^2 I - z' H - z H' + H'H + G'G``, three times as fast as the singular values of
    S; from these where squares have lost too much.
    """
    squares = H.mT @ H + G.mT @ G
    size = max(1, _CHUNK_BYTES // (16 * len(H) * H.shape[1] ** 2))
    return torch.cat([_smallest_of_some(H, G, squares, part) for part in z.split(size, dim=1)], dim=1)


def _smallest_of_some(H: Tensor, G: Tensor, squares: Tensor, z: Tensor) -> Tensor:
    cross = z[..., None, None].conj() * H[:, None]
    gram = squares[:, None] - cross - cross.mH
    gram.diagonal(dim1=2, dim2=3).add_(z.abs().square()[..., None])
    eigenvalues = torch.linalg.eigvalsh(gram)
    sigma = eigenvalues[..., 0].clamp(min=0).sqrt()
    lost = eigenvalues[..., 0] < _LOST * eigenvalues[..., -1]
    for i, j in enumerate(lost):
        if bool(j.any()):
            sigma[i, j] = torch.linalg.svdvals(_compressed(H[i : i + 1], G[i : i + 1], z[i : i + 1, j]))[0, :, -1]
    return sigma


def _compressed(H: Tensor, G: Tensor, z: Tensor) -> Tensor:
    """``[z I - H; -G]``, ``(B, P, m + g, m)``."""
    S = -torch.cat([H, G], dim=1).to(z.dtype)[:, None].repeat(1, z.shape[1], 1, 1)
    S.diagonal(dim1=2, dim2=3).add_(z[..., None])
    return S


def _least(score: Tensor, *coordinates: Tensor) -> tuple[Tensor, ...]:
    """The least of ``(B, P)`` scores and where it lies."""
    least, at = score.min(1, keepdim=True)
    return least[:, 0], *(x.gather(1, at)[:, 0] for x in coordinates)


def _mesh(u: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    """All pairs of ``(B, p)`` and ``(B, q)``, each ``(B, p q)``."""
    return tuple(x.flatten(1) for x in torch.broadcast_tensors(u[:, :, None], a[:, None, :]))


def _even(start: float, stop: float, steps: int, like: Tensor) -> Tensor:
    return torch.linspace(start, stop, steps, dtype=torch.float64, device=like.device)


def _circle(a: Tensor) -> Tensor:
    return torch.polar(torch.ones_like(a), a)


def _folded(a: Tensor) -> Tensor:
    """The angle in [0, pi] of the same point or its conjugate."""
    return torch.atan2(a.sin().abs(), a.cos())


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def _rounding(t: Tensor) -> Tensor:
    """Of a singular value of ``zI - J`` with ``|z| = 1 + t``, beside that of J: ten roundings of z."""
    return 10 * torch.finfo(torch.float64).eps * (1 + t)
