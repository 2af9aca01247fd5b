"""Largest singular value and log-norm of an operator, by Lanczos for a whole batch at once.

Shapes: ``B`` samples, ``n`` entries of one sample's state, ``m`` vectors of a basis.

The Lanczos process spans ``v, Av, A^2 v, ...`` for a symmetric A by orthonormal vectors V and takes the eigenvalues
of ``H = V'AV`` (Ritz values) for those of A; the largest come first. Once the basis is full it starts again from the
best half of its Ritz vectors (thick restart, Wu and Simon 2000), which loses little: H is then diagonal with one full
row, and stays so small that solving it costs nothing beside a product.

A is ``(J + J') / 2`` for the log-norm. For the norm it is ``J'J``: Golub-Kahan bidiagonalisation spans the same space
with the same two products a step and the same Ritz values, squared. It also orthogonalises the left vectors, which
small singular values need; the largest one loses nothing without (Simon and Zha 2000): the relative rounding error of
its square is that of the square root, twice. The value handed back is ``|Jv|`` of the right vector itself.
"""

from __future__ import annotations

import abc
import copy
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.operator import AbstractOperator, Weighted, require_basis_memory, where

__all__ = ["AbstractSymmetric", "Extreme", "Lanczos", "largest", "log_norm", "spectral_norm"]

# Rounding of one product in units of eps of its dtype, relative to |J|_2: up to 5 for matrices with n up to 4,000.
_ROUNDINGS = 10.0

# A new basis vector this small, relative to the largest entry of H and in units of float64's eps, is rounding.
BREAKDOWN = 32.0

# The search goes on until the residual is this much smaller than asked for. Several largest ones closer together than
# some tens of rtol first look like a single one, somewhere between them: of 12,000 matrices with such ties the value
# was off by more than its error and rtol for 43 without, for 4 with this, for 4 to 8 % more steps.
_REACH = 4.0

# Steps between two looks at the Ritz values. Fewer looks, but up to three steps too many.
_LOOK = 4


@final
@dataclass(frozen=True, eq=False)
class Extreme:
    """The largest singular value of J, or the largest eigenvalue of ``(J + J') / 2``, per sample: an estimate.

    The value belongs to a vector that is at hand, so the true one is not smaller, up to rounding. That it is not
    larger is what a Krylov method cannot see for certain: a direction that the random start misses does not exist for
    it. ``error`` holds what can be seen: the residual, within which *some* singular value or eigenvalue lies; how far
    above the value the next one may lie by its own residual; ``rtol``, since ties closer than that are not told apart;
    and the rounding of J and of the products. The first three vanish where the space became complete, as it does for
    small n. For an upper bound with a stated probability see :func:`fpcheck.spectral.probabilistic.norm_bound`.

    Attributes:
        value: ``(B,)`` with errors. Where the value is well separated from the next one the true error is far
            smaller, about the square of the residual over the separation; the separation is not known for certain.
        left: ``(B, n)`` float64, unit length: ``J right = value left`` and ``J' left = value right``, up to the
            error. For the log-norm the same as ``right``, an eigenvector. In a metric, vectors ``L z``.
        right: ``(B, n)`` float64, unit length.
        converged: ``(B,)`` booleans: the error, less rounding, is at most ``rtol`` times the value (the log-norm:
            times ``|(J + J') / 2|_2``), or is itself of the size of rounding. Elsewhere the search was given up: the
            value may fall short of the largest by more than its error.
        products: Products with J and J' for each sample, ``(B,)`` integers.
    """

    value: Estimate
    left: Tensor
    right: Tensor
    converged: Tensor
    products: Tensor

    def __len__(self) -> int:
        return len(self.value)


