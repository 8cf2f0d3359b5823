"""Whole runs: stopped, killed and resumed ones end in the same numbers as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from generative_adapter.base_model.loading import load_base_model
from generative_adapter.checkpoint import load_generator
from generative_adapter.errors import CheckpointError, ConfigError, DataError, FingerprintMismatchError, TrainingError
from generative_adapter.training import loop
from generative_adapter.training.run import TrainingResult, run_training
from generative_adapter.training.state import list_checkpoints
from metric_lines import metric_lines, training_lines

# All runs follow one small recipe (`write_recipe`): 12 steps, a line of metrics every 4, an evaluation every 5.
TIMES = ("seconds", "per_second")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "generator.safetensors")


def same_weights(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics without what a clock decides."""
    return [
        {key: value for key, value in line.items() if not any(word in key for word in TIMES)}
        for line in metric_lines(folder)
    ]


@pytest.fixture
def uninterrupted(write_recipe: Callable[..., Path], tmp_path: Path) -> tuple[Path, TrainingResult]:
    folder = tmp_path / "uninterrupted"
    return folder, run_training(write_recipe(), output=folder)


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = loop.Trainer.train_step

    def stop(self: loop.Trainer, number: int) -> dict[str, float]:
        if number == step:
            raise Killed
        return original(self, number)

    monkeypatch.setattr(loop.Trainer, "train_step", stop)


def test_a_whole_run(uninterrupted: tuple[Path, TrainingResult], base_folder: Path) -> None:
    folder, result = uninterrupted
    assert (result.status, result.step, result.num_skipped) == ("finished", 12, 0)
    assert result.generator == str(folder / "generator.safetensors")
    assert result.num_tokens > 0 < result.seconds and 0.3 < result.real_token_share <= 1
    assert result.evaluation["step"] == 12 and result.evaluation["1-facts"]["num_answers"] > 0
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()
    base = load_base_model(base_folder, device="cpu", dtype="float32")
    checkpoint = load_generator(result.generator, base)
    assert checkpoint.training["step"] == 12
    assert checkpoint.training["recipe"]["num_steps"] == 12
    assert checkpoint.training["recipe"] == json.loads((folder / "recipe.json").read_text())
    assert all(torch.isfinite(tensor).all() and tensor.abs().max() > 0 for tensor in weights(folder).values())


def test_only_safetensors_and_json(uninterrupted: tuple[Path, TrainingResult]) -> None:
    folder, _ = uninterrupted
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl"}
    assert not any(path.name.startswith(".") for path in files)


@pytest.mark.parametrize("killed_at", [1, 6, 11])
def test_resuming_gives_the_same_weights_bit_for_bit(
    uninterrupted: tuple[Path, TrainingResult],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_at: int,
) -> None:
    """Steps are lost (the last checkpoint is older), and lines of metrics stand for steps on both sides of the kill."""
    folder = tmp_path / "killed"
    recipe = write_recipe(checkpoint_seconds=1e-9)
    with monkeypatch.context() as patch:
        kill_at(patch, killed_at)
        with pytest.raises(Killed):
            run_training(recipe, output=folder)
    if killed_at > 2:
        newest = list_checkpoints(folder)[-1]
        for file in newest.iterdir():
            file.unlink()
        newest.rmdir()  # as if the run had been killed before it was written
    result = run_training(recipe, output=folder, resume=True)
    assert (result.status, result.step) == ("finished", 12)
    assert same_weights(folder, uninterrupted[0])
    assert numbers(folder) == numbers(uninterrupted[0])
    assert result.num_tokens == uninterrupted[1].num_tokens
    assert result.evaluation == uninterrupted[1].evaluation


