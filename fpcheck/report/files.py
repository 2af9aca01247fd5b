"""Writing results: either everything is there, or nothing new is."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from fpcheck.assess import Assessment
from fpcheck.errors import OutputError
from fpcheck.report.document import document
from fpcheck.report.figures import eigenvalue_figure, residual_figure

__all__ = ["open_folder", "write_report"]


def open_folder(folder: Path) -> Path:
    """Make sure that results can be written to ``folder``; call it before the work, so that none is lost.

    Raises:
        OutputError: It cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"out={folder}: cannot write there ({error.strerror}); choose another folder with --out"
        ) from error
    return folder


def write_report(result: Assessment, folder: Path) -> list[Path]:
    """Write ``assessment.json``, ``residuals.png`` and ``eigenvalues.png``.

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
            text = json.dumps(document(result), indent=1, allow_nan=False)
            (aside / "assessment.json").write_text(text + "\n")
            residual_figure(result).savefig(aside / "residuals.png", dpi=150)
            eigenvalue_figure(result).savefig(aside / "eigenvalues.png", dpi=150)
            names = ("assessment.json", "residuals.png", "eigenvalues.png")
            for name in names:
                os.replace(aside / name, folder / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"out={folder}: writing failed ({error}); choose another folder with --out") from error
    return [folder / name for name in names]
