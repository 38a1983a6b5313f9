"""The formats of weight files: which files they have, and what tensors are in one.

A format is a record: to read another one, write a function from a source to its tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import field

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.pieces import Range
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.storage.safetensors import Headers
from mergeloom.engine.storage.source import Source


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of weights: ``tensors`` in the order of their data, all of them in ``source``.

    The source's identity is as close as can be told without reading weights. ``metadata`` is what
    the file says of itself.
    """

    source: Source
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How a checkpoint in one format is laid out.

    ``index`` is the file that says in which shard each tensor is, ``single`` the name of a
    checkpoint of one file. Without either, files that end in one of ``suffixes`` are weights, but
    for the ``others``; ``several`` says whether they may be many that are not numbered.

    ``read`` looks at one file, whose header may be one that is known already. It raises
    `CheckpointError`: the file cannot be read, or breaks the format.
    """

    index: str
    single: str
    suffixes: tuple[str, ...]
    read: Callable[[Source, Headers], WeightFile]
    several: bool = True
    others: frozenset[str] = frozenset()


def _read_safetensors(source: Source, headers: Headers) -> WeightFile:
    header = headers.read(source)
    source = source.identified(header.digest)
    return WeightFile(
        source,
        {
            name: StoredTensor(
                Range(source, entry.start, entry.stop - entry.start), entry.dtype, entry.shape
            )
            for name, entry in header.entries.items()
        },
        header.metadata,
    )


def _read_torch(source: Source, headers: Headers) -> WeightFile:
    from mergeloom.engine.storage.torch_zip import read_torch  # late: few checkpoints need it

    found = read_torch(source)
    source = source.identified(hashlib.blake2b(found.raw, digest_size=12).hexdigest())
    return WeightFile(
        source,
        {
            name: StoredTensor.strided(
                source, entry.offset, entry.dtype, entry.shape, entry.strides
            )
            for name, entry in found.entries.items()
        },
    )


SAFETENSORS = WeightFormat(
    index="model.safetensors.index.json",
    single="model.safetensors",
    suffixes=(".safetensors",),
    read=_read_safetensors,
)

TORCH = WeightFormat(
    index="pytorch_model.bin.index.json",
    single="pytorch_model.bin",
    suffixes=(".bin", ".pt", ".pth", ".ckpt"),
    read=_read_torch,
    several=False,
    # What training programs put beside the weights.
    others=frozenset(
        {"training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth"}
    ),
)

FORMATS = (SAFETENSORS, TORCH)
"""The formats that are read, the one that is preferred first."""


def read_weights(source: Source, name: str, headers: Headers) -> WeightFile:
    """The tensors of the file called ``name``, in the format that its name tells; ``headers`` are
    those that are known already.

    Raises:
        CheckpointError: no format has such names, or it cannot be read, or breaks the format.
    """
    how = next((how for how in FORMATS if name.endswith(how.suffixes)), None)
    if how is None:
        raise CheckpointError(f"'{source.name}' is in no format of weights that is known")
    return how.read(source, headers)
