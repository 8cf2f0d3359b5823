"""Where contexts come from: reproducible, in the shares asked for, every record once an epoch, none of the held-out."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.config import GeneratorConfig
from generative_adapter.data.records import Question, Record
from generative_adapter.errors import DataError
from generative_adapter.training import sources, windows
from generative_adapter.training.batches import ContextItem, Segment
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.source_config import SourceConfig
from generative_adapter.training.sources import ContextSampler
from generative_adapter.training.token_cache import prepare
from generative_adapter.training.windows import found_at

PARAGRAPH = (
    "The mill at Orrin was built in 1731. Its wheel came from Tarn! Who paid for it? A miller called Bess Quill did.\n"
    "In 1804 it burnt down. The new one stands on oak piles, e.g. under the sluice. It grinds rye"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENERATIVE_ADAPTER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def tokenizer(base: BaseModel) -> Any:
    return base.tokenizer


@pytest.fixture
def beginning(tokenizer: Any) -> Any:
    """The same tokenizer, putting a begin-of-sequence token first."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<pad>", eos_token="<end>", pad_token="<pad>")


def sampler(tokenizer: Any, *configs: SourceConfig, **settings: Any) -> ContextSampler:
    values = {"contexts_per_step": 4, "generator": GeneratorConfig(state_dim=4, rank=4), **settings}
    recipe = TrainingRecipe(tuple(configs), "run", **values)
    prepare(recipe, tokenizer)
    return ContextSampler(recipe, tokenizer)


def write(path: Path, records: Sequence[Record]) -> str:
    lines = []
    for record in records:
        questions = [{"question": q.question, "answers": list(q.answers)} for q in record.questions]
        lines.append({"context": record.context, "qa": questions} if questions else {"text": record.context})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def numbered(path: Path, count: int, name: str = "rec") -> str:
    """Records "rec 0 says yes." to "rec <count - 1> says yes."."""
    return write(path, [Record(f"{name} {i} says yes.", (Question("What?", ("yes",)),)) for i in range(count)])


def text_of(tokenizer: Any, item: ContextItem) -> str:
    return "".join(tokenizer.decode(chunk) for chunk in item.chunks)


def prompt_and_answer(tokenizer: Any, segment: Segment) -> tuple[str, str]:
    return tokenizer.decode(segment.ids[: segment.num_prompt]), tokenizer.decode(segment.ids[segment.num_prompt :])


def test_contexts_depend_on_seed_and_step_alone(tokenizer: Any, records_file: Path) -> None:
    configs = (SourceConfig("facts"), SourceConfig("questions", paths=(str(records_file),), start_step=2))
    drawn = sampler(tokenizer, *configs, seed=3)
    forwards = [drawn.step(step) for step in range(6)]
    again = sampler(tokenizer, *configs, seed=3)
    assert [again.step(step) for step in (5, 1, 4, 4, 0)] == [forwards[step] for step in (5, 1, 4, 4, 0)]
    assert all(len(set(step)) == len(step) == 4 for step in forwards)
    assert not set(forwards[0]) & set(forwards[1])
    assert sampler(tokenizer, *configs, seed=4).step(0) != forwards[0]


def test_shares_and_start_steps(tokenizer: Any, tmp_path: Path) -> None:
    names = ("one", "two", "three")
    paths = [numbered(tmp_path / f"{name}.jsonl", 7, name) for name in names]
    configs = [
        SourceConfig("questions", share, (path,), start_step=start)
        for path, share, start in zip(paths, (1, 2, 5), (0, 0, 30), strict=True)
    ]
    drawn = sampler(tokenizer, *configs, contexts_per_step=5)

    def shares(steps: range) -> list[float]:
        count = Counter(text_of(tokenizer, item).split()[0] for step in steps for item in drawn.step(step))
        return [count[name] / sum(count.values()) for name in names]

    assert shares(range(30)) == pytest.approx([1 / 3, 2 / 3, 0], abs=0.02)
    assert shares(range(30, 90)) == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)


def test_every_record_of_every_source_once_an_epoch(tokenizer: Any, tmp_path: Path) -> None:
    """Also when sources take turns, and one joins later."""
    sizes = {"one": 13, "two": 5, "three": 8}
    starts = (0, 0, 4)
    configs = [
        SourceConfig("questions", share, (numbered(tmp_path / f"{name}.jsonl", size, name),), start_step=start)
        for (name, size), share, start in zip(sizes.items(), (3, 1, 0.7), starts, strict=True)
    ]
    drawn = sampler(tokenizer, *(replace(config, held_out_share=0.0) for config in configs))
    seen: dict[str, list[str]] = {name: [] for name in sizes}
    for step in range(40):
        for item in drawn.step(step):
            text = text_of(tokenizer, item)
            seen[text.split()[0]].append(text)
    for name, size in sizes.items():
        epochs = [seen[name][at : at + size] for at in range(0, len(seen[name]) - size + 1, size)]
        assert len(epochs) >= 2
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert epochs[0] != epochs[1]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 257])
def test_permutations(size: int) -> None:
    orders = [[sources._permuted(place, size, key) for place in range(size)] for key in ("0/0/0", "0/0/1", "1/0/0")]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 16:
        assert len(set(map(tuple, orders))) == 3
        assert all(sum(place == value for place, value in enumerate(order)) < size / 4 for order in orders)