def spectral_norm(
    op: AbstractOperator,
    *,
    metric: Tensor | None = None,
    rtol: float = 1e-8,
    basis_size: int = 32,
    max_restarts: int = 200,
    seed: int = 0,
) -> Extreme:
    """Largest singular value ``|J|_2``: the largest stretch of one step.

    Args:
        op: J.
        metric: L of the norm ``|L z|_2``: a diagonal ``(n,)`` or ``(B, n)``, or matrices ``(B, n, n)``. The result is
            then ``|L J L^-1|_2``.
        rtol: Relative accuracy: a sample is done once the residual ``|J'u - s v|`` is well below this times s, or at
            the level of rounding.
        basis_size: Vectors held for each sample.
        max_restarts: Give up after this many.
        seed: Of the random start, the same for every sample.

    Raises:
        InputError: No operator, no metric for it, an argument out of range, or a basis beyond 8 GiB; before any work.
        NonFiniteError: A product holds NaN or inf.

    Guarantee: estimate; see :class:`Extreme`.
    Cost: two products a step, about as many steps as ARPACK to the same residual: 60 for a random matrix with n =
        1,000, 144 for singular values equally spaced in [0, 1], 24 for an FPRM block with n = 4,096, where all else
        takes 3 to 9 % of the products' time.
    Source: Golub and Kahan (1965); Wu and Simon (2000); Simon and Zha (2000).

    Example:
        >>> op = MatrixOperator(torch.tensor([[0.9, 5.0], [0.0, 0.5]]).double())
        >>> float(spectral_norm(op).value[0])  # the spectral radius is 0.9
        5.104...
    """
    op = _prepare(op, metric, rtol, basis_size, max_restarts, seed)
    A = Gram(op, op.rounding())
    ritz = largest(A, same_start(op, seed), rtol=rtol, basis_size=basis_size, max_restarts=max_restarts)
    x = ritz.vector
    u, s = unit(op.matvec(x))
    u = torch.where(s.unsqueeze(1) > 0, u, x)  # every unit vector is a left vector of zero
    _, residual = unit(op.rmatvec(u) - s.unsqueeze(1) * x)
    noise = A.rounding + A.eps * s
    return _extreme(s, u, x, torch.maximum(residual, ritz.above), noise, rtol * s, 2 * (ritz.steps + 1))


def log_norm(
    op: AbstractOperator,
    *,
    metric: Tensor | None = None,
    rtol: float = 1e-8,
    basis_size: int = 32,
    max_restarts: int = 200,
    seed: int = 0,
) -> Extreme:
    """Logarithmic norm ``mu_2(J)``: the largest eigenvalue of ``(J + J') / 2``.

    Below 1, some damping step makes the loop contract in the 2-norm; ``exp(t (mu - 1))`` bounds the flow ``z' = J z -
    z``. It is also the numerical abscissa: the largest real part in the numerical range.

    Args:
        op: J.
        metric: As in :func:`spectral_norm`; the result is ``mu_2(L J L^-1)``.
        rtol: Accuracy relative to ``|(J + J') / 2|_2``: a sample is done once the residual is well below that, or at
            the level of rounding, which goes with ``|J|_2``.
        basis_size: Vectors held for each sample.
        max_restarts: Give up after this many.
        seed: Of the random start, the same for every sample.

    Raises:
        InputError: No operator, no metric for it, an argument out of range, or a basis beyond 8 GiB; before any work.
        NonFiniteError: A product holds NaN or inf.

    Guarantee: estimate; see :class:`Extreme`.
    Cost: two products a step.
    Source: Wu and Simon (2000); Dahlquist (1958).

    Example:
        >>> op = MatrixOperator(torch.tensor([[0.9, 5.0], [0.0, 0.5]]).double())
        >>> float(log_norm(op).value[0])
        3.207...
    """
    op = _prepare(op, metric, rtol, basis_size, max_restarts, seed)
    A = Part(op, op.rounding())
    ritz = largest(A, same_start(op, seed), rtol=rtol, basis_size=basis_size, max_restarts=max_restarts)
    x = ritz.vector
    Sx = A.apply(x) * A.scale.unsqueeze(1)
    mu = (x * Sx).sum(1)
    _, residual = unit(Sx - mu.unsqueeze(1) * x)
    noise = A.noise() * A.scale
    return _extreme(mu, x, x, torch.maximum(residual, ritz.above), noise, rtol * ritz.size, 2 * (ritz.steps + 1))


class AbstractSymmetric(abc.ABC):
    """A batch of symmetric matrices A made of J, each divided by a number c of its own so that nothing overflows."""

    scale: Tensor
    """c, ``(B,)``; the first product sets it."""

    def __init__(self, op: AbstractOperator, rounding: Tensor) -> None:
        self.op = op
        self.rounding = rounding
        self.sample = torch.arange(len(rounding), device=op.device)  # that each A is made of
        self.eps = _ROUNDINGS * torch.finfo(op.dtype).eps

    @abc.abstractmethod
    def apply(self, V: Tensor) -> Tensor:
        """``A V`` for one vector for each A."""

    @abc.abstractmethod
    def tolerance(self, theta: Tensor, rtol: float) -> Tensor:
        """Residual ``(B,)`` that is small enough; ``theta``: Ritz values ``(B, m)``, ascending."""

    @abc.abstractmethod
    def blur(self, size: Tensor) -> Tensor:
        """Rounding of a product with A, in its units, ``(B, any)``; ``size``: the largest ``|A v|`` by then."""

    @abc.abstractmethod
    def in_units(self, low: Tensor, high: Tensor) -> Tensor:
        """Distance of two eigenvalues of A, as one of the figures that are asked for."""

    @abc.abstractmethod
    def select(self, index: Tensor) -> Self:
        """Some of the matrices."""


