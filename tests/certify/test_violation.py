"""A claimed rate is refuted only by a pair of states that does refute it; Arb judges, without slack."""

from __future__ import annotations

import math

import exact_blocks
import numpy as np
import pytest
import torch
from exact_blocks import reals
from flint import arb
from problems import Linear, normal, randn, rotation, small_fprm
from torch import Tensor, nn

from fpcheck.certify.certificate import Verdict
from fpcheck.certify.metric import Metric, dual_stein, euclidean
from fpcheck.certify.search import certify
from fpcheck.certify.violation import Violation, violation
from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop

D = torch.float64
SHEAR = torch.tensor([[0.5, 2.0], [0.0, 0.5]], dtype=D)


class Tanh(nn.Module):
    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z) @ self.A.mT + x


def size(metric: Metric, v: np.ndarray) -> arb:
    moved = reals(metric.L) @ v.flatten()
    return sum((w * w for w in moved), arb(0)).sqrt()


def refutes(found: Violation, step, metric: Metric, centre: Tensor, radius: float) -> None:
    """The pair lies in the ball, and its ratio is at least what is stated."""
    with exact_blocks.precision():
        a, b, c = (reals(s[0]) for s in (found.first, found.second, centre))
        assert size(metric, a - c) <= arb(radius)
        assert size(metric, b - c) <= arb(radius)
        assert size(metric, step(a) - step(b)) >= arb(found.ratio) * size(metric, a - b)


def in_arb(A: Tensor, x: Tensor):
    return lambda z: exact_blocks.tanh(z) @ reals(A).T + reals(x[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("radius", [1e-2, 1.0])
def test_a_claim_below_the_norm_of_a_linear_map_is_refuted_and_the_norm_itself_is_not(dtype, radius):
    A = SHEAR.to(dtype)  # exact in float32
    loop = Loop(Linear(A), torch.ones(1, 2, dtype=dtype))
    centre = torch.full((1, 2), 0.25, dtype=dtype)
    true = float(torch.linalg.matrix_norm(SHEAR, 2))
    # A pair of float32 numbers is along the worst direction to 1e-7, and loses its square; far pairs lose nothing else.
    found = violation(loop, centre, true * (1 - 1e-9), metric=euclidean(2), radius=radius)
    assert found is not None
    assert true * (1 - 1e-9) < found.ratio <= true
    assert found.first.dtype is dtype
    with exact_blocks.precision():
        refutes(found, lambda z: z @ reals(A).T + arb(1), euclidean(2), centre, radius)
    assert violation(loop, centre, true * (1 + 1e-15), metric=euclidean(2), radius=radius) is None


def test_the_metric_counts():
    # The shear contracts in its own metric, and not in the Euclidean one.
    loop = Loop(Linear(SHEAR), torch.ones(1, 2, dtype=D))
    metric = dual_stein(SHEAR, 0.8)
    z = torch.zeros(1, 2, dtype=D)
    assert violation(loop, z, 0.8, metric=metric, radius=1.0) is None
    assert violation(loop, z, 0.8, metric=euclidean(2), radius=1.0) is not None
    found = violation(loop, z, 0.6, metric=metric, radius=1.0)
    assert found is not None
    refutes(found, lambda v: v @ reals(SHEAR).T + arb(1), metric, z, 1.0)


def test_the_search_finds_the_steep_part_of_a_ball():
    # 1.2 tanh has the slope 1.2 / cosh(z)^2: below 0.9 for z = 0.8, and 1.2 at 0, on the edge of the ball.
    A = 1.2 * torch.eye(2, dtype=D)
    x = torch.zeros(1, 2, dtype=D)
    loop, z = Loop(Tanh(A), x), torch.full((1, 2), 0.8, dtype=D)
    radius = 0.8 * 2**0.5
    found = violation(loop, z, 1.1, metric=euclidean(2), radius=radius)
    assert found is not None
    refutes(found, in_arb(A, x), euclidean(2), z, radius)
    # No pair anywhere has more than 1.2; and within 0.2 of the centre no more than 1.2 / cosh(0.6)^2 = 0.854.
    assert violation(loop, z, 1.2, metric=euclidean(2), radius=10.0) is None
    assert violation(loop, z, 1.2 / math.cosh(0.6) ** 2 * (1 + 1e-12), metric=euclidean(2), radius=0.2) is None
    assert violation(loop, z, 0.7, metric=euclidean(2), radius=0.2) is not None


@pytest.mark.parametrize("A", [0.9 * rotation(80), normal(0.95, 0.3, -0.2)], ids=["spiral", "normal"])
def test_contractions_are_never_refuted(A):
    loop, z = Loop(Tanh(A), 0.1 * randn(1, len(A))), torch.zeros(1, len(A), dtype=D)
    rate = float(torch.linalg.matrix_norm(A, 2)) * (1 + 1e-15)
    assert violation(loop, z, rate, metric=euclidean(len(A)), radius=2.0) is None
    assert violation(loop, z, rate * 0.95, metric=euclidean(len(A)), radius=2.0) is not None


@pytest.mark.parametrize("name", ["plain", "causal, conv1d"])
def test_a_certified_rate_is_not_refuted_and_a_smaller_one_is(name):
    loop, z = small_fprm(name, L_layers=1, hidden_size=4, mlp_multiple=4)
    loop, z = loop.sample(0), z[:1]
    with torch.no_grad():
        for _ in range(400):
            z = loop(z)
    cert = certify(loop, z)
    assert cert.verdict is Verdict.PROVED_ATTRACTING
    claim = {"metric": cert.metric, "radius": cert.radius}
    assert violation(loop, cert.centre, cert.rate, **claim) is None
    found = violation(loop, cert.centre, 0.999 * cert.centre_rate, **claim)
    assert found is not None
    if name == "plain":
        refutes(found, exact_blocks.fprm(loop.block, loop.x[0]), cert.metric, cert.centre, cert.radius)


def test_bad_claims_are_refused():
    loop, z = Loop(Linear(SHEAR), torch.ones(1, 2, dtype=D)), torch.zeros(1, 2, dtype=D)
    with pytest.raises(InputError, match="radius=0"):
        violation(loop, z, 0.5, metric=euclidean(2), radius=0.0)
    with pytest.raises(InputError, match="rate=nan"):
        violation(loop, z, math.nan, metric=euclidean(2), radius=1.0)
    with pytest.raises(InputError, match="one sample"):
        violation(Loop(Linear(SHEAR), torch.ones(2, 2, dtype=D)), z, 0.5, metric=euclidean(2), radius=1.0)
    with pytest.raises(NonFiniteError, match="centre"):
        violation(loop, z * math.nan, 0.5, metric=euclidean(2), radius=1.0)


def test_a_step_that_does_not_move_is_not_refuted():
    loop = Loop(lambda z, x: x + 0 * z, torch.ones(1, 2, dtype=D))
    assert violation(loop, torch.zeros(1, 2, dtype=D), 0.0, metric=euclidean(2), radius=1.0) is None
