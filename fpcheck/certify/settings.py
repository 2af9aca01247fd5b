"""How much work goes into a certificate's bounds. Every setting proves; they differ in how large the balls come out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["Fast", "Sharp"]


@final
@dataclass(frozen=True, eq=False)
class Fast:
    """Two norms for all nodes together, from bounds on the blocks between them.

    Attributes:
        levels: Where between the spectral radius (0) and 1 (1) the contraction aimed at by a metric lies; each is
            tried by estimates, and the best is proved.
    """

    levels: tuple[float, ...] = (0.5,)  # choice: near the best on trained blocks, and flat


@final
@dataclass(frozen=True, eq=False)
class Sharp:
    """The same with the first-order part bounded by itself, and true norms of the maps between nodes.

    Balls grow some 1.5 times, for several times the work and the memory of all maps between nodes.

    Attributes:
        levels: As in `Fast`.
    """

    levels: tuple[float, ...] = (0.5,)  # choice: near the best on trained blocks, and flat
