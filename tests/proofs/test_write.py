"""The readable forms: pages that are up to date, formulas that convert, links that lead somewhere."""

import re
from html.parser import HTMLParser
from pathlib import Path

import networkx as nx
import pytest

import fpcheck
from proofs import load, theorem_ids
from proofs.errors import MalformedError
from proofs.write import draw, edges, html, pages, tex
from proofs.write.graph import order_of
from proofs.write.html import formula
from proofs.write.text import numbered, parts

THEORY = Path(fpcheck.__file__).parent.parent / "docs" / "theory"


def test_pages_are_the_generated_ones():
    written = {path.name: path.read_text() for path in THEORY.glob("*.md")}
    assert written == pages(), "run `make docs` (or `python docs/make.py --theory`)"


@pytest.mark.parametrize("identifier", theorem_ids())
def test_every_formula_converts_to_mathml(identifier: str):
    theorem = load(identifier)
    texts = [theorem.statement, theorem.plain, theorem.title, *theorem.remarks, *(h.text for h in theorem.hypotheses)]
    formulas = [piece for text in texts for kind, piece in parts(text) if kind == "formula"]
    formulas += [step.formula() for _, step in numbered(theorem)]
    for written in formulas:
        shown = re.sub(r"<[^>]*>", "", str(formula(written)))
        # A command that the converter does not know comes through with its backslash.
        assert "\\" not in shown, written
        assert written.count("{") == written.count("}"), written


def test_an_unknown_command_would_be_seen():
    assert "\\nosuchcommand" in re.sub(r"<[^>]*>", "", str(formula(r"\nosuchcommand x")))


class _Balanced(HTMLParser):
    """Raises at the first tag that is closed out of turn."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()

    def handle_starttag(self, tag, attrs):
        held = dict(attrs)
        self.ids |= {held["id"]} if held.get("id") else set()
        link = held.get("href") or held.get("xlink:href") or ""
        self.links |= {link[1:]} if link.startswith("#") else set()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_html_is_balanced_and_its_links_lead_somewhere():
    page = html()
    reader = _Balanced()
    reader.feed(page)
    assert reader.open == []
    theorems = set(theorem_ids())
    assert theorems <= reader.ids
    assert theorems <= reader.links
    missing = {link for link in reader.links - reader.ids if not re.fullmatch(r"[mpc0-9a-f]{8,}.*", link)}
    assert missing == set()
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"|rdf:resource="[^"]*"', "", page.split("<style>")[0])


def test_the_tex_has_every_theorem_and_balanced_environments():
    text = tex()
    for identifier in theorem_ids():
        assert f"{{{identifier}. " in text
    for environment in ("itemize", "enumerate", "document"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}")


def test_the_graph_has_no_circle_and_one_would_be_seen():
    order_of(edges())
    with pytest.raises(nx.NetworkXUnfeasible, match="rest on each other"):
        order_of([("B2", "D5"), ("D5", "B2")])


def test_the_drawing_shows_every_theorem():
    picture = draw()
    assert [i for i in theorem_ids() if f"#{i}" not in picture] == []


def test_an_odd_number_of_dollars_is_refused():
    with pytest.raises(MalformedError, match="in pairs"):
        list(parts("a $b c"))
