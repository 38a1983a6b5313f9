"""``verify --load``: checks that transformers can load an output.

transformers builds the class named in ``config.json`` on its "meta" device, which has no memory,
and gets empty tensors with the stored names and shapes. It renames, joins and ties them as it does
when it loads a model, and reports missing and unexpected ones. No weights are read.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mergeloom.engine.base.errors import LoomError
from mergeloom.planners.models.checkpoint import open_checkpoint
from mergeloom.report.records import Fault, LoadingReport


def loading_report(output: Path) -> LoadingReport:
    """Compare the stored tensors with those of the class named in ``config.json``.

    Raises:
        CheckpointError: ``output`` is not a checkpoint.
        LoomError: transformers is not installed, or does not have the class.
    """
    checkpoint = open_checkpoint(output)
    try:
        import transformers
    except ImportError as error:
        raise LoomError(
            "--load needs transformers, which is not installed",
            remedy="pip install transformers",
            code="no-transformers",
        ) from error
    cls = _model_class(checkpoint.config, transformers)
    shapes = {name: entry.shape for name, entry in checkpoint.described.items()}
    try:
        with _silenced():
            faults = tuple(_faults(_loading_info(cls, output, shapes)))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        faults = (Fault("config.json", f"no model can be built from it: {reason[:300]}"),)
    return LoadingReport(cls.__name__, str(transformers.__version__), len(shapes), faults)


def _model_class(config: Mapping[str, Any], transformers: Any) -> Any:
    """The class of transformers that a configuration names.

    Raises:
        LoomError: it names none, transformers lacks it, or its code is in the checkpoint.
    """
    names, kind = config.get("architectures"), config.get("model_type")
    name = str(names[0]) if isinstance(names, list) and names else ""
    cls = getattr(transformers, name, None) if name.isidentifier() else None
    if isinstance(cls, type) and kind in transformers.CONFIG_MAPPING:
        return cls
    if config.get("auto_map"):
        reason = "the model's class is code in its own directory (auto_map), which is not run"
        remedy = "load it with trust_remote_code=True, if you trust it"
    elif not name:
        reason, remedy = "config.json names no class ('architectures')", "write it there"
    else:
        reason = f"transformers {transformers.__version__} has no {name!r} (model_type {kind!r})"
        remedy = "install a version that has it"
    raise LoomError(f"--load cannot be carried out: {reason}", remedy=remedy, code="no-class")


def _loading_info(
    cls: Any, output: Path, shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Any]:
    import torch

    config = cls.config_class.from_pretrained(output)
    stored = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    _, info = cls.from_pretrained(
        None,
        config=config,
        state_dict=stored,
        device_map="meta",
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    return dict(info)


def _faults(info: Mapping[str, Any]) -> Iterator[Fault]:
    for name in sorted(map(str, info.get("missing_keys", ()))):
        yield Fault(name, "the class needs it, but it is missing: it would be random")
    for name in sorted(map(str, info.get("unexpected_keys", ()))):
        yield Fault(name, "the class does not use it: it would be ignored")
    for name, found, expected in sorted(info.get("mismatched_keys", ()), key=str):
        yield Fault(str(name), f"it is {_shape_text(found)}, in the class {_shape_text(expected)}")
    for text in info.get("error_msgs", ()):
        yield Fault("config.json", " ".join(str(text).split())[:300])


def _shape_text(shape: Any) -> str:
    return "x".join(map(str, shape)) or "one number"


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Suppress what transformers prints while it loads."""
    from transformers.utils import logging as transformers_logging

    their_logging: Any = transformers_logging
    before, bar = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
    their_logging.set_verbosity(logging.CRITICAL)
    their_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        their_logging.set_verbosity(before)
        if bar:
            their_logging.enable_progress_bar()
