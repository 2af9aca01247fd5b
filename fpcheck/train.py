"""The trainer: looped models by sliding-window truncated backpropagation, resumable and repeatable.

Each optimiser step moves a mixed batch of running solves on by ``window`` loop steps, all of them
differentiated, and takes the loss at the end; the states are then detached and carried over. A solve is
replaced by a fresh sequence and a fresh random start after a number of windows drawn when it began. So the
model sees states at every age, and the gradient is that of the last ``window`` steps only: a truncated
backpropagation, not an implicit gradient (arXiv 2606.18206). At a fixed point the two agree up to the window-th power
of the contraction rate; away from one, and while parameters move, Theorem G8 says what is left.

With another ``adjoint`` a batch is instead solved to its fixed points at every step, and the gradient is taken there:
through the fixed-point equation (``implicit``), through a few steps at the fixed point (``phantom``, ``onestep``), or
through all steps (``unrolled``). A solve still lasts for some optimiser steps: it starts where the last step's ended,
which is close by, because the weights have moved little. A sample that does not converge is left out of the loss and
counted; it goes on from where it stopped if its budget was used up, and is drawn anew otherwise.

Several processes (`torchrun`) split the batch: each works on some of its rows, gradients are summed and states put
together, so that all of them hold the same run, and the result is that of one process up to rounding.

Unlike the official code a solve is not replaced when its residual falls below a threshold: states past that
point would then never be trained, and the loop need not settle there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fpcheck.adjoint import GMRES, Implicit, OneStep, Phantom, Unrolled, fixed_point
from fpcheck.adjoint.adjoints import AbstractAdjoint
from fpcheck.adjoint.error import Route
from fpcheck.adjoint.linear import LinearSolution
from fpcheck.blocks.config import FPRMConfig
from fpcheck.blocks.contractive import ContractiveConfig, ContractiveModel
from fpcheck.blocks.fprm import FPRMModel
from fpcheck.blocks.layers import truncated_normal_
from fpcheck.blocks.model import LoopedModel
from fpcheck.errors import CheckpointError, ConvergenceError, InputError, NonFiniteError, OutputError, nearest
from fpcheck.loop import Loop
from fpcheck.solve import Picard, Solution
from fpcheck.solve.base import is_number
from fpcheck.spectral import jacobian_frobenius_penalty, rademacher_probes
from fpcheck.status import Status
from fpcheck.tasks import StateTracking

__all__ = ["ADJOINTS", "RECIPES", "HeldOut", "Recipe", "card", "evaluate", "processes", "read_log", "recipe", "train"]

Adjoint = Literal["window", "implicit", "phantom", "onestep", "unrolled"]
ADJOINTS: tuple[str, ...] = get_args(Adjoint)
"""The ways to get a gradient; see `Recipe`."""


# Settings that came later: at their defaults they are no part of a fingerprint, which so stays what it was.
_SINCE = ("adjoint", "rtol", "adjoint_rtol", "budget", "jacobian_penalty")


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
        adjoint: How the gradient is got. ``window``: through the last ``window`` loop steps of running solves. The
            others solve each batch to its fixed points: ``implicit``; ``phantom``: through ``window`` steps there,
            damped by a half; ``onestep``: through one; ``unrolled``: through all.
        rtol: Relative residual to which a batch is solved. Not used by ``window``.
        adjoint_rtol: The same of the adjoint equation; used by ``implicit``.
        budget: Loop steps per solve, and products per adjoint solve, at most. Not used by ``window``.
        jacobian_penalty: Weight of the mean squared singular value of the loop's Jacobian in the loss, estimated with
            one random probe per sample.
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
    adjoint: Adjoint = "window"
    rtol: float = 5e-3
    adjoint_rtol: float = 5e-2
    budget: int = 100
    jacobian_penalty: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        if self.adjoint not in ADJOINTS:
            raise InputError(f"adjoint={self.adjoint!r}; " + nearest(str(self.adjoint), ADJOINTS))
        for name in ("rtol", "adjoint_rtol"):
            if not (is_number(getattr(self, name)) and 0 < getattr(self, name) < 1):
                raise InputError(f"{name}={getattr(self, name)!r}; expected a number in (0, 1)")
        if not (is_number(self.jacobian_penalty) and self.jacobian_penalty >= 0):
            raise InputError(f"jacobian_penalty={self.jacobian_penalty!r}; expected a number >= 0")
        for name in ("steps", "batch_size", "window", "max_windows", "threads", "budget"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name}={value!r}; expected an integer >= 1")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"seed={self.seed!r}; expected an integer >= 0")

    def fingerprint(self) -> str:
        """A text that two runs share exactly if they follow the same recipe."""
        plain = {k: f.default for k, f in self.__dataclass_fields__.items() if k in _SINCE}
        fields = {k: v for k, v in vars(self).items() if k not in ("task", "model", "note") and v != plain.get(k)}
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


@final
@dataclass(frozen=True)
class _Team:
    """The processes that share a run; one alone unless `torch.distributed` was initialised."""

    rank: int
    size: int

    @staticmethod
    def current() -> _Team:
        if dist.is_available() and dist.is_initialized():
            return _Team(dist.get_rank(), dist.get_world_size())
        return _Team(0, 1)

    def rows(self, batch: int) -> slice:
        """This process's part of the batch."""
        return slice(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)

    def sum(self, *tensors: Tensor) -> None:
        """Add up over the processes, in place, in one message."""
        if self.size > 1:
            flat = torch.cat([t.flatten() for t in tensors])
            dist.all_reduce(flat)
            for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                t.copy_(part.view_as(t))

    def whole(self, part: Tensor, batch: int) -> Tensor:
        """All rows, from every process's part."""
        if self.size == 1:
            return part
        whole = part.new_zeros(batch, *part.shape[1:])
        whole[self.rows(batch)] = part
        dist.all_reduce(whole)
        return whole


