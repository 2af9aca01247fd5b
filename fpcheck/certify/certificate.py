"""What a certificate says, in words and figures."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.decision import Decisions
from fpcheck.certify.metric import Metric
from fpcheck.certify.rounding import up
from fpcheck.certify.trace import Graph

__all__ = ["Certificate", "Verdict", "Witness"]


class Verdict(enum.Enum):
    """What was proved; ``verdict.text`` says what it means."""

    PROVED_ATTRACTING = "proved attracting"
    PROVED_EXISTS = "proved to exist"
    REFUTED = "refuted"
    UNKNOWN = "unknown"

    @property
    def text(self) -> str:
        """What it means, and what it does not."""
        return _TEXT[self]


_TEXT = {
    Verdict.PROVED_ATTRACTING: (
        "there is a fixed point in the stated ball and no other, and the exact loop converges to it from every start "
        "in the ball, at the stated rate"
    ),
    Verdict.PROVED_EXISTS: (
        "there is a fixed point in the stated ball and no other; whether the loop runs towards it is not said"
    ),
    Verdict.REFUTED: (
        "there is a fixed point in the stated ball and no other, and it does not attract: an eigenvalue of modulus "
        "above 1 is enclosed there"
    ),
    Verdict.UNKNOWN: "nothing was proved, and nothing was refuted; the reason names the inequality that failed",
}


@final
@dataclass(frozen=True, eq=False)
class Witness:
    """An eigenpair outside the unit circle, enclosed.

    Attributes:
        eigenvalue: Midpoint; for a complex pair the one with positive imaginary part.
        vector: Midpoint of its eigenvector, ``(n)`` complex128, of length about 1.
        radius: The exact pair is within this of both together, in the Euclidean norm of C^(n+1).
        modulus: Lower bound on the modulus of the exact eigenvalue, above 1.
    """

    eigenvalue: complex
    vector: Tensor
    radius: float
    modulus: float


@final
@dataclass(frozen=True, eq=False)
class Certificate:
    """What was proved about one sample's loop near a state.

    The map is the exact real one: the stored weights and injection are the real numbers that their floats denote, and
    every operation is exact. A running float loop is another map; nothing is claimed about it here.

    Attributes:
        verdict: What was proved.
        reason: For UNKNOWN the inequality that failed and by how much, and what to try; else empty.
        setting: ``"fast"`` or ``"sharp"``: which bounds proved it; None where nothing was.
        centre: The ball's centre c, ``(1, *state)`` float64.
        metric: The norm |v|_P = |L v|_2; None where none was found.
        residual: Y, a bound on |F(c) - c|_P (of the Newton step for PROVED_EXISTS and REFUTED).
        centre_rate: Z1, a bound on |J(c)|_P (of the Newton map's Jacobian likewise).
        tau: In the sharp setting, a bound on the first-order part of the Jacobian's change, per unit of distance; else
            None.
        radius: r, in the metric; 0 where nothing was proved.
        rate: kappa, a bound on |J(z)|_P for all z in the ball, per loop step.
        error_bound: A bound on |z* - c|_P.
        error_rate: The same as ``rate`` for the ball of radius ``near_radius``: the rate in the long run.
        near_radius: Radius of the small ball that gives ``error_bound`` and ``error_rate``.
        shares: By node, a part of kappa - Z1: a guide to what limits the radius.
        decisions: The decoded answers and how firm they are; None without a linear read-out.
        graph: The recorded operators of the map.
        witness: For REFUTED an eigenpair of J(z*) outside the unit circle; else None.
    """

    verdict: Verdict
    reason: str
    setting: str | None
    centre: Tensor
    metric: Metric | None
    residual: float
    centre_rate: float
    tau: float | None
    radius: float
    rate: float
    error_bound: float
    error_rate: float
    near_radius: float
    shares: dict[str, float]
    decisions: Decisions | None
    graph: Graph
    witness: Witness | None = None

    @property
    def euclidean_radius(self) -> float:
        """Every state within this Euclidean distance of the centre is in the ball."""
        return 0.0 if self.metric is None else self.radius / up(self.metric.norm)

    @property
    def euclidean_error_bound(self) -> float:
        """A bound on the Euclidean distance of the fixed point from the centre."""
        return float("inf") if self.metric is None else up(self.error_bound * self.metric.inverse_norm)

    @property
    def decision_stable(self) -> Tensor | None:
        """By token: whether the fixed point's answer is proved to be the centre's; None without a linear read-out."""
        return None if self.decisions is None else self.decisions.radius > self.error_bound

    def distance(self, state: Tensor) -> float:
        """A bound on the distance of a state ``(1, *state)`` from the centre, in the metric."""
        if self.metric is None:
            raise ValueError("verdict=UNKNOWN without a metric; there is no distance")
        return self.metric.size((Ball.exact(state) - Ball.exact(self.centre)).reshape(-1))

    def holds(self, state: Tensor) -> bool:
        """Whether a state is proved to lie in the ball, so that the loop converges from it."""
        return self.verdict is Verdict.PROVED_ATTRACTING and self.distance(state) <= self.radius

    def decided(self, state: Tensor) -> Tensor:
        """By token: whether the loop's answer is proved never to change from this state on (Theorem H5)."""
        if self.decisions is None:
            raise ValueError("decisions=None; pass readout= to certify")
        distance = self.distance(state)
        if self.verdict is not Verdict.PROVED_ATTRACTING or not distance <= self.radius:
            return torch.zeros_like(self.decisions.radius, dtype=torch.bool)
        ahead = up(distance + self.error_bound)
        return self.decisions.radius > up(ahead + self.error_bound)
