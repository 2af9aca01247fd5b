"""Solvers against loops whose fixed points are known, and against loops that have none to find."""

import math

import problems
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from fpcheck.adjoint import fixed_point
from fpcheck.errors import ConvergenceError, InputError, NonFiniteError, ToleranceError
from fpcheck.loop import Loop
from fpcheck.solve import Anderson, Damped, Picard
from fpcheck.solve.base import default_rtol
from fpcheck.status import Status

SOLVERS = [Picard, Damped, Anderson]
DTYPES = [torch.float64, torch.float32]


def norm(v):
    return torch.linalg.vector_norm(v.double().flatten(1), dim=1)


def assert_honest(solution, loop):
    """The figures are those of the returned states, and CONVERGED states pass the test they are said to have passed."""
    z = solution.value
    with torch.no_grad():
        fz = loop(z)
    absolute, scale = norm(fz.double() - z.double()), norm(fz)
    # The batch may have been smaller when the solver saw this state: products round differently by a few units.
    room = 64 * torch.finfo(z.dtype).eps * scale
    for i, status in enumerate(solution.status):
        if math.isinf(float(solution.residual_norm[i])):
            assert status is not Status.CONVERGED
            continue
        assert abs(float(absolute[i] - solution.residual_norm[i])) <= float(room[i])
        if status is Status.CONVERGED:
            # Zero slack on what is reported ...
            reported = float(solution.residual_norm[i])
            assert reported <= solution.atol + solution.rtol * float(scale[i] + room[i])
            # ... and the recomputed residual agrees up to the rounding above.
            assert float(absolute[i]) <= solution.atol + solution.rtol * float(scale[i]) + float(room[i])


# ---- Loops that settle


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["contraction", "tanh", "jordan"])
def test_known_fixed_points_are_found(solver, dtype, name):
    problem = problems.PROBLEMS[name](dtype)
    loop = problem.loop()
    solution = solver().solve(loop, problem.z0)
    assert solution.converged, solution.explain()
    assert_honest(solution, loop)
    star = problem.known["fixed_point"]
    # |z - z*| <= |(I - J)^-1| |F(z) - z| for linear loops; the norms of (I - J)^-1 here are below 20, those of the
    # tanh loop too, whose Jacobian changes little over the residual. The fixed points are known to rounding only.
    rounding = 100 * torch.finfo(dtype).eps * norm(star)
    assert (norm(solution.value - star) <= 20 * solution.residual_norm + rounding).all()


@given(rate=st.floats(0.05, 0.95), seed=st.integers(0, 10**6), solver=st.sampled_from(SOLVERS))
@example(rate=0.95, seed=0, solver=Picard)
def test_the_error_lies_between_the_two_a_posteriori_bounds(rate, seed, solver):
    # Lemma B2: r / (1 + L) <= |z - z*| <= r / (1 - L) for an L-Lipschitz loop, L = rate in the Euclidean norm here.
    Q = problems.orthogonal(6, seed)
    A = rate * Q  # |A|_2 = rate exactly (to rounding)
    x = problems.randn(2, 6, seed=seed + 1)
    star = torch.linalg.solve(torch.eye(6, dtype=torch.float64) - A, x.T).T
    solution = solver(rtol=1e-6).solve(Loop(lambda z, x: z @ A.T + x, x), torch.zeros_like(x))
    assert solution.converged
    error = norm(solution.value - star)
    rounding = 1e-13 * norm(star)  # of the direct solve, condition number up to 20
    assert (error <= solution.residual_norm / (1 - rate) + rounding).all()
    assert (error >= solution.residual_norm / (1 + rate) - rounding).all()


def test_bfloat16_settles_at_its_default_tolerance():
    # peers.md R11's loop: tanh(W z + b), |W|_2 = 0.9; its bfloat16 residuals stall at 5e-3, the default is 3e-2.
    W = 0.9 * problems.orthogonal(64)
    x = problems.randn(3, 64).bfloat16()
    loop = Loop(lambda z, x: torch.tanh(z @ W.T.bfloat16() + x), x)
    for solver in SOLVERS:
        solution = solver().solve(loop, torch.zeros_like(x))
        assert solution.converged, solution.explain()
        assert (solution.residual <= 3e-2).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_at_the_fixed_point_is_recognised_at_once(solver):
    problem = problems.PROBLEMS["tanh"]()
    there = Picard(rtol=1e-15, max_steps=500).solve(problem.loop(), problem.z0).value
    solution = solver().solve(problem.loop(), there)
    assert solution.converged
    assert (solution.steps <= 3).all()


