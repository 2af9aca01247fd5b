"""Configurations: every wrong key, type and range is named; right ones survive a round trip."""

import json
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import FPRM, TRM, Oracle
from strategies import fprm_configs, trm_configs

from fpcheck.blocks import FPRMConfig, TRMConfig
from fpcheck.errors import ConfigError

BASE = {"vocab_size": 7, "seq_len": 4, "hidden_size": 8, "num_heads": 2}
PUZZLE = {"puzzle_emb_ndim": 12, "num_puzzle_identifiers": 3}


@given(st.one_of(fprm_configs(), trm_configs()))
def test_round_trip_through_json(config):
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)


@pytest.mark.parametrize("name", [*FPRM, *TRM])
def test_official_configurations_are_read(name):
    official = Oracle(name).config
    kind = TRMConfig if name in TRM else FPRMConfig
    config = kind.from_dict(official)
    for key, value in official.items():
        # Each official key is either a field, or set aside under its name; None is the official "none".
        found = config.run_settings[key] if key in config.run_settings else getattr(config, key)
        assert found == (value if value is not None else "none"), key


def test_yaml_nulls_mean_none():
    nulls = dict.fromkeys(["residual_scale", "norm_placement", "conv_type", "pos_encodings"])
    config = FPRMConfig.from_dict({**BASE, **nulls})
    assert all(getattr(config, key) == "none" for key in nulls)


def test_run_settings_do_not_make_configurations_differ():
    assert FPRMConfig.from_dict({**BASE, "fp_thresh": 0.1}) == FPRMConfig(**BASE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm_tipe": "pre-norm"}, "unknown FPRMConfig key 'norm_tipe' .value 'pre-norm'.; did you mean 'norm_type'"),
        # A decay of the first release that the official documentation still shows and its code ignores.
        ({"stepsize_decays": 0.9}, "did you mean 'stepsize_decay'"),
        ({"qwertyuiop": 1}, "unknown FPRMConfig key 'qwertyuiop' .value 1.; valid: "),
        ({3: 1}, "unknown FPRMConfig key 3"),
        # The official code takes this for "no norms at all", without a word.
        ({"norm_type": "prenorm"}, "unknown norm_type='prenorm'; did you mean 'pre-norm'"),
        ({"conv_type": "conv3d"}, "unknown conv_type='conv3d'; did you mean 'conv"),
        ({"residual_scale": "input_independent"}, "did you mean 'input-independent'"),
        ({"pos_encodings": "ropes"}, "did you mean 'rope'"),
        ({"norm_placement": ["none"]}, r"unknown norm_placement=\['none'\]"),
    ],
)
def test_unknown_keys_and_values_name_the_nearest(settings, words):
    with pytest.raises(ConfigError, match=words):
        FPRMConfig.from_dict({**BASE, **settings})


def test_missing_keys_and_other_things_are_named():
    with pytest.raises(ConfigError, match="FPRMConfig lacks seq_len, vocab_size; add them"):
        FPRMConfig.from_dict({"hidden_size": 8, "num_heads": 2})
    with pytest.raises(ConfigError, match="settings is a list; expected a mapping"):
        FPRMConfig.from_dict([("hidden_size", 8)])
    # TRM has no convolution: a key of the other architecture is a mistake, not a setting.
    with pytest.raises(ConfigError, match="unknown TRMConfig key 'conv_type'"):
        TRMConfig.from_dict({**BASE, "conv_type": "conv1d"})


