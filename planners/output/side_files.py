"""The small files of an output: configuration, index, tokenizer, model card."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.output.manifest import is_inside
from mergeloom.engine.output.side_files import SideFile
from mergeloom.planners.config.config import Configuration
from mergeloom.planners.models.checkpoint import Checkpoint, check_inside
from mergeloom.planners.output.model_card import model_card
from mergeloom.planners.output.shards import INDEX_NAME, Layout

CONFIGURATION_NAME = "mergeloom_config.yml"
MAX_SIDE_FILE_BYTES = 256 << 20
MAX_SIDE_FILES = 1000
MAX_SIDE_BYTES = 2 << 30
"""Of all side files together."""

_COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "generation_config.json",
    "chat_template.*",
    "*.jinja",
    "*preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
    "LICENSE*",
    "NOTICE*",
)


def side_files(
    configuration: Configuration,
    config: Mapping[str, Any],
    layout: Layout,
    donor: Path | None,
    models: Mapping[str, Checkpoint],
) -> tuple[SideFile, ...]:
    """All files of the output besides its shards.

    ``config`` is the output's configuration; ``donor`` the directory that tokenizer, templates
    and the like are copied from, byte for byte: nothing of them is read, rendered or run.

    Raises:
        CheckpointError: one of them cannot be read, or is a link out of the donor's directory.
    """
    files = {"config.json": _json(config)}
    if layout.index is not None:
        files[INDEX_NAME] = layout.index
    files[CONFIGURATION_NAME] = configuration.text.encode()
    files["README.md"] = model_card(configuration, models).encode()
    result = [SideFile.made(name, content) for name, content in files.items()]
    if donor is not None:
        for name in _copied(donor, config):
            if name not in files:
                check_inside(donor, name)
                try:
                    result.append(SideFile.copied(name, donor / name))
                except OSError as error:
                    raise CheckpointError(
                        f"cannot read '{donor / name}': {error.strerror}"
                    ) from error
    return tuple(result)


def _copied(donor: Path, config: Mapping[str, Any]) -> list[str]:
    patterns = [*_COPIED]
    if "auto_map" in config:  # the model's own code, without which nothing can load it
        patterns.append("*.py")
    found = []
    total = 0
    for path in sorted([*donor.iterdir(), *donor.glob("*_Pooling/config.json")]):
        name = path.relative_to(donor).as_posix()
        wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        if not (wanted and path.is_file() and path.stat().st_size <= MAX_SIDE_FILE_BYTES):
            continue
        if not is_inside(name):
            raise CheckpointError(f"'{donor}' has a file {name!r}: rename it, or remove it")
        found.append(name)
        total += path.stat().st_size
        if len(found) > MAX_SIDE_FILES or total > MAX_SIDE_BYTES:
            raise CheckpointError(
                f"'{donor}' has more than {MAX_SIDE_FILES} files or {MAX_SIDE_BYTES >> 30} GiB "
                "beside its weights that would be copied: remove what does not belong there"
            )
    return found


def _json(document: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        return (json.dumps(document, indent=2) + "\n").encode()
