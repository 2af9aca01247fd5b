"""The numerical range of an operator: all ``x^H J x`` with complex x of unit length, and its boundary.

The range W is convex, and in the direction ``e^(i t)`` it reaches as far as its support function
``h(t) = largest eigenvalue of A(t) = (e^(-i t) J + e^(i t) J') / 2``, in the point ``x^H J x`` of an eigenvector x
(Johnson 1978). For real J, ``h(-t) = h(t)``: half of the circle is enough. With ``S = (J + J') / 2`` and ``K = (J -
J') / 2``, ``A(t) = cos t S - i sin t K``.

Shapes: ``B`` samples, ``n`` entries of a state, ``A`` angles on the circle, ``P`` pairs of a sample and an angle. A
complex vector is two real ones side by side: ``A(t) (x + i y) = (cos t S x + sin t K y) + i (cos t S y - sin t K x)``.
So the complex Hermitian problem is a real symmetric one of size 2n with every eigenvalue twice, which the Lanczos
process of :mod:`fpcheck.spectral.lanczos` does not mind: it sees one vector of each eigenspace.

Angles run side by side, as columns of one product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.errors import FpcheckError, NonFiniteError
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.lanczos import (
    AbstractPart,
    check_fraction,
    check_integer,
    largest,
    magnitude,
    unit,
    weighted,
)
from fpcheck.spectral.operator import AbstractOperator, require_basis_memory, where

__all__ = ["NumericalRange", "numerical_range"]

# Up to this n LAPACK on dense matrices is about as fast, and exact: equal at 150, 1.3 times slower at 250.
_DENSE = 200

# Bases of all angles together, in bytes; more angles than fit run in turns. An FPRM block with
# n = 4,096 took 2.5 times as long one angle at a time.
_TURN_BYTES = 2**26

# Every fourth angle starts from a random vector; the others from the eigenvector of the nearest of these, with a random
# vector of this length added: 15 to 20 % fewer products. Without the random part a normal matrix comes out wrong: an
# eigenvector of one angle is one of all, and its Krylov space holds nothing else.
_STRIDE = 4
_FRESH = 0.3

# Backward error of LAPACK's symmetric eigenvalues in units of eps |J|_F; typically below 1.
_BACKWARD = 10.0


@final
@dataclass(frozen=True, eq=False)
class NumericalRange:
    """Points on the boundary of the numerical range W, and the lines that touch it there: estimates.

    The polygon through ``points`` lies in W; the one that the support lines cut out, with corners ``outer``, holds W
    as far as the errors tell. Each point belongs to a vector that is at hand; the lines rest on an eigenvalue that is
    the largest one found (see :class:`fpcheck.spectral.Extreme`).

    Attributes:
        angles: ``(A,)``, radians, equally spaced from 0.
        support: ``(B, A)``: the largest ``Re(e^(-i t) w)`` over w in W for each angle t.
        error: Its error estimate, ``(B, A)``.
        points: ``(B, A)`` complex128: points of W where the support lines touch it.
        abscissa: Largest real part, ``(B,)``: the log-norm mu_2(J).
        radius: Largest modulus, ``(B,)``: attained by one of ``points``; the true one exceeds it by at most the error,
            the distance to the outer polygon: some ``(pi / A)^2 / 2`` of it.
        converged: Whether every angle did, ``(B,)`` booleans.
        products: Real products with J and J' for each sample, ``(B,)`` integers; n where J was assembled.
    """

    angles: Tensor
    support: Tensor
    error: Tensor
    points: Tensor
    abscissa: Estimate
    radius: Estimate
    converged: Tensor
    products: Tensor

    def __len__(self) -> int:
        return len(self.support)

    @property
    def outer(self) -> Tensor:
        """Corners of the outer polygon, ``(B, A)`` complex128: where each support line, moved out by its error, meets
        the next.
        """
        return _corners(self.angles, self.support + self.error)


def numerical_range(
    op: AbstractOperator,
    *,
    angles: int = 64,
    metric: Tensor | None = None,
    rtol: float = 1e-6,
    basis_size: int = 32,
    max_restarts: int = 200,
    seed: int = 0,
) -> NumericalRange:
    """Boundary of the numerical range, its largest real part and its largest modulus.

    Args:
        op: J.
        angles: Directions on the whole circle, at least 4.
        metric: L of the inner product ``<L x, L y>``: a diagonal ``(n,)`` or ``(B, n)``, or matrices ``(B, n, n)``. The
            result is then the range of ``L J L^-1``.
        rtol: Accuracy relative to the norm of A(t): an angle is done once the residual is well below that, or at the
            level of rounding; the true error is usually of the order of its square. Not used where J is assembled.
        basis_size: Complex vectors held for each sample and angle.
        max_restarts: Give up after this many.
        seed: Of the random start.

    Raises:
        InputError: No operator, no metric for it, an argument out of range, or a basis beyond 8 GiB; before any work.
        NonFiniteError: A product holds NaN or inf.
        FpcheckError: LAPACK did not converge.

    Guarantee: estimate; see :class:`NumericalRange`.
    Cost: for n up to 200, n products and ``angles / 2`` complex eigenvalue problems; above, four products a step of
        each angle up to pi.
    Source: Johnson (1978); Lanczos as in :func:`fpcheck.spectral.spectral_norm`.

    Example:
        >>> op = MatrixOperator(torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double())  # a disk of radius 1/2
        >>> numerical_range(op).radius[0]
        0.5 +- 6e-04 (estimate)
    """
    op = weighted(op, metric)
    check_integer("angles", angles, 4)
    check_fraction("rtol", rtol)
    check_integer("basis_size", basis_size, 4)
    check_integer("max_restarts", max_restarts, 0)
    check_integer("seed", seed, 0)
    t = 2 * math.pi / angles * torch.arange(angles, dtype=torch.float64, device=op.device)
    half = t[: angles // 2 + 1]
    if op.n <= _DENSE:
        support, error, points, converged, products = _dense(op, half)
    else:
        require_basis_memory(op, 2 * (basis_size + 1))
        support, error, points, converged, products = _krylov(op, half, rtol, basis_size, max_restarts, seed)
    # Angle -t from angle t: the upper half again, without 0 and, if it is there, pi.
    mirrored = slice(1, (angles + 1) // 2)
    support, error = (torch.cat([part, part[:, mirrored].flip(1)], 1) for part in (support, error))
    points = torch.cat([points, points[:, mirrored].flip(1).conj()], 1).resolve_conj()
    inner = points.abs().amax(1)
    outer = torch.maximum(inner, _corners(t, support + error).abs().amax(1))
    return NumericalRange(
        angles=t,
        support=support,
        error=error,
        points=points,
        abscissa=Estimate(support[:, 0], error[:, 0]),
        radius=Estimate(inner, outer - inner),
        converged=converged,
        products=products,
    )


def _corners(t: Tensor, h: Tensor) -> Tensor:
    """Where the line at angle t_k meets the next: ``e^(i t_k) (h_k + i (h_(k+1) - h_k cos d) / sin d)``, d the step."""
    d = 2 * math.pi / len(t)
    along = (h.roll(-1, 1) - h * math.cos(d)) / math.sin(d)
    return torch.polar(torch.ones_like(t), t) * torch.complex(h, along)


_Boundary = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _dense(op: AbstractOperator, t: Tensor) -> _Boundary:
    J = op.dense().double()
    finite = torch.isfinite(J).flatten(1).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(f"the Jacobian {where(~finite)} holds NaN or inf; expected finite products")
    c = magnitude(J.flatten(1))
    J = J / c.view(-1, 1, 1)
    S, K = (J + J.mT) / 2, (J - J.mT) / 2
    support, points = [], []
    for angle in t.tolist():
        try:
            h, X = torch.linalg.eigh(torch.complex(math.cos(angle) * S, -math.sin(angle) * K))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # public, but missing in its stub
            raise FpcheckError(f"LAPACK did not converge at angle {angle:.3g} (n={op.n}): {error}") from error
        x = X[:, :, -1:]
        support.append(h[:, -1])
        points.append((x.mH @ J.to(x.dtype) @ x).flatten())
    noise = _BACKWARD * torch.finfo(J.dtype).eps * torch.linalg.vector_norm(J, dim=(1, 2)) * c + op.rounding()
    B = op.batch_size
    return (
        torch.stack(support, 1) * c.unsqueeze(1),
        noise.unsqueeze(1).expand(B, len(t)),
        torch.stack(points, 1) * c.unsqueeze(1),
        torch.ones(B, dtype=torch.bool, device=op.device),
        torch.full((B,), op.n, device=op.device),
    )


def _krylov(op: AbstractOperator, t: Tensor, rtol: float, basis_size: int, max_restarts: int, seed: int) -> _Boundary:
    B, n = op.batch_size, op.n
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randn(2 * n, generator=generator, dtype=torch.float64).to(op.device)
    fresh = fresh / torch.linalg.vector_norm(fresh)
    rounding = op.rounding()
    at_once = max(1, _TURN_BYTES // (8 * B * 2 * n * (basis_size + 1)))
    cold = torch.arange(0, len(t), _STRIDE)
    warm = torch.tensor([k for k in range(len(t)) if k % _STRIDE])
    found: list[Tensor] = []  # eigenvectors (B, any, 2n) at the cold angles
    turns = []
    for k in [*cold.split(at_once), *warm.split(at_once)]:
        start = fresh.expand(B, len(k), 2 * n)
        if k[0] % _STRIDE:
            nearest = ((k + _STRIDE // 2) // _STRIDE).clamp(max=len(cold) - 1)
            start = torch.cat(found, 1)[:, nearest] + _FRESH * start
        pairs = torch.arange(B, device=op.device).repeat_interleave(len(k))
        A = Rotated(op, rounding[pairs], pairs, t[k].repeat(B))
        ritz = largest(A, start.flatten(0, 1), rtol=rtol, basis_size=basis_size, max_restarts=max_restarts)
        x = ritz.vector
        JX, JtX = A.scaled(*A.products(x))
        Ax = A.rotated(JX, JtX)
        h = (x * Ax).sum(1)
        (a, b), (Ja, Jb) = (part.view(len(x), 2, n).unbind(1) for part in (x, JX))
        point = torch.complex((a * Ja + b * Jb).sum(1), (a * Jb - b * Ja).sum(1))
        residual = torch.maximum(unit(Ax - h.unsqueeze(1) * x)[1], ritz.above / A.scale)
        # Twice: what the search took for the level of rounding, and the rounding of the residual itself.
        converged = residual <= rtol * ritz.size / A.scale + 2 * A.noise()
        figures = h * A.scale, (residual + A.noise()) * A.scale, point * A.scale, converged, 4 * (ritz.steps + 1)
        turns.append([figure.view(B, len(k)) for figure in figures])
        if not k[0] % _STRIDE:
            found.append(x.view(B, len(k), 2 * n))
    order = torch.cat([cold, warm]).argsort()
    support, error, points, converged, products = (torch.cat(parts, 1)[:, order] for parts in zip(*turns, strict=True))
    return support, error, points, converged.all(1), products.sum(1)


@final
class Rotated(AbstractPart):
    """``A(t) / c`` for P pairs of a sample and an angle, on vectors ``(P, 2n)``: real parts, then imaginary parts.

    Args:
        op: J of the samples.
        rounding: Rounding of J for each pair, ``(P,)``.
        sample: Index into the samples of each pair, ascending, ``(P,)``.
        angle: t of each pair, ``(P,)``.
    """

    def __init__(self, op: AbstractOperator, rounding: Tensor, sample: Tensor, angle: Tensor) -> None:
        super().__init__(op, rounding)
        self.sample, self.angle = sample, angle
        # A product takes as many columns as the sample with most angles has; the others leave some at zero.
        _, place, counts = torch.unique_consecutive(sample, return_inverse=True, return_counts=True)
        self._slot = torch.arange(len(sample), device=sample.device) - (counts.cumsum(0) - counts)[place]
        self._slots = int(counts.max())

    def apply(self, V: Tensor) -> Tensor:
        """``A(t) V / c``."""
        return self.rotated(*self.scaled(*self.products(V)))

    def rotated(self, JX: Tensor, JtX: Tensor) -> Tensor:
        """``A(t) X`` from ``J X`` and ``J'X``."""
        S, K = (part.view(len(JX), 2, -1) for part in ((JX + JtX) / 2, (JX - JtX) / 2))
        cos, sin = self.angle.cos().unsqueeze(1), self.angle.sin().unsqueeze(1)
        return torch.cat([cos * S[:, 0] + sin * K[:, 1], cos * S[:, 1] - sin * K[:, 0]], 1)

    def products(self, V: Tensor) -> tuple[Tensor, Tensor]:
        """``J x`` and ``J'x`` of real and imaginary parts, ``(P, 2n)``."""
        B, n = self.op.batch_size, self.op.n
        columns = V.new_zeros(B, self._slots, 2, n)
        columns[self.sample, self._slot] = V.reshape(len(V), 2, n)
        columns = columns.view(B, 2 * self._slots, n).mT
        JX, JtX = (
            product(columns).mT.reshape(B, self._slots, 2, n)[self.sample, self._slot].reshape(len(V), 2 * n)
            for product in (self.op.matvec, self.op.rmatvec)
        )
        return JX, JtX

    def select(self, index: Tensor) -> Rotated:
        """Some of the pairs; samples that are left without one are dropped."""
        left, sample = torch.unique_consecutive(self.sample[index], return_inverse=True)
        op = self.op if len(left) == self.op.batch_size else self.op.select(left)
        some = Rotated(op, self.rounding[index], sample, self.angle[index])
        self._copy_scale(some, index)
        return some
