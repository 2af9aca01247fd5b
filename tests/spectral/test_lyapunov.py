"""Exponents, stretches, returns and turns of maps whose orbits are known."""

import math
from itertools import pairwise

import problems
import pytest
import torch

from fpcheck.errors import BlockError, InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral import lyapunov as module
from fpcheck.spectral import measured_rate
from fpcheck.spectral.lyapunov import follow, local_expansion, lyapunov_exponents

F64 = torch.float64


def column(*values, dtype=F64):
    return torch.tensor([[v] for v in values], dtype=dtype)


def logistic(*r, start=0.3, dtype=F64):
    """z -> r z (1 - z), one r per sample."""
    x = column(*r, dtype=dtype)
    z0 = torch.full_like(x, start)
    return Loop(lambda z, r: r * z * (1 - z), x, z0=z0), z0


def matrices(*A):
    """z -> A z, one matrix per sample."""
    x = torch.stack([a.to(F64) for a in A])
    z0 = torch.ones(len(A), x.shape[1], dtype=F64)
    return Loop(lambda z, A: (A @ z.unsqueeze(-1)).squeeze(-1), x, z0=z0), z0


def henon():
    def step(z):
        return torch.stack([1 - 1.4 * z[:, 0] ** 2 + z[:, 1], 0.3 * z[:, 0]], dim=1)

    z0 = torch.full((1, 2), 0.1, dtype=F64)
    return Loop(step, z0=z0), z0


def delayed(*r):
    """z[k + 1] = r z[k] (1 - z[k - 1]) as a map on pairs."""
    x = column(*r)
    z0 = torch.full((len(r), 2), 0.4, dtype=F64)
    return Loop(lambda z, r: torch.stack([r[:, 0] * z[:, 0] * (1 - z[:, 1]), z[:, 0]], dim=1), x, z0=z0), z0


def cycle_exponent(r, period):
    """Mean of log |r (1 - 2 z)| over the attracting cycle, in plain Python."""
    z = 0.3
    for _ in range(10_000):
        z = r * z * (1 - z)
    total = 0.0
    for _ in range(period):
        total += math.log(abs(r * (1 - 2 * z)))
        z = r * z * (1 - z)
    return total / period


# --- exponents


def test_logistic_map_at_every_kind_of_orbit():
    # r = 2.8: the fixed point 1 - 1/r has the multiplier 2 - r = -0.8.
    # r = 3.2: the 2-cycle has the multiplier 4 + 2 r - r^2 = 0.16.
    # r = 3.5: a 4-cycle, evaluated in plain Python.
    # r = 4: ln 2 for almost every start.
    loop, z0 = logistic(2.8, 3.2, 3.5, 4.0)
    found = lyapunov_exponents(loop, z0)
    exact = [math.log(0.8), math.log(0.16) / 2, cycle_exponent(3.5, 4), math.log(2)]
    # Settled orbits repeat the same factors: nothing is left but rounding, 40 units. The chaotic one scatters:
    # log |F'(z)| = ln 2 + log f(F(z)) - log f(z) with f = sqrt(z (1 - z)), so what is left after 1000 steps is about
    # a thousandth of the spread of log f, a few units.
    for i, tolerance in enumerate([1e-14, 1e-14, 1e-14, 5e-3]):
        gap = abs(found.leading.value[i].item() - exact[i])
        assert gap < tolerance
        assert gap <= found.leading.error[i].item() < 10 * tolerance
    assert found.converged.all()
    assert found.finite.all()
    lines = found.explain().splitlines()
    assert "neighbours approach" in lines[0]
    assert "neighbours separate" in lines[3]


def test_growth_telescopes_for_the_full_logistic_map():
    # The identity above, summed over the run: exact up to the rounding of 300 logarithms. Near z = 0 and 1 the
    # logarithm of f is known to eps / z only, and z falls to about 1e-5 in 300 steps.
    loop, z0 = logistic(4.0)
    found = follow(loop, z0, steps=300)

    def log_f(z):
        return 0.5 * math.log(float(z * (1 - z)))

    expected = 300 * math.log(2) + log_f(found.state) - log_f(z0)
    assert found.growth.sum().item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("n", [2, 5])
