"""Loops whose answers are known, shared by all tests.

Each entry of ``PROBLEMS`` builds a :class:`Problem`: a block, a start state, and a dictionary of what is known about
it. Linear blocks are ``F(z) = z A' + x`` (rows are samples), so their Jacobian is A everywhere. Keys of ``known``,
each present only where the value is known in closed form:

    jacobian        (n, n) at every state, or (B, n, n) at the fixed point
    eigenvalues     (n,) complex, in no particular order
    fixed_point     (B, n)
    radius, norm, log_norm, critical_step, best_step, best_rate, period
    regime          fpcheck.spectral.Regime at the fixed point
    status          fpcheck.Status of a plain Picard iteration from z0, long enough
    error           exception class that constructing the Loop must raise
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fpcheck.blocks import FPRMConfig, FPRMModel
from fpcheck.errors import ImpureBlockError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral import Regime
from fpcheck.status import Status

BATCH = 2


@dataclass(frozen=True)
class Problem:
    block: Callable[..., Tensor]
    z0: Tensor
    x: Tensor | None = None
    known: dict[str, Any] = field(default_factory=dict)

    def loop(self) -> Loop:
        return Loop(self.block, self.x, z0=self.z0)


class Linear(nn.Module):
    """F(z; x) = A z + x for column vectors z, the rows of the state."""

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return z @ self.A.T + x


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(randn(n, n, seed=seed))[0]


def rotation(degrees: float) -> Tensor:
    a = math.radians(degrees)
    return torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)


def jordan(value: float, size: int) -> Tensor:
    return value * torch.eye(size, dtype=torch.float64) + torch.diag(torch.ones(size - 1, dtype=torch.float64), 1)


def values(*eigenvalues: complex) -> Tensor:
    return torch.tensor(eigenvalues, dtype=torch.complex128)


def grcar(n: int) -> Tensor:
    """-1 below the diagonal, 1 on it and on three above: all eigenvalues simple and extremely sensitive."""
    ones = torch.ones(n, n, dtype=torch.float64)
    return ones.triu().tril(3) - torch.diag(torch.ones(n - 1, dtype=torch.float64), -1)


def normal(*eigenvalues: complex, seed: int = 0) -> Tensor:
    """A normal matrix with the given real eigenvalues, and pairs given by the one above the axis."""
    blocks = []
    for v in map(complex, eigenvalues):
        degrees = math.degrees(math.atan2(v.imag, v.real))
        blocks.append(abs(v) * rotation(degrees) if v.imag else torch.full((1, 1), v.real, dtype=torch.float64))
    D = torch.block_diag(*blocks)
    Q = orthogonal(len(D), seed)
    return Q @ D @ Q.T


def linear(A: Tensor, dtype: torch.dtype = torch.float64, **known: Any) -> Problem:
    n = len(A)
    x, z0 = randn(BATCH, n, seed=1), randn(BATCH, n, seed=2)
    if "fixed_point" not in known:
        known["fixed_point"] = torch.linalg.solve(torch.eye(n, dtype=torch.float64) - A, x.T).T
    known["jacobian"] = A
    known = {k: v.to(dtype) if isinstance(v, Tensor) and k != "eigenvalues" else v for k, v in known.items()}
    return Problem(Linear(A.to(dtype)), z0.to(dtype), x.to(dtype), {k: v for k, v in known.items() if v is not None})


def contraction(dtype: torch.dtype = torch.float64) -> Problem:
    # Symmetric, so norm = radius and log-norm = largest eigenvalue. s_c = 2 / (1 - (-0.4)). The best step balances
    # both ends: 2 / (1.4 + 0.3), rate (1.4 - 0.3) / (1.4 + 0.3).
    return linear(
        normal(0.7, -0.4, 0.2, 0.1),
        dtype,
        eigenvalues=values(0.7, -0.4, 0.2, 0.1),
        radius=0.7,
        norm=0.7,
        log_norm=0.7,
        critical_step=2 / 1.4,
        best_step=2 / 1.7,
        best_rate=1.1 / 1.7,
        period=math.inf,
        regime=Regime.CONTRACTIVE,
        status=Status.CONVERGED,
    )


def spiral(c: float, degrees: float, dtype: torch.dtype = torch.float64) -> Problem:
    """c times a rotation: l = c exp(i a), w = 1 - l; s_c = 2 Re w / |w|^2, best at half of it: rate |Im w| / |w|."""
    a = math.radians(degrees)
    re, im = 1 - c * math.cos(a), c * math.sin(a)
    size = re * re + im * im
    curable = re > 0
    return linear(
        c * rotation(degrees),
        dtype,
        eigenvalues=values(complex(1 - re, im), complex(1 - re, -im)),
        radius=c,
        norm=c,
        log_norm=c * math.cos(a),
        critical_step=2 * re / size if curable else 0.0,
        best_step=re / size if curable else 0.0,
        best_rate=abs(im) / math.sqrt(size) if curable else 1.0,
        period=360 / degrees,
        regime=Regime.CONTRACTIVE if c < 1 else Regime.NEIMARK_SACKER if curable else Regime.REPELLING,
        status=Status.CONVERGED if c < 1 else None,
    )


def flip(dtype: torch.dtype = torch.float64) -> Problem:
    # Best step between 1 - (-1.1) = 2.1 and 1 - 0.5 = 0.5: 2 / 2.6, rate 1.6 / 2.6.
    return linear(
        normal(-1.1, 0.5, 0.2),
        dtype,
        eigenvalues=values(-1.1, 0.5, 0.2),
        radius=1.1,
        norm=1.1,
        log_norm=0.5,
        critical_step=2 / 2.1,
        best_step=2 / 2.6,
        best_rate=1.6 / 2.6,
        period=2.0,
        regime=Regime.FLIP,
    )


def mixed(dtype: torch.dtype = torch.float64) -> Problem:
    # s_c: 2 / 2.2 = 0.909 for -1.2; for 1.1i: 2 / (1 + 1.21) = 0.905, the smaller.
    return linear(
        normal(-1.2, 1.1j),
        dtype,
        eigenvalues=values(-1.2, 1.1j, -1.1j),
        radius=1.2,
        norm=1.2,
        log_norm=0.0,
        critical_step=2 / 2.21,
        period=2.0,
        regime=Regime.DAMPED_CONTRACTIVE,
    )


def fold(dtype: torch.dtype = torch.float64) -> Problem:
    return linear(
        normal(1.05, 0.5, -0.3),
        dtype,
        eigenvalues=values(1.05, 0.5, -0.3),
        radius=1.05,
        norm=1.05,
        log_norm=1.05,
        critical_step=0.0,
        best_step=0.0,
        best_rate=1.0,
        period=math.inf,
        regime=Regime.FOLD,
    )


def jordan_block(value: float, size: int, dtype: torch.dtype = torch.float64) -> Problem:
    """One eigenvalue, one eigenvector: its error under a perturbation delta is delta^(1/size)."""
    return linear(
        jordan(value, size),
        dtype,
        eigenvalues=values(*[value] * size),
        radius=value,
        # Of the symmetric part, tridiagonal with 1/2 beside the diagonal: value + cos(pi / (size + 1)).
        log_norm=value + math.cos(math.pi / (size + 1)),
        critical_step=2 / (1 - value),
        period=math.inf,
        regime=Regime.CONTRACTIVE,
        status=Status.CONVERGED,
    )


def shear(dtype: torch.dtype = torch.float64) -> Problem:
    """Strongly non-normal and contracting: |A|_2 = 5.1 while rho = 0.9."""
    a, b, d = 0.9, 5.0, 0.5
    F, det = a * a + b * b + d * d, a * d
    return linear(
        torch.tensor([[a, b], [0.0, d]], dtype=torch.float64),
        dtype,
        eigenvalues=values(a, d),
        radius=a,
        norm=math.sqrt((F + math.sqrt(F * F - 4 * det * det)) / 2),
        log_norm=(a + d) / 2 + math.hypot(a - d, b) / 2,
        critical_step=2 / (1 - d),
        best_step=2 / (1 - a + 1 - d),
        best_rate=(a - d) / (1 - a + 1 - d),
        period=math.inf,
        regime=Regime.CONTRACTIVE,
        status=Status.CONVERGED,
    )


def drift(dtype: torch.dtype = torch.float64) -> Problem:
    """z + c: no fixed point, relative residual 1/k, every eigenvalue exactly 1."""
    return linear(
        torch.eye(3, dtype=torch.float64),
        dtype,
        fixed_point=None,
        eigenvalues=values(1, 1, 1),
        radius=1.0,
        norm=1.0,
        log_norm=1.0,
        critical_step=0.0,
        best_step=0.0,
        best_rate=1.0,
        regime=Regime.UNDECIDED,
        status=Status.DIVERGING,
    )


def cycle(dtype: torch.dtype = torch.float64) -> Problem:
    """-z + x: every orbit has period 2, the eigenvalue sits on the border."""
    return linear(
        -torch.eye(3, dtype=torch.float64),
        dtype,
        eigenvalues=values(-1, -1, -1),
        radius=1.0,
        norm=1.0,
        log_norm=-1.0,
        critical_step=1.0,
        best_step=0.5,
        best_rate=0.0,
        period=2.0,
        regime=Regime.UNDECIDED,
        status=Status.CYCLE,
    )


class Tanh(nn.Module):
    """F(z; x) = tanh(z W' + x), a contraction since |W|_2 < 1."""

    def __init__(self, W: Tensor) -> None:
        super().__init__()
        self.W = nn.Parameter(W)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.W.T + x)


