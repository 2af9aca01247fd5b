"""The command as a user meets it: what it prints, what it writes, how it fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fpcheck import cli
from fpcheck.blocks import load
from fpcheck.report.document import SCHEMA, VERSION

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_block.py"
# The level that measures; tests/test_bounds.py holds those of the default, which proves.
ESTIMATE = ("--level", "estimate")


@pytest.fixture
def fpcheck(capsys, monkeypatch):
    """Run the command in this process; returns (exit code, standard output, standard error)."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fpcheck", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def test_the_shipped_model_settles_and_says_estimate(fpcheck, tmp_path):
    code, out, err = fpcheck("certify", "s3", "--inputs", "4", *ESTIMATE, "--out", tmp_path / "o")
    assert code == 0, out + err
    assert "level ESTIMATE" in out
    assert "ESTIMATE: 4 of 4 inputs settle" in out
    assert "PROVED" not in out.upper().replace("NOTHING PROVED", "")
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "assessment.json",
        "eigenvalues.png",
        "residuals.png",
    ]
    # Both pictures are PNG files with something on them: more than a blank canvas compresses to.
    for name in ("eigenvalues.png", "residuals.png"):
        data = (tmp_path / "o" / name).read_bytes()
        assert data.startswith(b"\x89PNG")
        assert len(data) > 15_000
    held = json.loads((tmp_path / "o" / "assessment.json").read_text())
    assert (held["schema"], held["version"], held["level"], held["proved"]) == (SCHEMA, VERSION, "estimate", False)
    for row in held["rows"]:
        assert row["attracting"]
        assert row["radius"] < 1
        # The spectrum's prediction, checked against what the loop did: 5 % is the promise of the issue.
        if 0.3 <= row["radius"] <= 0.98:
            assert row["measured_rate"] == pytest.approx(row["radius"], rel=0.05)


def test_spectrum_of_a_users_block_says_estimate_and_draws(fpcheck, tmp_path):
    code, out, err = fpcheck("spectrum", f"{EXAMPLE}:block", "--inputs", "2", "--starts", "4", "--out", tmp_path / "o")
    assert code == 0, out + err
    assert "level ESTIMATE" in out
    assert "CONTRACTING: 2 of 2 inputs" in out
    names = ["growth.png", "numerical-range.png", "spectrum.json", "stability.png"]
    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == names
    for name in names:
        if name.endswith(".png"):
            data = (tmp_path / "o" / name).read_bytes()
            assert data.startswith(b"\x89PNG")
            assert len(data) > 15_000
    held = json.loads((tmp_path / "o" / "spectrum.json").read_text())
    assert (held["schema"], held["level"], held["proved"], held["complete"]) == (
        "fpcheck.spectrum", "estimate", False, True
    )  # fmt: skip
    for row in held["rows"]:
        # Known relations between the figures, whatever their values.
        assert row["radius"] <= row["numerical_radius"] <= row["norm"] <= row["norm_bound"]
        assert row["log_norm"] <= row["log_norm_bound"]
        assert 1 <= row["kreiss"] <= row["peak_growth"] * (1 + 1e-9)
        assert row["growth"][row["contraction_steps"]] < 1
        assert row["critical_step"] > 1


def test_spectrum_by_products_agrees_with_the_dense_one(fpcheck):
    rows = {}
    for method in ("dense", "krylov"):
        code, out, err = fpcheck("spectrum", f"{EXAMPLE}:block", "--inputs", "1", "--method", method, "--json")
        assert code == 0, out + err
        rows[method] = json.loads(out)["rows"][0]
    assert rows["dense"]["path"] != rows["krylov"]["path"]
    for figure in ("radius", "norm", "log_norm", "critical_step"):
        # Both say how far off they may be.
        room = sum(row[f"{figure}_error"] for row in rows.values())
        assert abs(rows["dense"][figure] - rows["krylov"][figure]) <= room
        assert room < 1e-6


def test_spectrum_of_a_loop_that_drifts_names_it(fpcheck):
    code, out, _ = fpcheck("spectrum", f"{EXAMPLE}:unscaled", "--inputs", "1", "--max-steps", "200")
    # The figures are all there, so the call did what it was asked; what they say is another matter.
    assert code == 0, out
    assert "1 of 1 states are not fixed points" in out
    assert "CONTRACTING" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--starts", "-1"], r"starts=-1; expected .* >= 0"),
        (["--max-steps", "0"], "max_steps=0"),
        (["--inputs", "0"], "inputs=0"),
    ],
)
def test_spectrum_refuses_bad_options(fpcheck, words, message):
    code, out, err = fpcheck("spectrum", f"{EXAMPLE}:block", *words)
    assert (code, out) == (2, "")
    assert re.search(message, " ".join(err.split()))


