"""What certificates reach and cost: ``python tests/bench/certificates.py --part s3 --inputs 100``. Markdown.

1. s3: over held-out inputs and for each setting, the share that is proved attracting, and medians (quartiles) of the
   certified ball, the residual at which the trajectory enters it, rate, error, decisions and seconds. Each input runs
   in its own process and is written down at once (``--records``): a run that is stopped goes on where it was.
2. cost: seconds and peak memory against n = tokens x width on random blocks that contract, fitted exponents, and, with
   ``--largest``, the largest n within ``--limit`` seconds: extrapolated, then run.
3. attack: the certified radius against the smallest at which an attack finds a rate of 1 or more.

Records hold for one version of the code: pass another file, or delete it, after a change.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import certify_soundness as soundness
import torch
from machine import machine
from rich.console import Console
from rich.progress import track

import fpcheck as fp
from fpcheck import bounds
from fpcheck.blocks import FPRMConfig, FPRMModel
from fpcheck.certify import Verdict, certify
from fpcheck.loop import map_leaves
from fpcheck.settle import settle
from fpcheck.target import Data, find_target

Record = dict[str, Any]
ERR = Console(stderr=True)
QUIET = not sys.stderr.isatty()


# One certificate, in a process of its own.


def one_input(options: argparse.Namespace) -> Record:
    """Settle and certify one held-out input of a shipped model."""
    target = find_target(options.model, Data(inputs=options.inputs, seed=options.seed)).to(torch.float64)
    own = slice(options.index, options.index + 1)
    single = dataclasses.replace(target, x=map_leaves(target.x, lambda leaf: leaf[own]), z0=target.z0[own], labels=None)
    # The row that the command line prints, trajectory included.
    (row,) = bounds.bound(single, **soundness.settings()[options.setting]).rows
    return dataclasses.asdict(row) | {"index": options.index, "verdict": row.verdict.name}


def one_size(options: argparse.Namespace) -> Record:
    """Certify a random block of a size. Its matrices are half their usual size, so that it contracts."""
    torch.manual_seed(options.seed)
    config = FPRMConfig(
        vocab_size=32, seq_len=options.tokens, hidden_size=options.width, num_heads=max(1, options.width // 16),
        L_layers=2, residual_scale="input-independent", alpha_1_init=0.75, alpha_2_init=0.75,
    )  # fmt: skip
    model = FPRMModel(config).eval().requires_grad_(False)
    for parameter in model.block.parameters():
        if parameter.ndim == 2:
            parameter.mul_(0.5)
    model = model.to(torch.float64)
    x = model.injection(torch.randint(config.vocab_size, (1, options.tokens)))
    loop = fp.Loop(model.block, x, z0=model.initial_state(x), check=False)
    points = settle(loop, model.initial_state(x)).points.detach()
    begin = time.perf_counter()
    found = certify(loop, points, **soundness.settings()[options.setting])
    return {
        "n": options.tokens * options.width,
        "verdict": found.verdict.name,
        "radius": found.radius,
        "seconds": time.perf_counter() - begin,
    }


def worker(options: argparse.Namespace) -> int:
    """Print one record; peak memory is this process's own."""
    torch.set_num_threads(options.threads)
    record = one_input(options) if options.worker == "input" else one_size(options)
    record["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RECORD " + json.dumps(record))
    return 0


def spawn(options: argparse.Namespace, timeout: float | None = None, **more: Any) -> Record | None:
    """A record from a process of its own; None if it took too long. Raises if it failed."""
    held = {"seed": options.seed, "threads": options.threads} | more
    command = [sys.executable, __file__]
    for name, value in held.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout, env=environment)
    except subprocess.TimeoutExpired:
        return None
    lines = [line for line in done.stdout.splitlines() if line.startswith("RECORD ")]
    if not lines:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode} and no record:\n{done.stderr[-2000:]}")
    found: Record = json.loads(lines[-1].removeprefix("RECORD "))
    return found


