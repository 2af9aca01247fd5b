"""The curvature bound holds over the whole ball, and certificates are never given to what does not attract.

Blocks of up to 40 numbers: every reference variant, torch's encoder layer with a residual scale, tanh loops.
Attacks: random states of the ball, and ascent on the norm of the Jacobian's change. End to end: every start in a
certified ball converges at the certified rate to one point, which a 300-bit iteration finds within the certified error.
"""

from __future__ import annotations

import math

import exact_blocks
import pytest
import torch
from curved_blocks import (
    BLOCKS,
    Step,
    T,
    W,
    ascend,
    attention_only,
    change,
    fprm,
    gates,
    holds,
    known,
    plain,
    settled,
    tanh_loop,
    user_encoder,
)
from flint import arb, arb_mat
from problems import jordan, normal, orthogonal, randn, rotation
from torch import Tensor, nn

from fpcheck.certify.balls import Ball
from fpcheck.certify.certificate import Verdict
from fpcheck.certify.curvature import (
    Matrix,
    _block_norms,
    _in_metric,
    _link,
    _out_of_metric,
    _row_block_norms,
    _schur,
    curvature,
    geometry,
    linearise,
    stacked_norm,
)
from fpcheck.certify.enclosure import enclose
from fpcheck.certify.metric import Metric, dual_stein, euclidean, proved_metric, stein
from fpcheck.certify.nodes import Coupling
from fpcheck.certify.norms import norm_bound
from fpcheck.certify.operators import rule_for
from fpcheck.certify.search import certify
from fpcheck.errors import UnsupportedOperatorError
from fpcheck.loop import Loop

D = torch.float64


@pytest.mark.parametrize("name", BLOCKS)
def test_no_state_of_the_ball_beats_kappa(name):
    held = known(name)
    worst = {}
    for radius in (1e-4, 0.02, 0.1, 0.3):
        bound = curvature(held.shape, held.Z1, radius)
        if not math.isfinite(bound.kappa):
            continue
        reach = sum(bound.shares)
        generator = torch.Generator().manual_seed(0)
        n = held.z.numel()
        starts = [torch.randn(n, dtype=D, generator=generator) for _ in range(4)]
        starts = [radius * s / s.norm() for s in starts]
        starts += [ascend(held, s, radius, 4) for s in starts[:2]]
        for delta in starts:
            bent, whole = change(held, delta * (1 - 1e-12))
            # The change of a Jacobian in float64 is wrong by some 1e-15 of it, times the metric's condition, below 100.
            size = float(torch.linalg.matrix_norm(bent, 2))
            assert size <= reach + 1e-11
            assert float(torch.linalg.matrix_norm(whole, 2)) <= bound.kappa
            worst[radius] = max(worst.get(radius, 0.0), size / reach if reach > 1e-8 else 0.0)
    print(name, {r: round(v, 4) for r, v in worst.items()})
    assert len(worst) >= 2, "no ball at all"
    # A bound that is useless would pass: near the centre the first-order part alone is within a factor of 30.
    assert max(worst.values()) > 1 / 30


@pytest.mark.parametrize("name", BLOCKS)
def test_the_change_of_the_jacobian_is_what_the_nodes_make_of_it(name):
    # Theorem Q1: J(z) - J = sum_l G_l E_l(z) U_l(z) at a state far from the centre; E_l U_l(z) is what node
    # l's Jacobian
    # there does to the tangents there, less what its Jacobian at the centre does to the same. A nonlinear operator that
    # is missing among the nodes breaks it.
    held = known(name)
    z = held.z + 0.5 * randn(*held.z.shape, seed=9)
    there = enclose(held.loop, z)
    graph = held.held.graph
    assert [op.target for op in there.graph.ops] == [op.target for op in graph.ops]
    n = z.numel()
    total = torch.zeros(n, n, dtype=D)
    for node, G in zip(held.linear.nodes, held.linear.G, strict=True):
        op = graph.ops[node.index]
        rule = rule_for(op.target)
        args = [held.held.values[a.index] if hasattr(a, "index") and not isinstance(a, tuple) else a for a in op.args]
        parts = [
            there.forward.tangents[a.index] if hasattr(a, "index") and not isinstance(a, tuple) else None
            for a in op.args
        ]
        frozen = rule.tangent(op.target.partition(".")[0], held.held.values[node.index], args, parts, **op.kwargs)
        moved = there.forward.tangents[node.index]
        total += G.mid @ (moved.mid - frozen.mid).reshape(n, -1).mT
    gap = there.jacobian - held.held.jacobian - total
    assert float(gap.norm()) <= 1e-12 * (1 + float(there.jacobian.norm()))
    assert float(total.norm()) > 1e-3  # and there is something to explain


