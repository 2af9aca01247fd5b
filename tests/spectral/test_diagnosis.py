"""Diagnoses of loops whose behaviour is known, mixed in one batch and alone."""

import math

import problems
import pytest
import torch
from problems import rotation

from fpcheck.errors import BlockError, InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.solve import Damped
from fpcheck.spectral import Regime
from fpcheck.spectral.diagnosis import DampedRun, Estimate, Finding, StepCount, _predict, diagnose
from fpcheck.status import Status

F64 = torch.float64
F = Finding

# Maps on pairs; a sample's kind is a whole number in its injection. One number r per sample.
MAPS = {
    "logistic": lambda z, r: torch.stack([r * z[:, 0] * (1 - z[:, 0]), z[:, 1] / 2 + 1], dim=1),
    "delayed": lambda z, r: torch.stack([r * z[:, 0] * (1 - z[:, 1]), z[:, 0]], dim=1),
    "henon": lambda z, r: torch.stack([1 - r * z[:, 0] ** 2 + z[:, 1], 0.3 * z[:, 0]], dim=1),
    "fold": lambda z, r: torch.stack([r * z[:, 0] - 1, z[:, 1] / 2 + 1], dim=1),
    "drift": lambda z, r: z + r[:, None],
    "root drift": lambda z, r: (z.square() + r[:, None]).sqrt(),
    "spiral": lambda z, r: r[:, None] * z @ rotation(80).to(z).T + 1,
    "repelling": lambda z, r: r[:, None] * z @ rotation(20).to(z).T + 1,
    "well": lambda z, r: torch.tanh(r[:, None] * z),
    "cube": lambda z, r: r[:, None] * z**3,
}
KINDS = list(MAPS)


def zoo_step(z, x):
    kind, r = x
    rows = [(kind[:, 0] == k).nonzero().flatten() for k in range(len(KINDS))]
    parts = [MAPS[name](z[i], r[i, 0]) for name, i in zip(KINDS, rows, strict=True)]
    return torch.cat(parts)[torch.cat(rows).argsort()]


def zoo(*samples, start=0.3, dtype=F64):
    """A loop with one map per sample, given by name and r, or name, r and start."""
    kind = torch.tensor([[KINDS.index(name)] for name, *_ in samples])
    r = torch.tensor([[one[1]] for one in samples], dtype=dtype)
    z0 = torch.tensor([one[2] if len(one) > 2 else (start, start) for one in samples], dtype=dtype)
    return Loop(zoo_step, (kind, r), z0=z0, check=False), z0


ALL = [
    ("logistic", 2.8),
    ("logistic", 3.2),
    ("logistic", 3.5),
    ("logistic", 4.0),
    ("delayed", 1.9),
    ("delayed", 2.1),
    ("henon", 1.4),
    ("fold", 1.05, (3.0, 3.0)),
    ("drift", 0.5),
    ("root drift", 2.0),
    ("spiral", 1.2),
    ("repelling", 1.3),
    ("well", 2.5),
    ("well", 2.5, (0.0, 0.0)),
    ("cube", 1.0, (3.0, 3.0)),
    ("logistic", 4.0, (-0.5, 0.3)),
]
EXPECTED = [
    (F.CONTRACTING,),
    (F.CYCLE, F.FLIP, F.CONTRACTING_WHEN_DAMPED),
    (F.CYCLE, F.FLIP, F.CONTRACTING_WHEN_DAMPED),
    (F.CHAOTIC, F.FLIP, F.CONTRACTING_WHEN_DAMPED),
    (F.CONTRACTING,),
    (F.QUASI_PERIODIC, F.NEIMARK_SACKER, F.CONTRACTING_WHEN_DAMPED),
    (F.CHAOTIC, F.FLIP, F.CONTRACTING_WHEN_DAMPED),
    (F.ESCAPING, F.FOLD),
    (F.DRIFT,),
    (F.DRIFT,),
    (F.ESCAPING, F.NEIMARK_SACKER, F.CONTRACTING_WHEN_DAMPED),
    (F.ESCAPING, F.REPELLING),
    (F.CONTRACTING,),
    (F.REPELLING,),  # started on the point itself, two eigenvalues 2.5
    (F.ESCAPING, F.REPELLING),  # z^3: the point 1 has the eigenvalue 3 twice
    (F.ESCAPING, F.FOLD),  # outside [0, 1]; the nearest fixed point is 0, eigenvalue 4
]


