"""Stored models: written whole or not at all, and read back bit for bit or refused."""

import json
import shutil

import pytest
import torch
from strategies import batch_of, looped_model

from fpcheck.blocks import (
    FPRMConfig,
    FPRMModel,
    TRMConfig,
    load,
    load_folder,
    save_model,
    shipped,
    shipped_models,
)
from fpcheck.errors import CheckpointError, ConfigError, InputError, NonFiniteError, OutputError, TargetError

BASE = {"vocab_size": 7, "seq_len": 4, "hidden_size": 8, "num_heads": 2, "mlp_multiple": 4}
CARD = {
    "name": "tiny",
    "task": {"kind": "state-tracking", "group": "S3", "length": 4},
    "command": "fpcheck train tiny",
    "seed": 0,
    "held_out": {"accuracy": 0.5},
}


def model_of(kind="fprm", seed=0):
    return looped_model(FPRMConfig(**BASE, causal=True) if kind == "fprm" else TRMConfig(**BASE), seed)


@pytest.fixture
def folder(tmp_path):
    return save_model(model_of(), tmp_path / "tiny", CARD)


def names(path):
    return sorted(p.name for p in path.iterdir())


@pytest.mark.parametrize("kind", ["fprm", "trm"])
def test_round_trip(tmp_path, kind):
    model = model_of(kind)
    before = torch.random.get_rng_state()
    again = load_folder(save_model(model, tmp_path / "deep" / "tiny", CARD))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert type(again) is type(model)
    assert again.config == model.config
    assert not again.training
    for (name, a), (other, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    x, z = batch_of(model)
    assert torch.equal(model.block(z, x), again.block(z, x))
    assert {k: again.card[k] for k in CARD} == CARD
    assert again.card["architecture"] == kind
    assert names(tmp_path / "deep") == ["tiny"]  # no leftovers beside it
    assert names(tmp_path / "deep" / "tiny") == ["card.json", "weights.safetensors"]


def test_equal_models_give_equal_files(tmp_path):
    for name in "ab":
        save_model(model_of(), tmp_path / name, CARD)
    save_model(model_of(seed=1), tmp_path / "c", CARD)
    for file in ("card.json", "weights.safetensors"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert a != c


def test_shipped_models_are_found_by_name(tmp_path, monkeypatch):
    save_model(model_of(), tmp_path / "s9", CARD)
    save_model(model_of("trm"), tmp_path / "s9-unscaled", CARD)
    (tmp_path / "not-a-model").mkdir()
    monkeypatch.setattr(shipped, "_SHIPPED", tmp_path)
    assert shipped_models() == ("s9", "s9-unscaled")
    assert isinstance(load("s9"), FPRMModel)
    with pytest.raises(TargetError, match="unknown model 's9-unscale'; did you mean 's9-unscaled'"):
        load("s9-unscale")
    for name in ("../s9", "not-a-model", ""):
        with pytest.raises(TargetError, match="unknown model"):
            load(name)


def test_every_shipped_model_loads():
    for name in shipped_models():
        assert load(name).card["name"] == name


# --- damage ---------------------------------------------------------------------------------------------------


def edit(folder, **changes):
    card = json.loads((folder / "card.json").read_text()) | changes
    (folder / "card.json").write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


def test_damaged_weights_are_seen_by_their_checksum(folder):
    blob = bytearray((folder / "weights.safetensors").read_bytes())
    blob[-1] ^= 1  # one bit of one weight: a valid file of other numbers
    (folder / "weights.safetensors").write_bytes(blob)
    with pytest.raises(CheckpointError, match=r"has sha256 .* but card.json says .*copy the folder again"):
        load_folder(folder)
    (folder / "weights.safetensors").write_bytes(blob[:100])
    with pytest.raises(CheckpointError, match="truncated, damaged or another model's"):
        load_folder(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights.safetensors beside .*card.json"):
        load_folder(folder)


def test_damaged_cards(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"no model at .*nowhere: cannot read card.json \(No such file"):
        load_folder(tmp_path / "nowhere")
    whole = (folder / "card.json").read_text()
    for text, words in [
        (whole[:50], "is not JSON"),
        ("[1, 2]", "lacks name, task, command, seed, held_out, architecture, config, sha256"),
        (whole.replace('"seed"', '"sede"'), "lacks seed"),
        (whole.replace('"fprm"', '"fprn"'), "unknown architecture 'fprn'; did you mean 'fprm'"),
        # The right weights under another architecture or another width: named, not loaded.
        (whole.replace('"fprm"', '"trm"').replace('"H_cycles"', '"L_cycles"'), "TRMConfig"),
        (whole.replace('"vocab_size": 7', '"vocab_size": 8'), r"has shape \(7, 8\), expected \(8, 8\)"),
    ]:
        (folder / "card.json").write_text(text)
        with pytest.raises((CheckpointError, ConfigError), match=words):
            load_folder(folder)


def test_unknown_configuration_keys_in_a_card(folder):
    config = json.loads((folder / "card.json").read_text())["config"]
    edit(folder, config=config | {"norm_tipe": "pre-norm"})
    with pytest.raises(ConfigError, match="did you mean 'norm_type'"):
        load_folder(folder)


# --- saving ---------------------------------------------------------------------------------------------------


def test_an_existing_folder_is_not_overwritten_unasked(folder, tmp_path):
    with pytest.raises(OutputError, match="it holds a model already"):
        save_model(model_of(seed=1), folder, CARD)
    assert (
        load_folder(folder).card["sha256"] == load_folder(save_model(model_of(), tmp_path / "b", CARD)).card["sha256"]
    )
    save_model(model_of(seed=1), folder, CARD | {"seed": 1}, overwrite=True)
    assert load_folder(folder).card["seed"] == 1
    assert names(tmp_path) == ["b", "tiny"]
    # Someone's other files are never deleted.
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"it also holds thesis.tex"):
        save_model(model_of(), folder, CARD, overwrite=True)
    with pytest.raises(OutputError, match="cannot write the model"):
        save_model(model_of(), folder / "thesis.tex", CARD, overwrite=True)
    assert (folder / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_nothing_half_written(tmp_path, monkeypatch, existing):
    target = tmp_path / "tiny"
    if existing:
        save_model(model_of(), target, CARD)
    before = {p.name: p.read_bytes() for p in target.iterdir()} if existing else None
    write = type(target).write_bytes

    def full_disk(path, data):
        if path.name == "card.json":
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(type(target), "write_bytes", full_disk)
    with pytest.raises(OutputError, match="No space left on device; choose a writable folder"):
        save_model(model_of(seed=1), target, CARD, overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == (["tiny"] if existing else [])
    if existing:
        assert {p.name: p.read_bytes() for p in target.iterdir()} == before


def test_an_interrupted_exchange_puts_the_old_model_back(folder, tmp_path, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    rename = type(folder).rename

    def interrupted(path, target):
        if path.name.endswith(".new"):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(type(folder), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(model_of(seed=1), folder, CARD, overwrite=True)
    monkeypatch.undo()
    assert names(tmp_path) == ["tiny"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write the model"):
        save_model(model_of(), tmp_path / "file" / "tiny", CARD)


def test_models_and_cards_that_are_refused(tmp_path):
    target = tmp_path / "tiny"
    with pytest.raises(InputError, match="model is a Linear; expected an FPRMModel"):
        save_model(torch.nn.Linear(2, 2), target, CARD)
    with pytest.raises(InputError, match="the card lacks seed"):
        save_model(model_of(), target, {k: v for k, v in CARD.items() if k != "seed"})
    with pytest.raises(InputError, match=r"dtype torch.float64; expected float32"):
        save_model(model_of().double(), target, CARD)
    for value in (float("nan"), torch.ones(1), {1, 2}):
        with pytest.raises(InputError, match="the card is not JSON"):
            save_model(model_of(), target, CARD | {"held_out": value})
    broken = model_of()
    with torch.no_grad():
        broken.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"lm_head.weight holds NaN"):
        save_model(broken, target, CARD)
    assert names(tmp_path) == []


def test_what_the_model_says_of_itself_wins_over_the_card(tmp_path):
    wrong = CARD | {"architecture": "trm", "config": {}, "sha256": "0"}
    assert load_folder(save_model(model_of(), tmp_path / "tiny", wrong)).card["architecture"] == "fprm"


def test_a_copied_folder_works(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert load_folder(tmp_path / "copy").card == load_folder(folder).card