@pytest.mark.parametrize("name", ["encoder, pre-norm", "fprm, plain", "fprm, two layers", "gates"])
def test_bends_of_inputs_follow_from_the_remainders_of_earlier_nodes(name):
    # Theorem Q1 (a): u_l(z) - u_l(c) - U_l (z - c) = sum_k C_lk rho_k(z), block by block at most |C_lk| |rho_k|.
    held = known(name)
    dz = 0.3 * randn(*held.z.shape, seed=8)
    there = enclose(held.loop, held.z + dz)
    values, graph = held.held.values, held.held.graph
    rho = []
    for number, node in enumerate(held.linear.nodes):
        bends = []
        for g, source in enumerate(node.groups):
            step = (there.values[source].mid - values[source].mid).reshape(-1)
            weights = node.centring(g)
            if weights is not None:
                rows = step.reshape(weights.shape)
                step = (rows - (rows * weights.mid).sum(-1, keepdim=True)).reshape(-1)
            bend = step - held.linear.U[number][g].mid @ dz.reshape(-1)
            sizes = torch.zeros(int(node.blocks[g].max()) + 1, dtype=D).index_add_(0, node.blocks[g], bend**2).sqrt()
            allowed = torch.zeros_like(sizes)
            for k, C in held.linear.C[number][g].items():
                allowed += C @ rho[k]
            assert bool((sizes <= allowed + 1e-12).all())
            bends.append(step)
        op, rule = graph.ops[node.index], rule_for(graph.ops[node.index].target)
        from fpcheck.certify.tangents import Tangents

        args = [values[a.index] if hasattr(a, "index") and not isinstance(a, tuple) else a for a in op.args]
        parts: list[Tangents | None] = [None] * len(op.args)
        for i, a in enumerate(op.args):
            if hasattr(a, "index") and not isinstance(a, tuple) and a.index in node.groups:
                parts[i] = Tangents((there.values[a.index].mid - values[a.index].mid).unsqueeze(0))
        first = rule.tangent(op.target.partition(".")[0], values[node.index], args, parts, **op.kwargs).mid[0]
        rest = (there.values[node.index].mid - values[node.index].mid - first).reshape(-1)
        rho.append(torch.zeros(int(node.out_blocks.max()) + 1, dtype=D).index_add_(0, node.out_blocks, rest**2).sqrt())
    assert max(float(r.max()) for r in rho) > 1e-3


@pytest.mark.parametrize("radius", [1e-6, 1e-3, 0.1, 1.0, 5.0])
def test_for_a_fourth_power_the_bound_is_the_truth(radius):
    # F(z) = c z^4 as two products, y = z z and y y, for one number z > 0: J = 4 c z^3. Both products have two groups.
    # On the ball, node 1: a = r, e = r, rho = r^2; node 2: a = 2 z r + r^2, U_2(z) at most 2 z + 2 r. The shares are
    # 2 (2 c z^2) r and 2 c (2 z r + r^2)(2 z + 2 r), which add up to 4 c ((z + r)^3 - z^3): nothing may be left out.
    c, z = 0.01, 0.7

    def power(m, s):
        y = s * s
        return c * (y * y)

    held = enclose(Loop(Step(power), torch.zeros(1, 1, dtype=D)), torch.full((1, 1), z, dtype=D))
    shape = geometry(linearise(held), euclidean(1))
    Z1 = 4 * c * z**3 * (1 + 1e-15)
    true = 4 * c * (z + radius) ** 3
    found = curvature(shape, Z1, radius)
    assert true * (1 - 1e-14) <= found.kappa <= true * (1 + 1e-7)  # dozens of factors 1 + 2^-30
    assert len(found.shares) == 2
    assert found.shares[0] == pytest.approx(4 * c * z**2 * radius, rel=1e-7)


