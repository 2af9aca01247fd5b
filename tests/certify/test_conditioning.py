"""Bounds on the inverse of I - J and on what injections do, against Arb's inverses and against loops that run."""

from __future__ import annotations

import math

import exact_blocks
import pytest
import torch
from flint import arb, arb_mat
from problems import Linear, normal, randn, rotation, small_fprm
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn import functional as F

from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.conditioning import conditioning, verified_inverse
from fpcheck.certify.curvature import linearise
from fpcheck.certify.enclosure import enclose
from fpcheck.certify.inputs import nearby
from fpcheck.certify.metric import dual_stein, euclidean
from fpcheck.certify.search import certify
from fpcheck.errors import InputError
from fpcheck.loop import Loop

D = torch.float64


class Step(nn.Module):
    """F(z; x) = f(z, x, A)."""

    def __init__(self, f, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)
        self.f = f

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.f(z, x, self.A)


def inside(z: Tensor, x: Tensor, A: Tensor) -> Tensor:
    return torch.tanh(z @ A.mT + x)


def gated(z: Tensor, x: Tensor, A: Tensor) -> Tensor:
    return 0.6 * F.silu(x) * torch.tanh(z @ A.mT)[..., : x.shape[-1]] + 0.3 * x


LOOPS = {
    "inside": lambda: (Loop(Step(inside, normal(0.7, -0.5, 0.4)), randn(1, 3)), torch.zeros(1, 3, dtype=D)),
    "gated": lambda: (Loop(Step(gated, randn(4, 4, seed=3) / 2), randn(1, 4)), torch.zeros(1, 4, dtype=D)),
    "linear": lambda: (Loop(Linear(normal(0.9, -0.5, 0.4)), randn(1, 3)), torch.zeros(1, 3, dtype=D)),
    "fprm": lambda: (lambda loop, z: (loop.sample(0), z[:1]))(
        *small_fprm("plain", L_layers=1, hidden_size=4, mlp_multiple=4)
    ),
}


def settled(loop: Loop, z: Tensor) -> Tensor:
    with torch.no_grad():
        for _ in range(400):
            z = loop(z)
    return z


_KNOWN: dict[str, tuple[Loop, Certificate]] = {}


def known(name: str) -> tuple[Loop, Certificate]:
    if name not in _KNOWN:
        loop, z = LOOPS[name]()
        cert = certify(loop, settled(loop, z))
        assert cert.verdict is Verdict.PROVED_ATTRACTING, cert.reason
        _KNOWN[name] = loop, cert
    return _KNOWN[name]


def bounded(M: arb_mat, L: Tensor, bound: float) -> bool:
    """Whether |L M L^-1|_2 <= bound, by elimination of bound^2 I - (.)'(.) at 300 bits."""
    root = arb_mat([[arb(v) for v in row] for row in L.tolist()])
    M = root * M * root.inv()
    gram, n, square = M.transpose() * M, M.ncols(), arb(bound) ** 2
    rows = [[square * (i == j) - gram[i, j] for j in range(n)] for i in range(n)]
    for k in range(n):
        if not rows[k][k] > 0:
            return False
        for i in range(k + 1, n):
            factor = rows[i][k] / rows[k][k]
            for j in range(k, n):
                rows[i][j] -= factor * rows[k][j]
    return True


def inverse(J: Tensor) -> arb_mat:
    n = len(J)
    return arb_mat([[arb(int(i == j)) - arb(J[i, j].item()) for j in range(n)] for i in range(n)]).inv()


MATRICES = {
    "normal": normal(0.9, -0.5, 0.3 + 0.6j),
    "rotating out": 1.2 * rotation(80),
    "shear": torch.tensor([[0.9, 5.0], [0.0, 0.5]], dtype=D),
    "random": randn(6, 6, seed=1),
}


@pytest.mark.parametrize("change", [0.0, 1e-6, 1e-2])
@pytest.mark.parametrize("name", MATRICES)
def test_the_inverse_of_every_matrix_near_is_bounded_and_the_bound_is_near(name, change):
    J = MATRICES[name]
    for metric in (euclidean(len(J)), dual_stein(J, 1.5 + float(torch.linalg.eigvals(J).abs().max()))):
        bound = verified_inverse(J, 0.0, metric, change)
        if change == 1e-2 and bound == math.inf:
            continue
        A = metric.L @ torch.linalg.inv(torch.eye(len(J), dtype=D) - J) @ metric.inverse
        u, s, v = torch.linalg.svd(A)
        # The change along the top singular vectors, which grows the inverse most: to s / (1 - s change).
        worst = metric.inverse @ (change * (1 - 1e-9) * torch.outer(v[0], u[:, 0])) @ metric.L
        with exact_blocks.precision():
            for E in (torch.zeros_like(J), worst, -worst):
                assert bounded(inverse(J + E), metric.L, bound)
        assert bound <= float(s[0]) / (1 - float(s[0]) * change) * (1 + 1e-6)
        with exact_blocks.precision():
            assert not bounded(inverse(J + worst), metric.L, bound * (1 - 1e-5))


