"""Embedding and output head: two weights, or one under two names (tied).

A head that is stored is never taken for the embedding unseen: their bytes are compared, in a
sample where they are large. Only this, and integers, is read while planning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.models.architecture import Architecture
from mergeloom.planners.models.roles import Shape

_HEADLESS = re.compile(
    r"(?<!LMHead)(?<!DoubleHeads)Model$|Encoder$|Reward|(Classification|QuestionAnswering"
    r"|MultipleChoice|NextSentencePrediction|Regression|Retrieval|Embedding|Classifier)$"
)
"""Classes of models that say no words."""

_OTHER_SENSES = re.compile(r"vision|visual|audio|image|speech|encoder|qformer|talker|2wav")
"""Parts of a configuration that are about something else than words."""


class Head(Enum):
    """What makes words of a model's last states."""

    OWN = "a weight of its own"
    TIED = "the token embedding"
    NONE = "nothing: the model has no output head"


@dataclass(frozen=True, slots=True)
class TokenWeights:
    """The weights of a model that have a row for each token.

    ``embedding`` and ``head`` are the names under which they are stored, ``kind`` is what the
    head is. ``twins`` are names of other weights outside the layers whose bytes are equal to the
    embedding's: the same weight once more.
    """

    embedding: str | None
    head: str | None
    kind: Head
    twins: frozenset[str] = frozenset()

    def renamed(self, names: Mapping[str, str]) -> TokenWeights:
        """The same under other names; ``names`` has the new ones by the old ones."""
        return TokenWeights(
            names.get(self.embedding) if self.embedding is not None else None,
            names.get(self.head) if self.head is not None else None,
            self.kind,
            frozenset(names[name] for name in self.twins if name in names),
        )


def token_weights(
    architecture: Architecture,
    config: Mapping[str, Any],
    shape: Callable[[str], Shape],
    equal: Callable[[str, str], bool],
) -> TokenWeights:
    """Find them; ``equal`` tells whether two stored weights of one shape have the same bytes."""
    embedding, head = architecture.embedding, architecture.head
    declared = declared_tied(config)
    twins: frozenset[str] = frozenset()
    if embedding is not None:
        others = architecture.around - {embedding, head if declared is False else None}
        like = [name for name in others if shape(name) == shape(embedding)]
        twins = frozenset(name for name in like if equal(embedding, name))
    if head is not None:
        alone = embedding is None and declared is True
        tied = alone or (declared is True and head in twins)
        return TokenWeights(embedding, head, Head.TIED if tied else Head.OWN, twins)
    if embedding is None or declared is False or not makes_words(config):
        return TokenWeights(embedding, None, Head.NONE, twins)
    return TokenWeights(embedding, None, Head.TIED, twins)


def declared_tied(config: Mapping[str, Any]) -> bool | None:
    """What a configuration says of it: the outermost word counts."""
    level: list[Mapping[str, Any]] = [config]
    while level:
        for place in level:
            if isinstance(value := place.get("tie_word_embeddings"), bool):
                return value
        level = [part for place in level for part in _parts(place)]
    return None


def makes_words(config: Mapping[str, Any]) -> bool:
    """Whether the model's class has an output head over tokens; true where none is named.

    A class of another kind around a language model (``InternVLChatModel``) has that one's.
    """
    own = _class(config)
    if own is None or _HEADLESS.search(own) is None:
        return True
    return own.endswith("Model") and any(
        "CausalLM" in (_class(part) or "") and part.get("tie_word_embeddings") is True
        for part in _parts(config)
    )


def _class(config: Mapping[str, Any]) -> str | None:
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Inner configurations that may be about words."""
    for key, value in config.items():
        if isinstance(value, Mapping) and not _OTHER_SENSES.search(key):
            yield value
