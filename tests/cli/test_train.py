from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from generative_adapter.errors import TrainingError
from generative_adapter.training import run as training_run


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("num_steps: 3\n")
    return path


@pytest.fixture
def arguments(monkeypatch):
    """What `run_training` was given."""
    given = {}

    def run_training(**keywords):
        given.update(keywords)
        keywords["progress"]({"kind": "evaluation", "step": 1})
        keywords["progress"](
            {
                "kind": "training",
                "step": 1,
                "num_steps": 3,
                "loss": 2.5,
                "tokens_per_second": 10.0,
                "seconds_left": 61.0,
            }
        )
        return SimpleNamespace(to_dict=lambda: {"status": "finished", "step": 3, "seconds": 1.25})

    monkeypatch.setattr(training_run, "run_training", run_training)
    return given


def test_settings_are_handed_on(run, arguments, config, tmp_path):
    flags = ["--set", "a.b=1", "--set", "c=x=y", "--max-seconds", 60, "--resume", "--output", tmp_path / "out"]
    result = run("train", config, *flags, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {"status": "finished", "step": 3, "seconds": 1.25}
    assert result.stderr == ""
    assert arguments.pop("progress") is not None
    assert arguments == {
        "config_path": config,
        "overrides": ["a.b=1", "c=x=y"],
        "max_seconds": 60.0,
        "resume": True,
        "output": tmp_path / "out",
    }


def test_table(run, arguments, config):
    result = run("train", config)
    assert "finished" in result.stdout
    assert (arguments["overrides"], arguments["max_seconds"], arguments["resume"]) == ([], None, False)


def test_bad_input(fails, arguments, config, tmp_path, monkeypatch):
    assert "there is no such config file" in fails("train", tmp_path / "none.yaml")
    assert "learning_rate" in fails("train", config, "--set", "a.b")
    assert "learning_rate" in fails("train", config, "--set", "=1")
    assert "more than 0" in fails("train", config, "--max-seconds", "0")
    assert arguments == {}

    def run_training(**keywords):
        raise TrainingError("the loss is not finite")

    monkeypatch.setattr(training_run, "run_training", run_training)
    assert fails("train", config) == "the loss is not finite"
