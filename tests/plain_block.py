"""The FPRM block written out in numpy float64, one sample, one token and one head at a time.

A slow, obvious second implementation, from the formulas alone (shapes: ``z``, ``x`` are ``(L, D)``, the first
``P`` positions puzzle tokens). It judges the variants for which no official numbers are at hand.
"""

import numpy as np


def rms(h, eps, axis=-1):
    return h / np.sqrt((h**2).mean(axis=axis, keepdims=True) + eps)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def swiglu(w, name, h):
    gate_up = w[f"{name}.gate_up_proj.weight"] @ h
    gate, up = np.split(gate_up, 2)
    return w[f"{name}.down_proj.weight"] @ (gate * sigmoid(gate) * up)


def rotated(v, position, theta):
    half = len(v) // 2
    out = np.empty_like(v)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(v))
        # Channel i and channel i + half are the real and the imaginary part of one complex number.
        turned = (v[i] + 1j * v[i + half]) * np.exp(1j * angle)
        out[i], out[i + half] = turned.real, turned.imag
    return out


def attention(config, w, name, h):
    length, width = h.shape
    d = width // config.num_heads
    qkv = np.stack([w[f"{name}.qkv_proj.weight"] @ token for token in h])
    out = np.zeros_like(h)
    for head in range(config.num_heads):
        q, k, v = (qkv[:, part * width + head * d : part * width + (head + 1) * d] for part in range(3))
        if config.pos_encodings == "rope":
            q = np.stack([rotated(token, t, config.rope_theta) for t, token in enumerate(q)])
            k = np.stack([rotated(token, t, config.rope_theta) for t, token in enumerate(k)])
        for t in range(length):
            seen = range(t + 1) if config.causal else range(length)
            score = np.array([q[t] @ k[u] for u in seen]) / (np.sqrt(d) * config.softmax_temp)
            weight = np.exp(score - score.max())
            weight /= weight.sum()
            out[t, head * d : (head + 1) * d] = sum(p * v[u] for p, u in zip(weight, seen, strict=True))
    return np.stack([w[f"{name}.o_proj.weight"] @ token for token in out])


def convolved(config, w, z):
    P, k = config.puzzle_tokens, config.conv_kernel_size
    content = z[P:]
    out = np.zeros_like(content)
    if config.conv_type == "none":
        return z
    if config.conv_type == "conv1d":
        for t in range(len(content)):
            for j in range(k):
                if t - (k - 1) + j >= 0:
                    out[t] += w["conv.weight"][:, 0, j] * content[t - (k - 1) + j]
    else:
        side = round(len(content) ** 0.5)
        for row in range(side):
            for column in range(side):
                for i in range(k):
                    for j in range(k):
                        r, c = row + i - k // 2, column + j - k // 2
                        if 0 <= r < side and 0 <= c < side:
                            out[row * side + column] += w["conv.weight"][:, 0, i, j] * content[r * side + c]
    if config.conv_bias:
        out = out + w["conv.bias"]
    return np.concatenate([z[:P], out])


def scale(config, w, name, h):
    kind = config.residual_scale
    if kind == "fixed":
        return w[f"{name}_param"]
    if kind == "input-independent":
        return sigmoid(w[f"{name}_param"])
    layer = f"{name}_layer"
    return sigmoid(np.stack([w[f"{layer}.weight"] @ token + w[f"{layer}.bias"] for token in h]))


def plain_block(config, w, z, x):
    """F(z; x) for weights ``w`` by name, relative to the block."""
    eps, sublayers = config.rms_norm_eps, 2 * config.L_layers
    if config.normalize_input_injection:
        x = rms(x, eps)
    h = convolved(config, w, z)
    alpha_1 = alpha_2 = beta_1 = beta_2 = 1.0
    if config.residual_scale != "none":
        alpha_2 = scale(config, w, "alpha_2", h)
        if config.outer_only:
            beta_2 = 1 - alpha_2
        else:
            alpha_1 = scale(config, w, "alpha_1", h)
            beta_2 = 1 - alpha_2 * alpha_1**sublayers
            beta_1 = beta_2 * (1 - alpha_1) / (1 - alpha_1**sublayers + 1e-5)
    if config.norm_placement == "input":
        h = rms(h, eps)
    h = alpha_2 * h + beta_2 * x
    for index in range(config.L_layers):
        for part in ("mix", "mlp"):
            name = f"layers.{index}"
            axis = 0 if part == "mix" and config.mlp_t else -1
            inner = h if config.norm_type == "post-norm" else rms(h, eps, axis)
            if part == "mlp":
                out = np.stack([swiglu(w, f"{name}.mlp", token) for token in inner])
            elif config.mlp_t:
                out = np.stack([swiglu(w, f"{name}.mlp_t", channel) for channel in inner.T]).T
            else:
                out = attention(config, w, f"{name}.self_attn", inner)
            if config.norm_type == "peri-norm":
                out = rms(out, eps, axis)
            h = alpha_1 * h + beta_1 * out
            if config.norm_type == "post-norm":
                h = rms(h, eps, axis)
    return rms(h, eps) if config.norm_placement == "output" else h