@pytest.fixture(scope="module")
def found():
    loop, z0 = zoo(*ALL)
    return diagnose(loop, z0, max_steps=450, orbit_steps=300)


@pytest.mark.parametrize("i", range(len(ALL)), ids=[f"{one[0]} {one[1]}" for one in ALL])
def test_every_kind_is_named_in_a_mixed_batch(found, i):
    assert found[i].findings == EXPECTED[i], found.explain()
    assert len(found[i].lines) == len(found[i].findings)
    assert all(finding.text[1:] in line for finding, line in zip(found[i].findings, found[i].lines, strict=True))


@pytest.mark.parametrize("i", [3, 5, 8, 15])
def test_findings_do_not_depend_on_batch_mates(found, i):
    loop, z0 = zoo(ALL[i])
    alone = diagnose(loop, z0, max_steps=450, orbit_steps=300)[0]
    assert alone.findings == found[i].findings
    assert alone.orbit_period == found[i].orbit_period
    assert alone.regime is found[i].regime
    if alone.radius is not None:
        assert alone.radius.value.item() == pytest.approx(found[i].radius.value.item(), rel=1e-8)


def test_figures_of_cycles_and_flips(found):
    # Multiplier at 1 - 1/r: 2 - r. Damping: critical step 2 / (r - 1), and 1 / (r - 1) cancels the eigenvalue.
    for i, r, period in ((1, 3.2, 2), (2, 3.5, 4), (3, 4.0, 0)):
        one = found[i]
        assert not one.settled
        assert one.regime is Regime.FLIP
        assert one.orbit_period == period
        assert one.point[0].item() == pytest.approx(1 - 1 / r, rel=1e-9)
        assert one.radius.value.item() == pytest.approx(r - 2, rel=1e-8)
        assert one.period.value.item() == 2.0
        # The second coordinate has the eigenvalue 1/2: the best step balances it with 2 - r.
        assert one.damped.step == pytest.approx(2 / ((r - 1) + 0.5), rel=1e-8)
        assert one.damped.critical_step.value.item() == pytest.approx(2 / (r - 1), rel=1e-8)
        assert one.damped.predicted_rate.value.item() == pytest.approx((r - 1.5) / (r - 0.5), rel=1e-8)
    # r = 3.2: two steps have the multiplier 0.16. r = 4: ln 2, see test_lyapunov.
    # The direction of the second coordinate shrinks by 1/2: log(1/2) = -0.69 leads over log(0.16) / 2 = -0.92.
    assert found[1].exponent.value.item() == pytest.approx(math.log(0.5), abs=found[1].exponent.error.item())
    gap = abs(found[3].exponent.value.item() - math.log(2))
    assert gap <= found[3].exponent.error.item() < 0.05


def test_figures_of_rotations(found):
    # Delayed logistic map: l^2 - l + (r - 1) = 0, so |l|^2 = r - 1 and cos(arg) = 1 / (2 |l|).
    one = found[5]
    size = math.sqrt(1.1)
    turn = 2 * math.pi / math.acos(0.5 / size)
    assert one.radius.value.item() == pytest.approx(size, rel=1e-8)
    assert one.period.value.item() == pytest.approx(turn, rel=1e-8)
    # On the curve itself, away from the point, a turn takes longer.
    assert turn < one.turning.value.item() < turn + 1
    assert abs(one.exponent.value.item()) <= 2 * one.exponent.error.item()
    assert "one turn in 5.851" in one.lines[1]
    # 1.2 times a rotation by 80 degrees: 4.5 steps, predicted and measured on the way out.
    spiral = found[10]
    assert spiral.period.value.item() == pytest.approx(4.5, rel=1e-9)
    assert spiral.turning.value.item() == pytest.approx(4.5, abs=1e-3)
    expected = problems.spiral(1.2, 80).known
    assert spiral.damped.step == pytest.approx(expected["best_step"], rel=1e-8)
    assert spiral.damped.predicted_rate.value.item() == pytest.approx(expected["best_rate"], rel=1e-8)


