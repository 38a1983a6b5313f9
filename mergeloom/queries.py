"""The Python API other than planning and merging: explain, inspect, diff, verify, and others."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mergeloom import arguments
from mergeloom.api import (
    OUTPUT_OPTIONS,
    Config,
    Observer,
    check_plan_options,
    issue_warnings,
    plan,
    planner_arguments,
    resolver_for,
)
from mergeloom.arguments import Pathlike, Size
from mergeloom.engine.base.errors import CheckpointError, LoomError, OutputError
from mergeloom.engine.base.gc_pause import collection_paused
from mergeloom.engine.base.suggest import suggest
from mergeloom.engine.hardware import process
from mergeloom.engine.storage.source import ReadOptions
from mergeloom.methods.ops.arithmetic import TORCH, cpu_arithmetic
from mergeloom.planners.config.load import parse_config
from mergeloom.planners.plan import decide
from mergeloom.report.detail_records import DetailsReport
from mergeloom.report.diff_records import DiffReport, InputsDiffReport
from mergeloom.report.output_records import CleanReport, StatusReport
from mergeloom.report.plan_records import MergeReport
from mergeloom.report.records import (
    DOCUMENTS,
    ExplainReport,
    InspectReport,
    LinesReport,
    MethodsReport,
    VerifyReport,
)
from mergeloom.results import PlannedMerge

if TYPE_CHECKING:
    from mergeloom.engine.graph.graph import Graph, Merge
    from mergeloom.engine.measure import Measurement
    from mergeloom.engine.run.progress import Progress as Counters
    from mergeloom.planners.comparison import Comparison


def explain(
    config: Config | PlannedMerge,
    tensor: str | None = None,
    *,
    token: str | None = None,
    **options: Any,
) -> ExplainReport:
    """The origin of output tensors, and the configuration entry that sets each parameter.

    Takes the arguments of `plan`, or its result. ``tensor`` is a name, or part of one; without it,
    all tensors are explained. ``token`` asks for the origin of the rows of a token instead.

    Raises:
        ConfigError: there is no such tensor or token; or as `plan`.
    """
    from mergeloom.report.tensors import explain_decisions, explain_plan
    from mergeloom.report.vocabulary import token_report

    pattern = None if tensor is None else arguments.text(tensor, "tensor")
    if token is not None:
        planned = config
        if not isinstance(planned, PlannedMerge):
            planned = plan(planned, **check_plan_options({"device": "cpu", **options}))
        found = token_report(planned.plan, arguments.text(token, "token"))
        return ExplainReport(tensors=(), token=found)
    if isinstance(config, PlannedMerge):
        return explain_plan(config, pattern)
    observer = options.get("observer") or Observer()
    given = {
        name: value for name, value in check_plan_options(options).items() if name in OUTPUT_OPTIONS
    }
    with collection_paused():
        decided = decide(
            *planner_arguments(config, **{**given, "observer": observer}), keeps_plans=True
        )
        report = explain_decisions(decided, pattern)
    issue_warnings(tuple(decided.planning.findings), observer)
    return report


def explain_lines(config: Config | PlannedMerge, **options: Any) -> LinesReport:
    """For each line of a configuration, the number of tensors whose parameters it sets, with layers
    and values. Takes the arguments of `plan`, or its result.

    Raises:
        ConfigError, CheckpointError: as `plan`.
    """
    from mergeloom.report.lines import lines_report

    planned = config
    if not isinstance(planned, PlannedMerge):
        planned = plan(planned, **check_plan_options({"device": "cpu", **options}))
    return lines_report(planned)


def inspect(
    model: Pathlike,
    *,
    model_dirs: Mapping[str, Pathlike] | None = None,
    search: Pathlike | Sequence[Pathlike] = (),
    observer: Observer | None = None,
) -> InspectReport:
    """The contents of a checkpoint, from its headers; ``model`` is a directory or a hub id.

    Raises:
        ConfigError, CheckpointError: it is not found, or malformed.
    """
    from mergeloom.planners.config.model_reference import parse_reference
    from mergeloom.planners.models.checkpoint import open_checkpoint
    from mergeloom.planners.models.model import StoredModel
    from mergeloom.report.checkpoint import inspect_report

    path = arguments.path_of(model, "the model")
    if path.exists():
        return inspect_report(StoredModel(str(model), open_checkpoint(path)))
    reference = parse_reference(str(model))
    resolver = resolver_for(model_dirs, search, observer or Observer())
    directory = resolver.directory(reference.model)
    return inspect_report(StoredModel(str(model), open_checkpoint(directory)))


def diff(
    a: Pathlike,
    b: Pathlike,
    base: Pathlike | None = None,
    *,
    values: bool = False,
    match: str | None = None,
    ram: Size | None = None,
    threads: int | None = None,
    model_dirs: Mapping[str, Pathlike] | None = None,
    search: Pathlike | Sequence[Pathlike] = (),
    observer: Observer | None = None,
) -> DiffReport:
    """How model ``b`` differs from ``a``, and how both differ from ``base``.

    Reads headers only; with ``values``, the weights are read within the memory budget ``ram`` and
    compared by tensor, layer and kind. With ``match``, only tensors whose names contain it are
    compared.

    Raises:
        ConfigError, CheckpointError: a model is not found or malformed, or the models have nothing
        in common. BudgetError: the budget is too small. RunError: reading failed.
    """
    from mergeloom.planners.comparison import compare_models
    from mergeloom.report.diff import diff_report

    observer = observer or Observer()
    pattern = None if match is None else arguments.text(match, "match")
    found = compare_models(
        os.fspath(a),
        os.fspath(b),
        None if base is None else os.fspath(base),
        resolver_for(model_dirs, search, observer),
        pattern,
    )
    measuring = _plan_measuring(found.graph, ram, threads)
    (pair,) = found.each
    if not arguments.boolean(values, "values"):
        return diff_report(pair, {}, measuring.schedule.read_bytes)
    measured = _measured_by_name(pair, _measure(measuring, observer))
    return diff_report(pair, measured, measuring.schedule.read_bytes)


def diff_inputs(
    output: Pathlike,
    *,
    ram: Size | None = None,
    threads: int | None = None,
    observer: Observer | None = None,
) -> InputsDiffReport:
    """How the output of a finished merge differs from each of its inputs, and how both differ from
    the merge's base. Each tensor is compared with the tensors it was merged from.

    All weights are read once, within the memory budget ``ram``.

    Raises:
        OutputError: there is no finished merge, its details were not kept, it is an adapter, or an
            input has been moved or removed.
        ConfigError, CheckpointError: an input has been replaced.
        BudgetError: the budget is too small.
        RunError: reading failed.
    """
    from mergeloom.engine.graph.graph import leaves
    from mergeloom.planners.comparison import compare_inputs
    from mergeloom.report.diff import diff_report
    from mergeloom.report.inputs_diff import common_base, compared_tensors

    observer = observer or Observer()
    path = arguments.path_of(output, "the output")
    report, details = read_report(path), read_details(path)
    if (path / "adapter_config.json").exists():
        raise OutputError(
            f"'{path}' is an adapter: its factors do not say how far apart the changes are",
            remedy="merge a model with each, and compare those: 'mergeloom diff A B BASE --values'",
        )
    if details is None:
        raise OutputError(
            f"'{path}' has too many tensors: no record was kept of what each was made of",
            remedy=f"'mergeloom diff MODEL {path} --values' compares tensors of one name",
        )
    directories = {each.name: each.directory for each in report.models}
    for name, directory in directories.items():
        if not os.path.exists(directory):
            raise OutputError(
                f"the input '{name}' is no longer in '{directory}'",
                remedy=f"put it back, or 'mergeloom diff MODEL {path} --values' with a copy of it",
            )
    found = compare_inputs(
        os.fspath(path),
        compared_tensors(report, details),
        common_base(report),
        resolver_for(directories, (), observer),
    )
    measuring = _plan_measuring(found.graph, ram, threads)
    results = _measure(measuring, observer)
    reports = []
    for pair in found.each:
        loads = {load for merge in pair.merges.values() for load in leaves(merge)}
        own = sum(load.stored_bytes for load in loads)
        reports.append(diff_report(pair, _measured_by_name(pair, results), own))
    return InputsDiffReport(
        output=str(path), inputs=tuple(reports), read_bytes=measuring.schedule.read_bytes
    )


def _plan_measuring(graph: Graph, ram: Size | None, threads: int | None) -> Measurement:
    """The measurement of a graph within a memory budget."""
    from mergeloom.engine.measure import Measurement

    budget = process.default_budget() if ram is None else arguments.size(ram, "ram")
    workers = None if threads is None else arguments.integer(threads, "threads", 1)
    here = process.this_machine(cpu_arithmetic(), TORCH, workers)
    return Measurement.of(graph, budget, here)


def _measure(measuring: Measurement, observer: Observer) -> Mapping[Merge, tuple[Any, ...]]:
    """Run a measurement, with progress; the values by merge."""
    from mergeloom.engine import job as jobs
    from mergeloom.report.meter import Meter

    meter = Meter(jobs.Begun(measuring.schedule, 0))
    shown = observer.progressed

    def progressed(counters: Counters) -> None:
        if shown is not None:
            shown(meter.snapshot(counters))

    return measuring.run(ReadOptions(), progressed, observer.building)


def _measured_by_name(
    found: Comparison, results: Mapping[Merge, tuple[Any, ...]]
) -> dict[str, Any]:
    """The measurements of each tensor, by name."""
    return {name: results[merge][0] for name, merge in found.merges.items()}


def verify(output: Pathlike, *, load: bool = False) -> VerifyReport:
    """Check a finished or interrupted output against its recorded digests.

    With ``load``, also check that transformers finds the tensors it needs: it builds the model of
    ``config.json`` without weights, from the names and shapes of the tensors.

    Raises:
        OutputError: there is nothing to verify, the records are damaged, or with ``load``, the
        output is not finished. LoomError: transformers is not installed, or does not have the
        model's class.
    """
    from mergeloom.report.verification import verify_report

    return verify_report(arguments.path_of(output, "the output"), arguments.boolean(load, "load"))


def status(output: Pathlike) -> StatusReport:
    """Whether the merge in ``output`` is running, interrupted or finished, and its progress, from
    its records; neither inputs nor shards are read.

    Raises:
        OutputError: no merge was run there, or the directory cannot be read.
    """
    from mergeloom.report.status import status_report

    return status_report(arguments.path_of(output, "the output"))


def read_report(output: Pathlike) -> MergeReport:
    """The report of the merge that wrote ``output``, as returned by `merge`.

    Raises:
        OutputError: there is none, or it is damaged.
    """
    from mergeloom.report.stored import stored_report

    return stored_report(arguments.path_of(output, "the output"))


def read_details(output: Pathlike) -> DetailsReport | None:
    """The details of the merge that wrote ``output``; ``None`` if they were not stored.

    Raises:
        OutputError: they are damaged.
    """
    from mergeloom.report.stored import stored_details

    return stored_details(arguments.path_of(output, "the output"))


def clean(
    outputs: Pathlike | Sequence[Pathlike] = (), *, everything: bool = False, dry_run: bool = False
) -> CleanReport:
    """Remove machine code not used by this version (with ``everything``, all caches), and
    interrupted merges in ``outputs``. A dry run removes nothing.

    Raises:
        OutputError: an output is finished, or was not made by this program.
        RunError: a merge is running there, or removal fails.
    """
    from mergeloom import cleaning

    return cleaning.clean(
        arguments.paths_of(outputs, "outputs"),
        arguments.boolean(everything, "everything"),
        arguments.boolean(dry_run, "dry"),
    )


def list_methods(name: str | None = None) -> MethodsReport:
    """The merge methods, or the one called ``name``.

    Raises:
        ConfigError: there is no such method.
    """
    from mergeloom.methods import registry
    from mergeloom.report.methods import methods_report

    names = registry.names() if name is None else [arguments.text(name, "name")]
    return methods_report([registry.get(each) for each in names])


def schema(document: str | None = None) -> dict[str, Any]:
    """The JSON schema of one document, or the schemas of all by name.

    Raises:
        LoomError: there is no such document.
    """
    from mergeloom.report import json

    if document is None:
        return json.schemas(list(DOCUMENTS))
    if document not in DOCUMENTS:
        raise LoomError(
            f"there is no document {document!r}", remedy=suggest(str(document), DOCUMENTS)
        )
    return json.schema(document)


def init(
    models: Sequence[Pathlike],
    *,
    base: Pathlike | None = None,
    method: str | None = None,
    stack: bool = False,
    folder: Pathlike | None = None,
    model_dirs: Mapping[str, Pathlike] | None = None,
    search: Pathlike | Sequence[Pathlike] = (),
    observer: Observer | None = None,
) -> str:
    """A commented YAML configuration for some models, as a starting point.

    ``base`` is the base that the others were fine-tuned from. Without ``method``, a suitable one is
    chosen; with ``stack``, the layers of the models are stacked. ``folder`` is the directory of the
    configuration, to which relative paths refer.

    Raises:
        ConfigError: there is no such method, or it does not merge such models.
        CheckpointError: a model is not found or malformed, or the models do not match.
    """
    from mergeloom.initial import InitOptions, initial_configuration

    models = arguments.paths_of(models, "models")
    if not models:
        raise LoomError("models is empty", remedy="name a model")
    names = [_reference_from(each, folder) for each in ([base] if base is not None else [])]
    names += [_reference_from(each, folder) for each in models]
    where: dict[str, Any] = {"model_dirs": model_dirs, "search": search, "observer": observer}
    found = {name: inspect(name, **where) for name in dict.fromkeys(names)}
    start = InitOptions(found, names[0] if base is not None else None, method, stack)
    text = initial_configuration(start)
    try:
        _plan_quietly(text, **where)
    except CheckpointError as error:
        text = initial_configuration(replace(start, union=True))
        try:
            _plan_quietly(text, **where)
        except LoomError:
            raise CheckpointError(error.cause, remedy=error.remedy) from error
    return text


def _plan_quietly(text: str, **where: Any) -> None:
    observer = where["observer"] or Observer()
    observer = replace(observer, warned=lambda finding: None)
    plan(
        parse_config(text, "the configuration"), **{**where, "observer": observer, "device": "cpu"}
    )


def _reference_from(model: Pathlike, folder: Pathlike | None) -> str:
    """The reference to a model in a configuration in ``folder``, where paths relative to the
    working directory may not be valid."""
    path = arguments.path_of(model, "a model")
    if folder is None or not path.is_dir() or path.is_absolute():
        return str(model)
    same = os.path.realpath(arguments.path_of(folder, "folder")) == os.path.realpath(os.curdir)
    return str(model) if same else str(path.absolute())
