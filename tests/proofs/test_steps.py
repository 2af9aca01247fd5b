"""Every kind of step: what it accepts, what it refutes, what it leaves undecided (an error), and what is malformed."""

import pytest
import sympy as sp
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from proofs import (
    Enclosed,
    Extremum,
    Holds,
    Identity,
    Induction,
    Limit,
    MalformedError,
    Nonnegative,
    ProofError,
    RefutedError,
    Root,
    Sign,
    UndecidedError,
    ref,
)
from proofs.steps import Provided, _meets, _points, enclosure, is_zero, vanishes_at

x = sp.Symbol("x", real=True)
y = sp.Symbol("y", real=True)
n = sp.Symbol("n", real=True)
p = sp.Symbol("p", positive=True)
u = sp.Symbol("u", nonnegative=True)
v = sp.Symbol("v", negative=True)
r = sp.Symbol("r", positive=True)
k = sp.Symbol("k", integer=True, nonnegative=True)
q = sp.Symbol("q", real=True)
q_next = sp.Symbol("q_next", real=True)
A = sp.Symbol("A", commutative=False)
B = sp.Symbol("B", commutative=False)
ZERO, ONE = sp.Integer(0), sp.Integer(1)
# (x + 1)^2 - x^2 - 2 x - 1 is 0, and does not look like it.
HIDDEN = (x + 1) ** 2 - x**2 - 2 * x - 1
# Its slope is 0 everywhere; at 1 it jumps from -pi/2 to pi/2.
JUMP = sp.atan(1 / (x - 1)) + sp.atan(x - 1)
SQUARE_ROOT_OF_2 = Root("", r**2 - 2, r, 1, 2)


def zero(expr: sp.Expr) -> Provided:
    return Provided("zero", expr)


def at_least_0(expr: sp.Expr) -> Provided:
    return Provided("nonnegative", expr)


def above_0(expr: sp.Expr) -> Provided:
    return Provided("positive", expr)


# --- Identity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((x + y) ** 2, x**2 + 2 * x * y + y**2),
        (1 / (1 + sp.exp(-x)), (1 + sp.tanh(x / 2)) / 2),
        (sp.sin(x) ** 2 + sp.cos(x) ** 2, ONE),
        (sp.sqrt(3 + 2 * sp.sqrt(2)), 1 + sp.sqrt(2)),
        (sp.diff(x * sp.exp(-(x**2)), x), (1 - 2 * x**2) * sp.exp(-(x**2))),
        (sp.gamma(p + 1), p * sp.gamma(p)),
        ((A + B) * (A - B), A**2 - A * B + B * A - B**2),
        (sp.Matrix([[x, 1], [0, y]]) ** 2, sp.Matrix([[x**2, x + y], [0, y**2]])),
    ],
)
def test_identities(left, right):
    Identity("", left, right).check({})


def test_an_identity_provides_its_difference():
    assert Identity("", x + x, 2 * x).check({}) == zero(ZERO)
    assert Identity("", sp.Matrix([x]), sp.Matrix([x])).check({}) is None


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((x + y) ** 2, x**2 + y**2),
        (sp.sqrt(x**2), x),  # |x|
        (sp.tanh(x), x),
        (x / (1 + x), 1 - x),
        (sp.exp(x + y), sp.exp(x) + sp.exp(y)),
        (sp.pi, sp.Rational(22, 7)),
        (sp.log(p * 2), sp.log(p) * 2),
        (2**k, k**2 + 1),  # equal at 0 and 1
        (sp.Abs(v), v),
    ],
)
def test_false_identities_come_with_a_point(left, right):
    with pytest.raises(RefutedError, match=r"at .* the difference is"):
        Identity("", left, right).check({})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (A * B * A, A**2 * B),  # matrices do not commute
        (A * B, B * A),
        ((A + B) ** 2, A**2 + 2 * A * B + B**2),
        (sp.Function("f")(x), sp.Function("f")(-x)),
        (sp.gamma(x + sp.Rational(1, 3)), sp.gamma(x)),
        (x**2 + sp.Function("f")(x), x),
    ],
)
def test_what_rewriting_does_not_settle_is_undecided(left, right):
    with pytest.raises(UndecidedError):
        Identity("", left, right).check({})


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (x * 0.5, x / 2, "float"),
        (x + sp.nan, x, "undefined"),
        (x + sp.zoo, x + sp.zoo, "undefined"),
        (HIDDEN / HIDDEN.subs(x, x + 1), sp.Integer(5), "divides by 0"),
        (ref("H1"), ref("H1"), "label"),
        (sp.Matrix([x, y]), sp.Matrix([[x, y]]), "shapes"),
        (sp.Matrix([x]), x, "matrix"),
    ],
)
def test_malformed_identities(left, right, said: str):
    with pytest.raises(MalformedError, match=said):
        Identity("", left, right).check({"H1": at_least_0(x)})


