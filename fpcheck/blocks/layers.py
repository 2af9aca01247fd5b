"""Parts that the reference blocks are built from.

Shapes: ``B`` samples, ``L`` positions (puzzle tokens and content tokens), ``D`` channels, ``H`` heads.
Attention is written out (scores, softmax, weighted sum) instead of using a fused kernel: fused kernels lack
forward-mode and second derivatives, which everything in this library needs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpcheck.blocks.config import BackboneConfig, NormType
from fpcheck.errors import InputError

__all__ = [
    "Attention",
    "Layer",
    "LayerStack",
    "Linear",
    "RotaryTable",
    "SwiGLU",
    "TokenTable",
    "check_state",
    "rms_norm",
    "truncated_normal_",
]

# A normal variable cut at two standard deviations keeps this share of its standard deviation:
# sqrt(1 - 2 * 2 * pdf(2) / (cdf(2) - cdf(-2))).
_CUT_AT_TWO = 0.8796256610342398


def truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Fill with normal draws cut at two of their own deviations, rescaled to standard deviation ``std``."""
    if std == 0:
        return tensor.zero_()
    with torch.no_grad():
        wide = std / _CUT_AT_TWO
        return nn.init.trunc_normal_(tensor, 0.0, wide, -2 * wide, 2 * wide, generator=generator)


def rms_norm(h: Tensor, eps: float, *, dim: int = -1, in_float32: bool = False) -> Tensor:
    """Divide by the root mean square over ``dim``: ``h / sqrt(mean(h^2) + eps)``, no learned gain."""
    if in_float32:
        wide = h.to(torch.float32)
        return (wide * torch.rsqrt(wide.square().mean(dim, keepdim=True) + eps)).to(h.dtype)
    return h * torch.rsqrt(h.square().mean(dim, keepdim=True) + eps)


class TokenTable(nn.Module):
    """A table of embedding vectors, one row per token."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_weight = nn.Parameter(truncated_normal_(torch.empty(rows, width), width**-0.5))

    def forward(self, index: Tensor) -> Tensor:
        """Rows ``index`` of the table, shape ``(*index.shape, width)``."""
        return F.embedding(index, self.embedding_weight)


class Linear(nn.Linear):
    """A linear map that starts as in the official code: truncated normal of deviation ``fan_in^-1/2``."""

    def reset_parameters(self) -> None:
        """Draw the weight; a bias starts at zero."""
        truncated_normal_(self.weight, self.in_features**-0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RotaryTable(nn.Module):
    """Cosines and sines of rotary position encoding, in the float32 values that the official code uses.

    These values define the map exactly; in float64 they are widened, not recomputed. Hence the reciprocal of a
    power below: ``theta ** -p`` differs from it in the last bit.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, positions: int, theta: float) -> None:
        super().__init__()
        frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        angle = torch.outer(torch.arange(positions, dtype=torch.float32), frequency)
        angle = torch.cat([angle, angle], dim=-1)
        # Plain attributes would not move with .to(device); persistent buffers would enter the state_dict.
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, q: Tensor) -> Tensor:
        """Rotate ``(B, H, L, head_dim)``, the two halves of a head being the real and imaginary parts."""
        length = q.shape[-2]
        wide = torch.promote_types(q.dtype, torch.float32)
        v = q.to(wide)
        half = v.shape[-1] // 2
        turned = torch.cat([-v[..., half:], v[..., :half]], dim=-1)
        return (v * self.cos[:length].to(wide) + turned * self.sin[:length].to(wide)).to(q.dtype)


