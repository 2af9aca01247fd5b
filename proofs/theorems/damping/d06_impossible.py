"""D6: where no damping step helps."""

import sympy as sp

from proofs import Claim, Hypothesis, Identity, Induction, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import eigenvalues, matrix

a = sp.Symbol("a", real=True)
b = sp.Symbol("b", real=True)
s = sp.Symbol("s", positive=True)
k = sp.Symbol("k", integer=True, nonnegative=True)
product = sp.Symbol("m_k", positive=True)
factor = sp.Symbol("c", positive=True)
modulus_squared = (1 - s * (1 - a)) ** 2 + (s * b) ** 2


def one_step(ctx, point):
    return ctx.mpf(1), abs(ctx.mpc(1 - point["s"] * (1 - point["re"]), point["s"] * point["im"]))


def changing_steps(ctx, point):
    """Several damped steps, each with its own s."""
    total = ctx.mpf(1)
    for s in point["s"]:
        total *= abs(ctx.mpc(1 - s * (1 - point["re"]), s * point["im"]))
    return ctx.mpf(1), total


def matrix_radius(ctx, point):
    """The same read off the damped matrix, for a random 3 x 3 Jacobian with an eigenvalue right of 1."""
    jacobian = matrix(ctx, point["A"], 3, 3)
    if max(ctx.re(v) for v in eigenvalues(ctx, jacobian)) < 1:
        return None
    damped = (1 - point["s"]) * ctx.eye(3) + point["s"] * jacobian
    return ctx.mpf(1), max(abs(v) for v in eigenvalues(ctx, damped))


THEOREM = Theorem(
    id="D6",
    title="Where no damping helps",
    statement=(
        r"Let $\lambda$ be an eigenvalue of $J$ with $\mathrm{Re}\, \lambda \ge 1$. Then $|1 - s(1 - \lambda)| \ge 1$ "
        r"for every $s > 0$, with equality only for $\lambda = 1$; and $\prod_{j<k} |1 - s_j (1 - \lambda)| \ge 1$ "
        r"for every sequence of steps $s_j > 0$. So no damped loop $(1-s) z + s f(z)$ has spectral radius below 1 at "
        r"a fixed point with such an eigenvalue, and if $\lambda \ne 1$ every one of them repels there."
    ),
    plain=(
        "Damping moves an eigenvalue along the ray from 1 through it. One whose real part is 1 or more stays outside "
        "the unit circle for every step size and every schedule of step sizes: the fixed point cannot be made "
        "attracting, and a solver that finds it nevertheless (Newton, Anderson) says nothing about the loop."
    ),
    symbols=(
        Symbol(a, "real part of the eigenvalue"),
        Symbol(b, "imaginary part of the eigenvalue"),
        Symbol(s, "damping step", "step"),
        Symbol(k, "number of steps"),
        Symbol(product, "product of the squared moduli of the first k steps"),
        Symbol(factor, "squared modulus of one step more"),
    ),
    hypotheses=(
        Hypothesis("H1", "Re lambda >= 1", a - 1),
        Hypothesis("H2", "the factor is a squared modulus, at least 1 by the first step", factor - 1),
    ),
    steps=(
        Nonnegative(
            "The squared modulus exceeds 1 by a sum of non-negative terms; for a > 1 or b != 0 one of them is "
            "positive.",
            modulus_squared - 1,
            s * ref("H1") * (2 + s * ref("H1")) + s**2 * b**2,
        ),
        Identity("For lambda = 1 it is 1, whatever the step.", modulus_squared.subs({a: 1, b: 0}), sp.Integer(1)),
        Induction(
            "With changing steps: a product of factors that are at least 1 is at least 1.",
            k,
            -product,
            -product * factor,
            sp.Integer(-1),
            sp.Integer(-1),
            sp.Integer(0),
            ref("IH") * factor + ref("H2"),
        ),
    ),
    source=Source("", derived=True, place="limits arXiv 2606.18206, damping theorem"),
    claims=(
        Claim(
            "modulus >= 1 for every step",
            (Reals("re", 1, 6), Reals("im", -5, 5), Reals("s", 1e-3, 20, log=True)),
            one_step,
            sharp=True,
        ),
        Claim(
            "modulus >= 1 for every sequence of steps",
            (Reals("re", 1, 6), Reals("im", -5, 5), Reals("s", 0.001, 5, 4)),
            changing_steps,
            sharp=True,
        ),
        Claim(
            "damped spectral radius >= 1 if an eigenvalue has real part >= 1",
            (Reals("A", -2, 2, 9), Reals("s", 1e-3, 5, log=True)),
            matrix_radius,
            sharp=True,
            near=({"A": [1.001, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.2], "s": 0.1},),
        ),
    ),
    not_checked=(
        NotChecked(
            "a fixed point with a multiplier of modulus above 1 repels: some starts arbitrarily near it leave a "
            "neighbourhood",
            "unstable manifold theorem, e.g. Katok and Hasselblatt (1995), Theorem 6.2.8",
        ),
    ),
    code=("fpcheck/spectral/damping.py:critical_step", "fpcheck/solve/solvers.py:Damped"),
    uses=("D5",),
    remarks=(
        "lambda = 1 exactly is not decided by the Jacobian: f(z) = z - z^3 attracts at 0, f(z) = z + z^3 repels, "
        "damped or not.",
        "It is the real part that counts, not the modulus: an eigenvalue -5 is no obstacle, one of 1.01 is.",
        "Negative steps, which walk away from f(z), do turn a repelling real eigenvalue above 1 into an attracting "
        "one.",
    ),
)
