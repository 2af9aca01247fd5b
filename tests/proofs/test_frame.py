"""A theorem as a whole: what a step may lean on, what must be declared, what a reader must be able to tell apart."""

import dataclasses

import pytest
import sympy as sp

from proofs import (
    Claim,
    Constant,
    Enclosed,
    Fact,
    Holds,
    Hypothesis,
    Identity,
    Induction,
    Limit,
    MalformedError,
    Nonnegative,
    NotChecked,
    Reals,
    RefutedError,
    Root,
    Sign,
    Source,
    Summed,
    Symbol,
    Theorem,
    Totals,
    UndecidedError,
    ref,
    registry,
    theorem_ids,
)

x = sp.Symbol("x", real=True)
y = sp.Symbol("y", real=True)
p = sp.Symbol("p", positive=True)
r = sp.Symbol("r", positive=True)
k = sp.Symbol("k", integer=True, nonnegative=True)
n = sp.Symbol("n", integer=True, nonnegative=True)
q = sp.Symbol("q", real=True)
q_next = sp.Symbol("q_next", real=True)

TRUE = Identity("", x + x, 2 * x)
ROOT = Root("", r**2 - 2, r, 1, 2)


def theorem(*steps, symbols=(x, y, p, r, k, n, q, q_next), hypotheses=(), **changes) -> Theorem:
    parts = {
        "id": "T1",
        "title": "",
        "statement": "",
        "plain": "",
        "symbols": tuple(Symbol(s, "") for s in symbols),
        "hypotheses": tuple(hypotheses),
        "steps": steps or (TRUE,),
        "source": Source("", derived=True),
        "equation": True,
    }
    return Theorem(**{**parts, **changes})


def failures(t: Theorem) -> dict[str, Exception | None]:
    return {label: error for label, _, error in t.check_steps()}


def test_hypotheses_facts_and_earlier_steps_support_later_ones():
    found = failures(
        theorem(
            Nonnegative("", 2 * x - 2, 2 * ref("H1")),
            Nonnegative("", 2 * x - 2 + y, ref("1") + ref("F1"), label="named"),
            Nonnegative("", 2 * x - 1 + y, ref("named") + 1, strict=True),
            hypotheses=(Hypothesis("H1", "", x - 1),),
            facts=(Fact("F1", "", y, "somewhere"),),
        )
    )
    assert found == {"1": None, "named": None, "3": None}


def test_a_failed_step_supports_nothing_and_the_others_go_on():
    found = failures(
        theorem(
            Nonnegative("", x, x, label="wrong"),
            Nonnegative("", x + 1, ref("wrong") + 1),
            Identity("", x, 2 * x),
            TRUE,
        )
    )
    assert isinstance(found["wrong"], UndecidedError)
    assert isinstance(found["2"], MalformedError)
    assert "'wrong' is not established" in str(found["2"])
    assert isinstance(found["3"], RefutedError)
    assert found["4"] is None


def test_a_step_cannot_lean_on_itself_or_on_a_later_one():
    found = failures(theorem(Nonnegative("", x, ref("1")), Nonnegative("", x, ref("3")), Nonnegative("", x**2, x**2)))
    assert isinstance(found["1"], MalformedError)
    assert isinstance(found["2"], MalformedError)


def test_steps_without_a_relation_cannot_be_used():
    found = failures(
        theorem(
            Sign("", x**2 + 1, x, 0, 1, label="sign"),
            Limit("", 1 / p, p, sp.oo, sp.Integer(0), label="limit"),
            Nonnegative("", x**2 + 1, ref("sign")),
            Nonnegative("", p, ref("limit") + p),
            hypotheses=(Hypothesis("H1", "words only"),),
        )
    )
    assert [type(found[i]) for i in ("sign", "limit", "3", "4")] == [
        type(None),
        type(None),
        MalformedError,
        MalformedError,
    ]


@pytest.mark.parametrize("trouble", [AttributeError, KeyError, sp.PolynomialError, RuntimeError, AssertionError])
def test_whatever_sympy_raises_is_undecided(monkeypatch, trouble):
    def fail(*args: object) -> None:
        raise trouble("inside")

    monkeypatch.setattr("proofs.steps.is_zero", fail)
    error = failures(theorem(Identity("", x, x)))["1"]
    assert isinstance(error, UndecidedError)
    assert trouble.__name__ in str(error)


