"""Merges of configurations that a command makes up from its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mergeloom.commands.merge import run_merge
from mergeloom.engine.base.errors import Finding, LoomError
from mergeloom.options import ModelSearch, ResourceOptions
from mergeloom.printer import Printer


def run_unwritten(
    configuration: Mapping[str, Any],
    output: Path,
    printer: Printer,
    search: ModelSearch,
    resources: ResourceOptions,
    *,
    seed: int = 0,
    max_shard_size: str = "5GB",
    dry_run: bool,
    restart: bool,
) -> None:
    """Plan a configuration and run it, or with ``dry_run`` show the plan."""
    from mergeloom import api

    try:
        planned = api.plan(
            configuration,
            output=output,
            **resources.arguments,
            **search.arguments,
            seed=seed,
            max_shard_size=max_shard_size,
            observer=printer.planning(),
        )
    except LoomError as error:
        error.reword(_without_place)
        raise
    planned = replace(planned, findings=tuple(map(_without_place, planned.findings)))
    if dry_run:
        from mergeloom.report.terminal.plan import render_plan

        printer.answer(planned.report, lambda: render_plan(planned.report))
        return
    run_merge(planned, output, printer, restart=restart)


def _without_place(finding: Finding) -> Finding:
    """A finding without its place in the configuration, which the user has not seen."""
    return replace(finding, place=None)
