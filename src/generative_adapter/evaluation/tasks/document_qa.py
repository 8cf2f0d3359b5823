"""Document QA: every question of a group of documents, asked against the whole group (section 4.1 of the paper).

Read are the formats of records with questions (`data.records`: SQuAD v1.1, rows with "context" and "qa", the hub's
SQuAD rows) and StreamingQA's two files:

    questions   JSON Lines as published: {"qa_id", "question", "answers": ["..."], "evidence_id", ...}
    documents   JSON Lines: {"sorting_key", "text", ...}, the fields of the documents that StreamingQA's extraction
                script makes of the WMT news crawl; "id" may stand for "sorting_key"

A document is a paragraph of SQuAD, with its article's title on a line before it, or one news text. Questions without an
answer (an empty list) are left out and counted; so are StreamingQA questions whose evidence is not in the documents
file, and documents of it that no question names are not read. An empty document, an answer without text or a line that
is no JSON is refused, with file and line. Leaves out: tokenising, which the caller does.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from generative_adapter.config import PromptConfig, require
from generative_adapter.data.records import numbered_records
from generative_adapter.data.rows import Question, answers_in, text_at
from generative_adapter.errors import DataError
from generative_adapter.evaluation.tasks.document_groups import even_groups, spread
from generative_adapter.evaluation.tasks.protocol import TaskQuery, TaskSample
from generative_adapter.evaluation.tasks.reading import data_name, first_object, json_rows
from generative_adapter.methods.protocol import Context, Query, Wording

METRICS = ("f1", "exact_match", "recall")
MAX_NEW_TOKENS = 32
QUESTION_FORMAT = 'JSON Lines with {"qa_id", "question", "answers", "evidence_id"}'
DOCUMENT_FORMAT = 'JSON Lines with {"sorting_key", "text"}'

_SHORT = (
    "Respond with a short phrase only. Keep the answer short and concise, without any explanation or additional words"
)
WORDINGS = (
    Wording(
        "figure 7",
        f"Instruction: Answer the question. {_SHORT}\n\nQuestion: {{question}}\n\nAnswer:",
        PromptConfig().context,
    ),
    Wording(
        "question and answer",
        "Question: {question}\n\nAnswer:",
        "{context}\n\nQuestion: {question}\n\nAnswer:",
        chat=False,
    ),
    Wording(
        "words of the text",
        "{question}\n\nAnswer with a few words and nothing else.",
        "Text:\n{context}\n\n{question}\n\nAnswer with a few words of the text and nothing else.",
    ),
)
"""The paper's prompt first; closed-book, where there is no "context above", its instruction says so no more."""


@dataclass(frozen=True)
class Document:
    """A text with its questions.

    Attributes:
        id: unique in its file.
        text: the document, its title on the first line where it has one.
        questions: each with its id.
    """

    id: str
    text: str
    questions: tuple[tuple[str, Question], ...] = ()


