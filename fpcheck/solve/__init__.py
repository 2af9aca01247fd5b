"""Solvers for z = F(z; x), batched, with a status per sample."""

from fpcheck.solve.base import AbstractSolver
from fpcheck.solve.official import OfficialFPOPT
from fpcheck.solve.solution import Solution
from fpcheck.solve.solvers import Anderson, Damped, Picard

__all__ = ["AbstractSolver", "Anderson", "Damped", "OfficialFPOPT", "Picard", "Solution"]
