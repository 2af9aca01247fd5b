"""Pictures of an assessment. Figures are made without pyplot, so nothing global changes."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from fpcheck.assess import Assessment
from fpcheck.survey import Survey

__all__ = ["eigenvalue_figure", "growth_figure", "range_figure", "residual_figure", "stability_figure"]

_GOOD, _BAD = "#1f6f8b", "#c0392b"


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
