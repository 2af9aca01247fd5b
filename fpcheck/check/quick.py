r"""The quick check: whether the verdict follows from the bounds that a certificate records.

Every comparison is made in Arb's arithmetic on the recorded floats taken as real numbers; one that Arb cannot decide
does not hold. The bounds themselves are believed here; `full` recomputes them.
"""

from __future__ import annotations

from collections.abc import Callable

import flint
from flint import arb

from fpcheck.check.document import VERDICTS, Document
from fpcheck.check.lines import Line
from fpcheck.check.values import BITS

__all__ = ["quick_lines"]


def quick_lines(held: Document) -> list[Line]:
    """Compare.

    Guarantee: decided in ball arithmetic.
    Source: Theorems Q4, K1 and H5.
    """
    with flint.ctx.workprec(BITS):
        return [*_hash_lines(held), *_ball_lines(held), *_decision_lines(held)]


def _hash_lines(held: Document) -> list[Line]:
    return [
        Line(
            f"SHA-256 of array {name}",
            recorded[:12],
            held.arrays[name].digest[:12],
            "",
            recorded == held.arrays[name].digest,
        )
        for name, recorded in held.digests.items()
    ]


def _ball_lines(held: Document) -> list[Line]:
    v = {name: arb(value) for name, value in held.bounds.items() if value is not None}
    theorem = VERDICTS[held.verdict]
    Y, Z1, r, kappa = v["residual"], v["centre_rate"], v["radius"], v["rate"]
    near, near_kappa, error = v["near_radius"], v["near_rate"], v["error_bound"]
    room, near_room = (1 - kappa) * r, (1 - near_kappa) * near
    return [
        _below("radius above 0", arb(0), r, theorem, strict=True),
        _below("rate below 1", kappa, arb(1), theorem, strict=True),
        _below("centre rate <= near rate", Z1, near_kappa, theorem),
        _below("near rate <= rate", near_kappa, kappa, theorem),
        _below("near radius <= radius", near, r, theorem),
        _below("residual <= (1 - rate) radius", Y, room, theorem),
        _below("residual <= (1 - near rate) near radius", Y, near_room, theorem),
        _below("residual <= (1 - near rate) error bound", Y, (1 - near_kappa) * error, theorem),
        _below("1 <= |L| |L^-1|", arb(1), v["norm"] * v["inverse_norm"], "R2"),
        _below("Euclidean radius |L| <= radius", v["euclidean_radius"] * v["norm"], r, theorem),
        _below(
            "error bound |L^-1| <= Euclidean error bound",
            error * v["inverse_norm"],
            v["euclidean_error_bound"],
            theorem,
        ),
    ]


def _decision_lines(held: Document) -> list[Line]:
    answers = held.answers
    if answers is None:
        return []
    error = arb(held.bound("error_bound"))
    lines = []
    for token, (radius, stable) in enumerate(zip(answers.radius, answers.stable, strict=True)):
        if stable:
            lines.append(
                _below(f"error bound < decision radius of token {token}", error, arb(radius), "H5", strict=True)
            )
    return lines


def _below(name: str, low: arb, high: arb, theorem: str, *, strict: bool = False) -> Line:
    compare: Callable[[arb, arb], bool] = arb.__lt__ if strict else arb.__le__
    return Line(name, _figure(low), _figure(high), theorem, bool(compare(low, high)))


def _figure(value: arb) -> str:
    return f"{float(value.mid()):.9g}"
