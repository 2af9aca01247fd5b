"""The block that contracts by construction: nothing may beat its rate, and 1 % more of anything must.

A measured ratio is judged with the evaluation error of the float64 map: a step rounds sums of at most n = 32 products
of numbers below |h| + R by matrices of norm 1, in about 8 stages for each of at most 4 sublayers, the divided weights
being off by some n^(3/2) units themselves. That is below 32 * 8 * 200 u = 6e-12 of |h| + R, with much to spare.
"""

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpcheck.blocks import contractive
from fpcheck.blocks.contractive import ContractiveBlock, ContractiveConfig, ContractiveModel
from fpcheck.errors import ConfigError, InputError, NonFiniteError
from fpcheck.loop import Loop

ROUNDING = 6e-12
SMALL = {
    "vocab_size": 5, "seq_len": 4, "hidden_size": 8, "num_heads": 2, "L_layers": 1, "expansion": 1.0, "mlp_multiple": 4,
    "causal": True, "conv_kernel_size": 2,
}  # fmt: skip


def config(**changes):
    return ContractiveConfig(**{**SMALL, **changes})


def random_block(cfg, seed, scales=(1.0,), dtype=torch.float64):
    """Every parameter is normal, times one of the scales in turn."""
    block = ContractiveBlock(cfg).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter, scale in zip(block.parameters(), itertools.cycle(scales), strict=False):
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return block.eval()


