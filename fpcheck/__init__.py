"""fpcheck: does a looped transformer settle, on what, and how fast?

Everything public is here; the rest may change without notice. See docs/api.md for one line on each name.
"""

from fpcheck import blocks, spectral, tasks
from fpcheck._version import __version__ as __version__
from fpcheck.assess import assess
from fpcheck.blocks import load, shipped_models
from fpcheck.certify import Certificate, Verdict, certify, enclose
from fpcheck.errors import (
    BatchCouplingError,
    BlockError,
    BlockOutputError,
    CheckpointError,
    ConfigError,
    ConvergenceError,
    FpcheckError,
    GradientNotAvailableError,
    ImpureBlockError,
    InputError,
    NonFiniteError,
    OutputError,
    TargetError,
    ToleranceError,
    UnsupportedOperatorError,
)
from fpcheck.loop import Loop
from fpcheck.solve import Anderson, Damped, OfficialFPOPT, Picard, Solution, fixed_point
from fpcheck.spectral import (
    Auto,
    Blocks,
    Dense,
    Diagnosis,
    Estimate,
    Finding,
    JacobianOperator,
    Krylov,
    Multistart,
    ProbabilisticBound,
    Regime,
    Spectrum,
    diagnose,
    jacobian,
    measured_rate,
    multistart,
    spectrum,
)
from fpcheck.status import Status
from fpcheck.survey import survey
from fpcheck.target import Target

__all__ = [
    "Anderson",
    "Auto",
    "BatchCouplingError",
    "BlockError",
    "BlockOutputError",
    "Blocks",
    "Certificate",
    "CheckpointError",
    "ConfigError",
    "ConvergenceError",
    "Damped",
    "Dense",
    "Diagnosis",
    "Estimate",
    "Finding",
    "FpcheckError",
    "GradientNotAvailableError",
    "ImpureBlockError",
    "InputError",
    "JacobianOperator",
    "Krylov",
    "Loop",
    "Multistart",
    "NonFiniteError",
    "OfficialFPOPT",
    "OutputError",
    "Picard",
    "ProbabilisticBound",
    "Regime",
    "Solution",
    "Spectrum",
    "Status",
    "Target",
    "TargetError",
    "ToleranceError",
    "UnsupportedOperatorError",
    "Verdict",
    "assess",
    "blocks",
    "certify",
    "diagnose",
    "enclose",
    "fixed_point",
    "jacobian",
    "load",
    "measured_rate",
    "multistart",
    "shipped_models",
    "spectral",
    "spectrum",
    "survey",
    "tasks",
]
