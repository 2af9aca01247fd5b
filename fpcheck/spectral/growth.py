"""Transient growth: how large the powers of a Jacobian become before they decay, if they do.

Symbols: c_k = |J^k|_2, so c_0 = 1; delta the size of the error in J.

Norms of powers multiply: a step k = q m + r has c_k <= c_m^q c_r. Two things follow, and both let a search stop:

- Once some c_m < 1, no later power exceeds the largest one before m. The peak is known.
- Once c_m times the largest c_r before m is below 1, every later power is below 1.

J known to delta gives J^k to first order within ``delta * sum over j < k of c_j c_(k-1-j)``: one factor of k is wrong,
the others stand left and right of it. The rounding of each multiplication is of the same form. The curve itself
therefore tells how well it is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.spectral.dense import BACKWARD
from fpcheck.spectral.estimate import Estimate
from fpcheck.spectral.jacobian import frobenius
from fpcheck.spectral.lanczos import spectral_norm
from fpcheck.spectral.operand import Matrices, dense_matrices, lapack
from fpcheck.spectral.operator import AbstractOperator, MatrixOperator, Power

__all__ = ["TransientGrowth", "transient_growth"]

# Operators up to this size are written out: n products, as many as some fifteen norms of J cost.
_DENSE = 2048

# Norms of powers of J, for k and the samples still of interest, with the errors of the norms as such.
_Norms = Callable[[int, Tensor], tuple[Tensor, Tensor]]


@final
@dataclass(frozen=True, eq=False)
class TransientGrowth:
    """The curve of ``|J^k|_2`` per sample, and what follows from it. All are estimates, none is a bound.

    A step counts as below 1 where value and error together are.

    Attributes:
        curve: For each sample ``(K + 1,)`` float64: ``|J^k|_2`` for k = 0, ..., K. K differs between samples: a curve
            ends once all later powers are below 1, at ``max_power``, or where the next one might overflow.
        curve_error: Error estimate of each.
        peak: ``max_k |J^k|_2``, at least 1; over all k where ``contraction_steps`` is known, else over the curve.
        peak_step: The first k whose value cannot be told from the peak; 0 where nothing grows.
        contraction_steps: Smallest k with ``|J^k|_2 < 1``: k steps contract (Theorem B5); None if there is none on
            the curve.
        lasting_steps: Smallest k from which on every power is below 1; None if the curve does not show it.
    """

    curve: tuple[Tensor, ...] = field(repr=False)
    curve_error: tuple[Tensor, ...] = field(repr=False)
    peak: Estimate
    peak_step: tuple[int, ...]
    contraction_steps: tuple[int | None, ...]
    lasting_steps: tuple[int | None, ...]

    def __len__(self) -> int:
        return len(self.curve)

    def explain(self, i: int) -> str:
        """One line about sample i."""
        peak, at, first, last = self.peak[i], self.peak_step[i], self.contraction_steps[i], self.lasting_steps[i]
        K = len(self.curve[i]) - 1
        if first == last == 1:
            return f"no perturbation grows: every step contracts in the 2-norm, |J|_2 = {self._at(i, 1)}"
        grows = (
            f"a perturbation may grow {float(peak):.3g}-fold over {at} step{'s' * (at > 1)}"
            if at
            else "no perturbation grows"
        )
        if first is None:
            if at == K:
                return f"{grows} and is still growing there: no power of J contracts in the 2-norm up to k = {K}"
            return f"{grows}; no power of J contracts in the 2-norm up to k = {K}"
        before = f"{grows} before it decays" if at else grows
        if last is None:
            return f"{before}; J^{first} contracts in the 2-norm, whether all later powers do is open at k = {K}"
        if last == first:
            return f"{before}; contraction in the 2-norm only from k = {last} steps on"
        return f"{before}; contraction in the 2-norm first at k = {first}, for good only from k = {last} steps on"

    def _at(self, i: int, k: int) -> Estimate:
        return Estimate(self.curve[i][k], self.curve_error[i][k])


def transient_growth(J: Matrices, *, max_power: int = 100, dense_up_to: int = _DENSE) -> TransientGrowth:
    """Follow ``|J^k|_2`` until it has decayed: how far a perturbation may grow, and after how many steps it shrinks.

    A spectral radius below 1 promises decay in the long run only. What a certificate needs is a k with
    ``|J^k|_2 < 1``; what a user sees first is the peak.

    Args:
        J: ``(B, n, n)`` or ``(n, n)``, float32 or float64, or an operator.
        max_power: Follow the curve no further than this.
        dense_up_to: Write out operators up to this n. Larger ones are known by products alone: their norms come from
            :func:`fpcheck.spectral.lanczos.spectral_norm`, with its errors.

    Raises:
        InputError: Wrong type or shape, ``max_power`` or ``dense_up_to`` no positive integer, or too large for memory.
        NonFiniteError: NaN or inf in J.
        FpcheckError: LAPACK did not converge.

    Guarantee: estimate. The end of the search is sound where the curve is: norms of powers multiply.
    Cost: one product of dense matrices and one set of singular values a step, 0.11 s for n = 768 on one thread. By
        products alone some 30 k products for step k: keep ``max_power`` small there.

    Example:
        >>> growth = transient_growth(torch.tensor([[0.5, 4.0], [0.0, 0.5]], dtype=torch.float64))
        >>> round(float(growth.peak[0]), 2), growth.peak_step, growth.contraction_steps
        (4.06, (1,), (6,))
    """
    for name, value in (("max_power", max_power), ("dense_up_to", dense_up_to)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name}={value!r}; expected an integer >= 1")
    if not isinstance(J, AbstractOperator) or isinstance(J, MatrixOperator) or J.n <= dense_up_to:
        given = dense_matrices(J, each=4, once=2)
        return _follow(_by_matrices(given.A), given.delta, torch.finfo(torch.float64).max ** 0.5, max_power)
    eps = BACKWARD * torch.finfo(J.dtype).eps
    # The norms bring the rounding of J along; that of the products is added here.
    delta = eps * spectral_norm(J).value.value
    return _follow(_by_products(J), delta, torch.finfo(J.dtype).max ** 0.5, max_power)


def _by_matrices(A: Tensor) -> _Norms:
    power = A.clone()

    def norms(k: int, active: Tensor) -> tuple[Tensor, Tensor]:
        if k > 1:
            power[active] = power[active] @ A[active]
        now = power[active]
        with lapack():
            values = torch.linalg.svdvals(now)[:, 0]
        return values, BACKWARD * torch.finfo(A.dtype).eps * frobenius(now)

    return norms


def _by_products(op: AbstractOperator) -> _Norms:
    def norms(k: int, active: Tensor) -> tuple[Tensor, Tensor]:
        some = op if len(active) == op.batch_size else op.select(active)
        value = spectral_norm(Power(some, k)).value
        return value.value, value.error

    return norms


def _follow(norms: _Norms, delta: Tensor, out_of_range: float, max_power: int) -> TransientGrowth:
    B = len(delta)
    c = delta.new_ones(B, max_power + 1)
    error = torch.zeros_like(c)
    ends = torch.zeros(B, dtype=torch.int64, device=c.device)
    decayed = torch.zeros(B, dtype=torch.bool, device=c.device)
    active = torch.arange(B, device=c.device)
    for k in range(1, max_power + 1):
        c[active, k], own = norms(k, active)
        error[active, k] = own + delta[active] * (c[active, :k] * c[active, :k].flip(1)).sum(1)
        ends[active] = k
        high = c[active] + error[active]
        decayed[active] = high[:, k] * high[:, :k].amax(1) < 1
        active = active[~decayed[active] & (c[active, k] < out_of_range)]
        if len(active) == 0:
            break
    curves = [(c[i, : k + 1].cpu(), error[i, : k + 1].cpu()) for i, k in enumerate(ends.tolist())]
    return _figures(curves, decayed.tolist())


def _figures(curves: list[tuple[Tensor, Tensor]], lasting: list[bool]) -> TransientGrowth:
    peaks, errors, at, first, settled = [], [], [], [], []
    for (c, e), decayed in zip(curves, lasting, strict=True):
        top = int(c.argmax())
        peaks.append(c[top])
        # The peak is a maximum: it moves no further than the largest of its candidates.
        errors.append(torch.maximum((c + e).amax() - c[top], c[top] - (c - e).amax()))
        at.append(int((c + e >= (c - e).amax()).nonzero()[0]))
        below = c + e < 1
        first.append(int(below.nonzero()[0]) if bool(below.any()) else None)
        settled.append(int((~below).nonzero()[-1]) + 1 if decayed else None)
    return TransientGrowth(
        curve=tuple(c for c, _ in curves),
        curve_error=tuple(e for _, e in curves),
        peak=Estimate(torch.stack(peaks), torch.stack(errors)),
        peak_step=tuple(at),
        contraction_steps=tuple(first),
        lasting_steps=tuple(settled),
    )
