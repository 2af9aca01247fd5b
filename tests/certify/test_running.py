"""The running loop stays where it is said to stay: each step's rounding against the exact step, without slack.

Exact steps come from the formulas at 300 bits (`exact_blocks`), for the stored weights. One step's distance from it, in
the metric and in exact arithmetic, is at most phi; long runs stay in the ball and end within the floor.
"""

from __future__ import annotations

import math

import exact_blocks
import numpy as np
import pytest
import torch
from exact_blocks import reals
from flint import arb
from problems import Linear, normal, randn, small_fprm
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.curvature import linearise
from fpcheck.certify.enclosure import Enclosure, enclose, enclose_graph, evaluate
from fpcheck.certify.fusion import fuse
from fpcheck.certify.roundings import Arithmetic
from fpcheck.certify.running import Running, running
from fpcheck.certify.search import certify
from fpcheck.certify.trace import trace
from fpcheck.errors import InputError
from fpcheck.loop import Loop

D, S, H = torch.float64, torch.float32, torch.bfloat16
T, W = 3, 4


class Step(nn.Module):
    """F(z; x) = f(z, weights) + x."""

    def __init__(self, f, *weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.f = f

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.f(z, *self.weights) + x


def settled(loop: Loop, z: Tensor) -> Tensor:
    with torch.no_grad():
        for _ in range(300):
            z = loop(z)
    return z


def tanh_loop(dtype: torch.dtype) -> tuple[Loop, Tensor]:
    loop = Loop(Step(lambda z, A: torch.tanh(z) @ A.mT, normal(0.5, -0.6, 0.2).to(dtype)), randn(1, 3).to(dtype))
    return loop, torch.zeros(1, 3, dtype=dtype)


def damped_loop(dtype: torch.dtype) -> tuple[Loop, Tensor]:
    loop, z = tanh_loop(dtype)
    return loop.damped(0.3), z  # 0.3 is no float: the running loop rounds it


def attention(dtype: torch.dtype) -> tuple[Loop, Tensor]:
    def f(z, A):
        h = z @ A.mT
        return 0.4 * F.scaled_dot_product_attention(h[:, None], h[:, None], z[:, None])[:, 0]

    return Loop(Step(f, (0.7 * randn(W, W, seed=3)).to(dtype)), randn(1, T, W).to(dtype)), randn(1, T, W, seed=1).to(
        dtype
    )


def anew(dtype: torch.dtype) -> tuple[Loop, Tensor]:
    """A gate, a scale and a shift that the loop computes anew at each step, from weights only."""

    def f(z, A, b, c):
        scale = torch.sigmoid(b) * 0.7
        moved = F.linear(z, torch.tanh(A), torch.exp(c))
        return torch.cat([scale * torch.tanh(moved)[..., :2], 0.1 * F.silu(z[..., 2:]) * z[..., :2]], -1)

    weights = ((0.5 * randn(W, W, seed=5)).to(dtype), randn(1, seed=6).to(dtype), 0.3 * randn(W, seed=7).to(dtype))
    return Loop(Step(f, *weights), 0.5 * randn(1, T, W).to(dtype)), torch.zeros(1, T, W, dtype=dtype)


def cancelling(dtype: torch.dtype) -> tuple[Loop, Tensor]:
    """A shift of 1 that is computed at each step as a difference of 1,600 and 1,599 or so, with their rounding."""
    weights = torch.tensor([7.37700], dtype=D).to(dtype), torch.tensor([7.37638], dtype=D).to(dtype)
    return Loop(
        Step(lambda z, a, b: 0.5 * torch.tanh(z) + (a.exp() - b.exp()), *weights), torch.zeros(1, 3, dtype=dtype)
    ), torch.ones(1, 3, dtype=dtype)


def fprm(variant: str, dtype: torch.dtype, **more) -> tuple[Loop, Tensor]:
    loop, z = small_fprm(variant, L_layers=1, hidden_size=4, mlp_multiple=4, **more)
    loop, z = loop.sample(0), z[:1]
    return Loop(loop.block.to(dtype), loop.x.to(dtype)), z.to(dtype)


SLOW = pytest.mark.slow
LOOPS = {
    "tanh": tanh_loop,
    "damped": damped_loop,
    "attention": attention,
    "anew": anew,
    "cancelling": cancelling,
    "fprm, plain": lambda dtype: fprm("plain", dtype),
    "fprm, causal": lambda dtype: fprm("causal, conv1d", dtype),
}


def enclosed(loop: Loop, cert: Certificate, dtype: torch.dtype) -> Enclosure:
    """At the certificate's centre, which is no state of the running loop's dtype."""
    return enclose_graph(fuse(trace(loop, cert.centre.to(dtype))), cert.centre)


_KNOWN: dict[tuple[str, torch.dtype], tuple[Loop, Certificate, Running]] = {}


def known(name: str, dtype: torch.dtype) -> tuple[Loop, Certificate, Running]:
    if (name, dtype) not in _KNOWN:
        loop, z = LOOPS[name](dtype)
        cert = certify(loop, settled(loop, z))
        assert cert.verdict is Verdict.PROVED_ATTRACTING, cert.reason
        held = enclosed(loop, cert, dtype)
        _KNOWN[name, dtype] = loop, cert, running(held, linearise(held), cert, Arithmetic(dtype))
    return _KNOWN[name, dtype]


def size(metric, v: Tensor) -> float:
    return float((metric.L @ v.reshape(-1).to(D)).norm())


def states(cert: Certificate, radius: float, dtype: torch.dtype, count: int) -> list[Tensor]:
    """Float states of the ball, at its edge and inside; rounding to the dtype is allowed for."""
    found = []
    for seed in range(count):
        delta = randn(cert.centre.numel(), seed=seed)
        share = (0.0, 0.3, 0.999)[seed % 3]
        move = cert.metric.inverse @ (share * radius * delta / delta.norm())
        state = (cert.centre + move.reshape(cert.centre.shape)).to(dtype)
        if cert.distance(state) <= radius:
            found.append(state)
    assert len(found) > count // 2
    return found


@pytest.mark.parametrize("dtype", [S, pytest.param(D, marks=SLOW)], ids=["float32", "float64"])
@pytest.mark.parametrize("name", LOOPS)
def test_no_computed_step_is_further_from_the_exact_one_than_phi(name, dtype):
    loop, cert, found = known(name, dtype)
    assert found.claimed, found.reason
    assert found.error < 1e7 * torch.finfo(dtype).eps
    assert 0 < found.radius <= cert.radius
    graph = enclosed(loop, cert, dtype).graph
    worst = 0.0
    for state in states(cert, found.radius, dtype, 9):
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            computed = loop(state)
        exact = evaluate(graph, state)[graph.output]
        with exact_blocks.precision():
            pairs = zip(exact.mid.flatten().tolist(), exact.rad.flatten().tolist(), strict=True)
            gap = reals(computed).flatten() - np.array([arb(m, r) for m, r in pairs])
            moved = [arb(v.abs_upper()) for v in reals(cert.metric.L) @ gap]
            length = sum((v * v for v in moved), arb(0)).sqrt()
            assert length <= arb(found.error)
            worst = max(worst, float(length.mid()) / found.error)
    print(name, dtype, f"{worst:.4f}")
    # A worst case over all roundings, of which a run sees random ones; a bound a thousand times as large would be none.
    assert worst > 1e-4


def test_the_exact_step_of_the_judge_is_that_of_the_formulas():
    loop, cert, _ = known("fprm, plain", S)
    graph = enclosed(loop, cert, S).graph
    state = states(cert, cert.radius, S, 3)[0]
    value = evaluate(graph, state)[graph.output]
    with exact_blocks.precision():
        exact = exact_blocks.fprm(loop.block, loop.x[0])(reals(state[0]))
        assert exact_blocks.contains(value.mid, value.rad, exact)


def runs(name: str, loop: Loop, cert: Certificate, found: Running, dtype: torch.dtype) -> None:
    exact = Loop(loop.block.to(D), loop.x.to(D)) if dtype is not D else loop
    star = settled(exact.damped(0.3) if name == "damped" else exact, cert.centre)
    loop.block.to(dtype)
    for state in states(cert, found.radius, dtype, 3):
        z = state
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            for _ in range(100):
                z = loop(z)
                assert cert.distance(z) <= found.radius
        assert size(cert.metric, z.to(D) - star) <= found.floor
    assert found.floor < found.radius


@pytest.mark.parametrize("name", LOOPS)
def test_runs_stay_in_the_ball_and_end_within_the_floor(name):
    runs(name, *known(name, S), S)


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW if "fprm" in name else ()) for name in LOOPS])
def test_bfloat16_gets_no_claim_or_one_that_holds(name):
    loop, z = LOOPS[name](H)
    cert = certify(loop, settled(loop, z))
    held = enclosed(loop, cert, H)
    found = running(held, linearise(held), cert, Arithmetic(H))
    # 2^-9 of the state at each operator: only wide balls of small blocks have room for that.
    assert found.claimed == (name in ("tanh", "damped", "anew"))
    if found.claimed:
        runs(name, loop, cert, found, H)
    else:
        assert found.floor == math.inf
        assert "phi" in found.reason
        assert "wider dtype" in found.reason


