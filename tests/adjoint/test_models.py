"""Fixed points inside models: parameters, buffers, injections, views of the loop and modes of torch, of every kind."""

import copy
import gc
import io
import pickle
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from unrolled import (
    EVERY_ORDER,
    FIRST_ORDER,
    LENGTH,
    Block,
    arguments,
    gap,
    layer,
    name,
    oracle,
    solver_for,
    state,
    step,
    unrolled,
)

import fpcheck as fp

ALL = EVERY_ORDER + FIRST_ORDER
GMRES = EVERY_ORDER[0]
TOLERANCE = 1e-10  # see test_transforms


def gradients(out, *wanted, **options):
    return torch.autograd.grad(out.square().sum(), wanted, **options)


def iterate(f, z, times=LENGTH):
    for _ in range(times):
        z = f(z)
    return z


# ---- Weights


@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_parameters_of_a_module(adjoint):
    block, x = Block(), arguments(2, 3).x.requires_grad_()
    got = gradients(layer(block, adjoint)(x), x, block.W, block.b)
    assert gap(got, gradients(oracle(adjoint)(x, block.W, block.b), x, block.W, block.b)) <= TOLERANCE


def test_non_leaf_weights():
    """A weight made from another inside the graph: the gradient goes on to what it was made from."""
    x, W, b = arguments(2, 3)
    base = W.clone().requires_grad_()
    for make in (lambda w: w * 1.0, lambda w: w.T, lambda w: w[:, :], lambda w: torch.tanh(w)):
        assert gap(gradients(state(GMRES)(x, make(base), b), base), gradients(unrolled(x, make(base), b), base)) < 1e-10


def test_tied_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(3, 3).double()
            self.two = nn.Linear(3, 3).double()
            self.two.weight = self.one.weight
            with torch.no_grad():
                self.one.weight.mul_(0.5 / torch.linalg.matrix_norm(self.one.weight, 2))

        def forward(self, z, x):
            return torch.tanh(self.two(torch.tanh(self.one(z)))) + x

    block, x = Tied(), arguments(2, 3).x
    wanted = list(block.parameters())
    assert len(wanted) == 3
    got = gradients(layer(block)(x), *wanted)
    assert gap(got, gradients(iterate(lambda z: block(z, x), torch.zeros_like(x)), *wanted)) <= TOLERANCE


