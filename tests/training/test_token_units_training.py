"""Training of generators whose memories keep tokens: passes against the adapter in the model, starts, whole runs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from generative_adapter import GenerativeAdapter
from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.prompts import start_ids
from generative_adapter.base_model.text_blocks import block_chunks
from generative_adapter.checkpoint import load_generator, load_generator_alone
from generative_adapter.config import EncoderConfig
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.generator.encoder_generator import MEMORY, EncoderGenerator
from generative_adapter.generator.memory import ContextMemory
from generative_adapter.training.encoder.encoding import group_memories
from generative_adapter.training.encoder.groups import GroupSampler
from generative_adapter.training.encoder.lookups import SHARPNESS, WordScores, lookup_losses
from generative_adapter.training.encoder.preparing import lookup_targets
from generative_adapter.training.encoder.starting import measure_start
from generative_adapter.training.encoder.taking_over import fit_unit_queries
from generative_adapter.training.run import run_training
from metric_lines import training_lines, training_losses
from unit_passes import check_passes


@pytest.fixture
def encoder_values(encoder_values):
    """Two blocks of units, each looking up, with groups down to one passage."""
    encoder_values["generator"]["layers"] = [1]
    encoder_values["generator"]["encoder"]["unit_layers"] = [1, 2]
    del encoder_values["encoder_training"]["lookup_layers"]
    encoder_values["encoder_training"] |= {"group_passages": [1, 2, 5], "group_shares": [1, 1, 1]}
    return encoder_values


@pytest.mark.parametrize("step", range(4))
def test_passes_equal_the_adapter_in_the_model(recipe, base, generator, states, embeddings, step):
    """The losses of a pass are those of the whole base model under the adapter that the generator makes."""
    check_passes(recipe, base, generator, states, embeddings, step)


def test_units_alone_may_read_the_memory(encoder_values, request):
    """Without any linear that reads it too: passes, and a whole run whose generator can be loaded alone."""
    encoder_values["generator"]["layers"] = []
    recipe, base, generator = (request.getfixturevalue(name) for name in ("recipe", "base", "generator"))
    assert generator.targets == () and len(generator.unit_blocks) == 2
    states, embeddings = (request.getfixturevalue(name) for name in ("states", "embeddings"))
    check_passes(recipe, base, generator, states, embeddings, 1)
    result = run_training(request.getfixturevalue("recipe_path"), output=f"{recipe.output}-whole")
    model = GenerativeAdapter(base, load_generator(result.generator, base))
    adapter = model.adapter(model.contextualize("Anna keeps the keys."))
    own = [name for name in adapter if name.endswith(("gate_proj", "up_proj"))]
    assert len(own) == 4 and all(float(adapter[name].delta().abs().max()) > 0 for name in own)
    alone = load_generator_alone(result.generator).generator
    assert alone.targets == () and len(alone.named_weights()) == len(model.generator.named_weights())


def test_a_part_of_the_tokens_is_remembered(encoder_values, request, tmp_path):
    """Passes, a whole run, and memories of its generator: those with the longest keys, in each chunk as many."""
    encoder_values["generator"]["encoder"] |= {"token_share": 0.6, "least_tokens": 10}
    recipe, base, generator = (request.getfixturevalue(name) for name in ("recipe", "base", "generator"))
    states, embeddings = (request.getfixturevalue(name) for name in ("states", "embeddings"))
    check_passes(recipe, base, generator, states, embeddings, 2)
    result = run_training(request.getfixturevalue("recipe_path"), output=f"{recipe.output}-whole")
    model = GenerativeAdapter(base, load_generator(result.generator, base))
    texts = ["Anna keeps the keys of the boat house. " * 9, "Bo mends the pumps."]
    one, other = (model.contextualize(text) for text in texts)
    hidden: dict[int, torch.Tensor] = {}
    chunks = block_chunks(base.tokenizer, texts[0], model.checkpoint.config.chunk_tokens)
    assert len(chunks) > 1
    expected = []
    for chunk in chunks:
        output = base.model(input_ids=torch.tensor([start_ids(base.tokenizer) + chunk]), output_hidden_states=True)
        start = len(start_ids(base.tokenizer))
        hidden = {layer: output.hidden_states[layer][:, start:] for layer in model.generator.layers}
        keys, values = model.generator.keys_and_values(hidden)
        rows = torch.cat([values, keys], dim=-1)[0]
        longest = keys[0].norm(dim=-1).topk(max(10, math.ceil(0.6 * len(chunk)))).indices.sort().values
        expected.append(rows[longest])
    torch.testing.assert_close(one.states[MEMORY], torch.cat(expected), rtol=1e-3, atol=1e-3)
    assert one.num_rows == sum(map(len, expected)) < one.num_tokens
    sizes = {n: model.generator.num_rows(n) for n in (3, 10, 11, 16, 17, 30)}
    assert sizes == {3: 3, 10: 10, 11: 10, 16: 10, 17: 11, 30: 18}

    both = one + other
    both.save(tmp_path / "memory")
    read = ContextMemory.load(tmp_path / "memory", model.generator_fingerprint)
    assert (read.documents, read.num_rows) == (both.documents, one.num_rows + other.num_rows)
    assert torch.equal(model.forget(both, texts[0]).states[MEMORY], other.states[MEMORY])
    assert model.generator.units_taken(other.num_rows) == 2 * other.num_rows  # both blocks
    with pytest.raises(DataError, match="documents should have"):
        dataclasses.replace(both, documents=both.documents[:1]).save(tmp_path / "damaged")


def test_remembering_less_needs_units():
    with pytest.raises(ConfigError, match=r"token_share must lie in \(0, 1\], and be 1 without unit_layers, got 0.5"):
        EncoderConfig(token_share=0.5)
    for share in (0.0, 1.5):
        with pytest.raises(ConfigError, match="token_share"):
            EncoderConfig(unit_layers=(1,), token_share=share)


def test_an_empty_memory_changes_nothing(generator):
    adapter = generator.adapter({MEMORY: torch.zeros(generator.state_shapes[MEMORY])})
    assert len(adapter) > 0
    assert all(float(each.delta().abs().max()) == 0 for each in adapter.values())


def test_lookups_are_on_the_gates_inputs(recipe, base, generator, states, embeddings):
    targets = lookup_targets(recipe, generator)
    assert [target.name for target in targets] == [block.gate.name for block in generator.unit_blocks]
    asked = next(each for each in states.asked[3])
    question = states.passages[asked.passage].questions[asked.number]
    seen = {}
    handles = [
        find_linear(base.model, target.name).register_forward_pre_hook(
            lambda _, args, name=target.name: seen.__setitem__(name, args[0])
        )
        for target in targets
    ]
    with torch.no_grad():
        base.model(torch.tensor([question.ids]))
    for handle in handles:
        handle.remove()
    inputs = torch.cat([seen[target.name][0, question.num_prompt - 1] for target in targets])
    torch.testing.assert_close(states.lookup_inputs(asked)[0].float(), inputs, rtol=0.03, atol=0.03)

    sampler = GroupSampler(states, embeddings, recipe.encoder_training, seed=0)
    groups = [sampler.held_out_group(3, 1)]
    memory = group_memories(generator, states, embeddings, groups)[0]
    scores = WordScores(embeddings, generator.word_proj, torch.arange(701.0))
    found = lookup_losses(generator, scores, states, groups, [memory], targets)
    places = []
    for each in groups[0].asked:
        own = states.passages[each.passage].questions[each.number]
        for index, row in enumerate(states.lookup_inputs(each)):
            if own.found[index]:
                parts = row.split([target.in_features for target in targets])
                queries = [
                    part @ block.scaled_query_proj.to(torch.bfloat16).mT
                    for part, block in zip(parts, generator.unit_blocks, strict=True)
                ]
                weights = memory.keys @ memory.inverse @ torch.stack(queries).float().mean(0)
                places.append(-(SHARPNESS * weights).softmax(-1)[list(own.found[index])].sum().log())
    torch.testing.assert_close(found.places, torch.stack(places), rtol=0.05, atol=0.05)


def test_start_measures_units(recipe, base, states):
    generator = build_generator(recipe.generator, base)
    assert isinstance(generator, EncoderGenerator)
    measure_start(generator, base, states)
    for block in generator.unit_blocks:
        assert float(block.input_scales.std()) > 0
        assert len(set(block.activity.tolist())) > 10
        assert bool((block.gate_offset != 0).any())


def test_a_run_resumes_and_gives_a_generator_that_answers(recipe_path, tmp_path, base):
    whole = run_training(recipe_path, output=tmp_path / "whole")
    assert (whole.status, whole.step) == ("finished", 8)
    folder = tmp_path / "stopped"
    assert run_training(recipe_path, output=folder, max_seconds=0).status == "out_of_time"
    assert run_training(recipe_path, output=folder, resume=True).step == 8
    assert training_losses(folder) == pytest.approx(training_losses(tmp_path / "whole"), rel=1e-3)

    checkpoint = load_generator(whole.generator, base)
    model = GenerativeAdapter(base, checkpoint)
    memory = model.contextualize("Anna keeps the keys. " * 9) + model.contextualize("The roof is black.")
    assert memory.states[MEMORY].shape == (memory.num_tokens, 12 + 16)
    with_memory, without = (model.answer(["Who keeps the keys?"], each, max_new_tokens=4) for each in (memory, None))
    assert len(with_memory) == len(without) == 1
    less = model.forget(memory, "The roof is black.")
    assert torch.equal(less.states[MEMORY], model.contextualize("Anna keeps the keys. " * 9).states[MEMORY])

    memory.save(tmp_path / "memory.safetensors", "float64")
    alone = load_generator_alone(whole.generator)
    expected = model.adapter(memory)
    found = alone.generator.adapter(type(memory).load(tmp_path / "memory.safetensors").states)
    assert found.keys() == expected.keys()
    for name, factors in expected.items():
        torch.testing.assert_close(found[name].delta(), factors.delta())


def test_lookups_and_answers_get_better(recipe_path, tmp_path):
    settings = ["encoder_training.lookup_steps=120", "num_steps=120", "encoder_training.kept_rows=0"]
    settings += ["encoder_training.lookup_learning_rate=0.02", "learning_rate=0.01"]
    run_training(recipe_path, settings, output=tmp_path / "run")
    lookups = [line["loss"] for line in training_lines(tmp_path / "run", "word_loss")]
    answers = [line["answer_loss"] for line in training_lines(tmp_path / "run", "answer_loss")]
    assert (len(lookups), len(answers)) == (120, 120)
    assert sum(lookups[-30:]) < 0.92 * sum(lookups[:30])
    assert sum(answers[-10:]) < 0.9 * sum(answers[:10])


def test_queries_are_fitted_to_what_answers_are_read_from(recipe, base, states, embeddings):
    """Without a step of training the right tokens are found better than by new queries."""
    torch.manual_seed(1)
    generator = build_generator(recipe.generator, base)
    assert isinstance(generator, EncoderGenerator)
    measure_start(generator, base, states)
    targets = lookup_targets(recipe, generator)
    scores = WordScores(embeddings, generator.word_proj, torch.arange(701.0))
    sampler = GroupSampler(states, embeddings, recipe.encoder_training, seed=0)
    groups = [sampler.held_out_group(number, 4) for number in sampler.train]

    def place_loss() -> float:
        memories = group_memories(generator, states, embeddings, groups)
        return lookup_losses(generator, scores, states, groups, memories, targets).places.mean().item()

    with torch.no_grad():
        before = place_loss()
        fit_unit_queries(generator, states, embeddings)
        assert place_loss() < before - 0.3


def test_a_run_goes_on_from_a_generator_without_units(recipe_path, tmp_path, base):
    """Queries are fitted where there are lookups; what the first generator knows stays."""
    first = run_training(recipe_path, ["generator.encoder.unit_layers=[]", "encoder_training.lookup_layers=[1]"])
    for steps in (0, 1):
        settings = [f"initial_generator={first.generator}", f"encoder_training.lookup_steps={steps}", "num_steps=1"]
        settings += ["learning_rate=1e-9", "encoder_training.lookup_learning_rate=1e-9"]
        second = run_training(recipe_path, settings, output=tmp_path / f"second-{steps}")
        before, after = (load_generator(each.generator, base).generator for each in (first, second))
        assert isinstance(before, EncoderGenerator) and isinstance(after, EncoderGenerator)
        assert after.keeps_tokens
        torch.testing.assert_close(after.key_proj, before.key_proj, rtol=1e-3, atol=1e-4)
        sizes = [float(block.query_proj.norm()) for block in after.unit_blocks]
        assert (min(sizes) > 1) == (steps == 1), sizes


def test_units_need_a_gated_feed_forward_part(recipe):
    from tiny_models import tiny_base

    encoder = dataclasses.replace(recipe.generator.encoder, states=(1,), unit_layers=(1,), constant_rank=0)
    config = dataclasses.replace(recipe.generator, encoder=encoder, layers=(1,), rank=8)
    with pytest.raises(Exception, match="feed_forward_gate"):
        build_generator(config, tiny_base("gpt2"))


def test_blocks_of_units_are_checked(recipe):
    with pytest.raises(ConfigError, match="unit_layers"):
        dataclasses.replace(recipe.generator.encoder, unit_layers=(1, 1))