def tanh(dtype: torch.dtype = torch.float64) -> Problem:
    """Nonlinear with a unique fixed point z*, chosen first: x = atanh(z*) - W z*. J = diag(1 - z*^2) W there."""
    n = 5
    W = randn(n, n, seed=3)
    W = 0.9 * W / torch.linalg.matrix_norm(W, 2)
    star = 0.8 * torch.tanh(randn(BATCH, n, seed=4))
    x = torch.atanh(star) - star @ W.T
    J = (1 - star.square()).unsqueeze(-1) * W
    known = {"fixed_point": star.to(dtype), "jacobian": J.to(dtype), "regime": Regime.CONTRACTIVE}
    known["status"] = Status.CONVERGED
    return Problem(Tanh(W.to(dtype)), randn(BATCH, n, seed=5).to(dtype), x.to(dtype), known)


def overflow(dtype: torch.dtype = torch.float64) -> Problem:
    """z^3 from 3: finite at first, infinite after seven steps in float64 (3^(3^7) > 1e308)."""
    return Problem(lambda z: z**3, torch.full((BATCH, 2), 3.0, dtype=dtype), None, {"status": Status.NON_FINITE})


def nan_everywhere(dtype: torch.dtype = torch.float64) -> Problem:
    return Problem(
        lambda z: torch.log(-1 - z.abs()), torch.ones(BATCH, 2, dtype=dtype), None, {"error": NonFiniteError}
    )


