"""Standard streams that are closed, full, or of another encoding; help; paths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mergeloom
from tests.mergeloom.support import ROOT, run, shell
from tests.planners.support import llama


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A merge that computes nothing, and so begins at once."""
    llama(tmp_path / "a")
    path = tmp_path / "merge.yml"
    path.write_text("merge_method: passthrough\nmodels: [a]\n")
    return path


def sound(out: Path) -> bool:
    return mergeloom.verify(out).sound


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "2>/dev/full"])
def test_a_merge_runs_with_closed_streams(config: Path, tmp_path: Path, closed: str) -> None:
    found = shell(f"mergeloom merge {config} {tmp_path / 'out'} {closed}")
    assert found.returncode == 0, found.stderr
    assert "Traceback" not in found.stderr
    assert sound(tmp_path / "out")


@pytest.mark.parametrize(
    ("where", "says"),
    [(">/dev/full", "No space left on device"), (">&-", "stdout is closed")],
)
@pytest.mark.parametrize("command", ["plan CONFIG --json", "plan CONFIG --tasks"])
def test_an_answer_that_cannot_be_written_is_one_line(
    config: Path, where: str, says: str, command: str
) -> None:
    found = shell(f"mergeloom {command.replace('CONFIG', str(config))} {where}")
    assert found.returncode == 1
    assert says in found.stderr
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1


def test_the_document_of_a_merge_that_cannot_be_written_leaves_the_merge(
    config: Path, tmp_path: Path
) -> None:
    found = shell(f"mergeloom merge {config} {tmp_path / 'out'} --json --quiet >/dev/full")
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert sound(tmp_path / "out")


def test_a_closed_pipe_ends_quietly_and_the_merge_goes_on(config: Path, tmp_path: Path) -> None:
    found = shell(f"mergeloom explain {config} | head -1; echo ${{PIPESTATUS[0]}}")
    assert found.stderr == ""
    found = shell(
        f"mergeloom merge {config} {tmp_path / 'out'} 2>&1 | true; echo ${{PIPESTATUS[0]}}"
    )
    assert found.stdout == "0\n"
    assert sound(tmp_path / "out")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_missing_in_an_encoding_are_replaced(config: Path, encoding: str) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "mergeloom", "methods", "ties"],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert (found.returncode, found.stderr) == (0, b"")
    text = found.stdout.decode(encoding)
    assert "theta" in text or "θ" in text


def test_file_names_that_are_not_text_are_shown(config: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/o\xffut"
    found = subprocess.run(
        [sys.executable, "-m", "mergeloom", "plan", str(config), odd],
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"does not exist yet" in found.stdout


@pytest.mark.parametrize("asked", [("-h",), ("help",)])
def test_help_lists_the_commands(asked: tuple[str, ...]) -> None:
    found = run(*asked)
    assert (found.returncode, found.stderr) == (0, "")
    assert "Commands:" in found.stdout
    for command in ("plan", "merge", "explain", "inspect", "verify", "methods", "schema"):
        assert f"\n  {command} " in found.stdout


@pytest.mark.parametrize("asked", [("merge", "-h"), ("help", "merge")])
def test_help_of_a_command_shows_its_options(asked: tuple[str, ...]) -> None:
    found = run(*asked)
    assert (found.returncode, found.stderr) == (0, "")
    assert "Usage: mergeloom merge" in found.stdout.replace("python -m mergeloom", "mergeloom")
    assert "--ram SIZE" in found.stdout


def test_help_for_an_unknown_command_is_an_error() -> None:
    found = run("help", "frob")
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "there is no command 'frob'" in found.stderr


def test_a_quoted_tilde_is_the_home_directory(config: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    config.rename(home / "merge.yml")
    (tmp_path / "a").rename(home / "a")
    found = run("merge", "~/merge.yml", "~/out", HOME=str(home))
    assert found.returncode == 0, found.stderr
    assert (home / "out" / "model.safetensors").exists()
    assert run("inspect", "~/a", HOME=str(home)).returncode == 0
    assert not (ROOT / "~").exists()


@pytest.mark.parametrize("command", ["plan", "merge"])
def test_an_empty_output_is_refused(config: Path, command: str) -> None:
    found = run(command, config, "")
    assert found.returncode == 2
    assert "is empty: name a path" in found.stderr
    assert found.stderr.count("\n") == 1


def test_a_configuration_from_standard_input(config: Path, tmp_path: Path) -> None:
    text = config.read_text().replace("[a]", f"[{tmp_path}/a]")
    found = run("plan", "-", "--json", stdin=text)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["output"]["layers"] == 4
    wrong = run("plan", "-", stdin=text.replace("passthrough", "passthru"))
    assert wrong.returncode == 2
    assert "stdin:1: merge_method: " in wrong.stderr


def test_quiet_hides_progress_and_no_warning(config: Path, tmp_path: Path) -> None:
    config.write_text("merge_method: passthrough\nmodels: [a]\nparameters: {density: 0.5}\n")
    found = run("merge", config, tmp_path / "out", "--quiet")
    assert (found.returncode, found.stdout) == (0, "")
    lines = found.stderr.splitlines()
    assert lines
    assert all(line.startswith(("warning: ", "compiling ")) for line in lines)
    assert any("density" in line for line in lines)


@pytest.mark.parametrize(
    ("ram", "says"),
    [("100", "100 bytes"), ("900TiB", "more memory than this machine has")],
)
def test_a_senseless_budget_is_reported(config: Path, ram: str, says: str) -> None:
    found = run("plan", config, "--ram", ram)
    assert says in found.stdout + found.stderr


def test_output_has_no_colors_with_no_color(config: Path) -> None:
    found = run("plan", config, FORCE_COLOR="", NO_COLOR="1")
    assert "\x1b" not in found.stdout
