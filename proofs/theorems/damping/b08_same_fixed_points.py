"""B8: damping keeps the fixed points, and shortens the step that a careless test would take for the residual."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, norm

s = sp.Symbol("s", real=True, nonzero=True)
z_i = sp.Symbol("z_i", real=True)
f_i = sp.Symbol("f_i", real=True)
step = sp.Symbol("t", positive=True)
L = sp.Symbol("L", nonnegative=True)
tau = sp.Symbol("tau", positive=True)
r = sp.Symbol("r", nonnegative=True)
p = sp.Symbol("p", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
spread = sp.Symbol("m", nonnegative=True)
gap = sp.Symbol("gap", nonnegative=True)


def residual_of_accepted(ctx, point):
    """A damped step of length tau or less on an affine map of three dimensions: the residual is at most tau / s."""
    a, b, z, s, tau = (
        matrix(ctx, point["A"], 3, 3),
        ctx.matrix(point["b"]),
        ctx.matrix(point["z"]),
        point["s"],
        point["tau"],
    )
    image = a * z + b
    after = (1 - s) * z + s * image
    if norm(ctx, list(after - z)) > tau:
        return None
    return norm(ctx, list(image - z)), tau / s


def error_of_accepted(ctx, point):
    """The same on the line, f(z) = L z: the error is at most tau / (s (1 - L))."""
    rate, z, s, tau = point["L"], point["z"], point["s"], point["tau"]
    after = (1 - s) * z + s * rate * z
    if abs(after - z) > tau:
        return None
    return abs(z), tau / (s * (1 - abs(rate)))


def damped_rate(ctx, point):
    """The damped map's Lipschitz constant on f(z) = L sin(z): a chord."""
    rate, x, y, s = point["L"], point["x"], point["y"], point["s"]
    damped = [(1 - s) * v + s * rate * ctx.sin(v) for v in (x, y)]
    return abs(damped[0] - damped[1]), (1 - s + s * abs(rate)) * abs(x - y)


THEOREM = Theorem(
    id="B8",
    title="Damping keeps fixed points; the residual is 1/s damped steps",
    statement=(
        r"Let $f_s(z) = (1-s) z + s f(z)$ with $s \ne 0$. Then $f_s(z) - z = s (f(z) - z)$: the fixed points of $f_s$ "
        r"are those of $f$, and the damped step is $|s|$ times the residual, in every norm. For $s > 0$, a test that "
        r"accepts a damped step $\|f_s(z) - z\| \le \tau$ accepts residuals up to $\frac{\tau}{s}$, and if $f$ is "
        r"$L$-Lipschitz with $L < 1$, errors up to $\frac{\tau}{s (1 - L)}$; no less can be promised. For $0 < s \le "
        r"1$ the damped map is Lipschitz with $1 - s + s L$."
    ),
    plain=(
        "Damping changes how a loop approaches its fixed points, not which ones it has. But a solver that tests its "
        "own step gets an easier test the more it damps: at s = 0.01 a step of 1e-3 is a residual of 0.1. So the "
        "undamped residual must be tested."
    ),
    symbols=(
        Symbol(s, "damping step, any number but 0", "step"),
        Symbol(z_i, "one entry of the state"),
        Symbol(f_i, "the same entry of f(z)"),
        Symbol(step, "damping step, positive", "step"),
        Symbol(L, "Lipschitz constant of f", "rate"),
        Symbol(tau, "tolerance"),
        Symbol(r, "residual |f(z) - z|", "residual"),
        Symbol(p, "length of the damped step |f_s(z) - z|"),
        Symbol(e, "|z - z*|, or |x - y| for two states"),
        Symbol(spread, "|f(x) - f(y)|"),
        Symbol(gap, "|f_s(x) - f_s(y)|"),
    ),
    hypotheses=(
        Hypothesis("H1", "the damped step passes the test", tau - p),
        Hypothesis("H2", "L < 1, for the error only", 1 - L, "positive"),
        Hypothesis("H3", "f is L-Lipschitz, for the error and the damped rate", L * e - spread),
        Hypothesis("H4", "s <= 1, for the damped rate only", 1 - step),
    ),
    facts=(
        Fact(
            "F1",
            "the damped step is s residuals long: step 1 and homogeneity",
            p - step * r,
            "norm axiom",
            "zero",
            axiom=True,
        ),
        Fact("F2", "(1 - L) |z - z*| <= r", r - (1 - L) * e, "Theorem B2", axiom=True),
        Fact(
            "F3",
            "|f_s(x) - f_s(y)| <= (1-s) |x - y| + s |f(x) - f(y)|, as 0 < s <= 1",
            (1 - step) * e + step * spread - gap,
            "norm axioms",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "Entry by entry, the damped step is s times the residual.", (1 - s) * z_i + s * f_i - z_i, s * (f_i - z_i)
        ),
        Identity(
            "And the residual is the damped step over s: where one vanishes, so does the other.",
            ((1 - s) * z_i + s * f_i - z_i) / s,
            f_i - z_i,
        ),
        Nonnegative(
            "An accepted damped step means a residual of at most tau / s.",
            tau / step - r,
            (ref("H1") + ref("F1")) / step,
            label="accepted",
        ),
        Nonnegative(
            "Hence an error of at most tau / (s (1 - L)).",
            tau / (step * (1 - L)) - e,
            (ref("accepted") + ref("F2")) / ref("H2"),
        ),
        Identity(
            "No less can be promised: f(z) = L z from z = tau / (s (1 - L)) steps by tau exactly.",
            tau / (step * (1 - L)) - ((1 - step) + step * L) * tau / (step * (1 - L)),
            tau,
        ),
        Nonnegative(
            "The damped map's Lipschitz constant.", (1 - step + step * L) * e - gap, ref("F3") + step * ref("H3")
        ),
    ),
    source=Source("", place="arXiv 2606.18206, Theorem 3, for the fixed points; the test is derived here"),
    claims=(
        Claim(
            "residual <= tau / s where a damped step passes",
            (
                Reals("A", -1, 1, 9),
                Reals("b", -1, 1, 3),
                Reals("z", -1, 1, 3),
                Reals("s", 0.001, 2, log=True),
                Reals("tau", 1e-3, 10, log=True),
            ),
            residual_of_accepted,
            sharp=True,
        ),
        Claim(
            "error <= tau / (s (1 - L)) where a damped step passes",
            (
                Reals("L", -0.99, 0.99),
                Reals("z", -20, 20),
                Reals("s", 0.001, 1, log=True),
                Reals("tau", 1e-3, 10, log=True),
            ),
            error_of_accepted,
            sharp=True,
        ),
        Claim(
            "damped Lipschitz constant",
            (Reals("L", -2, 2), Reals("x", -4, 4), Reals("y", -4, 4), Reals("s", 0.001, 1)),
            damped_rate,
            sharp=True,
            near=({"L": 0.5, "x": 0.01, "y": -0.01, "s": 0.5},),
        ),
    ),
    code=("fpcheck/solve/solvers.py:Damped",),
    uses=("B2",),
    remarks=(
        "With s = 0 every state is a fixed point of f_s: a step size that underflows makes any loop look settled.",
        "A patience rule that ends the solve once s is small accepts states with a residual of any size.",
    ),
)
