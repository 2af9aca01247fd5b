"""Gradient descent in context, as a looped linear-attention head: a loop whose spectrum is known in closed form.

Shapes: ``B`` contexts, ``N`` examples in each, ``d`` inputs and ``m`` outputs of one example.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fpcheck.errors import InputError

__all__ = ["LinearAttentionGD"]


class LinearAttentionGD(nn.Module):
    r"""One step of gradient descent on in-context least squares, as one head of linear attention.

    The context holds examples :math:`(x_i, y_i)`, the state holds a weight estimate, one token :math:`w_r` per output
    r. The loss :math:`\frac{1}{2N} \sum_i |W x_i - y_i|^2` has the gradient :math:`\frac{1}{N} \sum_i (w_r \cdot x_i -
    y_{ir}) x_i` in that token. Take as query the token with its place, :math:`q_r = (w_r, -e_r)`; as keys the
    examples, :math:`k_i = (x_i, y_i)`; as values their inputs, :math:`v_i = x_i`. The scores are then the residuals,
    :math:`q_r \cdot k_i = w_r \cdot x_i - y_{ir}`, and attention without softmax, added to the stream with the weight
    :math:`-\eta / N`, is the step of gradient descent:

    .. math:: w_r \leftarrow w_r - \frac{\eta}{N} \sum_i (q_r \cdot k_i) \, v_i

    It is affine in the state. With :math:`H = \frac{1}{N} \sum_i x_i x_i^T` and its eigenvalues h the Jacobian at
    every state is :math:`I_m \otimes (I - \eta H)`, with the eigenvalues :math:`1 - \eta h`, each m times. The
    Jacobian is symmetric, so its norm is its spectral radius.

    Shapes: state ``(B, m, d)``; injection ``(inputs, targets)``, a tuple of ``(B, N, d)`` and ``(B, N, m)``.

    Args:
        eta: Step of gradient descent, finite, > 0; a parameter of the module.

    Raises:
        InputError: ``eta`` is not such a number.

    Source: von Oswald et al. (2023), one layer as one step; Ahn et al. (2023), many layers as many steps; Gatmiry et
    al. (2024), the loop.

    Example:
        >>> block = LinearAttentionGD(0.5)
        >>> inputs, targets = torch.tensor([[[1.0], [3.0]]]), torch.tensor([[[2.0], [6.0]]])
        >>> block(torch.zeros(1, 1, 1), (inputs, targets))  # H = (1 + 9) / 2, gradient at 0: -(2 + 18) / 2
        tensor([[[5.]]], grad_fn=<SubBackward0>)
    """

    def __init__(self, eta: float) -> None:
        super().__init__()
        if isinstance(eta, bool) or not (isinstance(eta, int | float) and 0 < eta < math.inf):
            raise InputError(f"eta={eta!r}; expected a finite number > 0")
        # In float64, so that the closed forms below are about the eta that was given.
        self.eta = nn.Parameter(torch.tensor(float(eta), dtype=torch.float64))

    def forward(self, z: Tensor, x: tuple[Tensor, Tensor]) -> Tensor:
        """One step.

        Args:
            z: Weight estimates ``(B, m, d)``.
            x: Context ``(inputs, targets)``, ``(B, N, d)`` and ``(B, N, m)``.

        Returns:
            The next estimates, same shape and dtype.

        Raises:
            InputError: Shapes that do not fit.
        """
        inputs, targets = _context(x)
        B, m, d = len(inputs), targets.shape[-1], inputs.shape[-1]
        if z.shape != (B, m, d):
            raise InputError(f"z.shape={tuple(z.shape)}; expected {(B, m, d)}, (B, m, d) for this context")
        place = -torch.eye(m, dtype=z.dtype, device=z.device)
        queries = torch.cat([z, place.expand(B, m, m)], dim=-1)
        keys = torch.cat([inputs, targets], dim=-1)
        scores = queries @ keys.mT
        return z - (self.eta / inputs.shape[1]).to(z) * (scores @ inputs)

    def hessian(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """``H``, the second derivative of the loss in each output's weights, ``(B, d, d)`` float64."""
        inputs = _context(x)[0].detach().double()
        return inputs.mT @ inputs / inputs.shape[1]

    def eigenvalues(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """Those of the Jacobian, ``1 - eta h``, each m times, ``(B, m d)`` float64, real, largest first.

        Exactly 1 in every direction that the context says nothing about. ``H`` counts as singular in a direction
        where h is at most ``d eps`` of the largest, as in a numerical rank.
        """
        return (1 - self._rates(x)).repeat_interleave(_context(x)[1].shape[-1], dim=1)

    def radius(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """Spectral radius and 2-norm of the Jacobian, ``max |1 - eta h|``, ``(B,)`` float64."""
        return (1 - self._rates(x)).abs().amax(1)

    def critical_step(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """Damping steps s in ``(0, critical_step)`` make the fixed point attracting, ``(B,)`` float64.

        Damping turns ``1 - eta h`` into ``1 - s eta h``, which is above -1 for ``s < 2 / (eta h)``: the critical step
        is ``2 / (eta h_max)``. It is 0 where ``H`` is singular: an eigenvalue 1 stays 1.
        """
        rates = self._rates(x)
        return torch.where(rates[:, 0] > 0, 2 / rates[:, -1], 0.0)

    def best_step(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """The damping step that contracts fastest, ``(B,)`` float64: ``2 / (eta (h_min + h_max))``.

        It makes the extreme eigenvalues ``1 - s eta h`` opposite. 0 where ``H`` is singular.
        """
        rates = self._rates(x)
        return torch.where(rates[:, 0] > 0, 2 / (rates[:, 0] + rates[:, -1]), 0.0)

    def fixed_point(self, x: tuple[Tensor, Tensor], *, nearest_to: Tensor | None = None) -> Tensor:
        """Weights of least squares, ``(B, m, d)`` float64: the fixed point nearest to a state.

        Where ``H`` is singular the fixed points fill a plane. A step moves along the inputs only, so the loop goes
        from any start straight to the fixed point nearest to it, if it converges.

        Args:
            x: Context.
            nearest_to: State ``(B, m, d)``. Default: zero, which gives the weights of least norm.
        """
        inputs, targets = (part.detach().double() for part in _context(x))
        if nearest_to is None:
            nearest_to = inputs.new_zeros(len(inputs), targets.shape[-1], inputs.shape[-1])
        start = nearest_to.detach().double()
        missing = targets - inputs @ start.mT
        return start + (torch.linalg.pinv(inputs) @ missing).mT

    def _rates(self, x: tuple[Tensor, Tensor]) -> Tensor:
        """``eta h`` in ascending order, ``(B, d)``, 0 where ``H`` is singular."""
        h = torch.linalg.eigvalsh(self.hessian(x))
        floor = h.shape[1] * torch.finfo(torch.float64).eps * h[:, -1:]
        return self.eta.detach().double() * torch.where(h > floor, h, 0.0)


def _context(x: object) -> tuple[Tensor, Tensor]:
    if not (isinstance(x, tuple) and len(x) == 2 and all(isinstance(part, Tensor) for part in x)):
        raise InputError(f"x is a {type(x).__name__}; expected a tuple (inputs, targets) of two tensors")
    inputs, targets = x
    if inputs.ndim != 3 or targets.ndim != 3 or inputs.shape[:2] != targets.shape[:2] or 0 in inputs.shape:
        raise InputError(
            f"inputs.shape={tuple(inputs.shape)}, targets.shape={tuple(targets.shape)}; expected (B, N, d) and "
            "(B, N, m) with at least one example and input"
        )
    return inputs, targets
