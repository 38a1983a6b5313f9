"""What the documentation shows: commands are run, configurations read, code executed."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml

import mergeloom
from mergeloom import cleaning
from mergeloom.cli import COMMANDS, app
from mergeloom.engine.storage.files import FileSource
from mergeloom.mergekit_flags import MERGEKIT_COMMANDS
from mergeloom.planners.config.keys import MAPPING_KINDS
from mergeloom.planners.config.load import parse_config
from scripts.fixtures.tokenizer_files import tokenizer_files
from tests.mergeloom.gallery import said_by
from tests.mergeloom.support import LINEAR, ROOT
from tests.planners.support import llamas

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONTEXT = click.Context(app)


def commands(page: Path) -> list[str]:
    """The lines of a page's examples that call the program."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ {4,}(mergeloom [a-z-].*)$", text, re.MULTILINE)
    return [line.partition("  #")[0].strip() for line in lines]


def spans(page: Path) -> list[str]:
    """Commands within the text of a page, with or without the program's name."""
    found = re.findall(r"`([a-z][^`\n]*)`", page.read_text(encoding="utf-8"))
    words = [(span, span.removeprefix("mergeloom ").split()) for span in found]
    return [
        span
        for span, (first, *rest) in words
        if span.startswith("mergeloom ") or (first in COMMANDS and rest)
    ]


def options(command: Any) -> set[str]:
    return {name for each in command.params for name in (*each.opts, *each.secondary_opts)}


CASES = [(page.name, line) for page in PAGES for line in commands(page)]
CASES += [
    (page.name, f"mergeloom {line.removeprefix('mergeloom ')}")
    for page in PAGES
    for line in dict.fromkeys(spans(page))
]


def test_there_are_examples() -> None:
    assert len(CASES) > 30


@pytest.mark.parametrize(("page", "line"), CASES)
def test_an_example_uses_existing_commands_and_options(page: str, line: str) -> None:
    words = shlex.split(line.replace("…", "").replace("|", " "))[1:]
    while words and words[0].startswith("--"):
        assert words.pop(0) in options(app)
    if words:
        assert words[0] in COMMANDS, page
        command = app.get_command(CONTEXT, words[0])
        given = {re.sub(r"[\[\]]|=.*", "", word) for word in words if re.match(r"\[?-", word)}
        assert given <= options(command) | {"--help"}, page


def test_explained_flags_of_mergekit_are_accepted() -> None:
    text = (ROOT / "docs" / "from-mergekit.md").read_text(encoding="utf-8")
    table = text.partition("| flag of mergekit |")[2].partition("\n\n")[0]
    flags = {
        flag for row in table.splitlines() for flag in re.findall(r"`(--[\w-]+)", row.split("|")[1])
    }
    assert len(flags) > 20
    assert flags <= options(app.get_command(CONTEXT, "mergekit-yaml"))
    assert flags <= options(app.get_command(CONTEXT, "merge"))


def test_every_command_of_mergekit_is_explained() -> None:
    text = (ROOT / "docs" / "from-mergekit.md").read_text(encoding="utf-8")
    assert {name for name in MERGEKIT_COMMANDS if f"`{name}" not in text} == set()


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which everything lies that examples name."""
    folder = tmp_path_factory.mktemp("docs")
    names = ("a", "b", "c", "A", "B", "C", "BASE", "MODEL", "DONOR")
    for model in llamas(folder, names, vocabulary=512):
        for file, content in tokenizer_files().items():
            (model / file).write_text(json.dumps(content))
    text = LINEAR.replace("merge_method: linear", "merge_method: slerp\nbase_model: a")
    text = re.sub(r", parameters: \{.*?\}", "", text) + "parameters: {t: 0.5}\n"
    (folder / "merge.yml").write_text(text)
    return folder


def runnable(line: str) -> list[str]:
    """The words of an example as somebody types them: with what may be left out, and with names
    for what stands for something."""
    line = re.sub(r"…|[\[\]]", "", line).replace("path/or/hub-id", "a")
    named = {"--html FILE": "--html report.html", "methods NAME": "methods ties"}
    for stands, text in named.items():
        line = line.replace(stands, text)
    words = shlex.split(line, comments=True)[1:]
    if words[:1] == ["init"]:
        words += ["--output", "first.yml"]
    if words[:1] == ["clean"]:  # what is finished is not cleaned away
        words = [word.replace("out", "half") for word in words]
    if words[:1] == ["merge"] or words[:1] == ["mergekit-yaml"]:
        words += ["--quiet"] if "--quiet" not in words else []
    return words


ELSEWHERE = {
    "prepare": "builds machine code, for half a minute",
    "--debug": "no command",
    "--device": "needs a GPU",
    "--load": "needs transformers: tests/mergeloom/test_verify_load.py",
    "transplant": "tests/planners/transplant",
    "extract": "tests/planners/extraction",
    "export": "needs gguf: tests/planners/export",
}
"""Examples that are not run here, and why."""


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda p: p.stem)
def test_examples_of_a_page_run_in_order(
    page: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in workplace.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cleaning, "cache_directory", lambda: tmp_path / "cache")
    mergeloom.merge("merge.yml", "out")  # a page may speak of one that is there
    with pytest.raises(mergeloom.RunError, match="cancelled"):
        mergeloom.merge("merge.yml", "half", observer=mergeloom.Observer(cancelled=lambda: True))
    for line in commands(page):
        words = runnable(line)
        if not any(word in ELSEWHERE for word in words):
            assert not app(words, standalone_mode=False), line


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )


CONFIGURATIONS = [
    (page.name, block)
    for page in PAGES
    for block in blocks(page, "yaml")
    if re.search(r"^(merge_method|adapters|tensors):", block, re.MULTILINE)
]


def test_there_are_configurations() -> None:
    assert len(CONFIGURATIONS) >= 6


@pytest.mark.parametrize(("page", "text"), CONFIGURATIONS)
def test_a_configuration_that_is_shown_is_read_without_warnings(page: str, text: str) -> None:
    assert parse_config(text, page).warnings == ()


def test_every_key_is_in_the_reference() -> None:
    text = "".join(
        (ROOT / "docs" / f"{name}.md").read_text("utf-8")
        for name in ("configuration", "adapters", "checkpoints")
    )
    known = {key for level in MAPPING_KINDS for key in level.keys}
    assert {key for key in known if not re.search(rf"\b{key}\b", text)} == set()


def test_the_example_of_a_format_reads_its_file(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "formats.md", "python")
    names: dict[str, Any] = {"__name__": "raw_format"}
    exec(compile(block, "formats.md", "exec"), names)
    path = tmp_path / "vector.raw"
    path.write_bytes(np.array([2], "<u4").tobytes() + np.array([1, 2], "<f4").tobytes())
    found = names["RAW"].read(FileSource.at(path), None)
    vector = found.tensor("vector")
    assert (vector.shape, vector.dtype.name, vector.bytes.nbytes) == ((2,), "float32", 8)
    path.write_bytes(b"\2\0\0\0")
    with pytest.raises(mergeloom.CheckpointError, match="is truncated: copy it again"):
        names["RAW"].read(FileSource.at(path), None)


FRAGMENTS = [
    block
    for block in blocks(ROOT / "docs" / "configuration.md", "yaml")
    if not re.search(r"^merge_method:", block, re.MULTILINE)
]
AROUND = """models:
  - {model: A, parameters: {weight: 1}}
  - {model: B, parameters: {weight: 1}}
