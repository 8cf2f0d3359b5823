"""Texts to token ids: context chunks, question prompts, answers.

Leaves out: tensors and batches. Every list is plain Python integers.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from generative_adapter.config import PromptConfig
from generative_adapter.errors import EmptyContextError


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin-of-sequence token where the tokenizer adds one by itself, else nothing.

    Every chunk starts with it, since models trained with one park attention on it; it is not written to memory.
    """
    begin: Any = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("a")["input_ids"][0] == begin else []


def separator_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of an empty line, between a context and what is asked of it."""
    return _encode(tokenizer, "\n\n")


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id of padding; 0 where the tokenizer has none, since padding is masked anyway."""
    identity: Any = tokenizer.pad_token_id
    return identity if isinstance(identity, int) else 0


def context_chunks(tokenizer: PreTrainedTokenizerBase, text: str, chunk_tokens: int) -> list[list[int]]:
    """The chunks C_1 .. C_T of a context, each of `chunk_tokens` tokens but the last, without begin-of-sequence tokens.

    Special tokens in the text are read as plain text, so a document can't end a turn.

    Raises:
        EmptyContextError: when the text holds nothing but white space, or nothing the tokenizer knows.
    """
    ids = _encode(tokenizer, text, plain=True) if text.strip() else []
    if not ids:
        raise EmptyContextError("the context is empty: it holds no text to make an adapter from")
    return [ids[start : start + chunk_tokens] for start in range(0, len(ids), chunk_tokens)]


def question_ids(tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, question: str) -> list[int]:
    """Token ids of the prompt that puts a question, up to where the answer starts.

    Special tokens in the question are read as plain text, so a question can't end its turn.
    """
    if prompt.question is None and tokenizer.chat_template:
        return chat_ids(tokenizer, [{"role": "user", "content": question}])
    template = prompt.question or "Question: {question}\n\nAnswer:"
    before, after = template.split("{question}", 1)
    if not _holds_special_tokens(tokenizer, question):
        return start_ids(tokenizer) + _encode(tokenizer, before + question + after)
    inner = _encode(tokenizer, question, plain=True)
    return start_ids(tokenizer) + _encode(tokenizer, before) + inner + _encode(tokenizer, after)


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation in the tokenizer's chat template, up to where the assistant's turn starts.

    Special tokens in a message are read as plain text: the template is filled with a mark in its place, and the message
    is put there when both have been tokenised.
    """
    marked: dict[str, str] = {}
    filled = []
    for message in messages:
        if _holds_special_tokens(tokenizer, message["content"]):
            mark = uuid.uuid4().hex
            marked[mark] = message["content"]
            message = {**message, "content": mark}
        filled.append(message)
    text: Any = tokenizer.apply_chat_template(filled, tokenize=False, add_generation_prompt=True)
    pieces = re.split(f"({'|'.join(marked)})", text) if marked else [text]
    ids: list[int] = []
    for piece in pieces:
        ids += _encode(tokenizer, marked.get(piece, piece), plain=piece in marked)
    return ids


def context_question(prompt: PromptConfig, context: str, question: str) -> str:
    """The text that puts a question with the whole context before it (Figure 7 of the paper)."""
    values = {"{context}": context, "{question}": question}
    return re.sub(r"\{context\}|\{question\}", lambda match: values[match[0]], prompt.context)


def context_ids(tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, context: str, question: str) -> list[int]:
    """Token ids of the prompt that puts a question with the whole context before it, up to where the answer starts.

    A bare wording such as "Question: ... Answer:" was made for a question alone; where the tokenizer has a chat
    template, the text goes into that instead, since an instruction-tuned base answers best there.
    """
    text = context_question(prompt, context, question)
    bare = prompt.question is not None and not _holds_special_tokens(tokenizer, prompt.question)
    if bare and tokenizer.chat_template:
        return chat_ids(tokenizer, [{"role": "user", "content": text}])
    return question_ids(tokenizer, prompt, text)


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text alone, special tokens in it read as plain text, without a begin-of-sequence token."""
    return _encode(tokenizer, text, plain=True)


def plain_ids_of_each(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """`plain_ids` of every text."""
    if not texts:
        return []
    ids: Any = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def answer_ids(tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, answer: str) -> list[int]:
    """Token ids of an answer as the model is to produce it, with the token that ends it."""
    spaced = answer if _template_ends_turn(tokenizer, prompt) else " " + answer
    return _encode(tokenizer, spaced, plain=True) + end_ids(tokenizer, prompt)


def end_ids(tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig) -> list[int]:
    """Token ids that end an answer."""
    if prompt.end is not None:
        return _encode(tokenizer, prompt.end)
    end: Any = tokenizer.eos_token_id
    return [end] if end is not None else []


def _template_ends_turn(tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig) -> bool:
    """Whether the answer starts on a new line or turn, so that it is written without a space before it."""
    if prompt.question is None:
        return bool(tokenizer.chat_template)
    after = prompt.question.split("{question}", 1)[1]
    return not after or after[-1].isspace() or after.endswith(">")


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, *, plain: bool = False) -> list[int]:
    """Token ids of a text alone; with `plain`, special tokens in it are read letter by letter."""
    ids: Any = tokenizer(text, add_special_tokens=False, split_special_tokens=plain, verbose=False)["input_ids"]
    return ids


def _holds_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether a text, read as it is, would give special tokens; no list of a tokenizer's names them all."""
    return _encode(tokenizer, text) != _encode(tokenizer, text, plain=True)
