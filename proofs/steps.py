r"""The kinds of steps that a derivation is made of, each with its own decision procedure.

A step is checked in a context: what the hypotheses, facts and earlier steps of its theorem provide, by label. It
returns what it provides itself, and raises unless it is decided:

| kind | decides | by |
|---|---|---|
| `Identity` | two expressions are equal | rewriting to 0, modulo named equations with given cofactors |
| `Nonnegative` | an expression is >= 0 (or > 0) | a certificate: an equal expression, non-negative by its form |
| `Induction` | a bound holds for every k | a certificate for the base and one for the step |
| `Summed` | a relation that holds for each term holds for the sum | linearity: monomials to named sums |
| `Sign` | a function of one variable keeps a strict sign on an interval | Sturm's theorem, or ball arithmetic |
| `Root` | an equation has exactly one root in an interval | signs at the ends, sign of the slope |
| `Extremum` | a point is the global maximum or minimum | factored derivative whose switch changes sign once |
| `Limit` | a limit | SymPy's Gruntz algorithm |
| `Enclosed` | a constant lies between two rationals | ball arithmetic |
| `Holds` | an exact numeric relation is true | rational or ball arithmetic |
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal, final

import sympy as sp
from flint import arb
from sympy.core.alphabets import greeks

from proofs import balls
from proofs.errors import MalformedError, RefutedError, UndecidedError
from proofs.manifest import is_defined, is_nonnegative, is_positive, is_regular, undefined_part

Relation = Literal["zero", "nonnegative", "positive"]


@final
@dataclass(frozen=True)
class Provided:
    """One established relation: ``expr`` = 0, >= 0 or > 0."""

    relation: Relation
    expr: sp.Expr


Context = Mapping[str, Provided]


def ref(label: str) -> sp.Symbol:
    """The symbol that stands for a labelled relation's expression inside a certificate.

    ``ref("H2")`` may be treated as non-negative there, because the label names something that was established; the
    step replaces it by the expression before it compares.
    """
    return sp.Symbol(f"[{label}]", nonnegative=True)


def _labels(expr: sp.Expr) -> list[str]:
    found = [s for s in expr.free_symbols if s.name.startswith("[")]
    for symbol in found:
        if symbol != ref(symbol.name[1:-1]):
            raise MalformedError(f"symbol {symbol} looks like a label but is not made by ref(...)")
    return sorted(s.name[1:-1] for s in found)


def _expand_labels(expr: sp.Expr, context: Context) -> sp.Expr:
    missing = [label for label in _labels(expr) if label not in context]
    if missing:
        raise MalformedError(f"label {missing[0]!r} is not established here; known: {sorted(context)}")
    return expr.xreplace({ref(label): context[label].expr for label in _labels(expr)})


def _form(expr: sp.Expr, context: Context) -> sp.Expr:
    """The certificate with labels of what is positive as positive symbols."""
    positive = [label for label in _labels(expr) if context[label].relation == "positive"]
    return expr.xreplace({ref(label): sp.Symbol(f"[{label}]", positive=True) for label in positive})


def _require_by_form(expr: sp.Expr, context: Context, what: str, *, strict: bool) -> None:
    """Pass if the certificate is non-negative (positive) by its form, labels standing for what they established."""
    form = _form(expr, context)
    # Before equations become 0: 0/(x - y) would vanish although x may equal y, which is where the equation holds.
    _require_form_defined(form, what)
    form = form.xreplace({ref(label): sp.Integer(0) for label in _labels(expr) if context[label].relation == "zero"})
    if not (is_positive(form) if strict else is_nonnegative(form)):
        raise UndecidedError(f"{what}: the form of {expr} does not show that it is {'>' if strict else '>='} 0")


def _require_form_defined(form: sp.Expr, what: str) -> None:
    part = undefined_part(form)
    if part is not None:
        raise UndecidedError(
            f"{what}: the form does not show that {part} is defined everywhere; declare its symbols real, or prove "
            "what it divides by positive in a step of its own and divide by ref(label)"
        )


def _require_exact(*exprs: sp.Expr) -> None:
    """Refuse floats, what is not a number, and labels where none can stand."""
    for expr in exprs:
        if expr.has(sp.Float):
            raise MalformedError(f"{expr} holds a float; expected exact numbers: write Rational(1, 10)")
        if expr.has(sp.nan, sp.zoo):
            raise MalformedError(f"{expr} is undefined")
        if any(s.name.startswith("[") for s in expr.free_symbols):
            raise MalformedError(f"{expr} holds a label; ref(...) belongs in certificates and cofactors")
        if not all(s.is_commutative for s in expr.free_symbols):
            _require_ring(expr)


def _require_ring(expr: sp.Expr) -> None:
    """Refuse what SymPy would rewrite as for numbers: it takes |A B| for |A| |B|, which no matrix norm obeys."""
    for part in sp.preorder_traversal(expr):
        if part.is_Symbol or part.is_Add or part.is_Mul or all(s.is_commutative for s in part.free_symbols):
            continue
        if part.is_Pow and part.exp.is_integer and (part.base.is_Symbol or part.exp.is_nonnegative):
            continue
        raise MalformedError(
            f"{part}: symbols for matrices may stand in sums, products and whole powers only; give an inverse of a "
            "sum a symbol N of its own, with N * sum - 1 = 0 as a hypothesis"
        )


def _meets(symbol: sp.Symbol, value: sp.Expr) -> bool:
    """Whether a number has every property that the symbol is declared to have."""
    declared = {name: truth for name, truth in symbol.assumptions0.items() if name != "commutative"}
    return all(getattr(value, f"is_{name}") is truth for name, truth in declared.items())


def _points(symbols: Iterable[sp.Symbol]) -> Iterator[dict[sp.Symbol, sp.Rational]]:
    """A few points of rational numbers that meet the symbols' assumptions."""
    ordered = sorted(symbols, key=str)
    for shift in range(6):
        point = {}
        for i, symbol in enumerate(ordered):
            size = sp.Rational(2 * i + 3 + shift, 7)
            if (shift >> (i % 2)) & 1:
                size = -size
            whole = sp.Integer(i + shift + 2)
            fitting = [v for v in (size, -size, whole, whole + 1, -whole, -whole - 1) if _meets(symbol, v)]
            if not fitting:
                break
            point[symbol] = fitting[0]
        else:
            yield point


