"""N5: how far RMSNorm, its Jacobian and its linearisation can be off over a ball."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import dot, norm

d = sp.Symbol("d", positive=True, integer=True)
Q = sp.Symbol("Q", positive=True)
Q_end = sp.Symbol("Q_end", positive=True)
Q_s = sp.Symbol("Q_s", positive=True)
q_s = sp.Symbol("q_s", positive=True)
a = sp.Symbol("a", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
s = sp.Symbol("s", nonnegative=True)
change = sp.Symbol("E", nonnegative=True)
linear = sp.Symbol("E_2", nonnegative=True)
part = sp.Symbol("E_b", nonnegative=True)
curve = sp.Symbol("E_1", nonnegative=True)
layer = sp.Symbol("E_LN", nonnegative=True)
left_over = sp.Symbol("r", nonnegative=True)

shrink = a / sp.sqrt(d)
line = Q - s * shrink
e_s = 2 * a * s / (sp.sqrt(3 * d) * Q * line)
e = 2 * a / (sp.sqrt(3 * d) * Q * Q_end)
rho = a**2 / (sp.sqrt(3 * d) * Q * Q_end)
bend_s = 3 * a**2 / d * s * (2 * Q - s * shrink) / (2 * Q**2 * line**2)
twist_s = 3 * a**2 * s**2 / (2 * d * Q**2 * line)
twist = 3 * a**2 / (2 * d * Q**2 * Q_end)


def _root(ctx, x, eps):
    return ctx.sqrt(dot(ctx, x, x) / len(x) + eps)


def _rms(ctx, x, eps):
    q = _root(ctx, x, eps)
    return [v / q for v in x]


def _jacobian(ctx, x, y, eps):
    q = _root(ctx, x, eps)
    along = dot(ctx, x, y) / (len(x) * q**3)
    return [w / q - along * v for v, w in zip(x, y, strict=True)]


def _second(ctx, x, a, b, eps):
    d, q = len(x), _root(ctx, x, eps)
    p_a, p_b, g = dot(ctx, x, a), dot(ctx, x, b), dot(ctx, a, b)
    pull = 3 * p_a * p_b / (d**2 * q**5) - g / (d * q**3)
    return [pull * x_i - (p_a * b_i + p_b * a_i) / (d * q**3) for x_i, a_i, b_i in zip(x, a, b, strict=True)]


def _minus(*vectors):
    return [v[0] - sum(v[1:]) for v in zip(*vectors, strict=True)]


def _scene(ctx, point):
    """Centre, displacement, its end, and the two roots; None outside the domain."""
    x, eps = point["x"], point["eps"]
    v = [point["size"] * w for w in point["v"]]
    far = [p + r for p, r in zip(x, v, strict=True)]
    size, q = norm(ctx, v), _root(ctx, x, eps)
    low = q - size / ctx.sqrt(ctx.mpf(len(x)))
    return None if low <= 0 or size == 0 else (x, v, far, size, q, low)


def jacobian_change(ctx, point):
    scene = _scene(ctx, point)
    if scene is None:
        return None
    x, _, far, size, q, low = scene
    w, eps, d = point["w"], point["eps"], len(x)
    left = norm(ctx, _minus(_jacobian(ctx, far, w, eps), _jacobian(ctx, x, w, eps)))
    return left, 2 * size / (ctx.sqrt(ctx.mpf(3 * d)) * q * low) * norm(ctx, w)


def layer_norm_change(ctx, point):
    """LayerNorm is RMSNorm of the centred vector: centre, displacement and direction, each minus its mean."""
    centred = {k: [v - sum(point[k]) / len(point[k]) for v in point[k]] for k in ("x", "v", "w")}
    sides = jacobian_change(ctx, {**point, **centred})
    return None if sides is None else (sides[0], sides[1] / norm(ctx, centred["w"]) * norm(ctx, point["w"]))


def value_remainder(ctx, point):
    scene = _scene(ctx, point)
    if scene is None:
        return None
    x, v, far, size, q, low = scene
    eps, d = point["eps"], len(x)
    left = norm(ctx, _minus(_rms(ctx, far, eps), _rms(ctx, x, eps), _jacobian(ctx, x, v, eps)))
    return left, size**2 / (ctx.sqrt(ctx.mpf(3 * d)) * q * low)


def linear_remainder(ctx, point):
    """v = v1 + v2; the linear part is D2 N[v1]."""
    scene = _scene(ctx, point)
    if scene is None:
        return None
    x, v, far, size, q, low = scene
    w, eps, d = point["w"], point["eps"], len(x)
    v2 = [point["bent"] * r for r in point["v2"]]
    first = _second(ctx, x, _minus(v, v2), w, eps)
    left = norm(ctx, _minus(_jacobian(ctx, far, w, eps), _jacobian(ctx, x, w, eps), first))
    right = 2 * norm(ctx, v2) / (ctx.sqrt(ctx.mpf(3 * d)) * q**2) + 3 * size**2 / (2 * d * q**2 * low)
    return left, right * norm(ctx, w)


BALL = (
    Reals("x", -2, 2, 3),
    Reals("v", -1, 1, 3),
    Reals("size", 1e-3, 2, log=True),
    Reals("eps", 1e-5, 1, log=True),
)
# Where the second derivative attains its bound: (x.v)^2 = d q^2 |v|^2 / 3.
STEEP = {"x": [1.0, 0.0, 0.0], "v": [0.577, 0.816, 0.0], "size": 1e-3, "eps": 1e-5}
CENTRED = {"x": [1.0, -1.0, 0.0], "v": [0.99, 0.0, -0.99], "size": 1e-3, "eps": 1e-5}
# And where the third does: across x.
ACROSS = {"x": [1.0, 0.0, 0.0], "v": [0.0, 0.9, 0.0], "size": 2e-3, "eps": 0.1}

THEOREM = Theorem(
    id="N5",
    title="RMSNorm and LayerNorm over a ball",
    statement=(
        r"Let $N$ be RMSNorm on $\mathbb{R}^d$, $\hat q = q(\hat x)$, and $v = v_1 + v_2$ with $|v| \le a$, $|v_2| "
        r"\le b$, where $q_- = \hat q - a/\sqrt d > 0$. Then $\|DN(\hat x + v) - DN(\hat x)\|_2 \le e = "
        r"\frac{2a}{\sqrt{3d}\, \hat q\, q_-}$, $\|DN(\hat x + v) - DN(\hat x) - D^2N(\hat x)[v_1]\|_2 \le e_2 = "
        r"\frac{2b}{\sqrt{3d}\, \hat q^2} + \frac{3a^2}{2 d\, \hat q^2 q_-}$ and $|N(\hat x + v) - N(\hat x) - "
        r"DN(\hat x) v| \le \rho = \frac{a^2}{\sqrt{3d}\, \hat q\, q_-}$. Moreover $e(\sigma a) \le \sigma\, e(a)$ "
        r"for $0 \le \sigma \le 1$. The same holds for LayerNorm with its root in the place of $q$ and the centred "
        r"displacements $Cv$, $Cv_2$ in the place of $v$, $v_2$."
    ),
    plain=(
        "What a certificate over a ball needs from a normalisation: how much its Jacobian, its Jacobian beyond first "
        "order, and its value beyond first order can change when the input moves by at most a. Beyond q_- = 0 the ball "
        "is refused."
    ),
    symbols=(
        Symbol(d, "width (channels of a token)"),
        Symbol(Q, "q at the centre"),
        Symbol(Q_end, "Q - a / sqrt(d), called q_- in the statement"),
        Symbol(Q_s, "Q - s a / sqrt(d)"),
        Symbol(q_s, "q at the centre plus s v"),
        Symbol(a, "bound on the displacement v = v1 + v2"),
        Symbol(b, "bound on its part v2"),
        Symbol(s, "share of the way from the centre to its displaced state"),
        Symbol(change, "|DN(x + v) - DN(x)|"),
        Symbol(layer, "the same of LayerNorm"),
        Symbol(left_over, "|N(x + v) - N(x) - DN(x) v|"),
        Symbol(linear, "|DN(x + v) - DN(x) - D2N(x)[v]|"),
        Symbol(part, "|D2N(x)[v2]|"),
        Symbol(curve, "|DN(x + v) - DN(x) - D2N(x)[v1]|"),
    ),
    hypotheses=(
        Hypothesis("H1", "Q_end = Q - a / sqrt(d) is positive", Q_end - Q + shrink, "zero"),
        Hypothesis("H2", "s lies in [0, 1]", 1 - s),
        Hypothesis("H3", "Q_s = Q - s a / sqrt(d), at least Q_end > 0", Q_s - Q + s * shrink, "zero"),
        Hypothesis("H4", "|v| <= a and |v2| <= b (for LayerNorm |C v| and |C v2|)"),
    ),
    facts=(
        Fact(
            "F1",
            "q(x) is the norm of (x / sqrt(d), sqrt(eps)), so q(x + s v) >= q(x) - s |v| / sqrt(d)",
            q_s - Q + s * shrink,
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "F2",
            "|DN(x + v) - DN(x)| is at most e_s at s = 1, which is e, if |d/ds DN(x + s v)| <= e_s'",
            e - change,
            "mean value inequality, Dieudonne (1960), 8.5.1",
        ),
        Fact(
            "F3",
            "|N(x + v) - N(x) - DN(x) v| is at most rho_s at s = 1, if |(DN(x + s v) - DN(x)) v| <= rho_s'",
            rho - left_over,
            "mean value inequality, Dieudonne (1960), 8.5.1",
        ),
        Fact(
            "F4",
            "|DN(x + v) - DN(x) - D2N(x)[v]| is at most k_s at s = 1, if |(D2N(x + s v) - D2N(x))[v]| <= k_s', for "
            "which |D3N(x + s v)[v, v]| <= k_s'' is enough",
            twist - linear,
            "mean value inequality, Dieudonne (1960), 8.5.1, twice",
        ),
        Fact("F5", "|D2N(x)[v2]| <= 2 b / (sqrt(3d) Q^2)", 2 * b / (sp.sqrt(3 * d) * Q**2) - part, "N4", axiom=True),
        Fact("F6", "D2N(x)[v] = D2N(x)[v1] + D2N(x)[v2]", linear + part - curve, "triangle inequality", axiom=True),
        Fact(
            "F7",
            "LayerNorm is N after the projection C, so its Jacobian's change is that of N times C, and |C| <= 1",
            change - layer,
            "N3",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative("Along the way q stays above Q_s.", q_s - Q_s, ref("F1") - ref("H3"), label="above"),
        Nonnegative(
            "So N4's bound of the second derivative, 2 / (sqrt(3d) q^2), is at most its value with Q_s,",
            1 / Q_s**2 - 1 / q_s**2,
            ref("above") * (q_s + Q_s) / (q_s**2 * Q_s**2),
        ),
        Nonnegative(
            "and that of the third, 3 / (d q^3), likewise.",
            1 / Q_s**3 - 1 / q_s**3,
            ref("above") * (q_s**2 + q_s * Q_s + Q_s**2) / (q_s**3 * Q_s**3),
        ),
        Identity(
            "A function e_s that is 0 at s = 0 and has the derivative 2 a / (sqrt(3d) Q_s^2), the bound of |D2N[v]|.",
            sp.diff(e_s, s),
            2 * a / (sp.sqrt(3 * d) * line**2),
        ),
        Identity("At s = 1 it is e.", e_s.subs(s, 1).subs(Q, Q_end + shrink), e.subs(Q, Q_end + shrink)),
        Nonnegative("Hence the change of the Jacobian.", e - change, ref("F2"), label="Jacobian"),
        Identity(
            "Q_s exceeds Q_end by the rest of the way.",
            Q_s,
            Q_end + (1 - s) * shrink,
            modulo={"H1": -1, "H3": 1},
            label="rest",
        ),
        Nonnegative(
            "The change at a share s of the displacement is bounded by s e.",
            s * e - 2 * a * s / (sp.sqrt(3 * d) * Q * Q_s),
            2 * a * s * (shrink * ref("H2") + ref("rest")) / (sp.sqrt(3 * d) * Q * Q_s * Q_end),
            label="share",
        ),
        Identity(
            "So the derivative of the value's remainder is at most a s e, which is the derivative of rho_s = rho s^2.",
            sp.diff(rho * s**2, s),
            a * s * e,
        ),
        Nonnegative("Hence the value beyond first order.", rho - left_over, ref("F3"), label="value"),
        Identity(
            "A function k_s that is 0 at s = 0, with a derivative that is 0 there,",
            sp.diff(twist_s, s),
            bend_s,
        ),
        Identity(
            "and the second derivative 3 a^2 / (d Q_s^3), the bound of |D3N[v, v]|.",
            sp.diff(bend_s, s),
            3 * a**2 / (d * line**3),
        ),
        Identity(
            "At s = 1 it is 3 a^2 / (2 d Q^2 Q_end).",
            twist_s.subs(s, 1).subs(Q, Q_end + shrink),
            twist.subs(Q, Q_end + shrink),
        ),
        Nonnegative(
            "Only v1 enters the linear part, so D2N[v2] comes on top: the Jacobian beyond first order.",
            2 * b / (sp.sqrt(3 * d) * Q**2) + twist - curve,
            ref("F4") + ref("F5") + ref("F6"),
        ),
        Nonnegative(
            "LayerNorm's Jacobian changes by no more; its other two bounds follow in the same way.",
            e - layer,
            ref("Jacobian") + ref("F7"),
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim(
            "|DN(x + v) - DN(x)| <= e",
            (*BALL, Reals("w", -1, 1, 3)),
            jacobian_change,
            near=({**STEEP, "w": [0.577, 0.816, 0.0]},),
        ),
        Claim(
            "the same of LayerNorm",
            (*BALL, Reals("w", -1, 1, 3)),
            layer_norm_change,
            near=({**CENTRED, "w": CENTRED["v"]},),
        ),
        Claim("|N(x + v) - N(x) - DN(x) v| <= rho", BALL, value_remainder, near=(STEEP,)),
        Claim(
            "|DN(x + v) - DN(x) - D2N(x)[v1]| <= e2",
            (*BALL, Reals("w", -1, 1, 3), Reals("v2", -1, 1, 3), Reals("bent", 0, 1)),
            linear_remainder,
            near=(
                {**ACROSS, "w": [0.0, 0.9, 0.0], "v2": [0.0, 0.0, 0.0], "bent": 0.0},
                {**STEEP, "w": [0.577, 0.816, 0.0], "v2": [0.577, 0.816, 0.0], "bent": 0.9},
            ),
        ),
    ),
    code=(
        "fpcheck/certify/nodes.py:nodes_of",
        "fpcheck/check/bends.py:nodes_of",
    ),
    uses=("N1", "N3", "N4"),
    remarks=(
        "All four figures are first-order exact: for a -> 0 some displacement reaches them. At a finite a the third "
        "derivative's bound is not attained all the way, so up to a per cent is lost on useful radii.",
        "LayerNorm also ignores the mean of the displacement; bounding |C v| by |v| is sound and loses that.",
        "A normalisation over positions instead of channels is the same node with their numbers exchanged.",
    ),
)
