"""The program of a certificate run in Arb's ball arithmetic: exact values of every register, to many digits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from typing import Any

import flint
import numpy as np
from flint import arb, arb_mat, fmpq
from numpy.typing import NDArray

from fpcheck.check.container import refuse
from fpcheck.check.program import Program, Step

__all__ = [
    "BITS", "FUNCTIONS", "POWERS", "Real", "curve", "curve_of_power", "evaluate", "floats", "normed", "precision",
    "slope", "slope_of_power", "softmax", "within",
]  # fmt: skip

# choice: of the working precision; a step of the loop loses some 60 of them.
BITS = 192

Real = Callable[[arb], arb]
Values = list[Any]
"""One register, of Arb balls; None stands for minus infinity."""


def _sigmoid(x: arb) -> arb:
    return 1 / (1 + (-x).exp())


def _phi(x: arb) -> arb:
    """Density of the standard normal distribution."""
    return (-x * x / 2).exp() / (2 * arb.pi()).sqrt()


def _inner(x: arb) -> tuple[arb, arb, arb]:
    """The argument of tanh in the second form of GELU, with its first two derivatives."""
    # definition: sqrt(2/pi) (x + 0.044715 x^3)
    k, c = (2 / arb.pi()).sqrt(), arb(fmpq(44715, 1000000))
    return k * (x + c * x * x * x), k * (1 + 3 * c * x * x), 6 * k * c * x  # definition: derivatives of x^3


def _relu(x: arb) -> arb:
    if x > 0:
        return x
    return arb(0) if x < 0 else arb(0).union(x.upper() if x.upper() > 0 else arb(0))


def _gauss(x: arb) -> arb:
    """The derivative of erf."""
    return 2 * (-x * x).exp() / arb.pi().sqrt()


def _power(x: arb, exponent: float) -> arb:
    """x to a fixed power; not finite where it may not be defined."""
    if exponent.is_integer():
        return _whole_power(x, int(exponent))
    exact = Fraction(exponent)
    return (x.log() * arb(fmpq(exact.numerator, exact.denominator))).exp()


def _whole_power(x: arb, exponent: int) -> arb:
    total = arb(1)
    for _ in range(abs(exponent)):
        total = total * x
    return total if exponent >= 0 else 1 / total


def slope_of_power(x: arb, exponent: float) -> arb:
    """The derivative of x^exponent."""
    return arb(0) if exponent == 0 else arb(exponent) * _power_less(x, exponent, 1)


def curve_of_power(x: arb, exponent: float) -> arb:
    """The second derivative of x^exponent."""
    factor = arb(exponent) * (arb(exponent) - 1)
    return arb(0) if exponent in (0, 1) else factor * _power_less(x, exponent, 2)


def _power_less(x: arb, exponent: float, by: int) -> arb:
    """x^(exponent - by), where that difference of floats may round."""
    if exponent.is_integer():
        return _whole_power(x, int(exponent) - by)
    return _power(x, exponent) / _whole_power(x, by)


def within(x: arb, low: float, high: float) -> arb:
    """At least low, at most high."""
    return x.max(arb(low)).min(arb(high))


def _gelu_tanh_slope(x: arb) -> arb:
    inner, first, _ = _inner(x)
    t = inner.tanh()
    return (1 + t + x * (1 - t * t) * first) / 2


def _gelu_tanh_curve(x: arb) -> arb:
    inner, first, second = _inner(x)
    t = inner.tanh()
    # The derivative of ((1 + t) + x (1 - t^2) g') / 2 with t' = (1 - t^2) g'.
    return (1 - t * t) * (2 * first + x * (second - 2 * t * first * first)) / 2


FUNCTIONS: dict[str, Real] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu": lambda x: x * (1 + (x / arb(2).sqrt()).erf()) / 2,
    "gelu_tanh": lambda x: x * (1 + _inner(x)[0].tanh()) / 2,
    "sigmoid": _sigmoid,
    "tanh": arb.tanh,
    "relu": _relu,
    "abs": abs,
    "exp": arb.exp,
    "expm1": arb.expm1,
    "log": arb.log,
    "log1p": arb.log1p,
    "erf": arb.erf,
    "sin": arb.sin,
    "cos": arb.cos,
    "sqrt": arb.sqrt,
    "rsqrt": arb.rsqrt,
    "reciprocal": lambda x: 1 / x,
}
_SLOPES: dict[str, Real] = {
    "silu": lambda x: _sigmoid(x) + x * _sigmoid(x) * _sigmoid(-x),
    "gelu": lambda x: (1 + (x / arb(2).sqrt()).erf()) / 2 + x * _phi(x),
    "gelu_tanh": _gelu_tanh_slope,
    "sigmoid": lambda x: _sigmoid(x) * _sigmoid(-x),
    "tanh": lambda x: 1 - x.tanh() ** 2,
    # At a kink both sides.
    "relu": lambda x: arb(1) if x > 0 else arb(0) if x < 0 else arb(0.5, 0.5),
    "abs": lambda x: arb(1) if x > 0 else arb(-1) if x < 0 else arb(0, 1),
    "exp": arb.exp,
    "expm1": arb.exp,
    "log": lambda x: 1 / x,
    "log1p": lambda x: 1 / (1 + x),
    "erf": _gauss,
    "sin": arb.cos,
    "cos": lambda x: -x.sin(),
}
_CURVES: dict[str, Real] = {
    "silu": lambda x: _sigmoid(x) * _sigmoid(-x) * (2 + x * (_sigmoid(-x) - _sigmoid(x))),
    "gelu": lambda x: _phi(x) * (2 - x * x),
    "gelu_tanh": _gelu_tanh_curve,
    "sigmoid": lambda x: _sigmoid(x) * _sigmoid(-x) * (_sigmoid(-x) - _sigmoid(x)),
    "tanh": lambda x: -2 * x.tanh() * (1 - x.tanh() ** 2),
    "exp": arb.exp,
    "expm1": arb.exp,
    "log": lambda x: -1 / (x * x),
    "log1p": lambda x: -1 / ((1 + x) * (1 + x)),
    "erf": lambda x: -2 * x * _gauss(x),
    "sin": lambda x: -x.sin(),
    "cos": lambda x: -x.cos(),
}
POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}
"""Functions that are powers, with their exponents."""


def slope(function: str) -> Real:
    """The derivative of a function that may be applied to the state."""
    if function in POWERS:
        return lambda x: slope_of_power(x, POWERS[function])
    return _SLOPES[function]


def curve(function: str) -> Real:
    """The second derivative of a curved function."""
    if function in POWERS:
        return lambda x: curve_of_power(x, POWERS[function])
    return _CURVES[function]


def evaluate(program: Program, state: NDArray[np.float64]) -> list[Values]:
    """Every register, for a state of floats taken as real numbers. Runs at the precision that the caller has set.

    Raises:
        CertificateFileError: The program leaves its domain (a root of a negative number, a row without a score).
    """
    held: list[Values] = [[arb(v) for v in state.tolist()]]
    for number, step in enumerate(program.steps):
        try:
            found = _RUN[step.op](step, [held[r] for r in step.of])
        except (ValueError, ZeroDivisionError):
            refuse(f"map step {number} ({step.op}): minus infinity outside of scores, or no real value")
        if any(v is not None and not v.is_finite() for v in found):
            refuse(f"map step {number} ({step.op}): a value that is not finite at the centre")
        held.append(found)
    return held


def floats(values: Values) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Float64 midpoints, and bounds on how far the numbers are from them."""
    mids, rads = np.zeros(len(values)), np.zeros(len(values))
    for i, value in enumerate(values):
        if value is None:
            continue
        mids[i] = middle = float(value.mid())
        gap = float(abs(value - middle).upper())
        rads[i] = 0.0 if gap == 0.0 and value == middle else np.nextafter(gap, np.inf)
    return mids, rads


