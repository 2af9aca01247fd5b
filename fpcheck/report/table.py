"""One row per input, and one line that sums up."""

from __future__ import annotations

from collections import Counter

from rich.table import Table

from fpcheck.assess import Assessment, Row
from fpcheck.status import Status

__all__ = ["summary", "table"]


def table(result: Assessment) -> Table:
    """The assessment as a table; the title says that its figures are estimates."""
    out = Table(
        title=f"{result.target}: level ESTIMATE (measured in {result.dtype}, nothing proved)",
        title_justify="left",
        caption="rate: factor per loop step, predicted by the spectrum and measured without it; s_c: largest stable "
        "damping step",
        caption_justify="left",
        padding=(0, 1, 0, 0),
        box=None,
    )
    columns = ("input", "loop", "steps", "residual", "rho(J)", "|J|_2", "mu_2", "s_c", "rate pred.", "meas.", "regime",
               "answer")  # fmt: skip
    for name in columns:
        left = name in ("loop", "regime", "answer")
        out.add_column(name, justify="left" if left else "right", no_wrap=True)
    for row in result.rows:
        out.add_row(*_cells(row), style=None if row.attracting else "red")
    return out


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
