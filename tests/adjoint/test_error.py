"""What is said about a gradient's error holds, and is not much more than the error."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from random_gradients import compare, gradients
from random_loops import KINDS, Case, Tanh, case
from torch import nn

import fpcheck as fp
from fpcheck.adjoint import (
    EstimatedConstants,
    GradientErrorBound,
    GradientErrorEstimate,
    ProvedConstants,
    Sensitivity,
    gradient_error,
)
from fpcheck.constants import TANH_SECOND
from fpcheck.solve import Picard

# Tolerances down to about ten times what each dtype reaches.
LOOSE, TIGHT = -2.0, {torch.float32: -6.0, torch.float64: -10.0}
BIASED = [fp.OneStep(), fp.Phantom(5, 0.5), fp.TruncatedWindow(4)]


def tolerance(share: float, dtype: torch.dtype) -> float:
    return 10 ** (LOOSE + share * (TIGHT[dtype] - LOOSE))


shares = st.floats(0, 1)
dtypes = st.sampled_from([torch.float32, torch.float64])


def holds(kind, seed, dtype, forward, adjoint):
    if isinstance(adjoint, float):
        adjoint = fp.Implicit(fp.GMRES(rtol=tolerance(adjoint, dtype)))
    found = compare(kind, seed, dtype, tolerance(forward, dtype), adjoint)
    assume(found is not None)
    assert isinstance(found[0], GradientErrorEstimate)
    for figure in found[1]:
        assert figure.holds, figure


# A share is the tolerance of an implicit adjoint.
arguments = {"seed": st.integers(0, 10_000), "dtype": dtypes, "forward": shares, "adjoint": shares}
biased = {**arguments, "adjoint": st.sampled_from(BIASED)}


# Half a second an example: here a few, under "slow" many of each kind.
@settings(max_examples=6)
@given(kind=st.sampled_from(KINDS), **arguments)
@example(kind="fprm", seed=0, dtype=torch.float64, forward=0.0, adjoint=1.0)  # all of the error is the forward solve's
@example(kind="fprm", seed=0, dtype=torch.float64, forward=1.0, adjoint=0.0)  # all of it is the adjoint solve's
@example(kind="trm", seed=4, dtype=torch.float64, forward=0.3, adjoint=fp.Phantom(5, 0.5))  # once 0.1 % too small
@example(kind="contractive", seed=1, dtype=torch.float32, forward=0.5, adjoint=fp.OneStep())
@example(kind="tanh", seed=2, dtype=torch.float32, forward=1.0, adjoint=1.0)  # rounding counts
def test_the_estimate_holds_on_a_few_loops(kind, seed, dtype, forward, adjoint):
    holds(kind, seed, dtype, forward, adjoint)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@given(**arguments)
def test_the_estimate_of_an_implicit_gradient_holds(kind, seed, dtype, forward, adjoint):
    holds(kind, seed, dtype, forward, adjoint)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@given(**biased)
def test_the_estimate_of_a_biased_gradient_holds(kind, seed, dtype, forward, adjoint):
    holds(kind, seed, dtype, forward, adjoint)


@pytest.mark.slow
def test_the_estimate_is_within_a_factor_30_in_the_median():
    # Measured: 1.6. Less than 1 % of the estimates may be no figure at all.
    generator = torch.Generator().manual_seed(0)
    figures = []
    for seed in range(6):
        for kind in KINDS:
            a, b = torch.rand(2, generator=generator).tolist()
            adjoint = fp.Implicit(fp.GMRES(rtol=tolerance(b, torch.float64)))
            found = compare(kind, seed, torch.float64, tolerance(a, torch.float64), adjoint)
            figures += found[1] if found is not None else []
    assert len(figures) > 80
    assert all(figure.holds for figure in figures)
    ratios = [figure.ratio for figure in figures]
    assert statistics.median(ratios) <= 30
    assert sum(math.isinf(ratio) for ratio in ratios) <= 0.01 * len(ratios)


# F(z) = tanh(W z + x). With L = |W|_2 and T = sup |tanh''|: |J| <= L and |J(y) - J(z)| <= T L^2 |y - z|, since the
# factors tanh' of the rows are T-Lipschitz in W z. B_x is the diagonal of these factors: norm <= 1, T L-Lipschitz.
# B_W dW = tanh' (dW z): norm <= |z|, and |B_W(y) - B_W(z)| <= |y - z| + T L |y - z| |z| on the segment; the state is
# in the cube [-1, 1]^n, so |z| <= sqrt n. The loss's slope (z - t) + 0.3 cos z is 1.3-Lipschitz.
def proved(loop: Case) -> ProvedConstants:
    L = float(torch.linalg.matrix_norm(loop.block.W.detach(), 2)) * (1 + 1e-12)
    T, n = TANH_SECOND, loop.z0.shape[1]
    return ProvedConstants(
        rate=L,
        jacobian=T * L * L,
        injection=Sensitivity(1.0, T * L),
        weights=Sensitivity(math.sqrt(n), 1 + T * L * math.sqrt(n)),
        slope=1.3,
    )


def truth(loop: Case, start):
    exact = gradients(
        loop, start, Picard(rtol=1e-14, max_steps=20_000), fp.Implicit(fp.GMRES(rtol=1e-14, max_steps=5000))
    )
    assert exact is not None
    return exact[1], exact[2]


@given(
    seed=st.integers(0, 10_000),
    forward=st.floats(0, 1),
    adjoint=st.one_of(shares, st.sampled_from([*BIASED, fp.Phantom(1, 0.4)])),
)
def test_the_bound_holds_without_slack_for_proved_constants(seed, forward, adjoint):
    loop = case("tanh", seed, torch.float64)
    chosen = fp.Implicit(fp.GMRES(rtol=tolerance(adjoint, torch.float64))) if isinstance(adjoint, float) else adjoint
    found = gradients(loop, loop.z0, Picard(rtol=tolerance(forward, torch.float64), max_steps=5000), chosen)
    assume(found is not None)
    solution, of_x, of_w = found
    said = gradient_error(solution, loop.loss, constants=proved(loop))
    assert isinstance(said, GradientErrorBound)
    true_x, true_w = truth(loop, solution.value.detach())
    # The oracle's own error: a solve to 1e-14, magnified by the condition number, at most 50 here, twice.
    unresolved = 1e-10
    assert bool(((of_x - true_x).norm(dim=1) <= said.injection + unresolved).all())
    assert float((of_w - true_w).norm()) <= said.weights + unresolved
    inner = (of_x * true_x).sum(1)
    assert bool((inner[said.injection_descends] > 0).all())
    if said.weights_descend:
        assert float(of_w @ true_w) > 0


def test_a_bound_with_a_wrong_constant_is_broken():
    # The partner that must be rejected: the same loop with a rate of 0.1, where |W| is 0.97.
    W = 0.97 * torch.eye(6, dtype=torch.float64)
    loop = Case(Tanh(W), torch.zeros(1, 6).double(), torch.full((1, 6), 1e-3).double(), torch.zeros(1, 6).double())
    solution, of_x, _ = gradients(loop, loop.z0, Picard(rtol=1e-2), fp.Implicit(fp.GMRES(rtol=0.5)))
    wrong = ProvedConstants(rate=0.1, jacobian=0.0, injection=Sensitivity(1.0, 0.0))
    error = float((of_x - truth(loop, solution.value.detach())[0]).norm())
    assert float(gradient_error(solution, loop.loss, constants=wrong).injection) < error
    assert float(gradient_error(solution, loop.loss, constants=proved(loop)).injection) >= error


def linear_one_step(A, rate, condition):
    """A linear loop z = A z + x with the slope v: the one-step gradient is v, the true one (I - A')^-1 v."""
    x = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    solution = fp.fixed_point(
        lambda z, x: z @ A.T + x, torch.ones(1, 2).double(), x, adjoint=fp.OneStep(), solver=fp.Picard(atol=1e-14)
    )
    v = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    (solution.value * v).sum().backward()
    constants = ProvedConstants(rate=rate, jacobian=0.0, injection=Sensitivity(1.0, 0.0, condition))
    return solution, v, x.grad, constants


def test_the_bound_of_a_one_step_gradient_is_attained_on_a_multiple_of_the_identity():
    # A = L I: the true gradient is v / (1 - L), so the error is L |v| / (1 - L), which is G4 (a) with k = 0.
    L = 0.6
    solution, v, computed, constants = linear_one_step(L * torch.eye(2, dtype=torch.float64), L, 1.0)
    said = gradient_error(solution, v, constants=constants)
    error = float((computed - v / (1 - L)).norm())
    assert error == pytest.approx(L * float(v.norm()) / (1 - L), rel=1e-12)
    assert float(said.injection) == pytest.approx(error, rel=1e-9)  # the forward residual is 1e-14
    assert float(said.condition) == pytest.approx(2.5, rel=1e-15)
    assert not bool(said.injection_descends)  # 1.5 |v| > |v|: G7 cannot say it, G5 can
    assert constants.one_step_descends(constants.injection)


def test_the_bound_is_attained_where_only_the_state_is_off():
    # F = (1/2 + x) z + 1 at x = 0: J = 1/2, so g = 0; B = z, so b = 1. With the exact adjoint w = 2 the gradient z w is
    # off by w |z - z*|, and |z - z*| = 2 |F(z) - z|: the first term of G7 (a) alone, attained.
    x = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    solution = fp.fixed_point(
        lambda z, x: (0.5 + x) * z + 1, torch.zeros(1, 1).double(), x,
        solver=Picard(rtol=1e-3), adjoint=fp.Implicit(fp.DirectSolve()),
    )  # fmt: skip
    solution.value.sum().backward()
    z = float(solution.value.detach())
    assert abs(z - 2) > 1e-4
    constants = ProvedConstants(rate=0.5, jacobian=0.0, injection=Sensitivity(z, 1.0))
    said = gradient_error(solution, torch.sum, constants=constants)
    assert float(said.injection) == pytest.approx(abs(float(x.grad) - 4), rel=1e-9)


@pytest.mark.parametrize(
    ("L", "condition", "sure"),
    # G5: below ((1 + sqrt(1 - L^2)) / L)^2, which is 9 at L = 0.6 and 1 at L = 1.
    [(0.6, 8.999, True), (0.6, 9.001, False), (0.6, math.inf, False), (0.999, 1.5, False), (0.0, 1e9, True)],
)
def test_when_one_step_is_sure_to_descend(L, condition, sure):
    constants = ProvedConstants(rate=L, jacobian=0.0, injection=Sensitivity(1.0, 0.0, condition))
    assert constants.one_step_descends(constants.injection) is sure


def test_one_step_is_not_judged_in_another_metric():
    of = Sensitivity(1.0, 0.0, 1.0)
    assert not ProvedConstants(rate=0.1, jacobian=0.0, injection=of, stretch=2.0).one_step_descends(of)


def test_a_distance_from_a_certificate_takes_the_place_of_the_residual():
    loop = case("tanh", 3, torch.float64)
    solution, of_x, _ = gradients(loop, loop.z0, Picard(rtol=1e-4), fp.Implicit())
    certificate = fp.certify(fp.Loop(loop.block, loop.x[:1], z0=loop.z0[:1]), solution.value[:1].detach())
    assert certificate.verdict is fp.Verdict.PROVED_ATTRACTING
    # The certificate is of the refined centre; the computed state lies within this of the fixed point.
    gap = float((certificate.centre - solution.value[:1].detach()).norm()) + certificate.euclidean_error_bound
    metric = certificate.metric
    L = float(torch.linalg.matrix_norm(loop.block.W.detach(), 2))
    constants = ProvedConstants(
        rate=certificate.error_rate,
        stretch=max(1.0, metric.norm * metric.inverse_norm),
        jacobian=TANH_SECOND * L * L,
        injection=Sensitivity(1.0, TANH_SECOND * L),
        slope=1.3,
        distance=gap,
    )
    said = gradient_error(solution, loop.loss, constants=constants)
    true = truth(loop, solution.value.detach())[0]
    error = float((of_x - true)[0].norm())
    assert error <= float(said.injection[0]) <= 30 * error  # one loop in the metric that fits it: measured 9


def test_estimated_constants_never_make_a_bound():
    loop = case("tanh", 1, torch.float64)
    solution, *_ = gradients(loop, loop.z0, Picard(), fp.Implicit())
    fields = dict(vars(proved(loop)))
    said = gradient_error(solution, loop.loss, constants=EstimatedConstants(**fields))
    assert type(said) is GradientErrorEstimate
    bound = gradient_error(solution, loop.loss, constants=proved(loop))
    assert torch.equal(said.injection, bound.injection)
    assert not hasattr(said, "injection_descends")


def test_the_condition_is_the_factor_from_residuals_to_errors():
    # z = 0.9 z + x: (I - J)^-1 = 10.
    x = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    solution = fp.fixed_point(lambda z, x: 0.9 * z + x, torch.zeros(1, 1).double(), x, solver=Picard(rtol=1e-3))
    solution.value.sum().backward()
    said = gradient_error(solution, torch.sum)
    assert float(said.condition) == pytest.approx(10, rel=1e-5)  # the corrections are solved to 1e-6
    assert float(said.forward_residual) == pytest.approx(float(solution.residual_norm), rel=1e-12)


def test_samples_that_failed_have_no_figure():
    # 1.5 z + 1 has a fixed point at -2, from which plain iteration runs away.
    x = torch.tensor([[0.5], [1.5]], dtype=torch.float64, requires_grad=True)
    solution = fp.fixed_point(
        lambda z, x: x * z + 1, torch.zeros(2, 1).double(), x,
        solver=Picard(rtol=1e-6), adjoint=fp.Implicit(zero_failed=True), throw=False,
    )  # fmt: skip
    solution.value.sum().backward()
    said = gradient_error(solution, torch.sum)
    assert said.injection[0] < 1e-4
    assert said.injection[1] == math.inf
    assert said.weights is None


def test_a_state_too_far_out_has_no_estimate():
    # z = 3 z / (1 + z^2) has the fixed point sqrt 2. Where F' is 1, or nearly so, a Newton step goes far too far.
    x = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    fold = math.sqrt((-5 + math.sqrt(33)) / 2)  # there 3 (1 - z^2) = (1 + z^2)^2
    solution = fp.fixed_point(
        lambda z, x: 3 * z / (1 + z * z) + x, torch.ones(1, 1).double(), x, solver=Picard(), adjoint=fp.OneStep()
    )
    assert float(gradient_error(solution, torch.sum).injection) < 2  # the bias alone: 1 / (1 - F'(z*)) - 1 = -1/3
    moved = replace(solution, value=torch.full((1, 1), fold * 1.0004).double())
    assert float(gradient_error(moved, torch.sum).injection) == math.inf


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, z, x):
        return self.weight * z + x


