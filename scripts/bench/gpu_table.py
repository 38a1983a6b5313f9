"""The figures of `scripts/run gpu` as a page in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scripts.bench.gpu_runs import Result

_BUDGETS = ("all", "2GiB", "512MiB", "cpu", "auto")
_HEADINGS = ("device", "2 GiB of it", "512 MiB of it", "CPU", "auto")
_GIB = 1 << 30
_SHOWN = 8
_UNITS: tuple[tuple[str, float, str], ...] = (
    ("_bytes_per_second", 1e9, "GB/s"),
    ("_bytes", _GIB, "GiB"),
    ("_seconds_per_gib", 1.0, "s/GiB"),
    ("_seconds", 1.0, "s"),
)
_EMULATED = "A REHEARSAL WITHOUT A GPU: the device is the processor, and times mean nothing.\n"


def page(
    facts: Mapping[str, Any],
    results: Sequence[Result],
    traces: Mapping[str, Mapping[str, Any]],
    profiles: Mapping[str, Mapping[str, Any]],
    notes: Iterable[str],
    emulated: bool,
) -> str:
    """The whole page: the table, the machine, where the time went, notes and failures."""
    device = facts.get("device", {})
    told = {**facts, **device}
    machine = [f"- {_fact(name, value)}" for name, value in told.items()]
    blocks = [
        [_EMULATED] if emulated else [],
        [table(results, traces, emulated)],
        [*filter("- ".__ne__, machine), ""],
        [*_kernels(traces), *_launching(profiles), ""],
        [f"- {line}" for line in (*notes, *problems(results))],
    ]
    return "\n".join(line for block in blocks if block != [""] for line in block) + "\n"


def _kernels(traces: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """The kernels that took most of the device's time."""
    for name, trace in traces.items():
        most = sorted(trace["kernels"].items(), key=lambda item: -item[1][1])[:_SHOWN]
        shown = ", ".join(f"{kernel} {n} in {s:.2f} s" for kernel, (n, s) in most)
        yield (
            f"- {name}: kernels {trace['kernel_seconds']:.2f} s, copies up "
            f"{trace['up_seconds']:.2f} s, down {trace['down_seconds']:.2f} s: {shown}"
        )


def _launching(profiles: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """When the device opened, the worker ran and the merge ended; what the worker spent time on."""
    for name, profile in profiles.items():
        moments = ", ".join(f"{what} {at:.2f} s" for what, at in profile["moments"].items())
        most = (f"{function} {own:.2f} s" for function, _, own, _ in profile["functions"][:_SHOWN])
        yield f"- {name}: {moments}; launching: {', '.join(most)}"


def _fact(name: str, value: Any) -> str:
    """A property of the machine as text; empty if unknown."""
    if not isinstance(value, (str, int, float)):
        return ""
    for suffix, size, unit in _UNITS:
        if name.endswith(suffix) and not isinstance(value, str):
            return f"{name.removesuffix(suffix).replace('_', ' ')}: {value / size:.3g} {unit}"
    return f"{name.replace('_', ' ')}: {value}"


def table(
    results: Iterable[Result], traces: Mapping[str, Mapping[str, Any]], emulated: bool = False
) -> str:
    """A row for each merge: seconds of the whole process, and the findings about it."""
    rows: dict[tuple[str, str, str], dict[str, Result]] = {}
    for result in results:
        key = result.shape, result.source, result.method
        own = result.budget if result.program == "mergeloom" else result.program
        rows.setdefault(key, {})[own] = result
    peer = "mergekit, CPU" if emulated else "mergekit --cuda"
    heading = ["shape", "inputs", "method", *_HEADINGS, peer, "speed-up"]
    heading += ["VRAM peak", "launches", "up", "down", "overlap", "checked"]
    lines = [heading, ["---"] * len(heading)]
    for (shape, source, method), runs in rows.items():
        trace = traces.get(f"{shape} {method}", {})
        lines.append([shape, source, method, *_row(runs, trace)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _row(runs: Mapping[str, Result], trace: Mapping[str, Any]) -> list[str]:
    theirs, ours = runs.get("mergekit"), runs.get("all")
    times = ""
    if ours and theirs and ours.seconds and theirs.seconds:
        times = f"{theirs.seconds / ours.seconds:.1f}x"
    peak = ours.device_peak_bytes if ours else None
    overlap = trace.get("overlap")
    return [
        *(_seconds(runs.get(budget)) for budget in _BUDGETS),
        _seconds(theirs),
        times,
        f"{peak / _GIB:.2f} GiB" if peak else "",
        str(trace["launches"]) if trace else "",
        _gib(trace, "up_bytes"),
        _gib(trace, "down_bytes"),
        f"{overlap:.0%}" if overlap is not None else "",
        _checked(runs.values()),
    ]


def _seconds(result: Result | None) -> str:
    if result is None:
        return ""
    if result.seconds is None:
        return "out of time" if _is_late(result) else "failed"
    return f"{result.seconds:.1f} s"


def _gib(trace: Mapping[str, Any], key: str) -> str:
    return f"{trace[key] / _GIB:.2f} GiB" if trace else ""


def _checked(results: Iterable[Result]) -> str:
    found = [result.more["check"] for result in results if "check" in result.more]
    wrong = [each for each in found if not each["right"]]
    if wrong:
        return "WRONG: " + "; ".join(each["what"] for each in wrong)
    return "; ".join(each["what"] for each in found)


def problems(results: Sequence[Result]) -> list[str]:
    """Runs that failed or were stopped, one line each."""
    return [f"{_name(each)}: {each.wrong}" for each in results if each.wrong]


def _is_late(result: Result) -> bool:
    return (result.wrong or "").startswith("out of time")


def _name(result: Result) -> str:
    place = f"{result.shape} {result.source} {result.method}"
    return f"{place} {result.program} {result.budget}"
