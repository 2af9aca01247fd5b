"""H4: which threshold on the residual promises an error, and how many iterations are left."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Induction, Limit, Nonnegative, Reals, Source, Symbol, Theorem, ref

L = sp.Symbol("L", positive=True)
gap = sp.Symbol("gap", positive=True)
tau = sp.Symbol("tau", positive=True)
r = sp.Symbol("r", positive=True)
r_n = sp.Symbol("r_n", nonnegative=True)
r_next = sp.Symbol("r_next", nonnegative=True)
e = sp.Symbol("e", nonnegative=True)
e_n = sp.Symbol("e_n", nonnegative=True)
n = sp.Symbol("n", nonnegative=True, integer=True)
c = sp.Symbol("c", positive=True)
x = sp.Symbol("x", nonnegative=True)
X = sp.Symbol("X", positive=True)
ell = sp.Symbol("l", positive=True)


def halted(ctx, point):
    """f(z) = L z + b with the fixed point 0, halted at the scaled threshold."""
    rate, z = point["L"], point["z"]
    residual = abs(rate * z - z)
    threshold = point["slack"] * residual / (1 - abs(rate))
    return abs(z), threshold


def later(ctx, point):
    """After the promised number of iterations on L z: the error against the tolerance."""
    rate, z, tolerance = point["L"], point["z"], point["tol"]
    residual = abs(rate * z - z)
    steps = max(0, ctx.ceil(ctx.log(residual / (tolerance * (1 - rate))) / ctx.log(1 / rate)))
    return abs(rate**steps * z), tolerance


def later_simple(ctx, point):
    """The count with log(1/L) replaced by 1 - L."""
    rate, z, tolerance = point["L"], point["z"], point["tol"]
    residual = abs(rate * z - z)
    steps = max(0, ctx.ceil(ctx.log(residual / (tolerance * (1 - rate))) / (1 - rate)))
    return abs(rate**steps * z), tolerance


COUNT = (Reals("L", 0.01, 0.999), Reals("z", 0.1, 10), Reals("tol", 1e-6, 0.09, log=True))

THEOREM = Theorem(
    id="H4",
    title="The halting threshold must be scaled with 1 - L",
    statement=(
        r"Let $f$ be $L$-Lipschitz with $0 < L < 1$ on a ball that it maps into itself (B3), $r_t = \|f(z_t) - "
        r"z_t\|$ and $\tau > 0$. (a) If $r_t \le \tau (1 - L)$, then $\|z_t - z^*\| \le \tau$. (b) No larger "
        r"threshold will do: for every $c > 1$ there is a map with $r_t = c \tau (1 - L)$ and $\|z_t - z^*\| = c "
        r"\tau$; and a fixed threshold $r_t \le \tau$ allows the error $\frac{\tau}{1 - L}$, which has no bound as "
        r"$L \to 1$. (c) The error is at most $\tau$ after $n$ more iterations for every $n \ge "
        r"\log(\frac{r_t}{\tau (1 - L)}) / \log(\frac1L)$; $n \ge \log(\frac{r_t}{\tau (1 - L)}) / (1 - L)$ is "
        r"enough."
    ),
    plain=(
        "A residual below 0.001 says nothing by itself: the error may be a thousand times larger if L is 0.999. Scaled "
        "with 1 - L the threshold keeps its promise, and the number of iterations still needed follows from it."
    ),
    symbols=(
        Symbol(L, "Lipschitz constant on the ball", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(tau, "tolerance on the error", "tolerance"),
        Symbol(r, "residual r_t, not 0 (if it is 0, the state is the fixed point)", "residual"),
        Symbol(r_n, "residual after n more iterations"),
        Symbol(r_next, "residual after n + 1 more iterations"),
        Symbol(e, "|z_t - z*|"),
        Symbol(e_n, "error after n more iterations"),
        Symbol(n, "number of further iterations"),
        Symbol(c, "a factor"),
        Symbol(x, "n log(1/L) - log(r / (tau (1 - L))), not negative for the stated n"),
        Symbol(X, "e^x"),
        Symbol(ell, "log(1/L), so that L = e^(-l)"),
    ),
    hypotheses=(
        Hypothesis("H1", "L < 1, written as gap = 1 - L > 0", gap - (1 - L), "zero"),
        Hypothesis("H2", "for (a): the scaled threshold is met", tau * gap - r),
        Hypothesis("H3", "f is L-Lipschitz between z_(t+n) and the next state", L * r_n - r_next),
        Hypothesis("H4", "X = e^x", X - sp.exp(x), "zero"),
        Hypothesis("H5", "for (c), by the meaning of x: e^x = tau (1 - L) / (L^n r)", X * L**n * r - tau * gap, "zero"),
    ),
    facts=(
        Fact("F1", "B2 at the state", r / gap - e, "B2", axiom=True),
        Fact("F2", "B2 after n more iterations", r_n / gap - e_n, "B2", axiom=True),
        Fact("F3", "e^x >= 1 + x", sp.exp(x) - 1 - x, "S5", axiom=True),
        Fact("F4", "e^(-l) >= 1 - l, that is L >= 1 - log(1/L)", L - 1 + ell, "S5", axiom=True),
    ),
    steps=(
        Nonnegative("(a) B2: the error is at most r / (1 - L).", tau - e, ref("F1") + ref("H2") / gap, label="halted"),
        Identity(
            "(b) f(z) = L z on the line at z = c tau has the residual c tau (1 - L), and the error c tau.",
            c * tau - L * c * tau,
            c * tau * gap,
            modulo={"H1": -c * tau},
        ),
        Limit(
            "A residual of tau on that map means the error tau / (1 - L): without a bound.",
            tau / (1 - L),
            L,
            sp.Integer(1),
            sp.oo,
            side="-",
        ),
        Induction(
            "(c) Each iteration multiplies the residual by at most L.",
            n,
            r_n,
            r_next,
            bound=L**n * r,
            start=r,
            base=sp.Integer(0),
            step=L * ref("IH") + ref("H3"),
            label="residuals",
        ),
        Identity(
            "e^x for x = n l - log(r / (tau (1 - L))), with L^n = e^(-n l).",
            sp.exp(n * ell - sp.log(r / (tau * gap))) * sp.exp(-n * ell) * r,
            tau * gap,
        ),
        Nonnegative(
            "For the stated n, x is not negative, so e^x is at least 1.",
            X - 1,
            ref("H4") + ref("F3") + x,
            label="enough",
        ),
        Nonnegative(
            "The residual is then at most tau (1 - L), which is what (a) asks for.",
            tau - e_n,
            ref("F2") + ref("residuals") / gap + L**n * r / gap * ref("enough") - ref("H5") / gap,
            label="count",
        ),
        Nonnegative(
            "The simpler count is at least as large: log(1/L) >= 1 - L.",
            1 / gap - 1 / ell,
            (ref("F4") - ref("H1")) / (gap * ell),
            label="simpler",
        ),
    ),
    source=Source("", derived=True, place="from Banach (1922), a-posteriori form"),
    claims=(
        Claim(
            "error <= tau at r = tau (1 - L)",
            (Reals("L", -0.999, 0.999), Reals("z", -10, 10), Reals("slack", 1, 2)),
            halted,
            sharp=True,
            near=({"L": 0.5, "z": 1.0, "slack": 1.0},),
        ),
        Claim(
            "error <= tau after the stated number of iterations",
            COUNT,
            later,
            sharp=True,
            near=({"L": 0.5, "z": 1.0, "tol": 0.0625001},),
        ),
        Claim(
            "and after the simpler count",
            COUNT,
            later_simple,
            near=({"L": 0.99, "z": 1.0, "tol": 0.0802},),
        ),
    ),
    uses=("B2", "B3", "S5"),
    remarks=(
        "The residual is that of f at the returned state. A damped step is s times as long: its threshold is s "
        "times as small (B8).",
        "A relative threshold divides by |z_t|: where that grows without bound even a linear drift is halted (X1).",
        "With a constant that holds on a ball only, the promise needs the ball of B3, r_t <= (1 - L) R.",
    ),
)
