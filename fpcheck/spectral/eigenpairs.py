r"""Leading eigenvalues of operators, with what is known about their accuracy.

A small residual is not a small error. With ``J x - l x = r`` and unit vectors, l is an eigenvalue of a matrix at
distance ``|r|`` from J, and to first order an eigenvalue of J lies within ``|r| / |y' x|`` of it, y being the left
eigenvector. A second run, on ``J'`` and from a start of its own, gives y; it is also a second opinion on which
eigenvalues lead. Left and right vectors of different eigenvalues are orthogonal (without conjugation), so that a value
of one run which the other has not found shows: ``|y' x|`` is small for each of its y.

Shapes: ``B`` samples, ``n`` rows, ``K`` eigenvalues handed back, ``q >= K`` found by a run.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.krylov import AbstractEigensolver, KrylovSchur, RitzPairs, count_whole, residual_of
from fpcheck.spectral.operator import DEFAULT_MAX_BYTES, AbstractOperator
from fpcheck.spectral.orders import AbstractOrder, LargestModulus

__all__ = ["Eigenpairs", "eigenvalues", "spectral_radius"]

_EPS = torch.finfo(torch.float64).eps

# Rounding of the products and of the basis, in eps times the largest stretch seen.
_ROUNDINGS = 10.0

# A c-fold defective eigenvalue, made into c on a circle by rounding, is further away than first order says of these,
# by a factor c: each has the condition radius^(1 - c) / c.
_SAFETY = 4.0

# Errors above this, relative to |J|, are not first order any more.
_FIRST_ORDER_LIMIT = 1e-3

# The same for a cluster, of which Elsner's theorem still holds.
_CLUSTER_LIMIT = 0.1

# Vectors with a larger residual, relative to |J|, are no eigenvectors yet and prove nothing about others.
_USABLE = 1e-8

# Clusters of up to so many eigenvalues that cannot be told apart.
_LARGEST_CLUSTER = 8


@final
@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Leading eigenvalues, with vectors and errors. All are estimates, none is a bound.

    ``K`` is k, or k + 1 if that keeps the pairs of some sample whole; the other samples then repeat their last value
    (``count`` says how many are different), so that nothing needs a mask.

    Attributes:
        values: ``(B, K)`` complex128, most wanted first, pairs side by side with the upper member first.
        vectors: Right eigenvectors of unit length, ``(B, n, K)`` complex128.
        left: Left eigenvectors y of unit length, ``y^H J = l y^H``, ``(B, n, K)`` complex128; zero where the run on J'
            found none. None without ``condition``.
        residual: ``|J x - l x|_2``, measured, ``(B, K)`` float64.
        condition: ``1 / |y^H x|``, ``(B, K)`` float64; infinite where unknown.
        error: Estimate of the distance to the true eigenvalue, ``(B, K)`` float64: condition times residual and
            rounding, or what several eigenvalues move by that are determined badly each, but well together. Infinite
            where neither says anything, and in samples whose two runs do not bear each other out.
        converged: ``(B,)`` booleans: the leading value (of every order, for ``AnyOf``) has an error of at most ``rtol``
            times its modulus; both runs found all they were asked for and agree on what leads; and nothing that was
            still moving could come to lead.
        count: Different values per sample, ``(B,)``: k or k + 1, or fewer where the method found no more.
        left_values: What the run on J' found, ``(B, K)``; None without ``condition``.
        products: Products with J, ``(B,)`` integers.
        left_products: Products with J', ``(B,)`` integers.
        restarts: Of the run on J, ``(B,)`` integers; None if the method does not tell.
        method: How they were computed, in words.
    """

    values: Tensor
    vectors: Tensor = field(repr=False)
    left: Tensor | None = field(repr=False)
    residual: Tensor
    condition: Tensor
    error: Tensor
    converged: Tensor
    count: Tensor
    left_values: Tensor | None
    products: Tensor
    left_products: Tensor
    restarts: Tensor | None
    method: str

    def __len__(self) -> int:
        return len(self.values)