def _data(step: Step, of: list[Values]) -> Values:
    assert step.values is not None
    return [None if v == -np.inf else arb(v) for v in step.values.tolist()]


def _gather(step: Step, of: list[Values]) -> Values:
    assert step.values is not None
    together = of[0] if len(of) == 1 else [v for part in of for v in part]
    zero = arb(0)
    return [zero if i < 0 else together[i] for i in step.values.tolist()]


def _sum(step: Step, of: list[Values]) -> Values:
    found: Values = []
    for entries in zip(*of, strict=True):
        total: arb | None = arb(step.shift)
        for factor, value in zip(step.scale, entries, strict=True):
            if value is None:
                if factor != 1:
                    raise ValueError
                total = None
            elif total is not None:
                total = total + arb(factor) * value
        found.append(total)
    return found


def _matmul(step: Step, of: list[Values]) -> Values:
    b, i, k, j = step.numbers
    first, second = _present(of[0]), _present(of[1])
    found: Values = []
    for m in range(b):
        left = arb_mat(i, k, first[m * i * k : (m + 1) * i * k])
        right = arb_mat(k, j, second[m * k * j : (m + 1) * k * j])
        found += (left * right).entries()
    return found


def _present(values: Values) -> list[arb]:
    """Refuse minus infinity where it has no meaning."""
    found = [v for v in values if v is not None]
    if len(found) != len(values):
        raise ValueError
    return found


