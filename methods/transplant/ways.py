"""Ways to compute the row of a token that a model lacks; see `graft`.

Ways that compare use three tables with one row per token: *targets*, the donor's rows of tokens
that the model lacks; *atoms*, the donor's rows of tokens that both have; and *twins*, the model's
own rows of those tokens, in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainView, Statistic, Use
from mergeloom.methods.ops.draws import HASH, WORD, key_of, key_words
from mergeloom.methods.ops.loops.sizes import mixing_bytes, neighbours_bytes, pursuit_bytes
from mergeloom.methods.ops.tables import MAX_TARGETS, batch_size
from mergeloom.methods.transplant.landmarks import Landmarks
from mergeloom.methods.transplant.well_trained import WellTrained

if TYPE_CHECKING:
    from mergeloom.methods.ops.tables import Doubles, Flags, Numbers, Singles

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DonorSizes:
    """Sizes of the donor's tables: number of targets, number of atoms, and their width."""

    targets: int
    atoms: int
    width: int

    def check(self, width: int, side: Sequence[Shape]) -> None:
        """Check the shapes of targets, atoms and twins; rows of twins have ``width`` elements.

        Raises:
            ValueError: the shapes do not match.
        """
        wanted = [(self.targets, self.width), (self.atoms, self.width), (self.atoms, width)]
        if list(side[:3]) != wanted:
            raise ValueError(f"tables of {wanted} are needed, here are {list(side)}")

    def target_rows(self, grain: GrainView, missing: Numbers) -> Singles:
        """The rows of ``missing`` tokens in the table of targets: float32 (missing, width)."""
        import numpy as np

        starts = np.flatnonzero(np.diff(missing, prepend=missing[:1] - 2) != 1)
        runs = zip(starts, np.append(starts[1:], len(missing)), strict=True)
        read = grain.ops.read_rows
        rows = [read(grain.tables[0], int(missing[a]), int(b - a)) for a, b in runs]
        return np.concatenate(rows)


@dataclass(frozen=True)
class _OfNearAtoms:
    """A way that approximates a target by at most ``most`` atoms, and takes their twins."""

    space: DonorSizes
    most: int

    def check(self, width: int, side: Sequence[Shape]) -> None:
        self.space.check(width, side)
        if not 0 < self.most <= self.space.atoms:
            raise ValueError(f"{self.most} of {self.space.atoms} atoms cannot be taken")


@dataclass(frozen=True)
class Pursuit(_OfNearAtoms):
    """Orthogonal matching pursuit: approximates the target by a sum of at most ``most`` atoms, and
    takes the same sum of their twins.

    C. Goddard, F. Fernandes Neto, Training-Free Tokenizer Transplantation via Orthogonal Matching
    Pursuit, 2025, arXiv:2506.06607.
    """

    well_trained: WellTrained | None = None
    needs_moments = False

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("read_rows"), Use("pursue"), Use("mix_rows"))

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return _passes(self.well_trained)

    def operations(self) -> float:
        return float(self.space.atoms * self.space.width * self.most)

    @property
    def batch(self) -> int:
        return batch_size(pursuit_bytes(1, self.most, self.space.width))

    def workspace_bytes(self, width: int) -> int:
        count, own = self.batch, self.space.width
        memory = pursuit_bytes(count, self.most, own) + mixing_bytes(count, width)
        return memory + count * (12 * self.most + 8 * own)

    def table_reads(self, batches: int, evaluations: int) -> tuple[int, ...]:
        reads = (evaluations, self.most * batches, batches)
        return _all_table_reads(self.well_trained, reads)

    def rows(self, grain: GrainView, missing: Numbers, known: Sequence[Any]) -> Singles:
        targets, (atoms, twins) = self.space.target_rows(grain, missing), grain.tables[1:3]
        usable = known[0] if known else None
        numbers, coefficients = grain.ops.pursue(targets, atoms, usable, self.most)
        rows: Singles = grain.ops.mix_rows(twins, numbers, coefficients)
        return rows


Scheme = Literal["distance", "barycentric", "least_squares"]
SCHEMES: tuple[Scheme, ...] = ("distance", "barycentric", "least_squares")


