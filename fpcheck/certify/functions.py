"""Functions of one real with their derivatives, in Arb's ball arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import final

from flint import arb, fmpq

__all__ = ["FUNCTIONS", "GELU_TANH", "Function", "clamp", "power", "softplus"]

Real = Callable[[arb], arb]


@final
@dataclass(frozen=True)
class Function:
    """A function of one real with its first derivative, and its second where a curvature bound needs it.

    At a kink the derivative's ball holds both sides.
    """

    value: Real
    slope: Real
    curve: Real | None = None


def _sigmoid(x: arb) -> arb:
    return 1 / (1 + (-x).exp())


def _silu(x: arb) -> arb:
    return x * _sigmoid(x)


def _silu_slope(x: arb) -> arb:
    s = _sigmoid(x)
    return s * (1 + x * (1 - s))


def _normal(x: arb) -> arb:
    """Density of the standard normal distribution."""
    return (-x * x / 2).exp() / (2 * arb.pi()).sqrt()


def _gelu(x: arb) -> arb:
    return x * (1 + (x / arb(2).sqrt()).erf()) / 2


def _gelu_slope(x: arb) -> arb:
    return (1 + (x / arb(2).sqrt()).erf()) / 2 + x * _normal(x)


def _gelu_curve(x: arb) -> arb:
    return _normal(x) * (2 - x * x)


def _silu_curve(x: arb) -> arb:
    s = _sigmoid(x)
    return s * (1 - s) * (2 + x * (1 - 2 * s))


def _sigmoid_curve(x: arb) -> arb:
    s = _sigmoid(x)
    return s * (1 - s) * (1 - 2 * s)


def _tanh_slope(x: arb) -> arb:
    t = x.tanh()
    return 1 - t * t


def _tanh_curve(x: arb) -> arb:
    t = x.tanh()
    return -2 * t * (1 - t * t)


# definition: the tanh form as torch has it: the factor is the real number 0.044715, not its float.
_CUBIC = fmpq(44715, 1000000)


def _gelu_tanh(x: arb) -> arb:
    return x * (1 + _inner(x).tanh()) / 2


def _gelu_tanh_slope(x: arb) -> arb:
    t = _inner(x).tanh()
    # definition: the derivative of x + c x^3
    inner_slope = (2 / arb.pi()).sqrt() * (1 + 3 * arb(_CUBIC) * x * x)
    return (1 + t) / 2 + x * (1 - t * t) * inner_slope / 2


def _gelu_tanh_curve(x: arb) -> arb:
    t = _inner(x).tanh()
    factor = (2 / arb.pi()).sqrt()
    # definition: the first two derivatives of x + c x^3
    first, second = factor * (1 + 3 * arb(_CUBIC) * x * x), factor * 6 * arb(_CUBIC) * x
    return (1 - t * t) * (first + x / 2 * (second - 2 * t * first * first))


def _inner(x: arb) -> arb:
    return (2 / arb.pi()).sqrt() * (x + arb(_CUBIC) * x * x * x)


def _step(x: arb) -> arb:
    if x > 0:
        return arb(1)
    return arb(0) if x < 0 else arb(0.5, 0.5)


def _sign(x: arb) -> arb:
    if x > 0:
        return arb(1)
    return arb(-1) if x < 0 else arb(0, 1)


def _relu(x: arb) -> arb:
    if x > 0:
        return x
    if x < 0:
        return arb(0)
    top = x.upper()
    return arb(top / 2, (top / 2).abs_upper()) if top > 0 else arb(0)


FUNCTIONS: dict[str, Function] = {
    "abs": Function(abs, _sign),
    "exp": Function(arb.exp, arb.exp),
    "expm1": Function(arb.expm1, arb.exp),
    "log1p": Function(arb.log1p, lambda x: 1 / (1 + x)),
    "log": Function(arb.log, lambda x: 1 / x),
    "tanh": Function(arb.tanh, _tanh_slope, _tanh_curve),
    "sigmoid": Function(_sigmoid, lambda x: _sigmoid(x) * (1 - _sigmoid(x)), _sigmoid_curve),
    "silu": Function(_silu, _silu_slope, _silu_curve),
    "gelu": Function(_gelu, _gelu_slope, _gelu_curve),
    "relu": Function(_relu, _step),
    "erf": Function(arb.erf, lambda x: 2 * (-x * x).exp() / arb.pi().sqrt()),
    "sin": Function(arb.sin, arb.cos),
    "cos": Function(arb.cos, lambda x: -x.sin()),
    "sqrt": Function(arb.sqrt, lambda x: x.rsqrt() / 2),
    "rsqrt": Function(arb.rsqrt, lambda x: -x.rsqrt() / x / 2),
    "reciprocal": Function(lambda x: 1 / x, lambda x: -1 / (x * x)),
}
"""By the name that torch gives them. ``gelu`` is the form with erf."""

GELU_TANH = Function(_gelu_tanh, _gelu_tanh_slope, _gelu_tanh_curve)
"""GELU in its tanh form."""


def clamp(low: float | None, high: float | None) -> Function:
    """x, but not below ``low`` and not above ``high``, which wins where they cross, as in torch."""

    def value(x: arb) -> arb:
        x = x if low is None else x.max(arb(low))
        return x if high is None else x.min(arb(high))

    def slope(x: arb) -> arb:
        above = arb(1) if low is None else _step(x - arb(low))
        below = arb(1) if high is None else _step(arb(high) - x)
        if low is not None and high is not None and low >= high:
            return arb(0)
        return above * below

    return Function(value, slope)


def softplus(beta: float, threshold: float) -> Function:
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above a threshold, as torch has it: with a jump there.

    Balls around the jump have no finite image.
    """
    rate, edge = arb(beta), arb(threshold)

    def either(x: arb, below: arb, above: arb) -> arb:
        if rate * x > edge:
            return above
        return below if rate * x <= edge else arb.nan()

    return Function(
        lambda x: either(x, (rate * x).exp().log1p() / rate, x),
        lambda x: either(x, _sigmoid(rate * x), arb(1)),
    )


def power(exponent: float) -> Function:
    """x to a real power: any x for a whole exponent, positive x otherwise."""
    if float(exponent).is_integer():
        whole = int(exponent)
        return Function(lambda x: _whole_power(x, whole), lambda x: whole * _whole_power(x, whole - 1))
    exact = Fraction(exponent)
    real = fmpq(exact.numerator, exact.denominator)
    return Function(lambda x: (x.log() * arb(real)).exp(), lambda x: arb(real) * (x.log() * (arb(real) - 1)).exp())


def _whole_power(x: arb, exponent: int) -> arb:
    """By products: Arb's own power goes through the logarithm, which knows nothing of a ball around 0."""
    result = arb(1)
    for _ in range(abs(exponent)):
        result = result * x
    return result if exponent >= 0 else 1 / result
