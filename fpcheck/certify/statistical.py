r"""From a sample of inputs to all inputs: a lower bound on the share that can be certified, with its confidence.

If k of n independent draws are certified, every share p with :math:`P_p(X \ge k) \le 1 - confidence` is implausible,
and the largest of them is a lower bound (Theorem P1). The candidate comes from a library's quantile of the beta
distribution; what proves it is the binomial tail itself, in ball arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import final

import flint
from flint import arb, fmpz
from scipy import stats

from fpcheck.errors import InputError

__all__ = ["Share", "share", "share_bound"]

# choice: bits of the tail; a sum of a million terms loses some 40.
_BITS = 160


@final
@dataclass(frozen=True)
class Share:
    """A lower bound on the share of inputs that are certified, at a stated confidence.

    Attributes:
        certified: How many of the sampled inputs were certified.
        inputs: How many were sampled.
        confidence: In no more than ``1 - confidence`` of all such samples is the bound above the true share.
        bound: At least this share of all inputs that are drawn like these is certified.
    """

    certified: int
    inputs: int
    confidence: float
    bound: float

    @property
    def text(self) -> str:
        """What it means, and what it does not."""
        # choice: shown in tenths of a percent, rounded down exactly
        percent = f"{float(Fraction(self.bound) * 1000 // 1) / 10:.1f} %"
        return (
            f"{self.certified} of {self.inputs} sampled inputs are certified; so at least {percent} of all inputs "
            f"drawn like these would be, with confidence {self.confidence:.6g}. This assumes independent draws whose "
            "number was fixed beforehand, and says nothing about any one input that was not certified itself"
        )


_CONFIDENCE = 0.95  # choice: the usual one


def share(certified: int, inputs: int, *, confidence: float = _CONFIDENCE) -> Share:
    """`share_bound` with what it rests on."""
    return Share(certified, inputs, confidence, share_bound(certified, inputs, confidence=confidence))


def share_bound(certified: int, inputs: int, *, confidence: float = _CONFIDENCE) -> float:
    """A lower bound on a probability of success, from successes among independent draws.

    Args:
        certified: Number of successes.
        inputs: Number of draws, fixed beforehand.
        confidence: Strictly between 0 and 1, taken as the real number that its float denotes.

    Returns:
        The bound of Clopper and Pearson, rounded down: a float64.

    Raises:
        InputError: Not such numbers.

    Guarantee: bound at the stated confidence, rounding included.
    Cost: a sum over the outcomes from ``certified`` to ``inputs``.
    Source: Theorem P1; Clopper & Pearson (1934).

    Example:
        >>> share_bound(100, 100)  # the root of order 100 of 0.05
        0.970486...
    """
    whole = all(isinstance(v, int) and not isinstance(v, bool) for v in (certified, inputs))
    if not (whole and 0 <= certified <= inputs and inputs >= 1):
        raise InputError(
            f"certified={certified!r}, inputs={inputs!r}; expected whole numbers, at least one input and not more "
            "certified than there are"
        )
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence!r}; expected a number strictly between 0 and 1, such as 0.95")
    if certified == 0:
        return 0.0
    guess = float(stats.beta.ppf(1 - confidence, certified, inputs - certified + 1))
    if not 0 < guess < 1:
        return 0.0  # nothing to prove: no share is below 0
    # Steps down from one unit in the last place, doubled each time, until the proof succeeds.
    step = 2.0**-53
    while step < 1:
        candidate = guess * (1 - step)
        if _tail_is_at_most(certified, inputs, candidate, confidence):
            return candidate
        step *= 2
    return 0.0


def _tail_is_at_most(k: int, n: int, share: float, confidence: float) -> bool:
    """Whether P(X >= k) <= 1 - confidence at a share in (0, 1), decided in ball arithmetic."""
    with flint.ctx.workprec(_BITS):
        p = arb(share)
        ratio = p / (1 - p)
        term = arb(fmpz.bin_uiui(n, k)) * p**k * (1 - p) ** (n - k)
        total = arb(0)
        for j in range(k, n + 1):
            total += term
            term = term * (n - j) / (j + 1) * ratio
        return bool(total <= 1 - arb(confidence))
