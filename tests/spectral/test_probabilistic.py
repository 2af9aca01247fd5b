"""A bound that may fail with probability delta fails no more often, and not much less."""

import doctest
import math
import re

import mpmath
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import jordan, randn, small_fprm

from fpcheck.errors import InputError, NonFiniteError
from fpcheck.spectral import Estimate, jacobian
from fpcheck.spectral import probabilistic as module
from fpcheck.spectral.lanczos import AbstractPart, Gram, Lanczos, Part
from fpcheck.spectral.operator import AbstractOperator, JacobianOperator, MatrixOperator
from fpcheck.spectral.probabilistic import ProbabilisticBound, log_norm_bound, norm_bound

EPS = 2.0**-52
TRIALS = 2000
N = 12


def top_singular(A):
    return torch.linalg.svdvals(A.double())[..., 0]


def top_symmetric(A):
    return torch.linalg.eigvalsh((A.double() + A.double().mT) / 2)[..., -1]


BOUNDS = {"norm": (norm_bound, top_singular), "log-norm": (log_norm_bound, top_symmetric)}
bounds = pytest.mark.parametrize(("bound", "lapack"), BOUNDS.values(), ids=BOUNDS)


def turned(s, seed):
    """Random left and right singular vectors about the singular values s."""
    Q, W = (torch.linalg.qr(randn(TRIALS, len(s), len(s), seed=k))[0] for k in (seed, seed + 1))
    return Q @ torch.diag(s.double()) @ W


# The starts are independent, one for each sample: a fixed matrix is tried 2,000 times as much as a random one is.
KINDS = {
    "gaussian": lambda: randn(TRIALS, N, N),
    "low rank": lambda: randn(TRIALS, N, 3) @ randn(TRIALS, 3, N, seed=1),
    "rank one": lambda: randn(TRIALS, N, 1) @ randn(TRIALS, 1, N, seed=1),
    "clustered": lambda: turned(torch.cat([1 - 1e-3 * torch.arange(4), torch.linspace(0, 0.5, N - 4)]), 2),
    "orthogonal": lambda: torch.linalg.qr(randn(TRIALS, N, N))[0],
    "dominant entry": lambda: torch.diag(torch.cat([torch.ones(1), 1e-2 * torch.arange(N - 1) / N]).double()).repeat(
        TRIALS, 1, 1
    ),
    "jordan": lambda: jordan(0.5, N).repeat(TRIALS, 1, 1),
}


def failures(bound, lapack, A, **options) -> int:
    """How many bounds lie below LAPACK's figure. No slack: rounding is the bound's business."""
    return int((bound(MatrixOperator(A), seed=3, **options).value < lapack(A)).sum())


def most(delta: float) -> int:
    """Failures that a right bound exceeds once in a million tests."""
    return int(scipy.stats.binom.ppf(1 - 1e-6, TRIALS, delta))


def fewest(delta: float) -> int:
    return int(scipy.stats.binom.ppf(1e-6, TRIALS, delta))


@pytest.mark.parametrize("kind", KINDS)
@bounds
def test_failures_are_as_rare_as_stated(bound, lapack, kind):
    A = KINDS[kind]()
    for steps in (1, 2, 4, 7, N):
        assert failures(bound, lapack, A, failure_probability=0.1, steps=steps) <= most(0.1)
    # And not vacuous: half of the spectrum's size above at most, in half of the cases, from seven steps on.
    value = bound(MatrixOperator(A), failure_probability=0.1, steps=7).value
    assert float(((value - lapack(A)) / top_singular(A)).median()) < 0.5


@pytest.mark.parametrize("delta", [0.1, 0.5])
@bounds
def test_the_stated_probability_is_reached(bound, lapack, delta):
    # For A of rank one (J'J and the symmetric J alike) one step gives v_1 and a v_2 in the span of v_1 and u: the
    # Krylov space holds u, so c^2 K(l) = 1, and the bound fails exactly where |c| <= g: with probability delta.
    u = torch.nn.functional.normalize(randn(TRIALS, N, seed=4), dim=1)
    A = u.unsqueeze(2) * u.unsqueeze(1)
    for starts in (1, 2, 3):
        # The largest of several fails if all do: each with the root of delta.
        found = failures(bound, lapack, A, failure_probability=delta, steps=1, starts=starts)
        assert fewest(delta) <= found <= most(delta)


