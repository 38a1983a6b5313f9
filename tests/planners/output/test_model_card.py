"""What a model card says of where its models are from."""

from __future__ import annotations

from pathlib import Path

from mergeloom.planners.config.load import parse_config
from mergeloom.planners.models.resolve import Resolver
from mergeloom.planners.plan import make_plan
from mergeloom.planners.planner import PlanOptions
from tests.planners.support import llama


def test_only_models_of_the_hub_are_linked(tmp_path: Path) -> None:
    names = {
        "acme/given": llama(tmp_path / "elsewhere"),
        "acme/local": llama(tmp_path / "acme" / "local", seed=1),
        "acme/fetched": llama(tmp_path / "acme" / "fetched", seed=2),
    }
    (names["acme/fetched"] / ".cache" / "huggingface").mkdir(parents=True)
    text = f"merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{', '.join(names)}]"
    resolver = Resolver(model_dirs={"acme/given": names["acme/given"]}, search=[tmp_path])
    plan = make_plan(parse_config(text), resolver, PlanOptions())
    (file,) = [file for file in plan.side_files if file.name == "README.md"]
    assert isinstance(file.content, bytes)
    card = file.content.decode()
    front = card.split("---")[1]
    for name in names:
        linked = name != "acme/local"
        assert (f"- {name}\n" in front) == linked
        assert (f"](https://huggingface.co/{name})" in card) == linked
    assert "- `local`\n" in card
