"""Programs can be started, are sound where a shell reads them, and say how they are used."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("scripts/setup", "scripts/test", "scripts/demo", ".ci/run")
PYTHON = ("scripts/run",)


def started(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")


@pytest.mark.parametrize("name", [*SHELL, *PYTHON])
def test_scripts_are_executable(name):
    assert os.access(ROOT / name, os.X_OK)


@pytest.mark.parametrize("name", SHELL)
def test_shell_scripts_parse_and_stop_at_errors(name):
    path = ROOT / name
    text = path.read_text()
    assert text.startswith("#!/bin/sh\n# ")
    assert "\nset -eu\n" in text or "\nexec " in text
    assert started("sh", "-n", path).stderr == ""


@pytest.mark.parametrize("name", [name for name in (*SHELL, *PYTHON) if name != ".ci/run"])
def test_help_only_prints_help(name):
    result = started(ROOT / name, "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    assert Path(name).name in result.stdout


@pytest.mark.parametrize("name", ["scripts/setup", "scripts/demo"])
def test_unknown_arguments_are_refused(name):
    result = started(ROOT / name, "--cleen")
    assert result.returncode == 2
