"""A loop is refuted only where an eigenvalue outside the unit circle is enclosed, for every matrix that is meant.

The judge of eigenvalues is Arb's `acb_mat.eig`, whose balls contain them.
"""

from __future__ import annotations

import math
from dataclasses import replace

import flint
import pytest
import torch
from flint import acb, acb_mat
from problems import Linear, jordan, normal, orthogonal, randn, rotation, small_fprm
from torch import Tensor, nn
from torch.func import jacrev

from fpcheck.certify.certificate import Verdict
from fpcheck.certify.curvature import linearise
from fpcheck.certify.enclosure import enclose
from fpcheck.certify.repelling import Witness, outlying, repelling
from fpcheck.certify.search import certify
from fpcheck.errors import InputError
from fpcheck.loop import Loop

D = torch.float64

# Each has exactly one eigenvalue, or one pair, outside the unit circle.
REPELLING = {
    "flip": normal(-1.1, 0.5, 0.2),
    "spiral": 1.2 * rotation(80),
    "pair and more": normal(0.9 + 0.9j, -0.5, 0.3),
    "fold": normal(1.05, 0.5, -0.3),
    "one direction repels by 1e-3": normal(1.001, 0.3, -0.4, 0.2, 0.1),
    "one direction repels by 1e-3, not normal": torch.tensor(
        [[0.2, 30.0, 0.0], [0.0, -1.001, 4.0], [0.0, 0.0, 0.5]], dtype=D
    ),
    "repels by 1e-12": normal(1 + 1e-12, 0.3, -0.4),
    "nearly double inside": torch.block_diag(
        torch.tensor([[-1.3]], dtype=D), torch.tensor([[0.9, 1.0], [0.0, 0.9001]], dtype=D)
    ),
}
# None of these has one: the largest modulus is below 1, or 1 itself.
OTHERS = {
    "contraction": normal(0.999, 0.3),
    "rotation": rotation(80),
    "identity": torch.eye(3, dtype=D),
    "minus identity": -torch.eye(3, dtype=D),
    "shear": torch.tensor([[1.0, 5.0], [0.0, 1.0]], dtype=D),
    "Jordan": jordan(0.9, 6),
    # Floats see eigenvalues of modulus up to 1.05 here: the perturbation by 1e-16 counts with its 20th root.
    "Jordan, large": orthogonal(20) @ jordan(0.9, 20) @ orthogonal(20).mT,
    "zero": torch.zeros(3, 3, dtype=D),
}


def eigenvalues(J: Tensor) -> list[acb]:
    """Balls around all eigenvalues; for simple ones only, which is what a witness needs."""
    rows = acb_mat(len(J), len(J), [acb(v) for v in J.flatten().tolist()])
    return [acb(v) for v in rows.eig(multiple=True)]


def agrees(found: Witness, J: Tensor) -> float:
    """Zero slack: an exact eigenvalue lies within the radius, and outside the circle. Its share of the radius."""
    with flint.ctx.workprec(300):
        middle = acb(found.eigenvalue.real, found.eigenvalue.imag)
        gaps = [(abs(v - middle), v) for v in eigenvalues(J)]
        near = [(g, v) for g, v in gaps if g <= found.radius]
        assert len(near) == 1, (found, [float(g.mid()) for g, _ in gaps])
        assert abs(near[0][1]) >= found.modulus
        return float(near[0][0].mid()) / found.radius


def worst(J: Tensor, found: Witness, distance: float) -> Tensor:
    """The change of J, real and of 2-norm ``distance``, that moves the eigenvalue most: along the gradient of it."""
    values, right = torch.linalg.eig(J)
    left = torch.linalg.inv(right)
    i = int((values - found.eigenvalue).abs().argmin())
    # d lambda = w' E v for the left and right eigenvectors.
    slope = torch.outer(left[i], right[:, i]) * found.eigenvalue.conjugate()
    u, s, v = torch.linalg.svd(slope.real)
    return distance * (u @ v) if float(s[0]) > 0 else torch.zeros_like(J)


