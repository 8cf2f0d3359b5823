"""What the frozen base model makes of passages: computed once, kept, and read where another run has it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from generative_adapter.base_model.capture import capture_block_inputs
from generative_adapter.base_model.inject import find_linear
from generative_adapter.errors import ConfigError
from generative_adapter.training.encoder.preparing import FOLDER, prepared_states, start_block
from generative_adapter.training.processes import Processes
from kept_states import kept, kept_states


def test_states_are_those_of_the_plain_model(recipe, base, generator, states):
    assert len([each for each in states.passages if each.held_out]) == 3
    assert start_block(recipe, generator) == states.start_block == 1
    target = states.targets[0].name
    for index in (0, 7, len(states.passages) - 1):
        own = states.passages[index]
        hidden = [kept_states(base, generator, chunk) for chunk in own.chunks]
        expected = torch.cat([torch.cat([each[1][0], each[2][0]], dim=-1) for each in hidden])
        torch.testing.assert_close(states.passage_states(index).float(), expected, rtol=0.02, atol=0.02)
        asked = states.asked[index][-1]
        question = own.questions[asked.number]
        seen: list[torch.Tensor] = []
        handle = find_linear(base.model, target).register_forward_pre_hook(lambda _, args, s=seen: s.append(args[0]))
        with torch.no_grad():
            base.model(torch.tensor([question.ids]))
        handle.remove()
        wanted = seen[0][0, question.num_prompt - 1 :][: min(4, question.num_labels)]
        torch.testing.assert_close(states.lookup_inputs(asked).float(), kept(wanted), rtol=0.02, atol=0.02)
        block = capture_block_inputs(base.model, [1], torch.tensor([question.ids]))[1][0]
        torch.testing.assert_close(states.question_states(asked).float(), kept(block), rtol=0.02, atol=0.02)


def test_states_are_computed_once(recipe, base, generator, states, monkeypatch):
    monkeypatch.setattr(
        "generative_adapter.training.encoder.frozen_states.capture_block_inputs", lambda *_: pytest.fail("read again")
    )
    again = prepared_states(recipe, base, generator, Processes("cpu"))
    assert again.passages == states.passages
    assert torch.equal(again.passage_states(3), states.passage_states(3))


def test_another_recipe_is_read_anew(recipe, base, generator, states):
    other = dataclasses.replace(recipe, seed=4)
    assert prepared_states(other, base, generator, Processes("cpu")).passages != states.passages


def with_encoder_training(recipe, **changes):
    return dataclasses.replace(recipe, encoder_training=dataclasses.replace(recipe.encoder_training, **changes))


def test_states_of_another_run_are_read_there(recipe, base, generator, states, tmp_path, monkeypatch):
    """Also by a run of fewer states and one more passage, which alone is read."""
    other = with_encoder_training(recipe, passages=25, states_from=recipe.output)
    other = dataclasses.replace(other, output=str(tmp_path / "other"))
    read: list[int] = []

    def counted(model, blocks, ids, mask):
        read.append(len(ids))
        return capture_block_inputs(model, blocks, ids, mask)

    monkeypatch.setattr("generative_adapter.training.encoder.frozen_states.capture_block_inputs", counted)
    found = prepared_states(other, base, generator, Processes("cpu"))
    new = [each for each in found.passages if each.chunks not in {known.chunks for known in states.passages}]
    assert 1 <= len(new) < len(found.passages) / 2
    assert sum(read) == sum(len(each.chunks) for each in new)
    fresh = prepared_states(
        dataclasses.replace(with_encoder_training(other, states_from=None), output=str(tmp_path / "fresh")),
        base,
        generator,
        Processes("cpu"),
    )
    assert fresh.passages == found.passages
    for number in range(len(found.passages)):
        # another batch rounds elsewhere in the last bit of bfloat16
        expected, own = fresh.passage_states(number).float(), found.passage_states(number).float()
        torch.testing.assert_close(own, expected, rtol=0.02, atol=0.02)
        for mine, theirs in zip(found.asked[number], fresh.asked[number], strict=True):
            torch.testing.assert_close(
                found.lookup_inputs(mine).float(), fresh.lookup_inputs(theirs).float(), rtol=0.02, atol=0.02
            )
            torch.testing.assert_close(
                found.question_states(mine).float(), fresh.question_states(theirs).float(), rtol=0.02, atol=0.02
            )


def test_a_run_without_lookups_reads_states_of_one_with_them(recipe, base, generator, states, tmp_path):
    other = with_encoder_training(recipe, lookup_steps=0, states_from=recipe.output)
    other = dataclasses.replace(other, output=str(tmp_path / "other"))
    found = prepared_states(other, base, generator, Processes("cpu"))
    assert found.targets == () and states.targets
    assert len(found.known_passages) == len(found.passages)
    assert len(found.known_questions) == sum(map(len, found.asked))
    for mine, known in zip(found.asked[2], states.asked[2], strict=True):
        assert torch.equal(found.question_states(mine), states.question_states(known))


def test_states_are_read_through_two_runs_and_kept_once(recipe, base, generator, states, tmp_path):
    """A third run reads what the first computed where it is, and says so when it is gone."""
    between = dataclasses.replace(with_encoder_training(recipe, states_from=recipe.output), output=str(tmp_path / "b"))
    prepared_states(between, base, generator, Processes("cpu"))
    last = dataclasses.replace(with_encoder_training(recipe, states_from=between.output), output=str(tmp_path / "c"))
    found = prepared_states(last, base, generator, Processes("cpu"))
    assert found.num_bytes == 0 and states.num_bytes > 0
    assert not list((tmp_path / "c").rglob("*.bf16"))
    assert found.num_question_tokens == states.num_question_tokens
    for number in range(len(states.passages)):
        assert torch.equal(found.passage_states(number), states.passage_states(number))
        for mine, known in zip(found.asked[number], states.asked[number], strict=True):
            assert torch.equal(found.lookup_inputs(mine), states.lookup_inputs(known))
    moved = tmp_path / "b" / FOLDER
    moved.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"states_from.*no complete states"):
        prepared_states(last, base, generator, Processes("cpu"))


def test_a_run_that_has_all_states_needs_no_others(recipe, base, generator, states, tmp_path, monkeypatch):
    """Also one of before states were read where they are: its folder holds copies, and says nothing of the other's."""
    monkeypatch.setattr("generative_adapter.training.encoder.frozen_states.capture_block_inputs", None)
    again = with_encoder_training(recipe, states_from=str(tmp_path / "deleted"))
    found = prepared_states(again, base, generator, Processes("cpu"))
    assert found.num_bytes == states.num_bytes
    assert torch.equal(found.passage_states(3), states.passage_states(3))


def test_states_that_are_not_there_are_not_read(recipe, base, generator, tmp_path):
    other = with_encoder_training(recipe, passages=25, states_from=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"states_from.*no complete states"):
        prepared_states(other, base, generator, Processes("cpu"))
