"""The checker's parts against independent judges: derivatives, bends, norms, and a ball where the bound is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import flint
import numpy as np
import pytest
import torch
from check.test_ball import jacobian
from check.test_check import BLOCKS, SETTINGS, certified, parts, put
from flint import arb
from problems import randn
from torch.func import jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from fpcheck.certify.curvature import linearise
from fpcheck.certify.enclosure import enclose_graph
from fpcheck.certify.nodes import AbstractNode
from fpcheck.certify.record import save
from fpcheck.certify.search import certify
from fpcheck.check import check, read
from fpcheck.check.bends import nodes_of
from fpcheck.check.clouds import Cloud, gram_bound, norm_bound, product_loss
from fpcheck.check.full import _Check, _Metric, _state_tangents, _terms
from fpcheck.check.program import CURVED, FUNCTIONS
from fpcheck.check.second import Part, Seconds, Terms, gram, tau_bound
from fpcheck.check.tangents import derivatives, push
from fpcheck.check.values import FUNCTIONS as VALUES
from fpcheck.check.values import curve, curve_of_power, evaluate, precision, slope, slope_of_power
from fpcheck.loop import Loop

D = torch.float64


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ("relu", "abs")])
def test_slopes_and_curves_are_the_derivatives(name: str):
    # Central differences over 2^-60 at 300 bits: wrong by the third derivative times 2^-120, below 1e-35.
    with flint.ctx.workprec(300):
        h = arb(2) ** -60
        everywhere = name in (*CURVED, "exp", "expm1", "erf", "sin", "cos")
        for x in map(arb, (*((-7.5, -1.0, -0.25, 0.0) if everywhere else ()), 0.5, 3.0, 9.0)):
            f, d = VALUES[name], slope(name)
            assert abs((f(x + h) - f(x - h)) / (2 * h) - d(x)) < 1e-30
            assert abs((d(x + h) - d(x - h)) / (2 * h) - curve(name)(x)) < 1e-30


@pytest.mark.parametrize("name", BLOCKS)
def test_the_jacobian_of_the_file_is_the_loops(name: str, tmp_path: Path):
    found, loop = certified(name)
    held = read(save(found, tmp_path / "one"))
    with precision():
        at = derivatives(held.program, evaluate(held.program, held.centre))
        J = push(at, 0, np.eye(held.program.n), lambda register, t: None)
    gap = np.linalg.norm(J.mid - jacobian(loop, found.centre).numpy())
    # Both are wrong by some hundreds of roundings of numbers below 100.
    assert gap <= 1e-12
    assert 0 <= J.error <= 1e-10


@pytest.mark.parametrize("name", BLOCKS)
def test_nodes_bend_as_the_maker_says(name: str, tmp_path: Path):
    # Two programs from the same theorems: for the same movements, the same bounds. (eta is not known to the maker.)
    found, _ = certified(name)
    held = read(save(found, tmp_path / "one"))
    own: list[AbstractNode] = linearise(enclose_graph(found.graph, found.centre)).nodes
    with precision():
        nodes = nodes_of(held.program, evaluate(held.program, held.centre))
        assert len(nodes) == len(own)
        for node, other in zip(nodes, own, strict=True):
            sizes = [int(b.max()) + 1 for b in node.blocks]
            a = tuple(0.02 * randn(size, seed=size).abs() for size in sizes)
            b = tuple(0.1 * v for v in a)
            eta = np.full(int(node.out_blocks.max()) + 1, np.inf)
            bend, local = node.bend(tuple(v.numpy() for v in a), tuple(v.numpy() for v in b), eta), other.local(a, b)
            assert bend is not None
            assert local is not None
            if node.name == "gated":  # Theorem C10 has a sharper remainder; the maker takes the simpler one above it
                assert bool((bend.rho <= local.rho.numpy()).all())
                assert bool((bend.rho >= 0.9 * local.rho.numpy()).all())
            else:
                np.testing.assert_allclose(bend.rho, local.rho.numpy(), rtol=1e-6, atol=1e-300)
            for (out, into, e), e2, coupling, coupling2 in zip(bend.e, bend.e2, local.e, local.e2, strict=True):
                np.testing.assert_allclose(e2, coupling2.bound.numpy(), rtol=1e-6, atol=1e-300)
                np.testing.assert_array_equal(out, coupling.out.numpy())
                np.testing.assert_array_equal(into, coupling.into.numpy())
                np.testing.assert_allclose(e, coupling.bound.numpy(), rtol=1e-6, atol=1e-300)


@pytest.mark.parametrize("exponent", [2.0, 3.0, -2.0, 1.5, -0.5, 0.0, 1.0])
def test_powers_have_their_derivatives(exponent: float):
    with flint.ctx.workprec(300):
        for x in map(arb, (0.5, 3.0)):
            e = arb(exponent)
            assert abs(slope_of_power(x, exponent) - e * x ** (e - 1)) < 1e-60
            assert abs(curve_of_power(x, exponent) - e * (e - 1) * x ** (e - 2)) < 1e-60


def terms_of(name: str, path: Path) -> tuple[list[Terms], np.ndarray]:
    """A block's terms as the checker has them, and Gamma as the sum over a basis of second derivatives by autodiff."""
    found, loop = certified(name, "sharp")
    held = read(save(found, path))
    with precision():
        values = evaluate(held.program, held.centre)
        at, nodes = derivatives(held.program, values), nodes_of(held.program, values)
        metric = _Metric.of(held.L)
        assert metric is not None
        inputs, outputs, _ = _state_tangents(at, nodes, held.program.n)
        check = _Check(held, lambda stage, done, total: None)
        terms = _terms(check._geometry(at, nodes, inputs, outputs, metric, None))
    z = torch.from_numpy(held.centre.copy())
    with sdpa_kernel(SDPBackend.MATH):
        second = jacrev(jacrev(lambda q: loop(q.reshape(held.state_shape)).reshape(-1)))(z).detach().numpy()
    X = np.linalg.inv(held.L)
    M = np.einsum("po,oij,ia,jb->pab", held.L, second, X, X, optimize=True)
    return terms, np.einsum("pab,pac->bc", M, M)


