"""Controls: another task's samples with the wrong document, a shuffled one, or questions that it says nothing about.

    own               as they are, to stand beside the others
    other-document    each sample's questions about the context of another sample that shares no text with it
    shuffled          its questions about its own document with the words in random order
    unrelated         general-knowledge questions about its own document: what the base model knew before

An answer that comes from the document must get lost under the first two wrong ones; an unrelated answer must not change
(`evaluation.interference`). Leaves out: which tasks there are.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from generative_adapter.config import require
from generative_adapter.data.facts_vocabulary import read_table
from generative_adapter.errors import DataError
from generative_adapter.evaluation.tasks.derangement import derangement
from generative_adapter.evaluation.tasks.document_qa import MAX_NEW_TOKENS, METRICS
from generative_adapter.evaluation.tasks.haystack import sentences, words_of
from generative_adapter.evaluation.tasks.protocol import Task, TaskQuery, TaskSample
from generative_adapter.methods.protocol import Context, Query

CONTROL = "control"
"""Key of a sample's metadata that says which control it is: one of `LABELS`' values."""
LABELS = {
    "own": "own document",
    "other-document": "other document",
    "shuffled": "shuffled document",
    "unrelated": "unrelated question",
}
NUM_SHARED_WORDS = 8  # sentences that are shorter, such as titles and greetings, may stand in several documents


@dataclass(frozen=True)
class Control:
    """A task's samples under one control: a task itself (`protocol.Task`).

    Attributes:
        task: whose samples are changed.
        control: a key of `LABELS`.
        seed: of the assignment of documents, of word orders, and of which unrelated questions are asked.
        num_unrelated: how many unrelated questions each context gets, the same for all; None: all of them.
    """

    task: Task
    control: str
    seed: int = 0
    num_unrelated: int | None = None

    def __post_init__(self) -> None:
        require(self.control in LABELS, f"unknown control {self.control!r}; expected one of {', '.join(LABELS)}")
        require(
            self.num_unrelated is None or 0 < self.num_unrelated <= len(unrelated_questions()),
            f"num_unrelated must lie in 1..{len(unrelated_questions())}, got {self.num_unrelated}",
        )

    @property
    def name(self) -> str:
        """The task's name and the control's."""
        return f"{self.task.name}/{self.control}"

    @property
    def skipped(self) -> Mapping[str, int]:
        """What the task left out."""
        return self.task.skipped

    def samples(self) -> Iterator[TaskSample]:
        """One sample for each of the task's, in its order.

        Raises:
            DataError: for `other-document`, where samples can't be given documents that share nothing with their own.
        """
        changed: dict[str, Callable[[], Iterator[TaskSample]]] = {
            "own": self.task.samples,
            "other-document": lambda: _other_documents(list(self.task.samples()), self.seed),
            "shuffled": lambda: (_shuffled(sample, self.seed) for sample in self.task.samples()),
            "unrelated": self._unrelated,
        }
        for sample in changed[self.control]():
            metadata = {**sample.metadata, CONTROL: LABELS[self.control]}
            yield replace(sample, id=f"{sample.id}/{self.control}", metadata=metadata)

    def _unrelated(self) -> Iterator[TaskSample]:
        queries = list(unrelated_questions())
        if self.num_unrelated is not None:
            random.Random(f"{self.seed}/unrelated").shuffle(queries)
            queries = sorted(queries[: self.num_unrelated], key=lambda query: query.id)
        for sample in self.task.samples():
            yield replace(sample, queries=tuple(queries), max_new_tokens=MAX_NEW_TOKENS, metrics=METRICS)


@lru_cache(maxsize=1)
def unrelated_questions() -> tuple[TaskQuery, ...]:
    """The packaged questions of general knowledge and everyday life, with short answers."""
    return tuple(
        TaskQuery(
            f"unrelated-{number:03d}",
            Query(row["question"]),
            tuple(row["answers"]),
            {"category": row["category"]},
        )
        for number, row in enumerate(read_table("unrelated_questions.json"), 1)
    )


def text_parts(context: Context) -> set[str]:
    """What another context must not share: documents, demonstrations, and sentences of at least eight words.

    Compared without case and punctuation.
    """
    parts = {" ".join(words_of(document)) for document in (context.documents or (context.text,))}
    parts |= {" ".join(words_of(f"{given} {answer}")) for given, answer in context.examples}
    found = (words_of(piece.text) for piece in sentences(context.text))
    return parts | {" ".join(words) for words in found if len(words) >= NUM_SHARED_WORDS}


def _other_documents(samples: Sequence[TaskSample], seed: int) -> Iterator[TaskSample]:
    holders: dict[str, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        for part in text_parts(sample.context):
            holders[part].append(index)
    sharing: list[set[int]] = [{index} for index in range(len(samples))]
    for indices in holders.values():
        for index in indices:
            sharing[index].update(indices)
    donors = derangement(sharing, seed)
    if donors is None:
        raise DataError(
            f"{len(samples)} samples can't all be given the document of another that shares no text with their own; "
            "take more contexts, or ones that overlap less"
        )
    for sample, donor in zip(samples, donors, strict=True):
        yield replace(
            sample,
            context=samples[donor].context,
            metadata={**sample.metadata, "context_of": samples[donor].id},
        )


def _shuffled(sample: TaskSample, seed: int) -> TaskSample:
    draw = random.Random(f"{seed}/shuffled/{sample.id}")
    own = sample.context
    context = Context(
        _shuffled_words(own.text, draw),
        tuple(_shuffled_words(document, draw) for document in own.documents),
        tuple((_shuffled_words(given, draw), _shuffled_words(answer, draw)) for given, answer in own.examples),
    )
    return replace(sample, context=context)


def _shuffled_words(text: str, draw: random.Random) -> str:
    words = text.split()
    draw.shuffle(words)
    return " ".join(words)
