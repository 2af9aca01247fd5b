"""Estimates of what a loop's Jacobian does: eigenvalues, norms, damping, growth, regime, measured rates."""

from fpcheck.spectral.approach import approach_rate
from fpcheck.spectral.arpack import Arpack
from fpcheck.spectral.auto import Auto
from fpcheck.spectral.blockwise import BlockEigenvalues, block_eigenvalues
from fpcheck.spectral.carry import CarryReport, HasCarry, carry_radius, carry_report
from fpcheck.spectral.damping import best_step, critical_step, damped_radius
from fpcheck.spectral.diagnosis import Diagnosis, Finding, SampleDiagnosis, diagnose
from fpcheck.spectral.eigenpairs import Eigenpairs, eigenvalues, spectral_radius
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.growth import TransientGrowth, transient_growth
from fpcheck.spectral.jacobian import jacobian, jacobian_rounding
from fpcheck.spectral.kreiss import Kreiss, kreiss_constant
from fpcheck.spectral.krylov import KrylovSchur
from fpcheck.spectral.lanczos import Extreme, log_norm, spectral_norm
from fpcheck.spectral.lyapunov import LyapunovExponents, Trajectory, local_expansion, lyapunov_exponents
from fpcheck.spectral.methods import AbstractMethod, Blocks, Dense
from fpcheck.spectral.multistart import Multistart, multistart
from fpcheck.spectral.nonnormal import NonNormality, commutator_norm, departure_from_normality, non_normality
from fpcheck.spectral.numerical_range import NumericalRange, numerical_range
from fpcheck.spectral.operand import DenseMatrices
from fpcheck.spectral.operator import AbstractOperator, JacobianOperator, MatrixOperator, ScipyOperator
from fpcheck.spectral.orders import (
    AbstractOrder,
    AnyOf,
    LargestDamped,
    LargestModulus,
    LargestReal,
    SmallestCriticalStep,
)
from fpcheck.spectral.outermost import Krylov
from fpcheck.spectral.probabilistic import ProbabilisticBound, log_norm_bound, norm_bound
from fpcheck.spectral.pseudospectrum import Pseudospectral, pseudospectral_abscissa, pseudospectral_radius
from fpcheck.spectral.rate import RateFit, measured_rate
from fpcheck.spectral.regime import Regime, classify, period
from fpcheck.spectral.regularise import (
    Penalty,
    jacobian_frobenius_penalty,
    log_norm_penalty,
    rademacher_probes,
    spectral_norm_penalty,
    spectral_radius_penalty,
)
from fpcheck.spectral.spectrum import Spectrum, spectrum
from fpcheck.spectral.structure import Structure, find_structure

__all__ = [
    "AbstractMethod",
    "AbstractOperator",
    "AbstractOrder",
    "AnyOf",
    "Arpack",
    "Auto",
    "BlockEigenvalues",
    "Blocks",
    "CarryReport",
    "Dense",
    "DenseMatrices",
    "Diagnosis",
    "Eigenpairs",
    "Estimate",
    "Extreme",
    "Finding",
    "HasCarry",
    "JacobianOperator",
    "Kreiss",
    "Krylov",
    "KrylovSchur",
    "LargestDamped",
    "LargestModulus",
    "LargestReal",
    "LyapunovExponents",
    "MatrixOperator",
    "Multistart",
    "NonNormality",
    "NumericalRange",
    "Penalty",
    "ProbabilisticBound",
    "Pseudospectral",
    "RateFit",
    "Regime",
    "SampleDiagnosis",
    "ScipyOperator",
    "SmallestCriticalStep",
    "Spectrum",
    "Structure",
    "Trajectory",
    "TransientGrowth",
    "approach_rate",
    "best_step",
    "block_eigenvalues",
    "carry_radius",
    "carry_report",
    "classify",
    "commutator_norm",
    "critical_step",
    "damped_radius",
    "departure_from_normality",
    "diagnose",
    "eigenvalues",
    "find_structure",
    "jacobian",
    "jacobian_frobenius_penalty",
    "jacobian_rounding",
    "kreiss_constant",
    "local_expansion",
    "log_norm",
    "log_norm_bound",
    "log_norm_penalty",
    "lyapunov_exponents",
    "measured_rate",
    "multistart",
    "non_normality",
    "norm_bound",
    "numerical_range",
    "period",
    "pseudospectral_abscissa",
    "pseudospectral_radius",
    "rademacher_probes",
    "spectral_norm",
    "spectral_norm_penalty",
    "spectral_radius",
    "spectral_radius_penalty",
    "spectrum",
    "transient_growth",
]
