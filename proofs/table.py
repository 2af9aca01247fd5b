"""The one table of constants: from the theorems, rounded outward, to ``fpcheck/constants.py``."""

import math
from pathlib import Path
from textwrap import fill

import sympy as sp

from proofs.errors import MalformedError
from proofs.frame import Constant, Theorem
from proofs.registry import load, theorem_ids

FILE = "fpcheck/constants.py"

_HEAD = '''"""Constants on which bounds rest, each a float64 rounded to the side that keeps the bound sound.

Written by ``python -m proofs --write-constants`` from the theorems in ``proofs/``; never edited by hand. An upper bound
is rounded up, a lower bound down. ``docs/theory/constants.md`` leads from each name to its derivation.
"""

from typing import Final

'''


def round_up(value: sp.Rational) -> float:
    """The smallest float64 at or above an exact rational."""
    nearest = float(value)
    return nearest if _exact(nearest) >= value else math.nextafter(nearest, math.inf)


def round_down(value: sp.Rational) -> float:
    """The largest float64 at or below an exact rational."""
    nearest = float(value)
    return nearest if _exact(nearest) <= value else math.nextafter(nearest, -math.inf)


def _exact(value: float) -> sp.Rational:
    return sp.Rational(*value.as_integer_ratio())


def outward(constant: Constant) -> float:
    """The float64 that goes into the table.

    Raises:
        RefutedError: the constant is not where its theorem says.
    """
    low, high = constant.enclosure()
    return round_up(high) if constant.side == "upper" else round_down(low)


def constants() -> list[tuple[Theorem, Constant]]:
    """Every constant with its theorem, in reading order.

    Raises:
        MalformedError: two constants share a name.
    """
    found: list[tuple[Theorem, Constant]] = []
    names: dict[str, str] = {}
    for identifier in theorem_ids():
        theorem = load(identifier)
        for constant in theorem.constants:
            if constant.name in names:
                raise MalformedError(f"constant {constant.name} is in theorems {names[constant.name]} and {theorem.id}")
            if not constant.name.isupper():
                raise MalformedError(f"constant {constant.name} of theorem {theorem.id}: expected capitals")
            names[constant.name] = theorem.id
            found.append((theorem, constant))
    return found


def source() -> str:
    """The text of ``fpcheck/constants.py``."""
    lines = [_HEAD]
    for theorem, constant in constants():
        side = "upper bound" if constant.side == "upper" else "lower bound"
        lines.append(f"{constant.name}: Final = {outward(constant)!r}\n")
        lines.append(fill(f'"""{constant.meaning}, {side}. Theorem {theorem.id}: {theorem.title}."""', 120) + "\n\n")
    names = sorted(constant.name for _, constant in constants())
    lines.append("__all__ = [\n" + "".join(f'    "{name}",\n' for name in names) + "]\n")
    return "".join(lines)


def write(root: Path) -> Path:
    """Write the table below ``root`` and return its path."""
    path = root / FILE
    path.write_text(source(), encoding="utf-8")
    return path
