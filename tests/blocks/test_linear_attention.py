"""The linear-attention block against gradient descent itself, and every instrument against its closed forms."""

import math

import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpcheck.blocks import LinearAttentionGD
from fpcheck.errors import InputError
from fpcheck.loop import Loop
from fpcheck.spectral import Regime, spectrum
from fpcheck.spectral.operator import JacobianOperator

EPS = torch.finfo(torch.float64).eps


def context(h, *, samples=2, examples=7, outputs=2, seed=0):
    """A context whose H has exactly the eigenvalues ``h`` (up to rounding): inputs sqrt(N) P diag(sqrt h) Q'.

    With P'P = I and Q orthogonal, H = (1/N) inputs' inputs = Q diag(h) Q'.
    """
    h = torch.tensor(h, dtype=torch.float64)
    inputs, targets = [], []
    for b in range(samples):
        P = torch.linalg.qr(problems.randn(examples, len(h), seed=4 * seed + b))[0]
        Q = problems.orthogonal(len(h), seed=4 * seed + b + 100)
        inputs.append(math.sqrt(examples) * P @ torch.diag(h.sqrt()) @ Q.T)
        targets.append(problems.randn(examples, outputs, seed=4 * seed + b + 200))
    return torch.stack(inputs), torch.stack(targets)


def loop_and_state(eta, x, dtype=torch.float64):
    x = tuple(part.to(dtype) for part in x)
    z = problems.randn(len(x[0]), x[1].shape[-1], x[0].shape[-1], seed=9).to(dtype)
    block = LinearAttentionGD(eta)
    return block, Loop(block, x, z0=z), z


def iterate(loop, z, steps):
    with torch.no_grad():
        for _ in range(steps):
            z = loop(z)
    return z


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.floats(0.01, 2), st.integers(0, 10**6))
def test_a_step_is_the_gradient_of_the_loss_and_its_jacobian_is_i_minus_eta_h(N, d, m, eta, seed):
    inputs, targets = problems.randn(2, N, d, seed=seed), problems.randn(2, N, m, seed=seed + 1)
    block, loop, z = loop_and_state(eta, (inputs, targets))
    weights = z.clone().requires_grad_()
    residuals = torch.einsum("brj,bij->bir", weights, inputs) - targets
    loss = residuals.square().sum() / (2 * N)
    (gradient,) = torch.autograd.grad(loss, weights)
    # Two orders of the same sums of N * d products of numbers of order 1 (5 at most in these draws).
    tight = 100 * N * d * EPS
    torch.testing.assert_close(loop(z), z - eta * gradient, rtol=tight, atol=tight)
    H = sum(torch.einsum("bi,bj->bij", inputs[:, i], inputs[:, i]) for i in range(N)) / N
    torch.testing.assert_close(block.hessian((inputs, targets)), H, rtol=tight, atol=tight)
    expected = torch.stack([torch.kron(torch.eye(m), torch.eye(d) - eta * one) for one in H])
    torch.testing.assert_close(JacobianOperator(loop, z).dense(), expected, rtol=tight, atol=tight)


# Eigenvalues h of H and eta, the largest |1 - eta h| and the regime by hand.
KNOWN = [
    ([1.0, 0.5, 0.25], 0.8, 0.8, Regime.CONTRACTIVE),  # 0.2, 0.6, 0.8
    ([1.0, 0.5, 0.25], 1.9, 0.9, Regime.CONTRACTIVE),  # -0.9, 0.05, 0.525
    ([1.0, 0.5, 0.25], 2.2, 1.2, Regime.FLIP),  # eta beyond 2 / h_max: -1.2, -0.1, 0.45
    ([4.0], 0.25, 0.0, Regime.CONTRACTIVE),  # Newton's step: J = 0
    ([3.0, 2.5], 1.0, 2.0, Regime.FLIP),  # -2, -1.5
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("h", "eta", "radius", "regime"), KNOWN)
def test_the_instruments_return_the_closed_forms(h, eta, radius, regime, dtype):
    x = context(h)
    block, loop, z = loop_and_state(eta, x, dtype)
    best = 2 / (eta * (max(h) + min(h)))
    critical = 2 / (eta * max(h))
    # The closed forms of the block, which sees float64 examples whose H has the eigenvalues h to some roundings.
    close = {"rel": 0, "abs": 100 * EPS * max(1, radius, critical)}
    for b in range(2):
        assert float(block.radius(x)[b]) == pytest.approx(radius, **close)
        assert float(block.critical_step(x)[b]) == pytest.approx(critical, **close)
        assert float(block.best_step(x)[b]) == pytest.approx(best, **close)
        assert block.eigenvalues(x)[b].tolist() == pytest.approx(
            [1 - eta * v for v in sorted(h) for _ in (0, 1)], **close
        )
    # And the instruments, in the loop's dtype: the examples are rounded to it (relative eps, so H moves by some eps
    # h_max), and the Jacobian is computed in it.
    spec = spectrum(loop, z)
    size = max(eta * max(h), 1.0)
    rounding = 20 * torch.finfo(dtype).eps * size
    for b in range(2):
        assert float(spec.radius[b]) == pytest.approx(radius, rel=0, abs=rounding)
        assert float(spec.norm[b]) == pytest.approx(radius, rel=0, abs=rounding)  # J is symmetric
        # Steps 2 / w: an error e in w moves them by 2 e / w^2 (best_step: w is the mean of the two ends).
        assert float(spec.critical_step[b]) == pytest.approx(critical, abs=rounding * critical**2 / 2)
        assert float(spec.best_step[b]) == pytest.approx(best, abs=rounding * best**2 / 2)
        assert float(spec.best_rate[b]) == pytest.approx((max(h) - min(h)) / (max(h) + min(h)), abs=rounding * best)
    assert set(spec.regime) == {regime}
    assert bool(spec.damping_helps.all())


