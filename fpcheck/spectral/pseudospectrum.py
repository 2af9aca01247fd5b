r"""Pseudospectral abscissa and radius: how far perturbations of size epsilon push the eigenvalues.

The epsilon-pseudospectrum is the set of z with ``sigma_min(zI - J) <= epsilon``: all eigenvalues of all J + E with
``|E|_2 <= epsilon``, E complex. Its *abscissa* is its largest real part, its *radius* its largest modulus.

Both come from one search, which goes outwards level by level. A level is a curve: the vertical line ``Re z = level``,
or the circle ``|z| = level``. Where the curve crosses the border, epsilon is a singular value of ``zI - J``, and the
place on the curve is an eigenvalue of a matrix of size 2 n. From the middle of every arc inside the pseudospectrum the
search moves outwards to the border; the furthest of these points gives the next level. When no arc is left inside,
nothing lies further out, because every part of a pseudospectrum contains an eigenvalue. Convergence is quadratic.

Source: Burke, Lewis, Overton (2003) for the abscissa; Mengi, Overton (2005) for the radius. Their move outwards solves
an eigenvalue problem for the last crossing on a ray; here it is a root search for any crossing, which the next level
corrects.
"""

from __future__ import annotations

import abc
import cmath
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import scipy.optimize
import torch
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.operand import Matrices, dense_matrices, lapack

__all__ = ["Pseudospectral", "pseudospectral_abscissa", "pseudospectral_radius"]

_EPS = torch.finfo(torch.float64).eps

_LARGEST = 500

# Levels; five or six are usual.
_LEVELS = 50

# An eigenvalue counts as being on the curve within this, relative to the size of the matrix. Two crossings that have
# nearly met are wrong by the square root of rounding, and are needed; one too many only divides an arc in two.
_ON_CURVE = 1e-6

# Points of the unit circle to expand around; the first that is far enough from a crossing serves. The real ones keep
# the arithmetic real.
_POLES = (1.0, -1.0, cmath.exp(1j), cmath.exp(2j))
_FAR_ENOUGH = 1e-3


@final
@dataclass(frozen=True, eq=False)
class Pseudospectral:
    """The outermost point of a pseudospectrum, per sample. An estimate, no bound.

    Attributes:
        value: Its real part or modulus. The error is the rounding of J and of a singular value, carried to the border
            by its slope: ``1 / |u^H v|`` with the singular vectors there.
        at: ``(B,)`` complex128: the point, on or above the real axis; ``sigma_min(at I - J) = epsilon``.
        epsilon: Size of the perturbations, in the 2-norm.
        converged: ``(B,)`` booleans: whether the last level was found to have nothing outside.
    """

    value: Estimate
    at: Tensor
    epsilon: float
    converged: Tensor

    def __len__(self) -> int:
        return len(self.at)


def pseudospectral_abscissa(J: Matrices, epsilon: float) -> Pseudospectral:
    """Largest real part that an eigenvalue of ``J + E`` can have, over complex E with ``|E|_2 <= epsilon``.

    A damped loop with a small step follows ``dz/dt = F(z) - z``: it stays stable under every such change of its
    Jacobian where the abscissa is below 1.

    Args:
        J: ``(B, n, n)`` or ``(n, n)`` with n <= 500, float32 or float64, or an operator, which is written out.
        epsilon: Size of the perturbation, larger than the rounding of J.

    Raises:
        InputError: Wrong type or shape, n > 500, or epsilon not a finite number above the rounding of J.
        NonFiniteError: NaN or inf in J.
        FpcheckError: LAPACK did not converge.

    Guarantee: estimate.
    Cost: some five eigenvalue problems of size 2 n and forty sets of singular values per sample; one thread: n = 100
        takes 0.1 s, n = 500 2 to 5 s.
    Source: Burke, Lewis, Overton (2003).

    Example:
        >>> # The pseudospectrum of a nilpotent block is a disc of radius sqrt(epsilon^2 + epsilon b).
        >>> J = torch.tensor([[0.5, 3.0], [0.0, 0.5]], dtype=torch.float64)
        >>> round(float(pseudospectral_abscissa(J, 1.0).value[0]), 6)
        2.5
    """
    return _search(J, epsilon, _Line)


