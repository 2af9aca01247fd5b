"""The carry is what its weights say, the loop is not what its carry says."""

import copy
import math

import numpy as np
import problems
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import batch_of, fprm_configs, looped_model
from torch import nn

from fpcheck.blocks import FPRMConfig, TRMConfig
from fpcheck.errors import BlockError, BlockOutputError, InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral import jacobian, spectrum
from fpcheck.spectral.carry import HasCarry, carry_radius, carry_report

EPS = torch.finfo(torch.float64).eps
BASE = {"vocab_size": 7, "seq_len": 4, "hidden_size": 8, "num_heads": 2, "mlp_multiple": 4, "pos_encodings": "none"}
# Configurations whose step without branches is the carry and a constant: no norm of the stream, and scales that do
# not move with the state.
LINEAR = {
    "norm_type": st.sampled_from(["pre-norm", "peri-norm"]),
    "norm_placement": "none",
    "residual_scale": st.sampled_from(["none", "fixed", "input-independent"]),
}


def block_of(seed=0, dtype=torch.float64, **settings):
    """A block with random weights, random scales per channel, three injections and a state."""
    model = looped_model(FPRMConfig(**(BASE | settings)), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.block.named_parameters():
            if name.startswith("alpha") and parameter.ndim == 1 and parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator))
    x, z = batch_of(model.to(dtype), seed=seed)
    return model.block, x, z


def without_branches(block):
    """Every sublayer's last matrix at zero: g(norm(h)) = 0 for every h, and so is its derivative."""
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
    return block


# --- scaled pre-norm blocks with zero branches: rho = alpha_1^(2K) alpha_2 exactly ----------------------------


