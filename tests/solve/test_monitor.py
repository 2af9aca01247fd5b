"""What the solvers say of loops made to mislead them. Zero slack: one false CONVERGED is a failure."""

import math

import numpy as np
import problems
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from fpcheck.loop import Loop
from fpcheck.solve import Anderson, Damped, Picard
from fpcheck.solve.monitor import norms
from fpcheck.status import Status

SOLVERS = [Picard, Damped, Anderson]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def solve(solver, block, z0):
    return solver.solve(Loop(block, z0=z0), z0)


class Counting:
    """A block that counts the samples it was evaluated on."""

    def __init__(self, block):
        self.block, self.samples = block, 0

    def __call__(self, z):
        self.samples += len(z)
        return self.block(z)


# ---- Drift: no fixed point, and a relative residual that falls for ever


@given(
    direction=st.lists(st.floats(-1, 1), min_size=1, max_size=5),
    start=st.lists(st.floats(-1, 1), min_size=5, max_size=5),
    size=st.integers(-24, 24),
    lead=st.floats(0, 15),
    dtype=st.sampled_from(DTYPES),
    solver=st.sampled_from(SOLVERS),
    steps=st.sampled_from([1, 7, 60, 400]),
    rtol=st.sampled_from([None, 1e-1, 1e-2]),
)
# Each was once called CONVERGED: as noise of the start, by a leap to 5e6, by squares that underflow, and by a damped
# step that rounding takes away.
@example([1, -0.5], [1.0] * 5, 0, 6, torch.float32, Picard, 60, None)
@example([1, -0.5], [0.0] * 5, 0, 0, torch.float32, Anderson, 60, None)
@example([1, -0.5], [1.0] * 5, -24, 0, torch.float32, Anderson, 7, None)
@example([1, -0.5], [1.0] * 5, -6, 6, torch.float32, Damped, 400, None)
# Ten units a step pass for rounding noise in size; that they all point one way gives them away.
@example([1.0], [1.0] * 5, 0, 14.65, torch.float64, Picard, 60, None)
def test_a_constant_drift_is_never_converged(direction, start, size, lead, dtype, solver, steps, rtol):
    n, eps = len(direction), torch.finfo(dtype).eps
    c = torch.tensor([direction], dtype=torch.float64)
    assume(float(c.norm()) > 0.1)
    # The start is up to 10^lead times larger than the increments, which must be seen at all: where rounding eats
    # them, z + c is a fixed point of the map that is really computed. Every entry that drifts does so by 8 units.
    z0 = torch.tensor([start[:n]], dtype=torch.float64) * 10**lead
    assume(bool(((c.abs() > 8 * eps * z0.abs()) | (c == 0)).all()))
    c, z0 = (10.0**size * c).to(dtype), (10.0**size * z0).to(dtype)
    solution = solve(solver(rtol=rtol, max_steps=steps), lambda z: z + c, z0)
    assert Status.CONVERGED not in solution.status, solution.explain()


GROWTHS = {
    "square root": lambda c: lambda z: z + c / (1 + z.norm(dim=1, keepdim=True)),
    "cube root": lambda c: lambda z: z + c / (1 + z.norm(dim=1, keepdim=True)) ** 2,
    "fifth root": lambda c: lambda z: z + c / (1 + z.norm(dim=1, keepdim=True)) ** 4,
    "logarithmic": lambda c: lambda z: z + c * torch.exp(-z.norm(dim=1, keepdim=True)),
    "entrywise": lambda c: lambda z: z + c / (1 + z.abs()),
}


