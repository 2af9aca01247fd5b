"""Bounds for all states hold from huge, random and attacked states, with zero slack; what grows is not proved bounded.

Judge: tests/exact_blocks.py (Arb at 300 bits). Attacks climb in float64 and are judged in Arb.
"""

from __future__ import annotations

import math

import exact_blocks
import numpy as np
import pytest
import torch
from flint import arb
from problems import FPRM_VARIANTS, randn, small_fprm
from torch import Tensor, nn
from torch.nn import functional as F

from fpcheck.blocks import ContractiveBlock, ContractiveConfig, LinearAttentionGD
from fpcheck.certify.balls import Ball
from fpcheck.certify.fusion import fuse
from fpcheck.certify.globally import GlobalCertificate, GlobalVerdict, InMetric, certify_global
from fpcheck.certify.growth import AbstractMeasure, Euclidean, Growth, LongestToken, growth, whole
from fpcheck.certify.trace import trace
from fpcheck.errors import InputError, UnsupportedOperatorError
from fpcheck.loop import Loop

D = torch.float64
T, W = 3, 4
UNSCALED = {"no scale, peri-norm"}


class Of(nn.Module):
    """F(z; x) = f(module, z) + x."""

    def __init__(self, f, module: nn.Module | None = None) -> None:
        super().__init__()
        self.module, self.f = module, f

    def forward(self, z, x):
        return self.f(self.module, z) + x


def loop_of(f, build=None, seed=0) -> tuple[Loop, Tensor]:
    torch.manual_seed(seed)
    module = None if build is None else build().to(D).eval()
    x, z = randn(1, T, W, seed=seed + 1), randn(1, T, W, seed=seed + 2)
    return Loop(Of(f, module), x), z


def exact_length(measure: AbstractMeasure, z: np.ndarray) -> arb:
    """N of an exact state ``(T, W)``."""
    if isinstance(measure, LongestToken):
        square = None
        for row in z.reshape(-1, measure.width):
            own = (row**2).sum()
            square = own if square is None else square.max(own)
        return square.sqrt()
    if isinstance(measure, InMetric):
        z = exact_blocks.reals(measure.metric.L) @ z.reshape(-1)
    return (z.reshape(-1) ** 2).sum().sqrt()


def starts(shape: tuple[int, ...]) -> list[Tensor]:
    """Zero, tiny, ordinary and huge states, and some with one large entry or token."""
    found = [torch.zeros(shape, dtype=D)]
    for seed, size in enumerate((1e-6, 1.0, 1.0, 30.0, 1e4, 1e12)):
        found.append(size * randn(*shape, seed=seed))
    spike = torch.zeros(shape, dtype=D)
    spike[..., 0] = 1e3
    return [*found, spike, torch.ones(shape, dtype=D)]


def climbed(loop: Loop, z: Tensor, steps: int = 40) -> Tensor:
    """A state near ``z`` whose image is as large as ascent makes it, for states of that size."""
    z = z.clone().requires_grad_(True)
    size = float(z.detach().norm())
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loop(z).norm(), z)
        if not float(gradient.norm()) > 0:
            break
        with torch.no_grad():
            z += 0.2 * size * gradient / gradient.norm()
            z *= size / z.norm()
    return z.detach()


def holds(found: GlobalCertificate, block, loop: Loop, shape: tuple[int, ...], *, attacked: int = 2) -> float:
    """Judge N(F(z)) <= a N(z) + b at many states in Arb; return the largest ratio."""
    worst = 0.0
    states = starts(shape)
    states += [climbed(loop, s) for s in states[2 : 2 + attacked]]
    with exact_blocks.precision():
        for z in states:
            exact = exact_blocks.reals(z[0])
            image = exact_length(found.measure, block(exact))
            bound = arb(found.rate) * exact_length(found.measure, exact) + arb(found.constant)
            assert image <= bound
            worst = max(worst, float(image / bound))
    return worst


