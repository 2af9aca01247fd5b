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
from typing import Any, final

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpcheck.errors import BlockError, BlockOutputError, InputError, NonFiniteError
from fpcheck.loop import Loop

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

# Cotangents of one chunk in bytes. Their intermediates are some tens of times larger and must stay near the
# caches: half of this and four times this were slower at every n and B tried.
CHUNK_BYTES = 2 * 2**20

# Rounding of the Jacobian, relative to its Frobenius norm, in units of its dtype's eps. Measured on FPRM blocks in
# 144 variants at three states each, float32 against float64: 0.5 to 33, most below 8. The least that is assumed
# where it is measured, and what is assumed where it cannot be.
_ROUNDINGS = 4.0
_ROUNDINGS_UNMEASURED = 40.0

# Forward and reverse mode share the forward values and their rounding, so they disagree by less than each is wrong.
# With this factor the estimate was 1.1 to 20 times the true rounding in those 432 cases.
_DISAGREEMENT = 6.0

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

    def dense(self, *, chunk_size: int | None = None) -> Tensor:
        """All entries, ``(B, n, n)`` in the operator's dtype, by n products with the transpose."""
        n = self.n
        J = torch.zeros(self.batch_size, n, n, dtype=self.dtype, device=self.device)
        size = chunk_size or max(1, CHUNK_BYTES // (self.batch_size * n * J.element_size()))
        for start in range(0, n, size):
            stop = min(start + size, n)
            basis = J.new_zeros(self.batch_size, n, stop - start)
            basis[:, range(start, stop), range(stop - start)] = 1.0
            J[:, start:stop] = self.rmatvec(basis).transpose(1, 2)
        return J

    def to_scipy(self, i: int = 0) -> LinearOperator:
        """Sample ``i`` as a SciPy ``LinearOperator`` in float64, for ARPACK, LSMR and everything else there."""
        one = self if self.batch_size == 1 else self.select(torch.tensor([i]))

        def apply(product: Callable[[Tensor], Tensor], v: Any) -> Any:
            columns = torch.from_numpy(np.ascontiguousarray(np.asarray(v, dtype=np.float64))).to(self.device)
            out = product(columns.reshape(1, self.n, -1)).reshape(v.shape)
            return out.cpu().numpy()

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

    On construction the derivative is compared with central differences along a random direction (four loop calls),
    so that a detached path, a wrong custom gradient or a kink at ``z`` is an error and not a wrong number.

    Args:
        loop: The map; damped and iterated views are differentiated as they are.
        z: State ``(B, *state)``, float32 or float64, finite, on any device. It need not be a fixed point.
        check: Compare with differences.

    Raises:
        InputError: Not a float32 or float64 state of the loop's batch size.
        NonFiniteError: ``z``, ``F(z)`` or a product holds NaN or inf.
        BlockOutputError: The loop changes the shape or dtype of its state.
        BlockError: The loop cannot be differentiated, or its derivative is not that of its values.

    Cost: one forward pass, whose record is kept; each product costs about as much as a loop step.
    """

    def __init__(self, loop: Loop, z: Tensor, *, check: bool = True) -> None:
        check_state(loop, z)
        self.loop = loop
        self.z = z.detach()
        self._record()
        if check:
            self._check_against_differences()

    @property
    def batch_size(self) -> int:
        """Number of samples."""
        return len(self.z)

    @property
    def n(self) -> int:
        """Entries of one sample's state."""
        return self.z[0].numel()

    @property
    def dtype(self) -> torch.dtype:
        """The state's dtype."""
        return self.z.dtype

    @property
    def device(self) -> torch.device:
        """The state's device."""
        return self.z.device

    def select(self, index: Tensor) -> JacobianOperator:
        """The operator of some samples; the loop is recorded again for them."""
        index = index.to(self.z.device)
        return JacobianOperator(self.loop.select(index), self.z[index], check=False)

    def rmatvec(self, U: Tensor) -> Tensor:
        """Products with the transpose: one walk back through the recorded step."""
        return self._batched(self._pull, U)

    def matvec(self, V: Tensor) -> Tensor:
        """Products with the Jacobian: one walk back through the walk back."""
        if self._out is not None and self._pulled is None and not self._forward_only:
            self._record_transpose()
        return self._batched(self._push_forward if self._forward_only else self._push, V)

    def rounding(self) -> Tensor:
        """Estimate of ``|J - J_exact|_F`` from the disagreement of forward and reverse mode on a random vector.

        At least 4 eps of the dtype times ``|J|_F`` (itself estimated from that vector); 40 eps where the block has no
        forward derivative. It also sees a block that computes in a narrower dtype than its state.
        """
        v = _directions(self.z).flatten(1)
        product = self.matvec(v).double()
        # E |J v|^2 = |J|_F^2 for entries of v with unit variance; likewise the gap below.
        unit = torch.finfo(self.dtype).eps * torch.linalg.vector_norm(product, dim=1)
        if self._out is None:
            return unit
        try:
            forward = self._push_forward(v).double()
        except BlockError:
            return _ROUNDINGS_UNMEASURED * unit
        if self._forward_only:
            return _ROUNDINGS_UNMEASURED * unit
        gap = torch.linalg.vector_norm(forward - product, dim=1)
        return torch.maximum(_ROUNDINGS * unit, _DISAGREEMENT * gap)

    def _record(self) -> None:
        with torch.inference_mode(False), torch.enable_grad(), _plain_attention():
            leaf = self.z.clone().requires_grad_()
            try:
                out = self.loop(leaf)
            except RuntimeError as error:
                raise BlockError(
                    f"the block cannot be differentiated: {str(error).rstrip('.')}. It must not change its input in "
                    "place, nor use tensors made in inference mode"
                ) from error
        for name, got, want in (("shape", tuple(out.shape), tuple(leaf.shape)), ("dtype", out.dtype, leaf.dtype)):
            if got != want:
                raise BlockOutputError(
                    f"the loop returned {name}={got} for a state of {name}={want}; expected the same"
                )
        if not bool(torch.isfinite(out).all()):
            bad = where(~torch.isfinite(out).flatten(1).all(1))
            raise NonFiniteError(f"F(z) holds NaN or inf {bad} at this finite z")
        self._leaf = leaf
        # A map that does not depend on z has the Jacobian 0; a map that was cut off from z looks the same here. The
        # difference quotients tell them apart.
        self._out = out if out.requires_grad else None
        self._cotangent: Tensor | None = None
        self._pulled: Tensor | None = None
        self._forward_only = False
        self._one_by_one = False

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
            self._forward_only = not pulled.requires_grad
            if not self._forward_only:
                self._cotangent, self._pulled = cotangent, pulled
                self._push(torch.zeros_like(pulled))
        except (RuntimeError, NotImplementedError):
            self._forward_only = True

    def _pull(self, U: Tensor) -> Tensor:
        assert self._out is not None
        return _walk_back(self._out, self._leaf, U)

    def _push(self, V: Tensor) -> Tensor:
        assert self._pulled is not None
        assert self._cotangent is not None
        return _walk_back(self._pulled, self._cotangent, V)

    def _push_forward(self, V: Tensor) -> Tensor:
        try:
            with torch.no_grad(), _plain_attention(), warnings.catch_warnings():
                # The first forward derivative of a process makes torch compile its own rules with a deprecated tool.
                warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
                out: Tensor = torch.func.jvp(self.loop, (self.z,), (V.reshape(self.z.shape).to(self.dtype),))[1]
        except (RuntimeError, NotImplementedError) as error:
            raise BlockError(
                f"products J v need a derivative that the block lacks: {error}. Its backward pass cannot be "
                "differentiated, nor has it a forward derivative; write attention out, or use "
                "torch.nn.functional.scaled_dot_product_attention (its math kernel is chosen here), or give the "
                "custom autograd.Function a jvp method"
            ) from error
        return out.reshape(V.shape)

    def _batched(self, product: Callable[[Tensor], Tensor], V: Tensor) -> Tensor:
        B, n = self.batch_size, self.n
        if V.ndim not in (2, 3) or V.shape[:2] != (B, n):
            raise InputError(f"vectors of shape {tuple(V.shape)}; expected ({B}, {n}) or ({B}, {n}, k)")
        if self._out is None:
            return torch.zeros_like(V)
        if V.ndim == 2:
            return self._one(product, V.to(self.dtype)).to(V.dtype)
        columns = V.to(self.dtype).movedim(-1, 0)
        if not self._one_by_one:
            try:
                with warnings.catch_warnings():
                    # An operation without a batching rule is slower, not wrong.
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    return torch.func.vmap(product)(columns).movedim(0, -1).to(V.dtype)
            except RuntimeError:
                # Custom gradients that look at values (.item(), numpy) cannot be batched.
                self._one_by_one = True
        return torch.stack([self._one(product, column) for column in columns], dim=-1).to(V.dtype)

    def _one(self, product: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        try:
            return product(v)
        except RuntimeError as error:
            raise BlockError(f"the block has no derivative: {error}") from error

    def _check_against_differences(self) -> None:
        """Refuse a derivative whose product with v is not the change of F along v.

        Two step sizes: what they disagree by is the size of truncation and noise, which a correct derivative may
        miss them by. A hundredth is allowed besides, for kinks elsewhere in the block.
        """
        z = self.z
        v = _directions(z)
        with torch.no_grad():
            scale = torch.maximum(_rms(z), _rms(self.loop(z.clone())))
            h = _PROBE_STEP * torch.where(scale > 0, scale, 1.0)
            wide, narrow = (self._difference(v, step) for step in (h, h / 2))
        exact = self.matvec(v.flatten(1)).double()
        if not bool(torch.isfinite(exact).all()):
            raise NonFiniteError(
                f"the Jacobian {where(~torch.isfinite(exact).all(1))} holds NaN or inf although the state and F(z) are "
                "finite; look for a square root or a division at zero in the block"
            )
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

    def _difference(self, v: Tensor, h: Tensor) -> Tensor:
        z = self.z
        step = h.to(z.dtype).view(-1, *[1] * (z.ndim - 1)) * v
        return ((self.loop(z + step) - self.loop(z - step)).flatten(1).double()) / (2 * h.unsqueeze(1))


def _walk_back(out: Tensor, leaf: Tensor, cotangent: Tensor) -> Tensor:
    (product,) = torch.autograd.grad(
        out, leaf, cotangent.reshape(out.shape), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return product.reshape(cotangent.shape)


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention by the kernel that has every derivative; the fused ones lack forward and second ones."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


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
        return _multiply(self.A, V)

    def rmatvec(self, U: Tensor) -> Tensor:
        """Transposed matrix times vectors."""
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
        columns = V.detach().double().numpy()
        out = [torch.from_numpy(np.asarray(product(o, v))) for o, v in zip(self.operators, columns, strict=True)]
        return torch.stack(out).to(V.dtype)


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
    """``a J + b I`` with one a and one b per sample: a damped loop has ``a = s, b = 1 - s``."""

    def __init__(self, base: AbstractOperator, a: Tensor, b: Tensor) -> None:
        super().__init__(base)
        self.a, self.b = (torch.as_tensor(c, device=base.device).expand(base.batch_size) for c in (a, b))

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
        return self.a.abs().double() * self.base.rounding()

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


@final
class Weighted(_View):
    """``L J L^-1``: J as seen in the norm ``|L z|_2``.

    Args:
        base: J.
        L: Metric: diagonal ``(n,)`` or ``(B, n)``, or invertible matrices ``(B, n, n)``.

    Raises:
        InputError: L has another shape, is singular, or holds NaN or inf.
    """

    def __init__(self, base: AbstractOperator, L: Tensor) -> None:
        super().__init__(base)
        B, n = base.batch_size, base.n
        if not isinstance(L, Tensor) or tuple(L.shape) not in ((n,), (B, n), (B, n, n)):
            shape = tuple(L.shape) if isinstance(L, Tensor) else type(L).__name__
            raise InputError(
                f"metric L is {shape}; expected a diagonal ({n},) or ({B}, {n}), or matrices ({B}, {n}, {n})"
            )
        self.L = L.to(base.device, torch.float64).expand(B, n) if L.ndim < 3 else L.to(base.device, torch.float64)
        if not bool(torch.isfinite(self.L).all()):
            raise InputError("metric L holds NaN or inf")
        if self.L.ndim == 2:
            singular = bool((self.L == 0).any())
        else:
            self._lu, self._pivots, info = torch.linalg.lu_factor_ex(self.L)
            singular = bool(info.any())
        if singular:
            raise InputError("metric L is singular: |L z| is no norm; expected an invertible L")

    def matvec(self, V: Tensor) -> Tensor:
        """``L J L^-1 V``."""
        return self._times(self.base.matvec(self._solve(V, adjoint=False)), adjoint=False)

    def rmatvec(self, U: Tensor) -> Tensor:
        """``L^-T J' L' U``."""
        return self._solve(self.base.rmatvec(self._times(U, adjoint=True)), adjoint=True)

    def select(self, index: Tensor) -> Weighted:
        """Some samples."""
        index = index.to(self.device)
        return Weighted(self.base.select(index), self.L[index])

    def rounding(self) -> Tensor:
        """That of J times the condition number of L."""
        size = self.L.abs()
        condition = size.amax(1) / size.amin(1) if self.L.ndim == 2 else torch.linalg.cond(self.L)
        return condition * self.base.rounding()

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


def _directions(z: Tensor) -> Tensor:
    """One random direction for all samples: a sample's checks must not depend on its place in the batch."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(z.shape[1:], generator=generator, dtype=torch.float64).to(z).expand_as(z)


def _norm(a: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a.flatten(1).double(), dim=1)


def _rms(a: Tensor) -> Tensor:
    return _norm(a) / a[0].numel() ** 0.5
