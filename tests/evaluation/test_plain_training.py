"""The plain loss against the project's pass, by an exact normalisation and by the randomised one where it is exact."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from generative_adapter.base_model.generator_building import build_generator
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import start_ids
from generative_adapter.errors import ConfigError
from generative_adapter.evaluation import plain_training
from generative_adapter.evaluation.plain_training import (
    Normalizer,
    PlainTrainer,
    count_labels,
    plain_losses,
    svd_lowrank_polar,
)
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.generator.normalization import normalize
from generative_adapter.training import objectives
from generative_adapter.training.batches import OBJECTIVES, Batch, ContextItem, Segment, assemble
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.source_config import SourceConfig
from tiny_models import PAD, randomize, tiny_base, tiny_config

WEIGHTS = {"answer": 1.0, "reconstruction": 0.3, "completion": 0.7}


@pytest.fixture(params=[False, True], ids=["no start token", "start token"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return tiny_base("llama", begin=request.param)


def text_items(base: BaseModel, lengths: list[tuple[int, ...]], answers: bool = False) -> list[ContextItem]:
    """Contexts with chunks of these lengths, to be reconstructed and completed."""
    rng = random.Random(1)
    start = tuple(start_ids(base.tokenizer))
    items = []
    for sizes in lengths:
        chunks = tuple(tuple(rng.randrange(10, 260) for _ in range(size)) for size in sizes)
        segments = [
            Segment((*start, *chunk), max(1, len(start)), level, "reconstruction")
            for level, chunk in enumerate(chunks, 1)
        ]
        if answers:
            segments.append(Segment((*start, 40, 41, 42, 43), 3, len(chunks), "answer"))
            segments.append(Segment((*start, 50, 51), 1 + len(start), 1, "answer"))
        items.append(ContextItem(chunks, tuple(segments), completion=True))
    return items


def laid_out(base: BaseModel, items: list[ContextItem]) -> Batch:
    return assemble(items, pad_id=PAD, start_ids=start_ids(base.tokenizer), row_tokens=16)


def taken_together(
    generator: AdapterGenerator, losses: Tensor, kinds: Tensor, counts: dict[str, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Sorted losses of each objective, and the gradients of the step's loss."""
    generator.zero_grad()
    objectives.weighted_loss(losses, kinds, counts, WEIGHTS).backward()
    by_kind = {name: losses.detach()[kinds == i].sort().values for i, name in enumerate(OBJECTIVES)}
    return by_kind, {name: p.grad.clone() for name, p in generator.named_parameters() if p.grad is not None}


LENGTHS = {
    "equal": [(11, 11, 11), (11, 11, 11)],
    "unequal": [(11, 9, 3), (10,), (12, 8), (11, 11, 11, 5)],
}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("exact", [True, False], ids=["svd", "svd_lowrank"])
def test_same_losses_and_gradients_as_the_parallel_pass(
    base: BaseModel, lengths: list[tuple[int, ...]], exact: bool
) -> None:
    """The exact SVD keeps 5 of 7 directions; the randomised one all of 3, where it is exact too."""
    sizes = {"state_dim": 7, "rank": 5} if exact else {"state_dim": 3, "rank": 3}
    generator = randomize(build_generator(tiny_config(**sizes, scale=0.2), base))
    items = text_items(base, lengths, answers=True)
    batch = laid_out(base, items)
    counts = objectives.count_labels([batch])
    assert counts == count_labels(items, len(start_ids(base.tokenizer)))

    result = objectives.token_losses(base, generator, batch)
    ours = taken_together(generator, result.losses, batch.objectives, counts)
    torch.manual_seed(0)
    normalize_plainly: Normalizer = generator.normalize if exact else lambda s: svd_lowrank_polar(s, 3)
    plain = taken_together(generator, *plain_losses(base, generator, items, normalize_plainly), counts)
    for name in OBJECTIVES:
        torch.testing.assert_close(plain[0][name], ours[0][name], rtol=1e-3, atol=1e-3)
    assert ours[1].keys() == plain[1].keys()
    for name, gradient in ours[1].items():
        assert gradient.abs().max() > 0, name
        assert (plain[1][name] - gradient).norm() <= 2e-2 * gradient.norm(), name


