"""Write a certificate to a file that an independent checker reads: `fpcheck check FILE`.

The file is a safetensors container with one JSON text in its header (docs/certificate-file.md). The fused graph becomes
a program of fourteen kinds of steps; operators that only move entries become strides or explicit indices, found by
moving whole numbers.

The checker bounds the same figures by its own arithmetic, a little looser here and there, and accepts a recorded bound
only if its own implies it. So each figure is recorded with head-room: the radius shrinks by 3 % (every smaller ball has
at most the same rate), what is left of a rate to 1 by 5 %, of the centre's rate by 1 %, and the residual's bound grows
by 1 %.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, final

import torch
from safetensors.torch import save as container
from torch import Tensor, nn

from fpcheck._version import __version__
from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.decision import Decisions
from fpcheck.certify.enclosure import _index_maps, evaluate
from fpcheck.certify.functions import FUNCTIONS
from fpcheck.certify.operators import MOVERS, _Choice, _Convolution, _padded, _Reduction, _Sum
from fpcheck.certify.rounding import down, up
from fpcheck.certify.trace import Graph, Op, Ref
from fpcheck.errors import InputError, OutputError, UnsupportedOperatorError
from fpcheck.loop import Loop

__all__ = ["digest", "save"]

_KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL",
}  # fmt: skip
_RADIUS_ROOM = 0.97  # choice: the ball that is recorded, for the checker's curvature
_RATE_ROOM = 0.05  # choice: of 1 - kappa
_CENTRE_ROOM = 0.01  # choice: of 1 - Z1
_OWN_ROOM = 1.01  # choice: of the residual
_LEAST = 1e-100  # choice: added to a residual, for what underflows
_SMALL_ROOM = 1 + 1e-6  # choice: of norms and decision radii


def save(certificate: Certificate, path: Path | str, *, loop: Loop | None = None) -> Path:
    """Write a certificate.

    Args:
        certificate: A proved one.
        path: The file; an existing one is replaced.
        loop: The loop that was certified: then the file names its weights and injection by their SHA-256.

    Returns:
        The path.

    Raises:
        InputError: Nothing was proved, so there is nothing to write.
        UnsupportedOperatorError: The map has an operator for which the file has no words.
        OutputError: The file cannot be written; nothing half-written is left behind.
    """
    if certificate.verdict is Verdict.UNKNOWN or certificate.metric is None:
        raise InputError(f"verdict={certificate.verdict.name}; expected a proved certificate: {certificate.reason}")
    arrays: dict[str, Tensor] = {"centre": certificate.centre.reshape(-1)}
    document: dict[str, Any] = {
        "format": "fpcheck-certificate",
        "version": 1,
        "written_by": f"fpcheck {__version__}",
        "statement": _statement(certificate),
        "verdict": certificate.verdict.value,
        "setting": certificate.setting,
        "state_shape": list(certificate.centre.shape),
        "map": _Writer(certificate.graph, certificate.centre, arrays, "map").program(),
        "metric": {"form": _metric(certificate.metric.L, arrays)},
    }
    bounds = _bounds(certificate)
    document["bounds"] = bounds
    error: float = bounds["error_bound"]["value"]
    held = certificate.decisions
    document["decisions"] = None if held is None else _decisions(held, certificate.centre, error, arrays)
    stored = {name: value.detach().contiguous().cpu() for name, value in arrays.items()}
    document["arrays"] = {name: digest(value) for name, value in stored.items()}
    document["sources"] = _sources(loop)
    data = container(stored, {"fpcheck": json.dumps(document, allow_nan=False)})
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, target)
    except OSError as error_:
        part.unlink(missing_ok=True)
        raise OutputError(f"path={target}: cannot be written ({error_.strerror}); choose another folder") from error_
    return target


def digest(values: Tensor) -> str:
    """SHA-256 of a tensor: of "KIND [shape]", a line end, and its bytes, little-endian and row-major."""
    held = values.detach().contiguous().cpu()
    found = hashlib.sha256(f"{_KINDS[held.dtype]} {list(held.shape)}\n".encode())
    found.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _sources(loop: Loop | None) -> dict[str, dict[str, str]]:
    if loop is None:
        return {"weights": {}, "injection": {}}
    block, x = loop.block, loop.x
    weights = {**dict(block.named_parameters()), **dict(block.named_buffers())} if isinstance(block, nn.Module) else {}
    parts = {} if x is None else {"x": x} if isinstance(x, Tensor) else x if isinstance(x, dict) else dict(enumerate(x))
    return {
        "weights": {name: digest(value) for name, value in weights.items() if value.dtype in _KINDS},
        "injection": {str(name): digest(value) for name, value in parts.items() if value.dtype in _KINDS},
    }


def _statement(certificate: Certificate) -> str:
    return (
        "F is the exact real function of `map`, its arrays' floats taken as real numbers and every operation exact; "
        "|v|_P = |L v|_2 with the matrix L of `metric`; B is the closed ball |z - centre|_P <= radius. Proved: "
        f"{certificate.verdict.text}. There rate bounds |L DF(z) L^-1|_2 (of the Newton map for `proved to exist`), "
        "and the fixed point is within error_bound of the centre, in the same norm. A float loop is another map."
    )


def _bounds(certificate: Certificate) -> dict[str, Any]:
    metric = certificate.metric
    assert metric is not None
    Z1 = certificate.centre_rate + _CENTRE_ROOM * (1 - certificate.centre_rate)
    rate = certificate.rate + _RATE_ROOM * (1 - certificate.rate)
    near_rate = certificate.error_rate + _RATE_ROOM * (1 - certificate.error_rate)
    Y = up(certificate.residual * _OWN_ROOM + _LEAST)
    radius = certificate.radius * _RADIUS_ROOM
    near = min(certificate.near_radius, radius)
    if not down(down(1 - near_rate) * near) >= Y:
        near, near_rate = radius, rate  # a residual of 0 leaves a near ball of no size
    error = up(Y / down(1 - near_rate))
    norm, inverse_norm = up(metric.norm * _SMALL_ROOM), up(metric.inverse_norm * _SMALL_ROOM)
    room = down(down(1 - rate) * radius)
    if not (room >= Y and down(down(1 - near_rate) * near) >= Y):
        raise InputError(
            f"residual={Y:.3e}, radius={radius:.3e}, rate={rate:.6f}: no room for the checker's arithmetic; refine the "
            "state, or certify a smaller ball"
        )
    figures = {
        "residual": (Y, "Q4"),
        "centre_rate": (Z1, "R2"),
        "radius": (radius, "Q4"),
        "rate": (rate, "Q3"),
        "near_radius": (near, "Q4"),
        "near_rate": (near_rate, "Q3"),
        "error_bound": (error, "Q4"),
        "norm": (norm, "R3"),
        "inverse_norm": (inverse_norm, "R2"),
        "euclidean_radius": (down(radius / norm), "Q4"),
        "euclidean_error_bound": (up(error * inverse_norm), "Q4"),
    }
    found: dict[str, Any] = {name: {"value": value, "theorem": theorem} for name, (value, theorem) in figures.items()}
    tau = certificate.tau
    found["tau"] = None if tau is None else {"value": tau * _SMALL_ROOM, "theorem": "Q2"}
    return found


def _metric(L: Tensor, arrays: dict[str, Tensor]) -> str:
    n = L.shape[0]
    if torch.equal(L, torch.eye(n, dtype=L.dtype)):
        return "identity"
    for form, half, index in (
        ("lower", L.tril(), torch.tril_indices(n, n)),
        ("upper", L.triu(), torch.triu_indices(n, n)),
    ):
        if torch.equal(half, L):
            arrays["metric"] = L[index[0], index[1]]
            return form
    arrays["metric"] = L.clone()
    return "full"


def _decisions(held: Decisions, centre: Tensor, error: float, arrays: dict[str, Tensor]) -> dict[str, Any]:
    radius = held.radius.reshape(-1) / _SMALL_ROOM
    shape = held.graph.ops[held.graph.output].shape
    assert shape is not None
    arrays["answer"] = held.answer.reshape(-1)
    arrays["decision_radius"] = radius
    return {
        "theorem": "H5",
        "map": _Writer(held.graph, centre, arrays, "readout").program(),
        "classes": shape[-1],
        "stable": [value > error for value in radius.tolist()],
    }


@final
class _Writer:
    """Turns a fused graph into steps; `register` says where each operator's result stands, entries row-major."""

    def __init__(self, graph: Graph, centre: Tensor, arrays: dict[str, Tensor], prefix: str) -> None:
        self.graph, self.arrays, self.prefix = graph, arrays, prefix
        self.values = evaluate(graph, centre)
        self.varying = graph.varying()
        self.steps: list[dict[str, Any]] = []
        self.size = [centre.numel()]  # entries by register
        self.register: list[int | tuple[int, ...] | None] = []
        self._data: dict[str, int] = {}

    def program(self) -> dict[str, Any]:
        """The document's map."""
        for index, op in enumerate(self.graph.ops):
            self.register.append(0 if index == 0 else self._lower(index, op))
        output = self.register[self.graph.output]
        assert isinstance(output, int)
        return {"steps": self.steps, "output": output}

    def step(self, op: str, size: int, **more: Any) -> int:
        """Add a step; its register."""
        self.steps.append({"op": op, **more})
        self.size.append(size)
        return len(self.steps)

    def data(self, values: Tensor) -> int:
        """A register of a tensor's floats."""
        held = values if values.dtype in _KINDS and values.is_floating_point() else values.to(torch.float64)
        return self._stored(held, lambda name: self.step("data", held.numel(), array=name))

    def _stored(self, held: Tensor, add: Callable[[str], int]) -> int:
        """The same array is stored once, and read once."""
        key = digest(held)
        if key not in self._data:
            known = next((n for n, v in self.arrays.items() if v.shape == held.shape and v.dtype == held.dtype
                          and n.startswith((self.prefix, "map.")) and digest(v) == key), None)  # fmt: skip
            name = known or f"{self.prefix}.{len(self.steps)}"
            self.arrays[name] = held
            self._data[key] = add(name)
        return self._data[key]

    def moved(self, of: Sequence[int], index: Tensor) -> int:
        """Entries of registers one behind the other, by flat index; -1 for a zero."""
        flat = index.reshape(-1).to(torch.int64)
        affine = _affine(index) if len(of) == 1 else None
        if affine is None:
            name = f"{self.prefix}.{len(self.steps)}"
            self.arrays[name] = flat.to(torch.int32)
            return self.step("gather", len(flat), of=list(of), index=name)
        offset, sizes, strides = affine
        return self.step("take", len(flat), of=of[0], offset=offset, sizes=sizes, strides=strides)

    def _lower(self, index: int, op: Op) -> int | tuple[int, ...] | None:
        value = self.values[index]
        if isinstance(value, Tensor) or (isinstance(value, tuple) and all(isinstance(v, Tensor) for v in value)):
            return None  # whole numbers or booleans: exact, and only used as indices or masks
        if op.target == "constant":
            assert op.value is not None
            return self.data(op.value)
        if not any(self._real(ref) for ref in op.refs()):
            return self.data(value.mid)  # created, exactly
        if op.target == "item":
            parts = self.register[op.args[0].index]
            assert isinstance(parts, tuple)
            return parts[op.args[1]]
        name = op.target.partition(".")[0]
        plain = name.removesuffix("_copy")
        if name == "_to_copy":
            return self.register[op.args[0].index]
        if plain in MOVERS:
            return self._move(op)
        if plain not in _LOWERINGS:
            _refuse(op)
        return _LOWERINGS[plain](self, op, tuple(value.shape))

    def _real(self, index: int) -> bool:
        return not isinstance(self.values[index], Tensor)

    def _move(self, op: Op) -> int | tuple[int, ...]:
        args = _resolved(op.args, self.values)
        _, maps = _index_maps(op, args)
        of = [self.of(ref) for ref in op.refs() if self._real(ref)]
        if isinstance(maps, tuple):
            return tuple(self._picked(of, m) for m in maps)
        return self._picked(of, maps)

    def _picked(self, of: list[int], index: Tensor) -> int:
        flat = index.reshape(-1)
        if len(of) == 1 and len(flat) == self.size[of[0]] and torch.equal(flat, torch.arange(len(flat))):
            return of[0]  # nothing moves in row-major order
        return self.moved(of, index)

    def of(self, index: int) -> int:
        """The register of an operator's result."""
        found = self.register[index]
        assert isinstance(found, int)
        return found

    def operand(self, arg: Any, shape: Sequence[int]) -> int:
        """An argument broadcast to a shape."""
        if isinstance(arg, Ref):
            held = self.values[arg.index]
            own = tuple(held.shape)
            register = self.data(held) if isinstance(held, Tensor) else self.of(arg.index)
        else:
            own, register = (), self.data(torch.tensor(_exact(arg), dtype=torch.float64))
        if own == tuple(shape) or (math.prod(own) == math.prod(shape) and _squeezed(own) == _squeezed(shape)):
            return register
        return self.moved([register], torch.arange(math.prod(own)).reshape(own).expand(tuple(shape)))


