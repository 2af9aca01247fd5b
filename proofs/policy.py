"""What code with bounds may not do: hold a number of its own, or cite a theorem that does not exist."""

import ast
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from proofs.links import citing_files, package_folder
from proofs.registry import theorem_ids

# Rooms whose figures are bounds, or decide by bounds.
ROOMS = ("certify", "check", "adjoint", "halting")
# Numbers that carry no theorem: exact in every arithmetic and part of any formula.
PLAIN = (0, 1, 2, 0.5)
# Comments that begin so, on the line or above the statement: an engineering choice, such as an iteration limit, on
# which no bound rests; or a number that defines the function in question.
MARKS = ("# choice:", "# definition:")
# Calls whose whole numbers count roundings.
COUNTING = ("inflate", "gamma")


@final
@dataclass(frozen=True)
class OwnNumber:
    """A literal in the code that no theorem stands behind."""

    line: int
    text: str


def own_numbers(source: str) -> list[OwnNumber]:
    """Numeric literals that are neither plain, nor an exponent of 2, an index or a count, nor marked by a comment."""
    tree = ast.parse(source)
    choices = _marked(source, tree)
    allowed = {id(node) for node in _structural(tree)}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or type(node.value) not in (int, float, complex):
            continue
        if id(node) not in allowed and node.value not in PLAIN and node.lineno not in choices:
            found.append(OwnNumber(node.lineno, ast.unparse(node)))
    return found


def _marked(source: str, tree: ast.AST) -> set[int]:
    """Lines that a mark covers: its own, and all of the statement that begins below its block of comments."""
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = {line for line, text in comments.items() if text.startswith(MARKS)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt):
            continue
        above = node.lineno - 1
        while above in comments and not source.splitlines()[above - 1].split("#")[0].strip():
            if comments[above].startswith(MARKS):
                lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            above -= 1
    return lines


def _structural(tree: ast.AST) -> Iterator[ast.AST]:
    """Literals in subscripts, as exponents of 2, which are exact, and as counts of roundings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in COUNTING:
            for argument in node.args[1 if node.func.id == "inflate" else 0 :]:
                yield from ast.walk(argument)
        if isinstance(node, ast.Subscript):
            yield from ast.walk(node.slice)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            base = node.left
            if isinstance(base, ast.Constant) and base.value in (2, 2.0):
                yield from ast.walk(node.right)


def violations(root: Path | None = None) -> list[str]:
    """Every breach in the rooms with bounds, and every citation in the package of a theorem that does not exist."""
    package = (root or package_folder()) / "fpcheck"
    found = []
    for room in ROOMS:
        for path in sorted([*(package / room).rglob("*.py"), *package.glob(f"{room}.py")]):
            found += [
                f"{path.relative_to(package.parent)}:{number.line} holds the number {number.text}; import it from "
                f"fpcheck.constants, or mark the line '{MARKS[0]} why' if no bound rests on it"
                for number in own_numbers(path.read_text(encoding="utf-8"))
            ]
    known = set(theorem_ids())
    for path, cited in citing_files(package):
        found += [f"{path} cites Theorem {i}, which does not exist" for i in sorted(cited - known)]
    return found
