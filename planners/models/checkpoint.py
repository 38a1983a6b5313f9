"""Checkpoints on disk: their tensors from headers, their configuration, their other files."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mergeloom.engine.base import bounded_json
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.files import FileSource
from mergeloom.engine.storage.safetensors import MAX_NAME, Header, read_header
from mergeloom.engine.storage.torch_zip import TorchFile, read_torch
from mergeloom.planners.models.quantised import quantised_by_config, quantised_by_tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt"})
"""How names of files end that `torch.save` writes."""
NO_WEIGHTS = frozenset(
    {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth"}
)
"""Files that training programs put beside the weights."""
MAX_JSON_BYTES = 64 << 20
MAX_TENSORS = 2_000_000

_NUMBERED = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})\.\w+")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in ``directory``; ``tensors`` stand in the order of shards and their data.

    ``passed_over`` are files of weights there that are not read.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    sources: tuple[FileSource, ...]
    passed_over: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(source.size for source in self.sources)

    @property
    def identity(self) -> str:
        """Digest of what is known of the contents without reading weights."""
        digest = hashlib.blake2b(digest_size=12)
        for source in self.sources:
            digest.update(f"{source.identity}\n".encode())
        return digest.hexdigest()


def open_checkpoint(directory: Path) -> Checkpoint:
    """Read the headers and the configuration of the checkpoint in ``directory``.

    Raises:
        CheckpointError: it is missing, malformed, incomplete, quantised, or in another format.
    """
    if not directory.is_dir():
        raise CheckpointError(f"'{directory}' is not a directory")
    config = read_config(directory)
    _refuse_quantised(directory, quantised_by_config(config))
    checkpoint = open_shards(directory, config, _shards(directory))
    kinds = {name: (entry.dtype, entry.shape) for name, entry in checkpoint.tensors.items()}
    _refuse_quantised(directory, quantised_by_tensor(kinds))
    return checkpoint


def open_shards(
    directory: Path, config: Mapping[str, Any], shards: Mapping[str, set[str]]
) -> Checkpoint:
    """Read the headers of files of ``directory``; ``shards`` are their names, each with the
    tensors that it is said to hold.

    Raises:
        CheckpointError: a file is missing or malformed, lacks what it is said to hold, or holds
            what another holds too.
    """
    for name in shards:
        check_inside(directory, name)
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda name: read_tensors(directory / name), shards))
    tensors: dict[str, StoredTensor] = {}
    for (name, expected), (_, inside) in zip(shards.items(), files, strict=True):
        missing = expected - inside.keys()
        if missing:
            raise CheckpointError(
                f"'{directory / name}' lacks {_some(missing)}, which the index promises: "
                "copy or download the checkpoint again"
            )
        for tensor, stored in inside.items():
            if tensor in tensors:
                other = next(n for n, (_, f) in zip(shards, files, strict=True) if tensor in f)
                raise CheckpointError(f"'{directory}': '{tensor}' is in '{other}' and in '{name}'")
            tensors[tensor] = stored
        if len(tensors) > MAX_TENSORS:
            raise CheckpointError(f"'{directory}' has more than {MAX_TENSORS} tensors")
    if not tensors:
        raise CheckpointError(f"'{directory}' has no tensors")
    sources = tuple(source for source, _ in files)
    return Checkpoint(directory, config, tensors, sources, _passed_over(directory, shards))


def read_tensors(path: Path) -> tuple[FileSource, dict[str, StoredTensor]]:
    """The tensors of one file, from its header: of safetensors, or as `torch.save` writes them.

    Raises:
        CheckpointError: it cannot be read, is malformed, or of another format.
    """
    if path.suffix in PICKLED:
        found = read_torch(path)
        source = _source(path, found)
        return source, {
            name: StoredTensor.strided(
                source, entry.offset, entry.dtype, entry.shape, entry.strides
            )
            for name, entry in found.entries.items()
        }
    header = read_header(path)
    source = _source(path, header)
    return source, {
        name: StoredTensor.at(source, entry.start, entry.dtype, entry.shape)
        for name, entry in header.entries.items()
    }


def is_complete(directory: Path) -> bool:
    """Whether ``directory`` has a configuration and every shard; contents are not looked at."""
    if not (directory / "config.json").is_file():
        return False
    try:
        return bool(_shards(directory))
    except CheckpointError:
        return False


def read_config(directory: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        CheckpointError: it is missing or no JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise _no_config(directory)
    check_inside(directory, path.name)
    return read_json(path)


def _no_config(directory: Path) -> CheckpointError:
    """The error for a directory that holds no model, but maybe something else."""
    adapter = directory / "adapter_config.json"
    if adapter.is_file():
        base = read_json(adapter).get("base_model_name_or_path")
        named = isinstance(base, str) and base.isprintable() and 0 < len(base) < MAX_NAME
        return CheckpointError(
            f"'{directory}' is an adapter (adapter_config.json), not a model",
            remedy=f"name the model that it belongs to, '{base}'" if named else "name its model",
            code="adapter",
        )
    if (directory / "model_index.json").is_file():
        return CheckpointError(
            f"'{directory}' is a pipeline of several models (model_index.json)",
            remedy="give the directory of one of them",
        )
    try:
        near = next((path.parent for path in sorted(directory.glob("*/config.json"))), None)
    except OSError:
        near = None
    return CheckpointError(
        f"'{directory}' has no config.json",
        remedy=f"did you mean '{near}'?" if near is not None else "is it a model's directory?",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object from a file that nobody vouches for.

    Raises:
        CheckpointError: it cannot be read, is too large, or is something else.
    """
    document = _read_json(path)
    if not isinstance(document, dict):
        raise CheckpointError(f"'{path}' is not a JSON object")
    return document


