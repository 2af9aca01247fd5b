r"""The full check: every bound again, from the map, the centre and the metric of the file alone.

Values at the centre are Arb's. Derivatives are float64 with proved errors. Over the ball of a radius, with
:math:`H_l = U_l L^{-1}`, :math:`G_l` and :math:`C_{lk}` of Theorem Q1, Theorem Q3 is applied to the stack of all nodes
at once: their changes form one block diagonal matrix E, so

.. math:: |L (J(z) - J) L^{-1}|_2 \le |[G_l R_l^{1/2}]_l|_2 \, |[C_l^{1/2} U_l(z) L^{-1}]_l|_2 .

The second stack follows node by node from that of the centre (Theorem Q5). In the sharp setting the part of E that is
linear in the state may be bounded by itself instead, and only the rest of it so (Theorem Q6, `fpcheck.check.second`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import numpy as np
from flint import arb
from scipy import sparse

from fpcheck.check.bends import Bend, Indices, Node, nodes_of
from fpcheck.check.clouds import (
    ROOM,
    Cloud,
    Floats,
    frobenius,
    gamma,
    gram_bound,
    norm_bound,
    product_loss,
    root,
)
from fpcheck.check.container import refuse
from fpcheck.check.document import BOUNDS, VERDICTS, Answers, Document
from fpcheck.check.lines import Line
from fpcheck.check.second import Terms, beside, on_top, tau_bound
from fpcheck.check.tangents import Derivatives, derivatives, push
from fpcheck.check.values import Values, evaluate, floats, precision

__all__ = ["full_lines"]

Progress = Callable[[str, int, int], None]

# choice: directions pushed at once, for memory.
_CHUNK = 1024
# choice: pairs of blocks that are kept, for memory; 8 bytes each.
_MAX_PAIRS = 2**28
# choice: entries of the maps between nodes that are kept whole, for memory; 8 bytes each.
_MAX_LINKS = 2**27


def full_lines(held: Document, progress: Progress) -> list[Line]:
    """Recompute, and compare with what is recorded.

    Raises:
        CertificateFileError: An operator or the size is not covered, or the map leaves its domain.

    Guarantee: bound, rounding included: a line that holds was proved from the file's map, centre and metric.
    Cost: n = 768, two layers: a minute or two; memory some 2 GiB.
    Source: Theorems Q1, Q3, Q4, Q5, Q6, K1, R2 and H5.
    """
    # Overflow in a hostile file becomes infinity or NaN, for which no line holds.
    with precision(), np.errstate(all="ignore"):
        return _Check(held, progress).lines()


@final
@dataclass(frozen=True, eq=False)
class _Metric:
    """L with an approximate inverse X; ``defect`` bounds |I - L X|, so L^-1 = X (I - R)^-1 (Theorem R2)."""

    L: Floats
    X: Floats
    defect: float
    norm: float
    inverse_norm: float

    @staticmethod
    def of(L: Floats) -> _Metric | None:
        """None where L is not proved to be invertible."""
        n = L.shape[0]
        try:
            X: Floats = np.linalg.inv(L).astype(np.float64, copy=False)
        except np.linalg.LinAlgError:
            return None
        if not bool(np.isfinite(X).all()):
            return None
        product = Cloud(L, 0.0) @ Cloud(X, 0.0)
        defect = (frobenius(product.mid - np.eye(n)) + product.error + gamma(1) * product.size()) * ROOM
        if not defect < 0.5:  # choice: far above rounding
            return None
        return _Metric(L, X, defect, norm_bound(L), norm_bound(X) / (1 - defect) * ROOM)

    def before(self, M: Cloud) -> Cloud:
        """M L^-1: |M L^-1 - M X| <= |M X| defect / (1 - defect)."""
        product = Cloud(M.mid, 0.0) @ Cloud(self.X, 0.0)
        lacking = product.size() * self.defect / (1 - self.defect)
        return Cloud(product.mid, (product.error + lacking + M.error * self.inverse_norm) * ROOM)

    def after(self, M: Cloud) -> Cloud:
        """L M."""
        product = Cloud(self.L, 0.0) @ Cloud(M.mid, 0.0)
        return Cloud(product.mid, (product.error + self.norm * M.error) * ROOM)


@final
@dataclass(frozen=True, eq=False)
class _Seen:
    """A node in the metric.

    Attributes:
        node: Itself.
        H: By group, tangents of its inputs.
        G: Cotangents of its output.
        h: By group, bounds on the norms of H's row blocks.
        eta: Bounds on the row blocks of the tangents of its output.
        C: By group and earlier node, squares of bounds on the Frobenius norms of the blocks of the map between.
        links: By group and earlier node, these maps themselves, where they were kept.
    """

    node: Node
    H: tuple[Cloud, ...]
    G: Cloud
    h: tuple[Floats, ...]
    g: Floats
    eta: Floats
    C: tuple[dict[int, Floats], ...]
    links: tuple[dict[int, Cloud], ...]


@final
@dataclass
class _Between:
    """What is known of the maps between nodes, by node, group and earlier node; `links` is None where none are kept."""

    C: list[tuple[dict[int, Floats], ...]]
    links: list[tuple[dict[int, list[Cloud]], ...]] | None


@final
@dataclass
class _Check:
    held: Document
    progress: Progress
    done: int = 0
    total: int = 1
    found: list[Line] = field(default_factory=list)

    def tell(self) -> None:
        self.done += 1
        self.progress("full check", min(self.done, self.total), self.total)

    def at_most(self, name: str, value: float, theorem: str | None = None) -> bool:
        """A recorded bound that is at least the checker's own."""
        recorded = self.held.bound(name)
        holds = value <= recorded  # False for NaN
        self.found.append(Line(name, f"{recorded:.9g}", f"{value:.9g}", theorem or BOUNDS[name], holds))
        return holds

    def lines(self) -> list[Line]:
        held = self.held
        values = evaluate(held.program, held.centre)
        at = derivatives(held.program, values)
        nodes = nodes_of(held.program, values)
        self.total = len(nodes) + 9  # choice: of the display
        self.tell()
        metric = _Metric.of(held.L)
        if metric is None:
            self.found.append(Line("metric invertible", "yes", "not proved", "R2", False))
            return self.found
        self.at_most("norm", metric.norm)
        self.at_most("inverse_norm", metric.inverse_norm)
        self.tell()
        n = held.program.n
        inputs, outputs, J = _state_tangents(at, nodes, n)
        self.tell()
        left = self._left(J)
        step = [a - arb(b) for a, b in zip(values[held.program.output], held.centre.tolist(), strict=True)]
        self.at_most("residual", _residual(step, metric, left), VERDICTS[held.verdict])
        Z1 = _centre_rate(J, metric, left)
        self.at_most("centre_rate", Z1, VERDICTS[held.verdict] if left is not None else None)
        self.tell()
        self._answers(metric)
        self.tell()
        seen = self._geometry(at, nodes, inputs, outputs, metric, left)
        tau = None
        if held.setting == "sharp":
            tau = tau_bound(_terms(seen))
            self.at_most("tau", tau)
        self.tell()
        for name, radius in (("near_rate", "near_radius"), ("rate", "radius")):
            self.at_most(name, _kappa(seen, Z1, held.bound(radius), n, tau, enough=held.bound(name)))
            self.tell()
        return self.found

    def _left(self, J: Cloud) -> Floats | None:
        """For the Newton form, a matrix near (I - J)^-1; any serves, and its own bounds are proved."""
        if VERDICTS[self.held.verdict] == "Q4":
            return None
        try:
            return np.linalg.inv(np.eye(J.mid.shape[0]) - J.mid).astype(np.float64, copy=False)
        except np.linalg.LinAlgError:
            return np.eye(J.mid.shape[0])

    def _geometry(
        self,
        at: Derivatives,
        nodes: list[Node],
        inputs: list[tuple[Cloud, ...]],
        outputs: list[Cloud],
        metric: _Metric,
        left: Floats | None,
    ) -> list[_Seen]:
        pairs = sum(
            _count(blocks) * _count(earlier.out_blocks)
            for i, node in enumerate(nodes)
            for blocks in node.blocks
            for earlier in nodes[:i]
        )
        if pairs > _MAX_PAIRS:
            refuse(f"not covered: {pairs} pairs of blocks; the full check keeps at most {_MAX_PAIRS}")
        entries = sum(
            len(blocks) * len(earlier.out_blocks)
            for i, node in enumerate(nodes)
            for blocks in node.blocks
            for earlier in nodes[:i]
        )
        kept = self.held.setting == "sharp" and entries <= _MAX_LINKS
        between = _Between(
            [tuple({} for _ in node.groups) for node in nodes],
            [tuple({} for _ in node.groups) for node in nodes] if kept else None,
        )
        G = []
        for k in range(len(nodes)):
            G.append(self._from_node(at, nodes, k, between))
            self.tell()
        links = between.links or [tuple({} for _ in node.groups) for node in nodes]
        seen = []
        for node, U, out, own, C, maps in zip(nodes, inputs, outputs, G, between.C, links, strict=True):
            H = tuple(metric.before(u) for u in U)
            moved = metric.after(own if left is None else Cloud(left, 0.0) @ own)
            h = tuple(_block_norms(m, blocks) for m, blocks in zip(H, node.blocks, strict=True))
            eta = _block_norms(metric.before(out), node.out_blocks)
            # Only weights: an estimate does.
            g = np.sqrt(_pooled((moved.mid**2).sum(0), node.out_blocks)) + moved.error
            whole = tuple({m: beside(*held.pop(m)) for m in list(held)} for held in maps)
            seen.append(_Seen(node, H, moved, h, g, eta, C, whole))
        return seen

    def _from_node(self, at: Derivatives, nodes: list[Node], k: int, between: _Between) -> Cloud:
        """Derivatives of the result by node k's output; fills in what they are of later nodes' inputs."""
        node, C = nodes[k], between.C
        size = at.program.size(node.register)
        parts, error = [], 0.0
        slack: dict[tuple[int, int], float] = {}
        for start in range(0, size, _CHUNK):
            columns = np.arange(start, min(start + _CHUNK, size))
            seed = np.zeros((size, len(columns)))
            seed[columns, np.arange(len(columns))] = 1.0

            def visit(register: int, t: Cloud, columns: Indices = columns) -> None:
                for later in range(k + 1, len(nodes)):
                    for g, source in enumerate(nodes[later].groups):
                        if source == register:
                            moved = _centred(nodes[later], g, t)
                            if between.links is not None:
                                between.links[later][g].setdefault(k, []).append(moved)
                            squares = _pooled(moved.mid**2, nodes[later].blocks[g]).T
                            squares = _pooled(squares, node.out_blocks[columns], _count(node.out_blocks)).T
                            known = C[later][g].get(k)
                            C[later][g][k] = squares if known is None else known + squares
                            slack[later, g] = slack.get((later, g), 0.0) + moved.error

            out = push(at, node.register, seed, visit)
            parts.append(out.mid)
            error += out.error
        for (later, g), lost in slack.items():
            # Norms of blocks: the roots, enlarged by rounding, plus the error; then squares again.
            squares = C[later][g][k]
            C[later][g][k] = (np.sqrt(squares * (1 + 2 * gamma(size + squares.size))) * ROOM + lost * ROOM) ** 2 * ROOM
        return Cloud(np.concatenate(parts, axis=1), error * ROOM)

    def _answers(self, metric: _Metric) -> None:
        answers = self.held.answers
        if answers is None:
            return
        radius, top = _decisions(answers, self.held.centre, metric)
        for token, (recorded, own) in enumerate(zip(answers.radius, radius, strict=True)):
            name = f"answer of token {token}"
            self.found.append(
                Line(name, str(answers.answer[token]), str(top[token]), "H5", answers.answer[token] == top[token])
            )
            self.found.append(
                Line(f"decision radius of token {token}", f"{recorded:.9g}", f"{own:.9g}", "H5", recorded <= own)
            )