def test_held_out_records_are_never_trained_on(tokenizer: Any, tmp_path: Path) -> None:
    path = numbered(tmp_path / "many.jsonl", 60)
    config = SourceConfig("questions", paths=(path, path), held_out_share=0.3)  # the same texts in two files
    drawn = sampler(tokenizer, config)
    held_out = {text_of(tokenizer, item) for item in drawn.held_out(0, 1000)}
    trained = {text_of(tokenizer, item) for step in range(60) for item in drawn.step(step)}
    assert 8 <= len(held_out) <= 30
    assert len(held_out | trained) == 60
    assert not held_out & trained
    assert drawn.held_out(0, 3) == sampler(tokenizer, config, seed=9).held_out(0, 3)
    assert len(drawn.held_out(0, 3)) == 3


def test_held_out_facts_are_others(tokenizer: Any) -> None:
    drawn = sampler(tokenizer, SourceConfig("facts", num_facts=(3, 3), num_questions=2))
    items = drawn.held_out(0, 5)
    assert len(items) == 5 and items == drawn.held_out(0, 5)
    assert all([s.objective for s in item.segments] == ["answer", "answer"] for item in items)


@pytest.mark.parametrize("style", ["plain", "key_value"])
def test_facts_stand_among_the_sentences_of_real_texts(tokenizer: Any, tmp_path: Path, style: str) -> None:
    """All of the facts are there, in their order, and all else are whole sentences of the files, as many as asked."""
    texts = [f"Line {i} of {name} goes on. It ends here." for i in range(20) for name in ("a tale", "a song")]
    path = write(tmp_path / "texts.jsonl", [Record(text, ()) for text in texts])
    facts = SourceConfig("facts", style=style, num_facts=(3, 3), attributes="distinct")
    config = replace(facts, paths=(path,), context_tokens=(40, 90), held_out_share=0.3)
    scattered = 0
    for number in range(12):
        for held_out in (False, True):
            alone, among = (
                sampler(tokenizer, each)._draw(0, number, random.Random(number), held_out) for each in (facts, config)
            )
            whole, stated = text_of(tokenizer, among), text_of(tokenizer, alone)
            pieces = [stated[a:b] for a, b in windows.sentences(stated)] if style == "plain" else [stated]
            rest, at = whole, 0
            for piece in pieces:
                assert whole.find(piece.strip(), at) >= at
                at = whole.find(piece.strip(), at)
                rest = rest.replace(piece.strip(), "|", 1)
            scattered += "|" not in rest.strip("| \n") and len(pieces) > 1
            parts = [part.strip() for line in rest.split("|") for part in re.split(r"(?<=[.])\s+", line)]
            found = [part for part in parts if part]
            assert found and all(any(part in text for text in texts) for part in found)
            digests = {hashlib.sha256(text.encode()).digest()[:4] for text in texts if found[0] in text}
            if found[0].startswith("Line"):
                assert all((int.from_bytes(d, "big") / 2**32 < 0.3) == held_out for d in digests)
            assert 40 * 4 <= len(rest) <= 90 * 4 + 60
            assert {s.ids for s in among.segments} == {s.ids for s in alone.segments}
    assert scattered < 12  # mostly text stands between the facts


def test_questions_are_asked_as_the_prompt_says(tokenizer: Any, tmp_path: Path) -> None:
    record = Record("Ann has a red hat.", (Question("Who?", ("Ann", "she")), Question("What colour?", ("red",))))
    config = SourceConfig("questions", paths=(write(tmp_path / "one.jsonl", [record]),), held_out_share=0.0)
    (item,) = sampler(tokenizer, config, contexts_per_step=1).step(0)
    assert text_of(tokenizer, item) == "Ann has a red hat."
    assert {prompt_and_answer(tokenizer, segment) for segment in item.segments} == {
        ("Question: Who?\n\nAnswer:", " Ann<end>"),
        ("Question: What colour?\n\nAnswer:", " red<end>"),
    }
    assert all((segment.level, segment.objective) == (1, "answer") for segment in item.segments)
    assert not item.completion


