"""The outline of a checkpoint for reports: its stacks of layers, and the tensors around them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from mergeloom.engine.base.records import dataclass
from mergeloom.planners.models.architecture import Tower, declared_layers
from mergeloom.planners.models.model import Model


@dataclass(frozen=True)
class LayerTensor:
    """A tensor that layers of a stack have in common: shape and dtype are those of all of them.

    ``suffix`` is its name after the layer's number, ``layers`` the number of layers that have it.
    """

    suffix: str
    shape: tuple[int, ...]
    dtype: str
    layers: int


@dataclass(frozen=True)
class StackOutline:
    """A stack of layers: tensors of layer N have names that begin with ``prefix`` and N.

    ``before`` and ``after`` are the names of other tensors that belong to the stack; ``tensors``
    are all names, in order. Without layers, ``prefix`` is empty.
    """

    name: str
    prefix: str
    layers: int
    before: tuple[str, ...]
    layer_tensors: tuple[LayerTensor, ...]
    after: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointOutline:
    """The stacks of a checkpoint, the main one first; ``declared`` has the numbers of layers in
    ``config.json``, by key."""

    stacks: tuple[StackOutline, ...]
    declared: Mapping[str, int]


def checkpoint_outline(model: Model) -> CheckpointOutline:
    """The outline of a model, from its headers."""
    return CheckpointOutline(
        stacks=tuple(_stack(tower, model) for tower in model.architecture.towers),
        declared={".".join(path): number for path, number in declared_layers(model.config)},
    )


def number_of_layers(model: Model) -> int:
    """The number of layers of a model's main stack."""
    return model.architecture.main.layers


def _stack(tower: Tower, model: Model) -> StackOutline:
    found: Counter[tuple[str, tuple[int, ...], str]] = Counter()
    for layer in range(tower.layers + len(tower.beyond)):
        for suffix in tower.layer_suffixes(layer):
            name = tower.layer_name(layer, suffix)
            found[suffix, model.shape(name), model.dtype(name).name] += 1
    return StackOutline(
        name=tower.name,
        prefix=tower.prefix,
        layers=tower.layers,
        before=tower.before,
        layer_tensors=tuple(LayerTensor(*tensor, layers) for tensor, layers in found.items()),
        after=tower.after,
        tensors=tuple(tower.names()),
    )
