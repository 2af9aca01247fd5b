r"""A looped transformer that contracts whatever its weights are: the rate is an argument, not a result of training.

States are ``(B, L, D)``, and their distance is :math:`\|z\| = \max_t |z_t|_2`, the largest Euclidean length of a token:
in that norm attention has a constant that is free of the sequence length. For every value of every parameter, every
injection x and all states, :math:`\|F(y; x) - F(z; x)\| \le rate \cdot \|y - z\|` (Theorem F6).

How: every weight is used through a division by a bound on its norm, wherever that bound exceeds 1. So gradient descent
needs no projection. Every sublayer is then 1-Lipschitz in the state, its residual sum is too, and the state enters with
the factor ``rate``. What depends on the injection alone (a score for each pair of tokens, a gate for each channel) is
constant during a solve, costs nothing, and is not limited.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fpcheck.blocks.config import BackboneConfig
from fpcheck.blocks.layers import Linear, RotaryTable, check_state, rms_norm, truncated_normal_
from fpcheck.blocks.model import LoopedModel
from fpcheck.errors import InputError, NonFiniteError

__all__ = ["ContractiveBlock", "ContractiveConfig", "ContractiveModel"]

# A weight's 2-norm is bounded by its Schatten norm of order 2^(doublings + 1), which for a smaller side n exceeds it by
# n^(1/64) at most: 7 % for n = 64. The Frobenius norm, order 2, would exceed it by a factor of up to 8.
_DOUBLINGS = 5
# For the bound from actual weights, where time does not matter: n^(1/2048).
_FINE = 10
_U = 2.0**-53
# Above whatever underflow can have lost, also under a root.
_TINY = 2.0**-400


@dataclass(frozen=True, kw_only=True)
class ContractiveConfig(BackboneConfig):
    """The block that contracts by construction.

    ``softmax_temp`` and ``pos_encodings="rope"`` concern the scores that come from the injection. The norm is RMSNorm
    times the root of ``rms_norm_eps``, so that its slope is at most 1; it is nearly linear on tokens whose root mean
    square is well below that root, and of length below ``sqrt(rms_norm_eps * hidden_size)`` on all.
    """

    rate: float = 0.9
    """Certified contraction rate per loop step, strictly between 0 and 1."""
    mlp: Literal["gated", "plain"] = "gated"
    conv_kernel_size: int = 1
    """Width of the causal convolution on the state; 1 is a gain for each channel."""
    rms_norm_eps: float = 1.0
    init_std: float = 1.0
    """Standard deviation of the start state's entries (truncated normal); 0 starts from zero."""

    def _check_ranges(self) -> None:
        super()._check_ranges()
        self._require(0 < self.rate < 1, "rate", "a number strictly between 0 and 1")
        self._require(self.conv_kernel_size >= 1, "conv_kernel_size", "an integer >= 1")
        self._require(0 <= self.init_std < math.inf, "init_std", "a finite number >= 0")
        self._require(not self.mlp_t, "mlp_t", "False: the bound is for attention over tokens")
        self._require(not self.norm_in_float32, "norm_in_float32", "False: the norm is computed in the state's dtype")


def _into_ball(v: Tensor, dim: int) -> Tensor:
    """Vectors along ``dim``, shortened to length 1 where they are longer."""
    # The root comes after the clamp: its slope is infinite at 0.
    return v / v.square().sum(dim, keepdim=True).clamp(min=1.0).sqrt()


def _schatten(W: Tensor) -> Tensor:
    r"""A differentiable upper bound on the 2-norm of each matrix ``(..., m, n)``: :math:`(tr (W'W)^{32})^{1/64}`.

    The constants taken out on the way only keep the powers in range. The result does not depend on them, so its
    derivative is right although they are detached.
    """
    H = W if W.shape[-2] >= W.shape[-1] else W.mT
    tiny = torch.finfo(W.dtype).tiny
    outer = H.detach().abs().amax((-2, -1), keepdim=True).clamp(min=tiny)
    H = H / outer
    factors = []
    for _ in range(_DOUBLINGS):
        H = H.mT @ H
        factors.append(H.detach().square().sum((-2, -1), keepdim=True).sqrt().clamp(min=tiny))
        H = H / factors[-1]
    # Only for W = 0 does the clamp change anything; without it the root there would have an infinite slope.
    size = H.square().sum((-2, -1), keepdim=True).clamp(min=tiny).sqrt()
    for factor in reversed(factors):
        size = (factor * size).sqrt()
    return outer * size


def _unit(W: Tensor) -> Tensor:
    """Matrices ``(..., m, n)``, divided by the bound on their 2-norm where it is above 1."""
    return W / _schatten(W).clamp(min=1.0)


