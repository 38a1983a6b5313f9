"""Measure raw I/O: read and write as many bytes as a merge, and compute nothing.

    scripts/run floor --read A/model.safetensors --read B/model.safetensors --write OUT \
        [--read-bytes N] [--write-bytes N]

Threads read the input files and write one output file, each request with its own buffer. Reads and
writes are interleaved as in a merge, and the output is durable at the end. Direct and buffered
files, several request sizes, several numbers of requests in flight, and output blocks reserved or
not are tried on a cold page cache; the fastest combination is the floor. Needs neither numpy nor
torch.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from scripts.bench.measure import cool

MIB = 1 << 20
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """How bytes are moved: direct or buffered, bytes of a request, number of threads, and whether
    the output's blocks are reserved first.
    """

    direct: bool
    request: int
    flight: int
    preallocate: bool

    def __str__(self) -> str:
        how = "direct" if self.direct else "buffered"
        where = "into reserved blocks" if self.preallocate else "into a growing file"
        return f"{how}, {self.request // MIB} MiB, {self.flight} in flight, {where}"


@dataclass(frozen=True, slots=True)
class Floor:
    """The best time in seconds, and its settings."""

    seconds: float
    settings: Settings
    read_bytes: int
    write_bytes: int


class _Request(NamedTuple):
    fd: int
    position: int
    length: int
    writes: bool


def floor(
    inputs: Sequence[Path],
    output: Path,
    read_bytes: int,
    write_bytes: int,
    *,
    repeat: int = 1,
    flights: Sequence[int] = (2, 4, 8),
    requests: Sequence[int] = (4, 16),
) -> Floor:
    """Find the fastest way to read ``read_bytes`` of ``inputs`` and write ``write_bytes``.

    Each input contributes bytes in proportion to its size. ``output`` is removed afterwards. First
    direct and buffered requests of 8 MiB are tried with each of ``flights`` in flight; then
    ``requests`` of other sizes, in MiB, in the better mode; then with and without reserving blocks.
    The best settings are measured ``repeat`` times, and the shortest time counts.

    Raises:
        OSError: a file cannot be read or written.
    """
    tried: list[Floor] = []

    def attempt(settings: Settings) -> None:
        with suppress(_RefusedError):
            seconds = moved(inputs, output, read_bytes, write_bytes, settings)
            tried.append(Floor(seconds, settings, read_bytes, write_bytes))

    def best() -> Floor:
        return min(tried, key=lambda result: result.seconds)

    for direct in (True, False):
        for flight in flights:
            attempt(Settings(direct, 8 * MIB, flight, preallocate=direct))
    found = best().settings
    for request in requests:
        attempt(replace(found, request=request * MIB))
    found = best().settings
    attempt(replace(found, preallocate=not found.preallocate))
    for _ in range(repeat - 1):
        attempt(best().settings)
    return best()


class RawIO:
    """Moves as many bytes as a merge, always in the way that was fastest for the first merge."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.settings: Settings | None = None

    def seconds(self, files: Sequence[Path], told: Mapping[str, int]) -> float:
        """Move the bytes that a merge of ``files`` says it moved."""
        moving = files, self.output, told["read_bytes"], told["write_bytes"]
        if self.settings is None:
            self.settings = floor(*moving, flights=(4, 8), requests=()).settings
        return moved(*moving, self.settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    parser = argparse.ArgumentParser(prog="run floor", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--read",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="an input; repeatable",
    )
    parser.add_argument(
        "--write", type=Path, required=True, metavar="FILE", help="the output; removed at the end"
    )
    parser.add_argument(
        "--read-bytes", type=int, metavar="N", help="bytes to read [default: size of all inputs]"
    )
    parser.add_argument(
        "--write-bytes", type=int, metavar="N", help="bytes to write [default: mean input size]"
    )
    parser.add_argument(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="runs with the best settings [default: 1]",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    try:
        size = sum(path.stat().st_size for path in options.read)
        found = floor(
            options.read,
            options.write,
            size if options.read_bytes is None else options.read_bytes,
            size // len(options.read) if options.write_bytes is None else options.write_bytes,
            repeat=options.repeat,
        )
    except OSError as error:
        print(f"floor: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(asdict(found)))
    else:
        moved = found.read_bytes + found.write_bytes
        print(f"{found.seconds:.2f} s, {moved / found.seconds / 1e6:.0f} MB/s ({found.settings})")
    return 0


class _RefusedError(Exception):
    """The file system does not support direct requests."""


def moved(
    inputs: Sequence[Path], output: Path, read_bytes: int, write_bytes: int, settings: Settings
) -> float:
    """Move the bytes once as ``settings`` say, with a cold page cache; return the seconds.

    ``output`` is removed afterwards.

    Raises:
        OSError: a file cannot be read or written.
    """
    output.unlink(missing_ok=True)
    cool(inputs)
    began = time.perf_counter()
    try:
        _move(inputs, output, read_bytes, write_bytes, settings)
        return time.perf_counter() - began
    finally:
        output.unlink(missing_ok=True)


def _move(
    inputs: Sequence[Path], output: Path, read_bytes: int, write_bytes: int, settings: Settings
) -> None:
    direct = os.O_DIRECT if settings.direct else 0
    opened: list[int] = []
    try:
        try:
            opened.extend(os.open(path, os.O_RDONLY | direct) for path in inputs)
            target = os.open(output, os.O_RDWR | os.O_CREAT | direct, 0o644)
        except OSError as error:
            if direct:
                raise _RefusedError from error
            raise
        opened.append(target)
        if write_bytes and settings.preallocate:
            os.posix_fallocate(target, 0, write_bytes)
        sizes = [os.fstat(fd).st_size for fd in opened[:-1]]
        shares = [read_bytes * size // max(1, sum(sizes)) for size in sizes]
        parts = list(zip(opened, shares, sizes, strict=False))
        reads = _requests(parts, settings.request, False)
        writes = _requests([(target, write_bytes, write_bytes)], settings.request, True)
        _serve(_interleaved(reads, writes), settings)
        os.ftruncate(target, write_bytes)
        os.fdatasync(target)
    finally:
        for fd in opened:
            os.close(fd)


def _requests(parts: Sequence[tuple[int, int, int]], request: int, writes: bool) -> list[_Request]:
    """Requests for the given number of bytes of each file; the files take turns, as in a merge.

    A number larger than the file's size starts again at its beginning, because a merge reads inputs
    again that do not stay in memory.
    """
    found = []
    for fd, length, size in parts:
        done = 0
        while done < length:
            position = done % size
            nbytes = min(request, length - done, size - position)
            found.append((done / length, _Request(fd, position, nbytes, writes)))
            done += nbytes
    return [each for _, each in sorted(found, key=lambda item: item[0])]


def _interleaved(reads: list[_Request], writes: list[_Request]) -> list[_Request]:
    turns = [((number + 0.5) / len(reads), request) for number, request in enumerate(reads)]
    turns += [((number + 1.0) / len(writes), request) for number, request in enumerate(writes)]
    return [request for _, request in sorted(turns, key=lambda item: item[0])]


def _serve(requests: list[_Request], settings: Settings) -> None:
    """Carry out requests in order, ``flight`` of them at a time."""
    waiting: Iterator[_Request] = iter(requests)
    lock = threading.Lock()
    errors: list[OSError] = []

    def work() -> None:
        with mmap.mmap(-1, settings.request) as block, memoryview(block) as memory:
            while not errors:
                with lock:
                    request = next(waiting, None)
                if request is None:
                    return
                try:
                    _carry_out(request, memory, settings.direct)
                except OSError as error:
                    errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(settings.flight)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _carry_out(request: _Request, memory: memoryview, direct: bool) -> None:
    length = -(-request.length // _PAGE) * _PAGE if direct else request.length
    call = os.pwritev if request.writes else os.preadv
    done = 0
    while done < request.length:
        with memory[done:length] as rest:
            count = call(request.fd, [rest], request.position + done)
        if count == 0:
            return
        done += count
