"""Enclosed values and Jacobians contain the exact ones, are near them, and what has no rule is refused by name.

Judges: tests/exact_blocks.py (Arb at 300 bits, written from the formulas) with zero slack, for the reference blocks and
torch's encoder layer; torch's own float64 derivatives for every operator, with the rounding that these carry.
"""

import re

import exact_blocks
import numpy as np
import pytest
import torch
from flint import arb
from hypothesis import given
from hypothesis import strategies as st
from problems import FPRM_VARIANTS, randn, small_fprm
from strategies import fprm_configs, looped_model
from torch import nn
from torch.func import jacrev
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpcheck.blocks import ContractiveBlock, ContractiveConfig, LinearAttentionGD, TRMConfig, TRMModel
from fpcheck.certify.enclosure import Enclosure, enclose
from fpcheck.certify.rounding import U
from fpcheck.errors import InputError, NonFiniteError, UnsupportedOperatorError
from fpcheck.loop import Loop

D = torch.float64
T, W = 3, 4  # tokens and width of the small states
FUTURE = torch.ones(T, T, dtype=torch.bool).triu(1)
MINUS = torch.zeros(T, T, dtype=D).masked_fill(FUTURE, -torch.inf)


class Of(nn.Module):
    """F(z; x) = f(module, z) + x."""

    def __init__(self, f, module: nn.Module | None = None) -> None:
        super().__init__()
        self.module, self.f = module, f

    def forward(self, z, x):
        return self.f(self.module, z) + x


def loop_of(f, build=None, dtype=D, shape=(T, W), seed=0) -> tuple[Loop, torch.Tensor]:
    torch.manual_seed(seed)
    module = None if build is None else build().to(dtype).eval()
    x, z = randn(1, *shape, seed=seed + 1).to(dtype), randn(1, *shape, seed=seed + 2).to(dtype)
    return Loop(Of(f, module), x), z


def row_norm(z, eps):
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)


