"""The modules of a model that an adapter means, which may have other names in the adapter.

An adapter has the names of the class it was trained with. Those of the checkpoint may differ in
prefixes, in another way for each tower, and in a few parts of layers:

    adapter                                         model
    model.language_model.layers.0.mlp.up_proj       language_model.model.layers.0.mlp.up_proj
    model.vision_tower.encoder.layers.0.mlp.fc1     vision_tower.vision_model.encoder.…
    model.multi_modal_projector.linear_1            multi_modal_projector.linear_1
    h.0.attn.c_attn                                 transformer.h.0.attn.c_attn
    model.layers.0.mlp.experts                      model.layers.0.block_sparse_moe.experts
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

_WRAPPERS = {"model", "language_model"}
"""Modules around a whole model, or its language model, that some of its classes have."""

_SENSES = re.compile(r"vision|visual|image|audio|speech")
_DECODER, _ENCODER = re.compile(r"decoder"), re.compile(r"encoder")

_RENAMED = (
    (re.compile(r"\.mlp\.router$"), ".block_sparse_moe.gate"),
    (re.compile(r"\.mlp\."), ".block_sparse_moe."),
    (re.compile(r"\.block_sparse_moe\.router$"), ".block_sparse_moe.router.layer"),
    (re.compile(r"^lm_head$"), "embed_out"),
)
"""Parts of names that transformers 5 changes when it loads a checkpoint (PhiMoE, Mixtral, MiniMax,
GraniteMoE, GPT-NeoX)."""

Fits = Callable[[str, str], bool]


def module_names(
    wanted: Sequence[str], known: Collection[str], fits: Fits
) -> tuple[dict[str, str], list[str]]:
    """The name in the model of each module of an adapter, and the modules that are not found.

    ``known`` are the modules of the model; ``fits`` says whether the adapter's change of its first
    argument fits the model's module, its second. No two modules get one name.
    """
    if all(name in known for name in wanted):
        return {name: name for name in wanted}, []
    found = _by_essence(wanted, known)
    _by_stem(wanted, known, fits, found)
    _by_root(wanted, known, found)
    taken = defaultdict(list)
    for name, other in found.items():
        taken[other].append(name)
    for names in taken.values():
        if len(names) > 1:
            for name in names:
                del found[name]
    return found, [name for name in wanted if name not in found]


def _by_essence(wanted: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Modules whose names are equal, or are equal without wrappers in one module of the model."""
    by_essence = defaultdict(list)
    for name in known:
        by_essence[_essence(name)].append(name)
    found = {}
    for name in wanted:
        if name in known:
            found[name] = name
            continue
        for spelled in _spellings(name):
            others = by_essence.get(_essence(spelled), [])
            if len(others) == 1:
                found[name] = others[0]
                break
    return found


def _spellings(name: str) -> Iterator[str]:
    yield name
    for pattern, new in _RENAMED:
        if pattern.search(name):
            yield pattern.sub(new, name)


def _essence(name: str) -> str:
    """A name without the wrappers that only some classes of a model have."""
    parts: list[str] = []
    for part in name.split("."):
        inner = part == "vision_model" and any(_SENSES.search(other) for other in parts)
        if part not in _WRAPPERS and not inner:
            parts.append(part)
    return ".".join(parts)


def _by_stem(
    wanted: Sequence[str], known: Collection[str], fits: Fits, found: dict[str, str]
) -> None:
    """Add numbered modules, by the part of their names before the number: its end, at least, is
    that of one stack of the model which has all of them, in the same sizes."""
    members: defaultdict[str, list[str]] = defaultdict(list)
    for name in wanted:
        if name not in found and (stem := _stem(name)) is not None:
            members[stem].append(name)
    stems = {stem for name in known if (stem := _stem(name)) is not None}
    of_senses = {bool(_SENSES.search(stem)) for stem in stems}
    for stem, names in members.items():
        scores = {
            other: _common_end(stem, other)
            for other in stems
            if _may_be_same(stem, other, strict=len(of_senses) > 1)
            and all(other + name[len(stem) :] in known for name in names)
            and all(fits(name, other + name[len(stem) :]) for name in names)
        }
        best = max(scores.values(), default=0)
        nearest = [other for other, score in scores.items() if score == best]
        if best and len(nearest) == 1:
            found.update((name, nearest[0] + name[len(stem) :]) for name in names)


def _stem(name: str) -> str | None:
    """The part of a module's name before the first number in it."""
    parts = name.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else "".join(f"{part}." for part in parts[:number])


def _may_be_same(stem: str, other: str, strict: bool) -> bool:
    """Whether two stacks may be the same by the words in their prefixes; ``strict`` if the model
    has several that differ in the sense (text, images, sounds)."""
    if strict and bool(_SENSES.search(stem)) != bool(_SENSES.search(other)):
        return False
    decodes, encodes = (
        [bool(pattern.search(each)) for each in (stem, other)] for pattern in (_DECODER, _ENCODER)
    )
    return not (
        (decodes[0] and encodes[1] and not decodes[1])
        or (encodes[0] and decodes[1] and not decodes[0])
    )


def _common_end(one: str, other: str) -> int:
    """Number of modules at the end of two prefixes that are equal."""
    count = 0
    for mine, theirs in zip(reversed(one.split(".")), reversed(other.split(".")), strict=False):
        if mine != theirs:
            break
        count += 1
    return count - 1  # both end in a dot


def _by_root(wanted: Iterable[str], known: Collection[str], found: dict[str, str]) -> None:
    """Add modules outside the layers, which are beside them in both."""
    roots = dict(_roots(found))
    for name in wanted:
        if name in found:
            continue
        for root in sorted(roots, key=len, reverse=True):
            moved = roots[root] + name.removeprefix(root)
            if name.startswith(root) and moved in known:
                found[name] = moved
                break


def _roots(found: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs of prefixes before the equal ends of names."""
    for name, other in found.items():
        mine, theirs = name.split("."), other.split(".")
        while mine and theirs and mine[-1] == theirs[-1]:
            mine.pop()
            theirs.pop()
        yield "".join(f"{part}." for part in mine), "".join(f"{part}." for part in theirs)