def test_a_wrong_entry_of_a_matrix_is_named():
    with pytest.raises(RefutedError, match=r"entry \(1, 0\)"):
        Identity("", sp.Matrix([[x, 1], [y, 2]]), sp.Matrix([[x, 1], [x, 2]])).check({})


def test_an_equation_may_be_used_with_a_cofactor():
    context = {"H": zero(x**2 - 2)}
    assert Identity("", x**4, sp.Integer(4), {"H": x**2 + 2}).check(context) == zero(x**4 - 4)
    with pytest.raises(RefutedError):
        Identity("", x**4, sp.Integer(4), {"H": x**2 + 3}).check(context)
    with pytest.raises(RefutedError):
        Identity("", x**4, sp.Integer(4)).check(context)


@pytest.mark.parametrize("cofactor", [1 / (x - y), (x - y) ** -1 * p, 1 / x, sp.log(x - y), 1 / u])
def test_a_cofactor_that_may_be_infinite_where_the_equation_holds_is_undecided(cofactor: sp.Expr):
    # With 1/(x - y), the equation x - y = 0 would prove 1 = 0.
    with pytest.raises(UndecidedError, match="finite everywhere"):
        Identity("", cofactor * (x - y), ZERO, {"H": cofactor}).check({"H": zero(x - y)})
    with pytest.raises(UndecidedError, match="finite everywhere"):
        Identity("", sp.simplify(cofactor * (x - y)), ZERO, {"H": cofactor}).check({"H": zero(x - y)})


def test_a_cofactor_may_divide_by_what_was_shown_to_be_positive():
    context = {"H": zero(x * y - 1), "P": above_0(x)}
    Identity("", y, 1 / x, {"H": 1 / ref("P")}).check(context)
    context["P"] = at_least_0(x)
    with pytest.raises(UndecidedError, match="finite everywhere"):
        Identity("", y, 1 / x, {"H": 1 / ref("P")}).check(context)


def test_between_matrices_a_cofactor_stands_on_its_side():
    context = {"H": zero(A * B - 1)}
    Identity("", A * B * A, A, {"H": (ONE, A)}).check(context)
    Identity("", A * A * B, A, {"H": A}).check(context)
    Identity("", A * A * B * B, A * B, {"H": (A, B)}).check(context)
    with pytest.raises(UndecidedError):
        Identity("", A * B * A, A, {"H": (A, ONE)}).check(context)
    with pytest.raises(UndecidedError):  # a left inverse is shown to be a right one nowhere
        Identity("", B * A, ONE, {"H": (B, A)}).check(context)
    assert Identity("", A, A, {"H": (ref("P"), ref("Q"))}).used() == {"H", "P", "Q"}
    with pytest.raises(UndecidedError, match="finite everywhere"):
        Identity("", x - y, ZERO, {"H": (ONE, 1 / (x - y))}).check({"H": zero(x - y)})


@pytest.mark.parametrize(
    "expr",
    [
        sp.Abs(A * B),  # SymPy takes it for |A| |B|, which no matrix norm equals
        sp.exp(A) * sp.exp(B),
        x**A,
        sp.sqrt(A**2),
        (A * B) ** k - (A * B) ** k * (1 - A) ** -1,  # 1 - A may be singular; an inverse is a symbol with an equation
        ((A + B) * A - A**2 - B * A) ** -1 * B,  # and this is the inverse of 0
    ],
)
def test_symbols_for_matrices_enter_sums_products_and_whole_powers_only(expr: sp.Expr):
    with pytest.raises(MalformedError, match="symbols for matrices"):
        Identity("", expr, expr).check({})


@pytest.mark.parametrize(
    ("modulo", "said"), [({"X": ONE}, "'X' is not established here; known"), ({"I": ONE}, "'I' is an inequality")]
)
def test_malformed_cofactors(modulo: dict, said: str):
    with pytest.raises(MalformedError, match=said):
        Identity("", x, x, modulo).check({"I": at_least_0(x)})
    with pytest.raises(MalformedError, match="scalar"):
        Identity("", sp.Matrix([x]), sp.Matrix([x]), {"I": ONE}).check({})


POLYNOMIALS = st.lists(st.integers(-4, 4), min_size=1, max_size=5).map(
    lambda cs: sum((c * x**i for i, c in enumerate(cs)), ZERO)
)


@settings(max_examples=25)
@given(POLYNOMIALS, POLYNOMIALS, st.sampled_from([lambda e: e, sp.exp, sp.tanh, lambda e: 1 / (1 + e**2)]))
def test_random_false_identities_are_never_accepted(a, b, wrap):
    left, right = wrap(a), wrap(b)
    assume(sp.expand(a - b) != 0 and sp.expand(a + b) != 0)
    # Two different polynomials of degree 4 may agree at the six points tried, so either refusal is right.
    with pytest.raises((RefutedError, UndecidedError)):
        Identity("", left, right).check({})


