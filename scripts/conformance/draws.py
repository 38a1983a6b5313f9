"""Check the random choices of both programs statistically.

One fine-tune is added to its base with weight 1, so that the kept elements can be seen in the
result. The differences from the expected shares are given in standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]

LIMIT = 5.0
"""Deviation, in standard deviations, that counts as significant."""

_METHODS = ("dare_linear", "dare_ties", "della", "della_linear")
_DENSITIES = (0.3, 0.7)
_EPSILON = 0.2
_WEIGHTS = (0.5, 0.3, 0.4)


@dataclass(frozen=True)
class Draw:
    """A random quantity: its expectation, its value in each program, and its standard deviation."""

    method: str
    what: str
    expected: float
    ours: float
    theirs: float
    spread: float

    @property
    def our_deviation(self) -> float:
        """Deviation of mergeloom, in standard deviations."""
        return (self.ours - self.expected) / self.spread

    @property
    def their_deviation(self) -> float:
        """Deviation of mergekit, in standard deviations."""
        return (self.theirs - self.expected) / self.spread

    @property
    def sound(self) -> bool:
        """Whether both programs are as expected."""
        return abs(self.our_deviation) < LIMIT and abs(self.their_deviation) < LIMIT


def draws(models: Path, out: Path, environment: Path) -> list[Draw]:
    """Run randomised merges with both programs and count the kept elements.

    Raises:
        OSError: mergekit's process cannot be started, or ends early.
        ValueError: a merge failed.
    """
    import mergeloom
    from scripts.conformance.mergekit_runs import load, run_mergekit

    documents = list(_documents(models))
    merges = [(document, out / f"mergekit-{number}") for number, document in enumerate(documents)]
    for error in run_mergekit(merges, environment, seed=1):
        if error is not None:
            raise ValueError(f"mergekit: {error}")
    base = load(models / "base")
    tunes = [load(models / name) for name in ("one", "two", "three")]
    found: list[Draw] = []
    for number, document in enumerate(documents):
        mergeloom.merge(document, out / f"mergeloom-{number}", ram="4GiB", seed=1)
        ours, theirs = (load(out / f"{name}-{number}") for name in ("mergeloom", "mergekit"))
        found += _counted(document, base, tunes, ours, theirs)
    return found


def _documents(models: Path) -> Iterator[dict[str, Any]]:
    def document(method: str, weights: tuple[float, ...], density: float, rescale: bool) -> Any:
        epsilon = {"epsilon": _EPSILON} if method.startswith("della") else {}
        return {
            "merge_method": method,
            "base_model": str(models / "base"),
            "dtype": "float32",
            "parameters": {"rescale": rescale},
            "models": [
                {
                    "model": str(models / name),
                    "parameters": {"weight": weight, "density": density, **epsilon},
                }
                for name, weight in zip(("one", "two", "three"), weights, strict=False)
            ],
        }

    for method in _METHODS:
        for density in _DENSITIES:
            yield document(method, (1.0,), density, False)
        yield document(method, (1.0,), _DENSITIES[0], True)
        if method == "dare_linear":
            yield document(method, _WEIGHTS, _DENSITIES[0], True)


def _counted(
    document: dict[str, Any], base: Tensors, tunes: list[Tensors], ours: Tensors, theirs: Tensors
) -> Iterator[Draw]:
    method, rescale = document["merge_method"], document["parameters"]["rescale"]
    density = document["models"][0]["parameters"]["density"]

    def draw(what: str, expected: float, of: Callable[[Tensors], float], spread: float) -> Draw:
        return Draw(method, what, expected, of(ours), of(theirs), spread)

    if len(document["models"]) > 1:
        yield from _moments(draw, density, base, tunes)
    elif rescale:
        # Rounding of base + task vector makes the sum of magnitudes slightly uncertain.
        yield draw("L1 norm when rescaled", 1.0, lambda out: _size(out, base, tunes[0]), 1e-5)
    elif method.startswith("della"):
        yield from _by_rank(draw, density, base, tunes[0])
    else:
        changed = {name: tunes[0][name] != base[name] for name in base}
        yield _kept(draw, f"share kept, density {density}", changed, base, _constant(density))


def _constant(value: float) -> Callable[[str], Tensor]:
    import torch

    return lambda name: torch.tensor(value)


def _kept(
    draw: Callable[..., Draw],
    what: str,
    looked_at: Tensors,
    base: Tensors,
    chance: Callable[[str], Tensor],
) -> Draw:
    """The share of elements that are kept, where each has its own probability."""
    count = sum(int(mask.sum()) for mask in looked_at.values())
    chances = {n: chance(n).expand(mask.shape)[mask].double() for n, mask in looked_at.items()}
    expected = sum(float(p.sum()) for p in chances.values()) / count
    spread = math.sqrt(sum(float((p * (1 - p)).sum()) for p in chances.values())) / count

    def share(out: Tensors) -> float:
        return sum(int((out[n] != base[n])[mask].sum()) for n, mask in looked_at.items()) / count

    return draw(what, expected, share, spread)


def _by_rank(
    draw: Callable[..., Draw], density: float, base: Tensors, tune: Tensors
) -> Iterator[Draw]:
    """The shares kept of whole matrices, and of the parts of each row with similar ranks."""

    ranks, rows = {}, [name for name in base if base[name].dim() == 2]
    for name in rows:
        order = (tune[name] - base[name]).abs().argsort(1, descending=True)
        # Rank as a fraction of the row: 0 for the largest element, 1 for the smallest.
        ranks[name] = order.argsort(1) / (order.shape[1] - 1)

    def chance(name: str) -> Tensor:
        return density + _EPSILON * (1 - 2 * ranks[name].double())

    parts = {"": (0.0, 1.0), " of the largest": (0.0, 0.1), " of the smallest": (0.9, 1.0)}
    for which, (low, high) in parts.items():
        looked_at = {n: (ranks[n] >= low) & (ranks[n] <= high) & (tune[n] != base[n]) for n in rows}
        tenth = f"{which} tenth" if which else ""
        yield _kept(draw, f"share kept{tenth}, density {density}", looked_at, base, chance)


def _size(out: Tensors, base: Tensors, tune: Tensors) -> float:
    """The extreme ratio of two L1 norms: what was added, and the task vector."""
    quotients = [
        float((out[n].double() - base[n].double()).abs().sum())
        / float((tune[n].double() - base[n].double()).abs().sum())
        for n in base
    ]
    return max(quotients, key=lambda quotient: abs(quotient - 1))


def _moments(
    draw: Callable[..., Draw], density: float, base: Tensors, tunes: list[Tensors]
) -> Iterator[Draw]:
    """Mean and mean square of the sum of three fine-tunes, compared with the expectation of DARE.

    Dropping and rescaling keep the mean, and add Σ w²τ² (1/density - 1) to the mean square.
    """
    import torch

    weighted = torch.cat(
        [
            torch.stack(
                [
                    w * (t[n].double() - base[n].double())
                    for w, t in zip(_WEIGHTS, tunes, strict=True)
                ]
            ).flatten(1)
            for n in base
        ],
        dim=1,
    )
    mean = weighted.sum(0)
    noises = weighted.square() * (1 / density - 1)
    noise = noises.sum(0)
    direction = mean / mean.norm()

    def added(out: Tensors) -> Tensor:
        return torch.cat([(out[n].double() - base[n].double()).flatten() for n in base])

    def along(out: Tensors) -> float:
        return float(added(out) @ direction / mean.norm())

    def square(out: Tensors) -> float:
        return float((added(out) - mean).square().sum() / noise.sum())

    spread = float((noise * direction.square()).sum().sqrt() / mean.norm())
    yield draw("sum of three, along its mean", 1.0, along, spread)
    fourth = weighted.square().square() * (1 - density) * (1 + ((1 - density) / density) ** 3)
    pairs = noise.square() - noises.square().sum(0)
    deviation = float((fourth.sum(0) - noises.square().sum(0) + 2 * pairs).sum().sqrt())
    yield draw("sum of three, its mean square", 1.0, square, deviation / float(noise.sum()))
