"""Expressions that are defined, non-negative, or positive, by their form alone.

The rules are few on purpose, because every certificate rests on them: sums and products of what is non-negative, even
powers of reals, exp, cosh, absolute values, and symbols that are declared so. Nothing is shown of an expression that
may be undefined somewhere (a division by what can be 0, a logarithm of what can be negative).
"""

import sympy as sp

from proofs import balls
from proofs.errors import ProofError

_ODD_AND_INCREASING = (sp.tanh, sp.sinh, sp.erf, sp.atan)
# Real, finite and continuous wherever their argument is.
_ENTIRE = (sp.exp, sp.cosh, sp.sin, sp.cos, sp.Abs, *_ODD_AND_INCREASING)


def is_defined(expr: sp.Expr) -> bool:
    """Whether the form of ``expr`` shows that it is real, finite and continuous for all values of its symbols."""
    expr = sp.sympify(expr)
    if expr.is_Rational or expr.is_NumberSymbol or expr.is_Symbol:
        return expr.is_real is True
    if expr.is_Add or expr.is_Mul or expr.func in (sp.Max, sp.Min, *_ENTIRE):
        return all(is_defined(part) for part in expr.args)
    if expr.is_Pow:
        if not (is_defined(expr.base) and is_defined(expr.exp)):
            return False
        if expr.exp.is_Integer:
            return expr.exp >= 0 or is_nonzero(expr.base)
        if expr.exp.is_integer and is_nonnegative(expr.exp):  # x^k with k = 0, 1, ..., where 0^0 = 1
            return True
        return is_positive(expr.base) or (is_nonnegative(expr.base) and is_positive(expr.exp))
    if expr.func is sp.log:
        return len(expr.args) == 1 and is_positive(expr.args[0])
    return False


def is_nonnegative(expr: sp.Expr) -> bool:
    """Whether the form of ``expr`` shows that it is defined and >= 0 (False means: not shown)."""
    expr = sp.sympify(expr)
    if expr.is_Rational or expr.is_Symbol or expr.is_NumberSymbol:
        return expr.is_nonnegative is True
    if _is_positive_number(expr):
        return True
    if expr.is_Add or expr.is_Mul:
        return all(is_nonnegative(part) for part in expr.args)
    if expr.is_Pow:
        if expr.exp.is_Integer and expr.exp % 2 == 0:
            return is_defined(expr)
        if not is_defined(expr.exp):
            return False
        return is_positive(expr.base) or (is_nonnegative(expr.base) and is_defined(expr))
    if expr.func in (sp.exp, sp.cosh, sp.Abs):
        return is_defined(expr)
    if expr.func in _ODD_AND_INCREASING:
        return is_nonnegative(expr.args[0])
    if expr.func is sp.Max:
        return is_defined(expr) and any(is_nonnegative(part) for part in expr.args)
    if expr.func is sp.Min:
        return all(is_nonnegative(part) for part in expr.args)
    return False


def is_positive(expr: sp.Expr) -> bool:
    """Whether the form of ``expr`` shows that it is defined and > 0 (False means: not shown)."""
    expr = sp.sympify(expr)
    if expr.is_Rational or expr.is_Symbol or expr.is_NumberSymbol:
        return expr.is_positive is True
    if _is_positive_number(expr):
        return True
    if expr.is_Add:
        return all(is_nonnegative(part) for part in expr.args) and any(is_positive(part) for part in expr.args)
    if expr.is_Mul:
        return all(is_positive(part) for part in expr.args)
    if expr.is_Pow:
        if expr.exp.is_Integer and expr.exp % 2 == 0:
            return is_nonzero(expr.base)
        return is_defined(expr.exp) and is_positive(expr.base)
    if expr.func in (sp.exp, sp.cosh):
        return is_defined(expr)
    if expr.func is sp.Abs:
        return is_nonzero(expr.args[0])
    if expr.func in _ODD_AND_INCREASING:
        return is_positive(expr.args[0])
    if expr.func is sp.Max:
        return is_defined(expr) and any(is_positive(part) for part in expr.args)
    if expr.func is sp.Min:
        return all(is_positive(part) for part in expr.args)
    return False


def is_nonzero(expr: sp.Expr) -> bool:
    """Whether the form of ``expr`` shows that it is defined and not 0."""
    expr = sp.sympify(expr)
    if expr.is_Rational or expr.is_Symbol:
        return expr.is_real is True and expr.is_nonzero is True
    if expr.is_Mul:
        return all(is_nonzero(part) for part in expr.args)
    return is_positive(expr) or is_positive(-expr)


def _is_positive_number(expr: sp.Expr) -> bool:
    """Whether ``expr`` is a number, without symbols, that ball arithmetic shows to be > 0."""
    try:
        return not expr.free_symbols and balls.sign(expr) == 1
    except ProofError:
        return False


def is_regular(expr: sp.Expr) -> bool:
    """Whether the form shows that ``expr`` is finite, perhaps complex or a matrix, for all values of its symbols."""
    expr = sp.sympify(expr)
    if is_defined(expr) or expr.is_Symbol or expr is sp.I:
        return True
    if expr.is_Add or expr.is_Mul:
        return all(is_regular(part) for part in expr.args)
    if expr.is_Pow and expr.exp.is_Integer:
        if expr.exp > 0:
            return is_regular(expr.base)
        # A symbol for a matrix that is inverted stands for an invertible one.
        return is_nonzero(expr.base) or (expr.base.is_Symbol and not expr.base.is_commutative)
    return False


def undefined_part(expr: sp.Expr) -> sp.Expr | None:
    """The innermost part of ``expr`` that its form does not show to be defined, for error messages."""
    expr = sp.sympify(expr)
    if is_defined(expr):
        return None
    for part in expr.args:
        found = undefined_part(part)
        if found is not None:
            return found
    return expr
