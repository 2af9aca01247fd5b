"""The pages of ``docs/theory``: one per chapter, an index with the graph, and the table of constants."""

import re
from collections.abc import Iterator

from proofs.frame import Theorem
from proofs.registry import chapter_of, file_of
from proofs.steps import latex
from proofs.table import constants, outward
from proofs.write.text import by_chapter, numbered, parts, users_of

_NOTE = "<!-- Written by `make docs` from proofs/; edit the theorem, not this page. -->\n\n"


def pages() -> dict[str, str]:
    """File name to text."""
    result = {"index.md": _index(), "constants.md": _constants()}
    for number, (chapter, heading, question, theorems) in enumerate(by_chapter(), start=1):
        body = "\n".join(_theorem(t) for t in theorems)
        result[f"{chapter}.md"] = f"{_NOTE}# {number}. {heading}\n\n{question}\n\n{body}"
    return result


def _index() -> str:
    lines = [
        _NOTE + "# Which theorems does fpcheck rest on?\n",
        "In the order in which they are learned. Each has a derivation whose steps SymPy and ball arithmetic have "
        "checked; what they do not settle is listed with the theorem, with a citation. `fpcheck prove` checks all of "
        "them, `fpcheck prove B2` one. [How a proof is read](../proofs.md) explains the kinds of steps.\n",
        "All constants in one table: [constants.md](constants.md).\n",
    ]
    for number, (chapter, heading, question, theorems) in enumerate(by_chapter(), start=1):
        lines.append(f"## {number}. [{heading}]({chapter}.md)\n\n{question}\n")
        lines += [f"- [{t.id}]({chapter}.md#{t.id.lower()}) {_plain(t.title)}" for t in theorems]
        lines.append("")
    lines += [
        "## What rests on what\n",
        "An arrow leads from a theorem to one that builds on it.\n",
        "![](graph.svg)\n",
    ]
    return "\n".join(lines)


def _constants() -> str:
    lines = [
        _NOTE + "# Where does each constant come from?\n",
        "`fpcheck/constants.py` is written from this table. The float64 is the nearest one on the safe side.\n",
        "| name | float64 | side | exact | what | theorem |",
        "|---|---|---|---|---|---|",
    ]
    for theorem, constant in constants():
        exact = f"${latex(constant.value)}$"
        if constant.at is not None:
            exact += f", ${latex(constant.at.expr)} = 0$"
        link = f"[{theorem.id}]({chapter_of(theorem.id)}.md#{theorem.id.lower()})"
        lines.append(
            f"| `{constant.name}` | `{outward(constant)!r}` | {constant.side} | {_cell(exact)} | "
            f"{_cell(_plain(constant.meaning))} | {link} |"
        )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    r"""A bar inside a formula would end the cell."""
    return re.sub(r"(?<!\\)\|", r"\\vert ", text)


def _plain(text: str) -> str:
    """Escape what Markdown would read as markup, outside formulas."""
    escaped = []
    for kind, piece in parts(text):
        if kind == "formula":
            escaped.append(f"${piece.strip()}$")
        else:
            escaped.append(re.sub(r"([*_<\[\]`])", r"\\\1", piece))
    return "".join(escaped)


def _theorem(theorem: Theorem) -> str:
    return "\n".join(_lines(theorem)) + "\n"


def _lines(theorem: Theorem) -> Iterator[str]:
    yield f'<a id="{theorem.id.lower()}"></a>'
    yield f"## {theorem.id}. {_plain(theorem.title)}\n"
    yield f"**Theorem.** {_plain(theorem.statement)}\n"
    yield f"**In words.** {_plain(theorem.plain)}\n"
    yield "**Symbols.**\n"
    for symbol in theorem.symbols:
        notes = [n for n in (symbol.assumption(), f"`{symbol.code}` in the code" if symbol.code else "") if n]
        yield f"- ${latex(symbol.symbol)}$: {_plain(symbol.meaning)}" + (f" ({'; '.join(notes)})" if notes else "")
    yield ""
    if theorem.hypotheses:
        yield "**Hypotheses.**\n"
        for h in theorem.hypotheses:
            yield f"- ({h.label}) {_plain(h.text)}" + (
                f": ${_relation(h.relation, latex(h.expr))}$" if h.expr is not None else ""
            )
        yield ""
    if theorem.facts:
        yield "**Known facts used.**\n"
        for f in theorem.facts:
            tail = "" if f.axiom else "; not checked here"
            yield f"- ({f.label}) {_plain(f.text)}: ${_relation(f.relation, latex(f.expr))}$ ({_plain(f.source)}{tail})"
        yield ""
    yield "**Derivation.**\n"
    for number, (label, step) in enumerate(numbered(theorem), start=1):
        name = f" ({label})" if step.label else ""
        yield f"{number}.{name} {_plain(step.text)}\n"
        yield f"   ```math\n   {step.formula()}\n   ```\n"
        yield f"   *{_plain(step.how())}*\n"
    if theorem.constants:
        yield "**Constants.**\n"
        for c in theorem.constants:
            yield f"- `{c.name}` = ${latex(c.value)}$, between {c.lo} and {c.hi}: {_plain(c.meaning)}"
        yield ""
    yield (
        "**Not checked by the machine.** "
        + ("\n\n" + "\n".join(f"- {_plain(text)}" for text in theorem.unchecked) if theorem.unchecked else "Nothing.")
        + "\n"
    )
    if theorem.claims:
        yield "**Searched for counterexamples.**\n"
        for claim in theorem.claims:
            yield f"- {_plain(claim.name)}" + (" (equality attained or approached)" if claim.sharp else "")
        yield ""
    for remark in theorem.remarks:
        yield f"*Remark.* {_plain(remark)}\n"
    last = [f"Source: {_plain(str(theorem.source))}."]
    if theorem.uses:
        last.append("Builds on " + ", ".join(_link(i) for i in theorem.uses) + ".")
    if users := users_of(theorem):
        last.append("Used by " + ", ".join(_link(i) for i in users) + ".")
    if theorem.code:
        last.append("Code: " + ", ".join(_code(reference) for reference in theorem.code) + ".")
    path = file_of(theorem.id)
    last.append(
        f"File: [proofs/theorems/{path.parent.name}/{path.name}](../../proofs/theorems/{path.parent.name}/{path.name})."
    )
    yield " ".join(last) + "\n"


def _relation(relation: str, formula: str) -> str:
    return f"{formula} " + {"zero": "= 0", "nonnegative": r"\ge 0", "positive": "> 0"}[relation]


def _link(identifier: str) -> str:
    return f"[{identifier}]({chapter_of(identifier)}.md#{identifier.lower()})"


def _code(reference: str) -> str:
    file, _, name = reference.partition(":")
    return f"[`{name}`](../../{file})"
