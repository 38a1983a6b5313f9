"""Make checkpoints of named shapes that transformers loads, for tests, the demo and benchmarks.

    scripts/make_checkpoint tiny some/directory
    scripts/make_checkpoint 1b some/base
    scripts/make_checkpoint 1b some/tune --finetune-of 0 --seed 1

Values are normal, with a standard deviation that suits each matrix's width; norms are near 1.
They follow from shape, seed and dtype alone, however the files are cut.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from scripts.shapes import SHAPES, Shape, Tensor, config, tensors
from scripts.tokenizer_files import tokenizer_files


class DType(NamedTuple):
    """A storage type: its code in safetensors headers, torch's name, bytes of an element."""

    code: str
    name: str
    size: int


DTYPES = {
    "bf16": DType("BF16", "bfloat16", 2),
    "f16": DType("F16", "float16", 2),
    "f32": DType("F32", "float32", 4),
}
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


def make(
    directory: str | Path,
    shape_name_or_shape: str | Shape,
    *,
    dtype: str = "bf16",
    seed: int = 0,
    finetune_of: int | None = None,
    tied: bool | None = None,
    max_shard_bytes: int | None = None,
    sparse: bool = False,
    compressible: bool = False,
    layers: int | None = None,
    force: bool = False,
) -> Path:
    """Write a checkpoint and return its directory.

    Args:
        shape_name_or_shape: a name in ``SHAPES``, or a shape.
        dtype: ``bf16``, ``f16`` or ``f32``.
        seed: of the values; with ``finetune_of`` only of the small deltas to them.
        finetune_of: seed of the checkpoint to fine-tune; nine elements in ten get a delta.
        tied: whether the head is the embedding; by default as the shape says.
        max_shard_bytes: largest size of a file's data, unless one tensor is larger.
        sparse: right headers and file lengths, but holes instead of data.
        compressible: values repeat, so that a compressing file system shrinks them.
        layers: number of layers, by default the shape's.
        force: replace the checkpoint in a directory that is not empty.

    Raises:
        ValueError: no such shape or dtype, or sizes that make no sense.
        FileExistsError: the directory is not empty.
    """
    shape = _shape(shape_name_or_shape, tied, layers)
    if dtype not in DTYPES:
        raise ValueError(f"no dtype '{dtype}': choose from {', '.join(DTYPES)}")
    limit = shape.shard_bytes if max_shard_bytes is None else max_shard_bytes
    if limit < 1:
        raise ValueError("shards need at least one byte")
    path = Path(directory)
    _prepare(path, force)
    everything = tensors(shape)
    values = None
    if not sparse:
        from scripts.contents import Contents  # the only part that needs numpy

        largest = max(math.prod(tensor.shape) for tensor in everything)
        values = Contents(seed, finetune_of, dtype, largest, compressible)
    weight_map: dict[str, str] = {}
    shards = _shards(everything, DTYPES[dtype].size, limit)
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        if len(shards) == 1:
            name = "model.safetensors"
        header, size = _header(shard, DTYPES[dtype])
        with open(path / name, "wb") as file:
            file.write(header)
            if values is None:
                file.truncate(len(header) + size)
            else:
                for tensor in shard:
                    file.writelines(block.data for block in values.blocks(tensor))
        weight_map |= dict.fromkeys((tensor.name for tensor in shard), name)
    if len(shards) > 1:
        total = DTYPES[dtype].size * sum(math.prod(tensor.shape) for tensor in everything)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(path / "model.safetensors.index.json", index)
    for name, document in _side_files(shape, DTYPES[dtype]).items():
        _write_json(path / name, document)
    return path


def parameters(shape_name_or_shape: str | Shape, layers: int | None = None) -> int:
    """Number of elements in all tensors of a model."""
    return sum(
        math.prod(tensor.shape) for tensor in tensors(_shape(shape_name_or_shape, None, layers))
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    from engine.errors import LoomError
    from mergeloom.sizes import parse_size

    parser = argparse.ArgumentParser(prog="make_checkpoint", description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=list(SHAPES), help="what to make")
    parser.add_argument("directory", type=Path, help="where to write it")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, help="head = embedding")
    parser.add_argument("--untied", dest="tied", action="store_false", help="a head of its own")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="such as 200MB or 1GiB")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finetune-of", type=int, metavar="SEED", help="small deltas to that one")
    parser.add_argument("--layers", type=int, metavar="N", help="instead of the shape's number")
    parser.add_argument("--sparse", action="store_true", help="headers and holes, no data")
    parser.add_argument("--compressible", action="store_true", help="values repeat")
    parser.add_argument("--force", action="store_true", help="replace what is there")
    options = parser.parse_args(arguments)
    limit = options.max_shard_size
    try:
        make(
            options.directory,
            options.shape,
            dtype=options.dtype,
            seed=options.seed,
            finetune_of=options.finetune_of,
            tied=options.tied,
            max_shard_bytes=None if limit is None else parse_size(limit),
            sparse=options.sparse,
            compressible=options.compressible,
            layers=options.layers,
            force=options.force,
        )
    except (OSError, ValueError, LoomError) as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 1
    return 0


def _shape(name_or_shape: str | Shape, tied: bool | None, layers: int | None) -> Shape:
    shape = SHAPES.get(name_or_shape) if isinstance(name_or_shape, str) else name_or_shape
    if shape is None:
        raise ValueError(f"no shape '{name_or_shape}': choose from {', '.join(SHAPES)}")
    if layers is not None and layers < 1:
        raise ValueError("a model needs at least one layer")
    if shape.family == "bert" and tied is False:
        raise ValueError("an encoder has no head to untie")
    return replace(
        shape,
        tied=shape.tied if tied is None else tied,
        layers=shape.layers if layers is None else layers,
    )


def _prepare(path: Path, force: bool) -> None:
    """Make an empty directory; with ``force`` remove the checkpoint in it, and nothing else."""
    path.mkdir(parents=True, exist_ok=True)
    if not any(path.iterdir()):
        return
    if not force:
        raise FileExistsError(f"'{path}' is not empty: name another directory, or use --force")
    for pattern in (*_WEIGHTS, "config.json", "generation_config.json", *tokenizer_files()):
        for old in path.glob(pattern):
            old.unlink(missing_ok=True)


def _side_files(shape: Shape, dtype: DType) -> dict[str, dict[str, Any]]:
    """Contents of the files beside the weights, by file name."""
    files = {"config.json": config(shape, dtype.name)} | tokenizer_files()
    if shape.family != "bert":
        ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        files["generation_config.json"] = ids | {"do_sample": False}
    return files


def _header(shard: list[Tensor], dtype: DType) -> tuple[bytes, int]:
    """What stands before the data of a safetensors file, and the data's length in bytes.

    Written here and not by the engine, so that the tests' data do not depend on what is tested.
    """
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for tensor in shard:
        start, stop = stop, stop + dtype.size * math.prod(tensor.shape)
        entry = {"dtype": dtype.code, "shape": tensor.shape, "data_offsets": (start, stop)}
        document[tensor.name] = entry
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, stop


def _shards(everything: list[Tensor], itemsize: int, limit: int) -> list[list[Tensor]]:
    """Tensors of each file: as many in order as fit ``limit`` bytes, at least one."""
    shards: list[list[Tensor]] = []
    room = -1
    for tensor in everything:
        size = math.prod(tensor.shape) * itemsize
        if size > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= size
    return shards


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
