"""The Jacobian of a loop as an operator: known by its products with vectors, for a whole batch at once.

Shapes: ``B`` samples, ``n`` entries in one sample's state (flattened in row-major order), ``k`` vectors side by side.
Vectors are ``(B, n)`` or ``(B, n, k)``; each sample's matrix acts on its own vectors.

One linearisation serves every product. The forward pass is recorded once; a product with the transpose walks back
through the record. Walking back once more, through that walk, gives the product with the matrix itself: the map
from cotangents u to J'u is linear, and its transpose is J. One FPRM block, one thread, n = 4,096, in milliseconds:
loop step 1.4, product with J' 1.8, with J 1.7 (``torch.func.jvp``, which starts from the state each time, 15;
``torch.func.linearize`` 2.6 after a second of tracing). A block whose backward pass has no derivative of its own is
served by ``torch.func.jvp``.
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, final

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpcheck.errors import BlockError, InputError, NonFiniteError
from fpcheck.loop import Loop, map_leaves

__all__ = [
    "AbstractOperator",
    "JacobianOperator",
    "MatrixOperator",
    "Power",
    "ScipyOperator",
    "Shifted",
    "SymmetricPart",
    "Transposed",
    "Weighted",
    "check_state",
]

DEFAULT_MAX_BYTES = 8 * 2**30
"""Memory that a request may ask for unless told otherwise: 8 GiB."""

# Cotangents of one chunk in bytes. Their intermediates are some tens of times larger and must stay near the
# caches: half of this and four times this were slower at every n and B tried.
CHUNK_BYTES = 2 * 2**20

# Rounding of the Jacobian, relative to its Frobenius norm, in units of its dtype's eps. Measured on 192 FPRM blocks at
# four states and two samples each, float32 against float64: 0.4 to 85, half below 3.8. The least that is assumed where
# it is measured, and what is assumed where it cannot be.
_ROUNDINGS = 4.0
_ROUNDINGS_UNMEASURED = 40.0

# With this factor the estimate was 1.6 to 121 times the true rounding in those 1,536 cases, below 22 in 99 % of them,
# and 1.3 to 99 times with the norms or the whole block in float32 inside a float64 loop. At the same state instead of
# one nearby, forward and reverse mode differed by as little as a twentieth of the true rounding.
_DISAGREEMENT = 6.0

# A disagreement beyond so many eps shows a narrower dtype inside the block: states must move by its rounding then.
_OWN_ROUNDINGS = 1e3
_NARROWER = {torch.float64: torch.float32, torch.float32: torch.bfloat16}

# Products of one matrix disagree by their rounding, at most 1e-4 of its size in float32. A wrong gradient is off by
# a factor, a sign or a term. Terms of J that cancel leave their own rounding, which may be all that J is.
_TWO_MATRICES = 0.03
_CANCELLED = 100.0

# Random vectors that a derivative is tried on.
_PROBES = 4

# Step of the difference quotients, relative to the state's scale. The truncation error is about its square, the
# rounding error eps over it: 1e-6 and, in float32, 1e-4.
_PROBE_STEP = 1e-3


class AbstractOperator(abc.ABC):
    """A batch of real square matrices, known by their products with vectors.

    A product is computed in the operator's own dtype, and handed back in the dtype of the vector it was given: a
    Krylov method may keep its basis in float64 while the loop runs in float32.
    """

    @property
    @abc.abstractmethod
    def batch_size(self) -> int:
        """Number of matrices ``B``."""

    @property
    @abc.abstractmethod
    def n(self) -> int:
        """Rows and columns of each."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype that products are computed in."""

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """Where products are computed, and where vectors must be."""

    @abc.abstractmethod
    def matvec(self, V: Tensor) -> Tensor:
        """Products ``J V``, the shape and dtype of ``V``: ``(B, n)`` or ``(B, n, k)``."""

    @abc.abstractmethod
    def rmatvec(self, U: Tensor) -> Tensor:
        """Products ``J' U`` with the transpose, the shape and dtype of ``U``."""

    @abc.abstractmethod
    def select(self, index: Tensor) -> AbstractOperator:
        """The operator of the samples ``index`` (integers) alone."""

    @abc.abstractmethod
    def rounding(self) -> Tensor:
        """Estimate of the 2-norm of what rounding adds to each matrix, ``(B,)`` float64."""

    def transpose(self) -> AbstractOperator:
        """The transposed matrices."""
        return Transposed(self)

    def dense(self, *, chunk_size: int | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> Tensor:
        """All entries, ``(B, n, n)`` in the operator's dtype, by n products with the transpose.

        Args:
            chunk_size: At most this many basis vectors per product. Default: as many as make 2 MiB.
            max_bytes: Refuse a result larger than this.

        Raises:
            InputError: More than ``max_bytes``, or not a chunk size.
        """
        B, n = self.batch_size, self.n
        _require_dense(B, n, self.dtype.itemsize, max_bytes, 0)
        if chunk_size is not None and (
            not isinstance(chunk_size, int) or isinstance(chunk_size, bool) or chunk_size < 1
        ):
            raise InputError(f"chunk_size={chunk_size!r}; expected an integer >= 1, or None for 2 MiB of cotangents")
        size = min(chunk_size or n, chunk_columns(self))
        J = torch.zeros(B, n, n, dtype=self.dtype, device=self.device)
        for start in range(0, n, size):
            stop = min(start + size, n)
            basis = J.new_zeros(stop - start, B, n)
            basis[range(stop - start), :, range(start, stop)] = 1.0
            J[:, start:stop] = self.rmatvec(basis.movedim(0, -1)).mT
        return J

    def to_scipy(self, i: int = 0) -> LinearOperator:
        """Sample ``i`` as a SciPy ``LinearOperator`` in float64, for ARPACK, LSMR and everything else there."""
        if not 0 <= i < self.batch_size:
            raise InputError(f"i={i}; expected a sample of the batch, 0 <= i < {self.batch_size}")
        one = self if self.batch_size == 1 else self.select(torch.tensor([i]))

        def apply(product: Callable[[Tensor], Tensor], v: Any) -> Any:
            v = np.asarray(v)
            if np.iscomplexobj(v):
                return apply(product, v.real) + 1j * apply(product, v.imag)
            # One vector comes as (n,) or (n, 1).
            columns = torch.from_numpy(np.array(v, dtype=np.float64)).to(self.device).unsqueeze(0)
            out = product(columns.flatten(1)).reshape(columns.shape) if v.size == self.n else product(columns)
            return out[0].cpu().numpy()

        return LinearOperator(
            shape=(self.n, self.n),
            dtype=np.dtype(np.float64),
            matvec=lambda v: apply(one.matvec, v),
            rmatvec=lambda v: apply(one.rmatvec, v),
            matmat=lambda v: apply(one.matvec, v),
            rmatmat=lambda v: apply(one.rmatvec, v),
        )


@final
class JacobianOperator(AbstractOperator):
    """The Jacobians of a loop at a batch of states, one for each sample.

    On construction the derivative is tried on four random vectors: backward and forward products must belong to one
    matrix (``<u, J v> = <J'u, v>``), and ``J v`` must be the change of F along v (central differences). So a detached
    path, a wrong custom gradient or a kink at ``z`` is an error and not a wrong number.

    Attention by ``scaled_dot_product_attention``, ``nn.MultiheadAttention`` or ``nn.TransformerEncoderLayer`` runs on
    its plain path here: the fused ones lack derivatives.

    Args:
        loop: The map; damped and iterated views are differentiated as they are.
        z: State ``(B, *state)``, float32 or float64, finite, on any device. It need not be a fixed point.
        check: Try the derivative first. Without, only its existence is seen, when it is first needed.

    Raises:
        InputError: Not a float32 or float64 state of the loop's batch size.
        NonFiniteError: ``z``, ``F(z)`` or a product holds NaN or inf.
        BlockError: The loop cannot be differentiated, or its derivative is not that of its values, or its backward
            and forward derivatives disagree.

    Cost: one forward pass, whose record is kept; each product costs about as much as a loop step. The trial takes five
    loop steps, eight products and four in forward mode: twenty to thirty loop steps in all.
    """

    def __init__(self, loop: Loop, z: Tensor, *, check: bool = True) -> None:
        check_state(loop, z)
        self.loop = loop
        # A map that does not depend on z has the Jacobian 0; a map that was cut off from z looks the same here. The
        # difference quotients tell them apart.
        self._leaf, out = _recorded(loop, z)
        self._out = out if out.requires_grad else None
        self._transposed: tuple[Tensor, Tensor] | None = None
        self._forward_only = False
        self._one_by_one: set[str] = set()
        self._rounding: Tensor | None = None
        if check:
            self._rounding = self._try()

    @property
    def z(self) -> Tensor:
        """The state, a copy of its own."""
        return self._leaf.detach()

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return len(self._leaf)

    @property
    def n(self) -> int:
        """Entries of one sample's state."""
        return self._leaf[0].numel()

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype."""
        return self._leaf.dtype

    @property
    def device(self) -> torch.device:
        """The state's device."""
        return self._leaf.device

    def select(self, index: Tensor) -> JacobianOperator:
        """The operator of some samples; the loop is recorded again for them."""
        index = index.to(self.device)
        with torch.inference_mode(False):  # or the selected injection could not be differentiated through
            some = JacobianOperator(self.loop.select(index), self.z[index], check=False)
        some._forward_only = self._forward_only
        some._one_by_one = set(self._one_by_one)
        some._rounding = None if self._rounding is None else self._rounding[index]
        return some

    def rmatvec(self, U: Tensor) -> Tensor:
        """Products with the transpose: one walk back through the recorded step."""
        return self._batched(self._pull, U)

    def matvec(self, V: Tensor) -> Tensor:
        """Products with the Jacobian: one walk back through the walk back."""
        if self._out is not None and self._transposed is None and not self._forward_only:
            self._record_transpose()
        return self._batched(self._push_forward if self._forward_only else self._push, V)

    def rounding(self) -> Tensor:
        """Estimate of ``|J - J_exact|_F``, ``(B,)`` float64: see :meth:`rounding_of`."""
        if self._rounding is None:
            self._rounding = self._try(differences=False)
        return self._rounding

    def rounding_of(self, V: Tensor, product: Tensor, size: Tensor, disagreement: Tensor | None = None) -> Tensor:
        """Estimate of ``|J - J_exact|_F`` for the J that gave ``product = J V``, per sample.

        Forward mode, at states and injections one rounding away, gives other values of J V. Six times what the two
        differ by, and at least 4 eps of the dtype times ``|J|_F``; 40 eps where the block has no forward derivative.
        It also sees a block that computes in a narrower dtype than its state.

        Args:
            V: Random vectors, entries of unit variance, ``(B, n, k)``.
            product: J V, in reverse mode.
            size: ``|J|_F``.
            disagreement: Another estimate of the rounding, without the factor.

        Raises:
            BlockError: Forward and reverse mode differ by more than rounding.
        """
        info = torch.finfo(self.dtype)
        gap = self._gap_nearby(V, product, info.eps)
        # fmax: the number, where one of the two is none.
        known = gap if disagreement is None else torch.fmax(gap, disagreement)
        # States and their images have the same unit, so terms of J that cancel are of the size of 1 each.
        wrong = known > _TWO_MATRICES * size + _CANCELLED * info.eps * self.n**0.5
        if bool(wrong.any()):
            b = int(wrong.nonzero()[0])
            raise BlockError(
                f"the forward and the backward derivative of the block belong to two matrices {where(wrong)}: of size "
                f"{size[b]:.2e}, they differ by {known[b]:.2e}. Look for a custom autograd.Function whose jvp and "
                "backward disagree, a hook that changes gradients (clipping), or half precision inside the block"
            )
        narrow = known > _OWN_ROUNDINGS * info.eps * size
        if bool(narrow.any()):
            coarse = self._gap_nearby(V, product, torch.finfo(_NARROWER[self.dtype]).eps)
            known = torch.where(narrow, torch.fmax(known, coarse), known)
        floor = torch.where(torch.isnan(gap), _ROUNDINGS_UNMEASURED, _ROUNDINGS) * info.eps * size
        return torch.fmax(floor, _DISAGREEMENT * known)

    def _try(self, *, differences: bool = True) -> Tensor:
        """Refuse a block whose products J v and J'u belong to two matrices, or to none that F has; measure rounding."""
        V, U = directions(self.z, 0), directions(self.z, 1)
        pulled = self.rmatvec(U)
        self._require_finite(pulled)
        product = self.matvec(V)
        disagreement = _adjoint_gap(U, pulled, V, product)
        if self._transposed is not None and bool((~(disagreement <= _TWO_MATRICES * _size(product))).any()):
            # A custom gradient may compute in numpy what a second walk back then does not see.
            self._forward_only, self._transposed = True, None
            product = self.matvec(V)
            disagreement = _adjoint_gap(U, pulled, V, product)
        self._require_finite(product)
        rounding = self.rounding_of(V, product, _size(product), disagreement)
        if differences:
            require_derivative(self.loop, self.z, V[..., 0], product[..., 0])
        return rounding

    def _gap_nearby(self, V: Tensor, product: Tensor, eps: float) -> Tensor:
        """What forward mode at a state and an injection ``eps`` away gives otherwise; NaN where there is no such mode.

        At the same state all modes share the forward values, and with them their rounding, often the larger part.
        """
        if self._out is None:
            return torch.zeros(self.batch_size, dtype=torch.float64, device=self.device)
        z, k = self.z, V.shape[-1]

        def moved(leaf: Tensor) -> Tensor:
            if not leaf.is_floating_point():
                return leaf
            noise = _random(leaf[0].numel(), 1, 3).to(leaf).view(leaf.shape[1:])
            return leaf * (1 + eps * noise)

        near = self.loop._copy(x=map_leaves(self.loop.x, moved), batch=self.batch_size)
        noise = _random(self.n, k, 2).to(z).mT.unsqueeze(1)  # another state for each column
        pairs = torch.stack((z.flatten(1) * (1 + eps * noise), V.movedim(-1, 0)), dim=1)

        def push_nearby(pair: Tensor) -> Tensor:
            return forward_product(near, pair[0].reshape(z.shape), pair[1])

        try:
            forward = self._chunked(push_nearby, pairs).movedim(0, -1)
        except BlockError:
            return torch.full((self.batch_size,), torch.nan, dtype=torch.float64, device=self.device)
        # Forward mode may meet 0 * inf where reverse mode does not; products do without it.
        gap = _size(forward.double() - product.double())
        return torch.where(torch.isfinite(gap), gap, torch.nan)

    def _require_finite(self, product: Tensor) -> None:
        finite = torch.isfinite(product).flatten(1).all(1)
        if not bool(finite.all()):
            raise NonFiniteError(
                f"the Jacobian {where(~finite)} holds NaN or inf although the state and F(z) are finite; look for a "
                "square root or a division at zero in the block"
            )

    def _record_transpose(self) -> None:
        """Record the walk back as a function of the cotangent, and try it: not every backward pass has a derivative."""
        assert self._out is not None
        try:
            with torch.inference_mode(False), torch.enable_grad():
                cotangent = torch.zeros_like(self._out, requires_grad=True)
                (pulled,) = torch.autograd.grad(
                    self._out, self._leaf, cotangent, create_graph=True, allow_unused=True, materialize_grads=True
                )
            # A custom gradient that detaches what it returns leaves no record.
            if pulled.requires_grad:
                _walk_back(pulled, cotangent, torch.zeros_like(pulled))
                self._transposed = pulled, cotangent
        except RuntimeError:
            pass
        self._forward_only = self._transposed is None

    def _pull(self, U: Tensor) -> Tensor:
        assert self._out is not None
        return _walk_back(self._out, self._leaf, U)

    def _push(self, V: Tensor) -> Tensor:
        assert self._transposed is not None
        return _walk_back(*self._transposed, V)

    def _push_forward(self, V: Tensor) -> Tensor:
        return forward_product(self.loop, self.z, V)

    def _batched(self, product: Callable[[Tensor], Tensor], V: Tensor) -> Tensor:
        check_vectors(self, V)
        if self._out is None or V.numel() == 0:
            return torch.zeros_like(V)
        if V.ndim == 2:
            return self._one(product, V.to(self.dtype)).to(V.dtype)
        # Rows of memory side by side: a product with strided vectors takes up to twice as long.
        columns = V.to(self.dtype).movedim(-1, 0).contiguous()
        return self._chunked(product, columns).movedim(0, -1).to(V.dtype)

    def _chunked(self, product: Callable[[Tensor], Tensor], columns: Tensor) -> Tensor:
        return torch.cat([self._many(product, chunk) for chunk in columns.split(chunk_columns(self))])

    def _many(self, product: Callable[[Tensor], Tensor], columns: Tensor) -> Tensor:
        if product.__name__ not in self._one_by_one:
            try:
                with warnings.catch_warnings():
                    # An operation without a batching rule is slower, not wrong.
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    return torch.func.vmap(product)(columns)
            except RuntimeError:
                # Custom gradients that look at values (.item(), numpy) cannot be batched.
                self._one_by_one.add(product.__name__)
        return torch.stack([self._one(product, column) for column in columns])

    def _one(self, product: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        try:
            return product(v)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if product == self._push_forward:
                raise BlockError(
                    f"products J v need a derivative that the block lacks ({error}): neither can its backward pass be "
                    "differentiated, nor has it a forward derivative. Use "
                    "torch.nn.functional.scaled_dot_product_attention or write attention out, give a custom "
                    "autograd.Function a jvp method or a backward made of torch operations, and pass a module that is "
                    "not compiled; or ask for the dense jacobian(), which needs the backward pass alone"
                ) from error
            raise BlockError(
                f"the block has no derivative ({error}): its backward pass failed; a custom autograd.Function needs "
                "a backward method"
            ) from error


def forward_product(loop: Loop, z: Tensor, v: Tensor) -> Tensor:
    """``J v`` by forward mode, the shape of ``v``; RuntimeError where the block has no forward derivative."""
    tangent = v.reshape(z.shape)
    with torch.no_grad(), _plain_attention(), warnings.catch_warnings():
        # The first forward derivative of a process makes torch compile its own rules with a deprecated tool.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        try:
            out: Tensor = torch.func.jvp(loop, (z,), (tangent,))[1]
        except RuntimeError:
            # A custom autograd.Function without setup_context cannot enter torch.func, but may have a jvp.
            with forward_ad.dual_level():
                dual = forward_ad.unpack_dual(loop(forward_ad.make_dual(z, tangent)))
                out = torch.zeros_like(z) if dual.tangent is None else dual.tangent
    return out.reshape(v.shape)


def require_derivative(loop: Loop, z: Tensor, v: Tensor, product: Tensor) -> None:
    """Refuse a ``product`` that is not ``J v``, the change of F along ``v``; both ``(B, n)``.

    Two step sizes: what they disagree by is the size of truncation and noise, which a correct derivative may
    miss them by. A hundredth is allowed besides, for kinks elsewhere in the block.

    Raises:
        BlockError: The two differ.
    """
    direction = v.reshape(z.shape)

    def difference(h: Tensor) -> Tensor:
        step = h.to(z.dtype).view(-1, *[1] * (z.ndim - 1)) * direction
        return ((loop(z + step) - loop(z - step)).flatten(1).double()) / (2 * h.unsqueeze(1))

    with torch.no_grad():
        scale = torch.maximum(_rms(z), _rms(loop(z.clone())))
        h = _PROBE_STEP * torch.where(scale > 0, scale, 1.0)
        wide, narrow = difference(h), difference(h / 2)
    exact = product.double()
    size = _norm(narrow)
    allowed = 10 * _norm(narrow - wide) + 0.01 * torch.maximum(size, _norm(exact))
    # What cancels in F(z + h v) - F(z - h v), with room for a hundred roundings inside the block, and underflow.
    info = torch.finfo(z.dtype)
    allowed = allowed + (100 * info.eps * scale + info.tiny) * z[0].numel() ** 0.5 / h
    gap = _norm(narrow - exact)
    wrong = ~(gap <= allowed)
    if bool(wrong.any()):
        b = int(wrong.nonzero()[0])
        raise BlockError(
            f"the derivative of the block is not that of its values {where(wrong)}: along a random direction F "
            f"changes by {size[b]:.2e} per unit, its Jacobian says {_norm(exact)[b]:.2e}, the difference is "
            f"{gap[b]:.2e}. Look for detach(), no_grad, .data, a custom gradient (straight-through rounding), or a "
            "kink at z"
        )


def _recorded(loop: Loop, z: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of the state as a leaf, and its image."""
    with torch.inference_mode(False), torch.enable_grad(), _plain_attention():
        leaf = z.detach().clone().requires_grad_()
        try:
            out = loop(leaf)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise BlockError(
                f"the block cannot be differentiated: {str(error).rstrip('.')}. It must not change its input in "
                "place, nor use tensors made in inference mode"
            ) from error
    if not bool(torch.isfinite(out).all()):
        raise NonFiniteError(f"F(z) holds NaN or inf {where(~torch.isfinite(out).flatten(1).all(1))} at this finite z")
    return leaf, out


def _walk_back(out: Tensor, leaf: Tensor, cotangent: Tensor) -> Tensor:
    (product,) = torch.autograd.grad(
        out, leaf, cotangent.reshape(out.shape), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return product.reshape(cotangent.shape)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention by the operations that have every derivative; fused ones lack forward and second derivatives."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@final
class MatrixOperator(AbstractOperator):
    """Matrices that are there in full, ``(B, n, n)`` or ``(n, n)``, float32 or float64."""

    def __init__(self, A: Tensor) -> None:
        if not isinstance(A, Tensor) or A.dtype not in (torch.float32, torch.float64):
            kind = A.dtype if isinstance(A, Tensor) else type(A).__name__
            raise InputError(f"A is {kind}; expected a float32 or float64 tensor (B, n, n)")
        A = A.unsqueeze(0) if A.ndim == 2 else A
        if A.ndim != 3 or A.shape[1] != A.shape[2] or A.numel() == 0:
            raise InputError(f"A.shape={tuple(A.shape)}; expected (B, n, n) or (n, n)")
        if not bool(torch.isfinite(A).all()):
            raise NonFiniteError("A holds NaN or inf; expected finite matrices")
        self.A = A.detach()

    @property
    def batch_size(self) -> int:
        """Number of matrices."""
        return len(self.A)

    @property
    def n(self) -> int:
        """Rows and columns."""
        return self.A.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The entries' dtype."""
        return self.A.dtype

    @property
    def device(self) -> torch.device:
        """The entries' device."""
        return self.A.device

    def matvec(self, V: Tensor) -> Tensor:
        """Matrix times vectors."""
        check_vectors(self, V)
        return _multiply(self.A, V)

    def rmatvec(self, U: Tensor) -> Tensor:
        """Transposed matrix times vectors."""
        check_vectors(self, U)
        return _multiply(self.A.mT, U)

    def select(self, index: Tensor) -> MatrixOperator:
        """Some of the matrices."""
        return MatrixOperator(self.A[index.to(self.device)])

    def rounding(self) -> Tensor:
        """Zero: the entries are taken as exact."""
        return torch.zeros(self.batch_size, dtype=torch.float64, device=self.device)


def _multiply(A: Tensor, V: Tensor) -> Tensor:
    columns = V.to(A.dtype)
    product = A @ columns if V.ndim == 3 else (A @ columns.unsqueeze(-1)).squeeze(-1)
    return product.to(V.dtype)


@final
class ScipyOperator(AbstractOperator):
    """SciPy operators, one for each sample: anything that :func:`scipy.sparse.linalg.aslinearoperator` accepts.

    Products run one after the other on the CPU, in float64.
    """

    def __init__(self, operators: Sequence[Any]) -> None:
        self.operators = [aslinearoperator(one) for one in operators]
        shapes = {one.shape for one in self.operators}
        if len(shapes) != 1 or len(shape := next(iter(shapes))) != 2 or shape[0] != shape[1]:
            raise InputError(f"operators of shapes {sorted(shapes)}; expected at least one, all of one shape (n, n)")
        for one in self.operators:
            if np.issubdtype(one.dtype, np.complexfloating):
                raise InputError(f"an operator of dtype {one.dtype}; expected real ones")

    @property
    def batch_size(self) -> int:
        """Number of operators."""
        return len(self.operators)

    @property
    def n(self) -> int:
        """Rows and columns."""
        return int(self.operators[0].shape[0])

    @property
    def dtype(self) -> torch.dtype:
        """float64."""
        return torch.float64

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def matvec(self, V: Tensor) -> Tensor:
        """Each operator's product with its own vectors."""
        return self._each(V, lambda one, v: one.matvec(v) if v.ndim == 1 else one.matmat(v))

    def rmatvec(self, U: Tensor) -> Tensor:
        """Each operator's adjoint product with its own vectors."""
        return self._each(U, lambda one, v: one.rmatvec(v) if v.ndim == 1 else one.rmatmat(v))

    def select(self, index: Tensor) -> ScipyOperator:
        """Some of the operators."""
        return ScipyOperator([self.operators[i] for i in index.tolist()])

    def rounding(self) -> Tensor:
        """Zero: products are taken as exact."""
        return torch.zeros(self.batch_size, dtype=torch.float64)

    def _each(self, V: Tensor, product: Callable[[Any, Any], Any]) -> Tensor:
        check_vectors(self, V)
        columns = V.detach().double().numpy()
        try:
            out = [np.asarray(product(one, v)) for one, v in zip(self.operators, columns, strict=True)]
        except NotImplementedError as error:
            raise InputError(
                f"a SciPy operator lacks this product ({error}); pass matvec and rmatvec to its constructor"
            ) from error
        return torch.from_numpy(np.stack(out)).to(V.dtype)


class _View(AbstractOperator):
    """An operator made of another one."""

    def __init__(self, base: AbstractOperator) -> None:
        self.base = base

    @property
    def batch_size(self) -> int:
        return self.base.batch_size

    @property
    def n(self) -> int:
        return self.base.n

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    def rounding(self) -> Tensor:
        return self.base.rounding()


@final
class Transposed(_View):
    """``J'``."""

    def matvec(self, V: Tensor) -> Tensor:
        """``J' V``."""
        return self.base.rmatvec(V)

    def rmatvec(self, U: Tensor) -> Tensor:
        """``J U``."""
        return self.base.matvec(U)

    def select(self, index: Tensor) -> Transposed:
        """Some samples."""
        return Transposed(self.base.select(index))

    def transpose(self) -> AbstractOperator:
        """``J`` itself."""
        return self.base


@final
class SymmetricPart(_View):
    """``(J + J') / 2``, whose largest eigenvalue is the log-norm of J. Two products each."""

    def matvec(self, V: Tensor) -> Tensor:
        """``(J V + J' V) / 2``."""
        return (self.base.matvec(V) + self.base.rmatvec(V)) / 2

    def rmatvec(self, U: Tensor) -> Tensor:
        """The same."""
        return self.matvec(U)

    def select(self, index: Tensor) -> SymmetricPart:
        """Some samples."""
        return SymmetricPart(self.base.select(index))


@final
class Shifted(_View):
    """``a J + b I``: a damped loop has ``a = s, b = 1 - s``.

    Args:
        base: J.
        a: Factor, finite: one for all samples, or ``(B,)``.
        b: Shift, likewise.

    Raises:
        InputError: a or b has another shape, or is NaN or inf.
    """

    def __init__(self, base: AbstractOperator, a: Tensor | float, b: Tensor | float) -> None:
        super().__init__(base)
        self.a, self.b = self._per_sample("a", a), self._per_sample("b", b)

    def matvec(self, V: Tensor) -> Tensor:
        """``a J V + b V``."""
        return self._combine(self.base.matvec(V), V)

    def rmatvec(self, U: Tensor) -> Tensor:
        """``a J' U + b U``."""
        return self._combine(self.base.rmatvec(U), U)

    def select(self, index: Tensor) -> Shifted:
        """Some samples."""
        index = index.to(self.device)
        return Shifted(self.base.select(index), self.a[index], self.b[index])

    def rounding(self) -> Tensor:
        """That of J, times ``|a|``."""
        return self.a.abs() * self.base.rounding()

    def _per_sample(self, name: str, value: Tensor | float) -> Tensor:
        # float64 from the start: a Python number would become float32.
        c = torch.as_tensor(value, dtype=torch.float64, device=self.device)
        if c.shape not in ((), (self.batch_size,)) or not bool(torch.isfinite(c).all()):
            raise InputError(
                f"{name}={value!r}; expected a finite number, or one for each of {self.batch_size} samples"
            )
        return c.expand(self.batch_size)

    def _combine(self, product: Tensor, V: Tensor) -> Tensor:
        a, b = (c.to(V.dtype).view(-1, *[1] * (V.ndim - 1)) for c in (self.a, self.b))
        return a * product + b * V


@final
class Power(_View):
    """``J^k``: k products each."""

    def __init__(self, base: AbstractOperator, k: int) -> None:
        super().__init__(base)
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise InputError(f"k={k!r}; expected an integer >= 1")
        self.k = k

    def matvec(self, V: Tensor) -> Tensor:
        """``J^k V``."""
        for _ in range(self.k):
            V = self.base.matvec(V)
        return V

    def rmatvec(self, U: Tensor) -> Tensor:
        """``(J')^k U``."""
        for _ in range(self.k):
            U = self.base.rmatvec(U)
        return U

    def select(self, index: Tensor) -> Power:
        """Some samples."""
        return Power(self.base.select(index), self.k)

    def rounding(self) -> Tensor:
        """That of J, times ``sum |J^j| |J^(k-1-j)|`` over j < k, first order; k - 1 products on random vectors.

        The norms are estimates of Frobenius norms, which 2-norms do not exceed.
        """
        one = self.base.rounding()
        V = _random(self.n, _PROBES, 0).to(self.device).expand(self.batch_size, -1, -1)
        norms = [torch.ones_like(one)]
        for _ in range(self.k - 1):
            V = self.base.matvec(V)
            norms.append(_size(V))
        return one * sum(left * right for left, right in zip(norms, reversed(norms), strict=True))


@final
class Weighted(_View):
    """``L J L^-1``: J as seen in the norm ``|L z|_2``.

    Args:
        base: J.
        L: Metric: diagonal ``(n,)`` or ``(B, n)``, or invertible matrices ``(B, n, n)``; one matrix for all samples
            is ``L.expand(B, n, n)``.

    Raises:
        InputError: L has another shape or dtype, is singular (to float64), or holds NaN or inf.
    """

    def __init__(self, base: AbstractOperator, L: Tensor) -> None:
        super().__init__(base)
        B, n = base.batch_size, base.n
        if not isinstance(L, Tensor) or not L.is_floating_point() or tuple(L.shape) not in ((n,), (B, n), (B, n, n)):
            got = f"{L.dtype} {tuple(L.shape)}" if isinstance(L, Tensor) else type(L).__name__
            raise InputError(
                f"metric L is {got}; expected floats: a diagonal ({n},) or ({B}, {n}), or matrices ({B}, {n}, {n})"
            )
        self.L = L.detach().to(base.device, torch.float64)
        if L.ndim == 1:
            self.L = self.L.expand(B, n)
        if not bool(torch.isfinite(self.L).all()):
            raise InputError("metric L holds NaN or inf")
        if self.L.ndim == 2:
            size = self.L.abs()
            # A diagonal is inverted exactly, however ill-conditioned, as long as nothing overflows.
            singular = not bool(torch.isfinite(1 / self.L).all())
            self._condition = size.amax(1) / size.amin(1)
        else:
            self._lu, self._pivots, _ = torch.linalg.lu_factor_ex(self.L)
            self._condition = torch.linalg.cond(self.L)
            singular = not bool((self._condition < 1 / torch.finfo(torch.float64).eps).all())
        if singular:
            raise InputError(
                f"metric L is singular (condition {float(self._condition.max()):.1e}): |L z| is no norm; expected an "
                "invertible L"
            )

    def matvec(self, V: Tensor) -> Tensor:
        """``L J L^-1 V``."""
        check_vectors(self, V)
        return self._times(self.base.matvec(self._solve(V, adjoint=False)), adjoint=False)

    def rmatvec(self, U: Tensor) -> Tensor:
        """``L^-T J' L' U``."""
        check_vectors(self, U)
        return self._solve(self.base.rmatvec(self._times(U, adjoint=True)), adjoint=True)

    def select(self, index: Tensor) -> Weighted:
        """Some samples."""
        index = index.to(self.device)
        some = copy(self)  # not made anew: factors and condition numbers are there
        some.base = self.base.select(index)
        some.L, some._condition = self.L[index], self._condition[index]
        if self.L.ndim == 3:
            some._lu, some._pivots = self._lu[index], self._pivots[index]
        return some

    def rounding(self) -> Tensor:
        """That of J times the condition number of L."""
        return self._condition * self.base.rounding()

    def _solve(self, V: Tensor, *, adjoint: bool) -> Tensor:
        if self.L.ndim == 2:
            return (V.double() / (self.L if V.ndim == 2 else self.L.unsqueeze(-1))).to(V.dtype)
        columns = V.double() if V.ndim == 3 else V.double().unsqueeze(-1)
        out = torch.linalg.lu_solve(self._lu, self._pivots, columns, adjoint=adjoint).to(V.dtype)
        return out if V.ndim == 3 else out.squeeze(-1)

    def _times(self, V: Tensor, *, adjoint: bool) -> Tensor:
        if self.L.ndim == 2:
            return (V.double() * (self.L if V.ndim == 2 else self.L.unsqueeze(-1))).to(V.dtype)
        return _multiply(self.L.mT if adjoint else self.L, V)


def check_state(loop: Loop, z: Tensor) -> None:
    """Refuse a state whose spectrum cannot be computed, before any work.

    Raises:
        InputError: Not a float32 or float64 tensor ``(B, *state)`` of the loop's batch size.
        NonFiniteError: NaN or inf.
    """
    if not isinstance(z, Tensor):
        raise InputError(f"z is a {type(z).__name__}; expected a state, a tensor (B, *state)")
    if z.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"z.dtype={z.dtype}; expected torch.float32 or torch.float64. Convert the block, its injection and the "
            "state (.double()): a Jacobian in half precision has no correct digits left for a spectrum"
        )
    if z.ndim == 0 or z.numel() == 0 or len(z) != loop.batch_size:
        raise InputError(f"z.shape={tuple(z.shape)}; expected (B, *state) with B={loop.batch_size}, as in the loop")
    if not bool(torch.isfinite(z).all()):
        raise NonFiniteError(
            f"z holds NaN or inf {where(~torch.isfinite(z).flatten(1).all(1))}; expected a finite state, such as "
            "solution.value of samples that did not diverge"
        )


def where(bad: Tensor) -> str:
    """Which samples, in words."""
    which = bad.nonzero().flatten().tolist()
    return f"for sample {which[0]}" if len(which) == 1 else f"for {len(which)} samples ({which[0]}, ...)"


def check_vectors(op: AbstractOperator, V: Tensor) -> None:
    """Refuse vectors that the operator cannot be multiplied by.

    Raises:
        InputError: Not float32 or float64 of shape ``(B, n)`` or ``(B, n, k)``, or on another device.
    """
    B, n = op.batch_size, op.n
    if not isinstance(V, Tensor) or V.dtype not in (torch.float32, torch.float64):
        kind = V.dtype if isinstance(V, Tensor) else type(V).__name__
        raise InputError(f"vectors are {kind}; expected a float32 or float64 tensor")
    if V.ndim not in (2, 3) or V.shape[:2] != (B, n):
        raise InputError(f"vectors of shape {tuple(V.shape)}; expected ({B}, {n}) or ({B}, {n}, k)")
    if V.device != op.device:
        raise InputError(f"vectors on {V.device}; expected {op.device}, where the operator is: V.to(op.device)")


def chunk_columns(op: AbstractOperator) -> int:
    """How many vectors per sample one product takes at once."""
    return max(1, CHUNK_BYTES // (op.batch_size * op.n * op.dtype.itemsize))


def require_memory(z: Tensor, max_bytes: int, *, workspace: int = 0) -> None:
    """Refuse dense Jacobians at ``z`` that need more than ``max_bytes``, saying how much and what to do instead.

    Args:
        z: The state.
        max_bytes: The limit.
        workspace: Bytes needed besides the Jacobians, whatever the batch size.

    Raises:
        InputError: Too large.
    """
    _require_dense(len(z), z[0].numel(), z.element_size(), max_bytes, workspace)


def require_basis_memory(op: AbstractOperator, vectors: int, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
    """Refuse ``vectors`` float64 vectors for each sample that need more than ``max_bytes``.

    Raises:
        InputError: Too large; the message names the size, and how many vectors or samples fit.
    """
    each = 8 * op.n
    need = op.batch_size * vectors * each
    if need <= max_bytes:
        return
    fewer, samples = max_bytes // (op.batch_size * each), max_bytes // (vectors * each)
    advice = [f"a basis of at most {fewer} vectors"] if fewer else []
    advice += [f"at most {samples} sample(s) at once (select)"] if samples else []
    raise InputError(
        f"{vectors} basis vectors for each of {op.batch_size} sample(s) with n={op.n} need {need / 2**30:.3g} GiB; "
        f"max_bytes allows {max_bytes / 2**30:.3g} GiB; take {' or '.join([*advice, 'a larger max_bytes'])}, if the "
        "machine has the memory"
    )


def _require_dense(samples: int, n: int, itemsize: int, max_bytes: int, workspace: int) -> None:
    each = n * n * itemsize
    need = samples * each + workspace
    if need <= max_bytes:
        return
    fit = max(0, (max_bytes - workspace) // each)
    advice = (
        f"take at most {fit} sample(s) at once (select)"
        if fit
        else "not even one sample fits; a matrix-free method is needed at this size"
    )
    raise InputError(
        f"{samples} dense Jacobian(s) with n={n} need {need / 2**30:.3g} GiB, workspace included; max_bytes allows "
        f"{max_bytes / 2**30:.3g} GiB; {advice}, or raise max_bytes if the machine has the memory"
    )


def directions(z: Tensor, seed: int) -> Tensor:
    """Random vectors, the same for all samples: a sample's checks must not depend on its place in the batch."""
    return _random(z[0].numel(), _PROBES, seed).to(z).expand(len(z), -1, -1)


def _random(n: int, k: int, seed: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _adjoint_gap(U: Tensor, pulled: Tensor, V: Tensor, product: Tensor) -> Tensor:
    """``|J - J~|_F`` where ``product = J V`` and ``pulled = J~' U``, estimated from ``U'(J - J~) V``."""
    return _norm(U.double().mT @ product.double() - pulled.double().mT @ V.double()) / U.shape[-1]


def _size(product: Tensor) -> Tensor:
    """``|J|_F`` per sample, estimated from J V."""
    return _norm(product) / product.shape[-1] ** 0.5


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.flatten(1).double(), dim=1)


def _rms(a: Tensor) -> Tensor:
    return _norm(a) / a[0].numel() ** 0.5
