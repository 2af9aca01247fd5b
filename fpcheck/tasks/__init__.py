"""Tasks generated locally, seeded, with exact answers."""

from collections.abc import Mapping
from typing import Any

from fpcheck.errors import InputError
from fpcheck.tasks.groups import StateTracking

__all__ = ["StateTracking", "task_from_dict"]


def task_from_dict(settings: Mapping[str, Any]) -> StateTracking:
    """The task that a model card describes.

    Raises:
        InputError: Of a kind that this version does not know.
    """
    kind = settings.get("kind")
    if kind != "state-tracking":
        raise InputError(f"task kind={kind!r}; this version knows 'state-tracking' only")
    return StateTracking(group=settings["group"], length=settings["length"])
