"""Readable forms of the theorems: Markdown pages, one HTML file, one TeX file, and the graph of what rests on what."""

from proofs.write.graph import draw, edges
from proofs.write.html import html
from proofs.write.markdown import pages
from proofs.write.tex import tex

__all__ = ["draw", "edges", "html", "pages", "tex"]
