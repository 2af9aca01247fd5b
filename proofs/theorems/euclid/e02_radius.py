"""E2: the spectral radius is below every operator norm; and a rotation, which a real power iteration misreads."""

import sympy as sp

from proofs import (
    Claim,
    Enclosed,
    Fact,
    Hypothesis,
    Identity,
    Nonnegative,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)
from proofs.numbers import matrix, norm, spectral_norm, spectral_radius

rho = sp.Symbol("rho", nonnegative=True)
alpha = sp.Symbol("alpha", real=True)
phi = sp.Symbol("phi", real=True)
x = sp.Symbol("x", real=True)
y = sp.Symbol("y", real=True)
size = sp.Symbol("l", nonnegative=True)
M = sp.Symbol("M", positive=True)
turned = sp.Symbol("t", nonnegative=True)
image = sp.Symbol("i", nonnegative=True)
s = sp.Symbol("s", positive=True)
z = sp.Symbol("lambda", real=True)
q = sp.Symbol("q", nonnegative=True)
w = sp.Symbol("w", nonnegative=True)
here = sp.Symbol("J_z", nonnegative=True)
k = sp.Symbol("k", positive=True, integer=True)

# A u(phi) in one entry, u(phi) = cos(phi) x - sin(phi) y.
one_step = sp.cos(phi) * rho * (sp.cos(alpha) * x - sp.sin(alpha) * y) - sp.sin(phi) * rho * (
    sp.sin(alpha) * x + sp.cos(alpha) * y
)
rotation = s * sp.Matrix([[sp.cos(alpha), -sp.sin(alpha)], [sp.sin(alpha), sp.cos(alpha)]])


def _sum_norm(a):
    return max(sum(abs(a[i, j]) for i in range(a.rows)) for j in range(a.cols))


def two_norm(ctx, point):
    a = matrix(ctx, point["A"], 3, 3)
    return spectral_radius(ctx, a), spectral_norm(ctx, a)


def row_sums(ctx, point):
    a = matrix(ctx, point["A"], 3, 3)
    return spectral_radius(ctx, a), _sum_norm(a.T)


def column_sums(ctx, point):
    a = matrix(ctx, point["A"], 3, 3)
    return spectral_radius(ctx, a), _sum_norm(a)


def of_power(ctx, point):
    """Three steps at once."""
    a = matrix(ctx, point["A"], 3, 3)
    return spectral_radius(ctx, a) ** 3, spectral_norm(ctx, a * a * a)


def rotation_radius(ctx, point):
    scale, angle = point["s"], point["angle"]
    c, d = scale * ctx.cos(angle), scale * ctx.sin(angle)
    return spectral_radius(ctx, ctx.matrix([[c, -d], [d, c]])), scale


def rayleigh(ctx, point):
    """|x'Ax| / |x|^2 of a scaled rotation: s |cos| and not s."""
    scale, angle, (u, v) = point["s"], point["angle"], point["x"]
    if u == 0 and v == 0:
        return None
    c, d = scale * ctx.cos(angle), scale * ctx.sin(angle)
    value = u * (c * u - d * v) + v * (d * u + c * v)
    return abs(value), abs(c) * norm(ctx, [u, v]) ** 2


ROTATIONS = (Reals("s", 0.1, 3), Reals("angle", -3.2, 3.2), Reals("x", -2, 2, 2))
SPACE = (Reals("A", -2, 2, 9),)
NEAR = ({"A": [2.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.1]},)

