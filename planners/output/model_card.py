"""The model card of an output: front matter for the hub, and the exact configuration."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import yaml

from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.methods import registry
from mergeloom.planners.config.config import Configuration
from mergeloom.planners.models.resolve import FoundIn, FoundModel, is_hub_id
from mergeloom.planners.outline import Layers, Outline
from mergeloom.planners.output.licences import (
    Licence,
    front_matter,
    is_usable,
    licence_from,
)
from mergeloom.planners.recipe import Recipe


def model_card(
    configuration: Configuration, recipes: Sequence[Recipe], models: Mapping[str, FoundModel]
) -> str:
    """The ``README.md`` of the output; ``models`` are the inputs by reference."""
    cards = {name: front_matter(LocalFolder(found.directory)) for name, found in models.items()}
    licences = {name: licence_from(card) for name, card in cards.items()}
    recipe = recipes[-1]
    front = {
        "base_model": [_hub_id(name) for name, found in models.items() if _is_on_hub(name, found)],
        "base_model_relation": "merge",
        **_common_licence(licences),
        "library_name": recipe.library,
        "pipeline_tag": _pipeline_tag(cards.values(), recipe),
        "language": _languages(cards.values()),
        "tags": ["mergeloom", "merge"],
    }
    if not front["base_model"]:
        del front["base_model_relation"]
    given = {key: value for key, value in front.items() if value}
    header = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    last = configuration.documents[-1]
    title = last.name or (configuration.path.stem if configuration.path else "merge")
    methods = dict.fromkeys(recipe.outline.method for recipe in recipes)
    described = "".join(f"- {_method_text(name)}\n" for name in methods)
    listed = "".join(
        f"- {_link(name, found)}{_licence_text(licences[name])}\n" for name, found in models.items()
    )
    layers = "\n".join(line for recipe in recipes for line in _outline_lines(recipe.outline))
    return (
        f"---\n{header}---\n\n# {title}\n\n"
        "A merge made by mergeloom.\n\n"
        f"## Method\n\n{described}\n"
        f"## Models\n\n{listed}{_licence_note(licences)}\n"
        f"## Layers\n\n```text\n{layers}\n```\n\n"
        f"## Configuration\n\n```yaml\n{configuration.text.rstrip()}\n```\n"
    )


_TASKS_BY_CLASS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForSpeechSeq2Seq": "automatic-speech-recognition",
}
"""The hub's names of tasks, by the ends of class names of transformers."""


def _pipeline_tag(cards: Collection[Mapping[str, Any]], recipe: Recipe) -> str | None:
    """The task of the output, as the hub names it: that of the models' cards if they agree, or else
    that of its class, if known."""
    named = {card["pipeline_tag"] for card in cards if is_usable(card.get("pipeline_tag"))}
    if len(named) == 1:
        return str(named.pop())
    classes = recipe.output.config.get("architectures")
    if named or recipe.library != "transformers" or not isinstance(classes, list) or not classes:
        return None
    name = str(classes[0])
    found = next((task for end, task in _TASKS_BY_CLASS.items() if name.endswith(end)), None)
    if found is None and name.endswith("ForConditionalGeneration"):
        return "image-text-to-text" if "vision_config" in recipe.output.config else None
    return found


def _languages(cards: Iterable[Mapping[str, Any]]) -> list[str]:
    """The languages that the models' cards name, each once."""
    listed = (card.get("language") for card in cards)
    several = (each if isinstance(each, list) else [each] for each in listed)
    # YAML reads the code of Norwegian, without quotes, as false.
    found = ("no" if name is False else name for names in several for name in names)
    return list(dict.fromkeys(name for name in found if is_usable(name)))


def _common_licence(licences: Mapping[str, Licence | None]) -> dict[str, str]:
    """The front matter for the licence shared by all models, if there is one."""
    found = next(iter(licences.values()), None)
    return found.fields if found is not None and len({*licences.values()}) == 1 else {}


def _licence_text(found: Licence | None) -> str:
    return "" if found is None else f" ({found})"


def _licence_note(licences: Mapping[str, Licence | None]) -> str:
    """A sentence for models with different licences; it leaves the decision to people."""
    if len({*licences.values()}) < 2:
        return ""
    unknown = sum(found is None for found in licences.values())
    several = ", ".join(
        dict.fromkeys(str(found) for found in licences.values() if found is not None)
    )
    more = f"; of {unknown} it is not known" if unknown else ""
    return f"\nThe models are under different licences: {several}{more}. All of them apply.\n"


def _outline_lines(outline: Outline) -> Iterator[str]:
    """The outline of a stage as text: one line for each source of each slice."""
    name = f" '{outline.name}'" if outline.name is not None else ""
    yield f"{outline.method}{name}"
    for part in outline.parts:
        if part.name != "default":
            yield f"  {part.name}"
        for each in part.slices:
            own = "everything" if each.layers is None else f"layers {_range_text(each.layers)}"
            how = outline.method if each.how == "merged" else each.detail or each.how
            yield f"    {own}: {how}"
            for source in each.sources:
                of = "" if source.layers is None else f" layers {_range_text(source.layers)}"
                base = " (base)" if source.base else ""
                yield f"      {_short_name(source.model)}{of}{base}"


def _range_text(layers: Layers) -> str:
    start, stop = layers
    return f"{start}-{stop - 1}" if stop - start > 1 else f"{start}" if stop > start else "none"


def _short_name(name: str) -> str:
    """The name of a model without local directories."""
    return PurePath(name).name if PurePath(name).is_absolute() else name


def _method_text(method: str) -> str:
    if not registry.known(method):
        return f"`{method}`"
    return f"`{method}`: {registry.get(method).summary}"


def _hub_id(name: str) -> str:
    return name.partition("@")[0]


def _is_on_hub(name: str, found: FoundModel) -> bool:
    """Whether a model is known to be the one of that name on the hub, not just a directory with
    that name: it was downloaded, or its directory was given for a hub id."""
    if not is_hub_id(_hub_id(name)) or "/" not in name:
        return False
    return found.is_downloaded or found.origin in (FoundIn.HUB, FoundIn.GIVEN)


def _link(name: str, found: FoundModel) -> str:
    path, _, revision = name.partition("@")
    if not _is_on_hub(name, found):
        return f"`{PurePath(name).name}`"
    at = f" at `{revision}`" if revision else ""
    return f"[{path}](https://huggingface.co/{path}){at}"