@pytest.mark.parametrize("variant", FPRM_VARIANTS)
def test_fprm_blocks_are_bounded_for_all_states_unless_they_hand_on_everything(variant):
    loop, z = small_fprm(variant, hidden_size=4, mlp_multiple=4)
    loop, z = loop.sample(0), z[:1]
    found = certify_global(loop, z)
    if variant in UNSCALED:
        # The partner: h + g(norm(h)) hands on h whole.
        assert found.verdict is GlobalVerdict.UNKNOWN
        assert "a = 1 only, not below 1" in found.reason
        return
    assert found.verdict is GlobalVerdict.PROVED_BOUNDED
    assert found.reason == ""
    assert found.rate < 1
    worst = holds(found, exact_blocks.fprm(loop.block, loop.x[0]), loop, tuple(z.shape))
    # Linear growth is attained at huge states but for the taps of a convolution, which do not all act at once.
    assert worst > 0.3


@pytest.mark.parametrize("variant", [v for v in FPRM_VARIANTS if v not in UNSCALED])
def test_long_orbits_stay_within_what_was_proved(variant):
    loop, z = small_fprm(variant)
    loop, z = loop.sample(0), z[:1]
    found = certify_global(loop, z)
    for state in starts(tuple(z.shape)):
        steps = found.steps_to(state, 1.0)
        now = state
        for k in range(60):
            # The bound is for the exact loop; the running one is off by its rounding, some units of its size.
            assert found.length(now) <= found.length_after(state, k) * (1 + 1e-14)
            if k >= steps:
                assert found.length(now) <= found.radius + 1.0
            now = loop(now).detach()
        assert found.length(now) <= found.radius * (1 + 1e-14)


def test_the_scaling_makes_the_radius_explicit():
    # alpha = 1/2 in every channel, no convolution, K = 2: a = alpha_2 alpha_1^4 = 1/32 (Theorem F1).
    loop, z = small_fprm("plain", L_layers=2)
    found = certify_global(loop.sample(0), z[:1])
    assert 1 / 32 <= found.rate <= (1 + 1e-8) / 32
    assert found.radius <= found.constant / (1 - found.rate) * (1 + 1e-12)


def encoder(**options):
    return lambda: nn.TransformerEncoderLayer(W, 2, 8, batch_first=True, **options)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("alpha", [0.5, 0.95])
def test_a_scaled_encoder_layer_is_bounded(alpha, activation):
    loop, z = loop_of(lambda m, z: alpha * m(z), encoder(norm_first=True, activation=activation))
    found = certify_global(loop, z)
    assert found.verdict is GlobalVerdict.PROVED_BOUNDED
    assert alpha <= found.rate <= alpha * (1 + 1e-8)
    exact, x = exact_blocks.encoder_layer(loop.block.module), exact_blocks.reals(loop.x[0])
    holds(found, lambda s: arb(alpha) * exact(s) + x, loop, tuple(z.shape))


def test_an_encoder_layer_whose_norm_comes_last_is_bounded_and_an_unscaled_one_is_unknown():
    loop, z = loop_of(lambda m, z: m(z), encoder(norm_first=False))
    found = certify_global(loop, z)
    assert found.verdict is GlobalVerdict.PROVED_BOUNDED
    assert found.rate == 0.0
    loop, z = loop_of(lambda m, z: m(z), encoder(norm_first=True))
    assert certify_global(loop, z).verdict is GlobalVerdict.UNKNOWN


def causal(taps: list[float], alpha: float = 0.9):
    """alpha conv(z) + a bounded update, with the taps of tokens t, t - 1, ... the same in all channels."""

    def step(m: nn.Module, z: Tensor) -> Tensor:
        weight = torch.tensor(taps[::-1], dtype=D).expand(W, 1, len(taps))
        return alpha * F.conv1d(F.pad(z.mT, (len(taps) - 1, 0)), weight, groups=W).mT + torch.tanh(z)

    return step


