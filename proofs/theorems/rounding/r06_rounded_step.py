"""R6: the difference of a computed step from the exact one, in terms of what each operator loses."""

import sympy as sp

from proofs import Claim, Hypothesis, Identity, NotChecked, Reals, Source, Symbol, Theorem


def _matrix(name):
    return sp.Symbol(name, commutative=False)


S, R, D, P, V, C, G, K, W = map(_matrix, ("S", "R", "D", "P", "V", "C", "G", "K", "W"))
du, d_f, sigma, eta = map(_matrix, ("u", "F", "sigma", "eta"))


def _run(ctx, point):
    """Nodes sine and tanh, the second fed by both; errors at the inputs, at the outputs and at the result."""
    a, s, r, e = point["a"], point["s"], point["r"], point["e"]

    def step(z, errors):
        u_1 = a[0] * z + errors[0]
        y_1 = ctx.sin(u_1) + errors[1]
        u_2 = a[1] * z + s * y_1 + errors[2]
        y_2 = ctx.tanh(u_2) + errors[3]
        return u_1, u_2, r[0] * y_1 + r[1] * y_2 + errors[4]

    exact, computed = step(point["z"], [ctx.mpf(0)] * 5), step(point["z"], e)
    # Derivatives at another state, the centre.
    u_1, u_2, _ = step(point["c"], [ctx.mpf(0)] * 5)
    d = ctx.cos(u_1), 1 - ctx.tanh(u_2) ** 2
    moves = computed[0] - exact[0], computed[1] - exact[1]
    sigma_1 = ctx.sin(computed[0]) - ctx.sin(exact[0]) - d[0] * moves[0]
    sigma_2 = ctx.tanh(computed[1]) - ctx.tanh(exact[1]) - d[1] * moves[1]
    g_1, g_2 = r[0] + r[1] * d[1] * s, r[1]
    first = g_1 * (d[0] * e[0] + e[1]) + g_2 * (d[1] * e[2] + e[3]) + e[4]
    inputs = s * (sigma_1 + d[0] * e[0]) + s * e[1] + e[2]
    return (computed[2] - exact[2], g_1 * sigma_1 + g_2 * sigma_2 + first), (moves[1], inputs)


def result(ctx, point):
    return tuple(map(abs, _run(ctx, point)[0]))


def result_back(ctx, point):
    return tuple(map(abs, reversed(_run(ctx, point)[0])))


def inputs(ctx, point):
    return tuple(map(abs, _run(ctx, point)[1]))


def inputs_back(ctx, point):
    return tuple(map(abs, reversed(_run(ctx, point)[1])))


SPACE = (
    Reals("a", -2, 2, 2),
    Reals("s", -2, 2),
    Reals("r", -2, 2, 2),
    Reals("e", -0.5, 0.5, 5),
    Reals("z", -1, 1),
    Reals("c", -1, 1),
)

