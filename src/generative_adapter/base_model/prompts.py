"""Texts to token ids: context chunks, question prompts, answers.

Leaves out: tensors and batches. Every list is plain Python integers.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from generative_adapter.config import PromptConfig
from generative_adapter.errors import EmptyContextError


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The begin-of-sequence token where the tokenizer adds one by itself, else nothing.

    Every chunk starts with it, since models trained with one park attention on it; it is not written to memory.
    """
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("a")["input_ids"][0] == begin else []


def context_chunks(tokenizer: PreTrainedTokenizerBase, text: str, chunk_tokens: int) -> list[list[int]]:
    """The chunks C_1 .. C_T of a context, each of `chunk_tokens` tokens but the last, without begin-of-sequence tokens.

    Special tokens in the text are read as plain text, so a document can't end a turn.

    Raises:
        EmptyContextError: when the text holds nothing but white space.
    """
    if not text.strip():
        raise EmptyContextError("the context is empty: it holds no text to make an adapter from")
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return [ids[start : start + chunk_tokens] for start in range(0, len(ids), chunk_tokens)]


def question_ids(tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, question: str) -> list[int]:
    """Token ids of the prompt that puts a question, up to where the answer starts."""
    if prompt.question is None and tokenizer.chat_template:
        return chat_ids(tokenizer, [{"role": "user", "content": question}])
    template = prompt.question or "Question: {question}\n\nAnswer:"
    before, after = template.split("{question}", 1)
    encode = lambda text, plain: tokenizer(text, add_special_tokens=False, split_special_tokens=plain)["input_ids"]  # noqa: E731
    if not tokenizer.all_special_tokens or not any(token in question for token in tokenizer.all_special_tokens):
        return start_ids(tokenizer) + encode(before + question + after, False)
    return start_ids(tokenizer) + encode(before, False) + encode(question, True) + encode(after, False)


def chat_ids(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of a conversation in the tokenizer's chat template, up to where the assistant's turn starts."""
    text: Any = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def context_question(prompt: PromptConfig, context: str, question: str) -> str:
    """The text that puts a question with the whole context before it (Figure 7 of the paper)."""
    return prompt.context.replace("{question}", question).replace("{context}", context)


def answer_ids(tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig, answer: str) -> list[int]:
    """Token ids of an answer as the model is to produce it, with the token that ends it."""
    spaced = answer if _template_ends_turn(tokenizer, prompt) else " " + answer
    return tokenizer(spaced, add_special_tokens=False, split_special_tokens=True)["input_ids"] + end_ids(tokenizer, prompt)


def end_ids(tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig) -> list[int]:
    """Token ids that end an answer."""
    if prompt.end is not None:
        return tokenizer(prompt.end, add_special_tokens=False)["input_ids"]
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []


def _template_ends_turn(tokenizer: PreTrainedTokenizerBase, prompt: PromptConfig) -> bool:
    """Whether the answer starts on a new line or turn, so that it is written without a space before it."""
    if prompt.question is None:
        return bool(tokenizer.chat_template)
    after = prompt.question.split("{question}", 1)[1]
    return not after or after[-1].isspace() or after.endswith(">")
