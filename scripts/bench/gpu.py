"""Everything that is to be known about merging on a GPU, measured in a few minutes.

    scripts/run gpu --wheels .whl --out "$OUT"
    scripts/run gpu --wheels .whl --mergekit .mergekit --out "$OUT" --parts tests,first,traces
    scripts/run gpu --without-hardware 1GiB --shape small --minutes 2 --out DIR    (a rehearsal)

For a bare machine: this needs a Python with torch, and what is in the folder --wheels, which is
installed into the work directory. --mergekit is an environment that has it, or a folder of wheels.
The parts run in this order, the most telling first, each merge as a process of its own; when the
minutes are over, what is there is written, and what is not is named:

    tests    the tests that need a GPU
    first    ties, dare_ties, linear and slerp, inputs in the page cache: on the device (the better
             of two), on the CPU, both compared, and mergekit --cuda
    traces   what the device did in ties and dare_ties: launches, time by kernel, bytes over the
             bus, overlap; and what the thread did that launches
    large    the same four for the tensors of a 7B model, a few of its layers
    disk     ties and linear with inputs out of the page cache
    cores    ties, dare_ties and linear on four cores; where --device auto puts them
    others   della, arcee_fusion and passthrough; where --device auto puts them
    budgets  ties, dare_ties, linear and slerp with 2 GiB and 512 MiB of the device: the same bytes?

No part takes longer than its limit (LIMITS), so that one does not use up the time of all.
OUT/gpu.json and OUT/gpu.md are written anew after every merge. Ends with status 1 where a result is
wrong or a program failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench.configurations import configuration, model_directories
from scripts.bench.deadline import Deadline, OutOfTimeError
from scripts.bench.gpu_models import Models, make
from scripts.bench.gpu_runs import Place, Result, digests, last_json, measured, merge_command
from scripts.bench.gpu_table import problems, table
from scripts.bench.measure import Measured
from scripts.fixtures.shapes import SHAPES

FIRST = ("ties", "dare_ties", "linear", "slerp")
OTHERS = ("della", "arcee_fusion", "passthrough")
BUDGETS = ("2GiB", "512MiB")
LIMITS = {
    "tests": 60.0,
    "first": 200.0,
    "traces": 60.0,
    "large": 200.0,
    "disk": 90.0,
    "cores": 75.0,
    "others": 75.0,
    "budgets": 60.0,
}
"""The parts in their order, and the seconds that each may take."""
CORES = 4
_MOST_DIFFERING = 0.02
"""Share of bfloat16 results whose last bit may differ: where float32 results differ in theirs."""
_MOST_FLIPPED = 1e-5
"""Share that may differ by more: where a decision depends on the last bit of a score. Random
choices do not, so that other ones would show at once."""
_TESTS = ("tests/methods/test_cuda_operations.py", "-k", "real_device")
_BUILDING_SECONDS = 90.0


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
        }
        lines = [f"- {line}" for line in (*self.notes, *problems(self.results))]
        text = table(self.results, self.traces) + "\n" + "\n".join(lines) + "\n"
        for name, content in (("gpu.json", json.dumps(document, indent=1)), ("gpu.md", text)):
            partial = self.out / f".{name}"
            partial.write_text(content)
            partial.replace(self.out / name)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"gpu: {text}", flush=True)
        self.write()

    def part(self, name: str, do: Callable[[], None]) -> None:
        """Run one part within its limit."""
        limit = min(LIMITS[name], self.whole.left)
        self.place = replace(self.place, deadline=Deadline(limit))
        self.attempt(name, do)
        print(f"gpu: {name} ended after {self.whole.passed:.0f} s", flush=True)

    def attempt(self, what: str, do: Callable[[], None]) -> None:
        """Run one part; a failure is recorded, and the program continues."""
        try:
            do()
        except OutOfTimeError as error:
            self.note(f"{what}: not measured, {error}")
        except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
            self.note(f"{what}: failed, {error}")

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
        """
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
        if again and result.seconds:
            other = measured(place, replace(result, more={}), command, files, output)
            if other.seconds:
                faster, slower = sorted((result, other), key=lambda each: each.seconds or 0.0)
                result = faster
                result.more["other_seconds"] = slower.seconds
        self.results.append(result)
        if program == "mergeloom" and budget == "all" and result.seconds:
            self.digests[models.name, method] = digests(output)
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
            raise ValueError("torch has no CUDA here")
        total = own["kernel_seconds"] + own["up_seconds"] + own["down_seconds"]
        own["overlap"] = 1 - own["busy_seconds"] / total if total else None
        self.traces[key] = own
        self.write()

    def profile(self, models: Models, method: str) -> None:
        """Keep what the thread that launches did in a merge."""
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


