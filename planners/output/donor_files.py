"""Files beside the weights that an output takes over from a model, and folders that it does not."""

from __future__ import annotations

import filecmp
import fnmatch
import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.output.manifest import is_inside
from mergeloom.planners.models.small_files import check_inside, read_json_list

MAX_SIDE_FILE_BYTES = 256 << 20
MAX_SIDE_FILES = 1000
MAX_SIDE_BYTES = 2 << 30
"""Of all side files together."""

_OF_WORDS = (
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

_COPIED = (
    *_OF_WORDS,
    "generation_config.json",
    "*preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "LICENSE*",
    "NOTICE*",
)
_IN_FOLDERS = ("additional_chat_templates/*.jinja", "*_Pooling/config.json")
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".gguf", ".h5", ".msgpack"}
_MAX_ENTRIES = 20_000
"""Files that are looked at for a warning."""


def donor_files(donor: Path, config: Mapping[str, Any]) -> list[str]:
    """Names of the files that are copied from ``donor``, byte for byte; ``config`` is the output's.

    Raises:
        CheckpointError: a name, the number or the size of them makes no sense.
    """
    patterns = [*_COPIED]
    if "auto_map" in config:  # the model's own code, without which nothing can load it
        patterns.append("*.py")
    top = sorted(
        path
        for path in donor.iterdir()
        if any(fnmatch.fnmatchcase(path.name, pattern) for pattern in patterns)
    )
    inner = itertools.chain.from_iterable(donor.glob(pattern) for pattern in _IN_FOLDERS)
    modules = (donor / folder for folder in _module_folders(donor))
    parts = itertools.chain.from_iterable(_files(folder) for folder in modules)
    names = []
    total = 0
    for path in dict.fromkeys([*top, *sorted({*inner, *parts})]):
        if not path.is_file():
            continue
        name = path.relative_to(donor).as_posix()
        size = path.stat().st_size
        if size > MAX_SIDE_FILE_BYTES and "/" not in name:
            continue
        if not is_inside(name):
            raise CheckpointError(f"'{donor}' has a file {name!r}: rename it, or remove it")
        names.append(name)
        total += size
        if len(names) > MAX_SIDE_FILES or total > MAX_SIDE_BYTES:
            raise CheckpointError(
                f"'{donor}' has more than {MAX_SIDE_FILES} files or {MAX_SIDE_BYTES >> 30} GiB "
                "beside its weights that would be copied: remove what does not belong there"
            )
    return names


def of_words(name: str) -> bool:
    """Whether a file belongs to the tokenizer."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _OF_WORDS)


def folder_warnings(
    models: Mapping[str, Path], donor: Path | None, copied: list[str]
) -> Iterator[str]:
    """Warnings about weights in folders of the ``models``: none of them is merged.

    ``copied`` are the names of the files that the output takes over from ``donor``.
    """
    whose = next((name for name, directory in models.items() if directory == donor), None)
    seen: set[Path] = set()
    for name, directory in models.items():
        if directory in seen:
            continue
        seen.add(directory)
        for folder, weights in _folders_with_weights(directory).items():
            taken = [file for file in weights if file in copied]
            if not taken:
                yield f"weights in '{folder}/' of '{name}' are neither merged nor copied"
            elif directory != donor and donor is not None:
                changed = [
                    f for f in taken if not filecmp.cmp(directory / f, donor / f, shallow=False)
                ]
                if changed:
                    yield (
                        f"'{changed[0]}' is copied from '{whose or donor}', not merged with that "
                        f"of '{name}'"
                    )


def _module_folders(donor: Path) -> list[str]:
    """Folders of a sentence-transformers model, as its ``modules.json`` lists them."""
    path = donor / "modules.json"
    if not path.is_file():
        return []
    check_inside(donor, path.name)
    found = [item.get("path") for item in read_json_list(path) if isinstance(item, dict)]
    return [
        folder
        for folder in found
        if isinstance(folder, str)
        and folder
        and is_inside(folder)
        and len(PurePosixPath(folder).parts) == 1
    ]


def _folders_with_weights(directory: Path) -> dict[str, list[str]]:
    """Files with weights in each folder of a model, by the folder's name."""
    found: dict[str, list[str]] = {}
    for path in itertools.islice(_files(directory), _MAX_ENTRIES):
        name = path.relative_to(directory)
        hidden = any(part.startswith(".") for part in name.parts)
        if len(name.parts) > 1 and path.suffix in _WEIGHTS and not hidden:
            found.setdefault(name.parts[0], []).append(name.as_posix())
    return dict(sorted(found.items()))


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder; links to folders are not followed."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root, name) for name in sorted(names))
