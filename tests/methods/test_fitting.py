"""Fine-tuning of all weights against a plain loop, and that the base model gets its own back, bit by bit."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from generative_adapter.base_model.fingerprint import base_model_fingerprint
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import ConfigError, TrainingError
from generative_adapter.methods.fitting import FitSettings, Sample, fit
from generative_adapter.methods.tuned_weights import FullWeights
from tiny_models import tiny_base

SAMPLES = [
    Sample((40, 41, 42, 43, 44, 45), 3),
    Sample((50, 51, 52), 2),
    Sample((60, 61, 62, 63, 64, 65, 66, 67, 68)),
    Sample((70, 71, 72, 73), 1),
    Sample((80, 81), 2),  # nothing to predict
]
SETTINGS = FitSettings(learning_rate=1e-3, max_epochs=2, batch_size=2)


@pytest.fixture
def base() -> BaseModel:
    return tiny_base("llama")


def check_unchanged(base: BaseModel) -> None:
    assert base_model_fingerprint(base.model) == base.fingerprint == tiny_base("llama").fingerprint
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert all(parameter.grad is None for parameter in base.model.parameters())


def mean_loss(model, samples: list[Sample]) -> torch.Tensor:
    """One sequence at a time."""
    losses = []
    for sample in samples:
        logits = model(input_ids=torch.tensor([sample.ids])).logits[0].log_softmax(dim=-1)
        losses += [-logits[t - 1, sample.ids[t]] for t in range(max(1, sample.num_given), len(sample.ids))]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("max_batch_tokens", [8192, 1])
def test_a_step_is_that_of_a_plain_loop(base: BaseModel, max_batch_tokens: int) -> None:
    settings = FitSettings(
        learning_rate=1e-3, max_epochs=3, batch_size=9, weight_decay=0.1, max_batch_tokens=max_batch_tokens
    )
    done = fit(FullWeights(base), {}, SAMPLES, settings)
    model = copy.deepcopy(base.model).requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for epoch in range(3):
        loss = mean_loss(model, SAMPLES)
        assert done.losses[epoch] == pytest.approx(loss.item(), rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(done.values[name], parameter.detach(), atol=2e-4, rtol=1e-3)
    assert done.validation_losses == () and done.num_epochs == 3
    check_unchanged(base)


def test_seeds_decide(base: BaseModel) -> None:
    first, again = (fit(FullWeights(base), {}, SAMPLES, SETTINGS) for _ in range(2))
    assert all(torch.equal(first.values[name], again.values[name]) for name in first.values)
    other = fit(FullWeights(base), {}, SAMPLES, dataclasses.replace(SETTINGS, seed=1))
    assert first.losses == again.losses != other.losses


def test_it_goes_on_from_given_values(base: BaseModel) -> None:
    weights = FullWeights(base)
    first = fit(weights, {}, SAMPLES, SETTINGS)
    second = fit(weights, first.values, SAMPLES, SETTINGS)
    assert second.losses[0] < first.losses[0]
    with weights.applied(first.values):
        expected = mean_loss(base.model, SAMPLES).item()
        assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert fit(weights, first.values, SAMPLES, SETTINGS, SAMPLES).validation_losses[0] == pytest.approx(
        expected, rel=1e-4
    )
    check_unchanged(base)


def test_it_stops_when_validation_rises_in_a_row(base: BaseModel) -> None:
    against = [Sample((40, 41, 42, 99, 98, 97), 3)]  # what the samples say otherwise
    settings = FitSettings(learning_rate=3e-3, max_epochs=30, batch_size=9, patience=3)
    seen: list[tuple[int, int]] = []
    done = fit(FullWeights(base), {}, SAMPLES[:1], settings, against, lambda *epochs: seen.append(epochs))
    checked = done.validation_losses
    assert done.num_epochs == len(checked) - 1 < 30 and seen[-1] == (done.num_epochs, 30)
    assert checked[-1] > checked[-2] > checked[-3] > checked[-4]
    rises = [later > earlier for earlier, later in itertools.pairwise(checked)]
    assert [all(rises[i : i + 3]) for i in range(len(rises) - 2)] == [False] * (len(rises) - 3) + [True]
    with FullWeights(base).applied(done.values):
        assert mean_loss(base.model, against).item() == pytest.approx(min(checked), rel=1e-4)
    patient = fit(FullWeights(base), {}, SAMPLES[:1], dataclasses.replace(settings, patience=0, max_epochs=9), against)
    assert patient.num_epochs == 9


def test_small_steps_are_not_rounded_away() -> None:
    base = tiny_base("llama")
    base.model.to(torch.bfloat16)
    own = {name: parameter.clone() for name, parameter in base.model.named_parameters()}
    settings = FitSettings(learning_rate=1e-4, max_epochs=20, batch_size=9)
    done = fit(FullWeights(base), {}, SAMPLES, settings)
    name = "model.layers.1.mlp.down_proj.weight"
    moved = (done.values[name].float() - own[name].float()).abs().mean().item()
    assert moved > 7e-4  # a step moves a weight by less than the half of a bfloat16's last digit
    assert done.values[name].dtype == torch.bfloat16
    assert all(torch.equal(parameter, own[name]) for name, parameter in base.model.named_parameters())


def test_errors_leave_the_base_model_as_it_was(base: BaseModel) -> None:
    with pytest.raises(TrainingError, match="lower the learning rate"):
        fit(FullWeights(base), {}, SAMPLES, dataclasses.replace(SETTINGS, learning_rate=1e30, max_epochs=9))
    check_unchanged(base)
    with pytest.raises(TrainingError, match="no sample has a token to predict"):
        fit(FullWeights(base), {}, SAMPLES[-1:], SETTINGS)
    with pytest.raises(ConfigError, match="max_epochs must be positive"):
        dataclasses.replace(SETTINGS, max_epochs=0)
    with pytest.raises(ConfigError, match="patience must not be negative"):
        dataclasses.replace(SETTINGS, patience=-1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_flops_are_what_torch_counts(family: str) -> None:
    base = tiny_base(family)
    base.model.set_attn_implementation("eager")  # torch doesn't count its fused kernel on a CPU
    random = torch.Generator().manual_seed(0)
    samples = [Sample(tuple(torch.randint(9, 200, (n,), generator=random).tolist()), 5) for n in (90, 70, 61)]
    with FlopCounterMode(display=False) as counter:
        done = fit(FullWeights(base), {}, samples, SETTINGS, samples[:1])
    assert done.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
