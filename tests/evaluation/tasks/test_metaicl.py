"""MetaICL tasks from small folders of its format, and from the real ones where they are."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from generative_adapter.data.instruction_sets import read_metaicl
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.tasks.metaicl import (
    CLASSIFICATION_TASKS,
    OTHER_TASKS,
    MetaIcl,
    read_rows,
    task_names,
)
from generative_adapter.evaluation.tasks.protocol import score
from generative_adapter.methods.protocol import Answer

TEST = Path(__file__).parents[4] / "shared" / "data" / "metaicl" / "test"


def rows(prefix: str, number: int, options: list | None, task: str = "mood") -> list[dict]:
    made = [
        {"task": task, "input": f"{prefix}{index}", "output": ("good", "bad")[index % 2]} for index in range(number)
    ]
    return made if options is None else [{**row, "options": options} for row in made]


def write(path: Path, content: list) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for draw in (13, 21):
        write(tmp_path / "mood" / f"mood_16_{draw}_train.jsonl", rows(f"shown {draw} ", 4, ["good", "bad"]))
    write(tmp_path / "mood" / "mood_test.jsonl", rows("asked ", 6, ["good", "bad"]))
    return tmp_path


def test_demonstrations_and_test_rows(folder: Path) -> None:
    task = MetaIcl(folder, "mood", shots=(1, 2), draws=(13, 21))
    samples = list(task.samples())
    assert [sample.id for sample in samples] == [
        "metaicl/mood/01-shot/draw-13",
        "metaicl/mood/02-shot/draw-13",
        "metaicl/mood/01-shot/draw-21",
        "metaicl/mood/02-shot/draw-21",
    ]
    sample = samples[3]
    assert sample.context.text == "Input: shown 21 0\nOutput: good\n\nInput: shown 21 1\nOutput: bad"
    assert sample.context.examples == (("Input: shown 21 0\nOutput:", "good"), ("Input: shown 21 1\nOutput:", "bad"))
    assert sample.queries == samples[0].queries and len(sample.queries) == 6
    asked = sample.queries[1]
    assert (asked.query.question, asked.query.options) == ("Input: asked 1\nOutput:", ("good", "bad"))
    assert asked.references == ("bad",)
    assert sample.metadata == {"task": "mood", "classification": True, "shots": 2, "draw": 21}
    judged = score(sample, [Answer("good")] * 6)
    assert [item.values["accuracy"] for item in judged] == [1, 0, 1, 0, 1, 0]


def test_the_form_is_that_of_training(folder: Path) -> None:
    """A generator reads demonstrations, and is asked, as its training records are written."""
    sample = next(MetaIcl(folder, "mood", shots=(2,), draws=(13,)).samples())
    records = [read_metaicl(row, "here") for row in rows("shown 13 ", 2, None)]
    assert sample.context.text == "\n\n".join(record.context for record in records)
    trained = read_metaicl(rows("asked ", 1, None)[0], "here").questions[0]
    assert (sample.queries[0].query.question, sample.queries[0].references) == (trained.question, trained.answers)
    assert sample.wordings[0].open.startswith("{context}\n\nInstruction: Based on the demonstration above")
    assert "demonstration" not in sample.wordings[0].closed


def test_the_same_rows_are_asked_in_all_draws(folder: Path) -> None:
    task = MetaIcl(folder, "mood", shots=(1, 4), draws=(13, 21), limit=3)
    asked = {tuple(item.id for item in sample.queries) for sample in task.samples()}
    assert len(asked) == 1 and len(next(iter(asked))) == 3


def test_classification_is_told_by_name_then_by_options(folder: Path, tmp_path: Path) -> None:
    content = [{**row, "options": ["good", "bad", row["input"]]} for row in rows("asked ", 3, None)]
    write(folder / "mood" / "mood_test.jsonl", content)
    task = MetaIcl(folder, "mood", shots=(1,), draws=(13,))
    assert not task.classification
    (sample,) = task.samples()
    assert sample.queries[2].query.options == ("good", "bad", "asked 2") and sample.metrics == ("accuracy",)
    (free,) = MetaIcl(folder, "mood", shots=(1,), draws=(13,), free=True).samples()
    assert free.queries[2].query.options == () and free.metrics == ("exact_match", "f1")
    write(folder / "qasc" / "qasc_test.jsonl", rows("asked ", 3, ["good", "bad"], "qasc"))
    assert not MetaIcl(folder, "qasc").classification


def test_rows_without_options_are_answered_freely(folder: Path) -> None:
    write(folder / "mood" / "mood_test.jsonl", rows("asked ", 3, []))
    (sample,) = MetaIcl(folder, "mood", shots=(1,), draws=(13,)).samples()
    assert sample.metrics == ("exact_match", "f1") and not sample.metadata["classification"]
    write(folder / "mood" / "mood_test.jsonl", [*rows("asked ", 3, None), *rows("more ", 1, ["good"])])
    with pytest.raises(DataError, match=r"mood_test\.jsonl: some rows have options and some have none"):
        list(MetaIcl(folder, "mood", shots=(1,), draws=(13,)).samples())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ({"task": "mood", "output": "good"}, 'line 2: "input" is missing'),
        ({"task": "mood", "input": "", "output": "good"}, 'line 2: "input" is empty'),
        ({"task": "mood", "input": "x", "output": ""}, 'line 2: "output" is empty'),
        (
            {"task": "mood", "input": "x", "output": "so-so", "options": ["good"]},
            "line 2: the output 'so-so' is none of",
        ),
        (
            {"task": "mood", "input": "x", "output": "good", "options": "good"},
            'line 2: "options" is a str; expected a list',
        ),
        (
            {"task": "mood", "input": "x", "output": "good", "options": ["good", " "]},
            'line 2: "options" holds an empty',
        ),
    ],
)
def test_broken_rows_are_told_with_their_line(folder: Path, row: object, message: str) -> None:
    path = folder / "mood" / "mood_test.jsonl"
    write(path, [rows("asked ", 1, None)[0], row])
    with pytest.raises(DataError, match=r"mood_test\.jsonl, " + message):
        read_rows(path)


def test_missing_files_and_rows(folder: Path) -> None:
    with pytest.raises(DataError, match=r"mood_16_42_train\.jsonl: no such file, nor with \.zst or \.gz"):
        list(MetaIcl(folder, "mood", shots=(1,), draws=(42,)).samples())
    with pytest.raises(DataError, match=r"mood_16_13_train\.jsonl: 4 demonstrations; expected at least 8"):
        list(MetaIcl(folder, "mood", shots=(1, 8), draws=(13,)).samples())
    with pytest.raises(ConfigError, match=r"shots must be positive, got \(0,\)"):
        MetaIcl(folder, "mood", shots=(0,))
    with pytest.raises(ConfigError, match="draws is empty"):
        MetaIcl(folder, "mood", draws=())
    assert task_names(folder) == ("mood",)
    with pytest.raises(DataError, match="no MetaICL task; expected folders"):
        task_names(folder / "mood")


def test_the_papers_tasks_are_26() -> None:
    assert (len(CLASSIFICATION_TASKS), len(OTHER_TASKS)) == (16, 10)
    assert not CLASSIFICATION_TASKS & OTHER_TASKS


@pytest.mark.skipif(not TEST.is_dir(), reason="the shared data is not here")
def test_the_real_tasks() -> None:
    names = task_names(TEST)
    assert len(names) == 20 and set(names) <= CLASSIFICATION_TASKS | OTHER_TASKS
    for name in names:
        task = MetaIcl(TEST, name, limit=5)
        assert task.classification == (len({frozenset(row.options) for row in task.rows}) == 1)
        samples = list(task.samples())
        assert len(samples) == 25 and len({sample.content_id for sample in samples}) == 25
        assert all(item.references[0] in item.query.options for item in samples[0].queries)
        for fewer, more in pairwise(samples[:5]):
            assert more.context.text.startswith(fewer.context.text + "\n\n")


def test_a_wording_is_chosen_on_demonstrations_that_are_not_shown(folder: Path) -> None:
    task = MetaIcl(folder, "mood", shots=(1, 2), draws=(13, 21))
    shared = rows("shown 13 ", 1, ["good", "bad"]) + rows("shown 21 ", 3, ["good", "bad"])
    write(folder / "mood" / "mood_16_21_train.jsonl", shared)
    first, second = task.choice().samples()
    assert len(first.context.examples) == len(second.context.examples) == 2
    assert [query.query.question for query in first.queries] == [f"Input: shown 21 {i}\nOutput:" for i in range(3)]
    for sample in (first, second):
        shown = {given for given, _ in sample.context.examples}
        assert not shown & {query.query.question for query in sample.queries}
    (alone,) = MetaIcl(folder, "mood", shots=(2,), draws=(13,)).choice().samples()
    asked = [query.query.question for query in alone.queries]
    assert asked == [f"Input: shown 13 {i}\nOutput:" for i in (2, 3)]
    assert [given for given, _ in alone.context.examples] == [f"Input: shown 13 {i}\nOutput:" for i in (0, 1)]
    assert len(list(task.choice(1).samples())) == 1
