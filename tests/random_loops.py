"""Random contractive loops of all reference blocks, with everything that a gradient needs; seeds in, loops out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fpcheck.blocks import (
    ContractiveConfig,
    ContractiveModel,
    FPRMConfig,
    FPRMModel,
    LinearAttentionGD,
    TRMConfig,
    TRMModel,
)

KINDS = ("fprm", "fprm-conv", "trm", "contractive", "linear attention", "tanh")


@dataclass(frozen=True)
class Case:
    block: nn.Module
    z0: Tensor
    x: Any
    target: Tensor

    def loss(self, z: Tensor) -> Tensor:
        """Curved, so that its slope depends on the state."""
        return (0.5 * (z - self.target.to(z)).square() + 0.3 * z.sin()).sum()

    def to(self, dtype: torch.dtype) -> Case:
        """The same numbers, in a wider dtype."""
        x = tuple(t.to(dtype) for t in self.x) if isinstance(self.x, tuple) else self.x.to(dtype)
        return Case(copy.deepcopy(self.block).to(dtype), self.z0.to(dtype), x, self.target.to(dtype))


class Scaled(nn.Module):
    """A block times a number below 1: what is bounded is made to contract."""

    def __init__(self, block: nn.Module, factor: float) -> None:
        super().__init__()
        self.block, self.factor = block, factor

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.factor * self.block(z, x)


class Tanh(nn.Module):
    def __init__(self, W: Tensor) -> None:
        super().__init__()
        self.W = nn.Parameter(W)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.W.T + x)


def case(kind: str, seed: int, dtype: torch.dtype, samples: int = 2) -> Case:
    """A loop of this kind; the seed decides the rest."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    if kind == "tanh":
        n = 6
        W = randn(n, n).double()
        W = W * uniform(0.2, 0.98) / torch.linalg.matrix_norm(W, 2)
        return Case(Tanh(W.to(dtype)), torch.zeros(samples, n, dtype=dtype), randn(samples, n), randn(samples, n))
    if kind == "linear attention":
        X, Y = randn(samples, 5, 4), randn(samples, 5, 3)
        largest = float(torch.linalg.matrix_norm(X.double(), 2).square().max()) / X.shape[1]
        z0 = torch.zeros(samples, 3, 4, dtype=dtype)
        return Case(LinearAttentionGD(uniform(0.5, 1.5) / largest), z0, (X, Y), randn(samples, 3, 4))
    shape: dict[str, Any] = {
        "vocab_size": 7, "seq_len": 4, "hidden_size": 8, "num_heads": 2, "L_layers": 1 + seed % 2,
        "expansion": 1.5, "mlp_multiple": 4, "causal": bool(seed % 3),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "trm":
            model, factor = TRMModel(TRMConfig(**shape, H_cycles=1, L_cycles=1)), uniform(0.1, 0.5)
        elif kind == "contractive":
            model, factor = ContractiveModel(ContractiveConfig(**shape, rate=uniform(0.3, 0.95))), 1.0
        else:
            conv = {"conv_type": "conv1d"} if kind == "fprm-conv" else {}
            scale = ("none", "fixed", "input-independent", "input-dependent")[seed % 4]
            model = FPRMModel(FPRMConfig(**shape, **conv, residual_scale=scale))
            factor = uniform(0.2, 0.8)
    model = model.to(dtype)
    tokens = torch.randint(7, (samples, 4), generator=generator)
    x = model.injection(tokens).detach()
    z0 = model.initial_state(x)
    block = Scaled(model.block, factor) if factor < 1 else model.block
    for parameter in block.parameters():
        if parameter.ndim and not parameter.any():  # zero at the start of training: nothing would depend on it
            parameter.data = 0.1 * randn(*parameter.shape)
    return Case(block.eval(), z0, x, randn(*z0.shape))
