r"""What one operator may lose when torch runs it in floating point: bounds by entry, under stated assumptions.

Sums, products, quotients and roots of positive numbers are IEEE operations in any order, so that k of them in a row
multiply a result by a factor between :math:`1 - k u` and :math:`1 / (1 - k u)` (Theorem R1). How far a library's
functions are off, nobody proves: that is an assumption, and `Arithmetic` names it.

Shapes: moduli are bounds by entry, shaped as the operators' results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from fpcheck.certify.operators import MOVERS
from fpcheck.certify.rounding import ROOM
from fpcheck.certify.trace import Op
from fpcheck.errors import InputError, UnsupportedOperatorError

__all__ = ["Arithmetic", "absolute", "carried", "lost"]

_FUNCTIONS = frozenset({"silu", "sigmoid", "tanh", "exp", "log", "erf", "sin", "cos", "sqrt", "rsqrt", "reciprocal"})


@final
@dataclass(frozen=True)
class Arithmetic:
    """How a loop is run: these are assumptions, not results.

    Args:
        dtype: Of states and weights. Wider intermediate results, as from a cast, do no harm.
        ulps: Bound on the error of library functions (exp, tanh, rsqrt and the like), in units in the last place of
            their result; for GELU, of its argument.
    """

    dtype: torch.dtype
    ulps: int = 4  # choice: an assumption, which the result names

    def __post_init__(self) -> None:
        if not self.dtype.is_floating_point:
            raise InputError(f"dtype={self.dtype}; expected a floating-point type")
        if self.dtype == torch.float16:
            raise InputError(
                f"dtype={self.dtype}; expected a type that no state overflows, such as float32 or bfloat16"
            )
        if not isinstance(self.ulps, int) or isinstance(self.ulps, bool) or self.ulps < 1:
            raise InputError(f"ulps={self.ulps!r}; expected a whole number from 1")

    @property
    def u(self) -> float:
        """Unit roundoff: half the distance from 1 to the next number."""
        return torch.finfo(self.dtype).eps / 2

    @property
    def tiny(self) -> float:
        """Above what one operation loses to underflow, flushed to zero or not."""
        return 2 * torch.finfo(self.dtype).tiny

    @property
    def function(self) -> int:
        """A library function's error, in roundings: one unit in the last place is at most two of them."""
        return 2 * self.ulps

    def gamma(self, k: float) -> float:
        """``k u / (1 - k u)``, rounded up; infinite where k roundings may lose everything."""
        share = k * self.u
        return share / (1 - share) * ROOM if share < 1 else math.inf

    @property
    def assumptions(self) -> tuple[str, ...]:
        """In words, what a statement about the running loop rests on beside the proof."""
        return (
            f"every +, -, *, / is rounded to nearest in {self.dtype} or wider, sums in any order, fused or not; no "
            "reduced-precision products (TF32)",
            f"library functions are within {self.ulps} units in the last place of their result (GELU: of its argument)",
            "the operators run as recorded: eager mode, attention as separate products and softmax (SDPBackend.MATH)",
        )


def absolute(op: Op, args: Sequence[Any]) -> Tensor:
    """An operator that is linear in each argument, on moduli instead of values: a bound on its moduli."""
    name = op.target.partition(".")[0]
    keywords = {k: abs(v) if k in ("alpha", "beta") else v for k, v in op.kwargs.items()}
    if name in ("add", "sub", "rsub"):
        first, second, *more = args
        alpha = abs(more[0]) if more else keywords.get("alpha", 1)
        scaled = (alpha * _t(first), _t(second)) if name == "rsub" else (_t(first), alpha * _t(second))
        return (scaled[0] + scaled[1]) * ROOM
    if name == "mul":
        return _t(args[0]) * _t(args[1]) * ROOM
    if name in ("addmm", "baddbmm"):
        product = (_t(args[1]) @ _t(args[2])) * keywords.get("alpha", 1)
        return (keywords.get("beta", 1) * _t(args[0]) + product) * ROOM
    if name in ("mm", "bmm"):
        return (_t(args[0]) @ _t(args[1])) * ROOM
    if name in ("mean", "sum", "where", "masked_fill", "constant_pad_nd", "convolution"):
        overload = getattr(getattr(torch.ops.aten, name), op.target.partition(".")[2])
        found: Tensor = overload(*args, **keywords)
        return found * ROOM
    raise _no_rounding(op)