def test_advice_was_tried_out_and_holds(found):
    tried = [one for one in found if one.damped is not None]
    assert len(tried) == 6
    for one in tried:
        run = one.damped
        assert run.confirmed
        assert run.returned
        assert run.measured_rate.value.item() == pytest.approx(run.predicted_rate.value.item(), rel=0.02)
        assert run.count.confirmed
        assert "NOT confirmed" not in one.lines[-1]
    # And by the solver that the line recommends, from the same start, with the steps that the line states.
    loop, z0 = zoo(ALL[5])
    run = found[5].damped
    solution = Damped(step=run.step, decay=1.0).solve(loop, z0)
    assert solution.converged
    assert abs(int(solution.steps) - 1 - run.count.taken) <= 1
    assert torch.allclose(solution.value[0], found[5].point, rtol=1e-8)


def test_drift_says_how_it_moves(found):
    # z + c: steps of |c|, relative residual 1/k. sqrt(z^2 + c): steps like 1/sqrt(k) at a size like sqrt(k): 1/k too.
    for i in (8, 9):
        one = found[i]
        assert one.status is Status.DIVERGING
        assert one.point is None
        assert one.regime is None
        power = float(one.lines[0].split("like k^")[1].split(" ")[0])
        assert power == pytest.approx(-1.0, abs=0.02)
    assert f"moves by {0.5 * math.sqrt(2):.2e} per step" in found[8].lines[0]


def test_a_drift_that_began_far_out_is_one():
    # From 1e6 by steps of 1: the size grows by a part in a thousand, which alone would pass for bounded.
    z0 = torch.full((1, 4), 1e6, dtype=F64)
    one = diagnose(Loop(lambda z: z + 1, z0=z0), z0, max_steps=100, orbit_steps=100)[0]
    assert one.findings == (F.DRIFT,)


def test_the_point_is_the_one_that_the_orbit_comes_to():
    # Odd map: -3 z within 1, slowly (0.98) towards +-5 outside. From 1e-4 the loop is thrown out and drawn to a well; a
    # damped solve from there would find the repelling 0, which is not where the loop goes.
    def step(z):
        outside = torch.sigmoid(10 * (z.square() - 1))
        well = 5 * torch.tanh(3 * z)
        return -3 * z * (1 - outside) + outside * (well + 0.98 * (z - well))

    z0 = torch.full((1, 1), 1e-4, dtype=F64)
    one = diagnose(Loop(step, z0=z0), z0, max_steps=150, orbit_steps=300)[0]
    assert one.status is not Status.CONVERGED
    assert abs(one.point.item()) == pytest.approx(5, rel=1e-6)
    assert one.findings == (F.CONTRACTING,)
    assert abs(Damped(max_steps=150).solve(Loop(step, z0=z0), z0).value.item()) < 1e-5


def test_predicted_damped_steps_know_of_non_normality():
    # I + s (J - I) has a norm of at most 1 - s + s |J|: with J = [[-1.2, 8], [0, 0.3]] the start may hold that much
    # more of the slowest mode.
    problem = problems.linear(torch.tensor([[-1.2, 8.0], [0.0, 0.3]], dtype=F64))
    one = diagnose(problem.loop(), problem.z0, orbit_steps=100)[0]
    run = one.damped
    begin = (problem.loop()(problem.z0) - problem.z0)[0].norm().item()
    norm = 1 - run.step + run.step * torch.linalg.matrix_norm(problem.known["jacobian"], 2).item()
    assert norm / float(run.predicted_rate) > 2**0.5
    expected = _predict(begin, run.count.goal, run.predicted_rate, norm, 2)
    assert run.count.steps.error.item() == pytest.approx(expected.error.item(), rel=1e-6)
    assert run.count.confirmed


def test_settled_samples_have_no_orbit(found):
    for i in (0, 4, 12, 13):
        assert found[i].settled
        assert found[i].exponent is None
        assert found[i].orbit_period is None
        assert found[i].damped is None
    assert found[13].count is None  # settled on a repelling point: no rate to predict with
    assert found[0].count.confirmed
    assert found[0].count.taken == found[0].steps - 1


