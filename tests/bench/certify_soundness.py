"""Can any bound be beaten? ``python tests/bench/certify_soundness.py [--size 64] [--minutes 60] [--model s3]``.

Attacks on the norm rules, on every node's rule, and on every claim of certificates of small blocks of each kind (and,
with ``--model``, of a shipped one): random states, directions and pairs, and such as power iteration, gradient ascent
and mutation with restarts make of them. Searches run in float64; what they find is judged at 300 bits, by
tests/attacks.py and tests/certify/test_nodes.py. A share is truth over bound, rounded up.

The last table sets the certified radius against the smallest at which an attack finds a Jacobian of norm 1 or more in
the same metric, and against the smallest start that is not in the ball after 300 steps.

Exit code 1 if any share is above 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "certify"))

import attacks
import exact_blocks
import numpy as np
import test_nodes
import torch
from attacks import Arena, Found, Judge, Subject, Tally, share
from flint import arb
from machine import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import fpcheck as fp
from fpcheck.certify import Ball, Certificate, Verdict, certify, norm_bound
from fpcheck.certify.metric import proved_metric
from fpcheck.certify.norms import (
    frobenius_bound,
    gram_bound,
    inverse_residual_bound,
    quick_norm_bound,
    row_norm_bounds,
)
from fpcheck.errors import UnsupportedOperatorError
from fpcheck.target import Data, find_target

D = torch.float64
Tallies = dict[str, Tally]


def settings() -> dict[str, dict[str, object]]:
    """Options of ``certify`` by name: the settings that this version has."""
    room = sys.modules["fpcheck.certify"]  # fp.certify is the function
    found = {name: {"setting": getattr(room, name)()} for name in ("Fast", "Sharp") if hasattr(room, name)}
    return found or {"default": {}}


def merged(*tallies: Tallies) -> Tallies:
    total: Tallies = {}
    for part in tallies:
        for name, tally in part.items():
            held = total.get(name, Tally(0, 0.0))
            total[name] = Tally(held.attacks + tally.attacks, max(held.worst, tally.worst))
    return total


# Norms: a matrix of the ball, and a vector that it stretches most.


def matrices(generator: torch.Generator) -> Iterator[Tensor]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=D, generator=generator)

    n = int(torch.randint(2, 13, (), generator=generator))
    yield draw(n, n)
    yield draw(n, 2 * n)
    yield draw(2 * n, n)
    yield draw(n, 1) @ draw(1, n)
    yield draw(n, n) * 10.0 ** torch.linspace(0, -14, n, dtype=D)
    yield torch.linalg.qr(draw(n, n))[0]
    yield draw(n, n) * 1e-150
    yield draw(n, n) * 1e150
    yield torch.ones(n, n, dtype=D)


def norms(options: argparse.Namespace, seed: int) -> Tallies:
    """Every norm rule on random matrices of many kinds, with the worst member of each ball."""
    generator = torch.Generator().manual_seed(seed)
    found: Tallies = {}

    def note(name: str, truth: arb, bound: float) -> None:
        nonlocal found
        found = merged(found, {name: Tally(1, share(truth, bound))})

    with exact_blocks.precision():
        for _ in track(range(max(1, 4 * options.size)), "norms", console=ERR, disable=QUIET):
            for mid in matrices(generator):
                spread = float(mid.abs().max()) * float(10.0 ** (-18 * torch.rand((), dtype=D, generator=generator)))
                u, _, v = torch.linalg.svd(mid)
                rad = spread * torch.rand(mid.shape, dtype=D, generator=generator)
                signs = torch.sign(torch.outer(u[:, 0], v[0]))
                ball = Ball(mid, rad)
                worst = exact_blocks.reals(mid) + exact_blocks.reals(rad) * exact_blocks.reals(signs)
                w = exact_blocks.reals(v[0])
                size = attacks.norm(worst @ w) / attacks.norm(w)
                note("norm", size, norm_bound(ball))
                note("norm, rough", size, norm_bound(ball, rough=True))
                note("norm, quick", size, quick_norm_bound(ball))
                far = exact_blocks.reals(mid) + exact_blocks.reals(rad) * exact_blocks.reals(torch.sign(mid))
                note("Frobenius norm", attacks.norm(far), frobenius_bound(ball))
                rows = row_norm_bounds(ball).tolist()
                for row, bound in zip(far, rows, strict=True):
                    note("norms of rows", attacks.norm(row), bound)
                gram = exact_blocks.reals(mid.mT @ mid)
                top = torch.linalg.eigh(mid.mT @ mid)[1][:, -1]
                q = exact_blocks.reals(top)
                sides = exact_blocks.reals(torch.sign(torch.outer(top, top)) * spread)
                level = q @ ((gram + gram.T) / 2 + sides) @ q / (q @ q)
                held = Ball(mid.mT @ mid, torch.full((mid.shape[1], mid.shape[1]), spread, dtype=D))
                note("largest eigenvalue", level, gram_bound(held))
            n = int(torch.randint(2, 9, (), generator=generator))
            L = torch.randn(n, n, dtype=D, generator=generator) + 3 * torch.eye(n, dtype=D)
            X = torch.linalg.inv(L) * (1 + 10.0 ** (-16 * torch.rand((), dtype=D, generator=generator)))
            gap = exact_blocks.reals(torch.eye(n, dtype=D)) - exact_blocks.reals(L) @ exact_blocks.reals(X)
            note("residual of an inverse", attacks.norm(gap), inverse_residual_bound(Ball.exact(L), Ball.exact(X)))
            metric = proved_metric(L, X)
            if metric is None:
                continue
            J, e = torch.randn(n, n, dtype=D, generator=generator), float(10.0 ** -(9 * torch.rand(()).item()))
            u, _, v = torch.linalg.svd(L @ J @ X)
            E = torch.outer(torch.linalg.svd(L)[2][0], torch.linalg.svd(X)[0][:, 0])
            E = E * (e / (float(E.norm()) * (1 + 1e-15)))
            exact, way = exact_blocks.reals(J) + exact_blocks.reals(E), exact_blocks.reals(X @ v[0])
            over = exact_blocks.reals(L)
            ratio = attacks.norm(over @ (exact @ way)) / attacks.norm(over @ way)
            note("norm of a Jacobian in a metric", ratio, metric.operator_norm(Ball.exact(J), e))
    return found


# Nodes.


def nodes(options: argparse.Namespace, seed: int) -> Tallies:
    """Every node's e, e2 and rho: a population climbs, the winners are judged at 300 bits."""
    found: Tallies = {}
    for name, (kind, _) in track(list(test_nodes.KINDS.items()), "nodes", console=ERR, disable=QUIET):
        count = max(4, options.size)
        winners, _ = test_nodes.climb(kind, count=count, rounds=10 * options.rounds, seed=seed)
        worst = np.array([test_nodes.judged(kind, winner) for winner in winners]).max(0)
        tried = len(test_nodes.aims(kind)) * count * (10 * options.rounds + 1)
        for bound, value in zip(("e", "e2", "rho"), worst, strict=True):
            found[f"{name}: {bound}"] = Tally(tried, float(value))
    return found