@bounds
def test_frequency_tests_see_what_is_no_bound(bound, lapack, monkeypatch):
    A = KINDS["gaussian"]()
    # The quantile of 1 - delta instead of delta.
    monkeypatch.setattr(module, "quantile", lambda n, p, right=module.quantile: right(n, 1 - p))
    assert failures(bound, lapack, A, failure_probability=0.1, steps=7) > most(0.1)
    # The Ritz value itself: 1 / g = 1 is met at once.
    monkeypatch.setattr(module, "quantile", lambda n, p: 1.0)
    assert failures(bound, lapack, A, failure_probability=0.1, steps=7) > most(0.9)


@pytest.mark.parametrize("delta", [1e-12, 1e-6, 0.1, 0.5, 0.9])
def test_quantiles_of_a_coordinate(delta):
    # On the circle |cos| <= g has probability (2 / pi) arcsin g; on the sphere in R^3 probability g (Archimedes).
    assert module.quantile(2, delta) == pytest.approx(math.sin(math.pi * delta / 2), rel=1e-11)
    assert module.quantile(3, delta) == pytest.approx(delta, rel=1e-11)
    # Rounded down: a smaller g is the safe side.
    assert module.quantile(3, delta) <= delta
    assert module.quantile(1, delta) <= 1
    # In R^n the density of a coordinate at 0 is G(n/2) / (sqrt(pi) G((n-1)/2)), on both sides of it.
    n = 4096
    density = mpmath.gamma(n / 2) / mpmath.sqrt(mpmath.pi) / mpmath.gamma((n - 1) / 2)
    if delta <= 1e-6:
        assert module.quantile(n, delta) == pytest.approx(float(delta / (2 * density)), rel=1e-10)


