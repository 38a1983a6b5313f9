"""What shells complete: commands, options, choices, names of methods, paths."""

from __future__ import annotations

import pytest
from click.shell_completion import BashComplete

from mergeloom.cli import app


def completed(*words: str) -> list[tuple[str, str]]:
    """Kind and text of each thing that the last word may become."""
    shell = BashComplete(app, {}, "mergeloom", "_MERGELOOM_COMPLETE")
    *before, begun = words
    return [(item.type, item.value) for item in shell.get_completions(before, begun)]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("me",), ["merge", "methods", "mergekit-yaml", "mergekit-pytorch"]),
        (("merge", "--ra"), ["--ram"]),
        (("merge", "merge.yml", "out", "--io", ""), ["auto", "direct", "buffered"]),
        (("plan", "merge.yml", "--device", "cu"), ["cuda", "cuda:N"]),
        (("methods", "ti"), ["ties"]),
        (("init", "a", "b", "--method", "sl"), ["slerp"]),
        (("merge", "merge.yml", "out", "--ram", ""), []),  # anybody's guess
    ],
)
def test_words_are_completed(words: tuple[str, ...], found: list[str]) -> None:
    assert completed(*words) == [("plain", each) for each in found]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("merge", "mer"), "file"),
        (("merge", "merge.yml", "o"), "file"),
        (("inspect", "mo"), "file"),
        (("plan", "merge.yml", "--html", "re"), "file"),
        (("plan", "merge.yml", "--search-dir", "mo"), "dir"),
    ],
)
def test_paths_are_completed_by_the_shell(words: tuple[str, ...], kind: str) -> None:
    assert completed(*words) == [(kind, words[-1])]
