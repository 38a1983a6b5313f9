"""The model card of an output: front matter that the hub reads, and the exact configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

import yaml

from mergeloom.methods import registry
from mergeloom.planners.config.config import Configuration
from mergeloom.planners.models.resolve import Found, Origin, is_hub_id
from mergeloom.planners.recipe import Recipe


def model_card(
    configuration: Configuration, recipes: Sequence[Recipe], models: Mapping[str, Found]
) -> str:
    """``README.md`` of the output, in Markdown; ``models`` are the inputs by their references."""
    front = {
        "base_model": [_id(name) for name, found in models.items() if _is_on_hub(name, found)],
        "library_name": recipes[-1].library,
        "tags": ["mergeloom", "merge"],
    }
    given = {key: value for key, value in front.items() if value}
    header = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    last = configuration.documents[-1]
    title = last.name or (configuration.path.stem if configuration.path else "merge")
    methods = dict.fromkeys(recipe.outline.method for recipe in recipes)
    described = "".join(f"- {_describe(name)}\n" for name in methods)
    listed = "".join(f"- {_link(name, found)}\n" for name, found in models.items())
    return (
        f"---\n{header}---\n\n# {title}\n\n"
        "A merge made by mergeloom.\n\n"
        f"## Method\n\n{described}\n"
        f"## Models\n\n{listed}\n"
        f"## Configuration\n\n```yaml\n{configuration.text.rstrip()}\n```\n"
    )


def _describe(method: str) -> str:
    known = method in registry.names()
    return f"`{method}`: {registry.get(method).summary}" if known else f"`{method}`"


def _id(name: str) -> str:
    return name.partition("@")[0]


def _is_on_hub(name: str, found: Found) -> bool:
    """Whether a model is known to be the one of that name on the hub, not a directory that only
    looks like it: it was fetched from there, or its directory was given for a hub's name."""
    if not is_hub_id(_id(name)) or "/" not in name:
        return False
    return found.fetched or found.origin in (Origin.HUB, Origin.GIVEN)


def _link(name: str, found: Found) -> str:
    path, _, revision = name.partition("@")
    if not _is_on_hub(name, found):
        return f"`{PurePath(name).name}`"
    at = f" at `{revision}`" if revision else ""
    return f"[{path}](https://huggingface.co/{path}){at}"
