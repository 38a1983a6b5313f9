"""Looking methods up, and adding some."""

from __future__ import annotations

import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module, metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from mergeloom import methods
from mergeloom.engine.base.errors import ConfigError
from mergeloom.engine.base.grains import Access
from mergeloom.engine.graph.kernel import Copy, Kernel
from mergeloom.methods import registry
from mergeloom.methods.declare import Base, Method, Parameter, TensorMerge


class First(Method):
    name = "first"
    summary = formula = reference = "takes the first model"

    def kernel(self, merge: TensorMerge) -> Kernel:
        return Copy()


@pytest.fixture
def registered() -> Iterator[None]:
    registry.register(First)
    yield
    registry.unregister("first")


def test_every_method_describes_itself() -> None:
    for name in registry.names():
        method = registry.get(name)
        assert method.name == name
        assert method.summary.endswith(".")
        assert method.formula
        assert method.reference
        for parameter in (*method.model_parameters, *method.settings):
            assert isinstance(parameter, Parameter)
            assert parameter.help


USUAL = {"scale": 0.5, "weight": 0.5, "density": 0.5, "t": 0.5, "select_topk": 1.0}
PASSES = ("no", "one pass of", "two passes of", "three passes of")
ACCESS = {Access.ELEMENTWISE: "element by element", Access.ROWWISE: "row by row"}


@pytest.mark.parametrize("name", registry.names())
def test_the_kernel_is_of_the_kind_that_its_method_says(name: str) -> None:
    method = registry.get(name)

    def usual(parameters: Sequence[Parameter]) -> dict[str, Any]:
        return {p.name: USUAL.get(p.name, p.default) for p in parameters}

    count = min(method.maximum or 3, 3) + (method.base is Base.REQUIRED)
    models = [usual(method.model_parameters)] * count
    base = 0 if method.base is Base.REQUIRED else None
    settings = usual(method.settings)
    merge = TensorMerge("w", (40, 7), tuple(models), base, settings)
    kernel = method.kernel(merge)
    words = f"{ACCESS[kernel.access]}, {PASSES[len(kernel.passes)]} statistics"
    assert method.works.startswith(words)
    assert method.draws == (method.kernel(replace(merge, seed=1)) != kernel)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown merge method 'tees': did you mean 'ties'"):
        registry.get("tees")
    with pytest.raises(ConfigError, match=r"known: .*linear"):
        registry.get("qqqqqq")


@pytest.mark.usefixtures("registered")
def test_a_registered_method_is_found() -> None:
    assert isinstance(registry.get("first"), First)
    assert "first" in registry.names()
    with pytest.raises(ConfigError, match="'first' already"):
        registry.register(First)


def test_a_built_in_name_cannot_be_taken() -> None:
    class Impostor(First):
        name = "ties"

    with pytest.raises(ConfigError, match="'ties' already"):
        registry.register(Impostor)


def test_a_class_that_is_no_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="not a merge method"):
        registry.register(int)

    class Nameless(Method):
        pass

    with pytest.raises(ConfigError, match="'name'"):
        registry.register(Nameless)


def test_entry_points_are_loaded_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint("offered", "tests.methods.test_registry:First", registry.GROUP),
        EntryPoint("broken", "no_such_module:Nothing", registry.GROUP),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points)
    monkeypatch.setattr(registry, "_loaded", {})
    assert {"offered", "broken", "ties"} <= set(registry.names())
    assert registry.get("offered").name == "first"
    with pytest.raises(ConfigError, match="'broken' cannot be loaded from 'no_such_module"):
        registry.get("broken")


def test_planning_does_not_import_torch() -> None:
    program = (
        "import sys\n"
        "from mergeloom.methods import registry\n"
        "for name in registry.names(): registry.get(name)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_kernels_compute_without_torch() -> None:
    """They name operations of an arithmetic; only its own code and the reference import torch."""
    root = Path(methods.__file__).parent
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        if re.search(r"^(import|from) torch\b", path.read_text(), re.MULTILINE)
    }
    assert {name for name in found if not name.startswith("ops/torch_")} == {"reference.py"}
    folders = ("catalog", "inputs", "kernels", "transplant")
    modules = [f"{methods.__name__}.{folder}" for folder in folders]
    for name in modules:
        for info in pkgutil.iter_modules(import_module(name).__path__, f"{name}."):
            kinds = vars(import_module(info.name)).values()
            for kind in kinds:
                if isinstance(kind, type) and issubclass(kind, Kernel) and kind is not Kernel:
                    assert kind.uses is not Kernel.uses, kind
