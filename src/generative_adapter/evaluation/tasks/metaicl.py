"""MetaICL: test rows of a task after K demonstrations of it (section 4.2 and Table 4 of the paper).

A task is a folder as MetaICL writes it, rows {"task", "input", "output", "options"}:

    TASK/TASK_16_SEED_train.jsonl      the 16 demonstrations of one draw
    TASK/TASK_test.jsonl               the test rows; each file may be compressed (.zst, .gz)

K demonstrations are the first K rows of a draw's file, whose order is random, so fewer are part of more. The likeliest
option is the answer, scored by accuracy, as MetaICL and the paper do; rows without options are answered freely, scored
by exact match and F1. Leaves out: means over draws, which results tell apart by their metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from generative_adapter.config import require
from generative_adapter.data.rows import text_at, texts_at
from generative_adapter.errors import DataError
from generative_adapter.evaluation.tasks.document_groups import spread
from generative_adapter.evaluation.tasks.protocol import TaskQuery, TaskSample
from generative_adapter.evaluation.tasks.reading import json_rows
from generative_adapter.methods.protocol import Context, Query, Wording

SHOTS = (1, 2, 4, 8, 16)
DRAWS = (13, 21, 42, 87, 100)
MAX_NEW_TOKENS = 32
ROW_FORMAT = 'JSON Lines with {"task", "input", "output", "options"}'
# What MetaICL's configuration says of its 26 test tasks of the "hr to lr" setting, which are the paper's.
CLASSIFICATION_TASKS = frozenset((
    "climate_fever", "ethos-national_origin", "ethos-race", "ethos-religion", "financial_phrasebank", "glue-mrpc",
    "glue-rte", "glue-wnli", "hate_speech18", "medical_questions_pairs", "poem_sentiment", "sick", "superglue-cb",
    "tweet_eval-hate", "tweet_eval-stance_atheism", "tweet_eval-stance_feminist",
))  # fmt: skip
OTHER_TASKS = frozenset((
    "ai2_arc", "codah", "commonsense_qa", "dream", "openbookqa", "qasc", "quarel", "quartz-no_knowledge",
    "quartz-with_knowledge", "superglue-copa",
))  # fmt: skip
WORDINGS = (
    Wording(
        "figure 7",
        "Instruction: Provide a short and concise answer, without any explanation or additional words.\n\n{question}",
        "{context}\n\nInstruction: Based on the demonstration above, provide a short and concise answer, without any "
        "explanation or additional words.\n\n{question}",
    ),
    Wording("demonstrations alone", "{question}", "{context}\n\n{question}", chat=False),
    Wording("demonstrations alone, as a message", "{question}", "{context}\n\n{question}"),
)
"""The paper's prompt first; without demonstrations its instruction doesn't speak of one above."""


@dataclass(frozen=True)
class Row:
    """One demonstration or test row."""

    given: str
    output: str
    options: tuple[str, ...]

    @property
    def question(self) -> str:
        """The row up to its answer. Input and output marks are part of it, as in the demonstrations."""
        return f"Input: {self.given}\nOutput:"

    @property
    def demonstration(self) -> str:
        """The row with its answer."""
        return f"{self.question} {self.output}"


def task_names(folder: Path) -> tuple[str, ...]:
    """The tasks in a folder, by name: the subfolders that hold their test rows.

    Raises:
        DataError: there is none.
    """
    folder = Path(folder)
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    names = tuple(path.name for path in inside if path.is_dir() and _existing(path / f"{path.name}_test.jsonl"))
    if not names:
        raise DataError(f"{folder}: no MetaICL task; expected folders TASK with a file TASK_test.jsonl")
    return names


@dataclass(frozen=True)
class MetaIcl:
    """One MetaICL task with its draws and numbers of demonstrations: the task (`protocol.Task`).

    Attributes:
        folder: that holds the task's folder.
        task: name of the task and its folder.
        shots: numbers K of demonstrations.
        draws: seeds in the names of the demonstrations' files.
        limit: how many test rows are asked, the same for all K and draws, drawn by seed; None: all.
        free: whether tasks other than classification are answered freely instead of by the likeliest option.
        seed: of the draw of test rows.
    """

    folder: Path
    task: str
    shots: tuple[int, ...] = SHOTS
    draws: tuple[int, ...] = DRAWS
    limit: int | None = None
    free: bool = False
    seed: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        require(
            len(self.shots) > 0 and all(shots > 0 for shots in self.shots),
            f"shots must be positive, got {self.shots}; without demonstrations use the closed-book method",
        )
        require(len(self.draws) > 0, "draws is empty; name the seed of at least one file of demonstrations")

    @property
    def name(self) -> str:
        """`metaicl/` and the task."""
        return f"metaicl/{self.task}"

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """All test rows."""
        return read_rows(self._file("test"))

    @cached_property
    def classification(self) -> bool:
        """Whether this is a classification task: as MetaICL says, for tasks it has, else if all rows share one set."""
        if self.task in CLASSIFICATION_TASKS | OTHER_TASKS:
            return self.task in CLASSIFICATION_TASKS
        return len({frozenset(row.options) for row in self.rows}) == 1 and len(self.rows[0].options) > 1

    def samples(self) -> Iterator[TaskSample]:
        """One sample a draw and K: the demonstrations, and the test rows as queries."""
        (chosen,) = spread([len(self.rows)], self.limit, self.seed)
        queries, metrics = self.queries({index: self.rows[index] for index in chosen})
        for draw in self.draws:
            shown = self.demonstrations(draw)
            for shots in self.shots:
                yield self.sample(draw, shown[:shots], queries, metrics)

    def queries(self, rows: Mapping[int, Row]) -> tuple[tuple[TaskQuery, ...], tuple[str, ...]]:
        """Rows as queries, by number, and the metrics that judge them.

        Raises:
            DataError: some rows have options and some have none.
        """
        by_options = self.classification or not self.free
        queries = tuple(_query(index, row, by_options) for index, row in rows.items())
        with_options = {bool(query.query.options) for query in queries}
        if len(with_options) > 1:
            raise DataError(
                f"{self._file('test')}: some rows have options and some have none; expected one or the other"
            )
        return queries, ("accuracy",) if True in with_options else ("exact_match", "f1")

    def choice(self, num_draws: int = 2) -> MetaIclChoice:
        """The same task on demonstrations alone, to choose a wording by without a test row."""
        return MetaIclChoice(self, num_draws)

    def demonstrations(self, draw: int) -> tuple[Row, ...]:
        """The demonstrations of a draw.

        Raises:
            DataError: there are fewer than the most that are shown.
        """
        path = self._file(f"16_{draw}_train")
        shown = read_rows(path)
        if len(shown) < max(self.shots):
            raise DataError(f"{path}: {len(shown)} demonstrations; expected at least {max(self.shots)}")
        return shown

    def sample(
        self, draw: int, shown: Sequence[Row], queries: tuple[TaskQuery, ...], metrics: tuple[str, ...]
    ) -> TaskSample:
        """Queries after demonstrations."""
        blocks = tuple(row.demonstration for row in shown)
        examples = tuple((row.question, row.output) for row in shown)
        metadata: dict[str, Any] = {
            "task": self.task,
            "classification": self.classification,
            "shots": len(shown),
            "draw": draw,
        }
        return TaskSample(
            id=f"{self.name}/{len(shown):02d}-shot/draw-{draw}",
            context=Context("\n\n".join(blocks), blocks, examples),
            queries=queries,
            wordings=WORDINGS,
            max_new_tokens=MAX_NEW_TOKENS,
            metrics=metrics,
            metadata=metadata,
        )

    def _file(self, ending: str) -> Path:
        path = Path(self.folder) / self.task / f"{self.task}_{ending}.jsonl"
        found = _existing(path)
        if found is None:
            raise DataError(f"{path}: no such file, nor with .zst or .gz; expected {ROW_FORMAT}")
        return found


@dataclass(frozen=True)
class MetaIclChoice:
    """Demonstrations asked after demonstrations: the task (`protocol.Task`) that a wording is chosen by.

    After a draw's demonstrations, as many as are shown at most, come those of the next draw that are not among them;
    where there is one draw, its second half comes after its first.

    Attributes:
        tested: the task that the wording is for.
        num_draws: how many draws are shown.
    """

    tested: MetaIcl
    num_draws: int = 2
    skipped: Mapping[str, int] = field(default_factory=dict, init=False)

    @property
    def name(self) -> str:
        """The task's name with `/choice`."""
        return f"{self.tested.name}/choice"

    def samples(self) -> Iterator[TaskSample]:
        """One sample a draw."""
        draws = self.tested.draws
        for number, draw in enumerate(draws[: self.num_draws]):
            shown = self.tested.demonstrations(draw)[: max(self.tested.shots)]
            asked = self.tested.demonstrations(draws[(number + 1) % len(draws)])
            rows = {index: row for index, row in enumerate(asked) if row not in shown}
            if not rows:
                half = max(1, len(asked) // 2)
                shown, rows = asked[:half], dict(enumerate(asked[half:] or asked))
            queries, metrics = self.tested.queries(rows)
            yield self.tested.sample(draw, shown, queries, metrics)


def read_rows(path: Path) -> tuple[Row, ...]:
    """The rows of a file.

    Raises:
        DataError: a line is broken, or its output is none of its options; the message names file and line.
    """
    rows = []
    for where, row in json_rows(path, ROW_FORMAT):
        text_at(row, "task", where)
        options = tuple(option.strip() for option in texts_at(row, "options", where)) if "options" in row else ()
        output = text_at(row, "output", where).strip()
        if options and output not in options:
            raise DataError(
                f'{where}: the output {output!r} is none of "options" {list(options)}; expected one of them'
            )
        if not all(options):
            raise DataError(f'{where}: "options" holds an empty text; expected answers')
        rows.append(Row(text_at(row, "input", where).strip(), output, options))
    return tuple(rows)


def _query(index: int, row: Row, by_options: bool) -> TaskQuery:
    return TaskQuery(f"{index}", Query(row.question, row.options if by_options else ()), (row.output,))


def _existing(path: Path) -> Path | None:
    candidates = (path, path.with_name(f"{path.name}.zst"), path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