def heads(z):
    return z.view(1, T, 2, W // 2).transpose(1, 2)


def written(z):
    """Assigning to part of a copy."""
    z = z.clone()
    z[:, 0] = 2 * z[:, 1]
    return z


def with_buffer(z):
    """A mask built by writing into zeros."""
    mask = torch.zeros(T, T, dtype=D)
    mask[0, 1] = -torch.inf
    return (z @ z.mT + mask).softmax(-1) @ z


def shifted_twice(z):
    """alpha times eps, which is not eps."""
    return z * torch.rsqrt(torch.add(z.square().mean(-1, keepdim=True), 0.3, alpha=2))


def encoder(**options):
    return lambda: nn.TransformerEncoderLayer(W, 2, 8, batch_first=True, **options)


ATTENTION = lambda: nn.MultiheadAttention(W, 2, batch_first=True)  # noqa: E731
# Name: block, and what builds its module.
OPERATORS = {
    "linear": (lambda m, z: m(z), lambda: nn.Linear(W, W)),
    "linear, no bias": (lambda m, z: m(z), lambda: nn.Linear(W, W, bias=False)),
    "layer norm": (lambda m, z: m(z), lambda: nn.LayerNorm(W)),
    "layer norm of all": (lambda m, z: m(z), lambda: nn.LayerNorm((T, W))),
    "layer norm, plain": (lambda m, z: m(z), lambda: nn.LayerNorm(W, elementwise_affine=False)),
    "rms norm": (lambda m, z: m(z), lambda: nn.RMSNorm(W, eps=1e-3)),
    "rms norm, written": (lambda m, z: row_norm(z, 1e-5), None),
    "rms norm, quotient": (lambda m, z: z / torch.sqrt(z.square().mean(-1, keepdim=True) + 1e-5), None),
    "rms norm, negative shift": (lambda m, z: row_norm(z, -0.01), None),
    "rms norm, over positions": (lambda m, z: z * torch.rsqrt((z * z).mean(1, keepdim=True) + 1e-5), None),
    "rms norm, alpha": (lambda m, z: shifted_twice(z), None),
    "group norm, one": (lambda m, z: m(z), lambda: nn.GroupNorm(1, T)),
    "group norm, three": (lambda m, z: m(z), lambda: nn.GroupNorm(3, T)),
    "attention": (lambda m, z: m(z, z, z, need_weights=False)[0], ATTENTION),
    "attention, weights": (lambda m, z: m(z, z, z)[0], ATTENTION),
    "attention, masked": (lambda m, z: m(z, z, z, need_weights=False, attn_mask=FUTURE)[0], ATTENTION),
    "attention, weights, masked": (lambda m, z: m(z, z, z, attn_mask=MINUS)[0], ATTENTION),
    "encoder, pre-norm": (lambda m, z: 0.5 * m(z), encoder(norm_first=True)),
    "encoder, post-norm": (lambda m, z: m(z), encoder(norm_first=False, activation="gelu")),
    "encoder, causal": (lambda m, z: m(z, src_mask=MINUS, is_causal=True), encoder(norm_first=True, activation="gelu")),
    "sdpa": (lambda m, z: F.scaled_dot_product_attention(*[heads(z)] * 3).transpose(1, 2).reshape(1, T, W), None),
    "sdpa, causal": (lambda m, z: F.scaled_dot_product_attention(*[z[:, None]] * 3, is_causal=True)[:, 0], None),
    "sdpa, mask": (lambda m, z: F.scaled_dot_product_attention(*[z[:, None]] * 3, attn_mask=~FUTURE)[:, 0], None),
    "sdpa, scale": (lambda m, z: F.scaled_dot_product_attention(*[z[:, None]] * 3, scale=0.3)[:, 0], None),
    "gelu": (lambda m, z: F.gelu(2 * z), None),
    "gelu, tanh": (lambda m, z: F.gelu(2 * z, approximate="tanh"), None),
    "silu": (lambda m, z: F.silu(3 * z), None),
    "relu": (lambda m, z: F.relu(z), None),
    "tanh": (lambda m, z: torch.tanh(z), None),
    "sigmoid": (lambda m, z: torch.sigmoid(z), None),
    "exp, log, sin, cos": (lambda m, z: (1 + z.exp()).log() + z.sin() * z.cos(), None),
    "powers at 0": (lambda m, z: (0 * z) ** 3 + (z - z) ** 2 + torch.tanh(0 * z) + (2 + z) ** -2, None),
    "erf, powers, roots": (
        lambda m, z: z.erf() + z**3 + (1 + z**2) ** 0.5 + (1 + z.square()).sqrt().reciprocal(),
        None,
    ),
    "abs, clamp": (
        lambda m, z: z.abs() + z.clamp(-0.5, 0.7) + z.clamp(min=0.1) + z.clamp(max=0.4) + z.clamp_max(0.2),
        None,
    ),
    "softplus": (lambda m, z: F.softplus(z) + F.softplus(30 * z) + F.softplus(z, 2.0, 1.0), None),
    "expm1, log1p": (lambda m, z: torch.expm1(z) + torch.log1p(z * z), None),
    "variance": (lambda m, z: z * z.var(-1, keepdim=True) + z.var((1, 2), correction=0) + z.std(1).unsqueeze(1), None),
    "extremes": (lambda m, z: z.amax(-1, keepdim=True) - z.amin((1, 2)) + z * z.amax(1).unsqueeze(1), None),
    "larger, smaller": (lambda m, z: torch.maximum(z, z.flip(-1)) * torch.minimum(z, 0.1 * z[:, :1]), None),
    "log softmax": (lambda m, z: (2 * z).log_softmax(-1) + z.log_softmax(1), None),
    "softmax": (lambda m, z: (2 * z).softmax(-1), None),
    "softmax over positions": (lambda m, z: z.softmax(1), None),
    "softmax of mask": (lambda m, z: (z @ z.mT).masked_fill(FUTURE, -torch.inf).softmax(-1) @ z, None),
    "swiglu": (lambda m, z: F.silu(z[..., :2]).repeat(1, 1, 2) * z, None),
    "gates": (lambda m, z: torch.tanh(z) * z + F.gelu(z) * z + F.gelu(z, approximate="tanh") * z.flip(-1), None),
    "embedding": (lambda m, z: z * m(torch.tensor([[1, 2, 4]])), lambda: nn.Embedding(5, W)),
    "conv1d": (lambda m, z: m(z), lambda: nn.Conv1d(T, T, 3, padding=1)),
    "conv1d, groups, dilated": (
        lambda m, z: m(z.mT).mT,
        lambda: nn.Conv1d(W, W, 2, padding=1, groups=2, dilation=2),
    ),
    "conv1d, causal": (lambda m, z: m(z.mT)[..., :T].mT, lambda: nn.Conv1d(W, W, 3, padding=2, groups=W)),
    "conv2d": (lambda m, z: m(z[:, None])[:, 0], lambda: nn.Conv2d(1, 1, 3, padding=1)),
    "conv2d, stride": (
        lambda m, z: m(z[:, None]).reshape(1, 1, 6).mean(-1, keepdim=True) * z,
        lambda: nn.Conv2d(1, 3, (3, 2), stride=(1, 2), bias=False),
    ),
    "einsum": (lambda m, z: torch.einsum("bij,bkj,bkl->bil", z, z, z), None),
    "sums": (
        lambda m, z: torch.add(z, z * z, alpha=2) - torch.rsub(z, 3) + z.sum() + z.mean((0, 1)) - z.sum(-1, True),
        None,
    ),
    "baddbmm": (lambda m, z: torch.baddbmm(z, z @ z.mT, z, beta=0.5, alpha=0.25), None),
    "quotient": (lambda m, z: z / (2 + z.flip(1).cos()) + 1 / (3 + z.sin()), None),
    "moves": (
        lambda m, z: torch.cat([z.roll(1, 1)[..., :2], z.flip(2)[..., 2:]], -1) + torch.stack(z.unbind(1)[::-1], 1),
        None,
    ),
    "pad, repeat, tril": (lambda m, z: F.pad(z, (1, 0))[..., :W] + (z @ z.mT).tril() @ z.repeat(1, 2, 1)[:, 1:4], None),
    "padding with a number": (lambda m, z: F.pad(z, (0, 1), value=0.7)[..., 1:], None),
    "choice": (lambda m, z: torch.where(FUTURE[:, :1], z, z * z).masked_fill(FUTURE[1:2, :].mT, 0.5), None),
    "created": (
        lambda m, z: (z + torch.full((W,), 0.1)) * torch.arange(W) + torch.zeros_like(z) + z.new_ones(T, W),
        None,
    ),
    "written": (lambda m, z: written(z), None),
    "mask by writing": (lambda m, z: with_buffer(z), None),
}  # fmt: skip


def derivative(loop: Loop, z: torch.Tensor) -> torch.Tensor:
    """Torch's own, in float64."""
    with sdpa_kernel(SDPBackend.MATH):
        return jacrev(lambda q: loop(q.reshape(z.shape)).reshape(-1))(z.reshape(-1)).detach()


def is_near(held: Enclosure) -> None:
    """What makes an enclosure useful: one rounding per value, and a Jacobian known to ten digits."""
    mid, rad = held.value.mid, held.value.rad
    # 200 bits lose some 40 on the way and are then rounded once to 53.
    assert bool((rad <= 1.01 * U * mid.abs() + 2.0**-140).all())
    assert held.jacobian_error <= 1e-10 * (1 + float(held.jacobian.norm()))


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_against_torch(name):
    loop, z = loop_of(*OPERATORS[name])
    held = enclose(loop, z)
    is_near(held)
    # Torch's value is wrong by some tens of roundings of the largest number on its way, here below 100.
    value = loop(z).detach()
    assert float((value - held.value.mid).abs().max()) <= 64 * U * 100
    # Its Jacobian likewise: sums of at most 12 entries, a few operators deep.
    J = derivative(loop, z)
    room = 256 * U * (1 + float(J.norm()))
    assert float((J - held.jacobian).norm()) <= held.jacobian_error + room
    # Reverse products are written out separately from forward ones; both enclose the same matrix.
    out = held.graph.output
    backward = held.backward.tangents[0]
    pulled = torch.zeros_like(held.jacobian) if backward is None else backward.mid.reshape(held.jacobian.shape)
    # The state's cotangents for each direction of the result are the rows of J.
    apart = float((pulled - held.jacobian).norm())
    assert apart <= (held.forward.error[out] + held.backward.error[0]) * (1 + 1e-9) + 2.0**-1000
    assert apart <= 1e-10 * (1 + float(J.norm()))  # and the bounds that allow for it are not merely wide


def test_the_partner_a_slightly_different_map_is_not_contained():
    # What the tests above could not see if they were too wide: one weight moved by 2^-45 of itself.
    loop, z = loop_of(*OPERATORS["encoder, pre-norm"])
    held = enclose(loop, z)
    with torch.no_grad():
        loop.block.module.linear2.weight[0, 0] *= 1 + 2.0**-45
    moved = enclose(loop, z)
    gap = (moved.value.mid - held.value.mid).abs()
    assert bool((gap > held.value.rad + moved.value.rad).any())
    assert float((moved.jacobian - held.jacobian).norm()) > 0


# Against 300 bits, with zero slack.


def judge(held: Enclosure, block, z: torch.Tensor, *, near: bool = True) -> None:
    with exact_blocks.precision():
        state = exact_blocks.reals(z[0])
        assert exact_blocks.contains(held.value.mid, held.value.rad, block(state))
        J = exact_blocks.jacobian(block, state)
        assert exact_blocks.distance(held.jacobian, J) <= held.jacobian_error
        pulled = held.backward.tangents[0]
        assert exact_blocks.distance(pulled.mid.reshape(J.shape), J) <= pulled.error
        # The partner: a Jacobian that is off by a little more than the bound is not within it.
        wrong = held.jacobian.clone()
        wrong[0, 0] += 2 * held.jacobian_error
        assert exact_blocks.distance(wrong, J) > held.jacobian_error
    if near:
        is_near(held)


@pytest.mark.parametrize("variant", FPRM_VARIANTS)
def test_fprm_in_every_variant(variant):
    loop, z = small_fprm(variant, hidden_size=4, mlp_multiple=4)
    loop, z = loop.sample(0), z[:1]
    judge(enclose(loop, z), exact_blocks.fprm(loop.block, loop.x[0]), z)


@pytest.mark.parametrize("more", [{"causal": True}, {"conv_type": "conv1d", "conv_bias": True}, {"L_layers": 1}])
def test_fprm_with_more_options(more):
    loop, z = small_fprm("input-dependent, post-norm", hidden_size=4, mlp_multiple=4, norm_placement="input", **more)
    loop, z = loop.sample(1), z[1:]
    judge(enclose(loop, z), exact_blocks.fprm(loop.block, loop.x[0]), z)


@pytest.mark.slow
@given(
    config=fprm_configs(hidden_size=4, seq_len=4, num_heads=st.sampled_from([1, 2])),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-3, 1.0, 10.0]),
)
def test_fprm_in_any_configuration(config, seed, size):
    model = looped_model(config, seed).to(D).requires_grad_(False)
    puzzles = torch.tensor([1]) if config.puzzle_emb_ndim else None
    x = model.injection(torch.tensor([[1, 2, 3, 4]]), puzzles).detach().to(D)
    # Far from a settled state, with weights of any size, the enclosure may be wide; it must hold.
    z = size * randn(*x.shape, seed=seed)
    judge(enclose(Loop(model.block, x), z), exact_blocks.fprm(model.block, x[0]), z, near=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_weights_are_the_real_numbers_that_their_floats_denote(dtype):
    # The certified map is that of real arithmetic: the same for a float32 loop and its float64 copy, bit for bit.
    loop, z = small_fprm("plain", hidden_size=4, mlp_multiple=4, norm_in_float32=True)
    low = loop.block.to(dtype)
    x, z = loop.x[:1].to(dtype), z[:1].to(dtype)
    held = enclose(Loop(low, x), z)
    judge(held, exact_blocks.fprm(low, x[0]), z)
    wide = enclose(Loop(low.to(D), x.to(D)), z.to(D))
    assert torch.equal(held.value.mid, wide.value.mid)
    assert torch.equal(held.jacobian, wide.jacobian)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("causal", [True, False])
def test_encoder_layers(norm_first, activation, causal):
    loop, z = loop_of(
        lambda m, z: m(z, src_mask=MINUS if causal else None) - z, encoder(norm_first=norm_first, activation=activation)
    )
    layer, x = loop.block.module, loop.x[0]
    with torch.no_grad():  # gains and shifts that are not 1 and 0
        for i, parameter in enumerate(layer.parameters()):
            parameter += 0.1 * randn(*parameter.shape, seed=i)
    exact = exact_blocks.encoder_layer(layer, causal=causal)
    judge(enclose(loop, z), lambda s: exact(s) - s + exact_blocks.reals(x), z)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "tanh", "sigmoid"])
