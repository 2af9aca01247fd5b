"""The table of constants is what the theorems say, rounded to the safe side."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

import fpcheck
import fpcheck.constants as table_module
from proofs.table import constants, round_down, round_up, source

TABLE = Path(fpcheck.__file__).parent / "constants.py"


def test_the_written_table_is_the_generated_one():
    assert TABLE.read_text() == source(), "run `python -m proofs --write-constants`"


@pytest.mark.parametrize(("theorem", "constant"), constants(), ids=[c.name for _, c in constants()])
def test_the_float_is_on_the_safe_side_and_next_to_the_exact_value(theorem, constant):
    low, high = constant.enclosure()
    value = sp.Rational(*getattr(table_module, constant.name).as_integer_ratio())
    # The enclosure is far narrower than a float64, so the nearest one on the safe side is within one of its spacings.
    spacing = sp.Rational(1, 2**52) * max(abs(value), sp.Rational(1, 2**1022))
    if constant.side == "upper":
        assert high <= value < high + spacing
    else:
        assert low - spacing < value <= low


def test_a_table_changed_by_one_percent_is_seen():
    # What the first test compares is text; each single number matters to it.
    text = TABLE.read_text()
    for match in re.finditer(r"Final = (\S+)", text):
        changed = text[: match.start(1)] + repr(float(match[1]) * 0.99) + text[match.end(1) :]
        assert (changed != source()) == (float(match[1]) != 0)


@given(st.fractions(min_value=-(10**6), max_value=10**6))
def test_rounding_goes_outward_by_less_than_one_spacing(value: Fraction):
    exact = sp.Rational(value.numerator, value.denominator)
    up, down = round_up(exact), round_down(exact)
    assert Fraction(down) <= value <= Fraction(up)
    # Equal exactly when the value is a float64.
    assert (up == down) == (Fraction(float(value)) == value)


def test_rounding_to_nearest_would_be_wrong():
    # The partner: for 1/10 the nearest float64 lies above, for 3/10 below, so neither side is safe by luck.
    assert Fraction(float(Fraction(1, 10))) > Fraction(1, 10)
    assert Fraction(float(Fraction(3, 10))) < Fraction(3, 10)
    assert round_up(sp.Rational(3, 10)) > float(Fraction(3, 10))
    assert round_down(sp.Rational(1, 10)) < float(Fraction(1, 10))
