"""Models of one architecture whose tensor names have other prefixes, renamed as in the first model.

    GPT-2         h.0.mlp.c_fc.weight           transformer.h.0.mlp.c_fc.weight
    a language    model.layers.0.mlp.up.weight  model.language_model.layers.0.mlp.up.weight
    model in a    model.embed_tokens.weight     model.language_model.embed_tokens.weight
    larger one    lm_head.weight                lm_head.weight

Two towers correspond if most suffixes of their layers are the same. Names are translated between
their roots, which are their prefixes without the common end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.planners.models.architecture import Architecture, Tower, infer_architecture
from mergeloom.planners.models.model import Model, Shape, TensorLocation
from mergeloom.planners.models.token_weights import TokenWeights

MIN_COMMON_SHARE = 0.5
"""Minimum share of common suffixes among all suffixes of two towers' layers."""


@dataclass(frozen=True)
class RenamedModel:
    """A model whose tensors have the names that another model uses.

    ``names`` maps new to stored names, ``prefixes`` stored to new prefixes of layers.
    """

    model: Model
    names: Mapping[str, str]
    prefixes: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def config(self) -> Mapping[str, Any]:
        return self.model.config

    @cached_property
    def architecture(self) -> Architecture:
        return infer_architecture({name: self.shape(name) for name in self.names}, self.config)

    @cached_property
    def tokens(self) -> TokenWeights:
        return self.model.tokens.renamed({old: new for new, old in self.names.items()})

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def stored(self, tensor: str) -> TensorLocation | None:
        return self.model.stored(self.names[tensor])

    def shape(self, tensor: str) -> Shape:
        return self.model.shape(self.names[tensor])

    def dtype(self, tensor: str) -> DType:
        return self.model.dtype(self.names[tensor])

    def node(
        self, builder: GraphBuilder, tensor: str, rows: Sequence[int] | None = None
    ) -> Load | Merge:
        return self.model.node(builder, self.names[tensor], rows)


def with_names_of(model: Model, first: Model) -> Model:
    """``model`` with the names of ``first``; unchanged if its layers have the same names, or names
    with nothing in common."""
    own, theirs = model.architecture, first.architecture
    known = {tower.prefix for tower in theirs.towers}
    if all(tower.prefix in known for tower in own.towers):
        return model
    pairs = dict(_corresponding_towers(own, theirs))
    if not pairs:
        return model
    names: dict[str, str] = {}
    for tower in own.towers:
        translate = _translation(tower, pairs.get(tower.prefix), own, theirs)
        for name in tower.names():
            names[translate(name)] = name
    return RenamedModel(model, names, {own: other.prefix for own, other in pairs.items()})


def _translation(
    tower: Tower, other: Tower | None, own: Architecture, theirs: Architecture
) -> Callable[[str], str]:
    """A translation of the names of ``tower`` and the weights around it to the other model's."""
    root, new_root = _roots(tower.prefix, other.prefix) if other is not None else ("", "")
    roles = {own.embedding: theirs.embedding, own.head: theirs.head}

    def translate(name: str) -> str:
        role = roles.get(name)
        if role is not None:
            return role
        if other is not None and name.startswith(tower.prefix):
            return other.prefix + name.removeprefix(tower.prefix)
        moved = new_root + name.removeprefix(root) if name.startswith(root) else name
        if moved in theirs.outside_layers or name in theirs.outside_layers:
            return moved if moved in theirs.outside_layers else name
        ends = [
            n for n in theirs.outside_layers if n.endswith(f".{name}") or name.endswith(f".{n}")
        ]
        if len(ends) == 1:
            return ends[0]
        return name if name == own.head and "." not in tower.prefix.rstrip(".") else moved

    return translate


def _corresponding_towers(own: Architecture, theirs: Architecture) -> Iterator[tuple[str, Tower]]:
    """Corresponding towers: the prefix here, and the tower in the other model."""
    free = {tower.prefix: tower for tower in theirs.towers if tower.layers}
    for tower in own.towers:
        if tower.layers and free:
            found = max(free.values(), key=lambda other: _similarity(tower, other))
            if _similarity(tower, found)[0] >= MIN_COMMON_SHARE:
                del free[found.prefix]
                yield tower.prefix, found


def _similarity(one: Tower, other: Tower) -> tuple[float, int]:
    """Share of common suffixes of two towers, and length of the common end of their prefixes."""
    mine, theirs = (
        {suffix for layer in tower.suffixes for suffix in layer} for tower in (one, other)
    )
    share = len(mine & theirs) / len(mine | theirs)
    same = one.prefix == other.prefix
    root, _ = _roots(one.prefix, other.prefix)
    return 1.0 if same else share, one.prefix.count(".") - root.count(".")


def _roots(one: str, other: str) -> tuple[str, str]:
    """Two prefixes without their common trailing modules."""
    first, second = one.split("."), other.split(".")
    while first and second and first[-1] == second[-1]:
        first.pop()
        second.pop()
    return "".join(f"{part}." for part in first), "".join(f"{part}." for part in second)
