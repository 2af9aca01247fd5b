"""Anderson and damped iteration, step by step: against a plain second implementation and against closed forms."""

import functools
import itertools
import math

import numpy as np
import problems
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from fpcheck.loop import Loop
from fpcheck.solve import Anderson, Damped, Picard
from fpcheck.status import Status


class Recording:
    """A block that keeps every batch of states it was evaluated at."""

    def __init__(self, block):
        self.block, self.states = block, []

    def __call__(self, z, x):
        self.states.append(z.clone())
        return self.block(z, x)


def visited(solver, block, z0, x):
    """The states of a solve whose samples all stop together, and the solution."""
    recording = Recording(block)
    solution = solver.solve(Loop(recording, x, z0=z0, check=False), z0)
    return torch.stack(recording.states[: int(solution.steps.max())]), solution


def plain_anderson(block, z, steps, memory, mixing):
    """Type II by its definition, one sample, numpy's least squares on the last differences."""
    states, residuals = [z], [block(z) - z]
    for _ in range(steps - 1):
        dz, df = (np.diff(np.array(rows[-memory - 1 :]), axis=0).T for rows in (states, residuals))
        f = residuals[-1]
        weights = np.linalg.lstsq(df, f, rcond=None)[0] if df.size else np.zeros(0)
        z = states[-1] + mixing * f - (dz + mixing * df) @ weights if df.size else states[-1] + mixing * f
        states.append(z)
        residuals.append(block(z) - z)
    return np.array(states)


# ---- Anderson


@pytest.mark.parametrize(("memory", "mixing"), [(1, 1.0), (2, 0.5), (3, 1.0), (5, 0.7)])
def test_anderson_visits_the_states_of_its_definition(memory, mixing):
    W = 0.95 * problems.orthogonal(6)
    x, z0 = problems.randn(2, 6, seed=1), problems.randn(2, 6, seed=2)
    # Twelve steps: the ring of differences is used more than twice over.
    states, _ = visited(
        Anderson(memory=memory, mixing=mixing, max_steps=12, rtol=1e-15),
        lambda z, x: torch.tanh(z @ W.T + x),
        z0,
        x,
    )
    assert len(states) == 12
    for i in range(2):
        block = functools.partial(lambda z, b: np.tanh(W.numpy() @ z + b), b=x[i].numpy())
        want = plain_anderson(block, z0[i].numpy(), 12, memory, mixing)
        # The ridge is 1e-13, relative to columns whose condition number stays below 1e2 here, squared in the normal
        # equations: 1e-9.
        assert np.allclose(states[:, i].numpy(), want, rtol=0, atol=1e-9)
        # Negative control: one slot more or less gives other states.
        other = plain_anderson(block, z0[i].numpy(), 12, memory + 1, mixing)
        assert not np.allclose(states[:, i].numpy(), other, rtol=0, atol=1e-6)


