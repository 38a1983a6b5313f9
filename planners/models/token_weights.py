"""Token embedding and output head: two weights, or a single tied one.

A stored head is treated as tied only if its bytes equal the embedding's; of large weights, a sample
is compared. Apart from integer tensors, no other weights are read while planning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.models.architecture import Architecture
from mergeloom.planners.models.roles import Shape

_CLASS_WITHOUT_HEAD = re.compile(
    r"(?<!LMHead)(?<!DoubleHeads)Model$|Encoder$|Reward|(Classification|QuestionAnswering"
    r"|MultipleChoice|NextSentencePrediction|Regression|Retrieval|Embedding|Classifier)$"
)
"""Model classes without an output head over tokens."""

OTHER_PARTS = re.compile(r"vision|visual|audio|image|speech|encoder|qformer|talker|2wav|codec")
"""Nested configurations that are not about tokens."""


class Head(Enum):
    """The kind of a model's output head."""

    OWN = "a weight of its own"
    TIED = "the token embedding"
    NONE = "nothing: the model has no output head"


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """The weights of a model that have a row for each token.

    ``embedding`` and ``head`` are the stored names, ``kind`` is the kind of head. ``equal_weights``
    are the names of other weights outside the layers that are equal to the embedding.
    """

    embedding: str | None
    head: str | None
    kind: Head
    equal_weights: frozenset[str] = frozenset()

    def renamed(self, names: Mapping[str, str]) -> TokenWeights:
        """The same with other names; ``names`` maps old to new names."""
        return TokenWeights(
            names.get(self.embedding) if self.embedding is not None else None,
            names.get(self.head) if self.head is not None else None,
            self.kind,
            frozenset(names[name] for name in self.equal_weights if name in names),
        )


def token_weights(
    architecture: Architecture,
    config: Mapping[str, Any],
    shape: Callable[[str], Shape],
    equal: Callable[[str, str], bool],
) -> TokenWeights:
    """Find the token weights; ``equal`` compares two stored weights of equal shape."""
    embedding, head = architecture.embedding, architecture.head
    declared = is_declared_tied(config)
    equal_weights: frozenset[str] = frozenset()
    if embedding is not None:
        others = architecture.outside_layers - {embedding, head if declared is False else None}
        like = [name for name in others if shape(name) == shape(embedding)]
        equal_weights = frozenset(name for name in like if equal(embedding, name))
    if head is not None:
        alone = embedding is None and declared is True
        tied = alone or (declared is True and head in equal_weights)
        return TokenWeights(embedding, head, Head.TIED if tied else Head.OWN, equal_weights)
    if embedding is None or declared is False or not has_token_head(config):
        return TokenWeights(embedding, None, Head.NONE, equal_weights)
    return TokenWeights(embedding, None, Head.TIED, equal_weights)


def is_declared_tied(config: Mapping[str, Any]) -> bool | None:
    """``tie_word_embeddings`` in a configuration; the outermost value counts.

    ``None`` for LUKE, whose class ties predictions of entities by it, and no head over tokens.
    """
    if config.get("model_type") == "luke":
        return None
    level: list[Mapping[str, Any]] = [config]
    while level:
        for place in level:
            if isinstance(value := place.get("tie_word_embeddings"), bool):
                return value
        level = [part for place in level for part in _parts(place)]
    return None


def has_token_head(config: Mapping[str, Any]) -> bool:
    """Whether the model's class has an output head over tokens; true if no class is named.

    A wrapper class around a language model (``InternVLChatModel``) has the head of that model.
    """
    own = _class_name(config)
    if own is None or _CLASS_WITHOUT_HEAD.search(own) is None:
        return True
    return own.endswith("Model") and any(
        "CausalLM" in (_class_name(part) or "") and part.get("tie_word_embeddings") is True
        for part in _parts(config)
    )


def _class_name(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Nested configurations that may be about tokens."""
    for key, value in config.items():
        if isinstance(value, Mapping) and not OTHER_PARTS.search(key):
            yield value
