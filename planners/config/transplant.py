"""``tokenizer.transplant``: how rows of tokens that a model lacks are computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, cast

from mergeloom.engine.base.errors import Place
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import suggest
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.keys import TRANSPLANT, Fields
from mergeloom.planners.config.yaml_values import Value

Method = Literal["omp", "interpolation", "landmarks", "subword", "mean", "zero", "random"]
Weights = Literal["distance", "barycentric", "least_squares"]
Subword = Literal["mean", "sum", "weighted", "first_last"]
Where = Literal["no", "embed", "head", "yes"]

METHODS: tuple[Method, ...] = (
    *("omp", "interpolation", "landmarks", "subword", "mean", "zero", "random"),
)
WEIGHTS: tuple[Weights, ...] = ("distance", "barycentric", "least_squares")
SUBWORDS: tuple[Subword, ...] = ("mean", "sum", "weighted", "first_last")
WHERE: tuple[Where, ...] = ("no", "embed", "head", "yes")

_OTHER_NAMES = {
    "common_interpolation": "interpolation",
    "landmark_pca": "landmarks",
    "randn": "random",
    "john_hewitt": "random",
    "distance_proportional": "distance",
    "weighted_mean": "weighted",
    "lm_head": "head",
}
"""Names used by other programs."""

MOST = 64
C = TypeVar("C", bound=str)


@dataclass(frozen=True, slots=True)
class TransplantSettings:
    """How missing rows are computed.

    ``k`` is the number of shared tokens used for each row (``omp``, ``interpolation``). ``cosine``
    and ``weights`` are for interpolation, ``subword`` for the method of that name, ``seed`` for
    random rows. ``prefix`` says in which tables a token first gets the row of the longest token
    that is a prefix of it.
    """

    place: Place
    method: Method = "omp"
    k: int = MOST
    cosine: bool = False
    weights: Weights = "distance"
    subword: Subword = "mean"
    prefix: Where = "no"
    exclude_undertrained: bool = False
    seed: int = 0

    @property
    def compares(self) -> bool:
        """Whether the donor's rows are used."""
        return self.method in ("omp", "interpolation", "landmarks")


def read_transplant(value: Value, findings: Findings) -> TransplantSettings:
    """Read ``transplant``: a mapping, or just the method.

    Raises:
        ConfigError: it is something else, or a value is not one of the choices.
    """
    if isinstance(value.content, str):
        return TransplantSettings(value.place, _choice(value, METHODS))
    if value.content is True:
        return TransplantSettings(value.place)
    fields = Fields(value, TRANSPLANT, findings)
    usual = TransplantSettings(value.place)
    return TransplantSettings(
        value.place,
        fields.read("method", lambda each: _choice(each, METHODS)) or usual.method,
        fields.read("k", lambda each: _positive(each, "'k'")) or usual.k,
        fields.read("cosine", lambda each: _truth(each, "'cosine'")) or False,
        fields.read("weights", lambda each: _choice(each, WEIGHTS)) or usual.weights,
        fields.read("subword", lambda each: _choice(each, SUBWORDS)) or usual.subword,
        fields.read("prefix", lambda each: _choice(each, WHERE)) or usual.prefix,
        fields.read("exclude_undertrained", lambda each: _truth(each, "'exclude_undertrained'"))
        or False,
        fields.read("seed", lambda each: each.whole("'seed'")) or 0,
    )


def _choice(value: Value, choices: Sequence[C]) -> C:
    content = value.content
    if isinstance(content, bool):  # YAML's yes and no
        content = "yes" if content else "no"
    text = _OTHER_NAMES.get(str(content), content)
    if text not in choices:
        remedy = suggest(str(content), choices) or f"choose {', '.join(choices)}"
        raise value.error(f"{value.kind} is not one of the choices", remedy)
    return cast(C, text)


def _positive(value: Value, what: str) -> int:
    number = value.whole(what)
    if number < 1:
        raise value.error(f"{what} must be 1 or more, not {number}")
    return number


def _truth(value: Value, what: str) -> bool:
    if not isinstance(value.content, bool):
        raise value.error(f"{what} must be true or false, not {value.kind}")
    return value.content
