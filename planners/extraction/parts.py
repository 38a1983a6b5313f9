"""Which tensors of a fine-tuned model become low-rank factors, and which are saved as they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import field

from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.extraction.document import ExtractDocument
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.roles import is_buffer
from mergeloom.planners.models.token_weights import Head

_WEIGHT, _BIAS = ".weight", ".bias"
_NOT_LINEAR = re.compile(
    r"(^|\.)(\w*norm\w*|ln_\w+|\w*embed(ding)?s?|wte|wpe|embed_\w+|\w*_embed(ding)?s?"
    r"|relative_attention_bias|position\w*|gate|router|\w*conv\w*|(mixer|mamba)\.out_proj)\.weight$",
    re.IGNORECASE,
)
"""Matrices of modules that are no linear layers: PEFT cannot wrap routers, which are parameters of
modules of their own, nor Mamba's last projection; and tables are looked up."""


@dataclass(frozen=True)
class AdaptedWeight:
    """A matrix (rows, columns) that gets factors of ``rank``.

    ``is_transposed`` says that it is stored as (in, out); ``is_table``, that it is an embedding.
    """

    tensor: str
    module: str
    rows: int
    columns: int
    rank: int
    is_transposed: bool
    is_table: bool


@dataclass
class Parts:
    """The parts of the adapter: ``adapted`` weights, ``saved`` tensors, each with its name in the
    adapter without PEFT's prefix, and reasons why others are ``left_out``."""

    adapted: list[AdaptedWeight] = field(default_factory=list)
    saved: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def used(self) -> Iterator[str]:
        """All tensors that the adapter contains, as factors or as they are."""
        yield from (weight.tensor for weight in self.adapted)
        yield from self.saved

    @property
    def inseparable(self) -> dict[str, str]:
        """The tensors left out although they are selected."""
        return {name: why for name, why in self.left_out.items() if why is _INSEPARABLE}

    @property
    def saved_modules(self) -> list[str]:
        """The modules whose complete weights are saved."""
        adapted = {weight.module for weight in self.adapted}
        modules = (name.rpartition(".")[0] for name in self.saved.values())
        return list(dict.fromkeys(m for m in modules if _unwrapped(m) not in adapted))

    @property
    def has_biases(self) -> bool:
        """Whether biases of adapted modules are saved."""
        return any(name.endswith(_BASE_BIAS) for name in self.saved.values())


_INSEPARABLE = "its module contains modules with factors, and PEFT saves modules whole"
_BASE_BIAS = ".base_layer.bias"
"""The end of PEFT's name for the bias of a module that it has wrapped."""


def _unwrapped(module: str) -> str:
    return module.removesuffix(".base_layer")


def choose_parts(tuned: Model, base: Model, document: ExtractDocument) -> Parts:
    """Choose what becomes of each tensor of ``tuned``.

    Raises:
        CheckpointError: the models do not have the same tensors.
    """
    _check_same(tuned, base)
    _check_names(base)
    parts, names = Parts(), [name for name in tuned if tuned.dtype(name).floating]
    transposed = _stores_transposed(tuned, names)
    tables = {tuned.tokens.embedding, tuned.tokens.head} - {None}
    is_tied = tuned.tokens.kind is Head.TIED
    biases = []
    for name in names:
        module, _, _ = name.rpartition(".")
        why = _reason_to_leave_out(name, module, tuned, tables, document)
        if why is not None:
            parts.left_out[name] = why
        elif is_tied and name == tuned.tokens.head:
            continue  # written with the embedding
        elif name.endswith(_BIAS):
            biases.append(name)
        elif _gets_factors(name, module, tuned, tables, is_tied, document):
            parts.adapted.append(_adapted(name, module, tuned, transposed, document.rank))
        else:
            parts.saved[name] = name
    adapted = {weight.module for weight in parts.adapted}
    for name in biases:
        module = name.removesuffix(_BIAS)
        parts.saved[name] = module + _BASE_BIAS if module in adapted else name
    _check_loadable(parts, any(_EXPERTS.search(name.rpartition(".")[0]) for name in names))
    above = {module[:end] for module in adapted for end, sign in enumerate(module) if sign == "."}
    above.add("")  # the model itself
    for name in [name for name in parts.saved if name.rpartition(".")[0] in above]:
        del parts.saved[name]
        parts.left_out[name] = _INSEPARABLE
    return parts


def _check_same(tuned: Model, base: Model) -> None:
    head = {tuned.tokens.head, base.tokens.head}
    for one, other in ((tuned, base), (base, tuned)):
        lacking = [n for n in one if n not in other and one.dtype(n).floating and n not in head]
        lacking = [n for n in lacking if not is_buffer(n, one.shape(n))]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise CheckpointError(
                f"'{one.name}' has '{lacking[0]}'{more}, which '{other.name}' lacks: an adapter "
                "changes weights, but cannot add or remove them",
                remedy="is this the model that it was trained from?",
            )
    kinds = tuned.tokens.kind, base.tokens.kind
    if Head.OWN in kinds and Head.TIED in kinds:
        own, tied = (tuned, base) if kinds[0] is Head.OWN else (base, tuned)
        raise CheckpointError(
            f"'{own.name}' has a head of its own, and '{tied.name}' has not: its embedding is its "
            "head",
            remedy="is this the model that it was trained from?",
        )


