"""Checks slices before their tensors are planned.

They find missing parameters, parameters without effect, models listed twice and empty slices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mergeloom.engine.base.errors import ConfigError
from mergeloom.methods import registry
from mergeloom.methods.declare import REQUIRED, Base, Method
from mergeloom.planners.config.config import MergeDocument, Module, OutputSlice, SourceEntry
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.parameters import Level
from mergeloom.planners.models.architecture import Tower
from mergeloom.planners.slices.slices import Slice
from mergeloom.planners.slices.weights import warn_of_weights


def slice_levels(entry: OutputSlice, module: Module, document: MergeDocument) -> list[Level]:
    """The parameter levels of a slice, highest precedence first."""
    return [
        Level("slice", entry.parameters),
        Level("module", module.parameters),
        Level("global", document.parameters),
    ]


def check_required(
    part: Slice, method: Method, levels: Sequence[Level], findings: Findings
) -> None:
    """Report required parameters of a slice that no level sets."""
    if len(part.sources) == 1:
        return  # without them it is copied
    sources = [
        (layers.source, layers.model.name)
        for position, layers in enumerate(part.sources)
        if position != part.base and layers.source is not None
    ]
    _report_missing(part.entry, sources, method, levels, findings)


def check_written_requirements(document: MergeDocument, findings: Findings) -> None:
    """As `check_required`, of a document whose models are not all there."""
    try:
        method = registry.get(document.merge_method)
    except ConfigError:
        return
    if any("parameters" in each.place.path for each in findings.errors if each.place is not None):
        return  # what is missing may be what could not be read
    for module in document.modules.values():
        for entry in module.slices:
            base = None
            if method.base is not Base.NONE:
                base = entry.base_model or document.base_model
            named = {each.model for each in entry.sources} | ({base} if base is not None else set())
            if len(named) > 1:  # one alone is copied
                sources = [(each, str(each.model)) for each in entry.sources if each.model != base]
                levels = slice_levels(entry, module, document)
                _report_missing(entry, sources, method, levels, findings)


def _report_missing(
    entry: OutputSlice,
    sources: Sequence[tuple[SourceEntry, str]],
    method: Method,
    levels: Sequence[Level],
    findings: Findings,
) -> None:
    """Report required parameters that no level sets; ``sources`` are the models that need their
    own, with their names."""
    higher = {name for level in levels for name in level.parameters.entries}
    for source, name in sources:
        for parameter in method.model_parameters:
            own = source.parameters.entries
            if parameter.default is REQUIRED and parameter.name not in {*own, *higher}:
                findings.error(
                    source.place,
                    f"'{method.name}' needs '{parameter.name}' of the model '{name}'",
                    f"add 'parameters: {{{parameter.name}: ...}}'",
                    "missing-parameter",
                )
    for parameter in method.settings:
        if parameter.default is not REQUIRED or parameter.name in higher:
            continue
        findings.error(
            entry.place,
            f"'{method.name}' needs '{parameter.name}'",
            f"add it under the global 'parameters' ({parameter.help})",
            "missing-parameter",
        )


def warn_of_no_effect(
    part: Slice, method: Method, levels: Sequence[Level], findings: Findings
) -> None:
    """Warn of settings of a slice without effect, and of models listed twice."""
    base = part.sources[part.base].source if part.base is not None else None
    if base is not None:
        for name, entries in base.parameters.entries.items():
            findings.warn(
                entries[0].place if entries else base.place,
                f"'{name}' has no effect on the base model '{base.model}': the differences of the "
                "others from it are merged",
                code="no-effect",
            )
    others = [layers for i, layers in enumerate(part.sources) if i != part.base]
    if part.base is not None and not others:
        findings.warn(
            part.entry.place,
            f"'{method.name}' merges other models into the base model "
            f"'{part.sources[part.base].model.name}', and here are none: it is copied",
            code="no-effect",
        )
    _warn_of_listed_models(len(others), method, levels, findings)
    warn_of_weights(others, method, levels, findings)
    for position, layers in enumerate(part.sources):
        for first in part.sources[:position]:
            same = first.model is layers.model and first.start == layers.start
            if same and layers.source is not None and layers.tower.prefix == first.tower.prefix:
                spelled = str(layers.source.model)
                again = f"'{spelled}' is listed a second time"
                if spelled != first.model.name:
                    again = f"'{spelled}' is the model '{first.model.name}', listed a second time"
                findings.warn(
                    layers.source.place,
                    again,
                    "if that is intended, it counts twice",
                    "listed-twice",
                )
                break


def _warn_of_listed_models(
    models: int, method: Method, levels: Sequence[Level], findings: Findings
) -> None:
    """Warn of a gradient over layers that looks like a list of values per model."""
    for parameter in method.model_parameters:
        for level in levels:
            for entry in level.parameters.entries.get(parameter.name, ()):
                values = entry.value
                if not isinstance(values, tuple) or len(values) != models or models < 2:
                    continue
                if len(set(values)) == 1 or sum(values) == 1:
                    findings.warn(
                        entry.place,
                        f"a list is a gradient over the layers, and holds for each of the {models} "
                        "models alike",
                        f"for a value per model write '{parameter.name}' under its own "
                        "'parameters'",
                        "gradient",
                    )


def warn_of_empty_slices(slices: Sequence[Slice], module: Module, findings: Findings) -> None:
    """Warn of empty slices; if all are empty, that is an error."""
    empty = [part for part in slices if part.length == 0]
    if not empty or module.whole:
        return
    if len(empty) == len(slices):
        findings.error(module.place, "no slice takes any layer, so the output would have none")
        return
    for part in empty:
        if part is slices[-1]:
            what = "only the weights after the layers (final norm, head) are taken from its models"
        elif part is slices[0]:
            what = "only the weights before the layers (embeddings) are taken from its models"
        else:
            what = "it has no effect"
        findings.warn(part.entry.place, f"a slice of no layers: {what}", code="empty-slice")


_RELATIVE_POSITIONS = re.compile(
    r"relative_attention_bias|rel_attn_embed|rel_embeddings|rel(ative)?_pos(ition)?_bias"
)
"""Weights that the attention of every layer of a tower adds: relative positions."""

_BEFORE_ALL = re.compile(_RELATIVE_POSITIONS.pattern + r"|pre_ln|position_bias")
"""Weights that are stored in the first layer and hold for all, or act before all (RWKV)."""


_FACTOR = re.compile(r"\blora_(embedding_)?[AB]\b")
"""One of the two factors of an adapter stored in a checkpoint."""


def warn_of_ends(tower: Tower, slices: Sequence[Slice], findings: Findings) -> None:
    """Find layers that lose, or get, a weight that only the first or the last layer has (the bias
    of the last attention of GPT-NeoX Japanese)."""
    depth = sum(part.length for part in slices)
    for end, place in (("first", 0), ("last", depth - 1)):
        for part in slices:
            for source in part.sources:
                suffixes = [s for s in getattr(source.tower, end) if not _BEFORE_ALL.search(s)]
                special = 0 if end == "first" else source.tower.layers - 1
                layers = range(source.start, source.stop)
                here = source.start + place - part.first
                loses = special in layers and here != special
                gets = here in layers and here != special
                if suffixes and (loses or gets):
                    what = "has it no longer" if loses else "gets it"
                    findings.warn(
                        part.entry.place,
                        f"only the {end} layer of a model like '{source.model.name}' has "
                        f"'{suffixes[0].lstrip('.')}': layer {special if loses else here} of it "
                        f"{what}, and computes something else than before",
                        f"keep that layer the {end} one",
                        "positions",
                    )
                    return


def warn_of_relative_positions(tower: Tower, slices: Sequence[Slice], findings: Findings) -> None:
    """Warn of layers that get relative positions from another model than their own."""
    filled = [part for part in slices if part.length]
    if not filled:
        return
    first = filled[0]
    named = [tower.layer_name(0, suffix) for suffix in tower.first]
    shared = [name for name in (*named, *tower.before) if _RELATIVE_POSITIONS.search(name)]
    owners = list(dict.fromkeys(source.model.name for source in first.sources))
    for part in filled if shared else ():
        others = {source.model.name for source in part.sources} - {*owners}
        if others:
            findings.warn(
                part.entry.place,
                f"'{shared[0]}' holds for all layers and is made from "
                f"{' and '.join(map(repr, owners))}: layers of "
                f"{' and '.join(map(repr, sorted(others)))} attend differently than before",
                "stack layers of one model, or merge the models in every slice",
                "positions",
            )
            return


def warn_of_factors(tower: Tower, slices: Sequence[Slice], findings: Findings) -> None:
    """Warn if models with adapters inside, factor by factor, are merged: W + B A is not linear in
    the two factors."""
    for part in slices:
        sources = part.sources if part.length else ()
        having = [s for s in sources if any(map(_FACTOR.search, s.tower.suffixes[s.start]))]
        if len(having) > 1:
            first = having[0]
            name = next(filter(_FACTOR.search, first.tower.suffixes[first.start]))
            findings.warn(
                part.entry.place,
                f"'{tower.layer_name(part.first, name)}' is a factor of an adapter inside "
                f"{' and '.join(dict.fromkeys(repr(s.model.name) for s in having))}: factors that "
                "differ are merged one by one, and their product is not the merge of the products",
                "merge each adapter into its model's weights before",
                "factors",
            )
            return
