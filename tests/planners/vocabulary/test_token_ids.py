"""Ids of tokens in configurations follow the tokenizer."""

from __future__ import annotations

from mergeloom.planners.vocabulary.token_ids import with_token_ids

CONFIG = {
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": -1,
    "decoder_start_token_id": None,
    "image_token_index": 9,
    "suppress_tokens": [1, 2],
    "forced_decoder_ids": [[1, 3]],
    "use_eos_token": True,
    "num_token_types": 2,
    "text_config": {"eos_token_id": 3},
}


def test_ids_of_special_tokens_are_remapped() -> None:
    found = with_token_ids(CONFIG, None, {1: 11, 2: 12}.get)
    assert found == {
        **CONFIG,
        "bos_token_id": 11,
        "eos_token_id": [12],
        "image_token_index": None,
        "suppress_tokens": [11, 12],
        "forced_decoder_ids": [[11]],
        "text_config": {"eos_token_id": None},
    }


def test_ids_of_the_tokenizers_model_take_precedence() -> None:
    source = {"bos_token_id": 5, "pad_token_id": 6, "text_config": {"eos_token_id": 7}, "x": 1}
    found = with_token_ids(CONFIG, source, lambda number: number)
    assert (found["bos_token_id"], found["pad_token_id"]) == (5, 6)
    assert found["text_config"] == {"eos_token_id": 7}
    assert found["eos_token_id"] == [2, 3]
    assert "x" not in found
