from __future__ import annotations

import pytest

from mergeloom.engine.base.dtypes import BF16, F16
from mergeloom.engine.base.errors import ConfigError, Place, Severity
from mergeloom.planners.config.findings import refuse_unknown
from mergeloom.planners.config.load import parse_config

WRONG = {
    "nothing": ("", "config.yml: the configuration is empty"),
    "no yaml": ("a: [1,\nb: ]]", "not valid YAML"),
    "tab": (
        "merge_method: linear\nmodels:\n\t- a",
        "config.yml:3: a tab: YAML is indented with spac",
    ),
    "tab after a value": ("merge_method: linear\n\tmodels: [a]", "config.yml:2: a tab"),
    "tab after a dash": ("merge_method: linear\nmodels:\n-\ta: b", "config.yml:3: a tab: YAML is"),
    "tab below": ("a:\n  - b: 1\n\t  c: 1", "config.yml:3: a tab: YAML is indented with spaces"),
    "fence": ("```yaml\na: 1\n```", "config.yml:1: a Markdown code fence: remove the lines"),
    "no space at the top": (
        "merge_method:linear\na: b",
        "config.yml:1: 'merge_method:linear' has no space",
    ),
    "no space at a model": (
        "merge_method: linear\nmodels: ['model:a']",
        "models[0]: a model must be a name, not 'model:a': write a space after the colon",
    ),
    "backslash": (
        'models: ["C:\\new"]\nname: "\\q"',
        "put text with backslashes into single quotes",
    ),
    "indentation": ("models:\n  - model: a\n   b: 1", "config.yml:3: not valid YAML"),
    "no mapping": ("- a", "config.yml:1: a configuration must be a mapping, not a list"),
    "no method": ("models: [a]", "config.yml:1: 'merge_method' is missing: add it, as"),
    "no models": ("merge_method: linear", "exactly one of 'models', 'slices', 'modules'"),
    "misspelt models": (
        "merge_method: linear\nmodel: [a]",
        "is 'model' a misspelling of 'models'?",
    ),
    "unknown method": (
        "merge_method: liner\nmodels: [{model: a, parameters: {x: {y: 1}}}]",
        "config.yml:1: merge_method: unknown merge method 'liner': did you mean 'linear'?",
    ),
    "both": (
        "merge_method: linear\nmodels: [a]\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]",
        "found 'models' and 'slices'",
    ),
    "misspelt key": (
        "merge_metod: linear\nmodels: [a]",
        "'merge_method' is missing: is 'merge_metod' a misspelling of 'merge_method'?",
    ),
    "three numbers": (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 4, 5]}]}]",
        "slices[0].sources[0].layer_range: 'layer_range' must be two whole numbers",
    ),
    "half a layer": (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 4.5]}]}]",
        "layer_range[1]: a layer of 'layer_range' must be a whole number, not 4.5",
    ),
    "dtype": (
        "merge_method: linear\nmodels: [a]\ndtype: bfloat61",
        "config.yml:3: dtype: 'bfloat61' is not a dtype: did you mean 'bfloat16'?",
    ),
    "capitals": (
        "merge_method: linear\nmodels: [a]\nout_dtype: BFloat16",
        "out_dtype: 'BFloat16' is not a dtype: did you mean 'bfloat16'?",
    ),
    "integer dtype": (
        "merge_method: linear\nmodels: [a]\ndtype: int8",
        "not a dtype that tensors can be",
    ),
    "tag": ("merge_method: !!python/object/apply:os.system [ls]\nmodels: [a]", "config.yml:1"),
    "tag with a line break": (
        "merge_method: linear\nmodels: [a]\nname: !<a%0Ab> x",
        "the tag 'a\\nb' is not allowed",
    ),
    "directive": ("%TAG ! tag:x\n---\nmerge_method: linear", ":1: YAML directives are not allowed"),
    "deep flow": ("a: " + "[" * 100_000 + "]" * 100_000, ":1: the document is too large or too"),
    "deep blocks": ("- " * 100_000, ":1: the document is too large or too deep"),
    "itself": ("a: &a [*a]", "too large or too deep"),
    "merged into itself": ("a: &a {<<: *a}", "too large or too deep"),
    "long path": (
        "".join("  " * i + "k" * 999 + ":\n" for i in range(3)) + "  " * 9 + "- x",
        "too large or too deep",
    ),
    "endless number": (
        "merge_method: linear\nmodels: [a]\nname: " + "1" * 200_000,
        "not a value: '11111",
    ),
    "key that is no text": ("[a]: 1\nmerge_method: linear\nmodels: [a]", "a key must be a name"),
    "merging a list": (
        "merge_method: linear\nmodels: [{model: a, <<: 4}]",
        "'<<' takes a mapping, or a list of mappings",
    ),
    "model with a line break": (
        'merge_method: linear\nmodels: ["a\\nb"]',
        "models[0]: a model must be",
    ),
    "method with a line break": ('merge_method: "a\\nb"\nmodels: [a]', "must be a name"),
    "infinite": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: -.inf}}]",
        "models[0].parameters.weight: 'weight' must be finite, not -inf",
    ),
    "infinite text": (
        "merge_method: slerp\nbase_model: a\nmodels: [a, b]\nparameters: {t: [1e999, 1]}",
        "config.yml:4: parameters.t[0]: 't' must be finite",
    ),
    "list for a name": ("merge_method: linear\nmodels: [a]\nname: [a]", "'name' must be a name"),
    "text parameter": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: lots}}]",
        "models[0].parameters.weight: 'weight' must be a number, not 'lots'",
    ),
    "comma of a number": (
        "merge_method: linear\nmodels:\n- model: a\n  parameters:\n    weight: 0,5",
        "models[0].parameters.weight: 'weight' must be a number, not '0,5': did you mean 0.5?",
    ),
    "percent sign": (
        "merge_method: ties\nmodels: [a]\nparameters: {density: 45 %}",
        "'density' must be a number, not '45 %': did you mean 0.45?",
    ),
    "sixties": (
        "merge_method: linear\nmodels: [{model: a, parameters: {weight: 1:30}}]",
        "'weight' must be a number, not '1:30'",
    ),
    "no space": (
        "merge_method: ties\nmodels: [{model: a, parameters: {weight: 1, density:0.5}}]",
        "'density:0.5' has no value: write a space after the colon, 'density: 0.5'",
    ),
    "comma": (
        "merge_method: ties\nmodels: [{model: a, parameters: {weight: 0,5}}]",
        "'5' has no value: for a decimal number write 'weight: 0.5'",
    ),
    "misspelt and empty": (
        "merge_method: ties\nmodels:\n- model: a\n  parameters:\n    densty:\n",
        "config.yml:5: models[0].parameters.densty: 'densty' has no value: did you mean 'density'",
    ),
    "empty parameter": (
        "merge_method: ties\nmodels: [a]\nparameters: {lambda: ~}",
        "config.yml:3: parameters.lambda: 'lambda' has no value: write a value, or remove the key",
    ),
    "out of range": (
        "merge_method: ties\nmodels: [{model: a, parameters: {weight: 1, density: [1, -2]}}]",
        "parameters.density[1]: 'density' must lie in [0, inf), not -2",
    ),
    "mapping for a number": (
        "merge_method: ties\nmodels: [a]\nparameters: {lambda: {x: 1}}",
        "'lambda' must be a number, not a mapping",
    ),
    "filter without value": (
        "merge_method: slerp\nmodels: [a]\nparameters: {t: [{filter: mlp}]}",
        "parameters.t[0]: 'value' is missing: an entry with a filter needs a value",
    ),
    "empty gradient": (
        "merge_method: slerp\nmodels: [a]\nparameters: {t: [{value: []}]}",
        "parameters.t[0].value: 'value' has no value: an entry with a filter needs a value",
    ),
    "empty revision": ("merge_method: linear\nmodels: ['a@']", "'a@' is not a model reference"),
    "empty slices": ("merge_method: linear\nslices: []", "found none of them"),
    "sources": (
        "merge_method: linear\nslices: [{}]",
        "slices[0]: 'sources' is missing: a slice is",
    ),
    "no sources": (
        "merge_method: linear\nslices:\n- sources:\n",
        "config.yml:3: slices[0].sources: 'sources' has no value",
    ),
    "module": ("merge_method: linear\nmodules: {m: {}}", "modules.m: a module needs either"),
    "two tokenizers": (
        "merge_method: linear\nmodels: [a]\ntokenizer: {source: base}\ntokenizer_source: base",
        "cannot be combined",
    ),
    "kind of token": (
        "merge_method: linear\nmodels: [a]\ntokenizer: {tokens: {x: {source: {kind: zerro}}}}",
        "tokenizer.tokens.x.source.kind: 'kind' must be zero or model_token, not 'zerro'",
    ),
    "token of nothing": (
        "merge_method: linear\nmodels: [a]\n"
        "tokenizer: {tokens: {x: {source: {kind: model_token, model: a}}}}",
        "a model_token needs either 'token' or 'token_id'",
    ),
    "padding": (
        "merge_method: linear\nmodels: [a]\ntokenizer: {pad_to_multiple_of: 0}",
        "'pad_to_multiple_of' must be 1 or more, not 0",
    ),
    "two stages of a name": (
        "merge_method: linear\nmodels: [a]\nname: s\n---\n"
        "merge_method: linear\nmodels: [a]\nname: s",
        "two stages are named 's'",
    ),
    "two stages without": (
        "merge_method: linear\nmodels: [a]\n---\nmerge_method: linear\nmodels: [a]",
        "config.yml:1: two stages have no 'name', and only one can be the output",
    ),
    "stage of itself": (
        "merge_method: linear\nmodels: [a]\nname: a",
        "config.yml:2: models[0]: a cycle: stage 'a' uses itself",
    ),
    "stages in a cycle": (
        "merge_method: linear\nname: a\nmodels: [b]\n---\n"
        "merge_method: linear\nname: b\nmodels: [a]",
        "a cycle: stages 'a' and 'b' use each other",
    ),
    "mixture of experts": (
        "base_model: a\ngate_mode: hidden\nexperts: [{source_model: b}]",
        "config.yml:3: experts: 'experts' belongs to a configuration for a mixture of experts",
    ),
    "mixture by a method": (
        "merge_method: moe\nbase_model: a\nexperts: [{source_model: b}]",
        "config.yml:3: experts: 'experts' belongs to a configuration for a mixture of experts",
    ),
    "evolution": ("genome: {models: [a]}\ntasks: []", "a configuration for an evolutionary search"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_place_and_cause(case: str) -> None:
    text, expected = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "config.yml")
    errors = [each for each in caught.value.findings if each.severity is Severity.ERROR]
    assert [expected in str(each) for each in errors] == [True]
    assert "\n" not in str(errors[0])


