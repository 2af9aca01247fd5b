"""Numbers from the official FPRM and TRM code, in ``data/oracle.npz``; origin: ``data/README.md``.

Entries of one network, by key:

* ``config``: the official configuration; ``state_dict/<official name>``: weights (all-ones masks left out);
* ``batch/inputs``, ``batch/labels``, ``batch/puzzle_identifiers``; ``x``: the injection;
* ``y0``, ``F_y0``: a state and its image; ``trace/*``: 20 solver steps from ``y0``, halting ignored, row k after
  step k + 1; ``trace/y_1_5_20``: the states after those steps;
* ``eval_run/*``: the official loop to its own halt; ``train/*``: one training segment from ``y0`` and the
  gradients of its loss (v01, v03);
* ``trm01``: 16 evaluation segments, ``eval_run/z_H``, ``z_L``, ``logits``, ``q_halt``, ``q_continue``.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fpcheck.blocks import FPRMModel, LoopedModel, load_official
from fpcheck.loop import Loop
from fpcheck.solve.official import OfficialFPOPT

FPRM = ("v01", "v02", "v03", "v05", "v06", "v07", "v09", "v12", "v13", "v14")
TRM = ("trm01",)


@functools.cache
def _archive() -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(Path(__file__).parent / "data" / "oracle.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    return json.loads(str(arrays.pop("index"))), arrays


class Oracle:
    """One official network's record."""

    def __init__(self, name: str) -> None:
        self.name = name
        index, self._arrays = _archive()
        self._entries = index[name]

    def __getitem__(self, key: str):
        entry = self._entries[key]
        if isinstance(entry, dict) and "array" in entry:
            return torch.tensor(self._arrays[entry["array"]])
        return entry

    @property
    def config(self) -> dict:
        return dict(self._entries["config"])

    def under(self, prefix: str) -> dict[str, Tensor]:
        """All tensors whose key begins with ``prefix``, without it."""
        return {key.removeprefix(prefix): self[key] for key in self._entries if key.startswith(prefix)}

    @property
    def state_dict(self) -> dict[str, Tensor]:
        return self.under("state_dict/")

    def model(self) -> LoopedModel:
        return load_official(self.state_dict, self.config)

    def injection(self, model: LoopedModel) -> Tensor:
        puzzles = self["batch/puzzle_identifiers"] if model.config.puzzle_emb_ndim else None
        return model.injection(self["batch/inputs"], puzzles)

    def loop(self) -> tuple[FPRMModel, Loop]:
        model = self.model().requires_grad_(False)
        return model, Loop(model.block, self.injection(model))

    def options(self, decay: str = "stepsize_decay_eval") -> OfficialFPOPT:
        config = self.config
        return OfficialFPOPT(
            fp_thresh=config["fp_thresh"],
            stepsize_decay=config[decay],
            decay_patience=config["decay_patience"],
            max_iter=config["max_iter_eval"],
        )
