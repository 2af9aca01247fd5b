"""Which entries of a state act on which: a Jacobian's zeros split its spectrum into those of smaller matrices.

Draw an arrow from entry k to entry j where ``J[j, k]`` is not zero. Entries that reach each other in both
directions form a component; with the components in order, J is block triangular, so its eigenvalues are those of
its diagonal blocks, exactly and with multiplicities. A causal loop falls apart into its tokens.

This matters for accuracy even more than for speed. Tokens in similar states have similar diagonal blocks, so the
whole matrix is close to a defective one and its eigenvalues are determined badly, to ``eps^(1/12)`` for twelve
tokens, if rounding may fall anywhere. It may not: zeros by structure are exact.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

__all__ = ["diagonal_blocks"]


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
