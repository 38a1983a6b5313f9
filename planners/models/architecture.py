"""The architecture of a checkpoint, inferred from the names of its tensors.

There is no list of known models. A *tower* is a stack of numbered layers, whose tensor names differ
in one number (``model.layers.17.mlp.up_proj.weight``). The first number of a name in such a stack
is the layer; later numbers (experts, sub-blocks) are part of the name within the layer. Weights
outside the layers belong to the tower with the same root, and act before or after its layers.

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
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.models.roles import (
    Shape,
    acts_after,
    output_head,
    projected_sense,
    token_embedding,
)

LAYER_COUNT_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "num_layers_per_stack",
    "num_decoder_layers",
    "num_encoder_layers",
    "encoder_layers",
    "decoder_layers",
    "depth",
)
"""Keys for the number of layers in configurations of published models."""

_FURTHER_LAYER_KEYS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers")
"""Keys that count further layers, which have numbers after the last and predict later tokens."""

_FURTHER_SUFFIX = re.compile(r"^\.(eh_proj|enorm|hnorm|shared_head)\.")
"""Tensors of such layers and no others (DeepSeek-V3, GLM-4.5), by which they are found if no key
counts them."""


class LayerName(NamedTuple):
    """A tensor of a layer: ``prefix + str(layer) + suffix``."""

    prefix: str
    layer: int
    suffix: str


@dataclass(frozen=True, slots=True)
class Tower:
    """One stack of layers and the weights around it.

    ``name`` is its name under ``modules`` in a configuration. ``prefix`` is the part of tensor
    names before the layer number, empty for a tower without layers. ``suffixes`` has, for each
    layer, the parts after it; ``before`` and ``after`` are the names of the other weights.

    ``first`` and ``last`` are suffixes that belong to the position, not to the layer: the first
    (or last) layer has them in addition to those of another layer. ``beyond`` has the suffixes of
    layers numbered after the last, which belong to no stack.
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
        """The name of one tensor of a layer."""
        return f"{self.prefix}{layer}{suffix}"

    def names(self) -> Iterator[str]:
        """Names of all tensors: before the layers, layer by layer, after them."""
        yield from self.before
        for layer in range(self.layers + len(self.beyond)):
            for suffix in self.layer_suffixes(layer):
                yield self.layer_name(layer, suffix)
        yield from self.after

    def layer_suffixes(self, layer: int) -> Iterator[str]:
        """The suffixes of all tensors stored under a layer's number; none if there is no such
        layer."""
        if layer >= self.layers:
            yield from next(iter(self.beyond[layer - self.layers :]), ())
            return
        if layer == 0:
            yield from self.first
        yield from self.suffixes[layer]
        if layer == self.layers - 1:
            yield from self.last


@dataclass(frozen=True)
class Architecture:
    """The towers of a checkpoint, the main one first; each tensor belongs to exactly one tower.

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
        """The tower that processes tokens, or else the one with most tensors; it has all tensors
        that belong to no other tower."""
        return self.towers[0]

    @cached_property
    def outside_layers(self) -> frozenset[str]:
        """Names of all weights outside the layers."""
        return frozenset(name for t in self.towers for name in (*t.before, *t.after))

    def with_tower(self, name: str, inside: Collection[str]) -> Architecture:
        """A copy in which the weights ``inside``, which are outside the layers, are a tower of
        their own, called ``name``."""
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


class ArchitectureCache:
    """Infers architectures, once for all checkpoints with equal tensor names, shapes and relevant
    values of the configuration, such as fine-tunes of one model."""

    def __init__(self) -> None:
        self._inferred: list[tuple[Mapping[str, Shape], Hashable, Architecture]] = []

    def __call__(self, shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> Architecture:
        """As `infer_architecture`."""
        relevant = _relevant_values(config)
        for known, known_values, found in self._inferred:
            if known_values == relevant and (known is shapes or _are_equal(known, shapes)):
                return found
        found = infer_architecture(shapes, config)
        self._inferred.append((shapes, relevant, found))
        return found


def _are_equal(one: Mapping[str, Shape], other: Mapping[str, Shape]) -> bool:
    """Whether names and shapes are equal, in the same order."""
    return one == other and list(one) == list(other)


def _relevant_values(config: Mapping[str, Any]) -> Hashable:
    """The values of a configuration that `infer_architecture` may use: its integers and booleans,
    also nested ones."""
    return tuple(
        (key, _relevant_values(value) if isinstance(value, Mapping) else (type(value), value))
        for key, value in config.items()
        if isinstance(value, Mapping | int)
    )


def infer_architecture(shapes: Mapping[str, Shape], config: Mapping[str, Any]) -> Architecture:
    """Infer the architecture of a checkpoint from tensor ``shapes`` and ``config``."""
    numbered = _numbered_names(shapes)
    stacks = _stacks(numbered, config)
    inside = {name for prefix in stacks for name in numbered[prefix].names}
    outside = {name: shapes[name] for name in shapes if name not in inside}
    embedding = token_embedding(outside, config)
    owners, titles, main = _owners_of_paths(stacks, embedding or "")
    outside_layers: dict[str, list[str]] = defaultdict(list)
    for name in outside:
        outside_layers[_owner(name, owners, main, shapes)].append(name)
    towers = []
    for prefix in [main, *sorted(prefix for prefix in stacks if prefix != main)]:
        own = outside_layers.get(prefix, [])
        after = {name for name in own if acts_after(name, prefix, shapes, config)}
        stack = stacks.get(prefix, [])
        count = len(stack) - _number_beyond(stack, config)
        layers, first, last = _by_position(stack[:count])
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
    """Layer counts in a configuration, also nested, with their key paths."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            for path, count in declared_layers(value):
                yield (key, *path), count
        elif key in LAYER_COUNT_KEYS and isinstance(value, int) and not isinstance(value, bool):
            yield (key,), value


