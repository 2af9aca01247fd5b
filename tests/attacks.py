"""Attacks on certificates: searches in float64 for what a bound forbids, and a judge that knows no rounding.

A search may be as careless as it likes: what it finds is a pair of points, a direction or a state, all of floats, and
the judge computes from these in Arb at 300 bits, by formulas of its own (tests/exact_blocks.py), what is true there.
Every figure is a share: truth over bound, rounded up, so that a share above 1 refutes the bound and float noise is no
excuse.

Rates need no derivatives. For two points a and b of a ball, ``|F(a) - F(b)|_P / |a - b|_P`` is at most the largest
``|J(z)|_P`` on the way from one to the other; so ``z + h w`` against ``z - h w`` with h = 2^-60 shows the norm at z in
the direction w, and nothing has to be inverted.

Shapes: states ``(1, *state)`` with n numbers; movements in the metric, ``delta = L (z - c)``, are ``(B, n)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import exact_blocks
import numpy as np
import torch
from exact_blocks import Map
from flint import arb, arb_mat
from problems import FPRM_VARIANTS, randn, small_fprm
from problems import tanh as tanh_problem
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpcheck.certify import Ball, Certificate, Metric, enclose
from fpcheck.certify.curvature import curvature, geometry, linearise
from fpcheck.loop import Loop, map_leaves

D = torch.float64
# A float direction of norm r is r only up to rounding; this much inside, both points of a pair are in the ball.
INSIDE = 1 - 2.0**-40


# What is attacked.


@dataclass(frozen=True)
class Subject:
    """A loop of one sample, a state on which it has settled, and the same step written again in Arb.

    Attributes:
        loop: One sample.
        state: ``(1, *state)``.
        exact: On arrays of the shape ``state``.
        readout: A linear map to logits ``(1, *tokens, classes)``, and its matrix; None for none.
    """

    loop: Loop
    state: Tensor
    exact: Map
    readout: Any = None


class Scaled(nn.Module):
    """F(z; x) = scale f(z) + x."""

    def __init__(self, module: nn.Module, scale: float, mask: Tensor | None = None) -> None:
        super().__init__()
        self.module, self.scale, self.mask = module, scale, mask

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.scale * self.module(z, src_mask=self.mask) + x


def settled(loop: Loop, z: Tensor, steps: int = 500) -> Tensor:
    with torch.no_grad():
        for _ in range(steps):
            z = loop(z)
    return z


def damped(loop: Loop, exact: Map, s: float) -> tuple[Loop, Map]:
    """z + s (F(z) - z), s the real number that the float denotes."""
    return loop.damped(s), lambda z: z + (exact(z) - z) * arb(s)


def fprm(variant: str, *, step: float = 1.0, **more: Any) -> Subject:
    loop, z = small_fprm(variant, **({"L_layers": 1, "hidden_size": 4, "mlp_multiple": 4} | more))
    single = loop.sample(0)
    exact = exact_blocks.fprm(single.block, single.x[0])
    if step != 1.0:
        single, exact = damped(single, exact, step)
    readout = nn.Linear(z.shape[-1], 5, bias=False).to(D).requires_grad_(False)
    return Subject(single, settled(single, z[:1]), exact, readout)


def encoder(*, norm_first: bool = True, activation: str = "gelu", causal: bool = False) -> Subject:
    """What a user would write: a torch encoder layer whose output is scaled, plus the input."""
    torch.manual_seed(0)
    T, W = 3, 4
    layer = nn.TransformerEncoderLayer(W, 2, 8, batch_first=True, norm_first=norm_first, activation=activation)
    # Its weights keep their gradients: without, torch takes a fused path that has no forward derivatives.
    layer = layer.to(D).eval()
    hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    mask = torch.zeros(T, T, dtype=D).masked_fill(hidden, -torch.inf) if causal else None
    loop = Loop(Scaled(layer, 0.4, mask), randn(1, T, W, seed=1))
    inner, x = exact_blocks.encoder_layer(layer, causal=causal), exact_blocks.reals(loop.x[0])
    return Subject(loop, settled(loop, randn(1, T, W, seed=2)), lambda z: inner(z) * arb(0.4) + x)


def tanh_loop() -> Subject:
    held = tanh_problem()
    loop = held.loop().sample(0)
    W, x = exact_blocks.reals(held.block.W), exact_blocks.reals(loop.x[0])
    return Subject(loop, settled(loop, held.known["fixed_point"][:1]), lambda z: exact_blocks.tanh(W @ z + x))


def damped_tanh() -> Subject:
    held = tanh_loop()
    loop, exact = damped(held.loop, held.exact, 0.7)
    return Subject(loop, held.state, exact)


# What a random block of a variant needs in order to contract; a puzzle token's has a cycle of two without damping.
SETTLES: dict[str, dict[str, Any]] = {
    "no scale, peri-norm": {"norm_placement": "output"},
    "conv2d, puzzle token": {"step": 0.5},
}

SUBJECTS: dict[str, Callable[[], Subject]] = {
    "tanh": tanh_loop,
    "tanh, damped": damped_tanh,
    "encoder": encoder,
    "encoder, causal": lambda: encoder(causal=True),
    "encoder, post-norm": lambda: encoder(norm_first=False),
    "encoder, relu": lambda: encoder(activation="relu"),
    **{f"fprm, {name}": (lambda name=name: fprm(name, **SETTLES.get(name, {}))) for name in FPRM_VARIANTS},
    "fprm, two layers": lambda: fprm("plain", L_layers=2),
    "fprm, causal, damped": lambda: fprm("causal, conv1d", step=0.8),
}


def wide(x: Any) -> Any:
    """An injection's floats in float64."""
    return map_leaves(x, lambda leaf: leaf.to(D) if leaf.is_floating_point() else leaf)


