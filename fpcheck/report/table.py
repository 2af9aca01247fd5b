"""One row per input, and one line that sums up."""

from __future__ import annotations

from collections import Counter
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from math import isfinite

from rich.table import Table

from fpcheck.assess import Assessment, Row
from fpcheck.bounds import BoundRow, Bounds, statistical
from fpcheck.certify import GlobalVerdict, Verdict
from fpcheck.everywhere import Everywhere, GlobalRow
from fpcheck.status import Status
from fpcheck.survey import Survey, SurveyRow

__all__ = [
    "bounds_summary",
    "bounds_table",
    "global_summary",
    "global_table",
    "readable",
    "summary",
    "survey_summary",
    "survey_table",
    "table",
]


def _framed(
    title: str,
    caption: str,
    columns: tuple[str, ...],
    *,
    left: tuple[str, ...],
    rows: list[tuple[tuple[str, ...], bool]],
) -> Table:
    """A table of cells, those rows red that are not as one would wish."""
    out = Table(
        title=title, title_justify="left", caption=caption, caption_justify="left", padding=(0, 1, 0, 0), box=None
    )
    for name in columns:
        out.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for cells, fine in rows:
        out.add_row(*cells, style=None if fine else "red")
    return out


def table(result: Assessment) -> Table:
    """The assessment as a table; the title says that its figures are estimates."""
    columns = ("input", "loop", "steps", "residual", "rho(J)", "|J|_2", "mu_2", "s_c", "rate pred.", "meas.", "regime",
               "answer")  # fmt: skip
    rows = [(_cells(row), row.attracting) for row in result.rows]
    return _framed(
        f"{result.target}: level ESTIMATE (measured in {result.dtype}, nothing proved)",
        "rate: factor per loop step, predicted by the spectrum and measured without it; s_c: largest stable "
        "damping step",
        columns,
        left=("loop", "regime", "answer"),
        rows=rows,
    )


def _cells(row: Row) -> tuple[str, ...]:
    measured = "-" if row.measured_rate is None else f"{row.measured_rate:.4f}"
    # A state that is no fixed point has a spectrum, but it predicts nothing for the long run.
    predicted = "-" if row.fixed_point is None else f"{row.predicted_rate:.4f}"
    step = "-" if row.fixed_point is None else f"{row.critical_step:.3f}"
    regime = "no fixed point" if row.fixed_point is None else row.regime.value
    return (
        str(row.index), row.status.name.lower(), "-" if row.steps is None else str(row.steps), f"{row.residual:.1e}",
        f"{row.radius:.4f}", f"{row.norm:.2f}", f"{row.log_norm:.2f}", step, predicted, measured, regime, answer(row),
    )  # fmt: skip


def answer(row: Row) -> str:
    """How right the decoded answer is, in words."""
    if row.right is None:
        return "-"
    return "right" if row.right == 1.0 else f"wrong ({row.right:.0%} of positions right)"


def summary(result: Assessment) -> str:
    """A few lines: what was found on how many inputs, which inputs failed and why."""
    rows = result.rows
    good = [row for row in rows if row.attracting]
    line = f"ESTIMATE: {len(good)} of {len(rows)} inputs settle on a fixed point that attracts, as far as was measured"
    if good:
        line += f" (rho {min(r.radius for r in good):.3f} to {max(r.radius for r in good):.3f}"
        gaps = [abs(r.measured_rate / r.radius - 1) for r in good if r.measured_rate is not None and r.radius > 0]
        line += f", measured rate equal to rho within {max(gaps):.0e} relative)" if gaps else ")"
    lines = [line + "."]
    scored = [row.right for row in rows if row.right is not None]
    if scored:
        lines.append(f"Answers: {sum(r == 1.0 for r in scored)} of {len(scored)} inputs wholly right.")
    reasons = Counter(row.reason for row in rows if not row.attracting)
    for reason, count in reasons.most_common():
        where = ", ".join(str(row.index) for row in rows if row.reason == reason)
        lines.append(f"FAILED on {count} inputs ({where}): {reason}.")
    ended = {row.status for row in rows} - {Status.CONVERGED}
    lines += [f"{status.name}: {status.text}" for status in Status if status in ended]
    return "\n".join(lines)