@pytest.mark.parametrize("name", ["tanh", "encoder, pre-norm", "fprm, plain"])
def test_kappa_grows_with_the_ball_from_the_centre_rate(name):
    held = known(name)
    radii = [0.0, 1e-6, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.4]
    kappas = [curvature(held.shape, held.Z1, r).kappa for r in radii]
    assert kappas == sorted(kappas)
    assert held.Z1 <= kappas[0] <= held.Z1 * (1 + 1e-6) + 1e-9
    assert kappas[-1] > kappas[2]


def test_what_has_no_curvature_bound_is_refused_by_name():
    cases = {
        "amax": lambda m, z: z * z.amax(-1, keepdim=True),
        "maximum": lambda m, z: torch.maximum(z, 0.5 * z.flip(-1)),
        "std": lambda m, z: z * z.std(-1, keepdim=True),
        "_softmax": lambda m, z: z.softmax(1),
        "_log_softmax": lambda m, z: z.log_softmax(-1),
    }
    for name, f in cases.items():
        loop, z = Loop(Step(f), randn(1, T, W)), randn(1, T, W, seed=1)
        with pytest.raises(UnsupportedOperatorError, match=rf"{name}.*test_curvature|test_curvature.*{name}|{name}"):
            linearise(enclose(loop, z))


# Metrics.


def in_metric(metric: Metric, J: Tensor) -> arb_mat:
    """L J L^-1 in Arb."""
    L, inner = (arb_mat([[arb(v) for v in row] for row in M.tolist()]) for M in (metric.L, J))
    return L * inner * L.inv()


def is_below(M: arb_mat, bound: float) -> bool:
    """Whether |M|_2 <= bound, by elimination of bound^2 I - M'M at 300 bits."""
    gram, n, square = M.transpose() * M, M.ncols(), arb(bound) ** 2
    rows = [[square * (i == j) - gram[i, j] for j in range(n)] for i in range(n)]
    for k in range(n):
        if not rows[k][k] > 0:
            return False
        for i in range(k + 1, n):
            factor = rows[i][k] / rows[k][k]
            for j in range(k, n):
                rows[i][j] -= factor * rows[k][j]
    return True


