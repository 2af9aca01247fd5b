"""What every looped model here offers: an injection, a block, and a read-out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fpcheck.blocks.config import BackboneConfig
from fpcheck.blocks.layers import Linear, TokenTable
from fpcheck.errors import InputError

__all__ = ["LoopedModel"]


class LoopedModel(nn.Module, ABC):
    """A model of the form: tokens -> injection x, loop ``z <- block(z, x)``, logits = readout(z).

    Shapes: ``B`` samples, ``seq_len`` tokens, ``L = puzzle_tokens + seq_len`` positions, ``D`` channels.

    Attributes:
        block: The loop step ``(z, x) -> z'``.
        config: The configuration the model was built from.
        card: Where the weights come from; empty unless a stored model was loaded.
    """

    block: nn.Module
    card: Mapping[str, Any]

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.card = {}
        self.embed_tokens = TokenTable(config.vocab_size, config.hidden_size)
        if config.pos_encodings == "learned":
            self.embed_pos = TokenTable(config.positions, config.hidden_size)
        if config.puzzle_emb_ndim > 0:
            self.puzzle_emb = PuzzleTable(config.num_puzzle_identifiers, config.puzzle_emb_ndim)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.q_head = Linear(config.hidden_size, 2)
        # The official start: both halting logits at -5, whatever the state.
        nn.init.zeros_(self.q_head.weight)
        nn.init.constant_(self.q_head.bias, -5.0)

    def injection(self, inputs: Tensor, puzzle_identifiers: Tensor | None = None) -> Tensor:
        """Embed a batch of token sequences.

        Args:
            inputs: Token indices ``(B, seq_len)``, integers in ``[0, vocab_size)``. Shorter sequences are taken
                unless the configuration fixes the length.
            puzzle_identifiers: Puzzle indices ``(B,)``; required when the model has puzzle tokens.

        Returns:
            The injection ``(B, L, D)``, constant during a solve.

        Raises:
            InputError: Wrong type, shape or range; missing or superfluous puzzle identifiers.
        """
        config = self.config
        _check_indices("inputs", inputs, config.vocab_size, ndim=2)
        length = inputs.shape[1]
        if length > config.seq_len or (config.fixed_length and length != config.seq_len):
            expected = "exactly" if config.fixed_length else "at most"
            raise InputError(
                f"inputs.shape={tuple(inputs.shape)}; expected {expected} seq_len={config.seq_len} tokens a row"
            )
        vectors: Tensor = self.embed_tokens(inputs.long())
        if config.puzzle_emb_ndim > 0:
            vectors = torch.cat([self._puzzle_vectors(puzzle_identifiers, len(inputs)), vectors], dim=1)
        elif puzzle_identifiers is not None and config.num_puzzle_identifiers == 0:
            raise InputError("puzzle_identifiers were given, but this model has no puzzle tokens: leave them out")
        if config.pos_encodings == "learned":
            # Both tables have entries of size D^-1/2: the sum of two is scaled back by 2^-1/2.
            # 0.707106781 is the official code's constant, not a rounding of ours.
            vectors = 0.707106781 * (vectors + self.embed_pos.embedding_weight[: vectors.shape[1]])
        return config.hidden_size**0.5 * vectors

    def _puzzle_vectors(self, identifiers: Tensor | None, batch: int) -> Tensor:
        """Puzzle tokens ``(B, puzzle_tokens, D)``: each puzzle's vector, padded with zeros and cut into tokens."""
        config = self.config
        if identifiers is None:
            raise InputError("puzzle_identifiers=None; this model has puzzle tokens: pass indices of shape (B,)")
        _check_indices("puzzle_identifiers", identifiers, config.num_puzzle_identifiers, ndim=1)
        if len(identifiers) != batch:
            raise InputError(
                f"puzzle_identifiers.shape={tuple(identifiers.shape)}; expected ({batch},), one per row of inputs"
            )
        flat: Tensor = self.puzzle_emb(identifiers.long())
        flat = nn.functional.pad(flat, (0, config.puzzle_tokens * config.hidden_size - flat.shape[-1]))
        return flat.view(-1, config.puzzle_tokens, config.hidden_size)

    @abstractmethod
    def initial_state(self, x: Tensor, *, seed: int = 0) -> Tensor:
        """A start state for every sample of the injection ``x``."""

    def answer_state(self, z: Tensor) -> Tensor:
        """The part ``(B, L, D)`` of the state that the heads read."""
        return z

    def readout(self, z: Tensor) -> Tensor:
        """Logits ``(B, seq_len, vocab_size)`` of the content tokens."""
        logits: Tensor = self.lm_head(self.answer_state(z)[:, self.config.puzzle_tokens :])
        return logits

    def halt_logits(self, z: Tensor) -> Tensor:
        """The ACT head's ``(q_halt, q_continue)``, shape ``(B, 2)``; by default read at the first position."""
        answer = self.answer_state(z)
        from_first = self.config.q_logit_from_puzzle_emb
        where = answer[:, 0] if from_first else answer[:, self.config.puzzle_tokens :].mean(dim=1)
        logits: Tensor = self.q_head(where)
        return logits


class PuzzleTable(nn.Module):
    """One vector per puzzle. A parameter here; a buffer with its own optimiser in the official code."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(rows, width))

    def forward(self, index: Tensor) -> Tensor:
        """Rows ``index``, shape ``(B, width)``."""
        return nn.functional.embedding(index, self.weights)


def _check_indices(name: str, value: Tensor, limit: int, *, ndim: int) -> None:
    if not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} has type {found}; expected an integer tensor")
    if value.ndim != ndim or value.numel() == 0:
        shape = "(B, seq_len)" if ndim == 2 else "(B,)"
        raise InputError(f"{name}.shape={tuple(value.shape)}; expected {shape} with at least one sample and token")
    low, high = int(value.min()), int(value.max())
    if low < 0 or high >= limit:
        raise InputError(f"{name} holds values in [{low}, {high}]; expected [0, {limit})")
