"""Finds the object in a configuration that describes a tower, and the keys that count its layers.

Configurations are nested (``text_config``, ``vision_config``, ``thinker_config.text_config``, an
encoder and a decoder) or describe several towers in one object (``encoder_layers``,
``decoder_layers``), and their names may differ from those of the tensors. The home of a tower is
the object whose path shares most words with the tensors' prefix and whose counts do not contradict
the tower's depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mergeloom.engine.base.records import dataclass

Path = tuple[str, ...]
"""Keys from the configuration to one of its objects."""


class Stack(Protocol):
    """A tower: the prefix of tensor names before the layer number, and the depth."""

    @property
    def prefix(self) -> str: ...

    @property
    def layers(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Home:
    """The object at ``path`` describes a tower; ``counts`` are its keys for the depth.

    ``others`` are further objects and keys that repeat the depth. ``head`` means that settings
    there that name no tower apply to this one. ``side`` is ``encoder`` or ``decoder`` if the
    tensor names say so.
    """

    path: Path
    counts: tuple[str, ...]
    others: tuple[tuple[Path, tuple[str, ...]], ...]
    head: bool
    side: str | None


def at(config: Mapping[str, Any], path: Path) -> Any:
    """The object of ``config`` at ``path``."""
    found: Any = config
    for key in path:
        found = found[key]
    return found


def values(place: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The object of ``place`` at ``path``; empty if there is none."""
    found: Any = place
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def homes(config: Mapping[str, Any], stacks: Sequence[Stack]) -> list[Home | None]:
    """The home of each tower, the main one first; ``None`` if no object fits.

    An object fits if it has no layer count, or one equal to the tower's depth.
    """
    objects = list(_objects(config, ()))
    taken = set().union(*(words(stack.prefix) for stack in stacks))
    places = [_place(objects, stack, taken, main=i == 0) for i, stack in enumerate(stacks)]
    found: list[Home | None] = []
    for i, (stack, path) in enumerate(zip(stacks, places, strict=True)):
        if path is None:
            found.append(None)
            continue
        mates = [
            other
            for j, (other, place) in enumerate(zip(stacks, places, strict=True))
            if place == path and i != j
        ]
        counts = _counts(at(config, path), path, stack, mates)
        others = _repeated(objects, stack, path, places, main=i == 0)
        found.append(Home(path, counts, others, False, _side(stack)))
    heads = {path: _head(path, found) for path in places if path is not None}
    return [
        None if home is None else replace(home, head=heads[home.path] == i)
        for i, home in enumerate(found)
    ]


def _head(path: Path, found: Sequence[Home | None]) -> int:
    """Index of the tower to which settings at ``path`` that name no tower apply: the first counted
    by a key that names none, or the encoder, or the first."""
    there = [(i, home) for i, home in enumerate(found) if home is not None and home.path == path]
    encoders = [i for i, home in there if home.side == "encoder"]
    plain = [i for i, home in there if any(not _qualifiers(key) for key in home.counts)]
    return next(iter((*plain, *encoders, *(i for i, _ in there))))


def inner(config: Mapping[str, Any], home: Home, others: Sequence[Home | None]) -> Iterator[Path]:
    """Paths, relative to ``home``, of objects about the same tower: itself, and nested objects that
    do not describe another part of the model."""
    taken = {other.path for other in others if other is not None} - {home.path}

    def walk(path: Path) -> Iterator[Path]:
        yield path[len(home.path) :]
        for key, value in at(config, path).items():
            below = (*path, key)
            if not isinstance(value, Mapping) or _NOT_MODELS.match(key) or _COUNT.search(key):
                continue
            part = "model_type" in value or _PARTS & {*words(key)} or "text" in words(key)
            if not part and not any(path_[: len(below)] == below for path_ in taken):
                yield from walk(below)

    yield from walk(home.path)


_NOT_MODELS = re.compile(
    r"^(id2label|label2id|quantization_config|compression_config|generation_config|rope_scaling"
    r"|rope_parameters|per_layer_config|task_specific_params|auto_map|pruned_heads)$"
)
"""Objects in configurations that do not describe a part of a model."""


