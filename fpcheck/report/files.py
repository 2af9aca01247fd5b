"""Writing results: either everything is there, or nothing new is."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from fpcheck.assess import Assessment
from fpcheck.bounds import Bounds
from fpcheck.errors import OutputError
from fpcheck.everywhere import Everywhere
from fpcheck.report.document import bounds_document, document, global_document, survey_document
from fpcheck.report.figures import (
    approach_figure,
    eigenvalue_figure,
    growth_figure,
    limits_figure,
    radii_figure,
    range_figure,
    residual_figure,
    stability_figure,
)
from fpcheck.survey import Survey

__all__ = ["certificate_path", "open_folder", "write_report"]


def open_folder(folder: Path, *, option: str = "out") -> Path:
    """Make sure that results can be written to ``folder``; call it before the work, so that none is lost.

    Args:
        folder: Made if it is not there.
        option: The option that named it, for the message.

    Raises:
        OutputError: It cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"{option}={folder}: cannot write there ({error.strerror}); choose another folder with --{option}"
        ) from error
    return folder


def certificate_path(folder: Path, target: str, index: int) -> Path:
    """The file of an input's certificate: ``s3-000.fpcert``; what a file name cannot hold becomes a dash."""
    stem = re.sub(r"[^\w.-]+", "-", target)
    return folder / f"{stem}-{index:03d}.fpcert"


def write_report(result: Assessment | Survey | Bounds | Everywhere, folder: Path) -> list[Path]:
    """Write the JSON document and the figures: ``assessment.json``, ``residuals.png`` and ``eigenvalues.png``; or
    ``spectrum.json``, ``stability.png``, ``numerical-range.png`` and ``growth.png``; or ``bounds.json``,
    ``approach.png``, ``radii.png`` and ``limits.png``; or ``global.json``.

    Files are made aside and moved into place at the end, so a failure leaves no half-written result.

    Returns:
        The paths written.

    Raises:
        OutputError: The folder cannot be written.
    """
    open_folder(folder)
    try:
        aside = Path(tempfile.mkdtemp(prefix=".fpcheck-", dir=folder))
        try:
            held, pictures = _parts(result)
            for name, text in held.items():
                (aside / name).write_text(json.dumps(text, indent=1, allow_nan=False) + "\n")
            for name, figure in pictures.items():
                figure.savefig(aside / name, dpi=150)
            names = [*held, *pictures]
            for name in names:
                os.replace(aside / name, folder / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"out={folder}: writing failed ({error}); choose another folder with --out") from error
    return [folder / name for name in names]


def _parts(result: Assessment | Survey | Bounds | Everywhere) -> tuple[dict[str, dict[str, Any]], dict[str, Figure]]:
    if isinstance(result, Assessment):
        pictures = {"residuals.png": residual_figure(result), "eigenvalues.png": eigenvalue_figure(result)}
        return {"assessment.json": document(result)}, pictures
    if isinstance(result, Everywhere):
        return {"global.json": global_document(result)}, {}
    if isinstance(result, Bounds):
        return {"bounds.json": bounds_document(result)}, {
            "approach.png": approach_figure(result),
            "radii.png": radii_figure(result),
            "limits.png": limits_figure(result),
        }
    return {"spectrum.json": survey_document(result)}, {
        "stability.png": stability_figure(result),
        "numerical-range.png": range_figure(result),
        "growth.png": growth_figure(result),
    }
