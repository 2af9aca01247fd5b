"""The theorems behind fpcheck, each with a derivation that SymPy and ball arithmetic have checked.

`python -m proofs` (or ``fpcheck prove``) checks them all. ``docs/theory/`` holds the readable form.
"""

from proofs.claims import Claim, Reals, Search, search
from proofs.errors import MalformedError, ProofError, RefutedError, UndecidedError
from proofs.frame import Constant, Fact, Hypothesis, NotChecked, Source, Symbol, Theorem
from proofs.registry import CHAPTERS, load, theorem_ids
from proofs.steps import (
    Enclosed,
    Extremum,
    Holds,
    Identity,
    Induction,
    Limit,
    Nonnegative,
    Root,
    Sign,
    Summed,
    Totals,
    ref,
)

__all__ = [
    "CHAPTERS",
    "Claim",
    "Constant",
    "Enclosed",
    "Extremum",
    "Fact",
    "Holds",
    "Hypothesis",
    "Identity",
    "Induction",
    "Limit",
    "MalformedError",
    "Nonnegative",
    "NotChecked",
    "ProofError",
    "Reals",
    "RefutedError",
    "Root",
    "Search",
    "Sign",
    "Source",
    "Summed",
    "Symbol",
    "Theorem",
    "Totals",
    "UndecidedError",
    "load",
    "ref",
    "search",
    "theorem_ids",
]
