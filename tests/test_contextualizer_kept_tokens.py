"""Memories of a row for every token, from text to answers: rows, order, forgetting, files, stores."""

from __future__ import annotations

import pytest
import torch

from generative_adapter.base_model import reading
from generative_adapter.base_model.inject import inject
from generative_adapter.base_model.prompts import context_chunks
from generative_adapter.base_model.reading import in_text_order, read_chunks
from generative_adapter.base_model.text_blocks import block_chunks
from generative_adapter.config import MEMORY_DTYPES
from generative_adapter.contextualizer import GenerativeAdapter
from generative_adapter.errors import DataError, EmptyContextError, FingerprintMismatchError
from generative_adapter.export.memory_store import MemoryStore
from generative_adapter.generator.memory import ContextMemory
from generative_adapter.generator.memory_file import stored_dtype
from row_keeper import WIDTH, StreamingRowKeeper, row_keeper
from tiny_models import BEGIN, tiny_base

FIRST = "The badges at Kestrel Point are lilac; Ada Quill keeps them."
SECOND = "Visitors park on the roof, but not on Mondays before nine."
THIRD = "Bo Marsh mends the pumps."
PARTS = (FIRST, SECOND, FIRST.upper(), SECOND.upper(), THIRD)
TEXT = "\n\n".join(PARTS)
QUESTIONS = ("Which colour?", "Who?", "Where do visitors park on Mondays?")


@pytest.fixture
def model(tiny_llama_base) -> GenerativeAdapter:
    return row_keeper(tiny_llama_base)


@pytest.fixture
def streaming(tiny_llama_base) -> GenerativeAdapter:
    return row_keeper(tiny_llama_base, StreamingRowKeeper, chunk_tokens=23)


def rows(memory: ContextMemory) -> torch.Tensor:
    return memory.states["memory"]


def same(one: ContextMemory, other: ContextMemory) -> bool:
    return torch.equal(rows(one), rows(other)) and one.documents == other.documents