@settings(max_examples=12)  # each is rewritten in up to eight ways
@given(POLYNOMIALS, POLYNOMIALS)
def test_random_true_identities_are_accepted(a, b):
    Identity("", sp.expand(a * b), a * b).check({})
    Identity("", sp.expand((a + sp.exp(x) * b) ** 2), (a + sp.exp(x) * b) ** 2).check({})


def test_points_meet_the_assumptions():
    even = sp.Symbol("m", even=True)
    for point in _points({x, p, u, v, k, even}):
        assert all(_meets(symbol, value) for symbol, value in point.items())
    assert list(_points({x, p, u, v, k, even}))
    # Both signs are tried where they are allowed.
    assert {sp.sign(point[x]) for point in _points({x, y})} == {-1, 1}


def test_a_wrong_rewriting_is_caught_by_the_second_opinion(monkeypatch):
    monkeypatch.setattr("proofs.steps.is_zero", lambda expr: True)
    with pytest.raises(RefutedError):
        Identity("", x + y, x).check({})


# --- Nonnegative ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "certificate", "strict"),
    [
        (x**2 - 2 * x * y + y**2, (x - y) ** 2, False),
        (x**2 + 2 * x + 2, (x + 1) ** 2 + 1, True),
        (n - y, ref("H") + p * ref("H"), False),
        (y - n, ref("E") * -3 + ref("H"), False),
        (1 / p, 1 / p, True),
        (x * y, ref("S") * ref("H"), False),
    ],
)
def test_certificates(expr, certificate, strict):
    context = {"H": at_least_0((n - y) / (1 + p)), "E": zero(ZERO), "S": above_0(x)}
    if certificate.has(ref("E")):
        context = {"H": at_least_0(n - y), "E": zero((n - y) * sp.Rational(2, 3))}
    if certificate.has(ref("S")):
        context["H"] = at_least_0(y)
    found = Nonnegative("", expr, certificate, strict).check(context)
    assert found == Provided("positive" if strict else "nonnegative", expr)


@pytest.mark.parametrize(
    ("expr", "certificate", "error"),
    [
        (x**2 - 1, x**2, RefutedError),  # not equal
        (x, x, UndecidedError),  # equal, but the form shows nothing
        (x * y, x * y, UndecidedError),
        (-(x**2), -(x**2), UndecidedError),
        (-ONE, -ref("E") / (x - y), UndecidedError),  # 0 by an equation, divided by 0
        (y - x, -ref("E"), None),
        (n - 1, -ref("H"), RefutedError),
        (1 - n, -ref("H"), UndecidedError),  # an inequality may not be subtracted
        (1 / (n - 1), 1 / ref("H"), UndecidedError),  # it may be 0
        (sp.Max(sp.log(x), 1), sp.Max(sp.log(x), 1), UndecidedError),
        (sp.Function("f")(x) ** 2 + x, x**2, UndecidedError),
    ],
)
def test_certificates_that_do_not_hold(expr, certificate, error):
    context = {"H": at_least_0(n - 1), "E": zero(x - y)}
    step = Nonnegative("", expr, certificate)
    if error is None:  # the partner: an equation may be subtracted
        assert step.check(context) == at_least_0(expr)
        return
    with pytest.raises(error):
        step.check(context)


@pytest.mark.parametrize(("expr", "certificate"), [(x**2, x**2), (n - 1, ref("H")), (u, u), (x - y, ref("E"))])
def test_not_negative_is_not_positive(expr, certificate):
    context = {"H": at_least_0(n - 1), "E": zero(x - y)}
    assert Nonnegative("", expr, certificate).check(context).relation == "nonnegative"
    with pytest.raises(UndecidedError, match="> 0"):
        Nonnegative("", expr, certificate, strict=True).check(context)


def test_what_is_positive_may_be_divided_by():
    assert Nonnegative("", 1 / x, 1 / ref("P"), strict=True).check({"P": above_0(x)}) == above_0(1 / x)


@pytest.mark.parametrize(
    ("expr", "certificate", "said"),
    [
        (x, ref("X"), "'X' is not established here; known"),
        (0.1 * x**2, 0.1 * x**2, "float"),
        # A symbol that only looks like a label, with an assumption of its own.
        (sp.Symbol("[H]", positive=True), sp.Symbol("[H]", positive=True), "looks like a label"),
        (ref("H"), ref("H"), "label"),
        (ref("H") + x**2, x**2 + ref("L"), "label"),
    ],
)
def test_malformed_certificates(expr, certificate, said: str):
    with pytest.raises(MalformedError, match=said):
        Nonnegative("", expr, certificate).check({"H": at_least_0(n), "L": at_least_0(ref("H"))})


# --- Induction -----------------------------------------------------------------------------------------------------


def induction(**changes) -> Induction:
    """q_k <= 2^k from q_0 = 1 and q_next <= 2 q."""
    parts = {
        "text": "",
        "k": k,
        "quantity": q,
        "following": q_next,
        "bound": 2**k,
        "start": ONE,
        "base": ZERO,
        "step": 2 * ref("IH") + ref("H"),
    }
    return Induction(**{**parts, **changes})


