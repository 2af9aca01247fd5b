r"""Rounding of float64, as bounds.

Every operation of IEEE 754 double precision returns :math:`x (1 + \delta) + \eta` for the exact result x, with
:math:`|\delta| \le u = 2^{-53}` and :math:`|\eta|` below the smallest normal number (also where a library flushes
subnormal numbers to zero). A sum of k products, in any order, with or without fused multiply-add, is wrong by at most
:math:`\gamma_k = k u / (1 - k u)` times the sum of the moduli (Theorem R1).

Bounds are themselves computed in float64. All of them are sums, products and quotients of non-negative numbers, so the
computed value is relatively near the exact one, and one factor at the end makes up for it: `inflate`.
"""

from __future__ import annotations

import math

from torch import Tensor

__all__ = ["ROOM", "TINY", "U", "down", "gamma", "inflate", "root_up", "up"]

U = 2.0**-53
"""Unit roundoff of float64."""
TINY = 2.0**-1021
"""Above any error of an operation whose result underflows, flushed to zero or not."""
ROOM = 1 + 2.0**-30
"""Makes up for the roundings of a chain of sums, products and roots of non-negative numbers, 2^22 of them."""


def gamma(k: int) -> float:
    r"""An upper bound on :math:`\gamma_k = k u / (1 - k u)`.

    Args:
        k: Number of roundings in a row, below 2^50.

    Guarantee: bound, rounding included.
    Source: Theorem R1.
    """
    if not 0 <= k < 2**50:
        raise ValueError(f"k={k}; expected a number of roundings from 0 to 2^50")
    # k u is exact; the quotient is within one unit, and the next float above it.
    return math.nextafter(k * U / (1 - k * U), math.inf) if k else 0.0


def inflate(value: Tensor, roundings: int) -> Tensor:
    """An upper bound on what ``value`` would be without rounding.

    Args:
        value: Computed from non-negative float64 numbers by at most ``roundings`` operations in a row, each a sum,
            product or quotient of them (a dot product of length k counts k).
        roundings: How many.

    Guarantee: bound. (1 - u)^k >= 1 / (1 + gamma_k), and each result may have lost TINY to underflow.
    Source: Theorem R1.
    """
    return value * (1 + 2 * gamma(roundings + 2)) + (roundings + 2) * TINY


def up(value: float) -> float:
    """The next float64 above, so that one correctly rounded operation becomes an upper bound."""
    return math.nextafter(value, math.inf)


def down(value: float) -> float:
    """The next float64 below, so that one correctly rounded operation becomes a lower bound."""
    return math.nextafter(value, -math.inf)


def root_up(value: float) -> float:
    """An upper bound on the root: the machine's root, raised until its square is provably above."""
    root = math.sqrt(value)
    while root * root < value * (1 + 2.0**-51):
        root = up(root * (1 + 2.0**-52))
    return root
