"""Contexts of synthetic facts as the plain base model reads them; see `closed_form_start.py`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from generative_adapter.base_model.capture import on_block_inputs
from generative_adapter.base_model.inject import find_linear
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.prompts import answer_ids, pad_id, question_ids, start_ids
from generative_adapter.data.facts import record_and_facts
from generative_adapter.generator.generator import AdapterGenerator
from generative_adapter.generator.unit_rms import unit_rms
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.sources import found_at

BATCH = 16
MOST_TOKENS = 160


@dataclass
class Asked:
    """One question: its row in the batch, its tokens, where its name stands and where the answer's tokens stand."""

    context: int
    prompt: list[int]
    answer: list[int]
    name: list[int]
    found: list[int]


@dataclass
class Batch:
    """Contexts read by the base model, with their questions.

    Attributes:
        mask, ends, names, written: `[contexts, tokens]`: real tokens; last tokens of sentences; tokens of names; tokens
            worth writing (answers, what follows them, and the first token, which is the same in every context).
        ids: `[contexts, tokens]`.
        hidden: block -> unit-RMS block inputs, `[contexts, tokens, d_h]`.
        inputs: target -> its inputs, `[questions, tokens, d_in]`, of prompt and answer.
        real: real tokens of those, `[questions, tokens]`.
    """

    asked: list[Asked]
    ids: Tensor
    mask: Tensor
    ends: Tensor
    names: Tensor
    written: Tensor
    hidden: dict[int, Tensor]
    inputs: dict[str, Tensor]
    real: Tensor

    @property
    def owners(self) -> Tensor:
        """Context of each question."""
        return torch.tensor([one.context for one in self.asked])

    @property
    def ends_of_prompts(self) -> Tensor:
        """Position that predicts the first answer token, of each question."""
        return torch.tensor([len(one.prompt) - 1 for one in self.asked])

    @property
    def before_values(self) -> Tensor:
        """Context token before the answer, of each question."""
        return torch.tensor([one.found[0] - 1 for one in self.asked])

    def at_ends(self, name: str) -> Tensor:
        """A target's inputs where answers start, `[questions, d_in]`."""
        return self.inputs[name][torch.arange(len(self.asked)), self.ends_of_prompts]

    @property
    def continuations(self) -> Tensor:
        """Question, position inside its answer, context, and context token of the same word, `[n, 4]`."""
        rows = [
            (number, len(one.prompt) + index, one.context, at)
            for number, one in enumerate(self.asked)
            for index, at in enumerate(one.found[:-1])
        ]
        return torch.tensor(rows, dtype=torch.long).view(-1, 4)


def tokens_of(text: str, offsets: Sequence[tuple[int, int]], names: Sequence[str | None]) -> list[int]:
    """Tokens of the first of some names that stands in the text; its first letter may be of another case."""
    for name in names:
        start = text.find(name[1:]) if name else -1
        if name and start >= 0:
            end = start + len(name) - 1
            return [i for i, (begin, stop) in enumerate(offsets) if begin < end and stop > start]
    return []


def batches(
    base: BaseModel, generator: AdapterGenerator, recipe: TrainingRecipe, rng: random.Random, count: int, split: str
) -> Iterator[Batch]:
    """Contexts of four facts, 60 % of them of one attribute, read by the plain base model."""
    for _ in range(max(1, count // BATCH)):
        contexts: list[list[int]] = []
        marks: list[tuple[list[int], set[int], set[int]]] = []
        asked: list[Asked] = []
        while len(contexts) < BATCH:
            attributes = "same" if rng.random() < 0.6 else "mixed"
            style = rng.choice(["plain", "plain", None]) if split == "train" else "plain"
            record, facts = record_and_facts(rng, 4, 4, split, style, attributes)
            read = base.tokenizer(record.context, add_special_tokens=False, return_offsets_mapping=True)
            ids, offsets = list(read["input_ids"]), list(read["offset_mapping"])
            own: list[Asked] = []
            written, names = {0}, set()
            for question, fact in zip(record.questions, facts, strict=True):
                prompt = question_ids(base.tokenizer, recipe.prompt, question.question)
                answer = answer_ids(base.tokenizer, recipe.prompt, question.answers[0])
                found = [
                    at
                    for at in found_at(base.tokenizer, record.context, ids, question.answers[0], len(answer))
                    if at >= 0
                ]
                name = tokens_of(record.context, offsets, (fact.entity.name, fact.entity.short_name))
                if found and found[0] > 0:
                    written |= {*found, min(found[-1] + 1, len(ids) - 1)}
                    names |= set(name)
                    if name:
                        own.append(Asked(len(contexts), list(prompt), list(answer), name, found))
            if len(own) < 3 or len(ids) > MOST_TOKENS:
                continue
            text = record.context
            ends = [i for i, (begin, stop) in enumerate(offsets) if _ends_sentence(text, begin, stop)]
            contexts.append(ids)
            marks.append((ends, names, written))
            asked += own
        yield _read(base, generator, contexts, marks, asked)


def _ends_sentence(text: str, begin: int, stop: int) -> bool:
    token = text[begin:stop]
    closes = token.strip(" ")[-1:] in tuple(".!?;") and (stop >= len(text) or text[stop].isspace())
    return "\n" in token or closes


@torch.no_grad()
def _read(
    base: BaseModel,
    generator: AdapterGenerator,
    contexts: list[list[int]],
    marks: list[tuple[list[int], set[int], set[int]]],
    asked: list[Asked],
) -> Batch:
    decoder = getattr(base.model, "base_model", base.model)

    def run(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        ids = torch.tensor([row + [pad_id(base.tokenizer)] * (width - len(row)) for row in rows])
        mask = torch.arange(width) < torch.tensor([[len(row)] for row in rows])
        decoder(input_ids=ids.to(base.device), use_cache=False)  # causal: padding on the right changes nothing
        return ids, mask

    hidden: dict[int, Tensor] = {}
    start = list(start_ids(base.tokenizer))  # read before a context, never written
    with on_block_inputs(
        base.model,
        generator.layers,
        lambda layer, h: hidden.update({layer: unit_rms(h[:, len(start) :].float()).cpu()}),
    ):
        ids, mask = (found[:, len(start) :] for found in run([start + context for context in contexts]))
    inputs: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for target in generator.targets:

            def keep(_module: object, args: tuple[Tensor, ...], name: str = target.name) -> None:
                inputs[name] = args[0].float().cpu()

            handle = find_linear(base.model, target.name).register_forward_pre_hook(keep)
            stack.callback(handle.remove)
        _, real = run([one.prompt + one.answer for one in asked])
    planes = torch.zeros(3, *mask.shape, dtype=torch.bool)
    for row, kinds in enumerate(marks):
        for plane, tokens in zip(planes, kinds, strict=True):
            plane[row, list(tokens)] = True
    return Batch(asked, ids, mask, planes[0], planes[1], planes[2], hidden, inputs, real)