def states(cfg, seed, *, samples=8, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(samples, cfg.seq_len, cfg.hidden_size, generator=generator, dtype=torch.float64)


def distance(a, b):
    """The stated norm: the largest Euclidean length of a token, for each sample."""
    return (a - b).norm(dim=-1).amax(-1)


def excess(block, x, y, z):
    """Ratio of the distances over the rate, less what rounding may add; above 1 is a violation."""
    with torch.no_grad():
        before, after = distance(y, z), distance(block(y, x), block(z, x))
        size = block.radius + torch.stack([v.norm(dim=-1).amax(-1) for v in (x, y, z)]).sum(0)
    return (after - 2 * ROUNDING * size) / (block.config.rate * before)


@given(
    st.sampled_from(["gated", "plain"]),
    st.booleans(),
    st.sampled_from(["none", "rope", "learned"]),
    st.integers(1, 3),
    st.floats(0.05, 0.999),
    st.lists(st.sampled_from([1e-3, 0.1, 1.0, 10.0, 1e3, 1e6]), min_size=1, max_size=5),
    st.sampled_from([1e-2, 1.0, 100.0]),
    st.sampled_from([0.0, 1.0, 1e3]),
    st.integers(0, 10**6),
)
def test_no_pair_of_states_beats_the_rate(mlp, causal, positions, layers, rate, scales, eps, x_size, seed):
    cfg = config(mlp=mlp, causal=causal, pos_encodings=positions, L_layers=layers, rate=rate, rms_norm_eps=eps)
    block = random_block(cfg, seed, scales)
    x = states(cfg, seed + 1, size=x_size)
    for size, apart in itertools.product((1e-2, 1.0, 1e3), (1e-3, 1.0)):
        z = states(cfg, seed + 2, size=size)
        y = z + apart * size * states(cfg, seed + 3)
        assert float(excess(block, x, y, z).max()) <= 1
    bound = block.lipschitz_bound()
    assert 0 < bound <= rate


def ascend(block, seed, *, steps=100, through=False):
    """Gradient ascent on the ratio, over weights, injection and both states; the largest ratio over the rate."""
    cfg = block.config
    x, z, v = (states(cfg, seed + i, samples=4, size=0.5).requires_grad_() for i in range(3))
    weights = [p for name, p in block.named_parameters() if not (through and "share" in name)]
    if through:  # else the ascent finds at once that handing on the state is best
        with torch.no_grad():
            for name, p in block.named_parameters():
                if "alpha_share" in name:
                    p.copy_(torch.tensor([0.0, 1.0]))
    optimizer = torch.optim.Adam([*weights, x, z, v], lr=0.05)
    for _ in range(steps):
        ratio = distance(block(z + v, x), block(z, x)) / distance(z + v, z)
        optimizer.zero_grad()
        (-ratio.log().sum()).backward()
        optimizer.step()
    return float(excess(block, x.detach(), (z + v).detach(), z.detach()).max())


@pytest.mark.parametrize("mlp", ["gated", "plain"])
@pytest.mark.parametrize("through", [False, True])
def test_nor_does_gradient_ascent_on_weights_and_states(mlp, through):
    block = random_block(config(mlp=mlp), seed=3)
    worst = ascend(block, 5, through=through)
    assert worst <= 1
    # An ascent that goes nowhere would show nothing. What it reaches: 1.0 if the stream may hand on the state.
    assert worst > (0.5 if through else 0.95)


@pytest.mark.parametrize("part", ["_unit", "_into_ball", "_stretch"])
def test_the_same_ascent_breaks_a_block_without_its_divisions(part, monkeypatch):
    # The partner that must be caught: weights as they are.
    neutral = {"_unit": lambda W: W, "_into_ball": lambda v, dim: v, "_stretch": torch.ones_like}
    monkeypatch.setattr(contractive, part, neutral[part])
    block = random_block(config(), seed=3, scales=(2.0,))
    with torch.no_grad():
        block.layers[0].attention.beta.fill_(10.0)
        block.layers[0].mlp.rho.fill_(10.0)
    assert ascend(block, 5, steps=100, through=part != "_into_ball") > 1.05


def _silent(block):
    """A block in which everything is 0."""
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    return block


def stream_case(rate=0.9):
    """Nothing but the stream: F(z) = rate z + x exactly."""
    block = _silent(ContractiveBlock(config(rate=rate, conv_kernel_size=1)).double())
    with torch.no_grad():
        block.conv_share.fill_(1)
        block.conv_taps.fill_(1)
        for residual in (block.layers[0].attention_residual, block.layers[0].mlp_residual):
            residual.alpha_share[0] = 5.0  # clipped to 1
            residual.alpha_channels[0] = 5.0
    z = states(block.config, 1)
    return block, torch.zeros_like(z), z, z + 1


def _through(residual, *, sublayer):
    with torch.no_grad():
        residual.alpha_share.copy_(torch.tensor([0.0, 5.0] if sublayer else [5.0, 0.0]))
        residual.alpha_channels.zero_()
        residual.alpha_channels[int(sublayer)] = 5.0


def attention_case(beta=40.0):
    """Theorem F6a's extremal case: a query at 0 with two long opposite keys moves alone, at a large temperature.

    It does not see itself: the injections e_3 of the query and e_2 of the keys are made into scores of size 200. The
    output moves by beta m^2 of the query's move, with 1 - m^2 = 1e-4, of beta + 1/(4 beta): 0.9997 of the bound.
    """
    block, *_ = stream_case()
    block.config = config(seq_len=3, num_heads=1, conv_kernel_size=1)
    layer = block.layers[0]
    layer.attention = _silent(contractive._Attention(block.config).double())
    with torch.no_grad():
        layer.attention.qkv[:, 0, 0, 0] = 7.0  # rank one, so its Schatten norm is its norm: divided to 1
        layer.attention.out[0, 0] = 7.0
        layer.attention.beta.fill_(beta)
        layer.attention.alpha_heads.fill_(3.0)
        tiny, score = 1e-6, 200 * math.sqrt(8)
        layer.attention.injection_proj.weight[1, 3] = score / tiny
        layer.attention.injection_proj.weight[8 + 1, 2] = 1 / tiny
        layer.attention.injection_proj.weight[8 + 1, 3] = -1 / tiny
    block.rotary = None
    _through(layer.attention_residual, sublayer=True)
    x = torch.zeros(1, 3, 8, dtype=torch.float64)
    x[0, :2, 2] = x[0, 2, 3] = tiny
    z = torch.zeros_like(x)
    # |n|^2 = R^2 |h|^2 / (|h|^2 + R^2) with h = 0.9 z = 100 R.
    z[0, 0, 0], z[0, 1, 0] = 100 * block.radius / 0.9, -100 * block.radius / 0.9
    y = z.clone()
    y[0, 2, 0] = 1e-4
    return block, x, z, y


def gate_case(rho=40.0):
    """Theorem F6b with the gate's part alone: rho/2 of rho/2 + 1/(2 rho), which is 0.9994 of the bound.

    A token of normalised length R/sqrt(2) along e_0 moves along e_1, by which the only gate opens.
    """
    block, *_ = stream_case()
    layer = block.layers[0]
    with torch.no_grad():
        layer.mlp.gate_up[0, 0, 1] = 7.0
        layer.mlp.gate_up[1, 0, 0] = 7.0
        layer.mlp.out[0, 0] = 7.0
        layer.mlp.rho.fill_(rho)
    _through(layer.mlp_residual, sublayer=True)
    z = torch.zeros(1, 1, 8, dtype=torch.float64)
    z[..., 0] = block.radius / 0.9  # |n|^2 = R^2 / 2 for |h| = R
    y = z.clone()
    z[..., 1], y[..., 1] = -1e-4, 1e-4
    return block, torch.zeros_like(z), z, y


def plain_case():
    """One neuron near 0, where tanh has slope 1, and the norm too."""
    block, *_ = stream_case()
    block.layers[0].mlp = _silent(contractive._PlainMLP(block.config).double())
    with torch.no_grad():
        block.layers[0].mlp.inner[0, 0] = block.layers[0].mlp.out[0, 0] = 7.0
    _through(block.layers[0].mlp_residual, sublayer=True)
    z = torch.zeros(1, 4, 8, dtype=torch.float64)
    y = z.clone()
    y[..., 0] = 1e-4
    return block, torch.zeros_like(z), z, y


CASES = {"stream": stream_case, "attention": attention_case, "gate": gate_case, "plain": plain_case}


@pytest.mark.parametrize(("name", "near"), [("stream", 1e-9), ("attention", 5e-4), ("gate", 1e-3), ("plain", 1e-6)])
def test_the_rate_is_approached_by_simple_weights(name, near):
    # How near, from the cases' comments; the stream reaches it but for rounding, the others to 0.05 % and 0.1 %.
    ratio = float(excess(*_ordered(CASES[name])).max())
    assert 1 - near <= ratio <= 1


def _ordered(case):
    block, x, z, y = case()
    return block, x, y, z


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("stream", "_into_ball"),
        ("attention", "_unit"),
        ("attention", "_stretch"),
        ("gate", "_unit"),
        ("gate", "_stretch"),
        ("plain", "_unit"),
        ("plain", "rms_norm"),
    ],
)
def test_there_one_per_cent_more_is_caught(name, part, monkeypatch):
    block, x, y, z = _ordered(CASES[name])
    original = getattr(contractive, part)
    factor = 1 / 1.01 if part == "_stretch" else 1.01
    monkeypatch.setattr(contractive, part, lambda *args: factor * original(*args))
    assert float(excess(block, x, y, z).max()) > 1.005