def test_a_causal_convolution_needs_its_own_tap_below_one_and_nothing_else():
    # The taps add up to 2.9, so that the plain norms grow; only the current one is handed on for ever (Theorem F1).
    loop, z = loop_of(causal([0.9, 2.0]))
    found = certify_global(loop, z)
    assert found.verdict is GlobalVerdict.PROVED_BOUNDED
    assert isinstance(found.measure, InMetric)
    assert 0.81 <= found.rate < 1

    def exact(s: np.ndarray) -> np.ndarray:
        before = np.concatenate([exact_blocks.reals(torch.zeros(1, W)), s[:-1]])
        step = arb(0.9) * (arb(0.9) * s + 2 * before) + exact_blocks.tanh(s)
        return step + exact_blocks.reals(loop.x[0])

    holds(found, exact, loop, tuple(z.shape))
    # The partner: a current tap whose gain is above 1 makes the first token grow without end.
    loop, z = loop_of(causal([1.2, 0.0]))
    assert certify_global(loop, z).verdict is GlobalVerdict.UNKNOWN


def test_in_a_metric_the_rest_grows_by_the_metric_too():
    # A = 0.45 I + 0.72 shift has a norm above 1; beside it 0.05 relu(z) grows by 0.05 |L| |L^-1| (Theorem F7).
    step = causal([0.5, 0.8])
    loop, z = loop_of(lambda m, z: step(m, z) + 0.05 * torch.relu(z))
    found = certify_global(loop, z)
    assert found.verdict is GlobalVerdict.PROVED_BOUNDED, found.reason
    assert isinstance(found.measure, InMetric)
    L = found.measure.metric.L
    A = torch.kron(
        0.45 * torch.eye(T, dtype=D) + 0.72 * torch.eye(T, dtype=D).roll(1, 0).tril(-1), torch.eye(W, dtype=D)
    )
    inverse = torch.linalg.inv(L)
    size = [float(torch.linalg.matrix_norm(M, 2)) for M in (L @ A @ inverse, L, inverse)]
    # Two ways to compute it agree to the rounding of either, some 1e-14, and the bound is the larger one.
    assert size[0] + 0.05 * size[1] * size[2] <= found.rate * (1 + 1e-13)
    assert found.rate < 1


def gated(m, z):
    gate, up = m(row_norm(z)).chunk(2, -1)
    return 0.5 * z + torch.nn.functional.silu(gate) * up


def row_norm(z, eps=1e-5):
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)


