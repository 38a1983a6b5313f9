"""The small files of an output: configuration, index, tokenizer, model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.output.side_files import SideFile
from mergeloom.planners.config.config import Configuration
from mergeloom.planners.models.resolve import Found
from mergeloom.planners.models.small_files import check_inside
from mergeloom.planners.output.donor_files import donor_files, folder_warnings, of_words
from mergeloom.planners.output.model_card import model_card
from mergeloom.planners.output.shards import INDEX_NAME, Layout
from mergeloom.planners.vocabulary.output import TokenizerFiles

CONFIGURATION_NAME = "mergeloom_config.yml"


def side_files(
    configuration: Configuration,
    config: Mapping[str, Any],
    layout: Layout,
    donor: Path | None,
    tokenizer: TokenizerFiles,
    models: Mapping[str, Found],
    warnings: list[str],
) -> tuple[SideFile, ...]:
    """All files of the output besides its shards; adds to ``warnings`` what is not taken over.

    ``config`` is the output's configuration; ``donor`` the directory that files beside the weights
    are copied from, byte for byte, and ``tokenizer`` says the same of the tokenizer's.

    Raises:
        CheckpointError: one of them cannot be read, or is a link out of the donor's directory.
    """
    files = {"config.json": _json(config)}
    if layout.index is not None:
        files[INDEX_NAME] = layout.index
    files[CONFIGURATION_NAME] = configuration.text.encode()
    files["README.md"] = model_card(configuration, models).encode()
    result = [SideFile.made(name, content) for name, content in files.items()]
    made = {name: content for name, content in tokenizer.made.items() if name not in files}
    result += [SideFile.made(name, content) for name, content in made.items() if content]
    for name, directory in _copied(donor, tokenizer.directory, config).items():
        if name not in files and name not in made:
            check_inside(directory, name)
            try:
                result.append(SideFile.copied(name, directory / name))
            except OSError as error:
                raise CheckpointError(
                    f"cannot read '{directory / name}': {error.strerror}"
                ) from error
    directories = {name: found.directory for name, found in models.items()}
    warnings += folder_warnings(directories, donor, [file.name for file in result])
    return tuple(result)


def _copied(
    donor: Path | None, tokenizer: Path | None, config: Mapping[str, Any]
) -> dict[str, Path]:
    """Which directory each file is copied from that is: the tokenizer's files from its own."""
    found: dict[str, Path] = {}
    if donor is not None:
        names = donor_files(donor, config)
        found.update((name, donor) for name in names if donor == tokenizer or not of_words(name))
    if tokenizer is not None and donor != tokenizer:
        names = donor_files(tokenizer, {})
        found.update((name, tokenizer) for name in names if of_words(name))
    return found


def _json(document: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can spell and UTF-8 cannot
        return (json.dumps(document, indent=2) + "\n").encode()