# ---- Loops that do not (test_monitor.py has the families that no solver may call converged)


def test_a_drift_is_called_diverging_although_its_relative_residual_is_tiny():
    problem = problems.PROBLEMS["drift"]()
    solution = Picard(rtol=1e-2, max_steps=500).solve(problem.loop(), problem.z0)
    assert (solution.residual <= 1e-2).all()  # what a relative test alone would have accepted
    assert set(solution.status) == {Status.DIVERGING}


@pytest.mark.parametrize("period", [2, 3, 5, 8, 12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_rotations_are_cycles_with_their_period(period, dtype):
    # A rotation by 2 pi / p returns after p steps and not before.
    R = problems.rotation(360 / period).to(dtype)
    z0 = torch.tensor([[1.0, 0.5]], dtype=dtype)
    solution = Picard().solve(Loop(lambda z: z @ R.T, z0=z0), z0)
    assert solution.status == (Status.CYCLE,)
    assert int(solution.period) == period


@pytest.mark.parametrize(("r", "period"), [(3.2, 2), (3.5, 4)])
def test_the_logistic_map_cycles(r, period):
    # Textbook: period 2 for 3 < r < 1 + sqrt(6) = 3.449, period 4 up to 3.544.
    z0 = torch.full((1, 1), 0.3, dtype=torch.float64)
    solution = Picard().solve(Loop(lambda z: r * z * (1 - z), z0=z0), z0)
    assert solution.status == (Status.CYCLE,)
    assert int(solution.period) == period
    # Damping and acceleration both find the repelling fixed point 1 - 1/r.
    for solver in (Damped(), Anderson()):
        found = solver.solve(Loop(lambda z: r * z * (1 - z), z0=z0), z0)
        assert float(found.value) == pytest.approx(1 - 1 / r, rel=1e-8)


def test_a_slow_flip_is_no_cycle():
    # Eigenvalue -0.999: returns every two steps to within 0.2 % of its residual, and still converges.
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    solution = Picard(rtol=1e-6, max_steps=20_000).solve(Loop(lambda z: -0.999 * z + 1, z0=z0), z0)
    assert solution.converged
    assert float(solution.value) == pytest.approx(1 / 1.999, rel=1e-5)


def test_overflow_ends_as_non_finite_with_a_finite_state():
    problem = problems.PROBLEMS["overflow"](torch.float32)
    solution = Picard().solve(problem.loop(), problem.z0)
    assert set(solution.status) <= {Status.NON_FINITE, Status.DIVERGING}
    assert torch.isfinite(solution.value).all()


# ---- Samples are independent


def four_fates(z, x):
    """Elementwise, so a sample's bits do not depend on its batch: x = 0.5 settles, -1 cycles, 1 drifts, nan breaks."""
    nan = torch.where((x < -5) & (z.abs() > 3), torch.nan, 0.0)
    return torch.where(x < -5, 1.5 * z, x * z) + 1 + nan


FATES = torch.tensor([[0.5], [-1.0], [1.0], [-9.0], [0.9]], dtype=torch.float64)


@pytest.mark.parametrize("solver", [Picard(max_steps=300), Damped(max_steps=300), Anderson(max_steps=300)])
def test_a_batch_of_fates_equals_each_sample_alone(solver):
    z0 = torch.full((5, 1), 0.25, dtype=torch.float64)
    together = solver.solve(Loop(four_fates, FATES, z0=z0), z0)
    for i in range(5):
        alone = solver.solve(Loop(four_fates, FATES[i : i + 1], z0=z0[:1]), z0[:1])
        assert together.status[i] is alone.status[0]
        assert torch.equal(together.value[i], alone.value[0])
        assert int(together.steps[i]) == int(alone.steps[0])
        assert int(together.period[i]) == int(alone.period[0])
        column = together.history[:, i]
        assert torch.equal(column[~column.isnan()], alone.history[:, 0])
    if isinstance(solver, Picard):
        expected = (Status.CONVERGED, Status.CYCLE, Status.DIVERGING, Status.NON_FINITE, Status.CONVERGED)
        assert together.status == expected


def test_finished_samples_are_no_longer_evaluated():
    rates = torch.tensor([[0.01], [0.5], [0.95]], dtype=torch.float64)
    loop = Loop(lambda z, x: x * z + 1, rates)
    seen = []

    def block(z, x):
        seen.append(len(z))
        return x * z + 1

    z0 = torch.zeros_like(rates)
    solution = Picard().solve(Loop(block, rates, check=False), z0)
    assert solution.converged
    # One evaluation per sample and step, and one more for each that is asked, at its end, whether it drifts; without
    # masks it would be three samples in every one of the calls.
    assert int(solution.steps.sum()) <= sum(seen) <= int(solution.steps.sum()) + 3
    assert sum(seen) < 2 * int(solution.steps.max())
    assert_honest(solution, loop)


def test_steps_and_history_describe_each_sample():
    # z -> z/2 from 1: the residual of the state after k steps is 0.5^k / 2, its image 0.5^k / 2: relative 1. So use
    # z -> z/2 + 1 from 0: residual 0.5^k, image 2 - 0.5^k.
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    solution = Picard(rtol=1e-3).solve(Loop(lambda z: z / 2 + 1, z0=z0), z0)
    # 0.5^k / (2 - 0.5^k) <= 1e-3 first at k = 9 (9.8e-4): ten states evaluated, the start included.
    assert int(solution.steps) == 10
    expected = torch.tensor([0.5**k / (2 - 0.5**k) for k in range(10)], dtype=torch.float64)
    assert torch.allclose(solution.history[:, 0], expected, rtol=1e-12)
    assert float(solution.residual) == float(solution.history[-1, 0])
    two = Picard(rtol=1e-3).solve(Loop(lambda z, x: x * z + 1, torch.tensor([[0.5], [0.9]]).double()), z0.expand(2, 1))
    assert two.history.shape == (int(two.steps.max()), 2)
    assert two.history[:, 0].isnan().sum() == two.steps[1] - two.steps[0]


def test_a_budget_of_one_evaluation():
    z0 = torch.zeros(2, 1, dtype=torch.float64)
    solution = Picard(max_steps=1).solve(Loop(lambda z: z / 2 + 1, z0=z0), z0)
    assert solution.status == (Status.BUDGET, Status.BUDGET)
    assert torch.equal(solution.value, z0)
    assert solution.steps.tolist() == [1, 1]


# ---- What peers get wrong (peers.md)


@pytest.mark.parametrize("step", [0.1, 0.01, 0.001])
def test_r7_a_short_step_does_not_pass_for_convergence(step):
    # f(y) = y/2 + 1, y* = 2, rtol = atol = 1e-3: a damped step of 0.001 from 0 moves 0.001 and was called converged.
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    loop = Loop(lambda z: z / 2 + 1, z0=z0)
    solution = Damped(rtol=1e-3, atol=1e-3, step=step, max_steps=30_000).solve(loop, z0)
    assert solution.converged
    # |y - 2| = r / (1 - 1/2) <= 2 (1e-3 + 1e-3 * 2): not 1.999, as after one damped step.
    assert abs(float(solution.value) - 2) <= 2 * (1e-3 + 1e-3 * 2)
    assert_honest(solution, loop)
    early = Damped(rtol=1e-3, atol=1e-3, step=step, max_steps=3).solve(loop, z0)
    assert early.status == (Status.BUDGET,)


def test_r8_diverging_and_nan_maps_raise_by_default():
    z0 = torch.zeros(2, 1, dtype=torch.float64)
    with pytest.raises(ConvergenceError, match=r"DIVERGING: 2 of 2 samples") as caught:
        fixed_point(lambda z: -1.5 * z + 1, z0, solver=Picard())
    solution = caught.value.solution
    assert solution.status == (Status.DIVERGING, Status.DIVERGING)
    assert solution.value.shape == (2, 1)
    assert (solution.residual > 1).all()
    assert solution.history.shape == (int(solution.steps.max()), 2)
    assert solution.explain() in str(caught.value)
    with pytest.raises(NonFiniteError, match="returned NaN or inf"):
        fixed_point(lambda z: torch.log(-1 - z.abs()), z0)
    later = fixed_point(lambda z: torch.where(z > 3, torch.nan, z + 1), z0, solver=Picard(), throw=False)
    assert later.status == (Status.NON_FINITE, Status.NON_FINITE)
    assert torch.isfinite(later.value).all()
    assert torch.isinf(later.residual).all()


def test_r11_a_tolerance_below_the_floor_is_refused_or_reported():
    x = problems.randn(1, 64).bfloat16()
    W = 0.97 * problems.orthogonal(64).bfloat16()
    loop = Loop(lambda z, x: torch.tanh(z @ W.T + x), x)
    with pytest.raises(ToleranceError, match=r"rtol=1.0e-03 is below the rounding unit 7.8e-03.*wider dtype"):
        Picard(rtol=1e-3).solve(loop, torch.zeros_like(x))
    # Short steps raise the floor: 0.02 of a residual of two units is rounded away.
    stalled = Damped(rtol=8e-3, step=0.02, min_step=0.02).solve(loop, torch.zeros_like(x))
    assert stalled.status == (Status.NOISE_FLOOR,)
    assert float(stalled.residual) > 8e-3
    assert int(stalled.steps) < 500  # noticed, not run out of budget


def test_r12_a_misspelt_option_is_refused():
    with pytest.raises(TypeError, match="tottaly_wrong"):
        Picard(tottaly_wrong=3)
    with pytest.raises(InputError, match=r"solver='anderson' is a str; expected a solver object such as fp.Anderson"):
        fixed_point(lambda z: z / 2, torch.ones(1, 1), solver="anderson")


# ---- Each solver's own


def test_anderson_needs_far_fewer_evaluations_on_a_slow_loop():
    # Real spectrum up to 0.99: Picard needs about log(1e-8) / log(0.99) = 1,800 evaluations.
    A = problems.normal(*torch.linspace(0.1, 0.99, 12).tolist())
    x = problems.randn(1, 12)
    loop = Loop(lambda z, x: z @ A.T + x, x)
    plain = Picard(rtol=1e-8, max_steps=5000).solve(loop, torch.zeros_like(x))
    fast = Anderson(rtol=1e-8).solve(loop, torch.zeros_like(x))
    assert plain.converged
    assert fast.converged
    assert int(fast.steps) < int(plain.steps) / 10
    assert_honest(fast, loop)


def test_anderson_solves_an_expanding_loop():
    problem = problems.PROBLEMS["neimark-sacker"]()
    solution = Anderson().solve(problem.loop(), problem.z0)
    assert solution.converged
    assert torch.allclose(solution.value, problem.known["fixed_point"], rtol=1e-8)


def test_anderson_survives_residuals_that_do_not_change():
    # Equal differences make the least-squares matrix singular; a drift has them all equal (to zero).
    c = torch.ones(1, 3, dtype=torch.float64)
    solution = Anderson(max_steps=60).solve(Loop(lambda z, c: z + c, c), torch.zeros_like(c))
    assert torch.isfinite(solution.value).all()
    assert solution.status == (Status.DIVERGING,)


def test_anderson_goes_back_to_its_best_state_when_it_overshoots():
    # A step function in disguise: extrapolating across its kink lands far off. The best state is handed back.
    def kink(z):
        return torch.where(z.abs() < 1, 0.5 * z + 0.9, 4 * z)

    z0 = torch.full((1, 1), 0.99, dtype=torch.float64)
    solution = Anderson(safeguard=1.5, max_steps=12).solve(Loop(kink, z0=z0), z0)
    residuals = solution.history[:, 0]
    assert float(solution.residual) == float(residuals.min())


@pytest.mark.parametrize("name", ["flip", "neimark-sacker", "mixed"])
def test_damping_settles_what_damping_can(name):
    problem = problems.PROBLEMS[name]()
    loop = problem.loop()
    assert not Picard().solve(loop, problem.z0).converged
    solution = Damped(max_steps=5000).solve(loop, problem.z0)
    assert solution.converged, solution.explain()
    assert_honest(solution, loop)


def test_damping_cannot_settle_a_fold():
    problem = problems.PROBLEMS["fold"]()
    solution = Damped(max_steps=2000).solve(problem.loop(), problem.z0)
    assert Status.CONVERGED not in solution.status


def test_a_constant_step_keeps_its_value_in_bfloat16():
    # In bfloat16, 0.997 would be 255/256, and 4096 (1 - 255/256) = 16. Really 4096 (1 - 0.997) = 12.288; states
    # there are 1/16 apart, and the nearest is 12.3125.
    z0 = torch.full((1, 1), 4096.0, dtype=torch.bfloat16)
    seen = []

    def block(z):
        seen.append(float(z))
        return torch.zeros_like(z)

    Damped(step=0.997, decay=1.0, max_steps=2).solve(Loop(block, z0=z0, check=False), z0)
    assert seen[1] == 12.3125


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Picard(rtol=-1.0), "rtol=-1.0; expected None or a number >= 0"),
        (lambda: Picard(rtol=math.nan), "rtol=nan"),
        (lambda: Picard(rtol=0), "no state can pass"),
        (lambda: Picard(atol=math.inf), "atol=inf"),
        (lambda: Picard(max_steps=0), "max_steps=0; expected an integer >= 1"),
        (lambda: Picard(max_steps=2.5), "max_steps=2.5"),
        (lambda: Picard(max_steps=True), "max_steps=True"),
        (lambda: Picard(rtol="1e-3"), "rtol='1e-3'; expected None or a number >= 0"),
        (lambda: Picard(atol=None), "atol=None; expected a finite number >= 0"),
        (lambda: Damped(step=0), r"step=0; expected a number in \(0, 1\]"),
        (lambda: Damped(step=1.5), "step=1.5"),
        (lambda: Damped(decay=1.1), "decay=1.1"),
        (lambda: Damped(decay=math.nan), "decay=nan"),
        (lambda: Damped(patience=0), "patience=0"),
        (lambda: Damped(step=0.1, min_step=0.2), r"min_step=0.2; expected a number in \(0, step=0.1\]"),
        (lambda: Anderson(memory=0), "memory=0"),
        (lambda: Anderson(mixing=0), "mixing=0"),
        (lambda: Anderson(safeguard=1), "safeguard=1; expected a number > 1"),
    ],
)
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(InputError, match=text):
        make()