def _count(blocks: Indices) -> int:
    return int(blocks.max()) + 1 if blocks.size else 0


def _pooled(squares: Floats, blocks: Indices, count: int | None = None) -> Floats:
    """Sums over the blocks of the first dimension."""
    count = _count(blocks) if count is None else count
    if count == len(blocks) and bool((blocks == np.arange(count)).all()):
        return squares
    ones, entries = np.ones(len(blocks)), np.arange(len(blocks))
    return np.asarray(sparse.csr_matrix((ones, (blocks, entries)), shape=(count, len(blocks))) @ squares)


def _centred(node: Node, group: int, t: Cloud) -> Cloud:
    stack = node.centre[group]
    return t if stack is None else stack(t, stack.mid.shape[0])


def _state_tangents(at: Derivatives, nodes: list[Node], n: int) -> tuple[list[tuple[Cloud, ...]], list[Cloud], Cloud]:
    """Of every node's inputs and output, and the Jacobian."""
    inputs: list[list[Cloud]] = [[Cloud(np.zeros((len(b), n)), 0.0) for b in node.blocks] for node in nodes]
    outputs = [Cloud(np.zeros((len(node.out_blocks), n)), 0.0) for node in nodes]

    def visit(register: int, t: Cloud) -> None:
        for number, node in enumerate(nodes):
            if node.register == register:
                outputs[number] = t
            for g, source in enumerate(node.groups):
                if source == register:
                    inputs[number][g] = _centred(node, g, t)

    J = push(at, 0, np.eye(n), visit)
    return [tuple(parts) for parts in inputs], outputs, J