def solved(adjoint=None, block=None):
    x = torch.ones(1, 1, requires_grad=True)
    return fp.fixed_point(block or Half(), torch.zeros(1, 1), x, solver=Picard(), adjoint=adjoint)


def test_the_wrong_moment_and_the_wrong_loss_are_refused():
    solution = solved()
    with pytest.raises(fp.GradientNotAvailableError, match="call backward before"):
        gradient_error(solution, torch.sum)
    solution.value.sum().backward()
    with pytest.raises(fp.InputError, match="the loss that backward was called on"):
        gradient_error(solution, lambda z: 5 * z.sum())
    with pytest.raises(fp.InputError, match=r"loss.shape=\(2,\)"):
        gradient_error(solution, torch.ones(2))
    with pytest.raises(fp.InputError, match="no differentiable number"):
        gradient_error(solution, lambda z: 2 * z.detach())


def test_of_several_losses_the_right_adjoint_is_found():
    solution = solved()
    solution.value.sum().backward(retain_graph=True)
    (3 * solution.value).sum().backward()
    for factor in (1.0, 3.0):
        said = gradient_error(solution, lambda z, factor=factor: factor * z.sum())
        # dz/dx = 2
        assert float(said.injection_size) == pytest.approx(2 * factor, rel=1e-4)
        assert float(said.injection) < 1e-3