@given(
    growth=st.sampled_from(sorted(GROWTHS)),
    direction=st.lists(st.floats(0.1, 1), min_size=1, max_size=4),
    size=st.floats(0.05, 10),
    start=st.floats(0, 3),
    dtype=st.sampled_from(DTYPES),
    solver=st.sampled_from(SOLVERS),
    steps=st.sampled_from([7, 60, 400]),
    rtol=st.sampled_from([None, 1e-1, 3e-2]),
)
# Anderson leaps to 4496, where 1 / (1 + z) is below half a float32 unit, and the residual exactly 0.
@example("entrywise", [1.0], 1.0, 0.0, torch.float32, Anderson, 400, None)
# With a loose tolerance the residual passes within a few steps, before growth can be judged.
@example("square root", [1.0], 1.0, 0.0, torch.float64, Picard, 400, 1e-1)
@example("fifth root", [1.0], 2.0, 0.0, torch.bfloat16, Picard, 60, None)
def test_a_slowing_drift_is_never_converged(growth, direction, size, start, dtype, solver, steps, rtol):
    c = (size * torch.tensor([direction], dtype=torch.float64)).to(dtype)
    z0 = (start * c.double() / c.double().norm()).to(dtype)
    block = GROWTHS[growth](c)
    # As above: at a start where nothing moves, rounding has made a fixed point.
    assume(bool(((block(z0) - z0).double().abs() > 8 * torch.finfo(dtype).eps * z0.double().abs()).all()))
    solution = solve(solver(rtol=rtol, max_steps=steps), block, z0)
    assert Status.CONVERGED not in solution.status, solution.explain()


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_uneven_drift_is_not_converged_where_it_pauses(solver):
    # Increments between 0.1 and 1.9: at a pause going on changes the residual by up to 19 times itself, which a
    # contraction would do as well. But the state has been growing.
    z0 = torch.zeros(1, 2, dtype=torch.float64)
    c = torch.tensor([[0.8, 0.6]], dtype=torch.float64)
    for rtol in (1e-1, 3e-2, 1e-2):
        solution = solve(
            solver(rtol=rtol, max_steps=300),
            lambda z: z + c * (1 + 0.9 * torch.cos(3 * z.norm(dim=1, keepdim=True))),
            z0,
        )
        assert Status.CONVERGED not in solution.status, solution.explain()


def test_the_limit_of_what_can_be_told():
    # Half a float32 unit of 2^24 is 1: adding 0.25 gives 2^24 again. The map that is computed has a fixed point there.
    z0 = torch.full((1, 1), 2.0**24)
    for solver in SOLVERS:
        assert solve(solver(), lambda z: z + 0.25, z0).converged
    # In float64 it has not.
    for solver in SOLVERS:
        assert solve(solver(max_steps=300), lambda z: z + 0.25, z0.double()).status != (Status.CONVERGED,)


@given(
    rate=st.sampled_from([-0.5, 0.5, 0.9, 0.99, 0.999]),
    size=st.sampled_from([1e-20, 1e-6, 1.0, 1e6, 1e20]),
    start=st.sampled_from([0.0, 1e-12, 0.5, -1.0, 1e3]),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@example(0.999, 1.0, 0.0, torch.float32)  # z* = 1000, reached from 0 in one leap
def test_far_fixed_points_and_odd_scales_are_accepted(rate, size, start, dtype):
    # z* = size / (1 - rate), from a start anywhere: no scale is special.
    z0 = torch.full((1, 2), start * size, dtype=dtype)
    solution = solve(Anderson(), lambda z: rate * z + size, z0)
    assert solution.converged, solution.explain()
    # |z - z*| <= r / (1 - rate), z* known to the rounding of rate: eps / (1 - rate) relative, and two more.
    star = size / (1 - rate)
    room = float(solution.residual_norm) / (1 - rate) + 8 * torch.finfo(dtype).eps * abs(star) / (1 - rate)
    assert float((solution.value.double() - star).norm()) <= room


# ---- Expansion and cycles


@given(
    rho=st.floats(1.02, 4),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-24, 1e-8, 1.0, 1e8]),
    dtype=st.sampled_from(DTYPES[:2]),
    steps=st.sampled_from([1, 7, 60, 1000]),
)
@example(1.02, 0, 1e-24, torch.float32, 60)  # squares of such residuals underflow
def test_an_expanding_loop_is_never_converged(rho, seed, size, dtype, steps):
    # Away from its fixed point by as much as that is from 0; every direction expands by rho.
    A = (rho * problems.orthogonal(3, seed)).to(dtype)
    star = size * problems.randn(2, 3, seed=seed + 1).to(dtype)
    x = star - star @ A.T
    solution = Picard(max_steps=steps).solve(Loop(lambda z, x: z @ A.T + x, x), 2 * star)
    assert set(solution.status) <= {Status.DIVERGING, Status.BUDGET, Status.NON_FINITE}, solution.explain()
    if steps == 1000:  # 1.02^1000 = 4e8: time enough to be sure
        assert Status.BUDGET not in solution.status


