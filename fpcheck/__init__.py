"""fpcheck: does a looped transformer settle, on what, and how fast?

Everything public is here; the rest may change without notice. See docs/api.md for one line on each name.
"""

from fpcheck import blocks, tasks
from fpcheck._version import __version__ as __version__
from fpcheck.assess import assess
from fpcheck.blocks import load, shipped_models
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
)
from fpcheck.loop import Loop
from fpcheck.solve import Anderson, Damped, OfficialFPOPT, Picard, Solution, fixed_point
from fpcheck.spectral import Estimate, Regime, Spectrum, jacobian, measured_rate, spectrum
from fpcheck.status import Status
from fpcheck.target import Target

__all__ = [
    "Anderson",
    "BatchCouplingError",
    "BlockError",
    "BlockOutputError",
    "CheckpointError",
    "ConfigError",
    "ConvergenceError",
    "Damped",
    "Estimate",
    "FpcheckError",
    "GradientNotAvailableError",
    "ImpureBlockError",
    "InputError",
    "Loop",
    "NonFiniteError",
    "OfficialFPOPT",
    "OutputError",
    "Picard",
    "Regime",
    "Solution",
    "Spectrum",
    "Status",
    "Target",
    "TargetError",
    "ToleranceError",
    "assess",
    "blocks",
    "fixed_point",
    "jacobian",
    "load",
    "measured_rate",
    "shipped_models",
    "spectrum",
    "tasks",
]
