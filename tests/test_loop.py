import math
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fpcheck.errors import (
    BatchCouplingError,
    BlockError,
    BlockOutputError,
    FpcheckError,
    ImpureBlockError,
    InputError,
    NonFiniteError,
)
from fpcheck.loop import Loop

X = torch.arange(12.0).view(4, 3)


class Affine(nn.Module):
    """z -> a z + x."""

    def __init__(self, a: float = 0.5) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def forward(self, z, x):
        return self.a * z + x


class With(nn.Module):
    """z -> inner(z) / 2 + x for any inner module, which must keep the shape (B, 3)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z, x):
        return 0.5 * self.inner(z) + x


# --- Injections ---------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "left right")

INJECTIONS = {
    "tensor": (lambda z, x: 0.5 * z + x, X),
    "tuple": (lambda z, x: 0.5 * z + x[0] + x[1], (0.25 * X, 0.75 * X)),
    "list": (lambda z, x: 0.5 * z + x[0] + x[1], [0.25 * X, 0.75 * X]),
    "named tuple": (lambda z, x: 0.5 * z + x.left + x.right, Pair(0.25 * X, 0.75 * X)),
    "dict": (lambda z, x: 0.5 * z + x["a"] + x["b"], {"a": 0.25 * X, "b": 0.75 * X}),
    "integers": (lambda z, x: 0.5 * z + x["tokens"], {"tokens": X.long()}),
    "module": (Affine(), X),
}


@pytest.mark.parametrize("kind", INJECTIONS)
def test_one_step_and_selections(kind):
    block, x = INJECTIONS[kind]
    loop = Loop(block, x, z0=torch.zeros(4, 3))
    z = torch.full((4, 3), 2.0)
    # All injections above sum to X: F(z) = z / 2 + X; every number here is a float32 exactly.
    assert torch.equal(loop(z), 1 + X)
    assert loop.batch_size == 4
    assert torch.equal(loop.select(torch.tensor([2, 0]))(z[:2]), 1 + X[[2, 0]])
    assert torch.equal(loop.select(torch.tensor([False, True, False, True]))(z[:2]), 1 + X[[1, 3]])
    assert torch.equal(loop.sample(1)(z[:1]), 1 + X[1:2])
    assert torch.equal(loop.sample(-1)(z[:1]), 1 + X[3:])
    assert loop.sample(1).batch_size == 1
    assert loop.select(torch.tensor([True, True, False, True])).batch_size == 3


def test_no_injection():
    loop = Loop(lambda z: 0.5 * z, z0=torch.zeros(2, 3))
    assert torch.equal(loop(torch.ones(2, 3)), torch.full((2, 3), 0.5))
    assert torch.equal(loop.sample(1)(torch.ones(1, 3)), torch.full((1, 3), 0.5))
    assert loop.x is None
    assert loop.leaves() == []


def test_the_state_may_have_another_shape_than_x():
    loop = Loop(lambda z, x: 0.5 * z + x[:, :, None], X, z0=torch.zeros(4, 3, 2))
    assert loop(torch.zeros(4, 3, 2)).shape == (4, 3, 2)


def test_x_is_kept_as_given():
    assert Loop(Affine(), X).x is X
    pair = [X, X]
    assert Loop(lambda z, x: 0.5 * z + x[0], pair, z0=X).x == (X, X)


# --- Views --------------------------------------------------------------------------------------------------------


@given(
    a=st.floats(-2, 2),
    s=st.floats(0.01, 2),
    k=st.integers(1, 6),
    z=st.floats(-10, 10),
    x=st.floats(-10, 10),
)
def test_damped_and_iterated_against_closed_forms(a, s, k, z, x):
    loop = Loop(
        lambda z, x: a * z + x, torch.tensor([[x]], dtype=torch.float64), z0=torch.zeros(1, 1, dtype=torch.float64)
    )
    state = torch.tensor([[z]], dtype=torch.float64)
    # (1 - s) z + s (a z + x) = m z + s x with m = 1 - s + s a; k times: m^k z + s x (1 + m + ... + m^(k-1)).
    m = 1 - s + s * a
    expected = m**k * z + s * x * sum(m**i for i in range(k))
    got = float(loop.damped(s).iterated(k)(state))
    # m lies in [-5, 3], so no state exceeds 5^6 * 10 + 2 * 10 * (1 + ... + 5^5) = 2.4e5. Six steps of at most four
    # roundings (1.1e-16 each, relative to that) are 6.3e-10; what m amplifies of them is in the bound on the states.
    assert got == pytest.approx(expected, abs=1e-9, rel=0)
    assert loop.damped(s).step == s


def test_views_compose():
    loop = Loop(Affine(), X)
    z = torch.ones(4, 3)
    # Damping twice: 1 - s + s ((1 - t) + t F) = 1 - st + st F.
    torch.testing.assert_close(loop.damped(0.5).damped(0.5)(z), loop.damped(0.25)(z), rtol=1e-6, atol=1e-6)
    assert loop.damped(0.5).damped(0.5).step == 0.25
    assert torch.equal(loop.iterated(2).iterated(3)(z), loop.iterated(6)(z))
    assert torch.equal(loop.damped(1)(z), loop(z))
    selected = loop.damped(0.5).iterated(2).select(torch.tensor([1]))
    assert torch.equal(selected(z[:1]), loop.damped(0.5).iterated(2)(z)[1:2])
    assert "step=0.5" in repr(selected)
    assert "iterations=2" in repr(selected)
    assert "Affine" in repr(selected)
    # The views are new loops; the one they came from is as it was.
    assert (loop.step, loop.batch_size) == (1.0, 4)


@pytest.mark.parametrize("s", [0, -0.5, math.nan, math.inf, "0.5", None, True])
def test_damped_refuses(s):
    with pytest.raises(InputError, match=r"s=.*expected a finite number > 0"):
        Loop(Affine(), X).damped(s)


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
def test_iterated_refuses(k):
    with pytest.raises(InputError, match=r"k=.*expected an integer >= 1"):
        Loop(Affine(), X).iterated(k)


def test_damping_after_iterating_is_refused():
    with pytest.raises(InputError, match=r"damp first, then iterate"):
        Loop(Affine(), X).iterated(2).damped(0.5)


@pytest.mark.parametrize("i", [4, -5])
def test_sample_out_of_range(i):
    with pytest.raises(InputError, match=rf"i={i}; expected an index into a batch of 4"):
        Loop(Affine(), X).sample(i)


# --- Bad calls ----------------------------------------------------------------------------------------------------


def _raise(*_):
    raise KeyError("pos")


BAD_CALLS = {
    "not callable": ((3, X), {}, r"block=3 is a int; expected a module or function"),
    "no z0, no x": ((lambda z: z,), {}, r"z0=None; pass z0="),
    "no z0, dict x": ((Affine(), {"x": X}), {}, r"z0=None; pass z0="),
    "no z0, integer x": ((Affine(), X.long()), {}, r"z0=None; pass z0="),
    "x a number": ((Affine(), 3.0), {}, r"x is a float; expected a tensor"),
    "x nested": ((Affine(), (X, (X,))), {"z0": X}, r"x\[1\] is a tuple; expected a tensor"),
    "x a dict of numbers": ((Affine(), {"a": 3}), {"z0": X}, r"x\['a'\] is a int; expected a tensor"),
    "x of another batch": ((Affine(), X), {"z0": X[:2]}, r"x\.shape=\(4, 3\); expected a leading batch dimension of 2"),
    "x without batch": ((Affine(), torch.tensor(1.0)), {"z0": X}, r"What all samples share belongs inside the block"),
    "integer state": ((Affine(), X), {"z0": X.long()}, r"dtype torch\.int64; expected a floating-point dtype"),
    "complex state": ((Affine(), X), {"z0": X.cfloat()}, r"expected a floating-point dtype"),
    "z0 no tensor": ((Affine(), X), {"z0": [1.0]}, r"the state is a list; expected a floating-point tensor"),
    "empty batch": ((Affine(), X[:0]), {}, r"at least one sample and entry"),
    "empty state": ((Affine(), X[:, :0]), {}, r"at least one sample and entry"),
    "scalar state": ((lambda z: z,), {"z0": torch.tensor(1.0)}, r"at least one sample and entry"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls(case):
    args, kwargs, message = BAD_CALLS[case]
    with pytest.raises(InputError, match=message) as caught:
        Loop(*args, **kwargs)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, FpcheckError)


# --- Outputs ------------------------------------------------------------------------------------------------------

BAD_OUTPUTS = {
    "shape": (lambda z, x: z[:, :2], r"shape=\(4, 2\) for a state of shape=\(4, 3\)"),
    "batch": (lambda z, x: z[:1], r"shape=\(1, 3\) for a state of shape=\(4, 3\)"),
    "broadcast up": (lambda z, x: z[:, :, None] + x[:, None, :], r"shape=\(4, 3, 3\) for a state of shape=\(4, 3\)"),
    "dtype": (lambda z, x: z.double(), r"dtype=torch\.float64 for a state of dtype=torch\.float32"),
    "device": (lambda z, x: z.to("meta"), r"device=meta for a state of device=cpu"),
    "tuple": (lambda z, x: (z, x), r"returned a tuple; expected the next state, a tensor"),
    "None": (lambda z, x: None, r"returned a NoneType"),
    "array": (lambda z, x: z.numpy(), r"returned a ndarray"),
    "own failure": (_raise, r"failed on a state of shape \(4, 3\), dtype torch\.float32: KeyError: 'pos'.*pass z0="),
    "wrong dtype inside": (nn.Bilinear(3, 3, 3).double(), r"failed on a state .*RuntimeError"),
    "wrong arguments": (lambda z: z, r"TypeError.*Expected block\(z, x\) -> z'"),
}


@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_bad_outputs(case):
    block, message = BAD_OUTPUTS[case]
    with pytest.raises(BlockOutputError, match=message) as caught:
        Loop(block, X)
    assert isinstance(caught.value, BlockError)


def test_output_is_checked_at_every_call():
    # Right at the shape checked on construction, wrong at another: broadcasting would hide it.
    loop = Loop(lambda z, x: 0.5 * z + x, X)
    with pytest.raises(BlockOutputError, match=r"shape=\(4, 3\) for a state of shape=\(4, 1\)"):
        loop(torch.zeros(4, 1))
    unchecked = Loop(lambda z, x: z[:, :2], X, check=False)
    with pytest.raises(BlockOutputError, match=r"needs the same shape"):
        unchecked(torch.zeros(4, 3))


def test_library_errors_of_a_block_pass_unchanged():
    def block(z, x):
        raise InputError("seq_len=7; expected 9")

    with pytest.raises(InputError, match=r"^seq_len=7; expected 9$"):
        Loop(block, X)


# --- Purity -------------------------------------------------------------------------------------------------------


def _overwrite_state(z, x):
    z += x
    return z


def _overwrite_injection(z, x):
    x.mul_(0.5)
    return 0.5 * z + x


class CountsItself(nn.Module):
    """Moves a buffer at every call, as spectral norm does, without effect on its result."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("u", torch.zeros(3))

    def forward(self, z, x):
        self.u.add_(1)
        return 0.5 * z + x


