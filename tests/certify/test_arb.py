"""Everything that a certificate rests on, recomputed in Arb for small blocks of every reference type, corners included.

Value, Jacobian, norm at the centre and norm over a ball, judged at 300 bits with zero slack by formulas of their own
(tests/exact_blocks.py); tests/certify/test_enclosure.py does the same for single operators. Norms are judged from
below, by a direction in which they are large, so each judgement has a partner: a bound a little smaller is refuted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import attacks
import exact_blocks
import pytest
import torch
from attacks import SETTLES, Arena, Judge, ascend, bounds_of, share, starts
from exact_blocks import Map
from flint import arb
from problems import FPRM_VARIANTS, randn, small_fprm
from torch import Tensor, nn
from torch.nn import functional as F

from fpcheck.blocks import FPRMConfig, FPRMModel, LinearAttentionGD, TRMConfig, TRMModel
from fpcheck.certify import Metric, dual_stein, enclose, euclidean
from fpcheck.errors import NonFiniteError
from fpcheck.loop import Loop

D = torch.float64
Case = tuple[Loop, Tensor, Map]
SMALL = {"vocab_size": 5, "seq_len": 3, "hidden_size": 4, "num_heads": 2, "mlp_multiple": 4, "L_layers": 1}


def variant(name: str, dtype: torch.dtype = D, **more) -> Case:
    settings = {"hidden_size": 4, "mlp_multiple": 4, "L_layers": 1} | SETTLES.get(name, {}) | more
    settings.pop("step", None)
    loop, z = small_fprm(name, **settings)
    block, x = loop.block.to(dtype), loop.x[:1].to(dtype)
    return Loop(block, x), z[:1].to(dtype), exact_blocks.fprm(block, x[0])


def block_of(change: Callable[[str, Tensor], Tensor] | None = None, *, x_size: float = 1.0, **more) -> Case:
    """An FPRM block with chosen settings, its weights changed by name, its injection scaled."""
    torch.manual_seed(1)
    model = FPRMModel(FPRMConfig(**(SMALL | more))).eval().to(D).requires_grad_(False)
    if change is not None:
        for name, parameter in model.block.named_parameters():
            parameter.copy_(change(name, parameter))
    tokens = torch.arange(model.config.seq_len)[None] % model.config.vocab_size
    x = x_size * model.injection(tokens).detach().to(D)
    return Loop(model.block, x), randn(*x.shape, seed=3), exact_blocks.fprm(model.block, x[0])


def moved(case: Case, f: Callable[[Tensor], Tensor]) -> Case:
    loop, z, exact = case
    return loop, f(z), exact


def scaled(part: str, factor: float) -> Callable[[str, Tensor], Tensor]:
    return lambda name, w: w * factor if part in name else w


def dominant(z: Tensor) -> Tensor:
    """One channel of one token rules."""
    z = z.clone()
    z[0, 0, 0] = 1e6
    return z


class Sees(nn.Module):
    """0.4 attention(z, z, z) + x, where each token sees some tokens only."""

    def __init__(self, seen: Tensor) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return 0.4 * F.scaled_dot_product_attention(*[z[:, None]] * 3, attn_mask=self.seen)[:, 0] + x


def masked() -> Case:
    """Rows with one key, with two, with all."""
    seen = torch.tensor([[False, True, False], [True, False, True], [True, True, True]])
    x = randn(1, 3, 4, seed=1)
    root = arb(float(torch.tensor(0.25, dtype=D).sqrt().sqrt()))  # torch scales queries and keys by a float each
    injection = exact_blocks.reals(x[0])

    def exact(z):
        rows = []
        for t, row in enumerate(seen.tolist()):
            keys = [j for j, flag in enumerate(row) if flag]
            rows.append(exact_blocks.softmax((z[keys] * root) @ (z[t] * root)) @ z[keys])
        return injection + exact_blocks.np.stack(rows) * arb(0.4)

    return Loop(Sees(seen), x), randn(1, 3, 4, seed=2), exact


def encoder_of(change: Callable[[str, Tensor], Tensor] | None = None, **options) -> Case:
    subject = attacks.encoder(**options)
    if change is None:
        return subject.loop, subject.state, subject.exact
    with torch.no_grad():
        for name, parameter in subject.loop.block.module.named_parameters():
            parameter.copy_(change(name, parameter))
    inner, x = exact_blocks.encoder_layer(subject.loop.block.module), exact_blocks.reals(subject.loop.x[0])
    return subject.loop, subject.state, lambda z: inner(z) * arb(0.4) + x


def trm(**more) -> Case:
    torch.manual_seed(0)
    settings = {**SMALL, "seq_len": 2, "L_cycles": 2, "H_cycles": 1} | more
    model = TRMModel(TRMConfig(**settings)).eval().to(D).requires_grad_(False)
    x = model.injection(torch.tensor([[1, 2]])).detach().to(D)
    z = model.initial_state(x) + 0.1 * randn(1, 2, 2, 4)
    return Loop(model.block, x, z0=z), z, exact_blocks.trm(model.block, x[0])


def context() -> Case:
    inputs, targets = randn(1, 5, 3, seed=1), randn(1, 5, 2, seed=2)
    block = LinearAttentionGD(0.3).to(D).eval().requires_grad_(False)
    z = randn(1, 2, 3, seed=3)
    exact = exact_blocks.gradient_descent(block, (inputs[0], targets[0]))
    return Loop(block, (inputs, targets), z0=z), z, exact


REFERENCE: dict[str, Callable[[], Case]] = {
    **{f"fprm, {name}": (lambda name=name: variant(name)) for name in FPRM_VARIANTS},
    **{f"fprm, {name}, float32": (lambda name=name: variant(name, torch.float32)) for name in FPRM_VARIANTS},
    "fprm, two layers": lambda: variant("plain", L_layers=2),
    "trm": trm,
    "trm, two cycles": lambda: trm(H_cycles=2, L_cycles=1),
    "trm, over positions": lambda: trm(mlp_t=True),
    "linear attention": context,
    "encoder, relu": lambda: encoder_of(activation="relu"),
    "encoder, post-norm": lambda: encoder_of(norm_first=False),
    "encoder, causal": lambda: encoder_of(causal=True),
}

PERI = {"norm_type": "peri-norm", "residual_scale": "none"}
CORNERS: dict[str, Callable[[], Case]] = {
    # |h|^2 / d about 1e-18 or 0 against eps = 1e-5 or so: norms are ruled by their eps, and stretch by its root.
    "state near 0": lambda: moved(block_of(x_size=0.0), lambda z: 1e-9 * z),
    "state of zeros": lambda: moved(block_of(x_size=0.0), torch.zeros_like),
    "state near 0, peri-norm": lambda: moved(block_of(x_size=0.0, **PERI), lambda z: 1e-9 * z),
    "state near 0, output norm": lambda: moved(block_of(x_size=0.0, norm_placement="output"), lambda z: 1e-9 * z),
    "subnormal state": lambda: moved(block_of(x_size=0.0), lambda z: 1e-310 * z),
    "saturated softmax": lambda: block_of(scaled("qkv_proj", 100.0)),
    "saturated softmax, causal": lambda: block_of(scaled("qkv_proj", 100.0), causal=True),
    "one dominant channel": lambda: moved(block_of(), dominant),
    "one dominant channel, encoder": lambda: moved(encoder_of(), dominant),
    "one dominant channel, post-norm": lambda: moved(encoder_of(norm_first=False), dominant),
    "masked rows": masked,
    "one token": lambda: block_of(seq_len=1),
    "one token, one channel": lambda: block_of(seq_len=1, hidden_size=1, num_heads=1, pos_encodings="none"),
    "one channel": lambda: block_of(hidden_size=1, num_heads=1, pos_encodings="none"),
    "subnormal weights": lambda: block_of(lambda name, w: w * 1e-310),
    "subnormal weights, encoder": lambda: encoder_of(lambda name, w: w * 1e-310),
    "no weights at all": lambda: block_of(lambda name, w: torch.zeros_like(w)),
    "huge values": lambda: block_of(scaled("o_proj", 1e12)),
    "huge gates": lambda: block_of(scaled("gate_up_proj", 1e4)),
    "huge weights, encoder": lambda: encoder_of(scaled("linear", 1e3)),
}


def metric_for(J: Tensor) -> Metric:
    """The dual Stein metric a little above the spectral radius, as in certificates; else the Euclidean one."""
    found = dual_stein(J, 0.1 + 1.1 * float(torch.linalg.eigvals(J).abs().max()))
    return euclidean(len(J)) if found is None else found


def judge_all(case: Case, *, wild: bool = False) -> None:
    """Value, Jacobian, centre and ball; ``wild``: the norms may be far off, and no ball be allowed."""
    loop, z, exact = case
    wide = z.to(D)
    held = enclose(loop, z)
    with exact_blocks.precision():
        state = exact_blocks.reals(z[0])
        assert exact_blocks.contains(held.value.mid, held.value.rad, exact(state))
        J = exact_blocks.jacobian(exact, state)
        assert exact_blocks.distance(held.jacobian, J) <= held.jacobian_error
        wrong = held.jacobian.clone()
        wrong[0, 0] += 3 * held.jacobian_error + 1e-300
        assert exact_blocks.distance(wrong, J) > held.jacobian_error
    metric = metric_for(held.jacobian)
    judge = Judge(exact, wide, metric)
    inside = metric.L @ held.jacobian @ metric.inverse
    top = torch.linalg.svd(inside)[2][0]
    # A ball within which a state near 0 stays near 0, and a large one moves by more than its last digits.
    radius = 1e-3 * max(1e-6, min(1.0, float(wide.norm())))
    Z1, kappa = bounds_of(loop, z, metric, radius)
    with exact_blocks.precision():
        found = judge.at_centre(top)
        assert share(found, Z1) <= 1
        # The partner: a bound one percent lower is false.
        assert wild or share(found, 0.99 * Z1) > 1
    assert math.isinf(kappa) is wild
    arena = Arena(Loop(loop.block.to(D), attacks.wide(loop.x), z0=wide, check=False), wide, metric)
    generator = torch.Generator().manual_seed(0)
    best, _ = ascend(arena, starts(arena, radius, 4, generator), radius, rounds=2, polish=5)
    with exact_blocks.precision():
        assert share(judge.rate(best.delta, best.direction, radius), kappa) <= 1
        # Any direction will do, and far points as well as near ones.
        for way in starts(arena, radius, 3, generator):
            a, b = judge.offset(way * attacks.INSIDE), judge.offset(best.delta * attacks.INSIDE)
            assert share(judge.ratio(a, b, radius), kappa) <= 1


QUICK = [name for name in REFERENCE if "float32" not in name and "two" not in name]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in REFERENCE])
def test_reference_blocks(name):
    judge_all(REFERENCE[name]())


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name):
    # Scores of 1e12 without a norm before them: any ball of use would move them by more than their bounds allow.
    judge_all(CORNERS[name](), wild=name == "one dominant channel, post-norm")


def test_what_float64_cannot_hold_is_refused_and_not_claimed():
    # Gates of 1e160 times 1e160: nothing between them and the state fits into float64.
    with pytest.raises(NonFiniteError, match="returned NaN or inf"):
        block_of(scaled("gate_up_proj", 1e160))
    torch.manual_seed(1)
    loop, z, _ = block_of(scaled("gate_up_proj", 1.0))
    with torch.no_grad():
        for parameter in loop.block.layers[0].mlp.gate_up_proj.parameters():
            parameter.mul_(1e160)
    with pytest.raises(NonFiniteError, match="no finite enclosure"):
        enclose(loop, z)
