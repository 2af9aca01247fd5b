"""Is what is said about a gradient's error true, and sharp? ``python tests/bench/gradient_error.py [--loops 50]``.

Random contractive loops of all reference blocks, solved by plain iteration to random tolerances in float32 and float64;
gradients by random adjoints. The truth is the gradient in float64, forward and adjoint equation solved to 1e-13. The
table shows, by block, how the estimate compares with it: the share of gradients whose error is no larger than was said,
the quantiles of the ratio of both, and for how many no figure was given.

Exit code 1 if an estimate is too small, or the median ratio above 30.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fpcheck as fp

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_gradients import Figure, compare  # lies beside the tests
from random_loops import KINDS

ADJOINTS = ("implicit", "one step", "phantom", "window")


def figures(kind: str, adjoint: str, loops: int) -> tuple[list[Figure], int]:
    """What was said and what is true, of all gradients; and how many loops did not converge."""
    generator = torch.Generator().manual_seed(0)
    found, skipped = [], 0
    for seed in range(loops):
        a, b, c = torch.rand(3, generator=generator).tolist()
        dtype, low = ((torch.float32, -6.0), (torch.float64, -10.0))[int(a < 0.5)]
        forward, backward = (10 ** (-2 + share * (low + 2)) for share in (b, c))
        chosen = {
            "implicit": fp.Implicit(fp.GMRES(rtol=backward)),
            "one step": fp.OneStep(),
            "phantom": fp.Phantom(5, 0.5),
            "window": fp.TruncatedWindow(4),
        }[adjoint]
        result = compare(kind, seed, dtype, forward, chosen)
        if result is None:
            skipped += 1
        else:
            found += result[1]
    return found, skipped


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loops", type=int, default=50, help="of each block and adjoint")
    parser.add_argument("--adjoints", nargs="+", choices=ADJOINTS, default=list(ADJOINTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    table = Table(title="Estimated error of a gradient / true error")
    columns = ("adjoint", "block", "gradients", "hold", "least", "10 %", "median", "90 %", "largest", "none", "skipped")
    for name in columns:
        table.add_column(name, justify="right")
    bad = False
    rows = [(adjoint, kind) for adjoint in options.adjoints for kind in KINDS]
    for adjoint, kind in track(rows, console=Console(stderr=True)):
        found, skipped = figures(kind, adjoint, options.loops)
        finite = sorted(f.ratio for f in found if math.isfinite(f.said) and math.isfinite(f.ratio))
        holds = sum(f.holds for f in found)
        median = statistics.median(finite)
        bad |= holds < len(found) or median > 30
        quantiles = [finite[0], finite[len(finite) // 10], median, finite[-1 - len(finite) // 10], finite[-1]]
        none = sum(math.isinf(f.said) for f in found)
        shown = [f"{q:.3g}" for q in quantiles]
        table.add_row(adjoint, kind, str(len(found)), str(holds), *shown, str(none), str(skipped))
    console.print(table)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
