"""CUDA device code, compiled by NVIDIA's run-time compiler and cached in the user's cache.

The compiler (NVRTC) comes with CUDA builds of torch, and as a separate package; torch itself is not
loaded. Because it is large, it runs in a separate process, once per source and kind of device.

    python -m mergeloom.engine.hardware.device_code MAJOR MINOR < SOURCE > CODE
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

from mergeloom.engine.hardware.machine_code import MachineCodeError, is_private
from mergeloom.engine.hardware.profile import cache_directory

_PATTERNS = ("libnvrtc.so*", "nvrtc64_*_0.dll")
_SYSTEM = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
# Products and sums must not be fused, so that results equal the CPU's.
_OPTIONS = (b"--fmad=false", b"--std=c++17")
_TIMEOUT_SECONDS = 120.0
_ROOT = Path(__file__).absolute().parents[__name__.count(".") if __name__ != "__main__" else 3]


def compiler() -> str | None:
    """Path of the compiler, or its name if the system finds it; ``None`` if there is none."""
    for folder in _folders():
        for pattern in _PATTERNS:
            for path in sorted(folder.glob(pattern)):
                if "builtins" not in path.name and ".alt." not in path.name:
                    return str(path)
    for name in _SYSTEM:
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return name
    return None


def _folders() -> Iterator[Path]:
    """Directories where NVIDIA's package and torch install the compiler."""
    for package, inside in (("nvidia", ("*/lib", "*/bin", "*/bin/*")), ("torch", ("lib",))):
        found = util.find_spec(package)
        for root in (found.submodule_search_locations or ()) if found else ():
            for pattern in inside:
                yield from sorted(Path(root).glob(pattern))


def device_code(source: bytes, capability: tuple[int, int]) -> bytes:
    """The compiled code of a source for a compute capability (machine code, or PTX that the driver
    compiles).

    Raises:
        MachineCodeError: it is not cached and cannot be compiled.
    """
    library = compiler()
    if library is None:
        raise MachineCodeError(
            "NVIDIA's run-time compiler is not installed: pip install 'mergeloom[cuda]', or "
            "a CUDA build of torch"
        )
    settings = repr((library, _OPTIONS, capability, Path(__file__).stat().st_size))
    digest = hashlib.sha256(source + settings.encode()).hexdigest()[:32]
    cached = cache_directory() / "cuda" / digest
    with contextlib.suppress(OSError):
        if is_private(cached) and is_private(cached.parent):
            check, _, code = cached.read_bytes().partition(b"\n")
            if hashlib.sha256(code).hexdigest().encode() == check:
                return code
    command = [sys.executable, "-m", __name__, *map(str, capability)]
    try:
        done = subprocess.run(
            command,
            cwd=_ROOT,
            input=source,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise MachineCodeError(f"NVIDIA's run-time compiler cannot be run: {error}") from error
    if done.returncode or not done.stdout:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
        raise MachineCodeError(f"NVIDIA's run-time compiler failed: {lines[-1]}")
    with contextlib.suppress(OSError):
        _store(cached, done.stdout)
    return done.stdout


def _store(path: Path, code: bytes) -> None:
    """Write code with its checksum to a file that only this user can read."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
    with open(descriptor, "wb") as file:
        file.write(hashlib.sha256(code).hexdigest().encode() + b"\n" + code)
    os.replace(temporary, path)


def compiled(library: str, source: bytes, capability: tuple[int, int]) -> bytes:
    """Compile a source: to machine code for the device or, if the compiler does not know it, to PTX
    for the newest earlier device.

    Raises:
        MachineCodeError: the compiler cannot be loaded, or rejects the source.
    """
    try:
        # It looks up this library by name, which works once it is loaded.
        for part in sorted(Path(library).parent.glob("libnvrtc-builtins.so*")):
            ctypes.CDLL(str(part), mode=ctypes.RTLD_GLOBAL)
        nvrtc = ctypes.CDLL(library)
    except OSError as error:
        raise MachineCodeError(f"'{library}' cannot be loaded: {error}") from error
    wanted = 10 * capability[0] + capability[1]
    known = [each for each in _known(nvrtc) if each <= wanted]
    if not known:
        raise MachineCodeError(f"'{library}' knows no device of compute capability {capability}")
    exactly = known[-1] == wanted
    kind = f"sm_{wanted}" if exactly else f"compute_{known[-1]}"
    program = ctypes.c_void_p()
    text = ctypes.c_char_p(source)
    _check(
        nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, None, 0, None, None), program
    )
    options = [f"--gpu-architecture={kind}".encode(), *_OPTIONS]
    given = (ctypes.c_char_p * len(options))(*options)
    _check(nvrtc, nvrtc.nvrtcCompileProgram(program, len(options), given), program)
    which = "CUBIN" if exactly else "PTX"
    size = ctypes.c_size_t()
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{which}Size")(program, ctypes.byref(size)), program)
    code = ctypes.create_string_buffer(size.value)
    _check(nvrtc, getattr(nvrtc, f"nvrtcGet{which}")(program, code), program)
    return code.raw


def _known(nvrtc: Any) -> list[int]:
    """The supported compute capabilities, ascending, as 10 · major + minor."""
    count = ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(found)
    return sorted(found)


def _check(nvrtc: Any, status: int, program: ctypes.c_void_p) -> None:
    """Raise `MachineCodeError`, with the first line of the compiler's log, if a call failed."""
    if not status:
        return
    nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
    reason = nvrtc.nvrtcGetErrorString(status).decode()
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(max(size.value, 1))
    nvrtc.nvrtcGetProgramLog(program, log)
    lines = log.value.decode(errors="replace").strip().splitlines()
    raise MachineCodeError(f"{reason}: {lines[0]}" if lines else reason)


def main(arguments: list[str]) -> int:
    """Compile standard input to standard output; returns the exit status."""
    major, minor = arguments
    library = compiler()
    if library is None:
        return 1
    try:
        code = compiled(library, sys.stdin.buffer.read(), (int(major), int(minor)))
    except MachineCodeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.buffer.write(code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
