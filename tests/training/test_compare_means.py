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
    group, *first_values = first[1:]
    assert group == "group 8"
    values = dict(each.split(" ") for each in first_values)
    assert set(values) == {"answer_loss", "exact", "first", "right", "kept_loss", "kept_text_rise"}
    assert float(values["kept_loss"]) > 0
    for name, value in values.items():
        assert float(value) == pytest.approx(result.evaluation[name], abs=2e-3)
    assert second[0] == means[1] and second[2:] != first_values


def test_memories_of_so_many_passages(script, recipe_path, tmp_path, monkeypatch, capsys):
    """Each size is evaluated by itself, as a run does whose recipe says it."""
    run = tmp_path / "done"
    result = run_training(recipe_path, ["encoder_training.evaluation_group=2"], output=run)
    sizes = ["--group", "2", "--group", "1"]
    options = [str(recipe_path), "--run", str(run), "--passages", "64", *sizes]
    monkeypatch.setattr("sys.argv", ["x", *options, str(run / "generator.safetensors")])
    script.main()
    two, one = (line.split("  ")[1:] for line in capsys.readouterr().out.splitlines() if "answer_loss" in line)
    assert (two[0], one[0]) == ("group 2", "group 1")
    losses = [float(line[1].removeprefix("answer_loss ")) for line in (two, one)]
    assert losses[0] == pytest.approx(result.evaluation["answer_loss"], abs=2e-3) and abs(losses[0] - losses[1]) > 2e-3


def test_only_generators_with_an_encoder(script, write_recipe, tmp_path, monkeypatch, capsys):
    file = tmp_path / "some.safetensors"
    file.write_text("")
    monkeypatch.setattr("sys.argv", ["x", str(write_recipe()), "--run", str(tmp_path), str(file)])
    with pytest.raises(SystemExit):
        script.main()
    assert "is not of a generator with an encoder" in capsys.readouterr().err


def test_a_memory_holds_one_passage_at_least(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "recipe.yaml", "--run", str(tmp_path), "--group", "0", "some.safetensors"])
    with pytest.raises(SystemExit):
        script.main()
    assert "--group must be positive, got 0" in capsys.readouterr().err