@torch.no_grad()
@pytest.mark.parametrize("mlp", ["gated", "plain"])
def test_the_block_is_what_its_formulas_say(mlp):
    """Another evaluation: token by token, norms of weights from their singular values."""
    cfg = config(mlp=mlp, pos_encodings="none", L_layers=2, rms_norm_eps=0.5)
    block = random_block(cfg, 11)
    x, z = states(cfg, 12, samples=1)[0], states(cfg, 13, samples=1)[0]
    R = math.sqrt(0.5 * 8)

    def unit(W):
        return W / max(1.0, float((torch.linalg.svdvals(W) ** 64).sum() ** (1 / 64)))

    def ball(v):
        return v / max(1.0, float(v.norm()))

    def norm(v):
        return v / torch.sqrt(v @ v / 4 + 1)  # sqrt(eps) v / sqrt(|v|^2 / 8 + eps) at eps = 1/2

    def stretch(c):
        return max(1.0, abs(c) + 1 / (4 * abs(c))) if abs(c) > 0.5 else 1.0

    s = ball(block.conv_share[:, 0])
    taps = torch.stack([ball(block.conv_taps[:, c]) for c in range(8)], dim=1)
    h = [0.9 * (s[1] * taps[1] * z[t] + (s[0] * taps[0] * z[t - 1] if t else 0)) + x[t] for t in range(cfg.seq_len)]

    def residual(part, u, v):
        share = ball(part.alpha_share)
        pairs = torch.stack([ball(part.alpha_channels[:, c]) for c in range(8)], dim=1)
        return share[0] * pairs[0] * u + share[1] * pairs[1] * v

    for layer in block.layers:
        a, heads = layer.attention, []
        n = [norm(v) for v in h]
        fixed = [(a.injection_proj.weight @ v).view(2, 2, 4) for v in x]
        for head in range(2):
            Q, K, V = (unit(W) for W in a.qkv[:, head])
            beta, gain = a.beta[head].item(), ball(a.alpha_heads)[head]
            out = []
            for t in range(cfg.seq_len):
                scores = torch.stack(
                    [
                        beta * (Q @ n[t] / R) @ (K @ n[i] / R) + fixed[t][0, head] @ fixed[i][1, head] / 2
                        for i in range(t + 1)
                    ]
                )
                mixed = sum(w * (V @ v) for w, v in zip(scores.softmax(0), n, strict=False))
                out.append(gain / stretch(beta) * mixed)
            heads.append(out)
        outs = [unit(a.out) @ torch.cat([heads[0][t], heads[1][t]]) for t in range(cfg.seq_len)]
        h = [residual(layer.attention_residual, u, v) for u, v in zip(h, outs, strict=True)]
        m = layer.mlp
        outs = []
        for t in range(cfg.seq_len):
            n, f = norm(h[t]), m.injection_proj.weight @ x[t] + m.injection_proj.bias
            if mlp == "gated":
                rho = m.rho.item()
                inner = torch.tanh(rho * unit(m.gate_up[0]) @ n / R + f) * (unit(m.gate_up[1]) @ n) / stretch(rho / 2)
            else:
                inner = torch.tanh(unit(m.inner) @ n + f)
            outs.append(unit(m.out) @ inner)
        h = [residual(layer.mlp_residual, u, v) for u, v in zip(h, outs, strict=True)]
    torch.testing.assert_close(block(z[None], x[None])[0], torch.stack(h), rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_causal_blocks_look_back_only_and_the_others_everywhere(causal):
    cfg = config(causal=causal)
    block = random_block(cfg, 2)
    x, z = states(cfg, 3), states(cfg, 4)
    y = z.clone()
    y[:, 2] += 1
    moved = (block(y, x) - block(z, x)).abs().amax((0, 2)) > 0
    assert moved.tolist() == [not causal, not causal, True, True]
    Loop(block, x.detach(), z0=z)  # pure, same shape, samples independent


@pytest.mark.parametrize("rate", [0.3, 0.75])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e6])
def test_it_converges_from_any_start_in_the_stated_number_of_steps(rate, size):
    cfg = config(rate=rate, L_layers=2)
    block = random_block(cfg, 7, scales=(1.0, 100.0))
    x = states(cfg, 8)
    with torch.no_grad():
        star = x
        for _ in range(120):
            star = block(star, x)  # 0.75^120 = 1e-15 of the start's distance
        z = states(cfg, 9, size=size)
        first = float(distance(block(z, x), z).max())
        tolerance = 1e-8
        for _ in range(block.steps_bound(first, tolerance)):
            z = block(z, x)
    # Two floors of evaluation error over 1 - rate: 1e-10.
    assert float(distance(z, star).max()) <= tolerance + 1e-10


