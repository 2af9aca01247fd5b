"""A certificate as it stands in a file: every field checked for kind, range and fit, and nothing believed yet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from fpcheck.check.clouds import Floats
from fpcheck.check.container import Array, Container, read_container, refuse
from fpcheck.check.program import Program, fields, number, read_program, truth, whole

__all__ = ["BOUNDS", "Answers", "Document", "read", "understand"]

FORMAT = "fpcheck-certificate"
VERSION = 1
# choice: the largest state; a full check takes time with its cube.
MAX_STATE = 4096

BOUNDS = {
    "residual": "Q4",
    "centre_rate": "R2",
    "tau": "Q2",
    "radius": "Q4",
    "rate": "Q3",
    "near_radius": "Q4",
    "near_rate": "Q3",
    "error_bound": "Q4",
    "norm": "R3",
    "inverse_norm": "R2",
    "euclidean_radius": "Q4",
    "euclidean_error_bound": "Q4",
}
"""What a certificate states, each with the theorem that it rests on."""
# definition: the verdicts, with the theorem behind each.
VERDICTS = {"proved attracting": "Q4", "proved to exist": "K1"}
SETTINGS = ("fast", "sharp")
_FORMS = ("identity", "lower", "upper", "full")


@final
@dataclass(frozen=True, eq=False)
class Answers:
    """What a certificate says about decoded answers.

    Attributes:
        program: The read-out, from the state to tokens times classes.
        classes: How many.
        answer: By token.
        radius: By token: no state nearer than this, in the metric, has another answer. Infinite with one class.
        stable: By token: whether the fixed point's answer is claimed to be the centre's.
    """

    program: Program
    classes: int
    answer: tuple[int, ...]
    radius: tuple[float, ...]
    stable: tuple[bool, ...]


@final
@dataclass(frozen=True, eq=False)
class Document:
    """A certificate.

    Attributes:
        statement: In words.
        verdict: One of two.
        setting: "fast" or "sharp".
        state_shape: With the leading 1.
        program: The map.
        centre: ``(n)``.
        L: The metric, ``(n, n)``.
        bounds: By name; tau is None in the fast setting.
        answers: None without a read-out.
        digests: SHA-256 of every array, as recorded; `arrays` has the true ones.
        arrays: Of the file.
        sources: SHA-256 of the block's weights ("weights NAME") and of the injection ("injection NAME").
        written_by: Which version wrote it.
    """

    statement: str
    verdict: str
    setting: str
    state_shape: tuple[int, ...]
    program: Program
    centre: Floats
    L: Floats
    bounds: dict[str, float | None]
    answers: Answers | None
    digests: dict[str, str]
    arrays: dict[str, Array]
    sources: dict[str, str]
    written_by: str

    def bound(self, name: str) -> float:
        """A recorded figure."""
        value = self.bounds[name]
        assert value is not None
        return value


def read(path: Path) -> Document:
    """Read a certificate file.

    Raises:
        CertificateFileError: It is not one, or it is damaged, or it has what this version does not know.
    """
    return understand(read_container(path))


def understand(held: Container) -> Document:
    """The same from an opened container."""
    document, arrays = held.document, held.arrays
    if document.get("format") != FORMAT or type(document.get("version")) is not int:
        refuse(f"format={document.get('format')!r}; expected {FORMAT!r} with a version")
    if document["version"] != VERSION:
        refuse(f"version={document['version']}; expected {VERSION}: another version of fpcheck wrote this file")
    fields(
        document,
        "document",
        {
            "format", "version", "written_by", "statement", "verdict", "setting", "state_shape", "map", "metric",
            "bounds", "decisions", "arrays", "sources",
        },
    )  # fmt: skip
    shape = document["state_shape"]
    if not isinstance(shape, list) or not 2 <= len(shape) <= 8:  # choice: dimensions
        refuse(f"state_shape={shape!r}; expected 2 to 8 whole numbers")
    shape = tuple(whole(v, "state_shape", 1, MAX_STATE) for v in shape)
    n = math.prod(shape)
    if n > MAX_STATE or shape[0] != 1:
        refuse(f"state_shape={shape}; expected one sample of at most {MAX_STATE} numbers")
    used: set[str] = set()
    program = read_program(document["map"], n, arrays, used)
    if program.size(program.output) != n:
        refuse(f"map: {program.size(program.output)} entries come out; expected {n}")
    centre = _floats(arrays, "centre", n, used)
    found = Document(
        _text(document["statement"], "statement"),
        _choice(document["verdict"], "verdict", tuple(VERDICTS)),
        _choice(document["setting"], "setting", SETTINGS),
        shape,
        program,
        centre,
        _metric(document["metric"], n, arrays, used),
        _bounds(document["bounds"], document["setting"]),
        _answers(document["decisions"], n, arrays, used),
        _digests(document["arrays"], "arrays"),
        arrays,
        _sources(document["sources"]),
        _text(document["written_by"], "written_by"),
    )
    if used != set(arrays) or set(found.digests) != used:
        refuse(f"arrays: {sorted((set(arrays) | set(found.digests)) ^ used)[:5]} are unused or not listed")
    return found


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        refuse(f"{where}: expected a text")
    return value


def _choice(value: Any, where: str, names: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in names:
        refuse(f"{where}={value!r}; expected one of {', '.join(names)}")
    return value


def _floats(arrays: dict[str, Array], name: str, size: int, used: set[str]) -> Floats:
    if name not in arrays or arrays[name].kind != "F64" or arrays[name].size != size:
        refuse(f"array {name!r}: expected {size} numbers of F64")
    used.add(name)
    values = arrays[name].reals()
    if not bool(np.isfinite(values).all()):
        refuse(f"array {name!r}: NaN or infinity")
    return values


def _metric(held: Any, n: int, arrays: dict[str, Array], used: set[str]) -> Floats:
    fields(held, "metric", {"form"})
    form = _choice(held["form"], "metric form", _FORMS)
    if form == "identity":
        return np.eye(n)
    if form == "full":
        return _floats(arrays, "metric", n * n, used).reshape(n, n)
    packed = _floats(arrays, "metric", n * (n + 1) // 2, used)
    L = np.zeros((n, n))
    L[np.tril_indices(n) if form == "lower" else np.triu_indices(n)] = packed
    return L


def _bounds(held: Any, setting: str) -> dict[str, float | None]:
    fields(held, "bounds", set(BOUNDS))
    found: dict[str, float | None] = {}
    for name, theorem in BOUNDS.items():
        entry = held[name]
        if name == "tau" and entry is None:
            if setting == "sharp":
                refuse("tau: expected a number in the sharp setting")
            found[name] = None
            continue
        fields(entry, name, {"value", "theorem"})
        if entry["theorem"] != theorem:
            refuse(f"{name}: theorem={entry['theorem']!r}; expected {theorem!r}")
        value = number(entry["value"], name)
        if not value >= 0:
            refuse(f"{name}={value}; expected at least 0")
        found[name] = value
    if setting == "fast" and found["tau"] is not None:
        refuse("tau: expected null in the fast setting")
    return found


def _answers(held: Any, n: int, arrays: dict[str, Array], used: set[str]) -> Answers | None:
    if held is None:
        return None
    fields(held, "decisions", {"theorem", "map", "classes", "stable"})
    if held["theorem"] != "H5":
        refuse(f"decisions: theorem={held['theorem']!r}; expected 'H5'")
    classes = whole(held["classes"], "classes", 1, 2**20)
    program = read_program(held["map"], n, arrays, used)
    tokens, rest = divmod(program.size(program.output), classes)
    stable = held["stable"]
    if rest or not isinstance(stable, list) or len(stable) != tokens:
        refuse(f"decisions: {program.size(program.output)} logits for {classes} classes do not fit `stable`")
    if "answer" not in arrays or arrays["answer"].kind != "I64" or arrays["answer"].size != tokens:
        refuse(f"array 'answer': expected {tokens} numbers of I64")
    used.add("answer")
    answer = tuple(whole(int(v), "answer", 0, classes - 1) for v in arrays["answer"].values)
    if "decision_radius" not in arrays or arrays["decision_radius"].kind != "F64":
        refuse("array 'decision_radius': expected F64")
    used.add("decision_radius")
    radius = tuple(float(v) for v in arrays["decision_radius"].values)
    if len(radius) != tokens or not all(0 <= v < math.inf or (v == math.inf and classes == 1) for v in radius):
        refuse(f"array 'decision_radius': expected {tokens} finite numbers from 0 on")
    return Answers(program, classes, answer, radius, tuple(truth(v, "stable") for v in stable))


def _digests(held: Any, where: str) -> dict[str, str]:
    if not isinstance(held, dict) or not all(_is_digest(v) for v in held.values()):
        refuse(f"{where}: expected SHA-256 digests by name")
    return dict(held)


def _is_digest(value: Any) -> bool:
    # definition: SHA-256 in hexadecimal
    return isinstance(value, str) and len(value) == 64 and all(v in "0123456789abcdef" for v in value)


def _sources(held: Any) -> dict[str, str]:
    fields(held, "sources", {"weights", "injection"})
    return {f"{part} {name}": v for part in sorted(held) for name, v in _digests(held[part], "sources").items()}