class Book:
    """Finished records, one JSON object a line, by key; a line that was cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, dict[str, Record]()
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            self.held[record["key"]] = record

    def get(self, key: str, make: Callable[[], Record | None]) -> Record:
        """The record of a key, made and written down if it is not there; what took too long is written down too."""
        if key not in self.held:
            record = (make() or {"verdict": "TIME"}) | {"key": key}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self.held[key] = record
        return self.held[key]


# Tables.


def markdown(rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|---" + "|---:" * (len(rows[0]) - 1) + "|")
    return "\n".join(lines)


def quartiles(values: list[float], digits: str) -> str:
    if not values:
        return "none"
    if len(values) < 4:
        return f"{statistics.median(values):{digits}}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{digits}} ({low:{digits}} to {high:{digits}})"


FIGURES = (
    ("radius in the metric", "radius", ".2e"),
    ("Euclidean radius / norm", "relative_radius", ".2e"),
    ("relative residual at entry", "entry_residual", ".2e"),
    ("rate near the fixed point", "rate", ".4f"),
    ("error bound / norm", "relative_error", ".1e"),
    ("tokens proved at the fixed point", "stable", ".1%"),
    ("tokens proved from residual 1e-3 on", "stable_when_halting", ".1%"),
    ("seconds", "seconds", ".1f"),
    ("peak memory, MiB", "mib", ".0f"),
)


def s3(options: argparse.Namespace) -> None:
    """Table 1."""
    book = Book(options.records)
    count = min(options.first or options.inputs, options.inputs)
    held: dict[str, list[Record]] = {}
    for name in options.settings:
        for i in track(range(count), f"{options.model}, {name}", console=ERR, disable=QUIET):
            more = {"worker": "input", "model": options.model, "inputs": options.inputs, "index": i, "setting": name}
            key = f"{options.model} {name} {options.seed} {options.inputs} {options.threads} {i}"
            held.setdefault(name, []).append(book.get(key, lambda more=more: spawn(options, **more)))
    rows = [(f"{options.model}, {count} inputs", *(name.lower() for name in held))]
    proved = {name: [r for r in records if r["verdict"] == "PROVED_ATTRACTING"] for name, records in held.items()}
    for verdict in Verdict:
        counts = [sum(r["verdict"] == verdict.name for r in records) for records in held.values()]
        rows.append((verdict.value, *(f"{c} ({c / count:.0%})" for c in counts)))
    for title, field, digits in FIGURES:
        values = [[r[field] for r in records if r.get(field) is not None] for records in proved.values()]
        rows.append((title, *(quartiles(v, digits) for v in values)))
    tokens = [[r["stable_when_halting"] for r in p if r["stable_when_halting"] is not None] for p in proved.values()]
    means = (f"{statistics.fmean(t):.1%}" if t else "none" for t in tokens)
    rows.append(("tokens proved from residual 1e-3 on, mean", *means))
    print("Median (quartiles) over what was proved attracting.\n\n" + markdown(rows))
    for name, records in held.items():
        for r in records:
            if r["verdict"] != "PROVED_ATTRACTING":
                print(f"\n{name.lower()}, input {r.get('index')}: {r['verdict']}; {r.get('reason')}")


def fitted(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Exponent and logarithm of the factor of a power law, by least squares of logarithms."""
    xs, ys = ([math.log(v) for v in side] for side in zip(*points, strict=True))
    slope, offset = statistics.linear_regression(xs, ys)
    return slope, offset