def start_of(n, seed=0):
    return torch.nn.functional.normalize(
        torch.randn(1, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )[0]


def test_one_step_by_hand():
    # a = v'Av, b = |Av - a v|, K(t) = 1 + ((t - a) / b)^2 = 1 / g^2 at t = a + b sqrt(1 / g^2 - 1).
    n, delta = 9, 0.01
    A = randn(n, n)
    S, G, v, g = (A + A.T) / 2, A.T @ A, start_of(n), module.quantile(n, delta)
    for bound, M, back in ((log_norm_bound, S, lambda t: t), (norm_bound, G, math.sqrt)):
        a = float(v @ M @ v)
        b = float((M @ v - a * v).norm())
        t = back(a + b * math.sqrt(1 / g**2 - 1))
        found = float(bound(MatrixOperator(A), failure_probability=delta, steps=1).value)
        # From above, by at most a candidate's distance: 30 decades / 32^4.
        assert t * (1 - 1e-12) <= found <= t * (1 + 1e-4)


@pytest.mark.parametrize("k", [2, 5, 9])
def test_the_polynomials_by_hand(k):
    # The same process in 60 digits, and the polynomials from their definition.
    n, delta = 20, 1e-4
    A = randn(n, n, seed=2)
    found = float(log_norm_bound(MatrixOperator(A), failure_probability=delta, steps=k).value)
    with mpmath.workdps(60):
        S = mpmath.matrix(((A + A.T) / 2).tolist())
        v = mpmath.matrix(start_of(n).tolist())
        v, before, b = v / mpmath.norm(v), mpmath.zeros(n, 1), mpmath.mpf(0)
        p, last, K = mpmath.mpf(1), mpmath.mpf(0), mpmath.mpf(1)
        for _ in range(k):
            w = S * v
            a = (v.T * w)[0]
            w = w - a * v - b * before
            b, old = mpmath.norm(w), b
            p, last = ((found - a) * p - old * last) / b, p
            v, before, K = w / b, v, K + p**2
        level = 1 / mpmath.sqrt(K) / module.quantile(n, delta)
    # The overlap that is left at the bound: g, at most a candidate's step and the F beyond it. It grows by up to k
    # times as much as the distance to x does.
    assert 1 - k * 2e-4 <= float(level) <= 1


class Lopsided(AbstractPart):
    """``S V + N V`` with products that belong to no symmetric matrix: a stand-in for rounding, of any size."""

    def __init__(self, S, N):
        super().__init__(MatrixOperator(S), torch.zeros(len(S), dtype=torch.float64))
        self.S, self.N, self.eps = S, N, 0.0

    def apply(self, V):
        product = ((self.S + self.N) @ V.unsqueeze(2)).squeeze(2)
        return self.scaled(product, product)[0]

    def select(self, index):
        raise AssertionError


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-6, 1e-2])
@pytest.mark.parametrize("k", [1, 3, 8, 12])
def test_every_step_of_the_proof_holds_for_computed_numbers(k, noise):
    # No probability here: for every start, with l and u by LAPACK, |c| <= sqrt(overlap / K(l)) + r(l) F for l > x.
    B, n = 300, 12
    S = randn(B, n, n, seed=5)
    S = (S + S.mT) / 2
    A = Lopsided(S, noise * randn(B, n, n, seed=6))
    start = randn(B, n, seed=7)
    space = Lanczos(A, start, k)
    for _ in range(k):
        space.step()
    process = module._Process.of(space)
    V, c = space.V, A.scale.view(-1, 1, 1)
    # F: what the three-term recurrence leaves of the computed products, and of the products of S besides, which no
    # measurement within the space can see in full.
    T = torch.diag_embed(process.a) + torch.diag_embed(process.link, 1) + torch.diag_embed(process.link, -1)
    left = V[:, :k] @ ((S + A.N) / c).mT - T @ V[:, :k]
    left[:, -1] -= space.beta[:, -1:] * V[:, k]
    lengths = left.norm(dim=2)
    assert (lengths <= process.F).all()
    assert (10 * lengths + 1e-12 > process.F).all()
    rows = V[:, : k + 1]
    gram = torch.linalg.matrix_norm(rows @ rows.mT, 2)
    if k < n:  # beyond, the space is complete and its last row means nothing
        assert (gram <= process.overlap).all()
        assert (process.overlap < 1 + 1e-12).all()
    lam, U = torch.linalg.eigh(S / c)
    top, u = lam[:, -1], U[:, :, -1]
    overlap = (u * torch.nn.functional.normalize(start, dim=1)).sum(1).abs()
    x = process.largest_ritz_value()
    beyond = top > x * (1 + 1e-14)
    unseen = (u.unsqueeze(1) @ A.N @ V[:, :k].mT).abs().squeeze(1) / c.squeeze(2)
    F = torch.maximum(process.F, 2 * lengths + unseen)
    full = module._Process(process.a, process.b, process.link, F, process.overlap, process.size)
    limit = full.log_overlap(top.unsqueeze(1)).squeeze(1).exp()
    assert (overlap <= limit * (1 + 1e-9))[beyond].all()
    if noise == 0 and k < n:
        # u lies in the space to a good part: the inequality is one of equals, nearly.
        assert (overlap / limit)[beyond].median() > (0.3 if k == 1 else 0.7 if k == 3 else 0.99)
        assert beyond.sum() > 200
    assert torch.isinf(process.log_overlap(x.unsqueeze(1) - 1e-3)).all()


@given(n=st.integers(1, 15), seed=st.integers(0, 10**6), steps=st.integers(1, 15), delta=st.floats(1e-9, 0.9))
def test_more_steps_and_more_risk_bring_it_down(n, seed, steps, delta):
    op = MatrixOperator(randn(n, n, seed=seed))
    scale = float(top_singular(op.A))
    for bound, lapack in BOUNDS.values():
        value = float(bound(op, steps=steps, failure_probability=delta, seed=seed).value)
        longer = float(bound(op, steps=steps + 1, failure_probability=delta, seed=seed).value)
        riskier = float(bound(op, steps=steps, failure_probability=min(2 * delta, 0.99), seed=seed).value)
        # Up to a candidate's distance, and rounding, whose share a tiny g multiplies. A bound that fails may be
        # followed by a right one.
        slack = 1e-3 * (abs(value) + scale) + 1e-12 * scale / delta
        assert longer <= max(value, float(lapack(op.A))) + slack
        assert riskier <= value + slack


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_exhausted_spaces_give_the_value_itself(dtype):
    n = 30
    eye = torch.eye(n, dtype=torch.float64)
    low = randn(n, 1) @ randn(1, n, seed=1)
    A = torch.stack([eye, -eye, torch.linalg.qr(randn(n, n))[0], low / low.norm(), jordan(0.0, n)]).to(dtype)
    op = MatrixOperator(A)
    # The level of rounding, some 50 eps, and the F, not more, both over g. In float32 two starts, each with delta 0.1.
    tight = 300 * torch.finfo(dtype).eps / module.quantile(n, 1e-2 if dtype is torch.float64 else 1e-1)
    value = norm_bound(op, failure_probability=1e-2).value
    true = top_singular(A)
    assert (value >= true).all()
    assert (value <= true + tight).all()
    mu = log_norm_bound(op, failure_probability=1e-2).value[:2]
    assert (mu >= top_symmetric(A)[:2]).all()
    assert (mu <= top_symmetric(A)[:2] + tight).all()
    assert norm_bound(MatrixOperator(torch.zeros(2, n, n))).value.tolist() == [0, 0]
    assert log_norm_bound(MatrixOperator(torch.zeros(2, n, n))).value.tolist() == [0, 0]


