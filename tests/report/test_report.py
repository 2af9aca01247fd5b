"""Tables, summaries, documents and files, on assessments made by hand."""

import json
import math

import pytest
import torch
from rich.console import Console

from fpcheck.assess import Assessment, Row, _reason, assess
from fpcheck.errors import InputError, OutputError
from fpcheck.report import document, open_folder, summary, table, write_report
from fpcheck.spectral import Regime
from fpcheck.status import Status
from fpcheck.target import Target

NAN = math.nan


def row(index: int, **changes) -> Row:
    figures = {
        "index": index,
        "status": Status.CONVERGED,
        "steps": 12,
        "residual": 1e-14,
        "fixed_point": "loop",
        "radius": 0.5,
        "radius_error": 1e-13,
        "norm": 2.5,
        "log_norm": 1.2,
        "critical_step": 1.3,
        "predicted_rate": 0.5,
        "measured_rate": 0.51,
        "measured_rate_error": 0.001,
        "residual_rate": 0.4,
        "residual_rate_error": 0.05,
        "regime": Regime.CONTRACTIVE,
        "right": 1.0,
        "attracting": True,
        "reason": "",
    }
    return Row(**{**figures, **changes})


def assessment(*rows: Row) -> Assessment:
    count = len(rows)
    history = torch.tensor([[1.0] * count, [0.1] * count, [NAN] * count], dtype=torch.float64)
    eigenvalues = torch.tensor([[0.5 + 0.1j, 0.5 - 0.1j, 0.2]] * count, dtype=torch.complex128)
    return Assessment("toy", {"by": "hand"}, rows, 1e-5, 100, "float64", history, eigenvalues)


def drifting(index: int) -> Row:
    return row(
        index,
        status=Status.DIVERGING,
        steps=None,
        fixed_point=None,
        residual=math.inf,
        measured_rate=None,
        measured_rate_error=None,
        right=0.75,
        attracting=False,
        reason="the loop did not settle: DIVERGING, no fixed point was found nearby",
    )


def text_of(result: Assessment) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  # rich needs some file
    console.print(table(result))
    console.file.close()
    return console.export_text()


def test_every_output_of_an_estimate_says_estimate():
    result = assessment(row(0))
    assert "level ESTIMATE" in text_of(result)
    assert summary(result).startswith("ESTIMATE:")
    assert document(result)["level"] == "estimate"
    assert document(result)["proved"] is False


def test_the_summary_counts_and_compares():
    result = assessment(row(0), row(1, radius=0.8, measured_rate=0.8, right=0.5), drifting(2))
    text = summary(result)
    assert not result.passed
    assert "2 of 3 inputs settle" in text
    # |0.51 / 0.5 - 1| = 0.02 on input 0, 0 on input 1.
    assert "rho 0.500 to 0.800, measured rate equal to rho within 2e-02 relative" in text
    assert "Answers: 1 of 3 inputs wholly right." in text
    assert "FAILED on 1 inputs (2): the loop did not settle: DIVERGING" in text
    assert Status.DIVERGING.text in text


def test_a_state_that_is_no_fixed_point_predicts_no_rate():
    line = next(line for line in text_of(assessment(drifting(0))).splitlines() if "diverging" in line)
    assert "no fixed point" in line
    assert "wrong (75% of positions right)" in line
    # steps, critical step, predicted and measured rate are absent, not zero.
    assert line.split().count("-") == 4


def test_the_document_is_strict_json_without_nan():
    held = json.loads(json.dumps(document(assessment(row(0), drifting(1))), allow_nan=False))
    assert held["rows"][1]["residual"] is None
    assert held["rows"][1]["status"] == "DIVERGING"
    assert held["rows"][0]["residuals"] == [1.0, 0.1]
    assert held["rows"][0]["eigenvalues"] == [[0.5, 0.1], [0.5, -0.1], [0.2, 0.0]]
    assert document(assessment(row(0)), eigenvalues=1)["rows"][0]["eigenvalues"] == [[0.5, 0.1]]


def test_a_report_replaces_the_last_one_and_leaves_nothing_else(tmp_path):
    for rows in ([row(0)], [row(0), row(1)]):
        written = write_report(assessment(*rows), tmp_path)
        assert sorted(written) == sorted(tmp_path.iterdir())
        assert len(json.loads((tmp_path / "assessment.json").read_text())["rows"]) == len(rows)