def survey_table(result: Survey) -> Table:
    """The survey as a table, one row per input."""
    columns = ("input", "point", "rho(J)", "+-", "carry", "|J|_2", "<=", "mu_2", "<=", "s_c", "best s", "rate",
               "period", "peak (k)", "k<1", "findings")  # fmt: skip
    rows = [(_survey_cells(row), row.converged) for row in result.rows]
    return _framed(
        f"{result.target}: spectra, level ESTIMATE (n = {result.n}, measured in {result.dtype}, nothing proved)",
        "carry: rho of the linear carry alone; |J|_2 <= and mu_2 <=: exceeded with probability "
        f"{result.failure_probability:.0e} at most; s_c: largest stable damping step; peak: largest |J^k|_2 and its k; "
        "k<1: steps until |J^k|_2 < 1",
        columns,
        left=("point", "findings"),
        rows=rows,
    )


def _survey_cells(row: SurveyRow) -> tuple[str, ...]:
    point = {"loop": "settled", "found": "found", None: "no fixed point"}[row.fixed_point]
    peak = "-" if row.peak_growth is None else f"{row.peak_growth:.2f} ({row.peak_step})"
    return (
        str(row.index), point, f"{row.radius:.4f}", f"{row.radius_error:.0e}",
        "-" if row.carry_radius is None else f"{row.carry_radius:.3f}", f"{row.norm:.3f}", _up(row.norm_bound),
        f"{row.log_norm:.3f}", _up(row.log_norm_bound), f"{row.critical_step:.3f}", f"{row.best_step:.3f}",
        f"{row.best_rate:.4f}", "-" if row.period == float("inf") else f"{row.period:.3g}", peak,
        "-" if row.contraction_steps is None else str(row.contraction_steps), ", ".join(row.findings),
    )  # fmt: skip


def _up(bound: float) -> str:
    """Three digits after the point, rounded up: a bound stays one in print."""
    return _ceiling(bound if isfinite(bound) else None, 3)


def survey_summary(result: Survey) -> str:
    """What was found on how many inputs, with the advice for the one of largest radius, and how it was computed."""
    lines = []
    paths = Counter(row.path for row in result.rows)
    lines.append("ESTIMATE. Eigenvalues: " + "; ".join(f"{path} ({n} inputs)" for path, n in paths.most_common()) + ".")
    for finding, count in Counter(f for row in result.rows for f in row.findings).most_common():
        where = [row for row in result.rows if finding in row.findings]
        worst = max(where, key=lambda row: row.radius)
        said = worst.advice[worst.findings.index(finding)]
        shown = ", ".join(str(row.index) for row in where[:8]) + (", ..." if count > 8 else "")
        lines.append(f"{finding.upper()}: {count} of {len(result.rows)} inputs ({shown}). Input {worst.index}: {said}")
    lost = [str(row.index) for row in result.rows if not row.converged]
    if lost:
        lines.append(
            f"NOT CONVERGED on inputs {', '.join(lost)}: their figures are less accurate than asked for, as the errors "
            "say; try --method dense, or more restarts."
        )
    away = [row for row in result.rows if row.fixed_point is None]
    if away:
        largest = max(row.residual for row in away)
        lines.append(
            f"{len(away)} of {len(result.rows)} states are not fixed points (largest relative residual {largest:.1e}): "
            "their figures describe one step there, not the long run."
        )
    return "\n".join(lines)


def bounds_table(result: Bounds) -> Table:
    """What was proved, one row per input."""
    columns = ("input", "verdict", "rate", "r", "rel. r", "error", "enters", "stable", "limited by",
               "seconds")  # fmt: skip
    rows = [(_bound_cells(row), row.verdict is Verdict.PROVED_ATTRACTING) for row in result.rows]
    return _framed(
        f"{result.target}: level BOUND (proved, rounding included)",
        "rate: per loop step near the fixed point; r: radius of the certified ball in its metric; rel. r, "
        "error: Euclidean, over the state's norm; enters: relative residual at which the trajectory is in the ball; "
        "stable: "
        "share of answers proved at the fixed point / from residual 1e-3 on",
        columns,
        left=("verdict", "limited by"),
        rows=rows,
    )


def _ceiling(value: float | None, digits: int) -> str:
    """A bound from above is printed rounded up."""
    if value is None:
        return "-"
    return f"{Decimal(value).quantize(Decimal(10) ** -digits, ROUND_CEILING)}"


def _rough(value: float | None, rounding: str) -> str:
    """Two figures, rounded to the side on which what is printed still holds."""
    return "-" if value is None else f"{Context(prec=2, rounding=rounding).create_decimal(value):.1e}"