def _objects(config: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping) and not _NOT_MODELS.match(key) and not _COUNT.search(key):
            yield from _objects(value, (*path, key))


# ---- which object


_SAME = {
    "language": "text",
    "llm": "text",
    "lm": "text",
    "visual": "vision",
    "image": "vision",
    "video": "vision",
    "vit": "vision",
    "vpm": "vision",
    "apm": "audio",
    "speech": "audio",
    "sound": "audio",
    "enc": "encoder",
    "dec": "decoder",
    "adaptor": "projector",
}
"""Synonyms for parts of a model in tensor names and configurations."""

_PARTS = {"vision", "audio", "decoder", "encoder", "qformer", "projector", "talker"}
"""Words of objects that are not the home of a tower unless its name contains them."""

_SIDES = {"encoder", "decoder"}
_EMPTY_WORDS = {"config", "model", "dict", "module", "tower"}


def words(name: str) -> list[str]:
    """The words of a key or tensor prefix, with synonyms unified."""
    found = [_SAME.get(word, word) for word in re.findall(r"[a-z]+", name.lower())]
    return [word for word in found if word not in _EMPTY_WORDS]


def _words_of(path: Path) -> set[str]:
    return {word for key in path for word in words(key)}


def _place(
    objects: Sequence[tuple[Path, Mapping[str, Any]]],
    stack: Stack,
    taken: set[str],
    main: bool,
) -> Path | None:
    """The path of the home of a tower.

    Preferred is an object with a count that names the tower, then the one whose path shares most
    words, with more weight on the first parts of the prefix. Unless names say otherwise, tokens
    go into text and images into an encoder; ``taken`` are the words in the names of towers.
    """
    own = words(stack.prefix)
    known = set().union(*(_words_of(path) for path, _ in objects))
    if main and "text" not in own:
        own = [*own, "text"]
    elif "encoder" in own and not {"text", "vision"} & {*own, *taken} and "encoder" not in known:
        own = [*own, "vision"]
    weights = {word: 1 + (len(own) - i) / 100 for i, word in reversed(list(enumerate(own)))}

    def rank(item: tuple[Path, Mapping[str, Any]]) -> tuple[bool, float, int, int, int]:
        path, place = item
        theirs = _words_of(path)
        fit = sum(weights.get(word, 0.0) for word in theirs) - len(theirs & _PARTS - set(own))
        named = any(
            value == stack.layers and set(_qualifiers(key)) - _SIDES
            for key, value in _count_items(place, stack)
        )
        return named, fit, _status(place, stack), -len(theirs - set(own)), -len(path)

    fitting = [item for item in objects if _status(item[1], stack) >= 0]
    return max(fitting, key=rank)[0] if fitting else None


def _status(place: Mapping[str, Any], stack: Stack) -> int:
    """1 if the object's count equals the tower's depth, 0 if it has no count, else -1."""
    values = [value for _, value in _count_items(place, stack)]
    if stack.layers in values or any(
        value == stack.layers and _counts_some(key, value) for key, value in place.items()
    ):
        return 1
    return -1 if values else 0


def _repeated(
    objects: Sequence[tuple[Path, Mapping[str, Any]]],
    stack: Stack,
    path: Path,
    places: Sequence[Path | None],
    main: bool,
) -> tuple[tuple[Path, tuple[str, ...]], ...]:
    """Objects that repeat the settings: the whole configuration, or one with the same words."""
    found = []
    for other, place in objects:
        if other in places or not ((other == () and main) or _words_of(other) == _words_of(path)):
            continue
        keys = tuple(
            key
            for key, value in _count_items(place, stack)
            if value == stack.layers and not _qualifiers(key)
        )
        if keys:
            found.append((other, keys))
    return tuple(found)


_STACKS = {"layers", "layer", "blocks", "block", "h", "transformer", "backbone", "text", "encoder"}


def is_main_stack(stack: Stack, path: Path) -> bool:
    """Whether a tower is the main stack of what ``path`` describes, not of a part of it."""
    return set(words(stack.prefix)) <= _STACKS | {"decoder"} | _words_of(path)


