"""The flags of ``mergekit-yaml``, and their equivalents here, for scripts that call mergekit.

Each flag is translated to an option of this program, or has no effect; a printed note says which.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated

from mergeloom.command_line import Option
from mergeloom.engine.base.errors import LoomError
from mergeloom.engine.base.records import dataclass
from mergeloom.options import OutputOptions, ResourceOptions

_SHARD_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}

Flag = bool | None

_MERGE = "'mergeloom merge CONFIG OUT'"
_STAGES = f"{_MERGE} takes several documents, whose names are stages"
MERGEKIT_COMMANDS = {
    "mergekit": f"'mergeloom mergekit-yaml' takes its arguments, {_MERGE} is the same here",
    "mergekit-multi": _STAGES,
    "mergekit-mega": _STAGES,
    "mergekit-moe": f"mixtures of experts are not made here; {_MERGE} merges dense models",
    "mergekit-extract-lora": "'mergeloom extract MODEL BASE OUT' does it",
    "mergekit-tokensurgeon": "'mergeloom transplant MODEL DONOR OUT' does it",
    "mergekit-layershuffle": f"{_MERGE} takes any order of 'slices'",
    "mergekit-legacy": f"'mergeloom init MODEL MODEL' writes a configuration, {_MERGE} takes it",
    "mergekit-evolve": f"weights are not searched here; {_MERGE} takes those that were found",
    "bakllama": f"{_MERGE} takes 'slices' in place of 'layer_slices'",
}
"""Other commands of mergekit, with what to do instead."""


@dataclass(frozen=True)
class MergekitFlags:
    """Flags that differ from this program's options; ``None`` if not given."""

    allow_crimes: Annotated[
        Flag, Option("--allow-crimes/--no-allow-crimes", help="Mix architectures.")
    ] = None
    unsafe_truncate_embeddings: Annotated[
        Flag,
        Option(
            "--unsafe-truncate-embeddings/--no-unsafe-truncate-embeddings",
            help="If vocabularies differ, keep the common leading rows.",
        ),
    ] = None
    trust_remote_code: Annotated[
        Flag,
        Option(
            "--trust-remote-code/--no-trust-remote-code",
            help="No effect: code of a model is never run.",
        ),
    ] = None
    transformers_cache: Annotated[
        str | None,
        Option(metavar="DIR", help="The hub cache directory."),
    ] = None
    lora_merge_cache: Annotated[
        str | None,
        Option(metavar="DIR", help="No effect: adapters are merged while reading."),
    ] = None
    lora_merge_dtype: Annotated[
        str | None,
        Option(metavar="DTYPE", help="No effect: adapters are merged in float32."),
    ] = None
    random_seed: Annotated[int | None, Option(metavar="N", help="Random seed.")] = None
    verbose: Annotated[
        int, Option("-v", "--verbose", count=True, help="No effect: the plan is shown.")
    ] = 0
    cuda: Annotated[Flag, Option("--cuda/--no-cuda", help="Compute on all GPUs.")] = None
    low_cpu_memory: Annotated[
        Flag,
        Option("--low-cpu-memory/--no-low-cpu-memory", help="No effect: --ram limits memory."),
    ] = None
    lazy_unpickle: Annotated[
        Flag,
        Option(
            "--lazy-unpickle/--no-lazy-unpickle",
            help="No effect: tensors are read on demand, and nothing is unpickled.",
        ),
    ] = None
    read_to_gpu: Annotated[
        Flag,
        Option("--read-to-gpu/--no-read-to-gpu", help="No effect: tiles go there as needed."),
    ] = None
    multi_gpu: Annotated[
        Flag, Option("--multi-gpu/--no-multi-gpu", help="Compute on all GPUs.")
    ] = None
    num_threads: Annotated[
        int | None, Option("-j", "--num-threads", min=1, metavar="N", help="Compute threads.")
    ] = None
    gpu_rich: Annotated[bool, Option("--gpu-rich", help="Compute on all GPUs.")] = False
    async_write: Annotated[
        Flag,
        Option(
            "--async-write/--no-async-write", help="No effect: writing never holds up the rest."
        ),
    ] = None
    write_threads: Annotated[
        int | None,
        Option(metavar="N", help="No effect: writing never holds up the rest."),
    ] = None
    out_shard_size: Annotated[
        str | None,
        Option(metavar="SIZE", help="Largest output shard: 5B is 5 GB, as in mergekit."),
    ] = None
    copy_tokenizer: Annotated[
        Flag,
        Option(
            "--copy-tokenizer/--no-copy-tokenizer",
            help="No effect: the tokenizer is always written.",
        ),
    ] = None
    clone_tensors: Annotated[
        Flag,
        Option(
            "--clone-tensors/--no-clone-tensors",
            help="No effect: tensors are never shared in memory.",
        ),
    ] = None
    write_model_card: Annotated[
        Flag,
        Option(
            "--write-model-card/--no-write-model-card",
            help="No effect: a model card is always written.",
        ),
    ] = None
    safe_serialization: Annotated[
        Flag,
        Option(
            "--safe-serialization/--no-safe-serialization",
            help="No effect: only safetensors are written.",
        ),
    ] = None


