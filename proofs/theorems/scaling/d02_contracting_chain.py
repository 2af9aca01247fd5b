"""D2: the Lipschitz constant of a chain of scaled pre-norm sublayers."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Induction, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import norm

a_1 = sp.Symbol("a_1", nonnegative=True)
a_2 = sp.Symbol("a_2", nonnegative=True)
b_1 = sp.Symbol("b_1", nonnegative=True)
l_g = sp.Symbol("l", nonnegative=True)
l_j = sp.Symbol("l_j", nonnegative=True)
K = sp.Symbol("K", positive=True, integer=True)
j = sp.Symbol("j", nonnegative=True, integer=True)
e = sp.Symbol("e", nonnegative=True)
e_0 = sp.Symbol("e_0", nonnegative=True)
e_j = sp.Symbol("e_j", nonnegative=True)
e_next = sp.Symbol("e_j1", nonnegative=True)
moved = sp.Symbol("m_j", nonnegative=True)
A = sp.Symbol("A", positive=True)
root = sp.Symbol("c", positive=True)
eps = sp.Symbol("epsilon", positive=True)
h = sp.Symbol("h", real=True)


def _block(ctx, point, z):
    """Two layers of two sublayers each, g(u) = turn(u) times w, whose constant behind the norm is w / sqrt(eps)."""
    eps = point["eps"]
    h = [point["a2"] * v + point["b2"] * x for v, x in zip(z, point["x"], strict=True)]
    for angle in point["turn"]:
        q = ctx.sqrt((h[0] ** 2 + h[1] ** 2) / 2 + eps)
        w = point["l"] * ctx.sqrt(eps) / q
        update = [
            w * (ctx.cos(angle) * h[0] - ctx.sin(angle) * h[1]),
            w * (ctx.sin(angle) * h[0] + ctx.cos(angle) * h[1]),
        ]
        h = [point["a1"] * v + point["b1"] * u for v, u in zip(h, update, strict=True)]
    return h


def chain(ctx, point):
    y, z = point["y"], point["z"]
    distance = norm(ctx, [v - w for v, w in zip(y, z, strict=True)])
    if distance == 0:
        return None
    moved = norm(ctx, [v - w for v, w in zip(_block(ctx, point, y), _block(ctx, point, z), strict=True)])
    return moved, point["a2"] * (point["a1"] + point["b1"] * point["l"]) ** 4 * distance


SPACE = (
    Reals("a1", 0, 1),
    Reals("a2", 0, 1),
    Reals("b1", 0, 1),
    Reals("b2", 0, 1),
    Reals("l", 0, 3),
    Reals("turn", -3, 3, 4),
    Reals("x", -1, 1, 2),
    Reals("y", -1, 1, 2),
    Reals("z", -1, 1, 2),
    Reals("eps", 1e-3, 1, log=True),
)

THEOREM = Theorem(
    id="D2",
    title="Contraction of a chain of scaled sublayers",
    statement=(
        r"Let $h_0 = a_2 z + b_2 x$ and $h_{j+1} = a_1 h_j + b_1 g_j(\mathrm{norm}(h_j))$ for $j = 0, \ldots, 2K - "
        r"1$, all scales non-negative, where every $g_j \circ \mathrm{norm}$ is $l$-Lipschitz. Then $f(z) = h_{2K}$ "
        r"is Lipschitz with $a_2 (a_1 + b_1 l)^{2K}$, and this is the best constant that follows from these numbers. "
        r"It is below 1 exactly if $b_1 l < a_2^{-1/(2K)} - a_1$ (for $a_2 > 0$)."
    ),
    plain=(
        "Each scaled residual step stretches by at most what it hands on plus its scale times the sublayer's own "
        "constant; the chain multiplies these. Where the product is below 1, the loop settles from every start (B1)."
    ),
    symbols=(
        Symbol(a_1, "share of the stream that a sublayer hands on"),
        Symbol(a_2, "share of the state in the stream's start"),
        Symbol(b_1, "scale of a sublayer's output"),
        Symbol(l_g, "Lipschitz constant of each sublayer behind its norm"),
        Symbol(l_j, "that of sublayer j alone"),
        Symbol(K, "number of layers of two sublayers each", "L_layers"),
        Symbol(j, "number of the sublayer"),
        Symbol(e, "distance of two states z"),
        Symbol(e_0, "distance of their stream starts"),
        Symbol(e_j, "distance of their streams before sublayer j"),
        Symbol(e_next, "and after it"),
        Symbol(moved, "distance of that sublayer's outputs"),
        Symbol(A, "a_2 to the power -1/(2K)"),
        Symbol(root, "a_1 + b_1 l"),
        Symbol(eps, "the norm's epsilon", "eps"),
        Symbol(h, "a stream on a line through 0, over sqrt(d)"),
    ),
    hypotheses=(
        Hypothesis("H1", "every g_j(norm(.)) is l-Lipschitz", l_g * e_j - moved),
        Hypothesis("H2", "a single sublayer may be better: l_j <= l", l_g - l_j),
    ),
    facts=(
        Fact(
            "F1", "the injection drops out: e_0 = a_2 e", e_0 - a_2 * e, "homogeneity of the norm", "zero", axiom=True
        ),
        Fact(
            "F2",
            "the stream's distance after a sublayer",
            a_1 * e_j + b_1 * moved - e_next,
            "triangle inequality",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "One sublayer stretches by at most a_1 + b_1 l.",
            (a_1 + b_1 * l_g) * e_j - e_next,
            ref("F2") + b_1 * ref("H1"),
            label="sublayer",
        ),
        Induction(
            "All sublayers: by induction on their number.",
            k=j,
            quantity=e_j,
            following=e_next,
            bound=a_2 * (a_1 + b_1 * l_g) ** j * e,
            start=e_0,
            base=-ref("F1"),
            step=(a_1 + b_1 * l_g) * ref("IH") + ref("sublayer"),
            label="chain",
        ),
        Nonnegative(
            "Constants of their own for the sublayers only help: their factors are no larger.",
            (a_1 + b_1 * l_g) - (a_1 + b_1 * l_j),
            b_1 * ref("H2"),
        ),
        Identity(
            "With A = a_2^(-1/(2K)) the constant is the 2K-th power of (a_1 + b_1 l) / A; powers of non-negative "
            "numbers keep the order, so it is below 1 exactly if a_1 + b_1 l < A.",
            A ** (-2 * K) * root ** (2 * K),
            (root / A) ** (2 * K),
        ),
        Identity(
            "No better constant: g(u) = l sqrt(epsilon) u is, behind RMSNorm, l-Lipschitz (N1) and has the slope l at "
            "0. There the chain is linear with factor a_1 + b_1 l per sublayer, if x = 0.",
            sp.diff(l_g * sp.sqrt(eps) * h / sp.sqrt(h**2 + eps), h).subs(h, 0),
            l_g,
        ),
    ),
    source=Source("FPRM", 2026, "arXiv 2606.18206, Theorem 2 (contraction)"),
    claims=(
        Claim(
            "|f(y) - f(z)| <= a_2 (a_1 + b_1 l)^4 |y - z|",
            SPACE,
            chain,
            sharp=True,
            near=(
                {
                    "a1": 0.5,
                    "a2": 0.5,
                    "b1": 0.5,
                    "b2": 0.0,
                    "l": 1.5,
                    "turn": [0.0] * 4,
                    "x": [0.0, 0.0],
                    "y": [0.002, 0.0],
                    "z": [-0.002, 0.0],
                    "eps": 1.0,
                },
            ),
        ),
    ),
    uses=("B1", "N1", "N6"),
    remarks=(
        "With RMSNorm and no lower bound on the stream, l is g's constant over sqrt(epsilon) (N1): the condition then "
        "holds only for tiny sublayers. N6 gives l on a ball.",
        "Sublayers with constants of their own: the product of their factors a_1 + b_1 l_j takes the power's place.",
        "Sufficient, not necessary: a loop can settle although this constant is above 1.",
        "Scales per channel and a convolution of the state, as in the official code, are in F2.",
    ),
)
