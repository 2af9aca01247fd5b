"""Transient growth: closed forms, exact rational powers, and what must not be claimed."""

import math
from fractions import Fraction

import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import small_fprm

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral.growth import transient_growth
from fpcheck.spectral.operand import DenseMatrices
from fpcheck.spectral.operator import JacobianOperator, MatrixOperator, ScipyOperator

EPS = torch.finfo(torch.float64).eps


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float64)


def exact_norms(A, powers):
    """|A^k|_2 of the 2 x 2 matrix of floats A, from exact rational powers; right to a few roundings."""
    P = [[Fraction(1), Fraction(0)], [Fraction(0), Fraction(1)]]
    M = [[Fraction(x) for x in row] for row in A.tolist()]
    norms = []
    for _ in range(powers + 1):
        F = sum(x * x for row in P for x in row)
        det = P[0][0] * P[1][1] - P[0][1] * P[1][0]
        # s1^2 + s2^2 = F and s1 s2 = |det|; F^2 - 4 det^2 is exact before the square root.
        norms.append(math.sqrt((float(F) + math.sqrt(float(F * F - 4 * det * det))) / 2))
        P = [[sum(P[i][k] * M[k][j] for k in range(2)) for j in range(2)] for i in range(2)]
    return tensor(norms)


@pytest.mark.parametrize(("a", "b", "d"), [(0.9, 5.0, 0.5), (0.5, -3.0, -0.4), (0.99, 0.3, 0.1), (0.5, 4.0, 0.5)])
def test_two_by_two_against_exact_powers(a, b, d):
    A = tensor([[a, b], [0.0, d]])
    growth = transient_growth(A, max_power=400)
    curve, error = growth.curve[0], growth.curve_error[0]
    exact = exact_norms(A, len(curve) - 1)
    # Zero slack beside the roundings of the oracle itself: three square roots and sums.
    assert ((curve - exact).abs() <= error + 8 * EPS * exact).all()
    assert (error <= 1e-11 * growth.peak.value).all()
    # The closed form J^k = [[a^k, b (a^k - d^k) / (a - d)], [0, d^k]] agrees with the exact powers.
    if a != d:
        k = torch.arange(len(curve), dtype=torch.float64)
        corner = b * (a**k - d**k) / (a - d)
        F, det = a ** (2 * k) + d ** (2 * k) + corner**2, (a * d) ** k
        closed = ((F + (F * F - 4 * det * det).clamp(min=0).sqrt()) / 2).sqrt()
        # Cancellation in F^2 - 4 det^2 where both singular values are close: a square root of rounding at most.
        torch.testing.assert_close(closed, exact, rtol=1e-7, atol=0)
    below = (exact < 1).nonzero().flatten().tolist()
    assert growth.contraction_steps == (below[0],)
    assert growth.peak_step == (int(exact.argmax()),)
    assert abs(float(growth.peak[0]) - float(exact.max())) <= float(growth.peak.error[0]) + 8 * EPS * float(exact.max())


def test_a_nilpotent_chain_grows_until_it_is_gone():
    # J = 2 (shift of 5): |J^k| = 2^k for k < 5, then 0.
    growth = transient_growth(2 * problems.jordan(0.0, 5))
    # Powers of two in exact arithmetic: no rounding at all.
    assert growth.curve[0].tolist() == [1.0, 2.0, 4.0, 8.0, 16.0, 0.0]
    assert (growth.peak_step, growth.contraction_steps, growth.lasting_steps) == ((4,), (5,), (5,))
    assert growth.explain(0) == (
        "a perturbation may grow 16-fold over 4 steps before it decays; contraction in the 2-norm only from k = 5 "
        "steps on"
    )


def test_the_first_contracting_power_need_not_be_the_last_word():
    # J^2 = 0.75 I, so |J^(2j)| = 0.75^j and |J^(2j+1)| = 5 * 0.75^j: below 1 first at k = 2; 5 * 0.75^5 = 1.19 at
    # k = 11 is above, 0.75^6 = 0.18 at k = 12 below, and 0.18 * 5 < 1 settles all later ones.
    A = tensor([[0.0, 5.0], [0.15, 0.0]])
    growth = transient_growth(A)
    assert (growth.contraction_steps, growth.lasting_steps) == ((2,), (12,))
    assert len(growth.curve[0]) == 13
    assert "first at k = 2, for good only from k = 12 steps on" in growth.explain(0)
    short = transient_growth(A, max_power=5)
    assert (short.contraction_steps, short.lasting_steps) == ((2,), (None,))
    # The peak is over all k nevertheless: |J^2| < 1.
    assert float(short.peak[0]) == float(growth.peak[0]) == 5.0
    assert "whether all later powers do is open at k = 5" in short.explain(0)


