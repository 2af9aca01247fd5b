"""The command: ``fpcheck prove`` and ``python -m proofs`` are this."""

import json as json_module
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from proofs import table as constants_table
from proofs.errors import MalformedError
from proofs.links import resolve
from proofs.prove import Report, check_all
from proofs.registry import CHAPTERS, file_of, theorem_ids

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def prove(
    identifiers: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Theorems such as B2 or D5. Default: all.")
    ] = None,
    tex: Annotated[Path | None, typer.Option(help="Write the readable version, every step, as a TeX file.")] = None,
    html: Annotated[Path | None, typer.Option(help="The same as one HTML file, with the outcome of each step.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON instead of the table.")] = False,
    steps: Annotated[
        bool, typer.Option("--steps", help="Print every step (the default for a single theorem).")
    ] = False,
    draws: Annotated[int, typer.Option(help="Random points per claim; 0: check the steps only.")] = 300,
    seed: Annotated[int, typer.Option(help="Of the searches for counterexamples.")] = 0,
    processes: Annotated[int | None, typer.Option(help="Workers. Default: one per CPU core, at most 8.")] = None,
    write_constants: Annotated[
        bool, typer.Option("--write-constants", help="Write fpcheck/constants.py from the theorems, and stop.")
    ] = False,
) -> None:
    """Check the theorems behind fpcheck: every step, constant, claim and reference. Exit 1 if anything fails."""
    if write_constants:
        typer.echo(f"Written: {constants_table.write(Path(__file__).parent.parent)}")
        raise typer.Exit(0)
    if draws < 0 or (processes is not None and processes < 1):
        raise MalformedError(f"draws={draws}, processes={processes}; expected draws >= 0 and processes >= 1")
    wanted = list(identifiers or theorem_ids())
    for identifier in wanted:
        file_of(identifier)  # refuses an unknown one before any work
    for path in (tex, html):
        if path is not None and not path.resolve().parent.is_dir():
            raise MalformedError(f"output={path}: its folder does not exist; create it first")
    errors = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        line = bar.add_task("prove", total=len(wanted))

        def tell(report: Report) -> None:
            bar.update(line, advance=1, description=f"prove {report.id}")

        workers = processes or min(os.cpu_count() or 1, 8)
        reports = check_all(wanted, processes=workers, draws=draws, seed=seed, tell=tell)
    console = _console()
    if json:
        typer.echo(json_module.dumps([_document(r) for r in reports], indent=1))
    else:
        _print(console, reports, steps=steps or len(reports) == 1)
    _write(tex, html, reports, errors if json else console)
    raise typer.Exit(0 if all(r.passed for r in reports) else 1)


def _console() -> Console:
    console = Console(highlight=False)
    # In a pipe or a log the table keeps its columns instead of being folded to 80 characters.
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 150))


def _print(console: Console, reports: list[Report], *, steps: bool) -> None:
    out = Table(title="Theorems", title_justify="left", box=None, padding=(0, 1, 0, 0), caption_justify="left",
                caption="sharpness: largest left/right that the search for a counterexample reached (1: equality); "
                "cited: parts that rest on a citation")  # fmt: skip
    for name in ("", "theorem", "proved", "cited", "sharpness", "code that relies on it"):
        right = name in ("proved", "cited", "sharpness")
        out.add_column(name, justify="right" if right else "left", no_wrap=not name.startswith("code"))
    chapter = ""
    for report in reports:
        if report.chapter != chapter and not steps:
            chapter = report.chapter
            out.add_row("", f"[dim]{CHAPTERS[chapter][0]}[/dim]", "", "", "", "")
        sharp = "-" if report.sharpness is None else _floor(report.sharpness)
        out.add_row(
            report.id, report.title, f"{report.proved}/{len(report.steps)}", str(len(report.not_checked)), sharp,
            ", ".join(_place(reference) for reference in report.code) or "-", style=None if report.passed else "red",
        )  # fmt: skip
    console.print(out)
    if steps:
        for report in reports:
            _print_steps(console, report)
    for report in reports:
        for failure in report.failures():
            console.print(f"[red]{report.id}[/red]: {escape(failure)}", soft_wrap=True)
    good = sum(r.passed for r in reports)
    total = sum(len(r.steps) for r in reports)
    cited = sum(len(r.not_checked) for r in reports)
    console.print(
        f"{good} of {len(reports)} theorems passed: {sum(r.proved for r in reports)} of {total} steps proved, "
        f"{cited} parts rest on citations, {sum(len(r.constants) for r in reports)} constants enclosed, "
        f"{sum(len(r.searches) for r in reports)} inequalities searched for counterexamples.",
        soft_wrap=True,
    )


def _print_steps(console: Console, report: Report) -> None:
    for step in report.steps:
        colour = "green" if step.outcome == "proved" else "red"
        console.print(f"  [{colour}]{step.outcome}[/{colour}] {escape(f'({step.label}) {step.text} [{step.how}]')}")
    for text in report.not_checked:
        console.print(f"  [yellow]cited[/yellow] {escape(text)}")
    for constant in report.constants:
        console.print(f"  constant {constant.name} = {constant.value!r} ({constant.side})")
    for found in report.searches:
        console.print(
            f"  searched {escape(found.claim)}: left/right up to {_floor(found.reached)} in {found.tried} points, "
            f"1 % smaller: {'refuted' if found.twin_refuted else 'NOT refuted'}"
        )


def _floor(ratio: float) -> str:
    """A ratio cut to six decimals, so that only equality shows as 1."""
    return f"{int(ratio * 1e6) / 1e6:.6f}"


def _place(reference: str) -> str:
    try:
        return f"{reference.partition(':')[0]}:{resolve(reference).line}"
    except MalformedError:
        return reference


def _document(report: Report) -> dict[str, Any]:
    document = asdict(report)
    document.update(passed=report.passed, failures=report.failures(), sharpness=report.sharpness)
    document["code"] = [_place(reference) for reference in report.code]
    return document


def _write(tex: Path | None, html: Path | None, reports: list[Report], console: Console) -> None:
    from proofs import write

    if tex is not None:
        tex.write_text(write.tex(), encoding="utf-8")
        console.print(f"Written: {tex}", soft_wrap=True)
    if html is not None:
        html.write_text(write.html({r.id: r for r in reports}), encoding="utf-8")
        console.print(f"Written: {html}", soft_wrap=True)


def main(arguments: list[str]) -> int:
    """Run the command; 0: everything passed, 1: something did not, 2: the call was wrong."""
    try:
        code = app(args=arguments, prog_name="fpcheck prove", standalone_mode=False)
    except MalformedError as error:
        Console(stderr=True, highlight=False).print(f"error: {escape(str(error))}", soft_wrap=True)
        return 2
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as error:  # usage errors of the command-line library carry their own message and code
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    return int(code or 0)
