"""A teacher that reads the passage: what it says against single passes, what is kept of it, and what it changes."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from generative_adapter.base_model.prompts import separator_ids
from generative_adapter.config import PromptConfig
from generative_adapter.errors import ConfigError
from generative_adapter.training.cross_entropy import cross_entropy
from generative_adapter.training.encoder import frozen_states
from generative_adapter.training.encoder import teacher as teachers
from generative_adapter.training.encoder.frozen_states import Asked
from generative_adapter.training.encoder.passages import AskedQuestion, Passage
from generative_adapter.training.encoder.teacher import TaughtAnswer, TeacherAnswers, taught_losses
from generative_adapter.training.recipe import load_recipe
from generative_adapter.training.run import run_training
from metric_lines import training_lines

TOP = 5
PASSAGES = (
    Passage(
        ((30, 31, 32), (33, 34)),
        tuple(AskedQuestion((40, 41, 42 + at, 43, 1), 2 + at % 2, ((),) * (3 - at % 2)) for at in range(9)),
    ),
    Passage(((50, 51),), (AskedQuestion((60, 61, 1), 1, ((), ())),), source=1),
)
SETTINGS = ["encoder_training.lookup_steps=0", "encoder_training.teacher_share=0.5", "num_steps=2"]


@pytest.fixture
def encoder_values(encoder_values):
    """Two sources."""
    other = encoder_values["sources"][0] | {"num_facts": [1, 2]}
    return encoder_values | {"sources": [*encoder_values["sources"], other]}


def places_of(passages) -> list[list[Asked]]:
    return [[Asked(at, number, 0, 0) for number in range(len(each.questions))] for at, each in enumerate(passages)]


@pytest.fixture
def teacher(base) -> TeacherAnswers:
    return TeacherAnswers(base, PromptConfig(question="Q: {question}"), None, TOP)


def test_it_reads_the_passage_and_no_other_question(base, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_states, "BATCH_TOKENS", 120)  # several batches
    teacher.fill(PASSAGES, tmp_path)
    found = teacher.of(PASSAGES, places_of(PASSAGES))
    assert len(found) == 10
    for place, taught in found.items():
        passage = PASSAGES[place.passage]
        question = passage.questions[place.number]
        text = [token for chunk in passage.chunks for token in chunk]
        ids = [*text, *separator_ids(base.tokenizer), *question.ids]
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([ids])).logits[0, -question.num_labels - 1 : -1]
        values, tokens = logits.topk(TOP)
        assert torch.equal(taught.tokens, tokens)
        torch.testing.assert_close(taught.probabilities, values.softmax(-1), rtol=1e-3, atol=1e-5)


def test_its_end_stands_for_ours(base, tmp_path, monkeypatch):
    prompt = PromptConfig(question="Q: {question}")
    newline = base.tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert len(newline) == 1 and base.tokenizer.eos_token_id == 1
    size = len(base.tokenizer)
    plain, mapped = (TeacherAnswers(base, prompt, end, size) for end in (None, "\n"))
    for each, name in ((plain, "plain"), (mapped, "mapped")):
        (tmp_path / name).mkdir()
        each.fill(PASSAGES, tmp_path / name)
    places = places_of(PASSAGES)
    own, ours = plain.of(PASSAGES, places), mapped.of(PASSAGES, places)
    for place, taught in own.items():
        tokens = taught.tokens.masked_fill(taught.tokens == newline[0], 1)
        assert torch.equal(ours[place].tokens, tokens) and not torch.equal(tokens, taught.tokens)
        assert torch.equal(ours[place].probabilities, taught.probabilities)
    with pytest.raises(ConfigError, match="teacher_end must be one token"):
        TeacherAnswers(base, prompt, "no such word at all", TOP)


def test_a_window_that_is_too_short_is_told(base, teacher, tmp_path, monkeypatch):
    config = copy.deepcopy(base.model.config)
    config.sliding_window = 40
    monkeypatch.setattr(base.model, "config", config)
    with pytest.raises(ConfigError, match="attends within 40 tokens, and a passage with its questions has"):
        teacher.fill(PASSAGES, tmp_path)
    monkeypatch.setattr(teachers, "end_ids", lambda tokenizer, prompt: [])
    with pytest.raises(ConfigError, match="nothing ends an answer here"):
        TeacherAnswers(base, PromptConfig(question="Q: {question}"), "\n", TOP)


def test_what_is_known_is_not_asked_again(base, teacher, tmp_path, monkeypatch):
    asked = []
    own = teachers.TeacherAnswers._ask
    monkeypatch.setattr(
        teachers.TeacherAnswers,
        "_ask",
        lambda self, rows: asked.append(sum(len(row.questions) for row in rows)) or own(self, rows),
    )
    monkeypatch.setattr(frozen_states, "BATCH_TOKENS", 1)
    for rank in range(2):
        TeacherAnswers(base, PromptConfig(question="Q: {question}"), None, TOP).fill(PASSAGES[:1], tmp_path, rank, 2)
    assert sorted(asked) == [1, 8]
    asked.clear()
    teacher.load(tmp_path)
    assert len(teacher.of(PASSAGES, places_of(PASSAGES))) == 9
    teacher.fill(PASSAGES, tmp_path)
    assert asked == [1]
    fresh = TeacherAnswers(base, PromptConfig(question="Q: {question}"), None, TOP)
    fresh.load(tmp_path)
    found, again = fresh.of(PASSAGES, places_of(PASSAGES)), teacher.of(PASSAGES, places_of(PASSAGES))
    assert list(found) == list(again) and len(found) == 10
    for place, taught in found.items():
        assert torch.equal(taught.tokens, again[place].tokens)
        torch.testing.assert_close(taught.probabilities, again[place].probabilities, rtol=1e-3, atol=1e-6)
    elsewhere = dataclasses.replace(PASSAGES[0], chunks=((30, 31),))
    assert not fresh.of([elsewhere], places_of([elsewhere])), "the same questions of another text"
    other = TeacherAnswers(base, PromptConfig(question="Q: {question}"), None, TOP + 1)
    other.load(tmp_path)
    assert not other.of(PASSAGES, places_of(PASSAGES)), "as many tokens were not kept"


def test_divergence_is_that_of_the_formula():
    logits = torch.randn(4, 9, requires_grad=True)
    labels = torch.tensor([1, 2, 3, 4])
    first, second = Asked(0, 0, 0, 0), Asked(0, 1, 0, 0)
    taught = {second: TaughtAnswer(torch.tensor([[0, 3], [4, 8]]), torch.tensor([[0.3, 0.7], [1.0, 0.0]]))}
    questions = [(first, 0), (first, 1), (second, 0), (second, 1)]
    losses, rows = taught_losses(logits, cross_entropy(logits, labels), labels, questions, taught)
    said = logits.log_softmax(-1)
    expected = torch.stack(
        [
            0.3 * (torch.tensor(0.3).log() - said[2, 0]) + 0.7 * (torch.tensor(0.7).log() - said[2, 3]),
            -said[3, 4],
        ]
    )
    assert rows.tolist() == [2, 3]
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
    (given,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-4)
    none, rows = taught_losses(logits, losses, labels, questions, {})
    assert none.shape == (0,) and rows.shape == (0,)


def test_training_comes_nearer_to_it(recipe_path, tmp_path):
    last, losses = {}, {}
    for share in (0.01, 1):
        output = tmp_path / str(share)
        settings = ["encoder_training.kept_rows=0", "num_steps=60", "learning_rate=0.01"]
        run_training(recipe_path, [*SETTINGS, *settings, f"encoder_training.teacher_share={share}"], output=output)
        lines = training_lines(output, "answer_loss")
        last[share] = sum(line["teacher_loss"] for line in lines[-10:])
        losses[share] = sum(line["answer_loss"] for line in lines[-10:])
    assert last[1] < 0.7 * last[0.01] and losses[0.01] < losses[1]


def test_only_some_sources_are_asked_and_another_run_reads_it(recipe_path, tmp_path):
    first = tmp_path / "first"
    run_training(recipe_path, [*SETTINGS, "encoder_training.teacher_sources=[1]"], output=first)
    lines = training_lines(first, "answer_loss")
    assert all("teacher_loss" in line for line in lines)
    (kept,) = (first / "frozen-states").glob("teacher-*.safetensors")
    before = kept.read_bytes()
    passages = json.loads((first / "frozen-states" / "passages.json").read_text())["passages"]
    wanted = [len(each["questions"]) for each in passages if each["source"] == 1 and not each["held_out"]]
    assert len(load_file(kept)["keys"]) == sum(wanted) < sum(len(each["questions"]) for each in passages)
    run_training(
        recipe_path, [*SETTINGS, "encoder_training.teacher_sources=[1]", "num_steps=3"], resume=True, output=first
    )
    assert [kept] == list((first / "frozen-states").glob("teacher-*.safetensors")) and kept.read_bytes() == before
    second = tmp_path / "second"
    settings = [f"encoder_training.states_from={first}", "encoder_training.teacher_sources=[1]"]
    run_training(recipe_path, [*SETTINGS, *settings], output=second)
    assert not list((second / "frozen-states").glob("teacher-*.safetensors"))
    assert [line["loss"] for line in training_lines(second, "answer_loss")] == [line["loss"] for line in lines]


def test_sources_must_be_there(recipe_path):
    with pytest.raises(ConfigError, match=r"teacher_sources must be below 2, the number of sources, got \[1, 2\]"):
        load_recipe(recipe_path, ["encoder_training.teacher_sources=[1, 2]"])


def test_a_teacher_of_another_tokenizer_is_refused(recipe_path, base_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base_folder, other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"<pad>"', '"<fill>"'))
    config = (other / "tokenizer_config.json").read_text()
    (other / "tokenizer_config.json").write_text(config.replace('"<pad>"', '"<fill>"'))
    with pytest.raises(ConfigError, match="has another tokenizer than"):
        run_training(recipe_path, [*SETTINGS, f"encoder_training.teacher={other}"], output=tmp_path / "run")
