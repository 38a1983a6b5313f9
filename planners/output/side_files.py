"""The small files of an output: those of all outputs, and those of models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mergeloom.engine.output.side_files import SideFile
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.config.config import Configuration
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.models.resolve import FoundModel
from mergeloom.planners.output.donor_files import donor_files, folder_warnings, is_tokenizer_file
from mergeloom.planners.output.model_card import model_card
from mergeloom.planners.output.shards import Layout
from mergeloom.planners.recipe import Recipe
from mergeloom.planners.vocabulary.output import TokenizerFiles

CONFIGURATION_NAME = "mergeloom_config.yml"


def side_files(
    configuration: Configuration,
    recipes: Sequence[Recipe],
    layout: Layout,
    models: Mapping[str, FoundModel],
) -> tuple[SideFile, ...]:
    """All files of the output other than shards: those of the last of ``recipes``, shard indices,
    the configuration, and the model card; ``models`` are the inputs.

    Raises:
        CheckpointError: a file cannot be read, or is a link out of its folder.
    """
    files = {file.name: file for file in recipes[-1].files()}
    common = {CONFIGURATION_NAME: configuration.text.encode()}
    common["README.md"] = model_card(configuration, recipes, models).encode()
    common |= layout.indices
    files |= {name: SideFile.from_content(name, content) for name, content in common.items()}
    return tuple(files.values())


def model_files(
    config: Mapping[str, Any],
    donor: Folder | None,
    tokenizer: TokenizerFiles,
    folders: Mapping[str, Folder],
    findings: Findings,
) -> tuple[SideFile, ...]:
    """The small files of a model: ``config.json``, its tokenizer, and copies of files of the
    ``donor``. Warnings name folders of the models, in ``folders``, that are not copied.

    Raises:
        CheckpointError: a file cannot be read, or is a link out of its folder.
    """
    made = {"config.json": as_json(config), **tokenizer.made}
    files = [SideFile.from_content(name, content) for name, content in made.items() if content]
    files += _copied_side_files(donor, tokenizer.folder, config, made)
    findings.notes(folder_warnings(folders, donor, [file.name for file in files]))
    return tuple(files)


def as_json(document: Mapping[str, Any]) -> bytes:
    """A JSON file in transformers' formatting."""
    try:
        return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape but UTF-8 cannot encode
        return (json.dumps(document, indent=2) + "\n").encode()


def _copied_side_files(
    donor: Folder | None,
    tokenizer: Folder | None,
    config: Mapping[str, Any],
    made: Mapping[str, Any],
) -> Iterator[SideFile]:
    for name, folder in _source_folders(donor, tokenizer, config).items():
        if name not in made:
            yield SideFile.copy_of(name, folder.source(name))


def _source_folders(
    donor: Folder | None, tokenizer: Folder | None, config: Mapping[str, Any]
) -> dict[str, Folder]:
    """The source folder of each copied file; tokenizer files come from the tokenizer's folder."""
    found: dict[str, Folder] = {}
    if donor is not None:
        names = donor_files(donor, config)
        found.update(
            (name, donor) for name in names if donor is tokenizer or not is_tokenizer_file(name)
        )
    if tokenizer is not None and donor is not tokenizer:
        names = donor_files(tokenizer, {})
        found.update((name, tokenizer) for name in names if is_tokenizer_file(name))
    return found
