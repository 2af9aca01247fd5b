"""Loading the checkpoints that the official FPRM and TRM code writes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from fpcheck.blocks.checkpoint import check_tensors, fit, read_weights
from fpcheck.blocks.config import BackboneConfig, FPRMConfig, TRMConfig
from fpcheck.blocks.fprm import FPRMModel
from fpcheck.blocks.trm import TRMModel
from fpcheck.errors import CheckpointError, ConfigError

__all__ = ["load_official"]

# Compilation and the loss wrapper each put a prefix in front of the network's own "inner.".
_PREFIXES = ("_orig_mod.model.", "model.", "_orig_mod.", "")
# What the official classes take for a key that a configuration leaves out, where that differs from ours.
_OFFICIAL_DEFAULTS: dict[type, dict[str, Any]] = {
    FPRMConfig: {"norm_type": "post-norm", "residual_scale": "none"},
    TRMConfig: {},
}
_OFFICIAL_PUZZLE_TOKENS = 16
# Keys without an official default whose value no weight would betray.
_REQUIRED: dict[type, tuple[str, ...]] = {
    FPRMConfig: ("pos_encodings",),
    TRMConfig: ("pos_encodings", "H_cycles", "L_cycles"),
}
# Scratch memory of the sparse embedding's optimiser: not part of the map.
_SCRATCH = ("puzzle_emb.local_weights", "puzzle_emb.local_ids")


def load_official(
    weights: Mapping[str, Tensor] | str | os.PathLike[str],
    config: BackboneConfig | Mapping[str, Any] | str | os.PathLike[str],
    *,
    norm_in_float32: bool = True,
) -> FPRMModel | TRMModel:
    """Load a checkpoint in the official key layout.

    Accepted names: ``inner.*`` behind ``_orig_mod.model.``, ``model.``, ``_orig_mod.`` or nothing. DropConnect
    masks are dropped after a look at their shape: the official code ignores them in evaluation. Weights in other
    floating-point types are converted to float32 (bfloat16 and float16 exactly, float64 rounded). The official
    evaluation runs in bfloat16; this model runs in float32.

    Some settings leave no trace in the weights, so a wrong value gives a wrong model without an error:
    ``num_heads``, ``norm_type``, ``norm_placement``, ``causal``, ``softmax_temp``, ``rope_theta``,
    ``rms_norm_eps``, ``normalize_input_injection``, ``puzzle_emb_len``, ``H_cycles``, ``L_cycles``, and rotary
    against no positions. Take them from the run's own configuration file.

    Args:
        weights: A state_dict, or a file: ``torch.save`` (``step_<N>``, or ``step_<N>_train_state.pt``, whose raw
            weights are taken, not the averaged ones) or safetensors. Files are read without running code.
        config: A configuration object, a mapping with official keys (vocab_size, seq_len and
            num_puzzle_identifiers included, which the official code takes from the data set), or a JSON or YAML
            file of one. An ``arch`` section is used in place of what surrounds it. Keys left out of a mapping
            take the official code's defaults.
        norm_in_float32: Overrides the configuration. True: norms always in float32, as in the official code, also
            after ``model.double()``. False: norms in the state's own dtype.

    Returns:
        An ``FPRMModel``, or a ``TRMModel`` where the weights hold ``inner.H_init``; evaluation mode, float32.

    Raises:
        CheckpointError: File missing, damaged, or not of weights; missing, extra or misshapen entries (each with
            the configuration key to check); weights that are not floating point.
        NonFiniteError: NaN or infinite weights.
        ConfigError: Unknown or missing configuration keys, values out of range, an unreadable file.

    Source: FPRM releases 9e0ebf3 and 68e118c; TRM e7b6871.
    """
    if isinstance(weights, Mapping):
        source, tensors = "the state_dict", check_tensors(weights, "the state_dict")
    else:
        source, tensors = str(weights), read_weights(weights)
    tensors = _own_names(tensors, source)
    settings = _configuration(config, TRMConfig if "H_init" in tensors else FPRMConfig)
    settings = dataclasses.replace(settings, norm_in_float32=norm_in_float32)
    # The random weights that construction draws are about to be overwritten: leave the caller's generator alone.
    with torch.random.fork_rng(devices=[]):
        model = TRMModel(settings) if isinstance(settings, TRMConfig) else FPRMModel(settings)
    fit(model, tensors, source=source, shown=_official_name)
    return model.eval()


def _own_names(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Rename to this library's layout, dropping what does not change the map in evaluation."""
    first = next(iter(tensors))
    prefix = next((p for p in _PREFIXES if first.startswith(p + "inner.")), None)
    if prefix is None:
        expected = ", ".join(f"{p}inner.*" for p in _PREFIXES)
        raise CheckpointError(
            f"{source}: {first!r} is no official name; expected one of {expected}. A model that fpcheck saved is "
            "read with fp.load or fp.blocks.load_folder"
        )
    own = {}
    for name, value in tensors.items():
        if not name.startswith(prefix + "inner."):
            raise CheckpointError(f"{source}: {name!r} does not begin with {prefix + 'inner.'!r} like {first!r}")
        short = name.removeprefix(prefix + "inner.")
        if short.endswith(".mask"):
            weight = tensors.get(name.removesuffix("mask") + "weight")
            if weight is None or weight.shape != value.shape:
                found = "missing" if weight is None else f"of shape {tuple(weight.shape)}"
                raise CheckpointError(
                    f"{source}: {name} has shape {tuple(value.shape)}, but the weight it masks is {found}"
                )
        elif short not in _SCRATCH:
            if short.startswith("L_level."):
                short = "block." + short.removeprefix("L_level.")
            own[short.replace("L_optimizer.init_vec", "init_vec")] = value
    return own


def _official_name(own: str) -> str:
    if own == "init_vec":
        return "inner.L_optimizer.init_vec"
    return "inner." + (own.replace("block.", "L_level.", 1) if own.startswith("block.") else own)


def _configuration(config: object, kind: type[FPRMConfig] | type[TRMConfig]) -> FPRMConfig | TRMConfig:
    if isinstance(config, FPRMConfig | TRMConfig):
        return config
    if isinstance(config, str | os.PathLike):
        config = _read_settings(Path(config))
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"config is a {type(config).__name__}; expected an FPRMConfig, a TRMConfig, a mapping of official keys, "
            "or the path of a JSON or YAML file"
        )
    settings = config.get("arch", config)
    if not isinstance(settings, Mapping):
        raise ConfigError(f"config['arch'] is a {type(settings).__name__}; expected a mapping of official keys")
    lacking = [key for key in _REQUIRED[kind] if key not in settings]
    if lacking:
        raise ConfigError(f"the official configuration lacks {', '.join(lacking)}; take them from the run's own")
    defaults = dict(_OFFICIAL_DEFAULTS[kind])
    if settings.get("puzzle_emb_ndim"):
        defaults["puzzle_emb_len"] = _OFFICIAL_PUZZLE_TOKENS
    return kind.from_dict(defaults | dict(settings))


def _read_settings(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigError(f"{path} is not {kind}: {' '.join(str(error).split())}") from error
