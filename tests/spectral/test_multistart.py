"""Where many starts end, on loops whose fixed points and basins are known."""

import importlib
import math

import hypothesis.strategies as st
import numpy as np
import problems
import pytest
import torch
from hypothesis import given
from scipy.cluster.hierarchy import fcluster, linkage

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.solve import Anderson, Picard
from fpcheck.spectral.multistart import multistart
from fpcheck.status import Status

F64 = torch.float64
# The function hides the module of its name.
module = importlib.import_module("fpcheck.spectral.multistart")


def column(*values, dtype=F64):
    return torch.tensor([[v] for v in values], dtype=dtype)


def well(*gains, start=0.1, dtype=F64):
    """z -> tanh(g z): for g > 1 two attracting points +-z* and a repelling one at 0."""
    g = column(*gains, dtype=dtype)
    z0 = torch.full_like(g, start)
    return Loop(lambda z, g: torch.tanh(g * z), g, z0=z0), z0


def root(g):
    """z* > 0 with z* = tanh(g z*), by bisection."""
    low, high = 0.1, 1.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if math.tanh(g * middle) > middle else (low, middle)
    return low


def test_double_well_has_two_points_and_equal_basins():
    loop, z0 = well(2.5)
    found = multistart(loop, 1000, around=z0)
    points = found.points[0]
    assert len(points) == 2
    assert found.multistable.item()
    exact = root(2.5)
    for k in range(2):
        gap = abs(abs(points.value[k].item()) - exact)
        assert gap <= points.error[k].item() < 1e-10
    # The basins are the half lines. Random start k has the scale s_k z*, s_k from 0.1 to 10 evenly in logarithm; even
    # ones are centred at 0 (share 1/2), odd ones at the positive well: above 0 with probability Phi(1 / s_k).
    # Binomial standard error of 1000 starts: 0.016 at most; four of them.
    scales = [10 ** (-1 + 2 * k / 999) for k in range(1000)]
    expected = sum(0.5 * (1 + math.erf(1 / s / math.sqrt(2))) if k % 2 else 0.5 for k, s in enumerate(scales)) / 1000
    positive = points.share[(points.value.flatten() > 0).nonzero().flatten()].item()
    assert abs(positive - expected) < 4 * 0.016
    assert expected > 0.5 + 6 * 0.016
    assert points.share.sum().item() == pytest.approx(1.0)
    # The rate at both is the slope g (1 - z*^2).
    assert torch.allclose(points.rate, torch.full_like(points.rate, 2.5 * (1 - exact**2)), rtol=1e-4)
    assert found.spread.item() == pytest.approx(2 * exact, rel=1e-9)
    assert found.size.item() == pytest.approx(exact, rel=1e-9)
    assert "2 fixed point(s) from 1001 of 1001 starts" in found.explain()


def test_shares_are_those_of_the_basins():
    # Around zero the settled state is zero too (a start there stays), so every start is centred there, and the basins
    # of an even map have share 1/2. Binomial standard error of 400 starts: 0.025; four of them.
    loop, z0 = well(2.5, start=0.0)
    found = multistart(loop, 400, around=z0)
    points = found.points[0]
    # The given state is a repelling fixed point of its own: found, with no share and no part in the verdict.
    assert sorted(points.starts.tolist())[0] == 1
    at_zero = int((points.value.flatten() == 0).nonzero())
    assert points.share[at_zero] == 0
    assert points.rate[at_zero].item() == pytest.approx(2.5, rel=1e-6)
    wells = [k for k in range(3) if k != at_zero]
    for k in wells:
        assert points.share_error[k].item() == pytest.approx(0.025, rel=0.05)
        assert abs(points.share[k].item() - 0.5) < 4 * 0.025
    assert found.multistable.item()


def test_the_given_state_counts_as_a_start():
    # A well of radius 1e-3 around 1 in a slope of 1/2 towards 0 elsewhere: no random start of 20 falls into it.
    def step(z):
        u = (z - 1) / 1e-3
        inside = torch.exp(-(u**2))
        return (1 - inside) * z / 2 + inside * (1 + 0.1 * (z - 1))

    z0 = torch.ones(1, 1, dtype=F64)
    found = multistart(Loop(step, z0=z0), 20, around=z0, solver=Picard(atol=1e-9), seed=1)
    assert sorted(found.points[0].starts.tolist()) == [1, 20]
    assert found.multistable.item()


