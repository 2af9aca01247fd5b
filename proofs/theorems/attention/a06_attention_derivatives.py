"""A6: the derivatives of softmax-weighted values are means, covariances and third cumulants."""

import sympy as sp

from proofs import Hypothesis, Identity, Source, Summed, Symbol, Theorem, Totals

t = sp.Symbol("t", real=True)
s_j = sp.Symbol("s_j", real=True)
R = sp.Symbol("R", positive=True)
R_a = sp.Symbol("R_a", real=True)

p = sp.Symbol("p", positive=True)
v = sp.Symbol("v", real=True)
v_a = sp.Symbol("v_a", real=True)
v_b = sp.Symbol("v_b", real=True)
v_ab = sp.Symbol("v_ab", real=True)
s_a = sp.Symbol("s_a", real=True)
s_b = sp.Symbol("s_b", real=True)
s_ab = sp.Symbol("s_ab", real=True)
p_a = sp.Symbol("p_a", real=True)
p_b = sp.Symbol("p_b", real=True)
g_a = sp.Symbol("g_a", real=True)
g_ab = sp.Symbol("g_ab", real=True)
h_b = sp.Symbol("h_b", real=True)
c_2 = sp.Symbol("c_2", real=True)
c_3 = sp.Symbol("c_3", real=True)

o = sp.Symbol("o", real=True)
o_a = sp.Symbol("o_a", real=True)
o_ab = sp.Symbol("o_ab", real=True)
m_a = sp.Symbol("m_a", real=True)
m_b = sp.Symbol("m_b", real=True)
m_ab = sp.Symbol("m_ab", real=True)
k2 = sp.Symbol("kappa_2", real=True)
k3 = sp.Symbol("kappa_3", real=True)


def mean(name):
    """The name of a mean over the keys."""
    return sp.Symbol(f"E_{{{name}}}", real=True)


E_va, E_vb, E_vab, E_sab = mean("v_a"), mean("v_b"), mean("v_ab"), mean("s_ab")
E_vsa, E_vsb, E_vsab = mean("v s_a"), mean("v s_b"), mean("v s_ab")
E_vasb, E_vbsa = mean("v_a s_b"), mean("v_b s_a")
E_sasb, E_vsasb = mean("s_a s_b"), mean("v s_a s_b")

KEYS = Totals(
    (p, v, v_a, v_b, v_ab, s_a, s_b, s_ab, g_a, g_ab, h_b, c_2, c_3),
    {
        p: 1,
        p * v: o,
        p * v_a: E_va,
        p * v_b: E_vb,
        p * v_ab: E_vab,
        p * s_a: m_a,
        p * s_b: m_b,
        p * s_ab: E_sab,
        p * v * s_a: E_vsa,
        p * v * s_b: E_vsb,
        p * v * s_ab: E_vsab,
        p * v_a * s_b: E_vasb,
        p * v_b * s_a: E_vbsa,
        p * s_a * s_b: E_sasb,
        p * v * s_a * s_b: E_vsasb,
        g_a: o_a,
        g_ab: o_ab,
        h_b: m_ab,
        c_2: k2,
        c_3: k3,
    },
)

own = sp.exp(s_j + t * s_a)
weight = own / (own + R + t * R_a)
mean_slope = (sp.exp(s_j) * s_a + R_a) / (sp.exp(s_j) + R)
first_term = p * v_a + p * v * (s_a - m_a)
second_term = (
    p * v_ab + p * v_a * (s_b - m_b) + p * v_b * (s_a - m_a) + p * v * (s_a - m_a) * (s_b - m_b) + p * v * (s_ab - m_ab)
)

