"""Blocks written out again from their formulas, in Arb's ball arithmetic at 300 bits: the judge of enclosures.

One sample, as numpy arrays of ``flint.arb`` objects, on which numpy's sums and products work as they are. Weights are
the real numbers that their floats denote. Jacobians come from central differences with a step of 2^-60 at 300 bits:
their error is the third derivative times 2^-120, some 1e-36, and rounding of 2^-240 relative to the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flint
import numpy as np
import plain_block
import torch
from flint import arb, fmpq
from torch import Tensor

BITS = 300
STEP = 60
"""Differences are taken over 2^-STEP."""

Map = Callable[[np.ndarray], np.ndarray]


def reals(values: Tensor) -> np.ndarray:
    """A tensor's floats as exact real numbers."""
    wide = values.detach().to(torch.float64)
    flat = np.array([arb(v) for v in wide.flatten().tolist()], dtype=object)
    return flat.reshape(tuple(wide.shape))


def jacobian(block: Map, z: np.ndarray) -> np.ndarray:
    """Row: output, column: input."""
    columns = []
    step = arb(2) ** -STEP
    for i in range(z.size):
        above, below = z.flatten(), z.flatten()
        above[i], below[i] = above[i] + step, below[i] - step
        columns.append(((block(above.reshape(z.shape)) - block(below.reshape(z.shape))) / (2 * step)).flatten())
    return np.stack(columns, axis=1)


def distance(found: Tensor, exact: np.ndarray) -> float:
    """An upper bound on the Frobenius distance."""
    pairs = zip(found.flatten().tolist(), exact.flatten(), strict=True)
    total = sum((arb((arb(v) - e).abs_upper()) ** 2 for v, e in pairs), arb(0))
    return math.nextafter(float(total.sqrt().upper()), math.inf)


def contains(mid: Tensor, rad: Tensor, exact: np.ndarray) -> bool:
    """Whether the exact value, known to 1e-70, lies within the ball, decided without rounding."""
    entries = zip(mid.flatten().tolist(), rad.flatten().tolist(), exact.flatten(), strict=True)
    return all(abs(e - arb(m)) <= arb(r) for m, r, e in entries)


# Functions of one real.


def entrywise(function: Callable[[arb], arb]) -> Map:
    return np.vectorize(function, otypes=[object])


sigmoid = entrywise(lambda x: 1 / (1 + (-x).exp()))
silu = entrywise(lambda x: x / (1 + (-x).exp()))
tanh = entrywise(lambda x: (2 * x).expm1() / ((2 * x).expm1() + 2))
gelu = entrywise(lambda x: x * ((-x / arb(2).sqrt()).erfc()) / 2)
relu = entrywise(lambda x: x if x > 0 else arb(0))


@entrywise
def gelu_tanh(x: arb) -> arb:
    inner = (2 / arb.pi()).sqrt() * (x + arb(fmpq(44715, 1000000)) * x**3)
    return x * (2 - 2 / (1 + (2 * inner).exp())) / 2


def rms(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + arb(eps))


def layer_norm(x: np.ndarray, gain: np.ndarray, shift: np.ndarray, eps: float) -> np.ndarray:
    return rms(x - x.mean(axis=-1, keepdims=True), eps) * gain + shift


def softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last dimension, without a shift: at 300 bits nothing overflows."""
    weight = np.exp(scores)
    return weight / weight.sum(axis=-1, keepdims=True)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: arb, *, causal: bool = False) -> np.ndarray:
    """One head, ``(T, d)``; with ``causal`` token t sees tokens up to t."""
    out = []
    for t in range(len(q)):
        seen = t + 1 if causal else len(k)
        out.append(softmax((k[:seen] @ q[t]) * scale) @ v[:seen])
    return np.stack(out)


# Blocks of torch.


def encoder_layer(layer: torch.nn.TransformerEncoderLayer, *, causal: bool = False) -> Map:
    """``nn.TransformerEncoderLayer`` in evaluation mode, on ``(T, d)``."""
    w = {name: reals(value) for name, value in layer.state_dict().items()}
    heads = layer.self_attn.num_heads
    # Torch scales queries and keys by one float each, the root of the scale.
    root = arb(math.sqrt(1 / math.sqrt(layer.self_attn.head_dim)))
    activation = relu if layer.activation is torch.nn.functional.relu else gelu

    def mix(h: np.ndarray) -> np.ndarray:
        width = h.shape[1] // heads
        q, k, v = np.split(h @ w["self_attn.in_proj_weight"].T + w["self_attn.in_proj_bias"], 3, axis=1)
        parts = [
            attention(*(part[:, i * width : (i + 1) * width] for part in (q, k, v)), root * root, causal=causal)
            for i in range(heads)
        ]
        joined = np.concatenate(parts, axis=1)
        return joined @ w["self_attn.out_proj.weight"].T + w["self_attn.out_proj.bias"]

    def feed(h: np.ndarray) -> np.ndarray:
        return activation(h @ w["linear1.weight"].T + w["linear1.bias"]) @ w["linear2.weight"].T + w["linear2.bias"]

    def norm(h: np.ndarray, which: int) -> np.ndarray:
        return layer_norm(h, w[f"norm{which}.weight"], w[f"norm{which}.bias"], getattr(layer, f"norm{which}").eps)

    def block(z: np.ndarray) -> np.ndarray:
        if layer.norm_first:
            h = z + mix(norm(z, 1))
            return h + feed(norm(h, 2))
        h = norm(z + mix(z), 1)
        return norm(h + feed(h), 2)

    return block


# Reference blocks.


def _mixer(block: torch.nn.Module) -> Callable[..., np.ndarray]:
    """Attention of a reference block, on ``(L, D)``; the rotary table and the scale of the scores are stored floats,
    and the certified map takes them as they are."""
    table = None if block.rotary is None else (reals(block.rotary.cos), reals(block.rotary.sin))

    def rotated(v: np.ndarray, position: int) -> np.ndarray:
        half = len(v) // 2
        cos, sin = (part[position] for part in table)
        return v * cos + np.concatenate([-v[half:], v[:half]]) * sin

    def mix(config, w, name, h):
        width = h.shape[1]
        d = width // config.num_heads
        # What Attention stores: a float64 number.
        scale = arb(1.0 / (math.sqrt(d) * config.softmax_temp))
        qkv = h @ w[f"{name}.qkv_proj.weight"].T
        out = []
        for head in range(config.num_heads):
            q, k, v = (qkv[:, part * width + head * d : part * width + (head + 1) * d] for part in range(3))
            if table is not None:
                q, k = (np.stack([rotated(row, t) for t, row in enumerate(part)]) for part in (q, k))
            out.append(attention(q, k, v, scale, causal=config.causal))
        return np.concatenate(out, axis=1) @ w[f"{name}.o_proj.weight"].T

    return mix


def fprm(block: torch.nn.Module, x: Tensor) -> Map:
    """The FPRM block for one injection ``(L, D)``, on states ``(L, D)``: tests/plain_block.py, on exact numbers."""
    w = {name: reals(value) for name, value in block.state_dict().items()}
    injection, config, mix = reals(x), block.config, _mixer(block)

    def apply(z: np.ndarray) -> np.ndarray:
        before = plain_block.attention
        plain_block.attention = mix
        try:
            return plain_block.plain_block(config, w, z, injection)
        finally:
            plain_block.attention = before

    return apply


def trm(block: torch.nn.Module, x: Tensor) -> Map:
    """The TRM segment for one injection ``(L, D)``, on pairs of answer and latent state ``(2, L, D)``.

    A layer mixes tokens (attention, or SwiGLU over positions) and then channels; each part is added, and the sum
    normed.
    """
    w = {name: reals(value) for name, value in block.state_dict().items()}
    injection, config, mix = reals(x), block.config, _mixer(block)

    def channels(name: str, h: np.ndarray) -> np.ndarray:
        return np.stack([plain_block.swiglu(w, name, row) for row in h])

    def layers(h: np.ndarray) -> np.ndarray:
        for index in range(config.L_layers):
            name = f"layers.{index}"
            if config.mlp_t:
                h = rms((h.T + channels(f"{name}.mlp_t", h.T)), config.rms_norm_eps).T
            else:
                h = rms(h + mix(config, w, f"{name}.self_attn", h), config.rms_norm_eps)
            h = rms(h + channels(f"{name}.mlp", h), config.rms_norm_eps)
        return h

    def apply(z: np.ndarray) -> np.ndarray:
        answer, latent = z
        for _ in range(config.H_cycles):
            for _ in range(config.L_cycles):
                latent = layers(latent + answer + injection)
            answer = layers(answer + latent)
        return np.stack([answer, latent])

    return apply


def gradient_descent(block: torch.nn.Module, x: tuple[Tensor, Tensor]) -> Map:
    """LinearAttentionGD on one context: W - eta/N (W X' - Y') X, with eta/N the stored float."""
    inputs, targets = (reals(part) for part in x)
    rate = arb(float((block.eta / len(inputs)).to(torch.float64)))

    def apply(z: np.ndarray) -> np.ndarray:
        return z - rate * ((z @ inputs.T - targets.T) @ inputs)

    return apply


def precision() -> object:
    return flint.ctx.workprec(BITS)
