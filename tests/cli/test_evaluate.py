"""`genadapter eval perplexity` and `genadapter prepare` on a tiny model in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from generative_adapter.base_model.loading import load_base_model
from generative_adapter.checkpoint import load_generator
from generative_adapter.evaluation.perplexity import held_out_segments, measure_perplexity
from tiny_models import tiny_base

Run = Callable[..., Result]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} " + "abcdefgh" * (3 + i)}) + "\n" for i in range(9)))
    return path


@pytest.fixture
def config(tmp_path: Path, texts: Path) -> Path:
    base = tiny_base("llama")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    values: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "base_model": str(tmp_path / "base"),
        "cache": str(tmp_path / "cache"),
        "device": "cpu",
        "dtype": "float32",
        "generator": {"state_dim": 8, "rank": 8, "chunk_tokens": 6},
        "sources": [{"kind": "text", "paths": [str(texts)], "context_tokens": [18, 18]}],
        "num_steps": 2,
        "contexts_per_step": 2,
        "evaluation_contexts": 1,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_perplexity(run: Run, config: Path, texts: Path, tmp_path: Path) -> None:
    assert run("train", config).exit_code == 0
    generator = tmp_path / "run" / "generator.safetensors"
    flags = ("--generator", generator, "--base-model", tmp_path / "base", "--data", texts, "--dtype", "float32")
    sizes = ("--segments", 5, "--segment-tokens", 20, "--seed", 3)
    result = run("eval", "perplexity", *flags, *sizes, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    base = load_base_model(tmp_path / "base", device="cpu", dtype="float32")
    segments = held_out_segments(texts, base, 5, 20, 3)
    checkpoint = load_generator(generator, base)
    assert json.loads(result.stdout) == pytest.approx(
        measure_perplexity(base, checkpoint.generator, segments, 6).to_dict()
    )
    table = run("eval", "perplexity", *flags, *sizes, "--chunk-tokens", 20)
    assert "without an adapter" in table.stdout and "–" in table.stdout  # one chunk: nothing to complete


def test_prepare(run: Run, fails: Callable[..., str], config: Path, texts: Path, tmp_path: Path) -> None:
    result = run("prepare", config, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    (store,) = json.loads(result.stdout)["stores"]
    assert store["num_records"] == 9 and Path(store["folder"]).is_relative_to(tmp_path / "cache")
    assert "9 records" in run("prepare", config).stdout
    assert "nothing to prepare" in run("prepare", config, "--set", "sources=[{kind: facts}]").stdout
    lines = texts.read_text().splitlines()
    texts.write_text("\n".join([*lines[:4], '{"txet": "lost"}', *lines[5:]]) + "\n")
    for command in (("prepare", config), ("train", config)):
        assert "texts.jsonl, line 5" in fails(*command)
    assert not (tmp_path / "run").exists()
    texts.write_bytes(b'{"text": "good one"}\n{"text": "ba\xff\xfe"}\n')
    assert "UTF-8" in fails("prepare", config)


def test_bad_input(fails: Callable[..., str], config: Path, texts: Path, tmp_path: Path) -> None:
    assert "there is no such config file" in fails("prepare", tmp_path / "none.yaml")
    assert "did you mean 'sources'" in fails("prepare", config, "--set", "sourcess=[]")
    assert "none.jsonl" in fails("prepare", config, "--set", "sources.0.paths=[none.jsonl]")
    assert "no such file" in fails("eval", "perplexity", "--data", tmp_path / "none.jsonl")
