"""What is installed: one name in site-packages, and everything under it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel, and nothing else, was installed."""
    work = tmp_path_factory.mktemp("wheel")
    source, folder = work / "source", work / "site"
    tracked = subprocess.run(
        ["git", "-C", ROOT, "ls-files", "-z"], check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, tracked.split("\0")):
        copy, path = source / name, ROOT / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            copy.symlink_to(path.readlink())
        elif path.is_file():
            copy.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    options = ["--no-deps", "--no-build-isolation", "--no-compile", "--target", folder]
    subprocess.run([*pip, *options, source], check=True)
    return folder


def test_one_name_is_installed(site: Path) -> None:
    found = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert found - {"bin"} == {"mergeloom"}


def test_every_module_is_installed(site: Path) -> None:
    layers = {name: ROOT / name for name in ("engine", "methods", "planners")}
    expected = {
        Path(name, path.relative_to(folder)) for name, folder in layers.items()
        for path in folder.rglob("*.py")
    }  # fmt: skip
    front = ROOT / "mergeloom"
    expected |= {
        path.relative_to(front)
        for path in front.rglob("*.py")
        if path.relative_to(front).parts[0] not in layers
    }
    installed = {
        path.relative_to(site / "mergeloom") for path in (site / "mergeloom").rglob("*.py")
    }
    assert installed == expected
    page = site / "mergeloom" / "report" / "html"
    assert {path.name for path in page.iterdir()} >= {"page.html", "page.css", "script"}
    scripts = {path.name for path in (front / "report" / "html" / "script").glob("*.js")}
    assert {path.name for path in (page / "script").iterdir()} == scripts


def test_what_is_installed_runs_from_anywhere(site: Path, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import mergeloom.cli, mergeloom.api, "
        "mergeloom.engine.job; from mergeloom.engine.hardware import machine_code; "
        "print(mergeloom.engine.job.__file__); print(machine_code._ROOT)"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11)
        else [sys.executable, "-c", code],
        check=True, capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""},
    )  # fmt: skip
    assert result.stdout.split() == [str(site / "mergeloom" / "engine" / "job.py"), str(site)]
