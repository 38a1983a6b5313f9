"""Random mutations of seeds: input for the parsers under test."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_NUMBERS = [
    *(0, 1, -1, 2, 7, 255, 4095, 4096, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1),
    *(2**63, 2**64, 10**30, -(2**63), 10**400, 0.5, -0.0, 1e308, 1e-320, float("inf")),
]
_VALUES: list[Any] = [
    *(
        None,
        True,
        False,
        "",
        "a",
        "..",
        "../x",
        "/etc/passwd",
        "\x00",
        "\x1b[2J",
        "\ud800",
        "é" * 300,
    ),
    *([], {}, [[]], [{}], {"": {}}, [0] * 1000, [[[[[[[[]]]]]]]], "a" * 5000, *_NUMBERS),
]
_TOKENS = [
    *(b"{", b"}", b"[", b"]", b":", b",", b'"', b"\\", b"\n", b"\0", b"\xff", b"\xef\xbb\xbf"),
    *(b"null", b"true", b"NaN", b"Infinity", b"1e999", b"-1", b"0x", b"\\ud800", b"\\u0000"),
    *(b"!!python/object/apply:os.system ['true']", b"!!binary aaaa", b"&a ", b"*a", b"<<: *a"),
    *(b"---\n", b"...\n", b"%YAML 1.1\n", b"? ", b"- ", b"| ", b"> ", b"\t", b"{{ ''.__class__ }}"),
    *(b"[" * 3000, b'{"a":' * 3000, b"- " * 300, b"9" * 5000, b"a" * 5000, b"__metadata__"),
    *(b'"dtype":"BF16"', b'"shape":[', b'"data_offsets":[0,0]', b"layer_range: [0, 1000000000]"),
]


@dataclass
class Mutator:
    """Mutates seeds: bytes, words, ranges, and values if a seed contains JSON."""

    seeds: Sequence[bytes]
    chance: random.Random
    repair: Callable[[bytes, random.Random], bytes]

    def case(self) -> bytes:
        case = self.chance.choice(self.seeds)
        for _ in range(self.chance.choice((1, 1, 1, 2, 3, 6, 12))):
            change = self.chance.choice((self._value, self._bytes, self._word, self._range))
            case = change(case)
        return self.repair(case[: 1 << 20], self.chance)

    def _bytes(self, case: bytes) -> bytes:
        if not case:
            return bytes([self.chance.randrange(256)])
        content = bytearray(case)
        for _ in range(self.chance.choice((1, 1, 2, 8))):
            content[self.chance.randrange(len(content))] = self.chance.randrange(256)
        return bytes(content)

    def _word(self, case: bytes) -> bytes:
        place = self.chance.randrange(len(case) + 1)
        numbers = [*re.finditer(rb"\d+", case[:10000])]
        if numbers and self.chance.random() < 0.5:
            found = self.chance.choice(numbers)
            number = str(self.chance.choice(_NUMBERS)).encode()
            return case[: found.start()] + number + case[found.end() :]
        return case[:place] + self.chance.choice(_TOKENS) + case[place + self.chance.randrange(4) :]

    def _range(self, case: bytes) -> bytes:
        start, stop = sorted(self.chance.randrange(len(case) + 1) for _ in range(2))
        kind = self.chance.randrange(4)
        if kind == 0:
            return case[:start] + case[stop:]
        if kind == 1:
            return case[:stop] + case[start:stop] * self.chance.choice((1, 1, 2, 20)) + case[stop:]
        if kind == 2:
            return case[:start]
        other = self.chance.choice(self.seeds)
        return case[:start] + other[self.chance.randrange(len(other) + 1) :]

    def _value(self, case: bytes) -> bytes:
        """Replace one value in a JSON text; bytes in front of the text are kept."""
        begin = case.find(b"{")
        lines = case[begin:].split(b"\n") if begin >= 0 else []
        if not lines:
            return self._word(case)
        number = self.chance.randrange(len(lines)) if self.chance.random() < 0.5 else 0
        whole = len(lines) == 1 or lines[0].strip() == b"{"
        text = b"\n".join(lines) if whole else lines[number]
        head, brace, rest = text.partition(b"{")
        try:
            document = json.loads(brace + rest)
        except (ValueError, RecursionError):
            return self._word(case)
        self._replace(document)
        text = head + json.dumps(document, separators=(",", ":")).encode()
        if whole:
            return case[:begin] + text
        lines[number] = text
        return case[:begin] + b"\n".join(lines)

    def _replace(self, document: Any) -> None:
        while True:
            keys = [*document] if isinstance(document, dict) else [*range(len(document))]
            if not keys:
                return
            key = self.chance.choice(keys)
            inner = document[key]
            if isinstance(inner, (dict, list)) and inner and self.chance.random() < 0.7:
                document = inner
                continue
            kind = self.chance.randrange(4)
            if kind == 0 and isinstance(document, dict):
                document[str(self.chance.choice(_VALUES))[:2000]] = document.pop(key)
            elif kind == 1:
                del document[key]
            else:
                document[key] = self.chance.choice(_VALUES)
            return
