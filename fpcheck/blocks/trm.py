"""The TRM recursion (Tiny Recursive Model): an answer state and a latent state refine each other."""

from __future__ import annotations

import torch
from torch import Tensor

from fpcheck.blocks.config import TRMConfig
from fpcheck.blocks.layers import LayerStack, check_state, truncated_normal_
from fpcheck.blocks.model import LoopedModel

__all__ = ["TRMBlock", "TRMModel"]


class TRMBlock(LayerStack):
    r"""One TRM segment as one loop step on the pair of states.

    With ``f(h, v)`` the post-norm layers applied to ``h + v``, do ``H_cycles`` times: ``L_cycles`` times
    ``z_L <- f(z_L, z_H + x)``, then ``z_H <- f(z_H, z_L)``. All ``H_cycles * (L_cycles + 1)`` calls are
    differentiated; the official training cuts the gradient before the last cycle.

    Shapes: state ``(B, 2, L, D)`` with ``z[:, 0] = z_H`` (answer) and ``z[:, 1] = z_L`` (latent); injection
    ``(B, L, D)``.
    """

    def __init__(self, config: TRMConfig) -> None:
        super().__init__(config, "post-norm")
        self.config = config

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Apply one segment.

        Args:
            z: States ``(B, 2, L, D)``.
            x: Injection ``(B, L, D)``.

        Returns:
            The next states, same shape and dtype.

        Raises:
            InputError: ``z`` or ``x`` has another shape.
        """
        check_state(self.config, z, x, (len(x), 2, *x.shape[1:]))
        answer, latent = z.unbind(1)
        for _ in range(self.config.H_cycles):
            for _ in range(self.config.L_cycles):
                # Summed in the official order: the injected (z_H + x) first.
                latent = self.run_layers(latent + (answer + x), 1.0, 1.0)
            answer = self.run_layers(answer + latent, 1.0, 1.0)
        return torch.stack([answer, latent], dim=1)


class TRMModel(LoopedModel):
    """TRM: token table, segment block on two states, heads on the answer state, ACT head at position 0.

    The official evaluation always runs ``halt_max_steps`` segments; :meth:`halt_logits` reads the head that it
    ignores there.
    """

    config: TRMConfig
    H_init: Tensor
    L_init: Tensor

    def __init__(self, config: TRMConfig) -> None:
        super().__init__(config)
        self.block = TRMBlock(config)
        for name in ("H_init", "L_init"):
            self.register_buffer(name, truncated_normal_(torch.empty(config.hidden_size), 1.0))

    def initial_state(self, x: Tensor, *, seed: int = 0) -> Tensor:
        """The stored start vectors at every position, ``(B, 2, L, D)``; ``seed`` has no effect."""
        start = torch.stack([self.H_init, self.L_init]).to(x)
        return start[None, :, None, :].expand(len(x), 2, *x.shape[1:]).clone()

    def answer_state(self, z: Tensor) -> Tensor:
        """``z_H``, the half of the state that the heads read, ``(B, L, D)``."""
        return z[:, 0]
