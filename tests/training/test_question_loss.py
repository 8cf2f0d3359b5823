"""The loss of questions, and which of them loss truncation leaves out."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.training.encoder.passes import PassLosses
from generative_adapter.training.encoder.question_loss import kept_questions, question_loss, weighted_losses
from generative_adapter.training.encoder.settings import EncoderTraining
from generative_adapter.training.run import run_training
from metric_lines import training_lines

LOSSES = torch.tensor([1.0, 3.0, 5.0, 0.5, 4.0, 9.0])
QUESTION = torch.tensor([0, 0, 1, 2, 3, 4])


def test_tokens_weigh_as_the_root_of_their_answers_length():
    root = 0.5**0.5
    expected = (root * 4 + 5 + 0.5 + 4 + 9) / (2 * root + 4)
    assert question_loss(LOSSES, QUESTION).item() == pytest.approx(expected)


def test_questions_left_out_count_nothing():
    kept = torch.tensor([True, False, True, False, False])
    root = 0.5**0.5
    assert question_loss(LOSSES, QUESTION, kept).item() == pytest.approx((root * 4 + 0.5) / (2 * root + 1))
    losses = LOSSES.clone().requires_grad_()
    question_loss(losses, QUESTION, kept).backward()
    assert losses.grad is not None and losses.grad.nonzero().squeeze(1).tolist() == [0, 1, 3]
    assert question_loss(LOSSES, QUESTION, torch.zeros(5, dtype=torch.bool)).item() == 0


def test_the_hardest_questions_of_a_source_are_dropped():
    """Means of the questions are 2, 5, 0.5, 4 and 9; sources 0: 0, 1, 3 and 1: 2, 4."""
    sources = torch.tensor([0, 0, 1, 0, 1])
    kept = kept_questions(LOSSES, QUESTION, sources, (0.34, 0.5))
    assert kept.tolist() == [True, False, True, True, False]
    assert kept_questions(LOSSES, QUESTION, sources, (0.3,)).all(), "less than one question of three"
    assert kept_questions(LOSSES, QUESTION, sources, (0.7,)).tolist() == [True, False, True, False, True]
    assert kept_questions(LOSSES, QUESTION, sources, ()).all()


def test_a_pass_sums_its_parts_by_their_weights():
    """Parts of questions that are left out count nothing, whatever part it is."""
    numbers = torch.tensor([0, 4])
    found = PassLosses(
        answers=LOSSES,
        correct=LOSSES < 2,
        question=QUESTION,
        sources=torch.tensor([0, 0, 1, 0, 1]),
        places=torch.tensor([2.0, 100.0]),
        place_question=numbers,
        kept=torch.tensor([0.3, 0.5]),
        text=torch.tensor([-1.0, 2.0]),
        repeats=torch.tensor([3.0, 100.0]),
        repeat_question=numbers,
        taught=torch.tensor([7.0]),
        taught_tokens=torch.tensor([3]),
        words=torch.tensor([0.7, 100.0]),
        word_question=numbers,
    )
    settings = EncoderTraining(
        dropped_shares=(0.0, 0.5),
        teacher_share=0.2,
        kept_weight=10.0,
        kept_text_share=0.25,
        repeat_weight=0.4,
        question_word_weight=0.6,
    )
    root = 0.5**0.5
    answers = (root * 4 + 5 + (0.8 * 0.5 + 0.2 * 7) + 4) / (2 * root + 3)
    kept = 10 * (0.75 * 0.4 + 0.25 * 0.5)
    expected = answers + kept + 0.3 * 2 + 0.4 * 3 + 0.6 * 0.7
    assert weighted_losses(found, settings, 0.3).item() == pytest.approx(expected, rel=1e-6)


def test_a_run_leaves_them_out(recipe_path, tmp_path):
    losses = []
    for share in (0.0, 0.6):
        folder = tmp_path / str(share)
        settings = ["num_steps=1", "encoder_training.lookup_steps=0", "log_steps=1", "encoder_training.kept_weight=0"]
        run_training(recipe_path, [*settings, f"encoder_training.dropped_shares=[{share}]"], output=folder)
        losses.append(training_lines(folder)[0])
    assert losses[1]["loss"] < losses[0]["loss"] - 0.01
    assert losses[1]["answer_loss"] == pytest.approx(losses[0]["answer_loss"])


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_their_places_are_left_out_too(recipe_path, tmp_path, share):
    """What the place loss adds is the mean over all questions only where none is dropped."""
    lines = []
    for weight in (0, 2):
        settings = ["num_steps=1", "encoder_training.lookup_steps=0", "log_steps=1", "encoder_training.kept_weight=0"]
        settings += [f"encoder_training.dropped_shares=[{share}]", f"encoder_training.position_weight={weight}"]
        run_training(recipe_path, settings, output=tmp_path / str(weight))
        lines.append(training_lines(tmp_path / str(weight))[0])
    added = (lines[1]["loss"] - lines[0]["loss"]) / 2
    assert (added == pytest.approx(lines[1]["place_loss"], rel=1e-4)) == (share == 0)
