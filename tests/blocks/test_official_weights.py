"""Loading official checkpoints: every layout that is one, and what is said about everything that is not."""

import json
import os
import pickle

import pytest
import torch
import yaml
from oracle import FPRM, Oracle
from safetensors.torch import save_file
from strategies import batch_of, looped_model

from fpcheck.blocks import FPRMConfig, FPRMModel, TRMConfig, TRMModel, load_official
from fpcheck.errors import CheckpointError, ConfigError, NonFiniteError


@pytest.fixture(scope="module")
def v01():
    return Oracle("v01")


@pytest.fixture(scope="module")
def trm():
    return Oracle("trm01")


def image(model):
    x, z = batch_of(model)
    return model.block(z, x).detach()


def with_masks(weights):
    masked = [k for k in weights if k.endswith(".weight") and "conv" not in k]
    assert masked
    return weights | {k.removesuffix("weight") + "mask": torch.ones_like(weights[k]) for k in masked}


# --- what is accepted -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["_orig_mod.model.", "model.", "_orig_mod.", ""])
@pytest.mark.parametrize("masks", [False, True])
def test_prefixes_and_masks(v01, prefix, masks):
    weights = with_masks(v01.state_dict) if masks else v01.state_dict
    model = load_official({prefix + k: v for k, v in weights.items()}, v01.config)
    assert isinstance(model, FPRMModel)
    assert not model.training
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32}
    assert torch.equal(image(model), image(v01.model()))


def save_pt(tensors, path):
    torch.save(tensors, path)


def save_legacy(tensors, path):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def save_train_state(tensors, path):
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-3}]}
    torch.save({"model": tensors, "step": 7, "optimizers": [optimizer], "ema": None, "wandb_id": "abc"}, path)


@pytest.mark.parametrize(
    ("save", "name"),
    [
        (save_pt, "step_78120"),  # official checkpoints carry no suffix
        (save_pt, "weights.pt"),
        (save_legacy, "old.pt"),
        (save_train_state, "step_7_train_state.pt"),
        (save_file, "weights.safetensors"),
    ],
)
def test_files(v01, tmp_path, save, name):
    save(v01.state_dict, tmp_path / name)
    for path in (tmp_path / name, str(tmp_path / name)):
        assert torch.equal(image(load_official(path, v01.config)), image(v01.model()))


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
@pytest.mark.parametrize("nested", [False, True])
def test_configuration_files(v01, tmp_path, suffix, nested):
    settings = {"arch": v01.config, "lr": 1e-4, "seed": 0} if nested else v01.config
    path = tmp_path / f"all_config{suffix}"
    path.write_text(json.dumps(settings) if suffix == ".json" else yaml.safe_dump(settings))
    for config in (path, str(path), settings, FPRMConfig.from_dict(v01.config)):
        assert torch.equal(image(load_official(v01.state_dict, config)), image(v01.model()))


def test_trm_is_recognised(trm):
    model = load_official(trm.state_dict, trm.config)
    assert isinstance(model, TRMModel)
    assert torch.equal(model.H_init, trm["state_dict/inner.H_init"])
    assert isinstance(load_official(trm.state_dict, TRMConfig.from_dict(trm.config)), TRMModel)


def test_scratch_memory_of_the_puzzle_optimiser_is_ignored():
    v03 = Oracle("v03")
    weights = v03.state_dict | {
        "inner.puzzle_emb.local_weights": torch.zeros(3, 64),
        "inner.puzzle_emb.local_ids": torch.zeros(3, dtype=torch.int32),
    }
    assert torch.equal(image(load_official(weights, v03.config)), image(v03.model()))


