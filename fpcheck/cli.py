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
from fpcheck.bounds import BoundRow, Bounds, bound
from fpcheck.certify import Certificate, Verdict
from fpcheck.certify.record import save
from fpcheck.certify.settings import Fast, Sharp
from fpcheck.check import check
from fpcheck.errors import CertificateFileError, FpcheckError, InputError, UnsupportedOperatorError
from fpcheck.everywhere import Everywhere, everywhere
from fpcheck.loop import Loop
from fpcheck.report import (
    bounds_document,
    bounds_summary,
    bounds_table,
    certificate_path,
    document,
    global_document,
    global_summary,
    global_table,
    open_folder,
    summary,
    survey_document,
    survey_summary,
    survey_table,
    table,
    training_figure,
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
    everywhere = "global"


class Setting(Enum):
    """How much work goes into a proof."""

    fast = "fast"
    sharp = "sharp"


_SETTINGS: dict[Setting, Fast | Sharp] = {Setting.fast: Fast(), Setting.sharp: Sharp()}
# choice: the largest balls, in up to a minute per input.
_SETTING = Setting.sharp
# choice: a proof takes up to a minute per input, a measurement half a second.
_INPUTS = {Level.bound: 4, Level.estimate: 16, Level.everywhere: 1}
# choice: of the official code.
_RTOL = 1e-5
# choice: loop steps that any loop of interest settles in.
_MAX_STEPS = 2000


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
        # The time left is told from the last steps, and one step of a proof takes up to minutes.
        speed_estimate_period=3600,
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
    inputs: Annotated[
        int | None, typer.Option(help="How many inputs. Default: 4; at level estimate 16, global 1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the inputs and start states.")] = 0,
    rtol: Annotated[
        float | None, typer.Option(help="Level estimate: halting tolerance on the relative residual. Default: 1e-5.")
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Loop steps per input, at most. Default: 2000.")] = None,
    dtype: Annotated[
        Precision | None,
        typer.Option(help="Level estimate: dtype of the analysis; own: the model's. Default: float64."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the JSON file and the figures.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the JSON document instead of the table.")] = False,
    level: Annotated[
        Level,
        typer.Option(
            help="bound: proved near the fixed point, up to a minute per input. global: proved for all states. "
            "estimate: measured, in seconds."
        ),
    ] = Level.bound,
    setting: Annotated[
        Setting | None,
        typer.Option(help=f"Level bound: sharp has larger balls, fast takes less. Default: {_SETTING.value}."),
    ] = None,
    certificates: Annotated[
        Path | None,
        typer.Option(help="Level bound: folder for a certificate file per proved input; see fpcheck check."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration (JSON or YAML) of an official checkpoint.")] = None,
    data: Annotated[Path | None, typer.Option(help=".npz with inputs (and labels) for a checkpoint.")] = None,
    state_shape: Annotated[
        str | None, typer.Option(help="Shape of one state, such as 12,64, for a file.py block without inputs().")
    ] = None,
) -> None:
    """Prove that a loop settles on its inputs, on what and how fast; with --level estimate measure it."""
    if level is not Level.estimate:
        _refuse(level, Level.estimate, rtol=rtol, dtype=dtype)
    if level is not Level.bound:
        _refuse(level, Level.bound, setting=setting, certificates=certificates)
    if level is Level.everywhere:
        _refuse(level, Level.bound, max_steps=max_steps)
    rtol = _RTOL if rtol is None else rtol
    max_steps = _MAX_STEPS if max_steps is None else max_steps
    if not rtol > 0 or max_steps < 1:
        raise InputError(f"rtol={rtol}, max_steps={max_steps}; expected rtol > 0 and max_steps >= 1")
    if out is not None:
        open_folder(out)
    if certificates is not None:
        open_folder(certificates, option="certificates")
    count = _INPUTS[level] if inputs is None else inputs
    found = find_target(target, Data(count, seed, config, data, _shape(state_shape)))
    result: Assessment | Bounds | Everywhere
    unwritten: list[str] = []
    with _progress(_console(error=True)) as bar:
        if level is Level.bound:
            keeper = _Keeper(bar.console, found.name, certificates)
            chosen = _SETTINGS[setting or _SETTING]
            result = bound(found, max_steps=max_steps, setting=chosen, progress=_teller(bar), finished=keeper)
            unwritten = keeper.unwritten
        elif level is Level.everywhere:
            result = everywhere(found, progress=_teller(bar))
        else:
            precision = _dtype(dtype or Precision.float64)
            result = assess(found, rtol=rtol, max_steps=max_steps, dtype=precision, progress=_teller(bar))
    for line in unwritten:
        _console(error=True).print(line, soft_wrap=True, markup=False)
    _finish(result, json=json, out=out, complete=not unwritten)


def _refuse(level: Level, other: Level, **given: Any) -> None:
    """Options that play no part at a level are refused: who gives one expects it to do something."""
    for name, value in given.items():
        if value is not None:
            shown = value.value if isinstance(value, Enum) else value
            raise InputError(
                f"{name}={shown}: plays no part at --level {level.value}; leave it out, or pass --level {other.value}"
            )


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


def _finish(
    result: Assessment | Survey | Bounds | Everywhere, *, json: bool, out: Path | None, complete: bool = True
) -> NoReturn:
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
    raise typer.Exit(0 if result.passed and complete else 1)


# Document, table and summary of each kind of result.
_FORMS: dict[type, tuple[Callable[..., Any], Callable[..., Any], Callable[..., str]]] = {
    Assessment: (document, table, summary),
    Survey: (survey_document, survey_table, survey_summary),
    Bounds: (bounds_document, bounds_table, bounds_summary),
    Everywhere: (global_document, global_table, global_summary),
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


class _Keeper:
    """Writes each certificate as soon as it is there; in a log, a line per input instead of the bar."""

    def __init__(self, console: Console, target: str, folder: Path | None) -> None:
        self.console, self.target, self.folder = console, target, folder
        self.unwritten: list[str] = []

    def __call__(self, row: BoundRow, certificate: Certificate, loop: Loop) -> None:
        if not self.console.is_terminal:
            self.console.print(f"input {row.index}: {row.verdict.value} ({row.seconds:.0f} s)")
        if self.folder is None or row.verdict is Verdict.UNKNOWN:
            return
        try:
            save(certificate, certificate_path(self.folder, self.target, row.index), loop=loop)
        except (InputError, UnsupportedOperatorError) as error:
            # The file has no words for an operator, or the checker no room. The proof stands, and so do the others.
            self.unwritten.append(f"No certificate file for input {row.index}: {error}")


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"state-shape={text!r}; expected integers separated by commas, such as 12,64") from None


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="Recipe: s3, s3-unscaled or s3-contractive.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the model. Default: out/train/NAME.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps. Default: the recipe's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, data and starts. Default: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Solves side by side. Default: the recipe's.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate. Default: the recipe's.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. Default: the recipe's.")] = None,
    adjoint: Annotated[
        str | None, typer.Option(help="implicit, window, phantom, onestep or unrolled. Default: the recipe's.")
    ] = None,
    jacobian_penalty: Annotated[
        float | None, typer.Option(help="Weight of the mean squared singular value of the Jacobian. Default: 0.")
    ] = None,
    max_windows: Annotated[
        int | None, typer.Option(help="Optimiser steps that a sequence is kept for, at most. Default: the recipe's.")
    ] = None,
    rtol: Annotated[float | None, typer.Option(help="Residual to which a batch is solved. Default: 5e-3.")] = None,
    adjoint_rtol: Annotated[float | None, typer.Option(help="The same of the adjoint equation. Default: 5e-2.")] = None,
    budget: Annotated[int | None, typer.Option(help="Loop steps per solve, at most. Default: 100.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; under torchrun each process takes its own GPU.")] = "cpu",
    restart: Annotated[bool, typer.Option("--restart", help="Throw an earlier checkpoint away.")] = False,
) -> None:
    """Train a small looped transformer; goes on where an interrupted run stopped.

    On several processes: torchrun --nproc-per-node 2 --no-python fpcheck train NAME. The batch is split among them.
    """
    changes = {
        "steps": steps, "seed": seed, "batch_size": batch_size, "lr": lr, "threads": threads, "adjoint": adjoint,
        "jacobian_penalty": jacobian_penalty, "max_windows": max_windows, "rtol": rtol,
        "adjoint_rtol": adjoint_rtol, "budget": budget,
    }  # fmt: skip
    recipe = training.recipe(name, **changes)
    folder = open_folder(out or Path("out") / "train" / name)
    with training.processes(device) as (first, at):
        if first and restart:
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        _train(recipe, folder, at, first, _command(name, changes))


def _train(recipe: training.Recipe, folder: Path, device: str, first: bool, command: str) -> None:
    if not first:
        training.train(recipe, folder=folder, device=device)
        return
    console, errors = _console(), _console(error=True)
    with _progress(errors) as bar:
        line = bar.add_task(f"train {recipe.name}", total=recipe.steps, figures="")

        def tell(step: int, figures: dict[str, float]) -> None:
            shown = f"loss {figures['loss']:.4f}  accuracy {figures['accuracy']:.3f}"
            bar.update(line, completed=step, figures=shown)
            if not errors.is_terminal and step % 100 == 0:  # in a log, a line now and then instead of a bar
                errors.print(f"step {step} of {recipe.steps}  {shown}")

        model = training.train(recipe, folder=folder, progress=tell, device=device)
    errors.print("Running held-out sequences to their fixed points...")
    held_out = training.evaluate(model, recipe.task)
    card = training.card(recipe, held_out, command)
    save_model(model, folder / "model", card, overwrite=True)
    training_figure(training.read_log(folder)).savefig(folder / "training.png", dpi=150)
    console.print(f"Held-out sequences of length {recipe.task.length}, run to their fixed points:")
    for key, value in asdict(held_out).items():
        shown = f"{value:.4f}" if isinstance(value, float) and value <= 1 else "-" if value is None else f"{value:g}"
        console.print(f"  {key.replace('_', ' ')}: {shown}")
    console.print(f"Written: {folder / 'model'}. Next: fpcheck certify {folder / 'model'}", soft_wrap=True)


@app.command("check")
def check_files(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Certificate files.")],
    full: Annotated[
        bool,
        typer.Option(
            "--full/--quick",
            help="full: recompute every bound from the file alone, in minutes. quick: whether the verdict follows.",
        ),
    ] = False,
) -> None:
    """Check certificate files with a program of its own, which shares nothing with the one that writes them."""
    console, codes = _console(), set()
    for file in files:
        try:
            with _progress(_console(error=True)) as bar:
                found = check(file, full=full, progress=_teller(bar))
        except CertificateFileError as error:
            console.print(f"{file}: MALFORMED: {error}", soft_wrap=True, markup=False)
            codes.add(2)
            continue
        false = found.first_false
        if false is None:
            said = f"ACCEPTED ({found.level}, {len(found.lines)} lines): {found.verdict}"
        else:
            said = f"REJECTED ({found.level}): {false.text}"
        console.print(f"{file}: {said}", soft_wrap=True, markup=False)
        codes.add(0 if found.accepted else 1)
    raise typer.Exit(max(codes))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
def prove(context: typer.Context) -> None:
    """Check the theorems behind fpcheck, all or by ID: every step, constant, claim and reference. --help says more."""
    # The whole call goes on unread: `python -m proofs` is the same command, and SymPy is loaded only here.
    from proofs.command import main as prove_command

    raise typer.Exit(prove_command(context.args))


def _command(name: str, changes: dict[str, Any]) -> str:
    words = ["fpcheck", "train", name]
    for option, value in changes.items():
        if value is not None:
            words += ["--" + option.replace("_", "-"), str(value)]
    return shlex.join(words)


def main() -> None:
    """Run the command; every error that fpcheck raises on purpose is one line and exit code 2."""
    try:
        app(standalone_mode=True)
    except FpcheckError as error:
        _console(error=True).print(f"error: {error}", soft_wrap=True, markup=False)
        sys.exit(2)
