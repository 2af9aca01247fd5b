"""Linear solvers against dense solves, on systems that break careless ones."""

import pytest
import torch
from problems import jordan, orthogonal, randn, rotation

import fpcheck as fp
from fpcheck.errors import InputError, ToleranceError

SOLVERS = [fp.Neumann(), fp.GMRES(), fp.DirectSolve()]
EVERYWHERE = [fp.GMRES(), fp.DirectSolve()]  # also where the series diverges


def of(solver):
    return type(solver).__name__


def exact(A, g):
    """(I - A)^-1 g for matrices (B, n, n) or (n, n)."""
    return torch.linalg.solve(torch.eye(A.shape[-1], dtype=A.dtype) - A, g[..., None])[..., 0]


def products(A):
    return lambda u: (A.to(u.dtype) @ u[..., None])[..., 0]


def scaled(n, radius, seed=0):
    A = randn(n, n, seed=seed)
    return radius * A / torch.linalg.matrix_norm(A, 2)


@pytest.mark.parametrize("solver", SOLVERS, ids=of)
@pytest.mark.parametrize(("dtype", "room"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("batch", "n"), [(1, 1), (4, 1), (1, 7), (3, 40)])
def test_against_a_dense_solve(solver, dtype, room, batch, n):
    A, g = torch.stack([scaled(n, 0.9, seed=i) for i in range(batch)]), randn(batch, n, seed=9)
    found = solver.solve(products(A), g.to(dtype))
    assert found.converged.all()
    assert found.value.dtype is dtype
    # The residual is below rtol |g|, so the error below rtol |g| / (1 - 0.9): ten times 1e-10 or 1e-5.
    error = torch.linalg.vector_norm(found.value.double() - exact(A, g), dim=1) / torch.linalg.vector_norm(g, dim=1)
    assert (error <= room).all()
    true = g - found.value.double() + products(A)(found.value.double())
    true = torch.linalg.vector_norm(true, dim=1) / torch.linalg.vector_norm(g, dim=1)
    # What is reported is the residual of what is returned, up to rounding.
    assert (true - found.residual).abs().max() <= 50 * torch.finfo(dtype).eps


@pytest.mark.parametrize("solver", EVERYWHERE, ids=of)
@pytest.mark.parametrize(
    "A",
    [1.2 * rotation(80), jordan(0.9, 5), 3.0 * orthogonal(6), torch.diag(torch.tensor([-50.0, 0.5, 7.0])).double()],
    ids=["rotation", "jordan", "orthogonal", "repelling"],
)
def test_repelling_and_non_normal(solver, A):
    g = randn(2, len(A), seed=3)
    found = solver.solve(products(A), g)
    assert found.converged.all()
    # The error is (I - A)^-1 times the residual.
    inverse = torch.linalg.inv(torch.eye(len(A), dtype=A.dtype) - A)
    bound = 1e-10 * torch.linalg.matrix_norm(inverse, 2) * torch.linalg.vector_norm(g, dim=1)
    assert (torch.linalg.vector_norm(found.value - exact(A, g), dim=1) <= bound).all()


def test_the_series_diverges_at_a_repelling_point():
    found = fp.Neumann().solve(products(1.2 * rotation(80)), randn(2, 2))
    assert not found.converged.any()
    assert found.steps < 1000  # given up once no digit is left


def test_restarts():
    """A cycle shorter than the space: several are needed, and do it."""
    A, g = scaled(60, 0.95), randn(2, 60, seed=4)
    whole, restarted = (fp.GMRES(restart=m).solve(products(A), g) for m in (60, 5))
    assert whole.converged.all()
    assert restarted.converged.all()
    assert restarted.steps > 5 + 1
    assert torch.allclose(whole.value, restarted.value, rtol=0, atol=1e-8)


def test_stagnation_ends_early():
    """The cyclic shift is the classic: restarted GMRES gains nothing before the last vector, and repeats itself."""
    n = 40
    A = torch.eye(n, dtype=torch.float64) - torch.roll(torch.eye(n, dtype=torch.float64), 1, 0)
    g = torch.zeros(1, n, dtype=torch.float64)
    g[0, 0] = 1.0
    stuck = fp.GMRES(restart=10).solve(products(A), g)
    assert not stuck.converged.any()
    assert stuck.steps <= 12
    assert float(stuck.residual) == pytest.approx(1.0)
    assert fp.GMRES(restart=n).solve(products(A), g).converged.all()


def test_happy_breakdown():
    """Right-hand sides in small invariant subspaces, of another dimension for each sample, beside a hard one."""
    A = torch.diag(torch.tensor([0.5, -0.3, 0.9, 0.1], dtype=torch.float64))
    g = torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 0, 0], [1.0, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.float64)
    found = fp.GMRES().solve(products(A), g)
    assert found.converged.all()
    assert torch.allclose(found.value, exact(A, g), rtol=0, atol=1e-12)
    assert (found.value[3] == 0).all()
    # The identity and 0 end after one vector.
    assert fp.GMRES().solve(torch.zeros_like, g).steps <= 2
    assert fp.GMRES().solve(lambda u: -2 * u, g).converged.all()