def _residual(step: Values, metric: _Metric, left: Floats | None) -> float:
    mid, rad = floats(step)
    v = Cloud(mid[:, None], frobenius(rad))
    return metric.after(v if left is None else Cloud(left, 0.0) @ v).size()


def _centre_rate(J: Cloud, metric: _Metric, left: Floats | None) -> float:
    inner = J
    if left is not None:
        eye = np.eye(J.mid.shape[0])
        rest = Cloud(eye - J.mid, (J.error + gamma(1) * frobenius(eye - J.mid)) * ROOM)
        product = Cloud(left, 0.0) @ rest
        inner = Cloud(eye - product.mid, (product.error + gamma(1) * frobenius(eye - product.mid)) * ROOM)
    return metric.before(metric.after(inner)).norm()


def _block_norms(M: Cloud, blocks: Indices) -> Floats:
    """Bounds on the 2-norms of the blocks of rows."""
    count = _count(blocks)
    if count == len(blocks):
        found = np.empty(count)
        found[blocks] = np.sqrt((M.mid**2).sum(1) * (1 + 2 * gamma(M.mid.shape[1] + 1))) * ROOM
        return (found + M.error) * ROOM
    return np.array([(norm_bound(M.mid[blocks == block]) + M.error) * ROOM for block in range(count)])