@dataclass(frozen=True)
class Documents:
    """What was read.

    Attributes:
        name: of the data, in results.
        documents: in the file's order; those without a question stay, as text of their group.
        skipped: questions left out, by reason.
    """

    name: str
    documents: tuple[Document, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(document.questions for document in self.documents):
            left_out = ", ".join(f"{count} {reason}" for reason, count in self.skipped.items()) or "none left out"
            raise DataError(f"{self.name}: no question with an answer and a document ({left_out}); nothing to ask")


def read_documents(path: Path, documents: Path | None = None, *, titles: bool = True) -> Documents:
    """The documents of a file with their questions; the format is found from its content.

    Args:
        path: the file, or StreamingQA's questions.
        documents: StreamingQA's documents; None: the questions' file holds the texts.
        titles: whether a title is put before its paragraph.

    Raises:
        DataError: a file can't be used; the message names file and line.
        MissingDependencyError: a file is compressed or Parquet and the package for it is not installed.
    """
    path = Path(path)
    name = data_name(path)
    if documents is not None:
        return _streaming_qa(name, path, Path(documents))
    row = first_object(path)
    if "evidence_id" in row and "context" not in row:
        raise DataError(
            f"{path}: these are StreamingQA questions, whose texts are in another file; name it too ({DOCUMENT_FORMAT})"
        )
    read, skipped = [], 0
    for number, record in numbered_records(path):
        questions = tuple((f"{number}.{index}", item) for index, item in enumerate(record.questions, 1))
        text = f"{record.title}\n{record.context}" if titles and record.title else record.context
        read.append(Document(f"{number}", text.strip(), questions))
        skipped += record.num_unanswered
    return Documents(name, tuple(read), {"without an answer": skipped} if skipped else {})


def document_shots(
    data: Documents,
    count_tokens: Callable[[str], int],
    *,
    num_shots: int = 3,
    max_tokens: int = 160,
    seed: int = 0,
    excluded: Collection[str] = (),
) -> tuple[tuple[str, str, str], ...]:
    """Answered questions for few-shot prompts: (context, question, answer), one each of short documents, drawn by seed.

    Args:
        data: training documents, never those that are tested.
        count_tokens: number of tokens of a text.
        num_shots: how many.
        max_tokens: longer documents are left out.
        seed: decides which.
        excluded: texts of documents that are not shown.

    Raises:
        DataError: there are fewer such documents.
    """
    order = [document for document in data.documents if document.questions]
    draw = random.Random(f"{seed}/shots")
    draw.shuffle(order)
    shots: list[tuple[str, str, str]] = []
    for document in order:
        if len(shots) == num_shots:
            break
        if document.text not in excluded and count_tokens(document.text) <= max_tokens:
            _, item = draw.choice(document.questions)
            shots.append((document.text, item.question.strip(), item.answers[0]))
    if len(shots) < num_shots:
        raise DataError(
            f"{data.name}: {len(shots)} documents with a question have at most {max_tokens} tokens, expected "
            f"{num_shots}; allow longer ones"
        )
    return tuple(shots)


@dataclass(frozen=True)
class DocumentQa:
    """Document QA at one group size: the task (`protocol.Task`).

    Attributes:
        data: documents with their questions.
        count_tokens: number of tokens of a text.
        context_tokens: k, the tokens that groups average (`document_groups.even_groups`).
        limit: how many questions are asked in all, spread evenly over the groups, whose texts stay whole; a group that
            no question falls on is left out. None: all.
        max_contexts: at most so many groups are kept, drawn by seed, before questions are spread. None: all.
        shuffle: whether documents are put in an order by seed first; else neighbours in the file, such as paragraphs of
            an article, share a group.
        seed: of every draw.
        shots: answered queries of training documents; each wording stands once more with them.
    """

    data: Documents
    count_tokens: Callable[[str], int]
    context_tokens: int
    limit: int | None = None
    max_contexts: int | None = None
    shuffle: bool = False
    seed: int = 0
    shots: tuple[tuple[str, str, str], ...] = ()

    @property
    def name(self) -> str:
        """The data's name with k."""
        return f"document-qa/{self.data.name}/{self.context_tokens}"

    @property
    def skipped(self) -> Mapping[str, int]:
        """Questions that could not be used, by reason."""
        return self.data.skipped

    def samples(self) -> Iterator[TaskSample]:
        """One sample a group: its documents joined by a blank line in their order, and its questions."""
        require(self.max_contexts is None or self.max_contexts > 0, "max_contexts must be positive")
        documents = list(self.data.documents)
        if self.shuffle:
            random.Random(f"{self.seed}/documents").shuffle(documents)
        sizes = [max(1, self.count_tokens(document.text)) for document in documents]
        groups = list(enumerate(even_groups(sizes, self.context_tokens)))
        groups = [item for item in groups if any(documents[index].questions for index in item[1])]
        if self.max_contexts is not None and self.max_contexts < len(groups):
            order = groups[:]
            random.Random(f"{self.seed}/contexts").shuffle(order)
            groups = sorted(order[: self.max_contexts])
        asked = [[question for index in group for question in documents[index].questions] for _, group in groups]
        taken = spread([len(questions) for questions in asked], self.limit, self.seed)
        wordings = with_shots(WORDINGS, self.shots)
        for (number, group), questions, chosen in zip(groups, asked, taken, strict=True):
            if not chosen:
                continue
            texts = tuple(documents[index].text for index in group)
            text = "\n\n".join(texts)
            yield TaskSample(
                id=f"{self.name}/{number:05d}",
                context=Context(text, texts),
                queries=tuple(_query(*questions[index]) for index in chosen),
                wordings=wordings,
                max_new_tokens=MAX_NEW_TOKENS,
                metrics=METRICS,
                metadata={
                    "context_tokens": self.context_tokens,
                    "num_tokens": self.count_tokens(text),
                    "num_documents": len(texts),
                },
            )


def with_shots(wordings: Sequence[Wording], shots: tuple[tuple[str, str, str], ...]) -> tuple[Wording, ...]:
    """The wordings, and where there are shots each of them once more with these."""
    shown = [replace(item, name=f"{item.name}, {len(shots)} shots", shots=shots) for item in wordings if shots]
    return (*wordings, *shown)


def _query(identity: str, item: Question) -> TaskQuery:
    return TaskQuery(identity, Query(item.question.strip()), item.answers)


def _streaming_qa(name: str, path: Path, documents: Path) -> Documents:
    skipped: Counter[str] = Counter()
    by_evidence: dict[str, list[tuple[str, Question]]] = {}
    seen: set[str] = set()
    for where, row in json_rows(path, QUESTION_FORMAT):
        identity, evidence = text_at(row, "qa_id", where), text_at(row, "evidence_id", where)
        question = text_at(row, "question", where).strip()
        answers = answers_in(row.get("answers"), where)
        if identity in seen:
            raise DataError(f"{where}: the qa_id {identity!r} stands in the file before; expected unique ones")
        seen.add(identity)
        if not answers:
            skipped["without an answer"] += 1
            continue
        by_evidence.setdefault(evidence, []).append((identity, Question(question, answers)))
    read = []
    found: set[str] = set()
    for where, row in json_rows(documents, DOCUMENT_FORMAT):
        key = text_at(row, "sorting_key" if "sorting_key" in row else "id", where)
        text = text_at(row, "text", where).strip()
        if key in found:
            raise DataError(f"{where}: the document {key!r} stands in the file before; expected unique ones")
        if key in by_evidence:
            found.add(key)
            read.append(Document(key, text, tuple(by_evidence[key])))
    if missing := sum(len(questions) for key, questions in by_evidence.items() if key not in found):
        skipped["whose evidence is not in the documents file"] = missing
    return Documents(name, tuple(read), dict(skipped))
