r"""A fixed point that does not attract, with an enclosed eigenpair as witness.

A computed eigenvalue of modulus above 1 proves nothing: the eigenvalues of a far from normal matrix move by much more
than its entries do. What proves it is the bordered system :math:`G(v, \lambda) = (J v - \lambda v, w' v - 1)`: with
any matrix A near the inverse of its Jacobian, Theorem K3 gives a radius within which every matrix near enough to J has
an eigenpair. A complex pair is a zero of the same system, written in real and imaginary parts: that keeps lengths.

Shapes: ``(n, n)`` float64; vectors ``(n)``, complex128.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.certificate import Certificate, Verdict, Witness
from fpcheck.certify.curvature import Linearisation, curvature, geometry
from fpcheck.certify.enclosure import Enclosure
from fpcheck.certify.metric import euclidean
from fpcheck.certify.norms import frobenius_bound, norm_bound
from fpcheck.certify.rounding import down, up
from fpcheck.errors import InputError

__all__ = ["outlying", "repelling"]

# choice: eigenvalues outside the unit circle that are tried, the firmest first; each costs two norms of 2 (n + 1).
_TRIES = 8
# choice: factors above the smallest radius at which the two inequalities are tried.
_ROOM = (1 + 1e-12, 1 + 1e-9, 1 + 1e-6, 1.01, 1.5)
_POLISH = 2  # choice: Newton steps from the library's eigenpair


def repelling(held: Enclosure, linear: Linearisation, found: Certificate) -> Witness | None:
    """Prove that a fixed point which was proved to exist does not attract.

    Args:
        held: The enclosure at the certificate's centre.
        linear: Its linearisation.
        found: A certificate of existence.

    Returns:
        An eigenpair of J(z*), outside the unit circle; None if none could be enclosed there, which proves nothing.

    Raises:
        InputError: The certificate proves no fixed point.

    Guarantee: bound, rounding included. J(z*) is within the enclosure's error, plus the change of the Jacobian over
        the ball that holds z*, of the centre's.
    Cost: one curvature in the Euclidean norm, and `outlying`.
    Source: Theorem K3.
    """
    if found.verdict is Verdict.UNKNOWN:
        raise InputError(f"verdict={found.verdict.value}; expected a certificate that proves a fixed point")
    shape = geometry(linear, euclidean(held.jacobian.shape[0]))
    change = curvature(shape, 0.0, found.euclidean_error_bound).kappa
    return outlying(held.jacobian, up(held.jacobian_error + change))


def outlying(jacobian: Tensor, distance: float) -> Witness | None:
    """An eigenvalue outside the unit circle, shared by all matrices near a given one.

    Args:
        jacobian: ``(n, n)`` float64, its floats taken as real numbers.
        distance: Every real matrix within this of it, in the 2-norm, is meant.

    Returns:
        The witness, or None if none was found. For each of the matrices its own eigenpair is within the radius.

    Guarantee: bound, rounding included.
    Source: Theorem K3.
    """
    if not (math.isfinite(distance) and bool(jacobian.isfinite().all())):
        return None
    values, vectors = torch.linalg.eig(jacobian)
    for i in _firmest_first(values, vectors)[:_TRIES]:
        value, vector = complex(values[i].item()), vectors[:, i]
        system = _real_system(jacobian) if value.imag == 0 else _complex_system(jacobian)
        found = system.enclosed(value, vector, distance)
        if found is not None and found.modulus > 1:
            return found
    return None


def _firmest_first(values: Tensor, vectors: Tensor) -> list[int]:
    """Eigenvalues outside the unit circle, one of each pair, by distance from it over their condition number."""
    inverse, info = torch.linalg.inv_ex(vectors)
    excess = values.abs() - 1
    if int(info) == 0 and bool(torch.view_as_real(inverse).isfinite().all()):
        excess = excess / (inverse.norm(dim=1) * vectors.norm(dim=0))
    order = torch.argsort(excess, descending=True).tolist()
    return [i for i in order if float(values[i].abs()) > 1 and float(values[i].imag) >= 0]


@final
@dataclass(frozen=True, eq=False)
class _System:
    """The bordered system in real numbers: of size n + 1 for real pairs, 2 (n + 1) for complex ones.

    Attributes:
        J: The matrix, in the real form.
        stacked: Whether real and imaginary parts are stacked, for a complex pair.
    """

    J: Tensor
    stacked: bool

    def enclosed(self, value: complex, vector: Tensor, distance: float) -> Witness | None:
        """The radius of Theorem K3 about a computed pair, or None where its inequalities fail."""
        n = len(vector)
        for _ in range(_POLISH):
            step = torch.linalg.solve_ex(self._slope(value, vector).mid, self._value(value, vector).mid)[0]
            moved = self._back(step.squeeze(-1))
            if not bool(torch.view_as_real(moved).isfinite().all()):
                return None
            vector, value = vector - moved[:n], value - complex(moved[n].item())
        slope = self._slope(value, vector)
        A, info = torch.linalg.inv_ex(slope.mid)
        if int(info) != 0 or not bool(A.isfinite().all()):
            return None
        exact = Ball.exact(A)
        size = norm_bound(exact)
        moved_by = up(size * distance)
        length = frobenius_bound(Ball.exact(torch.view_as_real(vector)))
        Y = up(frobenius_bound(exact @ self._value(value, vector)) + up(moved_by * length))
        eye = Ball.exact(torch.eye(A.shape[0], dtype=torch.float64))
        Z1 = up(norm_bound(eye - exact @ slope) + moved_by)
        gap = down(1 - Z1)
        square = gap * gap - 2 * size * Y
        if not (gap > 0 and square > 0):
            return None
        least = 2 * Y / (gap + math.sqrt(square))
        for room in _ROOM:
            radius = least * room
            bent = up(up(size * radius) * radius) / 2
            if up(Y + bent) <= down(gap * radius) and up(Z1 + up(size * radius)) < 1:
                # hypot is right to a few units in the last place.
                modulus = down(down(abs(value) * (1 - 2.0**-50)) - radius)
                return Witness(value, vector, radius, modulus)
        return None

    def _column(self, vector: Tensor) -> Tensor:
        """A complex vector, or each column of a matrix, in the real form."""
        return torch.cat([vector.real, vector.imag]) if self.stacked else vector.real.clone()

    def _back(self, stacked: Tensor) -> Tensor:
        if not self.stacked:
            return stacked.to(torch.complex128)
        half = len(stacked) // 2
        return torch.complex(stacked[:half], stacked[half:])

    def _slope(self, value: complex, vector: Tensor) -> Ball:
        """The Jacobian of G: J - lambda, beside it -v, below it w'."""
        n = len(vector)
        bordered = torch.zeros((n + 1, n + 1), dtype=torch.complex128)
        bordered[:n, n] = -vector
        bordered[n, :n] = vector.conj() / vector.abs().square().sum()
        shift = torch.zeros_like(bordered)
        shift.diagonal()[:n].fill_(value)
        return Ball.exact(self.J + self._matrix(bordered)) - Ball.exact(self._matrix(shift))

    def _matrix(self, M: Tensor) -> Tensor:
        if not self.stacked:
            return M.real.clone()
        return torch.cat([torch.cat([M.real, -M.imag], 1), torch.cat([M.imag, M.real], 1)])

    def _value(self, value: complex, vector: Tensor) -> Ball:
        """G itself, as a column: the slope times (v, 0), less 1 in the last entry."""
        nothing = torch.zeros(1, dtype=torch.complex128)
        column = self._column(torch.cat([vector, nothing])).unsqueeze(-1)
        last = self._column(torch.cat([torch.zeros_like(vector), nothing + 1])).unsqueeze(-1)
        return self._slope(value, vector) @ Ball.exact(column) - Ball.exact(last)


def _real_system(J: Tensor) -> _System:
    return _System(torch.nn.functional.pad(J, (0, 1, 0, 1)), stacked=False)


def _complex_system(J: Tensor) -> _System:
    padded = torch.nn.functional.pad(J, (0, 1, 0, 1))
    return _System(torch.block_diag(padded, padded), stacked=True)