def _check_names(base: Model) -> None:
    """Check that the modules have the names that the classes of transformers give them."""
    if "text_config" not in base.config:
        return
    towers = (tower.prefix for tower in base.architecture.towers)
    other = next((prefix for prefix in towers if prefix and not prefix.startswith("model.")), None)
    if other is not None:
        raise CheckpointError(
            f"the classes of transformers have other names for the modules of '{base.name}' than "
            f"its files, as for '{other}0': PEFT would not find them",
            remedy="load base and fine-tuned model with transformers 5 and save them with "
            "save_original_format=False",
        )


_EXPERTS = re.compile(r"\.experts(\.|$)")
_LOST = {
    r"\.(shared_)?experts?(\.|$)": "keep all experts of a layer in one tensor",
    r"\.block_sparse_moe(\.|$)": "have another name for 'block_sparse_moe'",
    r"(^|\.)embed_out$": "have another name for 'embed_out'",
}
"""Modules that PEFT does not find, or not all of, in the classes of transformers 5, and why."""
_LOST_BESIDE_EXPERTS = {
    r"\.(gate|up|down)_proj$": "have modules of these names for what is one tensor of the experts"
}


def _check_loadable(parts: Parts, has_experts: bool) -> None:
    """Check that no module is known to be lost when PEFT loads the adapter.

    Raises:
        CheckpointError: one is.
    """
    modules = [name.rpartition(".")[0] for name in parts.used]
    patterns = _LOST | (_LOST_BESIDE_EXPERTS if has_experts else {})
    found = {
        pattern: module for pattern in patterns for module in modules if re.search(pattern, module)
    }
    for pattern, module in found.items():
        quoted = ", ".join(f"'{each}'" for each in found)
        listed = quoted if len(found) == 1 else f"[{quoted}]"
        raise CheckpointError(
            f"PEFT does not load an adapter of '{module}' completely: the classes of "
            f"transformers 5 {patterns[pattern]}",
            remedy=f'"exclude: {listed}" leaves out what it loses',
        )


def _reason_to_leave_out(
    name: str, module: str, tuned: Model, tables: Collection[str | None], document: ExtractDocument
) -> str | None:
    if is_buffer(name, tuned.shape(name)):
        return "it is a constant, not a weight"
    if name in tables and document.embeddings == "skip":
        return "embeddings and heads are left out ('embeddings: skip')"
    if any(pattern.search(module) for pattern in document.exclude):
        return "its module matches 'exclude'"
    wanted = (*document.include, *document.save)
    if document.include and not any(pattern.search(module) for pattern in wanted):
        return "its module does not match 'include'"
    return None


def _gets_factors(
    name: str,
    module: str,
    tuned: Model,
    tables: Collection[str | None],
    is_tied: bool,
    document: ExtractDocument,
) -> bool:
    towers = tuned.architecture.towers
    if len(tuned.shape(name)) != 2 or not name.endswith(_WEIGHT):
        return False
    if any(pattern.search(module) for pattern in document.save):
        return False
    if name in tables:
        return document.embeddings == "lora" and not is_tied
    in_layers = any(tower.prefix and name.startswith(tower.prefix) for tower in towers)
    return in_layers and _NOT_LINEAR.search(name) is None


def _adapted(name: str, module: str, tuned: Model, transposed: bool, rank: int) -> AdaptedWeight:
    rows, columns = tuned.shape(name)
    is_table = name == tuned.tokens.embedding
    is_transposed = transposed and name != tuned.tokens.head and not is_table
    return AdaptedWeight(
        name, module, rows, columns, min(rank, rows, columns), is_transposed, is_table
    )


def _stores_transposed(tuned: Model, names: Iterable[str]) -> bool:
    """Whether linear layers store their weights as (in, out), like GPT-2's: some bias has the
    length of a row of its weight, and none that of a column."""
    found = set()
    for name in names:
        weight = name.removesuffix(_BIAS) + _WEIGHT
        if name.endswith(_BIAS) and weight in tuned and len(tuned.shape(weight)) == 2:
            rows, columns = tuned.shape(weight)
            if rows != columns and tuned.shape(name) in ((rows,), (columns,)):
                found.add(tuned.shape(name) == (columns,))
    return found == {True}


def short_names(chosen: Sequence[str], modules: Iterable[str], exact: bool) -> list[str]:
    """Names that select exactly the ``chosen`` of all ``modules``: their last parts where these
    suffice, otherwise full names.

    PEFT takes a name for all modules that end with it, or with ``exact`` only where it is one or
    more whole parts.
    """
    wanted, all_modules = set(chosen), list(modules)
    found: dict[str, None] = {}
    for module in chosen:
        last = module.rpartition(".")[2]
        end = f".{last}" if exact else last
        selected = {each for each in all_modules if each == last or each.endswith(end)}
        found[last if selected <= wanted else module] = None
    return list(found)
