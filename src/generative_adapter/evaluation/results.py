"""What an evaluation keeps on disk: one JSON line for each sample that a method has answered (docs/evaluation.md).

A folder holds `samples.jsonl`, to which lines are added as they are made, so that a run that was killed loses the
sample it was at and nothing else. A line's key is a hash of everything the answers depend on; a run looks its samples
up by key, so a line is taken again exactly while nothing that matters has changed. No torch. Leaves out: running
(`runner`), and means over lines (`summary`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from generative_adapter.errors import DataError
from generative_adapter.evaluation.json_lines import append_line, cut_unfinished_line

SCHEMA_VERSION = 1
SAMPLES_FILE = "samples.jsonl"
TEST, CHOICE = "test", "choice"


@dataclass(frozen=True)
class QueryResult:
    """One query, the answer to it and its judgement.

    Attributes:
        id: of the query within its sample.
        question: as it was asked.
        references: right answers.
        answer: the answer, or the chosen option.
        values: by metric name, in 0..1.
        options: answers to choose from; empty where the answer was generated.
        option_scores: mean log-probability of a token of each option.
        num_prompt_tokens: tokens read for this query alone.
        num_cached_tokens: tokens before them whose keys and values were at hand.
        num_new_tokens: tokens generated, or of all options together.
        seconds: of wall time, this query's part of its batch; differs from run to run.
        metadata: of the query, such as a category.
    """

    id: str
    question: str
    references: tuple[str, ...]
    answer: str
    values: Mapping[str, float]
    options: tuple[str, ...] = ()
    option_scores: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_new_tokens: int = 0
    seconds: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleResult:
    """What one method made of one sample: a line of `samples.jsonl`.

    Attributes:
        key: hash of all that the answers depend on.
        task: name of the task.
        role: `test`, or `choice` where a wording is chosen on training data.
        method: its name.
        wording: name of the wording that the queries were put in.
        sample: id of the sample.
        context_id: hash of the context's text; the cluster for confidence intervals.
        metadata: of the sample.
        metrics: names, the main one first.
        costs: `methods.protocol.Costs` as a mapping, without its seconds; None: not recorded.
        measured: `contextualizing_seconds` and `answering_seconds` of wall time, `peak_memory_bytes` of the process or
            the device, None where it can't be had; they differ from run to run.
        queries: in the sample's order.
    """

    key: str
    task: str
    role: str
    method: str
    wording: str
    sample: str
    context_id: str
    metadata: Mapping[str, Any]
    metrics: tuple[str, ...]
    costs: Mapping[str, float | None]
    measured: Mapping[str, float | None]
    queries: tuple[QueryResult, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> SampleResult:
        """What `to_dict` wrote.

        Raises:
            DataError: something is missing, or a later version wrote it.
        """
        if values.get("schema_version") != SCHEMA_VERSION:
            raise DataError(
                f"{where}: schema_version {values.get('schema_version')!r}, expected {SCHEMA_VERSION}; use the version "
                "of this package that wrote it, or another folder"
            )
        try:
            own = {item.name: values[item.name] for item in fields(cls)}
            queries = tuple(_query(query) for query in own.pop("queries"))
            return cls(**{**own, "metrics": tuple(own["metrics"]), "queries": queries})
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: no result of this schema ({error}); give another folder") from error


class ResultLog:
    """The lines of a folder, by key.

    Args:
        folder: made where it is missing.

    Raises:
        DataError: a line other than an unfinished last one is broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / SAMPLES_FILE
        cut_unfinished_line(self.path)
        self._kept = {result.key: result for result in read_results(self.path)} if self.path.is_file() else {}

    def get(self, key: str) -> SampleResult | None:
        """The result of a key, if there is one."""
        return self._kept.get(key)

    def add(self, result: SampleResult) -> None:
        """Writes a line and waits until it is on the disk."""
        append_line(self.path, result.to_dict())
        self._kept[result.key] = result


def read_results(path: Path) -> Iterator[SampleResult]:
    """The lines of a `samples.jsonl`; an unfinished last one, as a killed or running evaluation leaves, is left out.

    Raises:
        DataError: a line is no result; the message names file and line.
    """
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            try:
                values = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return
                reason = getattr(error, "msg", error)
                raise DataError(f"{where}: not valid JSON ({reason}); delete the line to run it again") from error
            if not isinstance(values, dict):
                raise DataError(f"{where}: not an object but a {type(values).__name__}; delete the line")
            yield SampleResult.from_dict(values, where)


def _query(values: Mapping[str, Any]) -> QueryResult:
    own = {item.name: values[item.name] for item in fields(QueryResult)}
    for name in ("references", "options", "option_scores"):
        own[name] = tuple(own[name])
    return QueryResult(**own)
