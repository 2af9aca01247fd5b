r"""From when on the decoded answer cannot change: margins of a linear read-out against distances in the metric.

Theorem H5: if z* and all later iterates are within e of the centre in the metric, and the margin of a token's answer
over every other class is above ``row * e`` with :math:`row = |(w_{top} - w_j)' S L^{-1}|_2`, then the answer is the
same at the centre, at all of them and at z*.

Shapes: logits ``(1, *tokens, classes)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fpcheck.certify.balls import Ball
from fpcheck.certify.enclosure import evaluate, push
from fpcheck.certify.fusion import fuse
from fpcheck.certify.metric import Metric
from fpcheck.certify.nodes import nodes_of
from fpcheck.certify.norms import row_norm_bounds
from fpcheck.certify.rounding import inflate, up
from fpcheck.certify.tangents import Tangents
from fpcheck.certify.trace import Graph, trace
from fpcheck.errors import UnsupportedOperatorError

__all__ = ["Decisions", "decisions"]


@final
@dataclass(frozen=True, eq=False)
class Decisions:
    """What the centre answers, and how far states may be from it, in the metric, without a change of answer.

    Attributes:
        answer: The class with the largest logit, by token, ``(*tokens)``.
        radius: By token, ``(*tokens)``: every state less than this far from the centre has the same answer; 0 where two
            classes tie.
        graph: The read-out.
    """

    answer: Tensor
    radius: Tensor
    graph: Graph


def decisions(
    readout: Callable[[Tensor], Tensor], state: Tensor, metric: Metric, *, dtype: torch.dtype | None = None
) -> Decisions:
    """Margins of a linear read-out at a centre.

    Args:
        readout: From a state ``(1, *state)`` to logits ``(1, *tokens, classes)``.
        state: The centre.
        metric: The metric of the certificate.
        dtype: What the read-out computes in, if not the state's own dtype.

    Raises:
        UnsupportedOperatorError: The read-out is not linear in the state.

    Guarantee: bound, rounding included.
    Source: Theorem H5.
    """
    graph = fuse(trace(readout, state if dtype is None else state.to(dtype)))
    values = evaluate(graph, state)
    bent = nodes_of(graph, values)
    if bent:
        raise UnsupportedOperatorError(
            f"the read-out is not linear ({bent[0].name} at {bent[0].where}); expected one linear map of the state"
        )
    logits = values[graph.output].reshape(-1, values[graph.output].shape[-1])
    n = state.numel()
    seed = Tangents(torch.eye(n, dtype=torch.float64).reshape(n, *state.shape))
    rows = push(graph, values, seed).tangents[graph.output]
    jacobian = rows.mid.reshape(n, *logits.shape).permute(1, 2, 0)
    tokens = logits.shape[0]
    answer = logits.mid.argmax(-1)
    index = torch.arange(tokens)
    margin = (logits[index, answer].reshape(tokens, 1) - logits).lower()
    difference = jacobian[index, answer].unsqueeze(1) - jacobian
    # |v L^-1| <= |v X| + |v X| defect / (1 - defect); rounding of the difference and of the tangents on top.
    product = Ball.exact(difference) @ Ball.exact(metric.inverse)
    length = row_norm_bounds(product)
    own = up(up(2 * rows.error) + up(2.0**-52 * float(inflate(difference.abs().sum(), difference.numel()))))
    length = inflate(length / (1 - metric.defect) * (1 + 2.0**-50) + up(own * metric.inverse_norm), 4)
    others = torch.ones_like(margin, dtype=torch.bool)
    others[index, answer] = False
    radius = torch.where(others, margin.clamp_min(0) / length * (1 - 2.0**-50), math.inf).amin(-1)
    shape = values[graph.output].shape[1:-1]
    return Decisions(answer.reshape(shape), radius.reshape(shape), graph)
