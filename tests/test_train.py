"""The trainer: repeatable, resumable, and it learns."""

import hashlib
import os
import signal
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipes_for_tests import SMALL

from fpcheck.adjoint import fixed_point
from fpcheck.errors import CheckpointError, ConvergenceError, InputError, NonFiniteError, OutputError
from fpcheck.loop import Loop
from fpcheck.solve import Picard
from fpcheck.status import Status
from fpcheck.train import RECIPES, _Team, evaluate, processes, read_log, recipe, train


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others():
    assert torch.equal(weights(train(SMALL)), weights(train(SMALL)))
    assert not torch.equal(weights(train(SMALL)), weights(train(replace(SMALL, seed=1))))


@pytest.mark.parametrize("stop", [1, 4, 5, 11])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, stop):
    whole = train(SMALL, folder=tmp_path / "whole", checkpoint_every=2)
    train(SMALL, folder=tmp_path / "parts", checkpoint_every=2, stop_after=stop)
    parts = train(SMALL, folder=tmp_path / "parts", checkpoint_every=2)
    assert torch.equal(weights(whole), weights(parts))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert len(logs[0].splitlines()) == SMALL.steps


def test_a_run_killed_between_checkpoints_goes_back_to_the_last_one(tmp_path):
    def kill(step, figures):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SMALL, folder=tmp_path, checkpoint_every=3, progress=kill)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 6
    assert torch.equal(weights(train(SMALL, folder=tmp_path, checkpoint_every=3)), weights(train(SMALL)))


def test_it_leaves_the_global_random_state_and_thread_count_alone():
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(replace(SMALL, steps=2, threads=2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_it_learns_parity_of_a_short_sequence():
    # S2 of length 4 is the running parity: chance is 0.5. 16 sequences exist and about one in 16 is held out,
    # so the training split itself is scored here: this tests the optimisation, not the generalisation.
    learned = train(replace(SMALL, steps=300, lr=1e-2))
    task = SMALL.task
    inputs, labels = task.sample(64, torch.Generator().manual_seed(7))
    with torch.no_grad():
        x = learned.injection(inputs)
        z = learned.initial_state(x)
        for _ in range(50):
            z = learned.block(z, x)
        accuracy = (learned.readout(z).argmax(-1) == labels).float().mean()
    assert accuracy > 0.95


def test_evaluation_counts_right_tokens_and_settled_loops():
    held = evaluate(train(SMALL), replace(SMALL.task, length=4), sequences=20, budget=500)
    assert 0 <= held.sequence_accuracy <= held.token_accuracy <= 1
    assert held.settled == 1.0  # residual scaling, barely trained weights: a strong contraction
    assert held.median_steps is not None
    starved = evaluate(train(SMALL), SMALL.task, sequences=20, budget=1)
    assert starved.settled == 0.0
    assert starved.median_steps is None


def test_another_recipe_is_not_resumed(tmp_path):
    train(SMALL, folder=tmp_path, stop_after=2)
    with pytest.raises(CheckpointError, match=r"other settings.*--restart"):
        train(replace(SMALL, lr=1e-4), folder=tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(SMALL, folder=tmp_path, stop_after=2)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"damaged.*--restart"):
        train(SMALL, folder=tmp_path)


def test_an_unwritable_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the checkpoint"):
        train(SMALL, folder=tmp_path / "file" / "below", stop_after=1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": 0}, "steps=0; expected an integer >= 1"),
        ({"window": 0}, "window=0"),
        ({"seed": -1}, "seed=-1; expected an integer >= 0"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"adjoint": "implict"}, "did you mean 'implicit'"),
        ({"rtol": 0.0}, r"rtol=0.0; expected a number in \(0, 1\)"),
        ({"adjoint_rtol": float("nan")}, "adjoint_rtol=nan"),
        ({"budget": 0}, "budget=0"),
        ({"jacobian_penalty": -1.0}, "jacobian_penalty=-1.0; expected a number >= 0"),
    ],
)
def test_bad_settings_are_refused(change, text):
    with pytest.raises(InputError, match=text):
        replace(SMALL, **change)


def test_recipes_by_name():
    assert recipe("s3", steps=7).steps == 7
    assert recipe("s3", steps=None) == RECIPES["s3"]
    with pytest.raises(InputError, match="did you mean 's3'"):
        recipe("s33")


def test_the_negative_partner_differs_only_in_what_scales_the_state():
    good, bad = RECIPES["s3"], RECIPES["s3-unscaled"]
    changed = {k for k, v in good.model.to_dict().items() if bad.model.to_dict()[k] != v}
    assert changed == {"residual_scale", "conv_type"}
    assert replace(bad, name=good.name, model=good.model, note=good.note) == good


SOLVED = replace(SMALL, steps=4)


