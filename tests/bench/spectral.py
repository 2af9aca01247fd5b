"""The spectral engine against LAPACK, ARPACK and torchdeq, in one run: ``python tests/bench/spectral.py``.

Four tables, each with both sides in the same run on the same operators:

1. accuracy: the spectral radius by Krylov-Schur against LAPACK, beside what torchdeq's power method says;
2. overhead: wall time of a whole Krylov run over the time of the products that it made;
3. batches: 32 loops at once against 32 calls of SciPy's ARPACK at equal accuracy, and the products of both;
4. size: 81 tokens x 512 channels, n = 41,472, by products alone, with peak memory.

Exit code 1 if a value flagged as converged is wrong.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import scipy.sparse.linalg
import torch
import torchdeq.loss
from machine import cpu
from rich.console import Console
from rich.table import Table
from torch import Tensor

import fpcheck as fp
from fpcheck.blocks import FPRMConfig, FPRMModel
from fpcheck.spectral.eigenpairs import eigenvalues
from fpcheck.spectral.krylov import KrylovSchur
from fpcheck.spectral.lanczos import log_norm, spectral_norm
from fpcheck.spectral.operator import AbstractOperator, JacobianOperator, MatrixOperator
from fpcheck.target import Data, find_target

RTOL = 1e-6


class Timed(AbstractOperator):
    """An operator that counts its products and the time they take."""

    def __init__(self, base: AbstractOperator, clock: list[float] | None = None) -> None:
        self.base = base
        # Seconds in products with J and with J', and their numbers, shared with selections of samples.
        self.clock = clock if clock is not None else [0.0, 0.0, 0, 0]

    batch_size = property(lambda self: self.base.batch_size)
    n = property(lambda self: self.base.n)
    dtype = property(lambda self: self.base.dtype)
    device = property(lambda self: self.base.device)

    def matvec(self, V: Tensor) -> Tensor:
        return self._time(self.base.matvec, V, 0)

    def rmatvec(self, U: Tensor) -> Tensor:
        return self._time(self.base.rmatvec, U, 1)

    def select(self, index: Tensor) -> Timed:
        # Recording the loop again is the method's own work: not counted as a product.
        return Timed(self.base.select(index), self.clock)

    def rounding(self) -> Tensor:
        return self.base.rounding()

    def _time(self, product: Callable[[Tensor], Tensor], V: Tensor, side: int) -> Tensor:
        begin = time.perf_counter()
        out = product(V)
        self.clock[side] += time.perf_counter() - begin
        self.clock[2 + side] += V[0].numel() // self.n
        return out


def block_loop(tokens: int, width: int, batch: int, *, causal: bool = False, heads: int | None = None,
               dtype: torch.dtype = torch.float64) -> tuple[fp.Loop, Tensor]:  # fmt: skip
    """An untrained FPRM loop near its fixed point; its weights are 1.5 times their usual size, so that it works."""
    torch.manual_seed(0)
    config = FPRMConfig(
        vocab_size=32, seq_len=tokens, hidden_size=width, num_heads=heads or max(1, width // 16), L_layers=2,
        causal=causal, residual_scale="input-independent", alpha_1_init=0.75, alpha_2_init=0.75,
    )  # fmt: skip
    model = FPRMModel(config).eval().requires_grad_(False)
    for parameter in model.block.parameters():
        if parameter.ndim == 2:
            parameter.mul_(1.5)
    model = model.to(dtype)
    x = model.injection(torch.randint(config.vocab_size, (batch, tokens)))
    z = model.initial_state(x)
    loop = fp.Loop(model.block, x, z0=z, check=False)
    with torch.no_grad():
        for _ in range(30):
            z = loop(z)
    return loop, z


def shipped(name: str, inputs: int) -> tuple[fp.Loop, Tensor]:
    target = find_target(name, Data(inputs=inputs)).to(torch.float64)
    loop = fp.Loop(target.block, target.x, z0=target.z0, check=False)
    z = target.z0
    with torch.no_grad():
        for _ in range(60):
            z = loop(z)
    return loop, z


def matrices(n: int) -> dict[str, Tensor]:
    """Families with known trouble, ``(B, n, n)`` each, eight members where they are random."""
    generator = torch.Generator().manual_seed(1)
    many = torch.randn(8, n, n, generator=generator, dtype=torch.float64) / n**0.5
    Q = torch.linalg.qr(many)[0]
    ones = torch.ones(n, n, dtype=torch.float64)
    turns = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n // 2):
        a = 2 * math.pi * (i + 0.5) / n
        size = 1.2 * 0.97**i
        turns[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = size * torch.tensor(
            [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64
        )
    off = torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    blocks = [0.9 * torch.eye(4, dtype=torch.float64) + off[:4, :4]]
    rest = torch.diag(torch.linspace(-0.5, 0.5, n - 4, dtype=torch.float64))
    a = math.radians(80)
    turn = 1.2 * torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)
    return {
        "1.2 x rotation by 80 degrees": turn.unsqueeze(0),
        "rotations": Q @ turns @ Q.mT,
        "random": many,
        "symmetric": (many + many.mT) / 2,
        "Toeplitz, tridiagonal": (0.2 * torch.eye(n, dtype=torch.float64) + 0.8 * off + 0.1 * off.mT).unsqueeze(0),
        "Grcar": (ones.triu().tril(3) - off.mT).unsqueeze(0),
        "Jordan block of size 4": Q @ torch.block_diag(*blocks, rest) @ Q.mT,
        "orthogonal": Q,
    }


def torchdeq_radius(A: Tensor) -> Tensor:
    """What torchdeq's power method calls the spectral radius, for a batch of matrices."""
    z = torch.zeros(A.shape[:2], dtype=A.dtype, requires_grad=True)
    f = (A @ z.unsqueeze(-1)).squeeze(-1)
    return torchdeq.loss.power_method(f, z, n_iters=200)[1].detach().flatten()