def test_reconstruction_beside_questions(tokenizer: Any, records_file: Path) -> None:
    config = SourceConfig("questions", paths=(str(records_file),), reconstruction=0.4, num_questions=1)
    drawn = sampler(tokenizer, config, generator=GeneratorConfig(state_dim=4, rank=4, chunk_tokens=11))
    items = [item for step in range(50) for item in drawn.step(step)]
    share = 0
    for item in items:
        assert len(item.chunks) > 1
        (question, *others) = item.segments
        assert (question.objective, question.level) == ("answer", len(item.chunks))
        share += bool(others)
        if others:
            assert [(s.ids, s.num_prompt, s.level) for s in others] == [
                (chunk, 1, level) for level, chunk in enumerate(item.chunks, 1) if len(chunk) > 1
            ]
            assert {s.objective for s in others} == {"reconstruction"}
    assert 0.3 < share / len(items) < 0.5


@pytest.mark.parametrize("seed", range(30))
def test_windows_are_whole_sentences_around_an_answer(tokenizer: Any, seed: int) -> None:
    questions = (
        Question("When?", ("1731",)),
        Question("Who?", ("a person nobody named", "Bess Quill")),
        Question("Where does it stand?", ("oak piles",)),
        Question("What?", ("rye",)),
    )
    record = Record(PARAGRAPH, questions, "mills")
    config = SourceConfig("questions", paths=("unused",), context_tokens=(5, 40))
    window = windows.window(record, random.Random(seed), config, tokenizer)
    starts = [PARAGRAPH.index(s) for s in ("The mill", "Its wheel", "Who paid", "A miller", "In 1804", "The new")]
    starts += [PARAGRAPH.index("under the"), PARAGRAPH.index("It grinds")]
    begin = PARAGRAPH.index(window.context)
    end = begin + len(window.context)
    assert begin in starts
    assert end == len(PARAGRAPH) or end + 1 in starts
    assert window.source == "mills"
    assert window.questions
    for question in window.questions:
        assert all(answer in window.context for answer in question.answers)
    one_sentence = sum(begin <= start < end for start in starts) == 1
    assert one_sentence or len(tokenizer(window.context)["input_ids"]) <= 40


@pytest.mark.parametrize("answer", ["cell0", "cell77", "cell199", "cell198 cell199", "not there"])
def test_a_sentence_without_end_is_cut_at_words_around_the_answer(tokenizer: Any, answer: str) -> None:
    words = [f"cell{i}" for i in range(200)]
    questions = (Question("Which?", (answer,)), Question("What?", ("cell150",)))
    config = SourceConfig("questions", paths=("unused",), context_tokens=(5, 40))
    window = windows.window(Record(" ".join(words), questions), random.Random(3), config, tokenizer)
    kept = window.context.split(" ")
    assert 1 <= len(kept) < 40 and len(tokenizer(window.context)["input_ids"]) <= 40
    start = words.index(kept[0])
    assert kept == words[start : start + len(kept)]
    assert all(set(question.answers[0].split()) <= set(kept) for question in window.questions)


def test_a_word_without_end_is_cut_too(tokenizer: Any) -> None:
    config = SourceConfig("questions", paths=("unused",), context_tokens=(5, 40))
    record = Record("q0zx" * 300, (Question("Is it?", ("yes",)),))
    window = windows.window(record, random.Random(3), config, tokenizer)
    assert 1 <= len(tokenizer(window.context)["input_ids"]) <= 40


def test_a_short_record_is_taken_whole_with_answers_of_its_own(tokenizer: Any) -> None:
    record = Record("Rain fell. It was cold.", (Question("Was it warm?", ("no",)),))
    config = SourceConfig("questions", paths=("unused",), context_tokens=(50, 50))
    assert windows.window(record, random.Random(0), config, tokenizer) == record


