"""What prompts say, token by token, and which part of a context they hold."""

from __future__ import annotations

import dataclasses

import pytest

from generative_adapter.config import PromptConfig
from generative_adapter.errors import ConfigError
from generative_adapter.methods.prompting import (
    answer_form,
    context_window,
    fitted_context,
    last_tokens,
    own_form,
    prompt_ids,
    shared_ids,
)
from generative_adapter.methods.protocol import Wording
from tiny_models import BEGIN, TURN_END, TURN_START, tiny_base, tiny_tokenizer

BARE = Wording("bare", "Q: {question}\nA:", "{context}\n\nQ: {question}\nA:", chat=False)
SHOTS = (("C1", "Q1", "A1"), ("C2", "Q2", "A2"))


def text_of(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_a_bare_prompt_with_shots() -> None:
    tokenizer = tiny_tokenizer(begin=True)
    shot = dataclasses.replace(BARE, shots=SHOTS)
    ids = prompt_ids(tokenizer, shot, "Who?", "{question} A text.")  # a mark in the context is text
    assert ids[0] == BEGIN
    want = "C1\n\nQ: Q1\nA: A1\n\nC2\n\nQ: Q2\nA: A2\n\n{question} A text.\n\nQ: Who?\nA:"
    assert ids[1:] == tokenizer(want, add_special_tokens=False)["input_ids"]
    want = "Q: Q1\nA: A1\n\nQ: Q2\nA: A2\n\nQ: Who?\nA:"
    assert prompt_ids(tokenizer, shot, "Who?")[1:] == tokenizer(want, add_special_tokens=False)["input_ids"]


def test_a_chat_with_shots() -> None:
    tokenizer = tiny_tokenizer()
    chat = dataclasses.replace(BARE, chat=True, shots=SHOTS[:1])
    messages = [
        {"role": "user", "content": "C1\n\nQ: Q1\nA:"},
        {"role": "assistant", "content": "A1"},
        {"role": "user", "content": "Text\n\nQ: Who?\nA:"},
    ]
    want = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt_ids(tokenizer, chat, "Who?", "Text") == tokenizer(want, add_special_tokens=False)["input_ids"]
    plain = tiny_tokenizer(chat=False)
    assert prompt_ids(plain, chat, "Who?", "Text") == prompt_ids(
        plain, dataclasses.replace(chat, chat=False), "Who?", "Text"
    )


@pytest.mark.parametrize("chat", [True, False])
def test_special_tokens_in_texts_are_plain(chat: bool) -> None:
    tokenizer = tiny_tokenizer()
    wording = dataclasses.replace(BARE, chat=chat)
    ids = prompt_ids(tokenizer, wording, "<|im_end|>?", "<|im_start|>system")
    assert (ids.count(TURN_START), ids.count(TURN_END)) == ((2, 1) if chat else (0, 0))
    written = "".join(token for token in tokenizer.convert_ids_to_tokens(ids))
    assert "<|im_start|>system" in written and "<|im_end|>?" in written


def test_forms_of_answers() -> None:
    tokenizer = tiny_tokenizer()
    bare, chat = answer_form(tokenizer, BARE), answer_form(tokenizer, dataclasses.replace(BARE, chat=True))
    assert text_of(tokenizer, bare.answer_ids(tokenizer, "Ulm")) == " Ulm\n".replace(" ", "Ġ").replace("\n", "Ċ")
    assert text_of(tokenizer, bare.option_ids(tokenizer, "Ulm")) == "ĠUlm"
    assert chat.answer_ids(tokenizer, "Ulm") == [*chat.option_ids(tokenizer, "Ulm"), TURN_END]
    assert text_of(tokenizer, chat.option_ids(tokenizer, "Ulm")) == "Ulm"
    assert bare.one_line and not chat.one_line
    assert own_form(PromptConfig(question="{question} ->", end="\n")).one_line
    assert not own_form(PromptConfig()).one_line


def test_the_end_of_a_text_by_tokens() -> None:
    tokenizer = tiny_tokenizer()
    assert last_tokens(tokenizer, "one <s> two", 7) == "<s> two"  # a token a character, special tokens too
    assert last_tokens(tokenizer, "one two", 7) == "one two"
    assert last_tokens(tokenizer, "one two", 70) == "one two"


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("room", [60, 61, 97, 140])
def test_only_the_beginning_of_a_context_is_cut(chat: bool, room: int) -> None:
    tokenizer = tiny_tokenizer()
    wording = dataclasses.replace(BARE, chat=chat)
    text = "".join(f"{number:04d}" for number in range(100))
    kept = fitted_context(tokenizer, wording, text, "Who?", 5, room, reserve=0)
    ids = prompt_ids(tokenizer, wording, "Who?", kept)
    assert kept and text.endswith(kept) and len(ids) + 5 == room
    whole = prompt_ids(tokenizer, wording, "Who?", text)
    after = len(prompt_ids(tokenizer, wording, "Who?", "")) // 2
    assert ids[-after:] == whole[-after:]  # question and wording are whole
    assert fitted_context(tokenizer, wording, text, "Who?", 5, len(whole) + 5, reserve=0) == text
    assert fitted_context(tokenizer, wording, text, "Who?", 5, None) == text


def test_questions_of_usual_length_get_the_same_part() -> None:
    tokenizer, text = tiny_tokenizer(), "abcdefghij" * 30
    parts = {fitted_context(tokenizer, BARE, text, "?" * n, 10, 200, reserve=64) for n in (0, 1, 30, 54)}
    assert len(parts) == 1
    assert len(fitted_context(tokenizer, BARE, text, "?" * 60, 10, 200, reserve=64)) == len(parts.pop()) - 6


def test_no_room_for_a_context_is_said() -> None:
    tokenizer = tiny_tokenizer()
    assert len(fitted_context(tokenizer, BARE, "text" * 50, "Who?", 5, 30, reserve=128)) > 0  # less reserve then
    with pytest.raises(ConfigError, match=r"'bare'.*fewer shots"):
        fitted_context(tokenizer, BARE, "text" * 50, "Who?" * 10, 5, 30)


def test_windows() -> None:
    base = tiny_base("gpt2")
    assert (context_window(base), context_window(base, 60), context_window(base, 5000)) == (1024, 60, 1024)
    with pytest.raises(ConfigError, match="max_prompt_tokens"):
        context_window(base, 0)


@pytest.mark.parametrize("chat", [True, False])
def test_tokens_that_all_questions_share(chat: bool) -> None:
    tokenizer, wording = tiny_tokenizer(), dataclasses.replace(BARE, chat=chat)
    shared = shared_ids(tokenizer, wording, "Text")
    assert text_of(tokenizer, shared).endswith("TextĊĊQ:Ġ")
    assert prompt_ids(tokenizer, wording, "Who?", "Text")[: len(shared)] == shared
