"""The measured approach against maps whose rate is known, above all those whose residuals hide it."""

import math

import pytest
import torch

from fpcheck.errors import InputError
from fpcheck.loop import Loop
from fpcheck.spectral import approach_rate, measured_rate


def linear(matrix):
    matrix = torch.tensor(matrix, dtype=torch.float64)
    return Loop(lambda z: z @ matrix.T, z0=torch.ones(1, len(matrix), dtype=torch.float64))


def test_a_slow_mode_that_the_residuals_never_show():
    # diag(0.4, 0.2) started at (1e-9, 1): the residual of the slow mode, 1e-9 * 0.4^k, meets the fast one's 0.2^k
    # at k = 30, when both are at 1e-21, far below the rounding floor. The residuals show 0.2; the rate is 0.4.
    loop = linear([[0.4, 0.0], [0.0, 0.2]])
    start = torch.tensor([[1e-9, 1.0]], dtype=torch.float64)
    z, residuals = start, []
    for _ in range(15):
        residuals.append((loop(z) - z).norm(dim=1))
        z = loop(z)
    seen = measured_rate(torch.stack(residuals))
    assert float(seen.rate[0]) == pytest.approx(0.2, rel=0.01)
    near = approach_rate(loop, torch.zeros(1, 2, dtype=torch.float64))
    assert float(near.rate[0]) == pytest.approx(0.4, rel=1e-6)


@pytest.mark.parametrize("modulus", [0.05, 0.3, 0.9, 0.98, 1.2])
@pytest.mark.parametrize("degrees", [0, 80, 171])
def test_rotations(modulus, degrees):
    # A scaled rotation changes every length by its modulus exactly, whatever the angle; 1e-6 leaves a hundred
    # times the finite difference's sqrt(eps).
    a = math.radians(degrees)
    c, s = modulus * math.cos(a), modulus * math.sin(a)
    fit = approach_rate(linear([[c, -s], [s, c]]), torch.zeros(1, 2, dtype=torch.float64))
    assert float(fit.rate[0]) == pytest.approx(modulus, rel=1e-6)


def test_a_nonnormal_pair_oscillates_but_averages_out():
    # Similar to 0.8 * rotation(50 degrees) by diag(1, 10): single factors run from 0.08 to 8, the mean is 0.8. The
    # windowed slope over 130 steps reaches 1 %.
    a = math.radians(50)
    c, s = 0.8 * math.cos(a), 0.8 * math.sin(a)
    fit = approach_rate(linear([[c, -s / 10], [10 * s, c]]), torch.zeros(1, 2, dtype=torch.float64))
    assert float(fit.rate[0]) == pytest.approx(0.8, rel=0.01)


def test_a_nonlinear_loop_at_its_fixed_point():
    # z = cos z at 0.7390851332151607; |F'| = sin of it = 0.6736120291832147.
    z = torch.full((1, 1), 0.7390851332151607, dtype=torch.float64)
    fit = approach_rate(Loop(torch.cos, z0=z), z)
    assert float(fit.rate[0]) == pytest.approx(0.6736120291832147, rel=1e-6)


def test_samples_do_not_mix_and_a_constant_map_has_no_rate():
    rates = torch.tensor([[0.5], [0.0], [0.9]], dtype=torch.float64)
    loop = Loop(lambda z, x: x * z + 1, rates)
    fit = approach_rate(loop, torch.ones(3, 1, dtype=torch.float64))
    assert float(fit.rate[0]) == pytest.approx(0.5, rel=1e-6)
    assert math.isnan(float(fit.rate[1]))
    assert float(fit.rate[2]) == pytest.approx(0.9, rel=1e-6)


def test_too_few_steps_are_refused():
    with pytest.raises(InputError, match="steps=5; expected an integer >= 20"):
        approach_rate(linear([[0.5]]), torch.zeros(1, 1, dtype=torch.float64), steps=5)