def _unconverged_spectral_norm() -> nn.Module:
    """Its vectors at a start from which the next call moves them: as made, they may have converged already."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    layer.parametrizations.weight[0]._u.copy_(torch.tensor([1.0, 0.0, 0.0]))
    return layer


class Forgetful(nn.Module):
    """A fresh random weight at every call."""

    def forward(self, z, x):
        return z * torch.rand(()) + x


def _attention_block() -> nn.Module:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)

        def forward(self, z, x):
            return x + self.attn(z, z, z)[0]

    return Block()


IMPURE = {
    "dropout": (With(nn.Sequential(nn.Tanh(), nn.Dropout(0.1))), r"dropout 'inner\.1' \(p=0\.1\).*block\.eval\(\)"),
    "alpha dropout": (With(nn.AlphaDropout(0.2)), r"dropout 'inner' \(p=0\.2\).*block\.eval\(\)"),
    "bare dropout": (nn.Dropout(0.5), r"dropout 'Dropout' \(p=0\.5\)"),
    "batch-norm": (With(nn.BatchNorm1d(3)), r"batch-norm 'inner' is in train mode; call block\.eval\(\)"),
    "functional dropout": (lambda z, x: F.dropout(0.5 * z + x, 0.5), r"two calls .* differ by .*functional dropout"),
    "random weight": (Forgetful(), r"two calls .* differ"),
    "randomized relu": (With(nn.RReLU()), r"two calls .* differ by .*call \.eval\(\)"),
    "own buffer": (CountsItself(), r"changed the buffer 'u'.*call \.eval\(\), or remove the spectral norm"),
    "spectral norm": (
        With(_unconverged_spectral_norm()),
        r"changed the buffer 'inner\.parametrizations\.weight\.0\._[uv]'.*remove the spectral norm|two calls .* differ",
    ),
    "overwrites the state": (_overwrite_state, r"overwrote the state z; .*z = z \+ x, not z \+= x"),
    "overwrites x": (_overwrite_injection, r"overwrote x; the block must leave its arguments alone"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPURE)
def test_impure_blocks(case):
    block, message = IMPURE[case]
    torch.manual_seed(0)  # the random ones could agree by chance
    with pytest.raises(ImpureBlockError, match=message):
        Loop(block, X.clone())


def test_attention_dropout_is_named():
    x = torch.randn(2, 5, 4)
    block = _attention_block()
    with pytest.raises(ImpureBlockError, match=r"attention 'attn' \(dropout=0\.1\) is in train mode; call block\.eval"):
        Loop(block, x)
    Loop(block.eval(), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_impurity_shows_in_low_precision_too(dtype):
    x = torch.linspace(-1, 1, 120).view(4, 30).to(dtype)
    with pytest.raises(ImpureBlockError, match=r"two calls"):
        Loop(lambda z, x: F.dropout(0.5 * z + x, 0.2), x)
    with pytest.raises(BatchCouplingError):
        Loop(lambda z, x: 0.5 * z + x + 0.5 * z.mean(0, keepdim=True), x)
    Loop(lambda z, x: 0.5 * torch.tanh(z @ torch.eye(30, dtype=dtype)) + x, x)


PURE = {
    "dropout p=0 in train mode": With(nn.Dropout(0.0)),
    "dropout in eval mode": With(nn.Dropout(0.9)).eval(),
    "batch-norm in eval mode": With(nn.BatchNorm1d(3)).eval(),
    "layer norm in train mode": With(nn.LayerNorm(3)),
    "spectral norm in eval mode": With(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))).eval(),
    "identity, returning its argument": lambda z, x: z,
    "constant, returning x": lambda z, x: x,
    "masked with -inf in a buffer": None,
}


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

    def forward(self, z, x):
        return torch.softmax(z[:, :, None] * z[:, None, :] + self.mask, -1).sum(1) + x


@pytest.mark.parametrize("case", PURE)
def test_pure_blocks_are_accepted(case):
    Loop(PURE[case] or Masked(), X)


def test_check_can_be_left_out():
    loop = Loop(With(nn.Dropout(0.5)), X, check=False)
    assert loop(X).shape == X.shape


def test_check_leaves_no_trace():
    block = Affine()
    x = X.clone().requires_grad_()
    state = torch.random.get_rng_state()
    Loop(block, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert x.grad is None
    assert block.a.grad is None


# --- Finiteness ---------------------------------------------------------------------------------------------------


def _with_nan(value: torch.Tensor, bad: float = math.nan) -> torch.Tensor:
    value = value.clone()
    value.view(-1)[1] = bad
    return value


def test_weights_must_be_finite():
    block = With(nn.Linear(3, 3))
    with torch.no_grad():
        block.inner.weight[0, 0] = math.nan
        block.inner.weight[1, 2] = math.inf
    with pytest.raises(NonFiniteError, match=r"weight inner\.weight holds 2 NaN or inf of 9 entries"):
        Loop(block, X)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_injection_must_be_finite(bad):
    with pytest.raises(NonFiniteError, match=r"x\['b'\] holds 1 NaN or inf of 12 entries"):
        Loop(lambda z, x: 0.5 * z + x["a"] + x["b"], {"a": X, "b": _with_nan(X, bad)}, z0=X)


def test_start_must_be_finite():
    with pytest.raises(NonFiniteError, match=r"z0 holds 1 NaN or inf"):
        Loop(Affine(), X, z0=_with_nan(X))


def test_output_must_be_finite():
    with pytest.raises(NonFiniteError, match=r"returned NaN or inf at z0 and at a random state.*a norm without eps"):
        Loop(lambda z, x: 0.5 * z + x + torch.log(-1 - z**2), X)


def test_a_block_defined_near_its_start_only_is_accepted():
    # log(z) is NaN at the random state, which has negative entries, but not at z0 = 1.
    loop = Loop(lambda z: 1 + 0.5 * torch.log(z), z0=torch.ones(4, 3))
    assert torch.equal(loop(torch.ones(4, 3)), torch.ones(4, 3))


# --- Batch --------------------------------------------------------------------------------------------------------

_CLOSED_OVER = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

COUPLED = {
    "batch mean": lambda z, x: 0.5 * z + x + 0.1 * z.mean(0, keepdim=True),
    "batch-wide norm": lambda z, x: z / z.norm() + x,
    "neighbour": lambda z, x: 0.5 * z.roll(1, 0) + x,
    # Only sample 0 sees another one.
    "first sample": lambda z, x: x + torch.cat([z[:1] + z[1:2], z[1:]]) if len(z) > 1 else z + x,
    "closure of batch size": lambda z, x: 0.5 * z + _CLOSED_OVER,
    "closure, size one only": lambda z, x: torch.einsum("bi,bi->bi", z, _CLOSED_OVER),
    "batch-norm without running statistics": With(nn.BatchNorm1d(3, track_running_stats=False)).eval(),
    "wants the full batch": lambda z, x: 0.5 * z.view(4, 3) + x,
}


@pytest.mark.parametrize("case", COUPLED)
def test_coupled_batches(case):
    with pytest.raises(BatchCouplingError, match=r"samples must be independent"):
        Loop(COUPLED[case], X)


def test_rounding_is_no_coupling():
    # Batched products may sum in another order than single ones; that is not a coupling.
    torch.manual_seed(0)
    block = With(nn.Sequential(nn.Linear(64, 512), nn.Tanh(), nn.Linear(512, 64)))
    Loop(block, torch.randn(33, 64))
    Loop(block.bfloat16(), torch.randn(33, 64, dtype=torch.bfloat16))


def test_a_single_sample_needs_no_partner():
    Loop(COUPLED["batch mean"], X[:1])
