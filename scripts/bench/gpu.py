"""Measure merging on a GPU in a few minutes.

    scripts/run gpu --wheels .whl --out "$OUT"
    scripts/run gpu --wheels .whl --mergekit .mergekit --out "$OUT" --parts tests,first,traces
    scripts/run gpu --without-hardware 1GiB --shape tiny --large small --layers 2 --out DIR

The last one is a rehearsal: this machine's processor acts as the device, so times mean nothing.
With --minutes 30 --slower 4, every part finishes there.

It needs a Python with torch, and installs the wheels in the folder --wheels into its work
directory. --mergekit is an environment with mergekit, or a folder of its wheels. Each merge is a
process of its own. Parts run in this order, the most informative first; when the time is over, the
results so far are written, and unfinished parts are named:

    tests    the tests that need a GPU
    first    ties, dare_ties, linear and slerp, inputs in the page cache: on the device (the better
             of two), on the CPU, both compared, and mergekit --cuda
    traces   what the device did in ties and dare_ties: launches, time by kernel, bytes over the
             bus, overlap; and what the launching thread did
    large    the same four for the tensors of a 7B model, a few of its layers; mergekit at the end
    cores    ties, dare_ties and linear on four cores; where --device auto puts them
    others   della, arcee_fusion and passthrough; where --device auto puts them
    disk     ties and linear with inputs out of the page cache
    budgets  ties, dare_ties, linear and slerp with 2 GiB and 512 MiB of the device: the same bytes?

Each part has a time limit (LIMITS), so that none uses up the time of the others. OUT/gpu.json and
OUT/gpu.md are updated after every merge. The exit status is 1 if a result is wrong or a program
failed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from scripts.bench.deadline import Deadline
from scripts.bench.gpu_models import Models, make
from scripts.bench.gpu_runs import FINISHED, Place, digests, last_json
from scripts.bench.gpu_session import CORES, Session
from scripts.bench.measure import Measured, machine
from scripts.fixtures.shapes import SHAPES

FIRST = ("ties", "dare_ties", "linear", "slerp")
OTHERS = ("della", "arcee_fusion", "passthrough")
BUDGETS = ("2GiB", "512MiB")
LIMITS = {
    "tests": 60.0,
    "first": 200.0,
    "traces": 60.0,
    "large": 130.0,
    "cores": 60.0,
    "others": 45.0,
    "disk": 60.0,
    "budgets": 60.0,
}
"""The parts in order, each with its time limit in seconds."""
_TESTS = "tests/methods/test_cuda_operations.py"
_BUILDING_SECONDS = 90.0


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
    session.merge(models, method, source, "cpu")
    if all((session.output("mergeloom", each) / FINISHED).exists() for each in ("all", "cpu")):
        session.attempt(f"{method}: comparison", partial(session.compare, ours))
    if auto:
        session.merge(models, method, source, "auto")


def large(session: Session, models: Models) -> None:
    """The same merges of larger tensors, inputs in the page cache."""
    for method in FIRST:
        device_and_cpu(session, models, method, "page cache")
        session.tidy()
    if session.place.mergekit:
        for method in FIRST:
            session.merge(models, method, "page cache", "all", "mergekit")
            session.tidy()


def traces(session: Session, models: Models) -> None:
    """Trace the device and the thread that launches its work."""
    for method in FIRST[:2]:
        session.attempt(f"{method}: profile", partial(session.profile, models, method))
        session.attempt(f"{method}: trace", partial(session.trace, models, method))


def others(session: Session, models: Models) -> None:
    """Less common methods."""
    for method in OTHERS:
        device_and_cpu(session, models, method, "page cache", auto=True)
        session.tidy()


def budgets(session: Session, models: Models, methods: Sequence[str]) -> None:
    """Check that merges with less device memory give the same bytes."""
    for method in methods:
        if (models.name, method) not in session.digests:
            session.merge(models, method, "page cache", "all")
            session.tidy()
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
    """The tests that need a GPU; without hardware, those of the same code on this processor."""
    place = session.place
    chosen = "real_device" if place.fake is None else "every_method_agrees"
    command = place.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", _TESTS)
    found = place.call([*command, "-k", chosen], place.deadline.left)
    lines = found.output.strip().splitlines()
    session.facts["tests"] = {"status": found.status, "output": lines[-40:]}
    last = lines[-1] if lines else found.complaints[-200:]
    if found.status or "passed" not in last or "skipped" in last:
        session.fail(f"tests: {last}")
    else:
        session.note(f"tests: {last}")


def cores(session: Session, models: Models) -> None:
    """Device and CPU on few cores."""
    for method in FIRST[:3]:
        device_and_cpu(session, models, method, f"page cache, {CORES} cores", auto=True)
        session.tidy()


def disk(session: Session, models: Models) -> None:
    """Merges whose inputs are not in the page cache."""
    programs = [("mergeloom", "all"), ("mergeloom", "cpu")]
    programs += [("mergekit", "all")] if session.place.mergekit else []
    for program, budget in programs:
        for method in FIRST[:3:2]:
            session.merge(models, method, "disk", budget, program)
            session.tidy()


def nvidia() -> dict[str, str]:
    """The driver's description of the device."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return {}
    fields = "name,driver_version,memory.total,pcie.link.gen.current,pcie.link.width.current"
    query = [smi, f"--query-gpu={fields}", "--format=csv,noheader"]
    told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return {"nvidia": told.stdout.strip()}


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
    """``place`` with the command that starts mergekit, from an environment or from wheels."""
    program = given / "bin" / "mergekit-yaml"
    if program.exists():
        return replace(place, mergekit=(str(program),))
    site = install(given, place.work / "mergekit-site")
    start = "import sys; from mergekit.scripts.run_yaml import main; sys.exit(main())"
    return replace(place, mergekit=(sys.executable, "-c", start), mergekit_sites=(site,))


