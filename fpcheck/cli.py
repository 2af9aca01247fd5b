"""The ``fpcheck`` command.

Exit codes: 0, everything asked for holds; 1, something does not; 2, the call was wrong.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict
from enum import Enum
from json import dumps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fpcheck import train as training
from fpcheck._version import __version__
from fpcheck.assess import Assessment, assess
from fpcheck.blocks import save_model
from fpcheck.bounds import Bounds, bound
from fpcheck.errors import FpcheckError, InputError
from fpcheck.report import (
    bounds_document,
    bounds_summary,
    bounds_table,
    document,
    open_folder,
    summary,
    survey_document,
    survey_summary,
    survey_table,
    table,
    write_report,
)
from fpcheck.survey import METHODS, Survey, survey
from fpcheck.target import Data, find_target

__all__ = ["main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Does a looped transformer settle, on what, and how fast?",
)


class Precision(Enum):
    """Dtype of the analysis."""

    float64 = "float64"
    float32 = "float32"
    own = "own"


class Level(Enum):
    """How sure the answer is to be."""

    estimate = "estimate"
    bound = "bound"


class Method(Enum):
    """How to compute eigenvalues."""

    auto = "auto"
    dense = "dense"
    krylov = "krylov"


def _console(*, error: bool = False) -> Console:
    console = Console(stderr=error, highlight=False)
    # In a pipe or a log the table keeps its columns instead of being folded to 80 characters.
    return console if console.is_terminal else Console(stderr=error, highlight=False, width=max(console.width, 130))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"), console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fpcheck {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


@app.command()
def certify(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Shipped model (s3), model folder, checkpoint, or file.py:block.")
    ],
    inputs: Annotated[int, typer.Option(help="How many inputs.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the inputs and start states.")] = 0,
    rtol: Annotated[float, typer.Option(help="Halting tolerance on the relative residual.")] = 1e-5,
    max_steps: Annotated[int, typer.Option(help="Loop steps per input, at most.")] = 2000,
    dtype: Annotated[Precision, typer.Option(help="Dtype of the analysis; own: the model's.")] = Precision.float64,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file and the figures.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the JSON document instead of the table.")] = False,
    level: Annotated[
        Level, typer.Option(help="estimate: measured, in seconds. bound: proved, some 20 seconds per input.")
    ] = Level.estimate,
    config: Annotated[Path | None, typer.Option(help="Configuration (JSON or YAML) of an official checkpoint.")] = None,
    data: Annotated[Path | None, typer.Option(help=".npz with inputs (and labels) for a checkpoint.")] = None,
    state_shape: Annotated[
        str | None, typer.Option(help="Shape of one state, such as 12,64, for a file.py block without inputs().")
    ] = None,
) -> None:
    """Settle a loop on its inputs and report what it settles on: measured, or with --level bound proved."""
    if rtol <= 0 or max_steps < 1:
        raise InputError(f"rtol={rtol}, max_steps={max_steps}; expected rtol > 0 and max_steps >= 1")
    if out is not None:
        open_folder(out)
    found = find_target(target, Data(inputs, seed, config, data, _shape(state_shape)))
    result: Assessment | Bounds
    with _progress(_console(error=True)) as bar:
        if level is Level.bound:
            result = bound(found, max_steps=max_steps, progress=_teller(bar))
        else:
            result = assess(found, rtol=rtol, max_steps=max_steps, dtype=_dtype(dtype), progress=_teller(bar))
    _finish(result, json=json, out=out)


@app.command()
def spectrum(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Shipped model (s3), model folder, checkpoint, or file.py:block.")
    ],
    inputs: Annotated[int, typer.Option(help="How many inputs.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the inputs, start states and random vectors.")] = 0,
    method: Annotated[
        Method, typer.Option(help="How to compute eigenvalues; auto: all of them where they fit, else Krylov.")
    ] = Method.auto,
    starts: Annotated[int, typer.Option(help="Random starts per input, to look for other fixed points; 0: none.")] = 0,
    max_steps: Annotated[int, typer.Option(help="Loop steps per input, at most.")] = 2000,
    dtype: Annotated[Precision, typer.Option(help="Dtype of the analysis; own: the model's.")] = Precision.float64,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file and the figures.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the JSON document instead of the table.")] = False,
    config: Annotated[Path | None, typer.Option(help="Configuration (JSON or YAML) of an official checkpoint.")] = None,
    data: Annotated[Path | None, typer.Option(help=".npz with inputs (and labels) for a checkpoint.")] = None,
    state_shape: Annotated[
        str | None, typer.Option(help="Shape of one state, such as 12,64, for a file.py block without inputs().")
    ] = None,
) -> None:
    """Say what the loop's Jacobian does where the loop ends: eigenvalues, norms, growth, and what to do. ESTIMATE."""
    if max_steps < 1 or starts < 0:
        raise InputError(f"max_steps={max_steps}, starts={starts}; expected max_steps >= 1 and starts >= 0")
    if out is not None:
        open_folder(out)
    found = find_target(target, Data(inputs, seed, config, data, _shape(state_shape)))
    with _progress(_console(error=True)) as bar:
        result = survey(
            found, method=METHODS[method.value], starts=starts, max_steps=max_steps, dtype=_dtype(dtype), seed=seed,
            progress=_teller(bar),
        )  # fmt: skip
    _finish(result, json=json, out=out)


