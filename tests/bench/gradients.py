"""Gradients through fixed points, of fpcheck and of others, in one run: ``python tests/bench/gradients.py``.

Every row is one forward and one backward pass, in the weights and in the injection. Both sides start from the same
states, with the same relative tolerance, and take turns. Before anything is timed, the gradient of each is compared
with that of the same block in float64, solved to 1e-12: a ratio counts only where our error is not the larger one by
more than a factor 2, or is below 1e-4 on both sides. Memory is the peak of torch's own allocations on the CPU during
the pass, above what was allocated before it.

optimistix (JAX) is compared where it is installed. Exit code 1 if a gradient's error does not allow its ratio.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import torch
import torchdeq
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import fpcheck as fp
from fpcheck.blocks import FPRMConfig, FPRMModel

Gradient = list[Tensor]
Pass = Callable[[], Gradient]
SMALL = 1e-4


def problem(width: int, gain: float, alpha: float, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    """An FPRM block (4 heads, 2 layers, 12 tokens) whose matrices are ``gain`` times their usual size."""
    torch.manual_seed(0)
    config = FPRMConfig(
        vocab_size=32, seq_len=12, hidden_size=width, num_heads=4, L_layers=2, causal=True,
        residual_scale="input-independent", alpha_1_init=alpha, alpha_2_init=alpha,
    )  # fmt: skip
    model = FPRMModel(config).eval()
    with torch.no_grad():
        for parameter in model.block.parameters():
            if parameter.ndim == 2:
                parameter.mul_(gain)
        x = model.injection(torch.randint(config.vocab_size, (batch, config.seq_len)))
        return model.block, model.initial_state(x), x


def backward(out: Tensor, wanted: Sequence[Tensor]) -> Gradient:
    """The gradient of a loss whose cotangent differs from entry to entry."""
    draw = torch.Generator().manual_seed(1)
    g = torch.randn(out.shape, generator=draw, dtype=torch.float64).to(out.dtype)
    return list(torch.autograd.grad(out, wanted, g, materialize_grads=True, allow_unused=True))


def implicit(block: nn.Module, z0: Tensor, x: Tensor, tol: float | None, budget: int = 2000) -> Pass:
    layer = fp.FixedPoint(
        block,
        solver=fp.Anderson(rtol=tol, max_steps=budget),
        adjoint=fp.Implicit(fp.GMRES(rtol=tol)),
    )

    def run() -> Gradient:
        leaf = x.detach().requires_grad_()
        return backward(layer(leaf, z0), [leaf, *block.parameters()])

    return run


def their_ift(block: nn.Module, z0: Tensor, x: Tensor, tol: float, solver: str) -> Pass:
    deq = torchdeq.get_deq(
        ift=True, f_solver=solver, b_solver=solver, f_tol=tol, b_tol=tol, f_stop_mode="rel", b_stop_mode="rel",
        f_max_iter=300, b_max_iter=300,
    )  # fmt: skip

    def run() -> Gradient:
        leaf = x.detach().requires_grad_()
        out = deq(lambda z: block(z, leaf), z0)[0][-1]
        return backward(out, [leaf, *block.parameters()])

    return run


def unrolled(block: nn.Module, z0: Tensor, x: Tensor, steps: int) -> Pass:
    def run() -> Gradient:
        leaf = x.detach().requires_grad_()
        z = z0
        for _ in range(steps):
            z = block(z, leaf)
        return backward(z, [leaf, *block.parameters()])

    return run


def reference(block: nn.Module, z0: Tensor, x: Tensor) -> Gradient:
    return implicit(copy.deepcopy(block).double(), z0.double(), x.double(), 1e-12)()


def error(got: Gradient, want: Gradient) -> float:
    """Relative error of the whole gradient."""
    gap = sum(float((g.double() - w).square().sum()) for g, w in zip(got, want, strict=True))
    return (gap / sum(float(w.square().sum()) for w in want)) ** 0.5


def peak(run: Pass) -> int:
    """Bytes allocated at most during a pass, above what was allocated before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = top = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        top = max(top, total)
    return top


