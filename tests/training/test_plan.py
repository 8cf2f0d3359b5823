"""Dry runs: numbers against independent arithmetic, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from generative_adapter.config import EncoderConfig, GeneratorConfig
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.training.batches import ContextItem, Segment, assemble
from generative_adapter.training.context_shapes import TABLE_3, context_shape, num_records, pass_layout
from generative_adapter.training.plan import plan_training
from generative_adapter.training.recipe import TrainingRecipe, load_recipe
from generative_adapter.training.source_config import SourceConfig

CONFIGS = Path(__file__).parents[2] / "configs"
MISTRAL = CONFIGS / "pretrain-mistral-7b-instruct-v0.2.yaml"
TEXT = SourceConfig("text", dataset="a/b", packing=True, context_tokens=(64, 64))


def recipe(*sources: SourceConfig, **settings: object) -> TrainingRecipe:
    values: dict = {"generator": GeneratorConfig(state_dim=8, rank=8, chunk_tokens=16), "row_tokens": 16, **settings}
    return TrainingRecipe(sources or (TEXT,), "run", **values)


def test_pretraining_of_mistral_by_hand() -> None:
    plan = plan_training(load_recipe(MISTRAL), num_processes=8, teraflops=100.0)
    assert plan.base_parameters == 7_241_732_096
    each = 4 * 1024 * 4096 + 4096  # four projections and a norm
    assert plan.generator_parameters == 32 * each == 537_001_984
    assert plan.generator_file_bytes == 4 * 32 * each
    assert plan.adapter_file_bytes == 2 * 32 * 128 * (4096 + 4096)
    assert plan.num_targets == 32
    assert plan.context_tokens_per_step == 8 * 8192
    assert plan.context_tokens == pytest.approx(1e9, rel=1e-4)
    assert plan.computed_tokens == 2 * plan.context_tokens
    # Forward: 2 operations a weight of the blocks and token, over chunks of 1,024; the head at 15 of 16 parts.
    weights = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14336)
    tokens = 2 * 8 * 8192
    forward = 2 * weights * tokens + 4 * 32 * 4096 * 1024 * tokens + 2 * tokens * 15 / 16 * 4096 * 32000
    assert plan.flops_per_step["base_forward"] == pytest.approx(forward, rel=1e-3)
    block = 128 + 32  # columns that subspace iteration finds the first 128 directions with, in eight rounds
    found = 18 * (2 * 1024**2 * block + 9 * 1024 * block**2) + 6 * 1024 * block**2 + 20 * block**3 + 2 * 1024**2 * 128
    found += 24 * 1024**2 * 128 + 40 * 1024 * 128**2 + 256 * 1024 * 128
    assert plan.flops_per_step["normalization"] == found * 32 * 8 * 8
    assert plan.flops is not None
    assert plan.seconds == pytest.approx(plan.flops["total"] / 8e14)
    memory = plan.memory_bytes
    assert memory["base_weights"] == 2 * 7_241_732_096
    assert (memory["generator"], memory["optimizer"]) == (4 * 32 * each, 8 * 32 * each)
    assert memory["gradients"] == 2 * memory["generator"]  # with the copies that are exchanged
    assert memory["logits"] == 2 * 2 * 15 * 1024 * 32000  # with their gradient
    assert memory["activations"] == plan.activation_bytes["checkpointed"] < plan.activation_bytes["plain"] / 5
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
    assert plan.notes == ()


def test_a_generator_with_an_encoder_has_no_dry_run_yet() -> None:
    form = GeneratorConfig(state_dim=8, rank=8, normalization="ridge", encoder=EncoderConfig())
    with pytest.raises(ConfigError, match="dry run of generators with an encoder is not possible"):
        plan_training(recipe(generator=form))


def test_times_and_processes() -> None:
    plan = plan_training(recipe(num_steps=10), tokens_per_second=500.0)
    assert plan.seconds == pytest.approx(plan.computed_tokens / 500)  # type: ignore[operator]
    assert plan_training(recipe()).seconds is None
    one, two = (plan_training(recipe(), num_processes=n, teraflops=1.0) for n in (1, 2))
    assert one.seconds == pytest.approx(2 * two.seconds, rel=1e-3)  # type: ignore[operator]
    assert one.flops_per_step["total"] == pytest.approx(two.flops_per_step["total"], rel=0.01)
    assert two.memory_bytes["activations"] == pytest.approx(one.memory_bytes["activations"] / 2)


def test_an_expensive_normalization_shows() -> None:
    base = load_recipe(MISTRAL, ["generator.subspace_iterations=0"])
    svd, polar = (
        plan_training(replace(base, generator=replace(base.generator, normalization=name, rank=rank))).flops_per_step
        for name, rank in (("svd", 128), ("newton_schulz", 1024))
    )
    assert polar["normalization"] == 4 * svd["normalization"]
    assert polar["base_forward"] == svd["base_forward"]


def test_layout_of_a_text_is_what_is_assembled() -> None:
    shape = context_shape(TEXT)
    chunks = tuple(tuple(range(16)) for _ in range(4))
    segments = tuple(Segment(chunk, 1, level, "reconstruction") for level, chunk in enumerate(chunks, start=1))
    made = assemble([ContextItem(chunks, segments, True)] * 3, pad_id=0, start_ids=(), row_tokens=16)
    layout = pass_layout(shape, recipe(), 3)
    assert layout.computed_tokens == made.num_computed_tokens == 3 * 2 * 64
    assert layout.first_tokens == sum(ids.numel() for ids, _ in made.first)
    assert layout.all_row_tokens / layout.row_tokens == len(made.rows.input_ids)
    assert (layout.prefixes, layout.first_chunks + layout.later_chunks) == tuple(made.membership.shape)
    assert layout.supervised_tokens == pytest.approx(len(made.labels), rel=0.1)


def test_epochs_count_records() -> None:
    sources = (
        SourceConfig("instructions", dataset="stanfordnlp/coqa", max_records=1000, held_out_share=0.1),
        SourceConfig("text", dataset="a/b", max_tokens=64_000, context_tokens=(64, 64), held_out_share=0.0),
    )
    plan = plan_training(recipe(*sources, num_epochs=3.0, contexts_per_step=10))
    assert plan.num_steps == 3 * (900 + 1000) / 10
    assert plan.contexts == plan.num_steps * 10
    assert num_records(TEXT) is None
    unknown = plan_training(recipe(*sources, TEXT, num_epochs=3.0))
    assert (unknown.num_steps, unknown.flops, unknown.seconds) == (None, None, None)
    assert "known when it is read" in unknown.notes[0]


def test_instruction_recipe_counts_the_paper_s_documents() -> None:
    plan = plan_training(load_recipe(CONFIGS / "instruct-llama-2-7b-chat.yaml"))
    assert plan.base_parameters == 6_738_415_616
    documents = 1798 + 1379 + 1047 + 1000 + 560 + 4832 + 11888 + 2914 + 13102
    assert plan.num_steps == round(2 * 0.99 * documents / 32)
    assert "initial_generator runs/pretrain-llama-2-7b-chat" in plan.notes[0]
    assert {source.dataset for source in load_recipe(CONFIGS / "instruct-llama-2-7b-chat.yaml").sources} == set(TABLE_3)


def test_sources_take_turns() -> None:
    first = SourceConfig("text", dataset="a/b", packing=True, context_tokens=(32, 32), end_step=25)
    plan = plan_training(recipe(first, replace(TEXT, start_step=25), num_steps=100, contexts_per_step=4))
    assert plan.context_tokens == pytest.approx(4 * (25 * 32 + 75 * 64))


def test_distillation_adds_a_teacher() -> None:
    source = SourceConfig("instructions", dataset="a/b", context_tokens=(10, 10), num_questions=2)
    plain, taught = (plan_training(recipe(source, distillation_weight=weight)) for weight in (0.0, 1.0))
    asked = 2 * (10 + 12 + 12 + 7)
    assert taught.computed_tokens_per_step - plain.computed_tokens_per_step == pytest.approx(8 * asked)
    assert taught.flops_per_step["base_forward"] > 1.5 * plain.flops_per_step["base_forward"]


def test_what_is_refused(tmp_path: Path) -> None:
    missing = SourceConfig("text", paths=(str(tmp_path / "none.jsonl"),))
    with pytest.raises(DataError, match=r"none\.jsonl: there is no such file"):
        plan_training(recipe(missing))
    with pytest.raises(ConfigError, match="8 contexts a step can't be dealt out to 9 processes"):
        plan_training(recipe(), num_processes=9)
    with pytest.raises(ConfigError, match="not both"):
        plan_training(recipe(), tokens_per_second=1.0, teraflops=1.0)
    with pytest.raises(ConfigError, match="throughput must be positive"):
        plan_training(recipe(), teraflops=0.0)
    with pytest.raises(ConfigError, match="number of processes must be positive"):
        plan_training(recipe(), num_processes=0)