DOUBLING = {"H": at_least_0(2 * q - q_next)}


def test_induction():
    assert induction().check(DOUBLING) == at_least_0(2**k - q)
    # The recurrence itself instead of a hypothesis; a lower bound through -q; a later first.
    assert induction(following=2 * q, step=2 * ref("IH")).check({})
    assert induction(quantity=-q, following=-2 * q, bound=-(2**k), start=-ONE, step=2 * ref("IH")).check({})
    assert induction(first=3, start=sp.Integer(8)).check(DOUBLING)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"start": sp.Integer(2)}, RefutedError),  # base false
        ({"start": sp.Integer(2), "base": -ONE}, UndecidedError),  # equal, but negative
        ({"first": 1}, RefutedError),  # 2^1 is not 1
        ({"bound": 3**k}, RefutedError),
        ({"bound": 2 * k + 1}, RefutedError),  # true at 0, false step
        ({"step": 2 * ref("IH") - ref("H")}, RefutedError),
        ({"step": 2 * ref("IH")}, RefutedError),  # without the hypothesis
        ({"following": 3 * q, "step": 2 * ref("IH") - q}, UndecidedError),
        ({"following": sp.Rational(1, 2) ** k, "step": 2 ** (k + 1) - 2**-k}, UndecidedError),
    ],
)
def test_false_inductions(changes: dict, error):
    with pytest.raises(error):
        induction(**changes).check(DOUBLING)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": ref("IH"), "start": q}, "base may not use"),
        ({"bound": 2 * q, "start": 2 * q}, "not on the bounded quantity"),
        ({"bound": 2**k + q_next}, "not on the bounded quantity"),
        ({"start": 1 - k}, "without k"),
        ({"start": q + 1}, "without k"),
        ({"quantity": k}, "other than k"),
        ({"quantity": q + 1}, "expected a symbol"),
        ({"first": 0.5}, "expected an integer"),
        ({"first": -1}, "declared an integer"),  # k is declared >= 0
        ({"k": x, "bound": 2**x}, "declared an integer"),
        ({"k": sp.Symbol("k", integer=True, positive=True)}, "declared an integer"),  # 0^k would vanish at 0
        ({"k": sp.Symbol("k", even=True)}, "declared an integer"),
        ({"quantity": p, "following": p, "start": ZERO, "bound": ZERO}, "declared positive"),
        ({"step": ref("X")}, "'X' is not established"),
    ],
)
def test_malformed_inductions(changes: dict, said: str):
    with pytest.raises(MalformedError, match=said):
        induction(**changes).check(DOUBLING)


def test_the_induction_hypothesis_cannot_come_from_outside():
    with pytest.raises(MalformedError, match="reserved"):
        induction().check({**DOUBLING, "IH": at_least_0(-ONE)})


def test_an_induction_shows_where_it_begins_and_how_it_goes_on():
    assert "q = 1" in induction().formula()
    assert r"\mapsto 2 q" in induction(following=2 * q).formula()


# --- Sign ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "lo", "hi", "sign"),
    [
        (x**2 + 1, -sp.oo, sp.oo, 1),
        (x**3 - x + 1, -1, sp.oo, 1),
        (-1 / x**2, 1, sp.oo, -1),
        ((x - 2) / (x + 1), 0, "19/10", -1),
        (sp.exp(x) - x, -5, 5, 1),
        (sp.tanh(x) - sp.Rational(21, 20), -3, 3, -1),
    ],
)
def test_signs(expr, lo, hi, sign):
    Sign("", expr, x, lo, hi, sign).check({})
    with pytest.raises(RefutedError):
        Sign("", expr, x, lo, hi, -sign).check({})


@pytest.mark.parametrize(
    ("expr", "lo", "hi"),
    [
        (x, -1, 1),
        ((x - 1) ** 2, 0, 2),  # a double root inside
        ((x - 1) ** 2, 1, 2),  # and at an end
        ((x - 1) ** 2, 0, 1),
        ((x - 1) ** 3 * (x + 3) ** 2, 0, 2),
        (1 / x, -1, 1),  # poles
        (1 / x**2, -1, 1),
        (1 / x**2, 0, 1),
        (1 / (x - 10**6), 0, sp.oo),
        (x - 10**9, 0, sp.oo),
        (ZERO * x, 0, 1),
    ],
)
def test_rational_functions_without_a_strict_sign_are_refuted(expr, lo, hi):
    for sign in (1, -1):
        with pytest.raises(RefutedError):
            Sign("", expr, x, lo, hi, sign).check({})


@pytest.mark.parametrize("expr", [sp.sin(x), sp.exp(x) - 1, sp.exp(x) - x - 1, sp.tan(2 * x), sp.log(1 + x) + 2])
def test_other_functions_without_a_strict_sign_are_undecided(expr):
    with pytest.raises(UndecidedError):
        Sign("", expr, x, -1, 1).check({})