# All steps of these have a second derivative; among them each kind of step.
ALL_TERMS = ("tanh", "gates", "attention", "encoder, pre-norm", "encoder, causal", "fprm, plain", "softmax of itself")


@pytest.mark.parametrize("name", ALL_TERMS)
def test_gamma_is_the_sum_over_a_basis(name: str, tmp_path: Path):
    terms, true = terms_of(name, tmp_path / "one")
    found, error = gram(terms)
    size = np.linalg.norm(true)
    # Two rounds of autodiff are wrong by some 1e-14 of the derivatives, times the metric's condition, below 100.
    lost = error + 1e-11 * size
    assert np.linalg.norm(found - true) <= lost <= 1e-8 * size
    tau = float(np.linalg.eigvalsh(true)[-1]) ** 0.5
    assert tau * (1 - 1e-11) <= tau_bound(terms) <= tau * (1 + 1e-6)


@pytest.mark.parametrize("name", ["gates", "encoder, pre-norm", "fprm, plain"])
def test_no_number_of_gamma_may_differ(name: str, tmp_path: Path):
    # Each part's numbers, enlarged by a thousandth: far beyond the error.
    terms, true = terms_of(name, tmp_path / "one")
    for own, node in enumerate(terms):
        for which, part in enumerate(node.parts):
            other = replace(part, number=part.number * 1.001)
            parts = (*node.parts[:which], other, *node.parts[which + 1 :])
            found, error = gram([*terms[:own], replace(node, parts=parts), *terms[own + 1 :]])
            assert np.linalg.norm(found - true) > 100 * (error + 1e-11 * np.linalg.norm(true))


def test_rounding_of_gamma_is_paid_for_when_terms_cancel():
    # Two parts of opposite numbers: Gamma is 0, in floats only about.
    each = np.arange(6)
    c = randn(6, seed=1).numpy()
    parts = [Part(*(each[:, None, None],) * 3, s * c[:, None, None], np.zeros((6, 1, 1)), 0) for s in (1.0, -1.0)]
    first, second = (randn(4, 6, seed=2).numpy(), randn(6, 4, seed=3).numpy())
    nodes = [Terms(Cloud(first * s, 0.0), Cloud(second, 0.0), (p,)) for p, s in zip(parts, (1.0, 1 / 3), strict=True)]
    nodes.append(Terms(Cloud(first, 0.0), Cloud(second, 0.0), (replace(parts[1], number=parts[1].number * (2 / 3)),)))
    found, error = gram(nodes)
    off = np.linalg.norm(found)
    # Some hundred roundings of 1e-16, times the square of sizes that sum to below 60.
    assert 0 < off <= error <= 1e-10


