"""`genadapter train` on real models: a tiny one in a folder, and the embedded one for two steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from generative_adapter.base_model.loading import find_embedded_gguf
from generative_adapter.errors import BaseModelError
from tiny_models import tiny_base

Run = Callable[..., Result]
RESULT_KEYS = {
    *("status", "step", "seconds", "num_tokens", "real_token_share", "num_skipped", "generator", "evaluation"),
}


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    base = tiny_base("llama")
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config(base_folder: Path, tmp_path: Path) -> Path:
    values = {
        "output": str(tmp_path / "run"),
        "base_model": str(base_folder),
        "device": "cpu",
        "dtype": "float32",
        "generator": {"state_dim": 8, "rank": 8},
        "sources": [{"kind": "facts", "num_facts": [1, 2], "num_questions": 1}],
        "num_steps": 4,
        "contexts_per_step": 2,
        "log_steps": 2,
        "evaluation_contexts": 1,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def result_of(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def test_train_stop_and_resume(run: Run, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    arguments = ("train", config, "--output", folder, "--json", "--set", "num_steps=100000")
    stopped = result_of(run(*arguments, "--set", "evaluation_steps=0", "--max-seconds", "0.3"))
    assert stopped.keys() == RESULT_KEYS
    assert stopped["status"] == "out_of_time"
    assert 0 < stopped["step"] < 100_000
    assert stopped["generator"] == str(folder / "generator.safetensors")
    goal = stopped["step"] + 3
    finished = result_of(run("train", config, "--output", folder, "--json", "--resume", "--set", f"num_steps={goal}"))
    assert (finished["status"], finished["step"]) == ("finished", goal)
    assert finished["evaluation"]["0-facts"]["num_answers"] == 1
    assert json.loads((folder / "recipe.json").read_text())["num_steps"] == goal
    assert not (tmp_path / "run").exists()


def test_the_result_can_be_looked_at(run: Run, config: Path, tmp_path: Path) -> None:
    result = run("train", config, "--set", "generator.scale=0.25", "--set", "sources.0.num_facts=[2, 2]")
    assert result.exit_code == 0
    assert "finished" in result.stdout and "real token share" in result.stdout
    info = run("info", tmp_path / "run" / "generator.safetensors", "--json")
    assert info.exit_code == 0, info.stderr
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["generator"]["scale"] == 0.25


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "num_step=3"), "unknown setting 'num_step'; did you mean 'num_steps'?"),
        (("--set", "sources.0.num_fact=[1, 2]"), "did you mean 'num_facts'"),
        (("--set", "num_steps=soon"), "num_steps: expected int"),
        (("--set", "output=["), "no YAML value"),
        (("--resume",), "nothing to resume from"),
        (("--set", "sources=[{kind: text, paths: [gone.jsonl]}]"), "gone.jsonl: no such file"),
        (("--set", "base_model=/gone/away"), "/gone/away"),
        (("--set", "initial_generator=gone.safetensors"), "no generator file at gone.safetensors"),
        (("--set", "device=abacus"), "device 'abacus' is unknown"),
        (("--max-seconds", "-1"), "more than 0"),
    ],
)
def test_bad_input_is_told_in_one_line(
    fails: Callable[..., str], config: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    assert said in fails("train", config, *arguments)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_key_in_the_file(fails: Callable[..., str], config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("num_steps", "nmu_steps"))
    assert "did you mean 'num_steps'" in fails("train", config)
    assert "there is no such config file" in fails("train", tmp_path / "gone.yaml")
    config.write_bytes(b"\xff\xff")
    assert "can't read the recipe" in fails("train", config)


def test_an_existing_run_needs_resume(run: Run, fails: Callable[..., str], config: Path) -> None:
    assert run("train", config).exit_code == 0
    assert "pass --resume or another --output" in fails("train", config)


@pytest.mark.embedded
@pytest.mark.slow
def test_two_steps_on_the_embedded_model(run: Run, config: Path, tmp_path: Path) -> None:
    try:
        find_embedded_gguf()
    except BaseModelError as error:
        pytest.skip(str(error))
    overrides = ["base_model=embedded", "dtype=auto", "num_steps=2", "generator.layers=[3, 17]", "warmup_steps=0"]
    result = result_of(run("train", config, "--json", *(part for item in overrides for part in ("--set", item))))
    assert (result["status"], result["step"], result["num_skipped"]) == ("finished", 2, 0)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["training", "evaluation"]
    assert 0 < lines[0]["answer_loss"] < 15
    assert lines[0]["gradient_norm"] > 0
