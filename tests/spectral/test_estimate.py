import pytest
import torch

from fpcheck.errors import InputError
from fpcheck.spectral import Estimate

PAIR = Estimate(
    torch.tensor([0.70523, 1.2], dtype=torch.float64), torch.tensor([2e-13, torch.inf], dtype=torch.float64)
)


def test_it_shows_value_error_and_that_it_is_an_estimate():
    assert repr(PAIR[0]) == str(PAIR[0]) == "0.7052 +- 2e-13 (estimate)"
    assert f"{PAIR[0]:.2f}" == "0.71 +- 2e-13 (estimate)"
    assert str(PAIR) == "[0.7052 +- 2e-13 (estimate), 1.2 +- inf (estimate)]"


def test_one_sample_is_a_number():
    assert float(PAIR[1]) == 1.2
    assert len(PAIR) == 2
    assert [float(one) for one in PAIR] == [0.70523, 1.2]
    assert float(Estimate(torch.ones(1), torch.zeros(1))) == 1.0


def test_several_samples_are_no_number():
    with pytest.raises(InputError, match="2 samples; take one"):
        float(PAIR)


def test_it_cannot_be_changed():
    with pytest.raises(AttributeError):
        PAIR.value = torch.zeros(2)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (torch.ones(2), torch.ones(3), r"expected both \(B,\)"),
        (torch.ones(2, 2), torch.ones(2, 2), r"expected both \(B,\)"),
        (torch.ones(2), torch.tensor([1.0, -1.0]), ">= 0"),
        (torch.ones(2), torch.tensor([1.0, torch.nan]), ">= 0"),
    ],
)
def test_bad_figures_are_refused(value, error, words):
    with pytest.raises(InputError, match=words):
        Estimate(value, error)