def test_windows_vary_from_epoch_to_epoch(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", [Record(PARAGRAPH, (Question("When?", ("1804",)),))])
    config = SourceConfig("questions", paths=(path,), context_tokens=(5, 60), held_out_share=0.0)
    drawn = sampler(tokenizer, config)
    assert len({text_of(tokenizer, item) for step in range(5) for item in drawn.step(step)}) > 3


def article(path: Path, words: int = 400) -> str:
    return write(path, [Record(" ".join(f"word{i}" for i in range(words)))])


def test_a_text_of_one_chunk_is_rebuilt_and_continued(tokenizer: Any, tmp_path: Path) -> None:
    path = article(tmp_path / "text.jsonl")
    config = SourceConfig("text", paths=(path,), context_tokens=(30, 60), held_out_share=0.0)
    items = [item for step in range(10) for item in sampler(tokenizer, config).step(step)]
    assert len({item.chunks for item in items}) > 30
    for item in items:
        (chunk,) = item.chunks
        rebuilt, continued = item.segments
        assert (rebuilt.ids, rebuilt.num_prompt, rebuilt.level) == (chunk, 1, 1)
        assert (rebuilt.objective, continued.objective) == ("reconstruction", "completion")
        assert (continued.num_prompt, continued.level) == (1, 1)
        whole = tokenizer.decode([*chunk, *continued.ids])
        assert whole in Path(path).read_text()
        num_tokens = len(chunk) + len(continued.ids)
        assert 30 <= num_tokens <= 60 and len(chunk) == num_tokens * 2 // 3
        assert not item.completion


def test_a_text_of_many_chunks_completes_each_from_those_before(tokenizer: Any, tmp_path: Path) -> None:
    path = article(tmp_path / "text.jsonl")
    config = SourceConfig("text", paths=(path,), context_tokens=(50, 50), held_out_share=0.0)
    generator = GeneratorConfig(state_dim=4, rank=4, chunk_tokens=16)
    for item in sampler(tokenizer, config, generator=generator).step(0):
        assert [len(chunk) for chunk in item.chunks] == [16, 16, 16, 2]
        assert item.completion
        assert [(s.ids, s.level, s.objective) for s in item.segments] == [
            (chunk, level, "reconstruction") for level, chunk in enumerate(item.chunks, 1)
        ]
        assert text_of(tokenizer, item) in Path(path).read_text()


def test_a_beginning_token_starts_every_text(beginning: Any, tmp_path: Path) -> None:
    config = SourceConfig("text", paths=(article(tmp_path / "text.jsonl"),), context_tokens=(30, 30))
    for item in sampler(beginning, replace(config, held_out_share=0.0)).step(0):
        assert all(0 not in chunk for chunk in item.chunks)
        rebuilt, continued = item.segments
        assert rebuilt.ids == (0, *item.chunks[0]) and rebuilt.num_prompt == 1
        assert continued.ids[0] == 0 and 0 not in continued.ids[1:] and continued.num_prompt == 1


def test_blank_stretches_and_tiny_windows_of_text(tokenizer: Any, tmp_path: Path) -> None:
    texts = ["a   " + " \n" * 300 + "   the end of it", "No", "x"]
    path = write(tmp_path / "odd.jsonl", [Record(text) for text in texts])
    config = SourceConfig("text", paths=(path,), context_tokens=(1, 4), held_out_share=0.0)
    drawn = sampler(tokenizer, config)
    items = [item for step in range(40) for item in drawn.step(step)]
    assert all(item.segments for item in items)
    assert all(len(segment.ids) > segment.num_prompt for item in items for segment in item.segments)


def test_texts_of_one_token_only(tokenizer: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.jsonl", [Record("x"), Record("y")])
    with pytest.raises(DataError, match="no usable record"):
        sampler(tokenizer, SourceConfig("text", paths=(path,), held_out_share=0.0))
    path = write(tmp_path / "odd.jsonl", [Record("x", (Question("What?", ("y",)),))])
    config = SourceConfig("questions", paths=(path,), held_out_share=0.0)
    drawn = sampler(tokenizer, config)
    assert drawn.step(0)
    drawn.record_item = lambda *_: ContextItem(((1,),), ())  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"step 0: .* give longer texts"):
        drawn.step(0)


def test_bad_files(tokenizer: Any, tmp_path: Path) -> None:
    missing = SourceConfig("questions", paths=(str(tmp_path / "none.jsonl"),))
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        sampler(tokenizer, missing)
    no_questions = SourceConfig("questions", paths=(article(tmp_path / "text.jsonl"),))
    with pytest.raises(DataError, match="no usable record"):
        sampler(tokenizer, no_questions)
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "good"}\n{"text": \n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 2"):
        sampler(tokenizer, SourceConfig("text", paths=(str(broken),)))
    (tmp_path / "broken.jsonl.zst").write_bytes(b"no zstandard")
    with pytest.raises(DataError, match="zstandard"):
        sampler(tokenizer, SourceConfig("text", paths=(str(tmp_path / "broken.jsonl.zst"),)))


def test_where_an_answer_stands_in_its_context(tokenizer: Any) -> None:
    """The context's token at each place is the one that holds the answer's first letter of that token."""
    context, answer = "Ada keeps the lilac badge in room 14.", "lilac badge"
    read = tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)
    asked = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
    found = found_at(tokenizer, context, read["input_ids"], answer, len(asked["input_ids"]) + 1)
    assert len(found) == len(asked["input_ids"]) + 1 and found[-1] == -1
    for token, (begin, _) in zip(found, asked["offset_mapping"], strict=False):
        first, last = read["offset_mapping"][token]
        assert first <= context.index(answer) + begin < last
    assert found_at(tokenizer, context, read["input_ids"], "no such thing", 4) == ()
    assert found_at(tokenizer, context, read["input_ids"][:5], answer, 9) == ()  # a chunk is not the whole text
