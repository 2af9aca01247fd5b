"""What a person sees: tables, figures, JSON."""

from fpcheck.report.document import document
from fpcheck.report.figures import eigenvalue_figure, residual_figure
from fpcheck.report.files import open_folder, write_report
from fpcheck.report.table import summary, table

__all__ = ["document", "eigenvalue_figure", "open_folder", "residual_figure", "summary", "table", "write_report"]