def test_a_configuration_is_read_into_records() -> None:
    configuration = parse_config(
        """
        slices:
          - sources:
              - {model: a/b@main, layer_range: [0, 4], parameters: {weight: 1}}
              - model: {model: {path: c/d, revision: x}, lora: e/f}
                layer_range: [1, 5]
            base_model: a/b
            parameters: {t: [0, 1]}
        merge_method: slerp
        base_model: a/b
        dtype: bfloat16
        out_dtype: float16
        parameters:
          t:
            - {filter: mlp, value: [0, 0.5]}
            - value: 1e-1
        """
    )
    (document,) = configuration.documents
    (part,) = document.modules[None].slices
    assert [str(source.model) for source in part.sources] == ["a/b@main", "c/d@x+e/f"]
    assert [source.layer_range for source in part.sources] == [(0, 4), (1, 5)]
    assert (document.dtype, document.out_dtype) == (BF16, F16)
    assert [str(reference) for reference in document.merged_models()] == [
        "a/b",
        "a/b@main",
        "c/d@x+e/f",
    ]
    entries = document.parameters.entries["t"]
    assert [(entry.filter, entry.value) for entry in entries] == [("mlp", (0, 0.5)), (None, 0.1)]
    assert str(entries[1].place) == "config:16: parameters.t[1]"


