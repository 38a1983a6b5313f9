"""Machine code is kept whole, used where it belongs, and never in the way."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mergeloom.engine.hardware import machine_code as native_module
from mergeloom.engine.hardware.machine_code import (
    FLOAT,
    INT,
    CacheError,
    CompiledFunction,
    Library,
    MachineCodeError,
    host_processor,
    target_machine,
)

binding = pytest.importorskip("llvmlite.binding", reason="machine code is loaded by llvmlite")

ASSEMBLY = """
define double @twice_(double %number, i64 %times) {
  %factor = sitofp i64 %times to double
  %product = fmul double %number, %factor
  ret double %product
}
"""
BUILDER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from mergeloom.engine.hardware.machine_code import FLOAT, INT, CompiledFunction, host_processor
directory, *names = sys.argv[1:]
for name in names:
    if name == "wrong":
        raise SystemExit("there is no such loop")
    if name == "killed":
        os.kill(os.getpid(), 9)
    if name == "hangs":
        time.sleep(60)
    if name == "silent":
        continue
    code = b"code of " + name.encode()
    CompiledFunction(name, name, INT, INT, *host_processor(), code).save(Path(directory))
"""


@pytest.fixture
def native() -> CompiledFunction:
    code = target_machine().emit_object(binding.parse_assembly(ASSEMBLY))
    return CompiledFunction("twice", "twice_", FLOAT + INT, FLOAT, *host_processor(), code)


def test_a_function_is_loaded_from_its_file(native: CompiledFunction, tmp_path: Path) -> None:
    native.save(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == ["twice"]
    found = CompiledFunction.read(tmp_path / "new" / "twice")
    assert found == native
    assert found.load()(1.25, 3) == 3.75


def test_code_for_another_processor_is_not_loaded(native: CompiledFunction) -> None:
    with pytest.raises(MachineCodeError, match="another processor"):
        replace(native, cpu="i386").load()
    with pytest.raises(MachineCodeError, match="another processor"):
        replace(native, features=native.features + ",+more").load()


@given(data=st.data())
@settings(max_examples=60)
def test_damaged_code_is_not_loaded(data: st.DataObject, tmp_path_factory: Any) -> None:
    directory = tmp_path_factory.mktemp("native")
    CompiledFunction("name", "symbol", INT, INT, "cpu", "+features", bytes(range(99))).save(
        directory
    )
    content = bytearray((directory / "name").read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    (directory / "name").write_bytes(content)
    with pytest.raises(MachineCodeError, match="is damaged"):
        CompiledFunction.read(directory / "name")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    sources = tmp_path / "sources"
    sources.mkdir()
    root = Path(__file__).resolve().parents[3]
    (sources / "builder.py").write_text(BUILDER.format(root=str(root)))
    monkeypatch.setenv("PYTHONPATH", str(sources))
    return Library("builder", sources)


def test_missing_code_is_built_by_another_process(library: Library) -> None:
    assert library.built() == frozenset()
    library.build(frozenset({"one", "two"}))
    assert library.built() == {"one", "two"}
    assert CompiledFunction.read(library.directory / "two").code == b"code of two"


def test_damaged_code_is_built_again(library: Library) -> None:
    library.build(frozenset({"one", "two"}))
    path = library.directory / "one"
    path.write_bytes(path.read_bytes()[:-1])
    assert library.built() == {"two"}
    (library.directory / ".one").write_bytes((library.directory / "two").read_bytes())
    (library.directory / ".gone").symlink_to(library.directory / "nowhere")
    (library.directory / "three").write_bytes((library.directory / "two").read_bytes())
    assert library.built() == {"two"}
    library.build(frozenset({"one"}))
    assert library.built() == {"one", "two"}


def test_code_that_other_users_can_write_is_not_used(library: Library) -> None:
    library.build(frozenset({"one", "two"}))
    (library.directory / "one").chmod(0o666)
    assert library.built() == {"two"}
    (library.directory / "one").chmod(0o644)
    library.directory.chmod(0o777)
    assert library.built() == frozenset()
    with pytest.raises(MachineCodeError, match="can be written by others"):
        library.open(frozenset({"one"}))


def test_changed_sources_have_a_directory_of_their_own(library: Library) -> None:
    library.build(frozenset({"one"}))
    before = library.directory
    (library.sources / "more.py").write_text("different = True\n")
    assert library.directory != before
    assert library.built() == frozenset()


def test_a_builder_that_fails_says_why(library: Library) -> None:
    with pytest.raises(MachineCodeError, match=r"^there is no such loop$"):
        library.build(frozenset({"wrong"}))
    missing = replace(library, builder="nowhere.to.be.found")
    with pytest.raises(MachineCodeError, match="nowhere"):
        missing.build(frozenset({"one"}))


def test_files_are_for_this_user_alone_whatever_the_umask(library: Library) -> None:
    previous = os.umask(0)
    try:
        library.build(frozenset({"one"}))
    finally:
        os.umask(previous)
    assert library.built() == {"one"}


def test_a_file_of_another_version_is_not_used(library: Library) -> None:
    library.build(frozenset({"one"}))
    path = library.directory / "one"
    content = b'{"name": "one", "more": 1}\ncode'
    path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    with pytest.raises(MachineCodeError, match="by another version"):
        CompiledFunction.read(path)
    assert library.built() == frozenset()


def test_without_a_home_nothing_is_built(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    assert library.built() == frozenset()
    with pytest.raises(MachineCodeError, match="home directory"):
        library.build(frozenset({"one"}))


def test_a_cache_that_cannot_be_written_to_is_named(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CacheError, match=r"/file/mergeloom/.*cannot be written to \(Not a dir"):
        library.build(frozenset({"one"}))


def test_a_builder_that_is_killed_or_hangs_is_reported(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MachineCodeError, match="exit status -9"):
        library.build(frozenset({"killed"}))
    monkeypatch.setattr(native_module, "_TIMEOUT_SECONDS", 0.5)
    with pytest.raises(MachineCodeError, match="timed out"):
        library.build(frozenset({"hangs"}))


def test_a_builder_that_writes_nothing_is_reported(library: Library) -> None:
    with pytest.raises(MachineCodeError, match="silent cannot be read back"):
        library.build(frozenset({"silent"}))


def test_without_a_writable_cache_nothing_is_built(
    library: Library, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert library.built() == frozenset()
    with pytest.raises(MachineCodeError):
        library.build(frozenset({"one"}))


def test_code_that_cannot_be_opened_is_an_error_and_built_again(
    library: Library, native: CompiledFunction
) -> None:
    with pytest.raises(MachineCodeError, match="FileNotFoundError"):
        library.open(frozenset({"twice"}))
    native.save(library.directory)
    assert library.open(frozenset({"twice"}))["twice"](2.0, 4) == 8.0
    replace(native, cpu="i386").save(library.directory)
    assert library.built() == {"twice"}
    with pytest.raises(MachineCodeError, match="another processor"):
        library.open(frozenset({"twice"}))
    assert library.built() == frozenset()  # so it is built again
