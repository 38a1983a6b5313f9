"""The architecture of a checkpoint, read off the names of its tensors.

No list of known models: a *tower* is a stack of numbered layers, found where names share all but
one number (``model.layers.17.mlp.up_proj.weight``). The first number of a name that belongs to
such a stack is its layer; later numbers (experts, sub-blocks) are part of the name within the
layer. Everything outside the layers belongs to the tower under whose root it lies, and acts before
the layers or after them.

    model.embed_tokens.weight                        before
    model.layers.0.self_attn.q_proj.weight           layer 0
    ...
    model.layers.31.self_attn.q_proj.weight          layer 31
    model.layers.32.eh_proj.weight                   beyond: predicts further tokens
    model.norm.weight, lm_head.weight                after
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.models.roles import Shape, acts_after, output_head, token_embedding

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

_BEYOND_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers")
"""Keys that count layers numbered on after the last, which predict further tokens."""


class LayerName(NamedTuple):
    """A tensor of a layer: ``prefix + str(layer) + suffix``."""

    prefix: str
    layer: int
    suffix: str


@dataclass(frozen=True, slots=True)
class Tower:
    """One stack of layers and the weights around it.

    ``name`` is what a configuration's ``modules`` calls it. ``prefix`` is the names' part before
    the layer number, empty for a tower without layers. ``suffixes`` holds, layer by layer, the
    names' parts after it; ``before`` and ``after`` are the names of the other weights.

    ``first`` and ``last`` are suffixes that belong to the place and not to the layer: the first
    (or the last) layer has them besides all that another layer has. ``beyond`` holds the suffixes
    of layers numbered on after the last, which belong to no stack.
    """

    name: str
    prefix: str
    suffixes: tuple[tuple[str, ...], ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    beyond: tuple[tuple[str, ...], ...] = ()

    @property
    def layers(self) -> int:
        return len(self.suffixes)

    def layer_name(self, layer: int, suffix: str) -> str:
        """Name of one tensor of one layer."""
        return f"{self.prefix}{layer}{suffix}"

    def names(self) -> Iterator[str]:
        """Names of all tensors: before the layers, layer by layer, after them."""
        yield from self.before
        for layer in range(self.layers + len(self.beyond)):
            for suffix in self.layer_suffixes(layer):
                yield self.layer_name(layer, suffix)
        yield from self.after

    def layer_suffixes(self, layer: int) -> Iterator[str]:
        """Suffixes of everything that is stored under one layer's number."""
        if layer >= self.layers:
            yield from self.beyond[layer - self.layers]
            return
        if layer == 0:
            yield from self.first
        yield from self.suffixes[layer]
        if layer == self.layers - 1:
            yield from self.last


@dataclass(frozen=True)
class Architecture:
    """The towers of a checkpoint, the main one first; together they hold every tensor once.

    ``embedding`` and ``head`` are the names of the stored token embedding and output head.
    """

    towers: tuple[Tower, ...]
    embedding: str | None = None
    head: str | None = None

    def tower(self, name: str) -> Tower | None:
        """The tower of that name."""
        return next((tower for tower in self.towers if tower.name == name), None)

    @property
    def main(self) -> Tower:
        """The tower that tokens go into, or else the one with most tensors; it holds what belongs
        to no other."""
        return self.towers[0]

    @cached_property
    def around(self) -> frozenset[str]:
        """Names of all weights outside the layers."""
        return frozenset(name for t in self.towers for name in (*t.before, *t.after))

    def without(self, name: str, inside: Collection[str]) -> Architecture:
        """The same with a tower of its own, called ``name``, for weights outside the layers."""
        rest = tuple(
            replace(
                tower,
                before=tuple(n for n in tower.before if n not in inside),
                after=tuple(n for n in tower.after if n not in inside),
            )
            for tower in self.towers
        )
        taken = tuple(n for t in self.towers for n in (*t.before, *t.after) if n in inside)
        return replace(self, towers=(*rest, Tower(name, "", (), taken, ())))


