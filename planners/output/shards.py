"""Layout of the output: shards, headers and the index, computed before anything is read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import OutputFile, Write
from mergeloom.engine.graph.pieces import Range
from mergeloom.engine.storage.safetensors import build_header
from mergeloom.planners.models.model import OutputTensor
from mergeloom.planners.output.runs import (
    ALIGNMENT,
    MAX_ELEMENT_BYTES,
    Shard,
    shards_of_runs,
    source_range,
)


@dataclass(frozen=True, slots=True)
class Layout:
    """Shards and write slots; ``indices`` are the contents of index files by name, none for one
    shard."""

    files: tuple[OutputFile, ...]
    writes: tuple[Write, ...]
    indices: Mapping[str, bytes]


def lay_out_folders(
    tensors: Sequence[OutputTensor],
    max_shard_bytes: int,
    metadata: Mapping[str, str],
    stem: str,
    stems: Mapping[str, str],
) -> Layout:
    """As `lay_out`, each of the folders of ``stems`` by itself (`Recipe.stems`)."""
    if not stems:
        return lay_out(tensors, max_shard_bytes, metadata, stem)
    parts = [
        lay_out(inside, max_shard_bytes, metadata, stems[folder])
        for folder, inside in tensors_by_folder(tensors, stems).items()
    ]
    return Layout(
        tuple(file for part in parts for file in part.files),
        tuple(write for part in parts for write in part.writes),
        {name: content for part in parts for name, content in part.indices.items()},
    )


def tensors_by_folder(
    tensors: Sequence[OutputTensor], stems: Mapping[str, str]
) -> dict[str, list[OutputTensor]]:
    """Tensors by the folder that their names begin with, called in headers as in that folder."""
    found: dict[str, list[OutputTensor]] = {folder: [] for folder in stems}
    for tensor in tensors:
        folder, _, _ = tensor.name.partition("/")
        header_entries = tuple((entry[0][len(folder) + 1 :], *entry[1:]) for entry in tensor.header)
        place = tensor.name, tensor.merge, tensor.dtype, tensor.part, header_entries
        found[folder].append(OutputTensor(*place))
    return {folder: inside for folder, inside in found.items() if inside}


def lay_out(
    tensors: Sequence[OutputTensor],
    max_shard_bytes: int,
    metadata: Mapping[str, str],
    stem: str = "model",
) -> Layout:
    """Distribute ``tensors`` over shards of at most ``max_shard_bytes`` of data, with file names
    that begin with ``stem``.

    A larger tensor gets a separate shard. If there are several shards, tensors copied from
    contiguous bytes of one file stay together (`mergeloom.planners.output.runs`); the others are
    in the given order. Within a shard, wider dtypes come first, so that every tensor is aligned
    to its element size.
    """
    sizes = _sizes(tensors)
    shards = _shards(tensors, sizes, max_shard_bytes)
    names = _shard_names(stem, len(shards))
    files = []
    writes = []
    weight_map: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        ordered = [tensors[number] for number in shard.numbers]
        headers = [tensor.header for tensor in ordered]
        entries = [entry for own in headers for entry in own]
        header, starts = build_header(entries, metadata, ALIGNMENT, shard.phase)
        begins = {entry[0]: start for entry, start in zip(entries, starts, strict=True)}
        offsets = [begins[own[0][0]] for own in headers]
        size = offsets[-1] + ordered[-1].nbytes if ordered else len(header)
        file = OutputFile(name, header, size)
        files.append(file)
        for tensor, offset in zip(ordered, offsets, strict=True):
            shape = tensor.header_entries[0][2] if len(tensor.header_entries) == 1 else None
            place = tensor.merge, file, offset, tensor.dtype, tensor.name, tensor.part, shape
            writes.append(Write(*place))
        inside = name.rpartition("/")[2]
        weight_map.update((entry[0], inside) for entry in entries)
    indices = {}
    if len(files) > 1:
        total = sum(sizes)
        parameters = sum(math.prod(tensor.merge.shape) for tensor in tensors)
        document: dict[str, dict[str, Any]] = {
            "metadata": {"total_parameters": parameters, "total_size": total},
            "weight_map": dict(sorted(weight_map.items())),
        }
        indices[f"{stem}.safetensors.index.json"] = _indented_json(document).encode()
    return Layout(tuple(files), tuple(writes), indices)


def shard_by_tensor(
    tensors: Sequence[OutputTensor],
    max_shard_bytes: int,
    stem: str = "model",
    stems: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The shard of each of ``tensors`` according to `lay_out_folders`, by name."""
    if stems:
        return {
            name: file
            for folder, inside in tensors_by_folder(tensors, stems).items()
            for name, file in shard_by_tensor(inside, max_shard_bytes, stems[folder]).items()
        }
    shards = _shards(tensors, _sizes(tensors), max_shard_bytes)
    names = _shard_names(stem, len(shards))
    return {
        tensors[number].name: name
        for name, shard in zip(names, shards, strict=True)
        for number in shard.numbers
    }


