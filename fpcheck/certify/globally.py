r"""What holds for all states at once: a contraction by construction, or an absorbing ball.

A `ContractiveBlock` contracts everywhere, whatever its weights are (Theorem F6): one fixed point, which every run
reaches. For other blocks the step is bounded affinely, :math:`N(F(z)) \le a N(z) + b` for all states (Theorem F7). With
a below 1 no run grows without end, all of them end up near the ball of radius :math:`b / (1 - a)`, and there is a fixed
point in it (Theorem D1). Pre-norm blocks that hand on less than their whole state have a below 1 for all weights.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.blocks.contractive import ContractiveBlock
from fpcheck.certify.balls import Ball
from fpcheck.certify.enclosure import evaluate
from fpcheck.certify.fusion import fuse
from fpcheck.certify.growth import AbstractMeasure, Euclidean, Growth, LongestToken, growth, whole
from fpcheck.certify.metric import Metric, dual_stein, stein
from fpcheck.certify.rounding import down, up
from fpcheck.certify.trace import Graph, trace
from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop

__all__ = ["GlobalCertificate", "GlobalVerdict", "InMetric", "certify_global"]

# choice: levels between the spectral radius of the linear part and 1 at which a metric is tried.
_LEVELS = (0.2, 0.5, 0.8)


class GlobalVerdict(enum.Enum):
    """What was proved of all states; ``verdict.text`` says what it means."""

    PROVED_CONTRACTING = "proved contracting"
    PROVED_BOUNDED = "proved bounded"
    UNKNOWN = "unknown"

    @property
    def text(self) -> str:
        """What it means, and what it does not."""
        return _TEXT[self]


_TEXT = {
    GlobalVerdict.PROVED_CONTRACTING: (
        "any two states come nearer to each other by the stated rate at every step; there is exactly one fixed point, "
        "in the stated ball, and the exact loop converges to it from every start"
    ),
    GlobalVerdict.PROVED_BOUNDED: (
        "from every start the exact loop comes as near to the stated ball as one likes, at the stated rate, and never "
        "leaves it again; there is a fixed point in it, maybe several, and whether the loop settles is not said"
    ),
    GlobalVerdict.UNKNOWN: "nothing was proved, and nothing was refuted; the reason names the inequality that failed",
}


@final
@dataclass(frozen=True, eq=False)
class InMetric(AbstractMeasure):
    """The norm :math:`|L z|_2` of a metric."""

    metric: Metric

    def length(self, state: Ball) -> float:  # noqa: D102 (inherited)
        return self.metric.size(state.reshape(-1))

    def stretch(self, A: Ball) -> float:  # noqa: D102 (inherited)
        return up(Euclidean().stretch(A) * self.metric.inverse_norm)

    def euclidean(self, n: int) -> float:  # noqa: D102 (inherited)
        return self.metric.inverse_norm


@final
@dataclass(frozen=True, eq=False)
class GlobalCertificate:
    r"""What was proved about one sample's loop for all states.

    The map is the exact real one of the stored weights and injection; nothing is claimed about a running float loop.

    Attributes:
        verdict: What was proved.
        reason: For UNKNOWN the inequality that failed, and what to try; else empty.
        measure: The norm N of states.
        rate: a of :math:`N(F(z)) \le a N(z) + b`; for a contraction also a Lipschitz constant.
        constant: b.
        radius: R, at least b / (1 - a): the ball :math:`N(z) \le R` is invariant, holds every fixed point, and
            distances to it shrink by ``rate`` per step.
    """

    verdict: GlobalVerdict
    reason: str
    measure: AbstractMeasure
    rate: float
    constant: float
    radius: float

    def length(self, state: Tensor) -> float:
        """A bound on the norm of a state ``(1, *state)``."""
        return self.measure.length(Ball.exact(state))

    def holds(self, state: Tensor) -> bool:
        """Whether a state is proved to lie in the ball, so that the exact loop never leaves it from there."""
        return self.verdict is not GlobalVerdict.UNKNOWN and self.length(state) <= self.radius

    def length_after(self, state: Tensor, steps: int) -> float:
        """A bound on the norm of every state from ``steps`` loop steps on, for the exact loop from ``state``.

        Raises:
            InputError: Nothing was proved, or ``steps`` is no whole number >= 0.

        Guarantee: bound, rounding included.
        Source: Theorem D1.
        """
        self._require_proved()
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise InputError(f"steps={steps!r}; expected a whole number >= 0")
        excess = up(max(up(self.length(state) - self.radius), 0.0))
        return up(self.radius + up(_power(self.rate, steps) * excess))

    def steps_to(self, state: Tensor, distance: float) -> int:
        """How many steps bring the exact loop from ``state`` within ``distance`` of the ball, to stay there.

        Args:
            state: The start, ``(1, *state)``.
            distance: In the norm, > 0.

        Raises:
            InputError: Nothing was proved, or ``distance`` is no finite number > 0.

        Guarantee: bound, rounding included.
        Source: Theorem D1.
        """
        self._require_proved()
        excess = up(max(up(self.length(state) - self.radius), 0.0))
        return _steps(self.rate, excess, distance)

    def error_bound(self, first_step: float, steps: int) -> float:
        """A bound on the norm of ``z_k - z*`` after k = ``steps`` steps of the exact loop: one residual is enough.

        Args:
            first_step: A bound on the norm of ``F(z_0) - z_0``.
            steps: k.

        Raises:
            InputError: No contraction was proved, or the arguments are not such numbers.

        Guarantee: bound, rounding included.
        Source: Theorem B1.
        """
        if self.verdict is not GlobalVerdict.PROVED_CONTRACTING:
            raise InputError(f"verdict={self.verdict.name}; an error bound needs PROVED_CONTRACTING")
        if not 0 <= first_step < math.inf or steps < 0:
            raise InputError(f"first_step={first_step!r}, steps={steps!r}; expected finite numbers >= 0")
        return up(up(_power(self.rate, steps) * first_step) / down(1 - self.rate))

    def _require_proved(self) -> None:
        if self.verdict is GlobalVerdict.UNKNOWN:
            raise InputError(f"verdict=UNKNOWN; nothing was proved for all states: {self.reason}")


def certify_global(loop: Loop, state: Tensor) -> GlobalCertificate:
    """Prove for all states at once that a sample's loop contracts, or that it is bounded and has a fixed point.

    Args:
        loop: A loop with a batch of one: ``loop.sample(i)``. Damped and iterated views are certified as the maps they
            are.
        state: Any state ``(1, *state)``; only its shape and dtype count. Tokens are rows of its last dimension.

    Raises:
        InputError: More than one sample.
        UnsupportedOperatorError: An operator that has no rule, or is not known to be continuous and defined for all
            states; the message names it and the user's line.

    Guarantee: bound, rounding included.
    Cost: one step at 200 bits of what does not depend on the state, the state's tangents through what is linear in it,
        and a norm of each weight matrix.
    Source: Theorems F6, F7 and D1.
    """
    if loop.batch_size != 1 or state.ndim < 2 or state.shape[0] != 1:
        raise InputError(
            f"batch_size={loop.batch_size}, state={tuple(state.shape)}; expected one sample: loop.sample(i) and "
            "state[i:i+1]"
        )
    graph = fuse(trace(loop, state))
    # A subclass may have another step.
    if type(loop.block) is ContractiveBlock:
        found = _contracting(loop, graph, state)
        if found is not None:
            return found
    return _bounded(graph, state)


def _contracting(loop: Loop, graph: Graph, state: Tensor) -> GlobalCertificate | None:
    """Theorem F6 for the loop as it is, damped and iterated; None where that is no contraction."""
    block, s = loop.block, loop.step
    assert isinstance(block, ContractiveBlock)
    # (1 - s) z + s F(z) has the constant |1 - s| + s q, and k steps have its power. 1 - s is exact for s in [1/2, 2].
    single = up(up(abs(1.0 - s)) + up(s * block.lipschitz_bound())) if s != 1.0 else block.lipschitz_bound()
    rate = _power(single, loop.iterations)
    if not rate < 1:
        return None
    origin = torch.zeros(state.shape, dtype=torch.float64)
    measure = LongestToken(state.shape[-1])
    constant = measure.length(evaluate(graph, origin)[graph.output])
    if not math.isfinite(constant):
        raise NonFiniteError("F(0) has no finite enclosure; look for weights near the largest float")
    return _certificate(GlobalVerdict.PROVED_CONTRACTING, measure, rate, constant)


def _bounded(graph: Graph, state: Tensor) -> GlobalCertificate:
    """Theorem F7 in the first norm in which the step grows by less than 1."""
    nearest, constant = math.inf, math.inf
    measures: tuple[AbstractMeasure, ...] = (LongestToken(state.shape[-1]), Euclidean())
    for measure in measures:
        out = growth(graph, measure)
        all_of_it = whole(out, measure)
        if isinstance(measure, LongestToken):
            a, b = float(all_of_it.slope.max()), float(all_of_it.const.max())
        else:
            a, b = all_of_it.total
        if a < 1 and math.isfinite(b):
            return _certificate(GlobalVerdict.PROVED_BOUNDED, measure, a, b)
        nearest, constant = min((nearest, constant), (a, b))
    found = _in_metric(out)
    if found is not None:
        return found
    where = (
        f"N(F(z)) <= a N(z) + b holds with a = {nearest:.6g} only, not below 1"
        if math.isfinite(nearest)
        else "no a and b with N(F(z)) <= a N(z) + b were found: some operator multiplies what grows by what grows"
    )
    return GlobalCertificate(
        GlobalVerdict.UNKNOWN,
        f"{where}; a loop that hands on less than its whole state has it: scale the residual, or put a norm at the end",
        Euclidean(),
        nearest,
        constant,
        math.inf,
    )


def _in_metric(out: Growth) -> GlobalCertificate | None:
    """A metric in which the linear part contracts, for the Euclidean bounds on the rest; the one of the least ball."""
    if out.linear is None or not all(math.isfinite(v) for v in out.total):
        return None
    n = out.linear.shape[0]
    A = out.linear.mid.reshape(n, n).mT.contiguous()
    radius = float(torch.linalg.eigvals(A).abs().max())
    if not radius < 1:
        return None
    best: GlobalCertificate | None = None
    least = math.inf
    slope, constant = out.total
    for share in _LEVELS:
        for build in (dual_stein, stein):
            metric = build(A, radius + share * (1 - radius))
            if metric is None:
                continue
            # |L n(z)|_2 <= |L| (s |z|_2 + c), and |z|_2 <= |L^-1| |z|_P.
            rest = up(up(metric.norm * slope) * metric.inverse_norm)
            rate = up(metric.operator_norm(Ball.exact(A), out.linear.error) + rest)
            b = up(metric.norm * constant)
            if not (rate < 1 and math.isfinite(b)):
                continue
            found = _certificate(GlobalVerdict.PROVED_BOUNDED, InMetric(metric), rate, b)
            euclidean = found.radius * metric.inverse_norm
            if euclidean < least:
                best, least = found, euclidean
    return best


def _certificate(verdict: GlobalVerdict, measure: AbstractMeasure, a: float, b: float) -> GlobalCertificate:
    return GlobalCertificate(verdict, "", measure, a, b, up(b / down(1 - a)))


def _power(base: float, exponent: int) -> float:
    """An upper bound on a power of a number >= 0, by squarings that are rounded up each."""
    result = 1.0
    while exponent:
        if exponent % 2:
            result = base if result == 1.0 else up(result * base)
        base, exponent = up(base * base), exponent // 2
    return result


def _steps(rate: float, excess: float, distance: float) -> int:
    """A k with ``rate^k excess <= distance``: the least that the rounded bounds show."""
    if not 0 < distance < math.inf:
        raise InputError(f"distance={distance!r}; expected a finite number > 0")
    if not math.isfinite(excess):
        raise InputError("the start's norm is not finite; expected a finite state")

    def near(k: int) -> bool:
        return up(_power(rate, k) * excess) <= distance

    if near(0):
        return 0
    high = 1
    while not near(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if near(middle) else (middle, high)
    return high
