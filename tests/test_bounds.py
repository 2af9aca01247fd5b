"""The walk with proofs, and the command's level bound: on a loop that contracts, and on its partner that does not."""

import json
import math
from pathlib import Path

import pytest
import torch

import fpcheck as fp
from fpcheck.bounds import bound
from fpcheck.cli import main
from fpcheck.report import bounds_table
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
    # 2 z turned round the circle: a fixed point at 0 that repels, proved to exist and no more.
    x = torch.zeros(1, 4, dtype=torch.float64)
    result = bound(Target("double", lambda z, x: 2 * z.roll(1, -1) + 0.1 * torch.tanh(z) + x, x, x + 1e-9))
    assert not result.passed
    (row,) = result.rows
    assert row.verdict is fp.Verdict.PROVED_EXISTS
    assert "spectral radius" in row.reason
    # The eigenvalues 2 times the fourth roots of 1, near enough: 2 itself leaves no damping step.
    assert "no damping cures it" in row.reason
    assert row.entry_residual is None


def test_a_flip_is_told_which_damping_helps():
    # z -> -1.5 z: the multiplier 1 - 2.5 s is inside the circle for s < 2 / 2.5 = 0.8.
    x = torch.zeros(1, 3, dtype=torch.float64)
    loop = fp.Loop(lambda z, x: -1.5 * torch.tanh(z) + x, x)
    found = fp.certify(loop, x)
    assert found.verdict is fp.Verdict.PROVED_EXISTS
    assert "s below about 0.800" in found.reason
    assert fp.certify(loop.damped(0.7), x).verdict is fp.Verdict.PROVED_ATTRACTING
    assert fp.certify(loop.damped(0.9), x).verdict is not fp.Verdict.PROVED_ATTRACTING


def test_the_worked_example_is_proved_and_its_partner_is_not(capsys):
    with pytest.raises(SystemExit) as ended:
        run("certify", f"{EXAMPLE}:block", "--inputs", "1", "--level", "bound", "--json")
    assert ended.value.code == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"][0]["verdict"] == "proved attracting"
    with pytest.raises(SystemExit) as ended:
        run("certify", f"{EXAMPLE}:unscaled", "--inputs", "1", "--level", "bound")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "PROVED ATTRACTING on 0 of 1" in said
    assert "Not proved on 1 input" in said


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
