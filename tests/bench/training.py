"""What training through the fixed point costs and brings: ``python tests/bench/training.py [--seeds 0 1 2]``.

Trains one recipe by several adjoints, each run in a process of its own with one thread, one after the other, and prints
a table: held-out accuracy after running to the fixed points, processor and wall time, peak memory, iterations of the
slowest sample on average, samples that did not converge, and the seeds. Runs are kept below ``--out`` and go on where
they stopped; times are those of the whole run, added up over its parts.

``--settings implicit:max_windows=2,rtol=3e-3`` trains an adjoint with other settings than its own.

Exit code 1 if ``implicit`` is less accurate in the mean than ``window``, or takes more processor time.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fpcheck.status import Status
from fpcheck.train import ADJOINTS, evaluate, read_log, recipe, train


def one(folder: Path, name: str, changes: dict[str, Any], sequences: int) -> None:
    """Train, evaluate, and write down what it took."""
    path = folder / "cost.json"
    earlier = json.loads(path.read_text()) if path.exists() else {"cpu": 0.0, "wall": 0.0, "memory": 0.0}
    settings = recipe(name, threads=1, **changes)
    start = time.process_time(), time.perf_counter()

    def note(*_: object) -> None:
        cost = {
            "cpu": earlier["cpu"] + time.process_time() - start[0],
            "wall": earlier["wall"] + time.perf_counter() - start[1],
            "memory": max(earlier["memory"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }
        path.write_text(json.dumps(cost))

    folder.mkdir(parents=True, exist_ok=True)
    model = train(settings, folder=folder, progress=lambda step, row: note() if step % 100 == 0 else None)
    note()
    held = evaluate(model, settings.task, sequences=sequences)
    (folder / "held_out.json").write_text(json.dumps(asdict(held)))


def changes_of(texts: list[str]) -> dict[str, dict[str, Any]]:
    """``["implicit:rtol=1e-3,budget=50"]`` as a dictionary."""
    found: dict[str, dict[str, Any]] = {}
    for text in texts:
        adjoint, _, rest = text.partition(":")
        found[adjoint] = {
            key: ast.literal_eval(value) for key, _, value in (part.partition("=") for part in rest.split(","))
        }
    return found


def row(folders: list[Path]) -> dict[str, float]:
    """Figures of one adjoint, means over its seeds."""
    each: dict[str, list[float]] = {}
    for folder in folders:
        held, cost = (json.loads((folder / f"{name}.json").read_text()) for name in ("held_out", "cost"))
        log = read_log(folder)
        failed = [sum(r.get(s.name.lower(), 0) for s in Status if s is not Status.CONVERGED) for r in log]
        figures = {
            "sequences": held["sequence_accuracy"], "tokens": held["token_accuracy"], "settled": held["settled"],
            "cpu": cost["cpu"], "wall": cost["wall"], "memory": cost["memory"],
            "loop": statistics.mean(r.get("loop_steps", 0) for r in log),
            "adjoint": statistics.mean(r.get("adjoint_steps", 0) for r in log),
            "failed": statistics.mean(failed), "worst": held["sequence_accuracy"],
        }  # fmt: skip
        for key, value in figures.items():
            each.setdefault(key, []).append(value)
    return {key: min(values) if key == "worst" else statistics.mean(values) for key, values in each.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="s3")
    parser.add_argument("--adjoints", nargs="+", choices=ADJOINTS, default=["window", "implicit"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="optimiser steps; default: the recipe's")
    parser.add_argument("--settings", nargs="*", default=[], help="ADJOINT:name=value,name=value")
    parser.add_argument("--sequences", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("out/bench/training"))
    parser.add_argument("--only", nargs=2, metavar=("ADJOINT", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = changes_of(options.settings)

    def changes(adjoint: str, seed: int) -> dict[str, Any]:
        return {"adjoint": adjoint, "seed": seed, "steps": options.steps, **settings.get(adjoint, {})}

    if options.only:
        adjoint, seed = options.only[0], int(options.only[1])
        one(options.out / f"{adjoint}-{seed}", options.recipe, changes(adjoint, seed), options.sequences)
        return 0
    console = Console()
    found = {}
    for adjoint in options.adjoints:
        folders = [options.out / f"{adjoint}-{seed}" for seed in options.seeds]
        for seed in options.seeds:
            console.print(f"{options.recipe} by {adjoint}, seed {seed}...", style="dim")
            words = [sys.executable, *sys.argv, "--only", adjoint, str(seed)]
            subprocess.run(words, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found[adjoint] = row(folders)
    table = Table(title=f"{options.recipe}: {options.sequences} held-out sequences, seeds {options.seeds}")
    heads = {
        "sequences": "sequences right", "worst": "worst seed", "tokens": "tokens right", "settled": "settled",
        "cpu": "CPU s", "wall": "wall s", "memory": "peak MiB", "loop": "loop steps", "adjoint": "adjoint products",
        "failed": "failed per batch",
    }  # fmt: skip
    table.add_column("adjoint")
    for head in heads.values():
        table.add_column(head, justify="right")
    for adjoint, figures in found.items():
        table.add_row(adjoint, *(f"{figures[key]:.4g}" for key in heads))
    console.print(table)
    if not {"implicit", "window"} <= found.keys():
        return 0
    new, old = found["implicit"], found["window"]
    return int(new["sequences"] < old["sequences"] or new["cpu"] > old["cpu"])


if __name__ == "__main__":
    sys.exit(main())