@dataclass(frozen=True)
class Interpolation(_OfNearAtoms):
    """A weighted sum of the twins of the ``most`` nearest atoms.

    Weights are inverse distances (or cosines, if atoms are compared by angle), normalised to sum 1;
    or those that best approximate the target, with sum 1 (barycentric) or without (least squares).
    """

    cosine: bool = False
    scheme: Scheme = "distance"
    well_trained: WellTrained | None = None
    needs_moments = False

    @property
    def uses(self) -> tuple[Use, ...]:
        uses = ("read_rows", "neighbours", "products_of_rows", "mix_rows")
        return tuple(map(Use, uses))

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return _passes(self.well_trained)

    def operations(self) -> float:
        return float(self.space.width * (self.space.atoms + 4 * self.most**2))

    @property
    def batch(self) -> int:
        return batch_size(4 * self.most * self.space.width + 48 * (self.most + 1) ** 2)

    def workspace_bytes(self, width: int) -> int:
        count, own = self.batch, self.space.width
        rows = 4 * count * (self.most + 2) * own + mixing_bytes(count, width)
        return rows + neighbours_bytes(count, own) + 48 * count * (self.most + 1) ** 2

    def table_reads(self, batches: int, evaluations: int) -> tuple[int, ...]:
        return _all_table_reads(self.well_trained, (evaluations, 2 * batches, batches))

    def rows(self, grain: GrainView, missing: Numbers, known: Sequence[Any]) -> Singles:
        import numpy as np

        targets, (atoms, twins) = self.space.target_rows(grain, missing), grain.tables[1:3]
        usable, ops = known[0] if known else None, grain.ops
        numbers, near = ops.neighbours(targets, atoms, usable, self.most, self.cosine)
        products = ops.products_of_rows(targets, atoms, numbers)
        weights = self._weights(products, near > -np.inf)
        rows: Singles = ops.mix_rows(twins, numbers, np.ascontiguousarray(weights))
        return rows

    def _weights(self, products: Doubles, there: Flags) -> Doubles:
        """The weights of atoms (rows, most), from the dot products of targets and atoms."""
        import numpy as np

        own, along, gram = products[:, :1, 0], products[:, 0, 1:], products[:, 1:, 1:]
        if self.scheme == "distance":
            squares = np.diagonal(gram, axis1=1, axis2=2)
            if self.cosine:
                length = np.sqrt(np.maximum(own * squares, 1e-300))
                near = np.maximum(along / length, 0.0)
            else:
                near = 1.0 / np.sqrt(np.maximum(own - 2.0 * along + squares, 1e-12))
            near = np.where(there, near, 0.0)
            near += np.where(near.sum(1, keepdims=True) > 0.0, 0.0, there)
            return np.asarray(near / np.maximum(near.sum(1, keepdims=True), 1e-300))
        gram = np.where(there[:, :, None] & there[:, None, :], gram, 0.0)
        along = np.where(there, along, 0.0)
        if self.scheme == "barycentric":
            gram = np.pad(gram, ((0, 0), (0, 1), (0, 1)))
            gram[:, -1, :-1] = gram[:, :-1, -1] = there
            along = np.pad(along, ((0, 0), (0, 1)), constant_values=1.0)
        solved = np.linalg.pinv(gram, rcond=1e-10, hermitian=True) @ along[:, :, None]
        return np.asarray(solved[:, : self.most, 0])


@dataclass(frozen=True)
class Mixture:
    """Fixed sums of the model's own rows: those of the pieces into which its tokenizer splits a
    token.

    The side inputs are row numbers (int32) in a table (atoms, width), and their coefficients
    (float64), both of shape (targets, most).
    """

    targets: int
    most: int
    needs_moments = False
    passes: tuple[Statistic[Any, Any], ...] = ()

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("mix_rows"),)

    def check(self, width: int, side: Sequence[Shape]) -> None:
        *numbers, table = side
        if table[1:] != (width,) or numbers != [(self.targets, self.most)] * 2:
            raise ValueError(f"{side} is no mixture of {self.targets} rows of {width}")

    def operations(self) -> float:
        return float(self.most)

    def workspace_bytes(self, width: int) -> int:
        return 16 * self.batch * self.most + mixing_bytes(self.batch, width)

    @property
    def batch(self) -> int:
        return MAX_TARGETS

    def table_reads(self, batches: int, evaluations: int) -> tuple[int, ...]:
        return (batches,)

    def rows(self, grain: GrainView, missing: Numbers, known: Sequence[Any]) -> Singles:
        ops = grain.ops
        numbers, coefficients = (
            ops.numbers_of(each).reshape(-1, self.most)[missing] for each in grain.side
        )
        rows: Singles = ops.mix_rows(grain.tables[0], numbers, coefficients)
        return rows