def test_its_partner_without_scaling_fails_and_says_why(fpcheck):
    code, out, _ = fpcheck("certify", "s3-unscaled", "--inputs", "3", "--max-steps", "300", *ESTIMATE)
    assert code == 1
    assert "ESTIMATE: 0 of 3 inputs settle" in out
    assert "FAILED on 3 inputs (0, 1, 2): the loop did not settle: DIVERGING" in out
    assert "damping does not cure drift" in out


def test_the_models_own_precision(fpcheck):
    code, out, _ = fpcheck("certify", "s3", "--inputs", "2", "--dtype", "own", *ESTIMATE)
    assert code == 0, out
    assert "measured in float32" in out


def test_a_users_file_passes_and_its_partner_fails(fpcheck):
    assert fpcheck("certify", f"{EXAMPLE}:block", "--inputs", "2", *ESTIMATE)[0] == 0
    code, out, _ = fpcheck("certify", f"{EXAMPLE}:unscaled", "--inputs", "2", "--max-steps", "200", *ESTIMATE)
    assert code == 1
    assert "FAILED on 2 inputs" in out


def test_json_goes_to_standard_output_alone(fpcheck):
    code, out, _ = fpcheck("certify", f"{EXAMPLE}:block", "--inputs", "2", *ESTIMATE, "--json")
    assert code == 0
    assert json.loads(out)["passed"] is True


def test_equal_calls_give_equal_documents_and_another_seed_another(fpcheck):
    words = ("certify", f"{EXAMPLE}:block", "--inputs", "2", *ESTIMATE, "--json")
    one, two = (fpcheck(*words)[1] for _ in range(2))
    other = fpcheck(*words, "--seed", "1")[1]
    assert one == two
    assert one != other


def test_an_official_checkpoint_with_its_configuration_and_data(fpcheck, tmp_path):
    model = load("s3")
    # The official layout: everything below `inner.`, the block called L_level.
    state = {f"inner.{k}".replace("inner.block.", "inner.L_level."): v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "step_1.pt")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    inputs = np.tile(np.arange(12) % 6 + 1, (3, 1))
    np.savez(tmp_path / "data.npz", inputs=inputs)
    words = ("certify", tmp_path / "step_1.pt", "--config", tmp_path / "config.json", "--data", tmp_path / "data.npz",
             *ESTIMATE)  # fmt: skip
    code, out, err = fpcheck(*words)
    assert code == 0, out + err
    assert "3 of 3 inputs settle" in out


def test_training_writes_a_model_that_can_be_certified(fpcheck, tmp_path):
    words = ("train", "s3", "--steps", "3", "--batch-size", "4", "--threads", "1", "--out", tmp_path)
    code, out, err = fpcheck(*words)
    assert code == 0, out + err
    assert "token accuracy" in out
    card = json.loads((tmp_path / "model" / "card.json").read_text())
    assert card["command"] == "fpcheck train s3 --steps 3 --batch-size 4 --threads 1"
    for folder in (tmp_path, tmp_path / "model"):
        assert fpcheck("certify", folder, "--inputs", "1", *ESTIMATE)[0] == 0
    # A second run has nothing left to train, and replaces the model.
    assert fpcheck(*words)[0] == 0


