"""Rows of JSON files with their places, so that an error can name them.

Reads JSON Lines, a JSON list of objects, or one object, told from content. Leaves out: what a row holds; records of
contexts with questions have a reader of their own (`data.records`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from generative_adapter.data.records import open_text
from generative_adapter.errors import DataError

_ENDINGS = (".zst", ".gz", ".json", ".jsonl", ".parquet")


def data_name(path: Path) -> str:
    """A file's name without the endings of its format and compression."""
    name = Path(path).name
    while (ending := Path(name).suffix) in _ENDINGS:
        name = name.removesuffix(ending)
    return name


def json_rows(path: Path, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file, each with its place ("FILE, line 3", "FILE, item 3" of a list, or "FILE").

    Args:
        path: JSON Lines or JSON in UTF-8, optionally compressed (`.zst`, `.gz`).
        expected: what messages say a file should hold.

    Raises:
        DataError: the file is missing, empty, no UTF-8, or holds something else; the message names file and line.
        MissingDependencyError: the file is compressed and `zstandard` is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {expected}")
    with open_text(path) as lines:
        try:
            numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
            first = next(numbered, None)
            if first is None:
                raise DataError(f"{path}: the file is empty; expected {expected}")
            if not _is_object(first[1]):
                yield from _whole(path, first[1] + lines.read(), first[0], expected)
                return
            for number, line in chain([first], numbered):
                yield _row(f"{path}, line {number}", line, expected)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text ({error}); expected {expected}") from error


def _row(where: str, line: str, expected: str) -> tuple[str, dict[str, Any]]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON ({error.msg}, column {error.colno}); expected {expected}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: not an object but a {type(row).__name__}; expected {expected}")
    return where, row


def _whole(path: Path, content: str, first_number: int, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        values = json.loads(content)
    except json.JSONDecodeError as error:
        line = error.lineno + first_number - 1
        raise DataError(
            f"{path}, line {line}: not valid JSON ({error.msg}, column {error.colno}); expected {expected}"
        ) from error
    if isinstance(values, dict):
        yield f"{path}", values
        return
    if not isinstance(values, list) or not values:
        found = "an empty list" if values == [] else f"a {type(values).__name__}"
        raise DataError(f"{path}: found {found}; expected {expected}")
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise DataError(f"{path}, item {number}: not an object but a {type(value).__name__}; expected {expected}")
        yield f"{path}, item {number}", value


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except json.JSONDecodeError:
        return False


def first_object(path: Path) -> dict[str, Any]:
    """The object on the first line that is not blank; empty where there is something else or no file."""
    path = Path(path)
    if not path.is_file():
        return {}
    with open_text(path) as lines:
        try:
            line = next((line for line in lines if line.strip()), "")
        except UnicodeDecodeError:
            return {}
    return json.loads(line) if _is_object(line) else {}
