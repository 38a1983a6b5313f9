"""Checkpoints: their tensors, from headers, and their configuration."""

from __future__ import annotations

import hashlib
from collections import ChainMap
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.folder import Folder, LocalFile, LocalFolder, local
from mergeloom.engine.storage.safetensors import MAX_NAME, HeaderReader
from mergeloom.engine.storage.source import Source
from mergeloom.planners.models.formats import SAFETENSORS, WeightFile, read_weights
from mergeloom.planners.models.gguf.folder import GgufFolder, is_gguf
from mergeloom.planners.models.quantised_weights import (
    DecodedWeights,
    find_quantised,
    quantisation_hints,
    unsupported_method,
)
from mergeloom.planners.models.small_files import read_object
from mergeloom.planners.models.stored_tensors import (
    Described,
    HeaderContents,
    StoredTensors,
    described,
    shapes_of,
)
from mergeloom.planners.models.unsupported_quantisation import (
    quantised_by_config,
    quantised_by_tensor,
)
from mergeloom.planners.models.weight_files import passed_over, weight_files

INDEX = SAFETENSORS.index
MAX_TENSORS = 2_000_000
PIPELINE = "model_index.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in ``folder``; ``tensors`` are in the order of shards and their data.

    ``passed_over`` are weight files that are not read.
    """

    folder: Folder
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    sources: tuple[Source, ...]
    passed_over: tuple[str, ...] = ()
    decoded: DecodedWeights | None = None
    """How to dequantise weights, if some are quantised."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Metadata in the headers; that of the first file takes precedence."""
    stems: Mapping[str, str] = field(default_factory=dict)
    """For a pipeline, the path of each component's weight files without number and suffix."""

    @cached_property
    def described(self) -> Mapping[str, Described]:
        """Dtypes and shapes of its tensors, none of which is made for it."""
        return described(self.tensors)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of its tensors; one object for checkpoints with equal headers."""
        return shapes_of(self.tensors)

    @property
    def directory(self) -> Path:
        """Its local path: a directory, or a single file."""
        assert isinstance(self.folder, (LocalFolder, LocalFile, GgufFolder))
        return self.folder.path

    @property
    def nbytes(self) -> int:
        """Bytes of all shards."""
        return sum(source.size for source in self.sources)

    @property
    def identity(self) -> str:
        """Digest of all that is known about the contents without reading weights."""
        digest = hashlib.blake2b(digest_size=12)
        for source in self.sources:
            digest.update(f"{source.identity}\n".encode())
        return digest.hexdigest()


def open_checkpoint(folder: Folder | Path, headers: HeaderReader | None = None) -> Checkpoint:
    """Read the headers and the configuration of the checkpoint in ``folder``; ``headers`` are those
    already known.

    Raises:
        CheckpointError: it is missing, malformed, incomplete, quantised, or in another format.
    """
    if isinstance(folder, Path):
        place = local(folder)
        if is_gguf(place):
            return open_gguf(GgufFolder.at(place))
        if isinstance(place, LocalFile) or not place.exists:
            raise _no_folder_error(place)
        folder = place
    if isinstance(folder, GgufFolder):
        return open_gguf(folder)
    config = read_config(folder)
    files = weight_files(folder, headers)
    return _with_quantised_weights(open_files(folder, config, files, headers))


def open_weights(folder: Folder, headers: HeaderReader | None = None) -> Checkpoint:
    """Read the headers of the weights in ``folder``, but no configuration; ``headers`` are those
    already known.

    Raises:
        CheckpointError: as `open_checkpoint`, except that a configuration may be missing.
    """
    files = weight_files(folder, headers)
    return _with_quantised_weights(open_files(folder, {}, files, headers))


def open_component(folder: Folder, headers: HeaderReader) -> Checkpoint:
    """Read the headers of the component of a pipeline in ``folder``.

    Raises:
        CheckpointError: as `open_checkpoint`; or its weights are codes.
    """
    config = read_config(folder) if folder.has("config.json") else {}
    files = weight_files(folder, headers)
    found = _with_quantised_weights(open_files(folder, config, files, headers))
    if found.decoded is not None:
        raise CheckpointError(
            f"'{folder.name}' has quantised weights, which cannot be merged as part of a pipeline",
            remedy="merge the original weights",
        )
    return found


def _with_quantised_weights(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its quantised weights identified.

    Raises:
        CheckpointError: it is quantised in an unsupported way.
    """
    folder, config = checkpoint.folder, checkpoint.config
    _refuse_quantised(folder, unsupported_method(config))
    tensors, hints = checkpoint.tensors, quantisation_hints(config)
    contents = tensors.contents if isinstance(tensors, StoredTensors) else None
    if contents is not None and hints in contents.known_plain:
        _refuse_quantised(folder, quantised_by_config(config))
        return checkpoint
    decoded = find_quantised(tensors, folder.name, hints)
    if not decoded.coded:
        _refuse_quantised(folder, quantised_by_config(config))
    _refuse_quantised(folder, quantised_by_tensor(decoded.plain))
    if decoded.coded:
        return replace(checkpoint, decoded=decoded)
    if contents is not None:
        contents.known_plain.add(hints)
    return checkpoint


def open_gguf(folder: GgufFolder) -> Checkpoint:
    """The checkpoint in GGUF files.

    Raises:
        CheckpointError: it is malformed, or the kind of model is not supported.
    """
    from mergeloom.planners.models.gguf.tensors import transformers_tensors

    config, stored = folder.config, folder.stored
    decoded = transformers_tensors(folder.family, stored, config, folder.name)
    coded = {name: each.codes for name, each in decoded.coded.items()}
    left = {name: stored[name] for name in decoded.left}
    tensors = {**decoded.plain, **coded, **left}
    sources = tuple(source for source, _ in folder.files.values())
    return Checkpoint(folder, config, tensors, sources, decoded=decoded)


