"""The Python API: planning and merging."""

from __future__ import annotations

import inspect as inspect_frames
import os
import warnings as python_warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom import arguments
from mergeloom.arguments import Pathlike, Size
from mergeloom.engine.base.errors import ConfigError, Finding, LoomError, Severity
from mergeloom.engine.base.gc_pause import collection_paused
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import suggest
from mergeloom.engine.hardware import process
from mergeloom.engine.hardware.accelerators import AUTO, Accelerator, choose
from mergeloom.engine.plan.schedule import schedule
from mergeloom.engine.storage.source import IOMode
from mergeloom.methods.ops.arithmetic import TORCH, cpu_arithmetic
from mergeloom.planners.config.config import Configuration, Document
from mergeloom.planners.config.findings import Findings, refuse_unknown
from mergeloom.planners.config.load import (
    LookFurther,
    config_from_data,
    load_config,
    parse_config,
)
from mergeloom.planners.config.settings import Setting, parse_setting, setting_from_value
from mergeloom.planners.models.resolve import Resolver
from mergeloom.planners.plan import Plan, make_plan
from mergeloom.planners.planner import DEFAULT_SHARD_BYTES, PlanOptions
from mergeloom.python_words import in_python
from mergeloom.report.plan_records import Options
from mergeloom.results import MergeResult, PlannedMerge
from mergeloom.version import program

if TYPE_CHECKING:
    from mergeloom.report.output_records import Progress

Config = Pathlike | Mapping[str, Any] | Configuration
Settings = Mapping[str, Any] | Sequence[str]

SEARCH_VARIABLE = "MERGELOOM_MODELS"
"""Environment variable that lists folders of models, separated as in ``PATH``."""


class LoomWarning(UserWarning):
    """A warning, for Python programs."""


@dataclass(frozen=True)
class Observer:
    """Callbacks of a merge.

    ``resumed`` gets the number of tensors that an earlier run finished; ``progressed``, a snapshot
    several times a second; ``downloading``, the name of a model before it is downloaded;
    ``building``, the names of functions before they are compiled; ``warned``, each warning. Without
    ``warned``, warnings are Python warnings of class `LoomWarning`. ``cancelled`` is called several
    times a second and returns whether to stop, as ``is_set`` of an event does; finished work is
    kept.
    """

    resumed: Callable[[int], None] | None = None
    progressed: Callable[[Progress], None] | None = None
    downloading: Callable[[str], None] = field(default=lambda name: None)
    building: Callable[[frozenset[str]], None] | None = None
    warned: Callable[[Finding], None] | None = None
    cancelled: Callable[[], bool] | None = None


def plan(
    config: Config,
    *,
    output: Pathlike | None = None,
    ram: Size | None = None,
    threads: int | None = None,
    device: str = AUTO,
    vram: Size | None = None,
    seed: int = 0,
    max_shard_size: Size = DEFAULT_SHARD_BYTES,
    model_dirs: Mapping[str, Pathlike] | None = None,
    search: Pathlike | Sequence[Pathlike] = (),
    allow_truncated_embeddings: bool = False,
    allow_different_architectures: bool = False,
    strict: bool = False,
    io: IOMode | str = IOMode.AUTO,
    settings: Settings = (),
    observer: Observer | None = None,
) -> PlannedMerge:
    """Plan a merge; reads headers only and does not import torch.

    ``config`` is the path of a YAML or JSON file, or its content as a mapping. ``settings``
    override its values: ``{"parameters.t": 0.3}``, or ``["parameters.t=0.3"]``. ``output`` is the
    output directory: its state and free disk space are added to the report. ``ram`` is the memory
    budget of the whole process, in bytes or as ``"8GiB"``; by default 80% of the available memory.
    ``device`` is where to compute: ``auto``, ``cpu``, ``cuda`` (all devices), ``cuda:N`` or
    ``mps``; ``vram`` is the memory budget per device, by default 80% of its free memory.
    ``model_dirs`` maps model references, as in the configuration, to local directories; ``search``
    is one or more folders of models. With ``strict``, unknown or misplaced keys and parameters are
    errors instead of warnings. For ``io`` see `merge`.

    Raises:
        LoomError: an argument is invalid. ConfigError, CheckpointError: the configuration
        is invalid, or a model is missing or invalid. BudgetError: the budget is too small; the
        message names one that works. DeviceError: ``device`` is not available.
        OutputError: ``output`` is an input.
    """
    options = Options(
        ram=None if ram is None else arguments.memory_budget(ram, "ram"),
        threads=None if threads is None else arguments.integer(threads, "threads", 1),
        device=arguments.text(device, "device"),
        vram=None if vram is None else arguments.memory_budget(vram, "vram"),
        seed=arguments.integer(seed, "seed"),
        max_shard_bytes=arguments.size(max_shard_size, "max_shard_size"),
        allow_truncated_embeddings=arguments.boolean(
            allow_truncated_embeddings, "allow_truncated_embeddings"
        ),
        allow_different_architectures=arguments.boolean(
            allow_different_architectures, "allow_different_architectures"
        ),
        strict=arguments.boolean(strict, "strict"),
    )
    directory = None if output is None else arguments.path_of(output, "the output")
    mode = IOMode(arguments.one_of(io, "io", [each.value for each in IOMode]))
    observer = observer or Observer()
    devices = choose(options.device, options.vram, process.devices)
    # A plan has up to a million records and no reference cycles: garbage collection would only
    # cost a third of the time.
    with collection_paused():
        made = make_plan(
            *planner_arguments(
                config,
                seed=options.seed,
                max_shard_size=options.max_shard_bytes,
                model_dirs=model_dirs,
                search=search,
                allow_truncated_embeddings=options.allow_truncated_embeddings,
                allow_different_architectures=options.allow_different_architectures,
                strict=options.strict,
                settings=settings,
                observer=observer,
            )
        )
        planned = _scheduled(made, options, devices)
    if directory is not None:
        from mergeloom.output import with_output_state

        planned = with_output_state(planned, directory, mode)
    issue_warnings(planned.findings, observer)
    return planned


