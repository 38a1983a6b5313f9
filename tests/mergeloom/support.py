"""Starting the program as its user does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mergeloom
from mergeloom.report.json import to_json_types

ROOT = Path(__file__).parents[2]

LINEAR = """merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 3}}
dtype: bfloat16
"""


def run(
    *arguments: object, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The program with these arguments, in pipes."""
    return subprocess.run(
        [sys.executable, "-m", "mergeloom", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        input=stdin,
        env={**os.environ, **environment},
    )


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line for a shell, in which ``mergeloom`` is the program."""
    program = f'mergeloom() {{ "{sys.executable}" -m mergeloom "$@"; }}\n'
    return subprocess.run(
        ["bash", "-c", program + line],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def merge_without_torch(config: Path, output: Path) -> None:
    """Merge as a user of the Python API does, and see that torch was not imported for it."""
    code = (
        "import sys, mergeloom\n"
        f"mergeloom.merge({str(config)!r}, {str(output)!r})\n"
        "found = {'torch', 'transformers', 'numba'} & sys.modules.keys()\n"
        "sys.exit(f'imported {found}' if found else 0)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0, found.stderr


def method_as_json(name: str) -> dict[str, Any]:
    """A merge method as ``mergeloom methods NAME --json`` lists it."""
    (found,) = to_json_types(mergeloom.list_methods(name))["methods"]
    return dict(found)
