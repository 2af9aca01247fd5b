"""Gradients through fixed points."""

from fpcheck.adjoint.adjoints import AbstractAdjoint, Implicit, OneStep, Phantom, TruncatedWindow, Unrolled
from fpcheck.adjoint.error import (
    EstimatedConstants,
    GradientErrorBound,
    GradientErrorEstimate,
    ProvedConstants,
    Sensitivity,
    gradient_error,
)
from fpcheck.adjoint.fixed_point import FixedPoint, fixed_point
from fpcheck.adjoint.linear import GMRES, AbstractLinearSolver, DirectSolve, LinearSolution, Neumann

__all__ = [
    "GMRES",
    "AbstractAdjoint",
    "AbstractLinearSolver",
    "DirectSolve",
    "EstimatedConstants",
    "FixedPoint",
    "GradientErrorBound",
    "GradientErrorEstimate",
    "Implicit",
    "LinearSolution",
    "Neumann",
    "OneStep",
    "Phantom",
    "ProvedConstants",
    "Sensitivity",
    "TruncatedWindow",
    "Unrolled",
    "fixed_point",
    "gradient_error",
]
