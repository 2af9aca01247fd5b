"""Pictures of assessments, spectra and bounds. Figures are made without pyplot, so nothing global changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from fpcheck.assess import Assessment
from fpcheck.bounds import BoundRow, Bounds
from fpcheck.report.table import readable
from fpcheck.status import Status
from fpcheck.survey import Survey

__all__ = [
    "approach_figure",
    "eigenvalue_figure",
    "growth_figure",
    "limits_figure",
    "radii_figure",
    "range_figure",
    "residual_figure",
    "stability_figure",
    "training_figure",
]

_FAILED = (*(s.name.lower() for s in Status if s is not Status.CONVERGED), "adjoint_failed")

_GOOD, _BAD = "#1f6f8b", "#c0392b"


def training_figure(log: list[dict[str, float]]) -> Figure:
    """Loss, gradient norm, iterations and failed samples of a training run against its steps.

    Args:
        log: From :func:`fpcheck.train.read_log`. What a kind of training does not have is left out.
    """
    panels = [
        ("loss and accuracy", ("loss", "accuracy"), False),
        ("gradient norm, before clipping", ("gradient",), True),
        ("iterations of the slowest sample", ("loop_steps", "adjoint_steps"), False),
        ("samples that did not converge", _FAILED, False),
    ]
    panels = [(title, tuple(k for k in keys if any(k in row for row in log)), log_scale)
              for title, keys, log_scale in panels]  # fmt: skip
    panels = [panel for panel in panels if panel[1]]
    figure = Figure(figsize=(7, 2.2 * len(panels)), layout="constrained")
    for axes, (title, keys, log_scale) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for key in keys:
            rows = [row for row in log if key in row]
            axes.plot([row["step"] for row in rows], [row[key] for row in rows], lw=1, label=key.replace("_", " "))
        axes.set_title(title, fontsize=9)
        axes.set_yscale("log" if log_scale else "linear")
        axes.legend(fontsize=7, frameon=False, ncols=3)
        axes.grid(alpha=0.2)
    axes.set_xlabel("optimiser steps")
    return figure


def residual_figure(result: Assessment) -> Figure:
    """Relative residual against loop steps on a log scale, one line per input."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(result.rows):
        column = result.history[:, i].numpy()
        column = column[~np.isnan(column)]
        # A residual of exactly zero has no place on a log scale.
        steps = np.flatnonzero(column > 0)
        axes.plot(steps, column[steps], color=_GOOD if row.attracting else _BAD, lw=1, alpha=0.7)
    axes.axhline(result.rtol, color="0.4", lw=0.8, ls="--")
    axes.annotate("halting tolerance", (0.99, result.rtol), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                  fontsize=8, color="0.4")  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("loop steps")
    axes.set_ylabel("relative residual |F(z) - z| / |F(z)|")
    good = sum(row.attracting for row in result.rows)
    axes.set_title(
        f"{result.target}: {good} of {len(result.rows)} inputs settle (ESTIMATE, {result.dtype})", fontsize=10
    )
    axes.plot([], [], color=_GOOD, label="settles on an attracting point")
    axes.plot([], [], color=_BAD, label="does not")
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.2)
    return figure


