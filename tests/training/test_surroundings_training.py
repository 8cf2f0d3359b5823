"""Training of generators whose keys tell the words around a token: passes, the start from another one, whole runs."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from generative_adapter import GenerativeAdapter
from generative_adapter.base_model.fingerprint import tensors_fingerprint
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.checkpoint import generator_fingerprint, load_generator, load_generator_alone
from generative_adapter.config_mapping import to_mapping
from generative_adapter.errors import CheckpointError, ConfigError
from generative_adapter.generator.encoder_generator import MEMORY, EncoderGenerator
from generative_adapter.generator.memory import ContextMemory
from generative_adapter.training.encoder import surroundings_start
from generative_adapter.training.encoder.encoding import group_memories
from generative_adapter.training.encoder.frozen_states import Asked
from generative_adapter.training.encoder.groups import GroupSampler
from generative_adapter.training.encoder.question_words import question_word_losses
from generative_adapter.training.encoder.starting import measure_start
from generative_adapter.training.encoder.surroundings_start import fit_surroundings_queries, question_codes
from generative_adapter.training.recipe import load_recipe
from generative_adapter.training.run import run_training
from metric_lines import training_lines
from unit_passes import check_passes

LEARNED, FIXED = 16, 6
ONE_STEP = ["num_steps=1", "encoder_training.lookup_steps=0", "learning_rate=1e-12", "weight_decay=0"]
WITHOUT = ["generator.encoder.surroundings_dim=0", f"generator.state_dim={LEARNED}"]


@pytest.fixture
def encoder_values(encoder_values):
    """Two blocks of units alone, whose keys have a fixed part."""
    encoder_values["generator"] |= {"layers": [], "state_dim": LEARNED + FIXED}
    encoder_values["generator"]["encoder"] |= {"unit_layers": [1, 2], "surroundings_dim": FIXED, "token_share": 0.8}
    encoder_values["generator"]["encoder"] |= {"least_tokens": 4}
    del encoder_values["encoder_training"]["lookup_layers"]
    encoder_values["encoder_training"] |= {"group_passages": [1, 2, 5], "group_shares": [1, 1, 1]}
    return encoder_values


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What fitting queries says; not by pytest's own means, since other tests turn logs off."""
    lines: list[str] = []
    monkeypatch.setattr(surroundings_start.logger, "info", lambda text, *values: lines.append(text % values))
    return lines


@pytest.mark.parametrize("step", range(2))
def test_passes_equal_the_adapter_in_the_model(recipe, base, generator, states, embeddings, step):
    measure_start(generator, base, states)
    with torch.no_grad():
        for block in generator.unit_blocks:
            block.query_proj[LEARNED:] *= 20
    check_passes(recipe, base, generator, states, embeddings, step)
    for block in generator.unit_blocks:
        assert float(block.query_proj.grad[LEARNED:].abs().max()) > 0


def test_learned_keys_are_whitened_as_if_they_were_alone(recipe, base, generator, states, embeddings):
    measure_start(generator, base, states)
    groups = GroupSampler(states, embeddings, recipe.encoder_training, seed=0).groups(1, 0, 6)
    for memory in group_memories(generator, states, embeddings, groups):
        kept = memory.remembered_keys[:, :LEARNED]
        assert 0 < int(memory.remembered.sum()) < len(memory.remembered)
        own = torch.linalg.inv(kept.mT @ kept + generator.ridge_strength * torch.eye(LEARNED))
        torch.testing.assert_close(memory.inverse[:LEARNED, :LEARNED], own, rtol=1e-3, atol=1e-4)
        assert torch.equal(memory.inverse[LEARNED:, LEARNED:], torch.eye(FIXED))
        assert not memory.inverse[LEARNED:, :LEARNED].any() and not memory.inverse[:LEARNED, LEARNED:].any()
    keys = torch.rand(1, 20, LEARNED + FIXED)
    keys[..., LEARNED:] *= 50
    longest = keys[0, :, :LEARNED].norm(dim=-1).topk(16).indices
    assert generator.remembered(keys)[0].nonzero().squeeze(1).tolist() == sorted(longest.tolist())