MATRICES = {
    "random": 0.5 * randn(8, 8, seed=1) / 8**0.5,
    "normal": normal(0.9, -0.5, 0.3 + 0.6j),
    "jordan": jordan(0.5, 6),
    "shear": torch.tensor([[0.9, 5.0], [0.0, 0.5]], dtype=D),
    "nearly critical": orthogonal(6)
    @ torch.diag(torch.tensor([0.999, 0.9, 0.5, 0.1, -0.7, 0.0], dtype=D))
    @ orthogonal(6).mT,
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("build", [dual_stein, stein], ids=["dual", "plain"])
def test_a_metric_brings_the_norm_to_its_level_and_the_bound_is_above_and_near(name, build):
    J = MATRICES[name]
    radius = float(torch.linalg.eigvals(J).abs().max())
    aim = radius + 0.5 * (1 - radius)
    metric = build(J, aim)
    bound = metric.operator_norm(Ball.exact(J))
    assert bound <= aim * (1 + 1e-6)
    with exact_blocks.precision():
        M = in_metric(metric, J)
        assert is_below(M, bound)
        true = float(
            torch.linalg.matrix_norm(torch.tensor([[float(v) for v in row] for row in M.tolist()], dtype=D), 2)
        )
        assert bound <= true * (1 + 1e-7)  # rounding of L J X, times the condition of L
        assert not is_below(M, true * (1 - 1e-9))
    assert radius <= bound


def test_the_error_of_a_jacobian_counts_with_the_condition_of_the_metric():
    # The worst matrix of Frobenius norm e: e u v' along L's top left and L^-1's top singular vectors adds |L| |L^-1| e.
    J, e = torch.zeros(2, 2, dtype=D), 1e-3
    metric = proved_metric(
        torch.diag(torch.tensor([4.0, 0.5], dtype=D)), torch.diag(torch.tensor([0.25, 2.0], dtype=D))
    )
    E = torch.tensor([[0.0, e], [0.0, 0.0]], dtype=D)
    true = float(torch.linalg.matrix_norm(metric.L @ E @ metric.inverse, 2))
    assert true == pytest.approx(8e-3)
    assert true <= metric.operator_norm(Ball.exact(J), e) <= true * (1 + 1e-9)


def test_a_wrong_inverse_is_paid_for_or_refused():
    L = randn(5, 5, seed=2) + 3 * torch.eye(5, dtype=D)
    exact = torch.linalg.inv(L)
    J = randn(5, 5, seed=3)
    for error in (1e-3, 1e-2):
        poor = exact * (1 - error)  # norms through it would come out too small
        metric = proved_metric(L, poor)
        assert metric is not None
        with exact_blocks.precision():
            assert is_below(in_metric(metric, J), metric.operator_norm(Ball.exact(J)))
            assert not is_below(in_metric(metric, J), norm_bound(Ball.exact(L @ J @ poor)))
            assert is_below(in_metric(euclidean(5), exact), metric.inverse_norm)
    assert proved_metric(L, exact.mT) is None
    assert proved_metric(L, torch.full((5, 5), math.nan, dtype=D)) is None
    assert proved_metric(torch.zeros(2, 2, dtype=D), torch.eye(2, dtype=D)) is None


def test_no_metric_below_the_spectral_radius():
    assert dual_stein(rotation(80) * 1.2, 1.0) is None
    assert stein(rotation(80) * 1.2, 1.0) is None


# End to end.


ATTRACTING = {
    "tanh": tanh_loop,
    "encoder, pre-norm": user_encoder,
    "encoder, causal": lambda: user_encoder(causal=True),
    "attention": attention_only,
    "gates": gates,
    "fprm, plain": lambda: fprm("plain"),
    "fprm, causal": lambda: fprm("causal, conv1d"),
}


@pytest.mark.parametrize("name", ATTRACTING)
def test_attracting_loops_are_proved_and_it_is_so(name):
    loop, z = ATTRACTING[name]()
    z = settled(loop, z)
    assert float((loop(z).detach() - z).abs().max()) < 1e-13
    cert = certify(loop, z)
    assert cert.verdict is Verdict.PROVED_ATTRACTING, cert.reason
    assert cert.radius > 1e-3
    assert cert.error_bound < 1e-10
    assert cert.centre_rate <= cert.error_rate <= cert.rate < 1
    holds(cert, loop)


def test_the_fixed_point_at_300_bits_lies_within_the_error_bound():
    loop, z = fprm("plain")
    cert = certify(loop, settled(loop, z))
    with exact_blocks.precision():
        step = exact_blocks.fprm(loop.block, loop.x[0])
        star = exact_blocks.reals(cert.centre[0])
        middle = exact_blocks.entrywise(lambda v: v.mid())  # else 300 steps would widen the balls beyond use
        for _ in range(300):
            star = middle(step(star))
        # From its residual, star is within 1e-28 of the fixed point.
        assert max(float(abs(v).upper()) for v in (step(star) - star).flatten()) < 1e-30
        offset = (star - exact_blocks.reals(cert.centre[0])).flatten()
        moved = exact_blocks.reals(cert.metric.L) @ offset
        distance = sum((v * v for v in moved), arb(0)).sqrt()
        assert distance <= arb(cert.error_bound)
        assert distance > arb(cert.error_bound) / 10**4  # the bound is no constant
        # The residual is a bound too.
        residual = (
            exact_blocks.reals(cert.metric.L)
            @ (step(exact_blocks.reals(cert.centre[0])) - exact_blocks.reals(cert.centre[0])).flatten()
        )
        assert sum((v * v for v in residual), arb(0)).sqrt() <= arb(cert.residual)


def test_a_start_far_from_settled_gives_a_small_statement_or_none():
    # The residual is then large: either the ball still allows for it, and all holds, or nothing is claimed.
    loop, z = tanh_loop()
    for size in (1e-3, 0.1, 1.0, 10.0):
        cert = certify(loop, z + size * randn(*z.shape))
        if cert.verdict is Verdict.PROVED_ATTRACTING:
            holds(cert, loop)


def test_the_error_bound_pays_for_slow_rates():
    # 0.98 in one direction: the fixed point is 50 residuals away.
    loop, star = plain(normal(0.98, -0.5, 0.3))
    cert = certify(loop, star + randn(*star.shape, seed=5))
    assert cert.verdict is Verdict.PROVED_ATTRACTING
    offset = float((cert.metric.L @ (star - cert.centre).reshape(-1)).norm())
    assert cert.error_bound >= offset * (1 - 1e-12) - 1e-13
    assert offset > 20 * cert.residual


def test_a_residual_too_large_for_the_ball_proves_nothing():
    # 0.9999 tanh(z) creeps towards 0. After 30 steps from 0.5 it is still near 0.2, the ball about it is half as
    # wide, and the fixed point lies outside of it.
    loop, _ = bent(0.9999 * torch.eye(2, dtype=D))
    cert = certify(loop, torch.full((1, 2), 0.5, dtype=D))
    assert float(cert.centre.abs().min()) > 0.1
    if cert.verdict is Verdict.PROVED_ATTRACTING:
        assert cert.holds(torch.zeros(1, 2, dtype=D))
    else:
        assert "Y <= (1 - kappa) r fails" in cert.reason


def bent(A: Tensor) -> tuple[Loop, Tensor]:
    """z -> A tanh(z), at its fixed point 0."""
    return Loop(Step(lambda m, z: torch.tanh(z) @ A.mT), torch.zeros(1, len(A), dtype=D)), torch.zeros(
        1, len(A), dtype=D
    )


# None of these attracts: at least one eigenvalue of modulus 1 or more.
PARTNERS = {
    "expanding": lambda: plain(1.5 * torch.eye(3, dtype=D)),
    "rotating out": lambda: plain(1.2 * rotation(80)),
    "spiral out": lambda: plain(1.3 * rotation(20)),
    "flip": lambda: plain(normal(-1.1, 0.5, 0.2)),
    "flip and spiral": lambda: plain(normal(-1.2, 1.1j)),
    "fold": lambda: plain(normal(1.05, 0.5, -0.3)),
    "isometry": lambda: plain(rotation(80)),
    "drift": lambda: plain(torch.eye(3, dtype=D)),
    "cycle": lambda: plain(-torch.eye(3, dtype=D)),
    "one direction repels by 1e-3": lambda: plain(normal(1.001, 0.3, -0.4, 0.2, 0.1)),
    "one direction repels by 1e-3, non-normal": lambda: plain(
        torch.tensor([[0.2, 30.0, 0.0], [0.0, -1.001, 4.0], [0.0, 0.0, 0.5]], dtype=D)
    ),
    "repels by 1e-12": lambda: plain(normal(1 + 1e-12, 0.3, -0.4)),
    "bent flip": lambda: bent(normal(-1.1, 0.5, 0.2)),
    "bent Neimark-Sacker": lambda: bent(1.2 * rotation(80)),
    "bent fold": lambda: bent(normal(1.05, 0.5)),
    "bent, one direction repels by 1e-3": lambda: bent(normal(1.001, 0.3, -0.4, 0.2)),
}


@pytest.mark.parametrize("name", PARTNERS)
def test_what_does_not_attract_is_never_proved(name):
    loop, z = PARTNERS[name]()
    for start in (z, z + 1e-6 * randn(*z.shape), z + 0.1 * randn(*z.shape)):
        cert = certify(loop, start)
        assert cert.verdict is not Verdict.PROVED_ATTRACTING
        assert cert.reason
        assert not cert.holds(z) if cert.metric is not None else True


@pytest.mark.parametrize(
    "name", ["rotating out", "flip", "bent flip", "bent Neimark-Sacker", "bent, one direction repels by 1e-3"]
)
def test_a_repelling_fixed_point_is_proved_to_exist_and_refuted(name):
    loop, z = PARTNERS[name]()
    cert = certify(loop, z)
    assert cert.verdict is Verdict.REFUTED
    assert cert.witness is not None
    assert cert.witness.modulus > 1
    assert cert.distance(z) <= cert.error_bound + 1e-12


def test_damping_turns_a_flip_into_a_certificate_and_too_large_a_step_does_not():
    # Eigenvalues -1.1, 0.5, 0.2: the critical step is 2 / 2.1 = 0.952.
    loop, z = PARTNERS["bent flip"]()
    assert certify(loop.damped(0.9), z).verdict is Verdict.PROVED_ATTRACTING
    assert certify(loop.damped(0.96), z).verdict is Verdict.REFUTED


def test_a_ball_never_reaches_another_fixed_point():
    # 1.5 tanh(z) has fixed points at 0 (repelling) and at +- 1.29; between them there are orbits that do not
    # converge to the one at +1.29.
    loop = Loop(Step(lambda m, z: 1.5 * torch.tanh(z)), torch.zeros(1, 2, dtype=D))
    star = settled(loop, torch.ones(1, 2, dtype=D))
    cert = certify(loop, star)
    assert cert.verdict is Verdict.PROVED_ATTRACTING
    assert cert.radius < float(star.norm())
    for other in (torch.zeros_like(star), -star, star * torch.tensor([1.0, -1.0]), star * torch.tensor([1.0, 0.0])):
        assert not cert.holds(other)
    # And where the slope is 1 or more, |z| < 0.66, no ball may reach: 1.5 (1 - tanh(z)^2) = 1 at tanh(z)^2 = 1/3.
    edge = math.atanh(3**-0.5)
    assert cert.euclidean_radius <= float(star[0, 0]) - edge


def test_a_float32_loop_certifies_like_its_widened_copy():
    # The certified map is the real one of the stored weights: the same for both.
    loop, z = fprm("plain")
    low, x = loop.block.to(torch.float32), loop.x.to(torch.float32)
    readout = nn.Linear(W, 5, bias=False)
    narrow = certify(Loop(low, x), settled(Loop(low, x), z.float()), readout=readout)
    assert narrow.verdict is Verdict.PROVED_ATTRACTING
    assert narrow.centre.dtype is D
    wide = Loop(low.to(D), x.to(D))
    star = settled(wide, narrow.centre)
    assert narrow.distance(star) <= narrow.error_bound + 1e-12
    assert narrow.error_bound < 1e-12  # refined in high precision, not left at float32's own fixed point
    assert torch.equal(narrow.decisions.answer, readout.to(D)(star)[0].argmax(-1))


def test_decisions_hold_within_their_radius_and_change_outside():
    loop, z = fprm("plain")
    weight = randn(5, W, seed=4)

    def readout(s):
        return s @ weight.mT

    cert = certify(loop, settled(loop, z), readout=readout)
    metric, centre = cert.metric, cert.centre
    logits = readout(centre)[0]
    for t, radius in enumerate(cert.decisions.radius.tolist()):
        top = int(logits[t].argmax())
        assert int(cert.decisions.answer[t]) == top
        # The worst movement for each rival class: along X' S' (w_j - w_top), the direction in which its logit
        # gains most.
        nearest = math.inf
        for j in range(5):
            if j == top:
                continue
            row = torch.zeros_like(centre)
            row[0, t] = weight[j] - weight[top]
            direction = metric.inverse.mT @ row.reshape(-1)
            for share, stays in ((0.999999, True), (1.5, None)):
                move = metric.inverse @ (share * radius * direction / direction.norm())
                found = readout(centre + move.reshape(centre.shape))[0, t]
                if stays:
                    assert int(found.argmax()) == top
                elif int(found.argmax()) != top:
                    nearest = share * radius
        assert nearest < math.inf, "a radius that nothing can reach is not the largest one"
    assert bool(cert.decision_stable.all())
    assert bool(cert.decided(centre).all())


def test_a_curved_readout_is_refused():
    loop, z = fprm("plain")
    with pytest.raises(UnsupportedOperatorError, match="read-out is not linear"):
        certify(loop, settled(loop, z), readout=lambda s: torch.tanh(s))


@pytest.mark.parametrize(
    "name",
    [
        "group norm",
        "quotient",
        pytest.param("fprm, input-dependent, post-norm", marks=pytest.mark.slow),
        pytest.param("contractive", marks=pytest.mark.slow),
    ],
)
def test_blocks_with_nodes_of_every_kind_are_certified(name):
    loop, z = BLOCKS[name]()
    found = certify(loop, settled(loop, z))
    assert found.verdict is Verdict.PROVED_ATTRACTING, found.reason
    assert found.radius > 1e-3
    step = randn(*z.shape, seed=5)
    start = found.centre + 0.99 * found.euclidean_radius * step / step.norm()
    assert found.holds(start)
    assert found.distance(settled(loop, start)) <= found.error_bound + 1e-12  # float64 settles to its own rounding


# Pieces: each attained, so that nothing can be left out of them.


def test_a_stacked_norm_is_the_norm_and_counts_every_error():
    parts = [Matrix(randn(4, 6, seed=1), 0.0), Matrix(randn(3, 6, seed=2), 0.0)]
    weights = [torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=D), torch.tensor([0.1, 4.0, 0.0], dtype=D)]
    rows = torch.cat([M.mid * w[:, None] for M, w in zip(parts, weights, strict=True)])
    true = float(torch.linalg.matrix_norm(rows, 2))
    assert true <= stacked_norm(list(zip(parts, weights, strict=True))) <= true * (1 + 1e-9)
    with exact_blocks.precision():
        exact = arb_mat([[arb(v) * arb(x) for v in row] for M, w in zip(parts, weights, strict=True)
                         for row, x in zip(M.mid.tolist(), w.tolist(), strict=True)])  # fmt: skip
        assert is_below(exact, stacked_norm(list(zip(parts, weights, strict=True))))
        assert not is_below(exact, true * (1 - 1e-9))
    # Errors 0.5 and 0.25 where the weights are 3 and 4, in the same column: 1.5 and 1 on top of each other.
    zero = [Matrix(torch.zeros(4, 6, dtype=D), 0.5), Matrix(torch.zeros(3, 6, dtype=D), 0.25)]
    # For 0 the first level that is tried is 1e-12, whose root is 1e-6.
    assert 3.25**0.5 <= stacked_norm(list(zip(zero, weights, strict=True))) <= 3.25**0.5 + 1.01e-6


