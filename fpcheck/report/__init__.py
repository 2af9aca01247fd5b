"""What a person sees: tables, figures, JSON."""

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
    training_figure,
)
from fpcheck.report.files import certificate_path, open_folder, write_report
from fpcheck.report.table import (
    bounds_summary,
    bounds_table,
    global_summary,
    global_table,
    summary,
    survey_summary,
    survey_table,
    table,
)

__all__ = [
    "approach_figure",
    "bounds_document",
    "bounds_summary",
    "bounds_table",
    "certificate_path",
    "document",
    "eigenvalue_figure",
    "global_document",
    "global_summary",
    "global_table",
    "growth_figure",
    "limits_figure",
    "open_folder",
    "radii_figure",
    "range_figure",
    "residual_figure",
    "stability_figure",
    "summary",
    "survey_document",
    "survey_summary",
    "survey_table",
    "table",
    "training_figure",
    "write_report",
]
