"""G6: derivatives of the implicit gradient, and what is lost when the fixed point is taken for a constant."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import dot, matrix, norm, scaled

J = sp.Symbol("J", commutative=False)
B = sp.Symbol("B", commutative=False)
N = sp.Symbol("N", commutative=False)
J_d = sp.Symbol("dJ", commutative=False)
B_d = sp.Symbol("dB", commutative=False)
N_d = sp.Symbol("dN", commutative=False)
G_d = sp.Symbol("dG", commutative=False)
J_t = sp.Symbol("J_theta", commutative=False)
J_z = sp.Symbol("J_zG", commutative=False)
B_t = sp.Symbol("B_theta", commutative=False)
B_z = sp.Symbol("B_zG", commutative=False)

theta = sp.Symbol("theta", real=True)
f_z = sp.Symbol("f_z", real=True)
f_t = sp.Symbol("f_t", real=True)
f_zz = sp.Symbol("f_zz", real=True)
f_zt = sp.Symbol("f_zt", real=True)
f_tt = sp.Symbol("f_tt", real=True)
z_1 = sp.Symbol("z_1", real=True)
z_2 = sp.Symbol("z_2", real=True)
t = sp.Symbol("t", real=True)

L = sp.Symbol("L", nonnegative=True)
gap = sp.Symbol("gap", positive=True)
q = sp.Symbol("q", nonnegative=True)
b = sp.Symbol("b", nonnegative=True)
size = sp.Symbol("G_s", nonnegative=True)
lost = sp.Symbol("D", nonnegative=True)
a = sp.Symbol("a", nonnegative=True)

# The branch z(t) = z_1 t + z_2 t^2/2 in f's Taylor polynomial about the fixed point.
branch = z_1 * t + z_2 * t**2 / 2
taylor = f_z * branch + f_t * t + f_zz * branch**2 / 2 + f_zt * branch * t + f_tt * t**2 / 2
second = sp.diff(taylor, t, 2).subs(t, 0)
# The fixed point of theta z - z^2 - 1/2 that is 1 at theta = 5/2.
explicit = (theta - 1 + sp.sqrt((theta - 1) ** 2 - 2)) / 2
point = {theta: sp.Rational(5, 2)}
linear = 1 / (1 - theta)


def loss_of_terms(ctx, point):
    """One parameter, two channels: J changes by a (w.dz) w', B by diag(C) dz; lost is N (a (w.G)^2 + diag(C) G)."""
    jacobian = scaled(ctx, matrix(ctx, point["J"], 2, 2), point["L"])
    if jacobian is None:
        return None
    system = ctx.eye(2) - jacobian
    gradient = ctx.lu_solve(system, ctx.matrix(point["B"]))
    direction, w, c = ctx.matrix(point["a"]), point["w"], ctx.diag(point["C"])
    along = dot(ctx, w, list(gradient))
    left = norm(ctx, list(ctx.lu_solve(system, direction * along**2 + c * gradient)))
    curvature = norm(ctx, list(direction)) * norm(ctx, w) ** 2
    length = norm(ctx, list(gradient))
    return left, (curvature * length + max(map(abs, point["C"]))) * length / (1 - point["L"])


def formula(ctx, point):
    """z = t + g z^2/2: the formula against the second difference quotient; the fourth derivative is positive."""
    g, t = point["g"], point["share"] / (2 * point["g"])
    h = point["h"] * (1 - point["share"]) / (2 * g)

    def branch(at):
        return (1 - ctx.sqrt(1 - 2 * g * at)) / g

    slope = 1 / (1 - g * branch(t))
    return g * slope**2 / (1 - g * branch(t)), (branch(t + h) - 2 * branch(t) + branch(t - h)) / h**2


SPACE = (
    Reals("J", -1, 1, 4),
    Reals("L", 0.01, 0.98),
    Reals("B", -1, 1, 2),
    Reals("a", -1, 1, 2),
    Reals("w", -1, 1, 2),
    Reals("C", -1, 1, 2),
)
ALIGNED = {"J": [1, 0, 0, 1], "L": 0.5, "B": [1, 0], "a": [1, 0], "w": [1, 0], "C": [1, 1]}

