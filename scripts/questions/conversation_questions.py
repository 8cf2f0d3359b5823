"""Makes questions about the sessions of conversations out of the facts that their turns are annotated with.

    python scripts/questions/conversation_questions.py ../shared/data/conv/train/msc_valid.jsonl.zst \
        --output runs/conversation-questions.jsonl

The questions are those of the personalisation task (`generative_adapter.evaluation.tasks.personalisation`), so give it
training conversations only. Each is asked of every session that holds one of its answers word for word. In some of the
conversations (`--named-share`) speakers have first names instead of numbers, as in other people's chat logs. A line of
the output is `{"context", "qa": [{"question", "answers"}]}`, as recipes read it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from generative_adapter.data.facts_vocabulary import vocabulary
from generative_adapter.evaluation.tasks.personalisation import Conversation, read_conversations


def sessions_asked(conversation: Conversation) -> Iterator[Mapping[str, Any]]:
    """The sessions of a conversation that answer at least one question, with these."""
    for session in conversation.sessions:
        asked = []
        for each in conversation.queries:
            answers = [match[0] for answer in each.references if (match := _standing(answer, session))]
            if answers:
                asked.append({"question": each.query.question, "answers": answers})
        if asked:
            yield {"context": session, "qa": asked}


def named(asked: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """A session and its questions with names instead of "Speaker 1" and "Speaker 2", and no heading.

    Args:
        asked: as `sessions_asked` gives them.
        names: of the speakers, in their order; none may occur in the session.
    """

    def with_names(text: str) -> str:
        for number, name in enumerate(names, start=1):
            text = text.replace(f"Speaker {number}", name)
        return text

    session = re.sub(r"\ASession \d+\n", "", asked["context"])
    qa = [{"question": with_names(each["question"]), "answers": each["answers"]} for each in asked["qa"]]
    return {"context": with_names(session), "qa": qa}


def first_names() -> list[str]:
    """Those that training facts are about."""
    words = vocabulary().words
    return [*words["female_names"][False], *words["male_names"][False]]


def two_names(text: str, rng: random.Random) -> list[str]:
    """First names that a text doesn't hold."""
    return rng.sample([name for name in first_names() if name not in text], 2)


def _standing(answer: str, session: str) -> re.Match[str] | None:
    """Where an answer stands as whole words, written large or small."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", session, re.IGNORECASE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("conversations", type=Path, nargs="+", help="training conversations, as the task reads them")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--named-share", type=float, default=0.0, help="conversations whose speakers have names")
    arguments = parser.parse_args()
    rng = random.Random(0)
    found = []
    for path in arguments.conversations:
        for conversation in read_conversations(path).conversations:
            sessions = list(sessions_asked(conversation))
            if rng.random() < arguments.named_share:
                names = two_names(conversation.text, rng)
                sessions = [named(each, names) for each in sessions]
            found += sessions
    with arguments.output.open("w", encoding="utf-8") as file:
        for session in found:
            file.write(json.dumps(session, ensure_ascii=False) + "\n")
    print(f"{len(found)} sessions, {sum(len(each['qa']) for each in found)} questions")


if __name__ == "__main__":
    main()