def beside_layers(tower: Tower) -> Iterator[str]:
    """Prefixes of numbered weights that belong to a tower's layers.

    They are in the same module and of the same number (CLVP's ``group_norms``, one after each of
    the ``mel_attn_blocks``) or one fewer, between the layers (Informer's ``conv_layers``), or lists
    of weights, one for each layer or each but the first, in a module beside the layers (Inkling 2's
    ``attn_res``).
    """
    module = tower.prefix.rstrip(".").rpartition(".")[0]
    found: dict[str, set[int]] = defaultdict(set)
    bare: set[str] = set()
    for name in (*tower.before, *tower.after):
        parts = _split_name(name)
        if parts is None or not parts.prefix.startswith(f"{module}." if module else ""):
            continue
        if _NO_STACK.search(parts.prefix) is not None:
            continue
        inside = parts.prefix.rstrip(".").rpartition(".")[0]
        if not parts.suffix:
            bare.add(parts.prefix)
        if inside == module or not parts.suffix:
            found[parts.prefix].add(parts.layer)
    for prefix, numbers in found.items():
        between = prefix in bare or _BETWEEN.search(prefix) is not None
        fewer = {tower.layers, tower.layers - 1} if between else {tower.layers}
        if tower.layers > 1 and len(numbers) in fewer and numbers == set(range(len(numbers))):
            yield prefix


_BETWEEN = re.compile(r"(conv_layers|layer_convs)\.$")
"""Lists with one module between each layer and the next (Informer's convolutions)."""

Stack = list[list[str]]
"""The suffixes of the tensors of each layer."""


