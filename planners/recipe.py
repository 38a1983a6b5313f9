"""What a planner makes of a document: a recipe, the same for every kind of output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.output.side_files import SideFile
from mergeloom.planners.models.model import PlannedModel
from mergeloom.planners.outline import Outline
from mergeloom.planners.tensors import TensorPlan
from mergeloom.planners.vocabulary.summary import VocabularySummary

Reason = tuple[str, int | None]
"""Why an input tensor is left out, and the layer of its model where that is by layers."""


def unused(model: str, tensor: str) -> Reason:
    """The reason where there is nothing more to say."""
    return "nothing of the output is made of it", None


@dataclass(frozen=True)
class Recipe:
    """What one document makes, decided to the last tensor.

    The ``output`` is a model whose tensors are tasks of the graph already; a later document takes
    it by the document's name.
    ``outline`` tells people what it is made of.

    Called when they are needed, since they fill memory or take time: ``plans`` yields how each
    tensor comes about, in the order of the output's; ``files`` the files of the output besides
    shards, index, configuration and model card, asked of the last document only; ``left_out`` says
    why a tensor of a model (their names) is in none of the output's.

    Weights go to ``STEM.safetensors``, or to ``STEM-00001-of-0000N.safetensors`` where they may be
    ``sharded``, with ``metadata`` in each header. ``draws`` says whether the seed matters, ``tied``
    whether a model of language has one weight for embedding and head (``None``: it has no head),
    ``config_changes`` what in the configuration is not as in the model that it is from, ``library``
    the Python package that loads the output.
    """

    output: PlannedModel
    outline: Outline
    plans: Callable[[], Iterator[TensorPlan]]
    files: Callable[[], tuple[SideFile, ...]] = tuple
    left_out: Callable[[str, str], Reason] = unused
    stem: str = "model"
    sharded: bool = True
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    draws: bool = False
    library: str | None = "transformers"
    tied: bool | None = None
    config_changes: tuple[str, ...] = ()
    vocabulary: VocabularySummary | None = None
