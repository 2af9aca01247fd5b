"""Derivatives of every kind, of every adjoint, against plain loops that autograd follows.

One table of transforms, crossed with adjoints and shapes. An adjoint of loop steps has first derivatives only: those
must equal the steps' own, and any higher one must be refused, by whichever way it is asked for.
"""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from unrolled import (
    EVERY_ORDER,
    FIRST_ORDER,
    SHAPES,
    Arguments,
    Block,
    arguments,
    gap,
    layer,
    loss,
    name,
    oracle,
    solver_for,
    state,
    step,
    unrolled,
)

import fpcheck as fp
from fpcheck.errors import GradientNotAvailableError

# torch scripts some of its own decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

ALL = EVERY_ORDER + FIRST_ORDER
EXACT, GMRES = EVERY_ORDER, EVERY_ORDER[0]
# States are right to 1e-13 / (1 - 0.5), adjoints to 1e-12 of their right-hand side; a derivative of order three has
# three of them and constants below 10.
TOLERANCE = 1e-10
WHOLE = (0, 1, 2)
SLOW = [pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES if shape not in [(1, 1), (2, 3)]]


def spread(args):
    """Three variants of the arguments, stacked in front."""
    return Arguments(*(torch.stack([t, 0.7 * t, -t]) for t in args))


def ones(args):
    return tuple(torch.ones_like(t) for t in args)


# Each takes the state as a function of (x, W, b), and the arguments.
FIRST = {
    "grad": lambda f, a: grad(loss(f), WHOLE)(*a),
    "vjp": lambda f, a: vjp(f, *a)[1](torch.ones_like(a.x)),
    "jvp": lambda f, a: jvp(f, tuple(a), ones(a)),
    "jacrev": lambda f, a: jacrev(f, WHOLE)(*a),
    "jacfwd": lambda f, a: jacfwd(f, WHOLE)(*a),
    "jacrev of one": lambda f, a: jacrev(f, 1)(*a),
    "jvp of one": lambda f, a: jvp(lambda b: f(a.x, a.W, b), (a.b,), (a.b,)),
    "vmap over x": lambda f, a: vmap(f, (0, None, None))(spread(a).x, a.W, a.b),
    "vmap over W": lambda f, a: vmap(f, (None, 0, None))(a.x, spread(a).W, a.b),
    "vmap over all": lambda f, a: vmap(f)(*spread(a)),
    "vmap over another dimension": lambda f, a: vmap(f, (1, 2, None))(
        spread(a).x.movedim(0, 1), spread(a).W.movedim(0, 2), a.b
    ),
    "vmap of vmap": lambda f, a: vmap(vmap(f, (None, 0, None)), (0, None, None))(spread(a).x, spread(a).W, a.b),
    "vmap of grad": lambda f, a: vmap(grad(loss(f), WHOLE))(*spread(a)),
    "vmap of jvp": lambda f, a: vmap(lambda *t: jvp(f, t, ones(t)))(*spread(a)),
    "grad of vmap over x": lambda f, a: grad(lambda W: vmap(lambda x: loss(f)(x, W, a.b))(spread(a).x).sum())(a.W),
    "grad of vmap over W": lambda f, a: grad(lambda x: vmap(lambda W: loss(f)(x, W, a.b))(spread(a).W).sum())(a.x),
    "jacfwd of vmap": lambda f, a: jacfwd(lambda W: vmap(lambda x: f(x, W, a.b))(spread(a).x))(a.W),
    "gradients per sample": lambda f, a: vmap(lambda x: grad(lambda W: loss(f)(x[None], W, a.b))(a.W))(a.x),
    "autograd.functional.jacobian": lambda f, a: torch.autograd.functional.jacobian(f, tuple(a)),
    "autograd.functional.vjp": lambda f, a: torch.autograd.functional.vjp(f, tuple(a), torch.ones_like(a.x)),
}
HIGHER = {
    "hessian": lambda f, a: hessian(loss(f), WHOLE)(*a),
    "jacrev of jacrev": lambda f, a: jacrev(jacrev(loss(f), WHOLE), WHOLE)(*a),
    "jacrev of jacfwd": lambda f, a: jacrev(jacfwd(loss(f), WHOLE), WHOLE)(*a),
    "jacfwd of jacfwd": lambda f, a: jacfwd(jacfwd(loss(f), WHOLE), WHOLE)(*a),
    "jvp of jvp": lambda f, a: jvp(lambda *t: jvp(loss(f), t, ones(t))[1], tuple(a), tuple(a)),
    "jvp of grad": lambda f, a: jvp(grad(loss(f), WHOLE), tuple(a), ones(a)),
    "grad of jvp": lambda f, a: grad(lambda *t: jvp(loss(f), t, ones(t))[1], WHOLE)(*a),
    "vmap of hessian over W": lambda f, a: vmap(lambda W: hessian(loss(f), 1)(a.x, W, a.b))(spread(a).W),
    "hessian of vmap": lambda f, a: hessian(lambda b: vmap(lambda x: loss(f)(x, a.W, b))(spread(a).x).sum())(a.b),
    "autograd.functional.hessian": lambda f, a: torch.autograd.functional.hessian(loss(f), tuple(a)),
    "autograd.functional.jvp": lambda f, a: torch.autograd.functional.jvp(f, tuple(a), ones(a), create_graph=True),
    "three reverse": lambda f, a: jacrev(lambda b: jacrev(jacrev(loss(f), 2), 2)(a.x, a.W, b))(a.b),
    "three forward": lambda f, a: jacfwd(lambda b: jacfwd(jacfwd(loss(f), 2), 2)(a.x, a.W, b))(a.b),
    "three mixed": lambda f, a: jacfwd(lambda b: jacrev(jacfwd(loss(f), 2), 2)(a.x, a.W, b))(a.b),
}