def apply_flags(
    flags: MergekitFlags,
    output_options: OutputOptions,
    resources: ResourceOptions,
    note_flag: Callable[[str], None],
) -> tuple[OutputOptions, ResourceOptions]:
    """Apply mergekit's flags to ``output_options``, ``resources`` and the environment of this
    process (``HF_HUB_CACHE``); ``note_flag`` gets a note about each flag.

    Raises:
        LoomError: a size is invalid.
    """
    output_options, resources = translate_flags(flags, output_options, resources)
    if flags.transformers_cache is not None:
        os.environ["HF_HUB_CACHE"] = flags.transformers_cache
    for note in _notes(flags, output_options, resources):
        note_flag(note)
    return output_options, resources


def translate_flags(
    flags: MergekitFlags, output_options: OutputOptions, resources: ResourceOptions
) -> tuple[OutputOptions, ResourceOptions]:
    """Apply mergekit's flags to ``output_options`` and ``resources``.

    Raises:
        LoomError: a size is invalid.
    """
    gpus = bool(flags.cuda or flags.multi_gpu or flags.gpu_rich)
    if gpus and resources.device == "auto":
        resources = replace(resources, device="cuda")
    if flags.num_threads is not None:
        resources = replace(resources, threads=flags.num_threads)
    if flags.random_seed is not None:
        output_options = replace(output_options, seed=flags.random_seed)
    if flags.out_shard_size is not None:
        output_options = replace(output_options, max_shard_size=_shard_size(flags.out_shard_size))
    if flags.allow_crimes:
        output_options = replace(output_options, allow_different_architectures=True)
    if flags.unsafe_truncate_embeddings:
        output_options = replace(output_options, allow_truncated_embeddings=True)
    return output_options, resources


_WITHOUT_EFFECT = (
    ("--trust-remote-code", "trust_remote_code", "no code of a model is run"),
    (
        "--lora-merge-cache",
        "lora_merge_cache",
        "adapters are merged while they are read, nothing is cached",
    ),
    (
        "--lora-merge-dtype",
        "lora_merge_dtype",
        "adapters are merged in float32 and rounded once, on the way out",
    ),
    ("-v", "verbose", "the plan says what is done"),
    ("--low-cpu-memory", "low_cpu_memory", "--ram bounds the memory, --vram that of devices"),
    ("--lazy-unpickle", "lazy_unpickle", "nothing is ever unpickled"),
    ("--read-to-gpu", "read_to_gpu", "tiles go to a device as it needs them"),
    ("--async-write", "async_write", "writing never holds up the rest"),
    ("--write-threads", "write_threads", "writing never holds up the rest"),
    ("--copy-tokenizer", "copy_tokenizer", "the tokenizer is always written"),
    ("--clone-tensors", "clone_tensors", "tensors are never shared in memory"),
)
"""Flags that change nothing: their fields in `MergekitFlags`, and why."""

_NEGATED_WITHOUT_EFFECT = (
    ("--no-lazy-unpickle", "lazy_unpickle", "nothing is ever unpickled"),
    ("--no-copy-tokenizer", "copy_tokenizer", "the tokenizer is always written"),
    ("--no-write-model-card", "write_model_card", "a model card is always written"),
    (
        "--no-safe-serialization",
        "safe_serialization",
        "only safetensors are written, which transformers loads as well",
    ),
)


def _notes(
    flags: MergekitFlags, output_options: OutputOptions, resources: ResourceOptions
) -> Iterator[str]:
    """A note on each given flag."""
    device = f"--device {resources.device}"
    for flag, given, same in (
        ("--allow-crimes", flags.allow_crimes, "--allow-different-architectures"),
        (
            "--unsafe-truncate-embeddings",
            flags.unsafe_truncate_embeddings,
            "--allow-truncated-embeddings",
        ),
        ("--transformers-cache", flags.transformers_cache, "HF_HUB_CACHE"),
        ("--random-seed", flags.random_seed is not None, f"--seed {output_options.seed}"),
        ("--cuda", flags.cuda, device),
        ("--multi-gpu", flags.multi_gpu, device),
        ("--gpu-rich", flags.gpu_rich, device),
        ("--num-threads", flags.num_threads is not None, f"--threads {resources.threads}"),
        (
            "--out-shard-size",
            flags.out_shard_size,
            f"--max-shard-size {output_options.max_shard_size}",
        ),
    ):
        if given:
            yield f"{flag}: same as {same}"
    defaults = MergekitFlags()
    for flag, name, reason in _WITHOUT_EFFECT:
        value = getattr(flags, name)
        if value is not False and value != getattr(defaults, name):
            yield f"{flag}: no effect: {reason}"
    for flag, name, reason in _NEGATED_WITHOUT_EFFECT:
        if getattr(flags, name) is False:
            yield f"{flag}: no effect: {reason}"


def _shard_size(text: str) -> str:
    """A size in mergekit's format: k, m and b are thousands, millions and billions of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMbBgGtT]?)\s*", text)
    if match is None:
        return text
    size = int(float(match[1]) * _SHARD_UNITS[match[2].upper()])
    if not size:
        raise LoomError(
            f"--out-shard-size '{text[:40]}' is not a size", remedy="write for example 5B"
        )
    return str(size)