def test_explain_has_a_line_per_finding(found):
    lines = found.explain().splitlines()
    assert len(lines) == sum(len(one.findings) for one in found)
    assert lines[0].startswith("sample 0: CONTRACTING: spectral radius 0.8 +- ")
    assert len({finding.text for finding in Finding}) == len(Finding)


# --- predicted steps


def test_predicted_steps_by_hand():
    # From 1 to 1e-6 at a rate of 0.1: six steps.
    exact = Estimate(torch.tensor(0.1, dtype=F64), torch.tensor(0.0, dtype=F64))
    count = _predict(1.0, 1e-6, exact, 0.1, 1)
    assert count.value.item() == pytest.approx(6, abs=1)
    # Share: a factor of 10 is one step at this rate. Curvature: log2(1 + 13.8) = 3.9. One step for the rounding up.
    assert count.error.item() == pytest.approx(1 + 1 + math.log2(1 + 6 * math.log(10)))
    # A non-normal start may hold norm / rate = 100 times more: two steps more.
    assert _predict(1.0, 1e-6, exact, 10.0, 1).error.item() == pytest.approx(count.error.item() + 2)
    # 10^4 entries: a random start holds 1/100 of the slowest mode.
    assert _predict(1.0, 1e-6, exact, 0.1, 10**4).error.item() == pytest.approx(count.error.item() + 2)
    # A rate known to 0.1 +- 0.09: between 6 log(0.1) / log(0.19) = 8.3 and 6 log(0.1) / log(0.01) = 3 steps.
    vague = Estimate(torch.tensor(0.1, dtype=F64), torch.tensor(0.09, dtype=F64))
    assert _predict(1.0, 1e-6, vague, 0.1, 1).error.item() == pytest.approx(count.error.item() + 3)
    assert _predict(1e-7, 1e-6, exact, 0.1, 1).value.item() == 0
    # Nothing is known of a rate that may be 1.
    assert _predict(1.0, 1e-6, Estimate(torch.tensor(0.99), torch.tensor(0.02)), 1.0, 1).error.item() == math.inf
    assert _predict(1.0, 1e-6, Estimate(torch.tensor(0.0), torch.tensor(0.0)), 1.0, 1).value.item() == 1


