"""How a solve ended, per sample."""

from __future__ import annotations

import enum

__all__ = ["Status"]


class Status(enum.Enum):
    """Outcome of one sample's solve. ``status.text`` says the likely causes and what to try."""

    CONVERGED = 0
    BUDGET = 1
    NON_FINITE = 2
    DIVERGING = 3
    CYCLE = 4
    NOISE_FLOOR = 5

    @property
    def text(self) -> str:
        """What happened, why it usually happens, and what to try next."""
        return _TEXT[self]


_TEXT = {
    Status.CONVERGED: (
        "the undamped residual |F(z) - z| of the returned state passed the tolerance. The distance to the fixed "
        "point is about residual / (1 - rate), so a slow loop is further away than its residual says."
    ),
    Status.BUDGET: (
        "max_steps ran out while the residual was still above the tolerance. Likely a slow loop (rate near 1), a "
        "rotating or chaotic one, or a tolerance that is too tight; a fixed point at zero needs atol > 0. Look at "
        "solution.history; try more steps, fp.Anderson(), or fp.Damped(); fp.spectrum() tells whether the point "
        "attracts at all."
    ),
    Status.NON_FINITE: (
        "the block returned NaN or inf; the last finite state is returned. Likely an expanding loop that "
        "overflowed, a division by zero, or a fully masked attention row. Check fp.spectrum() at an earlier "
        "state, or use a wider dtype."
    ),
    Status.DIVERGING: (
        "the state runs away: its norm keeps growing, or it moves on in a straight line by steps that do not "
        "shrink. Either the loop expands, or it drifts: bounded increments let the relative residual fall like "
        "1/k although nothing settles (pre-norm without residual scaling does this). Use residual scaling below 1 "
        "or an output norm; damping does not cure drift."
    ),
    Status.CYCLE: (
        "the state returns to itself with a period greater than 1 (solution.period). Likely an eigenvalue near "
        "-1 or a complex pair on the unit circle. Damping helps if every eigenvalue has real part below 1: try "
        "fp.Damped(step=...) below fp.spectrum(...).critical_step."
    ),
    Status.NOISE_FLOOR: (
        "the residual stalled at the rounding floor of the dtype, above the tolerance; or the state has run so "
        "far out that rounding hides whether it still moves. It is as converged as this dtype can tell; loosen "
        "rtol to solution.residual or solve in a wider dtype."
    ),
}
