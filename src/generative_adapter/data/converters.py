"""Converters: rows of a data set to records, found by name or by the id of a hub data set.

A converter reads one row after the other (`instruction_sets.py` says which fields of which set) and then puts rows
together: those of one context, some demonstrations of one task, or several contexts in one record.

What the paper leaves open, and what Table 3 of arXiv:2411.05877 tells of it: its CoQA and DROP documents are as long as
four of the set's own contexts and its MS MARCO documents as long as one passage a question, so contexts must have been
joined. The converters `coqa_joined`, `drop_joined` and `ms_marco_joined` do that; those found by a hub id do not, since
a question then has one text to be about.

Leaves out: reading rows from files (`records.py`) and from the hub (`hub.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from generative_adapter.data import instruction_sets as sets
from generative_adapter.data.rows import Record, Row
from generative_adapter.errors import ConfigError, DataError

NumberedRecord = tuple[int, Record]

_DEMONSTRATIONS = 16
_QUESTIONS_OF_A_TASK = 4


@dataclass(frozen=True)
class Converter:
    """How the rows of a data set become records.

    Attributes:
        name: what a recipe calls it.
        read: one row to one record, or to None where the row is left out; the text says which row for errors.
        datasets: ids of the hub sets that it is for.
        grouping: `row`, a record each; `context`, consecutive rows of one context in one record; `task`, 16 rows of
            one task (the record's `source`) as the context and up to 4 further rows as its questions.
        joined: how many contexts a record then takes up, with all their questions.
    """

    name: str
    read: Callable[[Row, str], Record | None]
    datasets: tuple[str, ...] = ()
    grouping: str = "row"
    joined: int = 1

    def records(self, rows: Iterable[tuple[int, str, Any]], source: str) -> Iterator[NumberedRecord]:
        """Yields records, each with the number of the last row that is in it.

        Whoever starts again behind that row goes on with the next record: no row is lost or read twice.

        Args:
            rows: number (counted from 1), place (for errors) and content of each row.
            source: the `source` of records that have none of their own.

        Raises:
            DataError: a row lacks a field or holds something else; the message names place and field.
        """
        read = self._read(rows)
        grouped = _GROUPINGS[self.grouping](read)
        for number, record in _joined(grouped, self.joined) if self.joined > 1 else grouped:
            yield number, record if record.source else replace(record, source=source)

    def _read(self, rows: Iterable[tuple[int, str, Any]]) -> Iterator[NumberedRecord]:
        for number, where, row in rows:
            if not isinstance(row, Mapping):
                raise DataError(f"{where}: not an object but a {type(row).__name__}; expected a row with named fields")
            if (record := self.read(row, where)) is not None:
                yield number, record


def _by_context(records: Iterable[NumberedRecord]) -> Iterator[NumberedRecord]:
    group: NumberedRecord | None = None
    for number, record in records:
        if group and group[1].context == record.context:
            num_unanswered = group[1].num_unanswered + record.num_unanswered
            record = replace(group[1], questions=group[1].questions + record.questions, num_unanswered=num_unanswered)
        elif group:
            yield group
        group = number, record
    if group:
        yield group


def _by_task(records: Iterable[NumberedRecord]) -> Iterator[NumberedRecord]:
    group: list[NumberedRecord] = []
    for item in records:
        if group and (len(group) == _DEMONSTRATIONS + _QUESTIONS_OF_A_TASK or group[0][1].source != item[1].source):
            yield from _demonstrations(group)
            group = []
        group.append(item)
    yield from _demonstrations(group)


def _demonstrations(group: list[NumberedRecord]) -> Iterator[NumberedRecord]:
    """One record of the rows of a task; of fewer than 20 rows, the same share are questions, but at least one."""
    if len(group) < 2:  # nothing to show, or nothing to ask
        return
    share = _QUESTIONS_OF_A_TASK / (_DEMONSTRATIONS + _QUESTIONS_OF_A_TASK)
    shown = len(group) - max(1, int(len(group) * share))
    rows = [record for _, record in group]
    questions = tuple(question for row in rows[shown:] for question in row.questions)
    yield group[-1][0], Record("\n\n".join(row.context for row in rows[:shown]), questions, rows[0].source)


def _joined(records: Iterable[NumberedRecord], count: int) -> Iterator[NumberedRecord]:
    group: list[Record] = []
    number = 0
    for number, record in records:
        group.append(record)
        if len(group) == count:
            yield number, _join(group)
            group = []
    if group:
        yield number, _join(group)


def _join(group: list[Record]) -> Record:
    context = "\n\n".join(record.context.strip() for record in group)
    return Record(context, tuple(question for record in group for question in record.questions), group[0].source)


_GROUPINGS: dict[str, Callable[[Iterable[NumberedRecord]], Iterator[NumberedRecord]]] = {
    "row": iter,
    "context": _by_context,
    "task": _by_task,
}

_ALL = (
    Converter("text", sets.read_text, (
        "cerebras/SlimPajama-627B", "DKYoon/SlimPajama-6B", "allenai/c4", "HuggingFaceFW/fineweb",
        "HuggingFaceFW/fineweb-edu", "wikimedia/wikipedia")),
    Converter("questions", sets.read_questions),
    Converter("squad", sets.read_squad, ("rajpurkar/squad", "rajpurkar/squad_v2"), grouping="context"),
    Converter("coqa", sets.read_coqa, ("stanfordnlp/coqa",)),
    Converter("coqa_turns", sets.read_coqa_turns),
    Converter("coqa_joined", sets.read_coqa, joined=4),
    Converter("drop", sets.read_drop, ("ucinlp/drop",), grouping="context"),
    Converter("drop_joined", sets.read_drop, grouping="context", joined=4),
    Converter("narrativeqa", sets.read_narrativeqa, ("deepmind/narrativeqa",), grouping="context"),
    Converter("pubmedqa", sets.read_pubmedqa, ("qiaojin/PubMedQA",)),
    Converter("quail", sets.read_quail, ("textmachinelab/quail",), grouping="context"),
    Converter("ms_marco", sets.read_ms_marco, ("microsoft/ms_marco",)),
    Converter("ms_marco_joined", sets.read_ms_marco_selected, joined=16),
    Converter("metaicl", sets.read_metaicl, grouping="task"),
    Converter("metaicl_train", sets.read_metaicl_train, ("allenai/metaicl-data",), grouping="task"),
    Converter("booksum", sets.read_booksum, ("kmfoda/booksum",)),
    Converter("pwc", sets.read_pwc, ("sggetao/PwC",), grouping="context"),
)  # fmt: skip

CONVERTERS: dict[str, Converter] = {converter.name: converter for converter in _ALL}
_BY_DATASET = {dataset.lower(): converter for converter in _ALL for dataset in converter.datasets}


def converter_named(name: str) -> Converter:
    """Returns the converter of that name.

    Raises:
        ConfigError: there is none; the message lists the names.
    """
    if name not in CONVERTERS:
        raise ConfigError(f"unknown converter {name!r}; expected one of {', '.join(CONVERTERS)}")
    return CONVERTERS[name]


def converter_for(dataset: str) -> Converter:
    """Returns the converter of a hub data set; letters' case does not matter.

    Raises:
        ConfigError: none is known for it; the message lists the sets and what to do.
    """
    if dataset.lower() not in _BY_DATASET:
        known = ", ".join(name for converter in _ALL for name in converter.datasets)
        raise ConfigError(
            f"no converter is known for the data set {dataset!r}; expected one of {known}; for another set name a "
            f"converter that fits its rows: {', '.join(CONVERTERS)}"
        )
    return _BY_DATASET[dataset.lower()]


def has_converter(dataset: str) -> bool:
    """Whether `converter_for` knows the data set."""
    return dataset.lower() in _BY_DATASET


def converter_for_row(row: Any) -> Converter | None:
    """Returns the converter that a row's fields call for (text, questions, squad, metaicl), None where none does."""
    fields = set(row) if isinstance(row, Mapping) else set()
    for name, expected in (
        ("squad", {"context", "question", "answers"}),
        ("questions", {"context", "qa"}),
        ("metaicl", {"task", "input", "output"}),
        ("text", {"text"}),
    ):
        if expected <= fields:
            return CONVERTERS[name]
    return None
