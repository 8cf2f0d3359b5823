"""Personalisation: questions about a conversation of several sessions (section 4.3 and Table 1 of the paper).

Two formats, told from content:

    Multi-Session Chat   JSON Lines: {"id", "sessions": [{"session", "dialog": [{"speaker": 1, "text", "fact"}]}]}
    LoCoMo               JSON: [{"sample_id", "conversation": {"session_1": [{"speaker", "text"}],
                         "session_1_date_time": "..."}, "qa": [{"question", "answer", "category"}]}]

A conversation is written session by session, a line a turn: in Multi-Session Chat "Speaker 1: ..." below a heading
"Session 1"; in LoCoMo with the speakers' names, since its questions use them, the session's date in the heading, since
its questions ask for dates, and the caption of a shared picture behind the turn.

Multi-Session Chat has no questions: they are made from the facts that its turns are annotated with
(`persona_questions`), not from the personas that the speakers were given, which they may never have told. LoCoMo's
adversarial questions ask for what was never said and have no right answer; they are left out and counted, as is a
question without an answer. Its own evaluation stems words and splits lists; here F1 is SQuAD's for all tasks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generative_adapter.config import PromptConfig, require
from generative_adapter.data.rows import Row, checked_text, kind, text_at
from generative_adapter.errors import DataError
from generative_adapter.evaluation.tasks.document_groups import spread
from generative_adapter.evaluation.tasks.document_qa import with_shots
from generative_adapter.evaluation.tasks.persona_questions import questions_of, sentences
from generative_adapter.evaluation.tasks.protocol import TaskQuery, TaskSample
from generative_adapter.evaluation.tasks.reading import data_name, json_rows
from generative_adapter.methods.protocol import Context, Query, Wording

METRICS = ("f1", "exact_match", "recall")
MAX_NEW_TOKENS = 32
FORMAT = 'Multi-Session Chat rows with {"id", "sessions"} or LoCoMo objects with {"sample_id", "conversation", "qa"}'
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
"""LoCoMo's question categories, by the numbers in its files."""

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
        "conversation",
        f"Question: {{question}}\n\n{_SHORT}.",
        f"This is a conversation.\n\n{{context}}\n\nQuestion about the conversation: {{question}}\n\n{_SHORT}.",
    ),
    Wording(
        "question and answer",
        "Question: {question}\n\nAnswer:",
        "{context}\n\nQuestion: {question}\n\nAnswer:",
        chat=False,
    ),
)
"""The paper's prompt first; closed-book, where there is no "context above", its instruction says so no more."""


@dataclass(frozen=True)
class Conversation:
    """A conversation with its questions.

    Attributes:
        id: unique in its file.
        sessions: the text of each.
        queries: with their references.
    """

    id: str
    sessions: tuple[str, ...]
    queries: tuple[TaskQuery, ...]

    @property
    def text(self) -> str:
        """The sessions in order, a blank line between them."""
        return "\n\n".join(self.sessions)


