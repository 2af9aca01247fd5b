"""K3: how a certificate decides whether a fixed point attracts or repels, with an enclosed eigenpair."""

import sympy as sp

from proofs import Claim, Fact, Hypothesis, Identity, Nonnegative, NotChecked, Reals, Source, Symbol, Theorem, ref
from proofs.numbers import dot, matrix, norm, spectral_norm

h = sp.Symbol("h", nonnegative=True)
m = sp.Symbol("m", nonnegative=True)
dv = sp.Symbol("d_v", nonnegative=True)
dl = sp.Symbol("d_l", nonnegative=True)
image = sp.Symbol("y", nonnegative=True)
A = sp.Symbol("A", nonnegative=True)
eta = sp.Symbol("eta", nonnegative=True)
size = sp.Symbol("V", nonnegative=True)
Y0 = sp.Symbol("Y_0", nonnegative=True)
Z0 = sp.Symbol("Z_0", nonnegative=True)
Y = sp.Symbol("Y", nonnegative=True)
Z1 = sp.Symbol("Z_1", nonnegative=True)
shift_y = sp.Symbol("y_0", nonnegative=True)
shift_z = sp.Symbol("z_0", nonnegative=True)
r = sp.Symbol("r", positive=True)
lam = sp.Symbol("lambda", positive=True)
approx = sp.Symbol("l", nonnegative=True)
off = sp.Symbol("o", nonnegative=True)
K = sp.Symbol("K", positive=True)
s = sp.Symbol("s", positive=True)
L = sp.Symbol("L", nonnegative=True)
x = sp.Symbol("x", positive=True)
moved = sp.Symbol("c", nonnegative=True)
kappa = sp.Symbol("kappa", nonnegative=True)


def enclosed(ctx, point):
    """Distance to an eigenpair of J* with w'v = 1, against the radius from numbers made with J and an imperfect A."""
    true, change = matrix(ctx, point["J"], 2, 2), matrix(ctx, point["E"], 2, 2)
    (a, b), (c, d) = true.tolist()
    square = (a - d) ** 2 + 4 * b * c
    if square < ctx.mpf(1) / 100:  # complex or nearly double eigenvalues
        return None
    value = (a + d + ctx.sqrt(square)) / 2
    vector = [value - d, c] if abs(value - d) + abs(c) > abs(value - a) + abs(b) else [b, value - a]
    w = [v / dot(ctx, vector, vector) for v in vector]
    near = [v + e for v, e in zip(vector, point["dv"], strict=True)]
    guess = value + point["dl"]
    known = true - change
    shifted = known - guess * ctx.eye(2)
    # The Jacobian of G(v, l) = (J v - l v, w'v - 1), and A: its inverse, made worse by a few per cent.
    slope = ctx.matrix([[shifted[0, 0], shifted[0, 1], -near[0]], [shifted[1, 0], shifted[1, 1], -near[1]], [*w, 0]])
    inverse = slope ** (-1) * (ctx.eye(3) + ctx.diag([0, point["p"], -point["p"]]))
    residual = ctx.matrix([*(shifted * ctx.matrix(near)), dot(ctx, w, near) - 1])
    size, eta = spectral_norm(ctx, inverse), spectral_norm(ctx, change)
    first = norm(ctx, list(inverse * residual)) + size * eta * norm(ctx, near)
    second = spectral_norm(ctx, ctx.eye(3) - inverse * slope) + size * eta
    room = (1 - second) ** 2 - 2 * size * first
    if second >= 1 or room <= 0:
        return None
    return norm(ctx, [*point["dv"], point["dl"]]), 2 * first / (1 - second + ctx.sqrt(room))


def slope_change(ctx, point):
    """The bilinear part: (l h + m v, 0) against the lengths of (v, l) and (h, m)."""
    v, step = point["v"], point["h"]
    out = [point["l"] * b + point["m"] * a for a, b in zip(v, step, strict=True)]
    return norm(ctx, out), norm(ctx, [*v, point["l"]]) * norm(ctx, [*step, point["m"]])