THEOREM = Theorem(
    id="E2",
    title="Spectral radius, operator norms and rotations",
    statement=(
        r"(a) For every norm on $\mathbb{R}^n$ and its operator norm, $\rho(A) \le \|A\|$; also "
        r"$\rho(A)^k \le \|A^k\|$ for every $k$. (b) If $f$ is continuously differentiable, $f(z^*) = z^*$ and "
        r"$\|J(z^*)\| = q < 1$ in some norm, then $f$ is a contraction on some ball about $z^*$: the fixed point "
        r"attracts. (c) The rotation by $\alpha$ times $s > 0$ has the eigenvalues "
        r"$s e^{\pm i \alpha}$ and $\rho = |A|_2 = s$, but $x^T A x = s \cos(\alpha) |x|^2$ for every real $x$: a "
        r"real power iteration with Rayleigh quotients reads $s \cos\alpha$ at every step, such as $0.208\ldots$ for "
        r"$s = 1.2$, $\alpha = 80^\circ$."
    ),
    plain=(
        "One norm below 1 proves a fixed point attracting; no norm above 1 proves the contrary. And an estimate of the "
        "spectral radius that knows only real vectors can call a loop that spirals outwards strongly contracting."
    ),
    symbols=(
        Symbol(rho, "modulus of an eigenvalue"),
        Symbol(alpha, "its angle; in (c) the angle of the rotation"),
        Symbol(phi, "angle of a turn in the plane of the eigenvector"),
        Symbol(x, "an entry of the real part of the eigenvector; in (c) first entry of a vector"),
        Symbol(y, "the same entry of its imaginary part; in (c) second entry"),
        Symbol(size, "operator norm of A"),
        Symbol(M, "supremum over phi of |u(phi)|, u(phi) = cos(phi) Re v - sin(phi) Im v; not 0, as v is not"),
        Symbol(turned, "|u(phi + alpha)|"),
        Symbol(image, "|A u(phi)|"),
        Symbol(s, "scale of the rotation"),
        Symbol(z, "variable of the characteristic polynomial"),
        Symbol(q, "|J(z*)|"),
        Symbol(k, "a power"),
        Symbol(w, "largest change of |J| over the ball"),
        Symbol(here, "|J(z)| in the ball"),
    ),
    hypotheses=(
        Hypothesis("H1", "q < 1", 1 - q, "positive"),
        Hypothesis("H2", "the ball is so small that the Jacobian changes by at most (1 - q)/2", (1 - q) / 2 - w),
    ),
    facts=(
        Fact(
            "F1", "|A u(phi)| <= |A| |u(phi)| <= |A| M", size * M - image, "definition of the operator norm", axiom=True
        ),
        Fact(
            "F2",
            "|A u(phi)| = rho |u(phi + alpha)|, by step 'turn' in every entry",
            image - rho * turned,
            "homogeneity of the norm",
            relation="zero",
            axiom=True,
        ),
        Fact(
            "F3",
            "rho M is the supremum of rho |u(phi)|; step 'every' bounds all of these by |A| M",
            size * M - rho * M,
            "definition of the supremum",
            axiom=True,
        ),
        Fact("F4", "|J(z)| <= |J(z*)| + |J(z) - J(z*)|", q + w - here, "triangle inequality", axiom=True),
    ),
    steps=(
        Identity(
            "(a) Let A v = lambda v, lambda = rho e^(i alpha), with real part x and imaginary part y in some entry: A "
            "takes them to rho (cos(alpha) x - sin(alpha) y) and rho (sin(alpha) x + cos(alpha) y). Then A takes "
            "u(phi) to rho u(phi + alpha): it turns within the plane of v and stretches by rho.",
            one_step,
            rho * (sp.cos(phi + alpha) * x - sp.sin(phi + alpha) * y),
            label="turn",
        ),
        Nonnegative(
            "So rho |u(phi + alpha)| <= |A| M for every phi, that is for every angle.",
            size * M - rho * turned,
            ref("F1") + ref("F2"),
            label="every",
        ),
        Nonnegative(
            "The supremum obeys the same bound: rho M <= |A| M. Divide by M.", size - rho, ref("F3") / M, label="radius"
        ),
        Nonnegative(
            "(b) Over a ball on which the Jacobian changes by at most (1 - q)/2, its norm is at most (1 + q)/2.",
            (1 + q) / 2 - here,
            ref("F4") + ref("H2"),
            label="on a ball",
        ),
        Nonnegative(
            "That is below 1: B3 applies to the ball, with residual 0.", 1 - (1 + q) / 2, ref("H1") / 2, strict=True
        ),
        Identity(
            "For powers: if A^k takes u(phi) to rho^k u(phi + k alpha), one more factor A turns by alpha and "
            "stretches by rho again. So the argument holds for A^k with rho^k.",
            rho**k * one_step.subs(phi, phi + k * alpha),
            rho ** (k + 1) * (sp.cos(phi + (k + 1) * alpha) * x - sp.sin(phi + (k + 1) * alpha) * y),
            label="powers",
        ),
        Identity(
            "(c) The characteristic polynomial of the rotation: its roots are s cos(alpha) +- i s sin(alpha), of "
            "modulus s.",
            (z * sp.eye(2) - rotation).det(),
            (z - s * sp.cos(alpha)) ** 2 + (s * sp.sin(alpha)) ** 2,
        ),
        Identity("The modulus.", (s * sp.cos(alpha)) ** 2 + (s * sp.sin(alpha)) ** 2, s**2),
        Identity(
            "Every vector is stretched by s: s is the norm as well.",
            sum(v**2 for v in rotation * sp.Matrix([x, y])),
            s**2 * (x**2 + y**2),
        ),
        Identity(
            "Every real Rayleigh quotient is s cos(alpha): the iteration stands still from its first step on.",
            (sp.Matrix([[x, y]]) * rotation * sp.Matrix([x, y]))[0],
            s * sp.cos(alpha) * (x**2 + y**2),
            label="Rayleigh",
        ),
        Identity(
            "The residual of that reading tells: |A x - s cos(alpha) x| = s |sin(alpha)| |x|.",
            sum(v**2 for v in rotation * sp.Matrix([x, y]) - s * sp.cos(alpha) * sp.Matrix([x, y])),
            (s * sp.sin(alpha)) ** 2 * (x**2 + y**2),
        ),
        Enclosed(
            "The example: 1.2 cos(80 degrees), for a loop that grows by 1.2 per step.",
            sp.Rational(6, 5) * sp.cos(4 * sp.pi / 9),
            "208/1000",
            "209/1000",
        ),
    ),
    source=Source(
        "Ostrowski", 1966, "Solution of Equations and Systems of Equations, on points of attraction; (c) derived"
    ),
    claims=(
        Claim("rho(A) <= |A|_2", SPACE, two_norm, sharp=True, near=NEAR),
        Claim("rho(A) <= largest row sum", SPACE, row_sums, sharp=True, near=NEAR),
        Claim("rho(A) <= largest column sum", SPACE, column_sums, sharp=True, near=NEAR),
        Claim("rho(A)^3 <= |A^3|_2", SPACE, of_power, sharp=True, near=NEAR),
        Claim("rho <= |A|_2 = s for the rotation", ROTATIONS, rotation_radius, sharp=True),
        Claim("|x'Ax| <= s |cos(alpha)| |x|^2 for the rotation", ROTATIONS, rayleigh, sharp=True),
    ),
    uses=("B3",),
    remarks=(
        "(a) holds with a complex eigenvalue and a real norm: the eigenvector's real plane is enough, no extension of "
        "the norm to complex vectors is needed.",
        "The growth |A x|/|x| reads s for the pure rotation; in skewed coordinates it swings above and below s as "
        "well.",
    ),
)
