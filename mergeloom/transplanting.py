"""Transplants: a model with the tokenizer of another, as a merge of one model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mergeloom import api, arguments
from mergeloom.api import Observer
from mergeloom.arguments import Pathlike, Size
from mergeloom.engine.hardware.accelerators import AUTO
from mergeloom.made_configuration import plan_made
from mergeloom.planners.planner import DEFAULT_SHARD_BYTES
from mergeloom.results import MergeResult, PlannedMerge

_PATH = "tokenizer.transplant."
"""Begins the place of settings of the rows in the configuration that is made here."""


def plan_transplant(
    model: Pathlike,
    donor: Pathlike,
    *,
    method: str = "omp",
    k: int = 64,
    cosine: bool = False,
    weights: str = "distance",
    subword: str = "mean",
    prefix: str = "no",
    exclude_undertrained: bool = False,
    pad_to_multiple_of: int | None = None,
    dtype: str | None = None,
    output: Pathlike | None = None,
    ram: Size | None = None,
    threads: int | None = None,
    device: str = AUTO,
    vram: Size | None = None,
    seed: int = 0,
    max_shard_size: Size = DEFAULT_SHARD_BYTES,
    model_dirs: Mapping[str, Pathlike] | None = None,
    search: Pathlike | Sequence[Pathlike] = (),
    observer: Observer | None = None,
) -> PlannedMerge:
    """Plan a transplant: ``model`` with the tokenizer of ``donor``; reads headers and vocabularies.

    Tokens that both have keep the rows of ``model``. ``method`` says how the rows of all others are
    computed: ``omp``, ``interpolation``, ``landmarks``, ``subword``, ``mean``, ``zero`` or
    ``random`` (by ``seed``). ``k`` is the number of tokens that a row is computed from (``omp``,
    ``interpolation``); ``cosine`` finds the nearest by angle, and ``weights`` is ``distance``,
    ``barycentric`` or ``least_squares`` (``interpolation``); ``subword`` is ``mean``, ``sum``,
    ``weighted`` or ``first_last``. ``prefix`` (``no``, ``embed``, ``head``, ``yes``) says in which
    tables a token gets the row of its longest prefix; ``exclude_undertrained`` ignores tokens that
    seem untrained; ``pad_to_multiple_of`` pads the number of rows; ``dtype`` is that of the output.
    The result is given to `merge`. For the other arguments see `plan`.

    Raises:
        LoomError: an argument is invalid. ConfigError, CheckpointError: a model is missing or
        invalid, or its tokenizer cannot be used. BudgetError: the budget is too small.
        DeviceError: ``device`` is not available.
    """
    rows: dict[str, Any] = {"method": method, "prefix": prefix}
    if method in ("omp", "interpolation", "common_interpolation"):
        rows |= {"k": k, "exclude_undertrained": exclude_undertrained}
    if method in ("interpolation", "common_interpolation"):
        rows |= {"cosine": cosine, "weights": weights}
    if method == "subword":
        rows["subword"] = subword
    if method in ("random", "randn", "john_hewitt"):
        rows["seed"] = seed
    tokenizer: dict[str, Any] = {"source": os.fspath(donor), "transplant": rows}
    if pad_to_multiple_of is not None:
        tokenizer["pad_to_multiple_of"] = pad_to_multiple_of
    configuration: dict[str, Any] = {
        "merge_method": "passthrough",
        "models": [{"model": os.fspath(model)}],
        "tokenizer": tokenizer,
    }
    if dtype is not None:
        configuration["dtype"] = dtype
    return plan_made(
        configuration,
        _PATH,
        observer,
        output=output,
        ram=ram,
        threads=threads,
        device=device,
        vram=vram,
        seed=seed,
        max_shard_size=max_shard_size,
        model_dirs=model_dirs,
        search=search,
    )


TRANSPLANT_OPTIONS = frozenset(inspect.signature(plan_transplant).parameters)
"""All arguments of `plan_transplant`."""


def transplant(
    model: Pathlike,
    donor: Pathlike,
    output: Pathlike,
    *,
    restart: bool = False,
    observer: Observer | None = None,
    **options: Any,
) -> MergeResult:
    """Write ``model`` with the tokenizer of ``donor`` into the directory ``output``; the same call
    continues if it was interrupted.

    Takes the arguments of `plan_transplant`. ``restart`` discards the output of an earlier run.

    Raises:
        LoomError: as `plan_transplant` and `merge`.
    """
    directory = arguments.path_of(output, "the output")
    planned = plan_transplant(model, donor, output=directory, observer=observer, **options)
    return api.merge(planned, directory, restart=restart, observer=observer)
