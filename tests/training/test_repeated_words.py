"""The loss on answers that begin with a word of their own question."""

from __future__ import annotations

import torch

from generative_adapter.training.cross_entropy import cross_entropy
from generative_adapter.training.encoder import question_loss, repeated_words
from generative_adapter.training.encoder.frozen_states import Asked
from generative_adapter.training.encoder.repeated_words import own_words, repeat_losses
from generative_adapter.training.run import run_training
from metric_lines import training_lines


def test_own_words_are_rare_and_not_in_the_answer(states, monkeypatch):
    monkeypatch.setattr(repeated_words, "COMMON", 0.3)
    found = own_words(states)
    asked = [each for passage in states.asked for each in passage]
    assert list(found) == asked
    prompts = []
    for each in asked:
        question = states.passages[each.passage].questions[each.number]
        prompts.append((set(question.ids[: question.num_prompt]), set(question.ids[question.num_prompt :])))
    every = set.intersection(*(prompt for prompt, _ in prompts))
    assert every and any(found.values())
    for each, (prompt, answer) in zip(asked, prompts, strict=True):
        assert set(found[each]) <= prompt - answer - every
        left = prompt - answer - set(found[each])
        assert all(sum(word in other for other, _ in prompts) > 0.3 * len(asked) for word in left)


def test_repeats_cost_the_log_of_what_the_other_words_have():
    logits = torch.randn(5, 9, requires_grad=True)
    labels = torch.tensor([1, 2, 3, 4, 5])
    first, second, third = (Asked(0, number, 0, 0) for number in range(3))
    words = {first: (2, 7), second: (), third: (0, 3, 8)}
    questions = [(first, 0), (first, 1), (second, 0), (third, 0), (third, 1)]
    losses, rows = repeat_losses(logits, cross_entropy(logits, labels), labels, questions, words)
    shares = logits.softmax(-1)
    expected = -torch.stack([1 - shares[0, [2, 7]].sum(), 1 - shares[3, [0, 3, 8]].sum()]).log()
    assert rows == [0, 3]
    torch.testing.assert_close(losses, expected, rtol=0.02, atol=0)
    (given,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
    (wanted,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(given, wanted, rtol=0.02, atol=1e-3)
    none, rows = repeat_losses(logits, losses, labels, [(second, 0)], words)
    assert none.shape == (0,) and rows == []


def test_a_sure_repeat_has_a_finite_loss_and_a_gradient():
    logits = torch.tensor([[9.0, 0.0, 0.0]], requires_grad=True)
    labels = torch.tensor([1])
    asked = Asked(0, 0, 0, 0)
    losses, _ = repeat_losses(logits, cross_entropy(logits, labels), labels, [(asked, 0)], {asked: (0,)})
    losses.sum().backward()
    assert losses.isfinite().all() and logits.grad is not None and 0.05 < float(logits.grad[0, 0]) < 10


def test_training_lowers_the_loss_if_it_has_a_weight(recipe_path, tmp_path, monkeypatch):
    monkeypatch.setattr(repeated_words, "COMMON", 0.3)
    settings = ["encoder_training.lookup_steps=0", "num_steps=40", "learning_rate=0.01", "encoder_training.kept_rows=0"]
    last = {}
    for weight in (0, 1e-9, 100):
        output = tmp_path / str(weight)
        run_training(recipe_path, [*settings, f"encoder_training.repeat_weight={weight}"], output=output)
        lines = training_lines(output, "answer_loss")
        repeats = [line["repeat_loss"] for line in lines if "repeat_loss" in line]
        assert len(repeats) == (40 if weight else 0)
        last[weight] = sum(repeats[-10:])
    assert 0 < last[100] < 0.8 * last[1e-9]


def test_questions_that_are_dropped_do_not_count(recipe_path, tmp_path, monkeypatch):
    monkeypatch.setattr(repeated_words, "COMMON", 0.3)
    monkeypatch.setattr(question_loss, "kept_questions", lambda losses, question, sources, shares: sources < 0)
    losses = {}
    for weight in (0, 100):
        settings = ["encoder_training.lookup_steps=0", "num_steps=1", f"encoder_training.repeat_weight={weight}"]
        run_training(recipe_path, settings, output=tmp_path / str(weight))
        losses[weight] = [line["loss"] for line in training_lines(tmp_path / str(weight), "answer_loss")]
    assert losses[0] == losses[100]
