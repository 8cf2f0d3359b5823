"""Steps: the loss falls, metrics are told, non-finite steps are skipped, the batch may be split."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from generative_adapter.base_model import prefix_pass
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import TrainingError
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training import held_out, objectives
from generative_adapter.training.batches import Batch
from generative_adapter.training.loop import Trainer
from generative_adapter.training.metrics import append_line, drop_lines_after
from generative_adapter.training.objectives import TokenLosses, token_losses
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.run import make_trainer

TRAINING_KEYS = {
    *("kind", "step", "num_steps", "loss", "gradient_norm", "learning_rate"),
    *("step_seconds", "data_seconds", "forward_seconds", "backward_seconds", "exchange_seconds"),
    "optimizer_seconds",
    *("tokens_per_second", "real_token_share", "num_tokens", "num_skipped", "seconds", "seconds_left"),
}
LOSS_KEYS = {"answer_loss", "reconstruction_loss", "completion_loss"}


def strict_lines(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics, read by a parser that takes no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def weights(generator: AdapterGenerator) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in generator.named_parameters()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def trainer(base: BaseModel, make_recipe: Callable[..., TrainingRecipe]) -> Callable[..., Trainer]:
    return lambda **settings: make_trainer(make_recipe(**settings), base)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "run"


def one_source(records_file: Path, **settings: Any) -> list[dict[str, Any]]:
    return [{"kind": "questions", "paths": [str(records_file)], "held_out_share": 0.0, **settings}]


def test_gradient_checkpointing_trains_the_same_generator(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = []
    original = prefix_pass.recompute_blocks
    monkeypatch.setattr(prefix_pass, "recompute_blocks", lambda *args: opened.append(args) or original(*args))
    found = []
    for on in (False, True):
        trained = trainer(gradient_checkpointing=on, num_steps=4, evaluation_steps=0, output=str(tmp_path / str(on)))
        trained.run()
        assert bool(opened) == on
        found.append(weights(trained.generator))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5)


def test_loss_falls_on_five_records(trainer: Callable[..., Trainer], records_file: Path, output: Path) -> None:
    """What is learnt is in the adapters: with those of other contexts the answers are worse."""
    trained = trainer(
        sources=one_source(records_file, context_tokens=[200, 200], num_questions=3),
        num_steps=70,
        contexts_per_step=5,
        learning_rate=0.02,
        log_steps=5,
        evaluation_steps=0,
    )
    before = weights(trained.generator)
    assert trained.run() == "finished"
    losses = [line["answer_loss"] for line in strict_lines(output / "metrics.jsonl") if line["kind"] == "training"]
    assert len(losses) == 14
    assert losses[0] > 5.0
    assert losses[-1] < losses[0] / 2
    assert not same(before, weights(trained.generator))
    items = trained.sampler.step(0)
    swapped = [
        type(item)(other.chunks, item.segments) for item, other in zip(items, [*items[1:], items[0]], strict=True)
    ]
    with torch.no_grad():
        own, others = (
            torch.cat([token_losses(trained.base, trained.generator, batch).losses for batch in trained.batches(group)])
            for group in (items, swapped)
        )
    assert others.mean() > own.mean() + 0.5


def test_metrics_lines(trainer: Callable[..., Trainer], output: Path) -> None:
    told: list[dict[str, Any]] = []
    trained = trainer(num_steps=11, log_steps=4, evaluation_steps=5, warmup_steps=2, decay_share=0.0)
    trained._callback = told.append  # type: ignore[assignment]
    trained.run()
    lines = strict_lines(output / "metrics.jsonl")
    assert lines == told
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("training", 4),
        ("evaluation", 5),
        ("training", 8),
        ("evaluation", 10),
        ("training", 11),
        ("evaluation", 11),
    ]
    for line in lines:
        if line["kind"] == "training":
            assert TRAINING_KEYS <= line.keys() <= TRAINING_KEYS | LOSS_KEYS
            assert line["num_steps"] == 11 and line["num_skipped"] == 0
            assert line["seconds_left"] == pytest.approx((11 - line["step"]) * line["seconds"] / line["step"])
            parts = [line[f"{name}_seconds"] for name in ("data", "forward", "backward", "exchange", "optimizer")]
            assert 0 < sum(parts) <= line["step_seconds"] * 1.001
            assert 0.3 < line["real_token_share"] <= 1
            assert line["loss"] > 0 < line["tokens_per_second"]
    assert [line["learning_rate"] for line in lines[:3:2]] == pytest.approx([0.01 * (0.5 + 3) / 4, 0.01])
    assert lines[0]["num_tokens"] < lines[2]["num_tokens"] < lines[4]["num_tokens"]
    assert trained.progress.num_tokens == lines[4]["num_tokens"]
    facts = lines[-1]["1-facts"]
    assert facts.keys() == {"answer_perplexity", "answer_accuracy", "num_answers"}
    assert facts["answer_perplexity"] > 1 and 0 <= facts["answer_accuracy"] <= 1 and facts["num_answers"] >= 2
    assert "0-questions" not in lines[-1]  # nothing of it is held out
    assert [entry["step"] for entry in trained.progress.evaluations] == [5, 10, 11]


def test_evaluation_counts_answers_that_are_right_throughout(
    trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = trainer(sources=[{"kind": "facts", "num_facts": [4, 4]}], evaluation_contexts=3)

    def all_but_the_first(
        base: BaseModel, generator: AdapterGenerator, batch: Batch, _: str, num_reads: int
    ) -> TokenLosses:
        assert num_reads == 0
        correct = batch.segment_index != 0
        return TokenLosses(torch.full(correct.shape, 2.0), correct)

    monkeypatch.setattr(held_out, "token_losses", all_but_the_first)
    assert trained.evaluate() == {
        "0-facts": {"answer_perplexity": pytest.approx(math.exp(2)), "answer_accuracy": 11 / 12, "num_answers": 12}
    }


@pytest.mark.parametrize("log_steps", [1, 3])
def test_a_split_step_gives_the_same_numbers(
    base: BaseModel, make_recipe: Callable[..., TrainingRecipe], tmp_path: Path, log_steps: int
) -> None:
    lines = []
    for name, most in (("whole", 100_000), ("split", 70)):
        folder = tmp_path / name
        settings = {"contexts_per_step": 6, "num_steps": 3, "log_steps": log_steps, "evaluation_steps": 0}
        split_run = make_trainer(make_recipe(output=str(folder), micro_batch_tokens=most, **settings), base)
        assert (len(split_run.batches(split_run.sampler.step(0))) > 2) == (name == "split")
        split_run.run()
        lines.append([line for line in strict_lines(folder / "metrics.jsonl") if line["kind"] == "training"])
    for whole, split in zip(*lines, strict=True):
        for key in ("loss", "gradient_norm", "answer_loss", "num_tokens", "learning_rate"):
            assert split[key] == pytest.approx(whole[key], rel=2e-3), (whole["step"], key)


def break_steps(monkeypatch: pytest.MonkeyPatch, steps: Callable[[int], bool], how: str) -> list[int]:
    """Makes the loss or the gradient of some steps (one pass each) NaN; gives the list of passes."""
    calls: list[int] = []

    def broken(base: BaseModel, generator: AdapterGenerator, batch: Batch, *settings: Any) -> TokenLosses:
        result = token_losses(base, generator, batch, *settings)
        if not torch.is_grad_enabled():
            return result
        calls.append(len(calls))
        if not steps(calls[-1]):
            return result
        if how == "loss":
            return TokenLosses(result.losses * float("nan"), result.correct)
        zero = (next(generator.parameters()).sum() * 0).sqrt()  # whose gradient is 0 * infinity
        return TokenLosses(result.losses + zero, result.correct)

    monkeypatch.setattr(objectives, "token_losses", broken)
    return calls


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_non_finite_steps_are_skipped_and_counted(
    trainer: Callable[..., Trainer], output: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    bad = {2, 3, 6}
    break_steps(monkeypatch, bad.__contains__, how)
    trained = trainer(num_steps=9, log_steps=1, evaluation_steps=0)
    after: list[dict[str, Tensor]] = [weights(trained.generator)]
    trained._callback = lambda line: after.append(weights(trained.generator)) if line["kind"] == "training" else None
    assert trained.run() == "finished"
    for step in range(9):
        assert same(after[step], after[step + 1]) == (step in bad)
    lines = [line for line in strict_lines(output / "metrics.jsonl") if line["kind"] == "training"]
    assert [line["num_skipped"] for line in lines] == [0, 0, 1, 2, 2, 2, 3, 3, 3]
    assert [line["loss"] is None for line in lines] == [how == "loss" and step in bad for step in range(9)]
    assert trained.progress.num_skipped == 3 and trained.progress.skipped_in_a_row == 0


def test_means_leave_skipped_steps_out(
    trainer: Callable[..., Trainer], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, lambda step: step == 1, "loss")
    trainer(num_steps=3, log_steps=3, evaluation_steps=0).run()
    line = strict_lines(output / "metrics.jsonl")[0]
    assert line["num_skipped"] == 1
    assert 0 < line["loss"] < 50


def test_ten_skipped_steps_in_a_row_end_the_run(
    trainer: Callable[..., Trainer], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = break_steps(monkeypatch, lambda step: step == 1 or step >= 4, "loss")
    trained = trainer(num_steps=40, evaluation_steps=0, checkpoint_seconds=1e-9)
    with pytest.raises(TrainingError, match=r"10 steps in a row .* step 13 .*lower learning_rate"):
        trained.run()
    assert len(calls) == 14
    checkpoints = sorted(output.glob("checkpoint-*"))
    assert [path.name for path in checkpoints] == ["checkpoint-00000012", "checkpoint-00000013"]
    for path in checkpoints:
        for name in ("generator", "optimizer"):
            assert all(torch.isfinite(value).all() for value in load_file(path / f"{name}.safetensors").values())


def test_weight_decay_spares_the_norms(trainer: Callable[..., Trainer]) -> None:
    trained = trainer(weight_decay=0.25, adam_betas=[0.8, 0.9])
    (optimizer,) = trained.optimizer.optimizers
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.25, 0.0)
    assert decayed["betas"] == (0.8, 0.9)
    names = {id(p): name.rsplit(".", 1)[1] for name, p in trained.generator.named_parameters()}
    assert {names[id(p)] for p in others["params"]} == {"norm_weight"}
    assert {names[id(p)] for p in decayed["params"]} == {"key_proj", "value_proj", "query_proj", "output_proj"}


def test_metrics_file(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    drop_lines_after(path, 3)
    assert not path.exists()
    for step in (1, 2, 3, 3, 4):
        append_line(path, {"kind": "training", "step": step, "loss": math.inf, "inner": {"value": math.nan}})
    with path.open("a") as file:
        file.write('{"kind": "training", "st')
    drop_lines_after(path, 3)
    assert [line["step"] for line in strict_lines(path)] == [1, 2, 3, 3]
    assert strict_lines(path)[0] == {"kind": "training", "step": 1, "loss": None, "inner": {"value": None}}
    drop_lines_after(path, 0)
    assert path.read_text() == ""