WARNED = {
    "repeated key": (
        "merge_method: slerp\nmodels: [a]\nmerge_method: linear",
        "config.yml:3: merge_method: 'merge_method' is already set in line 1",
    ),
    "misspelt key": (
        "merge_method: linear\nmodels:\n  - model: a\n    paramters: {weight: 1}",
        "config.yml:4: models[0].paramters: unknown key 'paramters', it is ignored: did you mean "
        "'parameters'?",
    ),
    "range on models": (
        "merge_method: linear\nmodels:\n- {model: a, layer_range: [0, 4]}",
        "config.yml:3: models[0].layer_range: 'layer_range' has no effect here: 'models' merges",
    ),
    "control characters": (
        'merge_method: linear\nmodels: [a]\n"p\\e[2J\\n": 1',
        "unknown key 'p\\x1b[2J\\n'",
    ),
    "parameter at the top": (
        "merge_method: ties\nmodels: [a]\nnormalize: true",
        "normalize: 'normalize' has no effect here: write it under the global 'parameters'",
    ),
    "weight beside the model": (
        "merge_method: ties\nmodels: [{model: a, weight: 1}]",
        "models[0].weight: 'weight' has no effect here: write it under 'parameters'",
    ),
    "a key of another program": (
        "merge_method: linear\nmodels: [a]\ngate_mode: hidden",
        "config.yml:3: gate_mode: 'gate_mode' belongs to a configuration for a mixture of experts, "
        "it is ignored: remove it",
    ),
    "padding at the top": (
        "merge_method: ties\nmodels: [a]\npad_to_multiple_of: 64",
        "'pad_to_multiple_of' has no effect here: write it under 'tokenizer'",
    ),
    "revision beside the model": (
        "merge_method: linear\nmodels: [{model: a/b, revision: v1}]",
        "models[0].revision: 'revision' has no effect here: write 'model: a/b@v1'",
    ),
    "adapter beside the model": (
        "merge_method: linear\nmodels: [{model: a/b, lora: c/d}]",
        "models[0].lora: 'lora' has no effect here: write 'model: a/b+c/d'",
    ),
    "dtype among parameters": (
        "merge_method: linear\nmodels: [a]\nparameters: {dtype: bfloat16}",
        "parameters.dtype: 'dtype' has no effect here: write it at the top level",
    ),
    "seed": (
        "merge_method: linear\nmodels: [a]\nparameters: {random_seed: 4}",
        "parameters.random_seed: 'random_seed' has no effect here: give it as --seed N",
    ),
    "needless": (
        "merge_method: linear\nmodels: [a]\noverride_architecture: X",
        "'override_architecture' has no effect: the architecture is inferred from the tensors",
    ),
    "misspelt parameter": (
        "merge_method: ties\nmodels: [a]\nparameters: {lamda: 1}",
        "parameters.lamda: 'ties' has no parameter 'lamda', it is ignored: did you mean 'lambda'?",
    ),
    "parameter of no method": (
        "merge_method: slerp\nmodels: [a]\nparameters: {int_space: cs}",
        "'slerp' has no parameter 'int_space', it is ignored: known: t",
    ),
    "setting at a model": (
        "merge_method: ties\nmodels: [{model: a, parameters: {normalize: true}}]",
        "'normalize' of 'ties' applies to all models together and has no effect under one of them",
    ),
    "percent": (
        "merge_method: ties\nmodels: [{model: a, parameters: {weight: 1, density: 50}}]",
        "'density' is 50, outside the usual 0 to 1: did you mean 0.5?",
    ),
    "far": (
        "merge_method: slerp\nmodels: [a]\nparameters: {t: [0, {x: 1}, 200]}".replace(
            "{x: 1}", "1"
        ),
        "parameters.t[2]: 't' is 200, outside the usual 0 to 1",
    ),
    "empty list": (
        "merge_method: slerp\nmodels: [a]\nparameters: {t: []}",
        "config.yml:3: parameters.t: 't' is an empty list and has no effect",
    ),
    "empty slices": (
        "merge_method: linear\nmodels: [a]\nslices: []",
        "config.yml:3: slices: 'slices' is empty and has no effect beside 'models': remove it",
    ),
    "octal": (
        "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [0, 010]}]}]",
        "layer_range[1]: '010' is an octal number in YAML, 8",
    ),
}