@given(st.integers(1, 5), st.integers(0, 6), st.integers(1, 3), st.floats(0.05, 3), st.integers(0, 10**6))
def test_closed_forms_hold_on_random_contexts(d, more, m, eta, seed):
    N = d + more
    x = (problems.randn(2, N, d, seed=seed), problems.randn(2, N, m, seed=seed + 1))
    block, loop, z = loop_and_state(eta, x)
    spec = spectrum(loop, z)
    # Both sides are backward stable eigenvalues of the symmetric I - eta H: off by some eps of its size each.
    size = 1 + eta * torch.linalg.matrix_norm(block.hessian(x), 2)
    tight = 100 * EPS * size * m * d
    found = spec.eigenvalues.real.sort(dim=1, descending=True).values
    assert bool(((found - block.eigenvalues(x)).abs() <= tight.unsqueeze(1)).all())
    assert bool(((spec.radius.value - block.radius(x)).abs() <= tight).all())
    w = eta * torch.linalg.eigvalsh(block.hessian(x))
    resolved = w[:, 0] > 1e-6 * w[:, -1]  # else rounding decides whether H is singular
    for b in resolved.nonzero().flatten().tolist():
        critical, best = float(block.critical_step(x)[b]), float(block.best_step(x)[b])
        assert float(spec.critical_step[b]) == pytest.approx(critical, abs=float(tight[b]) * critical**2)
        assert float(spec.best_step[b]) == pytest.approx(best, abs=float(tight[b]) * best**2)
        # Critical and best step mean what they say: s = critical leaves the unit circle's border.
        assert float((1 - critical * w[b]).abs().max()) == pytest.approx(1.0, abs=1e-12)
        assert float((1 - best * w[b]).abs().max()) < 1


@pytest.mark.parametrize("eta", [0.8, 1.9, 2.2])
def test_damped_by_its_best_step_the_loop_goes_to_least_squares(eta):
    x = context([1.0, 0.5, 0.25])
    block, loop, z = loop_and_state(eta, x)
    expected = torch.linalg.lstsq(*x).solution.mT
    torch.testing.assert_close(block.fixed_point(x), expected, rtol=0, atol=1e-13)  # condition 2, numbers below 5
    # Best rate (1 - 0.25) / (1 + 0.25) = 0.6: 0.6^80 = 2e-18.
    s = float(block.best_step(x)[0])
    torch.testing.assert_close(iterate(loop.damped(s), z, 80), expected, rtol=0, atol=1e-13)
    # J is symmetric, so no step falls behind the best rate.
    before = (z - expected).flatten(1).norm(dim=1)
    after = (iterate(loop.damped(s), z, 10) - expected).flatten(1).norm(dim=1)
    assert bool((after <= 0.6**10 * before * (1 + 1e-9)).all())


def test_beyond_two_over_h_max_the_plain_loop_flips_out_along_the_steepest_direction():
    x = context([1.0, 0.5, 0.25])
    block, loop, _ = loop_and_state(2.2, x)
    star = block.fixed_point(x)
    steepest = torch.linalg.eigh(block.hessian(x)).eigenvectors[:, :, -1].unsqueeze(1)  # (B, 1, d)
    # Eigenvalue 1 - 2.2 = -1.2: the deviation changes sign and grows by 1.2 in each step.
    away = iterate(loop, star + 1e-3 * steepest, 5) - star
    torch.testing.assert_close(away, (-1.2) ** 5 * 1e-3 * steepest.expand_as(star), rtol=0, atol=1e-12)
    # Just inside and just outside of the critical damping step 2 / 2.2 that deviation shrinks and grows.
    s = float(block.critical_step(x)[0])
    for factor, shrinks in ((0.99, True), (1.01, False)):
        moved = iterate(loop.damped(factor * s), star + steepest, 50) - star
        assert (float(moved[0].norm()) < float(steepest[0].norm() * math.sqrt(2))) == shrinks