@pytest.mark.parametrize("scale", [1.0, 1e150, 1e-200])
def test_small_and_scaled_matrices(scale):
    for n in (1, 2):
        A = scale * randn(50, n, n, seed=n)
        for bound, lapack in BOUNDS.values():
            value = bound(MatrixOperator(A)).value
            true, size = lapack(A / scale) * scale, top_singular(A / scale) * scale
            assert (value >= true - 5 * EPS * size).all()  # LAPACK's
            assert (value <= true + 1e-6 * size).all()  # rounding over g, at delta = 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_jacobians_of_fprm_blocks(dtype):
    loop, z = small_fprm("plain", dtype)
    J = jacobian(loop, z)
    # n = 32: exhausted. In float32 two starts, and 0.3 % for rounding over g = 2.2e-4; measured 1e-3.
    room = 1e-6 if dtype is torch.float64 else 0.01
    for bound, lapack in BOUNDS.values():
        value = bound(JacobianOperator(loop, z)).value
        assert (value >= lapack(J)).all()
        assert (value <= lapack(J) + room * top_singular(J)).all()


def test_float32_needs_a_second_start():
    op = MatrixOperator((randn(2, 300, 300) / 300**0.5).float())
    true = top_singular(op.A)
    # Rounding reaches g = 7e-8 of delta = 1e-6, not 7e-5 of 1e-3.
    assert (norm_bound(op, starts=1).value > 1.2 * true).all()
    assert (norm_bound(op).value < 1.05 * true).all()
    assert (norm_bound(op).value > true).all()
    assert torch.equal(norm_bound(op).value, norm_bound(op, starts=2).value)


class View(AbstractOperator):
    def __init__(self, base, rounding=0.0, spoilt=False):
        self.base, self.added, self.spoilt, self.products = base, rounding, spoilt, 0

    batch_size = property(lambda self: self.base.batch_size)
    n = property(lambda self: self.base.n)
    dtype = property(lambda self: self.base.dtype)
    device = property(lambda self: self.base.device)

    def matvec(self, V):
        self.products += 1
        out = self.base.matvec(V)
        if self.spoilt:
            out[1, 0] = torch.inf
        return out

    def rmatvec(self, U):
        self.products += 1
        return self.base.rmatvec(U)

    def select(self, index):
        raise AssertionError

    def rounding(self):
        return torch.full((self.base.batch_size,), self.added, dtype=torch.float64)


@bounds
def test_rounding_of_the_operator_is_added_and_products_are_as_stated(bound, lapack):
    A = MatrixOperator(randn(3, 20, 20))
    plain, rough = View(A), View(A, rounding=0.25)
    gap = bound(rough, steps=6).value - bound(plain, steps=6).value
    assert torch.allclose(gap, torch.tensor(0.25).double(), rtol=0, atol=1e-12)
    assert plain.products == 2 * 6
    bound(plain, steps=6, starts=2)
    assert plain.products == 2 * 6 * 3


@bounds
def test_starts_are_independent_and_seeded(bound, lapack):
    A = randn(20, 20).repeat(3, 1, 1)
    value = bound(MatrixOperator(A), steps=5).value
    assert len(set(value.tolist())) == 3
    assert torch.equal(value, bound(MatrixOperator(A), steps=5).value)
    assert not torch.equal(value, bound(MatrixOperator(A), steps=5, seed=1).value)


