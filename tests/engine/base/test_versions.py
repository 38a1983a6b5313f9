"""Versions of installed packages."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from mergeloom.engine.base.versions import version_of


def test_version_of_agrees_with_importlib_metadata() -> None:
    found = {each.metadata["Name"]: each.version for each in metadata.distributions()}
    assert "numpy" in found
    assert {name: version_of(name) for name in found} == {
        name: metadata.version(name) for name in found
    }


def test_package_names_are_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "An_Odd.Name-1!2.dist-info"
    folder.mkdir()
    folder.joinpath("METADATA").write_text(
        "Metadata-Version: 2.1\nVersion: 1!2+local\n\nVersion: 3"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert version_of("an-odd.name") == "1!2+local"
    folder.joinpath("METADATA").unlink()
    assert version_of("an-odd.name") is None
    assert version_of("no-such-package") is None