def accuracy(console: Console, options: argparse.Namespace) -> bool:
    table = Table(title=f"1. spectral radius; asked for: {RTOL:g} relative")
    for name in ("operators", "n", "samples", "converged", "worst error", "worst error / its estimate", "wrong and "
                 "converged", "torchdeq power method, worst error"):  # fmt: skip
        table.add_column(name, justify="left" if name == "operators" else "right")
    cases: dict[str, AbstractOperator] = {name: MatrixOperator(A) for name, A in matrices(100).items()}
    for name in ("s3", "s3-unscaled"):
        cases[f"Jacobians of {name}"] = JacobianOperator(*shipped(name, 4))
    wrong_ever = False
    for name, op in cases.items():
        A = op.dense()
        exact = torch.linalg.eigvals(A).abs().amax(1)
        found = eigenvalues(op, 4, method=KrylovSchur())
        rho, error = found.values[:, 0].abs(), found.error[:, 0]
        gap = (rho - exact).abs()
        # LAPACK's own error on an ill-conditioned eigenvalue is no smaller than what the estimate allows for.
        wrong = found.converged & (gap > torch.maximum(RTOL * exact, error))
        wrong_ever |= bool(wrong.any())
        theirs = ((torchdeq_radius(A) - exact).abs() / exact).max()
        table.add_row(
            name, str(op.n), str(op.batch_size), str(int(found.converged.sum())), f"{float((gap / exact).max()):.1e}",
            f"{float((gap / error.clamp(min=1e-300)).max()):.2g}", str(int(wrong.sum())), f"{float(theirs):.1e}",
        )  # fmt: skip
    console.print(table)
    return wrong_ever


def overhead(console: Console, options: argparse.Namespace) -> bool:
    table = Table(title="2. whole runs over their own products, one loop (medians)")
    for name in ("block", "n", "figure", "products", "ms in products", "ms in all", "ratio"):
        table.add_column(name, justify="left" if name in ("block", "figure") else "right")
    for tokens, width in ((64, 64), (32, 128), (16, 256), (81, 64)):
        op = JacobianOperator(*block_loop(tokens, width, 1))
        for name, run in {
            "eigenvalues": lambda o: eigenvalues(o, 4, method=KrylovSchur(), condition=False),
            "eigenvalues, both sides": lambda o: eigenvalues(o, 4, method=KrylovSchur()),
            "norm": lambda o: spectral_norm(o),
            "log-norm": lambda o: log_norm(o),
        }.items():
            ratios, inside, total = [], [], []
            for _ in range(options.repeats):
                timed = Timed(op)
                begin = time.perf_counter()
                run(timed)
                total.append(time.perf_counter() - begin)
                inside.append(timed.clock[0] + timed.clock[1])
                ratios.append(total[-1] / inside[-1])
            table.add_row(
                f"{tokens} x {width}", str(op.n), name, str(timed.clock[2] + timed.clock[3]),
                f"{1e3 * statistics.median(inside):.1f}", f"{1e3 * statistics.median(total):.1f}",
                f"{statistics.median(ratios):.3f}",
            )  # fmt: skip
    console.print(table)
    return False