class Attention(nn.Module):
    """Multi-head self-attention without biases: softmax(q k' / (sqrt(head_dim) * temperature)) v."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.causal = config.causal
        self.scale = 1.0 / (math.sqrt(config.head_dim) * config.softmax_temp)
        self.qkv_proj = Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, h: Tensor, rotary: RotaryTable | None) -> Tensor:
        """Map ``(B, L, D)`` to ``(B, L, D)``."""
        batch, length, width = h.shape
        qkv = self.qkv_proj(h).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        scores = (q @ k.transpose(-1, -2)) * self.scale
        if self.causal:
            future = torch.ones(length, length, dtype=torch.bool, device=h.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        mixed = scores.softmax(-1) @ v
        out: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return out


class SwiGLU(nn.Module):
    """silu(gate) * up, then a linear map down; one matrix holds the gate rows first, then the up rows."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(width, 2 * inner, bias=False)
        self.down_proj = Linear(inner, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(..., width)`` to ``(..., width)``."""
        gate, up = self.gate_up_proj(h).chunk(2, dim=-1)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out


class Layer(nn.Module):
    """Attention (or a SwiGLU over positions), then a SwiGLU over channels: two scaled residual steps."""

    def __init__(self, config: BackboneConfig, norm_type: NormType) -> None:
        super().__init__()
        self.config = config
        self.norm_type = norm_type
        if config.mlp_t:
            self.mlp_t = SwiGLU(config.positions, config.mlp_width(config.positions))
        else:
            self.self_attn = Attention(config)
        self.mlp = SwiGLU(config.hidden_size, config.mlp_width(config.hidden_size))

    def forward(self, h: Tensor, alpha: Tensor | float, beta: Tensor | float, rotary: RotaryTable | None) -> Tensor:
        """One layer on ``(B, L, D)``; ``alpha`` scales the stream, ``beta`` each sublayer's output."""
        if self.config.mlp_t:
            # What mixes over positions is normalised over positions too.
            h = self._step(lambda v: self.mlp_t(v.transpose(1, 2)).transpose(1, 2), h, alpha, beta, dim=1)
        else:
            h = self._step(lambda v: self.self_attn(v, rotary), h, alpha, beta, dim=-1)
        return self._step(self.mlp, h, alpha, beta, dim=-1)

    def _step(
        self, g: Callable[[Tensor], Tensor], h: Tensor, alpha: Tensor | float, beta: Tensor | float, *, dim: int
    ) -> Tensor:
        out = g(h if self.norm_type == "post-norm" else self._norm(h, dim))
        if self.norm_type == "peri-norm":
            out = self._norm(out, dim)
        h = alpha * h + beta * out
        return self._norm(h, dim) if self.norm_type == "post-norm" else h

    def _norm(self, h: Tensor, dim: int) -> Tensor:
        return rms_norm(h, self.config.rms_norm_eps, dim=dim, in_float32=self.config.norm_in_float32)


class LayerStack(nn.Module):
    """``L_layers`` layers in a row and their rotary table: what the FPRM and the TRM block have in common."""

    def __init__(self, config: BackboneConfig, norm_type: NormType) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, norm_type) for _ in range(config.L_layers))
        rope = config.pos_encodings == "rope" and not config.mlp_t
        self.rotary = RotaryTable(config.head_dim, config.positions, config.rope_theta) if rope else None

    def run_layers(self, h: Tensor, alpha: Tensor | float, beta: Tensor | float) -> Tensor:
        """All layers on ``(B, L, D)``, with the same scales in each."""
        for layer in self.layers:
            h = layer(h, alpha, beta, self.rotary)
        return h


def check_state(config: BackboneConfig, z: Tensor, x: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse shapes that torch would broadcast into a wrong answer.

    Raises:
        InputError: ``x`` is not ``(B, L, D)``, or ``z`` is not ``expected``, a shape that follows from ``x``.
    """
    fits = x.ndim == 3 and x.shape[-1] == config.hidden_size
    if not fits or x.shape[1] > config.positions or (config.fixed_length and x.shape[1] != config.positions):
        at_most = "" if config.fixed_length else "at most "
        raise InputError(
            f"x.shape={tuple(x.shape)}; expected (B, {at_most}{config.positions}, {config.hidden_size}), "
            "the model's injection(inputs)"
        )
    if z.shape != expected:
        raise InputError(f"z.shape={tuple(z.shape)}; expected {tuple(expected)} for x.shape={tuple(x.shape)}")