@pytest.mark.parametrize("case", WARNED)
def test_keys_without_effect_are_warnings_and_with_strict_errors(case: str) -> None:
    text, expected = WARNED[case]
    (warning,) = parse_config(text, "config.yml").warnings
    assert expected in str(warning)
    assert warning.severity is Severity.WARNING
    strict = {"unknown-key", "unknown-parameter", "misplaced"}
    if warning.code not in strict:
        refuse_unknown([warning])
        return
    with pytest.raises(ConfigError) as caught:
        refuse_unknown([warning])
    assert str(caught.value) == str(warning).replace(", it is ignored", "")  # it is not
    assert [each.severity for each in caught.value.findings] == [Severity.ERROR]


def test_all_errors_are_reported_at_once_by_line() -> None:
    text = """
merge_method: ties
base_model: a
models:
- {modle: b}
- {model: c, parameters: {density: -1}}
normalize: true
dtype: bfloat61
parameters: {lambda: ~}
"""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "c.yml")
    found = [(f.place.line if f.place else 0, f.severity.value) for f in caught.value.findings]
    assert found == [
        (5, "warning"),
        (7, "warning"),
        (5, "error"),
        (6, "error"),
        (8, "error"),
        (9, "error"),
    ]
    assert str(caught.value).count("\n") == 5
    dtype = caught.value.findings[4]
    assert (dtype.cause, dtype.remedy) == ("'bfloat61' is not a dtype", "did you mean 'bfloat16'?")
    assert dtype.place == Place("c.yml", 8, "dtype")
    assert caught.value.cause == "'model' is missing"
    assert caught.value.place == Place("c.yml", 5, "models[0]")


