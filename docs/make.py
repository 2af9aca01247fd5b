"""Regenerate every figure and every printed output in the docs: `make docs`, or `python docs/make.py`.

Runs the command on both shipped models, pastes what it prints between the `output:` markers, and writes
docs/figures/ and docs/models.md. Takes some ten minutes. With `--bench`, after `make bench` has installed the peer,
the benchmarks' tables too. With `--theory`, only docs/theory/, which is written from the theorems in proofs/; with
`--bounds`, only what `fpcheck certify` proves.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

import fpcheck
from proofs import write

DOCS = Path(__file__).parent
ROOT = DOCS.parent
FIGURES = DOCS / "figures"


def run(*words: str) -> str:
    """What the command prints, under its own line."""
    command = Path(sys.executable).parent / "fpcheck"
    done = subprocess.run([command, *words], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode == 2:
        raise SystemExit(done.stderr)
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return "\n".join([f"$ fpcheck {' '.join(words)}", *lines, f"(exit code {done.returncode})"])


def paste(page: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- output:name -->` and `<!-- end -->`."""
    pattern = re.compile(rf"(<!-- output:{name} -->\n).*?(<!-- end -->)", re.DOTALL)
    old = page.read_text()
    new, count = pattern.subn(lambda m: f"{m[1]}```\n{text}\n```\n{m[2]}", old)
    if count != 1:
        raise SystemExit(f"{page} has {count} places for output:{name}; expected 1")
    page.write_text(new)


def compare_residuals(documents: dict[str, dict]) -> Figure:
    """Both models' residuals side by side, same axes."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, len(documents), sharey=True)
    for axes, (name, held) in zip(panels, documents.items(), strict=True):
        for row in held["rows"]:
            values = np.array([np.nan if v is None else v for v in row["residuals"]])
            steps = np.flatnonzero(values > 0)
            axes.plot(steps, values[steps], lw=1, alpha=0.7, color="#1f6f8b" if row["attracting"] else "#c0392b")
        good = sum(row["attracting"] for row in held["rows"])
        axes.set_title(f"{name}: {good} of {len(held['rows'])} inputs settle", fontsize=10)
        axes.axhline(held["rtol"], color="0.4", lw=0.8, ls="--")
        axes.set_xlabel("loop steps")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(alpha=0.2)
    panels[0].set_ylabel("relative residual (estimate)")
    return figure


def models_page() -> str:
    """How each shipped model was trained, and how well it does, from its card."""
    lines = ["# How were the shipped models trained?", "", "Generated from the model cards by `make docs`.", ""]
    for name in fpcheck.shipped_models():
        card = fpcheck.load(name).card
        held = card["held_out"]
        size = (ROOT / "fpcheck" / "models" / name / "weights.safetensors").stat().st_size
        lines += [
            f"## {name}",
            "",
            f"- Command: `{card['command']}` (seed {card['seed']}, torch {card['torch']}, {size / 1e6:.2f} MB)",
            f"- Task: {card['task']['kind']}, group {card['task']['group']}, {card['task']['length']} tokens",
            f"- Held out ({held['sequences']} sequences, run to the fixed point, at most {held['budget']} loop steps): "
            f"token accuracy {held['token_accuracy']:.2%}, sequence accuracy {held['sequence_accuracy']:.2%}, "
            f"{held['settled']:.1%} of the loops settled"
            + (f", median {held['median_steps']:.0f} steps" if held["median_steps"] is not None else ""),
            f"- {card['note']}",
            f"- Weights: sha256 `{card['sha256']}`",
            "",
        ]
    return "\n".join(lines)


def theory() -> None:
    """docs/theory: the pages, the graph, and what `fpcheck prove` prints."""
    folder = DOCS / "theory"
    folder.mkdir(exist_ok=True)
    pages = write.pages()
    for path in folder.glob("*.md"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text)
    (folder / "graph.svg").write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{write.draw()}')
    paste(DOCS / "proofs.md", "prove", run("prove"))


def bounds() -> None:
    """What `fpcheck certify` proves: on the shipped models as `make certify` does it, and on the worked example."""
    with tempfile.TemporaryDirectory() as folder:
        said = run("certify", "s3", "--inputs", "6", "--out", folder)
        paste(ROOT / "README.md", "s3", said.replace(folder, "out/s3"))
        for name in ("approach", "radii", "limits"):
            (FIGURES / f"s3-{name}.png").write_bytes((Path(folder) / f"{name}.png").read_bytes())
    paste(ROOT / "README.md", "s3-unscaled", run("certify", "s3-unscaled", "--inputs", "2"))
    for name in ("block", "strong"):
        paste(DOCS / "certify.md", f"my-{name}", run("certify", f"examples/my_block.py:{name}"))


def main() -> None:
    """Do it all."""
    FIGURES.mkdir(exist_ok=True)
    if "--bounds" in sys.argv[1:]:
        bounds()
        return
    theory()
    if "--theory" in sys.argv[1:]:
        return
    documents = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("s3", "s3-unscaled"):
            out = Path(folder) / name
            run("certify", name, "--level", "estimate", "--out", str(out))
            documents[name] = json.loads((out / "assessment.json").read_text())
            (FIGURES / f"{name}-eigenvalues.png").write_bytes((out / "eigenvalues.png").read_bytes())
            said = run("certify", name, "--level", "estimate", "--inputs", "4")
            paste(DOCS / "reading-the-table.md", f"{name}-estimate", said)
    with tempfile.TemporaryDirectory() as folder:
        said = run("spectrum", "s3", "--inputs", "4", "--out", folder)
        paste(DOCS / "spectrum.md", "s3-spectrum", said.replace(folder, "out/spectrum"))
        for name in ("stability", "numerical-range", "growth"):
            (FIGURES / f"s3-{name}.png").write_bytes((Path(folder) / f"{name}.png").read_bytes())
    bounds()
    compare_residuals(documents).savefig(FIGURES / "residuals.png", dpi=110)
    (DOCS / "models.md").write_text(models_page())
    if "--bench" in sys.argv[1:]:
        for name in ("solvers", "spectral"):
            script = ROOT / "tests" / "bench" / f"{name}.py"
            done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
            paste(DOCS / "benchmarks.md", name, "\n".join(line.rstrip() for line in done.stdout.splitlines()))


if __name__ == "__main__":
    main()
