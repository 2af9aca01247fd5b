"""The rate of a loop near a point, measured on pairs of states and without a derivative.

Residuals of a fast loop reach the rounding floor before its slowest mode has taken over, and then show another rate
than the spectral radius. Here the approach goes on: two states a small distance apart take a step each, their
difference is brought back to that distance, and so on. The factors are those of the loop itself, evaluated at
states; only the bookkeeping is rescaled. (Benettin et al. 1980, for the largest Lyapunov exponent.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.loop import Loop
from fpcheck.spectral.rate import RateFit, measured_rate

__all__ = ["approach_rate"]


def approach_rate(loop: Loop, z: Tensor, *, steps: int = 200, seed: int = 0) -> RateFit:
    """Factor per loop step by which nearby states approach ``z`` (or leave it) in the long run.

    Args:
        loop: The map.
        z: States ``(B, *state)``, fixed points of ``loop``; elsewhere the figure is that of the linearised map.
        steps: Pairs of evaluations. The error falls like the inverse square of it or faster.
        seed: Of the first displacement, a random direction.

    Returns:
        Rates with errors, to be compared with the spectral radius; NaN where differences vanish at once.

    Raises:
        InputError: ``steps`` is too small to fit a slope.

    Guarantee: estimate. It is independent of automatic differentiation: a finite difference of relative size
        ``sqrt(eps)``, so one factor is wrong by about ``sqrt(eps)``.
    Cost: ``steps + 1`` evaluations of the block for the whole batch.
    """
    if not isinstance(steps, int) or steps < 20:
        raise InputError(f"steps={steps!r}; expected an integer >= 20, to tell a slope from its transient")
    generator = torch.Generator().manual_seed(seed)
    shape = (-1, *[1] * (z.ndim - 1))
    eps = torch.finfo(z.dtype).eps
    with torch.no_grad():
        image = loop(z)
        size = torch.linalg.vector_norm(z.flatten(1), dim=1)
        distance = eps**0.5 * torch.where(size > 0, size, z[0].numel() ** 0.5)
        move = torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z)
        factors = []
        for _ in range(steps):
            length = torch.linalg.vector_norm(move.flatten(1), dim=1)
            move = move * torch.where(length > 0, distance / length, 0).view(shape)
            # What is really added, after rounding: at a distance of sqrt(eps) its error would be sqrt(eps) too.
            added = (z + move) - z
            move = loop(z + added) - image
            before = torch.linalg.vector_norm(added.flatten(1), dim=1)
            factors.append(torch.linalg.vector_norm(move.flatten(1), dim=1).double() / before.double())
    # The differences as if they had never been rescaled; float64 holds rates down to 1e-1 over 200 steps and more.
    return measured_rate(torch.stack(factors).nan_to_num(nan=0.0).cumprod(0))
