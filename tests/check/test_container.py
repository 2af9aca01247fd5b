"""Damaged and hostile files: accepted, rejected or malformed, and nothing else, in bounded time and memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as container
from torch import Tensor

from fpcheck.certify.record import digest, save
from fpcheck.certify.search import certify
from fpcheck.check import check
from fpcheck.check.container import parse
from fpcheck.check.document import understand
from fpcheck.check.quick import quick_lines
from fpcheck.errors import CertificateFileError
from fpcheck.loop import Loop

D = torch.float64


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    """A file with most of the steps in it: attention, a norm, gates, a gather and a read-out."""

    def f(z: Tensor, x: Tensor) -> Tensor:
        rows = z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-3)
        p = torch.softmax(rows @ rows.mT, -1) @ rows
        return 0.02 * (p + torch.nn.functional.silu(z) * z.roll(1, -1) + z.mean(1, keepdim=True)) + x

    loop = Loop(f, torch.ones(1, 2, 3, dtype=D) + torch.arange(6, dtype=D).reshape(1, 2, 3))
    z = torch.ones(1, 2, 3, dtype=D)
    with torch.no_grad():
        for _ in range(200):
            z = loop(z)
    found = certify(loop, z, readout=lambda s: s @ torch.eye(3, dtype=D))
    return save(found, tmp_path_factory.mktemp("good") / "one").read_bytes()


def outcome(data: bytes) -> str:
    """What reading and the quick check make of a file; anything but a typed error is a failure of the test."""
    try:
        lines = quick_lines(understand(parse(data)))
    except CertificateFileError:
        return "malformed"
    return "accepted" if all(line.holds for line in lines) else "rejected"


def split(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["fpcheck"]), data[8 + length :]


def joined(header: dict[str, Any], document: Any, body: bytes) -> bytes:
    header = {**header, "__metadata__": {"fpcheck": json.dumps(document)}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def test_the_whole_file_is_accepted(good: bytes):
    assert outcome(good) == "accepted"
    header, document, body = split(good)
    assert outcome(joined(header, document, body)) == "accepted"


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.data())
def test_flipped_bytes_are_never_accepted(good: bytes, data):
    # Every byte counts: arrays have digests, the header has no slack but blanks and texts.
    place = data.draw(st.integers(0, len(good) - 1))
    flip = data.draw(st.integers(1, 255))
    changed = bytearray(good)
    changed[place] ^= flip
    found = outcome(bytes(changed))
    length = int.from_bytes(good[:8], "little")
    if place >= 8 + length:
        assert found != "accepted"


@FUZZ
@given(st.data())
def test_truncated_files_are_malformed(good: bytes, data):
    assert outcome(good[: data.draw(st.integers(0, len(good) - 1))]) == "malformed"
    assert outcome(good + data.draw(st.binary(min_size=1, max_size=9))) == "malformed"


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400) | st.just(-1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(held: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    pairs = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ()
    return found + [place for key, value in pairs for place in places(value, (*path, key))]


def altered(held: Any, path: tuple[Any, ...], value: Any, kind: str) -> None:
    *ahead, last = path
    for key in ahead:
        held = held[key]
    if kind == "put":
        held[last] = value
    elif kind == "drop":
        del held[last]
    elif isinstance(held, dict):
        held[f"{last}!"] = value
    else:
        held.insert(last, value)


@FUZZ
@given(st.data())
def test_a_changed_document_never_breaks_the_reader(good: bytes, data):
    header, document, body = split(good)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(document)))
        kind = data.draw(st.sampled_from(["put", "drop", "add"]))
        try:
            altered(document, path, data.draw(ANYTHING), kind)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
    assert outcome(joined(header, document, body)) in ("accepted", "rejected", "malformed")


@FUZZ
@given(st.data())
def test_a_changed_header_never_breaks_the_reader(good: bytes, data):
    header, document, body = split(good)
    path = data.draw(st.sampled_from([p for p in places(header) if p[0] != "__metadata__"]))
    altered(header, path, data.draw(ANYTHING), data.draw(st.sampled_from(["put", "drop", "add"])))
    assert outcome(joined(header, document, body)) in ("accepted", "rejected", "malformed")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_full_check_survives_changed_numbers(good: bytes, tmp_path_factory, data):
    # Any float anywhere, with digests that fit: a report or a typed error.
    _, document, _ = split(good)
    arrays = parse(good).arrays
    tensors = {name: torch.from_numpy(array.values.copy()).reshape(array.shape) for name, array in arrays.items()}
    name = data.draw(st.sampled_from([n for n, v in tensors.items() if v.is_floating_point()]))
    flat = tensors[name].view(-1)
    flat[data.draw(st.integers(0, len(flat) - 1))] = data.draw(
        st.floats(allow_nan=True) | st.sampled_from([1e308, -1e308, 1e-308, 5e-324, 0.0, -0.0])
    )
    document["arrays"] = {key: digest(value) for key, value in tensors.items()}
    path = tmp_path_factory.mktemp("fuzz") / "one"
    path.write_bytes(container(tensors, {"fpcheck": json.dumps(document)}))
    try:
        report = check(path, full=True)
    except CertificateFileError:
        return
    assert report.lines


HOSTILE = {
    "nothing": b"",
    "short": b"1234567",
    "long header": (2**62).to_bytes(8, "little") + b"{}",
    "no header": (2).to_bytes(8, "little") + b"{}",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "a number": (2).to_bytes(8, "little") + b"12",
    "deep": (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "deep objects": (600_000).to_bytes(8, "little") + b'{"a":' * 120_000,
    "not text": (4).to_bytes(8, "little") + b"\xff\xfe\xfd\xfc",
    "pickle": b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "zip": b"PK\x03\x04" + bytes(100),
    "digits": (100_000).to_bytes(8, "little") + b"1" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_malformed(name: str):
    assert outcome(HOSTILE[name]) == "malformed"


def bombs(good: bytes) -> dict[str, bytes]:
    """Small files that ask for much."""
    header, document, body = split(good)

    def with_steps(*steps: Any) -> bytes:
        held = json.loads(json.dumps(document))
        held["map"]["steps"] += list(steps)
        return joined(header, held, body)

    last = len(document["map"]["steps"])
    huge = 2**22
    doubling = [{"op": "gather", "of": [last + i, last + i], "index": "map.0"} for i in range(3)]
    return {
        "entries": with_steps({"op": "take", "of": 0, "offset": 0, "sizes": [huge, huge], "strides": [0, 0]}),
        "many entries": with_steps(
            *({"op": "take", "of": 0, "offset": 0, "sizes": [huge // 2], "strides": [0]} for _ in range(50))
        ),
        "work": with_steps(
            {"op": "take", "of": 0, "offset": 0, "sizes": [2048, 1024], "strides": [0, 0]},
            {
                "op": "matmul", "of": [last + 1, last + 1], "batch": 1, "rows": 2048, "inner": 1024, "columns": 2048,
            },
        ),
        "outside": with_steps({"op": "take", "of": 0, "offset": 5, "sizes": [3], "strides": [1]}),
        "before": with_steps({"op": "take", "of": 0, "offset": 0, "sizes": [3], "strides": [-1]}),
        "later register": with_steps({"op": "mul", "of": [last + 5, 0]}),
        "own register": with_steps({"op": "mul", "of": [last + 1, 0]}),
        "code": with_steps({"op": "__import__('os').system('true')", "of": 0}),
        "unknown operator": with_steps({"op": "fft", "of": 0}),
        "array by path": with_steps({"op": "data", "array": "../../etc/passwd"}),
        "strange gather": with_steps(*doubling),
        "power": with_steps({"op": "power", "of": 0, "exponent": 1e6}),
        "shape": joined(
            {**header, "centre": {**header["centre"], "shape": [2**40, 2**40]}}, document, body
        ),
        "offsets": joined(
            {**header, "centre": {**header["centre"], "data_offsets": [0, 2**63]}}, document, body
        ),
        "overlap": joined({**header, "again": header["centre"]}, document, body),
        "unused array": joined(
            {**header, "again": {"dtype": "F64", "shape": [0], "data_offsets": [0, 0]}}, document, body
        ),
        "state": joined(header, {**document, "state_shape": [1, 2**31]}, body),
        "two samples": joined(header, {**document, "state_shape": [2, 3]}, body),
        "version": joined(header, {**document, "version": 2}, body),
        "verdict": joined(header, {**document, "verdict": "true for all inputs"}, body),
        "extra field": joined(header, {**document, "signed_by": "nobody"}, body),
        "other theorem": joined(
            header,
            {**document, "bounds": {**document["bounds"], "rate": {"value": 0.1, "theorem": "Z9"}}},
            body,
        ),
        "negative": joined(
            header,
            {**document, "bounds": {**document["bounds"], "rate": {"value": -0.5, "theorem": "Q3"}}},
            body,
        ),
    }  # fmt: skip


def test_small_files_that_ask_for_much_are_malformed_at_little_cost(good: bytes):
    for name, data in bombs(good).items():
        tracemalloc.start()
        found = outcome(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == "malformed", name
        # The largest register that is allowed, 2^22 indices of 8 bytes, a few times over.
        assert peak < 200e6, name


def test_a_key_twice_and_numbers_that_are_none_are_malformed(good: bytes):
    header, document, body = split(good)
    text = json.dumps(document)
    for old, new in (
        ('"verdict":', '"verdict": "unknown", "verdict":'),
        ('"value": ', '"value": NaN, "values": '),
        ('"shift": 0.0', '"shift": 1e999'),
        ('"shift": 0.0', '"shift": Infinity'),
    ):
        changed = text.replace(old, new, 1)
        assert changed != text
        whole = {**header, "__metadata__": {"fpcheck": changed}}
        raw = json.dumps(whole).encode()
        assert outcome(len(raw).to_bytes(8, "little") + raw + body) == "malformed"


def test_what_is_no_file_is_malformed(tmp_path: Path):
    for path in (tmp_path, tmp_path / "none", Path("/dev/null")):
        with pytest.raises(CertificateFileError):
            check(path)
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(2**30)  # sparse
    with pytest.raises(CertificateFileError, match="size="):
        check(big)
