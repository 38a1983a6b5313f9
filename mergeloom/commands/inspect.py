"""``mergeloom inspect``: what a checkpoint holds, from its headers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mergeloom.planners.config.model_reference import parse_reference
from mergeloom.planners.models.architecture import declared_layers
from mergeloom.planners.models.checkpoint import open_checkpoint
from mergeloom.planners.models.model import StoredModel, is_tied
from mergeloom.planners.models.resolve import Resolver
from mergeloom.report.units import count, data


@dataclass(frozen=True)
class Inspected:
    """A checkpoint and what was found in it."""

    model: StoredModel

    @property
    def parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(math.prod(entry.shape) for entry in self.model.checkpoint.tensors.values())

    @property
    def dtypes(self) -> dict[str, int]:
        """Bytes by type."""
        found: Counter[str] = Counter()
        for entry in self.model.checkpoint.tensors.values():
            found[entry.dtype.name] += entry.bytes.nbytes
        return dict(found)


def inspect_model(
    model: str,
    model_dirs: Mapping[str, Path],
    search: Sequence[Path],
    download: Callable[[str], None],
) -> Inspected:
    """Read the headers of a model.

    Raises:
        ConfigError, CheckpointError: it is nowhere, or malformed.
    """
    reference = parse_reference(model) if not Path(model).exists() else None
    if reference is None:
        return Inspected(StoredModel(model, open_checkpoint(Path(model))))
    directory = Resolver(model_dirs, search, None, download).directory(reference.model)
    return Inspected(StoredModel(model, open_checkpoint(directory)))


def document(found: Inspected) -> dict[str, Any]:
    """What ``mergeloom inspect --json`` prints."""
    model = found.model
    return {
        "directory": str(model.checkpoint.directory),
        "architectures": model.config.get("architectures", []),
        "parameters": found.parameters,
        "bytes": model.checkpoint.nbytes,
        "dtypes": found.dtypes,
        "tied": is_tied(model),
        "towers": [
            {"name": tower.name, "prefix": tower.prefix, "layers": tower.layers}
            for tower in model.architecture.towers
        ],
        "shards": [
            {"name": Path(source.path).name, "bytes": source.size}
            for source in model.checkpoint.sources
        ],
        "tensors": {
            name: {"dtype": entry.dtype.name, "shape": list(entry.shape)}
            for name, entry in model.checkpoint.tensors.items()
        },
    }


def render(found: Inspected, all_tensors: bool) -> RenderableType:
    """The checkpoint at a glance, its layers as templates; or every tensor."""
    model = found.model
    entries = model.checkpoint.tensors
    kinds = ", ".join(f"{data(nbytes)} {name}" for name, nbytes in found.dtypes.items())
    shards = len(model.checkpoint.sources)
    head = Text.assemble(
        (f"{count(found.parameters)} parameters", "bold"),
        f" ({found.parameters:,}), {kinds}, {len(entries)} tensors in {shards} "
        f"shard{'s' if shards > 1 else ''}",
    )
    parts: list[RenderableType] = [head]
    names = ", ".join(map(str, model.config.get("architectures") or []))
    declared = ", ".join(f"{'.'.join(path)} {n}" for path, n in declared_layers(model.config))
    tied = ", head tied to the embedding" if is_tied(model) else ""
    parts.append(Text(f"{names or 'no architecture named'}; {declared}{tied}"))
    for tower in model.architecture.towers:
        title = "" if tower.name == "default" else f"{tower.name}: "
        parts += [Text(), Text(f"{title}{tower.layers} layers, '{tower.prefix}N'", style="bold")]
        table = Table(box=None, pad_edge=False, show_header=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        shown = tower.names() if all_tensors else [*tower.before]
        for name in shown:
            table.add_row(name, _shape(entries[name].shape), entries[name].dtype.name)
        if not all_tensors:
            for (suffix, shape, dtype), layers in _templates(found, tower).items():
                every = "" if layers == tower.layers else f"  in {layers} layers"
                table.add_row(f"{tower.prefix}N{suffix}{every}", _shape(shape), dtype)
            for name in tower.after:
                table.add_row(name, _shape(entries[name].shape), entries[name].dtype.name)
        parts.append(table)
    return Group(*parts)


def _templates(found: Inspected, tower: Any) -> Counter[tuple[str, tuple[int, ...], str]]:
    entries = found.model.checkpoint.tensors
    templates: Counter[tuple[str, tuple[int, ...], str]] = Counter()
    for layer, suffixes in enumerate(tower.suffixes):
        for suffix in suffixes:
            entry = entries[tower.layer_name(layer, suffix)]
            templates[suffix, entry.shape, entry.dtype.name] += 1
    return templates


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "0-d"
