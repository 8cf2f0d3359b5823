"""Sources of questions made from plain text: passages, their questions, what is kept of the texts, and training."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.config import GeneratorConfig
from generative_adapter.data.paragraphs import paragraphs
from generative_adapter.errors import DataError
from generative_adapter.training import sources
from generative_adapter.training.batches import ContextItem
from generative_adapter.training.passages import Passages, fitted
from generative_adapter.training.plan import context_shape
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.run import run_training
from generative_adapter.training.source_config import SourceConfig
from generative_adapter.training.sources import ContextSampler
from generative_adapter.training.token_cache import open_store, prepare

TABLE = "Year  Runs  Wickets\n1931  204  17\n1932  119  24\n"


def mill(name: str, number: int) -> str:
    """A paragraph of three sentences; its first word and its number tell it apart."""
    return (
        f"{name} number {number} is the mill that was built in the year {1700 + number} by the wife of the miller. "
        f"It has {number + 2} wheels, which were made by Captain Orrin and the men of his village. "
        "The flour is taken over the hills to Tarn by boat."
    )


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Twelve documents of five paragraphs each, and one that is a table."""
    path = tmp_path / "corpus.jsonl"
    texts = ["\n".join(mill(f"Doc{i}", 5 * i + j) for j in range(5)) for i in range(12)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [TABLE, *texts]))
    return str(path)


def recipe_of(folder: Path, *sources: SourceConfig, **settings: Any) -> TrainingRecipe:
    generator = GeneratorConfig(state_dim=4, rank=4)
    values = {"generator": generator, "contexts_per_step": 4, "cache": str(folder / "cache"), **settings}
    return TrainingRecipe(sources, str(folder / "run"), **values)


def sampler_of(base: BaseModel, recipe: TrainingRecipe) -> ContextSampler:
    prepare(recipe, base.tokenizer)
    return ContextSampler(recipe, base.tokenizer)


def text_of(base: BaseModel, item: ContextItem) -> str:
    return base.tokenizer.decode([token for chunk in item.chunks for token in chunk])


def test_contexts_are_runs_of_paragraphs_with_questions_about_them(
    base: BaseModel, corpus: str, tmp_path: Path
) -> None:
    source = SourceConfig("cloze", paths=(corpus,), context_tokens=(150, 300), num_questions=3, held_out_share=0.0)
    sampler = sampler_of(base, recipe_of(tmp_path, source))
    whole = {line for row in Path(corpus).read_text().splitlines() for line in json.loads(row)["text"].split("\n")}
    num_lines = set()
    for item in (item for step in range(12) for item in sampler.step(step)):
        context = text_of(base, item)
        lines = context.split("\n")
        num_lines.add(len(lines))
        assert set(lines) <= whole
        assert len({line.split()[0] for line in lines}) == 1  # of one document, in its order
        numbers = [int(line.split()[2]) for line in lines]
        assert numbers == list(range(numbers[0], numbers[0] + len(lines)))
        assert sum(map(len, item.chunks)) <= 300
        assert 1 <= len(item.segments) <= 3
        for segment in item.segments:
            assert segment.objective == "answer" and segment.level == 1
            asked = base.tokenizer.decode(segment.ids[: segment.num_prompt])
            answer = base.tokenizer.decode(segment.ids[segment.num_prompt : -1]).strip()
            assert asked.startswith("Question: ") and answer in context and answer
    assert len(num_lines) > 1


def test_every_visit_asks_something_else_and_depends_on_seed_and_step_alone(
    base: BaseModel, corpus: str, tmp_path: Path
) -> None:
    source = SourceConfig("cloze", paths=(corpus,), context_tokens=(600, 600), num_questions=2, held_out_share=0.0)
    recipe = recipe_of(tmp_path, source, contexts_per_step=6)
    sampler = sampler_of(base, recipe)
    steps = [sampler.step(step) for step in range(8)]
    again = sampler_of(base, recipe)
    assert [again.step(step) for step in (7, 2, 2, 0)] == [steps[step] for step in (7, 2, 2, 0)]
    assert sampler_of(base, replace(recipe, seed=5)).step(0) != steps[0]
    visits: dict[Any, list[Any]] = {}
    for item in (item for step in steps for item in step):
        visits.setdefault(item.chunks, []).append(item.segments)
    assert len(visits) == 12  # whole documents, of which an epoch has one visit each
    assert all(len(seen) == 4 and len(set(seen)) == 4 for seen in visits.values())


def test_held_out_documents_are_never_trained_on(base: BaseModel, corpus: str, tmp_path: Path) -> None:
    source = SourceConfig("cloze", paths=(corpus,), context_tokens=(20, 200), held_out_share=0.4)
    sampler = sampler_of(base, recipe_of(tmp_path, source))
    held_out = {text_of(base, item).split()[0] for item in sampler.held_out(0, 1000)}
    names = lambda item: {word for word in text_of(base, item).split() if word.startswith("Doc")}  # noqa: E731
    trained = {name for step in range(40) for item in sampler.step(step) for name in names(item)}
    held_out = {name for item in sampler.held_out(0, 1000) for name in names(item)}
    assert held_out and trained and not held_out & trained
    assert sampler.held_out(0, 3) == sampler.held_out(0, 3)