def is_zero(expr: sp.Expr) -> bool:
    """Whether rewriting brings ``expr`` to 0; False means only that it did not."""
    if expr == 0:
        return True
    if not expr.is_commutative:  # symbols that stand for matrices: the other rewritings are meant for numbers
        return bool(sp.expand(expr) == 0)
    rewritings = (
        sp.expand,
        lambda e: sp.expand(sp.numer(sp.together(e))),
        lambda e: sp.cancel(sp.together(sp.expand(e))),
        sp.simplify,
        lambda e: sp.expand(sp.numer(sp.together(sp.powsimp(sp.expand(e.rewrite(sp.exp)))))),
        lambda e: sp.simplify(e.rewrite(sp.exp)),
        lambda e: sp.simplify(sp.radsimp(sp.expand(e))),
        lambda e: sp.expand_func(sp.simplify(sp.gammasimp(e))),
    )
    return any(rewrite(expr) == 0 for rewrite in rewritings)


def _counterexample(expr: sp.Expr) -> str | None:
    """Words for a point at which ``expr`` is provably not 0, if one of a few is."""
    for point in _points(expr.free_symbols):
        there = _at(expr, point)
        if there is not None and _sign_or_none(there) is not None:
            where = ", ".join(f"{symbol}={value}" for symbol, value in point.items())
            return f"at {where or 'no symbols'} the difference is {sp.N(there, 8)}"
    return None


def _at(expr: sp.Expr, point: Mapping[sp.Symbol, sp.Rational]) -> sp.Expr | None:
    try:
        return expr.subs(point).doit()
    except (TypeError, ValueError, ArithmeticError, NotImplementedError):
        return None


def _sign_or_none(number: sp.Expr) -> int | None:
    try:
        return balls.sign(number)
    except (MalformedError, UndecidedError, TypeError, ValueError, ArithmeticError):
        return None


def _require_equal(left: sp.Expr, right: sp.Expr, what: str) -> None:
    _require_exact(left, right)
    difference = left - right
    # The witness is asked for in any case: a second opinion on the rewriting.
    witness = _counterexample(difference)
    if witness:
        raise RefutedError(f"{what}: {left} is not {right}; {witness}")
    if not is_zero(difference):
        raise UndecidedError(f"{what}: SymPy does not reduce {left} - ({right}) to 0")
    for side in (left, right):
        _require_somewhere_defined(side, what)


def _require_somewhere_defined(expr: sp.Expr, what: str) -> None:
    """Refuse a division by a hidden 0, such as (x + 1)^2 - x^2 - 2x - 1: with it, everything would be equal."""
    for power in expr.atoms(sp.Pow):
        base = power.base
        if base.is_Symbol or base.is_Number or power.exp.is_nonnegative or not base.is_commutative:
            continue
        values = (_at(base, point) for point in _points(base.free_symbols))
        if not any(value is not None and _sign_or_none(value) is not None for value in values) and is_zero(base):
            raise MalformedError(f"{what}: {power} divides by 0")


def _ends(lo: object, hi: object) -> tuple[sp.Expr, sp.Expr]:
    """The ends of an interval, which may be infinite."""
    low, high = sp.sympify(lo), sp.sympify(hi)
    _require_exact(low, high)
    if not (low.is_extended_real and high.is_extended_real) or (low < high) is sp.false:
        raise MalformedError(f"lo={low}, hi={high}: expected real ends with lo < hi")
    return low, high


def _require_range(var: sp.Symbol, low: sp.Expr, high: sp.Expr) -> None:
    """Refuse a variable whose declared properties fail on the interval: SymPy would simplify by what is false there."""
    if var.is_real is False or var.is_rational is not None or var.is_algebraic is not None:
        raise MalformedError(f"{var} is declared as other than a real number, so it cannot run over [{low}, {high}]")
    if var.is_nonnegative and not low.is_extended_nonnegative:
        raise MalformedError(f"{var} is declared non-negative, but the interval begins at {low}")
    if var.is_nonpositive and not high.is_extended_nonpositive:
        raise MalformedError(f"{var} is declared non-positive, but the interval ends at {high}")
    if var.is_nonzero and not (low.is_extended_nonnegative or high.is_extended_nonpositive):
        raise MalformedError(f"{var} is declared non-zero, but 0 may lie in [{low}, {high}]")


def _require_continuous(expr: sp.Expr, var: sp.Symbol, low: sp.Expr, high: sp.Expr, what: str) -> None:
    """Pass if ``expr`` is real, finite and continuous on the interval; the slope of one that jumps says little."""
    if is_defined(expr):
        return
    if not expr.free_symbols - {var}:
        if _is_rational_function(expr, var) and all(end.is_Rational or end.is_infinite for end in (low, high)):
            _polynomial_sign(sp.Poly(sp.denom(sp.together(expr)), var), low, high)
            return
        if low.is_Rational and high.is_Rational:
            balls.require_finite_on(expr, var, low, high)
            return
    _require_form_defined(expr, what)


