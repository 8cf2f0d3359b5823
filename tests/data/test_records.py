"""Readers of record files: every supported format, and what a bad file says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from generative_adapter.data.records import Question, Record, read_records
from generative_adapter.errors import DataError, MissingDependencyError

SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Rivers",
            "paragraphs": [
                {
                    "context": "The Mur flows through Graz.",
                    "qas": [
                        {"id": "1", "question": "What flows through Graz?",
                         "answers": [{"text": "The Mur", "answer_start": 0}, {"text": "The Mur", "answer_start": 0},
                                     {"text": "Mur", "answer_start": 4}]},
                        {"id": "2", "question": "Nobody knows?", "answers": []},
                    ],
                },
                {"context": "The Seine flows through Paris.", "qas": []},
            ],
        }
    ],
}  # fmt: skip
SQUAD_RECORDS = [
    Record("The Mur flows through Graz.", (Question("What flows through Graz?", ("The Mur", "Mur")),), "rivers"),
    Record("The Seine flows through Paris.", (), "rivers"),
]


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _compress(path: Path, text: str, frames: int = 1) -> Path:
    zstandard = pytest.importorskip("zstandard")
    content = text.encode()
    step = -(-len(content) // frames)
    parts = [content[start : start + step] for start in range(0, len(content), step)]
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(part) for part in parts))
    return path


@pytest.mark.parametrize("indent", [None, 2])
def test_squad_is_read_on_one_line_and_indented(tmp_path: Path, indent: int | None) -> None:
    path = _write(tmp_path / "rivers.json", json.dumps(SQUAD, indent=indent))
    assert list(read_records(path)) == SQUAD_RECORDS


@pytest.mark.parametrize("frames", [1, 3])
def test_compressed_files_are_read_whole(tmp_path: Path, frames: int) -> None:
    path = _compress(tmp_path / "rivers.json.zst", json.dumps(SQUAD, ensure_ascii=False), frames)
    assert list(read_records(path)) == SQUAD_RECORDS


def test_questions_in_json_lines_take_each_form_of_answers(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "context": "Été à Graz.", "qa": [{"question": "When?", "answers": [" Été "]}]},
        {"context": "B", "qa": [{"question": "What?", "answers": [{"text": "B"}, {"text": "b"}]}]},
        {"context": "C", "qa": [{"question": "Which?", "answers": [["x", "y"], ["x and y"]]}]},
    ]
    text = "\n" + "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    records = list(read_records(_write(tmp_path / "sample-a.jsonl", text)))
    assert [record.questions[0].answers for record in records] == [("Été",), ("B", "b"), ("x, y", "x and y")]
    assert [record.source for record in records] == ["sample-a"] * 3
    assert records[0].context == "Été à Graz."


def test_documents_keep_their_own_source(tmp_path: Path) -> None:
    path = _write(tmp_path / "books.jsonl", '{"text": "One"}\n{"text": "Two", "source": "gutenberg", "title": "T"}\n')
    assert list(read_records(path)) == [Record("One", (), "books"), Record("Two", (), "gutenberg")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        ("plain words\n", r"line 1: not valid JSON"),
        ('{"data": 5}', 'no list under "data"'),
        ('{"data": [{"title": "T"}]}', r"article 1: no list under \"paragraphs\""),
        ('{"data": [{"paragraphs": [{"context": "C"}]}]}', r'article 1, paragraph 1: "qas" is missing'),
        ('{"body": "x"}\n', r"line 1: unknown format, found an object with \['body'\]"),
        ("[1, 2]\n", "line 1: unknown format, found a list"),
        ('{"text": "a"}\n\n{"text": \n', "line 3: not a JSON object"),
        ('{"text": "a"}\n{"text": ""}\n', r'line 2: "text" is empty'),
        ('{"context": "a"}\n', r'line 1: "qa" is missing'),
        ('{"context": "a", "qa": [3]}\n', r'line 1: "qa" holds a int'),
        ('{"context": "a", "qa": [{"answers": ["b"]}]}\n', r'line 1: "question" is missing'),
        ('{"context": "a", "qa": [{"question": "q", "answers": "b"}]}\n', r'line 1: "answers" is a str'),
        ('{"context": "a", "qa": [{"question": "q", "answers": [5]}]}\n', "line 1: answer is a int"),
    ],
)  # fmt: skip
def test_bad_files_name_file_line_and_what_was_expected(tmp_path: Path, text: str, expected: str) -> None:
    path = _write(tmp_path / "bad.jsonl", text)
    with pytest.raises(DataError, match=expected) as caught:
        list(read_records(path))
    assert str(path) in str(caught.value)
    assert "expected" in str(caught.value)


def test_missing_and_binary_files_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_records(tmp_path / "nothing.jsonl"))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_records(tmp_path / "binary.jsonl"))
    pytest.importorskip("zstandard")
    (tmp_path / "broken.jsonl.zst").write_bytes(b"not compressed at all")
    with pytest.raises(DataError, match="not a readable zstandard file"):
        list(read_records(tmp_path / "broken.jsonl.zst"))


def test_a_missing_zstandard_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl.zst"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'generative-adapter\[train\]'"):
        list(read_records(path))


def test_a_question_needs_an_answer() -> None:
    with pytest.raises(DataError, match="no answer"):
        Question("Who?", ())
