"""Rules in configurations that determine the kind of each layer without listing the layers.

A rule is a function from a configuration and a depth to one kind per layer. At another number a
layer may get another kind, so a rule that is kept must give each output layer the kind of its
source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any

from mergeloom.engine.base.records import dataclass

Config = Mapping[str, Any]
Kinds = list[Any]
KindsOf = Callable[[Config, int], Kinds | None]
"""Kinds of ``depth`` layers, or ``None`` if the configuration does not use the rule."""

LAYERS, MLPS = "layer_types", "mlp_layer_types"
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
DENSE, SPARSE = "dense", "sparse"
OWN, KEYS_AND_VALUES = "own", "keys and values"
"""The kind of layers with their own keys and values, where others use those of another layer."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One property of layers that depends on their number.

    ``name`` is the property. If ``listed``, it is also the key of a list with one entry per layer
    that transformers reads instead, if present; otherwise ``as_settings``, if given, returns
    settings equivalent to a list of kinds. ``keys`` are the settings the rule depends on;
    ``thresholds`` are those that count layers or are layer numbers, and may be changed for another
    stack. ``last`` is the kind that the class forces on the last layer. A rule with a ``side``
    applies only to the encoder or decoder of an object that describes both. A rule with ``sharing``
    says which layers use what it names, of the last layer of their kind that has it: those of kind
    ``own``. ``from_family`` is the family that a rule is from, if the model's own family is
    unknown.
    """

    name: str
    kinds: KindsOf
    keys: tuple[str, ...] = ()
    thresholds: tuple[str, ...] = ()
    listed: bool = True
    last: str | None = None
    side: str | None = None
    as_settings: Callable[[Kinds], Mapping[str, Any]] | None = None
    sharing: str = ""
    own: str = OWN
    from_family: str = ""

    def settings(self, kinds: Kinds) -> Mapping[str, Any] | None:
        """Settings that give each layer its kind without the rule; ``None`` if there are none."""
        if self.listed:
            return {self.name: kinds}
        return None if self.as_settings is None else self.as_settings(kinds)

    def of(self, config: Config, depth: int) -> Kinds | None:
        """One kind per layer, or ``None`` if the rule does not apply."""
        kinds = self.kinds(config, depth)
        return [*kinds[:-1], self.last] if kinds and self.last is not None else kinds

    def described(self, config: Config) -> str:
        """The rule's settings with their values, for messages."""
        found = [f"{key} {config[key]}" for key in self.keys if config.get(key) is not None]
        said = ", ".join(found) or "a rule of its architecture"
        return f"{said} (as in {self.from_family})" if self.from_family else said


def integer(config: Config, key: str | None, default: int) -> int:
    """An integer setting, or ``default`` where it is absent, null or of another type."""
    value = config.get(key) if key is not None else None
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def every_nth(
    key: str | None,
    default: int,
    at: Any = FULL,
    elsewhere: Any = SLIDING,
    *,
    shift: int = 1,
    name: str = LAYERS,
    listed: bool = True,
    last: str | None = None,
) -> Rule:
    """Every n-th layer is ``at``: those where n divides the number plus ``shift``."""

    def kinds(config: Config, depth: int) -> Kinds | None:
        period = integer(config, key, default)
        if period <= 0:
            return None
        return [elsewhere if (i + shift) % period else at for i in range(depth)]

    return Rule(name, kinds, (key,) if key else (), (), listed, last)


def first_layers(
    key: str | None,
    default: int,
    first: Any = DENSE,
    rest: Any = SPARSE,
    *,
    name: str = MLPS,
    listed: bool = True,
) -> Rule:
    """The first n layers are ``first``, the others ``rest``."""

    def kinds(config: Config, depth: int) -> Kinds:
        count = integer(config, key, default)
        return [first if i < count else rest for i in range(depth)]

    own = (key,) if key else ()
    return Rule(name, kinds, own, own, listed)


def sharing_last(key: str, default: int) -> Rule:
    """The last n layers use the keys and values of others (Gemma 3n)."""

    def kinds(config: Config, depth: int) -> Kinds:
        count = integer(config, key, default)
        return ["shared" if i >= depth - count else OWN for i in range(depth)]

    return Rule(
        "key and value sharing", kinds, (key,), (key,), listed=False, sharing=KEYS_AND_VALUES
    )


def by_layer_number(test: Callable[[int, int], Any], *, name: str = LAYERS) -> Rule:
    """Kinds by layer number and depth alone."""
    return Rule(name, lambda config, depth: [test(i, depth) for i in range(depth)])


def unless_listed(key: str, rule: Rule) -> Rule:
    """A rule that applies unless the list ``key`` gives the kinds layer by layer."""

    def kinds(config: Config, depth: int) -> Kinds | None:
        return None if config.get(key) is not None else rule.kinds(config, depth)

    return replace(rule, kinds=kinds)


