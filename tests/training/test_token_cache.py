"""Token caches: what is in them, when they are made anew, resuming after a bad record, instructions drawn from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import answer_ids, question_ids
from generative_adapter.config import GeneratorConfig, PromptConfig
from generative_adapter.errors import DataError
from generative_adapter.training import token_cache
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.run import run_training
from generative_adapter.training.source_config import SourceConfig
from generative_adapter.training.sources import ContextSampler
from generative_adapter.training.token_cache import digest_of, open_store, prepare
from generative_adapter.training.token_store import TokenStore


def recipe_of(folder: Path, *sources: SourceConfig, **settings: Any) -> TrainingRecipe:
    generator = GeneratorConfig(state_dim=4, rank=4, chunk_tokens=7)
    values = {"generator": generator, "contexts_per_step": 3, "cache": str(folder / "cache"), **settings}
    return TrainingRecipe(sources, str(folder / "run"), **values)


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Paths of two files of plain texts: 30 of them, some too short to predict anything."""
    paths = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.jsonl"
        lines = [{"text": "x" if i % 5 == 4 else f"Text {i} of {name} says {'so ' * i}much."} for i in range(15)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        paths.append(str(path))
    return paths


@pytest.fixture
def questions(tmp_path: Path) -> str:
    path = tmp_path / "questions.jsonl"
    lines = [
        {
            "context": f"Mill {i} of the old county grinds rye for {'very ' * i}many.",
            "qa": [{"question": f"What {j} does it grind?", "answers": [f"rye {i} {j}", "corn"]} for j in range(i % 3)],
        }
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_texts_are_tokenised_in_order(base: BaseModel, texts: list[str], tmp_path: Path) -> None:
    source = SourceConfig("text", paths=tuple(texts))
    recipe = recipe_of(tmp_path, source)
    told: list[tuple[str, int, int]] = []
    (folder,) = prepare(recipe, base.tokenizer, lambda *done: told.append(done))
    expected = [json.loads(line)["text"] for path in texts for line in Path(path).read_text().splitlines()]
    expected = [text for text in expected if text != "x"]
    store = open_store(recipe, source, base.tokenizer)
    assert [base.tokenizer.decode(store.tokens(number)) for number in range(len(store))] == expected
    assert store.digests.tolist() == list(map(digest_of, expected))
    assert told[-1] == ("a.jsonl, b.jsonl", len(expected), store.num_tokens)
    assert folder.is_relative_to(tmp_path / "cache")


def test_a_cache_is_made_once_and_anew_when_something_changes(
    base: BaseModel, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SourceConfig("text", paths=(texts[0],))
    recipe = recipe_of(tmp_path, source)
    (first,) = prepare(recipe, base.tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, "_encoded", lambda *_: pytest.fail("it was tokenised already"))
        assert prepare(recipe, base.tokenizer) == [first]
        assert prepare(replace(recipe, seed=9, num_steps=3), base.tokenizer) == [first]
    others = [replace(source, max_records=3), replace(source, max_tokens=9), replace(source, paths=(texts[1],))]
    others.append(replace(source, converter="text"))
    folders = [prepare(recipe_of(tmp_path, other), base.tokenizer)[0] for other in others]
    assert len({first, *folders}) == 5
    Path(texts[0]).write_text('{"text": "Something else entirely."}\n')
    (changed,) = prepare(recipe, base.tokenizer)
    assert changed != first and len(TokenStore(changed)) == 1


def test_instructions(base: BaseModel, questions: str, tmp_path: Path) -> None:
    source = SourceConfig(
        "instructions", paths=(questions,), held_out_share=0.0, num_questions=9, context_tokens=(1, 20)
    )
    prompt = PromptConfig(question="Q: {question}\nA:")
    recipe = recipe_of(tmp_path, source, prompt=prompt)
    (folder,) = prepare(recipe, base.tokenizer)
    assert prepare(replace(recipe, prompt=PromptConfig(question="{question}?")), base.tokenizer) != [folder]
    sampler = ContextSampler(recipe, base.tokenizer)
    records = [json.loads(line) for line in Path(questions).read_text().splitlines()]
    records = [record for record in records if record["qa"]]
    items = {
        base.tokenizer.decode([token for chunk in item.chunks for token in chunk]): item
        for step in range(3)
        for item in sampler.step(step)
    }
    assert len(items) == len(records) == 8
    for record in records:
        ids = base.tokenizer(record["context"])["input_ids"][:20]
        item = items[base.tokenizer.decode(ids)]
        assert [list(chunk) for chunk in item.chunks] == [ids[at : at + 7] for at in range(0, len(ids), 7)]
        asked = [(q["question"], q["answers"][0]) for q in record["qa"]]
        expected = {
            (*question_ids(base.tokenizer, prompt, question), *answer_ids(base.tokenizer, prompt, answer))
            for question, answer in asked
        }
        assert {segment.ids for segment in item.segments} == expected
        for segment in item.segments:
            assert (segment.objective, segment.level) == ("answer", len(item.chunks))
            target = base.tokenizer.decode(segment.ids[segment.num_prompt :])
            assert target in {f" {answer}<end>" for _, answer in asked}
    few = ContextSampler(recipe_of(tmp_path, replace(source, num_questions=1), prompt=prompt), base.tokenizer)
    assert all(len(item.segments) == 1 for item in few.step(0))


def test_epochs(base: BaseModel, questions: str, texts: list[str], tmp_path: Path) -> None:
    sources = (
        SourceConfig("instructions", 5.0, paths=(questions,), held_out_share=0.0),
        SourceConfig("text", paths=tuple(texts), held_out_share=0.0, context_tokens=(5, 5000)),
    )
    recipe = recipe_of(tmp_path, *sources, num_epochs=1.5, num_steps=99_999)
    prepare(recipe, base.tokenizer)
    sampler = ContextSampler(recipe, base.tokenizer)
    assert sampler.num_steps() == (8 + 24) * 1.5 / 3 == 16
    drawn = [source for step in range(16) for source, _ in sampler._plan(step)]
    assert abs(drawn.count(0) - 12) <= 2 and len(drawn) == 48
    assert ContextSampler(replace(recipe, num_epochs=None), base.tokenizer).num_steps() == 99_999


def test_a_bad_record_is_named_and_what_was_made_stays(
    base: BaseModel, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a stream breaks: shards that are complete aren't made again."""
    monkeypatch.setattr(token_cache, "_ENCODED_AT_ONCE", 2)
    monkeypatch.setattr(
        "generative_adapter.training.token_store.fill_store.__kwdefaults__",
        {**token_cache.fill_store.__kwdefaults__, "shard_tokens": 40},
    )
    source = SourceConfig("text", paths=tuple(texts))
    recipe = recipe_of(tmp_path, source)
    real, starts = token_cache.numbered_records, []

    def breaking(path: Path, converter: str | None = None) -> Any:
        starts.append(path.name)
        for number, record in real(path, converter):
            if len(starts) < 3 and path.name == "b.jsonl" and number == 9:
                raise DataError(f"{path}, line {number}: not a JSON object")
            yield number, record

    monkeypatch.setattr(token_cache, "numbered_records", breaking)
    with pytest.raises(DataError, match=r"b\.jsonl, line 9"):
        prepare(recipe, base.tokenizer)
    with pytest.raises(DataError, match="not complete"):
        open_store(recipe, source, base.tokenizer)
    told: list[int] = []
    prepare(recipe, base.tokenizer, lambda _, records, __: told.append(records))
    assert told[0] > 10  # goes on after the shards that were written
    whole = recipe_of(tmp_path / "whole", source)
    prepare(whole, base.tokenizer)
    stores = [open_store(each, source, base.tokenizer) for each in (recipe, whole)]
    assert [stores[0].parts(i) for i in range(24)] == [stores[1].parts(i) for i in range(24)]


def test_a_hub_set_is_read_by_the_datasets_library(base: BaseModel, texts: list[str], tmp_path: Path) -> None:
    """Here a local file through the real library, streamed."""
    hub = recipe_of(tmp_path, SourceConfig("text", dataset=texts[0]))
    local = recipe_of(tmp_path, SourceConfig("text", paths=(texts[0],)))
    stores = [TokenStore(prepare(recipe, base.tokenizer)[0]) for recipe in (hub, local)]
    assert stores[0].folder != stores[1].folder
    assert [stores[0].parts(i) for i in range(len(stores[0]))] == [stores[1].parts(i) for i in range(len(stores[1]))]


def test_training_goes_on_in_the_middle_of_an_epoch(
    write_recipe: Callable[..., Path], texts: list[str], questions: str, tmp_path: Path
) -> None:
    sources = [
        {"kind": "text", "paths": texts, "packing": True, "context_tokens": [24, 24]},
        {"kind": "instructions", "paths": [questions], "num_questions": 2, "held_out_share": 0.0},
    ]
    settings: dict[str, Any] = {
        "sources": sources,
        "generator": {"state_dim": 8, "rank": 8, "chunk_tokens": 8},
        "num_epochs": 2,
        "cache": str(tmp_path / "cache"),
        "evaluation_steps": 0,
        "log_steps": 1,
    }
    whole = run_training(write_recipe(output=str(tmp_path / "whole"), **settings))
    assert whole.status == "finished" and 5 < whole.step < 30
    path = write_recipe(output=str(tmp_path / "parts"), **settings)
    lines: list[dict[str, Any]] = []
    stopped = run_training(path, max_seconds=1e-9, progress=lines.append)
    assert stopped.step == 0
    while (part := run_training(path, max_seconds=0.15, resume=True)).status != "finished":
        assert part.step <= whole.step
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()[:-1]]
        for name in ("whole", "parts")
    ]
    assert len(losses[0]) == whole.step and losses[0] == pytest.approx(losses[1], rel=1e-5)
