from __future__ import annotations

import json

import pytest

from generative_adapter.evaluation import training_speed
from generative_adapter.evaluation.training_speed import StepTimes, TimeShare, TrainingSpeed


@pytest.fixture
def measured(monkeypatch):
    """What `measure_training` was given; it calls for a plain ratio of 2.5."""
    given = {}

    def measure_training(recipe, steps, warmup_steps, seed, *, plain, plain_attention, progress):
        given.update(recipe=recipe, steps=steps, warmup_steps=warmup_steps, seed=seed, plain=plain)
        given.update(plain_attention=plain_attention)
        progress(1, 2)
        return TrainingSpeed(
            base_model="tiny",
            device="cpu",
            num_threads=2,
            dtype="float32",
            num_generator_parameters=10,
            state_dim=recipe.generator.state_dim,
            rank=recipe.generator.rank,
            normalization=recipe.generator.normalization,
            attention=recipe.attention,
            plain_attention=plain_attention,
            chunk_tokens=recipe.generator.chunk_tokens,
            contexts_per_step=recipe.contexts_per_step,
            tokens_per_step=4096.0,
            num_steps=steps,
            ours=StepTimes(1000.0, 4.096, 7.5, None),
            plain=StepTimes(400.0, 10.24, 7.5, None) if plain else None,
            ratio=2.5 if plain else None,
            split={"base_forward": TimeShare(3.0, 0.75), "generator_forward": TimeShare(1.0, 0.25)},
            generator_share=0.25,
        )

    monkeypatch.setattr(training_speed, "measure_training", measure_training)
    return given


def test_default_task(run, measured):
    result = run("bench", "training", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    found = json.loads(result.stdout)
    assert (found["ratio"], found["plain"]["tokens_per_second"]) == (2.5, 400.0)
    assert found["split"]["generator_forward"] == {"seconds": 1.0, "share": 0.25}
    recipe = measured["recipe"]
    assert (recipe.contexts_per_step, recipe.generator.chunk_tokens, recipe.sources[0].context_tokens) == (
        4,
        128,
        (512, 512),
    )
    assert (recipe.generator.state_dim, recipe.generator.normalization, recipe.generator.targets) == (
        128,
        "newton_schulz",
        ("attention_output",),
    )
    assert (recipe.base_model, recipe.optimizer, recipe.dtype) == ("embedded", "adamw", "auto")
    assert measured["plain"] is True
    assert measured["plain_attention"] == found["plain_attention"] == "sdpa"


def test_flags(run, measured):
    flags = ["--segments", 3, "--segment-tokens", 64, "--chunk-tokens", 16, "--state-dim", 32, "--rank", 8]
    flags += ["--normalization", "svd", "--steps", 5, "--warmup-steps", 1, "--seed", 4, "--skip-plain"]
    result = run("bench", "training", *flags, "--base-model", "some/base", "--device", "cpu", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    recipe = measured["recipe"]
    assert (recipe.contexts_per_step, recipe.sources[0].context_tokens) == (3, (64, 64))
    generator = recipe.generator
    assert (generator.chunk_tokens, generator.state_dim, generator.rank, generator.normalization) == (16, 32, 8, "svd")
    assert (recipe.base_model, recipe.device, recipe.dtype) == ("some/base", "cpu", "float32")
    assert [measured[name] for name in ("steps", "warmup_steps", "seed", "plain")] == [5, 1, 4, False]
    assert recipe.attention == "grouped"
    assert "1,000.0" in result.stdout and "25.0%" in result.stdout
    assert "plain" not in result.stdout


def test_attention(run, measured):
    result = run("bench", "training", "--plain-attention", "eager", "--device", "cpu", "--chunk-tokens", 128)
    shown = " ".join(result.stdout.split())
    assert "(newton_schulz, grouped attention)" in shown and "(svd_lowrank, eager attention)" in shown
    assert measured["plain_attention"] == "eager"
    result = run("bench", "training", "--device", "cpu", "--segment-tokens", 600, "--chunk-tokens", 300, "--json")
    found = json.loads(result.stdout)
    assert (found["attention"], found["plain_attention"]) == ("sdpa", "sdpa")


def test_table(run, measured):
    result = run("bench", "training")
    assert "2.50" in result.stdout and "400.0" in result.stdout and "base forward" in result.stdout


def test_config(run, measured, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("output: runs/x\nbase_model: mine\ncontexts_per_step: 5\nsources: [{kind: facts}]\n")
    result = run("bench", "training", path, "--dtype", "float32")
    assert result.exit_code == 0, result.output
    recipe = measured["recipe"]
    assert (recipe.base_model, recipe.contexts_per_step, recipe.dtype) == ("mine", 5, "float32")


def test_bad_input(fails, measured, tmp_path):
    path = tmp_path / "recipe.yaml"
    assert "there is no such config file" in fails("bench", "training", path)
    path.write_text("output: runs/x\nsources: [{kind: facts}]\n")
    message = fails("bench", "training", path, "--segments", 2, "--state-dim", 8)
    assert "--segments, --state-dim" in message
    assert "longer than a chunk" in fails("bench", "training", "--segment-tokens", 64)
    assert "attention" in fails("bench", "training", "--plain-attention", "flash")
    assert "normalization" in fails("bench", "training", "--normalization", "none")
    assert measured == {}
