r"""What a theorem is here: a statement, its hypotheses, and a derivation that a machine has checked.

One theorem per file, ``proofs/theorems/<chapter>/<id>_<name>.py``, with the object under the name ``THEOREM``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, final

import sympy as sp

from proofs import balls
from proofs.claims import Claim
from proofs.errors import MalformedError, RefutedError, UndecidedError
from proofs.steps import (
    AbstractStep,
    Context,
    Enclosed,
    Extremum,
    Induction,
    Limit,
    Provided,
    Root,
    Sign,
    Summed,
    enclosure,
    latex,
    ref,
)


@final
@dataclass(frozen=True)
class Symbol:
    """A symbol of the statement: what it means, and what the code calls it (empty if it does not appear there)."""

    symbol: sp.Symbol
    meaning: str
    code: str = ""

    def assumption(self) -> str:
        """The assumption under which SymPy treats it."""
        s = self.symbol
        words = []
        if not s.is_commutative:
            words.append("matrix")
        if s.is_integer:
            words.append("integer")
        for flag, word in (
            (s.is_positive, "> 0"),
            (s.is_negative, "< 0"),
            (s.is_nonnegative, ">= 0"),
            (s.is_nonpositive, "<= 0"),
            (s.is_real and s.is_nonzero, "not 0"),
        ):
            if flag:
                words.append(word)
                break
        # Whatever else is declared is a hypothesis as well.
        words += [w for w in ("even", "odd", "prime", "composite", "irrational") if getattr(s, f"is_{w}")]
        if s.is_rational and not s.is_integer:
            words.append("rational")
        if not words and s.is_real:
            words.append("real")
        return ", ".join(words)


@final
@dataclass(frozen=True)
class Hypothesis:
    """A numbered hypothesis. ``relation`` and ``expr`` say it as ``expr`` = 0, >= 0 or > 0, where steps use it."""

    label: str
    text: str
    expr: sp.Expr | None = None
    relation: Literal["zero", "nonnegative", "positive"] = "nonnegative"


@final
@dataclass(frozen=True)
class Fact:
    """A known inequality or equation, used in an instance: the triangle inequality, Cauchy-Schwarz, a mean value bound.

    ``source`` names where it is proved. ``axiom`` marks what holds by definition (norm axioms, the definition of a
    Lipschitz constant or an operator norm, a theorem of this collection by its identifier): everything else counts as
    not checked by the machine.
    """

    label: str
    text: str
    expr: sp.Expr
    source: str
    relation: Literal["zero", "nonnegative", "positive"] = "nonnegative"
    axiom: bool = False


@final
@dataclass(frozen=True)
class NotChecked:
    """A part of the argument that no step settles, with where it is proved."""

    text: str
    citation: str


@final
@dataclass(frozen=True)
class Source:
    """Where the theorem comes from. ``derived`` marks what was worked out for this collection."""

    author: str
    year: int | None = None
    place: str = ""
    derived: bool = False

    def __str__(self) -> str:
        parts = [self.author, f"({self.year})" if self.year else "", self.place]
        text = " ".join(p for p in parts if p)
        return f"derived here; {text}" if self.derived and text else "derived here" if self.derived else text


@final
@dataclass(frozen=True)
class Constant:
    """A number that bounds rest on.

    Args:
        name: Name in ``fpcheck.constants``, in capitals.
        value: Exact expression; may contain the symbol of ``at``.
        side: "upper" if it is used as an upper bound (rounded up), "lower" if as a lower one (rounded down).
        lo: Rational below the value.
        hi: Rational above it, written with the figures that people quote.
        meaning: What it bounds.
        at: The root for which a symbol stands.
    """

    name: str
    value: sp.Expr
    side: Literal["upper", "lower"]
    lo: object
    hi: object
    meaning: str
    at: Root | None = None

    def enclosure(self) -> tuple[sp.Rational, sp.Rational]:
        """Tight rational ends around the value, checked against the quoted ones.

        Raises:
            RefutedError: the quoted rationals do not enclose it.
        """
        value = sp.sympify(self.value)
        if value.is_Rational:
            low = high = value
        else:
            found = enclosure(value, self.at)
            low, high = balls.lower(found), balls.upper(found)
        if not (balls.rational(self.lo) <= low and high <= balls.rational(self.hi)):
            raise RefutedError(f"{self.name} is in [{sp.N(low, 20)}, {sp.N(high, 20)}], not in [{self.lo}, {self.hi}]")
        return low, high


@final
@dataclass(frozen=True)
class Theorem:
    """A theorem with its checked derivation.

    Args:
        id: Identifier, such as "B2": a capital, digits, perhaps a small letter.
        title: A few words.
        statement: LaTeX within text, formulas in ``$...$``; complete, with its constants.
        plain: The same for a reader without formulas in mind: what it says and what it is good for.
        symbols: Every symbol that the steps use.
        hypotheses: Numbered H1, H2, ...
        steps: The derivation. A step may use hypotheses and facts by label, and earlier steps by theirs.
        source: Author, year, theorem number.
        facts: Known inequalities that the steps use.
        constants: The numbers that code takes from here.
        claims: The inequalities, as something that a search can try to break.
        not_checked: What no step settles.
        code: Where it is used: ``fpcheck/spectral/damping.py:critical_step``. That file cites "Theorem B2" in turn.
        uses: Identifiers of theorems on which this one builds.
        remarks: Notes for the reader: traps, where published versions differ, what it does not say.
        equation: True if the theorem states no inequality that a search could try to break.
    """

    id: str
    title: str
    statement: str
    plain: str
    symbols: tuple[Symbol, ...]
    hypotheses: tuple[Hypothesis, ...]
    steps: tuple[AbstractStep, ...]
    source: Source
    facts: tuple[Fact, ...] = ()
    constants: tuple[Constant, ...] = ()
    claims: tuple[Claim, ...] = ()
    not_checked: tuple[NotChecked, ...] = ()
    code: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    equation: bool = False
    _declared: frozenset[sp.Symbol] = field(init=False, repr=False, default=frozenset())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_declared", frozenset(s.symbol for s in self.symbols))
        self._symbols_told_apart()
        self._hypotheses_declared()
        self._sums_told_apart()
        if not self.steps:
            raise MalformedError(
                f"theorem {self.id} has no steps; a cited theorem is a Fact or NotChecked of its users"
            )
        if not self.claims and not self.equation:
            raise MalformedError(
                f"theorem {self.id} has no claim to falsify; say equation=True if it has no inequality"
            )
        labels = [h.label for h in self.hypotheses] + [f.label for f in self.facts]
        labels += [self.label_of(i) for i in range(len(self.steps))]
        twice = {label for label in labels if labels.count(label) > 1}
        if twice:
            raise MalformedError(f"theorem {self.id} uses the label(s) {sorted(twice)} twice")
        if "IH" in labels:
            raise MalformedError(f"theorem {self.id} uses the label IH, which stands for the induction hypothesis")

    def _symbols_told_apart(self) -> None:
        names = [s.symbol.name for s in self.symbols]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise MalformedError(
                f"theorem {self.id} declares the symbol(s) {sorted(twice)} twice; they would look alike"
            )
        if any(name.startswith("[") for name in names):
            raise MalformedError(f"theorem {self.id}: symbol names that begin with '[' are kept for labels")
        roots: dict[sp.Symbol, Root] = {}
        bound: set[sp.Symbol] = set()
        for item in (*self.steps, *self.constants):
            root = (
                item
                if isinstance(item, Root)
                else item.at
                if isinstance(item, (Constant, Enclosed, Extremum))
                else None
            )
            if isinstance(root, Root) and roots.setdefault(root.var, root) != root:
                raise MalformedError(f"theorem {self.id}: {root.var} stands for two roots; give each its own symbol")
            if isinstance(item, (Sign, Extremum, Limit)):
                bound.add(item.var)
            elif isinstance(item, Induction):
                bound.add(item.k)
        if bound & roots.keys():
            raise MalformedError(
                f"theorem {self.id}: {sorted(map(str, bound & roots.keys()))} are roots and variables at once"
            )

    def _sums_told_apart(self) -> None:
        """One name, one sum: two tables that differ would make different sums equal."""
        meaning: dict[sp.Expr, sp.Expr] = {}
        for step in self.steps:
            for monomial, name in step.totals.table.items() if isinstance(step, Summed) else ():
                if sp.sympify(name).free_symbols and meaning.setdefault(name, monomial) != monomial:
                    raise MalformedError(f"theorem {self.id}: {name} names the sums of {meaning[name]} and {monomial}")

    def _hypotheses_declared(self) -> None:
        for item in self._assumed():
            expr = sp.sympify(item.expr) if item.expr is not None else sp.Integer(0)
            missing = expr.free_symbols - self._declared
            if missing:
                raise MalformedError(f"theorem {self.id}: {item.label} uses undeclared {sorted(map(str, missing))}")
            if expr.has(sp.Float, sp.nan, sp.zoo, sp.oo):
                raise MalformedError(f"theorem {self.id}: {item.label} says {expr}; expected exact, finite numbers")

    def label_of(self, index: int) -> str:
        """The label of a step: its own, or its number."""
        return self.steps[index].label or str(index + 1)

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Everything that rests on a citation."""
        return (
            *(f"{f.text} [{f.source}]" for f in self.facts if not f.axiom),
            *(f"{n.text} [{n.citation}]" for n in self.not_checked),
        )

    def context(self) -> dict[str, Provided]:
        """What hypotheses and facts provide."""
        given: dict[str, Provided] = {}
        for item in self._assumed():
            if item.expr is not None:
                given[item.label] = Provided(item.relation, sp.sympify(item.expr))
        return given

    def _assumed(self) -> tuple[Hypothesis | Fact, ...]:
        return (*self.hypotheses, *self.facts)

    def check_steps(self) -> Iterator[tuple[str, AbstractStep, Exception | None]]:
        """Check one step after the other; a step that failed provides nothing to later ones."""
        context: dict[str, Provided] = self.context()
        rests_on: dict[str, set[str]] = {item.label: {item.label} for item in self._assumed()}
        for index, step in enumerate(self.steps):
            label = self.label_of(index)
            try:
                self._symbols_declared(step)
                below = set().union(*(rests_on.get(used, set()) for used in step.used()))
                self._holds_for_every_k(step, below)
                provided = step.check(context)
            except (MalformedError, RefutedError, UndecidedError) as error:
                yield label, step, error
                continue
            except Exception as error:  # SymPy fails in many ways; none of them is a pass
                yield label, step, UndecidedError(f"{type(error).__name__}: {error}")
                continue
            if provided is not None:
                context[label] = provided
                rests_on[label] = below
            yield label, step, None

    def _holds_for_every_k(self, step: AbstractStep, rests_on: set[str]) -> None:
        """Induction needs its hypotheses at every k; one that names k alone may hold for some of them only."""
        if not isinstance(step, Induction):
            return
        for item in self._assumed():
            if item.label not in rests_on or item.label in step.every_k or not step.restricted_by(item.expr):
                continue
            raise MalformedError(
                f"it rests on {item.label}, which names {step.k}; if that holds for every {step.k} >= {step.first}, "
                f"say every_k=({item.label!r},); if it restricts {step.k}, begin at first= instead"
            )

    def _symbols_declared(self, step: AbstractStep) -> None:
        used = {s for e in step.expressions() for s in e.free_symbols if s != ref(s.name[1:-1])}
        missing = used - self._declared
        if missing:
            raise MalformedError(
                f"symbol(s) {sorted(s.name for s in missing)} are not declared by theorem {self.id} (same name and "
                "assumptions); add them to symbols"
            )


__all__ = ["Constant", "Context", "Fact", "Hypothesis", "NotChecked", "Source", "Symbol", "Theorem", "latex"]
