"""What each command has found out, as plain records: the JSON documents, field by field.

A record holds data only: no planner, model or engine object. The terminal renders these records,
`mergeloom.report.json` writes them, and ``mergeloom schema`` describes them. Sizes are in bytes,
times in seconds, layer ranges are ``[start, stop)`` as in a configuration.

A field that means something else, or goes, raises `SCHEMA_VERSION`; a field that comes does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mergeloom.engine.base.errors import Finding, Place
from mergeloom.version import VERSION

SCHEMA_VERSION = 2

Scalar = bool | int | float | str | None
Layers = tuple[int, int]
"""Layers ``[start, stop)``."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """What every document begins with."""

    __pydantic_config__: ClassVar[Mapping[str, Any]] = {
        "use_attribute_docstrings": True,
        "extra": "forbid",
    }

    document: str
    """Which document this is: the command's name, or ``error``."""
    schema_version: int = SCHEMA_VERSION
    program_version: str = VERSION


@dataclass(frozen=True, kw_only=True)
class ErrorReport(Document):
    """Why a command did not do what it was asked: what ``--json`` prints then."""

    document: str = "error"
    kind: str
    """Name of the exception's class in the Python API."""
    findings: tuple[Finding, ...]
    """What is wrong, one or more, and warnings that belong to it."""
    exit_status: int


# --- plan -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OutlineSource:
    """A model that gives layers to a slice of the output."""

    model: str
    layers: Layers
    base: bool


@dataclass(frozen=True)
class OutlineSlice:
    """Successive layers of the output that are made in one way."""

    layers: Layers
    how: str
    """``copied``, ``scaled`` (a copy times a number), ``partly scaled`` or ``merged``."""
    detail: str
    """What is scaled by which factor; empty otherwise."""
    sources: tuple[OutlineSource, ...]


@dataclass(frozen=True)
class OutlinePart:
    """One stack of layers of the output, and the slices that it is made of."""

    name: str
    layers: int
    slices: tuple[OutlineSlice, ...]


@dataclass(frozen=True)
class Stage:
    """One document of the configuration: the last makes the output, earlier ones its inputs."""

    name: str | None
    method: str
    dtype: str | None
    """The type that is written, where the configuration names one."""
    parts: tuple[OutlinePart, ...]
    notes: tuple[str, ...]
    """What was understood of the models, such as where the weights around the layers come from."""


@dataclass(frozen=True)
class Shard:
    """One file of weights."""

    name: str
    bytes: int


@dataclass(frozen=True)
class OutputReport:
    """What a merge makes. ``layers`` counts those of the main part."""

    layers: int
    parameters: int
    bytes: int
    tensors: int
    dtypes: Mapping[str, int]
    """Number of tensors of each type."""
    tied: bool | None
    """Whether the output head is the embedding; nothing where there is no head."""
    shards: tuple[Shard, ...]
    side_files: tuple[str, ...]
    config_changes: tuple[str, ...]
    """What differs in ``config.json`` from the model that it is from, because the layers do."""


@dataclass(frozen=True)
class VocabularyRows:
    """The tables of tokens of one model: how many ``rows`` they have, how many of these no token of
    the output takes, and how many of the output's come from where."""

    model: str
    rows: int
    unused: int
    origins: Mapping[str, int]
    """Number of the output's rows by origin: ``own``, ``base``, ``only`` (the only model's that has
    the token), ``mean`` (over those that have it), ``named`` (by the configuration), ``zero``,
    ``padding``."""


@dataclass(frozen=True)
class VocabularyReport:
    """The output's vocabulary: the tokenizer of a model, with tokens added and left out."""

    tokenizer: str
    tokens: int
    added: int
    removed: int
    rows: int
    models: tuple[VocabularyRows, ...]


@dataclass(frozen=True)
class InputReport:
    """One model that is read, as the configuration names it."""

    name: str
    directory: str
    bytes: int
    tensors: int


