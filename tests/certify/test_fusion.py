"""Groups of operators are read as one wherever they are one, and only there; the map stays the same."""

import pytest
import torch
from problems import randn
from torch import nn

from fpcheck.certify.enclosure import evaluate
from fpcheck.certify.fusion import fuse
from fpcheck.certify.trace import Graph, trace

D = torch.float64
T, W = 3, 4


def square(z):
    return z.square().mean(-1, keepdim=True)


NORMS = {
    "product": lambda z: z * torch.rsqrt(square(z) + 1e-5),
    "product, the other way": lambda z: torch.rsqrt(square(z) + 1e-5) * z,
    "quotient": lambda z: z / torch.sqrt(square(z) + 1e-5),
    "quotient by a power": lambda z: z / (square(z) + 1e-5) ** 0.5,
    "negative power": lambda z: z * (square(z) + 1e-5) ** -0.5,
    "reciprocal": lambda z: z * torch.sqrt(square(z) + 1e-5).reciprocal(),
    "of products": lambda z: z / ((z * z).mean(1, keepdim=True) + 1e-5).sqrt(),
}
NOT_NORMS = {
    "upside down": lambda z: torch.sqrt(square(z) + 1e-5) / z,
    "times the root": lambda z: z * torch.sqrt(square(z) + 1e-5),
    "over its inverse": lambda z: z / torch.rsqrt(square(z) + 1e-5),
    "the wrong power": lambda z: z * (square(z) + 1e-5) ** -0.25,
    "of another tensor": lambda z: (0.3 * z) / torch.sqrt(square(z) + 1e-5),
    "of a cube": lambda z: z / torch.sqrt((z**4).mean(-1, keepdim=True) + 1e-5),
    "negative shift": lambda z: z / torch.sqrt(square(z) - 1e-5),
    "over both dimensions": lambda z: z / torch.sqrt(z.square().mean((1, 2), keepdim=True) + 1e-5),
}


def fused(f) -> tuple[Graph, Graph]:
    z = randn(1, T, W)
    plain = trace(f, z)
    found = fuse(plain)
    first, second = evaluate(plain, z)[plain.output], evaluate(found, z)[found.output]
    # Both contain the one exact value, to the last digit.
    assert bool(((first.mid - second.mid).abs() <= first.rad + second.rad + 1e-300).all())
    return plain, found


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_is_recognised_however_it_is_written(name):
    _, found = fused(NORMS[name])
    assert [op.target for op in found.ops] == ["input", "rms"]


@pytest.mark.parametrize("name", NOT_NORMS)
def test_what_only_looks_like_a_norm_is_none(name):
    _, found = fused(NOT_NORMS[name])
    assert "rms" not in [op.target for op in found.ops]


@pytest.mark.parametrize(
    "module", [nn.GroupNorm(3, T), nn.LayerNorm((T, W)), nn.LayerNorm(W), nn.GroupNorm(1, T)], ids=str
)  # fmt: skip
def test_layer_and_group_norms_become_rows(module):
    module = module.to(D)
    for i, p in enumerate(module.parameters()):
        p.data += 0.1 * randn(*p.shape, seed=i)
    _, found = fused(module)
    names = [op.target for op in found.ops]
    assert names.count("centred_rms") == 1
    assert not any("native" in name for name in names)


def test_quotients_and_products_are_brought_to_one_shape():
    _, found = fused(lambda z: z / (2 + z[:, :1].cos()) + z[..., :1] * z.sin())
    varying = found.varying()
    for op in found.ops:
        if op.target == "mul.Tensor":
            factors = [a.index for a in op.args if hasattr(a, "index") and varying[a.index]]
            assert all(found.ops[i].shape == op.shape for i in factors) or len(factors) == 1
    assert not any(op.target.startswith("div") for op in found.ops)


def test_a_softmax_by_itself_weighs_the_identity():
    _, found = fused(lambda z: z.softmax(-1))
    assert [op.target for op in found.ops] == ["input", "constant", "weighted_sum", "view.default"]
    _, found = fused(lambda z: z.softmax(1))  # along another dimension: left alone
    assert "_softmax.default" in [op.target for op in found.ops]
    _, found = fused(lambda z: z.softmax(-1) @ z.mT)
    assert "constant" not in [op.target for op in found.ops]