def cost(options: argparse.Namespace) -> None:
    """Table 2."""
    book = Book(options.records)
    sizes = sorted(((t, w) for t in options.token_list for w in options.width_list), key=lambda s: s[0] * s[1])
    if options.most:
        sizes = [s for s in sizes if s[0] * s[1] <= options.most]

    def record(name: str, tokens: int, width: int) -> Record:
        more = {"worker": "size", "tokens": tokens, "width": width, "setting": name}
        key = f"size {name} {options.seed} {options.threads} {tokens} {width}"
        return book.get(key, lambda: spawn(options, timeout=2 * options.limit, **more))

    rows = [("tokens x width", "n", "setting", "verdict", "seconds", "peak memory, MiB")]
    notes = []
    for name in options.settings:
        times, memory = [], []
        for tokens, width in track(sizes, f"cost, {name}", console=ERR, disable=QUIET):
            r = record(name, tokens, width)
            rows.append(_cost_row(name, tokens, width, r))
            if "seconds" in r:
                times.append((r["n"], r["seconds"]))
                memory.append((r["n"], r["mib"]))
        # Below, the interpreter's own time and memory rule.
        large = [[p for p in points if p[0] >= options.fit_from] for points in (times, memory)]
        if len({p[0] for p in large[0]}) < 2:
            notes.append(f"{name.lower()}: fewer than two sizes from n = {options.fit_from} on; no fit")
            continue
        (power, offset), (more, _) = (fitted(points) for points in large)
        reach = math.exp((math.log(options.limit) - offset) / power)
        words = f"seconds grow as n^{power:.2f}, memory as n^{more:.2f} (from n = {options.fit_from} on)"
        notes.append(f"{name.lower()}: {words}; {options.limit:.0f} s would do for n = {reach:.0f}")
        if options.largest:
            notes.append(f"{name.lower()}: {_largest(options, rows, record, name, reach)}")
    print(markdown(rows) + "\n\n" + "\n".join(notes))


def _cost_row(name: str, tokens: int, width: int, r: Record) -> tuple[str, ...]:
    if "seconds" not in r:
        return f"{tokens} x {width}", str(tokens * width), name.lower(), "not in time", "", ""
    verdict = Verdict[r["verdict"]].value
    return f"{tokens} x {width}", str(r["n"]), name.lower(), verdict, f"{r['seconds']:.1f}", f"{r['mib']:.0f}"


def _largest(
    options: argparse.Namespace, rows: list[tuple[str, ...]], record: Callable[..., Record], name: str, reach: float
) -> str:
    """Run the extrapolated size, and smaller ones until one is in time."""
    tokens = 12
    for _ in range(5):
        width = max(16, 16 * int(reach / tokens / 16))
        r = record(name, tokens, width)
        rows.append(_cost_row(name, tokens, width, r))
        if r.get("seconds", math.inf) <= options.limit:
            return f"n = {r['n']} took {r['seconds']:.0f} s and {r['mib'] / 1024:.1f} GiB"
        reach *= 0.9
    return f"nothing near n = {reach:.0f} was in time"


def attack(options: argparse.Namespace) -> None:
    """Table 3."""
    options.size, options.rounds = options.starts, 8
    shipped = argparse.Namespace(**vars(options) | {"inputs": options.attacked})
    small = argparse.Namespace(**vars(options) | {"model": None})
    for which in (small, shipped):
        held, _ = soundness.proved(which)
        print(markdown(soundness.radius_rows(soundness.radii(held, which, options.seed))) + "\n")


PARTS = {"s3": s3, "cost": cost, "attack": attack}


def main() -> int:
    whole = argparse.BooleanOptionalAction
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only these; default: all")
    parser.add_argument("--records", type=Path, default=Path("out/certificates.jsonl"), help="finished certificates")
    parser.add_argument("--model", default="s3", help="a shipped model")
    parser.add_argument("--inputs", type=int, default=100, help="of that model")
    parser.add_argument("--first", type=int, help="only so many of them; default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs and of the random blocks")
    parser.add_argument("--settings", nargs="+", choices=soundness.settings(), default=list(soundness.settings()))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--token-list", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--width-list", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--most", type=int, default=0, help="leave out sizes above this n; 0: none")
    parser.add_argument("--fit-from", type=int, default=250, help="the fit looks at this n and above")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds; what takes twice as long is stopped")
    parser.add_argument("--largest", action=whole, default=False, help="run the largest n within the limit")
    parser.add_argument("--starts", type=int, default=8, help="of each search of an attack")
    parser.add_argument("--attacked", type=int, default=4, help="inputs of the model that are attacked")
    for name in ("worker", "setting"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("index", "tokens", "width"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options)
    torch.set_num_threads(options.threads)
    print(machine() + "\n")
    for part in options.part or PARTS:
        PARTS[part](options)
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
