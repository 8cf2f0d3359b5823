"""Record files beside those of test_records.py: Parquet, plain text, rows of hub sets, named converters, resuming."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from generative_adapter.data.records import Question, Record, numbered_records, read_records
from generative_adapter.errors import ConfigError, DataError, MissingDependencyError

SQUAD_ROWS = [
    {"context": "The Mur is a river.", "question": "What is the Mur?", "answers": {"text": ["a river"]}},
    {"context": "The Mur is a river.", "question": "Which river?", "answers": {"text": ["The Mur", "Mur"]}},
    {"context": "Graz is a city.", "question": "What is Graz?", "answers": {"text": ["a city"]}},
]
SQUAD_RECORDS = [
    (2, Record("The Mur is a river.",
               (Question("What is the Mur?", ("a river",)), Question("Which river?", ("The Mur", "Mur"))), "rivers")),
    (3, Record("Graz is a city.", (Question("What is Graz?", ("a city",)),), "rivers")),
]  # fmt: skip
METAICL_ROWS = [{"task": "t", "input": f"i{n}", "output": f"o{n}", "options": ["o0"]} for n in range(3)]
METAICL_RECORD = Record(
    "Input: i0\nOutput: o0\n\nInput: i1\nOutput: o1", (Question("Input: i2\nOutput:", ("o2",)),), "t"
)


def _json_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _parquet(path: Path, rows: list[dict], rows_a_group: int = 2) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=rows_a_group)
    return path


@pytest.mark.parametrize("write", [_json_lines, _parquet])
def test_squad_rows_are_put_together_by_context(tmp_path: Path, write) -> None:
    assert list(numbered_records(write(tmp_path / "rivers.data", SQUAD_ROWS))) == SQUAD_RECORDS


@pytest.mark.parametrize("write", [_json_lines, _parquet])
def test_metaicl_rows_are_shown_and_asked(tmp_path: Path, write) -> None:
    assert list(read_records(write(tmp_path / "t_16_100_train.jsonl", METAICL_ROWS))) == [METAICL_RECORD]


@pytest.mark.parametrize("write", [_json_lines, _parquet])
def test_a_named_converter_reads_each_row(tmp_path: Path, write) -> None:
    path = write(tmp_path / "pairs.x", [{"input": "C", "prompt": "p", "answer": "a"}, {"input": "D", "prompt": "q",
                                                                                       "answer": "b"}])  # fmt: skip
    expected = [Record("C", (Question("p", ("a",)),), "pairs"), Record("D", (Question("q", ("b",)),), "pairs")]
    assert list(read_records(path, "pwc")) == expected
    with pytest.raises(DataError, match=r"(line|row) 1: unknown format, found an object with \['answer', 'input'"):
        list(read_records(path))
    with pytest.raises(ConfigError, match="unknown converter 'pcw'; expected one of"):
        list(read_records(path, "pcw"))


def test_parquet_holds_documents_and_questions_too(tmp_path: Path) -> None:
    texts = [{"text": f"Text {n}", "source": "own" if n == 1 else None} for n in range(600)]
    records = list(numbered_records(_parquet(tmp_path / "texts.parquet", texts, 100)))
    assert records == [(n + 1, Record(f"Text {n}", (), "own" if n == 1 else "texts")) for n in range(600)]
    asked = [{"context": "C", "qa": [{"question": "q", "answers": ["a"]}]}]
    assert list(read_records(_parquet(tmp_path / "q.parquet", asked))) == [Record("C", (Question("q", ("a",)),), "q")]


def test_bad_parquet_names_file_and_row(tmp_path: Path) -> None:
    path = _parquet(tmp_path / "texts.parquet", [{"text": "a"}, {"text": "b"}, {"text": None}])
    with pytest.raises(DataError, match=r'texts\.parquet, row 3: "text" is missing; expected'):
        list(read_records(path))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"texts\.parquet: not a readable Parquet file after row 0"):
        list(read_records(path))
    with pytest.raises(DataError, match=r"none\.parquet: the file holds no row; expected"):
        pyarrow = pytest.importorskip("pyarrow")
        empty = tmp_path / "none.parquet"
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table({"text": pyarrow.array([], "string")}), empty)
        list(read_records(empty))


def test_a_missing_pyarrow_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'generative-adapter\[train\]'"):
        list(read_records(path))


@pytest.mark.parametrize("name", ["notes.txt", "notes.md", "notes.text", "notes.TXT"])
@pytest.mark.parametrize(
    "content", ["# Graz\n\nA city.\n", "42\nis a number.\n", "[1] a list\n", '{"text": \nis open\n']
)
def test_a_plain_text_is_one_document(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert list(numbered_records(path)) == [(1, Record(content, (), "notes"))]


def test_a_compressed_plain_text_is_one_document(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    path = tmp_path / "notes.md.zst"
    path.write_bytes(zstandard.ZstdCompressor().compress("Été à Graz.".encode()))
    assert list(read_records(path)) == [Record("Été à Graz.", (), "notes")]


def test_rows_in_a_text_file_stay_rows(tmp_path: Path) -> None:
    path = _json_lines(tmp_path / "rows.txt", [{"text": "a"}, {"text": "b"}])
    assert list(read_records(path)) == [Record("a", (), "rows"), Record("b", (), "rows")]
    path.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(DataError, match="line 2: not a JSON object"):
        list(read_records(path))
    squad = {"data": [{"paragraphs": [{"context": "C", "qas": []}]}]}
    path.write_text(json.dumps(squad, indent=1), encoding="utf-8")
    assert list(read_records(path)) == [Record("C", (), "rows")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows", "rows.csv"])
def test_a_corrupt_first_line_is_no_plain_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"text": \n{"text": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="not valid JSON"):
        list(read_records(path))


def test_a_converter_reads_no_nested_squad(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text('{"data": []}', encoding="utf-8")
    with pytest.raises(DataError, match="not one JSON object a line; the converter 'coqa' expects rows"):
        list(read_records(path, "coqa"))


def test_a_bad_row_of_a_converter_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"input": "i", "prompt": "p", "answer": "a"}\n\n{"input": "i"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r'rows\.jsonl, line 3: "prompt" is missing'):
        list(read_records(path, "pwc"))
    path.write_text('[1]\n{"input": "i"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: not a JSON object"):
        list(read_records(path, "pwc"))


def test_any_number_resumes_behind_its_record(tmp_path: Path) -> None:
    files = [
        _json_lines(tmp_path / "rivers.jsonl", SQUAD_ROWS * 3),
        _parquet(tmp_path / "rivers.parquet", SQUAD_ROWS * 3),
        _json_lines(tmp_path / "texts.jsonl", [{"text": f"t{n}"} for n in range(5)]),
        tmp_path / "squad.json",
        tmp_path / "notes.txt",
    ]
    articles = [{"paragraphs": [{"context": f"{a}{p}", "qas": []} for p in range(3)]} for a in range(2)]
    files[3].write_text(json.dumps({"data": articles}), encoding="utf-8")
    files[4].write_text("A note.", encoding="utf-8")
    files[2].write_text("\n" + files[2].read_text(encoding="utf-8").replace("\n", "\n\n"), encoding="utf-8")
    for path, count in zip(files, [6, 6, 5, 6, 1], strict=True):
        whole = list(numbered_records(path))
        assert len(whole) == count
        for index, (number, _) in enumerate(whole):
            assert list(numbered_records(path, skip=number)) == whole[index + 1 :]


def test_gzip_files_are_read(tmp_path: Path) -> None:
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in SQUAD_ROWS).encode())
    (tmp_path / "rivers.jsonl.gz").write_bytes(packed)
    assert list(numbered_records(tmp_path / "rivers.jsonl.gz")) == SQUAD_RECORDS
    (tmp_path / "notes.md.gz").write_bytes(gzip.compress("Été à Graz.".encode()))
    assert list(read_records(tmp_path / "notes.md.gz")) == [Record("Été à Graz.", (), "notes")]
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz: not a readable gzip file"):
        list(read_records(tmp_path / "cut.jsonl.gz"))


def test_titles_and_unanswered_questions_are_kept_beside(tmp_path: Path) -> None:
    rows = [{**row, "title": "Rivers_of Styria"} for row in SQUAD_ROWS[:2]]
    rows.insert(1, {**rows[0], "answers": {"text": []}})
    (record,) = read_records(_json_lines(tmp_path / "rivers.jsonl", rows))
    assert (record.title, record.num_unanswered, len(record.questions)) == ("Rivers of Styria", 1, 2)
    assert record == SQUAD_RECORDS[0][1]