def prepare(session: Session) -> None:
    """List the methods, build machine code (else merges build it), and describe the machine."""
    place = session.place
    listed = last_json_document(place.call(place.python("-m", "mergeloom", "methods", "--json")))
    session.described = {method["name"]: method for method in listed["methods"]}
    code = place.python("-m", "mergeloom", "prepare")
    session.attempt("machine code", lambda: _check(place.call(code, _BUILDING_SECONDS)))
    told = place.call(place.python("-m", "scripts.bench.gpu_process", "facts"))
    session.facts |= machine() | nvidia() | {"device": last_json(told)}
    session.note(f"prepared after {place.deadline.passed:.0f} s")
    if not session.facts["device"].get("title") and place.fake is None:
        session.fail("torch finds no CUDA device")


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

    def larger() -> Models:
        name = f"{options.large} ({options.layers} layers)"
        return make(session.place, name, options.large, options.layers)

    todo: dict[str, Callable[[], None]] = {
        "tests": lambda: tests(session),
        "first": lambda: first(session, usual()),
        "traces": lambda: traces(session, usual()),
        "large": lambda: large(session, larger()),
        "cores": lambda: cores(session, usual()),
        "others": lambda: others(session, usual()),
        "disk": lambda: disk(session, usual()),
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
        place = Place(work, deadline, fake=options.without_hardware, slower=options.slower)
        if options.wheels is not None:
            site = install(options.wheels, work / "site")
            sys.path.insert(0, str(site))
            place = replace(place, sites=(site,))
        if options.mergekit is not None:
            place = _with_mergekit(place, options.mergekit)
        session = Session(place, options.out.resolve())
        session.write()
        session.attempt("preparation", lambda: prepare(session))
        for part, do in steps(session, options):
            session.part(part, options.slower * LIMITS[part], do)
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
    return 1 if wrong or failed or session.failures else 0


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
        "--slower", type=float, default=1.0, metavar="N", help="multiply the limits of time"
    )
    parser.add_argument(
        "--without-hardware", type=_bytes, metavar="SIZE", help="a device that is the CPU"
    )
    return parser


def _bytes(text: str) -> int:
    from mergeloom.report.units import parse_size

    return parse_size(text)


if __name__ == "__main__":
    sys.exit(main())