def first(session: Session, models: Models) -> None:
    """Device, CPU, and mergekit, inputs in the page cache."""
    for method in FIRST:
        device_and_cpu(session, models, method, "page cache", again=True)
        if session.place.mergekit:
            session.merge(models, method, "page cache", "all", "mergekit")
        session.tidy()


def device_and_cpu(
    session: Session,
    models: Models,
    method: str,
    source: str,
    again: bool = False,
    auto: bool = False,
) -> None:
    """Run a merge on the device and on the CPU, and compare them; with ``auto`` once more, where
    placement puts it."""
    ours = session.merge(models, method, source, "all", again=again)
    cpu = session.merge(models, method, source, "cpu")
    if ours.seconds and cpu.seconds:
        session.attempt(f"{method}: comparison", partial(session.compare, ours))
    if auto:
        session.merge(models, method, source, "auto")


def traces(session: Session, models: Models) -> None:
    """What the device and its thread did."""
    for method in FIRST[:2]:
        session.attempt(f"{method}: profile", partial(session.profile, models, method))
        session.attempt(f"{method}: trace", partial(session.trace, models, method))


def others(session: Session, models: Models) -> None:
    """Methods that are used less."""
    for method in OTHERS:
        device_and_cpu(session, models, method, "page cache", auto=True)
        session.tidy()


def budgets(session: Session, models: Models, methods: Sequence[str]) -> None:
    """The same merges in less memory of the device: are the bytes the same?"""
    for method in methods:
        whole = session.digests.get((models.name, method))
        if whole is None:
            session.note(f"{models.name} {method}: budgets not compared, for want of a first run")
            continue
        for budget in BUDGETS:
            again = session.merge(models, method, "page cache", budget)
            output = session.output("mergeloom", budget)
            if again.seconds:
                same = digests(output) == whole
                what = f"{budget}: {'same bytes' if same else 'OTHER BYTES'}"
                again.more["check"] = {"right": same, "what": what}
            shutil.rmtree(output, ignore_errors=True)
        session.write()


def tests(session: Session) -> None:
    """The tests that need a GPU."""
    place = session.place
    command = place.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", *_TESTS)
    found = place.call(command)
    lines = found.output.strip().splitlines()
    session.facts["tests"] = {"status": found.status, "output": lines[-40:]}
    session.note(f"tests: {lines[-1] if lines else found.complaints[-200:]}")


def cores(session: Session, models: Models) -> None:
    """Device and CPU, where there are few cores for all that is done here."""
    for method in FIRST[:3]:
        device_and_cpu(session, models, method, f"page cache, {CORES} cores", auto=True)
        session.tidy()


def disk(session: Session, models: Models) -> None:
    """Inputs out of the page cache."""
    programs = [("mergeloom", "all"), ("mergeloom", "cpu")]
    programs += [("mergekit", "all")] if session.place.mergekit else []
    for program, budget in programs:
        for method in FIRST[:3:2]:
            session.merge(models, method, "disk", budget, program)
            session.tidy()


