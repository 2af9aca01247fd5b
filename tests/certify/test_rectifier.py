"""A kink is a limit on the ball, not a curvature: within reach of it the slope may jump by 1."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fpcheck.certify.curvature import curvature, geometry, linearise
from fpcheck.certify.enclosure import enclose
from fpcheck.certify.metric import euclidean
from fpcheck.loop import Loop

CENTRE = torch.tensor([[0.5, -0.25, 2.0, -1.0]], dtype=torch.float64)


def shape_of(gain: float):
    loop = Loop(lambda z: gain * torch.relu(z), z0=CENTRE)
    held = enclose(loop, CENTRE)
    return geometry(linearise(held), euclidean(4)), held


@given(st.floats(0.01, 4.0), st.lists(st.floats(-1, 1), min_size=4, max_size=4))
def test_no_state_of_the_ball_has_a_larger_slope(radius: float, direction: list[float]):
    # J(z) is gain times a diagonal of 0 and 1, so its norm is gain where any entry is positive; the bound must hold.
    shape, _ = shape_of(0.4)
    step = torch.tensor([direction], dtype=torch.float64)
    z = CENTRE + radius * step / step.norm().clamp_min(1)
    true = 0.4 * float((z > 0).any())
    assert true <= curvature(shape, 0.4, radius).kappa


def test_a_ball_that_reaches_no_kink_costs_nothing_and_one_that_does_costs_the_jump():
    shape, held = shape_of(0.4)
    # The nearest kink is 0.25 away, of the second entry; the third is 2 away.
    assert curvature(shape, 0.4, 0.24).kappa <= 0.4 * (1 + 1e-6)
    # Beyond it that entry's slope may change by 1: 0.4 more, by the norm of a single entry's matrix.
    reached = curvature(shape, 0.4, 0.26).kappa
    assert 0.8 * (1 - 1e-6) <= reached <= 0.8 * 1.1
    assert float((held.jacobian - torch.diag((CENTRE[0] > 0).double() * 0.4)).norm()) <= held.jacobian_error


def test_at_a_kink_nothing_is_free():
    # The partner: with the centre on the kink every ball reaches it.
    z = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    held = enclose(Loop(lambda z: 0.4 * torch.relu(z), z0=z), z)
    shape = geometry(linearise(held), euclidean(2))
    assert curvature(shape, 0.6, 1e-9).kappa >= 0.6 + 0.4
