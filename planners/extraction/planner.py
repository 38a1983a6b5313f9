"""The planner that extracts an adapter for PEFT from a fine-tuned model and its base model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, ClassVar

from mergeloom.engine.base.dtypes import DType
from mergeloom.engine.base.errors import CheckpointError
from mergeloom.engine.base.records import dataclass
from mergeloom.engine.graph.graph import GraphBuilder, Load
from mergeloom.engine.graph.kernel import Copy
from mergeloom.engine.graph.stored_tensor import StoredTensor
from mergeloom.engine.output.side_files import SideFile
from mergeloom.methods.adapters.extraction import EXTRACTION
from mergeloom.methods.kernels.leading_factors import LeadingOfDifference
from mergeloom.planners.adapters.factors import leading_factors, load_stored
from mergeloom.planners.adapters.modules import PREFIX
from mergeloom.planners.adapters.planner import PlannedAdapter
from mergeloom.planners.config.findings import Findings, placing
from mergeloom.planners.config.model_reference import ModelReference
from mergeloom.planners.config.parameters import ResolvedValue
from mergeloom.planners.config.yaml_values import Value
from mergeloom.planners.extraction.document import KEY, ExtractDocument, read_document
from mergeloom.planners.extraction.parts import AdaptedWeight, Parts, choose_parts, short_names
from mergeloom.planners.models.adapter import CONFIG, WEIGHTS
from mergeloom.planners.models.model import Model, OutputTensor
from mergeloom.planners.models.renamed import with_names_of
from mergeloom.planners.models.rows import uncoded_load
from mergeloom.planners.models.sameness import equal_bytes
from mergeloom.planners.models.token_weights import Head
from mergeloom.planners.outline import Outline, OutlinePart, OutlineSlice, OutlineSource
from mergeloom.planners.output.donor_files import donor_files, is_tokenizer_file
from mergeloom.planners.output.side_files import as_json
from mergeloom.planners.planner import Planner, PlanningContext
from mergeloom.planners.recipe import LeftOutReason, Recipe
from mergeloom.planners.tensors import Contribution, TensorPlan

_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
"""PEFT's names of tasks, by the ends of class names of transformers."""

_SAVED = "its module is saved as it is"


class ExtractionPlanner(Planner[ExtractDocument]):
    """Extracts an adapter from what fine-tuning changed."""

    key: ClassVar[str] = KEY

    def read(self, value: Value, findings: Findings) -> ExtractDocument | None:
        return read_document(value, findings)

    def plan(self, document: ExtractDocument, planning: PlanningContext) -> Recipe:
        findings = planning.findings
        base = _opened(document, document.base_model, planning)
        tuned = _opened(document, document.model, planning)
        findings.check()
        assert base is not None
        assert tuned is not None
        with findings.collecting(document.place):
            tuned = with_names_of(tuned, base)
            parts = choose_parts(tuned, base, document)
            if not parts.adapted and not parts.saved:
                raise CheckpointError(
                    f"nothing of '{tuned.name}' is selected",
                    remedy="'include' and 'exclude' are searched in module names, such as "
                    "'layers.0.mlp.down_proj'",
                )
        findings.check()
        extraction = _Extraction(document, tuned, base, parts)
        with findings.collecting(document.place):
            extraction.check_shapes()
        findings.check()
        extraction.note(findings)
        tensors = list(extraction.build(planning.builder))
        folder = planning.models.folder(document.model) if extraction.has_new_rows else None

        def files() -> tuple[SideFile, ...]:
            config = SideFile.from_content(CONFIG, as_json(extraction.config()))
            if folder is None:
                return (config,)
            names = filter(is_tokenizer_file, donor_files(folder, {}))
            return (config, *(SideFile.copy_of(name, folder.source(name)) for name in names))

        def left_out(model: str, tensor: str) -> LeftOutReason:
            if model == tuned.name and tensor in parts.left_out:
                return parts.left_out[tensor], None
            if tensor == tuned.tokens.head and tuned.tokens.kind is Head.TIED:
                return "it is the embedding", None
            if model == base.name and tensor in parts.saved:
                return _SAVED, None
            return parts.left_out.get(tensor, "the output does not use it"), None

        return Recipe(
            output=PlannedAdapter(
                document.name or "the output", {}, {each.name: each for each in tensors}
            ),
            outline=extraction.outline(),
            plans=extraction.plans,
            files=files,
            left_out=left_out,
            stem=WEIGHTS[0].removesuffix(".safetensors"),
            sharded=False,
            library="peft",
        )


def _opened(
    document: ExtractDocument, reference: ModelReference, planning: PlanningContext
) -> Model | None:
    def get() -> Model:
        with placing(document.place_of(reference)):
            return planning.models.get(reference)

    return planning.findings.attempt(get)


