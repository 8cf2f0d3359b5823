"""Streaming through the real `datasets` library from local folders, and what its errors become; no network."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generative_adapter.data.hub import read_hub
from generative_adapter.data.rows import Question, Record
from generative_adapter.errors import ConfigError, DataError, MissingDependencyError

COQA_ROWS = [
    {"source": "cnn", "story": f"Story {n}.", "questions": ["Who?", "Why?"],
     "answers": {"input_text": [f"A{n}", f"B{n}"], "answer_start": [0, 1], "answer_end": [1, 2]}}
    for n in range(5)
]  # fmt: skip
COQA_QUESTIONS = [(Question("Who?", (f"A{n}",)), Question("Why?", (f"B{n}",))) for n in range(5)]


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def _folder(path: Path, rows: list[Any], name: str = "train.jsonl") -> str:
    path.mkdir(exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (path / name).write_text(text, encoding="utf-8")
    return str(path)


def test_rows_of_a_folder_become_numbered_records(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "coqa", COQA_ROWS)
    assert list(read_hub(folder, converter="coqa")) == [
        (n + 1, Record(f"Story {n}.", COQA_QUESTIONS[n], folder)) for n in range(5)
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_file_is_read_by_its_builder_under_any_split(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    if ending == "jsonl":
        _folder(tmp_path, COQA_ROWS, path.name)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(COQA_ROWS), path)
    records = list(read_hub(str(path), split="validation", converter="coqa_joined"))
    assert [number for number, _ in records] == [4, 5]
    assert records[1][1] == Record("Story 4.", COQA_QUESTIONS[4], str(path))


def test_csv_fields_without_value_are_left_out(tmp_path: Path) -> None:
    folder = _folder(
        tmp_path / "books", ["chapter,summary_text", "One,First", "Two,", ",Third", "Four,Last"], "train.csv"
    )
    assert [
        (n, record.context, record.questions[0].answers) for n, record in read_hub(folder, converter="booksum")
    ] == [
        (1, "One", ("First",)),
        (4, "Four", ("Last",)),
    ]


def test_each_split_has_its_own_rows(tmp_path: Path) -> None:
    _folder(tmp_path / "texts", [{"text": "a"}])
    folder = _folder(tmp_path / "texts", [{"text": "b"}, {"text": "c"}], "validation.jsonl")
    assert [record.context for _, record in read_hub(folder)] == ["a"]
    assert [record.context for _, record in read_hub(folder, split="validation")] == ["b", "c"]


@pytest.mark.parametrize("skip", [1, 3, 5, 9])
def test_skipped_rows_are_counted_but_not_read(tmp_path: Path, skip: int) -> None:
    folder = _folder(tmp_path / "coqa", COQA_ROWS)
    whole = list(read_hub(folder, converter="coqa"))
    assert list(read_hub(folder, converter="coqa", skip=skip)) == whole[skip:]


def test_resuming_behind_a_record_keeps_groups_whole(tmp_path: Path) -> None:
    rows = [{"context": f"C{n // 3}", "question": f"q{n}", "answers": {"text": [f"a{n}"], "answer_start": [0]}}
            for n in range(10)]  # fmt: skip
    folder = _folder(tmp_path / "squad", rows)
    whole = list(read_hub(folder))
    assert [(number, len(record.questions)) for number, record in whole] == [(3, 3), (6, 3), (9, 3), (10, 1)]
    for index, (number, _) in enumerate(whole):
        assert list(read_hub(folder, skip=number)) == whole[index + 1 :]


def test_the_set_s_id_finds_the_converter_and_arguments_reach_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = {}

    def load(path: str, **arguments: Any) -> datasets.IterableDataset:
        asked.update(path=path, **arguments)
        return datasets.Dataset.from_list([COQA_ROWS[2]]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    records = list(read_hub("stanfordnlp/coqa", subset="default", split="validation", revision="abc"))
    assert records == [(1, Record("Story 2.", COQA_QUESTIONS[2], "stanfordnlp/coqa"))]
    assert asked == {"path": "stanfordnlp/coqa", "name": "default", "split": "validation", "revision": "abc",
                     "streaming": True}  # fmt: skip


def test_only_the_rows_that_are_asked_for_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    taken = []

    def rows() -> Iterator[dict]:
        for number in range(10**6):
            taken.append(number)
            yield {"text": f"t{number}"}

    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: stream)
    records = read_hub("some/texts", converter="text", skip=2)
    assert [next(records) for _ in range(2)] == [
        (3, Record("t2", (), "some/texts")),
        (4, Record("t3", (), "some/texts")),
    ]
    assert len(taken) < 10


def test_a_bad_row_names_set_split_and_row(tmp_path: Path) -> None:
    rows = [*COQA_ROWS[:2], {**COQA_ROWS[2], "story": None}]
    folder = _folder(tmp_path / "coqa", rows)
    with pytest.raises(
        DataError, match=r"data set .*coqa, split 'train', row 3: \"story\" is missing; expected a text"
    ):
        list(read_hub(folder, converter="coqa"))
    with pytest.raises(DataError, match="row 3: "):
        list(read_hub(folder, converter="coqa", skip=2))


def test_unknown_rows_ask_for_a_converter(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "pairs", [{"left": "a", "right": "b"}])
    with pytest.raises(
        DataError, match=r"row 1: no converter is known for rows with \['left', 'right'\]; name one.*pwc"
    ):
        list(read_hub(folder))
    with pytest.raises(ConfigError, match="unknown converter 'pairs'; expected one of"):
        list(read_hub(folder, converter="pairs"))


def test_corrupt_files_and_wrong_names_say_what_to_do(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "texts", [{"text": "a"}])
    (tmp_path / "empty").mkdir()
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("", encoding="utf-8")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    corrupt = _folder(tmp_path / "corrupt", [{"text": "a"}, '{"text": ', {"text": "b"}])
    for arguments, expected in [
        ({"dataset": folder, "split": "test"}, r"Bad split: test. Available splits: \['train'\]; set `split` to"),
        ({"dataset": folder, "subset": "large"}, r"\(large\): BuilderConfig 'large' not found.*; set `subset` to one"),
        ({"dataset": str(tmp_path / "empty")}, "any data files; give a folder or set with JSON"),
        ({"dataset": str(tmp_path / "script")}, "set `revision: refs/convert/parquet`"),
        ({"dataset": str(tmp_path / "notes.pdf")}, r"unknown ending; expected one of \.json, .*`paths`"),
        ({"dataset": corrupt}, r"corrupt: .*; the rows from here on can't be read, check the files"),
        ({"dataset": "nobody/nothing"}, "data set nobody/nothing: Couldn't reach .*; check the network, and that HF_"),
    ]:
        with pytest.raises(DataError, match=expected) as caught:
            list(read_hub(**arguments, converter="text"))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Dataset 'a/b' is a gated dataset on the Hub. You must be authenticated to access it.", "ask for access"),
        ("Dataset 'a/b' doesn't exist on the Hub or cannot be accessed.", "accessed; check the id"),
        ("Revision 'x' doesn't exist for dataset 'a/b' on the Hub.", "set `revision` to a branch"),
        ("Config name is missing.\nPick one: ['v1', 'v2']", r"\['v1', 'v2'\]; set `sub"),
        ("x" * 5000, r"x{300} \.\.\.; the rows from here on"),
        ("", "data set a/b: DatasetNotFoundError; "),
    ],
)  # fmt: skip
def test_messages_of_the_library_become_one_line(message: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(path: str, **_: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError(message)

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=expected) as caught:
        list(read_hub("a/b", converter="text"))
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks_says_after_which_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def rows() -> Iterator[dict]:
        yield {"text": "a"}
        yield {"text": "b"}
        raise ConnectionResetError("connection reset by peer")

    stream = datasets.IterableDataset.from_generator(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **_: stream)
    records = read_hub("a/b", converter="text", skip=1)
    assert next(records)[0] == 2
    with pytest.raises(
        DataError, match=r"a/b, split 'train', after row 2: connection reset by peer; check the network"
    ):
        next(records)


def test_a_missing_library_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'generative-adapter\[train\]'"):
        next(read_hub("stanfordnlp/coqa"))
