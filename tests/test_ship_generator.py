"""`scripts/ship_generator.py`: the mean of the weights of several generators."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.checkpoint import load_generator, save_generator
from tiny_models import tiny_checkpoint

SCRIPT = Path(__file__).parents[1] / "scripts" / "ship_generator.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ship_generator", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def paths(tiny_llama_base: BaseModel, tmp_path: Path) -> list[Path]:
    """Three generators whose weights are 0, 1 and 4 more than those of the first."""
    found = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, path in enumerate(found):
        checkpoint = tiny_checkpoint(tiny_llama_base)
        with torch.no_grad():
            for weight in checkpoint.generator.parameters():
                weight.add_(number**2)
        save_generator(path, replace(checkpoint, training={"step": number}))
    return found


def test_the_mean_of_several_is_named_and_between_them(tiny_llama_base, script, paths):
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


def test_weights_count_and_a_file_keeps_float32(tiny_llama_base, script, paths, tmp_path, monkeypatch, capsys):
    output = tmp_path / "mean.safetensors"
    monkeypatch.setattr(script, "load_base_model", lambda: tiny_llama_base)
    monkeypatch.setattr(script, "TARGET", tmp_path / "shipped.safetensors")
    command = ["ship_generator.py", *map(str, paths), "--weights", "5", "2", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(output)])
    script.main()
    assert not script.TARGET.exists() and str(output) in capsys.readouterr().out
    made = load_generator(output, tiny_llama_base)
    assert made.training["mean_weights"] == [0.625, 0.25, 0.125]
    first = load_generator(paths[0], tiny_llama_base)
    for own, weight in zip(made.generator.parameters(), first.generator.parameters(), strict=True):
        torch.testing.assert_close(own, weight + 0.75)
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    assert script.TARGET.stat().st_size < 0.8 * output.stat().st_size
    for weights in (["1", "2"], ["1", "2", "0"]):
        monkeypatch.setattr(sys, "argv", [*command[:4], "--weights", *weights])
        with pytest.raises(SystemExit):
            script.main()
