"""Operations that a run records: those that torch counts, kept over a resume and in the generator's file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import load_generator, read_generator_info, save_generator
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.methods.generative_adapter import GenerativeAdapterMethod
from generative_adapter.methods.protocol import Context, Wording
from generative_adapter.methods.registry import build_method
from generative_adapter.methods.settings import MethodSettings
from generative_adapter.training.run import make_trainer, run_training

CHUNKED = {"state_dim": 16, "rank": 16, "scale": 0.5, "chunk_tokens": 23, "key_windows": [4, -4]}


@pytest.fixture
def eager(base: BaseModel) -> Iterator[None]:
    """Torch doesn't count its fused kernel on a CPU."""
    before = base.model.config._attn_implementation
    base.model.set_attn_implementation("eager")
    yield
    base.model.set_attn_implementation(before)


@pytest.mark.parametrize(
    "settings",
    [{}, {"generator": CHUNKED}, {"generator": CHUNKED, "distillation_weight": 0.5, "micro_batch_tokens": 100}],
    ids=["one chunk", "chunks", "teacher and parts"],
)
def test_steps_record_what_torch_counts(base: BaseModel, make_recipe: Callable, eager: None, settings: dict) -> None:
    chosen = make_recipe(attention="eager", **settings)
    trainer = make_trainer(chosen, base)
    for step in range(3):
        before = trainer.progress.flops
        batches = trainer.batches(trainer.sampler.step(step))
        states = len(trainer.generator.targets) * sum(len(batch.membership) for batch in batches)
        uncounted = 2 * 6 * 2 * chosen.generator.state_dim**3 * states  # products in place, two of each backward step
        with FlopCounterMode(display=False) as counter:
            trainer.train_step(step)
        assert trainer.progress.flops - before == pytest.approx(counter.get_total_flops() + uncounted, rel=0.005)


def test_flops_are_kept_over_a_resume_and_in_files(
    write_recipe: Callable[..., Path], base_folder: Path, base: BaseModel, tmp_path: Path
) -> None:
    whole = run_training(write_recipe(), output=tmp_path / "whole")
    run_training(write_recipe(), max_seconds=0, output=tmp_path / "parts")
    run_training(write_recipe(), max_seconds=0.1, resume=True, output=tmp_path / "parts")
    parts = run_training(write_recipe(), resume=True, output=tmp_path / "parts")
    recorded = [read_generator_info(result.generator)["training"]["flops"] for result in (whole, parts)]
    assert recorded[0] == recorded[1] > 0

    shipped = tmp_path / "shipped.safetensors"  # as scripts/ship_generator.py does
    save_generator(shipped, load_generator(whole.generator, base), dtype=torch.bfloat16)
    wording = Wording("task", "Q: {question}\nA:", "{context}\n\nQ: {question}\nA:", chat=False)
    method = build_method("generative-adapter", base, MethodSettings(wording, generator=shipped))
    assert method.costs(method.take_in(Context("Ada keeps bees.")), []).training_flops == recorded[0]
    assert isinstance(method, GenerativeAdapterMethod)

    later = run_training(write_recipe(initial_generator=str(shipped)), output=tmp_path / "later")
    assert read_generator_info(later.generator)["training"]["flops"] == 2 * recorded[0]


def test_runs_begun_without_a_record_have_none(
    write_recipe: Callable[..., Path], base: BaseModel, tmp_path: Path
) -> None:
    run_training(write_recipe(), max_seconds=0, output=tmp_path / "run")
    (path,) = (tmp_path / "run").glob("checkpoint-*/progress.json")
    saved = json.loads(path.read_text())
    del saved["flops"]
    path.write_text(json.dumps(saved))
    done = run_training(write_recipe(), resume=True, output=tmp_path / "run")
    assert read_generator_info(done.generator)["training"]["flops"] is None
    method = GenerativeAdapterMethod(GenerativeAdapter(base, load_generator(done.generator, base)))
    assert method.training_flops is None