@bounds
def test_metrics(bound, lapack):
    n = 10
    A, L = randn(2, n, n), randn(n, seed=1).exp()
    weighted = L.unsqueeze(1) * A / L
    value = bound(MatrixOperator(A), metric=L).value
    assert (value >= lapack(weighted)).all()
    assert (value <= lapack(weighted) + 1e-6 * top_singular(weighted)).all()


def test_its_type_is_its_own():
    found = norm_bound(MatrixOperator(torch.eye(3).repeat(2, 1, 1)), failure_probability=0.01)
    assert not isinstance(found, Estimate)
    assert len(found) == 2
    assert [str(one) for one in found] == [str(found[0]), str(found[1])]
    assert str(found) == f"[{found[0]}, {found[1]}]"
    assert found[1].failure_probability == 0.01
    assert "Hochstenbach" in found.theorem
    assert repr(found[0]).startswith("<= 1.0")
    assert str(found[0]).endswith("with probability >= 1 - 0.01")
    assert str(ProbabilisticBound(torch.tensor(torch.inf), 0.5, "")) == "<= inf with probability >= 1 - 0.5"


@given(st.floats(-1e30, 1e30), st.floats(1e-99, 0.99))
def test_print_stays_a_bound(value, delta):
    text = str(ProbabilisticBound(torch.tensor(value, dtype=torch.float64), delta, ""))
    shown = float(re.match(r"<= (\S+) with", text)[1])
    assert shown >= value
    assert shown <= value + 1.1e-3 * abs(value)
    # The probability too: no smaller a delta than the bound has.
    assert float(re.search(r"1 - (\S+)$", text)[1]) >= delta


class Fake(View):
    batch_size = 2
    dtype = torch.float64
    device = torch.device("cpu")
    n = 10**8

    def __init__(self):
        pass

    def matvec(self, V):
        raise AssertionError("work before the checks")

    rmatvec = matvec

    def rounding(self):
        raise AssertionError("work before the checks")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"failure_probability": 0}, "failure_probability=0; expected a number between 0 and 1"),
        ({"failure_probability": 1.0}, "failure_probability=1.0"),
        ({"failure_probability": "rare"}, "failure_probability='rare'"),
        ({"failure_probability": 1e-101}, "failure_probability=1e-101; expected at least 1e-100"),
        ({"steps": 0}, "steps=0; expected an integer >= 1"),
        ({"steps": 2.0}, "steps=2.0"),
        ({"starts": 0}, "starts=0"),
        ({"seed": -1}, "seed=-1"),
        ({"metric": torch.ones(3)}, "metric L is"),
        ({}, r"41 basis vectors for each of 2 sample\(s\)"),
    ],
    ids=str,
)
@bounds
def test_bad_arguments(bound, lapack, options, words):
    with pytest.raises(InputError, match=words):
        bound(Fake(), **options)


@bounds
def test_bad_operators(bound, lapack):
    with pytest.raises(InputError, match="expected an operator"):
        bound(torch.eye(3))
    with pytest.raises(NonFiniteError, match="for sample 1 holds NaN or inf"):
        bound(View(MatrixOperator(randn(2, 5, 5)), spoilt=True))


@pytest.mark.parametrize(
    ("value", "delta", "words"),
    [
        (torch.ones(2, 2), 0.1, r"expected numbers \(B,\)"),
        (torch.tensor([torch.nan]), 0.1, r"expected numbers"),
        (torch.ones(2), 1.5, "failure_probability=1.5"),
    ],
)
def test_bad_bounds(value, delta, words):
    with pytest.raises(InputError, match=words):
        ProbabilisticBound(value, delta, "")


def test_gram_and_part_are_what_they_say():
    A = randn(2, 6, 6)
    v = randn(2, 6, seed=1)
    rounding = torch.zeros(2, dtype=torch.float64)
    for kind, M in ((Gram, A.mT @ A), (Part, (A + A.mT) / 2)):
        one = kind(MatrixOperator(A), rounding)
        got = one.apply(v) * (one.scale**2 if kind is Gram else one.scale).unsqueeze(1)
        assert torch.allclose(got, (M @ v.unsqueeze(2)).squeeze(2), rtol=1e-13)


def test_the_examples_run():
    names = {"torch": torch, "MatrixOperator": MatrixOperator}
    failed, tried = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert (failed, tried) == (0, 3)
