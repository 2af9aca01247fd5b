"""Constants on which bounds rest, each a float64 rounded to the side that keeps the bound sound.

Written by ``python -m proofs --write-constants`` from the theorems in ``proofs/``; never edited by hand. An upper bound
is rounded up, a lower bound down. ``docs/theory/constants.md`` leads from each name to its derivation.
"""

from typing import Final

RMS_SECOND: Final = 1.1547005383792517
"""|D2 N| <= RMS_SECOND / (sqrt(d) q^2), upper bound. Theorem N4: Curvature of RMSNorm."""

RMS_THIRD: Final = 3.0
"""|D3 N| <= RMS_THIRD / (d q^3), upper bound. Theorem N4: Curvature of RMSNorm."""

SILU_SLOPE_MAX: Final = 1.099839320128867
"""sup |silu'|, upper bound. Theorem C1: Slope of SiLU."""

SILU_SLOPE_MIN: Final = -0.09983932012886693
"""inf silu', lower bound. Theorem C1: Slope of SiLU."""

GELU_ERF_SLOPE_MAX: Final = 1.128904145185155
"""sup |gelu'|, exact form, upper bound. Theorem C2: Slope and curvature of GELU, exact form."""

GELU_ERF_SLOPE_MIN: Final = -0.1289041451851548
"""inf gelu', exact form, lower bound. Theorem C2: Slope and curvature of GELU, exact form."""

GELU_ERF_SECOND: Final = 0.7978845608028654
"""sup |gelu''|, exact form, upper bound. Theorem C2: Slope and curvature of GELU, exact form."""

GELU_ERF_THIRD: Final = 0.7787696350557324
"""sup |gelu'''|, exact form, upper bound. Theorem C2: Slope and curvature of GELU, exact form."""

GELU_TANH_SLOPE_MAX: Final = 1.128993068658772
"""sup |gelu'|, tanh form, upper bound. Theorem C3: Slope and curvature of GELU, tanh form."""

GELU_TANH_SLOPE_MIN: Final = -0.12899306865877178
"""inf gelu', tanh form, lower bound. Theorem C3: Slope and curvature of GELU, tanh form."""

GELU_TANH_SECOND: Final = 0.7978845608028654
"""sup |gelu''|, tanh form, upper bound. Theorem C3: Slope and curvature of GELU, tanh form."""

GELU_TANH_THIRD: Final = 0.7766914503985405
"""sup |gelu'''|, tanh form, upper bound. Theorem C3: Slope and curvature of GELU, tanh form."""

TANH_SECOND: Final = 0.769800358919501
"""sup |tanh''|, upper bound. Theorem C5: Slope and curvature of tanh."""

TANH_THIRD: Final = 2.0
"""sup |tanh'''|, upper bound. Theorem C5: Slope and curvature of tanh."""

SIGMOID_SLOPE: Final = 0.25
"""sup sigma', upper bound. Theorem C6: Slope and curvature of the sigmoid."""

SIGMOID_SECOND: Final = 0.09622504486493763
"""sup |sigma''|, upper bound. Theorem C6: Slope and curvature of the sigmoid."""

SIGMOID_THIRD: Final = 0.125
"""sup |sigma'''|, upper bound. Theorem C6: Slope and curvature of the sigmoid."""

SILU_SECOND: Final = 0.5
"""sup |silu''|, upper bound. Theorem C7: Curvature of SiLU."""

SILU_THIRD: Final = 0.3081815157964791
"""sup |silu'''|, upper bound. Theorem C7: Curvature of SiLU."""

SIGMOID_SLOPE_SECOND: Final = 0.01788854381999832
"""sup |sigma' sigma''| at one input, of the sigmoid, upper bound. Theorem C11: Input-dependent gates."""

SOFTMAX_LIPSCHITZ: Final = 0.5
"""Lipschitz constant of softmax, upper bound. Theorem S1: Spectral norm of the softmax Jacobian."""

SOFTMAX_INF_TO_ONE: Final = 1.0
"""norm of the softmax Jacobian from maximum to sum, upper bound. Theorem S2: Softmax Jacobian from maximum to sum."""

SOFTMAX_INF_LIPSCHITZ: Final = 0.5
"""Lipschitz constant, maximum norm, upper bound. Theorem S3: Softmax Jacobian in the maximum norm, and its largest
entry."""

SOFTMAX_ENTRY_MAX: Final = 0.25
"""largest entry of the softmax Jacobian, upper bound. Theorem S3: Softmax Jacobian in the maximum norm, and its largest
entry."""

__all__ = [
    "GELU_ERF_SECOND",
    "GELU_ERF_SLOPE_MAX",
    "GELU_ERF_SLOPE_MIN",
    "GELU_ERF_THIRD",
    "GELU_TANH_SECOND",
    "GELU_TANH_SLOPE_MAX",
    "GELU_TANH_SLOPE_MIN",
    "GELU_TANH_THIRD",
    "RMS_SECOND",
    "RMS_THIRD",
    "SIGMOID_SECOND",
    "SIGMOID_SLOPE",
    "SIGMOID_SLOPE_SECOND",
    "SIGMOID_THIRD",
    "SILU_SECOND",
    "SILU_SLOPE_MAX",
    "SILU_SLOPE_MIN",
    "SILU_THIRD",
    "SOFTMAX_ENTRY_MAX",
    "SOFTMAX_INF_LIPSCHITZ",
    "SOFTMAX_INF_TO_ONE",
    "SOFTMAX_LIPSCHITZ",
    "TANH_SECOND",
    "TANH_THIRD",
]
