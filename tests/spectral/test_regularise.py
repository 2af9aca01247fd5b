"""Penalties: each value against the dense figure, each gradient against the derivative of the dense figure."""

import copy
import dataclasses
import math

import problems
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpcheck.blocks import LinearAttentionGD
from fpcheck.errors import BlockError, GradientNotAvailableError, InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral.eigenpairs import eigenvalues
from fpcheck.spectral.krylov import AbstractEigensolver, DenseEigensolver, KrylovSchur
from fpcheck.spectral.operator import JacobianOperator
from fpcheck.spectral.regularise import (
    Penalty,
    jacobian_frobenius_penalty,
    log_norm_penalty,
    rademacher_probes,
    spectral_norm_penalty,
    spectral_radius_penalty,
)

EPS = torch.finfo(torch.float64).eps
HINGES = {
    "radius": spectral_radius_penalty,
    "log-norm": log_norm_penalty,
    "norm": spectral_norm_penalty,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tanh_loop(W, samples=2, seed=5, dtype=torch.float64):
    """F(z; x) = tanh(z W' + x) and a state where its slopes are far from both 0 and 1."""
    n = len(W)
    x, z = (0.3 * problems.randn(samples, n, seed=seed + i).to(dtype) for i in (0, 1))
    return Loop(problems.Tanh(W.clone().to(dtype)), x), z


def dense(loop, z):
    """J ``(B, n, n)`` by reverse mode row by row, differentiable in everything: the slow oracle."""
    at = z.detach().clone().requires_grad_() if not z.requires_grad else z
    out = loop(at).flatten(1)
    rows = [torch.autograd.grad(out[:, i].sum(), at, create_graph=True)[0].flatten(1) for i in range(out.shape[1])]
    return torch.stack(rows, dim=1)


# The figures of dense matrices; torch differentiates LAPACK's results by formulas of its own.
FIGURES = {
    "radius": lambda J: torch.linalg.eigvals(J).abs().amax(1),
    "log-norm": lambda J: torch.linalg.eigvalsh((J + J.mT) / 2)[:, -1],
    "norm": lambda J: torch.linalg.matrix_norm(J, 2),
}


def gradients(total, block):
    """With respect to every parameter, zero where there is none (the last bias of a softmax, say)."""
    parameters = [p for p in block.parameters() if p.requires_grad]
    got = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in got])


