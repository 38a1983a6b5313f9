"""Plans of configurations that are made from arguments, which their user has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mergeloom import api
from mergeloom.api import Observer
from mergeloom.engine.base.errors import Finding, LoomError
from mergeloom.results import PlannedMerge


def plan_made(
    configuration: Mapping[str, Any], settings: str, observer: Observer | None, **options: Any
) -> PlannedMerge:
    """`api.plan`, with messages that name options instead of places in the configuration.

    ``settings`` begins the path of values that are options.
    """

    def without_place(finding: Finding) -> Finding:
        path = "" if finding.place is None else finding.place.path
        cause = finding.cause
        if path.startswith(settings):
            option = path.removeprefix(settings).partition("[")[0]
            cause = f"--{option.replace('_', '-')}: {cause}"
        return replace(finding, place=None, cause=cause)

    observer = observer or Observer()
    silent = replace(observer, warned=lambda finding: None)
    try:
        planned = api.plan(configuration, observer=silent, **options)
    except LoomError as error:
        error.reword(without_place)
        raise
    planned = replace(planned, findings=tuple(map(without_place, planned.findings)))
    api.issue_warnings(planned.findings, observer)
    return planned