@final
@dataclass(frozen=True, eq=False)
class _Weighted:
    """A node between its Schur weights, R on its outputs and C on its inputs.

    Attributes:
        R: By output block.
        C: By group and input block.
        left: G R^1/2.
        gram: (C^1/2 H)'(C^1/2 H), computed.
        lost: Bound on what its rounding moved it by, in the Frobenius norm.
        error: Bound on the error of C^1/2 H itself.
    """

    R: Floats
    C: tuple[Floats, ...]
    left: Cloud
    gram: Floats
    lost: float
    error: float


def _terms(seen: list[_Seen]) -> list[Terms]:
    return [own.node.form(own.G, own.H) for own in seen if own.node.form is not None]


def _kappa(seen: list[_Seen], Z1: float, radius: float, n: int, tau: float | None, *, enough: float) -> float:
    """A bound on |L J(z) L^-1|_2 over the ball; infinite where a node refuses it.

    With tau also with the norms of the maps between nodes themselves, and in the form
    Z1 + tau r + |G E (U(z) - U) L^-1| + |G E_2 H| (Theorem Q6), unless the first bound is ``enough`` already.
    """
    rho: list[Floats] = []
    weighted: list[_Weighted] = []
    rest: list[_Weighted] = []
    for own in seen:
        b = []
        for g, h in enumerate(own.h):
            bent = np.zeros(len(h))
            for k, squares in own.C[g].items():
                bent = bent + np.sqrt(squares) @ rho[k]
            b.append(bent * ROOM)
        a = tuple((radius * h + bent) * ROOM for h, bent in zip(own.h, b, strict=True))
        bend = own.node.bend(a, tuple(b), radius * own.eta * ROOM)
        if bend is None:
            return math.inf
        rho.append(bend.rho)
        weighted.append(_weights(own, tuple(e for _, _, e in bend.e), bend, n))
        if tau is not None:
            rest.append(_weights(own, bend.e2, bend, n))
    if not seen:
        return Z1
    kappa = (Z1 + _change(weighted, _resolvent(_blockwise(seen, weighted)), n)) * ROOM
    if tau is None or kappa <= enough:
        return kappa
    N, eye = _resolvent(_linkwise(seen, weighted)), np.eye(len(seen))
    split = tau * radius + _change(weighted, N - eye, n) + _change(rest, eye, n)
    return min(kappa, (Z1 + _change(weighted, N, n)) * ROOM, (Z1 + split * ROOM) * ROOM)