def test_a_singular_matrix_or_one_that_may_be_has_no_bound():
    assert verified_inverse(torch.eye(2, dtype=D), 0.0, euclidean(2), 0.0) == math.inf
    # 1 - 0.9 = 0.1: a change of 0.1 may make it singular.
    J = 0.9 * torch.eye(2, dtype=D)
    assert verified_inverse(J, 0.0, euclidean(2), 0.1) == math.inf
    assert verified_inverse(J, 0.1, euclidean(2), 0.0) == math.inf
    assert verified_inverse(J, 0.0, euclidean(2), 0.05) == pytest.approx(20.0)


def jacobian(loop: Loop, z: Tensor) -> Tensor:
    return jacrev(lambda q: loop(q.reshape(z.shape)).reshape(-1))(z.reshape(-1)).detach()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("name", LOOPS)
def test_over_a_ball_no_state_has_a_larger_inverse_or_change(name, share):
    loop, cert = known(name)
    held = enclose(loop, cert.centre)
    radius = max(cert.error_bound, share * min(cert.radius, 1.0))
    found = conditioning(held, linearise(held), cert, radius=radius)
    L, X = cert.metric.L, cert.metric.inverse
    n = cert.centre.numel()
    eye = torch.eye(n, dtype=D)
    for seed in range(12):
        delta = randn(n, seed=seed) if seed else torch.zeros(n, dtype=D)
        delta = radius * delta / delta.norm().clamp_min(1e-300)
        J = jacobian(loop, cert.centre + (X @ delta).reshape(cert.centre.shape))
        own = torch.linalg.inv(eye - J)
        # Singular values of Jacobians in float64 are right to some 1e-13 here.
        assert float(torch.linalg.matrix_norm(own, 2)) <= found.inverse * (1 + 1e-12)
        assert float(torch.linalg.matrix_norm(L @ own @ X, 2)) <= found.metric_inverse * (1 + 1e-12)
        bent = J - held.jacobian
        assert float(torch.linalg.matrix_norm(bent, 2)) <= found.change + 1e-13
        assert float(torch.linalg.matrix_norm(L @ bent @ X, 2)) <= found.metric_change + 1e-12
    if share == 0.0:
        true = float(torch.linalg.matrix_norm(torch.linalg.inv(eye - held.jacobian), 2))
        assert found.inverse <= true * (1 + 1e-6)
        assert found.metric_inverse < 1.01 / (1 - cert.centre_rate)


def test_a_repelling_fixed_point_has_a_bound_too():
    loop = Loop(Linear(1.2 * rotation(80)), torch.ones(1, 2, dtype=D))
    star = torch.linalg.solve(torch.eye(2, dtype=D) - 1.2 * rotation(80), torch.ones(2, 1, dtype=D)).mT
    cert = certify(loop, star)
    assert cert.verdict is Verdict.REFUTED
    held = enclose(loop, cert.centre)
    found = conditioning(held, linearise(held), cert)
    # I - J is 1.2 (cos 80 ...) away: both singular values are |1 - 1.2 e^(80 i)|.
    angle = math.radians(80)
    assert found.inverse == pytest.approx(1 / math.hypot(1 - 1.2 * math.cos(angle), 1.2 * math.sin(angle)), rel=1e-9)


def test_the_adjoint_of_the_fixed_point_is_within_the_bound():
    # The centre is the fixed point up to rounding; a ball of 1e-3 allows for any z* in it, so try many.
    loop, cert = known("inside")
    held = enclose(loop, cert.centre)
    found = conditioning(held, linearise(held), cert, radius=1e-3)
    eye = torch.eye(3, dtype=D)
    v = randn(3, seed=1)
    w = torch.linalg.solve((eye - held.jacobian).mT, v) + 1e-6 * randn(3, seed=2)
    residual = float((v - (eye - held.jacobian).mT @ w).norm()) * (1 + 1e-9)
    bound = found.adjoint_error(residual, float(w.norm()) * (1 + 1e-15))
    worst = 0.0
    for seed in range(50):
        delta = randn(3, seed=seed)
        move = cert.metric.inverse @ (1e-3 * (1 - 1e-9) * delta / delta.norm())
        J = jacobian(loop, cert.centre + move.reshape(cert.centre.shape))
        worst = max(worst, float((torch.linalg.solve((eye - J).mT, v) - w).norm()))
    assert bound / 30 < worst <= bound


