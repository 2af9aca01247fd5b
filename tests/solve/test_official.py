"""The official solver: its statistics against the official code, and what is honestly said of its results."""

import math

import pytest
import torch
from oracle import FPRM, Oracle

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.solve.official import (
    FPOPTState,
    OfficialFPOPT,
    fpopt_start,
    fpopt_step,
    official_trace,
    token_residual,
)
from fpcheck.status import Status

# v02 and v14 amplify a rounding from step to step (v14 about tenfold); v05 does not converge, its 200 steps decide
# patience on differences of 1e-6 from step 150 on.
CHAOTIC = ("v02", "v14")

# A residual is a difference of states of size 1 to 4, themselves equal to 1e-6 (test_oracle_blocks): near
# convergence that floor shows, above it 1e-4 relative holds.
RELATIVE, FLOOR = 1e-4, 2e-6


def assert_residues(got, want):
    torch.testing.assert_close(got, want, rtol=RELATIVE, atol=FLOOR)


@pytest.mark.parametrize("name", FPRM)
def test_trace_of_twenty_steps(name):
    oracle = Oracle(name)
    _, loop = oracle.loop()
    trace = official_trace(loop, oracle["y0"], oracle.options(), steps=20, keep_states=True)
    want = oracle["trace/residues"]
    assert torch.equal(trace.stepsize, oracle["trace/stepsize"])
    # Below 1e-5 the residual is rounding noise, and so is whether it improved.
    judged = want > 1e-5
    assert torch.equal(trace.patience[judged], oracle["trace/patience"].long()[judged])
    assert trace.states.shape == (21, *oracle["y0"].shape)
    assert torch.equal(trace.states[-1], trace.z)
    if name in CHAOTIC:
        return
    assert_residues(trace.residues, want)
    assert_residues(trace.best_residues, oracle["trace/best_residues"])
    for step, state in zip((1, 5, 20), oracle["trace/y_1_5_20"], strict=True):
        # 20 block calls, each within 1e-6 of states that grow to 80 in v06, the drifting one.
        torch.testing.assert_close(trace.states[step], state, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize(("name", "steps"), [("v02", 20), ("v14", 2)])
def test_trace_of_chaotic_loops_from_the_stored_states(name, steps):
    # Started afresh at each stored state. In v14 a rounding has grown past 1e-4 after three steps, so only the
    # first two after each stored state can be compared; v02 can be compared throughout.
    oracle = Oracle(name)
    _, loop = oracle.loop()
    options = oracle.options()
    rows = {key: oracle[f"trace/{key}"] for key in ("residues", "best_residues", "stepsize", "patience")}
    states = oracle["trace/y_1_5_20"]
    compared = 0
    for start, stop in ((0, 1), (1, 5), (5, 20)):
        if start == 0:
            state = fpopt_start(oracle["y0"], options)
        else:
            state = FPOPTState(
                z=states[(1, 5).index(start)],
                residual=rows["residues"][start - 1],
                best_residual=rows["best_residues"][start - 1],
                stepsize=rows["stepsize"][start - 1],
                patience=rows["patience"][start - 1].long(),
                steps=start,
            )
        for step in range(start, min(stop, start + steps)):
            state = fpopt_step(loop, state, options)
            assert_residues(state.residual, rows["residues"][step])
            assert_residues(state.best_residual, rows["best_residues"][step])
            assert torch.equal(state.stepsize, rows["stepsize"][step])
            assert torch.equal(state.patience, rows["patience"][step].long())
            compared += 1
    assert compared == (20 if name == "v02" else 5)


@pytest.mark.parametrize("name", FPRM)
def test_official_evaluation_run(name):
    oracle = Oracle(name)
    model, loop = oracle.loop()
    trace = official_trace(loop, oracle["y0"], oracle.options())
    assert trace.halt_iter == oracle["eval_run/halt_iter"]
    assert trace.reason == oracle["eval_run/reason"]
    assert len(trace.residues) == trace.halt_iter
    exact = 140 if name == "v05" else trace.halt_iter
    assert torch.equal(trace.stepsize[:exact], oracle["eval_run/stepsize"][:exact])
    if name in (*CHAOTIC, "v05"):
        return
    assert_residues(trace.residues, oracle["eval_run/residues"])
    torch.testing.assert_close(trace.z, oracle["eval_run/y_final"], rtol=2e-6, atol=2e-5)
    assert torch.equal(model.readout(trace.z).argmax(-1), oracle["eval_run/preds"])
    # The residual of the returned state itself, which the official code never looks at.
    assert_residues(token_residual(trace.z, loop(trace.z)), oracle["eval_run/residual_at_y_final"])


def test_the_comparison_would_catch_other_options():
    # The partner that must fail: another decay, another patience.
    oracle = Oracle("v05")
    _, loop = oracle.loop()
    options = oracle.options()
    for change in ({"stepsize_decay": 0.98}, {"decay_patience": 4}):
        other = OfficialFPOPT(**{**vars(options), **change})
        trace = official_trace(loop, oracle["y0"], other, steps=20)
        assert not torch.equal(trace.stepsize, oracle["trace/stepsize"])


# --- the rule, step by step -----------------------------------------------------------------------------------


def linear(*rates):
    """z -> rate * z + x on one token per sample; the fixed point is x / (1 - rate)."""
    r = torch.tensor(rates, dtype=torch.float64)[:, None]
    return lambda z: r * z + 1


def test_one_step_by_hand():
    options = OfficialFPOPT(stepsize=0.5)
    start = fpopt_start(torch.zeros(1, 1, dtype=torch.float64), options)
    one = fpopt_step(linear(0.5), start, options)
    # F(0) = 1: residual |0 - 1| / 1, new state 0.5 * 1 + 0.5 * 0.
    assert float(one.residual) == pytest.approx(1.0, abs=1e-7)
    assert float(one.z) == 0.5
    assert (int(one.patience), float(one.stepsize), one.steps) == (5, 0.5, 1)
    two = fpopt_step(linear(0.5), one, options)
    # F(0.5) = 1.25: residual 0.75 / 1.25 = 0.6, independent of the step size; state 0.5 * 1.25 + 0.5 * 0.5.
    assert float(two.residual) == pytest.approx(0.6, abs=1e-7)
    assert float(two.z) == 0.875


def test_patience_and_decay():
    # z -> -z + 1 from 2 swings between 2 and -1: residuals 3 and 3/2, so the best is reached at step 2.
    options = OfficialFPOPT(decay_patience=2, stepsize_decay=0.5)
    trace = official_trace(linear(-1.0), torch.full((1, 1), 2.0, dtype=torch.float64), options, steps=4)
    torch.testing.assert_close(trace.residues[:4, 0], torch.tensor([3.0, 1.5, 3.0, 1.5]).double(), rtol=1e-7, atol=0)
    # Step 1 improves on inf, step 2 on 3; steps 3 and 4 do not: patience 2, 2, 1, then 0: decay and back to 2.
    assert trace.patience[:, 0].tolist() == [2, 2, 1, 2]
    assert trace.stepsize[:, 0].tolist() == [1.0, 1.0, 1.0, 0.5]
    assert trace.best_residues[:, 0].tolist() == pytest.approx([3.0, 1.5, 1.5, 1.5])


def test_below_the_threshold_patience_runs_negative_and_nothing_decays():
    # At its fixed point the residual is 0 from the first step on: only the first is an improvement.
    options = OfficialFPOPT(decay_patience=2)
    trace = official_trace(linear(0.5), torch.full((1, 1), 2.0, dtype=torch.float64), options, steps=9)
    assert trace.patience[:, 0].tolist() == [2, 1, 0, -1, -2, -3, -4, -5, -6]
    assert (trace.stepsize == 1).all()
    assert (trace.halt_iter, trace.reason) == (1, "residue")  # said, though the run went on as asked


def test_step_size_lives_in_the_dtype_of_the_state():
    options = OfficialFPOPT(decay_patience=1, stepsize_decay=0.9985)
    for dtype, moves in ((torch.bfloat16, False), (torch.float32, True)):
        trace = official_trace(lambda z: -z + 1, torch.full((1, 1), 2.0, dtype=dtype), options, steps=40)
        assert trace.stepsize.dtype == dtype
        # bfloat16 has 8 bits: 0.9985 rounds back to 1, and no decay ever happens.
        assert bool((trace.stepsize < 1).any()) is moves


def test_token_residual_is_a_maximum_of_ratios_over_all_tokens():
    z = torch.tensor([[[1.0, 10.0], [2.0, 0.0]]])
    fz = torch.tensor([[[2.0, 10.0], [2.0, -4.0]]])
    # Tokens: max(1, 0) / 10 and max(0, 4) / 4.
    assert float(token_residual(z, fz)) == pytest.approx(1.0)
    assert float(token_residual(z[:, :1], fz[:, :1])) == pytest.approx(0.1)
    # Two states of tokens, as in TRM: the same maximum over both.
    assert float(token_residual(z[:, None].repeat(1, 2, 1, 1), fz[:, None].repeat(1, 2, 1, 1))) == pytest.approx(1.0)
    assert float(token_residual(torch.tensor([1.0]), torch.tensor([2.0]))) == pytest.approx(0.5)
    assert math.isnan(float(token_residual(z * math.nan, fz)))


def test_gradients_flow_through_states_not_statistics():
    options = OfficialFPOPT(stepsize=0.25)
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    state = fpopt_start(torch.zeros(1, 1, dtype=torch.float64), options)
    for _ in range(2):
        state = fpopt_step(lambda z: rate * z + 1, state, options)
    # z1 = 1/4; z2 = (rate z1 + 1) / 4 + 3/4 z1, so dz2/drate = z1 / 4 = 1/16.
    (gradient,) = torch.autograd.grad(state.z.sum(), rate)
    assert float(gradient) == 1 / 16
    assert not any(v.requires_grad for v in (state.residual, state.best_residual, state.stepsize))


# --- stopping, faults included --------------------------------------------------------------------------------


def solve(block, z0, x=None, **options):
    loop = Loop(block, torch.zeros(len(z0)) if x is None else x, z0=z0, check=False)
    return OfficialFPOPT(**options).solve(loop, z0)


def test_a_contraction_converges_and_the_figures_are_those_of_the_returned_state():
    r = torch.tensor([0.5, 0.8], dtype=torch.float64)
    solution = solve(lambda z, x: x[:, None] * z + 1, torch.zeros(2, 3, dtype=torch.float64), r, fp_thresh=1e-3)
    assert solution.status == (Status.CONVERGED,) * 2
    image = r[:, None] * solution.value + 1
    norm = torch.linalg.vector_norm(image - solution.value, dim=1)
    assert torch.equal(solution.residual_norm, norm)
    torch.testing.assert_close(solution.residual, norm / torch.linalg.vector_norm(image, dim=1), rtol=1e-12, atol=0)
    assert (solution.residual_norm <= solution.atol + solution.rtol * torch.linalg.vector_norm(image, dim=1)).all()
    # Batch coupling: the fast sample ran as long as the slow one. One evaluation more than steps, to look at the
    # state that is returned.
    assert solution.steps.tolist() == [len(solution.history)] * 2
    alone = solve(lambda z, x: x[:, None] * z + 1, torch.zeros(1, 3, dtype=torch.float64), r[:1], fp_thresh=1e-3)
    assert int(alone.steps) < int(solution.steps[0])


def test_the_returned_state_is_judged_itself():
    # Off by one: the rule tests the state before the step it then takes. Here F maps the tested 1 to 1.05
    # (residual 0.048, halt), but 1.05 to 3.05: what is returned is nowhere near settled.
    def block(z, x):
        return torch.where(z <= 1, z + 0.05, z + 2)

    solution = solve(block, torch.ones(1, 1, dtype=torch.float64))
    assert int(solution.steps) == 2
    assert float(solution.value) == 1.05
    assert solution.status == (Status.BUDGET,)
    assert float(solution.residual) == pytest.approx(2 / 3.05)


def test_linear_drift_halts_but_is_not_called_converged():
    oracle = Oracle("v06")  # pre-norm without residual scaling: the state grows linearly
    _, loop = oracle.loop()
    assert official_trace(loop, oracle["y0"], oracle.options()).reason == "residue"
    solution = oracle.options().solve(loop, oracle["y0"])
    assert set(solution.status) == {Status.DIVERGING}
    assert (solution.residual < 0.1).all()  # though each would pass the official test


def test_a_vanished_step_size_is_not_convergence():
    oracle = Oracle("v14")
    _, loop = oracle.loop()
    assert official_trace(loop, oracle["y0"], oracle.options()).reason == "stepsize"
    solution = oracle.options().solve(loop, oracle["y0"])
    assert set(solution.status) <= {Status.BUDGET, Status.DIVERGING}
    assert (solution.residual > 0.1).all()
    assert (solution.steps == oracle["eval_run/halt_iter"] + 1).all()


def test_one_nan_sample_keeps_everyone_going_and_is_named():
    # Sample 1 overflows: 4^k passes the largest float32, 2^128, at step 64, and inf - inf follows.
    rates = torch.tensor([0.5, 4.0])
    solution = solve(lambda z, x: x[:, None] * z + 1, torch.ones(2, 2), rates, max_iter=80)
    assert solution.status == (Status.CONVERGED, Status.NON_FINITE)
    assert (solution.steps == 81).all()  # batch coupling: the good one had settled after a handful
    assert torch.isfinite(solution.value).all()  # the last finite state
    assert math.isinf(float(solution.residual[1]))


def test_budget():
    solution = solve(lambda z, x: -z + 1, torch.full((1, 1), 2.0), max_iter=3)
    assert solution.status == (Status.BUDGET,)
    assert int(solution.steps) == 4


def test_a_solved_batch_stops_at_once():
    solution = solve(lambda z, x: 0.5 * z + 1, torch.full((2, 1), 2.0))
    assert solution.converged
    assert solution.residual.tolist() == [0.0, 0.0]
    assert solution.steps.tolist() == [2, 2]


# --- calls that are wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fp_thresh": 0.0}, "OfficialFPOPT: fp_thresh=0.0; expected a finite number > 0"),
        ({"fp_thresh": math.nan}, "fp_thresh=nan"),
        ({"stepsize": -1.0}, "stepsize=-1.0"),
        ({"stepsize": "1"}, "stepsize='1'; expected a finite number > 0"),
        ({"eps": -1e-8}, "eps=-1e-08; expected a finite number >= 0"),
        ({"stepsize_decay": 1.5}, r"stepsize_decay=1.5; expected a number in \(0, 1\]"),
        ({"stepsize_decay": 0.0}, "stepsize_decay=0.0"),
        ({"decay_patience": 0}, "decay_patience=0; expected an integer >= 1"),
        ({"max_iter": 2.5}, "max_iter=2.5; expected an integer >= 1"),
        ({"max_iter": True}, "max_iter=True"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(InputError, match=words):
        OfficialFPOPT(**options)


def test_a_misspelt_option_is_an_error():
    with pytest.raises(TypeError, match="fp_tresh"):
        OfficialFPOPT(fp_tresh=0.1)


def test_wrong_starts():
    block = linear(0.5)
    loop = Loop(lambda z, x: block(z), torch.zeros(2, 1), check=False)
    with pytest.raises(InputError, match=r"z0.shape=\(3, 1\)"):
        OfficialFPOPT().solve(loop, torch.zeros(3, 1))
    with pytest.raises(NonFiniteError, match="z0 holds NaN"):
        OfficialFPOPT().solve(loop, torch.full((2, 1), math.nan))
    with pytest.raises(InputError, match="steps=0; expected an integer >= 1"):
        official_trace(block, torch.zeros(1, 1), steps=0)
