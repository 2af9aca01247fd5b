"""Small blocks with curvature, what is known of them at a state, and attacks on bounds over a ball."""

from __future__ import annotations

from collections.abc import Callable

import torch
from problems import FPRM_VARIANTS, Linear, randn, small_fprm
from problems import tanh as tanh_problem
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpcheck.blocks import ContractiveBlock, ContractiveConfig
from fpcheck.certify.balls import Ball
from fpcheck.certify.curvature import geometry, linearise
from fpcheck.certify.enclosure import Enclosure, enclose
from fpcheck.certify.metric import Metric, dual_stein
from fpcheck.loop import Loop

D = torch.float64
T, W = 3, 4


class Step(nn.Module):
    """F(z; x) = f(module, z) + x."""

    def __init__(self, f, module: nn.Module | None = None) -> None:
        super().__init__()
        self.module, self.f = module, f

    def forward(self, z, x):
        return self.f(self.module, z) + x


def settled(loop: Loop, z: Tensor, steps: int = 400) -> Tensor:
    with torch.no_grad():
        for _ in range(steps):
            z = loop(z)
    return z


def user_encoder(norm_first=True, scale=0.4, causal=False) -> tuple[Loop, Tensor]:
    """What a user would write: a pre-norm encoder layer whose output is scaled, plus the input."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(W, 2, 8, batch_first=True, norm_first=norm_first, activation="gelu").to(D).eval()
    mask = (
        torch.zeros(T, T, dtype=D).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
        if causal
        else None
    )
    loop = Loop(Step(lambda m, z: scale * m(z, src_mask=mask), layer), randn(1, T, W, seed=1))
    return loop, randn(1, T, W, seed=2)


def attention_only() -> tuple[Loop, Tensor]:
    return Loop(
        Step(lambda m, z: 0.4 * F.scaled_dot_product_attention(*[z[:, None]] * 3)[:, 0]), randn(1, T, W)
    ), randn(1, T, W, seed=1)


def gates() -> tuple[Loop, Tensor]:
    def f(m, z):
        a, b = z.chunk(2, -1)
        return 0.3 * torch.cat([torch.tanh(a) * b, F.gelu(a) * b + a * b + torch.sigmoid(b) * a], -1)

    return Loop(Step(f), 0.5 * randn(1, T, W)), randn(1, T, W, seed=1)


def tanh_loop() -> tuple[Loop, Tensor]:
    held = tanh_problem()
    loop = held.loop().sample(0)
    return loop, held.known["fixed_point"][:1]


def fprm(variant: str, **more) -> tuple[Loop, Tensor]:
    loop, z = small_fprm(variant, L_layers=1, hidden_size=4, mlp_multiple=4, **more)
    return loop.sample(0), z[:1]


def of(f, build=None) -> Callable[[], tuple[Loop, Tensor]]:
    """A block written by hand, at a state of ordinary size."""

    def make() -> tuple[Loop, Tensor]:
        torch.manual_seed(0)
        module = None if build is None else build().to(D).eval()
        return Loop(Step(f, module), randn(1, T, W)), randn(1, T, W, seed=1)

    return make


def contractive() -> tuple[Loop, Tensor]:
    torch.manual_seed(0)
    config = ContractiveConfig(vocab_size=4, seq_len=T, hidden_size=W, num_heads=2, mlp_multiple=4, L_layers=1)
    return Loop(ContractiveBlock(config).to(D), randn(1, T, W, seed=1)), randn(1, T, W, seed=2)


BLOCKS = {
    "tanh": tanh_loop,
    "group norm": of(lambda m, z: 0.3 * m(z), lambda: nn.GroupNorm(3, T)),
    "layer norm of all": of(lambda m, z: 0.3 * m(z), lambda: nn.LayerNorm((T, W))),
    "rms, not recognised": of(lambda m, z: 0.3 * z / torch.sqrt((z * z).mean(-1, keepdim=True) + 0.1)),
    "rms, recognised": of(lambda m, z: 0.3 * (z / (z.square().mean(-1, keepdim=True) + 1e-5) ** 0.5)),
    "quotient": of(lambda m, z: 0.3 * z / (2 + z.flip(-1).cos()) + 0.2 / (6 + z)),
    "broadcast quotient": of(lambda m, z: 0.3 * z / (1 + z.square().mean(-1, keepdim=True))),
    "smooth functions": of(
        lambda m, z: (
            0.1 * (z.exp() + (6 + z).log() + (6 + z).sqrt() + (6 + z).rsqrt() + z.sin() + torch.expm1(0.5 * z))
            + 0.02 * (z**3 + torch.log1p(z * z) + z.erf() + (6 + z) ** 1.5)
        )
    ),
    "softmax of itself": of(lambda m, z: 0.4 * (2 * z).softmax(-1)),
    "fixed values": of(lambda m, z: 0.4 * z.softmax(-1) @ m.weight, lambda: nn.Linear(W, W)),
    "modulus, clamp": of(lambda m, z: 0.3 * torch.tanh(z.abs()) + 0.2 * torch.tanh(z.clamp(-0.4, 0.9))),
    "contractive": contractive,
    "encoder, pre-norm": user_encoder,
    "encoder, post-norm": lambda: user_encoder(norm_first=False),
    "encoder, causal": lambda: user_encoder(causal=True),
    "attention": attention_only,
    "gates": gates,
    **{f"fprm, {name}": (lambda name=name: fprm(name)) for name in FPRM_VARIANTS},
    "fprm, input-dependent, outer only": lambda: fprm("input-dependent, post-norm", outer_only=True),
    "fprm, two layers": lambda: (lambda loop, z: (loop.sample(0), z[:1]))(
        *small_fprm("plain", hidden_size=4, mlp_multiple=4)
    ),
}


def jacobian(loop: Loop, z: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return jacrev(lambda q: loop(q.reshape(z.shape)).reshape(-1))(z.reshape(-1)).detach()


def level(J: Tensor) -> float:
    """A level at which the dual Stein metric exists."""
    return 0.2 + 1.1 * float(torch.linalg.eigvals(J).abs().max())


class Known:
    """A block's enclosure, linearisation, metric and geometry."""

    def __init__(self, name: str) -> None:
        self.loop, self.z = BLOCKS[name]()
        self.held: Enclosure = enclose(self.loop, self.z)
        self.linear = linearise(self.held)
        metric = dual_stein(self.held.jacobian, level(self.held.jacobian))
        assert metric is not None
        self.metric: Metric = metric
        self.shape = geometry(self.linear, metric)
        self.Z1 = metric.operator_norm(Ball.exact(self.held.jacobian), self.held.jacobian_error)