def test_the_map_between_nodes_counts_with_both_weights_and_its_error():
    # |diag(w) C diag(v)|_2 for two groups of inputs on top of each other; the worst error is where both weights are
    # largest.
    parts = [Matrix(randn(4, 6, seed=1), 0.0), Matrix(randn(3, 6, seed=2), 0.0)]
    rows = [torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=D), torch.tensor([0.1, 4.0, 0.0], dtype=D)]
    columns = torch.tensor([1.0, 0.1, 2.0, 1.0, 1.0, 4.0], dtype=D)
    whole = torch.cat([M.mid * w[:, None] for M, w in zip(parts, rows, strict=True)]) * columns
    true = float(torch.linalg.matrix_norm(whole, 2))
    assert true <= _link(list(zip(parts, rows, strict=True)), columns, True) <= true * 1.25
    assert _link(list(zip(parts, rows, strict=True)), columns, False) <= true * (1 + 1e-12)
    zero = Matrix(torch.zeros(4, 6, dtype=D), 0.5)
    assert 6.0 <= _link([(zero, rows[0])], columns, True) <= 6.0 * (1 + 1e-8)  # 3 * 4 * 0.5


def test_block_norms_contain_the_error():
    rows, columns = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 2, 2, 2])
    M = Matrix(randn(4, 6, seed=2), 0.25)
    bounds = _block_norms(M, rows, columns)
    for i in range(2):
        for j in range(3):
            block = M.mid[rows == i][:, columns == j]
            size = float(block.norm())
            assert size + 0.25 <= float(bounds[i, j]) <= (size + 0.25) * (1 + 1e-9)
    by_row = _row_block_norms(M, rows)
    for i in range(2):
        size = float(torch.linalg.matrix_norm(M.mid[rows == i], 2))
        assert size + 0.25 <= float(by_row[i]) <= (size + 0.25) * (1 + 1e-9)
    single = _row_block_norms(M, torch.arange(4))
    assert bool((single >= M.mid.norm(dim=1) + 0.25).all())


