"""The mistakes a caller can make, one class each.

Every class is a :class:`FpcheckError` and also the built-in exception that fits (``ValueError``,
``TypeError``, ``FileNotFoundError``...), so that both ``except fp.FpcheckError`` and ordinary handlers work.
A message shows ``name=value``, what was expected, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AdjointConvergenceError",
    "BatchCouplingError",
    "BlockError",
    "BlockOutputError",
    "CertificateFileError",
    "CheckpointError",
    "ConfigError",
    "ConvergenceError",
    "FpcheckError",
    "GradientNotAvailableError",
    "ImpureBlockError",
    "InputError",
    "NonFiniteError",
    "OutputError",
    "TargetError",
    "ToleranceError",
    "nearest",
]


class FpcheckError(Exception):
    """Base of every error that fpcheck raises on purpose."""


class InputError(FpcheckError, ValueError):
    """An argument has a wrong type, shape, dtype or value."""


class ToleranceError(InputError):
    """A tolerance lies below what the dtype can resolve."""


class ConfigError(FpcheckError, ValueError):
    """A configuration has an unknown key, or a value outside its set or range."""


class CheckpointError(FpcheckError, ValueError):
    """A checkpoint is missing, damaged, not made of plain weights, or does not fit the configuration."""


class TargetError(FpcheckError, ValueError):
    """A ``TARGET`` on the command line names nothing that can be certified."""


class OutputError(FpcheckError, OSError):
    """A result could not be written; nothing half-written is left behind."""


class BlockError(FpcheckError, ValueError):
    """A block is not the pure map on states that the mathematics assumes."""


class BlockOutputError(BlockError):
    """A block changes the shape, dtype or device of its state, or does not return a tensor."""


class ImpureBlockError(BlockError):
    """A block answers two equal calls differently, or changes its own buffers while it runs."""


class NonFiniteError(BlockError):
    """A weight, an injection, a state or a block's output is NaN or infinite."""


class BatchCouplingError(BlockError):
    """A sample's result depends on the other samples of its batch."""


class GradientNotAvailableError(FpcheckError, RuntimeError):
    """A gradient was asked of a value that this version computes without one."""


class ConvergenceError(FpcheckError, RuntimeError):
    """At least one sample did not converge. ``error.solution`` holds the whole :class:`~fpcheck.Solution`."""

    def __init__(self, message: str, solution: object) -> None:
        super().__init__(message)
        self.solution = solution


class AdjointConvergenceError(FpcheckError, RuntimeError):
    """The linear system of a gradient was not solved. ``error.solution`` is its last state, with residuals."""

    def __init__(self, message: str, solution: object) -> None:
        super().__init__(message)
        self.solution = solution


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say which valid name is closest to ``name``, as the tail of an error message."""
    names = [str(v) for v in valid]
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names)
    return f"did you mean {close[0]!r}? Valid: {listed}" if close else f"valid: {listed}"


class UnsupportedOperatorError(BlockError):
    """A block uses an operator for which there is no sound rule; the message names it and the line that calls it."""


class CertificateFileError(FpcheckError, ValueError):
    """A certificate file is damaged, not in the documented format, or asks for what the checker does not cover."""