def test_the_number_of_steps_is_the_smallest_one_or_the_next():
    block, *_ = stream_case(rate=0.5)
    # From z, with F(z) = z/2 and z* = 0: first step |z|/2, k steps leave |z| 2^-k. For |z| = 1 and tolerance 2^-10: 10.
    assert block.steps_bound(0.5, 2.0**-10) == 11
    # Already there: the error is at most first / (1 - rate) = 2^-11.
    assert block.steps_bound(2.0**-12, 2.0**-10) == 0
    assert block.steps_bound(0.0, 1e-300) == 0
    assert block.steps_bound(1e300, 1e-300) < 2100  # 2 log2(1e300) = 1993
    for first, tolerance in ((-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, math.inf)):
        with pytest.raises(InputError, match=r"first_step=|tolerance="):
            block.steps_bound(first, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("mlp", ["gated", "plain"])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_gradients_are_finite_and_reach_every_parameter(dtype, mlp, scale):
    cfg = config(mlp=mlp, L_layers=2)
    model = ContractiveModel(cfg).to(dtype)
    model.block = random_block(cfg, 4, scales=(scale,), dtype=dtype)
    x = model.injection(torch.arange(8).view(2, 4) % 5)
    z = model.initial_state(x)
    for _ in range(3):
        z = model.block(z, x)
    model.readout(z).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("q_head"):
            assert bool(torch.isfinite(parameter.grad).all()), name
            # At 1e3 gates and scores of the injection are saturated in every digit; at 1e-3 some gradients are
            # products of 14 weights, below what float32 can hold.
            seen = scale == 1.0 or (scale < 1 and dtype == torch.float64)
            assert not seen or bool(parameter.grad.any()), name


def test_zero_weights_are_no_trap():
    block = _silent(ContractiveBlock(config()))
    x = states(block.config, 1).float()
    out = block(x, x)
    out.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in block.parameters())
    assert block.lipschitz_bound() < 1e-100


