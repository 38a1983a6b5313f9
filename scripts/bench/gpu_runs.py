"""One merge of `scripts/run gpu`: command, time and kept results."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.bench.deadline import Deadline, OutOfTimeError
from scripts.bench.device_memory import DeviceMemory
from scripts.bench.measure import Measured, StoppedError, cool, run, warm_up
from scripts.fixtures.environment import ROOT

MOST_SECONDS = 60.0
LEAST_SECONDS = 4.0
FINISHED = Path(".mergeloom") / "manifest.json"
"""A file that only a finished output has."""


@dataclass(frozen=True)
class Place:
    """Where merges run: programs, folders, and the remaining time.

    ``sites`` are folders of Python packages that were installed for this; ``fake`` the bytes of a
    device without hardware, if there is to be one. Limits of single processes are multiplied by
    ``slower``.
    """

    work: Path
    deadline: Deadline
    sites: tuple[Path, ...] = ()
    mergekit: tuple[str, ...] = ()
    mergekit_sites: tuple[Path, ...] = ()
    device: str = "cuda"
    fake: int | None = None
    slower: float = 1.0

    def variables(self, sites: Sequence[Path] = ()) -> dict[str, str]:
        """The environment of a process."""
        path = os.pathsep.join(map(str, (*(sites or self.sites), ROOT)))
        return {
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
            "XDG_CACHE_HOME": str(self.work / "cache"),
        }

    def call(
        self, command: Sequence[str], most: float = MOST_SECONDS, sites: Sequence[Path] = ()
    ) -> Measured:
        """Run a command within the remaining time, for ``most`` times ``slower`` seconds at most.

        Raises:
            OutOfTimeError: there was not enough.
        """
        allowed = self.deadline.within(most * self.slower, LEAST_SECONDS)
        own = Deadline(allowed)
        try:
            return run(
                command,
                variables=self.variables(sites),
                check=lambda: None if own.left else f"it took more than {allowed:.0f} s",
            )
        except StoppedError as error:
            raise OutOfTimeError(str(error)) from error

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, *arguments]


@dataclass
class Result:
    """A run, or why it failed; sizes in bytes, times in seconds."""

    shape: str
    source: str
    method: str
    program: str
    budget: str
    seconds: float | None = None
    peak_bytes: int | None = None
    device_peak_bytes: int | None = None
    wrong: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


def merge_command(place: Place, config: Path, output: Path, budget: str) -> list[str]:
    """mergeloom's command for a ``budget``: ``cpu``, ``auto``, ``all``, or bytes of the device."""
    given = [str(config), str(output)]
    given += ["--device", budget if budget in ("cpu", "auto") else place.device]
    if budget not in ("cpu", "auto", "all"):
        given += ["--vram", budget]
    if place.fake is not None and budget != "cpu":
        faked = ["--without-hardware", str(place.fake)]
        return place.python("-m", "scripts.bench.gpu_process", "merge", *faked, *given, "--json")
    return place.python("-m", "mergeloom", "merge", *given, "--quiet", "--json")


def measured(
    place: Place, result: Result, command: Sequence[str], files: Iterable[Path], output: Path
) -> Result:
    """``result`` with what running ``command`` took, its inputs in the page cache or out of it."""
    shutil.rmtree(output, ignore_errors=True)
    chosen = list(files)
    sites = place.mergekit_sites if result.program == "mergekit" else ()
    try:
        if result.source == "disk":
            cool(chosen)
        else:
            warm_up(chosen)
        with DeviceMemory() as device:
            found = place.call(command, sites=sites)
    except OutOfTimeError as error:
        result.wrong = f"out of time: {error}"
        return result
    if found.status != 0:
        words = (found.complaints.strip() or found.output.strip()).splitlines()
        result.wrong = f"status {found.status}: {words[-1] if words else 'no words'}"
        return result
    result.seconds, result.peak_bytes = found.seconds, found.peak_bytes
    result.device_peak_bytes = device.peak_bytes
    if result.program == "mergeloom":
        _told(result, found.output)
    return result


def _told(result: Result, output: str) -> None:
    """Record facts of mergeloom's report that are not in the table."""
    report: dict[str, Any] = json.JSONDecoder().raw_decode(output.strip())[0]
    kept = ("placement", "wall_seconds", "measured", "run_warnings")
    result.more |= {key: report[key] for key in kept}
    there = sum(each["merges"] for each in report["placement"] if each["device"] != "cpu")
    if result.budget == "auto":
        chosen = {each["device"] for each in report["placement"]} - {"cpu"}
        what = f"auto: {', '.join(sorted(chosen)) or 'cpu'}"
        result.more["check"] = {"right": True, "what": what}
    elif result.budget != "cpu" and not there and result.method != "passthrough":
        result.wrong = "nothing was computed on the device"


def digests(output: Path) -> dict[str, str]:
    """The digests of an output's tensors."""
    manifest = json.loads((output / FINISHED).read_text())
    return {each["name"]: each["digest"] for each in manifest["tensors"]}


def last_json(found: Measured) -> dict[str, Any]:
    """The last document that a process printed."""
    lines = found.output.strip().splitlines()
    document: dict[str, Any] = json.loads(lines[-1]) if found.status == 0 and lines else {}
    return document
