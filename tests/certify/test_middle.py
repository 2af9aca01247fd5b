"""The first-order part: Gamma against rational sums and autodiff, tau and kappa against attacks; both settings."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from curved_blocks import (
    BLOCKS,
    Step,
    T,
    W,
    ascend,
    change,
    holds,
    jacobian,
    known,
    level,
    plain,
    settled,
)
from problems import randn
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpcheck.certify.balls import Ball
from fpcheck.certify.certificate import Verdict
from fpcheck.certify.curvature import FirstOrder, Matrix, curvature, geometry, linearise
from fpcheck.certify.enclosure import enclose
from fpcheck.certify.metric import DualStein, diagonal, euclidean, per_token
from fpcheck.certify.middle import Family, Terms, _lacking, first_order, gram, terms_of
from fpcheck.certify.search import certify
from fpcheck.certify.settings import Fast, Sharp
from fpcheck.errors import InputError
from fpcheck.loop import Loop

D = torch.float64
NAMES = list(BLOCKS)
# Some of their nodes have no form: kinks, and functions of which only the size of the second derivative is known.
WITHOUT_FORM = {
    "rms, not recognised",
    "quotient",
    "broadcast quotient",
    "smooth functions",
    "modulus, clamp",
    "fprm, input-dependent, post-norm",
}


def second_derivative(name: str) -> Tensor:
    """D2F in the metric by autodiff, ``(n, n, n)``: output, movement, vector."""
    held = known(name)
    with sdpa_kernel(SDPBackend.MATH):
        found = jacrev(jacrev(lambda q: held.loop(q.reshape(held.z.shape)).reshape(-1)))(held.z.reshape(-1)).detach()
    L, X = held.metric.L, held.metric.inverse
    return torch.einsum("po,oij,ia,jb->pab", L, found, X, X)


def all_terms(name: str) -> list[Terms]:
    held = known(name)
    found = [terms_of(held.held, held.shape, own) for own in range(len(held.shape.nodes))]
    return [t for t in found if t is not None]


@pytest.mark.parametrize("name", sorted(WITHOUT_FORM))
def test_nodes_without_a_form_are_not_counted_as_covered(name):
    assert not all(first_order(known(name).held, known(name).shape).covered)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_FORM])
def test_gamma_and_tau_are_those_of_autodiff(name):
    M = second_derivative(name)
    true = torch.einsum("pab,pac->bc", M, M)
    found = gram(all_terms(name))
    # Two rounds of autodiff are wrong by some 1e-14 of the derivatives, times the metric's condition, below 100.
    assert float((found.mid - true).norm()) <= 1e-11 * float(true.norm())
    first = first_order(known(name).held, known(name).shape)
    tau = float(torch.linalg.eigvalsh(true)[-1]) ** 0.5
    assert all(first.covered)
    assert tau * (1 - 1e-11) <= first.tau <= tau * (1 + 1e-6)


@pytest.mark.parametrize("name", ["encoder, pre-norm", "fprm, plain", "gates", "attention", "tanh"])
def test_no_direction_beats_tau_and_one_comes_near(name):
    M = second_derivative(name)
    tau = first_order(known(name).held, known(name).shape).tau
    worst = 0.0
    for seed in range(8):
        delta = randn(M.shape[1], seed=seed)
        for _ in range(30):  # ascent: the movement that the top singular vectors want
            delta = delta / delta.norm()
            u, s, v = torch.linalg.svd(torch.einsum("pab,a->pb", M, delta))
            worst = max(worst, float(s[0]))
            delta = torch.einsum("pab,p,b->a", M, u[:, 0], v[0])
    assert worst <= tau * (1 + 1e-12)
    assert worst >= tau / 4
    print(name, worst / tau)


def exact_gram(terms: list[Terms]) -> np.ndarray:
    """Sum of M_i'M_i over the unit vectors, from the lists of single terms, in rational arithmetic."""

    def rational(values: Tensor) -> np.ndarray:
        flat = np.array([Fraction(v) for v in values.flatten().tolist()], dtype=object)
        return flat.reshape(tuple(values.shape))

    n = terms[0].H.mid.shape[1]
    M = np.zeros((n, n, n), dtype=object)
    for t in terms:
        G, H = rational(t.G.mid), rational(t.H.mid)
        for f in t.families:
            letters = sorted(set("".join(f.axes)))
            sizes = dict(
                pair
                for axes, index in zip(f.axes, (f.out, f.first, f.second), strict=True)
                for pair in zip(axes, index.shape, strict=True)
            )
            for point in np.ndindex(*(sizes[x] for x in letters)):
                at = dict(zip(letters, point, strict=True))
                o, a, b = (
                    int(index[tuple(at[x] for x in axes)])
                    for axes, index in zip(f.axes, (f.out, f.first, f.second), strict=True)
                )
                c = Fraction(float(f.coefficient.mid[tuple(at[x] for x in f.axes[f.on])]))
                if any(G[:, o]):
                    M += H[a][:, None, None] * (c * G[:, o])[None, :, None] * H[b][None, None, :]
    return sum(m.T.dot(m) for m in M)


