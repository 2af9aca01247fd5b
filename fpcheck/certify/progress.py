"""How many more steps: until a tolerance is reached, and until an answer is proved never to change again.

Both follow from a certificate's rate and error bound, and from where the loop is now (Theorems B1 and H5): a state at
distance D from the centre is within D + e of the fixed point, and k steps later within ``rate^k (D + e)``.
"""

from __future__ import annotations

import math

import flint
import torch
from flint import arb
from torch import Tensor

from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.rounding import down, up
from fpcheck.errors import InputError

__all__ = ["steps_to_decision", "steps_to_tolerance"]

_BITS = 200  # choice: far beyond what tells one whole number of steps from the next


def steps_to_tolerance(found: Certificate, state: Tensor, tolerance: float) -> int:
    """A number of loop steps after which the exact loop is within a tolerance of the fixed point, and stays there.

    Args:
        found: A certificate of attraction.
        state: A state ``(1, *state)`` that ``found.holds``.
        tolerance: Distance from the fixed point, in the certificate's metric, above 0.

    Returns:
        The least number that the certificate's rate over its ball gives.

    Raises:
        InputError: The certificate proves no attraction, the state is not in its ball, or the tolerance is not above 0.

    Guarantee: bound, for the exact loop. A running loop in floating point need not get that near.
    Source: Theorem B1.
    """
    if not 0 < tolerance < math.inf:
        raise InputError(f"tolerance={tolerance}; expected a number above 0")
    return _steps(found.rate, _ahead(found, state), tolerance)


def steps_to_decision(found: Certificate, state: Tensor) -> Tensor:
    """By token, after how many loop steps the answer is proved to be that of the fixed point, for good.

    Args:
        found: A certificate of attraction with decisions.
        state: A state ``(1, *state)`` that ``found.holds``.

    Returns:
        ``(*tokens)`` int64: 0 where it is so now, -1 where no number of steps is enough for a proof, as the fixed point
        itself may be too far from the centre.

    Raises:
        InputError: The certificate proves no attraction, has no decisions, or the state is not in its ball.

    Guarantee: bound, for the exact loop.
    Source: Theorem H5.
    """
    if found.decisions is None:
        raise InputError("decisions=None; expected a certificate with them: pass readout= to certify")
    ahead = _ahead(found, state)
    # From then on the iterates are within rate^k (D + e) of z*, which is within e of the centre.
    rooms = [down(radius - found.error_bound) for radius in found.decisions.radius.flatten().tolist()]
    steps = [_steps(found.rate, ahead, down(room)) if room > 0 else -1 for room in rooms]
    return torch.tensor(steps, dtype=torch.int64).reshape(found.decisions.radius.shape)


def _ahead(found: Certificate, state: Tensor) -> float:
    """A bound on the distance of a state of the ball from the fixed point."""
    if found.verdict is not Verdict.PROVED_ATTRACTING:
        raise InputError(f"verdict={found.verdict.value}; expected a certificate of attraction")
    distance = found.distance(state)
    if not distance <= found.radius:
        raise InputError(f"distance={distance:.3e} of the state; expected at most radius={found.radius:.3e}")
    return up(distance + found.error_bound)


def _steps(rate: float, ahead: float, goal: float) -> int:
    """The least k with ``rate^k ahead <= goal``, from logarithms in ball arithmetic; rates near 1 give large ones."""
    if ahead <= goal:
        return 0
    if rate == 0.0:
        return 1
    with flint.ctx.workprec(_BITS):
        steps = (arb(ahead) / arb(goal)).log() / -arb(rate).log()
        whole = steps.upper().ceil().unique_fmpz()
    assert whole is not None  # a ceiling of one number is one whole number
    return int(whole)