def test_going_into_a_metric_keeps_the_truth_inside():
    L = torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=D)
    exact = torch.linalg.inv(L)
    metric = proved_metric(L, exact * (1 - 1e-3))  # a poor inverse: it must be paid for
    U = Matrix(randn(3, 2, seed=3), 1e-2)
    u, _, v = torch.linalg.svd(exact)
    worst = U.mid + 1e-2 * torch.outer(
        torch.tensor([1.0, 0.0, 0.0], dtype=D), u[:, 0]
    )  # meets L^-1's largest direction
    for candidate in (U.mid, worst):
        inside = _in_metric(U, metric)
        assert float((inside.mid - candidate @ exact).norm()) <= inside.error
    # Without an error of its own, what the poor inverse lacks is all there is: 1e-3 each way, of which the defect
    # takes the Frobenius norm, root 2 as much.
    inside = _in_metric(Matrix(U.mid, 0.0), metric)
    gap = float((inside.mid - U.mid @ exact).norm())
    assert 0.7 * inside.error <= gap <= inside.error
    G = Matrix(randn(2, 3, seed=4), 1e-2)
    v = torch.linalg.svd(L)[2]
    worst = G.mid + 1e-2 * torch.outer(v[0], torch.tensor([0.0, 1.0, 0.0], dtype=D))
    outside = _out_of_metric(G, metric)
    gap = float((outside.mid - L @ worst).norm())
    assert 0.999 * outside.error <= gap <= outside.error