def test_a_failure_while_writing_leaves_the_old_report_whole(tmp_path, monkeypatch):
    write_report(assessment(row(0)), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fpcheck.report.files.eigenvalue_figure", full)
    with pytest.raises(OutputError, match=r"No space left.*--out"):
        write_report(assessment(row(0), row(1)), tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_folder_below_a_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write there"):
        open_folder(tmp_path / "file" / "below")


# ---- assess itself, on loops whose answer is known


def target(block, x, **more) -> Target:
    return Target("known", block, x, torch.zeros_like(x), **more)


def test_a_contraction_passes_and_prediction_meets_measurement():
    # z -> 0.5 z + x: rho = |J| = mu_2 = 0.5, fixed point 2 x; s_c = 2 (1 - 0.5) / (1 - 0.5)^2 = 4.
    x = torch.ones(2, 3, dtype=torch.float64)
    result = assess(target(lambda z, x: 0.5 * z + x, x))
    assert result.passed
    for r in result.rows:
        assert (r.radius, r.norm, r.log_norm) == pytest.approx((0.5, 0.5, 0.5), rel=1e-12)
        assert r.critical_step == pytest.approx(4.0, rel=1e-12)
        assert r.measured_rate == pytest.approx(0.5, rel=1e-6)
        # From 0 the state after k steps has residual |x| 0.5^k over |F(z)| = 2 |x| (1 - 0.5^(k+1)): below 1e-5
        # first at k = 16 (7.6e-6).
        assert r.steps == 16


def test_a_rotation_by_80_degrees_expands_and_only_a_damped_loop_settles():
    a = math.radians(80)
    turn = 1.2 * torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)
    (r,) = assess(target(lambda z, x: z @ turn.T + x, torch.ones(1, 2, dtype=torch.float64))).rows
    assert r.status is Status.DIVERGING
    assert not r.attracting
    # The fixed point is there and was found; its spectrum reads 1.2, not the 0.208 of a real power iteration.
    assert r.fixed_point == "found"
    assert r.radius == pytest.approx(1.2, rel=1e-12)
    assert r.measured_rate == pytest.approx(1.2, rel=1e-6)
    assert r.regime is Regime.NEIMARK_SACKER
    # l = 1.2 e^(i a): 2 (1 - Re l) / |1 - l|^2.
    lam = 1.2 * complex(math.cos(a), math.sin(a))
    assert r.critical_step == pytest.approx(2 * (1 - lam.real) / abs(1 - lam) ** 2, rel=1e-9)
    assert "the nearest fixed point that was found is neimark-sacker" in r.reason


def test_a_drift_is_never_attracting_however_small_its_relative_residual():
    x = torch.full((1, 2), 1e-7, dtype=torch.float64)
    result = assess(Target("drift", lambda z, x: z + x, x, torch.ones_like(x)), max_steps=200)
    assert float(result.history[-1]) < 1e-6
    assert result.rows[0].steps is None
    assert not result.passed


def test_answers_are_scored_where_labels_are():
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]], dtype=torch.float64)
    labels = torch.tensor([[0, 0, -100]])  # second wrong, third not scored
    result = assess(target(lambda z, x: 0.1 * z + x, x, readout=lambda z: z, labels=labels))
    assert result.rows[0].right == 0.5


def test_labels_need_a_readout():
    with pytest.raises(InputError, match="without a readout"):
        target(lambda z, x: z, torch.ones(1, 1), labels=torch.zeros(1, 1))


def test_modules_are_widened_and_the_original_is_left_alone():
    linear = torch.nn.Linear(3, 3)
    torch.nn.init.constant_(linear.weight, 0.1)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.map = linear

        def forward(self, z, x):
            return self.map(z) + x

    result = assess(target(Block(), torch.ones(1, 3)))
    assert result.dtype == "float64"
    # The float32 number nearest to 0.1, three times: 0.3000000045 (1e-9 apart from 0.3).
    assert result.rows[0].radius == pytest.approx(3 * float(torch.tensor(0.1)), rel=1e-14)
    assert linear.weight.dtype == torch.float32


def test_a_stall_at_the_rounding_of_float32_is_told_apart():
    text = _reason(Status.CYCLE, Regime.CONTRACTIVE, None, 1.3e-7, torch.float64)
    assert "--dtype own" in text
    assert "--dtype own" not in _reason(Status.CYCLE, Regime.CONTRACTIVE, None, 0.5, torch.float64)
    assert "--dtype own" not in _reason(Status.CYCLE, Regime.CONTRACTIVE, None, 1.3e-7, torch.float32)
    assert "--dtype own" not in _reason(Status.DIVERGING, Regime.CONTRACTIVE, None, 1e-7, torch.float64)
