"""The walk with proofs, and the command's level bound: on a loop that contracts, and on its partner that does not."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

import fpcheck as fp
from fpcheck.bounds import bound
from fpcheck.certify.settings import Fast, Sharp
from fpcheck.cli import main
from fpcheck.report import bounds_summary, bounds_table
from fpcheck.target import Data, Target, find_target

EXAMPLE = Path(__file__).parent.parent / "examples" / "my_block.py"


def contraction(gain: float) -> Target:
    """tanh(gain * z_shifted + x): for gain < 1 a contraction with that rate, everywhere."""
    x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Target("tanh", lambda z, x: torch.tanh(gain * z.roll(1, -1) + x), x, torch.zeros_like(x))


def test_a_contraction_is_proved_with_a_rate_that_it_has():
    result = bound(contraction(0.5))
    assert result.passed
    assert result.level == "bound"
    for row, found in zip(result.rows, result.certificates, strict=True):
        assert row.verdict is fp.Verdict.PROVED_ATTRACTING
        # The spectral radius is a lower bound on any proved rate.
        J = fp.jacobian(fp.Loop(contraction(0.5).block, contraction(0.5).x).sample(row.index), found.centre)[0]
        assert float(torch.linalg.eigvals(J).abs().max()) <= row.rate < 1
        assert row.entry_residual is not None
        assert row.stable is None  # no read-out
        # Every start in the ball converges to a point within the error bound of the centre.
        loop = fp.Loop(contraction(0.5).block, contraction(0.5).x).sample(row.index)
        z = found.centre + 0.99 * found.euclidean_radius * torch.ones_like(found.centre) / math.sqrt(6)
        assert found.holds(z)
        for _ in range(200):
            z = loop(z)
        # 200 steps at rate 1/2 leave rounding only: some units of 1e-16 beside the proved error.
        assert float((z - found.centre).norm()) <= found.euclidean_error_bound + 1e-15


def test_an_expansion_is_not_proved_attracting():
    # 2 z turned round the circle: a fixed point at 0 that repels, with an eigenvalue of modulus 2 as witness.
    x = torch.zeros(1, 4, dtype=torch.float64)
    result = bound(Target("double", lambda z, x: 2 * z.roll(1, -1) + 0.1 * torch.tanh(z) + x, x, x + 1e-9))
    assert not result.passed
    (row,) = result.rows
    assert row.verdict is fp.Verdict.REFUTED
    assert "spectral radius" in row.reason
    # The eigenvalues 2 times the fourth roots of 1, near enough: 2 itself leaves no damping step.
    assert "no damping cures it" in row.reason
    assert row.entry_residual is None
    # The rate that a Newton map has near its fixed point says nothing about the loop.
    assert row.rate is None
    assert row.distances == ()


def test_the_trajectory_is_followed_into_the_ball():
    result = bound(contraction(0.5))
    for row, found in zip(result.rows, result.certificates, strict=True):
        loop = fp.Loop(contraction(0.5).block, contraction(0.5).x).sample(row.index)
        z = torch.zeros(1, 6, dtype=torch.float64)
        for distance in row.distances:
            # The P-norm is at least |v| / |L^-1|, so a bound on it is too.
            assert distance * found.radius * found.metric.inverse_norm >= float((z - found.centre).norm())
            assert found.holds(z) == (distance * found.radius <= found.radius)
            z = loop(z)
        assert row.entry_step == next(k for k, distance in enumerate(row.distances) if distance <= 1)
        assert row.distances[-1] <= 1e-3 < row.distances[-2]


def test_a_trajectory_that_never_enters_has_no_entry():
    # Two steps at rate 1/2 do not bring a start of distance 1e6 anywhere near.
    target = contraction(0.5)
    far = Target("far", lambda z, x: 0.5 * z + 0.1 * torch.tanh(z) + x, target.x, target.z0 + 1e6)
    result = bound(far, max_steps=2)
    assert result.passed  # an accelerated solver finds the point
    for row in result.rows:
        assert row.entry_step is None
        assert len(row.distances) == 2


def test_what_limits_the_radius_adds_up():
    found = find_target(f"{EXAMPLE}:block", Data(inputs=1))
    (row,) = bound(found).rows
    assert sum(row.shares.values()) == pytest.approx(1, abs=1e-12)  # some additions of shares rounded to 1e-16
    assert [name.partition(" ")[2] for name in row.shares] == [
        "centred_rms",
        "product",
        "softmax",
        "centred_rms",
        "relu",
    ]
    # Nothing bends in a linear loop, so nothing limits the radius.
    x = torch.ones(1, 3, dtype=torch.float64)
    assert bound(Target("linear", lambda z, x: 0.5 * z + x, x, 0 * x)).rows[0].shares == {}


def test_a_read_out_that_is_not_linear_leaves_the_proof_standing():
    x = torch.randn(1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def target(readout):
        return Target("tanh", lambda z, x: torch.tanh(0.5 * z.roll(1, -1) + x), x, torch.zeros_like(x), readout=readout)

    bent = bound(target(lambda z: torch.sigmoid(z)))
    assert bent.passed
    assert bent.certificates[0].decisions is None
    assert (bent.rows[0].stable, bent.rows[0].stable_when_halting) == (None, None)
    assert "read-out is not linear (sigmoid" in bent.rows[0].undecided
    assert "Answers not certified on 1 input(s): the read-out is not linear" in bounds_summary(bent)
    assert "not covered" in list(bounds_table(bent).columns[7].cells)
    # The partner: the same answers, as logits.
    straight = bound(target(lambda z: 3 * z))
    assert straight.rows[0].stable == 1.0
    assert straight.rows[0].undecided == ""
    assert "not certified" not in bounds_summary(straight)


def test_a_loop_that_did_not_settle_is_said_not_to_have():
    x = torch.full((1, 2), 0.1, dtype=torch.float64)
    result = bound(Target("drift", lambda z, x: z + x, x, x), max_steps=200)
    (row,) = result.rows
    assert row.verdict is fp.Verdict.UNKNOWN
    assert row.reason.startswith("the loop did not settle (DIVERGING); where it got to, ")


def test_a_flip_is_told_which_damping_helps():
    # z -> -1.5 z: the multiplier 1 - 2.5 s is inside the circle for s < 2 / 2.5 = 0.8.
    x = torch.zeros(1, 3, dtype=torch.float64)
    loop = fp.Loop(lambda z, x: -1.5 * torch.tanh(z) + x, x)
    found = fp.certify(loop, x)
    assert found.verdict is fp.Verdict.PROVED_EXISTS
    assert "s below about 0.800" in found.reason
    assert fp.certify(loop.damped(0.7), x).verdict is fp.Verdict.PROVED_ATTRACTING
    assert fp.certify(loop.damped(0.9), x).verdict is not fp.Verdict.PROVED_ATTRACTING


def test_the_command_proves_by_default_and_writes_its_figures(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        run("certify", f"{EXAMPLE}:block", "--inputs", "2", "--json", "--out", str(tmp_path / "o"))
    assert ended.value.code == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["level"], document["passed"]) == ("bound", True)
    assert [row["verdict"] for row in document["rows"]] == ["proved attracting"] * 2
    # No terminal: a line per input instead of a bar.
    assert re.match(r"input 0: proved attracting \(\d+ s\)\ninput 1: proved attracting \(\d+ s\)\n", err)
    written = {path.name: path for path in (tmp_path / "o").iterdir()}
    assert sorted(written) == ["approach.png", "bounds.json", "limits.png", "radii.png"]
    assert json.loads(written["bounds.json"].read_text()) == document
    for name, path in written.items():
        # PNG files with something on them: more than a blank canvas compresses to.
        assert name == "bounds.json" or (path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 15_000)


def test_the_command_writes_a_certificate_per_proved_input(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        run("certify", f"{EXAMPLE}:strong", "--inputs", "2", "--setting", "fast", "--certificates", str(tmp_path / "c"))
    assert ended.value.code == 1  # not both attract; both have a fixed point
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "my_block.py-strong-000.fpcert",
        "my_block.py-strong-001.fpcert",
    ]
    assert "STATISTICAL: 1 of 2 sampled inputs are certified" in capsys.readouterr().out


def test_an_unproved_input_has_no_certificate(tmp_path):
    with pytest.raises(SystemExit):
        run("certify", f"{EXAMPLE}:unscaled", "--inputs", "1", "--certificates", str(tmp_path / "c"))
    assert list((tmp_path / "c").iterdir()) == []


def test_a_certificate_that_cannot_be_written_is_named_and_stops_nothing(capsys, monkeypatch, tmp_path):
    def refuse(certificate, path, *, loop):
        raise fp.UnsupportedOperatorError("operator=odd has no words")

    monkeypatch.setattr("fpcheck.cli.save", refuse)
    with pytest.raises(SystemExit) as ended:
        run("certify", f"{EXAMPLE}:block", "--inputs", "1", "--setting", "fast", "--certificates", str(tmp_path / "c"))
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert "PROVED ATTRACTING on 1 of 1" in out
    assert "No certificate file for input 0: operator=odd has no words" in err


def test_the_sharp_setting_has_the_larger_ball():
    found = find_target(f"{EXAMPLE}:block", Data(inputs=1))
    fast, sharp = (bound(found, setting=setting).rows[0] for setting in (Fast(), Sharp()))
    assert fast.radius < sharp.radius


def test_the_worked_examples_partner_is_not_proved(capsys):
    with pytest.raises(SystemExit) as ended:
        run("certify", f"{EXAMPLE}:unscaled", "--inputs", "1", "--level", "bound")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "PROVED ATTRACTING on 0 of 1" in said
    assert "UNKNOWN on 1 of 1" in said
    assert "Not proved attracting on 1 input(s) (0): the loop did not settle (DIVERGING)" in said


def run(*words: str) -> None:
    import sys
    from unittest.mock import patch

    with patch.object(sys, "argv", ["fpcheck", *words]):
        main()


def test_what_is_printed_still_holds():
    # Rates and errors are rounded up, radii down.
    result = bound(contraction(0.5))
    _, _, rates, radii, inner, errors, *_ = (list(column.cells) for column in bounds_table(result).columns)
    for i, row in enumerate(result.rows):
        assert float(rates[i]) >= row.rate
        assert float(radii[i]) <= row.radius
        assert float(inner[i]) <= row.relative_radius
        assert float(errors[i]) >= row.relative_error


def test_a_block_with_an_unknown_operator_is_refused_by_name():
    x = torch.zeros(1, 3, dtype=torch.float64)
    target = Target("odd", lambda z, x: 0.5 * torch.special.i0(z) + x, x, x)
    with pytest.raises(fp.UnsupportedOperatorError, match="i0"):
        bound(target)


def test_one_sample_is_asked_for():
    loop = fp.Loop(contraction(0.5).block, contraction(0.5).x)
    with pytest.raises(fp.FpcheckError, match="expected one sample"):
        fp.certify(loop, contraction(0.5).x)


def test_a_state_that_is_not_finite_is_refused():
    loop = fp.Loop(contraction(0.5).block, contraction(0.5).x).sample(0)
    with pytest.raises(fp.FpcheckError, match="NaN or inf"):
        fp.certify(loop, torch.full((1, 6), math.nan, dtype=torch.float64))


def test_the_worked_example_has_a_ball():
    found = find_target(f"{EXAMPLE}:block", Data(inputs=1))
    assert bound(found).rows[0].relative_radius > 0


def test_the_command_proves_for_all_states(capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        run("certify", f"{EXAMPLE}:block", "--level", "global", "--inputs", "2", "--out", str(tmp_path))
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "PROVED BOUNDED on 2 of 2 inputs" in printed
    held = json.loads((tmp_path / "global.json").read_text())
    assert [row["verdict"] for row in held["rows"]] == ["proved bounded"] * 2
    for row in held["rows"]:
        # The residual stream is halved: z / 2 + x plus a bounded branch.
        assert 0.5 <= row["rate"] < 1
        assert row["start"] <= row["radius"]


def test_a_residual_stream_that_is_handed_on_is_not_proved_bounded(capsys):
    with pytest.raises(SystemExit) as ended:
        run("certify", f"{EXAMPLE}:unscaled", "--level", "global")
    assert ended.value.code == 1
    assert "not below 1" in capsys.readouterr().out
