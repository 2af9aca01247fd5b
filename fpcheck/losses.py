"""The losses of the official FPRM training, per sample.

The official batch loss is the sum over samples of ``stablemax_cross_entropy + q_loss_coeff * halt_loss``,
divided by the global batch size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fpcheck.errors import InputError

__all__ = ["IGNORED", "halt_loss", "stablemax_cross_entropy"]

IGNORED = -100
"""Label of a token that does not count."""


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Mean over a sample's labelled tokens of ``-log p[label]``, computed in float64.

    ``p = w / sum(w)`` with ``w(u) = u + 1`` for ``u >= 0`` and ``1 / (1 - u)`` below: positive, once continuously
    differentiable, and linear where a softmax is exponential, so it does not saturate in float32.

    Args:
        logits: ``(B, L, V)``.
        labels: ``(B, L)`` integers in ``[0, V)``, or ``IGNORED``.

    Returns:
        ``(B,)`` float64, in nats per token; 0 for a sample without labelled tokens.

    Raises:
        InputError: Shapes or label values that do not fit.

    Source: L. Prieto et al. (2025), stablemax; the official FPRM and TRM loss.
    """
    counted = _labelled(logits, labels)
    wide = logits.to(torch.float64)
    # Each branch sees only its own half-line, so that neither sends a NaN gradient through the other.
    positive, negative = wide.clamp(min=0), wide.clamp(max=0)
    log_weight = torch.where(wide >= 0, torch.log1p(positive), -torch.log1p(-negative))
    log_p = log_weight - torch.logsumexp(log_weight, dim=-1, keepdim=True)
    picked = log_p.gather(-1, labels.long().clamp(min=0)[..., None])[..., 0]
    return -torch.where(counted, picked, 0.0).sum(-1) / counted.sum(-1).clamp(min=1)


def halt_loss(q_halt: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of the ACT head: does it know whether every labelled token is right?

    Args:
        q_halt: Halting logits ``(B,)``.
        logits: ``(B, L, V)``; used for the target only, no gradient flows through them.
        labels: ``(B, L)`` integers in ``[0, V)``, or ``IGNORED``.

    Returns:
        ``(B,)`` in nats, dtype of ``q_halt``. A sample without labelled tokens counts as right, as in the official
        code.

    Raises:
        InputError: Shapes or label values that do not fit.
    """
    counted = _labelled(logits, labels)
    if q_halt.shape != labels.shape[:1]:
        raise InputError(f"q_halt.shape={tuple(q_halt.shape)}; expected ({len(labels)},), one logit per sample")
    right = ((logits.argmax(-1) == labels) | ~counted).all(-1)
    return F.binary_cross_entropy_with_logits(q_halt, right.to(q_halt.dtype), reduction="none")


def _labelled(logits: Tensor, labels: Tensor) -> Tensor:
    """Which tokens count, ``(B, L)``, after checking that labels fit logits."""
    if logits.ndim != 3 or labels.shape != logits.shape[:2]:
        raise InputError(
            f"logits.shape={tuple(logits.shape)}, labels.shape={tuple(labels.shape)}; expected (B, L, V) and (B, L)"
        )
    counted = labels != IGNORED
    if bool((counted & ((labels < 0) | (labels >= logits.shape[-1]))).any()):
        raise InputError(
            f"labels hold values in [{int(labels.min())}, {int(labels.max())}]; expected [0, {logits.shape[-1]}) or "
            f"{IGNORED} for a token that does not count"
        )
    return counted