def test_functions_over_their_range(name):
    # From where they vanish to where they saturate; GELU in its erf form has no relative bound below -8 in torch.
    torch_name = {"gelu_tanh": lambda z: F.gelu(z, approximate="tanh"), "gelu": F.gelu, "silu": F.silu}
    f = torch_name.get(name) or getattr(torch, name)
    loop = Loop(Of(lambda m, z: f(z)), torch.zeros(1, 12, dtype=D))
    z = torch.tensor([[-30.0, -9.5, -6.0, -2.0, -1.27, -1e-8, 0.0, 1e-300, 0.7, 3.0, 9.0, 40.0]], dtype=D)
    exact = getattr(exact_blocks, name)
    judge(enclose(loop, z), lambda s: exact(s), z)


# Block and its formula for Arb; a column of the state is passed over whole.
JUDGED = {
    "clamp": (lambda z: z.clamp(-0.5, 0.75), exact_blocks.entrywise(lambda x: x.max(arb(-0.5)).min(arb(0.75)))),
    "crossed clamp": (lambda z: z.clamp(2.0, 1.0), exact_blocks.entrywise(lambda x: arb(1))),
    "abs": (lambda z: z.abs(), exact_blocks.entrywise(abs)),
    "softplus": (lambda z: F.softplus(z), exact_blocks.entrywise(lambda x: (1 + x.exp()).log() if x <= 20 else x)),
    "var": (lambda z: z.var(-1, keepdim=True) * z, lambda z: z * (((z - z.mean()) ** 2).sum() / arb(z.size - 1))),
    "std": (lambda z: z.std(-1, keepdim=True, correction=0) * z, lambda z: z * np.sqrt(((z - z.mean()) ** 2).mean())),
    "amax": (lambda z: z.amax(-1, keepdim=True) * z, lambda z: z * max(z.flatten())),
    "maximum": (lambda z: torch.maximum(z, 2 * z), exact_blocks.entrywise(lambda x: x.max(2 * x))),
    "log softmax": (lambda z: z.log_softmax(-1), lambda z: np.log(exact_blocks.softmax(z))),
}