def _squeezed(shape: Sequence[int]) -> list[int]:
    return [s for s in shape if s != 1]


def _affine(index: Tensor) -> tuple[int, list[int], list[int]] | None:
    """Offset, sizes and strides of an index that is linear in each dimension; None if it is not."""
    if index.numel() == 0 or bool((index < 0).any()):
        return None
    first = index.reshape(-1)[0]
    expected = first
    sizes: list[int] = []
    strides: list[int] = []
    for d, size in enumerate(index.shape):
        if size == 1:
            continue
        step = int(index.select(d, 1).reshape(-1)[0] - first)
        sizes.append(size)
        strides.append(step)
        shape = [1] * index.ndim
        shape[d] = size
        expected = expected + step * torch.arange(size).reshape(shape)
    fits = torch.equal(torch.as_tensor(expected).expand(index.shape), index)
    return (int(first), sizes, strides) if fits else None


def _refuse(op: Op) -> NoReturn:
    where = f" at {op.where}" if op.where else ""
    raise UnsupportedOperatorError(f"operator={op.target}{where} has no words in a certificate file")


def _resolved(args: Any, held: list[Any]) -> Any:
    if isinstance(args, Ref):
        return held[args.index]
    return tuple(_resolved(a, held) for a in args) if isinstance(args, tuple) else args