def test_a_contraction_says_so():
    growth = transient_growth(problems.normal(0.7, -0.4, 0.2 + 0.3j))
    assert growth.peak.value.tolist() == [1.0]
    assert growth.peak.error.tolist() == [0.0]
    assert (growth.peak_step, growth.contraction_steps, growth.lasting_steps) == ((0,), (1,), (1,))
    assert growth.explain(0).startswith("no perturbation grows: every step contracts in the 2-norm, |J|_2 = 0.7 +-")
    # Normal: |J^k| = 0.7^k.
    slack = growth.curve_error[0] + 8 * EPS
    assert ((growth.curve[0] - tensor([1.0, 0.7])).abs() <= slack).all()


@pytest.mark.parametrize("A", [problems.rotation(80), problems.orthogonal(6), torch.eye(3, dtype=torch.float64)])
def test_an_isometry_is_not_said_to_contract(A):
    # Rounding makes some computed norms smaller than 1, such as 1 - 2e-16.
    growth = transient_growth(A, max_power=30)
    assert (growth.peak_step, growth.contraction_steps, growth.lasting_steps) == ((0,), (None,), (None,))
    assert abs(float(growth.peak[0]) - 1) <= float(growth.peak.error[0])
    assert growth.explain(0) == "no perturbation grows; no power of J contracts in the 2-norm up to k = 30"


def test_expansion_is_followed_and_never_contracts():
    growth = transient_growth(1.2 * problems.rotation(80), max_power=20)
    assert abs(float(growth.peak[0]) - 1.2**20) <= float(growth.peak.error[0]) + 40 * EPS * 1.2**20
    assert (growth.peak_step, growth.contraction_steps) == ((20,), (None,))
    assert "still growing there: no power of J contracts in the 2-norm up to k = 20" in growth.explain(0)


@pytest.mark.parametrize("A", [torch.diag(tensor([1e80, 0.5])), 1e99 * torch.eye(2, dtype=torch.float64)])
def test_overflow_ends_the_curve(A):
    growth = transient_growth(A)
    assert torch.isfinite(growth.curve[0]).all()
    assert len(growth.curve[0]) < 5
    assert growth.contraction_steps == (None,)


def test_overflow_of_a_narrow_dtype_ends_the_curve():
    # 1e10, then 1e20: one more product would leave float32.
    loop = Loop(lambda z: 1e10 * z, z0=torch.ones(1, 3))
    growth = transient_growth(JacobianOperator(loop, torch.ones(1, 3)), dense_up_to=1)
    assert len(growth.curve[0]) == 3


@given(st.integers(0, 10**6), st.floats(0.3, 0.95), st.floats(0, 3))
def test_the_early_end_hides_nothing(seed, radius, upper):
    A = problems.randn(5, 5, seed=seed)
    A = A * (radius / torch.linalg.eigvals(A).abs().max()) + upper * problems.randn(5, 5, seed=seed + 1).triu(3)
    if torch.linalg.eigvals(A).abs().max() > 0.97:
        return
    growth = transient_growth(A, max_power=500)
    K = len(growth.curve[0]) - 1
    P, norms = torch.eye(5, dtype=torch.float64), []
    for _ in range(2 * K + 20):
        norms.append(float(torch.linalg.matrix_norm(P, 2)))
        P = P @ A
    norms = tensor(norms)
    curve, error = growth.curve[0], growth.curve_error[0]
    # Multiplied in another order, by squaring: the two disagree by their rounding.
    squared = tensor([float(torch.linalg.matrix_norm(torch.linalg.matrix_power(A, k), 2)) for k in range(K + 1)])
    assert ((curve - squared).abs() <= error).all()
    # 1e-12: the oracle's own rounding, of powers up to 500 with norms near the peak.
    slack = 1e-12 * (1 + float(growth.peak[0]))
    assert float(norms.max()) <= float(growth.peak.value + growth.peak.error) + slack
    first, last = growth.contraction_steps[0], growth.lasting_steps[0]
    assert (norms[:first] >= 1 - slack).all()
    assert norms[first] < 1
    assert (norms[last:] < 1).all()
    assert norms[last - 1] >= 1 - slack