@pytest.mark.parametrize("name", JUDGED)
def test_rules_against_300_bits(name):
    f, exact = JUDGED[name]
    z = torch.tensor([[-3.0, -0.25, 0.5, 19.0, 40.0]], dtype=D)
    judge(enclose(Loop(Of(lambda m, z: f(z)), torch.zeros_like(z)), z), exact, z)


def test_at_a_tie_the_jacobian_holds_both_sides():
    # z = (1, 1): the largest entry may be either; every derivative from a side is within the error, and no less.
    z = torch.ones(1, 2, dtype=D)
    for f in (lambda z: z.amax(-1, keepdim=True) + 0 * z, lambda z: torch.maximum(z, z.flip(-1))):
        held = enclose(Loop(Of(lambda m, z, f=f: f(z)), torch.zeros_like(z)), z)
        for side in (torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=D), torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=D)):
            assert float((held.jacobian - side).norm()) <= held.jacobian_error
        assert held.jacobian_error >= 0.5


def test_what_has_no_value_or_no_derivative_is_refused():
    z = torch.tensor([[1.0, 20.0]], dtype=D)
    with pytest.raises(NonFiniteError):  # at torch's threshold softplus jumps: no slope there
        enclose(Loop(Of(lambda m, z: F.softplus(z + 1e-200 * z)), torch.zeros_like(z)), z)
    with pytest.raises(UnsupportedOperatorError, match="masked score"):
        enclose(
            Loop(
                Of(lambda m, z: z.masked_fill(torch.tensor([True, False]), -torch.inf).log_softmax(-1)), z, check=False
            ),
            z,
        )