def test_plain_gradient_descent_with_a_huge_step_cannot_leave_the_bound():
    block = random_block(config(), 6)
    x, z = states(block.config, 7), states(block.config, 8)
    optimizer = torch.optim.SGD(block.parameters(), lr=1e3)
    for _ in range(10):
        loss = -distance(block(z + 1, x), block(z, x)).sum()  # asks for expansion
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert float(excess(block, x, z + 1, z).max()) <= 1
        assert block.lipschitz_bound() <= 0.9


@torch.no_grad()
def test_float32_runs_and_is_near_float64():
    cfg = config(L_layers=2)
    block = random_block(cfg, 3, scales=(1.0, 30.0), dtype=torch.float32)
    x, z, y = (states(cfg, seed).float() for seed in (4, 5, 6))
    narrow = [block(v, x) for v in (z, y)]
    assert narrow[0].dtype == torch.float32
    bound = block.lipschitz_bound()
    wide = [block.double()(v.double(), x.double()) for v in (z, y)]
    # The evaluation error in float32 units, by the module's count, with scores up to 1e3 whose own rounding counts too.
    error = max(float(distance(a.double(), b).max()) for a, b in zip(narrow, wide, strict=True))
    assert error < 1e-3
    assert float((distance(narrow[0], narrow[1]) - 0.9 * distance(z, y)).max()) <= 2 * error
    assert bound == block.lipschitz_bound()  # the bound is about the stored numbers, whatever dtype holds them


def test_the_bound_from_the_weights_lies_between_what_is_measured_and_the_rate():
    for seed, scale in itertools.product(range(5), (1e-2, 0.3, 1.0, 1e4)):
        cfg = config(L_layers=2, mlp="gated" if seed % 2 else "plain")
        block = random_block(cfg, seed, scales=(scale, 1.0))
        bound = block.lipschitz_bound()
        x, z = states(cfg, seed), states(cfg, seed + 1, size=0.1)
        y = z + 0.01 * states(cfg, seed + 2)
        assert float(excess(block, x, y, z).max()) * 0.9 <= bound <= 0.9
    # Small weights are seen: only the stream is left, with shares of length 0.1 * sqrt(2) clipped to nothing.
    block, x, z, y = stream_case()
    with torch.no_grad():
        block.conv_taps.fill_(0.25)
        block.layers[0].mlp_residual.alpha_channels[0] = 0.5
    assert block.lipschitz_bound() == pytest.approx(0.9 * 0.25 * 0.5, rel=1e-12)
    assert block.lipschitz_bound() >= 0.9 * 0.25 * 0.5


