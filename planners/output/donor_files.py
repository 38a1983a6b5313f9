"""Selects small files to copy from a model to the output; warns of folders that are not copied."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.output.manifest import is_inside
from mergeloom.engine.output.side_files import SideFile
from mergeloom.engine.storage.folder import Folder, walk
from mergeloom.planners.models.small_files import read_list
from mergeloom.planners.models.weight_files import weight_files

MAX_SIDE_FILE_BYTES = 256 << 20
MAX_SIDE_FILES = 1000
MAX_SIDE_BYTES = 2 << 30
"""Maximum size of all side files together, in bytes."""

_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
    "chat_template.*",
    "*.jinja",
)
"""Files of a tokenizer and its chat templates."""

_COPIED_FILES = (
    *_TOKENIZER_FILES,
    "generation_config.json",
    "*preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "LICENSE*",
    "NOTICE*",
)
_FILES_IN_FOLDERS = ("additional_chat_templates/*.jinja", "*_Pooling/config.json")
_WEIGHT_SUFFIXES = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".gguf",
    ".h5",
    ".msgpack",
}
_MAX_INSPECTED = 20_000
"""Maximum number of files inspected for a warning."""


def donor_files(donor: Folder, config: Mapping[str, Any]) -> list[str]:
    """The names of the files that are copied unchanged from ``donor``; ``config`` is the output's.

    Raises:
        CheckpointError: a name is invalid, or there are too many or too large files.
    """
    patterns = [*_COPIED_FILES]
    if "auto_map" in config:  # the model's own code, needed to load it
        patterns.append("*.py")
    top = [name for name in donor.names() if _matches(name, patterns)]
    modules, inner = _module_folders(donor), []
    for folder in donor.folders():
        found = walk(donor.folder(folder), f"{folder}/")
        inner += [n for n in found if folder in modules or _matches(n, _FILES_IN_FOLDERS)]
    names = []
    total = 0
    for name in dict.fromkeys([*top, *sorted(inner)]):
        size = donor.source(name).size
        if size > MAX_SIDE_FILE_BYTES and "/" not in name:
            continue
        if not is_inside(name):
            raise CheckpointError(
                f"'{donor.name}' has a file {name!r}", remedy="rename it, or remove it"
            )
        names.append(name)
        total += size
        if len(names) > MAX_SIDE_FILES or total > MAX_SIDE_BYTES:
            raise CheckpointError(
                f"'{donor.name}' has more than {MAX_SIDE_FILES} files or {MAX_SIDE_BYTES >> 30} "
                "GiB beside its weights that would be copied",
                remedy="remove what does not belong there",
            )
    return names


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def is_tokenizer_file(name: str) -> bool:
    """Whether a file belongs to the tokenizer."""
    return _matches(name, _TOKENIZER_FILES)


def folder_warnings(
    models: Mapping[str, Folder], donor: Folder | None, copied: list[str]
) -> Iterator[str]:
    """Warnings about weights in subfolders of the ``models``, which are not merged.

    ``copied`` are the names of the files copied from ``donor``.
    """
    whose = next((name for name, folder in models.items() if folder is donor), None)
    seen: set[str] = set()
    for name, model in models.items():
        if model.identity in seen:
            continue
        seen.add(model.identity)
        for folder, weights in _folders_with_weights(model).items():
            taken = [file for file in weights if file in copied]
            if not taken:
                yield f"weights in '{folder}/' of '{name}' are neither merged nor copied"
            elif model is not donor and donor is not None:
                changed = [file for file in taken if not _is_same_file(model, donor, file)]
                if changed:
                    yield (
                        f"'{changed[0]}' is copied from '{whose or donor.name}', not merged with "
                        f"that of '{name}'"
                    )


def _is_same_file(one: Folder, other: Folder, name: str) -> bool:
    """Whether a file has the same content in two folders."""
    if not (one.has(name) and other.has(name)):
        return False
    first, second = (SideFile.copy_of(name, folder.source(name)) for folder in (one, other))
    return (first.size, first.digest) == (second.size, second.digest)


def _module_folders(donor: Folder) -> set[str]:
    """Folders listed in the ``modules.json`` of a sentence-transformers model."""
    if not donor.has("modules.json"):
        return set()
    found = [
        item.get("path") for item in read_list(donor, "modules.json") if isinstance(item, dict)
    ]
    return {
        folder
        for folder in found
        if isinstance(folder, str)
        and folder
        and is_inside(folder)
        and len(PurePosixPath(folder).parts) == 1
    }


def _folders_with_weights(model: Folder) -> dict[str, list[str]]:
    """Weight files in each subfolder of a model, by folder name, except those that are read."""
    found = []
    for name in itertools.islice(walk(model), _MAX_INSPECTED):
        path = PurePosixPath(name)
        is_hidden = any(part.startswith(".") for part in path.parts)
        if len(path.parts) > 1 and path.suffix in _WEIGHT_SUFFIXES and not is_hidden:
            found.append(name)
    read = weight_files(model) if found else {}
    folders: dict[str, list[str]] = {}
    for name in found:
        if name not in read:
            folders.setdefault(PurePosixPath(name).parts[0], []).append(name)
    return dict(sorted(folders.items()))
