"""Sound certificates: everything here is a bound, rounding included, or it is not here.

`certify` proves that a sample's loop has an attracting fixed point near a state; `enclose` gives balls that contain a
step's value and Jacobian, for any block made of covered operators.
"""

from fpcheck.certify.balls import Ball
from fpcheck.certify.certificate import Certificate, Verdict, Witness
from fpcheck.certify.decision import Decisions, decisions
from fpcheck.certify.enclosure import Enclosure, enclose
from fpcheck.certify.globally import GlobalCertificate, GlobalVerdict, certify_global
from fpcheck.certify.metric import DualStein, Metric, diagonal, dual_stein, euclidean, per_token, stein
from fpcheck.certify.norms import norm_bound
from fpcheck.certify.progress import steps_to_decision, steps_to_tolerance
from fpcheck.certify.record import save
from fpcheck.certify.roundings import Arithmetic
from fpcheck.certify.search import certify
from fpcheck.certify.settings import Fast, Sharp
from fpcheck.certify.statistical import Share, share_bound
from fpcheck.certify.study import Study
from fpcheck.certify.violation import Violation, violation

__all__ = [
    "Arithmetic",
    "Ball",
    "Certificate",
    "Decisions",
    "DualStein",
    "Enclosure",
    "Fast",
    "GlobalCertificate",
    "GlobalVerdict",
    "Metric",
    "Share",
    "Sharp",
    "Study",
    "Verdict",
    "Violation",
    "Witness",
    "certify",
    "certify_global",
    "decisions",
    "diagonal",
    "dual_stein",
    "enclose",
    "euclidean",
    "norm_bound",
    "per_token",
    "save",
    "share_bound",
    "stein",
    "steps_to_decision",
    "steps_to_tolerance",
    "violation",
]
