"""Sound certificates: everything here is a bound, rounding included, or it is not here.

`certify` proves that a sample's loop has an attracting fixed point near a state; `enclose` gives balls that contain a
step's value and Jacobian, for any block made of covered operators.
"""

from fpcheck.certify.balls import Ball
from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.decision import Decisions, decisions
from fpcheck.certify.enclosure import Enclosure, enclose
from fpcheck.certify.metric import Metric, dual_stein, euclidean, stein
from fpcheck.certify.norms import norm_bound
from fpcheck.certify.search import certify

__all__ = [
    "Ball",
    "Certificate",
    "Decisions",
    "Enclosure",
    "Metric",
    "Verdict",
    "certify",
    "decisions",
    "dual_stein",
    "enclose",
    "euclidean",
    "norm_bound",
    "stein",
]
