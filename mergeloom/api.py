"""The Python API: plan a merge, run it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mergeloom.check import check_output
from mergeloom.engine import job as jobs
from mergeloom.engine.base.errors import ConfigError, OutputError
from mergeloom.engine.base.gc_pause import collection_paused
from mergeloom.engine.base.suggest import suggest
from mergeloom.engine.hardware import process as machine
from mergeloom.engine.hardware.accelerators import AUTO, choose
from mergeloom.engine.plan.schedule import schedule
from mergeloom.engine.run.executor import Progress
from mergeloom.engine.storage.source import IOMode
from mergeloom.methods.ops.compiled_ops import LIBRARY
from mergeloom.planners.config.config import Configuration
from mergeloom.planners.config.findings import check_known
from mergeloom.planners.config.load import config_from, load_config
from mergeloom.planners.models.resolve import Resolver
from mergeloom.planners.plan import DEFAULT_SHARD_BYTES, PlanOptions, make_plan
from mergeloom.report.units import parse_size
from mergeloom.results import MergeResult, PlannedMerge

Size = int | str
Pathlike = str | os.PathLike[str]

SEARCH_VARIABLE = "MERGELOOM_MODELS"
"""Environment variable with folders that hold models, separated as in ``PATH``."""


@dataclass(frozen=True)
class Observer:
    """Told how a merge goes on; ``downloading`` names a model that is about to be fetched, and
    ``building`` compiled loops that are about to be made for this machine."""

    begun: Callable[[jobs.Begun], None] | None = None
    progressed: Callable[[Progress], None] | None = None
    downloading: Callable[[str], None] = field(default=lambda name: None)
    building: Callable[[frozenset[str]], None] | None = None


def plan(
    config: Pathlike | Mapping[str, Any] | Configuration,
    *,
    ram: Size | None = None,
    threads: int | None = None,
    device: str = AUTO,
    vram: Size | None = None,
    seed: int = 0,
    max_shard_size: Size = DEFAULT_SHARD_BYTES,
    model_dirs: Mapping[str, Pathlike] | None = None,
    search: Sequence[Pathlike] = (),
    allow_truncated_embeddings: bool = False,
    strict: bool = False,
    observer: Observer | None = None,
) -> PlannedMerge:
    """Plan a merge; reads headers only and does not import torch.

    ``config`` is the path of a YAML file, or its content as a mapping. ``ram`` is the memory
    budget of the whole process, in bytes or as ``"8GiB"``; by default four fifths of what is
    available. ``device`` is where to compute: ``auto`` lets the schedule choose, ``cpu``, ``cuda``
    (all of them), ``cuda:N`` or ``mps``; ``vram`` is the memory budget on each device, by default
    four fifths of what is free there. ``model_dirs`` maps model references, as the configuration
    writes them, to local directories; ``search`` are folders that hold models. With
    ``strict``, keys and parameters that are unknown or misplaced are errors, not warnings.

    Raises:
        ConfigError, CheckpointError: the merge does not make sense, or a model is not there.
        BudgetError: the budget cannot work; the message names the smallest that can.
        DeviceError: ``device`` is not there.
    """
    devices = choose(device, None if vram is None else _bytes(vram), machine.devices)
    configuration = _configuration(config)
    if strict:
        check_known(configuration.warnings)
    observer = observer or Observer()
    _check_model_dirs(configuration, model_dirs or {})
    relative_to = configuration.path.parent if configuration.path is not None else None
    resolver = Resolver(
        model_dirs={name: Path(path) for name, path in (model_dirs or {}).items()},
        search=[*map(Path, search), *_search_folders()],
        relative_to=relative_to,
        download=observer.downloading,
    )
    options = PlanOptions(seed, _bytes(max_shard_size), allow_truncated_embeddings)
    # A plan is a million records without a cycle among them: walking them again and again would
    # take a third of the time.
    with collection_paused():
        made = make_plan(configuration, resolver, options)
        budget = machine.default_budget() if ram is None else _bytes(ram)
        here = replace(
            machine.this_machine(threads, LIBRARY), devices=devices, forced=device != AUTO
        )
        made_schedule = schedule(made.graph, budget, here)
    return PlannedMerge(made, made_schedule, budget, here)


def merge(
    config: Pathlike | Mapping[str, Any] | Configuration | PlannedMerge,
    output: Pathlike,
    *,
    io: IOMode | str = IOMode.AUTO,
    restart: bool = False,
    check: int = 0,
    observer: Observer | None = None,
    **options: Any,
) -> MergeResult:
    """Merge into the directory ``output``; continues where an interrupted run stopped.

    Takes what `plan` takes, or its result. ``io`` is ``auto``, ``direct`` or ``buffered``;
    ``restart`` discards what an earlier run left in ``output``; ``check`` is the number of
    tensors, drawn at random, that are computed again in another way when all is written.

    Raises:
        ConfigError, CheckpointError, BudgetError, DeviceError: as `plan`.
        OutputError: ``output`` belongs to something else, or to another merge.
        RunError: ``output`` is in use, its disk is too small, or reading, arithmetic or writing
            failed; run again to continue. Or a tensor that was checked is wrong.
    """
    observer = observer or Observer()
    planned = config
    if not isinstance(planned, PlannedMerge):
        planned = plan(planned, observer=observer, **options)
    elif options:
        raise TypeError(f"{', '.join(options)} belong to the plan")
    directory = Path(output)
    check_apart(planned, directory)
    made = planned.schedule
    about = {
        "program": program(),
        "threads": made.workers,
        "devices": [made.devices[number].title for number in made.used_devices],
    }
    outcome = jobs.run(
        planned.plan.job(about),
        directory,
        jobs.Options(planned.budget_bytes, planned.machine, IOMode(io), restart),
        observer.begun,
        observer.progressed,
        observer.building,
    )
    checked = None
    if check:
        checked = check_output(planned.plan, directory, check, planned.budget_bytes)
    return MergeResult(directory, planned, outcome, checked)


def check_apart(planned: PlannedMerge, output: Path) -> None:
    """Check that a merge does not write over what it reads.

    Raises:
        OutputError: it would.
    """
    for name, model in planned.plan.models.items():
        if output.resolve() == model.directory.resolve():
            raise OutputError(f"'{output}' is the input '{name}': choose another output directory")


def _check_model_dirs(configuration: Configuration, given: Mapping[str, Pathlike]) -> None:
    named: set[str] = set()
    for document in configuration.documents:
        for reference in document.mentioned():
            named |= {str(reference), str(reference.model), reference.model.path}
    for name in given:
        if name not in named:
            raise ConfigError(
                f"a directory is given for '{name}', which the configuration does not name",
                remedy=suggest(name, named),
            )


def program() -> dict[str, str]:
    """Versions of this program and of what its results depend on."""
    from importlib import metadata

    found = {}
    for name in ("mergeloom", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


def _configuration(config: Pathlike | Mapping[str, Any] | Configuration) -> Configuration:
    if isinstance(config, Configuration):
        return config
    if isinstance(config, Mapping):
        return config_from(config)
    return load_config(Path(config))


def _bytes(size: Size) -> int:
    return parse_size(size) if isinstance(size, str) else size


def _search_folders() -> list[Path]:
    value = os.environ.get(SEARCH_VARIABLE, "")
    return [Path(folder).expanduser() for folder in value.split(os.pathsep) if folder]
