"""Norms and small linear algebra for claims, in either number context (``mpmath.fp`` or ``mpmath.mp``)."""

import itertools
from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np


def matrix(ctx: Any, values: Sequence[Any], rows: int, cols: int) -> Any:
    """A matrix from a flat list, row by row."""
    return ctx.matrix([[values[i * cols + j] for j in range(cols)] for i in range(rows)])


def norm(ctx: Any, vector: Sequence[Any]) -> Any:
    """Euclidean norm of a list of numbers."""
    return ctx.sqrt(sum((v * v for v in vector), ctx.mpf(0)))


def dot(ctx: Any, a: Sequence[Any], b: Sequence[Any]) -> Any:
    """Inner product of two lists."""
    return sum((x * y for x, y in zip(a, b, strict=True)), ctx.mpf(0))


def spectral_norm(ctx: Any, a: Any) -> Any:
    """Largest singular value of a matrix."""
    if a.rows == a.cols == 2:  # half the sum of the lengths of its two complex parts: z -> p z + q conj(z)
        plain, mirrored = (a[0, 0] + a[1, 1], a[1, 0] - a[0, 1]), (a[0, 0] - a[1, 1], a[1, 0] + a[0, 1])
        return (norm(ctx, plain) + norm(ctx, mirrored)) / 2
    if ctx is mpmath.fp:
        return float(np.linalg.norm(np.array(a.tolist(), dtype=float), 2))
    return max(ctx.svd_r(a, compute_uv=False)) if a.rows and a.cols else ctx.mpf(0)


def frobenius_norm(ctx: Any, a: Any) -> Any:
    """Root of the sum of squares."""
    return norm(ctx, list(a))


def eigenvalues(ctx: Any, a: Any) -> list[Any]:
    """Eigenvalues of a square matrix, complex."""
    if ctx is mpmath.fp:
        return [complex(v) for v in np.linalg.eigvals(np.array(a.tolist(), dtype=float))]
    return list(ctx.eig(a, left=False, right=False))


def spectral_radius(ctx: Any, a: Any) -> Any:
    """Largest modulus of an eigenvalue."""
    return max(abs(v) for v in eigenvalues(ctx, a))


def symmetric_eigenvalues(ctx: Any, a: Any) -> list[Any]:
    """Eigenvalues of a symmetric matrix, ascending."""
    if ctx is mpmath.fp:
        return [float(v) for v in np.linalg.eigvalsh(np.array(a.tolist(), dtype=float))]
    return sorted(ctx.eigsy(a, eigvals_only=True))


def softmax(ctx: Any, scores: Sequence[Any]) -> list[Any]:
    """Softmax of a list of scores."""
    top = max(scores)
    weights = [ctx.exp(s - top) for s in scores]
    total = sum(weights, ctx.mpf(0))
    return [w / total for w in weights]


def sigmoid(ctx: Any, x: Any) -> Any:
    """1 / (1 + exp(-x)), without overflow."""
    if x >= 0:
        return 1 / (1 + ctx.exp(-x))
    small = ctx.exp(x)
    return small / (1 + small)


def stein(ctx: Any, a: Any, w: Any) -> Any:
    """The matrix X with X - a X a' = w, from the linear system for its entries."""
    n = a.rows
    system = ctx.eye(n * n)
    for i, j, k, m in itertools.product(range(n), repeat=4):
        system[i * n + j, k * n + m] -= a[i, k] * a[j, m]
    return matrix(ctx, list(ctx.lu_solve(system, ctx.matrix(list(w)))), n, n)


def series_product(ctx: Any, a: Sequence[Any], b: Sequence[Any]) -> list[Any]:
    """Taylor coefficients of a product, up to the order of both."""
    return [sum((a[i] * b[k - i] for i in range(k + 1)), ctx.mpf(0)) for k in range(len(a))]


def series_integral(ctx: Any, start: Any, slope: Sequence[Any], inner: Sequence[Any]) -> list[Any]:
    """Taylor coefficients of h(inner), from its value and those of h'(inner), known up to one order less."""
    terms = (sum((slope[k - i] * i * inner[i] for i in range(1, k + 1)), ctx.mpf(0)) / k for k in range(1, len(inner)))
    return [start, *terms]


def series_exp(ctx: Any, inner: Sequence[Any]) -> list[Any]:
    """Taylor coefficients of exp of a series."""
    result = [ctx.exp(inner[0])]
    for k in range(1, len(inner)):
        result = series_integral(ctx, result[0], result, inner[: k + 1])
    return result


def series_tanh(ctx: Any, inner: Sequence[Any]) -> list[Any]:
    """Taylor coefficients of tanh of a series: its slope is 1 - tanh^2, written as 1/cosh^2 at order 0."""
    result = [ctx.tanh(inner[0])]
    flat = ctx.exp(-2 * abs(inner[0]))
    first = 4 * flat / (1 + flat) ** 2
    for k in range(1, len(inner)):
        square = series_product(ctx, result, result)
        slope = [first, *(-c for c in square[1:])]
        result = series_integral(ctx, result[0], slope, inner[: k + 1])
    return result


def scaled(ctx: Any, a: Any, size: Any) -> Any:
    """The multiple of a matrix that has spectral norm ``size``; None for a matrix that is nearly 0."""
    length = spectral_norm(ctx, a)
    return None if length < ctx.mpf(10) ** -3 else a * (size / length)