@pytest.mark.parametrize("kind", [FPRMConfig, TRMConfig])
def test_every_field_refuses_another_type(kind):
    hints = {k: v for k, v in get_type_hints(kind).items() if k != "run_settings"}
    assert len(hints) >= 20
    for name, hint in hints.items():
        for wrong in ("3", 2.5, True, None, 7):
            fits = {
                bool: isinstance(wrong, bool),
                int: wrong == 7,
                # Python compares True == 1 and 7 == 7.0: whole numbers are floats here, truth values are not.
                float: wrong in (2.5, 7),
            }.get(hint, wrong in get_args(hint) if get_origin(hint) is Literal else None)
            if not fits:
                with pytest.raises(ConfigError, match=f"{name}="):
                    kind(**{**BASE, **PUZZLE, name: wrong})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *(({name: 0}, f"{name}=0; expected an integer >= 1") for name in (
            "vocab_size", "seq_len", "hidden_size", "num_heads", "L_layers", "mlp_multiple", "H_cycles", "L_cycles",
            "conv_kernel_size")),
        *(({name: value}, f"{name}={value}; expected a finite number > 0")
          for name in ("expansion", "softmax_temp", "rope_theta", "rms_norm_eps")
          for value in (0.0, -1.0, float("inf"), float("nan"))),
        *(({name: -1}, f"{name}=-1; expected an integer >= 0")
          for name in ("puzzle_emb_ndim", "puzzle_emb_len", "num_puzzle_identifiers")),
        *(({name: value}, f"{name}={value}; expected a number strictly between 0 and 1")
          for name in ("alpha_1_init", "alpha_2_init") for value in (0.0, 1.0, float("nan"))),
        ({"init_std": -0.1}, "init_std=-0.1; expected a finite number >= 0"),
        ({"init_std": float("nan")}, "init_std=nan"),
        ({"hidden_size": 9}, "hidden_size=9; expected a multiple of num_heads=2"),
        ({"hidden_size": 6}, "even for rotary positions .got 3."),
        ({"conv_type": "conv2d"}, "conv_kernel_size=4; expected odd"),
        ({"conv_type": "conv2d", "conv_kernel_size": 3, "seq_len": 5}, "seq_len=5; expected a square number"),
        # The official class defaults, 0 and 16 together, crash there with a shape error.
        ({"puzzle_emb_len": 16}, "puzzle_emb_len=16; expected 0 when puzzle_emb_ndim is 0"),
        ({**PUZZLE, "puzzle_emb_len": 1}, "puzzle_emb_ndim=12; expected at most puzzle_emb_len . hidden_size = 8"),
        ({"puzzle_emb_ndim": 12}, "num_puzzle_identifiers=0; expected at least 1"),
        # The official layer rewrites its u and v at every call, in evaluation too.
        ({"use_spec_norm_linear": True, "residual_scale": "input-dependent"}, "use_spec_norm_linear=True; expected"),
    ],
)  # fmt: skip
def test_ranges(settings, words):
    with pytest.raises(ConfigError, match="FPRMConfig: .*" + words):
        FPRMConfig(**{**BASE, **settings})


def test_the_spectral_norm_flag_is_harmless_where_the_official_code_never_reads_it():
    assert FPRMConfig(**BASE, use_spec_norm_linear=True).use_spec_norm_linear


def test_trm_reads_its_halting_head_at_the_first_position():
    with pytest.raises(ConfigError, match="q_logit_from_puzzle_emb=False; expected True for TRM"):
        TRMConfig(**BASE, q_logit_from_puzzle_emb=False)


@pytest.mark.parametrize(
    ("width", "expansion", "multiple", "inner"),
    # expansion * width * 2 / 3, rounded, then up to a multiple: 1365.3 -> 1536; 170.7 -> 256; 21.3 -> 24.
    [(512, 4.0, 256, 1536), (64, 4.0, 256, 256), (8, 4.0, 4, 24)],
)
def test_width_of_the_feed_forward_layers(width, expansion, multiple, inner):
    config = FPRMConfig(**BASE, expansion=expansion, mlp_multiple=multiple)
    assert config.mlp_width(width) == inner


@pytest.mark.parametrize(("length", "tokens"), [(0, 2), (2, 2), (5, 5)])  # ceil(12 / 8) = 2 unless given
def test_number_of_puzzle_tokens(length, tokens):
    config = FPRMConfig(**BASE, **PUZZLE, puzzle_emb_len=length)
    assert (config.puzzle_tokens, config.positions) == (tokens, tokens + 4)