@pytest.mark.parametrize(
    ("expr", "var", "lo", "hi", "said"),
    [
        (x + y, x, 0, 1, "other symbols"),
        (x, x, 2, 1, "lo < hi"),
        (x, x, 1, 1, "lo < hi"),
        (x, x, sp.oo, -sp.oo, "lo < hi"),
        (x, x, 0.5, 1, "float"),
        (x + 0.5, x, 0, 1, "float"),
        (x, x, sp.I, 2, "real ends"),
        (sp.exp(x), x, 0, sp.oo, "compact"),
        (x**2, x, sp.sqrt(2), 2, "compact"),
        (sp.gamma(x + 2), x, 0, 1, "ball arithmetic"),
        (p + 1, p, -2, 1, "non-negative"),
        (v - 1, v, -2, 1, "non-positive"),
        (k + 1, k, 0, 1, "other than a real number"),
        (sp.Symbol("w", nonzero=True, real=True) ** 2, sp.Symbol("w", nonzero=True, real=True), -1, 1, "non-zero"),
    ],
)
def test_malformed_signs(expr, var, lo, hi, said):
    with pytest.raises(MalformedError, match=said):
        Sign("", expr, var, lo, hi).check({})


@settings(max_examples=25)
@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=6),
    st.lists(st.integers(-5, 5), min_size=1, max_size=3),
    st.fractions(-3, 3, max_denominator=7),
    st.fractions(0, 3, max_denominator=7),
)
def test_sturm_agrees_with_dense_evaluation(top, bottom, low, width):
    assume(width > 0 and any(top) and any(bottom))
    lo, hi = sp.Rational(low.numerator, low.denominator), sp.Rational(width.numerator, width.denominator)
    hi += lo
    numerator = sum((c * x**i for i, c in enumerate(top)), ZERO)
    denominator = sum((c * x**i for i, c in enumerate(bottom)), ZERO)
    accepted = []
    for sign in (1, -1):
        try:
            Sign("", numerator / denominator, x, lo, hi, sign).check({})
            accepted.append(sign)
        except RefutedError:
            pass
    assert len(accepted) <= 1
    # Judged at 31 points, as SymPy holds the quotient: x^2/x is x. If they show no root, there must be one in between.
    parts = [sp.Poly(part, x) for part in sp.fraction(sp.together(numerator / denominator))]
    places = [lo + (hi - lo) * sp.Rational(i, 30) for i in range(31)]
    signs = {int(sp.sign(parts[0].eval(place) * parts[1].eval(place))) for place in places}
    if accepted:
        assert signs == set(accepted)
    elif signs in ({1}, {-1}):
        assert any(lo <= root <= hi for part in parts for root in part.real_roots())


# --- Root, Enclosed, Holds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "lo", "hi", "near"),
    [
        (x**2 - 2, 1, 2, 2**0.5),
        (x**2 - 2, -2, -1, -(2**0.5)),
        (sp.exp(-x) - x, 0, 1, 0.5671432904097838),
        (2 - x * sp.tanh(x / 2), 2, 3, 2.3993572805154),
    ],
)
def test_roots(expr, lo, hi, near):
    root = Root("", expr, x, lo, hi)
    assert root.check({}) == zero(expr)
    low, high = root.box()
    assert low <= high < low + sp.Rational(1, 2**150)
    assert float(low) == pytest.approx(near, abs=1e-12)


@pytest.mark.parametrize(
    ("expr", "lo", "hi", "error"),
    [
        (x**2 + 1, 0, 2, RefutedError),  # none
        (x + 1, 0, 2, RefutedError),  # none, and monotone
        (sp.exp(x), -1, 1, RefutedError),
        (x**2 - 2, -2, 2, RefutedError),  # two
        (x**3 - x, -2, 2, RefutedError),  # three: signs differ, the slope's sign does too
        (sp.sin(4 * x), -1, 1, UndecidedError),  # several
        (x - 1, 1, 2, UndecidedError),  # at an end
        (1 / x, -1, 2, RefutedError),  # a pole
        (sp.atan(1 / x), -1, 2, UndecidedError),  # a jump, with slope -1/(1 + x^2)
        (sp.tan(x), 1, 3, UndecidedError),
        (x**3, -1, 1, RefutedError),  # flat at the root
        (sp.log(x), -1, 2, UndecidedError),
    ],
)
def test_what_is_not_one_root(expr, lo, hi, error):
    root = Root("", expr, x, lo, hi)
    for use in (lambda: root.check({}), root.box, lambda: Enclosed("", x, -9, 9, at=root).check({})):
        with pytest.raises(error):
            use()


