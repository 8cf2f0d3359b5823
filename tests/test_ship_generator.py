"""`scripts/ship_generator.py`: the mean of the weights of several generators."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import torch

from generative_adapter.checkpoint import load_generator, save_generator
from tiny_models import tiny_checkpoint

SCRIPT = Path(__file__).parents[1] / "scripts" / "ship_generator.py"


def test_the_mean_of_several_is_named_and_between_them(tiny_llama_base, tmp_path):
    spec = importlib.util.spec_from_file_location("ship_generator", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, path in enumerate(paths):
        checkpoint = tiny_checkpoint(tiny_llama_base)
        with torch.no_grad():
            for weight in checkpoint.generator.parameters():
                weight.add_(number**2)
        save_generator(path, replace(checkpoint, training={"step": number}))
    alone = script.mean_generator(paths[1:2], tiny_llama_base)
    assert dict(alone.training) == {"step": 1}
    assert alone.fingerprint == load_generator(paths[1], tiny_llama_base).fingerprint
    mean = script.mean_generator(paths, tiny_llama_base)
    assert dict(mean.training) == {"step": 2, "mean_of": [str(path) for path in paths]}
    first = load_generator(paths[0], tiny_llama_base)
    for own, weight in zip(mean.generator.parameters(), first.generator.parameters(), strict=True):
        torch.testing.assert_close(own, weight + 5 / 3)
    buffers = dict(load_generator(paths[2], tiny_llama_base).generator.named_buffers())
    assert all(torch.equal(own, buffers[name]) for name, own in mean.generator.named_buffers())
