"""Solvers of fpcheck and of torchdeq on the same FPRM block, in one run: ``python tests/bench/solvers.py``.

Both sides start from the same states, with the same tolerance on the same relative residual, and take turns.
Before anything is timed, the true residual ``|F(z) - z| / |F(z)|`` of what each returned is computed, in one
evaluation of its own, and must lie below the tolerance. Evaluations are counted by the block itself: every call
counts once per sample in its batch, so probes and all other hidden work are included.

Exit code 1 if a solver missed the tolerance.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import torch
import torchdeq
from machine import cpu
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchdeq.solver import anderson_solver, fixed_point_iter

import fpcheck as fp
from fpcheck.blocks import FPRMConfig, FPRMModel
from fpcheck.solve import AbstractSolver

Solve = Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor]


@dataclass
class Counter:
    """The block, counting calls and the samples in them."""

    block: torch.nn.Module
    calls: int = 0
    samples: int = 0

    def __call__(self, z: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        self.samples += len(z)
        return self.block(z, x)


def problem(gain: float, alpha: float, batch: int) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """An FPRM block (d 64, 4 heads, 2 layers, 12 tokens) whose matrices are ``gain`` times their usual size."""
    torch.manual_seed(0)
    config = FPRMConfig(
        vocab_size=32, seq_len=12, hidden_size=64, num_heads=4, L_layers=2, causal=True,
        residual_scale="input-independent", alpha_1_init=alpha, alpha_2_init=alpha,
    )  # fmt: skip
    model = FPRMModel(config).eval().requires_grad_(False)
    for parameter in model.block.parameters():
        if parameter.ndim == 2:
            parameter.mul_(gain)
    x = model.injection(torch.randint(config.vocab_size, (batch, config.seq_len)))
    return model.block, model.initial_state(x), x


def ours(solver: AbstractSolver) -> Solve:
    def solve(block: Callable[..., Tensor], z0: Tensor, x: Tensor) -> Tensor:
        loop = fp.Loop(block, x, z0=z0, check=False)
        return solver.solve(loop, z0).value

    return solve


def theirs(solver: Callable[..., tuple], tol: float, max_iter: int) -> Solve:
    def solve(block: Callable[..., Tensor], z0: Tensor, x: Tensor) -> Tensor:
        return solver(lambda z: block(z, x), z0, max_iter=max_iter, tol=tol, stop_mode="rel")[0]

    return solve


def their_default(tol: float, max_iter: int) -> Solve:
    """What ``torchdeq.get_deq`` hands out when only tolerance and budget are given."""
    deq = torchdeq.get_deq(f_tol=tol, f_max_iter=max_iter, f_stop_mode="rel", ift=True).eval()

    def solve(block: Callable[..., Tensor], z0: Tensor, x: Tensor) -> Tensor:
        return deq(lambda z: block(z, x), z0)[0][-1]

    return solve


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each solver; the table shows medians")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tol", type=float, default=1e-4, help="relative residual")
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=120)
    console.print(
        f"{cpu()}, {torch.get_num_threads()} thread(s); Python {platform.python_version()}, torch "
        f"{torch.__version__}, fpcheck {version('fpcheck')}, torchdeq {version('torchdeq')}; batch {options.batch}, "
        f"float32, medians of {options.repeats}"
    )

    budget = {"rtol": options.tol, "max_steps": options.max_steps}
    picard, damped, anderson = (ours(solver(**budget)) for solver in (fp.Picard, fp.Damped, fp.Anderson))
    plain = theirs(fixed_point_iter, options.tol, options.max_steps)
    pairs: list[tuple[str, Solve, str, Solve]] = [
        ("Picard", picard, "fixed_point_iter", plain),
        ("Damped", damped, "fixed_point_iter", plain),
        ("Anderson", anderson, "anderson", theirs(anderson_solver, options.tol, options.max_steps)),
        ("Anderson", anderson, "get_deq default", their_default(options.tol, options.max_steps)),
    ]
    missed = False
    for gain, alpha in ((1.0, 0.5), (1.2, 0.75), (1.0, 0.9), (1.1, 0.9)):
        missed |= compare(
            console, pairs, *problem(gain, alpha, options.batch), f"weights x {gain}, alpha {alpha}", options
        )
    return int(missed)


@torch.no_grad()
def compare(
    console: Console,
    pairs: list[tuple[str, Solve, str, Solve]],
    block: torch.nn.Module,
    z0: Tensor,
    x: Tensor,
    title: str,
    options: argparse.Namespace,
) -> bool:
    table = Table(title=f"{title}; tolerance {options.tol:g}")
    for name in ("solver", "calls", "evals/sample", "total evals", "true residual", "ms", "evals/s", "time ratio"):
        table.add_column(name, justify="left" if name == "solver" else "right")
    missed = False
    for our_name, our_solve, their_name, their_solve in pairs:
        sides = ((f"fpcheck {our_name}", our_solve), (f"torchdeq {their_name}", their_solve))
        counts, residuals, times = [], [], [[], []]
        for _, solve in sides:
            counter = Counter(block)
            residuals.append(true_residual(block, solve(counter, z0, x), x))
            counts.append(counter)
        for _ in range(options.repeats):
            for (_, solve), clock in zip(sides, times, strict=True):
                begin = time.perf_counter()
                solve(block, z0, x)
                clock.append(time.perf_counter() - begin)
        medians = [statistics.median(clock) for clock in times]
        for i, (name, _) in enumerate(sides):
            failed = not residuals[i] <= options.tol
            missed |= failed
            table.add_row(
                name, str(counts[i].calls), f"{counts[i].samples / len(z0):.1f}", str(counts[i].samples),
                f"{residuals[i]:.1e}" + (" MISSED" if failed else ""), f"{1e3 * medians[i]:.1f}",
                f"{counts[i].samples / medians[i]:.0f}", f"{medians[0] / medians[1]:.2f}" if i == 0 else "",
                end_section=i == 1,
            )  # fmt: skip
    console.print(table)
    return missed


def true_residual(block: torch.nn.Module, z: Tensor, x: Tensor) -> float:
    """Largest relative residual of the batch at ``z`` itself, in float64 norms."""
    fz = block(z, x)
    gap, size = (v.double().flatten(1).norm(dim=1) for v in (fz - z, fz))
    return float((gap / size).max())


if __name__ == "__main__":
    sys.exit(main())