THEOREM = Theorem(
    id="K3",
    title="Attracting or repelling: an enclosed eigenpair",
    statement=(
        r"Let $z^*$ be a fixed point of $f$ and $J_* = Df(z^*)$. (a) If $\|J_*\| \le \kappa < 1$ in some operator "
        r"norm, $z^*$ attracts a neighbourhood. (b) If $J_*$ has an eigenvalue of modulus above 1, $f$ is "
        r"$L$-Lipschitz with $L < 1$ in no norm and on no neighbourhood of $z^*$, and $z^*$ is not stable. (c) Let "
        r"$|J_* - J|_2 \le \eta$, $w$ any vector, $G(v, \lambda) = (J v - \lambda v, w^T v - 1)$ on "
        r"$\mathbb{C}^{n+1}$ with the Euclidean norm, $\hat x = (\hat v, \hat \lambda)$ any point, $A$ any matrix, "
        r"$Y = |A G(\hat x)| + |A|_2 \eta |\hat v|$ and $Z_1 = |I - A \, DG(\hat x)|_2 + |A|_2 \eta$. If $Y + (Z_1 "
        r"- 1) r + \frac{|A|_2}{2} r^2 \le 0$ and $Z_1 + |A|_2 r < 1$ for some $r > 0$, then $J_*$ has exactly one "
        r"eigenpair with $w^T v = 1$ within $r$ of $\hat x$. Its eigenvalue has $|\lambda - \hat \lambda| \le r$, "
        r"so $|\hat \lambda| - r > 1$ proves (b). $J_*$ need not be normal or diagonalisable."
    ),
    plain=(
        "A bound below 1 proves that a fixed point attracts; an eigenvalue proved to lie outside the unit circle "
        "proves that it does not. A small residual |Jv - lambda v| proves neither for the matrices of trained "
        "loops; with an approximate inverse of the bordered matrix the eigenvalue is enclosed rigorously."
    ),
    symbols=(
        Symbol(dv, "|v - v^|, or the length of a vector v"),
        Symbol(dl, "|lambda - lambda^|"),
        Symbol(h, "length of the vector part of a direction (h, m)"),
        Symbol(m, "modulus of its last entry"),
        Symbol(image, "|(DG(x) - DG(x^))(h, m)|"),
        Symbol(A, "|A|_2"),
        Symbol(eta, "bound on |J* - J|_2"),
        Symbol(size, "|v^|"),
        Symbol(Y0, "|A G(x^)|"),
        Symbol(Z0, "|I - A DG(x^)|_2"),
        Symbol(Y, "bound on |A G*(x^)|, G* made with J*", "Y"),
        Symbol(Z1, "bound on |I - A DG*(x^)|_2", "Z1"),
        Symbol(shift_y, "|A G*(x^)|"),
        Symbol(shift_z, "|I - A DG*(x^)|_2"),
        Symbol(r, "radius", "radius"),
        Symbol(lam, "modulus of the eigenvalue"),
        Symbol(approx, "|lambda^|"),
        Symbol(off, "|x - x^| of the eigenpair"),
        Symbol(K, "a large number"),
        Symbol(s, "a small number"),
        Symbol(L, "Lipschitz constant of f near z*, in any norm"),
        Symbol(x, "|v| of the eigenvector in that norm"),
        Symbol(moved, "|J* v|"),
        Symbol(kappa, "bound on |J*|", "kappa"),
    ),
    hypotheses=(
        Hypothesis("H1", "for (a): kappa < 1", 1 - kappa, "positive"),
        Hypothesis("H2", "for (b): |lambda| > 1", lam - 1, "positive"),
        Hypothesis("H3", "f is L-Lipschitz near z*, so |J* v| <= L |v|", L * x - moved),
        Hypothesis("H4", "for (c): Y as stated", Y - Y0 - A * eta * size, "zero"),
        Hypothesis("H5", "Z_1 as stated", Z1 - Z0 - A * eta, "zero"),
        Hypothesis("H6", "the conditions of K1 for G with Z_2 = |A|_2 (used in F7)"),
    ),
    facts=(
        Fact("F1", "J* v = lambda v", moved - lam * x, "definition of an eigenpair", "zero", axiom=True),
        Fact(
            "F2",
            "DG(x) - DG(x^) sends (h, m) to (-(lambda - lambda^) h - m (v - v^), 0)",
            dl * h + m * dv - image,
            "triangle inequality",
            axiom=True,
        ),
        Fact(
            "F3",
            "G* differs from G by (J* - J) v^ in the first part",
            Y0 + A * eta * size - shift_y,
            "triangle inequality and the operator norm",
            axiom=True,
        ),
        Fact(
            "F4",
            "DG* differs from DG by J* - J in one block",
            Z0 + A * eta - shift_z,
            "triangle inequality and the operator norm",
            axiom=True,
        ),
        Fact("F5", "|lambda - lambda^| <= |x - x^|", off - dl, "a part is no longer than the whole", axiom=True),
        Fact("F6", "|lambda| >= |lambda^| - |lambda - lambda^|", lam - approx + dl, "triangle inequality", axiom=True),
        Fact(
            "F7",
            "K1 for x - G*(x) with the matrix A: its fixed points are the zeros of G*, one is within r",
            r - off,
            "K1",
            axiom=True,
        ),
    ),
    steps=(
        Nonnegative(
            "(a) By continuity of Df the slope is at most kappa + (1 - kappa)/2 < 1 in that norm on a small ball "
            "around z*. There Q4 applies with Y = 0: every start converges to z*.",
            1 - (kappa + (1 - kappa) / 2),
            ref("H1") / 2,
            strict=True,
        ),
        Nonnegative(
            "(b) The eigenvector alone shows |lambda| <= L in any norm, so L < 1 is impossible. (A complex pair: "
            "in the complexified norm.)",
            L - 1,
            (ref("H3") + ref("F1")) / x + ref("H2"),
            strict=True,
            label="no contraction",
        ),
        Identity(
            "(c) G is quadratic: for every direction, squares of the two terms of its change add up to less than the "
            "product of lengths ...",
            (dl**2 + dv**2) * (h**2 + m**2) - (dl * h + m * dv) ** 2,
            (dl * m - dv * h) ** 2,
            label="Cauchy-Schwarz",
        ),
        Nonnegative(
            "... so DG has the Lipschitz constant 1 in the Euclidean norm, and A DG has |A|_2, everywhere.",
            (dl**2 + dv**2) * (h**2 + m**2) - image**2,
            (dl * m - dv * h) ** 2 + ref("F2") * (dl * h + m * dv + image) + ref("Cauchy-Schwarz"),
            label="Z2",
        ),
        Nonnegative("Y bounds the residual for J* too,", Y - shift_y, ref("F3") + ref("H4"), label="Y"),
        Nonnegative("and Z_1 the defect.", Z1 - shift_z, ref("F4") + ref("H5"), label="Z1"),
        Nonnegative(
            "K1 gives one zero of G* within r of x^: an eigenpair of J*, whose eigenvalue is within r of lambda^.",
            r - dl,
            ref("F7") + ref("F5"),
            label="near",
        ),
        Nonnegative("So its modulus is at least |lambda^| - r.", lam - (approx - r), ref("F6") + ref("near")),
        Identity(
            "Why a residual alone does not do: J = ((0, K), (0, 0)) has the eigenvalue 0 only. At lambda^ = s, v^ "
            "= (1, s/K) the residual J v^ - lambda^ v^ has the first entry 0 ...",
            K * (s / K) - s * 1,
            sp.Integer(0),
        ),
        Identity(
            "... and the second -s^2/K: as small as one likes for large K, while the eigenvalue is s away, for any s.",
            0 - s * (s / K),
            -(s**2) / K,
        ),
    ),
    source=Source(
        "",
        derived=True,
        place="bordered system as in Yamamoto (1980), Error bounds for computed eigenvalues and eigenvectors",
    ),
    claims=(
        Claim(
            "distance to the eigenpair <= r, with an imperfect A",
            (
                Reals("J", -2, 2, 4),
                Reals("E", -0.02, 0.02, 4),
                Reals("dv", -0.05, 0.05, 2),
                Reals("dl", -0.05, 0.05),
                Reals("p", -0.1, 0.1),
            ),
            enclosed,
            near=({"J": [0.5, 0.5, 0.5, -0.5], "E": [0.0] * 4, "dv": [1e-4, 1e-4], "dl": 1e-4, "p": 0.0},),
        ),
        Claim(
            "DG has the Lipschitz constant 1",
            (Reals("v", -1, 1, 2), Reals("l", -1, 1), Reals("h", -1, 1, 2), Reals("m", -1, 1)),
            slope_change,
            sharp=True,
            near=({"v": [0.5, 0.0], "l": 0.5, "h": [0.5, 0.0], "m": 0.5},),
        ),
    ),
    not_checked=(
        NotChecked(
            "a fixed point whose Jacobian has an eigenvalue of modulus above 1 is not stable",
            "Elaydi (2005), An Introduction to Difference Equations, chapter 4; Katok and Hasselblatt (1995), 6.2.8",
        ),
        NotChecked("Df is continuous near z*", "an assumption on f, met by smooth blocks"),
    ),
    code=(
        "fpcheck/certify/repelling.py:repelling",
        "fpcheck/certify/repelling.py:outlying",
        "fpcheck/certify/search.py:certify",
    ),
    uses=("K1", "Q4"),
    remarks=(
        "rho(J*) < 1 is between (a) and (b) decided by a metric (B7, B10), by k steps (B5) or by weights (B6).",
        "For a normal J* the residual does enclose an eigenvalue (Bauer and Fike with condition number 1); "
        "Jacobians of trained loops are far from normal (E1). There it bounds the distance to a matrix that has "
        "the pair (Kahan, Parlett and Jiang, 1982).",
        "A proved modulus above 1 says that almost no start stays near z*; it does not say where the loop goes.",
        "A double eigenvalue makes DG singular and A large: the conditions then fail, and nothing is claimed.",
        "eta is what Q1 to Q4 bound: |J(z*) - J(z^)| <= tau e + Q(e) at the distance e of K1.",
    ),
)