BAD_BLOCKS = """
import torch
from torch import nn

class Wrong(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.weight, self.drop = kind, nn.Parameter(torch.ones(4)), nn.Dropout(0.5)
        self.train(kind == "dropout")
        if kind == "nan":
            self.weight.data[1] = float("nan")
    def forward(self, z, x):
        out = 0.5 * z * self.weight + x
        return {"shape": out[..., :2], "dtype": out.bool(), "dropout": self.drop(out)}.get(self.kind, out)

shape, dtype, dropout, nan = (Wrong(k) for k in ("shape", "dtype", "dropout", "nan"))
number = 3
def raises(z, x): raise RuntimeError("boom")
def good(z, x): return 0.5 * z + x
"""


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["certify", "s33"], "did you mean 's3'"),
        (["certify", "nowhere.pt"], "pass --config|does not exist"),
        (["certify", "blocks.py"], "blocks.py:name_of_the_block"),
        (["certify", "missing.py:block"], "does not exist"),
        (["certify", "blocks.py:godo", "--state-shape", "4"], "did you mean 'good'"),
        (["certify", "blocks.py:number", "--state-shape", "4"], "is a int; expected a block"),
        (["certify", "blocks.py:good"], "--state-shape"),
        (["certify", "blocks.py:good", "--state-shape", "4,x"], "integers separated by commas"),
        (["certify", "blocks.py:good", "--state-shape", "0"], "positive integers"),
        (["certify", "blocks.py:shape", "--state-shape", "4"], "same shape in and out"),
        (["certify", "blocks.py:dtype", "--state-shape", "4"], "same dtype in and out"),
        (["certify", "blocks.py:dropout", "--state-shape", "4"], r"dropout 'drop' .*block.eval\(\)"),
        (["certify", "blocks.py:nan", "--state-shape", "4"], "weight weight holds 1 NaN"),
        (["certify", "blocks.py:raises", "--state-shape", "4"], "RuntimeError: boom"),
        (["certify", "broken.py:block"], "importing broken.py failed: SyntaxError"),
        (["certify", "s3", "--inputs", "0"], "inputs=0; expected at least 1"),
        (["certify", "s3", "--level", "estimate", "--rtol", "0"], "expected rtol > 0"),
        (["certify", "s3", "--level", "estimate", "--rtol", "nan"], "expected rtol > 0"),
        (["certify", "s3", "--rtol", "1e-5"], "rtol=1e-05: plays no part at --level bound; .* --level estimate"),
        (["certify", "s3", "--dtype", "float64"], "dtype=float64: plays no part at --level bound"),
        (["certify", "s3", "--max-steps", "0"], "max_steps=0"),
        (
            ["certify", "s3", "--level", "estimate", "--setting", "fast"],
            "setting=fast: plays no part at --level estimate",
        ),
        (["certify", "s3", "--level", "estimate", "--certificates", "c"], "certificates=c: plays no part"),
        (["certify", "s3", "--certificates", "blocks.py/below"], "certificates=.*cannot write there.* --certificates"),
        (["certify", "s3", "--out", "blocks.py/below"], "cannot write there"),
        (["certify", "truncated.pt", "--config", "config.json", "--data", "data.npz"], "truncated.pt"),
        (["certify", "pickle.pt", "--config", "config.json", "--data", "data.npz"], "pickle.pt"),
        (["certify", "whole.pt"], "pass --config FILE"),
        (["certify", "whole.pt", "--config", "config.json"], "pass --data FILE"),
        (["certify", "whole.pt", "--config", "config.json", "--data", "empty.npz"], "zero inputs"),
        (["certify", "whole.pt", "--config", "config.json", "--data", "config.json"], "expected an .npy or .npz"),
        (["certify", "whole.pt", "--config", "typo.json", "--data", "data.npz"], "did you mean 'hidden_size'"),
        (["train", "s33"], "did you mean 's3'"),
        (["train", "s3", "--steps", "0"], "steps=0; expected an integer >= 1"),
        (["train", "s3", "--out", "blocks.py/below"], "cannot write there"),
    ],
    ids=lambda v: " ".join(v[1:]) if isinstance(v, list) else None,
)
def test_bad_input_is_one_sentence_and_exit_code_2(fpcheck, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    Path("blocks.py").write_text(BAD_BLOCKS)
    Path("broken.py").write_text("def f(:")
    model = load("s3")
    state = {f"inner.{k}".replace("inner.block.", "inner.L_level."): v for k, v in model.state_dict().items()}
    torch.save(state, "whole.pt")
    Path("truncated.pt").write_bytes(Path("whole.pt").read_bytes()[:2000])
    torch.save({"model": Path("x")}, "pickle.pt")
    Path("config.json").write_text(json.dumps(model.config.to_dict()))
    Path("typo.json").write_text(json.dumps({**model.config.to_dict(), "hiden_size": 64}))
    np.savez("data.npz", inputs=np.ones((2, 12), dtype=np.int64))
    np.savez("empty.npz", inputs=np.ones((0, 12), dtype=np.int64))
    before = sorted(Path().rglob("*"))
    code, out, err = fpcheck(*words)
    assert code == 2, out + err
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    import re

    assert re.search(text, err), err
    # Nothing half-written: only Python's own bytecode cache may have appeared.
    assert [p for p in sorted(Path().rglob("*")) if "__pycache__" not in p.parts] == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; the case above covers a path below a file")
def test_a_read_only_folder_is_refused(fpcheck, tmp_path):
    tmp_path.chmod(0o500)
    assert fpcheck("certify", "s3", "--inputs", "1", "--out", tmp_path)[0] == 2


def test_the_installed_command_runs():
    command = Path(sys.executable).parent / "fpcheck"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fpcheck 0.")
    done = subprocess.run([command, "certify", "--no-such-option"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
