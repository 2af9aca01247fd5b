"""What does not attract is never proved to, and its damped or iterated view is proved where that map contracts.

tests/certify/test_curvature.py holds the single maps. Here are their views, in both directions; loops that settle by
damping only; and spectra drawn by Hypothesis, decided exactly: a matrix of 1 x 1 and 2 x 2 diagonal blocks with
anything above them has the blocks' eigenvalues, whose moduli squared are fractions.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import attacks
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Linear, normal, orthogonal, randn, rotation, small_fprm
from torch import Tensor, nn

from fpcheck.certify import Certificate, Verdict, certify
from fpcheck.loop import Loop
from fpcheck.solve import Anderson
from fpcheck.status import Status

D = torch.float64
ATTRACTING, REFUTED = Verdict.PROVED_ATTRACTING, Verdict.REFUTED


class Bent(nn.Module):
    """A tanh(z) + x, whose fixed point for x = 0 is 0, with the Jacobian A."""

    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z) @ self.A.mT + x


def straight(A: Tensor) -> tuple[Loop, Tensor]:
    """A z + x, and its fixed point."""
    x = randn(1, len(A), seed=1)
    return Loop(Linear(A), x), torch.linalg.solve(torch.eye(len(A), dtype=D) - A, x.mT).mT


def bent(A: Tensor) -> tuple[Loop, Tensor]:
    zero = torch.zeros(1, len(A), dtype=D)
    return Loop(Bent(A), zero), zero


def is_sound(cert: Certificate) -> None:
    """What a certificate that proves no attraction may not say."""
    assert cert.verdict is not ATTRACTING
    assert cert.reason
    if cert.metric is not None:
        assert not cert.holds(cert.centre)
        if cert.decisions is not None:
            assert not bool(cert.decided(cert.centre).any())


# Views. For an eigenvalue l of the step, damping has 1 + s (l - 1), and k steps have l^k.

Build = Callable[[Tensor], tuple[Loop, Tensor]]
FLIP = normal(-1.1, 0.5, 0.2)  # 1 - 2.1 s: attracts for s < 2 / 2.1 = 0.952
TURN = 1.2 * rotation(80)  # |1 - s w| < 1 for s < 2 Re w / |w|^2 = 0.782, w = 1 - 1.2 exp(80 i)
REPELS = normal(1.001, 0.3, -0.4, 0.2)  # 1 + 0.001 s: no damping helps
NEARLY = normal(0.999, 0.3, -0.4, 0.2)
# Name: matrix, view, and whether the view's map attracts.
VIEWS: dict[str, tuple[Tensor, Callable[[Loop], Loop], bool]] = {
    "flip": (FLIP, lambda loop: loop, False),
    "flip, damped by 0.95": (FLIP, lambda loop: loop.damped(0.95), True),
    "flip, damped by 0.954": (FLIP, lambda loop: loop.damped(0.954), False),
    "flip, twice": (FLIP, lambda loop: loop.iterated(2), False),
    "flip, damped, three times": (FLIP, lambda loop: loop.damped(0.9).iterated(3), True),
    "Neimark-Sacker": (TURN, lambda loop: loop, False),
    "Neimark-Sacker, damped by 0.77": (TURN, lambda loop: loop.damped(0.77), True),
    "Neimark-Sacker, damped by 0.79": (TURN, lambda loop: loop.damped(0.79), False),
    "Neimark-Sacker, five times": (TURN, lambda loop: loop.iterated(5), False),
    "one direction repels by 1e-3": (REPELS, lambda loop: loop, False),
    "one direction repels by 1e-3, damped": (REPELS, lambda loop: loop.damped(0.1), False),
    "one direction repels by 1e-3, eight times": (REPELS, lambda loop: loop.iterated(8), False),
    "one direction attracts by 1e-3": (NEARLY, lambda loop: loop, True),
    "one direction attracts by 1e-3, damped": (NEARLY, lambda loop: loop.damped(0.5), True),
    "a contraction, overshot": (0.5 * torch.eye(3, dtype=D), lambda loop: loop.damped(4.1), False),
    "a contraction, not overshot": (0.5 * torch.eye(3, dtype=D), lambda loop: loop.damped(3.9), True),
    "a norm of 30 that contracts twice": (
        torch.tensor([[0.5, 30.0], [0.0, -0.5]], dtype=D),
        lambda loop: loop.iterated(2),
        True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("build", [straight, bent], ids=["linear", "tanh"])
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_proved_exactly_where_its_own_map_attracts(name: str, build: Build):
    A, view, attracts = VIEWS[name]
    loop, z = build(A)
    cert = certify(view(loop), z)
    if attracts:
        assert cert.verdict is ATTRACTING, cert.reason
        assert cert.holds(z)
    else:
        is_sound(cert)
        # The fixed point is there for all that; no eigenpair of a repeated eigenvalue stands alone to be enclosed.
        assert cert.verdict is (Verdict.PROVED_EXISTS if "overshot" in name else REFUTED)
        assert cert.distance(z) <= cert.error_bound + 1e-12


def test_drift_has_no_fixed_point_and_no_verdict_says_so():
    loop = Loop(Linear(torch.eye(3, dtype=D)), torch.full((1, 3), 1e-3, dtype=D))
    for view in (loop, loop.damped(0.3), loop.iterated(3)):
        cert = certify(view, torch.zeros(1, 3, dtype=D))
        assert cert.verdict is Verdict.UNKNOWN
        is_sound(cert)
    # Where 0.1 % contracts, the same loop has a point far off, and it is found.
    near = Loop(Linear(0.999 * torch.eye(3, dtype=D)), torch.full((1, 3), 1e-3, dtype=D))
    found = certify(near, torch.zeros(1, 3, dtype=D))
    assert found.verdict is ATTRACTING
    assert found.distance(torch.ones(1, 3, dtype=D)) <= found.error_bound + 1e-9


def test_a_block_that_settles_by_damping_only():
    # The puzzle block ends in a cycle of two; half steps settle, on a point that repels full ones.
    subject = attacks.fprm("conv2d, puzzle token", step=0.5)
    assert subject.loop.step == 0.5
    plain = Loop(subject.loop.block, subject.loop.x)
    after = attacks.settled(plain, subject.state + 1e-6)
    assert float((plain(after) - after).detach().norm()) > 0.1
    cert = certify(subject.loop, subject.state, readout=subject.readout)
    assert cert.verdict is ATTRACTING
    assert bool(cert.decision_stable.all())
    full = certify(plain, subject.state, readout=subject.readout)
    is_sound(full)
    assert full.verdict is REFUTED
    # Both speak of the same point.
    assert float((full.centre - cert.centre).norm()) <= full.euclidean_error_bound + cert.euclidean_error_bound + 1e-12
    # On the cycle itself there is nothing.
    assert certify(plain, after).verdict is not ATTRACTING


@pytest.mark.parametrize("scale", [0.4, 3.0])
def test_a_block_without_residual_scale(scale: float):
    # Its weights enlarged, a pre-norm block without scaling has a repelling point, which Anderson's method finds.
    loop, z = small_fprm("plain", residual_scale="none", hidden_size=4, mlp_multiple=4, norm_placement="output")
    with torch.no_grad():
        for parameter in loop.block.parameters():
            parameter.mul_(scale if parameter.ndim == 2 else 1.0)
    single = loop.sample(0)
    found = Anderson(rtol=1e-12, memory=8, max_steps=3000).solve(single, z[:1])
    assert found.status[0] is Status.CONVERGED
    J = attacks.enclose(single, found.value).jacobian
    attracts = float(torch.linalg.eigvals(J).abs().max()) < 1
    cert = certify(single, found.value)
    assert (cert.verdict is ATTRACTING) is attracts
    assert attracts is (scale < 1)


# Spectra, decided exactly.


@st.composite
def quasi_triangular(draw: st.DrawFn) -> tuple[Tensor, Fraction]:
    """A matrix, and its spectral radius squared, exact. The order of its coordinates is drawn too."""
    blocks = draw(st.lists(st.booleans(), min_size=1, max_size=4))
    near = st.sampled_from([1.0, 1 - 2.0**-53, 1 + 2.0**-52, 1 - 1e-9, 1 + 1e-9, 1 - 1e-3, 1 + 1e-3])
    size = st.one_of(st.floats(0, 0.9), near, st.floats(0, 3))
    parts, squares = [], []
    for pair in blocks:
        r = draw(size)
        if pair:
            a = r * draw(st.sampled_from([0.0, 1.0, -1.0, 0.6, -0.28]))
            b = (r * r - a * a) ** 0.5 if abs(a) < r else 0.0
            parts.append(torch.tensor([[a, -b], [b, a]], dtype=D))
            squares.append(Fraction(a) ** 2 + Fraction(b) ** 2)
        else:
            value = r * draw(st.sampled_from([1.0, -1.0]))
            parts.append(torch.full((1, 1), value, dtype=D))
            squares.append(Fraction(value) ** 2)
    A = torch.block_diag(*parts)
    own = torch.block_diag(*[torch.ones_like(p) for p in parts])
    above = draw(st.sampled_from([0.0, 1e-8, 1.0, 100.0])) * randn(*A.shape, seed=draw(st.integers(0, 10**6)))
    A = A + above.triu(1) * (1 - own)
    order = torch.tensor(draw(st.permutations(range(len(A)))))
    return A[order][:, order], max(squares)


@given(quasi_triangular(), st.sampled_from([0.0, 1e-9, 1.0]))
def test_no_spectral_radius_of_1_or_more_is_ever_proved(drawn, offset):
    A, square = drawn
    n = len(A)
    x = randn(1, n, seed=1)
    M = torch.eye(n, dtype=D) - A
    star = torch.linalg.lstsq(M, x.mT).solution.mT  # where I - A is singular: anywhere
    cert = certify(Loop(Linear(A), x), star + offset * randn(1, n, seed=2))
    if square >= 1:
        is_sound(cert)
    if cert.verdict is ATTRACTING:
        assert square < 1
        # Rates are bounds on the spectral radius.
        assert Fraction(cert.rate) ** 2 >= square
        assert Fraction(cert.centre_rate) ** 2 >= square


@given(
    st.lists(st.floats(-0.98, 0.98), min_size=1, max_size=4),
    st.lists(st.tuples(st.floats(0, 0.98), st.floats(0.1, 3.0)), max_size=2),
    st.integers(0, 10**6),
)
def test_every_spectral_radius_clearly_below_1_is_proved(values, pairs, seed):
    # Seen through a basis of condition up to 100; rho at most 0.98 and rounding of 1e-14 are far apart.
    spectrum = [*values, *[r * complex(torch.cos(torch.tensor(a)), torch.sin(torch.tensor(a))) for r, a in pairs]]
    A = normal(*spectrum, seed=seed)
    n = len(A)
    S = orthogonal(n, seed + 1) * torch.logspace(0, 1 if n > 1 else 0, n, dtype=D)
    A = S @ A @ torch.linalg.inv(S)
    loop, star = straight(A)
    cert = certify(loop, star)
    assert cert.verdict is ATTRACTING, cert.reason
    assert cert.radius >= 1e6  # a linear step contracts everywhere
    # And the same spectrum pushed out to 1.001 is not.
    radius = max(abs(v) for v in spectrum)
    if radius > 0.1:
        loop, star = straight(A * (1.001 / radius))
        is_sound(certify(loop, star))


@pytest.mark.slow
@pytest.mark.parametrize("index", range(3))
def test_the_shipped_model_without_scaling_is_never_proved_from_where_it_gets_to(index: int):
    # From the fixed point that only Anderson's method finds; tests/certify/test_curvature.py asks from the trajectory.
    from fpcheck.settle import settle
    from fpcheck.target import Data, find_target

    target = find_target("s3-unscaled", Data(inputs=3, seed=0)).to(D)
    loop = Loop(target.block, target.x, z0=target.z0).sample(index)
    found = settle(loop, target.z0[index : index + 1], max_steps=300)
    cert = certify(loop, found.points, readout=target.readout)
    is_sound(cert)