def machine() -> dict[str, Any]:
    """What can be told of the machine without the device."""
    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    with open("/proc/cpuinfo") as file:
        models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    found["processor"] = models[0] if models else platform.machine()
    found["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    smi = shutil.which("nvidia-smi")
    if smi is not None:
        fields = "name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current"
        query = [smi, f"--query-gpu={fields}", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
        found["nvidia"] = told.stdout.strip()
    return found


def install(wheels: Path, target: Path) -> Path:
    """Install the wheels of a folder, and nothing else, into ``target``.

    Raises:
        OSError: there are none, or they cannot be installed.
    """
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise OSError(f"there are no wheels in '{wheels}'")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", "--upgrade", "--target", str(target), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip().splitlines()[-1])
    return target


def _with_mergekit(place: Place, given: Path) -> Place:
    """The same that knows how mergekit is started: from an environment, or from wheels."""
    program = given / "bin" / "mergekit-yaml"
    if program.exists():
        return replace(place, mergekit=(str(program),))
    site = install(given, place.work / "mergekit-site")
    start = "import sys; from mergekit.scripts.run_yaml import main; sys.exit(main())"
    return replace(place, mergekit=(sys.executable, "-c", start), mergekit_sites=(site,))


def prepare(session: Session) -> None:
    """What the methods are, machine code (merges build what is not there), and the machine."""
    place = session.place
    listed = last_json_document(place.call(place.python("-m", "mergeloom", "methods", "--json")))
    session.described = {method["name"]: method for method in listed["methods"]}
    code = place.python("-m", "mergeloom", "prepare")
    session.attempt("machine code", lambda: _check(place.call(code, _BUILDING_SECONDS)))
    told = place.call(place.python("-m", "scripts.bench.gpu_process", "facts"))
    session.facts |= machine() | {"device": last_json(told)}
    session.note(f"prepared after {place.deadline.passed:.0f} s: {session.facts}")


def _check(found: Measured) -> None:
    """Check that a command ended well.

    Raises:
        ValueError: it did not.
    """
    if found.status != 0:
        raise ValueError((found.complaints.strip() or "no words").splitlines()[-1])


def last_json_document(found: Measured) -> dict[str, Any]:
    """What a command printed as JSON.

    Raises:
        ValueError: it failed.
    """
    _check(found)
    document: dict[str, Any] = json.loads(found.output)
    return document


def steps(
    session: Session, options: argparse.Namespace
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The requested parts, in order."""
    parts, made = options.parts.split(","), dict[str, Models]()

    def usual() -> Models:
        if "usual" not in made:
            made["usual"] = make(session.place, options.shape, options.shape, None)
        return made["usual"]

    def large() -> None:
        name = f"{options.large} ({options.layers} layers)"
        first(session, make(session.place, name, options.large, options.layers))

    todo: dict[str, Callable[[], None]] = {
        "tests": lambda: tests(session),
        "first": lambda: first(session, usual()),
        "traces": lambda: traces(session, usual()),
        "large": large,
        "disk": lambda: disk(session, usual()),
        "cores": lambda: cores(session, usual()),
        "others": lambda: others(session, usual()),
        "budgets": lambda: budgets(session, usual(), FIRST),
    }
    yield from ((part, todo[part]) for part in LIMITS if part in parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    options = _parser().parse_args(arguments)
    unknown = set(options.parts.split(",")) - set(LIMITS)
    if unknown:
        print(f"gpu: no part '{unknown.pop()}': there are {', '.join(LIMITS)}", file=sys.stderr)
        return 2
    deadline = Deadline(60 * options.minutes)
    work = Path(options.work or tempfile.mkdtemp(prefix="mergeloom-gpu-")).resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        place = Place(work, deadline, fake=options.without_hardware)
        if options.wheels is not None:
            site = install(options.wheels, work / "site")
            sys.path.insert(0, str(site))
            place = replace(place, sites=(site,))
        if options.mergekit is not None:
            place = _with_mergekit(place, options.mergekit)
        session = Session(place, options.out.resolve())
        session.attempt("preparation", lambda: prepare(session))
        for part, do in steps(session, options):
            session.part(part, do)
        session.write()
    except OSError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 1
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print((session.out / "gpu.md").read_text())
    wrong = [r for r in session.results if not r.more.get("check", {"right": True})["right"]]
    failed = [r for r in session.results if r.wrong and not r.wrong.startswith("out of time")]
    return 1 if wrong or failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the figures")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="wheels to install first")
    parser.add_argument("--mergekit", type=Path, metavar="DIR", help="environment, or wheels")
    parser.add_argument("--work", metavar="DIR", help="for all else, kept; default a temporary one")
    parser.add_argument("--minutes", type=float, default=8.0, metavar="N", help="default 8")
    parser.add_argument("--parts", default=",".join(LIMITS), metavar="NAMES", help="default all")
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--large", choices=list(SHAPES), default="7b", metavar="SHAPE")
    parser.add_argument("--layers", type=int, default=8, metavar="N", help="of the large shape")
    parser.add_argument(
        "--without-hardware", type=_bytes, metavar="SIZE", help="a device that is the CPU"
    )
    return parser


def _bytes(text: str) -> int:
    from mergeloom.report.units import parse_size

    return parse_size(text)


if __name__ == "__main__":
    sys.exit(main())
