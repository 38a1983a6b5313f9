"""Renders the results of `scripts/run figures`: docs/performance.md and a part of README.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from textwrap import fill
from typing import Any

GB = 10**9
MIB = 1 << 20
BEGIN = "<!-- written by scripts/run figures -->"
END = "<!-- to here -->"
MODELS = {
    "passthrough": "passthrough, layers of two",
    "linear": "linear of two",
    "slerp": "slerp of two",
    "task_arithmetic": "task_arithmetic, three and a base",
    "ties": "ties, three and a base",
    "dare_ties": "dare_ties, three and a base",
    "della": "della, three and a base",
}

_PAGE = """# Performance

How to choose a memory budget: [memory.md](memory.md). GPUs: [gpu.md](gpu.md).

All figures are from one run of `scripts/run figures --work DIR --mergekit ENVIRONMENT` on {day},
which wrote this page: mergeloom {version} on {cores} cores of an {processor}, {memory} of memory,
one disk, Python {python}; merges run on the CPU. Times are of whole processes, from start until the
output is durable. Memory is the peak resident size. *1B shape* is 16 layers of hidden size 2048
with a vocabulary of 128256 (1.24 B parameters, 2.5 GB in bfloat16).
"""

_SECTIONS = {
    "merges": """## Compared with mergekit and with raw I/O

Checkpoints of the {shape} shape, none of them in the page cache, `--ram {ram}`; mergekit 0.1.5 on
the CPU. *Raw I/O* is a program that only reads and writes the same bytes, in the way that was
fastest here ({raw}); *ratio* is the time of mergeloom, start-up included, divided by that of raw
I/O. Runs of mergeloom and of raw I/O alternate ({repeat} each), and the faster counts; mergekit
ran once.
""",
    "start": """## Start-up and planning

The median of seven runs.
""",
    "budgets": """## In little memory

The same merges, each in a memory cgroup of exactly the budget, page cache included, with inputs
that were not in the page cache. None was killed. *Smallest* is the smallest budget that `plan`
names for the merge.
""",
    "large": """## 70B shapes

A linear merge of two checkpoints with {layers} of the {of} layers of a {large} shape, with its
embedding and head, in a memory cgroup of exactly the budget, on a compressing volume. Of all
layers, `plan` with the same budget expects a peak of {peak}.
""",
    "many": """## Very many tensors

A mixture of experts, three models; for merging, tensors of 16 kB.
""",
}

_REST = """## Where the time goes

- **Start-up** is mostly imports and loading machine code. Only the called command is imported.
- **Disk.** Copies, linear, slerp and task_arithmetic are limited by the disk; ties, dare_ties,
  della, arcee_fusion and ramplus_tl by arithmetic. The disk also limits the speed-up over
  mergekit.
- **Page cache.** Inputs that are not in the page cache are read around it. To find out, the
  kernel is asked for 32 pages of each file without waiting, at places drawn anew each time.
- **Alignment.** If tensors are not aligned to pages, as in stacks, the end of a tile and the
  beginning of the next share a page. The first part is kept until a request covers the whole
  page.
- **Repeated reads.** Methods with several passes over a tensor read it again where it does not
  fit into the budget; `plan` shows how many bytes. Embeddings are the largest tensors of small
  models.
- **Small merges** run together, which saves handing them from thread to thread; what they share
  is found out once for each kind.

## Measure yourself

    scripts/run compare --merges all --mergekit ENVIRONMENT  # every method, any shape and budget
    scripts/run compare --merges ties --memory-limit 512MiB  # in a memory cgroup
    scripts/run same_bytes --memory-limit 768MiB             # every method: the same bytes there
    scripts/run large --work DIR                             # all layers of a 70B shape
    scripts/run union --work DIR                             # three large vocabularies in 512 MiB
    scripts/run stack --work DIR --kind btrfs                # cloning on another file system
    scripts/run kernels                                      # arithmetic alone, ns per element