THEOREM = Theorem(
    id="G6",
    title="Second derivatives of a fixed point",
    statement=(
        r"Let $f$ be twice continuously differentiable, $z^* = f(z^*, \theta)$ and $I - J$ invertible. (a) Along any "
        r"parameter direction the implicit gradient $G = (I - J)^{-1} B$ has the derivative $dG = (I - J)^{-1} (dJ\, G "
        r"+ dB)$ with total derivatives $dJ = \partial_\theta J + \partial_z J [G]$ and $dB = \partial_\theta B + "
        r"\partial_z B [G]$; for numbers, $\frac{d^2 z^*}{d\theta^2} = \frac{f_{\theta\theta} + 2 f_{z\theta} z' + "
        r"f_{zz} z'^2}{1 - f_z}$ with $z' = \frac{f_\theta}{1 - f_z}$. (b) Taking $z^*$ for a constant in $G$ loses "
        r"$(I-J)^{-1} (\partial_z J[G]\, G + \partial_z B[G])$. Its norm is at most $\frac{(q \|G\| + b) "
        r"\|G\|}{1-L}$ if $\|(I-J)^{-1}\| \le \frac{1}{1-L}$ and $q$, $b$ bound $\partial_z J$, $\partial_z B$; this "
        r"is sharp. (c) What is left then can be half of the truth ($\theta z + c$), nothing of it ($\theta + "
        r"\frac{z^2}{4}$), or have the wrong sign: for $\theta z - z^2 - \frac12$ at $\theta = \frac52$, $z^* = 1$, it "
        r"is $4$ instead of $-8$."
    ),
    plain=(
        "A second derivative must see that the fixed point moves with the parameters. An implementation that "
        "differentiates the backward solve but holds the state fixed returns plausible numbers of the wrong size and "
        "even the wrong sign, also where the loop contracts."
    ),
    symbols=(
        Symbol(J, "Jacobian in the state", "J"),
        Symbol(B, "Jacobian in the parameters"),
        Symbol(N, "inverse of I - J"),
        Symbol(J_d, "total derivative of J along a parameter direction"),
        Symbol(B_d, "total derivative of B"),
        Symbol(N_d, "derivative of N"),
        Symbol(G_d, "derivative of G = N B"),
        Symbol(J_t, "derivative of J with the state held fixed"),
        Symbol(J_z, "derivative of J in the state, along the fixed point's motion"),
        Symbol(B_t, "derivative of B with the state held fixed"),
        Symbol(B_z, "derivative of B in the state, along the fixed point's motion"),
        Symbol(theta, "parameter of an example"),
        Symbol(f_z, "partial derivatives of a scalar f at its fixed point: in z"),
        Symbol(f_t, "in theta"),
        Symbol(f_zz, "twice in z"),
        Symbol(f_zt, "in z and theta"),
        Symbol(f_tt, "twice in theta"),
        Symbol(z_1, "first derivative of the fixed point"),
        Symbol(z_2, "second derivative of the fixed point"),
        Symbol(t, "change of theta"),
        Symbol(L, "with |N| <= 1/(1 - L)", "rate"),
        Symbol(gap, "1 - L"),
        Symbol(q, "bound on the derivative of J in the state"),
        Symbol(b, "bound on the derivative of B in the state"),
        Symbol(size, "|G|"),
        Symbol(lost, "norm of the lost part"),
        Symbol(a, "norm of the vector of which N is taken in it"),
    ),
    hypotheses=(
        Hypothesis("H1", "N (I - J) = I", N * (1 - J) - 1, "zero"),
        Hypothesis("H2", "(I - J) N = I", (1 - J) * N - 1, "zero"),
        Hypothesis("H3", "total derivative of J: the state moves too", J_d - J_t - J_z, "zero"),
        Hypothesis("H4", "total derivative of B", B_d - B_t - B_z, "zero"),
        Hypothesis("H5", "for the formula with numbers: z_1 (1 - f_z) = f_t (G1)", z_1 * (1 - f_z) - f_t, "zero"),
        Hypothesis(
            "H6", "the second derivative of z = f(z, theta), read off the Taylor polynomial", z_2 - second, "zero"
        ),
        Hypothesis("H7", "for numbers: I - J is invertible, say f_z < 1", 1 - f_z, "positive"),
        Hypothesis("H8", "|N x| <= |x| / (1 - L), for (b)", a / gap - lost),
    ),
    facts=(
        Fact(
            "F1",
            "N (I - J) = I stays true along the direction: dN (I - J) - N dJ = 0",
            N_d * (1 - J) - N * J_d,
            "product rule, Dieudonne (1960), 8.1.4",
            relation="zero",
        ),
        Fact(
            "F2", "dG = dN B + N dB", G_d - N_d * B - N * B_d, "product rule, Dieudonne (1960), 8.1.4", relation="zero"
        ),
        Fact(
            "F3",
            "|J_z[G] G + B_z[G]| <= (q |G|) |G| + b |G|",
            (q * size + b) * size - a,
            "norm axioms",
            axiom=True,
        ),
    ),
    steps=(
        Identity(
            "The inverse's derivative: multiply the differentiated equation by N from the right.",
            N_d,
            N * J_d * N,
            modulo={"F1": (sp.Integer(1), N), "H2": (-N_d, sp.Integer(1))},
            label="inverse",
        ),
        Identity(
            "(a) The product rule for G = N B: one more solve with the same matrix, and a right side that holds G.",
            G_d,
            N * (J_d * N * B + B_d),
            modulo={"F2": sp.Integer(1), "inverse": (sp.Integer(1), B)},
            label="a",
        ),
        Identity(
            "(b) With the state held fixed only the partial derivatives remain; the difference is the lost part.",
            G_d - N * (J_t * N * B + B_t),
            N * (J_z * N * B + B_z),
            modulo={"a": sp.Integer(1), "H3": (N, N * B), "H4": N},
        ),
        Nonnegative("Its size.", (q * size + b) * size / gap - lost, ref("H8") + ref("F3") / gap),
        Identity(
            "Numbers: the second derivative of f along the branch, from f's Taylor polynomial.",
            second,
            f_z * z_2 + f_tt + 2 * f_zt * z_1 + f_zz * z_1**2,
        ),
        Identity(
            "Solve for z_2: the formula (the mixed term counts twice: once through dJ G, once through dB).",
            z_2,
            (f_tt + 2 * f_zt * z_1 + f_zz * z_1**2) / (1 - f_z),
            modulo={"H6": 1 / ref("H7")},
        ),
        Identity(
            "(c) Half: f = theta z + c has z* = c/(1 - theta), here with c = 1, and z*'' = 2/(1 - theta)^3; with z* "
            "held fixed, G = z/(1 - theta) has the derivative z/(1 - theta)^2.",
            sp.diff(linear, theta, 2),
            2 * linear / (1 - theta) ** 2,
        ),
        Identity(
            "Nothing: f = theta + z^2/4 has G = 1/(1 - z/2), which names no theta; but as theta = z - z^2/4, the "
            "truth is (1/2)/(1 - z/2)^3.",
            sp.diff(1 / (1 - z_1 / 2), z_1) / sp.diff(z_1 - z_1**2 / 4, z_1),
            sp.Rational(1, 2) / (1 - z_1 / 2) ** 3,
        ),
        Identity(
            "Wrong sign: f = theta z - z^2 - 1/2 has the fixed point (theta - 1 + sqrt((theta - 1)^2 - 2))/2.",
            theta * explicit - explicit**2 - sp.Rational(1, 2),
            explicit,
        ),
        Identity("It is 1 at theta = 5/2,", explicit.subs(point), sp.Integer(1)),
        Identity(
            "where J = theta - 2z = 1/2: the loop contracts.", (theta - 2 * explicit).subs(point), sp.Rational(1, 2)
        ),
        Identity("The gradient is z/(1 - J) = 2.", sp.diff(explicit, theta).subs(point), sp.Integer(2)),
        Identity("The second derivative is -8.", sp.diff(explicit, theta, 2).subs(point), sp.Integer(-8)),
        Identity(
            "With z held at 1, G = z/(1 - theta + 2z) has the derivative 4.",
            sp.diff(z_1 / (1 - theta + 2 * z_1), theta).subs({z_1: 1, **point}),
            sp.Integer(4),
        ),
    ),
    source=Source("", derived=True, place="implicit differentiation twice; the examples are worked out here"),
    claims=(
        Claim("the lost part", SPACE, loss_of_terms, sharp=True, near=(ALIGNED,)),
        Claim(
            "the formula and the second difference quotient on the branch of z = t + g z^2/2",
            (Reals("g", 0.01, 10, log=True), Reals("share", -2, 0.99), Reals("h", 0.001, 0.9, log=True)),
            formula,
            precise=True,
            sharp=True,
        ),
    ),
    uses=("G1",),
    remarks=(
        "(b) grows like 1/(1 - L)^3 for given B: near a fold the lost part is the dominating one.",
        "A penalty on the Jacobian's size, or a loss that holds a gradient, needs these terms: its gradient differs "
        "through z*.",
    ),
)