def eigenvalues(
    op: AbstractOperator,
    k: int = 4,
    *,
    order: AbstractOrder | None = None,
    method: AbstractEigensolver | None = None,
    condition: bool = True,
    rtol: float | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Eigenpairs:
    """The k eigenvalues that lead by some order, of every matrix of an operator, each with its error.

    Args:
        op: The matrices: a :class:`JacobianOperator`, a view of one, or any other operator.
        k: How many, at most n. All of them must be found before a sample counts as converged: they are what tells
            that nothing larger was overlooked. Where the last ones lie close together, asking for fewer saves products.
        order: Which; default :class:`LargestModulus`.
        method: Default :class:`KrylovSchur`; or :class:`Arpack`, :class:`DenseEigensolver`.
        condition: Find left vectors too, by a second run on J'. Without them no error is known, and nothing is
            called converged.
        rtol: Largest error of the leading value that counts as converged, relative to its modulus. Default: 1e-6, or
            1e-3 where products are in float32.
        max_bytes: Refuse a request that needs more memory than this.

    Raises:
        InputError: Wrong arguments, or more than ``max_bytes``; before any work.
        NonFiniteError: Products hold NaN or inf.
        BlockError: The loop behind the operator lacks the derivative that a product needs.

    Guarantee: estimate. An eigenvalue may be missed by both runs, though no case is known; see ``KrylovSchur``.
    Cost: some tens to hundreds of products with J and as many with J'; 20 to 60 vectors of memory per sample.
    Source: condition of eigenvalues and of clusters: Stewart and Sun (1990), chapters IV and V.

    Example:
        >>> import torch
        >>> from fpcheck.spectral.operator import MatrixOperator
        >>> pairs = eigenvalues(MatrixOperator(torch.diag(torch.tensor([0.5, -0.9, 0.1]))), 1)
        >>> pairs.values, bool(pairs.converged)
        (tensor([[-0.9000+0.j]], dtype=torch.complex128), True)
    """
    if not isinstance(op, AbstractOperator):
        raise InputError(f"op is a {type(op).__name__}; expected an operator, such as JacobianOperator(loop, z)")
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise InputError(f"k={k!r}; expected an integer >= 1")
    if rtol is None:
        rtol = 1e-6 if op.dtype == torch.float64 else 1e-3
    elif not (isinstance(rtol, float) and 0 < rtol < 1):
        raise InputError(f"rtol={rtol!r}; expected a float in (0, 1), relative to the leading eigenvalue")
    order = LargestModulus() if order is None else order
    method = KrylovSchur() if method is None else method
    k = min(k, op.n)
    rounding = op.rounding()
    right = method.run(op, k, order, rounding=rounding, start=0, confirm=False, max_bytes=max_bytes)
    if not condition:
        return _combine(op, k, order, right, None, rounding, rtol)
    left = method.run(op.transpose(), k, order, rounding=rounding, start=1, confirm=True, max_bytes=max_bytes)
    pairs = _combine(op, k, order, right, left, rounding, rtol)
    # What is not accurate enough may be so with smaller residuals.
    poor = right.finished & left.finished & ~pairs.converged
    if bool(poor.any()):
        right, left = method.refine(right, poor), method.refine(left, poor)
        pairs = _combine(op, k, order, right, left, rounding, rtol)
    unknown = torch.isinf(pairs.error[:, 0]).nonzero().flatten()
    other = method.fallback(op.n)
    if other is not None and len(unknown):
        some = op if len(unknown) == len(pairs) else op.select(unknown)
        again = eigenvalues(some, k, order=order.select(unknown), method=other, rtol=rtol, max_bytes=max_bytes)
        pairs = _put(pairs, unknown, again)
    return pairs


def spectral_radius(
    op: AbstractOperator,
    *,
    k: int = 4,
    method: AbstractEigensolver | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Estimate:
    """Largest modulus of an eigenvalue, of every matrix of an operator.

    Args:
        op: The matrices.
        k: Eigenvalues to find, as in :func:`eigenvalues`.
        method: As in :func:`eigenvalues`.
        max_bytes: As in :func:`eigenvalues`.

    Returns:
        Estimate ``(B,)``. Its error is infinite where the two runs of :func:`eigenvalues` do not bear each other out;
        the value is then the larger of what they found.

    Raises:
        InputError, NonFiniteError, BlockError: As :func:`eigenvalues`.

    Guarantee: estimate.

    Example:
        >>> import torch
        >>> from fpcheck.spectral.operator import MatrixOperator
        >>> spectral_radius(MatrixOperator(torch.diag(torch.tensor([0.5, -0.9, 0.1]))))[0]
        0.9 +- 1e-14 (estimate)
    """
    pairs = eigenvalues(op, k, method=method, max_bytes=max_bytes)
    assert pairs.left_values is not None
    size = pairs.values.abs()
    rho = torch.maximum(size, pairs.left_values.abs()).amax(1)
    # The largest modulus may belong to another eigenvalue than it seems to.
    high, low = (size + pairs.error).amax(1), (size - pairs.error).amax(1)
    return Estimate(rho, torch.maximum(high - rho, rho - low))


def _combine(
    op: AbstractOperator,
    k: int,
    order: AbstractOrder,
    right: RitzPairs,
    left: RitzPairs | None,
    rounding: Tensor,
    rtol: float,
) -> Eigenpairs:
    """What two runs say together."""
    device = op.device
    count = torch.minimum(count_whole(right.values, k), torch.isfinite(right.residual).sum(1))
    K = max(1, int(count.max()))
    column = torch.minimum(torch.arange(K, device=device), (count - 1).clamp(min=0).unsqueeze(1))
    right = _measured(op, right, K)
    condition = error = torch.full_like(right.residual, torch.inf)
    left_vectors = None
    lead = _leading(order, right)
    if left is not None:
        left = _measured(op.transpose(), left, K)
        norm = torch.maximum(right.norm, left.norm)
        rounding = rounding + _ROUNDINGS * _EPS * norm
        usable = (_usable(left, norm, rounding).unsqueeze(2), _usable(right, norm, rounding).unsqueeze(1))
        overlap = (left.vectors.mT @ right.vectors).abs().clamp(max=1.0) * (usable[0] & usable[1])
        condition, partner = (1 / overlap).min(1)
        left_vectors = _take(left.vectors, partner.gather(1, column)).conj()
        left_vectors = left_vectors * torch.isfinite(condition).gather(1, column).unsqueeze(1)
        # Residuals of both: near a defective eigenvalue, vectors that are a little wrong overlap far too much.
        backward = right.residual.unsqueeze(1) + left.residual.unsqueeze(2) + rounding.view(-1, 1, 1)
        apart = (right.values.unsqueeze(1) - left.values.unsqueeze(2)).abs()
        first_order = (_SAFETY * backward / overlap + apart).nan_to_num(torch.inf)
        error = _errors(right, left, first_order.amin(1), norm, rounding, rtol)
        left_error = _errors(left, right, first_order.amin(2), norm, rounding, rtol)
        agree = right.finished & left.finished
        for known, at in ((error, lead), (left_error, _leading(order, left))):
            agree = agree & torch.isfinite(known.gather(1, at)).all(1)
        error = torch.where(agree.unsqueeze(1), error, torch.inf)
    size = right.values.gather(1, lead).abs()
    return Eigenpairs(
        values=right.values.gather(1, column),
        vectors=_take(right.vectors, column),
        left=left_vectors,
        residual=right.residual.gather(1, column),
        condition=condition.gather(1, column),
        error=error.gather(1, column),
        converged=(error.gather(1, lead) <= rtol * size).all(1),
        count=count,
        left_values=None if left is None else left.values[:, :K],
        products=right.products + K,
        left_products=torch.zeros_like(count) if left is None else left.products + K,
        restarts=right.restarts,
        method=right.method,
    )


def _measured(op: AbstractOperator, pairs: RitzPairs, K: int) -> RitzPairs:
    """The same with the first K residuals as products give them, so that they rest on no property of the method."""
    measured = residual_of(op, pairs.values[:, :K], pairs.vectors[:, :, :K])
    own = pairs.residual[:, :K]
    first = torch.where(torch.isfinite(own), torch.maximum(own, measured), torch.inf)
    return replace(pairs, residual=torch.cat([first, pairs.residual[:, K:]], 1))


def _put(pairs: Eigenpairs, index: Tensor, other: Eigenpairs) -> Eigenpairs:
    """The results of another method for the samples ``index``, and what both took."""
    K = max(pairs.values.shape[1], other.values.shape[1])
    merged = {}
    for name, old in vars(pairs).items():
        if isinstance(old, Tensor):
            new = getattr(other, name)
            if old.ndim > 1:
                old, new = _repeat_last(old, K), _repeat_last(new, K)
            if name in ("products", "left_products"):
                new = new + old[index]
            merged[name] = old.index_copy(0, index, new)
    method = f"{pairs.method}; {len(index)} of {len(pairs)} samples: {other.method}"
    return replace(pairs, **merged, method=method)


def _repeat_last(a: Tensor, K: int) -> Tensor:
    return torch.cat([a, a[..., -1:].expand(*a.shape[:-1], K - a.shape[-1])], -1)


def _leading(order: AbstractOrder, pairs: RitzPairs) -> Tensor:
    """Where each part of the order finds its leading value, ``(B, parts)``."""
    absent = ~torch.isfinite(pairs.residual)
    return torch.stack([part.key(pairs.values).masked_fill(absent, -torch.inf).argmax(1) for part in order.parts()], 1)


def _usable(pairs: RitzPairs, norm: Tensor, rounding: Tensor) -> Tensor:
    return pairs.residual <= (_USABLE * norm + rounding).unsqueeze(1)


def _take(vectors: Tensor, column: Tensor) -> Tensor:
    return vectors.gather(2, column.unsqueeze(1).expand(-1, vectors.shape[1], -1))


def _errors(
    own: RitzPairs, other: RitzPairs, first_order: Tensor, norm: Tensor, rounding: Tensor, rtol: float
) -> Tensor:
    """Errors of the values of one run, ``(B, q)``, with the vectors of the other."""
    error = torch.where(first_order <= _FIRST_ORDER_LIMIT * norm.unsqueeze(1), first_order, torch.inf)
    # A value that is accurate enough needs no better estimate; another may be one of several that are determined
    # badly each, but well together.
    poor = ~(error <= rtol * own.values.abs()) & _usable(own, norm, rounding)
    if bool(poor.any()):
        error = torch.where(poor, torch.minimum(error, _cluster_errors(own, other, norm, rounding)), error)
    return error


def _cluster_errors(own: RitzPairs, other: RitzPairs, norm: Tensor, rounding: Tensor) -> Tensor:
    """Errors of values as members of clusters: the c nearest to each, for every c from 2 on, the least error of all.

    Right vectors of a cluster span an invariant subspace, left vectors the one that belongs to it if both runs found
    the same cluster; with orthonormal bases Q and W the projection along the rest of the spectrum has the norm
    ``1 / sigma_min(W' Q)``. A perturbation of J of size delta acts on the cluster like one of delta times this norm on
    a c x c matrix, and moves no eigenvalue of that by more than Elsner (1985) allows.
    """
    best = torch.full_like(own.residual, torch.inf)
    B, q = best.shape
    for c in range(2, min(_LARGEST_CLUSTER, q, other.values.shape[1]) + 1):
        bases, backward, whole = [], rounding.unsqueeze(1), torch.ones_like(best, dtype=torch.bool)
        apart = torch.zeros_like(best)
        for pairs in (own, other):
            distance = (own.values.unsqueeze(2) - pairs.values.unsqueeze(1)).abs()
            distance = distance.masked_fill(~_usable(pairs, norm, rounding).unsqueeze(1), torch.inf)
            near = distance.topk(c, dim=2, largest=False)
            whole = whole & torch.isfinite(near.values).all(2)
            members = near.indices.flatten(1)
            bases.append(torch.linalg.qr(_take(pairs.vectors, members).unflatten(2, (q, c)).movedim(2, 1))[0])
            residual = pairs.residual.gather(1, members).view(B, q, c).amax(2)
            backward = torch.maximum(backward, residual + rounding.unsqueeze(1))
            # Both runs must have found it in the same place.
            apart = torch.maximum(apart, near.values[..., -1])
        move = backward / torch.linalg.svdvals(bases[1].mT @ bases[0])[..., -1]
        whole = whole & (move <= _FIRST_ORDER_LIMIT * norm.unsqueeze(1))
        # The c x c matrix minus one of its eigenvalues has a norm of at most 2 |J|.
        error = (4 * norm.unsqueeze(1) + move) ** (1 - 1 / c) * move ** (1 / c) + apart
        whole = whole & (error <= _CLUSTER_LIMIT * norm.unsqueeze(1))
        best = torch.where(whole, torch.minimum(best, error), best)
    return best