def _exact(value: Any) -> float:
    """A Python number as a float, if that changes nothing."""
    found = float(value)
    if found != value:
        raise UnsupportedOperatorError(f"number={value!r} in the block is no float64; write it as a float")
    return found


# Lowerings: an operator with the shape of its result becomes steps; the register of the result.


def _sum(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    a, b, *more = op.args
    first, second = _Sum._signs(op.target.partition(".")[0], more[0] if more else op.kwargs.get("alpha", 1))
    if not isinstance(b, Ref) and abs(second) == 1:
        of = [w.operand(a, shape)]
        return w.step("sum", math.prod(shape), of=of, scale=[_exact(first)], shift=second * _exact(b))
    return _combined(w, [(w.operand(a, shape), first), (w.operand(b, shape), second)])


def _combined(w: _Writer, terms: Sequence[tuple[int, float]]) -> int:
    of, scale = [r for r, _ in terms], [_exact(c) for _, c in terms]
    return w.step("sum", w.size[of[0]], of=of, scale=scale, shift=0.0)


def _product(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    a, b = op.args
    if not isinstance(b, Ref):
        return _combined(w, [(w.operand(a, shape), b)])
    return w.step("mul", math.prod(shape), of=[w.operand(a, shape), w.operand(b, shape)])


def _quotient(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    if op.target not in ("div.Tensor", "div.Scalar"):
        _refuse(op)
    return w.step("div", math.prod(shape), of=[w.operand(arg, shape) for arg in op.args])


def _choice(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    name = op.target.partition(".")[0]
    if name == "constant_pad_nd":
        x = w.of(op.args[0].index)
        index = _padded(w.values[op.args[0].index].shape, op.args[1])
        filler = w.operand(op.args[2] if len(op.args) > 2 else 0.0, ())
        return w.moved([x, filler], torch.where(index < 0, w.size[x], index))
    mask, yes, no = _Choice._parts(name, op.args)
    chosen = w.values[mask.index]
    if not isinstance(chosen, Tensor):
        _refuse(op)
    first, second = w.operand(yes, shape), w.operand(no, shape)
    each = torch.arange(math.prod(shape)).reshape(shape)
    return w.moved([first, second], torch.where(chosen, each, each + math.prod(shape)))


def _reduction(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    held = w.values[op.args[0].index].shape
    dims, _ = _Reduction._dims(len(held), op.args, op.kwargs)
    kept = [d for d in range(len(held)) if d not in dims]
    turned = torch.arange(math.prod(held)).reshape(held).permute(*kept, *sorted(dims))
    count = math.prod(held[d] for d in dims)
    total = w.step("total", math.prod(shape), of=w._picked([w.of(op.args[0].index)], turned), columns=count)
    if op.target.startswith("sum"):
        return total
    return w.step("div", math.prod(shape), of=[total, w.operand(float(count), shape)])


def _matrices(w: _Writer, a: Ref, b: Ref) -> int:
    (*batch, i, k), j = w.values[a.index].shape, w.values[b.index].shape[-1]
    return _matmul(w, [w.operand(r, w.values[r.index].shape) for r in (a, b)], math.prod(batch), i, k, j)


def _matmul(w: _Writer, of: list[int], batch: int, rows: int, inner: int, columns: int) -> int:
    more = {"batch": batch, "rows": rows, "inner": inner, "columns": columns}
    return w.step("matmul", batch * rows * columns, of=of, **more)


def _affine_product(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    c, a, b = op.args
    product = _matrices(w, a, b)
    return _combined(w, [(w.operand(c, shape), op.kwargs.get("beta", 1)), (product, op.kwargs.get("alpha", 1))])


def _convolution(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    x, weight = (w.values[arg.index] for arg in op.args[:2])
    index, places, groups = _Convolution._plan(x.shape, weight.shape, _resolved(op.args, w.values))
    count, channels = x.shape[0], weight.shape[0]
    rows, window = channels // groups, index.shape[2]
    whole = (count, *weight.shape)
    windows = w.moved([w.of(op.args[0].index)], index)
    product = _matmul(w, [w.operand(op.args[1], whole), windows], count * groups, rows, window, math.prod(places))
    if op.args[2] is None:
        return product
    each = torch.arange(channels).reshape(1, channels, *([1] * len(places))).expand(shape)
    return _combined(w, [(product, 1), (w.moved([w.of(op.args[2].index)], each), 1)])


def _map(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    name, of = op.target.partition(".")[0], w.operand(op.args[0], shape)
    if name == "pow":
        return w.step("power", math.prod(shape), of=of, exponent=_exact(op.args[1]))
    if name == "square":
        return w.step("power", math.prod(shape), of=of, exponent=2.0)
    if name == "gelu" and "tanh" in (op.kwargs.get("approximate"), *op.args[1:]):
        name = "gelu_tanh"
    return w.step("map", math.prod(shape), of=of, function=name)


def _clamp(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    ends = [None if v is None else _exact(v) for v in op.args[1:]]
    low, high = (None, ends[0]) if op.target.startswith("clamp_max") else (*ends, None)[:2]
    if low is not None and high is not None and low > high:
        _refuse(op)
    return w.step("clamp", math.prod(shape), of=w.operand(op.args[0], shape), low=low, high=high)


def _norm(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    x, eps, dim = op.args
    each = torch.arange(math.prod(shape)).reshape(shape).movedim(dim, -1)
    rows = w._picked([w.of(x.index)], each)
    more = {"width": shape[dim], "eps": _exact(eps), "centred": op.target == "centred_rms"}
    out = w.step("norm", math.prod(shape), of=rows, **more)
    back = torch.empty(math.prod(shape), dtype=torch.int64)
    back[each.reshape(-1)] = torch.arange(math.prod(shape))
    return w._picked([out], back.reshape(shape))


def _weighted_sum(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    s, v = op.args
    shape_v = w.values[v.index].shape
    batch, keys, width = math.prod(shape_v[:-2]), shape_v[-2], shape_v[-1]
    rows = w.size[w.of(s.index)] // (batch * keys)
    more = {"batch": batch, "rows": rows, "keys": keys, "width": width, "safe": op.kwargs["safe"]}
    return w.step("attend", math.prod(shape), of=[w.of(s.index), w.of(v.index)], **more)


def _gated(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    of = [w.of(arg.index) for arg in op.args]
    return w.step("gated", math.prod(shape), of=of, function=op.kwargs["function"])


def _embedding(w: _Writer, op: Op, shape: tuple[int, ...]) -> int:
    table, index = (w.values[arg.index] for arg in op.args[:2])
    each = torch.arange(math.prod(table.shape)).reshape(table.shape)
    return w.moved([w.of(op.args[0].index)], each[index])


_LOWERINGS: dict[str, Callable[[_Writer, Op, tuple[int, ...]], int]] = {
    **dict.fromkeys(("add", "sub", "rsub"), _sum),
    "neg": lambda w, op, shape: _combined(w, [(w.operand(op.args[0], shape), -1)]),
    "mul": _product,
    "div": _quotient,
    **dict.fromkeys(("masked_fill", "where", "constant_pad_nd"), _choice),
    **dict.fromkeys(("mean", "sum"), _reduction),
    **dict.fromkeys(("mm", "bmm"), lambda w, op, shape: _matrices(w, *op.args)),
    **dict.fromkeys(("addmm", "baddbmm"), _affine_product),
    "convolution": _convolution,
    **dict.fromkeys((*FUNCTIONS, "sqrt", "rsqrt", "reciprocal", "square", "pow"), _map),
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max"), _clamp),
    **dict.fromkeys(("rms", "centred_rms"), _norm),
    "weighted_sum": _weighted_sum,
    "gated": _gated,
    "embedding": _embedding,
}