class Inferred:
    """Architectures of many checkpoints, each inferred once for all whose tensors have the same
    names and shapes and whose configurations say the same of them: fine-tunes of one model do."""

    def __init__(self) -> None:
        self._kept: list[tuple[Mapping[str, Shape], Hashable, Architecture]] = []

    def __call__(self, shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> Architecture:
        """As `infer`."""
        asked = _asked(config)
        for known, configured, found in self._kept:
            if configured == asked and known == shapes and list(known) == list(shapes):
                return found
        found = infer(shapes, config)
        self._kept.append((shapes, asked, found))
        return found


def _asked(config: Mapping[str, Any]) -> Hashable:
    """What of a configuration can matter to `infer`: whole numbers and flags, nested ones too."""
    return tuple(
        (key, _asked(value) if isinstance(value, Mapping) else (type(value), value))
        for key, value in config.items()
        if isinstance(value, Mapping | int)
    )


def infer(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> Architecture:
    """The architecture of a checkpoint whose tensors have ``shapes``, configured by ``config``."""
    split = {name: parts for name in shapes if (parts := _split(name)) is not None}
    stacks = _stacks(split, config)
    outside = {name: shapes[name] for name in shapes if not _in_stack(split.get(name), stacks)}
    embedding = token_embedding(outside, config)
    owners, titles, main = _territories(stacks, embedding or "")
    around: dict[str, list[str]] = defaultdict(list)
    for name in outside:
        around[_owner(name, owners, main)].append(name)
    towers = []
    for prefix in [main, *sorted(prefix for prefix in stacks if prefix != main)]:
        own = around.get(prefix, [])
        after = {name for name in own if acts_after(name, prefix, shapes, config)}
        stack = stacks.get(prefix, [])
        count = len(stack) - _beyond(stack, config)
        layers, first, last = _by_place(stack[:count])
        towers.append(
            Tower(
                name=titles.get(prefix, "default"),
                prefix=prefix,
                suffixes=layers,
                before=tuple(name for name in own if name not in after),
                after=tuple(name for name in own if name in after),
                first=first,
                last=last,
                beyond=tuple(map(tuple, stack[count:])),
            )
        )
    return Architecture(tuple(towers), embedding, output_head(outside, embedding))


def declared_layers(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Layer counts that a configuration declares, nested ones too, with their key paths."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            for path, count in declared_layers(value):
                yield (key, *path), count
        elif key in LAYER_COUNT_KEYS and isinstance(value, int) and not isinstance(value, bool):
            yield (key,), value


def beside_layers(tower: Tower) -> Iterator[str]:
    """Prefixes of numbered weights beside a tower's layers, in the same module and as many (CLVP's
    ``group_norms``, one behind each of the ``mel_attn_blocks``)."""
    module = tower.prefix.rstrip(".").rpartition(".")[0]
    found: dict[str, set[int]] = defaultdict(set)
    for name in (*tower.before, *tower.after):
        parts = _split(name)
        if parts is not None and parts.prefix.rstrip(".").rpartition(".")[0] == module:
            found[parts.prefix].add(parts.layer)
    for prefix, numbers in found.items():
        if tower.layers > 1 and numbers == set(range(tower.layers)):
            yield prefix


Stack = list[list[str]]
"""Layer by layer, the suffixes of its tensors."""


def _stacks(split: Mapping[str, LayerName], config: Mapping[str, Any]) -> dict[str, Stack]:
    """Stacks of layers by prefix.

    Numbers also count the parts of small networks (``projector.0.weight``). A stack of layers is
    numbered from 0 without a gap, and either the configuration declares as many layers or each
    layer has several tensors and is no part of a convolution or a projector.
    """
    declared = {count for _, count in declared_layers(config)}
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for parts in split.values():
        found[parts.prefix][parts.layer].append(parts.suffix)
    stacks = {}
    for prefix, layers in found.items():
        if set(layers) != set(range(len(layers))):
            continue
        rich = len(layers) > 1 and min(len(layer) for layer in layers.values()) > 2
        rich = rich and _PART.search(prefix) is None
        if (len(layers) in declared or rich) and _SAMPLING.search(prefix) is None:
            stacks[prefix] = [layers[number] for number in range(len(layers))]
    return stacks


def _beyond(stack: Stack, config: Mapping[str, Any]) -> int:
    """How many layers at the end of a stack the configuration counts apart."""
    for place in (config, *(part for part in config.values() if isinstance(part, Mapping))):
        for extra in (place.get(key) for key in _BEYOND_KEYS):
            counts = [place.get(key) for key in LAYER_COUNT_KEYS]
            if type(extra) is int and extra > 0 and len(stack) - extra in counts:
                return extra
    return 0


def _by_place(stack: Stack) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...], tuple[str, ...]]:
    """The layers' own suffixes, and those that belong to the first and the last place.

    A tensor of the first layer alone (or of the last) belongs to the place if that layer has all
    that some other layer has too (T5's relative positions). Where the layer lacks something that
    all others have, it is of another kind (dense before experts), and the tensor its own.
    """
    layers = [tuple(layer) for layer in stack]
    edges: list[tuple[str, ...]] = [(), ()]
    if len(layers) > 1:
        sets = [set(layer) for layer in layers]
        for side, place in enumerate((0, -1)):
            others = sets[1:] if place == 0 else sets[:-1]
            alone = sets[place].difference(*others)
            if alone and any(other <= sets[place] for other in others):
                edges[side] = tuple(suffix for suffix in layers[place] if suffix in alone)
                layers[place] = tuple(suffix for suffix in layers[place] if suffix not in alone)
    return tuple(layers), edges[0], edges[1]


_SAMPLING = re.compile(r"(sub|down|up)_?sampl[^.]*(\.layers?)?\.$")
"""Numbered steps that halve or double a sequence, however many layers the configuration counts."""

_PART = re.compile(r"(conv|merger|proj|adapter|resampler)[^.]*(\.layers?)?\.$")
"""Numbered networks between towers, or in front of one, which are parts of them and no stacks."""


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_DIGITS = 6
"""The most that a layer's number has."""


def _split(name: str) -> LayerName | None:
    """A name at the first of its parts that is a number."""
    found = _NUMBER.search(name)
    if found is None or len(found[0]) > _DIGITS:
        return None
    return LayerName(name[: found.start()], int(found[0]), name[found.end() :])


def _in_stack(parts: LayerName | None, stacks: Mapping[str, Stack]) -> bool:
    return parts is not None and parts.prefix in stacks


Path = tuple[str, ...]


def _territories(
    stacks: Mapping[str, Stack], embedding: str
) -> tuple[dict[Path, str], dict[str, str], str]:
    """Which tower owns what lies under which module, the towers' names, and the main tower.

    Where the paths to the stacks part, each branch is the territory of the stack in it; what lies
    at the fork itself belongs to the main stack beyond it. A tower is called by the branches that
    lead to it, or ``default`` if it is the only one.
    """
    owners: dict[Path, str] = {}
    titles: dict[str, str] = {}
    paths = {prefix: tuple(prefix.rstrip(".").split(".")) for prefix in stacks}

    def rank(prefix: str) -> tuple[int, int, str]:
        size = sum(len(layer) for layer in stacks[prefix])
        return _shared_parts(prefix, embedding), size, prefix

    def divide(prefixes: Sequence[str], depth: int, title: Path) -> None:
        while len({paths[prefix][: depth + 1] for prefix in prefixes}) == 1 and all(
            len(paths[prefix]) > depth + 1 for prefix in prefixes
        ):
            depth += 1
        owners[paths[prefixes[0]][:depth]] = max(prefixes, key=rank)
        branches: dict[Path, list[str]] = defaultdict(list)
        for prefix in prefixes:
            branches[paths[prefix][: depth + 1]].append(prefix)
        for branch, inside in branches.items():
            name = (*title, *branch[depth:])
            if len(inside) > 1:
                divide(inside, depth + 1, name)
            else:
                owners[branch] = inside[0]
                titles[inside[0]] = ".".join(name)

    if len(stacks) > 1:
        divide(list(stacks), 0, ())
    elif stacks:
        titles = dict.fromkeys(stacks, "default")
    return owners, titles, max(stacks, key=rank, default="")


def _shared_parts(prefix: str, name: str) -> int:
    """How many leading parts two dotted names share."""
    pairs = zip(prefix.split("."), name.split("."), strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), 0)


def _owner(name: str, owners: Mapping[Path, str], main: str) -> str:
    """The prefix of the tower that a weight outside all layers belongs to."""
    path = tuple(name.split("."))
    found = (owners[path[:n]] for n in range(len(path), -1, -1) if path[:n] in owners)
    return next(found, main)
