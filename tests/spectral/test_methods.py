"""All figures of a point by each way of computing them, against closed forms and against each other."""

import math

import problems
import pytest
import torch

from fpcheck.errors import InputError
from fpcheck.spectral.auto import Auto
from fpcheck.spectral.methods import Blocks, Dense
from fpcheck.spectral.outermost import Krylov
from fpcheck.spectral.regime import Regime
from fpcheck.spectral.spectrum import spectrum

N = 90  # more than what Krylov-Schur hands to LAPACK


def filled(*leading: complex) -> torch.Tensor:
    """A normal matrix of N rows with these eigenvalues (pairs by their upper member) and the rest in [-0.3, 0.3]."""
    rows = sum(2 if complex(v).imag else 1 for v in leading)
    rest = torch.linspace(-0.3, 0.3, N - rows, dtype=torch.float64).tolist()
    return problems.normal(*leading, *rest)


def covers(estimate, true: float) -> bool:
    return float(estimate.value) == true or abs(float(estimate.value) - true) <= float(estimate.error)


# Leading eigenvalues, regime, critical step 2 Re w / |w|^2 by hand, best step and rate by hand (None: not worked out).
CASES = {
    # w = 0.2 and 1.7: 2 / 1.7; best 2 / 1.9, rate 1.5 / 1.9.
    "contractive": ((0.8, -0.7), Regime.CONTRACTIVE, 2 / 1.7, 2 / 1.9, 1.5 / 1.9),
    # w = 2.2 and 0.7 (the rest ends at 0.3): 2 / 2.2; best 2 / 2.9, rate 1.5 / 2.9.
    "flip": ((-1.2,), Regime.FLIP, 2 / 2.2, 2 / 2.9, 1.5 / 2.9),
    # w = 0.9 -+ 1.1i: 1.8 / 2.02.
    "neimark-sacker": ((0.1 + 1.1j,), Regime.NEIMARK_SACKER, 1.8 / 2.02, None, None),
    "damped": ((0.1 + 1.1j, -1.3), Regime.DAMPED_CONTRACTIVE, 2 / 2.3, None, None),
    "fold": ((1.05, -0.6), Regime.FOLD, 0.0, 0.0, 1.0),
    "repelling": ((1.05 + 0.2j, -0.6), Regime.REPELLING, 0.0, 0.0, 1.0),
}


@pytest.mark.parametrize("method", [Krylov(), Dense(), Auto()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("name", CASES)
def test_figures_of_known_loops(name, method):
    leading, regime, critical, best, rate = CASES[name]
    problem = problems.linear(filled(*leading))
    spec = spectrum(problem.loop(), problem.known["fixed_point"], method=method)
    size = max(abs(v) for v in leading)
    assert spec.regime == (regime,) * problems.BATCH
    assert spec.converged.all()
    for i in range(problems.BATCH):
        known = {"radius": size, "norm": size, "log_norm": max(0.3, *(complex(v).real for v in leading))}
        known |= {"critical_step": critical} | ({} if best is None else {"best_step": best, "best_rate": rate})
        for figure, true in known.items():
            assert covers(getattr(spec, figure)[i], true), figure
        # Nothing here is ill-conditioned: the errors are small, not only honest.
        assert float(spec.radius.error[i]) < 1e-7
        assert float(spec.critical_step.error[i]) < 1e-6
    assert spec.damping_helps.tolist() == [critical > 0] * problems.BATCH
    assert spec.complete == (not isinstance(method, Krylov))


def test_products_alone_say_what_the_dense_matrix_says():
    loop, z = problems.small_fprm("plain", hidden_size=24)  # n = 96
    dense, krylov = (spectrum(loop, z, method=method) for method in (Dense(), Krylov()))
    assert "outermost of 96" in krylov.path
    assert "dense" in dense.path
    assert krylov.regime == dense.regime
    for figure in ("radius", "norm", "log_norm", "critical_step", "best_rate"):
        a, b = getattr(dense, figure), getattr(krylov, figure)
        assert bool(((a.value - b.value).abs() <= a.error + b.error).all()), figure
        assert bool((b.error < 1e-5).all()), figure
    # The eigenvalues are those of largest modulus, each within both errors.
    k = krylov.eigenvalues.shape[1]
    gap = (dense.eigenvalues[:, :k].abs() - krylov.eigenvalues.abs()).abs()
    assert bool((gap <= dense.eigenvalue_error[:, :k] + krylov.eigenvalue_error).all())


def test_the_best_step_finds_an_eigenvalue_that_neither_end_shows():
    # Two pairs: 0.9i has |w| = 1.345, s_c = 2 / 1.81 = 1.105; among many others, 0.62 +- 0.45i (s_c = 2.19, modulus
    # 0.766, so neither the largest modulus nor the smallest critical step) does not limit either; the best step does
    # have to balance 0.9i, |1 - s (1 - 0.9i)|, with 0.85: at s = 0.94 they are 0.86 and 0.86.
    problem = problems.linear(filled(0.9j, 0.62 + 0.45j, 0.85, -0.5))
    dense, krylov = (spectrum(problem.loop(), problem.z0, method=m) for m in (Dense(), Krylov(count=1)))
    assert bool(((dense.best_rate.value - krylov.best_rate.value).abs() <= 1e-9).all())


def test_too_few_restarts_are_owned_up_to():
    # All eigenvalues on a circle: nothing separates the leading one, and it is too large to be handed to LAPACK.
    n = 800
    turns = [0.9 * complex(math.cos(a), math.sin(a)) for a in torch.linspace(0.1, 3.0, n // 2).tolist()]
    problem = problems.linear(problems.normal(*turns))
    spec = spectrum(problem.loop(), problem.z0, method=Krylov(count=2, max_restarts=1))
    assert not spec.converged.any()
    assert spec.regime == (Regime.UNDECIDED,) * problems.BATCH
    assert bool(torch.isinf(spec.radius.error).all())
    assert not spec.damping_helps.any()


def test_a_causal_loop_is_taken_block_by_block():
    loop, z = problems.small_fprm("causal, conv1d")
    dense, blocks = (spectrum(loop, z, method=method) for method in (Dense(), Blocks()))
    assert "causal" in blocks.path
    assert blocks.complete
    gap = (dense.eigenvalues.abs() - blocks.eigenvalues.abs()).abs()
    assert bool((gap <= dense.eigenvalue_error + blocks.eigenvalue_error).all())
    assert blocks.regime == dense.regime


def test_a_method_is_an_object():
    problem = problems.contraction()
    with pytest.raises(InputError, match=r"method='dense'; expected an object: Auto\(\), Dense\(\)"):
        spectrum(problem.loop(), problem.z0, method="dense")


def test_a_request_beyond_memory_names_the_size_and_the_way_out():
    problem = problems.linear(filled(0.9))
    with pytest.raises(InputError, match=r"n=90 need .* GiB.*max_bytes"):
        spectrum(problem.loop(), problem.z0, method=Dense(), max_bytes=100_000)
    with pytest.raises(InputError, match=r"max_bytes|GiB"):
        spectrum(problem.loop(), problem.z0, method=Krylov(), max_bytes=1000)
