"""D11: how fast a patience rule shrinks the damping step, and what a small step leaves of a gradient window."""

import sympy as sp

from proofs import (
    Claim,
    Holds,
    Hypothesis,
    Identity,
    Induction,
    Limit,
    Nonnegative,
    Reals,
    Source,
    Symbol,
    Theorem,
    ref,
)

k = sp.Symbol("k", integer=True, nonnegative=True)
m = sp.Symbol("m", integer=True, nonnegative=True)
s = sp.Symbol("s", positive=True)
s0 = sp.Symbol("s_0", positive=True)
s_min = sp.Symbol("s_min", positive=True)
decay = sp.Symbol("delta", positive=True)
P = sp.Symbol("P", integer=True, positive=True)
lam = sp.Symbol("lambda", real=True)
mu = sp.Symbol("mu", real=True)
part = sp.Symbol("w_k", real=True)
gap = sp.Symbol("gap", nonnegative=True)
count = sp.Symbol("t_m", positive=True)
at_least = sp.Symbol("g_m", integer=True, positive=True)
size = sp.Symbol("d_m", nonnegative=True)
share = sp.Symbol("w", nonnegative=True)


def _smallest_step(ctx, residuals, first, decay, patience):
    """The official rule on a sequence of residuals, all above the threshold: the step size after it."""
    best, wait, s = ctx.inf, patience, first
    for r in residuals:
        wait = patience if r < best else wait - 1
        best = min(best, r)
        if wait <= 0:
            s, wait = s * decay, patience
    return s