def _finish(result: Assessment | Survey | Bounds, *, json: bool, out: Path | None) -> NoReturn:
    """Show a result, write its files, and end with the exit code that it stands for."""
    held, shown, summed_up = _FORMS[type(result)]
    console = _console()
    if json:
        typer.echo(dumps(held(result), indent=1, allow_nan=False))
    else:
        console.print(shown(result))
        console.print(summed_up(result), soft_wrap=True)
    if out is not None:
        written = write_report(result, out)
        _console(error=json).print("Written: " + ", ".join(str(path) for path in written), soft_wrap=True)
    raise typer.Exit(0 if result.passed else 1)


# Document, table and summary of each kind of result.
_FORMS: dict[type, tuple[Callable[..., Any], Callable[..., Any], Callable[..., str]]] = {
    Assessment: (document, table, summary),
    Survey: (survey_document, survey_table, survey_summary),
    Bounds: (bounds_document, bounds_table, bounds_summary),
}


def _dtype(precision: Precision) -> torch.dtype | None:
    return None if precision is Precision.own else getattr(torch, precision.value)


def _teller(bar: Progress) -> Callable[[str, int, int], None]:
    """One line of the progress display per stage."""
    lines: dict[str, TaskID] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in lines:
            lines[stage] = bar.add_task(stage, total=total, figures="")
        bar.update(lines[stage], completed=done, total=total)

    return tell


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"state-shape={text!r}; expected integers separated by commas, such as 12,64") from None


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="Recipe: s3 or s3-unscaled.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the model. Default: out/train/NAME.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. Default: the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, data and starts. Default: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Solves side by side. Default: the recipe's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. Default: the recipe's.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: the recipe's.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw an earlier checkpoint away.")] = False,
) -> None:
    """Train a small looped transformer; goes on where an interrupted run stopped."""
    recipe = training.recipe(name, steps=steps, seed=seed, batch_size=batch_size, lr=lr, threads=threads)
    folder = open_folder(out or Path("out") / "train" / name)
    if restart:
        (folder / "checkpoint.pt").unlink(missing_ok=True)
    console, errors = _console(), _console(error=True)
    with _progress(errors) as bar:
        line = bar.add_task(f"train {name}", total=recipe.steps, figures="")

        def tell(step: int, figures: dict[str, float]) -> None:
            shown = f"loss {figures['loss']:.4f}  accuracy {figures['accuracy']:.3f}"
            bar.update(line, completed=step, figures=shown)
            if not errors.is_terminal and step % 100 == 0:  # in a log, a line now and then instead of a bar
                errors.print(f"step {step} of {recipe.steps}  {shown}")

        model = training.train(recipe, folder=folder, progress=tell)
    errors.print("Running held-out sequences to their fixed points...")
    held_out = training.evaluate(model, recipe.task)
    card = training.card(recipe, held_out, _command(name, steps, seed, batch_size, lr, threads))
    save_model(model, folder / "model", card, overwrite=True)
    console.print(f"Held-out sequences of length {recipe.task.length}, run to their fixed points:")
    for key, value in asdict(held_out).items():
        shown = f"{value:.4f}" if isinstance(value, float) and value <= 1 else "-" if value is None else f"{value:g}"
        console.print(f"  {key.replace('_', ' ')}: {shown}")
    console.print(f"Written: {folder / 'model'}. Next: fpcheck certify {folder / 'model'}", soft_wrap=True)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def prove(context: typer.Context) -> None:
    """Check the theorems behind fpcheck, all or by ID: every step, constant, claim and reference. --help says more."""
    # The whole call goes on unread: `python -m proofs` is the same command, and SymPy is loaded only here.
    from proofs.command import main as prove_command

    raise typer.Exit(prove_command(context.args))


def _command(name: str, *changes: object) -> str:
    words = ["fpcheck", "train", name]
    for option, value in zip(("--steps", "--seed", "--batch-size", "--lr", "--threads"), changes, strict=True):
        if value is not None:
            words += [option, str(value)]
    return shlex.join(words)


def main() -> None:
    """Run the command; every error that fpcheck raises on purpose is one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except FpcheckError as error:
        _console(error=True).print(f"error: {error}", soft_wrap=True, markup=False)
        sys.exit(2)