def test_texts_are_kept_as_bytes_and_those_without_prose_are_not(base: BaseModel, corpus: str, tmp_path: Path) -> None:
    source = SourceConfig("cloze", paths=(corpus,))
    recipe = recipe_of(tmp_path, source)
    (folder,) = prepare(recipe, base.tokenizer)
    store = open_store(recipe, source, base.tokenizer)
    kept = [bytes(store.tokens(number)).decode() for number in range(len(store))]
    texts = [json.loads(line)["text"] for line in Path(corpus).read_text().splitlines()]
    assert kept == ["".join(paragraphs(text)) for text in texts[1:]]
    size = sum(path.stat().st_size for path in folder.glob("shard-*"))
    assert size < sum(map(len, kept)) + 1500
    (bounded,) = prepare(recipe_of(tmp_path, replace(source, max_records=3)), base.tokenizer)
    assert bounded != folder
    assert (
        len(open_store(recipe_of(tmp_path, replace(source, max_records=3)), replace(source, max_records=3), None)) == 3
    )  # type: ignore[arg-type]


def test_a_source_without_prose_is_refused(base: BaseModel, tmp_path: Path) -> None:
    path = tmp_path / "table.txt"
    path.write_text(TABLE)
    with pytest.raises(DataError, match=r"no usable record in table.txt .*'cloze'; .*English prose"):
        sampler_of(base, recipe_of(tmp_path, SourceConfig("cloze", paths=(str(path),))))


def test_a_passage_without_questions_gives_way(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most of the document is a table, which is to be reconstructed where nothing else is found."""
    path = tmp_path / "mixed.txt"
    path.write_text(mill("Doc", 1) + "\n\n" + TABLE * 15)
    source = SourceConfig("cloze", paths=(str(path),), context_tokens=(64, 64), held_out_share=0.0)
    sampler = sampler_of(base, recipe_of(tmp_path, source))

    def objectives() -> list[str]:
        return [item.segments[0].objective for step in range(10) for item in sampler.step(step)]

    found = objectives()
    assert set(found) <= {"answer", "reconstruction"}
    monkeypatch.setattr(sources, "_PASSAGES_TRIED", 1)
    assert found.count("answer") > 2 * objectives().count("answer")


def test_passages_begin_at_paragraphs_sentences_or_words(base: BaseModel, tmp_path: Path) -> None:
    prose = " ".join(f"Part {i} of the tale is told by Ann in {1800 + i} ä." for i in range(80))
    texts = {
        "lines": "\n".join(mill("Doc", i) for i in range(20)),
        "sentences": prose,
        "words": prose.replace(".", ","),
    }
    for kind, text in texts.items():
        path = tmp_path / f"{kind}.txt"
        path.write_text(text)
        source = SourceConfig("cloze", paths=(str(path),), context_tokens=(20, 60), held_out_share=0.0)
        recipe = recipe_of(tmp_path, source)
        if kind == "words":  # one sentence, too long to be asked about: only passages are looked at here
            path.write_text(f"{text}\n{mill('Doc', 1)}")
        prepare(recipe, base.tokenizer)
        store = open_store(recipe, source, base.tokenizer)
        passages = Passages(store, store.digests.argsort(), 60)
        assert len(passages) == int(store.lengths[0]) // 240
        begins = set()
        for number in range(len(passages)):
            for seed in range(5):
                passage = passages.text(number, 60, random.Random(f"{number}/{seed}"))
                assert passage in path.read_text() and 120 <= len(passage) <= 960
                begins.add(path.read_text().index(passage))
        assert len(begins) > len(passages) / 2
        before = {path.read_text()[max(0, begin - 2) : begin] for begin in begins}
        if kind == "lines":
            assert any(text.endswith("\n") for text in before)
            assert all(text.endswith("\n") or text in (". ", "") for text in before)
        elif kind == "sentences":
            assert before <= {". ", ""}
        else:
            assert all(text.endswith((" ", "\n")) or not text for text in before)


def test_fitting(base: BaseModel) -> None:
    tokenizer = base.tokenizer
    first, second = mill("Doc", 1), mill("Doc", 2)
    length = lambda text: len(tokenizer(text)["input_ids"])  # noqa: E731
    text = f"{first}\n\n{second}"
    assert fitted(text, length(text) + 2, tokenizer) == text
    assert fitted(text, length(text) - 1, tokenizer) == first
    assert fitted(f"Title\n{first}", length(first) - 1, tokenizer) == "Title\n" + first[: first.index(" The flour")]
    long = "so " * 200
    assert 1 <= length(fitted(long, 30, tokenizer)) <= 30 and fitted(long, 30, tokenizer) in long


def test_training_is_resumed_where_it_stopped(write_recipe: Callable[..., Path], corpus: str, tmp_path: Path) -> None:
    source = {"kind": "cloze", "paths": [corpus], "context_tokens": [30, 90], "reconstruction": 0.3}
    settings: dict[str, Any] = {"cache": str(tmp_path / "cache"), "num_steps": 2, "warmup_steps": 0}
    recipe = write_recipe(sources=[{**source, "held_out_share": 0.3}], checkpoint_seconds=1e-9, **settings)
    result = run_training(recipe)
    assert (result.status, result.step) == ("finished", 2)
    assert result.evaluation["0-cloze"]["num_answers"] > 0
    assert result.evaluation["0-cloze"]["answer_perplexity"] > 1
    stopped = tmp_path / "stopped"
    assert run_training(recipe, max_seconds=1e-9, output=stopped).step < 2
    resumed = run_training(recipe, resume=True, output=stopped)
    assert (resumed.step, resumed.evaluation) == (2, result.evaluation)
    files = [Path(run.generator).read_bytes()[-4096:] for run in (result, resumed)]
    assert files[0] == files[1]


def test_the_plan_knows_their_lengths() -> None:
    shape = context_shape(SourceConfig("cloze", paths=("a.txt",), context_tokens=(100, 300), num_questions=5))
    assert (shape.context_tokens, shape.questions, shape.reconstruction) == (200, 5.0, 0.0)
    assert shape.question_tokens > shape.answer_tokens > 1