@final
class Gram(AbstractSymmetric):
    """``J'J / c^2``; its figures are singular values."""

    def apply(self, V: Tensor) -> Tensor:
        """``J'(J V / c) / c``, ``(B, n)``."""
        U = self.op.matvec(V)
        if not hasattr(self, "scale"):
            self.scale = magnitude(U)
        c = self.scale.unsqueeze(1)
        return self.op.rmatvec(U / c) / c

    def tolerance(self, theta: Tensor, rtol: float) -> Tensor:
        """The residual of ``J'J`` is s times that of J."""
        s = theta[:, -1].clamp(min=0).sqrt()
        return s * ((rtol + self.eps) * s + self.rounding / self.scale)

    def blur(self, size: Tensor) -> Tensor:
        """That of two products."""
        return 2 * self.eps * size

    def in_units(self, low: Tensor, high: Tensor) -> Tensor:
        """Difference of the square roots, times c."""
        return (high.clamp(min=0).sqrt() - low.clamp(min=0).sqrt()) * self.scale

    def select(self, index: Tensor) -> Gram:
        """Some of the matrices."""
        some = Gram(self.op.select(index), self.rounding[index])
        some.scale = self.scale[index]
        return some


class AbstractPart(AbstractSymmetric):
    """What is half of something of J and half of something of J'."""

    def __init__(self, op: AbstractOperator, rounding: Tensor) -> None:
        super().__init__(op, rounding)
        # The largest |J v| or |J'v| seen, over c: what is left of both may be far smaller, and rounding goes with them.
        self._size = torch.zeros_like(rounding)

    def blur(self, size: Tensor) -> Tensor:
        """Goes with the halves."""
        return self.eps * self._size.unsqueeze(1).expand_as(size)

    def noise(self) -> Tensor:
        """Rounding of J and of a product, in units of A, ``(B,)``."""
        return self.rounding / self.scale + self.eps * self._size

    def tolerance(self, theta: Tensor, rtol: float) -> Tensor:
        """Relative to the largest Ritz value in modulus."""
        return rtol * theta.abs().amax(1) + self.noise()

    def in_units(self, low: Tensor, high: Tensor) -> Tensor:
        """Difference times c."""
        return (high - low) * self.scale

    def scaled(self, *products: Tensor) -> list[Tensor]:
        """Products ``(B, any)`` of unit vectors over c; notes their size."""
        if not hasattr(self, "scale"):
            self.scale = torch.maximum(*map(magnitude, products))
        scaled = [product / self.scale.unsqueeze(1) for product in products]
        for product in scaled:
            self._size = torch.maximum(self._size, torch.linalg.vector_norm(product, dim=1))
        return scaled

    def _copy_scale(self, some: AbstractPart, index: Tensor) -> None:
        some.scale, some._size = self.scale[index], self._size[index]


@final
class Part(AbstractPart):
    """``(J + J') / 2c``."""

    def apply(self, V: Tensor) -> Tensor:
        """``(J V + J'V) / 2c``, ``(B, n)``."""
        JV, JtV = self.scaled(self.op.matvec(V), self.op.rmatvec(V))
        return (JV + JtV) / 2

    def select(self, index: Tensor) -> Part:
        """Some of the matrices."""
        some = Part(self.op.select(index), self.rounding[index])
        self._copy_scale(some, index)
        return some


