"""Models stored as a folder: ``weights.safetensors`` beside ``card.json``, which says where they come from."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fpcheck.blocks.checkpoint import fit, read_weights
from fpcheck.blocks.config import FPRMConfig, TRMConfig
from fpcheck.blocks.contractive import ContractiveConfig, ContractiveModel
from fpcheck.blocks.fprm import FPRMModel
from fpcheck.blocks.model import LoopedModel
from fpcheck.blocks.trm import TRMModel
from fpcheck.errors import CheckpointError, InputError, NonFiniteError, OutputError, TargetError, nearest

__all__ = ["load", "load_folder", "save_model", "shipped_models"]

_WEIGHTS, _CARD = "weights.safetensors", "card.json"
_SHIPPED = Path(__file__).parents[1] / "models"
# What the trainer must say, and what is read off the model itself.
_TOLD = ("name", "task", "command", "seed", "held_out")
_DERIVED = ("architecture", "config", "sha256")
_ARCHITECTURES: dict[type[LoopedModel], str] = {FPRMModel: "fprm", TRMModel: "trm", ContractiveModel: "contractive"}


def shipped_models() -> tuple[str, ...]:
    """Names that :func:`load` knows, in alphabetical order."""
    return tuple(sorted(card.parent.name for card in _SHIPPED.glob(f"*/{_CARD}")))


def load(name: str) -> LoopedModel:
    """Load a model that ships with the package.

    Args:
        name: One of :func:`shipped_models`.

    Returns:
        The model in evaluation mode, float32; ``model.card`` says how it was trained and how it scores.

    Raises:
        TargetError: No such model; the message names the nearest.
        CheckpointError: The installed files are damaged.
    """
    if name not in shipped_models():
        raise TargetError(f"unknown model {name!r}; " + nearest(str(name), shipped_models()))
    return load_folder(_SHIPPED / name)


def load_folder(path: str | os.PathLike[str]) -> LoopedModel:
    """Load a model that :func:`save_model` wrote.

    Args:
        path: The folder.

    Returns:
        As for :func:`load`.

    Raises:
        CheckpointError: The folder or one of its files is missing or damaged, or the weights are not those that
            the card was written for.
        ConfigError: The card's configuration is not valid.
        NonFiniteError: NaN or infinite weights.
    """
    folder = Path(path)
    card = _read_card(folder / _CARD)
    weights = folder / _WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"no {_WEIGHTS} beside {folder / _CARD}; copy the whole folder")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != card["sha256"]:
        raise CheckpointError(
            f"{weights} has sha256 {digest[:12]}..., but {_CARD} says {str(card['sha256'])[:12]}...: it is truncated, "
            "damaged or another model's; copy the folder again"
        )
    # As in load_official: the weights drawn here are overwritten, the caller's generator is not to notice.
    with torch.random.fork_rng(devices=[]):
        model: LoopedModel
        if card["architecture"] == "trm":
            model = TRMModel(TRMConfig.from_dict(card["config"]))
        elif card["architecture"] == "contractive":
            model = ContractiveModel(ContractiveConfig.from_dict(card["config"]))
        else:
            model = FPRMModel(FPRMConfig.from_dict(card["config"]))
    fit(model, read_weights(weights), source=str(weights))
    model.card = card
    return model.eval()


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"no model at {path.parent}: cannot read {path.name} ({error.strerror}); expected a folder that "
            "save_model wrote"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy the folder again") from error
    lacking = [key for key in (*_TOLD, *_DERIVED) if not isinstance(card, dict) or key not in card]
    if lacking:
        raise CheckpointError(f"{path} lacks {', '.join(lacking)}; expected a card that save_model wrote")
    if card["architecture"] not in _ARCHITECTURES.values():
        raise CheckpointError(
            f"{path}: unknown architecture {card['architecture']!r}; "
            + nearest(str(card["architecture"]), _ARCHITECTURES.values())
        )
    return dict(card)


def save_model(
    model: LoopedModel, folder: str | os.PathLike[str], card: Mapping[str, Any], *, overwrite: bool = False
) -> Path:
    """Write a model as a folder that :func:`load_folder` reads: complete, or not at all.

    Args:
        model: An ``FPRMModel``, ``TRMModel`` or ``ContractiveModel``, float32, finite weights.
        folder: Folder to create; its parents are created too.
        card: At least ``name``, ``task``, ``command``, ``seed`` and ``held_out``, JSON values. ``architecture``,
            ``config`` and ``sha256`` are filled in from the model, whatever the card says.
        overwrite: Replace a folder that already holds a model and nothing else.

    Returns:
        The folder.

    Raises:
        InputError: The card lacks a key or is not JSON; the model has another type or dtype.
        NonFiniteError: NaN or infinite weights.
        OutputError: The folder exists, or cannot be written.
    """
    folder = Path(folder)
    if type(model) not in _ARCHITECTURES:
        raise InputError(f"model is a {type(model).__name__}; expected an FPRMModel, a TRMModel or a ContractiveModel")
    lacking = [key for key in _TOLD if key not in card]
    if lacking:
        raise InputError(f"the card lacks {', '.join(lacking)}; expected {', '.join(_TOLD)}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    for key, value in tensors.items():
        if value.dtype != torch.float32:
            raise InputError(f"weight {key} has dtype {value.dtype}; expected float32: call model.float() first")
        if not torch.isfinite(value).all():
            raise NonFiniteError(f"weight {key} holds NaN or inf; a diverged model is not worth a card")
    blob = safetensors.torch.save(tensors)
    full = {
        **card,
        "architecture": _ARCHITECTURES[type(model)],
        "config": model.config.to_dict(),
        "sha256": hashlib.sha256(blob).hexdigest(),
    }
    try:
        text = json.dumps(full, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InputError(f"the card is not JSON ({error}); use strings, finite numbers, lists and mappings") from error
    _put(folder, {_WEIGHTS: blob, _CARD: text.encode()}, overwrite=overwrite)
    return folder


def _put(folder: Path, files: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Write ``files`` beside ``folder`` and rename them into place in one go."""
    mark = uuid.uuid4().hex[:8]
    fresh, old = (folder.parent / f".{folder.name}.{mark}.{kind}" for kind in ("new", "old"))
    try:
        if folder.exists():
            others = {p.name for p in folder.iterdir()} - set(files) if folder.is_dir() else {folder.name}
            if others or not overwrite:
                why = f"it also holds {min(others)}" if others else "it holds a model already"
                raise OutputError(f"cannot write the model to {folder}: {why}; choose another folder")
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        for name, data in files.items():
            (fresh / name).write_bytes(data)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the model to {folder}: {error.strerror}; choose a writable folder") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
