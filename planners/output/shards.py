"""Where each output tensor goes: shards, headers and the index, known before anything is read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergeloom.engine.graph.graph import Load, Merge, OutputFile, Write, copied_dtype
from mergeloom.engine.graph.pieces import Range
from mergeloom.engine.storage.safetensors import build_header
from mergeloom.planners.models.model import OutputTensor

ALIGNMENT = 4096
"""Data starts at a multiple of this many bytes, so that most of it can be written directly."""

_WIDEST = 8
"""Bytes of the widest element: tensors start at multiples of their elements."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Shards and slots; ``index`` is the index file's content, or ``None`` for a single shard."""

    files: tuple[OutputFile, ...]
    writes: tuple[Write, ...]
    index: bytes | None


def lay_out(
    tensors: Sequence[OutputTensor],
    max_shard_bytes: int,
    metadata: Mapping[str, str],
    stem: str = "model",
) -> Layout:
    """Distribute ``tensors``, in order, over shards of at most ``max_shard_bytes`` of data, whose
    names begin with ``stem``.

    A tensor larger than that gets a shard of its own. Within a shard wider types come first, so
    that every tensor is aligned to its elements.
    """
    sizes = [tensor.nbytes for tensor in tensors]
    shards = _shards(tensors, sizes, max_shard_bytes)
    names = _shard_names(stem, len(shards))
    files = []
    writes = []
    weight_map = {}
    for name, shard in zip(names, shards, strict=True):
        ordered = sorted(shard, key=lambda tensor: -tensor.dtype.bits)
        entries = [(tensor.name, tensor.dtype, tensor.merge.shape) for tensor in ordered]
        header, offsets = build_header(entries, metadata, ALIGNMENT, _remainder(ordered))
        size = offsets[-1] + ordered[-1].nbytes if ordered else len(header)
        file = OutputFile(name, header, size)
        files.append(file)
        for tensor, offset in zip(ordered, offsets, strict=True):
            writes.append(Write(tensor.merge, file, offset, tensor.dtype, tensor.name))
            weight_map[tensor.name] = name
    index = None
    if len(files) > 1:
        total = sum(sizes)
        parameters = sum(math.prod(tensor.merge.shape) for tensor in tensors)
        document: dict[str, dict[str, Any]] = {
            "metadata": {"total_parameters": parameters, "total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        index = _indented(document).encode()
    return Layout(tuple(files), tuple(writes), index)


def _indented(index: Mapping[str, Mapping[str, Any]]) -> str:
    """What ``json.dumps(index, indent=2)`` gives, and a line's end, in a tenth of the time."""
    parts = []
    for key, members in index.items():
        inside = json.dumps(members, separators=(",\n    ", ": "))[1:-1]
        parts.append(f"  {json.dumps(key)}: {{\n    {inside}\n  }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _remainder(tensors: Sequence[OutputTensor]) -> int:
    """Where the data of a shard is best to start, modulo `ALIGNMENT`.

    Whole blocks of a copied tensor can be clones if it lies there as it does in its source. So
    the data starts where this holds for the most bytes; otherwise at a multiple.
    """
    copied: Counter[int] = Counter()
    position = 0
    for tensor in tensors:
        nbytes = tensor.nbytes
        if copied_dtype(tensor.merge) == tensor.dtype:
            origin = _origin(tensor.merge)
            if isinstance(origin.bytes, Range) and nbytes >= 2 * ALIGNMENT:
                copied[(origin.bytes.offset - position) % ALIGNMENT] += nbytes
        position += nbytes
    aligned = {place: nbytes for place, nbytes in copied.items() if place % _WIDEST == 0}
    return max(aligned, key=lambda place: aligned[place], default=0)


def _origin(merge: Merge) -> Load:
    """The load that a copy, or a copy of copies, begins with."""
    node = merge.gather.inputs[0]
    return node if isinstance(node, Load) else _origin(node)


def _shards(
    tensors: Sequence[OutputTensor], sizes: Sequence[int], max_shard_bytes: int
) -> list[list[OutputTensor]]:
    shards: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor, nbytes in zip(tensors, sizes, strict=True):
        if shards[-1] and filled + nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += nbytes
    return shards


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
