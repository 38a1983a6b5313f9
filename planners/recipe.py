"""The result of planning a document: a recipe, common to all kinds of output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.output.side_files import SideFile
from mergeloom.planners.models.model import PlannedModel
from mergeloom.planners.outline import Outline
from mergeloom.planners.tensors import TensorPlan
from mergeloom.planners.vocabulary.summary import VocabularySummary

LeftOutReason = tuple[str, int | None]
"""Why an input tensor is left out, and the layer of its model if that depends on layers."""


def default_reason(model: str, tensor: str) -> LeftOutReason:
    """The reason for a tensor that is left out, unless a planner knows more."""
    return "the output does not use it", None


@dataclass(frozen=True)
class Recipe:
    """The planned output of one document, complete to the last tensor.

    The ``output`` is a model whose tensors are tasks in the graph; later documents may use it under
    the document's name. ``outline`` describes it for reports.

    These are called on demand, because they take memory or time: ``plans`` yields the plan of each
    output tensor, in output order; ``files`` returns the files of the output other than shards,
    index, configuration and model card, for the last document only; ``left_out`` returns why a
    tensor of a model (given by name) is not used.

    Weights are written to ``STEM.safetensors``, or to ``STEM-00001-of-0000N.safetensors`` if
    ``sharded``, with ``metadata`` in each header. For an output in several folders ``stems`` has a
    stem for each folder, and a tensor named ``FOLDER/NAME`` is written there as ``NAME``.
    ``draws`` says whether the output depends on the seed; ``tied``, whether embedding and head are
    one weight (``None`` if there is no head); ``config_changes``, how ``config.json`` differs from
    the donor's. ``library`` is the Python package that loads the output.
    """

    output: PlannedModel
    outline: Outline
    plans: Callable[[], Iterator[TensorPlan]]
    files: Callable[[], tuple[SideFile, ...]] = tuple
    left_out: Callable[[str, str], LeftOutReason] = default_reason
    stem: str = "model"
    stems: Mapping[str, str] = field(default_factory=dict)
    sharded: bool = True
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    draws: bool = False
    library: str | None = "transformers"
    tied: bool | None = None
    config_changes: tuple[str, ...] = ()
    vocabulary: VocabularySummary | None = None
