"""What methods may learn from: nothing overlaps, and nothing that is held out for testing is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from generative_adapter.data.held_out_texts import HeldOutTexts, text_hashes
from generative_adapter.errors import DataError
from generative_adapter.evaluation import training_data
from generative_adapter.evaluation.training_data import conversation_training_data, document_training_data

NUM_DOCUMENTS = 60


def words(text: str) -> int:
    return len(text.split())


def text(number: int) -> str:
    return f"The river number {number} flows by the town of number {number}, where it is red and cold the whole year."


def documents(path: Path, numbers: range = range(NUM_DOCUMENTS)) -> Path:
    rows = [
        {
            "context": text(n),
            "qa": [{"question": f"{q} {n}?", "answers": [f"a{n}", "other"]} for q in ("What", "Where")],
        }
        for n in numbers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def hold_out(monkeypatch: pytest.MonkeyPatch):
    def set_held_out(*texts: str) -> None:
        held_out = HeldOutTexts({f"split {number}": text_hashes(each) for number, each in enumerate(texts)})
        monkeypatch.setattr(training_data, "packaged", lambda: held_out)

    return set_held_out


def test_nothing_overlaps(tmp_path: Path) -> None:
    data = document_training_data([documents(tmp_path / "train.jsonl")], words, num_shots=2, seed=3)
    assert data.documents is not None and data.conversations is None
    shown = {context for context, _, _ in data.shots}
    assert (
        len(shown) == 2
        and {d.text for d in data.documents.documents} == {text(n) for n in range(NUM_DOCUMENTS)} - shown
    )
    assert all(answer == f"a{question.split()[1].rstrip('?')}" for _, question, answer in data.shots)
    numbers, others = ({question.split()[1] for question, _ in pairs} for pairs in (data.pairs, data.validation_pairs))
    assert not numbers & others and len(data.validation_pairs) == 6 and len(data.pairs) == 2 * NUM_DOCUMENTS - 6
    again = document_training_data([tmp_path / "train.jsonl"], words, num_shots=2, seed=3)
    assert again == data
    other = document_training_data([tmp_path / "train.jsonl"], words, num_shots=2, seed=4)
    assert other.shots != data.shots and other.pairs != data.pairs
    few = document_training_data([tmp_path / "train.jsonl"], words, num_shots=0, max_pairs=7, seed=3)
    assert few.shots == () and len(few.pairs) == 7 and set(few.pairs) <= set(data.pairs)
    assert document_training_data([], words).pairs == ()


def test_held_out_texts_are_not_learnt(tmp_path: Path, hold_out, caplog) -> None:
    path = documents(tmp_path / "train.jsonl")
    first = document_training_data([path], words, num_shots=2)
    held_out = {first.shots[0][0], text(7)}
    hold_out(*held_out)
    data = document_training_data([path], words, num_shots=2)
    learnt = {question.split()[1] for question, _ in (*data.pairs, *data.validation_pairs)}
    assert len(learnt) == NUM_DOCUMENTS - 2 and "7?" not in learnt
    shown = [context for context, _, _ in data.shots]
    assert not held_out & set(shown) and shown[0] == first.shots[1][0]
    assert "train.jsonl: 2 texts are held out for testing" in caplog.text


def test_a_file_of_held_out_texts_is_refused(tmp_path: Path, hold_out) -> None:
    path = documents(tmp_path / "dev.jsonl", range(4))
    hold_out(text(0), text(2))
    document_training_data([path], words, num_shots=1)
    hold_out(text(0), text(2), text(3))
    with pytest.raises(DataError, match=r"dev.jsonl: 3 of 4 texts are held out for testing \(split 0\)"):
        document_training_data([path], words, num_shots=1)


def test_conversations(tmp_path: Path, hold_out) -> None:
    def sessions(n: int) -> list[dict]:
        told = {"speaker": 1, "text": f"I work as a baker{n}", "fact": f"I work as a baker{n}."}
        heard = {"speaker": 2, "text": f"A baker{n} gets up early, day by day, and has for years"}
        return [{"session": 1, "dialog": [told]}, {"session": 2, "dialog": [heard]}]

    rows = [{"id": f"{n}", "sessions": sessions(n)} for n in range(30)]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = conversation_training_data([path], num_shots=2)
    assert data.conversations is not None and data.documents is None
    shown = [context for context, _, _ in data.shots]
    left = [item for item in data.conversations.conversations if any(session in shown for session in item.sessions)]
    assert len(shown) == 2 and not left and len(data.conversations.conversations) == 28
    assert len(data.pairs) + len(data.validation_pairs) == 30 and len(data.validation_pairs) == 1
    texts = ["\n\n".join(item.sessions) for item in data.conversations.conversations[:3]]
    hold_out(*texts)
    fewer = conversation_training_data([path], num_shots=2)
    assert fewer.conversations is not None and len(fewer.conversations.conversations) == 25
