"""Maps the entries of ``modules`` to towers and other parts of a model.

A tower is identified by its name (``language_model``), by the prefix of its layers, or by a common
word (``text_decoder``, ``vision_tower``). A word for a larger part (``vision_model``) means all
towers in it. Weights outside the layers, for example of a projector, belong to their tower unless a
module names them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import suggest
from mergeloom.planners.config.config import MergeDocument, Module
from mergeloom.planners.models.architecture import Architecture, Tower

_MAIN_TOWER_NAMES = {
    "default",
    "text_decoder",
    "text_model",
    "language_model",
    "llm",
    "decoder_model",
}
"""Words for the tower that processes tokens."""

_MODALITIES = (
    re.compile(r"vision|visual|image|vit|pixtral|siglip|clip"),
    re.compile(r"audio|speech|whisper"),
)
_PROJECTOR = re.compile(r"proj(?!_out)|connect|merger|resampler|adapt|align|bridge|abstractor|mlp1")


@dataclass(frozen=True, slots=True)
class TowerModule:
    """A tower and its module, ``None`` if there is none."""

    tower: Tower
    module: Module | None


def assign_modules(document: MergeDocument, architecture: Architecture) -> tuple[TowerModule, ...]:
    """Every tower of ``architecture`` with its module, and parts with separate modules.

    Raises:
        ConfigError: a module matches nothing, or the same as another one.
    """
    modules = {name: module for name, module in document.modules.items() if name is not None}
    chosen: dict[str, str] = {}
    unmatched = []
    for name, module in modules.items():
        tower = next((t for t in architecture.towers if _has_name(t, name)), None)
        if tower is None:
            unmatched.append(name)
        else:
            _claim(chosen, tower, name, module)
    parts = []
    for name in unmatched:
        meant = list(_towers_meant(name, architecture))
        free = [tower for tower in meant if tower.name not in chosen]
        for tower in free or meant:
            if name != "default" or tower.name not in chosen:
                _claim(chosen, tower, name, modules[name])
        if not free:
            parts.append(name)
    for name in parts:
        inside = frozenset(_weights_inside(name, architecture))
        if not inside:
            known = [tower.name for tower in architecture.towers]
            known += projectors(architecture.outside_layers)
            raise modules[name].place.error(f"no module '{name}'", suggest(name, known))
        architecture = architecture.with_tower(name, inside)
        chosen[name] = name
    return tuple(
        TowerModule(tower, modules[chosen[tower.name]] if tower.name in chosen else None)
        for tower in architecture.towers
    )


def projectors(names: Collection[str]) -> list[str]:
    """The paths of modules that connect towers, among the weight ``names``."""
    found: dict[str, None] = {}
    for name in names:
        modules = name.split(".")[:-1]
        depth = next((n for n, part in enumerate(modules) if _PROJECTOR.search(part)), None)
        if depth is not None:
            found[".".join(modules[: depth + 1])] = None
    return list(found)


def modules_around(tower: Tower, names: Sequence[str]) -> list[str]:
    """The modules of weights outside a tower's layers, named from where their paths diverge."""
    stack = tower.prefix.split(".")
    found: dict[str, None] = {}
    for name in names:
        modules = name.split(".")
        while len(modules) > 1 and modules[0] == stack[0]:
            modules, stack = modules[1:], stack[1:]
        stack = tower.prefix.split(".")
        found[".".join(modules[:-1] or modules)] = None
    return list(found)


def _claim(chosen: dict[str, str], tower: Tower, name: str, module: Module) -> None:
    other = chosen.setdefault(tower.name, name)
    if other != name:
        raise module.place.error(
            f"'{name}' and '{other}' mean the same layers, '{tower.prefix}N'", "name them once"
        )


def _has_name(tower: Tower, name: str) -> bool:
    return name in (tower.name, tower.prefix.removesuffix("."))


def _towers_meant(name: str, architecture: Architecture) -> Iterator[Tower]:
    """The towers meant by a word that is not a tower's own name."""
    inside = [tower for tower in architecture.towers if tower.name.startswith(f"{name}.")]
    if inside:
        yield from inside
    elif name in _MAIN_TOWER_NAMES:
        yield architecture.main
    else:
        modalities = [modality for modality in _MODALITIES if modality.search(name)]
        for tower in architecture.towers[1:]:
            if any(modality.search(tower.name) for modality in modalities):
                yield tower


def _weights_inside(name: str, architecture: Architecture) -> Iterator[str]:
    """Weights outside the layers in a module called ``name``.

    ``default`` means all of them, as in mergekit for unknown models.
    """
    around = architecture.outside_layers
    if name == "default":
        yield from around
        return
    found = [weight for weight in around if f".{name}." in f".{weight}"]
    if not found and _PROJECTOR.search(name):
        paths = projectors(around)
        found = [weight for weight in around if any(weight.startswith(f"{p}.") for p in paths)]
    yield from found
