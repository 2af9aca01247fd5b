"""One HTML file with every theorem, every step, and the results of the last check. Formulas are MathML: no network."""

from collections.abc import Mapping
from html import escape
from importlib.resources import files

import jinja2
import latex2mathml.converter
from markupsafe import Markup

from proofs.prove import Report
from proofs.steps import latex
from proofs.table import outward
from proofs.write.graph import draw
from proofs.write.text import by_chapter, numbered, parts, users_of


def formula(text: str, *, display: bool = False) -> Markup:
    """A formula as MathML."""
    return Markup(latex2mathml.converter.convert(text, display="block" if display else "inline"))


def prose(text: str) -> Markup:
    """Text with formulas in ``$...$``."""
    return Markup("").join(
        formula(piece) if kind == "formula" else Markup(escape(piece)) for kind, piece in parts(text)
    )


def html(reports: Mapping[str, Report] | None = None) -> str:
    """The page; with ``reports`` each step carries its outcome."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(prose=prose, formula=formula, latex=latex, outward=outward)
    environment.globals.update(numbered=numbered, users_of=users_of)
    template = environment.from_string(files("proofs.write").joinpath("page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        chapters=list(by_chapter()),
        graph=Markup(draw()),
        reports=reports or {},
        outcomes={i: {s.label: s for s in r.steps} for i, r in (reports or {}).items()},
    )
