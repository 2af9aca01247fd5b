"""Text with formulas in ``$...$``, cut into its parts; and the lines that every readable form shows of a theorem."""

from collections.abc import Iterator
from typing import Literal

from proofs.errors import MalformedError
from proofs.frame import Theorem
from proofs.registry import CHAPTERS, chapter_of, load, theorem_ids
from proofs.steps import AbstractStep

Part = tuple[Literal["text", "formula"], str]


def parts(text: str) -> Iterator[Part]:
    """The text's pieces, each plain or a formula.

    Raises:
        MalformedError: an odd number of dollar signs.
    """
    pieces = text.split("$")
    if len(pieces) % 2 == 0:
        raise MalformedError(f"text={text!r} opens a formula that it does not close; expected $ in pairs")
    for index, piece in enumerate(pieces):
        if piece:
            yield ("formula" if index % 2 else "text"), piece


def by_chapter() -> Iterator[tuple[str, str, str, list[Theorem]]]:
    """Folder, heading, question and theorems of every chapter that has any, in reading order."""
    for chapter, (heading, question) in CHAPTERS.items():
        theorems = [load(i) for i in theorem_ids() if chapter_of(i) == chapter]
        if theorems:
            yield chapter, heading, question, theorems


def numbered(theorem: Theorem) -> Iterator[tuple[str, AbstractStep]]:
    """The steps with their labels."""
    for index, step in enumerate(theorem.steps):
        yield theorem.label_of(index), step


def users_of(theorem: Theorem) -> list[str]:
    """The theorems that build on this one."""
    return [i for i in theorem_ids() if theorem.id in load(i).uses]
