"""The benchmark on a tiny model: its counts, its split, and a slow normalisation that has to show in it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.errors import ConfigError
from generative_adapter.evaluation import plain_training, speed_recipe, training_speed
from generative_adapter.evaluation.speed_recipe import segments_recipe
from generative_adapter.evaluation.time_split import LabelledSeconds
from generative_adapter.evaluation.training_speed import measure_training, split_step
from generative_adapter.generator import target_generator
from generative_adapter.training import objectives
from generative_adapter.training.sources import ContextSampler
from generative_adapter.training.token_cache import prepare

PARTS = {
    "base_forward",
    "generator_forward",
    "normalization_forward",
    "base_backward",
    "generator_backward",
    "normalization_backward",
    "optimizer",
    "rest",
}
SIZES: dict[str, Any] = {"num_segments": 2, "segment_tokens": 39, "chunk_tokens": 13, "state_dim": 5}


def test_segments_have_the_sizes_asked_for(tiny_llama_base: BaseModel, tmp_path: Path) -> None:
    recipe = segments_recipe(tmp_path, num_segments=3, segment_tokens=39, chunk_tokens=13, state_dim=5)
    prepare(recipe, tiny_llama_base.tokenizer)
    items = ContextSampler(recipe, tiny_llama_base.tokenizer).step(0)
    assert [[len(chunk) for chunk in item.chunks] for item in items] == [[13, 13, 13]] * 3
    assert all(item.completion and len(item.segments) == 3 for item in items)
    with pytest.raises(ConfigError, match="longer than a chunk"):
        segments_recipe(tmp_path, segment_tokens=13, chunk_tokens=13)


def test_measures_both_on_the_same_texts(tiny_llama_base: BaseModel, tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    recipe = segments_recipe(tmp_path, **SIZES)
    result = measure_training(
        recipe, 3, 1, base=tiny_llama_base, progress=lambda step, total: done.append((step, total))
    )
    assert result.plain is not None and result.plain_batched is not None and result.split is not None
    # Two segments of 39 tokens are read and reconstructed.
    assert result.tokens_per_step == 2 * 2 * 39
    assert result.ours.first_loss == pytest.approx(result.plain.first_loss, rel=1e-5)
    assert result.ours.first_loss == pytest.approx(result.plain_batched.first_loss, rel=1e-5)
    assert result.batched_ratio == pytest.approx(result.ours.tokens_per_second / result.plain_batched.tokens_per_second)
    assert result.ratio == pytest.approx(result.ours.tokens_per_second / result.plain.tokens_per_second)
    assert result.ours.tokens_per_second == pytest.approx(156 / result.ours.median_step_seconds, rel=1e-6)
    assert (result.num_steps, result.state_dim, result.dtype, result.device) == (3, 5, "float32", "cpu")
    assert (result.attention, result.plain_attention) == (recipe.attention, "sdpa")
    assert result.num_threads == torch.get_num_threads()
    assert done == [(1, 6), (2, 6), (3, 6), (4, 6), (6, 6)]
    assert result.split.keys() == PARTS
    assert sum(part.share for part in result.split.values()) == pytest.approx(1)
    assert all(part.seconds > 0 for part in result.split.values())
    json.dumps(result.to_dict())


def test_plain_implementation_can_be_left_out(tiny_llama_base: BaseModel, tmp_path: Path) -> None:
    result = measure_training(segments_recipe(tmp_path, **SIZES), 1, 0, plain=False, base=tiny_llama_base)
    assert result.plain is None and result.ratio is None
    with pytest.raises(ConfigError, match="measured steps"):
        measure_training(segments_recipe(tmp_path, **SIZES), 0, base=tiny_llama_base)
    with pytest.raises(ConfigError, match="warm-up"):
        measure_training(segments_recipe(tmp_path, **SIZES), 1, -1, base=tiny_llama_base)


def test_each_attends_by_its_own_kernel(
    tiny_llama_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def watch(part: Any, name: str) -> None:
        own = part.attention_kernel

        def watched(model: Any, kernel: str) -> Any:
            seen.append(f"{name} {kernel}")
            return own(model, kernel)

        monkeypatch.setattr(part, "attention_kernel", watched)

    watch(plain_training, "plain")
    watch(objectives, "ours")
    kept: list[bool] = []
    monkeypatch.setattr(training_speed, "keep_memory_blocks", lambda: kept.append(True))
    recipe = segments_recipe(tmp_path, **SIZES, device="cpu")
    measure_training(recipe, 1, 0, base=tiny_llama_base, plain_attention="sdpa")
    assert set(seen) == {"ours grouped", "plain sdpa"}
    assert kept == [True]


def test_long_chunks_attend_by_sdpa(tmp_path: Path) -> None:
    recipe = segments_recipe(tmp_path, segment_tokens=514, chunk_tokens=257, device="cpu")
    assert (recipe.attention, recipe.device) == ("sdpa", "cpu")


class SlowFrobenius(torch.autograd.Function):
    """A normalisation that sleeps, longer in the backward."""

    @staticmethod
    def forward(ctx: Any, state: Tensor) -> Tensor:
        norm = state.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-6)
        ctx.save_for_backward(norm)
        time.sleep(0.05)
        return state / norm

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        time.sleep(0.1)
        return gradients[0] / ctx.saved_tensors[0]


def test_a_slow_normalization_shows(
    tiny_llama_base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_generator, "normalize", lambda state, *_rest: SlowFrobenius.apply(state))
    result = measure_training(segments_recipe(tmp_path, **SIZES), 3, 1, plain=False, base=tiny_llama_base)
    assert result.split is not None and result.generator_share is not None
    parts = {name: part.seconds for name, part in result.split.items()}
    # Two target layers, each normalised once a step for all prefixes.
    assert parts["normalization_forward"] == pytest.approx(0.1, rel=0.5)
    assert parts["normalization_backward"] == pytest.approx(0.2, rel=0.5)
    assert result.split["normalization_backward"].share > 0.3
    assert result.generator_share == pytest.approx(
        sum(part.share for name, part in result.split.items() if name.startswith(("generator", "normalization")))
    )


def test_split_by_hand() -> None:
    """Parts of the step of median length, in the proportions of a profile that ran at half the speed."""
    steps = [
        {"step_seconds": length, "forward_seconds": 4.0, "backward_seconds": 5.0, "optimizer_seconds": 0.5}
        for length in (9.9, 10.0, 30.0)
    ]
    slowed = [{"step_seconds": 20.0, "forward_seconds": 8.0, "backward_seconds": 10.0, "optimizer_seconds": 1.0}] * 2
    labelled = LabelledSeconds({"generator": 2.0, "normalization": 4.0}, {"generator": 1.0, "normalization": 8.0})
    split = split_step(steps, slowed, labelled)
    assert {name: part.seconds for name, part in split.items()} == pytest.approx(
        {
            "base_forward": 2.5,
            "generator_forward": 0.5,
            "normalization_forward": 1.0,
            "base_backward": 2.75,
            "generator_backward": 0.25,
            "normalization_backward": 2.0,
            "optimizer": 0.5,
            "rest": 0.5,
        }
    )
    assert split["rest"].share == pytest.approx(0.05)


@pytest.mark.parametrize("fast", [True, False])
def test_the_number_format_of_the_backward_follows_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    best = torch.bfloat16 if fast else torch.float32
    monkeypatch.setattr(speed_recipe, "choose_dtype", lambda dtype, device: best)
    recipe = segments_recipe(tmp_path, **SIZES, device="cpu")
    assert recipe.normalization_backward == ("bfloat16" if fast else "float32")
