"""Properties that every configuration of the reference blocks has."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_block import plain_block
from strategies import batch_of, fprm_configs, looped_model, trm_configs

from fpcheck.blocks import FPRMConfig, FPRMModel, TRMConfig, TRMModel
from fpcheck.errors import InputError
from fpcheck.loop import Loop

BASE = {"vocab_size": 7, "seq_len": 4, "hidden_size": 8, "num_heads": 2, "mlp_multiple": 4}
# torch compiles its own forward-mode rules with torch.jit.script, which it deprecated itself.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

any_config = st.one_of(fprm_configs(), trm_configs())


def weights_of(block):
    return {name: value.detach().double().numpy() for name, value in block.state_dict().items()}


# --- the map itself -------------------------------------------------------------------------------------------


@given(fprm_configs(), st.integers(0, 3))
def test_block_equals_a_plain_second_implementation(config, seed):
    model = looped_model(config, seed).double()
    x, z = batch_of(model, samples=2)
    got = model.block(z, x).detach().numpy()
    want = np.stack(
        [plain_block(config, weights_of(model.block), *pair) for pair in zip(z.numpy(), x.numpy(), strict=True)]
    )
    # Two orders of the same float64 sums over widths <= 40 and <= 4 sublayers, states of size <= 10: 1e-13 or so.
    # Rotary angles come from a float32 table, off by up to 9 positions * 2^-24; that moves a state of this size
    # by 1e-6 at most and is the only difference allowed there.
    tolerance = 2e-5 if config.pos_encodings == "rope" and not config.mlp_t else 1e-11
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance)


@given(trm_configs(pos_encodings=st.sampled_from(["none", "learned"])), st.integers(0, 3))
def test_trm_segment_is_post_norm_fprm_layers_in_a_double_loop(config, seed):
    model = looped_model(config, seed).double()
    x, z = batch_of(model, samples=1)
    # With every scale at 1 and no convolution, F(h; v) of the FPRM block is f(h, v) = layers(h + v).
    shared = {f.name for f in dataclasses.fields(FPRMConfig)} & {f.name for f in dataclasses.fields(TRMConfig)}
    values = {name: getattr(config, name) for name in shared}
    as_fprm = FPRMConfig(**values, norm_type="post-norm", residual_scale="none")
    w = weights_of(model.block)
    answer, latent = z[0].numpy()
    for _ in range(config.H_cycles):
        for _ in range(config.L_cycles):
            latent = plain_block(as_fprm, w, latent, answer + x[0].numpy())
        answer = plain_block(as_fprm, w, answer, latent)
    got = model.block(z, x)[0].detach().numpy()
    # As above, over at most 6 block calls whose norms keep states near 1.
    np.testing.assert_allclose(got, np.stack([answer, latent]), rtol=0, atol=1e-10)


@given(any_config, st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_shape_and_dtype_are_kept_and_finite(config, dtype):
    model = looped_model(config).to(dtype)
    x, z = batch_of(model)
    out = model.block(z, x)
    assert out.shape == z.shape
    assert out.dtype == dtype
    assert torch.isfinite(out).all()
    start = model.initial_state(x)
    assert (start.shape, start.dtype) == (z.shape, dtype)
    logits = model.readout(out)
    assert logits.shape == (3, config.seq_len, config.vocab_size)
    assert model.halt_logits(out).shape == (3, 2)


@given(any_config)
def test_samples_are_independent(config):
    model = looped_model(config).double()
    x, z = batch_of(model, samples=3)
    together = model.block(z, x)
    alone = torch.cat([model.block(z[i : i + 1], x[i : i + 1]) for i in range(3)])
    # The same sums in a different blocking of the matrix products: rounding of states of size <= 10, no more.
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    Loop(model.block, x, z0=z)  # and the loop's own checks agree


@given(any_config)
def test_float64_norms_differ_from_the_official_float32_ones_by_rounding_only(config):
    official = dataclasses.replace(config, norm_in_float32=True)
    own64, official64 = looped_model(config).double(), looped_model(official).double()
    x, z = batch_of(own64)
    gap = float((own64.block(z, x) - official64.block(z, x)).detach().abs().max())
    # A float32 norm errs by 2^-24 relative; up to 12 layers' worth of them, each amplified by the layers behind
    # it, on states of size <= 10. A wrong eps or axis shows at 1e-2.
    assert gap < 1e-4
    # Every variant has a norm in every layer, so the flag must show.
    assert gap > 0
    # In float32 the two are the same map.
    own32, official32 = looped_model(config), looped_model(official)
    x, z = batch_of(own32)
    assert torch.equal(own32.block(z, x), official32.block(z, x))


@pytest.mark.parametrize("dim", [1, -1])
def test_rms_norm_gives_root_mean_square_one(dim):
    from fpcheck.blocks.layers import rms_norm

    h = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q2 = h.square().mean(dim)
    # rms(out)^2 = q^2 / (q^2 + eps), by definition.
    torch.testing.assert_close(rms_norm(h, 1e-5, dim=dim).square().mean(dim), q2 / (q2 + 1e-5), rtol=1e-13, atol=0)


# --- structure ------------------------------------------------------------------------------------------------


def reaches(model, cut):
    """Whether a change of state and injection from position ``cut`` on reaches an earlier position."""
    x, z = batch_of(model, samples=1)
    before = model.block(z, x)
    generator = torch.Generator().manual_seed(7)
    dx, dz = (torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v) for v in (x, z))
    for change in (dx, dz):
        change[..., :cut, :] = 0
    after = model.block(z + dz, x + dx)
    assert not torch.equal(before[..., cut:, :], after[..., cut:, :])  # the change itself is seen
    return not torch.equal(before[..., :cut, :], after[..., :cut, :])


@given(any_config.filter(lambda c: c.is_causal), st.data())
def test_causal_blocks_have_no_dependence_on_the_future_at_all(config, data):
    model = looped_model(config).double()
    assert not reaches(model, data.draw(st.integers(1, config.positions - 1)))


@pytest.mark.parametrize(
    "variant",
    [
        {"causal": False},
        {"causal": True, "mlp_t": True},
        {"causal": True, "conv_type": "conv2d", "conv_kernel_size": 3},
    ],
    ids=str,
)
def test_what_is_not_causal_says_so_and_is_not(variant):
    # The partners that must fail: attention to the future, and two ways round a causal attention mask.
    config = FPRMConfig(**BASE, **variant)
    assert not config.is_causal
    assert reaches(looped_model(config).double(), cut=2)


PLAIN = {"pos_encodings": "none", "causal": False, "mlp_t": False}


@given(st.one_of(fprm_configs(conv_type="none", **PLAIN), trm_configs(**PLAIN)), st.randoms(use_true_random=False))
def test_without_positions_the_block_commutes_with_permutations(config, random):
    model = looped_model(config).double()
    x, z = batch_of(model)
    order = list(range(config.positions))
    random.shuffle(order)
    permuted = model.block(z[..., order, :], x[:, order])
    # The sums over positions in another order: rounding only.
    torch.testing.assert_close(permuted, model.block(z, x)[..., order, :], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "variant", [{"pos_encodings": "rope"}, {"causal": True}, {"conv_type": "conv1d"}, {"mlp_t": True}], ids=str
)
def test_anything_positional_breaks_the_permutation_symmetry(variant):
    model = looped_model(FPRMConfig(**{**BASE, "pos_encodings": "none", **variant})).double()
    x, z = batch_of(model)
    order = [1, 0, 3, 2]
    assert not torch.allclose(model.block(z[:, order], x[:, order]), model.block(z, x)[:, order], atol=1e-6)


def test_puzzle_tokens_bypass_the_convolution():
    config = FPRMConfig(
        **BASE, puzzle_emb_ndim=12, num_puzzle_identifiers=3, conv_type="conv1d", pos_encodings="none", outer_only=True
    )
    model = looped_model(config).double()
    with torch.no_grad():
        model.block.conv.weight.zero_()
    x, z = batch_of(model, samples=1)
    other = z.clone()
    other[:, config.puzzle_tokens :] += 1.0
    # With a zero kernel no content state enters; the puzzle states still do.
    assert torch.equal(model.block(z, x), model.block(other, x))
    other[:, 0] += 1.0
    assert not torch.allclose(model.block(z, x), model.block(other, x))


@pytest.mark.parametrize(
    ("start", "beta_1", "beta_2"),
    # 2K = 4 sublayers. (0.75, 0.25): beta_2 = 1 - 0.25 * 0.75^4 = 0.92090, beta_1 = beta_2 * 0.25 / (1 - 0.75^4) =
    # 0.33679. (0.5, 0.5): beta_2 = 1 - 0.5^5 = 0.96875, beta_1 = beta_2 * 0.5 / (1 - 0.5^4) = 0.51667.
    [((0.75, 0.25), 0.33679, 0.92090), ((0.5, 0.5), 0.51667, 0.96875)],
)
@pytest.mark.parametrize("kind", ["fixed", "input-independent"])
def test_residual_scales_start_as_derived(kind, start, beta_1, beta_2):
    config = FPRMConfig(**BASE, residual_scale=kind, alpha_1_init=start[0], alpha_2_init=start[1])
    scales = FPRMModel(config).double().block.residual_scales(torch.zeros(1, 4, 8, dtype=torch.float64))
    for scale, want in zip(scales, (*start, beta_1, beta_2), strict=True):
        # 1e-5 is the guard in beta_1's denominator; logits stored in float32 add less.
        torch.testing.assert_close(scale.double().mean(), torch.tensor(want).double(), rtol=3e-5, atol=0)


@given(
    fprm_configs(residual_scale=st.sampled_from(["fixed", "input-independent", "input-dependent"]), outer_only=False)
)
def test_sublayer_weights_sum_to_less_than_beta_2(config):
    # Unrolling the stream, sublayer j enters with beta_1 * alpha_1^(2K-1-j); the sum is what bounds the state.
    model = looped_model(config).double()
    _, z = batch_of(model)
    alpha_1, _, beta_1, beta_2 = model.block.residual_scales(z)
    total = beta_1 * sum(alpha_1**j for j in range(2 * config.L_layers))
    assert (total < beta_2).all()


# --- derivatives ----------------------------------------------------------------------------------------------


@given(any_config)
def test_forward_and_reverse_derivatives_agree(config):
    config = dataclasses.replace(config, seq_len=4)
    model = looped_model(config).double().requires_grad_(False)
    x, z = batch_of(model, samples=1)
    generator = torch.Generator().manual_seed(3)
    v, w = (torch.randn(z.shape, generator=generator, dtype=z.dtype) for _ in range(2))
    _, jv = torch.func.jvp(lambda s: model.block(s, x), (z,), (v,))
    _, pull = torch.func.vjp(lambda s: model.block(s, x), z)
    # w'(J v) = (J'w)'v, two algorithms, float64 rounding of sums of some hundred terms of size <= 1e3.
    torch.testing.assert_close((w * jv).sum(), (pull(w)[0] * v).sum(), rtol=1e-9, atol=1e-9)
    # And both are the derivative. A central difference errs by h^2 / 6 times a third derivative, which some norms
    # in a row drive to 1e6 and more, and by 1e-16 |F| / h: about 1e-6 of the largest entry; a wrong rule errs by 1.
    h = 1e-6
    quotient = (model.block(z + h * v, x) - model.block(z - h * v, x)) / (2 * h)
    assert float((quotient - jv).abs().max()) <= 1e-3 * (1 + float(jv.abs().max()))


@pytest.mark.parametrize("kind", ["fprm", "trm"])
def test_second_derivatives_exist(kind):
    config = FPRMConfig(**BASE, causal=True) if kind == "fprm" else TRMConfig(**BASE, causal=True)
    model = looped_model(config).double().requires_grad_(False)
    x, z = batch_of(model, samples=1)
    z.requires_grad_()
    v = torch.ones_like(z)
    (first,) = torch.autograd.grad(model.block(z, x).square().sum(), z, create_graph=True)
    (second,) = torch.autograd.grad((first * v).sum(), z)
    _, forward = torch.func.jvp(torch.func.grad(lambda s: model.block(s, x).square().sum()), (z.detach(),), (v,))
    # The same Hessian-vector product by reverse-over-reverse and forward-over-reverse; entries reach 1e2.
    torch.testing.assert_close(second, forward, rtol=1e-9, atol=1e-9)


# --- calls that are wrong -------------------------------------------------------------------------------------


def test_shapes_that_would_broadcast_are_refused():
    model = looped_model(FPRMConfig(**BASE))
    x, z = batch_of(model)
    for bad_z, bad_x in [(z[:1], x), (z[:, :1], x), (z, x[:1]), (z[0], x), (z, x[0]), (z[..., :4], x[..., :4])]:
        with pytest.raises(InputError, match=r"\.shape=.*expected"):
            model.block(bad_z, bad_x)
    longer = torch.cat([x, x], dim=1)
    with pytest.raises(InputError, match=r"expected \(B, at most 4, 8\)"):
        model.block(longer, longer)


def test_trm_refuses_a_single_state():
    model = looped_model(TRMConfig(**BASE))
    x, z = batch_of(model, samples=4)
    with pytest.raises(InputError, match=r"expected \(4, 2, 4, 8\)"):
        model.block(z[:, 0], x)  # (4, 4, 8): its halves would even broadcast against x


def test_shorter_sequences_work_unless_the_length_is_fixed():
    inputs = torch.tensor([[1, 2, 3]])
    for positions in ("none", "rope", "learned"):
        model = looped_model(FPRMConfig(**BASE, pos_encodings=positions, conv_type="conv1d"))
        x = model.injection(inputs)
        assert model.block(x, x).shape == (1, 3, 8)
    for variant in ({"mlp_t": True}, {"conv_type": "conv2d", "conv_kernel_size": 3}):
        model = looped_model(FPRMConfig(**BASE, **variant))
        with pytest.raises(InputError, match="expected exactly seq_len=4"):
            model.injection(inputs)
        with pytest.raises(InputError, match=r"expected \(B, 4, 8\)"):
            model.block(torch.zeros(1, 3, 8), torch.zeros(1, 3, 8))


PUZZLE = FPRMConfig(**BASE, puzzle_emb_ndim=12, num_puzzle_identifiers=3)


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        (FPRMConfig(**BASE), (torch.zeros(1, 4),), "inputs has type torch.float32; expected an integer"),
        (FPRMConfig(**BASE), ([[1, 2]],), "inputs has type list; expected an integer tensor"),
        (FPRMConfig(**BASE), (torch.ones(4, dtype=torch.long),), r"shape=\(4,\); expected \(B, seq_len\)"),
        (FPRMConfig(**BASE), (torch.ones(0, 4, dtype=torch.long),), "at least one sample"),
        (FPRMConfig(**BASE), (torch.full((1, 4), 7),), r"values in \[7, 7\]; expected \[0, 7\)"),
        (FPRMConfig(**BASE), (torch.full((1, 4), -1),), r"values in \[-1, -1\]"),
        (FPRMConfig(**BASE), (torch.ones(1, 5, dtype=torch.long),), "at most seq_len=4"),
        (FPRMConfig(**BASE), (torch.ones(1, 4, dtype=torch.long), torch.tensor([0])), "no puzzle tokens"),
        (PUZZLE, (torch.ones(1, 4, dtype=torch.long),), "puzzle_identifiers=None; this model has puzzle tokens"),
        (PUZZLE, (torch.ones(1, 4, dtype=torch.long), torch.tensor([3])), r"expected \[0, 3\)"),
        (PUZZLE, (torch.ones(2, 4, dtype=torch.long), torch.tensor([0])), r"expected \(2,\), one per row"),
    ],
)
def test_wrong_inputs_are_named(config, arguments, words):
    with pytest.raises(InputError, match=words):
        looped_model(config).injection(*arguments)


# --- starts and heads -----------------------------------------------------------------------------------------


def test_start_states_do_not_depend_on_the_batch_and_follow_the_seed():
    model = looped_model(FPRMConfig(**{**BASE, "hidden_size": 512, "seq_len": 64}, init_std=6.0))
    x, _ = batch_of(model)
    before = torch.random.get_rng_state()
    start = model.initial_state(x, seed=5)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's generator is left alone
    assert torch.equal(start[:1], model.initial_state(x[:1], seed=5))
    assert torch.equal(start[0], start[2])
    assert not torch.equal(start, model.initial_state(x, seed=6))
    # 32768 draws of deviation 6: the sample deviation errs by 6 / sqrt(2 * 32768) = 0.023; 5 of these allowed.
    assert abs(float(start[0].std()) - 6.0) < 0.12
    # Cut at two deviations of the untruncated normal: 2 / 0.87963 * 6 = 13.642.
    assert 13.0 < float(start.abs().max()) <= 13.643


def test_stored_start_vectors():
    fixed = looped_model(FPRMConfig(**BASE, fixed_init=True))
    x, _ = batch_of(fixed)
    assert torch.equal(fixed.initial_state(x, seed=1), fixed.init_vec.expand(3, 4, 8))
    trm = looped_model(TRMConfig(**BASE))
    z = trm.initial_state(x)
    assert torch.equal(z[:, 0], trm.H_init.expand(3, 4, 8))
    assert torch.equal(z[:, 1], trm.L_init.expand(3, 4, 8))


def test_heads_read_what_they_should():
    config = FPRMConfig(**BASE, puzzle_emb_ndim=12, num_puzzle_identifiers=3)
    model = looped_model(config)
    _, z = batch_of(model)
    far = z.clone()
    far[:, : config.puzzle_tokens] += 1
    assert torch.equal(model.readout(z), model.readout(far))  # logits: content tokens alone
    far = z.clone()
    far[:, 1:] += 1
    assert torch.equal(model.halt_logits(z), model.halt_logits(far))  # halting: the first position alone
    mean = looped_model(dataclasses.replace(config, q_logit_from_puzzle_emb=False))
    assert not torch.equal(mean.halt_logits(z), mean.halt_logits(far))
    trm = looped_model(TRMConfig(**BASE))
    _, pair = batch_of(trm)
    assert torch.equal(trm.readout(pair), trm.lm_head(pair[:, 0]))  # the answer state, not the latent one


def test_new_halting_heads_start_at_minus_five():
    model = TRMModel(TRMConfig(**BASE))
    _, z = batch_of(model)
    assert torch.equal(model.halt_logits(z), torch.full((3, 2), -5.0))