@pytest.mark.parametrize("name", ["tanh", "gates"])
def test_gamma_is_the_exact_sum_within_its_radius(name):
    # Zero slack: both in rationals.
    terms = all_terms(name)
    found, true = gram(terms), exact_gram(terms)
    gap = sum((Fraction(v) - e) ** 2 for v, e in zip(found.mid.flatten().tolist(), true.flatten(), strict=True))
    radius = sum(Fraction(v) ** 2 for v in found.rad.flatten().tolist())
    assert 0 < gap <= radius


def test_rounding_of_gamma_is_paid_for_when_terms_cancel():
    # Two terms that cancel but for 2^-60 of them: the products lose all figures, and the radius must say so.
    H = torch.tensor([[1.0, 1 / 3]], dtype=D)
    G = torch.tensor([[1.0, 1.0 + 2.0**-40], [1 / 3, 1 / 3]], dtype=D)
    index = torch.tensor([0])
    number = torch.tensor([1.0], dtype=D)
    families = tuple(
        Family(("e", "e", "e"), torch.tensor([o]), index, index, Ball.exact(sign * number), 0)
        for o, sign in ((0, 1.0), (1, -1.0))
    )
    terms = [Terms(Matrix(G, 0.0), Matrix(H, 0.0), families)]
    found, true = gram(terms), exact_gram(terms)
    gap = sum((Fraction(v) - e) ** 2 for v, e in zip(found.mid.flatten().tolist(), true.flatten(), strict=True))
    assert gap <= sum(Fraction(v) ** 2 for v in found.rad.flatten().tolist())
    assert max(map(float, true.flatten())) < float(found.rad.max())


