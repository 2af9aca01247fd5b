"""The trainer: looped models by sliding-window truncated backpropagation, resumable and repeatable.

Each optimiser step moves a mixed batch of running solves on by ``window`` loop steps, all of them
differentiated, and takes the loss at the end; the states are then detached and carried over. A solve is
replaced by a fresh sequence and a fresh random start after a number of windows drawn when it began. So the
model sees states at every age, and the gradient is that of the last ``window`` steps only: a truncated
backpropagation, not an implicit gradient (arXiv 2606.18206). At a fixed point the two agree up to the window-th power
of the contraction rate; away from one, and while parameters move, Theorem G8 says what is left.

Unlike the official code a solve is not replaced when its residual falls below a threshold: states past that
point would then never be trained, and the loop need not settle there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpcheck.blocks.config import FPRMConfig
from fpcheck.blocks.contractive import ContractiveConfig, ContractiveModel
from fpcheck.blocks.fprm import FPRMModel
from fpcheck.blocks.layers import truncated_normal_
from fpcheck.blocks.model import LoopedModel
from fpcheck.errors import CheckpointError, InputError, NonFiniteError, OutputError, nearest
from fpcheck.loop import Loop
from fpcheck.solve import Picard
from fpcheck.status import Status
from fpcheck.tasks import StateTracking

__all__ = ["RECIPES", "HeldOut", "Recipe", "card", "evaluate", "recipe", "train"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a training run; the same recipe gives the same weights, bit for bit, on a CPU.

    Args:
        name: Name of the trained model.
        task: The task it learns.
        model: Its architecture.
        steps: Optimiser steps.
        batch_size: Solves that run side by side.
        window: Loop steps per optimiser step, all differentiated.
        max_windows: A solve lasts 1 to this many windows, drawn uniformly.
        lr: Peak learning rate, reached after ``warmup`` steps, then a cosine down to 2 % of it.
        warmup: See ``lr``.
        weight_decay: Of matrices; residual scales and convolutions are exempt.
        settle_weight: Weight of the mean squared relative size of the window's last step in the loss: asks the
            state to stop, not only the answer to be right.
        clip: Largest gradient norm.
        ema: Decay of the averaged weights, which are the ones that are kept.
        seed: Of weights, data and start states.
        threads: CPU threads; sums split over another number of threads round differently, so 1 repeats best.
        note: What a reader of the model card should know.
    """

    name: str
    task: StateTracking
    model: FPRMConfig | ContractiveConfig
    steps: int = 1500
    batch_size: int = 128
    window: int = 6
    max_windows: int = 6
    lr: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    settle_weight: float = 0.05
    clip: float = 1.0
    ema: float = 0.995
    seed: int = 0
    threads: int = 1
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "window", "max_windows", "threads"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}; expected an integer >= 1")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed={self.seed!r}; expected an integer >= 0")

    def fingerprint(self) -> str:
        """A text that two runs share exactly if they follow the same recipe."""
        fields = {k: v for k, v in vars(self).items() if k not in ("task", "model", "note")}
        model = self.model.to_dict()
        return json.dumps({**fields, "task": asdict(self.task), "model": model}, sort_keys=True)


@dataclass(frozen=True)
class HeldOut:
    """How a model does on held-out sequences when run to its fixed point.

    Attributes:
        token_accuracy: Share of right tokens.
        sequence_accuracy: Share of sequences without a wrong token.
        settled: Share of sequences whose loop converged to relative residual 1e-5 within ``budget`` steps.
        median_steps: Median number of loop steps to that point, over the sequences that converged.
        sequences: Number of sequences.
        budget: Largest number of loop steps.
    """

    token_accuracy: float
    sequence_accuracy: float
    settled: float
    median_steps: float | None
    sequences: int
    budget: int


@dataclass
class _Run:
    """The moving parts of a run: all that a checkpoint holds."""

    model: LoopedModel
    average: LoopedModel
    optimizer: torch.optim.AdamW
    generator: torch.Generator
    inputs: Tensor
    labels: Tensor
    state: Tensor
    windows_left: Tensor
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)