# --- Frobenius: unbiased, right scale ------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["tanh", "fprm"])
def test_frobenius_is_unbiased_with_the_variance_of_its_theory(case):
    loop, z = tanh_loop(problems.randn(5, 5)) if case == "tanh" else problems.small_fprm("causal, conv1d")
    J = dense(loop, z).detach()
    exact = J.square().sum((1, 2))
    # Var |J'v|^2 = 2 (|A|_F^2 - sum A_ii^2) for A = J J' and signs v (their fourth moment is 1).
    A = J @ J.mT
    variance = 2 * (A.square().sum((1, 2)) - A.diagonal(dim1=1, dim2=2).square().sum(1))
    generator, calls, probes = seeded(), 100, 20 if case == "tanh" else 4
    with torch.no_grad():
        found = torch.stack(
            [jacobian_frobenius_penalty(loop, z, generator=generator, probes=probes) for _ in range(calls)]
        )
    # Five standard errors of the mean of all probes: fails by chance once in a million.
    five = 5 * (variance / (calls * probes)).sqrt()
    assert bool(((found.mean(0) - exact).abs() <= five).all())
    # Narrow enough to tell it from a wrong scale: a factor n, or a missing average.
    assert bool((five < 0.3 * exact).all())
    # The spread of the calls is that of their probes. 100 calls know a variance to about sqrt(2 / 100) = 14 %: three
    # of these, and as much again for tails heavier than normal.
    ratio = found.var(0) / (variance / probes)
    assert bool(((ratio > 0.4) & (ratio < 1.8)).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_multiple_of_the_identity_is_estimated_exactly(dtype):
    # J = c I: |J'v|^2 = c^2 n for every sign vector. c = 3/4 and n = 12 are exact in every dtype.
    z = torch.ones(2, 3, 4, dtype=dtype)
    loop = Loop(lambda z: 0.75 * z, z0=z)
    for probes in (1, 3):
        got = jacobian_frobenius_penalty(loop, z, generator=seeded(1), probes=probes)
        assert got.tolist() == [0.75**2 * 12] * 2
        assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        per_entry = jacobian_frobenius_penalty(loop, z, generator=seeded(1), probes=probes, per_entry=True)
        assert per_entry.tolist() == [0.75**2] * 2


@pytest.mark.parametrize("variant", ["plain", "causal, conv1d"])
def test_frobenius_gradient_is_that_of_the_dense_expression_for_the_same_probes(variant):
    loop, z = problems.small_fprm(variant)
    got = jacobian_frobenius_penalty(loop, z, generator=seeded(3), probes=2)
    probes = rademacher_probes(z, 2, seeded(3)).flatten(2)
    J = dense(loop, z)
    expected = torch.einsum("bij,pbi->pbj", J, probes).square().sum(2).mean(0)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    one, two = gradients(got.sum(), loop.block), gradients(expected.sum(), loop.block)
    assert float(two.norm()) > 1e-2
    # Two orders of the same float64 sums, some hundred terms.
    torch.testing.assert_close(one, two, rtol=0, atol=1e-11 * float(two.abs().max()))


def test_frobenius_passes_gradcheck_in_weights_injection_and_state():
    W, x, z = problems.randn(3, 3), 0.3 * problems.randn(2, 3, seed=1), 0.3 * problems.randn(2, 3, seed=2)

    def penalty(W, x, z):
        loop = Loop(lambda z, x: torch.tanh(z @ W.T + x), x, check=False)
        return jacobian_frobenius_penalty(loop, z, generator=seeded(), probes=2)

    assert torch.autograd.gradcheck(penalty, tuple(part.requires_grad_() for part in (W, x, z)))


def test_in_bfloat16_the_exact_product_holds_where_a_difference_quotient_is_noise():
    # The same probes in float64 and in bfloat16, whose weights, state and operations are each rounded to 0.4 %. In
    # eight variants of two widths the largest relative error was 11 %, here 4 %.
    loop, z = problems.small_fprm("plain", hidden_size=64)
    exact = jacobian_frobenius_penalty(loop, z, generator=seeded(), probes=4).detach()
    narrow = Loop(copy.deepcopy(loop.block).bfloat16(), loop.x.bfloat16())
    got = jacobian_frobenius_penalty(narrow, z.bfloat16(), generator=seeded(), probes=4)
    assert bool((((got.double() - exact) / exact).abs() < 0.1).all())
    # Its gradient is that of float64 just as nearly: the angle between them is small.
    fine = jacobian_frobenius_penalty(loop, z, generator=seeded(), probes=4)
    one, two = gradients(got.sum(), narrow.block).double(), gradients(fine.sum(), loop.block)
    assert float(torch.cosine_similarity(one, two, dim=0)) > 0.99
    # The partner: the usual recipe, central differences of step 1e-3 along v ~ N(0, 1/D), in the same dtype. The
    # step is lost in the rounding of the state, and what is left of the difference is noise: 100 times the figure.
    v = (torch.randn(4, *z.shape, generator=seeded()) / 64**0.5).bfloat16()
    with torch.no_grad():
        quotients = [(narrow(z.bfloat16() + 1e-3 * u) - narrow(z.bfloat16() - 1e-3 * u)).double() / 2e-3 for u in v]
    estimate = 64 * torch.stack([q.flatten(1).square().sum(1) for q in quotients]).mean(0)
    assert bool((estimate > 100 * exact).all())


# --- the hinge figures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HINGES)
@pytest.mark.parametrize("variant", ["no scale, peri-norm", "input-dependent, post-norm"])
def test_gradient_on_an_fprm_block_is_that_of_the_dense_figure(variant, name):
    loop, z = problems.small_fprm(variant)
    got = HINGES[name](loop, z, target=0.0)
    expected = FIGURES[name](dense(loop, z))
    assert got.used.tolist() == [True, True]
    assert got.skipped == 0
    torch.testing.assert_close(got.figure, expected, rtol=1e-9, atol=0)
    one, two = gradients(got.figure.sum(), loop.block), gradients(expected.sum(), loop.block)
    assert float(two.abs().max()) > 1e-2
    # Vectors of a matrix of 32 rows with gaps of 1e-2 and more: rounding over the gap, in float64; Lanczos stops at
    # residuals of 1e-8.
    torch.testing.assert_close(one, two, rtol=0, atol=1e-6 * float(two.abs().max()))


@pytest.mark.parametrize("name", HINGES)
@pytest.mark.parametrize("variant", ["causal, conv1d"])
def test_gradient_by_products_alone_is_that_of_the_dense_figure(variant, name):
    # 128 rows: too many to be assembled, so all vectors come from Krylov methods.
    loop, z = problems.small_fprm(variant, hidden_size=32)
    assert eigenvalues(JacobianOperator(loop, z), 1).method.startswith("Krylov")
    got = HINGES[name](loop, z, target=0.0)
    expected = FIGURES[name](dense(loop, z))
    assert got.used.tolist() == [True, True]
    torch.testing.assert_close(got.figure, expected, rtol=1e-8, atol=0)
    one, two = gradients(got.figure.sum(), loop.block), gradients(expected.sum(), loop.block)
    # Lanczos stops at a relative residual of 1e-6 and its vectors are known to that over a relative gap of 0.1.
    torch.testing.assert_close(one, two, rtol=0, atol=1e-4 * float(two.abs().max()))


@pytest.mark.parametrize("name", HINGES)
@pytest.mark.parametrize("kind", ["pair", "positive", "negative"])
def test_gradient_passes_finite_differences_in_weights_injection_and_state(name, kind):
    # The dominant eigenvalue far from the others: a pair of modulus 1.3, or a real one of either sign.
    outer = {"pair": 1.3 * complex(math.cos(1.0), math.sin(1.0)), "positive": 1.4, "negative": -1.4}[kind]
    S = torch.eye(4, dtype=torch.float64) + 0.3 * problems.randn(4, 4, seed=7)  # not normal
    W = S @ problems.normal(*([outer, 0.5, 0.2] if kind == "pair" else [outer, 0.5, 0.2, -0.1])) @ torch.linalg.inv(S)
    x, z = 0.2 * problems.randn(2, 4, seed=1), 0.2 * problems.randn(2, 4, seed=2)

    def figure(W, x, z):
        return HINGES[name](
            Loop(lambda z, x: torch.tanh(z @ W.T + x), x, check=False), z, target=0.0, power=1.0, check=False
        ).value

    lam = torch.linalg.eigvals(dense(Loop(problems.Tanh(W), x), z))
    top = lam.gather(1, lam.abs().argmax(1, keepdim=True))
    assert (top.imag != 0).all().item() == (kind == "pair")
    if kind != "pair":
        assert bool((top.real.sign() == math.copysign(1, outer)).all())
    assert bool((figure(W, x, z) > 0.5).all())
    assert torch.autograd.gradcheck(figure, tuple(part.requires_grad_() for part in (W, x, z)))


def test_radius_gradient_of_two_by_two_pairs_by_hand():
    # A with a complex pair: rho = sqrt(det A), so d rho / dA = sqrt(det A) / 2 * A^-T.
    A = torch.tensor([[0.3, -2.0], [0.9, 0.1]], dtype=torch.float64)  # trace^2 < 4 det
    block = problems.Linear(A)
    z = problems.randn(1, 2)
    got = spectral_radius_penalty(Loop(block, z), z, target=1.0)
    rho = math.sqrt(0.03 + 1.8)
    assert float(got.figure.detach()) == pytest.approx(rho, rel=1e-14)
    assert float(got.value.detach()) == pytest.approx((rho - 1) ** 2, rel=1e-13)
    got.value.sum().backward()
    expected = 2 * (rho - 1) * rho / 2 * torch.linalg.inv(A).T
    torch.testing.assert_close(block.A.grad, expected, rtol=1e-13, atol=1e-15)


@given(st.integers(0, 10**6), st.floats(0.1, 2.0))
def test_radius_gradient_in_the_step_of_gradient_descent_in_closed_form(seed, eta):
    # rho = max |1 - eta h|, so d rho / d eta = +-h: minus where 1 - eta h is positive. Each eigenvalue counts m = 2
    # times, which a symmetric J bears: every eigenvector of it gives the same.
    x = (problems.randn(2, 6, 3, seed=seed), problems.randn(2, 6, 2, seed=seed + 1))
    block = LinearAttentionGD(eta)
    z = problems.randn(2, 2, 3, seed=seed + 2)
    h = torch.linalg.eigvalsh(block.hessian(x))
    lam = 1 - eta * h
    first, second = lam.abs().sort(dim=1).values[:, -1], lam.abs().sort(dim=1).values[:, -2]
    got = spectral_radius_penalty(Loop(block, x, z0=z), z, target=0.0, power=1.0)
    assert got.used.tolist() == [True, True]
    if bool((first - second > 1e-6).all()):  # at a tie either slope is right
        index = lam.abs().argmax(1, keepdim=True)
        expected = (-lam.sign() * h).gather(1, index).sum()
        (slope,) = torch.autograd.grad(got.value.sum(), block.eta)
        assert float(slope) == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize("name", HINGES)
def test_hinge_by_hand(name):
    # A symmetric and positive: radius, norm and log-norm are all 1.2. (1.2 - 0.9)^p, slope p (1.2 - 0.9)^(p - 1).
    A = problems.normal(1.2, 0.3, 0.1)
    top = torch.linalg.eigh(A).eigenvectors[:, -1]
    z = problems.randn(1, 3)
    for target, power, value, slope in (
        (0.9, 2.0, 0.09, 0.6),
        (0.9, 1, 0.3, 1.0),
        (0.9, 3.0, 0.027, 0.27),
        (1.25, 2.0, 0, 0),
    ):
        block = problems.Linear(A)
        got = HINGES[name](Loop(block, z), z, target=target, power=power)
        assert isinstance(got, Penalty)
        assert float(got.value.detach()) == pytest.approx(value, abs=1e-13)
        assert float(got.figure.detach()) == pytest.approx(1.2, rel=1e-13)
        got.value.sum().backward()
        # d figure / dA = v v' for the symmetric A.
        torch.testing.assert_close(block.A.grad, slope * torch.outer(top, top), rtol=0, atol=1e-7)
        if value == 0:
            assert got.value.tolist() == [0.0]
            assert not block.A.grad.any()


@pytest.mark.parametrize("name", HINGES)
def test_float32_agrees_with_float64(name):
    wide, z = tanh_loop(problems.randn(6, 6))
    narrow, z32 = tanh_loop(problems.randn(6, 6), dtype=torch.float32)
    one, two = (HINGES[name](loop, state, target=0.5) for loop, state in ((wide, z), (narrow, z32)))
    assert two.value.dtype == two.figure.dtype == torch.float32
    torch.testing.assert_close(two.value.double(), one.value, rtol=1e-5, atol=0)
    # float32 products with vectors that float32 knows to about eps over the gap (0.1): 1e-6, and room.
    expected = gradients(one.value.sum(), wide.block)
    got = gradients(two.value.sum(), narrow.block).double()
    assert float((got - expected).norm() / expected.norm()) < 1e-5


# --- samples that cannot be used ------------------------------------------------------------------------------------


class PerSample(nn.Module):
    """z' = A_b z: a matrix of its own for each sample, through the injection."""

    def forward(self, z, A):
        return (A @ z.unsqueeze(-1)).squeeze(-1)


def test_a_defective_eigenvalue_is_masked_out_and_counted():
    # A Jordan block at 1.1 has no derivative (its eigenvalue moves like the cube root); the others must not notice.
    good, other = problems.normal(1.2, 0.3, 0.1), 1.1 * torch.eye(3, dtype=torch.float64)
    A = torch.stack([good, problems.jordan(1.1, 3), other]).requires_grad_()
    z = problems.randn(3, 3)
    got = spectral_radius_penalty(Loop(PerSample(), A, z0=z), z, target=1.0)
    assert got.used.tolist() == [True, False, True]
    assert got.skipped == 1
    assert got.value.tolist()[1] == 0.0
    assert got.figure.tolist() == pytest.approx([1.2, 1.1, 1.1], abs=1e-4)
    got.value.sum().backward()
    assert bool(torch.isfinite(A.grad).all())
    assert not A.grad[1].any()
    top = torch.linalg.eigh(good).eigenvectors[:, -1]
    torch.testing.assert_close(A.grad[0], 0.4 * torch.outer(top, top), rtol=0, atol=1e-13)
    # One eigenvector of the triple eigenvalue: x x' with |x| = 1, so the trace of the gradient is 2 * 0.1.
    assert float(A.grad[2].trace()) == pytest.approx(0.2, rel=1e-12)
    # A partner that is merely ill-conditioned (1 / 1e-3) is used, with its large gradient.
    B = torch.tensor([[[1.1, 1000.0], [0.0, 0.1]]], dtype=torch.float64).requires_grad_()
    got = spectral_radius_penalty(Loop(PerSample(), B, z0=z[:1, :2]), z[:1, :2], target=1.0, power=1)
    got.value.sum().backward()
    # Left vector (1, 1000), right vector (1, 0), since (1, 1000) A = 1.1 (1, 1000): d l = dA_11 + 1000 dA_21.
    torch.testing.assert_close(
        B.grad[0], torch.tensor([[1.0, 0.0], [1000.0, 0.0]], dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


def test_a_sample_whose_vectors_do_not_converge_is_masked_out_and_counted():
    # An orthogonal matrix of 100 rows: all eigenvalues on a circle, hopeless for two bases of 20 vectors. Its neighbour
    # in the batch has one that stands out, 1.2 against 0.5.
    A = torch.stack([problems.orthogonal(100), problems.normal(1.2, *[0.5] * 99)]).requires_grad_()
    z = problems.randn(2, 100)
    loop = Loop(PerSample(), A, z0=z)
    got = spectral_radius_penalty(loop, z, target=1.0, method=KrylovSchur(max_restarts=1, fallback_size=0))
    assert got.used.tolist() == [False, True]
    assert got.skipped == 1
    assert got.value.tolist() == pytest.approx([0.0, 0.04], abs=1e-9)
    got.value.sum().backward()
    assert not A.grad[0].any()
    top = torch.linalg.eigh(A.detach()[1]).eigenvectors[:, -1]
    torch.testing.assert_close(A.grad[1], 0.4 * torch.outer(top, top), rtol=0, atol=1e-8)


class Unfinished(AbstractEigensolver):
    """LAPACK's eigenpairs, but those of sample 0 count as not finished: something else might come to lead."""

    def run(self, *args, **kwargs):
        found = DenseEigensolver().run(*args, **kwargs)
        return dataclasses.replace(found, finished=torch.tensor([False, True]))


def test_a_sample_whose_run_did_not_finish_is_not_used_however_good_its_vectors_are():
    A = torch.stack([problems.normal(1.2, 0.3, 0.1), problems.normal(1.1, 0.3, 0.1)]).requires_grad_()
    z = problems.randn(2, 3)
    got = spectral_radius_penalty(Loop(PerSample(), A, z0=z), z, target=1.0, power=1, method=Unfinished())
    assert got.used.tolist() == [False, True]
    assert got.value.tolist() == pytest.approx([0.0, 0.1], abs=1e-13)
    assert got.figure.tolist() == pytest.approx([1.2, 1.1], abs=1e-13)
    # No gradient from the figure either.
    got.figure.sum().backward()
    assert not A.grad[0].any()
    assert float(A.grad[1].trace()) == pytest.approx(1.0, rel=1e-12)  # of x x' with |x| = 1


def test_a_jacobian_of_zero_has_no_penalty_and_no_gradient():
    A = torch.zeros(2, 3, 3, dtype=torch.float64).requires_grad_()
    z = problems.randn(2, 3)
    for name, penalty in HINGES.items():
        got = penalty(Loop(PerSample(), A, z0=z), z, target=0.0)
        assert got.value.tolist() == got.figure.tolist() == [0.0, 0.0], name
        (gradient,) = torch.autograd.grad(got.value.sum(), A)
        assert not gradient.any()


# --- independence, cleanliness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HINGES)
def test_a_sample_does_not_notice_its_batch(name):
    loop, z = problems.small_fprm("plain")
    together = HINGES[name](loop, z, target=0.1)
    for i in range(2):
        alone = HINGES[name](loop.sample(i), z[i : i + 1], target=0.1)
        assert float(alone.value.detach()[0]) == pytest.approx(float(together.value.detach()[i]), rel=1e-9)
    # Nor does its gradient: that of the sum is the sum of those alone.
    parts = sum(
        gradients(HINGES[name](loop.sample(i), z[i : i + 1], target=0.1).value.sum(), loop.block) for i in (0, 1)
    )
    whole = gradients(together.value.sum(), loop.block)
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-7 * float(whole.abs().max()))


def test_probes_of_a_sample_do_not_depend_on_the_samples_after_it():
    loop, z = tanh_loop(problems.randn(5, 5), samples=4)
    together = jacobian_frobenius_penalty(loop, z, generator=seeded(), probes=3)
    first = jacobian_frobenius_penalty(loop.select(torch.tensor([0, 1])), z[:2], generator=seeded(), probes=3)
    torch.testing.assert_close(first, together[:2], rtol=1e-13, atol=0)
    # Probes differ between samples, between probes and between calls.
    generator = seeded()
    probes = rademacher_probes(z, 3, generator)
    assert probes.shape == (3, 4, 5)
    assert set(probes.flatten().tolist()) == {-1.0, 1.0}
    assert len({tuple(v) for v in probes.flatten(0, 1).tolist()}) > 6
    assert not torch.equal(probes, rademacher_probes(z, 3, generator))


@pytest.mark.parametrize("name", ["frobenius", *HINGES])
def test_nothing_outside_is_touched(name):
    loop, z = problems.small_fprm("plain")
    loop.block.register_buffer("kept", torch.ones(1))
    before = {k: v.clone() for k, v in loop.block.state_dict().items()}
    state, kept = torch.get_rng_state(), z.clone()
    generator = seeded()
    value = (
        jacobian_frobenius_penalty(loop, z, generator=generator)
        if name == "frobenius"
        else HINGES[name](loop, z, target=0.0).value
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(z, kept)
    assert not z.requires_grad
    assert all(torch.equal(before[k], v) for k, v in loop.block.state_dict().items())
    assert all(p.grad is None for p in loop.block.parameters())
    value.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in loop.block.parameters())


@pytest.mark.parametrize("name", ["frobenius", *HINGES])
def test_without_gradient_mode_the_values_are_the_same_and_hold_no_graph(name):
    loop, z = tanh_loop(problems.randn(4, 4))

    def value():
        if name == "frobenius":
            return jacobian_frobenius_penalty(loop, z, generator=seeded())
        return HINGES[name](loop, z, target=0.0).value

    recorded = value()
    with torch.no_grad():
        bare = value()
    with torch.inference_mode():
        inference = value()
    assert recorded.requires_grad
    assert not bare.requires_grad
    assert torch.equal(bare, recorded.detach())
    assert torch.equal(inference, bare)


# --- training --------------------------------------------------------------------------------------------------------


def trained_radius(weight, target=0.9, steps=80):
    """Fit a tanh layer to a teacher whose map is expanding at the data, with or without the penalty."""
    teacher = 1.5 * problems.orthogonal(4, seed=3)
    z = 0.1 * problems.randn(16, 4, seed=1)
    x = 0.1 * problems.randn(16, 4, seed=2)
    goal = torch.tanh(z @ teacher.T + x)
    block = problems.Tanh(0.5 * problems.orthogonal(4, seed=4))
    optimiser = torch.optim.Adam(block.parameters(), lr=0.05)
    skipped = 0
    for _ in range(steps):
        loop = Loop(block, x, check=False)
        loss = (loop(z) - goal).square().mean()
        penalty = spectral_radius_penalty(loop, z, target=target, check=False)
        skipped += penalty.skipped
        optimiser.zero_grad()
        (loss + weight * penalty.value.mean()).backward()
        optimiser.step()
    assert skipped == 0
    with torch.no_grad():
        radius = FIGURES["radius"](dense_without_graph(Loop(block, x), z))
    return float(loss.detach()), radius


def dense_without_graph(loop, z):
    with torch.enable_grad():
        return dense(loop, z).detach()


def test_training_with_the_penalty_keeps_the_loop_below_the_target():
    free_loss, free = trained_radius(0.0)
    held_loss, held = trained_radius(10.0)
    # The teacher has rho = 1.5 at 0 and a little less where its slopes are: without the penalty it is learnt.
    assert free_loss < 1e-4
    assert bool((free > 1.2).all())
    # A square penalty of weight 10 against a loss whose slope in rho is of order 0.01 gives way by 0.01 / 20.
    assert bool((held < 0.9 + 0.01).all())
    # And it holds no more than asked: the loss pulls the largest up to the target, the mean not far below.
    assert float(held.max()) > 0.89
    assert float(held.mean()) > 0.85
    assert held_loss > free_loss


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": math.nan}, "target=nan"),
        ({"target": "0.9"}, "target='0.9'"),
        ({"target": True}, "target=True"),
        ({"target": 0.9, "power": 0.5}, "power=0.5"),
        ({"target": 0.9, "power": math.inf}, "power=inf"),
    ],
)
@pytest.mark.parametrize("name", HINGES)
def test_hinges_that_are_none_are_refused(name, arguments, message):
    loop, z = tanh_loop(problems.randn(3, 3))
    with pytest.raises(InputError, match=message):
        HINGES[name](loop, z, **arguments)


