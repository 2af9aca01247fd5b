"""What single operators lose: torch's result against exact rationals, entry by entry, without slack."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from flint import arb
from problems import randn
from torch import Tensor, nn
from torch.nn import functional as F

from fpcheck.certify.enclosure import _value
from fpcheck.certify.fusion import fuse
from fpcheck.certify.reals import Reals, working_precision
from fpcheck.certify.roundings import Arithmetic, carried, lost
from fpcheck.certify.trace import Graph, Op, Ref, trace

S, H, D = torch.float32, torch.bfloat16, torch.float64

WEIGHT = randn(6, 5, seed=1)


class Held(nn.Module):
    def __init__(self, f, dtype) -> None:
        super().__init__()
        self.f = f
        self.weight = nn.Parameter(WEIGHT.to(dtype))

    def forward(self, z: Tensor) -> Tensor:
        return self.f(z, self.weight)


# One operator of a fused graph each, with its name.
OPERATORS = {
    "add": lambda z, w: z + z.flip(-1),
    "add.alpha": lambda z, w: torch.add(z, z.flip(-1), alpha=0.3),
    "add, number": lambda z, w: z + 0.1,
    "mul": lambda z, w: z * z.flip(-1),
    "mul, number": lambda z, w: z * 0.1,
    "div": lambda z, w: z / 0.3,
    "mm": lambda z, w: z @ w.mT,
    "addmm": lambda z, w: F.linear(z, w, w[:, 0]),
    "mean": lambda z, w: z.mean(-1, keepdim=True),
    "sum": lambda z, w: z.sum(-1),
    "conv": lambda z, w: F.conv1d(z, w[:4, :3][:, None].repeat(1, 4, 1)),
    "tanh": lambda z, w: torch.tanh(z),
    "sigmoid": lambda z, w: torch.sigmoid(z),
    "silu": lambda z, w: F.silu(z),
    "gelu": lambda z, w: F.gelu(z),
    "gelu_tanh": lambda z, w: F.gelu(z, approximate="tanh"),
    "gated": lambda z, w: F.silu(z) * z.flip(-1),
    "gated gelu": lambda z, w: F.gelu(z) * z.flip(-1),
    "rms": lambda z, w: z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-5),
    "softmax": lambda z, w: torch.softmax(z @ z.mT, -1) @ z,
}


def exactly(graph: Graph, z: Tensor) -> list[Any]:
    """Values at 200 bits, not rounded."""
    values: list[Any] = []
    for op in graph.ops:
        if op.target in ("input", "constant"):
            values.append(Reals.exact(z if op.value is None else op.value))
        else:
            values.append(_value(op, values))
    return values


@pytest.mark.parametrize("dtype", [D, S, H], ids=["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("name", OPERATORS)
def test_no_operator_loses_more_than_it_may(name, dtype):
    worst = 0.0
    step = Held(OPERATORS[name], dtype)
    graph = fuse(trace(step, torch.zeros(1, 4, 5, dtype=dtype)))
    for seed in range(8):
        z = (randn(1, 4, 5, seed=seed) * 10.0 ** (seed % 4 - 1)).to(dtype)
        with working_precision():
            exact = exactly(graph, z)
        values = [v.ball() for v in exact]
        moving = [i for i, varying in enumerate(graph.varying()) if varying and graph.ops[i].target != "input"]
        arithmetic = Arithmetic(dtype)
        # Errors of the operators before the last are those of views, which have none, but for softmax's scores.
        bound = torch.zeros(values[graph.output].shape, dtype=D)
        for i in moving:
            op, value = graph.ops[i], values[i]
            moduli = [values[a.index].magnitude() if isinstance(a, Ref) else a for a in op.args]
            own = lost(op, moduli, value.magnitude(), arithmetic)
            if own is None or (name == "softmax" and op.target != "weighted_sum"):
                continue
            bound = own.expand(value.shape).reshape(bound.shape) + bound
        if name == "softmax":
            # The scores' own rounding moves the result too: by at most 2 max|v| times it (S2).
            scores = 2.2 * z.double().abs().max() * 5 * z.double().square().max() * 5 * torch.finfo(dtype).eps
            bound = bound + scores
        with torch.no_grad():
            computed = step(z).double().flatten().tolist()
        with working_precision():
            for value, entry, room in zip(computed, exact[graph.output].entries, bound.flatten().tolist(), strict=True):
                error = abs(arb(value) - entry)
                assert error <= room
                worst = max(worst, float(error.mid()) / room)
    print(name, dtype, round(worst, 3))
    assert worst > 0.005, "nothing was lost: the test says nothing"


def test_single_roundings_are_attained_to_a_percent():
    # 1 + 2^-24 in float32 is a tie: it loses exactly u of the result, which is all that the bound allows.
    op = Op("add.Tensor", (Ref(0), Ref(1)), {}, None, "", (1,))
    one, half = torch.ones(1, dtype=D), torch.full((1,), 2.0**-24, dtype=D)
    bound = lost(op, [one, half], one + half, Arithmetic(S))
    error = float((one.float() + half.float()).double() - (one + half))
    assert 0.99 * float(bound) < abs(error) <= float(bound)


def test_a_number_that_the_dtype_does_not_hold_costs_a_rounding_more():
    moduli, reach = [torch.ones(1, dtype=D), 0.1], torch.ones(1, dtype=D)
    tenth = lost(Op("mul.Tensor", (Ref(0), 0.1), {}, None, "", (1,)), moduli, reach, Arithmetic(S))
    half = lost(Op("mul.Tensor", (Ref(0), 0.5), {}, None, "", (1,)), [moduli[0], 0.5], reach, Arithmetic(S))
    assert float(tenth) > 1.9 * float(half)
    # 0.1 in float32 is wrong by 1.5e-9 / 0.1 = 0.25 u; 1/3 z for z = 3 + 2^-22 rounds twice.
    z = torch.full((1,), 3 + 2.0**-22, dtype=S)
    third = 1 / 3
    error = abs(Fraction(float(z * third)) - Fraction(float(z)) * Fraction(third))
    allowed = lost(
        Op("mul.Tensor", (Ref(0), third), {}, None, "", (1,)), [z.double(), third], z.double() / 3, Arithmetic(S)
    )
    assert error <= Fraction(float(allowed))


def test_a_sum_too_long_for_the_dtype_has_no_bound():
    # 300 roundings of 2^-9 each and more than everything may be gone.
    op = Op("sum.default", (Ref(0),), {}, None, "", ())
    wide = torch.ones(300, dtype=D)
    assert float(lost(op, [wide], torch.tensor(300.0, dtype=D), Arithmetic(H))) == float("inf")
    assert float(lost(op, [wide], torch.tensor(300.0, dtype=D), Arithmetic(S))) < 1.0


def test_errors_of_what_stands_beside_the_state_are_carried():
    zero, two = torch.zeros(2, dtype=D), torch.tensor([2.0, 3.0], dtype=D)
    off = torch.tensor([0.1, 0.2], dtype=D)
    add = Op("sub.Tensor", (Ref(0), Ref(1)), {"alpha": -4.0}, None, "", (2,))
    assert carried(add, (two, two), (zero, off), two).tolist() == pytest.approx([0.4, 0.8])
    mul = Op("mul.Tensor", (Ref(0), Ref(1)), {}, None, "", (2,))
    assert carried(mul, (two, two), (zero, off), two).tolist() == pytest.approx([0.2, 0.6])
    assert carried(mul, (two, two), (zero, zero), two) is None
    linear = Op("addmm.default", (Ref(0), Ref(1), Ref(2)), {}, None, "", (1, 1))
    row, column = two.reshape(1, 2), off.reshape(2, 1)
    found = carried(linear, (off[:1], row, column), (off[:1], torch.zeros(1, 2, dtype=D), column), row)
    assert float(found) == pytest.approx(0.1 + 2 * 0.1 + 3 * 0.2)
