import math

import problems
import pytest
import torch

from fpcheck.errors import InputError
from fpcheck.spectral import measured_rate

K = torch.arange(200, dtype=torch.float64)


def residuals(A: torch.Tensor, *, seed: int, floor: float = 0.0, extra: int = 0) -> torch.Tensor:
    """|r_k| / |r_0| of r_{k+1} = A r_k from a random start: down to 1e-13, then ``extra`` steps, in noise."""
    generator = torch.Generator().manual_seed(seed)
    r = problems.randn(len(A), seed=seed)
    r = r / r.norm()
    out = []
    while not out or out[-1] > 1e-13 or extra > 0:
        extra -= bool(out) and out[-1] <= 1e-13
        out.append((r + floor * torch.randn(len(A), generator=generator, dtype=torch.float64)).norm().item())
        r = A @ r
    return torch.tensor(out, dtype=torch.float64)


def fit(history: torch.Tensor, **options) -> tuple[float, float]:
    found = measured_rate(history.unsqueeze(1), **options)
    return found.rate.item(), found.error.item()


STRETCH = torch.diag(torch.tensor([1.0, 10.0])).double()


def stretched_spiral(c: float, degrees: float) -> torch.Tensor:
    """Residuals of a pair in a skew basis swing by up to the factor 10, twice in each turn."""
    return torch.block_diag(
        STRETCH @ (c * problems.rotation(degrees)) @ STRETCH.inverse(), torch.full((1, 1), c / 2).double()
    )


def triangular(rho: float, n: int = 30) -> torch.Tensor:
    off = problems.randn(n, n, seed=7).triu(1) / 6
    return off + rho * torch.diag(torch.linspace(-0.9, 1.0, n, dtype=torch.float64))


def random_matrix(rho: float, n: int = 60) -> torch.Tensor:
    """Dozens of eigenvalues near the edge of a disc of radius rho."""
    A = problems.randn(n, n, seed=5)
    return rho * A / torch.linalg.eigvals(A).abs().max()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("A", "rho"),
    [
        (problems.normal(0.3, -0.1, 0.2), 0.3),
        (problems.normal(0.7, 0.5, -0.6), 0.7),
        (problems.normal(0.98, 0.9, -0.9), 0.98),
        (problems.normal(-0.98, 0.9), 0.98),
        (problems.normal(0.98, 0.95), 0.98),
        (0.6 * problems.rotation(80), 0.6),
        (stretched_spiral(0.7, 80), 0.7),
        (stretched_spiral(0.9, 17), 0.9),
        (stretched_spiral(0.98, 5), 0.98),
        (problems.jordan(0.5, 2), 0.5),
        (problems.jordan(0.7, 2), 0.7),
        (problems.jordan(0.9, 3), 0.9),
        (problems.jordan(0.98, 2), 0.98),
        (triangular(0.9), 0.9),
        (random_matrix(0.9), 0.9),
    ],
)
def test_known_spectra_to_two_per_cent(A, rho, seed):
    # The promise of the docstring, on a residual from 1 to 1e-13, then on one that goes on into a rounding floor.
    rate, error = fit(residuals(A, seed=seed))
    assert rate == pytest.approx(rho, rel=0.02)
    # A standard error: three of them nearly always hold the truth; the least digits of the fit come on top.
    assert abs(rate - rho) <= 3 * error + 1e-3 * rho
    assert error < 0.15 * rho
    rate, _ = fit(residuals(A, seed=seed, floor=1e-15, extra=300))
    assert rate == pytest.approx(rho, rel=0.02)


def test_a_clean_geometric_decay_is_exact():
    rate, error = fit(0.5 ** K[:60])
    # Logarithms of exact powers of two: their rounding only.
    assert rate == pytest.approx(0.5, rel=1e-12)
    assert error < 1e-12


@pytest.mark.parametrize("phase", range(4))
def test_an_oscillation_averages_out(phase):
    # exp(sin) swings by the factor 7 with period 9.3. Over the 80 rows used, the sine-squared window leaves 3e-5 of
    # it at most; equal weights left up to 7e-4.
    k = K[:120]
    rate, error = fit(0.9**k * torch.exp(torch.sin(2 * math.pi * k / 9.3 + phase)))
    assert rate == pytest.approx(0.9, rel=4e-5)
    assert abs(rate - 0.9) < error


