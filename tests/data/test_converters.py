"""Converters: every set's rows give the records written out by hand; a bad row names the field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from generative_adapter.data.converters import (
    CONVERTERS,
    converter_for,
    converter_for_row,
    converter_named,
    has_converter,
)
from generative_adapter.data.instruction_sets import METAICL_TRAIN_TASKS
from generative_adapter.data.rows import Question, Record
from generative_adapter.errors import ConfigError, DataError


def _numbered(rows: list[Any]) -> Iterator[tuple[int, str, Any]]:
    return ((number, f"set, row {number}", row) for number, row in enumerate(rows, 1))


def _records(name: str, rows: list[Any], source: str = "set") -> list[tuple[int, Record]]:
    return list(CONVERTERS[name].records(_numbered(rows), source))


COQA = {
    "source": "wikipedia", "story": "Ada wrote notes. Bob read them.",
    "questions": ["Who wrote?", "What?"],
    "answers": {"input_text": ["Ada", " notes "], "answer_start": [0, 10], "answer_end": [3, 15]},
}  # fmt: skip
PUBMEDQA = {
    "pubid": 1, "question": "Does tea help?", "final_decision": "no",
    "context": {"contexts": ["Ten drank tea.", "None slept better."], "labels": ["METHODS", "RESULTS"], "meshes": []},
    "long_answer": "Tea did not help.",
}  # fmt: skip
MS_MARCO = {
    "query_id": 7, "query_type": "NUMERIC", "query": "how tall is it", "answers": ["324 metres", "324 metres"],
    "passages": {"is_selected": [0, 1], "passage_text": ["It is old. ", "It is 324 metres tall."], "url": ["a", "b"]},
    "wellFormedAnswers": [],
}  # fmt: skip
BOOKSUM = {"bid": 1, "chapter": "Call me Ishmael.", "summary_text": "A man speaks.", "summary": "{}"}
SQUAD = {"id": "1", "title": "R", "context": "The Mur is a river.", "question": " What is the Mur?",
         "answers": {"text": ["a river", "a river", "river"], "answer_start": [11, 11, 13]}}  # fmt: skip
DROP = {"section_id": "s", "query_id": "q", "passage": "Brady threw twice to Moss.", "question": "How often?",
        "answers_spans": {"spans": ["2"], "types": ["number"]}}  # fmt: skip
NARRATIVEQA = {
    "document": {"id": "d", "summary": {"text": "A whale is hunted.", "tokens": []}, "text": "a whole book"},
    "question": {"text": "What is hunted?", "tokens": []},
    "answers": [{"text": "A whale", "tokens": []}, {"text": "a white whale", "tokens": []}],
}
QUAIL = {"id": "1", "context": "Tom ran home.", "question": "Who ran?", "question_type": "Factual",
         "answers": ["Ann", "Tom", "not enough information", "Bo"], "correct_answer_id": 1}  # fmt: skip
PWC = {"input": "A long text.", "prompt": "Shorten it.", "answer": "A text."}
METAICL = {"task": "sst2", "input": "Good film", "output": "positive", "options": ["positive", "negative"]}

ONE_ROW = [
    ("text", {"text": "Words.", "meta": {"redpajama_set_name": "C4"}}, Record("Words.")),
    ("questions", {"context": "C", "qa": [{"question": "q", "answers": ["a", "b"]}, {"question": "n", "answers": []}]},
     Record("C", (Question("q", ("a", "b")),))),
    ("squad", SQUAD, Record("The Mur is a river.", (Question("What is the Mur?", ("a river", "river")),))),
    ("coqa", COQA, Record(COQA["story"], (Question("Who wrote?", ("Ada",)), Question("What?", ("notes",))))),
    ("coqa_turns", COQA, Record(COQA["story"], (
        Question("Who wrote?", ("Ada",)),
        Question("Question: Who wrote?\nAnswer: Ada\nQuestion: What?", ("notes",))))),
    ("drop", DROP, Record("Brady threw twice to Moss.", (Question("How often?", ("2",)),))),
    ("drop", DROP | {"answers_spans": {"spans": ["Brady", "Moss", "Moss"], "types": ["span"] * 3}},
     Record("Brady threw twice to Moss.", (Question("How often?", ("Brady, Moss",)),))),
    ("narrativeqa", NARRATIVEQA,
     Record("A whale is hunted.", (Question("What is hunted?", ("A whale", "a white whale")),))),
    ("pubmedqa", PUBMEDQA,
     Record("Ten drank tea.\nNone slept better.", (Question("Does tea help?", ("Tea did not help.",)),))),
    ("quail", QUAIL, Record("Tom ran home.", (Question("Who ran?", ("Tom",)),))),
    ("ms_marco", MS_MARCO,
     Record("It is old.\n\nIt is 324 metres tall.", (Question("how tall is it", ("324 metres",)),))),
    ("ms_marco_joined", MS_MARCO, Record("It is 324 metres tall.", (Question("how tall is it", ("324 metres",)),))),
    ("booksum", BOOKSUM,
     Record("Call me Ishmael.", (Question("Write a summary of the text above.", ("A man speaks.",)),))),
    ("pwc", PWC, Record("A long text.", (Question("Shorten it.", ("A text.",)),))),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "expected"), ONE_ROW)
def test_a_row_gives_the_record_written_by_hand(name: str, row: dict, expected: Record) -> None:
    assert _records(name, [row]) == [(1, Record(expected.context, expected.questions, "set"))]


def test_every_converter_but_that_of_tasks_is_tested_on_a_row() -> None:
    assert {name for name, _, _ in ONE_ROW} | {"metaicl", "metaicl_train", "coqa_joined", "drop_joined"} == set(
        CONVERTERS
    )


@pytest.mark.parametrize(
    ("name", "row", "field"),
    [
        ("text", {"content": "x"}, '"text" is missing'),
        ("text", {"text": 5}, '"text" is a int'),
        ("questions", {"context": "C"}, '"qa" is missing'),
        ("squad", {**SQUAD, "context": None}, '"context" is missing'),
        ("squad", {**SQUAD, "answers": {"answer_start": [1]}}, '"answers" is a dict'),
        ("coqa", {**COQA, "story": " "}, '"story" is empty'),
        ("coqa", {**COQA, "answers": ["Ada"]}, '"answers" is a list; expected an object with "input_text"'),
        ("coqa", {**COQA, "questions": ["Who?"]}, '"questions" has 1 items and "answers.input_text" 2'),
        ("coqa_turns", {**COQA, "questions": ["Who?", 3]}, '"questions" is a list with a int'),
        ("drop", {**DROP, "answers_spans": {}}, '"answers_spans.spans" is missing'),
        ("drop", {**DROP, "passage": 1}, '"passage" is a int'),
        ("narrativeqa", {**NARRATIVEQA, "document": {"text": "b"}}, '"document.summary" is missing'),
        ("narrativeqa", {**NARRATIVEQA, "question": "What?"}, '"question" is a str'),
        ("pubmedqa", {**PUBMEDQA, "long_answer": None}, '"long_answer" is missing'),
        ("pubmedqa", {**PUBMEDQA, "context": {"contexts": []}}, '"context.contexts" is empty'),
        ("quail", {**QUAIL, "correct_answer_id": 4}, '"correct_answer_id" is 4; expected a number from 0 to 3'),
        ("quail", {**QUAIL, "correct_answer_id": "1"}, '"correct_answer_id" is a str'),
        ("quail", {**QUAIL, "answers": None}, '"answers" is missing'),
        ("ms_marco", {**MS_MARCO, "query": None}, '"query" is missing'),
        ("ms_marco", {**MS_MARCO, "passages": ["p"]}, '"passages" is a list'),
        ("ms_marco_joined", {**MS_MARCO, "passages": {"passage_text": ["p"]}}, '"passages.is_selected" is missing'),
        ("metaicl", {"task": "t", "input": "i"}, '"output" is missing'),
        ("metaicl", {"input": "i", "output": "o"}, '"task" is missing'),
        ("booksum", {"chapter": "C", "summary": "S"}, '"summary_text" is missing'),
        ("pwc", {"input": "i", "prompt": ["p"], "answer": "a"}, '"prompt" is a list'),
        ("pwc", {"input": "i", "prompt": "p", "answer": None}, '"answer" is missing'),
        ("pwc", ["i"], "not an object but a list"),
    ],
)
def test_a_bad_row_names_place_and_field(name: str, row: Any, field: str) -> None:
    good = next(row for other, row, _ in [*ONE_ROW, ("metaicl", METAICL, None)] if other == name)
    with pytest.raises(DataError) as caught:
        _records(name, [good, row])
    assert f"set, row 2: {field}" in str(caught.value)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("text", {"text": "  \n"}),
        ("ms_marco", {**MS_MARCO, "answers": ["No Answer Present."]}),
        ("ms_marco", {**MS_MARCO, "answers": []}),
        ("ms_marco_joined",
         {**MS_MARCO, "passages": {"is_selected": [0, 0], "passage_text": ["a", "b"], "url": ["a", "b"]}}),
        ("booksum", {**BOOKSUM, "summary_text": None}),
        ("booksum", {**BOOKSUM, "chapter": ""}),
        ("pwc", {**PWC, "answer": ""}),
    ],
)  # fmt: skip
def test_rows_with_nothing_to_learn_are_left_out_but_counted(name: str, row: dict) -> None:
    good = next(good for other, good, _ in ONE_ROW if other == name)
    assert _records(name, [row]) == []
    others = [{**good, "input": "other"}] if name == "pwc" else [good]
    assert [number for number, _ in _records(name, [row, *others])][-1:] == [2]


@pytest.mark.parametrize("name", ["squad", "drop", "narrativeqa", "quail", "pwc"])
def test_consecutive_rows_of_a_context_become_one_record(name: str) -> None:
    row, one = next((row, record) for other, row, record in ONE_ROW if other == name)
    path = {"drop": "passage", "pwc": "input", "narrativeqa": "document"}.get(name, "context")
    other = {**row, path: {"summary": {"text": "Else."}} if name == "narrativeqa" else "Else."}
    records = _records(name, [row, row, other, row])
    two = Record(one.context, one.questions * 2, "set")
    assert records == [
        (2, two),
        (3, Record("Else.", one.questions, "set")),
        (4, Record(one.context, one.questions, "set")),
    ]


def test_unanswered_questions_leave_their_context() -> None:
    unanswered = {**SQUAD, "answers": {"text": [], "answer_start": []}}
    assert _records("squad", [unanswered]) == [(1, Record(SQUAD["context"], (), "set"))]
    assert _records("squad", [unanswered, SQUAD])[0][1].questions[0].question == "What is the Mur?"


def _task(name: str, count: int) -> list[dict]:
    return [{"task": name, "input": f"in {name}{i}", "output": f"out {i}", "options": []} for i in range(count)]


def test_sixteen_rows_of_a_task_are_shown_and_four_asked() -> None:
    records = _records("metaicl", _task("a", 21) + _task("b", 3))
    assert [number for number, _ in records] == [20, 24]  # a group of one row shows nothing and is left out
    first = records[0][1]
    assert first.source == "a"
    assert first.context == "\n\n".join(f"Input: in a{i}\nOutput: out {i}" for i in range(16))
    assert first.questions == tuple(Question(f"Input: in a{i}\nOutput:", (f"out {i}",)) for i in range(16, 20))
    context = "Input: in b0\nOutput: out 0\n\nInput: in b1\nOutput: out 1"
    assert records[1][1] == Record(context, (Question("Input: in b2\nOutput:", ("out 2",)),), "b")


def test_metaicl_s_test_tasks_are_not_trained_on() -> None:
    rows = _task("glue-rte", 3) + _task("superglue-record", 3) + _task("quartz-with_knowledge", 3) + _task("piqa", 3)
    assert [(number, record.source) for number, record in _records("metaicl_train", rows)] == [
        (6, "superglue-record"),
        (12, "piqa"),
    ]
    assert [record.source for _, record in _records("metaicl", rows)][::2] == ["glue-rte", "quartz-with_knowledge"]
    assert len(METAICL_TRAIN_TASKS) == 61
    with pytest.raises(DataError, match='row 1: "task" is missing'):
        _records("metaicl_train", [{"input": "i", "output": "o"}])


def test_contexts_are_joined_by_four_and_the_rest_together() -> None:
    stories = [{**COQA, "story": f"Story {i}. ", "questions": [f"q{i}"], "answers": {"input_text": [f"a{i}"]}}
               for i in range(5)]  # fmt: skip
    asked = [Question(f"q{i}", (f"a{i}",)) for i in range(5)]
    assert _records("coqa_joined", stories) == [
        (4, Record("Story 0.\n\nStory 1.\n\nStory 2.\n\nStory 3.", tuple(asked[:4]), "set")),
        (5, Record("Story 4.", (asked[4],), "set")),
    ]


def test_joining_counts_contexts_not_rows() -> None:
    rows = [{**DROP, "passage": f"P{i // 2}"} for i in range(10)]
    records = _records("drop_joined", rows)
    assert [(number, record.context, len(record.questions)) for number, record in records] == [
        (8, "P0\n\nP1\n\nP2\n\nP3", 8),
        (10, "P4", 2),
    ]


@pytest.mark.parametrize("name", ["squad", "metaicl", "drop_joined", "coqa_joined", "ms_marco"])
def test_starting_behind_any_record_gives_the_records_that_follow(name: str) -> None:
    row = next(row for other, row, _ in [*ONE_ROW, ("metaicl", METAICL, None)] if other == name.removesuffix("_joined"))
    changed = {"squad": "context", "metaicl": "task", "drop": "passage", "coqa": "story", "ms_marco": "query"}
    rows = [{**row, changed[name.removesuffix("_joined")]: f"C{i // 7}"} for i in range(60)]
    if name == "ms_marco":
        rows[3] = rows[4] = {**row, "answers": []}
    whole = _records(name, rows)
    assert len(whole) >= 3
    for index, (number, _) in enumerate(whole):
        rest = [(n, where, row) for n, where, row in _numbered(rows) if n > number]
        assert list(CONVERTERS[name].records(rest, "set")) == whole[index + 1 :]


def test_converters_are_found_by_name_and_hub_id() -> None:
    expected = {
        "stanfordnlp/coqa": "coqa", "ucinlp/drop": "drop", "deepmind/narrativeqa": "narrativeqa",
        "qiaojin/PubMedQA": "pubmedqa", "textmachinelab/quail": "quail", "microsoft/ms_marco": "ms_marco",
        "kmfoda/booksum": "booksum", "sggetao/PwC": "pwc", "cerebras/SlimPajama-627B": "text",
        "rajpurkar/squad": "squad", "allenai/metaicl-data": "metaicl_train", "sggetao/pwc": "pwc",
    }  # fmt: skip
    assert {dataset: converter_for(dataset).name for dataset in expected} == expected
    assert all(converter_named(name).name == name for name in CONVERTERS)
    assert has_converter("ucinlp/drop")
    assert not has_converter("nobody/nothing")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown converter 'coca'; expected one of text, .*narrativeqa"):
        converter_named("coca")
    with pytest.raises(ConfigError, match=r"'nobody/nothing'; expected one of .*ucinlp/drop.*name a converter.*pwc"):
        converter_for("nobody/nothing")


@pytest.mark.parametrize(
    ("row", "name"),
    [(SQUAD, "squad"), (METAICL, "metaicl"), ({"text": "t"}, "text"), ({"context": "c", "qa": []}, "questions"),
     (PWC, None), ([1], None)],
)  # fmt: skip
def test_fields_of_a_row_tell_the_converter(row: Any, name: str | None) -> None:
    found = converter_for_row(row)
    assert (found.name if found else None) == name