def test_fixed_start_vector(v01):
    vector = torch.linspace(-1, 1, 32)
    weights = v01.state_dict | {"inner.L_optimizer.init_vec": vector}
    model = load_official(weights, v01.config | {"fixed_init": True})
    x, _ = batch_of(model)
    assert torch.equal(model.initial_state(x), vector.expand_as(x))
    with pytest.raises(CheckpointError, match=r"extra: inner.L_optimizer.init_vec \(check fixed_init\)"):
        load_official(weights, v01.config)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_point_types_become_float32(v01, dtype):
    weights = {k: v.to(dtype) for k, v in v01.state_dict.items()}
    model = load_official(weights, v01.config)
    want = load_official({k: v.to(torch.float32) for k, v in weights.items()}, v01.config)
    assert torch.equal(image(model), image(want))
    # A convolution of a bfloat16 state outside autocast, which the official code cannot do.
    if dtype == torch.bfloat16:
        assert image(model.to(dtype)).dtype == dtype


def test_norms_are_official_by_default_and_can_be_chosen(v01):
    assert load_official(v01.state_dict, v01.config).config.norm_in_float32
    own = FPRMConfig.from_dict(v01.config | {"norm_in_float32": True})
    assert not load_official(v01.state_dict, own, norm_in_float32=False).config.norm_in_float32


def test_what_a_mapping_leaves_out_takes_the_official_defaults():
    v05 = Oracle("v05")  # post-norm without residual scales, which is what the official classes default to
    short = {k: v for k, v in v05.config.items() if k not in ("norm_type", "residual_scale", "norm_placement")}
    assert torch.equal(image(load_official(v05.state_dict, short)), image(v05.model()))
    # 16 puzzle tokens unless said otherwise.
    config = {k: v for k, v in Oracle("v03").config.items() if k != "puzzle_emb_len"}
    assert load_official(Oracle("v03").state_dict, config).config.puzzle_tokens == 16


def test_fixed_scales_with_a_feed_forward_mixer(v01):
    # The official code crashes on this pair (it transposes a scalar); the formulas are clear.
    config = FPRMConfig(vocab_size=7, seq_len=4, hidden_size=8, num_heads=2, mlp_t=True, residual_scale="fixed")
    assert torch.isfinite(image(looped_model(config))).all()


def test_loading_leaves_the_random_generator_alone(v01):
    before = torch.random.get_rng_state()
    load_official(v01.state_dict, v01.config)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", FPRM)
def test_loaded_weights_are_the_stored_ones(name):
    oracle = Oracle(name)
    loaded = sorted(float(v.double().sum()) for v in oracle.model().state_dict().values())
    assert loaded == sorted(float(v.double().sum()) for v in oracle.state_dict.values())


# --- files that are no weights --------------------------------------------------------------------------------


def refused(weights, config, *words, error=CheckpointError):
    with pytest.raises(error) as caught:
        load_official(weights, config)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert "\n" not in message
    return message


def test_missing_empty_and_foreign_files(v01, tmp_path):
    refused(tmp_path / "nowhere.pt", v01.config, "no checkpoint at", "nowhere.pt")
    refused(tmp_path, v01.config, "is a folder; expected a file of weights")
    (tmp_path / "empty.pt").touch()
    refused(tmp_path / "empty.pt", v01.config, "is empty (0 bytes)")
    (tmp_path / "notes.pt").write_text("dear diary")
    refused(tmp_path / "notes.pt", v01.config, "neither a torch.save nor a safetensors file")
    (tmp_path / "x.safetensors").write_bytes(b"{}")
    refused(tmp_path / "x.safetensors", v01.config, "neither a torch.save nor a safetensors file")


def test_unreadable_file(v01, tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError(13, "Permission denied")

    # Not by chmod: the tests may run as root, who reads everything.
    monkeypatch.setattr(type(tmp_path), "open", denied)
    refused(tmp_path / "w.pt", v01.config, "cannot read the checkpoint", "Permission denied")


@pytest.mark.parametrize("save", [save_pt, save_legacy, save_file])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_truncated_files(v01, tmp_path, save, share):
    path = tmp_path / "weights"
    save(v01.state_dict, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(int(share * len(whole)), 16)])
    refused(path, v01.config, str(path), "copy it again")


