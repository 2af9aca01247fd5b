"""Which theorems there are, in the order in which a reader learns them."""

import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from proofs.errors import MalformedError

FOLDER = Path(__file__).parent / "theorems"

# Folder name to heading and to what the chapter answers; the order is the reader's.
CHAPTERS: dict[str, tuple[str, str]] = {
    "banach": (
        "Banach and the error of a computed state",
        "When does a loop settle, and how far is the state from where it settles?",
    ),
    "euclid": ("Why the Euclidean norm fails", "Why can a loop settle although one step can stretch distances?"),
    "metrics": ("Metrics and k steps", "In which norm, or after how many steps, does the loop contract?"),
    "prenorm": ("Normalisation", "How much can a normalisation stretch, and how does that change over a ball?"),
    "activations": ("Activations and gates", "How steep and how curved are the activations?"),
    "scaling": ("Residual scaling", "What does residual scaling promise for every weight value?"),
    "attention": ("Attention", "How much can attention stretch, and where is there no bound?"),
    "curvature": (
        "From a point to a ball",
        "How does the Jacobian change over a ball, and what follows from a bound on that?",
    ),
    "rounding": ("Rounding", "What is lost to floating point?"),
    "damping": ("Damping", "Which step sizes make a fixed point attracting, and when does none?"),
    "gradients": ("Gradients", "How wrong is a gradient taken through the fixed-point equation?"),
    "halting": ("Halting", "What does a small residual promise, and when does it lie?"),
    "decisions": ("Decision stability", "From when on can the answer no longer change?"),
    "statistics": ("Samples", "What does a sample of inputs say about all of them?"),
}

_FILE = re.compile(r"^([a-z]+)(\d+)([a-z]?)_[a-z0-9_]+\.py$")


@cache
def _files() -> dict[str, Path]:
    """Identifier to file, chapter by chapter, within a chapter by letter and number."""
    found: dict[str, Path] = {}
    for path in FOLDER.glob("*/*.py"):
        if path.parent.name not in CHAPTERS:
            raise MalformedError(f"{path.parent.name}/{path.name} is in no chapter; expected a folder of {[*CHAPTERS]}")
    for chapter in CHAPTERS:
        entries = []
        for path in (FOLDER / chapter).glob("*.py"):
            if path.name == "__init__.py":
                continue
            match = _FILE.match(path.name)
            if not match:
                raise MalformedError(f"file {path.name} in {chapter}: expected a name like b02_a_posteriori.py")
            letter, number, tail = match.groups()
            entries.append(((letter, int(number), tail), f"{letter.upper()}{int(number)}{tail}", path))
        for _, identifier, path in sorted(entries):
            if identifier in found:
                raise MalformedError(f"theorem {identifier} is in {found[identifier]} and in {path}")
            found[identifier] = path
    return found


def theorem_ids() -> tuple[str, ...]:
    """Every identifier, in reading order."""
    return tuple(_files())


def chapter_of(identifier: str) -> str:
    """The folder that holds a theorem."""
    return file_of(identifier).parent.name


def file_of(identifier: str) -> Path:
    """The file that holds a theorem.

    Raises:
        MalformedError: there is no such theorem; the message lists the nearest ones.
    """
    files = _files()
    if identifier not in files:
        near = [i for i in files if i[0] == identifier[:1].upper()] or list(files)
        raise MalformedError(f"theorem={identifier!r} does not exist; expected one of {', '.join(near)}")
    return files[identifier]


def load(identifier: str) -> Any:
    """The `Theorem` with this identifier.

    Raises:
        MalformedError: unknown, or its file holds another identifier.
    """
    path = file_of(identifier)
    module = importlib.import_module(f"proofs.theorems.{path.parent.name}.{path.stem}")
    theorem = module.THEOREM
    if theorem.id != identifier:
        raise MalformedError(f"{path.name} holds theorem {theorem.id}, its name says {identifier}")
    return theorem
