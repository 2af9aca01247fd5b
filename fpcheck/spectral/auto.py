"""The way of computing a spectrum that fits the size and the structure of the loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fpcheck.loop import Loop
from fpcheck.spectral.methods import AbstractMethod, Blocks, Dense, Figures
from fpcheck.spectral.outermost import Krylov
from fpcheck.spectral.structure import find_structure

__all__ = ["Auto"]

# Up to so many rows all eigenvalues of a matrix take seconds; the work goes with the third power.
_DENSE_ROWS = 1600

# Blocks cost a product for each row of J: above this, minutes.
_BLOCK_ROWS = 16_384


@final
@dataclass(frozen=True)
class Auto(AbstractMethod):
    """``Dense()`` up to n = 1,600; ``Blocks()`` up to 16,384 if no block is larger than that; else ``Krylov()``."""

    def figures(self, loop: Loop, z: Tensor, max_bytes: int) -> Figures:
        """Choose by size and structure."""
        n = z[0].numel()
        method: AbstractMethod = Krylov()
        if n <= _DENSE_ROWS:
            method = Dense()
        elif n <= _BLOCK_ROWS and z.ndim > 2:
            found = find_structure(loop, z)
            if found.symmetric is not None or max(map(len, found.components)) * (n // z.shape[1]) <= _DENSE_ROWS:
                method = Blocks()
        return method.figures(loop, z, max_bytes)
