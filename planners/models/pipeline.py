"""A pipeline of diffusers as one model: a folder with one folder for each component.

``model_index.json`` names the components. The name of a tensor begins with its component
(``unet/conv_in.weight``), so pipelines are merged component by component.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from mergeloom.engine.base.errors import COPY_AGAIN, CheckpointError
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
_WEIGHT_SUFFIXES = {
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".onnx_data", ".pb"),
    *(".msgpack", ".h5", ".gguf", ".xml"),
}
"""Suffixes of files with weights, in any format."""
_STEMS = ("diffusion_pytorch_model", "model")
"""How names of weight files begin: those of diffusers, and those of transformers."""
_MAX_LISTED = 4


def is_pipeline(folder: Folder) -> bool:
    """Whether a folder contains a pipeline."""
    return folder.has(PIPELINE)


def open_pipeline(folder: Folder, headers: HeaderReader) -> Checkpoint:
    """Read the headers of all components; ``headers`` are those already known.

    Raises:
        CheckpointError: a component is missing, malformed, incomplete or quantised, or there is
        none.
    """
    tensors: dict[str, StoredTensor] = {}
    components: dict[str, Checkpoint] = {}
    for name in _components(folder):
        inside = folder.folder(name)
        if not any(PurePosixPath(file).suffix in _WEIGHT_SUFFIXES for file in inside.names()):
            continue
        found = components[name] = open_component(inside, headers)
        tensors.update((f"{name}/{tensor}", stored) for tensor, stored in found.tensors.items())
    if not components:
        raise CheckpointError(
            f"'{folder.name}' is a pipeline ({PIPELINE}) whose components have no weights",
            remedy=COPY_AGAIN,
        )
    return Checkpoint(
        folder,
        {},
        tensors,
        tuple(source for each in components.values() for source in each.sources),
        tuple(f"{name}/{file}" for name, each in components.items() for file in each.passed_over),
        stems={name: f"{name}/{_stem(each)}" for name, each in components.items()},
    )


def pipeline_files(folder: Folder) -> tuple[SideFile, ...]:
    """The files of a pipeline other than weights, to be copied byte for byte.

    Raises:
        CheckpointError: there are too many, a name is invalid, or a link leads outside.
    """
    names = [PIPELINE, *(n for n in folder.names() if n.startswith(("LICENSE", "NOTICE")))]
    for name in _components(folder):
        inside = walk(folder.folder(name), f"{name}/")
        names += [each for each in inside if _is_kept(PurePosixPath(each))]
    if len(names) > MAX_FILES or not all(map(is_inside, names)):
        raise CheckpointError(
            f"'{folder.name}' has more than {MAX_FILES} files beside its weights, or a file with "
            "an invalid name",
            remedy="remove files that do not belong to the pipeline",
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
    """One line for each settings file that the output copies from ``donor`` and that has other
    values in the ``other`` pipeline."""
    for name in (
        PIPELINE,
        *(f"{part}/{file}" for part in _components(donor) for file in _SETTINGS_FILES),
    ):
        if not (donor.has(name) and other.has(name)):
            continue
        one, two = read_object(donor, name), read_object(other, name)
        keys = [
            key
            for key in {**one, **two}
            if one.get(key) != two.get(key) and not key.startswith("_") and key not in _IGNORED_KEYS
        ]
        if keys:
            listed = ", ".join(f"'{key}'" for key in keys[:_MAX_LISTED] if key.isprintable())
            more = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
            yield f"'{name}' is copied from '{donor.name}'; '{other.name}' has other {listed}{more}"


_SETTINGS_FILES = ("config.json", "scheduler_config.json")
_IGNORED_KEYS = {"transformers_version", "torch_dtype", "dtype"}


def _components(folder: Folder) -> Sequence[str]:
    """The folders of a pipeline that its index names as components."""
    index: Mapping[str, Any] = read_object(folder, PIPELINE)
    named = [key for key, value in index.items() if isinstance(value, list) and any(value)]
    return [name for name in folder.folders() if name in named]


def _stem(component: Checkpoint) -> str:
    files = [PurePosixPath(source.name).name for source in component.sources]
    return _STEMS[0] if any(name.startswith(_STEMS[0]) for name in files) else _STEMS[1]


def _is_kept(path: PurePosixPath) -> bool:
    is_weights = path.suffix in _WEIGHT_SUFFIXES or path.name.endswith(".index.json")
    is_hidden = any(part.startswith(".") for part in path.parts)
    return not (is_weights or is_hidden or path.name == "README.md")
