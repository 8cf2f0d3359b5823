"""`genadapter eval document-qa`, `metaicl` and `personalisation` on a tiny model in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from generative_adapter.base_model.loading import load_base_model
from generative_adapter.checkpoint import GeneratorCheckpoint, save_generator
from generative_adapter.evaluation import runner as runner_module
from tiny_models import tiny_base, tiny_checkpoint

Run = Callable[..., Result]


def squad(path: Path, *paragraphs: tuple[str, list[tuple[str, list[str]]]]) -> Path:
    rows = [
        {
            "context": text,
            "qas": [{"id": "x", "question": q, "answers": [{"text": a} for a in given]} for q, given in qa],
        }
        for text, qa in paragraphs
    ]
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "Rivers", "paragraphs": rows}]}))
    return path


TESTED = (
    ("The Mur flows by Graz.", [("What flows by Graz?", ["The Mur", "Mur"]), ("Where?", [])]),
    ("The Enns is long.", [("What is long?", ["The Enns"])]),
    ("The Drau is cold.", [("What is cold?", ["The Drau"]), ("How is the Drau?", ["cold"])]),
)
TRAINED = tuple((f"The water number {i} is red.", [(f"What is number {i}?", ["red"])]) for i in range(6))


@pytest.fixture
def models(tmp_path: Path) -> tuple[Any, ...]:
    base = tiny_base("llama")
    base.model.save_pretrained(tmp_path / "base")
    base.tokenizer.save_pretrained(tmp_path / "base")
    loaded = load_base_model(tmp_path / "base", device="cpu", dtype="float32")
    checkpoint: GeneratorCheckpoint = tiny_checkpoint(loaded)
    save_generator(tmp_path / "generator.safetensors", checkpoint)
    return (
        *("--generator", tmp_path / "generator.safetensors", "--base-model", tmp_path / "base"),
        *("--device", "cpu", "--dtype", "float32"),
    )


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def values(folder: Path) -> list[tuple]:
    return [
        (line["task"], line["role"], line["method"], line["wording"], query["id"], query["answer"], query["values"])
        for line in lines(folder)
        for query in line["queries"]
    ]


def test_document_qa_of_stored_memories(run: Run, fails: Callable[..., str], models: tuple, tmp_path: Path) -> None:
    data = squad(tmp_path / "dev.json", *TESTED)
    command = ("eval", "document-qa", "--data", data, "--context-tokens", "24", "--methods", "generative-adapter")
    assert run(*command, *models, "-o", tmp_path / "out").exit_code == 0
    first = {line["key"] for line in lines(tmp_path / "out")}
    again = run(*command, "--memory-dtype", "int8", *models, "-o", tmp_path / "out")
    assert again.exit_code == 0, again.exception
    assert len({line["key"] for line in lines(tmp_path / "out")}) == 2 * len(first), "they are answered anew"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["settings"]["memory_dtype"] == "int8"
    assert "int4" in fails(*command, "--memory-dtype", "int4", *models, "-o", tmp_path / "other")


def test_document_qa(run: Run, models: tuple, tmp_path: Path) -> None:
    command = (
        *("eval", "document-qa", "--data", squad(tmp_path / "dev.json", *TESTED), "--context-tokens", "24,80"),
        *("--train-data", squad(tmp_path / "train.json", *TRAINED), "--num-shots", 1, "--choice-limit", 2),
        *("--methods", "closed-book,full-context,generative-adapter,sft-full", "--epochs", "sft-full=1"),
        *("--learning-rate", "sft-full=1e-3", *models),
    )
    first = run(*command, "-o", tmp_path / "first")
    assert (first.exit_code, first.stderr) == (0, ""), first.exception
    assert "generative-adapter" in first.stdout
    tested = [line for line in lines(tmp_path / "first") if line["role"] == "test"]
    lengths = {line["metadata"]["context_tokens"] for line in tested}
    assert lengths == {24, 80}
    for length in lengths:
        for method in ("closed-book", "full-context", "generative-adapter", "sft-full"):
            asked = [
                query["question"]
                for line in tested
                if line["method"] == method and line["metadata"]["context_tokens"] == length
                for query in line["queries"]
            ]
            assert sorted(asked) == sorted(q for _, qa in TESTED for q, given in qa if given)
    record = json.loads((tmp_path / "first" / "run.json").read_text())
    assert record["skipped"] == {f"document-qa/dev/{length}": {"without an answer": 1} for length in (24, 80)}
    assert record["choices"]["document-qa/dev/24"]["full-context"]["num_queries"] == 2
    assert len(record["choices"]["document-qa/dev/80"]["closed-book"]["scores"]) == 6
    assert sorted(record["keys"]) == sorted(line["key"] for line in tested)
    for name in ("results.json", "report.html", "tables.md", "tables.tex"):
        assert (tmp_path / "first" / name).stat().st_size > 100
    assert run(*command, "-o", tmp_path / "second").exit_code == 0
    assert values(tmp_path / "first") == values(tmp_path / "second")


def test_streaming_qa(run: Run, fails: Callable[..., str], models: tuple, tmp_path: Path) -> None:
    questions, documents = tmp_path / "questions.jsonl", tmp_path / "documents.jsonl"
    asked = [
        {"qa_id": "a", "question": "What rose?", "answers": ["The Mur"], "evidence_id": "d1"},
        {"qa_id": "b", "question": "Who won?", "answers": ["Ann"], "evidence_id": "lost"},
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in asked))
    documents.write_text(json.dumps({"sorting_key": "d1", "text": "The Mur rose by a foot."}) + "\n")
    command = ("eval", "document-qa", "--data", questions, "--methods", "closed-book", *models, "-o", tmp_path / "out")
    assert "name it too" in fails(*command)
    assert run(*command, "--documents", documents, "--context-tokens", 64).exit_code == 0
    (line,) = lines(tmp_path / "out")
    assert [query["question"] for query in line["queries"]] == ["What rose?"]
    (skipped,) = json.loads((tmp_path / "out" / "run.json").read_text())["skipped"].values()
    assert sum(skipped.values()) == 1


def test_a_killed_command_goes_on(run: Run, models: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = (
        *("eval", "document-qa", "--data", squad(tmp_path / "dev.json", *TESTED), "--context-tokens", "16"),
        *("--methods", "closed-book,full-context", *models),
    )
    assert run(*command, "-o", tmp_path / "whole").exit_code == 0
    answered, count = runner_module.Runner._answered, []

    def answer_three(self: Any, *arguments: Any) -> Any:
        count.append(1)
        if len(count) == 4:
            raise KeyboardInterrupt
        return answered(self, *arguments)

    monkeypatch.setattr(runner_module.Runner, "_answered", answer_three)
    assert run(*command, "-o", tmp_path / "killed").exit_code != 0
    assert len(lines(tmp_path / "killed")) == 3
    with (tmp_path / "killed" / "samples.jsonl").open("a") as file:
        file.write('{"schema_version": 1, "ke')
    monkeypatch.setattr(runner_module.Runner, "_answered", answered)
    assert run(*command, "-o", tmp_path / "killed").exit_code == 0
    assert values(tmp_path / "killed") == values(tmp_path / "whole")


def test_metaicl(run: Run, models: tuple, tmp_path: Path) -> None:
    def rows(path: str, prefix: str, number: int) -> None:
        made = [
            {"task": "mood", "input": f"{prefix} {i}", "output": ("good", "bad")[i % 2], "options": ["good", "bad"]}
            for i in range(number)
        ]
        file = tmp_path / "tasks" / "mood" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in made))

    for draw in (13, 21):
        rows(f"mood_16_{draw}_train.jsonl", f"shown {draw}", 4)
    rows("mood_test.jsonl", "asked", 5)
    result = run(
        *("eval", "metaicl", "--data", tmp_path / "tasks", "--shots", "1,4", "--draws", "13,21", "--limit", 3),
        *("--methods", "closed-book,full-context-cached,generative-adapter,k-shot-full", "--epochs", "k-shot-full=1"),
        *("-o", tmp_path / "out", *models),
    )
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    tested = [line for line in lines(tmp_path / "out") if line["role"] == "test"]
    assert len(tested) == 4 * 2 * 2 and {len(line["queries"]) for line in tested} == {3}
    choosing = [line for line in lines(tmp_path / "out") if line["role"] == "choice"]
    asked = {query["question"] for line in choosing for query in line["queries"]}
    assert asked == {f"Input: shown {draw} {i}\nOutput:" for draw in (13, 21) for i in range(4)}
    assert all("asked" in query["question"] for line in tested for query in line["queries"])
    assert "mood" in result.stdout


def test_personalisation(run: Run, models: tuple, tmp_path: Path) -> None:
    def conversations(name: str, *people: tuple[str, str]) -> Path:
        rows = [
            {
                "id": f"{name} {i}",
                "sessions": [
                    {
                        "session": 1,
                        "dialog": [
                            {"speaker": 1, "text": f"I have a {pet}, you know", "fact": f"I have a {pet}."},
                            {"speaker": 2, "text": f"I work as a {job}", "fact": f"I work as a {job}."},
                        ],
                    }
                ],
            }
            for i, (pet, job) in enumerate(people)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    result = run(
        *("eval", "personalisation", "--data", conversations("msc_test", ("cat", "baker"), ("dog", "nurse"))),
        *("--train-data", conversations("msc_train", *[("cow", "cook")] * 5), "--num-shots", 1, "--choice-limit", 2),
        *("--methods", "closed-book,full-context,generative-adapter,sft-full", "--epochs", "sft-full=1"),
        *("-o", tmp_path / "out", *models, "--json"),
    )
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    assert json.loads(result.stdout)
    tested = [line for line in lines(tmp_path / "out") if line["role"] == "test"]
    assert {line["task"] for line in tested} == {"personalisation/msc_test"} and len(tested) == 8
    full, adapter = (next(x for x in tested if x["method"] == name) for name in ("full-context", "generative-adapter"))
    assert full["costs"]["answering_flops"] > adapter["costs"]["answering_flops"]
    assert full["costs"]["stored_floats"] == 0 < adapter["costs"]["stored_floats"]


def test_methods_are_listed(run: Run) -> None:
    assert {"closed-book", "generative-adapter", "cpt-lora"} <= set(run("eval", "methods").stdout.split())


def test_bad_input(run: Run, fails: Callable[..., str], models: tuple, tmp_path: Path) -> None:
    data = squad(tmp_path / "dev.json", *TESTED)
    base = ("eval", "document-qa", "-o", tmp_path / "out", *models)
    for arguments, message in (
        (("--data", tmp_path / "none.json"), "none.json: no such file"),
        (("--data", data, "--methods", "open-book"), "unknown method 'open-book'; known: closed-book"),
        (("--data", data, "--methods", "closed-book,closed-book"), "twice"),
        (("--data", data, "--context-tokens", "512,many"), "'many' is not a number"),
        (("--data", data, "--context-tokens", "0"), "0 is too small"),
        (("--data", data, "--context-tokens", "32,32"), "given twice"),
        (("--data", data, "--methods", "sft-full"), "no question-answer pair"),
        (("--data", data, "--learning-rate", "1e-3"), "expected METHOD=VALUE"),
        (("--data", data, "--learning-rate", "sft=1e-3"), "unknown method 'sft'"),
        (("--data", data, "--epochs", "sft-full=0"), "positive"),
        (("--data", data, "--fine-tuning-wording", "mine"), "unknown wording 'mine'"),
    ):
        assert message in fails(*base, *arguments)
    broken = tmp_path / "broken.jsonl"
    good = json.dumps({"context": "The Mur.", "qa": [{"question": "What?", "answers": ["Mur"]}]})
    for line, message in (
        ("{oops", "broken.jsonl, line 2"),
        ('{"context": " ", "qa": []}', "broken.jsonl, line 2"),
        ('{"context": "A", "qa": [{"question": "Q?", "answers": [""]}]}', "broken.jsonl, line 2"),
    ):
        broken.write_text(f"{good}\n{line}\n")
        assert message in fails(*base, "--data", broken)
    assert not (tmp_path / "out" / "samples.jsonl").exists()
    (tmp_path / "file").write_text("x")
    assert "this is a file" in fails("eval", "document-qa", "--data", data, "-o", tmp_path / "file", *models)
    assert "no MetaICL task" in fails("eval", "metaicl", "--data", tmp_path, "-o", tmp_path / "out", *models)