@pytest.mark.parametrize("more", [{}, {"mlp": "plain"}, {"conv_kernel_size": 2, "causal": True}])
def test_a_contractive_block_is_enclosed(more):
    torch.manual_seed(0)
    block = ContractiveBlock(
        ContractiveConfig(vocab_size=4, seq_len=T, hidden_size=W, num_heads=2, mlp_multiple=4, rate=0.8, **more)
    ).to(D)
    x, z = randn(1, T, W, seed=1), randn(1, T, W, seed=2)
    loop = Loop(block, x)
    held = enclose(loop, z)
    is_near(held)
    J = derivative(loop, z)
    assert float((J - held.jacobian).norm()) <= held.jacobian_error + 256 * U * (1 + float(J.norm()))
    assert float((loop(z).detach() - held.value.mid).abs().max()) <= 64 * U * 100


def test_linear_attention_is_enclosed():
    torch.manual_seed(0)
    inputs, targets = randn(1, 5, 3, seed=1), randn(1, 5, 2, seed=2)
    block = LinearAttentionGD(0.3).to(D).eval().requires_grad_(False)
    z = randn(1, 2, 3, seed=3)
    loop = Loop(block, (inputs, targets), z0=z)
    judge(enclose(loop, z), exact_blocks.gradient_descent(block, (inputs[0], targets[0])), z)


