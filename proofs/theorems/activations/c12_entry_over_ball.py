"""C12: a function of one entry over an interval, from bounds on its derivatives there."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref

s = sp.Symbol("s", nonnegative=True)
a = sp.Symbol("a", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
d = sp.Symbol("d", nonnegative=True)
M_2 = sp.Symbol("M_2", nonnegative=True)
M_3 = sp.Symbol("M_3", nonnegative=True)
move = sp.Symbol("t", nonnegative=True)
bend = sp.Symbol("t_b", nonnegative=True)
first = sp.Symbol("E", nonnegative=True)
second = sp.Symbol("E_2", nonnegative=True)
remainder = sp.Symbol("r", nonnegative=True)


def _parts(point):
    """Movement of size a at most, of which a part of size b at most is not linear."""
    move = point["a"] * point["sign"]
    return move, point["b"] * point["turn"]


def _exponential(ctx, point):
    """f = exp: bounds of its derivatives on [u - a, u + a] are its values at the right end."""
    u, size = point["u"], abs(point["a"])
    top = ctx.exp(u + size)
    return ctx.exp, ctx.exp, ctx.exp, top, top


def _cubic(ctx, point):
    """f = p x^2 / 2 + q x^3 / 6: the derivatives' bounds are at the ends."""
    p, q = point["p"], point["q"]
    u, size = point["u"], abs(point["a"])
    ends = max(abs(p + q * (u - size)), abs(p + q * (u + size)))
    return (
        lambda x: p * x**2 / 2 + q * x**3 / 6,
        lambda x: p * x + q * x**2 / 2,
        lambda x: p + q * x,
        ends,
        abs(q),
    )


def slope(family):
    def sides(ctx, point):
        _, df, _, top, _ = family(ctx, point)
        move, _ = _parts(point)
        return abs(df(point["u"] + move) - df(point["u"])), top * point["a"]

    return sides


def slope_less_its_linear_part(family):
    def sides(ctx, point):
        _, df, ddf, _, third = family(ctx, point)
        move, bend = _parts(point)
        u, size = point["u"], point["a"]
        left = abs(df(u + move) - df(u) - ddf(u) * (move - bend))
        return left, abs(ddf(u)) * abs(point["b"]) + third * size**2 / 2

    return sides


def value(family):
    def sides(ctx, point):
        f, df, _, top, _ = family(ctx, point)
        move, _ = _parts(point)
        u = point["u"]
        return abs(f(u + move) - f(u) - df(u) * move), top * point["a"] ** 2 / 2

    return sides


SPACE = (Reals("u", -1, 1), Reals("a", 1e-3, 1), Reals("b", 0, 1), Reals("sign", -1, 1), Reals("turn", -1, 1))
CUBES = (*SPACE, Reals("p", -1, 1), Reals("q", -1, 1))
SMALL = {"u": 0.5, "a": 0.001, "b": 0.0, "sign": 1.0, "turn": 1.0}
SQUARE = {"u": 0.5, "a": 0.5, "b": 0.5, "sign": 1.0, "turn": 1.0, "p": 1.0, "q": 0.0}

