"""What a form shows: true of every value of the symbols, and silent about whatever may be undefined or negative."""

import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from proofs.manifest import is_defined, is_nonnegative, is_nonzero, is_positive, is_regular, undefined_part

x = sp.Symbol("x", real=True)
y = sp.Symbol("y", real=True)
p = sp.Symbol("p", positive=True)
u = sp.Symbol("u", nonnegative=True)
v = sp.Symbol("v", negative=True)
w = sp.Symbol("w", real=True, nonzero=True)
z = sp.Symbol("z")
k = sp.Symbol("k", integer=True, nonnegative=True)
A = sp.Symbol("A", commutative=False)
B = sp.Symbol("B", commutative=False)


@pytest.mark.parametrize(
    "expr",
    [
        sp.Integer(0),
        x**2,
        (x - y) ** 4,
        x**2 + u * p,
        sp.exp(-x),
        sp.cosh(x * y),
        sp.Abs(x - 3),
        u ** sp.Rational(1, 3),
        sp.sqrt(u),
        p**x,
        u**k,  # 0^0 = 1
        w**-2,
        (x**2 + 1) ** -2,
        1 / (p + u),
        sp.tanh(u),
        sp.erf(p * u),
        sp.Max(x, u),
        sp.Min(u, p),
        sp.sqrt(sp.Rational(7, 2) - sp.sqrt(33) / 2),  # a number: by ball arithmetic
    ],
)
def test_nonnegative_by_form(expr: sp.Expr):
    assert is_nonnegative(expr)
    assert is_defined(expr)
    assert undefined_part(expr) is None


@pytest.mark.parametrize(
    "expr",
    [
        *(x, v, x * u, u - p, x**3, -p, sp.Integer(-1), sp.pi - 4),
        *(z**2, z * sp.conjugate(z), sp.I, sp.I**2),  # not known to be real
        *(x**-2, 1 / x, 1 / u, sp.Abs(1 / x), sp.exp(1 / x)),  # undefined at 0
        *((x - y) ** -2, u**x, u**-p, 0**x, x ** sp.Rational(2, 3), sp.sqrt(x)),
        *(sp.log(x) ** 2, sp.Abs(sp.log(u)), sp.exp(sp.log(x))),
        *(sp.tan(x) ** 2, sp.gamma(x) ** 2, sp.Abs(sp.tan(x))),  # poles
        *(sp.Max(sp.log(x), 1), sp.Max(1 / x, p), sp.Min(x, u), sp.Max(x, y)),
        *(sp.oo, sp.zoo, sp.nan, sp.Float(1) / 2, sp.Float(1) / 2 * u),
        *(sp.sin(p), sp.cos(x), sp.tanh(x), sp.sinh(-p)),
        sp.Function("f")(x) ** 2,
        A * A,
    ],
)
def test_what_the_form_does_not_show(expr: sp.Expr):
    assert not is_nonnegative(expr)
    assert not is_positive(expr)


@pytest.mark.parametrize(
    "expr",
    [p, p + u, p + x**2, x**2 + 1, p * sp.exp(x), w**2, w**-4, sp.Abs(w), sp.Max(x, p), sp.Min(p, 2), p**x, sp.tanh(p)],
)
def test_positive_by_form(expr: sp.Expr):
    assert is_positive(expr)
    assert is_nonnegative(expr)
    assert is_nonzero(expr)


@pytest.mark.parametrize(
    "expr", [sp.Integer(0), x**2, u, u**2, sp.Abs(x), x**2 + u, p * u, sp.Max(x, u), sp.Min(p, u), u**k, sp.sqrt(u)]
)
def test_what_may_be_zero_is_not_positive(expr: sp.Expr):
    assert not is_positive(expr)
    assert not is_nonzero(expr)


def test_nonzero_includes_the_negative():
    assert is_nonzero(v)
    assert is_nonzero(-p - 1)
    assert is_nonzero(v * w)
    assert not is_nonzero(z)
    assert not is_nonzero(x - y)


def test_the_undefined_part_is_named():
    assert undefined_part(x + sp.exp(2 / (x - y))) == 1 / (x - y)
    assert undefined_part(p * sp.log(u)) == sp.log(u)


def test_matrices_and_complex_numbers_are_regular_unless_something_may_be_inverted_that_is_not_invertible():
    assert is_regular(A * B + z**2 + sp.I)
    assert is_regular(A**-1 * B)
    assert not is_regular((A - B) ** -1)
    assert not is_regular(1 / z)
    assert not is_regular(1 / (x - y))
    assert not is_regular(sp.log(z))


ATOMS = st.sampled_from([x, y, p, u, v, w, k, sp.Integer(2), sp.Rational(-1, 3), sp.Integer(0)])
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda t: t[0] + t[1]),
        st.tuples(inner, inner).map(lambda t: t[0] * t[1]),
        st.tuples(inner, st.sampled_from([-2, -1, 2, 3, sp.Rational(1, 2), k])).map(lambda t: t[0] ** t[1]),
        inner.map(sp.tanh),
        inner.map(sp.Abs),
        inner.map(sp.log),
        st.tuples(inner, inner).map(lambda t: sp.Max(*t) if all(e.is_extended_real for e in t) else t[0]),
        st.tuples(inner, inner).map(lambda t: sp.Min(*t) if all(e.is_extended_real for e in t) else t[0]),
    ),
    max_leaves=6,
)
# Zero and both signs, wherever the assumptions allow them.
POINTS = st.fixed_dictionaries(
    {
        x: st.sampled_from([0, 1, -1, sp.Rational(-7, 3), 5]),
        y: st.sampled_from([0, 1, -2, sp.Rational(1, 9)]),
        p: st.sampled_from([1, sp.Rational(1, 100), 40]),
        u: st.sampled_from([0, 1, sp.Rational(5, 2)]),
        v: st.sampled_from([-1, sp.Rational(-1, 50), -9]),
        w: st.sampled_from([-1, 1, sp.Rational(1, 30)]),
        k: st.sampled_from([0, 1, 2]),
    }
)


@given(EXPRESSIONS, POINTS)
def test_what_is_shown_holds_at_every_point(expr: sp.Expr, point: dict):
    there = expr.subs(point, simultaneous=True)
    number = complex(there) if not there.has(sp.nan, sp.zoo, sp.oo, -sp.oo) else None
    if is_defined(expr):
        assert number is not None
        assert abs(number.imag) < 1e-12 * (1 + abs(number))
    if is_nonnegative(expr):
        assert number is not None
        assert number.real >= -1e-12
    if is_positive(expr):
        assert number is not None
        assert sp.N(there, 30) > 0
    if is_nonzero(expr):
        assert number is not None
        assert sp.N(there, 30) != 0
