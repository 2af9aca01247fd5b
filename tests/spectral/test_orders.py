import math

import pytest
import torch
from problems import values

from fpcheck.errors import InputError
from fpcheck.spectral.damping import critical_step
from fpcheck.spectral.orders import (
    AnyOf,
    LargestDamped,
    LargestModulus,
    LargestReal,
    SmallestCriticalStep,
    sort_by,
)

LAM = values(-1.1, 0.9, 0.3 + 0.8j, 0.3 - 0.8j, -0.2).unsqueeze(0)


def first(order, lam):
    return lam[0, order.key(lam).argmax()].item()


@pytest.mark.parametrize(
    ("order", "leader"),
    [
        (LargestModulus(), -1.1),
        (LargestReal(), 0.9),
        # Steps 2 (1 - Re l) / |1 - l|^2: 0.952 for -1.1, 20 for 0.9, 1.4 / (0.49 + 0.64) = 1.24 for the pair.
        (SmallestCriticalStep(), -1.1),
        # Moduli under s = 0.5: 0.05, 0.95, |0.65 + 0.4i| = 0.763, 0.4.
        (LargestDamped(0.5), 0.9),
    ],
)
def test_the_leader(order, leader):
    assert first(order, LAM) == leader


def test_the_smallest_critical_step_leads_and_no_step_comes_before():
    generator = torch.Generator().manual_seed(0)
    lam = torch.randn(50, 6, 2, generator=generator, dtype=torch.float64)
    lam = torch.view_as_complex(lam)
    key = SmallestCriticalStep().key(lam)
    leading = lam.gather(1, key.argmax(1, keepdim=True))
    # Another module's formula on the whole spectrum and on the leader alone.
    assert torch.equal(critical_step(lam), critical_step(leading))
    # Where no step is left, the largest real part leads.
    stuck = critical_step(lam) == 0
    assert stuck.any()
    assert torch.equal(leading[stuck, 0].real, lam.real.amax(1)[stuck])


def test_the_critical_step_jumps_at_one():
    # As documented: 1 - e is the least wanted, 1 + e the most; 1 itself has no step.
    lam = values(-1.1, 1 - 1e-9, 1.0).unsqueeze(0)
    key = SmallestCriticalStep().key(lam)[0]
    assert key.argsort(descending=True).tolist() == [2, 0, 1]
    assert key[0] == pytest.approx(-2 / 2.1, rel=1e-15)
    assert key[2] == 0.0


@pytest.mark.parametrize("order", [LargestModulus(), LargestReal(), SmallestCriticalStep(), LargestDamped(0.7)])
def test_pairs_have_equal_keys(order):
    generator = torch.Generator().manual_seed(1)
    lam = torch.view_as_complex(torch.randn(1, 200, 2, generator=generator, dtype=torch.float64))
    assert torch.equal(order.key(lam), order.key(lam.conj()))
    both = torch.cat([lam, lam.conj()], 1)
    ranks = AnyOf(order, LargestReal()).key(both)
    assert torch.equal(ranks[:, :200], ranks[:, 200:])


def test_one_step_per_sample_and_selection():
    lam = LAM.expand(2, -1)
    order = LargestDamped(torch.tensor([1.0, 0.5]))
    # 1 - 1 (1 - l) is l but for the rounding of two differences.
    assert order.key(lam)[0].tolist() == pytest.approx(LargestModulus().key(LAM)[0].tolist(), abs=1e-15)
    assert torch.equal(order.select(torch.tensor([1])).key(LAM), LargestDamped(0.5).key(LAM))
    nested = AnyOf(LargestReal(), order).select(torch.tensor([1]))
    assert torch.equal(nested.key(LAM), AnyOf(LargestReal(), LargestDamped(0.5)).key(LAM))


def test_any_of_takes_leaders_first():
    order = AnyOf(LargestModulus(), LargestReal())
    # Ranks by modulus: -1.1, 0.9, the pair (0.854), -0.2; by real part: 0.9, the pair, -0.2, -1.1.
    assert order.key(LAM)[0].tolist() == [0, 0, -1, -1, -3]
    assert len(order.parts()) == 2
    assert len(AnyOf(order, LargestDamped(0.5)).parts()) == 3


def test_sorting_keeps_pairs_together():
    # Two pairs of equal modulus and equal real part twice over: only their places tell them apart.
    a, b = 0.6 + 0.8j, -0.6 + 0.8j
    lam = values(b, b.conjugate(), 0.5, a, a.conjugate(), a, a.conjugate()).unsqueeze(0)
    out = lam.gather(1, sort_by(torch.ones(1, 7, dtype=torch.float64), lam))[0].tolist()
    assert out == [a, a.conjugate(), a, a.conjugate(), 0.5, b, b.conjugate()]
    assert sort_by(LargestModulus().key(lam), lam)[0, -1] == 2


@pytest.mark.parametrize("step", [0.0, -1.0, math.inf, math.nan, torch.tensor([1.0, 0.0]), torch.ones(2, 2)])
def test_damping_steps_that_make_no_sense(step):
    with pytest.raises(InputError, match="expected a finite number > 0"):
        LargestDamped(step)


@pytest.mark.parametrize("orders", [(), ("LM",), (LargestReal, LargestModulus)])
def test_any_of_nothing(orders):
    with pytest.raises(InputError, match="at least one AbstractOrder"):
        AnyOf(*orders)