"""


def page(document: Mapping[str, Any]) -> str:
    """The page docs/performance.md."""
    about = document["machine"]
    head = _PAGE.format(
        day=document["day"],
        version=document["version"],
        cores=about["cores"],
        processor=about["processor"],
        python=about["python"],
        memory=f"{about['memory_bytes'] / 2**30:.0f} GiB",
    )
    parts = document["parts"]
    sections = [
        _paragraphs(text.format(**_words(document, name))) + _TABLES[name](parts[name])
        for name, text in _SECTIONS.items()
        if name in parts
    ]
    return "\n".join([_paragraphs(head)[:-1], *sections, _REST])


def readme(text: str, document: Mapping[str, Any]) -> str:
    """README.md with its figures replaced.

    Raises:
        ValueError: the part to replace is not marked.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"README.md does not have the lines '{BEGIN}' and '{END}'")
    return f"{before}{BEGIN}\n{_summary(document)}{END}{after}"


def _words(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = document["parts"][name]
    words = {"shape": document["shape"].upper(), "large": document["large"].upper()}
    if name == "merges":
        times = max(len(row["seconds"]) for row in found["rows"])
        words |= {"ram": found["ram"], "raw": found["raw"], "repeat": times}
    if name == "large":
        words |= {"layers": found["layers"], "of": found["of"], "peak": _mib(found["peak_bytes"])}
    return words


def _summary(document: Mapping[str, Any]) -> str:
    """The part of README.md: a table, and the figures that need none."""
    parts, about = document["parts"], document["machine"]
    intro = (
        f"Measured on {document['day']}: whole processes until the output is durable, checkpoints "
        f"of {document['shape'].upper()} shape out of the page cache, `--ram 1GiB`, "
        f"{about['cores']} cores, one disk, mergekit 0.1.5. *Ratio* is the time divided by that of "
        "a program that only reads and writes the same bytes."
    )
    texts: dict[str, Callable[[Any], str]] = {
        "start": _start_line,
        "budgets": _budgets_line,
        "large": partial(_large_line, document["large"].upper()),
        "many": _many_line,
    }
    items = [f"- {write(parts[name])}" for name, write in texts.items() if name in parts]
    table = [_merges(parts["merges"])] if "merges" in parts else []
    return "\n".join([_wrapped(intro), "", *table, *map(_wrapped, items)]) + "\n"


def _start_line(found: Mapping[str, Any]) -> str:
    merge, plan = (found[what]["seconds"] for what in ("merge", "plan"))
    return (
        f"A merge of two tiny checkpoints takes {merge:.2f} s, the plan of a 7B merge {plan:.2f} s."
    )


def _budgets_line(found: Iterable[Mapping[str, Any]]) -> str:
    by_limit: dict[int, list[str]] = {}
    for row in found:
        by_limit.setdefault(row["limit_bytes"], []).append(row["merge"])
    sizes = (f"{_mib(n)} is enough for {_listed(names)}" for n, names in by_limit.items())
    return f"A memory cgroup of {', one of '.join(sizes)}."


def _large_line(shape: str, found: Mapping[str, Any]) -> str:
    row, stack = found["rows"][0], found["stack"]
    return (
        f"{found['layers']} of the {found['of']} layers of two {shape} shapes, "
        f"{row['read_bytes'] / GB:.0f} GB, are merged in a memory cgroup of "
        f"{_mib(row['limit_bytes'])}; {stack['bytes'] / GB:.0f} GB of stacked layers are written "
        f"in {stack['seconds']:.1f} s where the file system shares extents."
    )


def _many_line(found: Iterable[Mapping[str, Any]]) -> str:
    rows = {(row["method"], row["what"]): row for row in found}
    plan, explain = rows["linear", "plan"], rows["linear", "explain"]
    return (
        f"A merge of {plan['tensors']:,} tensors is planned in {plan['seconds']:.1f} s, and one of "
        f"them explained in {explain['seconds']:.1f} s."
    )


def _merges(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        durable, theirs = row["mergekit_durable_seconds"], row["mergekit_peak_bytes"]
        ours, raw = min(row["seconds"]), min(row["floor_seconds"])
        rows.append(
            [
                MODELS[row["merge"]],
                f"{ours:.1f} s",
                _gib(row["peak_bytes"]),
                f"{min(durable):.1f} s" if durable else "",
                _gib(theirs) if theirs else "",
                f"{min(durable) / ours:.1f}x" if durable else "",
                f"{raw:.1f} s",
                f"{ours / raw:.2f}x",
            ]
        )
    head = ["merge", "mergeloom", "memory", "mergekit", "memory", "speed-up", "raw I/O", "ratio"]
    return _table(head, rows)


def _starts(found: Mapping[str, Any]) -> str:
    names = {"merge": "linear merge of two tiny checkpoints", "plan": "plan of a linear merge, 7B"}
    rows = [
        [name, f"{found[what]['seconds']:.2f} s", f"{found[what]['cpu_seconds']:.2f} s"]
        for what, name in names.items()
    ]
    return _table(["", "time", "CPU time"], rows)


def _budgets(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            MODELS[row["merge"]],
            _mib(row["limit_bytes"]),
            _mib(row["smallest_bytes"]),
            f"{min(row['seconds']):.1f} s",
            f"{row['read_bytes'] / GB:.2f} GB",
            _mib(row["peak_bytes"]),
            _mib(row["group_peak_bytes"]),
        ]
        for row in found
    ]
    head = ["merge", "budget", "smallest", "time", "read", "resident", "in the cgroup"]
    return _table(head, rows)


def _large(found: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{row['merge']} of two",
            _mib(row["limit_bytes"]),
            f"{row['seconds']:.0f} s",
            f"{row['read_bytes'] / GB:.0f} GB",
            f"{row['write_bytes'] / GB:.0f} GB",
            _mib(row["peak_bytes"]),
        ]
        for row in found["rows"]
    ]
    stack = found["stack"]
    text = (
        "Where a file system shares extents, copies are clones: a stack of three quarters of the "
        f"layers of each of two such checkpoints, {stack['bytes'] / GB:.0f} GB in "
        f"{stack['shards']} shards, took {stack['seconds']:.1f} s on XFS; all but "
        f"{stack['copied_bytes']:,} bytes were cloned. To make that possible, tensors copied from "
        "one file are placed together in separate shards, if the output has several."
    )
    table = _table(["merge", "cgroup", "time", "read", "written", "resident"], rows)
    return f"{table}\n{_wrapped(text)}\n"


def _many(found: Iterable[Mapping[str, Any]]) -> str:
    rows = []
    for row in found:
        each = row["each_seconds"]
        rows.append(
            [
                row["method"],
                row["what"] + (" of one tensor" if row["what"] == "explain" else ""),
                f"{row['tensors']:,}",
                f"{row['seconds']:.1f} s",
                f"{row['cpu_seconds']:.1f} s",
                "" if each is None else f"{each * 1e3:.2f} ms",
                _mib(row["peak_bytes"]),
            ]
        )
    return _table(["method", "", "tensors", "time", "CPU time", "for each tensor", "memory"], rows)


_TABLES: dict[str, Callable[[Any], str]] = {
    "merges": _merges,
    "start": _starts,
    "budgets": _budgets,
    "large": _large,
    "many": _many,
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _wrapped(text: str) -> str:
    indent = "  " if text.startswith("- ") else ""
    return fill(text, 100, subsequent_indent=indent, break_on_hyphens=False)


def _paragraphs(text: str) -> str:
    return "".join(f"{_wrapped(each)}\n\n" for each in text.split("\n\n"))


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _mib(count: int) -> str:
    return f"{count / MIB:.0f} MiB"


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
