"""Records from files: a context with its questions a record, whatever the file's format.

A file's format is found from its content; of its name only a `.zst` or `.gz` ending matters, and `.txt`, `.text` and
`.md`, which let content that is no JSON be a document:

    SQuAD v1.1        {"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers": [{"text"}]}]}]}]}
    rows              JSON Lines or Parquet, of which the first row tells what they are:
      documents         {"text"}
      questions         {"context", "qa": [{"question", "answers": ["..."] or [{"text": "..."}] or [["span", "span"]]}]}
      SQuAD, hub style  {"context", "question", "answers": {"text": ["..."]}}
      MetaICL           {"task", "input", "output", "options"}
      others            what a converter that is named reads (`converters.py`)
    plain text        one document

Leaves out: downloading (`hub.py`), tokenising, and conversations, which have readers of their own.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from generative_adapter.data.converters import Converter, converter_for_row, converter_named
from generative_adapter.data.instruction_sets import questions_in, read_questions, title_in
from generative_adapter.data.rows import Question, Record, Row, kind, text_at
from generative_adapter.errors import DataError, MissingDependencyError

__all__ = ["Question", "Record", "numbered_records", "open_text", "read_records", "record_place"]

FORMATS = (
    'SQuAD v1.1 JSON ({"data": [...]}), JSON Lines or Parquet with {"context", "qa": [{"question", "answers"}]}, '
    '{"context", "question", "answers"}, {"task", "input", "output"} or {"text"} or for a converter that is named, '
    "or plain text (.txt, .text, .md), each but Parquet optionally compressed (.zst, .gz)"
)
_INSTALL = "pip install 'generative-adapter[train]'"
_PLAIN_TEXT_ENDINGS = (".txt", ".text", ".md")
_PARQUET_MAGIC = b"PAR1"
_PARQUET_ROWS_A_BATCH = 256

NumberedRow = tuple[int, str, Any]


def read_records(path: Path, converter: str | None = None) -> Iterator[Record]:
    """Yields the records of one file, whose format is found from its content.

    Questions that carry no answer at all are left out; answers are stripped and repeated ones dropped.

    Args:
        path: a JSON, JSON Lines or plain text file in UTF-8, optionally compressed (`.zst`, `.gz`), or a Parquet
            file.
        converter: name of the converter of `converters.py` that reads each row; None: what the first row calls for.

    Yields:
        Records with `source` set to the file's name without endings, or to a document's own "source" or "task".

    Raises:
        DataError: the file is missing, of an unknown format, or holds a bad line; the message names file and line.
        ConfigError: there is no such converter.
        MissingDependencyError: the file is compressed or Parquet, and `zstandard` or `pyarrow` is not installed.
    """
    return (record for _, record in numbered_records(path, converter))


def numbered_records(path: Path, converter: str | None = None, *, skip: int = 0) -> Iterator[tuple[int, Record]]:
    """Yields the records of one file as `read_records` does, each with the number of the last row in it.

    Rows are lines (counted from 1, blank ones too), rows of a Parquet file, or paragraphs of SQuAD. With `skip` set to
    a number that came with a record, the same file goes on with the record after it.

    Args:
        path: the file.
        converter: name of a converter, or None.
        skip: how many rows are passed over.

    Raises:
        DataError, ConfigError, MissingDependencyError: as `read_records`.
    """
    path = Path(path)
    named = converter_named(converter) if converter is not None else None
    source = path.name.split(".", 1)[0]
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {FORMATS}")
    if _is_parquet(path):
        rows = _parquet_rows(path)
        if (first := next(rows, None)) is None:
            raise DataError(f"{path}: the file holds no row; expected {FORMATS}")
        yield from _row_records(path, first, rows, named, source, skip)
        return
    with open_text(path) as lines:
        try:
            yield from _text_records(path, lines, named, source, skip)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 text ({error}); expected {FORMATS}") from error


def record_place(path: Path, number: int) -> str:
    """Where in a file the record stands that `numbered_records` gave with a number, for messages.

    Of records that are made of several rows it is the last one.
    """
    if _is_parquet(path):
        return f"{path}, row {number}"
    with open_text(path) as lines:
        first = _parse(next((line for line in lines if line.strip()), ""))
    if isinstance(first, dict) and "data" not in first:
        return f"{path}, line {number}"
    is_squad = isinstance(first, dict) or not _is_plain_text_name(path)
    return f"{path}, paragraph {number}" if is_squad else f"{path}"


def _text_records(
    path: Path, lines: TextIO, named: Converter | None, source: str, skip: int
) -> Iterator[tuple[int, Record]]:
    first_number, first_line = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (0, ""))
    if not first_number:
        raise DataError(f"{path}: the file is empty; expected {FORMATS}")
    first = _parse(first_line)
    if _is_plain_text_name(path) and not isinstance(first, dict):
        content = first_line + lines.read()
        first = _parse(content)
        if not isinstance(first, dict):
            yield from _row_records(path, (1, f"{path}", {"text": content}), iter(()), named, source, skip)
            return
    if first is None or (isinstance(first, dict) and "data" in first):
        if named:
            raise DataError(f"{path}: not one JSON object a line; the converter {named.name!r} expects rows")
        yield from _squad_records(path, first_line + lines.read() if first is None else first, source, skip)
        return
    rows = ((number, f"{path}, line {number}", line) for number, line in enumerate(lines, first_number + 1))
    parsed = ((number, where, _parse(line)) for number, where, line in rows if line.strip())
    yield from _row_records(path, (first_number, f"{path}, line {first_number}", first), parsed, named, source, skip)


def _row_records(
    path: Path, first: NumberedRow, others: Iterator[NumberedRow], named: Converter | None, source: str, skip: int
) -> Iterator[tuple[int, Record]]:
    def rows() -> Iterator[NumberedRow]:
        for number, where, row in chain([first], others):
            if number > skip:
                if not isinstance(row, dict):
                    raise DataError(f"{where}: not a JSON object; expected one object a line: {FORMATS}")
                yield number, where, row

    converter = named or _converter_by_content(first)
    return converter.records(rows(), source)


def _converter_by_content(first: NumberedRow) -> Converter:
    _, where, row = first
    found = converter_for_row(row)
    if found is not None and found.name not in ("text", "questions"):
        return found
    if not isinstance(row, dict) or not ("text" in row or "context" in row):
        given = f"an object with {sorted(row)[:8]}" if isinstance(row, dict) else f"a {type(row).__name__}"
        raise DataError(f"{where}: unknown format, found {given}; expected {FORMATS}")
    return _OWN_ROWS


def _own_row(row: Row, where: str) -> Record:
    """Documents and questions, which a file may mix; unlike in hub sets a blank document is an error."""
    if "context" in row:
        return read_questions(row, where)
    source = row.get("source")
    return Record(text_at(row, "text", where), source=source if isinstance(source, str) else "")


_OWN_ROWS = Converter("own rows", _own_row)


def _squad_records(path: Path, content: Any, source: str, skip: int) -> Iterator[tuple[int, Record]]:
    if isinstance(content, str):
        try:
            content = json.loads(content)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno}); expected {FORMATS}"
            ) from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise DataError(f'{path}: unknown format, no list under "data"; expected {FORMATS}')
    number = 0
    for article_number, article in enumerate(content["data"], 1):
        where = f"{path}, article {article_number}"
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            raise DataError(f'{where}: no list under "paragraphs"; expected {FORMATS}')
        for paragraph_number, paragraph in enumerate(paragraphs, 1):
            place = f"{where}, paragraph {paragraph_number}"
            number += 1
            if number <= skip:
                continue
            if not isinstance(paragraph, dict):
                raise DataError(f'{place}: not an object but {kind(paragraph)}; expected {{"context", "qas"}}')
            questions = questions_in(paragraph.get("qas"), place, '"qas"')
            context, num_unanswered = text_at(paragraph, "context", place), len(paragraph["qas"]) - len(questions)
            yield number, Record(context, questions, source, title_in(article), num_unanswered)


def _is_plain_text_name(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix in (".zst", ".gz") else path
    return name.suffix.lower() in _PLAIN_TEXT_ENDINGS


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as content:
        return content.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC


def _parquet_rows(path: Path) -> Iterator[NumberedRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(_INSTALL) from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS_A_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a readable Parquet file after row {number} ({reason}); copy it anew") from error


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """Opens a UTF-8 file for reading; a name that ends in `.zst` or `.gz` is decompressed on the way.

    Raises:
        DataError: it is not compressed as its name says.
        MissingDependencyError: it is `.zst`, and `zstandard` is not installed.
    """
    if path.suffix == ".gz":
        try:
            with gzip.open(path, "rt", encoding="utf-8-sig") as lines:
                yield lines
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a readable gzip file ({error}); expected {FORMATS}") from error
        return
    if path.suffix != ".zst":
        with path.open(encoding="utf-8-sig") as lines:
            yield lines
        return
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependencyError(_INSTALL) from error
    try:
        with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
            yield io.TextIOWrapper(stream, encoding="utf-8-sig")
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: not a readable zstandard file ({error}); expected {FORMATS}") from error


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