class AbstractStep(ABC):
    """One checked step; ``text`` says in words why it is taken."""

    text: str
    label: str

    @abstractmethod
    def check(self, context: Context) -> Provided | None:
        """Decide the step; return what it establishes for all values of its symbols, if it does.

        Raises:
            RefutedError: the step is false.
            UndecidedError: neither proved nor refuted.
            MalformedError: it is written wrongly.
        """

    @abstractmethod
    def formula(self) -> str:
        """LaTeX of what is decided."""

    @abstractmethod
    def how(self) -> str:
        """How it is decided, in a few words."""

    @abstractmethod
    def expressions(self) -> tuple[sp.Expr, ...]:
        """Every expression in it: their symbols must be declared by the theorem."""

    def used(self) -> set[str]:
        """The labels on which it rests."""
        return {label for expr in self.expressions() for label in _labels(expr)}


def _pair(cofactor: sp.Expr | tuple[sp.Expr, sp.Expr]) -> tuple[sp.Expr, sp.Expr]:
    """A cofactor as what stands before and after the equation."""
    return cofactor if isinstance(cofactor, tuple) else (cofactor, sp.Integer(1))


@final
@dataclass(frozen=True)
class Identity(AbstractStep):
    """``left == right`` for all values of the symbols; matrices are compared entry by entry.

    ``modulo`` maps labels of equations (expression = 0) to cofactors c: then ``left - right`` equals the sum of
    c times the equations' expressions. Between matrices a pair (c, d) stands for c times the expression times d.
    """

    text: str
    left: sp.Expr | sp.MatrixBase
    right: sp.Expr | sp.MatrixBase
    modulo: Mapping[str, sp.Expr | tuple[sp.Expr, sp.Expr]] = field(default_factory=dict)
    label: str = ""

    def check(self, context: Context) -> Provided | None:
        if isinstance(self.left, sp.MatrixBase) or isinstance(self.right, sp.MatrixBase):
            if not (isinstance(self.left, sp.MatrixBase) and isinstance(self.right, sp.MatrixBase)):
                raise MalformedError("one side is a matrix and the other is not")
            left, right = sp.Matrix(self.left), sp.Matrix(self.right)
            if left.shape != right.shape:
                raise MalformedError(f"shapes {left.shape} and {right.shape} differ")
            if self.modulo:
                raise MalformedError("modulo is for scalar identities; write the entries as steps of their own")
            for i, (a, b) in enumerate(zip(left, right, strict=True)):
                _require_equal(a, b, f"entry {divmod(i, left.cols)}")
            return None
        right_side = sp.sympify(self.right)
        for label, cofactor in self.modulo.items():
            if label not in context:
                raise MalformedError(f"label {label!r} is not established here; known: {sorted(context)}")
            if context[label].relation != "zero":
                raise MalformedError(f"label {label!r} is an inequality; modulo takes equations")
            before, after = map(sp.sympify, _pair(cofactor))
            # Where the equation holds, the cofactor must be finite: (x - y) * 1/(x - y) = 1 says nothing about x = y.
            if not (is_regular(_form(before, context)) and is_regular(_form(after, context))):
                raise UndecidedError(
                    f"the form of the cofactor {cofactor} of {label!r} does not show that it is finite everywhere; "
                    "prove what it divides by positive in a step of its own and divide by ref(label)"
                )
            right_side += _expand_labels(before, context) * context[label].expr * _expand_labels(after, context)
        _require_equal(sp.sympify(self.left), right_side, "identity")
        return Provided("zero", sp.sympify(self.left) - sp.sympify(self.right))

    def formula(self) -> str:
        return f"{latex(self.left)} = {latex(self.right)}"

    def how(self) -> str:
        return "identity" + (f", using {', '.join(self.modulo)}" if self.modulo else "")

    def used(self) -> set[str]:
        return super().used() | set(self.modulo)

    def expressions(self) -> tuple[sp.Expr, ...]:
        parts: list[sp.Expr] = []
        for side in (self.left, self.right):
            parts += list(side) if isinstance(side, sp.MatrixBase) else [sp.sympify(side)]
        return (*parts, *(sp.sympify(c) for cofactor in self.modulo.values() for c in _pair(cofactor)))


@final
@dataclass(frozen=True)
class Nonnegative(AbstractStep):
    """``expr >= 0`` (``> 0`` if strict), because it equals ``certificate``, which is so by its form.

    A certificate is built from squares, exponentials, symbols declared non-negative, and `ref` labels of hypotheses,
    facts or earlier steps, by sums and products (a Positivstellensatz certificate).
    """

    text: str
    expr: sp.Expr
    certificate: sp.Expr
    strict: bool = False
    label: str = ""

    def check(self, context: Context) -> Provided:
        certificate = sp.sympify(self.certificate)
        _require_equal(sp.sympify(self.expr), _expand_labels(certificate, context), "certificate")
        _require_by_form(certificate, context, "certificate", strict=self.strict)
        return Provided("positive" if self.strict else "nonnegative", sp.sympify(self.expr))

    def formula(self) -> str:
        return f"{latex(self.expr)} = {latex(self.certificate)} {'>' if self.strict else chr(92) + 'ge'} 0"

    def how(self) -> str:
        labels = _labels(sp.sympify(self.certificate))
        return "certificate" + (f", using {', '.join(labels)}" if labels else "")

    def expressions(self) -> tuple[sp.Expr, ...]:
        return (sp.sympify(self.expr), sp.sympify(self.certificate))