def read_json_list(path: Path) -> list[Any]:
    """A small JSON list from a file that nobody vouches for.

    Raises:
        CheckpointError: it cannot be read, is too large, or is something else.
    """
    document = _read_json(path)
    if not isinstance(document, list):
        raise CheckpointError(f"'{path}' is not a JSON list")
    return document


def _read_json(path: Path) -> Any:
    try:
        if not path.is_file():
            raise CheckpointError(f"'{path}' is not a file")
        with open(path, "rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise CheckpointError(f"'{path}' is larger than {MAX_JSON_BYTES >> 20} MiB")
        return bounded_json.parse(content)
    except OSError as error:
        raise CheckpointError(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"'{path}' is not valid JSON: {error}") from error


def _shards(directory: Path) -> dict[str, set[str]]:
    """Names of the shards in order, and the tensors that the index promises in each.

    The files are those that transformers reads: one file before an index. Without either, which
    it does not read, all files of one numbered family are taken, or else all but those that hold
    something else (the original's own format, an adapter).
    """
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file():
        return {single.name: set()}
    if index.is_file():
        check_inside(directory, INDEX)
        return indexed_shards(directory, INDEX)
    found = sorted(path.name for path in directory.glob("*.safetensors") if path.is_file())
    found = _preferred(found)
    if found:
        _check_numbering(directory, found)
        return {name: set() for name in found}
    return _pickled_shards(directory)


def _pickled_shards(directory: Path) -> dict[str, set[str]]:
    """The same of a checkpoint as `torch.save` writes it."""
    single = directory / "pytorch_model.bin"
    if single.is_file():
        return {single.name: set()}
    index = directory / PICKLED_INDEX
    if index.is_file():
        check_inside(directory, PICKLED_INDEX)
        return indexed_shards(directory, PICKLED_INDEX)
    found = [path.name for path in directory.iterdir() if path.suffix in PICKLED]
    found = sorted(name for name in found if name not in NO_WEIGHTS)
    if found:
        _check_numbering(directory, found)
        if len(found) > 1 and not all(_NUMBERED.match(name) for name in found):
            raise CheckpointError(
                f"'{directory}' has several files of weights ({', '.join(found[:4])})",
                remedy="keep the one that is meant there",
            )
        return {name: set() for name in found}
    raise CheckpointError(f"'{directory}' has no .safetensors files, and no .bin or .pt either")


def _preferred(names: list[str]) -> list[str]:
    """Of files without an index, those of the model."""
    numbered = [name for name in names if name.startswith("model-") and _NUMBERED.match(name)]
    others = [name for name in names if not name.startswith(("consolidated", "adapter_model"))]
    return numbered or others or names


def _passed_over(directory: Path, shards: Mapping[str, set[str]]) -> tuple[str, ...]:
    """Files of weights beside those that are read."""
    found = sorted(path.name for path in directory.glob("*.safetensors") if path.is_file())
    index = [INDEX] if SINGLE in shards and (directory / INDEX).is_file() else []
    return tuple(name for name in (*found, *index) if name not in shards and name.isprintable())


def _check_numbering(directory: Path, names: list[str]) -> None:
    """Shards without an index: where they are numbered, all numbers must be there."""
    found = [match.groups() for name in names if (match := _NUMBERED.match(name))]
    for (family, total), count in Counter((family, total) for family, _, total in found).items():
        if count < int(total):
            raise CheckpointError(
                f"'{directory}' has {count} of the {int(total)} shards '{family}-*-of-{total}', "
                "and no index: copy or download it again"
            )


def indexed_shards(directory: Path, index: str) -> dict[str, set[str]]:
    """The shards that the file ``index`` names, and the tensors that it promises in each.

    Raises:
        CheckpointError: it is malformed, or a shard is missing.
    """
    weight_map = read_json(directory / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"'{directory / index}' has no 'weight_map'")
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not tensor.isprintable() or len(tensor) > MAX_NAME:
            raise CheckpointError(f"'{directory / index}': {tensor[:80]!a} is no tensor's name")
        if not isinstance(name, str):
            raise CheckpointError(f"'{directory / index}': '{tensor}' is in no file")
        shards.setdefault(name, set()).add(tensor)
    for name in shards:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
            raise CheckpointError(
                f"'{directory / index}' names {name[:200]!r} outside the checkpoint"
            )
        if not _is_file(directory / name):
            raise CheckpointError(
                f"'{directory}' lacks the shard '{name[:200]}': copy or download it again"
            )
    return dict(sorted(shards.items()))


def check_inside(directory: Path, name: str) -> None:
    """Check that a file of a checkpoint is one of its own.

    It may be a link within ``directory``, or within the hub's cache, where a model's directory
    ``snapshots/COMMIT`` links to ``blobs`` beside ``snapshots``.

    Raises:
        CheckpointError: it is a link that leads elsewhere.
    """
    root = directory.resolve()
    roots = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        roots.append(root.parent.parent / "blobs")
    target = (directory / name).resolve()
    if not any(target.is_relative_to(inside) for inside in roots):
        raise CheckpointError(
            f"'{directory / name}' is a link that leads outside the checkpoint's directory: "
            "put the file itself there"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or none at all
        return False


def _source(path: Path, header: Header | TorchFile) -> FileSource:
    digest = hashlib.blake2b(header.raw, digest_size=12).hexdigest()
    identity = f"{digest}-{header.size}-{header.modified}"
    return FileSource(str(path), header.size, header.modified, identity, digest)


def _refuse_quantised(directory: Path, how: str | None) -> None:
    if how is not None:
        raise CheckpointError(
            f"'{directory}' is quantised ({how}): merge the original weights and quantise the "
            "result"
        )


def _some(names: set[str]) -> str:
    first, *others = sorted(names)
    return f"'{first}'" + (f" and {len(others)} more" if others else "")