"""


@pytest.mark.parametrize("text", FRAGMENTS)
def test_a_part_of_a_configuration_is_valid_in_a_whole_one(text: str) -> None:
    if text.startswith("slices:"):
        stacked = text.count("sources:") > 1
        method = "passthrough" if stacked else "slerp\nbase_model: A\nparameters: {t: 0.5}"
        whole = f"merge_method: {method}\n{text}"
    elif text.startswith("tokenizer"):
        whole = f"merge_method: linear\n{AROUND}{text}"
    else:  # values of parameters
        parameters = {
            each.name: {one.name for one in (*each.model_parameters, *each.parameters)}
            for each in mergeloom.list_methods().methods
        }
        for key, value in yaml.safe_load(text).items():
            known = [name for name, keys in parameters.items() if key in keys]
            assert known, key
            assert isinstance(value, float | int | list), key
        return
    assert parse_config(whole, "docs").warnings == ()


@pytest.mark.parametrize("name", ["README", "docs/python"])
def test_the_python_examples_run(
    name: str, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in workplace.iterdir():
        (tmp_path / each.name).symlink_to(each)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(ROOT / f"{name}.md", "python"):
        exec(compile(block, name, "exec"), names)


FAULTY = """merge_method: ties
dtype: bfloat61
base_model: base
models:
  - {model: a, parameters: {weight: 1, density: 0.5}}
  - model: b
    parameters: {weight: 1, density: 0.5, weigth: 1}
  - model: c
    parameters: {weight: 1, density: }
"""


def told(page: str) -> list[str]:
    """The messages that a page shows."""
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^    ((?:error|warning): .*)$", text, re.MULTILINE)


def test_messages_of_the_configuration_page_are_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    llamas(tmp_path, ("a", "b", "c", "base"))
    Path("merge.yml").write_text(FAULTY)
    lines, _ = said_by("mergeloom plan merge.yml")
    assert told("configuration") == [line.rstrip("\n") for line in lines]


def _alike(message: str) -> str:
    """A message without its numbers and names."""
    text = re.sub(r"configuration: [\w\[\].]+", "KEY", message)
    return re.sub(r"[\d.]+x[\d.]+|[\d.]+|\bN\b", "N", text)


@pytest.mark.parametrize("page", [page.stem for page in PAGES[1:] if page.stem != "configuration"])
def test_messages_of_other_pages_are_in_the_reviewed_ones(page: str) -> None:
    folder = Path(__file__).parent
    pages = (folder / "failures.txt", *(folder / "mistakes").glob("*.txt"))
    shown = {_alike(line) for each in pages for line in each.read_text("utf-8").splitlines()}
    assert {_alike(line) for line in told(page)} <= shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_files_and_pages_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:engine|methods|planners|mergeloom|tests|scripts|configs)/[\w/.]*)`", text
    )
    linked = re.findall(r"\]\((?!https?:)([\w./-]+)", text)
    sources = [each for each in named if not each.endswith(".json")]  # no cache or record
    lost = [each for each in sources if not (ROOT / each).exists()]
    assert lost + [each for each in linked if not (page.parent / each).exists()] == []
