"""The independent checker of certificate files: its own reader, its own arithmetic, nothing of the maker's.

`check` says whether the verdict of a file follows from the bounds that it records and, with ``full=True``, whether
these follow from its map, centre and metric.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fpcheck.check.document import Document, read
from fpcheck.check.full import full_lines
from fpcheck.check.lines import Line, Report
from fpcheck.check.quick import quick_lines

__all__ = ["Document", "Line", "Report", "check", "read"]


def check(path: Path | str, *, full: bool = False, progress: Callable[[str, int, int], None] | None = None) -> Report:
    """Check a certificate file.

    Args:
        path: The file.
        full: Recompute every bound from the file's map, centre and metric; else believe the recorded bounds.
        progress: Called with a stage, how much of it is done, and of how much.

    Returns:
        A report; ``report.accepted`` says the result, ``report.first_false`` why not.

    Raises:
        CertificateFileError: The file is damaged, or has what is not covered; nothing was decided.

    Guarantee: bound, rounding included.
    """
    held = read(Path(path))
    lines = quick_lines(held)
    if full and all(line.holds for line in lines):
        lines += full_lines(held, progress or (lambda stage, done, total: None))
    return Report(Path(path), "full" if full else "quick", held.verdict, tuple(lines))