def _weights(own: _Seen, bounds: tuple[Floats, ...], bend: Bend, n: int) -> _Weighted:
    R, C = np.zeros(len(own.g)), tuple(np.zeros(len(h)) for h in own.h)
    for e, (out, into, _), h, column in zip(bounds, bend.e, own.h, C, strict=True):
        # Any positive weights are sound; these make both sides of the Schur test alike.
        theta = _floored(h)[into] / _floored(own.g)[out]
        np.add.at(R, out, theta * e * ROOM)
        np.add.at(column, into, e / theta * ROOM)
    gram, lost, error = np.zeros((n, n)), 0.0, 0.0
    for H, column, blocks in zip(own.H, C, own.node.blocks, strict=True):
        part = H.weighted(np.sqrt(column[blocks]) * ROOM, None)
        gram = gram + part.mid.T @ part.mid
        lost += product_loss(part.mid) + gamma(1) * frobenius(gram)
        error += part.error
    left = own.G.weighted(None, np.sqrt(R[own.node.out_blocks]) * ROOM)
    return _Weighted(R, C, left, gram, lost * ROOM, error * ROOM)


def _resolvent(k: Floats) -> Floats:
    """A bound on I + k + k^2 + ... for non-negative k below the diagonal."""
    A = np.eye(len(k))
    for own in range(len(k)):
        for m in range(own):
            A[own] += k[own, m] * A[m] * ROOM
    return A


def _blockwise(seen: list[_Seen], weighted: list[_Weighted]) -> Floats:
    """Bounds on |C_l^1/2 C_lm R_m^1/2|_2 from the sizes of the blocks."""
    count = len(seen)
    k = np.zeros((count, count))
    for own in range(count):
        for m in range(own):
            square = 0.0
            for g, column in enumerate(weighted[own].C):
                if m in seen[own].C[g]:
                    square += float(column @ seen[own].C[g][m] @ weighted[m].R)
            k[own, m] = root(square)
    return k


