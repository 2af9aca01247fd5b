"""Figures, document and progress of what was proved, on rows made by hand."""

import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from fpcheck.bounds import BoundRow, Bounds
from fpcheck.certify import Verdict
from fpcheck.cli import _progress
from fpcheck.report import (
    approach_figure,
    bounds_document,
    bounds_summary,
    limits_figure,
    open_folder,
    radii_figure,
    write_report,
)


def proved(index: int, radius: float, distances=(8.0, 4.0, 1.0, 0.25), entry: int | None = 2) -> BoundRow:
    return BoundRow(
        index,
        Verdict.PROVED_ATTRACTING,
        "",
        rate=0.5,
        ball_rate=0.9,
        radius=radius,
        relative_radius=radius / 100,
        relative_error=1e-15,
        entry_step=entry,
        entry_residual=None if entry is None else 1e-3,
        shares={"10 rms": 0.25, "2 softmax": 0.75},
        distances=distances,
        seconds=1.0,
    )


def unknown(index: int, reason: str = "it failed") -> BoundRow:
    return BoundRow(index, Verdict.UNKNOWN, reason)


def bounds(*rows: BoundRow) -> Bounds:
    return Bounds("toy", {"by": "hand"}, rows, ())


def test_the_approach_marks_the_first_state_inside():
    axes = approach_figure(bounds(proved(0, 0.1), unknown(1), proved(2, 0.1, (9.0, 0.0), 1))).axes[0]
    marks = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    # The row's own entry, at most 1; the last row's distance of 0 has no place on the log scale, and is no line.
    assert [(*mark.get_xdata(), *mark.get_ydata()) for mark in marks] == [(2, 1.0), (1, 0.0)]
    assert "2 of 3 trajectories enter" in axes.get_title()
    assert axes.get_yscale() == "log"


def test_a_trajectory_outside_is_drawn_without_a_mark():
    axes = approach_figure(bounds(proved(0, 0.1, (8.0, 7.0), None))).axes[0]
    assert "0 of 1 trajectories enter" in axes.get_title()
    assert not [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]


def test_radii_are_sorted_and_the_missing_are_counted():
    left, right = radii_figure(bounds(proved(0, 0.3), unknown(1), proved(2, 0.1))).axes
    assert list(left.lines[0].get_ydata()) == [0.1, 0.3]
    assert list(right.lines[0].get_ydata()) == [0.001, 0.003]
    assert [label.get_text() for label in left.get_xticklabels()] == ["2", "0"]
    assert "(1 more without a ball)" in left.get_xlabel()
    # The zero line tells more unless the radii are far apart.
    assert left.get_yscale() == "linear"
    assert radii_figure(bounds(proved(0, 0.3), proved(1, 1e-3))).axes[0].get_yscale() == "log"


def test_shares_are_stacked_in_the_order_of_the_step_beside_their_input():
    figure = limits_figure(bounds(unknown(0), proved(1, 0.3)))
    axes = figure.axes[0]
    softmax, norm = axes.patches
    # Node 2 comes before node 10, and input 1 has line 1 although input 0 has none.
    assert (softmax.get_x(), softmax.get_width(), norm.get_x(), norm.get_width()) == (0, 0.75, 0.75, 0.25)
    assert softmax.get_y() + softmax.get_height() / 2 == pytest.approx(1)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["2 softmax", "10 RMSNorm"]


@pytest.mark.parametrize("draw", [approach_figure, radii_figure, limits_figure])
def test_without_a_proof_the_figures_say_so(draw):
    figure = draw(bounds(unknown(0)))
    assert any("no " in text.get_text() for axes in figure.axes for text in axes.texts)
    figure.canvas.draw()


def test_the_document_is_strict_json_and_the_report_writes_it(tmp_path):
    result = bounds(proved(0, 0.1, (math.inf, 0.5), 1), unknown(1))
    held = json.loads(json.dumps(bounds_document(result), allow_nan=False))
    assert held["rows"][0]["distances"] == [None, 0.5]
    assert held["rows"][0]["shares"] == {"10 rms": 0.25, "2 softmax": 0.75}
    assert held["rows"][1]["radius"] is None
    written = write_report(result, tmp_path)
    assert sorted(path.name for path in written) == ["approach.png", "bounds.json", "limits.png", "radii.png"]
    assert json.loads((tmp_path / "bounds.json").read_text()) == held


def test_the_summary_names_every_verdict_that_was_given_and_every_reason():
    text = bounds_summary(bounds(proved(0, 0.1), unknown(1), unknown(3), unknown(2, "other")))
    assert text.splitlines()[0].startswith("PROVED ATTRACTING on 1 of 4 inputs: there is a fixed point")
    assert "UNKNOWN on 3 of 4 inputs" in text
    assert "PROVED TO EXIST" not in text
    assert "Not proved attracting on 2 input(s) (1, 3): it failed." in text
    assert "Not proved attracting on 1 input(s) (2): other." in text


def test_a_folder_is_refused_under_the_name_of_its_option(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"certificates=.*--certificates"):
        open_folder(tmp_path / "file" / "below", option="certificates")


def test_the_time_left_is_told_when_a_step_takes_a_minute():
    clock = iter(np.arange(0.0, 1e6, 60.0))
    bar = _progress(Console(file=io.StringIO(), force_terminal=True))
    bar.get_time = lambda: next(clock)
    line = bar.add_task("certify", total=8, figures="")
    for done in (1, 2, 3):
        bar.update(line, completed=done)
    assert bar.tasks[0].time_remaining is not None
