"""A pipeline of diffusers as one model: a folder whose folders hold the models that it is made of.

``model_index.json`` names the components. A tensor is called by its component and its name there,
``unet/conv_in.weight``; so what is merged is merged component by component.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.output.manifest import is_inside
from mergeloom.engine.output.side_files import SideFile
from mergeloom.engine.storage.folder import Folder, walk
from mergeloom.engine.storage.safetensors import HeaderReader
from mergeloom.planners.models.checkpoint import Checkpoint, open_component
from mergeloom.planners.models.small_files import read_object

PIPELINE = "model_index.json"
MAX_FILES = 1000
MAX_FILE_BYTES = 256 << 20
_WEIGHTS = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".onnx_data", ".pb"),
    *(".msgpack", ".h5", ".gguf", ".xml"),
}
"""Ends of files with weights, in whatever format."""
_STEMS = ("diffusion_pytorch_model", "model")
"""How the weights of a model of diffusers are called, and those of one of transformers."""
_LISTED = 4


def is_pipeline(folder: Folder) -> bool:
    """Whether a folder holds a pipeline."""
    return folder.has(PIPELINE)


def open_pipeline(folder: Folder, headers: HeaderReader) -> Checkpoint:
    """Read the headers of all components; ``headers`` are those that are known already.

    Raises:
        CheckpointError: one is missing, malformed, incomplete or quantised, or there is none.
    """
    tensors: dict[str, StoredTensor] = {}
    opened: dict[str, Checkpoint] = {}
    for name in _components(folder):
        inside = folder.folder(name)
        if not any(PurePosixPath(file).suffix in _WEIGHTS for file in inside.names()):
            continue
        found = opened[name] = open_component(inside, headers)
        tensors.update((f"{name}/{tensor}", stored) for tensor, stored in found.tensors.items())
    if not opened:
        raise CheckpointError(
            f"'{folder.name}' is a pipeline ({PIPELINE}) whose components have no weights",
            remedy="copy or download it again",
        )
    return Checkpoint(
        folder,
        {},
        tensors,
        tuple(source for each in opened.values() for source in each.sources),
        tuple(f"{name}/{file}" for name, each in opened.items() for file in each.passed_over),
        stems={name: f"{name}/{_stem(each)}" for name, each in opened.items()},
    )


def pipeline_files(folder: Folder) -> tuple[SideFile, ...]:
    """The files of a pipeline besides weights, byte for byte.

    Raises:
        CheckpointError: their number or names make no sense, or one leads outside.
    """
    names = [PIPELINE, *(n for n in folder.names() if n.startswith(("LICENSE", "NOTICE")))]
    for name in _components(folder):
        inside = walk(folder.folder(name), f"{name}/")
        names += [each for each in inside if _is_kept(PurePosixPath(each))]
    if len(names) > MAX_FILES or not all(map(is_inside, names)):
        raise CheckpointError(
            f"'{folder.name}' has more than {MAX_FILES} files beside its weights, or one whose "
            "name is no file's",
            remedy="remove what does not belong there",
        )
    files = [SideFile.copy_of(name, folder.source(name)) for name in names]
    large = next((file for file in files if file.size > MAX_FILE_BYTES), None)
    if large is not None:
        raise CheckpointError(
            f"'{folder.name}/{large.name}' has more than {MAX_FILE_BYTES >> 20} MiB and is in no "
            "known weight format",
            remedy="remove it, or name its component alone",
        )
    return tuple(files)


def differing_files(donor: Folder, other: Folder) -> Iterator[str]:
    """Settings in JSON files that the output takes over from ``donor`` and that are not the same in
    another pipeline, in words: one line a file."""
    for name in (
        PIPELINE,
        *(f"{part}/{file}" for part in _components(donor) for file in _SETTINGS),
    ):
        if not (donor.has(name) and other.has(name)):
            continue
        one, two = read_object(donor, name), read_object(other, name)
        keys = [
            key
            for key in {**one, **two}
            if one.get(key) != two.get(key) and not key.startswith("_") and key not in _OF_PROGRAMS
        ]
        if keys:
            said = ", ".join(f"'{key}'" for key in keys[:_LISTED] if key.isprintable())
            more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
            yield f"'{name}' is copied from '{donor.name}'; '{other.name}' has other {said}{more}"


_SETTINGS = ("config.json", "scheduler_config.json")
_OF_PROGRAMS = {"transformers_version", "torch_dtype", "dtype"}


def _components(folder: Folder) -> Sequence[str]:
    """The folders of a pipeline that its index names as parts of it."""
    index: Mapping[str, Any] = read_object(folder, PIPELINE)
    named = [key for key, value in index.items() if isinstance(value, list) and any(value)]
    return [name for name in folder.folders() if name in named]


def _stem(component: Checkpoint) -> str:
    files = [PurePosixPath(source.name).name for source in component.sources]
    return _STEMS[0] if any(name.startswith(_STEMS[0]) for name in files) else _STEMS[1]


def _is_kept(path: PurePosixPath) -> bool:
    of_weights = path.suffix in _WEIGHTS or path.name.endswith(".index.json")
    hidden = any(part.startswith(".") for part in path.parts)
    return not (of_weights or hidden or path.name == "README.md")
