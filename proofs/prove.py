"""Check theorems: every step, every constant, every claim, every reference. In parallel, with results as plain data."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any, final

from proofs import links
from proofs.claims import Search, search
from proofs.errors import MalformedError, ProofError, RefutedError, UndecidedError
from proofs.frame import Theorem
from proofs.registry import chapter_of, load, theorem_ids

# SymPy can search for a normal form without end; a step that takes longer than this is undecided, not passed.
STEP_SECONDS = 100


@final
@dataclass(frozen=True)
class CheckedStep:
    """One step after its check: ``outcome`` is "proved", "refuted", "undecided" or "malformed"."""

    label: str
    text: str
    how: str
    outcome: str
    message: str = ""


@final
@dataclass(frozen=True)
class CheckedConstant:
    """A constant with its float64 value, rounded to the safe side; ``message`` is empty if its enclosure holds."""

    name: str
    value: float
    side: str
    message: str = ""


@final
@dataclass(frozen=True)
class Report:
    """What became of one theorem."""

    id: str
    title: str
    chapter: str
    steps: tuple[CheckedStep, ...] = ()
    constants: tuple[CheckedConstant, ...] = ()
    searches: tuple[Search, ...] = ()
    not_checked: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Every step proved, every constant enclosed, every claim unbroken and its twin refuted, references sound."""
        return not self.failures()

    def failures(self) -> list[str]:
        """Every failure, in words; empty if the theorem passed."""
        found = list(self.problems)
        found += [f"step {s.label} {s.outcome}: {s.message}" for s in self.steps if s.outcome != "proved"]
        found += [f"constant {c.name}: {c.message}" for c in self.constants if c.message]
        found += [complaint for s in self.searches if (complaint := s.complaint())]
        return found

    @property
    def proved(self) -> int:
        """How many steps were proved."""
        return sum(s.outcome == "proved" for s in self.steps)

    @property
    def sharpness(self) -> float | None:
        """The least that a search reached over the theorem's claims; None if it has no inequality."""
        return min((s.reached for s in self.searches), default=None)


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    if not hasattr(signal, "SIGALRM"):  # Windows: no limit, the rest is the same
        yield
        return

    def stop(_signal: int, _frame: Any) -> None:
        raise UndecidedError(f"not decided within {seconds} s")

    try:
        previous = signal.signal(signal.SIGALRM, stop)
    except ValueError:  # not in the main thread: no limit
        yield
        return
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def check(identifier: str, *, draws: int = 300, seed: int = 0) -> Report:
    """Check one theorem.

    Args:
        identifier: Such as "B2".
        draws: Random points per claim before the ascents; 0 leaves the searches out.
        seed: Of the searches.

    Raises:
        MalformedError: there is no such theorem.
    """
    start = time.perf_counter()
    chapter = chapter_of(identifier)
    try:
        theorem: Theorem = load(identifier)
    except Exception as error:  # a theorem file may fail in any way; it is then reported, and the others go on
        return Report(identifier, "(does not load)", chapter, problems=(f"{type(error).__name__}: {error}",))
    steps = []
    try:
        for label, step, failure in _timed_steps(theorem):
            outcome = (
                "proved"
                if failure is None
                else "refuted"
                if isinstance(failure, RefutedError)
                else "malformed"
                if isinstance(failure, MalformedError)
                else "undecided"
            )
            steps.append(CheckedStep(label, step.text, step.how(), outcome, "" if failure is None else str(failure)))
        constants = tuple(_check_constant(theorem, i) for i in range(len(theorem.constants)))
        problems = _reference_problems(theorem)
        searches = tuple(search(c, draws=draws, seed=seed) for c in theorem.claims) if draws else ()
    except ProofError as error:
        return Report(identifier, theorem.title, chapter, tuple(steps), problems=(str(error),))
    return Report(
        identifier,
        theorem.title,
        chapter,
        tuple(steps),
        constants,
        searches,
        theorem.unchecked,
        theorem.code,
        tuple(problems),
        time.perf_counter() - start,
    )


def _timed_steps(theorem: Theorem) -> Iterator[Any]:
    steps = theorem.check_steps()
    while True:
        with _time_limit(STEP_SECONDS):
            item = next(steps, None)
        if item is None:
            return
        yield item


def _check_constant(theorem: Theorem, index: int) -> CheckedConstant:
    from proofs.table import outward

    constant = theorem.constants[index]
    try:
        return CheckedConstant(constant.name, outward(constant), constant.side)
    except ProofError as error:
        return CheckedConstant(constant.name, float("nan"), constant.side, str(error))


def _reference_problems(theorem: Theorem) -> list[str]:
    problems = []
    known = theorem_ids()
    problems += [f"uses theorem {i}, which does not exist" for i in theorem.uses if i not in known]
    for reference in theorem.code:
        try:
            link = links.resolve(reference)
        except MalformedError as error:
            problems.append(str(error))
            continue
        if theorem.id not in links.citations(link.path.read_text(encoding="utf-8")):
            problems.append(f"{reference} is said to rely on it, but that file does not cite Theorem {theorem.id}")
    return problems


def check_all(
    identifiers: Sequence[str] | None = None,
    *,
    processes: int = 2,
    draws: int = 300,
    seed: int = 0,
    tell: Callable[[Report], None] | None = None,
) -> list[Report]:
    """Check several theorems (default: all), in worker processes; reports in reading order.

    ``tell`` is called with each report as it comes.
    """
    wanted = list(identifiers or theorem_ids())
    reports: dict[str, Report] = {}
    if processes <= 1 or len(wanted) == 1:
        for identifier in wanted:
            reports[identifier] = check(identifier, draws=draws, seed=seed)
            if tell:
                tell(reports[identifier])
    else:
        # Fresh interpreters: a fork would copy the caller's threads' locks.
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            jobs = {pool.submit(check, identifier, draws=draws, seed=seed): identifier for identifier in wanted}
            for job in as_completed(jobs):
                reports[jobs[job]] = job.result()
                if tell:
                    tell(reports[jobs[job]])
    return [reports[identifier] for identifier in wanted]
