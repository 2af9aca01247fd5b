r"""What damping does to an eigenvalue, and how much of it is right.

The damped loop :math:`z \mapsto (1 - s) z + s F(z)` has the fixed points of F, and at each of them the Jacobian
:math:`I - s (I - J)`. An eigenvalue l of J becomes :math:`1 - s w` with :math:`w = 1 - l`.

.. math:: |1 - s w|^2 = 1 - 2 s \operatorname{Re} w + s^2 |w|^2

is below 1 exactly for :math:`0 < s < 2 \operatorname{Re} w / |w|^2`, which leaves no step at all where
:math:`\operatorname{Re} l \ge 1`. The critical step of a spectrum is the smallest of these.

Shapes: eigenvalues ``(*batch, n)``, real or complex; results ``(*batch)`` float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.spectral.estimate import Estimate

__all__ = ["best_step", "best_step_estimate", "critical_step", "critical_step_estimate", "damped_radius", "step_error"]

# Each halving gains a bit; a float64 has 53.
_HALVINGS = 53


def critical_step(eigenvalues: Tensor) -> Tensor:
    """Largest stable damping step: ``min over l of 2 (1 - Re l) / |1 - l|^2``.

    Args:
        eigenvalues: Eigenvalues of the undamped Jacobian, ``(*batch, n)``.

    Returns:
        ``(*batch)`` float64. Every step ``0 < s < critical_step`` makes the linearised loop contract, no other
        step does (Theorem D5). 0.0 where some ``Re l >= 1`` (``l = 1`` included): no step helps (Theorem D6). Never
        infinite. Above 1 exactly where the spectral radius is below 1.

    Raises:
        InputError: No eigenvalue, or not a floating-point or complex tensor.
        NonFiniteError: NaN or infinite eigenvalues.

    Example:
        >>> critical_step(torch.tensor([-1.1, 0.5], dtype=torch.float64))
        tensor(0.9524, dtype=torch.float64)
    """
    w = 1 - _complex(eigenvalues)
    size = w.abs()
    # Divided twice instead of by the square, which would overflow first. Where l = 1 there is no quotient, and
    # the answer is 0 as for every other Re l >= 1.
    step = 2 * (w.real / size) / size
    return torch.where(w.real > 0, step, 0.0).amin(-1)


def damped_radius(eigenvalues: Tensor, s: Tensor | float) -> Tensor:
    """Spectral radius of the damped loop: ``max over l of |1 - s (1 - l)|``.

    Args:
        eigenvalues: Eigenvalues of the undamped Jacobian, ``(*batch, n)``.
        s: Damping step, a number or ``(*batch)``; 1 is the undamped loop.

    Returns:
        ``(*batch)`` float64, per loop step.

    Raises:
        InputError, NonFiniteError: As :func:`critical_step`.
    """
    lam = _complex(eigenvalues)
    step = torch.as_tensor(s, dtype=torch.float64, device=lam.device).unsqueeze(-1)
    return (1 - step * (1 - lam)).abs().amax(-1)


def best_step(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """The step that makes the damped loop contract fastest, and its rate.

    Args:
        eigenvalues: Eigenvalues of the undamped Jacobian, ``(*batch, n)``.

    Returns:
        ``(step, rate)``, each ``(*batch)`` float64: the minimiser over ``s >= 0`` of :func:`damped_radius`, and
        the minimum. ``(0, 1)`` where no step makes the loop contract. The step may exceed 1 (over-relaxation).

    Raises:
        InputError, NonFiniteError: As :func:`critical_step`.
    """
    lam = _complex(eigenvalues)
    w = 1 - lam
    # Each |1 - s w|^2 is a parabola in s with its vertex at half of its own critical step. Below half of the
    # smallest critical step all of them fall; at the whole of it one has come back to 1. The largest of them is
    # convex, so the slope of whichever is largest tells on which side the minimum lies.
    high = critical_step(lam)
    low = high / 2
    for _ in range(_HALVINGS):
        s = (low + high) / 2
        largest = (1 - s.unsqueeze(-1) * w).abs().argmax(-1, keepdim=True)
        at = w.gather(-1, largest).squeeze(-1)
        rises = s * at.abs() > at.real / at.abs()
        low, high = torch.where(rises, low, s), torch.where(rises, s, high)
    return high, damped_radius(lam, high)


def critical_step_estimate(eigenvalues: Tensor, error: Tensor) -> Estimate:
    """The critical step of eigenvalues that are known up to ``error``.

    Each eigenvalue's own step is ``Re(2 / w)`` with ``w = 1 - l``, so moving l by at most e moves it by at most
    ``2 e / (|w| (|w| - e))``, which is not first order: infinite where l may be 1.

    Args:
        eigenvalues: ``(*batch, n)``.
        error: Largest distance of each from its true value, ``(*batch, n)``.
    """
    w = 1 - _complex(eigenvalues)
    size, err = w.abs(), error.to(w.device, torch.float64)
    step = torch.where(w.real > 0, 2 * (w.real / size) / size, 0.0)
    room = size - err
    move = torch.where(room > 0, 2 * (err / size) / room, torch.inf)
    value = step.amin(-1)
    # Whichever limits the step, if not the one that seems to. A step is never negative.
    low, high = (step - move).clamp(min=0).amin(-1), (step + move).amin(-1)
    # An eigenvalue that certainly has Re l >= 1 leaves no step at all, whatever its distance from 1.
    hopeless = (w.real + err < 0).any(-1)
    return Estimate(value, torch.where(hopeless, 0.0, torch.maximum(high - value, value - low)))


def best_step_estimate(eigenvalues: Tensor, error: Tensor) -> tuple[Estimate, Estimate]:
    """Best step and its rate, of eigenvalues that are known up to ``error``.

    At a step s the damped radius moves by at most ``s`` times the largest error. The step itself is less certain:
    near the minimum the radius is flat, so every step whose radius lies that close to the least one may be the best.

    Args:
        eigenvalues: ``(*batch, n)``.
        error: Largest distance of each from its true value, ``(*batch, n)``.

    Returns:
        ``(step, rate)``. Step 0 and rate 1 where no step makes the loop contract.
    """
    lam = _complex(eigenvalues)
    step, rate = best_step(lam)
    # The rate is a maximum over eigenvalues and a minimum over steps: neither moves further than its terms.
    rate_error = torch.where(step > 0, step * error.to(lam.device, torch.float64).amax(-1), 0.0)
    return Estimate(step, step_error(lam, step, rate, rate_error)), Estimate(rate, rate_error)


def step_error(eigenvalues: Tensor, step: Tensor, rate: Tensor, rate_error: Tensor) -> Tensor:
    """How far from ``step`` a step may lie whose rate is as good as ``rate``, within twice its error.

    Args:
        eigenvalues: ``(*batch, n)``.
        step: The best step for them, ``(*batch)``.
        rate: The damped radius there.
        rate_error: Its error.
    """
    lam = _complex(eigenvalues)
    level = rate + 2 * rate_error
    # The radius is convex in s: the steps at or below the level are an interval around the best one.
    ends = []
    for far in (torch.zeros_like(step), critical_step(lam)):
        near, far = step, far.clone()
        for _ in range(_HALVINGS):
            middle = (near + far) / 2
            inside = damped_radius(lam, middle) <= level
            near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
        ends.append((far - step).abs())
    return torch.maximum(*ends)


def _complex(eigenvalues: Tensor) -> Tensor:
    if not isinstance(eigenvalues, Tensor) or not (eigenvalues.is_floating_point() or eigenvalues.is_complex()):
        kind = eigenvalues.dtype if isinstance(eigenvalues, Tensor) else type(eigenvalues).__name__
        raise InputError(f"eigenvalues have type {kind}; expected a real or complex floating-point tensor (*batch, n)")
    if eigenvalues.ndim == 0 or eigenvalues.shape[-1] == 0:
        raise InputError(f"eigenvalues.shape={tuple(eigenvalues.shape)}; expected (*batch, n) with n >= 1")
    lam = eigenvalues.to(torch.complex128)
    if not bool(torch.isfinite(lam).all()):
        raise NonFiniteError("eigenvalues hold NaN or inf; expected the spectrum of a finite Jacobian")
    return lam
