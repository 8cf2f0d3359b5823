"""One pass of questions through the base model, from the lowest adapted block on, under the adapters of their groups.

Leaves out: which groups there are (`groups`) and what they were written as (`encoding`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from generative_adapter.base_model.inject import add_to_outputs
from generative_adapter.base_model.loading import BaseModel
from generative_adapter.base_model.resumed_pass import resumed_logits
from generative_adapter.config import TargetShape
from generative_adapter.generator.encoder_generator import EncoderGenerator
from generative_adapter.training.cross_entropy import cross_entropy
from generative_adapter.training.encoder.encoding import GroupMemory
from generative_adapter.training.encoder.frozen_states import Asked, FrozenStates
from generative_adapter.training.encoder.places import place_losses
from generative_adapter.training.encoder.question_rows import QuestionRows
from generative_adapter.training.encoder.question_words import question_word_losses
from generative_adapter.training.encoder.repeated_words import repeat_losses
from generative_adapter.training.encoder.teacher import TaughtAnswer, taught_losses
from generative_adapter.training.encoder.unit_updates import unit_updates
from generative_adapter.training.encoder.unrelated_text import unrelated_text_losses


@dataclass(frozen=True)
class PassLosses:
    """What one pass gave.

    Attributes:
        answers: -log P of each answer token, `[answer tokens]`, with gradients.
        correct: whether it was the likeliest, `[answer tokens]`.
        question: number of the question each belongs to, `[answer tokens]`.
        sources: of each question, `[questions]`.
        places: -log of the weight at the right tokens of the context, `[found]`, with gradients.
        place_question: number of the question each of these belongs to, `[found]`.
        kept: divergence from the base model on unrelated text, a token, `[kept tokens]`, with gradients.
        text: by how much -log P of the text's own token is above the base model's there, `[kept tokens]`, with
            gradients.
        repeats: -log of the probability that no word of its own is the first of a question's answer, `[repeats]`, with
            gradients; empty unless asked for.
        repeat_question: number of the question each of these belongs to, `[repeats]`.
        taught: divergence from the teacher at the answer tokens it was asked, `[taught]`, with gradients.
        taught_tokens: numbers of these among the answer tokens, `[taught]`.
        words: how far what each block of units is told of a question's words is from these, where its answer begins,
            `[questions]`, with gradients; empty unless asked for.
        word_question: number of the question each of these belongs to, `[questions]`.
    """

    answers: Tensor
    correct: Tensor
    question: Tensor
    sources: Tensor
    places: Tensor
    place_question: Tensor
    kept: Tensor
    text: Tensor
    repeats: Tensor
    repeat_question: Tensor
    taught: Tensor
    taught_tokens: Tensor
    words: Tensor
    word_question: Tensor

    def token_losses(self, teacher_share: float) -> Tensor:
        """-log P of each answer token, a share of it replaced by the divergence from the teacher where there is one."""
        mixed = (1 - teacher_share) * self.answers[self.taught_tokens] + teacher_share * self.taught
        return self.answers.index_copy(0, self.taught_tokens, mixed)

    def kept_losses(self, text_share: float) -> Tensor:
        """The divergence of each token of unrelated text, a share of it replaced by -log P of the text's own token."""
        return (1 - text_share) * self.kept + text_share * self.text


