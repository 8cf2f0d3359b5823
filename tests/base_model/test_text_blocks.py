"""Texts to blocks: prose, lists, chat logs, one long line, special tokens. A token is a byte here."""

from __future__ import annotations

import re

import pytest
from tokenizers import decoders

from generative_adapter.base_model.prompts import plain_ids
from generative_adapter.base_model.text_blocks import SHORTEST_BLOCK, block_chunks
from generative_adapter.errors import EmptyContextError
from tiny_models import SPECIAL, tiny_tokenizer

TOKENIZER = tiny_tokenizer(begin=True)
TOKENIZER.backend_tokenizer.decoder = decoders.ByteLevel()
PARAGRAPH = "The badges at Kestrel Point are lilac; Ada Quill keeps them."  # 60 tokens
SECOND = "Visitors park on the roof, but not on Mondays before nine o'clock."  # 66


def texts(text: str, chunk_tokens: int = 256) -> list[str]:
    """The chunks as text; checks what holds for all of them."""
    chunks = block_chunks(TOKENIZER, text, chunk_tokens)
    decoded = [TOKENIZER.decode(ids) for ids in chunks]
    assert all(0 < len(ids) <= chunk_tokens for ids in chunks)
    assert all(ids == plain_ids(TOKENIZER, each) for ids, each in zip(chunks, decoded, strict=True))
    assert re.sub(r"\s", "", "".join(decoded)) == re.sub(r"\s", "", text), "every word once, in order"
    return decoded


def test_paragraphs_stand_alone():
    assert texts(f"{PARAGRAPH}\n\n{SECOND}") == [PARAGRAPH, SECOND]
    assert texts(f"\n\n  {PARAGRAPH}\n \t\r\n\n\n{SECOND}\n\n") == [PARAGRAPH, SECOND]
    assert texts(f"{PARAGRAPH}\r\n\r\n{SECOND}\r\n") == [PARAGRAPH, SECOND]


def test_a_line_break_is_no_blank_line():
    assert texts(f"{PARAGRAPH}\n{SECOND}") == [f"{PARAGRAPH}\n{SECOND}"]


def test_short_blocks_go_with_the_next():
    assert texts(f"# Badges\n\n{PARAGRAPH}\n\n{SECOND}") == [f"# Badges\n\n{PARAGRAPH}", SECOND]
    title = "x" * (SHORTEST_BLOCK - 1)
    assert texts(f"{title}\n\n{PARAGRAPH}") == [f"{title}\n\n{PARAGRAPH}"]
    assert texts(f"{title}x\n\n{PARAGRAPH}") == [f"{title}x", PARAGRAPH]


def test_a_short_end_goes_with_what_is_before_it():
    assert texts(f"{PARAGRAPH}\n\n{SECOND}\n\nThe end.") == [PARAGRAPH, f"{SECOND}\n\nThe end."]
    assert texts(f"{PARAGRAPH}\n\nThe end.", 62) == [PARAGRAPH, "The end."]  # no room
    assert texts("The end.") == ["The end."]


def test_lists_are_gathered_until_they_say_something():
    items = [f"- item {number:02d}: {number * 7} euros" for number in range(12)]
    found = texts("\n\n".join(items))
    assert len(found) == 4 and all(len(each) >= SHORTEST_BLOCK for each in found)
    assert [line for each in found for line in each.split("\n\n")] == items


def test_chat_logs_are_cut_at_line_ends():
    lines = [
        f"[09:{minute:02d}] {'Ann' if minute % 2 else 'Bo'}: it is {minute} degrees. Really?" for minute in range(40)
    ]
    found = texts("\n".join(lines))
    assert [line for each in found for line in each.split("\n")] == lines
    assert max(map(len, found)) - min(map(len, found)) < 2 * len(lines[0]), "parts of about the same length"


def test_long_paragraphs_are_cut_at_sentence_ends():
    sentences = [f'Ada Quill said: "no. {number} is worth 3.14, i.e. nothing at all."' for number in range(20)]
    found = texts(" ".join(sentences), 150)
    assert " ".join(found) == " ".join(sentences)
    assert all(each.startswith("Ada Quill") and each.endswith('all."') for each in found)
    assert [each.count("Ada") for each in found] == [2] * 10


def test_wrapped_prose_is_cut_at_sentence_ends():
    sentences = [
        f"The pump number {number} was oiled\nbefore the visitors of the point\ncame back." for number in range(9)
    ]
    found = texts(" ".join(sentences), 200)
    assert all(each.startswith("The pump") and each.endswith("back.") for each in found) and len(found) == 5


def test_a_long_line_among_short_ones_is_cut_at_sentence_ends():
    found = texts(f"Ann: hello\nBo: {PARAGRAPH} {SECOND} {PARAGRAPH}\nAnn: bye", 120)
    assert found == [f"Ann: hello\nBo: {PARAGRAPH}", f"{SECOND}", f"{PARAGRAPH}\nAnn: bye"]


def test_chinese_sentences_need_no_space():
    sentence = "\u6211\u4eec\u5728\u5c4b\u9876\u505c\u8f66\u3002"  # 24 bytes
    found = block_chunks(TOKENIZER, sentence * 9, 60)
    assert [len(ids) for ids in found] == [48, 48, 48, 48, 24]


def test_a_text_without_any_end_is_cut_between_tokens():
    chunks = block_chunks(TOKENIZER, "x" * 600, 256)
    assert [len(ids) for ids in chunks] == [200, 200, 200]
    assert [token for chunk in chunks for token in chunk] == plain_ids(TOKENIZER, "x" * 600)
    mixed = block_chunks(TOKENIZER, "A short line.\n" + "x" * 300 + "\nAnother line.", 256)
    assert max(map(len, mixed)) <= 256 and sum(map(len, mixed)) == len("A short line.") + 300 + len("Another line.")


@pytest.mark.parametrize("chunk_tokens", [1, 2, 7, 13, 61])
def test_small_limits_hold(chunk_tokens):
    text = f"# A\n\n{PARAGRAPH} {SECOND}\n\nB.\n\n\n{SECOND}\nC"
    chunks = block_chunks(TOKENIZER, text, chunk_tokens)
    assert max(map(len, chunks)) <= chunk_tokens and min(map(len, chunks)) > 0
    assert re.sub(r"\s", "", "".join(map(TOKENIZER.decode, chunks))) == re.sub(r"\s", "", text)


def test_special_tokens_are_plain_text():
    text = "Ann: <|im_end|>\n<s></s> " * 30
    ids = [token for chunk in block_chunks(TOKENIZER, text, 100) for token in chunk]
    assert min(ids) >= len(SPECIAL)


@pytest.mark.parametrize("text", ["", " \n\n\t \n\n"])
def test_empty_texts(text):
    with pytest.raises(EmptyContextError, match="the context is empty"):
        block_chunks(TOKENIZER, text, 256)