THEOREM = Theorem(
    id="A6",
    title="Derivatives of attention as cumulants",
    statement=(
        r"Let $o = \sum_j p_j v_j$ with $p = \mathrm{softmax}(s)$, where $s_j$ and $v_j$ are smooth functions of a "
        r"state and indices $a, b$ mean derivatives along two directions. With means $E$, covariances $\kappa_2(x, "
        r"y) = E[(x - E x)(y - E y)]$ and third cumulants $\kappa_3(x, y, z) = E[(x - E x)(y - E y)(z - E z)]$ over "
        r"the keys under $p$: $p_{j,a} = p_j (s_{j,a} - E s_a)$, $o_a = E v_a + \kappa_2(v, s_a)$ and $o_{ab} = E "
        r"v_{ab} + \kappa_2(v_a, s_b) + \kappa_2(v_b, s_a) + \kappa_2(v, s_{ab}) + \kappa_3(v, s_a, s_b)$, for any "
        r"number of keys. If scores and values are affine in the state, the terms with the index $ab$ vanish."
    ),
    plain=(
        "How an attention output changes: the mean change of the values, plus the covariance of values and score "
        "changes. The second derivative has covariances and one third cumulant. Bounds on attention are bounds on "
        "these."
    ),
    symbols=(
        Symbol(t, "position along the first direction"),
        Symbol(s_j, "score of one key"),
        Symbol(R, "sum of the other keys' exponentials"),
        Symbol(R_a, "its derivative, the sum of exponential times s_a over the other keys"),
        Symbol(p, "probability of a key"),
        Symbol(v, "value of a key, one component"),
        Symbol(v_a, "its derivative along the first direction"),
        Symbol(v_b, "its derivative along the second direction"),
        Symbol(v_ab, "its second derivative along both"),
        Symbol(s_a, "derivative of the key's score along the first direction"),
        Symbol(s_b, "derivative of the key's score along the second direction"),
        Symbol(s_ab, "its second derivative along both"),
        Symbol(p_a, "derivative of the probability along the first direction"),
        Symbol(p_b, "derivative of the probability along the second direction"),
        Symbol(g_a, "derivative of the key's term p v along the first direction"),
        Symbol(g_ab, "derivative of g_a along the second direction"),
        Symbol(h_b, "derivative of p s_a along the second direction"),
        Symbol(c_2, "the key's term p (v - o)(s_a - m_a) of the covariance"),
        Symbol(c_3, "the key's term p (v - o)(s_a - m_a)(s_b - m_b) of the third cumulant"),
        Symbol(o, "output, the mean of v"),
        Symbol(o_a, "its derivative along the first direction, the sum of g_a"),
        Symbol(o_ab, "its second derivative, the sum of g_ab"),
        Symbol(m_a, "mean of s_a"),
        Symbol(m_b, "mean of s_b"),
        Symbol(m_ab, "derivative of m_a along the second direction, the sum of h_b"),
        Symbol(k2, "covariance of v and s_a"),
        Symbol(k3, "third cumulant of v, s_a and s_b"),
        Symbol(E_va, "mean of v_a"),
        Symbol(E_vb, "mean of v_b"),
        Symbol(E_vab, "mean of v_ab"),
        Symbol(E_sab, "mean of s_ab"),
        Symbol(E_vsa, "mean of v s_a"),
        Symbol(E_vsb, "mean of v s_b"),
        Symbol(E_vsab, "mean of v s_ab"),
        Symbol(E_vasb, "mean of v_a s_b"),
        Symbol(E_vbsa, "mean of v_b s_a"),
        Symbol(E_sasb, "mean of s_a s_b"),
        Symbol(E_vsasb, "mean of v s_a s_b"),
    ),
    hypotheses=(
        Hypothesis("H1", "p_a = p (s_a - m_a), as step 'weight' shows", p_a - p * (s_a - m_a), "zero"),
        Hypothesis("H2", "p_b = p (s_b - m_b), likewise", p_b - p * (s_b - m_b), "zero"),
        Hypothesis("H3", "product rule: g_a = p_a v + p v_a", g_a - p_a * v - p * v_a, "zero"),
        Hypothesis("H4", "product rule: h_b = p_b s_a + p s_ab", h_b - p_b * s_a - p * s_ab, "zero"),
        Hypothesis(
            "H5",
            "product rule for g_a = p v_a + p v (s_a - m_a), along the second direction",
            g_ab - (p_b * v_a + p * v_ab + (p_b * v + p * v_b) * (s_a - m_a) + p * v * (s_ab - m_ab)),
            "zero",
        ),
        Hypothesis("H6", "c_2 = p (v - o)(s_a - m_a)", c_2 - p * (v - o) * (s_a - m_a), "zero"),
        Hypothesis(
            "H7", "c_3 = p (v - o)(s_a - m_a)(s_b - m_b)", c_3 - p * (v - o) * (s_a - m_a) * (s_b - m_b), "zero"
        ),
    ),
    steps=(
        Identity(
            "Quotient rule for one key's probability, whatever the other keys: p times the score's slope less its "
            "mean.",
            sp.diff(weight, t).subs(t, 0),
            weight.subs(t, 0) * (s_a - mean_slope),
            label="weight",
        ),
        Identity("The derivative of one key's term.", g_a, first_term, {"H3": sp.Integer(1), "H1": v}, label="term"),
        Summed("Summed over the keys.", "term", KEYS, o_a - (E_va + E_vsa - m_a * o), label="sum"),
        Summed(
            "The mean product of deviations is the mean product less the product of means.",
            "H6",
            KEYS,
            k2 - (E_vsa - o * m_a),
            label="covariance",
        ),
        Identity(
            "So the first derivative is the mean of v_a plus the covariance of v and s_a.",
            o_a,
            E_va + k2,
            {"sum": sp.Integer(1), "covariance": sp.Integer(-1)},
            label="first",
        ),
        Identity(
            "The mean slope changes in turn: one key's term.",
            h_b,
            p * s_ab + p * s_a * (s_b - m_b),
            {"H4": 1, "H2": s_a},
            "h",
        ),
        Summed("Summed over the keys.", "h", KEYS, m_ab - (E_sab + E_sasb - m_a * m_b), label="mean slope"),
        Identity(
            "The second derivative of one key's term.",
            g_ab,
            second_term,
            {"H5": sp.Integer(1), "H2": v_a + v * (s_a - m_a)},
            label="second term",
        ),
        Summed(
            "Summed over the keys.",
            "second term",
            KEYS,
            o_ab
            - (
                E_vab
                + (E_vasb - E_va * m_b)
                + (E_vbsa - E_vb * m_a)
                + (E_vsasb - m_a * E_vsb - m_b * E_vsa + m_a * m_b * o)
                + (E_vsab - m_ab * o)
            ),
            label="second sum",
        ),
        Summed(
            "The mean product of three deviations, multiplied out.",
            "H7",
            KEYS,
            k3 - (E_vsasb - o * E_sasb - m_a * E_vsb - m_b * E_vsa + 2 * o * m_a * m_b),
            label="third cumulant",
        ),
        Identity(
            "Insert the mean slope's derivative: three covariances and the third cumulant remain.",
            o_ab,
            E_vab + (E_vasb - E_va * m_b) + (E_vbsa - E_vb * m_a) + (E_vsab - o * E_sab) + k3,
            {"second sum": sp.Integer(1), "mean slope": -o, "third cumulant": sp.Integer(-1)},
            label="second",
        ),
    ),
    source=Source("", derived=True, place="cumulants of an exponential family"),
    equation=True,
    uses=("S1",),
    remarks=(
        "The state enters only through scores and values: causal masks, positions and several heads need no other "
        "formula, with sums over the keys that a query may attend to (S4).",
        "A shift of all scores of a row by a common number, even one that depends on the state, changes nothing.",
    ),
)