def _bound_cells(row: BoundRow) -> tuple[str, ...]:
    shares = [s for s in (row.stable, row.stable_when_halting) if s is not None]
    stable = " / ".join(f"{s:.0%}" for s in shares) or ("not covered" if row.undecided else "-")
    return (
        str(row.index), row.verdict.value, _ceiling(row.rate, 4), _rough(row.radius, ROUND_FLOOR),
        _rough(row.relative_radius, ROUND_FLOOR), _rough(row.relative_error, ROUND_CEILING),
        _rough(row.entry_residual, ROUND_FLOOR), stable,
        _largest_share(row), f"{row.seconds:.0f}",
    )  # fmt: skip


def _largest_share(row: BoundRow) -> str:
    name, share = max(row.shares.items(), key=lambda pair: pair[1], default=("", 0.0))
    return f"{readable(name)} ({share:.0%})" if name else "-"


# What users call the nodes whose names in a certificate say how they are bounded.
_NODES = {
    "rms": "RMSNorm", "centred_rms": "LayerNorm", "relu": "ReLU", "silu": "SiLU", "gelu": "GELU",
    "gelu_tanh": "GELU (tanh form)",
}  # fmt: skip


def readable(node: str) -> str:
    """The name of a node for people, with its place in the order of the step: ``"3 LayerNorm"``."""
    place, _, name = node.partition(" ")
    return f"{place} {_NODES.get(name, name)}"


_EXACT = (
    "This is about the exact map of the stored numbers; of the loop that runs in floating point nothing is claimed "
    "here: fp.Study(certificate).running(dtype) asks."
)


def bounds_summary(result: Bounds) -> str:
    """A few lines: on how many inputs what was proved, what it means, and what failed elsewhere."""
    rows = result.rows
    lines = []
    for verdict in Verdict:
        count = sum(row.verdict is verdict for row in rows)
        # The first line is there even for none: it is what was asked for.
        if count or verdict is Verdict.PROVED_ATTRACTING:
            meaning = f": {verdict.text}" if count else ""
            lines.append(f"{verdict.value.upper()} on {count} of {len(rows)} inputs{meaning}.")
    if len(rows) > 1:
        lines.append(f"STATISTICAL: {statistical(result).text}.")
    reasons = Counter(row.reason for row in rows if row.verdict is not Verdict.PROVED_ATTRACTING)
    for reason, count in reasons.most_common():
        where = ", ".join(str(row.index) for row in rows if row.reason == reason)
        lines.append(f"Not proved attracting on {count} input(s) ({where}): {reason}.")
    if result.passed:
        lines.append(_EXACT)
    undecided = Counter(row.undecided for row in rows if row.undecided)
    lines += [f"Answers not certified on {count} input(s): {reason}." for reason, count in undecided.most_common()]
    return "\n".join(lines)


def global_table(result: Everywhere) -> Table:
    """What was proved for all states, one row per input."""
    columns = ("input", "verdict", "norm N", "a", "R", "start", "seconds")  # fmt: skip
    rows = [(_global_cells(row), row.verdict is not GlobalVerdict.UNKNOWN) for row in result.rows]
    return _framed(
        f"{result.target}: level GLOBAL (proved for all states, rounding included)",
        "a: N(F(z)) <= a N(z) + b for every state z; R: radius of the ball that no run leaves and all come "
        "near; start: N of the start state",
        columns,
        left=("verdict", "norm N"),
        rows=rows,
    )


def _global_cells(row: GlobalRow) -> tuple[str, ...]:
    radius, start = _rough(row.radius, ROUND_CEILING), _rough(row.start, ROUND_CEILING)
    return (str(row.index), row.verdict.value, row.norm, _ceiling(row.rate, 4), radius, start, f"{row.seconds:.0f}")


def global_summary(result: Everywhere) -> str:
    """A few lines: what was proved on how many inputs, what it means, and what failed elsewhere."""
    rows = result.rows
    lines = []
    for verdict in GlobalVerdict:
        count = sum(row.verdict is verdict for row in rows)
        if count:
            lines.append(f"{verdict.value.upper()} on {count} of {len(rows)} inputs: {verdict.text}.")
    for reason, count in Counter(row.reason for row in rows if row.reason).most_common():
        lines.append(f"Not proved on {count} input(s): {reason}.")
    return "\n".join(lines)
