r"""The running loop: where the iterates that torch computes stay, although each step is rounded.

A certificate speaks of the exact map. The loop that runs is another map, within some :math:`\varphi` of it. Where
:math:`Y + \kappa r + \varphi \le r`, computed iterates never leave the ball, and in the long run they are within
:math:`\varphi / (1 - \kappa)` of the fixed point (Theorem B4).

:math:`\varphi` is made of what each operator loses, carried to the result. With :math:`\eta` for these losses,
:math:`\sigma_l` for what node l makes of its inputs' errors beyond its Jacobian at the centre, and G the cotangents at
the centre, the computed step differs from the exact one by exactly
:math:`\sum_i G_i \eta_i + \sum_l G_l \sigma_l` (Theorem R6).

Shapes: as in :mod:`~fpcheck.certify.enclosure`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, final

import torch
from flint import arb
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.curvature import Geometry, Linearisation, curvature, geometry
from fpcheck.certify.enclosure import Enclosure, _index_maps, _resolve, _tangent, _value
from fpcheck.certify.metric import Metric
from fpcheck.certify.nodes import Local
from fpcheck.certify.norms import frobenius_bound, norm_bound, row_norm_bounds
from fpcheck.certify.operators import MOVERS
from fpcheck.certify.reals import Reals, working_precision
from fpcheck.certify.rounding import ROOM, down, up
from fpcheck.certify.roundings import Arithmetic, carried, lost
from fpcheck.certify.tangents import Tangents
from fpcheck.certify.trace import Op, Ref
from fpcheck.errors import InputError, UnsupportedOperatorError

__all__ = ["Running", "running"]

# choice: balls that are tried, as shares of the certified one, the largest first.
_SHARES = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 3e-2, 1e-2, 1e-3, 1e-4)
_ROUNDS = 4  # choice: balls about the floor, each smaller than the one before, for a better floor


@final
@dataclass(frozen=True, eq=False)
class Running:
    """What was proved about the loop as it runs, if its arithmetic is as assumed.

    Attributes:
        claimed: Whether anything was. If so: no computed iterate that starts in the ball of ``radius`` about the
            certificate's centre ever leaves it, and all but finitely many are within any number above ``floor`` of z*.
        reason: Why not, naming the inequality that failed; else empty.
        error: phi, a bound on |computed F(z) - F(z)|_P for every float state z of the ball.
        radius: r, in the metric.
        rate: kappa over this ball.
        floor: phi / (1 - kappa) of a ball about the centre in which iterates are proved to end, in the metric.
        metric: The certificate's.
        shares: By operator, its part of phi.
        arithmetic: How the loop is assumed to run; ``arithmetic.assumptions`` says it in words.
    """

    claimed: bool
    reason: str
    error: float
    radius: float
    rate: float
    floor: float
    metric: Metric
    shares: dict[str, float]
    arithmetic: Arithmetic

    @property
    def euclidean_floor(self) -> float:
        """The same in the Euclidean norm."""
        return up(self.floor * self.metric.inverse_norm)


def running(held: Enclosure, linear: Linearisation, found: Certificate, arithmetic: Arithmetic) -> Running:
    """Bound the rounding of one computed step over the certified ball, and what it does to the loop.

    Args:
        held: The enclosure at the certificate's centre, recorded from the loop that runs.
        linear: Its linearisation.
        found: A certificate that the exact loop is attracted.
        arithmetic: How the loop runs: dtype and library functions, which are assumptions.

    Returns:
        A `Running`; ``claimed`` is False where the ball has no room for the rounding (bfloat16 as a rule), or where an
        operator has no bound on its rounding.

    Raises:
        InputError: The certificate proves no attraction.

    Guarantee: bound, rounding of the proof included, if ``arithmetic.assumptions`` hold.
    Cost: two products of ``(n, n)`` with each operator's tangents, and a curvature for each ball that is tried.
    Source: Theorems B4 and R6.
    """
    if found.verdict is not Verdict.PROVED_ATTRACTING or found.metric is None:
        raise InputError(f"verdict={found.verdict.value}; expected a certificate of attraction")
    metric = found.metric
    infinite = math.inf

    def unclaimed(reason: str, error: float = infinite) -> Running:
        return Running(False, reason, error, 0.0, infinite, infinite, metric, {}, arithmetic)

    shape = geometry(linear, metric)
    try:
        step = _Step(held, shape, metric, arithmetic)
        best = ""
        error = infinite
        for share in _SHARES:
            radius = found.radius * share
            shares = step.error(radius)
            phi = up(sum(shares.values()) * ROOM)
            error = min(error, phi)
            if not up(found.residual + phi) < radius:
                best = best or f"Y + kappa r + phi <= r fails at every r: phi = {phi:.2e} at r = {radius:.2e}"
                continue
            kappa = found.rate if share == 1 else curvature(shape, found.centre_rate, radius).kappa
            if up(up(found.residual + up(kappa * radius)) + phi) <= radius:
                floor = up(phi / down(1 - kappa))
                for _ in range(_ROUNDS):
                    floor = _lowered(step, found, floor)
                return Running(True, "", phi, radius, kappa, floor, metric, shares, arithmetic)
            best = (
                f"Y + kappa r + phi <= r fails: Y = {found.residual:.2e}, kappa = {kappa:.4f}, phi = {phi:.2e} at "
                + (f"r = {radius:.2e}")
            )
    except UnsupportedOperatorError as failed:
        return unclaimed(str(failed))
    return unclaimed(best + "; a wider dtype may do", error)


def _lowered(step: _Step, found: Certificate, floor: float) -> float:
    """The floor that follows from the ball in which all but finitely many iterates are: there the rate is better."""
    radius = up(floor + found.error_bound) * (1 + 2.0**-10)
    kappa = curvature(step.shape, found.centre_rate, radius).kappa
    phi = up(sum(step.error(radius).values()) * ROOM)
    return min(floor, up(phi / down(1 - kappa))) if kappa < 1 and radius <= found.radius else floor


@final
@dataclass(frozen=True, eq=False)
class _Constant:
    """A value that does not depend on the state, as the loop computes it: moduli, and bounds on its error."""

    moduli: Tensor
    error: Tensor


@final
@dataclass
class _Step:
    """One step's operators with what is needed to bound their rounding over balls of any radius."""

    held: Enclosure
    shape: Geometry
    metric: Metric
    arithmetic: Arithmetic
    constants: dict[int, _Constant] = field(default_factory=dict)
    rows: dict[int, Tensor] = field(default_factory=dict)
    columns: dict[int, tuple[Tensor, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.varying = self.held.graph.varying()
        self.numbers = {node.index: number for number, node in enumerate(self.shape.nodes)}
        self._constants()

    def _constants(self) -> None:
        """Run what does not depend on the state in balls that are widened by each operator's rounding."""
        wide: list[Any] = []
        with working_precision():
            for i, op in enumerate(self.held.graph.ops):
                if self.varying[i] or op.target == "input":
                    wide.append(None)
                elif op.target == "constant":
                    assert op.value is not None
                    if not op.value.is_floating_point():
                        wide.append(op.value)
                        continue
                    exact = op.value.to(torch.float64)
                    stored = exact.to(self.arithmetic.dtype).to(torch.float64)
                    gap = torch.where(exact.isfinite(), (exact - stored).abs() * ROOM, 0.0)
                    wide.append(_widened(Reals.exact(op.value), gap))
                else:
                    wide.append(self._run(op, wide))
                if isinstance(wide[i], Reals):
                    self.constants[i] = _constant(wide[i], self.held.values[i])

    def _run(self, op: Op, wide: list[Any]) -> Any:
        value = _value(op, wide)
        if not isinstance(value, Reals):
            return value  # whole numbers, or a tuple of moved entries
        moduli = tuple(_size(a.ball()) if isinstance(a, Reals) else a for a in _resolve(op.args, wide))
        reals = [a for a in _resolve(op.args, wide) if isinstance(a, Reals)]
        own = lost(op, moduli, _size(value.ball()), self.arithmetic) if reals else None
        return value if own is None else _widened(value, own)

    def error(self, radius: float) -> dict[str, float]:
        """By operator, its part of phi over a ball; infinite where a node refuses it.

        Source: Theorem R6.
        """
        graph, values = self.held.graph, self.held.values
        moved = self._displacements(radius)
        if moved is None:
            return {"a node refuses the ball": math.inf}
        count = len(graph.ops)
        # Frobenius norms of three things, as tangents of unknown direction: how far values bend away from linear in the
        # state, how far computed values are off, and the part of that which has passed no node since it arose.
        bends: list[Any] = [None] * count
        errors: list[Any] = [None] * count
        direct: list[Any] = [None] * count
        through: list[tuple[Tensor, float]] = []  # by node: what passes it, by output block, and as one norm
        moduli: dict[int, Tensor] = {}
        shares: dict[str, float] = {}
        for i, op in enumerate(graph.ops):
            if op.target == "input":
                bends[i] = errors[i] = direct[i] = _zero(values[i], 0.0)
                moduli[i] = self._reach(i, radius, 0.0)
                continue
            if not self.varying[i]:
                continue
            part, label = 0.0, f"{i} {op.target.partition('.')[0]}"
            if i in self.numbers:
                number = self.numbers[i]
                node = self.shape.nodes[number]
                a, bend, local = moved[number]
                bends[i] = _zero(values[i], up(self._at_centre(i, bends, bend) + _length(local.rho)))
                off = self._off(number, direct, through)
                sigma = self._sigma(number, a, off)
                passed = _tangent(op, values, direct, values[i]).error
                size = _length(sigma)
                through.append((sigma, passed))
                errors[i] = _zero(values[i], up(self._at_centre(i, errors, off) + size))
                direct[i] = _zero(values[i], 0.0)
                blocks = float((self.shape.g[number] * sigma).sum()) * ROOM
                part = min(blocks, up(self._columns(node.index)[1] * size)) if size else 0.0
            else:
                bends[i], errors[i], direct[i] = (
                    _tangent(op, values, held, values[i]) for held in (bends, errors, direct)
                )
                if isinstance(values[i], tuple):
                    continue
            reach = self._reach(i, radius, up(bends[i].error + errors[i].error))
            given = tuple(self._argument(arg, moduli) for arg in op.args)
            wrong = tuple(self._inexactness(arg, moduli) for arg in op.args)
            own = _added(lost(op, given, reach, self.arithmetic), self._carried(op, given, wrong, reach))
            moduli[i] = reach
            if own is not None:
                # Entries of minus infinity are exact.
                own = torch.where(values[i].mid == -math.inf, 0.0, own.expand(values[i].shape))
                columns, whole = self._columns(i)
                size = _length(own)
                errors[i], direct[i] = (_zero(values[i], up(held[i].error + size)) for held in (errors, direct))
                moduli[i] = (reach + own) * ROOM
                part = up(part + min(float((columns * own.reshape(-1)).sum()) * ROOM, up(whole * size)))
            if part:
                shares[label] = part if math.isfinite(part) else math.inf
        return shares

    def _at_centre(self, i: int, held: list[Any], moves: tuple[Tensor, ...]) -> float:
        """What a node's Jacobian at the centre makes of moves of its inputs, the smaller of two bounds on each."""
        op, values = self.held.graph.ops[i], self.held.values
        node = self.shape.nodes[self.numbers[i]]
        sizes: dict[int, float] = {}
        for source, move in zip(node.groups, moves, strict=True):
            sizes[source] = max(sizes.get(source, 0.0), _length(move))
        given = list(held)
        for source, size in sizes.items():
            given[source] = _zero(values[source], min(size, held[source].error))
        return float(_tangent(op, values, given, values[i]).error)

    def _off(self, number: int, direct: list[Any], through: list[tuple[Tensor, float]]) -> tuple[Tensor, ...]:
        """By group of a node's inputs, how far the computed blocks are off (the third line of Theorem R6)."""
        node = self.shape.nodes[number]
        found = []
        for group, source in enumerate(node.groups):
            # Less its mean under some weights, an entry moves by at most twice the largest.
            factor = 2 if node.centring(group) is not None else 1
            total = torch.full_like(self.shape.h[number][group], up(factor * direct[source].error))
            for k, blocks in self.shape.C[number][group].items():
                sigma, passed = through[k]
                total = total + blocks @ sigma + row_norm_bounds(Ball.exact(blocks)) * passed
            found.append(total * ROOM)
        return tuple(found)

    def _displacements(self, radius: float) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...], Local]] | None:
        """By node, how far its input blocks move over the ball, the part that bends, and what it says about that."""
        found: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...], Local]] = []
        for number, node in enumerate(self.shape.nodes):
            bends = []
            for group in range(len(node.groups)):
                total = torch.zeros_like(self.shape.h[number][group])
                for k, blocks in self.shape.C[number][group].items():
                    total = total + blocks @ found[k][2].rho
                bends.append(total * ROOM)
            a = tuple((radius * h + b) * ROOM for h, b in zip(self.shape.h[number], bends, strict=True))
            local = node.local(a, tuple(bends))
            if local is None:
                return None
            found.append((a, tuple(bends), local))
        return found

    def _sigma(self, number: int, a: tuple[Tensor, ...], off: tuple[Tensor, ...]) -> Tensor:
        """By output block, what a node makes of its inputs' errors beyond its Jacobian at the centre."""
        node = self.shape.nodes[number]
        total = torch.zeros_like(self.shape.g[number])
        if not any(bool(o.any()) for o in off):
            return total
        # Between the exact and the computed inputs, none is further from the centre than this.
        wider = tuple((move + error) * ROOM for move, error in zip(a, off, strict=True))
        local = node.local(wider, wider)
        if local is None:
            return total + math.inf
        for coupling, error in zip(local.e, off, strict=True):
            total.index_add_(0, coupling.out, coupling.bound * error[coupling.into])
        return total * ROOM

    def _reach(self, i: int, radius: float, more: float) -> Tensor:
        """Bounds on an operator's moduli over the ball; 0 where the value is minus infinity."""
        value = self.held.values[i]
        if i not in self.rows:
            t = self.held.forward.tangents[i]
            product = Ball.exact(t.mid.reshape(t.shape[0], -1).mT) @ Ball.exact(self.metric.inverse)
            rows = row_norm_bounds(product) / down(1 - self.metric.defect) * ROOM
            self.rows[i] = (rows + up(t.error * self.metric.inverse_norm)).reshape(value.shape) * ROOM
        return (_size(value) + self.rows[i] * radius + more) * ROOM

    def _columns(self, i: int) -> tuple[Tensor, float]:
        """Norms of the columns of L G_i, for the cotangents of an operator's result, and of all of it."""
        if i not in self.columns:
            t = self.held.backward.tangents[i]
            if t is None:
                size = self.held.values[i].mid.numel()
                self.columns[i] = torch.zeros(size, dtype=torch.float64), 0.0
            else:
                product = Ball.exact(self.metric.L) @ Ball.exact(t.mid.reshape(t.shape[0], -1))
                lacking = up(t.error * self.metric.norm)
                columns = (row_norm_bounds(product.mT) + lacking) * ROOM
                self.columns[i] = columns, up(norm_bound(product, rough=True) + lacking)
        return self.columns[i]

    def _argument(self, arg: Any, moduli: dict[int, Tensor]) -> Any:
        """Moduli of an argument; the argument itself where it is no tensor of reals."""
        if isinstance(arg, Ref):
            if arg.index in moduli:
                return moduli[arg.index]
            held = self.constants.get(arg.index)
            return self.held.values[arg.index] if held is None else held.moduli
        return tuple(self._argument(a, moduli) for a in arg) if isinstance(arg, tuple) else arg

    def _inexactness(self, arg: Any, moduli: dict[int, Tensor]) -> Any:
        """Errors of an argument that does not depend on the state, zeros for one that does."""
        if isinstance(arg, Ref):
            if arg.index in moduli:
                return torch.zeros_like(moduli[arg.index])
            held = self.constants.get(arg.index)
            return self.held.values[arg.index] if held is None else held.error
        return tuple(self._inexactness(a, moduli) for a in arg) if isinstance(arg, tuple) else arg

    def _carried(self, op: Op, given: tuple[Any, ...], off: tuple[Any, ...], reach: Tensor) -> Tensor | None:
        if op.target.partition(".")[0].removesuffix("_copy") in MOVERS:
            return _moved(op, off)
        return carried(op, given, off, reach)


