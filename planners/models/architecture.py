"""The architecture of a checkpoint, read off the names of its tensors.

No list of known models: a *tower* is a stack of numbered layers, found where names share all but
one number (``model.layers.17.mlp.up_proj.weight``). The first number of a name that belongs to
such a stack is its layer; later numbers (experts, sub-blocks) are part of the name within the
layer. Everything outside the layers stands before them (embeddings) or after (norm, head).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LAYER_COUNT_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
)
"""Keys under which configurations of published models count layers."""

_BEFORE = re.compile(
    r"embed|(^|\.)(wte|wpe|shared|conv1|pre_?la?ye?r_?norm|rotary_pos_emb|relative_attention_bias)\b"
)
"""Names of weights that act before the first layer; all others act after the last."""

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|predictions\.decoder)\.weight$")
_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared|word_embedding)\.weight$"
)


@dataclass(frozen=True, slots=True)
class LayerName:
    """A tensor of a layer: ``prefix + str(layer) + suffix``."""

    prefix: str
    layer: int
    suffix: str


@dataclass(frozen=True, slots=True)
class Tower:
    """One stack of layers and the weights around it.

    ``name`` is what a configuration's ``modules`` calls it. ``prefix`` is the names' part before
    the layer number, empty for a checkpoint without layers. ``suffixes`` holds, layer by layer,
    the names' parts after it; ``before`` and ``after`` are the names of the other weights.
    """

    name: str
    prefix: str
    suffixes: tuple[tuple[str, ...], ...]
    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def layers(self) -> int:
        return len(self.suffixes)

    def layer_name(self, layer: int, suffix: str) -> str:
        """Name of one tensor of one layer."""
        return f"{self.prefix}{layer}{suffix}"

    def names(self) -> Iterator[str]:
        """Names of all tensors: before the layers, layer by layer, after them."""
        yield from self.before
        for layer, suffixes in enumerate(self.suffixes):
            for suffix in suffixes:
                yield self.layer_name(layer, suffix)
        yield from self.after


@dataclass(frozen=True, slots=True)
class Architecture:
    """The towers of a checkpoint, the main one first; together they hold every tensor once."""

    towers: tuple[Tower, ...]

    def tower(self, name: str) -> Tower | None:
        """The tower of that name."""
        return next((tower for tower in self.towers if tower.name == name), None)

    @property
    def main(self) -> Tower:
        """The tower that tokens go into, or else the one with most tensors; it holds what belongs
        to no other."""
        return self.towers[0]


def infer(names: Iterable[str], config: Mapping[str, Any]) -> Architecture:
    """The architecture of a checkpoint with tensors ``names`` and ``config`` as configuration."""
    names = list(names)
    stacks = _stacks(names, config)
    embedding = token_embedding(names) or ""

    def rank(prefix: str) -> tuple[int, int, str]:
        return _shared_parts(prefix, embedding), _weight(stacks[prefix]), prefix

    main = max(stacks, key=rank, default="")
    order = [main, *sorted(prefix for prefix in stacks if prefix != main)]
    titles = _tower_names([prefix for prefix in order if prefix])
    outside: dict[str, list[str]] = defaultdict(list)
    for name in names:
        if not any(name in layer for layer in _layers_of(name, stacks)):
            outside[_owner(name, titles, main)].append(name)
    towers = []
    for prefix in order:
        around = outside.get(prefix, [])
        towers.append(
            Tower(
                name=titles.get(prefix, "default"),
                prefix=prefix,
                suffixes=tuple(tuple(layer.values()) for layer in stacks.get(prefix, ())),
                before=tuple(name for name in around if _is_before(name, prefix)),
                after=tuple(name for name in around if not _is_before(name, prefix)),
            )
        )
    return Architecture(tuple(towers))


def _is_before(name: str, prefix: str) -> bool:
    """Whether a weight outside the layers of a tower acts before the first of them."""
    return _BEFORE.search(_within(name, prefix)) is not None and _HEAD.search(name) is None


def _shared_parts(prefix: str, name: str) -> int:
    """How many leading parts two dotted names share."""
    pairs = zip(prefix.split("."), name.split("."), strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), 0)


def output_head(names: Iterable[str]) -> str | None:
    """The name of the output head among ``names``, if there is one."""
    return next((name for name in names if _HEAD.search(name)), None)


def token_embedding(names: Iterable[str]) -> str | None:
    """The name of the input embedding of tokens among ``names``, if there is one."""
    return next((name for name in names if _EMBEDDING.search(name)), None)


def declared_layers(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Layer counts that a configuration declares, nested ones too, with their key paths."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            for path, count in declared_layers(value):
                yield (key, *path), count
        elif key in LAYER_COUNT_KEYS and isinstance(value, int) and not isinstance(value, bool):
            yield (key,), value


Stack = list[dict[str, str]]
"""Layer by layer, the suffix of each tensor by its name."""


def _stacks(names: list[str], config: Mapping[str, Any]) -> dict[str, Stack]:
    """Stacks of layers by prefix.

    Numbers also count the parts of small networks (``projector.0.weight``). A stack of layers is
    numbered from 0 without a gap, and either the configuration declares as many layers or each
    layer has several tensors.
    """
    declared = {count for _, count in declared_layers(config)}
    found: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for name in names:
        parts = _split(name)
        if parts is not None:
            found[parts.prefix][parts.layer][name] = parts.suffix
    stacks = {}
    for prefix, layers in found.items():
        if set(layers) != set(range(len(layers))):
            continue
        rich = len(layers) > 1 and min(len(layer) for layer in layers.values()) > 2
        if len(layers) in declared or rich:
            stacks[prefix] = [layers[number] for number in range(len(layers))]
    return stacks


_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")


def _split(name: str) -> LayerName | None:
    match = _NUMBER.search(name)
    if match is None or len(match[0]) > 6:
        return None
    return LayerName(name[: match.start()], int(match[0]), name[match.end() :])


def _layers_of(name: str, stacks: Mapping[str, Stack]) -> Iterator[dict[str, str]]:
    parts = _split(name)
    if parts is not None and parts.prefix in stacks:
        yield stacks[parts.prefix][parts.layer]


def _weight(stack: Stack) -> int:
    return sum(len(layer) for layer in stack)


def _tower_names(prefixes: list[str]) -> dict[str, str]:
    """Short names by prefix: what distinguishes the towers, or ``default`` if there is one."""
    if len(prefixes) == 1:
        return {prefixes[0]: "default"}
    paths = {prefix: prefix.rstrip(".").split(".") for prefix in prefixes}
    common = 0
    while len({tuple(path[: common + 1]) for path in paths.values()}) == 1:
        common += 1
    length = common + 1
    while len({tuple(path[:length]) for path in paths.values()}) < len(paths):
        length += 1
    return {prefix: ".".join(path[common:length]) for prefix, path in paths.items()}


def _owner(name: str, titles: Mapping[str, str], main: str) -> str:
    """The prefix of the tower that a weight outside all layers belongs to."""
    for prefix, title in titles.items():
        if title == "default":
            continue
        root = prefix[: prefix.find(title) + len(title)]
        if name.startswith(root + "."):
            return prefix
    return main


def _within(name: str, prefix: str) -> str:
    """``name`` without what it shares with its tower's prefix."""
    shared = 0
    while shared < min(len(name), len(prefix)) and name[shared] == prefix[shared]:
        shared += 1
    return name[name.rfind(".", 0, shared) + 1 :]