# Certificates.


def shipped(name: str, inputs: int) -> dict[str, Callable[[], Subject]]:
    """A shipped model's loops on some inputs."""
    target = find_target(name, Data(inputs=inputs)).to(D)
    loop = fp.Loop(target.block, target.x, z0=target.z0, check=False)
    head = fp.load(name).lm_head.weight.detach().to(D)
    readout = nn.Linear(head.shape[1], head.shape[0], bias=False).to(D).requires_grad_(False)
    readout.weight.copy_(head)

    def subject(i: int) -> Subject:
        single = loop.sample(i)
        state = attacks.settled(single, target.z0[i : i + 1])
        return Subject(single, state, exact_blocks.fprm(single.block, single.x[0]), readout)

    return {f"{name}, input {i}": lambda i=i: subject(i) for i in range(inputs)}


@dataclasses.dataclass(frozen=True)
class Proved:
    """A subject with its certificate."""

    name: str
    subject: Subject
    cert: Certificate
    jacobian: Tensor


def proved(options: argparse.Namespace) -> tuple[list[Proved], list[str]]:
    """Certificates of all subjects in all settings; and, in words, what has none."""
    builders = shipped(options.model, options.inputs) if options.model else attacks.SUBJECTS
    found, without = [], []
    for name, build in track(list(builders.items()), "certify", console=ERR, disable=QUIET):
        subject = build()
        for label, more in settings().items():
            try:
                cert = certify(subject.loop, subject.state, readout=subject.readout, **more)
            except UnsupportedOperatorError as error:
                without.append(f"{name}: {error}")
                break
            if cert.verdict is Verdict.PROVED_ATTRACTING:
                J = fp.enclose(subject.loop, cert.centre).jacobian
                found.append(Proved(name if label == "default" else f"{name}, {label.lower()}", subject, cert, J))
            else:
                without.append(f"{name}: {cert.verdict.value}; {cert.reason}")
    return found, without


def certificates(held: list[Proved], options: argparse.Namespace, seed: int) -> tuple[Tallies, dict[str, str]]:
    """Every claim over all certificates, and on which of them it came nearest to its bound."""
    total: Tallies = {}
    where: dict[str, str] = {}
    for one in track(held, "claims", console=ERR, disable=QUIET):
        claims = attacks.attack_certificate(
            one.cert, one.subject, one.jacobian, count=options.size, rounds=options.rounds, seed=seed
        )
        for claim, tally in claims.items():
            if claim not in total or tally.worst > total[claim].worst:
                where[claim] = one.name
        total = merged(total, claims)
    return total, where