def slowest_decay(ctx, point):
    """After k steps the rule has decayed at most (k - 1) / patience times."""
    count = 1 + int(point["k"])
    patience = 1 + int(point["patience"])
    s = _smallest_step(ctx, point["r"][:count], ctx.mpf(1), point["decay"], patience)
    return point["decay"] ** ((count - 1) // patience), s


def window(ctx, point):
    """Through k damped steps of z <- lambda z + b: the derivative with respect to b, over the fixed point's."""
    s, lam, count = point["s"], point["lam"], 1 + int(point["k"])
    derivative = ctx.mpf(0)
    for _ in range(count):
        derivative = (1 - s) * derivative + s * (lam * derivative + 1)
    return derivative * (1 - lam), count * s * (1 - lam)


def window_exact(ctx, point):
    """That share is 1 - mu^k."""
    s, lam, count = point["s"], point["lam"], 1 + int(point["k"])
    if s * (1 - lam) > 1.9:  # a share that may be 0 or negative has no ratio to compare
        return None
    share, _ = window(ctx, point)
    return share, 1 - (1 - s * (1 - lam)) ** count


THEOREM = Theorem(
    id="D11",
    title="Patience rule: step sizes and gradient windows",
    statement=(
        r"(a) Let a solver begin with step $s_0$ and multiply it by $\delta \in (0, 1)$ whenever $P$ evaluations in a "
        r"row have not improved its best residual, which the first one always does. After $m$ decays the step is $s_0 "
        r"\delta^m$; the $m$-th decay comes after $m P + 1$ evaluations at the earliest, so that $k$ evaluations "
        r"leave a step of at least $s_0 \delta^{\lfloor (k-1)/P \rfloor}$. From $s_0 = 1$ to below $10^{-3}$ it takes "
        r"66 decays for $\delta = 0.9$, 688 for $\delta = 0.99$. (b) A gradient through the last $k$ damped steps of "
        r"constant size $s$ at a fixed point, along an eigenvalue $\lambda$ of the Jacobian, is the share $1 - (1 - "
        r"s(1 - \lambda))^k$ of the whole gradient: $1 - (1-s)^k$ for $\lambda = 0$. For real $\lambda < 1$ and $s (1 "
        r"- \lambda) \le 1$ it is at most $k s (1 - \lambda)$, which vanishes with $s$."
    ),
    plain=(
        "With patience 5 and decay 0.99, a thousand evaluations leave the step above 0.135, so a stop by step size "
        "below 1e-3 cannot happen; with decay 0.9 it can, after 331. And a short step starves a gradient window: six "
        "steps of 0.1 carry 47 % of the gradient where the Jacobian is 0."
    ),
    symbols=(
        Symbol(k, "evaluations, or steps in the window", "steps"),
        Symbol(m, "decays so far"),
        Symbol(s, "damping step", "stepsize"),
        Symbol(s0, "first damping step", "stepsize"),
        Symbol(s_min, "a step size to fall below"),
        Symbol(decay, "factor of a decay", "stepsize_decay"),
        Symbol(P, "patience", "decay_patience"),
        Symbol(lam, "eigenvalue of the Jacobian, real for the inequality"),
        Symbol(mu, "multiplier of the damped loop, 1 - s (1 - lambda)"),
        Symbol(part, "derivative through k steps"),
        Symbol(gap, "|derivative through k steps - its closed form|"),
        Symbol(count, "evaluations up to the m-th decay"),
        Symbol(at_least, "evaluations between two decays"),
        Symbol(size, "|step size after m decays - s_0 delta^m|"),
        Symbol(share, "share of the gradient that a window carries"),
    ),
    hypotheses=(
        Hypothesis(
            "H1",
            "a decay resets the patience to P, and each evaluation uses up 1 at most: gaps of at least P",
            at_least - P,
        ),
        Hypothesis("H2", "for the window: mu = 1 - s (1 - lambda)", mu - 1 + s * (1 - lam), "zero"),
        Hypothesis("H3", "for the inequality: lambda < 1", 1 - lam, "positive"),
        Hypothesis("H4", "for the inequality: s (1 - lambda) <= 1", 1 - s * (1 - lam)),
    ),
    steps=(
        # (a)
        Induction(
            "The step after m decays is s_0 delta^m: the distance between the two begins at 0 and is multiplied by "
            "delta.",
            m,
            size,
            decay * size,
            sp.Integer(0),
            sp.Integer(0),
            sp.Integer(0),
            decay * ref("IH"),
        ),
        Induction(
            "The first evaluation sets the best residual; each decay takes P further ones. So decay m comes no "
            "earlier than at m P + 1 (decay 0 stands for the first evaluation).",
            m,
            -count,
            -count - at_least,
            -m * P - 1,
            sp.Integer(-1),
            sp.Integer(0),
            ref("IH") + ref("H1"),
        ),
        Holds("Decay 0.9: 65 decays are not enough,", sp.Rational(9, 10) ** 65, ">", sp.Rational(1, 1000)),
        Holds(
            "66 are: after at least 331 evaluations with patience 5.",
            sp.Rational(9, 10) ** 66,
            "<",
            sp.Rational(1, 1000),
        ),
        Holds("Decay 0.99: 687 decays are not enough,", sp.Rational(99, 100) ** 687, ">", sp.Rational(1, 1000)),
        Holds("688 are.", sp.Rational(99, 100) ** 688, "<", sp.Rational(1, 1000)),
        Holds("1000 evaluations with patience 5 allow 199 decays.", 199 * 5 + 1, "<=", sp.Integer(1000)),
        Holds("Not 200.", 200 * 5 + 1, ">", sp.Integer(1000)),
        Holds("They leave a step above 0.135.", sp.Rational(99, 100) ** 199, ">", sp.Rational(135, 1000)),
        # (b)
        Identity(
            "One damped step of the derivative, (1-s) w + s (lambda w + 1), is mu w + s.",
            (1 - s) * part + s * (lam * part + 1),
            mu * part + s,
            modulo={"H2": -part},
        ),
        Identity(
            "The closed form (1 - mu^k) / (1 - lambda) obeys the same recursion, and begins at 0.",
            (1 - (1 - s * (1 - lam)) ** (k + 1)) / (1 - lam),
            (1 - s * (1 - lam)) * (1 - (1 - s * (1 - lam)) ** k) / (1 - lam) + s,
        ),
        Identity("It begins at 0.", ((1 - (1 - s * (1 - lam)) ** k) / (1 - lam)).subs(k, 0), sp.Integer(0)),
        Induction(
            "So the derivative is the closed form: their distance begins at 0 and is multiplied by |mu|.",
            k,
            gap,
            sp.Abs(mu) * gap,
            sp.Integer(0),
            sp.Integer(0),
            sp.Integer(0),
            sp.Abs(mu) * ref("IH"),
        ),
        Identity(
            "The whole gradient is that of the fixed point of w -> mu w + s: 1 / (1 - lambda). The share is 1 - mu^k.",
            (1 - s * (1 - lam)) / (1 - lam) + s,
            1 / (1 - lam),
        ),
        Nonnegative(
            "Under H4 the share w stays non-negative: the next one is mu w + s (1 - lambda).",
            (1 - s * (1 - lam)) * share + s * (1 - lam),
            ref("H4") * share + s * ref("H3"),
        ),
        Induction(
            "And each step adds at most s (1 - lambda) to it.",
            k,
            share,
            (1 - s * (1 - lam)) * share + s * (1 - lam),
            k * s * (1 - lam),
            sp.Integer(0),
            sp.Integer(0),
            ref("IH") + s * ref("H3") * share,
        ),
        Limit("With the step the share vanishes.", 1 - (1 - s) ** 6, s, sp.Integer(0), sp.Integer(0)),
        Holds("Six steps of 0.1 carry 47 %.", 1 - sp.Rational(9, 10) ** 6, "==", sp.Rational(468559, 1000000)),
    ),
    source=Source("", derived=True, place="for the rule of the official FPRM code"),
    claims=(
        Claim(
            "no step size below s_0 delta^floor((k-1)/P)",
            (
                Reals("r", 0.2, 1, 24),
                Reals("decay", 0.5, 0.999),
                Reals("patience", 0, 7.999),
                Reals("k", 0, 23.999),
            ),
            slowest_decay,
            sharp=True,
            near=({"r": [0.2] + [0.5] * 23, "decay": 0.9, "patience": 4.5, "k": 20.5},),
        ),
        Claim(
            "share of the gradient <= k s (1 - lambda)",
            (Reals("s", 1e-6, 0.3, log=True), Reals("lam", -2, 0.99), Reals("k", 0, 9.999)),
            window,
            sharp=True,
        ),
        Claim(
            "share of the gradient is 1 - mu^k",
            (Reals("s", 1e-3, 1, log=True), Reals("lam", -2, 0.99), Reals("k", 0, 9.999)),
            window_exact,
            sharp=True,
        ),
    ),
    code=("fpcheck/solve/official.py:fpopt_step",),
    remarks=(
        "Below the residual threshold the official patience runs on without a decay; the first residual above it then "
        "decays at once. The gap to the decay before is still at least P.",
        "In bfloat16 the step itself is rounded: factors above 0.998 never shrink it.",
        "Window and decay together: a loop that the rule has damped to s trains on a share of about k s of its "
        "gradient.",
    ),
)