def seconds(sides: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Median wall time of each side; the sides take turns."""
    clocks: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, clock in zip(sides, clocks, strict=True):
            begin = time.perf_counter()
            side()
            clock.append(time.perf_counter() - begin)
    return [statistics.median(clock) for clock in clocks]


def compare(table: Table, title: str, sides: dict[str, Pass], want: Gradient, repeats: int) -> bool:
    """Rows for ours, which comes first, against each other; whether an error forbids a ratio."""
    errors = [error(run(), want) for run in sides.values()]
    memory = [peak(run) for run in sides.values()]
    times = seconds(list(sides.values()), repeats)
    missed = False
    for i, name in enumerate(sides):
        worse = i > 0 and not (errors[0] <= 2 * errors[i] or max(errors[0], errors[i]) <= SMALL)
        missed |= worse
        table.add_row(
            title if i == 0 else "", name, f"{errors[i]:.1e}", f"{1e3 * times[i]:.0f}", f"{memory[i] / 2**20:.1f}",
            "" if i == 0 else "MISSED" if worse else f"{times[0] / times[i]:.2f}",
            "" if i == 0 else f"{memory[0] / memory[i]:.2f}",
            end_section=i == len(sides) - 1,
        )  # fmt: skip
    return missed


def growth(console: Console, width: int, batch: int) -> None:
    """Memory of a pass whose solve takes many iterations, over that of one whose solve takes few."""
    block, z0, x = problem(width, 1.0, 0.97, batch)
    linear = fp.Implicit(fp.GMRES(rtol=1e-4))

    def layer(start: Tensor, rtol: float) -> tuple[int, int]:
        made = fp.FixedPoint(block, solver=fp.Picard(rtol=rtol), adjoint=linear)

        def run() -> Gradient:
            return backward(made(x, start), list(block.parameters()))

        run()
        return int(made.solution.steps.max()), peak(run)

    with torch.no_grad():
        loop = fp.Loop(block, x, z0=z0, check=False)
        near = fp.Picard(rtol=1e-6).solve(loop, z0).value
    many, few = layer(z0, 1e-6), layer(near, 1e-2)
    console.print(
        f"d {width}: memory at {many[0]} iterations over memory at {few[0]}: {many[1] / few[1]:.2f} "
        f"({many[1] / 2**20:.1f} MiB, {few[1] / 2**20:.1f} MiB)"
    )


def against_optimistix(console: Console, n: int, repeats: int) -> bool:
    """z = tanh(W z + x) with |W| = 0.9, the gradient of |z|^2 in W and x, both after warm-up."""
    if importlib.util.find_spec("optimistix") is None:
        console.print("optimistix: not installed, so not compared; pip install jax optimistix")
        return False
    import lineax as lx
    import optimistix as optx

    draw = torch.Generator().manual_seed(0)
    W = torch.randn(n, n, generator=draw, dtype=torch.float64)
    W, x = 0.9 * W / torch.linalg.matrix_norm(W, 2), torch.randn(n, generator=draw, dtype=torch.float64)
    tol = 1e-5

    def found(W: Tensor, x: Tensor, rtol: float) -> Gradient:
        W, x = W.detach().requires_grad_(), x.detach()[None].requires_grad_()
        out = fp.fixed_point(
            lambda z, x, W: torch.tanh(z @ W.T + x), torch.zeros_like(x), x, W,
            solver=fp.Anderson(rtol=rtol), adjoint=fp.Implicit(fp.GMRES(rtol=rtol)),
        ).value  # fmt: skip
        grads = torch.autograd.grad(out.square().sum(), (W, x))
        return [grads[0], grads[1][0]]

    want = found(W, x, 1e-12)
    narrow = (W.float(), x.float())
    sides: dict[str, Callable[[], Gradient]] = {"fpcheck Anderson, GMRES": lambda: found(*narrow, tol)}
    for name, linear in (
        ("optimistix default (dense)", lx.AutoLinearSolver(well_posed=None)),
        ("optimistix GMRES", lx.GMRES(rtol=tol, atol=tol)),
    ):
        sides[name] = _in_jax(narrow, optx.ImplicitAdjoint(linear_solver=linear), tol)
    table = Table(title=f"tanh loop, n {n}, one sample, float32, tolerance {tol:g}; jax {version('jax')}, optimistix "
                  f"{version('optimistix')}")  # fmt: skip
    for column in ("side", "gradient error", "ms", "time ratio"):
        table.add_column(column, justify="left" if column == "side" else "right")
    errors = [error(run(), want) for run in sides.values()]
    times = seconds(list(sides.values()), repeats)
    missed = False
    for i, name in enumerate(sides):
        worse = i > 0 and not (errors[0] <= 2 * errors[i] or max(errors[0], errors[i]) <= SMALL)
        missed |= worse
        ratio = "" if i == 0 else "MISSED" if worse else f"{times[0] / times[i]:.2f}"
        table.add_row(name, f"{errors[i]:.1e}", f"{1e3 * times[i]:.1f}", ratio)
    console.print(table)
    return missed


def _in_jax(tensors: tuple[Tensor, Tensor], adjoint: object, tol: float) -> Pass:
    """The gradient of |z|^2 at z = tanh(W z + x), compiled."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optimistix as optx

    solver = optx.FixedPointIteration(rtol=tol, atol=tol)
    W, x = (jnp.asarray(t.numpy()) for t in tensors)

    def step(z: jax.Array, args: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.tanh(args[0] @ z + args[1])

    def loss(args: tuple[jax.Array, jax.Array]) -> jax.Array:
        found = optx.fixed_point(step, solver, jnp.zeros_like(x), args, adjoint=adjoint, max_steps=2000)
        return jnp.sum(found.value**2)

    gradient = jax.jit(jax.grad(loss))
    return lambda: [torch.from_numpy(np.array(g)) for g in gradient((W, x))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed passes of each side; the table shows medians")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tol", type=float, default=1e-4, help="relative residual of states and of adjoints")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=130)
    console.print(
        f"{options.threads} thread(s); Python {platform.python_version()}, torch {torch.__version__}, fpcheck "
        f"{version('fpcheck')}, torchdeq {version('torchdeq')}; batch {options.batch}, 12 tokens, 2 layers, float32"
    )
    table = Table(title=f"forward + backward; ratios: fpcheck over the other; medians of {options.repeats}")
    for column in ("problem", "side", "gradient error", "ms", "peak MiB", "time ratio", "memory ratio"):
        table.add_column(column, justify="left" if column in ("problem", "side") else "right")
    missed = False
    for width in options.widths:
        for gain, alpha in ((1.0, 0.5), (1.0, 0.9)):
            block, z0, x = problem(width, gain, alpha, options.batch)
            sides = {"fpcheck Anderson, GMRES": implicit(block, z0, x, options.tol)}
            for solver in ("anderson", "fixed_point_iter"):
                sides[f"torchdeq IFT {solver}"] = their_ift(block, z0, x, options.tol, solver)
            title = f"d {width}, weights x {gain}, alpha {alpha}"
            missed |= compare(table, title, sides, reference(block, z0, x), options.repeats)
    width = options.widths[0]
    block, z0, x = problem(width, 1.0, 0.9, options.batch)
    sides = {
        "fpcheck Anderson, GMRES, 1e-6": implicit(block, z0, x, 1e-6),  # 100 steps settle to that
        "100 steps, unrolled": unrolled(block, z0, x, 100),
    }
    missed |= compare(table, f"d {width}, weights x 1.0, alpha 0.9", sides, reference(block, z0, x), options.repeats)
    console.print(table)
    growth(console, width, options.batch)
    missed |= against_optimistix(console, 1000, options.repeats)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
