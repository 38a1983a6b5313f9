"""The model card of an output: front matter that the hub reads, and the exact configuration."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import yaml

from mergeloom.methods import registry
from mergeloom.planners.config.config import Configuration
from mergeloom.planners.models.resolve import is_hub_id


def model_card(configuration: Configuration, models: Iterable[str]) -> str:
    """``README.md`` of the output, in Markdown; ``models`` are the inputs' references."""
    names = list(models)
    ids = [name.partition("@")[0] for name in names if is_hub_id(name.partition("@")[0])]
    front = {
        "base_model": [name for name in ids if "/" in name],
        "library_name": "transformers",
        "tags": ["mergeloom", "merge"],
    }
    if not front["base_model"]:
        del front["base_model"]
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    last = configuration.documents[-1]
    title = last.name or (configuration.path.stem if configuration.path else "merge")
    methods = dict.fromkeys(document.merge_method for document in configuration.documents)
    described = "".join(f"- {_describe(name)}\n" for name in methods)
    listed = "".join(f"- {_link(name)}\n" for name in names)
    return (
        f"---\n{header}---\n\n# {title}\n\n"
        "A merge of language models, made by mergeloom.\n\n"
        f"## Method\n\n{described}\n"
        f"## Models\n\n{listed}\n"
        f"## Configuration\n\n```yaml\n{configuration.text.rstrip()}\n```\n"
    )


def _describe(method: str) -> str:
    found = registry.get(method)
    return f"`{method}`: {found.summary}"


def _link(name: str) -> str:
    path, _, revision = name.partition("@")
    if not is_hub_id(path) or "/" not in path:
        return Path(path).name
    at = f" at `{revision}`" if revision else ""
    return f"[{path}](https://huggingface.co/{path}){at}"
