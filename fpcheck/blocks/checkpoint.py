"""Reading files of weights, and fitting weights to a model with errors that say what is wrong."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fpcheck.errors import CheckpointError, NonFiniteError

__all__ = ["check_tensors", "fit", "read_weights"]

# First bytes of what torch.save writes: a zip archive, or (before torch 1.6) a bare pickle.
_TORCH_MAGIC = (b"PK\x03\x04", b"\x80")
# A safetensors file begins with the length of its JSON header, which the format limits to this.
_LONGEST_HEADER = 100_000_000
_SHOWN = 3

# Which configuration keys decide each dimension of a weight; the first pattern that fits counts.
_DIMENSIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"^(embed_tokens\.embedding_weight|lm_head\.weight)$", ("vocab_size", "hidden_size")),
    (r"^q_head\.weight$", ("two q logits", "hidden_size")),
    (r"^puzzle_emb\.weights$", ("num_puzzle_identifiers", "puzzle_emb_ndim")),
    (r"^embed_pos\.embedding_weight$", ("seq_len or puzzle_emb_len", "hidden_size")),
    (r"\.conv\.weight$", ("hidden_size", "conv_type", "conv_kernel_size", "conv_kernel_size")),
    (r"\.mlp_t\.gate_up_proj\.weight$", ("expansion or seq_len", "seq_len or puzzle_emb_len")),
    (r"\.mlp_t\.down_proj\.weight$", ("seq_len or puzzle_emb_len", "expansion or seq_len")),
    (r"\.mlp\.gate_up_proj\.weight$", ("expansion", "hidden_size")),
    (r"\.mlp\.down_proj\.weight$", ("hidden_size", "expansion")),
    (r"", ("hidden_size", "hidden_size")),
)
# Which configuration keys decide whether a weight exists at all.
_PRESENCE: tuple[tuple[str, str], ...] = (
    (r"^puzzle_emb\.", "puzzle_emb_ndim"),
    (r"^embed_pos\.", "pos_encodings"),
    (r"\.conv\.bias$", "conv_bias"),
    (r"\.conv\.", "conv_type"),
    (r"\.alpha_[12]_layer\.(scale|u|v)$", "use_spec_norm_linear, which is not supported"),
    (r"\.alpha_1_", "residual_scale or outer_only"),
    (r"\.alpha_2_", "residual_scale"),
    (r"^[HL]_init$", "whether the configuration is for TRM (these are its start states) or for FPRM"),
    (r"^init_vec$", "fixed_init"),
    (r"^H_level\.", "the architecture: a second module H_level means HRM, which is not supported"),
)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a file of named tensors, ``torch.save`` or safetensors, told apart by content. Runs no code from it.

    A training state ``{"model": {...}, ...}`` is accepted; its ``"model"`` part is returned.

    Raises:
        CheckpointError: The file is missing, empty, truncated, of another kind, or holds anything but tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; expected a file of weights (.pt or .safetensors)")
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoint at {path}; check the path") from None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint {path}: {error.strerror}") from error
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes); copy the checkpoint again")
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER:
        return check_tensors(_read_safetensors(path), str(path))
    if head.startswith(_TORCH_MAGIC):
        return check_tensors(_read_torch(path), str(path))
    raise CheckpointError(
        f"{path} begins with {head[:8]!r}: neither a torch.save nor a safetensors file; expected a checkpoint"
    )


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} is a truncated or damaged safetensors file ({error}); copy it again") from error


def _read_torch(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is a pickle of something other than plain weights, and was not run "
            f"({_first_line(error)}). Save model.state_dict() instead"
        ) from error
    except Exception as error:  # damaged archives and pickles fail in many ways, all meaning the same
        raise CheckpointError(
            f"{path} is a truncated or damaged torch.save file ({_first_line(error)}); copy it again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .")[:160]


def check_tensors(weights: object, source: str) -> dict[str, Tensor]:
    """``weights`` as a dictionary of named tensors; the ``"model"`` part of a training state.

    Raises:
        CheckpointError: It is no mapping of names to tensors; the message names the first misfit.
    """
    if isinstance(weights, Mapping) and isinstance(weights.get("model"), Mapping):
        weights = weights["model"]
    if not isinstance(weights, Mapping) or not weights:
        kind = "an empty mapping" if isinstance(weights, Mapping) else f"a {type(weights).__name__}"
        raise CheckpointError(f"{source} holds {kind}; expected a state_dict: names mapped to tensors")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{source} maps {name!r} to a {type(value).__name__}; expected a state_dict: names mapped to tensors"
            )
    return dict(weights)


def fit(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str, shown: Callable[[str], str] = str) -> None:
    """Copy ``tensors`` into ``model`` as float32, all of them or none.

    Args:
        model: Takes the weights.
        tensors: One per entry of ``model.state_dict()``, by the same names.
        source: What the tensors come from, for messages.
        shown: The name under which ``source`` knows an entry of the model.

    Raises:
        CheckpointError: Missing, extra or misshapen entries, or a dtype that is not floating point.
        NonFiniteError: A weight is NaN or infinite, or overflows float32.
    """
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    misshapen = [key for key in expected if key in tensors and tuple(tensors[key].shape) != expected[key]]
    missing = [key for key in expected if key not in tensors]
    extra = [key for key in tensors if key not in expected]
    if misshapen or missing or extra:
        parts = [
            *_listed("misshapen", misshapen, lambda k: _misshapen(k, shown(k), tuple(tensors[k].shape), expected[k])),
            *_listed("missing", missing, lambda k: f"{shown(k)} {expected[k]} (check {_decides(k, tensors)})"),
            *_listed("extra", extra, lambda k: f"{shown(k)} (check {_decides(k, expected)})"),
        ]
        raise CheckpointError(f"{source} does not fit the configuration. " + " ".join(parts))
    converted = {}
    for key in expected:
        value = tensors[key]
        if not value.is_floating_point():
            raise CheckpointError(f"{source}: {shown(key)} has dtype {value.dtype}; expected floating-point weights")
        wide = converted[key] = value.detach().to(torch.float32)
        bad = int((~torch.isfinite(wide)).sum())
        if bad:
            raise NonFiniteError(
                f"{source}: weight {shown(key)} holds {bad} NaN or inf of {wide.numel()} entries (in float32); "
                "the run that wrote it had diverged: take an earlier checkpoint"
            )
    model.load_state_dict(converted)


def _listed(what: str, keys: list[str], describe: Callable[[str], str]) -> list[str]:
    if not keys:
        return []
    more = f"; and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return [f"{len(keys)} {what}: " + "; ".join(map(describe, keys[:_SHOWN])) + more + "."]


def _misshapen(key: str, shown: str, found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    if len(found) == len(expected):
        names = next(names for pattern, names in _DIMENSIONS if re.search(pattern, key))
        guilty = next(name for name, a, b in zip(names, found, expected, strict=False) if a != b)
    else:
        guilty = _decides(key, ())
    return f"{shown} has shape {found}, expected {expected} (check {guilty})"


def _decides(key: str, others: Iterable[str]) -> str:
    """The configuration key that decides whether the weight ``key`` exists, given the other side's names."""
    layer = re.match(r"block\.layers\.\d+\.", key)
    if layer:
        return "mlp_t" if any(other.startswith(layer[0]) for other in others) else "L_layers"
    return next((name for pattern, name in _PRESENCE if re.search(pattern, key)), "the architecture")