def test_a_ball_that_need_not_hold_the_fixed_point_is_refused():
    loop, cert = known("inside")
    held = enclose(loop, cert.centre)
    with pytest.raises(InputError, match="expected at least error_bound"):
        conditioning(held, linearise(held), cert, radius=cert.error_bound / 2)
    drift = Loop(Linear(torch.eye(2, dtype=D)), torch.ones(1, 2, dtype=D))
    unknown = certify(drift, torch.zeros(1, 2, dtype=D))
    with pytest.raises(InputError, match="verdict=unknown"):
        conditioning(held, linearise(held), unknown)
    with pytest.raises(InputError, match="verdict=unknown"):
        nearby(drift, unknown)


# Injections.


@pytest.mark.parametrize("name", LOOPS)
def test_the_fixed_point_moves_no_faster_than_the_slope(name):
    loop, cert = known(name)
    found = nearby(loop, cert)
    n = cert.centre.numel()
    eye = torch.eye(n, dtype=D)
    J = jacobian(loop, cert.centre)

    def by_injection(x: Tensor) -> Tensor:
        return loop.with_injection(x.reshape(loop.x.shape))(cert.centre).reshape(-1)

    B = jacrev(by_injection)(loop.x.reshape(-1)).detach()
    slope = torch.linalg.solve(eye - J, B)
    # Float64 gives these to some 1e-13.
    assert float(torch.linalg.matrix_norm(slope, 2)) <= found.euclidean_slope * (1 + 1e-12)
    in_metric = float(torch.linalg.matrix_norm(cert.metric.L @ slope, 2))
    assert in_metric <= found.slope * (1 + 1e-12)
    assert found.euclidean_slope <= 5 * float(torch.linalg.matrix_norm(slope, 2))
    assert found.slope <= found.uniform_slope


@pytest.mark.parametrize("name", LOOPS)
def test_injections_in_the_radius_have_their_fixed_point_in_the_ball(name):
    loop, cert = known(name)
    found = nearby(loop, cert)
    assert found.injection_radius > 1e-4 * float(loop.x.norm())
    assert found.rate < 1
    L, X = cert.metric.L, cert.metric.inverse
    stars: list[tuple[Tensor, Tensor]] = []
    # The direction in which the fixed point moves most, and random ones, to the very edge.
    J = jacobian(loop, cert.centre)
    B = jacrev(lambda x: loop.with_injection(x.reshape(loop.x.shape))(cert.centre).reshape(-1))(loop.x.reshape(-1))
    _, _, v = torch.linalg.svd(L @ torch.linalg.solve(torch.eye(len(J), dtype=D) - J, B.detach()))
    for seed in range(8):
        step = (v[0] if seed == 0 else -v[0] if seed == 1 else randn(loop.x.numel(), seed=seed)).reshape(loop.x.shape)
        x = loop.x + found.injection_radius * (1 - 1e-9) * step / step.norm()
        moved = loop.with_injection(x)
        start = randn(len(J), seed=seed + 50)
        z = cert.centre + (X @ (found.radius * (1 - 1e-9) * start / start.norm())).reshape(cert.centre.shape)
        star = settled(moved, z)
        assert cert.distance(star) <= found.radius
        gap = float((L @ (z - star).reshape(-1)).norm())
        for _ in range(5):
            z = moved(z).detach()
            new = float((L @ (z - star).reshape(-1)).norm())
            assert new <= found.rate * gap + 1e-12
            gap = new
        stars.append((x, star))
    for x, a in stars:
        for y, b in stars:
            apart = float((L @ (a - b).reshape(-1)).norm())
            assert apart <= found.uniform_slope * float((x - y).norm()) + 1e-12


def test_one_number_has_the_exact_slope_and_all_of_the_radius():
    # z -> z/2 + x: dz*/dx = 2, everywhere; the ball is as wide as one likes.
    loop = Loop(Linear(0.5 * torch.eye(1, dtype=D)), torch.ones(1, 1, dtype=D))
    cert = certify(loop, torch.full((1, 1), 2.0, dtype=D))
    found = nearby(loop, cert)
    assert 2.0 <= found.slope * cert.metric.inverse_norm <= 2.0 * (1 + 1e-6)
    assert 2.0 <= found.euclidean_slope <= 2.0 * (1 + 1e-6)
    # |z*(x) - 2| = 2 |x - 1| is to stay below 0.7 of the radius.
    assert found.injection_radius <= 0.7 * cert.radius * cert.metric.inverse_norm / 2 * (1 + 1e-9)
    assert found.injection_radius >= 0.3 * cert.radius / cert.metric.norm / 2


def test_whole_numbers_are_no_injection_to_differentiate_by():
    loop = Loop(lambda z, x: 0.5 * z + x, torch.ones(1, 2, dtype=torch.int64), z0=torch.zeros(1, 2, dtype=D))
    cert = certify(loop, torch.full((1, 2), 2.0, dtype=D))
    assert cert.verdict is Verdict.PROVED_ATTRACTING
    with pytest.raises(InputError, match=r"injection=\['torch.int64'\]"):
        nearby(loop, cert)
