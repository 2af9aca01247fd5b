"""The FPRM block: a looped transformer built to settle (arXiv 2606.18206), in every official variant."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpcheck.blocks.config import FPRMConfig
from fpcheck.blocks.layers import LayerStack, Linear, check_state, rms_norm, truncated_normal_
from fpcheck.blocks.model import LoopedModel
from fpcheck.errors import BlockError

__all__ = ["FPRMBlock", "FPRMModel"]


class FPRMBlock(LayerStack):
    r"""One loop step ``F(z; x)``: mix the state with its injection, then ``L_layers`` scaled residual layers.

    ``h = alpha_2 * conv(z) + beta_2 * x``, then per sublayer ``h <- alpha_1 * h + beta_1 * g(norm(h))``.
    Where ``residual_scale`` is not ``"none"``, ``beta_2 = 1 - alpha_2 * alpha_1^(2K)`` and
    ``beta_1 = beta_2 * (1 - alpha_1) / (1 - alpha_1^(2K) + 1e-5)``, with K layers.

    Shapes: state and injection ``(B, puzzle_tokens + seq_len, hidden_size)``; shorter sequences work unless
    ``mlp_t`` or a 2-D convolution fix the length.
    """

    def __init__(self, config: FPRMConfig) -> None:
        super().__init__(config, config.norm_type)
        self.config = config
        width, k, bias = config.hidden_size, config.conv_kernel_size, config.conv_bias
        if config.conv_type == "conv1d":
            self.conv: nn.Conv1d | nn.Conv2d = nn.Conv1d(width, width, k, padding=k - 1, groups=width, bias=bias)
        elif config.conv_type == "conv2d":
            self.conv = nn.Conv2d(width, width, k, padding=k // 2, groups=width, bias=bias)
        self._make_scales()

    def _make_scales(self) -> None:
        config, kind = self.config, self.config.residual_scale
        wanted = ("alpha_2",) if config.outer_only else ("alpha_1", "alpha_2")
        for name in wanted if kind != "none" else ():
            start = getattr(config, f"{name}_init")
            if kind == "fixed":
                parameter = nn.Parameter(torch.tensor(start), requires_grad=False)
                self.register_parameter(f"{name}_param", parameter)
            elif kind == "input-independent":
                logit = torch.full((config.hidden_size,), math.log(start / (1 - start)))
                self.register_parameter(f"{name}_param", nn.Parameter(logit))
            else:
                self.add_module(f"{name}_layer", Linear(config.hidden_size, config.hidden_size))

    def _alpha(self, name: str, h: Tensor) -> Tensor:
        kind = self.config.residual_scale
        if kind == "fixed":
            return getattr(self, f"{name}_param").to(h.dtype)
        if kind == "input-independent":
            return torch.sigmoid(getattr(self, f"{name}_param")).to(h.dtype)
        return torch.sigmoid(self.get_submodule(f"{name}_layer")(h)).to(h.dtype)

    def residual_scales(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``(alpha_1, alpha_2, beta_1, beta_2)`` for the convolved state ``h``, each broadcastable to it."""
        one = torch.ones((), dtype=h.dtype, device=h.device)
        if self.config.residual_scale == "none":
            return one, one, one, one
        alpha_2 = self._alpha("alpha_2", h)
        if self.config.outer_only:
            return one, alpha_2, one, 1 - alpha_2
        alpha_1 = self._alpha("alpha_1", h)
        power = alpha_1.pow(2 * self.config.L_layers)
        beta_2 = 1 - alpha_2 * power
        # The 1e-5 is the official code's guard at alpha_1 = 1; it is part of the map.
        beta_1 = beta_2 * (1 - alpha_1) / (1 - power + 1e-5)
        return alpha_1, alpha_2, beta_1, beta_2

    def _convolve(self, z: Tensor, *, with_bias: bool = True) -> Tensor:
        config = self.config
        if config.conv_type == "none":
            return z
        front, content = z[:, : config.puzzle_tokens], z[:, config.puzzle_tokens :]
        batch, length, width = content.shape
        channels_first = content.transpose(1, 2)
        weight, bias = self.conv.weight, self.conv.bias if with_bias else None
        if config.conv_type == "conv1d":
            padding = config.conv_kernel_size - 1
            mixed = F.conv1d(channels_first, weight, bias, padding=padding, groups=width)[..., :length]
        else:
            side, padding = math.isqrt(length), config.conv_kernel_size // 2
            square = channels_first.reshape(batch, width, side, side)
            mixed = F.conv2d(square, weight, bias, padding=padding, groups=width).reshape(batch, width, length)
        return torch.cat([front, mixed.transpose(1, 2)], dim=1)

    def _norm(self, h: Tensor) -> Tensor:
        return rms_norm(h, self.config.rms_norm_eps, in_float32=self.config.norm_in_float32)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """Apply the block once.

        Args:
            z: State ``(B, L, D)``.
            x: Injection of the same shape.

        Returns:
            The next state, same shape and dtype.

        Raises:
            InputError: ``z`` or ``x`` has another shape.
        """
        check_state(self.config, z, x, x.shape)
        if self.config.normalize_input_injection:
            x = self._norm(x)
        h = self._convolve(z)
        alpha_1, alpha_2, beta_1, beta_2 = self.residual_scales(h)
        if self.config.norm_placement == "input":
            h = self._norm(h)
        h = alpha_2 * h + beta_2 * x
        h = self.run_layers(h, alpha_1, beta_1)
        return self._norm(h) if self.config.norm_placement == "output" else h

    def carry(self, v: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """What one step hands straight on: ``alpha_1^(2K) * alpha_2 * conv(v)``, a linear map of ``v``.

        The step without its sublayers, its injection, the convolution's bias, and a norm at its input or output.

        Args:
            v: The state that is handed on, ``(B, L, D)``.
            z: The state that input-dependent scales are taken at, same shape.
            x: Injection, same shape.

        Raises:
            BlockError: Post-norm layers: what is handed on goes through their norms, which are not linear.
            InputError: ``z`` or ``x`` has another shape.
        """
        config = self.config
        if config.norm_type == "post-norm":
            raise BlockError(
                "norm_type='post-norm'; the block has no linear carry: every path from state to state goes through "
                "norms, whose gain depends on the state. Look at spectrum(loop, z) alone"
            )
        check_state(config, z, x, x.shape)
        alpha_1, alpha_2, _, _ = self.residual_scales(self._convolve(z))
        return alpha_1.pow(2 * config.L_layers) * alpha_2 * self._convolve(v, with_bias=False)


class FPRMModel(LoopedModel):
    """FPRM: token table, looped block, and heads that read straight from the state.

    Attributes:
        block: The loop step ``(z, x) -> z'``.
        config: The configuration it was built from.
    """

    config: FPRMConfig

    def __init__(self, config: FPRMConfig) -> None:
        super().__init__(config)
        self.block = FPRMBlock(config)
        if config.fixed_init:
            self.register_buffer("init_vec", truncated_normal_(torch.empty(config.hidden_size), config.init_std))

    def initial_state(self, x: Tensor, *, seed: int = 0) -> Tensor:
        """Start states like ``x``: the same for every sample, drawn from ``seed`` alone.

        With ``fixed_init``, every position starts from the stored vector and ``seed`` has no effect.
        """
        if self.config.fixed_init:
            return self.get_buffer("init_vec").to(x).expand_as(x).clone()
        generator = torch.Generator().manual_seed(seed)
        one = truncated_normal_(torch.empty(x.shape[1:]), self.config.init_std, generator)
        return one.to(x).expand_as(x).clone()