def test_weights_that_changed_since_are_refused():
    block = Half()
    solution = solved(block=block)
    solution.value.sum().backward()
    with torch.no_grad():
        block.weight.mul_(0.9)
    with pytest.raises(fp.InputError, match="changed in place since the solve"):
        gradient_error(solution, torch.sum)


def test_what_has_no_such_error_is_refused():
    solution = solved(fp.Unrolled())
    with pytest.raises(fp.GradientNotAvailableError, match="Unrolled"):
        gradient_error(solution, torch.sum)
    with torch.no_grad(), pytest.raises(fp.GradientNotAvailableError, match="route=None"):
        gradient_error(solved(), torch.sum)


def test_a_block_that_cannot_widen_is_refused():
    W = torch.full((1, 1), 0.5)
    solution = solved(block=lambda z, x: z @ W + x)
    solution.value.sum().backward()
    with pytest.raises(fp.InputError, match=r"does not run in float64.*pass every tensor"):
        gradient_error(solution, torch.sum)
    solution = solved(block=lambda z, x: (0.5 * z + x).float())
    solution.value.sum().backward()
    with pytest.raises(fp.InputError, match=r"returns torch.float32 for float64 states"):
        gradient_error(solution, torch.sum)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"rate": 1.0}, r"rate=1.0; expected a number in \[0, 1\)"),
        ({"rate": math.nan}, "rate=nan"),
        ({"jacobian": -1.0}, "jacobian=-1.0; expected a number >= 0"),
        ({"slope": math.inf}, "slope=inf"),
        ({"stretch": 0.5}, "stretch=0.5; expected a number >= 1"),
        ({"distance": -1.0}, "distance=-1.0"),
        ({"injection": None}, "expected a Sensitivity"),
    ],
)
def test_bad_constants_are_refused(change, text):
    good = {"rate": 0.5, "jacobian": 0.0, "injection": Sensitivity(1.0, 0.0)}
    with pytest.raises(fp.InputError, match=text):
        ProvedConstants(**{**good, **change})


def test_several_steps_are_bounded_in_the_euclidean_norm_only():
    solution = solved(fp.TruncatedWindow(3))
    constants = ProvedConstants(rate=0.5, jacobian=0.0, injection=Sensitivity(1.0, 0.0), stretch=2.0)
    with pytest.raises(fp.InputError, match="expected stretch=1"):
        gradient_error(solution, torch.sum, constants=constants)


def test_bad_sensitivities_are_refused():
    with pytest.raises(fp.InputError, match="norm=-1"):
        Sensitivity(-1, 0)
    with pytest.raises(fp.InputError, match=r"condition=0\.5"):
        Sensitivity(1, 0, 0.5)
