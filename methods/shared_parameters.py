"""Parameters that several methods share, and helpers for them."""

from __future__ import annotations

from collections.abc import Sequence

from mergeloom.methods.declare import Parameter, ParameterError, TensorMerge

WEIGHT = Parameter(
    "weight", float, "how much this model counts; may be negative, and need not add up to 1"
)
DENSITY = Parameter(
    "density",
    float,
    "share of this model's task vector that is kept; 0 leaves the model out, 1 or more keeps all",
    default=1.0,
    minimum=0.0,
    usual=(0.0, 1.0),
)
LAMBDA = Parameter("lambda", float, "factor of the merged task vector", default=1.0)
INT8_MASK = Parameter(
    "int8_mask",
    bool,
    "accepted because published configurations set it; no masks are stored here, nothing changes",
    default=False,
)


def normalize(default: bool) -> Parameter:
    """The parameter ``normalize`` with its default for a method."""
    return Parameter(
        "normalize", bool, "divide by the sum of the participating weights", default=default
    )


def rescale(default: bool) -> Parameter:
    """The parameter ``rescale`` with its default for a method."""
    return Parameter(
        "rescale",
        bool,
        "scale the kept part of a task vector to the L1 norm of the whole",
        default=default,
    )


def kept_count(density: float, total: int, least: int = 0) -> int | None:
    """Number of elements to keep out of ``total``, ``least`` unless the density is 0; ``None`` for
    all."""
    if density >= 1:
        return None
    return max(int(density * total), min(least, total) if density > 0 else 0)


def sum_of_weights(weights: Sequence[float]) -> float:
    """The sum of ``weights``, to divide by.

    Raises:
        ParameterError: they cancel out up to rounding.
    """
    total = sum(weights)
    if abs(total) <= 1e-12 * sum(map(abs, weights)):
        listed = ", ".join(f"{weight:g}" for weight in weights)
        raise ParameterError(
            f"the weights ({listed}) sum to zero and cannot be normalised",
            remedy="change them, or set 'normalize: false'",
        )
    return total


def base_of(merge: TensorMerge) -> int:
    """The position of the base among the inputs.

    Raises:
        ParameterError: the base model lacks this tensor, and several others have it.
    """
    if merge.base is None:
        raise ParameterError(
            "the base model lacks this tensor, so there is nothing to start from",
            remedy="name a base model that has it",
        )
    return merge.base