@final
@dataclass(frozen=True)
class Induction(AbstractStep):
    """``quantity <= bound`` for every integer ``k >= first``.

    ``quantity`` is the symbol of the k-th value (or minus it) and ``following`` that of the next, or its expression.
    ``start`` is the value at ``first`` (or the symbol itself, then ``base`` must use a hypothesis). ``base`` certifies
    ``bound(first) - start``; ``step`` certifies ``bound(k + 1) - following`` and may use ``ref("IH")`` for
    ``bound(k) - quantity``. A hypothesis that names ``k`` but neither value might restrict ``k``; ``every_k`` lists
    those that hold for every ``k >= first``.
    """

    text: str
    k: sp.Symbol
    quantity: sp.Expr
    following: sp.Expr
    bound: sp.Expr
    start: sp.Expr
    base: sp.Expr
    step: sp.Expr
    first: int = 0
    label: str = ""
    every_k: tuple[str, ...] = ()

    def check(self, context: Context) -> Provided:
        self._well_formed()
        if "IH" in context:
            raise MalformedError("the label IH is reserved for the induction hypothesis")
        base, step = sp.sympify(self.base), sp.sympify(self.step)
        if "IH" in _labels(base):
            raise MalformedError("the base may not use the induction hypothesis")
        at_first = sp.sympify(self.bound).subs(self.k, self.first) - self.start
        _require_equal(at_first, _expand_labels(base, context), "base")
        _require_by_form(base, context, "base", strict=False)
        inner = {**context, "IH": Provided("nonnegative", self.bound - self.quantity)}
        next_gap = sp.sympify(self.bound).subs(self.k, self.k + 1) - self.following
        _require_equal(next_gap, _expand_labels(step, inner), "step")
        _require_by_form(step, inner, "step", strict=False)
        return Provided("nonnegative", self.bound - self.quantity)

    def _well_formed(self) -> None:
        start, bound = sp.sympify(self.start), sp.sympify(self.bound)
        if _signed_symbol(self.quantity) in (None, self.k):
            raise MalformedError(f"quantity={self.quantity}: expected a symbol other than k={self.k}, or minus one")
        if type(self.first) is not int:
            raise MalformedError(f"first={self.first!r}; expected an integer")
        if not (
            self.k.is_integer and _meets(self.k, sp.Integer(self.first)) and _meets(self.k, sp.Integer(self.first + 1))
        ):
            raise MalformedError(f"{self.k} must be declared an integer and may be {self.first}, {self.first + 1}, ...")
        values = self._values()
        if bound.has(*values):
            raise MalformedError(f"the bound {bound} may depend on k, not on the bounded quantity")
        if start != self.quantity and start.has(self.k, *values):
            raise MalformedError(f"start={start}: expected the value at k = {self.first}, without {self.k}")
        for name in ("positive", "negative", "nonnegative", "nonpositive", "nonzero", "integer"):
            if getattr(self.quantity, f"is_{name}") and getattr(start, f"is_{name}") is False:
                raise MalformedError(f"{self.quantity} is declared {name}, but begins at {start}")

    def restricted_by(self, expr: sp.Expr) -> bool:
        """Whether a hypothesis with this expression might hold for some k only."""
        return bool(expr.has(self.k)) and not expr.has(*self._values())

    def _values(self) -> set[sp.Symbol]:
        """The symbols that stand for the k-th value and for the next."""
        return {s for s in (_signed_symbol(self.quantity), _signed_symbol(self.following)) if s is not None}

    def formula(self) -> str:
        quantity, k = latex(self.quantity), latex(self.k)
        begin = (
            ""
            if self.start == self.quantity
            else rf",\; {quantity} = {latex(self.start)} \text{{ at }} {k} = {self.first}"
        )
        then = "" if _signed_symbol(self.following) else rf",\; {quantity} \mapsto {latex(self.following)}"
        return rf"{quantity} \le {latex(self.bound)} \quad ({k} \ge {self.first}{begin}{then})"

    def how(self) -> str:
        labels = sorted(set(_labels(sp.sympify(self.base)) + _labels(sp.sympify(self.step))))
        return f"induction, using {', '.join(labels)}" if labels else "induction"

    def expressions(self) -> tuple[sp.Expr, ...]:
        return tuple(
            map(sp.sympify, (self.k, self.quantity, self.following, self.bound, self.start, self.base, self.step))
        )


@final
@dataclass(frozen=True)
class Totals:
    """Names for sums over one index (keys, tokens, channels): which symbols depend on it, and what the sums are called.

    ``table`` maps a monomial in the symbols ``over`` to the name of its sum: ``{p: 1, p * x: mean}`` says that the p
    sum to 1 and the p x to ``mean``. The monomial 1 stands for the number of terms. Write one object per index and use
    it in all steps, so that a name has one meaning.
    """

    over: tuple[sp.Symbol, ...]
    table: Mapping[sp.Expr, sp.Expr]

    def __post_init__(self) -> None:
        for monomial, name in self.table.items():
            powers = sp.Poly(monomial, *self.over).terms()
            if len(powers) != 1 or powers[0][1] != 1:
                raise MalformedError(f"{monomial} is not a monomial in {self.over}")
            if sp.sympify(name).free_symbols & set(self.over):
                raise MalformedError(f"the sum {name} may not depend on the index, as {self.over} do")

    def sum(self, expr: sp.Expr) -> sp.Expr:
        """The sum over the index of a polynomial in the symbols ``over``."""
        try:
            terms = sp.Poly(sp.expand(expr), *self.over).terms()
        except sp.PolynomialError as error:
            raise MalformedError(f"{expr} is not a polynomial in {self.over}: {error}") from None
        names = {sp.Poly(m, *self.over).terms()[0][0]: sp.sympify(name) for m, name in self.table.items()}
        total = sp.Integer(0)
        for powers, coefficient in terms:
            if coefficient == 0:
                continue
            if powers not in names:
                monomial = sp.prod(s**k for s, k in zip(self.over, powers, strict=True))
                raise MalformedError(f"the sum of {monomial} has no name; add it to the table")
            total += coefficient * names[powers]
        return total