@given(
    period=st.integers(2, 60),
    turns=st.integers(1, 59),
    centre=st.floats(-3, 3),
    dtype=st.sampled_from(DTYPES[:2]),
)
def test_rotations_have_their_period(period, turns, centre, dtype):
    # By turns / period of a full turn: returns after period steps and not before, if the fraction is in lowest terms.
    assume(turns < period and math.gcd(turns, period) == 1)
    R = problems.rotation(360 * turns / period).to(dtype)
    z0 = torch.tensor([[centre + 1, centre - 0.5]], dtype=dtype)
    solution = solve(Picard(), lambda z: (z - centre) @ R.T + centre, z0)
    assert solution.status == (Status.CYCLE,)
    assert int(solution.period) == period
    # Brent's test needs the orbit, and the power of two before it, once more at most.
    assert int(solution.steps) <= 4 * period + 4


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("modulus", "degrees"), [(0.99, 180), (0.996, 180), (0.99, 72), (0.996, 10)])
def test_a_slow_spiral_is_a_cycle_only_where_rounding_closes_it(dtype, rtol, modulus, degrees):
    # It returns to within a fraction 1 - modulus^p of its amplitude: far from 0, that is few rounding units.
    A = modulus * problems.rotation(degrees).to(dtype)
    star = torch.tensor([[30.0, -20.0]], dtype=dtype)
    loop = Loop(lambda z: (z - star) @ A.T + star, z0=star)
    solution = Picard(rtol=rtol, max_steps=10_000).solve(loop, star + 1)
    assert set(solution.status) <= {Status.CONVERGED, Status.NOISE_FLOOR, Status.CYCLE}, solution.explain()
    if solution.status == (Status.CYCLE,):
        assert torch.equal(loop.iterated(int(solution.period))(solution.value), solution.value)
    # Steps below half a unit of 36 are lost: the amplitude stays where 1 - modulus of it is one unit.
    room = 36 * torch.finfo(dtype).eps / (1 - modulus) + float(solution.residual_norm) / (1 - modulus)
    assert float((solution.value - star).norm()) <= room