@pytest.mark.parametrize("norm_type", ["pre-norm", "peri-norm"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_without_branches_rho_is_the_product_of_the_fixed_scales(layers, norm_type):
    settings = {"residual_scale": "fixed", "alpha_1_init": 0.75, "alpha_2_init": 0.5}
    block, x, z = block_of(**settings, L_layers=layers, norm_type=norm_type)
    spec = spectrum(Loop(without_branches(block), x), z)
    # alpha_1^(2K) alpha_2, the same for every channel and position: J is that times the identity. 0.75 and 0.5 are
    # binary fractions, so only the power rounds: a few eps. Every other figure of a multiple of the identity follows.
    expected = 0.75 ** (2 * layers) * 0.5
    assert spec.radius.value.tolist() == pytest.approx([expected] * 3, rel=8 * EPS)
    assert spec.norm.value.tolist() == pytest.approx([expected] * 3, rel=8 * EPS)
    assert spec.eigenvalues.real.flatten().tolist() == pytest.approx([expected] * 3 * z[0].numel(), rel=8 * EPS)
    assert spec.eigenvalues.imag.abs().max() == 0


@given(st.integers(1, 3), st.integers(0, 10**6), st.sampled_from(["pre-norm", "peri-norm"]), st.booleans())
def test_without_branches_rho_is_the_largest_product_over_channels(layers, seed, norm_type, outer_only):
    block, x, z = block_of(seed, L_layers=layers, norm_type=norm_type, outer_only=outer_only)
    logits = {k: v.detach().numpy() for k, v in block.named_parameters() if k.startswith("alpha")}
    alpha_2 = 1 / (1 + np.exp(-logits["alpha_2_param"]))
    alpha_1 = 1.0 if outer_only else 1 / (1 + np.exp(-logits["alpha_1_param"]))
    products = alpha_1 ** (2 * layers) * alpha_2
    radius = spectrum(Loop(without_branches(block), x), z).radius.value
    # Two implementations of sigmoid and power: 2 K + some eps, relative.
    assert radius.tolist() == pytest.approx([products.max()] * 3, rel=50 * EPS)


def test_with_branches_rho_is_something_else():
    # The partner: the same weights with their branches, whose rho the product of scales does not give.
    block, x, z = block_of(residual_scale="fixed", alpha_1_init=0.75, alpha_2_init=0.5, L_layers=1)
    radius = spectrum(Loop(block, x), z).radius.value
    assert bool(((radius - 0.75**2 * 0.5).abs() > 0.05).all())


# --- the carry itself ---------------------------------------------------------------------------------------


@given(fprm_configs(**LINEAR), st.integers(0, 3))
def test_the_carry_is_the_jacobian_of_the_block_without_branches(config, seed):
    model = looped_model(config, seed).double()
    x, z = batch_of(model, samples=2)
    carry = carry_radius(model.block, z, x)
    v = problems.randn(*z.shape, seed=seed)
    J = jacobian(Loop(without_branches(model.block), x), z)
    expected = (J @ v.flatten(1).unsqueeze(-1)).view_as(z)
    # Sums of at most 9 taps times scales below 1.
    torch.testing.assert_close(model.block.carry(v, z, x).detach(), expected, rtol=1e-12, atol=1e-13)
    # A slow oracle that knows nothing of structure, for the matrices whose eigenvalues it can find: those of a
    # causal convolution are defective, and LAPACK spreads them when it does not know that zeros are exact.
    oracle = spectrum(Loop(model.block, x), z).radius
    assert bool(((carry.value - oracle.value).abs() <= carry.error + oracle.error).all())


@pytest.mark.parametrize("conv_type", ["none", "conv1d", "conv2d"])
def test_scales_that_depend_on_the_state_are_frozen_at_it(conv_type):
    block, x, z = block_of(residual_scale="input-dependent", conv_type=conv_type, conv_kernel_size=3)
    v = problems.randn(*z.shape, seed=3)
    # Linear in v, not in z: doubling v doubles the result, and the scales stay those of z.
    torch.testing.assert_close(block.carry(2 * v, z, x), 2 * block.carry(v, z, x), rtol=1e-14, atol=0)
    assert float((block.carry(v, z + 1, x) - block.carry(v, z, x)).detach().abs().max()) > 1e-3
    # The scales are those of the step itself: without branches and injection, all of the step is carry.
    bare = without_branches(copy.deepcopy(block))
    torch.testing.assert_close(bare(z, torch.zeros_like(x)), block.carry(z, z, x), rtol=1e-13, atol=1e-15)
    # Dense by autograd, radius by LAPACK, one sample at a time; these matrices are well conditioned, as the error says.
    got = carry_radius(block, z, x)
    for b in range(3):
        one = (z[b : b + 1], x[b : b + 1])
        A = torch.autograd.functional.jacobian(lambda u, one=one: block.carry(u, *one), v[b : b + 1]).reshape(32, 32)
        if conv_type == "conv1d":  # triangular: its diagonal
            expected = float(A.diagonal().abs().max())
        else:
            expected = float(torch.linalg.eigvals(A).abs().max())
        assert float(got[b]) == pytest.approx(expected, rel=1e-9)
        assert float(got.error[b]) < 1e-9
        # A sample's figure is its own.
        assert float(carry_radius(block, *one)[0]) == pytest.approx(float(got[b]), rel=1e-13)


def test_a_causal_convolution_has_the_radius_of_its_last_tap_whatever_the_others_are():
    block, x, z = block_of(conv_type="conv1d", conv_kernel_size=4, seq_len=12, conv_bias=True, causal=True)
    with torch.no_grad():
        block.conv.weight.copy_(torch.tensor([3.0, -2.0, 5.0, 0.5]).expand(8, 1, 4))
    got = carry_radius(block, z, x)
    alpha_1, alpha_2 = (torch.sigmoid(block.get_parameter(f"alpha_{i}_param").detach()) for i in (1, 2))
    product = float((alpha_1**4 * alpha_2).max())
    # Lower triangular: its eigenvalues are the products times the tap on the current token, each 12 times.
    assert got.value.tolist() == pytest.approx([0.5 * product] * 3, rel=1e-14)
    assert bool((got.error < 1e-13 * product).all())
    # LAPACK, on the dense matrix in an order that hides the triangle, spreads a defective eigenvalue of multiplicity
    # 12 over a circle of radius about eps^(1/12) = 0.05 times the size: this is what the structure saves.
    A = torch.autograd.functional.jacobian(lambda u: block.carry(u, z[:1], x[:1]), z[:1]).reshape(96, 96)
    hidden = problems.orthogonal(96) @ A @ problems.orthogonal(96).T
    assert abs(float(torch.linalg.eigvals(hidden).abs().max()) / (0.5 * product) - 1) > 0.01
    # And the radius promises nothing about the first steps: one of them stretches tenfold and more.
    assert float(torch.linalg.matrix_norm(A, 2)) > 10 * float(got[0])


def test_puzzle_tokens_pass_the_convolution_by():
    # Taps of 0.01: content shrinks by that, the puzzle token by its scales alone, which are larger.
    block, x, z = block_of(conv_type="conv1d", puzzle_emb_ndim=8, num_puzzle_identifiers=3)
    with torch.no_grad():
        block.conv.weight.fill_(0.01)
    alpha_1, alpha_2 = (torch.sigmoid(block.get_parameter(f"alpha_{i}_param").detach()) for i in (1, 2))
    product = float((alpha_1**4 * alpha_2).max())
    assert carry_radius(block, z, x).value.tolist() == pytest.approx([product] * 3, rel=1e-14)


def test_matrices_with_small_norms_are_left_out_without_loss():
    # 2-D convolution over 16 tokens, 32 channels: the largest of all 32 x 3 radii, every matrix decomposed by numpy.
    block, x, z = block_of(conv_type="conv2d", conv_kernel_size=3, seq_len=16, hidden_size=32)
    got = carry_radius(block, z, x)
    A = torch.autograd.functional.jacobian(lambda u: block.carry(u, z[:1], x[:1]), z[:1])[0, :, :, 0]
    moduli = [np.abs(np.linalg.eigvals(A[:, c, :, c].numpy())).max() for c in range(32)]
    assert got.value.tolist() == pytest.approx([max(moduli)] * 3, abs=float(got.error[0]))
    assert float(got.error[0]) < 1e-6


@given(fprm_configs(**(LINEAR | {"residual_scale": st.sampled_from(["input-independent", "input-dependent"])})))
def test_float32_is_right_to_its_error(config):
    model = looped_model(config)
    x, z = batch_of(model, samples=2)
    narrow = carry_radius(model.block, z, x)
    wide = carry_radius(model.double().block, z.double(), x.double())
    assert bool(((narrow.value - wide.value).abs() <= narrow.error + wide.error).all())
    assume(config.conv_type != "conv2d")  # may be defective: its error is what it is
    assert bool((narrow.error <= 1e-5 * (1 + narrow.value)).all())


# --- blocks of other makes --------------------------------------------------------------------------------------


class Mixing(nn.Module):
    """z' = A z + x + strength * tanh(W z): a carry that mixes all entries, and one branch."""

    def __init__(self, A, W, strength=1.0):
        super().__init__()
        self.A, self.W, self.strength = nn.Parameter(A), nn.Parameter(W), strength

    def carry(self, v, z, x):
        return v @ self.A.T

    def forward(self, z, x):
        return self.carry(z, z, x) + x + self.strength * torch.tanh(z @ self.W.T)


def test_a_carry_that_mixes_entries_is_taken_whole():
    # Not the real parts, not a power iteration: a rotation by 80 degrees times 1.2 has radius 1.2.
    A = torch.block_diag(1.2 * problems.rotation(80), torch.tensor([[0.3]], dtype=torch.float64))
    Q = problems.orthogonal(3)
    z = problems.randn(2, 3)
    got = carry_radius(Mixing(Q @ A @ Q.T, torch.zeros(3, 3, dtype=torch.float64)), z, z)
    assert got.value.tolist() == pytest.approx([1.2, 1.2], abs=float(got.error[0]))
    assert float(got.error[0]) < 1e-12


# Carry a I, branch w tanh at z = 0 (a fixed point for x = 0): J = (a + w) I by hand.
@pytest.mark.parametrize(
    ("a", "w", "disagree"),
    [
        (0.9, 0.3, True),  # the carry contracts, the loop expands: 1.2
        (1.1, -0.8, True),  # the other way round: 0.3
        (0.9, -0.3, False),
        (1.1, 0.3, False),
        (0.9, -2.2, True),  # flips at -1.3
        (0.5, 0.5, False),  # 1.0 exactly: on neither side
    ],
)
def test_report_says_on_which_sides_of_one_the_two_lie(a, w, disagree):
    eye = torch.eye(3, dtype=torch.float64)
    zero = torch.zeros(2, 3, dtype=torch.float64)
    loop = Loop(Mixing(a * eye, w * eye), zero)
    report = carry_report(loop, zero)
    assert report.carry.value.tolist() == pytest.approx([a, a], rel=1e-14)
    assert report.loop.value.tolist() == pytest.approx([abs(a + w)] * 2, rel=1e-14)
    assert report.disagree.tolist() == [disagree] * 2
    assert f"in {2 * disagree} of 2 samples" in report.explain()
    # A damped view is reported as the block it damps.
    damped = carry_report(loop.damped(0.5), zero)
    assert damped.loop.value.tolist() == pytest.approx(report.loop.value.tolist(), rel=1e-14)
    assert damped.carry.value.tolist() == report.carry.value.tolist()


def test_an_fprm_loop_expands_while_its_carry_contracts():
    # The default scales keep the carry small: 0.5^4 * 0.5 = 0.03. Branches ten times as strong take the loop past 1.
    block, x, z = block_of(residual_scale="fixed", causal=True)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(10)
    report = carry_report(Loop(block, x), z)
    assert report.carry.value.tolist() == pytest.approx([0.5**5] * 3, rel=8 * EPS)
    J = torch.autograd.functional.jacobian(lambda u: block(u, x[:1]), z[:1]).reshape(32, 32)
    assert float(report.loop[0]) == pytest.approx(float(torch.linalg.eigvals(J).abs().max()), rel=1e-6)
    assert bool((report.loop.value > 1.0).all())
    assert bool(report.disagree.all())
    assert "in 3 of 3 samples" in report.explain()


# --- refusals ------------------------------------------------------------------------------------------------


def test_blocks_without_a_carry_are_refused():
    model = looped_model(TRMConfig(**BASE)).double()
    x, z = batch_of(model)
    assert not isinstance(model.block, HasCarry)
    with pytest.raises(BlockError, match="TRMBlock without a method carry"):
        carry_radius(model.block, z, x)
    with pytest.raises(BlockError, match="TRMBlock without a method carry"):
        carry_report(Loop(model.block, x, z0=z), z)
    with pytest.raises(BlockError, match="function without a method carry"):
        carry_radius(lambda v: v, z)
    block, x, z = block_of(norm_type="post-norm")
    with pytest.raises(BlockError, match="norm_type='post-norm'"):
        carry_radius(block, z, x)


class Odd(Mixing):
    def __init__(self, act):
        super().__init__(0.5 * torch.eye(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64))
        self.act = act

    def carry(self, v, z, x):
        return self.act(super().carry(v, z, x), x)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda v, x: v + x, BlockError, "not linear"),
        (lambda v, x: torch.tanh(v), BlockError, "not linear"),
        (lambda v, x: v.abs(), BlockError, "not linear"),
        (lambda v, x: v[:, :2], BlockOutputError, r"shape=\(2, 2\)"),
        (lambda v, x: v / 0, NonFiniteError, "NaN or inf"),
    ],
)
def test_a_carry_that_is_no_linear_map_is_refused(act, error, message):
    z = problems.randn(2, 3)
    assert isinstance(Odd(act), HasCarry)
    with pytest.raises(error, match=message):
        carry_radius(Odd(act), z, z)


