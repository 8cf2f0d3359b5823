"""Needles: where they stand, that nothing else tells of them, and how long their texts are."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from generative_adapter.data.facts_vocabulary import vocabulary
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.evaluation.tasks.document_qa import WORDINGS
from generative_adapter.evaluation.tasks.haystack import sentences, words_of
from generative_adapter.evaluation.tasks.needle import Filler, Needle, read_filler
from generative_adapter.evaluation.tasks.protocol import TaskSample, score
from generative_adapter.methods.protocol import Answer
from tiny_models import tiny_tokenizer


def words(text: str) -> int:
    return len(text.split())


def prose(num_sentences: int, seed: int = 0) -> str:
    """Sentences of 3 to 12 words that no fact is made of."""
    draw = random.Random(seed)
    return " ".join(
        "Q" + " ".join("q" * draw.randint(2, 7) for _ in range(draw.randint(3, 12))) + "." for _ in range(num_sentences)
    )


FILLER = Filler("prose", (prose(300), prose(200, 1)))


def split_at_needle(sample: TaskSample) -> tuple[str, str, str]:
    """Filler before the needle, the needle, filler behind it: the needle is the one sentence that isn't prose."""
    pieces = [piece.text for piece in sentences(sample.context.text)]
    [place] = [index for index, text in enumerate(pieces) if not re.fullmatch(r"[Qq ]+\.", text)]
    return " ".join(pieces[:place]), pieces[place], " ".join(pieces[place + 1 :])


def test_the_needle_stands_at_its_depth() -> None:
    task = Needle(words, lengths=(100, 400), depths=(0, 0.1, 0.3, 0.5, 0.9, 1), seeds=(0, 1, 2), filler=FILLER)
    samples = list(task.samples())
    assert len(samples) == len({sample.id for sample in samples}) == 2 * 6 * 3
    for sample in samples:
        before, needle, after = split_at_needle(sample)
        depth, total = sample.metadata["depth"], words(before) + words(after)
        own = [words(text) for text in re.split(r"(?<=\.)\s", f"{before} {after}") if text]
        boundaries = [sum(own[:count]) for count in range(len(own) + 1)]
        nearest = min(abs(place - depth * total) for place in boundaries)
        assert abs(words(before) - depth * total) == pytest.approx(nearest)
        if depth in (0, 1):
            assert words(before) == depth * total
        [query] = sample.queries
        assert query.references[0].lower() in needle.lower()
        assert query.metadata == {"depth": depth, "reached": round(words(before) / total, 4)}
        assert sample.metadata["num_tokens"] == words(sample.context.text) == sample.metadata["context_tokens"]


def test_depths_differ_in_nothing_but_the_place() -> None:
    task = Needle(words, lengths=(150,), depths=(0, 0.4, 1), seeds=(4,), filler=FILLER)
    parts = [split_at_needle(sample) for sample in task.samples()]
    assert len({needle for _, needle, _ in parts}) == 1
    assert len({f"{before} {after}".strip() for before, _, after in parts}) == 1
    assert len({before for before, _, _ in parts}) == 3


def test_seeds_differ_and_are_repeatable() -> None:
    task = Needle(words, lengths=(120,), depths=(0.5,), seeds=(0, 1, 2, 3))
    first, again = list(task.samples()), list(task.samples())
    assert first == again
    assert len({sample.queries[0].query.question for sample in first}) == 4
    [alone] = Needle(words, lengths=(120,), depths=(0.5,), seeds=(2,)).samples()
    assert alone == first[2]


@pytest.mark.parametrize("seed", range(6))
def test_nothing_else_tells_of_the_needle(seed: int) -> None:
    """Filler that states the needle too, and names its entity and its value elsewhere, is used without all that."""
    [sample] = Needle(words, lengths=(100,), depths=(0.5,), seeds=(seed,), filler=FILLER).samples()
    _, needle, _ = split_at_needle(sample)
    [query] = sample.queries
    names = [word for word in re.findall(r"[A-Z]\w+", needle) if word.lower() in words_of(query.query.question)]
    names = [name for name in names if name not in vocabulary().common_words]
    assert names, (needle, query.query.question)
    telling = [f"Everybody likes {query.references[0]}.", *(f"Nobody met {name} yet." for name in names), needle]
    documents = tuple(" ".join([*telling, document, *telling]) for document in FILLER.documents)
    [found] = Needle(words, lengths=(100,), depths=(0.5,), seeds=(seed,), filler=Filler("prose", documents)).samples()
    assert split_at_needle(found)[1] == needle  # the one sentence that isn't prose
    assert found.queries[0].query == query.query