@pytest.mark.parametrize("adjoint", ["implicit", "phantom", "onestep", "unrolled"])
def test_a_solved_batch_trains_repeats_and_resumes(tmp_path, adjoint):
    settings = replace(SOLVED, adjoint=adjoint)
    whole = train(settings, folder=tmp_path / "whole", checkpoint_every=2)
    train(settings, folder=tmp_path / "parts", checkpoint_every=2, stop_after=2)
    assert torch.equal(weights(whole), weights(train(settings, folder=tmp_path / "parts")))
    log = read_log(tmp_path / "whole")
    for row in log:
        assert sum(row[status.name.lower()] for status in Status) == settings.batch_size
        assert row["converged"] == settings.batch_size
        assert 1 <= row["loop_steps"] <= settings.budget
        assert (row["adjoint_steps"] > 0) == (adjoint == "implicit")
        assert row["adjoint_failed"] == 0
        assert row["gradient"] > 0


def test_the_implicit_gradient_of_a_step_is_that_of_all_steps():
    # One optimiser step at tolerances where the two gradients agree; AdamW's first step has entries of size lr times
    # the sign of the gradient, so the gradients' norms are compared instead: to 1e-3, the tolerance of both solves.
    norms = {}
    for adjoint in ("implicit", "unrolled", "onestep"):
        norms[adjoint] = []
        settings = replace(SOLVED, adjoint=adjoint, steps=1, rtol=1e-5, adjoint_rtol=1e-5)
        train(settings, progress=lambda _, row, kept=norms[adjoint]: kept.append(row["gradient"]))
    assert norms["implicit"] == pytest.approx(norms["unrolled"], rel=1e-3)
    assert norms["onestep"] != pytest.approx(norms["unrolled"], rel=3e-3)  # its bias is seen: 5e-3


def test_states_are_carried_over_and_shorten_the_solves():
    def steps(max_windows):
        found = []
        settings = replace(SOLVED, adjoint="onestep", max_windows=max_windows, lr=1e-6, steps=4, rtol=1e-5)
        train(settings, progress=lambda _, row: found.append(row["loop_steps"]))
        return found

    # The weights all but stand still, so a state that is carried over has converged, up to the last digit. Of 16 solves
    # of 1 to 1000 optimiser steps none ends within 4 with this seed; with at most 1, all are fresh every time.
    carried, fresh = steps(1000), steps(1)
    assert carried[0] > 3
    assert max(carried[1:]) <= 2
    assert min(fresh) > 3


def failing_rows(monkeypatch, which):
    """Fixed points of which some rows fail, whatever the model: their status says so and their states are garbage."""

    def solve(*arguments, **options):
        found = fixed_point(*arguments, **options)
        status = tuple(which.get(i, s) for i, s in enumerate(found.status))
        bad = torch.tensor([i in which for i in range(len(status))])
        value = torch.where(bad[:, None, None], torch.full_like(found.value, 1e30), found.value)
        return replace(found, status=status, value=value)

    monkeypatch.setattr("fpcheck.train.fixed_point", solve)


def test_samples_that_fail_are_left_out_of_the_loss_and_counted(monkeypatch):
    rows, clean = [], []
    settings = replace(SOLVED, adjoint="implicit", steps=1)
    train(settings, progress=lambda _, row: clean.append(row))
    failing_rows(monkeypatch, {0: Status.CYCLE, 5: Status.BUDGET, 6: Status.DIVERGING})
    train(settings, progress=lambda _, row: rows.append(row))
    row = rows[0]
    assert (row["converged"], row["cycle"], row["budget"], row["diverging"]) == (13, 1, 1, 1)
    # The rest of an untrained model's batch has about the loss of all: garbage of 1e30 would show.
    assert row["loss"] == pytest.approx(clean[0]["loss"], rel=0.1)
    assert row["gradient"] < 10 * clean[0]["gradient"]


def test_a_batch_in_which_all_fail_is_loud(monkeypatch):
    failing_rows(monkeypatch, dict.fromkeys(range(16), Status.BUDGET))
    with pytest.raises(
        ConvergenceError, match=r"(?s)not one of 16 samples converged at step 1.*budget=100.*BUDGET: 16"
    ):
        train(replace(SOLVED, adjoint="implicit"))


def test_a_budget_of_one_step_is_loud_for_real():
    with pytest.raises(ConvergenceError, match=r"(?s)budget=1 or rtol=0.005"):
        train(replace(SOLVED, adjoint="onestep", budget=1))


def test_a_non_finite_loss_stops_before_the_weights_are_spoilt(tmp_path):
    with pytest.raises(NonFiniteError, match=r"at step \d+; lower lr=1e\+30"):
        train(replace(SMALL, lr=1e30, warmup=0), folder=tmp_path, checkpoint_every=1)


def squared_jacobian(model, task):
    """Mean squared singular value of the Jacobian at the fixed points of some sequences, exactly."""
    inputs, _ = task.sample(8, torch.Generator().manual_seed(3))
    x = model.injection(inputs).detach()
    solution = Picard(rtol=1e-5).solve(Loop(model.block, x, z0=x, check=False), x)
    found = []
    for i in range(len(x)):
        J = torch.func.jacrev(lambda z, i=i: model.block(z, x[i : i + 1]))(solution.value[i : i + 1])
        found.append(float(J.detach().square().sum()) / x[0].numel())
    return statistics.mean(found)