class Lanczos:
    """Orthonormal rows V that span a growing Krylov space of A, and ``H = V A V'``.

    Args:
        A: Symmetric matrices.
        start: First vectors ``(B, n)`` float64, of any length but 0.
        size: Rows to make room for.

    Attributes:
        V: ``(B, size + 1, n)``; rows ``0..j`` are filled.
        H: ``(B, size, size)``; of the first j rows the lower triangle is filled.
        beta: ``(B, size)``: lengths of what the products left outside the space. With row j of V as v,
            ``A V' = V'H + beta v e_j'`` for the last of them.
        j: Steps taken since the last restart, and the rows kept then.
    """

    def __init__(self, A: AbstractSymmetric, start: Tensor, size: int) -> None:
        B, n = start.shape
        self.A = A
        self.V = start.new_zeros(B, size + 1, n)
        self.V[:, 0] = unit(start)[0]
        self.H = start.new_zeros(B, size, size)
        self.beta = start.new_zeros(B, size)
        self.j = 0

    def step(self) -> None:
        """One product and one more row.

        Orthogonalised against the last two rows, as the exact process has it, then against all: by then the
        coefficients are rounding, and one pass removes them to second order. (After a restart those of the kept rows
        are more. It makes no difference: over 100 restarts all products of two rows stayed below 3e-14.)
        """
        j = self.j
        low = max(j - 1, 0)
        near, all_ = self.V[:, low : j + 1], self.V[:, : j + 1]
        w = self.A.apply(self.V[:, j]).unsqueeze(1)
        first = torch.bmm(w, near.mT)  # (1, n) times (n, j): much faster here than (j, n) times (n, 1)
        w = torch.baddbmm(w, first, near, alpha=-1)
        second = torch.bmm(w, all_.mT)
        w = torch.baddbmm(w, second, all_, alpha=-1).squeeze(1)
        self.H[:, j, : j + 1] = second.squeeze(1)
        self.H[:, j, low : j + 1] += first.squeeze(1)
        beta = torch.linalg.vector_norm(w, dim=1)
        self.beta[:, j] = beta
        torch.div(w, beta.clamp(min=torch.finfo(w.dtype).tiny).unsqueeze(1), out=self.V[:, j + 1])
        self.j += 1

    def ritz(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ritz values ``(B, j)``, ascending; their coefficients in the rows of V, in columns; their residuals; whether
        the space is complete.

        A space that holds all of its product is complete: its Ritz values are eigenvalues. What stands in the rows
        after it is rounding at unit length; its Ritz values are moved below all others.
        """
        H = self.H[:, : self.j, : self.j].tril()
        # By then: rows that are rounding can be anything, and so can what they leave in H.
        size = H.abs().amax(2).cummax(1).values
        complete = self.beta[:, : self.j] <= BREAKDOWN * torch.finfo(H.dtype).eps * size
        after = (complete.cumsum(1) - complete.long()) > 0
        H = H.masked_fill(after.unsqueeze(2), 0.0)
        extent = H.abs().amax((1, 2)).unsqueeze(1)
        H = H - torch.diag_embed(after * (2 * self.j * extent + 1))
        theta, S = torch.linalg.eigh(H)  # reads the lower triangle
        ended = complete.any(1)
        beta = self.beta[:, self.j - 1].masked_fill(ended, 0.0)
        return theta, S, beta.unsqueeze(1) * S[:, -1].abs(), ended

    def restart(self, theta: Tensor, S: Tensor, keep: int) -> None:
        """Go on from the ``keep`` largest Ritz vectors and the last row."""
        j, S = self.j, S[:, :, -keep:]
        self.V[:, :keep] = torch.bmm(S.mT, self.V[:, :j])
        self.V[:, keep] = self.V[:, j]
        self.H.zero_()
        self.H.diagonal(dim1=1, dim2=2)[:, :keep] = theta[:, -keep:]
        # The kept ones are coupled by the next product alone.
        self.beta[:, :keep] = torch.inf
        self.j = keep

    def select(self, index: Tensor) -> Lanczos:
        """Some samples."""
        some = copy.copy(self)
        some.A = self.A.select(index)
        some.V, some.H, some.beta = self.V[index], self.H[index], self.beta[index]
        return some


@final
@dataclass(frozen=True, eq=False)
class Ritz:
    """What :func:`largest` found.

    Attributes:
        vector: ``(B, n)``, unit length.
        above: By how much a larger one may lie above, in units of the figure, ``(B,)``.
        size: The largest Ritz value in modulus, in the same units, ``(B,)``.
        steps: Products with A, ``(B,)``.
    """

    vector: Tensor
    above: Tensor
    size: Tensor
    steps: Tensor


def largest(A: AbstractSymmetric, start: Tensor, *, rtol: float, basis_size: int, max_restarts: int) -> Ritz:
    """Eigenvector of the largest eigenvalue of each A, from a random start; a sample that is done is left out."""
    B, n = start.shape
    size = min(basis_size, n)
    space = Lanczos(A, start, size)
    index = torch.arange(B, device=start.device)  # of the samples that space holds
    done = torch.zeros_like(index, dtype=torch.bool)
    out = Ritz(start.new_zeros(B, n), start.new_zeros(B), start.new_zeros(B), torch.zeros_like(index))
    steps = 0
    for left in range(max_restarts, -1, -1):
        while space.j < size:
            space.step()
            steps += 1
            if space.j % _LOOK and space.j < size:
                continue
            finite = torch.isfinite(space.H).flatten(1).all(1)
            if not bool(finite.all()):
                bad = torch.zeros(A.op.batch_size, dtype=torch.bool, device=start.device)
                bad[A.sample[index[~finite]]] = True
                raise NonFiniteError(
                    f"a product with the Jacobian {where(bad)} holds NaN or inf; expected finite products: check the "
                    "state, or scale an operator whose entries overflow"
                )
            theta, S, residual, complete = space.ritz()
            top, bottom = theta[:, -1], torch.zeros_like(theta[:, -1])
            # The next eigenvalue lies within its residual of its Ritz value, and may then be the larger one.
            rise = (theta[:, -2] + residual[:, -2] - top).clamp(min=0) if space.j > 1 else bottom
            ready = torch.maximum(residual[:, -1], rise) <= space.A.tolerance(theta, rtol / _REACH)
            last = left == 0 and space.j == size
            new = ~done & (ready | last)
            if bool(new.any()):
                to = index[new]
                out.vector[to] = unit(torch.bmm(S[new, :, -1].unsqueeze(1), space.V[new, : space.j]).squeeze(1))[0]
                extent = space.A.in_units(bottom, theta.abs().amax(1))
                unresolved = torch.where(complete, bottom, rtol * extent)
                out.above[to] = torch.maximum(space.A.in_units(top, top + rise), unresolved)[new]
                out.size[to] = extent[new]
                out.steps[to] = steps
                done = done | new
                if bool(done.all()):
                    return out
                if 2 * int(done.sum()) >= len(done):
                    rest = (~done).nonzero().flatten()
                    space, index, done = space.select(rest), index[rest], done[rest]
                    theta, S = theta[rest], S[rest]
        space.restart(theta, S, size // 2)
    raise AssertionError("the last look closes every sample")


def same_start(op: AbstractOperator, seed: int) -> Tensor:
    """One random start ``(B, n)`` for all samples: a sample's figures must not depend on its place in the batch."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(op.n, generator=generator, dtype=torch.float64)
    return v.to(op.device).expand(op.batch_size, op.n)


def unit(V: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of V at unit length, or zero, and their lengths; without overflow or underflow of squares."""
    c = magnitude(V).unsqueeze(1)
    length = torch.linalg.vector_norm(V / c, dim=1)
    return V / (c * torch.where(length > 0, length, 1.0).unsqueeze(1)), c.squeeze(1) * length


def magnitude(V: Tensor) -> Tensor:
    """Largest entry of each row in modulus, ``(B,)``; 1 for a row of zeros."""
    size = V.abs().amax(1)
    return torch.where(size > 0, size, 1.0)


def weighted(op: AbstractOperator, metric: Tensor | None) -> AbstractOperator:
    """The operator as seen in a metric.

    Raises:
        InputError: No operator, or no metric for it.
    """
    if not isinstance(op, AbstractOperator):
        raise InputError(
            f"op={op!r} is a {type(op).__name__}; expected an operator, such as JacobianOperator(loop, z) or "
            "MatrixOperator(A)"
        )
    return op if metric is None else Weighted(op, metric)


def check_integer(name: str, value: int, least: int) -> None:
    """Refuse what is not an integer of at least ``least``.

    Raises:
        InputError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{name}={value!r}; expected an integer >= {least}")


def check_fraction(name: str, value: float) -> None:
    """Refuse what does not lie strictly between 0 and 1.

    Raises:
        InputError: It does not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise InputError(f"{name}={value!r}; expected a number between 0 and 1, both excluded")


def _prepare(
    op: AbstractOperator, metric: Tensor | None, rtol: float, basis_size: int, max_restarts: int, seed: int
) -> AbstractOperator:
    op = weighted(op, metric)
    check_fraction("rtol", rtol)
    check_integer("basis_size", basis_size, 4)
    check_integer("max_restarts", max_restarts, 0)
    check_integer("seed", seed, 0)
    require_basis_memory(op, min(basis_size, op.n) + 1)
    return op


def _extreme(
    value: Tensor, left: Tensor, right: Tensor, error: Tensor, noise: Tensor, goal: Tensor, products: Tensor
) -> Extreme:
    # Twice: what the search took for the level of rounding, and the rounding of the residual itself.
    return Extreme(Estimate(value, error + noise), left, right, error <= goal + 2 * noise, products)
