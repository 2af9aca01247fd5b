"""The way from a theorem to the code that relies on it, and back."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final

from proofs.errors import MalformedError

# "Theorem B2", "Theorems D5 and D6", "Theorems S1, S2 and A3".
_CITATION = re.compile(r"\bTheorems?\s+((?:[A-Z]\d+[a-z]?)(?:(?:,\s*|\s+and\s+|,\s+and\s+)[A-Z]\d+[a-z]?)*)")
_IDENTIFIER = re.compile(r"[A-Z]\d+[a-z]?")


@final
@dataclass(frozen=True)
class CodeLink:
    """A place in the package: file, name, and the line where the name is defined."""

    reference: str
    path: Path
    name: str
    line: int


def package_folder() -> Path:
    """The folder that holds the package ``fpcheck``."""
    spec = importlib.util.find_spec("fpcheck")
    if spec is None or spec.origin is None:
        raise MalformedError("the package fpcheck is not installed, so no reference to its code can be followed")
    return Path(spec.origin).parent.parent


def resolve(reference: str) -> CodeLink:
    """Follow ``fpcheck/spectral/damping.py:critical_step`` to its line; methods as ``Class.method``.

    Raises:
        MalformedError: no such file, or no such name in it.
    """
    file, colon, name = reference.partition(":")
    path = package_folder() / file
    if not colon or not name or not path.is_file():
        raise MalformedError(f"code={reference!r}: expected 'fpcheck/room/module.py:name' of an existing file")
    line = _definitions(path).get(name)
    if line is None:
        known = ", ".join(sorted(_definitions(path)))
        raise MalformedError(f"code={reference!r}: {file} defines no {name}; it has {known}")
    return CodeLink(reference, path, name, line)


@cache
def _definitions(path: Path) -> dict[str, int]:
    found: dict[str, int] = {}

    def walk(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[prefix + node.name] = node.lineno
                if isinstance(node, ast.ClassDef):
                    walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    if isinstance(target, ast.Name):
                        found[prefix + target.id] = node.lineno

    walk(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def citations(text: str) -> set[str]:
    """Identifiers of the theorems that a source text cites, as in "Theorem B2" or "Theorems D5 and D6"."""
    return {identifier for match in _CITATION.finditer(text) for identifier in _IDENTIFIER.findall(match.group(1))}


def citing_files(package: Path) -> Iterator[tuple[Path, set[str]]]:
    """Every module below a folder that cites a theorem, with what it cites."""
    for path in sorted(package.rglob("*.py")):
        found = citations(path.read_text(encoding="utf-8"))
        if found:
            yield path, found