def _scheduled(made: Plan, options: Options, devices: tuple[Accelerator, ...]) -> PlannedMerge:
    """Schedule a plan on this machine."""
    limit = process.memory_limit()
    budget = process.default_budget() if options.ram is None else options.ram
    machine = replace(
        process.this_machine(cpu_arithmetic(), TORCH, options.threads),
        devices=devices,
        devices_forced=options.device != AUTO,
    )
    budget_findings = arguments.budget_findings(options.ram, limit, process.machine_bytes())
    return PlannedMerge(
        plan=made,
        schedule=schedule(made.graph, budget, machine),
        budget_bytes=budget,
        machine=machine,
        options=options,
        memory_limit=limit,
        findings=(*made.findings, *budget_findings),
    )


def merge(
    config: Config | PlannedMerge,
    output: Pathlike,
    *,
    io: IOMode | str = IOMode.AUTO,
    restart: bool = False,
    verify: bool = False,
    check: int = 0,
    observer: Observer | None = None,
    **options: Any,
) -> MergeResult:
    """Merge into the directory ``output``; an interrupted merge continues where it stopped.

    Takes the arguments of `plan`, or its result. ``io`` is ``auto``, ``direct`` or ``buffered``;
    with the latter two, every byte is read and written, even if the file system could share it.
    ``restart`` discards the output of an earlier run. ``verify`` checks the digests of finished
    tensors, not only sizes. ``check`` is the number of randomly chosen tensors to recompute
    independently after the merge.

    Raises:
        LoomError: an argument is invalid.
        ConfigError, CheckpointError, BudgetError, DeviceError: as `plan`.
        OutputError: ``output`` belongs to something else, or to another merge.
        RunError: ``output`` is in use, its disk is too small, or reading, arithmetic or writing
        failed; run again to continue. Or a checked tensor is wrong.
    """
    from mergeloom.engine import job as jobs
    from mergeloom.output import check_overlap
    from mergeloom.report.stored import store_reports
    from mergeloom.watch import Watch

    directory = arguments.path_of(output, "the output")
    mode = IOMode(arguments.one_of(io, "io", [each.value for each in IOMode]))
    number = arguments.integer(check, "check", 0)
    observer = observer or Observer()
    planned = config
    if not isinstance(planned, PlannedMerge):
        planned = plan(
            planned, output=directory, io=mode, observer=observer, **check_plan_options(options)
        )
    elif options:
        raise LoomError(f"{', '.join(options)} belong to the plan", remedy="give them to plan()")
    else:
        check_overlap(planned, directory)
    made = planned.schedule
    about = {
        "program": dict(program()),
        "threads": made.workers,
        "devices": [made.devices[number].title for number in made.used_devices],
    }
    watch = Watch(observer)
    outcome = jobs.run(
        planned.plan.job(about),
        directory,
        jobs.Options(
            planned.budget_bytes,
            planned.machine,
            mode,
            arguments.boolean(restart, "restart"),
            verify_finished=arguments.boolean(verify, "verify"),
            planned=planned.schedule,
        ),
        watch.begun,
        watch.progressed,
        observer.building,
    )
    findings = tuple(
        Finding(text, code="run", severity=Severity.WARNING) for text in outcome.warnings
    )
    issue_warnings(findings, observer)
    result = MergeResult(directory, planned, outcome, None, findings, watch.samples)
    if not outcome.was_finished:
        store_reports(result, directory)
    if number:
        from mergeloom.check import check_output
        from mergeloom.report.plan import check_report
        from mergeloom.report.stored import record_check

        checked = check_output(planned.plan, directory, number, planned.budget_bytes)
        record_check(directory, check_report(checked))
        checked.raise_if_wrong()
        result = replace(result, checked=checked)
    return result


