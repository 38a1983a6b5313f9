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
class TowerLocation:
    """The object at ``path`` describes a tower; ``counts`` are its keys for the depth.

    ``others`` are further objects and keys that repeat the depth. ``head`` means that settings
    there that name no tower apply to this one. ``side`` is ``encoder`` or ``decoder`` if the
    tensor names say so.
    """

    path: Path
    counts: tuple[str, ...]
    repetitions: tuple[tuple[Path, tuple[str, ...]], ...]
    takes_unnamed: bool
    side: str | None


def object_at(config: Mapping[str, Any], path: Path) -> Any:
    """The object of ``config`` at ``path``."""
    found: Any = config
    for key in path:
        found = found[key]
    return found


def nested_object(section: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The object of ``section`` at ``path``; empty if there is none."""
    found: Any = section
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def locate_towers(config: Mapping[str, Any], stacks: Sequence[Stack]) -> list[TowerLocation | None]:
    """The home of each tower, the main one first; ``None`` if no object fits.

    An object fits if it has no layer count, or one equal to the tower's depth.
    """
    objects = list(_objects(config, ()))
    tower_words = set().union(*(words(stack.prefix) for stack in stacks))
    places = [
        _path_of_tower(objects, stack, tower_words, main=i == 0) for i, stack in enumerate(stacks)
    ]
    found: list[TowerLocation | None] = []
    for i, (stack, path) in enumerate(zip(stacks, places, strict=True)):
        if path is None:
            found.append(None)
            continue
        neighbours = [
            other
            for j, (other, section) in enumerate(zip(stacks, places, strict=True))
            if section == path and i != j
        ]
        counts = _count_keys(object_at(config, path), path, stack, neighbours)
        others = _repetitions(objects, stack, path, places, main=i == 0)
        found.append(TowerLocation(path, counts, others, False, _side(stack)))
    unnamed_owners = {path: _unnamed_owner(path, found) for path in places if path is not None}
    return [
        None
        if location is None
        else replace(location, takes_unnamed=unnamed_owners[location.path] == i)
        for i, location in enumerate(found)
    ]


def are_parts(config: Mapping[str, Any], stacks: Sequence[Stack]) -> bool:
    """Whether towers are parts of one stack of layers (XLM's lists of attentions and of networks,
    HRM's two levels): their prefixes differ in one word, and one key counts the layers of all."""
    paths = [stack.prefix.split(".") for stack in stacks]
    parts_named = {word for path in paths for part in path for word in words(part)} & _PART_WORDS
    if parts_named or len({len(path) for path in paths}) != 1:
        return False
    differing = [part for part in zip(*paths, strict=True) if len(set(part)) > 1]
    found = locate_towers(config, stacks)
    located = [location for location in found if location is not None]
    counts = [{(location.path, key) for key in location.counts} for location in located]
    one_key = len(located) == len(stacks) and bool(set.intersection(*counts))
    return one_key and len(differing) == 1


def _unnamed_owner(path: Path, found: Sequence[TowerLocation | None]) -> int:
    """Index of the tower to which settings at ``path`` that name no tower apply: the first counted
    by a key that names none, or the encoder, or the first."""
    there = [
        (i, location)
        for i, location in enumerate(found)
        if location is not None and location.path == path
    ]
    encoders = [i for i, location in there if location.side == "encoder"]
    plain = [i for i, location in there if any(not _qualifiers(key) for key in location.counts)]
    return next(iter((*plain, *encoders, *(i for i, _ in there))))


def paths_about(
    config: Mapping[str, Any], location: TowerLocation, others: Sequence[TowerLocation | None]
) -> Iterator[Path]:
    """Paths, relative to ``location``, of objects about the same tower: itself, and nested objects
    that do not describe another part of the model."""
    tower_words = {other.path for other in others if other is not None} - {location.path}

    def walk(path: Path) -> Iterator[Path]:
        yield path[len(location.path) :]
        for key, value in object_at(config, path).items():
            below = (*path, key)
            if not isinstance(value, Mapping) or _NOT_MODELS.match(key) or _COUNT_KEY.search(key):
                continue
            part = "model_type" in value or _PART_WORDS & {*words(key)} or "text" in words(key)
            if not part and not any(path_[: len(below)] == below for path_ in tower_words):
                yield from walk(below)

    yield from walk(location.path)


_NOT_MODELS = re.compile(
    r"^(id2label|label2id|quantization_config|compression_config|generation_config|rope_scaling"
    r"|rope_parameters|per_layer_config|task_specific_params|auto_map|pruned_unnamed_owners)$"
)
"""Objects in configurations that do not describe a part of a model."""


def _objects(config: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    yield path, config
    for key, value in config.items():
        if isinstance(value, Mapping) and not _NOT_MODELS.match(key) and not _COUNT_KEY.search(key):
            yield from _objects(value, (*path, key))


# ---- which object


_SYNONYMS = {
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

_PART_WORDS = {"vision", "audio", "decoder", "encoder", "qformer", "projector", "talker"}
"""Words of objects that are not the home of a tower unless its name contains them."""

_SIDES = {"encoder", "decoder"}
_IGNORED_WORDS = {"config", "model", "dict", "module", "tower"}


def words(name: str) -> list[str]:
    """The words of a key or tensor prefix, with synonyms unified."""
    found = [_SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+", name.lower())]
    return [word for word in found if word not in _IGNORED_WORDS]


def _words_of_path(path: Path) -> set[str]:
    return {word for key in path for word in words(key)}


def _path_of_tower(
    objects: Sequence[tuple[Path, Mapping[str, Any]]],
    stack: Stack,
    tower_words: set[str],
    main: bool,
) -> Path | None:
    """The path of the home of a tower.

    Preferred is an object with a count that names the tower, then the one whose path shares most
    words, with more weight on the first parts of the prefix. Unless names say otherwise, tokens
    go into text and images into an encoder; ``tower_words`` are the words in the names of towers.
    """
    own = words(stack.prefix)
    known = set().union(*(_words_of_path(path) for path, _ in objects))
    if main and "text" not in own:
        own = [*own, "text"]
    elif (
        "encoder" in own
        and not {"text", "vision"} & {*own, *tower_words}
        and "encoder" not in known
    ):
        own = [*own, "vision"]
    weights = {word: 1 + (len(own) - i) / 100 for i, word in reversed(list(enumerate(own)))}

    def rank(item: tuple[Path, Mapping[str, Any]]) -> tuple[bool, float, int, int, int]:
        path, section = item
        theirs = _words_of_path(path)
        fit = sum(weights.get(word, 0.0) for word in theirs) - len(theirs & _PART_WORDS - set(own))
        named = any(
            value == stack.layers and set(_qualifiers(key)) - _SIDES
            for key, value in _count_items(section, stack)
        )
        return named, fit, _fit(section, stack), -len(theirs - set(own)), -len(path)

    fitting = [item for item in objects if _fit(item[1], stack) >= 0]
    return max(fitting, key=rank)[0] if fitting else None


def _fit(section: Mapping[str, Any], stack: Stack) -> int:
    """1 if the object's count equals the tower's depth, 0 if it has no count, else -1."""
    values = [value for _, value in _count_items(section, stack)]
    if stack.layers in values or any(
        value == stack.layers and _is_count(key, value) for key, value in section.items()
    ):
        return 1
    return -1 if values else 0


def _repetitions(
    objects: Sequence[tuple[Path, Mapping[str, Any]]],
    stack: Stack,
    path: Path,
    places: Sequence[Path | None],
    main: bool,
) -> tuple[tuple[Path, tuple[str, ...]], ...]:
    """Objects that repeat the settings: the whole configuration, or one with the same words."""
    found = []
    for other, section in objects:
        if other in places or not (
            (other == () and main) or _words_of_path(other) == _words_of_path(path)
        ):
            continue
        keys = tuple(
            key
            for key, value in _count_items(section, stack)
            if value == stack.layers and not _qualifiers(key)
        )
        if keys:
            found.append((other, keys))
    return tuple(found)


_STACK_WORDS = {
    "layers",
    "layer",
    "blocks",
    "block",
    "h",
    "transformer",
    "backbone",
    "text",
    "encoder",
}


def is_main_stack(stack: Stack, path: Path) -> bool:
    """Whether a tower is the main stack of what ``path`` describes, not of a part of it."""
    return set(words(stack.prefix)) <= _STACK_WORDS | {"decoder"} | _words_of_path(path)


# ---- which keys


_COUNT_KEY = re.compile(r"^(?!.*_per_(?!stack))(.*_)?(layers?|blocks?|depth)(_per_stack)?$")
_NOT_DEPTH = re.compile(
    r"dense|sparse|shared|nextn|mtp|predict|window|conv|feat|adapter|only|resid|res_|hash|skip|norm"
    r"|proj|lstm|upsampl|interval|every|moe|freq|period|step|sliding|full|drop|random|rope|head"
    r"|scale|prenet|postnet|fusion|mem_|max_|min_|select|accept|conditional|insert|deepstack|target"
    r"|classifier|prompt|first|last|add_|cross|fixed|frozen|hybrid|mamba|attn"
)
"""Words in counts of layers that are part of a tower, or belong to no tower."""

_NEUTRAL_WORDS = (
    "num n hidden layers layer blocks block depth of per stack number total transformer"
)
_NEUTRAL = frozenset(_NEUTRAL_WORDS.split())


def _is_count(key: str, value: object) -> bool:
    """Whether a key counts the layers of some tower."""
    return _is_number(value) and bool(_COUNT_KEY.search(key)) and not _NOT_DEPTH.search(key)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _count_items(section: Mapping[str, Any], stack: Stack) -> Iterator[tuple[str, int]]:
    """Counts whose names are compatible with the tower: they name it, or no tower."""
    own = set(words(stack.prefix))
    for key, value in section.items():
        if not _is_number(value) or not _COUNT_KEY.search(key):
            continue
        named = _qualifiers(key)
        if _match_tower(named, own) and (named or not _NOT_DEPTH.search(key)):
            yield key, value


def _qualifiers(key: str) -> list[str]:
    """The words of a count key that identify the tower."""
    return [word for word in words(key.replace("_", " ")) if word not in _NEUTRAL]


def _match_tower(qualifiers: Sequence[str], own: set[str]) -> bool:
    """Whether all words are a tower's own, or prefixes of such (``conf`` for conformer)."""
    return all(
        any(word == name or (len(word) > 2 and name.startswith(word)) for name in own)
        for word in qualifiers
    )


def _side(stack: Stack) -> str | None:
    return next((word for word in words(stack.prefix) if word in _SIDES), None)


def _count_keys(
    section: Mapping[str, Any], path: Path, stack: Stack, neighbours: Sequence[Stack]
) -> tuple[str, ...]:
    """The keys of ``section`` that hold the depth of this tower and of no other.

    Keys that name the tower come first. Keys that name no tower count the only tower, or the
    encoder if there is also a decoder (in such families transformers uses ``num_hidden_layers``
    for the encoder). Keys that name something else count a tower that is alone, or that is the
    main stack of what ``path`` describes.
    """
    own = [key for key, value in _count_items(section, stack) if value == stack.layers]
    named = [key for key in own if _qualifiers(key)]
    plain = [key for key in own if not _qualifiers(key)]
    other = [
        key
        for key, value in section.items()
        if value == stack.layers
        and key not in own
        and _is_count(key, value)
        and not any(
            _match_tower(_qualifiers(key), set(words(neighbour.prefix))) for neighbour in neighbours
        )
    ]
    sides = {
        word for key, value in section.items() if _is_count(key, value) for word in _qualifiers(key)
    } & _SIDES
    side = _side(stack)
    twins = any(
        _side(neighbour) == "encoder" and neighbour.layers == stack.layers
        for neighbour in neighbours
    )
    if side == "decoder" and ("encoder" in sides or twins):
        return tuple(named)
    if any(set(_qualifiers(key)) - _SIDES for key in named):
        return tuple(named)
    sided = [key for key in other if set(_qualifiers(key)) <= _SIDES]
    if named or plain:
        one_sided = len(sides) == 1 and not neighbours and not named
        return (*named, *plain, *(sided if one_sided else ()))
    if sided and not neighbours:
        encoders = [key for key in sided if "encoder" in _qualifiers(key)]
        return tuple(encoders or sided)
    return tuple(other) if is_main_stack(stack, path) else ()