@pytest.mark.parametrize("distance", [0.0, 1e-10, 1e-6, 1e-4])
@pytest.mark.parametrize("name", REPELLING)
def test_every_matrix_within_the_distance_has_the_eigenvalue(name, distance):
    J = REPELLING[name]
    found = outlying(J, distance)
    if name == "repels by 1e-12" and distance > 0:
        assert found is None  # a matrix within the distance may attract
        return
    if name == "one direction repels by 1e-3, not normal" and distance == 1e-4:
        assert found is None  # its condition number is 70: the eigenvalue may move by 7e-3
        return
    assert found is not None
    assert found.modulus > 1
    agrees(found, J)
    shares = []
    for seed in range(6):
        E = randn(*J.shape, seed=seed)
        E = distance * (1 - 1e-9) * E / float(torch.linalg.matrix_norm(E, 2))
        if seed < 2:
            E = (1 - 2 * seed) * worst(J, found, distance * (1 - 1e-9))
        shares.append(agrees(found, J + E))
    # The eigenvalue alone moves by the distance times its condition number, the radius holds the vector's move too.
    if distance > 1e-8:
        assert max(shares) > 0.1


@pytest.mark.parametrize("distance", [0.0, 1e-10])
@pytest.mark.parametrize("name", OTHERS)
def test_no_witness_where_no_eigenvalue_is_outside(name, distance):
    assert outlying(OTHERS[name], distance) is None


def test_no_witness_among_matrices_of_which_one_attracts():
    # 1.01 with an uncertainty of 0.02: the matrix with 0.99 is among those meant.
    J = normal(1.01, 0.3, -0.5)
    assert outlying(J, 0.02) is None
    assert outlying(J, 0.005) is not None
    assert outlying(J, math.inf) is None
    assert outlying(J, math.nan) is None
    assert outlying(torch.full((2, 2), math.nan, dtype=D), 0.0) is None


def test_a_defective_outermost_eigenvalue_leaves_it_to_another_one():
    J = torch.block_diag(jordan(1.5, 3), torch.tensor([[-1.2]], dtype=D))
    Q = orthogonal(4)
    found = outlying(Q @ J @ Q.mT, 1e-9)
    assert found is not None
    assert found.eigenvalue.real == pytest.approx(-1.2, abs=1e-6)
    assert outlying(jordan(1.5, 3), 1e-9) is None  # nothing firm there: no claim


def test_random_matrices_are_judged_right_and_most_of_them_at_all():
    proved = 0
    for seed in range(60):
        J = randn(7, 7, seed=seed) * (1.1 + 0.3 * (seed % 3)) / 7**0.5
        outside = float(torch.linalg.eigvals(J).abs().max()) > 1
        found = outlying(J, 1e-9)
        if found is None:
            continue
        proved += 1
        assert outside
        agrees(found, J)
    assert proved > 30


# At fixed points.


class Step(nn.Module):
    def __init__(self, A: Tensor) -> None:
        super().__init__()
        self.A = nn.Parameter(A)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z) @ self.A.mT + x


def bent(A: Tensor) -> tuple[Loop, Tensor]:
    """z -> A tanh(z) + x with x such that 0.1 (1, ..., 1) is fixed."""
    z = torch.full((1, len(A)), 0.1, dtype=D)
    slope = A / (1 - torch.tanh(z) ** 2)  # so that A is the Jacobian there
    return Loop(Step(slope), z - torch.tanh(z) @ slope.mT), z


def straight(A: Tensor) -> tuple[Loop, Tensor]:
    x = randn(1, len(A), seed=1)
    return Loop(Linear(A), x), torch.linalg.solve(torch.eye(len(A), dtype=D) - A, x.mT).mT


def judged(loop: Loop, z: Tensor) -> Witness | None:
    cert = certify(loop, z)
    assert cert.verdict is not Verdict.UNKNOWN, cert.reason
    held = enclose(loop, cert.centre)
    return repelling(held, linearise(held), cert)


