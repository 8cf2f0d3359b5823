"""The in-context teacher against one forward pass a question, and the divergence against its formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.batches import ContextItem, Segment, assemble, segment_item
from generative_adapter.training.distillation import distillation_losses, teacher_targets, with_teacher
from generative_adapter.training.objectives import token_losses
from generative_adapter.training.run import run_training
from metric_lines import training_lines, training_losses

SEPARATOR = (21, 22)


def items_of(start: Sequence[int]) -> list[ContextItem]:
    """Two contexts with questions, one text of three chunks, one of one chunk that goes on."""
    begin = max(1, len(start))
    return [
        ContextItem(
            ((30, 31, 32), (33, 34)),
            (
                Segment((*start, 40, 41, 42, 43), len(start) + 2, 2, "answer"),
                Segment((*start, 44, 45, 46), len(start) + 1, 1, "answer"),
                Segment((*start, 30, 31, 32), begin, 1, "reconstruction"),
            ),
        ),
        segment_item((50, 51, 52, 53, 54, 55, 56), 3, start),
        ContextItem(((60, 61),), (Segment((*start, 62, 63, 64), begin, 1, "completion"),)),
        ContextItem(((70, 71, 72),), (Segment((80, 81, 82), 2, 1, "answer"),)),  # a prompt without the start
    ]


def expected_rows(start: Sequence[int]) -> dict[tuple[int, ...], tuple[int, ...]]:
    """For each supervised run of tokens but reconstructions: all that the teacher has read before it."""
    skipped = () if start else (1,)  # without a start the first token of a run is given
    rows = {
        (42, 43): (*start, 30, 31, 32, 33, 34, *SEPARATOR, 40, 41),
        (45, 46): (*start, 30, 31, 32, *SEPARATOR, 44),
        (82,): (*start, 70, 71, 72, *SEPARATOR, 80, 81),
    }
    for run, before in (((53, 54, 55), (50, 51, 52)), ((56,), (50, 51, 52, 53, 54, 55)), ((62, 63, 64), (60, 61))):
        cut = len(skipped)
        if run[cut:]:
            rows[run[cut:]] = (*start, *before, *run[:cut])
    return rows


@pytest.mark.parametrize("start", [(), (9,)])
def test_the_teacher_reads_context_and_question(base: BaseModel, start: tuple[int, ...]) -> None:
    items = items_of(start)
    batch = with_teacher(assemble(items, pad_id=0, start_ids=start, row_tokens=16), items, SEPARATOR, start, pad_id=0)
    assert batch.teacher is not None
    targets = teacher_targets(base, batch.teacher, top_k=5)
    known = {label: number for number, label in enumerate(targets.labels.tolist())}
    rows = expected_rows(start)
    assert len(known) == len(targets.labels) == sum(map(len, rows))
    answers_and_completions = (batch.objectives != 1).nonzero().squeeze(1).tolist()
    assert sorted(known) == answers_and_completions
    labels = batch.labels.tolist()
    for run, before in rows.items():
        first = next(i for i in answers_and_completions if tuple(labels[i : i + len(run)]) == run)
        logits = base.model(torch.tensor([[*before, *run]])).logits[0, len(before) - 1 : -1].softmax(-1)
        for offset in range(len(run)):
            values, tokens = logits[offset].topk(5)
            number = known[first + offset]
            assert targets.tokens[number].tolist() == tokens.tolist()
            torch.testing.assert_close(targets.probabilities[number], values / values.sum(), rtol=1e-3, atol=1e-4)
    assert batch.num_real_tokens < batch.num_computed_tokens


def test_reconstruction_alone_has_no_teacher() -> None:
    items = [ContextItem(((3, 4, 5),), (Segment((3, 4, 5), 1, 1, "reconstruction"),))]
    batch = assemble(items, pad_id=0, start_ids=(), row_tokens=8)
    assert with_teacher(batch, items, SEPARATOR, (), 0) is batch


def test_divergence(base: BaseModel, random_generator: Callable[..., AdapterGenerator]) -> None:
    items = items_of(())
    batch = with_teacher(assemble(items, pad_id=0, start_ids=(), row_tokens=16), items, SEPARATOR, (), 0)
    assert batch.teacher is not None
    result = token_losses(base, random_generator(), batch, distillation_top_k=4)
    targets = teacher_targets(base, batch.teacher, 4)
    plain = token_losses(base, random_generator(), assemble(items, pad_id=0, start_ids=(), row_tokens=16))
    torch.testing.assert_close(result.losses, plain.losses)
    assert plain.distillation_losses is None and result.distillation_losses is not None
    logits = torch.randn(len(batch.labels), 701, generator=torch.Generator().manual_seed(1), requires_grad=True)
    losses = distillation_losses(logits, targets)
    for number, label in enumerate(targets.labels.tolist()):
        q = logits[label].double().softmax(-1)[targets.tokens[number]]
        p = targets.probabilities[number].double()
        assert losses[number].item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-4)
    losses.sum().backward()
    assert logits.grad is not None and logits.grad[batch.objectives == 1].abs().sum() == 0


def test_a_generator_learns_from_the_teacher_alone(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    weights = {"answer_weight": 0.0, "reconstruction_weight": 0.0, "distillation_weight": 1.0}
    source = {"kind": "facts", "num_facts": [2, 3], "num_questions": 2}
    path = write_recipe(num_steps=30, log_steps=5, sources=[source], seed=3, **weights)
    run_training(path)
    losses = [line["distillation_loss"] for line in training_lines(tmp_path / "run")]
    assert losses[-1] < 0.9 * losses[0]
    assert list(training_losses(tmp_path / "run").values()) == pytest.approx(losses)