def test_linear_maps_have_the_logarithms_of_their_moduli(n):
    # Schur forms with moduli a factor of 0.8 or less apart on the diagonal, random signs, and anything above it: the
    # frame aligns like 0.8^k, and the window weighs the first 30 of 300 steps, where it does, by 0.6 %.
    batch = 20
    generator = torch.Generator().manual_seed(n)
    gaps = 0.4 + 0.4 * torch.rand(batch, n, generator=generator, dtype=F64)
    moduli = 1.5 * gaps.cumprod(1)
    sign = torch.randint(0, 2, (batch, n), generator=generator) * 2 - 1
    T = torch.diag_embed(moduli * sign) + torch.randn(batch, n, n, generator=generator, dtype=F64).triu(1)
    Q = torch.linalg.qr(torch.randn(batch, n, n, generator=generator, dtype=F64))[0]
    loop, z0 = matrices(*(Q @ T @ Q.mT))
    found = lyapunov_exponents(loop, z0, steps=300, transient=0, count=n)
    gap = (found.value - moduli.log()).abs()
    assert bool((gap <= found.error).all())
    assert gap.max().item() < 1e-3
    # log |det| adds up exactly at every length. Rounding of eps / (smallest modulus) per step.
    assert torch.allclose(found.total.value, moduli.log().sum(1), rtol=0, atol=1e-11)


def test_pairs_and_jordan_blocks():
    # A pair of modulus 0.9 gives log 0.9 twice, however the rotation is sheared; a Jordan block grows like k 0.8^k,
    # so its mean log growth still lacks 2.4 / K and must say so.
    S = torch.diag(torch.tensor([1.0, 5.0], dtype=F64))
    loop, z0 = matrices(
        0.9 * S @ problems.rotation(37) @ S.inverse(), torch.tensor([[0.8, 1.0], [0.0, 0.8]], dtype=F64)
    )
    found = lyapunov_exponents(loop, z0, transient=0, count=2)
    exact = torch.tensor([[0.9, 0.9], [0.8, 0.8]], dtype=F64).log()
    gap = (found.value - exact).abs()
    assert bool((gap <= found.error).all())
    assert gap[0].max().item() < 1e-5
    assert 5e-4 < gap[1].max().item() < 5e-3  # 2.4 / 1000


def test_a_damped_view_has_its_own_exponents():
    # 1 - s (1 - l) for l = -1.5, s = 0.5: -0.25.
    loop, z0 = matrices(torch.tensor([[-1.5]]))
    found = lyapunov_exponents(loop.damped(0.5), z0, transient=0, steps=200)
    assert found.leading.value.item() == pytest.approx(math.log(0.25), abs=1e-12)


def test_henon_volume_shrinks_by_its_determinant():
    # det J = -0.3 everywhere, so the exponents add up to log 0.3 at every length, to rounding. The leading one is
    # 0.4192 (Sprott 2003, table of the Henon map); 1500 steps know it to the error that they state.
    loop, z0 = henon()
    found = lyapunov_exponents(loop, z0, steps=1500, count=2, tol=0.05)
    assert found.total.value.item() == pytest.approx(math.log(0.3), abs=1e-12)
    assert found.total.error.item() < 1e-10
    gap = abs(found.leading.value.item() - 0.4192)
    assert gap <= found.leading.error.item() < 0.05
    assert found.converged.all()
    # The partner: at the default tolerance the same run has not converged.
    assert not lyapunov_exponents(loop, z0, steps=400, count=2).converged.any()