def _t(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(abs(float(value)), dtype=torch.float64)


def lost(op: Op, moduli: Sequence[Any], reach: Tensor, arithmetic: Arithmetic) -> Tensor | None:
    """Bounds on what an operator's result may differ from the exact result of the same arguments.

    Args:
        op: Of a fused graph.
        moduli: By argument, bounds on its moduli where it is a tensor of reals, and the argument itself elsewhere.
        reach: Bounds on the moduli of the exact result.
        arithmetic: The assumptions.

    Returns:
        By entry, or None where nothing is lost.

    Raises:
        UnsupportedOperatorError: No rule for its rounding; the message names it and the user's line.

    Guarantee: bound under the assumptions; float64 rounding of its own evaluation included.
    Source: Theorem R1.
    """
    name = op.target.partition(".")[0]
    gamma, f, tiny = arithmetic.gamma, arithmetic.function, arithmetic.tiny
    # A number of Python's is rounded to the dtype first.
    inexact = 0 if all(_representable(a, arithmetic) for a in (*op.args, *op.kwargs.values())) else 1
    if name in ("input", "item", "constant", "neg", "relu") or name.removesuffix("_copy") in MOVERS:
        return None
    if name == "_to_copy":
        target = op.kwargs.get("dtype") or arithmetic.dtype
        if torch.finfo(target).eps > torch.finfo(arithmetic.dtype).eps:
            raise UnsupportedOperatorError(f"cast to {target} at {op.where}, which is narrower than {arithmetic.dtype}")
        return reach * gamma(1) + tiny
    if name in ("where", "masked_fill", "constant_pad_nd"):
        return reach * gamma(1) if inexact else None
    if name in ("add", "sub", "rsub"):
        # The product with alpha may be rounded, and so may a number of Python's.
        simple = not inexact and op.kwargs.get("alpha", 1) == 1 and len(op.args) == 2
        return reach * gamma(1) + tiny if simple else absolute(op, moduli) * gamma(3) + 2 * tiny
    if name in ("mul", "div"):
        return reach * gamma(1 + inexact) + tiny
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        k = moduli[-2].shape[-1]
        return absolute(op, moduli) * gamma(k + 4) + 2 * (k + 2) * tiny
    if name in ("mean", "sum"):
        k = moduli[0].numel() // max(reach.numel(), 1)
        return absolute(op, moduli) * gamma(k + 1) + (k + 1) * tiny
    if name == "convolution":
        k = moduli[1][0].numel()
        return absolute(op, moduli) * gamma(k + 1) + (k + 1) * tiny
    if name == "rms":
        _, eps, dim = op.args
        if not eps > 0:
            raise UnsupportedOperatorError(f"norm at {op.where} with eps={eps}: a row of zeros would have no bound")
        k = moduli[0].shape[dim]
        # Squares, their mean, eps and the sum are positive: k + 4 roundings and a power, of which the root halves the
        # effect; then the root itself and a product. Underflow counts against eps.
        flushed = math.ceil((k + 2) * tiny / eps / arithmetic.u)
        return reach * gamma(k + 4 + f + f + 2 + flushed) + tiny
    if name == "weighted_sum":
        scores, values = moduli
        k = scores.shape[-1]
        # The scores less the largest of a row: u times the difference, as that many roundings of its exponential. The
        # exponential, above and below the line, k in the sum, the quotient, then a product of length k.
        spread = torch.where(scores.isfinite(), scores, 0.0).amax(-1)
        powers = 2 * (math.ceil(2 * float(spread.max())) + f + 1)
        largest = values.amax(-2, keepdim=True).expand(*values.shape[:-2], reach.shape[-2], values.shape[-1])
        return largest.reshape(reach.shape) * gamma(powers + k + 3 + k + 1) + (k + 2) * tiny * (1 + float(values.max()))
    if name == "gated":
        size = moduli[0] * moduli[1] if op.kwargs["function"].startswith("gelu") else reach
        return size * gamma(f + 1) + 2 * tiny * (1 + float(moduli[1].max()))
    if name == "gelu":
        return moduli[0] * gamma(f) + tiny
    if name in _FUNCTIONS or name in ("pow", "square"):
        return reach * gamma(f + inexact) + tiny
    raise _no_rounding(op)


def carried(op: Op, moduli: Sequence[Any], errors: Sequence[Any], reach: Tensor) -> Tensor | None:
    """What errors of arguments that do not depend on the state do to the result, by entry; None for nothing.

    Args:
        op: Of a fused graph.
        moduli: As in `lost`.
        errors: By argument: bounds by entry for those that do not depend on the state, zeros for those that do, and the
            argument itself where it is no tensor of reals.
        reach: As in `lost`.

    Raises:
        UnsupportedOperatorError: No rule for such an argument.
    """
    tensors = [e for e, m in zip(errors, moduli, strict=True) if isinstance(m, Tensor) and m.is_floating_point()]
    if not any(bool(e.any()) for e in tensors):
        return None
    name = op.target.partition(".")[0]
    if name in ("add", "sub", "rsub"):
        plain = [torch.zeros((), dtype=torch.float64) if isinstance(e, int | float) else e for e in errors[:2]]
        return absolute(op, plain + list(errors[2:]))
    if name in ("where", "masked_fill", "constant_pad_nd"):
        return absolute(op, [0.0 if isinstance(e, int | float) and not isinstance(e, bool) else e for e in errors])
    if name in ("mul", "mm", "bmm"):
        return absolute(op, (errors[0], moduli[1])) + absolute(op, (moduli[0], errors[1]))
    if name in ("addmm", "baddbmm"):
        none = torch.zeros_like(moduli[0])
        return absolute(op, (errors[0], errors[1], moduli[2])) + absolute(op, (none, moduli[1], errors[2]))
    if name == "convolution":
        return absolute(op, (moduli[0], *errors[1:]))
    raise UnsupportedOperatorError(
        f"operator={op.target} at {op.where} takes numbers that the loop computes anew at each step; there is no bound "
        "on their rounding in it"
    )


def _representable(value: Any, arithmetic: Arithmetic) -> bool:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(torch.tensor(value, dtype=torch.float64).to(arithmetic.dtype)) == value
    return True


def _no_rounding(op: Op) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(f"operator={op.target} at {op.where} has no bound on its rounding")