@dataclass(frozen=True)
class _Extraction:
    """The tensors and the settings of one adapter."""

    document: ExtractDocument
    tuned: Model
    base: Model
    parts: Parts

    @cached_property
    def saved(self) -> list[tuple[str, str]]:
        """The output names of saved tensors, with the tensors."""
        found = [(PREFIX + name, tensor) for tensor, name in self.parts.saved.items()]
        embedding = self.tuned.tokens.embedding
        if embedding is not None and embedding in self.parts.saved:
            found += [(PREFIX + name, embedding) for name in self._further_names(embedding)]
        return found

    def _further_names(self, embedding: str) -> Iterator[str]:
        """The names of further modules that are the embedding in the class of the model: PEFT
        replaces each of them on its own."""
        if embedding.endswith("shared.weight"):
            raise CheckpointError(
                f"'{embedding}' of '{self.base.name}' is the embedding of encoder and decoder, "
                "three modules in its class, which PEFT replaces one by one",
                remedy="'embeddings: skip' leaves it out",
            )
        if self.tuned.tokens.kind is Head.TIED:
            yield self._tied_head

    @property
    def _tied_head(self) -> str:
        """The name of the head that is tied to the embedding."""
        for model in (self.base, self.tuned):
            if model.tokens.head not in (None, model.tokens.embedding):
                return str(model.tokens.head)
        if not self._class.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
            raise CheckpointError(
                f"'{self.base.name}' has a head tied to its embedding, of an unknown name",
                remedy="'embeddings: skip' leaves both out",
            )
        return "embed_out.weight" if "GPTNeoX" in self._class else "lm_head.weight"

    @property
    def _class(self) -> str:
        classes = self.base.config.get("architectures")
        return str(classes[0]) if isinstance(classes, list) and classes else ""

    @property
    def has_new_rows(self) -> bool:
        """Whether a saved table has another number of rows than the base model's."""
        return any(self._has_new_rows(tensor) for tensor in self.parts.saved)

    def _has_new_rows(self, tensor: str) -> bool:
        tables = (self.tuned.tokens.embedding, self.tuned.tokens.head)
        return tensor in tables and self._shape(tensor) != self.tuned.shape(tensor)

    def _shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of the base model's tensor."""
        return self.base.shape(tensor)

    def check_shapes(self) -> None:
        """Check that all tensors have the base model's shape; saved tables may have other rows.

        Raises:
            CheckpointError: one has not; or the name of a tied head is not known.
        """
        used = [*(weight.tensor for weight in self.parts.adapted), *self.parts.saved]
        for name in used:
            theirs, own = self._shape(name), self.tuned.shape(name)
            if own == theirs or (name in self.parts.saved and self._has_new_rows(name)):
                continue
            shapes = " and ".join(
                f"{'x'.join(map(str, shape))} in '{model.name}'"
                for shape, model in ((own, self.tuned), (theirs, self.base))
            )
            tables = self.tuned.tokens.embedding, self.tuned.tokens.head
            raise CheckpointError(
                f"'{name}' is {shapes}",
                remedy="'embeddings: save' saves a table of another vocabulary"
                if name in tables
                else "is this the model that it was trained from?",
            )
        _ = self.saved

    def note(self, findings: Findings) -> None:
        """Note what a user of the adapter should know."""
        tuned, base, place = self.tuned, self.base, self.document.place
        if self.has_new_rows and (table := tuned.tokens.embedding) is not None:
            findings.warn(
                place,
                f"'{tuned.name}' has {tuned.shape(table)[0]} rows of tokens, '{base.name}' "
                f"{self._shape(table)[0]}: PEFT loads the adapter only into a model that was "
                "resized",
                f"call resize_token_embeddings({tuned.shape(table)[0]}) on the base model first",
                "resized",
            )
        if self.document.embeddings == "lora" and tuned.tokens.kind is Head.TIED:
            findings.note(
                "the embedding is saved, not factorised, because it is also the head",
                code="tied",
            )
        seem_equal = [
            name
            for name in (tuned.tokens.embedding, tuned.tokens.head)
            if name in self.parts.saved and self._seems_equal(name)
        ]
        if seem_equal:
            nbytes = sum(tuned.dtype(n).nbytes(math.prod(tuned.shape(n))) for n in seem_equal)
            findings.note(
                f"'{seem_equal[0]}'{' and the head' if len(seem_equal) > 1 else ''} of both models "
                f"seem equal, by a sample of their bytes: 'embeddings: skip' leaves out "
                f"{nbytes:,} bytes that the base model has",
                code="equal-embedding",
            )
        for name, why in self.parts.inseparable.items():
            findings.warn(
                place,
                f"'{name}' is left out: {why}",
                f"save: {re.escape(name.rpartition('.')[0])}",
                "inseparable",
            )

    def _seems_equal(self, tensor: str) -> bool:
        own, theirs = self.tuned.stored(tensor), self.base.stored(tensor)
        if own is None or theirs is None or own.entry.shape != theirs.entry.shape:
            return False
        return own.entry.dtype == theirs.entry.dtype and equal_bytes(own.entry, theirs.entry)

    def build(self, builder: GraphBuilder) -> Iterator[OutputTensor]:
        """The tensors of the adapter."""
        for weight in self.parts.adapted:
            dtype = self._dtype(weight.tensor)
            factors = self._factors(builder, weight)
            for name, factor in zip(_factor_names(weight), factors, strict=True):
                load = load_stored(builder, factor, name)
                yield OutputTensor(name, builder.merge([load], Copy(), name), dtype)
        for name, tensor in self.saved:
            node = self.tuned.node(builder, tensor)
            merge = builder.merge([node], Copy(), name) if isinstance(node, Load) else node
            yield OutputTensor(name, merge, self._dtype(tensor))

    def _dtype(self, tensor: str) -> DType:
        return self.document.dtype or self.tuned.dtype(tensor)

    def _factors(
        self, builder: GraphBuilder, weight: AdaptedWeight
    ) -> tuple[StoredTensor, StoredTensor]:
        """The tensors A and B of PEFT.

        A weight stored as (in, out) is the transpose of B·A, which has the same factors transposed
        and exchanged. PEFT stores the factors of an embedding for its transpose.
        """
        side = [
            uncoded_load(builder, model.node(builder, weight.tensor), weight.tensor)
            for model in (self.tuned, self.base)
        ]
        kernel = LeadingOfDifference(weight.rows, weight.columns, weight.rank)
        lower, upper = leading_factors(builder, kernel, side, weight.tensor)
        if weight.is_transposed or weight.is_table:
            return upper.transpose(), lower.transpose()
        return lower, upper

    def plans(self) -> Iterator[TensorPlan]:
        """The plan of each tensor."""
        for weight in self.parts.adapted:
            rank = ResolvedValue(weight.rank, "extract.rank", None, None)
            contributions = tuple(
                Contribution(model, weight.tensor, self._prefix(weight.tensor), is_base, {})
                for model, is_base in ((self.tuned, False), (self.base, True))
            )
            for name in _factor_names(weight):
                yield TensorPlan(
                    name, self._layer(weight.tensor), EXTRACTION, contributions, {"rank": rank}
                )
        for name, tensor in self.saved:
            only = Contribution(self.tuned, tensor, self._prefix(tensor), False, {})
            yield TensorPlan(name, self._layer(tensor), None, (only,), {}, _SAVED)

    def _prefix(self, tensor: str) -> str:
        towers = self.tuned.architecture.towers
        return next((t.prefix for t in towers if t.prefix and tensor.startswith(t.prefix)), "")

    def _layer(self, tensor: str) -> int | None:
        return Contribution(self.tuned, tensor, self._prefix(tensor), False, {}).layer

    def config(self) -> Mapping[str, Any]:
        """``adapter_config.json``: B·A is added unscaled, so alpha is the rank."""
        adapted, modules = self.parts.adapted, {name.rpartition(".")[0] for name in self.tuned}
        ranks = {weight.module: weight.rank for weight in adapted}
        usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else self.document.rank
        others = {name: rank for name, rank in sorted(ranks.items()) if rank != usual}
        saved = dict.fromkeys(self.parts.saved_modules)
        for name, _ in self.saved[len(self.parts.saved) :]:
            saved[name.removeprefix(PREFIX).removesuffix(".weight")] = None
        return {
            "peft_type": "LORA",
            "task_type": next((t for e, t in _TASKS.items() if self._class.endswith(e)), None),
            "base_model_name_or_path": str(self.document.base_model),
            "inference_mode": True,
            "r": usual,
            "lora_alpha": usual,
            "rank_pattern": others,
            "alpha_pattern": dict(others),
            "lora_dropout": 0.0,
            "bias": "all" if self.parts.has_biases else "none",
            "fan_in_fan_out": any(weight.is_transposed for weight in adapted),
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
            "target_modules": short_names(list(ranks), modules, exact=True),
            "modules_to_save": short_names(list(saved), modules | set(saved), exact=False) or None,
        }

    def outline(self) -> Outline:
        """The outline for reports."""
        sources = (
            OutlineSource(self.tuned.name, None),
            OutlineSource(self.base.name, None, base=True),
        )
        part = OutlinePart("adapter", 0, (OutlineSlice(None, "merged", "", sources),))
        adapted, saved = len(self.parts.adapted), len(self.parts.saved)
        return Outline(
            name=self.document.name,
            method=EXTRACTION.name,
            dtype=self.document.dtype.name if self.document.dtype is not None else None,
            parts=(part,),
            notes=(
                f"{adapted} weights get factors of rank {self.document.rank}, an approximation; "
                f"{saved} tensors are saved as they are",
            ),
        )


def _factor_names(weight: AdaptedWeight) -> tuple[str, str]:
    if weight.is_table:
        names = ("lora_embedding_A", "lora_embedding_B")
    else:
        names = ("lora_A.weight", "lora_B.weight")
    first, second = (f"{PREFIX}{weight.module}.{name}" for name in names)
    return first, second
