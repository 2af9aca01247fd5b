"""What the checker accepts and what it refuses: certificates of small blocks, and forgeries of every figure in them.

A recorded figure that moves in the unsound direction, an array that differs in one number, and certificates for maps
that expand are each turned down with the line that is false.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import curved_blocks
import numpy as np
import pytest
import torch
from problems import FPRM_VARIANTS, normal, orthogonal, randn, rotation, small_fprm
from problems import tanh as tanh_problem
from safetensors import safe_open
from safetensors.torch import save as container
from torch import Tensor, nn
from torch.nn import functional as F

from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.record import digest, save
from fpcheck.certify.search import certify
from fpcheck.certify.settings import Fast, Sharp
from fpcheck.check import check, read
from fpcheck.errors import CertificateFileError, InputError, OutputError, UnsupportedOperatorError
from fpcheck.loop import Loop

D = torch.float64
T, W = 3, 4


class Step(nn.Module):
    """F(z; x) = f(module, z) + x."""

    def __init__(self, f: Callable[..., Tensor], module: nn.Module | None = None) -> None:
        super().__init__()
        self.module, self.f = module, f

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.f(self.module, z) + x


def step(f: Callable[..., Tensor], module: nn.Module | None = None) -> Loop:
    return Loop(Step(f, module), 0.5 * randn(1, T, W, seed=1))


def encoder(*, norm_first: bool = True, causal: bool = False, activation: str = "gelu") -> Loop:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(W, 2, 8, batch_first=True, norm_first=norm_first, activation=activation)
    layer = layer.to(D).eval()
    mask = torch.zeros(T, T, dtype=D).masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
    return step(lambda m, z: 0.4 * m(z, src_mask=mask if causal else None), layer)


def gates() -> Loop:
    def f(m: Any, z: Tensor) -> Tensor:
        a, b = z.chunk(2, -1)
        tanh_form = F.gelu(a, approximate="tanh") * b
        return 0.3 * torch.cat([torch.tanh(a) * b + tanh_form, F.gelu(a) * b + a * b + torch.sigmoid(b) * a], -1)

    return step(f)


def mixed() -> Loop:
    """Means, sums, divisions, padding, choices, entrywise functions, a convolution with groups and a bias."""
    torch.manual_seed(1)
    conv = nn.Conv1d(W, W, 2, groups=2, padding=1).to(D)
    keep, gain = torch.tensor([True, False, True, True]), torch.linspace(0.5, 2, W, dtype=D)

    def f(m: Any, z: Tensor) -> Tensor:
        windows = m(z.mT)[..., :T].mT
        padded = F.pad(z, (1, 1), value=0.25)[..., 1:-1]
        chosen = torch.where(keep, padded, 0.1 * z.flip(-1)) + z.masked_fill(keep, 0.3)
        centred = z - z.mean(-1, keepdim=True) + z.sum(1, keepdim=True) / 7
        return 0.15 * (
            windows
            + chosen
            + F.silu(centred)
            + gain.exp().log() * gain.rsqrt() * gain.square() * gain**-3 * torch.sigmoid(z)
        )

    return step(f, conv)


def smooth() -> Loop:
    """Functions that bend without limit on the whole line, and powers, roots and quotients of the state."""

    def f(m: Any, z: Tensor) -> Tensor:
        far = 6 + z
        simple = z.exp() + far.log() + far.sqrt() + far.rsqrt() + z.sin() + z.cos() + torch.expm1(0.5 * z) + z.erf()
        return 0.03 * (simple + 0.1 * z**3 + torch.log1p(z * z) + far**1.5 + z / (2 + z.flip(-1).cos()) + far**-2)

    return step(f)


def layer_norm_over_tokens() -> Loop:
    return step(lambda m, z: 0.3 * (z * torch.rsqrt(z.pow(2).mean(1, keepdim=True) + 1e-3)))


def fprm(variant: str, **more: Any) -> Loop:
    return small_fprm(variant, L_layers=1, hidden_size=4, mlp_multiple=4, **more)[0].sample(0)


def with_state(loop: Loop) -> tuple[Loop, Tensor]:
    return loop, randn(1, T, W, seed=2)


def tanh_loop() -> tuple[Loop, Tensor]:
    held = tanh_problem()
    return held.loop().sample(0), held.known["fixed_point"][:1]


def linear(A: Tensor) -> tuple[Loop, Tensor]:
    return Loop(lambda z, x: z @ A.T + x, randn(1, len(A), seed=3)), torch.zeros(1, len(A), dtype=D)


def soft_expanding() -> tuple[Loop, Tensor]:
    """1.5 tanh with x = 0: 0 repels with rate 1.5 in every direction."""
    return Loop(lambda z, x: 1.5 * torch.tanh(z) + x, torch.zeros(1, 3, dtype=D)), torch.zeros(1, 3, dtype=D)


BLOCKS: dict[str, Callable[[], tuple[Loop, Tensor]]] = {
    "tanh": tanh_loop,
    "linear": lambda: linear(normal(0.7, -0.4, 0.2)),
    "damped": lambda: (linear(1.2 * rotation(80))[0].damped(0.4), torch.zeros(1, 2, dtype=D)),
    "encoder, pre-norm": lambda: with_state(encoder()),
    "encoder, post-norm": lambda: with_state(encoder(norm_first=False)),
    "encoder, causal": lambda: with_state(encoder(causal=True)),
    "encoder, relu": lambda: with_state(encoder(activation="relu")),
    "attention": lambda: with_state(step(lambda m, z: 0.4 * F.scaled_dot_product_attention(*[z[:, None]] * 3)[:, 0])),
    "gates": lambda: with_state(gates()),
    "mixed": lambda: with_state(mixed()),
    "smooth": lambda: with_state(smooth()),
    "norm over tokens": lambda: with_state(layer_norm_over_tokens()),
    # Blocks with other kinds of steps: roots of means, quotients, weights without values, kinks.
    **{
        name: curved_blocks.BLOCKS[name]
        for name in ("rms, not recognised", "broadcast quotient", "softmax of itself", "fixed values", "modulus, clamp")
    },
    **{
        f"fprm, {name}": (
            lambda name=name: (fprm(name), small_fprm(name, L_layers=1, hidden_size=4, mlp_multiple=4)[1][:1])
        )
        for name in FPRM_VARIANTS
        # No contraction near their states, or no bound on the curvature.
        if name not in ("no scale, peri-norm", "conv2d, puzzle token", "input-dependent, post-norm")
    },
    "repelling": soft_expanding,
}


SETTINGS = {"fast": Fast(), "sharp": Sharp()}


@cache
def certified(name: str, setting: str = "fast") -> tuple[Certificate, Loop]:
    loop, z = BLOCKS[name]()
    readout = None
    if name != "repelling":
        with torch.no_grad():
            for _ in range(400):
                z = loop(z)
    if name in ("encoder, pre-norm", "tanh"):
        weights = randn(5, z.shape[-1], seed=4)
        readout = lambda state: state @ weights.T  # noqa: E731
    found = certify(loop, z, readout=readout, setting=SETTINGS[setting])
    assert found.verdict is not Verdict.UNKNOWN, found.reason
    return found, loop


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, setting: str = "fast") -> Path:
        found, loop = certified(name, setting)
        return save(found, tmp_path / "one.certificate", loop=loop)

    return write


def parts(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, "pt") as held:
        return json.loads(held.metadata()["fpcheck"]), {
            name: held.get_tensor(name).clone() for name in list(held.keys())
        }


def put(path: Path, document: dict[str, Any], arrays: dict[str, Tensor], *, honest: bool = True) -> Path:
    """Write a forgery; with ``honest`` the digests fit the changed arrays."""
    arrays = {name: value.contiguous() for name, value in arrays.items()}
    if honest:
        document["arrays"] = {name: digest(value) for name, value in arrays.items()}
    path.write_bytes(container(arrays, {"fpcheck": json.dumps(document)}))
    return path


def false_line(path: Path, *, full: bool) -> str:
    report = check(path, full=full)
    assert not report.accepted
    assert report.first_false is not None
    return report.first_false.name


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", BLOCKS)
def test_certificates_are_accepted(name: str, setting: str, written):
    path = written(name, setting)
    quick, full = check(path), check(path, full=True)
    assert quick.accepted, quick.first_false
    assert full.accepted, full.first_false
    assert len(full.lines) > len(quick.lines) > 10
    expected = "proved to exist" if name == "repelling" else "proved attracting"
    assert full.verdict == expected


@pytest.mark.parametrize("name", BLOCKS)
def test_the_map_of_the_file_is_the_loop(name: str, written):
    # The program run by the checker, at the centre, against one step of the loop in float64: a few roundings apart.
    from fpcheck.check.values import evaluate, floats, precision

    held = read(written(name))
    _, loop = certified(name)
    with precision():
        values = evaluate(held.program, held.centre)
        found, _ = floats(values[held.program.output])
    with torch.no_grad():
        expected = loop(torch.from_numpy(held.centre.copy()).reshape(held.state_shape)).reshape(-1).numpy()
    # Some hundred roundings of 1e-16 of entries below 10.
    assert float(np.abs(found - expected).max()) <= 1e-12


# Every figure, moved by a little in the direction that claims more, with the line that must notice: by the quick check
# where the inequalities among the figures are broken, else by the full one.
FORGERIES: dict[str, tuple[str, float, str]] = {
    "residual": ("full", 0.5, "residual"),
    "centre_rate": ("full", 0.98, "centre_rate"),
    "radius": ("full", 1.5, "rate"),
    "rate": ("full", 0.7, "rate"),
    "near_radius": ("quick", 0.5, "residual <= (1 - near rate) near radius"),
    "near_rate": ("quick", 0.9, "centre rate <= near rate"),
    "error_bound": ("quick", 1 - 1e-9, "residual <= (1 - near rate) error bound"),
    "norm": ("full", 1 - 1e-5, "norm"),
    "inverse_norm": ("full", 0.99, "inverse_norm"),
    "euclidean_radius": ("quick", 1 + 1e-9, "Euclidean radius |L| <= radius"),
    "euclidean_error_bound": ("quick", 1 - 1e-9, "error bound |L^-1| <= Euclidean error bound"),
}


# The same in the sharp setting, of which the fast bounds alone prove less.
SHARP_FORGERIES: dict[str, tuple[str, float, str]] = {
    **{name: FORGERIES[name] for name in ("centre_rate", "radius", "near_rate", "euclidean_radius")},
    "tau": ("full", 1 - 1e-4, "tau"),
    "rate": ("full", 0.8, "rate"),
}


@pytest.mark.parametrize("field", SHARP_FORGERIES)
@pytest.mark.parametrize("name", ["encoder, causal", "fprm, plain"])
def test_a_figure_of_a_sharp_certificate_that_claims_more_is_rejected(name: str, field: str, written, tmp_path: Path):
    level, factor, line = SHARP_FORGERIES[field]
    document, arrays = parts(written(name, "sharp"))
    bounds = document["bounds"]
    bounds[field]["value"] *= factor
    if field == "radius":
        bounds["euclidean_radius"]["value"] *= factor
    path = put(tmp_path / "forged", document, arrays)
    assert check(path).accepted is (level == "full")
    assert false_line(path, full=True) == line


@pytest.mark.parametrize("name", ["encoder, causal", "fprm, plain"])
def test_the_sharp_form_is_needed(name: str, written, tmp_path: Path):
    # The same figures, called fast: the fast bound is too large for them.
    document, arrays = parts(written(name, "sharp"))
    document["setting"], document["bounds"]["tau"] = "fast", None
    path = put(tmp_path / "forged", document, arrays)
    assert check(path).accepted
    assert false_line(path, full=True) == "rate"


@pytest.mark.parametrize("field", FORGERIES)
def test_a_figure_that_claims_more_is_rejected(field: str, written, tmp_path: Path):
    level, factor, line = FORGERIES[field]
    document, arrays = parts(written("encoder, pre-norm"))
    bounds = document["bounds"]
    bounds[field]["value"] *= factor
    if field == "radius":  # the inequalities among the figures still hold: only the curvature is too large
        bounds["euclidean_radius"]["value"] *= factor
    path = put(tmp_path / "forged", document, arrays)
    assert check(path).accepted is (level == "full")
    assert false_line(path, full=True) == line


def test_all_figures_are_covered_by_forgeries(written):
    document, _ = parts(written("encoder, pre-norm"))
    assert set(FORGERIES) == set(document["bounds"]) - {"tau"}


def test_decisions_that_claim_more_are_rejected(written, tmp_path: Path):
    document, arrays = parts(written("encoder, pre-norm"))
    arrays["decision_radius"][1] *= 1 + 1e-5
    assert false_line(put(tmp_path / "a", document, arrays), full=True) == "decision radius of token 1"
    document, arrays = parts(written("encoder, pre-norm"))
    arrays["answer"][2] = (arrays["answer"][2] + 1) % 5
    assert false_line(put(tmp_path / "b", document, arrays), full=True) == "answer of token 2"
    document, arrays = parts(written("encoder, pre-norm"))
    arrays["decision_radius"][0] = document["bounds"]["error_bound"]["value"]
    assert document["decisions"]["stable"][0]
    assert false_line(put(tmp_path / "c", document, arrays), full=False) == "error bound < decision radius of token 0"


def test_an_array_that_differs_is_noticed_by_its_digest(written, tmp_path: Path):
    document, arrays = parts(written("tanh"))
    for name, value in arrays.items():
        changed = {**arrays, name: value.clone()}
        changed[name].view(-1)[0] += 1
        path = put(tmp_path / "forged", document, changed, honest=False)
        assert false_line(path, full=False) == f"SHA-256 of array {name}"


@pytest.mark.parametrize("name", ["encoder, pre-norm", "fprm, causal, conv1d"])
def test_another_map_centre_or_metric_is_rejected_by_the_full_check(name: str, written, tmp_path: Path):
    # With digests that fit: the figures no longer follow.
    document, arrays = parts(written(name))
    floats = [key for key, value in arrays.items() if value.is_floating_point() and key.startswith("map.")]
    rejected = 0
    for key in [*floats, "centre", "metric"]:
        changed = {**arrays, key: arrays[key] * (1 + 1e-3) + 1e-3 * arrays[key].isfinite()}
        path = put(tmp_path / "forged", document, changed)
        assert check(path).accepted
        report = check(path, full=True)
        rejected += not report.accepted
        # A mask of minus infinity and zeros, or a shift that attention does not see, may change without consequence.
        if not report.accepted:
            assert report.first_false.name.split(" of ")[0] in {*FORGERIES, "decision radius"}
    assert rejected >= len(floats)  # all but at most two
    # The same with a number of the program.
    steps = document["map"]["steps"]
    scaled = next(s for s in steps if s["op"] == "sum" and len(s["scale"]) == 1)
    scaled["scale"][0] *= 1.001
    assert not check(put(tmp_path / "forged", document, arrays), full=True).accepted


@pytest.mark.parametrize("A", [1.2 * rotation(80), 1.05 * orthogonal(3, 1), normal(0.5, 1.001)])
def test_expanding_maps_are_never_accepted_as_attracting(A: Tensor, tmp_path: Path):
    # An honest certificate of a contraction, with the weights replaced, and every figure claimed that the quick check
    # asks for: the full check finds the rate at the centre.
    n = len(A)
    loop, z = linear(0.5 * torch.eye(n, dtype=D) if n > 2 else 0.5 * rotation(80))
    with torch.no_grad():
        for _ in range(200):
            z = loop(z)
    document, arrays = parts(save(certify(loop, z), tmp_path / "honest"))
    weights = [key for key, value in arrays.items() if key.startswith("map.") and value.numel() == n * n]
    assert len(weights) == 1
    centre = torch.linalg.solve(torch.eye(n, dtype=D) - A, randn(1, n, seed=3).T).T
    arrays = {**arrays, weights[0]: A.clone().reshape(arrays[weights[0]].shape), "centre": centre.reshape(-1)}
    path = put(tmp_path / "forged", document, arrays)
    assert check(path).accepted
    assert false_line(path, full=True) in ("residual", "centre_rate")
    document["bounds"]["residual"]["value"] = 1e-9
    document["bounds"]["near_radius"]["value"] = document["bounds"]["radius"]["value"]
    document["bounds"]["near_rate"]["value"] = document["bounds"]["rate"]["value"]
    document["bounds"]["error_bound"]["value"] = document["bounds"]["radius"]["value"]
    document["bounds"]["euclidean_error_bound"]["value"] = 10 * document["bounds"]["radius"]["value"]
    path = put(tmp_path / "forged", document, arrays)
    assert check(path).accepted
    assert false_line(path, full=True) == "centre_rate"


def test_a_point_that_exists_is_not_accepted_as_attracting(written, tmp_path: Path):
    document, arrays = parts(written("repelling"))
    document["verdict"] = "proved attracting"
    assert false_line(put(tmp_path / "forged", document, arrays), full=True) == "centre_rate"


def test_what_is_not_covered_is_said_and_never_accepted(written, tmp_path: Path):
    document, arrays = parts(written("encoder, pre-norm"))
    attend = next(s for s in document["map"]["steps"] if s["op"] == "attend")
    changed = {**attend, "op": "median"}
    document["map"]["steps"] = [changed if s is attend else s for s in document["map"]["steps"]]
    for full in (False, True):
        with pytest.raises(CertificateFileError, match="not covered: op='median'"):
            check(put(tmp_path / "unknown", document, arrays), full=full)


def test_an_operator_without_words_is_refused_by_name(tmp_path: Path):
    loop, z = curved_blocks.BLOCKS["contractive"]()
    with pytest.raises(UnsupportedOperatorError, match=r"operator=amax\.default .* has no words"):
        save(certify(loop, curved_blocks.settled(loop, z)), tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_where_nothing_was_proved(tmp_path: Path):
    loop, z = linear(normal(1.0, 0.5))
    with pytest.raises(InputError, match="verdict=UNKNOWN"):
        save(certify(loop, z), tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="cannot be written"):
        save(certified("tanh")[0], tmp_path / "no" / "such" / "folder")


def test_weights_are_named_by_their_digests(written):
    held = read(written("encoder, pre-norm"))
    _, loop = certified("encoder, pre-norm")
    recorded = {name.removeprefix("weights "): value for name, value in held.sources.items() if "weights" in name}
    assert recorded == {name: digest(value) for name, value in loop.block.state_dict().items()}
    # And the arrays of the map are these weights, as the block has them.
    inside = {array.digest for array in held.arrays.values()}
    assert sum(value in inside for value in recorded.values()) >= 10


def test_head_room_is_kept(written):
    # The recorded rates leave 5 % of what the maker left: (1 - recorded) = 0.95 (1 - kappa).
    found, _ = certified("encoder, pre-norm")
    document, _ = parts(written("encoder, pre-norm"))
    assert 1 - document["bounds"]["rate"]["value"] == pytest.approx(0.95 * (1 - found.rate), rel=1e-9)
    assert math.isclose(document["bounds"]["residual"]["value"], 1.01 * found.residual, rel_tol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", sorted(set(curved_blocks.BLOCKS) - set(BLOCKS) - {"contractive"}))
def test_every_block_that_is_proved_is_accepted(name: str, setting: str, tmp_path: Path):
    loop, z = curved_blocks.BLOCKS[name]()
    z = curved_blocks.settled(loop, z)
    if not bool(z.isfinite().all()):
        assert name == "smooth functions"  # these grow without limit from there
        return
    found = certify(loop, z, setting=SETTINGS[setting])
    if found.verdict is Verdict.UNKNOWN:
        assert name in ("fprm, no scale, peri-norm", "fprm, conv2d, puzzle token")  # no contraction near their states
        return
    report = check(save(found, tmp_path / "one"), full=True)
    assert report.accepted, report.first_false


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_certificate_of_the_shipped_model_is_accepted(setting: str, tmp_path: Path):
    from fpcheck.settle import settle
    from fpcheck.target import Data, find_target

    target = find_target("s3", Data(1, 0, None, None, None)).to(D)
    loop = Loop(target.block, target.x, z0=target.z0).sample(0)
    z = settle(loop, target.z0, max_steps=2000).points
    found = certify(loop, z.detach(), readout=target.readout, setting=SETTINGS[setting])
    assert found.setting == setting
    path = save(found, tmp_path / "s3.certificate", loop=loop)
    assert path.stat().st_size <= 10_000_000
    assert check(path).accepted
    report = check(path, full=True)
    assert report.accepted, report.first_false
