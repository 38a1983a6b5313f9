"""Files of weights of any network, as torch and safetensors themselves write them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mergeloom
from mergeloom.engine.base.errors import CheckpointError, ConfigError, LoomError
from mergeloom.methods import registry
from mergeloom.methods.declare import Base
from mergeloom.planners.config.weight_names import SUFFIXES
from mergeloom.planners.models.formats import FORMATS
from tests.mergeloom.support import run

Tensors = dict[str, Tensor]
Writer = Callable[[Tensors, Path], None]


class Network(nn.Module):
    """Convolutions, norms with counters, groups, and parameters of odd shapes and names."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.ModuleList(nn.Conv2d(16, 16, 3, groups=4) for _ in range(3))
        self.lstm = nn.LSTM(16, 8)
        self.fc = nn.Linear(16, 10)
        self.scale = nn.Parameter(torch.rand(()))
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.register_parameter("größe 尺 🙂", nn.Parameter(torch.rand(5)))
        self.register_buffer("on", torch.tensor([True, False]))
        self.fc.weight = nn.Parameter(self.fc.weight.T.contiguous().T)  # not in order of rows


def by_torch(tensors: Tensors, path: Path) -> None:
    torch.save(tensors, path)


def by_safetensors(tensors: Tensors, path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def of_training(tensors: Tensors, path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in tensors.items()}}, path)


def network(path: Path, seed: int, change: Callable[[Tensors], object] | None = None) -> Tensors:
    tensors = {name: tensor.detach() for name, tensor in Network(seed).state_dict().items()}
    if change is not None:
        change(tensors)
    (by_safetensors if path.suffix == ".safetensors" else by_torch)(tensors, path)
    return tensors


def weighted(*files: Path, **more: Any) -> dict[str, Any]:
    models = [
        {"model": str(file), "parameters": {"weight": 0.25 + number / 2}}
        for number, file in enumerate(files)
    ]
    return {"merge_method": "linear", "models": models, **more}


def merged(config: Mapping[str, Any], out: Path, **options: Any) -> Tensors:
    mergeloom.merge(config, out, **options)
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize(
    ("write", "suffix"),
    [(by_torch, ".pth"), (by_safetensors, ".safetensors"), (of_training, ".ckpt")],
)
def test_every_tensor_of_a_network_is_merged(tmp_path: Path, write: Writer, suffix: str) -> None:
    one = {name: tensor.detach() for name, tensor in Network(0).state_dict().items()}
    write(one, tmp_path / f"one{suffix}")
    other = network(tmp_path / "other.safetensors", 1)
    config = weighted(tmp_path / f"one{suffix}", tmp_path / "other.safetensors")
    found = merged(config, tmp_path / "out")
    assert found.keys() == one.keys()
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.shape) == (one[name].dtype, one[name].shape)
        if tensor.is_floating_point():
            expected = 0.25 * one[name].double() + 0.75 * other[name].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(tensor, one[name])
    made = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert made == {"model.safetensors", "README.md", "mergeloom_config.yml"}
    Network(2).load_state_dict(found)


@pytest.mark.parametrize("name", registry.names())
def test_every_method_merges_files(tmp_path: Path, name: str) -> None:
    method = registry.get(name)
    files = [tmp_path / f"{letter}.safetensors" for letter in "abc"]
    for seed, file in enumerate(files):
        network(file, seed)
    number = min(method.maximum or 2, 2)
    based = method.base is Base.REQUIRED
    listed = files[1 : 1 + number] if based else files[:number]
    known = {"weight": 0.4, "density": 0.6, "t": 0.3}
    given = {p.name: known[p.name] for p in method.model_parameters if p.name in known}
    config: dict[str, Any] = {
        "merge_method": name,
        "models": [{"model": str(file), "parameters": given} for file in listed],
        "parameters": {p.name: known[p.name] for p in method.settings if p.name in known},
    }
    if based:
        config["base_model"] = str(files[0])
    planned = mergeloom.plan(config)
    result = mergeloom.merge(planned, tmp_path / "out", check=1000)
    assert result.checked is not None
    assert result.checked.tensors == len(planned.plan.graph.writes)
    tight = mergeloom.plan(config, ram=planned.schedule.minimum_bytes + (64 << 20))
    mergeloom.merge(tight, tmp_path / "tight")
    whole, parts = (tmp_path / each / "model.safetensors" for each in ("out", "tight"))
    assert whole.read_bytes() == parts.read_bytes()


