"""Searches for counterexamples: every inequality of a theorem, as numbers that a machine can try to break.

A `Claim` says ``left <= right`` at every point of a space. `search` looks for a point where that fails, at random and
by ascent on ``left / right``, judges at 80 digits, and reports how close to equality it came. The same search must
refute the claim's false twin, whose right side is 1 % smaller: a search that cannot do this proves nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, final

import mpmath
import numpy as np
from scipy import optimize

from proofs.errors import MalformedError

# The verdict is to be right to some 50 digits. A claim may subtract numbers that agree in thirty, hence the rest.
DIGITS = 80
# What is left of rounding then; an excess below this is no violation.
ROUNDING = mpmath.mpf(10) ** -40
# A left side that is this small is 0 up to rounding: points are of ordinary size, and 80 digits are kept.
NEGLIGIBLE = mpmath.mpf(10) ** -60
# The false twin's right side.
SHRINK = Fraction(99, 100)

Point = Mapping[str, Any]
# mpmath.fp (float64, for the ascent) or mpmath.mp (for the verdict): one set of functions, two precisions.
Context = Any


@final
@dataclass(frozen=True)
class Reals:
    """One coordinate, or ``count`` of them as a list, in [lo, hi]; ``log`` spaces them by order of magnitude."""

    name: str
    lo: float
    hi: float
    count: int | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if not -math.inf < self.lo < self.hi < math.inf or (self.log and self.lo <= 0):
            raise MalformedError(
                f"range {self.name}=[{self.lo}, {self.hi}] is empty or infinite, or not positive for log"
            )

    def at(self, unit: float) -> float:
        """The coordinate for ``unit`` in [0, 1]."""
        unit = min(max(unit, 0.0), 1.0)
        if self.log:
            value = math.exp(math.log(self.lo) + unit * (math.log(self.hi) - math.log(self.lo)))
        else:
            value = self.lo + unit * (self.hi - self.lo)
        return min(max(value, self.lo), self.hi)

    def unit(self, value: float) -> float:
        """The inverse of `at`."""
        if self.log:
            return (math.log(value) - math.log(self.lo)) / (math.log(self.hi) - math.log(self.lo))
        return (value - self.lo) / (self.hi - self.lo)


@final
@dataclass(frozen=True)
class Claim:
    """``left <= right`` on a space of reals.

    Args:
        name: What is claimed, in words.
        space: The coordinates that a point has.
        sides: From a number context (``ctx.exp``, ``ctx.sqrt``, ``ctx.matrix``, ...; `proofs.numbers` has norms) and a
            point to ``(left, right)``, or None where the point does not meet the hypotheses. It must follow the
            statement, not the derivation: it is a second opinion on both.
        sharp: The statement says that equality is attained or approached: the search must come within 0.1 %.
        near: Points from which the ascent may also start, such as the extremal one that the derivation names.
        precise: Ascend at 80 digits too, where float64 cancels.
    """

    name: str
    space: tuple[Reals, ...]
    sides: Callable[[Context, Point], tuple[Any, Any] | None]
    sharp: bool = False
    near: tuple[Point, ...] = ()
    precise: bool = False

    @property
    def dimension(self) -> int:
        """How many reals make a point."""
        return sum(r.count or 1 for r in self.space)

    def point(self, unit: "np.ndarray[Any, Any] | list[float]", ctx: Context) -> dict[str, Any]:
        """The point for coordinates in the unit cube; its floats are taken as exact numbers."""
        values = iter(unit)
        convert = ctx.mpf
        result: dict[str, Any] = {}
        for r in self.space:
            if r.count is None:
                result[r.name] = convert(r.at(float(next(values))))
            else:
                result[r.name] = [convert(r.at(float(next(values)))) for _ in range(r.count)]
        return result

    def ratio(self, unit: "np.ndarray[Any, Any] | list[float]", ctx: Context) -> Any | None:
        """``left / right`` there; None if the hypotheses fail. A right side of 0 gives 0 or infinity."""
        sides = self.sides(ctx, self.point(unit, ctx))
        if sides is None:
            return None
        left, right = sides
        if isinstance(left, (complex, mpmath.mpc)) or isinstance(right, (complex, mpmath.mpc)):
            raise MalformedError(f"'{self.name}' compares complex numbers: {left} and {right}; expected real sides")
        if ctx is mpmath.mp and 0 <= left <= NEGLIGIBLE and right >= 0:
            return ctx.mpf(0)  # both sides may be rounding of 0, and their quotient anything
        if right == 0:
            return ctx.mpf(0) if left <= 0 else ctx.inf
        if right < 0:
            return ctx.inf if left > right else ctx.mpf(1) if left == right else ctx.mpf(0)
        return left / right

    def exact_ratio(self, unit: "np.ndarray[Any, Any] | list[float]") -> Any | None:
        """The ratio at 80 digits."""
        with mpmath.workdps(DIGITS):
            return self.ratio(unit, mpmath.mp)

    def starts(self) -> Iterator["np.ndarray[Any, Any]"]:
        """The ``near`` points in unit coordinates."""
        for point in self.near:
            unit: list[float] = []
            for r in self.space:
                value = point[r.name]
                unit += [r.unit(v) for v in value] if isinstance(value, list) else [r.unit(value)]
            yield np.clip(np.array(unit), 0.0, 1.0)


@final
@dataclass(frozen=True)
class Search:
    """What a search found: the largest ratio, judged at 80 digits, where, and how many points met the hypotheses."""

    claim: str
    reached: float
    point: dict[str, str]
    violated: bool
    twin_refuted: bool
    accepted: int
    tried: int
    sharp: bool

    @property
    def passed(self) -> bool:
        """No counterexample, the false twin refuted, and equality approached where the claim says so."""
        return not self.violated and self.twin_refuted and (not self.sharp or self.reached >= 0.999)

    def complaint(self) -> str | None:
        """What is wrong, in words."""
        if self.accepted == 0:
            return f"no point of {self.tried} meets the hypotheses of '{self.claim}'"
        if self.violated:
            return f"counterexample to '{self.claim}': left/right = {self.reached!r} at {self.point}"
        if not self.twin_refuted:
            return f"'{self.claim}': the search reached {self.reached:.4f}, too little to refute the twin 1 % smaller"
        if self.sharp and self.reached < 0.999:
            return f"'{self.claim}' is said to be sharp, but the search reached only {self.reached:.5f}"
        return None


def search(claim: Claim, *, draws: int = 300, ascents: int = 3, seed: int = 0) -> Search:
    """Try to break a claim.

    Random points first, then ascent on the ratio (Nelder and Mead, from the best ones and from ``claim.near``), and
    whatever came near to 1 is judged at 80 digits.
    """
    rng = np.random.default_rng(seed)
    ctx = mpmath.mp if claim.precise else mpmath.fp
    seen: list[tuple[float, np.ndarray[Any, Any]]] = []
    unclear: list[np.ndarray[Any, Any]] = []
    tried = 0

    def value(unit: np.ndarray[Any, Any]) -> float:
        nonlocal tried
        tried += 1
        try:
            with mpmath.workdps(DIGITS):
                ratio = claim.ratio(unit, ctx)
            if ratio is None:
                return -1.0
            if not np.isfinite(float(ratio)):
                raise OverflowError
        except (ZeroDivisionError, OverflowError, MalformedError):
            # Out of float64's range, or a right side of 0: no evidence yet, so it is judged at 80 digits.
            unclear.append(np.clip(unit, 0.0, 1.0))
            return -1.0
        seen.append((float(ratio), np.clip(unit, 0.0, 1.0)))
        return float(ratio)

    def downhill(unit: Any) -> float:
        return -value(np.clip(unit, 0.0, 1.0))

    hints = list(claim.starts())
    for hint in hints:
        value(hint)
    for _ in range(draws):
        value(rng.random(claim.dimension))
    options: Any = {"maxfev": 80 * claim.dimension, "xatol": 1e-12, "fatol": 1e-15, "adaptive": True}
    best = sorted(seen, key=lambda pair: -pair[0])[:ascents]
    for start in [*hints, *(unit for _, unit in best)]:
        optimize.minimize(
            downhill,
            start,
            method="Nelder-Mead",
            options=options,
        )
    # What float64 puts near or above equality (the first, and a share of the others, which it cannot tell apart), what
    # it could not judge, and the best in any case.
    ranked = sorted(seen, key=lambda pair: -pair[0])
    close = [unit for ratio, unit in ranked if ratio > 1 - 1e-6]
    suspects = close[:40] + _spread(close[40:], 20) + _spread(unclear, 20) + [unit for _, unit in ranked[:5]]
    exact = [(ratio, unit) for unit in suspects if (ratio := _judged(claim, unit)) is not None]
    if not exact:
        return Search(claim.name, 0.0, {}, False, False, 0, tried, claim.sharp)
    top, where = max(exact, key=lambda pair: pair[0])
    point = {k: str(v) for k, v in claim.point(where, mpmath.fp).items()}

    def above(level: Fraction) -> bool:
        with mpmath.workdps(DIGITS):
            return bool(top > mpmath.mpf(level.numerator) / level.denominator + ROUNDING)

    return Search(
        claim.name,
        float(top),
        point,
        violated=above(Fraction(1)),
        twin_refuted=above(SHRINK),
        accepted=max(len(seen), len(exact)),
        tried=tried,
        sharp=claim.sharp,
    )


def _spread(units: "list[np.ndarray[Any, Any]]", count: int) -> "list[np.ndarray[Any, Any]]":
    """At most ``count`` of them, evenly spaced."""
    return units[:: max(1, math.ceil(len(units) / count))]


def _judged(claim: Claim, unit: "np.ndarray[Any, Any]") -> Any | None:
    """The ratio at 80 digits; None if it is undefined even there."""
    try:
        ratio = claim.exact_ratio(unit)
    except (ZeroDivisionError, OverflowError):
        return None
    return None if ratio is None or mpmath.isnan(ratio) else ratio