def test_as_many_checkpoints_stay_as_the_recipe_asks_for(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    run_training(write_recipe(checkpoint_seconds=1e-9, keep_checkpoints=5, num_steps=9))
    assert [int(path.name.split("-")[1]) for path in list_checkpoints(tmp_path / "run")] == [5, 6, 7, 8, 9]
    with pytest.raises(ConfigError, match="keep_checkpoints must be positive"):
        run_training(write_recipe(keep_checkpoints=0))


def test_max_seconds_stops_with_a_checkpoint(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = write_recipe(num_steps=100_000, evaluation_steps=0)
    started = time.monotonic()
    result = run_training(recipe, max_seconds=0.3)
    assert time.monotonic() - started < 30
    assert result.status == "out_of_time"
    assert 0 < result.step < 100_000
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert json.loads((checkpoint / "progress.json").read_text())["step"] == result.step
    assert same_weights(tmp_path / "run", checkpoint)
    again = run_training(recipe, max_seconds=0.2, resume=True)
    assert again.step > result.step
    assert again.seconds > result.seconds + 0.15


def test_a_run_in_many_short_parts(
    uninterrupted: tuple[Path, TrainingResult], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Also when the first part ends before its first step."""
    folder = tmp_path / "parts"
    recipe = write_recipe()
    result = run_training(recipe, max_seconds=1e-9, output=folder)
    assert (result.status, result.step) == ("out_of_time", 0)
    for _ in range(40):
        if result.status == "finished":
            break
        result = run_training(recipe, max_seconds=0.05, output=folder, resume=True)
    assert result.status == "finished"
    assert same_weights(folder, uninterrupted[0])
    assert numbers(folder) == numbers(uninterrupted[0])


def test_a_finished_run_can_be_resumed_and_prolonged(
    uninterrupted: tuple[Path, TrainingResult], write_recipe: Callable[..., Path]
) -> None:
    folder, before = uninterrupted
    lines = numbers(folder)
    assert run_training(write_recipe(), output=folder, resume=True).step == 12
    assert numbers(folder) == lines
    longer = run_training(write_recipe(), ["num_steps=14"], output=folder, resume=True)
    assert longer.step == 14 and longer.seconds > before.seconds


@pytest.mark.slow
def test_kill_9_and_resume(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """A real process that writes a checkpoint at every step is killed somewhere; resuming makes up for it."""
    recipe = write_recipe(num_steps=150, checkpoint_seconds=1e-9, evaluation_steps=40)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_training(recipe, output=whole)
    program = "import sys, torch; torch.set_num_threads(1); from generative_adapter.cli.main import app; app()"
    arguments = [sys.executable, "-c", program, "train", str(recipe), "--output", str(killed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
    try:
        while not any(int(path.name.split("-")[1]) >= 30 for path in list_checkpoints(killed)):
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert int(list_checkpoints(killed)[-1].name.split("-")[1]) < 150
    assert not (killed / "generator.safetensors").exists()
    result = run_training(recipe, output=killed, resume=True)
    assert (result.status, result.step) == ("finished", 150)
    assert same_weights(killed, whole)
    assert numbers(killed) == numbers(whole)
    assert not list(killed.glob(".*"))


def test_an_existing_run_is_not_overwritten(
    uninterrupted: tuple[Path, TrainingResult], write_recipe: Callable[..., Path]
) -> None:
    folder, _ = uninterrupted
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(TrainingError, match=r"holds a run already \(checkpoint-00000012\); pass --resume or another"):
        run_training(write_recipe(), output=folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_nothing_to_resume_from(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    half = tmp_path / "run" / ".checkpoint-00000009.4242.tmp"
    half.mkdir(parents=True)
    (half / "progress.json").write_text('{"step": 9}')
    with pytest.raises(CheckpointError, match="nothing to resume from: no complete checkpoint in"):
        run_training(write_recipe(), resume=True)


def test_a_run_killed_before_its_first_checkpoint_starts_anew(
    uninterrupted: tuple[Path, TrainingResult], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "early"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"kind": "training", "step": 4, "loss": 1.0}\n{"kind": "tr')
    run_training(write_recipe(), output=folder)
    assert numbers(folder) == numbers(uninterrupted[0])


def test_a_damaged_checkpoint_is_told_and_the_one_before_works(
    uninterrupted: tuple[Path, TrainingResult],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "killed"
    recipe = write_recipe(checkpoint_seconds=1e-9)
    with monkeypatch.context() as patch:
        kill_at(patch, 7)
        with pytest.raises(Killed):
            run_training(recipe, output=folder)
    before, newest = list_checkpoints(folder)
    for name, content in (("progress.json", '{"step": 7, "unheard_of": 1}'), ("optimizer.safetensors", "short")):
        (newest / name).write_text(content)
        with pytest.raises(CheckpointError, match=newest.name):
            run_training(recipe, output=folder, resume=True)
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert before.name == "checkpoint-00000006"
    run_training(recipe, output=folder, resume=True)
    assert same_weights(folder, uninterrupted[0])


def test_a_run_resumes_with_its_own_base_model_only(
    uninterrupted: tuple[Path, TrainingResult], write_recipe: Callable[..., Path], base_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other-base"
    base = load_base_model(base_folder, device="cpu", dtype="float32")
    with torch.no_grad():
        next(base.model.parameters()).mul_(1.5)
    base.model.save_pretrained(other)
    base.tokenizer.save_pretrained(other)
    with pytest.raises(FingerprintMismatchError, match="another base model"):
        run_training(write_recipe(), [f"base_model={other}"], output=uninterrupted[0], resume=True)


def test_initial_generator(
    uninterrupted: tuple[Path, TrainingResult], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    start = uninterrupted[1].generator
    folder = tmp_path / "on-top"
    overrides = [f"initial_generator={start}", "num_steps=1", "learning_rate=1e-12", "weight_decay=0"]
    result = run_training(write_recipe(), overrides, output=folder)
    assert result.step == 1
    old, new = weights(uninterrupted[0]), weights(folder)
    assert all(torch.allclose(old[name], new[name], atol=1e-9) for name in old)
    assert result.evaluation["1-facts"] == pytest.approx(uninterrupted[1].evaluation["1-facts"])


def test_initial_generator_grows_key_windows(
    uninterrupted: tuple[Path, TrainingResult], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """New windows start at zero: the first evaluation is that of the generator it started from."""
    settings = [f"initial_generator={uninterrupted[1].generator}", "num_steps=1", "learning_rate=1e-12"]
    result = run_training(write_recipe(), [*settings, "generator.key_windows=[3,-2]"], output=tmp_path / "grown")
    assert result.evaluation["1-facts"] == pytest.approx(uninterrupted[1].evaluation["1-facts"])
    assert sum(".window_projs." in name for name in weights(tmp_path / "grown")) % 2 == 0
    again = [f"initial_generator={result.generator}", "num_steps=1"]
    with pytest.raises(CheckpointError, match="doesn't fit"):
        run_training(write_recipe(), again, output=tmp_path / "shrunk")


@pytest.mark.parametrize("override", ["generator={state_dim: 8, rank: 8}", "generator.layers=[0, 1]"])
def test_initial_generator_of_another_form(
    uninterrupted: tuple[Path, TrainingResult], write_recipe: Callable[..., Path], tmp_path: Path, override: str
) -> None:
    overrides = [f"initial_generator={uninterrupted[1].generator}", override]
    with pytest.raises(CheckpointError, match=r"has shape|doesn't fit"):
        run_training(write_recipe(), overrides, output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_looking_up_is_learnt_and_logged(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """With ridge and its lookup loss: finite, in every line of metrics, and the generator written can be read."""
    folder = tmp_path / "lookup"
    overrides = ["generator.normalization=ridge", "lookup_weight=1", "log_steps=1", "num_steps=3"]
    result = run_training(write_recipe(), overrides, output=folder)
    steps = training_lines(folder, "lookup_loss")
    assert steps and all(line["lookup_loss"] > 0 and 0 <= line["lookup_accuracy"] <= 1 for line in steps)
    assert result.num_skipped == 0
    assert sum(name.endswith("log_ridge") for name in weights(folder)) > 0


def test_initial_generator_that_is_none(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no generator file"):
        run_training(write_recipe(initial_generator=str(tmp_path / "none.safetensors")))
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="is not a generator"):
        run_training(write_recipe(initial_generator=str(tmp_path / "other.safetensors")))
    (tmp_path / "noise.safetensors").write_bytes(b"\x01" * 100)
    with pytest.raises(CheckpointError, match="can't be read"):
        run_training(write_recipe(initial_generator=str(tmp_path / "noise.safetensors")))


def test_mistakes_leave_no_folder(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'num_steps'"):
        run_training(write_recipe(num_step=3))
    with pytest.raises(DataError, match="no such file"):
        run_training(write_recipe(), ["sources.0.paths=[gone.jsonl]"])
    assert not (tmp_path / "run").exists()