def test_sum_is_the_mean_log_determinant_along_the_orbit():
    # det J = r x for the delayed logistic map, J = [[r (1 - y), -r x], [1, 0]]. Averaged here on its own, by the window
    # sin^2(pi (j + 1/2) / K).
    r, K, transient = 2.1, 200, 30
    loop, z0 = delayed(r)
    found = lyapunov_exponents(loop, z0, steps=K, transient=transient, count=2)
    x, y, total, weights = 0.4, 0.4, 0.0, 0.0
    for j in range(-transient, K):
        if j >= 0:
            w = math.sin(math.pi * (j + 0.5) / K) ** 2
            total += w * math.log(r * x)
            weights += w
        x, y = r * x * (1 - y), x
    assert found.total.value.item() == pytest.approx(total / weights, abs=1e-10)


def test_growth_is_that_of_the_product_of_the_jacobians():
    # The first direction is carried by J(z[K - 1]) ... J(z[0]), in this order: its length is the exponential of the
    # summed growth. det and the long run would not see a transpose; a product of 40 does.
    loop, z0 = delayed(2.1)
    found = follow(loop, z0, steps=40, seed=7)
    x, y, P = 0.4, 0.4, torch.eye(2, dtype=F64)
    for _ in range(40):
        P = torch.tensor([[2.1 * (1 - y), -2.1 * x], [1.0, 0.0]], dtype=F64) @ P
        x, y = 2.1 * x * (1 - y), x
    q = module._frame(z0, 1, seed=7)[0, :, 0]
    assert found.growth.sum().item() == pytest.approx(math.log((P @ q).norm().item()), abs=1e-10)
    assert abs(math.log((P.T @ q).norm().item()) - found.growth.sum().item()) > 0.01


def test_closed_curve_has_a_zero_exponent():
    # r = 1.9: the fixed point 1 - 1/r attracts with a pair of modulus sqrt(r - 1): both exponents log(0.9) / 2.
    # r = 2.1: that pair has left the circle (Neimark-Sacker at r = 2), the orbit runs along a closed curve: 0 and a
    # negative one.
    loop, z0 = delayed(1.9, 2.1)
    found = lyapunov_exponents(loop, z0, count=2)
    assert found.value[0].tolist() == pytest.approx([math.log(0.9) / 2] * 2, abs=1e-4)
    assert abs(found.value[1, 0].item()) <= found.error[1, 0].item() < 2e-3
    assert found.value[1, 1].item() < -0.1


def test_errors_cover_the_truth_about_as_often_as_they_say():
    # Skew tent map with the peak at a: slopes 1/a and 1/(1 - a) in independent steps with probabilities a and 1 - a, so
    # the exponent is -a log a - (1 - a) log(1 - a). Of 200 orbits, 95 % within the error: 190 +- 3.1.
    a, batch = 0.3, 200
    generator = torch.Generator().manual_seed(1)
    z0 = torch.rand(batch, 1, generator=generator, dtype=F64)
    loop = Loop(lambda z: torch.where(z < a, z / a, (1 - z) / (1 - a)), z0=z0, check=False)
    found = lyapunov_exponents(loop, z0, steps=400, transient=50)
    exact = -a * math.log(a) - (1 - a) * math.log(1 - a)
    gap = (found.leading.value - exact).abs()
    covered = int((gap <= found.leading.error).sum())
    assert 180 <= covered <= 198
    # The partner: half the error would not do (67 % of a normal distribution, 134 +- 6.6).
    assert int((gap <= found.leading.error / 2).sum()) < 165


def test_rotated_coordinates_change_nothing():
    # The Henon orbit itself amplifies rounding, so only the volume is compared exactly; the rest within errors.
    loop, z0 = henon()
    Q = problems.orthogonal(2, seed=3)
    turned = Loop(lambda z: loop(z @ Q) @ Q.T, z0=z0 @ Q.T)
    found = lyapunov_exponents(turned, z0 @ Q.T, count=2, tol=0.05)
    plain = lyapunov_exponents(loop, z0, count=2, tol=0.05)
    assert found.total.value.item() == pytest.approx(plain.total.value.item(), abs=1e-12)
    assert bool(((found.value - plain.value).abs() <= found.error + plain.error).all())


