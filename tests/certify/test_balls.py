"""Every operation on balls contains the exact result: judged in rational arithmetic, or by Arb at 400 bits."""

import math
from fractions import Fraction

import flint
import pytest
import torch
from flint import arb
from hypothesis import example, given
from hypothesis import strategies as st

from fpcheck.certify.balls import Ball
from fpcheck.certify.rounding import U

FLOATS = st.floats(-1e3, 1e3) | st.floats(-1e-300, 1e-300) | st.sampled_from([0.0, 1.0, -1.0, 0.1, 1 / 3, 2.0**-1074])
SHARES = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])


@st.composite
def balls(draw, count: int):
    """A ball of ``count`` entries, and a point of it as exact rationals."""
    mid = [draw(FLOATS) for _ in range(count)]
    rad = [draw(st.sampled_from([0.0, 1e-16, 1e-3, 1.0, 5.0])) for _ in range(count)]
    point = [Fraction(m) + Fraction(draw(SHARES)) * Fraction(r) for m, r in zip(mid, rad, strict=True)]
    return Ball(torch.tensor(mid, dtype=torch.float64), torch.tensor(rad, dtype=torch.float64)), point


def inside(ball: Ball, exact: list[Fraction]) -> bool:
    """Exact membership, entry by entry."""
    entries = zip(ball.mid.flatten().tolist(), ball.rad.flatten().tolist(), exact, strict=True)
    return all(math.isinf(r) or abs(Fraction(m) - e) <= Fraction(r) for m, r, e in entries)


@given(balls(3), balls(3))
def test_sums_differences_products_contain_the_exact_ones(first, second):
    (a, x), (b, y) = first, second
    assert inside(a + b, [p + q for p, q in zip(x, y, strict=True)])
    assert inside(a - b, [p - q for p, q in zip(x, y, strict=True)])
    assert inside(a * b, [p * q for p, q in zip(x, y, strict=True)])
    assert inside(a.square(), [p * p for p in x])
    assert inside(-a, [-p for p in x])


@given(balls(3))
def test_reciprocals_contain_the_exact_ones_or_know_nothing(given_ball):
    a, x = given_ball
    result = a.reciprocal()
    for i, value in enumerate(x):
        if value != 0:
            assert inside(result[i : i + 1], [1 / value])
        else:
            assert math.isinf(float(result.rad[i]))


@given(balls(3))
@example((Ball.exact(torch.tensor([2.0, 3.0, 0.0], dtype=torch.float64)), [Fraction(2), Fraction(3), Fraction(0)]))
def test_roots_contain_the_exact_ones_or_know_nothing(given_ball):
    a, x = given_ball
    root = a.sqrt()
    for m, r, value in zip(root.mid.tolist(), root.rad.tolist(), x, strict=True):
        if math.isinf(r):
            continue
        # m - r <= sqrt(value) <= m + r, without a root.
        low, high = Fraction(m) - Fraction(r), Fraction(m) + Fraction(r)
        assert value >= 0
        assert high >= 0
        assert high * high >= value
        assert low <= 0 or low * low <= value


def test_roots_are_not_only_sound_but_near():
    v = torch.rand(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.01
    root = Ball.exact(v).sqrt()
    # A root wrong by one unit shows as a residual of 2 u v, plus u v for the squaring: 3 u s / 2, and inflation.
    assert bool((root.rad <= 8 * U * root.mid).all())


@given(balls(12), balls(12))
def test_matrix_products_contain_the_exact_ones(first, second):
    (a, x), (b, y) = first, second
    product = a.reshape(3, 4) @ b.reshape(4, 3)
    exact = [sum((x[4 * i + k] * y[3 * k + j] for k in range(4)), Fraction(0)) for i in range(3) for j in range(3)]
    assert inside(product, exact)


@given(balls(12))
def test_sums_and_means_contain_the_exact_ones(given_ball):
    a, x = given_ball
    rows = [sum(x[4 * i : 4 * i + 4], Fraction(0)) for i in range(3)]
    assert inside(a.reshape(3, 4).sum(-1), rows)
    assert inside(a.reshape(3, 4).mean(-1), [r / 4 for r in rows])


def test_a_large_product_stays_near_the_truth_and_contains_it():
    # 768 products in a row: the radius is gamma_768 |A||B|, some 1e-13 of it, and Arb's exact product lies inside.
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(3, 768, dtype=torch.float64, generator=generator)
    B = torch.randn(768, 2, dtype=torch.float64, generator=generator)
    product = Ball.exact(A) @ Ball.exact(B)
    exact = [
        sum((Fraction(p) * Fraction(q) for p, q in zip(row, column, strict=True)), Fraction(0))
        for row in A.tolist()
        for column in B.mT.tolist()
    ]
    assert inside(product, exact)
    assert float((product.rad / (A.abs() @ B.abs())).max()) < 1e-13


ELEMENTARY = {"exp": arb.exp, "tanh": arb.tanh, "erf": arb.erf, "sigmoid": lambda v: 1 / (1 + (-v).exp())}


@pytest.mark.parametrize("name", ELEMENTARY)
@given(given_ball=balls(4))
def test_elementary_functions_contain_what_arb_says(name, given_ball):
    a, x = given_ball
    result = a.map(ELEMENTARY[name])
    with flint.ctx.workprec(2400):  # so that even exp(1e3) is known far beyond a float64
        for m, r, value in zip(result.mid.tolist(), result.rad.tolist(), x, strict=True):
            if math.isinf(r):
                continue
            there = ELEMENTARY[name](arb(flint.fmpq(value.numerator, value.denominator)))
            assert abs(there - m) <= arb(r) or (abs(there - m) - r).abs_upper() < arb(2) ** -2000


def test_elementary_functions_are_near():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    for name in ELEMENTARY:
        result = Ball.exact(x).map(ELEMENTARY[name])
        # Half a unit for the rounding of the midpoint, and the next float above.
        assert bool((result.rad <= 1.01 * U * result.mid.abs() + 2.0**-1070).all()), name
    assert float(Ball.exact(x).log().rad[0]) == math.inf  # the logarithm of a negative number is not known


def test_a_missing_rounding_term_would_be_seen():
    # The partner: 0.1 + 0.2 without its rounding term does not contain the exact sum.
    a, b = (Ball.exact(torch.tensor([v], dtype=torch.float64)) for v in (0.1, 0.2))
    naive = Ball(a.mid + b.mid, torch.zeros(1, dtype=torch.float64))
    assert not inside(naive, [Fraction(0.1) + Fraction(0.2)])
    assert inside(a + b, [Fraction(0.1) + Fraction(0.2)])


def test_the_kind_of_tensor_is_checked():
    with pytest.raises(ValueError, match="float64"):
        Ball(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="one shape"):
        Ball(torch.zeros(2, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
