"""The checker's own bound over a ball against attacks: no state of the ball has a Jacobian of a larger norm.

The bound comes out of the report of a file whose radius was changed. Attacks: random states of the sphere, and ascent
on the norm of the Jacobian's change.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from check.test_check import BLOCKS, certified, parts, put
from torch import Tensor
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpcheck.certify.record import save
from fpcheck.check import check
from fpcheck.loop import Loop

D = torch.float64


def jacobian(loop: Loop, z: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return jacrev(lambda q: loop(q.reshape(z.shape)).reshape(-1))(z.reshape(-1)).detach()


def ascended(loop: Loop, c: Tensor, L: Tensor, X: Tensor, J: Tensor, delta: Tensor, radius: float) -> Tensor:
    """A step towards the state of the sphere where <u, L J(z) X v> is largest, u and v from the current change."""
    moved = jacobian(loop, c + (X @ delta).reshape(c.shape)) - J
    left, _, right = torch.linalg.svd(L @ moved @ X)
    u, v = L.T @ left[:, 0], X @ right[0]
    z = (c.reshape(-1) + X @ delta).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (g,) = torch.autograd.grad(loop(z.reshape(c.shape)).reshape(-1), z, u, create_graph=True)
        (slope,) = torch.autograd.grad(g @ v, z)
    slope = X.T @ slope
    return radius * slope / slope.norm().clamp_min(1e-300)


CURVED = [name for name in BLOCKS if name not in ("linear", "damped", "repelling")]
SHARP = ("gates", "attention", "encoder, causal", "fprm, plain", "softmax of itself", "smooth")


@pytest.mark.parametrize(
    ("name", "setting"), [*((name, "fast") for name in CURVED), *((name, "sharp") for name in SHARP)]
)
def test_no_state_of_the_ball_beats_the_checker(name: str, setting: str, tmp_path: Path):
    found, loop = certified(name, setting)
    c, L = found.centre, found.metric.L
    X, J = torch.linalg.inv(L), jacobian(loop, c)
    document, arrays = parts(save(found, tmp_path / "one"))
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for factor in (0.1, 0.9):
        radius = factor * found.radius
        document["bounds"]["radius"]["value"] = radius
        document["bounds"]["euclidean_radius"]["value"] = 0.0
        # So small that every form of the bound is tried.
        document["bounds"]["rate"]["value"] = document["bounds"]["near_rate"]["value"]
        report = check(put(tmp_path / "other", document, arrays), full=True)
        line = next(line for line in report.lines if line.name == "rate")
        bound = float(line.recomputed) * (1 + 1e-8)  # it is printed with nine digits
        for _ in range(3):
            delta = torch.randn(len(L), dtype=D, generator=generator)
            delta = radius * delta / delta.norm()
            for _ in range(3):
                there = L @ jacobian(loop, c + (X @ delta).reshape(c.shape)) @ X
                assert float(torch.linalg.matrix_norm(there, 2)) <= bound
                change = float(torch.linalg.matrix_norm(there - L @ J @ X, 2))
                worst = max(worst, change / (bound - found.centre_rate))
                delta = ascended(loop, c, L, X, J, delta, radius)
    # A bound of infinity would pass; a bend that is left out would show as a ratio above 1.
    assert 1 / 30 < worst <= 1
