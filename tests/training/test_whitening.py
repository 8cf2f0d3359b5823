"""Second moments of what projections read, against a loop over contexts and questions one at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from generative_adapter.base_model.capture import capture_block_inputs
from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.training.batches import ContextItem, Segment, assemble
from generative_adapter.training.recipe import load_recipe
from generative_adapter.training.run import make_trainer
from generative_adapter.training.whitening import DAMPING, measure_whiteners


def random_items() -> list[ContextItem]:
    """Contexts of one chunk with more tokens in all, and more in questions, than hidden states are wide."""
    rng = random.Random(2)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(10, 600) for _ in range(count))

    return [
        ContextItem((tokens(length),), tuple(Segment(tokens(n), n - 3, 1, "answer") for n in (5, 9, 12)))
        for length in (19, 30, 11)
    ]


ITEMS = random_items()


def inverse_root(moment: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(moment.double())
    root = (values.clamp_min(0) + DAMPING * values.clamp_min(0).median()) ** -0.5
    return (vectors @ torch.diag(root / root.square().mean().sqrt()) @ vectors.mT).float()


def slow_moments(base: BaseModel, generator: AdapterGenerator, hidden_norm: bool) -> dict[str | int, Tensor]:
    """Sums over context tokens of each block's input, and over question tokens of each target's."""
    sums: dict[str | int, Tensor] = {}
    questions: dict[str, list[Tensor]] = {target.name: [] for target in generator.targets}
    last: dict[str, list[bool]] = {target.name: [] for target in generator.targets}
    for item in ITEMS:
        hidden = capture_block_inputs(base.model, generator.layers, torch.tensor([item.chunks[0]]))
        for layer, rows in hidden.items():
            for row in rows[0]:
                row = row / (row.square().mean() + 1e-6).sqrt() if hidden_norm else row
                sums[layer] = sums.get(layer, torch.zeros(28, 28)) + torch.outer(row, row)
        for segment in item.segments:
            for name, found in questions.items():
                handle = find_linear(base.model, name).register_forward_pre_hook(
                    lambda _module, args, found=found: found.extend(args[0][0].detach().clone())
                )
                with torch.no_grad():
                    base.model(input_ids=torch.tensor([segment.ids]))
                handle.remove()
                last[name] += [segment.num_prompt - 1 <= i < len(segment.ids) - 1 for i in range(len(segment.ids))]
    for name, rows in questions.items():
        share = 0.1 * sum(last[name]) / len(rows)
        sums[name] = sum(
            (
                torch.outer(row, row) * (1.0 if answers else share)
                for row, answers in zip(rows, last[name], strict=True)
            ),
            torch.zeros(len(rows[0]), len(rows[0])),
        )
    return sums


@pytest.mark.parametrize("hidden_norm", [True, False])
@pytest.mark.parametrize("value_layer", [None, 0])
def test_whiteners_are_inverse_roots_of_second_moments(
    value_layer: int | None, hidden_norm: bool, base: BaseModel, random_generator: Callable[..., AdapterGenerator]
) -> None:
    targets = ("attention_output", "feed_forward_down")
    generator = random_generator(
        hidden_norm=hidden_norm,
        targets=targets,
        layers=(1, 2),
        value_layer=value_layer,
        key_windows=(3,),
        window_gates=True,
        write_gate=True,
    )
    moments = slow_moments(base, generator, hidden_norm)
    found = measure_whiteners(base, generator, [assemble(ITEMS, pad_id=0, start_ids=(), row_tokens=32)])
    expected = set()
    for index, target in enumerate(generator.targets):
        own = f"generators.{index}."
        keys = [f"{own}{name}" for name in ("key_proj", "window_projs.0", "gate_proj", "write_proj")]
        of_layer = inverse_root(moments[target.layer])
        for name in keys:
            torch.testing.assert_close(found[name], of_layer, rtol=2e-3, atol=2e-3)
        values = inverse_root(moments[target.layer if value_layer is None else value_layer])
        torch.testing.assert_close(found[f"{own}value_proj"], values, rtol=2e-3, atol=2e-3)
        queries = inverse_root(moments[target.name])
        torch.testing.assert_close(found[f"{own}query_proj"], queries, rtol=2e-3, atol=2e-3)
        expected |= {*keys, f"{own}value_proj", f"{own}query_proj"}
    assert set(found) == expected


def test_a_run_measures_only_when_asked(base: BaseModel, write_recipe: Callable[..., Path]) -> None:
    assert not make_trainer(load_recipe(write_recipe()), base).optimizer.whitened
    trainer = make_trainer(load_recipe(write_recipe(whitening_contexts=9)), base)
    names = {id(parameter): name for name, parameter in trainer.generator.named_parameters()}
    moved = {names[id(each.parameter)].rsplit(".", 1)[-1] for each in trainer.optimizer.whitened}
    assert moved == {"value_proj", "key_proj", "query_proj"}