@pytest.mark.parametrize("adjoint", ["window", pytest.param("implicit", marks=pytest.mark.slow)])
def test_the_jacobian_penalty_lowers_the_jacobian(adjoint):
    settings = replace(SMALL, adjoint=adjoint, steps=40, lr=1e-2)
    without = squared_jacobian(train(settings), settings.task)
    with_it = squared_jacobian(train(replace(settings, jacobian_penalty=1.0)), settings.task)
    assert with_it < 0.7 * without


def test_settings_that_came_later_leave_old_fingerprints_alone():
    # Of the shipped recipe, as it was before there was a choice of adjoint: old checkpoints go on.
    old = hashlib.sha256(RECIPES["s3"].fingerprint().encode()).hexdigest()
    assert old == "bf677d2252cb6e84e10a302ad1bea68b83bc5ae93c18284ea84ca58491447ef9"
    assert "adjoint" not in SMALL.fingerprint()
    for change in ({"adjoint": "implicit"}, {"rtol": 1e-4}, {"budget": 7}, {"jacobian_penalty": 1.0}):
        assert replace(SMALL, **change).fingerprint() != SMALL.fingerprint()


# Kills itself in the middle of writing its checkpoint for the n-th time, after half of the bytes.
KILLED = """
import io, os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
import fpcheck.train as training
from recipes_for_tests import SMALL

save, left = torch.save, [int(sys.argv[2])]

def half(held, path):
    left[0] -= 1
    if left[0] == 0:
        whole = io.BytesIO()
        save(held, whole)
        Path(path).write_bytes(whole.getvalue()[: whole.tell() // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    save(held, path)

torch.save = half
training.train(replace(SMALL, steps=8, adjoint="implicit"), folder=Path(sys.argv[1]), checkpoint_every=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("nth", [1, 3])
def test_a_run_killed_in_the_middle_of_writing_goes_on_bit_for_bit(tmp_path, nth):
    settings = replace(SMALL, steps=8, adjoint="implicit")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(nth)], check=False, env=environment())
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "checkpoint.pt.new").exists()
    assert (tmp_path / "checkpoint.pt").exists() == (nth > 1)
    whole = train(settings, folder=tmp_path.parent / f"{tmp_path.name}-whole", checkpoint_every=2)
    assert torch.equal(weights(train(settings, folder=tmp_path, checkpoint_every=2)), weights(whole))
    assert len(read_log(tmp_path)) == 8


def environment():
    root = Path(__file__).parents[1]
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}


SPLIT = """
import sys
from pathlib import Path
import torch
import fpcheck.train as training
from dataclasses import replace
from recipes_for_tests import SMALL

recipe = replace(SMALL, steps=4, batch_size=9, adjoint=sys.argv[2], jacobian_penalty=0.1)
with training.processes() as (first, device):
    model = training.train(recipe, folder=Path(sys.argv[1]), device=device, checkpoint_every=2)
    if first:
        torch.save(model.state_dict(), Path(sys.argv[1]) / "model.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["window", "implicit"])
def test_two_processes_do_what_one_does(tmp_path, adjoint):
    script = tmp_path / "split.py"
    script.write_text(SPLIT)
    for name, count in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", script]
        subprocess.run([sys.executable, *words, tmp_path / name, adjoint], check=True, env=environment())
    one, two = (torch.load(tmp_path / name / "model.pt") for name in ("one", "two"))
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    # Sums in another order: 1e-6 of the figures. AdamW divides each gradient by its own size, so where a weight's
    # gradient is rounding alone the update is not; there are few of those in 4 steps, and a step is lr = 2e-3.
    for a, b in zip(*logs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert b[key] == pytest.approx(a[key], rel=1e-4, abs=1e-6), key
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    # A run of two goes on as one, and the other way round: the checkpoint is the same.
    assert train(replace(SMALL, steps=4, batch_size=9, adjoint=adjoint, jacobian_penalty=0.1), folder=tmp_path / "two")


def test_more_processes_than_samples_are_refused(monkeypatch):
    monkeypatch.setattr("fpcheck.train._Team.current", lambda: _Team(0, 17))
    with pytest.raises(InputError, match="17 processes for batch_size=16"):
        train(SMALL)


def test_alone_there_is_nothing_to_join():
    with processes() as (first, device):
        assert (first, device) == (True, "cpu")
    with pytest.raises(InputError, match="device='tpu'"), processes("tpu"):
        pass


def test_a_log_that_is_none_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"log.jsonl cannot be read"):
        read_log(tmp_path)
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st')
    with pytest.raises(CheckpointError, match=r"log.jsonl cannot be read"):
        read_log(tmp_path)
