"""The tokenizer settings of a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field

from mergeloom.engine.base.errors import Place
from mergeloom.engine.base.records import dataclass
from mergeloom.planners.config.findings import Findings
from mergeloom.planners.config.keys import TOKEN, TOKEN_SOURCE, TOKENIZER, Fields
from mergeloom.planners.config.model_reference import (
    ModelReference,
    parse_reference,
    read_reference,
)
from mergeloom.planners.config.transplant import TransplantSettings, read_transplant
from mergeloom.planners.config.yaml_values import Value

UNION, BASE = "union", "base"
_OLD_PREFIX = "model:"


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The origin of one token's row: the row of the same token in ``model``, its row of another
    ``token`` or ``token_id``, or zeros (``zero``). The default rules apply if all are absent.

    With ``force``, the row of every model is replaced, not only of those that lack the token.
    """

    model: ModelReference | None
    token: str | None
    token_id: int | None
    zero: bool
    force: bool
    place: Place


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """``tokenizer`` or ``tokenizer_source``: ``source`` is ``union``, ``base`` or a model;
    ``pad_to_multiple_of`` is in rows; ``transplant`` says how rows of missing tokens are
    computed."""

    source: str | ModelReference
    place: Place
    tokens: Mapping[str, TokenRow] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    transplant: TransplantSettings | None = None

    def models(self) -> Iterator[ModelReference]:
        """The models named in the settings."""
        if isinstance(self.source, ModelReference):
            yield self.source
        yield from (row.model for row in self.tokens.values() if row.model is not None)


def read_tokenizer_source(value: Value, findings: Findings) -> TokenizerSettings:
    """Read ``tokenizer_source``.

    Raises:
        ConfigError: it is neither 'union', 'base' nor a model.
    """
    return TokenizerSettings(_source(value, findings), value.place)


def read_tokenizer(value: Value, findings: Findings) -> TokenizerSettings:
    """Read ``tokenizer``: a mapping, or just the source.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value.content, str):
        return read_tokenizer_source(value, findings)
    fields = Fields(value, TOKENIZER, findings)
    rows: dict[str, TokenRow] = {}
    if "tokens" in fields:
        for token, item in fields["tokens"].mapping("'tokens'").items():
            row = findings.attempt(_token_row, item, findings)
            if row is not None:
                rows[token] = row
    source = fields.read("source", lambda each: _source(each, findings))
    multiple = fields.read("pad_to_multiple_of", lambda each: each.positive("'pad_to_multiple_of'"))
    transplant = fields.read("transplant", lambda each: read_transplant(each, findings))
    if transplant is not None and not isinstance(source, ModelReference):
        raise transplant.place.error(
            "'transplant' needs a donor model, whose tokenizer the output gets",
            "name a model as 'source' under 'tokenizer'",
        )
    return TokenizerSettings(source or UNION, value.place, rows, multiple, transplant)


def _source(value: Value, findings: Findings) -> str | ModelReference:
    if value.content in (UNION, BASE):
        return str(value.content)
    if isinstance(value.content, str) and value.content.startswith(_OLD_PREFIX):
        return parse_reference(value.text("a model").removeprefix(_OLD_PREFIX))
    return read_reference(value, findings)


def _token_row(value: Value, findings: Findings) -> TokenRow:
    fields = Fields(value, TOKEN, findings)
    force = fields.read("force", lambda each: each.boolean("'force'")) or False
    if "source" not in fields:
        return TokenRow(None, None, None, False, force, value.place)
    source = fields["source"]
    kind = source.content.get("kind") if isinstance(source.content, dict) else None
    if kind is None:
        model = read_reference(source, findings)
        return TokenRow(model, None, None, False, force, value.place)
    inner = Fields(source, TOKEN_SOURCE, findings)
    if kind.content == "zero":
        return TokenRow(None, None, None, True, force, value.place)
    if kind.content != "model_token":
        raise kind.error(f"'kind' must be zero or model_token, not {kind.kind}")
    model = read_reference(inner.require("model"), findings)
    token = inner.read("token", _token)
    number = inner.read("token_id", lambda each: each.integer("'token_id'"))
    if ("token" in inner) == ("token_id" in inner):
        raise source.error("a model_token needs either 'token' or 'token_id'")
    return TokenRow(model, token, number, False, force, value.place)


def _token(value: Value) -> str:
    if not isinstance(value.content, str):
        raise value.error(f"'token' must be text, not {value.kind}", "put it into quotes")
    return value.content