# ---- which keys


_COUNT = re.compile(r"^(?!.*_per_(?!stack))(.*_)?(layers?|blocks?|depth)(_per_stack)?$")
_NO_DEPTH = re.compile(
    r"dense|sparse|shared|nextn|mtp|predict|window|conv|feat|adapter|only|resid|res_|hash|skip|norm"
    r"|proj|lstm|upsampl|interval|every|moe|freq|period|step|sliding|full|drop|random|rope|head"
    r"|scale|prenet|postnet|fusion|mem_|max_|min_|select|accept|conditional|insert|deepstack|target"
    r"|classifier|prompt|first|last|add_|cross|fixed|frozen|hybrid|mamba|attn"
)
"""Words in counts of layers that are part of a tower, or belong to no tower."""

_NO_QUALIFIERS = (
    "num n hidden layers layer blocks block depth of per stack number total transformer"
)
_EMPTY_QUALIFIERS = frozenset(_NO_QUALIFIERS.split())


def _counts_some(key: str, value: object) -> bool:
    """Whether a key counts the layers of some tower."""
    return _is_number(value) and bool(_COUNT.search(key)) and not _NO_DEPTH.search(key)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _count_items(place: Mapping[str, Any], stack: Stack) -> Iterator[tuple[str, int]]:
    """Counts whose names are compatible with the tower: they name it, or no tower."""
    own = set(words(stack.prefix))
    for key, value in place.items():
        if not _is_number(value) or not _COUNT.search(key):
            continue
        named = _qualifiers(key)
        if _names(named, own) and (named or not _NO_DEPTH.search(key)):
            yield key, value


def _qualifiers(key: str) -> list[str]:
    """The words of a count key that identify the tower."""
    return [word for word in words(key.replace("_", " ")) if word not in _EMPTY_QUALIFIERS]


def _names(qualifiers: Sequence[str], own: set[str]) -> bool:
    """Whether all words are a tower's own, or prefixes of such (``conf`` for conformer)."""
    return all(
        any(word == name or (len(word) > 2 and name.startswith(word)) for name in own)
        for word in qualifiers
    )


def _side(stack: Stack) -> str | None:
    return next((word for word in words(stack.prefix) if word in _SIDES), None)


def _counts(
    place: Mapping[str, Any], path: Path, stack: Stack, mates: Sequence[Stack]
) -> tuple[str, ...]:
    """The keys of ``place`` that hold the depth of this tower and of no other.

    Keys that name the tower come first. Keys that name no tower count the only tower, or the
    encoder if there is also a decoder (in such families transformers uses ``num_hidden_layers``
    for the encoder). Keys that name something else count a tower that is alone, or that is the
    main stack of what ``path`` describes.
    """
    own = [key for key, value in _count_items(place, stack) if value == stack.layers]
    named = [key for key in own if _qualifiers(key)]
    plain = [key for key in own if not _qualifiers(key)]
    other = [
        key
        for key, value in place.items()
        if value == stack.layers
        and key not in own
        and _counts_some(key, value)
        and not any(_names(_qualifiers(key), set(words(mate.prefix))) for mate in mates)
    ]
    sides = {
        word
        for key, value in place.items()
        if _counts_some(key, value)
        for word in _qualifiers(key)
    } & _SIDES
    side = _side(stack)
    twins = any(_side(mate) == "encoder" and mate.layers == stack.layers for mate in mates)
    if side == "decoder" and ("encoder" in sides or twins):
        return tuple(named)
    if any(set(_qualifiers(key)) - _SIDES for key in named):
        return tuple(named)
    sided = [key for key in other if set(_qualifiers(key)) <= _SIDES]
    if named or plain:
        one_sided = len(sides) == 1 and not mates and not named
        return (*named, *plain, *(sided if one_sided else ()))
    if sided and not mates:
        encoders = [key for key in sided if "encoder" in _qualifiers(key)]
        return tuple(encoders or sided)
    return tuple(other) if is_main_stack(stack, path) else ()