def all_of_kind(kind: str, *, name: str = LAYERS) -> Rule:
    """All layers of one kind, unless a list says otherwise."""
    return Rule(name, lambda config, depth: [kind] * depth)


def sparse_from(default: int, *, listed: bool) -> Rule:
    """DeepSeek's mixtures of experts: from a given layer on, every ``moe_layer_freq``-th."""

    def kinds(config: Config, depth: int) -> Kinds | None:
        start = integer(config, "first_k_dense_replace", default)
        step = integer(config, "moe_layer_freq", 1)
        if step <= 0 or isinstance(config.get("moe_layer_freq"), list):
            return None
        return [SPARSE if i >= start and i % step == 0 else DENSE for i in range(depth)]

    keys = ("first_k_dense_replace", "moe_layer_freq")
    return Rule(MLPS, kinds, keys, keys[:1], listed)


def sparse_steps(dense: Sequence[int] = ()) -> Rule:
    """Qwen's mixtures of experts: every n-th layer that is not in ``mlp_only_layers``, which is
    ``dense`` where the configuration does not say it.

    That list may contain any layers, so it can express what the step cannot.
    """

    def kinds(config: Config, depth: int) -> Kinds | None:
        step = integer(config, "decoder_sparse_step", 1)
        listed = config.get("mlp_only_layers")
        only = dense if listed is None else listed
        if step <= 0 or config.get("num_experts") == 0:
            return None
        return [DENSE if i in only or (i + 1) % step else SPARSE for i in range(depth)]

    def as_settings(kinds: Kinds) -> Mapping[str, Any]:
        listed = [i for i, kind in enumerate(kinds) if kind == DENSE]
        return {"decoder_sparse_step": 1, "mlp_only_layers": listed}

    keys = ("decoder_sparse_step", "mlp_only_layers")
    return Rule(MLPS, kinds, keys, (), listed=False, as_settings=as_settings)


def sparse_interval() -> Rule:
    """Ernie 4.5's mixtures of experts: every n-th layer in a range."""

    def kinds(config: Config, depth: int) -> Kinds | None:
        step = integer(config, "moe_layer_interval", 1)
        start = _bound(config, "moe_layer_start_index", 1, min)
        stop = _bound(config, "moe_layer_end_index", -1, max)
        stop = depth - 1 if stop == -1 else stop
        if step <= 0:
            return None
        return [
            SPARSE if not (i + 1) % step and start <= i <= stop else DENSE for i in range(depth)
        ]

    keys = ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index")
    return Rule(MLPS, kinds, keys, keys[1:], listed=False)


def _bound(
    config: Config, key: str, default: int, outermost: Callable[[Sequence[int]], int]
) -> int:
    """An integer setting that may also list one for words and one for images (Ernie 4.5 VL)."""
    value = config.get(key)
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return outermost(value)
    return integer(config, key, default)


def windows_from(default: int, switch: str | None = "use_sliding_window") -> Rule:
    """Sliding windows from layer ``max_window_layers`` on (Qwen 2 and 3), if enabled."""

    def kinds(config: Config, depth: int) -> Kinds:
        uses = config.get("sliding_window", 4096) is not None
        uses = uses and (switch is None or bool(config.get(switch)))
        start = integer(config, "max_window_layers", default)
        return [SLIDING if uses and i >= start else FULL for i in range(depth)]

    return Rule(LAYERS, kinds, ("max_window_layers",), ("max_window_layers",))


def alternating_windows_until(default: int) -> Rule:
    """Sliding windows in every other layer before ``max_window_layers`` (Qwen 2 MoE), if
    enabled."""

    def kinds(config: Config, depth: int) -> Kinds:
        uses = bool(config.get("use_sliding_window"))
        stop = integer(config, "max_window_layers", default)
        return [FULL if not uses or i % 2 or i >= stop else SLIDING for i in range(depth)]

    return Rule(LAYERS, kinds, ("max_window_layers",), ("max_window_layers",))


def every_nth_from(
    period: str, start: str, at: Any, elsewhere: Any, defaults: tuple[int, int]
) -> KindsOf:
    """Every n-th layer, starting at one of the first n, is ``at`` (Jamba)."""

    def kinds(config: Config, depth: int) -> Kinds | None:
        step, first = integer(config, period, defaults[0]), integer(config, start, defaults[1])
        if not 0 <= first < step:
            return None
        return [at if i % step == first else elsewhere for i in range(depth)]

    return kinds


def repeated_pattern(key: str, default: Sequence[str]) -> KindsOf:
    """Kinds that are a short list repeated over all layers (RecurrentGemma)."""

    def kinds(config: Config, depth: int) -> Kinds | None:
        pattern = config.get(key) or default
        return list(islice(cycle(pattern), depth)) if isinstance(pattern, list | tuple) else None

    return kinds
