"""Plans tables of models whose missing rows are computed, most methods using a donor model."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence

from mergeloom.engine.base.dtypes import BY_CODE
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import GraphBuilder, Load, Merge
from mergeloom.engine.storage.memory_source import MemorySource
from mergeloom.methods.transplant import ways
from mergeloom.methods.transplant.graft import OWN, PADDING, GraftRows, RowKinds, Way
from mergeloom.methods.transplant.well_trained import WellTrained
from mergeloom.planners.config.transplant import TransplantSettings
from mergeloom.planners.models.model import Model
from mergeloom.planners.models.rows import uncoded_load
from mergeloom.planners.models.token_weights import Head
from mergeloom.planners.transplant.pieces import piece_weights


@dataclass(frozen=True, eq=False)
class ModelTokens:
    """The tokens of one model, in relation to the rows of the output.

    ``lacking`` are the output rows that the model lacks, in order; ``replacements`` maps some of
    them to its own rows that may be used for them. ``pieces`` has, by output row, its own rows of
    the tokens that its tokenizer splits the token into. ``shared`` are the output rows of tokens
    that both have, ``unused`` its own rows of tokens that never occur.
    """

    lacking: Sequence[int]
    replacements: Mapping[int, int]
    pieces: Mapping[int, tuple[int, ...]]
    shared: Sequence[int]
    unused: Sequence[int]


@dataclass(frozen=True, eq=False)
class TransplantPlan:
    """How missing rows are computed in one merge, with ``tokens`` for each of its models, in order.

    The output has the tokenizer and the rows of the ``donor``; ``unused`` are the donor's rows of
    tokens that never occur.
    """

    settings: TransplantSettings
    donor: Model | None
    tokens: Sequence[ModelTokens]
    unused: Sequence[int]

    def node(
        self,
        builder: GraphBuilder,
        tensor: str,
        own: Load | Merge,
        rows: array[int],
        model: Model,
        source: str,
        position: int,
        empty: Iterable[int],
    ) -> Merge:
        """The table ``tensor`` of a model, completed with the rows that it lacks.

        ``own`` is the table without them; ``rows`` has the row number in the model's own table,
        ``source``, of each row; ``empty`` are rows of no token.
        """
        tokens = self.tokens[position]
        is_head, settings = _is_head(model, source), self.settings
        kinds = array("i", [OWN]) * len(rows)
        for row in empty:
            kinds[row] = PADDING
        replaced_rows = {row for row, _ in self.replaced_rows(position, model, source)}
        missing = [row for row in tokens.lacking if row not in replaced_rows]
        theirs = self._donor_rows(model, is_head)
        if settings.uses_donor_rows:  # rows that the donor lacks too become the mean
            unknown = [row for row in missing if row >= theirs]
            for row in unknown:
                kinds[row] = PADDING
            missing = [row for row in missing if row < theirs]
        for number, row in enumerate(missing):
            kinds[row] = number
        way, side, tables = self._row_computation(
            builder, tensor, model, source, tokens, missing, rows, is_head
        )
        share, padding = len(missing) / len(rows), PADDING in kinds
        kernel = GraftRows(way, RowKinds.of(kinds), share, own.shape[1], padding)
        return builder.merge([own], kernel, tensor, side, tables)

    def replaced_rows(self, position: int, model: Model, source: str) -> Iterable[tuple[int, int]]:
        """Rows of the output that get another row of the model's table ``source``, with that
        row."""
        where = self.settings.prefix
        if where == "yes" or where == ("head" if _is_head(model, source) else "embed"):
            return self.tokens[position].replacements.items()
        return ()

    def _row_computation(
        self,
        builder: GraphBuilder,
        tensor: str,
        model: Model,
        source: str,
        tokens: ModelTokens,
        missing: Sequence[int],
        rows: array[int],
        is_head: bool,
    ) -> tuple[Way, list[Load], list[Load]]:
        """The computation of the rows, with its side inputs and tables."""
        settings = self.settings
        if settings.method == "mean":
            return ways.Mean(), [], []
        if settings.method == "zero":
            return ways.Zero(), [], []
        if settings.method == "random":
            return ways.Random(settings.seed, tensor), [], []
        if settings.method == "subword":
            return self._mixture(builder, model, source, tokens, missing, is_head)
        assert self.donor is not None
        name = self._donor_table(model, is_head)
        theirs, width = self.donor.shape(name)
        size = model.shape(source)[0]
        shared = [row for row in tokens.shared if row < theirs and rows[row] < size]
        own_rows = [rows[row] for row in shared]
        tables = [
            _rows(builder, self.donor, name, missing),
            _rows(builder, self.donor, name, shared),
            _rows(builder, model, source, own_rows),
        ]
        space, own = ways.DonorSizes(len(missing), len(shared), width), model.shape(source)[1]
        if settings.method == "landmarks":
            return ways.LandmarkMap(space, own), [], tables
        well_trained = None
        if settings.exclude_undertrained:
            unused = [row for row in self.unused if row < theirs]
            own_unused = [row for row in tokens.unused if row < size]
            lengths = (
                _length_shows_training(self.donor, is_head),
                _length_shows_training(model, is_head),
            )
            well_trained = WellTrained(
                len(shared), width, own, lengths, len(unused), len(own_unused)
            )
            tables += [_rows(builder, self.donor, name, unused)] if unused else []
            tables += [_rows(builder, model, source, own_unused)] if own_unused else []
        most = min(settings.k, len(shared))
        if settings.method == "omp":
            return ways.Pursuit(space, most, well_trained), [], tables
        scheme, cosine = settings.weights, settings.cosine
        return ways.Interpolation(space, most, cosine, scheme, well_trained), [], tables

    def _mixture(
        self,
        builder: GraphBuilder,
        model: Model,
        source: str,
        tokens: ModelTokens,
        missing: Sequence[int],
        is_head: bool,
    ) -> tuple[Way, list[Load], list[Load]]:
        used = sorted({piece for row in missing for piece in tokens.pieces.get(row, ())})
        place = {piece: number for number, piece in enumerate(used)}
        most = max((len(tokens.pieces.get(row, ())) for row in missing), default=0) or 1
        numbers, coefficients = array("i"), array("d")
        for row in missing:
            pieces = tokens.pieces.get(row, ())
            gap = most - len(pieces)
            numbers.extend([place[piece] for piece in pieces] + [0] * gap)
            how = self.settings.subword
            coefficients.extend([*piece_weights(len(pieces), how, is_head), *[0.0] * gap])
        shape = (len(missing), most)
        side = [
            _numbers(builder, numbers.tobytes(), "I32", shape, "pieces of tokens"),
            _numbers(builder, coefficients.tobytes(), "F64", shape, "weights of pieces"),
        ]
        table = _rows(builder, model, source, used or [0])
        return ways.Mixture(len(missing), most), side, [table]

    def _donor_table(self, model: Model, is_head: bool) -> str:
        """The donor's table that corresponds to the model's embedding or head."""
        assert self.donor is not None
        tokens = self.donor.tokens
        name = tokens.head if is_head and tokens.kind is Head.OWN else tokens.embedding
        if name is None:
            raise self.settings.place.error(
                f"the donor '{self.donor.name}' has no embedding to compare tokens by",
                "choose the method subword, mean, zero or random",
            )
        return name

    def _donor_rows(self, model: Model, is_head: bool) -> int:
        if not self.settings.uses_donor_rows or self.donor is None:
            return 0
        return self.donor.shape(self._donor_table(model, is_head))[0]


def _is_head(model: Model, source: str) -> bool:
    return source == model.tokens.head and source != model.tokens.embedding


def _length_shows_training(model: Model, is_head: bool) -> bool:
    """Whether the length of a row shows that it was trained, as in an embedding that is not
    tied."""
    return not is_head and model.tokens.kind is not Head.TIED


def _rows(builder: GraphBuilder, model: Model, tensor: str, rows: Sequence[int]) -> Load:
    """Rows of a tensor of a model as a load of elements that are not packed or coded."""
    return uncoded_load(builder, model.node(builder, tensor, rows), tensor)


def _numbers(
    builder: GraphBuilder, content: bytes, code: str, shape: tuple[int, ...], name: str
) -> Load:
    return builder.load(MemorySource(content, name), 0, BY_CODE[code], shape, name)