@pytest.mark.parametrize("solver", EVERYWHERE, ids=of)
def test_samples_of_very_different_difficulty(solver):
    hard, easy = scaled(30, 0.999, seed=1), scaled(30, 0.01, seed=2)
    A, g = torch.stack([hard, easy, torch.zeros(30, 30).double()]), randn(3, 30, seed=5)
    g = g * torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64)[:, None]
    together = solver.solve(products(A), g)
    assert together.converged.all()
    for i in range(3):
        alone = solver.solve(products(A[i : i + 1]), g[i : i + 1])
        # Both within 1e-10 |g| (1 + 1 / (1 - 0.999)) of the solution.
        error = torch.linalg.vector_norm(alone.value[0] - together.value[i])
        assert error <= 2e-7 * torch.linalg.vector_norm(g[i])


@pytest.mark.parametrize("solver", SOLVERS, ids=of)
@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float64, 1e-200), (torch.float64, 1e300), (torch.float32, 1e-30), (torch.float32, 1e30)],
)
def test_the_scale_of_the_cotangent_does_not_matter(solver, dtype, size):
    A, g = scaled(5, 0.8), randn(2, 5, seed=6).to(dtype)
    plain, tiny = solver.solve(products(A), g), solver.solve(products(A), g * size)
    assert tiny.converged.all()
    assert tiny.steps == plain.steps
    # The scaling itself rounds: a few units.
    assert torch.allclose(tiny.value / size, plain.value, rtol=1e3 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("solver", SOLVERS, ids=of)
def test_zero_cotangents(solver):
    A, g = scaled(5, 0.8), randn(3, 5, seed=6)
    g[1] = 0
    found = solver.solve(products(A), g)
    assert found.converged.all()
    assert (found.value[1] == 0).all()
    assert float(found.residual[1]) == 0
    nothing = solver.solve(products(A), torch.zeros_like(g))
    assert (nothing.value == 0).all()
    assert nothing.converged.all()


@pytest.mark.parametrize("solver", SOLVERS, ids=of)
@pytest.mark.parametrize("bad", ["product", "cotangent", "infinite"])
def test_a_nan_is_no_solution_and_spares_the_others(solver, bad):
    A, g = scaled(4, 0.8), randn(3, 4, seed=6)
    matrices = A.repeat(3, 1, 1)
    if bad == "product":
        matrices[1, 2, 3] = torch.nan
    else:
        g[1, 0] = torch.nan if bad == "cotangent" else torch.inf
    found = solver.solve(products(matrices), g)
    assert found.converged.tolist() == [True, False, True]
    keep = [0, 2]
    assert torch.allclose(found.value[keep], exact(matrices, g)[keep], rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS, ids=of)
def test_singular(solver):
    """I - A has no inverse: only right-hand sides in its range could be solved, and this one is not there."""
    A = torch.diag(torch.tensor([1.0, 0.5, -0.2], dtype=torch.float64)).repeat(2, 1, 1)
    A[1, 0, 0] = 0.3
    found = solver.solve(products(A), torch.ones(2, 3, dtype=torch.float64))
    assert found.converged.tolist() == [False, True]
    assert torch.allclose(found.value[1], exact(A[1], torch.ones(3, dtype=torch.float64)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [fp.Neumann(max_steps=7), fp.GMRES(max_steps=7, restart=3)], ids=of)
def test_the_budget_is_kept(solver):
    found = solver.solve(products(scaled(50, 0.999)), randn(1, 50))
    # The products that measure a residual at the end of a cycle are counted, too.
    assert found.steps <= 9
    assert not found.converged.any()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: fp.GMRES(restart=0), r"restart=0; expected an integer >= 1"),
        (lambda: fp.GMRES(max_steps=2.5), r"max_steps=2\.5; expected an integer >= 1"),
        (lambda: fp.Neumann(rtol=-1.0), r"rtol=-1\.0; expected None or a number > 0"),
        (lambda: fp.Neumann(rtol=float("nan")), r"rtol=nan; expected None or a number > 0"),
        (lambda: fp.DirectSolve(max_size=True), r"max_size=True; expected an integer >= 1"),
    ],
)
def test_bad_options(make, text):
    with pytest.raises(InputError, match=text):
        make()


def test_misspelt_options():
    for solver in (fp.GMRES, fp.Neumann, fp.DirectSolve):
        with pytest.raises(TypeError, match="max_stesp"):
            solver(max_stesp=3)


def test_limits_say_what_to_do():
    with pytest.raises(InputError, match=r"n=9 is above max_size=8; use GMRES\(\)"):
        fp.DirectSolve(max_size=8).solve(torch.zeros_like, randn(1, 9))
    with pytest.raises(ToleranceError, match=r"rtol=1\.0e-20 is below the rounding unit"):
        fp.GMRES(rtol=1e-20).solve(torch.zeros_like, randn(1, 9))
