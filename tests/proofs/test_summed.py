"""The step that sums a relation over an index: linear, sign-preserving, and strict about what has a name."""

import pytest
import sympy as sp

from proofs import MalformedError, RefutedError, Summed, Totals
from proofs.steps import Provided

p = sp.Symbol("p", nonnegative=True)
x = sp.Symbol("x", real=True)
mu = sp.Symbol("mu", real=True)
m2 = sp.Symbol("m_2", real=True)
KEYS = Totals((p, x), {p: 1, p * x: mu, p * x**2: m2})
SQUARE = {"square": Provided("nonnegative", p * (x - mu) ** 2)}


def summed(of: str, result: sp.Expr, totals: Totals = KEYS) -> Summed:
    return Summed("", of, totals, result)


def test_the_variance_is_the_second_moment_less_the_squared_mean() -> None:
    # sum p (x - mu)^2 = m2 - 2 mu mu + mu^2 with sum p = 1.
    found = summed("square", m2 - mu**2).check(SQUARE)
    assert found.relation == "nonnegative"
    assert found.expr == m2 - mu**2


@pytest.mark.parametrize("wrong", [m2 + mu**2, m2 - mu**2 / 2, mu**2 - m2, m2])
def test_another_sum_is_refuted(wrong: sp.Expr) -> None:
    with pytest.raises(RefutedError):
        summed("square", wrong).check(SQUARE)


def test_a_positive_term_gives_no_strict_sum() -> None:
    # A sum over no terms is 0, so "positive" must not survive.
    context = {"term": Provided("positive", p * x**2)}
    assert summed("term", m2).check(context).relation == "nonnegative"


def test_an_equation_stays_one() -> None:
    assert summed("term", m2 - 3 * mu).check({"term": Provided("zero", p * x**2 - 3 * p * x)}).relation == "zero"


def test_a_constant_is_counted() -> None:
    n = sp.Symbol("n", integer=True, positive=True)
    tokens = Totals((x,), {sp.Integer(1): n, x: mu})
    summed("term", 2 * n - mu, tokens).check({"term": Provided("nonnegative", 2 - x)})
    with pytest.raises(MalformedError, match="no name"):  # KEYS says nothing of how many keys there are
        summed("term", 2 - mu).check({"term": Provided("nonnegative", 2 - p * x)})


@pytest.mark.parametrize("term", [p * x**3, sp.exp(x), p / (1 + x**2), x])
def test_a_sum_without_a_name_is_refused(term: sp.Expr) -> None:
    with pytest.raises(MalformedError):
        summed("term", m2).check({"term": Provided("nonnegative", term)})


def test_a_sum_may_not_depend_on_the_index() -> None:
    with pytest.raises(MalformedError, match="may not depend"):
        Totals((p, x), {p * x: mu * x})


@pytest.mark.parametrize("monomial", [p + x, 2 * p, p * mu])
def test_only_monomials_have_names(monomial: sp.Expr) -> None:
    with pytest.raises(MalformedError, match="monomial"):
        Totals((p, x), {monomial: mu})


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(MalformedError, match="not established"):
        summed("nothing", mu).check(SQUARE)