def test_a_long_list_of_errors_is_cut() -> None:
    keys = "".join(f"key{i}: 1\n" for i in range(300))
    with pytest.raises(ConfigError) as caught:
        parse_config(f"{keys}merge_method: linear\nmodels: [4]\n")
    found = caught.value.findings
    assert [each.severity for each in found].count(Severity.ERROR) == 1
    assert (len(found), str(found[-2])) == (102, "and 200 more like these")


def test_tokenizer_settings_are_records() -> None:
    (document,) = parse_config(
        """
merge_method: linear
models: [a]
tokenizer:
  pad_to_multiple_of: 64
  tokens:
    <|im_start|>: {source: b/c@v1, force: true}
    x: {source: {kind: zero}}
    y: {source: {kind: model_token, model: d, token_id: 7}}
    z: {}
"""
    ).documents
    settings = document.tokenizer
    assert settings is not None
    assert (settings.source, settings.pad_to_multiple_of) == ("union", 64)
    rows = {
        token: (row.model and str(row.model), row.token_id, row.zero, row.force)
        for token, row in settings.tokens.items()
    }
    assert rows == {
        "<|im_start|>": ("b/c@v1", None, False, True),
        "x": (None, None, True, False),
        "y": ("d", 7, False, False),
        "z": (None, None, False, False),
    }
    assert [str(reference) for reference in document.named_models()] == ["a", "b/c@v1", "d"]
    (empty,) = parse_config("merge_method: linear\nmodels: [a]\ntokenizer: {}").documents
    assert empty.tokenizer is not None
    assert empty.tokenizer.source == "union"
    (old,) = parse_config("merge_method: linear\nmodels: [a]\ntokenizer_source: model:b").documents
    assert old.tokenizer is not None
    assert str(old.tokenizer.source) == "b"


def test_stages_are_sorted_by_their_dependencies() -> None:
    text = """
merge_method: linear
models: [two, three]
name: {}
---
merge_method: linear
models: [three]
name: two
---
merge_method: linear
models: [a]
name: three
"""
    for name in ("final", "~"):
        documents = parse_config(text.replace("{}", name)).documents
        assert [document.name for document in documents[:2]] == ["three", "two"]
        assert documents[2].name == (None if name == "~" else name)


def test_several_documents_are_stages() -> None:
    text = """
merge_method: linear
models: [a, b]
name: one
---
merge_method: slerp
models: [one, c]
"""
    assert [document.name for document in parse_config(text).documents] == ["one", None]
