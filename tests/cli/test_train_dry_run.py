"""`genadapter train CONFIG --dry-run`: every shipped recipe, offline, without data of one's own; nothing is written."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from generative_adapter.training.recipe import load_recipe

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
PARAMETERS = {"mistral": 7.24e9, "llama": 6.74e9, "qwen3": 4.02e9, "smollm2": 0.1345e9}


@pytest.fixture(autouse=True)
def empty_place_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    def refuse(*_: Any) -> None:
        raise OSError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def own_files(tmp_path: Path):
    """Overrides that name a file of one's own wherever a recipe reads local files."""

    def overrides(config: Path) -> list[str]:
        text = tmp_path / "own.jsonl"
        text.write_text('{"text": "A line."}\n')
        recipe = load_recipe(config)
        pairs = [f"sources.{i}.paths=[{text}]" for i, source in enumerate(recipe.sources) if source.paths]
        return [part for pair in pairs for part in ("--set", pair)]

    return overrides


WITH_ENCODER = [path for path in CONFIGS if load_recipe(path).generator.encoder is not None]


@pytest.mark.parametrize("config", WITH_ENCODER, ids=lambda path: path.stem)
def test_a_recipe_with_an_encoder_has_no_dry_run_yet(fails, own_files, config: Path) -> None:
    told = fails("train", config, "--dry-run", *own_files(config))
    assert "a dry run of generators with an encoder is not possible" in " ".join(told.split())


@pytest.mark.parametrize("config", [path for path in CONFIGS if path not in WITH_ENCODER], ids=lambda path: path.stem)
def test_shipped_recipe(run, own_files, empty_place_without_network: Path, config: Path) -> None:
    result = run("train", config, "--dry-run", "--json", "--processes", 2, "--teraflops", 100, *own_files(config))
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    family = next(name for name in PARAMETERS if name in config.stem)
    assert plan["base_parameters"] == pytest.approx(PARAMETERS[family], rel=1e-3)
    assert plan["flops"]["total"] == pytest.approx(sum(v for k, v in plan["flops"].items() if k != "total"))
    assert plan["seconds"] == pytest.approx(plan["flops"]["total"] / 2e14, abs=1)
    assert plan["num_steps"] > 0 and plan["computed_tokens"] > plan["context_tokens"] > 0
    assert list(empty_place_without_network.iterdir()) == []


@pytest.mark.parametrize(
    "config", [path for path in CONFIGS if path.stem.startswith(("pretrain", "instruct"))], ids=lambda path: path.stem
)
def test_recipe_says_how_to_start_and_what_it_costs(own_files, run, config: Path) -> None:
    comment = "".join(line for line in config.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert f"#   genadapter train configs/{config.name}\n" in comment
    assert re.search(rf"torchrun --nproc-per-node \d --no-python genadapter train configs/{config.name}\n", comment)
    plan = json.loads(run("train", config, "--dry-run", "--json", *own_files(config)).stdout)
    assert f"{plan['num_steps']:,} steps" in comment
    told = re.search(r"([\d.]+) ([TPE])FLOP;", comment)
    assert told is not None
    unit = {"T": 1e12, "P": 1e15, "E": 1e18}[told[2]]
    assert float(told[1]) * unit == pytest.approx(plan["flops"]["total"], rel=0.01)


def test_table(run) -> None:
    config = next(path for path in CONFIGS if path.stem == "pretrain-mistral-7b-instruct-v0.2")
    result = run("train", config, "--dry-run", "--processes", 8, "--tokens-per-second", 200_000)
    assert result.exit_code == 0
    for shown in ("7,241,732,096 (7.24 B)", "537,001,984 (537 M)", "2.15 GB", "67.1 MB", "15,259", "2:46:40"):
        assert shown in result.stdout


def test_bad_input(fails, run, tmp_path: Path) -> None:
    config = tmp_path / "recipe.yaml"
    config.write_text("output: run\nsources:\n- {kind: text, paths: [none.jsonl]}\n")
    assert "none.jsonl: there is no such file" in fails("train", config, "--dry-run")
    own = ("--set", f"sources.0.paths=[{config}]")
    assert "belong to --dry-run" in fails("train", config, "--teraflops", 3)
    assert "belong to --dry-run" in fails("train", config, "--processes", 2)
    assert "not both" in fails("train", config, "--dry-run", "--teraflops", 3, "--tokens-per-second", 3, *own)
    assert "'some/model': its config is in no folder" in fails(
        "train", config, "--dry-run", "--set", "base_model=some/model", *own
    )
    assert run("train", config, "--dry-run", *own).exit_code == 0