@pytest.mark.parametrize(
    ("root", "said"),
    [
        (Root("", r + 2, r, -3, -1), "non-negative"),  # a root that is not what its symbol is declared to be
        (Root("", k - sp.Rational(1, 2), k, 0, 1), "other than a real number"),
        (Root("", x - y, x, 0, 1), "has no interval"),
        (Root("", x**2 - 2, x, 2, 1), "lo < hi"),
        (Root("", x**2 - 2, x, 1.0, 2), "float"),
        (Root("", x**2 - 2, x, 1, sp.oo), "not rational"),
    ],
)
def test_malformed_roots(root, said):
    with pytest.raises(MalformedError, match=said):
        root.check({})


def test_enclosures():
    Enclosed("", sp.pi, "333/106", "22/7").check({})
    Enclosed("", r, "1414/1000", "1415/1000", at=SQUARE_ROOT_OF_2).check({})
    Enclosed("", r**2, "1999999/1000000", "2000001/1000000", at=SQUARE_ROOT_OF_2).check({})


@pytest.mark.parametrize(
    ("value", "lo", "hi", "at", "error"),
    [
        (sp.pi, "22/7", 4, None, RefutedError),
        (sp.pi, 3, "333/106", None, RefutedError),
        (sp.Integer(2), 2, 3, None, UndecidedError),  # not strictly inside
        (sp.Integer(2), 1, 2, None, UndecidedError),
        (r, 1, "1414/1000", SQUARE_ROOT_OF_2, RefutedError),
        (r, 0, 2, None, MalformedError),
        (r + x, 0, 2, SQUARE_ROOT_OF_2, MalformedError),
        (sp.pi, 3.1, 4, None, MalformedError),
        (1 / (r**2 - 2), 0, 1, SQUARE_ROOT_OF_2, UndecidedError),
    ],
)
def test_wrong_enclosures(value, lo, hi, at, error):
    with pytest.raises(error):
        Enclosed("", value, lo, hi, at=at).check({})


@pytest.mark.parametrize(
    ("left", "relation", "right"),
    [
        (sp.pi, "<", sp.Rational(22, 7)),
        (sp.sqrt(2) + sp.sqrt(3), "==", sp.sqrt(5 + 2 * sp.sqrt(6))),
        (sp.sqrt(8), "<=", 2 * sp.sqrt(2)),
        (sp.exp(-(10**5)), ">", ZERO),
        (sp.E, ">=", sp.Rational(27, 10)),
    ],
)
def test_relations_between_numbers(left, relation, right):
    assert Holds("", left, relation, right).check({}) is not None


def test_what_a_relation_provides():
    # The text that follows may use it in certificates: the sign must be the right one.
    assert Holds("", ONE, "<", sp.Integer(3)).check({}) == above_0(sp.Integer(2))
    assert Holds("", ONE, "<=", sp.Integer(3)).check({}) == at_least_0(sp.Integer(2))
    assert Holds("", sp.Integer(3), ">", ONE).check({}) == above_0(sp.Integer(2))
    assert Holds("", sp.Integer(3), ">=", ONE).check({}) == at_least_0(sp.Integer(2))
    assert Holds("", ONE, "==", ONE).check({}) == zero(ZERO)


@pytest.mark.parametrize(
    ("left", "relation", "right"),
    [
        (ONE, "<", ONE),
        (ONE, ">", ONE),
        (ONE, "==", 2 * ONE),
        (sp.pi, ">=", sp.Rational(22, 7)),
        (sp.E, "<=", sp.sqrt(7)),
    ],
)
def test_false_relations(left, relation, right):
    with pytest.raises(RefutedError):
        Holds("", left, relation, right).check({})


@pytest.mark.parametrize("relation", ["<", "<=", ">", ">=", "=="])
def test_relations_that_no_arithmetic_tells_apart(relation):
    close = sp.Rational(str(sp.N(sp.pi, 100)))
    with pytest.raises(UndecidedError, match="too near"):
        Holds("", sp.pi, relation, close).check({})


@pytest.mark.parametrize("bad", [sp.Float(1) / 2, sp.I, sp.oo, sp.zoo, sp.nan, x, sp.gamma(sp.Rational(1, 3))])
def test_relations_between_what_is_no_exact_number(bad):
    for relation in ("<=", "=="):
        with pytest.raises(MalformedError):
            Holds("", bad, relation, bad).check({})


def test_a_complex_number_is_not_below_itself():
    with pytest.raises(UndecidedError, match="no finite enclosure"):
        Holds("", (-8) ** sp.Rational(1, 3) * sp.pi, "<=", (-8) ** sp.Rational(1, 3) * sp.pi).check({})


# --- Extremum ------------------------------------------------------------------------------------------------------


def extremum(**changes) -> Extremum:
    """1 - (x - 1)^2 is greatest at 1."""
    parts = {
        "text": "",
        "f": 1 - (x - 1) ** 2,
        "var": x,
        "lo": -sp.oo,
        "hi": sp.oo,
        "at": ONE,
        "value": ONE,
        "factor": sp.Integer(2),
        "switch": 1 - x,
        "slope": ONE,
    }
    return Extremum(**{**parts, **changes})


