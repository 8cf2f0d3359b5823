"""What methods may learn from before they are tested: pairs for fine-tuning, shots, and data to choose wordings by.

Nothing of it overlaps: a document that a shot shows is not among those that wordings are chosen on, and no document's
questions are both in the pairs and in those that stop fine-tuning early. Texts that are held out for testing
(`data.held_out_texts`) are neither shown nor learnt from, and a file of such texts is refused. Leaves out: the tested
data.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from generative_adapter.data.held_out_texts import packaged
from generative_adapter.errors import DataError
from generative_adapter.evaluation.tasks.document_qa import Document, Documents, document_shots, read_documents
from generative_adapter.evaluation.tasks.personalisation import (
    Conversation,
    Conversations,
    conversation_shots,
    read_conversations,
)
from generative_adapter.methods.settings import Pair

logger = logging.getLogger(__name__)

Shots = tuple[tuple[str, str, str], ...]
MAX_VALIDATION_PAIRS = 128
_VALIDATION_SHARE = 0.05


@dataclass(frozen=True)
class TrainingData:
    """What was read from training files.

    Attributes:
        shots: answered queries, (context, question, answer).
        pairs: (question, answer) to fine-tune on.
        validation_pairs: those of other contexts, to stop by.
        documents: to choose wordings by, those of the shots left out; None where there are none.
        conversations: the same of conversations.
    """

    shots: Shots = ()
    pairs: tuple[Pair, ...] = ()
    validation_pairs: tuple[Pair, ...] = ()
    documents: Documents | None = None
    conversations: Conversations | None = None


def document_training_data(
    paths: Sequence[Path],
    count_tokens: Callable[[str], int],
    *,
    num_shots: int = 3,
    max_pairs: int | None = None,
    seed: int = 0,
) -> TrainingData:
    """Training data of document QA; of no file, nothing.

    Args:
        paths: files with documents and questions.
        count_tokens: number of tokens of a text.
        num_shots: shots to draw.
        max_pairs: most pairs, drawn by seed; None: all.
        seed: of the draws.

    Raises:
        DataError: a file can't be used, is held out for testing, or has too few short documents for the shots.
    """
    if not paths:
        return TrainingData()
    documents: tuple[Document, ...] = ()
    held_out: set[str] = set()
    for path in paths:
        read = read_documents(path).documents
        held_out |= _held_out(path, [document.text for document in read])
        documents += read
    whole = Documents("training data", documents)
    shots: Shots = ()
    if num_shots:
        shots = document_shots(whole, count_tokens, num_shots=num_shots, seed=seed, excluded=held_out)
    shown = {context for context, _, _ in shots}
    others = replace(whole, documents=tuple(document for document in documents if document.text not in shown))
    groups = [_document_pairs(document) for document in documents if document.text not in held_out]
    pairs, validation = _divided(groups, max_pairs, seed)
    return TrainingData(shots, pairs, validation, documents=others)


def conversation_training_data(
    paths: Sequence[Path], *, num_shots: int = 3, max_pairs: int | None = None, seed: int = 0
) -> TrainingData:
    """Training data of personalisation, as `document_training_data` of documents."""
    if not paths:
        return TrainingData()
    conversations: tuple[Conversation, ...] = ()
    for path in paths:
        read = read_conversations(path).conversations
        held_out = _held_out(path, [conversation.text for conversation in read])
        conversations += tuple(conversation for conversation in read if conversation.text not in held_out)
    whole = Conversations("training data", conversations)
    shots = conversation_shots(whole, num_shots) if num_shots else ()
    shown = [session for session, _, _ in shots]
    others = tuple(item for item in conversations if not any(session in item.sessions for session in shown))
    groups = [[(query.query.question, query.references[0]) for query in item.queries] for item in conversations]
    pairs, validation = _divided(groups, max_pairs, seed)
    return TrainingData(shots, pairs, validation, conversations=replace(whole, conversations=others))


def _held_out(path: Path, texts: Sequence[str]) -> set[str]:
    """The texts that are held out for testing.

    Raises:
        DataError: most of them are.
    """
    splits = {text: split for text in texts if (split := packaged().split_of(text)) is not None}
    if 2 * len(splits) > len(texts):
        raise DataError(
            f"{path}: {len(splits)} of {len(texts)} texts are held out for testing ({next(iter(splits.values()))}); "
            "give training data"
        )
    if splits:
        logger.warning("%s: %d texts are held out for testing; they are left out", path, len(splits))
    return set(splits)


def _document_pairs(document: Document) -> list[Pair]:
    return [(item.question.strip(), item.answers[0]) for _, item in document.questions]


def _divided(
    groups: Sequence[Sequence[Pair]], max_pairs: int | None, seed: int
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Pairs to train on and to stop by; the groups of the latter are not in the former."""
    order = [group for group in groups if group]
    random.Random(f"{seed}/pairs").shuffle(order)
    wanted = min(MAX_VALIDATION_PAIRS, int(sum(map(len, order)) * _VALIDATION_SHARE))
    validation: list[Pair] = []
    while order and len(validation) < wanted:
        validation += order.pop()
    pairs = [pair for group in order for pair in group]
    if max_pairs is not None and len(pairs) > max_pairs:
        pairs = random.Random(f"{seed}/max_pairs").sample(pairs, max_pairs)
    return tuple(pairs), tuple(validation[:wanted])
