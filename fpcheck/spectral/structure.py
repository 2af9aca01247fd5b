"""Which entries of a state act on which: a Jacobian's structure splits its spectrum into those of smaller matrices.

Draw an arrow from entry k to entry j where ``J[j, k]`` is not zero. Entries that reach each other in both
directions form a component; with the components in order, J is block triangular, so its eigenvalues are those of
its diagonal blocks, exactly and with multiplicities. A causal loop falls apart into its tokens.

This matters for accuracy even more than for speed. Tokens in similar states have similar diagonal blocks, so the
whole matrix is close to a defective one and its eigenvalues are determined badly, to ``eps^(1/12)`` for twelve
tokens, if rounding may fall anywhere. It may not: zeros by structure are exact.

Where all tokens are in the same state and the block treats them alike, J acts on them alike:
``J = I (x) A + 1 1' (x) C`` with two matrices of one token's size. It maps equal tokens to equal tokens by ``A + T C``
and tokens that add up to zero by A, so its eigenvalues are those of A, T - 1 times each, and those of ``A + T C``.

Shapes: ``B`` samples, ``T`` tokens of ``d`` entries each, ``n = T d``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.loop import Loop
from fpcheck.spectral.operator import DEFAULT_MAX_BYTES, JacobianOperator, chunk_columns

__all__ = ["Structure", "diagonal_blocks", "find_structure", "structure_of"]

BOTH = 2.0
"""Two ways to write down the same Jacobian may differ by the rounding of both."""

# Memory per pair of tokens: the graph as a dense and as a sparse matrix.
_GRAPH_BYTES = 16


@final
@dataclass(frozen=True, eq=False)
class Structure:
    """How a loop's Jacobian falls apart over tokens: verified at this state, for all samples of the batch at once.

    Attributes:
        path: In words: ``"causal: 12 blocks of 64"``, ``"token-symmetric: ..."``, ``"none: one block of 768"``.
        depends: ``(T, T)`` booleans: whether token t of ``F(z)`` depends on token s of z, in some sample.
        components: Sorted tokens that depend on each other both ways, ``0 ... T-1`` together. Each depends on itself
            and on earlier components only.
        entries: Row s: where token s stands in the flattened state, ``(T, d)``.
        symmetric: ``A`` and ``C``, each ``(B, d, d)``, where all tokens act alike on each other; else None.
        products: Products with J and J' that it took, per sample.
    """

    path: str
    depends: Tensor = field(repr=False)
    components: tuple[Tensor, ...] = field(repr=False)
    entries: Tensor = field(repr=False)
    symmetric: tuple[Tensor, Tensor] | None = field(repr=False)
    products: int

    @property
    def is_found(self) -> bool:
        """Whether the spectrum is that of smaller matrices."""
        return len(self.components) > 1 or self.symmetric is not None


def find_structure(loop: Loop, z: Tensor, *, token_dim: int = 1) -> Structure:
    """Find out, by products alone, whether the Jacobian falls apart over tokens.

    Which tokens act on which is verified, not assumed: a random cotangent on one token is pulled back, and what
    reaches another token is exactly zero only if its derivative is (with probability 1). A derivative that underflows
    the dtype is zero here as in the dense Jacobian. Where all tokens hang together, the symmetric form is tried: made
    from the first token's rows, it must give random products ``J v`` up to rounding.

    Args:
        loop: The map.
        z: State ``(B, *state)``.
        token_dim: Dimension of z that counts tokens.

    Returns:
        Structure; one component and no symmetry where nothing was found (attention both ways, convolutions over
        neighbours on both sides, an MLP over positions).

    Raises:
        InputError: z is no state of the loop, or has no such dimension.
        BlockError: The loop cannot be differentiated.

    Guarantee: estimate (structure at this state, in floating point).
    Cost: that of :class:`~fpcheck.spectral.operator.JacobianOperator`, T products, and d + 8 more for the symmetric
    form, which is tried where tokens hang together and the first two act alike on random vectors.

    Example:
        >>> loop = Loop(lambda z: z.cumsum(1) / 4, z0=torch.zeros(1, 3, 2))
        >>> find_structure(loop, torch.zeros(1, 3, 2)).path
        'causal: 3 blocks of 2'
    """
    return structure_of(JacobianOperator(loop, z), token_dim=token_dim)


def structure_of(op: JacobianOperator, *, token_dim: int = 1) -> Structure:
    """:func:`find_structure` for an operator that is there already."""
    entries = _entries(op.z, token_dim)
    depends = _dependency(op, entries)
    components = _components(depends)
    T, d = entries.shape
    products = T
    symmetric = None
    if len(components) == 1 and T > 1:
        symmetric, tried = _symmetric_parts(op, entries)
        products += tried
    if symmetric is not None:
        path = f"token-symmetric: {T - 1} times one block of {d}, and another"
    else:
        path = _words(depends, components, d)
    return Structure(path, depends.cpu(), components, entries.cpu(), symmetric, products)


def _entries(z: Tensor, token_dim: int) -> Tensor:
    if not isinstance(token_dim, int) or isinstance(token_dim, bool) or not 1 <= token_dim < z.ndim:
        raise InputError(
            f"token_dim={token_dim!r}; expected the dimension of the state {tuple(z.shape)} that counts tokens, 1 to "
            f"{z.ndim - 1}"
        )
    T = z.shape[token_dim]
    if (need := _GRAPH_BYTES * T * T) > DEFAULT_MAX_BYTES:
        raise InputError(
            f"the graph of T={T} tokens needs up to {need / 2**30:.3g} GiB; expected tokens of many entries each "
            f"(token_dim={token_dim} of the state {tuple(z.shape)}): reshape the state"
        )
    index = torch.arange(z[0].numel(), device=z.device).view(z.shape[1:])
    return index.movedim(token_dim - 1, 0).reshape(T, -1)


def _dependency(op: JacobianOperator, entries: Tensor) -> Tensor:
    """``(T, T)`` booleans, by one product per token."""
    T, d = entries.shape
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(T, d, generator=generator, dtype=torch.float64).to(entries.device, op.dtype)
    depends = torch.zeros(T, T, dtype=torch.bool, device=entries.device)
    for tokens in torch.arange(T, device=entries.device).split(chunk_columns(op)):
        U = u.new_zeros(len(tokens), op.n).scatter_(1, entries[tokens], u[tokens])
        pulled = op.rmatvec(U.T.expand(op.batch_size, -1, -1))
        depends[tokens] = (pulled != 0)[:, entries].any(2).any(0).T
    return depends


def _components(depends: Tensor) -> tuple[Tensor, ...]:
    """Strongly connected tokens, those that others depend on first."""
    graph = depends.cpu().numpy()
    count, label = connected_components(graph, directed=True, connection="strong")
    between = np.zeros((count, count), dtype=np.int64)
    rows, columns = np.nonzero(graph)
    between[label[rows], label[columns]] = 1
    np.fill_diagonal(between, 0)
    waiting = between.sum(1)  # for so many others
    order = []
    for _ in range(count):
        order.append(ready := int(np.argmax(waiting == 0)))
        waiting -= between[:, ready]
        waiting[ready] = -1
    return tuple(torch.from_numpy(np.flatnonzero(label == k)) for k in order)


def _words(depends: Tensor, components: tuple[Tensor, ...], d: int) -> str:
    T = len(depends)
    if len(components) == 1:
        return f"none: one block of {T * d}"
    if len(components) < T:
        sizes = [len(part) * d for part in components]
        counted = ", ".join(f"{sizes.count(size)} of {size}" for size in sorted(set(sizes), reverse=True))
        return f"block triangular: {len(components)} blocks, {counted}"
    before, after = bool(depends.tril(-1).any()), bool(depends.triu(1).any())
    kind = {
        (False, False): "independent tokens",
        (True, False): "causal",
        (False, True): "anti-causal",
        (True, True): "causal in another order",
    }[before, after]
    return f"{kind}: {T} blocks of {d}"


def _symmetric_parts(op: JacobianOperator, entries: Tensor) -> tuple[tuple[Tensor, Tensor] | None, int]:
    """A and C of ``I (x) A + 1 1' (x) C`` if J is that, and the products that it took to know."""
    d = entries.shape[1]
    generator = torch.Generator().manual_seed(1)
    V = torch.randn(op.n, 4, generator=generator, dtype=torch.float64).to(op.device).expand(op.batch_size, -1, -1)
    product = op.matvec(V)
    allowed = BOTH * op.rounding()

    def differ(one: Tensor, other: Tensor) -> bool:
        # Per column, in mean square: |D|_F for a difference D of two matrices.
        gap = torch.linalg.vector_norm((one - other).flatten(1), dim=1) / V.shape[-1] ** 0.5
        return bool((gap > allowed).any())

    # Few products before many: J must not change when the first two tokens change places.
    moved = torch.arange(op.n, device=op.device)
    moved[entries[:2].flatten()] = entries[:2].flip(0).flatten()
    products = 2 * V.shape[-1]
    if differ(op.matvec(V[:, moved]), product[:, moved]):
        return None, products
    # How token 0 depends on each token, (B, T, d, d): A + C on itself, C on the others.
    products += d
    first = rows(op, entries[0]).double()[:, :, entries].movedim(2, 1)
    C = first[:, 1:].mean(1)
    A = first[:, 0] - C
    Z = V[:, entries]
    rebuilt = A.unsqueeze(1) @ Z + (C @ Z.sum(1)).unsqueeze(1)
    return (None if differ(rebuilt, product[:, entries]) else (A, C)), products


def rows(op: JacobianOperator, index: Tensor) -> Tensor:
    """Rows ``index`` of J, ``(B, len(index), n)``."""
    basis = torch.zeros(len(index), op.batch_size, op.n, dtype=op.dtype, device=op.device)
    basis[torch.arange(len(index), device=op.device), :, index] = 1.0
    return op.rmatvec(basis.movedim(0, -1)).mT


def diagonal_blocks(J: Tensor) -> list[Tensor]:
    """Index sets of the strongly connected components of a square matrix's graph.

    Args:
        J: ``(n, n)``. Zeros are taken as they are: entries that are exactly zero in the computed matrix.

    Returns:
        Sorted index tensors, together ``0 ... n-1``; a single one for an irreducible matrix.
    """
    rows, columns = np.nonzero(J.numpy())
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=J.shape)
    count, label = connected_components(graph, directed=True, connection="strong")
    order = np.argsort(label, kind="stable")
    cuts = np.cumsum(np.bincount(label, minlength=count))[:-1]
    return [torch.from_numpy(np.sort(part)) for part in np.split(order, cuts)]
