"""Random matrices of many kinds, for methods that must never be wrong quietly.

Each entry of ``KINDS`` takes a size and a :class:`torch.Generator` and returns a float64 matrix ``(n, n)``. They are
chosen for what can mislead a Krylov method: ties, arcs of nearly equal moduli beside an outlier, eigenvalues that
hardly any vector has a part in, defective and badly conditioned ones, breakdowns, scales.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

Kind = Callable[[int, Generator], Tensor]


def randn(g: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g, dtype=torch.float64)


def uniform(g: Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=g, dtype=torch.float64))


def integer(g: Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=g))


def orthogonal(n: int, g: Generator) -> Tensor:
    return torch.linalg.qr(randn(g, n, n))[0]


def block(values: Tensor) -> Tensor:
    """A real normal matrix with the given real values, and a pair for each value off the axis."""
    entries = [[[v.real, -v.imag], [v.imag, v.real]] if v.imag else [[v.real]] for v in values.tolist()]
    parts = [torch.tensor(entry, dtype=torch.float64) for entry in entries]
    return torch.block_diag(*parts)


def turned(A: Tensor, g: Generator) -> Tensor:
    Q = orthogonal(len(A), g)
    return Q @ A @ Q.T


def padded(A: Tensor, n: int, g: Generator, radius: float) -> Tensor:
    """A beside a random matrix whose eigenvalues fill a disc of the given radius, turned."""
    m = n - len(A)
    return turned(torch.block_diag(A, radius * randn(g, m, m) / m**0.5 / 1.2), g)


def gaussian(n: int, g: Generator) -> Tensor:
    return randn(g, n, n) / n**0.5


def symmetric(n: int, g: Generator) -> Tensor:
    A = randn(g, n, n)
    return (A + A.T) / (2 * n) ** 0.5


def skew(n: int, g: Generator) -> Tensor:
    A = randn(g, n, n)
    return (A - A.T) / (2 * n) ** 0.5


def orthogonal_times(n: int, g: Generator) -> Tensor:
    return uniform(g, 0.5, 1.5) * orthogonal(n, g)


def permutation(n: int, g: Generator) -> Tensor:
    return uniform(g, 0.5, 1.5) * torch.eye(n, dtype=torch.float64)[torch.randperm(n, generator=g)]


def circulant(n: int, g: Generator) -> Tensor:
    row = randn(g, n) / n**0.5
    return torch.stack([row.roll(i) for i in range(n)])


def similar(n: int, g: Generator) -> Tensor:
    """Eigenvalues uniform in a disc, eigenvectors of a condition up to 1e6."""
    radius = torch.rand(n // 2, generator=g, dtype=torch.float64).sqrt()
    D = block(torch.polar(radius, torch.rand(n // 2, generator=g, dtype=torch.float64) * math.pi * 0.98 + 0.01))
    D = torch.block_diag(D, torch.full((n - len(D),) * 2, 0.3, dtype=torch.float64))
    X = orthogonal(n, g) @ torch.diag(10 ** torch.linspace(0, uniform(g, 0, 6), n, dtype=torch.float64))
    X = X @ orthogonal(n, g)
    return X @ D @ torch.linalg.inv(X)


def triangular(n: int, g: Generator) -> Tensor:
    """Eigenvalues on the diagonal; what lies above it makes them sensitive, from hardly to hopelessly."""
    return (
        torch.diag(torch.rand(n, generator=g, dtype=torch.float64) * 2 - 1)
        + 10 ** uniform(g, -3, 0) * randn(g, n, n).triu(1) / n**0.5
    )


def tridiagonal(n: int, g: Generator) -> Tensor:
    """Toeplitz, eigenvalues a + 2 sqrt(bc) cos(j pi / (n + 1))."""
    b = uniform(g, 0.2, 1.0)
    c = b * 10 ** uniform(g, -0.2, 0.2) * (1 if uniform(g) < 0.5 else -1)
    ones = torch.ones(n - 1, dtype=torch.float64)
    return uniform(g, -1, 1) * torch.eye(n, dtype=torch.float64) + torch.diag(b * ones, 1) + torch.diag(c * ones, -1)


def grcar(n: int, g: Generator) -> Tensor:
    ones = torch.ones(n, n, dtype=torch.float64)
    return ones.triu().tril(integer(g, 1, 3)) - torch.diag(torch.ones(n - 1, dtype=torch.float64), -1)


def low_rank(n: int, g: Generator) -> Tensor:
    r = integer(g, 1, 12)
    return randn(g, n, r) @ randn(g, r, n) / n


def low_rank_plus_noise(n: int, g: Generator) -> Tensor:
    return low_rank(n, g) + 10 ** uniform(g, -12, -1) * gaussian(n, g)


def hidden_block(n: int, g: Generator) -> Tensor:
    """Block triangular; a small block dominates by little, and is coupled strongly, weakly or not at all."""
    m = integer(g, 1, 3)
    A = 0.9 * gaussian(n, g)
    A[:m, m:] = randn(g, m, n - m) * 10 ** uniform(g, -12, 2)
    A[m:, :m] = 0.0
    A[:m, :m] = uniform(g, 0.9, 1.2) * orthogonal(m, g)
    if uniform(g) < 0.5:
        A = A.T
    return A if uniform(g) < 0.5 else turned(A, g)


def near_ties(n: int, g: Generator) -> Tensor:
    """1, -1 and pairs of almost the same modulus."""
    gap = 10 ** uniform(g, -12, -2)
    angles = torch.rand(integer(g, 1, 4), generator=g, dtype=torch.float64) * math.pi
    real = torch.tensor([1.0, -1.0 + gap * uniform(g, -1, 1)], dtype=torch.complex128)
    pairs = torch.polar(1 + gap * randn(g, len(angles)).clamp(-1, 1), angles)
    return padded(block(torch.cat([real, pairs])), n, g, uniform(g, 0.1, 0.95))


def jordan(n: int, g: Generator) -> Tensor:
    """A Jordan block, sometimes leading, sometimes not."""
    c = integer(g, 2, 6)
    J = uniform(g, 0.5, 1.0) * torch.eye(c, dtype=torch.float64)
    J = J + 10 ** uniform(g, -6, 0) * torch.diag(torch.ones(c - 1, dtype=torch.float64), 1)
    return padded(J, n, g, uniform(g, 0.2, 0.9))


def jordan_pairs(n: int, g: Generator) -> Tensor:
    """A defective complex pair."""
    R = block(torch.polar(torch.tensor([0.9]), torch.tensor([uniform(g, 0.1, 3.0)])).to(torch.complex128))
    J = torch.block_diag(R, R)
    J[:2, 2:] = 10 ** uniform(g, -6, 0) * torch.eye(2, dtype=torch.float64)
    return padded(J, n, g, uniform(g, 0.2, 0.8))


def nilpotent(n: int, g: Generator) -> Tensor:
    """Strictly triangular, with few or many diagonals: the only eigenvalue is 0."""
    return (randn(g, n, n) / n**0.5).triu(max(1, n - integer(g, 1, n)))


def sparse(n: int, g: Generator) -> Tensor:
    """About three entries in a row: rows of zeros, short cycles, eigenvalues 0."""
    return randn(g, n, n) * (torch.rand(n, n, generator=g) < 3 / n)


def arc(n: int, g: Generator) -> Tensor:
    """An arc of nearly equal moduli with the largest somewhere inside, and an outlier opposite of almost that size."""
    half = uniform(g, 0.2, 1.5)
    m = (n - 2) // 2
    gap = 10 ** uniform(g, -5, -1)
    modulus = 1 - gap * torch.rand(m, generator=g, dtype=torch.float64)
    pairs = torch.polar(modulus, half * torch.rand(m, generator=g, dtype=torch.float64) + 1e-3)
    real = torch.full((n - 2 * m,), 0.5, dtype=torch.complex128)
    real[0] = -1 + gap * uniform(g)
    return turned(block(torch.cat([real, pairs])), g)


def ring(n: int, g: Generator) -> Tensor:
    """Almost an orthogonal matrix, beside one eigenvalue of almost that size."""
    R = orthogonal(n - 1, g) + 10 ** uniform(g, -6, -1) * gaussian(n - 1, g)
    return turned(torch.block_diag(torch.full((1, 1), uniform(g, 0.98, 1.1), dtype=torch.float64), R), g)


def interval(n: int, g: Generator) -> Tensor:
    """A dense real interval that ends near 1, and an outlier near -1."""
    gap = 10 ** uniform(g, -6, -1)
    inside = (1 - gap) * torch.rand(n - 1, generator=g, dtype=torch.float64) ** uniform(g, 0.2, 2)
    values = torch.cat([inside, torch.tensor([-1 + 2 * gap * uniform(g)], dtype=torch.float64)])
    return turned(torch.diag(values), g)


def graded(n: int, g: Generator) -> Tensor:
    """Rows and columns of very different size."""
    left, right = (10 ** (uniform(g, 0, 4) * (torch.rand(n, generator=g, dtype=torch.float64) - 1)) for _ in range(2))
    return left[:, None] * gaussian(n, g) * right


def stochastic(n: int, g: Generator) -> Tensor:
    """Positive rows that sum to 1."""
    A = torch.rand(n, n, generator=g, dtype=torch.float64) ** integer(g, 1, 8)
    return A / A.sum(1, keepdim=True)


def companion(n: int, g: Generator) -> Tensor:
    A = torch.diag(torch.ones(n - 1, dtype=torch.float64), -1)
    A[:, -1] = randn(g, n) * 10 ** uniform(g, -4, 0)
    return A


def copies(n: int, g: Generator) -> Tensor:
    """Every eigenvalue several times, with as many eigenvectors."""
    c = integer(g, 2, 8)
    A = torch.kron(gaussian(n // c, g), torch.eye(c, dtype=torch.float64))
    return torch.block_diag(A, torch.zeros(n - len(A), n - len(A), dtype=torch.float64))


def multiple_of_identity(n: int, g: Generator) -> Tensor:
    return uniform(g, -1, 1) * torch.eye(n, dtype=torch.float64) + low_rank(n, g) * (uniform(g) < 0.5)


def scaled(n: int, g: Generator) -> Tensor:
    return 10 ** uniform(g, -60, 60) * KINDS["gaussian" if uniform(g) < 0.5 else "near ties"](n, g)


def carry(n: int, g: Generator) -> Tensor:
    """A residual stream: a large multiple of the identity and what the branches add."""
    return uniform(g, 0.5, 1.0) * torch.eye(n, dtype=torch.float64) + uniform(g, 0, 0.5) * gaussian(n, g)


def causal(n: int, g: Generator) -> Tensor:
    """Tokens in similar states: block triangular with almost the same block all along the diagonal."""
    d = integer(g, 4, 12)
    D = 0.9 * gaussian(d, g)
    A = torch.kron(torch.ones(n // d, n // d, dtype=torch.float64).tril(-1), 0.1 * gaussian(d, g))
    close = 10 ** uniform(g, -8, -1)
    for i in range(n // d):
        A[i * d : (i + 1) * d, i * d : (i + 1) * d] = D + close * gaussian(d, g)
    m = n - len(A)
    return torch.block_diag(A, 0.1 * torch.eye(m, dtype=torch.float64))


KINDS: dict[str, Kind] = {
    "gaussian": gaussian,
    "symmetric": symmetric,
    "skew": skew,
    "orthogonal": orthogonal_times,
    "permutation": permutation,
    "circulant": circulant,
    "similar": similar,
    "triangular": triangular,
    "tridiagonal": tridiagonal,
    "grcar": grcar,
    "low rank": low_rank,
    "low rank and noise": low_rank_plus_noise,
    "hidden block": hidden_block,
    "near ties": near_ties,
    "jordan": jordan,
    "jordan pairs": jordan_pairs,
    "nilpotent": nilpotent,
    "sparse": sparse,
    "arc": arc,
    "ring": ring,
    "interval": interval,
    "graded": graded,
    "stochastic": stochastic,
    "companion": companion,
    "copies": copies,
    "identity": multiple_of_identity,
    "scaled": scaled,
    "carry": carry,
    "causal": causal,
}
