"""The architecture's rules, checked on the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("engine", "methods", "planners", "mergeloom")
LATE = {"torch", "transformers", "tokenizers", "huggingface_hub", "networkx", "pydantic"}
"""Slow to import: none of it at the top of a module."""

WORKERS = {ROOT / "engine" / f"{name}.py" for name in ("arithmetic", "device", "offload", "store")}
WORKERS.add(ROOT / "methods" / "plain.py")
"""Only threads that compute import these."""

MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(nodes: list[ast.stmt]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module).split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own = LAYERS.index(path.relative_to(ROOT).parts[0])
    everything = set(imported([node for node in ast.walk(tree) if isinstance(node, ast.stmt)]))
    assert not everything & set(LAYERS[own + 1 :])
    if path not in WORKERS:
        assert not set(imported(tree.body)) & LATE


def test_the_front_door_imports_nothing_slow() -> None:
    code = (
        "import sys, mergeloom, mergeloom.cli, mergeloom.render, mergeloom.inspecting, "
        f"mergeloom.verifying\nsys.exit(', '.join({LATE!r} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