@pytest.mark.parametrize(
    "step",
    [
        Identity("", x + sp.Symbol("z"), x + sp.Symbol("z")),
        Identity("", sp.Symbol("x"), sp.Symbol("x")),  # same name, other assumptions
        Nonnegative("", sp.Symbol("z", positive=True), sp.Symbol("z", positive=True)),
        Sign("", sp.Symbol("[z", real=True) ** 2 + 1, sp.Symbol("[z", real=True), 0, 1),
        Enclosed("", sp.Symbol("z"), 1, 2, at=Root("", sp.Symbol("z") ** 2 - 2, sp.Symbol("z"), 1, 2)),
    ],
)
def test_symbols_of_steps_must_be_declared(step):
    error = failures(theorem(step))["1"]
    assert isinstance(error, MalformedError)
    assert "not declared" in str(error)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hypotheses": (Hypothesis("H1", "", sp.Symbol("z")),)}, "undeclared"),
        ({"facts": (Fact("F1", "", sp.Symbol("x"), ""),)}, "undeclared"),
        ({"hypotheses": (Hypothesis("H1", "", x - 0.5),)}, "exact, finite"),
        ({"hypotheses": (Hypothesis("H1", "", sp.zoo * x),)}, "exact, finite"),
        ({"hypotheses": (Hypothesis("H1", "", ref("H2")), Hypothesis("H2", "", x))}, "undeclared"),
        ({"symbols": (x, sp.Symbol("x", positive=True))}, "twice"),
        ({"symbols": (ref("H1"), x)}, "kept for labels"),
        ({"hypotheses": (Hypothesis("H1", "", x), Hypothesis("H1", "", y))}, r"label\(s\) \['H1'\] twice"),
        ({"hypotheses": (Hypothesis("1", "", x),)}, "twice"),  # the first step's number
        ({"hypotheses": (Hypothesis("IH", "", x),)}, "IH"),
        ({"steps": ()}, "no steps"),
        ({"equation": False}, "no claim to falsify"),
        ({"steps": (ROOT, Root("", r**2 - 3, r, 1, 2))}, "two roots"),
        ({"steps": (ROOT, Enclosed("", r, 1, 2, at=Root("", r**2 - 3, r, 1, 2)))}, "two roots"),
        (
            {"steps": (ROOT,), "constants": (Constant("C", r, "upper", 1, 2, "", at=Root("", r - 1, r, 0, 2)),)},
            "two roots",
        ),
        ({"steps": (ROOT, Sign("", r + 1, r, 0, 1))}, "roots and variables"),
        (
            {
                "steps": (
                    Summed("", "H1", Totals((x,), {x: q}), q),
                    Summed("", "H1", Totals((y,), {y: q}), q),
                )
            },
            "names the sums",
        ),
    ],
)
def test_malformed_theorems(changes, said):
    steps = changes.pop("steps", (TRUE,))
    with pytest.raises(MalformedError, match=said):
        theorem(**{**{"steps": steps}, **changes})


def induction(**changes) -> Induction:
    parts = {
        "text": "",
        "k": k,
        "quantity": q,
        "following": q_next,
        "bound": sp.Integer(1) + k,
        "start": sp.Integer(1),
        "base": sp.Integer(0),
        "step": ref("IH") + ref("H2") + ref("H1"),
    }
    return Induction(**{**parts, **changes})


# Grows by at most 1 - (k - n): more than 1 while k < n. With "k >= n", the step holds from n on, but not from 0.
LATE = (Hypothesis("H1", "k >= n", k - n), Hypothesis("H2", "", q + 1 - (k - n) - q_next))


def test_an_induction_may_not_rest_on_a_hypothesis_about_k_alone():
    error = failures(theorem(induction(), hypotheses=LATE))["1"]
    assert isinstance(error, MalformedError)
    assert "H1, which names k" in str(error)
    # Nor through a step in between, of any kind.
    error = failures(
        theorem(
            Nonnegative("", 2 * k - 2 * n, 2 * ref("H1"), label="twice"),
            induction(step=ref("IH") + ref("H2") + ref("twice") / 2),
            hypotheses=LATE,
        )
    )["2"]
    assert isinstance(error, MalformedError)
    error = failures(
        theorem(
            Identity("", k - n, sp.Integer(0), {"H1": sp.Integer(1)}, label="same"),
            induction(step=ref("IH") + ref("H2") + ref("same")),
            hypotheses=(Hypothesis("H1", "", k - n, "zero"), LATE[1]),
        )
    )["2"]
    assert isinstance(error, MalformedError)


def test_an_induction_may_rest_on_what_holds_for_every_k_or_does_not_name_it():
    # The author says so, in the open.
    assert failures(theorem(induction(every_k=("H1",)), hypotheses=LATE)) == {"1": None}
    # Hypotheses about the two values are about every k; an unused one about k does no harm.
    growth = Hypothesis("H2", "", q + 1 - q_next)
    step = ref("IH") + ref("H2")
    assert failures(theorem(induction(step=step), hypotheses=(LATE[0], growth))) == {"1": None}