@dataclass(frozen=True)
class Options:
    """What the command line, or the caller, asked for."""

    ram: int | None
    """Nothing where the default was taken: four fifths of the memory available."""
    threads: int | None
    device: str
    vram: int | None
    seed: int
    max_shard_bytes: int
    allow_truncated_embeddings: bool
    allow_different_architectures: bool
    strict: bool


@dataclass(frozen=True)
class MemoryReport:
    """Memory of the whole process: the budget, and what will be used of it at most."""

    budget_bytes: int
    peak_bytes: int
    minimum_bytes: int
    """The smallest budget that works."""
    machine_bytes: int
    """What this process may hope for on this machine now."""


@dataclass(frozen=True)
class DeviceReport:
    """A device that may compute beside the CPU. ``speed`` counts in cores."""

    name: str
    title: str
    memory_bytes: int
    bus_bytes_per_second: float
    bus_measured: bool
    speed: float
    speed_measured: bool


@dataclass(frozen=True)
class RatesReport:
    """How fast storage and processor are taken to be; measured by earlier runs, or assumed."""

    storage_bytes_per_second: float
    storage_measured: bool
    cpu_speed: float
    cpu_measured: bool


@dataclass(frozen=True)
class PlacementReport:
    """How many merges compute where, and why."""

    device: str
    reason: str
    merges: int


@dataclass(frozen=True)
class IOReport:
    """Tensor data and headers that are read and written."""

    read_bytes: int
    write_bytes: int
    repeated_bytes: int
    """The part of what is read that is read again because memory is short."""
    cloned_bytes: int
    """Bytes that are neither read nor written: the output shares them with its inputs."""


@dataclass(frozen=True)
class TimeReport:
    """How long a merge is expected to take."""

    seconds: float
    storage_seconds: float
    compute_seconds: float
    measured: bool
    """Whether the rates that decide it were measured on this machine."""


@dataclass(frozen=True)
class DiskReport:
    """Room on the disk of an output directory."""

    needed_bytes: int
    """What is still to be written, with side files and a small reserve."""
    free_bytes: int


@dataclass(frozen=True)
class Difference:
    """What the merge in a directory and this one differ in; nothing where one lacks it."""

    what: str
    there: str | None
    here: str | None