def _moved(op: Op, off: tuple[Any, ...]) -> Tensor | None:
    """Errors of what stands beside varying entries, moved along with them."""
    leaves = [t for a in off for t in (a if isinstance(a, tuple) else (a,)) if isinstance(t, Tensor)]
    if not any(t.is_floating_point() and bool(t.any()) for t in leaves):
        return None
    balls = tuple(_as_balls(a) for a in off)
    held, maps = _index_maps(op, balls)
    if isinstance(maps, tuple):
        raise UnsupportedOperatorError(f"operator={op.target} at {op.where} has no bound on its rounding")
    together = torch.cat([h.mid.reshape(-1) for h in held] + [torch.zeros(1, dtype=torch.float64)])
    return together[maps]


def _as_balls(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_as_balls(v) for v in value)
    return Ball.exact(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def _added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return (a + b) * ROOM


def _zero(value: Ball, error: float) -> Tangents:
    return Tangents(torch.zeros((1, *value.shape), dtype=torch.float64), error)


def _size(value: Ball) -> Tensor:
    return torch.where(value.mid == -math.inf, 0.0, value.magnitude())


def _length(bounds: Tensor) -> float:
    return frobenius_bound(Ball.exact(bounds.reshape(1, -1)))


def _widened(value: Reals, error: Tensor) -> Reals:
    errors = error.expand(value.shape).flatten().tolist()
    return Reals(
        value.shape,
        [None if v is None else v + arb(0, e) for v, e in zip(value.entries, errors, strict=True)],
    )


def _constant(wide: Reals, exact: Ball) -> _Constant:
    run = wide.ball()
    present = exact.mid != -math.inf
    apart = torch.where(present, (run.mid - exact.mid).abs() + run.rad + exact.rad, 0.0)
    return _Constant(_size(run), apart * ROOM)