@pytest.mark.parametrize("name", HINGES)
def test_states_without_a_spectrum_are_refused(name):
    loop, z = tanh_loop(problems.randn(3, 3))
    with pytest.raises(InputError, match="bfloat16"):
        HINGES[name](loop, z.bfloat16(), target=0.9)
    with pytest.raises(NonFiniteError):
        HINGES[name](loop, z * math.nan, target=0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": None}, "generator=None"),
        ({"generator": 0}, "generator=0"),
        ({"generator": torch.Generator(), "probes": 0}, "probes=0"),
        ({"generator": torch.Generator(), "probes": 1.0}, "probes=1.0"),
        ({"generator": torch.Generator(), "probes": True}, "probes=True"),
    ],
)
def test_probes_that_are_none_are_refused(arguments, message):
    loop, z = tanh_loop(problems.randn(3, 3))
    with pytest.raises(InputError, match=message):
        jacobian_frobenius_penalty(loop, z, **arguments)


def test_frobenius_refuses_states_that_are_none():
    loop, z = tanh_loop(problems.randn(3, 3))
    with pytest.raises(InputError, match="int64"):
        jacobian_frobenius_penalty(loop, z.long(), generator=seeded())
    with pytest.raises(InputError, match=r"expected .* B=2"):
        jacobian_frobenius_penalty(loop, z[:1], generator=seeded())
    bad = z.clone()
    bad[1] = math.nan
    with pytest.raises(NonFiniteError, match="for sample 1"):
        jacobian_frobenius_penalty(loop, bad, generator=seeded())


@pytest.mark.parametrize("name", ["frobenius", *HINGES])
def test_a_penalty_that_would_do_nothing_is_an_error(name):
    # J = 0.5 I whatever the bias is: no gradient reaches the only parameter.
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3, dtype=torch.float64))

        def forward(self, z):
            return 0.5 * z + self.bias

    z = problems.randn(2, 3)
    loop = Loop(Shifted(), z0=z)

    def call():
        if name == "frobenius":
            return jacobian_frobenius_penalty(loop, z, generator=seeded())
        return HINGES[name](loop, z, target=0.0)

    with pytest.raises(GradientNotAvailableError, match="would do nothing"):
        call()
    with torch.no_grad():  # as a measurement it is fine
        call()


def test_a_block_that_changes_its_input_in_place_is_refused():
    z = problems.randn(2, 3)
    loop = Loop(lambda z: z.mul_(0.5), z0=z, check=False)
    with pytest.raises(BlockError, match="in place"):
        jacobian_frobenius_penalty(loop, z, generator=seeded())