def test_one_way_out_of_three_is_not_multistable():
    # Gain 0.9: the only fixed point is 0, reached within atol. Gain 2.5 with a field that leaves one well: one point.
    g, h = column(0.9, 2.5), column(0.0, 1.5)
    loop = Loop(lambda z, x: torch.tanh(x[0] * z + x[1]), (g, h), z0=torch.zeros(2, 1, dtype=F64))
    found = multistart(loop, 50, around=torch.zeros(2, 1, dtype=F64), solver=Picard(atol=1e-9))
    assert [len(p) for p in found.points] == [1, 1]
    assert found.multistable.tolist() == [False, False]
    assert found.points[0].share.tolist() == [1.0]
    # A share of 1 is known to about 1 / 50, not exactly.
    assert 0.01 < found.points[0].share_error.item() < 0.03


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rate", [0.5, 0.99])
def test_a_contraction_has_one_point_however_slow(rate, dtype):
    # With rate 0.99 the limits lie a hundred residuals from the point, on both sides of it.
    problem = problems.linear(problems.normal(rate, -0.4, 0.2, 0.1), dtype)
    found = multistart(problem.loop(), 30, around=problem.z0, solver=Picard(max_steps=4000))
    assert [len(p) for p in found.points] == [1, 1]
    assert not found.multistable.any()
    for i, points in enumerate(found.points):
        gap = (points.value[0] - problem.known["fixed_point"][i]).norm().item()
        assert gap <= 10 * points.error[0].item()
    if rate == 0.99:
        # The partner: judged by the solver's tolerance alone, these limits would be many points.
        assert bool((found.spread > 20 * torch.tensor([1e-10 if dtype is F64 else 1e-5]) * found.size).all())


@given(st.integers(0, 10**6))
def test_random_contractions_are_never_called_multistable(seed):
    n = 6
    W = problems.randn(n, n, seed=seed)
    W = 0.95 * W / torch.linalg.matrix_norm(W, 2)
    x = problems.randn(2, n, seed=seed + 1)
    loop = Loop(lambda z, x: torch.tanh(z @ W.T + x), x, z0=x, check=False)
    found = multistart(loop, 12, around=x, seed=seed)
    assert [len(p) for p in found.points] == [1, 1]
    assert not found.multistable.any()
    assert all(bool((p.rate < 1).all()) for p in found.points)


def test_points_a_millionth_apart_are_told_apart():
    # c + d tanh(2.5 (z - c) / d): wells at c +- d z*.
    c, d = 1.0, 1e-6
    z0 = column(c)
    loop = Loop(lambda z: c + d * torch.tanh(2.5 * (z - c) / d), z0=z0)
    found = multistart(loop, 30, around=z0)
    reached = found.points[0].value[found.points[0].share > 0].flatten()
    # Residuals of 1e-10 |z| and a rate of 0.07 leave 1.1e-10.
    assert sorted((reached - c).tolist()) == pytest.approx([-d * root(2.5), d * root(2.5)], abs=1.1e-10)
    assert found.multistable.item()


def test_a_line_of_fixed_points_gives_each_start_its_own():
    # The first coordinate stays where it started.
    z0 = torch.ones(1, 2, dtype=F64)
    loop = Loop(lambda z: torch.stack([z[:, 0], z[:, 1] / 2 + 1], dim=1), z0=z0)
    found = multistart(loop, 20, around=z0)
    assert len(found.points[0]) == 21
    assert found.multistable.item()
    assert "limit of its own" in found.explain()


def test_starts_that_do_not_converge_are_counted_by_status():
    # r = 3.2: the 2-cycle inside [0, 1], minus infinity outside; no start settles.
    x = column(3.2)
    loop = Loop(lambda z, r: r * z * (1 - z), x, z0=column(0.3))
    found = multistart(loop, 30, around=column(0.3))
    assert len(found.points[0]) == 0
    assert found.label.unique().tolist() == [-1]
    assert {Status.CYCLE, Status.DIVERGING} <= set(found.status[0])
    assert not found.multistable.item()
    assert found.spread.item() == found.size.item() == 0
    assert "none of 31 starts settled" in found.explain()
    assert "DIVERGING" in found.explain()
    # The partner: both fixed points, 0 and 1 - 1/r, repel. Anderson finds them, which makes nothing multistable.
    repelling = multistart(loop, 30, around=column(0.3), solver=Anderson(atol=1e-12))
    values = sorted(repelling.points[0].value.flatten().tolist())
    assert len(values) == 2
    assert values == pytest.approx([0.0, 1 - 1 / 3.2], abs=1e-9)
    assert not repelling.multistable.item()
    assert sorted(repelling.points[0].rate.tolist()) == pytest.approx([1.2, 3.2], rel=1e-4)


def test_samples_do_not_depend_on_their_mates():
    loop, z0 = well(2.5, 1.2, 4.0)
    whole = multistart(loop, 15, around=z0)
    for i in range(3):
        alone = multistart(loop.sample(i), 15, around=z0[i : i + 1])
        assert torch.equal(whole.label[i], alone.label[0])
        assert torch.equal(whole.steps[i], alone.steps[0])
        assert whole.status[i] == alone.status[0]
        # Vector and scalar tanh differ in the last bit, which a rate of 0.9 makes ten of.
        assert torch.allclose(whole.points[i].value, alone.points[0].value, rtol=1e-13)


