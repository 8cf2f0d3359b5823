"""Linears that tell where words stand: passes against the adapter in the model, how they start, runs, taking over."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from generative_adapter import GenerativeAdapter
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.inject import find_linear
from generative_adapter.checkpoint import load_generator, load_generator_alone
from generative_adapter.config import EncoderConfig
from generative_adapter.errors import ConfigError
from generative_adapter.generator.encoder_generator import MEMORY, EncoderGenerator
from generative_adapter.generator.unit_factors import lookup_keys
from generative_adapter.training.encoder import place_start
from generative_adapter.training.encoder.place_start import rarity
from generative_adapter.training.encoder.preparing import start_block
from generative_adapter.training.encoder.starting import measure_start
from generative_adapter.training.run import run_training
from metric_lines import training_losses
from unit_passes import check_passes

STEPS = ["encoder_training.lookup_steps=0", "num_steps=2"]
KEYS, VALUES, PLACES = 16, 12, 6
V_PROJ = "model.layers.{}.self_attn.v_proj"


@pytest.fixture
def encoder_values(encoder_values):
    """Words tell their places in blocks 1 and 2, where answers are looked up; a part of the tokens is remembered."""
    encoder_values["generator"]["layers"] = []
    encoder_values["generator"]["encoder"] |= {
        "unit_layers": [2],
        "place_layers": [1, 2],
        "place_dim": PLACES,
        "token_share": 0.7,
        "least_tokens": 4,
        "constant_targets": ["v_proj", "feed_forward_down"],
    }
    del encoder_values["encoder_training"]["lookup_layers"]
    encoder_values["encoder_training"] |= {"group_passages": [1, 2, 5], "group_shares": [1, 1, 1]}
    return encoder_values


@pytest.mark.parametrize("step", range(4))
def test_passes_equal_the_adapter_in_the_model(recipe, base, generator, states, embeddings, step):
    assert list(generator.reads_of_places) == [V_PROJ.format(1), V_PROJ.format(2)]
    check_passes(recipe, base, generator, states, embeddings, step)


def test_the_first_block_that_changes_may_be_theirs(encoder_values, request):
    encoder_values["generator"]["encoder"] |= {"constant_from_layer": 2}
    assert start_block(*(request.getfixturevalue(name) for name in ("recipe", "generator"))) == 1


def test_tokens_that_are_not_remembered_have_no_place(generator):
    keys = torch.randn(7, KEYS)
    remembered = torch.tensor([True, False, True, True, False, False, True])
    inverse = torch.randn(KEYS, KEYS)
    every = lookup_keys(generator, keys, inverse, remembered)
    kept = lookup_keys(generator, keys[remembered], inverse, torch.ones(4, dtype=torch.bool))
    assert every.shape == (7, KEYS + PLACES)
    torch.testing.assert_close(every[remembered], kept)
    torch.testing.assert_close(every[:, :KEYS], keys @ inverse)


def test_start_asks_for_the_words_of_questions(recipe, base, states, monkeypatch):
    monkeypatch.setattr(place_start, "_COMMON", -0.5)
    monkeypatch.setattr(place_start, "_RARE", 0.5)
    torch.manual_seed(1)
    generator = build_generator(recipe.generator, base)
    assert isinstance(generator, EncoderGenerator)
    measure_start(generator, base, states)
    (answering,) = generator.unit_blocks
    assert float(answering.query_proj[:KEYS].detach().abs().max()) > 0
    assert float(answering.query_proj[KEYS:].detach().abs().max()) == 0
    table = base.model.get_input_embeddings().weight.detach()
    words = F.normalize(table @ generator.word_proj.mT - generator.word_bias, dim=-1)
    for name, reader in generator.reads_of_places.items():
        assert float(reader.output_proj.detach().norm(dim=0).min()) > 0
        seen = {}
        handle = find_linear(base.model, name).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.__setitem__("inputs", args[0])
        )
        weights, ids = [], []
        with torch.no_grad():
            for passage in states.passages[-6:]:  # held out
                for question in passage.questions:
                    base.model(input_ids=torch.tensor([question.ids]))
                    span = slice(4, question.num_prompt - 3)
                    weights.append(seen["inputs"][0, span] @ reader.scaled_query_proj.mT @ words.mT)
                    ids += question.ids[span]
        handle.remove()
        found = torch.cat(weights)
        own = found.gather(1, torch.tensor(ids).unsqueeze(1)).squeeze(1)
        rare = rarity(states, len(table))[ids]
        size = rare.square().sum()
        asked, others = float((own * rare).sum() / size), float((found.mean(-1) * rare).sum() / size)
        assert 0.04 < asked < 1 and abs(others) < 0.1 * asked, "a random model tells words badly"


def test_an_empty_memory_changes_nothing(generator):
    adapter = generator.adapter({MEMORY: torch.zeros(generator.state_shapes[MEMORY])})
    assert all(float(each.delta().abs().max()) == 0 for each in adapter.values())


def test_a_run_resumes_and_gives_a_generator_that_answers(recipe_path, tmp_path, base):
    settings = ["checkpoint_seconds=1e-9"]
    whole = run_training(recipe_path, settings, output=tmp_path / "whole")
    run_training(recipe_path, [*settings, "num_steps=2"], output=tmp_path / "halves")
    halves = run_training(recipe_path, settings, output=tmp_path / "halves", resume=True)
    whole_losses, half_losses = (training_losses(tmp_path / name) for name in ("whole", "halves"))
    assert half_losses and all(whole_losses[step] == loss for step, loss in half_losses.items())
    model = GenerativeAdapter(base, load_generator(whole.generator, base))
    assert model.generator_fingerprint == load_generator(halves.generator, base).fingerprint
    one, other = (model.contextualize(text) for text in ("Anna keeps the keys of the boat house.", "Bo mends pumps."))
    adapter = model.adapter(one + other)
    constant = 2
    assert adapter["model.layers.2.mlp.gate_proj"].rank == KEYS + PLACES + 1
    assert [adapter[V_PROJ.format(layer)].rank for layer in (1, 2)] == [PLACES + constant] * 2
    alone = load_generator_alone(whole.generator).generator
    assert alone.named_weights().keys() == model.generator.named_weights().keys()
    for name, each in alone.adapter((one + other).states).items():
        torch.testing.assert_close(each.delta(), adapter[name].delta(), rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_from_a_generator_without_them_and_back(recipe_path, tmp_path, base):
    without = "generator.encoder.place_layers=[]"
    first = run_training(recipe_path, [*STEPS, without, "learning_rate=1e-9"], output=tmp_path / "first")
    settings = [*STEPS, f"initial_generator={first.generator}", "learning_rate=1e-9", "num_steps=1"]
    second = run_training(recipe_path, settings, output=tmp_path / "second")
    plain, located = (load_generator(each.generator, base).generator for each in (first, second))
    for name, tensor in plain.named_weights().items():
        own = located.named_weights()[name]
        torch.testing.assert_close(own[: len(tensor)], tensor, rtol=1e-4, atol=1e-5)
    assert all(float(each.output_proj.detach().abs().max()) > 0 for each in located.reads_of_places.values())
    settings = [*STEPS, f"initial_generator={second.generator}", without]
    third = run_training(recipe_path, settings, output=tmp_path / "third")
    assert load_generator(third.generator, base).generator.places is None


@pytest.mark.parametrize("layers", [[3], [-1], [1, 1]])
def test_they_lie_up_to_the_units_that_answer(layers):
    with pytest.raises(ConfigError, match="place_layers must be different block indices up to the lowest of unit_"):
        EncoderConfig(unit_layers=(2,), place_layers=tuple(layers))
    with pytest.raises(ConfigError, match="place_targets is empty"):
        EncoderConfig(unit_layers=(2,), place_layers=(1,), place_targets=())