def eigenvalue_figure(result: Assessment) -> Figure:
    """Eigenvalues of the loop's Jacobian against the unit circle, all inputs over each other."""
    figure = Figure(figsize=(5.6, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.add_patch(Circle((0, 0), 1, fill=False, color="0.3", lw=1))
    axes.axvline(1, color="0.6", lw=0.8, ls=":")
    for row, values in zip(result.rows, result.eigenvalues, strict=True):
        color = _GOOD if row.attracting else _BAD
        axes.plot(values.real, values.imag, ".", ms=2.5, color=color, alpha=0.35)
        top = values[torch.isclose(values.abs(), values[0].abs(), rtol=1e-9)]
        axes.plot(top.real, top.imag, "o", ms=5, mfc="none", color=color, alpha=0.8)
    reach = max(1.1, 1.05 * float(result.eigenvalues.abs().max()))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.set_xlabel("real part")
    axes.set_ylabel("imaginary part")
    axes.set_title(f"{result.target}: eigenvalues of the loop (ESTIMATE)\nrings: dominant; right of the dotted line "
                   "damping cannot help", fontsize=10)  # fmt: skip
    axes.grid(alpha=0.2)
    return figure


def stability_figure(result: Survey) -> Figure:
    """Eigenvalues with the discs that they must lie in to be stable at damping steps 1, 0.5 and the critical one.

    A step s is stable where ``|1 - s (1 - l)| < 1``: inside the disc of radius 1 / s around 1 - 1 / s. All discs touch
    the point 1 from the left.
    """
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes = figure.subplots()
    values = torch.cat(result.eigenvalues)
    steps = [row.critical_step for row in result.rows if row.fixed_point is not None and row.critical_step > 0]
    discs = [(1.0, "0.25", "-", "step 1: the plain loop"), (0.5, "0.55", "--", "step 0.5")]
    if steps:
        discs.append((min(steps), "#b8860b", "-.", f"critical step {min(steps):.3g}, the least of all inputs"))
    for s, color, style, label in discs:
        axes.add_patch(Circle((1 - 1 / s, 0), 1 / s, fill=False, color=color, lw=1, ls=style, label=label))
    axes.axvline(1, color="0.6", lw=0.8, ls=":", label="right of here no step is stable")
    for row, lam in zip(result.rows, result.eigenvalues, strict=True):
        color = _GOOD if row.radius < 1 else _BAD
        axes.plot(lam.real, lam.imag, ".", ms=3, color=color, alpha=0.4)
        top = lam[torch.isclose(lam.abs(), lam[0].abs(), rtol=1e-9)]
        axes.plot(top.real, top.imag, "o", ms=6, mfc="none", color=color, alpha=0.9)
    reach = 1.15 * max(1.0, float(values.abs().max()))
    axes.set_xlim(-reach, reach)
    axes.set_ylim(-reach, reach)
    axes.set_aspect("equal")
    axes.set_xlabel("real part")
    axes.set_ylabel("imaginary part")
    kept = "all" if result.complete else f"the {max(len(lam) for lam in result.eigenvalues)} outermost"
    axes.set_title(f"{result.target}: {kept} eigenvalues of {len(result.rows)} inputs (ESTIMATE)\nrings: dominant",
                   fontsize=10)  # fmt: skip
    axes.legend(fontsize=8, loc="lower left", framealpha=0.9)
    axes.grid(alpha=0.2)
    return figure


def range_figure(result: Survey) -> Figure:
    """Boundaries of the numerical ranges, around the eigenvalues: what single steps do, and what many do."""
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes = figure.subplots()
    axes.add_patch(Circle((0, 0), 1, fill=False, color="0.25", lw=1, label="unit circle"))
    drawn = [i for i, boundary in enumerate(result.ranges) if len(boundary)]
    for i in drawn:
        boundary = torch.cat([result.ranges[i], result.ranges[i][:1]])
        color = _GOOD if result.rows[i].radius < 1 else _BAD
        axes.plot(boundary.real, boundary.imag, color=color, lw=1, alpha=0.7)
        axes.plot(result.eigenvalues[i].real, result.eigenvalues[i].imag, ".", ms=2, color=color, alpha=0.3)
    if not drawn:
        axes.annotate("not computed", (0.5, 0.5), xycoords="axes fraction", ha="center")
    axes.set_aspect("equal")
    axes.autoscale_view()
    axes.set_xlabel("real part")
    axes.set_ylabel("imaginary part")
    axes.set_title(f"{result.target}: numerical range of the Jacobian (ESTIMATE)\nits right end is the log-norm mu_2",
                   fontsize=10)  # fmt: skip
    axes.legend(fontsize=8, loc="lower left", framealpha=0.9)
    axes.grid(alpha=0.2)
    return figure


def growth_figure(result: Survey) -> Figure:
    """Largest growth of a perturbation over k steps, against what the spectral radius alone would say."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    drawn = [i for i, curve in enumerate(result.growth) if len(curve)]
    for i in drawn:
        row, curve = result.rows[i], result.growth[i]
        k = torch.arange(len(curve))
        color = _GOOD if row.radius < 1 else _BAD
        axes.plot(k, curve, color=color, lw=1, alpha=0.8)
        axes.plot(k, row.radius ** k.double(), color=color, lw=0.7, ls=":", alpha=0.6)
    if not drawn:
        axes.annotate("not computed", (0.5, 0.5), xycoords="axes fraction", ha="center")
    axes.axhline(1, color="0.4", lw=0.8, ls="--")
    axes.plot([], [], color=_GOOD, label="|J^k|_2")
    axes.plot([], [], color=_GOOD, lw=0.7, ls=":", label="rho^k")
    axes.set_yscale("log")
    axes.set_xlabel("loop steps k")
    axes.set_ylabel("growth of a perturbation")
    axes.set_title(f"{result.target}: transient growth (ESTIMATE, {result.dtype})", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    axes.grid(alpha=0.2)
    return figure


def approach_figure(result: Bounds) -> Figure:
    """Distance of each input's trajectory from the centre of its ball, over the radius: at most 1 means inside."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    drawn = [row for row in result.rows if row.distances]
    for row in drawn:
        values = np.array(row.distances)
        # A distance of exactly zero has no place on a log scale.
        steps = np.flatnonzero(values > 0)
        axes.plot(steps, values[steps], color=_GOOD if row.entry_step is not None else _BAD, lw=1, alpha=0.6)
        if row.entry_step is not None:
            axes.plot(row.entry_step, values[row.entry_step], "o", ms=4, color=_GOOD)
    entered = [row.entry_step for row in drawn if row.entry_step is not None]
    axes.axhline(1, color="0.4", lw=0.8, ls="--")
    axes.annotate("edge of the certified ball", (0.99, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                  fontsize=8, color="0.4")  # fmt: skip
    if drawn:
        axes.plot([], [], "o", ms=4, color=_GOOD, label="first state proved to converge")
        axes.legend(fontsize=8, frameon=False, loc="lower left")
    else:
        axes.annotate("no input was proved attracting", (0.5, 0.6), xycoords="axes fraction", ha="center")
    axes.set_yscale("log")
    axes.set_xlabel("loop steps")
    axes.set_ylabel("distance from the centre / radius of the ball")
    axes.set_title(f"{result.target}: {len(entered)} of {len(result.rows)} trajectories enter their ball (BOUND)",
                   fontsize=10)  # fmt: skip
    axes.grid(alpha=0.2)
    return figure


def radii_figure(result: Bounds) -> Figure:
    """Radii of the certified balls, sorted: in the metric, and of the Euclidean ball inside over the state's norm."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _sorted(left, result, lambda row: row.radius, "radius in the metric |v|_P")
    _sorted(right, result, lambda row: row.relative_radius, "Euclidean radius / norm of the state")
    figure.suptitle(f"{result.target}: radii of the certified balls (BOUND)", fontsize=10)
    return figure


def _sorted(axes: Axes, result: Bounds, figure_of: Callable[[BoundRow], float | None], label: str) -> None:
    held = sorted((value, row.index) for row in result.rows if (value := figure_of(row)) is not None and value > 0)
    values = [value for value, _ in held]
    axes.plot(range(len(held)), values, "o-", ms=4, lw=0.8, color=_GOOD)
    if held:
        middle = float(np.median(values))
        axes.axhline(middle, color="0.4", lw=0.8, ls="--")
        axes.annotate(f"median about {middle:.2g}", (0.02, middle), xycoords=("axes fraction", "data"), va="bottom",
                      fontsize=8, color="0.4")  # fmt: skip
        if values[-1] > 30 * values[0]:  # choice: below that the zero line tells more
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.1 * values[-1])
    else:
        axes.set_yticks([])
        axes.annotate("no ball was proved", (0.5, 0.5), xycoords="axes fraction", ha="center")
    missing = len(result.rows) - len(held)
    axes.set_xlabel("inputs, sorted by radius" + (f" ({missing} more without a ball)" if missing else ""))
    if len(held) <= 24:  # choice: as many numbers as fit
        axes.set_xticks(range(len(held)), [str(index) for _, index in held])
    axes.set_ylabel(label)
    axes.grid(alpha=0.2)


def limits_figure(result: Bounds) -> Figure:
    """What limits each radius: by node, its share of what the Jacobian's bound grows by over the ball."""
    drawn = [row for row in result.rows if row.shares]
    figure = Figure(figsize=(8, min(12.0, 1.6 + 0.28 * max(5, len(result.rows)))), layout="constrained")
    axes = figure.subplots()
    # The order of the step, for all rows alike; colours follow it.
    names = sorted({name for row in drawn for name in row.shares}, key=lambda name: int(name.partition(" ")[0]))
    colors = colormaps["tab20"].colors  # type: ignore[attr-defined]  # matplotlib does not type its listed maps
    left = np.zeros(len(drawn))
    for k, name in enumerate(names):
        shares = np.array([row.shares.get(name, 0.0) for row in drawn])
        axes.barh([row.index for row in drawn], shares, left=left, color=colors[k % len(colors)], label=readable(name))
        left += shares
    if drawn:
        axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title="node of the step",
                    title_fontsize=8)  # fmt: skip
    else:
        axes.annotate("no ball was proved", (0.5, 0.5), xycoords="axes fraction", ha="center")
    # An input without a ball has an empty line.
    axes.set_ylim(len(result.rows) - 0.5, -0.5)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the curvature over the ball")
    axes.set_ylabel("input")
    axes.set_title(f"{result.target}: what limits the radius (BOUND)", fontsize=10)
    return figure
