"""The small files of an output: configuration, index, tokenizer, model card."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.output import SideFile
from planners.card import model_card
from planners.checkpoint import Checkpoint
from planners.config import Configuration
from planners.layout import INDEX_NAME, Layout

CONFIGURATION_NAME = "mergeloom_config.yml"
MAX_SIDE_FILE_BYTES = 256 << 20

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
    and the like are copied from, byte for byte.
    """
    files = {"config.json": _json(config)}
    if layout.index is not None:
        files[INDEX_NAME] = layout.index
    files[CONFIGURATION_NAME] = configuration.text.encode()
    files["README.md"] = model_card(configuration, models).encode()
    result = [SideFile(name, content) for name, content in files.items()]
    if donor is not None:
        result += [
            SideFile(name, donor / name) for name in _copied(donor, config) if name not in files
        ]
    return tuple(result)


def _copied(donor: Path, config: Mapping[str, Any]) -> list[str]:
    patterns = [*_COPIED]
    if "auto_map" in config:  # the model's own code, without which nothing can load it
        patterns.append("*.py")
    found = []
    for path in sorted([*donor.iterdir(), *donor.glob("*_Pooling/config.json")]):
        name = path.relative_to(donor).as_posix()
        wanted = any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        if wanted and path.is_file() and path.stat().st_size <= MAX_SIDE_FILE_BYTES:
            found.append(name)
    return found


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