@pytest.mark.parametrize("num_needles", [1, 3])
def test_values_stand_once_in_made_up_filler(num_needles: int) -> None:
    task = Needle(words, lengths=(600,), depths=(0.5,), num_needles=(num_needles,), seeds=tuple(range(6)))
    for sample in task.samples():
        assert len(sample.queries) == num_needles == sample.metadata["num_needles"]
        found = [words_of(piece.text) for piece in sentences(sample.context.text)]
        for query in sample.queries:
            value = words_of(query.references[0])
            assert 1 <= sum(f" {' '.join(value)} " in f" {' '.join(text)} " for text in found) <= num_needles


def test_several_needles_are_spread() -> None:
    task = Needle(words, lengths=(300,), depths=(0.1, 1.0), num_needles=(4,), filler=FILLER)
    low, high = task.samples()
    assert [query.metadata["depth"] for query in low.queries] == [0.1, 0.35, 0.6, 0.85]
    assert [query.metadata["depth"] for query in high.queries] == [1.0, 0.25, 0.5, 0.75]
    for sample in (low, high):
        for query in sample.queries:
            assert query.metadata["reached"] == pytest.approx(query.metadata["depth"], abs=0.03)
    judged = score(low, [Answer(query.references[0]) for query in low.queries])
    assert [item.metadata["depth"] for item in judged] == [0.1, 0.35, 0.6, 0.85]
    assert all(item.values == {"f1": 1.0, "exact_match": 1.0, "recall": 1.0} for item in judged)


def test_needles_are_of_the_held_out_side() -> None:
    """A name from a list that is split is on its held-out side: no training fact has it."""
    names = vocabulary().words
    train = {name for pool in ("surnames", "female_names", "male_names") for name in names[pool][False]}
    held_out = {name for pool in ("surnames", "female_names", "male_names") for name in names[pool][True]} - train
    found = set()
    for sample in Needle(words, lengths=(40,), depths=(0,), seeds=tuple(range(60)), filler=FILLER).samples():
        found |= set(re.findall(r"\w+", split_at_needle(sample)[1]))
    assert len(found & held_out) > 5
    assert len(found & train) < len(found & held_out)


def test_lengths_in_a_tokenizers_tokens() -> None:
    tokenizer = tiny_tokenizer()

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    for sample in Needle(count, lengths=(500, 2000), depths=(0, 0.5, 1), seeds=(0, 1)).samples():
        assert -25 <= sample.metadata["num_tokens"] - sample.metadata["context_tokens"] <= 3  # a byte is a token


def test_filler_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "essays.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in FILLER.documents))
    filler = read_filler(path)
    assert filler == Filler("essays", FILLER.documents)
    task = Needle(words, lengths=(100,), depths=(0.5,), filler=filler, shots=(("c", "q", "a"),))
    [sample] = task.samples()
    assert task.name == "needle/essays" and sample.id == "needle/essays/100/1/0/0.5"
    assert sample.wordings[: len(WORDINGS)] == WORDINGS and len(sample.wordings) == 2 * len(WORDINGS)
    assert task.skipped == {}
    with pytest.raises(DataError, match=r"'essays' has \d+ usable tokens, \d+ are wanted"):
        list(Needle(words, lengths=(100, 100_000), filler=filler).samples())
    path.write_text('{"text": "fine"}\n{"text": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        read_filler(path)


def test_settings_that_make_no_sense() -> None:
    for settings, message in (
        ({"depths": (0.5, 1.1)}, "depths must lie in 0..1"),
        ({"lengths": ()}, "lengths must be different"),
        ({"lengths": (0,)}, "lengths must be positive"),
        ({"num_needles": (0,)}, "num_needles must be positive"),
        ({"seeds": (1, 1)}, "seeds must be different"),
    ):
        with pytest.raises(ConfigError, match=message):
            Needle(words, **settings)
    with pytest.raises(ConfigError, match="more than the 3 of their context"):
        list(Needle(words, lengths=(3,)).samples())
