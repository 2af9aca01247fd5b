"""The trainer: repeatable, resumable, and it learns."""

from dataclasses import replace

import pytest
import torch

from fpcheck.blocks.config import FPRMConfig
from fpcheck.errors import CheckpointError, InputError, OutputError
from fpcheck.tasks import StateTracking
from fpcheck.train import RECIPES, Recipe, evaluate, recipe, train

SMALL = Recipe(
    name="small",
    task=StateTracking("S2", 4),
    model=FPRMConfig(
        vocab_size=3,
        seq_len=4,
        hidden_size=16,
        num_heads=2,
        L_layers=1,
        expansion=1.5,
        mlp_multiple=16,
        causal=True,
        conv_type="conv1d",
    ),
    steps=12,
    batch_size=16,
    window=3,
    max_windows=3,
    warmup=2,
    threads=1,
)


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