def _rows(values: list[Any], width: int) -> list[list[Any]]:
    return [values[i : i + width] for i in range(0, len(values), width)]


def _norm(step: Step, of: list[Values]) -> Values:
    found: Values = []
    for row in _rows(_present(of[0]), step.numbers[0]):
        y, _ = normed(row, step)
        found += y
    return found


def normed(row: list[arb], step: Step) -> tuple[list[arb], arb]:
    """A row after the norm, and the root that it was divided by."""
    (width,) = step.numbers
    mean = sum(row, arb(0)) / width if step.flag else arb(0)
    centred = [v - mean for v in row]
    root = (sum((v * v for v in centred), arb(0)) / width + arb(step.shift)).sqrt()
    return [v / root for v in centred], root


def softmax(row: Values, safe: bool) -> list[arb]:
    """Softmax of a row of scores; those of minus infinity get 0."""
    present = [v for v in row if v is not None]
    if not present:
        if safe:
            return [arb(0)] * len(row)
        raise ValueError
    # A common shift changes nothing; a float near the largest keeps the exponentials in range.
    top = max(float(v.mid()) for v in present)
    weights = [arb(0) if v is None else (v - top).exp() for v in row]
    total = sum(weights, arb(0))
    return [w / total for w in weights]


def _attend(step: Step, of: list[Values]) -> Values:
    b, i, j, k = step.numbers
    scores, held = _rows(of[0], j), _present(of[1])
    found: Values = []
    for m in range(b):
        weights = [p for row in scores[m * i : (m + 1) * i] for p in softmax(row, step.flag)]
        found += (arb_mat(i, j, weights) * arb_mat(j, k, held[m * j * k : (m + 1) * j * k])).entries()
    return found


def _map(step: Step, of: list[Values]) -> Values:
    function = FUNCTIONS[step.function]
    return [function(v) for v in _present(of[0])]


def _gated(step: Step, of: list[Values]) -> Values:
    function = FUNCTIONS[step.function]
    return [function(g) * u for g, u in zip(_present(of[0]), _present(of[1]), strict=True)]


def _total(step: Step, of: list[Values]) -> Values:
    return [sum(row, arb(0)) for row in _rows(_present(of[0]), step.numbers[0])]


_RUN: dict[str, Callable[[Step, list[Values]], Values]] = {
    "data": _data,
    "gather": _gather,
    "sum": _sum,
    "mul": lambda step, of: [a * b for a, b in zip(*map(_present, of), strict=True)],
    "div": lambda step, of: [a / b for a, b in zip(*map(_present, of), strict=True)],
    "matmul": _matmul,
    "total": _total,
    "map": _map,
    "power": lambda step, of: [_power(v, step.shift) for v in _present(of[0])],
    "clamp": lambda step, of: [within(v, *step.scale) for v in _present(of[0])],
    "norm": _norm,
    "attend": _attend,
    "gated": _gated,
}


def precision() -> AbstractContextManager[Any]:
    """Context in which all of this is to run."""
    return flint.ctx.workprec(BITS)
