"""Held-out texts by their hashes: found whole and in parts, whatever their layout; other texts pass."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from generative_adapter.data.held_out_texts import (
    HeldOutTexts,
    TextHashes,
    load_held_out,
    packaged,
    save_held_out,
    text_hashes,
)
from generative_adapter.data.records import Question, Record, numbered_records
from generative_adapter.errors import DataError

SCRIPT = Path(__file__).parents[2] / "scripts" / "hash_held_out.py"
DATA = Path(__file__).parents[2].parent / "shared" / "data"


def prose(name: str, num_sentences: int) -> str:
    return " ".join(
        f"In year {i} the {name} mill ground {i * 7} sacks of rye for Café Büro and its owner."
        for i in range(num_sentences)
    )


DOCUMENT = "\n\n".join(prose(name, 9) for name in ("northern", "southern", "eastern"))
ROW = "Input: Which of the three mills by the river grinds rye on Sundays?\nOutput: the southern mill"
SHORT = "The mill grinds rye."


@pytest.fixture
def texts() -> HeldOutTexts:
    return HeldOutTexts({"books": text_hashes(DOCUMENT), "rows": text_hashes(ROW), "notes": text_hashes(SHORT)})


def test_hashes_are_those_of_the_normalised_text() -> None:
    line = "ﬁve  Mills\tby the River grind rye on Sundays, and none of them on Mondays."
    normalised = "five mills by the river grind rye on sundays, and none of them on mondays."
    expected = int.from_bytes(hashlib.sha256(normalised.encode()).digest()[:8], "big")
    assert text_hashes(f"Speaker 2: {line}\n") == TextHashes({expected}, set())
    assert text_hashes(SHORT) == TextHashes()


@pytest.mark.parametrize(
    "text",
    [
        DOCUMENT,
        DOCUMENT.upper(),
        DOCUMENT.replace(" ", "\n ").replace("\n\n", "\n"),
        unicodedata.normalize("NFD", DOCUMENT),
        DOCUMENT[:700],  # cut in a sentence
        DOCUMENT[431:900],
        prose("southern", 9),
        "Some title of it\n" + prose("southern", 9),
        prose("western", 200) + " " + prose("eastern", 9) * 2 + prose("western", 30),
        "\n".join([prose("western", 50), prose("northern", 9), prose("southern", 9), prose("eastern", 9)]),
    ],
    ids=[
        "whole",
        "upper",
        "lines",
        "decomposed",
        "beginning",
        "middle",
        "paragraph",
        "title",
        "inside",
        "lines inside",
    ],
)
def test_a_document_is_found_in_any_layout(texts: HeldOutTexts, text: str) -> None:
    assert texts.split_of(text) == "books"


@pytest.mark.parametrize(
    "text",
    [
        ROW,
        "Which of the three mills by the river grinds rye on Sundays? The southern mill",
        f"{prose('western', 60)}\n\nInput: Who?\nOutput: Ada\n\n{ROW}\n\nInput: Who?\nOutput: Bo",
        f"{prose('western', 60)}\n{ROW.replace(chr(10), ' ').replace('Output: ', '')}\n",
    ],
)
def test_a_short_text_is_found_on_lines_of_its_own(texts: HeldOutTexts, text: str) -> None:
    assert texts.split_of(text) == "rows"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n \n",
        SHORT,
        prose("western", 300),
        prose("western", 8) + " " + prose("northern", 4) + " " + prose("western", 9),  # a quotation
        prose("northern", 2),
        ROW.replace("Sundays", "Mondays"),
    ],
    ids=["empty", "blank", "short", "other", "quotation", "fragment", "other row"],
)
def test_other_texts_pass(texts: HeldOutTexts, text: str) -> None:
    assert texts.split_of(text) is None


def test_questions_of_a_record_are_looked_up_too(texts: HeldOutTexts) -> None:
    given, answer = ROW.split("\nOutput: ")
    question = Question(f"{given}\nOutput:", (answer,))
    assert texts.split_of_record(Record(prose("western", 9), (question,))) == "rows"
    assert texts.split_of_record(Record(prose("western", 9), (Question("Who?", ("Ada",)),))) is None
    assert texts.split_of_record(Record(DOCUMENT)) == "books"


def test_files_keep_hashes_and_the_first_split(tmp_path: Path, texts: HeldOutTexts) -> None:
    path = tmp_path / "hashes.safetensors"
    save_held_out(path, {"a/b:c": text_hashes(DOCUMENT), "later": text_hashes(prose("southern", 9) + "\n\n" + ROW)})
    loaded = load_held_out(path)
    assert loaded.split_of(DOCUMENT) == loaded.split_of(prose("southern", 9)) == "a/b:c"
    assert loaded.split_of(prose("southern", 9) + "\n\n" + ROW) == "later"
    assert loaded.digest != texts.digest
    both = [set(), set()]
    for text in (DOCUMENT, prose("southern", 9) + "\n\n" + ROW):
        both[0] |= text_hashes(text).wholes
        both[1] |= text_hashes(text).parts
    assert len(loaded) == len(both[0]) + len(both[1])
    assert loaded.digest == HeldOutTexts({"x": TextHashes(*both)}).digest


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": np.zeros(3, dtype=np.uint64)}, path)
    with pytest.raises(DataError, match=r"holds no hashes of held-out texts; make it with scripts/hash_held_out\.py"):
        load_held_out(path)
    path.write_bytes(b"broken")
    with pytest.raises(DataError, match="can't be read"):
        load_held_out(path)
    with pytest.raises(DataError, match="can't be read"):
        load_held_out(tmp_path / "none.safetensors")


def test_the_packaged_hashes_are_there() -> None:
    assert len(packaged()) > 50_000
    assert packaged().split_of(prose("western", 300)) is None


def test_the_script_hashes_the_held_out_files_alone(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")

    def say(name: str) -> str:
        return prose(name, 9).replace('"', "")

    write("qa/test/a.jsonl", f'{{"context": "{say("first")}", "qa": [{{"question": "Q", "answers": []}}]}}')
    write(
        "squad/dev-v1.json",
        f'{{"data": [{{"title": "T", "paragraphs": [{{"context": "{say("second")}", "qas": []}}]}}]}}',
    )
    write("pretrain/valid-a.jsonl", f'{{"text": "{say("third")}"}}')
    write("pretrain/train-0.jsonl", f'{{"text": "{say("fourth")}"}}')
    write("metaicl/test/t/t_test.jsonl", f'{{"task": "t", "input": "{say("fifth")}", "output": "x", "options": []}}')
    turns = f'[{{"speaker": 1, "text": "{say("sixth")}"}}, {{"speaker": 2, "text": "Yes."}}]'
    write("conv/test/msc.jsonl", f'{{"id": "1", "sessions": [{{"session": 1, "dialog": {turns}}}]}}')
    talk = f'{{"session_10": [{{"text": "Hi."}}], "session_2": {turns}, "session_2_date_time": "May"}}'
    write("conv/test/locomo.json", f'[{{"conversation": {talk}, "qa": []}}]')
    output = tmp_path / "made.safetensors"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), "--output", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = load_held_out(output)
    expected = {
        say("first"): "qa/test/a",
        f"T\n{say('second')}": "squad/dev-v1",
        say("third"): "pretrain/valid-a",
        say("fourth"): None,
        f"Input: {say('fifth')}\nOutput: x": "metaicl/test/t",
        f"Session 1\nSpeaker 1: {say('sixth')}\nSpeaker 2: Yes.": "conv/test/locomo",  # the same, and the first
    }
    assert {text: made.split_of(text) for text in expected} == expected


@pytest.mark.skipif(not DATA.is_dir(), reason="the data folder is not there")
def test_the_packaged_hashes_tell_test_from_training_data() -> None:
    texts = packaged()
    held_out = [record for _, record in numbered_records(DATA / "squad/dev-v1.1-a.json.zst")]
    long_enough = [record for record in held_out if len(record.context) > 80]
    assert all(texts.split_of(record.context.lower()) == "squad/dev-v1.1-a" for record in long_enough)
    training = [record for _, record in numbered_records(DATA / "squad/train-extra.jsonl.zst")]
    assert len(training) > 4000
    assert not [record for record in training if texts.split_of_record(record) is not None]