@final
@dataclass(frozen=True)
class Summed(AbstractStep):
    """The sum over an index of a relation that holds for each of its values; any number of terms.

    ``of`` is the label of a relation between the symbols of one term (those in ``totals.over``) and quantities that do
    not depend on the index. Sums are linear and keep the sign, so the sum of its expression is 0 or >= 0 too;
    ``result`` says what that sum is, in the names of ``totals``.
    """

    text: str
    of: str
    totals: Totals
    result: sp.Expr
    label: str = ""

    def check(self, context: Context) -> Provided:
        if self.of not in context:
            raise MalformedError(f"label {self.of!r} is not established here; known: {sorted(context)}")
        term = context[self.of]
        _require_equal(self.totals.sum(term.expr), sp.sympify(self.result), "sum")
        return Provided("zero" if term.relation == "zero" else "nonnegative", sp.sympify(self.result))

    def formula(self) -> str:
        names = r",\; ".join(
            rf"\sum {latex(monomial)} = {latex(name)}"
            for monomial, name in self.totals.table.items()
            if not sp.sympify(name).free_symbols or sp.sympify(self.result).has(*sp.sympify(name).free_symbols)
        )
        return rf"\sum [\text{{{self.of}}}] = {latex(self.result)}" + (rf" \quad ({names})" if names else "")

    def how(self) -> str:
        return f"sum of {self.of} over an index"

    def used(self) -> set[str]:
        return super().used() | {self.of}

    def expressions(self) -> tuple[sp.Expr, ...]:
        parts = [*self.totals.over, *self.totals.table.keys(), *self.totals.table.values(), self.result]
        return tuple(map(sp.sympify, parts))


def _signed_symbol(expr: sp.Expr) -> sp.Symbol | None:
    """The symbol that ``expr`` is, up to its sign."""
    expr = sp.sympify(expr)
    return next((s for s in (expr, -expr) if s.is_Symbol), None)


@final
@dataclass(frozen=True)
class Sign(AbstractStep):
    """``expr`` is strictly positive (``sign=1``) or negative (``-1``) for all ``var`` in the closed interval [lo, hi].

    Rational functions with rational coefficients are decided by Sturm's theorem, also on unbounded intervals (``oo``);
    everything else by ball arithmetic on a compact one.
    """

    text: str
    expr: sp.Expr
    var: sp.Symbol
    lo: object
    hi: object
    sign: Literal[1, -1] = 1
    label: str = ""

    def check(self, context: Context) -> None:
        _require_range(self.var, *_ends(self.lo, self.hi))
        found = sign_on(sp.sympify(self.expr), self.var, self.lo, self.hi)
        if found != self.sign:
            raise RefutedError(f"{self.expr} is {'positive' if found > 0 else 'negative'} on [{self.lo}, {self.hi}]")

    def formula(self) -> str:
        side = ">" if self.sign > 0 else "<"
        left, right = latex(sp.sympify(self.lo)), latex(sp.sympify(self.hi))
        return rf"{latex(self.expr)} {side} 0 \quad ({latex(self.var)} \in [{left}, {right}])"

    def how(self) -> str:
        return "Sturm" if _is_rational_function(sp.sympify(self.expr), self.var) else "ball arithmetic"

    def expressions(self) -> tuple[sp.Expr, ...]:
        return (sp.sympify(self.expr), self.var)


def _is_rational_function(expr: sp.Expr, var: sp.Symbol) -> bool:
    numerator, denominator = sp.fraction(sp.together(expr))
    for part in (numerator, denominator):
        if not part.is_polynomial(var) or not all(c.is_Rational for c in sp.Poly(part, var).all_coeffs()):
            return False
    return True


def sign_on(expr: sp.Expr, var: sp.Symbol, lo: object, hi: object) -> int:
    """The strict sign of a function of one variable on a closed interval; UndecidedError if it has none."""
    low, high = _ends(lo, hi)
    _require_exact(expr)
    if expr.free_symbols - {var}:
        raise MalformedError(f"{expr} has other symbols than {var}: {sorted(map(str, expr.free_symbols - {var}))}")
    if _is_rational_function(expr, var) and all(end.is_Rational or end.is_infinite for end in (low, high)):
        top, bottom = (_polynomial_sign(sp.Poly(part, var), low, high) for part in sp.fraction(sp.together(expr)))
        return top * bottom
    if not (low.is_Rational and high.is_Rational):
        raise MalformedError(f"[{low}, {high}] is not a compact interval with rational ends; split off the tails")
    return balls.sign_on(expr, var, low, high)[0]


def _polynomial_sign(poly: sp.Poly, low: sp.Expr, high: sp.Expr) -> int:
    if poly.is_zero:
        raise RefutedError("it is 0 everywhere")
    roots = poly.count_roots(None if low == -sp.oo else low, None if high == sp.oo else high)
    if roots:
        raise RefutedError(f"{poly.as_expr()} has {roots} root(s) in [{low}, {high}]")
    inside = low if low.is_finite else high if high.is_finite else sp.Integer(0)
    return int(sp.sign(poly.eval(inside)))


