"""The programs that ``scripts/run`` starts."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[2] / "scripts" / "run"


def programs() -> dict[str, tuple[str, str]]:
    """Each program's name with its module and description, as ``scripts/run`` finds them."""
    spec = spec_from_loader("scripts_run", SourceFileLoader("scripts_run", str(RUN)))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, tuple[str, str]] = module.programs()
    return found


@pytest.mark.parametrize(("name", "module"), [(n, module) for n, (module, _) in programs().items()])
def test_help_of_a_program_only_prints_help(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [f"run {name}", "--help"])
    with pytest.raises(SystemExit) as ended:
        import_module(module).main()
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: run {name} ")
    assert said.err == ""