def nondeterministic(dtype: torch.dtype = torch.float64) -> Problem:
    return Problem(
        lambda z: z / 2 + torch.rand_like(z), torch.ones(BATCH, 2, dtype=dtype), None, {"error": ImpureBlockError}
    )


PROBLEMS: dict[str, Callable[..., Problem]] = {
    "contraction": contraction,
    "slow contraction": lambda dtype=torch.float64: linear(
        normal(0.98, -0.5, 0.3),
        dtype,
        eigenvalues=values(0.98, -0.5, 0.3),
        radius=0.98,
        norm=0.98,
        log_norm=0.98,
        critical_step=2 / 1.5,
        period=math.inf,
        regime=Regime.CONTRACTIVE,
        status=Status.CONVERGED,
    ),
    "spiral in": lambda dtype=torch.float64: spiral(0.9, 80, dtype),
    "neimark-sacker": lambda dtype=torch.float64: spiral(1.2, 80, dtype),
    "spiral out": lambda dtype=torch.float64: spiral(1.3, 20, dtype),
    "flip": flip,
    "mixed": mixed,
    "fold": fold,
    "jordan": lambda dtype=torch.float64: jordan_block(0.5, 3, dtype),
    "shear": shear,
    "drift": drift,
    "cycle": cycle,
    "tanh": tanh,
    "overflow": overflow,
    "nan everywhere": nan_everywhere,
    "nondeterministic": nondeterministic,
}
LINEAR = [name for name, build in PROBLEMS.items() if "eigenvalues" in build().known]
REFUSED = [name for name, build in PROBLEMS.items() if "error" in build().known]

FPRM_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no scale, peri-norm": {"residual_scale": "none", "norm_type": "peri-norm"},
    "input-dependent, post-norm": {"residual_scale": "input-dependent", "norm_type": "post-norm"},
    "fixed, outer only, output norm": {"residual_scale": "fixed", "outer_only": True, "norm_placement": "output"},
    "causal, conv1d": {"causal": True, "conv_type": "conv1d"},
    "conv2d, puzzle token": {
        "conv_type": "conv2d",
        "conv_kernel_size": 3,
        "puzzle_emb_ndim": 8,
        "num_puzzle_identifiers": 2,
    },
    "mlp over positions": {"mlp_t": True},
    "cold softmax, learned positions": {"softmax_temp": 0.3, "pos_encodings": "learned"},
}


def small_fprm(variant: str, dtype: torch.dtype = torch.float64, **more: Any) -> tuple[Loop, Tensor]:
    """A small FPRM loop with random weights, two inputs, and a state some steps on its way."""
    torch.manual_seed(0)
    settings = {"vocab_size": 5, "seq_len": 4, "hidden_size": 8, "num_heads": 2, "mlp_multiple": 8}
    model = FPRMModel(FPRMConfig(**(settings | FPRM_VARIANTS[variant] | more))).eval()
    puzzles = torch.tensor([0, 1]) if model.config.puzzle_emb_ndim else None
    x = model.injection(torch.tensor([[1, 2, 3, 4], [4, 2, 2, 1]]), puzzles).detach().to(dtype)
    z = model.initial_state(x)
    loop = Loop(model.to(dtype).block, x)
    with torch.no_grad():
        for _ in range(5):
            z = loop(z)
    return loop, z