@pytest.mark.parametrize("build", [straight, bent], ids=["straight", "bent"])
@pytest.mark.parametrize("name", [name for name in REPELLING if name != "repels by 1e-12"])
def test_repelling_fixed_points_are_refuted_with_their_eigenvalue(name, build):
    loop, z = build(REPELLING[name])
    assert certify(loop, z).verdict is Verdict.REFUTED
    found = judged(loop, z)
    assert found is not None
    true = torch.linalg.eigvals(REPELLING[name])
    assert float((true - found.eigenvalue).abs().min()) < 1e-9
    # The vector is one: a start along it leaves, by the eigenvalue's modulus at each step.
    v = found.vector.real / found.vector.real.norm()
    gap = 1e-7
    start = z + gap * v
    for _ in range(4):
        start = loop(start).detach()
    if found.eigenvalue.imag == 0:
        assert float((start - z).norm()) >= gap * (found.modulus**4 - 1e-4)


@pytest.mark.parametrize("build", [straight, bent], ids=["straight", "bent"])
@pytest.mark.parametrize(
    "A", [0.9 * rotation(80), normal(0.999, 0.3), jordan(0.5, 4)], ids=["spiral", "slow", "Jordan"]
)
def test_attracting_fixed_points_are_never_refuted(A, build):
    assert judged(*build(A)) is None


def test_the_jacobian_may_be_that_of_any_state_of_the_ball():
    # With a fixed point known to 0.01 only, J(z*) may be the Jacobian of any state that near: all of them have the
    # eigenvalue within the radius.
    loop, z = bent(REPELLING["flip"])
    cert = certify(loop, z)
    held = enclose(loop, cert.centre)
    found = repelling(held, linearise(held), replace(cert, error_bound=0.01))
    assert found is not None
    moved = []
    for seed in range(20):
        delta = randn(3, seed=seed)
        point = (cert.centre + 0.01 * (1 - 1e-9) * delta / delta.norm()).reshape(-1)
        J = jacrev(lambda q: loop(q.reshape(1, 3)).reshape(-1))(point).detach()
        moved.append(agrees(found, J))
    assert max(moved) > 0.05


def newton(loop: Loop, z: Tensor) -> tuple[Tensor, Tensor]:
    """A fixed point, stable or not, with the Jacobian there."""
    shape = z.shape
    for _ in range(20):
        J = jacrev(lambda q: loop(q.reshape(shape)).reshape(-1))(z.reshape(-1)).detach()
        gap = (loop(z).detach() - z).reshape(-1)
        z = z + torch.linalg.solve(torch.eye(len(J), dtype=D) - J, gap).reshape(shape)
    assert float(gap.norm()) < 1e-11
    return z, J


def test_a_repelling_point_of_a_transformer_block_is_refuted():
    # From a block that attracts, its weights grow a little at a time, and the fixed point is followed.
    loop, z = small_fprm("plain", L_layers=1, hidden_size=4, mlp_multiple=4)
    loop, z = loop.sample(0), z[:1]
    with torch.no_grad():
        for _ in range(400):
            z = loop(z)
    radius, seen = 0.0, []
    for _ in range(60):
        with torch.no_grad():
            for parameter in loop.block.parameters():
                parameter.mul_(1.03)
        z, J = newton(loop, z)
        true = torch.linalg.eigvals(J)
        radius = float(true.abs().max())
        seen.append(radius)
        if radius > 1.01:
            break
    assert radius > 1.01, seen
    found = judged(loop, z)
    assert found is not None
    assert 1 < found.modulus <= radius + 1e-8
    assert float((true - found.eigenvalue).abs().min()) < 1e-8


def test_without_a_proved_fixed_point_there_is_nothing_to_refute():
    loop = Loop(Linear(torch.eye(3, dtype=D)), torch.ones(1, 3, dtype=D))
    z = torch.zeros(1, 3, dtype=D)
    cert = certify(loop, z)
    held = enclose(loop, z)
    with pytest.raises(InputError, match="verdict=unknown; expected"):
        repelling(held, linearise(held), cert)
