"""What else follows from a certificate: conditioning, damping steps, the running loop, nearby injections.

All of it needs the enclosure at the certificate's centre and its linearisation; a `Study` makes them once.
"""

from __future__ import annotations

from functools import cached_property
from typing import final

import torch

from fpcheck.certify.certificate import Certificate, Verdict
from fpcheck.certify.conditioning import Conditioning, conditioning
from fpcheck.certify.curvature import Linearisation, linearise
from fpcheck.certify.damped import CertifiedSteps, certified_steps
from fpcheck.certify.enclosure import Enclosure, enclose_graph
from fpcheck.certify.inputs import Nearby, nearby
from fpcheck.certify.roundings import Arithmetic
from fpcheck.certify.running import Running, running
from fpcheck.errors import InputError
from fpcheck.loop import Loop

__all__ = ["Study"]


@final
class Study:
    """Further bounds from one certificate.

    Args:
        certificate: What `certify` proved; damping steps can be asked for whatever its verdict.

    Cost: the first question makes an enclosure, as `certify` does.

    Example:
        >>> import torch
        >>> import fpcheck as fp
        >>> loop = fp.Loop(lambda z, x: torch.tanh(0.5 * z) + x, torch.ones(1, 2, dtype=torch.float64))
        >>> study = fp.Study(fp.certify(loop, fp.fixed_point(loop, torch.zeros(1, 2, dtype=torch.float64)).value))
        >>> study.conditioning().inverse < 2  # at a slope below 1/2
        True
        >>> study.running(torch.float32).claimed
        True
    """

    def __init__(self, certificate: Certificate) -> None:
        self.certificate = certificate

    @cached_property
    def held(self) -> Enclosure:
        """The step and its Jacobian at the centre, enclosed."""
        return enclose_graph(self.certificate.graph, self.certificate.centre)

    @cached_property
    def linear(self) -> Linearisation:
        """Its nodes, and the linear maps between them."""
        return linearise(self.held)

    def conditioning(self, *, radius: float | None = None) -> Conditioning:
        """How firmly the fixed point is tied down; see :func:`~fpcheck.certify.conditioning.conditioning`.

        Raises:
            InputError: No fixed point was proved, or the ball of ``radius`` need not hold it.
        """
        return conditioning(self.held, self.linear, self.certificate, radius=radius)

    def damping(self) -> CertifiedSteps | None:
        """The largest damping step with a proof, and the one with the best proved rate; None where none was proved."""
        return certified_steps(self.held, self.linear)

    def running(self, arithmetic: Arithmetic | torch.dtype) -> Running:
        """Where the iterates of the loop that runs in floating point stay.

        Args:
            arithmetic: How it runs; a dtype stands for ``Arithmetic(dtype)``.

        Raises:
            InputError: The certificate proves no attraction.
        """
        how = arithmetic if isinstance(arithmetic, Arithmetic) else Arithmetic(arithmetic)
        return running(self.held, self.linear, self.certificate, how)

    def nearby(self, loop: Loop) -> Nearby:
        """How the fixed point moves with the injection, and which injections share the certificate.

        Args:
            loop: The loop that was certified, as one sample.

        Raises:
            InputError: The certificate proves no attraction, or the loop has no injection of floating-point tensors.
        """
        if self.certificate.verdict is not Verdict.PROVED_ATTRACTING:
            raise InputError(f"verdict={self.certificate.verdict.value}; expected a certificate of attraction")
        return nearby(loop, self.certificate)