def test_trm_is_enclosed():
    torch.manual_seed(0)
    config = TRMConfig(vocab_size=5, seq_len=2, hidden_size=4, num_heads=2, mlp_multiple=4, L_layers=1, L_cycles=2)
    model = TRMModel(config).eval().to(D)
    x = model.injection(torch.tensor([[1, 2]])).detach().to(D)
    z = model.initial_state(x) + 0.1 * randn(1, 2, 2, 4)
    loop = Loop(model.block, x, z0=z)
    held = enclose(loop, z)
    is_near(held)
    J = derivative(loop, z)
    assert float((J - held.jacobian).norm()) <= held.jacobian_error + 1e3 * U * (1 + float(J.norm()))
    assert float((loop(z).detach() - held.value.mid).abs().max()) <= 100 * U


def test_damped_and_iterated_loops_are_their_own_maps():
    loop, z = loop_of(*OPERATORS["tanh"])
    single = enclose(loop, z)
    damped = enclose(loop.damped(0.5), z)
    assert torch.allclose(damped.jacobian, 0.5 * single.jacobian + 0.5 * torch.eye(T * W, dtype=D), atol=1e-15, rtol=0)
    twice, second = enclose(loop.iterated(2), z), enclose(loop, loop(z))
    # The second step starts at the float nearest to F(z): a few units away, times a slope below 2.
    assert torch.allclose(twice.jacobian, second.jacobian @ single.jacobian, atol=1e-14, rtol=0)


@pytest.mark.parametrize("steepness", [1.0, 1e4, 1e8])
def test_the_error_of_the_jacobian_follows_a_steep_path(steepness):
    # 1/3 of z is rounded, then stretched: the exact derivative is steepness times the float nearest to 1/3 times
    # 3 times the float nearest to 0.1, and float64 products lose about 1e-17 times steepness of it.
    third, tenth = 1 / 3, 0.1

    def f(m, z):
        return steepness * (3.0 * (tenth * (third * torch.sin(z))))

    z = torch.tensor([[0.3, 0.7, 1.1]], dtype=D)
    held = enclose(Loop(Of(f), torch.zeros(1, 3, dtype=D)), z)

    def exact(s):
        slope = exact_blocks.reals(torch.tensor([steepness, 3.0, tenth, third], dtype=D)).prod()
        return exact_blocks.entrywise(lambda v: v.sin())(s) * slope

    judge(held, exact, z)
    # The bound is no wider than some tens of roundings, so a thousandth of it would be false.
    with exact_blocks.precision():
        state = exact_blocks.reals(z[0])
        gap = exact_blocks.distance(held.jacobian, exact_blocks.jacobian(exact, state))
    assert gap > 1e-3 * held.jacobian_error


# Corners.


@pytest.mark.parametrize("shape", [(1, W), (T, 1), (1, 1)])
def test_one_token_and_one_channel(shape):
    layer = lambda: nn.TransformerEncoderLayer(shape[1], 1, 3, batch_first=True, norm_first=True)  # noqa: E731
    loop, z = loop_of(lambda m, z: 0.5 * m(z), layer, shape=shape)
    exact, x = exact_blocks.encoder_layer(loop.block.module), exact_blocks.reals(loop.x[0])
    judge(enclose(loop, z), lambda s: exact(s) / 2 + x, z)


def test_a_norm_ruled_by_its_eps():
    # |z|^2 / d = 1e-12 against eps = 1e-5: the norm is nearly linear, its slope 1 / sqrt(eps).
    loop = Loop(Of(lambda m, z: row_norm(z, 1e-5)), torch.zeros(1, 1, W, dtype=D))
    z = 1e-6 * randn(1, 1, W)
    held = enclose(loop, z)
    judge(held, lambda s: exact_blocks.rms(s, 1e-5), z)
    assert float(torch.linalg.matrix_norm(held.jacobian, 2)) == pytest.approx(1e5**0.5, rel=1e-6)


def test_a_state_of_zeros():
    loop = Loop(Of(lambda m, z: row_norm(z, 1e-5)), torch.zeros(1, 1, W, dtype=D))
    z = torch.zeros(1, 1, W, dtype=D)
    judge(enclose(loop, z), lambda s: exact_blocks.rms(s, 1e-5), z)