def batches(console: Console, options: argparse.Namespace) -> bool:
    table = Table(title="3. 32 loops at once against 32 calls of ARPACK (same operators, k, basis; medians)")
    for name in ("block", "n", "side", "products each", "worst error", "ms", "ARPACK / fpcheck", "products / ARPACK's"):
        table.add_column(name, justify="left" if name in ("block", "side") else "right")
    wrong_ever = False
    for tokens, width, heads in ((8, 16, 2), (12, 32, 2), (12, 64, 4)):
        loop, z = block_loop(tokens, width, 32, heads=heads)
        op = JacobianOperator(loop, z)
        singles = [JacobianOperator(loop.sample(i), z[i : i + 1], check=False) for i in range(32)]
        exact = torch.linalg.eigvals(op.dense()).abs().amax(1)

        def ours(op: AbstractOperator = op) -> tuple[Tensor, Tensor]:
            found = eigenvalues(op, 4, method=KrylovSchur(tol=1e-8), condition=False)
            return found.values[:, 0].abs(), found.products.double().mean()

        def theirs(singles: list[JacobianOperator] = singles) -> tuple[Tensor, Tensor]:
            rho, count = [], 0
            for one in singles:
                timed = Timed(one)
                start = np.random.default_rng(0).standard_normal(one.n)
                lam = scipy.sparse.linalg.eigs(timed.to_scipy(), k=4, tol=1e-8, v0=start, return_eigenvectors=False)
                rho.append(float(np.abs(lam).max()))
                count += timed.clock[2]
            return torch.tensor(rho, dtype=torch.float64), torch.tensor(count / 32)

        times: list[list[float]] = [[], []]
        for _ in range(max(1, options.repeats // 2)):
            for clock, run in zip(times, (ours, theirs), strict=True):
                begin = time.perf_counter()
                out = run()
                clock.append(time.perf_counter() - begin)
        (mine, my_products), (arpack, their_products) = ours(), theirs()
        ms = [1e3 * statistics.median(clock) for clock in times]
        for side, rho, products, i in (
            ("fpcheck", mine, my_products, 0), ("32 x ARPACK", arpack, their_products, 1)
        ):  # fmt: skip
            error = float(((rho - exact).abs() / exact).max())
            table.add_row(
                f"{tokens} x {width}" if i == 0 else "", str(op.n) if i == 0 else "", side, f"{float(products):.1f}",
                f"{error:.1e}", f"{ms[i]:.0f}", f"{ms[1] / ms[0]:.1f}" if i == 0 else "",
                f"{float(my_products / their_products):.2f}" if i == 0 else "", end_section=i == 1,
            )  # fmt: skip
        del out
    console.print(table)
    return wrong_ever


def size(console: Console, options: argparse.Namespace) -> bool:
    table = Table(title="4. n = 41,472 (81 tokens x 512 channels, 8 heads, 2 layers), by products alone")
    for name in (
        "figure",
        "value",
        "error, or residual of rho",
        "converged",
        "products",
        "s",
        "peak memory of the process, GiB",
    ):
        table.add_column(name, justify="left" if name == "figure" else "right")
    gc.collect()
    loop, z = block_loop(81, 512, 1, heads=8)
    op = JacobianOperator(loop, z)
    for name, run in {
        # From one side, and cut off: this spectrum is crowded at its edge, and 300 restarts take over 170 s.
        "rho(J), one side": lambda o: eigenvalues(o, 2, method=KrylovSchur(tol=1e-8, max_restarts=25), condition=False),
        "|J|_2": lambda o: spectral_norm(o),
        "mu_2(J)": lambda o: log_norm(o),
    }.items():
        timed = Timed(op)
        begin = time.perf_counter()
        found = run(timed)
        took = time.perf_counter() - begin
        eigen = name.startswith("rho")
        value = float(found.values[0, 0].abs()) if eigen else float(found.value.value[0])
        # Without a condition number there is no error, only a residual.
        error = float(found.residual[0, 0]) if eigen else float(found.value.error[0])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        settled = error <= 1e-8 * value if eigen else bool(found.converged[0])
        table.add_row(name, f"{value:.9f}", f"{error:.1e}", str(settled),
                      str(timed.clock[2] + timed.clock[3]), f"{took:.1f}", f"{peak:.2f}")  # fmt: skip
    console.print(table)
    return False


SECTIONS = {"accuracy": accuracy, "overhead": overhead, "batches": batches, "size": size}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=SECTIONS, help="one table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=140)
    console.print(
        f"{cpu()}, {torch.get_num_threads()} thread(s); Python {platform.python_version()}, "
        f"torch {torch.__version__}, SciPy {scipy.__version__}, torchdeq {version('torchdeq')}, "
        f"fpcheck {version('fpcheck')}; float64"
    )
    wrong = [run(console, options) for name, run in SECTIONS.items() if options.only in (None, name)]
    return int(any(wrong))


if __name__ == "__main__":
    sys.exit(main())