def test_queries_tell_the_words_of_questions(recipe, base, generator, states, embeddings, told, monkeypatch):
    measure_start(generator, base, states)
    codes = question_codes(generator, states, embeddings)
    asked = states.asked[2][0]
    question = states.passages[2].questions[asked.number]
    text = base.tokenizer.decode(question.ids[: question.num_prompt])
    own = recipe.prompt.question.split("{question}")
    assert text.startswith(own[0]) and text.endswith(own[1])
    others = [each for each in codes if each != asked]
    assert len(others) > 5 and not any(torch.equal(codes[asked], codes[each]) for each in others[-3:])
    prompts = [each.ids[: each.num_prompt] for passage in states.passages for each in passage.questions]
    start, end = (
        next(at for at in range(99) if len({each[at] for each in ordered}) > 1)
        for ordered in (prompts, [each[::-1] for each in prompts])
    )
    assert start > 0 < end
    ids = torch.tensor(question.ids[start : question.num_prompt - end])
    torch.testing.assert_close(codes[asked], generator.surroundings.of_words(embeddings[ids]))
    before = [block.query_proj[:LEARNED].clone() for block in generator.unit_blocks]
    fit_surroundings_queries(generator, base, states, embeddings, 96)
    assert [line.split(" model.")[0] for line in told[:2]] == ["surroundings told at"] * 2
    assert len(told) == 3 and told[2].startswith("queries for surroundings of size")
    for block, was in zip(generator.unit_blocks, before, strict=True):
        assert torch.equal(block.query_proj[:LEARNED], was)
    ratio = float(told[2].rpartition("place loss ")[2].split(" times")[0])
    assert ratio <= 1

    monkeypatch.setattr(surroundings_start, "_SIZES", (0.0, 1e4))  # the second one drowns everything else
    fit_surroundings_queries(generator, base, states, embeddings, 96)
    assert not any(bool(block.query_proj[LEARNED:].any()) for block in generator.unit_blocks)