def test_the_weighted_schur_test_is_a_bound():
    # Theorem Q3 on random sparse matrices of 1 x 1 blocks, attained by rank one.
    for seed in range(20):
        E = randn(4, 5, seed=seed) * (randn(4, 5, seed=seed + 50) > 0)
        X, Y = randn(3, 4, seed=seed + 100), randn(5, 3, seed=seed + 150)
        out, into = E.nonzero().unbind(1)
        h, g = Y.norm(dim=1), X.norm(dim=0)
        R, C = _schur(Coupling(out, into, E[out, into].abs()), h, g)
        bound = torch.linalg.matrix_norm(X * R.sqrt(), 2) * torch.linalg.matrix_norm(C.sqrt()[:, None] * Y, 2)
        assert float(torch.linalg.matrix_norm(X @ E @ Y, 2)) <= float(bound) * (1 + 1e-13)
    one = Coupling(torch.tensor([0]), torch.tensor([0]), torch.tensor([2.0], dtype=D))
    R, C = _schur(one, torch.tensor([3.0], dtype=D), torch.tensor([5.0], dtype=D))
    # theta = 3/5: R = 2 * 3/5, C = 2 * 5/3, and R C = 4: the norm of E squared.
    assert float(R[0] * C[0]) == pytest.approx(4.0, rel=1e-8)
    assert float(R[0] * C[0]) >= 4.0


@pytest.mark.slow
@pytest.mark.parametrize("index", range(3))
def test_s3_without_scaling_is_never_proved_attracting(index):
    from fpcheck.target import Data, find_target

    target = find_target("s3-unscaled", Data(inputs=3, seed=0)).to(D)
    loop = Loop(target.block, target.x).sample(index)
    cert = certify(loop, settled(loop, torch.zeros_like(loop.x), 60))
    assert cert.verdict is not Verdict.PROVED_ATTRACTING