def issue_warnings(findings: Sequence[Finding], observer: Observer) -> None:
    """Pass warnings to the observer or, if it does not take any, to Python's `warnings`."""
    for finding in findings:
        if observer.warned is not None:
            observer.warned(finding)
        else:
            told = str(in_python(finding))
            python_warnings.warn(told, LoomWarning, stacklevel=_callers_level())


def _callers_level() -> int:
    """The ``stacklevel`` of the code that called this API."""
    level = 1
    frame = inspect_frames.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("mergeloom."):
        frame, level = frame.f_back, level + 1
    return level - 1


OUTPUT_OPTIONS = frozenset(
    {
        "seed", "max_shard_size", "model_dirs", "search", "allow_truncated_embeddings",
        "allow_different_architectures", "strict", "settings", "observer",
    }
)  # fmt: skip
"""Arguments of `plan` that planners take; the others affect only how the output is computed."""

PLAN_OPTIONS = OUTPUT_OPTIONS | {"ram", "threads", "device", "vram", "output"}
"""All arguments of `plan` with names."""


def check_plan_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """``options`` themselves.

    Raises:
        LoomError: `plan` does not take one of them.
    """
    for name in options:
        if name not in PLAN_OPTIONS:
            raise LoomError(f"there is no option {name!r}", remedy=suggest(name, PLAN_OPTIONS))
    return options


def planner_arguments(
    config: Config,
    *,
    seed: int = 0,
    max_shard_size: Size = DEFAULT_SHARD_BYTES,
    model_dirs: Mapping[str, Pathlike] | None = None,
    search: Pathlike | Sequence[Pathlike] = (),
    allow_truncated_embeddings: bool = False,
    allow_different_architectures: bool = False,
    strict: bool = False,
    settings: Settings = (),
    observer: Observer,
) -> tuple[Configuration, Resolver, PlanOptions]:
    """The configuration, the resolver and the options that planners take; see `plan`."""
    options = PlanOptions(
        arguments.integer(seed, "seed"),
        arguments.size(max_shard_size, "max_shard_size"),
        arguments.boolean(allow_truncated_embeddings, "allow_truncated_embeddings"),
        arguments.boolean(allow_different_architectures, "allow_different_architectures"),
    )
    unplaced = resolver_for(model_dirs, search, observer)

    def look_further(documents: Sequence[Document], path: Path | None, found: Findings) -> None:
        from mergeloom.planners.early import check_early

        check_early(documents, _beside(unplaced, path), found)

    configuration = _configuration(config, _settings(settings), look_further)
    if arguments.boolean(strict, "strict"):
        refuse_unknown(configuration.warnings)
    _check_model_dirs(configuration, unplaced.model_dirs)
    return configuration, _beside(unplaced, configuration.path), options


def _beside(resolver: Resolver, config: Path | None) -> Resolver:
    """A resolver that also takes paths as relative to the folder of a configuration."""
    return resolver if config is None else replace(resolver, relative_to=config.parent)


def resolver_for(
    model_dirs: Mapping[str, Pathlike] | None,
    search: Pathlike | Sequence[Pathlike],
    observer: Observer,
) -> Resolver:
    """The resolver of model references; see `plan`.

    Raises:
        LoomError: an argument is invalid.
    """
    return Resolver(
        model_dirs=arguments.paths_by_name(model_dirs or {}, "model_dirs"),
        search=[*arguments.paths_of(search, "search"), *_search_folders()],
        download=observer.downloading,
    )


def _check_model_dirs(configuration: Configuration, given: Mapping[str, Path]) -> None:
    named: set[str] = set()
    for document in configuration.documents:
        for reference in document.named_models():
            named |= {str(reference), str(reference.model), reference.model.path}
    for name in given:
        if name not in named:
            raise ConfigError(
                f"a directory is given for '{name}', which the configuration does not name",
                remedy=suggest(name, named),
            )


def _configuration(
    config: object, settings: Sequence[Setting], look_further: LookFurther
) -> Configuration:
    if isinstance(config, Configuration):
        if not settings:
            return config
        return parse_config(config.text, "config", config.path, settings=settings)
    if isinstance(config, Mapping):
        return config_from_data(config, settings, look_further)
    if isinstance(config, str) and "\n" in config:
        raise LoomError(
            f"config must be a path or a mapping, not {config[:30]!a}, the text of a configuration",
            remedy="parse it (yaml.safe_load), or write it to a file",
        )
    path = arguments.path_of(config, "config", "a path or a mapping")
    return load_config(path, settings, look_further)


def _settings(given: object) -> list[Setting]:
    if isinstance(given, Mapping):
        return [setting_from_value(arguments.text(key, "settings"), v) for key, v in given.items()]
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise LoomError(f"settings must be a mapping or a list of texts, not {ascii(given)[:40]}")
    return [parse_setting(arguments.text(each, "settings")) for each in given]


def _search_folders() -> list[Path]:
    value = os.environ.get(SEARCH_VARIABLE, "")
    return [Path(folder).expanduser() for folder in value.split(os.pathsep) if folder]
