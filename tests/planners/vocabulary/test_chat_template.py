"""Chat templates: chosen as configurations ask, rendered as models know them, kept in place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.storage.folder import LocalFolder
from mergeloom.planners.config.yaml_values import Place, Value
from mergeloom.planners.vocabulary.builtin_templates import TEMPLATES
from mergeloom.planners.vocabulary.chat_template import choose_template, template_files, template_of

PLACE = Place("config.yml", 3, "chat_template")
SYSTEM = {"role": "system", "content": "Be kind."}
TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "alpaca": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n### Instruction:\nBye"
    "\n\n### Response:\n",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be kind.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]",
}


def rendered(template: str, messages: list[dict[str, str]]) -> str:
    texts, _ = render_jinja_template(
        conversations=[messages],
        chat_template=template,
        add_generation_prompt=True,
        bos_token="<s>",
        eos_token="</s>",
    )
    return str(texts[0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_built_in_templates_render_as_expected(name: str) -> None:
    assert rendered(TEMPLATES[name], [SYSTEM, *TALK]) == RENDERED[name]


def test_templates_work_without_a_system_message() -> None:
    assert rendered(TEMPLATES["mistral"], TALK).startswith("<s> [INST] Hi [/INST]")
    assert rendered(TEMPLATES["exaone"], TALK).startswith("[|system|][|endofturn|]\n[|user|]Hi\n")
    assert rendered(TEMPLATES["alpaca"], TALK).startswith("### Instruction:\nHi")


def test_mistral_wants_turns() -> None:
    with pytest.raises(Exception, match="must alternate"):
        rendered(TEMPLATES["mistral"], [TALK[0], TALK[0]])


def model(directory: Path, template: str | None, where: str = "file") -> Path:
    directory.mkdir()
    settings: dict[str, object] = {"model_max_length": 7}
    if template is not None and where == "file":
        (directory / "chat_template.jinja").write_text(template)
    elif template is not None and where == "settings":
        settings["chat_template"] = template
    elif template is not None:
        tool = {"name": "tool_use", "template": "tools"}
        settings["chat_template"] = [tool, {"name": "default", "template": template}]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.parametrize("where", ["file", "settings", "list"])
def test_the_template_of_a_model_is_found_in_any_file(where: str, tmp_path: Path) -> None:
    assert (
        template_of(LocalFolder(model(tmp_path / "m", "{{ messages }}", where))) == "{{ messages }}"
    )


def chosen(text: object, *directories: Path, relative_to: Path | None = None) -> str | None:
    templates = map(template_of, map(LocalFolder, directories))
    return choose_template(Value(text, PLACE), templates, LocalFolder(relative_to or Path(), False))


def test_auto_chooses_the_most_common_template(tmp_path: Path) -> None:
    a = model(tmp_path / "a", "{{ one }}")
    b = model(tmp_path / "b", "{{ two }}\n", "settings")
    c = model(tmp_path / "c", "{{ two }}", "list")
    d = model(tmp_path / "d", None)
    assert chosen("auto", a, b, c, d) == "{{ two }}\n"
    assert chosen("auto", a, b) == "{{ one }}"
    assert chosen("auto", d) is None


def test_a_template_may_be_a_name_a_text_or_a_file(tmp_path: Path) -> None:
    assert chosen("chatml") == TEMPLATES["chatml"]
    assert chosen("{{ messages }}") == "{{ messages }}"
    (tmp_path / "own.jinja").write_text("{{ own }}")
    assert chosen("own.jinja", relative_to=tmp_path) == "{{ own }}"


@pytest.mark.parametrize(
    ("content", "words"),
    [("chatmll", "did you mean 'chatml'"), ("no/file.jinja", "or a file"), (7, "must be text")],
)
def test_an_invalid_template_is_refused(content: object, words: str) -> None:
    with pytest.raises(ConfigError, match=f"config.yml:3: chat_template: .*{words}"):
        chosen(content)


@pytest.mark.parametrize("where", ["file", "settings", "list"])
def test_a_template_replaces_the_old_one_in_the_same_file(where: str, tmp_path: Path) -> None:
    directory = model(tmp_path / "m", "{{ old }}", where)
    assert template_files(LocalFolder(directory), {}, "{{ old }}") == {}
    for name, content in template_files(LocalFolder(directory), {}, "{{ new }}").items():
        assert content is not None
        (directory / name).write_bytes(content)
    assert template_of(LocalFolder(directory)) == "{{ new }}"
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 7
    if where == "list":
        names = {item["name"]: item["template"] for item in settings["chat_template"]}
        assert names == {"default": "{{ new }}", "tool_use": "tools"}


def test_rewritten_tokenizer_settings_get_the_template_too(tmp_path: Path) -> None:
    directory = model(tmp_path / "m", "{{ old }}", "settings")
    made = {"tokenizer_config.json": json.dumps({"chat_template": "{{ old }}", "x": 1}).encode()}
    files = template_files(LocalFolder(directory), made, "{{ new }}")
    assert json.loads(files["tokenizer_config.json"] or b"") == {
        "chat_template": "{{ new }}",
        "x": 1,
    }
