"""``tokenizer.transplant``: how to compute rows of tokens that a model lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, cast

from mergeloom.engine.base.errors import Place
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.base.suggest import suggest
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.keys import TRANSPLANT, Fields
from mergeloom.planners.config.yaml_values import Value

TransplantMethod = Literal["omp", "interpolation", "landmarks", "subword", "mean", "zero", "random"]
NeighbourWeights = Literal["distance", "barycentric", "least_squares"]
SubwordWeights = Literal["mean", "sum", "weighted", "first_last"]
PrefixTables = Literal["no", "embed", "head", "yes"]

METHODS: tuple[TransplantMethod, ...] = (
    *("omp", "interpolation", "landmarks", "subword", "mean", "zero", "random"),
)
NEIGHBOUR_WEIGHTS: tuple[NeighbourWeights, ...] = ("distance", "barycentric", "least_squares")
SUBWORD_WEIGHTS: tuple[SubwordWeights, ...] = ("mean", "sum", "weighted", "first_last")
PREFIX_TABLES: tuple[PrefixTables, ...] = ("no", "embed", "head", "yes")

_OTHER_NAMES = {
    "common_interpolation": "interpolation",
    "landmark_pca": "landmarks",
    "randn": "random",
    "john_hewitt": "random",
    "distance_proportional": "distance",
    "weighted_mean": "weighted",
    "lm_head": "head",
}
"""Names that other programs use."""

DEFAULT_K = 64
C = TypeVar("C", bound=str)


@dataclass(frozen=True, slots=True)
class TransplantSettings:
    """How to compute missing rows.

    ``k`` is the number of shared tokens used for each row (``omp``, ``interpolation``). ``cosine``
    and ``weights`` are for interpolation, ``subword`` for the method of that name, ``seed`` for
    random rows. ``prefix`` says in which tables a token first gets the row of the longest token
    that is a prefix of it.
    """

    place: Place
    method: TransplantMethod = "omp"
    k: int = DEFAULT_K
    cosine: bool = False
    weights: NeighbourWeights = "distance"
    subword: SubwordWeights = "mean"
    prefix: PrefixTables = "no"
    exclude_undertrained: bool = False
    seed: int = 0

    @property
    def uses_donor_rows(self) -> bool:
        """Whether the method uses the donor's rows."""
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
    defaults = TransplantSettings(value.place)
    return TransplantSettings(
        value.place,
        fields.read("method", lambda each: _choice(each, METHODS)) or defaults.method,
        fields.read("k", lambda each: each.positive("'k'")) or defaults.k,
        fields.read("cosine", lambda each: each.boolean("'cosine'")) or False,
        fields.read("weights", lambda each: _choice(each, NEIGHBOUR_WEIGHTS)) or defaults.weights,
        fields.read("subword", lambda each: _choice(each, SUBWORD_WEIGHTS)) or defaults.subword,
        fields.read("prefix", lambda each: _choice(each, PREFIX_TABLES)) or defaults.prefix,
        fields.read("exclude_undertrained", lambda each: each.boolean("'exclude_undertrained'"))
        or False,
        fields.read("seed", lambda each: each.integer("'seed'")) or 0,
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
