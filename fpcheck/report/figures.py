"""Pictures of an assessment. Figures are made without pyplot, so nothing global changes."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from fpcheck.assess import Assessment

__all__ = ["eigenvalue_figure", "residual_figure"]

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
