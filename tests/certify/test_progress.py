"""Step counts that follow from a certificate: enough for the loop that runs, and no more than the rate asks for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from problems import Linear, normal, randn, small_fprm
from torch import Tensor

from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.progress import _steps, steps_to_decision, steps_to_tolerance
from fpcheck.certify.search import certify
from fpcheck.errors import InputError
from fpcheck.loop import Loop

D = torch.float64
WEIGHT = randn(5, 4, seed=4)


def readout(z: Tensor) -> Tensor:
    return z @ WEIGHT.mT


@pytest.fixture(scope="module")
def known() -> tuple[Loop, Certificate, Tensor]:
    loop, z = small_fprm("plain", L_layers=1, hidden_size=4, mlp_multiple=4)
    loop, z = loop.sample(0), z[:1]
    with torch.no_grad():
        for _ in range(400):
            z = loop(z)
    cert = certify(loop, z, readout=readout)
    assert cert.verdict is Verdict.PROVED_ATTRACTING
    return loop, cert, z


def edge(cert: Certificate, seed: int, share: float = 1.0) -> Tensor:
    delta = randn(cert.centre.numel(), seed=seed)
    move = cert.metric.inverse @ (share * cert.radius * (1 - 1e-9) * delta / delta.norm())
    return cert.centre + move.reshape(cert.centre.shape)


@pytest.mark.parametrize("tolerance", [0.05, 1e-3, 1e-6])
def test_after_so_many_steps_the_loop_is_that_near(known, tolerance):
    loop, cert, star = known
    for seed in range(6):
        z = edge(cert, seed)
        steps = steps_to_tolerance(cert, z, tolerance)
        for _ in range(steps):
            z = loop(z).detach()
        assert float((cert.metric.L @ (z - star).reshape(-1)).norm()) <= tolerance


@pytest.mark.parametrize(("rate", "ahead", "goal"), [(0.5, 1.0, 0.3), (0.9, 2.0, 1e-9), (1 - 1e-9, 1.0, 0.5)])
def test_the_number_of_steps_is_the_least_that_the_rate_gives(rate, ahead, goal):
    k = _steps(rate, ahead, goal)
    # Logarithms in float64 decide these: k (log rate) misses log(goal/ahead) by far more than their rounding.
    assert k * math.log1p(rate - 1) <= math.log(goal / ahead) * (1 - 1e-12)
    assert (k - 1) * math.log1p(rate - 1) > math.log(goal / ahead) * (1 + 1e-12)


def test_powers_of_two_are_counted_exactly():
    assert _steps(0.5, 1.0, 0.25) in (2, 3)  # equality: the ball arithmetic may leave it open
    assert _steps(0.5, 1.0, math.nextafter(0.25, 1)) == 2
    assert _steps(0.5, 1.0, math.nextafter(0.25, 0)) == 3
    assert _steps(0.5, 1.0, 1.0) == 0
    assert _steps(0.0, 1.0, 0.5) == 1
    assert _steps(1 - 2.0**-53, 1.0, 0.5) == pytest.approx(math.log(2) * 2.0**53, rel=1e-9)


def test_decisions_come_after_so_many_steps_and_stay(known):
    loop, cert, _ = known
    answer = cert.decisions.answer
    for seed in range(4):
        z = edge(cert, seed)
        steps = steps_to_decision(cert, z)
        assert steps.shape == answer.shape
        assert bool((steps >= 0).all())
        for k in range(int(steps.max()) + 5):
            right = readout(z)[0].argmax(-1) == answer
            assert bool(right[steps <= k].all())
            z = loop(z).detach()


def test_a_smaller_margin_needs_more_steps_and_one_below_the_error_none_is_enough(known):
    _, cert, _ = known
    z = edge(cert, 1, 0.5)
    radii = [2 * cert.radius, cert.radius / 10, cert.radius / 1000, cert.error_bound, 0.0]
    decisions = replace(cert.decisions, radius=torch.tensor(radii, dtype=D), answer=torch.zeros(5, dtype=torch.int64))
    steps = steps_to_decision(replace(cert, decisions=decisions), z).tolist()
    assert steps[0] == 0 < steps[1] < steps[2]
    assert steps[3:] == [-1, -1]
    # Half a radius away, a tenth of it allowed: the rate to that power is at most a fifth.
    assert cert.rate ** steps[1] <= 0.2 * (1 + 1e-6) < cert.rate ** (steps[1] - 1) * (1 + 1e-5)


def test_what_is_not_covered_is_refused(known):
    _, cert, _ = known
    z = edge(cert, 1, 1.01)
    with pytest.raises(InputError, match="expected at most radius"):
        steps_to_tolerance(cert, z, 1e-3)
    with pytest.raises(InputError, match="tolerance=nan"):
        steps_to_tolerance(cert, cert.centre, math.nan)
    with pytest.raises(InputError, match="tolerance=0"):
        steps_to_tolerance(cert, cert.centre, 0.0)
    flip = Loop(Linear(normal(-1.1, 0.5)), torch.zeros(1, 2, dtype=D))
    repelling = certify(flip, torch.zeros(1, 2, dtype=D))
    with pytest.raises(InputError, match="verdict=refuted"):
        steps_to_tolerance(repelling, torch.zeros(1, 2, dtype=D), 0.1)
    with pytest.raises(InputError, match="decisions=None"):
        steps_to_decision(repelling, torch.zeros(1, 2, dtype=D))
