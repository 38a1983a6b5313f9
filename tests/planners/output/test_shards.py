"""Shards and the output's configuration."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeloom.engine.base.dtypes import BF16, BY_NAME, F32, DType
from mergeloom.engine.graph.graph import GraphBuilder
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.storage.safetensors import parse_header
from mergeloom.planners.models.model import OutputTensor
from mergeloom.planners.output.config_json import LayerChange, rewrite_config
from mergeloom.planners.output.shards import ALIGNMENT, lay_out
from tests.engine.plan.test_schedule import Disk

dtypes = st.sampled_from([BF16, F32, BY_NAME["int64"], BY_NAME["uint8"]])
shapes = st.lists(st.integers(0, 40), max_size=3).map(tuple)


@given(st.lists(st.tuples(dtypes, shapes), min_size=1, max_size=20), st.integers(1, 5000))
def test_slots_tile_their_shards_and_shards_keep_their_size(
    entries: list[tuple[DType, tuple[int, ...]]], limit: int
) -> None:
    builder = GraphBuilder()
    disk = Disk("disk")
    tensors = [
        OutputTensor(
            f"t{number}",
            builder.merge([builder.load(disk, number << 20, dtype, shape, "l")], Copy(), "c"),
            dtype,
        )
        for number, (dtype, shape) in enumerate(entries)
    ]
    layout = lay_out(tensors, limit, {"format": "pt"})
    builder.build(layout.writes, layout.files).verify()
    assert sorted(write.name for write in layout.writes) == sorted(t.name for t in tensors)
    for write in layout.writes:
        assert write.offset % write.dtype.size == 0
    for file in layout.files:
        own = [write for write in layout.writes if write.file is file]
        nbytes = sum(write.nbytes for write in own)
        assert nbytes <= limit or sum(write.nbytes > 0 for write in own) == 1
        assert len(file.header) % ALIGNMENT == 0
        found, metadata = parse_header(file.header[8:], file.size, file.name)
        assert metadata == {"format": "pt"}
        assert {name: entry.start for name, entry in found.items()} == {
            write.name: write.offset for write in own
        }
    if len(layout.files) == 1:
        assert (layout.files[0].name, layout.index) == ("model.safetensors", None)
    else:
        assert layout.index is not None
        index = json.loads(layout.index)
        assert index["weight_map"] == {write.name: write.file.name for write in layout.writes}
        assert index["metadata"]["total_size"] == sum(
            math.prod(shape) * dtype.size for dtype, shape in entries
        )


def rewritten(config: dict[str, Any], origins: list[int], tower: str = "default") -> dict[str, Any]:
    change = LayerChange(tower, 4, tuple(origins))
    return rewrite_config(config, [change], None, None, None)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "num_layers", "n_layers"])
def test_layer_counts_follow_the_key_of_the_architecture(key: str) -> None:
    assert rewritten({key: 4, "hidden_size": 4}, [0, 1, 2, 2, 3]) == {key: 5, "hidden_size": 4}


def test_nested_counts_and_what_hangs_on_them() -> None:
    config = {
        "architectures": ["X"],
        "text_config": {
            "num_hidden_layers": 4,
            "layer_types": ["full", "sliding", "full", "sliding"],
            "max_window_layers": 4,
            "mlp_only_layers": [1],
        },
        "vision_config": {"num_hidden_layers": 7},
    }
    found = rewritten(config, [0, 1, 1, 3])
    assert found["text_config"] == {
        "num_hidden_layers": 4,
        "layer_types": ["full", "sliding", "sliding", "sliding"],
        "max_window_layers": 4,
        "mlp_only_layers": [1, 2],
    }
    assert found["vision_config"] == {"num_hidden_layers": 7}
    assert config["text_config"]["layer_types"][2] == "full", "the donor's is left alone"
    assert rewritten(config, [1, 2])["text_config"]["max_window_layers"] == 2


def test_the_sides_of_an_encoder_decoder_are_told_apart() -> None:
    t5 = {"num_layers": 4, "num_decoder_layers": 4}
    assert rewritten(t5, [0, 1], "encoder") == {"num_layers": 2, "num_decoder_layers": 4}
    assert rewritten(t5, [0, 1], "decoder") == {"num_layers": 4, "num_decoder_layers": 2}
    bart = {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4}
    assert rewritten(bart, [0], "encoder")["encoder_layers"] == 1
    assert rewritten(bart, [0], "encoder")["decoder_layers"] == 4


def test_types_ties_and_vocabulary() -> None:
    config = {"torch_dtype": "bfloat16", "tie_word_embeddings": True, "vocab_size": 100}
    found = rewrite_config(config, [], F32, False, (100, 90))
    assert found == {"torch_dtype": "float32", "tie_word_embeddings": False, "vocab_size": 90}
    assert rewrite_config({}, [], BF16, False, None) == {
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    nested = {"text_config": {"dtype": "float16", "vocab_size": 100}, "vocab_size": 7}
    assert rewrite_config(nested, [], BF16, None, (100, 90)) == {
        "text_config": {"dtype": "bfloat16", "vocab_size": 90},
        "vocab_size": 7,
        "torch_dtype": "bfloat16",
    }


def test_towers_of_equal_depth_keep_their_own_counts() -> None:
    config = {
        "text_config": {"num_hidden_layers": 4},
        "vision_config": {"num_hidden_layers": 4},
        "eos_token_id": [1, 2, 3, 4],
    }
    longer = LayerChange("language_model", 4, (0, 1, 2, 3, 2, 3))
    same = LayerChange("vision_tower", 4, (0, 1, 2, 3))
    found = rewrite_config(config, [longer, same], None, None, None)
    assert found["text_config"]["num_hidden_layers"] == 6
    assert found["vision_config"]["num_hidden_layers"] == 4
    assert found["eos_token_id"] == [1, 2, 3, 4]
    plain = {"num_hidden_layers": 4, "vision_config": {"depth": 4}, "eos_token_id": [1, 2, 3, 4]}
    found = rewrite_config(plain, [LayerChange("model", 4, (0, 1)), same], None, None, None)
    assert found["num_hidden_layers"] == 2
    assert found["vision_config"]["depth"] == 4
