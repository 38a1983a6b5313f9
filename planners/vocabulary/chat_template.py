"""Reads the chat templates of models, chooses one, and makes the files for it.

Templates are treated as text and never rendered.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.suggest import suggest
from mergeloom.engine.storage.folder import Folder
from mergeloom.planners.config.yaml_values import Value
from mergeloom.planners.models.small_files import read_object
from mergeloom.planners.vocabulary.builtin_templates import TEMPLATES
from mergeloom.planners.vocabulary.tokenizer import SETTINGS_FILE
from mergeloom.planners.vocabulary.tokens import read_content

TEMPLATE_FILE = "chat_template.jinja"
_OLD_TEMPLATE_FILE = "chat_template.json"


def template_of(folder: Folder) -> str | None:
    """The default chat template in ``folder``; ``None`` if there is none.

    Raises:
        CheckpointError: a file that may contain it is malformed.
    """
    if folder.has(TEMPLATE_FILE):
        return read_content(folder, TEMPLATE_FILE).decode("utf-8", "replace")
    for name in (SETTINGS_FILE, _OLD_TEMPLATE_FILE):
        if folder.has(name):
            found = _default_template(read_object(folder, name).get("chat_template"))
            if found is not None:
                return found
    return None


def choose_template(setting: Value, templates: Iterable[str | None], folder: Folder) -> str | None:
    """The template that ``setting`` asks for.

    For ``auto``, it is the most common of the models' ``templates``, or the first of several such.
    Otherwise the setting is the name of a built-in template, a file of ``folder``, or the text.

    Raises:
        ConfigError: it is none of these.
        CheckpointError: a model's template cannot be read.
    """
    text = setting.content
    if not isinstance(text, str) or not text.strip():
        raise setting.error(f"a chat template must be text, not {setting.kind}")
    if text == "auto":
        found = [template for template in templates if template is not None]
        common = Counter(template.strip() for template in found).most_common(1)
        return next((t for t in found if common and t.strip() == common[0][0]), None)
    if text in TEMPLATES:
        return TEMPLATES[text]
    if "{" in text:
        return text
    if "\n" in text or not folder.has(text):
        raise setting.error(
            f"'{text[:80]}' is not 'auto', the name of a template, Jinja text or a file",
            suggest(text, ["auto", *TEMPLATES]),
        )
    try:
        return read_content(folder, text).decode()
    except CheckpointError as error:
        raise error.at(setting.place) from error
    except UnicodeDecodeError as error:
        cause = f"cannot read the chat template '{text}': it is not UTF-8 text"
        raise setting.error(cause, "save it as UTF-8") from error


def template_files(
    folder: Folder | None, made: Mapping[str, bytes | None], template: str
) -> dict[str, bytes | None]:
    """The files that make ``template`` the default of a tokenizer; its named templates are kept.

    ``folder`` has the tokenizer's files, ``made`` the contents written in place of some of them.
    """
    if folder is not None and template_of(folder) == template:
        return {}
    files: dict[str, bytes | None] = {}
    listed = False
    for name in (SETTINGS_FILE, _OLD_TEMPLATE_FILE):
        document = _settings_document(folder, made, name)
        if document is None or "chat_template" not in document:
            continue
        listed = listed or isinstance(document["chat_template"], list)
        document["chat_template"] = _with_default(document["chat_template"], template)
        files[name] = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode(
            "utf-8", "surrogatepass"
        )
    # Next to a list in the settings, such a file would hide the other templates of the list.
    if not listed or (folder is not None and folder.has(TEMPLATE_FILE)):
        files[TEMPLATE_FILE] = template.encode("utf-8", "replace")
    return files


def _settings_document(
    folder: Folder | None, made: Mapping[str, bytes | None], name: str
) -> dict[str, Any] | None:
    content = made.get(name)
    if content is not None:
        found: dict[str, Any] = json.loads(content)
        return found
    if folder is None or not folder.has(name):
        return None
    return read_object(folder, name)


def _default_template(found: object) -> str | None:
    """The default template in the settings, which have one template or several named ones."""
    if isinstance(found, str):
        return found
    if isinstance(found, Mapping):
        found = [{"name": name, "template": text} for name, text in found.items()]
    for item in found if isinstance(found, list) else ():
        if isinstance(item, Mapping) and item.get("name") == "default":
            text = item.get("template")
            return text if isinstance(text, str) else None
    return None


def _with_default(found: object, template: str) -> object:
    if isinstance(found, list):
        others = [
            item
            for item in found
            if not (isinstance(item, Mapping) and item.get("name") == "default")
        ]
        return [{"name": "default", "template": template}, *others]
    if isinstance(found, dict):
        return {**found, "default": template}
    return template