class _Numbered:
    """The tensors whose names have one prefix before their first number: their ``names``, and the
    rest of these by number, in ``layers``."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.layers: dict[int, list[str]] = {}
        self.by_text: dict[str, list[str]] = {}
        """The layers by number as written."""


def _numbered_names(names: Iterable[str]) -> dict[str, _Numbered]:
    """The names that have a number, by prefix."""
    found: dict[str, _Numbered] = {}
    prefix, run = "", _Numbered()
    for name in names:
        if name.startswith(prefix):  # as for most, which are quickly split
            number, dot, rest = name[len(prefix) :].partition(".")
            suffixes = run.by_text.get(number)
            if suffixes is not None:
                suffixes.append(dot + rest)
                run.names.append(name)
                continue
        parts = _split_name(name)
        if parts is not None:
            prefix = parts.prefix
            run = found.setdefault(prefix, _Numbered())
            number = name[len(prefix) : len(name) - len(parts.suffix)]
            suffixes = run.by_text[number] = run.layers.setdefault(parts.layer, [])
            suffixes.append(parts.suffix)
            run.names.append(name)
    return found


def _stacks(numbered: Mapping[str, _Numbered], config: Mapping[str, Any]) -> dict[str, Stack]:
    """Stacks of layers by prefix.

    Numbers also occur in small networks (``projector.0.weight``). A stack of layers is numbered
    from 0 without gaps, and either the configuration declares that many layers, or each layer has
    several tensors and is not part of a convolution or projector.
    """
    declared = {count for _, count in declared_layers(config)}
    stacks = {}
    for prefix, run in numbered.items():
        layers = run.layers
        if set(layers) != set(range(len(layers))) or all(
            layer == [""] for layer in layers.values()
        ):
            continue  # a list of weights is no stack of layers
        rich = len(layers) > 1 and min(len(layer) for layer in layers.values()) > 2
        rich = rich and _INNER_NETWORK.search(prefix) is None
        counted = len(layers) in declared and _NO_STACK.search(prefix) is None
        if (counted or rich) and not any(p.search(prefix) for p in (_RESAMPLING, _FURTHER_STACK)):
            stacks[prefix] = [layers[number] for number in range(len(layers))]
    return stacks


def _number_beyond(stack: Stack, config: Mapping[str, Any]) -> int:
    """Number of layers at the end of a stack that the configuration counts separately, or that it
    does not count and whose tensors are those of a layer that predicts further tokens."""
    for place in (config, *(part for part in config.values() if isinstance(part, Mapping))):
        for extra in (place.get(key) for key in _FURTHER_LAYER_KEYS):
            counts = [place.get(key) for key in LAYER_COUNT_KEYS]
            if type(extra) is int and extra > 0 and len(stack) - extra in counts:
                return extra
    last = len(stack)
    while last and any(map(_FURTHER_SUFFIX.search, stack[last - 1])):
        last -= 1
    return len(stack) - last if last in {count for _, count in declared_layers(config)} else 0


def _by_position(
    stack: Stack,
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...], tuple[str, ...]]:
    """The layers' own suffixes, and those that belong to the first and last position.

    A tensor that only the first (or last) layer has belongs to the position if that layer also has
    all tensors of some other layer (T5's relative positions). If the layer lacks a tensor that all
    others have, it is of another kind (dense before experts), and the tensor belongs to the layer.
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


_RESAMPLING = re.compile(r"(sub|down|up)_?sampl[^.]*(\.layers?)?\.$")
"""Numbered steps that halve or double a sequence; never stacks of layers."""

_INNER_NETWORK = re.compile(
    r"((conv|merger|proj|adapter|resampler)[^.]*(\.layers?)?|[._]heads?)\.$"
)
"""Numbered networks that are parts of towers, such as projectors, and not stacks of layers."""


_NO_STACK = re.compile(
    r"(^|\.)(merger[^.]*|\w*_heads|lm_head|(?!class_)\w*embed(ding|_token)?s?|\w*projectors)\.$"
)
"""Numbered parts that are not stacks, even if a tower happens to have as many layers."""

_FURTHER_STACK = re.compile(r"(^|\.)mtp(_\w+)?(\.\w+)?\.$")
"""Layers in a module of their own that predict further tokens: no part of any stack."""


_NUMBER = re.compile(r"\.(\d+)(?![^.])")
_MAX_DIGITS = 6
"""Maximum number of digits of a layer number."""


def _split_name(name: str) -> LayerName | None:
    """Split a name at its first numeric part."""
    found = _NUMBER.search(f".{name}")  # a search for one character first is fast
    if found is None or len(found[1]) > _MAX_DIGITS:
        return None
    start, stop = found.span()
    return LayerName(name[:start], int(found[1]), name[stop - 1 :])


Path = tuple[str, ...]


_OTHER_SENSES = re.compile(r"vision|visual|image|video|audio|speech|codec|depth_decoder")
"""Parts of prefixes of towers that process no tokens."""


def _owners_of_paths(
    stacks: Mapping[str, Stack], embedding: str
) -> tuple[dict[Path, str], dict[str, str], str]:
    """The tower that owns each module path, the names of towers, and the main tower; towers are
    given by prefix.

    Where the paths to stacks diverge, each branch belongs to its stack; weights at the fork itself
    belong to the main stack below it. A tower is named by the branches that lead to it, or
    ``default`` if it is the only one.
    """
    owners: dict[Path, str] = {}
    titles: dict[str, str] = {}
    paths = {prefix: tuple(prefix.rstrip(".").split(".")) for prefix in stacks}

    def rank(prefix: str) -> tuple[int, bool, int, str]:
        size = sum(len(layer) for layer in stacks[prefix])
        words = not embedding or _OTHER_SENSES.search(prefix) is None
        return _shared_parts(prefix, embedding), words, size, prefix

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
    """Number of leading parts shared by two dotted names."""
    pairs = zip(prefix.split("."), name.split("."), strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), 0)


def _owner(
    name: str,
    owners: Mapping[Path, str],
    main: str,
    shapes: Mapping[str, Shape],
) -> str:
    """The prefix of the tower to which a weight outside all layers belongs.

    A weight at a fork belongs to the main tower below it, but what acts after the layers of another
    to that one: the projection of CLIP's images, and the output head of an encoder and a decoder.
    """
    path = tuple(name.split("."))
    found = (path[:n] for n in range(len(path), -1, -1) if path[:n] in owners)
    fork = next(found, ())
    owner = owners.get(fork, main)
    below = [prefix for path, prefix in owners.items() if path[: len(fork)] == fork]
    if len(below) > 1 and (sense := projected_sense(name, shapes)) is not None:
        return next((prefix for prefix in below if sense.search(prefix)), owner)
    head = _LOGITS.fullmatch(path[len(fork)])
    if head is not None and "encoder" in owner and "decoder" not in owner:
        return next((prefix for prefix in below if "decoder" in prefix), owner)
    return owner


_LOGITS = re.compile(r"(\w*_)?lm_heads?|logits_\w+|final_logits_bias|proj_out|output_projection")
"""Modules that turn what a decoder computes into scores of tokens."""