def _sizes(tensors: Sequence[OutputTensor]) -> list[int]:
    """Bytes of tensors, computed once for equal dtypes and shapes."""
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    found = []
    for tensor in tensors:
        key = id(tensor.dtype), tensor.shape
        nbytes = known.get(key)
        if nbytes is None:
            nbytes = known[key] = tensor.nbytes
        found.append(nbytes)
    return found


def _indented_json(index: Mapping[str, Mapping[str, Any]]) -> str:
    """``json.dumps(index, indent=2)`` with a final newline, ten times as fast."""
    parts = []
    for key, members in index.items():
        inside = json.dumps(members, separators=(",\n    ", ": "))[1:-1]
        parts.append(f"  {json.dumps(key)}: {{\n    {inside}\n  }}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _shards(
    tensors: Sequence[OutputTensor], sizes: Sequence[int], max_shard_bytes: int
) -> list[Shard]:
    """All shards, ordered by their first tensors."""
    origins = list(map(source_range, tensors))
    several = sum(sizes) > max_shard_bytes
    shards = shards_of_runs(tensors, origins, max_shard_bytes) if several else []
    placed = {number for shard in shards for number in shard.numbers}
    filled = max_shard_bytes
    rest: list[list[int]] = []
    for number, nbytes in enumerate(sizes):
        if number in placed:
            continue
        if not rest or filled + nbytes > max_shard_bytes:
            rest.append([])
            filled = 0
        rest[-1].append(number)
        filled += nbytes
    for numbers in rest or ([] if placed else [[]]):
        numbers.sort(key=lambda number: -_first_dtype(tensors[number]).bits)
        shards.append(Shard(_best_phase([(origins[n], sizes[n]) for n in numbers]), numbers))
    return sorted(shards, key=lambda shard: min(shard.numbers, default=0))


def _first_dtype(tensor: OutputTensor) -> DType:
    """The dtype of the first of its entries in the header."""
    return tensor.header_entries[0][1] if tensor.header_entries else tensor.dtype


def _best_phase(tensors: Sequence[tuple[Range | None, int]]) -> int:
    """The best start of a shard's data modulo `ALIGNMENT`, from the `source_range` of its tensors
    and their sizes.

    Whole blocks of a copied tensor can be cloned if it has the same alignment as in its source. So
    the data starts where that is true for most bytes, otherwise at a multiple of `ALIGNMENT`.
    """
    copied: Counter[int] = Counter()
    position = 0
    for origin, nbytes in tensors:
        if origin is not None and nbytes >= 2 * ALIGNMENT:
            copied[(origin.offset - position) % ALIGNMENT] += nbytes
        position += nbytes
    aligned = {place: nbytes for place, nbytes in copied.items() if place % MAX_ELEMENT_BYTES == 0}
    return max(aligned, key=lambda place: aligned[place], default=0)


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
