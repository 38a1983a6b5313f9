"""Targets for fuzzing: functions of bytes that reach the parsers as files do."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from mergeloom.engine.base.errors import LoomError
from mergeloom.planners.vocabulary.tokens import FILES
from scripts.robustness.fuzz_guard import Forbidden
from scripts.robustness.small_merges import MACHINE


@dataclass(frozen=True)
class Target:
    """A function of bytes to test; ``make`` gets a directory and returns the function.

    ``repair`` restores what random changes destroy, such as checksums and lengths, so that a case
    gets past the first checks.
    """

    make: Callable[[Path], Callable[[bytes], object]]
    repair: Callable[[bytes, random.Random], bytes] = lambda case, chance: case
    share: float = 1.0


def _header(folder: Path) -> Callable[[bytes], object]:
    """Eight digits with the number of data bytes, then a header, which is parsed; its layers are
    found.
    """
    from mergeloom.engine.storage.safetensors import parse_header
    from mergeloom.planners.models.architecture import infer_architecture

    def attempt(case: bytes) -> None:
        digits, content = case[:8], case[8:]
        size = int(digits) if digits.isdigit() else 0
        entries, _ = parse_header(content, 8 + len(content) + size, "model.safetensors")
        infer_architecture(
            {name: entry.shape for name, entry in entries.items()}, {"num_hidden_layers": 2}
        )

    return attempt


def _header_size(case: bytes, chance: random.Random) -> bytes:
    """The number of data bytes that the header describes."""
    if chance.random() < 0.2:
        return case
    stops = re.findall(rb"data_offsets[^\]]{0,40}?(\d{1,8})[ \t]*\]", case[8:])
    return b"%08d" % min(max(map(int, stops), default=0), 99_999_999) + case[8:]


def _file(folder: Path) -> Callable[[bytes], object]:
    """A whole safetensors file: header length, header, data."""
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
    """The pickle of a torch.save file, in an archive with three storages."""
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
    """A whole torch.save file: archive, pickle, storages."""
    from mergeloom.engine.storage.files import FileSource
    from mergeloom.engine.storage.torch_zip import read_torch

    path = folder / "pytorch_model.bin"

    def attempt(case: bytes) -> None:
        path.write_bytes(case)
        read_torch(FileSource.at(path))

    return attempt


def _gguf(folder: Path) -> Callable[[bytes], object]:
    """A whole GGUF file: its header, and the model read from it."""
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
    """A header, in a file of the length that it states; a merge of it is planned and scheduled."""
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
    """The ``config.json`` of a model that is stacked and merged: it is read, and the output's is
    written.
    """
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
    """A merge configuration, parsed and planned."""
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
    """The journal of an interrupted output: it is read, verified, continued and discarded."""
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
    """The manifest of an output: it is read, verified and discarded."""
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


TOKENIZERS = (*FILES, "chat_template.jinja")


def _tokenizer(folder: Path) -> Callable[[bytes], object]:
    """A file of a tokenizer; the first byte selects which.

    ``tokenizer.json`` is read to build a vocabulary; the older files are read to compare two
    models. Building a tokenizer from those would test another program's parser.
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


def _arguments(folder: Path) -> Callable[[bytes], object]:
    """Arguments of the command line: sizes and model references."""
    from mergeloom.planners.config.model_reference import parse_reference
    from mergeloom.report.units import parse_size

    def attempt(case: bytes) -> None:
        text = case.decode("utf-8", "surrogateescape")
        for function in (parse_size, parse_reference):
            with suppress(LoomError):
                function(text)

    return attempt


def _codes(folder: Path) -> Callable[[bytes], object]:
    """A configuration, then names, types, shapes and first bytes of tensors: the quantised ones and
    their scales are recognised.
    """
    from mergeloom.engine.base.dtypes import BY_CODE
    from mergeloom.engine.graph.stored_tensor import StoredTensor
    from mergeloom.engine.storage.memory_source import MemorySource
    from mergeloom.planners.models.quantised_weights import (
        find_quantised,
        quantisation_hints,
        unsupported_method,
    )

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
            unsupported_method(config)
            find_quantised(found, "codes", quantisation_hints(config))

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
    "arguments": Target(_arguments, share=1.0),
}


def _shard(shapes: dict[str, list[int]]) -> bytes:
    """A safetensors file with the given tensors."""
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