PEAK = Root("", 2 - r * sp.tanh(r / 2), r, 2, 3)
SLOPE = sp.diff(p / (1 + sp.exp(-p)), p)
# The steepest point of SiLU: tanh(r/2) = 2/r turns the slope there into 1/2 + r/4.
STEEPEST = {
    "f": SLOPE,
    "var": p,
    "lo": 0,
    "at": PEAK,
    "value": sp.Rational(1, 2) + r / 4,
    "factor": sp.exp(-p) / (1 + sp.exp(-p)) ** 2,
    "switch": 2 - p * sp.tanh(p / 2),
    "slope": sp.tanh(p / 2) + p / 2 / sp.cosh(p / 2) ** 2,
}


def test_extrema():
    assert extremum().check({}) == at_least_0(ONE - (1 - (x - 1) ** 2))
    # Without a slope by form: by Sturm. On part of the range: nothing that holds for every x.
    assert extremum(slope=None, lo=0, hi=3).check({}) is None
    assert extremum(lo=1, hi=3).check({}) is None  # at an end
    assert extremum(f=(x - 1) ** 2, switch=x - 1, value=ZERO, kind="minimum").check({}) == at_least_0((x - 1) ** 2)
    f = p * sp.exp(-p)
    found = extremum(f=f, var=p, lo=0, switch=1 - p, value=sp.exp(-1), factor=sp.exp(-p)).check({})
    assert found == at_least_0(sp.exp(-1) - f)
    assert extremum(**STEEPEST).check({}) == at_least_0(sp.Rational(1, 2) + r / 4 - SLOPE)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"value": sp.Integer(2)}, RefutedError),
        ({"at": ZERO, "value": ZERO}, RefutedError),
        ({"kind": "minimum"}, RefutedError),  # the slope's sign
        ({"kind": "minimum", "slope": None, "lo": 0, "hi": 3}, RefutedError),
        ({"factor": sp.Integer(-2), "switch": x - 1, "slope": -ONE}, UndecidedError),  # negative factor
        ({"factor": sp.Integer(-2), "switch": x - 1, "slope": ONE, "kind": "minimum"}, UndecidedError),
        ({"factor": 2 * (1 - x), "switch": ONE, "slope": ZERO}, UndecidedError),
        ({"slope": sp.Integer(2)}, RefutedError),
        ({"switch": 2 - x}, RefutedError),
        (
            {"f": 1 - (x - 1) ** 4, "switch": (1 - x) ** 3, "factor": sp.Integer(4), "slope": 3 * (x - 1) ** 2},
            UndecidedError,
        ),
        # Its slope is that of 1 - (x - 1)^2, but it jumps up by pi at 2, to more than 1.
        ({"f": 1 - (x - 1) ** 2 + 10 * JUMP.subs(x, x - 1), "value": 1 - 5 * sp.pi, "lo": -5, "hi": 5}, UndecidedError),
        ({"f": 1 - (x - 1) ** 2 + 10 * JUMP.subs(x, x - 1), "value": 1 - 5 * sp.pi}, UndecidedError),
        # The switch jumps.
        ({"f": x * sp.atan(1 / x) + sp.log(1 + x**2) / 2, "switch": sp.atan(1 / x), "factor": ONE}, UndecidedError),
        # A function that is not defined everywhere.
        ({"f": sp.log(x) - x, "switch": 1 - x, "factor": 1 / x, "value": -ONE}, UndecidedError),
    ],
)
def test_false_extrema(changes, error):
    with pytest.raises(error):
        extremum(**changes).check({})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lo": 2, "hi": 3}, "outside"),
        ({"lo": -3, "hi": 0}, "outside"),
        ({"lo": 3, "hi": 2}, "lo < hi"),
        ({"at": x}, "without x"),
        ({"value": x}, "without x"),
        # exp(i pi) + 1 = 0, but the maximum is not there.
        (
            {"f": -x - sp.exp(x), "switch": -1 - sp.exp(x), "factor": ONE, "slope": sp.exp(x), "at": sp.I * sp.pi},
            "real expressions",
        ),
        ({"f": 1 - (p - 1) ** 2, "var": p, "switch": 1 - p}, "non-negative"),
        ({"f": 1 - (v + 1) ** 2, "var": v, "switch": -1 - v, "at": -ONE}, "non-positive"),
        ({"f": 1 - (k - 1) ** 2, "var": k, "switch": 1 - k, "lo": 0}, "other than a real"),
        ({"at": Root("", 1 - x, x, 0, 2)}, "symbol of its own"),
        ({"at": Root("", 2 - r, r, 0, 3)}, "is not the switch"),
        ({"at": Root("", 1 - r, r, 0, 3), "lo": 0, "hi": 2}, "leaves"),
        ({"f": 1 - (x - 1) ** 2 * 1.0}, "float"),
    ],
)
def test_malformed_extrema(changes, said):
    with pytest.raises(MalformedError, match=said):
        extremum(**changes).check({})