@dataclass(frozen=True)
class Conversations:
    """What was read.

    Attributes:
        name: of the data, in results.
        conversations: in the file's order; those without a question are left out.
        skipped: what was left out, by reason.
        num_facts: persona facts told in the conversations (0 for LoCoMo); those that made a question are these less the
            skipped ones.
    """

    name: str
    conversations: tuple[Conversation, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    num_facts: int = 0


def read_conversations(path: Path) -> Conversations:
    """The conversations of a file with their questions; the format is found from its content.

    Raises:
        DataError: the file can't be used, or has no question; the message names file and line.
        MissingDependencyError: the file is compressed and `zstandard` is not installed.
    """
    path = Path(path)
    skipped: Counter[str] = Counter()
    read: list[Conversation] = []
    seen: set[str] = set()
    num_facts = 0
    for where, row in json_rows(path, FORMAT):
        if "sessions" in row:
            conversation, facts = _multi_session_chat(row, where, skipped)
            num_facts += facts
        elif "conversation" in row and "qa" in row:
            conversation = _locomo(row, where, skipped)
        else:
            raise DataError(f"{where}: unknown format, found an object with {sorted(row)[:8]}; expected {FORMAT}")
        if conversation.id in seen:
            raise DataError(f"{where}: the id {conversation.id!r} stands in the file before; expected unique ones")
        seen.add(conversation.id)
        if conversation.queries:
            read.append(conversation)
        else:
            skipped["conversations without a question"] += 1
    if not read:
        raise DataError(f"{path}: no conversation has a question with an answer; nothing to ask")
    return Conversations(data_name(path), tuple(read), dict(skipped), num_facts)


def conversation_shots(data: Conversations, num_shots: int = 3) -> tuple[tuple[str, str, str], ...]:
    """Answered questions for few-shot prompts: (session, question, answer) of the first conversations.

    A whole conversation would fill the prompt, so each shot shows the shortest session with words of the answer in it.

    Args:
        data: training conversations, never those that are tested.
        num_shots: how many.

    Raises:
        DataError: fewer conversations have such a session.
    """
    shots: list[tuple[str, str, str]] = []
    for conversation in data.conversations:
        if len(shots) == num_shots:
            break
        pairs = [
            (session, query.query.question, query.references[0])
            for query in conversation.queries
            for session in conversation.sessions
            if query.references[0].lower() in session.lower()
        ]
        if pairs:
            shots.append(min(pairs, key=lambda pair: len(pair[0])))
    if len(shots) < num_shots:
        raise DataError(f"{data.name}: {len(shots)} conversations have an answer in their words, expected {num_shots}")
    return tuple(shots)


@dataclass(frozen=True)
class Personalisation:
    """Questions about conversations, one conversation a sample: the task (`protocol.Task`).

    Attributes:
        data: conversations with their questions.
        limit: how many questions are asked in all, spread evenly over the conversations; None: all.
        max_contexts: at most so many conversations, the first ones; None: all.
        seed: of the draw of questions.
        shots: answered queries of training conversations; each wording stands once more with them.
    """

    data: Conversations
    limit: int | None = None
    max_contexts: int | None = None
    seed: int = 0
    shots: tuple[tuple[str, str, str], ...] = ()

    @property
    def name(self) -> str:
        """`personalisation/` and the data's name."""
        return f"personalisation/{self.data.name}"

    @property
    def skipped(self) -> Mapping[str, int]:
        """What could not be used, by reason."""
        return self.data.skipped

    def samples(self) -> Iterator[TaskSample]:
        """One sample a conversation that a question falls on."""
        require(self.max_contexts is None or self.max_contexts > 0, "max_contexts must be positive")
        conversations = self.data.conversations[: self.max_contexts]
        taken = spread([len(conversation.queries) for conversation in conversations], self.limit, self.seed)
        wordings = with_shots(WORDINGS, self.shots)
        for conversation, chosen in zip(conversations, taken, strict=True):
            if chosen:
                yield TaskSample(
                    id=f"{self.name}/{conversation.id}",
                    context=Context(conversation.text, conversation.sessions),
                    queries=tuple(conversation.queries[index] for index in chosen),
                    wordings=wordings,
                    max_new_tokens=MAX_NEW_TOKENS,
                    metrics=METRICS,
                    metadata={"num_sessions": len(conversation.sessions)},
                )


def _multi_session_chat(row: Row, where: str, skipped: Counter[str]) -> tuple[Conversation, int]:
    identity = text_at(row, "id", where)
    sessions, facts = [], []
    for number, session in enumerate(_objects(row.get("sessions"), where, '"sessions"'), 1):
        place = f"{where}, session {number}"
        lines = []
        for turn in _objects(session.get("dialog"), place, '"dialog"'):
            speaker = f"Speaker {_speaker(turn, place)}"
            lines.append(f"{speaker}: {text_at(turn, 'text', place).strip()}")
            if turn.get("fact") is not None:
                facts += [(speaker, fact) for fact in sentences(checked_text(turn["fact"], place, '"fact"'))]
        sessions.append("\n".join([f"Session {session.get('session', number)}", *lines]))
    questions, num_left_out = questions_of(facts)
    skipped["facts that no rule makes a question of"] += num_left_out
    queries = tuple(
        TaskQuery(f"{index}", Query(item.question), item.answers, {"rule": item.rules[0]})
        for index, item in enumerate(questions, 1)
    )
    return Conversation(identity, tuple(sessions), queries), len(facts)


def _locomo(row: Row, where: str, skipped: Counter[str]) -> Conversation:
    identity, conversation = text_at(row, "sample_id", where), row["conversation"]
    if not isinstance(conversation, Mapping):
        raise DataError(f'{where}: "conversation" is {kind(conversation)}; expected an object with "session_1", ...')
    numbers = sorted(int(match[1]) for key in conversation if (match := re.fullmatch(r"session_(\d+)", key)))
    sessions = []
    for number in numbers:
        place = f"{where}, session {number}"
        turns = _objects(conversation[f"session_{number}"], place, f'"session_{number}"')
        if not turns:
            continue
        date = conversation.get(f"session_{number}_date_time")
        heading = f"Session {number}, {date}" if isinstance(date, str) and date.strip() else f"Session {number}"
        sessions.append("\n".join([heading, *(_locomo_turn(turn, place) for turn in turns)]))
    if not sessions:
        raise DataError(f'{where}: the conversation has no turn; expected them under "session_1", ...')
    queries = []
    for number, item in enumerate(_objects(row.get("qa"), where, '"qa"'), 1):
        place = f"{where}, question {number}"
        category = CATEGORIES.get(item.get("category", 0), "unknown")
        answer = item.get("answer")
        if category == "adversarial":
            skipped["adversarial, which have no right answer"] += 1
        elif answer is None or not str(answer).strip():
            skipped["without an answer"] += 1
        else:
            question = text_at(item, "question", place).strip()
            queries.append(TaskQuery(f"{number}", Query(question), _references(answer, place), {"category": category}))
    return Conversation(identity, tuple(sessions), tuple(queries))


def _references(answer: Any, where: str) -> tuple[str, ...]:
    """An answer as LoCoMo writes it, a text or a number, and what stands before its explanation ("Yes; since ...")."""
    if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
        raise DataError(f'{where}: "answer" is {kind(answer)}; expected a text or a number')
    text = str(answer).strip()
    return tuple(dict.fromkeys(part for part in (text, text.split(";", 1)[0].strip()) if part))


def _locomo_turn(turn: Row, where: str) -> str:
    line = f"{text_at(turn, 'speaker', where).strip()}: {text_at(turn, 'text', where).strip()}"
    caption = turn.get("blip_caption")
    return f"{line} [shares {caption.strip()}]" if isinstance(caption, str) and caption.strip() else line


def _speaker(turn: Row, where: str) -> str:
    speaker = turn.get("speaker")
    if isinstance(speaker, bool) or not isinstance(speaker, (int, str)) or not str(speaker).strip():
        raise DataError(f'{where}: "speaker" is {kind(speaker)}; expected its number or name')
    return str(speaker).strip()


def _objects(values: Any, where: str, field_name: str) -> list[Row]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise DataError(f"{where}: {field_name} is {kind(values)}; expected a list of objects")
    return values
