"""The architecture's rules, checked on the code itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import networkx
import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("engine", "methods", "planners", "mergeloom")
LATE = {"torch", "transformers", "tokenizers", "huggingface_hub", "networkx", "pydantic"}
"""Slow to import: none of it at the top of a module."""

WORKERS = {
    ROOT / "engine" / "run" / f"{name}.py"
    for name in (
        "torch_arrays",
        "torch_device",
        "device_worker",
        "device_workspace",
        "device_cache",
    )
}
WORKERS |= {ROOT / "methods" / "reference.py"}
WORKERS |= {
    ROOT / "methods" / "ops" / f"{name}.py"
    for name in ("torch_ops", "torch_tables", "torch_factors")
}
"""Only threads that compute import these."""

MODULES = {
    "mergeloom."
    + ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("mergeloom."): path
    for layer in LAYERS
    for path in sorted((ROOT / layer).rglob("*.py"))
    if path.name not in {"__init__.py", "__main__.py"}
    and (ROOT / layer / path.relative_to(ROOT / layer).parts[0]).is_symlink() is False
}
"""Every module by its name."""


def layer(module: str) -> int:
    """Which of `LAYERS` a module belongs to; the front door is all of ``mergeloom`` that is no
    folder of its own."""
    part = module.split(".")[1] if "." in module else ""
    return LAYERS.index(part) if part in LAYERS else LAYERS.index("mergeloom")


def imported(nodes: list[ast.stmt]) -> Iterator[str]:
    """Modules that statements import; of `from package import name` the name where it is one."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from {name if name in MODULES else str(node.module) for name in inside}


def run_statements(tree: ast.Module) -> list[ast.stmt]:
    """All statements but those that only a type checker reads."""

    def reached(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in nodes:
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                continue
            yield node
            for name in ("body", "orelse", "finalbody", "handlers"):
                yield from reached(getattr(node, name, []))

    return list(reached(tree.body))


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    tree = tree_of(module)
    everything = imported([node for node in ast.walk(tree) if isinstance(node, ast.stmt)])
    own = [name for name in everything if name.split(".")[0] == "mergeloom"]
    assert [name for name in own if layer(name) > layer(module)] == []
    if MODULES[module] not in WORKERS:
        assert not {name.split(".")[0] for name in imported(tree.body)} & LATE


def test_no_two_files_import_each_other() -> None:
    graph = networkx.DiGraph(
        (module, name)
        for module in MODULES
        for name in imported(run_statements(tree_of(module)))
        if name in MODULES
    )
    circles = [sorted(found) for found in networkx.strongly_connected_components(graph)]
    assert [circle for circle in circles if len(circle) > 1] == []


TOUCHING = frozenset(
    {"exists", "is_dir", "is_file", "is_symlink", "iterdir", "glob", "rglob", "resolve", "stat"}
    | {"lstat", "scandir", "listdir", "read_bytes", "read_text", "write_bytes", "write_text"}
    | {"unlink", "mkdir", "realpath", "isfile", "isdir", "readlink", "samefile"}
)
"""Methods and functions that ask the file system about a path."""

WITH_PATHS = {
    ROOT / "engine" / "storage" / "file_system.py",
    ROOT / "engine" / "storage" / "files.py",
    ROOT / "engine" / "storage" / "folder.py",
    ROOT / "engine" / "storage" / "digest.py",  # of an output's files
    ROOT / "planners" / "config" / "load.py",  # reads the configuration
    ROOT / "planners" / "models" / "resolve.py",  # finds the directory that a name stands for
    ROOT / "planners" / "models" / "class_defaults.py",  # reads a table of the package
    ROOT / "methods" / "ops" / "arithmetic.py",  # finds the package's own source code
    ROOT / "methods" / "ops" / "cuda" / "arithmetic.py",
}


@pytest.mark.parametrize(
    "module",
    [
        name
        for name, path in MODULES.items()
        if path not in WITH_PATHS
        and (layer(name) in (1, 2) or name.startswith("mergeloom.engine.storage."))
    ],
)
def test_inputs_are_reached_through_folders(module: str) -> None:
    """Only a local folder touches a path: so another kind of folder needs no other change."""
    calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
    methods = [call.func.attr for call in calls if isinstance(call.func, ast.Attribute)]
    functions = [call.func.id for call in calls if isinstance(call.func, ast.Name)]
    assert sorted(TOUCHING.intersection(methods)) == []
    assert "open" not in functions


def test_all_layers_are_looked_at() -> None:
    counts = [sum(layer(module) == number for module in MODULES) for number in range(len(LAYERS))]
    assert all(count > 5 for count in counts)
    assert all(layer(low) <= layer(high) for low, high in pairwise(sorted(MODULES, key=layer)))


def test_the_front_door_imports_nothing_slow() -> None:
    code = (
        "import sys, mergeloom, mergeloom.cli, mergeloom.report.plan, "
        "mergeloom.report.terminal.plan, mergeloom.report.json, mergeloom.results\n"
        f"sys.exit(', '.join({LATE!r} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_front_door_knows_outlines() -> None:
    """Not how planners divide models: another kind of model needs no other report."""
    front = [name for name in MODULES if layer(name) == LAYERS.index("mergeloom")]
    inner = "mergeloom.planners.models.architecture"
    assert [name for name in front if inner in imported(run_statements(tree_of(name)))] == []
