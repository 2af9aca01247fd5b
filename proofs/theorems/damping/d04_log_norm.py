"""D4: damping a map from its one-sided Lipschitz constant."""

import sympy as sp

from proofs import Claim, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import matrix, spectral_norm, symmetric_eigenvalues

c = sp.Symbol("c", real=True)
L = sp.Symbol("L", nonnegative=True)
s = sp.Symbol("s", positive=True)
n = sp.Symbol("n", positive=True)
p = sp.Symbol("p", real=True)
m = sp.Symbol("m", nonnegative=True)
D = sp.Symbol("D", positive=True)
b = sp.Symbol("b", real=True)

factor = (1 - s) ** 2 + 2 * s * (1 - s) * c + s**2 * L**2


def _constants(ctx, point):
    """A random matrix, its log-norm (largest eigenvalue of the symmetric part) and its norm."""
    a = matrix(ctx, point["A"], 2, 2)
    return a, symmetric_eigenvalues(ctx, (a + a.T) / 2)[-1], spectral_norm(ctx, a)


def damped_norm(ctx, point):
    a, c, lipschitz = _constants(ctx, point)
    s = point["s"]
    norm = spectral_norm(ctx, (1 - s) * ctx.eye(2) + s * a)
    return norm**2, (1 - s) ** 2 + 2 * s * (1 - s) * c + s**2 * lipschitz**2


def below_critical(ctx, point):
    """Contraction up to the critical step, or up to 1 if that comes first."""
    a, c, lipschitz = _constants(ctx, point)
    if c >= 1:
        return None
    s = point["share"] * min(2 * (1 - c) / (1 - 2 * c + lipschitz**2), ctx.mpf(1))
    return spectral_norm(ctx, (1 - s) * ctx.eye(2) + s * a), ctx.mpf(1)


def best_factor(ctx, point):
    a, c, lipschitz = _constants(ctx, point)
    if c >= 1 or c > lipschitz**2:
        return None
    s = (1 - c) / (1 - 2 * c + lipschitz**2)
    norm = spectral_norm(ctx, (1 - s) * ctx.eye(2) + s * a)
    return norm**2, (lipschitz**2 - c**2) / (1 - 2 * c + lipschitz**2)


def no_step_is_better(ctx, point):
    """On the rotation with scaling that has these constants, no step does better than the best one."""
    c, b, s = point["c"], point["b"], point["s"]
    a = ctx.matrix([[c, -b], [b, c]])
    size = c * c + b * b
    return (size - c**2) / (1 - 2 * c + size), spectral_norm(ctx, (1 - s) * ctx.eye(2) + s * a) ** 2


SPACE = (Reals("A", -3, 3, 4), Reals("s", 0.001, 1))

