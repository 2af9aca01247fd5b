"""Exact SymPy expressions to enclosures: Arb balls, with subdivision of intervals.

Arb (python-flint) returns for every operation a ball that contains the exact result, so a sign read off a ball is a
proof. No SymPy float enters: an expression that holds one is refused.
"""

from collections.abc import Callable, Mapping
from fractions import Fraction

import flint
import sympy as sp
from flint import arb, fmpq

from proofs.errors import MalformedError, UndecidedError

# 192 bits: constants are then enclosed within some 1e-55, far below the last bit of a float64.
BITS = 192
# A subdivision that has made this many pieces is given up as undecided.
MAX_PIECES = 200_000

_FUNCTIONS: dict[object, Callable[[arb], arb]] = {
    sp.exp: arb.exp,
    sp.log: arb.log,
    sp.sin: arb.sin,
    sp.cos: arb.cos,
    sp.tan: arb.tan,
    sp.sinh: arb.sinh,
    sp.cosh: arb.cosh,
    sp.tanh: arb.tanh,
    sp.atan: arb.atan,
    sp.erf: arb.erf,
    sp.Abs: abs,
}


def rational(value: object) -> sp.Rational:
    """``value`` as an exact SymPy rational; a float is refused, because its author meant another number."""
    if isinstance(value, float) or (isinstance(value, sp.Basic) and value.has(sp.Float)):
        raise MalformedError(f"value={value!r} is a float; expected an exact number: write Rational(1, 10) or '1/10'")
    if isinstance(value, Fraction):
        return sp.Rational(value.numerator, value.denominator)
    result = sp.sympify(value)
    if not result.is_Rational:
        raise MalformedError(f"value={value!r} is not rational; expected an integer, a Fraction or a SymPy Rational")
    return result


def ball(lo: object, hi: object) -> arb:
    """The smallest ball that contains the rational interval [lo, hi]."""
    low, high = rational(lo), rational(hi)
    with flint.ctx.workprec(BITS):
        return _number(low).union(_number(high))


def _number(value: sp.Rational) -> arb:
    return arb(fmpq(int(value.p), int(value.q)))


def enclose(expr: sp.Expr, box: Mapping[sp.Symbol, arb] | None = None) -> arb:
    """A ball that contains every value of ``expr`` when its symbols run over ``box``.

    Raises:
        MalformedError: a symbol has no ball, or a function has no ball arithmetic here.
    """
    with flint.ctx.workprec(BITS):
        return _enclose(sp.sympify(expr), box or {})


def _enclose(expr: sp.Expr, box: Mapping[sp.Symbol, arb]) -> arb:
    value = _enclose_part(expr, box)
    # A part without a finite ball may be undefined somewhere, which atan or tanh of it would hide.
    return value if value.is_finite() else arb("nan")


def _enclose_part(expr: sp.Expr, box: Mapping[sp.Symbol, arb]) -> arb:
    if expr.is_Rational:
        return _number(expr)
    if expr.is_Symbol:
        if expr not in box:
            raise MalformedError(f"symbol {expr} has no interval; known: {sorted(map(str, box))}")
        return box[expr]
    if expr is sp.pi:
        return arb.pi()
    if expr is sp.E:
        return arb(1).exp()
    if expr.is_Add:
        total = arb(0)
        for part in expr.args:
            total += _enclose(part, box)
        return total
    if expr.is_Mul:
        product = arb(1)
        for part in expr.args:
            product *= _enclose(part, box)
        return product
    if expr.is_Pow:
        return _power(expr.base, expr.exp, box)
    if expr.func in _FUNCTIONS and len(expr.args) == 1:
        return _FUNCTIONS[expr.func](_enclose(expr.args[0], box))
    raise MalformedError(
        f"{expr.func} has no ball arithmetic here (in {expr}); rewrite it with exp, log, tanh, cosh, erf, powers"
    )


def _power(base: sp.Expr, exponent: sp.Expr, box: Mapping[sp.Symbol, arb]) -> arb:
    value = _enclose(base, box)
    if exponent.is_Integer:
        count = int(exponent)
        if count == 2 or count == -2:
            # x*x of a ball around 0 would reach below 0.
            square = _square(value)
            return square if count == 2 else 1 / square
        return value**count
    if exponent == sp.Rational(1, 2):
        return value.sqrt()
    if exponent == sp.Rational(-1, 2):
        return value.rsqrt()
    return (value.log() * _enclose(exponent, box)).exp()