@pytest.mark.parametrize("value", [sp.Rational(1, 2) + r / 5, ONE, r, sp.Rational(10998393, 10**7)])
def test_a_wrong_value_at_a_root_is_refuted(value):
    with pytest.raises(RefutedError, match="value"):
        extremum(**{**STEEPEST, "value": value}).check({})


def test_a_root_that_is_none_supports_no_extremum():
    none = Root("", 2 - r * sp.tanh(r / 2), r, 3, 4)
    with pytest.raises(RefutedError):
        extremum(**{**STEEPEST, "at": none}).check({})


def test_values_are_carried_over_by_the_factor_that_vanishes_at_the_root():
    # (r - 1)(exp(r) - 2) is 0 at 1, and at log 2. At 1, exp(r) is not 2.
    at_1 = Root("", (r - 1) * (sp.exp(r) - 2), r, "9/10", "11/10")
    at_log_2 = Root("", (r - 1) * (sp.exp(r) - 2), r, "6/10", "8/10")
    assert vanishes_at(r**2 - 1, at_1)
    assert not vanishes_at(sp.exp(r) - 2, at_1)
    assert vanishes_at(sp.exp(2 * r) - 4, at_log_2)
    assert not vanishes_at(r**2 - 1, at_log_2)
    assert vanishes_at(r**4 - 4, SQUARE_ROOT_OF_2)
    assert not vanishes_at(r**4 - 5, SQUARE_ROOT_OF_2)
    # 0/0 is not 0.
    assert not vanishes_at((r**2 - 2) / (r**4 - 4), SQUARE_ROOT_OF_2)


def test_enclosures_check_their_root_themselves():
    with pytest.raises(RefutedError):
        enclosure(r, Root("", r**2 + 1, r, 0, 2))


# --- Limit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "var", "to", "value", "side"),
    [
        ((1 + 1 / p) ** p, p, sp.oo, sp.E, "+"),
        (sp.sin(x) / x, x, ZERO, ONE, "+"),
        (1 / x, x, ZERO, sp.oo, "+"),
        (1 / x, x, ZERO, -sp.oo, "-"),
        (1 / sp.sqrt(u + p), u, ZERO, 1 / sp.sqrt(p), "+"),
    ],
)
def test_limits(expr, var, to, value, side):
    Limit("", expr, var, to, value, side).check({})


@pytest.mark.parametrize(
    ("expr", "var", "to", "value", "side", "error"),
    [
        (sp.sin(x) / x, x, ZERO, sp.Integer(2), "+", RefutedError),
        (1 / x, x, ZERO, -sp.oo, "+", RefutedError),
        (1 / x, x, ZERO, ONE, "+", RefutedError),
        (x, x, ONE, sp.oo, "+", RefutedError),
        (sp.sin(1 / x), x, ZERO, ZERO, "+", UndecidedError),
        (sp.sin(1 / x), x, ZERO, sp.AccumBounds(-1, 1), "+", UndecidedError),
        (sp.Abs(p) / p, p, ZERO, ONE, "-", MalformedError),  # simplified under p > 0, approached from below
        (p, p, -sp.oo, -sp.oo, "+", MalformedError),
        (p, p, -ONE, -ONE, "+", MalformedError),
        (v, v, ZERO, ZERO, "+", MalformedError),
        (x * 0.5, x, ONE, sp.Rational(1, 2), "+", MalformedError),
        (x, x, sp.I, sp.I, "+", MalformedError),
        (x, x, ONE, ONE, "+-", MalformedError),
        (sp.nan, x, ONE, sp.nan, "+", MalformedError),
    ],
)
def test_wrong_limits(expr, var, to, value, side, error):
    with pytest.raises(error):
        Limit("", expr, var, to, value, side).check({})


def test_a_limit_says_from_which_side():
    assert "^+" in Limit("", 1 / x, x, ZERO, sp.oo).formula()
    assert "^-" in Limit("", 1 / x, x, ZERO, -sp.oo, "-").formula()
    assert "^" not in Limit("", 1 / x, x, sp.oo, ZERO).formula()


# --- All kinds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expr", [x + 1, sp.tanh(x) - x, HIDDEN + sp.Rational(1, 10**30)])
def test_is_zero_says_no(expr):
    assert not is_zero(expr)


@given(st.sampled_from([x**2 - 1, x - y, sp.exp(x) - 1, -sp.Abs(x), n, -p]))
def test_nothing_false_is_provable_from_an_empty_context(expr):
    # Each is negative somewhere; no certificate built from it and its square may pass.
    for certificate in (expr, expr * p / p, expr**2 / expr, expr + expr**2 - expr**2, sp.Abs(expr), expr**3 / expr**2):
        with pytest.raises(ProofError):
            Nonnegative("", expr, certificate).check({})