def bounds_of(loop: Loop, state: Tensor, metric: Metric, radius: float) -> tuple[float, float]:
    """Bounds on ``|L J L^-1|_2`` at a state and over the ball of a radius about it."""
    held = enclose(loop, state)
    Z1 = metric.operator_norm(Ball.exact(held.jacobian), held.jacobian_error)
    return Z1, curvature(geometry(linearise(held), metric), Z1, radius).kappa


# The search, in float64.


class Arena:
    """A ball's surroundings: steps and derivatives in the metric, for many states at once."""

    def __init__(self, loop: Loop, centre: Tensor, metric: Metric) -> None:
        self.loop, self.L, self.X = loop, metric.L, metric.inverse
        self.centre, self.shape, self.n = centre.reshape(-1), tuple(centre.shape[1:]), centre.numel()
        single = vmap(lambda q: loop(q.reshape(1, *self.shape)).reshape(-1))

        def step(delta: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return (single(self.centre + delta @ self.X.mT) - self.centre) @ self.L.mT

        self.step = step
        """The loop step, seen from the centre and in the metric."""

    def at(self, delta: Tensor) -> Here:
        """Derivatives at some states."""
        return Here(self.step, delta)

    @cached_property
    def jacobian(self) -> Tensor:
        """L J(c) L^-1, some rows at a time."""
        return torch.cat([self.at(torch.zeros_like(rows)).pull(rows) for rows in torch.eye(self.n, dtype=D).split(64)])


class Here:
    """Products with the Jacobians at some states, by reverse mode alone: one record serves them all."""

    def __init__(self, step: Callable[[Tensor], Tensor], delta: Tensor) -> None:
        self.delta = delta.detach().clone().requires_grad_()
        self.image = step(self.delta)
        self.slot = torch.zeros_like(delta, requires_grad=True)
        (self.pulled,) = torch.autograd.grad(self.image, self.delta, self.slot, create_graph=True)

    def push(self, w: Tensor) -> Tensor:
        """L J(z) L^-1 w: the derivative of its transpose's product, which is linear."""
        return torch.autograd.grad(self.pulled, self.slot, w, retain_graph=True)[0]

    def pull(self, u: Tensor) -> Tensor:
        """(L J(z) L^-1)' u."""
        return torch.autograd.grad(self.image, self.delta, u, retain_graph=True)[0]

    def bend(self, u: Tensor, w: Tensor) -> Tensor:
        """How ``<u, L J(z) L^-1 w>`` grows with z."""
        (g,) = torch.autograd.grad(self.image, self.delta, u, create_graph=True)
        if not g.requires_grad:  # a step that is linear
            return torch.zeros_like(w)
        found = torch.autograd.grad(g, self.delta, w, retain_graph=True, allow_unused=True)[0]
        return torch.zeros_like(w) if found is None else found


@dataclass(frozen=True)
class Found:
    """The best of a search: a movement, a direction there, and the size of the Jacobian (less that at the centre)."""

    delta: Tensor
    direction: Tensor
    size: float


def unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=-1, keepdim=True).clamp_min(1e-300)