@final
@dataclass(frozen=True)
class Root(AbstractStep):
    """``expr`` has exactly one root ``var`` in the open interval (lo, hi): signs at the ends differ, it is monotone.

    The symbol ``var`` then stands for that root in `Enclosed` steps and in constants.
    """

    text: str
    expr: sp.Expr
    var: sp.Symbol
    lo: object
    hi: object
    label: str = ""

    def check(self, context: Context) -> Provided:
        _check_root(sp.sympify(self.expr), self.var, balls.rational(self.lo), balls.rational(self.hi))
        return Provided("zero", sp.sympify(self.expr))

    def box(self) -> tuple[sp.Rational, sp.Rational]:
        """Rational ends around the root, at most 2^-160 apart (unless the arithmetic resolves less).

        Raises:
            ProofError: it has not exactly one root.
        """
        self.check({})
        low, high = balls.rational(self.lo), balls.rational(self.hi)
        left_sign = balls.sign(sp.sympify(self.expr).subs(self.var, low))
        while high - low > sp.Rational(1, 2**160):
            middle = (low + high) / 2
            here = balls.sign(sp.sympify(self.expr).subs(self.var, middle))
            if here is None:  # nearer than the arithmetic resolves: the box is as small as it gets
                break
            low, high = (middle, high) if here == left_sign else (low, middle)
        return low, high

    def formula(self) -> str:
        low, high = latex(sp.sympify(self.lo)), latex(sp.sympify(self.hi))
        return rf"{latex(self.expr)} = 0 \text{{ exactly once in }} ({low}, {high})"

    def how(self) -> str:
        return "sign change and monotone slope"

    def expressions(self) -> tuple[sp.Expr, ...]:
        return (sp.sympify(self.expr), self.var)


@cache
def _check_root(expr: sp.Expr, var: sp.Symbol, low: sp.Rational, high: sp.Rational) -> None:
    _ends(low, high)
    _require_range(var, low, high)
    ends = [balls.sign(expr, {var: balls.ball(end, end)}) for end in (low, high)]
    if None in ends:
        raise UndecidedError(f"{expr} is too near 0 at an end of [{low}, {high}]")
    if ends[0] == ends[1]:
        raise RefutedError(f"{expr} has the same sign at both ends of [{low}, {high}]")
    _require_continuous(expr, var, low, high, "root")
    sign_on(sp.diff(expr, var), var, low, high)


@final
@dataclass(frozen=True)
class Extremum(AbstractStep):
    """``at`` is the global maximum (or minimum) of ``f`` on the interval from ``lo`` to ``hi``, with value ``value``.

    The derivative equals ``factor * switch``: the factor is non-negative by its form, the switch is strictly monotone,
    because its slope equals ``slope`` up to the sign, positive by its form (or, without ``slope``, by `Sign` on a
    compact interval), and is 0 at ``at``. So f rises before ``at`` and falls after it (maximum). Declare ``var``
    positive when the interval is. Where the interval holds every value that ``var`` may take, the step establishes the
    bound on f, for later certificates.
    """

    text: str
    f: sp.Expr
    var: sp.Symbol
    lo: object
    hi: object
    at: sp.Expr | Root
    value: sp.Expr
    factor: sp.Expr
    switch: sp.Expr
    slope: sp.Expr | None = None
    kind: Literal["maximum", "minimum"] = "maximum"
    label: str = ""

    def check(self, context: Context) -> Provided | None:
        f, switch = sp.sympify(self.f), sp.sympify(self.switch)
        low, high = _ends(self.lo, self.hi)
        _require_range(self.var, low, high)
        _require_exact(f, switch)
        # A function that jumps can have the slope of one that does not.
        _require_continuous(f, self.var, low, high, "f")
        _require_continuous(switch, self.var, low, high, "switch")
        _require_equal(sp.diff(f, self.var), self.factor * switch, "derivative")
        if not is_nonnegative(self.factor):
            raise UndecidedError(f"factor: the form of {self.factor} does not show that it is >= 0")
        falling = -1 if self.kind == "maximum" else 1
        if self.slope is not None:
            _require_equal(falling * sp.diff(switch, self.var), self.slope, "slope of the switch")
            if not is_positive(self.slope):
                raise UndecidedError(f"slope: the form of {self.slope} does not show that it is > 0")
        elif sign_on(sp.diff(switch, self.var), self.var, low, high) != falling:
            raise RefutedError(f"the switch {switch} is monotone the wrong way for a {self.kind}")
        if isinstance(self.at, Root):
            if self.at.var == self.var:
                raise MalformedError("the root needs a symbol of its own, or its equation would hold everywhere")
            if not self._same_equation(self.at):
                raise MalformedError(f"the root's equation {self.at.expr} is not the switch {switch}")
            self._inside(balls.rational(self.at.lo), balls.rational(self.at.hi), low, high)
            self.at.check(context)
            _require_exact(sp.sympify(self.value))
            self._require_value_at(self.at)
            return self._bound(low, high)
        at = sp.sympify(self.at)
        if at.is_real is not True or at.has(self.var) or sp.sympify(self.value).has(self.var):
            raise MalformedError(f"at={at}, value={self.value}: expected real expressions without {self.var}")
        _require_equal(switch.subs(self.var, at), sp.Integer(0), "switch at the extremal point")
        for gap in (at - low, high - at):
            if gap is sp.oo or is_nonnegative(gap) or is_zero(gap):
                continue
            if _sign_or_none(gap) == -1:
                raise MalformedError(f"{at} lies outside [{low}, {high}]")
            if _sign_or_none(gap) is None:
                raise UndecidedError(f"{at} is not shown to lie in [{low}, {high}]: {gap} >= 0")
        _require_equal(f.subs(self.var, at), sp.sympify(self.value), "value")
        return self._bound(low, high)

    def _bound(self, low: sp.Expr, high: sp.Expr) -> Provided | None:
        """value - f >= 0 (minimum: f - value), where that holds for all values of the variable."""
        from_below = low == -sp.oo or (low == 0 and self.var.is_nonnegative)
        to_above = high == sp.oo or (high == 0 and self.var.is_nonpositive)
        if not (from_below and to_above):
            return None
        gap = sp.sympify(self.value) - sp.sympify(self.f)
        return Provided("nonnegative", gap if self.kind == "maximum" else -gap)

    def _same_equation(self, root: Root) -> bool:
        there = sp.sympify(root.expr)
        here = sp.sympify(self.switch).subs(self.var, root.var)
        return is_zero(there - here) or is_zero(there + here)

    def _require_value_at(self, root: Root) -> None:
        """Pass if f is ``value`` at the root: identically, or because the root's equation makes it so."""
        value = sp.sympify(self.value)
        f_there = sp.sympify(self.f).subs(self.var, root.var)
        here, claimed = enclosure(f_there, root), enclosure(value, root)
        if not (here.is_finite() and claimed.is_finite()):
            raise UndecidedError(f"value: {f_there} or {value} has no finite enclosure at the root")
        if not here.overlaps(claimed):
            raise RefutedError(f"value: f is {here.str(15)} at the root, not {claimed.str(15)}")
        if not is_zero(f_there - value) and not vanishes_at(f_there - value, root):
            raise UndecidedError(f"value: SymPy does not show that f is {value} at the root")

    def _inside(self, left: sp.Rational, right: sp.Rational, low: sp.Expr, high: sp.Expr) -> None:
        if (low.is_finite and left < low) or (high.is_finite and right > high):
            raise MalformedError(f"the root's interval ({left}, {right}) leaves [{low}, {high}]")

    def formula(self) -> str:
        where = self.at.var if isinstance(self.at, Root) else self.at
        extreme = r"\max" if self.kind == "maximum" else r"\min"
        left, right = latex(sp.sympify(self.lo)), latex(sp.sympify(self.hi))
        return (
            rf"{extreme}_{{{latex(self.var)} \in [{left}, {right}]}} {latex(self.f)} = {latex(self.value)}"
            rf" \text{{ at }} {latex(where)}"
        )

    def how(self) -> str:
        return "derivative = (non-negative) x (monotone switch)"

    def expressions(self) -> tuple[sp.Expr, ...]:
        at = self.at.expr if isinstance(self.at, Root) else sp.sympify(self.at)
        parts = [self.f, self.var, at, self.value, self.factor, self.switch]
        return tuple(map(sp.sympify, parts + ([self.slope] if self.slope is not None else [])))


