r"""The map of a certificate: a straight program on real numbers, in fourteen kinds of steps.

Registers are flat lists of real numbers. Register 0 is the state; each step makes the next one. Steps and what entry k
of their result is:

| op | fields | result |
|---|---|---|
| data | array | the array's floats, as real numbers; minus infinity marks a score that is left out |
| take | of, offset, sizes, strides | entry ``offset + sum of i_d strides_d``, for each index (i_d), the last fastest |
| gather | of (list), index (array) | entry ``index[k]`` of the registers one behind the other; -1 gives 0 |
| sum | of (list), scale (list), shift | ``shift + sum of scale_j x_j[k]`` |
| mul, div | of (two) | product, quotient; the divisor does not depend on the state |
| matmul | of (two), batch, rows, inner, columns | for each of the batch the matrix product, row-major |
| total | of, columns | sums of so many entries in a row |
| map | of, function | the function of each entry |
| power | of, exponent | each entry to a fixed power |
| clamp | of, low, high | each entry, but at least low and at most high; null: no such limit |
| norm | of, width, eps, centred | each row over the root of its mean square plus eps; centred: less its mean first |
| attend | of (two), batch, rows, keys, width, safe | softmax of scores, times values; safe: an empty row gives 0 |
| gated | of (two), function | function of the first times the second, entry by entry |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fpcheck.check.container import Array, refuse

__all__ = ["CURVED", "FUNCTIONS", "Program", "Step", "read_program"]

CURVED = ("silu", "gelu", "gelu_tanh", "sigmoid", "tanh")
"""Functions with a bound on how they bend on the whole line."""
FUNCTIONS = (
    *CURVED, "relu", "abs", "exp", "expm1", "log", "log1p", "erf", "sin", "cos", "sqrt", "rsqrt", "reciprocal",
)  # fmt: skip

# choice: limits on a program, far above any block that can be checked in minutes.
MAX_STEPS = 20_000
MAX_ENTRIES = 2**22
MAX_WORK = 2**28


@final
@dataclass(frozen=True, eq=False)
class Step:
    """One step; ``of`` lists the registers that it reads.

    Attributes:
        op: Which.
        of: Registers.
        size: Entries of the result.
        values: Of data: float64 values. Of gather and take: where each entry comes from (-1: nowhere).
        numbers: The op's whole numbers, by name.
        scale: Of sum: factors; of clamp: low and high.
        shift: Of sum: what is added; of norm: eps; of power: the exponent.
        function: Of map and gated.
        flag: Of norm: centred; of attend: safe.
    """

    op: str
    of: tuple[int, ...]
    size: int
    values: NDArray[Any] | None = None
    numbers: tuple[int, ...] = ()
    scale: tuple[float, ...] = ()
    shift: float = 0.0
    function: str = ""
    flag: bool = False


@final
@dataclass(frozen=True, eq=False)
class Program:
    """A map from n numbers to the entries of one register.

    Attributes:
        n: Entries of the state, register 0.
        steps: In order; step i makes register i + 1.
        output: The register of the result.
        varying: By register, whether it depends on the state.
    """

    n: int
    steps: tuple[Step, ...]
    output: int
    varying: tuple[bool, ...]

    def size(self, register: int) -> int:
        """Entries of a register."""
        return self.n if register == 0 else self.steps[register - 1].size


def read_program(held: Any, n: int, arrays: dict[str, Array], used: set[str]) -> Program:
    """Check a map of the document, and give it a shape in which it can be run.

    Args:
        held: What the document has.
        n: Entries of the state.
        arrays: Of the file.
        used: Names of arrays that the document uses; those of the map are added.

    Raises:
        CertificateFileError: An unknown field or operator, or sizes that do not fit.
    """
    fields(held, "map", {"steps", "output"})
    steps = held["steps"]
    if not isinstance(steps, list) or not 0 <= len(steps) <= MAX_STEPS:
        refuse(f"map: expected a list of at most {MAX_STEPS} steps")
    made: list[Step] = []
    sizes, varying, total, work = [n], [True], n, 0
    for number, entry in enumerate(steps):
        where = f"map step {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("op"), str):
            refuse(f"{where}: expected an object with `op`")
        reader = _READERS.get(entry["op"])
        if reader is None:
            refuse(f"{where}: not covered: op={entry['op']!r}; expected one of {', '.join(_READERS)}")
        step = reader(entry, where, _Context(sizes, varying, arrays, used))
        total += step.size
        work += math.prod(step.numbers) if step.op in ("matmul", "attend") else 0
        if total > MAX_ENTRIES or work > MAX_WORK:
            refuse(f"{where}: more than {MAX_ENTRIES} entries in all registers, or {MAX_WORK} products, so far")
        made.append(step)
        sizes.append(step.size)
        varying.append(any(varying[r] for r in step.of))
    output = whole(held["output"], "map output", 0, len(steps))
    return Program(n, tuple(made), output, tuple(varying))


@final
@dataclass(frozen=True, eq=False)
class _Context:
    sizes: list[int]
    varying: list[bool]
    arrays: dict[str, Array]
    used: set[str]

    def register(self, value: Any, where: str) -> int:
        return whole(value, f"{where}: register", 0, len(self.sizes) - 1)

    def registers(self, value: Any, where: str, count: int | None = None) -> tuple[int, ...]:
        if not isinstance(value, list) or not value or (count is not None and len(value) != count):
            refuse(f"{where}: of: expected a list of {count or 'some'} registers")
        return tuple(self.register(v, where) for v in value)

    def array(self, name: Any, where: str) -> Array:
        if not isinstance(name, str) or name not in self.arrays:
            refuse(f"{where}: no array {name!r} in the file")
        self.used.add(name)
        return self.arrays[name]


def fields(held: Any, where: str, names: set[str]) -> None:
    """Refuse anything but an object with exactly these fields."""
    if not isinstance(held, dict):
        refuse(f"{where}: expected an object")
    if set(held) != names:
        refuse(f"{where}: fields {sorted(map(str, set(held) ^ names))} missing or unknown; expected {sorted(names)}")


def whole(value: Any, where: str, least: int, most: int) -> int:
    """A whole number in a range."""
    if type(value) is not int or not least <= value <= most:
        refuse(f"{where}={value!r}; expected a whole number from {least} to {most}")
    return value


def number(value: Any, where: str) -> float:
    """A finite number; whole ones are read as the real numbers that they are, up to 2^53."""
    if type(value) is int and abs(value) <= 2**53:
        return float(value)
    if type(value) is not float or not math.isfinite(value):
        refuse(f"{where}={value!r}; expected a finite number")
    return value


def truth(value: Any, where: str) -> bool:
    """True or false."""
    if type(value) is not bool:
        refuse(f"{where}={value!r}; expected true or false")
    return value


def _fixed(context: _Context, register: int, where: str, what: str) -> None:
    if context.varying[register]:
        refuse(f"{where}: not covered: {what} that depends on the state")


def _data(entry: Any, where: str, context: _Context) -> Step:
    fields(entry, where, {"op", "array"})
    array = context.array(entry["array"], where)
    if array.kind not in ("F64", "F32", "F16", "BF16"):
        refuse(f"{where}: array of {array.kind}; expected floats")
    values = array.reals()
    if not bool((np.isfinite(values) | (values == -np.inf)).all()):
        refuse(f"{where}: NaN or plus infinity in array {entry['array']!r}")
    return Step("data", (), array.size, values)


def _take(entry: Any, where: str, context: _Context) -> Step:
    fields(entry, where, {"op", "of", "offset", "sizes", "strides"})
    of = context.register(entry["of"], where)
    sizes, strides = entry["sizes"], entry["strides"]
    if not (isinstance(sizes, list) and isinstance(strides, list) and len(sizes) == len(strides) <= 8):  # choice: dims
        refuse(f"{where}: sizes and strides: expected lists of one length, up to 8")
    sizes = [whole(v, f"{where}: size", 1, MAX_ENTRIES) for v in sizes]
    strides = [whole(v, f"{where}: stride", -MAX_ENTRIES, MAX_ENTRIES) for v in strides]
    offset = whole(entry["offset"], f"{where}: offset", 0, MAX_ENTRIES)
    if math.prod(sizes) > MAX_ENTRIES:
        refuse(f"{where}: sizes={sizes}; expected at most {MAX_ENTRIES} entries")
    index = np.array(offset, dtype=np.int64)
    for size, stride in zip(sizes, strides, strict=True):
        index = index[..., None] + stride * np.arange(size, dtype=np.int64)
    return _indexed(index.ravel(), (of,), context, where, least=0)


def _gather(entry: Any, where: str, context: _Context) -> Step:
    fields(entry, where, {"op", "of", "index"})
    of = context.registers(entry["of"], where)
    array = context.array(entry["index"], where)
    if array.kind not in ("I32", "I64"):
        refuse(f"{where}: index of {array.kind}; expected whole numbers")
    return _indexed(array.values.astype(np.int64), of, context, where, least=-1)


def _indexed(index: NDArray[np.int64], of: tuple[int, ...], context: _Context, where: str, *, least: int) -> Step:
    held = sum(context.sizes[r] for r in of)
    if index.size and not (least <= int(index.min()) and int(index.max()) < held):
        refuse(f"{where}: index from {index.min()} to {index.max()}; expected {least} to {held - 1}")
    return Step("gather", of, index.size, index)


def _sum(entry: Any, where: str, context: _Context) -> Step:
    fields(entry, where, {"op", "of", "scale", "shift"})
    of = context.registers(entry["of"], where)
    scale = entry["scale"]
    if not isinstance(scale, list) or len(scale) != len(of):
        refuse(f"{where}: scale: expected {len(of)} numbers")
    size = _same(of, context, where)
    factors = tuple(number(v, f"{where}: scale") for v in scale)
    return Step("sum", of, size, scale=factors, shift=number(entry["shift"], f"{where}: shift"))


def _same(of: tuple[int, ...], context: _Context, where: str) -> int:
    found = {context.sizes[r] for r in of}
    if len(found) != 1:
        refuse(f"{where}: registers of {sorted(found)} entries; expected one size")
    return found.pop()


def _pair(op: str) -> Callable[[Any, str, _Context], Step]:
    def read(entry: Any, where: str, context: _Context) -> Step:
        fields(entry, where, {"op", "of"})
        of = context.registers(entry["of"], where, 2)
        if op == "div":
            _fixed(context, of[1], where, "a divisor")
        return Step(op, of, _same(of, context, where))

    return read


def _matmul(entry: Any, where: str, context: _Context) -> Step:
    names = ("batch", "rows", "inner", "columns")
    fields(entry, where, {"op", "of", *names})
    of = context.registers(entry["of"], where, 2)
    b, i, k, j = (whole(entry[name], f"{where}: {name}", 1, MAX_ENTRIES) for name in names)
    if (context.sizes[of[0]], context.sizes[of[1]]) != (b * i * k, b * k * j):
        refuse(f"{where}: {b} products of {i}x{k} and {k}x{j} do not fit the registers")
    return Step("matmul", of, b * i * j, numbers=(b, i, k, j))


def _total(entry: Any, where: str, context: _Context) -> Step:
    fields(entry, where, {"op", "of", "columns"})
    of = context.register(entry["of"], where)
    columns = whole(entry["columns"], f"{where}: columns", 1, MAX_ENTRIES)
    if context.sizes[of] % columns:
        refuse(f"{where}: columns={columns} of {context.sizes[of]} entries")
    return Step("total", (of,), context.sizes[of] // columns, numbers=(columns,))


def _named(value: Any, where: str, names: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in names:
        refuse(f"{where}: not covered: function={value!r}; expected one of {', '.join(names)}")
    return value


def _map(entry: Any, where: str, context: _Context) -> Step:
    fields(entry, where, {"op", "of", "function"})
    of = context.register(entry["of"], where)
    return Step("map", (of,), context.sizes[of], function=_named(entry["function"], where, FUNCTIONS))


def _power(entry: Any, where: str, context: _Context) -> Step:
    fields(entry, where, {"op", "of", "exponent"})
    of = context.register(entry["of"], where)
    exponent = number(entry["exponent"], f"{where}: exponent")
    if not abs(exponent) <= 64:  # choice: whole powers are repeated products
        refuse(f"{where}: exponent={exponent}; expected at most 64")
    return Step("power", (of,), context.sizes[of], shift=exponent)


def _clamp(entry: Any, where: str, context: _Context) -> Step:
    fields(entry, where, {"op", "of", "low", "high"})
    of = context.register(entry["of"], where)
    low, high = (
        none if entry[name] is None else number(entry[name], f"{where}: {name}")
        for name, none in (("low", -math.inf), ("high", math.inf))
    )
    if not low <= high:
        refuse(f"{where}: low={low}, high={high}; expected low <= high")
    return Step("clamp", (of,), context.sizes[of], scale=(low, high))


def _norm(entry: Any, where: str, context: _Context) -> Step:
    fields(entry, where, {"op", "of", "width", "eps", "centred"})
    of = context.register(entry["of"], where)
    width = whole(entry["width"], f"{where}: width", 1, MAX_ENTRIES)
    eps = number(entry["eps"], f"{where}: eps")
    if context.sizes[of] % width or not eps >= 0:
        refuse(f"{where}: width={width} of {context.sizes[of]} entries, eps={eps}; expected a divisor, and eps >= 0")
    centred = truth(entry["centred"], f"{where}: centred")
    return Step("norm", (of,), context.sizes[of], numbers=(width,), shift=eps, flag=centred)


def _attend(entry: Any, where: str, context: _Context) -> Step:
    names = ("batch", "rows", "keys", "width")
    fields(entry, where, {"op", "of", "safe", *names})
    of = context.registers(entry["of"], where, 2)
    b, i, j, k = (whole(entry[name], f"{where}: {name}", 1, MAX_ENTRIES) for name in names)
    if (context.sizes[of[0]], context.sizes[of[1]]) != (b * i * j, b * j * k):
        refuse(f"{where}: {b} times {i} rows of {j} scores and {j}x{k} values do not fit the registers")
    if not context.varying[of[0]]:
        refuse(f"{where}: not covered: fixed scores; write it as matmul")
    return Step("attend", of, b * i * k, numbers=(b, i, j, k), flag=truth(entry["safe"], f"{where}: safe"))


def _gated(entry: Any, where: str, context: _Context) -> Step:
    fields(entry, where, {"op", "of", "function"})
    of = context.registers(entry["of"], where, 2)
    if not (context.varying[of[0]] and context.varying[of[1]]):
        refuse(f"{where}: not covered: a gate with a fixed part; write it as map and mul")
    function = _named(entry["function"], where, CURVED)
    return Step("gated", of, _same(of, context, where), function=function)


_READERS: dict[str, Callable[[Any, str, _Context], Step]] = {
    "data": _data,
    "take": _take,
    "gather": _gather,
    "sum": _sum,
    "mul": _pair("mul"),
    "div": _pair("div"),
    "matmul": _matmul,
    "total": _total,
    "map": _map,
    "power": _power,
    "clamp": _clamp,
    "norm": _norm,
    "attend": _attend,
    "gated": _gated,
}
