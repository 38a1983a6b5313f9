"""The results of `scripts/run gpu`: merges that are run, compared and written as they come."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scripts.bench.configurations import configuration, model_directories
from scripts.bench.deadline import Deadline, OutOfTimeError
from scripts.bench.gpu_models import Models
from scripts.bench.gpu_runs import (
    LEAST_SECONDS,
    MOST_SECONDS,
    Place,
    Result,
    digests,
    last_json,
    measured,
    merge_command,
)
from scripts.bench.gpu_table import page

CORES = min(4, os.cpu_count() or 1)
"""Where few are used."""
_MOST_DIFFERING = 0.02
"""Share of bfloat16 results whose last bit may differ: where float32 results differ in theirs."""
_MOST_FLIPPED = 1e-5
"""Share that may differ by more: where a decision depends on the last bit of a score. Random
choices do not, so that other ones would show at once."""


class Session:
    """The results, and where they are written."""

    def __init__(self, place: Place, out: Path) -> None:
        self.place = place
        self.whole = place.deadline
        self.out = out
        self.facts: dict[str, Any] = {}
        self.results: list[Result] = []
        self.traces: dict[str, dict[str, Any]] = {}
        self.profiles: dict[str, dict[str, Any]] = {}
        self.notes: list[str] = []
        self.failures: list[str] = []
        self.described: dict[str, dict[str, Any]] = {}
        self.digests: dict[tuple[str, str], dict[str, str]] = {}

    def write(self) -> None:
        """Write the results so far."""
        self.out.mkdir(parents=True, exist_ok=True)
        document = {
            "facts": self.facts,
            "passed_seconds": self.whole.passed,
            "results": [asdict(each) for each in self.results],
            "traces": self.traces,
            "profiles": self.profiles,
            "notes": self.notes,
            "failures": self.failures,
        }
        notes = [*self.notes, *(f"FAILED: {each}" for each in self.failures)]
        emulated = self.place.fake is not None
        text = page(self.facts, self.results, self.traces, self.profiles, notes, emulated)
        for name, content in (("gpu.json", json.dumps(document, indent=1)), ("gpu.md", text)):
            partial = self.out / f".{name}"
            partial.write_text(content)
            partial.replace(self.out / name)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"gpu: {text}", flush=True)
        self.write()

    def fail(self, text: str) -> None:
        """Record a fault; the program will end with status 1."""
        self.failures.append(text)
        print(f"gpu: FAILED: {text}", flush=True)
        self.write()

    def part(self, name: str, seconds: float, do: Callable[[], None]) -> None:
        """Run one part, for at most ``seconds``."""
        limit = min(seconds, self.whole.left)
        self.place = replace(self.place, deadline=Deadline(limit))
        self.attempt(name, do)
        print(f"gpu: {name}: {self.place.deadline.passed:.0f} s", flush=True)

    def attempt(self, what: str, do: Callable[[], None]) -> None:
        """Run one part; a failure is recorded, and the program continues."""
        try:
            do()
        except OutOfTimeError as error:
            self.note(f"{what}: ended early, {error}")
        except Exception as error:
            self.fail(f"{what}: {type(error).__name__}: {error}")

    def merge(
        self,
        models: Models,
        method: str,
        source: str,
        budget: str,
        program: str = "mergeloom",
        again: bool = False,
    ) -> Result:
        """Run one merge, and keep its output where another is compared with it.

        With ``again`` it runs twice, and the faster run counts.

        Raises:
            OutOfTimeError: there is no time to begin.
        """
        self.place.deadline.within(MOST_SECONDS, LEAST_SECONDS)
        result = Result(models.name, source, method, program, budget)
        place, output = self.place, self.output(program, budget)
        config = self.config(models, method)
        document = json.loads(config.read_text())
        files = [f for d in model_directories(document) for f in sorted(d.glob("*.safetensors"))]
        command = merge_command(place, config, output, budget)
        if program == "mergekit":
            command = [*place.mergekit, str(config), str(output), "--quiet"]
            command += ["--cuda"] if place.fake is None else []
        if source.endswith(" cores"):
            command = ["taskset", "-c", f"0-{CORES - 1}", *command]
        measured(place, result, command, files, output)
        if program == "mergeloom" and budget == "all" and result.seconds:
            self.digests[models.name, method] = digests(output)
        if again and result.seconds:
            other = measured(place, replace(result, more={}), command, files, output)
            if other.seconds:
                faster, slower = sorted((result, other), key=lambda each: each.seconds or 0.0)
                result = faster
                result.more["other_seconds"] = slower.seconds
        self.results.append(result)
        took = f"{result.seconds:.1f} s" if result.seconds is not None else result.wrong
        print(f"gpu: {models.name} {source} {method} {program} {budget}: {took}", flush=True)
        self.write()
        return result

    def output(self, program: str, budget: str) -> Path:
        return self.place.work / f"out-{program}-{budget}"

    def tidy(self) -> None:
        """Remove all outputs."""
        for path in self.place.work.glob("out-*"):
            shutil.rmtree(path, ignore_errors=True)

    def trace(self, models: Models, method: str) -> None:
        """Find out what the device, and the thread that launches, did in a merge; both runs take
        longer than the merge."""
        key = f"{models.name} {method}"
        own = self._looked_at("trace", models, method)["traffic"]
        if own is None:
            self.note(f"{method}: no trace, because torch has no CUDA here")
            return
        total = own["kernel_seconds"] + own["up_seconds"] + own["down_seconds"]
        own["overlap"] = 1 - own["busy_seconds"] / total if total else None
        self.traces[key] = own
        self.write()

    def profile(self, models: Models, method: str) -> None:
        """Profile the thread that launches work in a merge."""
        self.profiles[f"{models.name} {method}"] = self._looked_at("profile", models, method)
        self.write()

    def _looked_at(self, what: str, models: Models, method: str) -> dict[str, Any]:
        place, output = self.place, self.place.work / "out-traced"
        shutil.rmtree(output, ignore_errors=True)
        given = [str(self.config(models, method)), str(output), place.device]
        if place.fake is not None:
            given = ["--without-hardware", str(place.fake), *given]
        found = place.call(place.python("-m", "scripts.bench.gpu_process", what, *given))
        shutil.rmtree(output, ignore_errors=True)
        document = last_json(found)
        if not document:
            raise ValueError((found.complaints.strip() or "no words").splitlines()[-1])
        return document

    def config(self, models: Models, method: str) -> Path:
        """Write the configuration of a method; returns its path."""
        found = self.place.work / f"{models.name}-{method}.yml"
        document = configuration(self.described[method], models.base, models.tunes, models.layers)
        found.write_text(json.dumps(document))
        return found

    def compare(self, result: Result) -> None:
        """Compare the output of a device with that of the CPU."""
        one, other = self.output("mergeloom", "all"), self.output("mergeloom", "cpu")
        place = self.place
        program = place.python("-m", "scripts.bench.gpu_process", "compare", str(one), str(other))
        found = last_json(place.call(program))
        if not found:
            raise ValueError("the outputs cannot be compared")
        elements, beyond = max(found["elements"], 1), found["beyond_one_step"]
        share = found["differing"] / elements
        right = beyond / elements <= _MOST_FLIPPED and share <= _MOST_DIFFERING
        what = f"cpu: {share:.2%} differ by one step, {beyond} elements by more"
        result.more["check"] = {"right": right, "what": what, **found}
        self.write()