def test_a_dtype_without_a_tolerance_is_refused():
    with pytest.raises(InputError, match=r"dtype torch.float8_e4m3fn; expected one of torch.float64, torch.float32"):
        default_rtol(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("z0", "error", "text"),
    [
        (torch.zeros(3, 2), InputError, r"z0.shape=\(3, 2\); expected .* with B=2"),
        (torch.zeros(2, 2, dtype=torch.int64), InputError, "floating-point"),
        (torch.full((2, 2), torch.nan), NonFiniteError, "NaN or inf"),
    ],
)
def test_bad_starts_are_refused(z0, error, text):
    loop = Loop(lambda z, x: z / 2 + x, torch.ones(2, 2))
    with pytest.raises(error, match=text):
        Picard().solve(loop, z0)


def test_a_loop_with_its_own_injection_takes_no_other():
    loop = Loop(lambda z, x: 0.5 * z + x, torch.ones(1, 1))
    assert fixed_point(loop, torch.zeros(1, 1)).converged
    with pytest.raises(InputError, match="leave x out"):
        fixed_point(loop, torch.zeros(1, 1), torch.ones(1, 1))


def test_explain_names_samples_and_remedies():
    z0 = torch.full((5, 1), 0.25, dtype=torch.float64)
    text = Picard(max_steps=300).solve(Loop(four_fates, FATES, z0=z0), z0).explain()
    for status in (Status.CONVERGED, Status.CYCLE, Status.DIVERGING, Status.NON_FINITE):
        assert f"{status.name}: " in text
        assert status.text in text
    assert "CONVERGED: 2 of 5 samples (0, 4)" in text
