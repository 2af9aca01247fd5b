"""X3: without the contraction factor no residual, and no second difference, says how far the fixed point is."""

import sympy as sp

from proofs import Claim, Hypothesis, Identity, Induction, Nonnegative, Reals, Source, Symbol, Theorem, ref

tau = sp.Symbol("tau", positive=True)
R = sp.Symbol("R", positive=True)
n = sp.Symbol("n", integer=True, positive=True)
k = sp.Symbol("k", integer=True, nonnegative=True)
L = sp.Symbol("L", positive=True)
e0 = sp.Symbol("e_0", positive=True)
e = sp.Symbol("e", nonnegative=True)
power = sp.Symbol("p", nonnegative=True)


def _family(ctx, point):
    """The loop of the statement: its factor, its start, and its states by iteration."""
    tau, far, count = point["tau"], point["R"], 1 + int(point["n"])
    start = far + count * tau
    rate = 1 - tau / start
    states = [start]
    for _ in range(count + 2):
        states.append(rate * states[-1])
    return tau, far, count, states


def residuals(ctx, point):
    """All residuals of the window."""
    tau, _, count, z = _family(ctx, point)
    return max(abs(z[k + 1] - z[k]) for k in range(count + 1)), tau


def second_differences(ctx, point):
    tau, far, count, z = _family(ctx, point)
    return max(abs(z[k + 2] - 2 * z[k + 1] + z[k]) for k in range(count + 1)), tau**2 / (far + count * tau)


def error(ctx, point):
    """The fixed point is 0, and still R away after the window."""
    _, far, count, z = _family(ctx, point)
    return far, min(abs(z[k]) for k in range(count + 1))


# No wider: a second difference loses twice the digits of tau / R.
SPACE = (Reals("tau", 0.1, 10, log=True), Reals("R", 1e-2, 1e3, log=True), Reals("n", 0, 29.999))

THEOREM = Theorem(
    id="X3",
    title="A small residual promises nothing without the contraction factor",
    statement=(
        r"For every tolerance $\tau > 0$, distance $R > 0$ and window of $n \ge 1$ steps there is a contraction, "
        r"$f(z) = L z$ with $L = 1 - \frac{\tau}{R + n \tau}$, and a start, $z_0 = R + n \tau$, such that for $k = 0, "
        r"\dots, n$ the residual is at most $\tau$, the second difference $|z_{k+2} - 2 z_{k+1} + z_k|$ at most "
        r"$\frac{\tau^2}{R + n \tau}$, and yet the fixed point, 0, is at least $R$ away. Every bound is attained: the "
        r"first two at $k = 0$, the last in the limit $\tau / R \to 0$ or for $n = 1$ at $k = 1$."
    ),
    plain=(
        "Whatever tolerance, patience and kind of difference a halting rule uses, there is a contracting loop that "
        "passes it as far from its answer as one likes. The second difference is the weaker witness: it is smaller "
        "than the residual by the very factor, 1 - L, that is missing. Only a bound on L turns a residual into an "
        "error (B2)."
    ),
    symbols=(
        Symbol(tau, "tolerance", "rtol"),
        Symbol(R, "distance that must remain"),
        Symbol(n, "steps in the window"),
        Symbol(k, "number of steps"),
        Symbol(L, "contraction factor", "rate"),
        Symbol(e0, "start, R + n tau"),
        Symbol(e, "a state, and its distance from the fixed point"),
        Symbol(power, "L^k"),
    ),
    hypotheses=(
        Hypothesis("H1", "z_0 = R + n tau", e0 - R - n * tau, "zero"),
        Hypothesis("H2", "L = 1 - tau / z_0", (1 - L) * e0 - tau, "zero"),
        Hypothesis("H3", "k <= n", n - k),
        Hypothesis("H4", "n >= 1", n - 1),
    ),
    steps=(
        Nonnegative("L is below 1.", 1 - L, (tau + ref("H2")) / e0, strict=True, label="contraction"),
        Nonnegative(
            "And above 0, since z_0 = R + n tau exceeds tau: f is a contraction.",
            L,
            (R + ref("H4") * tau + ref("H1") - ref("H2")) / e0,
            label="positive",
        ),
        Identity("The residual of a state is 1 - L times the state.", e - L * e, (1 - L) * e),
        Identity(
            "Its second difference is the square of that factor times the state.",
            L**2 * e - 2 * L * e + e,
            (1 - L) ** 2 * e,
        ),
        Induction(
            "Powers of L stay below 1,",
            k,
            power,
            L * power,
            sp.Integer(1),
            sp.Integer(1),
            sp.Integer(0),
            L * ref("IH") + ref("contraction"),
            label="power",
        ),
        Induction(
            "and above 1 - k (1 - L) (Bernoulli).",
            k,
            -power,
            -L * power,
            -1 + k * (1 - L),
            sp.Integer(-1),
            sp.Integer(0),
            L * ref("IH") + k * (1 - L) ** 2,
            label="Bernoulli",
        ),
        Nonnegative(
            "So the residual of L^k z_0 is at most tau.",
            tau - (1 - L) * power * e0,
            tau * ref("power") - power * ref("H2"),
        ),
        Nonnegative(
            "Its second difference is at most tau^2 / z_0.",
            tau**2 / e0 - (1 - L) ** 2 * power * e0,
            (tau**2 * ref("power") - power * ref("H2") * (2 * tau + ref("H2"))) / e0,
        ),
        Nonnegative(
            "But for k <= n the state is still R away from 0, or further.",
            power * e0 - R,
            e0 * ref("Bernoulli") + ref("H1") + tau * ref("H3") - k * ref("H2"),
        ),
        Identity("At k = 0 the first two are equalities.", (1 - L) * e0, tau, modulo={"H2": 1}),
        Identity(
            "At n = k = 1 the third is.", (L * e0 - R).subs(e0, R + tau).subs(L, 1 - tau / (R + tau)), sp.Integer(0)
        ),
    ),
    source=Source("", derived=True, place="the sharp side of Banach's a-posteriori bound, B2"),
    claims=(
        Claim("residuals <= tau", SPACE, residuals, sharp=True),
        Claim("second differences <= tau^2 / (R + n tau)", SPACE, second_differences, sharp=True),
        Claim("error >= R through the window", SPACE, error, sharp=True),
    ),
    code=("fpcheck/solve/monitor.py:Monitor",),
    uses=("B2",),
    remarks=(
        "Scaled down by 1 - L the test is sound: a residual of at most tau (1 - L) means an error of at most tau.",
    ),
)