THEOREM = Theorem(
    id="D4",
    title="Damping from the log-norm",
    statement=(
        r"Let $|f(x) - f(y)|_2 \le L |x - y|_2$ and $\langle f(x) - f(y), x - y \rangle \le c |x - y|_2^2$ with $|c| "
        r"\le L$, $c < 1$, and put $D = 1 - 2c + L^2$. Then $D \ge (1-c)^2 > 0$, and for $0 < s \le 1$ the damped map "
        r"$(1-s) z + s f(z)$ is Lipschitz with $q(s)$, $q(s)^2 = (1-s)^2 + 2 s (1-s) c + s^2 L^2 = 1 - 2s(1-c) + s^2 "
        r"D$. It is $q(s) < 1$ exactly if $s < \frac{2 (1-c)}{D}$. If $c \le L^2$, then $q$ is least at $s = "
        r"\frac{1-c}{D} \le 1$, with $q^2 = \frac{L^2 - c^2}{D}$; otherwise $s = 1$ is best, with $q = L < 1$. No "
        r"better factor holds for all such maps: for $c\, z + \sqrt{L^2 - c^2}\, R z$, $R$ the rotation of the plane "
        r"by a right angle, $q(s)$ is exact for every $s$."
    ),
    plain=(
        "A map may stretch some distances (L above 1) and still become a contraction when damped, if it never "
        "stretches a difference along itself (c below 1). The step can be read off the two constants; unlike an "
        "eigenvalue condition this holds over a whole region, not only at the fixed point."
    ),
    symbols=(
        Symbol(c, "one-sided Lipschitz constant (log-norm of the Jacobian, mu_2)", "log_norm"),
        Symbol(L, "Lipschitz constant in the Euclidean norm", "norm"),
        Symbol(s, "damping step", "step"),
        Symbol(n, "|x - y|^2"),
        Symbol(p, "<f(x) - f(y), x - y>"),
        Symbol(m, "|f(x) - f(y)|^2"),
        Symbol(D, "1 - 2 c + L^2"),
        Symbol(b, "the rotation's share in the extremal map: b^2 = L^2 - c^2"),
    ),
    hypotheses=(
        Hypothesis("H1", "one-sided Lipschitz: <f(x) - f(y), x - y> <= c |x - y|^2", c * n - p),
        Hypothesis("H2", "Lipschitz: |f(x) - f(y)|^2 <= L^2 |x - y|^2", L**2 * n - m),
        Hypothesis("H3", "c < 1", 1 - c, "positive"),
        Hypothesis("H4", "|c| <= L, as c^2 <= L^2", L**2 - c**2),
        Hypothesis("H5", "s <= 1", 1 - s),
        Hypothesis("H6", "D = 1 - 2 c + L^2", D - (1 - 2 * c + L**2), "zero"),
        Hypothesis("H7", "c <= L^2, for the best step only", L**2 - c),
        Hypothesis("H8", "c <= L, the half of H4 that is needed where c > L^2", L - c),
        Hypothesis("H9", "b^2 = L^2 - c^2, for the extremal map only", b**2 - L**2 + c**2, "zero"),
    ),
    steps=(
        Nonnegative("D is positive.", D, ref("H3") ** 2 + ref("H4") + ref("H6"), strict=True, label="D"),
        Nonnegative("At least (1 - c)^2.", D - (1 - c) ** 2, ref("H4") + ref("H6")),
        Nonnegative(
            "Expand |(1-s)(x-y) + s (f(x)-f(y))|^2 and insert both constants; s <= 1 keeps the sign of the mixed term.",
            factor * n - ((1 - s) ** 2 * n + 2 * s * (1 - s) * p + s**2 * m),
            2 * s * ref("H5") * ref("H1") + s**2 * ref("H2"),
        ),
        Identity(
            "Written as a parabola in s.",
            factor,
            1 - 2 * s * (1 - c) + s**2 * D,
            modulo={"H6": -(s**2)},
            label="parabola",
        ),
        Identity(
            "It is below 1 exactly if s is below 2 (1-c) / D, since s D is positive.",
            1 - (1 - 2 * s * (1 - c) + s**2 * D),
            s * D * (2 * (1 - c) / D - s),
        ),
        Identity(
            "Its least value, reached at s = (1-c) / D, plus a square.",
            1 - 2 * s * (1 - c) + s**2 * D,
            (L**2 - c**2) / D + D * (s - (1 - c) / D) ** 2,
            modulo={"H6": 1 / D},
        ),
        Nonnegative("That step is at most 1 if c <= L^2.", 1 - (1 - c) / D, (ref("H7") + ref("H6")) / D),
        Nonnegative("Else L^2 < c <= L, so L < 1: L (1 - L) = (L - c) + (c - L^2).", L - L**2 - (c - L**2), ref("H8")),
        Identity(
            "Then the parabola still falls at s = 1, where its value is L^2.",
            (1 - 2 * s * (1 - c) + s**2 * D).subs(s, 1),
            L**2,
            modulo={"H6": 1},
        ),
        Identity(
            "Its slope there is 2 (L^2 - c), negative in this case.",
            sp.diff(1 - 2 * s * (1 - c) + s**2 * D, s).subs(s, 1),
            2 * (L**2 - c),
            modulo={"H6": 2},
        ),
        Identity(
            "The extremal map multiplies every length by the same number: c + i b damped has the squared modulus "
            "q(s)^2.",
            (1 - s + s * c) ** 2 + s**2 * b**2,
            factor,
            modulo={"H9": s**2},
        ),
        Identity(
            "Its critical step is that of D5: D = |1 - lambda|^2 for lambda = c + i b.",
            (1 - c) ** 2 + b**2,
            D,
            modulo={"H9": 1, "H6": -1},
        ),
    ),
    source=Source(
        "Zarantonello", 1960, "Solving functional equations by contractive averaging; sharpness derived here"
    ),
    claims=(
        Claim("damped norm <= q(s)", SPACE, damped_norm, sharp=True),
        Claim(
            "contraction up to the critical step",
            (Reals("A", -3, 3, 4), Reals("share", 0.5, 1)),
            below_critical,
            sharp=True,
            near=({"A": [-0.5, -2.0, 2.0, -0.5], "share": 0.999},),
        ),
        Claim("the best factor", (Reals("A", -3, 3, 4),), best_factor, sharp=True),
        Claim(
            "no step does better on the extremal map",
            (Reals("c", -2, 0.99), Reals("b", -3, 3), Reals("s", 0.001, 1)),
            no_step_is_better,
            sharp=True,
        ),
    ),
    uses=("D5",),
    remarks=(
        "For a differentiable f on a convex set, c is the largest log-norm mu_2 of the Jacobian there and L its "
        "largest norm.",
        "|c| <= L is no restriction: <f(x)-f(y), x-y> lies between -L and L times |x - y|^2 by Cauchy and Schwarz, so "
        "a c above L may be replaced by L, and one below -L occurs for no map. Without it D may fail to be positive: "
        "L = 0.1, c = 0.9.",
        "For s > 1 the bound is false: the mixed term changes sign, and -L takes the place of c. On f(z) = -L z, s > "
        "1 gives s - 1 + s L.",
        "For a normal Jacobian with one eigenvalue pair it reduces to D5.",
    ),
)
