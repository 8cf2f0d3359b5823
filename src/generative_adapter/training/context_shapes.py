"""What an average context of a source looks like, without reading the source; and the passes made of such contexts.

Lengths come from the recipe (`context_tokens`), from synthetic facts sampled here, or for the instruction sets of the
paper from its Table 3. Leaves out: tokenizers, so begin-of-sequence tokens are not counted.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from generative_adapter.data.facts import sample_facts_record
from generative_adapter.training.pass_costs import PassLayout
from generative_adapter.training.recipe import TrainingRecipe
from generative_adapter.training.source_config import SourceConfig

_CHARACTERS_PER_TOKEN = 4  # about, in English
_PROMPT_TOKENS = 12  # of the wording around a question
_QUESTION_TOKENS, _ANSWER_TOKENS = 12, 6  # where nothing is known of them
_CLOZE_QUESTION_TOKENS, _CLOZE_ANSWER_TOKENS = 16, 3  # measured on 6.6 MB of Wikipedia and books
_REAL_SHARE = 0.8  # of the computed tokens of packed rows, at least
_SAMPLES = 40

# Table 3, arXiv:2411.05877: hub id -> instructions a document, tokens of a context, an instruction and a response.
TABLE_3: dict[str, tuple[float, float, float, float]] = {
    "stanfordnlp/coqa": (57.2, 1083.5, 5.5, 2.7),
    "ucinlp/drop": (38.4, 848.6, 11.0, 1.4),
    "deepmind/narrativeqa": (29.4, 574.5, 8.5, 4.4),
    "qiaojin/PubMedQA": (1.0, 200.2, 12.9, 40.7),
    "textmachinelab/quail": (16.2, 332.7, 8.7, 4.9),
    "microsoft/ms_marco": (16.5, 1152.1, 6.0, 14.0),
    "allenai/metaicl-data": (3.5, 1776.8, 84.3, 2.9),
    "kmfoda/booksum": (1.0, 1158.6, 7.0, 205.3),
    "sggetao/PwC": (12.4, 348.1, 10.3, 23.3),
}


@dataclass(frozen=True)
class ContextShape:
    """Means over a source's contexts.

    Attributes:
        context_tokens: n.
        questions: asked of one context.
        question_tokens: of a prompt.
        answer_tokens: of an answer.
        reconstruction: probability that the context is to be reconstructed.
        completion: whether its text is to be completed, eq. (5).
    """

    context_tokens: float
    questions: float = 0.0
    question_tokens: float = 0.0
    answer_tokens: float = 0.0
    reconstruction: float = 0.0
    completion: bool = False


def context_shape(source: SourceConfig) -> ContextShape:
    """An average context of a source."""
    fewest, most = source.context_tokens
    middle = float(most) if source.packing else (fewest + most) / 2
    if source.kind == "text":
        return ContextShape(middle, reconstruction=1.0, completion=True)
    if source.kind == "facts":
        return _facts_shape(source, middle)
    questions = float(source.num_questions)
    if source.dataset in TABLE_3:
        asked, length, question, answer = TABLE_3[source.dataset]
        tokens = min(max(length, fewest), most)
        return ContextShape(tokens, min(asked, questions), question + _PROMPT_TOKENS, answer + 1, source.reconstruction)
    if source.kind == "cloze":
        asked, answer = _CLOZE_QUESTION_TOKENS + _PROMPT_TOKENS, _CLOZE_ANSWER_TOKENS + 1
        return ContextShape(middle, questions, asked, answer, source.reconstruction)
    return ContextShape(middle, questions, _QUESTION_TOKENS + _PROMPT_TOKENS, _ANSWER_TOKENS + 1, source.reconstruction)


def pass_layout(shape: ContextShape, recipe: TrainingRecipe, contexts: float) -> PassLayout:
    """A pass over `contexts` contexts of one shape, laid out as `batches.assemble` does.

    A context of n tokens in T chunks gives T - 1 rows that write chunks 2 .. T (and predict them, in completion), T
    rows of reconstruction and packed rows of questions. A text of one chunk is cut at two thirds: the first part is
    reconstructed, the rest completed.
    """
    chunk_limit = recipe.generator.chunk_tokens
    length = shape.context_tokens
    num_chunks = max(1, math.ceil(length / chunk_limit))
    asked = shape.questions * (shape.question_tokens + shape.answer_tokens)
    supervised = shape.questions * shape.answer_tokens + shape.reconstruction * length
    first, reconstructed = min(length, chunk_limit), length
    completed = 0.0
    if shape.completion and num_chunks == 1:
        first = reconstructed = length * 2 / 3
        completed = length / 3
        supervised = length
    elif shape.completion:
        supervised += length - first
    width = max(float(recipe.row_tokens), shape.question_tokens + shape.answer_tokens)
    if shape.reconstruction:
        width = max(width, first)
    if num_chunks > 1:
        width = first
        later = (num_chunks - 1) * width + shape.reconstruction * num_chunks * width
        later += math.ceil(asked / width) * width
    else:
        packed = asked + completed + shape.reconstruction * reconstructed
        width = min(width, max(packed, 1.0)) if contexts == 1 else width
        later = packed / (_REAL_SHARE if shape.questions else 1.0)
    teacher = shape.questions * (length + shape.question_tokens + shape.answer_tokens)
    return PassLayout(
        first_tokens=contexts * first,
        first_row_tokens=max(first, float(recipe.row_tokens)) if contexts > 1 else first,
        row_tokens=width,
        all_row_tokens=contexts * later,
        supervised_tokens=contexts * supervised,
        chunk_tokens=first,
        first_chunks=contexts,
        later_chunks=contexts * (num_chunks - 1),
        prefixes=contexts * num_chunks,
        context_tokens=contexts * length,
        teacher_tokens=contexts * teacher if recipe.distillation_weight > 0 else 0.0,
    )


def contexts_of_a_pass(shape: ContextShape, recipe: TrainingRecipe, num_processes: int) -> int:
    """How many contexts of one shape share a pass: as many as `micro_batch_tokens` takes, one at least."""
    tokens = shape.context_tokens * (1 + shape.reconstruction)
    tokens += shape.questions * (shape.question_tokens + shape.answer_tokens)
    own = math.ceil(recipe.contexts_per_step / num_processes)
    return max(1, min(own, int(recipe.micro_batch_tokens // max(1.0, tokens))))


def num_records(source: SourceConfig) -> float | None:
    """Records of a source that are trained on, where the recipe bounds them; None: known only when they are read."""
    bounds = []
    if source.max_records is not None:
        bounds.append(float(source.max_records))
    if source.max_tokens is not None:
        bounds.append(source.max_tokens / context_shape(source).context_tokens)
    return min(bounds) * (1 - source.held_out_share) if bounds else None


def _facts_shape(source: SourceConfig, around: float) -> ContextShape:
    rng = random.Random(0)
    records = [
        sample_facts_record(
            rng,
            num_facts=rng.randint(*source.num_facts),
            num_questions=source.num_questions,
            style=source.style,
            attributes=source.attributes,
        )
        for _ in range(_SAMPLES)
    ]
    asked = [question for record in records for question in record.questions]
    return ContextShape(
        _tokens(sum(len(record.context) for record in records), _SAMPLES) + (around if source.paths else 0.0),
        len(asked) / _SAMPLES,
        _tokens(sum(len(question.question) for question in asked), len(asked)) + _PROMPT_TOKENS,
        _tokens(sum(len(question.answers[0]) for question in asked), len(asked)) + 1,
        source.reconstruction,
    )


def _tokens(characters: int, parts: int) -> float:
    return characters / parts / _CHARACTERS_PER_TOKEN
