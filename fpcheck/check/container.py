"""The outer shell of a certificate file: a safetensors container, read with limits and without trust.

Eight bytes give the length of a JSON header, the header names arrays and where they lie, the arrays follow. Nothing in
a file is a path, code or a pickle; sizes are known to be possible before anything is allocated.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, final

import numpy as np
from numpy.typing import NDArray

from fpcheck.errors import CertificateFileError

__all__ = ["Array", "Container", "parse_json", "read_container", "refuse"]

# choice: the largest file that is opened; a certificate of 768 numbers takes some 5 million bytes.
MAX_FILE = 64 * 2**20
# choice: of the header, which holds the map as JSON text.
MAX_HEADER = 4 * 2**20
# choice: how deep a document may be nested; the format needs 6.
MAX_DEPTH = 16
# choice: dimensions of an array.
_MAX_DIMENSIONS = 8
# definition: bytes in front of the header, which hold its length.
_LENGTH = 8

# definition: the kinds of numbers, with bytes each. All widen to float64, whole numbers to 64 bits, without loss.
_KINDS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "I64": "<i8", "BOOL": "|u1"}


def refuse(text: str) -> NoReturn:
    """End reading: the file is not a certificate that this version understands."""
    raise CertificateFileError(text)


@final
@dataclass(frozen=True, eq=False)
class Array:
    """One array of the file.

    Attributes:
        kind: As in the header: F64, F32, F16, BF16, I32, I64, BOOL.
        shape: Its shape.
        values: Flat, as stored.
        digest: SHA-256 of kind, shape and bytes, in hexadecimal.
    """

    kind: str
    shape: tuple[int, ...]
    values: NDArray[Any]
    digest: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def reals(self) -> NDArray[np.float64]:
        """The entries as float64, exactly; whole numbers beyond 2^53 do not occur."""
        if self.kind == "BF16":
            # definition: the upper half of a float32
            return (self.values.astype("<u4") << 16).view("<f4").astype(np.float64)
        return self.values.astype(np.float64)


@final
@dataclass(frozen=True, eq=False)
class Container:
    """A file's document and arrays."""

    document: dict[str, Any]
    arrays: dict[str, Array]


def read_container(path: Path) -> Container:
    """Open a file.

    Raises:
        CertificateFileError: Not a regular file, too large, or not a container with a certificate's document.
    """
    try:
        if not path.is_file():
            refuse(f"{path}: no such file; expected a certificate written by `fpcheck certify --certificates`")
        size = path.stat().st_size
        if size > MAX_FILE:
            refuse(f"{path}: size={size} bytes; expected at most {MAX_FILE}")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        refuse(f"{path}: cannot be read ({error.strerror})")
    return parse(data)


def parse(data: bytes) -> Container:
    """The same from a file's bytes."""
    if not _LENGTH <= len(data) <= MAX_FILE:
        refuse(f"size={len(data)} bytes; expected {_LENGTH} to {MAX_FILE}")
    length, most = int.from_bytes(data[:_LENGTH], "little"), min(MAX_HEADER, len(data) - _LENGTH)
    if not 2 <= length <= most:
        refuse(f"header length={length}; expected 2 to {most}: no safetensors container")
    header = parse_json(data[_LENGTH : _LENGTH + length], "header")
    if not isinstance(header, dict):
        refuse("header: expected a JSON object")
    extra = header.pop("__metadata__", None)
    if not isinstance(extra, dict) or set(extra) != {"fpcheck"} or not isinstance(extra["fpcheck"], str):
        refuse("header: expected __metadata__ with the one text `fpcheck`: this is no certificate")
    document = parse_json(extra["fpcheck"].encode("utf-8", "surrogatepass"), "document")
    if not isinstance(document, dict):
        refuse("document: expected a JSON object")
    return Container(document, _arrays(header, memoryview(data)[_LENGTH + length :]))


def _arrays(header: dict[str, Any], body: memoryview) -> dict[str, Array]:
    spans = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            refuse(f"array {name!r}: expected dtype, shape and data_offsets")
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in _KINDS:
            refuse(f"array {name!r}: dtype={kind!r}; expected one of {', '.join(_KINDS)}")
        if not (_counts(shape, _MAX_DIMENSIONS) and _counts(offsets, 2) and len(offsets) == 2):
            refuse(f"array {name!r}: shape and data_offsets must be lists of whole numbers from 0 on")
        width = np.dtype(_KINDS[kind]).itemsize
        if offsets[1] - offsets[0] != math.prod(shape) * width:
            refuse(f"array {name!r}: {offsets[1] - offsets[0]} bytes for shape {shape} of {kind}")
        spans.append((offsets[0], offsets[1], name, kind, tuple(shape)))
    spans.sort(key=lambda span: (span[0], span[1]))
    end = 0
    for start, stop, name, _, _ in spans:
        if start != end:
            refuse(f"array {name!r}: begins at byte {start}; expected {end}, without gaps or overlaps")
        end = stop
    if end != len(body):
        refuse(f"arrays end at byte {end}, the file at {len(body)}")
    found = {}
    for start, stop, name, kind, shape in spans:
        raw = body[start:stop]
        digest = hashlib.sha256(f"{kind} {list(shape)}\n".encode())
        digest.update(raw)
        values = np.frombuffer(raw, dtype=_KINDS[kind])
        if kind == "BOOL" and bool((values > 1).any()):
            refuse(f"array {name!r}: BOOL with a byte above 1")
        found[name] = Array(kind, shape, values, digest.hexdigest())
    return found


def _counts(value: Any, most: int) -> bool:
    """Whether a value is a list of whole numbers, none of which can overflow anything."""
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(v) is int and 0 <= v <= MAX_FILE for v in value)
        and math.prod(value[:1] and [max(v, 1) for v in value]) <= MAX_FILE**2
    )


def parse_json(data: bytes, what: str) -> Any:
    """A JSON text: no duplicate keys, no NaN or infinity, not nested too deep."""
    depth = 0
    inside = escaped = False
    for byte in data:
        if inside:
            if escaped:
                escaped = False
            elif byte == 0x5C:  # definition: a backslash
                escaped = True
            elif byte == 0x22:  # definition: a quotation mark
                inside = False
        elif byte == 0x22:  # definition: a quotation mark
            inside = True
        elif byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                refuse(f"{what}: nested deeper than {MAX_DEPTH}")
        elif byte in b"]}":
            depth -= 1
    try:
        return json.loads(data, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)
    except (ValueError, RecursionError) as error:
        if isinstance(error, CertificateFileError):
            raise
        raise CertificateFileError(f"{what}: not JSON ({error})") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        refuse("JSON object with a key twice")
    return found


def _constant(text: str) -> Any:
    refuse(f"JSON with {text}; expected finite numbers")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        refuse(f"JSON with {text}; expected numbers within float64")
    return value
