"""Queries to token ids, in a task's wording or a generator's own, and the part of a context that fits.

Leaves out: running prompts (`answering`), and which wording is best.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import answer_ids, chat_ids, end_ids, plain_ids, start_ids
from generative_adapter.config import PromptConfig, require
from generative_adapter.methods.protocol import Wording

LINE_END = "\n"
RESERVE_TOKENS = 128  # kept free for a question and its answer where a context has to be cut


@dataclass(frozen=True)
class AnswerForm:
    """How answers to a prompt are written and where they end.

    Attributes:
        prompt: settings by which `base_model.prompts` writes and ends an answer.
        one_line: whether an answer ends with its line.
    """

    prompt: PromptConfig
    one_line: bool

    def option_ids(self, tokenizer: PreTrainedTokenizerBase, option: str) -> list[int]:
        """Token ids of an answer without what ends it."""
        return answer_ids(tokenizer, replace(self.prompt, end=""), option)

    def answer_ids(self, tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
        """Token ids of an answer with what ends it."""
        return answer_ids(tokenizer, self.prompt, answer)

    def end_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids that end an answer."""
        return end_ids(tokenizer, self.prompt)


def is_chat(tokenizer: PreTrainedTokenizerBase, wording: Wording) -> bool:
    """Whether a wording is put as a user's message: it asks for that, and there is a chat template."""
    return wording.chat and bool(tokenizer.chat_template)


def answer_form(tokenizer: PreTrainedTokenizerBase, wording: Wording, *, with_context: bool = False) -> AnswerForm:
    """How answers to a wording's prompts look: a turn of a chat, or the rest of the line after a bare prompt."""
    if is_chat(tokenizer, wording):
        return AnswerForm(PromptConfig(), one_line=False)
    return AnswerForm(PromptConfig(question=_template(wording, with_context), end=LINE_END), one_line=True)


def own_form(checkpoint_prompt: PromptConfig) -> AnswerForm:
    """How answers look in the wording that a generator was trained with."""
    return AnswerForm(checkpoint_prompt, one_line=checkpoint_prompt.end == LINE_END)


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, wording: Wording, question: str, context: str | None = None
) -> list[int]:
    """Token ids of a query, up to where its answer starts.

    The wording's shots stand before it: as earlier turns of the chat, or as answered prompts with an empty line after
    each; with their contexts where the query has one. Special tokens in any text are read as plain text.

    Args:
        tokenizer: of the base model.
        wording: how the query is put.
        question: of the query.
        context: what stands before the question; None: the closed prompt.
    """
    template = _template(wording, context is not None)
    asked = [
        (_filled(template, shot_context, shot_question), answer)
        for shot_context, shot_question, answer in wording.shots
    ]
    last = _filled(template, context or "", question)
    if is_chat(tokenizer, wording):
        messages = []
        for text, answer in asked:
            messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return chat_ids(tokenizer, [*messages, {"role": "user", "content": last}])
    space = "" if not template or template[-1].isspace() or template.endswith("{question}") else " "
    text = "".join(f"{text}{space}{answer}\n\n" for text, answer in asked) + last
    return start_ids(tokenizer) + plain_ids(tokenizer, text)


def context_window(base: BaseModel, max_prompt_tokens: int | None = None) -> int | None:
    """Tokens that a prompt and its answer may have together: the model's positions, or fewer; None: any number."""
    require(
        max_prompt_tokens is None or max_prompt_tokens > 0,
        f"max_prompt_tokens must be positive, got {max_prompt_tokens}",
    )
    positions = getattr(base.model.config.get_text_config(), "max_position_embeddings", None)
    limits = [limit for limit in (positions, max_prompt_tokens) if limit is not None]
    return min(limits, default=None)


def fitted_context(
    tokenizer: PreTrainedTokenizerBase,
    wording: Wording,
    context: str,
    question: str,
    max_new_tokens: int,
    room: int | None,
    reserve: int = RESERVE_TOKENS,
) -> str:
    """The end of a context that fits beside its question (the paper: Llama-2 keeps the last 4K tokens).

    Only the context's beginning is ever cut; question, wording and shots stay whole. A context that is cut leaves at
    least `reserve` tokens to question and answer, so that questions of usual length all get the same part of it and a
    cache of it serves them all.

    Args:
        tokenizer: of the base model.
        wording: how the query is put.
        context: all of it.
        question: of the query.
        max_new_tokens: longest answer.
        room: tokens that prompt and answer may have together; None: any number.
        reserve: tokens.

    Raises:
        ConfigError: when question, wording and shots leave no room for a context.
    """
    if room is None:
        return context
    frame = len(prompt_ids(tokenizer, wording, "", ""))
    need = len(prompt_ids(tokenizer, wording, question, "")) - frame + max_new_tokens
    budget = room - frame - max(need, reserve)
    if budget < 1:
        budget = room - frame - need
    while True:
        require(
            budget > 0,
            f"wording {wording.name!r}: the prompt without its context and {max_new_tokens} new tokens take "
            f"{frame + need} of {room} tokens, which leaves no room for a context; give fewer shots or a larger "
            "max_prompt_tokens",
        )
        kept = last_tokens(tokenizer, context, budget)
        excess = len(prompt_ids(tokenizer, wording, question, kept)) + max_new_tokens - room
        if excess <= 0:
            return kept
        budget -= excess


def last_tokens(tokenizer: PreTrainedTokenizerBase, text: str, num_tokens: int) -> str:
    """The end of a text that has at most so many tokens; all of it where it has no more."""
    if len(text) <= num_tokens // 8:  # a character is never more than a few tokens
        return text
    if not tokenizer.is_fast:
        ids = plain_ids(tokenizer, text)
        decoded: Any = tokenizer.decode(ids[-num_tokens:])
        return text if len(ids) <= num_tokens else decoded
    encoded: Any = tokenizer(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    offsets = encoded["offset_mapping"]
    return text if len(offsets) <= num_tokens else text[offsets[-num_tokens][0] :]


def shared_ids(tokenizer: PreTrainedTokenizerBase, wording: Wording, context: str) -> list[int]:
    """Tokens that the prompts of all questions about a context start with, wording up to the question included."""
    first, *others = (prompt_ids(tokenizer, wording, question, context) for question in _PROBES)
    return first[: min(_num_shared(first, other) for other in others)]


_PROBES = ("What", "a", "7", "\N{LATIN SMALL LETTER E WITH ACUTE}", '"', "(")  # questions that begin otherwise


def _num_shared(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(first), len(second)))


def _template(wording: Wording, with_context: bool) -> str:
    return wording.open if with_context else wording.closed


def _filled(template: str, context: str, question: str) -> str:
    values = {"{context}": context, "{question}": question}
    return re.sub(r"\{context\}|\{question\}", lambda match: values[match[0]], template)
