"""`scripts/compare_means.py`: held-out values of means, against those that the run itself tells."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from generative_adapter.errors import ConfigError
from generative_adapter.training.run import run_training

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("compare_means", SCRIPTS / "compare_means.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_files_share_what_their_pattern_counts(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.bin", "b-1.bin", "b-2.bin"):
        Path(name).write_text("")
    found = [(count, path.name) for count, path in script.counted_files("a.bin + 3*b-*.bin + 0.5*a.bin")]
    assert found == [(1.0, "a.bin"), (1.5, "b-1.bin"), (1.5, "b-2.bin"), (0.5, "a.bin")]
    assert [path.name for _, path in script.counted_files("b-*.bin")] == ["b-1.bin", "b-2.bin"]
    for mean, message in (("a.bin + c.bin", "'c.bin': no such file"), ("0*a.bin", "counts must be positive")):
        with pytest.raises(ConfigError, match=message):
            script.counted_files(mean)


def test_values_are_those_of_the_runs_own_evaluation(script, recipe_path, tmp_path, monkeypatch, capsys):
    run = tmp_path / "done"
    settings = ["checkpoint_seconds=1e-9", "keep_checkpoints=9"]
    result = run_training(recipe_path, settings, output=run)
    last = run / "generator.safetensors"
    means = [str(last), f"3*{last} + {run}/checkpoint-00000006/generator.safetensors"]
    monkeypatch.setattr("sys.argv", ["x", str(recipe_path), "--run", str(run), "--passages", "64", *means])
    script.main()
    first, second = (line.split("  ") for line in capsys.readouterr().out.splitlines() if "answer_loss" in line)
    values = dict(each.split(" ") for each in first[1:])
    assert set(values) == {"answer_loss", "exact", "first", "right", "kept_loss", "kept_text_rise"}
    assert float(values["kept_loss"]) > 0
    for name, value in values.items():
        assert float(value) == pytest.approx(result.evaluation[name], abs=2e-3)
    assert second[0] == means[1] and second[1:] != first[1:]


def test_only_generators_with_an_encoder(script, write_recipe, tmp_path, monkeypatch, capsys):
    file = tmp_path / "some.safetensors"
    file.write_text("")
    monkeypatch.setattr("sys.argv", ["x", str(write_recipe()), "--run", str(tmp_path), str(file)])
    with pytest.raises(SystemExit):
        script.main()
    assert "is not of a generator with an encoder" in capsys.readouterr().err
