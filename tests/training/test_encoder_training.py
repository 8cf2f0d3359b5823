"""Training of generators with an encoder: frozen states, memories, lookups and passes against the slow way round."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.inject import inject
from generative_adapter.checkpoint import load_generator
from generative_adapter.errors import CheckpointError, ConfigError
from generative_adapter.generator.encoder_generator import MEMORY, EncoderGenerator
from generative_adapter.training.batches import ContextItem, Segment
from generative_adapter.training.encoder.encoding import group_memories
from generative_adapter.training.encoder.groups import GroupSampler
from generative_adapter.training.encoder.lookups import SHARPNESS, WordScores, lookup_losses
from generative_adapter.training.encoder.passages import load_passages, passage, save_passages
from generative_adapter.training.encoder.passes import pass_losses
from generative_adapter.training.encoder.preparing import lookup_targets
from generative_adapter.training.encoder.question_rows import question_rows
from generative_adapter.training.encoder.settings import EncoderTraining
from generative_adapter.training.encoder.starting import measure_start
from generative_adapter.training.run import run_training
from kept_states import kept_states
from metric_lines import metric_lines, training_lines, training_losses


def test_answers_are_found_where_they_stand_in_every_chunk():
    chunks = ((5, 6, 7, 8, 6, 7), (6, 9), (6, 7, 7))
    item = ContextItem(
        chunks,
        (
            Segment((1, 2, 6, 7, 0), 2, 3, "answer"),
            Segment((1, 4, 4, 0), 1, 3, "answer"),
            Segment((5, 6, 7), 1, 3, "reconstruction"),
        ),
    )
    made = passage(item, end=[0])
    assert [question.num_labels for question in made.questions] == [3, 3]
    assert made.questions[0].found == ((1, 4, 8), (2, 5, 9), ())
    assert made.questions[1].found == ((), (), ())
    assert made.num_tokens == 11


def test_passages_come_back_from_their_file_if_it_is_of_the_same_recipe(tmp_path):
    item = ContextItem(((5, 6), (7,)), (Segment((1, 2, 7, 0), 2, 2, "answer"),))
    passages = [passage(item, [0]), passage(item, [0], held_out=True)]
    save_passages(tmp_path / "p.json", passages, "abc")
    assert load_passages(tmp_path / "p.json", "abc") == passages
    assert load_passages(tmp_path / "p.json", "abd") is None
    assert load_passages(tmp_path / "none.json", "abc") is None


def test_memories_and_passes_equal_the_adapter_in_the_model(recipe, base, generator, states, embeddings):
    """The losses of a pass are those of the whole base model under the adapter that the generator makes."""
    sampler = GroupSampler(states, embeddings, recipe.encoder_training, seed=0)
    groups = sampler.groups(0, 0, 8)
    memories = group_memories(generator, states, embeddings, groups)
    rows = question_rows(states, groups, 96, 30)
    found = pass_losses(base, generator, states, rows, memories, lookup_targets(recipe, generator), [])
    expected, right = [], []
    seen = []
    for asked, index in [each for each in rows.questions if each is not None]:
        if index:
            continue
        group = next(each for each in groups if asked.passage in each.passages and asked in each.asked)
        state = sum(
            generator.write(kept_states(base, generator, chunk))[MEMORY]
            for number in group.passages
            for chunk in states.passages[number].chunks
        )
        question = states.passages[asked.passage].questions[asked.number]
        with torch.no_grad(), inject(base.model, generator.adapter({MEMORY: state[0]})):
            logits = base.model(torch.tensor([question.ids])).logits[0, question.num_prompt - 1 : -1]
        labels = torch.tensor(question.ids[question.num_prompt :])
        expected.append(F.cross_entropy(logits, labels, reduction="none"))
        right.append(logits.argmax(-1) == labels)
        seen.append(asked)
    assert len(seen) == int(found.question.max()) + 1 >= 6
    torch.testing.assert_close(found.answers, torch.cat(expected), rtol=0.05, atol=0.05)
    assert (found.correct == torch.cat(right)).float().mean() > 0.9
    plain = torch.cat(expected).new_zeros(0)
    assert found.kept.shape == plain.shape


def test_lookups_are_reads_of_the_frozen_inputs(recipe, base, generator, states, embeddings):
    sampler = GroupSampler(states, embeddings, recipe.encoder_training, seed=0)
    groups = sampler.groups(1, 0, 6)
    memories = group_memories(generator, states, embeddings, groups)
    targets = lookup_targets(recipe, generator)
    scores = WordScores(embeddings, generator.word_proj, torch.arange(701.0))
    found = lookup_losses(generator, scores, states, groups, memories, targets)
    places, words = [], []
    reader = generator[targets[0].name]
    for group, memory in zip(groups, memories, strict=True):
        for asked in group.asked:
            question = states.passages[asked.passage].questions[asked.number]
            for index, inputs in enumerate(states.lookup_inputs(asked)):
                at = question.found[index]
                if not at and index < question.num_labels - 1:
                    continue
                query = (inputs @ reader.scaled_query_proj.to(torch.bfloat16).mT).float()
                weights = memory.keys @ torch.linalg.solve(
                    memory.keys.mT @ memory.keys + generator.ridge_strength * torch.eye(16), query
                )
                torch.testing.assert_close(weights @ memory.values, memory.normalized @ query, rtol=1e-3, atol=1e-3)
                score = scores((weights @ memory.values).unsqueeze(0))
                label = question.ids[question.num_prompt + index] if at else score.shape[-1] - 1
                words.append(F.cross_entropy(score, torch.tensor([label])))
                if at:
                    right = [memory.firsts[asked.passage] + each for each in at]
                    places.append(-(SHARPNESS * weights).softmax(-1)[right].sum().log())
    torch.testing.assert_close(found.places.sum(), torch.stack(places).sum(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.words.sum(), torch.stack(words).sum(), rtol=0.02, atol=0.05)


def test_kept_text_diverges_by_what_the_adapter_does(recipe, base, generator, states, embeddings):
    sampler = GroupSampler(states, embeddings, recipe.encoder_training, seed=0)
    groups = sampler.groups(2, 0, 4)
    memories = group_memories(generator, states, embeddings, groups)
    rows = question_rows(states, groups, 96, 10, kept_passages=[5])
    found = pass_losses(base, generator, states, rows, memories, lookup_targets(recipe, generator), [])
    assert len(found.kept) == len(states.passages[5].chunks[0][:96]) - 1
    assert found.kept.mean() > 1e-3
    ids = states.passages[5].chunks[0][:96]
    owner = int(rows.owners[-1])
    state = sum(
        generator.write(kept_states(base, generator, chunk))[MEMORY]
        for number in groups[owner].passages
        for chunk in states.passages[number].chunks
    )
    own_tokens = torch.tensor(ids[1:])
    with torch.no_grad():
        before = base.model(torch.tensor([ids])).logits[0, :-1].float()
        with inject(base.model, generator.adapter({MEMORY: state[0]})):
            after = base.model(torch.tensor([ids])).logits[0, :-1].float()
    rise = F.cross_entropy(after, own_tokens, reduction="none") - F.cross_entropy(before, own_tokens, reduction="none")
    assert rise.std() > 0.1
    torch.testing.assert_close(found.text, rise, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found.kept_losses(0.25), 0.75 * found.kept + 0.25 * found.text)
    quiet = [dataclasses.replace(each, normalized=0 * each.normalized) for each in memories]
    assert generator.constant is not None
    with torch.no_grad():
        for up in generator.constant.up:
            up.zero_()
    silent = pass_losses(base, generator, states, rows, quiet, lookup_targets(recipe, generator), [])
    torch.testing.assert_close(silent.kept, torch.zeros_like(silent.kept), rtol=0, atol=1e-5)
    torch.testing.assert_close(silent.text, torch.zeros_like(silent.text), rtol=0, atol=1e-5)


def test_tokens_of_questions_are_dropped_but_not_their_answers(recipe, states, embeddings):
    groups = GroupSampler(states, embeddings, recipe.encoder_training, seed=0).groups(0, 0, 8)
    whole = question_rows(states, groups, 96, 30)
    dropped = question_rows(states, groups, 96, 30, rng=random.Random(1), dropout=0.5)
    assert torch.equal(whole.labels, dropped.labels) and whole.questions == dropped.questions
    lengths = [torch.bincount(rows.segments.flatten())[1:].sum().item() for rows in (whole, dropped)]
    asked = {each for each, _ in filter(None, whole.questions)}
    prompts = sum(states.passages[each.passage].questions[each.number].num_prompt - 5 for each in asked)
    assert 0.3 * prompts < lengths[0] - lengths[1] < 0.7 * prompts
    at = 0
    for row in range(len(dropped.segments)):
        for number in range(1, int(dropped.segments[row].max()) + 1):
            each, _ = whole.questions[at] or pytest.fail("no question")
            question, own = states.passages[each.passage].questions[each.number], states.question_states(each)
            found = dropped.hidden[row][dropped.segments[row] == number]
            end = question.num_labels + 4  # what is behind the question
            assert torch.equal(found[0], own[0]) and torch.equal(found[-end:], own[-end:])
            assert dropped.supervised[row][dropped.segments[row] == number].nonzero().flatten().tolist() == list(
                range(len(found) - question.num_labels - 1, len(found) - 1)
            )
            at += question.num_labels
    assert at == len(whole.labels)


class Killed(Exception):
    pass


def test_a_run_resumes_as_if_it_had_not_stopped(recipe_path, tmp_path, base):
    whole = run_training(recipe_path, ["num_steps=6"], output=tmp_path / "whole")
    assert (whole.status, whole.step) == ("finished", 10)
    folder = tmp_path / "killed"
    often = ["num_steps=6", "checkpoint_seconds=1e-6"]
    for turn, step in enumerate((3, 4, 5, 8)):  # among the lookups, between the parts, among the passes

        def kill(line, step=step):
            if line["kind"] == "training" and line["step"] == step:
                raise Killed

        with pytest.raises(Killed):
            run_training(recipe_path, often, output=folder, resume=turn > 0, progress=kill)
    assert run_training(recipe_path, often, output=folder, resume=True).step == 10
    losses = training_losses(folder)
    assert losses.keys() == training_losses(tmp_path / "whole").keys()
    assert losses == pytest.approx(training_losses(tmp_path / "whole"), rel=1e-3)
    checkpoint = load_generator(whole.generator, base)
    assert isinstance(checkpoint.generator, EncoderGenerator)
    assert checkpoint.training["step"] == 10
    assert {"answer_loss", "exact", "first"} <= whole.evaluation.keys()


def test_resuming_does_not_need_the_initial_generator_again(recipe_path, tmp_path):
    first = run_training(recipe_path, ["num_steps=1", "encoder_training.lookup_steps=0"], output=tmp_path / "first")
    settings = [f"initial_generator={first.generator}", "num_steps=4", "encoder_training.lookup_steps=0"]
    run_training(recipe_path, settings, output=tmp_path / "whole")
    folder = tmp_path / "killed"

    def kill(line):
        if line["kind"] == "training" and line["step"] == 3:
            raise Killed

    often = [*settings, "checkpoint_seconds=1e-6"]
    with pytest.raises(Killed):
        run_training(recipe_path, often, output=folder, progress=kill)
    Path(first.generator).unlink()
    start = (folder / "initial-generator.safetensors").read_bytes()
    assert run_training(recipe_path, often, output=folder, resume=True).step == 4
    assert training_losses(folder) == pytest.approx(training_losses(tmp_path / "whole"), rel=1e-3)
    assert (folder / "initial-generator.safetensors").read_bytes() == start, "it is where the run began"
    assert not (tmp_path / "first" / "initial-generator.safetensors").exists()


def test_a_run_drops_tokens_of_questions(recipe_path, tmp_path):
    read = {}
    for share in (0.0, 0.5):
        settings = ["num_steps=3", "encoder_training.lookup_steps=0", f"encoder_training.question_dropout={share}"]
        read[share] = run_training(recipe_path, settings, output=tmp_path / str(share)).num_tokens
    assert read[0.5] < 0.98 * read[0.0]


def test_lookups_and_answers_get_better(recipe_path, tmp_path):
    settings = ["encoder_training.lookup_steps=150", "num_steps=60", "encoder_training.kept_rows=0"]
    settings += ["encoder_training.lookup_learning_rate=0.02", "learning_rate=0.01"]
    run_training(recipe_path, settings, output=tmp_path / "run")
    lookups = [line["loss"] for line in training_lines(tmp_path / "run", "word_loss")]
    places = [line["place_loss"] for line in training_lines(tmp_path / "run", "word_loss")]
    answers = [line["answer_loss"] for line in training_lines(tmp_path / "run", "answer_loss")]
    assert (len(lookups), len(answers)) == (150, 60)
    assert sum(lookups[-30:]) < 0.92 * sum(lookups[:30])
    assert sum(places[-30:]) < 0.9 * sum(places[:30])
    assert sum(answers[-10:]) < 0.9 * sum(answers[:10])
    chosen = next(line for line in metric_lines(tmp_path / "run") if line["kind"] == "word_strength")
    assert chosen["chosen"] == chosen["strengths"][chosen["losses"].index(min(chosen["losses"]))]


def test_start_takes_words_and_input_sizes_from_the_base_model(recipe, base, states):
    generator = build_generator(recipe.generator, base)
    assert isinstance(generator, EncoderGenerator)
    before = generator.word_proj.clone()
    measure_start(generator, base, states)
    assert not torch.equal(generator.word_proj, before)
    for target in generator.targets:
        scales = generator[target.name].input_scales
        assert scales.shape == (target.in_features,) and bool((scales > 0).all()) and float(scales.std()) > 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder_training.lookup_layers=[0]", "no target in block 0"),
        ("generator.encoder.states=[2]", "at or below block 1"),
        ("encoder_training.group_shares=[1]", "as many positive numbers"),
        ("encoder_training.passages=0", "passages must be positive"),
        ("encoder_training.evaluation_group=0", "evaluation_group must be positive"),
        ("encoder_training.dropout=1.0", "dropout"),
        ("encoder_training.alike_share=1.1", "alike_share"),
        ("encoder_training.source_shares=[-1]", "source_shares"),
        ("encoder_training.source_shares=[0]", "source_shares"),
        ("encoder_training.source_shares=[1, 1]", "source_shares"),
        ("encoder_training.dropped_shares=[1]", "dropped_shares"),
        ("encoder_training.dropped_shares=[0, 0.5]", "dropped_shares"),
    ],
)
def test_a_wrong_recipe_is_told(recipe_path, override, message):
    with pytest.raises(ConfigError, match=message):
        run_training(recipe_path, [override])


def test_a_generator_of_another_form_is_no_start(recipe_path, tmp_path):
    first = run_training(recipe_path, ["num_steps=1", "encoder_training.lookup_steps=0"], output=tmp_path / "first")
    again = [f"initial_generator={first.generator}", "num_steps=1", "encoder_training.lookup_steps=0"]
    assert run_training(recipe_path, again, output=tmp_path / "second").step == 1
    with pytest.raises(CheckpointError, match="expected"):
        run_training(recipe_path, [*again, "generator.encoder.width=22"], output=tmp_path / "third")


def test_settings_have_defaults():
    assert EncoderTraining().lookup_layers == (27, 28, 29)


def test_a_run_without_lookups_goes_on_from_a_generator_with_fewer_targets(recipe_path, tmp_path, base):
    first = run_training(recipe_path, ["num_steps=1", "generator.layers=[2]"], output=tmp_path / "first")
    settings = ["encoder_training.lookup_steps=0", f"initial_generator={first.generator}", "learning_rate=1e-9"]
    settings += ["generator.encoder.constant_from_layer=1", f"encoder_training.states_from={tmp_path / 'first'}"]
    second = run_training(recipe_path, [*settings, "num_steps=1"], output=tmp_path / "second")
    assert second.step == 1
    before, after = load_generator(first.generator, base).generator, load_generator(second.generator, base).generator
    assert isinstance(before, EncoderGenerator) and isinstance(after, EncoderGenerator)
    own, new = before.named_weights(), after.named_weights()
    assert own.keys() < new.keys()
    for name, weight in own.items():
        torch.testing.assert_close(new[name], weight, rtol=1e-3, atol=1e-4)