def _stretch(c: Tensor) -> Tensor:
    """``max(1, c + 1 / (4 c))``: how scores of size c, or gates of strength 2 c, stretch (Theorems F6a, F6b)."""
    wide = c.abs().clamp(min=0.5)
    return wide + 0.25 / wide


def _matrix(*shape: int) -> nn.Parameter:
    """Matrices ``(..., rows, columns)`` with orthonormal rows or columns: as much signal as the bound lets through."""
    weight = torch.empty(shape)
    for part in weight.view(-1, *shape[-2:]):
        nn.init.orthogonal_(part)
    return nn.Parameter(weight)


class _Residual(nn.Module):
    r"""``a * h + b * g``, with ``a_c = p p_c`` and ``b_c = r r_c`` for channel c: a learned split of the budget.

    ``(p, r)`` and every ``(p_c, r_c)`` lie in the unit disc, so by Cauchy-Schwarz :math:`(a_c u_c + b_c v_c)^2 \le p^2
    u_c^2 + r^2 v_c^2`, and the sum over channels is at most the larger of :math:`|u|^2` and :math:`|v|^2`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha_share = nn.Parameter(torch.full((2,), 0.5**0.5))
        self.alpha_channels = nn.Parameter(torch.full((2, width), 0.5**0.5))

    def forward(self, h: Tensor, out: Tensor) -> Tensor:
        """Both ``(B, L, D)``."""
        keep, add = _into_ball(self.alpha_share, 0).unsqueeze(-1) * _into_ball(self.alpha_channels, 0)
        return keep * h + add * out

    def bound(self, sublayer: float) -> float:
        """An upper bound on the Lipschitz constant of h -> a h + b g(h), for a ``sublayer``-Lipschitz g."""
        share = self.alpha_share.detach().double()
        channels = self.alpha_channels.detach().double()
        lengths = channels.square().sum(0)
        p, r = (share.square() / share.square().sum().clamp(min=1.0)).tolist()
        widest = min(1.0, float(lengths.max()))
        by_angles = math.sqrt(widest * (p + r * sublayer**2))
        keep, add = (channels.abs() / lengths.clamp(min=1.0).sqrt()).amax(1).tolist()
        by_largest = math.sqrt(p) * keep + math.sqrt(r) * add * sublayer
        return min(1.0, _outward(min(by_angles, by_largest), 20))


class _Attention(nn.Module):
    """Attention on normalised tokens whose scores are the sum of one from the state and one from the injection.

    State scores are at most ``beta`` in size, a parameter for each head; the values pay for it with the factor
    ``1 / _stretch(beta)``, which is 1 up to ``beta = 1/2``. The heads share a budget: sum of squared gains at most 1.
    """

    def __init__(self, config: ContractiveConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        self.causal = config.causal
        self.scale = 1.0 / (math.sqrt(config.head_dim) * config.softmax_temp)
        self.qkv = nn.Parameter(_matrix(3, width, width).detach().view(3, heads, config.head_dim, width))
        self.out = _matrix(width, width)
        self.beta = nn.Parameter(torch.full((heads,), 0.5))
        self.alpha_heads = nn.Parameter(torch.full((heads,), heads**-0.5))
        self.injection_proj = Linear(width, 2 * width, bias=False)

    def forward(self, n: Tensor, x: Tensor, radius: float, rotary: RotaryTable | None) -> Tensor:
        """Map ``(B, L, D)``, tokens shorter than ``radius``, to the same shape."""
        batch, length, width = n.shape
        scores = self._injection_scores(x, rotary)
        weights = _unit(self.qkv)
        qkv = (n @ weights.flatten(0, 2).mT).view(batch, length, 3, len(self.beta), -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        beta = self.beta.view(-1, 1, 1)
        scores = scores + (beta / radius**2 * q) @ k.mT
        gain = _into_ball(self.alpha_heads, 0).view(-1, 1, 1) / _stretch(beta)
        mixed = scores.softmax(-1) @ (gain * v)
        return mixed.transpose(1, 2).reshape(batch, length, width) @ _unit(self.out).mT

    def _injection_scores(self, x: Tensor, rotary: RotaryTable | None) -> Tensor:
        batch, length, width = x.shape
        heads = len(self.beta)
        both = self.injection_proj(x).view(batch, length, 2, heads, width // heads)
        q, k = both.permute(2, 0, 3, 1, 4).unbind(0)
        if rotary is not None:
            q, k = rotary(q), rotary(k)
        scores = (q @ k.mT) * self.scale
        if self.causal:
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        # The largest becomes 0, which softmax does not see: otherwise scores of 1e12 would swallow those of the state.
        return scores - scores.amax(-1, keepdim=True)

    def bound(self) -> float:
        """An upper bound on the Lipschitz constant of this behind the norm (Theorem F6a and the sum over heads)."""
        q, k, v = _unit_norms(self.qkv).tolist()
        total = 0.0
        gains = _into_ball(self.alpha_heads.detach().double(), 0).abs().tolist()
        for gain, beta, q_h, k_h, v_h in zip(gains, self.beta.detach().double().abs().tolist(), q, k, v, strict=True):
            total += (gain * v_h * _stretched(beta * q_h * k_h) / _stretched(beta)) ** 2
        return min(1.0, _outward(math.sqrt(total) * float(_unit_norms(self.out)), 30 + len(gains)))


class _GatedMLP(nn.Module):
    """``out (tanh(rho gate(n) + injection) * up(n))``: gates of strength ``rho``, for which ``up`` pays.

    The price is the factor ``1 / _stretch(rho / 2)``: none up to ``rho = 1``.
    """

    def __init__(self, config: ContractiveConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.mlp_width(config.hidden_size)
        self.gate_up = _matrix(2, inner, width)
        self.out = _matrix(width, inner)
        self.rho = nn.Parameter(torch.ones(()))
        self.injection_proj = Linear(width, inner)

    def forward(self, n: Tensor, x: Tensor, radius: float) -> Tensor:
        """Map ``(B, L, D)``, tokens shorter than ``radius``, to the same shape."""
        gate_weight, up_weight = _unit(self.gate_up).unbind(0)
        gate = torch.tanh(n @ (self.rho / radius * gate_weight).mT + self.injection_proj(x))
        return (gate * (n @ up_weight.mT)) @ (_unit(self.out) / _stretch(self.rho / 2)).mT

    def bound(self) -> float:
        """An upper bound on the Lipschitz constant of this behind the norm (Theorem F6b)."""
        gate, up = _unit_norms(self.gate_up).tolist()
        half = abs(float(self.rho.detach())) / 2
        return min(1.0, _outward(float(_unit_norms(self.out)) * up * _stretched(half * gate) / _stretched(half), 20))


class _PlainMLP(nn.Module):
    """``out tanh(inner(n) + injection)``."""

    def __init__(self, config: ContractiveConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.mlp_width(config.hidden_size)
        self.inner = _matrix(inner, width)
        self.out = _matrix(width, inner)
        self.injection_proj = Linear(width, inner)

    def forward(self, n: Tensor, x: Tensor, radius: float) -> Tensor:
        """Map ``(B, L, D)`` to the same shape."""
        return torch.tanh(n @ _unit(self.inner).mT + self.injection_proj(x)) @ _unit(self.out).mT

    def bound(self) -> float:
        """An upper bound on the Lipschitz constant: tanh has slopes of at most 1 (Theorem C5)."""
        return min(1.0, _outward(float(_unit_norms(self.out)) * float(_unit_norms(self.inner)), 4))


class _Layer(nn.Module):
    """Attention, then an MLP, each behind the norm and in a residual sum."""

    def __init__(self, config: ContractiveConfig) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.attention = _Attention(config)
        self.attention_residual = _Residual(config.hidden_size)
        self.mlp = _GatedMLP(config) if config.mlp == "gated" else _PlainMLP(config)
        self.mlp_residual = _Residual(config.hidden_size)

    def forward(self, h: Tensor, x: Tensor, radius: float, rotary: RotaryTable | None) -> Tensor:
        """Map the stream ``(B, L, D)`` to the next one."""
        out: Tensor = self.attention_residual(h, self.attention(self._norm(h), x, radius, rotary))
        out = self.mlp_residual(out, self.mlp(self._norm(out), x, radius))
        return out

    def _norm(self, h: Tensor) -> Tensor:
        return self.eps**0.5 * rms_norm(h, self.eps)

    def bound(self) -> float:
        """An upper bound on the Lipschitz constant of the layer."""
        attention, mlp = self.attention.bound(), self.mlp.bound()
        return self.attention_residual.bound(attention) * self.mlp_residual.bound(mlp)


class ContractiveBlock(nn.Module):
    r"""One loop step ``F(z; x)`` that is a contraction by construction, with the rate ``config.rate``.

    ``h = rate * conv(z) + x``, then per layer ``h <- a * h + b * attention(norm(h))`` and ``h <- a * h + b *
    mlp(norm(h))``, with other scales a and b for each. The injection enters with full strength, and again in the scores
    and gates, where its weights are not limited.

    For all weights, injections and states, in the norm :math:`\|z\| = \max_t |z_t|_2` for each sample:
    :math:`\|F(y; x) - F(z; x)\| \le rate \cdot \|y - z\|`. This is about the exact map that the stored parameters
    define. In floating point a step is off by its evaluation error e, so the running loop's distances obey
    :math:`rate \cdot \|y - z\| + 2e`, and its iterates stay within :math:`e / (1 - rate)` of the fixed point.

    The factors: a convolution with taps ``s_i w_ic`` stretches by at most 1, as s and each w_c lie in unit balls
    (Cauchy-Schwarz). The norm has the slope :math:`\sqrt{1 - |n|^2 / R^2}`, R = ``radius``, where its output is n.
    Attention and MLP behind it are 1-Lipschitz, residual sums of 1-Lipschitz maps in the learned split as well.

    Shapes: state and injection ``(B, puzzle_tokens + seq_len, hidden_size)``; shorter sequences work.

    Guarantee: bound. Theorems F6, F6a, F6b.

    Example:
        >>> block = ContractiveBlock(ContractiveConfig(vocab_size=4, seq_len=6, hidden_size=8, num_heads=2, rate=0.5))
        >>> block.lipschitz_bound() <= 0.5
        True
    """

    def __init__(self, config: ContractiveConfig) -> None:
        super().__init__()
        self.config = config
        width, k = config.hidden_size, config.conv_kernel_size
        self.radius = math.sqrt(config.rms_norm_eps * width)
        """Bound on the length of normalised tokens."""
        self.conv_share = nn.Parameter(torch.full((k, 1), k**-0.5))
        taps = truncated_normal_(torch.empty(k, width), 1.0) if k > 1 else torch.ones(1, width)
        self.conv_taps = nn.Parameter(taps / taps.norm(dim=0).clamp(min=1.0))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.L_layers))
        rope = config.pos_encodings == "rope"
        self.rotary = RotaryTable(config.head_dim, config.positions, config.rope_theta) if rope else None

    def _convolve(self, z: Tensor) -> Tensor:
        """Token t becomes the sum of taps times tokens t, t - 1, ...; the last tap hits token t itself."""
        taps = _into_ball(self.conv_share, 0) * _into_ball(self.conv_taps, 0)
        if len(taps) == 1:
            return taps[0] * z
        padded = F.pad(z, (0, 0, len(taps) - 1, 0))
        return F.conv1d(padded.mT, taps.mT.unsqueeze(1), groups=z.shape[-1]).mT

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
        h = self.config.rate * self._convolve(z) + x
        for layer in self.layers:
            h = layer(h, x, self.radius, self.rotary)
        return h

    def lipschitz_bound(self) -> float:
        r"""An upper bound on the Lipschitz constant of the exact map, from the weights as they are.

        The product of ``rate``, the convolution's stretch and that of every residual sum, each from bounds on the
        2-norms of the divided weights: Schatten norms of order 2048 over lower bounds on the divisors. Every factor is
        also bounded by 1, by construction; so the result is never above ``config.rate``. It does not depend on the
        injection.

        Returns:
            A float64, per loop step, in the norm ``max_t |z_t|_2`` of one sample's state.

        Raises:
            NonFiniteError: A parameter is NaN or infinite; then there is no map to bound.

        Guarantee: bound, rounding included: every operation here is rounded outward.
        Cost: ten products of each weight's smaller side, in float64.
        Source: Theorems F6, F6a, F6b.
        """
        for name, parameter in self.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise NonFiniteError(f"parameter {name} holds NaN or inf; there is no map to bound: reload the weights")
        share, taps = (p.detach().double().square().sum(0) for p in (self.conv_share, self.conv_taps))
        conv = math.sqrt(min(1.0, float(share)) * min(1.0, float(taps.max())))
        result = min(1.0, _outward(conv, len(self.conv_taps) + 4))
        for layer in cast("Iterable[_Layer]", self.layers):
            result *= layer.bound()
        # Rounding upwards a product that is at most rate in exact arithmetic must not take it above.
        return min(self.config.rate, _outward(self.config.rate * result, 2 * len(self.layers) + 1))

    def steps_bound(self, first_step: float, tolerance: float) -> int:
        r"""How many loop steps bring every sample within ``tolerance`` of its fixed point, from any start.

        By Theorem B1, :math:`\|z_k - z^*\| \le \|z_1 - z_0\| \cdot rate^k / (1 - rate)`.

        Args:
            first_step: ``max_t |F(z_0) - z_0|_2``, at the start that is meant.
            tolerance: Distance to the fixed point in the same norm, > 0.

        Raises:
            InputError: Not such numbers.

        Guarantee: bound for the exact map; rounding included.
        """
        if not 0 <= first_step < math.inf:
            raise InputError(f"first_step={first_step!r}; expected a finite number >= 0, max_t |F(z0) - z0|_2")
        if not 0 < tolerance < math.inf:
            raise InputError(f"tolerance={tolerance!r}; expected a finite number > 0")
        rate = self.config.rate
        if first_step <= tolerance * (1 - rate) * (1 - 8 * _U):
            return 0
        # The factor makes up for the logarithms' rounding.
        steps = (math.log(first_step) - math.log(tolerance) - math.log1p(-rate)) / -math.log(rate)
        return math.floor(max(0.0, steps) * (1 + 1e-12)) + 1


class ContractiveModel(LoopedModel):
    """Token table, contractive block, and a linear read-out of any gain: it stands outside the loop.

    Attributes:
        block: The loop step ``(z, x) -> z'``.
        config: The configuration it was built from.
    """

    block: ContractiveBlock
    config: ContractiveConfig

    def __init__(self, config: ContractiveConfig) -> None:
        super().__init__(config)
        self.block = ContractiveBlock(config)

    def initial_state(self, x: Tensor, *, seed: int = 0) -> Tensor:
        """Start states like ``x``: the same for every sample, drawn from ``seed`` alone."""
        generator = torch.Generator().manual_seed(seed)
        one = truncated_normal_(torch.empty(x.shape[1:]), self.config.init_std, generator)
        return one.to(x).expand_as(x).clone()


def _outward(value: float, roundings: int) -> float:
    """Above what ``value`` would be without rounding, computed from non-negative numbers by so many operations."""
    return value * (1 + 4 * roundings * _U) + _TINY


def _stretched(c: float) -> float:
    return c + 0.25 / c if c > 0.5 else 1.0


def _unit_norms(W: Tensor) -> Tensor:
    """Upper bounds on the 2-norms of `_unit` of matrices ``(..., m, n)``, at most 1; shape ``(...)``, float64.

    |W| / max(1, B) for the divisor B that is used, with an upper bound on |W| and a lower one on B.
    """
    size = _schatten_ends(W, _FINE)[1]
    divisor = _schatten_ends(W, _DOUBLINGS)[0]
    return (size / divisor.clamp(min=1.0) * (1 + 8 * _U)).clamp(max=1.0)


def _schatten_ends(W: Tensor, doublings: int) -> tuple[Tensor, Tensor]:
    r"""Lower and upper bounds, rounding included, on the Schatten norms of order ``2^(doublings + 1)``, float64.

    The norm :math:`S_{2p}(H)` is the root of :math:`S_p(H'H)`, and the computed product is off by at most
    :math:`\gamma_m \|H\|_F^2` in the Frobenius norm, which is at least :math:`S_p` for p >= 2. Scalings are by powers
    of two, hence exact.
    """
    H = W.detach().double()
    H = H if H.shape[-2] >= H.shape[-1] else H.mT
    largest = H.abs().amax((-2, -1))
    outer = _power_of_two(largest)
    H = H / outer[..., None, None]
    steps = []
    for _ in range(doublings):
        rows = H.shape[-2]
        # gamma_m <= 1.01 m u for m < 2^40; what underflow loses is far below _TINY.
        error = 1.01 * rows * _U * _frobenius(H, up=True).square() * (1 + 8 * _U) + _TINY
        H = H.mT @ H
        factor = _power_of_two(H.abs().amax((-2, -1)))
        H = H / factor[..., None, None]
        steps.append((factor, error))
    low, high = _frobenius(H, up=False), _frobenius(H, up=True)
    for factor, error in reversed(steps):
        high = (factor * high + error).sqrt() * (1 + 8 * _U)
        low = (factor * low - error).clamp(min=0.0).sqrt() * (1 - 8 * _U)
    zero = largest == 0
    return torch.where(zero, 0.0, outer * low), torch.where(zero, 0.0, outer * high)


def _frobenius(H: Tensor, *, up: bool) -> Tensor:
    """The Frobenius norm of matrices with entries near 1 or below, rounded up or down."""
    roundings = H.shape[-2] * H.shape[-1] + 4
    value = H.square().sum((-2, -1)).sqrt()
    return value * (1 + 2 * roundings * _U) + _TINY if up else value * (1 - 2 * roundings * _U)


def _power_of_two(size: Tensor) -> Tensor:
    """A power of two in (size, 2 size], at least 2^-500; 1 for 0."""
    return torch.ldexp(torch.ones_like(size), torch.frexp(size).exponent.clamp(min=-500))
