"""Records of the other commands, and the list of all documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeloom.engine.base.errors import Place
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.outline import Layers
from mergeloom.report.detail_records import DetailsReport
from mergeloom.report.diff_records import DiffReport, InputsDiffReport
from mergeloom.report.document import Document, ErrorReport, Scalar
from mergeloom.report.output_records import CleanReport, Progress, StatusReport
from mergeloom.report.plan_records import BudgetsReport, MergeReport, PlanReport, Shard

# --- the tasks of a plan ----------------------------------------------------------------------


@dataclass(frozen=True)
class TaskInput:
    """One input of a task: a tensor of a file, or the result of an earlier task."""

    name: str
    file: str | None
    """Null if it is the result of an earlier merge."""
    dtype: str | None
    offset: int | None
    bytes: int | None
    parts: int = 1
    """Number of pieces it is assembled from; ``file`` and ``offset`` are of the first."""


@dataclass(frozen=True)
class Task:
    """One merge in execution order, with its inputs and outputs."""

    number: int
    name: str
    kernel: str
    shape: tuple[int, ...]
    inputs: tuple[TaskInput, ...]
    writes: tuple[TaskInput, ...]
    device: str
    passes: int
    """Passes over the inputs: one per statistic, and the output pass."""
    tiles: int
    """Number of tiles of each pass."""
    resident: bool
    """Whether inputs are read once and stay in memory for all passes."""


@dataclass(frozen=True, kw_only=True)
class TaskList(Document):
    """The tasks of a plan, in execution order."""

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
    """Position in the gradient, from 0 to 1."""


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
    """The origin of a token's row in one model's tables, as in a plan and in words, and the rows it
    is copied from or the mean of."""

    model: str
    origin: str
    words: str
    rows: tuple[TokenSource, ...]


@dataclass(frozen=True)
class TokenReport:
    """The origin of the rows of one token, which are merged like the embedding."""

    token: str
    id: int
    models: tuple[TokenRows, ...]


@dataclass(frozen=True, kw_only=True)
class ExplainReport(Document):
    """The origin of output tensors, always as a list; or of a token's rows, with an empty list."""

    document: str = "explain"
    tensors: tuple[TensorReport, ...]
    token: TokenReport | None = None


@dataclass(frozen=True)
class LineUse:
    """The effect of a configuration line on a parameter."""

    line: int
    parameter: str
    tensors: int
    """Number of output tensors that get it."""
    layers: tuple[Layers, ...]
    """The output's layers among them."""
    least: Any
    most: Any
    """The smallest and largest value."""


@dataclass(frozen=True, kw_only=True)
class LinesReport(Document):
    """A configuration with the effect of each line."""

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
    """Number of tokens including added ones, if ``tokenizer.json`` exists."""


@dataclass(frozen=True, kw_only=True)
class InspectReport(Document):
    """The contents of a checkpoint, from its headers."""

    document: str = "inspect"
    name: str
    directory: str
    architectures: tuple[str, ...]
    model_type: str | None
    vocabulary: int | None
    """Rows of the token embedding, or the configuration's vocabulary size."""
    tokenizer: TokenizerReport | None
    quantisation: str | None
    """How the weights are quantised; null if they are not."""
    parameters: int
    bytes: int
    dtypes: Mapping[str, int]
    """Bytes by type."""
    tied: bool | None
    declared: Mapping[str, int]
    """Layer counts in ``config.json``, by key."""
    stacks: tuple[StackReport, ...]
    shards: tuple[Shard, ...]
    tensors: Mapping[str, StoredTensor]


@dataclass(frozen=True, kw_only=True)
class ExportReport(Document):
    """An exported model."""

    document: str = "export"
    model: str
    output: str
    type: str
    """The type of matrices."""
    tensors: int
    bytes: int
    left_out: tuple[str, ...]
    """Tensors that were not written, because the file contains them in another form."""
    budget_bytes: int
    peak_rss_bytes: int
    wall_seconds: float


# --- verify, methods --------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """A fault in an output."""

    what: str
    why: str


@dataclass(frozen=True)
class LoadingReport:
    """The stored tensors compared with the class named in ``config.json``."""

    class_name: str
    transformers: str
    """The version of transformers used."""
    tensors: int
    faults: tuple[Fault, ...]
    """Weights that are missing, unexpected or of another shape, by the class's names."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport(Document):
    """The result of checking an output against its recorded digests.

    ``sound`` is false if bytes differ or, with ``--load``, if the model would not load completely.
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
    """A parameter of a method."""

    name: str
    kind: str
    help: str
    required: bool
    default: Scalar
    minimum: float | None
    maximum: float | None
    range: str
    """The allowed values as text."""


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
    """Minimum and maximum number of models, without the base model."""
    model_parameters: tuple[ParameterReport, ...]
    parameters: tuple[ParameterReport, ...]


@dataclass(frozen=True, kw_only=True)
class MethodsReport(Document):
    """All merge methods, or the requested one."""

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
    "progress": Progress,
    "error": ErrorReport,
}
"""Every kind of document by its name."""