def test_chunks_change_nothing(monkeypatch):
    loop, z0 = well(2.5, 1.2)
    whole = multistart(loop, 15, around=z0)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 7 * 8)  # seven states of one float64
    parts = multistart(loop, 15, around=z0)
    assert torch.equal(whole.label, parts.label)
    assert whole.status == parts.status
    for a, b in zip(whole.points, parts.points, strict=True):
        assert torch.allclose(a.value, b.value, rtol=1e-13)
        assert torch.equal(a.starts, b.starts)


def test_books_balance():
    loop, z0 = well(2.5, 1.5)
    found = multistart(loop, 25, around=z0)
    for i, points in enumerate(found.points):
        settled = [s is Status.CONVERGED for s in found.status[i]]
        assert int(points.starts.sum()) == sum(settled)
        assert [int(v) >= 0 for v in found.label[i]] == settled
        assert points.starts.tolist() == sorted(points.starts.tolist(), reverse=True)
        for k in range(len(points)):
            assert int((found.label[i] == k).sum()) == int(points.starts[k])
            assert points.share[k].item() == pytest.approx(int((found.label[i, 1:] == k).sum()) / 25)


def test_every_part_of_an_injection_is_repeated():
    # Each sample's own gain and field, as a dictionary; the points of sample 1 belong to its own numbers.
    x = {"gain": column(0.5, 0.25), "field": column(1.0, 3.0)}
    loop = Loop(lambda z, x: x["gain"] * z + x["field"], x, z0=torch.zeros(2, 1, dtype=F64))
    found = multistart(loop, 5, around=torch.zeros(2, 1, dtype=F64))
    assert [p.value.item() for p in found.points] == pytest.approx([2.0, 4.0], rel=1e-9)


@given(st.integers(0, 10**6), st.floats(-2, 1))
def test_clusters_are_those_of_single_linkage(seed, exponent):
    # Equal errors e join limits up to 10 (e + e) apart: SciPy's single linkage, cut there.
    rng = np.random.default_rng(seed)
    limits = rng.normal(size=(12, 2))
    e = 10.0**exponent / 20
    expected = fcluster(linkage(limits, "single"), 20 * e, "distance")
    label, spread = module._clusters(
        torch.from_numpy(limits)[None], torch.full((1, 12), e, dtype=F64), torch.ones(1, 12, dtype=torch.bool)
    )
    got = label[0].numpy()
    assert ((got[:, None] == got) == (expected[:, None] == expected)).all()
    counts = np.bincount(got)
    assert (np.diff(counts) <= 0).all()
    assert spread.item() == pytest.approx(max(np.linalg.norm(a - b) for a in limits for b in limits))


def test_a_limit_that_did_not_settle_joins_nothing():
    # The first one lies between the others and would bridge them.
    limits = torch.tensor([[[0.1], [0.0], [0.2]]], dtype=F64)
    settled = torch.tensor([[False, True, True]])
    error = torch.full((1, 3), 0.006, dtype=F64)
    assert module._clusters(limits, error, settled)[0].tolist() == [[-1, 0, 1]]
    assert module._clusters(limits, error, torch.ones_like(settled))[0].tolist() == [[0, 0, 0]]


def test_state_can_be_read_off_a_tensor_injection():
    loop = Loop(lambda z, x: 0.5 * z + x, column(1.0))
    assert multistart(loop, 3).points[0].value.item() == pytest.approx(2.0)
    bare = Loop(lambda z: 0.5 * z + 1, z0=column(1.0))
    with pytest.raises(InputError, match="around=None; pass around="):
        multistart(bare, 3)


@pytest.mark.parametrize(
    ("n_starts", "options", "error", "message"),
    [
        (0, {}, InputError, "n_starts=0; expected an integer >= 1"),
        (2.5, {}, InputError, "n_starts=2.5; expected"),
        (3, {"decades": -1.0}, InputError, "decades=-1.0; expected a finite number >= 0"),
        (3, {"solver": "picard"}, InputError, "solver='picard'; expected a solver object"),
        (3, {"around": torch.zeros(2, 1)}, InputError, r"z0.shape=\(2, 1\)"),
        (3, {"around": torch.full((1, 1), math.nan)}, NonFiniteError, "NaN or inf"),
        (2**31, {}, InputError, "need 16 GiB; at most 8 are used: take fewer starts"),
    ],
)
def test_bad_calls_are_refused(n_starts, options, error, message):
    loop = Loop(lambda z, x: 0.5 * z + x, column(1.0))
    with pytest.raises(error, match=message):
        multistart(loop, n_starts, **options)
