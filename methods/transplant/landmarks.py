"""The rotation that best aligns one set of points with another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mergeloom.engine.base.grains import Grains
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.kernel import GrainSum, GrainView, Use
from mergeloom.engine.graph.sums import GrainSums

if TYPE_CHECKING:
    from mergeloom.methods.ops.tables import Doubles

_ROWS = 512
"""Number of points added at once."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """x becomes (x - mean)·map + twin_mean; all float64."""

    mean: Doubles
    map: Doubles
    twin_mean: Doubles


@dataclass(frozen=True)
class Landmarks(GrainSum[Rotation]):
    """Computes the rotation from the second and third table of a merge, ``atoms`` and their twins.

    The wider of the two sets is projected to as many principal axes as the other has dimensions;
    there, the orthogonal matrix that best maps atoms to twins is taken (P. Schönemann, A
    generalized solution of the orthogonal Procrustes problem, 1966).

    Grain i of the output adds part i of the atoms.
    """

    atoms: int
    width: int
    twin_width: int

    @property
    def uses(self) -> tuple[Use, ...]:
        return (Use("read_rows"),)

    def accumulator_bytes(self, grains: Grains) -> int:
        return (2 * grains.count.bit_length() + 8) * 8 * self._numbers

    def workspace_bytes(self, grains: Grains) -> int:
        return 16 * _ROWS * (self.width + self.twin_width) + 16 * self._numbers

    def update(self, into: GrainSums, grain: GrainView, earlier: Sequence[Any]) -> None:
        import numpy as np

        total = np.zeros(self._numbers)
        share = self._share(grain)
        for first in range(share.start, share.stop, _ROWS):
            count = min(_ROWS, share.stop - first)
            one = grain.ops.read_rows(grain.tables[1], first, count)
            other = grain.ops.read_rows(grain.tables[2], first, count)
            one, other = one.astype(np.float64), other.astype(np.float64)
            parts = [one.sum(0), other.sum(0), (one.T @ other).ravel()]
            if self.width != self.twin_width:
                wider = one if self.width > self.twin_width else other
                parts.append((wider.T @ wider).ravel())
            total += np.concatenate(parts)
        into.add(grain.index, total)

    def finalize(self, total: GrainSums, earlier: Sequence[Any]) -> Rotation:
        import numpy as np

        width, twin = self.width, self.twin_width
        numbers = total.total
        mean, twin_mean = numbers[:width] / self.atoms, numbers[width : width + twin] / self.atoms
        at = width + twin
        across = numbers[at : at + width * twin].reshape(width, twin)
        across = across - self.atoms * np.outer(mean, twin_mean)
        if width == twin:
            return Rotation(mean, _orthogonal(across), twin_mean)
        least, most = sorted((width, twin))
        centre = mean if width > twin else twin_mean
        square = numbers[at + width * twin :].reshape(most, most)
        axes = np.linalg.eigh(square - self.atoms * np.outer(centre, centre))[1][:, -least:]
        if width > twin:
            return Rotation(mean, axes @ _orthogonal(axes.T @ across), twin_mean)
        return Rotation(mean, _orthogonal(across @ axes) @ axes.T, twin_mean)

    def _share(self, grain: GrainView) -> range:
        """The atoms that a grain adds."""
        size = _grain_rows(grain)
        grains = -(-grain.whole_shape[0] // size)
        part = -(-self.atoms // grains)
        first = grain.index * part
        return range(min(first, self.atoms), min(first + part, self.atoms))

    @property
    def _numbers(self) -> int:
        wider = max(self.width, self.twin_width) if self.width != self.twin_width else 0
        return self.width + self.twin_width + self.width * self.twin_width + wider**2


def _grain_rows(grain: GrainView) -> int:
    """Number of rows of every grain except the last, which may have fewer."""
    return grain.start // grain.whole_shape[1] // grain.index if grain.index else grain.shape[0]


def _orthogonal(matrix: Doubles) -> Doubles:
    """The orthogonal matrix nearest to a square one."""
    import numpy as np

    left, _, right = np.linalg.svd(matrix)
    return np.asarray(left @ right)