def test_a_slow_turn_is_neither_cycle_nor_drift():
    # A thousandth of a turn a step: within the budget the orbit does not close, and it goes nowhere.
    R = problems.rotation(0.36)
    solution = solve(Picard(max_steps=1000), lambda z: z @ R.T, torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert solution.status == (Status.BUDGET,)


def test_a_tangent_fixed_point_is_neither_converged_nor_diverging():
    # z - z^2 creeps to 0 like 1/k: the residual 1/k^2 falls, its relative value 1/k stays above 1e-10.
    solution = solve(Picard(), lambda z: z - z * z, torch.full((1, 1), 0.3, dtype=torch.float64))
    assert solution.status == (Status.BUDGET,)


# ---- Rounding


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_start_at_the_noise_floor_is_recognised(solver):
    # Nothing can halve a residual that is rounding already. The stall is examined after 32 evaluations without a
    # better one, and again if the residuals looked steady: three times here at most, by chance of the rounding.
    W, x = 0.9 * problems.orthogonal(64).float(), problems.randn(2, 64).float()
    loop = Loop(lambda z, x: torch.tanh(z @ W.T + x), x)
    there = Picard(rtol=0.0, atol=1e-20).solve(loop, torch.zeros_like(x))
    assert set(there.status) == {Status.NOISE_FLOOR}
    again = solver(rtol=1e-6).solve(loop, there.value)
    assert again.converged, again.explain()
    assert (again.steps <= 3 * 40).all()


def test_a_step_that_rounding_takes_away_is_no_convergence():
    # In bfloat16, 1 + 0.01 * 0.025 is 1: the drift stands still, its residual of 2.5 % passes 3 %. Neither that nor
    # a return to the same state after two steps, or three, is more than rounding.
    z0 = torch.ones(1, 2, dtype=torch.bfloat16)
    solution = solve(Damped(step=0.01, min_step=0.01, decay=1.0), lambda z: z + 0.025, z0)
    assert solution.status == (Status.NOISE_FLOOR,)
    assert int(solution.steps) < 100


def test_probes_of_a_sample_do_not_depend_on_its_batch():
    # Every state a sample is evaluated at alone, probes for rounding noise included, it is also evaluated at, to
    # the last bit, when it is solved in a batch. All go the same way, so that they are probed together; the last
    # entry tells them apart.
    def block(z, x):
        seen.append(z)
        return torch.cat([torch.cos(1 + 0.3 * torch.sin(5 * z[:, :-1])), x[:, -1:]], dim=1)

    seen = []
    x = torch.zeros(3, 7, dtype=torch.bfloat16)
    x[:, -1] = torch.tensor([1.0, 2.0, 4.0])
    solver = Damped(rtol=8e-3, step=0.02, min_step=0.02)
    together = solver.solve(Loop(block, x, check=False), torch.zeros_like(x))
    known = {tuple(row.tolist()) for z in seen for row in z}
    for i in range(3):
        seen = []
        alone = solver.solve(Loop(block, x[i : i + 1], check=False), torch.zeros_like(x[:1]))
        assert len(seen) > int(alone.steps), "nothing was probed, so nothing was tested"
        assert {tuple(row.tolist()) for z in seen for row in z} <= known
        assert alone.status[0] is together.status[i]
        assert int(alone.steps) == int(together.steps[i])
        assert torch.equal(alone.value[0], together.value[i])


@pytest.mark.parametrize("solver", [Picard(max_steps=500), Damped(max_steps=500), Anderson(max_steps=500)])
def test_probes_are_few(solver):
    # One for every 32 evaluations, one at the end, and one more when the state lies further out than its start.
    for block in (lambda z: 0.99 * z + 1, lambda z: z + 1, lambda z: torch.cos(3 * z)):
        counting = Counting(block)
        z0 = torch.zeros(3, 2)
        solution = solver.solve(Loop(counting, z0=z0, check=False), z0)
        assert counting.samples <= int(solution.steps.sum()) + 3 * (500 // 32 + 2)


def test_norms_keep_their_digits_at_every_scale():
    v = problems.randn(3, 2, 4)
    want = v.flatten(1).norm(dim=1).numpy()
    for dtype, scales in ((torch.float64, (1e-300, 1e-160, 1.0, 1e160, 1e300)), (torch.float32, (1e-36, 1.0, 1e36))):
        for scale in scales:
            scaled = (v * scale).to(dtype)
            other = torch.ones_like(scaled)
            got, ones = norms(scaled, other)
            # Rounding of the entries and of 8 squares: below 8 units.
            assert np.allclose(got / scale, want, rtol=8 * torch.finfo(dtype).eps, atol=0)
            assert np.allclose(ones, math.sqrt(8), rtol=1e-6)
    odd = torch.tensor([[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [3.0, 4.0]])
    zero, nan, infinite, five = norms(odd)[0].tolist()
    assert (zero, five) == (0.0, 5.0)
    assert math.isnan(nan)
    assert not math.isfinite(infinite)


def test_a_sample_that_escapes_is_no_cycle_because_its_batch_mates_are():
    # r z (1 - z): with r = 2.8 a start below 0 runs to minus infinity; with r = 3.2 nearly all starts in (0, 1) end on
    # a cycle of period 2.
    r = torch.cat([torch.tensor([2.8]), torch.full((60,), 3.2)]).double().unsqueeze(1)
    z0 = torch.cat([torch.tensor([-0.1485], dtype=torch.float64), torch.linspace(0.05, 0.95, 60).double()]).unsqueeze(1)
    loop = Loop(lambda z, r: r * z * (1 - z), r, z0=z0)
    together = Picard(max_steps=500).solve(loop, z0)
    alone = Picard(max_steps=500).solve(loop.sample(0), z0[:1])
    assert together.status[0] is alone.status[0]
    assert together.status[0] is not Status.CYCLE
    assert together.status[1] is Status.CYCLE