_KNOWN: dict[str, Known] = {}


def known(name: str) -> Known:
    if name not in _KNOWN:
        _KNOWN[name] = Known(name)
    return _KNOWN[name]


def change(held: Known, delta: Tensor) -> tuple[Tensor, Tensor]:
    """L (J(z) - J) L^-1 at z = c + L^-1 delta, and J(z) in the metric."""
    z = (held.z.reshape(-1) + held.metric.inverse @ delta).reshape(held.z.shape)
    J = jacobian(held.loop, z)
    return tuple(held.metric.L @ M @ held.metric.inverse for M in (J - held.held.jacobian, J))


def ascend(held: Known, delta: Tensor, radius: float, rounds: int) -> Tensor:
    """Steps towards the state of the sphere where <u, L J(z) L^-1 v> is largest, u and v from the current change."""
    L, X = held.metric.L, held.metric.inverse
    for _ in range(rounds):
        left, _, right = torch.linalg.svd(change(held, delta)[0])
        u, v = L.mT @ left[:, 0], X @ right[0]
        z = (held.z.reshape(-1) + X @ delta).requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):
            out = held.loop(z.reshape(held.z.shape)).reshape(-1)
            (g,) = torch.autograd.grad(out, z, u, create_graph=True)
            (slope,) = torch.autograd.grad(g @ v, z)
        slope = X.mT @ slope
        if float(slope.norm()) == 0:
            break
        delta = radius * slope / slope.norm()
    return delta


def starts(metric: Metric, centre: Tensor, radius: float, count: int) -> list[Tensor]:
    n = centre.numel()
    found = []
    for i in range(count):
        delta = randn(n, seed=100 + i)
        if i < n:
            delta = torch.eye(n, dtype=D)[i] * (1 if i % 2 else -1)
        found.append(centre + (metric.inverse @ (radius * (1 - 1e-9) * delta / delta.norm())).reshape(centre.shape))
    return found


def holds(cert, loop: Loop) -> None:
    """Every start in the ball stays in it and converges at the rate to one point within the error bound."""
    metric, centre = cert.metric, cert.centre
    star = settled(loop, centre, 600)
    assert cert.distance(star) <= cert.error_bound + 1e-12
    for z in starts(metric, centre, cert.radius, 24):
        assert cert.holds(z)
        gap = float((metric.L @ (z - star).reshape(-1)).norm())
        for _ in range(40):
            z = loop(z).detach()
            new = float((metric.L @ (z - star).reshape(-1)).norm())
            assert new <= cert.rate * gap + 1e-12
            gap = new
    outside = centre + (metric.inverse @ (cert.radius * (1 + 1e-9) * torch.eye(centre.numel(), dtype=D)[0])).reshape(
        centre.shape
    )
    assert not cert.holds(outside)


def plain(A: Tensor) -> tuple[Loop, Tensor]:
    n = len(A)
    x = randn(1, n, seed=1)
    star = (
        torch.linalg.solve(torch.eye(n, dtype=D) - A, x.mT).mT
        if bool(torch.linalg.matrix_rank(torch.eye(n, dtype=D) - A) == n)
        else x
    )
    return Loop(Linear(A), x), star
