"""Q1: how the Jacobian of a graph of nodes changes, exactly, in terms of how each node's own Jacobian changes."""

from typing import Any

import sympy as sp

from proofs import Claim, Hypothesis, Identity, NotChecked, Reals, Source, Symbol, Theorem


def _matrix(name):
    return sp.Symbol(name, commutative=False)


A, A_F, S, R = map(_matrix, ("A", "A_F", "S", "R"))
D, E = map(_matrix, ("D", "E"))
U, U_z, C, G, J, J_z = map(_matrix, ("U", "U_z", "C", "G", "J", "J_z"))
W, W_k, P_k = map(_matrix, ("W", "W_k", "P_k"))
dz, du, d_f, rho = map(_matrix, ("z", "u", "F", "rho"))


def _graph(ctx, point):
    """Three scalar nodes, tanh, sine and a square, each fed by the earlier ones: values and derivatives in z."""
    a, s, r = point["a"], point["s"], point["r"]
    links = {(1, 0): s[0], (2, 0): s[1], (2, 1): s[2]}
    nodes = (
        (ctx.tanh, lambda u: 1 - ctx.tanh(u) ** 2),
        (ctx.sin, ctx.cos),
        (lambda u: u * u, lambda u: 2 * u),
    )

    def run(z):
        inputs: list[Any] = []
        outputs: list[Any] = []
        slopes: list[Any] = []
        first: list[Any] = []
        for node, (value, slope) in enumerate(nodes):
            inputs.append(a[node] * z + sum((links[node, k] * outputs[k] for k in range(node)), ctx.mpf(0)))
            carried = sum((links[node, k] * slopes[k] * first[k] for k in range(node)), ctx.mpf(0))
            first.append(a[node] + carried)
            outputs.append(value(inputs[node]))
            slopes.append(slope(inputs[node]))
        total = a[3] * z + sum((r[k] * outputs[k] for k in range(3)), ctx.mpf(0))
        derivative = a[3] + sum((r[k] * slopes[k] * first[k] for k in range(3)), ctx.mpf(0))
        return inputs, outputs, slopes, first, total, derivative

    centre, there = run(point["c"]), run(point["z"])
    d = centre[2]
    # Total derivatives from a node's output to the later inputs and to the result.
    c_10, c_21 = s[0], s[2]
    c_20 = s[1] + s[2] * d[1] * s[0]
    g = (r[0] + r[1] * d[1] * c_10 + r[2] * d[2] * c_20, r[1] + r[2] * d[2] * c_21, r[2])
    return centre, there, g


def jacobian(ctx, point):
    centre, there, g = _graph(ctx, point)
    changed = [v - w for v, w in zip(there[2], centre[2], strict=True)]
    return abs(there[5] - centre[5]), abs(sum((g[k] * changed[k] * there[3][k] for k in range(3)), ctx.mpf(0)))


def jacobian_back(ctx, point):
    left, right = jacobian(ctx, point)
    return right, left


def remainder(ctx, point):
    if abs(point["z"] - point["c"]) < ctx.mpf(1) / 10:  # nearer states cancel too many digits
        return None
    centre, there, g = _graph(ctx, point)
    rests = [there[1][k] - centre[1][k] - centre[2][k] * (there[0][k] - centre[0][k]) for k in range(3)]
    left = there[4] - centre[4] - centre[5] * (point["z"] - point["c"])
    return abs(left), abs(sum((g[k] * rests[k] for k in range(3)), ctx.mpf(0)))


def remainder_back(ctx, point):
    found = remainder(ctx, point)
    return None if found is None else found[::-1]


SPACE = (
    Reals("a", -2, 2, 4),
    Reals("s", -2, 2, 3),
    Reals("r", -2, 2, 3),
    Reals("c", -1, 1),
    Reals("z", -1, 1),
)