def test_constants_are_enclosed_and_tight():
    exact = Constant("C", sp.Rational(1, 3), "upper", 0, 1, "")
    assert exact.enclosure() == (sp.Rational(1, 3), sp.Rational(1, 3))
    low, high = Constant("C", r, "upper", "1414/1000", "1415/1000", "", at=ROOT).enclosure()
    assert low**2 < 2 < high**2
    assert high - low < sp.Rational(1, 2**140)


@pytest.mark.parametrize(
    ("constant", "error"),
    [
        (Constant("C", sp.pi, "upper", 3, "314/100", ""), RefutedError),
        (Constant("C", sp.pi, "lower", "315/100", 4, ""), RefutedError),
        (Constant("C", sp.Rational(1, 3), "upper", "1/2", 1, ""), RefutedError),
        (Constant("C", r, "upper", 1, 2, ""), MalformedError),  # no root named
        (Constant("C", r, "upper", 0, 2, "", at=Root("", r**2 + 1, r, 0, 2)), RefutedError),
        (Constant("C", r, "upper", 0, 3, "", at=Root("", r**2 - 4 * r + 3, r, 0, 2)), RefutedError),  # not monotone
        (Constant("C", sp.Float(1) / 3, "upper", 0, 1, ""), MalformedError),
        (Constant("C", sp.pi, "upper", 3.1, 3.2, ""), MalformedError),
        (Constant("C", sp.log(-1) * sp.pi, "upper", -1, 1, ""), MalformedError),
        (Constant("C", 1 / (r**2 - 2), "upper", 0, 1, "", at=ROOT), UndecidedError),
    ],
)
def test_wrong_constants(constant, error):
    if isinstance(constant.at, Root) and constant.at.expr == r**2 - 4 * r + 3:
        # Its only root in (0, 2) is 1, but the slope vanishes at the end 2: not shown to be one root.
        assert constant.at.expr.subs(r, 1) == 0
    with pytest.raises(error):
        constant.enclosure()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"positive": True}, "> 0"),
        ({"negative": True}, "< 0"),
        ({"nonnegative": True}, ">= 0"),
        ({"nonpositive": True}, "<= 0"),
        ({"real": True}, "real"),
        ({"real": True, "nonzero": True}, "not 0"),
        ({"integer": True, "positive": True}, "integer, > 0"),
        ({"even": True}, "integer, even"),
        ({"prime": True}, "integer, > 0, prime"),
        ({"rational": True}, "rational"),
        ({"commutative": False}, "matrix"),
        ({}, ""),
    ],
)
def test_every_assumption_is_told_to_the_reader(options: dict, words: str):
    assert Symbol(sp.Symbol("s", **options), "").assumption() == words


def test_what_rests_on_a_citation_is_listed():
    t = theorem(
        facts=(Fact("F1", "known", x, "a book"), Fact("F2", "by definition", x, "norms", axiom=True)),
        not_checked=(NotChecked("compactness", "another book"),),
    )
    assert t.unchecked == ("known [a book]", "compactness [another book]")


def test_relations_of_hypotheses_and_facts_reach_the_steps():
    t = theorem(
        hypotheses=(Hypothesis("H1", "", x, "positive"), Hypothesis("H2", "", y, "zero"), Hypothesis("H3", "words")),
        facts=(Fact("F1", "", q, ""),),
    )
    assert {label: given.relation for label, given in t.context().items()} == {
        "H1": "positive",
        "H2": "zero",
        "F1": "nonnegative",
    }


def test_a_theorem_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        theorem().id = "T2"


def test_sources_in_words():
    assert str(Source("Banach", 1922, "Theorem 6")) == "Banach (1922) Theorem 6"
    assert str(Source("", derived=True)) == "derived here"
    assert str(Source("Anderson", 1965, derived=True)) == "derived here; Anderson (1965)"


def test_a_claim_stands_in_for_equation():
    claim = Claim("", (Reals("x", 0.0, 1.0),), lambda ctx, at: (at["x"], ctx.mpf(1)))
    assert theorem(Holds("", sp.Integer(1), "<", sp.Integer(2)), claims=(claim,), equation=False).claims == (claim,)


def test_a_theorem_in_no_chapter_is_refused(monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z01_lost.py").write_text("")
    monkeypatch.setattr(registry, "FOLDER", tmp_path)
    registry._files.cache_clear()
    try:
        with pytest.raises(MalformedError, match="in no chapter"):
            theorem_ids()
    finally:
        registry._files.cache_clear()