@pytest.mark.parametrize(("name", "value"), [("stream", 0.9), ("attention", 0.9), ("gate", 0.9), ("plain", 0.9)])
def test_the_bound_from_the_weights_is_the_rate_where_nothing_is_given_away(name, value):
    block = CASES[name]()[0]
    # Each factor is 1 there: matrices of rank one are divided by exactly their norm.
    assert block.lipschitz_bound() == pytest.approx(value, rel=1e-10)


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1e-200, 1e-3, 1.0, 1e6, 1e200]), st.integers(0, 10**6))
def test_schatten_norms_are_enclosed(rows, columns, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    W = scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    with mpmath.workdps(60):
        a = mpmath.matrix(W.tolist())
        values = mpmath.svd_r(a, compute_uv=False)
        for doublings in (0, 1, 5, 10):
            low, high = map(float, contractive._schatten_ends(W, doublings))
            order = 2 ** (doublings + 1)
            exact = sum(v**order for v in values) ** (mpmath.mpf(1) / order)
            assert low <= exact <= high
            assert high - low <= 1e-12 * high
        assert float(contractive._schatten(W)) >= max(values) * (1 - mpmath.mpf(10) ** -14)


@pytest.mark.parametrize("doublings", [0, 1, 5, 10])
def test_and_with_the_rounding_of_every_product(doublings):
    # Hadamard's matrix of order 64: all singular values are 8, and all products on the way are exact. What is added for
    # their rounding then shows: at least 64 u of the square in each step, which the norm sees halved.
    W = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(6):
        W = torch.cat([torch.cat([W, W], 1), torch.cat([W, -W], 1)], 0)
    low, high = map(float, contractive._schatten_ends(W, doublings))
    with mpmath.workdps(60):
        exact = 8 * mpmath.mpf(64) ** (mpmath.mpf(1) / 2 ** (doublings + 1))
        room = 30 * 2.0**-53
        assert low < exact * (1 - room)
        assert exact * (1 + room) < high


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_norms_of_divided_weights_are_bounded_from_above_and_closely(scale):
    W = scale * torch.linalg.qr(states(config(seq_len=8), 1, samples=3))[0]
    # Singular values all alike: 0.1, or divided by scale * 8^(1/64).
    true = torch.linalg.svdvals(contractive._unit(W))[:, 0]
    found = contractive._unit_norms(W)
    assert true.tolist() == pytest.approx([min(scale, 8 ** (-1 / 64))] * 3, rel=1e-12)
    # From above but for the rounding of the true one, and within 8^(1/2048) = 1.001.
    assert bool((found >= true * (1 - 1e-13)).all())
    assert bool((found <= true * 8 ** (1 / 2048) * (1 + 1e-12)).all())


@torch.no_grad()
def test_scores_of_the_state_are_not_swallowed_by_large_scores_of_the_injection():
    block = random_block(config(causal=False, pos_encodings="none"), 5)
    x = torch.ones(2, 4, 8, dtype=torch.float64)
    z = states(block.config, 6, samples=2)
    weight = block.layers[0].attention.injection_proj.weight
    weight.zero_()
    expected = block(z, x)
    # Equal injections: every score is (8 * 1e8)^2 times the head's width and scale, the same for all pairs. Its unit in
    # the last place is about 200.
    weight.fill_(1e8)
    torch.testing.assert_close(block(z, x), expected, rtol=0, atol=1e-13)


def test_a_bound_needs_finite_parameters():
    block = random_block(config(), 1)
    with torch.no_grad():
        block.layers[0].mlp.rho.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"layers.0.mlp.rho holds NaN"):
        block.lipschitz_bound()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        *(({"rate": value}, f"rate={value}; expected a number strictly between 0 and 1")
          for value in (0.0, 1.0, -0.5, 1.5, float("nan"))),
        ({"rate": "0.9"}, "rate='0.9' is a str; expected float"),
        ({"mlp": "gate"}, "unknown mlp='gate'; did you mean 'gated'"),
        ({"conv_kernel_size": 0}, "conv_kernel_size=0; expected an integer >= 1"),
        ({"init_std": -1.0}, "init_std=-1.0; expected a finite number >= 0"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps=0.0; expected a finite number > 0"),
        ({"mlp_t": True}, "mlp_t=True; expected False"),
        ({"norm_in_float32": True}, "norm_in_float32=True; expected False"),
        ({"hidden_size": 9}, "hidden_size=9; expected a multiple of num_heads=2"),
    ],
)  # fmt: skip
def test_configurations_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ConfigError, match="ContractiveConfig: " + words):
        config(**settings)


def test_configurations_survive_a_round_trip():
    cfg = config(rate=0.99, mlp="plain")
    assert ContractiveConfig.from_dict(cfg.to_dict()) == cfg
    with pytest.raises(ConfigError, match=r"unknown ContractiveConfig key 'rat' .value 0.9.; did you mean 'rate'"):
        ContractiveConfig.from_dict({**SMALL, "rat": 0.9})


def test_shapes_are_checked():
    block = random_block(config(), 1)
    with pytest.raises(InputError, match=r"z.shape=\(1, 4, 8\); expected \(2, 4, 8\)"):
        block(torch.zeros(1, 4, 8), torch.zeros(2, 4, 8))
