"""Tangents: the bound on the Frobenius error holds for every step, judged in rational arithmetic, with zero slack.

Each test takes tangents with an error, a point within that distance of their midpoints (the error spent where it hurts
most: on one entry, along the largest singular vector, on all entries), and compares exact results.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import randn

from fpcheck.certify.balls import Ball
from fpcheck.certify.rounding import U
from fpcheck.certify.tangents import Tangents

fractions = np.vectorize(lambda v: Fraction(float(v)), otypes=[object])


def exact(values: torch.Tensor) -> np.ndarray:
    return fractions(values.numpy()).reshape(tuple(values.shape))


def within(found: Tangents, truth: np.ndarray) -> bool:
    gap = (exact(found.mid) - truth).flatten()
    return sum(g * g for g in gap) <= Fraction(found.error) ** 2


def offset(t: Tangents, along: torch.Tensor) -> np.ndarray:
    """A point at most ``error`` from the midpoint, in the direction ``along``."""
    direction = exact(along)
    size = float(torch.linalg.vector_norm(along)) * (1 + 1e-12)
    return exact(t.mid) + direction * (Fraction(t.error) / Fraction(size))


@st.composite
def tangents(draw, *shape: int):
    """Tangents, and a point within their error."""
    seed = draw(st.integers(0, 10**6))
    mid = randn(*shape, seed=seed) * draw(st.sampled_from([1.0, 1e-8, 1e8]))
    t = Tangents(mid, draw(st.sampled_from([0.0, 1e-17, 1e-9, 1.0])))
    one = torch.zeros(shape, dtype=torch.float64)
    one.view(-1)[draw(st.integers(0, one.numel() - 1))] = 1.0
    along = draw(st.sampled_from([one, torch.ones_like(one), randn(*shape, seed=seed + 1)]))
    return t, offset(t, along)


@st.composite
def balls(draw, *shape: int):
    """A ball, and a point of it."""
    seed = draw(st.integers(0, 10**6))
    mid, rad = randn(*shape, seed=seed), draw(st.sampled_from([0.0, 1e-15, 0.3]))
    side = torch.sign(randn(*shape, seed=seed + 1))
    return Ball(mid, torch.full_like(mid, rad)), exact(mid) + exact(side) * Fraction(rad)


@given(tangents(2, 3, 4), tangents(2, 3, 4))
def test_sums(first, second):
    (a, x), (b, y) = first, second
    assert within(a + b, x + y)
    assert within(a - b, x - y)
    assert within(-a, -x)


@given(tangents(2, 3, 4), tangents(2, 1, 4))
def test_sums_that_broadcast(first, second):
    (a, x), (b, y) = first, second
    assert within(a + b, x + y)


@given(tangents(2, 3, 4), balls(3, 4), balls(4))
def test_products_with_numbers(first, second, third):
    (a, x), (b, y), (c, v) = first, second, third
    assert within(a * b, x * y)
    assert within(a * c, x * v)
    assert within(a * 0.1, x * Fraction(0.1))


@given(tangents(2, 3, 1), balls(3, 4))
def test_products_that_broadcast(first, second):
    (a, x), (b, y) = first, second
    assert within(a * b, x * y)


@given(tangents(2, 3, 4))
def test_sums_and_means_over_a_dimension(given_tangents):
    a, x = given_tangents
    for dim in (1, 2):
        assert within(a.sum(dim), x.sum(dim))
        assert within(a.mean(dim, keepdim=True), x.sum(dim, keepdims=True) / x.shape[dim])
    assert within(a.mT, x.swapaxes(-1, -2))
    assert within(a.reshape(2, 12), x.reshape(2, 12))


@given(tangents(2, 3, 4), balls(4, 5), balls(2, 4, 5))
def test_matrix_products(first, second, third):
    (a, x), (b, y), (c, v) = first, second, third
    assert within(a @ b, x @ y)
    assert within(a @ c, np.stack([p @ q for p, q in zip(x, v, strict=True)]))


@given(tangents(2, 5), st.lists(st.integers(-1, 4), min_size=1, max_size=8))
def test_entries_moved_copied_and_gathered(first, index):
    a, x = first
    places = torch.tensor(index)
    moved = np.stack([[row[i] if i >= 0 else Fraction(0) for i in index] for row in x])
    assert within(a.moved(places), moved)
    if len(index) == 5:
        sums = np.full((2, 7), Fraction(0), dtype=object)
        for row, source in zip(sums, x, strict=True):
            for i, v in zip(index, source, strict=True):
                if i >= 0:
                    row[i] += v
        assert within(a.gathered(places, (7,)), sums)


@given(tangents(2, 1, 4))
def test_copies_bring_the_error_again(given_tangents):
    a, x = given_tangents
    assert within(a.expand(2, 9, 4), np.broadcast_to(x, (2, 9, 4)))


# Bounds that are attained: nothing can be taken off.


def test_an_error_along_the_worst_direction_is_just_covered():
    # A product with M stretches its top singular vector by |M|_2: a bound 1 % smaller would be false.
    M = randn(6, 6, seed=3)
    top = torch.linalg.svd(M)[0][:, 0]
    t = Tangents(torch.zeros(1, 1, 6, dtype=torch.float64), 1.0)
    truth = offset(t, top.reshape(1, 1, 6)) @ exact(M)
    found = t @ Ball.exact(M)
    assert within(found, truth)
    assert not within(Tangents(found.mid, 0.99 * found.error), truth)
    assert found.error <= float(torch.linalg.matrix_norm(M, 2)) * (1 + 1e-9)


@pytest.mark.parametrize("step", ["sum", "expand", "moved", "gathered", "times"])
def test_an_even_error_is_just_covered(step):
    # k equal errors e / sqrt(k) add up to e sqrt(k); k copies of e have norm e sqrt(k).
    ones = torch.ones(1, 9, dtype=torch.float64)
    t = Tangents(torch.zeros(1, 9, dtype=torch.float64), 1.0)
    single = Tangents(torch.zeros(1, 1, dtype=torch.float64), 1.0)
    found, truth = {
        "sum": lambda: (t.sum(1), offset(t, ones).sum(1)),
        "expand": lambda: (single.expand(1, 9), np.broadcast_to(offset(single, ones[:, :1]), (1, 9))),
        "moved": lambda: (
            single.moved(torch.zeros(9, dtype=torch.int64)),
            np.broadcast_to(offset(single, ones[:, :1]), (1, 9)),
        ),
        "gathered": lambda: (
            t.gathered(torch.zeros(9, dtype=torch.int64), (1,)),
            offset(t, ones).sum(1, keepdims=True),
        ),
        "times": lambda: (t * Ball.exact(torch.full((9,), -3.0)), offset(t, ones) * -3),
    }[step]()
    assert within(found, truth)
    assert not within(Tangents(found.mid, 0.99 * found.error), truth)


def test_rounding_alone_is_covered():
    # Exact midpoints, so all error is rounding; the partner without it would be false.
    a = Tangents(torch.full((1, 3), 0.1, dtype=torch.float64))
    x = exact(a.mid)
    steps = {
        "product": (a * 0.1, x * Fraction(0.1)),
        "sum": (a + a * Ball.exact(torch.full((3,), 2.0, dtype=torch.float64)), 3 * x),
        "reduced": (a.sum(1), x.sum(1)),
        "mean": (a.mean(1), x.sum(1) / 3),
        "matrix": (
            a @ Ball.exact(torch.full((3, 2), 0.3, dtype=torch.float64)),
            x @ exact(torch.full((3, 2), 0.3, dtype=torch.float64)),
        ),
    }
    for name, (found, truth) in steps.items():
        assert within(found, truth), name
        assert found.error < 30 * U, name
        assert found.error > 0, name
    assert not within(Tangents(steps["product"][0].mid), steps["product"][1])
    assert not within(Tangents(steps["reduced"][0].mid), steps["reduced"][1])


def test_the_local_part_counts_from_where_it_was_made_fresh():
    a = Tangents(torch.full((1, 3), 0.1, dtype=torch.float64), 1e-3, 1e-4)
    assert a.fresh().local == 0
    assert a.fresh().error == 1e-3
    found = a.fresh() * 0.1
    assert 0 < found.local < 1e-16  # the product's own rounding
    assert found.error == pytest.approx(1e-4, rel=1e-9)
    assert (a * 3.0).local == pytest.approx(3e-4, rel=1e-9)


def test_what_underflows_is_covered():
    a = Tangents(torch.full((1, 2), 1e-300, dtype=torch.float64))
    assert within(a * 1e-300, exact(a.mid) * Fraction(1e-300))
    assert within(
        a @ Ball.exact(torch.full((2, 1), 1e-300, dtype=torch.float64)),
        exact(a.mid).sum(1, keepdims=True) * Fraction(1e-300),
    )
    assert math.isfinite((a * 1e-300).error)


def rule(name: str, values: list[torch.Tensor], *more):
    """A rule's tangent, as a function of tangents of its first argument, at given float64 values."""
    from fpcheck.certify.enclosure import evaluate
    from fpcheck.certify.operators import rule_for
    from fpcheck.certify.trace import Graph, Op, Ref

    op = Op(name, (Ref(0), *more), {}, None, "", tuple(values[0].shape))
    out = evaluate(Graph((Op("input", (), {}, None, "", tuple(values[0].shape)), op), 1), values[0])[1]
    found = rule_for(name)
    plain = name.partition(".")[0]
    args = (Ball.exact(values[0]), *more)
    return lambda t: (found.tangent(plain, out, args, (t, None)), found.cotangent(plain, out, args, t)[0])


def test_the_gain_of_softmax_is_attained():
    # Two equal scores: diag(p) - pp' has the norm 1/2, along (1, -1).
    t = Tangents(torch.zeros(1, 1, 2, dtype=torch.float64), 1.0)
    for found in rule("_softmax.default", [torch.zeros(1, 2, dtype=torch.float64)], -1, False)(t):
        assert 0.5 <= found.error <= 0.5 * (1 + 1e-9)


@pytest.mark.parametrize("name", ["rms", "centred_rms"])
def test_the_gain_of_a_norm_is_attained(name):
    # A movement orthogonal to the (centred) row is divided by the root: the gain is one over the smallest root,
    # here that of the row (1, -1, 0, 0) / 10 with mean square 1/200.
    x = torch.tensor([[3.0, -3.0, 1.0, -1.0], [0.1, -0.1, 0.0, 0.0]], dtype=torch.float64)
    t = Tangents(torch.zeros(1, 2, 4, dtype=torch.float64), 1.0)
    gain = 1 / math.sqrt(0.005 + 0.01)
    for found in rule(name, [x], 0.01, 1)(t):
        assert gain * (1 - 1e-14) <= found.error <= gain * (1 + 1e-9)
