import math
from dataclasses import fields

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import mpmath
import numpy as np
import problems
import pytest
import torch
from hypothesis import assume, example, given
from problems import FPRM_VARIANTS, small_fprm

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral import Dense, Estimate, Regime, damped_radius, jacobian, spectrum

EPS = 2.0**-52


def linear_spectrum(A, **options):
    z = torch.zeros(1, len(A), dtype=A.dtype)
    return spectrum(Loop(lambda z: z @ A.T, z0=z), z, **options)


def covers(estimate: Estimate, true: float) -> bool:
    return float(estimate.value) == true or abs(float(estimate.value) - true) <= float(estimate.error)


FIGURES = ("radius", "norm", "log_norm", "critical_step", "best_step", "best_rate", "period")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", problems.LINEAR)
def test_known_loops(name, dtype):
    problem = problems.PROBLEMS[name](dtype)
    known = problem.known
    z = known.get("fixed_point", problem.z0)
    spec = spectrum(problem.loop(), z)
    # Entries of the prescribed matrix are roundings of dtype away from what the closed forms assume; the estimates
    # count the rounding of the same Jacobian. Zero slack beyond that.
    for i in range(problems.BATCH):
        for figure in FIGURES:
            if figure in known:
                assert covers(getattr(spec, figure)[i], known[figure]), figure
    if name not in ("jordan", "drift", "cycle"):
        # Where nothing is defective or on a border, the errors are not only honest but small.
        eps = torch.finfo(dtype).eps
        for figure in ("radius", "norm", "log_norm", "critical_step", "best_rate"):
            # An eigenvalue error of some 50 roundings is multiplied by 2 / |w|^2, at most 2 / 0.02^2 here.
            assert float(getattr(spec, figure).error.max()) < 3e5 * eps, figure
    assert spec.regime == (known["regime"],) * problems.BATCH
    assert spec.at_fixed_point == ("fixed_point" in known,) * problems.BATCH
    assert spec.dtype is dtype
    assert spec.n == problem.z0.shape[1]


def test_rotation_that_peers_read_as_contracting():
    spec = linear_spectrum(1.2 * problems.rotation(80))
    assert float(spec.radius[0]) == pytest.approx(1.2, rel=1e-12)
    assert float(spec.radius.error) < 1e-12
    assert spec.regime == (Regime.NEIMARK_SACKER,)
    # w = 1 - 1.2 exp(i 80 deg): s_c = 2 (1 - 1.2 cos 80) / (1 - 2.4 cos 80 + 1.44).
    cos = math.cos(math.radians(80))
    assert float(spec.critical_step) == pytest.approx(2 * (1 - 1.2 * cos) / (2.44 - 2.4 * cos), rel=1e-13)
    assert float(spec.period) == pytest.approx(4.5, rel=1e-13)
    assert spec.damping_helps.all()
    assert float(spec.circle_distance) == pytest.approx(-0.2, abs=1e-14)
    # Contrast, written here: a real power iteration on J' with its Rayleigh quotient, as in peers. The quotient
    # v'Jv / v'v of 1.2 R(80) is 1.2 cos 80 = 0.208 for every v: it calls this diverging loop contracting.
    J, v = 1.2 * problems.rotation(80), torch.tensor([1.0, 0.3]).double()
    for _ in range(100):
        v = J.T @ v
        v = v / v.norm()
    assert (v @ (J.T @ v)).item() == pytest.approx(0.208, abs=1e-3)


@pytest.mark.parametrize("variant", FPRM_VARIANTS)
def test_fprm_agrees_with_an_independent_lapack(variant):
    loop, z = small_fprm(variant)
    spec = spectrum(loop, z)
    for i, J in enumerate(jacobian(loop, z).numpy()):
        # A causal loop's spectrum is that of its tokens, 8 channels each: taken whole, numpy's errors are larger.
        tokens = [slice(t, t + 8) for t in range(0, len(J), 8)] if "causal" in variant else [slice(None)]
        lam = np.concatenate([np.linalg.eigvals(J[t, t]) for t in tokens])
        # Numpy's LAPACK is another build with errors of its own, of the same size: twice the estimate.
        assert abs(np.abs(lam).max() - float(spec.radius[i])) <= 2 * float(spec.radius.error[i])
        assert abs(np.linalg.norm(J, 2) - float(spec.norm[i])) <= 2 * float(spec.norm.error[i])
        top = np.linalg.eigvalsh((J + J.T) / 2).max()
        assert abs(top - float(spec.log_norm[i])) <= 2 * float(spec.log_norm.error[i])
        distance = np.abs(lam[:, None] - spec.eigenvalues[i].numpy())
        assert (distance.min(0) <= 2 * spec.eigenvalue_error[i].numpy()).all()
    # The estimates mean something: well below the figures themselves.
    assert (spec.norm.error < 1e-12 * spec.norm.value).all()
    assert (spec.radius.error < 1e-8 * spec.radius.value).all()