def test_the_error_is_that_of_the_matrix_and_sharp():
    # J = a I known to r: J + r I has powers (a + r)^k = a^k + k r a^(k-1) + O(r^2), the largest change there is.
    a, r = 1.1, 1e-7
    A = a * torch.eye(3, dtype=torch.float64).unsqueeze(0)
    growth = transient_growth(DenseMatrices.of(A, tensor([r])), max_power=10)
    k = torch.arange(len(growth.curve[0]), dtype=torch.float64)
    assert len(k) == 11
    # Relative slack: second order, k r / a < 1e-6, and the rounding of float64 beside r, 1e-14 / 1e-7.
    torch.testing.assert_close(growth.curve_error[0][1:], (k * r * a ** (k - 1))[1:], rtol=2e-6, atol=0)
    # With an error of 0.2 no power can be said to contract: (0.9 + 0.2)^k > 1.
    A = 0.9 * torch.eye(3, dtype=torch.float64).unsqueeze(0)
    assert transient_growth(DenseMatrices.of(A, tensor([0.2])), max_power=5).contraction_steps == (None,)


def test_a_batch_is_its_samples():
    A = torch.stack([problems.normal(0.5, 0.3j), problems.jordan(0.5, 3), 2 * problems.orthogonal(3)])
    together = transient_growth(A, max_power=40)
    assert len(together) == 3
    for i in range(3):
        alone = transient_growth(A[i], max_power=40)
        torch.testing.assert_close(together.curve[i], alone.curve[0], rtol=1e-13, atol=0)
        assert together.contraction_steps[i] == alone.contraction_steps[0]
        assert together.lasting_steps[i] == alone.lasting_steps[0]
        assert together.peak_step[i] == alone.peak_step[0]
        assert together.explain(i).partition(" +-")[0] == alone.explain(0).partition(" +-")[0]
    assert len({len(curve) for curve in together.curve}) == 3


def test_products_alone_give_the_same_curve():
    loop, z = small_fprm("no scale, peri-norm")
    op = JacobianOperator(loop, z)
    dense, free = transient_growth(op, max_power=8), transient_growth(op, max_power=8, dense_up_to=1)
    for i in range(2):
        slack = dense.curve_error[i] + free.curve_error[i]
        assert ((dense.curve[i] - free.curve[i]).abs() <= slack).all()
        assert (free.curve_error[i] <= 1e-6 * free.curve[i]).all()
    assert dense.contraction_steps == free.contraction_steps
    # Finished samples are left out of the products.
    mixed = ScipyOperator([problems.normal(0.5, 0.3j).numpy(), problems.shear().known["jacobian"].numpy()][:1])
    assert transient_growth(mixed, dense_up_to=1).lasting_steps == (1,)
    two = ScipyOperator([0.5 * torch.eye(2).numpy(), problems.shear().known["jacobian"].numpy()])
    assert transient_growth(two, dense_up_to=1).contraction_steps == (1, 25)


def test_float32_is_as_wrong_as_it_says():
    loop, z = small_fprm("plain", torch.float32)
    wide = JacobianOperator(Loop(loop.block.double(), loop.x.double()), z.double())
    exact = transient_growth(wide, max_power=6)
    loop, z = small_fprm("plain", torch.float32)
    for dense_up_to in (2048, 1):
        narrow = transient_growth(JacobianOperator(loop, z), max_power=6, dense_up_to=dense_up_to)
        for i in range(2):
            m = min(len(narrow.curve[i]), len(exact.curve[i]))
            assert ((narrow.curve[i][:m] - exact.curve[i][:m]).abs() <= narrow.curve_error[i][:m]).all()
            assert (narrow.curve_error[i][1:m] < 1e-3 * exact.peak.value[i]).all()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"max_power": 0}, InputError, "max_power=0; expected an integer >= 1"),
        ({"max_power": True}, InputError, "max_power=True"),
        ({"dense_up_to": 1.5}, InputError, "dense_up_to=1.5"),
        ({"J": torch.ones(2, 3)}, InputError, r"\(1, 2, 3\); expected \(B, n, n\)"),
        ({"J": [[1.0]]}, InputError, "list"),
        ({"J": torch.ones(2, 2, dtype=torch.int64)}, InputError, "int64"),
        ({"J": torch.full((2, 2), torch.nan)}, NonFiniteError, "NaN"),
    ],
)
def test_bad_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        transient_growth(**{"J": torch.eye(2)} | arguments)


def test_too_large_a_matrix_is_refused_before_any_work():
    # 4 matrices for the sample and 2 besides, each 40,000^2 float64, 11.9 GiB; expanded, so that none exists here.
    huge = MatrixOperator.__new__(MatrixOperator)
    huge.A = torch.zeros(1, 1, 1).expand(1, 40_000, 40_000)
    with pytest.raises(
        InputError, match=r"need 71\.5 GiB with their workspace; 8 GiB are allowed; not even one sample"
    ):
        transient_growth(huge)
