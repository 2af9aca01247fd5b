"""Estimates of what a loop's Jacobian does: eigenvalues, norms, damping, regime, measured rates."""

from fpcheck.spectral.approach import approach_rate
from fpcheck.spectral.damping import best_step, critical_step, damped_radius
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.jacobian import jacobian, jacobian_rounding
from fpcheck.spectral.rate import RateFit, measured_rate
from fpcheck.spectral.regime import Regime, classify, period
from fpcheck.spectral.spectrum import Spectrum, spectrum

__all__ = [
    "Estimate",
    "RateFit",
    "Regime",
    "Spectrum",
    "approach_rate",
    "best_step",
    "classify",
    "critical_step",
    "damped_radius",
    "jacobian",
    "jacobian_rounding",
    "measured_rate",
    "period",
    "spectrum",
]