def test_a_run_goes_on_from_a_generator_without(recipe_path, tmp_path, base, told):
    """What it knows stays; its keys get the fixed part, in memories and their files too."""
    first = run_training(recipe_path, WITHOUT, output=tmp_path / "first")
    settings = [*ONE_STEP, f"initial_generator={first.generator}"]
    second = run_training(recipe_path, settings, output=tmp_path / "second")
    assert len(told) == 3
    before, after = (load_generator(each.generator, base).generator for each in (first, second))
    assert isinstance(before, EncoderGenerator) and isinstance(after, EncoderGenerator)
    torch.testing.assert_close(after.key_proj, before.key_proj, rtol=1e-4, atol=1e-5)
    for old, new in zip(before.unit_blocks, after.unit_blocks, strict=True):
        torch.testing.assert_close(new.query_proj[:LEARNED], old.query_proj, rtol=1e-4, atol=1e-5)
    hidden = {layer: torch.randn(1, 9, after.hidden_size) for layer in after.layers}
    (old_keys, old_values), (keys, values) = before.keys_and_values(hidden), after.keys_and_values(hidden)
    torch.testing.assert_close(keys[..., :LEARNED], old_keys, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(values, old_values, rtol=1e-3, atol=1e-4)
    assert after.surroundings is not None and bool(after.surroundings.mean_surroundings.any())
    codes = after.surroundings(hidden[0]) * old_keys.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(keys[..., LEARNED:], codes, rtol=1e-3, atol=1e-5)
    start = load_generator(tmp_path / "second" / "initial-generator.safetensors", base)
    assert isinstance(start.generator, EncoderGenerator) and start.training["step"] == 0
    assert torch.equal(start.generator.key_proj, before.key_proj)
    assert torch.equal(start.generator.surroundings.mean_surroundings, after.surroundings.mean_surroundings)
    assert start.generator.unit_blocks[0].query_proj.shape == after.unit_blocks[0].query_proj.shape

    settings = [*ONE_STEP, f"initial_generator={second.generator}"]
    third = run_training(recipe_path, settings, output=tmp_path / "third")
    assert len(told) == 3, "they are not fitted again"
    again = load_generator(third.generator, base).generator.named_weights()
    for name, weight in after.named_weights().items():
        torch.testing.assert_close(again[name], weight, rtol=1e-4, atol=1e-5, msg=name)

    model = GenerativeAdapter(base, load_generator(second.generator, base))
    text = "Anna keeps the keys of the boat house in a tin behind the stove, and Bo mends the pumps."
    memory = model.contextualize(text)
    assert memory.states[MEMORY].shape == (memory.num_rows, 12 + LEARNED + FIXED)
    memory.save(tmp_path / "memory.safetensors", "float64")
    alone = load_generator_alone(second.generator).generator
    found = alone.adapter(ContextMemory.load(tmp_path / "memory.safetensors").states)
    for name, factors in model.adapter(memory).items():
        torch.testing.assert_close(found[name].delta(), factors.delta())


def test_surroundings_of_another_width_are_refused(recipe_path, tmp_path):
    first = run_training(recipe_path, ONE_STEP, output=tmp_path / "first")
    other = [*ONE_STEP, f"initial_generator={first.generator}", "generator.encoder.surroundings_dim=4"]
    with pytest.raises(CheckpointError, match=r"surroundings can only be taken over as they are.*\(6, 22 and 12"):
        run_training(recipe_path, [*other, "generator.state_dim=20"], output=tmp_path / "second")
    with pytest.raises(CheckpointError, match="the new generator has 0, 16 and 12"):
        run_training(
            recipe_path, [*WITHOUT, *ONE_STEP, f"initial_generator={first.generator}"], output=tmp_path / "third"
        )


def test_a_narrower_generator_may_get_surroundings(recipe_path, tmp_path, base):
    first = run_training(recipe_path, WITHOUT, output=tmp_path / "first")
    narrow = [*ONE_STEP, f"initial_generator={first.generator}", "generator.state_dim=18", "generator.rank=10"]
    second = run_training(recipe_path, narrow, output=tmp_path / "second")
    found = load_generator(second.generator, base).generator
    assert isinstance(found, EncoderGenerator) and (found.learned_dim, found.value_dim) == (12, 10)


def test_surroundings_are_no_wider_than_embeddings(recipe, base):
    width = base.model.config.hidden_size + 1
    encoder = dataclasses.replace(recipe.generator.encoder, surroundings_dim=width)
    with pytest.raises(ConfigError, match=f"must not exceed the width of the hidden states .*got {width}"):
        build_generator(dataclasses.replace(recipe.generator, encoder=encoder, state_dim=width + 16), base)


def test_a_generator_without_keeps_its_fingerprint(encoder_values, request):
    """So that memories written before there was this setting can still be read."""
    encoder_values["generator"]["state_dim"] = LEARNED
    encoder_values["generator"]["encoder"]["surroundings_dim"] = 0
    recipe, base = (request.getfixturevalue(name) for name in ("recipe", "base"))
    generator = build_generator(recipe.generator, base)
    settings = to_mapping(recipe.generator)
    del settings["subspace_iterations"], settings["encoder"]["surroundings_dim"]
    old = tensors_fingerprint(generator.named_weights(), json.dumps(settings, sort_keys=True))
    assert generator_fingerprint(generator, recipe.generator) == old


def test_telling_words_needs_surroundings(recipe_path):
    wanted = [*WITHOUT, "encoder_training.question_word_weight=0.5"]
    with pytest.raises(ConfigError, match="question_word_weight needs"):
        load_recipe(recipe_path, wanted)


def test_new_generators_without_a_measured_start_can_be_built(recipe, base):
    generator = build_generator(recipe.generator, base)
    assert isinstance(generator, EncoderGenerator) and generator.surroundings is not None
    hidden = {layer: torch.randn(1, 5, generator.hidden_size) for layer in generator.layers}
    assert bool(generator.keys_and_values(hidden)[0].isfinite().all())


def test_words_that_are_not_told_are_a_loss():
    torch.manual_seed(0)
    questions = [Asked(3, 0, 0, 0), Asked(4, 1, 9, 3)]
    asked = [(questions[0], 0), (questions[0], 1), (questions[1], 0), (questions[1], 1), (questions[1], 2)]
    told = [torch.randn(5, 6, requires_grad=True) for _ in range(2)]
    codes = {each: torch.randn(6) for each in questions}
    losses, firsts = question_word_losses(told, asked, codes)
    assert firsts == [0, 2]
    for loss, at, question in zip(losses, firsts, questions, strict=True):
        own = codes[question]
        away = [1 - float((each[at] @ own / each[at].norm() / own.norm()).detach()) for each in told]
        assert loss.item() == pytest.approx(sum(away) / 2, abs=1e-6)
    losses.sum().backward()
    assert all(bool(each.grad[[0, 2]].any()) and not each.grad[[1, 3, 4]].any() for each in told)
    none, firsts = question_word_losses(told, asked[1:2], codes)
    assert len(none) == len(firsts) == 0


def test_training_tells_the_words_of_questions(recipe_path, tmp_path):
    settings = ["encoder_training.lookup_steps=0", "num_steps=60", "learning_rate=0.01", "log_steps=1"]
    settings += ["encoder_training.kept_rows=0"]
    told = {}
    for weight in (0.0, 3.0):
        folder = tmp_path / f"run-{weight}"
        run_training(recipe_path, [*settings, f"encoder_training.question_word_weight={weight}"], output=folder)
        told[weight] = [line.get("question_word_loss") for line in training_lines(folder, "answer_loss")]
    assert set(told[0.0]) == {None}
    assert len(told[3.0]) == 60 and sum(told[3.0][-10:]) < 0.7 * sum(told[3.0][:10])