def test_tensors_that_some_lack_are_refused_united_or_left_out(tmp_path: Path) -> None:
    one = network(tmp_path / "one.pth", 0, lambda found: found.pop("fc.bias"))
    other = network(tmp_path / "other.safetensors", 1, lambda found: found.pop("scale"))
    config = weighted(tmp_path / "one.pth", tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError) as caught:
        mergeloom.plan(config)
    assert "2 tensors are not in every input: 'scale' is not in" in str(caught.value)
    assert "'fc.bias' is not in" in str(caught.value)
    assert "'tensors: union'" in caught.value.remedy

    union = mergeloom.plan({**config, "tensors": "union"})
    assert sum("merged without it" in str(finding) for finding in union.findings) == 2
    mergeloom.merge(union, tmp_path / "union")
    found = load_file(tmp_path / "union" / "model.safetensors")
    assert found.keys() == one.keys() | other.keys()
    assert torch.equal(found["scale"], one["scale"])
    assert torch.equal(found["fc.bias"], other["fc.bias"])

    common = mergeloom.plan({**config, "tensors": "intersection"})
    assert {item.names for item in common.plan.unused} >= {("scale",), ("fc.bias",)}
    mergeloom.merge(common, tmp_path / "common")
    found = load_file(tmp_path / "common" / "model.safetensors")
    assert found.keys() == one.keys() & other.keys()


def test_flags_of_mergekit_pytorch_are_accepted(tmp_path: Path) -> None:
    network(tmp_path / "one.pth", 0, lambda found: found.pop("fc.bias"))
    config = tmp_path / "c.yml"
    config.write_text(
        "merge_method: linear\nmodels: [{model: one.pth, parameters: {weight: 1}}, "
        "{model: other.pth, parameters: {weight: 1}}]\n"
    )
    names = len(network(tmp_path / "other.pth", 1))
    for flag, tensors in (("-u", names), ("--tensor-intersection", names - 1)):
        out = tmp_path / str(tensors)
        assert run("mergekit-pytorch", config, out, "-q", flag).returncode == 0
        assert len(load_file(out / "model.safetensors")) == tensors
    found = run("mergekit-pytorch", config, tmp_path / "none")
    assert found.returncode == 2
    assert "not in every input: 'fc.bias' is not in" in found.stderr
    assert "-u merges each from the inputs that have it, -i leaves them out" in found.stderr
    assert "cannot be combined" in run("mergekit-pytorch", config, "none", "-u", "-i").stderr


def test_weights_in_the_folder_of_a_model_are_warned_about_unless_the_document_asks_for_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "one").mkdir()
    network(tmp_path / "one" / "model.safetensors", 0)
    (tmp_path / "one" / "config.json").write_text("{}")
    network(tmp_path / "other.safetensors", 1)
    config = weighted(tmp_path / "one" / "model.safetensors", tmp_path / "other.safetensors")
    for settings, codes in (((), ["weights-alone"]), (["tensors=same"], [])):
        planned = mergeloom.plan(config, settings=settings)
        assert [finding.code for finding in planned.findings] == codes


def test_documents_are_chained(tmp_path: Path) -> None:
    a, b, c = (network(tmp_path / f"{name}.safetensors", i) for i, name in enumerate("abc"))
    config = tmp_path / "c.yml"
    config.write_text(
        "name: half\nmerge_method: linear\nmodels: [{model: a.safetensors, parameters: "
        "{weight: 1}}, {model: b.safetensors, parameters: {weight: 1}}]\n---\n"
        "merge_method: task_arithmetic\nbase_model: a.safetensors\n"
        "models: [{model: half, parameters: {weight: 2}}, {model: c.safetensors, parameters: "
        "{weight: -1}}]\n"
    )
    mergeloom.merge(config, tmp_path / "out", search=tmp_path)
    found = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in found.items():
        if tensor.is_floating_point():
            expected = a[name] + (b[name] - a[name]) - (c[name] - a[name])
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
    only_stages = "merge_method: passthrough\nmodels: [{model: half}]\n"
    config.write_text(config.read_text().partition("---\n")[0] + "---\n" + only_stages)
    with pytest.raises(ConfigError, match=r"has no config.json.*'tensors: same'"):
        mergeloom.plan(config, search=tmp_path)
    config.write_text(config.read_text() + "tensors: same\n")
    assert mergeloom.plan(config, search=tmp_path).plan.parameters > 2000