def pseudospectral_radius(J: Matrices, epsilon: float) -> Pseudospectral:
    """Largest modulus that an eigenvalue of ``J + E`` can have, over complex E with ``|E|_2 <= epsilon``.

    The loop contracts in the long run under every such change of its Jacobian where this is below 1.
    ``(radius - 1) / epsilon`` is a lower estimate of the Kreiss constant for each epsilon.

    Args:
        J: As for :func:`pseudospectral_abscissa`.
        epsilon: Size of the perturbation, larger than the rounding of J.

    Raises:
        InputError, NonFiniteError, FpcheckError: As :func:`pseudospectral_abscissa`.

    Guarantee: estimate.
    Cost: up to twice that of :func:`pseudospectral_abscissa`.
    Source: Mengi, Overton (2005).

    Example:
        >>> J = torch.tensor([[0.0, 3.0], [0.0, 0.0]], dtype=torch.float64)
        >>> round(float(pseudospectral_radius(J, 1.0).value[0]), 6)
        2.0
    """
    return _search(J, epsilon, _Circle)


def _search(J: Matrices, epsilon: float, kind: type[_Curve]) -> Pseudospectral:
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 < epsilon < math.inf:
        raise InputError(f"epsilon={epsilon!r}; expected a finite number > 0, the 2-norm of the perturbations of J")
    given = dense_matrices(J, each=1, once=60, max_n=_LARGEST)
    A, delta = given.A.cpu(), given.delta.cpu()
    if bool((delta >= epsilon).any()):
        raise InputError(
            f"epsilon={epsilon:.3g} is not above the rounding of J, {float(delta.max()):.1e}; expected a larger one. "
            "Perturbations of the size of rounding are what the errors of the eigenvalues tell"
        )
    values, errors, points, converged = [], [], [], []
    with lapack():
        for one, d in zip(A, delta.tolist(), strict=True):
            curve = kind(one, float(epsilon), d)
            z, done = _outermost(curve)
            points.append(z)
            values.append(curve.level(z))
            errors.append(curve.error(z))
            converged.append(done)
    return Pseudospectral(
        value=Estimate(*(torch.tensor(x, dtype=torch.float64) for x in (values, errors))),
        at=torch.tensor(points, dtype=torch.complex128),
        epsilon=float(epsilon),
        converged=torch.tensor(converged),
    )


def _outermost(curve: _Curve) -> tuple[complex, bool]:
    """The outermost point of the border, and whether the search ended by itself."""
    start = max(torch.linalg.eigvals(curve.A).tolist(), key=curve.level)
    z = curve.outwards(start)
    for _ in range(_LEVELS):
        level = curve.level(z)
        # The curve touches the border at z, a double crossing that rounding may hide. Without it, an arc around the
        # real axis with z in its middle would seem to lie outside.
        ends = sorted({curve.place(z), *curve.crossings(level)})
        places = [*curve.axis, *((a + b) / 2 for a, b in pairwise(ends))]
        middles = [curve.point(level, place) for place in places]
        inside = [m for m in middles if curve.sigma(m) < curve.epsilon - curve.noise(m)]
        if not inside:
            return z, True
        z = max(map(curve.outwards, inside), key=curve.level)
    return z, False


class _Curve(abc.ABC):
    """The levels of one search: curves that move outwards, and places along them, in the upper half plane.

    Args:
        A: ``(n, n)`` float64 on the CPU.
        epsilon: Size of the perturbations.
        delta: Error of A.
    """

    axis: tuple[float, ...]
    """Places on the real axis."""

    def __init__(self, A: Tensor, epsilon: float, delta: float) -> None:
        self.A, self.epsilon, self.delta = A, epsilon, delta
        self.size = float(torch.linalg.matrix_norm(A, 2)) + epsilon

    @abc.abstractmethod
    def level(self, z: complex) -> float:
        """Which curve z lies on."""

    @abc.abstractmethod
    def place(self, z: complex) -> float:
        """Where on it."""

    @abc.abstractmethod
    def point(self, level: float, place: float) -> complex:
        """The z of a level and a place."""

    @abc.abstractmethod
    def crossings(self, level: float) -> list[float]:
        """Places where epsilon is a singular value of ``zI - A``."""

    def sigma(self, z: complex) -> float:
        """Smallest singular value of ``zI - A``."""
        return float(torch.linalg.svdvals(self._shifted(z))[-1])

    def noise(self, z: complex) -> float:
        """Error of a singular value."""
        return self.delta + 10 * _EPS * abs(z)

    def outwards(self, z: complex) -> complex:
        """A point of the border further out than z, which lies inside."""
        place = self.place(z)

        def beyond(level: float) -> float:
            return self.sigma(self.point(level, place)) - self.epsilon

        low = self.level(z)
        # sigma_min >= |z| - |A|_2: a little further than this, every point lies outside.
        high = self.size * (1 + 1e-6)
        if beyond(low) >= 0:
            return self.point(low, place)
        return self.point(float(scipy.optimize.brentq(beyond, low, high, xtol=_EPS * self.size)), place)

    def error(self, z: complex) -> float:
        """Error of the level of a point of the border: that of sigma_min over its slope."""
        U, _, Vh = torch.linalg.svd(self._shifted(z))
        slope = float((U[:, -1].conj() @ Vh[-1].conj()).abs())
        return self.noise(z) / slope if slope > 0 else math.inf

    def _shifted(self, z: complex) -> Tensor:
        shifted = -self.A.to(torch.complex128)
        shifted.diagonal().add_(z)
        return shifted

    def _square(self, a: Tensor, b: Tensor | float, c: Tensor | float, d: Tensor) -> Tensor:
        """``[[a, b], [c, d]]``, numbers standing for multiples of I."""
        eye = torch.eye(len(self.A), dtype=torch.float64)
        top, bottom = ([x if isinstance(x, Tensor) else x * eye for x in row] for row in ((a, b), (c, d)))
        return torch.cat([torch.cat(top, dim=1), torch.cat(bottom, dim=1)])