@final
@dataclass(frozen=True)
class Limit(AbstractStep):
    """The limit of ``expr`` for ``var`` to ``to`` (from ``side``) is ``value``."""

    text: str
    expr: sp.Expr
    var: sp.Symbol
    to: sp.Expr
    value: sp.Expr
    side: Literal["+", "-"] = "+"
    label: str = ""

    def check(self, context: Context) -> None:
        expr, to, value = (sp.sympify(e) for e in (self.expr, self.to, self.value))
        _require_exact(expr, to, value)
        self._direction(to)
        found = sp.limit(self.expr, self.var, self.to, self.side)
        if found.has(sp.Limit, sp.nan, sp.zoo, sp.AccumBounds):
            raise UndecidedError(f"SymPy does not find the limit of {self.expr} for {self.var} to {self.to}")
        if found == value:
            return
        if found.is_infinite or value.is_infinite:
            raise RefutedError(f"the limit of {self.expr} for {self.var} to {self.to} is {found}, not {self.value}")
        _require_equal(found, value, "limit")

    def _direction(self, to: sp.Expr) -> None:
        """Refuse a limit through values that the variable is declared not to take."""
        if self.side not in ("+", "-"):
            raise MalformedError(f"side={self.side!r}; expected '+' or '-'")
        if not to.is_extended_real:
            raise MalformedError(f"to={to}; expected a real number or an infinity")
        from_above = to is -sp.oo or (to is not sp.oo and self.side == "+")
        if self.var.is_nonnegative and not (to.is_extended_positive or (to.is_zero and from_above)):
            raise MalformedError(f"{self.var} is declared non-negative, but goes to {to} from side {self.side}")
        if self.var.is_nonpositive and not (to.is_extended_negative or (to.is_zero and not from_above)):
            raise MalformedError(f"{self.var} is declared non-positive, but goes to {to} from side {self.side}")

    def formula(self) -> str:
        to = sp.sympify(self.to)
        towards = latex(to) if to.is_infinite else f"{{{latex(to)}}}^{self.side}"
        return rf"\lim_{{{latex(self.var)} \to {towards}}} {latex(self.expr)} = {latex(self.value)}"

    def how(self) -> str:
        return "limit (Gruntz)"

    def expressions(self) -> tuple[sp.Expr, ...]:
        return (sp.sympify(self.expr), self.var, sp.sympify(self.value))