def _square(value: arb) -> arb:
    size = abs(value)
    low, high = size.abs_lower(), size.abs_upper()
    return (low * low).union(high * high)


def sign(expr: sp.Expr, box: Mapping[sp.Symbol, arb] | None = None) -> int | None:
    """1 or -1 if ``expr`` has that sign on all of ``box``, None if the ball does not tell."""
    value = enclose(expr, box)
    if value > 0:
        return 1
    if value < 0:
        return -1
    return None


def sign_on(expr: sp.Expr, var: sp.Symbol, lo: object, hi: object) -> tuple[int, int]:
    """The strict sign of ``expr`` on the closed rational interval [lo, hi], and the number of pieces it took.

    Each piece is enclosed directly and in centred form (value at the middle plus slope times half width); a piece that
    neither decides is halved.

    Raises:
        UndecidedError: two pieces have different signs (so there is a zero), or too many pieces.
    """
    low, high = rational(lo), rational(hi)
    if not low < high:
        raise MalformedError(f"interval [{low}, {high}] is empty")
    slope = sp.diff(expr, var)
    found: int | None = None
    pieces = 0
    with flint.ctx.workprec(BITS):
        stack = [(low, high)]
        while stack:
            left, right = stack.pop()
            pieces += 1
            if pieces > MAX_PIECES:
                raise UndecidedError(
                    f"sign of {expr} on [{low}, {high}] undecided after {MAX_PIECES} pieces near {left}"
                )
            here = _piece_sign(expr, slope, var, left, right)
            if here is None:
                middle = (left + right) / 2
                stack += [(left, middle), (middle, right)]
                if right - left < (high - low) / 2**60:
                    raise UndecidedError(f"{expr} comes too near 0 at {var} = {sp.N(left, 20)} to have a strict sign")
            elif found is None:
                found = here
            elif here != found:
                raise UndecidedError(f"{expr} changes its sign on [{low}, {high}], before {sp.N(right, 20)}")
    if found is None:
        raise MalformedError("an interval without pieces")
    return found, pieces


def _piece_sign(expr: sp.Expr, slope: sp.Expr, var: sp.Symbol, left: sp.Rational, right: sp.Rational) -> int | None:
    whole = ball(left, right)
    direct = _enclose(expr, {var: whole})
    if direct > 0:
        return 1
    if direct < 0:
        return -1
    if not direct.is_finite():  # it may jump or be undefined there: the slope says nothing then
        return None
    middle = _number((left + right) / 2)
    centred = _enclose(expr, {var: middle}) + _enclose(slope, {var: whole}) * (whole - middle)
    if centred > 0:
        return 1
    if centred < 0:
        return -1
    return None


def require_finite_on(expr: sp.Expr, var: sp.Symbol, lo: object, hi: object) -> None:
    """Pass if ``expr`` is real, finite and continuous on the closed rational interval [lo, hi].

    Raises:
        UndecidedError: some piece has no finite ball.
    """
    low, high = rational(lo), rational(hi)
    with flint.ctx.workprec(BITS):
        stack = [(low, high)]
        pieces = 0
        while stack:
            left, right = stack.pop()
            pieces += 1
            if _enclose(expr, {var: ball(left, right)}).is_finite():
                continue
            if pieces > MAX_PIECES or right - left < (high - low) / 2**30:
                raise UndecidedError(f"{expr} is not shown to be defined at {var} = {sp.N(left, 12)}")
            middle = (left + right) / 2
            stack += [(left, middle), (middle, right)]


def lower(value: arb) -> sp.Rational:
    """An exact rational at or below every point of the ball."""
    with flint.ctx.workprec(BITS):
        return _exact(value.lower())


def upper(value: arb) -> sp.Rational:
    """An exact rational at or above every point of the ball."""
    with flint.ctx.workprec(BITS):
        return _exact(value.upper())


def _exact(value: arb) -> sp.Rational:
    if not value.is_finite():
        raise UndecidedError(f"the ball {value} is not finite")
    mantissa, exponent = value.mid().man_exp()
    return sp.Rational(int(mantissa)) * sp.Integer(2) ** int(exponent)