@contextmanager
def processes(device: str = "cpu") -> Iterator[tuple[bool, str]]:
    """Join the other processes that `torchrun` started; alone, do nothing.

    Args:
        device: ``cpu`` (messages by gloo) or ``cuda`` (by nccl, each process on its own GPU).

    Yields:
        Whether this is the first process, and this process's device.
    """
    if device not in ("cpu", "cuda"):
        raise InputError(f"device={device!r}; expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device='cuda', but PyTorch sees no GPU; expected cpu")
    if not dist.is_torchelastic_launched():
        yield True, device
        return
    local = f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" else device
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield dist.get_rank() == 0, local
    finally:
        dist.destroy_process_group()


def train(
    recipe: Recipe,
    *,
    folder: Path | None = None,
    progress: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint_every: int = 100,
    stop_after: int | None = None,
    device: str | torch.device = "cpu",
) -> LoopedModel:
    """Train by a recipe, or go on where an earlier run of the same recipe stopped.

    Where `torch.distributed` was initialised (by ``fpcheck train`` under ``torchrun``, or by the caller) every process
    calls this, with the same arguments but for the device, and gets the same model; the first one writes.

    Args:
        recipe: What to train and how.
        folder: Where ``checkpoint.pt`` and ``log.jsonl`` are kept; None keeps nothing.
        progress: Called after every step with its number and figures: ``loss`` and ``accuracy`` (of the samples that
            converged), ``settle`` (mean squared relative residual), ``gradient`` (norm, before clipping). Where a batch
            is solved also the number of samples by status (``converged``, ``budget``, ``cycle``...), ``loop_steps``
            (the slowest sample's), ``adjoint_steps`` and ``adjoint_failed``.
        checkpoint_every: Steps between checkpoints; each replaces the last one in one move.
        stop_after: Stop after this step, as if interrupted.
        device: Where to compute. Data and starts are drawn on the CPU, so they are the same everywhere.

    Returns:
        The model with averaged weights, evaluation mode, on the CPU.

    Raises:
        ConvergenceError: Not one sample of a batch converged.
        NonFiniteError: The loss or its gradient became NaN or infinite.
        InputError: More processes than samples in a batch.
        CheckpointError: ``folder`` holds a checkpoint of another recipe, or a damaged one.
        OutputError: ``folder`` cannot be written.
    """
    team, threads = _Team.current(), torch.get_num_threads()
    if team.size > recipe.batch_size:
        raise InputError(f"{team.size} processes for batch_size={recipe.batch_size}; expected at most one per sample")
    torch.set_num_threads(recipe.threads)
    try:
        at = torch.device(device)
        run = (
            _restore(recipe, folder, at) if folder is not None and _checkpoint(folder).exists() else _start(recipe, at)
        )
        last = min(recipe.steps, stop_after or recipe.steps)
        while run.step < last:
            figures = _step(recipe, run, team)
            run.log.append(figures)
            if progress is not None:
                progress(run.step, figures)
            if folder is not None and team.rank == 0 and (run.step % checkpoint_every == 0 or run.step == last):
                _save(recipe, run, folder)
    finally:
        torch.set_num_threads(threads)
    return run.average.cpu().eval()


def _start(recipe: Recipe, device: torch.device) -> _Run:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model, average = _build(recipe.model), _build(recipe.model)
    average.load_state_dict(model.state_dict())
    model, average = model.to(device), average.to(device)
    generator = torch.Generator().manual_seed(recipe.seed + 1)
    size, task = recipe.batch_size, recipe.task
    inputs, labels = task.sample(size, generator)
    state = torch.empty(size, recipe.model.positions, recipe.model.hidden_size)
    truncated_normal_(state, recipe.model.init_std, generator)
    windows = torch.randint(1, recipe.max_windows + 1, (size,), generator=generator)
    inputs, labels, state = (t.to(device) for t in (inputs, labels, state))
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


