"""Every status can happen, and says what to do about it."""

import problems
import pytest
import torch

from fpcheck.loop import Loop
from fpcheck.solve import Anderson, Damped, Picard
from fpcheck.status import Status

ALL = [Picard, Damped, Anderson]

# What each text must name: a cause, and something to try.
TEXTS = {
    Status.CONVERGED: ("passed the tolerance", "residual / (1 - rate)"),
    Status.BUDGET: ("slow loop", "more steps"),
    Status.NON_FINITE: ("overflowed", "wider dtype"),
    Status.DIVERGING: ("drifts", "residual scaling below 1"),
    Status.CYCLE: ("eigenvalue near -1", "fp.Damped(step=...)"),
    Status.NOISE_FLOOR: ("rounding floor", "wider dtype"),
}


@pytest.mark.parametrize("status", Status)
def test_text_names_cause_and_remedy(status):
    cause, remedy = TEXTS[status]
    assert cause in status.text
    assert remedy in status.text
    # It follows "NAME: " in messages: it starts in lower case and is a whole sentence.
    assert status.text[0].islower() or status.text.startswith("max_steps")
    assert status.text.endswith(".")


def test_values_are_distinct_small_integers():
    # They are stored in int8 arrays, beside -1 for a sample still running.
    assert sorted(s.value for s in Status) == list(range(len(Status)))


def floor_of_bfloat16(z):
    """Contracts by 0.9 to 0.9 / 0.1 = 9; near 9 the bfloat16 states are 2^-4 apart, 0.7 % of the state."""
    return 0.9 * z + 0.9


# |W|_2 = 0.9: a contraction.
W = 0.9 * problems.orthogonal(64).float()
B = problems.randn(2, 64).float()


def zero(dtype=torch.float64, value=0.0):
    return torch.full((2, 3), value, dtype=dtype)


# status, name, block, start, options, and under which solvers.
CASES = [
    (Status.CONVERGED, "contraction", lambda z: 0.5 * z + 1, zero(), {}, ALL),
    # 0.9999^200 = 0.98: no solver without acceleration gets there.
    (Status.BUDGET, "slow", lambda z: 0.9999 * z + 1, zero(), {"max_steps": 200}, [Picard, Damped]),
    # The logistic map at 4: chaotic, both fixed points (0 and 3/4) repelling with slopes 4 and -2.
    (Status.BUDGET, "chaos", lambda z: 4 * z * (1 - z), zero(value=0.3), {"max_steps": 200}, [Picard]),
    # The drift takes the state past 20 after 21 steps, where the logarithm is not a number.
    (Status.NON_FINITE, "edge of its domain", lambda z: z + 1 + 0 * torch.log(20 - z), zero(), {}, ALL),
    (Status.NON_FINITE, "overflow", lambda z: torch.exp(z) + z, zero(value=1.0), {}, [Picard]),
    (Status.DIVERGING, "expansion", lambda z: 1.5 * z + 1, zero(), {}, [Picard, Damped]),
    (Status.DIVERGING, "drift", lambda z: z + 1, zero(), {"max_steps": 300}, ALL),
    # One of the two states has F(z) = 0, so that its relative residual is infinite.
    (Status.CYCLE, "flip", lambda z: 1 - z, zero(), {}, [Picard, lambda **k: Damped(decay=1.0, **k)]),
    # A damped step of 1 % moves nothing near 9: the residual is below 9 * 2^-8 / 0.01 there.
    (
        Status.NOISE_FLOOR, "short steps in bfloat16", floor_of_bfloat16, zero(torch.bfloat16), {"rtol": 8e-3},
        [lambda **k: Damped(step=0.01, min_step=0.01, **k)],
    ),
    # 1e-20 is far below what float32 resolves, and an absolute tolerance is not refused beforehand. Sums over 64
    # products leave a residual of some rounding units that no exact orbit ends at once.
    (
        Status.NOISE_FLOOR, "atol out of reach", lambda z: torch.tanh(z @ W + B[0]), torch.zeros(2, 64),
        {"rtol": 0.0, "atol": 1e-20}, ALL,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "block", "z0", "solver"),
    [
        pytest.param(status, block, z0, make(**options), id=f"{status.name}, {name}, {i}")
        for status, name, block, z0, options, makes in CASES
        for i, make in enumerate(makes)
    ],
)
def test_every_status_happens(status, block, z0, solver):
    solution = solver.solve(Loop(block, z0=z0), z0)
    assert set(solution.status) == {status}, solution.explain()
    assert solution.counts == {status: 2}
    assert solution.converged is (status is Status.CONVERGED)
    assert torch.isfinite(solution.value).all()
    assert (solution.period > 0).all() == (status is Status.CYCLE)
    assert status.text in solution.explain()


def test_every_status_has_a_case():
    assert {status for status, *_ in CASES} == set(Status)
