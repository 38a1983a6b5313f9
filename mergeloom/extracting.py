"""Extraction of an adapter from a fine-tuned model, as a document of its own kind."""

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
from mergeloom.results import MergeResult, PlannedMerge

_PATH = "extract."
"""Begins the place of settings in the configuration that is made here."""


def plan_extract(
    model: Pathlike,
    base: Pathlike,
    *,
    rank: int = 32,
    embeddings: str = "save",
    save: str | Sequence[str] | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    dtype: str | None = None,
    output: Pathlike | None = None,
    ram: Size | None = None,
    threads: int | None = None,
    device: str = AUTO,
    vram: Size | None = None,
    model_dirs: Mapping[str, Pathlike] | None = None,
    search: Pathlike | Sequence[Pathlike] = (),
    observer: Observer | None = None,
) -> PlannedMerge:
    """Plan the extraction of a LoRA adapter that turns ``base`` into ``model``, approximately.

    Weights of linear layers become two factors of ``rank``. ``embeddings`` (``save``, ``lora``,
    ``skip``) says what becomes of embedding and head. ``save``, ``include`` and ``exclude`` are
    regular expressions, searched in the names of modules: of those saved as they are, and of those
    that are, or are not, in the adapter. ``dtype`` is that of the adapter, by default the model's.
    The result is given to `merge`. For the other arguments see `plan`.

    Raises:
        LoomError: an argument is invalid. ConfigError, CheckpointError: a model is missing or
        invalid, or does not fit the other. BudgetError: the budget is too small. DeviceError:
        ``device`` is not available.
    """
    settings: dict[str, Any] = {
        "model": os.fspath(model),
        "base_model": os.fspath(base),
        "rank": rank,
        "embeddings": embeddings,
    }
    for key, given in (("save", save), ("include", include), ("exclude", exclude)):
        if given:
            settings[key] = given if isinstance(given, str) else list(given)
    configuration: dict[str, Any] = {"extract": settings}
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
        model_dirs=model_dirs,
        search=search,
    )


EXTRACT_OPTIONS = frozenset(inspect.signature(plan_extract).parameters)
"""All arguments of `plan_extract`."""


def extract(
    model: Pathlike,
    base: Pathlike,
    output: Pathlike,
    *,
    restart: bool = False,
    observer: Observer | None = None,
    **options: Any,
) -> MergeResult:
    """Write an adapter that turns ``base`` into ``model`` into the directory ``output``; the same
    call continues if it was interrupted.

    Takes the arguments of `plan_extract`. ``restart`` discards the output of an earlier run.

    Raises:
        LoomError: as `plan_extract` and `merge`.
    """
    directory = arguments.path_of(output, "the output")
    planned = plan_extract(model, base, output=directory, observer=observer, **options)
    return api.merge(planned, directory, restart=restart, observer=observer)