def test_a_context_that_leaves_directions_open_has_the_eigenvalue_one_and_a_plane_of_fixed_points():
    # Two examples in four dimensions: H has rank 2 at most, so two eigenvalues of J are 1, each m = 2 times.
    x = (problems.randn(2, 2, 4, seed=1), problems.randn(2, 2, 2, seed=2))
    h_max = torch.linalg.matrix_norm(LinearAttentionGD(1.0).hessian(x), 2).max()
    block, loop, z = loop_and_state(float(1 / h_max), x)
    assert (block.eigenvalues(x) == 1.0).sum(1).tolist() == [4, 4]
    assert block.radius(x).tolist() == [1.0, 1.0]
    assert block.critical_step(x).tolist() == block.best_step(x).tolist() == [0.0, 0.0]
    spec = spectrum(loop, z)
    assert bool(((spec.radius.value - 1).abs() <= spec.radius.error).all())
    assert not bool(spec.damping_helps.any())
    # Any fixed point plus anything orthogonal to the inputs is one as well.
    star = block.fixed_point(x)
    across = torch.linalg.qr(x[0].mT, mode="complete").Q[:, :, 2:].mT  # (B, 2, 4), orthogonal to both examples
    torch.testing.assert_close(loop(star + across), star + across, rtol=0, atol=1e-13)
    # The loop goes to the nearest one from its start, not to the smallest.
    limit = iterate(loop, z, 3000)
    torch.testing.assert_close(limit, block.fixed_point(x, nearest_to=z), rtol=0, atol=1e-11)
    assert float((limit - star).abs().max()) > 0.1


def test_more_examples_than_directions_with_a_repeated_one_are_singular_too():
    # Three examples on one line in two dimensions: not the count but the rank decides.
    line = torch.tensor([[[1.0, 2.0], [2.0, 4.0], [-1.0, -2.0]]], dtype=torch.float64)
    x = (line, torch.ones(1, 3, 1, dtype=torch.float64))
    block = LinearAttentionGD(0.1)
    assert block.eigenvalues(x)[0, 0] == 1.0
    # h = (1 + 4 + 1) * 5 / 3 = 10 along (1, 2): 1 - 0.1 * 10.
    assert float(block.eigenvalues(x)[0, 1]) == pytest.approx(0.0, abs=1e-14)
    # A partner with a second direction is not.
    line[0, 2] = torch.tensor([2.0, -1.0])
    assert float(block.critical_step(x)[0]) > 0


def test_eta_is_a_parameter_and_the_closed_forms_follow_it():
    x = context([1.0, 0.5])
    block = LinearAttentionGD(1.0)
    with torch.no_grad():
        block.eta.fill_(1.5)
    # 1 - 1.5 = -0.5 and 1 - 0.75 = 0.25.
    assert block.radius(x).tolist() == pytest.approx([0.5, 0.5], abs=1e-14)
    (gradient,) = torch.autograd.grad(block(torch.zeros(2, 2, 2, dtype=torch.float64), x).sum(), block.eta)
    # The step from zero is eta times the mean of y_i x_i.
    assert float(gradient) == pytest.approx(float((x[1].mT @ x[0] / 7).sum()), rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, -1.0, math.inf, math.nan, "1", True, None])
def test_a_step_that_is_none_is_refused(eta):
    with pytest.raises(InputError, match="eta="):
        LinearAttentionGD(eta)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(2, 3, 4), "x is a Tensor"),
        ((torch.ones(2, 3, 4),), "tuple"),
        ((torch.ones(2, 3, 4), 1.0), "tuple"),
        ((torch.ones(2, 3, 4), torch.ones(2, 4, 1)), r"targets.shape=\(2, 4, 1\)"),
        ((torch.ones(2, 3, 4), torch.ones(3, 3, 1)), r"targets.shape=\(3, 3, 1\)"),
        ((torch.ones(2, 3), torch.ones(2, 3)), r"inputs.shape=\(2, 3\)"),
        ((torch.ones(2, 0, 4), torch.ones(2, 0, 1)), r"inputs.shape=\(2, 0, 4\)"),
        ((torch.ones(2, 3, 4), torch.ones(2, 3, 2)), r"z.shape=\(2, 1, 4\); expected \(2, 2, 4\)"),
        ((torch.ones(1, 3, 4), torch.ones(1, 3, 1)), r"z.shape=\(2, 1, 4\); expected \(1, 1, 4\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x, message):
    with pytest.raises(InputError, match=message):
        LinearAttentionGD(0.1)(torch.ones(2, 1, 4), x)
