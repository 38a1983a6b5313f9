"""The merges of scripts/run conformance: methods, parameters, small checkpoints.

A family is a folder of checkpoints of one shape: a base, fine-tunes of it, an unrelated model, and
one equal to the base. A case is a configuration that refers to models by these names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scripts.fixtures.checkpoints import make
from scripts.fixtures.shapes import SHAPES, Shape

Document = Mapping[str, Any]

TUNES = ("one", "two", "three")


@dataclass(frozen=True)
class Family:
    """Checkpoints of one shape; ``dtypes`` by model, with that of ``base`` as the default.

    ``whole``: all cases run on it, instead of one per method.
    """

    shape: Shape
    dtypes: Mapping[str, str] = field(default_factory=lambda: {"base": "bf16"})
    tied: Sequence[str] = ()
    whole: bool = False

    def make(self, folder: Path) -> None:
        """Write the checkpoints, each to a directory of its name.

        Raises:
            OSError: they cannot be written.
        """
        for name, seed in _SEEDS.items():
            make(
                folder / name,
                self.shape,
                dtype=self.dtypes.get(name, self.dtypes["base"]),
                seed=seed,
                finetune_of=_SEEDS["base"] if name in TUNES else None,
                tied=name in self.tied,
            )


_SEEDS = {"base": 0, "twin": 0, "stranger": 7, "one": 1, "two": 2, "three": 3}
MODELS = tuple(_SEEDS)
_TINY = SHAPES["tiny"]
_WIDE = replace(SHAPES["small"], layers=1, vocab=4000)
FAMILIES = {
    "bf16": Family(_TINY, whole=True),
    "f32": Family(_TINY, {"base": "f32"}, whole=True),
    "tied": Family(_TINY, tied=MODELS),
    "mixed": Family(_TINY, {"base": "f32", "one": "bf16", "two": "f16"}, tied=("two",)),
    "wide": Family(_WIDE),
}


@dataclass(frozen=True)
class Case:
    """One merge; ``settings`` describes its settings."""

    family: str
    settings: str
    document: Document

    @property
    def method(self) -> str:
        """The name of its method."""
        return str(self.document["merge_method"])

    def __str__(self) -> str:
        return f"{self.family} {self.method} {self.settings}".strip()

    def located(self, folder: Path, dtype: str) -> dict[str, Any]:
        """The configuration with the models of ``folder``, and with ``dtype`` for arithmetic and
        output.
        """

        def locate(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {
                    key: str(folder / each) if key in ("model", "base_model") else locate(each)
                    for key, each in value.items()
                }
            return [locate(each) for each in value] if isinstance(value, list) else value

        located: dict[str, Any] = locate(self.document)
        return {"dtype": dtype, **located}


def _merge(
    method: str,
    models: Sequence[str],
    each: Mapping[str, Any] = {},
    *,
    base: str | None = None,
    **settings: Any,
) -> Document:
    """A merge of whole models; a tuple in ``each`` has one value for each model."""

    def of(number: int) -> dict[str, Any]:
        given = {
            name: value[number] if isinstance(value, tuple) else value
            for name, value in each.items()
        }
        return {"model": models[number]} | ({"parameters": given} if given else {})

    document: dict[str, Any] = {"merge_method": method}
    document["models"] = [of(number) for number in range(len(models))]
    if base is not None:
        document["base_model"] = base
    if settings:
        document["parameters"] = {name.rstrip("_"): value for name, value in settings.items()}
    return document


def _on_base(
    method: str, models: Sequence[str], each: Mapping[str, Any] = {}, **settings: Any
) -> Document:
    return _merge(method, models, each, base="base", **settings)


SOME = {"weight": (0.5, 0.3, 0.4)}
NEGATIVE = {"weight": (1.0, -0.5, 0.4)}
DENSE = {"density": (0.2, 1.0, 0.7)}
ROWS: dict[str, Any] = {"nuslerp_flatten": False}
COLUMNS: dict[str, Any] = {**ROWS, "nuslerp_row_wise": True}


def _averages() -> Iterator[Document]:
    yield _merge("passthrough", ["one"], {"scale": 0.7})
    yield _merge("passthrough", ["one"])
    yield _merge("linear", TUNES, SOME)
    yield _merge("linear", TUNES, {"weight": 1.0})
    yield _merge("linear", TUNES, NEGATIVE)
    yield _merge("linear", TUNES, SOME, normalize=False)
    yield _merge("linear", ["one"], {"weight": 0.5})
    yield _merge("linear", ["one", "stranger"], {"weight": (1.0, -1.0)})


def _sphere() -> Iterator[Document]:
    for other in ("stranger", "one", "twin"):
        for t in (0.3, 0.0, 0.5, 1.0):
            yield _on_base("slerp", [other], t=t)
    for pair in (("one", "stranger"), ("one", "two"), ("base", "twin")):
        for weights in ((0.2, 0.8), (1.0, 1.0), (1.0, -1.0), (-0.5, 1.0)):
            for mode in ({}, ROWS, COLUMNS):
                yield _merge("nuslerp", pair, {"weight": weights}, **mode)
    for mode in ({}, ROWS, COLUMNS):
        yield _on_base("nuslerp", ("one", "two"), {"weight": (0.2, 0.8)}, **mode)
        yield _on_base("nuslerp", ("one", "twin"), {"weight": (0.2, 0.8)}, **mode)
    for models in (TUNES, ("one", "stranger", "two"), ("one", "two"), ("base", "twin")):
        chosen = {"weight": SOME["weight"][: len(models)]}
        yield _merge("multislerp", models, chosen)
        yield _merge("multislerp", models, chosen, normalize_weights=False)
        yield _merge("karcher", models)
        yield _merge("karcher", models, max_iter=1)
        yield _merge("karcher", models, tol=0.01)
    yield _on_base("multislerp", TUNES, SOME)
    yield _merge("multislerp", TUNES, NEGATIVE)
    yield _merge("multislerp", ("one", "two"), {"weight": (1.0, -1.0)}, normalize_weights=False)
    for wise in (False, True):
        for models in (TUNES, ("one", "two"), ("one", "stranger"), ("one", "twin")):
            yield _on_base("model_stock", models, filter_wise=wise)


def _task_vectors() -> Iterator[Document]:
    yield _on_base("task_arithmetic", TUNES, SOME)
    yield _on_base("task_arithmetic", TUNES, NEGATIVE)
    yield _on_base("task_arithmetic", TUNES, SOME, normalize=True)
    yield _on_base("task_arithmetic", TUNES, SOME, lambda_=0.5)
    yield _on_base("task_arithmetic", TUNES, {"weight": 0.0})
    yield _on_base("task_arithmetic", ("twin", "one"), {"weight": 0.7})
    yield _on_base("task_arithmetic", TUNES, {"weight": (1.0, -0.5, -0.5)}, normalize=True)
    for density in (0.5, 0.0, 0.1, 0.95, 1.0):
        yield _on_base("ties", TUNES, {**SOME, "density": density})
    yield _on_base("ties", TUNES, {**NEGATIVE, "density": 0.5})
    yield _on_base("ties", TUNES, {**NEGATIVE, "density": 0.5}, normalize=False)
    yield _on_base("ties", TUNES, {**SOME, **DENSE}, normalize=False)
    yield _on_base("ties", TUNES, {**SOME, **DENSE}, lambda_=0.5)
    yield _on_base("ties", TUNES, {**SOME, **DENSE}, int8_mask=True)
    yield _on_base("ties", TUNES, {**SOME, "density": 0.5}, rescale=True)
    yield _on_base("ties", ("twin", "one"), {"weight": 0.7, "density": 0.5})
    yield _on_base("ties", ("twin",), {"weight": 0.7, "density": 0.5}, rescale=True)
    for name in ("breadcrumbs", "breadcrumbs_ties"):
        for density, gamma in ((0.5, 0.01), (0.9, 0.1), (0.9, 0.3), (0.3, 0.0), (1.0, 0.01)):
            yield _on_base(name, TUNES, {**SOME, "density": density, "gamma": gamma})
        yield _on_base(name, TUNES, {**SOME, "density": 0.0})
        yield _on_base(name, TUNES, {**SOME, **DENSE}, normalize=True)
        yield _on_base(name, TUNES, {**NEGATIVE, **DENSE}, lambda_=0.5)
        yield _on_base(name, TUNES, {**SOME, "density": 0.6}, rescale=True)
        yield _on_base(name, ("twin", "one"), {"weight": 0.7, "density": 0.5})
    for name in ("dare_linear", "dare_ties", "della", "della_linear"):
        yield _on_base(name, TUNES, {**SOME, "density": 1.0})
        yield _on_base(name, TUNES, NEGATIVE)
        yield _on_base(name, TUNES, SOME, normalize=True, lambda_=0.5)
        yield _on_base(name, ("twin",), {"weight": 0.7, "density": 0.5})
    for topk in (0.5, 0.0, 0.1, 0.9, 1.0):
        yield _on_base("sce", TUNES, select_topk=topk)
    yield _on_base("sce", ("one", "stranger"))
    yield _on_base("sce", ("one", "stranger"), select_topk=0.5)
    yield _on_base("sce", ("one", "twin"), select_topk=0.5)
    yield _on_base("sce", ("one",))


def _swaps() -> Iterator[Document]:
    for name in ("ram", "ramplus_tl"):
        yield _on_base(name, TUNES, epsilon=2e-3)
        yield _on_base(name, TUNES)
        yield _on_base(name, ("one", "stranger"))
        yield _on_base(name, ("one", "twin"))
    yield _on_base("ramplus_tl", TUNES, epsilon=2e-3, r=0.5, alpha=3.0)
    for t in (2e-3, 0.0, 1e-4):
        yield _on_base("nearswap", ["one"], t=t)
    yield _on_base("nearswap", ["stranger"], t=0.01)
    yield _on_base("nearswap", ["twin"], t=0.01)
    for other in ("one", "stranger", "twin"):
        yield _on_base("arcee_fusion", [other])


def _configurations() -> Iterator[tuple[str, Document]]:
    """Slices, gradients and filters: which value applies to a tensor, and where the tensor goes."""

    def source(model: str, start: int, stop: int, **parameters: Any) -> dict[str, Any]:
        given = {"parameters": parameters} if parameters else {}
        return {"model": model, "layer_range": [start, stop]} | given

    def slices(method: str, *parts: list[dict[str, Any]], **more: Any) -> Document:
        return {"merge_method": method, "slices": [{"sources": part} for part in parts]} | more

    curve = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
        {"value": 0.5},
    ]
    yield "stack", slices("passthrough", [source("one", 0, 3)], [source("two", 1, 4)])
    whole = [source("base", 0, 4), source("one", 0, 4)]
    yield "curves", slices("slerp", whole, base_model="base", parameters={"t": curve})
    shifted = [source("base", 0, 3), source("stranger", 1, 4)]
    yield "shifted", slices("slerp", shifted, base_model="base", parameters={"t": curve})
    parts = (
        [source("one", 0, 2, weight=[0, 1]), source("two", 0, 2, weight=0.5)],
        [source("two", 1, 4, weight=1.0), source("three", 1, 4, weight=[0.2, 0.4, 0.8])],
    )
    yield "parts", slices("linear", *parts)
    filtered = [{"filter": "mlp", "value": 0.9}, {"filter": "norm", "value": 0.1}, {"value": 0.4}]
    each = {"weight": filtered, "density": [1, 0.5, 0.2]}
    yield "filters", _on_base("ties", TUNES, each, normalize=True)
    half = _merge("linear", TUNES, SOME)
    yield "float16", {**half, "out_dtype": "float16"}
    yield "bfloat16", {**half, "out_dtype": "bfloat16"}


def settings_of(document: Document) -> str:
    """Describe a merge of whole models: models and parameters, without the method."""
    models = [entry["model"] for entry in document["models"]]
    settings = [",".join(models)] if models != list(TUNES) else []
    if "base_model" in document and document["merge_method"] in ("nuslerp", "multislerp"):
        settings.append("base")
    names = dict.fromkeys(n for entry in document["models"] for n in entry.get("parameters", {}))
    for name in names:
        values = [entry["parameters"][name] for entry in document["models"]]
        same = all(value == values[0] for value in values)
        settings.append(
            f"{name}={json.dumps(values[0] if same else values, separators=(',', ':'))}"
        )
    for name, value in document.get("parameters", {}).items():
        settings.append(f"{name}={json.dumps(value)}")
    return " ".join(settings)


def cases() -> list[Case]:
    """All cases, family by family."""
    result = []
    for name, family in FAMILIES.items():
        seen = set()
        for document in (*_averages(), *_sphere(), *_task_vectors(), *_swaps()):
            if family.whole or document["merge_method"] not in seen:
                seen.add(document["merge_method"])
                result.append(Case(name, settings_of(document), document))
        if family.shape is _TINY:
            result += [Case(name, settings, document) for settings, document in _configurations()]
    return result
