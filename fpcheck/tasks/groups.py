"""State tracking: read group elements one by one, answer with the product so far.

Elements of S_n are the permutations of 1..n in lexicographic order (index 0 is the identity); A_n keeps the
even ones in the same order. ``(a * b)(i) = a(b(i))``; label j is ``x_1 * ... * x_j``. Tokens are
``index + 1``; 0 is padding. This is the official FPRM data format.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fpcheck.errors import InputError, nearest

__all__ = ["StateTracking"]

# One sequence in this many is held out, chosen by a hash of the sequence itself.
_HELD_OUT_SHARE = 16
# Knuth's multiplicative hash: an odd constant near 2^32 / golden ratio spreads consecutive integers evenly.
_HASH = 2654435761


@dataclass(frozen=True)
class StateTracking:
    """Prefix products in a permutation group, generated without end.

    Args:
        group: ``"S3"``, ``"A4"``, ``"S5"``...: symmetric or alternating, degree 2 to 6.
        length: Tokens per sequence.

    A sequence is held out, or not, by a hash of its own tokens: training never sees a held-out sequence,
    whatever the seeds.
    """

    group: str = "S3"
    length: int = 12
    name: str = field(default="state-tracking", init=False)

    def __post_init__(self) -> None:
        valid = [f"{kind}{n}" for kind in "SA" for n in range(2, 7) if (kind, n) != ("A", 2)]
        if self.group not in valid:
            raise InputError(f"group={self.group!r}; " + nearest(self.group, valid))
        if self.length < 1:
            raise InputError(f"length={self.length}; expected an integer >= 1")

    @cached_property
    def elements(self) -> Tensor:
        """The group's permutations, one row each, values from 0."""
        rows = list(itertools.permutations(range(int(self.group[1:]))))
        if self.group[0] == "A":
            rows = [r for r in rows if sum(a > b for a, b in itertools.combinations(r, 2)) % 2 == 0]
        return torch.tensor(rows)

    @cached_property
    def product(self) -> Tensor:
        """Multiplication table: ``product[a, b]`` is the index of ``a * b``."""
        index = {tuple(row): i for i, row in enumerate(self.elements.tolist())}
        composed = self.elements[:, self.elements]  # [a, b, i] = a(b(i))
        return torch.tensor([[index[tuple(c)] for c in row] for row in composed.tolist()])

    @property
    def vocab_size(self) -> int:
        """Group elements and the padding token."""
        return len(self.elements) + 1

    def labels(self, inputs: Tensor) -> Tensor:
        """Prefix products of token sequences ``(B, length)``, as tokens."""
        running = inputs[:, 0] - 1
        out = [running]
        for column in (inputs[:, 1:] - 1).T:
            running = self.product[running, column]
            out.append(running)
        return torch.stack(out, dim=1) + 1

    def is_held_out(self, inputs: Tensor) -> Tensor:
        """Which sequences belong to the held-out split, ``(B,)`` booleans."""
        code = torch.zeros(len(inputs), dtype=torch.int64)
        for column in inputs.T:
            code = (code * self.vocab_size + column) % (1 << 31)
        return (code * _HASH % (1 << 32)) // ((1 << 32) // _HELD_OUT_SHARE) == 0

    def sample(self, count: int, generator: torch.Generator, *, held_out: bool = False) -> tuple[Tensor, Tensor]:
        """Draw sequences of one split.

        Args:
            count: Number of sequences.
            generator: Source of randomness.
            held_out: The held-out split instead of the training split.

        Returns:
            ``(inputs, labels)``, each ``(count, length)`` int64 tokens.
        """
        inputs = torch.empty(0, self.length, dtype=torch.int64)
        while len(inputs) < count:
            share = _HELD_OUT_SHARE if held_out else 2
            drawn = torch.randint(1, self.vocab_size, (share * count, self.length), generator=generator)
            inputs = torch.cat([inputs, drawn[self.is_held_out(drawn) == held_out]])
        inputs = inputs[:count]
        return inputs, self.labels(inputs)

    def to_dict(self) -> dict[str, object]:
        """Key/value pairs that :func:`fpcheck.tasks.task_from_dict` reads back."""
        return {"kind": self.name, "group": self.group, "length": self.length}