def test_float32_loops_say_what_their_rounding_leaves():
    loop, z0 = logistic(2.8, 3.2, dtype=torch.float32)
    found = lyapunov_exponents(loop, z0, steps=200)
    gap = (found.leading.value - torch.tensor([math.log(0.8), math.log(0.16) / 2], dtype=F64)).abs()
    assert bool((gap <= found.leading.error).all())
    assert bool((found.leading.error < 1e-5).all())  # 40 eps = 4.8e-6


def test_an_orbit_that_overflows_says_so_and_leaves_its_mates_alone():
    # Outside [0, 1] the logistic map runs to minus infinity.
    loop, _ = logistic(4.0, 4.0, 3.2)
    z0 = column(0.3, -0.5, 0.3)
    found = lyapunov_exponents(loop, z0, steps=200)
    assert found.finite.tolist() == [True, False, True]
    assert found.converged.tolist()[1:] == [False, True]
    assert math.isnan(found.value[1, 0])
    assert found.error[1, 0].item() == math.inf
    assert "left the range" in found.explain().splitlines()[1]
    alone = lyapunov_exponents(loop.sample(2), z0[2:], steps=200)
    # Up to the last bit of a logarithm, which vector units and scalar ones round differently.
    assert torch.allclose(found.value[2], alone.value[0], rtol=1e-14)
    assert torch.allclose(found.error[2], alone.error[0], rtol=1e-6)
    with pytest.raises(NonFiniteError, match="no orbit stayed finite"):
        lyapunov_exponents(loop.sample(1), z0[1:2], steps=200)


def test_a_step_that_forgets_everything_has_the_exponent_minus_infinity():
    loop = Loop(lambda z, x: 0 * z + x, column(1.0), z0=column(0.5))
    found = lyapunov_exponents(loop, column(0.5), steps=50, transient=0)
    assert found.value.item() == -math.inf
    assert found.error.item() == math.inf
    assert not found.converged


