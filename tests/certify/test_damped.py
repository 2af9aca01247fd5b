"""No damping step is proved at which an eigenvalue does not contract; Arb's eigenvalues judge, without slack."""

from __future__ import annotations

import flint
import pytest
import torch
from flint import acb, acb_mat, arb
from problems import Linear, jordan, normal, randn, rotation, small_fprm
from torch import Tensor, nn

from fpcheck.certify.certificate import Verdict
from fpcheck.certify.curvature import linearise
from fpcheck.certify.damped import CertifiedStep, CertifiedSteps, certified_steps, prove_step
from fpcheck.certify.enclosure import Enclosure, enclose
from fpcheck.certify.metric import dual_stein, euclidean
from fpcheck.certify.search import certify
from fpcheck.loop import Loop
from fpcheck.spectral import critical_step

D = torch.float64


class Bent(nn.Module):
    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z) @ self.A.mT + x


def straight(A: Tensor) -> tuple[Loop, Tensor]:
    x = randn(1, len(A), seed=1)
    return Loop(Linear(A), x), torch.linalg.solve(torch.eye(len(A), dtype=D) - A, x.mT).mT


def bent(A: Tensor) -> tuple[Loop, Tensor]:
    """A tanh(z) at its fixed point 0."""
    return Loop(Bent(A), torch.zeros(1, len(A), dtype=D)), torch.zeros(1, len(A), dtype=D)


def steps(loop: Loop, z: Tensor) -> tuple[CertifiedSteps | None, Enclosure]:
    held = enclose(loop, z)
    return certified_steps(held, linearise(held)), held


def contracts(found: CertifiedStep, J: Tensor) -> None:
    """Every eigenvalue of (1 - s) I + s J, in exact arithmetic, is at most the proved rate."""
    with flint.ctx.workprec(300):
        s = arb(found.step)
        for value in acb_mat(len(J), len(J), [acb(v) for v in J.flatten().tolist()]).eig(multiple=True):
            assert abs(1 + s * (acb(value) - 1)) <= found.rate
    assert found.rate < 1


CURABLE = {
    "flip": normal(-1.1, 0.5, 0.2),
    "strong flip": normal(-9.0, 0.5, 0.2),
    "spiral": 1.2 * rotation(80),
    "nearly fold": normal(0.999, -1.5, 0.3 + 0.8j),
    "contraction": normal(0.9, -0.5, 0.3),
    "not normal": torch.tensor([[-1.5, 30.0, 0.0], [0.0, 0.5, 4.0], [0.0, 0.0, -0.2]], dtype=D),
    "random": 1.1 * randn(8, 8, seed=4) / 8**0.5 - 1.0 * torch.eye(8, dtype=D),
}


@pytest.mark.parametrize("build", [straight, bent], ids=["straight", "bent"])
@pytest.mark.parametrize("name", CURABLE)
def test_the_largest_step_is_just_below_the_critical_one(name, build):
    J = CURABLE[name]
    found, held = steps(*build(J))
    assert found is not None
    exact = held.jacobian
    critical = float(critical_step(torch.linalg.eigvals(exact)))
    assert critical * (1 - 1.1e-2) < found.largest.step < critical or found.largest.step == 1.0 < critical
    assert 0 < found.fastest.step <= found.largest.step
    assert found.fastest.rate <= found.largest.rate
    for one in (found.largest, found.fastest):
        contracts(one, exact)
    # No step does better than the least spectral radius; the best proof comes near to it.
    grid = torch.arange(1, 1001, dtype=D) / 1000 * found.largest.step
    eigenvalues = torch.linalg.eigvals(exact)
    least = float((1 + grid[:, None] * (eigenvalues - 1)).abs().amax(-1).min())
    assert least * (1 - 1e-2) <= found.fastest.rate <= least + 0.55 * (1 - least)


@pytest.mark.parametrize("build", [straight, bent], ids=["straight", "bent"])
@pytest.mark.parametrize(
    "J",
    [normal(1.05, 0.5), 1.3 * rotation(20), normal(1.001, 0.3, -0.4), jordan(1.5, 3)],
    ids=["fold", "spiral out", "one direction", "Jordan"],
)
def test_where_no_damping_helps_none_is_proved(J, build):
    assert steps(*build(J))[0] is None


def test_steps_that_eigenvalues_forbid_are_never_proved_in_any_metric():
    # The proof itself, asked for steps at and above the critical one in metrics that suit smaller ones.
    for seed in range(30):
        J = 1.2 * randn(5, 5, seed=seed) / 5**0.5 - 0.3 * torch.eye(5, dtype=D)
        critical = float(critical_step(torch.linalg.eigvals(J)))
        if not critical > 0:
            continue
        loop, z = bent(J)
        held = enclose(loop, z)
        linear = linearise(held)
        eye = torch.eye(5, dtype=D)
        fair = eye + 0.9 * critical * (J - eye)
        metric = dual_stein(fair, (1 + float(torch.linalg.eigvals(fair).abs().max())) / 2)
        assert metric is not None
        assert prove_step(held, linear, 0.9 * critical, metric) is not None
        for factor in (1 + 1e-12, 1.01, 1.5, 4.0):
            for norm in (metric, euclidean(5)):
                assert prove_step(held, linear, factor * critical, norm) is None


def test_the_ball_holds_the_fixed_point_and_starts_in_it_converge_at_the_rate():
    loop, z = small_fprm("plain", L_layers=1, hidden_size=4, mlp_multiple=4)
    loop, z = loop.sample(0), z[:1]
    with torch.no_grad():
        for _ in range(400):
            z = loop(z)
        star = z
        z = z + 1e-9 * randn(*z.shape, seed=2)
        found, _ = steps(loop, z)
        for one in (found.largest, found.fastest):
            metric, damped = one.metric, loop.damped(one.step)

            def size(v, metric=metric):
                return float((metric.L @ v.reshape(-1)).norm())

            # The state after 400 steps is the fixed point to some 1e-15, which is far below both bounds here.
            assert 1e-11 < size(star - z) <= one.error_bound
            assert one.error_bound <= one.radius
            q = z + (metric.inverse @ (0.999 * one.radius * torch.eye(z.numel(), dtype=D)[0])).reshape(z.shape)
            gap = size(q - star)
            for _ in range(5):
                q = damped(q)
                assert size(q - star) <= one.rate * gap + 1e-13
                gap = size(q - star)
            assert certify(damped, z).verdict is Verdict.PROVED_ATTRACTING


def test_a_state_far_from_any_fixed_point_gets_no_step():
    # 3 tanh(z - 1) + 10 maps 1 to 10; its slope there is 3, and no fixed point is near.
    loop = Loop(lambda z, x: 3 * torch.tanh(z - 1) + x, torch.full((1, 2), 10.0, dtype=D))
    assert steps(loop, torch.ones(1, 2, dtype=D))[0] is None