@final
class _Line(_Curve):
    """Vertical lines ``Re z = level``; places are imaginary parts.

    With ``(zI - A) v = epsilon u`` and ``(zI - A)^H u = epsilon v`` at ``z = x + i y``, the vector (u, v) satisfies
    ``i y (u, v) = [[x I - A', -epsilon I], [epsilon I, A - x I]] (u, v)``.
    """

    axis = (0.0,)

    def level(self, z: complex) -> float:
        return z.real

    def place(self, z: complex) -> float:
        return abs(z.imag)

    def point(self, level: float, place: float) -> complex:
        return complex(level, place)

    def crossings(self, level: float) -> list[float]:
        inner = self.A.clone()
        inner.diagonal().sub_(level)
        y = torch.linalg.eigvals(self._square(-inner.T, -self.epsilon, self.epsilon, inner))
        return y.imag[y.real.abs() <= _ON_CURVE * self.size].abs().tolist()


@final
class _Circle(_Curve):
    """Circles ``|z| = level``; places are angles.

    With ``(zI - A) v = epsilon u`` and ``(zI - A)^H u = epsilon v`` at ``z = r e^(i t)``, the vector (v, u) satisfies
    ``[[A, epsilon I], [0, r I]] (v, u) = e^(i t) [[r I, 0], [epsilon I, A']] (v, u)``: an eigenvalue l = e^(i t) of a
    pencil M - l N. Expanding around a point p of the circle makes it an eigenvalue ``m = (l + p) / (l - p)`` of the
    one matrix ``(M - p N)^-1 (M + p N)``.
    """

    axis = (0.0, math.pi)

    def level(self, z: complex) -> float:
        return abs(z)

    def place(self, z: complex) -> float:
        return abs(cmath.phase(z))

    def point(self, level: float, place: float) -> complex:
        return cmath.rect(level, place)

    def crossings(self, level: float) -> list[float]:
        pole, far = self._pole(level)
        if far <= 2 * self.noise(level):
            # The border is this very circle, as for a nilpotent block, and every place a crossing.
            return [math.pi * k / 16 for k in range(17)]
        r, zero = level, 0.0
        M = self._square(self.A, self.epsilon, zero, r * torch.eye(len(self.A), dtype=torch.float64))
        N = self._square(r * torch.eye(len(self.A), dtype=torch.float64), zero, self.epsilon, self.A.T)
        p = pole.real if pole.imag == 0 else pole
        m = torch.linalg.eigvals(torch.linalg.solve(M - p * N, M + p * N))
        lam = p * (m + 1) / (m - 1)
        return lam.angle()[(lam.abs() - 1).abs() <= _ON_CURVE].abs().tolist()

    def _pole(self, level: float) -> tuple[complex, float]:
        """A point of the unit circle that is no crossing, and how far epsilon is from a singular value there."""
        best, most = complex(_POLES[0]), -1.0
        for pole in _POLES:
            gap = float((torch.linalg.svdvals(self._shifted(pole * level)) - self.epsilon).abs().min())
            if gap > most:
                best, most = complex(pole), gap
            if gap >= _FAR_ENOUGH * self.size:
                break
        return best, most
