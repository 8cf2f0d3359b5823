"""ReadPassages: contexts with questions, drawn and tokenised once, so that frozen states of them can be kept.

Leaves out: where contexts come from (`training.sources`) and their states (`frozen_states`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from generative_adapter.generator.storage import write_json
from generative_adapter.training.batches import ContextItem


@dataclass(frozen=True)
class AskedQuestion:
    """A question with its answer as token ids.

    Attributes:
        ids: prompt and answer.
        num_prompt: leading tokens that are given.
        found: for each answer token the tokens of the passage it may be read from, counted over all chunks; none
            where the answer doesn't stand in the passage word for word, and for what ends it.
    """

    ids: tuple[int, ...]
    num_prompt: int
    found: tuple[tuple[int, ...], ...]

    @property
    def num_labels(self) -> int:
        """Tokens of the answer."""
        return len(self.ids) - self.num_prompt


@dataclass(frozen=True)
class Passage:
    """A short context with its questions.

    Attributes:
        chunks: token ids, without begin-of-sequence tokens.
        questions: asked about it.
        held_out: whether it is kept for evaluation.
        source: number of the recipe's source that it comes from.
    """

    chunks: tuple[tuple[int, ...], ...]
    questions: tuple[AskedQuestion, ...]
    held_out: bool = False
    source: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of all chunks."""
        return sum(map(len, self.chunks))


def passage(item: ContextItem, end: Sequence[int], held_out: bool = False, source: int = 0) -> Passage:
    """A context of the sampler as a passage; reconstructions and completions are left out.

    Args:
        item: the context.
        end: token ids that end an answer.
        held_out: whether it is kept for evaluation.
        source: number of the source that it comes from.
    """
    questions = []
    for segment in item.segments:
        if segment.objective == "answer":
            answer = segment.ids[segment.num_prompt :]
            questions.append(AskedQuestion(segment.ids, segment.num_prompt, _found(item.chunks, answer, len(end))))
    return Passage(item.chunks, tuple(questions), held_out, source)


def _found(chunks: Sequence[Sequence[int]], answer: Sequence[int], num_end: int) -> tuple[tuple[int, ...], ...]:
    """Places of each answer token: those of the answer's occurrences as a run of tokens."""
    words = tuple(answer[: len(answer) - num_end]) if num_end else tuple(answer)
    starts: list[int] = []
    offset = 0
    for chunk in chunks:
        starts += [offset + at for at in _occurrences(chunk, words)]
        offset += len(chunk)
    return tuple(tuple(start + index for start in starts) if index < len(words) else () for index in range(len(answer)))


def _occurrences(chunk: Sequence[int], words: tuple[int, ...]) -> Iterator[int]:
    at = -1
    while words and len(chunk) >= len(words):
        try:
            at = chunk.index(words[0], at + 1)
        except ValueError:
            return
        if tuple(chunk[at : at + len(words)]) == words:
            yield at


def save_passages(path: Path, passages: Sequence[Passage], digest: str) -> None:
    """Writes passages as JSON, with the digest of what they were drawn from."""
    write_json(path, {"digest": digest, "passages": [asdict(each) for each in passages]})


def load_passages(path: Path, digest: str) -> list[Passage] | None:
    """The passages in a file, None where there is none or it was drawn from something else."""
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["digest"] != digest:
        return None
    return [
        Passage(
            tuple(map(tuple, each["chunks"])),
            tuple(
                AskedQuestion(tuple(asked["ids"]), asked["num_prompt"], tuple(map(tuple, asked["found"])))
                for asked in each["questions"]
            ),
            each["held_out"],
            each["source"],
        )
        for each in stored["passages"]
    ]