# What is bounded: block, and the slope that the formulas give.
BOUNDED = {
    "tanh network": (lambda m, z: torch.tanh(m(z)), lambda: nn.Linear(W, W), 0.0),
    "relu of a small matrix": (lambda m, z: F.relu(0.5 * z), None, 0.5),
    "clamp": (lambda m, z: (3 * z).clamp(-1, 2), None, 0.0),
    "gate of the state": (lambda m, z: 0.9 * torch.sigmoid(2 * z) * z, None, 0.9),
    "one minus a gate": (lambda m, z: 0.9 * (1 - torch.sigmoid(z)) * z, None, 0.9),
    "a quotient that stays away from 0": (lambda m, z: z / (2 + torch.cos(z)) * 0.5, None, 0.5),
    "powers of gates": (lambda m, z: 0.5 * z * torch.sigmoid(z) ** 4, None, 0.5),
    "swiglu behind a norm": (gated, lambda: nn.Linear(W, 2 * W), 0.5),
    "attention without a norm": (lambda m, z: 0.9 * ((z @ z.mT).softmax(-1) @ z), None, 0.9),
    "masked attention": (
        lambda m, z: 0.9 * ((z @ z.mT).masked_fill(torch.ones(T, T, dtype=bool).triu(1), -math.inf).softmax(-1) @ z),
        None,
        0.9,
    ),
    "group norm": (lambda m, z: 0.5 * z + m(z), lambda: nn.GroupNorm(3, T), 0.5),
    "layer norm of all": (lambda m, z: 0.5 * z + m(z), lambda: nn.LayerNorm((T, W)), 0.5),
    "convolution behind a norm": (lambda m, z: 0.5 * z + m(row_norm(z)), lambda: nn.Conv1d(T, T, 3, padding=1), 0.5),
    "attention module": (
        lambda m, z: 0.5 * z + m(*[row_norm(z)] * 3, need_weights=False)[0],
        lambda: nn.MultiheadAttention(W, 2, batch_first=True),
        0.5,
    ),
    "handed on and gated": (lambda m, z: 0.4 * z + 0.4 * torch.sigmoid(z) * z, None, 0.8),
    "moves": (lambda m, z: 0.4 * torch.cat([z.roll(1, 1)[..., :2], z.flip(2)[..., 2:]], -1), None, 0.4 * math.sqrt(2)),
    "extremes": (lambda m, z: 0.5 * torch.maximum(z, -z) + row_norm(z).amax(-1, keepdim=True), None, 0.5 * 2**0.5),
    "means": (lambda m, z: 0.9 * z.mean(1, keepdim=True) + row_norm(z).sum((1, 2)), None, 0.9),
    "token mixing": (lambda m, z: 0.25 * torch.tensor([[1.0, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=D) @ z, None, 0.5),
    "chosen": (lambda m, z: torch.where(torch.arange(W) > 1, 0.5 * z, torch.tanh(z)), None, 0.5),
    "a scaled addmm": (
        lambda m, z: torch.addmm(0.25 * z[0], row_norm(z)[0], m.weight, beta=2)[None],
        lambda: nn.Linear(W, W),
        0.5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOUNDED)
def test_every_operator_within_its_bound(name):
    f, build, slope = BOUNDED[name]
    loop, z = loop_of(f, build)
    found = certify_global(loop, z)
    assert found.verdict is GlobalVerdict.PROVED_BOUNDED, found.reason
    # As sharp as the formula: above by the roundings, each enlarged by 2^-30, and no more.
    assert slope * (1 - 1e-12) <= found.rate <= slope * (1 + 1e-7)
    worst = 0.0
    states = [*starts(tuple(z.shape)), *(climbed(loop, s) for s in starts(tuple(z.shape))[2:5])]
    for state in states:
        # Float64 images of ordinary blocks are right to some 1e-14 of their size; the bounds hold with no such room
        # wherever they are not attained, and what is attained is judged in Arb elsewhere.
        image = float(Ball.exact(loop(state).detach()).mid.reshape(-1, W).norm(dim=-1).max())
        if isinstance(found.measure, Euclidean):
            image = float(loop(state).detach().norm())
        bound = found.rate * found.length(state) + found.constant
        assert image <= bound * (1 + 1e-12)
        worst = max(worst, image / bound)
    assert worst > 0.2  # not empty words


def test_bounds_between_operators_hold_block_by_block():
    # Every entry, row and sum of an inner result, for a block with everything in it, from huge to tiny states.
    torch.manual_seed(3)
    wide = nn.Linear(W, 2 * W).to(D)

    def inner(z):
        gate, up = wide(row_norm(z)).chunk(2, -1)
        return torch.cat([0.3 * z, F.silu(gate) * up], 1)

    z = randn(1, T, W)
    graph = fuse(trace(inner, z))
    for measure in (Euclidean(), LongestToken(W)):
        bounds = growth(graph, measure)
        assert isinstance(bounds, Growth)
        held = whole(bounds, measure)
        for state in starts(tuple(z.shape)):
            y = inner(state).detach()
            size = measure.length(Ball.exact(state))
            squares = torch.zeros(len(held.slope), dtype=D).index_add(0, held.block.flatten(), y.flatten() ** 2)
            assert bool((squares.sqrt() <= (held.slope * size + held.const) * (1 + 1e-12)).all())
            assert float(y.norm()) <= (held.total[0] * size + held.total[1]) * (1 + 1e-12)
            rest = y[:, T:]
            if bounds.entry is not None:
                assert bool((rest.abs() <= bounds.entry[:, T:] * (1 + 1e-12)).all())
        # The joined part that grows linearly has no bound of its own.
        assert bool((held.slope.reshape(-1)[:T] > 0.29).all())


# What is not bounded by this theorem, or not at all.
GROWING = {
    "twice": lambda m, z: 2 * z,
    "one and a bounded update": lambda m, z: z + row_norm(z),
    "square": lambda m, z: z * z,
    "linear attention": lambda m, z: 0.1 * (z @ z.mT) @ z,
    "swiglu without a norm": lambda m, z: F.silu(z) * z,
    "exponential": lambda m, z: z.exp(),
    "rotation": lambda m, z: 1.2 * z.roll(1, 2),
    "nilpotent with growth": lambda m, z: 0.9 * z + 0.2 * z.mean(1, keepdim=True),
}


@pytest.mark.parametrize("name", GROWING)
def test_the_partners_are_not_proved_bounded(name):
    loop, z = loop_of(GROWING[name])
    found = certify_global(loop, z)
    assert found.verdict is GlobalVerdict.UNKNOWN
    assert "not below 1" in found.reason or "no a and b" in found.reason
    assert not found.holds(torch.zeros_like(z))
    with pytest.raises(InputError, match="nothing was proved"):
        found.length_after(z, 3)
    with pytest.raises(InputError, match="nothing was proved"):
        found.steps_to(z, 1.0)


# Not continuous, or not defined for every state: no fixed point follows from boundedness.
REFUSED = {
    "a norm without eps": (lambda m, z: row_norm(z, 0.0), "eps=0"),
    "division by the state": (lambda m, z: torch.tanh(1 / z), "known to be defined"),
    "logarithm": (lambda m, z: torch.tanh((z * z).log()), "known to be defined"),
    "root": (lambda m, z: torch.tanh(z.sqrt()), "known to be defined"),
    "softplus, which jumps in torch": (lambda m, z: torch.tanh(F.softplus(z)), "continuous"),
    "whole numbers": (lambda m, z: 0.5 * z.round(), "round"),
    "comparison": (lambda m, z: torch.tanh(z * (z > 0)), "gt"),
    "division that rounds": (lambda m, z: torch.div(z, 2.0, rounding_mode="floor"), "div"),
    "bounds that are tensors": (lambda m, z: z.clamp(min=torch.tanh(z)), "tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_jump_is_refused_by_name(name):
    f, message = REFUSED[name]
    torch.manual_seed(0)
    loop = Loop(Of(f), torch.zeros(1, T, W, dtype=D), check=False)
    with pytest.raises(UnsupportedOperatorError, match=message):
        certify_global(loop, torch.ones(1, T, W, dtype=D))


def contractive(**more) -> tuple[Loop, Tensor]:
    torch.manual_seed(0)
    config = ContractiveConfig(
        vocab_size=4, seq_len=T, hidden_size=W, num_heads=2, mlp_multiple=4, **({"rate": 0.8} | more)
    )
    block = ContractiveBlock(config).to(D).requires_grad_(False)
    for i, parameter in enumerate(block.parameters()):
        parameter += 0.5 * randn(*parameter.shape, seed=i)
    return Loop(block, randn(1, T, W, seed=1)), randn(1, T, W, seed=2)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "more",
    [
        {"mlp": "plain", "rate": 0.99},
        pytest.param({}, marks=SLOW),
        pytest.param({"conv_kernel_size": 2, "causal": True}, marks=SLOW),
    ],
)
def test_a_contractive_block_is_certified_for_all_states(more):
    loop, z = contractive(**more)
    found = certify_global(loop, z)
    assert found.verdict is GlobalVerdict.PROVED_CONTRACTING
    assert found.rate == loop.block.lipschitz_bound() <= loop.block.config.rate
    assert isinstance(found.measure, LongestToken)
    now = torch.zeros_like(z)
    for _ in range(400):
        now = loop(now)
    assert found.holds(now)
    for state in starts(tuple(z.shape)):
        first = found.measure.length(Ball.exact(loop(state)) - Ball.exact(state))
        held = state
        for k in range(30):
            # The float fixed point is off by its rounding over 1 - rate.
            error = found.measure.length(Ball.exact(held) - Ball.exact(now))
            assert error <= found.error_bound(first, k) + 1e-13
            assert found.length(held) <= found.length_after(state, k)
            held = loop(held)


@pytest.mark.slow
def test_damped_and_iterated_contractions_have_their_own_rates():
    loop, z = contractive()
    rate = certify_global(loop, z).rate
    half = certify_global(loop.damped(0.5), z)
    assert half.verdict is GlobalVerdict.PROVED_CONTRACTING
    assert 0.5 + 0.5 * rate <= half.rate <= (0.5 + 0.5 * rate) * (1 + 1e-15)
    twice = certify_global(loop.iterated(2), z)
    assert rate**2 <= twice.rate <= rate**2 * (1 + 1e-15)
    # Over-relaxed by 1.9: |1 - s| + s q is above 1, and the block is bounded by no theorem for it.
    assert certify_global(loop.damped(1.9), z).verdict is not GlobalVerdict.PROVED_CONTRACTING


def test_a_subclass_is_not_taken_for_the_block():
    class Louder(ContractiveBlock):
        def forward(self, z, x):
            return 3 * super().forward(z, x)

    loop, z = contractive(mlp="plain")
    block = Louder(loop.block.config).to(D)
    found = certify_global(Loop(block, loop.x), z)
    assert found.verdict is not GlobalVerdict.PROVED_CONTRACTING


def test_linear_attention_is_a_linear_map():
    # Its slope is the norm of I - eta H; where that is below 1 the loop is bounded, else unknown.
    inputs, targets = randn(1, 5, 3, seed=1), randn(1, 5, 2, seed=2)
    z = randn(1, 2, 3, seed=3)
    for eta, proved in ((0.3, True), (9.0, False)):
        block = LinearAttentionGD(eta).to(D).requires_grad_(False)
        loop = Loop(block, (inputs, targets), z0=z)
        found = certify_global(loop, z)
        assert (found.verdict is GlobalVerdict.PROVED_BOUNDED) == proved
        radius = float(block.radius((inputs, targets)).max())
        assert (radius < 1) == proved
        assert found.rate >= radius * (1 - 1e-12)


def test_bounds_of_steps_and_lengths_by_hand():
    # F(z) = z/2 + 1 on one token of one channel: R = 2, and 34 is 32 too much: after 5 steps, 1.
    loop = Loop(Of(lambda m, z: 0.5 * z), torch.ones(1, 1, 1, dtype=D))
    start = torch.full((1, 1, 1), 34.0, dtype=D)
    found = certify_global(loop, start)
    assert 2 <= found.radius <= 2 * (1 + 1e-8)
    assert 3 <= found.length_after(start, 5) <= 3 * (1 + 1e-7)
    assert found.steps_to(start, 1.001) == 5
    assert found.steps_to(start, 0.999) == 6
    assert found.steps_to(torch.zeros(1, 1, 1), 1e-9) == 0
    with pytest.raises(InputError, match="distance"):
        found.steps_to(start, 0.0)
    with pytest.raises(InputError, match="steps"):
        found.length_after(start, -1)
    with pytest.raises(InputError, match="PROVED_CONTRACTING"):
        found.error_bound(1.0, 1)
    with pytest.raises(InputError, match="one sample"):
        certify_global(Loop(Of(lambda m, z: 0.5 * z), torch.ones(2, 1, 1)), torch.ones(2, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_weights_count_as_the_numbers_they_are(dtype):
    loop, z = small_fprm("plain", hidden_size=4, mlp_multiple=4)
    low, x = loop.block.to(dtype), loop.x[:1].to(dtype)
    found = certify_global(Loop(low, x), z[:1].to(dtype))
    wide = certify_global(Loop(low.to(D), x.to(D)), z[:1])
    assert found.rate == wide.rate
    assert found.constant == wide.constant