def test_a_derivative_that_is_cut_off_is_refused():
    loop = Loop(lambda z: 3.2 * z.detach() * (1 - z), z0=column(0.3))
    with pytest.raises(BlockError, match="derivative of the block is not that of its values"):
        lyapunov_exponents(loop, column(0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 39}, "steps=39; expected an integer >= 40"),
        ({"steps": 100.0}, "steps=100.0; expected an integer"),
        ({"transient": -1}, "transient=-1; expected an integer >= 0"),
        ({"count": 2}, "count=2; expected an integer from 1 to n=1"),
        ({"count": 0}, "count=0; expected an integer from 1"),
        ({"tol": 0.0}, "tol=0.0; expected a number > 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    loop, z0 = logistic(3.2)
    with pytest.raises(InputError, match=message):
        lyapunov_exponents(loop, z0, **options)


def test_bad_states_are_refused():
    loop, z0 = logistic(3.2)
    with pytest.raises(InputError, match=r"float32 or torch\.float64"):
        lyapunov_exponents(loop, z0.long())
    with pytest.raises(NonFiniteError, match="z holds NaN or inf"):
        local_expansion(loop, z0 * math.nan)
    with pytest.raises(InputError, match="steps=10"):
        local_expansion(loop, z0, steps=10)
    with pytest.raises(NonFiniteError, match="no orbit stayed finite"):
        local_expansion(loop, z0 - 1, steps=60)


# --- local expansion


@pytest.mark.parametrize("n", [5, 40])
def test_norms_are_those_of_the_dense_jacobian(n):
    # Lower estimates whose error covers the gap, asked for to a thousandth.
    W = problems.randn(n, n, seed=1) / n**0.5
    z0, x = problems.randn(2, n, seed=2), problems.randn(2, n, seed=3)
    loop = Loop(lambda z, x: torch.tanh(z @ W.T + x), x, z0=z0)
    found = local_expansion(loop, z0, steps=40)
    z = z0
    for j in range(40):
        slope = 1 - torch.tanh(z @ W.T + x).square()
        exact = torch.linalg.matrix_norm(slope.unsqueeze(-1) * W, 2)
        assert bool((found.norm[j] <= exact * (1 + 1e-12)).all())
        assert bool((exact - found.norm[j] <= found.norm_error[j] + 1e-12).all())
        assert torch.allclose(found.norm[j], exact, rtol=1e-3)
        z = loop(z)
    assert torch.equal(found.state, z)


def test_stretch_is_what_a_step_does_to_the_movement():
    # shear: |A|_2 = 5.1, rho = 0.9. The norm is above 1 at every step, the movement shrinks in the long run.
    problem = problems.shear()
    found = local_expansion(problem.loop(), problem.z0, steps=120)
    moves, z = [], problem.z0
    for _ in range(120):
        after = problem.loop()(z)
        moves.append(after - z)
        z = after
    expected = torch.stack([b.norm(dim=1) / a.norm(dim=1) for a, b in pairwise(moves)])
    assert torch.allclose(found.stretch, expected, rtol=1e-10)
    assert bool((found.stretch <= found.norm[:-1] * (1 + 1e-9)).all())
    assert torch.allclose(found.norm, torch.full_like(found.norm, problem.known["norm"]))
    # 0.9 is dominant by 0.9 / 0.5: both measured figures have it to the error they state.
    assert bool(((found.rate.rate - 0.9).abs() <= 2 * found.rate.error).all())
    assert bool(((found.exponent.value - math.log(0.9)).abs() <= found.exponent.error).all())
    assert found.period.tolist() == [1, 1]


def test_rate_is_read_off_the_residuals():
    problem = problems.contraction()
    found = local_expansion(problem.loop(), problem.z0, steps=60)
    z, rows = problem.z0, []
    for _ in range(60):
        rows.append((problem.loop()(z) - z).norm(dim=1))
        z = problem.loop()(z)
    assert torch.allclose(found.residual, torch.stack(rows), rtol=1e-12, atol=1e-15)
    assert torch.allclose(found.rate.rate, measured_rate(torch.stack(rows)).rate, rtol=1e-6)
    assert torch.allclose(found.size[0], problem.z0.norm(dim=1))


def test_returns_of_the_logistic_map():
    # Attracting cycles of length 1, 2, 4; chaos has none; r = 3.83 lies in the window of period 3.
    loop, z0 = logistic(2.8, 3.2, 3.5, 4.0, 3.83)
    found = follow(loop, z0, steps=400)
    assert found.period.tolist() == [1, 2, 4, 0, 3]
    assert bool((found.miss[[1, 2, 4]] < 1e-6).all())
    assert math.isnan(found.miss[3])
    assert found.bounded.all()
    assert abs(found.turning.value[1].item() - 2) <= found.turning.error[1].item() < 0.02
    lines = found.explain().splitlines()
    assert "settled" in lines[0]
    assert "returns after 4 steps" in lines[2]
    assert "no return found" in lines[3]


def test_turns_of_rotations():
    # The residual of c * rotation(a) turns once in 360 / a steps, whatever the ellipse it moves on. At 6 degrees five
    # turns fit the 300 steps, and three the 200 that are used (0.9^300 = 2e-14 is above rounding).
    generator = torch.Generator().manual_seed(0)
    degrees = torch.cat([6 + 174 * torch.rand(60, generator=generator), torch.tensor([180.0])]).double()
    modulus = torch.tensor([0.9, 0.97, 1.0, 1.05], dtype=F64).repeat(16)[:61]
    stretch = 1 + 3 * torch.rand(61, generator=generator).double()
    S = torch.diag_embed(torch.stack([torch.ones_like(stretch), stretch], dim=1))
    turn = torch.stack([problems.rotation(a) for a in degrees.tolist()])
    loop, z0 = matrices(*(modulus.view(-1, 1, 1) * S @ turn @ S.inverse()))
    found = follow(loop, z0, steps=300)
    expected = 360 / degrees
    gap = (found.turning.value - expected).abs()
    assert bool((gap <= 3 * found.turning.error).all())
    # A frequency to a hundredth of the resolution 1/200 of the rows used; not where it is closer to 1/2 than that.
    told = (0.5 - 1 / expected) * 200 > 1
    assert bool((gap <= 0.01 / 200 * expected**2)[told].all())
    assert int(told.sum()) >= 58


def test_no_turn_and_too_few_rows():
    loop, z0 = matrices(torch.tensor([[0.97]]), torch.tensor([[0.0]]))
    found = follow(loop, z0, steps=200)
    assert found.turning.value[0].item() == math.inf
    assert math.isnan(found.turning.value[1])
    assert found.turning.error[1].item() == math.inf


def test_a_closed_curve_does_not_return_and_is_no_straight_line():
    loop, z0 = delayed(2.1)
    found = follow(loop, z0, steps=500)
    assert found.period.item() == 0
    assert found.bounded.item()
    assert found.straightness.item() < 0.05  # half a turn at most out of 40
    # Just past the bifurcation at r = 2 the curve is turned around in 360 / 60 = 6 steps; at 2.1, in somewhat more.
    assert 6.0 < found.turning.value.item() < 7.0
    assert abs(found.exponent.value.item()) <= found.exponent.error.item()


def test_drift_and_escape_are_not_bounded():
    problem = problems.drift()
    found = follow(problem.loop(), problem.z0, steps=100)
    assert not found.bounded.any()
    assert found.finite.all()
    assert found.period.tolist() == [0, 0]
    assert found.straightness.tolist() == pytest.approx([1.0, 1.0])
    assert torch.allclose(found.stretch, torch.ones_like(found.stretch))
    # The same place reached by a loop that slows down is bounded and settles.
    slow = problems.PROBLEMS["slow contraction"]()
    settling = follow(slow.loop(), slow.z0, steps=400)
    assert settling.bounded.all()
    assert settling.period.tolist() == [1, 1]


def test_large_states_are_followed_in_random_coordinates():
    # Sixty entries: period 3 by a permutation, period 2 by a sign, and a slow spiral into the point.
    n = 60
    cyclic = torch.block_diag(*[torch.roll(torch.eye(3, dtype=F64), 1, 0)] * (n // 3))
    spiral = torch.block_diag(*[0.95 * problems.rotation(50)] * (n // 2))
    loop, _ = matrices(cyclic, -torch.eye(n, dtype=F64), spiral)
    z0 = problems.randn(3, n, seed=5)
    found = follow(loop, z0, steps=200)
    assert found.period.tolist() == [3, 2, 1]
    assert found.turning.value[1:].tolist() == pytest.approx([2.0, 7.2], abs=0.01)


def test_a_sample_that_leaves_does_not_disturb_the_others():
    loop, _ = logistic(4.0, 3.2)
    z0 = column(-0.5, 0.3)
    found = local_expansion(loop, z0, steps=100)
    alone = local_expansion(loop.sample(1), z0[1:], steps=100)
    assert found.finite.tolist() == [False, True]
    # From -0.5, |z| is squared and more at each step: 1e308 is passed within a dozen.
    assert 5 < found.steps[0].item() < 12
    assert bool(found.residual[found.steps[0] :, 0].isnan().all())
    # Its last norms are beyond the range of squares: unknown, and known to be.
    rows = int(found.steps[0])
    assert bool((found.norm[:rows, 0].isfinite() | found.norm_error[:rows, 0].isinf()).all())
    assert bool(found.norm[:, 1].isfinite().all())
    assert not found.bounded[0]
    assert "left the range" in found.explain().splitlines()[0]
    assert torch.equal(found.residual[:, 1], alone.residual[:, 0])
    assert torch.allclose(found.growth[:, 1], alone.growth[:, 0], rtol=1e-14)
    assert found.period[1] == alone.period[0] == 2