def open_files(
    folder: Folder,
    config: Mapping[str, Any],
    names: Mapping[str, set[str]],
    headers: HeaderReader | None = None,
) -> Checkpoint:
    """Read the headers of the weight files ``names`` in ``folder``.

    ``names`` maps each file to the tensors it should contain; ``headers`` are those already known.

    Raises:
        CheckpointError: a file is missing or malformed, lacks tensors it should contain, or
        contains tensors of another file.
    """
    known = HeaderReader() if headers is None else headers
    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(lambda name: read_weights(folder.source(name), name, known), names))
    for expected, file in zip(names.values(), files, strict=True):
        missing = expected - file.entries.keys()
        if missing:
            raise CheckpointError(
                f"'{file.source.name}' lacks {_listed_names(missing)}, which the index lists",
                remedy="copy or download the checkpoint again",
            )
    parts = [file.entries for file in files]
    _, contents = known.once(  # which keeps the parts alive, or others could get their ids
        tuple(map(id, parts)),
        lambda: (parts, _united(folder, dict(zip(names, files, strict=True)))),
    )
    return Checkpoint(
        folder,
        config,
        StoredTensors(contents, files),
        tuple(file.source for file in files),
        passed_over(folder, names),
        metadata=dict(ChainMap(*(dict(file.metadata) for file in files))),
    )


def _united(folder: Folder, files: Mapping[str, WeightFile]) -> HeaderContents:
    """What is known of the tensors of all ``files``.

    Raises:
        CheckpointError: a tensor is in two of them, or there are none or too many.
    """
    entries: dict[str, Described] = {}
    numbers: dict[str, int] = {}
    for number, (name, file) in enumerate(files.items()):
        for tensor in entries.keys() & file.entries.keys():
            other = next(n for n, each in files.items() if tensor in each.entries)
            raise CheckpointError(
                f"'{folder.name}': '{tensor}' is in '{other}' and in '{name}'",
                remedy="keep only the files of one checkpoint",
            )
        entries.update(file.entries)
        numbers.update(dict.fromkeys(file.entries, number))
        if len(entries) > MAX_TENSORS:
            raise CheckpointError(
                f"'{folder.name}' has more than {MAX_TENSORS} tensors",
                remedy="keep only the files of one checkpoint",
            )
    if not entries:
        raise CheckpointError(f"'{folder.name}' has no tensors", remedy=COPY_AGAIN)
    return HeaderContents(entries, numbers)


def is_complete(directory: Path) -> bool:
    """Whether ``directory`` has a configuration and every shard, or is a GGUF file; contents are
    not read."""
    folder = local(directory)
    if is_gguf(folder):
        return True
    try:
        return folder.has("config.json") and bool(weight_files(folder))
    except CheckpointError:
        return False


def read_config(folder: Folder) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    if not folder.has("config.json"):
        raise _no_config_error(folder)
    return read_object(folder, "config.json")


def _no_folder_error(place: LocalFolder | LocalFile) -> CheckpointError:
    """The error for a path that is not a directory."""
    path = place.path
    if isinstance(place, LocalFolder):
        return CheckpointError(f"'{path}' does not exist", remedy="name a checkpoint's directory")
    configuration = path.suffix in (".yml", ".yaml")
    return CheckpointError(
        f"'{path}' is a file, not a checkpoint's directory",
        remedy=f"'mergeloom plan {path}' shows that merge" if configuration else "name its folder",
    )


def _no_config_error(folder: Folder) -> CheckpointError:
    """The error for a folder without a model, which may contain something else."""
    if folder.has("adapter_config.json"):
        base = read_object(folder, "adapter_config.json").get("base_model_name_or_path")
        named = isinstance(base, str) and base.isprintable() and 0 < len(base) < MAX_NAME
        return CheckpointError(
            f"'{folder.name}' is an adapter (adapter_config.json), not a model",
            remedy=f"name the model that it belongs to, '{base}'" if named else "name its model",
            code="adapter",
        )
    if folder.has(PIPELINE):
        return _pipeline_error(folder)
    if _has_weights(folder):
        return CheckpointError(
            f"'{folder.name}' has weights and no config.json",
            remedy="copy it from the original model; or let 'tensors: same' in the configuration "
            "merge weights as they are",
        )
    snapshots = (f"snapshots/{name}" for name in folder.folder("snapshots").folders())
    below = (*folder.folders(), *snapshots)  # a model of the hub's cache has the latter
    near = next((name for name in below if folder.has(f"{name}/config.json")), None)
    return CheckpointError(
        f"'{folder.name}' has no config.json",
        remedy=f"did you mean '{folder.name}/{near}'?" if near else "is it a model's directory?",
    )


def _pipeline_error(folder: Folder) -> CheckpointError:
    """The error for a pipeline of diffusers, which has no layers."""
    return CheckpointError(
        f"'{folder.name}' is a pipeline of several models ({PIPELINE})",
        remedy="write 'tensors: same', which merges each component with the same one of the others",
        code="pipeline",
    )


def _has_weights(folder: Folder) -> bool:
    try:
        return bool(weight_files(folder))
    except CheckpointError:
        return False


def _refuse_quantised(folder: Folder, how: str | None) -> None:
    if how is not None:
        raise CheckpointError(
            f"'{folder.name}' is quantised ({how})",
            remedy="merge the original weights and quantise the result",
        )


def _listed_names(names: set[str]) -> str:
    first, *others = sorted(names)
    return f"'{first}'" + (f" and {len(others)} more" if others else "")
