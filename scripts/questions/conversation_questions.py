"""Makes questions about the sessions of conversations out of the facts that their turns are annotated with.

    python scripts/questions/conversation_questions.py ../shared/data/conv/train/msc_valid.jsonl.zst \
        --output runs/conversation-questions.jsonl

The questions are those of the personalisation task (`generative_adapter.evaluation.tasks.personalisation`), so give it
training conversations only. Each is asked of every session that holds one of its answers word for word. A line of the
output is `{"context", "qa": [{"question", "answers"}]}`, as recipes read it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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


def _standing(answer: str, session: str) -> re.Match[str] | None:
    """Where an answer stands as whole words, written large or small."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", session, re.IGNORECASE)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("conversations", type=Path, nargs="+", help="training conversations, as the task reads them")
    parser.add_argument("--output", required=True, type=Path)
    arguments = parser.parse_args()
    found = [
        session
        for path in arguments.conversations
        for conversation in read_conversations(path).conversations
        for session in sessions_asked(conversation)
    ]
    with arguments.output.open("w", encoding="utf-8") as file:
        for session in found:
            file.write(json.dumps(session, ensure_ascii=False) + "\n")
    print(f"{len(found)} sessions, {sum(len(each['qa']) for each in found)} questions")


if __name__ == "__main__":
    main()
