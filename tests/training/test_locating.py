"""Units that locate words: passes against the adapter in the model, how they start, whole runs, and taking over."""

from __future__ import annotations

import pytest
import torch

from generative_adapter import GenerativeAdapter
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.inject import find_linear
from generative_adapter.checkpoint import load_generator, load_generator_alone
from generative_adapter.config import EncoderConfig
from generative_adapter.errors import ConfigError
from generative_adapter.generator.encoder_generator import MEMORY, EncoderGenerator
from generative_adapter.generator.unit_factors import located_words, lookup_keys
from generative_adapter.training.encoder.preparing import start_block
from generative_adapter.training.encoder.starting import measure_start
from generative_adapter.training.run import run_training
from metric_lines import training_losses
from unit_passes import check_passes

STEPS = ["encoder_training.lookup_steps=0", "num_steps=2"]


@pytest.fixture
def encoder_values(encoder_values):
    """Words are located in block 1, and answers looked up in block 2."""
    encoder_values["generator"]["layers"] = []
    encoder_values["generator"]["encoder"] |= {
        "unit_layers": [2],
        "locating_layers": [1],
        "word_dim": 9,
        "place_dim": 6,
        "token_share": 0.7,
        "least_tokens": 4,
    }
    del encoder_values["encoder_training"]["lookup_layers"]
    encoder_values["encoder_training"] |= {"group_passages": [1, 2, 5], "group_shares": [1, 1, 1]}
    return encoder_values


@pytest.mark.parametrize("step", range(4))
def test_passes_equal_the_adapter_in_the_model(recipe, base, generator, states, embeddings, step):
    assert [block.gate.layer for block in generator.locating_blocks] == [1]
    assert start_block(recipe, generator) == 1
    check_passes(recipe, base, generator, states, embeddings, step)


def test_rows_that_are_not_remembered_have_no_place(generator):
    keys, values = torch.randn(7, 16), torch.randn(7, 12)
    remembered = torch.tensor([True, False, True, True, False, False, True])
    inverse = torch.randn(16, 16)
    every = lookup_keys(generator, keys, inverse, remembered)
    kept = lookup_keys(generator, keys[remembered], inverse, torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(every[remembered], kept)
    torch.testing.assert_close(every[:, :16], keys @ inverse)
    words, codes, numbers = located_words(generator, values, remembered, 3)
    fewer = located_words(generator, values[remembered], torch.ones(4, dtype=torch.bool), 3)
    assert numbers.tolist() == [0, 2, 3] and fewer[2].tolist() == [0, 1, 2]
    torch.testing.assert_close(words[numbers], fewer[0][:3])
    torch.testing.assert_close(codes[numbers], fewer[1][:3])


def test_start_finds_the_words_of_questions(recipe, base, states):
    torch.manual_seed(1)
    generator = build_generator(recipe.generator, base)
    assert isinstance(generator, EncoderGenerator) and generator.places is not None
    measure_start(generator, base, states)
    (block,) = generator.locating_blocks
    (answering,) = generator.unit_blocks
    assert float(answering.query_proj[:16].detach().abs().max()) > 0
    assert float(answering.query_proj[16:].detach().abs().max()) == 0
    seen = {}
    handle = find_linear(base.model, block.gate.name).register_forward_pre_hook(
        lambda _, args: seen.__setitem__("inputs", args[0])
    )
    found = others = total = 0
    offsets = []
    with torch.no_grad():
        for passage in states.passages[-3:]:
            for question in passage.questions:
                ids = torch.tensor([question.ids])
                base.model(input_ids=ids)
                own = torch.tensor(question.ids[4 : question.num_prompt - 3])
                inputs = seen["inputs"][0, 4 : question.num_prompt - 3]
                table = base.model.get_input_embeddings().weight.detach()
                words = generator.places.words(table @ generator.word_proj.mT - generator.word_bias)
                asked = inputs @ block.scaled_query_proj.mT
                weights = asked @ words.mT
                found += float(weights.gather(1, own.unsqueeze(1)).sum())
                others += float(weights.mean(-1).sum())
                total += len(own)
                offsets.append((inputs @ block.offsets[0]).mean())
    handle.remove()
    assert found / total > 0.5 and abs(others / total) < 0.2
    assert torch.stack(offsets).mean() < -1
    assert float(block.output_proj.detach().abs().max()) > 0


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
    ranks = {name.split(".", 2)[-1].removeprefix("1.").removeprefix("2."): each.rank for name, each in adapter.items()}
    assert {each.rank for name, each in adapter.items() if name.endswith("2.mlp.gate_proj")} == {16 + 6 + 1}, ranks
    assert {each.rank for name, each in adapter.items() if name.endswith("1.mlp.gate_proj")} == {9 + 1}, ranks
    alone = load_generator_alone(whole.generator).generator
    assert len(alone.named_weights()) == len(model.generator.named_weights())
    for name, each in alone.adapter((one + other).states).items():
        torch.testing.assert_close(each.delta(), adapter[name].delta(), rtol=1e-3, atol=1e-4)


def test_a_run_goes_on_from_a_generator_without_them_and_back(recipe_path, tmp_path, base):
    settings = [*STEPS, "generator.encoder.locating_layers=[]", "learning_rate=1e-9"]
    first = run_training(recipe_path, settings, output=tmp_path / "first")
    settings = [*STEPS, f"initial_generator={first.generator}", "learning_rate=1e-9", "num_steps=1"]
    second = run_training(recipe_path, settings, output=tmp_path / "second")
    plain, located = (load_generator(each.generator, base).generator for each in (first, second))
    for name, tensor in plain.named_weights().items():
        own = located.named_weights()[name]
        torch.testing.assert_close(own[: len(tensor)], tensor, rtol=1e-4, atol=1e-5)
    (block,) = located.locating_blocks
    assert float(block.output_proj.detach().abs().max()) > 0
    settings = [*STEPS, f"initial_generator={second.generator}", "generator.encoder.locating_layers=[]"]
    third = run_training(recipe_path, settings, output=tmp_path / "third")
    assert load_generator(third.generator, base).generator.places is None


@pytest.mark.parametrize("layers", [[2], [3], [-1], [1, 1]])
def test_they_lie_below_the_units_that_answer(layers):
    with pytest.raises(ConfigError, match="locating_layers must be different block indices below all of unit_layers"):
        EncoderConfig(unit_layers=(2,), locating_layers=tuple(layers))