@pytest.mark.parametrize("which", range(4))
def test_errors_of_the_data_count_in_full(which):
    # One term of four numbers 2, 3, 5, 7, one of them known to 0.1 only: |M| may be larger by 0.1 times the others.
    error = [0.0] * 4
    error[which] = 0.1
    c, x, a, b = 2.0, 3.0, 5.0, 7.0
    index = torch.tensor([0])
    if which == 3:
        error[2] = 0.1  # a and b are rows of one H
    H = Matrix(torch.tensor([[a], [b]], dtype=D), max(error[2:]))
    family = Family(
        ("e", "e", "e"),
        index,
        index,
        torch.tensor([1]),
        Ball(torch.tensor([c], dtype=D), torch.tensor([error[0]], dtype=D)),
        0,
    )
    terms = Terms(Matrix(torch.tensor([[x]], dtype=D), error[1]), H, (family,))
    e = H.error
    true = (c + error[0]) * (x + error[1]) * (a + e) * (b + e) - c * x * a * b
    assert true * (1 - 1e-14) <= _lacking(terms) <= true * (1 + 1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_no_state_of_the_ball_beats_kappa_in_the_sharp_form(name):
    held = known(name)
    shape = geometry(linearise(held.held, links=True), held.metric)
    first = first_order(held.held, shape)
    n, worst, count = held.z.numel(), 0.0, 0
    generator = torch.Generator().manual_seed(0)
    for radius in (1e-3, 0.02, 0.1, 0.3):
        fast, bound = curvature(held.shape, held.Z1, radius), curvature(shape, held.Z1, radius, first=first)
        if not math.isfinite(bound.kappa):
            continue
        assert bound.kappa <= fast.kappa * (1 + 1e-8)
        reach = sum(bound.shares)
        starts = [torch.randn(n, dtype=D, generator=generator) for _ in range(3)]
        starts = [radius * s / s.norm() for s in starts]
        starts += [ascend(held, s, radius, 3) for s in starts[:2]]
        for delta in starts:
            bent, whole = change(held, delta * (1 - 1e-12))
            size = float(torch.linalg.matrix_norm(bent, 2))
            assert size <= reach + 1e-11  # rounding of the change, as in the other attack
            assert float(torch.linalg.matrix_norm(whole, 2)) <= bound.kappa
            worst = max(worst, size / reach)
            count += 1
    assert count >= 10, "no ball at all"
    print(name, worst)
    # The first-order part is nearly tight, so in small balls nearly all of the bound is reached.
    assert worst > 1 / 5


@pytest.mark.parametrize("radius", [1e-6, 1e-3, 0.1, 1.0, 5.0])
def test_for_a_fourth_power_the_sharp_bound_is_the_truth(radius):
    # F(z) = c z^4 as y = z z and y y: tau = 12 c z^2; E B = 2 c (2 z r + r^2) 2 r, and E_2 H = 2 c r^2 2 z. Together
    # with tau r that is 4 c ((z + r)^3 - z^3): nothing may be left out.
    c, z = 0.01, 0.7

    def power(m, s):
        y = s * s
        return c * (y * y)

    held = enclose(Loop(Step(power), torch.zeros(1, 1, dtype=D)), torch.full((1, 1), z, dtype=D))
    shape = geometry(linearise(held, links=True), euclidean(1))
    first = first_order(held, shape)
    assert 12 * c * z**2 * (1 - 1e-15) <= first.tau <= 12 * c * z**2 * (1 + 1e-7)
    Z1 = 4 * c * z**3 * (1 + 1e-15)
    true = 4 * c * (z + radius) ** 3
    for given in (first, FirstOrder(0.0, (False, False))):  # nodes that are not covered keep all of their change
        found = curvature(shape, Z1, radius, first=given)
        assert true * (1 - 1e-14) <= found.kappa <= true * (1 + 1e-7)


def rectified() -> tuple[Loop, Tensor]:
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(W, 2, 8, batch_first=True, norm_first=True, activation="relu").to(D).eval()
    return Loop(Step(lambda m, z: 0.3 * m(z), layer), randn(1, T, W, seed=1)), randn(1, T, W, seed=2)


def test_a_node_without_a_form_keeps_its_change():
    loop, z = rectified()
    held = enclose(loop, z)
    metric = DualStein(held.jacobian, level(held.jacobian)).metric()
    shape = geometry(linearise(held, links=True), metric)
    first = first_order(held, shape)
    assert [node.name for node, c in zip(shape.nodes, first.covered, strict=True) if not c] == ["relu"]
    Z1 = metric.operator_norm(Ball.exact(held.jacobian), held.jacobian_error)
    # Far enough that entries cross the kink: their slopes change by 1, which the bound must contain.
    for radius in (0.02, 0.1):
        bound = curvature(shape, Z1, radius, first=first)
        for seed in range(20):
            delta = randn(z.numel(), seed=seed)
            there = z + (metric.inverse @ (radius * delta / delta.norm())).reshape(z.shape)
            J = jacobian(loop, there)
            assert float(torch.linalg.matrix_norm(metric.L @ J @ metric.inverse, 2)) <= bound.kappa


# Settings, metrics and the state on the way.


@pytest.mark.parametrize("name", ["encoder, pre-norm", "fprm, plain", "gates"])
def test_sharp_certificates_hold_and_are_no_smaller(name):
    loop, z = BLOCKS[name]()
    z = settled(loop, z)
    fast, sharp = certify(loop, z, setting=Fast()), certify(loop, z, setting=Sharp())
    assert (fast.setting, sharp.setting) == ("fast", "sharp")
    assert fast.tau is None
    assert sharp.tau > 0
    assert sharp.verdict is Verdict.PROVED_ATTRACTING
    # Both search from estimates, to a few per cent.
    assert sharp.radius >= 0.95 * fast.radius
    assert sharp.centre_rate + sharp.tau * sharp.radius <= sharp.rate < 1
    assert 0 < sharp.near_radius <= sharp.radius
    assert [op.target for op in sharp.graph.ops] == [op.target for op in enclose(loop, z).graph.ops]
    holds(sharp, loop)


def test_nothing_proved_names_no_setting():
    loop, z = plain(1.5 * torch.eye(3, dtype=D))
    cert = certify(loop, z, setting=Sharp())
    assert cert.verdict is not Verdict.PROVED_ATTRACTING
    assert cert.setting is None or cert.verdict is Verdict.PROVED_EXISTS


def test_the_ball_reaches_for_a_state_on_the_way():
    loop, start = BLOCKS["fprm, plain"]()
    z = settled(loop, start)
    base = certify(loop, z)
    # A state 1.15 times as far as the ball reaches. In 16 dimensions one longer axis is not as cheap as in 768.
    direction = base.metric.inverse @ randn(z.numel(), seed=0)
    direction = direction / (base.metric.L @ direction).norm()
    approach = z + (1.15 * base.radius * direction).reshape(z.shape)
    assert not base.holds(approach)
    cert = certify(loop, z, approach=approach)
    assert cert.verdict is Verdict.PROVED_ATTRACTING
    assert cert.holds(approach)
    assert cert.euclidean_radius >= 0.8 * base.euclidean_radius
    holds(cert, loop)


def test_a_given_metric_is_the_one_that_is_used():
    loop, z = BLOCKS["gates"]()
    z = settled(loop, z)
    for metric in (euclidean(z.numel()), diagonal(torch.linspace(1, 1.05, z.numel(), dtype=D))):
        cert = certify(loop, z, metric=metric)
        assert cert.metric is metric
        assert cert.verdict is Verdict.PROVED_ATTRACTING
        holds(cert, loop)
    # One in which the loop does not contract is not exchanged for another.
    poor = certify(loop, z, metric=diagonal(torch.logspace(0, 3, z.numel(), dtype=D)))
    assert poor.verdict is not Verdict.PROVED_ATTRACTING
    with pytest.raises(InputError, match=r"metric.L=\(3, 3\); expected one row for each of n=12"):
        certify(loop, z, metric=euclidean(3))
    with pytest.raises(InputError, match=r"approach=\(1, 2\); expected a state like"):
        certify(loop, z, approach=torch.zeros(1, 2, dtype=D))


def test_a_longer_axis_is_as_long_as_asked():
    J = 0.4 * randn(8, 8, seed=1) / 8**0.5
    d = randn(8, seed=2)
    family = DualStein(J, 0.9)
    for longer in (1.5, 3.0, 10.0):
        plain, stretched = family.metric(), family.metric(along=d, longer=longer)
        # Both are scaled so that |L^-1|_2 = 1; lengths against the scale of X are what the stretch is about.
        own = float((plain.L @ d).norm()) * math.sqrt(float(_scale(J, None, 0.0)))
        q = float(d @ torch.linalg.solve(_series(J, torch.eye(8, dtype=D)), d)) / float(d @ d)
        more = float((stretched.L @ d).norm()) * math.sqrt(float(_scale(J, d, (longer**2 - 1) / q)))
        assert own / more >= longer * (1 - 1e-9)
        assert stretched.operator_norm(Ball.exact(J)) <= 0.9 * (1 + 1e-9)


def _series(J: Tensor, source: Tensor) -> Tensor:
    total = source
    for _ in range(400):
        total = source + (J / 0.9) @ total @ (J / 0.9).mT
    return total


def _scale(J: Tensor, d: Tensor | None, b: float) -> Tensor:
    """The inverse of the largest eigenvalue of X."""
    source = torch.eye(8, dtype=D)
    if d is not None:
        source = source + b * torch.outer(d, d) / (d @ d)
    return 1 / torch.linalg.eigvalsh(_series(J, source))[-1]


def test_per_token_metrics_contract_what_runs_one_way():
    # Two tokens, the second of which reads 30 times the first: the plain norm is above 30, each block's below 0.5.
    J = torch.zeros(4, 4, dtype=D)
    J[:2, :2], J[2:, 2:] = 0.4 * torch.eye(2, dtype=D), torch.tensor([[0.3, 0.2], [0.0, 0.3]], dtype=D)
    J[2:, :2] = 30.0
    metric = per_token(J, 0.7, 2, decay=1e-3)
    assert metric.operator_norm(Ball.exact(J)) < 0.8
    assert per_token(J, 0.7, 2, decay=1.0).operator_norm(Ball.exact(J)) > 1  # without decay it does not
    assert per_token(J, 0.3, 2, decay=1e-3) is None
    with pytest.raises(InputError, match=r"tokens=3; expected a divisor of n=4"):
        per_token(J, 0.7, 3, decay=0.5)
    assert diagonal(torch.tensor([1.0, -1.0], dtype=D)) is None
    assert diagonal(torch.tensor([1.0, math.nan], dtype=D)) is None