@final
@dataclass(frozen=True)
class Enclosed(AbstractStep):
    """``lo < value < hi`` for rationals lo, hi; ``at`` gives the root for which a symbol of ``value`` stands."""

    text: str
    value: sp.Expr
    lo: object
    hi: object
    at: Root | None = None
    label: str = ""

    def check(self, context: Context) -> None:
        low, high = balls.rational(self.lo), balls.rational(self.hi)
        found = enclosure(sp.sympify(self.value), self.at)
        if not (balls.lower(found) > low and balls.upper(found) < high):
            if balls.upper(found) < low or balls.lower(found) > high:
                raise RefutedError(f"{self.value} is {found.str(20)}, outside ({low}, {high})")
            raise UndecidedError(f"{self.value} is within {found.str(20)}, not shown to lie in ({low}, {high})")

    def formula(self) -> str:
        low, high = latex(sp.sympify(self.lo)), latex(sp.sympify(self.hi))
        return f"{low} < {latex(self.value)} < {high}"

    def how(self) -> str:
        return "ball arithmetic"

    def expressions(self) -> tuple[sp.Expr, ...]:
        return (sp.sympify(self.value), *(self.at.expressions() if self.at else ()))


def vanishes_at(expr: sp.Expr, root: Root) -> bool:
    """Whether ``expr`` is shown to be 0 at the root, as a multiple of the root's equation.

    Both become polynomials in one exponential E and the root's symbol x. The factor g of the equation that vanishes at
    the root divides lc(g)^n times the expression's numerator; neither lc(g) nor the denominator is 0 there.
    """
    E = sp.Dummy("E", positive=True)
    top, bottom = sp.fraction(sp.together(expr.rewrite(sp.exp)))
    equation = sp.numer(sp.together(sp.sympify(root.expr).rewrite(sp.exp)))
    kernels = [k for k in equation.atoms(sp.exp) if k.exp.as_coefficient(root.var)]
    kernel = min(kernels, key=lambda k: abs(k.exp.as_coefficient(root.var)), default=sp.exp(root.var))
    forms = []
    for part in (top, equation):
        part = sp.powsimp(sp.expand(part))
        powers = {k: E ** (k.exp / kernel.exp) for k in part.atoms(sp.exp)}
        if not all(power.exp.is_Integer if power.is_Pow else power in (E, 1) for power in powers.values()):
            return False
        part = sp.numer(sp.together(part.xreplace(powers)))
        if not part.is_polynomial(E, root.var):
            return False
        forms.append(sp.expand(part))
    box = {root.var: balls.ball(*root.box())}
    box[E] = balls.enclose(kernel, box)
    if balls.sign(bottom, box) is None:
        return False
    vanishing = [g for g, _ in sp.factor_list(forms[1], E, root.var)[1] if balls.sign(g, box) is None]
    if len(vanishing) != 1:
        return False
    variable = E if vanishing[0].has(E) else root.var
    lead = sp.LC(vanishing[0], variable)
    return balls.sign(lead, box) is not None and sp.expand(sp.prem(forms[0], vanishing[0], variable)) == 0


def enclosure(value: sp.Expr, at: Root | None = None) -> arb:
    """A ball around a constant, given as an exact expression that may contain one root's symbol.

    Raises:
        ProofError: ``at`` is not exactly one root; an expression without ball arithmetic.
    """
    box = {} if at is None else {at.var: balls.ball(*at.box())}
    return balls.enclose(value, box)


@final
@dataclass(frozen=True)
class Holds(AbstractStep):
    """An exact relation between numbers, without symbols: decided by rational or ball arithmetic."""

    text: str
    left: sp.Expr
    relation: Literal["<", "<=", ">", ">=", "=="]
    right: sp.Expr
    label: str = ""

    def check(self, context: Context) -> Provided:
        left, right = sp.sympify(self.left), sp.sympify(self.right)
        if left.free_symbols or right.free_symbols:
            raise MalformedError(f"{left} {self.relation} {right} has symbols; use Nonnegative or Identity")
        _require_exact(left, right)
        if not (balls.enclose(left).is_finite() and balls.enclose(right).is_finite()):
            raise UndecidedError(f"{left} or {right} has no finite enclosure")
        difference = left - right
        sign = balls.sign(difference)
        if sign is None and not is_zero(difference):
            raise UndecidedError(f"{left} and {right} are too near to be told apart")
        found = sign or 0
        true = {"<": found < 0, "<=": found <= 0, ">": found > 0, ">=": found >= 0, "==": found == 0}[self.relation]
        if not true:
            raise RefutedError(f"{left} {self.relation} {right} is false")
        if self.relation == "==":
            return Provided("zero", difference)
        gap = -difference if self.relation.startswith("<") else difference
        return Provided("nonnegative" if self.relation.endswith("=") else "positive", gap)

    def formula(self) -> str:
        relation = {"<=": r"\le", ">=": r"\ge", "==": "="}.get(self.relation, self.relation)
        return f"{latex(self.left)} {relation} {latex(self.right)}"

    def how(self) -> str:
        return "exact arithmetic"

    def expressions(self) -> tuple[sp.Expr, ...]:
        return (sp.sympify(self.left), sp.sympify(self.right))


def latex(expr: object) -> str:
    """LaTeX with the labels of certificates shown as such."""
    held = expr if isinstance(expr, sp.MatrixBase) else sp.sympify(expr)
    names = {s: shown for s in held.free_symbols if (shown := _upright(s.name)) is not None}
    text: str = sp.latex(held, symbol_names=names)
    return text


_GREEK = frozenset(str(letter) for letter in greeks)


def _upright(name: str) -> str | None:
    """How a word for a name is set, upright and not as a product of letters; None for what SymPy sets well."""
    if name.startswith("["):
        return r"\text{" + name.replace("_", " ") + "}"
    base, _, below = name.partition("_")
    if len(base) < 2 or not base.isalpha() or base.lower() in _GREEK:
        return None
    return r"\mathrm{" + base + "}" + (r"_{\mathrm{" + below.replace("_", ",") + "}}" if below else "")