@given(
    eigenvalues=st.lists(st.floats(-3, 3), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_anderson_ends_on_any_linear_loop_once_its_memory_spans_the_space(eigenvalues, seed):
    # n differences span n dimensions: the next state is the fixed point, whether it attracts (|l| < 1) or repels.
    gaps = [abs(1 - v) for v in eigenvalues]
    assume(min(gaps) > 0.05)
    n = len(eigenvalues)
    A = problems.normal(*eigenvalues, seed=seed)
    x = problems.randn(1, n, seed=seed + 1)
    star = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - A, x.T).T
    solution = Anderson(memory=4, rtol=1e-8).solve(Loop(lambda z, x: z @ A.T + x, x), torch.zeros_like(x))
    assert solution.converged, solution.explain()
    # In exact arithmetic n + 2 evaluations; near-parallel differences (eigenvalues close together) and the test of
    # growth cost some more, never the hundreds of a plain iteration.
    assert int(solution.steps) <= 4 * n + 12
    assert float((solution.value - star).norm()) <= float(solution.residual_norm) / min(gaps) + 1e-10 * float(
        star.norm()
    )


def test_anderson_goes_back_to_its_best_state_when_it_overshoots():
    # f(z) = F(z) - z = -(z^3 - 2 z + 2) / 10: its slope changes sign at 0.816, and the secant through two states
    # near there leaps far out, where |f| is hundreds of times larger.
    def f(z):
        return -(z**3 - 2 * z + 2) / 10

    z0 = torch.full((1, 1), 0.9, dtype=torch.float64)
    options = Anderson(memory=1, safeguard=10.0, max_steps=60)
    states, solution = visited(options, lambda z, x: z + f(z), z0, torch.zeros_like(z0))
    z = states.flatten()
    residuals = f(z).abs()
    leaps = [k for k in range(1, len(z)) if float(residuals[k]) > 10 * float(residuals[:k].min())]
    assert leaps, "the example does not overshoot, so it tests nothing"
    for count, k in enumerate(leaps[:4]):
        best = z[int(residuals[:k].argmin())]
        # Back at the best state, memory empty: a plain step of half the mixing, halved once more at every return.
        if k + 1 < len(z):
            assert float(z[k + 1]) == pytest.approx(float(best + 0.5 ** (count + 1) * f(best)), rel=1e-12)
    assert len(leaps) > 4
    # The fifth is accepted as a fresh start: there is no root where |f| is least, and it is left behind.
    assert float(z[leaps[4] + 1]) == pytest.approx(float(z[leaps[4]] + f(z[leaps[4]])), rel=1e-12)
    # z^3 - 2 z + 2 = 0 has one real root, -1.769292354238631.
    assert solution.converged, solution.explain()
    assert float(solution.value) == pytest.approx(-1.769292354238631, rel=1e-8)


def test_a_sudden_arrival_is_converged_within_the_budget():
    # The same loop from 0: some fifty evaluations astray in |z| < 2, then the root within five. That |F(z)| has grown
    # since half of them speaks of drift, but going on changes the residual by far more than the residual.
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    loop = Loop(lambda z: z - (z**3 - 2 * z + 2) / 10, z0=z0)
    solution = Anderson(memory=1, max_steps=60).solve(loop, z0)
    assert solution.converged, solution.explain()
    assert float(solution.value) == pytest.approx(-1.769292354238631, rel=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_parallel_differences_leave_the_least_squares_solvable(dtype):
    # All entries alike: every difference is a multiple of (1, ..., 1), the Gram matrix has rank one.
    z0 = torch.zeros(2, 5, dtype=dtype)
    solution = Anderson().solve(Loop(lambda z: torch.tanh(0.5 * z + 1), z0=z0), z0)
    assert solution.converged, solution.explain()
    assert torch.isfinite(solution.value).all()


def test_a_drift_is_not_leapt_along():
    # In float32, 0.1 is added with rounding errors: residuals differ by noise, and a step divided by that noise
    # would be of size 1e6. Treated as no difference, the states are those of the plain iteration.
    z0 = torch.zeros(1, 1)
    states, _ = visited(Anderson(max_steps=100), lambda z, x: z + 0.1, z0, z0)
    plain, _ = visited(Picard(max_steps=100), lambda z, x: z + 0.1, z0, z0)
    assert torch.equal(states, plain)


def test_anderson_beats_picard_where_it_should():
    # Real spectrum up to 0.99 in 40 dimensions, eight differences kept.
    A = problems.normal(*torch.linspace(-0.5, 0.99, 40).tolist())
    x = problems.randn(4, 40)
    loop = Loop(lambda z, x: z @ A.T + x, x)
    slow = Picard(max_steps=5000).solve(loop, torch.zeros_like(x))
    fast = Anderson().solve(loop, torch.zeros_like(x))
    assert slow.converged
    assert fast.converged
    assert int(fast.steps.sum()) * 10 < int(slow.steps.sum())


# ---- Damped


@given(
    modulus=st.floats(1.0, 2.0),
    degrees=st.floats(60, 180),
    side=st.sampled_from([0.9, 1.1]),
)
def test_a_constant_step_settles_exactly_below_the_critical_one(modulus, degrees, side):
    # Lemma D5: 1 - s (1 - l) lies in the unit circle exactly for s < s_c = 2 Re(1 - l) / |1 - l|^2.
    eigenvalue = modulus * complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    critical = 2 * (1 - eigenvalue.real) / abs(1 - eigenvalue) ** 2
    step = side * critical
    cosine = (1 - eigenvalue.real) / abs(1 - eigenvalue)
    assume(cosine > 0.5 and step <= 1)
    A = modulus * problems.rotation(degrees)
    x = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    loop = Loop(lambda z, x: z @ A.T + x, x)
    # At 0.9 s_c, |1 - s (1 - l)|^2 = 1 - 0.9 * 0.1 * s_c^2 |1 - l|^2 = 1 - 0.09 * 4 cosine^2 < 0.91: 1e-6 takes at
    # most 13.8 * 2 / 0.094 = 294 evaluations. At 1.1 s_c it is 1 + 0.11 * 4 cosine^2 > 1.11.
    solution = Damped(step=step, min_step=step, decay=1.0, rtol=1e-6, max_steps=400).solve(loop, torch.zeros_like(x))
    assert solution.converged is (side < 1), solution.explain()


def test_the_step_shrinks_only_when_patience_ends():
    # F(z) = -3 z: the undamped residual doubles at once, and at each state while s > 0.75: |1 - 4 s| > 2.
    z0 = torch.ones(1, 1, dtype=torch.float64)
    states, solution = visited(Damped(atol=1e-8, max_steps=500), lambda z, x: -3 * z, z0, z0)
    z = states.flatten()
    steps = ((z[1:] - z[:-1]) / (-4 * z[:-1])).tolist()
    # 3^2 = 9 > 2: a decay at every state but the first.
    expected, s = [1.0], 1.0
    while s * 0.9 > 0.75:
        s *= 0.9
        expected.append(s)
    assert steps[: len(expected)] == pytest.approx(expected, rel=1e-9)
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(steps))
    assert steps[-1] < 0.5  # D5: s_c = 2 / 4
    assert solution.converged


def test_a_steady_fall_is_not_damped():
    # A slow real eigenvalue: the residual falls by 0.5 % a step, patience would end every fifth.
    z0 = torch.zeros(1, 1, dtype=torch.float64)
    states, _ = visited(Damped(max_steps=300), lambda z, x: 0.995 * z + 1, z0, z0)
    plain, _ = visited(Picard(max_steps=300), lambda z, x: 0.995 * z + 1, z0, z0)
    assert torch.allclose(states, plain, rtol=1e-12)


def test_samples_have_steps_of_their_own():
    x = torch.tensor([[0.5], [-1.2]], dtype=torch.float64)
    z0 = torch.full((2, 1), 3.0, dtype=torch.float64)
    solution = Damped().solve(Loop(lambda z, x: x * z + 1, x), z0)
    assert solution.converged
    # The first never needs damping: it converges as fast as beside nobody.
    alone = Picard().solve(Loop(lambda z, x: x * z + 1, x[:1]), z0[:1])
    assert int(solution.steps[0]) == int(alone.steps[0])
    assert int(solution.steps[1]) > int(solution.steps[0])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("gain", [2.0, 4.0])
def test_a_nonlinear_flip_is_settled(gain, dtype):
    # z <- x - tanh(gain z): Picard falls into a cycle; just below the critical step the approach is slower than
    # geometric, and patience must not be content with it: any fall at all once left 6e-7 after 1000 evaluations.
    x = torch.tensor([[1.0, 2.0]], dtype=dtype)
    loop = Loop(lambda z, x: x - torch.tanh(gain * z), x)
    assert Picard().solve(loop, torch.zeros_like(x)).status == (Status.CYCLE,)
    solution = Damped().solve(loop, torch.zeros_like(x))
    assert solution.converged, solution.explain()
