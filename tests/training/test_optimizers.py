"""AdamW and Muon behind one face: who owns which parameter, in which units the learning rate is, what is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.optimizers import build_optimizer
from generative_adapter.training.recipe import TrainingRecipe, load_recipe
from generative_adapter.training.run import make_trainer
from generative_adapter.training.source_config import SourceConfig
from generative_adapter.training.state import list_checkpoints, load_checkpoint


def recipe(optimizer: str) -> TrainingRecipe:
    return TrainingRecipe(sources=(SourceConfig("facts"),), output="unused", optimizer=optimizer, weight_decay=0.0)


def with_gradients(generator: AdapterGenerator) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    for parameter in generator.parameters():
        parameter.grad = torch.randn(parameter.shape)
    return {name: parameter.detach().clone() for name, parameter in generator.named_parameters()}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_first_update_has_the_learning_rate_as_its_size(
    kind: str, random_generator: Callable[..., AdapterGenerator]
) -> None:
    generator = random_generator()
    before = with_gradients(generator)
    optimizer = build_optimizer(recipe(kind), generator)
    optimizer.set_learning_rate(1e-3)
    optimizer.step()
    for name, parameter in generator.named_parameters():
        size = (parameter.detach() - before[name]).square().mean().sqrt().item()
        assert 0.5e-3 < size < 1.5e-3, (name, size)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_all_but_the_outputs_learn_at_their_own_rate(
    kind: str, rate: float, random_generator: Callable[..., AdapterGenerator]
) -> None:
    generator = random_generator(value_shift=1, key_windows=(3, -2), window_gates=True, write_gate=True)
    before = with_gradients(generator)
    optimizer = build_optimizer(dataclasses.replace(recipe(kind), memory_rate=rate), generator)
    optimizer.set_learning_rate(1e-3)
    optimizer.step()
    for name, parameter in generator.named_parameters():
        size = (parameter.detach() - before[name]).square().mean().sqrt().item()
        expected = 1e-3 * (1.0 if name.endswith(".output_proj") else rate)
        assert size == pytest.approx(expected, rel=0.5, abs=1e-9), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_whitened_steps_are_relative_and_even_in_the_inputs(
    kind: str, random_generator: Callable[..., AdapterGenerator]
) -> None:
    """With one huge input direction a whitened step moves the outputs as much by it as by the others."""
    generator = random_generator(key_windows=(3,))
    with torch.no_grad():
        for target in generator.targets:
            generator[target.name].query_proj.mul_(50.0)
            generator[target.name].window_projs[0].zero_()
    spread = torch.ones(28)
    spread[3] = 40.0  # root mean square of the input's third coordinate; all others are 1
    whitener = torch.diag(1 / spread)
    whiteners = {
        name: whitener
        for name, parameter in generator.named_parameters()
        if parameter.ndim > 1 and not name.endswith("output_proj")
    }
    before = with_gradients(generator)
    for name, parameter in generator.named_parameters():
        if name in whiteners:
            assert parameter.grad is not None
            parameter.grad *= spread  # gradients of a projection are as uneven as its inputs
    optimizer = build_optimizer(dataclasses.replace(recipe(kind), memory_rate=0.5), generator, whiteners)
    optimizer.set_learning_rate(1e-2)
    optimizer.step()
    for name, parameter in generator.named_parameters():
        moved = parameter.detach() - before[name]
        if name not in whiteners:
            expected = 1e-2 * (1.0 if name.endswith(".output_proj") else 0.5)
        else:
            moved = moved * spread
            assert moved[:, 3].norm() < 3 * moved.norm() / 28**0.5, name
            size = (before[name] * spread).square().mean().sqrt().item()
            expected = 0.5e-2 * max(size, 0.1 / 28**0.5)
        assert moved.square().mean().sqrt().item() == pytest.approx(expected, rel=0.5), name
        assert set(optimizer.state[parameter])
    assert len(list(optimizer.state)) == len(list(generator.parameters()))
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_muon_orthogonalises_and_leaves_the_norms_to_adamw(random_generator: Callable[..., AdapterGenerator]) -> None:
    generator = random_generator()
    before = with_gradients(generator)
    optimizer = build_optimizer(recipe("muon"), generator)
    optimizer.set_learning_rate(1e-3)
    optimizer.step()
    for name, parameter in generator.named_parameters():
        kept = set(optimizer.state[parameter])
        if parameter.ndim == 1:
            assert kept == {"step", "exp_avg", "exp_avg_sq"}
            continue
        assert kept == {"momentum_buffer"}
        values = torch.linalg.svdvals(parameter.detach() - before[name])
        assert values[-1] > 0.4 * values[0], name  # a gradient's own singular values differ far more
    assert len(list(optimizer.state)) == len(list(generator.parameters()))
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in generator.parameters())


@pytest.mark.parametrize("whitening", [0, 12])
def test_muon_resumes_to_the_same_weights(
    whitening: int, base: BaseModel, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    def trained(folder: str, *, resume: bool = False, **settings: float) -> AdapterGenerator:
        path = write_recipe(
            optimizer="muon",
            num_steps=4,
            decay_share=0.0,
            whitening_contexts=whitening,
            output=str(tmp_path / folder),
        )
        trainer = make_trainer(load_recipe(path), base)
        if resume:
            newest = list_checkpoints(tmp_path / folder)[-1]
            trainer.progress.step = load_checkpoint(newest, trainer.generator, trainer.optimizer)["step"]
            assert trainer.progress.step == 2
        while trainer.progress.step < settings["until"]:
            trainer.train_step(trainer.progress.step)
            trainer.progress.step += 1
        trainer._checkpoint()
        return trainer.generator

    whole = trained("whole", until=4)
    trained("half", until=2)
    resumed = trained("half", resume=True, until=4)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
