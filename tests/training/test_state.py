"""Checkpoints of a run: complete or absent, the newest few kept, damage told."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import GeneratorCheckpoint
from generative_adapter.config import GeneratorConfig, PromptConfig
from generative_adapter.errors import CheckpointError
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.state import list_checkpoints, load_checkpoint, save_checkpoint


def stepped(generator: AdapterGenerator, num_steps: int = 2) -> AdamW:
    """An optimiser after some steps with random gradients."""
    optimizer = AdamW(generator.parameters(), lr=0.01)
    for _ in range(num_steps):
        for parameter in generator.parameters():
            parameter.grad = torch.randn(parameter.shape)
        optimizer.step()
    optimizer.zero_grad()
    return optimizer


def tensors(generator: AdapterGenerator, optimizer: AdamW) -> dict[str, Tensor]:
    found = {f"weight {name}": parameter.detach().clone() for name, parameter in generator.named_parameters()}
    for name, parameter in generator.named_parameters():
        found |= {f"{key} {name}": value.clone() for key, value in optimizer.state[parameter].items()}
    return found


@pytest.fixture
def save(base: BaseModel, tmp_path: Path) -> Callable[..., Path]:
    def write(generator: AdapterGenerator, optimizer: AdamW, step: int, **keywords: Any) -> Path:
        config = GeneratorConfig(state_dim=7, rank=7, scale=0.5)
        checkpoint = GeneratorCheckpoint(generator, config, PromptConfig(), base.name, base.fingerprint)
        return save_checkpoint(tmp_path / "run", checkpoint, optimizer, {"step": step, "seconds": 1.5}, **keywords)

    return write


def test_round_trip(random_generator: Callable[..., AdapterGenerator], save: Callable[..., Path]) -> None:
    generator = random_generator()
    optimizer = stepped(generator)
    path = save(generator, optimizer, 17)
    assert path.name == "checkpoint-00000017"
    assert sorted(file.name for file in path.iterdir()) == [
        "generator.safetensors",
        "optimizer.safetensors",
        "progress.json",
    ]
    other = random_generator()
    other_optimizer = stepped(other, 1)
    assert load_checkpoint(path, other, other_optimizer) == {"step": 17, "seconds": 1.5}
    saved, loaded = tensors(generator, optimizer), tensors(other, other_optimizer)
    assert saved.keys() == loaded.keys() and len(saved) == 4 * len(list(generator.parameters()))
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_before_the_first_step_there_is_no_optimiser_state(
    random_generator: Callable[..., AdapterGenerator], save: Callable[..., Path]
) -> None:
    generator, other = random_generator(), random_generator(scale=0.25)
    path = save(generator, AdamW(generator.parameters()), 0)
    optimizer = AdamW(other.parameters())
    assert load_checkpoint(path, other, optimizer)["step"] == 0
    assert not optimizer.state


def test_the_newest_two_are_kept(
    random_generator: Callable[..., AdapterGenerator], save: Callable[..., Path], tmp_path: Path
) -> None:
    generator = random_generator()
    for step in (3, 20, 100):
        save(generator, stepped(generator), step)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-00000020", "checkpoint-00000100"]
    save(generator, stepped(generator), 101, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-00000101"]


def test_what_a_kill_leaves_behind_is_ignored_and_removed(
    random_generator: Callable[..., AdapterGenerator], save: Callable[..., Path], tmp_path: Path
) -> None:
    generator = random_generator()
    first = save(generator, stepped(generator), 5)
    half = tmp_path / "run" / ".checkpoint-00000009.4242.tmp"
    shutil.copytree(first, half)
    (half / "optimizer.safetensors").write_bytes(b"\0" * 10)
    bare = tmp_path / "run" / "checkpoint-00000008"
    bare.mkdir()
    assert list_checkpoints(tmp_path / "run") == [first]
    second = save(generator, stepped(generator), 10)
    assert list_checkpoints(tmp_path / "run") == [first, second]
    assert not half.exists()
    bare.rmdir()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {first.name, second.name}


def test_a_kill_while_an_old_one_is_removed(
    random_generator: Callable[..., AdapterGenerator],
    save: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = random_generator()
    save(generator, stepped(generator), 1, keep=1)

    def interrupted(folder: Path, **_: object) -> None:
        for path in sorted(Path(folder).glob("*.safetensors")):
            path.unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", interrupted)
        save(generator, stepped(generator), 2, keep=1)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["checkpoint-00000002"]
    save(generator, stepped(generator), 3, keep=1)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-00000003"]


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_failed_write_keeps_what_was_there(
    random_generator: Callable[..., AdapterGenerator],
    save: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    generator = random_generator()
    first = save(generator, stepped(generator), 5)

    def fail(*_arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="no space"):
        save(generator, stepped(generator), 6)
    assert [path for path in (tmp_path / "run").iterdir()] == [first]
    assert load_checkpoint(first, generator, stepped(generator))["step"] == 5


def test_saving_a_step_again_leaves_its_checkpoint_alone(
    random_generator: Callable[..., AdapterGenerator], save: Callable[..., Path]
) -> None:
    """A resumed run that stops at once must not take away, even for a moment, the one checkpoint there is."""
    generator = random_generator()
    path = save(generator, stepped(generator), 5)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert save(generator, stepped(generator), 5) == path
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def test_weights_that_are_not_finite_are_not_written(
    random_generator: Callable[..., AdapterGenerator], save: Callable[..., Path], tmp_path: Path
) -> None:
    generator = random_generator()
    optimizer = stepped(generator)
    with torch.no_grad():
        next(generator.parameters())[0] = float("nan")
    with pytest.raises(CheckpointError, match="non-finite"):
        save(generator, optimizer, 5)
    assert not list((tmp_path / "run").iterdir())


def damage(path: Path, how: str) -> None:
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-7])
    elif how == "noise":
        path.write_bytes(b"\xff" * 300)
    else:
        path.write_text(how)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("generator.safetensors", "missing"),
        ("generator.safetensors", "truncated"),
        ("generator.safetensors", "noise"),
        ("optimizer.safetensors", "missing"),
        ("optimizer.safetensors", "truncated"),
        ("progress.json", "truncated"),
        ("progress.json", "noise"),
        ("progress.json", "{}"),
        ("progress.json", "[1]"),
    ],
)
def test_damage_is_told(
    random_generator: Callable[..., AdapterGenerator], save: Callable[..., Path], name: str, how: str
) -> None:
    generator = random_generator()
    path = save(generator, stepped(generator), 5)
    damage(path / name, how)
    with pytest.raises(CheckpointError, match=r"checkpoint-00000005 can't be resumed from: .*; remove it"):
        load_checkpoint(path, generator, stepped(generator))


def test_another_form_is_refused(random_generator: Callable[..., AdapterGenerator], save: Callable[..., Path]) -> None:
    generator = random_generator()
    path = save(generator, stepped(generator), 5)
    for settings in ({"state_dim": 5, "rank": 5}, {"layers": (0, 1)}, {"hidden_norm": False}):
        other = random_generator(**settings)
        with pytest.raises(CheckpointError, match=r"has shape|missing|unknown"):
            load_checkpoint(path, other, stepped(other))


def test_only_plain_numbers_in_progress(
    random_generator: Callable[..., AdapterGenerator], save: Callable[..., Path]
) -> None:
    generator = random_generator()
    path = save(generator, stepped(generator), 5)
    assert json.loads((path / "progress.json").read_text()) == {"step": 5, "seconds": 1.5}
