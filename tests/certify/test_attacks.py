"""No attack beats any claim of a certificate, and the attacks are strong enough to see a claim that is a little false.

tests/attacks.py searches in float64 and judges at 300 bits, with zero slack. Here on blocks of some 16 numbers, within
seconds; ``python tests/bench/certify_soundness.py`` is the same at any size.
"""

from __future__ import annotations

import dataclasses
from functools import cache

import attacks
import exact_blocks
import pytest
import torch
from attacks import Subject, Tally
from flint import arb
from torch import Tensor

from fpcheck.certify import Certificate, Verdict, certify, enclose

D = torch.float64
LEAST = {"tanh": 0.8, "encoder, relu": 0.05, "fprm, cold softmax, learned positions": 0.1}
QUICK = ["tanh, damped", "encoder, relu", "fprm, plain", "fprm, conv2d, puzzle token"]


@cache
def known(name: str) -> tuple[Subject, Certificate, Tensor]:
    """A subject, its certificate, and about its Jacobian."""
    subject = attacks.SUBJECTS[name]()
    cert = certify(subject.loop, subject.state, readout=subject.readout)
    assert cert.verdict is Verdict.PROVED_ATTRACTING, cert.reason
    return subject, cert, enclose(subject.loop, cert.centre).jacobian


def attacked(name: str, count: int, rounds: int, seed: int = 0, **false: float) -> dict[str, Tally]:
    """With ``false`` values in place of the certificate's own."""
    subject, cert, jacobian = known(name)
    cert = dataclasses.replace(cert, **false)
    return attacks.attack_certificate(cert, subject, jacobian, count=count, rounds=rounds, seed=seed)


@cache
def quick(name: str) -> dict[str, Tally]:
    return attacked(name, count=4, rounds=3)


def survives(claims: dict[str, Tally]) -> None:
    print({claim: tally.worst for claim, tally in claims.items()})
    for claim, tally in claims.items():
        assert tally.worst <= 1, claim
    # Where an attack cannot but come near the bound, it does: else the search is broken, not the bound proved.
    assert claims["rate at the centre"].worst > 0.99
    # A residual of a few units in the last place shares its bound with as many roundings.
    assert claims["residual"].worst > 0.25
    assert claims["change of the Jacobian"].worst > 1 / 50


@pytest.mark.parametrize("name", QUICK)
def test_no_claim_of_a_certificate_is_beaten(name):
    survives(quick(name))


@pytest.mark.parametrize("name", ["tanh", "encoder, relu", "fprm, cold softmax, learned positions"])
def test_in_small_balls_the_change_of_the_jacobian_is_nearly_attained(name):
    # Where the first order rules: what a factor in any share would have to hide behind is small there.
    subject, cert, _ = known(name)
    arena = attacks.Arena(subject.loop, cert.centre, cert.metric)
    worst = 0.0
    for radius in (cert.radius / 100, cert.radius / 10):
        Z1, kappa = attacks.bounds_of(subject.loop, cert.centre, cert.metric, radius)
        begin = attacks.starts(arena, radius, 6, torch.Generator().manual_seed(1))
        found, _ = attacks.ascend(arena, begin, radius, rounds=4, less=1.0)
        with exact_blocks.precision():
            judge = attacks.Judge(subject.exact, cert.centre, cert.metric)
            change = judge.change(found.delta * attacks.INSIDE, found.direction)
            worst = max(worst, attacks.share(change / (arb(kappa) - arb(Z1)), 1.0))
    print(name, worst)
    assert worst <= 1
    assert worst > LEAST[name]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", attacks.SUBJECTS)
def test_longer_attacks_beat_nothing_either(name, seed):
    survives(attacked(name, count=24, rounds=12, seed=seed + 1))


def test_a_ball_ends_before_the_rate_reaches_1():
    subject, cert, _ = known("encoder, relu")
    arena = attacks.Arena(subject.loop, cert.centre, cert.metric)
    generator = torch.Generator().manual_seed(0)
    reach, found = attacks.escape(arena, cert.radius, count=4, rounds=3, generator=generator)
    with exact_blocks.precision():
        judge = attacks.Judge(subject.exact, cert.centre, cert.metric)
        # The finding is true: a little further out lie two points that the step takes further apart.
        assert judge.rate(found.delta, found.direction, reach * (1 + 1e-9)) >= 1 - 2.0**-30
    assert cert.radius < reach < 100 * cert.radius


# Partners: the same certificate with one number made false, and the claim that must fall.
FALSE = {
    "residual": ("residual", lambda c, found: {"residual": c.residual * found * 0.99}),
    "rate at the centre": ("rate at the centre", lambda c, found: {"centre_rate": c.centre_rate * found * 0.999}),
    "rate over the ball": ("rate over the ball", lambda c, found: {"rate": c.rate * found * 0.999}),
    "error": ("error bound", lambda c, found: {"error_bound": c.error_bound * found * 0.99}),
    "rate in the long run": ("rate in the long run", lambda c, found: {"error_rate": c.error_rate * 0.999}),
    "change": (
        "change of the Jacobian",
        lambda c, found: {"rate": c.centre_rate + (c.rate - c.centre_rate) * found * 0.99},
    ),
    "norm of the metric": (
        "Euclidean ball inside",
        lambda c, found: {"metric": dataclasses.replace(c.metric, norm=c.metric.norm * (1 - 1e-9))},
    ),
    "norm of its inverse": (
        "Euclidean error bound",
        lambda c, found: {"metric": dataclasses.replace(c.metric, inverse_norm=c.metric.inverse_norm * (1 - 1e-9))},
    ),
    "decisions": (
        "decisions",
        lambda c, found: {"decisions": dataclasses.replace(c.decisions, radius=c.decisions.radius * (1 + 1e-9))},
    ),
}


@pytest.mark.parametrize("what", FALSE)
def test_the_partner_a_number_that_is_a_little_false_is_refuted(what):
    name = "fprm, plain"
    claim, falsified = FALSE[what]
    cert = known(name)[1]
    true = quick(name)[claim].worst
    assert true <= 1
    assert attacked(name, count=4, rounds=3, **falsified(cert, true))[claim].worst > 1


def test_the_partner_a_radius_beyond_what_the_rate_allows_is_refuted():
    # Ten times the ball, with the same rate claimed over it.
    cert = known("encoder, relu")[1]
    claims = attacked("encoder, relu", count=4, rounds=3, radius=20 * cert.radius)
    assert claims["rate over the ball"].worst > 1


def test_a_point_outside_of_the_ball_is_no_evidence():
    subject, cert, _ = known("tanh, damped")
    with exact_blocks.precision():
        judge = attacks.Judge(subject.exact, cert.centre, cert.metric)
        far = judge.offset(torch.full((5,), cert.radius, dtype=D))
        with pytest.raises(ValueError, match="not in the ball"):
            judge.ratio(far, -far, cert.radius)