def pass_losses(
    base: BaseModel,
    generator: EncoderGenerator,
    states: FrozenStates,
    rows: QuestionRows,
    memories: Sequence[GroupMemory],
    lookup_targets: Sequence[TargetShape],
    norms: list[nn.Module],
    own_words: dict[Asked, tuple[int, ...]] | None = None,
    taught: Mapping[Asked, TaughtAnswer] | None = None,
    codes: Mapping[Asked, Tensor] | None = None,
) -> PassLosses:
    """The losses of one pass; differentiable.

    Args:
        base: the frozen base model.
        generator: gets gradients.
        states: the passages with their states.
        rows: the questions, and unrelated text.
        memories: of the groups.
        lookup_targets: linears whose lookups are to find the right tokens.
        norms: of the base model, that may run leanly (`find_plain_norms`).
        own_words: of all questions, if repeating them is a loss.
        taught: what a teacher says.
        codes: of all questions' words, if telling them is a loss.
    """
    dtype, device = base.dtype, base.device
    rows = replace(
        rows,
        hidden=rows.hidden.to(device, dtype),
        segments=rows.segments.to(device),
        owners=rows.owners.to(device),
        supervised=rows.supervised.to(device),
        labels=rows.labels.to(device),
    )
    normalized = torch.stack([memory.normalized for memory in memories])[rows.owners]
    wanted = {target.name for target in lookup_targets}
    queries: dict[str, Tensor] = {}
    is_answer = rows.labels >= 0

    def reading(name: str) -> Callable[[Tensor], Tensor]:
        reader = generator[name]
        projection = reader.scaled_query_proj.to(dtype).mT
        output = reader.output_matrix(generator.word_directions).to(dtype).mT
        read = normalized.to(dtype).mT

        def update(inputs: Tensor) -> Tensor:
            asked = inputs @ projection
            if name in wanted:
                queries[name] = asked[rows.supervised][is_answer].float()
            return torch.bmm(asked, read) @ output

        return update

    updates: dict[str, list[Callable[[Tensor], Tensor]]] = {
        target.name: [reading(target.name)] for target in generator.targets
    }
    if generator.constant is not None:
        for name, factors in generator.constant.adapter().items():
            updates.setdefault(name, []).append(_constant(factors.down.to(dtype).mT, factors.up.to(dtype).mT))
    unit_queries: list[Tensor] = []
    if generator.keeps_tokens:

        def keep(asked: Tensor) -> None:
            unit_queries.append(asked[rows.supervised][is_answer].float())

        for name, update in unit_updates(generator, memories, rows.owners, dtype, keep).items():
            updates.setdefault(name, []).append(update)
    summed = {name: _sum(each) for name, each in updates.items()}
    with add_to_outputs(base.model, summed):
        logits = resumed_logits(base.model, states.start_block, rows.hidden, rows.segments, rows.supervised, norms)
    answer_logits, labels = logits[is_answer], rows.labels[is_answer]
    numbers: dict[Asked, int] = {}
    question = torch.tensor(
        [numbers.setdefault(each[0], len(numbers)) for each in rows.questions if each is not None], device=device
    )
    kept = text = logits.new_zeros(0, dtype=torch.float32)
    if rows.kept_rows:
        own = slice(len(rows.hidden) - rows.kept_rows, None)
        with torch.no_grad():
            plain = resumed_logits(
                base.model, states.start_block, rows.hidden[own], rows.segments[own], rows.supervised[own], norms
            )
        kept, text = unrelated_text_losses(logits[~is_answer], plain, rows.kept_labels.to(device))
    asked_for = sum(queries.values(), torch.zeros((), device=device))
    if unit_queries:
        asked_for = torch.stack(unit_queries).mean(0)
    places, found = place_losses(states, rows, memories, asked_for)
    answers = cross_entropy(answer_logits, labels)
    asked = [each for each in rows.questions if each is not None]
    repeats, repeated = answers.new_zeros(0), []
    if own_words is not None:
        repeats, repeated = repeat_losses(answer_logits, answers, labels, asked, own_words)
    words, worded = answers.new_zeros(0), []
    if codes is not None:
        told = [each[:, generator.learned_dim :] for each in unit_queries]
        words, worded = question_word_losses(told, asked, codes)
    return PassLosses(
        answers,
        (answer_logits.detach().argmax(-1) == labels),
        question,
        torch.tensor([states.passages[asked.passage].source for asked in numbers], device=device),
        places,
        question[found],
        kept,
        text,
        repeats,
        question[repeated],
        *taught_losses(answer_logits, answers, labels, asked, taught or {}),
        words,
        question[worded],
    )


def _constant(down: Tensor, up: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda inputs: (inputs @ down) @ up


def _sum(updates: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    if len(updates) == 1:
        return updates[0]
    return lambda inputs: sum((update(inputs) for update in updates[1:]), updates[0](inputs))
