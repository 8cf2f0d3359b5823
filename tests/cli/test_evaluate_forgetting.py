"""`genadapter eval needle` and `genadapter eval forgetting` on a tiny model in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from generative_adapter.base_model.loading import load_base_model
from generative_adapter.checkpoint import save_generator
from generative_adapter.evaluation.results import SampleResult, read_results
from generative_adapter.evaluation.tasks.controls import unrelated_questions
from tiny_models import tiny_base, tiny_checkpoint, tiny_config

Run = Callable[..., Result]


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, ...]:
    base = tiny_base("llama")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    loaded = load_base_model(tmp_path / "base", device="cpu", dtype="float32")
    save_generator(tmp_path / "generator.safetensors", tiny_checkpoint(loaded, tiny_config(chunk_tokens=200)))
    flags = {"--base-model": tmp_path / "base", "--generator": tmp_path / "generator.safetensors"}
    return (*(str(word) for pair in flags.items() for word in pair), "--device", "cpu", "--dtype", "float32")


def lines(folder: Path) -> list[SampleResult]:
    return list(read_results(folder / "samples.jsonl"))


def said(results: list[SampleResult]) -> list[tuple]:
    return [(r.key, r.method, r.wording, r.sample, [(q.id, q.answer, q.values) for q in r.queries]) for r in results]


def kill_after(folder: Path, count: int) -> None:
    """Leaves the first lines and a part of the next, as a killed run does."""
    path = folder / "samples.jsonl"
    kept = path.read_text().splitlines(keepends=True)
    path.write_text("".join(kept[:count]) + kept[count][:50])


def test_needle(run: Run, models: tuple[str, ...], tmp_path: Path) -> None:
    output = tmp_path / "needle"
    command = ("eval", "needle", *models, "--output", output, "--lengths", "200,400", "--depths", "0,0.5,1")
    command = (*command, "--draws", "0,3", "--methods", "closed-book,generative-adapter", "--first-wording")
    result = run(*command)
    assert result.exit_code == 0, result.output
    results = lines(output)
    assert len(results) == 2 * 2 * 3 * 2
    assert {(r.metadata["context_tokens"], r.metadata["depth"], r.metadata["seed"]) for r in results} == {
        (length, depth, seed) for length in (200, 400) for depth in (0.0, 0.5, 1.0) for seed in (0, 3)
    }
    assert {(r.task, r.role, r.metrics) for r in results} == {
        ("needle/synthetic", "test", ("f1", "exact_match", "recall"))
    }
    settings = json.loads((output / "run.json").read_text())["settings"]
    assert (settings["lengths"], settings["depths"], settings["draws"]) == ([200, 400], [0, 0.5, 1], [0, 3])
    kill_after(output, 9)
    assert run(*command).exit_code == 0
    assert said(lines(output)) == said(results)


def test_needle_in_a_file_with_a_chosen_wording(run: Run, fails, models: tuple[str, ...], tmp_path: Path) -> None:
    text = tmp_path / "river.txt"
    text.write_text("The river is long and old. Nobody has measured it to its end. " * 20)
    output = tmp_path / "needle"
    flags = (*models, "--output", output, "--text", text, "--depths", "0.5", "--draws", "1", "--methods", "closed-book")
    assert run("eval", "needle", *flags, "--lengths", "300", "--needles", "1,2").exit_code == 0
    results = lines(output)
    assert {r.task for r in results if r.role == "test"} == {"needle/river"}
    trials = [r for r in results if r.role == "choice"]
    assert {r.metadata["seed"] for r in trials} == set(range(2, 10)) and len(trials) == 8 * 3
    assert [len(r.queries) for r in results if r.role == "test"] == [1, 2]
    assert "'river' has" in fails("eval", "needle", *flags, "--lengths", "5000")
    assert "depths must lie in 0..1" in fails("eval", "needle", *flags, "--lengths", "300", "--depths", "1.5")


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    texts = [
        ("Ada keeps her bees on the roof of the old mill in Ulm.", "Where are the bees?", "the roof"),
        ("The red kites of Bo are sold in nine shops by the sea.", "Who sells kites?", "Bo"),
        ("At noon Cy naps under the one tree that is left in the park.", "When does Cy nap?", "noon"),
        ("Four ferries a day go from the pier to the island of Föhr.", "Where do ferries go?", "Föhr"),
    ]
    path = tmp_path / "town.jsonl"
    rows = [{"context": text, "qa": [{"question": asked, "answers": [answer]}]} for text, asked, answer in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_forgetting(run: Run, models: tuple[str, ...], squad: Path, tmp_path: Path) -> None:
    output, text = tmp_path / "forgetting", tmp_path / "held_out.txt"
    text.write_text("The river is long, and nobody has ever measured it to its end. " * 5)
    command = ("eval", "forgetting", *models, "--data", squad, "--output", output, "--context-tokens", "60")
    command = (*command, "--text", text, "--segments", "3", "--segment-tokens", "40", "--unrelated", "7")
    command = (*command, "--text-contexts", "2")
    result = run(*command)
    assert result.exit_code == 0, result.output
    assert "generative-adapter" in result.stdout and "PPL ratio" in result.stdout
    results = lines(output)
    by_control = {control: [r for r in results if r.metadata["control"] == control] for control in labels()}
    assert all({r.method for r in own} == {"generative-adapter", "no-adapter"} for own in by_control.values())
    own, other = by_control["own document"], by_control["other document"]
    assert [[q.question for q in r.queries] for r in own] == [[q.question for q in r.queries] for r in other]
    assert all(one.context_id != two.context_id for one, two in zip(own, other, strict=True))
    unrelated = by_control["unrelated question"]
    known = {item.query.question for item in unrelated_questions()}
    assert all(len(r.queries) == 7 and {q.question for q in r.queries} <= known for r in unrelated)

    found = json.loads((output / "forgetting.json").read_text())
    changes = found["interference"]["generative-adapter"]["60"]
    before = {q.question: q.answer for r in unrelated if r.method == "no-adapter" for q in r.queries}
    after = [(q.question, q.answer) for r in unrelated if r.method == "generative-adapter" for q in r.queries]
    same = sum(before[question].strip() == answer.strip() for question, answer in after)
    assert changes["unchanged"] == pytest.approx(same / len(after)) and changes["num_answers"] == len(after)
    ability = found["general_ability"]["generative-adapter"]["60"]
    assert (ability["num_contexts"], ability["num_segments"], ability["num_tokens"]) == (2, 3, 3 * 39)

    kill_after(output, 5)
    (output / "forgetting.json").unlink()
    assert run(*command).exit_code == 0
    assert said(lines(output)) == said(results)
    assert json.loads((output / "forgetting.json").read_text()) == found


def labels() -> tuple[str, ...]:
    return ("own document", "other document", "shuffled document", "unrelated question")


def test_some_controls_only(run: Run, fails, models: tuple[str, ...], squad: Path, tmp_path: Path) -> None:
    flags = (*models, "--data", squad, "--output", tmp_path / "out", "--context-tokens", "60")
    assert run("eval", "forgetting", *flags, "--controls", "shuffled", "--methods", "full-context").exit_code == 0
    assert {(r.method, r.metadata["control"]) for r in lines(tmp_path / "out")} == {
        ("full-context", "shuffled document"),
        ("closed-book", "shuffled document"),
    }
    values = json.loads((tmp_path / "out" / "forgetting.json").read_text())
    assert values["interference"] == values["general_ability"] == {}
    assert "expected one of own, other-document" in fails("eval", "forgetting", *flags, "--controls", "mine")
    whole = (*flags, "--context-tokens", "5000", "--controls", "other-document")
    assert "can't all be given the document" in fails("eval", "forgetting", *whole)