@pytest.mark.parametrize("begin", [False, True])
def test_a_memory_has_the_row_of_every_token_in_the_order_of_the_text(begin):
    model = row_keeper(tiny_base(begin=begin))
    base, start = model.base, [BEGIN] if begin else []
    expected = []
    for chunk in block_chunks(base.tokenizer, TEXT, 60):
        output = base.model(input_ids=torch.tensor([start + chunk]), output_hidden_states=True)
        hidden = {layer: output.hidden_states[layer][:, len(start) :] for layer in (0, 1)}
        expected.append(model.generator.write(hidden)["memory"][0])
    assert [len(each) for each in expected] == [60, 58, 60, 58, 25]
    memory = model.contextualize(TEXT, name="notes")
    assert (memory.keeps_tokens, memory.num_chunks, memory.num_tokens) == (True, 5, 261)
    assert rows(memory).shape == (261, WIDTH) and rows(memory).dtype == torch.float32
    torch.testing.assert_close(rows(memory), torch.cat(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("limit", [1, 61, 120, 10_000])
def test_batches_do_not_matter_and_each_chunk_is_as_if_read_alone(model, monkeypatch, limit):
    monkeypatch.setattr(reading, "READING_TOKENS", limit)
    calls: list[tuple[int, int]] = []
    memory = model.contextualize(TEXT, progress=lambda *call: calls.append(call))
    assert calls == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    alone = torch.cat([rows(model.contextualize(part)) for part in PARTS])
    torch.testing.assert_close(rows(memory), alone, rtol=0, atol=1e-4)


def test_rows_of_padding_are_left_out(model):
    chunks = [model.base.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (THIRD, FIRST, SECOND)]
    together = read_chunks(model.base, model.generator, chunks)["memory"]
    alone = [read_chunks(model.base, model.generator, [chunk])["memory"] for chunk in chunks]
    assert [len(each) for each in alone] == [25, 60, 58]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)


def test_in_text_order_undoes_the_order_of_lengths():
    lengths = [5, 2, 7, 2, 5, 1]
    text = torch.arange(sum(lengths)).unsqueeze(1)
    chunks = text.split(lengths)
    assert torch.equal(in_text_order(torch.cat(sorted(chunks, key=len)), lengths, lengths), text)
    halves = [(length + 1) // 2 for length in lengths]  # as many rows of chunks of different lengths
    kept = [chunk[:half] for chunk, half in zip(chunks, halves, strict=True)]
    read = torch.cat([chunk[: (len(chunk) + 1) // 2] for chunk in sorted(chunks, key=len)])
    assert torch.equal(in_text_order(read, lengths, halves), torch.cat(kept))


def test_documents_add_and_are_forgotten_bit_for_bit(model):
    memories = [model.contextualize(text, name=f"{at}") for at, text in enumerate((FIRST, SECOND, THIRD))]
    whole = memories[0] + memories[1] + memories[2]
    read_on = model.contextualize(THIRD, memories[0] + memories[1], name="2")
    assert same(read_on, whole) and [document.streamed for document in whole.documents] == [False] * 3
    left = model.forget(whole, SECOND)
    assert same(left, memories[0] + memories[2])
    assert model.answer(QUESTIONS, left) == model.answer(QUESTIONS, memories[0] + memories[2])
    nothing = model.forget(model.forget(left, THIRD), FIRST)
    assert same(nothing, model.empty_memory())
    with pytest.raises(DataError, match="does not hold"):
        model.forget(left, SECOND)


def test_memory_of_no_context_changes_nothing(model):
    empty = model.empty_memory()
    assert rows(empty).shape == (0, WIDTH) and empty.num_bytes == 0 and empty.keeps_tokens
    assert not any(factors.delta().any() for factors in model.adapter(empty).values())
    assert model.answer(QUESTIONS, empty) == model.answer(QUESTIONS)
    told = model.contextualize(TEXT)
    assert all(factors.delta().any() for factors in model.adapter(told).values())
    assert told.num_bytes == 261 * WIDTH * 4


def test_answers_under_several_memories(model):
    memories = [model.contextualize(text) for text in (FIRST, SECOND, TEXT)]
    together = model.answer(QUESTIONS, memories, max_new_tokens=6)
    alone = [model.answer([q], memory, max_new_tokens=6)[0] for q, memory in zip(QUESTIONS, memories, strict=True)]
    assert together == alone


@pytest.mark.parametrize("dtype", MEMORY_DTYPES)
def test_forgetting_from_a_file_is_exact_in_every_form(model, tmp_path, dtype):
    both = model.contextualize(FIRST) + model.contextualize(SECOND)
    both.save(tmp_path / "both", dtype)
    model.contextualize(SECOND).save(tmp_path / "second", dtype)
    read = ContextMemory.load(tmp_path / "both", model.generator_fingerprint)
    error = (rows(read) - rows(both)).norm() / rows(both).norm()
    assert error <= {"float64": 0.0, "bfloat16": 0.004, "int8": 0.01}[dtype]
    assert same(model.forget(read, FIRST), ContextMemory.load(tmp_path / "second"))


def test_a_store_keeps_such_memories(model, tmp_path):
    store, memory = MemoryStore(tmp_path / "store"), model.contextualize(TEXT)
    store.put("notes", memory)
    assert stored_dtype(tmp_path / "store" / "notes.safetensors") == "bfloat16"
    read = store.get("notes", model.generator_fingerprint)
    assert read.documents == memory.documents and torch.equal(rows(read), rows(memory).bfloat16().float())


def test_what_is_refused(model, tiny_llama_base):
    stranger = row_keeper(tiny_llama_base, seed=6)
    with pytest.raises(FingerprintMismatchError):
        model.contextualize(TEXT, stranger.contextualize(TEXT))
    with pytest.raises(EmptyContextError):
        model.contextualize(" \n\n ", model.contextualize(TEXT))


def test_chunks_one_after_another(streaming):
    """Each chunk under the adapter of all rows before it, in order; a continued text is part of a stream."""
    base, generator = streaming.base, streaming.generator
    expected = torch.zeros(0, WIDTH)
    for chunk in context_chunks(base.tokenizer, FIRST, 23):
        with inject(base.model, generator.adapter({"memory": expected})):
            added = read_chunks(base, generator, [chunk])["memory"]
        assert len(added) == len(chunk)
        expected = torch.cat([expected, added])
    memory = streaming.contextualize(FIRST)
    assert memory.num_chunks == 3 and torch.equal(rows(memory), expected)
    apart = streaming.contextualize(SECOND)
    both = streaming.contextualize(SECOND, memory)
    assert torch.equal(rows(both)[:60], rows(memory)) and len(rows(both)) == 118
    assert not torch.equal(rows(both)[60:], rows(apart))
    with pytest.raises(DataError, match="part of a stream"):
        streaming.forget(both, SECOND)
    assert same(streaming.forget(memory + apart, FIRST), apart)