def test_a_folder_of_shards_needs_no_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "unet"
    folder.mkdir()
    tensors = network(tmp_path / "whole.safetensors", 0)
    names = list(tensors)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = {name: tensors[name] for name in part}
        by_safetensors(shard, folder / f"diffusion-{number:05d}-of-00002.safetensors")
    network(tmp_path / "other.pth", 1)
    found = merged(weighted(folder, tmp_path / "other.pth"), tmp_path / "out")
    assert found.keys() == tensors.keys()
    with pytest.raises(CheckpointError, match="'tensors: same'"):
        mergeloom.plan(weighted(folder, folder))
    both = mergeloom.plan(weighted(folder, folder, tensors="same", dtype="float32"))
    assert any("listed a second time" in str(finding) for finding in both.findings)
    planned = mergeloom.plan(weighted(folder, tmp_path / "other.pth"), max_shard_size="8kB")
    assert len(planned.plan.graph.files) > 1


def test_metadata_is_kept_but_for_digests_of_the_contents(tmp_path: Path) -> None:
    tensors = {"x": torch.rand(4)}
    metadata = {"format": "pt", "modelspec.title": "mine", "modelspec.hash_sha256": "0x12"}
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    save_file(tensors, tmp_path / "b.safetensors", {"modelspec.title": "other"})
    config = weighted(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    planned = mergeloom.plan(config)
    assert any("modelspec.hash_sha256" in note for note in planned.plan.outlines[0].notes)
    mergeloom.merge(planned, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "modelspec.title": "mine"}


def test_files_may_have_any_names(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    network(tmp_path / "elsewhere" / "blob", 0)
    (tmp_path / "a+b@v1.pth").symlink_to(tmp_path / "elsewhere" / "blob")
    network(tmp_path / "ünet 2.pt", 1)
    other = {"model": {"model": {"path": "ünet 2.pt"}}}
    config = {"merge_method": "linear", "models": ["a+b@v1.pth", other]}
    config |= {"parameters": {"weight": 1}}
    planned = mergeloom.plan(config, search=tmp_path)
    assert list(planned.plan.models) == ["a+b@v1.pth", "ünet 2.pt"]
    assert "inside the input" not in str(
        mergeloom.plan(config, search=tmp_path, output=tmp_path / "o").findings
    )


Pipelines = tuple[Path, Path]


@pytest.fixture
def pipelines(tmp_path: Path) -> Pipelines:
    """Two pipelines as diffusers writes them, one with its files in a variant too."""
    for seed, name in enumerate("ab"):
        folder = tmp_path / name
        for part in ("unet", "text_encoder", "scheduler", "assets"):
            (folder / part).mkdir(parents=True)
        index = {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "safety_checker": [None, None],
        }
        (folder / "model_index.json").write_text(json.dumps(index))
        (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
        (folder / "scheduler" / "scheduler_config.json").write_text(f'{{"prediction": {seed}}}')
        (folder / "assets" / "cat.png").write_bytes(b"a cat")
        network(folder / "unet" / "diffusion_pytorch_model.safetensors", seed)
        network(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", seed + 5)
        network(folder / "text_encoder" / "pytorch_model.bin", seed + 2)
    return tmp_path / "a", tmp_path / "b"


def test_a_pipeline_is_merged_as_one_model(pipelines: Pipelines, tmp_path: Path) -> None:
    """Component by component, into the folders and files in which diffusers looks for them."""
    planned = mergeloom.plan(weighted(*pipelines))
    assert [part.name for part in planned.plan.outlines[-1].parts] == ["text_encoder", "unet"]
    causes = {finding.code: finding.cause for finding in planned.findings}
    assert "'scheduler/scheduler_config.json' is copied from" in causes["settings-differ"]
    assert causes["settings-differ"].endswith("has other 'prediction'")
    assert "model.fp16.safetensors' beside its weights" in causes["passed-over"]
    mergeloom.merge(planned, tmp_path / "out")
    out = tmp_path / "out"
    made = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert {name for name in made if not name.startswith(".mergeloom")} == {
        "README.md",
        "mergeloom_config.yml",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    for part, file, seed in (("unet", "diffusion_pytorch_model", 0), ("text_encoder", "model", 2)):
        found = load_file(out / part / f"{file}.safetensors")
        one, other = (Network(seed + more).state_dict() for more in (0, 1))
        assert found.keys() == one.keys()
        expected = 0.25 * one["fc.bias"] + 0.75 * other["fc.bias"]
        torch.testing.assert_close(found["fc.bias"], expected, rtol=1e-6, atol=1e-7)
    assert run("verify", str(out)).returncode == 0
    header = json.loads((out / ".mergeloom" / "manifest.json").read_text())
    assert "unet/fc.bias" in str(header)


def test_a_pipeline_is_interrupted_and_stacked(pipelines: Pipelines, tmp_path: Path) -> None:
    """Shards in folders are found again, and an output is an input."""
    first = {"name": "one", **weighted(*pipelines)}
    second = weighted(pipelines[0], Path("one"), tensors="same")
    text = f"{json.dumps(first)}\n---\n{json.dumps(second)}\n"
    (tmp_path / "both.yml").write_text(text)

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    for out, observers in (("out", [mergeloom.Observer(progressed=stop), None]), ("all", [None])):
        for observer in observers:
            planned = mergeloom.plan(tmp_path / "both.yml", max_shard_size="8kB")
            more = {} if observer is None else {"observer": observer}
            try:
                mergeloom.merge(planned, tmp_path / out, **more)
            except KeyboardInterrupt:
                assert run("verify", str(tmp_path / out)).returncode == 0
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (tmp_path / "all" / index).read_bytes()
    for name in set(json.loads((tmp_path / "out" / index).read_text())["weight_map"].values()):
        one, other = (tmp_path / out / "unet" / name for out in ("out", "all"))
        assert one.read_bytes() == other.read_bytes()
    again = mergeloom.plan(weighted(tmp_path / "out", tmp_path / "all"))
    assert len(again.plan.graph.writes) == 2 * len(Network(0).state_dict())


def test_missing_parts_of_a_pipeline_are_named(pipelines: Pipelines, tmp_path: Path) -> None:
    (pipelines[1] / "text_encoder" / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match="tensors are not in every input: 'text_encoder/"):
        mergeloom.plan(weighted(*pipelines))
    (pipelines[1] / "text_encoder" / "flax_model.msgpack").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"text_encoder' has no \.safetensors files"):
        mergeloom.plan(weighted(*pipelines))
    with pytest.raises(ConfigError, match="components of a pipeline cannot be quantised"):
        mergeloom.plan(weighted(pipelines[0], quantize="fp8", tensors="same"))


def test_one_component_of_pipelines_is_merged_alone(pipelines: Pipelines, tmp_path: Path) -> None:
    unets = [pipeline / "unet" for pipeline in pipelines]
    found = merged(weighted(*unets, tensors="same"), tmp_path / "out")
    assert found.keys() == Network(0).state_dict().keys()


REFUSED = {
    "slices": (
        {"slices": [{"sources": [{"model": "a.pth", "layer_range": [0, 2]}]}], "tensors": "same"},
        "'slices' needs models with a config.json",
    ),
    "tokenizer": ({"tokenizer_source": "union"}, "'tokenizer_source' needs models with"),
    "gradient": ({"parameters": {"weight": [0, 1]}}, "raw weights have no layers"),
    "word": ({"tensors": "unoin"}, "'tensors' must be same, union or intersection.*'union'"),
    "missing": ({"models": ["a.pth", "bb.pth"]}, "no file or directory 'bb.pth'"),
    "base": ({"merge_method": "ties", "parameters": {"weight": 1}}, "'ties' needs a base model"),
    "parameter": ({"parameters": {}}, "'linear' needs 'weight' of the model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_senseless_documents_are_refused(tmp_path: Path, case: str) -> None:
    more, message = REFUSED[case]
    for seed, name in enumerate("ab"):
        network(tmp_path / f"{name}.pth", seed)
    config = {"merge_method": "linear", "parameters": {"weight": 1}, **more}
    if "slices" not in more:
        config.setdefault("models", ["a.pth", "b.pth"])
    with pytest.raises(LoomError, match=message):
        mergeloom.plan(config, search=tmp_path)


def test_networks_without_a_common_name_are_told_apart(tmp_path: Path) -> None:
    by_torch({"x": torch.rand(3)}, tmp_path / "a.pth")
    by_torch({"y": torch.rand(3)}, tmp_path / "b.pth")
    config = weighted(tmp_path / "a.pth", tmp_path / "b.pth", tensors="intersection")
    with pytest.raises(CheckpointError, match="have no tensor of the same name: 'x' is one"):
        mergeloom.plan(config)


def test_shapes_that_differ_are_all_named(tmp_path: Path) -> None:
    by_torch({"x": torch.rand(3), "y": torch.rand(2, 2)}, tmp_path / "a.pth")
    by_torch({"x": torch.rand(()), "y": torch.rand(4)}, tmp_path / "b.pth")
    with pytest.raises(
        CheckpointError, match=r"shapes differ in 2 tensors: 'x' .3 in .*one number"
    ):
        mergeloom.plan(weighted(tmp_path / "a.pth", tmp_path / "b.pth"))


def test_suffixes_are_those_of_the_formats() -> None:
    assert set(SUFFIXES) == {suffix for how in FORMATS for suffix in how.suffixes}


def unet(path: Path) -> Path:
    """A file of the shape of a single-file SDXL checkpoint in float16 (6.9 GB), of holes only."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(70):
        block = f"model.diffusion_model.middle_block.1.transformer_blocks.{number}"
        for part in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q"):
            shapes[f"{block}.{part}.weight"] = (1280, 1280)
        for part in ("attn2.to_k", "attn2.to_v"):
            shapes[f"{block}.{part}.weight"] = (1280, 2048)
        shapes[f"{block}.ff.net.0.proj.weight"] = (10240, 1280)
        shapes[f"{block}.ff.net.2.weight"] = (1280, 5120)
        shapes |= {f"{block}.norm{i}.weight": (1280,) for i in (1, 2, 3)}
    for number in range(32):
        block = f"conditioner.embedders.1.model.transformer.resblocks.{number}"
        shapes[f"{block}.attn.in_proj_weight"] = (3840, 1280)
        shapes[f"{block}.mlp.c_fc.weight"] = (5120, 1280)
        shapes[f"{block}.mlp.c_proj.weight"] = (1280, 5120)
    shapes["conditioner.embedders.1.model.token_embedding.weight"] = (49408, 1280)
    shapes |= {
        f"model.diffusion_model.output_blocks.{i}.0.in_layers.2.weight": (1280, 2560, 3, 3)
        for i in range(9)
    }
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def test_single_files_of_diffusion_models_are_chained_within_a_gibibyte(tmp_path: Path) -> None:
    """Three merges of four such files in one document, which keep nothing between them."""
    files = [unet(tmp_path / f"{letter}.safetensors") for letter in "abcd"]
    size = files[0].stat().st_size
    assert size > 5e9
    stages = ["a.safetensors"]
    documents = []
    for number, file in enumerate("bcd"):
        last = number == 2
        documents.append(
            f"merge_method: {'ties' if last else 'linear'}\n"
            + ("" if last else f"name: stage{number}\n")
            + ("base_model: a.safetensors\n" if last else "")
            + f"models: [{{model: {stages[-1]}}}, {{model: {file}.safetensors}}]\n"
            + "parameters: {weight: 0.5, density: 0.5}\n"
        )
        stages.append(f"stage{number}")
    config = tmp_path / "c.yml"
    config.write_text("---\n".join(documents))
    # In a process of its own: what this one occupies depends on the tests before.
    found = run("plan", config, "--search-dir", tmp_path, "--ram", "1GiB", "--json")
    assert found.returncode == 0, found.stderr
    planned = json.loads(found.stdout)
    assert planned["memory"]["peak_bytes"] <= 1 << 30
    assert planned["io"]["read_bytes"] >= 4 * (size - 200_000)
    (shard,) = planned["output"]["shards"]
    assert abs(shard["bytes"] - size) < 200_000
