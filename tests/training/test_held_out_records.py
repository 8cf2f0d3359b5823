"""Training refuses records of held-out test splits, or leaves them out; evaluation reads them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.data.held_out_texts import HeldOutTexts, text_hashes
from generative_adapter.data.records import read_records
from generative_adapter.errors import ConfigError, DataError
from generative_adapter.training import token_cache
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.source_config import SourceConfig
from generative_adapter.training.sources import ContextSampler
from generative_adapter.training.token_cache import open_store, prepare, records_of


def story(name: str) -> str:
    return " ".join(f"On day {day} the {name} keeper lit lamp {day * 3} and slept until noon." for day in range(8))


@pytest.fixture(autouse=True)
def held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = HeldOutTexts({"tales/test": text_hashes(story("old"))})
    monkeypatch.setattr(token_cache, "packaged", lambda: texts)


def row(text: str) -> str:
    return json.dumps({"context": text, "qa": [{"question": "Who slept?", "answers": ["the keeper"]}]})


def squad(texts: list[str]) -> str:
    qas = [{"question": "Who slept?", "answers": [{"text": "the keeper"}]}]
    paragraphs = [{"context": text, "qas": qas} for text in texts]
    return json.dumps({"data": [{"title": "Lamps", "paragraphs": paragraphs[:1]}, {"paragraphs": paragraphs[1:]}]})


CHANGED = story("old").upper().replace(". ", ".\n  ")


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.jsonl", f"\n{row(story('new'))}\n{row(CHANGED)}\n", "a.jsonl, line 3"),
        ("a.json", squad([story("new"), story("red"), CHANGED]), "a.json, paragraph 3"),
        ("a.json", json.dumps(json.loads(squad([CHANGED])), indent=1), "a.json, paragraph 1"),
        ("a.txt", f"A tale.\n\n{CHANGED}", "a.txt: "),
    ],
)
def test_held_out_texts_are_refused_with_their_place(tmp_path: Path, name: str, content: str, place: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=r"held out for testing \(split tales/test\).*held_out_texts: skip") as refused:
        list(records_of(SourceConfig("questions", paths=(str(path),))))
    assert place in str(refused.value)
    assert any(record.context.strip().endswith(CHANGED) for record in read_records(path))  # evaluation may read it


def test_parquet_and_hub_rows_are_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [story("new"), story("old")]}), path)
    with pytest.raises(DataError, match=r"a\.parquet, row 2: .*tales/test"):
        list(records_of(SourceConfig("text", paths=(str(path),))))
    local = [(number, record) for number, record in enumerate(read_records(path), 5)]
    monkeypatch.setattr(token_cache, "read_hub", lambda *_, **__: iter(local))
    with pytest.raises(DataError, match=r"data set some/tales, split 'train', row 6: .*tales/test"):
        list(records_of(SourceConfig("text", dataset="some/tales")))


@pytest.mark.parametrize("kind", ["questions", "instructions", "text", "cloze"])
def test_skipping_leaves_them_out_and_counts_them(
    tmp_path: Path, base: BaseModel, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    names = ("new", "old", "red", "old", "wet")
    path = tmp_path / "a.jsonl"
    path.write_text("".join(row(story(name)) + "\n" for name in names))
    source = SourceConfig(kind, paths=(str(path),), held_out_share=0.0, context_tokens=(1, 2000))
    make: Callable[[str], TrainingRecipe] = lambda held_out: TrainingRecipe(  # noqa: E731
        (source,), str(tmp_path / "run"), cache=str(tmp_path / "cache"), held_out_texts=held_out
    )
    with pytest.raises(DataError, match=r"a\.jsonl, line 2"):
        prepare(make("refuse"), base.tokenizer)
        ContextSampler(make("refuse"), base.tokenizer)
    with caplog.at_level(logging.WARNING):
        prepare(make("skip"), base.tokenizer)  # goes on behind the first text
        sampler = ContextSampler(make("skip"), base.tokenizer)
    assert "left out 2 records held out for testing: 2 of tales/test" in caplog.text
    if kind == "questions":
        assert len(sampler._records[0][0]) == 3
    else:
        assert len(open_store(make("skip"), source, base.tokenizer)) == 3
    assert len(list(records_of(source, held_out="skip"))) == 3
    rows = [number for number, _ in records_of(source, held_out="skip")]
    assert rows == [1, 3, 5]
    assert [number for number, _ in records_of(source, skip=3, held_out="skip")] == [5]


def test_there_are_two_ways() -> None:
    with pytest.raises(ConfigError, match="held_out_texts must be refuse or skip, got 'keep'"):
        TrainingRecipe((SourceConfig("facts"),), "run", held_out_texts="keep")
