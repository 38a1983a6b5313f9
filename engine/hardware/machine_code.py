"""Compiled functions, cached as machine code in the user's cache directory.

The compiler is large and slow to start. So it runs in separate processes, once, before a merge
takes any memory; loading its output takes a few milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import platform
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.versions import version_of
from mergeloom.engine.hardware.profile import cache_directory

if TYPE_CHECKING:
    from llvmlite import binding

INT, FLOAT, NOTHING = "i", "d", "v"
"""Types of arguments and results, 64 bits each; addresses are integers."""

_TYPES = {INT: ctypes.c_int64, FLOAT: ctypes.c_double, NOTHING: None}

_COMPILER_PACKAGES = ("numba", "llvmlite")

_ROOT = Path(__file__).absolute().parents[__name__.count(".")]
"""Location of the packages, so that another process imports the same ones."""

_MAX_COMPILERS = 4
"""Maximum number of compilers running at once; each takes several hundred megabytes."""

_TIMEOUT_SECONDS = 600.0
"""Seconds after which a compiler is stopped."""

Function = Callable[..., Any]


class MachineCodeError(Exception):
    """Machine code cannot be compiled or used here; the message is one line."""


class CacheError(MachineCodeError):
    """The cache cannot be written to."""


@dataclass(frozen=True)
class CompiledFunction:
    """The machine code of one function: its name, entry symbol, types of arguments and result, and
    the processor it is compiled for."""

    name: str
    symbol: str
    arguments: str
    result: str
    cpu: str
    features: str
    code: bytes

    def save(self, directory: Path) -> None:
        """Write it atomically to its file in ``directory``."""
        about = {key: value for key, value in asdict(self).items() if key != "code"}
        content = json.dumps(about).encode() + b"\n" + self.code
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(
            prefix=".", dir=directory
        )  # only this user can read it
        try:
            with open(descriptor, "wb") as file:
                file.write(_digest(content) + b"\n" + content)
            os.replace(temporary, directory / self.name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise

    @staticmethod
    def read(path: Path) -> CompiledFunction:
        """Read a file written by `save`.

        Raises:
            MachineCodeError: it is damaged, writable by others, or something else.
            OSError: it cannot be read.
        """
        for each in (path, path.parent):
            if not is_private(each):
                raise MachineCodeError(f"'{each}' can be written by others")
        digest, _, content = path.read_bytes().partition(b"\n")
        if digest != _digest(content):
            raise MachineCodeError(f"'{path}' is damaged")
        about, _, code = content.partition(b"\n")
        try:
            found = CompiledFunction(code=code, **json.loads(about))
        except (TypeError, ValueError) as error:
            raise MachineCodeError(f"'{path}' was written by another version") from error
        if found.name != path.name:
            raise MachineCodeError(f"'{path}' contains '{found.name}'")
        return found

    def load(self) -> Function:
        """Load the function; it is called with numbers.

        Raises:
            MachineCodeError: it was compiled for another processor.
        """
        from llvmlite import binding

        if (self.cpu, self.features) != host_processor():
            raise MachineCodeError(f"'{self.name}' was compiled for another processor")
        engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target_machine())
        engine.add_object_file(binding.ObjectFileRef.from_data(self.code))
        engine.finalize_object()
        types: list[Any] = [_TYPES[kind] for kind in (self.result, *self.arguments)]
        called = ctypes.CFUNCTYPE(*types)(engine.get_function_address(self.symbol))
        called.belongs_to = engine  # type: ignore[attr-defined]  # keeps the engine alive
        return called


@dataclass(frozen=True)
class Library:
    """Functions that a module compiles; ``sources`` is the folder of their source code.

    Run as a program with a directory and names, ``builder`` saves a `CompiledFunction` for each
    name there.
    """

    builder: str
    sources: Path

    @property
    def directory(self) -> Path:
        """Directory of the machine code for this version and machine."""
        digest = hashlib.sha256()
        for path in (Path(__file__), *sorted(self.sources.glob("*.py"))):
            digest.update(path.read_bytes())
        digest.update(repr((*map(version_of, _COMPILER_PACKAGES), _processor())).encode())
        return cache_directory() / "loops" / digest.hexdigest()[:32]

    def built(self) -> frozenset[str]:
        """The names of the functions whose machine code is cached and undamaged."""
        found = set()
        with contextlib.suppress(OSError, RuntimeError):
            for path in self.directory.iterdir():
                with contextlib.suppress(MachineCodeError, OSError):
                    found.add(CompiledFunction.read(path).name)
        return frozenset(found)

    def build(self, names: frozenset[str]) -> None:
        """Compile functions in other processes, a few at a time.

        Raises:
            MachineCodeError: it failed.
        """
        try:
            directory = self.directory
            _check_writable(directory)
            processes = max(1, min(len(names), os.cpu_count() or 1, _MAX_COMPILERS))
            ordered = sorted(names)
            with ThreadPoolExecutor(processes) as threads:
                parts = [ordered[number::processes] for number in range(processes)]
                for done in [threads.submit(self._compile, directory, part) for part in parts]:
                    done.result()
        except subprocess.CalledProcessError as error:
            output = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
            raise MachineCodeError(output[-1]) from error
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise MachineCodeError(_one_line(error)) from error
        missing = names - self.built()
        if missing:
            raise MachineCodeError(
                f"{', '.join(sorted(missing))} cannot be read back from '{directory}'"
            )

    def _compile(self, directory: Path, names: Sequence[str]) -> None:
        subprocess.run(
            [sys.executable, "-m", self.builder, str(directory), *names],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_TIMEOUT_SECONDS,
            text=True,
        )

    def open(self, names: frozenset[str]) -> dict[str, Function]:
        """The functions with these names.

        Raises:
            MachineCodeError: they are missing, or cannot be used.
        """
        try:
            return {name: _loaded(self.directory / name) for name in sorted(names)}
        except (OSError, RuntimeError, ValueError) as error:
            raise MachineCodeError(_one_line(error)) from error


def _check_writable(directory: Path) -> None:
    """Make a directory, and check that files can be stored there.

    Raises:
        CacheError: they cannot.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise CacheError(f"'{directory}' cannot be written to ({error.strerror})") from error


def is_private(path: Path) -> bool:
    """Whether only this user and root can write there."""
    found = path.stat()
    own = not hasattr(os, "geteuid") or found.st_uid in (os.geteuid(), 0)
    return own and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _loaded(path: Path) -> Function:
    compiled = CompiledFunction.read(path)
    try:
        return compiled.load()
    except MachineCodeError:
        path.unlink()  # so that it is built again
        raise


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def host_processor() -> tuple[str, str]:
    """This processor and its features, in the compiler's terms."""
    from llvmlite import binding

    return str(binding.get_host_cpu_name()), str(binding.get_host_cpu_features().flatten())


def target_machine() -> binding.TargetMachine:
    """The compiler target for this processor."""
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    cpu, features = host_processor()
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


def _processor() -> str:
    """Text that differs between processors that need different code; does not load the compiler."""
    keys = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
    try:
        with open("/proc/cpuinfo") as file:
            lines = file.read().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join([platform.machine(), *(line for line in lines if line.startswith(keys))])