def _linkwise(seen: list[_Seen], weighted: list[_Weighted]) -> Floats:
    """The same, where the maps were kept from their own norms."""
    k = _blockwise(seen, weighted)
    for own, later in enumerate(seen):
        for m in range(own):
            columns = np.sqrt(weighted[m].R[seen[m].node.out_blocks]) * ROOM
            parts = [
                held[m].weighted(np.sqrt(column[blocks]) * ROOM, columns)
                for held, column, blocks in zip(later.links, weighted[own].C, later.node.blocks, strict=True)
                if m in held
            ]
            if parts:
                k[own, m] = min(k[own, m], on_top(*parts).norm())
    return k


def _change(weighted: list[_Weighted], A: Floats, n: int) -> float:
    """A bound on |G R^1/2 M C^1/2 H|_2 for every M with blocks by pairs of nodes of norms at most A's entries.

    It is at most |G R^1/2 s|_2 |s^-1 A w|_2 |w^-1 C^1/2 H|_2 of the stacks, for any positive numbers s and w by node.
    These make it the sum over pairs of nodes where the stacks are orthogonal (Theorem Q5).
    """
    left = np.array([w.left.norm() for w in weighted])
    right = np.array([(root(gram_bound(w.gram, w.lost)) + w.error) * ROOM for w in weighted])
    apart = float(left @ A @ right) * ROOM
    tiny = 2.0**-500  # keeps the scales positive and finite
    s = np.sqrt((A @ right + tiny) / (left + tiny))
    w = np.sqrt((right + tiny) / (A.T @ left + tiny))
    middle = norm_bound(A / s[:, None] * w[None, :] * ROOM)
    outer, inner = np.zeros((n, n)), np.zeros((n, n))
    outer_lost = inner_lost = outer_error = inner_error = 0.0
    for part, by, over in zip(weighted, s, w, strict=True):
        M, up, down = part.left, float(by) ** 2 * ROOM, 1 / float(over) ** 2 * ROOM
        outer = outer + up * (M.mid @ M.mid.T)
        outer_lost += up * (product_loss(M.mid.T) + gamma(2) * frobenius(M.mid) ** 2) + gamma(1) * frobenius(outer)
        outer_error += root(up) * M.error
        inner = inner + down * part.gram
        inner_lost += down * (part.lost + gamma(1) * frobenius(part.gram)) + gamma(1) * frobenius(inner)
        inner_error += root(down) * part.error
    first = root(gram_bound(outer, outer_lost * ROOM)) + outer_error * ROOM
    second = root(gram_bound(inner, inner_lost * ROOM)) + inner_error * ROOM
    together = first * middle * second * ROOM
    return min(apart, together)


def _floored(sizes: Floats) -> Floats:
    """Kept away from 0, where a weight would turn an error of 1e-16 into anything."""
    return sizes + (1e-6 * sizes.max(initial=0.0) + 1e-100)  # choice: far below any size that counts


def _decisions(answers: Answers, centre: Floats, metric: _Metric) -> tuple[list[float], list[int]]:
    """By token: how far, in the metric, the answer is sure to stay, and the answer at the centre."""
    program, classes = answers.program, answers.classes
    values = evaluate(program, centre)
    at = derivatives(program, values)
    if nodes_of(program, values):
        refuse("decisions: not covered: a read-out that is not linear in the state")
    rows = push(at, 0, np.eye(program.n), lambda register, t: None)
    logits = values[program.output]
    radii, tops = [], []
    for token in range(len(answers.answer)):
        own = logits[token * classes : (token + 1) * classes]
        top = max(range(classes), key=lambda j: float(own[j].mid()))
        tops.append(top)
        mid = rows.mid[token * classes : (token + 1) * classes]
        moved = mid[top] - mid
        lost = 2 * rows.error + gamma(1) * frobenius(moved)
        lengths = metric.before(Cloud(moved, lost * ROOM))
        radius = math.inf
        for j in range(classes):
            if j != top:
                margin = max(float((own[top] - own[j]).lower()) / ROOM, 0.0)
                length = (frobenius(lengths.mid[j]) + lengths.error) * ROOM
                radius = min(radius, margin / length / ROOM if length > 0 else (math.inf if margin > 0 else 0.0))
        radii.append(radius)
    return radii, tops