def test_a_pickle_is_refused_and_not_run(v01, tmp_path):
    class Trap:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "sprung"),))

    for name, write in [
        ("zip.pt", lambda path: torch.save({"inner.w": Trap()}, path)),
        ("bare.pt", lambda path: path.write_bytes(pickle.dumps(Trap()))),
    ]:
        write(tmp_path / name)
        refused(tmp_path / name, v01.config, name)
        assert not (tmp_path / "sprung").exists()
    # The trap does spring where pickles are trusted.
    pickle.loads((tmp_path / "bare.pt").read_bytes())
    assert (tmp_path / "sprung").exists()


def test_a_whole_module_is_refused_with_the_remedy(v01, tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    refused(tmp_path / "module.pt", v01.config, "pickle of something other than plain weights", "state_dict()")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(2)], "holds a list; expected a state_dict"),
        ({}, "holds an empty mapping"),
        ({"inner.a": 3}, "maps 'inner.a' to a int"),
        ({3: torch.ones(2)}, "maps 3 to a Tensor"),
        ({"optimizer": {"lr": 1.0}}, "maps 'optimizer' to a dict"),
    ],
)
def test_files_of_something_else(v01, tmp_path, content, words):
    torch.save(content, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", v01.config, words)


# --- weights that do not fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"hidden_size": 64},
            ["embed_tokens.embedding_weight has shape (11, 32), expected (11, 64) (check hidden_size)"],
        ),
        (
            {"vocab_size": 12},
            ["2 misshapen", "lm_head.weight has shape (11, 32), expected (12, 32) (check vocab_size)"],
        ),
        (
            {"L_layers": 3},
            ["4 missing: inner.L_level.layers.2.self_attn.qkv_proj.weight (96, 32) (check L_layers)", "1 more"],
        ),
        ({"L_layers": 1}, ["4 extra: inner.L_level.layers.1.", "(check L_layers)"]),
        ({"expansion": 13}, ["mlp.gate_up_proj.weight has shape (512, 32), expected (1024, 32) (check expansion)"]),
        (
            {"mlp_t": True},
            ["4 missing: inner.L_level.layers.0.mlp_t.", "4 extra: inner.L_level.layers.0.", "(check mlp_t)"],
        ),
        ({"conv_type": "none"}, ["extra: inner.L_level.conv.weight (check conv_type)"]),
        ({"conv_type": "conv2d", "conv_kernel_size": 3}, ["(32, 1, 4), expected (32, 1, 3, 3) (check conv_type)"]),
        ({"conv_kernel_size": 5}, ["has shape (32, 1, 4), expected (32, 1, 5) (check conv_kernel_size)"]),
        ({"conv_bias": True}, ["missing: inner.L_level.conv.bias (32,) (check conv_bias)"]),
        ({"residual_scale": "none"}, ["2 extra: inner.L_level.alpha_2_param (check residual_scale)"]),
        ({"residual_scale": "fixed"}, ["inner.L_level.alpha_1_param has shape (32,), expected ()", "residual_scale"]),
        ({"outer_only": True}, ["1 extra: inner.L_level.alpha_1_param (check residual_scale or outer_only)"]),
        ({"pos_encodings": "learned"}, ["missing: inner.embed_pos.embedding_weight (16, 32) (check pos_encodings)"]),
        ({"puzzle_emb_ndim": 8}, ["missing: inner.puzzle_emb.weights (3, 8) (check puzzle_emb_ndim)"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_configuration_key_to_check_is_named(v01, change, words):
    refused(v01.state_dict, v01.config | change, "does not fit the configuration", *words)


def test_the_other_architecture_is_recognised(v01, trm):
    refused(v01.state_dict, TRMConfig.from_dict(trm.config | {"seq_len": 16}), "inner.H_init", "FPRM")
    refused(trm.state_dict, FPRMConfig.from_dict(v01.config), "inner.H_init", "TRM")
    hrm = trm.state_dict | {"inner.H_level.layers.0.mlp.down_proj.weight": torch.ones(32, 256)}
    refused(hrm, trm.config, "HRM, which is not supported")


def test_spectral_normalised_layers_are_refused_by_name(v01):
    weights = v01.state_dict | {f"inner.L_level.alpha_1_layer.{k}": torch.ones(32) for k in ("u", "v")}
    refused(weights, v01.config, "use_spec_norm_linear, which is not supported")
    with pytest.raises(ConfigError, match="use_spec_norm_linear=True"):
        load_official(weights, v01.config | {"use_spec_norm_linear": True, "residual_scale": "input-dependent"})


def test_names_that_are_not_official(v01):
    own = v01.model().state_dict()
    refused(dict(own), v01.config, "'embed_tokens.embedding_weight' is no official name", "load_folder")
    mixed = dict(v01.state_dict) | {"model.inner.lm_head.weight": torch.ones(11, 32)}
    refused(mixed, v01.config, "'model.inner.lm_head.weight' does not begin with 'inner.'")


def test_masks_must_fit_the_weight_they_mask(v01):
    name = "inner.lm_head.mask"
    refused(v01.state_dict | {name: torch.ones(3, 3)}, v01.config, f"{name} has shape (3, 3)", "of shape (11, 32)")
    refused(v01.state_dict | {"inner.foo.mask": torch.ones(3)}, v01.config, "inner.foo.mask", "missing")
    # Values other than one are DropConnect's, which the official evaluation ignores.
    zeros = v01.state_dict | {name: torch.zeros(11, 32)}
    assert torch.equal(image(load_official(zeros, v01.config)), image(v01.model()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights(v01, bad):
    weights = v01.state_dict
    weights["inner.lm_head.weight"][0, 3] = bad
    message = "weight inner.lm_head.weight holds 1 NaN or inf of 352 entries"
    refused(weights, v01.config, message, error=NonFiniteError)


def test_weights_too_large_for_float32(v01):
    weights = v01.state_dict
    weights["inner.q_head.bias"] = torch.tensor([1e300, 0.0], dtype=torch.float64)
    refused(weights, v01.config, "inner.q_head.bias holds 1 NaN or inf", error=NonFiniteError)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_of_other_types(v01, dtype):
    weights = v01.state_dict
    weights["inner.lm_head.weight"] = torch.ones(11, 32, dtype=dtype)
    refused(weights, v01.config, f"inner.lm_head.weight has dtype {dtype}; expected floating-point weights")


# --- configurations that are none -----------------------------------------------------------------------------


def test_configuration_errors(v01, trm, tmp_path):
    def bad(config, *words, weights=v01.state_dict):
        refused(weights, config, *words, error=ConfigError)

    bad(tmp_path / "none.json", "cannot read the configuration", "none.json")
    (tmp_path / "bad.json").write_text("{'single': 1}")
    bad(tmp_path / "bad.json", "bad.json is not JSON")
    (tmp_path / "bad.yaml").write_text("a: [1, 2\nb: 3")
    bad(tmp_path / "bad.yaml", "bad.yaml is not YAML")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    bad(tmp_path / "list.yaml", "config is a list; expected an FPRMConfig")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    bad(tmp_path / "binary.yaml", "binary.yaml is not YAML")
    bad({"arch": 3}, "config['arch'] is a int")
    bad(None, "config is a NoneType")
    bad(v01.config | {"norm_type": "prenorm"}, "did you mean 'pre-norm'")
    for key, oracle in (("pos_encodings", v01), ("H_cycles", trm), ("L_cycles", trm)):
        # No weight would betray a guess at these.
        lacking = {k: v for k, v in oracle.config.items() if k != key}
        bad(lacking, f"the official configuration lacks {key}", weights=oracle.state_dict)
