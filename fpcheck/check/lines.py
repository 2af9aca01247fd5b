"""What a check compares, line by line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

__all__ = ["Line", "Report"]


@final
@dataclass(frozen=True)
class Line:
    """One comparison.

    Attributes:
        name: What is compared.
        recorded: What the file says.
        recomputed: What the checker found.
        theorem: Which theorem makes the comparison a proof; empty for digests.
        holds: Whether the recorded figure follows.
    """

    name: str
    recorded: str
    recomputed: str
    theorem: str
    holds: bool

    @property
    def text(self) -> str:
        """In one line."""
        behind = f" (Theorem {self.theorem})" if self.theorem else ""
        return f"{self.name}: recorded {self.recorded}, recomputed {self.recomputed}{behind}"


@final
@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        path: The file.
        level: "quick" or "full".
        verdict: What the file claims.
        lines: All comparisons, in order.
    """

    path: Path
    level: str
    verdict: str
    lines: tuple[Line, ...]

    @property
    def accepted(self) -> bool:
        """Whether every line holds, and there are some."""
        return bool(self.lines) and all(line.holds for line in self.lines)

    @property
    def first_false(self) -> Line | None:
        """The first line that does not hold."""
        return next((line for line in self.lines if not line.holds), None)
