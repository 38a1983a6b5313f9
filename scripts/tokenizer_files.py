"""A small real tokenizer: bytes, a few merges, special tokens and a chat template."""

from __future__ import annotations

from typing import Any

_SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<unk>")
_WORDS = (
    "the and ing er in on en re at or is it al ar st le ve ou to of ed es an ch th "
    "Ġthe Ġand Ġa Ġin Ġto Ġof Ġis Ġit Ġwith Ġthat Ġfor Ġyou model merge layer"
)
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_files() -> dict[str, dict[str, Any]]:
    """Contents of the tokenizer's JSON files, by file name; ids lie below 512."""
    vocabulary, merges = _vocabulary()
    named = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    added = [_added(number, token) for number, token in enumerate(_SPECIAL)]
    return {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": _byte_level(),
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [_special("<s>", 0), _sequence("A", 0)],
                "pair": [
                    _special("<s>", 0),
                    _sequence("A", 0),
                    _special("<s>", 1),
                    _sequence("B", 1),
                ],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
            },
            "decoder": _byte_level(),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": merges,
            },
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "added_tokens_decoder": {
                str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                for token in added
            },
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
            "chat_template": _TEMPLATE,
            **named,
        },
        "special_tokens_map.json": dict(named),
    }


def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """Ids of tokens, and merges that build each word from its letters, left to right."""
    tokens = [*_SPECIAL, *_byte_characters()]
    known = set(tokens)
    merges: list[str] = []
    for word in _WORDS.split():
        for end in range(2, len(word) + 1):
            if word[:end] not in known:
                known.add(word[:end])
                tokens.append(word[:end])
                merges.append(f"{word[: end - 1]} {word[end - 1]}")
    return {token: number for number, token in enumerate(tokens)}, merges


def _byte_characters() -> list[str]:
    """The character that stands for each byte in byte-level vocabularies."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    characters = {byte: chr(byte) for byte in plain}
    characters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [characters[byte] for byte in range(256)]


def _byte_level() -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }


def _added(number: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, **flags, "special": True}


def _special(token: str, kind: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": kind}}


def _sequence(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}