@pytest.mark.parametrize(
    ("z", "error", "message"),
    [
        (torch.ones(2, 3, dtype=torch.bfloat16), InputError, "bfloat16"),
        (torch.full((2, 3), math.nan), NonFiniteError, "NaN"),
        (torch.ones(2, 3, dtype=torch.int64), InputError, "int64"),
    ],
)
def test_states_that_are_none_are_refused(z, error, message):
    with pytest.raises(error, match=message):
        carry_radius(Odd(lambda v, x: v), z, torch.ones(2, 3))


def test_more_memory_than_allowed_is_refused_with_the_size():
    z = problems.randn(2, 3)
    A = problems.randn(3, 3, seed=1)
    # 2 samples, 9 numbers of 8 bytes, twice: 288.
    carry_radius(Mixing(A, A), z, z, max_bytes=288)
    with pytest.raises(InputError, match="mixes channels: 2 matrices of 3 rows"):
        carry_radius(Mixing(A, A), z, z, max_bytes=287)
    block, x, z = block_of(conv_type="conv2d", conv_kernel_size=3)
    with pytest.raises(InputError, match="not causal: 24 matrices of 4 rows"):
        carry_radius(block, z, x, max_bytes=1000)
    # A triangular carry stores no matrix.
    block, x, z = block_of(conv_type="conv1d")
    carry_radius(block, z, x, max_bytes=0)