def test_a_norm_without_eps_at_zero_is_refused():
    # 0/0. The loop itself is fine elsewhere.
    loop = Loop(Of(lambda m, z: row_norm(z, 0.0)), torch.zeros(1, 1, W, dtype=D))
    with pytest.raises(NonFiniteError, match="enclosure"):
        enclose(loop, torch.zeros(1, 1, W, dtype=D))
    enclose(loop, torch.ones(1, 1, W, dtype=D))


def test_a_saturated_softmax():
    # Scores some 1e4 apart: probabilities from 1 down to exp(-1e4), which no float64 holds.
    loop = Loop(Of(lambda m, z: (1e4 * z).softmax(-1)), torch.zeros(1, 1, W, dtype=D))
    z = torch.tensor([[[0.1, 0.9, 0.89, -1.0]]], dtype=D)
    with exact_blocks.precision():
        held = enclose(loop, z)
        exact = exact_blocks.softmax(exact_blocks.reals(z[0]) * 10**4)
        assert exact_blocks.contains(held.value.mid, held.value.rad, exact)
        J = exact_blocks.jacobian(lambda s: exact_blocks.softmax(s * 10**4), exact_blocks.reals(z[0]))
        assert exact_blocks.distance(held.jacobian, J) <= held.jacobian_error
    assert float(held.value.mid[0, 0, 1]) == 1.0


def test_large_scores_do_not_overflow():
    loop = Loop(Of(lambda m, z: (1e6 * z).softmax(-1)), torch.zeros(1, 1, 2, dtype=D))
    held = enclose(loop, torch.tensor([[[1.0, 2.0]]], dtype=D))
    assert held.value.mid.tolist() == [[[0.0, 1.0]]]
    assert 0 < float(held.value.rad[0, 0, 0]) < 1e-300  # exp(-1e6) is not 0


def test_a_value_beyond_float64_is_refused():
    loop = Loop(Of(lambda m, z: z.exp()), torch.zeros(1, 2, dtype=D))
    with pytest.raises(NonFiniteError, match="no finite enclosure"):
        enclose(loop, torch.tensor([[1.0, 1e3]], dtype=D))


def test_a_row_without_any_key():
    row = torch.tensor([[True, True, True], [False, False, False], [False, True, False]])
    plain = Of(lambda m, z: torch.nan_to_num((z @ z.mT).masked_fill(row, -torch.inf).softmax(-1)) @ z)
    loop = Loop(plain, randn(1, T, W, seed=1))
    with pytest.raises(UnsupportedOperatorError, match=r"wholly masked: softmax"):
        enclose(loop, randn(1, T, W))
    # Torch's own attention gives such a row zeros; so does its rule, with no derivative.
    loop, z = loop_of(lambda m, z: F.scaled_dot_product_attention(*[z[:, None]] * 3, attn_mask=~row)[:, 0])
    held = enclose(loop, z)
    assert torch.equal(held.value.mid[:, 0], loop.x[:, 0])
    assert not bool(held.jacobian[:W].any())
    assert float((derivative(loop, z) - held.jacobian).norm()) <= held.jacobian_error + 256 * U * 10


def test_masked_keys_have_no_derivative():
    loop, z = loop_of(*OPERATORS["softmax of mask"])
    blocks = enclose(loop, z).jacobian.reshape(T, W, T, W)
    for t in range(T):
        assert not bool(blocks[t, :, t + 1 :].any())


def test_a_kink_holds_both_sides():
    loop = Loop(Of(lambda m, z: F.relu(z)), torch.zeros(1, 2, dtype=D))
    held = enclose(loop, torch.tensor([[0.0, 1.0]], dtype=D))
    for side in (0.0, 1.0):
        assert float((torch.diag(torch.tensor([side, 1.0], dtype=D)) - held.jacobian).norm()) <= held.jacobian_error


def test_detach_hides_nothing():
    # Autograd would call the first factor constant. The map does not: d(z^2) = 2 z.
    loop = Loop(Of(lambda m, z: z.detach() * z), torch.zeros(1, 2, dtype=D))
    held = enclose(loop, torch.tensor([[3.0, 1.0]], dtype=D))
    assert float((held.jacobian - torch.diag(torch.tensor([6.0, 2.0], dtype=D))).norm()) <= held.jacobian_error


def test_a_step_that_ignores_the_state():
    loop = Loop(Of(lambda m, z: torch.zeros_like(z)), torch.ones(1, 3, dtype=D))
    held = enclose(loop, randn(1, 3))
    assert torch.equal(held.value.mid, torch.ones(1, 3, dtype=D))
    assert not bool(held.jacobian.any())


