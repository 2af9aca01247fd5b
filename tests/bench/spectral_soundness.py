"""Is a value flagged as converged ever wrong? ``python tests/bench/spectral_soundness.py [--matrices 2000]``.

Random matrices of many kinds, each through Krylov-Schur and through LAPACK. Wrong means: flagged as converged, and
further from LAPACK's spectral radius than asked for (1e-6 relative) and than its own error says. LAPACK's own error is
allowed for: 100 eps |A| times the condition number of its leading eigenvalue, from its left and right vectors.

Exit code 1 if any is wrong.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from fpcheck.spectral import KrylovSchur, MatrixOperator, eigenvalues

RTOL = 1e-6
BATCH = 8


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def rotated(generator: torch.Generator, A: Tensor) -> Tensor:
    Q = torch.linalg.qr(draw(generator, len(A), A.shape[1], A.shape[1]))[0]
    return Q @ A @ Q.mT


def spectrum_of(generator: torch.Generator, n: int, *, condition: float) -> Tensor:
    """Prescribed random spectrum, seen through a basis of this condition number."""
    D = torch.zeros(BATCH, n, n, dtype=torch.float64)
    for b in range(BATCH):
        i = 0
        while i < n:
            size = uniform(generator, 0, 1) ** 0.3
            if i + 1 < n and uniform(generator, 0, 1) < 0.5:
                a = uniform(generator, 0, math.pi)
                c, s = size * math.cos(a), size * math.sin(a)
                D[b, i : i + 2, i : i + 2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
                i += 2
            else:
                D[b, i, i] = size * (1 if uniform(generator, 0, 1) < 0.5 else -1)
                i += 1
    U, V = (torch.linalg.qr(draw(generator, BATCH, n, n))[0] for _ in range(2))
    S = torch.logspace(0, math.log10(condition), n, dtype=torch.float64)
    X = U * S @ V.mT
    return X @ D @ torch.linalg.inv(X)


def jordan(generator: torch.Generator, n: int) -> Tensor:
    A = torch.diag_embed(0.8 * torch.rand(BATCH, n, generator=generator, dtype=torch.float64) - 0.4)
    k = 2 + int(uniform(generator, 0, 4))
    A[:, :k, :k] = 0.9 * torch.eye(k, dtype=torch.float64) + torch.diag(torch.ones(k - 1, dtype=torch.float64), 1)
    return rotated(generator, A)


def triangular(generator: torch.Generator, n: int) -> Tensor:
    """Block triangular, the dominant block hidden in the last corner and hardly coupled."""
    A = draw(generator, BATCH, n, n).tril() / n**0.5
    A[:, n // 2 :, n // 2 :] *= uniform(generator, 0.5, 3)
    A[:, n // 2 :, : n // 2] *= 10.0 ** uniform(generator, -8, 0)
    return A


def tied(generator: torch.Generator, n: int) -> Tensor:
    """1, -1 and a pair at almost the same modulus, the rest inside."""
    gap = 10.0 ** uniform(generator, -9, -1)
    D = 0.9 * torch.rand(BATCH, n, generator=generator, dtype=torch.float64)
    D[:, 0], D[:, 1] = 1.0, -1.0 + gap
    A = torch.diag_embed(D)
    a = uniform(generator, 0.1, 3)
    turn = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)
    A[:, 2:4, 2:4] = (1 + gap / 2) * turn
    return rotated(generator, A)


def banded(generator: torch.Generator, n: int) -> Tensor:
    A = torch.zeros(BATCH, n, n, dtype=torch.float64)
    for offset in range(-2, 4):
        A += torch.diag(torch.full((n - abs(offset),), uniform(generator, -1, 1), dtype=torch.float64), offset)
    return A


KINDS: dict[str, Callable[[torch.Generator, int], Tensor]] = {
    "Gaussian": lambda g, n: draw(g, BATCH, n, n) / n**0.5,
    "symmetric": lambda g, n: (lambda A: (A + A.mT) / n**0.5)(draw(g, BATCH, n, n)),
    "orthogonal": lambda g, n: torch.linalg.qr(draw(g, BATCH, n, n))[0],
    "low rank": lambda g, n: draw(g, BATCH, n, 3) @ draw(g, BATCH, 3, n) / n,
    "positive entries": lambda g, n: draw(g, BATCH, n, n).abs() / n,
    "sparse": lambda g, n: draw(g, BATCH, n, n) * (draw(g, BATCH, n, n) > 1.6),
    "spectrum, condition 10": lambda g, n: spectrum_of(g, n, condition=10),
    "spectrum, condition 1e5": lambda g, n: spectrum_of(g, n, condition=1e5),
    "Jordan blocks": jordan,
    "block triangular": triangular,
    "tied moduli": tied,
    "banded Toeplitz": banded,
    "shifted by 100": lambda g, n: 100 * torch.eye(n, dtype=torch.float64) + draw(g, BATCH, n, n),
}


def lapack(A: Tensor) -> tuple[Tensor, Tensor]:
    """Spectral radius and LAPACK's own error, per matrix."""
    lam, X = torch.linalg.eig(A)
    Y = torch.linalg.pinv(X)
    first = lam.abs().argmax(1, keepdim=True)
    condition = torch.linalg.vector_norm(Y, dim=2).gather(1, first).squeeze(1)
    size = torch.linalg.matrix_norm(A)
    return lam.abs().amax(1), 100 * torch.finfo(torch.float64).eps * size * condition


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=120)
    generator = torch.Generator().manual_seed(options.seed)
    tally = {kind: [0, 0, 0, 0.0] for kind in KINDS}
    rounds = math.ceil(options.matrices / BATCH / len(KINDS))
    for _ in track(range(rounds), console=Console(stderr=True), disable=not sys.stderr.isatty()):
        for kind, make in KINDS.items():
            n = 65 + int(uniform(generator, 0, 136))
            A = make(generator, n)
            found = eigenvalues(MatrixOperator(A), 4, method=KrylovSchur(fallback_size=0))
            exact, own = lapack(A)
            rho, error = found.values[:, 0].abs(), found.error[:, 0]
            gap = (rho - exact).abs()
            wrong = found.converged & (gap > torch.maximum(RTOL * exact, error) + own)
            entry = tally[kind]
            entry[0] += BATCH
            entry[1] += int(found.converged.sum())
            entry[2] += int(wrong.sum())
            # How much of its own error a converged value used, LAPACK's taken off.
            used = ((gap - own).clamp(min=0) / error)[found.converged]
            entry[3] = max(entry[3], float(used.max()) if len(used) else 0.0)
    table = Table(title=f"{rounds * BATCH * len(KINDS)} random matrices, n = 65 to 200, no fall-back to LAPACK")
    for name in ("kind", "matrices", "converged", "wrong and converged", "largest error / its estimate"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind, (count, converged, wrong, worst) in tally.items():
        table.add_row(kind, str(count), str(converged), str(wrong), f"{worst:.2g}")
    console.print(table)
    return int(any(entry[2] for entry in tally.values()))


if __name__ == "__main__":
    sys.exit(main())