def starts(arena: Arena, radius: float, count: int, generator: torch.Generator) -> Tensor:
    """Movements: on the sphere, anywhere in the ball, and along the metric's longest directions."""
    n = arena.n
    found = radius * unit(torch.randn(count, n, dtype=D, generator=generator))
    inner = torch.rand(count, 1, dtype=D, generator=generator) ** (1 / n)
    found = torch.where(torch.arange(count)[:, None] % 3 == 1, inner * found, found)
    longest = torch.linalg.svd(arena.X)[2][: max(1, count // 6)]
    signs = torch.where(torch.rand(len(longest), 1, dtype=D, generator=generator) < 0.5, -1.0, 1.0).to(D)
    found[2 : 2 + 3 * len(longest) : 3] = (radius * signs * longest)[: len(found[2 : 2 + 3 * len(longest) : 3])]
    return found


def ascend(
    arena: Arena, delta: Tensor, radius: float, *, rounds: int, less: float = 0.0, polish: int = 30
) -> tuple[Found, Tensor]:
    """Climb towards the state of the ball at which ``|L (J(z) - less J(c)) L^-1|_2`` is largest; best, and all ends.

    Rounds of power iteration for the directions, and of steps towards the state where that pair of directions sees
    most. Every other member takes the whole step, the rest go half of the way.
    """
    w = unit(torch.randn(delta.shape, dtype=D, generator=torch.Generator().manual_seed(len(delta))))
    whole = torch.arange(len(delta))[:, None] % 2 == 0
    held = less * arena.jacobian if less else None

    def iterate(here: Here, w: Tensor, times: int) -> tuple[Tensor, Tensor, Tensor]:
        """Left and right direction, and what the right one showed before the last step."""
        for _ in range(times):
            image = here.push(w) if held is None else here.push(w) - w @ held.mT
            size, u = image.norm(dim=1), unit(image)
            pulled = here.pull(u) if held is None else here.pull(u) - u @ held
            w = torch.where(pulled.norm(dim=1, keepdim=True) > 0, unit(pulled), w)
        return u, w, size

    best, best_w, best_size = delta, w, torch.full((len(delta),), -1.0, dtype=D)
    for k in range(rounds + 1):
        here = arena.at(delta)
        u, w, size = iterate(here, w, 3)
        better = size > best_size
        best_size = torch.where(better, size, best_size)
        best, best_w = (torch.where(better[:, None], new, old) for new, old in ((delta, best), (w, best_w)))
        if k == rounds:
            break
        slope = unit(here.bend(u, w))
        step = torch.where(whole, slope, unit(unit(delta) + slope))
        delta = torch.where(slope.norm(dim=1, keepdim=True) > 0.5, radius * step, delta)
    top = int(best_size.argmax())
    here = arena.at(best[top : top + 1])
    _, direction, _ = iterate(here, best_w[top : top + 1], polish)
    size = iterate(here, direction, 1)[2]  # what that direction shows
    return Found(best[top], direction[0], float(size)), best


def far_pairs(
    arena: Arena, radius: float, count: int, rounds: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The pair of the ball's points that the step brings least together, relatively: gradient ascent on both."""
    a, b = starts(arena, radius, count, generator), starts(arena, radius, count, generator)
    b = torch.where(torch.arange(count)[:, None] % 4 == 0, -a, b)
    best, best_ratio = (a, b), torch.zeros(count, dtype=D)
    for k in range(rounds + 1):
        p, q = a.clone().requires_grad_(), b.clone().requires_grad_()
        ratio = (arena.step(p) - arena.step(q)).norm(dim=1) / (p - q).norm(dim=1).clamp_min(1e-300)
        better = ratio.detach() > best_ratio
        best_ratio = torch.where(better, ratio.detach(), best_ratio)
        best = tuple(torch.where(better[:, None], new, old) for new, old in zip((a, b), best, strict=True))
        if k == rounds:
            break
        slopes = torch.autograd.grad(ratio.sum(), (p, q))
        moved = [x + 0.7 * 0.93**k * radius * unit(g) for x, g in zip((a, b), slopes, strict=True)]
        a, b = (x * (radius / x.norm(dim=1, keepdim=True)).clamp_max(1.0) for x in moved)
    top = int(best_ratio.argmax())
    return best[0][top], best[1][top]


def escape(
    arena: Arena, radius: float, *, count: int, rounds: int, generator: torch.Generator, limit: float = 1e3
) -> tuple[float, Found] | None:
    """The smallest radius at which a climb finds ``|L J(z) L^-1|_2 >= 1``, and what it found; None up to a limit."""
    delta, reach = starts(arena, radius, count, generator), radius
    found, ends = ascend(arena, delta, reach, rounds=rounds)
    while found.size < 1:
        reach *= 1.5  # choice: of the search
        if not reach < limit * radius:
            return None
        found, ends = ascend(arena, 1.5 * ends, reach, rounds=rounds)
    # Inwards along the ray, then climbing again on smaller spheres, until it does not help any more.
    for _ in range(30):
        low, high = 0.0, float(found.delta.norm())
        for _ in range(20):
            middle = (low + high) / 2
            at, _ = ascend(arena, unit(found.delta)[None] * middle, middle, rounds=0)
            low, high = (low, middle) if at.size >= 1 else (middle, high)
        at, _ = ascend(arena, unit(found.delta)[None] * high, high, rounds=0)
        found = at if at.size >= 1 else found
        reach = float(found.delta.norm())
        smaller, _ = ascend(
            arena, 0.98 * reach * unit(torch.cat([found.delta[None], ends])), 0.98 * reach, rounds=rounds
        )
        if smaller.size < 1:
            return reach, found
        found = smaller
    return reach, found


def stray(
    arena: Arena, radius: float, *, count: int, generator: torch.Generator, more: Tensor, steps: int = 300,
    limit: float = 1e4,
) -> float | None:  # fmt: skip
    """The smallest radius at which a start is found that is not in the ball after some hundred steps; None to a limit.

    Floats all the way: a figure, not a proof.
    """
    rays = unit(torch.cat([torch.randn(count, arena.n, dtype=D, generator=generator), more, -more]))

    def lost(delta: Tensor) -> Tensor:
        for _ in range(steps):
            delta = arena.step(delta).detach()  # with gradients off, torch's encoder layer would take its fused path
        return ~(delta.norm(dim=1) <= radius)

    reach = radius
    while not bool((gone := lost(reach * rays)).any()):
        reach *= 2  # choice: of the search
        if not reach < limit * radius:
            return None
    rays = rays[gone]
    low, high = torch.zeros(len(rays), dtype=D), torch.full((len(rays),), reach, dtype=D)
    for _ in range(15):
        middle = (low + high) / 2
        gone = lost(middle[:, None] * rays)
        low, high = torch.where(gone, low, middle), torch.where(gone, middle, high)
    return float(high.min())


# The judge, at 300 bits. Use within exact_blocks.precision().


def norm(v: np.ndarray) -> arb:
    return sum((x * x for x in v.flatten()), arb(0)).sqrt()


def share(truth: arb, bound: float) -> float:
    """Truth over bound, rounded up: at most 1.0 only if it is certain that the truth is not above the bound."""
    if bound == 0:
        return 0.0 if truth <= 0 else math.inf
    ratio = truth / arb(bound)
    if ratio <= 1:
        return min(1.0, up(ratio))
    return max(up(ratio), math.nextafter(1.0, 2.0)) if ratio.is_finite() else math.inf


def up(value: arb) -> float:
    return math.nextafter(float(value.abs_upper()), math.inf)


class Judge:
    """What is true near a centre, in a metric."""

    def __init__(self, exact: Map, centre: Tensor, metric: Metric) -> None:
        self.exact, self.shape = exact, tuple(centre.shape[1:])
        self.centre = exact_blocks.reals(centre.reshape(-1))
        self.L = arb_mat([[arb(v) for v in row] for row in metric.L.tolist()])
        self.X = metric.inverse

    def step(self, z: np.ndarray) -> np.ndarray:
        """F of a flat state."""
        return self.exact(z.reshape(self.shape)).flatten()

    def size(self, v: np.ndarray) -> arb:
        """|v|_P."""
        column = self.L * arb_mat(len(v), 1, list(v))
        return sum((x * x for x in column.entries()), arb(0)).sqrt()

    def offset(self, delta: Tensor) -> np.ndarray:
        """z - c for a movement in the metric: floats, taken as they are."""
        return exact_blocks.reals(self.X @ delta)

    def ratio(self, a: np.ndarray, b: np.ndarray, radius: float) -> arb:
        """|F(a) - F(b)|_P / |a - b|_P for two offsets that are certainly in the ball."""
        for point in (a, b):
            if not self.size(point) <= arb(radius):
                raise ValueError(f"a point of a pair is not in the ball of radius {radius}; the search is wrong")
        return self.size(self.step(self.centre + a) - self.step(self.centre + b)) / self.size(a - b)

    def rate(self, delta: Tensor, direction: Tensor, radius: float) -> arb:
        """The Jacobian's norm at a state of the ball, in one direction: a pair 2^-60 of the radius apart."""
        w, h = self.offset(unit(direction)), arb(radius) * arb(2) ** -exact_blocks.STEP
        z = self.offset(delta * INSIDE)
        return self.ratio(z + w * h, z - w * h, radius)

    def at_centre(self, direction: Tensor) -> arb:
        """``|J(c) w|_P / |w|_P``, by a difference over 2^-60: known to 30 digits."""
        w, h = self.offset(unit(direction)), arb(2) ** -exact_blocks.STEP
        moved = self.step(self.centre + w * h) - self.step(self.centre - w * h)
        return self.size(moved) / self.size(w * (2 * h))

    def change(self, delta: Tensor, direction: Tensor) -> arb:
        """``|(J(z) - J(c)) w|_P / |w|_P``, by differences over 2^-60: known to 30 digits."""
        w, h = self.offset(unit(direction)), arb(2) ** -exact_blocks.STEP
        there, here = self.centre + self.offset(delta), self.centre
        moved = self.step(there + w * h) - self.step(there - w * h)
        held = self.step(here + w * h) - self.step(here - w * h)
        return self.size(moved - held) / self.size(w * (2 * h))

    def fixed_point(self, jacobian: Tensor) -> np.ndarray:
        """z* - c to 60 digits, by steps of Newton's method with a float inverse; refused if they do not settle."""
        n = len(self.centre)
        inverse = torch.linalg.inv(torch.eye(n, dtype=D) - jacobian)
        A = arb_mat([[arb(v) for v in row] for row in inverse.tolist()])
        middle = exact_blocks.entrywise(lambda v: v.mid())  # else the balls would widen from step to step
        found = middle(self.centre * 0)
        for _ in range(12):
            gap = self.step(self.centre + found) - self.centre - found
            found = middle(found + np.array((A * arb_mat(n, 1, list(gap))).entries(), dtype=object))
            if norm(gap) < arb(2) ** -240:
                return found
        raise ValueError("no fixed point was found near the centre")


# Certificates, claim by claim.


@dataclass(frozen=True)
class Tally:
    """One claim under attack: how often, and the worst share of truth in bound."""

    attacks: int
    worst: float


def attack_certificate(
    cert: Certificate, subject: Subject, jacobian: Tensor, *, count: int, rounds: int, seed: int = 0
) -> dict[str, Tally]:
    """Every claim of a certificate of an attracting point; shares above 1 refute it.

    Args:
        cert: PROVED_ATTRACTING.
        subject: What it is about.
        jacobian: J at the centre, about.
        count: Starts of each search.
        rounds: Steps of each search.
        seed: Of the starts.
    """
    generator = torch.Generator().manual_seed(seed)
    metric, radius = cert.metric, cert.radius
    arena = Arena(subject.loop, cert.centre, metric)
    zero, tried = torch.zeros(1, arena.n, dtype=D), count * (rounds + 1)
    whole, _ = ascend(arena, starts(arena, radius, count, generator), radius, rounds=rounds)
    change, _ = ascend(arena, starts(arena, radius, count, generator), radius, rounds=rounds, less=1.0)
    centre, _ = ascend(arena, zero, 0.0, rounds=0, polish=200)
    far = far_pairs(arena, radius, count, rounds, generator)
    near, _ = ascend(arena, starts(arena, cert.error_bound, 4, generator), cert.error_bound, rounds=2)
    longest = torch.linalg.svd(metric.L)[2]
    claims: dict[str, Tally] = {}
    with exact_blocks.precision():
        judge = Judge(subject.exact, cert.centre, metric)
        Y = judge.size(judge.step(judge.centre) - judge.centre)
        star = judge.fixed_point(jacobian)
        claims["residual"] = Tally(1, share(Y, cert.residual))
        claims["rate at the centre"] = Tally(1, share(judge.at_centre(centre.direction), cert.centre_rate))
        claims["rate over the ball"] = Tally(tried, share(judge.rate(whole.delta, whole.direction, radius), cert.rate))
        # The bound that counts is the difference of the recorded numbers, taken exactly.
        room = arb(cert.rate) - arb(cert.centre_rate)
        bent = judge.change(change.delta * INSIDE, change.direction) / room
        claims["change of the Jacobian"] = Tally(tried, share(bent, 1.0) if room > 0 else math.inf)
        a, b = (judge.offset(x * INSIDE) for x in far)
        claims["rate between far points"] = Tally(tried, share(judge.ratio(a, b, radius), cert.rate))
        claims["error bound"] = Tally(1, share(judge.size(star), cert.error_bound))
        if cert.error_bound > 0:
            found = judge.rate(near.delta, near.direction, cert.error_bound)
            claims["rate in the long run"] = Tally(12, share(found, cert.error_rate))
        claims["trajectories"] = _trajectories(judge, arena, cert, star, whole, count, generator)
        claims["distance"] = _distances(judge, cert, arena, count, generator)
        inner = exact_blocks.reals(longest[0])
        claims["Euclidean ball inside"] = Tally(
            1, share(judge.size(inner) * arb(cert.euclidean_radius) / norm(inner), radius)
        )
        outer = exact_blocks.reals(longest[-1])
        claims["Euclidean error bound"] = Tally(
            1, share(norm(outer) * arb(cert.error_bound) / judge.size(outer), cert.euclidean_error_bound)
        )
        if cert.decisions is not None:
            claims["decisions"] = _decisions(judge, cert, subject)
    return claims


def _trajectories(
    judge: Judge,
    arena: Arena,
    cert: Certificate,
    star: np.ndarray,
    worst: Found,
    count: int,
    generator: torch.Generator,
) -> Tally:
    """Every step takes the distance to the fixed point below the rate times what it was, and stays in the ball."""
    rays = [worst.delta, -worst.delta, *starts(arena, cert.radius, min(count, 6), generator)]
    found = 0.0
    for ray in rays:
        z = judge.offset(ray * INSIDE)
        for _ in range(3):
            image = judge.step(judge.centre + z) - judge.centre
            before, after = judge.size(z - star), judge.size(image - star)
            found = max(found, share(after / before, cert.rate))
            reach = arb(cert.rate) * judge.size(z) + arb(cert.residual)
            found = max(found, share(judge.size(image) / reach, 1.0), share(judge.size(image), cert.radius))
            z = exact_blocks.entrywise(lambda v: v.mid())(image)
    return Tally(3 * len(rays), found)


def _distances(judge: Judge, cert: Certificate, arena: Arena, count: int, generator: torch.Generator) -> Tally:
    found = 0.0
    for delta in starts(arena, cert.radius, count, generator):
        state = cert.centre + (arena.X @ delta).reshape(cert.centre.shape)
        truth = judge.size(exact_blocks.reals(state.reshape(-1)) - judge.centre)
        found = max(found, share(truth, cert.distance(state)))
        if cert.holds(state) and not truth <= arb(cert.radius):
            found = math.inf
    return Tally(count, found)


def _decisions(judge: Judge, cert: Certificate, subject: Subject) -> Tally:
    """The radius of a token's answer over the shortest movement that changes it, along a rival's best direction."""
    W = subject.readout.weight.detach()
    weight, found, tried = exact_blocks.reals(W), 0.0, 0
    width = W.shape[1]
    z = judge.centre.reshape(-1, width)
    for t, (top, radius) in enumerate(
        zip(cert.decisions.answer.flatten().tolist(), cert.decisions.radius.flatten().tolist(), strict=True)
    ):
        margins = weight[top] @ z[t] - weight @ z[t]
        for j in range(len(W)):
            if j == top:
                continue
            row = torch.zeros(len(z), width, dtype=D)
            row[t] = W[j] - W[top]
            way = judge.offset(judge.X.mT @ row.reshape(-1))
            gain = sum((p * q for p, q in zip(weight[j] - weight[top], way.reshape(-1, width)[t], strict=True)), arb(0))
            # Along `way` rival j draws level after margin / gain of it.
            tried += 1
            found = max(found, share(arb(radius) / (judge.size(way) * margins[j] / gain), 1.0) if gain > 0 else 0.0)
    return Tally(tried, found)
