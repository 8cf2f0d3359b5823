"""Records from data sets of the Hugging Face hub, streamed: nothing is downloaded before it is read.

Every error of the library becomes one line that says what to do. Leaves out: which fields a set has (`converters.py`)
and files that are read without the library (`records.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generative_adapter.data.converters import (
    CONVERTERS,
    Converter,
    converter_for,
    converter_for_row,
    converter_named,
    has_converter,
)
from generative_adapter.data.rows import Record
from generative_adapter.errors import DataError, GenerativeAdapterError, MissingDependencyError

_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_LONGEST_MESSAGE = 300
_NETWORK_LIBRARIES = ("aiohttp", "httpcore", "httpx", "requests", "urllib3")
# What the library's message says -> what to do. The first that fits counts.
_REMEDIES = (
    ("gated", "ask for access on the set's page, then log in with `hf auth login` or set HF_TOKEN"),
    (
        "scripts are no longer supported",
        "set `revision: refs/convert/parquet`, the hub's own copy without a script",
    ),
    ("config name is missing", "set `subset` to one of them"),
    ("builderconfig", "set `subset` to one that it has"),
    ("bad split", "set `split` to one that it has"),
    ("revision '", "set `revision` to a branch, tag or commit of the set"),
    ("doesn't exist", "check the id; for a private or gated set log in with `hf auth login` or set HF_TOKEN"),
    ("data file", "give a folder or set with JSON, JSON Lines, Parquet or CSV files"),
)
_NO_NETWORK = (
    "check the network, and that HF_HUB_OFFLINE and HF_DATASETS_OFFLINE are not set; "
    "or download the files and give them as `paths`"
)


def read_hub(
    dataset: str,
    *,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    converter: str | None = None,
    skip: int = 0,
) -> Iterator[tuple[int, Record]]:
    """Yields the records of a data set, in its order, each with the number of the last row in it.

    To go on after an interruption, pass the number that came with the last record as `skip`: the next record is the one
    that would have come next. The rows before are passed over by the library, which reads them for it where a set's
    format has no index. `revision` keeps the rows the same when the set is changed.

    Args:
        dataset: id on the hub ("stanfordnlp/coqa"), or a local folder or JSON, JSON Lines, Parquet or CSV file.
        subset: the set's configuration, for sets that have several ("pqa_labeled").
        split: "train", ... as the set names them.
        revision: branch, tag or commit; None is the newest.
        converter: name in `converters.CONVERTERS`; None: by the set's id, else by the fields of its first row.
        skip: how many rows are passed over.

    Yields:
        Row number (counted from 1) and record; `source` is the set's id, or a MetaICL row's task.

    Raises:
        DataError: the set, its subset or split is not there, is gated or can't be reached, or a row is bad; the message
            names set, split and row.
        ConfigError: no such converter.
        MissingDependencyError: `datasets` is not installed.
    """
    if converter is not None:
        chosen: Converter | None = converter_named(converter)
    else:
        chosen = converter_for(dataset) if has_converter(dataset) else None
    name = f"data set {dataset}" + (f" ({subset})" if subset else "")
    rows = _rows(dataset, name, subset, split, revision, skip)
    if chosen is None:
        first = next(_rows(dataset, name, subset, split, revision, 0), None)
        if first is None:
            return
        chosen = _converter_by_content(*first)
    yield from chosen.records(rows, dataset)


def _rows(
    dataset: str, name: str, subset: str | None, split: str, revision: str | None, skip: int
) -> Iterator[tuple[int, str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("pip install 'generative-adapter[train]'") from error
    number = skip
    try:
        source = _source(dataset, subset, split)
        stream = datasets.load_dataset(**source, split=split, revision=revision, streaming=True)
        for row in stream.skip(skip) if skip else stream:
            number += 1
            yield number, f"{name}, split {split!r}, row {number}", row
    except GenerativeAdapterError:
        raise
    except Exception as error:
        place = name if number == skip else f"{name}, split {split!r}, after row {number}"
        raise DataError(f"{place}: {_explain(error)}") from error


def _source(dataset: str, subset: str | None, split: str) -> dict[str, Any]:
    path = Path(dataset)
    if not path.is_file():
        return {"path": str(path) if path.is_dir() else dataset, "name": subset}
    builder = _FILE_BUILDERS.get(path.with_suffix("").suffix if path.suffix in (".zst", ".gz") else path.suffix)
    if builder is None:
        raise DataError(f"{path}: unknown ending; expected one of {', '.join(_FILE_BUILDERS)}, or give it as `paths`")
    return {"path": builder, "data_files": {split: str(path)}}


def _converter_by_content(number: int, where: str, row: Any) -> Converter:
    found = converter_for_row(row)
    if found is None:
        raise DataError(
            f"{where}: no converter is known for rows with {sorted(row)[:12]}; name one that fits as `converter`: "
            f"{', '.join(CONVERTERS)}"
        )
    return found


def _explain(error: Exception) -> str:
    """The library's error in one line with what to do."""
    message = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]} ..."
    lowered = message.lower()
    for sign, remedy in _REMEDIES:
        if sign in lowered:
            return f"{message}; {remedy}"
    if any(_is_network_error(cause) for cause in _causes(error)):
        return f"{message}; {_NO_NETWORK}"
    return f"{message}; the rows from here on can't be read, check the files or give another `revision`"


def _is_network_error(error: BaseException) -> bool:
    of_a_library = type(error).__module__.split(".", 1)[0] in _NETWORK_LIBRARIES
    return of_a_library or isinstance(error, (ConnectionError, TimeoutError))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