def test_predicted_steps_come_true():
    # Random linear loops and random tanh loops, rates 0.3 to 0.95: how far off is the prediction?
    n, batch = 6, 60
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(batch, n, n, generator=generator, dtype=F64)
    W = W / torch.linalg.eigvals(W).abs().amax(1).view(-1, 1, 1)
    W = W * (0.3 + 0.65 * torch.rand(batch, 1, 1, generator=generator, dtype=F64))
    b = torch.randn(batch, n, generator=generator, dtype=F64)
    curved = (torch.arange(batch) % 2).double().view(-1, 1)

    def step(z, x):
        W, b, curved = x
        y = (W @ z.unsqueeze(-1)).squeeze(-1) + b
        return torch.where(curved > 0, torch.tanh(y), y)

    z0 = torch.randn(batch, n, generator=generator, dtype=F64)
    found = diagnose(Loop(step, (W, b, curved), z0=z0, check=False), z0, max_steps=2000)
    assert all(one.findings == (F.CONTRACTING,) for one in found)
    gaps = [abs(one.count.taken - float(one.count.steps)) / one.count.taken for one in found]
    # Stated accuracy: within the error for 95 % of the loops (57 of 60), and to 10 % for the typical one.
    assert sum(one.count.confirmed for one in found) >= 57
    assert sorted(gaps)[batch // 2] < 0.1
    # The partner: the error says something. Half of the errors are below 0.4 of the count, and a count wrong by a
    # factor of two is not confirmed.
    errors = sorted(float(one.count.steps.error) / float(one.count.steps) for one in found)
    assert errors[batch // 2] < 0.4
    slow = max(found, key=lambda one: one.count.taken).count
    assert not StepCount(slow.steps, slow.rate, slow.goal, 2 * slow.taken).confirmed
    assert not StepCount(slow.steps, slow.rate, slow.goal, None).confirmed
    assert "not reached" in str(StepCount(slow.steps, slow.rate, slow.goal, None))
    assert "outside the error" in str(StepCount(slow.steps, slow.rate, slow.goal, 2 * slow.taken))


def test_a_damped_run_that_disagrees_is_not_confirmed():
    def run(predicted, measured, returned=True):
        figures = [Estimate(torch.tensor(v, dtype=F64), torch.tensor(1e-6, dtype=F64)) for v in (0.9, predicted)]
        rate = Estimate(torch.tensor(measured, dtype=F64), torch.tensor(1e-3, dtype=F64))
        count = StepCount(figures[1], figures[1], 1e-6, 5)
        return DampedRun(0.5, figures[0], figures[1], rate, count, returned, 1e-7)

    assert run(0.5, 0.505).confirmed
    assert not run(0.5, 0.6).confirmed
    assert not run(0.5, 0.4).confirmed
    assert not run(0.5, 0.5, returned=False).confirmed
    assert run(1e-16, 5e-8).confirmed  # below what differences resolve
    assert run(0.0, math.nan).confirmed  # differences vanish at once
    assert not run(0.0, math.nan, returned=False).confirmed


def test_advice_that_fails_says_so():
    # u -> -3 u + 1e4 u^2 around 1: the best step 1/4 cancels the eigenvalue and leaves u -> 2500 u^2, which attracts
    # within 4e-4 only. From the distance of 1e-3 at which advice is tried it runs away.
    def step(z):
        u = z - 1
        return 1 - 3 * u + 1e4 * u**2

    z0 = torch.full((1, 1), 1 + 1e-6, dtype=F64)
    one = diagnose(Loop(step, z0=z0, check=False), z0, orbit_steps=300)[0]
    assert one.findings == (F.ESCAPING, F.FLIP, F.CONTRACTING_WHEN_DAMPED)
    assert one.damped.step == pytest.approx(0.25, rel=1e-6)
    assert not one.damped.returned
    assert not one.damped.confirmed
    assert "NOT confirmed: the damped loop did not come back" in one.lines[2]


# --- noise, zero points, borders


def random_linear(n=60):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(n, n, dtype=F64, generator=generator)
    A = 0.9 * A / torch.linalg.eigvals(A).abs().max()
    return A, torch.randn(1, n, dtype=F64, generator=generator)


def test_noise_floor_of_float32():
    # A tolerance of one rounding unit; a sum of 60 terms rounds to about one unit at each step, which a loop with the
    # rate 0.9 keeps alive.
    A, x = random_linear()
    A, x = A.float(), x.float()
    loop = Loop(lambda z, x: z @ A.T + x, x)
    one = diagnose(loop, torch.zeros_like(x), rtol=1.2e-7)[0]
    assert one.status is Status.NOISE_FLOOR
    assert one.findings == (F.CONTRACTING, F.NOISE_FLOOR)
    assert one.settled
    eps = torch.finfo(torch.float32).eps
    assert 0.3 * eps < one.floor.value.item() < 10 * eps
    assert one.radius.value.item() == pytest.approx(0.9, rel=1e-4)
    # The partner: at the tolerance for the dtype it settles, and there is no talk of noise.
    relaxed = diagnose(loop, torch.zeros_like(x))[0]
    assert relaxed.findings == (F.CONTRACTING,)
    assert relaxed.floor is None


def test_noise_floor_of_a_block_that_computes_in_float32():
    # float64 states, float32 inside: the residual stalls at 1e-7, a thousand times above the tolerance. The movement
    # there is no cycle and no chaos.
    A, x = random_linear()
    narrow = A.float()
    loop = Loop(lambda z, x: torch.tanh(z.float() @ narrow.T + x.float()).double(), x, check=False)
    one = diagnose(loop, torch.zeros_like(x), orbit_steps=200)[0]
    assert one.status is not Status.CONVERGED
    assert one.findings == (F.CONTRACTING, F.NOISE_FLOOR)
    assert 1e-9 < one.floor.value.item() < 1e-6
    assert "narrower dtype" in one.lines[1]


def test_a_small_cycle_is_no_noise():
    # Just past the flip at r = 3 the 2-cycle has an amplitude of about sqrt((r - 3) / 3) / ...: for r = 3 + 1e-6 it is
    # within 1e-3 of the point, as small as a movement of rounding might be; but smooth.
    loop, z0 = zoo(("logistic", 3.0 + 1e-6, (0.6671, 2.0)))
    one = diagnose(loop, z0, orbit_steps=300)[0]
    assert F.NOISE_FLOOR not in one.findings
    assert F.FLIP in one.findings


def test_fixed_points_at_zero():
    # tanh(g z), no injection. No relative tolerance ever passes at zero; the diagnosis is right all the same, and
    # with an absolute tolerance it has its steps too.
    g = torch.tensor([[0.9], [-0.5], [-2.5]], dtype=F64)
    z0 = torch.tensor([[0.3], [0.5], [0.7]], dtype=F64)
    loop = Loop(lambda z, g: torch.tanh(g * z), g, z0=z0)
    bare = diagnose(loop, z0, orbit_steps=300)
    assert [one.findings for one in bare] == [(F.CONTRACTING,), (F.CONTRACTING,), EXPECTED[1]]
    assert "give atol" in bare[0].lines[0]
    assert bare[2].damped.confirmed
    helped = diagnose(loop, z0, orbit_steps=300, atol=1e-8)
    assert [one.findings for one in helped] == [one.findings for one in bare]
    assert helped[0].count.confirmed
    assert helped[1].count.confirmed


def test_the_border_is_decided_by_the_run():
    # Eigenvalues of exactly -1 (every orbit has period 2) and on the circle at 60 degrees (every orbit has period 6):
    # UNDECIDED by the spectrum alone, but the loop was seen not to settle.
    for name, expected in (("cycle", (F.CYCLE, F.FLIP)), ("circle", (F.CYCLE, F.NEIMARK_SACKER))):
        problem = problems.cycle() if name == "cycle" else problems.linear(rotation(60))
        one = diagnose(problem.loop(), problem.z0, orbit_steps=100)[0]
        assert one.findings[:2] == expected
        assert one.damped.confirmed
    # An eigenvalue that misses -1 by less than its error of 4e-15, on the inside: what the run showed counts.
    problem = problems.linear(torch.diag(torch.tensor([-(1 - 1e-15), 0.5], dtype=F64)))
    one = diagnose(problem.loop(), problem.z0, orbit_steps=100)[0]
    assert one.findings == EXPECTED[1]
    assert one.radius.value.item() < 1
    # The partner: a line of fixed points, where the loop does settle, stays undecided.
    z0 = torch.ones(1, 2, dtype=F64)
    line = Loop(lambda z: torch.stack([z[:, 0], z[:, 1] / 2 + 1], dim=1), z0=z0)
    assert diagnose(line, z0)[0].findings == (F.UNDECIDED,)


@pytest.mark.parametrize("name", ["contraction", "spiral in", "jordan", "shear", "tanh", "slow contraction"])
def test_contractions_are_called_nothing_else(name):
    problem = problems.PROBLEMS[name]()
    found = diagnose(problem.loop(), problem.z0, starts=6, rtol=1e-9)
    assert [one.findings for one in found] == [(F.CONTRACTING,)] * 2
    assert not found.starts.multistable.any()


def test_a_slow_contraction_that_ran_out_of_steps_is_still_one():
    # Rate 0.999 and 300 steps: far from settled, moving, and not a drift.
    problem = problems.linear(problems.normal(0.999, 0.3))
    one = diagnose(problem.loop(), problem.z0, max_steps=300, orbit_steps=300)[0]
    assert one.status is not Status.CONVERGED
    assert one.findings == (F.CONTRACTING,)
    assert one.count.taken is None
    # log(1e-10) / log(0.999) = 23014, give or take the start's residual.
    assert 15_000 < one.count.steps.value.item() < 25_000


# --- several attractors


def test_several_starts_reveal_several_points():
    loop, z0 = zoo(("well", 2.5), ("logistic", 2.8), ("well", 2.5, (0.0, 0.0)))
    found = diagnose(loop, z0, starts=20)
    assert found[0].findings == (F.CONTRACTING, F.MULTI_STABLE)
    assert found[1].findings == (F.CONTRACTING,)
    assert found[2].findings == (F.REPELLING, F.MULTI_STABLE)
    assert found.starts.multistable.tolist() == [True, False, True]
    # Wells at +-z* in each of two coordinates: four points.
    assert len(found.starts.points[0]) == 4
    assert "fixed point(s) from" in found[0].lines[1]


def test_a_point_that_attracts_beside_a_cycle_that_does_is_multistable():
    # z -> -z (1 + d) with d = (z^2 - 1)(4 - z^2) / 8 in |z| <= 2.3, so |z| grows between 1 and 2: the point 0 attracts
    # from inside 1, the 2-cycle at +-2 from outside (slope of |z| there: 1 - 2 * 2 * 3 * 2 / 8 = -2... kept to -1/2 by
    # the factor 1/32 instead of 1/8).
    def step(z):
        size = z.abs()
        return -z * (1 + (size.square() - 1) * (4 - size.square()) / 32)

    z0 = torch.tensor([[1.5], [0.9]], dtype=F64)
    found = diagnose(Loop(step, z0=z0), z0, atol=1e-9, orbit_steps=400)
    assert found[0].findings == (F.CYCLE, F.MULTI_STABLE)
    assert found[0].orbit_period == 2
    assert found[1].findings == (F.CONTRACTING,)


# --- shipped models


def shipped(name, inputs=1, dtype=F64):
    from fpcheck.target import Data, find_target

    target = find_target(name, Data(inputs=inputs)).to(dtype)
    return Loop(target.block, target.x, z0=target.z0), target.z0


def test_the_shipped_model_contracts_to_one_point():
    loop, z0 = shipped("s3")
    found = diagnose(loop, z0, starts=4)
    assert found[0].findings == (F.CONTRACTING,)
    assert found[0].count.confirmed
    assert len(found.starts.points[0]) == 1


def test_the_unscaled_model_drifts():
    loop, z0 = shipped("s3-unscaled", dtype=torch.float32)
    one = diagnose(loop, z0, max_steps=150, orbit_steps=100)[0]
    assert one.findings == (F.DRIFT,)
    assert "like 1/k" in one.lines[0]


# --- bad input


def test_a_sample_without_a_derivative_does_not_spoil_the_others():
    # Sample 1 hides its slope: its spectrum is refused, that of sample 0 is not.
    x = torch.tensor([[0.0], [1.0]], dtype=F64)
    loop = Loop(lambda z, x: 0.5 * torch.where(x > 0, z.detach(), z) + 1, x)
    found = diagnose(loop, torch.zeros_like(x))
    assert found[0].findings == (F.CONTRACTING,)
    assert found[1].findings == (F.UNDECIDED,)
    assert "derivative of the block is not that of its values" in found[1].lines[0]
    with pytest.raises(BlockError, match="derivative of the block is not that of its values"):
        diagnose(loop.sample(1), torch.zeros_like(x[1:]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"starts": -1}, "starts=-1; expected an integer >= 0"),
        ({"orbit_steps": 10}, "orbit_steps=10; expected an integer >= 40"),
        ({"max_steps": 0}, "max_steps=0; expected an integer >= 1"),
        ({"rtol": -1.0}, "rtol=-1.0; expected"),
    ],
)
def test_bad_options_are_refused(options, message):
    loop, z0 = zoo(("logistic", 3.2))
    with pytest.raises(InputError, match=message):
        diagnose(loop, z0, **options)


def test_bad_loops_and_states_are_refused_before_any_work():
    loop, z0 = zoo(("logistic", 3.2))
    with pytest.raises(InputError, match=r"loop.step=0.5; expected the undamped loop"):
        diagnose(loop.damped(0.5), z0)
    with pytest.raises(InputError, match=r"float32 or torch\.float64"):
        diagnose(loop, z0.bfloat16())
    with pytest.raises(NonFiniteError, match="z holds NaN or inf"):
        diagnose(loop, z0 * math.nan)
    with torch.inference_mode():
        frozen = torch.ones(1, 2, dtype=F64)
    calls = []

    def block(z):
        calls.append(1)
        return z * frozen / 2 + 1

    with pytest.raises(BlockError, match="cannot be differentiated"):
        diagnose(Loop(block, z0=z0, check=False), z0)
    assert len(calls) <= 2
