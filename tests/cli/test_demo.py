from __future__ import annotations

import json
from pathlib import Path

import pytest

from generative_adapter.cli import demo
from generative_adapter.cli.demo import holds_answer, load_questions
from generative_adapter.errors import DataError

DEMO_DATA = Path(demo.__file__).parent / "demo_data"


@pytest.mark.parametrize(
    ("text", "accepted", "right"),
    [
        ("Marcus Ovelund", ["Marcus Ovelund"], True),
        ("Travel is approved by marcus ovelund.", ["Marcus Ovelund"], True),
        ("Marcus", ["Marcus Ovelund"], False),
        ("The flagpole!", ["the flagpole"], True),
        ("oranges", ["orange"], False),
        ("In 1927.", ["1927"], True),
        ("In 19270", ["1927"], False),
        ("5400 books", ["5,400"], True),
        ("at 6:45.", ["6:45"], True),
        ("16:45", ["6:45"], False),
        ("3.5", ["5"], False),
        ("two", ["one", "two"], True),
        ("", ["a", "the"], False),
    ],
)
def test_holds_answer(text, accepted, right):
    assert holds_answer(text, accepted) is right


def test_every_demo_answer_stands_in_the_document_and_in_no_question():
    document = (DEMO_DATA / "handbook.md").read_text(encoding="utf-8")
    five = load_questions(DEMO_DATA / "questions.json")
    more = load_questions(DEMO_DATA / "questions_more.json")
    assert len(five) == 5
    assert len(five) + len(more) >= 20
    assert not five.keys() & more.keys()
    for question, accepted in (five | more).items():
        assert holds_answer(document, accepted[:1]), question
        assert not holds_answer(question, accepted), question


@pytest.fixture
def files(tmp_path):
    document, questions = tmp_path / "town.md", tmp_path / "questions.json"
    document.write_text("The memory of the town is long.")
    asked = [{"question": "Which?", "answers": ["town.md"]}, {"question": "What?", "answers": ["nothing"]}]
    questions.write_text(json.dumps({"questions": asked}))
    return "--document", document, "--questions", questions


def test_json_counts_right_answers_and_costs(run, model, files):
    report = json.loads(run("demo", *files, "--json").stdout)
    assert report["context_tokens"] == 7
    assert list(report["methods"]) == ["adapter", "closed-book", "prompt"]
    assert {name: (m["right"], m["questions"]) for name, m in report["methods"].items()} == {
        "adapter": (1, 2),
        "closed-book": (1, 2),
        "prompt": (0, 2),
    }
    assert {name: m["prompt_tokens"] for name, m in report["methods"].items()} == {
        "adapter": 2,
        "closed-book": 2,
        "prompt": 16,
    }
    assert [entry["right"] for entry in report["methods"]["adapter"]["answers"]] == [True, False]
    assert set(report["seconds"]) == {"load", "contextualize", "adapter", "closed-book", "prompt"}


def test_table_shows_every_answer_beside_the_expected_one(run, model, files):
    result = run("demo", *files)
    assert result.exit_code == 0
    for text in ("Which?", "✓ memory of town.md", "✗ nothing", "whole document in prompt", "1 of 2", "0 of 2"):
        assert text in result.stdout


def test_without_options_it_reads_the_handbook(run, model):
    report = json.loads(run("demo", "--json").stdout)
    assert (report["document"], report["methods"]["adapter"]["questions"]) == ("handbook.md", 5)


@pytest.mark.parametrize(
    "content", ["no json", "[]", "{}", '{"questions": []}', '{"questions": [{"question": "a", "answers": []}]}']
)
def test_bad_question_files(fails, model, tmp_path, content):
    path = tmp_path / "questions.json"
    path.write_text(content)
    assert "questions.json: expected" in fails("demo", "--questions", path)


def test_missing_question_file(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        load_questions(tmp_path / "none.json")
