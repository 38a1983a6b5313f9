"""Feed the parsers with damaged input, and see only clear errors.

    scripts/run fuzz                            a few seconds of every target
    scripts/run fuzz --cases 1000000            cases in all, shared among the targets
    scripts/run fuzz --targets header --seconds 60 --atheris
                                            guided by coverage, where atheris is installed

A target takes bytes, and may raise nothing but a `LoomError` of printable lines. It may not
take longer than ``CASE_SECONDS`` nor more memory than ``MEMORY_BYTES``, and an audit hook sees to
it that it opens no file for writing outside its directory, starts no process, connects to
nothing, unpickles nothing and imports or runs no code. What comes later (other formats, adapters,
tokenizers, remote files) is fuzzed by giving it a place in ``TARGETS`` and seeds in ``SEEDS``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import xxhash

from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.base.records import WRITTEN
from scripts.robustness.small_merges import MACHINE, memory_directory

SEEDS = Path(__file__).resolve().parent.parent.parent / "tests" / "seeds"
CASE_SECONDS = 10.0
MEMORY_BYTES = 512 << 20
"""What a target may take beyond what the process has when fuzzing begins."""

_NUMBERS = [
    *(0, 1, -1, 2, 7, 255, 4095, 4096, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1),
    *(2**63, 2**64, 10**30, -(2**63), 10**400, 0.5, -0.0, 1e308, 1e-320, float("inf")),
]
_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        "",
        "a",
        "..",
        "../x",
        "/etc/passwd",
        "\x00",
        "\x1b[2J",
        "\ud800",
        "é" * 300,
    ),
    *([], {}, [[]], [{}], {"": {}}, [0] * 1000, [[[[[[[[]]]]]]]], "a" * 5000, *_NUMBERS),
]
_TOKENS = [
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"null", b"true", b"NaN", b"Infinity", b"1e999", b"-1", b"0x", b"\\ud800", b"\\u0000"),
    *(b"!!python/object/apply:os.system ['true']", b"!!binary aaaa", b"&a ", b"*a", b"<<: *a"),
    *(b"---\n", b"...\n", b"%YAML 1.1\n", b"? ", b"- ", b"| ", b"> ", b"\t", b"{{ ''.__class__ }}"),
    *(b"[" * 3000, b'{"a":' * 3000, b"- " * 300, b"9" * 5000, b"a" * 5000, b"__metadata__"),
    *(b'"dtype":"BF16"', b'"shape":[', b'"data_offsets":[0,0]', b"layer_range: [0, 1000000000]"),
]


class Forbidden(BaseException):
    """A target did what no parser may do."""


class TooSlow(BaseException):
    """A target took too long."""


@dataclass(frozen=True)
class Target:
    """Something that reads bytes: ``make`` gets a directory and returns the function to be tried.

    ``repair`` gives a case what random changes destroy, such as checksums and lengths.
    """

    make: Callable[[Path], Callable[[bytes], object]]
    repair: Callable[[bytes, random.Random], bytes] = lambda case, chance: case
    share: float = 1.0


# --- targets ------------------------------------------------------------------------------------


def _header(folder: Path) -> Callable[[bytes], object]:
    """Eight digits with the number of data bytes, then a header: parsed, its layers found."""
    from mergeloom.engine.storage.safetensors import parse_header
    from mergeloom.planners.models.architecture import infer

    def attempt(case: bytes) -> None:
        digits, content = case[:8], case[8:]
        size = int(digits) if digits.isdigit() else 0
        entries, _ = parse_header(content, 8 + len(content) + size, "model.safetensors")
        infer({name: entry.shape for name, entry in entries.items()}, {"num_hidden_layers": 2})

    return attempt


def _header_size(case: bytes, chance: random.Random) -> bytes:
    """The number of data bytes that the header describes."""
    if chance.random() < 0.2:
        return case
    stops = re.findall(rb"data_offsets[^\]]{0,40}?(\d{1,8})[ \t]*\]", case[8:])
    return b"%08d" % min(max(map(int, stops), default=0), 99_999_999) + case[8:]


def _file(folder: Path) -> Callable[[bytes], object]:
    """A whole file: length, header, data."""
    from mergeloom.engine.storage.files import FileSource
    from mergeloom.engine.storage.safetensors import read_header

    path = folder / "model.safetensors"

    def attempt(case: bytes) -> None:
        path.write_bytes(case)
        read_header(FileSource.at(path))

    return attempt


def _file_length(case: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.3:
        return case
    stop = case.rfind(b"}") + 1
    return max(stop - 8, 0).to_bytes(8, "little") + case[8:]


def _pickle(folder: Path) -> Callable[[bytes], object]:
    """The pickle of a file of torch.save, in an archive with three storages."""
    import zipfile

    from mergeloom.engine.storage.files import FileSource
    from mergeloom.engine.storage.torch_zip import read_torch

    path = folder / "pytorch_model.bin"

    def attempt(case: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", case)
            for key in range(3):
                archive.writestr(f"archive/data/{key}", bytes(64))
        read_torch(FileSource.at(path))

    return attempt


def _torch_file(folder: Path) -> Callable[[bytes], object]:
    """A whole file of torch.save: archive, pickle, storages."""
    from mergeloom.engine.storage.files import FileSource
    from mergeloom.engine.storage.torch_zip import read_torch

    path = folder / "pytorch_model.bin"

    def attempt(case: bytes) -> None:
        path.write_bytes(case)
        read_torch(FileSource.at(path))

    return attempt


def _gguf(folder: Path) -> Callable[[bytes], object]:
    """A whole GGUF file: header, then everything that is made of it as a model."""
    from mergeloom.planners.models.checkpoint import open_checkpoint

    path = folder / "model.gguf"

    def attempt(case: bytes) -> None:
        path.write_bytes(case + bytes(1 << 14))
        checkpoint = open_checkpoint(path)
        for name in ("config.json", "tokenizer.json"):
            if checkpoint.folder.has(name):
                checkpoint.folder.read(name, 1 << 20)

    return attempt


def _plan(folder: Path) -> Callable[[bytes], object]:
    """A header, in a file that is as long as it says, that is planned with and scheduled."""
    from mergeloom.engine.plan.schedule import schedule
    from mergeloom.planners.config.load import parse_config
    from mergeloom.planners.models.resolve import Resolver
    from mergeloom.planners.plan import make_plan
    from mergeloom.planners.planner import PlanOptions

    path = _model(folder / "a") / "model.safetensors"
    configurations = [
        parse_config(f"{text}\nparameters: {{weight: 0.5, density: 0.5}}\n")
        for text in (
            "merge_method: linear\nmodels: [a, a]\ndtype: float32",
            "merge_method: ties\nbase_model: a\nmodels: [a, a]",
            "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]",
        )
    ]
    resolver = Resolver(search=[folder])

    def attempt(case: bytes) -> None:
        digits, content = case[:15], case[15:]
        with open(path, "wb") as file:
            file.write(len(content).to_bytes(8, "little") + content)
            file.truncate(8 + len(content) + (int(digits) if digits.isdigit() else 0))
        chosen = configurations[len(content) % len(configurations)]
        plan = make_plan(chosen, resolver, PlanOptions(max_shard_bytes=1 << 30))
        schedule(plan.graph, 8 << 30, MACHINE)

    return attempt


def _plan_size(case: bytes, chance: random.Random) -> bytes:
    stops = re.findall(rb"data_offsets[^\]]{0,40}?(\d{1,14})[ \t]*\]", case[15:])
    return b"%015d" % max(map(int, stops), default=0) + case[15:]


def _index(folder: Path) -> Callable[[bytes], object]:
    from mergeloom.engine.storage.folder import LocalFolder
    from mergeloom.planners.models.formats import SAFETENSORS
    from mergeloom.planners.models.weight_files import indexed_shards

    model, name = LocalFolder(_model(folder / "a")), SAFETENSORS.index

    def attempt(case: bytes) -> None:
        (model.path / name).write_bytes(case)
        indexed_shards(model, name)

    return attempt


def _model_config(folder: Path) -> Callable[[bytes], object]:
    """``config.json`` of a model that is stacked and merged: read, believed, rewritten."""
    from mergeloom.planners.config.load import parse_config
    from mergeloom.planners.models.resolve import Resolver
    from mergeloom.planners.plan import make_plan
    from mergeloom.planners.planner import PlanOptions

    for name in "ab":
        _model(folder / name)
    stack = parse_config(
        "merge_method: passthrough\ndtype: bfloat16\nslices:\n"
        "- sources: [{model: a, layer_range: [0, 2]}]\n"
        "- sources: [{model: b, layer_range: [1, 2]}]\n"
    )
    resolver = Resolver(search=[folder])

    def attempt(case: bytes) -> None:
        (folder / "a" / "config.json").write_bytes(case)
        make_plan(stack, resolver, PlanOptions())

    return attempt


def _configuration(folder: Path) -> Callable[[bytes], object]:
    """A merge configuration, parsed and planned with the models that are there."""
    from mergeloom.planners.config.load import load_config
    from mergeloom.planners.models.resolve import Resolver
    from mergeloom.planners.plan import make_plan
    from mergeloom.planners.planner import PlanOptions

    for name in "abc":
        _model(folder / name)
    path = folder / "merge.yml"
    resolver = Resolver(search=[folder])

    def attempt(case: bytes) -> None:
        path.write_bytes(case)
        make_plan(load_config(path), resolver, PlanOptions())

    return attempt


def _journal(folder: Path) -> Callable[[bytes], object]:
    """A journal of an interrupted output: read, verified, continued, discarded."""
    from mergeloom.engine.output.directory import OutputDirectory
    from mergeloom.engine.output.journal import Journal, read_journal
    from mergeloom.engine.output.state import examine
    from mergeloom.report.terminal.verification import render_verify
    from mergeloom.report.verification import verify_report

    out = folder / "out"
    OutputDirectory(out).__exit__()
    path = out / ".mergeloom" / "journal"
    shard = _shard({"a": [4], "b": [2, 3]})

    def attempt(case: bytes) -> None:
        path.write_bytes(case)
        (out / "model.safetensors.partial").write_bytes(shard)
        examine(out)
        with suppress(LoomError):
            render_verify(verify_report(out))
        read_journal(path)
        Journal(path).close()
        with OutputDirectory(out) as directory:
            directory.clear()

    return attempt


def _journal_checksums(case: bytes, chance: random.Random) -> bytes:
    lines = case.split(b"\n")
    for number, line in enumerate(lines[:-1]):
        if chance.random() < 0.95:
            text = line.partition(b" ")[2]
            lines[number] = xxhash.xxh3_64_hexdigest(text).encode() + b" " + text
    return b"\n".join(lines)


def _manifest(folder: Path) -> Callable[[bytes], object]:
    """The manifest of an output: read, verified, discarded."""
    from mergeloom.engine.output.directory import OutputDirectory
    from mergeloom.engine.output.manifest import manifest_path, read_manifest
    from mergeloom.engine.output.state import examine
    from mergeloom.report.terminal.verification import render_verify
    from mergeloom.report.verification import verify_report

    out = folder / "out"
    OutputDirectory(out).__exit__()
    (folder / "outside").write_text("mine")
    shard = _shard({"a": [4], "b": [2, 3]})

    def attempt(case: bytes) -> None:
        manifest_path(out).write_bytes(case)
        (out / "model.safetensors").write_bytes(shard)
        examine(out)
        try:
            render_verify(verify_report(out))
            read_manifest(out)
        finally:
            with OutputDirectory(out) as directory:
                directory.clear()
        if not (folder / "outside").exists():
            raise Forbidden("a file outside the output was removed")

    return attempt


TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


def _tokenizer(folder: Path) -> Callable[[bytes], object]:
    """One file of a tokenizer, the first byte says which.

    ``tokenizer.json`` is read for settings that make a vocabulary, and older files where two models
    are compared: what would make a tokenizer of those is another program's parser.
    """
    from mergeloom.planners.config.load import parse_config
    from mergeloom.planners.models.resolve import Resolver
    from mergeloom.planners.plan import make_plan
    from mergeloom.planners.planner import PlanOptions

    model = _model(folder / "a")
    _model(folder / "b")
    for name in TOKENIZERS:
        (model / name).unlink(missing_ok=True)
    settings = "tokenizer_source: union\nchat_template: auto\n"
    union = parse_config(f"merge_method: passthrough\nmodels: [{{model: a}}]\n{settings}")
    linear = parse_config("merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n")
    resolver = Resolver(search=[folder])

    def attempt(case: bytes) -> None:
        name = TOKENIZERS[(case[0] if case else 0) % len(TOKENIZERS)]
        (model / name).write_bytes(case[1:])
        try:
            make_plan(union if name == "tokenizer.json" else linear, resolver, PlanOptions())
        finally:
            (model / name).unlink()

    return attempt


def _words(folder: Path) -> Callable[[bytes], object]:
    """Arguments of the command line: sizes, references of models."""
    from mergeloom.planners.config.model_reference import parse_reference
    from mergeloom.report.units import parse_size

    def attempt(case: bytes) -> None:
        text = case.decode("utf-8", "surrogateescape")
        for function in (parse_size, parse_reference):
            with suppress(LoomError):
                function(text)

    return attempt


def _codes(folder: Path) -> Callable[[bytes], object]:
    """A configuration, names, types and shapes of tensors, and what each of them begins with: which
    are codes, with their scales."""
    from mergeloom.engine.base.dtypes import BY_CODE
    from mergeloom.engine.graph.stored_tensor import StoredTensor
    from mergeloom.engine.storage.memory import MemorySource
    from mergeloom.planners.models.coded import decode, hints_of, not_understood

    def attempt(case: bytes) -> None:
        try:
            config, tensors, content = json.loads(case.decode())
            source = MemorySource(str(content).encode("utf-8", "replace") + bytes(64), "codes")
            found = {
                name: StoredTensor.at(source, 0, BY_CODE[code], tuple(shape))
                for name, (code, shape) in tensors.items()
                if name.isprintable()
                and len(name) < 200
                and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return
        if isinstance(config, dict):
            not_understood(config)
            decode(found, "codes", hints_of(config))

    return attempt


TARGETS: dict[str, Target] = {
    "codes": Target(_codes, share=1.0),
    "header": Target(_header, _header_size, 8.0),
    "file": Target(_file, _file_length, 3.0),
    "pickle": Target(_pickle, share=1.0),
    "torch-file": Target(_torch_file, share=1.0),
    "gguf": Target(_gguf, share=1.0),
    "plan": Target(_plan, _plan_size, 0.2),
    "index": Target(_index, share=1.0),
    "config-json": Target(_model_config, share=0.3),
    "configuration": Target(_configuration, share=0.6),
    "journal": Target(_journal, _journal_checksums, 1.0),
    "manifest": Target(_manifest, share=1.0),
    "tokenizer": Target(_tokenizer, share=0.3),
    "words": Target(_words, share=1.0),
}


def _shard(shapes: dict[str, list[int]]) -> bytes:
    """A safetensors file with these tensors of bytes."""
    document: dict[str, Any] = {}
    stop = 0
    for name, shape in shapes.items():
        start, stop = stop, stop + math.prod(shape)
        document[name] = {"dtype": "U8", "shape": shape, "data_offsets": [start, stop]}
    content = json.dumps(document).encode()
    return len(content).to_bytes(8, "little") + content + bytes(stop)


def _model(directory: Path) -> Path:
    """A tiny decoder."""
    from scripts.fixtures.checkpoints import make
    from scripts.fixtures.shapes import Shape

    return make(directory, Shape("llama", 2, 4, 8, 1, 1, 4, 8), sparse=True)


# --- cases --------------------------------------------------------------------------------------


@dataclass
class Mutator:
    """Makes cases out of seeds: changes of bytes, of words, of values where a seed is JSON."""

    seeds: Sequence[bytes]
    chance: random.Random
    repair: Callable[[bytes, random.Random], bytes]

    def case(self) -> bytes:
        case = self.chance.choice(self.seeds)
        for _ in range(self.chance.choice((1, 1, 1, 2, 3, 6, 12))):
            change = self.chance.choice((self._value, self._bytes, self._word, self._range))
            case = change(case)
        return self.repair(case[: 1 << 20], self.chance)

    def _bytes(self, case: bytes) -> bytes:
        if not case:
            return bytes([self.chance.randrange(256)])
        content = bytearray(case)
        for _ in range(self.chance.choice((1, 1, 2, 8))):
            content[self.chance.randrange(len(content))] = self.chance.randrange(256)
        return bytes(content)

    def _word(self, case: bytes) -> bytes:
        place = self.chance.randrange(len(case) + 1)
        numbers = [*re.finditer(rb"\d+", case[:10000])]
        if numbers and self.chance.random() < 0.5:
            found = self.chance.choice(numbers)
            number = str(self.chance.choice(_NUMBERS)).encode()
            return case[: found.start()] + number + case[found.end() :]
        return case[:place] + self.chance.choice(_TOKENS) + case[place + self.chance.randrange(4) :]

    def _range(self, case: bytes) -> bytes:
        start, stop = sorted(self.chance.randrange(len(case) + 1) for _ in range(2))
        kind = self.chance.randrange(4)
        if kind == 0:
            return case[:start] + case[stop:]
        if kind == 1:
            return case[:stop] + case[start:stop] * self.chance.choice((1, 1, 2, 20)) + case[stop:]
        if kind == 2:
            return case[:start]
        other = self.chance.choice(self.seeds)
        return case[:start] + other[self.chance.randrange(len(other) + 1) :]

    def _value(self, case: bytes) -> bytes:
        """Another value in one place of a JSON text; what stands before the text stays."""
        begin = case.find(b"{")
        lines = case[begin:].split(b"\n") if begin >= 0 else []
        if not lines:
            return self._word(case)
        number = self.chance.randrange(len(lines)) if self.chance.random() < 0.5 else 0
        whole = len(lines) == 1 or lines[0].strip() == b"{"
        text = b"\n".join(lines) if whole else lines[number]
        head, brace, rest = text.partition(b"{")
        try:
            document = json.loads(brace + rest)
        except (ValueError, RecursionError):
            return self._word(case)
        self._replace(document)
        text = head + json.dumps(document, separators=(",", ":")).encode()
        if whole:
            return case[:begin] + text
        lines[number] = text
        return case[:begin] + b"\n".join(lines)

    def _replace(self, document: Any) -> None:
        while True:
            keys = [*document] if isinstance(document, dict) else [*range(len(document))]
            if not keys:
                return
            key = self.chance.choice(keys)
            inner = document[key]
            if isinstance(inner, (dict, list)) and inner and self.chance.random() < 0.7:
                document = inner
                continue
            kind = self.chance.randrange(4)
            if kind == 0 and isinstance(document, dict):
                document[str(self.chance.choice(_VALUES))[:2000]] = document.pop(key)
            elif kind == 1:
                del document[key]
            else:
                document[key] = self.chance.choice(_VALUES)
            return


def seeds_of(name: str) -> list[bytes]:
    """The kept seeds of a target."""
    return [path.read_bytes() for path in sorted((SEEDS / name).iterdir())]


# --- running ------------------------------------------------------------------------------------


@dataclass
class Guard:
    """Watches what targets do, by an audit hook: these cannot be removed, but switched off."""

    folder: Path
    watching: bool = False
    _forbidden: frozenset[str] = field(
        default=frozenset(
            (
                *("exec", "import", "pickle.find_class", "marshal.loads", "ctypes.dlopen"),
                *("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen"),
                *("socket.connect", "socket.bind", "socket.getaddrinfo", "os.kill", "os.chmod"),
            )
        )
    )

    def install(self) -> None:
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event == "exec" and getattr(arguments[0], "co_filename", None) == WRITTEN:
            return  # the first record of a class; nothing of an input is in that
        if event in self._forbidden:
            self.watching = False
            raise Forbidden(f"{event} {arguments!r:.200}")
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self._check(path)
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link"):
            for argument in arguments:
                if isinstance(argument, (str, bytes)):
                    self._check(argument)

    def _check(self, path: str | bytes) -> None:
        if not Path(os.path.abspath(os.fsdecode(path))).is_relative_to(self.folder):
            self.watching = False
            raise Forbidden(f"'{os.fsdecode(path)}' was to be written")


def attempt(function: Callable[[bytes], object], case: bytes, guard: Guard) -> str:
    """Try one case; the kind of the result. Everything but a clear error is raised."""
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    guard.watching = True
    try:
        function(case)
    except LoomError as error:
        lines = [str(finding) for finding in error.findings]
        for line in lines:
            if not line.isprintable() or len(line) > 5000 or len(lines) > 1000:
                raise AssertionError(f"not one printable line: {line[:300]!r}") from error
        return "refused"
    finally:
        guard.watching = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "taken"


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process take `MEMORY_BYTES` more than it has."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(
    name: str, folder: Path, guard: Guard, cases: int, seconds: float, seed: int
) -> Counter[str]:
    """Try the seeds of a target and ``cases`` made of them, for at most ``seconds``.

    Raises:
        AssertionError: a case was answered by something else than a clear error; it is kept
            beside the seeds, as ``crash-...``.
    """
    target = TARGETS[name]
    (folder / name).mkdir()
    function = target.make(folder / name)
    seeds = seeds_of(name)
    for case in seeds:  # imports what will be needed, before nothing may be imported any more
        with suppress(LoomError):
            function(case)
    chance = random.Random(f"{name} {seed}")
    mutator = Mutator(seeds, chance, target.repair)
    counts: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, _alarm)
    began = time.monotonic()
    with bounded_memory():
        while counts.total() < len(seeds) + cases and time.monotonic() - began < seconds:
            number = counts.total()
            case = seeds[number] if number < len(seeds) else mutator.case()
            try:
                counts[attempt(function, case, guard)] += 1
            except BaseException as error:
                kept = SEEDS / name / f"crash-{xxhash.xxh3_64_hexdigest(case)}"
                if not isinstance(error, KeyboardInterrupt):
                    kept.write_bytes(case)
                raise AssertionError(
                    f"{name}: {type(error).__name__}: {error!s:.300} by '{kept}'"
                ) from error
    return counts


def guided(name: str, folder: Path, guard: Guard, seconds: float) -> None:
    """Let atheris look for cases that reach new code; it ends the process."""
    atheris = importlib.import_module("atheris")
    target = TARGETS[name]
    packages = ["engine", "planners", "methods", "mergeloom"]
    with atheris.instrument_imports(include=packages):
        (folder / name).mkdir()
        function = target.make(folder / name)
        for case in seeds_of(name):
            with suppress(LoomError):
                function(case)

    def once(case: bytes) -> None:
        attempt(function, target.repair(case, random.Random(0)), guard)

    corpus = folder / "corpus"
    corpus.mkdir()
    limits = [f"-max_total_time={seconds:.0f}", "-max_len=4096", f"-timeout={CASE_SECONDS:.0f}"]
    limits += [f"-rss_limit_mb={(MEMORY_BYTES >> 20) + 512}", f"-artifact_prefix={folder}/"]
    signal.signal(signal.SIGALRM, _alarm)
    atheris.Setup([sys.argv[0], *limits, str(corpus), str(SEEDS / name)], once)
    atheris.Fuzz()


def _alarm(number: int, frame: FrameType | None) -> None:
    raise TooSlow(f"more than {CASE_SECONDS} seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; the result is its exit status."""
    parser = argparse.ArgumentParser(prog="run fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help="such as header,index")
    parser.add_argument("--cases", type=int, default=20_000, help="of all targets together")
    parser.add_argument("--seconds", type=float, default=3600.0, help="of each target at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, one target")
    options = parser.parse_args(arguments)
    names = options.targets.split(",")
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target '{min(unknown)}': choose from {', '.join(TARGETS)}")
    shares = sum(TARGETS[name].share for name in names)
    total, failed = 0, False
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory_directory()) as path:
        folder = Path(path)
        guard = Guard(folder)
        guard.install()
        if options.atheris:
            guided(names[0], folder, guard, options.seconds)
        for name in names:
            cases = int(options.cases * TARGETS[name].share / shares)
            began = time.monotonic()
            try:
                counts = fuzz(name, folder, guard, cases, options.seconds, options.seed)
            except AssertionError as error:
                print(f"fuzz: {error}", file=sys.stderr)
                failed = True
                continue
            seconds = time.monotonic() - began
            total += counts.total()
            print(
                f"{name:<15}{counts.total():>9} cases {counts['taken']:>8} taken"
                f"{counts['refused']:>9} refused{seconds:>8.1f} s",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    if failed:
        return 1
    print(f"{total} cases; nothing but clear errors; {peak} MiB of memory at most")
    return 0
