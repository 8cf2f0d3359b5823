"""Starting a generator with an encoder from another one: narrower keys and values, further layers and ranks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from generative_adapter.checkpoint import load_generator
from generative_adapter.errors import CheckpointError
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.training.encoder.encoding import group_memories
from generative_adapter.training.encoder.groups import GroupSampler
from generative_adapter.training.encoder.settings import EncoderTraining
from generative_adapter.training.run import run_training

FIRST = ["num_steps=30", "encoder_training.lookup_steps=30", "learning_rate=0.01", "encoder_training.kept_rows=0"]
ONE_STEP = ["num_steps=1", "encoder_training.lookup_steps=0", "learning_rate=1e-9"]


def loaded(result, base) -> EncoderGenerator:
    found = load_generator(result.generator, base).generator
    assert isinstance(found, EncoderGenerator)
    return found


def test_narrower_keys_and_values_say_about_the_same(recipe_path, tmp_path, base, states, embeddings):
    """Reads of 12 of 16 and 10 of 12 directions point where those of all did, and the words keep their map."""
    first = run_training(recipe_path, FIRST, output=tmp_path / "first")
    narrow = [*ONE_STEP, f"initial_generator={first.generator}", "generator.state_dim=12", "generator.rank=10"]
    second = run_training(recipe_path, narrow, output=tmp_path / "second")
    before, after = loaded(first, base), loaded(second, base)
    assert (after.state_dim, after.value_dim) == (12, 10)
    torch.testing.assert_close(after.word_directions, before.word_directions[:, :10], rtol=0.2, atol=0.1)
    for name, weight in before.encoder.named_parameters():
        torch.testing.assert_close(dict(after.encoder.named_parameters())[name], weight, rtol=1e-3, atol=1e-4)
    hidden = {layer: torch.randn(1, 9, before.hidden_size) for layer in before.layers}
    (old_keys, old_values), (keys, values) = before.keys_and_values(hidden), after.keys_and_values(hidden)
    torch.testing.assert_close(keys.norm(dim=-1), old_keys.norm(dim=-1), rtol=1e-3, atol=1e-3)  # the gates stay
    torch.testing.assert_close(values, old_values[..., :10], rtol=0.2, atol=0.4)

    sampler = GroupSampler(states, embeddings, EncoderTraining(group_passages=(4,), group_shares=(1.0,)), seed=0)
    groups = sampler.groups(0, 0, 8)
    inputs = torch.randn(1, 40, before.targets[1].in_features)
    name = before.targets[1].name
    reads = []
    for each in (before, after):
        memory = group_memories(each, states, embeddings, groups)[0]
        reads.append(each[name].read(inputs, memory.normalized.unsqueeze(0), each.word_directions).flatten())
    assert float(F.cosine_similarity(*reads, dim=0)) > 0.6
    assert 0.4 < float(reads[1].norm() / reads[0].norm()) < 1.5  # about as loud, though keys were made larger


def test_further_layers_and_ranks_change_nothing_at_first(recipe_path, tmp_path, base):
    first = run_training(recipe_path, FIRST, output=tmp_path / "first")
    larger = [*ONE_STEP, f"initial_generator={first.generator}", "learning_rate=1e-12", "weight_decay=0"]
    larger += ["generator.encoder.layers=4", "generator.encoder.constant_rank=5"]
    second = run_training(recipe_path, larger, output=tmp_path / "second")
    before, after = loaded(first, base), loaded(second, base)
    assert len(after.encoder.layers) == 4 and len(before.encoder.layers) == 2
    hidden = {layer: torch.randn(1, 9, before.hidden_size) for layer in before.layers}
    for own, old in zip(after.keys_and_values(hidden), before.keys_and_values(hidden), strict=True):
        torch.testing.assert_close(own, old, rtol=1e-3, atol=1e-3)
    assert before.constant is not None and after.constant is not None
    wider, narrower = after.constant.adapter(), before.constant.adapter()
    assert wider.keys() == narrower.keys()
    assert any(float(each.delta().abs().max()) > 1e-3 for each in narrower.values())
    for name, factors in wider.items():
        assert factors.down.shape[0] == 5 and bool((factors.down.norm(dim=1) > 0.1).all())
        torch.testing.assert_close(factors.delta(), narrower[name].delta(), rtol=1e-3, atol=1e-4)


def test_fewer_layers_or_ranks_are_no_start(recipe_path, tmp_path):
    first = run_training(recipe_path, ["num_steps=1", "encoder_training.lookup_steps=0"], output=tmp_path / "first")
    for override in ("generator.encoder.layers=1", "generator.encoder.constant_rank=1"):
        with pytest.raises(CheckpointError):
            again = [*ONE_STEP, f"initial_generator={first.generator}", override]
            run_training(recipe_path, again, output=tmp_path / override)


@pytest.mark.parametrize("override", ["generator.state_dim=17", "generator.rank=13"])
def test_a_narrower_generator_is_no_start(recipe_path, tmp_path, override):
    first = run_training(recipe_path, ["num_steps=1", "encoder_training.lookup_steps=0"], output=tmp_path / "first")
    with pytest.raises(CheckpointError, match="may only be fewer"):
        run_training(recipe_path, [*ONE_STEP, f"initial_generator={first.generator}", override], output=tmp_path / "b")
