"""FPOPT, the patience-damped solver of the official FPRM code, with its statistics and its faults.

Shapes: a state is ``(B, *tokens, D)``; its last dimension holds a token's channels, a state ``(B, D)`` is one
token, a state ``(B,)`` one token with one channel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor

from fpcheck.errors import InputError
from fpcheck.loop import Loop
from fpcheck.solve.base import AbstractSolver, is_count, is_number, require
from fpcheck.solve.engine import check_start
from fpcheck.solve.solution import Solution
from fpcheck.status import Status

__all__ = [
    "FPOPTState",
    "FPOPTTrace",
    "OfficialFPOPT",
    "fpopt_start",
    "fpopt_step",
    "official_trace",
    "token_residual",
]

# The official code stops once every step size is below this, and calls it halted.
_STEPSIZE_FLOOR = 1e-3
# A state drifts if over the second half of the solve its norm grew by more than this factor, without its residual
# falling to less than this share: a contraction worth the name does not move so far at an even pace.
_GROWTH = 1.05
_SETTLING = 0.5
_GROWTH_NEEDS = 8

Reason = Literal["residue", "stepsize", "max_iter"]


@final
@dataclass(frozen=True)
class OfficialFPOPT(AbstractSolver):
    """The official FPRM solver, copied in its statistics and its stopping rule; ``Damped()`` is the repaired one.

    ``z <- s F(z) + (1 - s) z``; a sample whose :func:`token_residual` has not improved for ``decay_patience``
    steps has its ``s`` multiplied by ``stepsize_decay``. The whole batch stops together: when the largest
    residual is below ``fp_thresh``, when the largest ``s`` is below 1e-3, or after ``max_iter`` steps.

    Known faults, kept because this is the solver that published numbers were made with:

    * batch coupling: the slowest sample decides for all, and one NaN keeps everyone going to ``max_iter``;
    * off by one: the state returned is one step past the state tested;
    * a step size below 1e-3 counts as halted although nothing converged;
    * the residual is relative to the state, so a linear drift passes any threshold (Theorem X1);
    * the step size lives in the state's dtype: in bfloat16 a decay above 0.998 is none at all.

    What :meth:`solve` reports is not copied. A sample is NON_FINITE if its returned state or that state's image is
    not finite (its last finite state is returned); DIVERGING if over the second half of the evaluations, 8 or more
    in all, its norm grew by more than 5 % while ``|F(z) - z|`` did not halve; CONVERGED if neither, and the returned
    state's own token residual is below ``fp_thresh``; BUDGET otherwise: the official rule gave up on it, by steps or
    by step size. CYCLE and NOISE_FLOOR are never given.

    ``Solution.rtol`` and ``atol`` are what the token test implies for the Euclidean residual of a CONVERGED
    sample: ``sqrt(D) * fp_thresh`` and ``fp_thresh * eps * sqrt(n)``, n entries per state.

    Args:
        fp_thresh: Threshold on the token residual, > 0.
        eps: Added to the token residual's denominator, >= 0.
        stepsize: First step size, > 0.
        stepsize_decay: Factor in (0, 1]. The official evaluation uses 0.99, its training 0.9.
        decay_patience: Steps without improvement before a decay, >= 1.
        max_iter: Steps, at most, >= 1.

    Source: FPRM releases 9e0ebf3 and 68e118c.
    """

    fp_thresh: float = 0.1
    eps: float = 1e-8
    stepsize: float = 1.0
    stepsize_decay: float = 0.99
    decay_patience: int = 5
    max_iter: int = 1000

    def __post_init__(self) -> None:
        for name in ("fp_thresh", "stepsize"):
            value = getattr(self, name)
            require(is_number(value) and value > 0, self, name, "a finite number > 0")
        require(is_number(self.eps) and self.eps >= 0, self, "eps", "a finite number >= 0")
        decay = self.stepsize_decay
        require(is_number(decay) and 0 < decay <= 1, self, "stepsize_decay", "a number in (0, 1]")
        for name in ("decay_patience", "max_iter"):
            require(is_count(getattr(self, name)), self, name, "an integer >= 1")

    def solve(self, loop: Loop, z0: Tensor) -> Solution:
        """Iterate by the official rule from ``z0``; see the class for what the statuses mean."""
        check_start(loop, z0)
        with torch.no_grad():
            return self._solve(loop, z0)

    def _solve(self, loop: Loop, z0: Tensor) -> Solution:
        state = fpopt_start(z0, self)
        value = z0
        absolute, relative, norms = [], [], []
        reason: Reason | None = None
        while True:
            fz = loop(state.z)
            absolute.append(_norm(fz - state.z))
            relative.append(torch.where(absolute[-1] == 0, 0.0, absolute[-1] / _norm(fz)))
            norms.append(_norm(state.z))
            finite = torch.isfinite(state.z).reshape(len(z0), -1).all(1)
            value = torch.where(_column(finite, value), state.z, value)
            if reason is not None:
                break
            state = _advance(state, fz, self)
            reason = _halts(state, self)

        finite &= torch.isfinite(fz).reshape(len(z0), -1).all(1)
        passed = token_residual(state.z, fz, eps=self.eps) < self.fp_thresh
        count = len(norms)
        half = (count - 1) // 2
        drifting = (norms[-1] > _GROWTH * norms[half]) & (absolute[-1] > _SETTLING * absolute[half])
        drifting &= count >= _GROWTH_NEEDS
        code = torch.where(passed, Status.CONVERGED.value, Status.BUDGET.value)
        code = torch.where(drifting, Status.DIVERGING.value, code)
        code = torch.where(finite, code, Status.NON_FINITE.value)
        # Nothing is known of the image of a last finite state, but that it leads to no finite one.
        lost = torch.full_like(absolute[-1], torch.inf)
        return Solution(
            value=value,
            status=tuple(Status(c) for c in code.tolist()),
            residual=torch.where(finite, relative[-1], lost),
            residual_norm=torch.where(finite, absolute[-1], lost),
            steps=torch.full((len(z0),), count, device=z0.device),
            period=torch.zeros(len(z0), dtype=torch.int64, device=z0.device),
            history=torch.stack(relative),
            rtol=self.fp_thresh * math.sqrt(_tokens(z0).shape[-1]),
            atol=self.fp_thresh * self.eps * math.sqrt(z0[0].numel()),
        )


@final
@dataclass(frozen=True)
class FPOPTState:
    """State of the iteration after some steps. ``B`` samples; statistics carry no gradient.

    Attributes:
        z: States ``(B, *tokens, D)``.
        residual: Token residual of the state *before* the last step, ``(B,)``; inf at the start.
        best_residual: Smallest residual so far, ``(B,)``; inf at the start.
        stepsize: Step size of the next step, ``(B,)``, dtype of ``z``.
        patience: Steps left before a decay, ``(B,)`` int64; negative while the residual is below the threshold.
        steps: Steps done.
    """

    z: Tensor
    residual: Tensor
    best_residual: Tensor
    stepsize: Tensor
    patience: Tensor
    steps: int


@final
@dataclass(frozen=True)
class FPOPTTrace:
    """Statistics of a run; row k of each belongs to step k + 1, its residual to the state before that step.

    Attributes:
        residues: Token residuals ``(steps, B)``.
        stepsize: Step sizes after each step, ``(steps, B)``.
        patience: ``(steps, B)`` int64.
        best_residues: ``(steps, B)``.
        z: The last states ``(B, *tokens, D)``.
        states: All states from ``z0`` on, ``(steps + 1, B, *tokens, D)``, or None unless asked for.
        halt_iter: The first step after which the official rule stops, or None if it did not.
        reason: What stopped it there.
    """

    residues: Tensor
    stepsize: Tensor
    patience: Tensor
    best_residues: Tensor
    z: Tensor
    states: Tensor | None = field(repr=False)
    halt_iter: int | None
    reason: Reason | None


def token_residual(z: Tensor, fz: Tensor, *, eps: float = 1e-8) -> Tensor:
    """The official residual of ``z``: over tokens the maximum of ``max|z - F(z)| / (max|F(z)| + eps)``.

    Args:
        z: States ``(B, *tokens, D)``; the inner maxima run over ``D``.
        fz: Their images ``F(z)``.
        eps: Added to the denominator.

    Returns:
        ``(B,)``, dtype of ``z``; NaN where an entry is.
    """
    change, image = _tokens(z - fz).abs().amax(-1), _tokens(fz).abs().amax(-1)
    return (change / (image + eps)).amax(-1)


def fpopt_start(z0: Tensor, options: OfficialFPOPT) -> FPOPTState:
    """The iteration before its first step."""
    fresh = torch.full((len(z0),), torch.inf, dtype=z0.dtype, device=z0.device)
    return FPOPTState(
        z=z0,
        residual=fresh,
        best_residual=fresh,
        stepsize=torch.full_like(fresh, options.stepsize),
        patience=torch.full_like(fresh, options.decay_patience, dtype=torch.int64),
        steps=0,
    )


def fpopt_step(loop: Callable[[Tensor], Tensor], state: FPOPTState, options: OfficialFPOPT) -> FPOPTState:
    """One official step; a pure function. Gradients flow through ``z``, step sizes being constants.

    What the rule's step sizes are after m decays, and what is left of a window's gradient: Theorem D11.

    Args:
        loop: ``z -> F(z; x)``, a :class:`Loop` or any function.
        state: Where the iteration stands.
        options: ``max_iter`` has no effect here.
    """
    return _advance(state, loop(state.z), options)


def _advance(state: FPOPTState, fz: Tensor, options: OfficialFPOPT) -> FPOPTState:
    with torch.no_grad():
        residual = token_residual(state.z, fz, eps=options.eps)
        improved = residual < state.best_residual
        patience = torch.where(improved, options.decay_patience, state.patience - 1)
        # Below the threshold patience keeps falling, so the first residual above it decays at once.
        decays = (patience <= 0) & (residual >= options.fp_thresh)
        stepsize = torch.where(decays, state.stepsize * options.stepsize_decay, state.stepsize)
        patience = torch.where(decays, options.decay_patience, patience)
        best = torch.where(improved, residual, state.best_residual)
    s = _column(state.stepsize, fz)
    return FPOPTState(
        z=s * fz + (1 - s) * state.z,
        residual=residual,
        best_residual=best,
        stepsize=stepsize,
        patience=patience,
        steps=state.steps + 1,
    )


def official_trace(
    loop: Callable[[Tensor], Tensor],
    z0: Tensor,
    options: OfficialFPOPT | None = None,
    *,
    steps: int | None = None,
    keep_states: bool = False,
) -> FPOPTTrace:
    """Run the official iteration and write down its statistics; computed without gradients.

    Args:
        loop: ``z -> F(z; x)``, a :class:`Loop` or any function.
        z0: Start states ``(B, *tokens, D)``.
        options: Default ``OfficialFPOPT()``.
        steps: Do exactly this many steps, >= 1, whatever the stopping rule says. Default: stop by the rule.
        keep_states: Keep every state, not only the last.

    Raises:
        InputError: ``steps`` is below 1.
    """
    if steps is not None and not is_count(steps):
        raise InputError(f"steps={steps!r}; expected an integer >= 1, or None to stop by the rule")
    options = OfficialFPOPT() if options is None else options
    rows, states = [], [z0]
    halt_iter, reason = None, None
    with torch.no_grad():
        state = fpopt_start(z0, options)
        while state.steps < (options.max_iter if steps is None else steps):
            state = fpopt_step(loop, state, options)
            rows.append((state.residual, state.stepsize, state.patience, state.best_residual))
            if keep_states:
                states.append(state.z)
            if reason is None:
                reason = _halts(state, options)
                halt_iter = None if reason is None else state.steps
            if reason is not None and steps is None:
                break
    residues, stepsize, patience, best = (torch.stack(column) for column in zip(*rows, strict=True))
    return FPOPTTrace(
        residues=residues,
        stepsize=stepsize,
        patience=patience,
        best_residues=best,
        z=state.z,
        states=torch.stack(states) if keep_states else None,
        halt_iter=halt_iter,
        reason=reason,
    )


def _halts(state: FPOPTState, options: OfficialFPOPT) -> Reason | None:
    """One decision for the whole batch. A NaN is below no threshold: it keeps every sample going."""
    if float(state.residual.max()) < options.fp_thresh:
        return "residue"
    if float(state.stepsize.max()) < _STEPSIZE_FLOOR:
        return "stepsize"
    return "max_iter" if state.steps >= options.max_iter else None


def _tokens(z: Tensor) -> Tensor:
    """View a state as ``(B, tokens, D)``."""
    return z.reshape(len(z), -1, z.shape[-1] if z.ndim > 1 else 1)


def _norm(v: Tensor) -> Tensor:
    """Euclidean norm of each sample, ``(B,)`` float64."""
    return torch.linalg.vector_norm(v.reshape(len(v), -1).double(), dim=1)


def _column(per_sample: Tensor, like: Tensor) -> Tensor:
    """``(B,)`` made to broadcast against states."""
    return per_sample.view(-1, *(1,) * (like.ndim - 1))