@dataclasses.dataclass(frozen=True)
class Reach:
    """How far attacks have to go.

    Attributes:
        radius: The certified one.
        rate: The smallest radius at which the Jacobian's norm was found to be 1 or more; None if it was not.
        judged: The norm there, as 300 bits see it in one direction, rounded down.
        stray: The smallest radius of a start that was not in the ball after 300 steps; None if all were.
    """

    radius: float
    rate: float | None
    judged: float | None
    stray: float | None

    @property
    def share(self) -> float:
        """Certified radius over the nearer of both."""
        return max((self.radius / r for r in (self.rate, self.stray) if r is not None), default=0.0)


def reach(one: Proved, options: argparse.Namespace, seed: int) -> Reach:
    """Search outward from a certified ball."""
    generator = torch.Generator().manual_seed(seed)
    arena = Arena(one.subject.loop, one.cert.centre, one.cert.metric)
    size = {"count": options.size, "generator": generator}
    out = attacks.escape(arena, one.cert.radius, rounds=options.rounds, **size)
    ways = torch.zeros(0, arena.n, dtype=D) if out is None else out[1].delta[None]
    lost = attacks.stray(arena, one.cert.radius, more=ways, **size)
    if out is None:
        return Reach(one.cert.radius, None, None, lost)
    with exact_blocks.precision():
        judge = Judge(one.subject.exact, one.cert.centre, one.cert.metric)
        best: Found = out[1]
        norm = judge.rate(best.delta, best.direction, out[0] * (1 + 1e-9))
        return Reach(one.cert.radius, out[0], float(norm.lower()), lost)


def radii(held: list[Proved], options: argparse.Namespace, seed: int) -> dict[str, Reach]:
    """By certificate."""
    return {one.name: reach(one, options, seed) for one in track(held, "radii", console=ERR, disable=QUIET)}


def radius_rows(found: dict[str, Reach]) -> list[tuple[str, ...]]:
    def figure(value: float | None, digits: str = ".3g") -> str:
        return "none found" if value is None else f"{value:{digits}}"

    rows = [("certificate", "certified r", "rate 1 at", "norm there", "r over it", "start lost at", "r over it")]
    for name, r in found.items():
        over = [None if other is None else r.radius / other for other in (r.rate, r.stray)]
        rows.append(
            (name, f"{r.radius:.3g}", figure(r.rate), figure(r.judged, ".6f"), figure(over[0]), figure(r.stray),
             figure(over[1]))
        )  # fmt: skip
    return rows


def show(console: Console, title: str, rows: list[tuple[str, ...]]) -> None:
    table = Table(title=title)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i else "left")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def shown(worst: float) -> str:
    """A share; near 1 what it lacks of it."""
    if not worst <= 1:
        return f"{worst:.12g} BEATEN"
    return f"1 - {1 - worst:.1e}" if worst > 0.99999 else f"{worst:.5f}"


def tally_rows(found: Tallies, where: dict[str, str] | None = None) -> list[tuple[str, ...]]:
    rows = [("bound", "attacks", "worst truth / bound") + (("on",) if where else ())]
    for name, tally in found.items():
        row = (name, f"{tally.attacks:,}", shown(tally.worst))
        rows.append(row + ((where[name],) if where else ()))
    return rows


ERR = Console(stderr=True)
QUIET = not sys.stderr.isatty()
PARTS = ("norms", "nodes", "certificates", "radii")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, action="append", help="only these; default: all")
    parser.add_argument("--size", type=int, default=12, help="starts of each search")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each search (nodes: ten times as many)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=0.0, help="go on with further seeds for so long")
    parser.add_argument("--model", help="a shipped model in place of the small blocks, such as s3")
    parser.add_argument("--inputs", type=int, default=1, help="of that model")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console(width=150)
    console.print(machine())
    parts = options.part or PARTS
    held, without = proved(options) if {"certificates", "radii"} & set(parts) else ([], [])
    total: dict[str, Tallies] = {}
    where: dict[str, str] = {}
    reached: dict[str, Reach] = {}
    begin, seed = time.monotonic(), options.seed
    while True:
        for part, run in (("norms", norms), ("nodes", nodes)):
            if part in parts:
                total[part] = merged(total.get(part, {}), run(options, seed))
        if "certificates" in parts:
            claims, on = certificates(held, options, seed)
            before = total.get("certificates", {})
            where |= {c: on[c] for c in claims if c not in before or claims[c].worst > before[c].worst}
            total["certificates"] = merged(before, claims)
        if "radii" in parts:
            found = radii(held, options, seed)
            reached = {n: r if n not in reached or r.share > reached[n].share else reached[n] for n, r in found.items()}
        seed += 1
        if time.monotonic() - begin > 60 * options.minutes:
            break
    for part, tallies in total.items():
        show(
            console,
            f"{part}, seeds {options.seed} to {seed - 1}",
            tally_rows(tallies, where if part == "certificates" else None),
        )
    if reached:
        show(console, "how far attacks have to go, in the metric", radius_rows(reached))
    for words in without:
        console.print(f"not proved attracting: {words}")
    beaten = any(not t.worst <= 1 for tallies in total.values() for t in tallies.values())
    return int(beaten or any(not r.share <= 1 for r in reached.values()))


if __name__ == "__main__":
    sys.exit(main())