@dataclass(frozen=True)
class _Reached:
    """Where a batch's loops got to, and what is known about it.

    Attributes:
        z: States with derivatives ``(b, *state)``.
        settle: Mean squared relative residual, differentiable where the recipe descends it.
        used: Samples that count in the loss ``(b,)``; None: all, without a look.
        solution: Of the solve; None for a window.
    """

    z: Tensor
    settle: Tensor
    used: Tensor | None = None
    solution: Solution | None = None


def _step(recipe: Recipe, run: _Run, team: _Team) -> dict[str, float]:
    _refill(recipe, run)
    for group in run.optimizer.param_groups:
        group["lr"] = _learning_rate(recipe, run.step)
    batch = recipe.batch_size
    rows = team.rows(batch)
    labels, start = run.labels[rows], run.state[rows]
    x = run.model.injection(run.inputs[rows])
    reached = _window(recipe, run, start, x) if recipe.adjoint == "window" else _solved(recipe, run, start, x)
    logits = run.model.readout(reached.z)
    # Every sample counts the same, whichever process it is on.
    kept = torch.full((), len(start) if reached.used is None else int(reached.used.sum()), device=start.device)
    team.sum(kept)
    if not int(kept):
        assert reached.solution is not None
        raise ConvergenceError(
            f"not one of {batch} samples converged at step {run.step + 1}, so there is no loss. Raise "
            f"budget={recipe.budget} or rtol={recipe.rtol}, pass a jacobian_penalty, or lower lr={recipe.lr}.\n"
            + reached.solution.explain(),
            reached.solution,
        )
    if reached.used is None:
        token_loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        token_loss = token_loss if team.size == 1 else token_loss * (len(start) / batch)
    else:
        each = nn.functional.cross_entropy(logits.mT, labels, reduction="none").mean(1)
        # Selected, not multiplied: what a failed sample holds may be infinite.
        token_loss = torch.where(reached.used, each, 0.0).sum() / kept
    settle = reached.settle if team.size == 1 else reached.settle * (len(start) / batch)
    loss = token_loss + recipe.settle_weight * settle
    if recipe.jacobian_penalty:
        loss = loss + recipe.jacobian_penalty * _penalty(run, rows, x, reached) / kept
    run.optimizer.zero_grad()
    loss.backward()
    team.sum(*(p.grad for p in run.model.parameters() if p.grad is not None))
    size = nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip)
    figures = {"loss": token_loss.detach(), "accuracy": _right(logits, labels, reached.used) / kept}
    figures |= {"settle": settle.detach()} | _counts(reached.solution, start)
    values = torch.stack([v.to(device=start.device, dtype=torch.float64) for v in figures.values()])
    team.sum(values)
    found = dict(zip(figures, values.tolist(), strict=True))
    if not (math.isfinite(found["loss"]) and math.isfinite(float(size))):
        raise NonFiniteError(
            f"the loss became {found['loss']} and its gradient {float(size)} at step {run.step + 1}; lower "
            f"lr={recipe.lr}"
        )
    run.optimizer.step()
    run.windows_left -= 1
    if reached.solution is not None:
        _forget(run, rows, reached.solution, team)
    run.state = team.whole(reached.z.detach(), batch)
    run.step += 1
    with torch.no_grad():
        # The average follows fast at first: at step k it covers about the last k steps.
        weight = 1 - min(recipe.ema, run.step / (run.step + 10))
        for kept_, new in zip(run.average.parameters(), run.model.parameters(), strict=True):
            kept_.lerp_(new, weight)
    return {"step": run.step, **found, "gradient": float(size), **_iterations(reached.solution, start, team)}


def _window(recipe: Recipe, run: _Run, start: Tensor, x: Tensor) -> _Reached:
    """Some loop steps further, all differentiated."""
    z = before = start
    for _ in range(recipe.window):
        before, z = z, run.model.block(z, x)
    size = z.detach().square().sum(dim=(1, 2))
    return _Reached(z, ((z - before).square().sum(dim=(1, 2)) / size).mean())


def _solved(recipe: Recipe, run: _Run, start: Tensor, x: Tensor) -> _Reached:
    """The fixed points, with their derivatives. By plain iteration: it finds only what attracts."""
    found = fixed_point(
        Loop(run.model.block, x, z0=start, check=False),
        start,
        solver=Picard(rtol=recipe.rtol, max_steps=recipe.budget),
        adjoint=_adjoint(recipe),
        throw=False,
    )
    used = torch.tensor([s is Status.CONVERGED for s in found.status], device=start.device)
    residual = torch.where(used, found.residual, 0.0).square().mean()
    return _Reached(found.value, residual.to(start.dtype), used, found)