@pytest.mark.parametrize("shape", [*SLOW, (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_first_order_in_every_way(adjoint, shape):
    args = arguments(*shape)
    for what, transform in FIRST.items():
        error = gap(transform(state(adjoint), args), transform(oracle(adjoint), args))
        assert error <= TOLERANCE, (what, error)


@pytest.mark.parametrize("what", HIGHER)
@pytest.mark.parametrize("adjoint", [GMRES, fp.Unrolled()], ids=name)
def test_higher_orders(adjoint, what):
    # Plain iteration stops on the state's residual: the k-th derivative of what is left falls like n^k 0.5^n only.
    tolerance = 1e-6 if isinstance(adjoint, fp.Unrolled) else TOLERANCE
    for shape in [(1, 1), (2, 3)]:
        args = arguments(*shape)
        error = gap(HIGHER[what](state(adjoint), args), HIGHER[what](unrolled, args))
        assert error <= tolerance, (shape, error)


@pytest.mark.parametrize("adjoint", FIRST_ORDER, ids=name)
def test_higher_orders_of_loop_steps_are_refused(adjoint):
    args = arguments(2, 3)
    for transform in HIGHER.values():  # that of autograd.functional.jvp is a first one, made by a double backward
        with pytest.raises(GradientNotAvailableError, match="second derivative"):
            transform(state(adjoint), args)


@pytest.mark.parametrize("shape", [*SLOW, (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("adjoint", EXACT, ids=name)
def test_gradcheck(adjoint, shape):
    args = [t.requires_grad_() for t in arguments(*shape)]
    assert torch.autograd.gradcheck(state(adjoint), args, check_forward_ad=True)


@pytest.mark.parametrize("shape", [(1, 1), pytest.param((2, 2), marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("adjoint", EXACT, ids=name)
def test_gradgradcheck(adjoint, shape):
    args = [t.requires_grad_() for t in arguments(*shape)]
    assert torch.autograd.gradgradcheck(state(adjoint), args, check_fwd_over_rev=True)


@pytest.mark.parametrize("adjoint", FIRST_ORDER, ids=name)
def test_gradcheck_sees_a_bias(adjoint):
    """The check can fail: the derivative of a few steps is not that of the fixed point."""
    args = [t.requires_grad_() for t in arguments(2, 3)]
    assert not torch.autograd.gradcheck(state(adjoint), args, raise_exception=False)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_float32(adjoint, shape):
    wide, narrow = arguments(*shape), arguments(*shape, dtype=torch.float32)
    # rtol is 1e-5 for states and adjoints; times 1 / (1 - 0.5) for each, and constants below 10.
    assert gap(FIRST["grad"](state(adjoint), narrow), FIRST["grad"](oracle(adjoint), wide)) <= 4e-4
    if adjoint in FIRST_ORDER:
        return
    inputs = [t.requires_grad_() for t in narrow]
    first = torch.autograd.grad(loss(state(adjoint))(*inputs), inputs, create_graph=True)
    assert all(t.dtype is torch.float32 for t in first)
    second = torch.autograd.grad(sum(g.sum() for g in first), inputs)
    reference = [t.requires_grad_() for t in wide]
    exact = torch.autograd.grad(loss(unrolled)(*reference), reference, create_graph=True)
    # One solve more in a chain. The unrolled loop stops after n = 17 steps, at 1e-5: its second derivative then lacks
    # n^2 / 2 times that, with constants below 10.
    tolerance = 2e-2 if isinstance(adjoint, fp.Unrolled) else 4e-3
    assert gap(second, torch.autograd.grad(sum(g.sum() for g in exact), reference)) <= tolerance


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_closed_form(shape):
    """z = A z + x has dz/dx = (I - A)^-1, and the Hessian of |z|^2 / 2 is its square."""
    x, A, _ = arguments(*shape)
    inverse = torch.linalg.inv(torch.eye(len(A), dtype=A.dtype) - A)

    def one(x):
        return fp.fixed_point(
            lambda z, x, A: z @ A.T + x, torch.zeros(1, len(A), dtype=A.dtype), x[None], A,
            solver=solver_for(GMRES), adjoint=GMRES,
        ).value[0]  # fmt: skip

    for row in x:
        for jacobian in (jacrev, jacfwd):
            assert gap(jacobian(one)(row), inverse) <= TOLERANCE
        assert gap(hessian(lambda x: one(x).square().sum() / 2)(row), inverse.T @ inverse) <= TOLERANCE


def test_the_start_has_no_derivative():
    args = arguments(2, 3)
    z0 = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(7))

    def from_start(z0, W):
        return fp.fixed_point(step, z0, args.x, W, args.b, solver=solver_for(GMRES), adjoint=GMRES).value

    for transform in (jacrev, jacfwd):
        assert torch.equal(transform(from_start)(z0, args.W), torch.zeros(2, 3, 2, 3, dtype=torch.float64))
    start = z0.clone().requires_grad_()
    from_start(start, args.W.clone().requires_grad_()).sum().backward()
    assert start.grad is None
    # Mapped over starts, every entry finds the same point and the same curvature.
    starts = torch.stack([z0, -z0, 3 * z0])
    assert gap(vmap(from_start, (0, None))(starts, args.W), unrolled(*args).expand(3, 2, 3)) <= TOLERANCE
    curvature = vmap(lambda z0: hessian(lambda W: from_start(z0, W).square().sum())(args.W))(starts)
    exact = hessian(lambda W: unrolled(args.x, W, args.b).square().sum())(args.W)
    assert gap(curvature, exact.expand(3, *exact.shape)) <= TOLERANCE


@pytest.mark.parametrize("adjoint", [GMRES, fp.Unrolled()], ids=name)
def test_functional_call_of_a_model(adjoint):
    """Derivatives in the parameters of a model that has a fixed point inside."""
    x, W, b = arguments(2, 3)
    model = torch.nn.Sequential(layer(Block(), adjoint), torch.nn.Tanh())
    names = ("0.block.W", "0.block.b")

    def got(W, b):
        return functional_call(model, dict(zip(names, (W, b), strict=True)), (x,)).square().sum()

    def want(W, b):
        return unrolled(x, W, b).tanh().square().sum()

    tolerance = 1e-6 if isinstance(adjoint, fp.Unrolled) else TOLERANCE
    for transform in (grad, hessian, jacfwd):
        assert gap(transform(got, (0, 1))(W, b), transform(want, (0, 1))(W, b)) <= tolerance
    many = (torch.stack([W, -W]), torch.stack([b, b]))
    assert gap(vmap(got)(*many), vmap(want)(*many)) <= TOLERANCE
    # What the layer keeps of the last call is plain, whatever transforms it was called under.
    kept = model[0].solution.value
    assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)
    assert kept.shape == (4, 3)
    # Without a transform: tensors that require a gradient, non-leaves included.
    leaf = W.clone().requires_grad_()
    assert gap(torch.autograd.grad(got(2 * leaf / 2, b), leaf), torch.autograd.grad(want(leaf, b), leaf)) <= TOLERANCE


def grads_batched(f, a):
    x = a[0].requires_grad_()
    return torch.autograd.grad(f(x, *a[1:]), x, torch.eye(6).double().view(6, 2, 3), is_grads_batched=True)


OLD_VMAP = {
    "jacobian": lambda f, a: torch.autograd.functional.jacobian(f, a, vectorize=True),
    "forward": lambda f, a: torch.autograd.functional.jacobian(f, a, vectorize=True, strategy="forward-mode"),
    "hessian": lambda f, a: torch.autograd.functional.hessian(loss(f), a, vectorize=True),
    "is_grads_batched": grads_batched,
}


@pytest.mark.parametrize("way", OLD_VMAP)
def test_the_old_vmap_is_refused_by_name(way):
    with pytest.raises(GradientNotAvailableError, match=r"vectorize=True .* use\s+torch\.func\.jacrev"):
        OLD_VMAP[way](state(GMRES), tuple(arguments(2, 3)))


@pytest.mark.parametrize("adjoint", [*FIRST_ORDER, fp.Unrolled()], ids=name)
def test_the_old_vmap_is_right_where_there_is_no_linear_solve(adjoint):
    args = tuple(arguments(2, 3))
    rows = torch.autograd.functional.jacobian(oracle(adjoint), args)
    assert gap(torch.autograd.functional.jacobian(state(adjoint), args, vectorize=True), rows) <= TOLERANCE


def test_eager_forward_mode():
    """Dual tensors, and reverse over them."""
    args = arguments(2, 3)
    x, W = args.x.clone().requires_grad_(), args.W
    results = []
    for f in (state(GMRES), unrolled):
        with torch.autograd.forward_ad.dual_level():
            out = f(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), W, args.b)
            primal, tangent = torch.autograd.forward_ad.unpack_dual(out)
            results.append((primal, tangent, *torch.autograd.grad(tangent.square().sum(), x)))
    assert gap(*results) <= TOLERANCE
