"""JSON rows with their places, in each of the three forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from generative_adapter.errors import DataError
from generative_adapter.evaluation.tasks.reading import first_object, json_rows


def read(tmp_path: Path, content: str | bytes) -> list[tuple[str, dict]]:
    path = tmp_path / "f.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [(where.removeprefix(f"{tmp_path}/"), row) for where, row in json_rows(path, "rows")]


def test_three_forms(tmp_path: Path) -> None:
    assert read(tmp_path, '\n{"a": 1}\n\n{"a": 2}\n') == [("f.json, line 2", {"a": 1}), ("f.json, line 4", {"a": 2})]
    assert read(tmp_path, '[{"a": 1},\n{"a": 2}]') == [("f.json, item 1", {"a": 1}), ("f.json, item 2", {"a": 2})]
    assert read(tmp_path, '{\n"a": 1\n}\n') == [("f.json", {"a": 1})]
    assert read(tmp_path, '\ufeff{"a": 1}') == [("f.json, line 1", {"a": 1})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"f\.json: the file is empty; expected rows"),
        (" \n\n", r"f\.json: the file is empty"),
        ('{"a": 1}\n{"a": \n', r"f\.json, line 2: not valid JSON \(.*column \d+\); expected rows"),
        ('{"a": 1}\n3\n', r"f\.json, line 2: not an object but a int"),
        ('\n\n{"a":\n1,,}', r"f\.json, line 4: not valid JSON"),
        ('[{"a": 1},\n\n{,}]', r"f\.json, line 3: not valid JSON"),
        ('[{"a": 1}, "b"]', r"f\.json, item 2: not an object but a str"),
        ("[]", r"f\.json: found an empty list; expected rows"),
        ('"text"', r"f\.json: found a str; expected rows"),
        (b'{"a": "\xff"}', r"f\.json: not UTF-8 text"),
    ],
)
def test_places_of_what_is_broken(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, content)


def test_the_first_object_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for content, expected in [(b'\n{"a": 1}\n{', {"a": 1}), (b"[1]", {}), (b"PAR1\xff\xfe", {}), (b"text", {})]:
        path.write_bytes(content)
        assert first_object(path) == expected
    assert first_object(tmp_path / "none") == {}