@dataclass(frozen=True)
class OutputState:
    """What an output directory holds now, and what ``merge`` will do about it."""

    directory: str
    condition: str
    """``absent``, ``empty``, ``file``, ``foreign``, ``finished``, ``incomplete``,
    ``interrupted``, ``damaged`` or ``unreadable``."""
    same: bool | None
    """Whether the merge that it holds is this one; nothing where it holds none."""
    will: str
    """``start``, ``continue``, ``repair``, ``compare``, ``nothing`` or ``refuse``."""
    message: str
    finished_tensors: int
    differences: tuple[Difference, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnusedInput:
    """Input tensors that the output does not use, and why."""

    model: str
    reason: str
    layers: tuple[Layers, ...]
    tensors: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class PlanReport(Document):
    """What a merge will do, known before a weight is read."""

    document: str = "plan"
    configuration: str | None
    """Path of the configuration; nothing where it came as data."""
    output: OutputReport
    vocabulary: VocabularyReport | None
    """Nothing where there are no tokenizer settings."""
    stages: tuple[Stage, ...]
    """In order; the last one makes the output."""
    method: str
    """That of the last stage."""
    draws: bool
    """Whether a method draws at random, so that the seed matters."""
    seed: int
    options: Options
    models: tuple[InputReport, ...]
    tasks: Mapping[str, int]
    memory: MemoryReport
    workers: int
    compiled: bool
    """Whether machine code computes on the CPU."""
    to_compile: tuple[str, ...]
    """What machine code is built for first, once on this machine."""
    devices: tuple[DeviceReport, ...]
    rates: RatesReport
    placement: tuple[PlacementReport, ...]
    io: IOReport
    time: TimeReport
    disk: DiskReport | None
    """Nothing where no output directory was given."""
    output_state: OutputState | None
    """Nothing where no output directory was given."""
    warnings: tuple[Finding, ...]
    unused_inputs: tuple[UnusedInput, ...]
    fingerprint: str


@dataclass(frozen=True)
class Measured:
    """What a run took. Device figures are what the kernel counts, where it tells."""

    peak_rss_bytes: int
    read_bytes: int
    write_bytes: int
    cloned_bytes: int
    """Bytes that were neither read nor written: the output shares them with its inputs."""
    device_read_bytes: int | None
    device_write_bytes: int | None


@dataclass(frozen=True)
class Predicted:
    """What the schedule of a run said of it; after an interruption, of what was left."""

    peak_bytes: int
    read_bytes: int
    write_bytes: int


@dataclass(frozen=True)
class CheckReport:
    """What ``--check`` computed again in another way; all of it was right.

    ``passed_over`` counts tensors that were drawn and could not be, by the reason.
    """

    tensors: int
    elements: int
    passed_over: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class MergeReport(PlanReport):
    """A finished merge: the plan, and what was measured."""

    document: str = "merge"
    directory: str
    resumed_tensors: int
    """Tensors that an earlier run had finished."""
    was_finished: bool
    wall_seconds: float
    measured: Measured
    predicted: Predicted | None
    """Nothing where nothing was left to do."""
    run_warnings: tuple[Finding, ...]
    checked: CheckReport | None = None


# --- the tasks of a plan ----------------------------------------------------------------------


@dataclass(frozen=True)
class TaskInput:
    """One input of a task: a tensor of a file, or the result of an earlier task."""

    name: str
    file: str | None
    """Nothing where it is the result of an earlier merge."""
    dtype: str | None
    offset: int | None
    bytes: int | None
    parts: int = 1
    """Pieces that it is put together from; ``file`` and ``offset`` are those of the first."""


@dataclass(frozen=True)
class Task:
    """One merge in the order of the run, with what it reads and where its result goes."""

    number: int
    name: str
    kernel: str
    shape: tuple[int, ...]
    inputs: tuple[TaskInput, ...]
    writes: tuple[TaskInput, ...]
    device: str
    passes: int
    """Walks over the inputs: one for each statistic, and one that writes."""
    tiles: int
    """Pieces that each walk goes in."""
    resident: bool
    """Whether inputs are read once and stay in memory through all walks."""


@dataclass(frozen=True, kw_only=True)
class TaskList(Document):
    """The tasks of a plan, in the order in which they run."""

    document: str = "tasks"
    fingerprint: str
    tasks: tuple[Task, ...]


# --- explain ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ParameterValue:
    """A parameter's value for one tensor, and which entry of the configuration set it."""

    value: Any
    level: str
    """``model``, ``slice``, ``module``, ``global`` or ``default``."""
    place: Place | None
    filter: str | None
    gradient: tuple[Any, ...] | None
    t: float | None
    """Where in the gradient the value was read, from 0 to 1."""


@dataclass(frozen=True)
class TensorInput:
    """One input of an output tensor."""

    model: str
    tensor: str
    layer: int | None
    base: bool
    shape: tuple[int, ...]
    dtype: str
    parameters: Mapping[str, ParameterValue]


@dataclass(frozen=True)
class TensorReport:
    """Where one output tensor comes from."""

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    layer: int | None
    method: str
    """The merge method, or ``copy``."""
    formula: str | None
    copied_because: str | None
    parameters: Mapping[str, ParameterValue]
    inputs: tuple[TensorInput, ...]


@dataclass(frozen=True)
class TokenSource:
    """A row of a model's tables."""

    model: str
    row: int


@dataclass(frozen=True)
class TokenRows:
    """Where the row of a token in one model's tables comes from: its ``origin``, as in a plan and
    in words, and the rows that it is, or is the mean of."""

    model: str
    origin: str
    words: str
    rows: tuple[TokenSource, ...]


@dataclass(frozen=True)
class TokenReport:
    """Where the rows of one token come from; they are merged as the embedding is."""

    token: str
    id: int
    models: tuple[TokenRows, ...]


@dataclass(frozen=True, kw_only=True)
class ExplainReport(Document):
    """Where output tensors come from: a list, however many were asked for. Or where a token's
    rows come from, and no tensors."""

    document: str = "explain"
    tensors: tuple[TensorReport, ...]
    token: TokenReport | None = None


# --- inspect ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class StackReport:
    """One stack of layers of a checkpoint; layer N's tensors begin with ``prefix`` and N."""

    name: str
    prefix: str
    layers: int
    before: tuple[str, ...]
    templates: tuple[Template, ...]
    after: tuple[str, ...]
    tensors: tuple[str, ...]
    """All of its tensors, in order."""


@dataclass(frozen=True)
class Template:
    """A tensor that layers have in common: its name after the layer's number."""

    suffix: str
    shape: tuple[int, ...]
    dtype: str
    layers: int
    """Number of layers that have it."""


@dataclass(frozen=True)
class StoredTensor:
    """Type and shape of a tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TokenizerReport:
    """A checkpoint's tokenizer, from its files."""

    files: tuple[str, ...]
    kind: str | None
    """The class that ``tokenizer_config.json`` names."""
    entries: int | None
    """Number of words, added ones included, where ``tokenizer.json`` tells."""


@dataclass(frozen=True, kw_only=True)
class InspectReport(Document):
    """What a checkpoint holds, from its headers."""

    document: str = "inspect"
    name: str
    directory: str
    architectures: tuple[str, ...]
    model_type: str | None
    vocabulary: int | None
    """Rows of the token embedding, or what the configuration says where none is known."""
    tokenizer: TokenizerReport | None
    quantisation: str | None
    """How the weights are quantised; nothing where they are not."""
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    """Bytes by type."""
    tied: bool | None
    declared: Mapping[str, int]
    """Numbers of layers that ``config.json`` declares, by key."""
    stacks: tuple[StackReport, ...]
    shards: tuple[Shard, ...]
    tensors: Mapping[str, StoredTensor]


# --- verify, methods --------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What is wrong in an output, and how."""

    what: str
    why: str


@dataclass(frozen=True)
class LoadingReport:
    """What the class that ``config.json`` names makes of the stored tensors' names and shapes."""

    class_name: str
    transformers: str
    """The version that has the class."""
    tensors: int
    faults: tuple[Fault, ...]
    """Weights that are missing, have no place, or have another shape, as the class calls them."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Document):
    """An output's bytes, compared with the digests that were recorded for them.

    ``sound`` is false if bytes differ or, with ``--load``, if the model would not load whole.
    """

    document: str = "verify"
    output: str
    finished: bool
    sound: bool
    tensors: int
    bytes: int
    wrong: tuple[Fault, ...]
    loading: LoadingReport | None = None


@dataclass(frozen=True)
class ParameterReport:
    """A parameter that a method takes."""

    name: str
    kind: str
    help: str
    required: bool
    default: Scalar
    minimum: float | None
    maximum: float | None
    range: str
    """The values that it may have, in words."""


@dataclass(frozen=True)
class MethodReport:
    """A merge method."""

    name: str
    summary: str
    formula: str
    reference: str
    works: str
    draws: bool
    base_model: str
    models: tuple[int, int | None]
    """Fewest and most models, a base model apart."""
    model_parameters: tuple[ParameterReport, ...]
    parameters: tuple[ParameterReport, ...]


@dataclass(frozen=True, kw_only=True)
class MethodsReport(Document):
    """Merge methods: all of them, or the one that was asked for."""

    document: str = "methods"
    methods: tuple[MethodReport, ...]


DOCUMENTS: Mapping[str, type[Document]] = {
    "plan": PlanReport,
    "merge": MergeReport,
    "tasks": TaskList,
    "explain": ExplainReport,
    "inspect": InspectReport,
    "verify": VerifyReport,
    "methods": MethodsReport,
    "error": ErrorReport,
}
"""Every kind of document by its name."""