def test_one_sample_only():
    loop = Loop(Of(lambda m, z: 0.5 * z), torch.zeros(2, 3, dtype=D))
    with pytest.raises(InputError, match=r"batch_size=2.*one sample"):
        enclose(loop, torch.zeros(2, 3, dtype=D))
    enclose(loop.sample(1), torch.zeros(1, 3, dtype=D))


# Refusals.


def by_view(m, z):
    """Writes through a view of what a weight became: a graph read as a function would miss it."""
    row = m.weight[0] * 1
    row[:2].mul_(2.0)
    return z * row


def into_whole_numbers(z):
    counts = torch.zeros(T, W, dtype=torch.int64)
    counts[:] = z[0]
    return z * counts


# Name: block, module, and what the message must say.
REFUSED = {
    "whole part": (lambda m, z: z.floor(), None, r"floor\.default"),
    "a bound that is a tensor": (lambda m, z: z.clamp(min=0.1 * z), None, r"clamp\.Tensor"),
    "comparison": (lambda m, z: z * (z > 0), None, r"gt\.Scalar"),
    "rounding": (lambda m, z: z.round(), None, r"round\.default"),
    "cast to whole numbers": (lambda m, z: z.to(torch.int64) * z, None, r"_to_copy.*whole"),
    "written into whole numbers": (lambda m, z: into_whole_numbers(z), None, r"copy.*whole"),
    "sort": (lambda m, z: z.sort(-1).values, None, r"sort\.default"),
    "batch norm": (lambda m, z: m(z), lambda: nn.BatchNorm1d(T), r"batch_norm"),
    "memory layout": (lambda m, z: z.mT.as_strided((1, T, W), (T * W, W, 1)), None, r"differs from|as_strided"),
    "bits": (lambda m, z: z.view(torch.int64).view(D), None, r"view.*bits"),
    "writing through a view": (by_view, lambda: nn.Linear(W, W), r"mul_\.Tensor.*others may see"),
    "numbers that leave torch": (lambda m, z: z * sum(z.flatten().tolist()), None, r"Tensor\.tolist .*test_enclosure"),
    "numpy": (lambda m, z: z * z.detach().numpy().mean(), None, r"Tensor\.numpy .*test_enclosure"),
    "third result of a norm": (
        lambda m, z: torch.native_layer_norm(z, (W,), None, None, 1e-5)[2] * z,
        None,
        r"result 2",
    ),
    "rows of the state looked up": (lambda m, z: F.embedding(torch.tensor([[0, 2, 1]]), z[0]), None, r"embedding"),
    "transposed convolution": (lambda m, z: m(z), lambda: nn.ConvTranspose1d(T, T, 3, padding=1), "transposed"),
    "weights from the state": (
        lambda m, z: F.conv1d(z, z[:, :, :1].repeat(3, 3, 1)[:, :3]),
        None,
        r"convolution.*weights",
    ),
    "gain from the state": (lambda m, z: F.group_norm(z, 1, z[0, :, 0]), None, r"group_norm.*gain"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name_and_line(name):
    f, build, message = REFUSED[name]
    loop, z = loop_of(f, build)
    with pytest.raises(UnsupportedOperatorError) as caught:
        enclose(loop, z)
    text = str(caught.value)
    assert re.search(message, text), text
    assert "level estimate" in text or "tensor operators only" in text


def test_the_line_is_the_users():
    def bend(m, z):
        y = 0.5 * z
        return y.frac()  # the line to name

    loop, z = loop_of(bend)
    line = bend.__code__.co_firstlineno + 2
    with pytest.raises(UnsupportedOperatorError, match=rf"frac\.default at .*test_enclosure\.py:{line} "):
        enclose(loop, z)


@pytest.mark.parametrize(
    "f",
    [
        lambda m, z: z if z.norm() > 1 else 2 * z,
        lambda m, z: z * float(z.mean()),
        lambda m, z: z[:, : int(z.argmax()) % 2 + 1].sum() * z,
        lambda m, z: z[z > 0].sum() * z,
    ],
    ids=["if", "float", "int", "boolean index"],
)
def test_control_flow_that_looks_at_values_is_refused(f):
    loop, z = loop_of(f)
    with pytest.raises(UnsupportedOperatorError):
        enclose(loop, z)
