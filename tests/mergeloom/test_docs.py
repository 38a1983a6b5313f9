"""Commands in the documentation: each is one, with options that there are; some are run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from mergeloom.cli import app
from tests.mergeloom.support import LINEAR, ROOT
from tests.planners.support import llama

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONTEXT = click.Context(app)


def commands(page: Path) -> list[str]:
    """The lines of a page's examples that call the program."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ {4,}(mergeloom [a-z-].*)$", text, re.MULTILINE)
    return [line.partition("  #")[0].strip() for line in lines]


def options(command: Any) -> set[str]:
    return {name for each in command.params for name in (*each.opts, *each.secondary_opts)}


CASES = [(page.name, line) for page in PAGES for line in commands(page)]


def test_there_are_examples() -> None:
    assert len(CASES) > 30


@pytest.mark.parametrize(("page", "line"), CASES)
def test_an_example_is_a_command_with_options_that_there_are(page: str, line: str) -> None:
    words = shlex.split(line.replace("…", ""))[1:]
    while words and words[0].startswith("--"):
        assert words.pop(0) in options(app)
    if words:
        command = app.get_command(CONTEXT, words[0])
        given = {
            re.sub(r"[\[\]]|=.*", "", word) for word in words if word.lstrip("[").startswith("--")
        }
        assert given <= options(command) | {"--help"}, page


def test_flags_of_mergekit_that_are_explained_are_understood() -> None:
    text = (ROOT / "docs" / "from-mergekit.md").read_text(encoding="utf-8")
    table = text.partition("| flag of mergekit |")[2].partition("\n\n")[0]
    flags = {
        flag for row in table.splitlines() for flag in re.findall(r"`(--[\w-]+)", row.split("|")[1])
    }
    assert len(flags) > 20
    assert flags <= options(app.get_command(CONTEXT, "mergekit-yaml"))
    assert flags <= options(app.get_command(CONTEXT, "merge"))


def test_what_a_newcomer_from_mergekit_is_shown_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        llama(tmp_path / name, seed=seed)
    text = LINEAR.replace("merge_method: linear", "merge_method: slerp\nbase_model: a")
    (tmp_path / "merge.yml").write_text(
        re.sub(r", parameters: \{.*?\}", "", text) + "parameters: {t: 0.5}\n"
    )
    page = ROOT / "docs" / "from-mergekit.md"
    lines = [
        line for line in commands(page) if "merge.yml" in line or " a b " in line or "out" in line
    ]
    assert len(lines) == 8
    for line in lines:
        assert not app(shlex.split(line)[1:], standalone_mode=False)
    assert (tmp_path / "report.html").stat().st_size > 10_000
