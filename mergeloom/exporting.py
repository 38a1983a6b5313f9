"""The Python API for exporting models."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergeloom import arguments
from mergeloom.api import Observer, resolver_for
from mergeloom.arguments import Pathlike, Size
from mergeloom.engine import job as jobs
from mergeloom.engine.base.errors import OutputError
from mergeloom.engine.hardware import process
from mergeloom.methods.ops.arithmetic import TORCH, cpu_arithmetic
from mergeloom.report.records import ExportReport
from mergeloom.watch import Watch

PARTIAL = ".partial"
"""Suffix of the directory that an unfinished file is written in."""


def export(
    model: Pathlike,
    output: Pathlike,
    *,
    type: str = "f16",
    tokenizer: bool = True,
    overwrite: bool = False,
    ram: Size | None = None,
    threads: int | None = None,
    model_dirs: Mapping[str, Pathlike] | None = None,
    search: Pathlike | Sequence[Pathlike] = (),
    observer: Observer | None = None,
) -> ExportReport:
    """Write a model to the GGUF file ``output``, within the memory budget ``ram``.

    Matrices are stored as ``type`` (f32, f16, bf16 or q8_0), everything else as f32. The file is
    written in a directory of its own, where an interrupted export continues, and moved to
    ``output`` when it is finished. With ``tokenizer``, it includes the tokenizer.

    Raises:
        ConfigError, CheckpointError: the model is not found, malformed, or its family or tokenizer
        is not supported. OutputError: the file exists, and ``overwrite`` is false. BudgetError: the
        budget is too small. RunError: reading, computing or writing failed. KeyboardInterrupt:
        interrupted; finished work is kept.
    """
    from mergeloom.planners.export.gguf import FILE_NAME, TYPES, plan_export

    began = time.perf_counter()
    observer = observer or Observer()
    kind = arguments.one_of(type, "type", list(TYPES))
    path = arguments.path_of(output, "the output")
    replaces = arguments.boolean(overwrite, "overwrite") and os.path.isfile(path)
    if os.path.exists(path) and not replaces:
        raise OutputError(f"'{path}' exists already", remedy="choose another name, or --overwrite")
    budget = process.default_budget() if ram is None else arguments.size(ram, "ram")
    workers = None if threads is None else arguments.integer(threads, "threads", 1)
    name = os.fspath(model)
    resolver = resolver_for(model_dirs, search, observer)
    planned = plan_export(
        name, resolver, kind, path.stem, arguments.boolean(tokenizer, "tokenizer")
    )
    here = process.this_machine(cpu_arithmetic(), TORCH, workers)
    directory = Path(f"{path}{PARTIAL}")
    watch = Watch(observer)
    outcome = jobs.run(
        planned.job,
        directory,
        jobs.Options(ram=budget, machine=here),
        begun=watch.begun,
        poll=watch.progressed,
        building=observer.building,
    )
    os.replace(directory / FILE_NAME, path)
    shutil.rmtree(directory)
    return ExportReport(
        model=name,
        output=str(path),
        type=kind,
        tensors=len(planned.graph.writes),
        bytes=planned.nbytes,
        left_out=planned.left_out,
        budget_bytes=budget,
        peak_rss_bytes=outcome.peak_rss_bytes,
        wall_seconds=time.perf_counter() - began,
    )