def exact_figures(A: np.ndarray, digits: int = 80) -> tuple[float, float, float]:
    """Spectral radius, 2-norm and log-norm in high precision, by mpmath's own algorithms."""
    with mpmath.workdps(digits):
        M = mpmath.matrix(A.tolist())
        # Called for one entry, mpmath.eig returns another type.
        radius = max(abs(v) for v in mpmath.eig(M, left=False, right=False)) if len(A) > 1 else abs(M[0, 0])
        norm = mpmath.sqrt(max(abs(v) for v in mpmath.eigsy(M.T * M, eigvals_only=True)))
        log_norm = max(mpmath.eigsy((M + M.T) / 2, eigvals_only=True))
        return float(radius), float(norm), float(log_norm)


# No subnormal entries: they have fewer digits than eps says.
entries = st.one_of(st.integers(-2, 2).map(float), st.floats(-2, 2, allow_subnormal=False))
matrices = st.integers(1, 4).flatmap(lambda n: hnp.arrays(float, (n, n), elements=entries))


@given(matrices)
@example(np.array([[1.0, 1.0], [0.0, 1.0]]))
@example(np.array([[1.0, 1.0], [1e-17, 1.0]]))
@example(np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
@example(np.array([[1.0, 1e8], [1e-8, 1.0]]))
@example(np.array([[0.0, 8.33226909e-231], [8.33226909e-231, 0.0]]))  # squares underflow; found by Hypothesis
def test_errors_cover_the_difference_to_high_precision(A):
    spec = linear_spectrum(torch.tensor(A))
    # float() of the exact figure adds one rounding.
    for estimate, true in zip((spec.radius, spec.norm, spec.log_norm), exact_figures(A), strict=True):
        assert abs(float(estimate) - true) <= float(estimate.error) + EPS * abs(true)


@st.composite
def derogatory(draw):
    """S J / S with J made of Jordan blocks that share the eigenvalues 0 and 1."""
    n = draw(st.integers(2, 5))
    bits = hnp.arrays(float, n, elements=st.sampled_from([0.0, 1.0]))
    J = np.diag(draw(bits)) + np.diag(draw(bits)[1:], 1)
    S = draw(hnp.arrays(float, (n, n), elements=st.integers(-2, 2).map(float)))
    assume(abs(np.linalg.det(S)) > 0.5)
    return S @ J @ np.linalg.inv(S)


@given(derogatory())
def test_errors_cover_defective_and_derogatory_matrices(A):
    # The hardest case: a wrong pairing of multiple eigenvalues once gave errors of 3e-13 where 7e-9 was due.
    assert covers(linear_spectrum(torch.tensor(A)).radius[0], exact_figures(A)[0])


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
def test_jordan_blocks_come_with_their_true_uncertainty(size):
    Q = problems.orthogonal(size)
    spec = linear_spectrum(Q @ problems.jordan(0.5, size) @ Q.T)
    assert covers(spec.radius[0], 0.5)
    # A perturbation delta moves the eigenvalue by delta^(1/size); delta here is 1e-16 to 1e-14.
    assert 1e-16 ** (1 / size) < float(spec.radius.error) < 10 * 1e-14 ** (1 / size)


def test_grcar_against_high_precision():
    A = problems.grcar(14)
    spec = linear_spectrum(A)
    radius, norm, log_norm = exact_figures(A.numpy(), digits=30)
    assert covers(spec.radius[0], radius)
    assert covers(spec.norm[0], norm)
    assert covers(spec.log_norm[0], log_norm)
    assert float(spec.radius.error) < 1e-9  # condition numbers near 1e3


def test_an_ill_conditioned_part_does_not_spoil_the_dominant_eigenvalue():
    # Twelve delays in a chain (all eigenvalues 0, moved to modulus 0.05 by a rounding), turned so that no zero shows
    # it, beside an eigenvalue 0.9 that stands alone.
    A = torch.block_diag(problems.jordan(0.0, 12), torch.full((1, 1), 0.9, dtype=torch.float64))
    Q = problems.orthogonal(13)
    spec = linear_spectrum(Q @ A @ Q.T)
    assert covers(spec.radius[0], 0.9)
    assert float(spec.radius.error) < 1e-13
    assert spec.regime == (Regime.CONTRACTIVE,)
    assert (spec.eigenvalues[0, 1:].abs() <= spec.eigenvalue_error[0, 1:]).all()
    assert (spec.eigenvalue_error[0, 1:] < 0.5).all()


def test_an_exactly_defective_matrix_without_zeros():
    # Trace 2, determinant 1: twice the eigenvalue 1, one eigenvector. A rounding of 1e-16 moves it by 1e-8.
    spec = linear_spectrum(torch.tensor([[2.0, -1.0], [1.0, 0.0]]).double())
    assert covers(spec.radius[0], 1.0)
    assert 1e-9 < float(spec.radius.error) < 1e-6
    assert spec.regime == (Regime.UNDECIDED,)


def test_normal_matrices_are_known_to_rounding():
    eigenvalues = np.linspace(-0.9, 0.9, 40)
    spec = linear_spectrum(problems.normal(*eigenvalues))
    # delta + gamma = (10 + 4) eps |J|_F for condition number 1, |J|_F = 3.3.
    assert spec.eigenvalue_error.max() < 20 * EPS * 3.4
    difference = spec.eigenvalues[0].real.sort().values - torch.from_numpy(eigenvalues)
    assert difference.abs().max() <= spec.eigenvalue_error.max()


@given(st.integers(0, 1000))
def test_turning_the_basis_changes_nothing(seed):
    A = problems.randn(6, 6, seed=seed) / 2
    Q = problems.orthogonal(6, seed=seed + 1)
    one, two = linear_spectrum(A), linear_spectrum(Q @ A @ Q.T)
    for figure in ("radius", "norm", "log_norm"):
        a, b = getattr(one, figure)[0], getattr(two, figure)[0]
        # Rounding the turned matrix adds a few eps |A|_F, which each error counts ten times.
        assert abs(float(a) - float(b)) <= float(a.error) + float(b.error)


@given(st.integers(0, 1000))
def test_a_similarity_keeps_the_eigenvalues(seed):
    A = problems.randn(5, 5, seed=seed) / 2
    S = torch.eye(5, dtype=torch.float64) + 0.1 * problems.randn(5, 5, seed=seed + 1)
    B = torch.linalg.solve(S, A @ S)
    one, two = linear_spectrum(A), linear_spectrum(B)
    # B carries the rounding of the solve, cond(S) < 10 times eps.
    slack = 10 * (float(one.radius.error) + float(two.radius.error))
    assert abs(float(one.radius) - float(two.radius)) <= slack


def test_eigenvalues_are_sorted_and_pairs_stay_together():
    spec = linear_spectrum(torch.block_diag(problems.normal(0.3, 0.9j), problems.normal(-0.9, 0.5 + 0.1j)))
    lam = spec.eigenvalues[0]
    assert (lam.abs().diff() <= 1e-15).all()
    pairs = lam[lam.imag.abs() > 1e-3]
    assert torch.equal(pairs[::2], pairs[1::2].conj())
    assert (pairs[::2].imag > 0).all()


def test_samples_do_not_affect_each_other():
    # Three samples with Jacobians of their own: fine, defective, expanding.
    matrices = torch.stack([problems.normal(0.5, 0.3j), problems.jordan(0.5, 3), 2 * problems.orthogonal(3)])
    z = torch.zeros(3, 3, dtype=torch.float64)
    loop = Loop(lambda z, A: (A @ z.unsqueeze(-1)).squeeze(-1), matrices, z0=z)
    together = spectrum(loop, z)
    for i in range(3):
        alone = spectrum(loop.sample(i), z[i : i + 1])
        for f in fields(together):
            a, b = getattr(together, f.name), getattr(alone, f.name)
            if isinstance(a, torch.Tensor):
                assert torch.equal(a[i : i + 1], b), f.name
            elif isinstance(a, Estimate):
                assert torch.equal(a.value[i : i + 1], b.value), f.name
                assert torch.equal(a.error[i : i + 1], b.error), f.name
            elif isinstance(a, tuple):
                assert a[i : i + 1] == b, f.name


@pytest.mark.parametrize("variant", FPRM_VARIANTS)
def test_float32_is_as_wrong_as_it_says(variant):
    loop, z = small_fprm(variant, torch.float32)
    narrow = spectrum(loop, z)
    wide = spectrum(Loop(loop.block.double(), loop.x.double()), z.double())
    for figure in ("radius", "norm", "log_norm"):
        a, b = getattr(narrow, figure), getattr(wide, figure)
        assert ((a.value - b.value).abs() <= a.error).all(), figure
    assert (narrow.norm.error < 1e-4 * narrow.norm.value).all()


def test_a_damped_view_has_the_damped_spectrum():
    loop, z = small_fprm("plain")
    plain, damped = spectrum(loop, z), spectrum(loop.damped(0.4), z)
    # The same eigenvalues moved; both sides carry their own errors.
    slack = plain.radius.error + damped.radius.error
    assert ((damped.radius.value - damped_radius(plain.eigenvalues, 0.4)).abs() <= slack).all()
    # Undamped residual: a small step must not pass for a small residual.
    torch.testing.assert_close(damped.residual, plain.residual, rtol=1e-10, atol=0)
    assert not any(damped.at_fixed_point)


def test_residual_tells_whether_the_state_is_a_fixed_point():
    problem = problems.tanh()
    star = problem.known["fixed_point"]
    at, near = spectrum(problem.loop(), star), spectrum(problem.loop(), star + 1e-3)
    assert at.at_fixed_point == (True, True)
    assert (at.residual < 1e-15).all()
    assert near.at_fixed_point == (False, False)
    with torch.no_grad():
        F = problem.loop()(star + 1e-3)
    expected = (F - star - 1e-3).norm(dim=1) / F.norm(dim=1)
    torch.testing.assert_close(near.residual, expected, rtol=1e-12, atol=0)
    assert "not fixed points" in near.explain()
    assert "not fixed points" not in at.explain()
    # Where F(z) = z = 0 the relative residual is 0 / 0; the state is a fixed point all the same.
    assert linear_spectrum(torch.eye(2).double()).residual.item() == 0.0


def test_drift_is_undecided_and_no_damping_is_promised():
    problem = problems.drift()
    spec = spectrum(problem.loop(), problem.z0)
    assert spec.regime == (Regime.UNDECIDED,) * 2
    assert not spec.damping_helps.any()
    assert "drift" in spec.explain()


@pytest.mark.parametrize(
    ("name", "helps"), [("flip", True), ("mixed", True), ("contraction", True), ("fold", False), ("spiral out", False)]
)
def test_whether_damping_helps(name, helps):
    problem = problems.PROBLEMS[name]()
    assert spectrum(problem.loop(), problem.z0).damping_helps.tolist() == [helps] * 2


def test_it_explains_itself_and_calls_nothing_a_bound():
    problem = problems.flip()
    spec = spectrum(problem.loop(), problem.known["fixed_point"])
    text = spec.explain()
    assert text.startswith("FLIP: 2 of 2 samples (0, 1), largest rho 1.1 +- ")
    assert "(estimate), period 2, critical step 0.952" in text
    assert "bound" not in text + repr(spec)
    assert len(spec) == 2


def test_constant_loop_has_the_spectrum_zero():
    z = problems.randn(1, 3)
    spec = spectrum(Loop(torch.ones_like, z0=z), z)
    assert float(spec.radius[0]) == float(spec.norm[0]) == float(spec.radius.error) == 0.0
    assert spec.regime == (Regime.CONTRACTIVE,)


def test_one_entry_states():
    spec = linear_spectrum(torch.tensor([[-1.5]]).double())
    assert (float(spec.radius[0]), float(spec.norm[0]), float(spec.log_norm[0])) == (1.5, 1.5, -1.5)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        linear_spectrum(torch.eye(2).double())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_request_beyond_memory_is_refused_before_any_work():
    calls = []
    z = torch.zeros(1, 10000, dtype=torch.float64)
    loop = Loop(lambda z: (calls.append(1), 0.5 * z)[1], z0=z, check=False)
    # J is 0.745 GiB and LAPACK needs 12 times that beside it.
    with pytest.raises(InputError, match=r"need 9.69 GiB, .* not even one sample fits"):
        spectrum(loop, z, method=Dense())
    assert not calls


@pytest.mark.parametrize(
    ("z", "error", "words"),
    [
        (torch.ones(2, 3, dtype=torch.int32), InputError, "int32"),
        (torch.ones(2, 3, dtype=torch.float16), InputError, "half precision"),
        (torch.ones(1, 3), InputError, "B=2"),
        (torch.full((2, 3), torch.inf), NonFiniteError, "for 2 samples"),
    ],
)
def test_bad_states_are_refused(z, error, words):
    with pytest.raises(error, match=words):
        spectrum(Loop(lambda z: 0.5 * z, z0=torch.zeros(2, 3)), z)
