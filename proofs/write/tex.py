"""One TeX file with every theorem and every step, for a reader with LaTeX."""

import re
from collections.abc import Iterator

from proofs.frame import Theorem
from proofs.steps import latex
from proofs.write.text import by_chapter, numbered, parts

_HEAD = r"""\documentclass[11pt]{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{amsmath,amssymb,amsthm}
\usepackage[margin=2.4cm]{geometry}
\usepackage[hidelinks]{hyperref}
\setlength{\parindent}{0pt}\setlength{\parskip}{4pt}
\allowdisplaybreaks
\title{fpcheck: theorems and their derivations}\date{}
\begin{document}\maketitle
Each step was decided by SymPy or by ball arithmetic; what they do not settle is listed with each theorem.
\tableofcontents
"""

_SPECIAL = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"} | {
    c: "\\" + c for c in "&%#_{}"
} | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # fmt: skip


def prose(text: str) -> str:
    """Text with formulas, everything else escaped."""
    return "".join(
        f"${piece}$" if kind == "formula" else re.sub(r"[\\^~&%#_{}<>|]", lambda m: _SPECIAL[m.group()], piece)
        for kind, piece in parts(text)
    )


def tex() -> str:
    """The document."""
    lines = [_HEAD]
    for _, heading, question, theorems in by_chapter():
        lines.append(rf"\section{{{prose(heading)}}}" + "\n" + prose(question) + "\n")
        for theorem in theorems:
            lines += _theorem(theorem)
    return "\n".join([*lines, r"\end{document}", ""])


def _theorem(theorem: Theorem) -> Iterator[str]:
    title = f"{theorem.id}. {prose(theorem.title)}"
    yield rf"\subsection*{{{title}}}\addcontentsline{{toc}}{{subsection}}{{{title}}}"
    yield rf"\textbf{{Theorem.}} \emph{{{prose(theorem.statement)}}}" + "\n"
    yield prose(theorem.plain) + "\n"
    yield r"\begin{itemize}\setlength{\itemsep}{0pt}"
    for s in theorem.symbols:
        yield rf"\item ${latex(s.symbol)}$: {prose(s.meaning)}" + (
            f" ({prose(s.assumption())})" if s.assumption() else ""
        )
    for h in theorem.hypotheses:
        yield rf"\item ({prose(h.label)}) {prose(h.text)}"
    for f in theorem.facts:
        yield rf"\item ({prose(f.label)}) {prose(f.text)} ({prose(f.source)}{'' if f.axiom else '; not checked here'})"
    yield r"\end{itemize}"
    yield r"\begin{enumerate}"
    for label, step in numbered(theorem):
        yield rf"\item {f'({prose(label)}) ' if step.label else ''}{prose(step.text)}"
        yield rf"\[ {step.formula()} \]"
        yield rf"{{\footnotesize {prose(step.how())}}}"
    yield r"\end{enumerate}"
    if theorem.unchecked:
        yield r"\textbf{Not checked by the machine.}"
        yield r"\begin{itemize}" + "".join(rf"\item {prose(text)}" for text in theorem.unchecked) + r"\end{itemize}"
    for remark in theorem.remarks:
        yield r"\textit{Remark.} " + prose(remark) + "\n"
    yield rf"{{\footnotesize Source: {prose(str(theorem.source))}.}}" + "\n"
