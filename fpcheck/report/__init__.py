"""What a person sees: tables, figures, JSON."""

from fpcheck.report.document import bounds_document, document, survey_document
from fpcheck.report.figures import (
    eigenvalue_figure,
    growth_figure,
    range_figure,
    residual_figure,
    stability_figure,
)
from fpcheck.report.files import open_folder, write_report
from fpcheck.report.table import bounds_summary, bounds_table, summary, survey_summary, survey_table, table

__all__ = [
    "bounds_document",
    "bounds_summary",
    "bounds_table",
    "document",
    "eigenvalue_figure",
    "growth_figure",
    "open_folder",
    "range_figure",
    "residual_figure",
    "stability_figure",
    "summary",
    "survey_document",
    "survey_summary",
    "survey_table",
    "table",
    "write_report",
]