def test_the_last_phase_counts_and_not_the_first():
    # Fast at first, then slow: 0.98 rules from k = 12 on, where 0.3^k = 1e-6.
    rate, _ = fit(0.3**K + 1e-6 * 0.98**K)
    assert rate == pytest.approx(0.98, rel=1e-6)
    # The same, ending in noise.
    k = torch.arange(2000, dtype=torch.float64)
    noise = 1e-16 * torch.rand(2000, generator=torch.Generator().manual_seed(0)).double()
    rate, _ = fit(0.3**k + 1e-4 * 0.98**k + noise)
    assert rate == pytest.approx(0.98, rel=1e-3)


@pytest.mark.parametrize(
    ("history", "rate"),
    [
        (torch.ones(100).double(), 1.0),  # a cycle
        (torch.clamp(0.5**K, min=0.3), 1.0),  # stalls high above any rounding floor
        (1 / (1 + K), 1.0),  # drift: the relative residual of z + c
        (1.05**K, 1.05),  # growth
    ],
    ids=["cycle", "stall", "drift", "growth"],
)
def test_what_does_not_converge_is_not_called_converging(history, rate):
    # Drift is exact only in the limit: 1/k has rate 1 - 1/k.
    assert fit(history)[0] == pytest.approx(rate, abs=0.005)


def test_a_floor_that_does_not_show_can_be_named():
    # In half precision the floor lies at 1e-2 and hides the asymptotic rate after 30 steps.
    noise = 1 + 0.3 * torch.rand(200, generator=torch.Generator().manual_seed(0)).double()
    history = 0.85**K + 4e-3 * noise
    assert fit(history)[0] == pytest.approx(1.0, abs=0.01)  # level tail near the top: taken for a stall
    assert fit(history, floor=2e-2)[0] == pytest.approx(0.85, rel=0.05)  # 4e-3 against 2e-2 bends the slope
    # A start on the floor leaves nothing to fit.
    assert math.isnan(fit(4e-3 * noise, floor=2e-2)[0])


def test_padding_zeros_and_infinities_end_a_sample():
    history = torch.stack([0.5**K, 0.7**K, 0.9**K, 3.0**K, torch.full((200,), torch.nan).double()], dim=1)
    history[30:, 0] = torch.nan  # stopped
    history[40:, 1] = 0.0  # arrived exactly
    history[50:, 3] = torch.inf  # overflowed
    found = measured_rate(history)
    assert found.rate[:4].tolist() == pytest.approx([0.5, 0.7, 0.9, 3.0], rel=1e-9)
    assert math.isnan(found.rate[4].item())
    assert math.isnan(found.error[4].item())
    assert found.last.tolist() == [29, 39, 199, 49, 0]
    assert found.count.tolist() == [20, 27, 134, 34, 0]
    assert torch.equal(found.count[:4], found.last[:4] - found.first[:4] + 1)


@pytest.mark.parametrize("points", [0, 1, 5, 8])
def test_too_few_points_give_no_rate(points):
    # A third is left out as transient: of 8 points, 6 remain.
    rate, error = fit(0.5 ** K[:points])
    assert math.isnan(rate) == (points < 8)
    assert math.isnan(error) == (points < 8)


def test_empty_batch():
    assert measured_rate(torch.empty(5, 0)).rate.shape == (0,)


@pytest.mark.parametrize(
    ("history", "options", "words"),
    [
        (torch.ones(5), {}, r"expected residual norms, a floating-point tensor \(K, B\)"),
        (torch.ones(5, 2, dtype=torch.int64), {}, "int64"),
        ([1.0, 0.5], {}, "list"),
        (torch.tensor([[1.0, 1.0], [0.5, -0.5]]), {}, "column 1"),
        (torch.ones(5, 2), {"floor": -1.0}, "floor=-1.0"),
        (torch.ones(5, 2), {"floor": math.nan}, "floor=nan"),
    ],
)
def test_bad_histories_are_refused(history, options, words):
    with pytest.raises(InputError, match=words):
        measured_rate(history, **options)