THEOREM = Theorem(
    id="R6",
    title="A rounded step, by what each operator loses",
    statement=(
        r"Let $u = A z + S y + a$, $y_l = \varphi_l(u_l)$, $F = A_F z + R y + a_F$ be a graph of nodes as in Q1, "
        r"with $D$, $C = S + S D C$ and $G = R + R D C$ its derivatives at some centre. Let a computed step with "
        r"the same $z$ satisfy $\tilde u = A z + S \varphi(\tilde u) + a + P \eta$ and $\tilde F = A_F z + R "
        r"\varphi(\tilde u) + a_F + V \eta$, where $\eta$ are the errors of all operators and $P$, $V$ carry them "
        r"linearly to the inputs of the nodes and to the result. With $\sigma = \varphi(\tilde u) - \varphi(u) - D"
        r" (\tilde u - u)$ and $K = V + (R + R D C) D P$, the derivative of the result by the errors at the "
        r"centre, exactly $\tilde F - F = G \sigma + K \eta$ and $\tilde u - u = P \eta + C (\sigma + D P \eta)$."
    ),
    plain=(
        "The rounding of a whole loop step is the sum of what each operator loses, carried to the result by "
        "derivatives at one centre, plus what the nodes bend. Nothing is multiplied along the layers."
    ),
    symbols=(
        Symbol(S, "links from node outputs to node inputs, strictly lower block triangular"),
        Symbol(R, "links from node outputs to F"),
        Symbol(D, "the nodes' own Jacobians at the centre, block diagonal"),
        Symbol(P, "from errors to node inputs, through linear maps only"),
        Symbol(V, "from errors to the result, through linear maps only"),
        Symbol(C, "total derivative of node inputs by node outputs at the centre", "C"),
        Symbol(G, "total derivative of F by node outputs at the centre", "G"),
        Symbol(K, "total derivative of F by the errors at the centre"),
        Symbol(W, "inverse of I - S D (Q1)"),
        Symbol(du, "the vector u~ - u"),
        Symbol(d_f, "the vector F~ - F"),
        Symbol(sigma, "what the nodes' outputs move beyond D (u~ - u)", "sigma"),
        Symbol(eta, "the vector of the operators' errors"),
    ),
    hypotheses=(
        Hypothesis("H1", "C = S + S D C", C - S - S * D * C, "zero"),
        Hypothesis("H2", "G = R + R D C", G - R - R * D * C, "zero"),
        Hypothesis("H3", "K = V + G D P", K - V - G * D * P, "zero"),
        Hypothesis(
            "H4",
            "subtract the equations for u~ and u, with phi(u~) - phi(u) = D (u~ - u) + sigma",
            du - S * (D * du + sigma) - P * eta,
            "zero",
        ),
        Hypothesis("H5", "the same for the result", d_f - R * (D * du + sigma) - V * eta, "zero"),
        Hypothesis(
            "H6", "W = (I - S D)^-1 exists, as S D is strictly lower block triangular", W * (1 - S * D) - 1, "zero"
        ),
    ),
    steps=(
        Identity("C = W S.", C, W * S, modulo={"H1": W, "H6": (-1, C)}, label="C"),
        Identity("W = I + C D, by multiplying I - S D.", W, 1 + C * D, modulo={"H6": 1, "C": (-1, D)}, label="W"),
        Identity(
            "Solve for the inputs: u~ - u = W S sigma + W P eta.",
            du,
            W * S * sigma + W * P * eta,
            modulo={"H4": W, "H6": (-1, du)},
            label="solved",
        ),
        Identity(
            "In terms of the centre's derivatives.",
            du,
            P * eta + C * (sigma + D * P * eta),
            modulo={"solved": 1, "C": (-1, sigma), "W": (1, P * eta)},
            label="inputs",
        ),
        Identity(
            "The result: R D (u~ - u) + R sigma + V eta = (R D C + R)(sigma + D P eta) + V eta.",
            d_f,
            G * sigma + K * eta,
            modulo={"H5": 1, "inputs": R * D, "H2": (-1, sigma + D * P * eta), "H3": (-1, eta)},
            label="result",
        ),
    ),
    source=Source("", derived=True, place="running error analysis as in Wilkinson (1963), with exact remainders"),
    claims=(
        Claim("|F~ - F| <= |G sigma + K eta| on a sine and a tanh node", SPACE, result, sharp=True),
        Claim("|G sigma + K eta| <= |F~ - F|", SPACE, result_back, sharp=True),
        Claim("|u~ - u| <= |P eta + C (sigma + D P eta)|", SPACE, inputs, sharp=True),
        Claim("|P eta + C (sigma + D P eta)| <= |u~ - u|", SPACE, inputs_back, sharp=True),
    ),
    not_checked=(
        NotChecked(
            "the M-th power of a strictly lower block triangular matrix with M blocks is 0",
            "Horn and Johnson (2013), 0.9",
        ),
    ),
    code=("fpcheck/certify/running.py:running",),
    uses=("Q1",),
    remarks=(
        "sigma_l is the integral of (D phi_l - D_l)(u~_l - u_l) between the exact and the computed inputs: at most the "
        "node's bound e on the change of its Jacobian, times how far its inputs are off.",
        "An operator inside a node (a square in a norm) counts with the node's own error, not through K.",
        "Two claims each are one equation, read in both directions.",
    ),
)
