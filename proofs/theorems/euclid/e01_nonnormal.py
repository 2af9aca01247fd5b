"""E1: loops that settle although their Euclidean norm is as large as one likes."""

import sympy as sp

from proofs import (
    Claim,
    Enclosed,
    Extremum,
    Fact,
    Hypothesis,
    Identity,
    Limit,
    Nonnegative,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import spectral_norm

a = sp.Symbol("a", positive=True)
t = sp.Symbol("t", positive=True)
k = sp.Symbol("k", positive=True, integer=True)
x = sp.Symbol("x", positive=True)
h = sp.Symbol("h", positive=True)
z = sp.Symbol("lambda", real=True)
sigma = sp.Symbol("sigma", positive=True)
y_1 = sp.Symbol("y_1", real=True)
y_2 = sp.Symbol("y_2", real=True)
q = sp.Symbol("q", positive=True)
g = sp.Symbol("g", positive=True)
theta = sp.Symbol("theta", positive=True)

A = sp.Matrix([[a, t], [0, a]])
power = sp.Matrix([[a**k, k * a ** (k - 1) * t], [0, a**k]])
largest = (t + sp.sqrt(t**2 + 4 * a**2)) / 2


def _matrix(ctx, point):
    return ctx.matrix([[point["a"], point["t"]], [0, point["a"]]])


def norm_below(ctx, point):
    rate, push = point["a"], point["t"]
    return spectral_norm(ctx, _matrix(ctx, point)), (push + ctx.sqrt(push**2 + 4 * rate**2)) / 2


def norm_above(ctx, point):
    left, right = norm_below(ctx, point)
    return right, left


def stretches(ctx, point):
    """At t = 1 - a^2 + more, the norm is above 1."""
    push = 1 - point["a"] ** 2 + point["more"]
    return ctx.mpf(1), spectral_norm(ctx, ctx.matrix([[point["a"], push], [0, point["a"]]]))


def transient(ctx, point):
    steps = int(point["k"])
    result = ctx.eye(2)
    for _ in range(steps):
        result = result * _matrix(ctx, point)
    return steps * point["a"] ** (steps - 1) * point["t"], spectral_norm(ctx, result)


def peak(ctx, point):
    """k a^(k-1) over all whole k near its greatest, against 1 / (e a ln(1/a))."""
    rate = point["a"]
    middle = int(-1 / ctx.ln(rate))
    return max(n * rate ** (n - 1) for n in (max(middle, 1), middle + 1, middle + 2)), -1 / (
        ctx.e * rate * ctx.ln(rate)
    )


def in_the_metric(ctx, point):
    """diag(1, theta) A diag(1, theta)^-1 with the theta for the target q."""
    rate, push = point["a"], point["t"]
    target = rate + point["share"] * (1 - rate)
    scale = target * push / (target**2 - rate**2)
    return spectral_norm(ctx, ctx.matrix([[rate, push / scale], [0, rate]])), target


SPACE = (Reals("a", 0.01, 0.99), Reals("t", 0.01, 1000, log=True))

THEOREM = Theorem(
    id="E1",
    title="A loop that settles, with a Euclidean norm of any size",
    statement=(
        r"For $0 < a < 1$ and $t > 0$ let $A = \begin{pmatrix} a & t \\ 0 & a \end{pmatrix}$. (a) $\rho(A) = a < 1$, "
        r"so $z \mapsto A z + b$ settles from every start; (b) $|A|_2 = \frac{t + \sqrt{t^2 + 4 a^2}}{2} \ge t$, "
        r"which is above 1 for $t > 1 - a^2$ and has no bound; (c) $A^k$ has the same form, so $|A^k|_2 \ge k a^{k-1} "
        r"t$: distances grow up to $k \approx \frac{1}{\ln(1/a)}$, where $k a^{k-1} \le \frac{1}{e a \ln(1/a)}$, and "
        r"only then decay to 0; (d) with $D = \mathrm{diag}(1, \theta)$, $\theta = \frac{q t}{q^2 - a^2}$, $|D A "
        r"D^{-1}|_2 = q$ for every $q$ with $a < q$."
    ),
    plain=(
        "A one-step Euclidean contraction check fails on loops that settle, and fails by any factor: the norm says "
        "how far one step can stretch, not where the loop ends. In a scaled metric the same loop contracts at a rate "
        "as near to its spectral radius as one likes."
    ),
    symbols=(
        Symbol(a, "the only eigenvalue, below 1"),
        Symbol(t, "coupling of the second entry to the first"),
        Symbol(k, "number of steps"),
        Symbol(x, "number of steps times h, as a real"),
        Symbol(h, "ln(1/a)"),
        Symbol(z, "variable of the characteristic polynomial"),
        Symbol(sigma, "the norm of A"),
        Symbol(y_1, "first entry of a vector"),
        Symbol(y_2, "second entry"),
        Symbol(q, "target rate in the scaled metric, above a"),
        Symbol(g, "q - a"),
        Symbol(theta, "scale of the second entry"),
    ),
    hypotheses=(
        Hypothesis("H1", "0 < a < 1", 1 - a, "positive"),
        Hypothesis("H2", "sigma is the positive root of sigma^2 = t sigma + a^2", sigma**2 - t * sigma - a**2, "zero"),
        Hypothesis("H3", "for the norm above 1: t > 1 - a^2", t - (1 - a**2), "positive"),
        Hypothesis("H4", "for (d): q > a, written as g = q - a > 0", g - (q - a), "zero"),
        Hypothesis("H5", "for (d): theta = q t / (q^2 - a^2)", theta * (q**2 - a**2) - q * t, "zero"),
    ),
    facts=(
        Fact(
            "F1",
            "2 sigma = t + sqrt(t^2 + 4 a^2)",
            2 * sigma - t - sp.sqrt(t**2 + 4 * a**2),
            "step 'root' of this theorem; the other root is negative",
            relation="zero",
            axiom=True,
        ),
        Fact(
            "F2",
            "sqrt(t^2 + 4 a^2) >= t",
            sp.sqrt(t**2 + 4 * a**2) - t,
            "the square root is increasing",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "(a) The characteristic polynomial: a is the only eigenvalue.", (z * sp.eye(2) - A).det(), (z - a) ** 2
        ),
        Identity(
            "I - A is invertible: there is one fixed point z*, and z_k - z* = A^k (z_0 - z*).",
            (sp.eye(2) - A).det(),
            (1 - a) ** 2,
        ),
        Identity("(b) The stated value solves sigma^2 = t sigma + a^2.", largest**2, t * largest + a**2, label="root"),
        Nonnegative(
            "No vector is stretched by more than sigma: the difference of the squares is a square.",
            sigma**2 * (y_1**2 + y_2**2) - ((a * y_1 + t * y_2) ** 2 + (a * y_2) ** 2),
            t / sigma * (sigma * y_1 - a * y_2) ** 2 + (y_1**2 + y_2**2 * (1 + t / sigma)) * ref("H2"),
            label="norm",
        ),
        Identity(
            "The vector (a, sigma) is stretched by sigma exactly, so sigma is the norm.",
            (a * a + t * sigma) ** 2 + (a * sigma) ** 2,
            sigma**2 * (a**2 + sigma**2),
            modulo={"H2": -(sigma**2 + t * sigma + a**2)},
        ),
        Nonnegative(
            "The norm is at least t, whatever a is.", sigma - t, (ref("F2") + ref("F1")) / 2, label="at least t"
        ),
        Nonnegative(
            "For t > 1 - a^2 it is above 1: (sigma - 1)(sigma + 1 - t) = t - (1 - a^2), and the second factor is "
            "positive.",
            sigma - 1,
            (ref("H3") + ref("H2")) / (1 + ref("at least t")),
            strict=True,
            label="above 1",
        ),
        Identity("(c) Powers, by induction: the first one.", power.subs(k, 1), A),
        Identity("One more factor.", power * A, power.subs(k, k + 1), label="powers"),
        Identity(
            "The coupling grows from k to k + 1 exactly while k (1 - a) < a, since this is its growth.",
            (k + 1) * a**k * t - k * a ** (k - 1) * t,
            t * a ** (k - 1) * (a - k * (1 - a)),
        ),
        Extremum(
            "Over real x > 0, x e^-x is greatest at 1, where it is 1/e.",
            f=x * sp.exp(-x),
            var=x,
            lo=0,
            hi=sp.oo,
            at=sp.Integer(1),
            value=sp.exp(-1),
            factor=sp.exp(-x),
            switch=1 - x,
            slope=sp.Integer(1),
            label="peak",
        ),
        Identity(
            "With a = e^-h the factor k a^(k-1) is e^h/h times x e^-x at x = h k: at most e^(h-1)/h, which is 1/(e a "
            "ln(1/a)).",
            k * sp.exp(-h * (k - 1)),
            sp.exp(h) / h * (h * k) * sp.exp(-h * k),
        ),
        Limit("The diagonal of A^k at x = h k decays.", sp.exp(-x), x, sp.oo, sp.Integer(0)),
        Limit(
            "The coupling decays as well, in the end: A^k tends to 0.", x / h * sp.exp(-x + h), x, sp.oo, sp.Integer(0)
        ),
        Enclosed(
            "An example: for a = 0.95 the factor k a^(k-1) rises to between 7.5 and 7.6 (k = 19, 20) before it decays.",
            20 * sp.Rational(95, 100) ** 19,
            "75/10",
            "76/10",
        ),
        Identity(
            "(d) The scaling divides the coupling by theta.",
            sp.diag(1, theta) * A * sp.diag(1, 1 / theta),
            sp.Matrix([[a, t / theta], [0, a]]),
        ),
        Identity(
            "With theta (q^2 - a^2) = q t, q solves the equation of (b) for the scaled matrix: q is its norm.",
            q**2,
            (t / theta) * q + a**2,
            modulo={"H5": 1 / theta},
            label="target",
        ),
        Identity(
            "That theta exists and is positive: it is q t over the positive (q - a)(q + a).",
            q * t / (g * (q + a)) * (q**2 - a**2),
            q * t,
            modulo={"H4": -q * t / g},
        ),
    ),
    source=Source(
        "", derived=True, place="the Jordan block is the textbook example, e.g. Trefethen and Embree (2005), 1"
    ),
    claims=(
        Claim("|A| <= (t + sqrt(t^2 + 4 a^2)) / 2", SPACE, norm_below, sharp=True),
        Claim("|A| >= (t + sqrt(t^2 + 4 a^2)) / 2", SPACE, norm_above, sharp=True),
        Claim("|A| >= 1 for t >= 1 - a^2", (Reals("a", 0.01, 0.99), Reals("more", 0, 5)), stretches, sharp=True),
        Claim("|A^k| >= k a^(k-1) t", (*SPACE, Reals("k", 1, 30)), transient, sharp=True),
        Claim("k a^(k-1) <= 1 / (e a ln(1/a))", (Reals("a", 0.2, 0.999),), peak, sharp=True),
        Claim(
            "|D A D^-1| <= q with theta = q t / (q^2 - a^2)",
            (*SPACE, Reals("share", 0.001, 1)),
            in_the_metric,
            sharp=True,
        ),
    ),
    remarks=(
        "Any system can hold such a pair: put A in a diagonal block. A diagonal scaling is enough here; in general a "
        "full metric is needed (B7, B10), and theta, its condition number, is the price: the certified Euclidean ball "
        "is smaller by that factor.",
        "The same loop contracts in k steps (B5) once the coupling has decayed.",
        "The second term of theta's denominator makes theta grow without bound as q approaches a.",
    ),
)