THEOREM = Theorem(
    id="Q1",
    title="The composition identities of a graph of nodes",
    statement=(
        r"Let $u = A z + S y + a$, $y_l = \varphi_l(u_l)$, $F = A_F z + R y + a_F$ be a graph of nodes $1, \ldots, "
        r"M$ ($u$, $y$ stacked; $S$ strictly lower block triangular, so that each node sees earlier ones only). At "
        r"$\hat z$ let $D = \mathrm{diag}(D\varphi_l(\hat u_l))$, and $U = A + S D U$, $C = S + S D C$, $G = R + R "
        r"D C$ the total derivatives of node inputs by $z$, of node inputs by node outputs, of $F$ by node "
        r"outputs. At any other $z$ let $E = \mathrm{diag}(D\varphi_l(u_l(z))) - D$ and $\rho = \varphi(u(z)) - "
        r"\varphi(\hat u) - D(u(z) - \hat u)$. Then exactly $u(z) - \hat u = U (z - \hat z) + C \rho$, $U(z) = U + "
        r"C E U(z)$, $J(z) - J = G E U(z)$ and $F(z) - F(\hat z) - J (z - \hat z) = G \rho$."
    ),
    plain=(
        "How the Jacobian of a whole block differs from the one at the centre is a sum over its nodes, each with its "
        "own change only, between matrices that are known at the centre. No product of bounds over layers is needed, "
        "and nothing is lost."
    ),
    symbols=(
        Symbol(A, "linear part of the node inputs in z"),
        Symbol(A_F, "linear part of F in z"),
        Symbol(S, "links from node outputs to node inputs, strictly lower block triangular"),
        Symbol(R, "links from node outputs to F"),
        Symbol(D, "the nodes' own Jacobians at the centre, block diagonal"),
        Symbol(E, "their change from the centre to z, block diagonal"),
        Symbol(U, "du/dz at the centre", "U"),
        Symbol(U_z, "du/dz at z"),
        Symbol(C, "total derivative of node inputs by node outputs at the centre", "C"),
        Symbol(G, "total derivative of F by node outputs at the centre", "G"),
        Symbol(J, "Jacobian of F at the centre", "J"),
        Symbol(J_z, "Jacobian of F at z"),
        Symbol(W, "inverse of I - S D"),
        Symbol(W_k, "sum of (S D)^i over i < k"),
        Symbol(P_k, "(S D)^k"),
        Symbol(dz, "the vector z - z^"),
        Symbol(du, "the vector u(z) - u^"),
        Symbol(d_f, "the vector F(z) - F(z^)"),
        Symbol(rho, "the vector of the nodes' second-order remainders"),
    ),
    hypotheses=(
        Hypothesis("H1", "chain rule at the centre: U = A + S D U", U - A - S * D * U, "zero"),
        Hypothesis("H2", "paths between nodes at the centre: C = S + S D C", C - S - S * D * C, "zero"),
        Hypothesis("H3", "paths from nodes to the result: G = R + R D C", G - R - R * D * C, "zero"),
        Hypothesis("H4", "J = A_F + R D U", J - A_F - R * D * U, "zero"),
        Hypothesis("H5", "chain rule at z: U(z) = A + S (D + E) U(z)", U_z - A - S * (D + E) * U_z, "zero"),
        Hypothesis("H6", "J(z) = A_F + R (D + E) U(z)", J_z - A_F - R * (D + E) * U_z, "zero"),
        Hypothesis(
            "H7",
            "by the definition of rho, y(z) - y^ = D (u(z) - u^) + rho, hence u(z) - u^ = A (z - z^) + S (D (u(z) "
            "- u^) + rho)",
            du - A * dz - S * (D * du + rho),
            "zero",
        ),
        Hypothesis("H8", "the same for F", d_f - A_F * dz - R * (D * du + rho), "zero"),
        Hypothesis("H9", "W_k (I - S D) = I - (S D)^k for some k", W_k * (1 - S * D) - 1 + P_k, "zero"),
        Hypothesis(
            "H10",
            "W = W_M, the sum up to the number M of nodes, where (S D)^M = 0 because S D is strictly lower block "
            "triangular: W (I - S D) = I",
            W * (1 - S * D) - 1,
            "zero",
        ),
    ),
    steps=(
        Identity("The sum begins with W_0 = 0, (S D)^0 = I: 0 (I - S D) = I - I.", 0 * (1 - S * D), D**0 - 1),
        Identity(
            "One more term: W_(k+1) (I - S D) = I - (S D)^(k+1). So it holds for every k, and at k = M the power is 0: "
            "I - S D is invertible, with the inverse W = W_M.",
            (W_k + P_k) * (1 - S * D),
            1 - P_k * S * D,
            modulo={"H9": 1},
        ),
        Identity("U = (I - S D)^-1 A.", U, W * A, modulo={"H1": W, "H10": (-1, U)}, label="U"),
        Identity("C = (I - S D)^-1 S.", C, W * S, modulo={"H2": W, "H10": (-1, C)}, label="C"),
        Identity(
            "At z: (I - S D) U(z) = A + S E U(z). Multiply by W.",
            U_z,
            W * A + W * S * E * U_z,
            modulo={"H5": W, "H10": (-1, U_z)},
            label="U(z) with W",
        ),
        Identity(
            "In terms of the centre: U(z) = U + C E U(z).",
            U_z,
            U + C * E * U_z,
            modulo={"U(z) with W": 1, "U": -1, "C": (-1, E * U_z)},
            label="U(z)",
        ),
        Identity(
            "Hence J(z) - J = R D (U(z) - U) + R E U(z) = (R D C + R) E U(z) = G E U(z).",
            J_z - J,
            G * E * U_z,
            modulo={"H6": 1, "H4": -1, "U(z)": R * D, "H3": (-1, E * U_z)},
            label="J(z)",
        ),
        Identity(
            "The same computation with vectors: (I - S D)(u(z) - u^) = A (z - z^) + S rho.",
            du,
            U * dz + C * rho,
            modulo={"H7": W, "H10": (-1, du), "U": (-1, dz), "C": (-1, rho)},
            label="u(z)",
        ),
        Identity(
            "And for the result: F(z) - F(z^) - J (z - z^) = (R D C + R) rho = G rho.",
            d_f - J * dz,
            G * rho,
            modulo={"H8": 1, "u(z)": R * D, "H4": (-1, dz), "H3": (-1, rho)},
            label="F(z)",
        ),
    ),
    source=Source("", derived=True),
    claims=(
        Claim("|J(z) - J| <= |G E U(z)| on tanh, sin and square nodes", SPACE, jacobian, sharp=True),
        Claim("|G E U(z)| <= |J(z) - J|", SPACE, jacobian_back, sharp=True),
        Claim("|F(z) - F(z^) - J (z - z^)| <= |G rho|", SPACE, remainder, sharp=True),
        Claim("|G rho| <= |F(z) - F(z^) - J (z - z^)|", SPACE, remainder_back, sharp=True),
    ),
    not_checked=(
        NotChecked(
            "the M-th power of a strictly lower block triangular matrix with M blocks is 0",
            "Horn and Johnson (2013), 0.9",
        ),
        NotChecked("the chain rule, which gives the recursions of H1 to H6", "Dieudonne (1960), 8.2.1"),
    ),
    code=(
        "fpcheck/certify/curvature.py:curvature",
        "fpcheck/check/full.py:full_lines",
    ),
    remarks=(
        "U(z) stands on both sides of U(z) = U + C E U(z); C is strictly lower block triangular too, so bounds are "
        "computed node by node, each from earlier ones.",
        "Everything linear (projections, rotary tables, masks, convolutions, fixed scales) is in A, S and R and needs "
        "no bound.",
        "The nodes may be cut as one likes; a product of two inputs is a node of its own.",
        "The first two claims and the last two are one equation each, read in both directions.",
    ),
)