def test_the_adapters_matter(base: BaseModel) -> None:
    """Without them the losses are others, so that the comparison above can fail."""
    generator = randomize(build_generator(tiny_config(scale=0.2), base))
    items = text_items(base, LENGTHS["equal"])
    losses, _ = plain_losses(base, generator, items, generator.normalize)
    nothing, _ = plain_losses(base, generator, items, torch.zeros_like)
    assert (losses - nothing).abs().mean() > 0.05


def test_svd_lowrank_is_the_polar_factor_where_it_can_be_exact() -> None:
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(5, 7, 7)).Q for _ in range(2))
    states = (left * torch.linspace(1, 3, 7)) @ right
    states.requires_grad_()
    probe = torch.randn(5, 7, 7)
    expected = torch.autograd.grad((normalize(states, "svd", 7) * probe).sum(), states)[0]
    found = svd_lowrank_polar(states, 7)
    torch.testing.assert_close(found, left @ right, rtol=1e-4, atol=1e-4)
    gradient = torch.autograd.grad((found * probe).sum(), states)[0]
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


def test_states_whose_singular_values_coincide_give_zeros_and_no_gradient() -> None:
    torch.manual_seed(0)
    states = torch.stack([torch.zeros(4, 4), torch.diag(torch.tensor([4.0, 3, 2, 1]))]).requires_grad_()
    polar = svd_lowrank_polar(states, 4)
    assert polar[0].eq(0).all()
    torch.testing.assert_close(polar[1], torch.eye(4))
    polar.square().sum().backward()
    assert states.grad is not None and states.grad.isfinite().all() and states.grad[0].eq(0).all()


def plain_recipe(**settings: Any) -> TrainingRecipe:
    values: dict[str, Any] = {
        "generator": tiny_config(state_dim=7, rank=5, scale=0.2),
        "warmup_steps": 0,
        "learning_rate": 0.01,
        **settings,
    }
    return TrainingRecipe((SourceConfig("facts"),), "unused", **values)


@pytest.mark.parametrize("at_once", [None, 1, 2])
@pytest.mark.parametrize("micro_batch_tokens", [10_000, 60], ids=["one pass", "passes"])
def test_steps_lower_the_loss(
    base: BaseModel, micro_batch_tokens: int, at_once: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = plain_recipe(micro_batch_tokens=micro_batch_tokens)
    torch.manual_seed(0)
    trainer = PlainTrainer(recipe, base, build_generator(recipe.generator, base), at_once)
    items = text_items(base, LENGTHS["unequal"])
    real, sizes = plain_training.plain_losses, []

    def counted(base: BaseModel, generator: Any, part: Any, normalize: Any) -> Any:
        sizes.append(len(part))
        return real(base, generator, part, normalize)

    monkeypatch.setattr(plain_training, "plain_losses", counted)
    losses = [trainer.train_step(items, step) for step in range(8)]
    with torch.no_grad():
        batch = laid_out(base, items)
        untrained = objectives.token_losses(base, build_generator(recipe.generator, base), batch).losses
        first = objectives.weighted_loss(
            untrained, batch.objectives, objectives.count_labels([batch]), dict.fromkeys(OBJECTIVES, 1.0)
        )
    assert losses[0] == pytest.approx(first.item(), rel=1e-4)
    assert losses[-1] < losses[0] - 0.1
    assert sum(sizes) == 8 * len(items) and max(sizes) <= (at_once or len(items))


def test_losses_it_lacks_are_refused(base: BaseModel) -> None:
    recipe = plain_recipe(distillation_weight=0.5)
    with pytest.raises(ConfigError, match="distillation"):
        PlainTrainer(recipe, base, build_generator(recipe.generator, base))
