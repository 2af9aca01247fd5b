"""Table, summary, document and figures of a survey of spectra, made by hand."""

import json
import math

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.patches import Circle
from rich.console import Console

from fpcheck.report import (
    growth_figure,
    range_figure,
    stability_figure,
    survey_document,
    survey_summary,
    survey_table,
    write_report,
)
from fpcheck.spectral import Regime
from fpcheck.status import Status
from fpcheck.survey import Survey, SurveyRow


def row(index: int, **changes) -> SurveyRow:
    figures = {
        "index": index,
        "status": Status.CONVERGED,
        "fixed_point": "loop",
        "residual": 1e-14,
        "path": "dense",
        "converged": True,
        "radius": 0.5,
        "radius_error": 1e-13,
        "carry_radius": 0.25,
        "norm": 2.5,
        "norm_error": 1e-13,
        "norm_bound": 2.6001,
        "log_norm": 1.2,
        "log_norm_error": 1e-13,
        "log_norm_bound": 1.25,
        "numerical_radius": 1.9,
        "critical_step": 4.0,
        "critical_step_error": 1e-12,
        "best_step": 1.1,
        "best_rate": 0.4,
        "period": math.inf,
        "regime": Regime.CONTRACTIVE,
        "departure": 0.7,
        "kreiss": 2.0,
        "peak_growth": 2.5,
        "peak_step": 1,
        "contraction_steps": 4,
        "findings": ("contracting",),
        "advice": ("it contracts.",),
    }
    return SurveyRow(**{**figures, **changes})


def survey(*rows: SurveyRow, **changes) -> Survey:
    count = len(rows)
    lam = torch.tensor([0.3 + 0.4j, 0.3 - 0.4j, 0.2], dtype=torch.complex128)
    boundary = torch.exp(1j * torch.linspace(0, 6, 16, dtype=torch.float64))
    growth = torch.tensor([1.0, 2.5, 1.6, 1.1, 0.7], dtype=torch.float64)
    figures = {
        "target": "toy", "source": {"by": "hand"}, "rows": rows, "dtype": "float64", "n": 3,
        "failure_probability": 1e-6, "eigenvalues": (lam,) * count, "complete": True, "ranges": (boundary,) * count,
        "growth": (growth,) * count,
    }  # fmt: skip
    return Survey(**{**figures, **changes})


def text_of(result: Survey) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  # rich needs some file
    console.print(survey_table(result))
    console.file.close()
    return console.export_text()


def test_the_table_says_estimate_and_what_the_bounds_are_worth():
    text = text_of(survey(row(0), row(1, period=4.5, contraction_steps=None, carry_radius=None)))
    assert "level ESTIMATE" in text
    assert "exceeded with probability 1e-06 at most" in text
    # Bounds are rounded up: 2.6001 is not at most 2.600.
    cells = [line.split() for line in text.splitlines()[2:4]]
    assert cells[0][:12] == ["0", "settled", "0.5000", "1e-13", "0.250", "2.500", "2.601", "1.200", "1.250", "4.000",
                             "1.100", "0.4000"]  # fmt: skip
    assert cells[0][12:] == ["-", "2.50", "(1)", "4", "contracting"]
    # No carry, period 4.5, no number of steps found: absent figures are dashes.
    assert cells[1][4] == "-"
    assert cells[1][12:] == ["4.5", "2.50", "(1)", "-", "contracting"]


def test_the_summary_counts_findings_and_quotes_the_worst():
    rows = (row(0), row(1, radius=0.9, advice=("slow.",)), row(2, findings=("drift",), advice=("it drifts.",)))
    text = survey_summary(survey(*rows))
    assert "CONTRACTING: 2 of 3 inputs (0, 1). Input 1: slow." in text
    assert "DRIFT: 1 of 3 inputs (2). Input 2: it drifts." in text
    assert "NOT CONVERGED" not in text
    assert "not fixed points" not in text


def test_the_summary_owns_up():
    rows = (row(0), row(1, converged=False), row(2, fixed_point=None, residual=0.02))
    result = survey(*rows)
    assert not result.passed
    text = survey_summary(result)
    assert "NOT CONVERGED on inputs 1" in text
    assert "1 of 3 states are not fixed points (largest relative residual 2.0e-02)" in text


def test_the_document_is_strict_json():
    held = json.loads(json.dumps(survey_document(survey(row(0, kreiss=math.inf))), allow_nan=False))
    assert (held["schema"], held["level"], held["proved"]) == ("fpcheck.spectrum", "estimate", False)
    only = held["rows"][0]
    assert (only["kreiss"], only["period"], only["regime"]) == (None, None, "contractive")
    assert only["findings"] == ["contracting"]
    assert only["eigenvalues"][0] == [0.3, 0.4]
    assert only["growth"] == [1.0, 2.5, 1.6, 1.1, 0.7]


def test_the_discs_of_the_stability_figure_are_those_of_the_steps():
    axes = stability_figure(survey(row(0, critical_step=0.8), row(1))).axes[0]
    discs = [patch for patch in axes.patches if isinstance(patch, Circle)]
    # |1 - s (1 - l)| < 1 is the disc of radius 1/s around 1 - 1/s: s = 1, 0.5 and the smallest critical step, 0.8.
    assert [(disc.center[0], disc.radius) for disc in discs] == [(0, 1), (-1, 2), (pytest.approx(-0.25), 1.25)]


@pytest.mark.parametrize("figure", [stability_figure, range_figure, growth_figure])
def test_figures_draw_what_is_there_and_say_what_is_not(figure):
    full = figure(survey(row(0), row(1, radius=1.2)))
    bare = figure(survey(row(0), ranges=(torch.empty(0),), growth=(torch.empty(0),)))
    texts = [t.get_text() for t in bare.axes[0].texts]
    assert ("not computed" in texts) == (figure is not stability_figure)
    assert "not computed" not in [t.get_text() for t in full.axes[0].texts]
    assert not plt.get_fignums()


def test_a_survey_is_written_whole(tmp_path):
    written = write_report(survey(row(0)), tmp_path)
    assert sorted(p.name for p in written) == ["growth.png", "numerical-range.png", "spectrum.json", "stability.png"]
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in written if p.suffix == ".png")
