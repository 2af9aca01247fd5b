"""The assessment as a JSON document. Its fields are described in docs/json.md; bump VERSION when they change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from enum import Enum
from typing import Any

import torch

from fpcheck._version import __version__
from fpcheck.assess import Assessment, Row
from fpcheck.bounds import BoundRow, Bounds
from fpcheck.everywhere import Everywhere, GlobalRow
from fpcheck.survey import Survey, SurveyRow

__all__ = [
    "BOUNDS_SCHEMA",
    "GLOBAL_SCHEMA",
    "SCHEMA",
    "SPECTRUM_SCHEMA",
    "VERSION",
    "bounds_document",
    "document",
    "global_document",
    "survey_document",
]

SCHEMA = "fpcheck.assessment"
SPECTRUM_SCHEMA = "fpcheck.spectrum"
BOUNDS_SCHEMA = "fpcheck.bounds"
GLOBAL_SCHEMA = "fpcheck.global"
VERSION = 1


def document(result: Assessment, *, eigenvalues: int = 16) -> dict[str, Any]:
    """Plain dicts, lists, strings and finite numbers; what was not computed, or is infinite, is null.

    Args:
        result: The assessment.
        eigenvalues: How many eigenvalues of largest modulus to keep per input.
    """
    rows = []
    for i, row in enumerate(result.rows):
        column = result.history[:, i]
        entry = {f.name: _plain(getattr(row, f.name)) for f in fields(Row)}
        entry["residuals"] = [_plain(float(v)) for v in column[~torch.isnan(column)]]
        kept = result.eigenvalues[i, :eigenvalues]
        entry["eigenvalues"] = _pairs(kept)
        rows.append(entry)
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "level": result.level,
        "proved": False,
        "target": result.target,
        "source": result.source,
        "fpcheck": __version__,
        "torch": torch.__version__,
        "dtype": result.dtype,
        "rtol": result.rtol,
        "max_steps": result.max_steps,
        "passed": result.passed,
        "rows": rows,
    }


def survey_document(result: Survey, *, eigenvalues: int = 16) -> dict[str, Any]:
    """The survey of spectra, in the same manner.

    Args:
        result: The survey.
        eigenvalues: How many eigenvalues of largest modulus to keep per input.
    """
    rows = []
    for i, row in enumerate(result.rows):
        entry = {f.name: _plain(getattr(row, f.name)) for f in fields(SurveyRow)}
        entry["eigenvalues"] = _pairs(result.eigenvalues[i][:eigenvalues])
        entry["numerical_range"] = _pairs(result.ranges[i])
        entry["growth"] = [_plain(float(v)) for v in result.growth[i]]
        rows.append(entry)
    return {
        "schema": SPECTRUM_SCHEMA,
        "version": VERSION,
        "level": result.level,
        "proved": False,
        "target": result.target,
        "source": result.source,
        "fpcheck": __version__,
        "torch": torch.__version__,
        "dtype": result.dtype,
        "n": result.n,
        "failure_probability": result.failure_probability,
        "complete": result.complete,
        "passed": result.passed,
        "rows": rows,
    }


def _pairs(values: torch.Tensor) -> list[list[Any]]:
    return [[_plain(float(v.real)), _plain(float(v.imag))] for v in values]


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.name if isinstance(value.value, int) else value.value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def bounds_document(result: Bounds) -> dict[str, Any]:
    """What was proved, in the same manner."""
    return _proofs(BOUNDS_SCHEMA, result, BoundRow)


def global_document(result: Everywhere) -> dict[str, Any]:
    """What was proved for all states, in the same manner."""
    return _proofs(GLOBAL_SCHEMA, result, GlobalRow)


def _proofs(schema: str, result: Bounds | Everywhere, kind: type[Any]) -> dict[str, Any]:
    return {
        "schema": schema,
        "version": VERSION,
        "level": result.level,
        "target": result.target,
        "source": result.source,
        "fpcheck": __version__,
        "torch": torch.__version__,
        "passed": result.passed,
        "rows": [{f.name: _plain(getattr(row, f.name)) for f in fields(kind)} for row in result.rows],
    }