class Counted(nn.Module):
    """A parametrisation that counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, W: Tensor) -> Tensor:
        self.calls += 1
        return 0.5 * W / torch.linalg.matrix_norm(W)


@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_parametrised_weights_are_computed_once(adjoint):
    block, x = Block(), arguments(2, 3).x
    count = Counted()
    parametrize.register_parametrization(block, "W", count)
    model = layer(block, adjoint)
    model(x)  # looks at the block
    original = block.parametrizations.W.original

    count.calls = 0
    out = model(x)
    assert int(model.solution.steps.max()) > 5
    # To look for hidden tensors, for the solve, and for the steps that are differentiated.
    assert count.calls <= (2 if isinstance(adjoint, fp.Implicit) else 3)
    count.calls = 0
    got = gradients(out, original, block.b)
    assert count.calls <= 1  # one linearisation for the whole linear solve and for the weights
    W = count(original)
    assert gap(got, gradients(oracle(adjoint)(x, W, block.b), original, block.b)) <= TOLERANCE


@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_a_cache_of_the_caller_loses_no_gradient(adjoint):
    """What parametrize.cached() holds may have been computed without a graph, or from other weights."""
    block, x = Block(), arguments(2, 3).x
    parametrize.register_parametrization(block, "W", Counted())
    original = block.parametrizations.W.original
    model = layer(block, adjoint)
    plain = gradients(model(x), original)
    with parametrize.cached():
        with torch.no_grad():
            block(x, x)
        assert torch.equal(gradients(model(x), original)[0], plain[0])
        other = {"block.parametrizations.W.original": original.detach().T.clone().requires_grad_()}
        turned = torch.func.functional_call(model, other, (x,))
    assert not torch.allclose(turned, model(x))


def test_buffers_with_a_gradient():
    block, x = Block(), arguments(2, 3).x
    W = block.W.detach().clone().requires_grad_()
    del block.W
    block.register_buffer("W", W)
    block.register_buffer("count", torch.tensor(3))  # no floating point: left alone
    got = gradients(layer(block)(x), W, block.b)
    assert gap(got, gradients(unrolled(x, W, block.b), W, block.b)) <= TOLERANCE
    product = (2 * W.detach()).requires_grad_()
    block.W = product / 2  # a buffer that is no leaf
    assert gap(gradients(layer(block)(x), product), gradients(unrolled(x, product / 2, block.b), product)) <= TOLERANCE


@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_frozen_parameters_get_no_gradient(adjoint):
    block, x = Block(), arguments(2, 3).x
    block.W.requires_grad_(False)
    layer(block, adjoint)(x).square().sum().backward()
    assert block.W.grad is None
    assert block.b.grad.abs().max() > 0
    block.b.requires_grad_(False)
    out = layer(block, adjoint)(x)
    assert not out.requires_grad  # nothing to differentiate
    with torch.no_grad():
        assert not layer(Block(), adjoint)(x).requires_grad


# ---- Injections and loops


class Pair(NamedTuple):
    first: Tensor
    index: Tensor


INJECTIONS = {
    "tuple": (lambda x, i: (x, i), lambda x: (x[0], x[1])),
    "list": (lambda x, i: [x, i], lambda x: (x[0], x[1])),
    "dict": (lambda x, i: {"index": i, "first": x}, lambda x: (x["first"], x["index"])),
    "named tuple": (lambda x, i: Pair(x, i), lambda x: (x.first, x.index)),
}


@pytest.mark.parametrize("kind", INJECTIONS)
@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_structured_injections_with_integer_leaves(adjoint, kind):
    pack, unpack = INJECTIONS[kind]
    x, W, b = arguments(3, 2)
    x.requires_grad_()
    table = torch.tensor([[0.1, 0.2], [-0.3, 0.4]], dtype=torch.float64, requires_grad=True)
    index = torch.tensor([1, 0, 1])

    def block(z, x, W, table):
        first, index = unpack(x)
        return step(z, first + table[index], W, b)

    solver = solver_for(adjoint)
    found = fp.fixed_point(block, torch.zeros(3, 2).double(), pack(x, index), W, table, solver=solver, adjoint=adjoint)
    want = gradients(oracle(adjoint)(x + table[index], W, b), x, table)
    if adjoint in FIRST_ORDER:  # the oracle cuts x and the table off at the window
        star = unrolled(x + table[index], W, b).detach()
        size = getattr(adjoint, "s", 1.0)
        z = iterate(
            lambda z: (1 - size) * z + size * block(z, pack(x, index), W, table), star, getattr(adjoint, "k", 1)
        )
        want = gradients(z, x, table)
    assert gap(gradients(found.value, x, table), want) <= TOLERANCE


def test_no_injection():
    W = arguments(1, 3).W.requires_grad_()
    b = torch.ones(3, dtype=torch.float64)
    z0 = torch.zeros(2, 3, dtype=torch.float64)
    got = fp.fixed_point(lambda z, W: torch.tanh(z @ W.T + b), z0, None, W, solver=solver_for(GMRES), adjoint=GMRES)
    want = iterate(lambda z: torch.tanh(z @ W.T + b), z0)
    assert gap(gradients(got.value, W), gradients(want, W)) <= TOLERANCE


@pytest.mark.parametrize(
    "view", [lambda v: v.damped(0.7), lambda v: v.iterated(3), lambda v: v.damped(0.8).iterated(2)]
)
def test_views_of_a_loop(view):
    """Damping and iteration keep the fixed point, so they keep its derivative."""
    block, x = Block(), arguments(2, 3).x.requires_grad_()
    z0 = torch.zeros_like(x)
    loop = view(fp.Loop(block, x, z0=z0))
    got = fp.fixed_point(loop, z0, solver=solver_for(GMRES), adjoint=GMRES).value
    want = unrolled(x, block.W, block.b)
    assert gap(gradients(got, x, block.W), gradients(want, x, block.W)) <= TOLERANCE
    # A step of the view is what OneStep differentiates.
    one = fp.fixed_point(loop, z0, solver=solver_for(GMRES), adjoint=fp.OneStep()).value
    single = loop(want.detach())
    assert gap(gradients(one, x, block.W), gradients(single, x, block.W)) <= TOLERANCE


@pytest.mark.parametrize("adjoint", [GMRES, fp.Implicit(fp.DirectSolve())], ids=name)
def test_repelling_fixed_points(adjoint):
    """The loop runs away, the implicit gradient is right all the same (Theorem G10)."""
    x, W, _ = arguments(2, 3)
    A = (-4.0 * torch.eye(3, dtype=torch.float64) + W).requires_grad_()
    x.requires_grad_()
    assert not fp.Picard().solve(fp.Loop(lambda z, x: z @ A.detach().T + x, x), torch.zeros_like(x)).converged
    out = fp.fixed_point(lambda z, x, A: z @ A.T + x, torch.zeros_like(x), x, A, adjoint=adjoint).value
    want = torch.linalg.solve(torch.eye(3, dtype=torch.float64) - A, x.T).T
    # States to 1e-10 and adjoints to 1e-10 of systems with |(I - A)^-1| < 1/4.
    assert gap(gradients(out, x, A), gradients(want, x, A)) <= 1e-8


# ---- Batches


@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_a_gradient_does_not_depend_on_batch_mates(adjoint):
    x, W, b = arguments(4, 3)
    x = x * torch.tensor([[1e-3], [1.0], [10.0], [0.1]])
    together = x.clone().requires_grad_()
    whole = gradients(state(adjoint)(together, W, b), together)[0]
    for i in range(4):
        alone = x[i : i + 1].clone().requires_grad_()
        assert gap(gradients(state(adjoint)(alone, W, b), alone)[0], whole[i : i + 1]) <= TOLERANCE
    # Of one sample's loss, the others see exactly nothing.
    own = torch.autograd.grad(state(adjoint)(together, W, b)[1].sum(), together)[0]
    assert (own[[0, 2, 3]] == 0).all()
    assert (own[1] != 0).any()


# ---- Modes of torch


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_checkpoint(adjoint, reentrant):
    block, x = Block(), arguments(2, 3).x.requires_grad_()
    model = nn.Sequential(nn.Tanh(), layer(block, adjoint), nn.Tanh())
    want = gradients(model(x), x, block.W)
    block.W.grad = None
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x.grad, want[0])
    assert torch.equal(block.W.grad, want[1])


@pytest.mark.parametrize("adjoint", [fp.Implicit(), fp.Implicit(fp.Neumann()), *FIRST_ORDER], ids=name)
def test_autocast(adjoint):
    """The floor of bfloat16 is respected: with default tolerances every sample converges and the adjoint is solved."""
    block, x = Block(32, torch.float32), arguments(4, 32, torch.float32).x
    with torch.no_grad():
        block.W.mul_(1.8)  # slow enough that float32's tolerance could not be met: see below
    model = fp.FixedPoint(block, adjoint=adjoint)
    want = gradients(model(x), block.W, block.b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert model.solution.converged
    assert model.solution.rtol == 3e-2
    got = gradients(out, block.W, block.b)
    assert all(g.dtype is torch.float32 for g in got)
    # 3e-2 for the state and for the adjoint, each over 1 - 0.9 at worst; tanh' cuts most of it.
    assert gap(got, want) <= 0.3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        strict = fp.FixedPoint(block, solver=fp.Picard(rtol=1e-6), throw=False)
        strict(x)
    assert not strict.solution.converged


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    args = arguments(2, 8)
    narrow = [t.to(dtype).requires_grad_() for t in args]
    out = fp.fixed_point(step, torch.zeros(2, 8, dtype=dtype), *narrow).value
    got = gradients(out, *narrow)
    wide = [t.detach().double().requires_grad_() for t in narrow]
    # 3e-2 for state and adjoint, each over 1 - 0.5.
    assert gap(got, gradients(unrolled(*wide), *wide)) <= 0.12


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it where a frame resumes
def test_compiled_block_and_compiled_training_step():
    import torch._dynamo as dynamo

    block, x = Block(8, torch.float32), arguments(4, 8, torch.float32).x
    plain = fp.FixedPoint(block)
    want = gradients(plain(x), block.W, block.b)
    dynamo.reset()
    dynamo.utils.counters.clear()
    compiled = fp.FixedPoint(torch.compile(block, fullgraph=True, backend="aot_eager"))
    got = gradients(compiled(x), block.W, block.b)
    assert not dynamo.utils.counters["graph_break"]
    assert gap(got, want) <= 1e-5  # the same operations, in another order

    def training(x):
        return plain(torch.sin(x)).square().sum()

    wanted = torch.autograd.grad(training(x), block.W)
    dynamo.reset()
    dynamo.utils.counters.clear()
    found = torch.autograd.grad(torch.compile(training, backend="aot_eager")(x), block.W)
    assert gap(found, wanted) <= 1e-5
    # The solve itself is left out, as a whole: no break is inside it.
    assert all("_find" in reason for reason in dynamo.utils.counters["graph_break"])
    dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="_find"):
        torch.compile(training, backend="aot_eager", fullgraph=True)(x)


# ---- Objects


def test_copies_and_state():
    block, x = Block(), arguments(2, 3).x
    model = layer(block)
    assert model.solution is None
    out = model(x)
    assert torch.equal(model.solution.value, out)
    assert not model.solution.value.requires_grad
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), out)
        twin(x).sum().backward()
        assert twin.block.W.grad is not None
    assert model.block.W.grad is None
    assert set(model.state_dict()) == {"block.W", "block.b"}
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = layer(Block(seed=5))
    assert not torch.allclose(other(x), out)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), out)


@pytest.mark.parametrize("adjoint", ALL, ids=name)
def test_memory_is_released(adjoint):
    """No cycle: reference counts alone free the graph, the states and the injection."""
    gc.collect()
    gc.disable()
    try:
        block = Block()
        source = arguments(2, 3).x.requires_grad_()
        x = source * 1.0
        model = layer(block, adjoint)
        out = model(x)
        value = out.square().sum()
        held = [weakref.ref(x), weakref.ref(out), weakref.ref(out.grad_fn)]
        value.backward()
        del x, out
        # The loss is still there; what backward needed is not.
        assert held[0]() is None
        del value
        assert [ref() for ref in held] == [None] * 3
        x = source * 1.0
        out = model(x)
        held = [weakref.ref(x), weakref.ref(out)]
        del x, out  # never differentiated
        assert [ref() for ref in held] == [None] * 2
    finally:
        gc.enable()


def test_memory_does_not_grow_with_steps():
    """What is saved for backward, counted: the same after few steps and after many."""
    x, W, b = arguments(2, 3)

    def saved(adjoint, scale):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            inputs = [x.clone().requires_grad_(), (scale * W).requires_grad_(), b]
            found = fp.fixed_point(step, torch.zeros_like(x), *inputs, solver=fp.Picard(rtol=1e-12), adjoint=adjoint)
        return int(found.steps.max()), sum(sizes)

    few, many = saved(GMRES, 0.01), saved(GMRES, 1.9)
    assert many[0] > 3 * few[0]
    assert many[1] == few[1]
    few, many = (saved(fp.Unrolled(), scale) for scale in (0.01, 1.9))
    assert many[1] > 3 * few[1]  # the count sees growth where there is some


def test_backward_twice():
    x, W, b = arguments(2, 3)
    W.requires_grad_()
    out = state(GMRES)(x, W, b)
    first = gradients(out, W, retain_graph=True)
    assert torch.equal(gradients(out, W)[0], first[0])
    with pytest.raises(RuntimeError, match="second time"):
        gradients(out, W)
