"""Messages for Python programs: options of the command line become arguments.

>>> argument_words("start over with --restart")
'start over with restart=True'
>>> argument_words("152 MiB are enough (--ram 152MiB)")
"152 MiB are enough (ram='152MiB')"
"""

from __future__ import annotations

import re
from dataclasses import replace

from mergeloom.engine.base.errors import Finding

_FLAGS = {
    "allow-truncated-embeddings": "allow_truncated_embeddings=True",
    "allow-different-architectures": "allow_different_architectures=True",
    "cosine": "cosine",
    "exclude-undertrained": "exclude_undertrained",
    "load": "load=True",
    "no-tokenizer": "tokenizer=False",
    "overwrite": "overwrite=True",
    "restart": "restart=True",
    "stack": "stack=True",
    "strict": "strict=True",
    "values": "values=True",
    "verify": "verify=True",
}
_VALUE = r"'[^']*'|\d[\w.]*|[A-Z]+\b|(?:auto|cpu|mps|cuda(?::\w+)?)\b"
_WITH_VALUES = {
    "check": _VALUE,
    "device": _VALUE,
    "embeddings": _VALUE,
    "exclude": _VALUE,
    "include": _VALUE,
    "max-shard-size": _VALUE,
    "k": _VALUE,
    "method": r"[\w.]+",
    "prefix": _VALUE,
    "ram": _VALUE,
    "rank": _VALUE,
    "save": _VALUE,
    "seed": _VALUE,
    "subword": _VALUE,
    "threads": _VALUE,
    "vram": _VALUE,
    "weights": _VALUE,
}
_SET = "--set "
_MAPPINGS = {"model-dir": "model_dirs", "set": "settings"}
_OPTION = re.compile(
    r"'mergeloom [^']*'"  # a command is one in Python's messages too
    r"|--(?P<mapping>model-dir|set) (?:'(?P<quoted>[^'=]+=[^']*)'|(?P<entry>[^\s=,]+=[^\s,)]*))"
    + "".join(
        f"|--(?P<{name.replace('-', '_')}>{name})(?: (?P<{name.replace('-', '_')}_value>{value}))?"
        r"(?![\w-])"
        for name, value in _WITH_VALUES.items()
    )
    + f"|--(?P<flag>{'|'.join(_FLAGS)})(?![\\w-])"
)


def in_python(finding: Finding) -> Finding:
    """A finding whose cause and remedy name arguments."""
    place = finding.place
    if place is not None and place.file.startswith(_SET):
        place = replace(place, file=f"settings: {place.file.removeprefix(_SET)}")
    cause, remedy = argument_words(finding.cause), argument_words(finding.remedy)
    return replace(finding, cause=cause, place=place, remedy=remedy)


def argument_words(text: str) -> str:
    """``text`` with arguments of the Python API for options of the command line."""
    return _OPTION.sub(_argument, text) if "--" in text else text


def _argument(found: re.Match[str]) -> str:
    groups = found.groupdict()
    if groups["flag"]:
        return _FLAGS[groups["flag"]]
    if groups["mapping"]:
        key, _, value = (groups["quoted"] or groups["entry"]).rpartition("=")
        shown = value if value.isupper() or _is_number(value) else repr(value)
        return f"{_MAPPINGS[groups['mapping']]}={{{key!r}: {shown}}}"
    for name in _WITH_VALUES:
        argument = name.replace("-", "_")
        if groups[argument]:
            value = groups[f"{argument}_value"]
            return argument if value is None else f"{argument}={_literal(value)}"
    return found[0]


def _literal(value: str) -> str:
    """A value of the command line as Python writes it; ``N`` or ``SIZE`` stand for one."""
    if value.startswith("'") or value.isupper() or _is_number(value):
        return value
    return repr(value)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()
