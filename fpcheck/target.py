"""What can be assessed: a block with a batch of injections, and where a command-line ``TARGET`` finds them."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fpcheck.blocks import LoopedModel, load, load_folder, load_official, shipped_models
from fpcheck.errors import InputError, TargetError, nearest
from fpcheck.loop import Block, Injection, map_leaves
from fpcheck.tasks import StateTracking, task_from_dict

__all__ = ["Data", "Target", "find_target"]


@dataclass(frozen=True)
class Target:
    """A block, its injections, and what is known about the right answers.

    Args:
        name: How reports call it.
        block: ``block(z, x) -> z'``.
        x: Injections, leading dimension ``B``: one per input.
        z0: Start states ``(B, *state)``.
        readout: Decodes a state into logits ``(B, positions, classes)``; None if unknown.
        labels: Right answers ``(B, positions)``, integers; negative ones are not scored. None if unknown.
        source: Where it all came from, for the record.
    """

    name: str
    block: Block
    x: Injection
    z0: Tensor
    readout: Any = None
    labels: Tensor | None = None
    source: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.labels is not None and self.readout is None:
            raise InputError("labels were given without a readout; pass readout= too, or leave the labels out")

    def to(self, dtype: torch.dtype) -> Target:
        """The same map with its stored numbers widened (or narrowed) to ``dtype``; a function stays as it is."""
        block = copy.deepcopy(self.block).to(dtype) if isinstance(self.block, nn.Module) else self.block
        x = map_leaves(self.x, lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf)
        return replace(self, block=block, x=x, z0=self.z0.to(dtype))


@dataclass(frozen=True)
class Data:
    """What the command line says about the inputs of a target.

    Args:
        inputs: How many inputs.
        seed: Of the inputs and of the start states.
        config: Configuration file of an official checkpoint.
        tokens: ``.npy`` or ``.npz`` file with ``inputs`` and, if known, ``labels`` and ``puzzle_identifiers``.
        state_shape: Shape of one state of a user's block, for random injections of that shape.
    """

    inputs: int = 16
    seed: int = 0
    config: Path | None = None
    tokens: Path | None = None
    state_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.inputs < 1:
            raise InputError(f"inputs={self.inputs}; expected at least 1: there is nothing to certify without inputs")
        if self.seed < 0:
            raise InputError(f"seed={self.seed}; expected an integer >= 0")
        if self.state_shape is not None and (not self.state_shape or min(self.state_shape) < 1):
            raise InputError(f"state_shape={self.state_shape}; expected positive integers, such as 12,64")


def find_target(text: str, data: Data) -> Target:
    """Resolve a ``TARGET``: a shipped model, a model folder, an official checkpoint, or ``file.py:name``.

    Raises:
        TargetError: It names nothing; the message lists what it can be.
        InputError, CheckpointError, ConfigError: It does, but what it names or its inputs are wrong.
    """
    if text in shipped_models():
        return _with_task(text, load(text), data)
    path, _, name = text.rpartition(":")
    if path.endswith(".py"):
        return _from_file(Path(path), name, data)
    if text.endswith(".py"):
        raise TargetError(f"TARGET {text!r} lacks the name inside the file; write {text}:name_of_the_block")
    if Path(text).is_dir():
        # What `fpcheck train --out FOLDER` writes holds the model one level down.
        folder = Path(text) / "model" if (Path(text) / "model" / "card.json").exists() else Path(text)
        model = load_folder(folder)
        return _with_task(model.card["name"], model, data)
    if Path(text).exists() or Path(text).suffix in (".pt", ".pth", ".safetensors"):
        return _from_checkpoint(Path(text), data)
    raise TargetError(
        f"TARGET {text!r} is no shipped model, folder, checkpoint or file.py:name; {nearest(text, shipped_models())}"
    )


def _with_task(name: str, model: LoopedModel, data: Data) -> Target:
    if data.tokens is not None:
        return _with_tokens(name, model, data)
    task: StateTracking = task_from_dict(model.card["task"])
    inputs, labels = task.sample(data.inputs, torch.Generator().manual_seed(data.seed), held_out=True)
    source = {"model": name, "task": model.card["task"], "split": "held-out", "weights": model.card["sha256"]}
    return _model_target(name, model, model.injection(inputs), labels, data, source)


def _model_target(
    name: str, model: LoopedModel, x: Tensor, labels: Tensor | None, data: Data, source: Mapping[str, Any]
) -> Target:
    x = x.detach()
    z0 = model.initial_state(x, seed=data.seed)
    # The heads stay in the model's own dtype; only the map is widened.
    return Target(name, model.block, x, z0, lambda z: model.readout(z.to(x.dtype)), labels, source)


def _from_checkpoint(path: Path, data: Data) -> Target:
    if data.config is None:
        raise InputError(
            f"{path} is a checkpoint: pass --config FILE, the JSON or YAML configuration it was trained with"
        )
    # Norms in the dtype of the analysis: in float32, as the official code has them, a float64 loop stalls at 1e-7.
    model = load_official(path, data.config, norm_in_float32=False)
    if data.tokens is None:
        raise InputError(f"{path} brings no inputs: pass --data FILE, an .npz with an integer array 'inputs'")
    return _with_tokens(path.name, model, data)


def _with_tokens(name: str, model: LoopedModel, data: Data) -> Target:
    assert data.tokens is not None
    arrays = _read_tokens(data.tokens)
    if "inputs" not in arrays:
        raise InputError(f"{data.tokens} holds {sorted(arrays)}; expected an integer array 'inputs' (N, seq_len)")
    take = {key: torch.from_numpy(np.ascontiguousarray(a[: data.inputs])) for key, a in arrays.items()}
    if len(take["inputs"]) < 1:
        raise InputError(f"{data.tokens} has zero inputs; there is nothing to certify")
    identifiers = take.get("puzzle_identifiers")
    with torch.no_grad():
        x = model.injection(take["inputs"], identifiers)
    return _model_target(name, model, x, take.get("labels"), data, {"checkpoint": name, "data": data.tokens.name})


def _read_tokens(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    try:
        read = np.load(path, allow_pickle=False)
        if isinstance(read, np.ndarray):
            return {"inputs": read}
        names = ("inputs", "labels", "puzzle_identifiers")
        return {key: read[key] for key in read.files if key in names}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"data={path}: {error}; expected an .npy or .npz file without pickles") from error


def _from_file(path: Path, name: str, data: Data) -> Target:
    """A user's block. The file may also define ``inputs(count, seed)`` and ``readout(z)``.

    ``inputs`` returns the injections, or a dict with ``x`` and optionally ``z0`` and ``labels``.
    """
    module = _import_file(path)
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise TargetError(f"{path} defines no {name!r}; {nearest(name, public)}")
    block = getattr(module, name)
    if isinstance(block, type) or not callable(block):
        raise TargetError(
            f"{path}:{name} is a {type(block).__name__}; expected a block, that is a function or module instance "
            "(z, x) -> z'"
        )
    made = _draw(module, block, path, data)
    readout = getattr(module, "readout", None)
    return Target(f"{path.name}:{name}", block, made["x"], made["z0"], readout, made.get("labels"),
                  {"file": path.name, "name": name})  # fmt: skip


def _draw(module: ModuleType, block: Block, path: Path, data: Data) -> dict[str, Any]:
    if hasattr(module, "inputs"):
        drawn = module.inputs(data.inputs, data.seed)
        made: dict[str, Any] = dict(drawn) if isinstance(drawn, dict) and "x" in drawn else {"x": drawn}
        x = made["x"]
        if "z0" not in made:
            if data.state_shape is not None:
                leaf = next(iter(x.values())) if isinstance(x, dict) else x if isinstance(x, Tensor) else x[0]
                made["z0"] = torch.zeros(data.inputs, *data.state_shape, dtype=leaf.dtype)
            elif isinstance(x, Tensor):
                made["z0"] = torch.zeros_like(x)
            else:
                raise InputError(
                    f"{path}: inputs() gave no z0 and x is no single tensor; pass --state-shape, such as 12,64"
                )
        return made
    if data.state_shape is None:
        raise InputError(
            f"{path} defines no inputs(count, seed); add one that returns the injections, or pass --state-shape, such "
            "as 12,64, for random injections of that shape"
        )
    generator = torch.Generator().manual_seed(data.seed)
    parameter = next(block.parameters(), None) if isinstance(block, nn.Module) else None
    dtype = parameter.dtype if parameter is not None else torch.float64
    x = torch.randn(data.inputs, *data.state_shape, generator=generator, dtype=torch.float64).to(dtype)
    return {"x": x, "z0": torch.zeros_like(x)}


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"file {path} does not exist; TARGET file.py:name needs a path to a Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # The file may import its neighbours, and pickles or dataclasses in it look it up by name.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise TargetError(f"importing {path} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module