THEOREM = Theorem(
    id="C12",
    title="An entry over an interval, from derivatives enclosed there",
    statement=(
        r"Let $f$ have three continuous derivatives on $[u - a, u + a]$, with $|f''| \le M_2$ and $|f'''| \le M_3$ "
        r"there, $|t| \le a$ and $|t_b| \le b$. Then $|f'(u + t) - f'(u)| \le M_2 a$, $|f'(u + t) - f'(u) - f''(u) (t "
        r"- t_b)| \le |f''(u)| b + \frac{M_3}{2} a^2$ and $|f(u + t) - f(u) - f'(u) t| \le \frac{M_2}{2} a^2$. "
        r"Equality holds for $f = x^2$."
    ),
    plain=(
        "For exponentials, logarithms, roots and reciprocals no bound on the derivatives holds on the whole line. Over "
        "the interval that an entry can reach there is one, from ball arithmetic; if the interval comes near a pole, "
        "it is refused."
    ),
    symbols=(
        Symbol(s, "place on the way from u to u + t, between 0 and |t|"),
        Symbol(a, "bound on the movement", "move"),
        Symbol(b, "bound on the part of it that is not linear in the state", "bend"),
        Symbol(d, "|f''(u)|"),
        Symbol(M_2, "bound of |f''| on the interval", "second"),
        Symbol(M_3, "bound of |f'''| on the interval", "third"),
        Symbol(move, "|t|"),
        Symbol(bend, "|t_b|"),
        Symbol(first, "|f'(u + t) - f'(u)|", "e"),
        Symbol(second, "|f'(u + t) - f'(u) - f''(u) (t - t_b)|", "e2"),
        Symbol(remainder, "|f(u + t) - f(u) - f'(u) t|", "rho"),
    ),
    hypotheses=(
        Hypothesis("H1", "|t| <= a", a - move),
        Hypothesis("H2", "|t_b| <= b", b - bend),
    ),
    facts=(
        Fact(
            "F1", "|f'(u + t) - f'(u)| <= M_2 |t|", M_2 * move - first, "mean value inequality, Dieudonne (1960), 8.5.2"
        ),
        Fact(
            "F2",
            "f'(u + t) - f'(u) - f''(u) t is at most the integral of M_3 s over s from 0 to |t|, and f''(u) t_b the "
            "rest",
            d * bend + sp.integrate(M_3 * s, (s, 0, move)) - second,
            "Taylor's formula with integral remainder, Dieudonne (1960), 8.14.3",
        ),
        Fact(
            "F3",
            "f(u + t) - f(u) - f'(u) t is at most the integral of M_2 s over s from 0 to |t|",
            sp.integrate(M_2 * s, (s, 0, move)) - remainder,
            "Taylor's formula with integral remainder, Dieudonne (1960), 8.14.3",
        ),
    ),
    steps=(
        Nonnegative("The slope.", M_2 * a - first, ref("F1") + M_2 * ref("H1")),
        Identity("The integral of M s.", sp.integrate(M_3 * s, (s, 0, move)), M_3 * move**2 / 2),
        Nonnegative(
            "The slope less its linear part.",
            d * b + M_3 * a**2 / 2 - second,
            ref("F2") + d * ref("H2") + M_3 / 2 * ref("H1") * (a + move),
        ),
        Nonnegative(
            "The value less its linear part.",
            M_2 * a**2 / 2 - remainder,
            ref("F3") + M_2 / 2 * ref("H1") * (a + move),
        ),
    ),
    source=Source("Taylor", 1715, "with remainder; the split of the movement derived"),
    claims=(
        Claim("slope of exp", SPACE, slope(_exponential), near=(SMALL,)),
        Claim("slope of cubics", CUBES, slope(_cubic), sharp=True, near=(SQUARE,)),
        Claim(
            "slope of cubics less its linear part",
            CUBES,
            slope_less_its_linear_part(_cubic),
            sharp=True,
            near=(SQUARE,),
        ),
        Claim("value of exp", SPACE, value(_exponential), near=(SMALL,)),
        Claim("value of cubics", CUBES, value(_cubic), sharp=True, near=(SQUARE,)),
    ),
    not_checked=(
        NotChecked(
            "continuity of the derivatives on the interval, where ball arithmetic gives finite values",
            "Johansson (2017), Arb",
        ),
    ),
    code=("fpcheck/certify/nodes.py:Smooth", "fpcheck/check/bends.py:nodes_of"),
    remarks=(
        "M_2 and M_3 must hold on the whole interval, also for u known to a radius only: it is widened by that.",
        "Functions with bounds on the whole line have sharper forms far out (C11).",
    ),
)