@pytest.mark.parametrize("which", ["G", "H", "number"])
def test_errors_of_the_data_count_in_full(which: str):
    # One term in the plane with every factor at its largest: M = c x a b, and no less than that is claimed.
    one = np.zeros(1, dtype=np.int64)
    part = Part.each(one, one, one)
    x, h, e = 0.7, 0.9, 0.1
    G, H = Cloud(np.array([[x]]), e * (which == "G")), Cloud(np.array([[h]]), e * (which == "H"))
    part = replace(part, number=np.array([[[2.0]]]), spread=np.array([[[e * (which == "number")]]]))
    worst = (2 + e * (which == "number")) * (x + e * (which == "G")) * (h + e * (which == "H")) ** 2
    found = tau_bound([Terms(G, H, (part,))])
    assert worst * (1 - 1e-12) <= found <= worst * (1 + 1e-6)
    assert Seconds.of(Terms(G, H, (part,))).count == 1


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0])
def test_for_a_fourth_power_the_bound_is_the_truth(radius: float, scale: float, setting: str, tmp_path: Path):
    # F(z) = c z^4 + x as two products for one number z > 0: |F'| over the ball is 4 c (z + r)^3, and nothing of the
    # calculus may be left out: not the bend of the first product in the second, nor the metric, which scales r.
    c, z = 0.01, 0.7

    def power(s: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = s * s
        return c * (y * y) + x

    loop = Loop(power, torch.full((1, 1), z - c * z**4, dtype=D))
    held = certify(loop, torch.full((1, 1), z, dtype=D), setting=SETTINGS[setting])
    document, arrays = parts(save(held, tmp_path / "one"))
    document["metric"]["form"], arrays["metric"] = "full", torch.full((1, 1), scale, dtype=D)
    bounds = document["bounds"]
    bounds["radius"]["value"] = scale * radius
    bounds["euclidean_radius"]["value"] = 0.0
    bounds["rate"]["value"] = bounds["near_rate"]["value"]  # so small that every form of the bound is tried
    report = check(put(tmp_path / "other", document, arrays), full=True)
    found = next(float(line.recomputed) for line in report.lines if line.name == "rate")
    true = 4 * c * (float(arrays["centre"][0]) + radius) ** 3
    assert true * (1 - 1e-8) <= found <= true * (1 + 1e-6)  # printed with nine digits; dozens of factors 1 + 2^-30


@pytest.mark.parametrize("shape", [(5, 5), (3, 7), (40, 12), (1, 4), (30, 30), (260, 230)])
def test_norms_are_bounded_closely(shape: tuple[int, int]):
    M = randn(*shape, seed=1).numpy()
    true = float(np.linalg.norm(M, 2))
    assert true * (1 - 1e-14) <= norm_bound(M) <= true * (1 + 1e-7)
    assert norm_bound(1e-120 * M) >= 1e-120 * true * (1 - 1e-14)
    assert norm_bound(np.zeros(shape)) < 1e-100
    # A Gram matrix that is wrong by a known amount.
    tall = M if shape[0] >= shape[1] else M.T
    assert gram_bound(tall.T @ tall, product_loss(tall) + 1.0) >= true**2 + 1 - 1e-12


def test_a_norm_is_found_where_the_iteration_does_not_see_it():
    # The largest direction is orthogonal to the iteration's start: another way must find it.
    u = np.zeros(250)
    u[:2] = 1.0, -1.0
    M = np.eye(250) + np.outer(u, u)
    assert 3.0 <= norm_bound(M) <= 3.0 * (1 + 1e-7)


def test_errors_of_products_cover_what_they_stand_for():
    A, B = randn(6, 5, seed=2).numpy(), randn(5, 7, seed=3).numpy()
    for seed in range(20):
        dA, dB = randn(6, 5, seed=10 + seed).numpy(), randn(5, 7, seed=40 + seed).numpy()
        a, b = 0.1, 0.3
        dA, dB = a * dA / np.linalg.norm(dA), b * dB / np.linalg.norm(dB)
        product = Cloud(A, a) @ Cloud(B, b)
        assert np.linalg.norm((A + dA) @ (B + dB) - product.mid) <= product.error
        left, right = np.abs(randn(6, seed=seed).numpy()), np.abs(randn(5, seed=seed).numpy())
        weighted = Cloud(A, a).weighted(left, right)
        assert np.linalg.norm(left[:, None] * (A + dA) * right - weighted.mid) <= weighted.error
    # The worst direction: along the largest singular vectors it comes within a third.
    u = np.linalg.svd(B)[0]
    dA = 0.1 * np.outer(np.eye(6)[0], u[:, 0])
    assert np.linalg.norm((A + dA) @ B - A @ B) > (Cloud(A, 0.1) @ Cloud(B, 0.0)).error / 3
