r"""Upper bounds of ``|J|_2`` and ``mu_2(J)`` that hold with a stated probability over a random start vector.

**Theorem.** Let A be symmetric ``(n, n)``, l its largest eigenvalue, u a unit eigenvector of it, and ``v_1`` uniform on
the unit sphere and independent of A. Run k steps of Lanczos: ``A v_j = b_(j-1) v_(j-1) + a_j v_j + b_j v_(j+1)`` with
orthonormal ``v_1 ... v_(k+1)`` and all ``b_j > 0``. Then ``v_(j+1) = p_j(A) v_1`` with the polynomials ``p_0 = 1``,
``b_j p_j(t) = (t - a_j) p_(j-1)(t) - b_(j-1) p_(j-2)(t)``. Let ``T_k`` be the tridiagonal matrix of a and b, x its
largest eigenvalue, and ``K(t) = p_0(t)^2 + ... + p_k(t)^2``. For 0 < delta < 1 let g solve ``P(|u'v_1| <= g) = delta``.
Then with probability at least ``1 - delta``, l is at most the t > x that solves ``K(t) = 1 / g^2`` (or at most x).

*Proof.* ``u'v_(j+1) = p_j(l) c`` with ``c = u'v_1``, since ``u'A = l u'``. The v are orthonormal and u has unit length,
so ``c^2 K(l) = sum_j (u'v_(j+1))^2 <= 1``. With probability ``1 - delta``, ``|c| > g``, and then ``K(l) < 1 / g^2``.
The zeros of ``p_j`` are the eigenvalues of ``T_j``, none above x (Cauchy), and its leading coefficient is positive:
beyond x every ``p_j`` is positive and grows, so K does, and ``l > x`` with ``K(l) < K(t)`` means ``l < t``. For
``l <= x`` nothing is left to show. []

``c^2`` has the distribution Beta(1/2, (n - 1)/2), that of one squared coordinate of a uniform unit vector, so g is the
square root of its delta-quantile: about ``delta sqrt(pi / (2 n))``. If the eigenspace of l has more dimensions, u may
be any vector of it. The event ``|c| > g`` is the same for every k: in it the bounds of all k hold, those with a single
``p_k(l)^2 <= 1 / c^2`` too, and choosing the best afterwards costs no probability. The sum over k is at least as large
as every term and gives the smallest. Only the start is random: a second one, chosen after the first bound was seen, is
a second draw, and the smaller of m bounds holds with probability ``1 - m delta``.

The bound with a single ``p_k`` is due to van Dorsselaer, Hochstenbach and van der Vorst (2000), for the norm (``A =
J'J``) to Hochstenbach (2013); that a random start makes any such statement possible, to Kuczynski and Wozniakowski
(1992). The theorem is nearly sharp once the Krylov space holds u: it then fails with probability delta, if by little.

**Rounding.** What is computed obeys ``A v_j = b_(j-1) v_(j-1) + a_j v_j + b_j v_(j+1) + f_j``, ``|f_j| <= F_j``, with
``V'V = I + E``. With ``y_j = u'v_j``, ``(t I - T_k) y_(1..k) = b_k y_(k+1) e_k + u'f`` at ``t = l``, and for ``l > x``
the first row of the inverse, ``r(t) = e_1'(t I - T_k)^-1``, is positive. So ``c = y_(k+1) / p_k(l) + r(l) u'f``. The
same for every smaller j, whose r is smaller entry by entry; averaged over j with weights ``p_j^2 / K`` and by Cauchy,

    |c| <= sqrt((1 + |E|) / K(l)) + sum_j r_j(l) F_j,

and the right-hand side falls in l. The bound is where it equals g. Covered by this: the arithmetic of the recurrence in
float64 (``F_j``: the measured coefficients beside the three that T keeps, and an allowance for summation), the measured
loss of orthogonality, and a rounding of each product by ``10 eps`` of the operator's dtype (up to 5 were measured),
wherever it points. Assumed: before that rounding, products with J and J' are those of one matrix and its transpose,
within ``op.rounding()`` (an estimate) of the J in question; this is added at the end. And the generator's normal
numbers are taken for independent ones.

In float32 the F_j exceed the g of ``delta = 1e-6``: right, but loose (9 times ``|J|_2`` for an FPRM block with n =
4,096). Several starts help: the *largest* of m bounds, each for ``delta^(1/m)``, fails only if all do, with probability
delta. With two, 0.3 % above.

A space that is exhausted (``b_k = 0``) would make l = x with probability 1. What is computed for ``b_k v_(k+1)`` is
then rounding, which F_k holds wherever it points, and the process stops there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import final

import scipy.special
import torch
from torch import Tensor

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.spectral.lanczos import (
    BREAKDOWN,
    AbstractSymmetric,
    Gram,
    Lanczos,
    Part,
    check_fraction,
    check_integer,
    weighted,
)
from fpcheck.spectral.operator import AbstractOperator, require_basis_memory, where

__all__ = ["ProbabilisticBound", "log_norm_bound", "norm_bound"]

_THEOREM = (
    "Lanczos from a start vector uniform on the sphere: van Dorsselaer, Hochstenbach and van der Vorst (2000), with "
    "all Lanczos polynomials together; derivation in fpcheck.spectral.probabilistic"
)

# Below this the squares of the quantiles would leave the range of float64.
_LEAST_PROBABILITY = 1e-100

# The quantile is accurate to a few eps.
_QUANTILE = 1 - 1e-12

# Candidates side by side, and rounds of them: 32^4 cut the 30 decades that the distance to x may span to 1e-4 of it.
_CANDIDATES = 32
_ROUNDS = 4


@final
@dataclass(frozen=True, eq=False)
class ProbabilisticBound:
    """Upper bounds, one for each sample, each of which fails with at most the stated probability.

    Neither an estimate (it says on which side the true figure lies) nor a certificate (it may fail): no verdict PROVED
    rests on it. The probability is over the random start alone, for any fixed matrix. It is that of one sample; that of
    any failure among B samples is at most B times as large.

    Attributes:
        value: ``(B,)`` float64, or a scalar for one sample; infinite where nothing can be said.
        failure_probability: Of each bound.
        theorem: What it rests on.

    Example:
        >>> ProbabilisticBound(torch.tensor(1.23401), 1e-6, "...")
        <= 1.235 with probability >= 1 - 1e-06
    """

    value: Tensor
    failure_probability: float
    theorem: str

    def __post_init__(self) -> None:
        if self.value.ndim > 1 or bool(self.value.isnan().any()):
            raise InputError(f"value={self.value}; expected numbers (B,), or a scalar")
        check_fraction("failure_probability", self.failure_probability)

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, i: int) -> ProbabilisticBound:
        return ProbabilisticBound(self.value[i], self.failure_probability, self.theorem)

    def __iter__(self) -> Iterator[ProbabilisticBound]:
        return (self[i] for i in range(len(self)))

    def __str__(self) -> str:
        """Four and two significant digits, rounded up: a bound stays one in print."""
        if self.value.ndim:
            return "[" + ", ".join(map(str, self)) + "]"
        value, delta = _rounded_up(float(self.value), 4), _rounded_up(self.failure_probability, 2)
        return f"<= {value} with probability >= 1 - {delta}"

    __repr__ = __str__


def _rounded_up(number: float, digits: int) -> str:
    # From the decimal that the number is written as: 0.01 itself lies a little above and would become 0.011.
    up = Context(prec=digits, rounding=ROUND_CEILING).create_decimal(Decimal(repr(number)))
    return format(float(up), f".{digits}g")


def norm_bound(
    op: AbstractOperator,
    *,
    failure_probability: float = 1e-6,
    steps: int = 40,
    starts: int | None = None,
    metric: Tensor | None = None,
    seed: int = 0,
) -> ProbabilisticBound:
    """Upper bound of ``|J|_2`` that fails with at most the given probability.

    Args:
        op: J. It must have been chosen without regard to the random start.
        failure_probability: delta, at least 1e-100; the bound grows slowly as it falls.
        steps: k: each tightens the bound, up to n.
        starts: Independent runs, of which the largest bound counts. Default: 1, for a float32 operator 2.
        metric: L of the norm ``|L z|_2``: a diagonal ``(n,)`` or ``(B, n)``, or matrices ``(B, n, n)``. The result then
            bounds ``|L J L^-1|_2``.
        seed: Of the random starts, independent ones for each sample. The smallest of the bounds from m seeds fails with
            probability up to m delta.

    Raises:
        InputError: No operator, no metric for it, an argument out of range, or a basis beyond 8 GiB; before any work.
        NonFiniteError: A product holds NaN or inf.

    Guarantee: bound with probability ``1 - delta`` over the start, for the matrix that the products belong to; the
        rounding of J itself is an estimate, and added.
    Cost: ``2 steps starts`` products. How far above ``|J|_2`` 20, 40 and 80 steps end for delta = 1e-6, in float64: a
        random matrix with n = 1,000: 8 %, 1.3 %, 3e-8; singular values equally spaced in [0, 1]: 9 %, 2 %, 0.4 %; an
        FPRM block with n = 4,096: 0.6 %, 9e-9, the same.
    Source: the module's theorem; van Dorsselaer, Hochstenbach and van der Vorst (2000); Hochstenbach (2013).

    Example:
        >>> norm_bound(MatrixOperator(torch.tensor([[0.9, 5.0], [0.0, 0.5]]).double()))[0]
        <= 5.105 with probability >= 1 - 1e-06
    """
    op, starts = _prepare(op, failure_probability, steps, starts, metric, seed)
    A = Gram(op, op.rounding())
    t = _largest_eigenvalue_bound(A, _starts(op, starts, seed), failure_probability, steps)
    return _result(t.clamp(min=0).sqrt() * A.scale, A.rounding, failure_probability)


def log_norm_bound(
    op: AbstractOperator,
    *,
    failure_probability: float = 1e-6,
    steps: int = 40,
    starts: int | None = None,
    metric: Tensor | None = None,
    seed: int = 0,
) -> ProbabilisticBound:
    """Upper bound of ``mu_2(J)``, the largest eigenvalue of ``(J + J') / 2``, that fails with at most that probability.

    Args:
        op: As in :func:`norm_bound`.
        failure_probability: As there.
        steps: As there.
        starts: As there.
        metric: As there; the result then bounds ``mu_2(L J L^-1)``.
        seed: As there.

    Raises:
        InputError: No operator, no metric for it, an argument out of range, or a basis beyond 8 GiB; before any work.
        NonFiniteError: A product holds NaN or inf.

    Guarantee: as in :func:`norm_bound`.
    Cost: ``2 steps starts`` products. The spectrum of the symmetric part has two ends, that of ``J'J`` one that counts:
        the same distance, relative to ``|J|_2``, takes up to twice the steps.
    Source: the module's theorem; van Dorsselaer, Hochstenbach and van der Vorst (2000).

    Example:
        >>> log_norm_bound(MatrixOperator(torch.tensor([[0.9, 5.0], [0.0, 0.5]]).double()))[0]
        <= 3.208 with probability >= 1 - 1e-06
    """
    op, starts = _prepare(op, failure_probability, steps, starts, metric, seed)
    A = Part(op, op.rounding())
    t = _largest_eigenvalue_bound(A, _starts(op, starts, seed), failure_probability, steps)
    return _result(t * A.scale, A.rounding, failure_probability)


def _prepare(
    op: AbstractOperator, failure_probability: float, steps: int, starts: int | None, metric: Tensor | None, seed: int
) -> tuple[AbstractOperator, int]:
    op = weighted(op, metric)
    check_fraction("failure_probability", failure_probability)
    if failure_probability < _LEAST_PROBABILITY:
        raise InputError(f"failure_probability={failure_probability!r}; expected at least {_LEAST_PROBABILITY}")
    check_integer("steps", steps, 1)
    check_integer("seed", seed, 0)
    if starts is None:
        starts = 2 if op.dtype is torch.float32 else 1
    check_integer("starts", starts, 1)
    require_basis_memory(op, min(steps, op.n) + 1)
    return op, starts


def _starts(op: AbstractOperator, starts: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(starts, op.batch_size, op.n, generator=generator, dtype=torch.float64).to(op.device)


def _result(value: Tensor, rounding: Tensor, failure_probability: float) -> ProbabilisticBound:
    # The square root, the product and the sum round; four eps of their size are more.
    slack = 4 * torch.finfo(value.dtype).eps * (value.abs() + rounding)
    return ProbabilisticBound(value + rounding + slack, failure_probability, _THEOREM)


def quantile(n: int, failure_probability: float) -> float:
    """g with ``P(|u'v| <= g) = delta`` for v uniform on the unit sphere of R^n and a fixed unit vector u."""
    if n == 1:
        return _QUANTILE  # |u'v| = 1
    return float(scipy.special.betaincinv(0.5, (n - 1) / 2, failure_probability)) ** 0.5 * _QUANTILE


def _largest_eigenvalue_bound(A: AbstractSymmetric, starts: Tensor, failure_probability: float, steps: int) -> Tensor:
    """Bound of the largest eigenvalue of each A from starts ``(m, B, n)``: ``(B,)``, in units of A."""
    share = failure_probability ** (1 / len(starts))  # the largest of m bounds fails if all do
    return torch.stack([_one_run(A, start, share, steps) for start in starts]).amax(0)


def _one_run(A: AbstractSymmetric, start: Tensor, failure_probability: float, steps: int) -> Tensor:
    k = min(steps, start.shape[1])
    space = Lanczos(A, start, k)
    for _ in range(k):
        space.step()
    finite = torch.isfinite(space.H).flatten(1).all(1) & torch.isfinite(space.beta).all(1)
    if not bool(finite.all()):
        raise NonFiniteError(f"a product with the Jacobian {where(~finite)} holds NaN or inf; expected finite products")
    process = _Process.of(space)
    log_g = math.log(quantile(start.shape[1], failure_probability))
    x, size = process.largest_ritz_value(), process.size.clamp(min=torch.finfo(start.dtype).tiny)
    # Nearer to x than this the pivots are rounding. p_1 alone reaches 1 / g at a_1 + b_1 / g, with the F at some more.
    ends = math.log(8 * k * torch.finfo(start.dtype).eps), math.log(8) - log_g
    low, high = (torch.full_like(x, end) for end in ends)
    grid = torch.linspace(0, 1, _CANDIDATES, dtype=x.dtype, device=x.device)
    for _ in range(_ROUNDS):
        distance = low.unsqueeze(1) + (high - low).unsqueeze(1) * grid
        enough = process.log_overlap(x.unsqueeze(1) + size.unsqueeze(1) * distance.exp()) <= log_g
        first = enough.long().argmax(1, keepdim=True)  # 0 too where no candidate is enough
        low, high = (distance.gather(1, i).squeeze(1) for i in ((first - 1).clamp(min=0), first))
        known = enough.any(1)
    bound = torch.where(known, x + size * high.exp(), torch.inf)
    # Not one of the products of a random vector differs from zero: neither does A, with probability 1.
    return torch.where(process.size > 0, bound, 0.0)


@final
@dataclass(frozen=True, eq=False)
class _Process:
    """What k steps of Lanczos left, in the theorem's names; nothing that follows the end of an exhausted space counts.

    Attributes:
        a: Diagonal of T, ``(B, k)``; far below x after the end.
        b: Beside it and below, ``(B, k)``, as the polynomials have it: infinite after the end.
        link: The same as T has it, ``(B, k - 1)``: 0 from the end on.
        F: Bounds of ``|f_j|``, ``(B, k)``; 0 after the end.
        overlap: Bound of ``sum_j (u'v_j)^2``, ``(B,)``.
        size: The largest ``|A v|``, ``(B,)``.
    """

    a: Tensor
    b: Tensor
    link: Tensor
    F: Tensor
    overlap: Tensor
    size: Tensor

    @classmethod
    def of(cls, space: Lanczos) -> _Process:
        H, b = space.H.tril(), space.beta
        k, eps = b.shape[1], torch.finfo(b.dtype).eps
        # Row j of H: what the product with row j of V has along the rows up to j, and b_j beyond.
        lengths = torch.linalg.vector_norm(torch.cat([H, b.unsqueeze(2)], 2), dim=2)
        sizes = lengths.cummax(1).values
        ended = b <= BREAKDOWN * eps * sizes + space.A.blur(sizes)
        after = (ended.cumsum(1) - ended.long()) > 0
        end = ended & ~after
        beside = H.tril(-1)
        beside.diagonal(-1, 1, 2).sub_(b[:, :-1])
        # Two sums of at most j terms for each entry: j eps of their sizes each, and room for the rest.
        summation = eps * (2 * torch.arange(1, k + 1, dtype=b.dtype, device=b.device) + 8) * sizes
        F = 2 * torch.linalg.vector_norm(beside, dim=2) + space.A.blur(sizes) + summation
        size = sizes.masked_fill(after, 0.0).amax(1)
        rows = torch.cat([torch.ones_like(ended[:, :1]), ~(after | end)], 1)
        V = space.V * rows.unsqueeze(2)
        E = torch.linalg.vector_norm(torch.bmm(V, V.mT) - torch.diag_embed(rows.to(V.dtype)), dim=(1, 2))
        E = E + eps * V.shape[1] * V.shape[2]  # sums of n terms, in each entry
        # The vector at the end may point anywhere.
        return cls(
            a=H.diagonal(0, 1, 2).where(~after, -2 * size.unsqueeze(1)),
            b=b.clamp(min=torch.finfo(b.dtype).tiny).masked_fill(after, torch.inf),
            link=b.masked_fill(end | after, 0.0)[:, :-1],
            F=F.masked_fill(after, 0.0),
            overlap=1 + E + ended.any(1),
            size=size,
        )

    def largest_ritz_value(self) -> Tensor:
        """x, ``(B,)``."""
        T = torch.diag_embed(self.a) + torch.diag_embed(self.link, -1)
        return torch.linalg.eigvalsh(T)[:, -1]  # reads the lower triangle

    def log_overlap(self, t: Tensor) -> Tensor:
        """Logarithm of ``sqrt(overlap / K(t)) + r(t) F`` for candidates t ``(B, any)``; infinite where ``t <= x``.

        By pivots of ``t I - T`` from both ends: ``b_j p_j = q_j p_(j-1)``, ``q_j = t - a_j - b_(j-1)^2 / q_(j-1)``, all
        positive exactly beyond x. There is no other difference: p and r are those of a T a few eps away.
        """
        k = self.a.shape[1]
        a, b, link, F = (part.unsqueeze(2) for part in (self.a, self.b, self.link, self.F))
        log_p = torch.zeros_like(t)
        log_K = torch.zeros_like(t)
        valid = torch.ones_like(t, dtype=torch.bool)
        q = torch.ones_like(t)
        for j in range(k):
            q = t - a[:, j] - (link[:, j - 1] ** 2 / q if j else 0.0)
            valid &= q > 0
            q = q.where(valid, 1.0)
            log_p = log_p + q.log() - b[:, j].log()
            log_K = torch.logaddexp(log_K, 2 * log_p)
        q = t - a[:, k - 1]
        pivots = [q]
        for j in range(k - 2, -1, -1):
            q = t - a[:, j] - link[:, j] ** 2 / q.where(valid, 1.0)
            pivots.append(q)
        r = valid / pivots.pop().where(valid, 1.0)
        rF = r * F[:, 0]
        for j in range(1, k):
            r = link[:, j - 1] * r / pivots.pop().where(valid, 1.0)
            rF = rF + r * F[:, j]
        overlap = (self.overlap.log().unsqueeze(1) - log_K) / 2
        return torch.logaddexp(overlap, rF.log()).where(valid, torch.inf)