@dataclass(frozen=True)
class LandmarkMap:
    """Maps targets by the rotation that best aligns the centred atoms with their twins; see
    `Landmarks`."""

    space: DonorSizes
    width: int
    needs_moments = False

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("read_rows"),)

    @property
    def passes(self) -> tuple[Statistic[Any, Any], ...]:
        return (Landmarks(self.space.atoms, self.space.width, self.width),)

    def check(self, width: int, side: Sequence[Shape]) -> None:
        self.space.check(width, side)
        if width != self.width:
            raise ValueError(f"rows are of {width}, not of {self.width}")

    def operations(self) -> float:
        atoms = self.space.atoms / max(self.space.targets, 1)
        return self.space.width * (1.0 + atoms)

    @property
    def batch(self) -> int:
        return MAX_TARGETS

    def workspace_bytes(self, width: int) -> int:
        return 16 * self.batch * (self.space.width + width)

    def table_reads(self, batches: int, evaluations: int) -> tuple[int, ...]:
        return (evaluations, 1, 1)

    def rows(self, grain: GrainView, missing: Numbers, known: Sequence[Any]) -> Singles:
        import numpy as np

        chosen, found = self.space.target_rows(grain, missing), known[0]
        rows = (chosen.astype(np.float64) - found.mean) @ found.map + found.twin_mean
        return np.asarray(rows, np.float32)


@dataclass(frozen=True)
class _WithoutDonor:
    """A way that reads no tables, for which the model's own rows suffice."""

    uses: ClassVar[tuple[Use, ...]] = ()
    passes: ClassVar[tuple[Statistic[Any, Any], ...]] = ()
    batch: ClassVar[int] = MAX_TARGETS

    def check(self, width: int, side: Sequence[Shape]) -> None:
        if side:
            raise ValueError(f"there is no use for {len(side)} tables")

    def table_reads(self, batches: int, evaluations: int) -> tuple[int, ...]:
        return ()

    def workspace_bytes(self, width: int) -> int:
        return 0


@dataclass(frozen=True)
class Mean(_WithoutDonor):
    """The mean of the model's own rows."""

    needs_moments = True

    def operations(self) -> float:
        return 1.0

    def rows(self, grain: GrainView, missing: Numbers, known: Sequence[Any]) -> Singles:
        import numpy as np

        mean = known[0].mean.astype(np.float32)
        return np.broadcast_to(mean, (len(missing), len(mean)))


@dataclass(frozen=True)
class Zero(_WithoutDonor):
    """Zeros."""

    needs_moments = False

    def operations(self) -> float:
        return 0.0

    def rows(self, grain: GrainView, missing: Numbers, known: Sequence[Any]) -> Singles:
        import numpy as np

        return np.zeros((len(missing), grain.shape[1]), np.float32)


@dataclass(frozen=True)
class Random(_WithoutDonor):
    """Normally distributed, with mean and standard deviation of each column of the model's rows.

    Values depend only on ``seed``, ``tensor`` and the number of the missing token.
    """

    seed: int
    tensor: str
    needs_moments = True

    def operations(self) -> float:
        return 100.0

    def workspace_bytes(self, width: int) -> int:
        return 80 * self.batch * width

    def rows(self, grain: GrainView, missing: Numbers, known: Sequence[Any]) -> Singles:
        import numpy as np

        keys = (key_of(self.seed, self.tensor, int(number)) for number in missing)
        drawn = np.stack([normal(key, grain.shape[1]) for key in keys])
        return np.asarray(known[0].mean + known[0].deviation * drawn, np.float32)


def normal(key: int, count: int) -> Doubles:
    """Standard normal numbers, two from each pair of uniform draws (Box-Muller).

    G. Box, M. Muller, A Note on the Generation of Random Normal Deviates, 1958.
    """
    import numpy as np

    first, second = key_words(key, 0)
    weyl, one, other = HASH
    pairs = -(-count // 2)
    mixed = np.arange(2 * pairs, dtype=np.uint64) * np.uint64(weyl) + np.uint64(first)
    mixed %= WORD
    mixed ^= mixed >> np.uint64(16)
    mixed = (mixed * np.uint64(one) % np.uint64(WORD)) ^ np.uint64(second)
    mixed ^= mixed >> np.uint64(15)
    mixed = mixed * np.uint64(other) % np.uint64(WORD)
    uniform = (mixed.astype(np.float64) + 0.5) / WORD
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:pairs])), 2.0 * np.pi * uniform[pairs:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _all_table_reads(well_trained: WellTrained | None, reads: tuple[int, ...]) -> tuple[int, ...]:
    """How often targets, atoms, twins and, with ``well_trained``, the tables of unused tokens are
    read."""
    if well_trained is None:
        return reads
    first, *others = reads
    return (first, *(times + 1 for times in others), *well_trained.unused_table_reads)


def _passes(well_trained: WellTrained | None) -> tuple[Statistic[Any, Any], ...]:
    return () if well_trained is None else (well_trained,)