def test_a_slow_rate_multiplies_the_rounding():
    # A rate of 1 - 1e-6 multiplies each step's rounding by 1e6.
    A = (1 - 1e-6) * torch.eye(2, dtype=D)
    loop = Loop(Linear(A), torch.full((1, 2), 1e-6, dtype=D))
    cert = certify(loop, torch.ones(1, 2, dtype=D))
    held = enclose(loop, cert.centre)
    wide = running(held, linearise(held), cert, Arithmetic(D))
    assert wide.claimed
    assert wide.floor > 1e6 * 2.0**-53  # the state is 1, and a step loses at least half a unit of it


def test_what_has_no_rule_gets_no_claim_and_is_named():
    loop = Loop(Step(lambda z, w: 0.3 * F.layer_norm(z, (W,), w), torch.ones(W, dtype=D)), randn(1, T, W))
    cert = certify(loop, settled(loop, randn(1, T, W, seed=1)))
    held = enclose(loop, cert.centre)
    found = running(held, linearise(held), cert, Arithmetic(D))
    assert not found.claimed
    assert "centred_rms" in found.reason
    assert "test_running.py" in found.reason


def test_without_attraction_there_is_nothing_to_say():
    loop = Loop(Linear(1.5 * torch.eye(2, dtype=D)), torch.ones(1, 2, dtype=D))
    cert = certify(loop, torch.full((1, 2), -2.0, dtype=D))
    held = enclose(loop, cert.centre)
    with pytest.raises(InputError, match="verdict=proved to exist"):
        running(held, linearise(held), cert, Arithmetic(D))


def test_assumptions_are_said():
    said = " ".join(Arithmetic(S, ulps=7).assumptions)
    for part in ("torch.float32", "7 units", "TF32", "SDPBackend.MATH"):
        assert part in said
    with pytest.raises(InputError, match=r"dtype=torch\.int64"):
        Arithmetic(torch.int64)
    with pytest.raises(InputError, match="ulps=0"):
        Arithmetic(S, ulps=0)
