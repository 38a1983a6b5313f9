"""What the other commands have found out, as plain records, and all kinds of documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.errors import Place
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.outline import Layers
from mergeloom.report.detail_records import DetailsReport
from mergeloom.report.diff_records import DiffReport, InputsDiffReport
from mergeloom.report.document import Document, ErrorReport, Scalar
from mergeloom.report.output_records import CleanReport, ProgressReport, StatusReport
from mergeloom.report.plan_records import BudgetsReport, MergeReport, PlanReport, Shard

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


@dataclass(frozen=True)
class LineUse:
    """What a line of a configuration supplies a parameter with."""

    line: int
    parameter: str
    tensors: int
    """Number of output tensors that get it."""
    layers: tuple[Layers, ...]
    """The output's layers among them."""
    least: Any
    most: Any
    """The smallest and the largest value that they get."""


@dataclass(frozen=True, kw_only=True)
class LinesReport(Document):
    """A configuration line by line, and what each line sets."""

    document: str = "lines"
    configuration: str | None
    lines: tuple[str, ...]
    uses: tuple[LineUse, ...]


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


@dataclass(frozen=True, kw_only=True)
class ExportReport(Document):
    """A model that was written to a file of another program."""

    document: str = "export"
    model: str
    output: str
    type: str
    """How matrices are stored there."""
    tensors: int
    bytes: int
    left_out: tuple[str, ...]
    """Tensors of the model that the file does not have: what it has otherwise, or twice."""
    budget_bytes: int
    peak_rss_bytes: int
    wall_seconds: float


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
    "budgets": BudgetsReport,
    "tasks": TaskList,
    "explain": ExplainReport,
    "lines": LinesReport,
    "diff": DiffReport,
    "inputs-diff": InputsDiffReport,
    "details": DetailsReport,
    "inspect": InspectReport,
    "export": ExportReport,
    "verify": VerifyReport,
    "methods": MethodsReport,
    "status": StatusReport,
    "clean": CleanReport,
    "progress": ProgressReport,
    "error": ErrorReport,
}
"""Every kind of document by its name."""
