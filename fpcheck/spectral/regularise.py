r"""Penalties on a loop's Jacobian that training can descend: Frobenius norm, spectral radius, log-norm, 2-norm.

Every derivative is exact (reverse mode, differentiated once more by the caller's ``backward``), no difference
quotient. In bfloat16 the usual step of 1e-3 is lost in the rounding of the state: on FPRM blocks of eight kinds such a
quotient gave 0 or 90 to 5,700 times the true ``|J|_F^2``, the exact product the value to 0.2 to 11 % (float32: 4e-6).

For the three norms and the radius the vectors that the figure belongs to are found without gradient. With these held
fixed, the figure is a bilinear form in J, whose gradient is that of the figure itself:

===============  =====================================================  ==================================
figure           form                                                   vectors
===============  =====================================================  ==================================
``|l|``          :math:`\operatorname{Re} (c \, y^H J x)`               right and left eigenvector x, y of l
mu_2             :math:`v^T J v`                                        top eigenvector of ``(J + J') / 2``
``|J|_2``        :math:`u^T J v`                                        first singular vectors
===============  =====================================================  ==================================

with :math:`c = \bar l / (|l| \, y^H x)`. The first line is first-order perturbation of a simple eigenvalue,
:math:`dl = y^H dJ \, x / (y^H x)`, and :math:`d|l| = \operatorname{Re}(\bar l \, dl) / |l|`; of a complex pair either
member gives the same. The others follow from the figure being the largest value of its form over unit vectors. A form
costs one walk back (two for a complex pair), however large J is.

Gradients flow into the block's parameters, into the injection, and into ``z`` where it requires a gradient; pass
``z.detach()`` to hold the state fixed. Per-sample results; no buffer, no ``.grad`` and no global generator is touched.

Source: eigenvalue perturbation: Wilkinson (1965), chapter 2; trace estimate: Hutchinson (1990).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from fpcheck.errors import BlockError, GradientNotAvailableError, InputError, NonFiniteError
from fpcheck.loop import Loop
from fpcheck.spectral.eigenpairs import eigenvalues
from fpcheck.spectral.krylov import AbstractEigensolver
from fpcheck.spectral.lanczos import log_norm, spectral_norm
from fpcheck.spectral.operator import JacobianOperator, _plain_attention, where

__all__ = [
    "Penalty",
    "jacobian_frobenius_penalty",
    "log_norm_penalty",
    "rademacher_probes",
    "spectral_norm_penalty",
    "spectral_radius_penalty",
]

# Residual, relative to the figure, at which the search for singular vectors and the like stops: the gradient is off by
# about this over the relative gap, and training needs no more.
_RTOL = 1e-6


@final
@dataclass(frozen=True, eq=False)
class Penalty:
    """A penalty per sample, to be added to a loss: ``loss = task_loss + weight * penalty.value.mean()``.

    Attributes:
        value: ``relu(figure - target)^power``, ``(B,)``, differentiable; 0 where not used.
        figure: Spectral radius, log-norm or 2-norm at the state, ``(B,)``, differentiable where used.
        used: Where the figure and its gradient can be relied on, ``(B,)`` booleans. Elsewhere the vectors had not
            converged, or the eigenvalue is too close to a defective one to have a derivative: ``figure`` is the best
            guess, without gradient, and ``value`` is 0.
    """

    value: Tensor
    figure: Tensor
    used: Tensor

    @property
    def skipped(self) -> int:
        """How many samples were not used; watch it: a penalty that skips everything does nothing."""
        return int((~self.used).sum())


def rademacher_probes(z: Tensor, probes: int, generator: torch.Generator) -> Tensor:
    """Independent random signs, ``(probes, B, *state)`` in the dtype and on the device of ``z``.

    Drawn sample by sample: those of sample i depend on the generator's state and on i, on no other sample.

    Args:
        z: State ``(B, *state)``.
        probes: How many for each sample, at least 1.
        generator: On any device; it moves on by ``probes * z.numel()`` draws.

    Raises:
        InputError: ``probes`` or ``generator`` is none.
    """
    if not isinstance(probes, int) or isinstance(probes, bool) or probes < 1:
        raise InputError(f"probes={probes!r}; expected an integer >= 1 (with 0 a penalty would be inert)")
    if not isinstance(generator, torch.Generator):
        raise InputError(
            f"generator={generator!r}; expected a torch.Generator that lives as long as the training, so that every "
            "step draws new probes: generator = torch.Generator().manual_seed(0)"
        )
    shape = (len(z), probes, *z.shape[1:])
    signs = 2 * torch.randint(0, 2, shape, generator=generator, device=generator.device) - 1
    return signs.to(z).transpose(0, 1)


def jacobian_frobenius_penalty(
    loop: Loop, z: Tensor, *, generator: torch.Generator, probes: int = 1, per_entry: bool = False
) -> Tensor:
    """Unbiased estimate of ``|J|_F^2`` per sample, differentiable: the mean of ``|J' v|^2`` over random signs v.

    For one probe the variance is ``2 (|A|_F^2 - sum_i A_ii^2)`` with ``A = J J'``, which vanishes for a J with
    orthogonal rows (``J = c I`` is estimated exactly); P probes divide it by P. Small in sum over a batch and over
    training steps, for which one probe is usual.

    Products are computed in the loop's dtype, bfloat16 and float16 included, and squared and summed in float32 at
    least. The derivative is taken at its word: try the block once with :func:`fpcheck.jacobian`.

    Args:
        loop: The map.
        z: State ``(B, *state)``, any floating-point dtype.
        generator: Source of the probes.
        probes: Probes per sample and call.
        per_entry: Divide by n, the entries of one state: the mean squared singular value instead of their sum.

    Returns:
        ``(B,)``, float32 or wider: ``sum_ij J_ij^2`` in expectation, not divided by anything unless ``per_entry``.

    Raises:
        InputError: Wrong state, no generator, or no probe.
        NonFiniteError: A product holds NaN or inf.
        BlockError: The loop cannot be differentiated.
        GradientNotAvailableError: A gradient is asked for, but J depends on nothing that requires one.

    Guarantee: estimate, unbiased.
    Cost: one forward pass and ``probes`` walks back, recorded for the caller's ``backward``.
    Source: Hutchinson (1990); as a penalty on implicit models: Bai, Koltun and Kolter (2021).

    Example:
        >>> loop = Loop(lambda z: 0.5 * z, z0=torch.zeros(1, 3))
        >>> jacobian_frobenius_penalty(loop, torch.zeros(1, 3), generator=torch.Generator().manual_seed(0))
        tensor([0.7500])
    """
    _check_state(loop, z)
    vectors = rademacher_probes(z, probes, generator)
    products = _walks_back(loop, z, list(vectors))
    total = torch.stack([_wide(product).flatten(1).square().sum(1) for product in products]).mean(0)
    if not bool(torch.isfinite(total).all()):
        raise NonFiniteError(
            f"|J'v|^2 {where(~torch.isfinite(total))} is NaN or inf; the state has run away, or the dtype overflows"
        )
    return total / z[0].numel() if per_entry else total


def spectral_radius_penalty(
    loop: Loop,
    z: Tensor,
    *,
    target: float,
    power: float = 2.0,
    method: AbstractEigensolver | None = None,
    check: bool = True,
) -> Penalty:
    """Penalty ``relu(rho - target)^power`` on the spectral radius of J, per sample.

    The gradient is that of the eigenvalue of largest modulus (or of its pair). Where two unrelated eigenvalues share
    that modulus rho has a kink, and the gradient is that of one of them.

    A sample is used if the runs on J and J' bear each other out, and rounding moves the eigenvalue by at most
    ``eps^1/2`` of itself: its residual and the rounding of J, times the condition number ``1 / |y^H x|``. A nearly
    defective eigenvalue, whose derivative is nearly infinite, fails this. Causal loops whose tokens are in similar
    states come close to it, and may be skipped in float32 and not in float64.

    Args:
        loop: The map.
        z: State ``(B, *state)``, float32 or float64; best a fixed point.
        target: No penalty at or below, for example 0.95.
        power: At least 1; 2 makes the penalty smooth at the target.
        method: How eigenvectors are found, as in :func:`fpcheck.spectral.eigenpairs.eigenvalues`.
        check: Try the loop's derivative first, as :class:`fpcheck.spectral.operator.JacobianOperator` does.

    Raises:
        InputError: Wrong state, target or power.
        NonFiniteError, BlockError: As ``JacobianOperator``.
        GradientNotAvailableError: A gradient is asked for, but J depends on nothing that requires one.

    Guarantee: estimate.
    Cost: the eigenvectors of J and J' without gradient; then one forward pass and one or two walks back.
    """
    _check_hinge(target, power)
    op = JacobianOperator(loop, z, check=check)
    half = torch.finfo(z.dtype).eps ** 0.5
    pairs = eigenvalues(op, 1, method=method, rtol=half)
    assert pairs.left is not None
    value, x, y = pairs.values[:, 0], pairs.vectors[:, :, 0], pairs.left[:, :, 0]
    overlap = (y.conj() * x).sum(1)
    moved = (pairs.residual[:, 0] + op.rounding().to(x.device)) / overlap.abs()
    used = torch.isfinite(pairs.error[:, 0]) & (moved <= half * value.abs())
    c = torch.sgn(value).conj() / torch.where(used, overlap, 1.0)
    u = c.conj().unsqueeze(1) * y
    # Re (u^H J x) in real arithmetic.
    terms = [(u.real, x.real), (u.imag, x.imag)]
    rotating = bool(u.imag.any()) and bool(x.imag.any())
    radius = _gradient_of(loop, z, value.abs(), used, terms if rotating else terms[:1])
    return _hinge(radius, used, target, power)


def log_norm_penalty(loop: Loop, z: Tensor, *, target: float, power: float = 2.0, check: bool = True) -> Penalty:
    """Penalty ``relu(mu_2 - target)^power`` on the log-norm of J, per sample.

    ``mu_2 < 1`` at the fixed point is what some damping step needs to contract in the 2-norm. Where the largest
    eigenvalue of ``(J + J') / 2`` is multiple the gradient is one of several subgradients.

    Args, Raises, Guarantee: As :func:`spectral_radius_penalty`.

    Cost: Lanczos on the symmetric part without gradient; then one forward pass and one walk back.
    """
    _check_hinge(target, power)
    found = log_norm(JacobianOperator(loop, z, check=check), rtol=_RTOL)
    figure = _gradient_of(loop, z, found.value.value, found.converged, [(found.left, found.right)])
    return _hinge(figure, found.converged, target, power)


def spectral_norm_penalty(loop: Loop, z: Tensor, *, target: float, power: float = 2.0, check: bool = True) -> Penalty:
    """Penalty ``relu(|J|_2 - target)^power`` on the largest stretch of one step, per sample.

    Stronger than needed to converge: loops that settle usually have ``|J|_2 > 1``. Where the largest singular value
    is multiple the gradient is one of several subgradients.

    Args, Raises, Guarantee: As :func:`spectral_radius_penalty`.

    Cost: Golub-Kahan-Lanczos without gradient; then one forward pass and one walk back.
    """
    _check_hinge(target, power)
    found = spectral_norm(JacobianOperator(loop, z, check=check), rtol=_RTOL)
    figure = _gradient_of(loop, z, found.value.value, found.converged, [(found.left, found.right)])
    return _hinge(figure, found.converged, target, power)


def _check_hinge(target: float, power: float) -> None:
    if isinstance(target, bool) or not (isinstance(target, int | float) and math.isfinite(target)):
        raise InputError(f"target={target!r}; expected a finite number, such as 0.95")
    if isinstance(power, bool) or not (isinstance(power, int | float) and 1 <= power < math.inf):
        raise InputError(f"power={power!r}; expected a finite number >= 1")


def _gradient_of(loop: Loop, z: Tensor, exact: Tensor, used: Tensor, terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The value ``exact`` with the gradient of the sum of ``u' J w`` over ``terms``, where used."""
    products = _walks_back(loop, z, [u.to(z).view_as(z) for u, _ in terms])
    pairs = zip(products, terms, strict=True)
    form = torch.stack([(p.flatten(1).double() * w).sum(1) for p, (_, w) in pairs]).sum(0)
    # The form is the figure up to rounding in the loop's dtype; the value comes from where it is known better.
    return (exact + torch.where(used, form - form.detach(), 0.0)).to(z.dtype)


def _hinge(figure: Tensor, used: Tensor, target: float, power: float) -> Penalty:
    return Penalty(torch.where(used, torch.relu(figure - target) ** power, 0.0), figure, used)


def _walks_back(loop: Loop, z: Tensor, cotangents: Sequence[Tensor]) -> list[Tensor]:
    """Products ``J' u``, each ``(B, *state)``, recorded for a further derivative if the caller records."""
    wanted = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad(), _plain_attention():
        # A copy, so that J holds no path from z to F other than through the loop's argument.
        at = z.clone() if z.requires_grad and wanted else z.detach().clone().requires_grad_()
        try:
            out = loop(at)
            products = [_walk_back(out, at, u, record=wanted) for u in cotangents]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise BlockError(
                f"the block cannot be differentiated: {str(error).rstrip('.')}. It must not change its input in "
                "place, nor use tensors made in inference mode"
            ) from error
    if wanted and not any(product.requires_grad for product in products) and _trains(loop, z):
        raise GradientNotAvailableError(
            "the Jacobian depends on no parameter, injection or state that requires a gradient, so a penalty on it "
            "would do nothing: is the block linear with fixed weights, cut off from z, or does a custom autograd."
            "Function detach what it returns?"
        )
    return products if wanted else [product.detach() for product in products]


def _walk_back(out: Tensor, at: Tensor, u: Tensor, *, record: bool) -> Tensor:
    if not out.requires_grad:
        return torch.zeros_like(u)
    (product,) = torch.autograd.grad(
        out, at, u, create_graph=record, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return product


def _trains(loop: Loop, z: Tensor) -> bool:
    """Whether anything about the loop requires a gradient."""
    parameters = list(loop.block.parameters()) if isinstance(loop.block, nn.Module) else []
    return any(one.requires_grad for one in (z, *loop.leaves(), *parameters))


def _wide(product: Tensor) -> Tensor:
    return product.to(torch.promote_types(product.dtype, torch.float32))


def _check_state(loop: Loop, z: Tensor) -> None:
    if not isinstance(z, Tensor) or not z.is_floating_point():
        kind = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise InputError(f"z is {kind}; expected a floating-point state (B, *state)")
    if z.ndim == 0 or z.numel() == 0 or len(z) != loop.batch_size:
        raise InputError(f"z.shape={tuple(z.shape)}; expected (B, *state) with B={loop.batch_size}, as in the loop")
