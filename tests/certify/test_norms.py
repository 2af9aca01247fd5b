"""Proved norms are never below the true ones, near them, and refuse what is not so."""

import math
from fractions import Fraction

import flint
import pytest
import torch
from flint import arb, arb_mat

from fpcheck.certify.balls import Ball
from fpcheck.certify.norms import frobenius_bound, gram_bound, inverse_residual_bound, norm_bound, row_norm_bounds


def below(M: torch.Tensor, bound: float) -> bool:
    """Whether |M|_2 <= bound, decided by Arb: bound^2 I - M'M has a Cholesky factor at 300 bits, or not."""
    with flint.ctx.workprec(300):
        a = arb_mat([[arb(v) for v in row] for row in M.tolist()])
        gram = a.transpose() * a
        level = arb(bound) ** 2
        n = gram.nrows()
        shifted = arb_mat(n, n, [level * (i == j) - gram[i, j] for i in range(n) for j in range(n)])
        return _positive_definite(shifted)


def _positive_definite(matrix: arb_mat) -> bool:
    n = matrix.nrows()
    rows = [[matrix[i, j] for j in range(n)] for i in range(n)]
    for k in range(n):
        if not rows[k][k] > 0:
            return False
        for i in range(k + 1, n):
            factor = rows[i][k] / rows[k][k]
            for j in range(k, n):
                rows[i][j] -= factor * rows[k][j]
    return True


def matrices():
    """Matrices of every kind of trouble: wide, tall, graded, rank one, orthogonal, tiny, huge."""
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    graded = random * 10.0 ** torch.linspace(0, -12, 12, dtype=torch.float64)
    u = torch.randn(12, 1, dtype=torch.float64, generator=generator)
    q = torch.linalg.qr(random)[0]
    return {
        "random": random,
        "wide": random[:5],
        "tall": random[:, :5],
        "graded": graded,
        "rank one": u @ u.mT,
        "orthogonal": q,
        "tiny": random * 1e-140,
        "huge": random * 1e140,
        "repeated": torch.cat([random[:6], random[:6]]),
        "one row": random[:1],
    }


@pytest.mark.parametrize("name", matrices())
def test_a_bound_is_above_the_norm_and_near_it(name):
    M = matrices()[name]
    bound = norm_bound(Ball.exact(M))
    assert below(M, bound)
    true = float(torch.linalg.matrix_norm(M, 2))
    # One step of 1e-12, the residual of the factorisation of some n^2 u, and rounding of the estimate itself.
    assert bound <= true * (1 + 1e-10)
    assert not below(M, true * (1 - 1e-9)), "the partner: a bound below the norm must be refused"


def test_radii_count():
    # Every matrix of the ball is below: its worst adds the radii's Frobenius norm, attained for a rank-one midpoint.
    u = torch.full((4, 4), 0.25, dtype=torch.float64)
    ball = Ball(u, torch.full((4, 4), 0.01, dtype=torch.float64))
    assert norm_bound(ball) >= 1.04  # |u| = 1, and 0.01 everywhere has norm 0.04
    assert norm_bound(ball) < 1.0400001


def test_a_norm_that_is_not_finite_is_not_proved():
    ball = Ball(torch.eye(3, dtype=torch.float64), torch.full((3, 3), math.inf, dtype=torch.float64))
    assert norm_bound(ball) == math.inf
    assert gram_bound(ball) == math.inf


def test_the_largest_eigenvalue_of_a_gram_matrix():
    M = matrices()["random"]
    gram = Ball.exact(M).mT @ Ball.exact(M)
    bound = gram_bound(gram)
    true = float(torch.linalg.matrix_norm(M, 2)) ** 2
    assert true * (1 - 1e-14) <= bound <= true * (1 + 1e-9)


def test_frobenius_and_row_norms_are_above_the_exact_ones():
    M = torch.tensor([[0.1, 0.2], [0.3, 0.7]], dtype=torch.float64)
    exact = [sum(Fraction(v) ** 2 for v in row) for row in M.tolist()]
    for bound, square in zip(row_norm_bounds(Ball.exact(M)).tolist(), exact, strict=True):
        assert square <= Fraction(bound) ** 2 <= square * (1 + Fraction(1, 10**13))
    assert sum(exact) <= Fraction(frobenius_bound(Ball.exact(M))) ** 2 <= sum(exact) * (1 + Fraction(1, 10**13))


def test_an_inverse_is_verified_and_a_wrong_one_is_not():
    L = matrices()["random"]
    X = torch.linalg.inv(L)
    assert inverse_residual_bound(Ball.exact(L), Ball.exact(X)) < 1e-11
    assert inverse_residual_bound(Ball.exact(L), Ball.exact(X.mT)) > 1