def _adjoint(recipe: Recipe) -> AbstractAdjoint:
    if recipe.adjoint == "implicit":
        return Implicit(GMRES(rtol=recipe.adjoint_rtol, max_steps=recipe.budget), zero_failed=True)
    if recipe.adjoint == "phantom":
        return Phantom(recipe.window, 0.5, zero_failed=True)
    return OneStep(zero_failed=True) if recipe.adjoint == "onestep" else Unrolled()


def _penalty(run: _Run, rows: slice, x: Tensor, reached: _Reached) -> Tensor:
    """Sum over the samples of the mean squared singular value of J. The whole batch's probes are drawn, in order."""
    before, after = run.state[: rows.start], run.state[rows.stop :]
    if len(before):
        rademacher_probes(before, 1, run.generator)
    z = reached.z.detach()
    if reached.used is not None:  # a state that ran away has no say, and no business in a product
        z = torch.where(reached.used[:, None, None], z, 0.0)
    loop = Loop(run.model.block, x, z0=z, check=False)
    each = jacobian_frobenius_penalty(loop, z, generator=run.generator, per_entry=True)
    if len(after):
        rademacher_probes(after, 1, run.generator)
    return each.sum() if reached.used is None else torch.where(reached.used, each, 0.0).sum()


def _right(logits: Tensor, labels: Tensor, used: Tensor | None) -> Tensor:
    """Share of right tokens by sample, added up."""
    each = (logits.detach().argmax(-1) == labels).double().mean(1)
    return each.sum() if used is None else torch.where(used, each, 0.0).sum()


def _counts(solution: Solution | None, like: Tensor) -> dict[str, Tensor]:
    """How many samples ended how, and how many adjoint solves failed; these add up over processes."""
    if solution is None:
        return {}
    counts = {s.name.lower(): like.new_tensor(solution.counts.get(s, 0)) for s in Status}
    failed = [(~solved.converged).sum() for solved in _adjoints(solution)]
    return {**counts, "adjoint_failed": torch.stack(failed).sum() if failed else like.new_tensor(0)}


def _iterations(solution: Solution | None, like: Tensor, team: _Team) -> dict[str, float]:
    """Loop steps and adjoint products of the slowest process."""
    if solution is None:
        return {}
    most = torch.tensor([int(solution.steps.max()), sum(s.steps for s in _adjoints(solution))], device=like.device)
    if team.size > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return {"loop_steps": int(most[0]), "adjoint_steps": int(most[1])}


def _adjoints(solution: Solution) -> list[LinearSolution]:
    return solution.route.plan.adjoints if isinstance(solution.route, Route) else []


def _forget(run: _Run, rows: slice, solution: Solution, team: _Team) -> None:
    """Have samples drawn anew that will not converge by going on."""
    hopeless = [s not in (Status.CONVERGED, Status.BUDGET) for s in solution.status]
    part = torch.tensor(hopeless, dtype=torch.int64, device=run.state.device)
    over = team.whole(part, len(run.windows_left)).bool().cpu()
    run.windows_left[over] = 0


def _refill(recipe: Recipe, run: _Run) -> None:
    """Replace the solves that have had their windows."""
    over = run.windows_left <= 0
    count = int(over.sum())
    if count:
        inputs, labels = recipe.task.sample(count, run.generator)
        run.inputs[over], run.labels[over] = inputs.to(run.inputs.device), labels.to(run.labels.device)
        fresh = torch.empty(count, *run.state.shape[1:])
        run.state[over] = truncated_normal_(fresh, recipe.model.init_std, run.generator).to(run.state)
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


def read_log(folder: Path) -> list[dict[str, float]]:
    """The figures of a run, one dictionary per optimiser step; see `train` for their names.

    Raises:
        CheckpointError: There is no log, or it is damaged.
    """
    path = folder / "log.jsonl"
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); expected the folder of a training run") from error


def _restore(recipe: Recipe, folder: Path, device: torch.device) -> _Run:
    path = _checkpoint(folder)
    try:
        held: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if held["recipe"] != recipe.fingerprint():
            raise CheckpointError(
                f"{path} belongs to a run with other settings; give the same options to resume, another --out, or "
                "--restart to begin anew"
            )
        run = _start(recipe, device)
        run.model.load_state_dict(held["model"])
        run.average.load_state_dict(held["average"])
        run.optimizer.load_state_dict(held["optimizer"])
        run.generator.set_state(held["generator"])
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it or pass --restart to begin anew") from error
    for name in ("inputs", "labels", "state"):
        setattr(run, name, held[name].to(device))
    for name in ("windows_left", "step", "log"):
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