def train(
    recipe: Recipe,
    *,
    folder: Path | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint_every: int = 100,
    stop_after: int | None = None,
) -> LoopedModel:
    """Train by a recipe, or go on where an earlier run of the same recipe stopped.

    Args:
        recipe: What to train and how.
        folder: Where ``checkpoint.pt`` and ``log.jsonl`` are kept; None keeps nothing.
        progress: Called after every step with its number and figures (``loss``, ``accuracy``, ``settle``).
        checkpoint_every: Steps between checkpoints; each replaces the last one in one move.
        stop_after: Stop after this step, as if interrupted.

    Returns:
        The model with averaged weights, evaluation mode.

    Raises:
        CheckpointError: ``folder`` holds a checkpoint of another recipe, or a damaged one.
        OutputError: ``folder`` cannot be written.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        run = _restore(recipe, folder) if folder is not None and _checkpoint(folder).exists() else _start(recipe)
        last = min(recipe.steps, stop_after or recipe.steps)
        while run.step < last:
            figures = _step(recipe, run)
            if not math.isfinite(figures["loss"]):
                raise NonFiniteError(f"the loss became {figures['loss']} at step {run.step}; lower lr={recipe.lr}")
            run.log.append(figures)
            if progress is not None:
                progress(run.step, figures)
            if folder is not None and (run.step % checkpoint_every == 0 or run.step == last):
                _save(recipe, run, folder)
    finally:
        torch.set_num_threads(threads)
    return run.average.eval()


def _start(recipe: Recipe) -> _Run:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model, average = _build(recipe.model), _build(recipe.model)
    average.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    size, task = recipe.batch_size, recipe.task
    inputs, labels = task.sample(size, generator)
    state = torch.empty(size, recipe.model.positions, recipe.model.hidden_size)
    truncated_normal_(state, recipe.model.init_std, generator)
    windows = torch.randint(1, recipe.max_windows + 1, (size,), generator=generator)
    return _Run(model.train(), average, _optimizer(recipe, model), generator, inputs, labels, state, windows)


def _build(config: FPRMConfig | ContractiveConfig) -> LoopedModel:
    return ContractiveModel(config) if isinstance(config, ContractiveConfig) else FPRMModel(config)


def _optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.AdamW:
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad and not name.startswith("q_head")]
    exempt = [p for name, p in trained if "alpha" in name or "conv" in name]
    decayed = [p for name, p in trained if "alpha" not in name and "conv" not in name]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}]
    if exempt:
        groups.append({"params": exempt, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95))


def _learning_rate(recipe: Recipe, step: int) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    return recipe.lr * warm * (0.51 + 0.49 * math.cos(math.pi * step / recipe.steps))


def _step(recipe: Recipe, run: _Run) -> dict[str, float]:
    _refill(recipe, run)
    for group in run.optimizer.param_groups:
        group["lr"] = _learning_rate(recipe, run.step)
    x = run.model.injection(run.inputs)
    z = before = run.state
    for _ in range(recipe.window):
        before, z = z, run.model.block(z, x)
    logits = run.model.readout(z)
    token_loss = nn.functional.cross_entropy(logits.flatten(0, 1), run.labels.flatten())
    size = z.detach().square().sum(dim=(1, 2))
    settle = ((z - before).square().sum(dim=(1, 2)) / size).mean()
    loss = token_loss + recipe.settle_weight * settle
    run.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip)
    run.optimizer.step()
    run.state = z.detach()
    run.windows_left -= 1
    run.step += 1
    with torch.no_grad():
        # The average follows fast at first: at step k it covers about the last k steps.
        weight = 1 - min(recipe.ema, run.step / (run.step + 10))
        for kept, new in zip(run.average.parameters(), run.model.parameters(), strict=True):
            kept.lerp_(new, weight)
        accuracy = (logits.argmax(-1) == run.labels).float().mean()
    return {
        "step": run.step,
        "loss": float(token_loss.detach()),
        "accuracy": float(accuracy),
        "settle": float(settle.detach()),
    }


def _refill(recipe: Recipe, run: _Run) -> None:
    """Replace the solves that have had their windows."""
    over = run.windows_left <= 0
    count = int(over.sum())
    if count:
        run.inputs[over], run.labels[over] = recipe.task.sample(count, run.generator)
        fresh = torch.empty(count, *run.state.shape[1:])
        run.state[over] = truncated_normal_(fresh, recipe.model.init_std, run.generator)
        run.windows_left[over] = torch.randint(1, recipe.max_windows + 1, (count,), generator=run.generator)


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.pt"


def _save(recipe: Recipe, run: _Run, folder: Path) -> None:
    held = {
        "recipe": recipe.fingerprint(),
        "model": run.model.state_dict(),
        "average": run.average.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "generator": run.generator.get_state(),
        "inputs": run.inputs,
        "labels": run.labels,
        "state": run.state,
        "windows_left": run.windows_left,
        "step": run.step,
        "log": run.log,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Written aside and moved in one step: a kill at any moment leaves the old or the new file, whole.
        aside = folder / "checkpoint.pt.new"
        torch.save(held, aside)
        os.replace(aside, _checkpoint(folder))
        aside = folder / "log.jsonl.new"
        aside.write_text("".join(json.dumps(row) + "\n" for row in run.log))
        os.replace(aside, folder / "log.jsonl")
    except OSError as error:
        raise OutputError(
            f"folder={folder}: cannot write the checkpoint ({error}); choose another with --out"
        ) from error


def _restore(recipe: Recipe, folder: Path) -> _Run:
    path = _checkpoint(folder)
    try:
        held: dict[str, Any] = torch.load(path, weights_only=True)
        if held["recipe"] != recipe.fingerprint():
            raise CheckpointError(
                f"{path} belongs to a run with other settings; give the same options to resume, another --out, or "
                "--restart to begin anew"
            )
        run = _start(recipe)
        run.model.load_state_dict(held["model"])
        run.average.load_state_dict(held["average"])
        run.optimizer.load_state_dict(held["optimizer"])
        run.generator.set_state(held["generator"])
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it or pass --restart to begin anew") from error
    for name in ("inputs", "labels", "state", "windows_left", "step", "log"):
        setattr(run, name, held[name])
    return run


def evaluate(
    model: LoopedModel, task: StateTracking, *, sequences: int = 1000, seed: int = 1, budget: int = 300
) -> HeldOut:
    """Run held-out sequences to their fixed points and compare the answers.

    Args:
        model: In evaluation mode.
        task: Its task.
        sequences: How many.
        seed: Of the sequences and of the start states.
        budget: Loop steps at most; a sequence that does not settle is judged at its last state.
    """
    inputs, labels = task.sample(sequences, torch.Generator().manual_seed(seed), held_out=True)
    with torch.no_grad():
        x = model.injection(inputs)
        z0 = model.initial_state(x, seed=seed)
        solution = Picard(rtol=1e-5, max_steps=budget).solve(Loop(model.block, x, z0=z0), z0)
        right = model.readout(solution.value).argmax(-1) == labels
    settled = torch.tensor([s is Status.CONVERGED for s in solution.status])
    return HeldOut(
        token_accuracy=float(right.float().mean()),
        sequence_accuracy=float(right.all(1).float().mean()),
        settled=float(settled.float().mean()),
        median_steps=float(solution.steps[settled].float().median()) if settled.any() else None,
        sequences=sequences,
        budget=budget,
    )


def _s3(**changes: Any) -> FPRMConfig:
    task = StateTracking("S3", 12)
    # The official state-tracking set-up (causal, causal convolution of width 4) made small, with rotary positions.
    small: dict[str, Any] = {
        "vocab_size": task.vocab_size, "seq_len": task.length, "hidden_size": 64, "num_heads": 4, "L_layers": 2,
        "expansion": 3.0, "mlp_multiple": 64, "causal": True, "pos_encodings": "rope", "conv_type": "conv1d",
        "alpha_1_init": 0.75, "alpha_2_init": 0.25,
    }  # fmt: skip
    return FPRMConfig(**{**small, **changes})


def _s3_contractive(**changes: Any) -> ContractiveConfig:
    task = StateTracking("S3", 12)
    small: dict[str, Any] = {
        "vocab_size": task.vocab_size, "seq_len": task.length, "hidden_size": 64, "num_heads": 4, "L_layers": 2,
        "expansion": 3.0, "mlp_multiple": 64, "causal": True, "pos_encodings": "learned", "conv_kernel_size": 4,
        "rms_norm_eps": 16.0,
    }  # fmt: skip
    return ContractiveConfig(**{**small, **changes})


RECIPES: dict[str, Recipe] = {
    "s3": Recipe(
        name="s3",
        task=StateTracking("S3", 12),
        model=_s3(),
        note="Residual scales and a causal convolution keep the state bounded; the loop settles on every input tried.",
    ),
    # The partner that must fail: the same data, loss and budget, but nothing scales the state. The convolution
    # goes too, because a depthwise convolution is a gain on the state: with it the unscaled loop learned to settle.
    "s3-unscaled": Recipe(
        name="s3-unscaled",
        task=StateTracking("S3", 12),
        model=_s3(residual_scale="none", conv_type="none"),
        note="The negative partner of s3, meant to fail: pre-norm without anything that scales the state. Each loop "
        "step adds an increment of bounded size, so the state drifts for ever and its relative residual falls like "
        "1/k although nothing settles. The convolution is left out as well, because a depthwise convolution scales "
        "the state too: with it the loop learned to settle.",
    ),
    "s3-contractive": Recipe(
        name="s3-contractive",
        task=StateTracking("S3", 12),
        model=_s3_contractive(),
        window=4,
        max_windows=4,
        lr=5e-3,
        note="A contraction by construction: each loop step brings any two states nearer by the factor rate at least, "
        "for every input, in the largest Euclidean length of a token.",
    ),
}


def card(recipe: Recipe, held_out: HeldOut, command: str) -> dict[str, Any]:
    """The model card: what was trained, by which command, and how well it does. ``save_model`` adds the rest.

    Args:
        recipe: The recipe.
        held_out: Its result on held-out sequences.
        command: The command line that trains the same weights again.
    """
    return {
        "name": recipe.name,
        "task": recipe.task.to_dict(),
        "command": command,
        "seed": recipe.seed,
        "recipe": json.loads(recipe.fingerprint()),
        "torch": torch.__version__,
        "held_out": asdict(held_out),
        "note": recipe.note,
    }


def recipe(name: str, **changes: Any) -> Recipe:
    """The recipe of a shipped model, with changes.

    Raises:
        InputError: No recipe has that name; the message names the nearest one.
    """
    if name not in RECIPES:
        raise InputError(f"no training recipe {name!r}; " + nearest(name, RECIPES))
    return replace(RECIPES[name], **{k: v for k, v in changes.items() if v is not None})
