"""K6: one certificate for all injections near the certified one."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref

Y = sp.Symbol("Y", nonnegative=True)
Z1 = sp.Symbol("Z_1", nonnegative=True)
b_0 = sp.Symbol("b_0", nonnegative=True)
Q = sp.Symbol("Q", nonnegative=True)
s = sp.Symbol("s", positive=True)
r = sp.Symbol("r", positive=True)
xi = sp.Symbol("xi", nonnegative=True)
R = sp.Symbol("R", nonnegative=True)
a = sp.Symbol("a", nonnegative=True)
d = sp.Symbol("d", nonnegative=True)
kappa = sp.Symbol("kappa", nonnegative=True)
lam = sp.Symbol("lambda", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
slope = sp.Symbol("j", nonnegative=True)
pull = sp.Symbol("p", nonnegative=True)
image = sp.Symbol("y", nonnegative=True)
moved = sp.Symbol("m", nonnegative=True)
shifted = sp.Symbol("n", nonnegative=True)
apart = sp.Symbol("D", nonnegative=True)
between = sp.Symbol("x", nonnegative=True)


def _loop(ctx, point):
    """F(z, x) = a z + b x + c (z + k x)^2 / 2 about (0, 0): bounds over |z| <= r, |x| <= xi, and its fixed points."""
    slope_z, slope_x, c, k = point["a"], point["b"], point["c"], point["k"]
    scale, radius, width = point["s"], point["r"], point["xi"]
    reach = ctx.sqrt(radius**2 + (width / scale) ** 2)
    # The Jacobian's row changes by c (z + k x) (1, s k): as a row in the joint norm.
    bent = abs(c) * (1 + (scale * k) ** 2) * reach
    rate = abs(slope_z) + bent
    pulled = abs(slope_x) + bent / scale
    if rate >= 1 or pulled * width > (1 - rate) * radius:
        return None

    def fixed(x):
        """Of both roots of c/2 z^2 + (a + c k x - 1) z + b x + c k^2 x^2 / 2 the one of smaller modulus."""
        middle, rest = 1 - slope_z - c * k * x, slope_x * x + c * (k * x) ** 2 / 2
        return 2 * rest / (middle + ctx.sqrt(middle**2 - 2 * c * rest))

    return fixed, rate, pulled, width, radius


def stays(ctx, point):
    found = _loop(ctx, point)
    if found is None:
        return None
    fixed, _, _, width, radius = found
    return abs(fixed(point["x"] * width)), radius


def differ(ctx, point):
    found = _loop(ctx, point)
    if found is None:
        return None
    fixed, rate, pulled, width, _ = found
    x, y = point["x"] * width, point["y"] * width
    return abs(fixed(x) - fixed(y)), pulled / (1 - rate) * abs(x - y)


SPACE = (
    Reals("a", -1, 1),
    Reals("b", -2, 2),
    Reals("c", -1, 1),
    Reals("k", -2, 2),
    Reals("s", 0.1, 10, log=True),
    Reals("r", 0.01, 2, log=True),
    Reals("xi", 0.001, 2, log=True),
    Reals("x", -1, 1),
)
FLAT = {"a": 0.5, "b": 1.0, "c": 0.0, "k": 0.0, "s": 1.0, "r": 1.0, "xi": 0.5, "x": 1.0}

THEOREM = Theorem(
    id="K6",
    title="A certified ball shared by nearby injections",
    statement=(
        r"Let $\|F(\hat z, \hat x) - \hat z\| \le Y$, and at $(\hat z, \hat x)$ let $\|\partial_z F\| \le Z_1$ and"
        r" $\|\partial_x F\| \le b_0$, from the norm of injections to that of states. Let $Q$ bound the change of "
        r"the Jacobian of $(z, x) \mapsto (F(z, x), x)$ in the norm $\sqrt{\|z\|^2 + \|x\|^2 / s^2}$, for all $(z,"
        r" x)$ within $R \ge \sqrt{r^2 + \xi^2 / s^2}$ of $(\hat z, \hat x)$ in it. With $\kappa = Z_1 + Q$ and "
        r"$\lambda = b_0 + \frac{Q}{s}$: if $\kappa < 1$ and $Y + \lambda \xi \le (1 - \kappa) r$, then for every "
        r"$x$ with $\|x - \hat x\| \le \xi$ the map $F(\cdot, x)$ sends $B(\hat z, r)$ into itself, contracts "
        r"there by $\kappa$, and has one fixed point $z^*(x)$ in it; and $\|z^*(x) - z^*(y)\| \le \frac{\lambda}{1"
        r" - \kappa} \|x - y\|$. The condition and the slope are attained."
    ),
    plain=(
        "All injections near the certified one share its ball: each has exactly one fixed point there, "
        "attracting, and it moves at most so much. One proof serves for a neighbourhood of an input."
    ),
    symbols=(
        Symbol(Y, "bound on the residual", "residual"),
        Symbol(Z1, "bound on |d_z F| at the centre", "Z1"),
        Symbol(b_0, "bound on |d_x F| there", "size"),
        Symbol(Q, "bound on the change of the joint Jacobian", "bent"),
        Symbol(s, "scale of injections in the joint norm", "scale"),
        Symbol(r, "radius of the ball of states", "radius"),
        Symbol(xi, "radius of the ball of injections", "injections"),
        Symbol(R, "radius of the joint ball", "reach"),
        Symbol(a, "|z - z^| of a state of the ball"),
        Symbol(d, "|x - x^| of an injection of its ball"),
        Symbol(kappa, "Z_1 + Q", "kappa"),
        Symbol(lam, "b_0 + Q/s", "moved"),
        Symbol(gap, "1 - kappa"),
        Symbol(slope, "|d_z F(z, x)|"),
        Symbol(pull, "|d_x F(z, x)|"),
        Symbol(image, "|F(z, x) - z^|"),
        Symbol(moved, "|F(z, x) - F(z^, x)|"),
        Symbol(shifted, "|F(z^, x) - F(z^, x^)|"),
        Symbol(apart, "|z*(x) - z*(y)|"),
        Symbol(between, "|x - y|"),
    ),
    hypotheses=(
        Hypothesis("H1", "|z - z^| <= r", r - a),
        Hypothesis("H2", "|x - x^| <= xi", xi - d),
        Hypothesis("H3", "R^2 >= r^2 + xi^2/s^2", R**2 - r**2 - xi**2 / s**2),
        Hypothesis("H4", "kappa = Z_1 + Q", kappa - Z1 - Q, "zero"),
        Hypothesis("H5", "lambda = b_0 + Q/s", lam - b_0 - Q / s, "zero"),
        Hypothesis("H6", "kappa < 1, written as gap = 1 - kappa > 0", gap - (1 - kappa), "zero"),
        Hypothesis("H7", "Y + lambda xi <= (1 - kappa) r", (1 - kappa) * r - Y - lam * xi),
    ),
    facts=(
        Fact(
            "F1",
            "the block d_z F of the joint Jacobian changes by at most the whole",
            Z1 + Q - slope,
            "operator norm, triangle inequality",
            axiom=True,
        ),
        Fact(
            "F2",
            "so does the block d_x F, whose argument has the joint norm |x|/s",
            b_0 + Q / s - pull,
            "operator norm, triangle inequality",
            axiom=True,
        ),
        Fact(
            "F3",
            "F(., x) is kappa-Lipschitz between z and z^",
            kappa * a - moved,
            "mean value inequality, Dieudonne (1960), 8.5.4",
        ),
        Fact(
            "F4",
            "F(z^, .) is lambda-Lipschitz between x and x^",
            lam * d - shifted,
            "mean value inequality, Dieudonne (1960), 8.5.4",
        ),
        Fact(
            "F5",
            "|F(z, x) - z^| <= |F(z, x) - F(z^, x)| + |F(z^, x) - F(z^, x^)| + Y",
            moved + shifted + Y - image,
            "triangle inequality",
            axiom=True,
        ),
        Fact("F6", "G9 (a) with L = kappa and lambda", lam * between / gap - apart, "G9", axiom=True),
    ),
    steps=(
        Nonnegative(
            "Every such pair lies in the joint ball, with the segments between them.",
            R**2 - a**2 - d**2 / s**2,
            ref("H3") + (r + a) * ref("H1") + (xi + d) * ref("H2") / s**2,
        ),
        Nonnegative("There |d_z F| is at most kappa ...", kappa - slope, ref("F1") + ref("H4")),
        Nonnegative("... and |d_x F| at most lambda.", lam - pull, ref("F2") + ref("H5")),
        Nonnegative(
            "The ball goes into itself for every such injection; with kappa < 1 B3 gives the fixed point and the rate.",
            r - image,
            ref("F5") + ref("F3") + ref("F4") + kappa * ref("H1") + lam * ref("H2") + ref("H7"),
        ),
        Nonnegative("And the fixed points are near to each other.", lam * between / gap - apart, ref("F6")),
    ),
    source=Source("", derived=True, place="uniform contraction principle, with curvature in both arguments"),
    claims=(
        Claim("fixed points of a z + b x + c (z + k x)^2 / 2 stay in the ball", SPACE, stays, sharp=True, near=(FLAT,)),
        Claim(
            "their distance <= lambda / (1 - kappa) |x - y|",
            (*SPACE, Reals("y", -1, 1)),
            differ,
            sharp=True,
            near=({**FLAT, "xi": 0.1, "y": -1.0},),
        ),
    ),
    not_checked=(
        NotChecked("a contraction of a closed ball into itself has a fixed point", "Banach (1922), Theorem 6"),
    ),
    code=("fpcheck/certify/inputs.py:nearby",),
    uses=("B3", "G9", "Q4"),
    remarks=(
        "s is free: it weighs what the ball leaves for states and for injections.",
        "The conclusion is about exact maps; it says nothing of injections outside the ball.",
    ),
)
